//! A story goes in at one end, and the database holds exactly what the story knows.

use ses_ledger::{
    local::story::{Step, Story, StorySettings},
    orphans,
};
use time::macros::datetime;

use crate::{
    database,
    truth::assert_exact,
    worker::{Queue, Running, settings},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_untidy_story_becomes_an_exact_history() {
    let story = Story::tell(&StorySettings::new(7, 400, datetime!(2026-10-05 08:00 UTC)));
    check(&story).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_arrival_gives_the_same_history() {
    let story = Story::tell(&StorySettings::new(8, 150, datetime!(2026-10-05 08:00 UTC)));
    for seed in 0..4 {
        check(&story.shuffled(seed)).await;
    }
}

/// Plays the story, with the worker running from the start.
async fn check(story: &Story) {
    let database = database::fresh().await;
    let queue = Queue::start().await;
    let running = Running::start(&queue.url, database.store(), settings()).await;
    for step in story.steps() {
        match step {
            Step::WriteLog(row) => database.write_log(&row).await,
            Step::Publish(body) => drop(queue.handle.send(&body)),
        }
    }
    queue.drained().await;
    let metrics = running.stop().await;
    orphans::sweep_all(&database.store()).await.expect("the database is there");
    assert_exact(&database, &story.truth).await;
    assert_eq!(metrics.messages_received.get() as usize, story.truth.messages);
    assert_eq!(metrics.events_decoded.get() as usize, story.truth.events);
    assert_eq!(metrics.messages_ignored.get() as usize, story.truth.ignored);
}
