//! What a simulation does to a database beside sending mails: it cuts connections, looks at times, and cleans up.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::Row as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Postgres;
use crate::local::story::MARK;

/// The tag by which a simulation's log rows are known. Its value says how to make the same simulation up again.
pub const TAG: &str = "ses_ledger_simulation";

/// A simulation that has left rows behind: the value of its tag, and when it began.
#[derive(Clone, Debug)]
pub struct Left {
    pub recipe: serde_json::Value,
    pub since: OffsetDateTime,
}

/// Rows that were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub mails: u64,
    pub events: u64,
    pub orphans: u64,
    pub quarantined: u64,
}

/// Ends every connection to this database but the one that asks.
///
/// # Errors
/// If the database cannot be reached.
pub async fn cut_connections(postgres: &Postgres) -> anyhow::Result<()> {
    let query = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    query.fetch_all(postgres).await.map(drop).context("cannot cut the connections")
}

/// The database's own time.
///
/// # Errors
/// If the database cannot be reached.
pub async fn now(postgres: &Postgres) -> anyhow::Result<OffsetDateTime> {
    sqlx::query_scalar("SELECT now()").fetch_one(postgres).await.context("cannot ask for the time")
}

/// Which message brought the events of these mails, and when it was about to be stored, by the worker's clock.
///
/// # Errors
/// If the database cannot be read.
pub async fn storing_times(postgres: &Postgres, logs: &[Uuid]) -> anyhow::Result<Vec<(String, Duration)>> {
    let query = sqlx::query("SELECT sqs_message_id, uuid FROM email_events WHERE email_log_uuid = ANY($1)").bind(logs);
    let rows = query.fetch_all(postgres).await.context("cannot read when the events were stored")?;
    let time = |uuid: Uuid| uuid.get_timestamp().map(|time| time.to_unix());
    rows.iter()
        .filter_map(|row| match (row.try_get(0), row.try_get(1).map(time)) {
            (Ok(id), Ok(Some((seconds, nanoseconds)))) => Some(Ok((id, Duration::new(seconds, nanoseconds)))),
            (Ok(_), Ok(None)) => None,
            (Err(e), _) | (_, Err(e)) => Some(Err(e.into())),
        })
        .collect()
}

/// The simulations that have left log rows here.
///
/// # Errors
/// If the database cannot be read.
pub async fn left(postgres: &Postgres) -> anyhow::Result<Vec<Left>> {
    let query = sqlx::query(
        "SELECT tags -> $1, min(coalesce((tags -> $1 ->> 'since')::timestamptz, created_at))
         FROM email_logs WHERE tags ? $1 GROUP BY 1",
    )
    .bind(TAG);
    let rows = query.fetch_all(postgres).await.context("cannot look for earlier simulations")?;
    rows.iter().map(|row| Ok(Left { recipe: row.try_get(0)?, since: row.try_get(1)? })).collect()
}

/// Removes everything that names a made-up mail: log rows with their events, orphans, and bodies in quarantine.
///
/// # Errors
/// If the login may not remove rows.
pub async fn remove_marked(postgres: &Postgres) -> anyhow::Result<Removed> {
    let context = "cannot remove the rows of simulations (the worker's role may not: use the one that migrates)";
    let mut transaction = postgres.transaction().await.context(context)?;
    // Counted here: what a foreign key removes is not told.
    let events: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid WHERE l.tags ? $1",
    )
    .bind(TAG)
    .fetch_one(&mut transaction)
    .await
    .context(context)?;
    let mut removed = Removed { events: events.unsigned_abs(), ..Removed::default() };
    for (statement, mark, count) in [
        ("DELETE FROM email_logs WHERE tags ? $1", TAG, &mut removed.mails),
        ("DELETE FROM orphaned_events WHERE right(aws_message_id, length($1)) = $1", MARK, &mut removed.orphans),
        (
            "DELETE FROM quarantined_messages WHERE position(convert_to($1, 'UTF8') IN body) > 0",
            MARK,
            &mut removed.quarantined,
        ),
    ] {
        *count = sqlx::query(statement).bind(mark).execute(&mut transaction).await.context(context)?.rows_affected();
    }
    transaction.end().await.context(context)?;
    Ok(removed)
}

/// Removes these bodies from quarantine, unless they were there before. Returns how many.
///
/// # Errors
/// If the login may not remove rows.
pub async fn remove_quarantined(postgres: &Postgres, digests: &[&[u8]], since: OffsetDateTime) -> anyhow::Result<u64> {
    let query = sqlx::query("DELETE FROM quarantined_messages WHERE body_digest = ANY($1) AND first_seen_at >= $2");
    let done = query.bind(digests).bind(since).execute(postgres).await;
    Ok(done.context("cannot remove bodies from the quarantine")?.rows_affected())
}
