//! From the queue into a batch. Receives while there is room; never holds more than it may.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{
    sync::{OwnedSemaphorePermit, SemaphorePermit},
    time::{Instant, sleep},
};
use tracing::warn;

use super::{Queue, QueueError, Store, Worker, batch::Batch, decode::decode, delays, watchdog::Beat};
use crate::metrics::Metrics;

/// SQS hands out at most so many messages at a time.
const MOST_PER_RECEIVE: usize = 10;
/// What a receive may take beyond its wait before its poller counts as stuck. The client's own timeout is shorter.
const STUCK_AFTER: Duration = Duration::from_secs(20);

/// A message as the queue hands it out.
pub struct Delivery {
    /// The queue's id of the message; the same each time it is handed out.
    pub id: String,
    /// What it takes to delete or hide this message, until it is handed out again.
    pub handle: String,
    pub body: String,
    /// How often it was handed out, this time included.
    pub receive_count: u32,
}

/// A message that we hold: where it came from, and the right to delete it.
pub struct Message {
    pub receipt: Receipt,
    pub origin: Arc<Origin>,
    pub body: String,
}

/// Where a message came from; recorded with everything that comes of it.
#[derive(Clone, Debug)]
pub struct Origin {
    pub queue: Arc<str>,
    pub sqs_message_id: String,
    pub receive_count: u32,
    pub received_at: OffsetDateTime,
}

/// The right to delete a message, and the duty to give it an outcome. Cannot be copied.
///
/// Counts as in hand from its making until it is settled. Dropped unsettled (a poller that was replaced), it counts as
/// released: the message comes back by itself after its visibility timeout.
pub struct Receipt {
    handle: String,
    settled: bool,
    metrics: Arc<Metrics>,
    /// Its place among the messages that may be in hand.
    _room: Option<OwnedSemaphorePermit>,
}

/// What a message came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every event in it is a row, or was one already.
    Stored,
    /// Known noise.
    Ignored,
    /// Something in it went to quarantine; its other events are stored.
    Rejected,
    /// Given back to the queue.
    Released,
}

/// What a poller remembers from one receive to the next.
pub(super) struct Pace {
    /// The last receive brought nothing.
    quiet: bool,
    delays: backon::ExponentialBackoff,
}

/// Fills one batch: waits for the first message, then takes what is there until the batch is full, old, or the queue
/// has no more. Comes back empty when there was nothing, when receiving failed, or when the worker stops.
pub(super) async fn gather<Q: Queue, S: Store>(
    worker: &Worker<Q, S>,
    beat: &Beat,
    pace: &mut Pace,
) -> Result<Batch, QueueError> {
    let mut batch = Batch::default();
    let Some(mut scout) = my_turn(worker, beat, pace).await else { return Ok(batch) };
    // During an outage nobody takes more than what he had begun to take.
    let goes_on = |batch: &Batch| !worker.shutdown.stop.is_cancelled() && (batch.is_empty() || worker.store_is_up());
    while goes_on(&batch) && batch.has_room(&worker.settings, Instant::now()) {
        let Some(mut room) = find_room(worker, beat, batch.is_empty()).await else { break };
        let wait = if batch.is_empty() { worker.settings.receive_wait } else { Duration::ZERO };
        beat.expect(wait + STUCK_AFTER);
        let deliveries = match worker.receive(room.num_permits(), wait).await {
            Ok(deliveries) => deliveries,
            Err(e) if !batch.is_empty() => {
                // What we hold goes first. If the next receive fails as well, that is the time to wait or to give up.
                warn!("cannot receive more from {}: {e}", worker.queue.name());
                break;
            }
            Err(e @ QueueError::Fatal(_)) => return Err(e),
            Err(e) => {
                back_off(worker, beat, pace, &e).await;
                break;
            }
        };
        pace.heard(deliveries.is_empty());
        if deliveries.is_empty() {
            break;
        }
        scout = None; // there is something: let the next poller look as well
        let received_at = OffsetDateTime::now_utc();
        // All in hand before the first is decoded: each has a receipt, whatever happens to its neighbours.
        let in_hand = deliveries.into_iter().map(|d| worker.take_in_hand(d, received_at, room.split(1)));
        for message in in_hand.collect::<Vec<_>>() {
            let leaves = decode(message.body.as_bytes(), received_at, &worker.settings.decode);
            worker.metrics.decoded(&leaves);
            batch.add(message, leaves, Instant::now());
        }
    }
    drop(scout);
    Ok(batch)
}

/// Waits until this poller may receive: always, except that on a quiet queue only one of the pollers keeps a long poll
/// open, and that the database must be there, also after a long wait. `None` if the worker stops meanwhile.
async fn my_turn<'w, Q: Queue, S: Store>(
    worker: &'w Worker<Q, S>,
    beat: &Beat,
    pace: &Pace,
) -> Option<Option<SemaphorePermit<'w>>> {
    beat.rest();
    let turn = async {
        let scout = match pace.quiet {
            true => worker.scout.acquire().await.ok(),
            false => None,
        };
        while !worker.store_is_up() {
            sleep(Duration::from_secs(1)).await;
            let _ = worker.ask_store().await; // it says itself when it is back
        }
        scout
    };
    worker.shutdown.stop.run_until_cancelled(turn).await
}

/// Finds room for the next receive. Waits for it with empty hands only: whoever holds messages and waits for others to
/// let go of theirs may wait for himself.
async fn find_room<Q: Queue, S: Store>(
    worker: &Worker<Q, S>,
    beat: &Beat,
    may_wait: bool,
) -> Option<OwnedSemaphorePermit> {
    let wanted = MOST_PER_RECEIVE.min(worker.settings.in_flight) as u32;
    match Arc::clone(&worker.room).try_acquire_many_owned(wanted) {
        Ok(room) => Some(room),
        Err(_) if !may_wait => None,
        Err(_) => {
            beat.rest();
            let room = Arc::clone(&worker.room).acquire_many_owned(wanted);
            worker.shutdown.stop.run_until_cancelled(room).await?.ok()
        }
    }
}

/// Waits after a failed receive, longer each time, never in step with the other pollers.
async fn back_off<Q: Queue, S: Store>(worker: &Worker<Q, S>, beat: &Beat, pace: &mut Pace, error: &QueueError) {
    let delay = pace.delays.next().unwrap_or_default();
    warn!(delay_ms = delay.as_millis() as u64, "cannot receive from {}: {error}", worker.queue.name());
    beat.rest();
    let _ = worker.shutdown.stop.run_until_cancelled(sleep(delay)).await;
}

impl<Q: Queue, S: Store> Worker<Q, S> {
    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let _open = self.open_receives.enter();
        let answer = self.queue.receive(max, wait).await;
        self.metrics.receive_answered(&answer);
        self.queue_up.store(answer.is_ok(), Ordering::Relaxed);
        if answer.is_ok() {
            self.stuck.store(0, Ordering::Relaxed);
        }
        answer
    }

    fn take_in_hand(
        &self,
        delivery: Delivery,
        received_at: OffsetDateTime,
        room: Option<OwnedSemaphorePermit>,
    ) -> Message {
        let Delivery { id, handle, body, receive_count } = delivery;
        Message {
            receipt: Receipt { handle, settled: false, metrics: Arc::clone(&self.metrics), _room: room },
            origin: Arc::new(Origin { queue: self.queue.name(), sqs_message_id: id, receive_count, received_at }),
            body,
        }
    }
}

impl Receipt {
    /// What the queue calls this delivery of the message. Secret: who has it can delete the message.
    pub fn handle(&self) -> &str {
        &self.handle
    }

    /// Counts the outcome; the receipt is not in hand any more.
    pub(super) fn settle(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.settled, true) {
            self.metrics.settled(outcome);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.settle(Outcome::Released);
    }
}

impl Pace {
    fn heard(&mut self, nothing: bool) {
        self.quiet = nothing;
        self.delays = receive_delays();
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self { quiet: true, delays: receive_delays() }
    }
}

fn receive_delays() -> backon::ExponentialBackoff {
    delays(Duration::from_millis(200), Duration::from_secs(20))
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receipt(…)")
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.id)
            .field("receive_count", &self.receive_count)
            .finish_non_exhaustive()
    }
}
