//! Years of data: the tables grow from step to step. At each the worker stores, people ask, and somebody cleans up.
//!
//! Everything happens in one database, which is filled once: a step adds to the one before.

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use ses_ledger::{
    explain,
    local::story::Story,
    pipeline::{Store as _, Verdict, batch::Arrival},
    postgres::{Postgres, PostgresSettings, figures, mails, stuck},
    status,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    client::{Kind, start_retention},
    database::{self, Database},
    endpoint::Conditions,
    figures::{Figure, Sample, spread},
    fill::{Filling, OF_MANY, table_of},
    measure::{Bench, batches, count, usual_worker},
    plan::{Group, Step, tidy},
    report::Line,
    tale::Tale,
};

/// All that was found out.
#[derive(Default)]
pub(crate) struct Scaled {
    pub(crate) lines: Vec<Line>,
    /// The lines that the goals name otherwise.
    pub(crate) names: HashMap<&'static str, String>,
    pub(crate) notes: Vec<String>,
    pub(crate) wrong: Vec<String>,
}

/// The statement that stores, as the worker sends it.
const STORE: &str = concat!(
    include_str!("../../src/postgres/from_batch.sql"),
    include_str!("../../src/postgres/store.sql"),
    include_str!("../../src/postgres/batch_verdicts.sql")
);
/// Its arrays.
const PARAMETERS: usize = 29;
/// Lines of a page, as `find` shows them.
const PAGE: usize = 20;
/// Mails without a log row that wait.
const ORPHANS: i64 = 5_000;
/// Months that are dropped in each round.
const PER_ROUND: u32 = 2;
/// What retention leaves alone is younger than any month that it is to drop.
const MIDDLE: i64 = 15 * 86_400;

/// Grows, and measures at each step; retention at the last one.
pub(crate) async fn measure(bench: &mut Bench, scaled: &mut Scaled) -> anyhow::Result<()> {
    let steps = bench.effort.steps.clone();
    let filling = Filling::new(&steps, OffsetDateTime::now_utc())?;
    database::check_room(filling.kib())?;
    let mut database = bench.server.create("scale").await?;
    // Where it is missing, nobody can tell which part of the log are whole pages.
    let tells_pages = database.pool.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect").await.is_ok();
    park_orphans(&database, ORPHANS.min(steps[0].events as i64 / 100)).await?;
    scaled.notes.push(autovacuum(&database).await?);
    name_the_goals(scaled, &steps);
    let mut at = At { bench, scaled, filling, step: 0, label: String::new(), tells_pages };
    for (n, step) in steps.iter().enumerate() {
        (at.step, at.label) = (n, step.label());
        at.fill(&database, step).await?;
        at.sizes(&database).await?;
        at.rates(&database).await?;
        at.vacuums(&database).await?;
        at.planning(&database).await?;
        database.close().await;
        at.bench.server.restart().await?;
        database = at.bench.server.open("scale").await?;
        at.questions(&database).await?;
    }
    at.retention(&database).await?;
    let Bench { server, .. } = bench;
    server.drop(database).await
}

/// One step.
struct At<'a> {
    bench: &'a mut Bench,
    scaled: &'a mut Scaled,
    filling: Filling,
    step: usize,
    label: String,
    tells_pages: bool,
}

impl At<'_> {
    async fn fill(&mut self, database: &Database, step: &Step) -> anyhow::Result<()> {
        self.filling.ensure_months(database, step.months).await?;
        let rounds = 1..=self.bench.effort.rounds;
        let stories: Vec<_> = rounds.flat_map(|round| [false, true].map(|all| self.tale(all, round).tell())).collect();
        let began = Instant::now();
        let events = self.filling.fill(database, self.step, &stories).await?;
        let seconds = began.elapsed().as_secs_f64();
        if events > 0 {
            self.check_facts(database).await?;
            let began = Instant::now();
            database.pool.execute("VACUUM (ANALYZE) email_logs, email_events").await.context("cannot vacuum")?;
            self.value(Group::ScaleUpkeep, "events that were filled in", events as f64);
            self.value(Group::ScaleUpkeep, "filled in a second", events as f64 / seconds);
            self.value(Group::ScaleUpkeep, "VACUUM (ANALYZE) of all of it, s", began.elapsed().as_secs_f64());
        } else {
            database.pool.execute("ANALYZE email_logs, email_events").await?;
        }
        let bytes = database.count("SELECT pg_database_size(current_database())").await?;
        self.value(Group::ScaleUpkeep, "size of the database, GiB", bytes as f64 / (1_u64 << 30) as f64);
        eprintln!(
            "scale: {}: {events} events more, {seconds:.0} s, {:.1} GiB",
            self.label,
            bytes as f64 / (1_u64 << 30) as f64
        );
        Ok(())
    }

    /// What stands on the log rows of the newest month follows from its events.
    async fn check_facts(&mut self, database: &Database) -> anyhow::Result<()> {
        let (first, next) = (self.filling.month(1), self.filling.month(0));
        let query = sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM email_logs AS l LEFT JOIN (
               SELECT email_log_uuid, min(occurred_at) FILTER (WHERE event_type = 'send') AS sent,
                 min(occurred_at) FILTER (WHERE event_type = 'delivery') AS delivered,
                 min(occurred_at) FILTER (WHERE event_type = 'delivery_delay') AS delayed,
                 min(occurred_at) FILTER (WHERE event_type = 'bounce') AS bounced,
                 min(occurred_at) FILTER (WHERE event_type = 'complaint') AS complained,
                 min(occurred_at) FILTER (WHERE event_type = 'open') AS opened,
                 min(occurred_at) FILTER (WHERE event_type = 'click') AS clicked,
                 count(*) FILTER (WHERE event_type = 'open') AS opens, count(*) FILTER (WHERE event_type = 'click') AS clicks
               FROM email_events WHERE email_log_uuid >= ses_ledger_uuid_floor($1) AND email_log_uuid < ses_ledger_uuid_floor($2)
               GROUP BY email_log_uuid) AS e ON e.email_log_uuid = l.uuid
             WHERE l.uuid >= ses_ledger_uuid_floor($1) AND l.uuid < ses_ledger_uuid_floor($2)
               AND l.aws_message_id LIKE '%-000000' -- those of stories are the worker's
               AND (l.sent_at, l.delivered_at, l.delayed_at, l.bounced_at, l.complained_at, l.opened_at, l.clicked_at,
                    l.open_count, l.click_count)
                 IS DISTINCT FROM (e.sent, e.delivered, e.delayed, e.bounced, e.complained, e.opened, e.clicked,
                                   coalesce(e.opens, 0), coalesce(e.clicks, 0))",
        );
        let differ = query.bind(first).bind(next).fetch_one(&database.pool).await.context("cannot check the facts")?;
        if differ > 0 {
            self.scaled.wrong.push(format!("scale, {}: {differ} log rows do not say what their events do", self.label));
        }
        Ok(())
    }

    /// Tables and indexes, summed over the months.
    async fn sizes(&mut self, database: &Database) -> anyhow::Result<()> {
        if self.step > 0 && self.bench.effort.steps[self.step].events == self.bench.effort.steps[self.step - 1].events {
            return Ok(());
        }
        let tables = self.filling.tables(self.step);
        for (with_payloads, words) in [(true, "events with payload"), (false, "events without payload")] {
            let names = tables.iter().filter(|(_, has)| **has == with_payloads).map(|(name, _)| name.clone());
            self.sizes_of(database, words, names.collect()).await?;
        }
        self.sizes_of(database, "mails", vec!["email_logs".to_owned()]).await
    }

    async fn sizes_of(&mut self, database: &Database, words: &str, tables: Vec<String>) -> anyhow::Result<()> {
        let rows = sqlx::query(
            "WITH t AS (
               SELECT oid, greatest(reltuples, 0)::float8 AS rows, coalesce(pg_total_relation_size(nullif(reltoastrelid, 0)), 0) AS toast
               FROM pg_class WHERE oid IN (SELECT to_regclass(name) FROM unnest($1::text[]) AS name)
             )
             SELECT 1 AS place, 'table' AS what, sum(pg_table_size(oid) - toast)::float8 AS bytes, sum(rows) AS rows FROM t
             UNION ALL SELECT 2, 'TOAST', sum(toast)::float8, sum(rows) FROM t
             UNION ALL
             SELECT 3, 'index ' || coalesce(p.relname, c.relname), sum(pg_relation_size(c.oid))::float8, sum(rows)
             FROM t JOIN pg_index AS x ON x.indrelid = t.oid JOIN pg_class AS c ON c.oid = x.indexrelid
             LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid LEFT JOIN pg_class AS p ON p.oid = i.inhparent
             GROUP BY coalesce(p.relname, c.relname)
             UNION ALL SELECT 4, 'all', sum(pg_total_relation_size(oid))::float8, sum(rows) FROM t
             ORDER BY place, what",
        );
        for row in rows.bind(tables).fetch_all(&database.pool).await.context("cannot weigh the tables")? {
            let (what, bytes): (String, Option<f64>) = (row.try_get("what")?, row.try_get("bytes")?);
            let rows = row.try_get::<Option<f64>, _>("rows")?.unwrap_or(0.0);
            if let Some(bytes) = bytes.filter(|_| rows > 0.0) {
                self.value(Group::ScaleSizes, &format!("{words}: {what}"), bytes / 1_048_576.0 / (rows / 1e6));
            }
        }
        Ok(())
    }

    /// The worker stores the events of new mails, and of mails of all months in an order that has nothing to do with them.
    async fn rates(&mut self, database: &Database) -> anyhow::Result<()> {
        for round in 1..=self.bench.effort.rounds {
            for all_months in [false, true] {
                let tale = self.tale(all_months, round);
                let kind = usual_worker(&self.bench.effort);
                let (sample, wrong) = self.drain(database, &kind, &tale, &tale.tell()).await?;
                let name = line_of(&self.label, all_months);
                self.scaled.wrong.extend(wrong.into_iter().map(|wrong| format!("scale, {name}: {wrong}")));
                self.add(Group::Scale, &name, None, sample);
            }
        }
        Ok(())
    }

    async fn drain(
        &mut self,
        database: &Database,
        kind: &Kind,
        tale: &Tale,
        story: &Story,
    ) -> anyhow::Result<(Sample, Vec<String>)> {
        let began = Instant::now();
        self.bench.endpoint.close(Conditions::Near)?;
        let messages = self.bench.endpoint.fill(tale)?;
        // The one that follows, when the worker waits, removes the log from before this one.
        self.bench.server.checkpoint().await?;
        let before = position(database).await?;
        let mut sample = self.bench.empty_queue(kind, database, messages, story.truth.events).await?;
        let after = position(database).await?;
        let (all, pages) = self.logged(database, &before, &after).await?;
        let each = |bytes: f64| bytes / story.truth.events as f64;
        sample.insert(Figure::Log, each(all));
        sample.extend(pages.map(|pages| (Figure::LogOfPages, each(pages))));
        let rate = sample.get(&Figure::EventsPerSecond).copied().unwrap_or_default();
        eprintln!("scale: {}: {rate:.0} events/s, {:.0} s", self.label, began.elapsed().as_secs_f64());
        Ok((sample, count(database, story).await?))
    }

    /// Bytes of the write-ahead log between two positions, and of these the pages that are logged whole.
    async fn logged(&self, database: &Database, before: &str, after: &str) -> anyhow::Result<(f64, Option<f64>)> {
        let all = sqlx::query_scalar("SELECT pg_wal_lsn_diff($1::pg_lsn, $2::pg_lsn)::float8").bind(after).bind(before);
        let all = all.fetch_one(&database.pool).await.context("cannot measure the log")?;
        if !self.tells_pages {
            return Ok((all, None));
        }
        // Just at the end of a file of the log, its beginning may be gone.
        let pages = sqlx::query_scalar("SELECT sum(fpi_size)::float8 FROM pg_get_wal_stats($1::pg_lsn, $2::pg_lsn)");
        Ok((all, pages.bind(before).bind(after).fetch_one(&database.pool).await.ok().flatten()))
    }

    /// The newest month after the rounds; an old one, to which the mails of all months have added a few; the same again.
    async fn vacuums(&mut self, database: &Database) -> anyhow::Result<()> {
        let (newest, oldest) = (self.filling.month(1), self.filling.month(self.filling.months(self.step)));
        for (words, table) in [
            ("the newest month, after the rounds", table_of(newest)),
            ("the oldest month, after the rounds", table_of(oldest)),
            ("the oldest month, untouched since", table_of(oldest)),
            ("the mails, after the rounds", "email_logs".to_owned()),
        ] {
            let began = Instant::now();
            database.pool.execute(AssertSqlSafe(format!("VACUUM (ANALYZE) {table}"))).await.context("cannot vacuum")?;
            let ms = began.elapsed().as_secs_f64() * 1e3;
            self.value(Group::ScaleUpkeep, &format!("VACUUM (ANALYZE) of {words}, ms"), ms);
        }
        Ok(())
    }

    /// What more partitions cost before anything is done.
    async fn planning(&mut self, database: &Database) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&database.url).await?;
        // As the worker's sessions, but planned each time; the worker's are planned five times, then the plan is kept.
        let settings = "SET jit = off; SET enable_seqscan = off; SET plan_cache_mode = force_custom_plan";
        connection.execute(settings).await?;
        connection
            .execute(AssertSqlSafe(format!("PREPARE store AS {STORE}")))
            .await
            .context("cannot prepare the statement")?;
        let execute = format!("EXPLAIN (SUMMARY) EXECUTE store ({})", ["'{}'"; PARAMETERS].join(", "));
        let find = format!(
            "EXPLAIN (SUMMARY)
             SELECT l.uuid FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid
             WHERE e.recipient = '{OF_MANY}' AND e.recipient <> '' GROUP BY l.uuid ORDER BY l.uuid DESC LIMIT 21"
        );
        for (name, sql) in [
            ("planning the statement that stores", execute),
            ("planning the mails of a recipient, by their events", find),
        ] {
            let mut times = Vec::new();
            for _ in 0..self.bench.effort.calls.min(50) {
                let plan = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql.clone())).fetch_all(&mut connection).await;
                let plan = plan.with_context(|| format!("cannot see the plan of {name}"))?;
                let time = plan.iter().find_map(|line| line.strip_prefix("Planning Time: ")?.strip_suffix(" ms"));
                times.push(time.context("the plan tells no time")?.parse()?);
            }
            self.times(name, &times);
        }
        connection.close().await?;
        // A batch of one whose row is there: little more than what every batch costs.
        let known: Vec<Arrival> = batches(&self.tale(false, 1).tell()).into_iter().flatten().take(1).collect();
        let mut times = Vec::new();
        for _ in 0..self.bench.effort.calls {
            let began = Instant::now();
            let verdicts = database.postgres.insert(&known, &[]).await?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
            ensure!(verdicts == [Verdict::Duplicate], "an event that was stored is no duplicate");
        }
        self.times("storing one event that is there", &times);
        Ok(())
    }

    /// What people ask, by the functions that answer: first after a restart, then again and again.
    async fn questions(&mut self, database: &Database) -> anyhow::Result<()> {
        let settings = PostgresSettings {
            read_only: true,
            statement_timeout: Duration::from_secs(120),
            ..PostgresSettings::new(&database.url)
        };
        let calls = self.bench.effort.calls;
        // Beyond those of the first call, which is apart.
        let known = self.some_mails(database, calls + 1).await?;
        ensure!(!known.is_empty(), "there are no mails to ask for");
        let postgres = Postgres::new(&settings)?;
        postgres.server_version().await?; // opens the connection
        let (first, this) = (self.filling.month(1), self.filling.month(0));
        let mail = |n: usize| &known[n % known.len()];

        self.ask("the mail of an id of SES", calls, async |n| mails::resolve(&postgres, &mail(n).id).await.map(drop))
            .await?;
        self.ask("find an address, first page", calls, async |n| {
            let found = mails::find(&postgres, &search(&mail(n).recipient, None)).await?;
            ensure!(!found.lines.is_empty(), "somebody's mails are not found");
            Ok(())
        })
        .await?;
        self.ask("find an address that nobody wrote to", calls, async |n| {
            let found = mails::find(&postgres, &search(&format!("nobody{n}@inbox.example"), None)).await?;
            ensure!(found.lines.is_empty(), "mails to nobody are found");
            Ok(())
        })
        .await?;
        self.ask("find the address of every 100th mail, first page", calls / 4, async |_| {
            mails::find(&postgres, &search(OF_MANY, None)).await.map(drop)
        })
        .await?;
        let (mut after, mut pages) = (None, 1);
        while pages < 100 {
            match mails::find(&postgres, &search(OF_MANY, after)).await?.next {
                Some(next) => (after, pages) = (Some(next), pages + 1),
                None => break,
            }
        }
        // With few mails there is none.
        if pages == 100 {
            self.ask("find the address of every 100th mail, 100th page", calls / 4, async |_| {
                mails::find(&postgres, &search(OF_MANY, after)).await.map(drop)
            })
            .await?;
        }
        self.ask("explain a mail", calls, async |n| {
            let mail = mails::mail(&postgres, mail(n).uuid).await?.context("a mail is gone")?;
            let context = mails::context(&postgres, &mail.log).await?;
            ensure!(
                !explain::explain(&mail, &context, OffsetDateTime::now_utc()).lines.is_empty(),
                "nothing to explain"
            );
            Ok(())
        })
        .await?;
        self.ask("orphans, first page", calls / 4, async |_| {
            stuck::orphans(&postgres, &stuck::Page { before: None, most: PAGE as u32 }).await.map(drop)
        })
        .await?;
        self.ask("orphans in groups", calls / 10, async |_| stuck::orphan_groups(&postgres).await.map(drop)).await?;
        for (name, from, to) in [
            ("figures by day of a week", first, first + time::Duration::days(7)),
            ("figures by day of a month", first, this),
        ] {
            let dimension = figures::Dimension::Day;
            let asked = figures::Asked { dimension, from, to, template: None, campaign: None };
            self.ask(name, calls / 20, async |_| {
                ensure!(!figures::by(&postgres, &asked).await?.figures.is_empty(), "there are no figures");
                Ok(())
            })
            .await?;
        }
        self.ask("status", calls / 10, async |_| status::status(&postgres, Vec::new()).await.map(drop)).await?;
        postgres.close().await;
        Ok(())
    }

    /// The first call, which has a line of its own, and so many more, none of them for the same mail.
    async fn ask(
        &mut self,
        name: &str,
        calls: usize,
        mut question: impl AsyncFnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut times = Vec::new();
        for n in 0..=calls.max(5) {
            let began = Instant::now();
            question(n).await.with_context(|| format!("cannot ask for {name}"))?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        self.times(name, &times[1..]);
        self.times(&format!("{name}; first after a restart"), &times[..1]);
        Ok(())
    }

    /// Mails of all months, at random.
    async fn some_mails(&self, database: &Database, many: usize) -> anyhow::Result<Vec<Known>> {
        let rows = sqlx::query(
            "SELECT l.uuid, l.aws_message_id, l.recipients[1] AS recipient
             FROM (SELECT ses_ledger_uuid_floor($1 + random() * ($2 - $1)) AS floor FROM generate_series(1, $3) OFFSET 0) AS places,
               LATERAL (SELECT * FROM email_logs WHERE uuid >= places.floor AND aws_message_id LIKE '%-000000' AND recipients[1] <> $4
                        ORDER BY uuid LIMIT 1) AS l",
        );
        let first = self.filling.month(self.filling.months(self.step));
        let rows = rows.bind(first).bind(self.filling.month(0)).bind(many as i64 * 2).bind(OF_MANY);
        let rows = rows.fetch_all(&database.pool).await.context("cannot choose mails")?;
        let known = |row: &sqlx::postgres::PgRow| {
            Ok(Known {
                uuid: row.try_get("uuid")?,
                id: row.try_get("aws_message_id")?,
                recipient: row.try_get("recipient")?,
            })
        };
        rows.iter().map(known).collect()
    }

    /// A full backlog alone; while the worker empties payloads; while `retention run` exports and drops months. In turns.
    async fn retention(&mut self, database: &Database) -> anyhow::Result<()> {
        let (messages, rounds, events) = self.bench.effort.beside;
        let (oldest, months) = (self.oldest(), PER_ROUND * rounds as u32);
        // One more, with enough payloads to empty.
        let mut wanted = vec![events; months as usize];
        wanted.push(8 * events);
        let filled = self.filling.fill_before(database, oldest, &wanted).await?;
        let tables: Vec<String> =
            (oldest + 1..=oldest + 1 + months).map(|back| table_of(self.filling.month(back))).collect();
        let vacuum = format!("VACUUM (ANALYZE) email_logs, {}", tables.join(", "));
        database.pool.execute(AssertSqlSafe(vacuum)).await.context("cannot vacuum")?;
        let usual = usual_worker(&self.bench.effort);
        for round in 1..=rounds {
            let mut samples: BTreeMap<Beside, Sample> = BTreeMap::new();
            let mut order = [Beside::Nothing, Beside::Emptying, Beside::Dropping];
            order.rotate_left(round % 3);
            for beside in order {
                let tale = Tale { seed: 5_000 + (round * 3) as u64 + beside as u64, ..self.tale_of(messages) };
                let story = tale.tell();
                database::write_logs(&database.postgres, &story).await?;
                let (mut sample, wrong) = match beside {
                    Beside::Nothing => self.drain(database, &usual, &tale, &story).await?,
                    Beside::Emptying => {
                        let before = self.emptied(database).await?;
                        let (mut sample, wrong) = self.drain(database, &emptying(&usual), &tale, &story).await?;
                        sample.insert(Figure::LetGo, (self.emptied(database).await? - before) as f64);
                        sample.insert(Figure::Beside, 100.0);
                        (sample, wrong)
                    }
                    Beside::Dropping => {
                        // The horizon comes to lie behind two more of the oldest months.
                        let left = oldest + 1 + months - PER_ROUND * round as u32;
                        let month = self.filling.month(left).unix_timestamp() + MIDDLE;
                        let older_than = OffsetDateTime::now_utc().unix_timestamp() - month;
                        self.dropping(database, (&usual, &tale, &story), older_than).await?
                    }
                };
                self.scaled.wrong.extend(wrong.into_iter().map(|wrong| format!("scale, {}: {wrong}", beside.name())));
                let enough = sample.get(&Figure::LetGo).is_none_or(|rows| *rows > 0.0);
                ensure!(enough, "nothing was let go {}", beside.name());
                // It counts what works beside the worker, which is ours here.
                sample.remove(&Figure::Others);
                samples.insert(beside, sample);
            }
            let rate = |sample: &Sample| sample.get(&Figure::EventsPerSecond).copied().unwrap_or_default();
            let alone = samples.get(&Beside::Nothing).map(rate).context("the rate alone was measured")?;
            for (beside, mut sample) in samples {
                sample.insert(Figure::Share, rate(&sample) / alone * 100.0);
                self.add(Group::ScaleRetention, beside.name(), None, sample);
            }
        }
        let gone: (i64, i64) = sqlx::query_as(
            "SELECT count(*), coalesce(sum(events), 0)::bigint FROM ses_ledger_months_let_go
             WHERE gone_at IS NOT NULL AND export_file IS NOT NULL",
        )
        .fetch_one(&database.pool)
        .await?;
        let wanted = (i64::from(months), filled[..months as usize].iter().sum::<u64>() as i64);
        if gone != wanted {
            self.scaled.wrong.push(format!("scale: months and events dropped: {gone:?} instead of {wanted:?}"));
        }
        Ok(())
    }

    async fn dropping(
        &mut self,
        database: &Database,
        (kind, tale, story): (&Kind, &Tale, &Story),
        older_than: i64,
    ) -> anyhow::Result<(Sample, Vec<String>)> {
        let folder = env::temp_dir().join(format!("ses-ledger-bench-{}", std::process::id()));
        let before = dropped(database).await?;
        let (url, export) = (database.url.clone(), folder.clone());
        let retention = tokio::spawn(async move {
            let began = Instant::now();
            start_retention(&url, older_than, &export)?.ended().await?;
            anyhow::Ok(began.elapsed())
        });
        let drained = self.drain(database, kind, tale, story).await;
        let took = retention.await??;
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        let (mut sample, wrong) = drained?;
        let rate = sample.get(&Figure::EventsPerSecond).copied().unwrap_or(1.0);
        let events = sample.get(&Figure::Messages).copied().unwrap_or_default();
        sample.insert(Figure::LetGo, (dropped(database).await? - before) as f64);
        sample.insert(Figure::Beside, (took.as_secs_f64() / (events / rate) * 100.0).min(100.0));
        Ok((sample, wrong))
    }

    /// Old events without a payload, in the months that were filled last.
    async fn emptied(&self, database: &Database) -> anyhow::Result<i64> {
        let oldest = self.filling.month(self.oldest());
        let query = sqlx::query_scalar(
            "SELECT count(*) FROM email_events WHERE payload IS NULL AND email_log_uuid < ses_ledger_uuid_floor($1)",
        );
        query.bind(oldest).fetch_one(&database.pool).await.context("cannot count the emptied payloads")
    }

    /// The oldest month of all steps, counted back.
    fn oldest(&self) -> u32 {
        self.bench.effort.steps.iter().map(|step| step.months).max().unwrap_or_default()
    }

    /// New mails: behind all others of the newest month. Or mails from the first filled month to the last.
    fn tale(&self, all_months: bool, round: usize) -> Tale {
        let tale = self.tale_of(self.bench.effort.messages);
        let seed = (self.step * 100 + round) as u64;
        if !all_months {
            return Tale { seed: 1_000 + seed, ..tale };
        }
        let start = self.filling.month(self.filling.months(self.step)).unix_timestamp() + 86_400;
        let end = self.filling.month(1).unix_timestamp() + 20 * 86_400;
        let gap = (end - start) as u64 / (tale.messages as u64 / 3).max(1);
        Tale { seed: 2_000 + seed, start, gap, shuffled: true, ..tale }
    }

    fn tale_of(&self, messages: usize) -> Tale {
        let start = self.filling.month(0).unix_timestamp() - 2 * 86_400;
        Tale { start, ..tidy(&self.bench.effort, messages) }
    }

    fn times(&mut self, name: &str, times: &[f64]) {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut sample = Sample::new();
        if let Some(spread) = spread(sorted.iter().copied()) {
            sample.insert(Figure::Messages, spread.n as f64);
            match spread.n {
                1 => {
                    sample.insert(Figure::Value, spread.median);
                }
                n => {
                    sample.insert(Figure::Median, spread.median);
                    sample.insert(Figure::P95, sorted[(n * 95).div_ceil(100) - 1]);
                    sample.insert(Figure::Longest, spread.most);
                }
            }
        }
        let at = self.label.clone();
        self.add(Group::ScaleTimes, name, Some(at), sample);
    }

    fn value(&mut self, group: Group, name: &str, value: f64) {
        let at = self.label.clone();
        self.add(group, name, Some(at), Sample::from([(Figure::Value, value)]));
    }

    fn add(&mut self, group: Group, name: &str, at: Option<String>, sample: Sample) {
        let lines = &mut self.scaled.lines;
        match lines.iter_mut().find(|line| line.group == group && line.name == name && line.at == at) {
            Some(line) => line.samples.push(sample),
            None => {
                // The lines of a table stand together.
                let place = lines.iter().rposition(|line| line.group <= group).map_or(0, |last| last + 1);
                lines.insert(place, Line { group, name: name.to_owned(), at, samples: vec![sample] });
            }
        }
    }
}

/// What goes on while the worker stores.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Beside {
    Nothing,
    Emptying,
    Dropping,
}

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "alone",
            Self::Emptying => "beside emptying",
            Self::Dropping => "beside dropping",
        }
    }
}

/// A mail that is asked for.
struct Known {
    uuid: Uuid,
    id: String,
    recipient: String,
}

/// The worker, which empties payloads as well.
fn emptying(usual: &Kind) -> Kind {
    let mut kind = usual.clone();
    if let Kind::Worker { settings, .. } = &mut kind {
        settings.push("--retention-payload=31d".to_owned());
    }
    kind
}

fn search(words: &str, after: Option<Uuid>) -> mails::Search {
    mails::Search {
        what: mails::What::read(words),
        since: None,
        until: None,
        status: None,
        template: None,
        campaign: None,
        limit: PAGE,
        after,
        patience: Duration::from_secs(60),
    }
}

fn line_of(label: &str, all_months: bool) -> String {
    format!("{label}: {}", if all_months { "all months" } else { "recent mails" })
}

/// The goal is about ten times as many events as at first.
fn name_the_goals(scaled: &mut Scaled, steps: &[Step]) {
    let Some(first) = steps.first() else { return };
    let Some(large) = steps.iter().find(|step| step.events >= 10 * first.events) else { return };
    scaled.names = HashMap::from([
        ("1 x, recent mails", line_of(&first.label(), false)),
        ("1 x, all months", line_of(&first.label(), true)),
        ("10 x, recent mails", line_of(&large.label(), false)),
        ("10 x, all months", line_of(&large.label(), true)),
    ]);
}

/// Where the write-ahead log stands.
async fn position(database: &Database) -> anyhow::Result<String> {
    let query = sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text");
    query.fetch_one(&database.pool).await.context("cannot ask where the log stands")
}

/// Events of months that were dropped.
async fn dropped(database: &Database) -> anyhow::Result<i64> {
    database
        .count("SELECT coalesce(sum(events), 0)::bigint FROM ses_ledger_months_let_go WHERE gone_at IS NOT NULL")
        .await
}

async fn autovacuum(database: &Database) -> anyhow::Result<String> {
    let settings: String = sqlx::query_scalar(
        "SELECT string_agg(name || ' ' || setting, ', ' ORDER BY name) FROM pg_settings
         WHERE name IN ('autovacuum', 'autovacuum_naptime', 'autovacuum_vacuum_scale_factor', 'autovacuum_vacuum_insert_scale_factor',
                        'shared_buffers', 'max_wal_size', 'full_page_writes', 'wal_compression')",
    )
    .fetch_one(&database.pool)
    .await?;
    Ok(format!("scale: {settings}"))
}

/// Events whose mails nobody knows, two of each, three weeks old.
async fn park_orphans(database: &Database, mails: i64) -> anyhow::Result<()> {
    let query = sqlx::query(
        "INSERT INTO orphaned_events (uuid, aws_message_id, event_type, occurred_at, recipient, payload, queue, sqs_message_id,
           received_at, stored_at)
         SELECT (left(ses_ledger_uuid_floor(at)::text, 14) || '7' || substr(gen_random_uuid()::text, 16))::uuid,
           '0102' || md5(n::text), kind, at, 'stranger' || n || '@inbox.example',
           jsonb_build_object('eventType', initcap(kind), 'mail', jsonb_build_object('source', 'shop@elsewhere.example')),
           'arn:aws:sqs:us-east-1:000000000000:ses-events', gen_random_uuid()::text, at, at
         FROM generate_series(1, $1) AS n, unnest(ARRAY['send', 'delivery']) AS kind,
           LATERAL (SELECT now() - interval '21 days' + n * interval '1 second' AS at) AS t",
    );
    query.bind(mails).execute(&database.pool).await.map(drop).context("cannot park the orphans")
}
