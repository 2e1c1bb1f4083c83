//! Compares what the database holds with what a story knows that it must hold.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use sqlx::{Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Postgres;
use crate::local::story::{Facts, RowKey, Truth};

/// So many differences are described; the others are only counted.
const DESCRIBED: usize = 5;

/// What is not as it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    pub count: usize,
    /// The first of them, in words. They name made-up people only.
    pub described: Vec<String>,
}

/// Compares every row, every fact, every status and the quarantine with the truth.
///
/// # Errors
/// If the database cannot be read.
pub async fn compare(postgres: &Postgres, truth: &Truth) -> anyhow::Result<Differences> {
    let mut differences = Differences::default();
    let context = "cannot read the stored history";
    differences.keys("email_events", &truth.rows, &events(postgres).await.context(context)?);
    differences.keys("orphaned_events", &truth.orphans, &orphans(postgres).await.context(context)?);
    let stored = facts(postgres).await.context(context)?;
    for (uuid, expected) in &truth.facts {
        match stored.get(uuid) {
            None => differences.add(|| format!("email_logs: {uuid} is missing")),
            Some(found) if *found == Stored::of(expected) => {}
            Some(found) => {
                differences.add(|| format!("email_logs {uuid}: {found:?} is not {:?}", Stored::of(expected)))
            }
        }
    }
    if stored.len() != truth.facts.len() {
        differences.add(|| format!("email_logs: {} rows are not {}", stored.len(), truth.facts.len()));
    }
    let (expected, found) = (truth.rejected_leaves.values().sum::<usize>(), rejects(postgres).await.context(context)?);
    if found != expected as i64 {
        differences.add(|| format!("quarantined_messages: seen {found} times, not {expected}"));
    }
    Ok(differences)
}

impl Differences {
    fn add(&mut self, describe: impl FnOnce() -> String) {
        self.count += 1;
        if self.described.len() < DESCRIBED {
            self.described.push(describe());
        }
    }

    fn keys(&mut self, table: &str, expected: &BTreeSet<RowKey>, found: &[RowKey]) {
        let distinct: BTreeSet<_> = found.iter().cloned().collect();
        expected.difference(&distinct).for_each(|key| self.add(|| format!("{table}: missing {key:?}")));
        distinct.difference(expected).for_each(|key| self.add(|| format!("{table}: not expected {key:?}")));
        if distinct.len() != found.len() {
            self.add(|| format!("{table}: {} rows are there more than once", found.len() - distinct.len()));
        }
    }
}

/// The facts of a mail as the database holds them.
#[derive(Debug, PartialEq)]
struct Stored {
    /// Sent, delivered, delayed, bounced, complained, rejected, failed, opened, clicked.
    times: [Option<OffsetDateTime>; 9],
    opens: i32,
    clicks: i32,
    bounce_class: Option<String>,
    status: String,
}

impl Stored {
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
}

async fn events(postgres: &Postgres) -> Result<Vec<RowKey>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT l.aws_message_id, e.event_type, e.recipient, e.occurred_at, e.link
         FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid",
    );
    query.fetch_all(postgres.pool()).await?.iter().map(key).collect()
}

/// Delays are parked once for each time that they were reported; the truth counts them once.
async fn orphans(postgres: &Postgres) -> Result<Vec<RowKey>, sqlx::Error> {
    let query = sqlx::query("SELECT aws_message_id, event_type, recipient, occurred_at, link FROM orphaned_events");
    let keys: BTreeSet<RowKey> = query.fetch_all(postgres.pool()).await?.iter().map(key).collect::<Result<_, _>>()?;
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

async fn facts(postgres: &Postgres) -> Result<BTreeMap<Uuid, Stored>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT uuid, sent_at, delivered_at, delayed_at, bounced_at, complained_at, rejected_at, failed_at, opened_at,
                clicked_at, open_count, click_count, bounce_class::text, status
         FROM email_logs",
    );
    let rows = query.fetch_all(postgres.pool()).await?;
    rows.iter()
        .map(|row| {
            let mut times = [None; 9];
            for (n, time) in times.iter_mut().enumerate() {
                *time = row.try_get(n + 1)?;
            }
            let stored = Stored {
                times,
                opens: row.try_get("open_count")?,
                clicks: row.try_get("click_count")?,
                bounce_class: row.try_get("bounce_class")?,
                status: row.try_get("status")?,
            };
            Ok((row.try_get("uuid")?, stored))
        })
        .collect()
}

async fn rejects(postgres: &Postgres) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce(sum(times_seen), 0)::bigint FROM quarantined_messages")
        .fetch_one(postgres.pool())
        .await
}
