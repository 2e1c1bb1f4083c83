//! SIGKILL at any moment: what was in hand comes back, and is stored once.

use std::time::Duration;

use ses_ledger::local::{
    sqs_endpoint::Action,
    story::{Mess, Profile, Story, StorySettings},
};
use time::macros::datetime;

use super::{Running, deleted, play, swept, until};
use crate::{
    database,
    truth::assert_exact,
    worker::{Queue, eventually},
};

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_when_the_history_is_exact() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    // Poison comes by hand: the same body may be seen more often when its message comes back.
    let mess = Mess { poison: 0.0, ..Mess::default() };
    let settings = StorySettings::new(41, 500, datetime!(2026-10-05 08:00 UTC));
    let story = Story::tell(&StorySettings { mess, profile: Profile::Small, ..settings });
    for number in 0..10 {
        queue.handle.send(&format!("poison {number}"));
    }
    play(&database, &queue.handle, &story).await;
    let rows = async || database.number("SELECT count(*) FROM email_events").await;
    let start = async || Running::start(&database.url, &queue.url, &["--batch-size=50", "--in-flight=200"]).await;

    let running = start().await;
    eventually("messages are in hand", || queue.handle.counts().in_flight > 0).await;
    running.kill().await;

    // Stored, but not deleted yet.
    queue
        .endpoint
        .faults(|faults| _ = faults.delay(Action::DeleteMessageBatch, Duration::from_millis(500), Duration::ZERO));
    let (running, before) = (start().await, rows().await);
    until("new rows are there", async || rows().await > before).await;
    running.kill().await;
    queue.endpoint.faults(|faults| _ = faults.clear());

    for share in [1, 2, 3] {
        let running = start().await;
        deleted(&queue, story.truth.messages as u64 * share / 5).await;
        running.kill().await;
    }

    let running = start().await;
    queue.drained().await;
    swept(&database, &story).await;
    let farewell = running.stop().await;
    let quarantined = "SELECT count(*) FROM quarantined_messages WHERE reason = 'not_json' AND body LIKE 'poison %'";
    assert_eq!(database.number(quarantined).await, 10);
    database.run("DELETE FROM quarantined_messages").await;
    assert_exact(&database, &story.truth).await;
    assert!(queue.handle.redelivered() > 0 && farewell.count("duplicate") > 0, "no kill hit anything");
}
