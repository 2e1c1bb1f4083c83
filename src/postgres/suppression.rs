//! Who is not to be written to again: asked before sending, listed, and taken off with a reason.
//!
//! Migration 18 holds the rules, and says why there is a table of its own.

use std::fmt;

use anyhow::Context as _;
use serde::Serialize;
use sqlx::{Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Postgres;

/// Addresses to ask about in one statement.
const SLICE: usize = 1_000;

/// An address that is not to be written to, or perhaps not, with the newest report that says so.
#[derive(Clone, Serialize)]
pub struct Suppression {
    /// As it was asked for; in a list bare and in lower case, or its digest once she was erased.
    pub address: String,
    /// `bounce`: for good; `complaint`; `ses_list`: SES did not send, because the address is on a list.
    pub cause: String,
    /// When it happened, as SES says.
    #[serde(with = "time::serde::rfc3339")]
    pub occurred_at: OffsetDateTime,
    /// She is not only one of several whom SES names as possible. Only then is she suppressed.
    pub certain: bool,
    /// Reports that count against her, 1,000 at most.
    pub reports: i32,
    /// Like `NoEmail`, `abuse` or `OnAccountSuppressionList`.
    pub subtype: Option<String>,
    /// Like `5.1.1`.
    pub smtp_status: Option<String>,
    /// The mail, which may be gone by now; none if it is not known.
    pub email_log_uuid: Option<Uuid>,
    /// Its row among the events, which may be gone by now; none if it got none of its own.
    pub event_uuid: Option<Uuid>,
}

/// Which of them to list.
#[derive(Clone, Default)]
pub struct Listed {
    pub since: Option<OffsetDateTime>,
    /// Those that come after this one.
    pub after: Option<(OffsetDateTime, String)>,
    pub cause: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// An address that somebody allowed to be written to again.
#[derive(Clone, Serialize)]
pub struct Removal {
    pub uuid: Uuid,
    /// Bare and in lower case, or its digest once she was erased.
    pub address: String,
    pub reason: String,
    /// The login.
    pub removed_by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub removed_at: OffsetDateTime,
}

/// Those of these addresses that are suppressed, or perhaps are, in the order in which they were asked for.
///
/// # Errors
/// If the database cannot be asked, or this login may not call `ses_ledger_suppressed`.
pub async fn suppressed(postgres: &Postgres, addresses: &[String]) -> anyhow::Result<Vec<Suppression>> {
    let mut found = Vec::new();
    for slice in addresses.chunks(SLICE) {
        let query = sqlx::query("SELECT * FROM ses_ledger_suppressed($1::text[], true)").bind(slice);
        let rows = postgres.patiently(query.try_map(|row| suppression(&row)).fetch_all(postgres)).await;
        found.extend(rows.context("cannot ask who is suppressed")?);
    }
    Ok(found)
}

/// Suppressed addresses, those with the newest report first.
///
/// # Errors
/// If the database cannot be read.
pub async fn list(postgres: &Postgres, which: &Listed) -> anyhow::Result<Vec<Suppression>> {
    let query = sqlx::query(
        "SELECT s.address, s.cause, s.occurred_at, true AS certain, s.subtype, s.smtp_status, s.email_log_uuid, s.event_uuid,
                (SELECT count(*)::integer FROM (
                   SELECT FROM ses_ledger_suppressions AS told
                   WHERE told.address = s.address AND NOT told.candidate AND told.occurred_at > removed.until LIMIT 1000) AS told) AS reports
         FROM ses_ledger_suppressions AS s
         CROSS JOIN LATERAL (SELECT coalesce(max(r.covers_until), '-infinity') AS until
                             FROM ses_ledger_suppression_removals AS r WHERE r.address = s.address) AS removed
         WHERE NOT s.candidate AND s.occurred_at > removed.until
           AND NOT EXISTS (SELECT FROM ses_ledger_suppressions AS n
                           WHERE n.address = s.address AND NOT n.candidate AND (n.occurred_at, n.cause) > (s.occurred_at, s.cause))
           AND s.occurred_at >= coalesce($1, '-infinity')
           AND ($2::timestamptz IS NULL OR (s.occurred_at, s.address) < ($2, $5))
           AND ($3::text IS NULL OR s.cause = $3)
         ORDER BY s.occurred_at DESC, s.address DESC LIMIT $4",
    );
    let (at, address) = which.after.clone().unzip();
    let query = query.bind(which.since).bind(at).bind(&which.cause).bind(i64::from(which.limit)).bind(address);
    let rows = postgres.patiently(query.try_map(|row| suppression(&row)).fetch_all(postgres)).await;
    rows.context("cannot list who is suppressed")
}

/// Allows an address to be written to again; `None` if it is not suppressed.
///
/// # Errors
/// If this login may not, or the database cannot be reached.
pub async fn remove(postgres: &Postgres, address: &str, reason: &str) -> anyhow::Result<Option<Uuid>> {
    let query = sqlx::query_scalar("SELECT ses_ledger_remove_suppression($1, $2)").bind(address).bind(reason);
    postgres.patiently(query.fetch_one(postgres)).await.context("cannot take the address off")
}

/// What was taken off, newest first: of one address, or all.
///
/// # Errors
/// If the database cannot be read.
pub async fn removals(postgres: &Postgres, of: Option<&str>, limit: u32) -> anyhow::Result<Vec<Removal>> {
    let query = sqlx::query(
        "SELECT uuid, address, reason, removed_by, removed_at FROM ses_ledger_suppression_removals
         WHERE $1::text IS NULL OR address = ses_ledger_suppression_key($1) ORDER BY uuid DESC LIMIT $2",
    );
    let query = query.bind(of).bind(i64::from(limit)).try_map(|row: PgRow| {
        Ok(Removal {
            uuid: row.try_get("uuid")?,
            address: row.try_get("address")?,
            reason: row.try_get("reason")?,
            removed_by: row.try_get("removed_by")?,
            removed_at: row.try_get("removed_at")?,
        })
    });
    postgres.patiently(query.fetch_all(postgres)).await.context("cannot read what was taken off")
}

/// What this login lacks to take an address off, as the statement that gives it. `None`: nothing.
///
/// # Errors
/// If the database cannot be asked.
pub async fn lacks_removal(postgres: &Postgres) -> anyhow::Result<Option<String>> {
    let query = sqlx::query(
        "SELECT has_function_privilege('ses_ledger_remove_suppression(text, text)', 'EXECUTE'), quote_ident(current_user)",
    );
    let read = |row: PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
    let (may, login): (bool, String) = postgres
        .patiently(query.try_map(read).fetch_one(postgres))
        .await
        .context("cannot read what this login may do; is the schema up to date (ses-ledger migrate status)?")?;
    Ok((!may).then(|| format!("GRANT EXECUTE ON FUNCTION ses_ledger_remove_suppression TO {login};")))
}

fn suppression(row: &PgRow) -> Result<Suppression, sqlx::Error> {
    Ok(Suppression {
        address: row.try_get("address")?,
        cause: row.try_get("cause")?,
        occurred_at: row.try_get("occurred_at")?,
        certain: row.try_get("certain")?,
        reports: row.try_get("reports")?,
        subtype: row.try_get("subtype")?,
        smtp_status: row.try_get("smtp_status")?,
        email_log_uuid: row.try_get("email_log_uuid")?,
        event_uuid: row.try_get("event_uuid")?,
    })
}

// People's addresses stay out of logs, also by accident.

impl fmt::Debug for Suppression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suppression")
            .field("cause", &self.cause)
            .field("occurred_at", &self.occurred_at)
            .field("certain", &self.certain)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Removal")
            .field("uuid", &self.uuid)
            .field("removed_at", &self.removed_at)
            .finish_non_exhaustive()
    }
}
