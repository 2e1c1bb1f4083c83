//! What the worker does when SQS or PostgreSQL fail: with the real SDK against the embedded endpoint, and a real
//! database. What needs no network is asked in `faults.rs`, on paused time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ses_ledger::{
    local::{
        postgres::{LocalPostgres, StopMode},
        sqs_endpoint::{Action, Fault, SqsError},
        story::{Step, Story, StorySettings},
    },
    metrics::{Drift, Metrics},
    orphans,
    pipeline::{self, PipelineSettings, QueueError, Shutdown, Worker},
    sqs::{Access, Sqs, SqsSettings},
};
use sqlx::Executor as _;
use time::macros::datetime;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    database,
    doubles::MemoryStore,
    faults::event,
    truth::assert_exact,
    worker::{Queue, Running, eventually, settings},
};

#[tokio::test(flavor = "multi_thread")]
async fn deletes_that_fail_now_and_then_redeliver_nothing() {
    const MESSAGES: usize = 20_000;
    let (database, queue) = (database::fresh().await, Queue::start().await);
    queue.endpoint.faults(|faults| _ = faults.fail_entries(Action::DeleteMessageBatch, 0.02));
    for n in 0..MESSAGES {
        queue.handle.send(&event(&format!("mail-{n}")));
    }
    let running = Running::start(&queue.url, database.store(), settings()).await;
    queue.drained().await;
    let metrics = running.stop().await;
    assert_eq!(queue.handle.redelivered(), 0);
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await as usize, MESSAGES);
    assert_eq!(metrics.messages_deleted.get() as usize, MESSAGES);
    assert_ne!(metrics.delete_retries.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_blocked_never_more_than_the_limit_is_in_flight() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let mut lock = database.pool.begin().await.expect("the database is there");
    lock.execute("LOCK TABLE orphaned_events IN ACCESS EXCLUSIVE MODE").await.expect("nobody else has it");
    (0..500).for_each(|n| _ = queue.handle.send(&event(&format!("mail-{n}"))));
    let limits =
        PipelineSettings { in_flight: 50, batch_size: 20, store_timeout: Duration::from_secs(60), ..settings() };
    let running = Running::start(&queue.url, database.store(), limits).await;
    eventually("the pollers hold something", || queue.handle.counts().in_flight > 30).await;
    for _ in 0..100 {
        let in_flight = queue.handle.counts().in_flight;
        assert!(in_flight <= 50, "{in_flight} in flight");
        sleep(Duration::from_millis(10)).await;
    }
    lock.rollback().await.expect("the database is there");
    queue.drained().await;
    running.stop().await;
    assert_eq!(queue.handle.redelivered(), 0);
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_queue_is_asked_by_one_poller_and_a_message_is_stored_at_once() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let patient = PipelineSettings { pollers: 8, batch_age: Duration::from_secs(5), ..settings() };
    let running = Running::start(&queue.url, database.store(), patient).await;
    let requests = || queue.endpoint.calls(Action::ReceiveMessage).requests;
    eventually("it receives", || requests() > 0).await;
    let before = requests();
    sleep(Duration::from_secs(3)).await;
    let asked = requests() - before;
    assert!((2..=4).contains(&asked), "{asked} receives of one second each within three seconds");

    let mut fastest = Duration::MAX;
    for n in 1..=5 {
        let sent = Instant::now();
        queue.handle.send(&event(&format!("mail-{n}")));
        while queue.handle.totals().deleted < n {
            assert!(sent.elapsed() < Duration::from_secs(30), "it is not stored");
            sleep(Duration::from_millis(1)).await;
        }
        fastest = fastest.min(sent.elapsed());
    }
    assert!(fastest < Duration::from_millis(100), "the fastest of five took {fastest:?}");
    running.stop().await;
}

#[tokio::test]
async fn the_probe_tells_what_has_to_be_mended() {
    let (delete, hide) = (Action::DeleteMessage, Action::ChangeMessageVisibility);
    let (gone, old) = (":ses-events does not exist", ":ses-events have expired");
    check_probe(delete, SqsError::access_denied(), Some("sqs:DeleteMessage")).await;
    check_probe(hide, SqsError::access_denied(), Some("sqs:ChangeMessageVisibility")).await;
    check_probe(delete, SqsError::queue_does_not_exist(), Some(gone)).await;
    check_probe(delete, SqsError::new(400, "AWS.SimpleQueueService.NonExistentQueue", "gone"), Some(gone)).await;
    check_probe(delete, SqsError::expired_token(), Some(old)).await;
    let unknown = SqsError::new(403, "InvalidClientTokenId", "unknown");
    check_probe(delete, unknown, Some("AWS does not accept the credentials")).await;
    check_probe(delete, SqsError::throttled(), None).await;
    check_probe(hide, SqsError::unavailable(), None).await;
}

/// `None`: waiting may help.
async fn check_probe(action: Action, error: SqsError, fatal: Option<&str>) {
    let queue = Queue::start().await;
    queue.endpoint.faults(|faults| _ = faults.always(action, Fault::Reject(error.clone())));
    let answer = sqs(&queue, &settings()).await.probe().await;
    check_error(&error, answer.expect_err("the probe fails"), fatal);
}

fn check_error(cause: &SqsError, error: QueueError, fatal: Option<&str>) {
    match (fatal, &error) {
        (Some(words), QueueError::Fatal(message)) => assert!(message.contains(words), "{}: {message}", cause.code),
        (None, QueueError::Transient(_)) => {}
        _ => panic!("{}: {error:?}", cause.code),
    }
}

#[tokio::test]
async fn what_only_somebody_else_can_mend_ends_the_worker() {
    let receive = Action::ReceiveMessage;
    check_end(receive, SqsError::access_denied(), "sqs:ReceiveMessage").await;
    check_end(receive, SqsError::queue_does_not_exist(), ":ses-events does not exist").await;
    check_end(receive, SqsError::expired_token(), ":ses-events have expired").await;
    check_end(Action::DeleteMessageBatch, SqsError::access_denied(), "sqs:DeleteMessage").await;
}

async fn check_end(action: Action, error: SqsError, words: &str) {
    let queue = Queue::start().await;
    let live = Live::start(&queue, settings()).await;
    (0..100).for_each(|n| _ = queue.handle.send(&event(&format!("mail-{n}"))));
    eventually("it works", || queue.handle.counts() == Default::default()).await;
    queue.endpoint.faults(|faults| _ = faults.always(action, Fault::Reject(error.clone())));
    (0..10).for_each(|n| _ = queue.handle.send(&event(&format!("mail-again-{n}"))));
    let (metrics, outcome) = live.ended().await;
    check_error(&error, outcome.expect_err("the worker cannot go on"), Some(words));
    // What was stored and not deleted comes back, and the counts say so.
    let [received, released] = [&metrics.messages_received, &metrics.messages_released].map(|counter| counter.get());
    assert_eq!(metrics.messages_deleted.get() + metrics.messages_undeleted.get() + released, received);
    assert_eq!(queue.handle.totals().deleted, metrics.messages_deleted.get());
}

#[tokio::test]
async fn throttling_and_failures_of_sqs_are_waited_out() {
    let queue = Queue::start().await;
    let receive = Action::ReceiveMessage;
    let live = Live::start(&queue, settings()).await;
    for error in
        [SqsError::throttled(), SqsError::throttling_exception(), SqsError::unavailable(), SqsError::internal()]
    {
        queue.endpoint.faults(|faults| _ = faults.always(receive, Fault::Reject(error.clone())));
        let requests = || queue.endpoint.calls(receive).faults;
        let before = requests();
        sleep(Duration::from_millis(1500)).await;
        let asked = requests() - before;
        assert!((1..=20).contains(&asked), "{}: {asked} receives in 1.5 seconds", error.code);
        assert_eq!(live.worker.is_ready(), Err("the queue does not answer"));
        queue.endpoint.faults(|faults| _ = faults.clear());
        queue.handle.send(&event(&error.code));
        eventually("it goes on", || queue.handle.counts() == Default::default()).await;
        assert_eq!(live.worker.is_ready(), Ok(()));
    }
    assert_eq!(queue.handle.redelivered(), 0);
    live.stop().await;
}

#[tokio::test]
async fn deletes_are_repeated_until_they_come_through() {
    let queue = Queue::start().await;
    let live = Live::start(&queue, settings()).await;
    let troubles = [Fault::Reject(SqsError::throttled()), Fault::LoseAnswer, Fault::Misreport(SqsError::internal())];
    queue.endpoint.faults(|faults| _ = faults.script(Action::DeleteMessageBatch, troubles.into_iter().cycle().take(9)));
    (0..30).for_each(|n| _ = queue.handle.send(&event(&format!("mail-{n}"))));
    eventually("all are gone", || queue.handle.counts() == Default::default()).await;
    let metrics = live.stop().await;
    assert_eq!((queue.handle.redelivered(), metrics.messages_undeleted.get()), (0, 0));
}

/// A receive can hang for ever. What was received before must not wait for it for longer than for any other answer.
#[tokio::test]
async fn a_receive_that_hangs_does_not_cost_what_was_received_before() {
    let queue = Queue::start().await;
    queue.endpoint.faults(|faults| _ = faults.script(Action::ReceiveMessage, [Fault::None, Fault::Hang]));
    queue.handle.send(&event("mail"));
    let as_shipped = PipelineSettings { pollers: 1, receive_wait: Duration::from_secs(20), ..settings() };
    let live = Live::start(&queue, as_shipped).await;
    let stored = timeout(Duration::from_secs(15), eventually("it is stored", || queue.handle.totals().deleted == 1));
    assert!(stored.await.is_ok(), "it is held until the receive ends");
    assert_eq!((live.metrics.pollers_replaced.get(), live.metrics.messages_released.get()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_finishes_what_is_in_hand() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    (0..5_000).for_each(|n| _ = queue.handle.send(&event(&format!("mail-{n}"))));
    let running = Running::start(&queue.url, database.store(), settings()).await;
    eventually("it is at work", || queue.handle.totals().deleted > 0).await;
    let metrics = running.stop().await;
    let counts = queue.handle.counts();
    assert!(counts.visible > 0, "it stopped too late to tell");
    assert_eq!((counts.in_flight, metrics.messages_released.get()), (0, 0));
    let stored = database.number("SELECT count(*) FROM orphaned_events").await as usize;
    assert_eq!(stored, 5_000 - counts.visible);
}

#[tokio::test]
async fn giving_up_gives_back_at_once() {
    let queue = Queue::start().await;
    (0..35).for_each(|n| _ = queue.handle.send(&event(&format!("mail-{n}"))));
    let nobody = database::connect("postgres://nobody:nothing@127.0.0.1:9/nowhere");
    let running = Running::start(&queue.url, nobody, PipelineSettings { batch_size: 100, ..settings() }).await;
    eventually("all are in hand", || running.metrics.messages_in_hand.get() == 35).await;
    eventually("the outage is known", || running.worker.is_ready().is_err()).await;
    running.shutdown.stop.cancel();
    running.shutdown.give_up.cancel();
    let metrics = running.stop().await;
    assert_eq!(metrics.messages_released.get(), 35);
    assert_eq!((queue.handle.counts().visible, queue.handle.max_receive_count()), (35, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_costs_time_and_nothing_else() {
    let server = LocalPostgres::start(database::local_settings()).await;
    let mut server = server.expect("the tests cannot do without PostgreSQL");
    let (database, queue) = (database::in_server(&server).await, Queue::start().await);
    let dead = queue.endpoint.create_queue("dead-letters", &[]).expect("the name is good");
    let dead = queue.endpoint.queue("dead-letters").filter(|queue| queue.url() == dead).expect("it was just made");
    let url = redriving_queue(&queue);
    let letters = queue.endpoint.queue("ses-events-redriving").expect("it was just made");

    let short = PipelineSettings {
        visibility_timeout: Duration::from_secs(3),
        store_timeout: Duration::from_secs(1),
        delete_budget: Duration::from_secs(1),
        ..settings()
    };
    let outage = short.visibility_timeout * 4;
    let story = Story::tell(&StorySettings::new(11, 600, datetime!(2026-10-05 08:00 UTC)));
    let mut bodies = Vec::new();
    for step in story.steps() {
        match step {
            Step::WriteLog(row) => database.write_log(&row).await,
            Step::Publish(body) => bodies.push(body),
        }
    }
    let running = Running::start(&url, database.store(), short).await;
    let (before, rest) = bodies.split_at(bodies.len() / 3);
    let (during, after) = rest.split_at(rest.len() / 2);
    before.iter().for_each(|body| _ = letters.send(body));
    eventually("it is at work", || letters.totals().deleted > 0).await;

    server.stop(StopMode::Immediate).await.expect("it stops");
    during.iter().for_each(|body| _ = letters.send(body));
    eventually("the outage is known", || running.worker.is_ready() == Err("waiting for the database")).await;
    sleep(Duration::from_secs(2)).await;
    let received = running.metrics.messages_received.get();
    sleep(outage).await;
    assert_eq!(running.metrics.messages_received.get(), received, "somebody goes on receiving");
    assert_ne!(running.metrics.messages_in_hand.get(), 0);
    server.start_again().await.expect("it starts");

    after.iter().for_each(|body| _ = letters.send(body));
    eventually("the queue is drained", || letters.counts() == Default::default()).await;
    running.stop().await;
    orphans::sweep_all(&database.store()).await.expect("the database is there");
    assert_exact(&database, &story.truth).await;
    assert!(letters.max_receive_count() <= 2, "something was received {} times", letters.max_receive_count());
    assert_eq!(dead.totals().sent, 0, "dead letters");
}

/// A queue that gives a message up when it was received three times.
fn redriving_queue(queue: &Queue) -> String {
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead-letters","maxReceiveCount":3}"#;
    queue.endpoint.create_queue("ses-events-redriving", &[("RedrivePolicy", policy)]).expect("the policy is good")
}

/// A database that fails over leaves connections on which nothing is ever heard again, not even an error.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_went_silent_are_given_up() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let line = Line::to(&database.url).await;
    let impatient = PipelineSettings { store_timeout: Duration::from_secs(1), ..settings() };
    let running = Running::start(&queue.url, database::connect(&line.url), impatient).await;
    (0..200).for_each(|n| _ = queue.handle.send(&event(&format!("mail-{n}"))));
    queue.drained().await;

    line.cut.send_replace(());
    (0..200).for_each(|n| _ = queue.handle.send(&event(&format!("mail-again-{n}"))));
    queue.drained().await;
    running.stop().await;
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 400);
    assert_eq!(queue.handle.redelivered(), 0);
}

/// A way to a database on which connections can go silent.
struct Line {
    url: String,
    cut: watch::Sender<()>,
}

impl Line {
    async fn to(database_url: &str) -> Self {
        let (front, name) = database_url.rsplit_once('/').expect("the URL names a database");
        let (user, address) = front.rsplit_once('@').expect("the URL names a user");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let here = listener.local_addr().expect("it listens");
        let (url, cut) = (format!("{user}@{here}/{name}"), watch::Sender::new(()));
        let (address, cuts) = (address.to_owned(), cut.clone());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = TcpStream::connect(&address).await.expect("the database is there");
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        // Both ends stay open, and nothing comes through any more.
                        _ = cut.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { url, cut }
    }
}

/// A worker on the embedded endpoint, and a store that does all it is asked for.
struct Live {
    metrics: Arc<Metrics>,
    worker: Arc<Worker<Sqs, MemoryStore>>,
    run: JoinHandle<Result<(), QueueError>>,
}

impl Live {
    async fn start(queue: &Queue, settings: PipelineSettings) -> Self {
        let (metrics, sqs) = (Arc::new(Metrics::default()), sqs(queue, &settings).await);
        let worker = Worker::new(sqs, MemoryStore::default(), settings, Arc::clone(&metrics), Shutdown::default());
        let run = tokio::spawn(pipeline::run(Arc::clone(&worker)));
        Self { metrics, worker, run }
    }

    async fn stop(self) -> Arc<Metrics> {
        self.worker.shutdown.stop.cancel();
        let (metrics, outcome) = self.ended().await;
        outcome.expect("nothing was fatal");
        metrics
    }

    async fn ended(self) -> (Arc<Metrics>, Result<(), QueueError>) {
        let ended = timeout(Duration::from_secs(60), self.run).await.expect("it ends");
        assert_eq!(self.metrics.check_identities(), Drift { messages: 0, events: 0 });
        assert_eq!(self.metrics.messages_in_hand.get(), 0);
        (self.metrics, ended.expect("the pipeline does not panic"))
    }
}

async fn sqs(queue: &Queue, settings: &PipelineSettings) -> Sqs {
    let settings = SqsSettings {
        queue_url: queue.url.clone(),
        access: Access::Default,
        region: None,
        endpoint_url: None,
        receive_wait: settings.receive_wait,
        visibility_timeout: settings.visibility_timeout,
    };
    Sqs::new(&settings).await.expect("the URL is good")
}
