//! The schema's history: which migrations there are, which have run, up and down.

use anyhow::Context as _;
use sqlx::{
    Executor as _, Row as _,
    migrate::{MigrateError, Migrator},
    postgres::PgDatabaseError,
};

use super::Postgres;

/// Built into the binary, so that schema and program cannot be mixed up.
static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// One migration, as `migrate status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    pub version: i64,
    pub description: String,
    pub state: State,
}

/// Whether a migration has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Applied,
    Pending,
    /// It ran, but was another text than the one in this binary.
    Changed,
    /// It ran, and this binary does not know it: the database is newer.
    Unknown,
}

/// Runs all pending migrations. Several processes may do this at once: one works, the others wait.
///
/// # Errors
/// If the database cannot be reached or a migration fails; each runs in a transaction of its own.
pub async fn up(postgres: &Postgres) -> anyhow::Result<()> {
    let context = "cannot migrate the database";
    make_schema(postgres).await.context(context)?;
    MIGRATOR.run(postgres.pool().await.context(context)?).await.map_err(explain).context(context)
}

/// Reverts all migrations after `target`; 0 reverts everything. Drops the tables' content.
///
/// # Errors
/// If the database cannot be reached or a migration fails.
pub async fn down(postgres: &Postgres, target: i64) -> anyhow::Result<()> {
    let context = "cannot revert the migrations";
    MIGRATOR.undo(postgres.pool().await.context(context)?, target).await.map_err(explain).context(context)
}

/// All migrations, known and applied, in order.
///
/// # Errors
/// If the database cannot be reached.
pub async fn status(postgres: &Postgres) -> anyhow::Result<Vec<Migration>> {
    let applied = applied(postgres).await.context("cannot read which migrations have run")?;
    let known = || MIGRATOR.iter().filter(|m| !m.migration_type.is_down_migration());
    let mut all: Vec<Migration> = known()
        .map(|m| Migration {
            version: m.version,
            description: m.description.to_string(),
            state: match applied.iter().find(|(version, ..)| *version == m.version) {
                None => State::Pending,
                Some((_, _, checksum)) if *checksum == *m.checksum => State::Applied,
                Some(_) => State::Changed,
            },
        })
        .collect();
    let unknown = applied.into_iter().filter(|(version, ..)| known().all(|m| m.version != *version));
    all.extend(unknown.map(|(version, description, _)| Migration { version, description, state: State::Unknown }));
    all.sort_by_key(|migration| migration.version);
    Ok(all)
}

/// The first table with rows in it that reverting to `target` would remove.
///
/// # Errors
/// If the database cannot be reached.
pub async fn would_lose(postgres: &Postgres, target: i64) -> anyhow::Result<Option<&'static str>> {
    let tables = [
        (3, "email_logs"),
        (4, "email_events"),
        (5, "orphaned_events"),
        (6, "quarantined_messages"),
        (13, "ses_ledger_removals"),
        (15, "ses_ledger_months_let_go"),
        (16, "ses_ledger_erased"),
        (18, "ses_ledger_suppression_removals"),
        (19, "email_figures"),
    ];
    for (_, table) in tables.into_iter().filter(|(version, _)| *version > target) {
        if has_rows(postgres, table).await.with_context(|| format!("cannot look into {table}"))? {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// Makes the schema that is to hold the tables, if one is named and not there.
async fn make_schema(postgres: &Postgres) -> Result<(), sqlx::Error> {
    let Some(schema) = &postgres.schema else { return Ok(()) };
    // Asked first: to be told that it exists already takes the right to make one.
    let there = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)").bind(schema);
    if there.fetch_one(postgres).await? {
        return Ok(());
    }
    let create = format!("CREATE SCHEMA IF NOT EXISTS \"{}\"", schema.replace('"', "\"\""));
    postgres.execute(sqlx::AssertSqlSafe(create)).await.map(drop)
}

async fn has_rows(postgres: &Postgres, table: &str) -> Result<bool, sqlx::Error> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(table).fetch_one(postgres).await?;
    if !there {
        return Ok(false);
    }
    let query = format!("SELECT EXISTS (SELECT FROM {table})");
    // Not from outside: one of the names above.
    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(postgres).await
}

/// Version, description and checksum of what has run. Nothing if nobody has migrated yet.
async fn applied(postgres: &Postgres) -> Result<Vec<(i64, String, Vec<u8>)>, sqlx::Error> {
    let there: bool =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(postgres).await?;
    if !there {
        return Ok(Vec::new());
    }
    let rows =
        sqlx::query("SELECT version, description, checksum FROM _sqlx_migrations WHERE success ORDER BY version")
            .fetch_all(postgres)
            .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

fn explain(error: MigrateError) -> anyhow::Error {
    match error {
        MigrateError::VersionMismatch(version) => anyhow::anyhow!(
            "migration {version} ran with another text than this binary has: was it edited after it ran? \
             Use the binary that migrated, or a fresh database"
        ),
        MigrateError::Execute(error) => with_hint(error),
        MigrateError::ExecuteMigration(error, version) => {
            with_hint(error).context(format!("migration {version} failed"))
        }
        other => other.into(),
    }
}

/// PostgreSQL says what is wrong, and often what to do about it. sqlx shows only the first.
fn with_hint(error: sqlx::Error) -> anyhow::Error {
    let hint = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>()?.hint());
    match hint {
        Some(hint) => anyhow::anyhow!("{error}. To mend it: {hint}"),
        None => error.into(),
    }
}
