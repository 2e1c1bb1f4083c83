//! Facts recomputed from stored events: after a rule has changed, after a restore, after somebody changed rows by hand.
//!
//! Looking takes no locks: each batch of mails and their events is one statement, so of one moment. Changing something is a
//! transaction that first locks the mails, in the order of their ids like the statement that stores, and then computes anew:
//! its second statement sees whatever was committed before the locks were its own. Who stores at that moment waits for the
//! mail, and merges its event into what it finds then.
//!
//! That is enough where a mail learns something. Where something is taken away, or told of later, it is not: a statement that
//! is under way may just have seen that its event adds nothing to the mail. So there nobody stores for the few milliseconds
//! that it takes, see `LOCK_OUT`.

use std::{cmp::Ordering, time::Duration};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgRow};
use time::OffsetDateTime;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    Postgres,
    letting_go::{Owner, is_in_the_way},
};

/// Mails to look at in one statement, and to change in one transaction.
const BATCH: i64 = 5_000;
const CHANGED: usize = 1_000;
/// How often a transaction is tried again that somebody was in the way of, and how long to leave the tables to others
/// before that.
const TRIES: usize = 30;
const BETWEEN: Duration = Duration::from_secs(1);
/// Examples for each change.
const EXAMPLES: usize = 3;

/// Every statement that adds an event locks the table in a mode that this one excludes.
const LOCK_OUT: &str = "LOCK TABLE ONLY email_events IN SHARE MODE";
/// Not FOR UPDATE: a new event of another recipient shares a lock on its mail, in no order.
const LOCK_MAILS: &str = "SELECT uuid FROM email_logs WHERE uuid = ANY ($1) ORDER BY uuid FOR NO KEY UPDATE";
/// No plan may read a table through, or compare each mail of a batch with each other.
const SESSION: &str = "SET statement_timeout = 0; SET enable_seqscan = off; SET enable_nestloop = off;
    SET plan_cache_mode = force_custom_plan; SET max_parallel_workers_per_gather = 0";

/// The columns in the order in which they are told.
const FACTS: [&str; 13] = [
    "status",
    "sent_at",
    "delivered_at",
    "delayed_at",
    "bounced_at",
    "bounce_class",
    "complained_at",
    "rejected_at",
    "failed_at",
    "opened_at",
    "open_count",
    "clicked_at",
    "click_count",
];

/// Which mails, and how strictly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Mails whose id is of that time or later.
    pub from: Option<OffsetDateTime>,
    /// Mails whose id is of a time before.
    pub to: Option<OffsetDateTime>,
    /// Only this one.
    pub mail: Option<Uuid>,
    /// Also takes away what no stored event shows.
    pub strict: bool,
}

/// How the facts of mails differ from what their stored events say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Difference {
    /// Mails and events that were looked at.
    pub mails: u64,
    pub events: u64,
    /// Mails of which a fact changes.
    pub differ: u64,
    /// What changes.
    pub changes: Vec<Change>,
    /// What no stored event shows, and is left.
    pub without_event: Vec<Change>,
}

/// One kind of change of one fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// A column of `email_logs`.
    pub fact: String,
    /// In words, like `earlier` or `delivered → bounced`.
    pub change: String,
    pub mails: u64,
    /// The first of them.
    pub examples: Vec<String>,
}

/// What was found, and where.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    pub difference: Difference,
    /// After one mail, up to another: mails that differ are there.
    places: Vec<(Uuid, Uuid)>,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub done: u64,
    /// Of how many, as far as that is known.
    pub about: Option<u64>,
    /// The last mail, whose id tells the month.
    pub last: Uuid,
}

impl Scope {
    /// After one id, up to another.
    fn bounds(&self) -> (Uuid, Uuid) {
        if let Some(mail) = self.mail {
            return (Uuid::from_u128(mail.as_u128().saturating_sub(1)), mail);
        }
        (self.from.map_or(Uuid::nil(), floor), self.to.map_or(Uuid::max(), floor))
    }

    fn in_words(&self) -> String {
        let month = |at: OffsetDateTime| format!("{}-{:02}", at.year(), u8::from(at.month()));
        let mails = match (self.mail, self.from, self.to) {
            (Some(mail), ..) => format!("mail {mail}"),
            (_, None, None) => "all mails".to_owned(),
            (_, from, to) => {
                let from = from.map(|at| format!(" from {}", month(at))).unwrap_or_default();
                format!("mails{from}{}", to.map(|at| format!(" before {}", month(at))).unwrap_or_default())
            }
        };
        if self.strict { mails + ", strictly" } else { mails }
    }
}

/// The smallest UUID of that moment, as `ses_ledger_uuid_floor` makes it.
fn floor(at: OffsetDateTime) -> Uuid {
    let millis = (at.unix_timestamp_nanos() / 1_000_000).clamp(0, (1 << 48) - 1) as u128;
    Uuid::from_u128(millis << 80)
}

impl Difference {
    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        self.differ == 0
    }

    fn add(&mut self, other: Self) {
        self.mails += other.mails;
        self.events += other.events;
        self.differ += other.differ;
        for (all, more) in [(&mut self.changes, other.changes), (&mut self.without_event, other.without_event)] {
            more.into_iter().for_each(|change| add(all, change));
        }
    }

    /// Reads the answer of a statement; also says how many mails lose something, or are told of later.
    fn read(rows: &[PgRow]) -> Result<(Self, u64), sqlx::Error> {
        let (mut difference, mut less) = (Self::default(), 0);
        for row in rows {
            let mails = row.try_get::<i64, _>("mails")? as u64;
            let kind: &str = row.try_get("kind")?;
            let into = match kind {
                "mails" => &mut difference.mails,
                "events" => &mut difference.events,
                "differ" => &mut difference.differ,
                "less" => &mut less,
                _ => {
                    let examples = row.try_get::<Vec<Uuid>, _>("examples")?;
                    let examples = examples.iter().map(Uuid::to_string).collect();
                    let change = Change { fact: row.try_get("fact")?, change: row.try_get("change")?, mails, examples };
                    let all = if kind == "mended" { &mut difference.changes } else { &mut difference.without_event };
                    add(all, change);
                    continue;
                }
            };
            *into = mails;
        }
        Ok((difference, less))
    }
}

/// Adds a change to those of its kind, in the order of the facts.
fn add(all: &mut Vec<Change>, more: Change) {
    let place = |change: &Change| FACTS.iter().position(|fact| *fact == change.fact);
    let order = |change: &Change| match place(change).cmp(&place(&more)) {
        Ordering::Equal => change.change.cmp(&more.change),
        other => other,
    };
    match all.binary_search_by(order) {
        Ok(n) => {
            all[n].mails += more.mails;
            all[n].examples.extend(more.examples);
            all[n].examples.truncate(EXAMPLES);
        }
        Err(n) => all.insert(n, more),
    }
}

/// The statements, with the rule of the status as the table itself has it.
struct Statements {
    look: String,
    differing: String,
    apply: String,
}

impl Statements {
    async fn prepare(connection: &mut PgConnection) -> anyhow::Result<Self> {
        connection.execute(SESSION).await.context("cannot prepare the session")?;
        let status: String = sqlx::query_scalar(
            "SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
             WHERE d.adrelid = to_regclass('email_logs') AND a.attname = 'status' AND a.attgenerated = 's'",
        )
        .fetch_one(connection)
        .await
        .context("cannot read the rule of the status")?;
        let rebuilt = include_str!("rebuild.sql").replace("{status}", &status);
        let (apply, lines) = (include_str!("rebuild_apply.sql"), include_str!("rebuild_lines.sql"));
        Ok(Self {
            look: format!("{rebuilt}{lines}"),
            differing: format!("{rebuilt} SELECT uuid FROM compared WHERE is_mended ORDER BY uuid"),
            apply: format!("{rebuilt}{apply}{lines}"),
        })
    }
}

/// Looks how the facts differ from what stored events say. Changes nothing, and needs no more than the right to read.
///
/// # Errors
/// If the tables cannot be read.
pub async fn look(
    postgres: &Postgres,
    scope: &Scope,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> anyhow::Result<Looked> {
    let mut connection = postgres.acquire().await.context("cannot reach the database")?.detach();
    let statements = Statements::prepare(&mut connection).await?;
    let about = about(&mut connection, scope).await.context("cannot ask how many mails there are")?;
    let (mut after, end) = scope.bounds();
    let mut looked = Looked::default();
    loop {
        let last = sqlx::query_scalar::<_, Uuid>(
            "SELECT uuid FROM email_logs WHERE uuid > $1 AND uuid <= $2 ORDER BY uuid OFFSET $3 LIMIT 1",
        );
        let last = last.bind(after).bind(end).bind(BATCH - 1).fetch_optional(&mut connection).await;
        let last = last.context("cannot read the mails")?;
        let upto = last.unwrap_or(end);
        let query = sqlx::query(AssertSqlSafe(statements.look.clone())).bind(after).bind(upto);
        let rows = query.bind(None::<Vec<Uuid>>).bind(scope.strict).fetch_all(&mut connection).await;
        let (found, _) = Difference::read(&rows.context("cannot compare the mails with their events")?)?;
        if !found.is_empty() {
            looked.places.push((after, upto));
        }
        looked.difference.add(found);
        if last.is_none() {
            let _ = connection.close().await;
            return Ok(looked);
        }
        progress(Progress { done: looked.difference.mails, about, last: upto });
        after = upto;
    }
}

/// Applies what is found now where a difference was found before, and notes what it did. What was cut short is found again by
/// the next look.
///
/// # Errors
/// If mails cannot be changed, or somebody is in the way for long. What was changed until then stays changed.
pub async fn apply(
    owner: &mut Owner,
    scope: &Scope,
    looked: &Looked,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> anyhow::Result<Difference> {
    let connection = owner.connection();
    let statements = Statements::prepare(connection).await?;
    let run = sqlx::query_scalar("INSERT INTO ses_ledger_rebuilds (scope) VALUES ($1) RETURNING uuid");
    let run: Uuid = run.bind(scope.in_words()).fetch_one(&mut *connection).await.context("cannot note the run")?;
    let mut changed = Difference::default();
    let about = Some(looked.difference.differ);
    for (after, upto) in &looked.places {
        let query = sqlx::query_scalar(AssertSqlSafe(statements.differing.clone())).bind(after).bind(upto);
        let query = query.bind(None::<Vec<Uuid>>).bind(scope.strict);
        let mails: Vec<Uuid> = query.fetch_all(&mut *connection).await.context("cannot compare mails with events")?;
        for mails in mails.chunks(CHANGED) {
            changed = change(connection, &statements, scope, run, mails, &changed).await?;
            progress(Progress { done: changed.differ, about, last: *upto });
        }
    }
    let end = sqlx::query("UPDATE ses_ledger_rebuilds SET ended_at = now() WHERE uuid = $1").bind(run);
    end.execute(connection).await.context("cannot note the end of the run")?;
    Ok(changed)
}

/// Changes these mails, as often as it takes; returns all that was changed so far.
async fn change(
    connection: &mut PgConnection,
    statements: &Statements,
    scope: &Scope,
    run: Uuid,
    mails: &[Uuid],
    before: &Difference,
) -> anyhow::Result<Difference> {
    let (mut tries, mut locks_out) = (0, false);
    loop {
        match try_change(connection, statements, scope, run, mails, before, locks_out).await {
            Ok(Some(changed)) => return Ok(changed),
            Ok(None) => locks_out = true,
            Err(e) if tries < TRIES && is_in_the_way(&e) => {
                tries += 1;
                sleep(BETWEEN).await;
            }
            Err(e) => return Err(e).context("cannot change the facts of mails"),
        }
    }
}

/// One transaction. `None`: it takes something away, and did not lock out those who store; so nothing was done.
async fn try_change(
    connection: &mut PgConnection,
    statements: &Statements,
    scope: &Scope,
    run: Uuid,
    mails: &[Uuid],
    before: &Difference,
    locks_out: bool,
) -> Result<Option<Difference>, sqlx::Error> {
    let (Some(first), Some(last)) = (mails.first(), mails.last()) else { return Ok(Some(before.clone())) };
    let mut transaction = connection.begin().await?;
    if locks_out {
        // Before any row: who stores has this lock first, and its mails then.
        transaction.execute(LOCK_OUT).await?;
    }
    sqlx::query(LOCK_MAILS).bind(mails).execute(&mut *transaction).await?;
    let query = sqlx::query(AssertSqlSafe(statements.apply.clone()));
    let query = query.bind(Uuid::from_u128(first.as_u128().saturating_sub(1))).bind(last);
    let rows = query.bind(mails).bind(scope.strict).fetch_all(&mut *transaction).await?;
    let (found, less) = Difference::read(&rows)?;
    if less > 0 && !locks_out {
        transaction.rollback().await?;
        return Ok(None);
    }
    let mut changed = before.clone();
    changed.add(found);
    // Not what was only looked at.
    changed.without_event.clear();
    let note = serde_json::to_string(&changed).map_err(|e| sqlx::Error::Encode(e.into()))?;
    let query = sqlx::query("UPDATE ses_ledger_rebuilds SET changed = $2::jsonb WHERE uuid = $1").bind(run).bind(note);
    query.execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Some(changed))
}

async fn about(connection: &mut PgConnection, scope: &Scope) -> Result<Option<u64>, sqlx::Error> {
    if scope.bounds() != Scope::default().bounds() {
        return Ok(None);
    }
    let query = "SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('email_logs') AND reltuples > 0";
    let about: Option<i64> = sqlx::query_scalar(query).fetch_optional(connection).await?;
    Ok(about.map(|about| about as u64))
}
