//! What became of the mails of a smoke test, and how they are removed.

use anyhow::Context as _;
use sqlx::Row as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Postgres;

/// The tag by which the log rows of smoke tests are known. Its value is the test's own mark.
pub const TAG: &str = "ses_ledger_smoke";

/// An event of one of the mails.
#[derive(Clone, Debug)]
pub struct Seen {
    pub log_uuid: Uuid,
    pub event_type: String,
    pub bounce_type: Option<String>,
    pub bounce_subtype: Option<String>,
    /// By the clock of SES.
    pub occurred_at: OffsetDateTime,
    /// By the worker's clock.
    pub received_at: OffsetDateTime,
    /// By the database's clock.
    pub stored_at: OffsetDateTime,
}

/// The events of these mails, in the order in which they happened.
///
/// # Errors
/// If the database cannot be reached, or this login may not read events.
pub async fn seen(postgres: &Postgres, logs: &[Uuid]) -> anyhow::Result<Vec<Seen>> {
    let query = sqlx::query(
        "SELECT email_log_uuid, event_type, bounce_type, bounce_subtype, occurred_at, received_at, stored_at
         FROM email_events WHERE email_log_uuid = ANY($1) ORDER BY occurred_at, uuid",
    );
    let rows = query.bind(logs).fetch_all(postgres).await;
    let rows = rows.context("cannot read the events (the login needs ses_ledger_operator)")?;
    let seen = rows.iter().map(|row| {
        Ok(Seen {
            log_uuid: row.try_get("email_log_uuid")?,
            event_type: row.try_get("event_type")?,
            bounce_type: row.try_get("bounce_type")?,
            bounce_subtype: row.try_get("bounce_subtype")?,
            occurred_at: row.try_get("occurred_at")?,
            received_at: row.try_get("received_at")?,
            stored_at: row.try_get("stored_at")?,
        })
    });
    seen.collect()
}

/// Removes log rows of smoke tests, with their events and what is left of their orphans: those of one mark, or of all.
/// `None` if this login may not.
///
/// # Errors
/// If the database cannot be reached.
pub async fn remove(postgres: &Postgres, mark: Option<&str>) -> anyhow::Result<Option<u64>> {
    let context = "cannot remove the rows of the smoke test";
    let mut transaction = postgres.transaction().await.context(context)?;
    let orphans = sqlx::query(
        "DELETE FROM orphaned_events WHERE aws_message_id IN
           (SELECT aws_message_id FROM email_logs WHERE tags ? $1 AND ($2::text IS NULL OR tags ->> $1 = $2))",
    );
    let logs = sqlx::query("DELETE FROM email_logs WHERE tags ? $1 AND ($2::text IS NULL OR tags ->> $1 = $2)");
    let mut removed = 0;
    for query in [orphans, logs] {
        match query.bind(TAG).bind(mark).execute(&mut transaction).await {
            Ok(done) => removed = done.rows_affected(),
            Err(e) if e.as_database_error().is_some_and(|e| e.code().as_deref() == Some("42501")) => return Ok(None),
            Err(e) => return Err(e).context(context),
        }
    }
    transaction.end().await.context(context)?;
    Ok(Some(removed))
}
