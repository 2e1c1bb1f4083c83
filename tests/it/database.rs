//! One PostgreSQL cluster for all tests, started by the first that needs it; a database of its own for each test.

use std::{
    env,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ses_ledger::{
    local::{
        postgres::{LocalPostgres, LocalPostgresSettings},
        story::LogRow,
    },
    postgres::{Postgres, PostgresSettings, migrations, sender},
};
use sqlx::{AssertSqlSafe, Executor as _, PgPool, postgres::PgPoolOptions};
use tokio::sync::OnceCell;

/// A migrated, empty database.
pub(crate) struct Database {
    pub(crate) url: String,
    store: Postgres,
    /// For the test's own questions, as the superuser.
    pub(crate) pool: PgPool,
}

static CLUSTER: OnceCell<LocalPostgres> = OnceCell::const_new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) fn local_settings() -> LocalPostgresSettings {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools");
    let settings = LocalPostgresSettings::new(env::var_os("PATH").unwrap_or_default(), env::temp_dir(), tools);
    // Nothing here has to survive a crash of the machine.
    LocalPostgresSettings { fsync: false, max_connections: 300, ..settings }
}

async fn cluster() -> &'static LocalPostgres {
    let start = async || {
        let cluster = LocalPostgres::start(local_settings()).await.expect("the tests cannot do without PostgreSQL");
        let admin = pool(&cluster.url()).await;
        admin.execute("CREATE DATABASE migrated").await.expect("the cluster is ours");
        migrate(&cluster.url_of("migrated")).await;
        cluster
    };
    CLUSTER.get_or_init(start).await
}

pub(crate) async fn migrate(url: &str) {
    let postgres = connect(url);
    migrations::up(&postgres).await.expect("the migrations run on an empty database");
    postgres.close().await;
}

/// The store under test.
pub(crate) fn connect(url: &str) -> Postgres {
    let statement_timeout = Duration::from_secs(20);
    let settings = PostgresSettings { connections: 4, statement_timeout, ..PostgresSettings::new(url) };
    Postgres::new(&settings).expect("the URL is well formed")
}

async fn pool(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(4).connect(url).await.expect("the cluster runs")
}

/// A database with the schema.
pub(crate) async fn fresh() -> Database {
    from_template("migrated").await
}

/// A database without anything.
pub(crate) async fn empty() -> Database {
    from_template("template1").await
}

async fn from_template(template: &str) -> Database {
    let cluster = cluster().await;
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let admin = pool(&cluster.url()).await;
    let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
    admin.execute(AssertSqlSafe(create)).await.expect("the name is new");
    admin.close().await;
    at(&cluster.url_of(&name)).await
}

/// A database with the schema in a server of the test's own, which the test may stop.
pub(crate) async fn in_server(server: &LocalPostgres) -> Database {
    migrate(&server.url()).await;
    at(&server.url()).await
}

/// A database that the test has made itself.
pub(crate) async fn at(url: &str) -> Database {
    Database { pool: pool(url).await, store: connect(url), url: url.to_owned() }
}

impl Database {
    /// The store under test, with connections of its own for this database.
    pub(crate) fn store(&self) -> Postgres {
        self.store.clone()
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.pool.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        query.fetch_one(&self.pool).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    pub(crate) async fn text(&self, sql: &str) -> String {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        query.fetch_one(&self.pool).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    pub(crate) async fn texts(&self, sql: &str) -> Vec<String> {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        query.fetch_all(&self.pool).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// Writes a log row as a sending application does.
    pub(crate) async fn write_log(&self, row: &LogRow) {
        self.try_to_write_log(row).await.expect("a log row can be written");
    }

    /// The same while connections are being cut.
    pub(crate) async fn try_to_write_log(&self, row: &LogRow) -> anyhow::Result<()> {
        sender::write_logs(&self.store(), std::slice::from_ref(row)).await
    }
}
