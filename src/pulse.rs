//! The worker's heartbeat: what it says of itself every ten seconds, so that whoever asks needs only the database.
//!
//! Values in, values out; [`crate::postgres::pulse`] writes them.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use time::{OffsetDateTime, UtcDateTime};
use uuid::Uuid;

use crate::{
    event::TimeSource,
    metrics::Metrics,
    pipeline::{Verdict, batch::Arrival},
    retention::Retention,
};

/// How often a worker beats.
pub const EVERY: Duration = Duration::from_secs(10);
/// A worker that was not seen for so long does not run any more, or cannot say that it does.
pub const ALIVE: Duration = Duration::from_secs(30);
/// Minutes that the database has not taken yet; older ones are let go of.
const MOST_UNSENT: usize = 120;
/// Kinds of events that are told apart: SES has ten.
const MOST_KINDS: usize = 64;

/// Upper ends of the buckets of [`Minute::lags`], in seconds; one more bucket takes what is older.
pub const LAG_ENDS: [f64; 17] =
    [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 21_600.0, 86_400.0];
const LAGS: usize = LAG_ENDS.len() + 1;

/// Who beats.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its host, or the name of the Lambda function.
    pub name: String,
    pub runtime: Runtime,
    pub retention: Retention,
}

/// What runs the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    Ecs,
    Lambda,
    Other,
}

/// What a worker writes of itself in one statement. The names of the fields are those of the columns.
#[derive(Clone, Debug, Serialize)]
pub struct Beat {
    pub worker: WorkerRow,
    /// The minute that passes, and those that the database has not taken yet.
    pub minutes: Vec<Minute>,
    /// Kinds of which there was an event since the beat before.
    pub kinds: Vec<KindRow>,
    /// It was the last one.
    pub stopped: bool,
}

/// A row of `ses_ledger_workers`, but for the times that the database itself sets.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerRow {
    pub id: Uuid,
    pub name: String,
    pub version: &'static str,
    pub runtime: Runtime,
    pub queues: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(flatten)]
    pub counts: Identities,
    pub connections: u32,
    pub connections_most: u32,
    /// As PostgreSQL reads an interval.
    pub retention_payload: Option<String>,
    pub retention: BTreeMap<&'static str, u64>,
}

/// Both identities of a worker, since its start: `received = stored + ignored + rejected + released + in_hand`, and
/// `decoded = inserted + duplicate + orphaned + quarantined`. The drifts are by how much they fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Identities {
    pub received: i64,
    pub stored: i64,
    pub ignored: i64,
    pub rejected: i64,
    pub released: i64,
    pub in_hand: i64,
    pub messages_drift: i64,
    pub decoded: i64,
    pub inserted: i64,
    pub duplicate: i64,
    pub orphaned: i64,
    pub quarantined: i64,
    pub events_drift: i64,
}

impl Identities {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            stored: self.stored + other.stored,
            ignored: self.ignored + other.ignored,
            rejected: self.rejected + other.rejected,
            released: self.released + other.released,
            in_hand: self.in_hand + other.in_hand,
            messages_drift: self.messages_drift + other.messages_drift,
            decoded: self.decoded + other.decoded,
            inserted: self.inserted + other.inserted,
            duplicate: self.duplicate + other.duplicate,
            orphaned: self.orphaned + other.orphaned,
            quarantined: self.quarantined + other.quarantined,
            events_drift: self.events_drift + other.events_drift,
        }
    }
}

/// What was done in one minute: by one worker in a [`Beat`], by all in an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Minute {
    /// Its first moment.
    #[serde(with = "time::serde::rfc3339")]
    pub minute: OffsetDateTime,
    #[serde(flatten)]
    pub counts: Counts,
    /// How many inserted events were how old when they were committed; [`LAG_ENDS`] are the buckets' upper ends.
    pub lags: Vec<i64>,
    /// By the queue's ARN.
    pub queues: BTreeMap<String, QueueMinute>,
}

macro_rules! counts {
    ($($(#[doc = $help:literal])* $name:ident,)*) => {
        /// Counts of a minute. Messages: `received` to `deleted`; events: `inserted` to `quarantined`; the rest are requests to
        /// SQS, none on Lambda, which receives and deletes by itself.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counts { $($(#[doc = $help])* pub $name: i64,)* }

        impl Counts {
            /// The names of the columns.
            pub(crate) const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// All of them, in the order of their names.
            pub(crate) fn from_values(mut value: impl FnMut(&str) -> i64) -> Self {
                Self { $($name: value(stringify!($name)),)* }
            }

            fn zip(self, other: Self, with: impl Fn(i64, i64) -> i64) -> Self {
                Self { $($name: with(self.$name, other.$name),)* }
            }
        }
    };
}

counts! {
    received,
    /// Received messages that had been handed out before.
    redelivered,
    stored,
    ignored,
    rejected,
    released,
    deleted,
    inserted,
    duplicate,
    orphaned,
    quarantined,
    receives_with_messages,
    receives_empty,
    receives_failed,
    delete_requests,
    visibility_requests,
}

impl Counts {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    /// Messages that came to an end here.
    pub fn messages(&self) -> i64 {
        self.stored + self.ignored + self.rejected
    }

    /// Events that came to an end here.
    pub fn events(&self) -> i64 {
        self.inserted + self.duplicate + self.orphaned + self.quarantined
    }

    /// Requests to SQS.
    pub fn requests(&self) -> i64 {
        self.receives() + self.delete_requests + self.visibility_requests
    }

    /// Receives, whatever they brought.
    pub fn receives(&self) -> i64 {
        self.receives_with_messages + self.receives_empty + self.receives_failed
    }
}

/// What a minute knows of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct QueueMinute {
    pub received: i64,
    pub deleted: i64,
    /// Of the messages received, how old the oldest was, in milliseconds; `None` if nobody knows.
    pub oldest_age_ms: Option<i64>,
}

impl QueueMinute {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            deleted: self.deleted + other.deleted,
            oldest_age_ms: self.oldest_age_ms.max(other.oldest_age_ms),
        }
    }
}

/// A row of `ses_ledger_kinds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KindRow {
    pub event_type: String,
    #[serde(flatten)]
    pub last: LastTimes,
}

/// When an event of a kind last happened, and when one was last stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LastTimes {
    #[serde(with = "time::serde::rfc3339")]
    pub last_occurred_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_stored_at: OffsetDateTime,
}

/// What is counted for the heartbeat, beside the metrics.
#[derive(Default)]
pub(crate) struct Tally(Mutex<Tallied>);

#[derive(Clone, Default)]
struct Tallied {
    lags: [i64; LAGS],
    kinds: BTreeMap<String, LastTimes>,
    /// Counts since the start; ages since the last beat.
    queues: BTreeMap<Arc<str>, QueueMinute>,
}

impl Tally {
    /// This queue is served, also if nothing comes from it.
    pub(crate) fn serves(&self, queue: Arc<str>) {
        self.tallied().queues.entry(queue).or_default();
    }

    /// A receive from this queue brought so many messages.
    pub(crate) fn received(&self, queue: &Arc<str>, messages: usize, oldest_sent_at: Option<OffsetDateTime>) {
        let age =
            oldest_sent_at.map(|sent_at| (OffsetDateTime::now_utc() - sent_at).whole_milliseconds().max(0) as i64);
        let mut tallied = self.tallied();
        let queue = tallied.queues.entry(Arc::clone(queue)).or_default();
        *queue = queue.plus(QueueMinute { received: messages as i64, deleted: 0, oldest_age_ms: age });
    }

    pub(crate) fn deleted(&self, queue: &Arc<str>, messages: usize) {
        self.tallied().queues.entry(Arc::clone(queue)).or_default().deleted += messages as i64;
    }

    /// A batch is committed. Returns the lags in seconds of the events that it inserted.
    pub(crate) fn stored(&self, arrivals: &[Arrival], verdicts: &[Verdict], now: OffsetDateTime) -> Vec<f64> {
        let mut lags = Vec::new();
        let mut tallied = self.tallied();
        for (Arrival { event, .. }, verdict) in arrivals.iter().zip(verdicts) {
            if !matches!(verdict, Verdict::Inserted | Verdict::Orphaned) {
                continue;
            }
            tallied.saw(event.kind.as_str(), LastTimes { last_occurred_at: event.occurred_at, last_stored_at: now });
            if *verdict == Verdict::Inserted && event.time_source == TimeSource::Event {
                let lag = (now - event.occurred_at).as_seconds_f64();
                tallied.lags[LAG_ENDS.partition_point(|end| *end < lag)] += 1;
                lags.push(lag.max(0.0));
            }
        }
        lags
    }

    /// As it is now; from now on ages are counted anew.
    fn take(&self) -> Tallied {
        let mut tallied = self.tallied();
        let taken = tallied.clone();
        tallied.queues.values_mut().for_each(|queue| queue.oldest_age_ms = None);
        taken
    }

    fn tallied(&self) -> MutexGuard<'_, Tallied> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tallied {
    fn saw(&mut self, kind: &str, last: LastTimes) {
        if let Some(known) = self.kinds.get_mut(kind) {
            known.last_occurred_at = known.last_occurred_at.max(last.last_occurred_at);
            known.last_stored_at = last.last_stored_at;
        } else if self.kinds.len() < MOST_KINDS {
            // What a kind is called comes from outside: it is not to fill the memory.
            self.kinds.insert(kind.to_owned(), last);
        }
    }
}

/// What a process remembers from one beat to the next.
pub struct Pulse {
    id: Uuid,
    identity: Identity,
    started_at: OffsetDateTime,
    /// When it last looked, and what it saw then.
    looked: (OffsetDateTime, Counts, Tallied),
    /// The minute that passes, and before it those that the database has not taken.
    unsent: VecDeque<Minute>,
    /// When the database last took a beat.
    sent_at: Option<OffsetDateTime>,
}

impl Pulse {
    pub fn new(identity: Identity, now: OffsetDateTime) -> Self {
        Self {
            id: Uuid::now_v7(),
            identity,
            started_at: now,
            looked: (now, Counts::default(), Tallied::default()),
            unsent: VecDeque::new(),
            sent_at: None,
        }
    }

    /// The next beat. What was counted since the one before belongs to the minute in which that one was, or, if that is long
    /// ago (a Lambda function that slept), to the present one.
    pub fn beat(&mut self, metrics: &Metrics, connections: (u32, u32), now: OffsetDateTime, stopped: bool) -> Beat {
        let (counts, tallied) = (self.counts(metrics), metrics.tally.take());
        let at = self.looked.0.max(now - EVERY);
        self.add(minute_of(at), counts, &tallied);
        let news = |(kind, last): (&String, &LastTimes)| {
            let is_news = self.sent_at.is_none_or(|sent_at| last.last_stored_at >= sent_at);
            is_news.then(|| KindRow { event_type: kind.clone(), last: *last })
        };
        let kinds = tallied.kinds.iter().filter_map(news).collect();
        let worker = self.row(metrics, &tallied, connections);
        self.looked = (now, counts, tallied);
        Beat { worker, minutes: self.unsent.iter().cloned().collect(), kinds, stopped }
    }

    /// The database took the beat that was made at this time.
    pub fn sent(&mut self, at: OffsetDateTime) {
        self.sent_at = Some(at);
        // The last one is not over.
        self.unsent.drain(..self.unsent.len().saturating_sub(1));
    }

    /// Whether it is time for the next beat, or for the first.
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        self.unsent.is_empty() || now - self.looked.0 >= EVERY
    }

    fn add(&mut self, minute: OffsetDateTime, counts: Counts, tallied: &Tallied) {
        if self.unsent.back().is_none_or(|last| last.minute < minute) {
            let (counts, queues) = (Counts::default(), BTreeMap::new());
            self.unsent.push_back(Minute { minute, counts, lags: vec![0; LAGS], queues });
            if self.unsent.len() > MOST_UNSENT {
                self.unsent.pop_front();
            }
        }
        let (_, before, before_tallied) = &self.looked;
        let Some(current) = self.unsent.back_mut() else { return };
        current.counts = current.counts.plus(counts.zip(*before, |now, before| now - before));
        for (n, lag) in current.lags.iter_mut().enumerate() {
            *lag += tallied.lags[n] - before_tallied.lags[n];
        }
        for (name, now) in &tallied.queues {
            let before = before_tallied.queues.get(name).copied().unwrap_or_default();
            let increase = QueueMinute {
                received: now.received - before.received,
                deleted: now.deleted - before.deleted,
                oldest_age_ms: now.oldest_age_ms,
            };
            let queue = current.queues.entry(name.to_string()).or_default();
            *queue = queue.plus(increase);
        }
    }

    /// What the metrics say. On Lambda our receives and deletes are no requests to SQS.
    fn counts(&self, metrics: &Metrics) -> Counts {
        let counts = metrics.counts();
        match self.identity.runtime {
            Runtime::Lambda => Counts {
                receives_with_messages: 0,
                receives_empty: 0,
                receives_failed: 0,
                delete_requests: 0,
                visibility_requests: 0,
                ..counts
            },
            Runtime::Ecs | Runtime::Other => counts,
        }
    }

    fn row(&self, metrics: &Metrics, tallied: &Tallied, (connections, connections_most): (u32, u32)) -> WorkerRow {
        let Identity { name, runtime, retention } = self.identity.clone();
        WorkerRow {
            id: self.id,
            name,
            version: env!("CARGO_PKG_VERSION"),
            runtime,
            queues: tallied.queues.keys().map(ToString::to_string).collect(),
            started_at: self.started_at,
            counts: metrics.identities(),
            connections,
            connections_most,
            retention_payload: retention.retention_payload.map(|age| format!("{} s", age.as_secs())),
            retention: retention.in_seconds(),
        }
    }
}

/// What this machine is called, as far as it says.
pub(crate) fn this_host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".to_owned() } else { name.trim().to_owned() }
}

/// The first moment of the minute.
fn minute_of(at: OffsetDateTime) -> OffsetDateTime {
    let seconds = at.unix_timestamp();
    let minute = UtcDateTime::from_unix_timestamp(seconds - seconds.rem_euclid(60));
    minute.map_or(at, OffsetDateTime::from)
}
