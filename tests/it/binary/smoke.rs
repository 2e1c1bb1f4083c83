//! `ses-ledger smoke` with a small SES of our own, which reports what became of a mail to the embedded queue, and a real
//! worker behind that.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use serde_json::{Value, json};
use ses_ledger::local::sqs_endpoint::QueueHandle;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Ended, Running, end_of, ses_ledger};
use crate::{
    database::{self, Database},
    roles::login,
    worker::Queue,
};

/// SES, as far as sending goes.
struct FakeSes {
    url: String,
    state: Arc<Mutex<Sending>>,
    task: JoinHandle<()>,
}

struct Sending {
    queue: QueueHandle,
    /// The requests that were taken.
    taken: Vec<Value>,
    /// Kinds that are never reported.
    silent: Vec<&'static str>,
    /// Every bounce is a soft one.
    is_soft: bool,
    /// Refuses every mail, with this status, code and message.
    refusal: Option<(u16, &'static str, &'static str)>,
}

impl FakeSes {
    async fn start(queue: &Queue) -> Self {
        let state = Sending {
            queue: queue.handle.clone(),
            taken: Vec::new(),
            silent: Vec::new(),
            is_soft: false,
            refusal: None,
        };
        let state = Arc::new(Mutex::new(state));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let router = Router::new().route("/v2/email/outbound-emails", post(send)).with_state(Arc::clone(&state));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it goes on") });
        Self { url, state, task }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Sending> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recipients(&self) -> Vec<String> {
        let recipient = |mail: &Value| mail["Destination"]["ToAddresses"][0].as_str().unwrap_or_default().to_owned();
        self.state().taken.iter().map(recipient).collect()
    }
}

impl Drop for FakeSes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn send(State(state): State<Arc<Mutex<Sending>>>, body: String) -> (StatusCode, String) {
    let mail: Value = serde_json::from_str(&body).expect("the SDK writes JSON");
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((status, code, message)) = state.refusal {
        let status = StatusCode::from_u16(status).expect("it is one");
        return (status, json!({"__type": code, "message": message}).to_string());
    }
    let id = format!("0100019f30000029-dddddddd-0000-4000-8000-{:012}-000000", state.taken.len());
    for mut event in reported(&mail, &id) {
        if state.is_soft && event["eventType"] == "Bounce" {
            event["bounce"]["bounceType"] = json!("Transient");
        }
        if !state.silent.iter().any(|kind| event["eventType"] == *kind) {
            state.queue.send(&event.to_string());
        }
    }
    state.taken.push(mail);
    (StatusCode::OK, json!({"MessageId": id}).to_string())
}

/// What SES reports about a mail to its simulator: the fixtures, made to be about this mail.
fn reported(mail: &Value, id: &str) -> Vec<Value> {
    let recipient = mail["Destination"]["ToAddresses"][0].as_str().expect("it has a recipient");
    let files: &[&str] = match recipient.split('+').next().expect("it has a first part") {
        "success" => &["Send", "Delivery"],
        "bounce" => &["Send", "Bounce--permanent-general"],
        "complaint" => &["Send", "Delivery", "Complaint"],
        "ooto" => &["Send", "Delivery", "Bounce--transient-ooto"],
        "suppressionlist" => &["Send", "Bounce--permanent-suppressed"],
        other => panic!("the simulator has no mailbox {other}"),
    };
    files.iter().map(|file| about(event(file), mail, id, recipient)).collect()
}

/// The event of a kind, as SES documents it.
fn event(kind: &str) -> Value {
    let now = OffsetDateTime::now_utc().format(&Rfc3339).expect("it can be written");
    let (kind, detail) = match kind.split_once("--") {
        None if kind == "Send" => ("Send", json!({})),
        None if kind == "Delivery" => (
            "Delivery",
            json!({"timestamp": now, "smtpResponse": "250 2.6.0 Message received", "processingTimeMillis": 500}),
        ),
        None => (
            "Complaint",
            json!({"timestamp": now, "complaintFeedbackType": "abuse", "complaintSubType": null, "feedbackId": "f"}),
        ),
        Some((_, "permanent-general")) => {
            ("Bounce", json!({"timestamp": now, "bounceType": "Permanent", "bounceSubType": "General"}))
        }
        Some((_, "transient-ooto")) => {
            ("Bounce", json!({"timestamp": now, "bounceType": "Transient", "bounceSubType": "General"}))
        }
        Some(_) => ("Bounce", json!({"timestamp": now, "bounceType": "Permanent", "bounceSubType": "Suppressed"})),
    };
    json!({"eventType": kind, "mail": {"timestamp": now}, (kind.to_lowercase()): detail})
}

fn about(mut event: Value, mail: &Value, id: &str, recipient: &str) -> Value {
    let tags = mail["EmailTags"].as_array().expect("it has tags").iter();
    let tags: serde_json::Map<_, _> =
        tags.map(|tag| (tag["Name"].as_str().expect("a name").to_owned(), json!([tag["Value"]]))).collect();
    event["mail"]["messageId"] = json!(id);
    event["mail"]["destination"] = json!([recipient]);
    event["mail"]["source"] = mail["FromEmailAddress"].clone();
    event["mail"]["tags"] = Value::Object(tags);
    let one = json!([{ "emailAddress": recipient }]);
    match event["eventType"].as_str() {
        Some("Bounce") => event["bounce"]["bouncedRecipients"] = one,
        Some("Complaint") => event["complaint"]["complainedRecipients"] = one,
        Some("Delivery") => event["delivery"]["recipients"] = json!([recipient]),
        _ => {}
    }
    event
}

/// A mail whose traces nobody could see is not sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_cannot_read_events_sends_nothing() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let ses = FakeSes::start(&queue).await;
    let ended = smoke(&ses, &login(&database, &["ses_ledger_sender"]).await, &FROM).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("the login needs ses_ledger_operator"), "{}", ended.err);
    let ended = smoke(&ses, &login(&database, &["ses_ledger_operator"]).await, &FROM).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("the login needs ses_ledger_sender"), "{}", ended.err);
    assert_eq!(ses.recipients(), Vec::<String>::new());
}

/// A login that sends and reads, and does not delete.
async fn sender(database: &Database) -> String {
    login(database, &["ses_ledger_sender", "ses_ledger_operator"]).await
}

async fn smoke(ses: &FakeSes, database_url: &str, more: &[&str]) -> Ended {
    let mut command = ses_ledger(["smoke"]);
    command.env("DATABASE_URL", database_url).args(more);
    // The SDK's own variable for one service goes before the one for all.
    command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9").env("AWS_ENDPOINT_URL_SESV2", &ses.url);
    end_of(command).await
}

const FROM: [&str; 4] = ["--from", "shop@example.com", "--config-set", "main"];

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_and_is_removed_again() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let ses = FakeSes::start(&queue).await;
    let worker = Running::start(&database.url, &queue.url, &[]).await;
    let ended = smoke(&ses, &database.url, &FROM).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    for line in [
        "  success         send",
        "                  delivery",
        "  bounce          send",
        "Permanent General",
        "Transient General",
        "Suppressed",
        "complaint",
    ] {
        assert!(ended.out.contains(line), "no {line:?} in {}", ended.out);
    }
    assert!(ended.out.ends_with("It works from end to end.\n"), "{}", ended.out);
    assert!(ended.out.lines().all(|line| line.chars().count() <= 80), "{}", ended.out);
    eprintln!("{}", ended.out);
    for table in ["email_logs", "email_events", "orphaned_events"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    assert_eq!(worker.stop().await.count("stored"), 12);

    let recipients = ses.recipients();
    assert_eq!(recipients.len(), 5);
    let marks: Vec<&str> = recipients.iter().filter_map(|it| it.split(['+', '@']).nth(1)).collect();
    assert!(marks.iter().all(|mark| mark.len() == 12 && *mark == marks[0]), "{recipients:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_may_not_delete_is_told_how() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let ses = FakeSes::start(&queue).await;
    let worker = Running::start(&database.url, &queue.url, &[]).await;
    let more = [&FROM[..], &["--only", "success,bounce", "--json"]].concat();
    let ended = smoke(&ses, &sender(&database).await, &more).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert!(ended.err.contains("ses-ledger smoke --clean"), "{}", ended.err);
    let answer: Value = serde_json::from_str(&ended.out).expect("one JSON document");
    assert_eq!((&answer["complete"], &answer["removed"]), (&json!(true), &json!(false)));
    let bounce = &answer["mails"][1];
    assert_eq!(bounce["mailbox"], "bounce");
    assert_eq!(bounce["events"][1]["bounce_subtype"], "General");
    assert!(bounce["events"][1]["to_row_ms"].is_i64() && bounce["events"][1]["to_ses_ms"].is_i64(), "{bounce}");
    // The worker found the rows by the tag, and filled in the ids that SES gave.
    let linked = database.texts("SELECT aws_message_id FROM email_logs ORDER BY uuid").await;
    let told: Vec<&str> =
        answer["mails"].as_array().expect("mails").iter().filter_map(|it| it["aws_message_id"].as_str()).collect();
    assert_eq!(linked, told);
    assert_eq!(database.texts("SELECT status FROM email_logs ORDER BY uuid").await, ["delivered", "bounced"]);
    worker.stop().await;

    // Other rows are left alone.
    database.run("INSERT INTO email_logs (subject) VALUES ('mine')").await;
    let refused = smoke(&ses, &sender(&database).await, &["--clean"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("use the one that migrates"), "{}", refused.err);
    let cleaned = smoke(&ses, &database.url, &["--clean"]).await;
    assert_eq!(cleaned.out, "2 mails of earlier smoke tests are removed, with their events.\n");
    assert_eq!(database.texts("SELECT subject FROM email_logs").await, ["mine"]);
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_in_time_is_told() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let ses = FakeSes::start(&queue).await;
    ses.state().silent.push("Complaint");
    let worker = Running::start(&database.url, &queue.url, &[]).await;
    let more = [&FROM[..], &["--timeout", "3s"]].concat();
    let ended = smoke(&ses, &database.url, &more).await;
    worker.stop().await;
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    let missing: Vec<&str> = ended.out.lines().filter(|line| line.ends_with("missing")).collect();
    assert_eq!(missing, ["                  complaint missing"], "{}", ended.out);
    assert!(ended.out.contains("ses-ledger doctor --config-set main"), "{}", ended.out);
    assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 5, "what comes later finds its row");
}

/// The right rows of the wrong kind do not count.
#[tokio::test(flavor = "multi_thread")]
async fn a_bounce_of_another_type_is_no_bounce() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let ses = FakeSes::start(&queue).await;
    ses.state().is_soft = true;
    let worker = Running::start(&database.url, &queue.url, &[]).await;
    let more = [&FROM[..], &["--only", "bounce,ooto", "--timeout", "2s", "--json"]].concat();
    let ended = smoke(&ses, &database.url, &more).await;
    worker.stop().await;
    assert_eq!(ended.code, Some(1));
    let answer: Value = serde_json::from_str(&ended.out).expect("one JSON document");
    assert_eq!(answer["mails"][0]["missing"], json!(["bounce"]));
    assert_eq!(answer["mails"][1]["missing"], json!([]), "an out-of-office answer is one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_mail_is_told_with_what_to_do() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let ses = FakeSes::start(&queue).await;
    let unverified = "Email address is not verified. The following identities failed the check in region EU-WEST-1: shop@example.com";
    for (refusal, advice) in [
        ((400, "MessageRejected", unverified), "verify example.com"),
        (
            (403, "AccessDeniedException", "not authorized to perform ses:SendEmail"),
            "these credentials lack ses:SendEmail",
        ),
        ((400, "SendingPausedException", "paused"), "sending is switched off"),
        ((404, "NotFoundException", "Configuration set <main> does not exist."), "aws sesv2 list-configuration-sets"),
        ((400, "AccountSuspendedException", "suspended"), "sending is switched off"),
    ] {
        ses.state().refusal = Some(refusal);
        let ended = smoke(&ses, &database.url, &FROM).await;
        assert_eq!(ended.code, Some(1), "{}", ended.err);
        let said = ended.err.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(refusal.1) && said.contains(advice), "no {advice:?} in {}", ended.err);
        assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 0, "no row of a mail that was never sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_simulator_can_be_written_to() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let ses = FakeSes::start(&queue).await;
    for other in [
        &["--only", "ada@example.net"][..],
        &["--only", "success,ada@example.net"],
        &["--only", "success+x@example.net"],
        &["ada@example.net"],
        &["--to", "ada@example.net"],
        &["--recipient", "ada@example.net"],
    ] {
        let ended = smoke(&ses, &database.url, &[&FROM[..], other].concat()).await;
        assert_eq!(ended.code, Some(64), "{other:?}");
    }
    assert_eq!(ses.recipients(), Vec::<String>::new());
    let more = [&FROM[..], &["--timeout", "0s"]].concat();
    let ended = smoke(&ses, &database.url, &more).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("Nothing came within 0 ms: does a worker run?"), "{}", ended.out);
    let (recipients, mails) = (ses.recipients(), ses.state().taken.clone());
    assert_eq!(recipients.len(), 5);
    assert!(recipients.iter().all(|it| it.ends_with("@simulator.amazonses.com")), "{recipients:?}");
    for mail in mails {
        let all = mail["Destination"].as_object().expect("it has some").values();
        assert_eq!(all.filter_map(Value::as_array).map(Vec::len).sum::<usize>(), 1, "{mail}");
    }
    // No text of ours could be taken for a recipient either.
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/commands/smoke.rs");
    let source = fs::read_to_string(source).expect("it is there");
    assert_eq!(source.matches("@simulator.amazonses.com").count(), 1);
}

#[tokio::test]
async fn a_sender_has_to_be_named() {
    let mut command = ses_ledger(["smoke"]);
    command.env("DATABASE_URL", "postgres://u@127.0.0.1/d");
    assert_eq!(end_of(command).await.code, Some(64));
    let mut command = ses_ledger(["smoke", "--from", "example.com"]);
    command.env("DATABASE_URL", "postgres://u@127.0.0.1/d");
    let ended = end_of(command).await;
    assert_eq!(ended.code, Some(64));
    assert!(ended.err.contains("--from has to be an address"), "{}", ended.err);
}
