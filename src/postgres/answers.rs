//! Questions that people ask about the stored history.

use anyhow::Context as _;
use sqlx::Row as _;
use time::OffsetDateTime;

use super::Postgres;

/// How many orphans still wait for their mail.
///
/// # Errors
/// If the database cannot be read.
pub async fn orphans_left(postgres: &Postgres) -> anyhow::Result<i64> {
    let query = sqlx::query_scalar("SELECT count(*) FROM orphaned_events");
    query.fetch_one(postgres).await.context("cannot count the orphaned events")
}

/// How many distinct bodies lie in quarantine for which reason, most first.
///
/// # Errors
/// If the database cannot be read.
pub async fn quarantine_by_reason(postgres: &Postgres) -> anyhow::Result<Vec<(String, i64)>> {
    let query =
        sqlx::query("SELECT reason, sum(bodies)::bigint FROM quarantine_failures GROUP BY reason ORDER BY 2 DESC, 1");
    let rows = query.fetch_all(postgres).await.context("cannot read the quarantine")?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// How many mails have which status, most first.
///
/// # Errors
/// If the database cannot be read.
pub async fn mails_by_status(postgres: &Postgres) -> anyhow::Result<Vec<(String, i64)>> {
    let query = sqlx::query("SELECT status, count(*) FROM email_logs GROUP BY status ORDER BY 2 DESC, 1");
    let rows = query.fetch_all(postgres).await.context("cannot count the mails")?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// A mail and what happened to it, in order.
#[derive(Clone, Debug)]
pub struct Timeline {
    pub subject: String,
    pub recipients: Vec<String>,
    pub status: String,
    pub aws_message_id: String,
    pub events: Vec<TimelineEvent>,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct TimelineEvent {
    pub occurred_at: OffsetDateTime,
    pub event_type: String,
    pub recipient: String,
    /// What the other side said, or which link was clicked.
    pub detail: Option<String>,
}

/// The timeline of the mail with the most kinds of events: the one that shows most.
///
/// # Errors
/// If the database cannot be read.
pub async fn richest_timeline(postgres: &Postgres) -> anyhow::Result<Option<Timeline>> {
    let context = "cannot read the timeline of a mail";
    let mail = sqlx::query(
        "SELECT l.uuid, l.subject, l.recipients, l.status, l.aws_message_id
         FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid
         WHERE cardinality(l.recipients) = 1 AND l.aws_message_id IS NOT NULL AND l.subject IS NOT NULL
         GROUP BY l.uuid HAVING count(*) <= 12
         ORDER BY count(DISTINCT e.event_type) DESC, count(*) DESC, l.uuid LIMIT 1",
    );
    let Some(mail) = mail.fetch_optional(postgres).await.context(context)? else { return Ok(None) };
    let events = sqlx::query(
        "SELECT occurred_at, event_type, recipient, coalesce(link, diagnostic, bounce_subtype, complaint_type, delay_type) AS detail
         FROM email_events WHERE email_log_uuid = $1 ORDER BY occurred_at, uuid",
    );
    let events = events.bind(mail.try_get::<uuid::Uuid, _>("uuid")?).fetch_all(postgres).await.context(context)?;
    let event = |row: &sqlx::postgres::PgRow| -> anyhow::Result<TimelineEvent> {
        Ok(TimelineEvent {
            occurred_at: row.try_get("occurred_at")?,
            event_type: row.try_get("event_type")?,
            recipient: row.try_get("recipient")?,
            detail: row.try_get("detail")?,
        })
    };
    Ok(Some(Timeline {
        subject: mail.try_get("subject")?,
        recipients: mail.try_get("recipients")?,
        status: mail.try_get("status")?,
        aws_message_id: mail.try_get("aws_message_id")?,
        events: events.iter().map(event).collect::<anyhow::Result<_>>()?,
    }))
}
