//! The real template, deployed by CloudFormation as LocalStack has it: what SES says goes through the stack's topic or
//! rule to the stack's queue, and the real worker, started with the stack's own outputs, brings it into the database.
//!
//! LocalStack enforces no policy and no key, so these are read back and compared. Its CloudFormation passes over the
//! resources of SES, so the configuration set is made here.

use std::{collections::HashMap, fs, path::Path};

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{
    binary::{Running, end_of, ses_ledger, until},
    database::{self, Database},
    localstack::{self, Stack, element, json_query, query},
    pipeline,
    roles::login,
};

/// What costs LocalStack time and is none of a worker's business.
const BARE: [(&str, &str); 2] = [("CreateAlarms", "false"), ("CreateRoles", "false")];

#[tokio::test(flavor = "multi_thread")]
async fn what_ses_publishes_to_the_stack_becomes_a_history() {
    check_topic(as_it_is().await, "sns_message_id IS NULL AND eventbridge_id IS NULL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_without_raw_delivery() {
    let stack = deploy("wrapped", &[("RawDelivery", "false")]).await;
    check_topic(&stack, "sns_message_id IS NOT NULL AND eventbridge_id IS NULL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_by_eventbridge_with_a_copy_for_the_shadow() {
    let stack = deploy("ruled", &[("EventPath", "eventbridge"), ("ShadowQueue", "true")]).await;
    let database = bounced_mail().await;
    let mut migrate = ses_ledger(["migrate", "up"]);
    migrate.env("DATABASE_URL", &database.url).env("DATABASE_SCHEMA", "ses_ledger_shadow");
    assert_eq!(end_of(migrate).await.code, Some(0));
    database
        .run("INSERT INTO ses_ledger_shadow.email_logs (aws_message_id) SELECT aws_message_id FROM email_logs")
        .await;
    let worker = Running::start(&database.url, stack.output("QueueUrl"), &[]).await;
    let shadow_worker = Running::start(&database.url, stack.output("ShadowQueueUrl"), &["--shadow"]).await;

    let event = |kind: &str| json!({"Source": "aws.ses", "DetailType": kind, "Detail": bounce()});
    let events = json!({"Entries": [event("Email Bounced"), event("Email Account Suspended")]});
    let answer = json_query("events", "AWSEvents.PutEvents", &events).await;
    assert_eq!(answer["FailedEntryCount"], 0, "{answer}");

    for (schema, queue) in [("public", "QueueArn"), ("ses_ledger_shadow", "ShadowQueueArn")] {
        let status = format!("SELECT status FROM {schema}.email_logs");
        until("the mail has bounced", async || database.text(&status).await == "bounced").await;
        let by_rule = format!("SELECT queue FROM {schema}.email_events WHERE eventbridge_id IS NOT NULL");
        assert_eq!(database.texts(&by_rule).await, [stack.output(queue)]);
    }
    for worker in [worker, shadow_worker] {
        assert_eq!(worker.stop().await.count("received"), 1, "the rule takes the kinds that SES has, and no other");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queues_are_as_the_template_says() {
    let stack = as_it_is().await;
    let (queue, dead) = (attributes(stack, "QueueUrl").await, attributes(stack, "DeadLetterQueueUrl").await);

    let redrive = json!({"deadLetterTargetArn": stack.output("DeadLetterQueueArn"), "maxReceiveCount": 100});
    assert_eq!(parsed(&queue, QueueAttributeName::RedrivePolicy), redrive);
    let allowed = json!({"redrivePermission": "byQueue", "sourceQueueArns": [stack.output("QueueArn")]});
    assert_eq!(parsed(&dead, QueueAttributeName::RedriveAllowPolicy), allowed);
    assert_eq!(queue[&QueueAttributeName::VisibilityTimeout], "390");
    assert_eq!(queue[&QueueAttributeName::ReceiveMessageWaitTimeSeconds], "20");
    for attributes in [&queue, &dead] {
        assert_eq!(attributes[&QueueAttributeName::MessageRetentionPeriod], "1209600");
        assert_eq!(attributes[&QueueAttributeName::KmsMasterKeyId], stack.output("KeyArn"));
    }

    let policy = parsed(&queue, QueueAttributeName::Policy);
    let senders: Vec<&Value> = statements(&policy).filter(|statement| statement["Effect"] == "Allow").collect();
    let [sender] = senders[..] else { panic!("only the topic may send: {policy}") };
    assert_eq!(sender["Principal"], json!({"Service": "sns.amazonaws.com"}));
    assert_eq!(sender["Action"], "sqs:SendMessage");
    assert_eq!(sender["Resource"], stack.output("QueueArn"));
    assert_eq!(sender["Condition"], json!({"ArnEquals": {"aws:SourceArn": stack.output("TopicArn")}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn ses_may_publish_to_the_topic() {
    let stack = as_it_is().await;
    let topic = [("TopicArn".to_owned(), stack.output("TopicArn").to_owned())];
    let answer = query("sns", "GetTopicAttributes", &topic).await;
    let attribute = |name: &str| {
        let after = answer.split(&format!("<key>{name}</key>")).nth(1);
        unescaped(element(after.unwrap_or_else(|| panic!("no {name}: {answer}")), "value"))
    };
    assert_eq!(attribute("KmsMasterKeyId"), stack.output("KeyArn"));
    let policy: Value = serde_json::from_str(&attribute("Policy")).expect("a policy is JSON");
    let publishers: Vec<&Value> = statements(&policy).filter(|statement| statement["Effect"] == "Allow").collect();
    let [publisher] = publishers[..] else { panic!("only SES may publish: {policy}") };
    assert_eq!(publisher["Principal"], json!({"Service": "ses.amazonaws.com"}));
    assert_eq!(publisher["Condition"]["StringEquals"], json!({"aws:SourceAccount": "000000000000"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn ses_and_sns_may_use_the_key() {
    let stack = as_it_is().await;
    let key = json!({"KeyId": stack.output("KeyArn"), "PolicyName": "default"});
    let answer = json_query("kms", "TrentService.GetKeyPolicy", &key).await;
    let policy: Value = serde_json::from_str(text(&answer["Policy"])).expect("a policy is JSON");
    for service in ["ses.amazonaws.com", "sns.amazonaws.com"] {
        let mut own = statements(&policy).filter(|it| it["Effect"] == "Allow" && it["Principal"]["Service"] == service);
        let own = own.next().unwrap_or_else(|| panic!("{service} may not use the key: {policy}"));
        assert_eq!(own["Action"], json!(["kms:GenerateDataKey", "kms:Decrypt"]), "{service}");
        let source = &own["Condition"]["ArnEquals"]["aws:SourceArn"];
        assert!(source.is_null() || source == stack.output("TopicArn"), "{service} only for {source}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_received_too_often_is_a_dead_letter() {
    let stack = deploy("deadly", &[("EventPath", "eventbridge"), ("MaxReceiveCount", "5")]).await;
    let client = client().await;
    client.send_message().queue_url(stack.output("QueueUrl")).message_body("{}").send().await.expect("it takes all");
    let receive = async |url| {
        let request = client.receive_message().queue_url(stack.output(url)).visibility_timeout(0).wait_time_seconds(0);
        request.send().await.expect("the queue is there").messages.unwrap_or_default().len()
    };
    let mut received = 0;
    until("it is a dead letter", async || {
        received += receive("QueueUrl").await;
        receive("DeadLetterQueueUrl").await == 1
    })
    .await;
    assert_eq!(received, 5);
}

/// What is deployed from the template is right in the eyes of the doctor, who reads the stack's own policies. SES is that
/// of the other emulator: LocalStack has only its first version.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_nothing_wrong_with_the_stack() {
    let stack = deploy("doctored", &[("EventPath", "both")]).await;
    let bus = "arn:aws:events:us-east-1:000000000000:event-bus/default";
    let ses = pipeline::set_to("doctored", &[stack.output("TopicArn"), bus]).await;
    let database = database::fresh().await;
    database.run("SELECT email_events_ensure_ahead(3)").await;
    let mut doctor = ses_ledger(["doctor", "--config-set=doctored", "--strict"]);
    doctor.env("DATABASE_URL", login(&database, &["ses_ledger_worker"]).await);
    doctor.env("QUEUE_URL", stack.output("QueueUrl"));
    doctor.env("AWS_ENDPOINT_URL", localstack::endpoint().await).env("AWS_ENDPOINT_URL_SESV2", ses);
    let ended = end_of(doctor).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    for way in ["the topic doctored may send to the queue", "the rule doctored may send to the queue"] {
        assert!(ended.out.contains(way), "{}", ended.out);
    }
}

/// The stack with nothing but the template's defaults, alarms, roles and all.
async fn as_it_is() -> &'static Stack {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    STACK.get_or_init(async || Stack::deploy("ses-ledger", &template(), &[]).await).await
}

/// A stack of that name with the parameters that a test is about.
async fn deploy(name: &str, parameters: &[(&str, &str)]) -> Stack {
    let parameters: Vec<_> = [("Name", name)].iter().chain(&BARE).chain(parameters).copied().collect();
    Stack::deploy(name, &template(), &parameters).await
}

fn template() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("infra/pipeline.yaml");
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// An event that SES publishes, and a mail that is sent: both are in the database, by this way.
async fn check_topic(stack: &Stack, way: &str) {
    let database = bounced_mail().await;
    let worker = Running::start(&database.url, stack.output("QueueUrl"), &[]).await;

    let publish = [("TopicArn", stack.output("TopicArn")), ("Message", &bounce())];
    query("sns", "Publish", &owned(&publish)).await;
    until("the mail has bounced", async || database.text("SELECT status FROM email_logs").await == "bounced").await;

    let mail = send(stack).await;
    database.run(&format!("INSERT INTO email_logs (aws_message_id) VALUES ('{mail}')")).await;
    let status = format!("SELECT status FROM email_logs WHERE aws_message_id = '{mail}'");
    until("the mail is delivered", async || database.text(&status).await == "delivered").await;
    // SES reports them in any order.
    until("all has come", async || database.number("SELECT count(*) FROM email_events").await == 3).await;

    let rows = database
        .texts(&format!("SELECT event_type || ' ' || recipient FROM email_events WHERE {way} ORDER BY event_type"))
        .await;
    assert_eq!(rows, ["bounce to@example.net", "delivery ana@example.net", "send ana@example.net"]);
    assert_eq!(database.text("SELECT DISTINCT queue FROM email_events").await, stack.output("QueueArn"));

    // With the destination of the configuration set came the text by which SES tries the topic.
    let farewell = worker.stop().await;
    assert_eq!(["stored", "ignored", "rejected"].map(|outcome| farewell.count(outcome)), [3, 1, 0]);
}

/// A database with the log row of the mail of [`bounce`].
async fn bounced_mail() -> Database {
    let database = database::fresh().await;
    let event: Value = serde_json::from_str(&bounce()).expect("SES writes JSON");
    let id = event["mail"]["messageId"].as_str().expect("every mail has an id");
    database.run(&format!("INSERT INTO email_logs (aws_message_id) VALUES ('{id}')")).await;
    database
}

/// An event as SES hands it to SNS: the fixture's message, without the envelope.
fn bounce() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bodies/Bounce--permanent-general.json");
    let envelope: Value = serde_json::from_str(&fs::read_to_string(path).expect("it is there")).expect("it is JSON");
    envelope["Message"].as_str().expect("an envelope has a message").to_owned()
}

/// Sends a mail with a configuration set that publishes to the stack's topic, and returns its id.
async fn send(stack: &Stack) -> String {
    let set = stack.output("QueueName");
    query("ses", "CreateConfigurationSet", &owned(&[("ConfigurationSet.Name", set)])).await;
    let destination = [
        ("ConfigurationSetName", set),
        ("EventDestination.Name", set),
        ("EventDestination.Enabled", "true"),
        ("EventDestination.MatchingEventTypes.member.1", "send"),
        ("EventDestination.MatchingEventTypes.member.2", "delivery"),
        ("EventDestination.SNSDestination.TopicARN", stack.output("TopicArn")),
    ];
    query("ses", "CreateConfigurationSetEventDestination", &owned(&destination)).await;
    query("ses", "VerifyDomainIdentity", &owned(&[("Domain", "example.com")])).await;
    let mail = [
        ("Source", "shop@example.com"),
        ("Destination.ToAddresses.member.1", "ana@example.net"),
        ("Message.Subject.Data", "Your order"),
        ("Message.Body.Text.Data", "It is on its way."),
        ("ConfigurationSetName", set),
    ];
    element(&query("ses", "SendEmail", &owned(&mail)).await, "MessageId").to_owned()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

type Attributes = HashMap<QueueAttributeName, String>;

/// What the queue of this output is like.
async fn attributes(stack: &Stack, output: &str) -> Attributes {
    let request = client().await.get_queue_attributes().queue_url(stack.output(output));
    let answer = request.attribute_names(QueueAttributeName::All).send().await.expect("the queue is there");
    answer.attributes.expect("every queue has some")
}

fn parsed(attributes: &Attributes, name: QueueAttributeName) -> Value {
    let text = attributes.get(&name).unwrap_or_else(|| panic!("no {name} among {:?}", attributes.keys()));
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{name} is not JSON ({e}): {text}"))
}

fn statements(policy: &Value) -> impl Iterator<Item = &Value> {
    policy["Statement"].as_array().unwrap_or_else(|| panic!("no statements: {policy}")).iter()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
}

fn unescaped(xml: &str) -> String {
    xml.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

async fn client() -> aws_sdk_sqs::Client {
    crate::emulator::client(localstack::endpoint().await)
}
