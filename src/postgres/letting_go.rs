//! Removes what is too old: months of events by their partition, everything else by rows, in slices.
//!
//! Needs the rights of ses_ledger_owner (migration 15 says why), and one session for all of it.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgRow};
use time::{Date, OffsetDateTime};
use tokio::time::sleep;
use uuid::Uuid;

use super::{Postgres, upkeep::Content};
use crate::{retention::Class, upkeep::Pace};

/// How long a statement may wait for a lock, while others wait behind it; how often it is tried, and how long to leave the
/// table to others after each time.
pub(super) const LOCK_TIMEOUT: &str = "1s";
const TRIES: usize = 30;
const BETWEEN: Duration = Duration::from_secs(1);
/// Rows to remove in one statement, or to read before the database is left to others for a while.
const SLICE: usize = 1_000;

/// What is to happen once a day is overdue when it is older than this: it was missed twice.
pub const OVERDUE: Duration = Duration::from_secs(49 * 3600);

/// A session with the owner's rights. Only one at a time has it.
pub struct Owner {
    connection: PgConnection,
    has_lock: bool,
}

/// A kind of rows that are removed one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Events of mails whose id tells no time; all others go by the month.
    Events,
    Orphans,
    Quarantine,
    Logs,
}

/// A row to remove: its key, and the row as one line of JSON if that was asked for.
pub struct Doomed {
    pub key: (Uuid, Uuid),
    pub json: Option<String>,
}

/// How much something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    pub rows: i64,
    pub bytes: i64,
}

/// A month of events that is still there as a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Month {
    /// Its first day.
    pub first: Date,
    table: String,
    state: MonthState,
    /// What the planner thinks, and with indexes.
    pub weight: Weight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MonthState {
    Attached,
    /// A detach was cut short.
    Pending,
    Detached,
}

/// Where a month was exported to.
#[derive(Clone, Debug)]
pub struct Exported {
    pub file: String,
    pub sha256: String,
}

/// A partition of the events, as `partitions list` shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Partition {
    pub name: String,
    /// Its month, like `2025-03`; none for the catch-all at each end.
    pub month: Option<String>,
    /// What the planner thinks.
    pub rows: i64,
    /// With indexes.
    pub bytes: i64,
}

impl Owner {
    /// Takes the owner's rights, and the lock that keeps a second one out.
    ///
    /// # Errors
    /// If the login is no member of the owner, or somebody else is at it.
    pub async fn begin(postgres: &Postgres) -> anyhow::Result<Self> {
        let mut owner = Self::look(postgres).await?;
        let free: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtext('ses_ledger letting go'))")
            .fetch_one(&mut owner.connection)
            .await
            .context("cannot take the lock of who lets go")?;
        anyhow::ensure!(free, "another retention, erasure or rebuild is under way: wait until it has ended");
        owner.has_lock = true;
        Ok(owner)
    }

    /// Takes the owner's rights, to look only.
    ///
    /// # Errors
    /// If the login is no member of the owner.
    pub async fn look(postgres: &Postgres) -> anyhow::Result<Self> {
        let connection = postgres.acquire().await.context("cannot reach the database")?;
        let mut connection = connection.detach();
        connection.execute("SET ROLE ses_ledger_owner").await.context(
            "cannot become the role ses_ledger_owner: name the login that migrates, or GRANT ses_ledger_owner TO this one",
        )?;
        let settings =
            format!("SET lock_timeout = '{LOCK_TIMEOUT}'; SET statement_timeout = 0; SET enable_seqscan = on");
        connection.execute(AssertSqlSafe(settings)).await.context("cannot prepare the session")?;
        Ok(Self { connection, has_lock: false })
    }

    /// Gives the rights and the lock back. The lock first: the server may take a while to notice that a session is over.
    pub async fn end(mut self) {
        if self.has_lock {
            let _ = self.connection.execute("SELECT pg_advisory_unlock_all()").await;
        }
        let _ = self.connection.close().await;
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// The database's own time, that many seconds ago.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn ago(&mut self, age: Duration) -> anyhow::Result<OffsetDateTime> {
        let query = sqlx::query_scalar("SELECT now() - make_interval(secs => $1)").bind(age.as_secs_f64());
        query.fetch_one(&mut self.connection).await.context("cannot ask for the time")
    }

    /// Moves the horizons forward, never back. From here on, whoever stores knows that what is older is let go.
    /// Returns the horizon of the events: the first of a month.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn move_horizon(
        &mut self,
        events: Option<OffsetDateTime>,
        logs: Option<OffsetDateTime>,
    ) -> anyhow::Result<OffsetDateTime> {
        let query = sqlx::query_scalar(
            "UPDATE ses_ledger_horizon SET
               events_from = greatest(events_from, date_trunc('month', $1::timestamptz, 'UTC')),
               logs_from = least(greatest(logs_from, $2::timestamptz),
                                 greatest(events_from, date_trunc('month', $1::timestamptz, 'UTC')))
             RETURNING events_from",
        );
        query.bind(events).bind(logs).fetch_one(&mut self.connection).await.context("cannot move the horizon")
    }

    /// When logs are kept from.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn logs_from(&mut self) -> anyhow::Result<OffsetDateTime> {
        let query = sqlx::query_scalar("SELECT logs_from FROM ses_ledger_horizon");
        query.fetch_one(&mut self.connection).await.context("cannot read the horizon")
    }

    /// Notes that a run of retention began.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn note_begin(&mut self) -> anyhow::Result<Uuid> {
        let query = sqlx::query_scalar("INSERT INTO ses_ledger_retention_runs DEFAULT VALUES RETURNING uuid");
        query.fetch_one(&mut self.connection).await.context("cannot note the run")
    }

    /// Notes that it came to its end, and what it let go.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn note_end(&mut self, run: Uuid, let_go: &serde_json::Value) -> anyhow::Result<()> {
        let query =
            sqlx::query("UPDATE ses_ledger_retention_runs SET ended_at = now(), let_go = $2::jsonb WHERE uuid = $1");
        let query = query.bind(run).bind(let_go.to_string());
        query.execute(&mut self.connection).await.map(drop).context("cannot note the end of the run")
    }

    /// The months before the horizon that are still there as tables, oldest first; those that a run left half done as well.
    ///
    /// # Errors
    /// If the catalogue cannot be read.
    pub async fn months_before(&mut self, horizon: OffsetDateTime) -> anyhow::Result<Vec<Month>> {
        // A month that is gone may have come back for mails whose id only looks like it: that one stays.
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT * FROM (
               SELECT c.relname::text AS name, i.inhrelid IS NOT NULL AS attached, coalesce(i.inhdetachpending, false) AS pending,
                      make_date(substr(c.relname, 15, 4)::integer, substr(c.relname, 20, 2)::integer, 1) AS first,
                      w.rows, w.bytes
               FROM pg_class AS c
               LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid AND i.inhparent = to_regclass('email_events')
               CROSS JOIN LATERAL ({WEIGHT}) AS w
               WHERE c.relkind IN ('r', 'p') AND c.relname ~ '^email_events_y[0-9]{{4}}m(0[1-9]|1[0-2])(_let_go)?$'
                 AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('email_events'))
             ) AS months
             WHERE first < ($1 AT TIME ZONE 'UTC')::date
               AND (name LIKE '%let_go' OR attached AND NOT EXISTS (
                 SELECT FROM ses_ledger_months_let_go AS g WHERE g.month = first AND g.gone_at IS NOT NULL))
             ORDER BY pending DESC, first, name DESC",
        )));
        let rows = rows.bind(horizon).fetch_all(&mut self.connection).await.context("cannot list the months")?;
        let month = |row: &PgRow| {
            Ok::<_, sqlx::Error>(Month {
                first: row.try_get("first")?,
                table: row.try_get("name")?,
                state: match (row.try_get("attached")?, row.try_get("pending")?) {
                    (_, true) => MonthState::Pending,
                    (true, false) => MonthState::Attached,
                    (false, false) => MonthState::Detached,
                },
                weight: Weight { rows: row.try_get("rows")?, bytes: row.try_get("bytes")? },
            })
        };
        rows.iter().map(month).collect::<Result<_, _>>().context("cannot list the months")
    }

    /// Takes a month out of the events, without stalling who stores. Afterwards it stands alone, and what belongs to mails
    /// that are younger is back among the events.
    ///
    /// # Errors
    /// If a lock could not be had in time: the month is taken up again by the next run, wherever this one stopped.
    pub async fn detach(&mut self, month: &mut Month) -> anyhow::Result<()> {
        let context = || format!("cannot detach the month of {}", month.first);
        let note = sqlx::query("INSERT INTO ses_ledger_months_let_go (month) VALUES ($1) ON CONFLICT DO NOTHING");
        note.bind(month.first).execute(&mut self.connection).await.with_context(context)?;
        if !month.table.ends_with("_let_go") {
            // Before it is detached: so a table of a month's plain name is always one that takes events.
            let renamed = format!("{}_let_go", month.table);
            self.patiently(&format!("ALTER TABLE {} RENAME TO {renamed}", month.table)).await.with_context(context)?;
            month.table = renamed;
        }
        let detach = format!("ALTER TABLE email_events DETACH PARTITION {}", month.table);
        match month.state {
            MonthState::Attached => self.patiently(&format!("{detach} CONCURRENTLY")).await.with_context(context)?,
            MonthState::Pending => self.patiently(&format!("{detach} FINALIZE")).await.with_context(context)?,
            MonthState::Detached => {}
        }
        month.state = MonthState::Detached;
        self.put_back(month).await.with_context(context)
    }

    /// Events of younger mails whose id only looks like this month: few, or none.
    async fn put_back(&mut self, month: &Month) -> Result<(), sqlx::Error> {
        let table = &month.table;
        let mut transaction = self.connection.begin().await?;
        let keep = format!(
            "FROM {table} AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid
             WHERE NOT ses_ledger_is_v7(l.uuid) AND NOT ses_ledger_is_let_go(l.uuid, l.created_at)"
        );
        let any = format!("SELECT EXISTS (SELECT {keep})");
        if !sqlx::query_scalar::<_, bool>(AssertSqlSafe(any)).fetch_one(&mut *transaction).await? {
            // Nothing of it is out of sight any more that belongs to what stays: the figures wait for that.
            let none = "UPDATE ses_ledger_months_let_go SET kept = coalesce(kept, 0) WHERE month = $1";
            sqlx::query(none).bind(month.first).execute(&mut *transaction).await?;
            return transaction.commit().await;
        }
        let first = month.first.midnight().assume_utc();
        sqlx::query("SELECT email_events_ensure_month($1)").bind(first).execute(&mut *transaction).await?;
        let columns: String = sqlx::query_scalar(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = to_regclass('email_events') AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
        )
        .fetch_one(&mut *transaction)
        .await?;
        let back = format!(
            "WITH kept AS (DELETE FROM {table} AS gone USING (SELECT e.email_log_uuid, e.uuid {keep}) AS k
                           WHERE (gone.email_log_uuid, gone.uuid) = (k.email_log_uuid, k.uuid) RETURNING gone.*),
                  stored AS (INSERT INTO email_events ({columns}) SELECT {columns} FROM kept ON CONFLICT DO NOTHING)
             UPDATE ses_ledger_months_let_go SET kept = coalesce(kept, 0) + (SELECT count(*) FROM kept) WHERE month = $1"
        );
        sqlx::query(AssertSqlSafe(back)).bind(month.first).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    /// Hands every event of a detached month to `take`, as one line of JSON each.
    ///
    /// # Errors
    /// If the month cannot be read, or what `take` says.
    pub async fn read_month(
        &mut self,
        month: &Month,
        mut take: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (mut read, mut pace) = (0, Pace::begin());
        let lines = format!("SELECT row_to_json(e)::text FROM {} AS e", month.table);
        let mut lines = sqlx::query_scalar::<_, String>(AssertSqlSafe(lines)).fetch(&mut self.connection);
        while let Some(line) =
            lines.try_next().await.with_context(|| format!("cannot read the month of {}", month.first))?
        {
            take(&line)?;
            read += 1;
            if read % SLICE == 0 {
                pace.rest().await;
            }
        }
        Ok(())
    }

    /// How many events a detached month holds, and what it weighs.
    ///
    /// # Errors
    /// If the month cannot be read.
    pub async fn weigh_month(&mut self, month: &Month) -> anyhow::Result<Weight> {
        let table = &month.table;
        let query =
            format!("SELECT (SELECT count(*) FROM {table}) AS rows, pg_total_relation_size('{table}') AS bytes");
        let row = sqlx::query(AssertSqlSafe(query)).fetch_one(&mut self.connection).await;
        let row = row.with_context(|| format!("cannot weigh the month of {}", month.first))?;
        Ok(Weight { rows: row.try_get("rows")?, bytes: row.try_get("bytes")? })
    }

    /// Drops a detached month, and notes what it held.
    ///
    /// # Errors
    /// If a lock could not be had in time: the next run does it.
    pub async fn drop_month(&mut self, month: &Month, held: Weight, exported: Option<&Exported>) -> anyhow::Result<()> {
        let context = || format!("cannot drop the month of {}", month.first);
        anyhow::ensure!(month.state == MonthState::Detached, "the month of {} is not detached", month.first);
        // What it held first: once it is gone, nobody could say.
        sqlx::query(
            "UPDATE ses_ledger_months_let_go
             SET events = $2, bytes = $3, export_file = $4, export_sha256 = $5 WHERE month = $1",
        )
        .bind(month.first)
        .bind(held.rows)
        .bind(held.bytes)
        .bind(exported.map(|e| &e.file))
        .bind(exported.map(|e| &e.sha256))
        .execute(&mut self.connection)
        .await
        .with_context(context)?;
        self.patiently(&format!("DROP TABLE {}", month.table)).await.with_context(context)?;
        self.note_gone().await.with_context(context)
    }

    /// Notes which months are gone: also those that a run dropped and did not come to note.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn note_gone(&mut self) -> Result<(), sqlx::Error> {
        let gone = "UPDATE ses_ledger_months_let_go SET gone_at = now() WHERE gone_at IS NULL AND events IS NOT NULL
                    AND to_regclass('email_events_' || to_char(month, '\"y\"YYYY\"m\"MM') || '_let_go') IS NULL";
        self.connection.execute(gone).await.map(drop)
    }

    /// How much of these rows is from before the cutoff.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn weigh(&mut self, what: Rows, cutoff: OffsetDateTime) -> anyhow::Result<Weight> {
        let query =
            format!("SELECT count(*) AS rows, coalesce(sum(pg_column_size(t)), 0)::bigint AS bytes {}", what.source());
        let query = sqlx::query(AssertSqlSafe(query)).bind(cutoff).bind(Uuid::nil()).bind(Uuid::nil());
        let row = query
            .fetch_one(&mut self.connection)
            .await
            .with_context(|| format!("cannot weigh the {}", what.as_str()))?;
        Ok(Weight { rows: row.try_get("rows")?, bytes: row.try_get("bytes")? })
    }

    /// How much the payloads weigh that are older than the cutoff, or the bodies and headers of mails.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn weigh_emptied(&mut self, what: Content, cutoff: OffsetDateTime) -> anyhow::Result<Weight> {
        let query = match what {
            Content::Payloads => sqlx::query(
                "SELECT count(*) AS rows, coalesce(sum(pg_column_size(payload)), 0)::bigint AS bytes FROM email_events
                 WHERE payload IS NOT NULL AND received_at < $1
                   AND (email_log_uuid < ses_ledger_uuid_floor($1) OR email_log_uuid >= '024bce5c-f000-0000-0000-000000000000')",
            ),
            Content::Bodies => sqlx::query(
                "SELECT count(*) AS rows, coalesce(sum(pg_column_size(body_full)), 0)::bigint
                        + coalesce(sum(pg_column_size(headers)), 0)::bigint AS bytes FROM email_logs
                 WHERE (body_full IS NOT NULL OR headers IS NOT NULL) AND created_at < $1
                   AND (uuid < ses_ledger_uuid_floor($1) OR uuid >= '024bce5c-f000-0000-0000-000000000000')",
            ),
        };
        let row =
            query.bind(cutoff).fetch_one(&mut self.connection).await.context("cannot weigh what would be emptied")?;
        Ok(Weight { rows: row.try_get("rows")?, bytes: row.try_get("bytes")? })
    }

    /// The next rows from before the cutoff, in the order of their key, handed to `take` one by one; as JSON if asked for.
    ///
    /// # Errors
    /// If they cannot be read, or what `take` says.
    pub async fn read_doomed(
        &mut self,
        what: Rows,
        cutoff: OffsetDateTime,
        after: (Uuid, Uuid),
        (most, as_json): (i64, bool),
        mut take: impl FnMut(Doomed) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (mut read, mut pace) = (0, Pace::begin());
        let (key, source) = (what.key(), what.source());
        let json = if as_json { "row_to_json(t)::text" } else { "NULL::text" };
        let query = format!("SELECT {key}, {json} AS json {source} ORDER BY {key} LIMIT {most}");
        let query = sqlx::query(AssertSqlSafe(query)).bind(cutoff).bind(after.0).bind(after.1);
        let mut rows = query.fetch(&mut self.connection);
        let context = || format!("cannot read the {}", what.as_str());
        while let Some(row) = rows.try_next().await.with_context(context)? {
            let key = match what {
                Rows::Events => (row.try_get(0)?, row.try_get(1)?),
                _ => (row.try_get(0)?, Uuid::nil()),
            };
            take(Doomed { key, json: row.try_get("json")? })?;
            read += 1;
            if as_json && read % SLICE == 0 {
                pace.rest().await;
            }
        }
        Ok(())
    }

    /// Removes these rows, in slices, with a rest after each; says how many.
    ///
    /// # Errors
    /// If a slice cannot be removed. Those before it stay removed.
    pub async fn remove(
        &mut self,
        what: Rows,
        cutoff: OffsetDateTime,
        run: Uuid,
        keys: &[(Uuid, Uuid)],
    ) -> anyhow::Result<u64> {
        let (mut removed, mut pace) = (0, Pace::begin());
        for slice in keys.chunks(SLICE) {
            let (ids, more): (Vec<Uuid>, Vec<Uuid>) = slice.iter().copied().unzip();
            let query = sqlx::query_scalar::<_, i64>(what.removal()).bind(&ids);
            let query = match what {
                Rows::Events => query.bind(&more),
                Rows::Orphans => query.bind(run).bind(cutoff),
                Rows::Quarantine => query.bind(run),
                Rows::Logs => query,
            };
            let gone = query.fetch_one(&mut self.connection).await;
            removed += gone.with_context(|| format!("cannot remove {}", what.as_str()))? as u64;
            pace.rest().await;
        }
        Ok(removed)
    }

    /// Runs a statement that needs a lock which others hold for long, or wait behind: often, and each time briefly.
    pub(super) async fn patiently(&mut self, statement: &str) -> Result<(), sqlx::Error> {
        let mut tries = 1;
        loop {
            let failed = match self.connection.execute(AssertSqlSafe(statement.to_owned())).await {
                Ok(_) => return Ok(()),
                Err(e) => e,
            };
            let code = failed.as_database_error().and_then(|e| e.code()).unwrap_or_default();
            let is_half_detached = code == "55000" && statement.ends_with("CONCURRENTLY");
            if tries == TRIES || !(is_in_the_way(&failed) || is_half_detached) {
                return Err(failed);
            }
            // Given up while it waited for old transactions, it is detached by half already.
            if let Some(detach) = statement.strip_suffix(" CONCURRENTLY")
                && self.is_pending(detach).await?
            {
                return Box::pin(self.patiently(&format!("{detach} FINALIZE"))).await;
            }
            tries += 1;
            sleep(BETWEEN).await;
        }
    }

    async fn is_pending(&mut self, detach: &str) -> Result<bool, sqlx::Error> {
        let name = detach.rsplit(' ').next().unwrap_or_default();
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass($1) AND inhdetachpending)",
        )
        .bind(name)
        .fetch_one(&mut self.connection)
        .await
    }
}

impl Month {
    /// As people write it: `2025-03`.
    pub fn name(&self) -> String {
        format!("{}-{:02}", self.first.year(), u8::from(self.first.month()))
    }
}

impl Rows {
    /// As people call them.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events of mails whose id tells no time",
            Self::Orphans => "orphaned events",
            Self::Quarantine => "quarantined bodies",
            Self::Logs => "mails",
        }
    }

    /// The table they are in.
    pub fn table(self) -> &'static str {
        match self {
            Self::Events => "email_events",
            Self::Orphans => "orphaned_events",
            Self::Quarantine => "quarantined_messages",
            Self::Logs => "email_logs",
        }
    }

    fn key(self) -> &'static str {
        if self == Self::Events { "t.email_log_uuid, t.uuid" } else { "t.uuid" }
    }

    /// Those from before $1 and after the key ($2, $3).
    fn source(self) -> &'static str {
        match self {
            // In the catch-alls alone. The few that lie in a month go with it, and till then nobody stores them again.
            Self::Events => {
                "FROM email_events AS t JOIN email_logs AS l ON l.uuid = t.email_log_uuid
                 WHERE (t.email_log_uuid, t.uuid) > ($2, $3)
                   AND (t.email_log_uuid < '014aa2ca-b000-0000-0000-000000000000' OR t.email_log_uuid >= '024bce5c-f000-0000-0000-000000000000')
                   AND NOT ses_ledger_is_v7(l.uuid) AND l.created_at < $1"
            }
            Self::Orphans => {
                "FROM orphaned_events AS t
                 WHERE t.uuid > $2 AND $3::uuid IS NOT NULL
                   AND t.uuid < ses_ledger_uuid_floor($1) AND t.stored_at < $1
                   AND NOT EXISTS (SELECT FROM email_logs AS l WHERE l.aws_message_id = t.aws_message_id)
                   AND NOT EXISTS (SELECT FROM email_logs AS l WHERE l.uuid = t.log_uuid)"
            }
            // One that still arrives is kept.
            Self::Quarantine => {
                "FROM quarantined_messages AS t
                 WHERE t.uuid > $2 AND $3::uuid IS NOT NULL
                   AND t.uuid < ses_ledger_uuid_floor($1) AND t.last_seen_at < $1"
            }
            // Not before something happened to it before the horizon: SES took the mail before that, so the time of the mail
            // in each of its events tells that it was let go. One that was written long before it was sent waits for that.
            Self::Logs => {
                "FROM email_logs AS t
                 WHERE t.uuid > $2 AND $3::uuid IS NOT NULL
                   AND (t.uuid < ses_ledger_uuid_floor($1) OR t.uuid >= '024bce5c-f000-0000-0000-000000000000')
                   AND (ses_ledger_is_v7(t.uuid) OR t.created_at < $1)
                   AND coalesce(least(t.sent_at, t.delivered_at, t.delayed_at, t.bounced_at, t.complained_at, t.rejected_at,
                                      t.failed_at, t.opened_at, t.clicked_at), t.created_at) < $1"
            }
        }
    }

    fn removal(self) -> &'static str {
        match self {
            Self::Events => {
                "WITH gone AS (DELETE FROM email_events AS e USING unnest($1::uuid[], $2::uuid[]) AS k (log, id)
                               WHERE e.email_log_uuid = k.log AND e.uuid = k.id RETURNING 1) SELECT count(*) FROM gone"
            }
            Self::Orphans => "SELECT ses_ledger_expire_orphans($2, $1, now() - $3, 'RETENTION_ORPHANS')",
            Self::Quarantine => "SELECT ses_ledger_drop_quarantined($2, $1, 'RETENTION_QUARANTINE')",
            Self::Logs => {
                "WITH gone AS (DELETE FROM email_logs WHERE uuid = ANY ($1) RETURNING 1) SELECT count(*) FROM gone"
            }
        }
    }
}

/// Rows, as far as PostgreSQL knows, and bytes of the table `c`: a month, which somebody may have divided further.
const WEIGHT: &str =
    "SELECT coalesce(sum(greatest(l.reltuples, 0)), 0)::bigint AS rows, coalesce(sum(pg_total_relation_size(l.oid)), 0)::bigint AS bytes
  FROM pg_class AS l
  WHERE l.relkind = 'r' AND l.oid IN (SELECT c.oid UNION ALL SELECT relid FROM pg_partition_tree(c.oid))";

/// The partitions of the events, oldest first.
///
/// # Errors
/// If the catalogue cannot be read.
pub async fn partitions(postgres: &Postgres) -> anyhow::Result<Vec<Partition>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT c.relname::text AS name, w.rows, w.bytes,
                CASE WHEN c.relname ~ '^email_events_y[0-9]{{4}}m[0-9]{{2}}'
                     THEN substr(c.relname, 15, 4) || '-' || substr(c.relname, 20, 2) END AS month
         FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid CROSS JOIN LATERAL ({WEIGHT}) AS w
         WHERE i.inhparent = to_regclass('email_events')
         ORDER BY month NULLS FIRST, c.relname",
    )));
    let rows = rows.fetch_all(postgres).await.context("cannot list the partitions")?;
    let partition = |row: &PgRow| {
        Ok::<_, sqlx::Error>(Partition {
            name: row.try_get("name")?,
            month: row.try_get("month")?,
            rows: row.try_get("rows")?,
            bytes: row.try_get("bytes")?,
        })
    };
    rows.iter().map(partition).collect::<Result<_, _>>().context("cannot list the partitions")
}

/// Partitions have to be ready for so many months after this one.
pub const FEWEST_MONTHS_AHEAD: i64 = 2;

/// Months after this one for which partitions are ready, without a gap: 24 at most.
///
/// # Errors
/// If the catalogue cannot be read.
pub async fn months_ahead(postgres: &Postgres) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT ses_ledger_months_ahead()").fetch_one(postgres).await
}

/// What is written down of what was let go.
#[derive(Clone, Debug)]
pub struct Past {
    classes: Vec<PastOfClass>,
    /// Events of mails from before are let go; none: never any.
    pub events_from: Option<OffsetDateTime>,
    /// Mails from before are let go; none: never any.
    pub logs_from: Option<OffsetDateTime>,
    /// When the newest run began, if it has not come to its end.
    pub unfinished_run: Option<OffsetDateTime>,
}

/// The last time that a class was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PastOfClass {
    pub ran_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
    /// Rows that were let go by what ended then.
    pub rows: Option<u64>,
    /// Seconds after which they went; not known of what workers do.
    pub older_than: Option<u64>,
    /// Since somebody looked, or could have for the first time.
    pub age: Duration,
}

impl Past {
    /// The last time that this class was looked at.
    pub fn of(&self, class: Class) -> PastOfClass {
        let at = Class::ALL.iter().position(|it| *it == class);
        at.and_then(|at| self.classes.get(at)).copied().unwrap_or_default()
    }
}

/// Reads it. Of the runs, only the last hundred are looked at.
///
/// # Errors
/// If the database cannot be read.
pub async fn past(postgres: &Postgres) -> anyhow::Result<Past> {
    let context = "cannot read when retention last ran";
    // A pass under way is as good as one that has ended: it takes as long as it takes. Of a run only its end counts.
    let classes = sqlx::query(
        "SELECT ran_at, ended_at, rows, older_than,
                extract(epoch FROM now() - coalesce(done_at, (SELECT installed_on FROM _sqlx_migrations WHERE version = since), now()))::float8 AS age
         FROM unnest($1::text[]) WITH ORDINALITY AS c (class, n)
         LEFT JOIN (SELECT substr(task, 7) AS class, coalesce(ran_at, finished_at) AS ran_at, finished_at AS ended_at, emptied AS rows,
                           NULL::bigint AS older_than, coalesce(ran_at, finished_at) AS done_at
                    FROM ses_ledger_upkeep
                    UNION ALL
                    SELECT class, began_at, ended_at, rows, older_than, ended_at
                    FROM (SELECT DISTINCT ON (l.class) l.class, r.began_at, r.ended_at, l.rows, l.older_than
                          FROM (SELECT * FROM ses_ledger_retention_runs ORDER BY uuid DESC LIMIT 100) AS r,
                               jsonb_to_recordset(r.let_go) AS l (class text, rows bigint, older_than bigint)
                          WHERE r.ended_at IS NOT NULL AND l.class NOT IN ('payloads', 'bodies')
                          ORDER BY l.class, r.ended_at DESC) AS runs) AS past USING (class),
              LATERAL (SELECT CASE WHEN class IN ('payloads', 'bodies') THEN 17 ELSE 15 END AS since) AS possible
         ORDER BY n",
    );
    let read = |row: PgRow| {
        let count = |name| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(name)?.map(i64::unsigned_abs));
        Ok(PastOfClass {
            ran_at: row.try_get("ran_at")?,
            ended_at: row.try_get("ended_at")?,
            rows: count("rows")?,
            older_than: count("older_than")?,
            age: Duration::try_from_secs_f64(row.try_get("age")?).unwrap_or_default(),
        })
    };
    let classes = classes.bind(Class::ALL.map(Class::as_str).as_slice());
    let classes = classes.try_map(read).fetch_all(postgres).await.context(context)?;
    let whole = sqlx::query(
        "SELECT nullif(events_from, '1970-01-01 00:00:00+00') AS events_from, nullif(logs_from, '1970-01-01 00:00:00+00') AS logs_from,
                (SELECT CASE WHEN ended_at IS NULL THEN began_at END FROM ses_ledger_retention_runs ORDER BY uuid DESC LIMIT 1) AS unfinished
         FROM ses_ledger_horizon WHERE singleton",
    );
    let whole = whole.fetch_one(postgres).await.context(context)?;
    Ok(Past {
        classes,
        events_from: whole.try_get("events_from")?,
        logs_from: whole.try_get("logs_from")?,
        unfinished_run: whole.try_get("unfinished")?,
    })
}

/// Somebody has a lock that was not to be had in time (55P03), or waited for one of ours (40P01: a deadlock). It passes.
pub(super) fn is_in_the_way(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| ["55P03", "40P01"].contains(&&*code))
}
