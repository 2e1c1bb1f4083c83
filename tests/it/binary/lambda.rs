//! The real binary as a Lambda function: a runtime API of four routes invokes it, as AWS would.

use std::{collections::VecDeque, time::Duration};

use serde_json::{Value, json};
use ses_ledger::local::{
    lambda_api::{Answer, LambdaApi, Record, scheduled_event, sqs_event},
    story::{Step, Story, StorySettings},
};
use time::macros::datetime;
use tokio::time::timeout;

use super::{PATIENCE, Running, play, ses_ledger, swept};
use crate::{
    database::{self, Database},
    truth::assert_exact,
    worker::Queue,
};

const QUEUE_ARN: &str = "arn:aws:sqs:us-east-1:000000000000:ses-events";

/// A function under test, and the API that invokes it.
struct Function {
    running: Running,
    api: LambdaApi,
}

impl Function {
    async fn start(database: &Database, settings: &[(&str, &str)]) -> Self {
        let api = LambdaApi::start().await.expect("a port is free");
        let mut command = ses_ledger(["run"]);
        command.envs(api.environment()).env("LOG_FORMAT", "json").env("DATABASE_URL", &database.url);
        // As in the template: a function has one connection.
        command.env("DATABASE_CONNECTIONS", "1").envs(settings.iter().copied());
        Self { running: Running::watch(command), api }
    }

    /// Invokes it, and waits for what it says.
    async fn says_to(&self, event: Value, time: Duration) -> Answer {
        let said = timeout(PATIENCE, self.api.invoke(event, time)).await;
        said.unwrap_or_else(|_| panic!("no answer:\n{}", self.running.log())).expect("the API is served")
    }

    /// The numbers of the messages that are to come again.
    async fn failed(&self, event: Value, time: Duration) -> Vec<usize> {
        let answer = match self.says_to(event, time).await {
            Answer::Response(answer) => answer,
            Answer::Error(e) => panic!("the whole invocation failed: {e}"),
        };
        let failed = answer["batchItemFailures"].as_array().unwrap_or_else(|| panic!("no such answer: {answer}"));
        let number = |item: &Value| item["itemIdentifier"].as_str()?.strip_prefix("message-")?.parse().ok();
        let mut failed: Vec<usize> = failed.iter().map(|item| number(item).expect("an id of ours")).collect();
        failed.sort_unstable();
        failed
    }
}

/// The messages as an event source mapping brings them.
fn event<'a>(bodies: impl IntoIterator<Item = &'a str>) -> Value {
    let bodies: Vec<(String, &str)> =
        bodies.into_iter().enumerate().map(|(n, body)| (format!("message-{n}"), body)).collect();
    sqs_event(bodies.iter().map(|(message_id, body)| Record { message_id, body, queue_arn: QUEUE_ARN }))
}

fn story(seed: u64, mails: usize) -> Story {
    Story::tell(&StorySettings::new(seed, mails, datetime!(2026-10-05 08:00 UTC)))
}

fn send_event(message_id: &str) -> String {
    json!({ "eventType": "Send", "send": {}, "mail": {
        "timestamp": "2026-10-05T08:00:00.000Z", "messageId": message_id, "destination": ["ana@example.net"],
    }})
    .to_string()
}

const MINUTE: Duration = Duration::from_secs(60);

/// Plays a story through invocations of so many messages, with a reminder at the end.
async fn play_by_invocations(function: &Function, database: &Database, story: &Story, batch: usize) {
    let mut waiting: VecDeque<String> = VecDeque::new();
    for step in story.steps() {
        match step {
            Step::WriteLog(row) => database.write_log(&row).await,
            Step::Publish(body) => waiting.push_back(body),
        }
        if waiting.len() == batch {
            invoke_with(function, &mut waiting).await;
        }
    }
    invoke_with(function, &mut waiting).await;
    match function.says_to(scheduled_event(), MINUTE).await {
        Answer::Response(done) => assert_eq!(done["complete"], true, "{done}"),
        Answer::Error(e) => panic!("{e}"),
    }
}

async fn invoke_with(function: &Function, waiting: &mut VecDeque<String>) {
    let failed = function.failed(event(waiting.iter().map(String::as_str)), MINUTE).await;
    assert_eq!(failed, [0; 0], "{}", function.running.log());
    waiting.clear();
}

/// The rows by their keys, and the facts of their mails. Of two delays of one recipient one is the row, whichever came
/// first; what they say together is in the facts.
const HISTORY: &str = "
    SELECT concat_ws('|', l.aws_message_id, l.status, l.sent_at, l.delivered_at, l.delayed_at, l.bounced_at,
                     l.complained_at, l.rejected_at, l.failed_at, l.opened_at, l.clicked_at, l.open_count, l.click_count,
                     l.bounce_class, e.event_type, e.recipient, e.candidate,
                     CASE WHEN e.event_type IN ('open', 'click') THEN e.occurred_at END, e.link_digest, e.queue)
    FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid ORDER BY 1";
const REJECTS: &str =
    "SELECT concat_ws('|', reason, failed_at, encode(body_digest, 'hex'), queue) FROM quarantined_messages ORDER BY 1";
const ORPHANS: &str =
    "SELECT concat_ws('|', aws_message_id, event_type, occurred_at, recipient, queue) FROM orphaned_events ORDER BY 1";

#[tokio::test(flavor = "multi_thread")]
async fn the_same_stream_through_both_runtimes_ends_in_the_same_rows() {
    let story = story(31, 150);
    let (on_ecs, queue) = (database::fresh().await, Queue::start().await);
    let worker = Running::start(&on_ecs.url, &queue.url, &[]).await;
    play(&on_ecs, &queue.handle, &story).await;
    queue.drained().await;
    swept(&on_ecs, &story).await;
    worker.stop().await;

    let on_lambda = database::fresh().await;
    let function = Function::start(&on_lambda, &[]).await;
    play_by_invocations(&function, &on_lambda, &story, 100).await;

    assert_exact(&on_ecs, &story.truth).await;
    assert_exact(&on_lambda, &story.truth).await;
    for rows in [HISTORY, REJECTS, ORPHANS] {
        let (left, right) = (on_ecs.texts(rows).await, on_lambda.texts(rows).await);
        assert!(!left.is_empty() && left.iter().all(|row| row.ends_with(QUEUE_ARN)), "{left:?}");
        assert_eq!(left, right);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_size_of_batch_gives_the_exact_history() {
    for (seed, batch) in [(32, 10), (33, 333), (34, 1_000)] {
        let (database, story) = (database::fresh().await, story(seed, 300));
        let function = Function::start(&database, &[]).await;
        play_by_invocations(&function, &database, &story, batch).await;
        assert_exact(&database, &story.truth).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisonous_message_fails_nobody() {
    let database = database::fresh().await;
    let function = Function::start(&database, &[]).await;
    let good = send_event("0100019f30000001-good");
    let failed = function.failed(event([r#"{"eventType": "Bounce", "mail": {"#, &good, "", &good]), MINUTE).await;
    assert_eq!(failed, [0; 0]);
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM quarantined_messages").await, 2);
}

/// The database takes the first batch and not the second: exactly the second comes again, before the time is up.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_stored_in_time_is_given_back_and_nothing_else() {
    let database = database::fresh().await;
    database.run("INSERT INTO email_logs (aws_message_id) SELECT 'mail-' || n FROM generate_series(0, 29) AS n").await;
    let function = Function::start(&database, &[("BATCH_SIZE", "10"), ("IN_FLIGHT", "10")]).await;
    let mut lock = database.pool.begin().await.expect("a connection is free");
    let hold = sqlx::query("SELECT FROM email_logs WHERE aws_message_id = 'mail-15' FOR UPDATE");
    hold.execute(&mut *lock).await.expect("nobody else wants it");

    let bodies: Vec<String> = (0..30).map(|n| send_event(&format!("mail-{n}"))).collect();
    let event = event(bodies.iter().map(String::as_str));
    let failed = function.failed(event.clone(), Duration::from_secs(5)).await;
    assert_eq!(failed, Vec::from_iter(10..30));
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 10);

    lock.rollback().await.expect("the database is there");
    assert_eq!(function.failed(event, MINUTE).await, [0; 0], "all of them again");
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_not_ours_takes_nothing_until_somebody_mends_it() {
    let database = database::empty().await;
    let function = Function::start(&database, &[]).await;
    let good = send_event("0100019f30000002-good");
    assert_eq!(function.failed(event([good.as_str(), &good]), MINUTE).await, [0, 1]);
    database::migrate(&database.url).await;
    assert_eq!(function.failed(event([good.as_str()]), MINUTE).await, [0; 0], "without being started anew");
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reminder_attaches_orphans_and_what_it_does_not_know_fails_alone() {
    let database = database::fresh().await;
    let function = Function::start(&database, &[("METRICS", "emf")]).await;
    assert_eq!(function.failed(event([send_event("mail-1").as_str()]), MINUTE).await, [0; 0]);
    database.run("INSERT INTO email_logs (aws_message_id) VALUES ('mail-1')").await;
    let Answer::Error(complaint) = function.says_to(json!({ "hello": "world" }), MINUTE).await else {
        panic!("it took something that is neither")
    };
    assert!(complaint["errorMessage"].as_str().is_some_and(|e| e.contains("neither from an SQS")), "{complaint}");
    for input in [scheduled_event(), json!({ "ses_ledger": "maintain" })] {
        match function.says_to(input, MINUTE).await {
            Answer::Response(done) => assert_eq!(done["complete"], true, "{done}"),
            Answer::Error(e) => panic!("{e}"),
        }
    }
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 0);
    assert_eq!(database.text("SELECT status FROM email_logs").await, "sent");
}

/// It is started all the same, and says what it could not do in time.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_database_everything_is_given_back() {
    let mut nowhere = database::fresh().await;
    nowhere.url = "postgres://nobody:secret@127.0.0.1:1/none".to_owned();
    let function = Function::start(&nowhere, &[]).await;
    let good = send_event("0100019f30000003-good");
    for _ in 0..2 {
        assert_eq!(function.failed(event([good.as_str(), &good]), Duration::from_secs(5)).await, [0, 1]);
    }
    assert!(!function.running.log().contains("secret"), "{}", function.running.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_takes_nothing_from_the_queue_of_the_pipeline_that_is_there() {
    let database = database::fresh().await;
    let function = Function::start(&database, &[("SHADOW", "true"), ("DATABASE_SCHEMA", "public")]).await;
    let good = send_event("0100019f30000004-good");
    assert_eq!(function.failed(event([good.as_str(), &good]), MINUTE).await, [0, 1]);
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 0);
    let copies = format!("{QUEUE_ARN}-shadow");
    let copy = sqs_event([Record { message_id: "message-0", body: &good, queue_arn: &copies }]);
    assert_eq!(function.failed(copy, MINUTE).await, [0; 0]);
    assert_eq!(database.text("SELECT queue FROM orphaned_events").await, copies);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invocation_beats_at_most_every_ten_seconds_and_never_fails_for_it() {
    let database = database::fresh().await;
    let name = [("AWS_LAMBDA_FUNCTION_NAME", "ledger-function")];
    let function = Function::start(&database, &name).await;
    for n in 0..3 {
        assert_eq!(function.failed(event([send_event(&format!("mail-{n}")).as_str()]), MINUTE).await, [0; 0]);
    }
    let told = "SELECT concat_ws(' ', name, runtime, orphaned, queues) FROM ses_ledger_workers";
    assert_eq!(database.texts(told).await, [format!("ledger-function lambda 1 {{{QUEUE_ARN}}}")], "the first one beat");
    let requests = "SELECT concat_ws(' ', received, receives_with_messages, delete_requests) FROM ses_ledger_minutes";
    assert_eq!(database.texts(requests).await, ["1 0 0"], "Lambda itself receives and deletes");
    let age = "SELECT (queues #>> '{arn:aws:sqs:us-east-1:000000000000:ses-events,oldest_age_ms}')::bigint FROM ses_ledger_minutes";
    assert!(database.number(age).await > 1_000, "the records say when their messages were sent");

    let broken = database::fresh().await;
    let function = Function::start(&broken, &name).await;
    broken.run("ALTER TABLE ses_ledger_minutes ADD CHECK (received < 0)").await;
    assert_eq!(function.failed(event([send_event("mail-1").as_str()]), MINUTE).await, [0; 0]);
    assert_eq!(broken.number("SELECT count(*) FROM orphaned_events").await, 1);
    assert_eq!(broken.number("SELECT count(*) FROM ses_ledger_workers").await, 0, "one statement");
    assert!(function.running.log().contains("cannot write the heartbeat"), "{}", function.running.log());
}

/// Behind RDS Proxy, as far as one connection and its rules go: tests/it/binary/pooled.rs has a real pooler.
#[tokio::test(flavor = "multi_thread")]
async fn one_connection_by_the_rules_of_a_pooler_is_enough() {
    let (database, story) = (database::fresh().await, story(35, 100));
    let function = Function::start(&database, &[("DATABASE_POOLER", "transaction")]).await;
    play_by_invocations(&function, &database, &story, 100).await;
    assert_exact(&database, &story.truth).await;
}
