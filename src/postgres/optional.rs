//! Indexes that not everybody wants: built, looked at and dropped while everybody goes on writing.
//!
//! No migrations: whether they are there is the operator's choice, and `CONCURRENTLY`, which alone does not keep writers
//! waiting, runs in no transaction. What a build leaves that was cut short is invalid: it serves nobody, and the next build
//! drops it and begins again with it. A build of a partitioned table goes partition by partition, and goes on at the next one.

use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Executor as _, FromRow, Row as _};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use super::{
    Postgres,
    letting_go::{LOCK_TIMEOUT, Owner},
};

/// How often to look how far a build has come.
const LOOK: Duration = Duration::from_millis(500);

/// Indexes that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Set {
    /// Parts of addresses, subjects and campaigns, for `find`; a sender's row costs the database about 45 % more, an event 10 %
    Search,
    /// Templates and campaigns over time, mails whose body is kept; a sender's row costs the database about 9 % more
    Analytics,
}

/// One of them.
struct Index {
    set: Set,
    name: &'static str,
    table: &'static str,
    /// What comes after the table. `{trigrams}` is the operator class of pg_trgm, with its schema.
    definition: &'static str,
    /// What it is for.
    serves: &'static str,
}

// The trigrams of a row are thirty entries or more. Gathered in a list of pending ones first (fastupdate, PostgreSQL's default),
// they cost a sender a half more per row instead of four times as much. A quarter of the usual length: whoever searches reads
// all of it, and now and then a sender has to empty it (24 ms instead of 53).
// None of these is over a column that a fact is written to: such a write would have to touch every index of the table, where
// now it touches none (migration 9).
const INDEXES: [Index; 7] = [
    Index {
        set: Set::Search,
        name: "email_logs_search_recipients",
        table: "email_logs",
        definition: "USING gin (ses_ledger_written_to(recipients) {trigrams}) WITH (gin_pending_list_limit = 1024)",
        serves: "find --like: a part of a recipient, as the sender wrote it",
    },
    Index {
        set: Set::Search,
        name: "email_logs_search_subject",
        table: "email_logs",
        definition: "USING gin (subject {trigrams}) WITH (gin_pending_list_limit = 1024) WHERE subject IS NOT NULL",
        serves: "find WORDS and find --like: words and parts of the subject",
    },
    Index {
        set: Set::Search,
        name: "email_logs_search_campaign",
        table: "email_logs",
        definition: "USING gin (campaign_id {trigrams}) WITH (gin_pending_list_limit = 1024) WHERE campaign_id IS NOT NULL",
        serves: "find --like: a part of the campaign's id",
    },
    // What a delivery or a bounce says covers everybody to whom it went, with one row or two instead of all.
    Index {
        set: Set::Search,
        name: "email_events_search_recipient",
        table: "email_events",
        definition: "USING gin (recipient {trigrams}) WITH (gin_pending_list_limit = 1024)
                     WHERE event_type IN ('delivery', 'bounce') AND recipient <> ''",
        serves: "find --like: a part of an address that only SES has told",
    },
    Index {
        set: Set::Analytics,
        name: "email_logs_by_template",
        table: "email_logs",
        definition: "(template_name, uuid) WHERE template_name IS NOT NULL",
        serves: "find --template, figures of one template: what was opened and clicked",
    },
    Index {
        set: Set::Analytics,
        name: "email_logs_by_campaign",
        table: "email_logs",
        definition: "(campaign_id, uuid) WHERE campaign_id IS NOT NULL",
        serves: "find --campaign, figures of one campaign: what was opened and clicked",
    },
    Index {
        set: Set::Analytics,
        name: "email_logs_with_content",
        table: "email_logs",
        definition: "(uuid) WHERE body_full IS NOT NULL OR headers IS NOT NULL",
        serves: "retention run --dry-run: bodies and headers that wait for retention",
    },
];

/// An optional index, as it is found.
#[derive(Clone, Debug, Serialize)]
pub struct Optional {
    pub set: Set,
    pub index: &'static str,
    pub table: &'static str,
    /// What it is for.
    pub serves: &'static str,
    pub state: State,
    /// With all partitions.
    pub bytes: i64,
    /// How often it was read, since PostgreSQL counts.
    pub used: i64,
    /// Of a partitioned table: how many partitions have it, and how many there are.
    pub partitions: Option<(i64, i64)>,
}

/// Whether an index can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Absent,
    Ready,
    /// Being built, or left by a build that was cut short: it costs who writes, and serves nobody.
    Unfinished,
}

/// How far a build has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub index: &'static str,
    /// Of a partitioned table: which one, and of how many.
    pub partition: Option<(usize, usize)>,
    /// As PostgreSQL calls it.
    pub phase: String,
    /// Of this phase.
    pub percent: Option<i32>,
    /// Who has to come to an end first.
    pub waits_for: Option<Blocker>,
}

/// A session that something waits for.
#[derive(Clone, Debug, PartialEq, Eq, FromRow, Serialize)]
pub struct Blocker {
    pub pid: i32,
    /// Its login and state, if we may see them.
    pub login: Option<String>,
    pub state: Option<String>,
    /// For how long its transaction has been open.
    pub open_seconds: Option<i64>,
}

/// Builds and drops, with the rights of the owner. Only one at a time does.
pub struct Builder<'a, Tell> {
    postgres: &'a Postgres,
    owner: Owner,
    pid: i32,
    tell: Tell,
}

/// All optional indexes, as they are found.
///
/// # Errors
/// If the catalogue cannot be read.
pub async fn report(postgres: &Postgres) -> anyhow::Result<Vec<Optional>> {
    let mut all = Vec::new();
    for index in &INDEXES {
        let row = sqlx::query(
            "SELECT i.indisvalid AND i.indisready AS ready, c.relkind = 'I' AS partitioned,
                    (SELECT count(*) FROM pg_inherits WHERE inhparent = i.indexrelid) AS built,
                    (SELECT count(*) FROM pg_inherits WHERE inhparent = i.indrelid) AS partitions,
                    (SELECT coalesce(sum(pg_relation_size(t.relid)), 0)::bigint FROM pg_partition_tree(i.indexrelid) AS t WHERE t.isleaf)
                      + CASE c.relkind WHEN 'i' THEN pg_relation_size(c.oid) ELSE 0 END AS bytes,
                    (SELECT coalesce(sum(s.idx_scan), 0)::bigint FROM pg_stat_all_indexes AS s
                     WHERE s.indexrelid = c.oid OR s.indexrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = c.oid)) AS used
             FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
             WHERE i.indexrelid = to_regclass($1) AND i.indrelid = to_regclass($2)",
        );
        let context = "cannot look at the optional indexes";
        let row = row.bind(index.name).bind(index.table).fetch_optional(postgres).await.context(context)?;
        let mut found = Optional {
            set: index.set,
            index: index.name,
            table: index.table,
            serves: index.serves,
            state: State::Absent,
            bytes: 0,
            used: 0,
            partitions: None,
        };
        if let Some(row) = row {
            found.state = if row.try_get::<bool, _>("ready")? { State::Ready } else { State::Unfinished };
            found.bytes = row.try_get("bytes")?;
            found.used = row.try_get("used")?;
            if row.try_get::<bool, _>("partitioned")? {
                found.partitions = Some((row.try_get("built")?, row.try_get("partitions")?));
            }
        }
        all.push(found);
    }
    Ok(all)
}

/// The names of those that can be used.
pub(super) async fn ready(postgres: &Postgres) -> Result<Vec<String>, sqlx::Error> {
    of_state(postgres, true).await
}

/// The names of those that cost without serving.
pub(super) async fn unfinished(postgres: &Postgres) -> Result<Vec<String>, sqlx::Error> {
    of_state(postgres, false).await
}

async fn of_state(postgres: &Postgres, ready: bool) -> Result<Vec<String>, sqlx::Error> {
    let names: Vec<&str> = INDEXES.iter().map(|index| index.name).collect();
    let query = sqlx::query_scalar(
        "SELECT name FROM unnest($1::text[]) AS name JOIN pg_index AS i ON i.indexrelid = to_regclass(name)
         WHERE (i.indisvalid AND i.indisready) = $2",
    );
    query.bind(names).bind(ready).fetch_all(postgres).await
}

/// The set that an unfinished index belongs to.
pub(super) fn set_of(name: &str) -> Option<Set> {
    INDEXES.iter().find(|index| index.name == name).map(|index| index.set)
}

impl Blocker {
    /// The statement that ends it.
    pub fn ending(&self) -> String {
        format!("SELECT pg_terminate_backend({})", self.pid)
    }
}

impl Set {
    /// As `--with` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Analytics => "analytics",
        }
    }

    fn indexes(self) -> impl Iterator<Item = &'static Index> {
        INDEXES.iter().filter(move |index| index.set == self)
    }
}

impl<'a, Tell: FnMut(Progress)> Builder<'a, Tell> {
    /// Takes the owner's rights, and the lock that keeps a second one out. What is going on is told to `tell`, twice a second.
    ///
    /// # Errors
    /// If the login is no member of the owner, or somebody else is at it.
    pub async fn begin(postgres: &'a Postgres, tell: Tell) -> anyhow::Result<Self> {
        let mut owner = Owner::look(postgres).await?;
        let row = sqlx::query(
            "SELECT pg_try_advisory_lock(hashtext('ses_ledger optional indexes')) AS free, pg_backend_pid() AS pid",
        );
        let row = row.fetch_one(owner.connection()).await.context("cannot take the lock of who builds indexes")?;
        anyhow::ensure!(
            row.try_get::<bool, _>("free")?,
            "another run builds or drops optional indexes: wait until it has ended. ses-ledger migrate --optional shows how they stand"
        );
        let pid = row.try_get("pid")?;
        // Left alone by us, a build would run to its end before the server sees that nobody waits for it. Not every system can.
        let _ = owner.connection().execute("SET client_connection_check_interval = '5s'").await;
        Ok(Self { postgres, owner, pid, tell })
    }

    /// Builds what is missing of a set, and what is invalid anew.
    ///
    /// # Errors
    /// If pg_trgm is needed and cannot be had, or an index cannot be built. Those before it stay.
    pub async fn with(&mut self, set: Set) -> anyhow::Result<()> {
        let trigrams = if set == Set::Search { self.trigrams().await? } else { String::new() };
        for index in set.indexes() {
            let definition = index.definition.replace("{trigrams}", &trigrams);
            let built = match self.is_partitioned(index.table).await? {
                true => self.build_of_partitions(index, &definition).await,
                false => self.build(index, index.name, index.table, &definition, None).await,
            };
            built.with_context(|| format!("cannot build the index {}", index.name))?;
        }
        Ok(())
    }

    /// Drops the indexes of a set, finished or not. The extension stays: others may use it.
    ///
    /// # Errors
    /// If one cannot be dropped. Those before it are.
    pub async fn without(&mut self, set: Set) -> anyhow::Result<()> {
        for index in set.indexes() {
            let context = || format!("cannot drop the index {}", index.name);
            match self.is_partitioned(index.table).await? {
                true => {
                    // Cannot be done concurrently. It takes a moment, but needs the table for itself in that moment.
                    let drop = format!("DROP INDEX IF EXISTS {}", index.name);
                    self.watched(index, None, &drop, Wait::Briefly).await.with_context(context)?;
                    for partition in self.partitions(index).await? {
                        self.drop(index, &partition.index_name(index)).await.with_context(context)?;
                    }
                }
                false => self.drop(index, index.name).await.with_context(context)?,
            }
        }
        Ok(())
    }

    /// Gives rights and lock back.
    pub async fn end(self) {
        self.owner.end().await;
    }

    /// The operator class, with its schema. The extension is made if it is not there: any login that may create in the database
    /// can do that, but the owner of our tables need not be one.
    async fn trigrams(&mut self) -> anyhow::Result<String> {
        const SCHEMA: &str =
            "SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace AS n ON n.oid = extnamespace
                              WHERE extname = 'pg_trgm'";
        let context = "cannot look for the extension pg_trgm";
        let connection = self.owner.connection();
        let mut schema: Option<String> =
            sqlx::query_scalar(SCHEMA).fetch_optional(&mut *connection).await.context(context)?;
        if schema.is_none() {
            connection.execute("RESET ROLE").await.context(context)?;
            let made = connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm").await;
            connection.execute("SET ROLE ses_ledger_owner").await.context(context)?;
            made.context(
                "cannot make the extension pg_trgm, which search needs: have an administrator of this database run \
                 CREATE EXTENSION pg_trgm; and then run this again. Where the server has no such extension, install its package \
                 postgresql-contrib first",
            )?;
            schema = sqlx::query_scalar(SCHEMA).fetch_optional(connection).await.context(context)?;
        }
        Ok(format!("{}.gin_trgm_ops", schema.context("the extension pg_trgm is not there")?))
    }

    async fn is_partitioned(&mut self, table: &str) -> anyhow::Result<bool> {
        let query = sqlx::query_scalar("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)").bind(table);
        query.fetch_one(self.owner.connection()).await.with_context(|| format!("cannot look at {table}"))
    }

    /// `None`: it is not there.
    async fn is_valid(&mut self, name: &str) -> Result<Option<bool>, sqlx::Error> {
        let query =
            sqlx::query_scalar("SELECT indisvalid AND indisready FROM pg_index WHERE indexrelid = to_regclass($1)");
        query.bind(name).fetch_optional(self.owner.connection()).await
    }

    async fn build(
        &mut self,
        index: &'static Index,
        name: &str,
        table: &str,
        definition: &str,
        partition: Option<(usize, usize)>,
    ) -> anyhow::Result<()> {
        match self.is_valid(name).await? {
            Some(true) => return Ok(()),
            Some(false) => self.drop(index, name).await?,
            None => {}
        }
        let create = format!("CREATE INDEX CONCURRENTLY {name} ON {table} {definition}");
        self.watched(index, partition, &create, Wait::Long).await
    }

    /// One that is invalid and only on the parent; then one on each partition, attached to it. With the last one it is valid.
    /// A partition that is made meanwhile copies it, and has it at once.
    async fn build_of_partitions(&mut self, index: &'static Index, definition: &str) -> anyhow::Result<()> {
        let Index { name, table, .. } = index;
        if self.is_valid(name).await?.is_none() {
            let create = format!("CREATE INDEX {name} ON ONLY {table} {definition}");
            self.watched(index, None, &create, Wait::Briefly).await?;
        }
        while self.is_valid(name).await? == Some(false) {
            let all = self.partitions(index).await?;
            let Some(position) = all.iter().position(|partition| !partition.has_it) else {
                anyhow::bail!("every partition has it, and it is not valid: drop it, and build it again");
            };
            let partition = &all[position];
            let own = partition.index_name(index);
            let attach = format!("ALTER INDEX {name} ATTACH PARTITION {own}");
            let number = Some((position + 1, all.len()));
            let built = match self.build(index, &own, &partition.table, definition, number).await {
                Ok(()) => self.watched(index, number, &attach, Wait::Briefly).await,
                failed => failed,
            };
            // Retention may have taken the month away meanwhile.
            if let Err(e) = built
                && self.partitions(index).await?.iter().any(|other| other.table == partition.table)
            {
                return Err(e);
            }
        }
        Ok(())
    }

    /// The partitions of the table, and whether their part of the index is attached. The two ends last: they never go away, so
    /// that one which is attached makes the whole valid, whatever retention takes away meanwhile.
    async fn partitions(&mut self, index: &Index) -> anyhow::Result<Vec<Partition>> {
        let query = sqlx::query_as(
            "SELECT c.relname::text AS table,
                    EXISTS (SELECT FROM pg_inherits AS p JOIN pg_index AS i ON i.indexrelid = p.inhrelid
                            WHERE p.inhparent = to_regclass($2) AND i.indrelid = c.oid AND i.indisvalid) AS has_it
             FROM pg_inherits AS t JOIN pg_class AS c ON c.oid = t.inhrelid
             WHERE t.inhparent = to_regclass($1) AND NOT t.inhdetachpending
             ORDER BY c.relname !~ '_y[0-9]{4}m[0-9]{2}$', c.relname",
        );
        let query = query.bind(index.table).bind(index.name);
        query
            .fetch_all(self.owner.connection())
            .await
            .with_context(|| format!("cannot list the partitions of {}", index.table))
    }

    async fn drop(&mut self, index: &'static Index, name: &str) -> anyhow::Result<()> {
        if self.is_valid(name).await?.is_none() {
            return Ok(());
        }
        self.watched(index, None, &format!("DROP INDEX CONCURRENTLY IF EXISTS {name}"), Wait::Long).await
    }

    /// Runs a statement, for as long as it takes, and tells how it goes.
    async fn watched(
        &mut self,
        index: &'static Index,
        partition: Option<(usize, usize)>,
        statement: &str,
        wait: Wait,
    ) -> anyhow::Result<()> {
        let (postgres, pid, tell) = (self.postgres, self.pid, &mut self.tell);
        let mut work = std::pin::pin!(wait.run(&mut self.owner, statement));
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for the end")?;
        loop {
            tokio::select! {
                done = &mut work => return Ok(done?),
                _ = looks.tick() => {
                    // It goes on also where nobody can say how.
                    if let Ok(Some(at)) = look(postgres, pid, index.name, partition).await {
                        tell(at);
                    }
                    continue;
                }
                heard = tokio::signal::ctrl_c() => heard.context("cannot listen for the end")?,
                _ = terminate.recv() => {}
            }
            sqlx::query("SELECT pg_cancel_backend($1)").bind(pid).execute(postgres).await?;
            let _ = work.await;
            let set = index.set.as_str();
            anyhow::bail!(
                "stopped; what is finished stays. Go on with ses-ledger migrate --with {set}, or --without {set}"
            );
        }
    }
}

/// How a statement waits for others.
#[derive(Clone, Copy)]
enum Wait {
    /// As long as it takes: nobody else waits behind it.
    Long,
    /// Everybody would wait behind it: a moment, and again.
    Briefly,
}

impl Wait {
    async fn run(self, owner: &mut Owner, statement: &str) -> Result<(), sqlx::Error> {
        if let Self::Briefly = self {
            return owner.patiently(statement).await;
        }
        let connection = owner.connection();
        connection.execute("SET lock_timeout = 0").await?;
        let done = connection.execute(AssertSqlSafe(statement.to_owned())).await;
        let restored = connection.execute(AssertSqlSafe(format!("SET lock_timeout = '{LOCK_TIMEOUT}'"))).await;
        done.and(restored).map(drop)
    }
}

/// A partition of a table.
#[derive(FromRow)]
struct Partition {
    table: String,
    has_it: bool,
}

impl Partition {
    /// `email_events_y2026m11_search_recipient`
    fn index_name(&self, index: &Index) -> String {
        let of_index = index.name.strip_prefix(index.table).unwrap_or(index.name);
        format!("{}{of_index}", self.table)
    }
}

/// What the session does now. `None`: nothing that takes long.
async fn look(
    postgres: &Postgres,
    pid: i32,
    index: &'static str,
    partition: Option<(usize, usize)>,
) -> Result<Option<Progress>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT p.phase,
                CASE WHEN p.blocks_total > 0 THEN 100 * p.blocks_done / p.blocks_total
                     WHEN p.tuples_total > 0 THEN 100 * p.tuples_done / p.tuples_total END::integer AS percent,
                coalesce(nullif(p.current_locker_pid, 0), (pg_blocking_pids($1))[1])::integer AS blocker
         FROM (SELECT $1::integer AS pid) AS ours LEFT JOIN pg_stat_progress_create_index AS p USING (pid)",
    );
    let row = row.bind(pid).fetch_one(postgres).await?;
    let (phase, blocker): (Option<String>, Option<i32>) = (row.try_get("phase")?, row.try_get("blocker")?);
    if phase.is_none() && blocker.is_none() {
        return Ok(None);
    }
    let waits_for = match blocker {
        None => None,
        Some(blocker) => {
            let query = sqlx::query_as(
                "SELECT $1 AS pid, usename::text AS login, state, extract(epoch FROM now() - xact_start)::bigint AS open_seconds
                 FROM (SELECT 1) AS one LEFT JOIN pg_stat_activity ON pid = $1",
            );
            Some(query.bind(blocker).fetch_one(postgres).await?)
        }
    };
    let phase = phase.unwrap_or_else(|| "waiting for a lock".to_owned());
    Ok(Some(Progress { index, partition, phase, percent: row.try_get("percent")?, waits_for }))
}
