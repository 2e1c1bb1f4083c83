//! What is too old is let go, class by class; what it weighs, said before.

pub mod standing;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    cli::duration,
    export::{Export, Manifest},
    postgres::{
        Postgres,
        letting_go::{Exported, Month, Owner, Rows, Weight},
        rollup,
        upkeep::Content,
    },
    upkeep,
};

/// Rows for one file of an export, and for one round of removing.
const ROUND: i64 = 50_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long each class of data is kept. Whatever is not named is kept for ever.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Retention {
    /// Empty the payloads of events that are older, like 90d; at least 1d [default: keep them]
    #[arg(long, env, value_parser = duration, value_name = "TIME", help_heading = "Retention")]
    pub retention_payload: Option<Duration>,

    /// Empty body_full and headers of mails that are older; at least 1d [default: keep them]
    #[arg(long, env, value_parser = duration, value_name = "TIME", help_heading = "Retention")]
    pub retention_body: Option<Duration>,

    /// Drop the events of mails that are older, by whole months; at least 31d. `ses-ledger retention run` does it [default: keep them]
    #[arg(long, env, value_parser = duration, value_name = "TIME", help_heading = "Retention")]
    pub retention_events: Option<Duration>,

    /// Remove events whose mail has not appeared for so long; at least 1d. `ses-ledger retention run` does it [default: keep them]
    #[arg(long, env, value_parser = duration, value_name = "TIME", help_heading = "Retention")]
    pub retention_orphans: Option<Duration>,

    /// Remove quarantined bodies that have not arrived again for so long; at least 1d. `ses-ledger retention run` does it [default: keep them]
    #[arg(long, env, value_parser = duration, value_name = "TIME", help_heading = "Retention")]
    pub retention_quarantine: Option<Duration>,

    /// Remove mails that are older; not before their events. `ses-ledger retention run` does it [default: keep them]
    #[arg(long, env, value_parser = duration, value_name = "TIME", help_heading = "Retention")]
    pub retention_logs: Option<Duration>,
}

/// What is kept for a time of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Payloads,
    Bodies,
    Events,
    Logs,
    Orphans,
    Quarantine,
}

impl Class {
    /// Those that are emptied in their row first.
    pub const ALL: [Self; 6] =
        [Self::Payloads, Self::Bodies, Self::Events, Self::Logs, Self::Orphans, Self::Quarantine];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Payloads => "payloads",
            Self::Bodies => "bodies",
            Self::Events => "events",
            Self::Logs => "logs",
            Self::Orphans => "orphans",
            Self::Quarantine => "quarantine",
        }
    }

    /// It is emptied in its row, by workers as well; everything else only by `retention run`.
    pub fn is_emptied(self) -> bool {
        matches!(self, Self::Payloads | Self::Bodies)
    }
}

/// What was let go of one class, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LetGo {
    /// payloads, bodies, orphans, quarantine, events or logs
    pub class: &'static str,
    /// What is older than that goes, in seconds.
    pub older_than: u64,
    pub rows: u64,
    /// What they take in the tables, as far as it is known.
    pub bytes: u64,
    /// Months of events, like `2025-03`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub months: Vec<String>,
    /// Files that hold them now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<Manifest>,
}

impl Retention {
    /// How long a class is kept; `None`: for ever.
    pub fn of(&self, class: Class) -> Option<Duration> {
        match class {
            Class::Payloads => self.retention_payload,
            Class::Bodies => self.retention_body,
            Class::Events => self.retention_events,
            Class::Logs => self.retention_logs,
            Class::Orphans => self.retention_orphans,
            Class::Quarantine => self.retention_quarantine,
        }
    }

    /// Classes that are let go.
    pub fn classes(&self) -> impl Iterator<Item = Class> {
        Class::ALL.into_iter().filter(|class| self.of(*class).is_some())
    }

    /// The same in seconds, as the heartbeat tells them.
    pub fn in_seconds(&self) -> BTreeMap<&'static str, u64> {
        self.classes().filter_map(|class| Some((class.as_str(), self.of(class)?.as_secs()))).collect()
    }

    /// What is emptied in its row, by workers as well, and when.
    pub(crate) fn emptied(&self) -> impl Iterator<Item = (Content, Duration)> + use<> {
        let payloads = self.retention_payload.map(|age| (Content::Payloads, age));
        let bodies = self.retention_body.map(|age| (Content::Bodies, age));
        payloads.into_iter().chain(bodies)
    }

    /// Anything is ever let go.
    pub fn is_on(&self) -> bool {
        self.classes().next().is_some()
    }

    /// Settings that only make sense together.
    pub(crate) fn check(&self) -> Result<(), String> {
        let at_least = [
            ("RETENTION_PAYLOAD", self.retention_payload, 1),
            ("RETENTION_BODY", self.retention_body, 1),
            ("RETENTION_EVENTS", self.retention_events, 31),
            ("RETENTION_ORPHANS", self.retention_orphans, 1),
            ("RETENTION_QUARANTINE", self.retention_quarantine, 1),
            ("RETENTION_LOGS", self.retention_logs, 31),
        ];
        for (name, age, days) in at_least {
            if age.is_some_and(|age| age < DAY * days) {
                return Err(format!("{name} has to be at least {days}d"));
            }
        }
        match (self.retention_logs, self.retention_events) {
            (Some(_), None) => Err("RETENTION_LOGS needs RETENTION_EVENTS: a mail that goes takes its events along".to_owned()),
            (Some(logs), Some(events)) if logs < events => Err(
                "RETENTION_LOGS has to be at least as long as RETENTION_EVENTS: a mail that goes takes its events along".to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

/// One run over all classes, in bounded steps: each is done for good, and the next run goes on after the last.
pub struct Run<'a> {
    pub postgres: &'a Postgres,
    pub retention: &'a Retention,
    /// Where rows are kept before they are removed; `None`: nowhere.
    pub export: Option<PathBuf>,
    /// Told what was just done.
    pub tell: &'a mut dyn FnMut(String),
}

impl Run<'_> {
    /// Lets go of what is too old.
    ///
    /// # Errors
    /// If a step fails. Those before it are done, and the next run goes on with it.
    pub async fn go(&mut self) -> anyhow::Result<Vec<LetGo>> {
        let mut owner = Owner::begin(self.postgres).await?;
        let run = owner.note_begin().await?;
        let all = self.each(&mut owner).await?;
        owner.note_end(run, &serde_json::to_value(&all).context("cannot note the end of the run")?).await?;
        owner.end().await;
        Ok(all)
    }

    async fn each(&mut self, owner: &mut Owner) -> anyhow::Result<Vec<LetGo>> {
        let keep = *self.retention;
        let mut all = Vec::new();
        for (what, age) in keep.emptied() {
            let mut emptied = 0;
            upkeep::empty_until(self.postgres, what, age, Instant::now() + DAY, &mut emptied).await?;
            (self.tell)(format!("emptied {emptied} {}", what.as_str()));
            all.push(LetGo::new(what.as_str(), age, Weight { rows: emptied as i64, bytes: 0 }));
        }
        if let Some(age) = keep.retention_orphans {
            all.push(self.rows(owner, "orphans", Rows::Orphans, age).await?);
        }
        if let Some(age) = keep.retention_quarantine {
            all.push(self.rows(owner, "quarantine", Rows::Quarantine, age).await?);
        }
        if let Some(age) = keep.retention_events {
            all.push(self.events(owner, age).await?);
        }
        if let Some(age) = keep.retention_logs {
            let logs = owner.ago(age).await?;
            owner.move_horizon(None, Some(logs)).await?;
            let cutoff = owner.logs_from().await?;
            let done = self.rows_before(owner, Rows::Logs, cutoff, LetGo::new("logs", age, Weight::default())).await?;
            all.push(done);
        }
        Ok(all)
    }

    async fn rows(
        &mut self,
        owner: &mut Owner,
        class: &'static str,
        what: Rows,
        age: Duration,
    ) -> anyhow::Result<LetGo> {
        let cutoff = owner.ago(age).await?;
        self.rows_before(owner, what, cutoff, LetGo::new(class, age, Weight::default())).await
    }

    /// Removes rows, a round at a time: exported, read back, and only then removed.
    async fn rows_before(
        &mut self,
        owner: &mut Owner,
        what: Rows,
        cutoff: OffsetDateTime,
        mut done: LetGo,
    ) -> anyhow::Result<LetGo> {
        let (mut after, removal) = ((Uuid::nil(), Uuid::nil()), Uuid::now_v7());
        loop {
            let mut keys = Vec::new();
            let mut export = None;
            let (folder, name) = (self.export.clone(), format!("{}-{}", what.table(), Uuid::now_v7()));
            let round = (ROUND, folder.is_some());
            owner
                .read_doomed(what, cutoff, after, round, |doomed| {
                    keys.push(doomed.key);
                    if let (Some(folder), Some(json)) = (&folder, &doomed.json) {
                        let file = match &mut export {
                            Some(file) => file,
                            none => none.insert(Export::begin(folder, &name, what.table())?),
                        };
                        file.add(json)?;
                    }
                    Ok(())
                })
                .await?;
            let Some(last) = keys.last().copied() else { return Ok(done) };
            if let Some(export) = export {
                let manifest = export.finish()?;
                (self.tell)(format!("exported {} {} to {}", manifest.rows, what.as_str(), manifest.file));
                done.exports.push(manifest);
            }
            let removed = owner.remove(what, cutoff, removal, &keys).await?;
            done.rows += removed;
            (self.tell)(format!("removed {removed} {}", what.as_str()));
            after = last;
        }
    }

    /// The horizon first, so that nobody stores into what is about to go; then month after month, oldest first.
    async fn events(&mut self, owner: &mut Owner, age: Duration) -> anyhow::Result<LetGo> {
        let mut done = LetGo::new("events", age, Weight::default());
        let cutoff = owner.ago(age).await?;
        let horizon = owner.move_horizon(Some(cutoff), None).await?;
        owner.note_gone().await.context("cannot note which months are gone")?;
        rollup::catch_up(self.postgres).await?;
        for mut month in owner.months_before(horizon).await? {
            owner.detach(&mut month).await?;
            let (held, manifest) = self.export_month(owner, &month).await?;
            let exported = manifest.as_ref().map(|m| Exported { file: m.file.clone(), sha256: m.sha256.clone() });
            owner.drop_month(&month, held, exported.as_ref()).await?;
            (self.tell)(format!("dropped the events of {}: {} rows", month.name(), held.rows));
            done.rows += held.rows as u64;
            done.bytes += held.bytes as u64;
            done.months.push(month.name());
            done.exports.extend(manifest);
        }
        self.rows_before(owner, Rows::Events, horizon, done).await
    }

    async fn export_month(&mut self, owner: &mut Owner, month: &Month) -> anyhow::Result<(Weight, Option<Manifest>)> {
        let held = owner.weigh_month(month).await?;
        let Some(folder) = &self.export else { return Ok((held, None)) };
        let mut export = Export::begin(folder, &format!("email_events-{}", month.name()), "email_events")?;
        owner.read_month(month, |line| export.add(line)).await?;
        let manifest = export.finish()?;
        anyhow::ensure!(
            manifest.rows == held.rows as u64,
            "the export of {} holds {} of {} events: it was not dropped",
            month.name(),
            manifest.rows,
            held.rows
        );
        (self.tell)(format!("exported {} events of {} to {}", manifest.rows, month.name(), manifest.file));
        Ok((held, Some(manifest)))
    }
}

/// What a run would let go now, and how much it weighs. Changes nothing.
///
/// # Errors
/// If the database cannot be read.
pub async fn preview(postgres: &Postgres, keep: &Retention) -> anyhow::Result<Vec<LetGo>> {
    let mut owner = Owner::look(postgres).await?;
    let mut all = Vec::new();
    for (what, age) in keep.emptied() {
        let cutoff = owner.ago(age).await?;
        all.push(LetGo::new(what.as_str(), age, owner.weigh_emptied(what, cutoff).await?));
    }
    for (class, what, age) in [
        ("orphans", Rows::Orphans, keep.retention_orphans),
        ("quarantine", Rows::Quarantine, keep.retention_quarantine),
    ] {
        let Some(age) = age else { continue };
        let cutoff = owner.ago(age).await?;
        all.push(LetGo::new(class, age, owner.weigh(what, cutoff).await?));
    }
    if let Some(age) = keep.retention_events {
        let cutoff = owner.ago(age).await?;
        let horizon = first_of_month(cutoff);
        let mut done = LetGo::new("events", age, owner.weigh(Rows::Events, horizon).await?);
        for month in owner.months_before(horizon).await? {
            done.rows += month.weight.rows as u64;
            done.bytes += month.weight.bytes as u64;
            done.months.push(month.name());
        }
        all.push(done);
    }
    if let Some(age) = keep.retention_logs {
        let cutoff = owner.ago(age).await?;
        all.push(LetGo::new("logs", age, owner.weigh(Rows::Logs, cutoff).await?));
    }
    owner.end().await;
    Ok(all)
}

impl LetGo {
    fn new(class: &'static str, age: Duration, weight: Weight) -> Self {
        let (rows, bytes) = (weight.rows as u64, weight.bytes as u64);
        Self { class, older_than: age.as_secs(), rows, bytes, months: Vec::new(), exports: Vec::new() }
    }
}

fn first_of_month(at: OffsetDateTime) -> OffsetDateTime {
    let at = at.to_offset(time::UtcOffset::UTC);
    at.date().replace_day(1).map_or(at, |first| first.midnight().assume_utc())
}
