//! What became of the mails of a time, counted by day, template, campaign or the recipients' domain.
//!
//! Counted from the rows themselves, each mail once (by domain: each recipient of a mail once). So the figures are exact
//! however often SES has told of something, and take as long as there are mails in that time: whoever asks sets a limit
//! with the connection's `statement_timeout`.

use anyhow::Context as _;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Row as _, postgres::PgRow};
use time::OffsetDateTime;

use super::Postgres;

/// More lines than anybody reads. The largest ones; of days the last ones.
pub const MOST_FIGURES: usize = 100;

/// By what mails are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// The day of the mail, in UTC.
    #[default]
    Day,
    Template,
    Campaign,
    /// The domain of a recipient. Not mails are counted, but recipients of mails.
    Domain,
}

/// Which mails to count, and by what.
#[derive(Clone, Debug)]
pub struct Asked {
    pub dimension: Dimension,
    /// The time of a mail is that of its uuid; one that is not of version 7 has none, and is not counted.
    pub from: OffsetDateTime,
    /// Not counted any more.
    pub to: OffsetDateTime,
    pub template: Option<String>,
    pub campaign: Option<String>,
}

/// What was counted: at most [`MOST_FIGURES`] lines.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    pub figures: Vec<Figure>,
    /// There are more lines than these.
    pub cut: bool,
}

/// One line: mails, or by domain recipients of mails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// The day as `2026-11-21`, or a name. `None`: the rows of these mails name none.
    pub key: Option<String>,
    /// Log rows that the sender wrote.
    pub written: u64,
    /// SES took them.
    pub sent: u64,
    pub delivered: u64,
    /// They came back for good.
    pub bounced: u64,
    /// A recipient called it spam.
    pub complained: u64,
    /// At least once. `None` by domain, because SES seldom says which recipient opened.
    pub opened: Option<u64>,
    pub clicked: Option<u64>,
}

impl Figures {
    /// All lines together. `None` if some are missing.
    pub fn total(&self) -> Option<Figure> {
        let add = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
        let zero = Figure { opened: Some(0), clicked: Some(0), ..Figure::default() };
        let sum = self.figures.iter().fold(zero, |sum, line| Figure {
            key: None,
            written: sum.written + line.written,
            sent: sum.sent + line.sent,
            delivered: sum.delivered + line.delivered,
            bounced: sum.bounced + line.bounced,
            complained: sum.complained + line.complained,
            opened: add(sum.opened, line.opened),
            clicked: add(sum.clicked, line.clicked),
        });
        (!self.cut).then_some(sum)
    }
}

/// Counts.
///
/// # Errors
/// If the database cannot be read, or takes longer than the connection allows ([`super::Trouble::TooLong`]).
pub async fn by(postgres: &Postgres, asked: &Asked) -> anyhow::Result<Figures> {
    let (key, order) = match asked.dimension {
        Dimension::Day => ("to_char(ses_ledger_uuid_time(uuid) AT TIME ZONE 'UTC', 'YYYY-MM-DD')", "key DESC"),
        Dimension::Template => ("nullif(template_name, '')", "sent DESC, key"),
        Dimension::Campaign => ("nullif(campaign_id, '')", "sent DESC, key"),
        Dimension::Domain => return read(postgres, asked, RECIPIENTS).await,
    };
    let sql = format!("SELECT {key} AS key, {FACTS} {MAILS} GROUP BY key ORDER BY {order} LIMIT $5");
    read(postgres, asked, &sql).await
}

/// Counts of mails. A mail of which SES told anything but a refusal was sent, also if the event that says so is missing.
const FACTS: &str = "count(*) AS written,
    count(coalesce(sent_at, delivered_at, delayed_at, bounced_at, complained_at, opened_at, clicked_at)) AS sent,
    count(delivered_at) AS delivered, count(*) FILTER (WHERE bounce_class = 'permanent') AS bounced,
    count(complained_at) AS complained, count(opened_at) AS opened, count(clicked_at) AS clicked";

const MAILS: &str = "FROM email_logs
    WHERE uuid >= ses_ledger_uuid_floor($1) AND uuid < ses_ledger_uuid_floor($2)
      AND ($3::text IS NULL OR template_name = $3) AND ($4::text IS NULL OR campaign_id = $4)";

/// Counts of recipients: to whom it went from the mails' rows, what became of it from the events, which are unique for
/// each recipient. A complaint with several candidates is held against nobody. Whom a row does not name, but SES does,
/// was sent to as well.
const RECIPIENTS: &str = "WITH counted AS (
      SELECT split_part(rtrim(address, '> '), '@', -1) AS domain, 1 AS written,
             (coalesce(sent_at, delivered_at, delayed_at, bounced_at, complained_at, opened_at, clicked_at) IS NOT NULL)::int AS sent,
             0 AS delivered, 0 AS bounced, 0 AS complained
      FROM email_logs,
           -- Somebody in To and in Cc gets it once. Most mails have one recipient, and need no sorting.
           unnest(CASE WHEN cardinality(recipients) < 2 THEN recipients
                       ELSE ARRAY(SELECT DISTINCT lower(btrim(address, '<> ')) FROM unnest(recipients) AS address) END) AS address
      WHERE uuid >= ses_ledger_uuid_floor($1) AND uuid < ses_ledger_uuid_floor($2)
        AND ($3::text IS NULL OR template_name = $3) AND ($4::text IS NULL OR campaign_id = $4)
      UNION ALL
      SELECT split_part(recipient, '@', -1), 0, 0, (event_type = 'delivery')::int,
             (ses_ledger_bounce_class_of(event_type, bounce_type, complaint_subtype) = 'permanent')::int,
             (NOT candidate AND ses_ledger_fact(event_type, complaint_type, complaint_subtype) = 'complained')::int
      FROM email_events
      WHERE email_log_uuid >= ses_ledger_uuid_floor($1) AND email_log_uuid < ses_ledger_uuid_floor($2)
        AND recipient <> '' AND event_type IN ('delivery', 'bounce', 'complaint')
        AND ($3::text IS NULL AND $4::text IS NULL
             OR email_log_uuid IN (SELECT uuid FROM email_logs
                                   WHERE uuid >= ses_ledger_uuid_floor($1) AND uuid < ses_ledger_uuid_floor($2)
                                     AND ($3::text IS NULL OR template_name = $3) AND ($4::text IS NULL OR campaign_id = $4)))
    ), summed AS (
      -- As written first: far fewer spellings have to be brought to one than there are recipients.
      SELECT domain, sum(written) AS written, sum(sent) AS sent, sum(delivered) AS delivered, sum(bounced) AS bounced,
             sum(complained) AS complained
      FROM counted GROUP BY domain
    )
    SELECT lower(domain) AS key, sum(written)::bigint AS written,
           greatest(sum(sent), sum(delivered))::bigint AS sent, sum(delivered)::bigint AS delivered,
           sum(bounced)::bigint AS bounced, sum(complained)::bigint AS complained,
           NULL::bigint AS opened, NULL::bigint AS clicked
    FROM summed GROUP BY 1 ORDER BY sent DESC, key LIMIT $5";

async fn read(postgres: &Postgres, asked: &Asked, sql: &str) -> anyhow::Result<Figures> {
    let query = sqlx::query(AssertSqlSafe(sql.to_owned()))
        .bind(asked.from)
        .bind(asked.to)
        .bind(&asked.template)
        .bind(&asked.campaign)
        .bind(MOST_FIGURES as i64 + 1);
    let rows = postgres.patiently(query.fetch_all(postgres)).await.context("cannot count the mails")?;
    let mut figures = rows.iter().map(figure).collect::<Result<Vec<_>, _>>().context("cannot read the counts")?;
    let cut = figures.len() > MOST_FIGURES;
    figures.truncate(MOST_FIGURES);
    Ok(Figures { figures, cut })
}

fn figure(row: &PgRow) -> Result<Figure, sqlx::Error> {
    let count = |name| row.try_get::<i64, _>(name).map(i64::unsigned_abs);
    let known = |name| row.try_get::<Option<i64>, _>(name).map(|count| count.map(i64::unsigned_abs));
    Ok(Figure {
        key: row.try_get("key")?,
        written: count("written")?,
        sent: count("sent")?,
        delivered: count("delivered")?,
        bounced: count("bounced")?,
        complained: count("complained")?,
        opened: known("opened")?,
        clicked: known("clicked")?,
    })
}
