//! What the pipeline does when its queue or its store does not do what it should, on paused time.
//! `outages.rs` asks the same of the real queue client and the real database.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use ses_ledger::{
    metrics::{Drift, Metrics},
    pipeline::{self, PipelineSettings, QueueError, Shutdown, Worker},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    doubles::{Call, Fault, MemoryQueue, MemoryStore, REFUSED, UNSTORABLE},
    worker,
};

#[tokio::test(start_paused = true)]
async fn on_a_quiet_queue_one_poller_asks() {
    let bench = Bench::start(settings());
    sleep(Duration::from_secs(600)).await;
    assert_eq!(bench.queue.open_receives(), (1, 1), "open receives: now, and the most");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_single_message_is_stored_at_once() {
    let bench = Bench::start(PipelineSettings { batch_age: Duration::from_secs(5), ..settings() });
    sleep(Duration::from_secs(600)).await;
    let sent = bench.send(1).await;
    bench.until("it is stored", |bench| bench.is_drained()).await;
    assert!(sent.elapsed() < Duration::from_millis(100), "it took {:?}", sent.elapsed());
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_wakes_all_pollers() {
    let bench = Bench::start(PipelineSettings { batch_size: 100, batch_age: Duration::from_secs(60), ..settings() });
    bench.queue.slow_receives(Duration::from_millis(20));
    sleep(Duration::from_secs(600)).await;
    bench.store.always(Fault::Hang);
    let sent = bench.send(1_000).await;
    bench.until("each poller holds a batch", |bench| bench.metrics.messages_in_hand.get() == 400).await;
    // Ten receives for each batch: one, two, four, three at once. And all four pollers at the same time.
    assert!(sent.elapsed() < Duration::from_millis(200), "it took {:?}", sent.elapsed());
    bench.store.always(Fault::None);
    bench.until("all are stored", Bench::is_drained).await;
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn never_more_than_its_share_is_in_flight() {
    let limits =
        PipelineSettings { in_flight: 25, batch_size: 50, store_timeout: Duration::from_secs(200), ..settings() };
    let bench = Bench::start(limits);
    bench.store.always(Fault::Hang);
    bench.send(200).await;
    for _ in 0..100 {
        sleep(Duration::from_secs(1)).await;
        let in_flight = bench.queue.counts().in_flight;
        assert!((11..=25).contains(&in_flight), "{in_flight} in flight");
    }
    bench.store.always(Fault::None);
    bench.until("the pollers go on", Bench::is_drained).await;
    assert_eq!(bench.queue.totals().redelivered, 0);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn long_bodies_take_the_room_of_several() {
    let limits = PipelineSettings {
        in_flight: 200,
        batch_size: 100,
        batch_age: Duration::from_secs(60),
        store_timeout: Duration::from_secs(200),
        ..settings()
    };
    let bench = Bench::start(limits);
    bench.store.always(Fault::Hang);
    let long = format!("{{\"test\": \"{}\"}}", "x".repeat(8_000)); // room for four
    (0..400).for_each(|_| bench.queue.send(&long));
    for _ in 0..100 {
        sleep(Duration::from_secs(1)).await;
        // Each poller has room for fifty. After ten long ones there is room for one more receive, whatever comes.
        let in_flight = bench.queue.counts().in_flight;
        assert!((40..=80).contains(&in_flight), "{in_flight} in flight");
    }
    bench.store.always(Fault::None);
    bench.until("the pollers go on", Bench::is_drained).await;
    assert_eq!(bench.queue.totals().redelivered, 0);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_poller_is_replaced_and_two_in_a_row_are_reported() {
    let bench = Bench::start(settings());
    bench.queue.always(Call::Receive, Fault::Hang);
    sleep(Duration::from_secs(1)).await; // the receive that is open already comes back first
    bench.until("one is replaced", |bench| bench.metrics.pollers_replaced.get() == 1).await;
    assert!(bench.worker.is_alive());
    bench.until("another is replaced", |bench| bench.metrics.pollers_replaced.get() == 2).await;
    assert!(!bench.worker.is_alive());

    bench.queue.always(Call::Receive, Fault::None);
    bench.send(30).await;
    bench.until("all is well again", |bench| bench.is_drained() && bench.worker.is_alive()).await;
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_stuck_poller_held_comes_back() {
    let bench = Bench::start(settings());
    bench.queue.script(Call::Receive, [Fault::None, Fault::None, Fault::Hang]);
    sleep(Duration::from_millis(1500)).await;
    bench.send(3).await;
    bench.until("all is stored", Bench::is_drained).await;
    assert_eq!((bench.metrics.pollers_replaced.get(), bench.metrics.messages_released.get()), (1, 3));
    assert_eq!(bench.queue.totals().redelivered, 3);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_redelivers_nothing() {
    let bench = Bench::start(settings());
    bench.store.always(Fault::Reject);
    // Whoever fails to extend tries again in time.
    bench
        .queue
        .script(Call::ChangeVisibility, [Fault::Reject, Fault::None, Fault::LoseAnswer].into_iter().cycle().take(60));
    bench.send(50).await;
    sleep(settings().visibility_timeout * 50).await;
    assert_eq!(bench.worker.is_ready(), Err("waiting for the database"));
    bench.store.always(Fault::None);
    bench.until("all is stored", Bench::is_drained).await;
    assert_eq!(bench.queue.totals().redelivered, 0);
    assert_eq!(bench.worker.is_ready(), Ok(()));
    bench.stop().await;
}

/// A store that never answers is the same as one that says no, only slower.
#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_for_long_redelivers_nothing() {
    let bench = Bench::start(settings());
    bench.store.always(Fault::Hang);
    bench.send(50).await;
    sleep(settings().visibility_timeout * 50).await;
    assert_eq!(bench.metrics.pollers_replaced.get(), 0);
    bench.store.always(Fault::None);
    bench.until("all is stored", Bench::is_drained).await;
    assert_eq!(bench.queue.totals().redelivered, 0);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn during_an_outage_nobody_starts_to_receive() {
    let bench = Bench::start(settings());
    sleep(Duration::from_secs(30)).await;
    bench.store.always(Fault::Reject);
    bench.send(1).await;
    bench.until("the outage is known", |bench| bench.worker.is_ready().is_err()).await;
    bench.send(100).await;
    sleep(Duration::from_secs(300)).await;
    // One long poll was open before anybody could know.
    assert!(bench.metrics.messages_received.get() <= 11, "{} were received", bench.metrics.messages_received.get());
    bench.store.always(Fault::None);
    bench.until("all is stored", Bench::is_drained).await;
    assert_eq!(bench.queue.totals().redelivered, 0);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_lost_deadlock_is_no_outage_but_two_failures_are() {
    assert_eq!(outages_during([Fault::Reject]).await, 0);
    assert_ne!(outages_during([Fault::Reject, Fault::Reject]).await, 0);
}

/// How often somebody who looks every ms sees an outage while a message is stored.
async fn outages_during(faults: impl IntoIterator<Item = Fault>) -> usize {
    let bench = Bench::start(settings());
    bench.store.script(faults);
    bench.send(1).await;
    let mut seen = 0;
    while !bench.is_drained() {
        seen += usize::from(bench.worker.is_ready().is_err());
        sleep(Duration::from_millis(1)).await;
    }
    assert_ne!(bench.metrics.store_retries.get(), 0);
    bench.stop().await;
    seen
}

#[tokio::test(start_paused = true)]
async fn a_receive_that_fails_does_not_hold_up_what_was_received_before() {
    let bench = Bench::start(settings());
    bench.queue.script(Call::Receive, [Fault::None, Fault::None, Fault::Reject]);
    sleep(Duration::from_millis(1500)).await;
    let sent = bench.send(1).await;
    bench.until("it is stored", Bench::is_drained).await;
    assert!(sent.elapsed() < Duration::from_millis(100), "it took {:?}", sent.elapsed());
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_miscount_shows() {
    let bench = Bench::start(settings());
    bench.store.miscount(1);
    bench.send(5).await;
    bench.until("all is stored", Bench::is_drained).await;
    bench.until("it shows", |bench| bench.metrics.check_identities() == Drift { messages: 0, events: 1 }).await;
    let text = bench.metrics.encode();
    assert!(text.lines().any(|line| line == "ses_ledger_events_drift 1"), "{text}");
    assert!(text.lines().any(|line| line == "ses_ledger_messages_drift 0"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_reject_that_cannot_be_quarantined_stays_in_the_queue_alone() {
    stays_in_the_queue_alone(&format!("{{ broken {UNSTORABLE}"), 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_that_cannot_be_quarantined_stays_in_the_queue_alone() {
    stays_in_the_queue_alone(&event(&format!("{REFUSED}-{UNSTORABLE}")), 1).await;
}

/// More rows in one statement than the database can store before it ends the statement: never to be tried.
#[tokio::test(start_paused = true)]
async fn a_body_of_very_many_events_or_rejects_does_not_block_its_neighbours() {
    let recipients: Vec<String> = (0..30_000).map(|n| format!("{n}@example.com")).collect();
    let (mail, delivery) = (json!({ "messageId": "crowd" }), json!({ "recipients": recipients }));
    let crowd = json!({ "eventType": "Delivery", "mail": mail, "delivery": delivery }).to_string();
    let bench = Bench::start(settings());
    bench.store.most_rows(11_000);
    bench.queue.send(&crowd);
    bench.queue.send(&json!((0..30_000).collect::<Vec<_>>()).to_string());
    bench.send(20).await;
    bench.until("all is stored", Bench::is_drained).await;
    assert_eq!((bench.store.orphans().len(), bench.store.quarantine().len()), (30_020, 30_000));
    assert_eq!(bench.metrics.store_retries.get(), 0);
    bench.stop().await;
}

async fn stays_in_the_queue_alone(body: &str, events: u64) {
    let bench = Bench::start(settings());
    bench.queue.send(body);
    bench.send(20).await;
    let others_are_gone =
        |bench: &Bench| bench.queue.totals().deleted == 20 && bench.metrics.messages_in_hand.get() == 0;
    bench.until("the others are stored", others_are_gone).await;
    assert_eq!(bench.store.rows().len() + bench.store.orphans().len(), 20);
    assert_eq!((bench.metrics.messages_stored.get(), bench.metrics.messages_released.get()), (20, 1));
    assert_eq!((bench.metrics.events_decoded.get(), bench.metrics.events_quarantined.get()), (20 + events, events));
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stopping_finishes_what_is_in_hand() {
    let bench = Bench::start(settings());
    bench.store.script([Fault::Reject, Fault::Hang, Fault::LoseAnswer, Fault::Reject]);
    bench.queue.script(Call::Delete, [Fault::Reject]);
    bench.send(50).await;
    bench.until("something is in hand", |bench| bench.metrics.messages_in_hand.get() > 0).await;
    let (queue, metrics) = (bench.queue.clone(), bench.stop().await);
    assert_eq!(queue.counts().in_flight, 0);
    assert_eq!((metrics.messages_released.get(), metrics.messages_undeleted.get()), (0, 0));
    assert_eq!(metrics.messages_deleted.get(), metrics.messages_received.get());
}

#[tokio::test(start_paused = true)]
async fn giving_up_gives_back_at_once() {
    let bench = Bench::start(settings());
    bench.store.always(Fault::Reject);
    gives_back_at_once(bench, Duration::from_secs(15)).await;
}

/// Whoever gives back waits for the receives of all others first. That is no reason to call him stuck.
#[tokio::test(start_paused = true)]
async fn giving_back_is_left_its_time() {
    let patient =
        PipelineSettings { receive_wait: Duration::from_secs(20), store_timeout: Duration::from_secs(1), ..settings() };
    let bench = Bench::start(patient);
    sleep(Duration::from_secs(30)).await;
    bench.store.always(Fault::Hang);
    gives_back_at_once(bench, Duration::ZERO).await;
}

async fn gives_back_at_once(bench: Bench, after: Duration) {
    bench.send(7).await;
    bench.until("all are in hand", |bench| bench.metrics.messages_in_hand.get() == 7).await;
    sleep(after).await;
    bench.shutdown.stop.cancel();
    bench.shutdown.give_up.cancel();
    let (queue, metrics) = (bench.queue.clone(), bench.stop().await);
    assert_eq!((queue.counts().visible, queue.counts().in_flight), (7, 0));
    assert_eq!((metrics.messages_released.get(), metrics.pollers_replaced.get()), (7, 0));
    assert_eq!((queue.totals().received, queue.totals().redelivered), (7, 0));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_does_not_take_anything_back_does_not_keep_the_worker() {
    let bench = Bench::start(settings());
    bench.store.always(Fault::Reject);
    bench.queue.always(Call::ChangeVisibility, Fault::Hang);
    bench.send(7).await;
    bench.until("all are in hand", |bench| bench.metrics.messages_in_hand.get() == 7).await;
    bench.shutdown.stop.cancel();
    sleep(settings().receive_wait).await;
    bench.shutdown.give_up.cancel();
    let given_up = Instant::now();
    let metrics = bench.stop().await;
    assert!(given_up.elapsed() < ses_ledger::cli::RELEASE_BUDGET, "it took {:?}", given_up.elapsed());
    assert_eq!(metrics.messages_released.get(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_dropped_leaves_nobody_behind() {
    let bench = Bench::start(settings());
    sleep(Duration::from_secs(30)).await;
    bench.run.abort();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.queue.open_receives().0, 0);
}

/// A worker between a queue and a store that do what a test tells them to.
struct Bench {
    queue: MemoryQueue,
    store: MemoryStore,
    metrics: Arc<Metrics>,
    worker: Arc<Worker<MemoryQueue, MemoryStore>>,
    shutdown: Shutdown,
    run: JoinHandle<Result<(), QueueError>>,
}

fn settings() -> PipelineSettings {
    PipelineSettings { visibility_timeout: Duration::from_secs(30), ..worker::settings() }
}

pub(crate) fn event(message_id: &str) -> String {
    format!(r#"{{"eventType":"Send","mail":{{"messageId":"{message_id}","timestamp":"2026-10-05T08:00:00.000Z"}}}}"#)
}

impl Bench {
    fn start(settings: PipelineSettings) -> Self {
        let store = MemoryStore::default();
        let queue = MemoryQueue::new(settings.visibility_timeout, &store);
        let (metrics, shutdown) = (Arc::new(Metrics::default()), Shutdown::default());
        let worker = Worker::new(queue.clone(), store.clone(), settings, Arc::clone(&metrics), shutdown.clone());
        let run = tokio::spawn(pipeline::run(Arc::clone(&worker)));
        Self { queue, store, metrics, worker, shutdown, run }
    }

    /// Sends messages with one event each, all different.
    async fn send(&self, count: usize) -> Instant {
        let before = self.queue.totals().sent;
        (0..count).for_each(|n| self.queue.send(&event(&format!("mail-{before}-{n}"))));
        Instant::now()
    }

    fn is_drained(&self) -> bool {
        self.queue.is_drained()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let poll = async {
            while !holds(self) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let came = timeout(Duration::from_secs(600), poll).await;
        assert!(came.is_ok(), "it never came true that {what}: {:?}\n{}", self.queue.counts(), self.metrics.encode());
    }

    /// Stops it, and checks what has to hold of every worker.
    async fn stop(self) -> Arc<Metrics> {
        self.shutdown.stop.cancel();
        let ended = timeout(Duration::from_secs(600), self.run).await.expect("it ends");
        ended.expect("the pipeline does not panic").expect("nothing is fatal");
        assert_eq!(self.metrics.check_identities(), Drift { messages: 0, events: 0 });
        assert_eq!(self.metrics.messages_in_hand.get(), 0);
        assert_eq!(self.queue.broken_rules(), [""; 0]);
        self.metrics
    }
}
