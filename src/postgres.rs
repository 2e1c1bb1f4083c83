//! The [`Store`] over PostgreSQL. This file and its folder alone hold SQL.

pub mod adoption;
pub mod answers;
pub mod audit;
pub mod condition;
pub mod erasure;
pub mod figures;
mod iam;
pub mod letting_go;
mod login;
pub mod mails;
pub mod migrations;
pub mod mirror;
pub mod optional;
pub mod pulse;
pub mod rebuild;
pub mod rollup;
pub mod schema;
mod secret;
pub mod sender;
mod session;
pub mod simulation;
pub mod smoke;
pub mod stuck;
pub mod suppression;
mod tls;
pub mod upkeep;

use std::{collections::BTreeMap, fmt, io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use prometheus_client::metrics::counter::Counter;
use sha2::{Digest as _, Sha256};
use sqlx::{
    Connection as _, Executor as _, PgConnection, PgPool, Row as _,
    pool::PoolConnection,
    postgres::{PgArguments, PgPoolOptions, PgRow},
    query::Query,
};
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

pub use self::{login::Auth, session::Pooler};
use self::{
    login::{Login, LoginError, Target},
    session::{Session, Settings},
};
use crate::{
    event::{Detail, TimeSource},
    pipeline::{
        Store, StoreError, Verdict,
        batch::{Arrival, Quarantined},
    },
};

/// The statement that stores a batch: one round trip, a verdict per event.
const STORE_BATCH: &str = concat!(
    include_str!("postgres/from_batch.sql"),
    include_str!("postgres/store.sql"),
    include_str!("postgres/batch_verdicts.sql")
);

/// The same statement, fed with orphans of the next slice whose mail is known by now.
const ATTACH_SLICE: &str = concat!(
    include_str!("postgres/from_sweep.sql"),
    include_str!("postgres/attach.sql"),
    include_str!("postgres/store.sql"),
    include_str!("postgres/attach_counts.sql")
);

/// The same statement, fed with orphans of mails that have just got their id.
const ATTACH_LINKED: &str = concat!(
    include_str!("postgres/from_linked.sql"),
    include_str!("postgres/attach.sql"),
    include_str!("postgres/store.sql"),
    include_str!("postgres/attach_counts.sql")
);

/// How long a connection may take to open, or to answer that it is there; and how long to take leave of all.
const CONNECT: Duration = Duration::from_secs(5);
const CLOSE: Duration = Duration::from_secs(1);

/// How to reach the database. It holds a password: there is no `Debug` of it.
#[derive(Clone)]
pub struct PostgresSettings {
    /// `postgres://user:password@host/database`. `None`: the secret says everything.
    pub url: Option<String>,
    /// ARN or name of a secret in AWS Secrets Manager, in the JSON of RDS. Its user and password win over the URL's, the
    /// rest fills in what the URL leaves out. Read when somebody first logs in, and again when a login is refused.
    pub secret: Option<String>,
    /// What a login proves itself with.
    pub auth: Auth,
    /// What stands between us and the server.
    pub pooler: Pooler,
    /// A file of further root certificates (PEM), unless the URL names one.
    pub root_cert: Option<PathBuf>,
    /// Connections to hold. Four are plenty: more only queue inside the database.
    pub connections: u32,
    /// The server ends a statement that takes longer. Zero: it does not.
    pub statement_timeout: Duration,
    /// Where the tables are, if not where the login's search path leads.
    pub schema: Option<String>,
    /// For questions only: the server refuses to change anything, and may plan as it likes.
    pub read_only: bool,
}

/// A pool of connections, opened when they are first needed. As an executor it runs each statement by itself.
#[derive(Clone)]
pub struct Postgres {
    pool: PgPool,
    login: Arc<Login>,
    settings: Arc<Settings>,
    schema: Option<String>,
    /// How long to wait for a piece of work that nobody else limits.
    patience: Duration,
    /// Counts the orphans that found their mail.
    attached: Counter,
}

/// What a sweep over one slice of the orphans did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// The last orphan it looked at; `None` if there was none left.
    pub last: Option<Uuid>,
    /// Orphans whose mail is known by now. They are no orphans any more.
    pub attached: u64,
}

/// Why there is no connection.
#[derive(Debug)]
pub struct ConnectError(sqlx::Error);

impl ConnectError {
    /// Waiting does not help: the password is wrong, the role or the database does not exist, TLS does not fit.
    pub fn is_final(&self) -> bool {
        match &self.0 {
            sqlx::Error::Database(e) => {
                matches!(e.code().as_deref(), Some(code) if code.starts_with("28") || code == "3D000" || code == "42501")
            }
            sqlx::Error::Configuration(e) => e.downcast_ref().is_none_or(|e: &LoginError| e.is_final),
            other => tls::advice(other).is_some(),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            sqlx::Error::Configuration(e) if e.is::<LoginError>() => write!(f, "cannot log in to the database: {e}"),
            other => write!(f, "cannot connect to the database (DATABASE_URL): {other}"),
        }?;
        tls::advice(&self.0).map_or(Ok(()), |advice| write!(f, ". To mend it: {advice}"))
    }
}

impl std::error::Error for ConnectError {}

impl PostgresSettings {
    /// The usual ones, with this URL.
    pub fn new(url: &str) -> Self {
        Self {
            url: Some(url.to_owned()),
            secret: None,
            auth: Auth::default(),
            pooler: Pooler::default(),
            root_cert: None,
            connections: 2,
            statement_timeout: Duration::from_secs(10),
            schema: None,
            read_only: false,
        }
    }

    /// Whether the URL can be read.
    pub fn is_readable(&self) -> bool {
        Target::read(self).is_ok()
    }

    /// What cannot work, as far as that can be seen without asking anybody.
    ///
    /// # Errors
    /// Says what is wrong with TLS.
    pub fn check_tls(&self) -> anyhow::Result<()> {
        Target::read(self)?.options(None)?;
        Ok(())
    }

    /// The host, if it is not this machine.
    pub fn foreign_host(&self) -> Option<String> {
        Target::read(self).ok()?.foreign_host()
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("connections", &self.pool.size()).finish_non_exhaustive()
    }
}

impl Postgres {
    /// Prepares the pool; connects nothing yet.
    ///
    /// # Errors
    /// If the URL cannot be read or names no user.
    pub fn new(settings: &PostgresSettings) -> anyhow::Result<Self> {
        let login = Login::new(settings)?;
        let pool = PgPoolOptions::new()
            .max_connections(settings.connections)
            // A ping before each statement would be a second round trip.
            .test_before_acquire(false)
            .acquire_timeout(settings.statement_timeout.max(Duration::from_secs(5)))
            // The pool itself asks a connection that comes back whether it still works, and waits for the answer without
            // a limit: one to a server that fell silent would keep its place for a quarter of an hour.
            .after_release(|connection, _| {
                Box::pin(async {
                    let answer = timeout(CONNECT, connection.ping()).await;
                    answer.unwrap_or_else(|_| Err(no_answer(CONNECT))).map(|()| true)
                })
            })
            .connect_lazy_with(login.first_options()?);
        Ok(Self {
            pool,
            login: Arc::new(login),
            settings: Arc::new(Settings::of(settings)),
            schema: settings.schema.clone(),
            // A few statements, each of which the database itself would end, and a connection.
            patience: settings.statement_timeout * 4 + CONNECT,
            attached: Counter::default(),
        })
    }

    /// Counts the orphans that find their mail on this counter.
    pub fn counting(self, attached: Counter) -> Self {
        Self { attached, ..self }
    }

    /// The pool itself, with current credentials, for those that need a session for long: migrations.
    pub(crate) async fn pool(&self) -> Result<&PgPool, sqlx::Error> {
        self.acquire().await.map(|_| &self.pool)
    }

    /// A connection of the pool, or a new one with current credentials.
    pub(crate) async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>, sqlx::Error> {
        self.login.connect(&self.pool, || self.pool.acquire()).await
    }

    /// Opens a connection, to see whether it can.
    ///
    /// # Errors
    /// Says whether trying again later may help.
    pub async fn try_connect(&self) -> Result<(), ConnectError> {
        // Not through the pool: that one tries again for a while, and then only says that it took too long.
        let connect = async || {
            let options = self.pool.connect_options();
            let connection = timeout(CONNECT, PgConnection::connect_with(&options)).await;
            connection.unwrap_or_else(|_| Err(no_answer(CONNECT)))
        };
        let connection = self.login.connect(&self.pool, connect).await.map_err(ConnectError)?;
        let _ = connection.close().await;
        Ok(())
    }

    /// The server's version, like `15.18`.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn server_version(&self) -> anyhow::Result<String> {
        let query = sqlx::query_scalar("SELECT split_part(current_setting('server_version'), ' ', 1)");
        query.fetch_one(self).await.context("cannot ask for the version of PostgreSQL")
    }

    /// Makes an empty schema, in place of the one of this name.
    ///
    /// # Errors
    /// If the login may not make schemas.
    pub async fn renew_schema(&self, name: &str) -> anyhow::Result<()> {
        self.drop_schema(name).await?;
        let create = format!("CREATE SCHEMA {name}");
        self.execute(sqlx::AssertSqlSafe(create))
            .await
            .map(drop)
            .with_context(|| format!("cannot make the schema {name}"))
    }

    /// Removes a schema with everything in it.
    ///
    /// # Errors
    /// If the login may not do that.
    pub async fn drop_schema(&self, name: &str) -> anyhow::Result<()> {
        let drop_it = format!("DROP SCHEMA IF EXISTS {name} CASCADE");
        self.execute(sqlx::AssertSqlSafe(drop_it))
            .await
            .map(drop)
            .with_context(|| format!("cannot remove the schema {name}"))
    }

    /// How many connections are open, and how many there may be.
    pub fn connections(&self) -> (u32, u32) {
        (self.pool.size(), self.pool.options().get_max_connections())
    }

    /// Closes all connections, those to a server that does not answer any more as well.
    pub async fn close(&self) {
        let _ = timeout(CLOSE, self.pool.close()).await;
    }

    /// Attaches the orphans whose mail is known by now, of the next `limit` ones after `after` in order of arrival.
    ///
    /// # Errors
    /// As for [`Store::insert`]: nothing was attached, or the answer was lost.
    pub async fn sweep(&self, after: Uuid, limit: usize) -> Result<Sweep, StoreError> {
        self.patiently(self.sweep_slice(after, limit)).await.map_err(sort_error)
    }

    async fn sweep_slice(&self, after: Uuid, limit: usize) -> Result<Sweep, sqlx::Error> {
        let attach = || async {
            let slice = sqlx::query("SELECT uuid FROM orphaned_events WHERE uuid > $1 ORDER BY uuid LIMIT $2");
            let slice: Vec<Uuid> =
                slice.bind(after).bind(limit as i64).try_map(|row: PgRow| row.try_get(0)).fetch_all(self).await?;
            let Some(last) = slice.last().copied() else { return Ok(Sweep::default()) };
            let row = sqlx::query(ATTACH_SLICE).bind(after).bind(last).fetch_one(self).await?;
            let (attached, linked) = self.count_attached(&row)?;
            Ok(Sweep { last: Some(last), attached: attached + self.attach_linked(linked).await? })
        };
        match attach().await {
            Err(e) if lacks_partition(&e) => {
                self.ensure_months_of_orphans(after, limit).await?;
                attach().await
            }
            answer => answer,
        }
    }

    /// The next orphan in order of arrival.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn orphan_after(&self, after: Uuid) -> Result<Option<Uuid>, StoreError> {
        let query =
            sqlx::query_scalar("SELECT uuid FROM orphaned_events WHERE uuid > $1 ORDER BY uuid LIMIT 1").bind(after);
        self.patiently(query.fetch_optional(self)).await.map_err(sort_error)
    }

    /// Makes the monthly partitions up to so many months ahead; says how many were missing.
    ///
    /// # Errors
    /// If the database cannot be reached, or the role may not call the function.
    pub async fn ensure_partitions(&self, months_ahead: u32) -> anyhow::Result<i32> {
        let query = sqlx::query_scalar("SELECT email_events_ensure_ahead($1)").bind(months_ahead as i32);
        self.patiently(query.fetch_one(self)).await.context("cannot make the partitions of the coming months")
    }

    /// Gives up when the database does not even say that a statement took too long.
    pub(crate) async fn patiently<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        timeout(self.patience, work).await.unwrap_or_else(|_| Err(no_answer(self.patience)))
    }

    /// Attaches the orphans of mails that were just linked, and of those that are linked by it.
    async fn attach_linked(&self, mut linked: Vec<String>) -> Result<u64, sqlx::Error> {
        let mut attached = 0;
        while !linked.is_empty() {
            let row = sqlx::query(ATTACH_LINKED).bind(&linked).fetch_one(self).await?;
            let more;
            (more, linked) = self.count_attached(&row)?;
            attached += more;
        }
        Ok(attached)
    }

    /// Reads and counts what an attaching statement did: orphans attached, and the ids of the mails that it linked.
    fn count_attached(&self, row: &PgRow) -> Result<(u64, Vec<String>), sqlx::Error> {
        let attached = row.try_get::<i64, _>("attached")? as u64;
        self.attached.inc_by(attached);
        Ok((attached, row.try_get("linked")?))
    }

    async fn insert_batch(&self, rows: &Columns<'_>, quarantined: &[Quarantined]) -> Result<Vec<Verdict>, sqlx::Error> {
        // One statement needs no transaction around it.
        let mut session = if quarantined.is_empty() { self.session().await? } else { self.transaction().await? };
        let (verdicts, linked) = rows.store(&mut session).await?;
        quarantine(&mut session, quarantined).await?;
        session.end().await?;
        // Committed already; if this fails, the sweep finds them.
        if let Err(e) = self.attach_linked(linked).await {
            tracing::warn!("cannot attach the orphans of linked mails yet: {e}");
        }
        Ok(verdicts)
    }

    async fn ensure_months_of(&self, rows: &Columns<'_>) -> Result<(), sqlx::Error> {
        let query = sqlx::query("SELECT email_events_ensure_for($1, $2)").bind(&rows.message_ids).bind(&rows.log_uuids);
        query.execute(self).await.map(drop)
    }

    async fn ensure_months_of_orphans(&self, after: Uuid, limit: usize) -> Result<(), sqlx::Error> {
        let query = sqlx::query(
            "SELECT email_events_ensure_for(array_agg(aws_message_id), array_agg(log_uuid))
             FROM (SELECT aws_message_id, log_uuid FROM orphaned_events WHERE uuid > $1 ORDER BY uuid LIMIT $2) AS slice",
        );
        query.bind(after).bind(limit as i64).execute(self).await.map(drop)
    }
}

impl Store for Postgres {
    async fn insert(&self, arrivals: &[Arrival], quarantined: &[Quarantined]) -> Result<Vec<Verdict>, StoreError> {
        let rows = Columns::of(arrivals);
        match self.insert_batch(&rows, quarantined).await {
            Err(e) if lacks_partition(&e) => {
                // A month that nobody made ahead of time: never a reason to refuse an event.
                self.ensure_months_of(&rows).await.map_err(sort_error)?;
                self.insert_batch(&rows, quarantined).await.map_err(sort_error)
            }
            answer => answer.map_err(sort_error),
        }
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.execute("SELECT 1").await.map(drop).map_err(sort_error)
    }
}

/// The arrivals, turned into one array per column.
struct Columns<'a> {
    uuids: Vec<Uuid>,
    /// `None` only where the mail is known without it.
    message_ids: Vec<Option<&'a str>>,
    log_uuids: Vec<Option<Uuid>>,
    kinds: Vec<&'a str>,
    occurred_at: Vec<OffsetDateTime>,
    time_sources: Vec<&'static str>,
    recipients: Vec<&'a str>,
    candidates: Vec<bool>,
    details: Vec<&'a Detail>,
    link_digests: Vec<Uuid>,
    payloads: Vec<Option<&'a str>>,
    queues: Vec<&'a str>,
    sqs_message_ids: Vec<&'a str>,
    sns_message_ids: Vec<Option<&'a str>>,
    eventbridge_ids: Vec<Option<&'a str>>,
    received_at: Vec<OffsetDateTime>,
    mailed_at: Vec<Option<OffsetDateTime>>,
}

impl<'a> Columns<'a> {
    fn of(arrivals: &'a [Arrival]) -> Self {
        fn column<'a, T>(arrivals: &'a [Arrival], value: impl Fn(&'a Arrival) -> T) -> Vec<T> {
            arrivals.iter().map(value).collect()
        }
        Self {
            uuids: column(arrivals, |_| Uuid::now_v7()),
            message_ids: column(arrivals, |a| Some(a.event.message_id.as_str())),
            log_uuids: column(arrivals, |a| a.event.log_uuid),
            kinds: column(arrivals, |a| a.event.kind.as_str()),
            occurred_at: column(arrivals, |a| a.event.occurred_at),
            time_sources: column(arrivals, |a| match a.event.time_source {
                TimeSource::Event => "event",
                TimeSource::Mail => "mail",
                TimeSource::Received => "received",
            }),
            recipients: column(arrivals, |a| a.event.recipient.as_str()),
            candidates: column(arrivals, |a| a.event.candidate),
            details: column(arrivals, |a| &a.event.detail),
            link_digests: column(arrivals, |a| digest(a.event.detail.link.as_deref())),
            payloads: column(arrivals, |a| a.event.payload.as_deref()),
            queues: column(arrivals, |a| &*a.origin.queue),
            sqs_message_ids: column(arrivals, |a| a.origin.sqs_message_id.as_str()),
            sns_message_ids: column(arrivals, |a| a.event.source.sns_message_id.as_deref()),
            eventbridge_ids: column(arrivals, |a| a.event.source.eventbridge_id.as_deref()),
            received_at: column(arrivals, |a| a.origin.received_at),
            mailed_at: column(arrivals, |a| a.event.mailed_at),
        }
    }

    /// Runs the statement. Returns a verdict per arrival and the ids of the mails that it linked.
    async fn store(&self, session: &mut Session) -> Result<(Vec<Verdict>, Vec<String>), sqlx::Error> {
        if self.uuids.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let rows = self.bind(sqlx::query(STORE_BATCH)).fetch_all(session).await?;
        self.read_verdicts(&rows)
    }

    /// Binds all columns, in the order of `from_batch.sql`.
    fn bind<'q>(&'q self, query: Query<'q, sqlx::Postgres, PgArguments>) -> Query<'q, sqlx::Postgres, PgArguments> {
        let detail = |value: fn(&'a Detail) -> &'a Option<String>| -> Vec<Option<&'a str>> {
            self.details.iter().map(|detail| value(detail).as_deref()).collect()
        };
        query
            .bind(&self.uuids)
            .bind(&self.message_ids)
            .bind(&self.log_uuids)
            .bind(&self.kinds)
            .bind(&self.occurred_at)
            .bind(&self.time_sources)
            .bind(&self.recipients)
            .bind(&self.candidates)
            .bind(detail(|d| &d.bounce_type))
            .bind(detail(|d| &d.bounce_subtype))
            .bind(detail(|d| &d.smtp_status))
            .bind(detail(|d| &d.diagnostic))
            .bind(detail(|d| &d.complaint_type))
            .bind(detail(|d| &d.complaint_subtype))
            .bind(detail(|d| &d.delay_type))
            .bind(detail(|d| &d.link))
            .bind(&self.link_digests)
            .bind(detail(|d| &d.ip))
            .bind(detail(|d| &d.user_agent))
            .bind(detail(|d| &d.bot))
            .bind(detail(|d| &d.feedback_id))
            .bind(detail(|d| &d.reporting_mta))
            .bind(&self.payloads)
            .bind(&self.queues)
            .bind(&self.sqs_message_ids)
            .bind(&self.sns_message_ids)
            .bind(&self.eventbridge_ids)
            .bind(&self.received_at)
            .bind(&self.mailed_at)
    }

    fn read_verdicts(&self, rows: &[PgRow]) -> Result<(Vec<Verdict>, Vec<String>), sqlx::Error> {
        let mut verdicts = vec![None; self.uuids.len()];
        let mut linked = Vec::new();
        for row in rows {
            let number: i64 = row.try_get("ord")?;
            let verdict = match row.try_get("verdict")? {
                "inserted" => Verdict::Inserted,
                "orphaned" => Verdict::Orphaned,
                "expired" => Verdict::Expired,
                _ => Verdict::Duplicate,
            };
            if let Some(slot) = verdicts.get_mut(number as usize - 1) {
                *slot = Some(verdict);
            }
            linked.extend(row.try_get::<Option<String>, _>("linked")?);
        }
        linked.sort_unstable();
        linked.dedup();
        // A missing verdict shows as a drift of the identities: better than a guess.
        Ok((verdicts.into_iter().flatten().collect(), linked))
    }
}

/// Adds bodies to the quarantine. A body that is there already is only seen once more, and the same delivery of it not
/// even that.
async fn quarantine(session: &mut Session, quarantined: &[Quarantined]) -> Result<(), sqlx::Error> {
    // Sorted, so that two workers do not deadlock. The same body twice in a batch is one row seen twice.
    let mut rows: BTreeMap<Vec<u8>, (&Quarantined, i32)> = BTreeMap::new();
    for row in quarantined {
        let entry = rows.entry(Sha256::digest(&row.body).to_vec()).or_insert((row, 0));
        *entry = (row, entry.1 + 1);
    }
    // The digest stays that of the body as it came: so it is known when it comes again.
    let bodies = Vec::from_iter(rows.values().map(|(row, _)| row.body.as_slice()));
    let without = erasure::out_of_bodies(session, &bodies).await?;
    for ((digest, (row, times_seen)), without) in rows.into_iter().zip(without) {
        sqlx::query(
            "INSERT INTO quarantined_messages AS q
               (uuid, body, body_digest, stage, reason, failed_at, fingerprint, queue, sqs_message_id, receive_count, times_seen)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (body_digest) DO UPDATE SET
               times_seen = q.times_seen + excluded.times_seen, last_seen_at = now(),
               queue = excluded.queue, sqs_message_id = excluded.sqs_message_id, receive_count = excluded.receive_count
             WHERE (q.sqs_message_id, q.receive_count) <> (excluded.sqs_message_id, excluded.receive_count)",
        )
        .bind(Uuid::now_v7())
        .bind(without.as_ref().unwrap_or(&row.body))
        .bind(&digest)
        .bind(row.stage.as_str())
        .bind(&row.reason)
        .bind(&row.at)
        .bind(row.fingerprint())
        .bind(&*row.origin.queue)
        .bind(&row.origin.sqs_message_id)
        .bind(row.origin.receive_count as i32)
        .bind(times_seen)
        .execute(&mut *session)
        .await?;
    }
    Ok(())
}

/// The first 128 bits of the link's SHA-256; nil without a link.
fn digest(link: Option<&str>) -> Uuid {
    let mut bytes = [0; 16];
    if let Some(link) = link {
        bytes.copy_from_slice(&Sha256::digest(link)[..16]);
    }
    Uuid::from_bytes(bytes)
}

fn no_answer(within: Duration) -> sqlx::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}")).into()
}

/// The mail's month has no partition yet.
fn lacks_partition(error: &sqlx::Error) -> bool {
    // The same code as for a violated CHECK; only that one names a constraint.
    error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("23514") && e.constraint().is_none())
}

/// Why a question has no answer, as those see it who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It took longer than it may; the server was told to stop.
    TooLong,
    /// The database is not there, or does not let us in.
    Away,
    /// The schema is not the one that we need, or the login may not read it: the SQLSTATE.
    Unfit(String),
    Other,
}

/// Sorts the error of a question.
pub fn trouble(error: &anyhow::Error) -> Trouble {
    let cause = error.chain().find_map(|e| e.downcast_ref::<sqlx::Error>());
    let Some(cause) = cause else { return Trouble::Other };
    let code = cause.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
    match cause {
        sqlx::Error::Database(_) if code == "57014" => Trouble::TooLong,
        // Insufficient privilege; a table, column or function that is not there.
        sqlx::Error::Database(_) if code.starts_with("42") || code == "3F000" => Trouble::Unfit(code),
        // Invalid login, unknown database, connections, resources, somebody's intervention.
        sqlx::Error::Database(_) => {
            if ["08", "28", "3D", "53", "57"].iter().any(|class| code.starts_with(class)) {
                Trouble::Away
            } else {
                Trouble::Other
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::Configuration(_)
        | sqlx::Error::WorkerCrashed => Trouble::Away,
        _ => Trouble::Other,
    }
}

/// Two decisions: try again, or find the row that is refused. Only the data's own faults are refused;
/// a fault of the schema, of the rights or of the server is for somebody to mend while we wait.
fn sort_error(error: sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
    // 22: data exception. 54: program limit, like an index entry that is too long. 23502, 23514: NOT NULL, CHECK.
    let refused = code.starts_with("22") || code.starts_with("54") || code == "23502" || code == "23514";
    // A value that sqlx itself cannot encode never reaches the server.
    if matches!(error, sqlx::Error::Encode(_)) {
        return StoreError::Refused { code: "encode".to_owned(), source: error.into() };
    }
    match refused {
        true => StoreError::Refused { source: without_values(&error), code },
        false => StoreError::Transient(error.into()),
    }
}

/// What the database said, less the row that it said it about.
fn without_values(error: &sqlx::Error) -> anyhow::Error {
    match error.as_database_error() {
        Some(e) => anyhow::anyhow!("SQLSTATE {}", e.code().unwrap_or_default()),
        None => anyhow::anyhow!("not a database error"),
    }
}
