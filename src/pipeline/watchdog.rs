//! Notices a poller that does not move on, and puts another in its place.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use super::{Queue, QueueError, Store, Worker, poll};

/// Until when a poller has to show that it moves on.
pub(super) struct Beat {
    start: Instant,
    /// Milliseconds after `start`; `u64::MAX` while it may take any time.
    due: AtomicU64,
}

impl Beat {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), due: AtomicU64::new(u64::MAX) }
    }

    /// The next step is to be over within this time.
    pub(super) fn expect(&self, within: Duration) {
        let due = self.start.elapsed() + within;
        self.due.store(due.as_millis() as u64, Ordering::Relaxed);
    }

    /// The next step may take any time: waiting for a turn, for room, for the database.
    pub(super) fn rest(&self) {
        self.due.store(u64::MAX, Ordering::Relaxed);
    }

    /// Comes back when a step takes longer than it was expected to.
    async fn overdue(&self) {
        loop {
            match self.due.load(Ordering::Relaxed) {
                u64::MAX => sleep(Duration::from_secs(1)).await,
                due => {
                    let due_at = self.start + Duration::from_millis(due);
                    if Instant::now() > due_at {
                        return;
                    }
                    // What is due may have changed by then, also to something earlier.
                    sleep_until(due_at.min(Instant::now() + Duration::from_secs(1)) + Duration::from_millis(1)).await;
                }
            }
        }
    }
}

/// Keeps one poller going: whoever gets stuck is stopped and replaced. What it held comes back to the queue by itself.
pub(super) async fn keep_polling<Q: Queue, S: Store>(worker: Arc<Worker<Q, S>>) -> Result<(), QueueError> {
    loop {
        let beat = Arc::new(Beat::new());
        // A task of its own, so that it may panic; it ends with us all the same.
        let mut poller = AbortOnDropHandle::new(tokio::spawn({
            let (worker, beat) = (Arc::clone(&worker), Arc::clone(&beat));
            async move { poll(&worker, &beat).await }
        }));
        tokio::select! {
            finished = &mut poller => match finished {
                Ok(outcome) => return outcome,
                Err(e) => error!("a poller broke down and is replaced: {e}"),
            },
            () = beat.overdue() => {
                poller.abort();
                let _ = poller.await; // it lets go of its messages before the next one starts
                worker.stuck.fetch_add(1, Ordering::Relaxed);
                error!("a poller did not move on and is replaced");
            }
        }
        worker.metrics.pollers_replaced.inc();
        if worker.shutdown.stop.is_cancelled() {
            return Ok(());
        }
    }
}

/// Counts who is inside, and tells when nobody is.
#[derive(Default)]
pub(super) struct Gate {
    inside: AtomicUsize,
    left: Notify,
}

pub(super) struct Inside<'g>(&'g Gate);

impl Gate {
    pub(super) fn enter(&self) -> Inside<'_> {
        self.inside.fetch_add(1, Ordering::SeqCst);
        Inside(self)
    }

    pub(super) async fn empty(&self) {
        loop {
            let left = self.left.notified();
            if self.inside.load(Ordering::SeqCst) == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        self.0.left.notify_waiters();
    }
}
