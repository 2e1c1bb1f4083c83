//! Reading the figures.

use anyhow::Context as _;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Row as _, postgres::PgRow};
use time::Date;

use super::{listed, names};
use crate::postgres::Postgres;

/// More lines than anybody reads. The largest ones; of days the last ones.
pub const MOST_LINES: i64 = 1_000;

/// What to read.
#[derive(Clone, Debug)]
pub struct Asked {
    /// As in the table: `template`, `campaign`, `configuration-set`, `domain`, `tag:NAME`. `None`: all mails, by day.
    pub dimension: Option<String>,
    /// Only this name, by day.
    pub key: Option<String>,
    /// The first and the last day on which something happened.
    pub from: Option<Date>,
    pub to: Option<Date>,
}

/// Some lines, and their sum.
#[derive(Clone, Debug, Serialize)]
pub struct Lines {
    pub lines: Vec<Line>,
    /// Of all lines, also of those that are not shown.
    pub total: Line,
    /// There are more than these.
    pub cut: bool,
}

/// What happened on a day, or to mails of a name. What is counted how is told in migration 19.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The day, or the name; empty where the mails have none.
    pub key: String,
    pub sends: i64,
    pub deliveries: i64,
    pub delays: i64,
    pub bounces_permanent: i64,
    pub bounces_transient: i64,
    pub bounces_undetermined: i64,
    pub suppressed: i64,
    pub complaints: i64,
    pub rejects: i64,
    pub failures: i64,
    pub opens: i64,
    pub clicks: i64,
    pub opens_by_bots: i64,
    pub clicks_by_bots: i64,
    /// `None` by domain: SES seldom says which recipient opened.
    pub opened: Option<i64>,
    pub clicked: Option<i64>,
}

/// Reads figures that are counted already: as long as that takes depends on the days, not on the mails.
///
/// # Errors
/// If the database cannot be read.
pub async fn lines(postgres: &Postgres, asked: &Asked) -> anyhow::Result<Lines> {
    let by_day = asked.dimension.is_none() || asked.key.is_some();
    let (key, order) = if by_day { ("day::text", "key DESC") } else { ("key", "sends DESC, deliveries DESC, key") };
    let sums = listed(|n| format!("sum({n})::bigint AS {n}"));
    let source = "FROM email_figures WHERE dimension = $1 AND ($2::text IS NULL OR key = $2)
                    AND day >= coalesce($3, '-infinity') AND day <= coalesce($4, 'infinity')";
    let nothing = names().map(|n| format!("{n} <> 0")).collect::<Vec<_>>().join(" OR ");
    let each = format!(
        "SELECT * FROM (SELECT {key} AS key, {sums} {source} GROUP BY 1) AS lines WHERE {nothing} ORDER BY {order} LIMIT {}",
        MOST_LINES + 1
    );
    let total = format!("SELECT '' AS key, {} {source}", listed(|n| format!("coalesce(sum({n}), 0)::bigint AS {n}")));
    let dimension = asked.dimension.as_deref().unwrap_or("all");
    let context = "cannot read the figures";
    let read = async |sql: String| {
        let query = sqlx::query(AssertSqlSafe(sql)).bind(dimension).bind(&asked.key).bind(asked.from).bind(asked.to);
        let rows = postgres.patiently(query.fetch_all(postgres)).await.context(context)?;
        rows.iter().map(|row| line(row, dimension == "domain")).collect::<Result<Vec<_>, _>>().context(context)
    };
    let mut lines = read(each).await?;
    let total = read(total).await?.into_iter().next().unwrap_or_default();
    let cut = lines.len() as i64 > MOST_LINES;
    lines.truncate(MOST_LINES as usize);
    if by_day {
        // As one reads them: the oldest first.
        lines.reverse();
    }
    Ok(Lines { lines, total, cut })
}

fn line(row: &PgRow, by_domain: bool) -> Result<Line, sqlx::Error> {
    let first = |name| if by_domain { Ok(None) } else { row.try_get(name).map(Some) };
    Ok(Line {
        key: row.try_get("key")?,
        sends: row.try_get("sends")?,
        deliveries: row.try_get("deliveries")?,
        delays: row.try_get("delays")?,
        bounces_permanent: row.try_get("bounces_permanent")?,
        bounces_transient: row.try_get("bounces_transient")?,
        bounces_undetermined: row.try_get("bounces_undetermined")?,
        suppressed: row.try_get("suppressed")?,
        complaints: row.try_get("complaints")?,
        rejects: row.try_get("rejects")?,
        failures: row.try_get("failures")?,
        opens: row.try_get("opens")?,
        clicks: row.try_get("clicks")?,
        opens_by_bots: row.try_get("opens_by_bots")?,
        clicks_by_bots: row.try_get("clicks_by_bots")?,
        opened: first("opened")?,
        clicked: first("clicked")?,
    })
}
