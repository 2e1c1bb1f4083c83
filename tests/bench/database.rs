//! A durable PostgreSQL of our own, and the databases in it: one for each measurement, copied from a prepared one.

use std::{collections::HashSet, env, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use ses_ledger::{
    local::{
        postgres::{LocalPostgres, LocalPostgresSettings, StopMode},
        story::{LogRow, Step, Story},
    },
    postgres::{Postgres, PostgresSettings, migrations, sender},
};
use sqlx::{
    AssertSqlSafe, Executor as _, PgPool,
    postgres::{PgPoolCopyExt as _, PgPoolOptions},
};

use crate::{machine, tale::Tale};

/// The server.
pub(crate) struct Server {
    local: LocalPostgres,
    admin: PgPool,
    pub(crate) postmaster: u32,
    /// Databases that were made to be copied.
    templates: HashSet<String>,
    copies: usize,
}

/// One database.
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) url: String,
    /// As the worker's, with a connection for each core and then some.
    pub(crate) postgres: Postgres,
    pub(crate) pool: PgPool,
}

impl Server {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools");
        let mut settings = LocalPostgresSettings::new(env::var_os("PATH").unwrap_or_default(), env::temp_dir(), tools);
        // Tells when a row was committed, which nobody else can.
        settings.options = vec![("track_commit_timestamp".to_owned(), "on".to_owned())];
        let local = LocalPostgres::start(settings).await?;
        let admin = PgPoolOptions::new().max_connections(2).connect(&local.url()).await?;
        let postmaster = machine::pid_in(&local.data_dir().join("postmaster.pid"))?;
        Ok(Self { local, admin, postmaster, templates: HashSet::new(), copies: 0 })
    }

    /// Version and origin.
    pub(crate) fn describe(&self) -> String {
        self.local.origin().to_string()
    }

    /// An empty database with our schema.
    pub(crate) async fn create(&mut self, name: &str) -> anyhow::Result<Database> {
        const EMPTY: &str = "empty";
        if self.templates.insert(EMPTY.to_owned()) {
            self.admin(&format!("CREATE DATABASE {EMPTY}")).await?;
            let database = self.open(EMPTY).await?;
            migrations::up(&database.postgres).await?;
            database.close().await;
        }
        self.copy_as(EMPTY, name).await
    }

    pub(crate) async fn open(&self, name: &str) -> anyhow::Result<Database> {
        let url = self.local.url_of(name);
        let statement_timeout = Duration::from_secs(600);
        let settings = PostgresSettings { connections: 4, statement_timeout, ..PostgresSettings::new(&url) };
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy(&url)?;
        Ok(Database { name: name.to_owned(), url, postgres: Postgres::new(&settings)?, pool })
    }

    /// A fresh database that holds the log rows of these stories and nothing else.
    pub(crate) async fn with_logs_of(
        &mut self,
        tales: &[Tale],
        story: impl Fn(&Tale) -> Story,
    ) -> anyhow::Result<Database> {
        let template = format!("logs_{:x}", short(&format!("{tales:?}")));
        if self.templates.insert(template.clone()) {
            let database = self.create(&template).await?;
            for tale in tales {
                write_logs(&database.postgres, &story(tale)).await?;
            }
            database.pool.execute("VACUUM (ANALYZE) email_logs").await?;
            database.close().await;
        }
        self.copy(&template).await
    }

    /// Whether there is a database of this name to copy.
    pub(crate) fn has(&self, template: &str) -> bool {
        self.templates.contains(template)
    }

    /// Makes this database one to copy.
    pub(crate) async fn keep(&mut self, database: Database, name: &str) -> anyhow::Result<()> {
        database.pool.execute("VACUUM (ANALYZE)").await.context("cannot vacuum")?;
        database.close().await;
        self.admin(&format!("ALTER DATABASE {} RENAME TO {name}", database.name)).await?;
        self.templates.insert(name.to_owned());
        Ok(())
    }

    /// A fresh copy of a database that nobody is connected to.
    pub(crate) async fn copy(&mut self, template: &str) -> anyhow::Result<Database> {
        self.copies += 1;
        let name = format!("copy_{}", self.copies);
        self.copy_as(template, &name).await
    }

    pub(crate) async fn copy_as(&self, template: &str, name: &str) -> anyhow::Result<Database> {
        self.admin(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await?;
        self.open(name).await
    }

    pub(crate) async fn drop(&self, database: Database) -> anyhow::Result<()> {
        let name = database.name.clone();
        database.close().await;
        self.admin(&format!("DROP DATABASE {name} WITH (FORCE)")).await
    }

    /// Every measurement begins right after a checkpoint, so that all pay alike for what comes after one.
    pub(crate) async fn checkpoint(&self) -> anyhow::Result<()> {
        self.admin("CHECKPOINT").await
    }

    /// Stops it and starts it again: what it held in its own memory is gone. Whoever is connected is cut off.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.checkpoint().await?;
        self.local.stop(StopMode::Fast).await?;
        self.local.start_again().await?;
        self.postmaster = machine::pid_in(&self.local.data_dir().join("postmaster.pid"))?;
        Ok(())
    }

    pub(crate) async fn close(self) -> anyhow::Result<()> {
        self.admin.close().await;
        self.local.close().await
    }

    async fn admin(&self, sql: &str) -> anyhow::Result<()> {
        self.admin.execute(AssertSqlSafe(sql)).await.map(drop).with_context(|| format!("cannot do: {sql}"))
    }
}

impl Database {
    pub(crate) async fn close(&self) {
        self.postgres.close().await;
        self.pool.close().await;
    }

    pub(crate) async fn count(&self, query: &'static str) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(query).fetch_one(&self.pool).await?)
    }

    /// Events of the mails of this story.
    pub(crate) async fn events_of(&self, story: &Story) -> anyhow::Result<i64> {
        let mails: Vec<_> = story.truth.facts.keys().copied().collect();
        let query = sqlx::query_scalar("SELECT count(*) FROM email_events WHERE email_log_uuid = ANY ($1)").bind(mails);
        Ok(query.fetch_one(&self.pool).await?)
    }

    /// Median, 99th percentile and longest time in ms from the receive of an event until its transaction was committed.
    pub(crate) async fn receive_to_commit(&self) -> anyhow::Result<[f64; 3]> {
        let (median, p99, longest) = sqlx::query_as(
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms), max(ms)
             FROM (SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - received_at)::float8 * 1000 AS ms
                   FROM email_events) AS times",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok([median, p99, longest])
    }

    /// Average bytes of a stored payload, as text.
    pub(crate) async fn payload_bytes(&self) -> anyhow::Result<f64> {
        let query = "SELECT coalesce(avg(octet_length(payload::text)), 0)::float8 FROM email_events";
        Ok(sqlx::query_scalar(query).fetch_one(&self.pool).await?)
    }

    /// All events, as COPY writes and reads them, in portions of so many rows.
    pub(crate) async fn copy_out(&self, rows_each: usize) -> anyhow::Result<(String, Vec<Vec<u8>>)> {
        let columns: String = sqlx::query_scalar(
            "SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = 'email_events'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'stored_at'",
        )
        .fetch_one(&self.pool)
        .await?;
        let out = format!("COPY (SELECT {columns} FROM email_events) TO STDOUT");
        let mut lines = self.pool.copy_out_raw(&out).await?;
        let (mut portions, mut rows) = (vec![Vec::new()], 0);
        // The server sends a row at a time.
        while let Some(line) = lines.try_next().await? {
            if rows == rows_each {
                portions.push(Vec::new());
                rows = 0;
            }
            rows += 1;
            portions.last_mut().context("there is always one")?.extend_from_slice(&line);
        }
        Ok((columns, portions))
    }

    /// Each portion in a transaction of its own.
    pub(crate) async fn copy_in(&self, columns: &str, portions: &[Vec<u8>]) -> anyhow::Result<u64> {
        let statement = format!("COPY email_events ({columns}) FROM STDIN");
        let mut rows = 0;
        for portion in portions {
            let mut copy = self.pool.copy_in_raw(&statement).await?;
            copy.send(portion.as_slice()).await?;
            rows += copy.finish().await?;
        }
        Ok(rows)
    }
}

pub(crate) async fn write_logs(postgres: &Postgres, story: &Story) -> anyhow::Result<()> {
    let mut rows: Vec<LogRow> = Vec::new();
    for step in story.steps() {
        if let Step::WriteLog(row) = step {
            rows.push(row);
        }
        if rows.len() == 1_000 {
            sender::write_logs(postgres, &std::mem::take(&mut rows)).await?;
        }
    }
    sender::write_logs(postgres, &rows).await
}

/// A number for a name: the same text, the same number.
fn short(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Makes sure that there is room before something large is written.
pub(crate) fn check_room(kib: u64) -> anyhow::Result<()> {
    let output = std::process::Command::new("df").args(["-Pk"]).arg(env::temp_dir()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let free = text.lines().nth(1).and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    if let Some(free) = free {
        ensure!(
            free > kib,
            "it needs {} GiB in {}, and there are {}",
            kib >> 20,
            env::temp_dir().display(),
            free >> 20
        );
    }
    Ok(())
}
