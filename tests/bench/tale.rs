//! Which story is told: the same settings in every process, so that nobody has to hand bodies around.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use ses_ledger::local::story::{Mess, Profile, Story, StorySettings};
use time::OffsetDateTime;

/// What a story follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Tale {
    pub(crate) seed: u64,
    /// Messages, give or take a few percent.
    pub(crate) messages: usize,
    /// Bytes of a body; `None`: every envelope, with the headers of the mail.
    pub(crate) bytes: Option<usize>,
    pub(crate) mess: Untidy,
    /// Unix seconds of the first mail.
    pub(crate) start: i64,
    /// Seconds between two mails.
    pub(crate) gap: u64,
    /// Tell it in another order than that of time.
    pub(crate) shuffled: bool,
}

/// What is untidy about it. Percent of the messages, roughly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Untidy {
    Nothing,
    Duplicates(u8),
    Orphans(u8),
    Poison(u8),
    /// A little of everything, several recipients too: an ordinary week of a busy product.
    Everything,
}

impl Tale {
    pub(crate) fn tell(&self) -> Story {
        let start = OffsetDateTime::from_unix_timestamp(self.start).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        // A mail is good for so many messages.
        let each = if self.mess == Untidy::Everything { 3.9 } else { 3.6 };
        let mut settings = StorySettings::new(self.seed, (self.messages as f64 / each).ceil() as usize, start);
        settings.gap = Duration::from_secs(self.gap);
        settings.profile = self.bytes.map_or(Profile::Usual, Profile::Sized);
        settings.mess = self.mess.mess();
        let story = Story::tell(&settings);
        if self.shuffled { story.shuffled(self.seed) } else { story }
    }
}

impl Untidy {
    fn mess(self) -> Mess {
        let share = |percent: u8| f64::from(percent) / 100.0;
        match self {
            Self::Nothing => Mess::none(),
            // Some of what is repeated is repeated more than once: 1.35 times on average.
            Self::Duplicates(n) => Mess { duplicates: share(n) / (1.0 - share(n)) / 1.35, ..Mess::none() },
            Self::Orphans(n) => Mess { unknown_mails: share(n), ..Mess::none() },
            Self::Poison(n) => Mess { poison: share(n), ..Mess::none() },
            Self::Everything => Mess::default(),
        }
    }
}
