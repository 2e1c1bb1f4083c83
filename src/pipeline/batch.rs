//! Messages become one batch: receipts, events and rejects that are stored and deleted together.
//! Values in, values out.

use std::{fmt, sync::Arc};

use tokio::time::Instant;
use tracing::Span;

use super::{
    PipelineSettings,
    decode::{self, IgnoreReason, Leaf, Reject},
    receive::{Message, Origin, Outcome, Receipt},
};
use crate::event::Event;

/// What one transaction takes, and the receipts that it pays for.
pub struct Batch {
    pub(super) messages: Vec<Held>,
    pub(super) arrivals: Vec<Arrival>,
    pub(super) quarantined: Vec<Quarantined>,
    /// When its first message was received.
    pub(super) since: Option<Instant>,
    /// What its trace is called, if traces are wanted.
    pub(super) span: Span,
}

/// A message of the batch.
pub(super) struct Held {
    pub(super) receipt: Receipt,
    /// The outcome that it has if everything of it is stored: the gravest of its leaves'.
    pub(super) outcome: Outcome,
    pub(super) body: String,
}

/// An event and the message that brought it.
pub struct Arrival {
    pub event: Event,
    pub origin: Arc<Origin>,
    /// Position of its message in the batch.
    pub(super) message: usize,
}

/// A body, or the part of it, that could not be understood or stored.
pub struct Quarantined {
    pub body: Vec<u8>,
    pub stage: Stage,
    /// Reason code.
    pub reason: String,
    /// Where it failed, without content.
    pub at: String,
    pub origin: Arc<Origin>,
    /// Position of its message in the batch.
    pub(super) message: usize,
}

/// What a body holds, ready to be stored.
#[derive(Debug, Default)]
pub struct Contents {
    pub arrivals: Vec<Arrival>,
    pub quarantined: Vec<Quarantined>,
    pub ignored: Vec<IgnoreReason>,
}

/// Which stage sent a body to quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Decode,
    Store,
}

impl Batch {
    /// Adds a message and what it was decoded to.
    pub(super) fn add(&mut self, message: Message, leaves: Vec<Leaf>, now: Instant) {
        let Message { receipt, origin, body } = message;
        let number = self.messages.len();
        let Self { arrivals, quarantined, .. } = self;
        let outcome = sort(leaves, &origin, number, arrivals, quarantined, |_| {});
        self.messages.push(Held { receipt, outcome, body });
        self.since.get_or_insert(now);
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many events it can still take: none if it is full or old.
    pub(super) fn missing(&self, settings: &PipelineSettings, now: Instant) -> usize {
        if self.since.is_some_and(|since| now >= since + settings.batch_age) {
            return 0;
        }
        // Messages count as well, so that a flood of noise cannot make a batch without end.
        settings.batch_size.saturating_sub(self.arrivals.len().max(self.messages.len()))
    }
}

impl Default for Batch {
    fn default() -> Self {
        let (messages, arrivals, quarantined) = Default::default();
        Self { messages, arrivals, quarantined, since: None, span: Span::none() }
    }
}

impl Contents {
    /// What a body that did not come from a queue just now was decoded to.
    pub fn of(leaves: Vec<Leaf>, origin: &Arc<Origin>) -> Self {
        let mut contents = Self::default();
        let Self { arrivals, quarantined, ignored } = &mut contents;
        sort(leaves, origin, 0, arrivals, quarantined, |reason| ignored.push(reason));
        contents
    }
}

/// What becomes of each leaf. Returns the gravest of their outcomes.
fn sort(
    leaves: Vec<Leaf>,
    origin: &Arc<Origin>,
    message: usize,
    arrivals: &mut Vec<Arrival>,
    quarantined: &mut Vec<Quarantined>,
    mut ignore: impl FnMut(IgnoreReason),
) -> Outcome {
    let mut outcome = Outcome::Ignored;
    for leaf in leaves {
        let origin = || Arc::clone(origin);
        match leaf.outcome {
            decode::Outcome::Ignored(reason) => ignore(reason),
            decode::Outcome::Event(event) => {
                if outcome == Outcome::Ignored {
                    outcome = Outcome::Stored;
                }
                let events = event.into_events().into_iter();
                arrivals.extend(events.map(|event| Arrival { event, origin: origin(), message }));
            }
            decode::Outcome::Rejected(Reject { reason, at, raw }) => {
                outcome = Outcome::Rejected;
                let (body, reason) = (raw, reason.as_str().to_owned());
                quarantined.push(Quarantined { body, stage: Stage::Decode, reason, at, origin: origin(), message });
            }
        }
    }
    outcome
}

impl Arrival {
    /// An event that was brought by the batch's first message.
    pub fn new(event: Event, origin: Arc<Origin>) -> Self {
        Self { event, origin, message: 0 }
    }
}

impl Quarantined {
    /// A body that was brought by the batch's first message.
    pub fn new(body: Vec<u8>, stage: Stage, reason: &str, at: &str, origin: Arc<Origin>) -> Self {
        Self { body, stage, reason: reason.to_owned(), at: at.to_owned(), origin, message: 0 }
    }

    /// Equal for bodies that failed in the same way: the reason, and the place without its numbers.
    pub fn fingerprint(&self) -> String {
        let place: String = self.at.chars().filter(|c| !c.is_ascii_digit()).collect();
        format!("{}:{}", self.reason, place)
    }
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Store => "store",
        }
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival").field("event", &self.event).finish_non_exhaustive()
    }
}

impl fmt::Debug for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quarantined").field("reason", &self.reason).field("at", &self.at).finish_non_exhaustive()
    }
}
