//! What the worker counts. The doc comment of each field is its help text in `/metrics`.

pub mod conventions;
pub mod emf;
mod process;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use time::OffsetDateTime;

use self::{conventions::Conventions, process::Process};
use crate::{
    pipeline::{
        QueueError, Verdict,
        batch::Arrival,
        decode::{self, Leaf},
        receive::{Delivery, Outcome},
    },
    pulse::{Counts, Identities, LAG_ENDS, Tally},
};

macro_rules! metrics {
    ($(#[doc = $help:literal] $name:ident: $kind:ty = $make:expr;)*) => {
        /// All metrics of one worker.
        pub struct Metrics {
            $(#[doc = $help] pub $name: $kind,)*
            /// What is counted for the heartbeat only.
            pub(crate) tally: Tally,
            /// Those that OpenTelemetry has names for.
            pub conventions: Conventions,
            registry: Registry,
            /// Counters that belong to one identity change together.
            identities: Mutex<()>,
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::default();
                let conventions = Conventions::register(&mut registry);
                registry.register_collector(Box::new(Process::new()));
                let ours = registry.sub_registry_with_prefix("ses_ledger");
                $(
                    let $name: $kind = $make;
                    ours.register(stringify!($name), $help.trim().trim_end_matches('.'), $name.clone());
                )*
                Self { $($name,)* conventions, tally: Tally::default(), registry, identities: Mutex::new(()) }
            }
        }
    };
}

metrics! {
    /// Messages received from the queue, each time one is handed out.
    messages_received: Counter = Counter::default();
    /// Messages of which every event is stored.
    messages_stored: Counter = Counter::default();
    /// Messages that hold nothing but known noise.
    messages_ignored: Counter = Counter::default();
    /// Messages of which something went to quarantine.
    messages_rejected: Counter = Counter::default();
    /// Messages given back to the queue without being stored.
    messages_released: Counter = Counter::default();
    /// Messages received that have no outcome yet.
    messages_in_hand: Gauge = Gauge::default();
    /// Messages received less stored, ignored, rejected, released and in hand: zero unless the worker has a fault.
    messages_drift: Gauge = Gauge::default();
    /// Messages that had been handed out before.
    messages_redelivered: Counter = Counter::default();
    /// Messages deleted from the queue.
    messages_deleted: Counter = Counter::default();
    /// Stored messages that could not be deleted in time and may come back as duplicates.
    messages_undeleted: Counter = Counter::default();

    /// Events decoded from stored batches, one per recipient.
    events_decoded: Counter = Counter::default();
    /// Events that became a new row.
    events_inserted: Counter = Counter::default();
    /// Events whose row was there already, or was let go.
    events_duplicate: Counter = Counter::default();
    /// Those of them whose row or mail was let go.
    events_expired: Counter = Counter::default();
    /// Events parked because their mail is not known yet.
    events_orphaned: Counter = Counter::default();
    /// Events that the database refused; they are in quarantine.
    events_quarantined: Counter = Counter::default();
    /// Events decoded less inserted, duplicate, orphaned and quarantined: zero unless the worker has a fault.
    events_drift: Gauge = Gauge::default();
    /// Orphaned events attached to their mail.
    orphans_attached: Counter = Counter::default();
    /// Orphaned events that wait, counted once a minute.
    orphans: Gauge = Gauge::default();
    /// How long the oldest orphaned event has waited.
    oldest_orphan_age_seconds: Gauge = Gauge::default();
    /// Bodies in quarantine, counted once a minute.
    quarantined_bodies: Gauge = Gauge::default();
    /// Months after this one that have their partition, up to the first that has none; three should.
    months_ahead: Gauge = Gauge::default();
    /// Seconds from what the figures are counted up to until now; zero if this worker does not count them.
    figures_lag_seconds: Gauge = Gauge::default();
    /// Times that a worker's own retention came to its end without a fault, also if it keeps everything.
    retention_runs: Counter = Counter::default();
    /// Payloads and bodies that were older than their retention and are emptied.
    retention_emptied: Counter = Counter::default();
    /// Seconds since a worker last emptied old payloads or bodies, whichever is longer, or could have for the first time; zero if they are kept.
    emptying_age_seconds: Gauge = Gauge::default();
    /// Seconds since `ses-ledger retention run` came to its end, or could have run for the first time; zero if no rows are to be removed.
    retention_age_seconds: Gauge = Gauge::default();

    /// Decoded parts of messages that are none of our business, by reason. A message that comes again counts again.
    ignored: Family<ReasonLabels, Counter> = Family::default();
    /// Decoded parts of messages that could not be understood, by reason. A message that comes again counts again.
    rejected: Family<ReasonLabels, Counter> = Family::default();

    /// Receives that were answered, by result: messages, empty, failed.
    receives: Family<ReceiveLabels, Counter> = Family::default();
    /// Messages per receive that brought any.
    messages_per_receive: Histogram = Histogram::new((1..=10).map(f64::from));
    /// Events per stored batch.
    events_per_batch: Histogram = Histogram::new(exponential_buckets(1.0, 2.0, 13));
    /// Seconds to store a batch, with all attempts.
    store_duration_seconds: Histogram = Histogram::new(exponential_buckets(0.001, 2.0, 16));
    /// Attempts to store that have to be repeated.
    store_retries: Counter = Counter::default();
    /// Deletes repeated for messages that failed.
    delete_retries: Counter = Counter::default();
    /// Pollers that got stuck and were replaced.
    pollers_replaced: Counter = Counter::default();
    /// Queues that do not let us in; each is tried again once a minute.
    queues_failed: Gauge = Gauge::default();
    /// Seconds from when something happened to when its event was committed, of events that became a new row.
    event_lag_seconds: Histogram = Histogram::new(LAG_ENDS);
    /// Requests to the queue to delete messages, each for up to ten.
    delete_requests: Counter = Counter::default();
    /// Requests to the queue to hide messages or to give them back, each for up to ten.
    visibility_requests: Counter = Counter::default();
    /// 1 if the worker takes messages, as /readyz says.
    ready: Gauge = Gauge::default();
    /// Always 1, for its label.
    build_info: Family<BuildLabels, Gauge> = this_build();
}

/// Where metrics go beside the page that Prometheus reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Export {
    /// Nowhere
    #[default]
    None,
    /// To CloudWatch: one JSON object per line, in its embedded metric format, on standard output
    Emf,
}

/// Labels of `receives`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReceiveLabels {
    result: &'static str,
}

/// Labels of `build_info`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BuildLabels {
    version: &'static str,
}

/// Labels of `ignored` and `rejected`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    reason: &'static str,
}

/// By how much the two identities fail. Both are zero unless the worker has a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift {
    pub messages: i64,
    pub events: i64,
}

impl Metrics {
    /// The text that Prometheus reads.
    pub fn encode(&self) -> String {
        let _together = self.together(); // one moment: nothing is counted between two lines
        self.compare();
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => unreachable!("writing to a string does not fail"),
        }
    }

    /// Compares both sides of both identities, at one moment.
    pub fn check_identities(&self) -> Drift {
        let _together = self.together();
        self.compare()
    }

    fn compare(&self) -> Drift {
        let count = |counters: &[&Counter]| counters.iter().map(|c| c.get() as i64).sum::<i64>();
        let settled =
            count(&[&self.messages_stored, &self.messages_ignored, &self.messages_rejected, &self.messages_released]);
        let judged =
            count(&[&self.events_inserted, &self.events_duplicate, &self.events_orphaned, &self.events_quarantined]);
        let drift = Drift {
            messages: count(&[&self.messages_received]) - settled - self.messages_in_hand.get(),
            events: count(&[&self.events_decoded]) - judged,
        };
        self.messages_drift.set(drift.messages);
        self.events_drift.set(drift.events);
        drift
    }

    /// Both sides of both identities, at one moment.
    pub fn identities(&self) -> Identities {
        let _together = self.together();
        let drift = self.compare();
        let count = |counter: &Counter| counter.get() as i64;
        Identities {
            received: count(&self.messages_received),
            stored: count(&self.messages_stored),
            ignored: count(&self.messages_ignored),
            rejected: count(&self.messages_rejected),
            released: count(&self.messages_released),
            in_hand: self.messages_in_hand.get(),
            messages_drift: drift.messages,
            decoded: count(&self.events_decoded),
            inserted: count(&self.events_inserted),
            duplicate: count(&self.events_duplicate),
            orphaned: count(&self.events_orphaned),
            quarantined: count(&self.events_quarantined),
            events_drift: drift.events,
        }
    }

    /// What a minute of the heartbeat is made of.
    pub(crate) fn counts(&self) -> Counts {
        let _together = self.together();
        let count = |counter: &Counter| counter.get() as i64;
        let receives = |result| self.receives.get_or_create(&ReceiveLabels { result }).get() as i64;
        Counts {
            received: count(&self.messages_received),
            redelivered: count(&self.messages_redelivered),
            stored: count(&self.messages_stored),
            ignored: count(&self.messages_ignored),
            rejected: count(&self.messages_rejected),
            released: count(&self.messages_released),
            deleted: count(&self.messages_deleted),
            inserted: count(&self.events_inserted),
            duplicate: count(&self.events_duplicate),
            orphaned: count(&self.events_orphaned),
            quarantined: count(&self.events_quarantined),
            receives_with_messages: receives("messages"),
            receives_empty: receives("empty"),
            receives_failed: receives("failed"),
            delete_requests: count(&self.delete_requests),
            visibility_requests: count(&self.visibility_requests),
        }
    }

    pub(crate) fn receive_answered(&self, answer: &Result<Vec<Delivery>, QueueError>) {
        let result = match answer {
            Ok(deliveries) if deliveries.is_empty() => "empty",
            Ok(deliveries) => {
                self.messages_per_receive.observe(deliveries.len() as f64);
                let again = deliveries.iter().filter(|delivery| delivery.receive_count > 1).count();
                self.messages_redelivered.inc_by(again as u64);
                let _together = self.together();
                self.messages_received.inc_by(deliveries.len() as u64);
                self.messages_in_hand.inc_by(deliveries.len() as i64);
                "messages"
            }
            Err(_) => "failed",
        };
        self.receives.get_or_create(&ReceiveLabels { result }).inc();
    }

    pub(crate) fn decoded(&self, leaves: &[Leaf]) {
        for leaf in leaves {
            let (family, reason) = match &leaf.outcome {
                decode::Outcome::Event(_) => continue,
                decode::Outcome::Ignored(reason) => (&self.ignored, reason.as_str()),
                decode::Outcome::Rejected(reject) => (&self.rejected, reject.reason.as_str()),
            };
            family.get_or_create(&ReasonLabels { reason }).inc();
        }
    }

    pub(crate) fn settled(&self, outcome: Outcome) {
        let _together = self.together();
        self.messages_in_hand.dec();
        match outcome {
            Outcome::Stored => self.messages_stored.inc(),
            Outcome::Ignored => self.messages_ignored.inc(),
            Outcome::Rejected => self.messages_rejected.inc(),
            Outcome::Released => self.messages_released.inc(),
        };
    }

    /// A batch is committed. The verdicts are in the order of its arrivals.
    pub(crate) fn batch_stored(&self, arrivals: &[Arrival], verdicts: &[Verdict], took: Duration) {
        let decoded = arrivals.len();
        self.events_per_batch.observe(decoded as f64);
        self.store_duration_seconds.observe(took.as_secs_f64());
        self.count_stored(arrivals, verdicts);
        let _together = self.together();
        self.events_decoded.inc_by(decoded as u64);
        for verdict in verdicts {
            match verdict {
                Verdict::Inserted => self.events_inserted.inc(),
                Verdict::Duplicate => self.events_duplicate.inc(),
                Verdict::Expired => {
                    self.events_expired.inc();
                    self.events_duplicate.inc()
                }
                Verdict::Orphaned => self.events_orphaned.inc(),
                Verdict::Quarantined => self.events_quarantined.inc(),
            };
        }
    }

    /// Counts what is told by kind and by lag.
    pub fn count_stored(&self, arrivals: &[Arrival], verdicts: &[Verdict]) {
        let lags = self.tally.stored(arrivals, verdicts, OffsetDateTime::now_utc());
        lags.into_iter().for_each(|lag| self.event_lag_seconds.observe(lag));
    }

    pub(crate) fn deleted(&self, deleted: usize, left: usize) {
        self.messages_deleted.inc_by(deleted as u64);
        self.messages_undeleted.inc_by(left as u64);
    }

    fn together(&self) -> MutexGuard<'_, ()> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn this_build() -> Family<BuildLabels, Gauge> {
    let info = Family::<BuildLabels, Gauge>::default();
    info.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
    info
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn a_page_shows_one_moment() {
        let (metrics, done) = (Metrics::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let (id, handle, body) = Default::default();
                    metrics.receive_answered(&Ok(vec![Delivery { id, handle, body, receive_count: 1, sent_at: None }]));
                    metrics.settled(Outcome::Stored);
                }
            });
            let sums = Vec::from_iter((0..1_000).map(|_| metrics.encode()).map(|page| {
                let value = |name: &str| -> i64 {
                    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                    line.and_then(|number| number.parse().ok()).expect("every page has this count")
                };
                let settled = value("ses_ledger_messages_stored_total") + value("ses_ledger_messages_in_hand");
                value("ses_ledger_messages_received_total") - settled
            }));
            done.store(true, Ordering::Relaxed);
            assert_eq!(sums.iter().filter(|sum| **sum != 0).count(), 0, "pages that do not add up");
        });
    }
}
