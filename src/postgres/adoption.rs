//! Existing tables of another shape: reading them page by page, and storing what they say.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Columns, Postgres, Session, lacks_partition, rollup};
use crate::{
    adoption::{
        rows::{LogRow, Mail},
        shape::Table,
    },
    pipeline::batch::Arrival,
};

/// Looks for the events that are here already.
const FIND_TWINS: &str = concat!(include_str!("adoption_given.sql"), include_str!("adoption_twins.sql"));

/// The statement that stores a batch, fed with adopted events; a verdict per event.
const STORE_ADOPTED: &str = concat!(
    include_str!("adoption_given.sql"),
    include_str!("from_adoption.sql"),
    include_str!("store.sql"),
    include_str!("adoption_verdicts.sql")
);

/// A column of somebody's table, with its type as PostgreSQL prints it.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub(super) kind: String,
}

/// The columns of a table; `None` if there is no such table or view.
///
/// # Errors
/// If the database cannot be read.
pub async fn columns(source: &Postgres, table: &Table) -> Result<Option<Vec<Column>>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    );
    let rows = query.bind(quoted(table)).fetch_all(source).await?;
    let columns: Result<Vec<_>, sqlx::Error> =
        rows.iter().map(|row| Ok(Column { name: row.try_get(0)?, kind: row.try_get(1)? })).collect();
    columns.map(|columns| Some(columns).filter(|columns| !columns.is_empty()))
}

/// Whether the table is one of ours.
///
/// # Errors
/// If the database cannot be read.
pub async fn is_ours(postgres: &Postgres, table: &Table) -> Result<bool, sqlx::Error> {
    let query = "SELECT to_regclass($1) IN (to_regclass('email_logs'), to_regclass('email_events'), to_regclass('orphaned_events')) IS TRUE";
    sqlx::query_scalar(query).bind(quoted(table)).fetch_one(postgres).await
}

/// Reads a table page by page, in the order in which the first of equals is the one that stays.
pub struct Pages {
    first: String,
    next: String,
    about: String,
    without_id: String,
    /// Its rows come in the order of their times, then of their keys; else of their keys alone.
    pub by_time: bool,
}

/// A row as a JSON object with our names for its columns, and where it stands in the order.
pub struct SourceRow {
    pub position: Vec<String>,
    pub json: String,
}

impl Pages {
    /// `by_time` as it was decided when the run began; `None`: decide. Keys that are numbers or UUIDs of version 7 grow with
    /// time; where others are found, the earliest is told by the column of the times.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub async fn new(
        source: &Postgres,
        table: &Table,
        fields: &[&str],
        there: &[Column],
        by_time: Option<bool>,
    ) -> Result<Self, sqlx::Error> {
        let column_of = |field: &str| table.columns.get(field).map(|name| format!("t.{}", ident(name)));
        let kind_of =
            |field: &str| there.iter().find(|c| Some(&c.name) == table.columns.get(field)).map(|c| c.kind.as_str());
        let (from, id) = (quoted(table), column_of("id").unwrap_or_default());
        let id_kind = kind_of("id").unwrap_or("text");
        let time = ["occurred_at", "created_at"].iter().find_map(|field| Some((column_of(field)?, kind_of(field)?)));
        let time = time.filter(|(_, kind)| kind.starts_with("timestamp") || *kind == "date");
        let by_time = match (by_time, &time) {
            (Some(decided), _) => decided,
            (None, None) => false,
            (None, Some(_)) => !grows_with_time(source, &from, &id, id_kind).await?,
        };
        let mut keys = vec![(id.clone(), id_kind.to_owned())];
        if let (true, Some((time, kind))) = (by_time, time) {
            keys.insert(0, (format!("coalesce({time}, '-infinity')"), kind.to_owned()));
        }
        let order = keys.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", ");
        let position = keys.iter().map(|(key, _)| format!("({key})::text")).collect::<Vec<_>>().join(", ");
        let after = keys.iter().enumerate().map(|(n, (_, kind))| format!("($2::text[])[{}]::{kind}", n + 1));
        let after = after.collect::<Vec<_>>().join(", ");
        let values = fields.iter().filter_map(|field| Some(format!("'{field}', {}", column_of(field)?)));
        let values = values.collect::<Vec<_>>().join(", ");
        let page = |condition: &str| {
            format!(
                "SELECT ARRAY[{position}], json_build_object({values})::text FROM {from} AS t WHERE {id} IS NOT NULL {condition} \
                 ORDER BY {order} FETCH FIRST ($1::bigint) ROWS WITH TIES"
            )
        };
        Ok(Self {
            first: page("AND $2::text[] IS NULL"),
            next: page(&format!("AND ({order}) > ({after})")),
            about: format!(
                "SELECT CASE WHEN reltuples > 0 THEN reltuples::bigint END FROM pg_class WHERE oid = to_regclass('{}')",
                from.replace('\'', "''")
            ),
            without_id: format!("SELECT count(*) FROM {from} AS t WHERE {id} IS NULL"),
            by_time,
        })
    }

    /// The next rows; a few more than `limit` if keys are equal there.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub async fn after(
        &self,
        source: &Postgres,
        position: Option<&[String]>,
        limit: i64,
    ) -> Result<Vec<SourceRow>, sqlx::Error> {
        let sql = if position.is_some() { &self.next } else { &self.first };
        let query = sqlx::query(AssertSqlSafe(sql.clone())).bind(limit).bind(position);
        let rows = query.fetch_all(source).await?;
        rows.iter().map(|row| Ok(SourceRow { position: row.try_get(0)?, json: row.try_get(1)? })).collect()
    }

    /// How many rows there are, as far as PostgreSQL knows without counting.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn about(&self, source: &Postgres) -> Result<Option<i64>, sqlx::Error> {
        let about = sqlx::query_scalar(AssertSqlSafe(self.about.clone())).fetch_optional(source).await?;
        Ok(about.flatten())
    }

    /// How many rows have no key.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub async fn without_id(&self, source: &Postgres) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(self.without_id.clone())).fetch_one(source).await
    }
}

async fn grows_with_time(source: &Postgres, from: &str, id: &str, kind: &str) -> Result<bool, sqlx::Error> {
    if matches!(kind, "smallint" | "integer" | "bigint" | "numeric") {
        return Ok(true);
    }
    let query = format!("SELECT NOT EXISTS (SELECT FROM {from} AS t WHERE substr(({id})::text, 15, 1) <> '7')");
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(source).await
}

pub(super) fn quoted(table: &Table) -> String {
    let schema = table.schema.as_deref().map(|schema| ident(schema) + ".").unwrap_or_default();
    schema + &ident(&table.name)
}

pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// How far a step has come.
#[derive(Clone, Debug)]
pub struct State {
    pub position: Option<Vec<String>>,
    pub by_time: Option<bool>,
    pub counts: Value,
    pub started_at: OffsetDateTime,
    pub finished: bool,
}

/// How far a step has come; `None` if it never began.
///
/// # Errors
/// If the database cannot be read.
pub async fn state(postgres: &Postgres, source: &str, step: &str) -> Result<Option<State>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT position, by_time, counts::text, started_at, finished_at IS NOT NULL FROM ses_ledger_adoptions
         WHERE source = $1 AND step = $2",
    );
    let row = query.bind(source).bind(step).fetch_optional(postgres).await?;
    let read = |row: PgRow| -> Result<State, sqlx::Error> {
        let counts: String = row.try_get(2)?;
        Ok(State {
            position: row.try_get(0)?,
            by_time: Some(row.try_get(1)?),
            counts: serde_json::from_str(&counts).unwrap_or_default(),
            started_at: row.try_get(3)?,
            finished: row.try_get(4)?,
        })
    };
    row.map(read).transpose()
}

/// Begins a step anew: what the last run noted of it is forgotten, what it adopted stays.
///
/// # Errors
/// If the database cannot be reached, or the login lacks the rights.
pub async fn begin(postgres: &Postgres, source: &str, step: &str, by_time: bool) -> Result<(), sqlx::Error> {
    let mut session = postgres.transaction().await?;
    sqlx::query(
        "INSERT INTO ses_ledger_adoptions AS a (source, step, by_time) VALUES ($1, $2, $3)
         ON CONFLICT (source, step) DO UPDATE SET position = NULL, by_time = excluded.by_time, counts = '{}', started_at = now(),
           updated_at = now(), finished_at = NULL",
    )
    .bind(source)
    .bind(step)
    .bind(by_time)
    .execute(&mut session)
    .await?;
    let forget = sqlx::query("DELETE FROM ses_ledger_unmatched WHERE source = $1 AND step = $2");
    forget.bind(source).bind(step).execute(&mut session).await?;
    session.end().await
}

/// Rows that the last runs could not take: table, step, key, reason. Those of one table, or of all.
///
/// # Errors
/// If the database cannot be read.
pub async fn unmatched(
    postgres: &Postgres,
    sources: &[String],
    after: &(String, String, String),
    limit: i64,
) -> Result<Vec<(String, String, String, String)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT source, step, source_id, reason FROM ses_ledger_unmatched
         WHERE source = ANY ($1) AND (source, step, source_id) > ($2, $3, $4) ORDER BY source, step, source_id LIMIT $5",
    )
    .bind(sources)
    .bind(&after.0)
    .bind(&after.1)
    .bind(&after.2)
    .bind(limit)
    .fetch_all(postgres)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))).collect()
}

/// The transaction of a page: the rows, what became of them, and how far the run has come, or nothing of it.
pub struct Page {
    session: Session,
}

/// Somebody else has moved the run on.
#[derive(Debug, thiserror::Error)]
#[error("another adoption of {0} is running: let that one finish")]
pub struct Overtaken(pub String);

impl Page {
    /// Begins the page after this position.
    ///
    /// # Errors
    /// If the database cannot be reached; [`Overtaken`] if the run stands elsewhere by now.
    pub async fn begin(
        postgres: &Postgres,
        source: &str,
        step: &str,
        position: Option<&[String]>,
    ) -> anyhow::Result<Self> {
        let mut session = postgres.transaction().await?;
        let query = sqlx::query_scalar::<_, bool>(
            "SELECT position IS NOT DISTINCT FROM $3 FROM ses_ledger_adoptions WHERE source = $1 AND step = $2 FOR UPDATE",
        );
        let stands = query.bind(source).bind(step).bind(position).fetch_optional(&mut session).await?;
        match stands {
            Some(true) => Ok(Self { session }),
            _ => Err(Overtaken(source.to_owned()).into()),
        }
    }

    /// What became of log rows so far: key → outcome and mail.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn known_logs(
        &mut self,
        source: &str,
        ids: &[&str],
    ) -> Result<HashMap<String, (String, Uuid)>, sqlx::Error> {
        known_logs(&mut self.session, source, ids).await
    }

    /// Adopts log rows that are all of different mails. Returns for each its outcome and its mail.
    ///
    /// # Errors
    /// If the database cannot be reached, or refuses a row.
    pub async fn adopt_logs(
        &mut self,
        source: &str,
        rows: &[&LogRow],
    ) -> Result<Vec<(&'static str, Uuid)>, sqlx::Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let inserted = insert_logs(&mut self.session, rows).await?;
        let mut found = find_logs(&mut self.session, source, rows).await?;
        for ((outcome, uuid), row) in found.iter_mut().zip(rows) {
            if inserted.contains(&row.uuid) && *uuid == row.uuid {
                *outcome = "adopted";
            }
        }
        Ok(found)
    }

    /// Notes what became of log rows.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn note_logs(&mut self, source: &str, notes: &[(&str, &str, Uuid)]) -> Result<(), sqlx::Error> {
        let ids: Vec<&str> = notes.iter().map(|note| note.0).collect();
        let outcomes: Vec<&str> = notes.iter().map(|note| note.1).collect();
        let uuids: Vec<Uuid> = notes.iter().map(|note| note.2).collect();
        let query = sqlx::query(
            "INSERT INTO ses_ledger_adopted_logs (source, source_id, outcome, log_uuid)
             SELECT $1, * FROM unnest($2::text[], $3::text[], $4::uuid[]) ON CONFLICT DO NOTHING",
        );
        query.bind(source).bind(ids).bind(outcomes).bind(uuids).execute(&mut self.session).await.map(drop)
    }

    /// Gives mails that have no SES id the one that their rows know. Returns how many got theirs.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn fill_ids(&mut self, ids: &[(Uuid, &str)]) -> Result<u64, sqlx::Error> {
        let uuids: Vec<Uuid> = ids.iter().map(|(uuid, _)| *uuid).collect();
        let ids: Vec<&str> = ids.iter().map(|(_, id)| *id).collect();
        let query = sqlx::query(
            "UPDATE email_logs AS l SET aws_message_id = u.id
             FROM (SELECT DISTINCT ON (id) uuid, id FROM unnest($1::uuid[], $2::text[]) AS t (uuid, id) ORDER BY id, uuid) AS u
             WHERE l.uuid = u.uuid AND l.aws_message_id IS NULL
               AND NOT EXISTS (SELECT FROM email_logs AS other WHERE other.aws_message_id = u.id)",
        );
        query.bind(uuids).bind(ids).execute(&mut self.session).await.map(|done| done.rows_affected())
    }

    /// The mails of log rows.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn mails_of(&mut self, source: &str, ids: &[&str]) -> Result<HashMap<String, Mail>, sqlx::Error> {
        mails_of(&mut self.session, source, ids).await
    }

    /// The mails with these SES ids.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn mails_with(&mut self, message_ids: &[&str]) -> Result<HashMap<String, Mail>, sqlx::Error> {
        mails_with(&mut self.session, message_ids).await
    }

    /// Stores events, by the statement of the worker. Returns for each `adopted`, `parked`, `collapsed` or `there`.
    ///
    /// # Errors
    /// If the database cannot be reached, refuses an event, or lacks the partition of a month.
    pub async fn store(&mut self, source: &str, step: &str, arrivals: &[Arrival]) -> Result<Vec<String>, sqlx::Error> {
        let until = arrivals.iter().filter(|a| a.event.kind.happens_again() && a.event.occurred_at.nanosecond() == 0);
        if let Some(until) = until.filter_map(|a| a.event.log_uuid).max() {
            // Before the statement, which asks for it.
            let query = sqlx::query(
                "UPDATE ses_ledger_adoptions SET whole_seconds_until = greatest(whole_seconds_until, $2)
                 WHERE source = $1 AND step = $3 AND (whole_seconds_until >= $2) IS NOT TRUE",
            );
            query.bind(source).bind(until).bind(step).execute(&mut self.session).await?;
        }
        verdicts(&mut self.session, STORE_ADOPTED, arrivals).await
    }

    /// Notes rows that cannot be taken.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn note_unmatched(
        &mut self,
        source: &str,
        step: &str,
        rows: &[(String, &'static str)],
    ) -> Result<(), sqlx::Error> {
        let ids: Vec<&str> = rows.iter().map(|(id, _)| id.as_str()).collect();
        let reasons: Vec<&str> = rows.iter().map(|(_, reason)| *reason).collect();
        let query = sqlx::query(
            "INSERT INTO ses_ledger_unmatched (source, step, source_id, reason)
             SELECT $1, $2, * FROM unnest($3::text[], $4::text[]) ON CONFLICT DO NOTHING",
        );
        query.bind(source).bind(step).bind(ids).bind(reasons).execute(&mut self.session).await.map(drop)
    }

    /// Makes it last: the rows, and that the run stands here now. Without a position it is finished.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn end(
        mut self,
        source: &str,
        step: &str,
        position: Option<&[String]>,
        counts: &Value,
    ) -> Result<(), sqlx::Error> {
        let query = sqlx::query(
            "UPDATE ses_ledger_adoptions SET position = coalesce($3, position), counts = $4::jsonb, updated_at = now(),
               finished_at = CASE WHEN $3::text[] IS NULL THEN now() END
             WHERE source = $1 AND step = $2",
        );
        query.bind(source).bind(step).bind(position).bind(counts.to_string()).execute(&mut self.session).await?;
        self.session.end().await
    }
}

/// The same questions for a rehearsal, which changes nothing.
///
/// # Errors
/// If the database cannot be read.
pub async fn would_be(
    postgres: &Postgres,
    source: &str,
    rows: &[&LogRow],
) -> Result<Vec<(&'static str, Uuid)>, sqlx::Error> {
    find_logs(&mut postgres.session().await?, source, rows).await
}

/// What became of log rows in earlier runs.
///
/// # Errors
/// If the database cannot be read.
pub async fn known(
    postgres: &Postgres,
    source: &str,
    ids: &[&str],
) -> Result<HashMap<String, (String, Uuid)>, sqlx::Error> {
    known_logs(&mut postgres.session().await?, source, ids).await
}

/// The mails that are here, by log row and by SES id.
///
/// # Errors
/// If the database cannot be read.
pub async fn mails(
    postgres: &Postgres,
    source: &str,
    ids: &[&str],
    message_ids: &[&str],
) -> Result<[HashMap<String, Mail>; 2], sqlx::Error> {
    let mut session = postgres.session().await?;
    Ok([mails_of(&mut session, source, ids).await?, mails_with(&mut session, message_ids).await?])
}

/// Which events are here already: `there` or `collapsed`; the others would be `adopted`.
///
/// # Errors
/// If the database cannot be read.
pub async fn twins(postgres: &Postgres, arrivals: &[Arrival]) -> Result<Vec<String>, sqlx::Error> {
    verdicts(&mut postgres.session().await?, FIND_TWINS, arrivals).await
}

/// Removes adopted opens and clicks of a whole second of which the worker has stored the same with its milliseconds. Returns
/// how many there were.
///
/// # Errors
/// If the database cannot be reached, or the login lacks the rights.
pub async fn remove_doubles(postgres: &Postgres, queue: &str, mails: &[Uuid]) -> Result<u64, sqlx::Error> {
    const DOUBLED: &str = "SELECT a.email_log_uuid, a.uuid, a.event_type FROM email_events AS a
           WHERE a.email_log_uuid = ANY ($2) AND a.event_type IN ('open', 'click') AND a.queue = $1
             AND a.occurred_at = date_trunc('second', a.occurred_at)
             AND EXISTS (SELECT FROM email_events AS e
                         WHERE e.email_log_uuid = a.email_log_uuid AND e.event_type = a.event_type AND e.event_type IN ('open', 'click')
                           AND e.occurred_at > a.occurred_at AND e.occurred_at < a.occurred_at + interval '1 second'
                           AND e.link_digest = a.link_digest AND e.queue NOT LIKE 'adopted:%'
                           AND (e.recipient = a.recipient OR e.recipient = '' OR a.recipient = ''))";
    let which = AssertSqlSafe(format!("SELECT DISTINCT email_log_uuid FROM ({DOUBLED}) AS doubled"));
    let mails: Vec<Uuid> = sqlx::query_scalar(which).bind(queue).bind(mails).fetch_all(postgres).await?;
    if mails.is_empty() {
        return Ok(0);
    }
    let mut session = postgres.transaction().await?;
    // They may be counted in the figures already.
    rollup::hold(&mut session).await?;
    rollup::take_out(&mut session, &mails).await?;
    let remove = format!(
        "WITH doubled AS MATERIALIZED (
           {DOUBLED}
         ), gone AS (
           DELETE FROM email_events AS e USING doubled AS d WHERE e.email_log_uuid = d.email_log_uuid AND e.uuid = d.uuid
           RETURNING e.email_log_uuid, e.event_type
         ), counted AS (
           UPDATE email_logs AS l SET open_count = l.open_count - g.opens, click_count = l.click_count - g.clicks
           FROM (SELECT email_log_uuid, count(*) FILTER (WHERE event_type = 'open')::integer AS opens,
                        count(*) FILTER (WHERE event_type = 'click')::integer AS clicks
                 FROM gone GROUP BY email_log_uuid ORDER BY email_log_uuid) AS g
           WHERE l.uuid = g.email_log_uuid
         )
         SELECT count(*) FROM gone"
    );
    let removed: i64 =
        sqlx::query_scalar(AssertSqlSafe(remove)).bind(queue).bind(&mails).fetch_one(&mut session).await?;
    rollup::put_in(&mut session, &mails).await?;
    session.end().await?;
    Ok(removed as u64)
}

/// Makes the partitions that these mails need, if the error says that one is missing.
///
/// # Errors
/// The error itself, if it says something else.
pub async fn mend(postgres: &Postgres, error: sqlx::Error, mails: &[Uuid]) -> Result<(), sqlx::Error> {
    if !lacks_partition(&error) {
        return Err(error);
    }
    let query = sqlx::query("SELECT email_events_ensure_for('{}', $1)").bind(mails);
    query.execute(postgres).await.map(drop)
}

/// Worth trying again: somebody was in the way for a moment.
pub fn is_passing(error: &sqlx::Error) -> bool {
    match error.as_database_error().and_then(|e| e.code()) {
        // Deadlock, serialisation, a row or a lock that somebody held; an id that somebody else wrote at this moment.
        Some(code) => ["40001", "40P01", "55P03", "57014", "23505"].contains(&code.as_ref()),
        None => matches!(error, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut),
    }
}

/// The data's own fault: trying again does not help.
pub fn is_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
    code.starts_with("22") || code.starts_with("54") || code == "23514" || code == "23502"
}

async fn known_logs(
    session: &mut Session,
    source: &str,
    ids: &[&str],
) -> Result<HashMap<String, (String, Uuid)>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT source_id, outcome, log_uuid FROM ses_ledger_adopted_logs WHERE source = $1 AND source_id = ANY ($2)",
    );
    let rows = query.bind(source).bind(ids).fetch_all(session).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)))).collect()
}

async fn insert_logs(session: &mut Session, rows: &[&LogRow]) -> Result<HashSet<Uuid>, sqlx::Error> {
    fn column<'a, T>(rows: &[&'a LogRow], value: impl Fn(&'a LogRow) -> T) -> Vec<T> {
        rows.iter().map(|row| value(row)).collect()
    }
    sqlx::query(
        "INSERT INTO email_logs (uuid, aws_message_id, sender, recipients, subject, template_name, campaign_id, configuration_set,
           tags, headers, body_full, created_at)
         SELECT uuid, aws_message_id, sender, ARRAY(SELECT json_array_elements_text(recipients::json)), subject, template_name,
           campaign_id, configuration_set, tags::jsonb, headers::jsonb, body_full, created_at
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
                     $10::text[], $11::text[], $12::timestamptz[])
           AS t (uuid, aws_message_id, sender, recipients, subject, template_name, campaign_id, configuration_set, tags, headers,
                 body_full, created_at)
         WHERE NOT EXISTS (SELECT FROM email_logs AS l WHERE l.aws_message_id = t.aws_message_id)
         ORDER BY uuid
         ON CONFLICT DO NOTHING
         RETURNING uuid",
    )
    .bind(column(rows, |row| row.uuid))
    .bind(column(rows, |row| row.message_id.as_ref().map(|id| id.as_str())))
    .bind(column(rows, |row| row.sender.as_deref()))
    .bind(column(rows, |row| Value::from(row.recipients.as_slice()).to_string()))
    .bind(column(rows, |row| row.subject.as_deref()))
    .bind(column(rows, |row| row.template_name.as_deref()))
    .bind(column(rows, |row| row.campaign_id.as_deref()))
    .bind(column(rows, |row| row.configuration_set.as_deref()))
    .bind(column(rows, |row| row.tags.as_str()))
    .bind(column(rows, |row| row.headers.as_deref()))
    .bind(column(rows, |row| row.body_full.as_deref()))
    .bind(column(rows, |row| row.created_at))
    .try_map(|row: PgRow| row.try_get(0))
    .fetch_all(session)
    .await
    .map(HashSet::from_iter)
}

/// The mail that each row is: the one with its SES id, else the one with its uuid. None is `adopted`, one that another row of
/// the table became is `collapsed`, any other `there`.
async fn find_logs(
    session: &mut Session,
    source: &str,
    rows: &[&LogRow],
) -> Result<Vec<(&'static str, Uuid)>, sqlx::Error> {
    let uuids: Vec<Uuid> = rows.iter().map(|row| row.uuid).collect();
    let ids: Vec<Option<&str>> = rows.iter().map(|row| row.message_id.as_ref().map(|id| id.as_str())).collect();
    let query = sqlx::query(
        "SELECT coalesce(by_id.uuid, by_uuid.uuid, u.uuid),
                CASE WHEN coalesce(by_id.uuid, by_uuid.uuid) IS NULL THEN 'adopted'
                     WHEN EXISTS (SELECT FROM ses_ledger_adopted_logs AS a
                                  WHERE a.log_uuid = coalesce(by_id.uuid, by_uuid.uuid) AND a.source = $3 AND a.outcome = 'adopted')
                       THEN 'collapsed'
                     ELSE 'there' END
         FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS u (uuid, aws_message_id, ord)
         LEFT JOIN email_logs AS by_id ON by_id.aws_message_id = u.aws_message_id
         LEFT JOIN email_logs AS by_uuid ON by_id.uuid IS NULL AND by_uuid.uuid = u.uuid
         ORDER BY u.ord",
    );
    let found = query.bind(uuids).bind(ids).bind(source).fetch_all(session).await?;
    let read = |row: &PgRow| {
        let outcome = match row.try_get(1)? {
            "adopted" => "adopted",
            "collapsed" => "collapsed",
            _ => "there",
        };
        Ok((outcome, row.try_get(0)?))
    };
    found.iter().map(read).collect()
}

const MAIL: &str = "l.uuid, l.aws_message_id, l.recipients,
    array_remove(ARRAY[CASE WHEN l.sent_at IS NOT NULL THEN 'send' END, CASE WHEN l.delivered_at IS NOT NULL THEN 'delivery' END,
      CASE WHEN l.delayed_at IS NOT NULL THEN 'delivery_delay' END, CASE WHEN l.bounced_at IS NOT NULL THEN 'bounce' END,
      CASE WHEN l.complained_at IS NOT NULL THEN 'complaint' END, CASE WHEN l.rejected_at IS NOT NULL THEN 'reject' END,
      CASE WHEN l.failed_at IS NOT NULL THEN 'failed' END, CASE WHEN l.opened_at IS NOT NULL THEN 'open' END,
      CASE WHEN l.clicked_at IS NOT NULL THEN 'click' END], NULL)";

async fn mails_of(session: &mut Session, source: &str, ids: &[&str]) -> Result<HashMap<String, Mail>, sqlx::Error> {
    // A key that is a UUID may be that of a mail which nobody adopted.
    let uuids: Vec<Option<Uuid>> = ids.iter().map(|id| Uuid::try_parse(id).ok()).collect();
    let query = format!(
        "SELECT r.id, {MAIL} FROM unnest($2::text[], $3::uuid[]) AS r (id, uuid)
         LEFT JOIN ses_ledger_adopted_logs AS a ON a.source = $1 AND a.source_id = r.id
         JOIN email_logs AS l ON l.uuid = coalesce(a.log_uuid, r.uuid)"
    );
    let rows = sqlx::query(AssertSqlSafe(query)).bind(source).bind(ids).bind(uuids).fetch_all(session).await?;
    rows.iter().map(keyed_mail).collect()
}

async fn mails_with(session: &mut Session, message_ids: &[&str]) -> Result<HashMap<String, Mail>, sqlx::Error> {
    if message_ids.is_empty() {
        return Ok(HashMap::new());
    }
    let query = format!("SELECT l.aws_message_id, {MAIL} FROM email_logs AS l WHERE l.aws_message_id = ANY ($1)");
    let rows = sqlx::query(AssertSqlSafe(query)).bind(message_ids).fetch_all(session).await?;
    rows.iter().map(keyed_mail).collect()
}

fn keyed_mail(row: &PgRow) -> Result<(String, Mail), sqlx::Error> {
    let mail = Mail {
        uuid: row.try_get(1)?,
        message_id: row.try_get(2)?,
        recipients: row.try_get(3)?,
        known: row.try_get(4)?,
    };
    Ok((row.try_get(0)?, mail))
}

/// Runs a statement over events whose mail is known already, or is not here.
async fn verdicts(session: &mut Session, sql: &'static str, arrivals: &[Arrival]) -> Result<Vec<String>, sqlx::Error> {
    if arrivals.is_empty() {
        return Ok(Vec::new());
    }
    let mut columns = Columns::of(arrivals);
    for (id, arrival) in columns.message_ids.iter_mut().zip(arrivals) {
        // A mail without an id must not get that of the placeholder.
        *id = id.filter(|_| arrival.event.message_id.as_str() != "unknown");
    }
    let rows = columns.bind(sqlx::query(sql)).fetch_all(session).await?;
    let mut verdicts = vec![String::new(); arrivals.len()];
    for row in &rows {
        let number: i64 = row.try_get("ord")?;
        if let Some(slot) = verdicts.get_mut(number as usize - 1) {
            *slot = row.try_get("verdict")?;
        }
    }
    Ok(verdicts)
}
