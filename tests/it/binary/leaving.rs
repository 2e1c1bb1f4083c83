//! Signals: the first one finishes what is in hand and gives back the rest, the second one leaves at once.

use std::time::Duration;

use ses_ledger::local::{
    sqs_endpoint::{Action, Fault},
    story::{Mess, Profile, Story, StorySettings},
};
use time::macros::datetime;
use tokio::time::Instant;

use super::{Farewell, Running, deleted, play, swept};
use crate::{
    database::{self, Database},
    truth::assert_exact,
    worker::{Queue, eventually},
};

/// As in [`super::SHORT_TIMES`].
const GRACE: Duration = Duration::from_secs(8);

fn story(mails: usize) -> Story {
    // Without poison: a body that is received twice is quarantined as seen twice.
    let mess = Mess { poison: 0.0, ..Mess::default() };
    let settings = StorySettings::new(31, mails, datetime!(2026-10-05 08:00 UTC));
    Story::tell(&StorySettings { mess, profile: Profile::Small, ..settings })
}

/// Nobody can store before the transaction that this returns is over.
pub(super) async fn block(database: &Database) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut blocker = database.pool.begin().await.expect("the database is there");
    let lock = "LOCK TABLE email_events, orphaned_events, quarantined_messages IN ACCESS EXCLUSIVE MODE";
    sqlx::query(lock).execute(&mut *blocker).await.expect("the tables are there");
    blocker
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_what_is_in_hand_is_finished_and_nothing_stays_hidden() {
    let (database, queue, story) = (database::fresh().await, Queue::start().await, story(500));
    play(&database, &queue.handle, &story).await;
    let few = ["--batch-size=50", "--in-flight=100"];
    let running = Running::start(&database.url, &queue.url, &few).await;
    deleted(&queue, 200).await;
    running.signal("TERM").await;
    let since = Instant::now();
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(since.elapsed() < GRACE, "{log}");

    let (counts, totals) = (queue.handle.counts(), queue.handle.totals());
    assert!(counts.visible > 0, "it was not under load");
    assert_eq!(counts.in_flight, 0, "some are hidden and belong to nobody:\n{log}");
    let farewell = Farewell::read(&log);
    assert_eq!(farewell.count("released"), 0, "there was time to store what was in hand");
    assert_eq!(farewell.count("deleted") as u64, totals.deleted);
    assert_eq!(farewell.count("received") as u64, totals.received);
    assert_eq!(totals.deleted as usize + counts.visible, story.truth.messages);

    let next = Running::start(&database.url, &queue.url, &[]).await;
    queue.drained().await;
    swept(&database, &story).await;
    next.stop().await;
    assert_exact(&database, &story.truth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_within_the_grace_period_is_back_in_the_queue_at_once() {
    let (database, queue, story) = (database::fresh().await, Queue::start().await, story(40));
    let running = Running::start(&database.url, &queue.url, &[]).await;
    let blocker = block(&database).await;
    play(&database, &queue.handle, &story).await;
    running.says("cannot store, holding what is in hand").await;
    running.signal("TERM").await;
    let since = Instant::now();
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(since.elapsed() < GRACE, "{log}");

    let counts = queue.handle.counts();
    assert_eq!((counts.in_flight, counts.visible), (0, story.truth.messages), "{log}");
    let farewell = Farewell::read(&log);
    assert!(farewell.count("released") > 0);
    assert_eq!((farewell.count("stored"), farewell.count("deleted")), (0, 0));

    blocker.rollback().await.expect("the database is there");
    let next = Running::start(&database.url, &queue.url, &[]).await;
    queue.drained().await;
    swept(&database, &story).await;
    next.stop().await;
    assert_exact(&database, &story.truth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_leaves_at_once() {
    async fn check(signal: &str, code: i32) {
        let (database, queue) = (database::fresh().await, Queue::start().await);
        let running = Running::start(&database.url, &queue.url, &[]).await;
        let _blocker = block(&database).await;
        queue.handle.send("cannot be quarantined now");
        eventually("the message is in hand", || queue.handle.counts().in_flight == 1).await;
        running.signal(signal).await;
        running.says("finishing what is in hand").await;
        running.signal(signal).await;
        let since = Instant::now();
        let (found, log) = running.ended().await;
        assert_eq!(found, Some(code), "{log}");
        assert!(since.elapsed() < Duration::from_secs(2), "{log}");
    }
    tokio::join!(check("TERM", 143), check("INT", 130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_that_hangs_is_given_up_within_the_grace_period() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    queue.endpoint.faults(|faults| _ = faults.always(Action::ReceiveMessage, Fault::Hang));
    let running = Running::start(&database.url, &queue.url, &[]).await;
    eventually("a receive hangs", || queue.endpoint.calls(Action::ReceiveMessage).faults > 0).await;
    running.signal("TERM").await;
    let since = Instant::now();
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(since.elapsed() < GRACE, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_it_waits_for_the_database_ends_it_well() {
    let queue = Queue::start().await;
    let running = Running::spawn("postgres://nobody:secret@127.0.0.1:1/none", &queue.url, &[]);
    running.says("cannot reach the database yet").await;
    running.signal("TERM").await;
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
}
