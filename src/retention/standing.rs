//! Whether retention does what its settings say: for each class its setting, its last run, and whether that is overdue.

use std::{collections::BTreeSet, time::Duration};

use serde::Serialize;
use time::OffsetDateTime;

use super::Class;
use crate::{
    postgres::{
        letting_go::{OVERDUE, Past},
        pulse::WorkerSeen,
    },
    readable::span,
};

/// What `status` says of retention.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    pub classes: Vec<Kept>,
    /// Events of mails from before are let go; none: never any.
    #[serde(with = "time::serde::rfc3339::option")]
    pub events_from: Option<OffsetDateTime>,
    /// Mails from before are let go; none: never any.
    #[serde(with = "time::serde::rfc3339::option")]
    pub logs_from: Option<OffsetDateTime>,
    /// When a `retention run` began that has not come to its end, and is the newest.
    #[serde(with = "time::serde::rfc3339::option")]
    pub unfinished_run: Option<OffsetDateTime>,
}

/// What is known of one class.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    pub class: Class,
    /// Seconds after which it goes, as the workers say that are alive, or the one that was seen last; null: it is kept for
    /// ever. Several if they differ, none if nobody says.
    pub workers_say: BTreeSet<Option<u64>>,
    /// The same, as the last `retention run` had it that looked at this class.
    pub last_run_said: Option<u64>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ran_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Rows that were let go by what ended then.
    pub rows: Option<u64>,
    /// The workers say that it is let go, and nobody has done so for too long.
    pub overdue: bool,
    /// Seconds since somebody did, or could have for the first time.
    pub age_seconds: u64,
}

impl Standing {
    /// Puts together what workers say and what is written down.
    pub fn of(past: &Past, workers: &[WorkerSeen]) -> Self {
        let mut telling: Vec<&WorkerSeen> = workers.iter().filter(|worker| worker.alive).collect();
        if telling.is_empty() {
            telling.extend(workers.first());
        }
        let kept = |class| {
            let before = past.of(class);
            let workers_say: BTreeSet<_> = telling.iter().filter_map(|worker| says(worker, class)).collect();
            let is_on = workers_say.iter().any(Option::is_some);
            Kept {
                class,
                workers_say,
                last_run_said: before.older_than,
                ran_at: before.ran_at,
                ended_at: before.ended_at,
                rows: before.rows,
                overdue: is_on && before.age > OVERDUE,
                age_seconds: before.age.as_secs(),
            }
        };
        Self {
            classes: Class::ALL.into_iter().map(kept).collect(),
            events_from: past.events_from,
            logs_from: past.logs_from,
            unfinished_run: past.unfinished_run,
        }
    }

    /// What has not run for too long, each with what to do.
    pub fn needs(&self) -> Vec<String> {
        let overdue = |by_worker: bool| {
            let late = self.classes.iter().filter(move |kept| kept.overdue && kept.class.is_emptied() == by_worker);
            let names: Vec<&str> = late.clone().map(|kept| kept.class.as_str()).collect();
            let age = late.map(|kept| kept.age_seconds).max().unwrap_or_default();
            (names.join(", "), span(Duration::from_secs(age)))
        };
        let mut needs = Vec::new();
        let (emptied, age) = overdue(true);
        if !emptied.is_empty() {
            needs.push(format!(
                "no worker has emptied what is too old for {age} ({emptied}): see its log, then ses-ledger doctor"
            ));
        }
        let (removed, age) = overdue(false);
        if !removed.is_empty() {
            needs.push(format!(
                "nobody has removed what is too old for {age} ({removed}): schedule ses-ledger retention run"
            ));
        }
        needs
    }
}

/// The outer none: it does not say. One from before it said all tells of payloads alone.
fn says(worker: &WorkerSeen, class: Class) -> Option<Option<u64>> {
    match (&worker.retention, class) {
        (Some(all), _) => Some(all.get(class.as_str()).copied()),
        (None, Class::Payloads) => Some(worker.retention_payload_seconds.map(i64::unsigned_abs)),
        (None, _) => None,
    }
}
