//! The whole path: receive, decode, batch, store, delete.
//!
//! Every poller runs the same loop over one shared [`Queue`] and one shared [`Store`]. These two traits are the seams
//! at which faults, time and redelivery are put under test.

pub mod ack;
pub mod batch;
pub mod decode;
pub mod receive;
pub(crate) mod spans;
pub mod store;
mod watchdog;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use backon::BackoffBuilder as _;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{error, info, warn};

use crate::metrics::{Metrics, conventions::OfQueue};
use ack::Deleted;
use batch::{Arrival, Batch, Quarantined};
use decode::DecodeSettings;
use receive::{Delivery, Receipt};
use store::{Committed, Stored};
use watchdog::{Beat, Gate};

/// Where messages come from. A message that was received stays hidden from other receivers for the queue's visibility
/// timeout, then it comes back; it is gone only when it was deleted. It may come more than once anyhow.
pub trait Queue: Send + Sync + 'static {
    /// The queue's name, as it is recorded with each event.
    fn name(&self) -> Arc<str>;

    /// Receives up to `max` (1 to 10) messages and hides them; waits up to `wait` (at most 20 s) for the first.
    /// Empty is no error: it may also mean that too many messages are in flight.
    fn receive(&self, max: usize, wait: Duration) -> impl Future<Output = Result<Vec<Delivery>, QueueError>> + Send;

    /// Deletes messages and says which of them it could not delete. Deleting twice is no error.
    /// A message that it could not delete may be gone all the same: the answer may have been lost.
    fn delete(&self, committed: Committed) -> impl Future<Output = Deleted> + Send;

    /// Hides messages for `timeout` from now on; zero gives them back at once.
    /// Messages that are not in flight any more are passed over.
    fn change_visibility(
        &self,
        receipts: &[&Receipt],
        timeout: Duration,
    ) -> impl Future<Output = Result<(), QueueError>> + Send;
}

/// Where events go.
pub trait Store: Send + Sync + 'static {
    /// Stores all of it or nothing, and answers with one verdict per arrival, in their order.
    /// Storing again changes nothing. An error does not mean that nothing was stored: the answer may have been lost.
    fn insert(
        &self,
        arrivals: &[Arrival],
        quarantined: &[Quarantined],
    ) -> impl Future<Output = Result<Vec<Verdict>, StoreError>> + Send;

    /// Answers if it could store now.
    fn ping(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What became of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A new row.
    Inserted,
    /// Its row was there already.
    Duplicate,
    /// Its row, or its mail, was let go: it is not stored again.
    Expired,
    /// Parked until its mail's log row appears.
    Orphaned,
    /// Refused by the database, and quarantined for it.
    Quarantined,
}

/// What a failed call to the queue means to us.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// Try again later.
    #[error("{0}")]
    Transient(String),
    /// Nothing will change before somebody mends it: no permission, no such queue, expired credentials.
    #[error("{0}")]
    Fatal(String),
}

impl QueueError {
    /// One word, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Transient(_) => "transient",
            Self::Fatal(_) => "fatal",
        }
    }
}

/// What a failed insert means to us.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Try the same again later.
    #[error("cannot reach the database or it is busy")]
    Transient(#[source] anyhow::Error),
    /// The data itself is refused: it will be refused again. `code` is the SQLSTATE.
    #[error("the database refuses the data ({code})")]
    Refused {
        code: String,
        #[source]
        source: anyhow::Error,
    },
}

/// Sizes and times of the path. Cross-checked by [`crate::cli`].
#[derive(Clone, Debug)]
pub struct PipelineSettings {
    pub pollers: usize,
    /// Events per transaction; a batch is closed by the message that reaches it.
    pub batch_size: usize,
    /// How long the oldest message may wait for its batch.
    pub batch_age: Duration,
    /// Messages in hand at the same time, all pollers together.
    pub in_flight: usize,
    pub receive_wait: Duration,
    pub visibility_timeout: Duration,
    /// One attempt to store a batch.
    pub store_timeout: Duration,
    /// All attempts to delete a batch.
    pub delete_budget: Duration,
    pub decode: DecodeSettings,
}

/// How a worker is told to leave: first stop receiving, then (at the end of the grace period) stop trying to store.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    pub stop: CancellationToken,
    pub give_up: CancellationToken,
}

impl Shutdown {
    /// For one of several queues: what stops it stops no other.
    pub fn of_one_queue(&self) -> Self {
        Self { stop: self.stop.child_token(), give_up: self.give_up.clone() }
    }
}

/// What the pollers share.
pub struct Worker<Q, S> {
    pub queue: Q,
    pub store: S,
    pub settings: PipelineSettings,
    pub metrics: Arc<Metrics>,
    pub shutdown: Shutdown,
    /// On an empty queue one poller scouts; the others wait here for their turn.
    scout: Semaphore,
    /// One permit per message that we may hold.
    room: Arc<Semaphore>,
    /// Whether the last attempt to store came through, or the store has answered since.
    store_up: AtomicBool,
    /// Whether the last receive was answered.
    queue_up: AtomicBool,
    open_receives: Gate,
    /// Pollers replaced since the last receive that was answered.
    stuck: AtomicU32,
    counts: OfQueue,
}

impl<Q: Queue, S: Store> Worker<Q, S> {
    pub fn new(queue: Q, store: S, settings: PipelineSettings, metrics: Arc<Metrics>, shutdown: Shutdown) -> Arc<Self> {
        metrics.tally.serves(queue.name());
        Arc::new(Self {
            scout: Semaphore::new(1),
            room: Arc::new(Semaphore::new(settings.in_flight)),
            store_up: AtomicBool::new(true),
            queue_up: AtomicBool::new(true),
            open_receives: Gate::default(),
            stuck: AtomicU32::new(0),
            counts: metrics.conventions.of_queue(queue.name()),
            queue,
            store,
            settings,
            metrics,
            shutdown,
        })
    }

    /// Whether the pollers move on. Two that got stuck with no answered receive between them are no accident.
    pub fn is_alive(&self) -> bool {
        self.stuck.load(Ordering::Relaxed) < 2
    }

    /// `Err` says why no messages are taken at the moment.
    ///
    /// # Errors
    /// If the worker is stopping, or waits for the database, or the queue does not answer.
    pub fn is_ready(&self) -> Result<(), &'static str> {
        if self.shutdown.stop.is_cancelled() {
            Err("stopping")
        } else if !self.store_is_up() {
            Err("waiting for the database")
        } else if !self.queue_up.load(Ordering::Relaxed) {
            Err("the queue does not answer")
        } else {
            Ok(())
        }
    }

    fn store_is_up(&self) -> bool {
        self.store_up.load(Ordering::Relaxed)
    }

    async fn ask_store(&self) -> anyhow::Result<()> {
        timeout(self.settings.store_timeout, self.store.ping()).await.context("no answer in time")??;
        self.store_came_through();
        Ok(())
    }

    /// On a quiet queue nothing else would notice that the database is gone, before the next message.
    async fn watch_store(&self) {
        loop {
            sleep(ASK_STORE_EVERY).await;
            // One unanswered question may be an old connection's. Two are an outage, as for a batch.
            if self.ask_store().await.is_err()
                && let Err(e) = self.ask_store().await
            {
                self.store_is_away(&e);
            }
        }
    }

    fn store_is_away(&self, error: &anyhow::Error) {
        if self.store_up.swap(false, Ordering::Relaxed) {
            warn!("cannot store, holding what is in hand until the database is back: {error:#}");
        }
    }

    fn store_came_through(&self) {
        if !self.store_up.swap(true, Ordering::Relaxed) {
            info!("the database is back");
        }
    }
}

/// How often to ask whether the database is there.
const ASK_STORE_EVERY: Duration = Duration::from_secs(5);

/// Runs all pollers until they are told to stop and have finished what they hold.
///
/// # Errors
/// The first [`QueueError::Fatal`]: the other pollers then finish what they hold and stop as well.
pub async fn run<Q: Queue, S: Store>(worker: Arc<Worker<Q, S>>) -> Result<(), QueueError> {
    info!(pollers = worker.settings.pollers, "receiving from {}", worker.queue.name());
    let mut pollers = JoinSet::new();
    for _ in 0..worker.settings.pollers {
        pollers.spawn(watchdog::keep_polling(Arc::clone(&worker)));
    }
    let _watching = AbortOnDropHandle::new(tokio::spawn({
        let worker = Arc::clone(&worker);
        async move { worker.watch_store().await }
    }));
    let mut outcome = Ok(());
    while let Some(finished) = pollers.join_next().await {
        if let Err(e) = finished.unwrap_or_else(|e| Err(QueueError::Fatal(format!("a poller broke down: {e}")))) {
            error!("{e}: stopping");
            worker.shutdown.stop.cancel();
            outcome = Err(e);
        }
    }
    outcome
}

/// One poller. The whole product in one loop.
async fn poll<Q: Queue, S: Store>(worker: &Worker<Q, S>, beat: &Beat) -> Result<(), QueueError> {
    let mut pace = receive::Pace::default();
    while !worker.shutdown.stop.is_cancelled() {
        let batch = receive::gather(worker, beat, &mut pace).await?;
        if !batch.is_empty() {
            settle(worker, beat, batch).await?;
        }
    }
    Ok(())
}

/// One poller, for a queue that comes to an end: until it has no more to give, or the worker is told to stop.
///
/// # Errors
/// The first [`QueueError::Fatal`].
pub async fn drain<Q: Queue, S: Store>(worker: &Worker<Q, S>) -> Result<(), QueueError> {
    let (beat, mut pace) = (Beat::new(), receive::Pace::default());
    loop {
        let batch = receive::gather(worker, &beat, &mut pace).await?;
        if batch.is_empty() {
            return Ok(());
        }
        settle(worker, &beat, batch).await?;
    }
}

async fn settle<Q: Queue, S: Store>(worker: &Worker<Q, S>, beat: &Beat, batch: Batch) -> Result<(), QueueError> {
    let process = batch.span.clone();
    match store::commit(worker, beat, batch).await {
        Stored::Committed(committed) => ack::delete(worker, beat, committed, &process).await?,
        Stored::GaveUp(batch) => ack::release(worker, beat, batch).await,
    }
    Ok(())
}

/// Ever longer delays, never in step with the other pollers', without end.
fn delays(shortest: Duration, longest: Duration) -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::default()
        .with_min_delay(shortest)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}
