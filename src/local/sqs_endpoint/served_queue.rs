//! A queue as the endpoint keeps it: the state machine, its attributes, and who waits for it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::body::Bytes;
use md5::{Digest as _, Md5};
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use super::{ACCOUNT, MAX_MESSAGE_BYTES, wire::SqsError};
use crate::local::queue::{LocalQueue, QueueSettings, Received};

pub(super) struct Queue {
    pub(super) name: String,
    clock: Clock,
    state: Mutex<QueueState>,
    /// Wakes one waiting receive, the one that waits longest. Who wakes and leaves something behind
    /// wakes the next: so nobody is forgotten, and no crowd runs for a single message.
    arrivals: Notify,
    /// Wakes the timekeeper.
    pub(super) earlier: Arc<Notify>,
}

pub(super) struct QueueState {
    pub(super) messages: LocalQueue<MessageBody>,
    pub(super) attributes: BTreeMap<String, String>,
    /// The dead-letter queue. There is one exactly if the messages have a maximal receive count.
    pub(super) heir: Option<Arc<Queue>>,
    /// Where its dead letters came from, by their ids.
    pub(super) origins: HashMap<Uuid, Weak<Queue>>,
    /// When the timekeeper wakes up next.
    alarm: Option<Duration>,
}

impl Queue {
    pub(super) fn new(name: &str, clock: Clock) -> Arc<Self> {
        let (_, seed) = Uuid::now_v7().as_u64_pair();
        let defaults = NUMBERS.iter().map(|(name, _, value)| ((*name).to_owned(), (*value).to_owned()));
        let created = clock.now().as_secs().to_string();
        let facts = [
            ("CreatedTimestamp", created),
            ("QueueArn", format!("arn:aws:sqs:us-east-1:{ACCOUNT}:{name}")),
            ("SqsManagedSseEnabled", "true".to_owned()),
        ];
        let facts = facts.map(|(name, value)| (name.to_owned(), value));
        Arc::new(Self {
            name: name.to_owned(),
            clock,
            state: Mutex::new(QueueState {
                messages: LocalQueue::new(QueueSettings { seed, ..QueueSettings::default() }),
                attributes: defaults.chain(facts).collect(),
                heir: None,
                origins: HashMap::new(),
                alarm: None,
            }),
            arrivals: Notify::new(),
            earlier: Arc::default(),
        })
    }

    /// The only way to the messages: whatever was done, whoever waits for it is woken.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut QueueState, Duration) -> R) -> R {
        let mut state = lock(&self.state);
        let now = self.clock.now();
        let result = work(&mut state, now);
        let deliverable = state.messages.has_deliverable(now);
        let next = state.messages.next_visible_at();
        let is_earlier = next.is_some_and(|next| state.alarm.is_none_or(|alarm| next < alarm));
        if is_earlier {
            state.alarm = next;
        }
        drop(state);
        if deliverable {
            self.arrivals.notify_one();
        }
        if is_earlier {
            self.earlier.notify_one();
        }
        result
    }

    /// Takes messages, waiting for the first until `over`.
    pub(super) async fn receive(
        self: &Arc<Self>,
        max: usize,
        visibility: Option<Duration>,
        over: impl Future<Output = ()>,
    ) -> Vec<Received<MessageBody>> {
        let mut over = std::pin::pin!(over);
        loop {
            let messages = self.take(max, visibility);
            if !messages.is_empty() {
                return messages;
            }
            tokio::select! {
                biased;
                () = &mut over => return Vec::new(),
                () = self.arrivals.notified() => {}
            }
        }
    }

    /// Takes what is there, and passes dead letters on.
    pub(super) fn take(self: &Arc<Self>, max: usize, visibility: Option<Duration>) -> Vec<Received<MessageBody>> {
        let (messages, letters, heir) = self.with(|state, now| {
            let messages = state.messages.receive(max, visibility, now);
            (messages, state.messages.take_dead_letters(), state.heir.clone())
        });
        if let Some(heir) = heir.filter(|_| !letters.is_empty()) {
            heir.with(|state, now| {
                for letter in letters {
                    state.origins.insert(letter.id, Arc::downgrade(self));
                    state.messages.accept(letter, now);
                }
            });
        }
        messages
    }

    pub(super) fn attributes(&self, names: &[Cow<'_, str>]) -> Result<BTreeMap<String, String>, SqsError> {
        let (mut known, counts) = self.with(|state, now| (state.attributes.clone(), state.messages.counts(now)));
        for (name, count) in [
            ("ApproximateNumberOfMessages", counts.visible),
            ("ApproximateNumberOfMessagesNotVisible", counts.in_flight),
            ("ApproximateNumberOfMessagesDelayed", counts.delayed),
        ] {
            known.insert(name.to_owned(), count.to_string());
        }
        let is_known = |name: &str| name == "All" || TEXTS.contains(&name) || known.contains_key(name);
        if let Some(name) = names.iter().find(|name| !is_known(name)) {
            return Err(unknown_attribute(name));
        }
        if !names.iter().any(|name| name == "All") {
            known.retain(|known, _| names.iter().any(|name| name == known));
        }
        Ok(known)
    }

    /// Has the next alarm set for when a message becomes visible by itself.
    fn set_alarm(&self) -> Option<Instant> {
        self.with(|state, now| {
            state.messages.counts(now); // what is due now needs no alarm
            state.alarm = state.messages.next_visible_at();
            state.alarm.and_then(|alarm| self.clock.instant(alarm))
        })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.earlier.notify_one(); // lets the timekeeper see that it is over
    }
}

/// Wakes waiting receives when messages become visible by themselves, as long as the queue lives.
pub(super) async fn keep_time(queue: Weak<Queue>, earlier: Arc<Notify>) {
    while let Some(alarm) = queue.upgrade().map(|queue| queue.set_alarm()) {
        match alarm {
            Some(alarm) => {
                // Either way it is time to look again.
                let _ = tokio::time::timeout_at(alarm, earlier.notified()).await;
            }
            None => earlier.notified().await,
        }
    }
}

impl QueueState {
    /// A numeric attribute. All of them have a value from the beginning, and none can be removed.
    pub(super) fn number(&self, name: &str) -> u64 {
        self.attributes.get(name).and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

/// Attributes that are numbers: what SQS allows and how a queue begins.
const NUMBERS: [(&str, RangeInclusive<u64>, &str); 5] = [
    ("DelaySeconds", 0..=900, "0"),
    ("MaximumMessageSize", 1024..=MAX_MESSAGE_BYTES as u64, "1048576"),
    ("MessageRetentionPeriod", 60..=1_209_600, "345600"),
    ("ReceiveMessageWaitTimeSeconds", 0..=20, "0"),
    ("VisibilityTimeout", 0..=43_200, "30"),
];

/// Attributes that are kept as they come. All but the redrive policy have no effect here.
const TEXTS: [&str; 6] = [
    "KmsDataKeyReusePeriodSeconds",
    "KmsMasterKeyId",
    "Policy",
    "RedriveAllowPolicy",
    "RedrivePolicy",
    "SqsManagedSseEnabled",
];

pub(super) fn check_attribute(name: &str, value: &str) -> Result<(), SqsError> {
    if let Some((_, range, _)) = NUMBERS.iter().find(|(number, ..)| *number == name) {
        let is_valid = value.parse().is_ok_and(|value| range.contains(&value));
        let message = format!("Invalid value for the parameter {name}.");
        return is_valid.then_some(()).ok_or(SqsError::new(400, "InvalidAttributeValue", message));
    }
    let is_known = TEXTS.contains(&name);
    is_known.then_some(()).ok_or_else(|| unknown_attribute(name))
}

fn unknown_attribute(name: &str) -> SqsError {
    SqsError::new(400, "InvalidAttributeName", format!("Unknown Attribute {name}."))
}

/// A body as the wire wants it.
pub(super) struct StoredBody {
    /// A JSON string literal, quotes included.
    pub(super) json: Box<str>,
    /// How long the body itself is.
    pub(super) bytes: usize,
    pub(super) md5: String,
}

pub(super) type MessageBody = Arc<StoredBody>;

impl StoredBody {
    pub(super) fn new(text: &str) -> Self {
        let json = serde_json::to_string(text).expect("every text can be written as JSON");
        Self { json: json.into(), bytes: text.len(), md5: format!("{:x}", Bytes::copy_from_slice(&Md5::digest(text))) }
    }

    pub(super) fn text(&self) -> String {
        serde_json::from_str(&self.json).expect("new() wrote it as JSON")
    }
}

/// Time since the Unix epoch that never goes back, on Tokio's clock.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    start_since_epoch: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), start_since_epoch: since_epoch }
    }

    pub(super) fn now(&self) -> Duration {
        self.start_since_epoch + self.start.elapsed()
    }

    /// Nothing for a time that is too far away to matter.
    fn instant(&self, time: Duration) -> Option<Instant> {
        self.start.checked_add(time.saturating_sub(self.start_since_epoch))
    }
}

/// What the locks guard is whole after every step, so a panic elsewhere is no reason to fail here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
