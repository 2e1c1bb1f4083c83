//! Is it keeping up? The answer of the real binary about real workers and queues.

use serde_json::Value;
use ses_ledger::local::sqs_endpoint::{Action, Fault, SqsError};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

use super::{Ended, PATIENCE, Running, end_of, ses_ledger, until};
use crate::{
    database::{self, Database},
    roles::login,
    worker::Queue,
};

const ARN: &str = "arn:aws:sqs:us-east-1:000000000000:ses-events";

/// Asks about a database and perhaps a queue.
async fn ask(database_url: &str, queue_url: Option<&str>, flags: &[&str]) -> Ended {
    let mut asking = ses_ledger(["status"].iter().chain(flags).copied());
    asking.env("DATABASE_URL", database_url);
    asking.envs(queue_url.map(|url| ("QUEUE_URL", url)));
    end_of(asking).await
}

/// The same as JSON, and the exit code.
async fn answer(database_url: &str, queue_url: Option<&str>) -> (Value, Option<i32>) {
    let Ended { code, out, err } = ask(database_url, queue_url, &["--json"]).await;
    (serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}")), code)
}

fn reasons(answer: &Value) -> Vec<&str> {
    let reasons = answer["needs_somebody"].as_array().expect("a list");
    reasons.iter().map(|reason| reason.as_str().expect("a text")).collect()
}

/// Events of mails whose log rows are there, all of this moment.
async fn send(database: &Database, queue: &Queue, mails: usize) {
    for n in 0..mails {
        let id = format!("mail-{n}");
        database.log(&id).await;
        let now = OffsetDateTime::now_utc().format(&Rfc3339).expect("it can be written");
        let mail = format!(r#""mail":{{"timestamp":"{now}","messageId":"{id}","destination":["ana@example.net"]}}"#);
        queue.handle.send(&format!(r#"{{"eventType":"Send","send":{{}},{mail}}}"#));
        queue.handle.send(&format!(
            r#"{{"eventType":"Delivery","delivery":{{"timestamp":"{now}","recipients":["ana@example.net"]}},{mail}}}"#
        ));
    }
}

/// Waits for a heartbeat that tells of so many messages.
async fn told(database: &Database, messages: i64) {
    let sum = "SELECT coalesce(sum(stored), 0)::bigint FROM ses_ledger_workers";
    until("the heartbeat tells of all messages", async || database.number(sum).await == messages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_keeps_up_is_told_with_its_numbers() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let running = Running::start(&database.url, &queue.url, &["--retention-payload=90d"]).await;
    send(&database, &queue, 30).await;
    queue.drained().await;
    told(&database, 60).await;

    // A login that only reads is enough.
    let operator = login(&database, &["ses_ledger_operator"]).await;
    let (status, code) = answer(&operator, Some(&queue.url)).await;
    assert_eq!((code, reasons(&status)), (Some(0), vec![]), "{status}");
    let i = &status["identities"];
    assert_eq!(
        (&i["received"], &i["stored"], &i["in_hand"], &i["messages_drift"]),
        (&60.into(), &60.into(), &0.into(), &0.into())
    );
    assert_eq!((&i["decoded"], &i["inserted"], &i["events_drift"]), (&60.into(), &60.into(), &0.into()));

    let queues = status["queues"].as_array().expect("a list");
    assert_eq!((queues.len(), &queues[0]["name"]), (1, &ARN.into()));
    assert_eq!(
        (&queues[0]["visible"], &queues[0]["in_flight"], &queues[0]["drain_seconds"]),
        (&0.into(), &0.into(), &0.0.into())
    );
    let age = queues[0]["oldest_age_seconds"].as_f64().unwrap_or_else(|| panic!("{status}"));
    assert!((0.0..60.0).contains(&age), "{age}");
    assert_eq!(queues[0]["dead_letters"]["unknown"], "the queue has no dead-letter queue");

    let worker = &status["workers"][0];
    assert_eq!((&worker["alive"], &worker["version"]), (&true.into(), &env!("CARGO_PKG_VERSION").into()));
    assert_eq!((&worker["queues"][0], &worker["retention_payload_seconds"]), (&ARN.into(), &7_776_000.into()));

    let last = |kind: &str| {
        let all = status["last_events"].as_array().expect("a list");
        let last = all.iter().find(|last| last["event_type"] == kind).unwrap_or_else(|| panic!("no {kind}: {status}"));
        last["stored_at"].is_string() && last["occurred_at"].is_string()
    };
    let kinds = [
        "send",
        "delivery",
        "bounce",
        "complaint",
        "reject",
        "open",
        "click",
        "rendering_failure",
        "delivery_delay",
        "subscription",
    ];
    assert_eq!(kinds.map(last), kinds.map(|kind| ["send", "delivery"].contains(&kind)));

    let minutes: i64 = database.number("SELECT sum(inserted)::bigint FROM ses_ledger_minutes").await;
    let lags: i64 = database.number("SELECT sum(lag)::bigint FROM ses_ledger_minutes, unnest(lags) AS lag").await;
    assert_eq!((minutes, lags), (60, 60));
    let billed = queue.endpoint.calls(Action::DeleteMessageBatch).requests as i64;
    assert_eq!(database.number("SELECT sum(delete_requests)::bigint FROM ses_ledger_minutes").await, billed);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_shows_fits_80_columns() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let running = Running::start(&database.url, &queue.url, &[]).await;
    send(&database, &queue, 3).await;
    queue.handle.send("poison");
    queue.drained().await;
    told(&database, 6).await;
    let Ended { code, out, err } = ask(&database.url, Some(&queue.url), &[]).await;
    assert_eq!((code, err.as_str()), (Some(1), ""), "a body is in quarantine");
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
    let words = out.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "ses-events backlog 0 waiting, 0 in flight, 0 delayed oldest",
        "messages holds: 7 received = 6 stored + 0 ignored + 1 rejected + 0 released + 0 in hand",
        "events holds: 6 decoded = 6 inserted + 0 duplicate + 0 orphaned + 0 quarantined",
        "subscription never since 20",
        "waiting 0 orphans; 1 body in quarantine, 1 of them not tried again",
        "payloads off - - -",
        "quarantine off - - -",
        "This needs somebody: - 1 body in quarantine that nobody has tried again: ses-ledger quarantine list",
    ] {
        assert!(words.contains(part), "{part:?} is not in:\n{out}");
    }
    assert!(!out.contains('\x1b'), "no colour where there is no terminal");
    let without = ask(&database.url, None, &[]).await;
    assert!(without.out.contains("QUEUE_URL (--queue-url) is not set, so no queue is asked"), "{}", without.out);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stopped_and_one_that_was_killed_are_told_apart() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let alive = "SELECT count(*) FROM ses_ledger_workers";
    let killed = Running::start(&database.url, &queue.url, &["--hostname=killed"]).await;
    until("the first has beaten", async || database.number(alive).await == 1).await;
    killed.kill().await;
    let stopped = Running::start(&database.url, &queue.url, &["--hostname=stopped"]).await;
    stopped.stop().await;
    queue.handle.send("{}");

    let (status, code) = answer(&database.url, Some(&queue.url)).await;
    let is_alive = |status: &Value, name: &str| {
        let workers = status["workers"].as_array().expect("a list").clone();
        workers.into_iter().find(|worker| worker["name"] == name).unwrap_or_else(|| panic!("{name}: {status}"))
    };
    assert_eq!(is_alive(&status, "killed")["alive"], true, "it was seen a moment ago");
    assert_eq!((&is_alive(&status, "stopped")["alive"], code), (&false.into(), Some(0)));
    assert!(is_alive(&status, "stopped")["stopped_at"].is_string());

    database
        .run("UPDATE ses_ledger_workers SET seen_at = now() - interval '31 seconds' WHERE stopped_at IS NULL")
        .await;
    let (status, code) = answer(&database.url, Some(&queue.url)).await;
    assert_eq!((&is_alive(&status, "killed")["alive"], code), (&false.into(), Some(1)));
    assert_eq!(reasons(&status), ["no worker is alive, and 1 message waits: ses-ledger run"]);
    let shown = ask(&database.url, Some(&queue.url), &[]).await.out;
    assert!(shown.contains("\n  gone without a word: killed 3"), "{shown}");
    assert!(shown.contains("\n  stopped: stopped "), "{shown}");
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("time to drain unknown: nothing was taken out in the last minute"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_drift_and_missing_months_need_somebody() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:ses-dead","maxReceiveCount":"5"}"#;
    queue.endpoint.create_queue("ses-dead", &[]).expect("the name is good");
    let url = queue.endpoint.create_queue("guarded", &[("RedrivePolicy", policy)]).expect("the name is good");
    queue.endpoint.queue("ses-dead").expect("it was just made").send("{}");
    let running = Running::start(&database.url, &url, &[]).await;
    until("it has beaten", async || database.number("SELECT count(*) FROM ses_ledger_workers").await == 1).await;
    running.stop().await;

    let (status, code) = answer(&database.url, Some(&url)).await;
    assert_eq!((code, &status["queues"][0]["dead_letters"]), (Some(1), &1.into()));
    assert_eq!(reasons(&status), ["1 dead letter in ses-dead: ses-ledger dlq peek"]);

    database.run("UPDATE ses_ledger_workers SET events_drift = 3, inserted = inserted - 3").await;
    database.run("DROP INDEX quarantined_messages_body").await;
    let next = "SELECT format('DROP TABLE %I', 'email_events_' || to_char((now() + make_interval(months => n)) AT TIME ZONE 'UTC', '\"y\"YYYY\"m\"MM'))
                FROM generate_series(1, 4) AS n";
    for drop in database.texts(next).await {
        database.run(&drop.replace("TABLE", "TABLE IF EXISTS")).await;
    }
    let (status, code) = answer(&database.url, None).await;
    assert_eq!((code, status["queues"].as_array().map(Vec::len)), (Some(1), Some(0)));
    let reasons = reasons(&status).join("\n");
    for (reason, command) in [
        ("by 0 messages and 3 events", "please report this as a fault"),
        ("the schema is not what this binary needs", "ses-ledger migrate verify"),
        ("partitions are ready for 0 months only", "ses-ledger partitions ensure"),
    ] {
        assert!(reasons.lines().any(|line| line.contains(reason) && line.contains(command)), "{reason}:\n{reasons}");
    }
    let shown = ask(&database.url, None, &[]).await.out;
    assert!(shown.contains("DOES NOT HOLD, by 3: "), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_queue_does_not_tell_is_unknown_and_never_zero() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    queue.handle.send("{}");
    let denied = Fault::Reject(SqsError::access_denied());
    queue.endpoint.faults(|faults| _ = faults.always(Action::GetQueueAttributes, denied));
    let (status, code) = answer(&database.url, Some(&queue.url)).await;
    let why = status["queues"][0]["visible"]["unknown"].as_str().unwrap_or_else(|| panic!("{status}"));
    assert!(why.contains("sqs:GetQueueAttributes"), "{why}");
    assert_eq!((code, &status["queues"][0]["drain_seconds"]["unknown"]), (Some(1), &why.into()));

    queue.endpoint.faults(|faults| _ = faults.clear());
    let missing = queue.url.replace("ses-events", "sea-events");
    let (status, code) = answer(&database.url, Some(&missing)).await;
    assert_eq!((code, reasons(&status).len()), (Some(1), 1));
    assert!(reasons(&status)[0].contains("sea-events does not exist"), "{status}");
    assert_eq!(status["cost"]["dollars_per_million_events"]["unknown"].as_str().map(str::is_empty), Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_looks_again_until_it_is_interrupted() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    queue.handle.send("{}");
    let mut asking = ses_ledger(["status", "--json", "--watch", "500ms"]);
    asking.env("DATABASE_URL", &database.url).env("QUEUE_URL", &queue.url);
    let mut running = Running::watch(asking);
    let mut lines = BufReader::new(running.child.stdout.take().expect("it is piped")).lines();
    let mut next = async || {
        let line = timeout(PATIENCE, lines.next_line()).await.expect("it goes on").expect("it writes text");
        serde_json::from_str::<Value>(&line.expect("it does not end")).expect("one object per line")
    };
    let first = next().await;
    assert_eq!((&first["queues"][0]["visible"], &first["queues"][0]["sent_per_second"]), (&1.into(), &Value::Null));
    (0..50).for_each(|_| _ = queue.handle.send("{}"));
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(visible, rate)| *visible != 51 || *rate <= 0.0) {
        let queue = &next().await["queues"][0];
        seen.push((
            queue["visible"].as_u64().unwrap_or_default(),
            queue["sent_per_second"].as_f64().unwrap_or_default(),
        ));
        assert!(seen.len() < 100, "{seen:?}");
    }
    running.signal("INT").await;
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn a_database_that_is_away_or_not_migrated_is_unavailable() {
    let away = ask("postgres://nobody@127.0.0.1:1/nothing", None, &[]).await;
    assert_eq!((away.code, away.out.as_str()), (Some(69), ""), "{}", away.err);
    let empty = database::empty().await;
    let ended = ask(&empty.url, None, &[]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(69), ""), "{}", ended.err);
    assert!(ended.err.contains("ses-ledger migrate"), "{}", ended.err);
    let usage = ask(&empty.url, None, &["--watch=soon"]).await;
    assert_eq!(usage.code, Some(64), "{}", usage.err);
}
