//! What this binary makes of a body that lies somewhere: in quarantine, or in a dead-letter queue. A replay goes the
//! way of every message, decode, batch, store, and so changes nothing where it was done before.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::sleep;

use crate::{
    pipeline::{
        Store, StoreError, Verdict,
        batch::{Arrival, Contents, Quarantined},
        decode::{DecodeSettings, decode},
        receive::Origin,
    },
    postgres::{
        Postgres,
        stuck::{self, Body},
    },
};

/// Events to store in one statement.
const SLICE: usize = 1_000;
/// How often to try before giving up, and how long to wait after a failure.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// What a body holds, as this binary understands it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Events of each kind.
    pub events: BTreeMap<String, u64>,
    /// The mails that they are about.
    pub mails: Vec<String>,
    /// What is none of our business, by reason.
    pub ignored: BTreeMap<String, u64>,
    /// What is not understood: the reasons, and where.
    pub rejected: Vec<Failure>,
}

/// Why a part of a body is not understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub reason: String,
    pub at: String,
}

/// What came of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    pub inserted: u64,
    /// Rows that were there already.
    pub duplicate: u64,
    /// Parked until the mail's log row appears.
    pub orphaned: u64,
    /// Refused by the database, by its codes.
    pub refused: BTreeMap<String, u64>,
    /// What is none of our business, by reason.
    pub ignored: BTreeMap<String, u64>,
    /// What is still not understood.
    pub rejected: Vec<Failure>,
}

/// Understands a body, and stores nothing.
pub fn read(body: &[u8], settings: &DecodeSettings) -> Reading {
    let leaves = decode(body, OffsetDateTime::UNIX_EPOCH, settings);
    let origin = Origin {
        queue: "".into(),
        sqs_message_id: String::new(),
        receive_count: 0,
        received_at: OffsetDateTime::UNIX_EPOCH,
    };
    Reading::of(&Contents::of(leaves, &Arc::new(origin)))
}

/// Sends a quarantined body through the pipeline again, and notes on its row what came of it. The row stays.
///
/// The events keep the queue and the message that brought the body. They count as received when it was first seen, for
/// that is when SES reported them to us.
///
/// # Errors
/// If the database cannot be reached, or the login may not. What was stored until then stays.
pub async fn replay(postgres: &Postgres, body: &Body, settings: &DecodeSettings) -> anyhow::Result<Replayed> {
    let about = &body.about;
    let origin = Arc::new(Origin {
        queue: about.queue.as_str().into(),
        sqs_message_id: about.sqs_message_id.clone(),
        receive_count: about.receive_count.unsigned_abs(),
        received_at: about.first_seen_at,
    });
    let contents = Contents::of(decode(&body.bytes, origin.received_at, settings), &origin);
    let mut replayed = Replayed { ignored: counted(&contents), ..Replayed::default() };
    replayed.rejected = contents.quarantined.iter().map(Failure::of).collect();
    for events in contents.arrivals.chunks(SLICE) {
        replayed.store(postgres, events).await?;
    }
    // What is still not understood lies in quarantine already, unless it is a part of a body of which the rest is.
    let parts: Vec<Quarantined> = contents.quarantined.into_iter().filter(|part| part.body != body.bytes).collect();
    if !parts.is_empty() {
        insert(postgres, &[], &parts).await.context("cannot quarantine what is still not understood")?;
    }
    stuck::note_replay(postgres, about.uuid, &replayed.to_string()).await?;
    Ok(replayed)
}

/// Tries a few times: another writer may have been in the way.
async fn insert(
    postgres: &Postgres,
    arrivals: &[Arrival],
    quarantined: &[Quarantined],
) -> Result<Vec<Verdict>, StoreError> {
    let mut attempts = 1;
    loop {
        match postgres.insert(arrivals, quarantined).await {
            Err(StoreError::Transient(_)) if attempts < ATTEMPTS => attempts += 1,
            answer => return answer,
        }
        sleep(PAUSE * attempts).await;
    }
}

impl Reading {
    fn of(contents: &Contents) -> Self {
        let mut reading = Self { ignored: counted(contents), ..Self::default() };
        for Arrival { event, .. } in &contents.arrivals {
            *reading.events.entry(event.kind.as_str().to_owned()).or_default() += 1;
            reading.mails.push(event.message_id.as_str().to_owned());
        }
        reading.mails.sort_unstable();
        reading.mails.dedup();
        reading.rejected = contents.quarantined.iter().map(Failure::of).collect();
        reading
    }

    /// Nothing in it would go to quarantine.
    pub fn is_understood(&self) -> bool {
        self.rejected.is_empty()
    }
}

impl Replayed {
    /// All of it was understood, and is stored or none of our business.
    pub fn is_settled(&self) -> bool {
        self.rejected.is_empty() && self.refused.is_empty()
    }

    /// Stores events, in one piece if the database takes it so, else in halves of halves.
    async fn store(&mut self, postgres: &Postgres, events: &[Arrival]) -> anyhow::Result<()> {
        let mut todo = vec![events];
        while let Some(events) = todo.pop() {
            match insert(postgres, events, &[]).await {
                Ok(verdicts) => verdicts.into_iter().for_each(|verdict| self.count(verdict)),
                Err(StoreError::Refused { .. }) if events.len() > 1 => {
                    let (first, second) = events.split_at(events.len() / 2);
                    todo.extend([second, first]);
                }
                Err(StoreError::Refused { code, .. }) => *self.refused.entry(code).or_default() += 1,
                Err(e) => return Err(e).context("cannot store what a body holds"),
            }
        }
        Ok(())
    }

    fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Inserted => self.inserted += 1,
            Verdict::Orphaned => self.orphaned += 1,
            Verdict::Duplicate | Verdict::Expired | Verdict::Quarantined => self.duplicate += 1,
        }
    }
}

impl Failure {
    fn of(part: &Quarantined) -> Self {
        Self { reason: part.reason.clone(), at: part.at.clone() }
    }
}

fn counted(contents: &Contents) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for reason in &contents.ignored {
        *counts.entry(reason.as_str().to_owned()).or_default() += 1;
    }
    counts
}

/// `1 delivery event, 2 bounce events`; `ignored: plain_text`; `not understood: no_mail at $.mail`.
impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event =
            |(kind, count): (&String, &u64)| format!("{count} {kind} event{}", if *count == 1 { "" } else { "s" });
        let mut parts: Vec<String> = not_understood("not", &self.rejected).into_iter().collect();
        parts.extend(self.events.iter().map(event));
        parts.extend(ignored(&self.ignored));
        f.write_str(&parts.join(", "))
    }
}

/// `stored 2, duplicate 1`; `still not understood: no_mail at $.mail, stored 2`. Begins with `still` unless all is well.
impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = not_understood("still not", &self.rejected).into_iter().collect();
        parts.extend(
            self.refused.iter().map(|(code, count)| format!("still refused by the database: {count} ({code})")),
        );
        let counts = [("stored", self.inserted), ("duplicate", self.duplicate), ("orphaned", self.orphaned)];
        parts.extend(counts.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{what} {count}")));
        parts.extend(ignored(&self.ignored));
        f.write_str(&parts.join(", "))
    }
}

fn not_understood(how: &str, rejected: &[Failure]) -> Option<String> {
    let first = rejected.first()?;
    let more = match rejected.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    Some(format!("{how} understood: {} at {}{more}", first.reason, first.at))
}

fn ignored(reasons: &BTreeMap<String, u64>) -> Option<String> {
    let names: Vec<&str> = reasons.keys().map(String::as_str).collect();
    (!names.is_empty()).then(|| format!("ignored: {}", names.join(" ")))
}
