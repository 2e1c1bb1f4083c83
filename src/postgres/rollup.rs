//! Figures that are counted already: `email_figures`, by day and by what a mail was (migration 19).
//!
//! Counted is exactly what was stored before a moment, `counted_until`, which moves in the transaction that adds to the
//! figures. So a run may be killed anywhere, several may try at once, and whatever the order in which events arrive, the
//! figures are those that one would count from all of them at the end.

pub mod lines;

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection, Row as _, postgres::PgRow};
use time::{Date, OffsetDateTime};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Postgres;
use crate::upkeep::Pace;

/// How far behind the clock of the database to stay: by so much it may be set back without a row being missed.
pub const MARGIN: Duration = Duration::from_secs(5);
/// Events to count in one transaction, about.
pub const SLICE: i64 = 20_000;
/// And fewest, where the database ends the statement because it takes too long.
const SMALLEST: i64 = 100;
/// How long to wait for transactions that may be storing, before it is left to the next round.
const WRITERS: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// So many times as long as it worked it rests where others store: it has to keep up with them, and not to be in their way.
pub const REST: u32 = 3;
/// How long to count before events are removed.
const CATCH_UP: Duration = Duration::from_secs(3600);
/// Lines of a difference that are told one by one.
const MOST_EXAMPLES: usize = 10;

/// What is counted of each event, and how: `fact` and `class` by the rules of migration 2.
const COUNTERS: [(&str, &str); 14] = [
    ("sends", "fact = 'sent'"),
    ("deliveries", "fact = 'delivered'"),
    ("delays", "fact = 'delayed'"),
    ("bounces_permanent", "class = 'permanent'"),
    ("bounces_transient", "class = 'transient'"),
    ("bounces_undetermined", "class = 'undetermined'"),
    (
        "suppressed",
        "class = 'permanent' AND (complaint_subtype IS NOT NULL
           OR bounce_subtype IN ('Suppressed', 'OnAccountSuppressionList', 'OnTenantSuppressionList'))",
    ),
    // Of several possible recipients none is called the one who complained.
    ("complaints", "fact = 'complained' AND NOT candidate"),
    ("rejects", "fact = 'rejected'"),
    ("failures", "fact = 'failed'"),
    ("opens", "fact = 'opened'"),
    ("clicks", "fact = 'clicked'"),
    ("opens_by_bots", "fact = 'opened' AND bot = 'Likely'"),
    ("clicks_by_bots", "fact = 'clicked' AND bot = 'Likely'"),
];
/// And of each mail: the day of its first open, and of its first click.
const FIRSTS: [&str; 2] = ["opened", "clicked"];

/// The month of a mail `l`, as retention reads it.
const MONTH: &str = "date_trunc('month', (CASE WHEN ses_ledger_is_v7(l.uuid) THEN ses_ledger_uuid_time(l.uuid)
                                               ELSE l.created_at END) AT TIME ZONE 'UTC')::date";

/// Only one counts at a time in a schema.
const LOCK: &str = "hashtextextended('ses_ledger figures ' || current_schema(), 0)";

/// How far the figures are counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Position {
    /// Exactly the events that were stored before are counted. The beginning of 1970: none is.
    #[serde(with = "time::serde::rfc3339")]
    pub counted_until: OffsetDateTime,
    /// How long ago that is, by the clock of the database.
    pub behind_seconds: f64,
    /// Tags that mails are counted by.
    pub tags: Vec<String>,
}

/// What one slice did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Events were counted, or there were none; up to this moment.
    Counted { until: OffsetDateTime, is_up_to_date: bool },
    /// Somebody else is counting.
    Busy,
    /// A month is just being let go, and its events are out of sight.
    MonthInTransit,
    /// The clock of the database stands before the moment up to which is counted: it was set back.
    ClockBehind,
}

/// Up to where to count now, and in what pieces.
#[derive(Clone, Debug)]
pub struct Rollup<'a> {
    /// Tags to count by from now on. `None`: those that were chosen last.
    pub tags: Option<&'a [String]>,
    pub margin: Duration,
    pub slice: i64,
}

/// One month in a difference.
#[derive(Clone, Debug, Serialize)]
pub struct MonthDifference {
    /// First day of the month of the mails.
    pub month: Date,
    /// Lines that the events make.
    pub lines: i64,
    /// Lines that are otherwise in the figures, missing there, or there without an event.
    pub different: i64,
    /// Some of them.
    pub examples: Vec<Example>,
}

/// A line as it is in the figures, and as the events make it: only what differs. It names templates and domains.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    pub dimension: String,
    pub key: String,
    pub day: String,
    /// By counter: in the figures, and counted.
    pub counters: Vec<(String, i64, i64)>,
}

/// The figures beside what the stored events make.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Difference {
    /// The months that were looked at; those before the horizon are not.
    pub months: Vec<MonthDifference>,
    /// It was mended.
    pub applied: bool,
}

impl Difference {
    /// Lines that differ.
    pub fn lines(&self) -> i64 {
        self.months.iter().map(|month| month.different).sum()
    }
}

impl Default for Rollup<'_> {
    fn default() -> Self {
        Self { tags: None, margin: MARGIN, slice: SLICE }
    }
}

impl Rollup<'_> {
    /// Counts what is new, slice by slice, until it is up to date or the time is up, and rests `rest` times as long as it
    /// worked; tells `progress` after each slice. `None`: somebody has been storing for longer than we wait.
    ///
    /// # Errors
    /// If the database cannot be reached, or the role may not count. What was counted until then is.
    pub async fn run(
        &self,
        postgres: &Postgres,
        until: Instant,
        rest: u32,
        mut progress: impl FnMut(OffsetDateTime),
    ) -> anyhow::Result<Option<Step>> {
        let (mut pace, mut slice) = (Pace::resting(rest), self.slice);
        let Some(safe) = safe_until(postgres, self.margin).await? else { return Ok(None) };
        loop {
            let step = match self.take(postgres, safe, slice).await {
                // Long ago, or a slow disk: in smaller pieces.
                Err(e) if takes_too_long(&e) && slice > SMALLEST => {
                    slice /= 4;
                    continue;
                }
                step => step.context("cannot count the figures")?,
            };
            match step {
                Step::Counted { until, is_up_to_date: false } => progress(until),
                _ => return Ok(Some(step)),
            }
            if Instant::now() >= until {
                return Ok(Some(step));
            }
            pace.rest().await;
        }
    }

    /// Counts the next slice of what was stored before `safe`, in one transaction.
    ///
    /// # Errors
    /// If the database cannot be reached. Nothing was counted then, or the answer was lost.
    pub async fn step(&self, postgres: &Postgres, safe: OffsetDateTime) -> anyhow::Result<Step> {
        self.take(postgres, safe, self.slice).await.context("cannot count the figures")
    }

    async fn take(&self, postgres: &Postgres, safe: OffsetDateTime, slice: i64) -> Result<Step, sqlx::Error> {
        postgres.patiently(self.try_take(postgres, safe, slice)).await
    }

    async fn try_take(&self, postgres: &Postgres, safe: OffsetDateTime, slice: i64) -> Result<Step, sqlx::Error> {
        let mut session = postgres.transaction().await?;
        let mine = AssertSqlSafe(format!("SELECT pg_try_advisory_xact_lock({LOCK})"));
        if !sqlx::query_scalar::<_, bool>(mine).fetch_one(&mut session).await? {
            return Ok(Step::Busy);
        }
        let row = sqlx::query(
            "SELECT counted_until, tags, clock_timestamp() < counted_until AS is_behind
             FROM ses_ledger_figures WHERE singleton FOR UPDATE",
        );
        let row = row.fetch_one(&mut session).await?;
        let from: OffsetDateTime = row.try_get("counted_until")?;
        let tags = self.tags.map_or_else(|| row.try_get("tags"), |tags| Ok(tags.to_vec()))?;
        if row.try_get("is_behind")? {
            return Ok(Step::ClockBehind);
        }
        let safe = safe.max(from);
        // As many as make a slice, and at least one moment: a batch may have been stored at one.
        let to: Option<OffsetDateTime> = sqlx::query_scalar(
            "SELECT CASE WHEN at > $1 THEN at
                         ELSE (SELECT stored_at FROM email_events WHERE stored_at > $1 ORDER BY stored_at LIMIT 1) END
             FROM (SELECT stored_at AS at FROM email_events WHERE stored_at >= $1 AND stored_at < $2
                   ORDER BY stored_at OFFSET $3 LIMIT 1) AS slice",
        )
        .bind(from)
        .bind(safe)
        .bind(slice)
        .fetch_optional(&mut session)
        .await?
        .flatten();
        let to = to.map_or(safe, |to| to.min(safe));
        if to > from {
            let count =
                sqlx::query(AssertSqlSafe(format!("{} {}", contributions(&Of::Slice), add(1, "email_figures"))));
            count.bind(to).bind(&tags).bind(from).execute(&mut session).await?;
            // Seen after the events were: if the month was out of sight then, that is known by now.
            let in_transit = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM ses_ledger_months_let_go WHERE gone_at IS NULL AND kept IS NULL)",
            );
            if in_transit.fetch_one(&mut session).await? {
                return Ok(Step::MonthInTransit);
            }
        }
        let note = sqlx::query(
            "UPDATE ses_ledger_figures SET counted_until = $1, tags = $2, updated_at = now() WHERE singleton",
        );
        note.bind(to).bind(&tags).execute(&mut session).await?;
        session.end().await?;
        Ok(Step::Counted { until: to, is_up_to_date: to == safe })
    }
}

fn takes_too_long(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "57014")
}

/// How far the figures are counted.
///
/// # Errors
/// If the database cannot be read.
pub async fn position(postgres: &Postgres) -> anyhow::Result<Position> {
    let query = sqlx::query(
        "SELECT counted_until, extract(epoch FROM clock_timestamp() - counted_until)::float8 AS behind, tags
         FROM ses_ledger_figures WHERE singleton",
    );
    let read = |row: PgRow| {
        Ok(Position {
            counted_until: row.try_get("counted_until")?,
            behind_seconds: row.try_get("behind")?,
            tags: row.try_get("tags")?,
        })
    };
    postgres.patiently(query.try_map(read).fetch_one(postgres)).await.context("cannot read how far the figures are")
}

/// The moment up to which every row that will ever be there is there. `None`: somebody has been storing for longer than we
/// wait; the next round asks anew.
///
/// A row is stored, by `clock_timestamp()`, by a transaction that holds its lock on `email_events` by then, and until its end.
/// So of those that have no lock at a moment, and wait for none, no row from before that moment is to come. Prepared
/// transactions hold theirs, too. Locks are seen by every role.
///
/// # Errors
/// If the database cannot be reached.
pub async fn safe_until(postgres: &Postgres, margin: Duration) -> anyhow::Result<Option<OffsetDateTime>> {
    let context = "cannot see who is storing";
    // Two statements: the moment first.
    let now = sqlx::query_scalar("SELECT clock_timestamp()");
    let now: OffsetDateTime = postgres.patiently(now.fetch_one(postgres)).await.context(context)?;
    let mut writers: Option<Vec<String>> = None;
    let patience = Instant::now() + WRITERS;
    loop {
        let storing = sqlx::query_scalar(
            "SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}') FROM pg_locks
             WHERE locktype = 'relation' AND relation = to_regclass('email_events')
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
               AND ($1::text[] IS NULL OR virtualtransaction = ANY ($1))",
        );
        let storing: Vec<String> =
            postgres.patiently(storing.bind(&writers).fetch_one(postgres)).await.context(context)?;
        if storing.is_empty() {
            return Ok(Some(now - margin));
        }
        if Instant::now() >= patience {
            return Ok(None);
        }
        writers = Some(storing);
        sleep(LOOK_AGAIN).await;
    }
}

/// Counts all that is stored by now, before somebody removes events: their figures stay.
///
/// # Errors
/// If that cannot be done in time.
pub async fn catch_up(postgres: &Postgres) -> anyhow::Result<()> {
    let now = sqlx::query_scalar("SELECT clock_timestamp()");
    let now: OffsetDateTime = postgres.patiently(now.fetch_one(postgres)).await.context("cannot ask for the time")?;
    let rollup = Rollup { margin: Duration::ZERO, ..Rollup::default() };
    let patience = Instant::now() + CATCH_UP;
    while position(postgres).await?.counted_until < now {
        match rollup.run(postgres, patience, REST, |_| {}).await? {
            // Left half done by who removes events: it is at it again.
            Some(Step::MonthInTransit) => break,
            Some(Step::Counted { .. }) => {}
            None | Some(Step::Busy | Step::ClockBehind) => sleep(LOOK_AGAIN).await,
        }
        anyhow::ensure!(
            Instant::now() < patience,
            "the figures are not counted yet up to now, and without the events they could not be: try again later"
        );
    }
    Ok(())
}

/// Keeps what is counted where it is until the transaction ends: for those who change or remove events that may be counted.
pub(super) async fn hold<'c>(session: impl Executor<'c, Database = sqlx::Postgres>) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT counted_until FROM ses_ledger_figures WHERE singleton FOR UPDATE")
        .execute(session)
        .await
        .map(drop)
}

/// Takes what these mails have contributed out of the figures; a line that nothing is left of goes, since its key may name
/// somebody.
pub(super) async fn take_out<S>(session: &mut S, mails: &[Uuid]) -> Result<(), sqlx::Error>
where
    for<'c> &'c mut S: Executor<'c, Database = sqlx::Postgres>,
{
    contribute(&mut *session, mails, -1).await?;
    let is_nothing = names().map(|name| format!("f.{name} = 0")).collect::<Vec<_>>().join(" AND ");
    let sql = format!(
        "{} DELETE FROM email_figures AS f USING spread AS s
         WHERE (f.month, f.dimension, f.key, f.day) = (s.month, s.dimension, s.key, s.day) AND {is_nothing}",
        contributions(&Of::Mails)
    );
    sqlx::query(AssertSqlSafe(sql)).bind(mails).execute(session).await.map(drop)
}

/// Puts what these mails contribute now back into them. Both under one [`hold`].
pub(super) async fn put_in<'c>(
    session: impl Executor<'c, Database = sqlx::Postgres>,
    mails: &[Uuid],
) -> Result<(), sqlx::Error> {
    contribute(session, mails, 1).await
}

async fn contribute<'c>(
    session: impl Executor<'c, Database = sqlx::Postgres>,
    mails: &[Uuid],
    sign: i32,
) -> Result<(), sqlx::Error> {
    let sql = format!("{} {}", contributions(&Of::Mails), add(sign, "email_figures"));
    sqlx::query(AssertSqlSafe(sql)).bind(mails).execute(session).await.map(drop)
}

/// Counts every month anew from the stored events, and says what is otherwise in the figures; mends it if it is to `apply`.
/// Month by month, each in a transaction of its own: what was cut short goes on when it is called again. Months before the
/// horizon are not touched. Nobody else counts meanwhile; who stores does not notice.
///
/// `months`: the first days of the first and of the last month. `None`: all.
///
/// # Errors
/// If the database cannot be reached, or somebody else rebuilds. Months that were mended until then are.
pub async fn rebuild(
    postgres: &Postgres,
    apply: bool,
    months: Option<RangeInclusive<Date>>,
    progress: impl FnMut(&MonthDifference),
) -> anyhow::Result<Difference> {
    rebuild_by(postgres, apply, months, None, progress).await
}

/// The same, by other tags from now on; if it is not to apply, by other tags this once.
///
/// # Errors
/// As [`rebuild`].
pub async fn rebuild_by(
    postgres: &Postgres,
    apply: bool,
    months: Option<RangeInclusive<Date>>,
    tags: Option<&[String]>,
    mut progress: impl FnMut(&MonthDifference),
) -> anyhow::Result<Difference> {
    let mut connection = postgres.acquire().await.context("cannot connect to the database")?.detach();
    let outcome = rebuild_on(&mut connection, apply, months, tags, &mut progress).await;
    // With it go its settings, its lock and its temporary tables.
    let _ = connection.close().await;
    outcome
}

async fn rebuild_on(
    connection: &mut PgConnection,
    apply: bool,
    months: Option<RangeInclusive<Date>>,
    tags: Option<&[String]>,
    progress: &mut impl FnMut(&MonthDifference),
) -> anyhow::Result<Difference> {
    let context = "cannot count the figures anew";
    for setting in ["statement_timeout = 0", "enable_seqscan = on", "work_mem = '64MB'"] {
        connection.execute(AssertSqlSafe(format!("SET {setting}"))).await.context(context)?;
    }
    let mine = AssertSqlSafe(format!("SELECT pg_advisory_lock({LOCK})"));
    sqlx::query(mine).execute(&mut *connection).await.context(context)?;
    let chosen = "SELECT tags FROM ses_ledger_figures WHERE singleton";
    let known: Vec<String> = sqlx::query_scalar(chosen).fetch_one(&mut *connection).await.context(context)?;
    let tags = tags.map_or(known, chosen_tags);
    if apply {
        let choose = sqlx::query("UPDATE ses_ledger_figures SET tags = $1 WHERE singleton AND tags <> $1");
        choose.bind(&tags).execute(&mut *connection).await.context(context)?;
    }
    // Ids that tell no time lie anywhere: looked up once.
    let others = format!(
        "CREATE TEMP TABLE ses_ledger_others AS SELECT l.uuid, {MONTH} AS month FROM email_logs AS l WHERE NOT ses_ledger_is_v7(l.uuid)"
    );
    let counted = "CREATE TEMP TABLE ses_ledger_counted (LIKE email_figures INCLUDING DEFAULTS INCLUDING INDEXES)";
    for make in [others.as_str(), "ANALYZE ses_ledger_others", counted] {
        connection.execute(AssertSqlSafe(make.to_owned())).await.context(context)?;
    }
    let all = format!(
        "SELECT month FROM (
           SELECT DISTINCT {MONTH} AS month FROM email_logs AS l WHERE ses_ledger_is_v7(l.uuid)
           UNION SELECT month FROM ses_ledger_others UNION SELECT month FROM email_figures) AS months
         WHERE month >= (SELECT (events_from AT TIME ZONE 'UTC')::date FROM ses_ledger_horizon WHERE singleton) ORDER BY month"
    );
    let all: Vec<Date> = sqlx::query_scalar(AssertSqlSafe(all)).fetch_all(&mut *connection).await.context(context)?;
    let wanted = all.into_iter().filter(|month| months.as_ref().is_none_or(|months| months.contains(month)));
    let mut difference = Difference { months: Vec::new(), applied: apply };
    for month in wanted {
        let month =
            rebuild_month(connection, apply, month, &tags).await.with_context(|| format!("{context}, {month}"))?;
        progress(&month);
        difference.months.push(month);
    }
    Ok(difference)
}

async fn rebuild_month(
    connection: &mut PgConnection,
    apply: bool,
    month: Date,
    tags: &[String],
) -> Result<MonthDifference, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    // Nobody changes meanwhile what is counted: see `hold`.
    hold(&mut *transaction).await?;
    transaction.execute("TRUNCATE ses_ledger_counted").await?;
    let count = format!("{} {}", contributions(&Of::Month), add(1, "ses_ledger_counted"));
    sqlx::query(AssertSqlSafe(count)).bind(month).bind(tags).execute(&mut *transaction).await?;
    transaction.execute("ANALYZE ses_ledger_counted").await?;
    let names = names().collect::<Vec<_>>();
    let differs =
        names.iter().map(|n| format!("coalesce(c.{n}, 0) <> coalesce(f.{n}, 0)")).collect::<Vec<_>>().join(" OR ");
    let pairs = names.iter().map(|n| format!("'{n}', coalesce(f.{n}, 0), coalesce(c.{n}, 0)")).collect::<Vec<_>>();
    let sql = format!(
        "CREATE TEMP TABLE ses_ledger_different ON COMMIT DROP AS
         SELECT dimension, key, day, c.month IS NOT NULL AS is_there, jsonb_build_array({}) AS pairs
         FROM (SELECT * FROM email_figures WHERE month = '{month}') AS f
         FULL JOIN ses_ledger_counted AS c USING (dimension, key, day)
         WHERE {differs}",
        pairs.join(", ")
    );
    transaction.execute(AssertSqlSafe(sql)).await?;
    let counts = "SELECT (SELECT count(*) FROM ses_ledger_counted), (SELECT count(*) FROM ses_ledger_different)";
    let (lines, different): (i64, i64) = sqlx::query_as(counts).fetch_one(&mut *transaction).await?;
    let some = sqlx::query(
        "SELECT dimension, key, day::text AS day, pairs::text AS pairs FROM ses_ledger_different
         ORDER BY dimension <> 'all', dimension, key, ses_ledger_different.day LIMIT $1",
    );
    let some = some.bind(MOST_EXAMPLES as i64).fetch_all(&mut *transaction).await?;
    let examples = some.iter().map(example).collect::<Result<_, _>>()?;
    if apply && different > 0 {
        let gone = sqlx::query(
            "DELETE FROM email_figures AS f USING ses_ledger_different AS d
             WHERE f.month = $1 AND (f.dimension, f.key, f.day) = (d.dimension, d.key, d.day)",
        );
        gone.bind(month).execute(&mut *transaction).await?;
        let columns = format!("month, dimension, key, day, {}", names.join(", "));
        let new = format!(
            "INSERT INTO email_figures ({columns}) SELECT {columns} FROM ses_ledger_counted
             JOIN ses_ledger_different AS d USING (dimension, key, day) ORDER BY dimension, key, day"
        );
        transaction.execute(AssertSqlSafe(new)).await?;
    }
    transaction.commit().await?;
    Ok(MonthDifference { month, lines, different, examples })
}

fn example(row: &PgRow) -> Result<Example, sqlx::Error> {
    let pairs: Vec<serde_json::Value> =
        serde_json::from_str(row.try_get("pairs")?).map_err(|e| sqlx::Error::Decode(e.into()))?;
    let counters = pairs.chunks(3).filter_map(|triple| match triple {
        [name, was, is] if was != is => Some((name.as_str()?.to_owned(), was.as_i64()?, is.as_i64()?)),
        _ => None,
    });
    Ok(Example {
        dimension: row.try_get("dimension")?,
        key: row.try_get("key")?,
        day: row.try_get("day")?,
        counters: counters.collect(),
    })
}

/// Which events are counted.
enum Of {
    /// Those that were stored from one moment on to another: `$1` to, `$2` tags, `$3` from.
    Slice,
    /// Those of some mails, of what is counted: `$1` the mails.
    Mails,
    /// Those of the mails of a month, of what is counted: `$1` its first day, `$2` tags.
    Month,
}

impl Of {
    fn events(&self) -> &'static str {
        match self {
            Self::Slice => "email_events AS e WHERE e.stored_at >= $3 AND e.stored_at < $1",
            Self::Mails => {
                "email_events AS e WHERE e.email_log_uuid = ANY ($1)
                   AND e.stored_at < (SELECT counted_until FROM ses_ledger_figures WHERE singleton)"
            }
            Self::Month => {
                "(SELECT * FROM email_events
                  WHERE email_log_uuid >= ses_ledger_uuid_floor($1::timestamp AT TIME ZONE 'UTC')
                    AND email_log_uuid < ses_ledger_uuid_floor(($1::timestamp + interval '1 month') AT TIME ZONE 'UTC')
                    AND ses_ledger_is_v7(email_log_uuid)
                  UNION ALL
                  SELECT e.* FROM ses_ledger_others AS o JOIN email_events AS e ON e.email_log_uuid = o.uuid
                  WHERE o.month = $1) AS e
                 WHERE e.stored_at < (SELECT counted_until FROM ses_ledger_figures WHERE singleton)"
            }
        }
    }

    /// On which day the first open and click of a mail were before these events, and are with them.
    fn firsts(&self) -> &'static str {
        match self {
            // Of the mails that have an open or a click among them, all that were stored until then.
            Self::Slice => {
                "SELECT o.email_log_uuid, o.event_type,
                        (min(o.occurred_at) FILTER (WHERE o.stored_at < $3) AT TIME ZONE 'UTC')::date AS before,
                        (min(o.occurred_at) AT TIME ZONE 'UTC')::date AS after
                 FROM (SELECT DISTINCT email_log_uuid, event_type FROM events WHERE event_type IN ('open', 'click')) AS s
                 JOIN email_events AS o ON o.email_log_uuid = s.email_log_uuid AND o.event_type = s.event_type
                 WHERE o.event_type IN ('open', 'click') AND o.stored_at < $1
                 GROUP BY 1, 2"
            }
            Self::Mails | Self::Month => {
                "SELECT email_log_uuid, event_type, NULL::date AS before, min(day) AS after
                 FROM events WHERE event_type IN ('open', 'click') GROUP BY 1, 2"
            }
        }
    }

    fn tags(&self) -> &'static str {
        match self {
            Self::Slice | Self::Month => "$2::text[]",
            Self::Mails => "(SELECT tags FROM ses_ledger_figures WHERE singleton)",
        }
    }
}

/// The names of tags as they are counted by: each once, and none that is empty.
pub fn chosen_tags(names: &[String]) -> Vec<String> {
    let names: BTreeSet<&String> = names.iter().filter(|name| !name.is_empty()).collect();
    names.into_iter().cloned().collect()
}

fn names() -> impl Iterator<Item = &'static str> {
    COUNTERS.iter().map(|(name, _)| *name).chain(FIRSTS)
}

fn listed(each: impl Fn(&str) -> String) -> String {
    names().map(each).collect::<Vec<_>>().join(", ")
}

/// What these events make: lines as in `email_figures`, as `spread`. First by everything that a mail is counted by at once,
/// then by each: there are far fewer such lines than events.
fn contributions(of: &Of) -> String {
    let counted: String =
        COUNTERS.iter().map(|(name, rule)| format!(", count(*) FILTER (WHERE {rule}) AS {name}")).collect();
    let none = ", 0".repeat(COUNTERS.len());
    let (events, firsts, tags) = (of.events(), of.firsts(), of.tags());
    let (sums, all_sums) = (listed(|n| format!("sum({n}) AS {n}")), listed(|n| format!("sum({n})::bigint AS {n}")));
    format!(
        "WITH events AS MATERIALIZED (
           SELECT e.email_log_uuid, e.event_type, (e.occurred_at AT TIME ZONE 'UTC')::date AS day, e.candidate,
                  -- Who was erased has no domain any more.
                  CASE WHEN e.recipient LIKE 'erased:%' THEN '(erased)' ELSE lower(split_part(e.recipient, '@', -1)) END AS domain,
                  e.bounce_subtype, e.complaint_subtype, e.bot,
                  ses_ledger_fact(e.event_type, e.complaint_type, e.complaint_subtype) AS fact,
                  ses_ledger_bounce_class_of(e.event_type, e.bounce_type, e.complaint_subtype) AS class
           FROM {events}
         ), firsts AS (
           {firsts}
         ), told AS (
           SELECT email_log_uuid, day, domain{counted}, 0 AS opened, 0 AS clicked
           FROM events WHERE fact IS NOT NULL AND NOT (fact = 'complained' AND candidate) GROUP BY 1, 2, 3
           UNION ALL
           SELECT email_log_uuid, d.day, NULL{none}, CASE event_type WHEN 'open' THEN d.n ELSE 0 END,
                  CASE event_type WHEN 'click' THEN d.n ELSE 0 END
           FROM firsts, LATERAL (VALUES (before, -1), (after, 1)) AS d (day, n)
           WHERE before IS DISTINCT FROM after AND d.day IS NOT NULL
         ), lines AS (
           SELECT {MONTH} AS month, day, domain, template_name, campaign_id, configuration_set,
                  (SELECT array_agg(l.tags ->> name ORDER BY name) FROM unnest({tags}) AS name) AS tagged, {sums}
           FROM told JOIN email_logs AS l ON l.uuid = told.email_log_uuid
           GROUP BY 1, 2, 3, 4, 5, 6, 7
         ), spread AS (
           SELECT month, dimension, CASE WHEN length(name) > 200 THEN left(name, 200) || ' ' || md5(name) ELSE name END AS key, day, {all_sums}
           FROM lines, LATERAL (
             VALUES ('all', ''), ('template', coalesce(template_name, '')), ('campaign', coalesce(campaign_id, '')),
                    ('configuration-set', coalesce(configuration_set, '')), ('domain', domain)
             UNION ALL
             SELECT 'tag:' || tag.name, coalesce(tagged[tag.n], '')
             FROM (SELECT name, row_number() OVER (ORDER BY name) AS n FROM unnest({tags}) AS name) AS tag
           ) AS d (dimension, name)
           WHERE d.name IS NOT NULL
           GROUP BY 1, 2, 3, 4
         )"
    )
}

/// Adds them to the figures, or takes them out. In the order of the key; there is only one who does so at a time anyhow.
fn add(sign: i32, table: &str) -> String {
    let columns = listed(str::to_owned);
    format!(
        "INSERT INTO {table} AS f (month, dimension, key, day, {columns})
         SELECT month, dimension, key, day, {} FROM spread ORDER BY month, dimension, key, day
         ON CONFLICT (month, dimension, key, day) DO UPDATE SET {}",
        listed(|n| format!("{sign} * {n}")),
        listed(|n| format!("{n} = f.{n} + excluded.{n}")),
    )
}
