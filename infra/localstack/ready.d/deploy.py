"""Makes in LocalStack what infra/pipeline.yaml makes on AWS, when LocalStack is ready (an "init hook").

The template is deployed as it is. CloudFormation of LocalStack passes over what is of SES, so the configuration set and
its event destination are made here, and a domain that may send.

It runs inside of LocalStack's own process, in the container as without one, and reads:
  PIPELINE_TEMPLATE    the template's file
  PIPELINE_PARAMETERS  its parameters as NAME=VALUE, with spaces between them; none is fine
  LOCALSTACK_HOST      tells the port
"""

import os

import boto3

STACK = "ses-ledger"
DOMAIN = "example.com"
# All that the first version of the SES API knows; LocalStack reports sends and deliveries.
EVENTS = ["send", "reject", "bounce", "complaint", "delivery", "open", "click", "renderingFailure"]

port = os.environ.get("LOCALSTACK_HOST", "").rpartition(":")[2] or "4566"
session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")


def client(service):
    return session.client(service, endpoint_url=f"http://127.0.0.1:{port}")


def deploy(template, parameters):
    """Returns the stack's outputs."""
    cloudformation = client("cloudformation")
    pairs = [parameter.partition("=") for parameter in parameters]
    cloudformation.create_stack(
        StackName=STACK,
        TemplateBody=template,
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, _, value in pairs],
        Capabilities=["CAPABILITY_IAM"],
    )
    waiter = cloudformation.get_waiter("stack_create_complete")
    waiter.wait(StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    outputs = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def publish_events(configuration_set, topic):
    ses = client("ses")
    ses.create_configuration_set(ConfigurationSet={"Name": configuration_set})
    ses.create_configuration_set_event_destination(
        ConfigurationSetName=configuration_set,
        EventDestination={
            "Name": "sns",
            "Enabled": True,
            "MatchingEventTypes": EVENTS,
            "SNSDestination": {"TopicARN": topic},
        },
    )
    ses.verify_domain_identity(Domain=DOMAIN)


with open(os.environ["PIPELINE_TEMPLATE"], encoding="utf-8") as file:
    outputs = deploy(file.read(), os.environ.get("PIPELINE_PARAMETERS", "").split())
# The set has the name of all else, which is also the queue's.
publish_events(outputs["QueueName"], outputs["TopicArn"])
print(f"the pipeline is there: mails from {DOMAIN} with the configuration set {outputs['QueueName']}", flush=True)
