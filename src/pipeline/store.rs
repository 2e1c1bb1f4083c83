//! A batch becomes [`Committed`]: the only thing that may be deleted.
//!
//! While the database is away the batch is held and kept invisible. Data that it refuses is found by splitting.

use std::{convert::Infallible, fmt, ops::Range, sync::Arc, time::Duration};

use tokio::time::{Instant, error::Elapsed, sleep, sleep_until, timeout};
use tracing::{Instrument as _, debug, error, info_span, warn};

use super::{
    Queue, Store, StoreError, Verdict, Worker,
    ack::requests_for,
    batch::{Arrival, Batch, Quarantined, Stage},
    delays,
    receive::{Outcome, Receipt},
    spans,
    watchdog::Beat,
};

/// The most events, and the most rejects, to store at once. A body of 1 MiB can name 140,000 recipients: all of them in one
/// statement would take longer than a statement may, and be tried again for ever.
const MOST_EVENTS: usize = 10_000;
const MOST_REJECTS: usize = 1_000;

/// Messages whose outcome is committed. Made here only.
pub struct Committed {
    receipts: Vec<Receipt>,
}

/// How storing ended.
pub(super) enum Stored {
    Committed(Committed),
    /// The grace period is over before the database took all of it: none of it may be deleted.
    GaveUp(Batch),
}

impl Committed {
    pub fn receipts(&self) -> &[Receipt] {
        &self.receipts
    }

    pub fn is_empty(&self) -> bool {
        self.receipts.is_empty()
    }

    /// Cuts it into pieces of at most `size` messages.
    pub fn into_chunks(self, size: usize) -> Vec<Self> {
        let mut rest = self.receipts.into_iter();
        std::iter::from_fn(|| Some(rest.by_ref().take(size).collect::<Vec<_>>()).filter(|piece| !piece.is_empty()))
            .map(|receipts| Self { receipts })
            .collect()
    }

    /// Keeps only the messages at these positions.
    pub fn keep(self, positions: &[usize]) -> Self {
        let receipts = self.receipts.into_iter().enumerate();
        Self { receipts: receipts.filter(|(n, _)| positions.contains(n)).map(|(_, receipt)| receipt).collect() }
    }

    /// Puts the pieces together again.
    pub fn join(pieces: impl IntoIterator<Item = Self>) -> Self {
        Self { receipts: pieces.into_iter().flat_map(|piece| piece.receipts).collect() }
    }
}

/// Stores the batch, however long it takes.
pub(super) async fn commit<Q: Queue, S: Store>(worker: &Worker<Q, S>, beat: &Beat, batch: Batch) -> Stored {
    let trace = spans::store(&batch);
    let span = info_span!("batch", messages = batch.messages.len(), events = batch.arrivals.len());
    async {
        let started = Instant::now();
        let since = batch.since.unwrap_or(started);
        let mut tally = Tally::default();
        tokio::select! {
            biased;
            () = tally.store_all(worker, beat, &batch) => {}
            never = keep_invisible(worker, &batch) => match never {},
            () = worker.shutdown.give_up.cancelled() => {
                worker.counts.processed(since.elapsed(), true);
                spans::failed(&trace, "gave_up");
                spans::failed(&batch.span, "gave_up");
                return Stored::GaveUp(batch);
            }
        }
        worker.counts.processed(since.elapsed(), false);
        worker.metrics.batch_stored(&batch.arrivals, &tally.verdicts, started.elapsed());
        debug!(duration_ms = started.elapsed().as_millis() as u64, "stored a batch");
        Stored::Committed(tally.settle(batch))
    }
    .instrument(span)
    .await
}

/// What is known so far of a batch that is being stored.
#[derive(Default)]
struct Tally {
    /// In the order of the arrivals.
    verdicts: Vec<Verdict>,
    /// Messages of which the database refused something; it is in quarantine.
    refused: Vec<usize>,
    /// Messages of which something could not even be quarantined. They stay in the queue.
    unstorable: Vec<usize>,
}

/// A part of a batch: these arrivals and these rejects.
struct Portion {
    arrivals: Range<usize>,
    quarantined: Range<usize>,
}

impl Tally {
    /// Stores all of the batch, in one piece if it is of a usual size and the database takes it so, else in halves of halves.
    async fn store_all<Q: Queue, S: Store>(&mut self, worker: &Worker<Q, S>, beat: &Beat, batch: &Batch) {
        let mut todo = Portion::all_of(batch); // the next one last
        while let Some(portion) = todo.pop() {
            let arrivals = &batch.arrivals[portion.arrivals.clone()];
            let quarantined = &batch.quarantined[portion.quarantined.clone()];
            match (arrivals, quarantined) {
                ([], []) => {}
                ([arrival], []) => self.store_one(worker, beat, batch, arrival).await,
                ([], [reject]) => match insert(worker, beat, arrivals, quarantined).await {
                    Ok(_) => {}
                    // No event, so no verdict.
                    Err(code) => self.keep_in_queue(reject.message, &code),
                },
                _ => match insert(worker, beat, arrivals, quarantined).await {
                    Ok(verdicts) => self.verdicts.extend(verdicts),
                    Err(_) => todo.extend(portion.halves().into_iter().rev()),
                },
            }
        }
    }

    /// Stores one event; if the database refuses it, its message goes to quarantine instead.
    async fn store_one<Q: Queue, S: Store>(
        &mut self,
        worker: &Worker<Q, S>,
        beat: &Beat,
        batch: &Batch,
        arrival: &Arrival,
    ) {
        let Err(code) = insert(worker, beat, std::slice::from_ref(arrival), &[])
            .await
            .map(|verdicts| self.verdicts.extend(verdicts))
        else {
            return;
        };
        let body = &batch.messages[arrival.message].body;
        match insert(worker, beat, &[], &[refused(arrival, body, &code)]).await {
            Ok(_) => {
                self.verdicts.push(Verdict::Quarantined);
                self.refused.push(arrival.message);
            }
            Err(code) => {
                self.verdicts.push(Verdict::Quarantined);
                self.keep_in_queue(arrival.message, &code);
            }
        }
    }

    fn keep_in_queue(&mut self, message: usize, code: &str) {
        error!("the database refuses to quarantine a message ({code}): it stays in the queue");
        self.unstorable.push(message);
    }

    /// Every message gets its outcome. Those without one are let go of, and so stay in the queue.
    fn settle(self, batch: Batch) -> Committed {
        let storable = batch.messages.into_iter().enumerate().filter(|(number, _)| !self.unstorable.contains(number));
        let receipts = storable.map(|(number, mut held)| {
            held.receipt.settle(if self.refused.contains(&number) { Outcome::Rejected } else { held.outcome });
            held.receipt
        });
        Committed { receipts: receipts.collect() }
    }
}

impl Portion {
    /// All of a batch: one portion, unless something in it is huge.
    fn all_of(batch: &Batch) -> Vec<Self> {
        let (arrivals, quarantined) = (batch.arrivals.len(), batch.quarantined.len());
        let count = arrivals.div_ceil(MOST_EVENTS).max(quarantined.div_ceil(MOST_REJECTS));
        let piece = |n: usize, most: usize, end: usize| (n * most).min(end)..((n + 1) * most).min(end);
        let portion =
            |n| Self { arrivals: piece(n, MOST_EVENTS, arrivals), quarantined: piece(n, MOST_REJECTS, quarantined) };
        (0..count).rev().map(portion).collect()
    }

    fn halves(self) -> [Self; 2] {
        let (a, q) = (self.arrivals, self.quarantined);
        // Rounded in opposite directions, so that one of each is split as well.
        let (a_mid, q_mid) = (a.start + a.len().div_ceil(2), q.start + q.len() / 2);
        [
            Self { arrivals: a.start..a_mid, quarantined: q.start..q_mid },
            Self { arrivals: a_mid..a.end, quarantined: q_mid..q.end },
        ]
    }
}

/// Inserts until the database answers: with verdicts, or with the code for which it refuses the data.
async fn insert<Q: Queue, S: Store>(
    worker: &Worker<Q, S>,
    beat: &Beat,
    arrivals: &[Arrival],
    quarantined: &[Quarantined],
) -> Result<Vec<Verdict>, String> {
    let mut failures = 0;
    let mut delays = delays(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        beat.expect(worker.settings.store_timeout * 3);
        let started = Instant::now();
        let answer = timeout(worker.settings.store_timeout, worker.store.insert(arrivals, quarantined)).await;
        worker.metrics.conventions.statement(started.elapsed(), what_failed(&answer));
        let error = match answer {
            Ok(Ok(verdicts)) => {
                worker.store_came_through();
                return Ok(verdicts);
            }
            Ok(Err(StoreError::Refused { code, source })) => {
                warn!(code, "the database refuses some of {} rows: {source:#}", arrivals.len() + quarantined.len());
                return Err(code);
            }
            Ok(Err(StoreError::Transient(e))) => e,
            Err(_) => anyhow::anyhow!("no answer within {:?}", worker.settings.store_timeout),
        };
        failures += 1;
        worker.metrics.store_retries.inc();
        // One lost deadlock is no outage. From the second failure on nobody receives any more.
        if failures > 1 {
            worker.store_is_away(&error);
        }
        beat.rest();
        sleep(delays.next().unwrap_or_default()).await;
    }
}

/// One word for what is wrong with an answer of the store, if anything, for counting.
fn what_failed<T>(answer: &Result<Result<T, StoreError>, Elapsed>) -> Option<&'static str> {
    match answer {
        Ok(Ok(_)) => None,
        Ok(Err(StoreError::Transient(_))) => Some("transient"),
        Ok(Err(StoreError::Refused { .. })) => Some("refused"),
        Err(_) => Some("timeout"),
    }
}

/// Hides the batch's messages again and again, each time well before the queue would hand them out anew.
async fn keep_invisible<Q: Queue, S: Store>(worker: &Worker<Q, S>, batch: &Batch) -> Infallible {
    let timeout = worker.settings.visibility_timeout;
    let receipts: Vec<&Receipt> = batch.messages.iter().map(|held| &held.receipt).collect();
    let mut due = batch.since.unwrap_or_else(Instant::now) + timeout / 2;
    loop {
        sleep_until(due).await;
        due = Instant::now() + timeout / 2;
        worker.metrics.visibility_requests.inc_by(requests_for(receipts.len()));
        if let Err(e) = worker.queue.change_visibility(&receipts, timeout).await {
            warn!("cannot keep {} messages invisible: {e}", receipts.len());
            due = Instant::now() + timeout / 10;
        }
    }
}

/// An event that the database refuses, as it goes to quarantine: the whole body, so that it can be replayed.
fn refused(arrival: &Arrival, body: &str, code: &str) -> Quarantined {
    Quarantined {
        body: body.as_bytes().to_vec(),
        stage: Stage::Store,
        reason: format!("sqlstate_{}", code.to_lowercase()),
        at: arrival.event.kind.as_str().to_owned(),
        origin: Arc::clone(&arrival.origin),
        message: arrival.message,
    }
}

impl fmt::Debug for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Committed({} messages)", self.receipts.len())
    }
}
