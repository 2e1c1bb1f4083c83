//! What the pipeline may rely on with every queue, asked of the double in memory, of the embedded endpoint and of an
//! emulator that others wrote. The last two are asked through the real SDK.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use ses_ledger::{
    local::sqs_endpoint::Action,
    metrics::Metrics,
    pipeline::{
        self, PipelineSettings, Queue, QueueError, Shutdown, Worker,
        ack::Deleted,
        receive::{Delivery, Receipt},
        store::Committed,
    },
    sqs::{Access, Sqs, SqsSettings},
};
use time::OffsetDateTime;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    doubles::{MemoryQueue, MemoryStore},
    emulator, worker,
};

/// A queue of its own for each question.
trait UnderTest: Sized {
    type Queue: Queue;

    async fn make() -> Self;
    /// A receiver that hides messages for so many seconds.
    async fn receiver(&self, visibility: u64) -> Self::Queue;
    async fn send(&self, body: &str);
}

macro_rules! ask_every_queue {
    ($($question:ident)*) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $question() { super::$question::<super::Memory>().await })*
        }
        mod embedded {
            $(#[tokio::test]
            async fn $question() { super::$question::<super::Embedded>().await })*
        }
        mod emulated {
            $(#[tokio::test]
            async fn $question() { super::$question::<super::Emulated>().await })*
        }
    };
}

ask_every_queue! {
    a_received_message_is_hidden
    it_comes_back_after_its_timeout_and_says_that_it_was_there_before
    it_says_when_it_was_sent
    what_is_deleted_stays_away
    deleting_twice_is_no_error
    one_delete_takes_more_than_one_request_holds
    a_receive_brings_as_many_as_it_asked_for_and_never_more_than_ten
    a_long_poll_ends_when_a_message_arrives
    a_long_poll_on_an_empty_queue_waits_and_is_no_error
    a_long_poll_ends_when_a_hidden_message_comes_back
    visibility_zero_gives_back_at_once
    extending_keeps_messages_hidden
    an_old_receipt_deletes_nothing
    an_old_receipt_does_not_show_what_a_newer_one_hides
    hiding_what_is_gone_is_passed_over
}

const NO_WAIT: Duration = Duration::ZERO;
/// Long enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(15);
/// Hidden for longer than any test takes.
const LONG: u64 = 60;

async fn a_received_message_is_hidden<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(LONG).await;
    bench.send("once").await;
    let message = one(&queue).await;
    assert_eq!((message.body.as_str(), message.receive_count), ("once", 1));
    assert!(receive(&queue, NO_WAIT).await.is_empty());
}

async fn it_comes_back_after_its_timeout_and_says_that_it_was_there_before<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(1).await;
    bench.send("twice").await;
    let (first, received) = (one(&queue).await, Instant::now());
    let second = one(&queue).await;
    assert!(received.elapsed() > Duration::from_millis(500), "it came back too early");
    assert_eq!((second.id, second.body.as_str(), second.receive_count), (first.id, "twice", 2));
    assert_ne!(second.handle, first.handle);
}

async fn it_says_when_it_was_sent<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(1).await;
    // To the millisecond, by the clock of this machine.
    let before = OffsetDateTime::now_utc() - Duration::from_millis(1);
    bench.send("dated").await;
    let after = OffsetDateTime::now_utc() + Duration::from_millis(1);
    let sent_at = one(&queue).await.sent_at.expect("it says when");
    assert!((before..=after).contains(&sent_at), "{sent_at} is not from {before} to {after}");
    let again = one(&queue).await;
    assert_eq!((again.receive_count, again.sent_at), (2, Some(sent_at)), "it was sent once");
}

async fn what_is_deleted_stays_away<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(1).await;
    bench.send("to delete").await;
    delete(&queue, committed(vec![one(&queue).await]).await).await;
    assert!(receive(&queue, Duration::from_secs(2)).await.is_empty());
}

async fn deleting_twice_is_no_error<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(LONG).await;
    bench.send("to delete").await;
    let message = one(&queue).await;
    delete(&queue, committed(vec![copy(&message)]).await).await;
    delete(&queue, committed(vec![message]).await).await;
}

async fn one_delete_takes_more_than_one_request_holds<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(LONG).await;
    let committed = committed(send_and_receive(&bench, &queue, 25).await).await;
    hide(&queue, &committed, 2).await;
    delete(&queue, committed).await;
    assert!(receive(&queue, Duration::from_secs(3)).await.is_empty(), "something was not deleted");
}

async fn a_receive_brings_as_many_as_it_asked_for_and_never_more_than_ten<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(LONG).await;
    for n in 0..14 {
        bench.send(&format!("message {n}")).await;
    }
    let three = queue.receive(3, PATIENCE).await.expect("the queue is there");
    assert!((1..=3).contains(&three.len()), "{} instead of three", three.len());
    let mut seen: BTreeSet<String> = three.into_iter().map(|message| message.body).collect();
    while seen.len() < 14 {
        let more = receive(&queue, PATIENCE).await;
        assert!((1..=10).contains(&more.len()), "{} at a time", more.len());
        seen.extend(more.into_iter().map(|message| message.body));
    }
}

async fn a_long_poll_ends_when_a_message_arrives<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(LONG).await;
    let start = Instant::now();
    let late = async {
        sleep(Duration::from_millis(300)).await;
        bench.send("late").await;
    };
    let (messages, ()) = tokio::join!(receive(&queue, Duration::from_secs(20)), late);
    assert_eq!(messages.len(), 1);
    assert!(start.elapsed() < Duration::from_secs(10), "it waited for {:?}", start.elapsed());
}

async fn a_long_poll_on_an_empty_queue_waits_and_is_no_error<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(LONG).await;
    let start = Instant::now();
    assert!(receive(&queue, Duration::from_secs(1)).await.is_empty());
    assert!(start.elapsed() > Duration::from_millis(900), "it waited for {:?} only", start.elapsed());
}

async fn a_long_poll_ends_when_a_hidden_message_comes_back<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(1).await;
    bench.send("again").await;
    let (_, start) = (one(&queue).await, Instant::now());
    assert_eq!(receive(&queue, Duration::from_secs(20)).await.len(), 1);
    assert!(start.elapsed() < Duration::from_secs(12), "it waited for {:?}", start.elapsed());
}

async fn visibility_zero_gives_back_at_once<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(LONG).await;
    let messages = send_and_receive(&bench, &queue, 12).await;
    hide(&queue, &committed(messages).await, 0).await;
    let mut again = BTreeSet::new();
    while again.len() < 12 {
        let messages = receive(&queue, PATIENCE).await;
        assert!(!messages.is_empty(), "only {} of 12 came back", again.len());
        assert!(messages.iter().all(|message| message.receive_count == 2));
        again.extend(messages.into_iter().map(|message| message.id));
    }
}

async fn extending_keeps_messages_hidden<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(3).await;
    let messages = send_and_receive(&bench, &queue, 12).await;
    hide(&queue, &committed(messages).await, LONG).await;
    assert!(receive(&queue, Duration::from_secs(4)).await.is_empty(), "something came back");
}

/// What AWS promises is weaker: "the request will succeed, but the message might not be deleted". All three keep it.
async fn an_old_receipt_deletes_nothing<T: UnderTest>() {
    let bench = T::make().await;
    let (hasty, patient) = (bench.receiver(1).await, bench.receiver(LONG).await);
    bench.send("twice").await;
    let first = one(&hasty).await;
    let second = one(&patient).await;
    assert_eq!(second.receive_count, 2);
    delete(&patient, committed(vec![first]).await).await;
    hide(&patient, &committed(vec![second]).await, 0).await;
    assert_eq!(one(&patient).await.receive_count, 3);
}

async fn an_old_receipt_does_not_show_what_a_newer_one_hides<T: UnderTest>() {
    let bench = T::make().await;
    let (hasty, patient) = (bench.receiver(1).await, bench.receiver(LONG).await);
    bench.send("twice").await;
    let first = one(&hasty).await;
    assert_eq!(one(&patient).await.receive_count, 2);
    hide(&patient, &committed(vec![first]).await, 0).await;
    assert!(receive(&patient, Duration::from_secs(1)).await.is_empty());
}

async fn hiding_what_is_gone_is_passed_over<T: UnderTest>() {
    let bench = T::make().await;
    let queue = bench.receiver(LONG).await;
    let mut messages = send_and_receive(&bench, &queue, 3).await;
    let gone = committed(vec![copy(&messages[0])]).await;
    delete(&queue, committed(vec![messages.remove(0)]).await).await;
    hide(&queue, &Committed::join([gone, committed(messages).await]), 0).await;
    assert!(!receive(&queue, PATIENCE).await.is_empty(), "the other two were not given back");
}

#[tokio::test(start_paused = true)]
async fn the_double_leaves_what_it_could_not_delete() {
    let bench = Memory::make().await;
    bench.0.fail_entries((0..12).map(|n| n % 5 == 3));
    leaves_what_it_could_not_delete(&bench, 2).await;
}

#[tokio::test]
async fn the_sdk_tells_what_the_endpoint_could_not_delete() {
    let bench = Embedded::make().await;
    bench.0.endpoint.faults(|faults| _ = faults.fail_entries(Action::DeleteMessageBatch, 1.0));
    leaves_what_it_could_not_delete(&bench, 12).await;
}

/// Twelve are to be deleted, some cannot be: exactly those are left, come back, and can be deleted then.
async fn leaves_what_it_could_not_delete<T: UnderTest>(bench: &T, expected: usize) {
    let queue = bench.receiver(LONG).await;
    let messages = send_and_receive(bench, &queue, 12).await;
    let Deleted { left, error } = queue.delete(committed(messages).await).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(left.receipts().len(), expected);
    hide(&queue, &left, 0).await;
    let mut back = BTreeSet::new();
    while back.len() < expected {
        let messages = receive(&queue, PATIENCE).await;
        assert!(!messages.is_empty(), "only {} of {expected} came back", back.len());
        back.extend(messages.into_iter().map(|message| message.id));
    }
    assert!(receive(&queue, Duration::from_secs(1)).await.is_empty());
}

#[tokio::test]
async fn only_the_entries_that_failed_are_left() {
    let bench = Embedded::make().await;
    let queue = bench.receiver(LONG).await;
    let messages = send_and_receive(&bench, &queue, 60).await;
    bench.0.endpoint.faults(|faults| _ = faults.seed(5).fail_entries(Action::DeleteMessageBatch, 0.3));
    let Deleted { left, .. } = queue.delete(committed(messages).await).await;
    let held = bench.0.handle.counts().in_flight;
    assert!((1..60).contains(&held), "{held} of 60 failed");
    assert_eq!(left.receipts().len(), held);
    bench.0.endpoint.faults(|faults| _ = faults.clear());
    delete(&queue, left).await;
    assert_eq!(bench.0.handle.counts().in_flight, 0);
}

#[tokio::test]
async fn who_sends_learns_the_ids_in_the_order_of_the_bodies() {
    let bench = Embedded::make().await;
    let queue = bench.receiver(LONG).await;
    let bodies: Vec<String> = (0..25).map(|n| format!("message {n}")).collect();
    let ids = queue.send(&bodies).await.expect("the queue takes them");
    let mut received = Vec::new();
    while received.len() < bodies.len() {
        received.extend(
            receive(&queue, Duration::from_secs(1)).await.into_iter().map(|message| (message.id, message.body)),
        );
    }
    let sent: Vec<(String, String)> = ids.into_iter().zip(bodies).collect();
    received.sort_by_key(|message| sent.iter().position(|other| other == message));
    assert_eq!(received, sent);
}

#[tokio::test]
async fn the_probe_is_content_with_a_queue_that_works() {
    let (embedded, emulated) = (Embedded::make().await, Emulated::make().await);
    embedded.receiver(LONG).await.probe().await.expect("the endpoint lets us in");
    emulated.receiver(LONG).await.probe().await.expect("the emulator lets us in");
}

/// The SDK's stalled-stream protection has ended quiet long polls.
#[tokio::test]
async fn the_longest_long_poll_comes_back_empty_and_not_as_an_error() {
    let bench = Embedded::make().await;
    let queue = bench.receiver(LONG).await;
    let start = Instant::now();
    assert!(receive(&queue, Duration::from_secs(20)).await.is_empty());
    assert!(start.elapsed() >= Duration::from_millis(19_900), "it waited for {:?} only", start.elapsed());
}

async fn receive<Q: Queue>(queue: &Q, wait: Duration) -> Vec<Delivery> {
    queue.receive(10, wait).await.expect("the queue is there")
}

/// The one message that is there, or will be soon.
async fn one<Q: Queue>(queue: &Q) -> Delivery {
    let mut messages = receive(queue, PATIENCE).await;
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

async fn send_and_receive<T: UnderTest>(bench: &T, queue: &T::Queue, count: usize) -> Vec<Delivery> {
    for n in 0..count {
        bench.send(&format!("message {n}")).await;
    }
    let mut messages = Vec::new();
    while messages.len() < count {
        let more = receive(queue, PATIENCE).await;
        assert!(!more.is_empty(), "only {} of {count} messages are there", messages.len());
        messages.extend(more);
    }
    messages
}

async fn delete<Q: Queue>(queue: &Q, committed: Committed) {
    let Deleted { left, error } = queue.delete(committed).await;
    assert!(left.is_empty() && error.is_none(), "{left:?} {error:?}");
}

async fn hide<Q: Queue>(queue: &Q, committed: &Committed, seconds: u64) {
    let receipts: Vec<&Receipt> = committed.receipts().iter().collect();
    queue.change_visibility(&receipts, Duration::from_secs(seconds)).await.expect("the queue is there");
}

fn copy(message: &Delivery) -> Delivery {
    let (id, handle, body) = (message.id.clone(), message.handle.clone(), message.body.clone());
    Delivery { id, handle, body, receive_count: message.receive_count, sent_at: message.sent_at }
}

/// Only the pipeline makes a [`Committed`], by storing. So it stores these messages, for a queue that does nothing but
/// hand them in and take the `Committed` out.
async fn committed(deliveries: Vec<Delivery>) -> Committed {
    let (taken_out, taken) = oneshot::channel();
    let shutdown = Shutdown::default();
    let settings = PipelineSettings {
        pollers: 1,
        batch_size: deliveries.len(),
        batch_age: Duration::from_secs(3600),
        ..worker::settings()
    };
    let till = Till {
        deliveries: Mutex::new(deliveries),
        taken_out: Mutex::new(Some(taken_out)),
        stop: shutdown.stop.clone(),
    };
    let worker = Worker::new(till, MemoryStore::default(), settings, Arc::new(Metrics::default()), shutdown.clone());
    let run = tokio::spawn(pipeline::run(worker));
    let committed = taken.await.expect("the pipeline deletes what is stored");
    shutdown.stop.cancel();
    run.await.expect("the pipeline does not panic").expect("nothing is fatal");
    committed
}

struct Till {
    deliveries: Mutex<Vec<Delivery>>,
    taken_out: Mutex<Option<oneshot::Sender<Committed>>>,
    stop: CancellationToken,
}

impl Queue for Till {
    fn name(&self) -> Arc<str> {
        "till".into()
    }

    async fn receive(&self, max: usize, _: Duration) -> Result<Vec<Delivery>, QueueError> {
        let some: Vec<Delivery> = {
            let mut deliveries = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
            let count = max.min(deliveries.len());
            deliveries.drain(..count).collect()
        };
        if some.is_empty() {
            self.stop.cancelled().await;
        }
        Ok(some)
    }

    async fn delete(&self, committed: Committed) -> Deleted {
        let taken_out = self.taken_out.lock().unwrap_or_else(PoisonError::into_inner).take();
        let taken_out = taken_out.expect("all messages are of one batch");
        taken_out.send(committed).expect("somebody waits for it");
        Deleted { left: Committed::join([]), error: None }
    }

    async fn change_visibility(&self, _: &[&Receipt], _: Duration) -> Result<(), QueueError> {
        Ok(())
    }
}

struct Memory(MemoryQueue);

impl UnderTest for Memory {
    type Queue = MemoryQueue;

    async fn make() -> Self {
        Self(MemoryQueue::new(Duration::from_secs(LONG), &MemoryStore::default()))
    }

    async fn receiver(&self, visibility: u64) -> MemoryQueue {
        self.0.with_visibility(Duration::from_secs(visibility))
    }

    async fn send(&self, body: &str) {
        self.0.send(body);
    }
}

struct Embedded(worker::Queue);

impl UnderTest for Embedded {
    type Queue = Sqs;

    async fn make() -> Self {
        Self(worker::Queue::start().await)
    }

    async fn receiver(&self, visibility: u64) -> Sqs {
        sqs(&self.0.url, visibility).await
    }

    async fn send(&self, body: &str) {
        self.0.handle.send(body);
    }
}

struct Emulated {
    client: aws_sdk_sqs::Client,
    url: String,
}

impl UnderTest for Emulated {
    type Queue = Sqs;

    async fn make() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("contract-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (client, url) = emulator::queue(&name).await;
        Self { client, url }
    }

    async fn receiver(&self, visibility: u64) -> Sqs {
        sqs(&self.url, visibility).await
    }

    async fn send(&self, body: &str) {
        let request = self.client.send_message().queue_url(&self.url).message_body(body);
        request.send().await.expect("the emulator takes messages");
    }
}

async fn sqs(url: &str, visibility: u64) -> Sqs {
    let settings = SqsSettings {
        queue_url: url.to_owned(),
        access: Access::Default,
        region: None,
        endpoint_url: None,
        receive_wait: Duration::from_secs(20),
        visibility_timeout: Duration::from_secs(visibility),
    };
    Sqs::new(&settings).await.expect("the URL is good")
}
