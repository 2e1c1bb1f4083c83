//! Deletes what is committed, and gives back what could not be stored.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{Span, info, warn};

use super::{
    Queue, QueueError, Store, Worker,
    batch::Batch,
    delays,
    receive::{Outcome, Receipt},
    spans,
    store::Committed,
    watchdog::Beat,
};

/// What a delete may take beyond its budget before its poller counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(20);
/// What giving back may take: less than what is left of the grace period by then.
const RELEASE: Duration = Duration::from_secs(4);

/// How many requests it takes to name so many messages: SQS takes ten in each.
pub(super) fn requests_for(messages: usize) -> u64 {
    messages.div_ceil(10) as u64
}

/// What came of a delete.
pub struct Deleted {
    /// The messages that could not be deleted, or of which we do not know.
    pub left: Committed,
    /// Why, if there is one reason for all.
    pub error: Option<QueueError>,
}

/// Deletes, and tries again what failed until the budget is used up. What is left then comes back as a duplicate.
pub(super) async fn delete<Q: Queue, S: Store>(
    worker: &Worker<Q, S>,
    beat: &Beat,
    committed: Committed,
    process: &Span,
) -> Result<(), QueueError> {
    let span = spans::delete(process, &worker.queue.name(), committed.receipts().len());
    let deadline = Instant::now() + worker.settings.delete_budget;
    beat.expect(worker.settings.delete_budget + STUCK_AFTER);
    let total = committed.receipts().len();
    let mut unknown = total;
    let mut left = committed;
    let mut outcome = Ok(());
    for delay in delays(Duration::from_millis(50), Duration::from_secs(1)) {
        worker.metrics.delete_requests.inc_by(requests_for(unknown));
        let Ok(answer) = timeout_at(deadline, worker.queue.delete(left)).await else { break };
        left = answer.left;
        unknown = left.receipts().len();
        if let Some(e @ QueueError::Fatal(_)) = answer.error {
            outcome = Err(e);
            break;
        }
        if left.is_empty() || Instant::now() + delay >= deadline {
            break;
        }
        worker.metrics.delete_retries.inc();
        sleep(delay).await;
    }
    if unknown > 0 {
        spans::failed(&span, "undeleted");
        warn!("cannot delete {unknown} stored messages in time: they may come back as duplicates");
    }
    worker.metrics.deleted(total - unknown, unknown);
    worker.metrics.tally.deleted(&worker.queue.name(), total - unknown);
    outcome
}

/// Gives messages back at once. Waits first until this process has no receive open, which would get them right back.
pub(super) async fn release<Q: Queue, S: Store>(worker: &Worker<Q, S>, beat: &Beat, mut batch: Batch) {
    beat.rest(); // both waits have their own limits
    let receives = worker.settings.receive_wait + Duration::from_secs(1);
    if timeout(receives, worker.open_receives.empty()).await.is_err() {
        warn!("a receive is still open: messages that are released now may come back to it");
    }
    let receipts: Vec<&Receipt> = batch.messages.iter().map(|held| &held.receipt).collect();
    worker.metrics.visibility_requests.inc_by(requests_for(receipts.len()));
    let answer = timeout(RELEASE, worker.queue.change_visibility(&receipts, Duration::ZERO)).await;
    match answer.unwrap_or_else(|_| Err(QueueError::Transient(format!("no answer within {RELEASE:?}")))) {
        Ok(()) => info!("released {} messages", receipts.len()),
        Err(e) => {
            warn!("cannot release {} messages, they come back after their visibility timeout: {e}", receipts.len())
        }
    }
    for held in &mut batch.messages {
        held.receipt.settle(Outcome::Released);
    }
}
