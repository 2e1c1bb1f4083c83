//! Compares what the database holds with what a story knows that it must hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::Context as _;
use sqlx::{Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Postgres;
use crate::local::story::{Facts, MARK, RowKey, Truth};

/// So many differences are described; the others are only counted.
const DESCRIBED: usize = 5;

/// Mails to ask for in one statement.
const CHUNK: usize = 2_000;

/// What is not as it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    pub count: usize,
    /// The first of them, in words. They name made-up people only.
    pub described: Vec<String>,
    /// The mails that they are about, in the order in which they were sent.
    pub mails: BTreeSet<Moment>,
}

/// When a mail of a story was sent: no other mail of it has the same. Twelve hexadecimal digits of Unix milliseconds,
/// which begin the log's uuid and are in the SES id.
pub type Moment = String;

/// How many there must be, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub expected: usize,
    pub found: usize,
}

/// What there must be and what there is, counted.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Rows of `email_events` by kind.
    pub events: BTreeMap<String, Count>,
    /// Rows of `orphaned_events` that nobody will ever attach, by kind.
    pub orphans: BTreeMap<String, Count>,
    /// Mails by status.
    pub mails: BTreeMap<String, Count>,
    /// Mails whose facts or status are not as they must be.
    pub wrong_mails: usize,
    /// Bodies in quarantine by reason.
    pub quarantine: BTreeMap<String, Count>,
    pub differences: Differences,
}

/// What must be in quarantine: by the SHA-256 of the bytes, the reason, and how often they come.
pub type Rejects = BTreeMap<Vec<u8>, (String, usize)>;

/// One mail, as it must be and as it is.
#[derive(Clone, Debug, Default)]
pub struct Explained {
    pub log_uuid: Option<Uuid>,
    pub aws_message_id: Option<String>,
    /// Facts and status, in words; `None` if there must be no row, or is none.
    pub expected: Option<String>,
    pub found: Option<String>,
    /// Events that must be there, those that are there among them, and others that are there.
    pub events: Vec<(RowKey, Presence)>,
}

/// Where an event is, and where it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is where it must be.
    Right,
    /// It is nowhere.
    Missing,
    /// It waits as an orphan, although its mail has a log row.
    StillOrphaned,
    /// It must not be there.
    Unexpected,
}

/// Compares every row, every fact, every status and the quarantine with the truth. Nothing else may be there.
///
/// # Errors
/// If the database cannot be read.
pub async fn compare(postgres: &Postgres, truth: &Truth) -> anyhow::Result<Differences> {
    let context = "cannot read the stored history";
    let stored = Stored {
        events: events(postgres, None).await.context(context)?,
        orphans: orphans(postgres, None).await.context(context)?,
        mails: mails(postgres, None).await.context(context)?,
    };
    let mut differences = stored.against(truth).differences;
    if stored.mails.len() != truth.facts.len() {
        differences.add(None, || format!("email_logs: {} rows are not {}", stored.mails.len(), truth.facts.len()));
    }
    let (expected, found) = (truth.rejected_leaves.values().sum::<usize>(), rejects(postgres).await.context(context)?);
    if found != expected as i64 {
        differences.add(None, || format!("quarantined_messages: seen {found} times, not {expected}"));
    }
    Ok(differences)
}

/// Compares the rows of the story's own mails with the truth, whatever else is in the database.
///
/// # Errors
/// If the database cannot be read.
pub async fn compare_own(postgres: &Postgres, truth: &Truth) -> anyhow::Result<Findings> {
    let context = "cannot read the stored history";
    let mut stored = Stored { orphans: own_orphans(postgres, truth).await?, ..Stored::default() };
    let uuids: Vec<Uuid> = truth.facts.keys().copied().collect();
    for chunk in uuids.chunks(CHUNK) {
        stored.events.extend(events(postgres, Some(chunk)).await.context(context)?);
        stored.mails.extend(mails(postgres, Some(chunk)).await.context(context)?);
    }
    Ok(stored.against(truth))
}

/// The orphans of the story's own mails.
///
/// # Errors
/// If the database cannot be read.
pub async fn own_orphans(postgres: &Postgres, truth: &Truth) -> anyhow::Result<Vec<RowKey>> {
    let ids: BTreeSet<&str> = truth.rows.iter().chain(&truth.orphans).map(|key| key.aws_message_id.as_str()).collect();
    let mut found = orphans(postgres, Some(MARK)).await.context("cannot read the orphaned events")?;
    found.retain(|key| ids.contains(key.aws_message_id.as_str()));
    Ok(found)
}

/// How often each of these bodies was seen, and every other body with a made-up mail in it that came since then.
///
/// # Errors
/// If the database cannot be read.
pub async fn quarantined(postgres: &Postgres, rejects: &Rejects, since: OffsetDateTime) -> anyhow::Result<Rejects> {
    let digests: Vec<&[u8]> = rejects.keys().map(Vec::as_slice).collect();
    let query = sqlx::query(
        "SELECT body_digest, reason, times_seen FROM quarantined_messages
         WHERE body_digest = ANY($1) OR (last_seen_at >= $2 AND position($3 IN body) > 0)",
    );
    let query = query.bind(digests).bind(since).bind(MARK.as_bytes());
    let rows = query.fetch_all(postgres).await.context("cannot read the quarantine")?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get::<i32, _>(2)?.unsigned_abs() as usize))))
        .collect()
}

/// One mail of the story, as it must be and as it is.
///
/// # Errors
/// If the database cannot be read.
pub async fn explain(postgres: &Postgres, truth: &Truth, moment: &str) -> anyhow::Result<Explained> {
    let context = "cannot read the history of a mail";
    let of = |rows: &BTreeSet<RowKey>| -> BTreeSet<RowKey> {
        rows.iter().filter(|key| moment_of_id(&key.aws_message_id) == moment).cloned().collect()
    };
    let (expected_rows, expected_orphans) = (of(&truth.rows), of(&truth.orphans));
    let log = truth.facts.iter().find(|(uuid, _)| moment_of_log(uuid) == moment);
    let uuid: Vec<Uuid> = log.iter().map(|(uuid, _)| **uuid).collect();
    let rows: BTreeSet<RowKey> = events(postgres, Some(&uuid)).await.context(context)?.into_iter().collect();
    let mut orphaned: BTreeSet<RowKey> = orphans(postgres, Some(MARK)).await.context(context)?.into_iter().collect();
    orphaned.retain(|key| moment_of_id(&key.aws_message_id) == moment);

    let presence = |key: &RowKey| {
        let (must, must_wait) = (expected_rows.contains(key), expected_orphans.contains(key));
        match (rows.contains(key), orphaned.contains(key)) {
            (true, _) if must => Presence::Right,
            (_, true) if must_wait => Presence::Right,
            (_, true) if must => Presence::StillOrphaned,
            (false, false) => Presence::Missing,
            _ => Presence::Unexpected,
        }
    };
    let all: BTreeSet<&RowKey> = expected_rows.iter().chain(&expected_orphans).chain(&rows).chain(&orphaned).collect();
    Ok(Explained {
        log_uuid: uuid.first().copied(),
        aws_message_id: all.iter().map(|key| key.aws_message_id.clone()).find(|id| !id.is_empty()),
        expected: log.map(|(_, facts)| Mail::of(facts).in_words()),
        found: mails(postgres, Some(&uuid)).await.context(context)?.values().next().map(Mail::in_words),
        events: all.iter().map(|key| ((*key).clone(), presence(key))).collect(),
    })
}

impl Differences {
    /// Adds one, about this mail.
    pub fn add(&mut self, mail: Option<Moment>, describe: impl FnOnce() -> String) {
        self.count += 1;
        self.mails.extend(mail);
        if self.described.len() < DESCRIBED {
            self.described.push(describe());
        }
    }

    fn keys(&mut self, table: &str, expected: &BTreeSet<RowKey>, found: &[RowKey]) {
        let distinct: BTreeSet<_> = found.iter().cloned().collect();
        let mail = |key: &RowKey| Some(moment_of_id(&key.aws_message_id).to_owned());
        expected
            .difference(&distinct)
            .for_each(|key| self.add(mail(key), || format!("{table}: missing {}", in_words(key))));
        distinct
            .difference(expected)
            .for_each(|key| self.add(mail(key), || format!("{table}: not expected {}", in_words(key))));
        if distinct.len() != found.len() {
            self.add(None, || format!("{table}: {} rows are there more than once", found.len() - distinct.len()));
        }
    }
}

impl Findings {
    /// Compares the quarantine. A message that comes again may count again, unless `exactly` is said; `before` is what was
    /// there before the story.
    pub fn quarantine(&mut self, expected: &Rejects, before: &Rejects, found: &Rejects, exactly: bool) {
        for (digest, (reason, times)) in expected {
            self.quarantine.entry(reason.clone()).or_default().expected += 1;
            let earlier = before.get(digest).map_or(0, |(_, times)| *times);
            match found.get(digest) {
                None => self.differences.add(None, || format!("quarantined_messages: a body is missing ({reason})")),
                Some((other, _)) if other != reason => {
                    self.differences.add(None, || format!("quarantined_messages: {other} is not {reason}"));
                }
                Some((_, seen)) if seen - earlier < *times || (exactly && seen - earlier > *times) => {
                    let seen = seen - earlier;
                    self.differences.add(None, || {
                        format!("quarantined_messages: a body ({reason}) came {times} times, seen {seen} times")
                    });
                }
                Some(_) => {}
            }
        }
        for (digest, (reason, _)) in found {
            self.quarantine.entry(reason.clone()).or_default().found += 1;
            if !expected.contains_key(digest) {
                self.differences.add(None, || format!("quarantined_messages: a body must not be there ({reason})"));
            }
        }
    }
}

fn in_words(key: &RowKey) -> String {
    let mut words = format!("{} of {}", key.kind, key.aws_message_id);
    if !key.recipient.is_empty() {
        let _ = write!(words, " to {}", key.recipient);
    }
    if let Some(at) = key.occurred_at_ms {
        let _ = write!(words, " at {at} ms");
    }
    if let Some(link) = &key.link {
        let _ = write!(words, ", {link}");
    }
    words
}

/// The digits of the time in an id that SES gave.
fn moment_of_id(aws_message_id: &str) -> &str {
    aws_message_id.get(4..16).unwrap_or_default()
}

fn moment_of_log(uuid: &Uuid) -> Moment {
    let mut digits = uuid.simple().to_string();
    digits.truncate(12);
    digits
}

/// What the database holds.
#[derive(Default)]
struct Stored {
    events: Vec<RowKey>,
    orphans: Vec<RowKey>,
    mails: BTreeMap<Uuid, Mail>,
}

impl Stored {
    fn against(&self, truth: &Truth) -> Findings {
        let mut findings = Findings::default();
        findings.differences.keys("email_events", &truth.rows, &self.events);
        findings.differences.keys("orphaned_events", &truth.orphans, &self.orphans);
        findings.events = by_kind(&truth.rows, &self.events);
        findings.orphans = by_kind(&truth.orphans, &self.orphans);
        for (uuid, facts) in &truth.facts {
            let (expected, found) = (Mail::of(facts), self.mails.get(uuid));
            findings.mails.entry(expected.status.clone()).or_default().expected += 1;
            if let Some(found) = found {
                findings.mails.entry(found.status.clone()).or_default().found += 1;
            }
            if found != Some(&expected) {
                findings.wrong_mails += 1;
                findings.differences.add(Some(moment_of_log(uuid)), || match found {
                    None => format!("email_logs: {uuid} is missing"),
                    Some(found) => format!("email_logs {uuid}: {} is not {}", found.in_words(), expected.in_words()),
                });
            }
        }
        findings
    }
}

fn by_kind(expected: &BTreeSet<RowKey>, found: &[RowKey]) -> BTreeMap<String, Count> {
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    for key in expected {
        counts.entry(key.kind.clone()).or_default().expected += 1;
    }
    for key in found {
        counts.entry(key.kind.clone()).or_default().found += 1;
    }
    counts
}

/// The facts of a mail as the database holds them.
#[derive(Debug, PartialEq)]
struct Mail {
    /// In the order of [`FACTS`].
    times: [Option<OffsetDateTime>; 9],
    opens: i32,
    clicks: i32,
    bounce_class: Option<String>,
    status: String,
}

const FACTS: [&str; 9] =
    ["sent", "delivered", "delayed", "bounced", "complained", "rejected", "failed", "opened", "clicked"];

impl Mail {
    fn of(facts: &Facts) -> Self {
        Self {
            times: [
                facts.sent_at,
                facts.delivered_at,
                // The earliest of all reports, whichever row was stored first.
                facts.delayed_at.first().copied(),
                facts.bounced_at,
                facts.complained_at,
                facts.rejected_at,
                facts.failed_at,
                facts.opened_at,
                facts.clicked_at,
            ],
            opens: facts.open_count as i32,
            clicks: facts.click_count as i32,
            bounce_class: facts.bounce_class.map(|class| class.as_str().to_owned()),
            status: facts.status().to_owned(),
        }
    }

    fn in_words(&self) -> String {
        let mut words = self.status.clone();
        for (name, at) in FACTS.iter().zip(self.times) {
            if let Some(at) = at {
                let _ = write!(words, ", {name} {} {}", at.date(), at.time());
            }
        }
        for (number, name) in [(self.opens, "opens"), (self.clicks, "clicks")] {
            if number > 0 {
                let _ = write!(words, ", {number} {name}");
            }
        }
        if let Some(class) = &self.bounce_class {
            let _ = write!(words, ", {class}");
        }
        words
    }
}

/// Of these mails, or of all.
async fn events(postgres: &Postgres, of: Option<&[Uuid]>) -> Result<Vec<RowKey>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT coalesce(l.aws_message_id, '') AS aws_message_id, e.event_type, e.recipient, e.occurred_at, e.link
         FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid
         WHERE $1::uuid[] IS NULL OR l.uuid = ANY($1)",
    );
    query.bind(of).fetch_all(postgres).await?.iter().map(key).collect()
}

/// Of the mails whose ids end so, or of all. Delays are parked once for each time that they were reported; the truth
/// counts them once.
async fn orphans(postgres: &Postgres, id_ends_in: Option<&str>) -> Result<Vec<RowKey>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT aws_message_id, event_type, recipient, occurred_at, link FROM orphaned_events
         WHERE $1::text IS NULL OR right(aws_message_id, length($1)) = $1",
    );
    let rows = query.bind(id_ends_in).fetch_all(postgres).await?;
    let keys: BTreeSet<RowKey> = rows.iter().map(key).collect::<Result<_, _>>()?;
    Ok(keys.into_iter().collect())
}

fn key(row: &PgRow) -> Result<RowKey, sqlx::Error> {
    let kind: String = row.try_get("event_type")?;
    let at: OffsetDateTime = row.try_get("occurred_at")?;
    let happens_again = kind == "open" || kind == "click";
    Ok(RowKey {
        aws_message_id: row.try_get("aws_message_id")?,
        recipient: row.try_get("recipient")?,
        occurred_at_ms: happens_again.then(|| (at.unix_timestamp_nanos() / 1_000_000) as i64),
        link: row.try_get("link")?,
        kind,
    })
}

/// These, or all.
async fn mails(postgres: &Postgres, of: Option<&[Uuid]>) -> Result<BTreeMap<Uuid, Mail>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT uuid, sent_at, delivered_at, delayed_at, bounced_at, complained_at, rejected_at, failed_at, opened_at,
                clicked_at, open_count, click_count, bounce_class::text, status
         FROM email_logs WHERE $1::uuid[] IS NULL OR uuid = ANY($1)",
    );
    let rows = query.bind(of).fetch_all(postgres).await?;
    rows.iter()
        .map(|row| {
            let mut times = [None; 9];
            for (n, time) in times.iter_mut().enumerate() {
                *time = row.try_get(n + 1)?;
            }
            let mail = Mail {
                times,
                opens: row.try_get("open_count")?,
                clicks: row.try_get("click_count")?,
                bounce_class: row.try_get("bounce_class")?,
                status: row.try_get("status")?,
            };
            Ok((row.try_get("uuid")?, mail))
        })
        .collect()
}

async fn rejects(postgres: &Postgres) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce(sum(times_seen), 0)::bigint FROM quarantined_messages")
        .fetch_one(postgres)
        .await
}
