//! "What is in the dead-letter queue?" Looked at, moved back, exported: with the embedded queue, and with LocalStack.

use std::{path::Path, process::Stdio, time::Duration};

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};
use ses_ledger::local::sqs_endpoint::{Action, Fault, QueueHandle, SqsEndpoint, SqsEndpointSettings, SqsError};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};
use uuid::Uuid;

use super::{Ended, Running, end_of, ses_ledger, stuck::new_file, until};
use crate::{database, emulator, localstack, worker::eventually};

fn delivery(id: &str) -> String {
    json!({
        "eventType": "Delivery",
        "mail": {"timestamp": "2026-10-05T08:00:00.000Z", "messageId": id, "destination": ["bob@example.com"]},
        "delivery": {"timestamp": "2026-10-05T08:00:01.000Z", "recipients": ["bob@example.com"]},
    })
    .to_string()
}

/// An endpoint with a queue and its dead-letter queue.
struct Queues {
    endpoint: SqsEndpoint,
    url: String,
    source: QueueHandle,
    dead: QueueHandle,
}

impl Queues {
    async fn start() -> Self {
        let endpoint = SqsEndpoint::start(SqsEndpointSettings::default()).await.expect("a port is free");
        endpoint.create_queue("events-dead", &[]).expect("the name is good");
        let policy =
            json!({"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:events-dead", "maxReceiveCount": 2});
        let url = endpoint.create_queue("events", &[("RedrivePolicy", &policy.to_string())]).expect("the name is good");
        let [source, dead] = ["events", "events-dead"].map(|name| endpoint.queue(name).expect("it was just made"));
        Self { endpoint, url, source, dead }
    }

    /// Messages become dead letters as they do: by being received too often.
    async fn with_letters(bodies: &[&str]) -> Self {
        let queues = Self::start().await;
        bury(queues.endpoint.url(), &queues.url, bodies).await;
        assert_eq!(queues.dead.counts().visible, bodies.len());
        queues
    }

    async fn dlq(&self, arguments: &[&str]) -> Ended {
        dlq(&self.url, arguments).await
    }

    fn all_visible(&self, letters: usize) {
        let counts = self.dead.counts();
        assert_eq!((counts.visible, counts.in_flight), (letters, 0), "others can have them at once");
    }
}

async fn dlq(queue_url: &str, arguments: &[&str]) -> Ended {
    let mut command = ses_ledger(["dlq"].iter().chain(arguments).copied());
    command.env("QUEUE_URL", queue_url);
    end_of(command).await
}

/// Sends messages and receives them until the queue gives them up.
async fn bury(endpoint: &str, queue_url: &str, bodies: &[&str]) {
    let client = emulator::client(endpoint);
    for body in bodies {
        client.send_message().queue_url(queue_url).message_body(*body).send().await.expect("it takes text");
    }
    let mut received = 0;
    // Twice each, and once more to find that it was twice.
    while received < bodies.len() * 2 {
        let receive = client.receive_message().queue_url(queue_url).max_number_of_messages(10).visibility_timeout(0);
        received += receive.send().await.expect("it hands them out").messages().len();
    }
    let receive = client.receive_message().queue_url(queue_url).max_number_of_messages(10);
    assert_eq!(receive.send().await.expect("it answers").messages().len(), 0);
}

#[tokio::test]
async fn peek_tells_what_the_letters_are_and_gives_them_all_back() {
    let hostile = "{\"eventType\":\"Send\",\"x\":\"\u{202e}\"}";
    let queues = Queues::with_letters(&[&delivery("mail-1"), hostile, "\"text\""]).await;
    let ended = queues.dlq(&["peek"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    queues.all_visible(3);
    for words in [
        "About 3 letters are in events-dead",
        "1 delivery event",
        "mail mail-1",
        "Understood: it would be stored",
        "not understood: no_mail at $.mail",
        "into quarantine",
        "after 2 receives",
    ] {
        assert!(ended.out.contains(words), "{words:?} is missing:\n{}", ended.out);
    }
    assert!(ended.out.lines().all(|line| line.chars().count() <= 80), "{}", ended.out);
    assert!(!ended.out.contains("bob@"), "nobody asked for addresses:\n{}", ended.out);

    let bodies = queues.dlq(&["peek", "--bodies", "--limit", "2"]).await;
    assert!(bodies.out.contains("bob@example.com") && bodies.out.contains(r"\u{202e}"), "{}", bodies.out);
    assert!(!bodies.out.contains('\u{202e}'));
    let machine = queues.dlq(&["peek", "--json"]).await;
    let machine: Value = serde_json::from_str(&machine.out).expect("one document");
    assert_eq!((&machine["letters_in_all"], machine["letters"].as_array().map(Vec::len)), (&3.into(), Some(3)));
    assert!(!machine.to_string().contains("bob@") && machine["letters"][0]["sent_at"].is_string(), "{machine}");
    assert!(machine.to_string().contains(r#""events":{"delivery":1}"#), "{machine}");
    queues.all_visible(3);
}

#[tokio::test]
async fn peek_gives_back_also_what_it_has_when_something_fails() {
    let bodies: Vec<String> = (0..15).map(|n| delivery(&format!("m{n}"))).collect();
    let queues = Queues::with_letters(&bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    queues.endpoint.faults(|faults| {
        faults.script(Action::ReceiveMessage, [Fault::None, Fault::Reject(SqsError::access_denied())]);
    });
    let ended = queues.dlq(&["peek", "--limit", "15"]).await;
    assert_eq!(ended.code, Some(69), "{}", ended.out);
    assert!(ended.err.contains("need sqs:ReceiveMessage on it") && ended.err.contains("events-dead"), "{}", ended.err);
    queues.all_visible(15);
}

#[tokio::test]
async fn peek_gives_back_what_it_has_when_it_is_interrupted() {
    check_interrupted("INT").await;
}

#[tokio::test]
async fn peek_gives_back_what_it_has_when_it_is_told_to_end() {
    check_interrupted("TERM").await;
}

async fn check_interrupted(name: &str) {
    let queues = Queues::with_letters(&[&delivery("m")]).await;
    let mut command = ses_ledger(["dlq", "peek"]);
    // The second receive waits: there is no second letter.
    let child = command.env("QUEUE_URL", &queues.url).spawn().expect("it was built");
    let receives = || queues.endpoint.calls(Action::ReceiveMessage).entries;
    let before = receives();
    eventually("it has the letter", || queues.dead.counts().in_flight == 1 || receives() > before).await;
    signal(child.id(), name).await;
    let output = child.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    queues.all_visible(1);
}

async fn signal(process: Option<u32>, name: &str) {
    let process = process.expect("it runs").to_string();
    let kill = Command::new("sh").args(["-c", r#"kill -s "$0" "$1""#, name, &process]).status().await;
    assert!(kill.expect("there is a shell").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn redrive_moves_letters_back_and_a_worker_stores_them() {
    let queues = Queues::with_letters(&[&delivery("m1"), &delivery("m2"), &delivery("m3")]).await;
    let dry = queues.dlq(&["redrive", "--dry-run"]).await;
    assert_eq!(dry.code, Some(0), "{}", dry.err);
    assert!(dry.out.contains("About 3 letters of events-dead would be moved back"), "{}", dry.out);
    queues.all_visible(3);

    let ended = queues.dlq(&["redrive"]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert!(ended.out.contains("completed: moved 3 of about 3 letters"), "{}", ended.out);
    assert_eq!((queues.source.counts().visible, queues.dead.counts().visible), (3, 0));
    let empty = queues.dlq(&["redrive"]).await;
    assert_eq!((empty.code, empty.out.as_str()), (Some(0), "No letter is in events-dead.\n"), "{}", empty.err);

    let database = database::fresh().await;
    let running = Running::start(&database.url, &queues.url, &[]).await;
    until("all are stored", async || database.number("SELECT count(*) FROM orphaned_events").await == 3).await;
    assert_eq!(running.stop().await.count("stored"), 3);
}

#[tokio::test]
async fn redrive_goes_on_when_it_is_interrupted_and_can_be_followed_and_cancelled() {
    let bodies: Vec<String> = (0..40).map(|n| delivery(&format!("m{n}"))).collect();
    let queues = Queues::with_letters(&bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut command = ses_ledger(["dlq", "redrive", "--rate", "2/s"]);
    let mut child = command.env("QUEUE_URL", &queues.url).spawn().expect("it was built");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let first = lines.next_line().await.expect("it is text").expect("it tells how it gets on");
    assert!(first.contains("of about 40 letters, at most 2 in a second"), "{first}");
    signal(child.id(), "INT").await;
    let output = child.wait_with_output().await.expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("dlq redrive --status") && told.contains("dlq redrive --cancel"), "{told}");
    let moved = queues.source.counts().visible;
    eventually("it goes on", || queues.source.counts().visible > moved).await;

    let cancelled = queues.dlq(&["redrive", "--cancel"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.err);
    let status = queues.dlq(&["redrive", "--status"]).await;
    assert_eq!(status.code, Some(1), "it did not complete: {}", status.out);
    assert!(status.out.contains("cancelled: moved "), "{}", status.out);
    let counts = (queues.source.counts().visible, queues.dead.counts().visible);
    assert!(counts.0 + counts.1 == 40 && counts.1 > 0, "{counts:?}");
    assert_eq!(queues.dlq(&["redrive", "--cancel"]).await.code, Some(1), "there is none to cancel");
}

#[tokio::test]
async fn what_cannot_be_done_is_told_with_what_to_do_about_it() {
    let queues = Queues::with_letters(&[&delivery("m")]).await;
    let lonely = queues.endpoint.create_queue("lonely", &[]).expect("the name is good");
    let no_policy = dlq(&lonely, &["redrive"]).await;
    assert_eq!(no_policy.code, Some(64));
    assert!(no_policy.err.contains("has no redrive policy"), "{}", no_policy.err);
    assert_eq!(dlq("", &["peek"]).await.code, Some(64), "which queue?");
    assert_eq!(dlq(&format!("{},{lonely}", queues.url), &["peek"]).await.code, Some(64), "which of them?");
    assert_eq!(queues.dlq(&["redrive", "--rate", "0/s"]).await.code, Some(64));

    for (action, words) in [
        (Action::StartMessageMoveTask, "sqs:StartMessageMoveTask, sqs:ReceiveMessage, sqs:DeleteMessage"),
        (Action::StartMessageMoveTask, "sqs:SendMessage on the queue that it moves to"),
        (Action::ListMessageMoveTasks, "sqs:ListMessageMoveTasks"),
    ] {
        queues.endpoint.faults(|faults| {
            faults.clear().always(action, Fault::Reject(SqsError::access_denied()));
        });
        let denied = queues.dlq(&["redrive"]).await;
        assert_eq!(denied.code, Some(69), "{}", denied.out);
        assert!(denied.err.contains(words), "{words:?} is missing: {}", denied.err);
    }
    queues.endpoint.faults(|faults| {
        faults.clear();
    });
    // Sent to the dead-letter queue itself: SQS cannot tell where it belongs.
    queues.dead.send("{}");
    let dead = queues.url.replace("/events", "/events-dead");
    let failed = end_of(ses_ledger(["dlq", "redrive", "--dead-letter-queue-url", &dead])).await;
    assert_eq!(failed.code, Some(1), "{}", failed.out);
    assert!(
        failed.err.contains("CouldNotDetermineMessageSource") && failed.err.contains("with QUEUE_URL"),
        "{}",
        failed.err
    );
    queues.all_visible(1);
    let told = queues.dlq(&["redrive"]).await;
    assert_eq!((told.code, queues.source.counts().visible), (Some(0), 2), "{}", told.err);
}

#[tokio::test]
async fn what_sqs_does_not_move_is_moved_one_by_one() {
    let queues = Queues::start().await;
    let undelivered = queues.endpoint.create_queue("undelivered", &[]).expect("the name is good");
    let letters = queues.endpoint.queue("undelivered").expect("it was just made");
    for n in 0..12 {
        letters.send(&delivery(&format!("m{n}")));
    }
    let from = ["redrive", "--dead-letter-queue-url", &undelivered];
    let refused = queues.dlq(&from).await;
    assert_eq!(refused.code, Some(64), "{}", refused.out);
    assert!(refused.err.contains("--one-by-one"), "{}", refused.err);

    // What cannot be sent stays.
    let one_by_one = [from.as_slice(), &["--one-by-one"]].concat();
    queues.endpoint.faults(|faults| {
        faults.always(Action::SendMessageBatch, Fault::Reject(SqsError::access_denied()));
    });
    let denied = queues.dlq(&one_by_one).await;
    assert_eq!(denied.code, Some(69), "{}", denied.out);
    assert!(denied.err.contains("sqs:SendMessage"), "{}", denied.err);
    assert_eq!((letters.counts().visible, queues.source.counts().visible), (12, 0));
    queues.endpoint.faults(|faults| {
        faults.clear();
    });

    let moved = queues.dlq(&one_by_one).await;
    assert_eq!((moved.code, moved.out.as_str()), (Some(0), "12 letters are moved to events.\n"), "{}", moved.err);
    let left = letters.counts();
    assert_eq!((left.visible, left.in_flight, queues.source.counts().visible), (0, 0, 12));
    let nowhere = end_of(ses_ledger(["dlq", "redrive", "--one-by-one", "--dead-letter-queue-url", &undelivered])).await;
    assert_eq!(nowhere.code, Some(64), "{}", nowhere.out);
}

#[tokio::test]
async fn export_deletes_only_what_is_on_disk_and_only_if_it_is_told_to() {
    let bodies: Vec<String> = (0..25).map(|n| delivery(&format!("m{n}"))).collect();
    let queues = Queues::with_letters(&bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let file = new_file("letters");
    let path = file.to_str().expect("a plain name");

    let kept = queues.dlq(&["export", path]).await;
    assert_eq!(kept.code, Some(0), "{}", kept.err);
    queues.all_visible(25);
    assert_eq!(bodies_in(&file), sorted(&bodies));
    assert_eq!(queues.dlq(&["export", path]).await.code, Some(1), "a file that is there is not written over");

    let elsewhere = new_file("letters");
    let mut full = Command::new("sh");
    full.args([
        "-c",
        r#"trap '' XFSZ; ulimit -f 0; exec "$0" "$@""#,
        env!("CARGO_BIN_EXE_ses-ledger"),
        "dlq",
        "export",
        "--delete",
    ]);
    full.arg(&elsewhere).env_clear().env("QUEUE_URL", &queues.url).stdin(Stdio::null());
    let full = end_of({
        full.stdout(Stdio::piped()).stderr(Stdio::piped());
        full
    })
    .await;
    assert_eq!(full.code, Some(1), "{}", full.err);
    assert!(full.err.contains("nothing that is not in it was removed"), "{}", full.err);
    queues.all_visible(25);

    std::fs::remove_file(&elsewhere).expect("the full disk has left an empty one");
    let done = queues.dlq(&["export", "--delete", elsewhere.to_str().expect("a plain name")]).await;
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.out.contains("25 letters are in ") && done.out.contains("25 of them are deleted"), "{}", done.out);
    assert_eq!(bodies_in(&elsewhere), sorted(&bodies));
    queues.all_visible(0);
    for file in [file, elsewhere] {
        std::fs::remove_file(file).expect("it is ours");
    }
}

fn bodies_in(file: &Path) -> Vec<String> {
    let lines = std::fs::read_to_string(file).expect("it was made");
    let body = |line: &str| {
        let letter: Value = serde_json::from_str(line).expect("JSON");
        assert!(letter["message_id"].is_string() && letter["attributes"]["SentTimestamp"].is_string(), "{letter}");
        letter["body"].as_str().expect("a body").to_owned()
    };
    sorted(&lines.lines().map(body).collect::<Vec<_>>())
}

fn sorted(texts: &[String]) -> Vec<String> {
    let mut texts = texts.to_vec();
    texts.sort();
    texts
}

/// What the commands rely on, asked of our own queue and of one that others wrote.
async fn moves_are_as_the_commands_expect(endpoint: &str) {
    let client = emulator::client(endpoint);
    let name = format!("moves-{}", Uuid::now_v7());
    let make = |name: String, policy: Option<String>| {
        let queue = client.create_queue().queue_name(name);
        let queue = policy.into_iter().fold(queue, |q, policy| q.attributes(QueueAttributeName::RedrivePolicy, policy));
        async move { queue.send().await.expect("it makes queues").queue_url.expect("a queue has a URL") }
    };
    let dead = make(format!("{name}-dead"), None).await;
    let arn = format!("arn:aws:sqs:us-east-1:000000000000:{name}-dead");
    let source = make(name, Some(json!({"deadLetterTargetArn": arn, "maxReceiveCount": 2}).to_string())).await;
    let bodies: Vec<String> = (0..12).map(|n| delivery(&format!("m{n}"))).collect();
    bury(endpoint, &source, &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;

    let peeked: Value =
        serde_json::from_str(&dlq(&source, &["peek", "--limit", "12", "--json"]).await.out).expect("JSON");
    assert_eq!(peeked["letters"].as_array().map(Vec::len), Some(12), "{peeked}");
    let none = client.list_message_move_tasks().source_arn(&arn).send().await.expect("it lists them");
    assert!(none.results().is_empty());
    let refused = client.start_message_move_task().source_arn(arn.trim_end_matches("-dead")).send().await;
    assert!(refused.is_err(), "no dead-letter queue");

    let moved = dlq(&source, &["redrive", "--json"]).await;
    assert_eq!(moved.code, Some(0), "{}{}", moved.out, moved.err);
    let last: Value = serde_json::from_str(moved.out.lines().last().expect("it tells")).expect("JSON");
    assert_eq!((&last["status"], &last["moved"]), (&"COMPLETED".into(), &12.into()), "{last}");
    let count = async |url: &str| {
        let ask = client.get_queue_attributes().queue_url(url);
        let ask = ask.attribute_names(QueueAttributeName::ApproximateNumberOfMessages).send().await;
        ask.expect("it counts").attributes.expect("it was asked")[&QueueAttributeName::ApproximateNumberOfMessages]
            .clone()
    };
    assert_eq!((count(&source).await, count(&dead).await), ("12".to_owned(), "0".to_owned()));

    // One at a time, and it can be ended.
    let start = || client.start_message_move_task().source_arn(&arn).max_number_of_messages_per_second(1).send();
    while count(&dead).await == "0" {
        let receive = client.receive_message().queue_url(&source).max_number_of_messages(10).visibility_timeout(0);
        receive.send().await.expect("it hands them out");
    }
    assert!(start().await.expect("it starts").task_handle.is_some());
    assert!(start().await.is_err(), "one at a time");
    let cancelled = dlq(&source, &["redrive", "--cancel"]).await;
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.err);
    until("it is cancelled", async || {
        let tasks =
            client.list_message_move_tasks().source_arn(&arn).max_results(10).send().await.expect("it lists them");
        let newest = tasks.results().iter().max_by_key(|task| task.started_timestamp()).expect("there are two");
        newest.status() == Some("CANCELLED")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_of_the_embedded_queue_are_as_the_commands_expect() {
    let endpoint = SqsEndpoint::start(SqsEndpointSettings::default()).await.expect("a port is free");
    tokio::time::timeout(Duration::from_secs(60), moves_are_as_the_commands_expect(endpoint.url()))
        .await
        .expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_of_localstack_are_as_the_commands_expect() {
    moves_are_as_the_commands_expect(localstack::endpoint().await).await;
}
