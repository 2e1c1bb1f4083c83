//! The normal run: a story goes in, its exact history is in the database, and nothing of it in the log.

use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use ses_ledger::local::story::{Mess, Profile, Step, Story, StorySettings};
use time::macros::datetime;

use super::{Running, play, swept};
use crate::{
    database::{self, Database},
    emulator,
    truth::assert_exact,
    worker::Queue,
};

fn story(mails: usize) -> Story {
    Story::tell(&StorySettings::new(21, mails, datetime!(2026-10-05 08:00 UTC)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_story_becomes_an_exact_history_and_sigterm_ends_it_well() {
    let (database, queue, story) = (database::fresh().await, Queue::start().await, story(100));
    let running = Running::start(&database.url, &queue.url, &[]).await;
    play(&database, &queue.handle, &story).await;
    queue.drained().await;
    swept(&database, &story).await;

    running.answers("/livez", 200, "ok\n").await;
    running.answers("/readyz", 200, "ok\n").await;
    let farewell = running.stop().await;
    assert_exact(&database, &story.truth).await;
    let again = queue.handle.redelivered() as usize;
    assert_eq!(farewell.count("received"), story.truth.messages + again);
    assert_eq!(farewell.count("deleted"), story.truth.messages + again);
    assert_eq!(farewell.count("released"), 0);
    if again == 0 {
        assert_eq!(farewell.count("ignored"), story.truth.ignored);
        assert_eq!(farewell.count("rejected"), story.truth.rejected);
    }
}

/// Every poison and every fault that the log could quote from, at the level at which we say the most.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_private_is_in_the_log() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let mess = Mess { poison: 0.1, ..Mess::default() };
    let story = Story::tell(&StorySettings { mess, ..StorySettings::new(22, 150, datetime!(2026-10-05 08:00 UTC)) });
    // Refuses some rows with a message that quotes them.
    database.run("ALTER TABLE email_events ADD CONSTRAINT no_bounces CHECK (event_type <> 'bounce') NOT VALID").await;
    let running = Running::start(&database.url, &queue.url, &["--log=info,ses_ledger=trace"]).await;
    play(&database, &queue.handle, &story).await;
    queue.drained().await;
    running.signal("TERM").await;
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the database refuses") && log.contains("stored a batch"), "the log says too little:\n{log}");

    let log = log.to_lowercase();
    for private in secrets(&database, &story) {
        assert!(!log.contains(&private.to_lowercase()), "the log holds {private:?}");
    }
}

/// What the log must not hold: who, what about, which links, and what opens doors.
fn secrets(database: &Database, story: &Story) -> Vec<String> {
    let mut secrets = Vec::new();
    for step in story.steps() {
        if let Step::WriteLog(row) = step {
            secrets.extend(row.recipients);
            secrets.extend([row.sender, row.subject]);
        }
    }
    for row in story.truth.rows.iter().chain(&story.truth.orphans) {
        secrets.push(row.recipient.clone());
        secrets.extend(row.link.clone());
    }
    secrets.retain(|secret| !secret.is_empty());
    let password = database.url.split([':', '@']).nth(2).expect("the URL holds a password");
    secrets.push(password.to_owned());
    // What every receipt handle of the endpoint begins with, and what is in every body.
    secrets.extend(["AAAAAAAAAAAAAAAA".to_owned(), "eventType".to_owned(), "messageId\"".to_owned()]);
    secrets.sort();
    secrets.dedup();
    assert!(secrets.len() > 50, "{} secrets prove little", secrets.len());
    secrets
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_from_an_emulated_sqs() {
    let settings =
        StorySettings { profile: Profile::Small, ..StorySettings::new(23, 25, datetime!(2026-10-05 08:00 UTC)) };
    let (database, story) = (database::fresh().await, Story::tell(&settings));
    let client = sqs_client(emulator::endpoint().await);
    let queue = client.create_queue().queue_name("binary-history").send().await.expect("the emulator makes queues");
    let url = queue.queue_url.expect("a queue has a URL");
    for step in story.steps() {
        match step {
            Step::WriteLog(row) => database.write_log(&row).await,
            Step::Publish(body) => {
                client.send_message().queue_url(&url).message_body(body).send().await.expect("the emulator takes text");
            }
        }
    }
    // Longer than a slow machine holds a message: this emulator is in no hurry.
    let running = Running::start(&database.url, &url, &["--visibility-timeout=30s"]).await;
    running.answers("/readyz", 200, "ok\n").await;
    let messages = story.truth.messages;
    let metric = format!("ses_ledger_messages_deleted_total {messages}\n");
    super::until("all messages are deleted", async || running.get("/metrics").await.body.contains(&metric)).await;
    swept(&database, &story).await;

    let farewell = running.stop().await;
    assert_exact(&database, &story.truth).await;
    assert_eq!(farewell.count("received"), messages);
}

fn sqs_client(endpoint: &str) -> aws_sdk_sqs::Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new("test", "test", None, None, "tests"));
    aws_sdk_sqs::Client::from_conf(config.build())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_queues_are_served_by_one_process() {
    let (database, story) = (database::fresh().await, story(60));
    let (first, second) = (Queue::start().await, Queue::start().await);
    let other = second.endpoint.create_queue("other-events", &[]).expect("the name is good");
    let other_handle = second.endpoint.queue("other-events").expect("it was just made");
    let running = Running::start(&database.url, &format!("{},{other}", first.url), &[]).await;
    for (number, step) in story.steps().enumerate() {
        match step {
            Step::WriteLog(row) => database.write_log(&row).await,
            Step::Publish(body) if number % 2 == 0 => drop(first.handle.send(&body)),
            Step::Publish(body) => drop(other_handle.send(&body)),
        }
    }
    first.drained().await;
    crate::worker::eventually("the other queue is drained", || {
        other_handle.counts().in_flight + other_handle.counts().visible == 0
    })
    .await;
    swept(&database, &story).await;
    running.stop().await;
    assert_exact(&database, &story.truth).await;
    let queues = database.texts("SELECT DISTINCT queue FROM email_events ORDER BY queue").await;
    assert_eq!(queues, ["other-events", "ses-events"].map(|name| format!("arn:aws:sqs:us-east-1:000000000000:{name}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_one_queue() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let story = Story::tell(&StorySettings {
        profile: Profile::Small,
        ..StorySettings::new(24, 400, datetime!(2026-10-05 08:00 UTC))
    });
    play(&database, &queue.handle, &story).await;
    // Few messages at a time, so that neither has taken all before the other has started.
    let few = ["--visibility-timeout=30s", "--batch-size=20", "--in-flight=40"];
    let (one, two) =
        tokio::join!(Running::start(&database.url, &queue.url, &few), Running::start(&database.url, &queue.url, &few));
    queue.drained().await;
    swept(&database, &story).await;
    let (one, two) = tokio::join!(one.stop(), two.stop());
    assert_exact(&database, &story.truth).await;
    assert!(one.count("stored") > 0 && two.count("stored") > 0, "both had a part in it");
    assert_eq!(one.count("deleted") + two.count("deleted"), story.truth.messages);
}
