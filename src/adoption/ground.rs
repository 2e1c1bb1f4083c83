//! Where a page is done: in a transaction, or in the head.

use std::collections::HashMap;

use uuid::Uuid;

use super::{
    Counts,
    rows::{LogRow, Mail, Reason},
    seen::Seen,
};
use crate::{
    event::Event,
    pipeline::batch::Arrival,
    postgres::{
        Postgres,
        adoption::{self as tables, Page},
    },
};

/// A page in a transaction, or one that is only thought through.
pub(super) enum Ground<'a> {
    Real(Page),
    Rehearsed(&'a Postgres, &'a mut Rehearsal),
}

/// What would be there by now.
#[derive(Default)]
pub(super) struct Rehearsal {
    /// Key of the log row → its mail.
    mails: HashMap<String, Mail>,
    /// SES id → key of the log row.
    ids: HashMap<String, String>,
    seen: Seen,
    /// Kinds of events that a mail would have.
    known: HashMap<Uuid, Vec<String>>,
}

/// The mails of a page's rows.
pub(super) struct Mails {
    by_log: HashMap<String, Mail>,
    by_id: HashMap<String, Mail>,
}

impl Mails {
    /// The mail of a log row, else the one with this SES id.
    pub(super) fn of(&self, log_id: Option<&str>, message_id: Option<&str>) -> Option<&Mail> {
        log_id.and_then(|id| self.by_log.get(id)).or_else(|| self.by_id.get(message_id?))
    }
}

impl<'a> Ground<'a> {
    pub(super) async fn enter(
        postgres: &'a Postgres,
        rehearsal: Option<&'a mut Rehearsal>,
        source: &str,
        step: &str,
        position: Option<&[String]>,
    ) -> anyhow::Result<Self> {
        match rehearsal {
            Some(rehearsal) => Ok(Self::Rehearsed(postgres, rehearsal)),
            None => Ok(Self::Real(Page::begin(postgres, source, step, position).await?)),
        }
    }

    /// Makes it last. Without a position the run is finished.
    pub(super) async fn leave(
        self,
        source: &str,
        step: &str,
        position: Option<&[String]>,
        counts: &Counts,
        unmatched: &[(String, Reason)],
    ) -> anyhow::Result<()> {
        let Self::Real(mut page) = self else { return Ok(()) };
        if !unmatched.is_empty() {
            let rows: Vec<_> = unmatched.iter().map(|(id, reason)| (id.clone(), reason.as_str())).collect();
            page.note_unmatched(source, step, &rows).await?;
        }
        Ok(page.end(source, step, position, &serde_json::to_value(counts)?).await?)
    }

    /// Takes log rows. Returns what became of each, and how many mails here got their SES id.
    pub(super) async fn take_logs(
        &mut self,
        source: &str,
        logs: &[LogRow],
    ) -> anyhow::Result<(Vec<&'static str>, u64)> {
        let keys: Vec<&str> = logs.iter().map(|log| log.source_id.as_str()).collect();
        let known = match self {
            Self::Real(page) => page.known_logs(source, &keys).await?,
            Self::Rehearsed(postgres, _) => tables::known(postgres, source, &keys).await?,
        };
        // Of rows with the same SES id, the first is the mail.
        let mut first_with: HashMap<&str, usize> = HashMap::new();
        let mut first_of: Vec<Option<usize>> = vec![None; logs.len()];
        let mut new = Vec::new();
        for (n, log) in logs.iter().enumerate().filter(|(_, log)| !known.contains_key(&log.source_id)) {
            let first = log.message_id.as_ref().map_or(n, |id| *first_with.entry(id.as_str()).or_insert(n));
            first_of[n] = Some(first);
            if first == n {
                new.push(log);
            }
        }
        let found = match self {
            Self::Real(page) => page.adopt_logs(source, &new).await?,
            Self::Rehearsed(postgres, rehearsal) => {
                let found = tables::would_be(postgres, source, &new).await?;
                new.iter().zip(found).map(|(log, found)| rehearsal.log(log, found)).collect()
            }
        };
        let found: HashMap<&str, (&'static str, Uuid)> =
            new.iter().map(|log| log.source_id.as_str()).zip(found).collect();
        let mut outcomes = Vec::with_capacity(logs.len());
        let (mut notes, mut ids) = (Vec::new(), Vec::new());
        for (log, first) in logs.iter().zip(&first_of) {
            let (outcome, uuid) = match (known.get(&log.source_id), first) {
                // Adopted by an earlier run: it is there now.
                (Some((outcome, uuid)), _) => (if outcome == "collapsed" { "collapsed" } else { "there" }, *uuid),
                (None, Some(first)) => {
                    let (outcome, uuid) = found[logs[*first].source_id.as_str()];
                    let is_first = logs[*first].source_id == log.source_id;
                    let outcome = if is_first { outcome } else { "collapsed" };
                    if let (Self::Rehearsed(_, rehearsal), false) = (&mut *self, is_first) {
                        rehearsal.collapse(&log.source_id, &logs[*first].source_id);
                    }
                    notes.push((log.source_id.as_str(), outcome, uuid));
                    (outcome, uuid)
                }
                (None, None) => continue,
            };
            if let (Some(id), "there") = (&log.message_id, outcome) {
                ids.push((uuid, id.as_str()));
            }
            outcomes.push(outcome);
        }
        match self {
            Self::Real(page) => {
                page.note_logs(source, &notes).await?;
                Ok((outcomes, page.fill_ids(&ids).await?))
            }
            Self::Rehearsed(..) => Ok((outcomes, 0)),
        }
    }

    /// The mails of these log rows and with these SES ids.
    pub(super) async fn mails(
        &mut self,
        source: &str,
        mut log_ids: Vec<&str>,
        mut message_ids: Vec<&str>,
    ) -> anyhow::Result<Mails> {
        for ids in [&mut log_ids, &mut message_ids] {
            ids.sort_unstable();
            ids.dedup();
        }
        match self {
            Self::Real(page) => Ok(Mails {
                by_log: page.mails_of(source, &log_ids).await?,
                by_id: page.mails_with(&message_ids).await?,
            }),
            Self::Rehearsed(postgres, rehearsal) => {
                let [by_log, by_id] = tables::mails(postgres, source, &log_ids, &message_ids).await?;
                let mut mails = Mails { by_log, by_id };
                rehearsal.add_to(&mut mails, &log_ids, &message_ids);
                Ok(mails)
            }
        }
    }

    /// Takes events. Returns what became of each.
    pub(super) async fn take_events(
        &mut self,
        source: &str,
        step: &str,
        arrivals: &[Arrival],
    ) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Real(page) => Ok(page.store(source, step, arrivals).await?),
            Self::Rehearsed(postgres, rehearsal) => {
                let verdicts = tables::twins(postgres, arrivals).await?;
                let judge = |(verdict, arrival): (String, &Arrival)| rehearsal.event(verdict, &arrival.event);
                Ok(verdicts.into_iter().zip(arrivals).map(judge).collect())
            }
        }
    }
}

impl Rehearsal {
    fn log(&mut self, log: &LogRow, found: (&'static str, Uuid)) -> (&'static str, Uuid) {
        let id = log.message_id.as_ref().map(|id| id.as_str().to_owned());
        if found.0 != "adopted" {
            return found;
        }
        if let Some(first) = id.as_ref().and_then(|id| self.ids.get(id)).and_then(|key| self.mails.get(key)) {
            let first = first.clone();
            let uuid = first.uuid;
            self.mails.insert(log.source_id.clone(), first);
            return ("collapsed", uuid);
        }
        if let Some(id) = &id {
            self.ids.insert(id.clone(), log.source_id.clone());
        }
        let mail = Mail { uuid: log.uuid, message_id: id, recipients: log.recipients.clone(), known: Vec::new() };
        self.mails.insert(log.source_id.clone(), mail);
        found
    }

    /// A row that is the same mail as another.
    fn collapse(&mut self, key: &str, into: &str) {
        if let Some(mail) = self.mails.get(into).cloned() {
            self.mails.insert(key.to_owned(), mail);
        }
    }

    fn add_to(&self, mails: &mut Mails, log_ids: &[&str], message_ids: &[&str]) {
        for id in log_ids {
            if let (false, Some(mail)) = (mails.by_log.contains_key(*id), self.mails.get(*id)) {
                mails.by_log.insert((*id).to_owned(), mail.clone());
            }
        }
        for id in message_ids {
            let mail = self.ids.get(*id).and_then(|key| self.mails.get(key));
            if let (false, Some(mail)) = (mails.by_id.contains_key(*id), mail) {
                mails.by_id.insert((*id).to_owned(), mail.clone());
            }
        }
        for mail in mails.by_log.values_mut().chain(mails.by_id.values_mut()) {
            mail.known.extend(self.known.get(&mail.uuid).into_iter().flatten().cloned());
        }
    }

    fn event(&mut self, verdict: String, event: &Event) -> String {
        if let Some(mail) = event.log_uuid {
            let (known, kind) = (self.known.entry(mail).or_default(), event.kind.as_str());
            if !known.iter().any(|k| k == kind) {
                known.push(kind.to_owned());
            }
        }
        match verdict.as_str() {
            "adopted" if self.seen.has_twin(event) => "collapsed".to_owned(),
            "adopted" => {
                self.seen.note(event);
                if event.log_uuid.is_some() { verdict } else { "parked".to_owned() }
            }
            _ => verdict,
        }
    }
}
