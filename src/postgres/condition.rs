//! The database as a place to work in: who we are there, what it has room for, what time it is.

use anyhow::Context as _;
use sqlx::Row as _;
use time::OffsetDateTime;

use super::Postgres;

/// How many of the newest events are looked at for the kinds among them.
pub const NEWEST: i64 = 20_000;

/// What the server says about itself and this login.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Like `15.18`.
    pub version: String,
    /// It takes no changes: a standby.
    pub is_replica: bool,
    pub login: String,
    /// Nothing stops this login.
    pub is_superuser: bool,
    /// It may drop and alter the tables.
    pub is_owner: bool,
    /// It may delete what is stored.
    pub may_delete: bool,
    /// Connections that are open, of all logins.
    pub connections: i64,
    /// How many there may be, less those that are kept for superusers.
    pub most_connections: i64,
    /// The server's time, at the moment of the question.
    pub clock: OffsetDateTime,
}

/// Asks the server about itself and this login.
///
/// # Errors
/// If the database cannot be reached.
pub async fn condition(postgres: &Postgres) -> anyhow::Result<Condition> {
    let query = sqlx::query(
        "SELECT split_part(current_setting('server_version'), ' ', 1) AS version, pg_is_in_recovery() AS is_replica,
                current_user::text AS login,
                (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
                coalesce((SELECT pg_has_role(oid, 'MEMBER') FROM pg_roles WHERE rolname = 'ses_ledger_owner'), false) AS is_owner,
                coalesce(has_table_privilege(to_regclass('email_events'), 'DELETE'), false) AS may_delete,
                (SELECT sum(numbackends)::bigint FROM pg_stat_database) AS connections,
                current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
                  - coalesce(current_setting('reserved_connections', true), '0')::bigint AS most_connections,
                clock_timestamp() AS clock",
    );
    let row = query.fetch_one(postgres).await.context("cannot ask the database about itself")?;
    Ok(Condition {
        version: row.try_get("version")?,
        is_replica: row.try_get("is_replica")?,
        login: row.try_get("login")?,
        is_superuser: row.try_get("is_superuser")?,
        is_owner: row.try_get("is_owner")?,
        may_delete: row.try_get("may_delete")?,
        connections: row.try_get("connections")?,
        most_connections: row.try_get("most_connections")?,
        clock: row.try_get("clock")?,
    })
}

/// What to do about a login that may do too much.
pub fn use_worker(login: &str) -> String {
    format!(
        "CREATE ROLE ses_ledger LOGIN; GRANT ses_ledger_worker TO ses_ledger; and use that login in place of {login}"
    )
}

/// What to do about a login that may delete events.
pub fn take_deleting(login: &str) -> String {
    format!("REVOKE DELETE ON email_events FROM {login}, or from the role by which it may")
}

/// The kinds among the [`NEWEST`] events, each with the time of its last one.
///
/// # Errors
/// If the database cannot be reached, or this login may not read.
pub async fn newest_kinds(postgres: &Postgres) -> anyhow::Result<Vec<(String, OffsetDateTime)>> {
    let query = sqlx::query_as(
        "SELECT event_type, max(occurred_at)
         FROM (SELECT event_type, occurred_at FROM email_events ORDER BY email_log_uuid DESC LIMIT $1) AS newest
         GROUP BY 1 ORDER BY 2 DESC",
    );
    query.bind(NEWEST).fetch_all(postgres).await.context("cannot look for the newest events")
}
