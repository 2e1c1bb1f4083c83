//! How statements reach the server: over a connection of our own, or over one that a pooler lends for a transaction.
//!
//! RDS Proxy and PgBouncer give each transaction whichever connection is free. What a session would keep (settings,
//! prepared statements) belongs to somebody else there a moment later, or costs the pooling. So there each piece of work
//! is a transaction that begins with its settings, and no statement has a name.

use std::{fmt, future::ready};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use sqlx::{
    AssertSqlSafe, Either, Execute, Executor, PgConnection, SqlSafeStr as _, SqlStr, Transaction,
    error::BoxDynError,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::{Postgres, PostgresSettings};

/// What stands between us and the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Pooler {
    /// Nothing, or one that keeps a connection for us as long as we like
    #[default]
    None,
    /// RDS Proxy, or PgBouncer in its transaction mode: no prepared statements, no settings of a session
    Transaction,
}

/// What a piece of work is done over.
pub(crate) enum Session {
    /// A connection that has the settings from its start. Each statement is a transaction of its own.
    Connection(PoolConnection<sqlx::Postgres>),
    /// A transaction. Its statements are prepared under names only if the connection is our own.
    Transaction { transaction: Transaction<'static, sqlx::Postgres>, named: bool },
}

/// The settings that every statement of ours needs.
pub(super) struct Settings {
    pooler: Pooler,
    values: Vec<(&'static str, String)>,
}

impl Settings {
    pub(super) fn of(settings: &PostgresSettings) -> Self {
        let timeout = settings.statement_timeout.as_millis().to_string();
        let mut values = vec![
            ("statement_timeout", timeout.clone()),
            ("idle_in_transaction_session_timeout", timeout),
            ("timezone", "UTC".to_owned()),
            // Compiling a statement takes longer than any of ours runs; over many partitions their estimated cost suggests it.
            ("jit", "off".to_owned()),
        ];
        values.push(match settings.read_only {
            true => ("default_transaction_read_only", "on".to_owned()),
            // Every statement of the worker finds its rows by an index. A plan that reads a table through also updates
            // the logs in the order in which they lie, not in that of their ids: there two batches could meet head-on.
            false => ("enable_seqscan", "off".to_owned()),
        });
        values.extend(settings.schema.iter().map(|schema| ("search_path", schema.clone())));
        Self { pooler: settings.pooler, values }
    }

    /// Gives the settings to connections from their start, unless a pooler lends them.
    pub(super) fn apply(&self, options: PgConnectOptions) -> PgConnectOptions {
        match self.pooler {
            Pooler::None => options.options(self.values.iter().map(|(name, value)| (name, value))),
            // The only parameter of its start that a pooler would refuse, and one that binary values do without.
            Pooler::Transaction => options.extra_float_digits(None),
        }
    }

    /// Begins a transaction that needs them, in one round trip.
    fn begin(&self) -> SqlStr {
        let set = |(name, value): &(&str, String)| {
            // What is the default for later transactions has to hold for this one.
            let name = name.strip_prefix("default_").unwrap_or(name);
            format!("; SET LOCAL {name} = '{}'", value.replace('\'', "''"))
        };
        let settings: String = self.values.iter().map(set).collect();
        // Nothing from outside but the name of the schema, and that in quotes.
        AssertSqlSafe(format!("BEGIN{settings}")).into_sql_str()
    }
}

impl Postgres {
    /// For statements each of which may be a transaction of its own.
    pub(crate) async fn session(&self) -> Result<Session, sqlx::Error> {
        match self.settings.pooler {
            Pooler::None => Ok(Session::Connection(self.acquire().await?)),
            Pooler::Transaction => self.transaction().await,
        }
    }

    /// For statements that belong together. Without [`Session::end`], nothing of them stays.
    pub(crate) async fn transaction(&self) -> Result<Session, sqlx::Error> {
        let named = self.settings.pooler == Pooler::None;
        let begin = (!named).then(|| self.settings.begin());
        // On its own, so that it ends also where we are cut short: a connection that goes back to the pool before the server
        // has answered to BEGIN would stay in that transaction, and what is stored over it next would never be committed.
        let beginning = tokio::spawn(Transaction::begin(self.acquire().await?, begin));
        let transaction = beginning.await.map_err(|_| sqlx::Error::WorkerCrashed)??;
        Ok(Session::Transaction { transaction, named })
    }
}

impl Session {
    /// Makes it last.
    pub(crate) async fn end(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Connection(_) => Ok(()),
            Self::Transaction { transaction, .. } => transaction.commit().await,
        }
    }

    fn send<E>(&mut self, query: E) -> (&mut PgConnection, Sent<E>) {
        match self {
            Self::Connection(connection) => (connection, Sent { query, named: true }),
            Self::Transaction { transaction, named } => (transaction, Sent { query, named: *named }),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection(_) => "Session::Connection",
            Self::Transaction { .. } => "Session::Transaction",
        })
    }
}

/// A query, prepared under a name or not.
struct Sent<E> {
    query: E,
    named: bool,
}

impl<'q, E: Execute<'q, sqlx::Postgres>> Execute<'q, sqlx::Postgres> for Sent<E> {
    fn sql(self) -> SqlStr {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.named && self.query.persistent()
    }
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = sqlx::Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, sqlx::Postgres>,
    {
        let (connection, query) = self.send(query);
        connection.fetch_many(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, sqlx::Postgres>,
    {
        let (connection, query) = self.send(query);
        connection.fetch_optional(query)
    }

    fn prepare_with<'e>(self, _: SqlStr, _: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        not_offered()
    }

    fn describe<'e>(self, _: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<sqlx::Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        not_offered()
    }
}

/// One statement in a session of its own.
impl<'c> Executor<'c> for &'c Postgres {
    type Database = sqlx::Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, sqlx::Postgres>,
    {
        let answer = async move {
            let mut session = self.session().await?;
            let steps: Vec<_> = session.fetch_many(query).try_collect().await?;
            session.end().await?;
            Ok::<_, sqlx::Error>(stream::iter(steps.into_iter().map(Ok)))
        };
        stream::once(answer).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, sqlx::Postgres>,
    {
        let answer = async move {
            let mut session = self.session().await?;
            let row = session.fetch_optional(query).await?;
            session.end().await.map(|()| row)
        };
        answer.boxed()
    }

    fn prepare_with<'e>(self, _: SqlStr, _: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        not_offered()
    }

    fn describe<'e>(self, _: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<sqlx::Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        not_offered()
    }
}

/// Statements are prepared when they run, and under a name only where that is good.
fn not_offered<'e, T: Send + 'e>() -> BoxFuture<'e, Result<T, sqlx::Error>> {
    ready(Err(sqlx::Error::Protocol("a session does not prepare statements for later".to_owned()))).boxed()
}
