//! `ses-ledger doctor` against an emulator that has all of it: SES, SNS, KMS, EventBridge and SQS. A right set-up has to
//! pass in silence, and each fault that is planted into one has to be found.

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{Ended, end_of, ses_ledger};
use crate::{
    database::{self, Database},
    pipeline::{DETAIL_TYPES, KINDS, Pipeline, Via},
    roles::{login, login_of},
};

/// What doctor said.
struct Verdict {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Verdict {
    fn of(&self, severity: &str) -> Vec<&Value> {
        self.findings.iter().filter(|it| it["severity"] == severity).collect()
    }

    /// There is such a finding; it has a reason, and a way to mend it.
    fn has(&self, severity: &str, hop: &str, what: &str) -> &Value {
        let text = |it: &Value| it["what"].as_str().unwrap_or_default().to_owned();
        let found = self.of(severity).into_iter().find(|it| it["hop"] == hop && text(it).contains(what));
        let found = found.unwrap_or_else(|| panic!("no {severity} at {hop} that says {what:?}: {:#?}", self.findings));
        assert!(found["why"].is_string(), "{found}");
        assert!(found["fix"].is_string() || severity == "unknown" || severity == "note", "{found}");
        found
    }
}

/// A login with nothing but the worker's role, in a database that is as it should be.
async fn worker() -> &'static str {
    static WORKER: OnceCell<(Database, String)> = OnceCell::const_new();
    let make = async || {
        let database = database::fresh().await;
        database.run("SELECT email_events_ensure_ahead(3)").await;
        let url = login(&database, &["ses_ledger_worker"]).await;
        (database, url)
    };
    &WORKER.get_or_init(make).await.1
}

async fn ask(pipeline: &Pipeline, database: &str, more: &[&str]) -> Ended {
    let mut command = ses_ledger(["doctor"]);
    command.env("DATABASE_URL", database).env("QUEUE_URL", &pipeline.queue_url);
    command.env("AWS_ENDPOINT_URL", &pipeline.endpoint).args(more);
    end_of(command).await
}

async fn examine(pipeline: &Pipeline, database: &str, more: &[&str]) -> Verdict {
    let more: Vec<&str> = more.iter().copied().chain(["--json"]).collect();
    let ended = ask(pipeline, database, &more).await;
    let answer: Value = serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{e}: {} {}", ended.out, ended.err));
    let parts = answer["parts"].as_array().expect("it has parts").iter();
    let findings = parts.flat_map(|part| part["findings"].as_array().expect("a part has findings").clone()).collect();
    Verdict { code: ended.code, findings }
}

async fn check_silent(pipeline: &Pipeline) {
    let set = ["--config-set", &pipeline.name, "--identity", &pipeline.identity(), "--strict"].map(str::to_owned);
    let verdict = examine(pipeline, worker().await, &set.each_ref().map(String::as_str)).await;
    for severity in ["error", "warning", "unknown"] {
        assert_eq!(verdict.of(severity), Vec::<&Value>::new());
    }
    assert_eq!(verdict.code, Some(0));
    assert!(verdict.of("ok").len() > 15, "it looked at much: {:#?}", verdict.findings);
}

/// Plants a fault into a right set-up. It is found, at its hop, and nothing else is.
async fn check(fault: &str, plant: impl AsyncFnOnce(&Pipeline), severity: &str, hop: &str, what: &str) {
    let pipeline = Pipeline::make(&format!("doctor-{fault}"), Via::Topic).await;
    plant(&pipeline).await;
    let verdict = examine(&pipeline, worker().await, &["--config-set", &pipeline.name]).await;
    verdict.has(severity, hop, what);
    let bad = [verdict.of("error"), verdict.of("warning"), verdict.of("unknown")].concat();
    assert!(bad.iter().all(|it| it["hop"] == hop), "{fault}: more than that is said to be wrong: {bad:#?}");
    assert_eq!(verdict.code, Some(if severity == "error" { 1 } else { 0 }), "{fault}");
    let strict = examine(&pipeline, worker().await, &["--config-set", &pipeline.name, "--strict"]).await;
    assert_eq!(strict.code, Some(if severity == "note" { 0 } else { 1 }), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_set_up_by_a_topic_passes_in_silence() {
    check_silent(&Pipeline::make("doctor-right", Via::Topic).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_set_up_by_eventbridge_passes_in_silence() {
    check_silent(&Pipeline::make("doctor-ruled", Via::Bus).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_than_two_months_ahead_are_worth_a_warning() {
    let pipeline = Pipeline::make("doctor-months", Via::Topic).await;
    let database = database::fresh().await;
    database.run("SELECT email_events_ensure_ahead(5)").await;
    let second = "SELECT 'DROP TABLE email_events_' || to_char((now() AT TIME ZONE 'UTC')::date + interval '2 months', '\"y\"YYYY\"m\"MM')";
    database.run(&database.text(second).await).await;
    let url = login(&database, &["ses_ledger_worker"]).await;
    let verdict = examine(&pipeline, &url, &[]).await;
    let warning = verdict.has("warning", "database", "partitions are ready for 1 month after this one, without a gap");
    assert!(warning["fix"].as_str().is_some_and(|fix| fix.starts_with("ses-ledger partitions ensure")), "{warning}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_set_that_leads_to_the_queue_is_found_by_itself() {
    let pipeline = Pipeline::make("doctor-unnamed", Via::Topic).await;
    let verdict = examine(&pipeline, worker().await, &[]).await;
    assert_eq!(verdict.code, Some(0));
    let said = verdict.of("ok").into_iter().any(|it| it["what"] == "doctor-unnamed is there, and may send");
    assert!(said, "{:#?}", verdict.findings);

    pipeline.sns.unsubscribe().subscription_arn(&pipeline.subscription).send().await.expect("it is there");
    let verdict = examine(&pipeline, worker().await, &[]).await;
    verdict.has("error", "configuration_set", "no configuration set leads to this queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_ses_are_found() {
    check(
        "no-set",
        async |p| p.delete_set().await,
        "error",
        "configuration_set",
        "there is no configuration set doctor-no-set",
    )
    .await;
    check(
        "set-off",
        async |p| p.switch_set_off().await,
        "error",
        "configuration_set",
        "sending is switched off for doctor-set-off",
    )
    .await;
    let off = async |p: &Pipeline| p.destination(false, &KINDS, &p.topic).await;
    check("off", off, "error", "event_destination", "events, which publishes to the topic doctor-off, is switched off")
        .await;
    let kinds =
        async |p: &Pipeline| p.destination(true, &["SEND", "DELIVERY", "REJECT", "OPEN", "CLICK"], &p.topic).await;
    check("kinds", kinds, "error", "event_destination", "events does not publish bounce and complaint").await;
    let delays = async |p: &Pipeline| p.destination(true, &KINDS[1..], &p.topic).await;
    check("delays", delays, "warning", "event_destination", "events does not publish delivery_delay").await;
    let wrong = async |p: &Pipeline| {
        let other = p.sns.create_topic().name("doctor-elsewhere").send().await.expect("it makes topics");
        p.destination(true, &KINDS, &other.topic_arn.expect("it has one")).await;
    };
    check(
        "wrong",
        wrong,
        "error",
        "event_destination",
        "events publishes to the topic doctor-elsewhere, which does not lead",
    )
    .await;
    let sandbox = async |p: &Pipeline| {
        p.replace("GET /v2/email/account", r#""ProductionAccessEnabled": true"#, r#""ProductionAccessEnabled": false"#)
    };
    check("sandbox", sandbox, "warning", "identity", "the account is in the sandbox").await;
    let stopped = async |p: &Pipeline| {
        p.replace("GET /v2/email/account", r#""SendingEnabled": true"#, r#""SendingEnabled": false"#)
    };
    check("stopped", stopped, "error", "identity", "sending is switched off for this account").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_has_to_be_there_and_verified() {
    let pipeline = Pipeline::make("doctor-identity", Via::Topic).await;
    let set = ["--config-set", "doctor-identity", "--identity"];
    let verdict = examine(&pipeline, worker().await, &[&set[..], &["nobody.example.com"]].concat()).await;
    verdict.has("error", "identity", "SES does not know nobody.example.com");
    // An address of a domain that is verified is as good.
    let address = format!("shop@{}", pipeline.identity());
    let verdict = examine(&pipeline, worker().await, &[&set[..], &[&address]].concat()).await;
    assert_eq!(verdict.of("error"), Vec::<&Value>::new());
    pipeline.replace(
        "GET /v2/email/identities/",
        r#""VerifiedForSendingStatus": true"#,
        r#""VerifiedForSendingStatus": false"#,
    );
    let verdict = examine(&pipeline, worker().await, &[&set[..], &[&pipeline.identity()]].concat()).await;
    verdict.has("error", "identity", "doctor-identity.example.com is not verified");
    assert_eq!(verdict.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_topic_and_its_key_are_found() {
    let policy = async |p: &Pipeline| p.topic_policy(json!([])).await;
    check(
        "unpublished",
        policy,
        "error",
        "topic",
        "SES may not publish to doctor-unpublished: nothing in its policy allows it",
    )
    .await;
    let account = async |p: &Pipeline| {
        let condition = json!({"StringEquals": {"aws:SourceAccount": "999999999999"}});
        p.topic_policy(
            json!([{"Effect": "Allow", "Principal": {"Service": "ses.amazonaws.com"}, "Action": "sns:Publish",
                               "Resource": p.topic, "Condition": condition}]),
        )
        .await;
    };
    check("account", account, "error", "topic", "the policy of doctor-account lets SES publish, but not for").await;
    let unclear = async |p: &Pipeline| {
        let condition = json!({"StringEquals": {"aws:PrincipalOrgID": "o-1"}});
        p.topic_policy(json!([{"Effect": "Allow", "Principal": "*", "Action": "sns:Publish", "Resource": p.topic,
                               "Condition": condition}]))
            .await;
    };
    check("unclear", unclear, "unknown", "topic", "cannot tell whether SES may publish to doctor-unclear").await;
    let ses = async |p: &Pipeline| p.key_policy(&["sns.amazonaws.com"]).await;
    check("key-ses", ses, "error", "topic", "ses.amazonaws.com may not use the key of the topic").await;
    let sns = async |p: &Pipeline| p.key_policy(&["ses.amazonaws.com"]).await;
    check("key-sns", sns, "error", "queue", "sns.amazonaws.com may not use the key of the queue").await;
}

/// Both the topic and the queue have it, so both say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_off_is_found() {
    let pipeline = Pipeline::make("doctor-disabled", Via::Topic).await;
    pipeline.kms.disable_key().key_id(&pipeline.key).send().await.expect("it is there");
    let verdict = examine(&pipeline, worker().await, &["--config-set", &pipeline.name]).await;
    let topic = verdict.has("error", "topic", "the key of the topic doctor-disabled cannot be used: it is Disabled");
    assert_eq!(topic["fix"], format!("aws kms enable-key --key-id {} --region us-east-1", pipeline.key));
    verdict.has("error", "queue", "the key of the queue cannot be used: it is Disabled");
    assert_eq!(verdict.of("error").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_subscription_are_found() {
    let gone = async |p: &Pipeline| {
        drop(p.sns.unsubscribe().subscription_arn(&p.subscription).send().await.expect("it is there"))
    };
    check(
        "unsubscribed",
        gone,
        "error",
        "subscription",
        "the topic doctor-unsubscribed has no subscription of this queue",
    )
    .await;
    let pending = async |p: &Pipeline| {
        p.replace(
            "Action=ListSubscriptionsByTopic",
            &format!("<SubscriptionArn>{}</SubscriptionArn>", p.subscription),
            "<SubscriptionArn>PendingConfirmation</SubscriptionArn>",
        );
    };
    check("pending", pending, "error", "subscription", "the subscription of this queue is not confirmed").await;
    let filter = async |p: &Pipeline| p.subscription_attribute("FilterPolicy", r#"{"eventType": ["Bounce"]}"#).await;
    check("filter", filter, "error", "subscription", "the filter policy looks at message attributes").await;
    let body = async |p: &Pipeline| {
        p.subscription_attribute("FilterPolicyScope", "MessageBody").await;
        p.subscription_attribute("FilterPolicy", r#"{"eventType": ["Bounce", "Complaint"]}"#).await;
    };
    check("body", body, "error", "subscription", "the filter policy drops send, reject and delivery").await;
    let lost = async |p: &Pipeline| p.subscription_attribute("RedrivePolicy", "").await;
    check("lost", lost, "warning", "subscription", "the subscription has no redrive policy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_queue_are_found() {
    let closed = async |p: &Pipeline| p.queue_attribute("Policy", "").await;
    check("closed", closed, "error", "queue", "the topic doctor-closed may not send to the queue: it has no policy")
        .await;
    let other = async |p: &Pipeline| {
        let topic = format!("{}-other", p.topic);
        p.queue_policy("sns.amazonaws.com", Some(&topic)).await;
    };
    check(
        "other",
        other,
        "error",
        "queue",
        "the topic doctor-other may not send to the queue: nothing in its policy allows it",
    )
    .await;
    let open = async |p: &Pipeline| {
        let open = json!({"Statement": [{"Sid": "Open", "Effect": "Allow", "Principal": "*", "Action": "sqs:*", "Resource": "*"}]});
        p.queue_attribute("Policy", &open.to_string()).await;
    };
    check("open", open, "warning", "queue", "anybody may send to the queue: Open of its policy has no condition").await;
    let hidden = async |p: &Pipeline| p.queue_attribute("VisibilityTimeout", "30").await;
    check("hidden", hidden, "warning", "queue", "the queue hides messages for 30 s, and handling one may take 35 s")
        .await;
    let kept = async |p: &Pipeline| p.queue_attribute("MessageRetentionPeriod", "345600").await;
    check("kept", kept, "warning", "queue", "messages are kept for 4 days only").await;
}

/// The worker's own settings are part of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_worker_has_to_hide_messages_for_long_enough() {
    let pipeline = Pipeline::make("doctor-worker", Via::Topic).await;
    let verdict = examine(&pipeline, worker().await, &["--config-set=doctor-worker", "--visibility-timeout=30s"]).await;
    verdict.has("error", "queue", "the worker hides a message for 30 s, and may need 35 s");
    assert_eq!(verdict.code, Some(1));
    let longer = ["--config-set=doctor-worker", "--visibility-timeout=900s", "--store-timeout=400s", "--strict"];
    let verdict = examine(&pipeline, worker().await, &longer).await;
    verdict.has("warning", "queue", "the queue hides messages for 6 min, and handling one may take 7 min");
}

/// What is in the queues for what could not be delivered has not become history.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_delivered_is_told() {
    let pipeline = Pipeline::make("doctor-undelivered", Via::Topic).await;
    for _ in 0..2 {
        let undelivered = format!("{}-undelivered", pipeline.queue_url);
        pipeline.sqs.send_message().queue_url(undelivered).message_body("{}").send().await.expect("it takes all");
    }
    let verdict = examine(&pipeline, worker().await, &["--config-set=doctor-undelivered"]).await;
    let what = "2 messages could not be delivered, and wait in doctor-undelivered-undelivered";
    let fix = verdict.has("warning", "subscription", what)["fix"].clone();
    let (from, to) = (pipeline.sibling("undelivered"), &pipeline.queue);
    assert_eq!(
        fix,
        format!("aws sqs start-message-move-task --source-arn {from} --destination-arn {to} --region us-east-1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_dead_letter_queue_are_found() {
    let none = async |p: &Pipeline| p.queue_attribute("RedrivePolicy", "").await;
    check("no-redrive", none, "error", "dead_letter_queue", "the queue has no redrive policy").await;
    let twice = async |p: &Pipeline| p.redrive(&p.sibling("dead"), 2).await;
    check("twice", twice, "error", "dead_letter_queue", "a message is given up after 2 receives").await;
    let itself = async |p: &Pipeline| p.redrive(&p.queue, 10).await;
    check("itself", itself, "error", "dead_letter_queue", "the queue is its own dead-letter queue").await;
    let missing = async |p: &Pipeline| {
        let dead = format!("{}-dead", p.queue_url);
        p.sqs.delete_queue().queue_url(dead).send().await.expect("it is there");
    };
    check("missing", missing, "error", "dead_letter_queue", "the dead-letter queue doctor-missing-dead does not exist")
        .await;
    let early = async |p: &Pipeline| p.attribute_of("dead", "MessageRetentionPeriod", "86400").await;
    check("early", early, "warning", "dead_letter_queue", "doctor-early-dead keeps messages for 1 day only").await;
    let letters = async |p: &Pipeline| {
        let dead = format!("{}-dead", p.queue_url);
        p.sqs.send_message().queue_url(dead).message_body("{}").send().await.expect("it takes all");
    };
    check("letters", letters, "warning", "dead_letter_queue", "a dead letter waits in doctor-letters-dead").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_rule_are_found() {
    let pattern = |pattern: Value| RuleFault::Pattern(pattern);
    check_rule("rule-off", RuleFault::Off, "error", "rule", "the rule doctor-rule-off is DISABLED").await;
    let most = pattern(json!({"source": ["aws.ses"], "detail-type": &DETAIL_TYPES[1..]}));
    check_rule("rule-kinds", most, "error", "rule", "the rule doctor-rule-kinds does not take send").await;
    let other = pattern(json!({"source": ["aws.s3"]}));
    check_rule("rule-other", other, "error", "rule", "takes no events of SES").await;
    let more = pattern(json!({"source": ["aws.ses"], "account": ["1"]}));
    check_rule("rule-more", more, "unknown", "rule", "also looks at account").await;
    check_rule("rule-lost", RuleFault::NoDeadLetters, "warning", "rule", "what EventBridge cannot deliver is lost")
        .await;
    check_rule(
        "rule-closed",
        RuleFault::Closed,
        "error",
        "queue",
        "the rule doctor-rule-closed may not send to the queue",
    )
    .await;
}

/// As [`check`], in a set-up that leads by EventBridge.
async fn check_rule(fault: &str, planted: RuleFault, severity: &str, hop: &str, what: &str) {
    let pipeline = Pipeline::make(&format!("doctor-{fault}"), Via::Bus).await;
    let rule = || pipeline.events.put_rule().name(&pipeline.name);
    match planted {
        RuleFault::Off => drop(pipeline.events.disable_rule().name(&pipeline.name).send().await.expect("it is there")),
        RuleFault::Pattern(pattern) => {
            drop(rule().event_pattern(pattern.to_string()).send().await.expect("it is there"))
        }
        RuleFault::NoDeadLetters => pipeline.target(false).await,
        RuleFault::Closed => pipeline.queue_policy("sns.amazonaws.com", None).await,
    }
    let verdict = examine(&pipeline, worker().await, &["--config-set", &pipeline.name]).await;
    verdict.has(severity, hop, what);
    let bad = [verdict.of("error"), verdict.of("warning"), verdict.of("unknown")].concat();
    assert_eq!(bad.len(), 1, "{fault}: {bad:#?}");
}

enum RuleFault {
    Off,
    Pattern(Value),
    NoDeadLetters,
    Closed,
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_database_are_found() {
    let pipeline = Pipeline::make("doctor-database", Via::Topic).await;
    let set = ["--config-set", "doctor-database"];
    let database = database::fresh().await;
    database.run("SELECT email_events_ensure_ahead(3)").await;

    let verdict = examine(&pipeline, &login(&database, &[]).await, &set).await;
    verdict.has("error", "database", "this login may not read which migrations have run");
    let verdict = examine(&pipeline, &login_of(&database, "LOGIN SUPERUSER").await, &set).await;
    verdict.has("warning", "database", "is a superuser");
    assert_eq!(verdict.of("error"), Vec::<&Value>::new());
    let owner = login(&database, &["ses_ledger_worker", "ses_ledger_owner"]).await;
    verdict_of_owner(&examine(&pipeline, &owner, &set).await);

    let worker = login(&database, &["ses_ledger_worker"]).await;
    database.run("DROP INDEX email_events_once").await;
    let verdict = examine(&pipeline, &worker, &set).await;
    verdict.has("error", "database", "the unique index email_events_once on email_events is missing");
    assert_eq!(verdict.code, Some(1));

    let empty = database::empty().await;
    let verdict = examine(&pipeline, &empty.url, &set).await;
    verdict.has("error", "database", "has not run");
    // A schema that has no tables.
    let verdict =
        examine(&pipeline, &worker, &["--config-set", "doctor-database", "--database-schema", "elsewhere"]).await;
    verdict.has("error", "database", "");
    let nobody = worker.replace("login_", "nobody_");
    let verdict = examine(&pipeline, &nobody, &set).await;
    verdict.has("error", "database", "the database does not let us in");
    assert!(verdict.of("ok").iter().any(|it| it["hop"] == "queue"), "the rest is looked at all the same");
}

fn verdict_of_owner(verdict: &Verdict) {
    verdict.has("warning", "database", "may drop and alter the tables");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kinds_of_the_newest_events_are_listed() {
    let pipeline = Pipeline::make("doctor-kinds-seen", Via::Topic).await;
    let database = database::fresh().await;
    database
        .run(
            "WITH log AS (INSERT INTO email_logs DEFAULT VALUES RETURNING uuid)
             INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, time_source, recipient, candidate, queue, sqs_message_id, received_at)
             SELECT ses_ledger_uuid_v7(), uuid, 'bounce', '2026-11-20 10:00:00Z', 'event', '', false, 'q', 'm', now() FROM log",
        )
        .await;
    let verdict = examine(&pipeline, &database.url, &["--config-set", "doctor-kinds-seen"]).await;
    let seen: Vec<&str> =
        verdict.of("ok").into_iter().filter(|it| it["hop"] == "events").filter_map(|it| it["what"].as_str()).collect();
    assert_eq!(seen, ["2026-11-20 10:00:00 UTC: the last bounce"]);
    verdict.has("note", "events", "none of send, reject, rendering_failure, delivery");
}

/// What may not be asked is unknown, with the right that is missing, and never all right.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_denied_is_unknown() {
    let calls = [
        ("GET /v2/email/account", "identity", "ses:GetAccount"),
        ("GET /v2/email/identities/", "identity", "ses:GetEmailIdentity"),
        ("/event-destinations", "event_destination", "ses:GetConfigurationSetEventDestinations"),
        ("Action=GetTopicAttributes", "topic", "sns:GetTopicAttributes"),
        ("Action=ListSubscriptionsByTopic", "subscription", "sns:ListSubscriptionsByTopic"),
        ("Action=GetSubscriptionAttributes", "subscription", "sns:GetSubscriptionAttributes"),
        ("TrentService.DescribeKey", "topic", "kms:DescribeKey"),
        ("TrentService.GetKeyPolicy", "queue", "kms:GetKeyPolicy"),
        ("AmazonSQS.GetQueueAttributes", "queue", "sqs:GetQueueAttributes"),
    ];
    let pipeline = Pipeline::make("doctor-denied", Via::Topic).await;
    let identity = pipeline.identity();
    let arguments = ["--config-set", "doctor-denied", "--identity", &identity];
    for (call, hop, permission) in calls {
        pipeline.deny(&[call]);
        let verdict = examine(&pipeline, worker().await, &arguments).await;
        let unknown = verdict.of("unknown").into_iter().find(|it| it["hop"] == hop);
        let unknown = unknown.unwrap_or_else(|| panic!("{call}: {:#?}", verdict.findings));
        assert_eq!(unknown["why"], format!("these credentials lack {permission}"));
        assert_eq!(verdict.of("error"), Vec::<&Value>::new(), "{call}");
        assert_eq!(verdict.code, Some(0), "{call}");
    }

    // A set that is not named may be one of those that may not be looked at.
    for (call, permission) in [
        ("Action=ListSubscriptionsByTopic", "sns:ListSubscriptionsByTopic"),
        ("/event-destinations", "ses:GetConfigurationSetEventDestinations"),
        ("/list-configuration-sets", "ses:ListConfigurationSets"),
    ] {
        pipeline.deny(&[call]);
        let verdict = examine(&pipeline, worker().await, &[]).await;
        let unknown = verdict.has("unknown", "configuration_set", "cannot look at the configuration sets");
        assert_eq!(unknown["why"], format!("these credentials lack {permission}"));
        assert_eq!(verdict.of("error"), Vec::<&Value>::new(), "{call}");
    }

    let rights = ["AmazonSQS.DeleteMessage", "AmazonSQS.ChangeMessageVisibility", "AmazonSQS.ReceiveMessage"];
    pipeline.deny(&rights);
    let verdict = examine(&pipeline, worker().await, &arguments).await;
    verdict.has("unknown", "permissions", "sqs:DeleteMessage, sqs:ChangeMessageVisibility and sqs:ReceiveMessage");
    assert_eq!(verdict.code, Some(0), "these may be somebody else's credentials");
    pipeline.deny(&rights[..1]);
    let verdict = examine(&pipeline, worker().await, &arguments).await;
    verdict.has("error", "permissions", "these credentials lack sqs:DeleteMessage");
    assert_eq!(verdict.code, Some(1), "but these are a worker's that cannot delete");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_changes_nothing() {
    let pipeline = Pipeline::make("doctor-reads", Via::Bus).await;
    ask(&pipeline, worker().await, &["--config-set", "doctor-reads", "--identity", &pipeline.identity()]).await;
    let calls = pipeline.calls();
    let reads = |call: &String| ["Get", "List", "Describe", "GET /v2/email/"].iter().any(|verb| call.contains(verb));
    let probes = ["AmazonSQS.DeleteMessage", "AmazonSQS.ChangeMessageVisibility", "AmazonSQS.ReceiveMessage"];
    let others: Vec<&String> = calls.iter().filter(|call| !reads(call) && !probes.contains(&call.as_str())).collect();
    assert!(others.is_empty() && calls.len() > 8, "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reads_well_on_a_terminal() {
    let pipeline = Pipeline::make("doctor-shown", Via::Topic).await;
    pipeline.queue_attribute("RedrivePolicy", "").await;
    pipeline.destination(true, &KINDS[1..], &pipeline.topic).await;
    let ended = ask(&pipeline, worker().await, &["--config-set", "doctor-shown"]).await;
    assert_eq!(ended.code, Some(1));
    // The commands hold ARNs and JSON, which cannot be cut.
    let is_command = |line: &&str| line.starts_with("             ") || line.starts_with("           $");
    let wide: Vec<&str> = ended.out.lines().filter(|line| !is_command(line) && line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{wide:#?}");
    assert!(ended.out.contains("\nDead-letter queue\n  ERROR    the queue has no redrive policy\n"), "{}", ended.out);
    assert!(ended.out.ends_with("\n1 error, 1 warning, 0 unknown\n"), "{}", ended.out);
}

#[tokio::test]
async fn without_a_queue_there_is_nothing_to_look_at() {
    let mut command = ses_ledger(["doctor"]);
    command.env("DATABASE_URL", "postgres://u@127.0.0.1/d");
    let ended = end_of(command).await;
    assert_eq!(ended.code, Some(64));
    assert!(ended.err.contains("QUEUE_URL (--queue-url) has to name the queue"), "{}", ended.err);
}
