//! Brings mails and events from existing tables of another shape into ours, page by page, while everybody goes on.
//!
//! Three steps: log rows become mails; event rows become events, by the decoder and the statement of the worker; and what only
//! the log rows say (`delivered_at`, and no event that tells of it) becomes events as well. A page is one transaction: its
//! rows, what became of each, and how far the run has come. So it can be ended at any moment and goes on where it was, and
//! the numbers always add up.

pub mod rows;
pub mod shape;

mod ground;
mod seen;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::sleep;
use uuid::Uuid;

use self::{
    ground::{Ground, Rehearsal},
    rows::{EventRow, IdFrom, LogRow, Mail, Reason},
    seen::Seen,
    shape::{Shape, Table},
};
use crate::{
    event::{Event, MessageId},
    orphans,
    pipeline::{batch::Arrival, receive::Origin},
    postgres::{
        Postgres,
        adoption::{self as tables, Column, Pages, SourceRow, State},
        mirror,
    },
};

/// How often a page is tried again that somebody was in the way of.
const ATTEMPTS: u32 = 20;
/// How long after a page the worker may still be storing what it looked up before.
const SETTLED: Duration = Duration::from_secs(2);
/// So many keys of rows that cannot be taken are shown for each reason.
const EXAMPLES: usize = 5;

/// Fields that are read of a log row for each step. Of an event, all are.
const LOG_FIELDS: [&str; 14] = [
    "id",
    "message_id",
    "other_id",
    "sender",
    "recipients",
    "subject",
    "template_name",
    "campaign_id",
    "configuration_set",
    "tags",
    "headers",
    "body_full",
    "created_at",
    "sent_at",
];
const FACT_FIELDS: [&str; 12] = [
    "id",
    "status",
    "bounce_type",
    "sent_at",
    "delivered_at",
    "delayed_at",
    "bounced_at",
    "complained_at",
    "rejected_at",
    "failed_at",
    "opened_at",
    "clicked_at",
];

/// What became of the rows of one step. `read = adopted + parked + collapsed + there + unmatched`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Rows of the table that were looked at. For facts: what the log rows say that happened.
    pub read: u64,
    /// Rows that are here by now and were not before.
    pub adopted: u64,
    /// Events whose mail is not known: they wait as orphans, as those from a queue do.
    pub parked: u64,
    /// Rows that say what an earlier row of the table says.
    pub collapsed: u64,
    /// Rows that were here before: from an earlier run, or because the sender or the worker wrote them.
    pub there: u64,
    /// Rows that cannot be taken, with the reason.
    pub unmatched: u64,
    pub reasons: BTreeMap<String, Unmatched>,
    /// Where the SES ids of log rows were found; `filled`: mails here that had none and got theirs.
    pub ids: BTreeMap<String, u64>,
    /// Events stored, by kind: one for each recipient whom a row names.
    pub events: BTreeMap<String, u64>,
}

/// Rows that cannot be taken for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmatched {
    pub rows: u64,
    /// Keys of the first of them.
    pub examples: Vec<String>,
}

/// One step of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Logs,
    Events,
    Facts,
}

/// What a step read from, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    pub step: Step,
    pub table: String,
    #[serde(flatten)]
    pub counts: Counts,
    /// It went on where an earlier run had been stopped, whose rows are counted as well.
    pub resumed: bool,
    /// Fields that the table has no column for, and columns that nobody takes.
    pub left_out: Vec<&'static str>,
    pub not_taken: Vec<String>,
}

/// Called after each page.
pub type Progress<'a> = dyn FnMut(Step, &Counts, Option<i64>) + Send + 'a;

/// Tables, and the database that they come to.
pub struct Adoption {
    postgres: Postgres,
    source: Postgres,
    shape: Shape,
    /// `@name` of the database, if it is another one than ours.
    elsewhere: String,
    page: i64,
    left_out: Vec<(Vec<&'static str>, Vec<String>)>,
    columns: Vec<Vec<Column>>,
}

impl Step {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Events => "events",
            Self::Facts => "facts",
        }
    }
}

impl Counts {
    /// Everything that was read became something.
    pub fn adds_up(&self) -> bool {
        self.read == self.adopted + self.parked + self.collapsed + self.there + self.unmatched
    }

    fn add(&mut self, verdict: &str) {
        self.read += 1;
        *match verdict {
            "adopted" => &mut self.adopted,
            "parked" => &mut self.parked,
            "collapsed" => &mut self.collapsed,
            "there" => &mut self.there,
            _ => &mut self.unmatched,
        } += 1;
    }

    fn refuse(&mut self, id: &str, reason: Reason) {
        self.add("unmatched");
        let reasons = self.reasons.entry(reason.as_str().to_owned()).or_default();
        reasons.rows += 1;
        if reasons.examples.len() < EXAMPLES && !id.is_empty() {
            reasons.examples.push(id.to_owned());
        }
    }
}

impl Adoption {
    /// Looks at the tables. `elsewhere` names the database of `source` if it is another one.
    ///
    /// # Errors
    /// If a table or a column is not there that somebody named, or there is nothing to tell rows apart by.
    pub async fn new(
        postgres: Postgres,
        source: Postgres,
        mut shape: Shape,
        elsewhere: Option<&str>,
        page: u32,
    ) -> anyhow::Result<Self> {
        let (mut left_out, mut columns) = (Vec::new(), Vec::new());
        for table in [&mut shape.logs, &mut shape.events].into_iter().flatten() {
            if elsewhere.is_none() && tables::is_ours(&postgres, table).await? {
                bail!(
                    "cannot adopt from {table}: it is ours; say with --from-schema or --logs where the other tables are"
                );
            }
            let there = tables::columns(&source, table).await.context("cannot look at the tables")?;
            let there = there.with_context(|| {
                format!("cannot find the table {table}: say with --from-schema, --logs and --events what it is called (none: there is none)")
            })?;
            let names: Vec<String> = there.iter().map(|column| column.name.clone()).collect();
            left_out.push(table.fit(&names)?);
            columns.push(there);
        }
        let elsewhere = elsewhere.map(|name| format!("@{name}")).unwrap_or_default();
        Ok(Self { postgres, source, shape, elsewhere, page: i64::from(page), left_out, columns })
    }

    /// The tables, as the adopted events name them behind `adopted:`.
    pub fn labels(&self) -> Vec<String> {
        [&self.shape.logs, &self.shape.events].into_iter().flatten().map(|table| self.label(table)).collect()
    }

    /// Adopts everything, or goes on with it.
    ///
    /// # Errors
    /// If a database cannot be reached for long, or the login lacks the rights. Run again, it goes on.
    pub async fn run(&self, progress: &mut Progress<'_>) -> anyhow::Result<Vec<StepReport>> {
        let mut states = Vec::new();
        for step in self.steps() {
            let label = self.label(self.table(step)?.1);
            let state = tables::state(&self.postgres, &label, step.as_str()).await;
            states.push(state.context("cannot see how far the adoption has come")?);
        }
        // A run is over when its last step is. What finished since its first step began belongs to it.
        let began = states.first().cloned().flatten().map(|state| state.started_at);
        let of_this_run = |state: &State| began.is_some_and(|began| state.started_at >= began);
        let over = states.last().cloned().flatten().is_some_and(|state| state.finished && of_this_run(&state));
        let mut reports = Vec::new();
        for (step, state) in self.steps().zip(states) {
            let state = state.filter(|state| !over && of_this_run(state));
            reports.push(self.step(step, state, None, progress).await?);
        }
        Ok(reports)
    }

    /// Says what a run would do, and changes nothing. It keeps each mail's key, id and recipients in memory, and a digest of each
    /// event.
    ///
    /// # Errors
    /// If a database cannot be read.
    pub async fn rehearse(&self, progress: &mut Progress<'_>) -> anyhow::Result<Vec<StepReport>> {
        let mut rehearsal = Rehearsal::default();
        let mut reports = Vec::new();
        for step in self.steps() {
            reports.push(self.step(step, None, Some(&mut rehearsal), progress).await?);
        }
        Ok(reports)
    }

    /// The script that mirrors the log table here instead of adopting it, or takes the mirror away.
    ///
    /// # Errors
    /// If there is no log table, or its key is no UUID.
    pub async fn mirror(&self, remove: bool) -> anyhow::Result<String> {
        let table = self.shape.logs.as_ref().context("there is no log table to mirror")?;
        ensure!(self.elsewhere.is_empty(), "a mirror needs both tables in one database: leave out --source-url");
        mirror::script(&self.postgres, table, &self.columns[0], remove).await
    }

    /// Attaches the orphans whose mails are here by now.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn attach_orphans(&self) -> anyhow::Result<u64> {
        orphans::sweep_all(&self.postgres).await.context("cannot attach the orphans of the adopted mails")
    }

    fn steps(&self) -> impl Iterator<Item = Step> {
        let (logs, events) = (self.shape.logs.is_some(), self.shape.events.is_some());
        let steps = [(Step::Logs, logs), (Step::Events, events), (Step::Facts, logs)];
        steps.into_iter().filter(|(_, wanted)| *wanted).map(|(step, _)| step)
    }

    fn label(&self, table: &Table) -> String {
        format!("{table}{}", self.elsewhere)
    }

    /// The number of a step's table, the table, and the fields that are read of it.
    fn table(&self, step: Step) -> anyhow::Result<(usize, &Table, &'static [&'static str])> {
        let (number, table, fields): (_, _, &[&str]) = match step {
            Step::Logs => (0, &self.shape.logs, &LOG_FIELDS),
            Step::Facts => (0, &self.shape.logs, &FACT_FIELDS),
            Step::Events => (usize::from(self.shape.logs.is_some()), &self.shape.events, &shape::EVENT_FIELDS),
        };
        Ok((number, table.as_ref().context("there is no table for this step")?, fields))
    }

    /// Does a step, or what `state` says that is left of it.
    async fn step(
        &self,
        step: Step,
        state: Option<State>,
        mut rehearsal: Option<&mut Rehearsal>,
        progress: &mut Progress<'_>,
    ) -> anyhow::Result<StepReport> {
        let (number, table, fields) = self.table(step)?;
        let label = self.label(table);
        let what = format!("cannot adopt the {} of {label}", step.as_str());
        let context = || what.clone();
        let (left_out, not_taken) = self.left_out[number].clone();
        let by_time = state.as_ref().and_then(|state| state.by_time);
        let mut run = Run { adoption: self, step, label, position: None, counts: Counts::default(), fresh: Vec::new() };
        let resumed = state.is_some();
        let finished = state.as_ref().is_some_and(|state| state.finished);
        if let Some(state) = state {
            run.position = state.position;
            run.counts = serde_json::from_value(state.counts).unwrap_or_default();
        }
        if finished {
            return Ok(StepReport { step, table: run.label, counts: run.counts, resumed, left_out, not_taken });
        }
        let pages = Pages::new(&self.source, table, fields, &self.columns[number], by_time).await;
        let pages = pages.with_context(context)?;
        if !resumed && rehearsal.is_none() {
            tables::begin(&self.postgres, &run.label, step.as_str(), pages.by_time).await.with_context(context)?;
        }
        let about = pages.about(&self.source).await.with_context(context)?;
        loop {
            let after = run.position.clone();
            let rows = pages.after(&self.source, after.as_deref(), self.page).await.with_context(context)?;
            if rows.is_empty() {
                break;
            }
            run.pages(&rows, rehearsal.as_deref_mut()).await.with_context(context)?;
            run.settle(false).await.with_context(context)?;
            progress(step, &run.counts, about);
        }
        if step != Step::Facts {
            for _ in 0..pages.without_id(&self.source).await.with_context(context)? {
                run.counts.refuse("", Reason::NoId);
            }
        }
        if rehearsal.is_none() {
            run.settle(true).await.with_context(context)?;
            run.finish().await.with_context(context)?;
        }
        ensure!(run.counts.adds_up(), "the numbers of {} do not add up: {:?}", run.label, run.counts);
        Ok(StepReport { step, table: run.label, counts: run.counts, resumed, left_out, not_taken })
    }
}

/// A step on its way.
struct Run<'a> {
    adoption: &'a Adoption,
    step: Step,
    label: String,
    position: Option<Vec<String>>,
    counts: Counts,
    /// Mails with an open or click of a whole second that was adopted just now, and when.
    fresh: Vec<(Instant, Vec<Uuid>)>,
}

impl Run<'_> {
    /// Takes rows in one transaction. Where the database refuses one, it is found by smaller and smaller pages.
    async fn pages(&mut self, rows: &[SourceRow], mut rehearsal: Option<&mut Rehearsal>) -> anyhow::Result<()> {
        let mut todo = vec![rows];
        while let Some(rows) = todo.pop() {
            match self.patiently(rows, rehearsal.as_deref_mut(), false).await {
                Ok(()) => {}
                Err(e) if is_refused(&e) && rows.len() > 1 => {
                    let (first, second) = rows.split_at(rows.len() / 2);
                    todo.extend([second, first]);
                }
                Err(e) if is_refused(&e) => self.patiently(rows, rehearsal.as_deref_mut(), true).await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Tries again what somebody was in the way of, and makes partitions that are missing.
    async fn patiently(
        &mut self,
        rows: &[SourceRow],
        mut rehearsal: Option<&mut Rehearsal>,
        refused: bool,
    ) -> anyhow::Result<()> {
        let mut attempt = 0;
        loop {
            let mut mails = Vec::new();
            let Err(e) = self.page(rows, rehearsal.as_deref_mut(), refused, &mut mails).await else { return Ok(()) };
            attempt += 1;
            let e = match e.downcast::<sqlx::Error>() {
                Ok(e) if tables::is_passing(&e) && attempt < ATTEMPTS => {
                    sleep(Duration::from_millis(u64::from(attempt) * 100)).await;
                    continue;
                }
                Ok(e) if attempt < ATTEMPTS => match tables::mend(&self.adoption.postgres, e, &mails).await {
                    Ok(()) => continue,
                    Err(e) => e.into(),
                },
                Ok(e) => e.into(),
                Err(e) => e,
            };
            return Err(e);
        }
    }

    /// One page, in one transaction. Nothing of `self` moves unless it is committed.
    async fn page(
        &mut self,
        rows: &[SourceRow],
        rehearsal: Option<&mut Rehearsal>,
        refused: bool,
        mails: &mut Vec<Uuid>,
    ) -> anyhow::Result<()> {
        let (postgres, step) = (&self.adoption.postgres, self.step.as_str());
        let is_rehearsal = rehearsal.is_some();
        let mut ground = Ground::enter(postgres, rehearsal, &self.label, step, self.position.as_deref()).await?;
        let mut counts = self.counts.clone();
        let (mut unmatched, mut fresh) = (Vec::new(), Vec::new());
        match (refused, self.step) {
            (true, _) => unmatched.extend(rows.iter().map(|row| (key(row), Reason::Refused))),
            (_, Step::Logs) => self.logs(&mut ground, rows, &mut counts, &mut unmatched).await?,
            (_, Step::Events) => {
                fresh = self.events(&mut ground, rows, &mut counts, &mut unmatched, mails).await?;
            }
            (_, Step::Facts) => fresh = self.facts(&mut ground, rows, &mut counts, mails).await?,
        }
        for (id, reason) in &unmatched {
            counts.refuse(id, *reason);
        }
        let position = rows.last().map(|row| row.position.clone());
        ground.leave(&self.label, step, position.as_deref(), &counts, &unmatched).await?;
        (self.counts, self.position) = (counts, position);
        if !fresh.is_empty() && !is_rehearsal {
            self.fresh.push((Instant::now(), fresh));
        }
        Ok(())
    }

    /// While a page was being committed, the worker may have stored an open with its milliseconds that neither saw of the
    /// other. A moment later both are seen, and the adopted one goes.
    async fn settle(&mut self, all: bool) -> anyhow::Result<()> {
        while let Some((since, mails)) = self.fresh.first() {
            let left = SETTLED.saturating_sub(since.elapsed());
            if !left.is_zero() && !all {
                break;
            }
            sleep(left).await;
            let queue = format!("adopted:{}", self.label);
            let mut attempt = 0;
            let gone = loop {
                attempt += 1;
                match tables::remove_doubles(&self.adoption.postgres, &queue, mails).await {
                    Err(e) if tables::is_passing(&e) && attempt < ATTEMPTS => sleep(Duration::from_millis(100)).await,
                    answer => break answer?,
                }
            };
            self.counts.adopted = self.counts.adopted.saturating_sub(gone);
            self.counts.there += gone;
            self.fresh.remove(0);
        }
        Ok(())
    }

    async fn finish(&self) -> anyhow::Result<()> {
        let (postgres, step) = (&self.adoption.postgres, self.step.as_str());
        let ground = Ground::enter(postgres, None, &self.label, step, self.position.as_deref()).await?;
        ground.leave(&self.label, step, None, &self.counts, &[]).await
    }

    async fn logs(
        &self,
        ground: &mut Ground<'_>,
        rows: &[SourceRow],
        counts: &mut Counts,
        unmatched: &mut Vec<(String, Reason)>,
    ) -> anyhow::Result<()> {
        let mut logs = Vec::new();
        for row in rows {
            match LogRow::read(&self.label, &row.json) {
                Ok(log) => logs.push(log),
                Err(reason) => unmatched.push((key(row), reason)),
            }
        }
        for log in &logs {
            let from = match log.id_from {
                IdFrom::Column => "in_their_column",
                IdFrom::Headers => "in_headers",
                IdFrom::Elsewhere => "elsewhere",
                IdFrom::Nowhere => "nowhere",
            };
            *counts.ids.entry(from.to_owned()).or_default() += 1;
        }
        let (outcomes, filled) = ground.take_logs(&self.label, &logs).await?;
        outcomes.iter().for_each(|outcome| counts.add(outcome));
        if filled > 0 {
            *counts.ids.entry("filled".to_owned()).or_default() += filled;
        }
        Ok(())
    }

    async fn events(
        &self,
        ground: &mut Ground<'_>,
        rows: &[SourceRow],
        counts: &mut Counts,
        unmatched: &mut Vec<(String, Reason)>,
        uuids: &mut Vec<Uuid>,
    ) -> anyhow::Result<Vec<Uuid>> {
        let mut read = Vec::new();
        for row in rows {
            match EventRow::read(&row.json) {
                Ok(event) => read.push(event),
                Err(reason) => unmatched.push((key(row), reason)),
            }
        }
        let logs = self.adoption.shape.logs.as_ref().map(|table| self.adoption.label(table)).unwrap_or_default();
        let log_ids: Vec<&str> = read.iter().filter_map(|row| row.log_id.as_deref()).collect();
        let message_ids: Vec<&str> =
            read.iter().filter_map(|row| row.message_id.as_ref()).map(|id| id.as_str()).collect();
        let mails = ground.mails(&logs, log_ids, message_ids).await?;
        let mut page = EventPage::new(&self.label);
        for row in read {
            let id = row.source_id.clone();
            let mail = mails.of(row.log_id.as_deref(), row.message_id.as_ref().map(|id| id.as_str()));
            if mail.is_none() && row.message_id.is_none() {
                unmatched.push((id, Reason::NoLog));
                continue;
            }
            let received_at = row.received_at;
            match row.into_events(mail) {
                Ok(events) => page.add(&id, events, mail, received_at),
                Err(reason) => unmatched.push((id, reason)),
            }
        }
        uuids.extend(page.arrivals.iter().filter_map(|arrival| arrival.event.log_uuid));
        let verdicts = ground.take_events(&self.label, self.step.as_str(), &page.arrivals).await?;
        Ok(page.judge(verdicts, counts))
    }

    async fn facts(
        &self,
        ground: &mut Ground<'_>,
        rows: &[SourceRow],
        counts: &mut Counts,
        uuids: &mut Vec<Uuid>,
    ) -> anyhow::Result<Vec<Uuid>> {
        // What cannot be read was reported with the logs.
        let logs: Vec<LogRow> = rows.iter().filter_map(|row| LogRow::read(&self.label, &row.json).ok()).collect();
        let ids = logs.iter().map(|log| log.source_id.as_str()).collect();
        let mails = ground.mails(&self.label, ids, Vec::new()).await?;
        let mut page = EventPage::new(&self.label);
        let mut told = HashSet::new();
        for log in &logs {
            let Some(mail) = mails.of(Some(&log.source_id), None) else { continue };
            // Programs note when they send before they do: it counts if SES gave the mail an id.
            let facts = log.facts.iter().filter(|fact| fact.kind.as_str() != "send" || mail.message_id.is_some());
            for fact in facts {
                let kind = fact.kind.as_str().to_owned();
                if mail.known.contains(&kind) || !told.insert((mail.uuid, kind.clone())) {
                    counts.add("there");
                    continue;
                }
                let events = fact.clone().into_events(mail);
                page.add(&format!("{}/{kind}", log.source_id), events, Some(mail), fact.at);
            }
        }
        uuids.extend(page.arrivals.iter().filter_map(|arrival| arrival.event.log_uuid));
        let verdicts = ground.take_events(&self.label, self.step.as_str(), &page.arrivals).await?;
        Ok(page.judge(verdicts, counts))
    }
}

/// The events of a page, and the rows that they come from.
struct EventPage {
    queue: Arc<str>,
    arrivals: Vec<Arrival>,
    /// For each arrival the number of its row.
    row_of: Vec<usize>,
    rows: usize,
    seen: Seen,
}

impl EventPage {
    fn new(label: &str) -> Self {
        let queue = format!("adopted:{label}").into();
        Self { queue, arrivals: Vec::new(), row_of: Vec::new(), rows: 0, seen: Seen::default() }
    }

    fn add(&mut self, source_id: &str, events: Vec<Event>, mail: Option<&Mail>, received_at: OffsetDateTime) {
        let origin = Arc::new(Origin {
            queue: Arc::clone(&self.queue),
            sqs_message_id: source_id.to_owned(),
            receive_count: 0,
            received_at,
        });
        let number = self.rows;
        self.rows += 1;
        for mut event in events {
            if let Some(mail) = mail {
                event.log_uuid = Some(mail.uuid);
                let id = mail.message_id.as_deref().unwrap_or("unknown");
                if let Some(id) = MessageId::parse(id) {
                    event.message_id = id;
                }
                // Opens and clicks within a second of which one knows only the second are one.
                if event.kind.happens_again() && self.seen.has_twin(&event) {
                    continue;
                }
            } else {
                event.log_uuid = None;
            }
            self.seen.note(&event);
            self.arrivals.push(Arrival::new(event, Arc::clone(&origin)));
            self.row_of.push(number);
        }
    }

    /// A row is what the best of its events is. Returns the mails with an adopted open or click of a whole second.
    fn judge(self, verdicts: Vec<String>, counts: &mut Counts) -> Vec<Uuid> {
        let order = ["collapsed", "there", "parked", "adopted"];
        let (mut of_rows, mut fresh) = (vec![0; self.rows], Vec::new());
        for ((verdict, row), arrival) in verdicts.iter().zip(&self.row_of).zip(&self.arrivals) {
            let rank = order.iter().position(|known| known == verdict).unwrap_or_default();
            of_rows[*row] = rank.max(of_rows[*row]);
            if verdict == "adopted" {
                let event = &arrival.event;
                *counts.events.entry(event.kind.as_str().to_owned()).or_default() += 1;
                if event.kind.happens_again() && event.occurred_at.nanosecond() == 0 {
                    fresh.extend(event.log_uuid);
                }
            }
        }
        of_rows.into_iter().for_each(|rank| counts.add(order[rank]));
        fresh
    }
}

/// The key of a row: the last of what orders it.
fn key(row: &SourceRow) -> String {
    row.position.last().cloned().unwrap_or_default()
}

fn is_refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<sqlx::Error>().is_some_and(tables::is_refused)
}
