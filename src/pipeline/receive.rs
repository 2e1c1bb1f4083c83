//! From the queue into a batch. Receives while there is room; never holds more than it may.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::{
    sync::{OwnedSemaphorePermit, SemaphorePermit},
    time::{Instant, sleep},
};
use tracing::warn;

use super::{Queue, QueueError, Store, Worker, batch::Batch, decode::decode, delays, spans, watchdog::Beat};
use crate::metrics::Metrics;

/// SQS hands out at most so many messages at a time.
const MOST_PER_RECEIVE: usize = 10;
/// A poller makes at most so many receives at the same time. A queue in the same region takes 10 to 15 ms for each, whatever
/// else goes on: one after the other they would be the limit.
const MOST_RECEIVES: usize = 6;
/// Bytes of a body that count as one message in hand, so that what is held is limited whatever the bodies' size.
const PLACE: usize = 2048;
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
    /// When it was sent to the queue, if the queue says so.
    pub sent_at: Option<OffsetDateTime>,
}

impl Delivery {
    /// Reads a time as SQS writes it: milliseconds since 1970.
    pub(crate) fn time(millis: &str) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp_nanos(millis.parse::<i128>().ok()?.checked_mul(1_000_000)?).ok()
    }
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
    room: Option<OwnedSemaphorePermit>,
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

/// What came of one receive, or of several at once.
struct Received {
    messages: Vec<Message>,
    /// Why some of them failed.
    failure: Option<QueueError>,
}

/// What a poller remembers from one receive to the next.
pub(super) struct Pace {
    /// The last receive brought nothing.
    quiet: bool,
    /// How many receives to make at once: more, as long as none comes back empty.
    receives: usize,
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
    let mut room = None;
    // During an outage nobody takes more than what he had begun to take.
    while !worker.shutdown.stop.is_cancelled() && (batch.is_empty() || worker.store_is_up()) {
        let missing = batch.missing(&worker.settings, Instant::now());
        let Some(places) = find_room(worker, beat, &mut room, missing, batch.is_empty()).await else { break };
        let wait = if batch.is_empty() { worker.settings.receive_wait } else { Duration::ZERO };
        beat.expect(wait + STUCK_AFTER);
        let times = pace.times(&batch, missing, places.num_permits(), worker.per_receive());
        let Received { messages, failure } = worker.receive(times, wait, places, pace).await;
        let nothing = messages.is_empty();
        if !nothing {
            scout = None; // there is something: let the next poller look as well
            if batch.is_empty() {
                batch.span = spans::process(&worker.queue.name());
            }
            worker.take_in(messages, places, &mut batch);
        }
        match failure {
            None if nothing => break,
            None => {}
            // What we hold goes first. If the next receive fails as well, that is the time to wait or to give up.
            Some(e) if !batch.is_empty() => {
                warn!("cannot receive more from {}: {e}", worker.queue.name());
                break;
            }
            Some(e @ QueueError::Fatal(_)) => return Err(e),
            Some(e) => {
                back_off(worker, beat, pace, &e).await;
                break;
            }
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

/// Finds room for the next receive, unless the batch misses nothing. Waits for it with empty hands only, then for a fair
/// share: whoever holds messages and waits for others to let go of theirs may wait for himself.
async fn find_room<'r, Q: Queue, S: Store>(
    worker: &Worker<Q, S>,
    beat: &Beat,
    room: &'r mut Option<OwnedSemaphorePermit>,
    missing: usize,
    may_wait: bool,
) -> Option<&'r mut OwnedSemaphorePermit> {
    let (least, held) = (worker.per_receive(), room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
    if missing == 0 {
        return None;
    }
    if held < least {
        let free = Arc::clone(&worker.room);
        let found = if may_wait {
            beat.rest();
            let share = least.max(worker.settings.in_flight / worker.settings.pollers);
            worker.shutdown.stop.run_until_cancelled(free.acquire_many_owned(share as u32)).await?.ok()?
        } else {
            free.try_acquire_many_owned(least as u32).ok()?
        };
        match room {
            Some(room) => room.merge(found),
            None => *room = Some(found),
        }
    }
    room.as_mut()
}

/// Waits after a failed receive, longer each time, never in step with the other pollers.
async fn back_off<Q: Queue, S: Store>(worker: &Worker<Q, S>, beat: &Beat, pace: &mut Pace, error: &QueueError) {
    let delay = pace.delays.next().unwrap_or_default();
    warn!(delay_ms = delay.as_millis() as u64, "cannot receive from {}: {error}", worker.queue.name());
    beat.rest();
    let _ = worker.shutdown.stop.run_until_cancelled(sleep(delay)).await;
}

impl<Q: Queue, S: Store> Worker<Q, S> {
    /// What one receive can take.
    fn per_receive(&self) -> usize {
        MOST_PER_RECEIVE.min(self.settings.in_flight)
    }

    /// Receives so many times at once, and remembers what that says about the queue.
    async fn receive(
        &self,
        times: usize,
        wait: Duration,
        room: &mut OwnedSemaphorePermit,
        pace: &mut Pace,
    ) -> Received {
        let receives = (0..times).filter_map(|_| Some(self.receive_once(wait, room.split(self.per_receive())?)));
        let answers = join_all(receives.collect::<Vec<_>>()).await;
        let mut received = Received { messages: Vec::new(), failure: None };
        let mut full = true;
        for (answer, rest) in answers {
            room.merge(rest);
            match answer {
                Ok(messages) => {
                    full &= !messages.is_empty();
                    received.messages.extend(messages);
                }
                Err(e @ QueueError::Fatal(_)) => received.failure = Some(e),
                Err(e) => _ = received.failure.get_or_insert(e),
            }
        }
        if received.failure.is_none() {
            pace.heard(received.messages.is_empty(), full);
        }
        received
    }

    /// Every message has its receipt as soon as it is there: the poller may be replaced while another receive hangs.
    /// Comes back with the room that is left.
    async fn receive_once(
        &self,
        wait: Duration,
        mut room: OwnedSemaphorePermit,
    ) -> (Result<Vec<Message>, QueueError>, OwnedSemaphorePermit) {
        let _open = self.open_receives.enter();
        let answer = self.queue.receive(self.per_receive(), wait).await;
        self.metrics.receive_answered(&answer);
        if let Ok(deliveries) = &answer {
            let oldest = deliveries.iter().filter_map(|delivery| delivery.sent_at).min();
            self.metrics.tally.received(&self.queue.name(), deliveries.len(), oldest);
        }
        self.queue_up.store(answer.is_ok(), Ordering::Relaxed);
        if let Ok(deliveries) = &answer {
            self.stuck.store(0, Ordering::Relaxed);
            self.counts.consumed.inc_by(deliveries.len() as u64);
        }
        let received_at = OffsetDateTime::now_utc();
        let in_hand =
            |d: Vec<Delivery>| d.into_iter().map(|d| self.take_in_hand(d, received_at, room.split(1))).collect();
        (answer.map(in_hand), room)
    }

    fn take_in_hand(
        &self,
        delivery: Delivery,
        received_at: OffsetDateTime,
        room: Option<OwnedSemaphorePermit>,
    ) -> Message {
        let Delivery { id, handle, body, receive_count, .. } = delivery;
        Message {
            receipt: Receipt { handle, settled: false, metrics: Arc::clone(&self.metrics), room },
            origin: Arc::new(Origin { queue: self.queue.name(), sqs_message_id: id, receive_count, received_at }),
            body,
        }
    }

    /// Decodes the messages into the batch. A long one takes the room of several, as far as there is any.
    fn take_in(&self, messages: Vec<Message>, room: &mut OwnedSemaphorePermit, batch: &mut Batch) {
        for mut message in messages {
            let more = message.body.len() / PLACE;
            let missing = more.saturating_sub(room.num_permits()).min(self.room.available_permits());
            if let Ok(found) = Arc::clone(&self.room).try_acquire_many_owned(missing as u32) {
                room.merge(found);
            }
            if let (Some(held), Some(more)) = (&mut message.receipt.room, room.split(more.min(room.num_permits()))) {
                held.merge(more);
            }
            let leaves = decode(message.body.as_bytes(), message.origin.received_at, &self.settings.decode);
            self.metrics.decoded(&leaves);
            batch.add(message, leaves, Instant::now());
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
    /// How many receives to make at once. The first of a batch is alone, for it may have to wait for its message.
    fn times(&self, batch: &Batch, missing: usize, places: usize, per_receive: usize) -> usize {
        if batch.is_empty() { 1 } else { self.receives.min(missing.div_ceil(per_receive)).min(places / per_receive) }
    }

    /// `full`: no receive came back empty.
    fn heard(&mut self, nothing: bool, full: bool) {
        self.quiet = nothing;
        self.receives = if full { (self.receives * 2).min(MOST_RECEIVES) } else { 1 };
        self.delays = receive_delays();
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self { quiet: true, receives: 1, delays: receive_delays() }
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
