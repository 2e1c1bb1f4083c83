//! Fills the tables with months of mails and what became of them, on the server, as the worker would have stored it.
//!
//! Each mail has 3.5 events on average: sends, deliveries, some delays and bounces, opens by half of the recipients, clicks by a
//! quarter, seldom a complaint. They are written in the order in which they happened, so that tables and indexes are packed as
//! in life; the facts on the log rows follow from them. A month is filled from its first day on: what the next step adds is later.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join;
use ses_ledger::{
    event::Event,
    local::story::Story,
    postgres::{Postgres, PostgresSettings},
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use time::{Duration, OffsetDateTime};

use crate::{
    database::{Database, write_logs},
    measure::batches,
    plan::Step,
    tale::{Tale, Untidy},
};

/// The recipient of every hundredth mail: somebody who has many pages of them.
pub(crate) const OF_MANY: &str = "seed@inbox.example";
/// Events of a mail, on average.
const EACH: f64 = 3.5;
/// The newest months, whose events have their payloads. Older ones are as retention would leave them.
const WITH_PAYLOADS: u32 = 3;
/// The mails of a month are sent in its first days; the others are for stories.
const DAYS: i64 = 25;

/// How many mails each month holds before and after each step.
pub(crate) struct Filling {
    /// By step: the months with events, counted back from this month, and the mails of each of them.
    steps: Vec<(u32, u64)>,
    /// Ms between two mails.
    gap: i64,
    this_month: OffsetDateTime,
}

/// A part of a month.
struct Part {
    first: OffsetDateTime,
    next: OffsetDateTime,
    gap: i64,
    mails: std::ops::Range<u64>,
    with_payloads: bool,
}

impl Filling {
    pub(crate) fn new(steps: &[Step], now: OffsetDateTime) -> anyhow::Result<Self> {
        let mut filled: Vec<(u32, u64)> = Vec::new();
        for (n, step) in steps.iter().enumerate() {
            let same = n > 0 && steps[n - 1].events == step.events;
            let next = match filled.last() {
                Some(last) if same => *last,
                _ => (step.months, (step.events as f64 / EACH / f64::from(step.months)).round() as u64),
            };
            let grows = filled.last().is_none_or(|last| next.0 >= last.0 && next.1 >= last.1);
            ensure!(grows && step.months >= next.0, "each month has to hold as much at {} as before", step.label());
            filled.push(next);
        }
        let most = filled.last().context("there is no step")?.1.max(1);
        let this_month = now.replace_day(1)?.replace_time(time::Time::MIDNIGHT);
        Ok(Self { steps: filled, gap: DAYS * 86_400_000 / most as i64, this_month })
    }

    /// Disk that it takes, in KiB: a row and its indexes, the log rows, the payloads, the write-ahead log, what is stored later.
    pub(crate) fn kib(&self) -> u64 {
        let (months, mails) = self.steps.last().copied().unwrap_or_default();
        let events = |months: u32| (u64::from(months) * mails) as f64 * EACH;
        let with_payloads = events(months.min(WITH_PAYLOADS)) * 1.3;
        (events(months) * 0.98 + with_payloads) as u64 + (3 << 20)
    }

    /// The first day of a month, counted back from this one.
    pub(crate) fn month(&self, back: u32) -> OffsetDateTime {
        (0..back).fold(self.this_month, |month, _| (month - Duration::DAY).replace_day(1).unwrap_or(month))
    }

    /// Months with events at this step.
    pub(crate) fn months(&self, step: usize) -> u32 {
        self.steps[step].0
    }

    /// The tables of events of the months that are filled at this step, and whether they have payloads.
    pub(crate) fn tables(&self, step: usize) -> BTreeMap<String, bool> {
        (1..=self.months(step)).map(|back| (table_of(self.month(back)), back <= WITH_PAYLOADS)).collect()
    }

    /// Adds what this step has beyond the one before, and the log rows of these stories, each where its time puts it.
    /// Returns the events that it wrote.
    pub(crate) async fn fill(&self, database: &Database, step: usize, stories: &[Story]) -> anyhow::Result<u64> {
        stage(database, stories).await?;
        let before = |back| match step.checked_sub(1).map(|before| self.steps[before]) {
            Some((months, mails)) if back <= months => mails,
            _ => 0,
        };
        let (months, mails) = self.steps[step];
        // Oldest first.
        let part = |back| self.part(back, before(back)..mails, back <= WITH_PAYLOADS);
        let parts: Vec<Part> = (1..=months).rev().map(part).collect();
        let (one, other) =
            try_join(write(database, parts.iter().step_by(2)), write(database, parts.iter().skip(1).step_by(2)))
                .await?;
        let left = "SELECT count(*) FROM staged.email_logs AS s WHERE NOT EXISTS (SELECT FROM email_logs AS l WHERE l.uuid = s.uuid)";
        let left = database.count(left).await?;
        ensure!(left == 0, "{left} log rows of the stories lie in no month that is filled");
        database.pool.execute("DROP SCHEMA staged CASCADE").await?;
        // As if workers had counted the figures all along: else those that are measured would do so.
        database.pool.execute("UPDATE ses_ledger_figures SET counted_until = now()").await?;
        Ok(one + other)
    }

    /// Further months before the oldest (counted back), the oldest first, with so many events each, which have their payloads. Returns how many
    /// events each really has.
    pub(crate) async fn fill_before(
        &self,
        database: &Database,
        oldest: u32,
        events: &[u64],
    ) -> anyhow::Result<Vec<u64>> {
        stage(database, &[]).await?;
        let mut written = Vec::new();
        for (back, events) in (oldest + 1..=oldest + events.len() as u32).rev().zip(events) {
            // As dense as they have to be: no month is left for the next one.
            let mails = ((*events as f64 / EACH).ceil() as u64).max(1);
            let part = Part { gap: DAYS * 86_400_000 / mails as i64, ..self.part(back, 0..mails, true) };
            written.push(write(database, [part].iter()).await?);
        }
        database.pool.execute("DROP SCHEMA staged CASCADE").await?;
        Ok(written)
    }

    /// Months that are there already, for those that have no events yet.
    pub(crate) async fn ensure_months(&self, database: &Database, months: u32) -> anyhow::Result<()> {
        for back in 1..=months {
            let query = sqlx::query("SELECT email_events_ensure_month($1)").bind(self.month(back));
            query.execute(&database.pool).await.context("cannot make a month")?;
        }
        Ok(())
    }

    fn part(&self, back: u32, mails: std::ops::Range<u64>, with_payloads: bool) -> Part {
        let (first, next) = (self.month(back), self.month(back.saturating_sub(1)));
        Part { first, next, gap: self.gap, mails, with_payloads }
    }
}

/// How the partition of a month is called.
pub(crate) fn table_of(month: OffsetDateTime) -> String {
    format!("email_events_y{}m{:02}", month.year(), u8::from(month.month()))
}

/// The log rows of the stories, where nothing else is: they are taken from there into their place among the others.
async fn stage(database: &Database, stories: &[Story]) -> anyhow::Result<()> {
    database
        .pool
        .execute(
            "DROP SCHEMA IF EXISTS staged CASCADE; CREATE SCHEMA staged;
             CREATE TABLE staged.email_logs (LIKE email_logs INCLUDING DEFAULTS INCLUDING GENERATED, PRIMARY KEY (uuid))",
        )
        .await
        .context("cannot make room for the log rows of the stories")?;
    let settings = PostgresSettings { schema: Some("staged".to_owned()), ..PostgresSettings::new(&database.url) };
    let staged = Postgres::new(&settings)?;
    for story in stories {
        write_logs(&staged, story).await?;
    }
    staged.close().await;
    Ok(())
}

/// Over one connection, one month after the other. Returns the events.
async fn write(database: &Database, parts: impl Iterator<Item = &Part>) -> anyhow::Result<u64> {
    let mut connection = PgConnection::connect(&database.url).await?;
    // Triggers and references would only find that all is well.
    connection
        .execute(
            "SET session_replication_role = replica; SET synchronous_commit = off; SET jit = off; SET work_mem = '192MB';
             SET temp_buffers = '64MB'; SET timezone = 'UTC'",
        )
        .await?;
    templates(&mut connection).await?;
    let mut events = 0;
    for part in parts {
        events +=
            part.write(&mut connection).await.with_context(|| format!("cannot fill the month of {}", part.first))?;
    }
    connection.close().await?;
    Ok(events)
}

/// An event of each kind as the worker stores it: the one whose payload is of median length among those of a made-up story.
async fn templates(connection: &mut PgConnection) -> anyhow::Result<()> {
    let tale = Tale {
        seed: 3,
        messages: 4_000,
        bytes: None,
        mess: Untidy::Nothing,
        start: 1_700_000_000,
        gap: 1,
        shuffled: false,
    };
    let mut kinds: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for arrival in batches(&tale.tell()).into_iter().flatten() {
        kinds.entry(arrival.event.kind.as_str().to_owned()).or_default().push(arrival.event);
    }
    connection
        .execute(
            "CREATE TEMP TABLE kinds (kind text, payload text, bounce_type text, bounce_subtype text, smtp_status text,
               diagnostic text, complaint_type text, delay_type text, link text, ip text, user_agent text, bot text,
               feedback_id text, reporting_mta text)",
        )
        .await?;
    for kind in ["send", "delivery", "delivery_delay", "bounce", "open", "click", "complaint"] {
        let events = kinds.get_mut(kind).with_context(|| format!("the story has no {kind}"))?;
        if kind == "bounce" {
            events.retain(|event| event.detail.bounce_type.as_deref() == Some("Permanent"));
        }
        events.retain(|event| event.detail.complaint_subtype.is_none());
        events.sort_by_key(|event| event.payload.as_ref().map_or(0, String::len));
        let event = events.get(events.len() / 2).with_context(|| format!("the story has no usual {kind}"))?;
        let payload = event.payload.clone().unwrap_or_default();
        let payload = payload.replace(event.message_id.as_str(), "#id#").replace(event.recipient.as_str(), "#to#");
        let detail = &event.detail;
        sqlx::query("INSERT INTO kinds VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)")
            .bind(kind)
            .bind(payload)
            .bind(&detail.bounce_type)
            .bind(&detail.bounce_subtype)
            .bind(&detail.smtp_status)
            .bind(&detail.diagnostic)
            .bind(&detail.complaint_type)
            .bind(&detail.delay_type)
            .bind(&detail.link)
            .bind(&detail.ip)
            .bind(&detail.user_agent)
            .bind(&detail.bot)
            .bind(&detail.feedback_id)
            .bind(&detail.reporting_mta)
            .execute(&mut *connection)
            .await?;
    }
    connection.execute("ANALYZE kinds").await?;
    Ok(())
}

impl Part {
    async fn write(&self, connection: &mut PgConnection) -> anyhow::Result<u64> {
        sqlx::query("SELECT email_events_ensure_month($1)").bind(self.first).execute(&mut *connection).await?;
        let Self { first, next, gap, mails, with_payloads } = self;
        let (first_ms, next_ms) = (first.unix_timestamp() * 1_000, next.unix_timestamp() * 1_000);
        let mails = format!(
            "CREATE TEMP TABLE mails AS
             SELECT (substr(hex, 1, 8) || '-' || substr(hex, 9, 4) || '-7' || substr(random, 16))::uuid AS uuid,
               '0102' || hex || '-' || random || '-000000' AS id, ms,
               CASE WHEN n % 100 = 7 THEN '{OF_MANY}' ELSE 'person' || (h & 262143) || CASE
                 WHEN h & 1 = 0 THEN '@inbox.example' WHEN h & 6 = 2 THEN '@post.example.org'
                 ELSE '@corp' || (h & 4095) || '.example' END END AS recipient,
               CASE WHEN arrives THEN ms + 1000 + (h >> 24 & 4095) END AS delivered,
               CASE WHEN NOT arrives THEN ms + 3000 END AS bounced,
               CASE WHEN h >> 36 & 31 = 0 THEN ms + 500 END AS delayed,
               CASE WHEN arrives AND h >> 41 & 1023 = 0 THEN ms + 7200000 END AS complained,
               CASE WHEN arrives AND h >> 51 & 1 = 0 THEN 1 + 2 * (h >> 52 & 1) ELSE 0 END AS opens,
               CASE WHEN arrives AND h >> 51 & 1 = 0 AND h >> 53 & 1 = 0 THEN 1 + 2 * (h >> 54 & 1) ELSE 0 END AS clicks,
               1000 + (h >> 24 & 16777215) AS pause
             FROM (SELECT n, h, ms, h >> 18 & 63 > 0 AS arrives, lpad(to_hex(ms), 12, '0') AS hex, gen_random_uuid()::text AS random
                   FROM (SELECT n, hashint8extended(n, {first_ms}) & 9223372036854775807 AS h, {first_ms} + n * {gap} AS ms
                         FROM generate_series({}::bigint, {}::bigint) AS n) AS numbers) AS drawn",
            mails.start,
            mails.end as i64 - 1,
        );
        connection.execute(AssertSqlSafe(mails)).await.context("cannot make the mails")?;
        connection.execute("ANALYZE mails").await?;
        let mut transaction = connection.begin().await?;
        let logs = format!(
            "INSERT INTO email_logs (uuid, aws_message_id, sender, recipients, subject, template_name, campaign_id, configuration_set,
               tags, created_at, sent_at, delivered_at, delayed_at, bounced_at, complained_at, opened_at, clicked_at, open_count,
               click_count, bounce_class)
             SELECT * FROM (
               SELECT uuid, id, 'Example Shop <orders@shop.example.com>', ARRAY[recipient], 'Your order has been shipped',
                 'order-shipped', NULL::text, 'transactional', '{{}}'::jsonb, to_timestamp((ms - 1000) / 1000.0::float8),
                 to_timestamp(ms / 1000.0::float8), to_timestamp(delivered / 1000.0::float8), to_timestamp(delayed / 1000.0::float8),
                 to_timestamp(bounced / 1000.0::float8), to_timestamp(complained / 1000.0::float8),
                 CASE WHEN opens > 0 THEN to_timestamp((ms + 60000 + pause) / 1000.0::float8) END,
                 CASE WHEN clicks > 0 THEN to_timestamp((ms + 90000 + pause) / 1000.0::float8) END,
                 opens::integer, clicks::integer, CASE WHEN bounced IS NOT NULL THEN 'permanent'::ses_ledger_bounce_class END
               FROM mails
               UNION ALL
               SELECT uuid, ses_ledger_message_id(aws_message_id), sender, recipients, subject, template_name, campaign_id,
                 configuration_set, tags, created_at, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, NULL
               FROM staged.email_logs WHERE uuid >= ses_ledger_uuid_floor(to_timestamp({})) AND uuid < ses_ledger_uuid_floor(to_timestamp({}))
             ) AS logs (uuid) ORDER BY uuid",
            first_ms / 1_000,
            next_ms / 1_000,
        );
        transaction.execute(AssertSqlSafe(logs)).await.context("cannot write the log rows")?;
        let payload = if *with_payloads {
            "replace(replace(k.payload, '#id#', e.id), '#to#', e.recipient)::jsonb"
        } else {
            "NULL"
        };
        let events = format!(
            "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, bounce_type, bounce_subtype, smtp_status,
               diagnostic, complaint_type, delay_type, link, link_digest, ip, user_agent, bot, feedback_id, reporting_mta, payload, queue,
               sqs_message_id, sns_message_id, received_at, stored_at)
             SELECT (substr(hex, 1, 8) || '-' || substr(hex, 9, 4) || '-7' || substr(random, 16))::uuid, e.uuid, e.kind,
               to_timestamp(e.ms / 1000.0::float8), e.recipient, k.bounce_type, k.bounce_subtype, k.smtp_status, k.diagnostic,
               k.complaint_type, k.delay_type, k.link,
               CASE WHEN k.link IS NULL THEN '00000000-0000-0000-0000-000000000000' ELSE md5(k.link)::uuid END, k.ip, k.user_agent, k.bot,
               k.feedback_id, k.reporting_mta, {payload}, 'arn:aws:sqs:us-east-1:000000000000:ses-events', random, random,
               to_timestamp(e.ms / 1000.0::float8 + 1), to_timestamp(e.ms / 1000.0::float8 + 1)
             FROM (SELECT uuid, id, recipient, kind, ms, lpad(to_hex(ms + 1000), 12, '0') AS hex, gen_random_uuid()::text AS random FROM (
                     SELECT uuid, id, recipient, 'send' AS kind, ms FROM mails
                     UNION ALL SELECT uuid, id, recipient, 'delivery', delivered FROM mails WHERE delivered IS NOT NULL
                     UNION ALL SELECT uuid, id, recipient, 'delivery_delay', delayed FROM mails WHERE delayed IS NOT NULL
                     UNION ALL SELECT uuid, id, recipient, 'bounce', bounced FROM mails WHERE bounced IS NOT NULL
                     UNION ALL SELECT uuid, id, recipient, 'complaint', complained FROM mails WHERE complained IS NOT NULL
                     UNION ALL SELECT uuid, id, recipient, 'open', ms + 60000 + pause * t FROM mails, generate_series(1, opens) AS t
                     UNION ALL SELECT uuid, id, recipient, 'click', ms + 90000 + pause * t FROM mails, generate_series(1, clicks) AS t
                     ORDER BY ms OFFSET 0) AS happened) AS e
             LEFT JOIN kinds AS k ON k.kind = e.kind",
        );
        let written =
            transaction.execute(AssertSqlSafe(events)).await.context("cannot write the events")?.rows_affected();
        transaction.commit().await?;
        connection.execute("DROP TABLE mails").await?;
        Ok(written)
    }
}
