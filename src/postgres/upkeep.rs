//! Counts what waits, and lets go of what is too old.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::{Row as _, postgres::PgRow};
use time::OffsetDateTime;

use super::Postgres;

/// What waits for somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingRooms {
    pub orphans: i64,
    pub oldest_orphan_at: Option<OffsetDateTime>,
    pub quarantined_bodies: i64,
    /// Months after this one for which partitions are ready, without a gap.
    pub months_ahead: i64,
}

/// What can be emptied without its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Payloads of events.
    Payloads,
    /// Bodies and headers of mails.
    Bodies,
}

impl Content {
    /// As people and the database call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Payloads => "payloads",
            Self::Bodies => "bodies",
        }
    }
}

/// What one slice of a pass over old payloads or bodies did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emptied {
    pub rows: u64,
    /// The pass is over, or another worker is at it.
    pub finished: bool,
}

/// Counts orphans, quarantined bodies, and the months for which partitions are ready.
///
/// # Errors
/// If the database cannot be read.
pub async fn waiting_rooms(postgres: &Postgres) -> anyhow::Result<WaitingRooms> {
    let query = sqlx::query(
        "SELECT (SELECT count(*) FROM orphaned_events) AS orphans,
                (SELECT stored_at FROM orphaned_events ORDER BY uuid LIMIT 1) AS oldest_orphan_at,
                (SELECT count(*) FROM quarantined_messages) AS quarantined_bodies,
                ses_ledger_months_ahead() AS months_ahead",
    );
    let read = |row: PgRow| {
        Ok(WaitingRooms {
            orphans: row.try_get("orphans")?,
            oldest_orphan_at: row.try_get("oldest_orphan_at")?,
            quarantined_bodies: row.try_get("quarantined_bodies")?,
            months_ahead: row.try_get("months_ahead")?,
        })
    };
    let counted = postgres.patiently(query.try_map(read).fetch_one(postgres)).await;
    counted.context("cannot count the orphaned events and the quarantine")
}

/// Looks at the next `most` rows of mails that are older than `age`, and empties what is old in them.
///
/// # Errors
/// If the database cannot be reached, or the role may not call the function.
pub async fn empty(postgres: &Postgres, what: Content, age: Duration, most: u32) -> anyhow::Result<Emptied> {
    let query = sqlx::query("SELECT emptied, finished FROM ses_ledger_empty($1, make_interval(secs => $2), $3)");
    let query = query.bind(what.as_str()).bind(age.as_secs_f64()).bind(most as i32);
    let read =
        |row: PgRow| Ok(Emptied { rows: row.try_get::<i32, _>("emptied")? as u64, finished: row.try_get("finished")? });
    postgres
        .patiently(query.try_map(read).fetch_one(postgres))
        .await
        .with_context(|| format!("cannot empty old {}", what.as_str()))
}
