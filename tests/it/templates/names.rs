//! Names that have to be spelt as somebody else spells them.

use serde_json::{Value, json};
use ses_ledger::event::EventKind;

use super::{Template, Templates};

/// `detail-type` of each kind, in the order of [`EventKind::ALL`].
const ON_EVENTBRIDGE: [&str; 10] = [
    "Email Sent",
    "Email Rejected",
    "Email Rendering Failed",
    "Email Delivered",
    "Email Delivery Delayed",
    "Email Bounced",
    "Email Complaint Received",
    "Email Opened",
    "Email Clicked",
    "Email Subscribed",
];

/// `aws cloudformation deploy` takes larger ones from a bucket only.
pub(super) fn every_template_is_small_enough(templates: &Templates) -> Vec<String> {
    let all = templates.all().into_iter();
    let large = all.filter(|it| it.text.len() > 51_200);
    large.map(|it| format!("{}: {} bytes, more than 51200", it.file, it.text.len())).collect()
}

pub(super) fn every_parameter_is_explained_and_limited(templates: &Templates) -> Vec<String> {
    let mut wrong = Vec::new();
    for template in templates.all() {
        for (name, it) in parameters(template) {
            if it["Description"].as_str().is_none_or(|text| text.len() < 10) {
                wrong.push(format!("{}: {name} is not explained", template.file));
            }
            let limited = match it["Type"].as_str() {
                Some("Number") => {
                    !it["AllowedValues"].is_null() || (!it["MinValue"].is_null() && !it["MaxValue"].is_null())
                }
                Some("String") => !it["AllowedValues"].is_null() || !it["AllowedPattern"].is_null(),
                // CloudFormation looks whether they exist; a list has no constraint.
                _ => true,
            };
            if !limited {
                wrong.push(format!("{}: {name} may be anything", template.file));
            }
        }
    }
    wrong
}

pub(super) fn every_parameter_is_in_one_group(templates: &Templates) -> Vec<String> {
    let mut wrong = Vec::new();
    for template in templates.all() {
        let groups = &template.value["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"];
        let listed: Vec<&str> = groups
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|group| group["Parameters"].as_array().into_iter().flatten())
            .filter_map(Value::as_str)
            .collect();
        for (name, _) in parameters(template) {
            let times = listed.iter().filter(|listed| *listed == name).count();
            if times != 1 {
                wrong.push(format!("{}: {name} is in {times} groups", template.file));
            }
        }
        let unknown = listed.iter().filter(|name| template.parameter(name).is_null());
        wrong.extend(unknown.map(|name| format!("{}: a group lists {name}, which is none", template.file)));
    }
    wrong
}

/// Parameters that say `Output NAME`, and those that everybody uses.
pub(super) fn the_pipeline_puts_out_what_the_workers_take(templates: &Templates) -> Vec<String> {
    let outputs = [
        ("QueueUrl", json!({ "Ref": "Queue" })),
        ("QueueArn", json!({ "Fn::GetAtt": ["Queue", "Arn"] })),
        ("QueueName", json!({ "Fn::GetAtt": ["Queue", "QueueName"] })),
        ("DeadLetterQueueUrl", json!({ "Ref": "DeadLetterQueue" })),
        ("DeadLetterQueueArn", json!({ "Fn::GetAtt": ["DeadLetterQueue", "Arn"] })),
        ("DeadLetterQueueName", json!({ "Fn::GetAtt": ["DeadLetterQueue", "QueueName"] })),
        ("TopicArn", json!({ "Ref": "Topic" })),
        ("KeyArn", json!({ "Fn::GetAtt": ["Key", "Arn"] })),
        ("AlarmTopicArn", json!({ "Ref": "AlarmTopic" })),
        ("WorkerRoleName", json!({ "Ref": "WorkerRole" })),
        ("WorkerRoleArn", json!({ "Fn::GetAtt": ["WorkerRole", "Arn"] })),
    ];
    let put_out = &templates.pipeline.value["Outputs"];
    let mut wrong: Vec<String> = outputs
        .iter()
        .filter(|(name, value)| put_out[name]["Value"] != *value)
        .map(|(name, value)| format!("pipeline.yaml: the output {name} is not {value}"))
        .collect();
    for template in templates.of_workers() {
        for (name, it) in parameters(template) {
            let text = it["Description"].as_str().unwrap_or_default();
            for taken in text.split("utput ").skip(1).filter_map(|rest| rest.split([' ', ',', ';', '.']).next()) {
                if put_out[taken].is_null() {
                    wrong.push(format!("{}: {name} is to be the output {taken}, which is none", template.file));
                }
            }
        }
    }
    wrong
}

pub(super) fn every_kind_of_event_is_published(templates: &Templates) -> Vec<String> {
    let pipeline = &templates.pipeline;
    let mut wrong = Vec::new();
    for (name, it) in pipeline.of_type("AWS::SES::ConfigurationSetEventDestination") {
        let kinds = EventKind::ALL.iter().map(|kind| camel_case(kind.as_str()));
        wrong.extend(differing(name, &it["EventDestination"]["MatchingEventTypes"], kinds));
    }
    for (name, it) in pipeline.of_type("AWS::Events::Rule") {
        wrong.extend(differing(name, &it["EventPattern"]["detail-type"], ON_EVENTBRIDGE.map(str::to_owned)));
    }
    wrong
}

/// The doctor may look at alarms by the name they begin with, and two stacks must not have the same ones.
pub(super) fn every_alarm_is_named_after_its_stack(templates: &Templates) -> Vec<String> {
    let mut wrong = Vec::new();
    for template in templates.all() {
        let start = if template.file == "pipeline.yaml" { "${Name}-" } else { "${AWS::StackName}-" };
        for (name, alarm) in template.of_type("AWS::CloudWatch::Alarm") {
            if !alarm["AlarmName"]["Fn::Sub"].as_str().is_some_and(|it| it.starts_with(start)) {
                wrong.push(format!("{}: the name of {name} does not begin with {start}", template.file));
            }
        }
    }
    wrong
}

fn parameters(template: &Template) -> impl Iterator<Item = (&String, &Value)> {
    template.value["Parameters"].as_object().into_iter().flatten()
}

/// The names of which only one side has heard.
fn differing(place: &str, found: &Value, expected: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut found: Vec<&str> = found.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut wrong = Vec::new();
    for name in expected {
        match found.iter().position(|found| *found == name) {
            Some(at) => drop(found.remove(at)),
            None => wrong.push(format!("pipeline.yaml: {place} lacks {name}")),
        }
    }
    wrong.extend(found.iter().map(|name| format!("pipeline.yaml: {place} names {name}, which SES does not know")));
    wrong
}

fn camel_case(snake_case: &str) -> String {
    let mut words = snake_case.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..])
}

#[test]
fn kinds_are_spelt_as_cloudformation_spells_them() {
    assert_eq!(camel_case("rendering_failure"), "renderingFailure");
    assert_eq!(camel_case("send"), "send");
}
