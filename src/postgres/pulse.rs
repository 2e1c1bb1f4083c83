//! The workers' heartbeats, written and read; and what the database says of its own health.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use sqlx::{Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Postgres;
use crate::pulse::{Beat, Counts, Identities, Minute, QueueMinute};

/// One round trip for all that a worker says of itself.
const BEAT: &str = include_str!("beat.sql");

/// Rows of the heartbeat are kept so long: in the migration's policies as well, which let a worker remove only older ones.
const KEEP: &str = "2 days";

/// A worker process, as it was when it was last seen.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerSeen {
    pub id: Uuid,
    /// Its host, or the name of the Lambda function.
    pub name: String,
    pub version: String,
    /// `ecs`, `lambda` or `other`.
    pub runtime: String,
    /// ARNs of the queues that it receives from.
    pub queues: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// Its last beat, by the clock of the database.
    #[serde(with = "time::serde::rfc3339")]
    pub seen_at: OffsetDateTime,
    /// When it said goodbye: never, if it was killed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub stopped_at: Option<OffsetDateTime>,
    /// It did not stop, and was seen lately.
    pub alive: bool,
    #[serde(flatten)]
    pub identities: Identities,
    /// Connections that it holds, and how many it may.
    pub connections: i32,
    pub connections_most: i32,
    /// Its `RETENTION_PAYLOAD`; `None`: payloads are kept.
    pub retention_payload_seconds: Option<i64>,
    /// All of its `RETENTION_` settings in seconds, by class; what is not named is kept. `None`: it is too old to say.
    pub retention: Option<BTreeMap<String, u64>>,
    /// What it did in the last full minute.
    pub last_minute: Counts,
}

/// The last event of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastEvent {
    pub event_type: String,
    #[serde(with = "time::serde::rfc3339::option")]
    pub occurred_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub stored_at: Option<OffsetDateTime>,
    /// Older ones are not known.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// What the database says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct DatabaseHealth {
    /// Its clock.
    #[serde(with = "time::serde::rfc3339")]
    pub now: OffsetDateTime,
    /// Like `15.18`.
    pub version: String,
    /// Connections of clients, and how many the server takes.
    pub connections: i64,
    pub connections_most: i64,
    /// How long the oldest open transaction has been open; `None`: there is no other.
    pub oldest_transaction_seconds: Option<f64>,
    /// Whether this login sees the transactions of others.
    pub sees_transactions: bool,
    /// Events whose mail is not known, and how long the oldest has waited.
    pub orphans: i64,
    pub oldest_orphan_seconds: Option<f64>,
    /// Bodies in quarantine, and those of them that nobody has tried again.
    pub quarantined: i64,
    pub quarantined_untried: i64,
    /// Months after this one for which partitions are ready, without a gap.
    pub months_ahead: i64,
    /// Tables with their indexes, largest first; partitions count for the whole.
    pub tables: Vec<TableSize>,
}

/// A table on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableSize {
    pub name: String,
    /// With its indexes and its long values.
    pub bytes: i64,
    /// As the planner guesses; -1 before the first ANALYZE.
    pub rows_about: i64,
}

/// Writes a beat. Writing it again changes nothing but the time at which the worker was last seen.
///
/// # Errors
/// If the database cannot be reached, or the role may not.
pub async fn beat(postgres: &Postgres, beat: &Beat) -> anyhow::Result<()> {
    let query = sqlx::query(BEAT)
        .bind(serde_json::to_string(&beat.worker)?)
        .bind(beat.stopped)
        .bind(minutes_of(beat)?)
        .bind(serde_json::to_string(&beat.kinds)?);
    query.execute(postgres).await.map(drop).context("cannot write the heartbeat")
}

/// Lets go of what is older than two days. Returns how many rows that were.
///
/// # Errors
/// If the database cannot be reached, or the role may not.
pub async fn forget(postgres: &Postgres) -> anyhow::Result<u64> {
    let mut rows = 0;
    for sql in [
        "DELETE FROM ses_ledger_minutes WHERE minute < now() - $1::interval",
        "DELETE FROM ses_ledger_workers WHERE seen_at < now() - $1::interval",
    ] {
        let gone = sqlx::query(sql).bind(KEEP).execute(postgres);
        rows += postgres.patiently(gone).await.context("cannot let go of old heartbeats")?.rows_affected();
    }
    Ok(rows)
}

/// The workers of the last two days, those seen last first, a thousand at most.
///
/// # Errors
/// If the database cannot be read.
pub async fn workers(postgres: &Postgres, alive_within: Duration) -> anyhow::Result<Vec<WorkerSeen>> {
    let query = sqlx::query(
        "SELECT w.*, stopped_at IS NULL AND seen_at > now() - make_interval(secs => $1) AS alive,
                extract(epoch FROM retention_payload)::bigint AS retention_payload_seconds, retention::text AS retentions, to_jsonb(m)::text AS last_minute
         FROM ses_ledger_workers AS w
         LEFT JOIN ses_ledger_minutes AS m
           ON m.worker = w.id AND m.minute = date_trunc('minute', now() - interval '5 seconds') - interval '1 minute'
         ORDER BY seen_at DESC LIMIT 1000",
    );
    let rows = query.bind(alive_within.as_secs_f64()).fetch_all(postgres).await.context("cannot read the workers")?;
    rows.iter().map(worker).collect()
}

/// What all workers did together in each minute since then, oldest first. The present minute is not over; minutes in which no
/// worker ran are missing.
///
/// # Errors
/// If the database cannot be read.
pub async fn minutes(postgres: &Postgres, since: OffsetDateTime) -> anyhow::Result<Vec<Minute>> {
    let sums: String = Counts::NAMES.iter().map(|name| format!(", sum({name})::bigint AS {name}")).collect();
    // The names are those of fields.
    let query = format!(
        "SELECT minute, lags, queues::text AS queues {names}
         FROM (SELECT minute, jsonb_agg(queues) AS queues {sums} FROM ses_ledger_minutes WHERE minute >= $1 GROUP BY minute) AS counts
         JOIN (SELECT minute, array_agg(times ORDER BY n) AS lags
               FROM (SELECT minute, n, sum(time)::bigint AS times
                     FROM ses_ledger_minutes, unnest(lags) WITH ORDINALITY AS lag (time, n) WHERE minute >= $1 GROUP BY minute, n) AS times
               GROUP BY minute) AS lags USING (minute)
         ORDER BY minute",
        names = Counts::NAMES.iter().map(|name| format!(", {name}")).collect::<String>(),
    );
    let query = sqlx::query(sqlx::AssertSqlSafe(query)).bind(since);
    let rows = query.fetch_all(postgres).await.context("cannot read the workers' minutes")?;
    rows.iter().map(minute).collect()
}

/// The last event of each kind, in the order of their names.
///
/// # Errors
/// If the database cannot be read.
pub async fn last_events(postgres: &Postgres) -> anyhow::Result<Vec<LastEvent>> {
    let query = sqlx::query(
        "SELECT event_type, last_occurred_at, last_stored_at, since FROM ses_ledger_kinds ORDER BY event_type",
    );
    let read = |row: PgRow| {
        Ok(LastEvent {
            event_type: row.try_get("event_type")?,
            occurred_at: row.try_get("last_occurred_at")?,
            stored_at: row.try_get("last_stored_at")?,
            since: row.try_get("since")?,
        })
    };
    query.try_map(read).fetch_all(postgres).await.context("cannot read the last event of each kind")
}

/// How the database is.
///
/// # Errors
/// If the database cannot be read.
pub async fn health(postgres: &Postgres) -> anyhow::Result<DatabaseHealth> {
    let context = "cannot ask the database how it is";
    let query = sqlx::query(
        "SELECT now() AS now, split_part(current_setting('server_version'), ' ', 1) AS version,
                (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
                current_setting('max_connections')::bigint AS connections_most,
                (SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float8 FROM pg_stat_activity
                 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname = current_database()) AS oldest_transaction,
                pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_transactions,
                (SELECT count(*) FROM orphaned_events) AS orphans,
                (SELECT extract(epoch FROM now() - stored_at)::float8 FROM orphaned_events ORDER BY uuid LIMIT 1) AS oldest_orphan,
                quarantine.*,
                ses_ledger_months_ahead() AS months_ahead
         FROM (SELECT count(*) AS quarantined, count(*) FILTER (WHERE last_replayed_at IS NULL) AS untried
               FROM quarantined_messages) AS quarantine",
    );
    let row = query.fetch_one(postgres).await.context(context)?;
    Ok(DatabaseHealth {
        now: row.try_get("now")?,
        version: row.try_get("version")?,
        connections: row.try_get("connections")?,
        connections_most: row.try_get("connections_most")?,
        oldest_transaction_seconds: row.try_get("oldest_transaction")?,
        sees_transactions: row.try_get("sees_transactions")?,
        orphans: row.try_get("orphans")?,
        oldest_orphan_seconds: row.try_get("oldest_orphan")?,
        quarantined: row.try_get("quarantined")?,
        quarantined_untried: row.try_get("untried")?,
        months_ahead: row.try_get("months_ahead")?,
        tables: tables(postgres).await.context(context)?,
    })
}

async fn tables(postgres: &Postgres) -> Result<Vec<TableSize>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT name, sum(pg_total_relation_size(c.oid))::bigint AS bytes, sum(greatest(reltuples, 0))::bigint AS rows
         FROM unnest(ARRAY['email_logs', 'email_events', 'orphaned_events', 'quarantined_messages']) AS name,
              pg_class AS c
         WHERE c.relkind = 'r' AND (c.oid = to_regclass(name) OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(name))))
         GROUP BY name ORDER BY bytes DESC, name",
    );
    let read = |row: PgRow| {
        Ok(TableSize { name: row.try_get("name")?, bytes: row.try_get("bytes")?, rows_about: row.try_get("rows")? })
    };
    query.try_map(read).fetch_all(postgres).await
}

/// The rows of the minutes, each with its worker.
fn minutes_of(beat: &Beat) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Row<'a> {
        worker: Uuid,
        #[serde(flatten)]
        minute: &'a Minute,
    }
    let rows = beat.minutes.iter().map(|minute| Row { worker: beat.worker.id, minute });
    serde_json::to_string(&rows.collect::<Vec<_>>())
}

fn worker(row: &PgRow) -> anyhow::Result<WorkerSeen> {
    let count = |name| row.try_get::<i64, _>(name);
    let last_minute: Option<String> = row.try_get("last_minute")?;
    let last_minute: BTreeMap<String, serde_json::Value> =
        last_minute.map(|json| serde_json::from_str(&json)).transpose()?.unwrap_or_default();
    let in_last_minute = |name: &str| last_minute.get(name).and_then(serde_json::Value::as_i64).unwrap_or_default();
    Ok(WorkerSeen {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        version: row.try_get("version")?,
        runtime: row.try_get("runtime")?,
        queues: row.try_get("queues")?,
        started_at: row.try_get("started_at")?,
        seen_at: row.try_get("seen_at")?,
        stopped_at: row.try_get("stopped_at")?,
        alive: row.try_get("alive")?,
        identities: Identities {
            received: count("received")?,
            stored: count("stored")?,
            ignored: count("ignored")?,
            rejected: count("rejected")?,
            released: count("released")?,
            in_hand: count("in_hand")?,
            messages_drift: count("messages_drift")?,
            decoded: count("decoded")?,
            inserted: count("inserted")?,
            duplicate: count("duplicate")?,
            orphaned: count("orphaned")?,
            quarantined: count("quarantined")?,
            events_drift: count("events_drift")?,
        },
        connections: row.try_get("connections")?,
        connections_most: row.try_get("connections_most")?,
        retention_payload_seconds: row.try_get("retention_payload_seconds")?,
        retention: row.try_get::<Option<&str>, _>("retentions")?.map(serde_json::from_str).transpose()?,
        last_minute: Counts::from_values(in_last_minute),
    })
}

fn minute(row: &PgRow) -> anyhow::Result<Minute> {
    let of_workers: Vec<BTreeMap<String, QueueMinute>> =
        serde_json::from_str(row.try_get("queues")?).context("cannot read the queues of a minute")?;
    let mut queues: BTreeMap<String, QueueMinute> = BTreeMap::new();
    for (name, minute) in of_workers.into_iter().flatten() {
        let sum = queues.entry(name).or_default();
        *sum = sum.plus(minute);
    }
    let mut counts = BTreeMap::new();
    for name in Counts::NAMES {
        counts.insert(*name, row.try_get::<i64, _>(*name)?);
    }
    let counts = Counts::from_values(|name| counts.get(name).copied().unwrap_or_default());
    Ok(Minute { minute: row.try_get("minute")?, counts, lags: row.try_get("lags")?, queues })
}
