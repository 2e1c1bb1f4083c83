//! What a simulation found, for people and as JSON. Its mails are made up, so it may show them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    time::Duration,
};

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Recipe,
    chaos::Done,
    scenario::Scenario,
    stage::Stage,
    workers::{Crew, Page, Record},
};
use crate::{
    commands::screen::{Screen, clock, grouped, one_line, wrapped},
    local::{
        sqs_endpoint::{Action, Calls},
        story::{Step, Story, Truth},
    },
    pipeline::decode::{DecodeSettings, Outcome, decode},
    postgres::audit::{Count, Explained, Findings, Presence},
};

/// Everything that is known at the end.
pub(super) struct Report {
    /// Plays the same again.
    pub(super) command: String,
    pub(super) scenario: Scenario,
    pub(super) recipe: Recipe,
    /// From the first message sent to the last one deleted.
    pub(super) took: Duration,
    /// Messages sent.
    pub(super) sent: usize,
    pub(super) expected: Truth,
    pub(super) planned_kills: usize,
    /// How many messages were how many milliseconds old at the end.
    pub(super) ages: BTreeMap<u64, u64>,
    pub(super) traffic: Traffic,
    /// What the workers counted.
    pub(super) counts: Page,
    pub(super) record: Record,
    pub(super) done: Done,
    pub(super) findings: Findings,
    /// The first mail that is not as it must be.
    pub(super) first: Option<Differing>,
}

/// A mail that is not as it must be, and the messages that told of it.
pub(super) struct Differing {
    pub(super) explained: Explained,
    pub(super) carriers: Vec<Carrier>,
}

/// A message that told of a mail.
pub(super) struct Carrier {
    /// Its place among all messages, from 1.
    number: usize,
    kind: String,
    occurred_at: OffsetDateTime,
    /// How it came.
    way: &'static str,
}

/// What went between workers and queue.
#[derive(Default)]
pub(super) struct Traffic {
    /// By the embedded queue's own count; else nothing of it is known.
    seen: Option<Seen>,
    /// Receives that brought messages, and the messages.
    full_receives: u64,
    received: u64,
    redelivered: u64,
}

struct Seen {
    handed_out: u64,
    deleted: u64,
    dead: u64,
    left: usize,
    most_receives: usize,
    receives: Calls,
    deletes: Calls,
    visibility: Calls,
}

/// What SQS takes for a request to a standard queue, in dollars.
const DOLLARS_PER_REQUEST: f64 = 0.40 / 1e6;

/// How much more memory in the last quarter is still flat: the allocator's to and fro.
const FLAT: f64 = 1.15;

/// Says what is about to happen.
pub(super) fn introduce(screen: &Screen, scenario: &Scenario, stage: &Stage, recipe: &Recipe, messages: usize) {
    let queue = if stage.embedded.is_some() { "embedded" } else { &stage.queue_url };
    let database = if stage.has_server { "a private PostgreSQL" } else { "yours; the rows are marked" };
    screen.say(&format!(
        "{}\n\n  queue      {queue}\n  database   {database}\n  workers    {}\n  sending    {} mails; SES reports them in {} messages\n",
        screen.bold(&format!("ses-ledger simulate {}, seed {}", scenario.name, recipe.seed)),
        if scenario.workers == 0 { "those of your own deployment".to_owned() } else { scenario.workers.to_string() },
        grouped(recipe.mails as u64),
        grouped(messages as u64),
    ));
}

/// The messages that told of this mail.
pub(super) fn carriers(story: &Story, moment: &str) -> Vec<Carrier> {
    let bodies = story.steps().filter_map(|step| match step {
        Step::Publish(body) => Some(body),
        Step::WriteLog(_) => None,
    });
    let mut carriers = Vec::new();
    for (number, body) in (1..).zip(bodies) {
        for leaf in decode(body.as_bytes(), OffsetDateTime::UNIX_EPOCH, &DecodeSettings::default()) {
            let Outcome::Event(event) = leaf.outcome else { continue };
            if event.message_id.as_str().get(4..16) != Some(moment) {
                continue;
            }
            let way = match (&event.source.sns_message_id, &event.source.eventbridge_id) {
                (Some(_), _) => "by SNS",
                (None, Some(_)) => "by EventBridge",
                (None, None) => "raw",
            };
            let (kind, occurred_at) = (event.kind.as_str().to_owned(), event.occurred_at);
            carriers.push(Carrier { number, kind, occurred_at, way });
        }
    }
    carriers
}

impl Traffic {
    pub(super) fn of(stage: &Stage, crew: &Crew) -> Self {
        let counts = crew.counts();
        let seen = stage.embedded.as_ref().map(|embedded| {
            let (totals, left) = (embedded.queue.totals(), embedded.queue.counts());
            let calls = |one, batch| {
                let (one, batch) = (embedded.endpoint.calls(one), embedded.endpoint.calls(batch));
                Calls { requests: one.requests + batch.requests, billed: one.billed + batch.billed, ..batch }
            };
            Seen {
                handed_out: totals.received,
                deleted: totals.deleted,
                dead: embedded.dead_letters.totals().sent,
                left: left.visible + left.in_flight + left.delayed,
                most_receives: embedded.queue.max_receive_count(),
                receives: embedded.endpoint.calls(Action::ReceiveMessage),
                deletes: calls(Action::DeleteMessage, Action::DeleteMessageBatch),
                visibility: calls(Action::ChangeMessageVisibility, Action::ChangeMessageVisibilityBatch),
            }
        });
        let redelivered = match &stage.embedded {
            Some(embedded) => embedded.queue.totals().redelivered,
            None => counts.get("messages_redelivered_total"),
        };
        Self {
            seen,
            full_receives: counts.get("messages_per_receive_count"),
            received: counts.get("messages_received_total"),
            redelivered,
        }
    }

    /// Requests on the bill, as far as they are known: receives, deletes, changes of visibility.
    fn billed(&self, counts: &Page) -> [u64; 3] {
        match &self.seen {
            Some(seen) => [seen.receives.billed, seen.deletes.billed, seen.visibility.billed],
            None => {
                let receives =
                    ["messages", "empty", "failed"].map(|result| format!("receives_total{{result=\"{result}\"}}"));
                let receives = receives.iter().map(|name| counts.get(name)).sum();
                [receives, counts.get("messages_deleted_total").div_ceil(10), 0]
            }
        }
    }
}

impl Report {
    /// Everything is as it must be.
    pub(super) fn holds(&self) -> bool {
        self.promises().iter().all(|(_, holds)| *holds)
    }

    /// What must hold, and whether it does.
    fn promises(&self) -> Vec<(String, bool)> {
        let mut promises = vec![
            ("every row, fact and status is what it must be".to_owned(), self.findings.differences.count == 0),
            ("every page of the workers' metrics adds up".to_owned(), self.record.pages_with_drift == 0),
            ("no worker ended by itself".to_owned(), self.record.died.is_empty()),
            ("no message came again by the workers' doing".to_owned(), self.redelivered_by_workers() == 0),
        ];
        if let Some(seen) = &self.traffic.seen {
            promises.push(("the queue is empty".to_owned(), seen.left == 0));
            promises.push(("no message became a dead letter".to_owned(), seen.dead == 0));
        }
        if self.planned_kills > 0 {
            let text = format!("{} workers were killed at work", self.planned_kills);
            promises.push((text, self.done.kills_under_load >= self.planned_kills));
        }
        if let (true, Some((first, last))) = (self.scenario.flat_memory, self.memory()) {
            promises.push(("the workers' memory stays flat".to_owned(), last <= first * FLAT));
        }
        promises
    }

    /// Messages that came again, less those that a killed worker may have held.
    fn redelivered_by_workers(&self) -> u64 {
        self.traffic.redelivered.saturating_sub(self.done.hit)
    }

    /// Resident memory in MiB: the means of the first and of the last quarter, after a tenth to warm up.
    fn memory(&self) -> Option<(f64, f64)> {
        let samples = &self.record.memory;
        let warm = &samples[samples.len() / 10..];
        let quarter = warm.len() / 4;
        let mean = |part: &[(Duration, u64)]| {
            (!part.is_empty())
                .then(|| part.iter().map(|(_, kib)| *kib as f64).sum::<f64>() / part.len() as f64 / 1024.0)
        };
        Some((mean(&warm[..quarter])?, mean(&warm[warm.len() - quarter..])?))
    }

    pub(super) fn print(&self, screen: &Screen) -> anyhow::Result<()> {
        if screen.json {
            return Ok(writeln!(io::stdout().lock(), "{}", self.as_json())?);
        }
        screen.say(&format!("\n{}\n", screen.bold("What came in, and what became of it")));
        screen.say(&self.flow());
        screen.say(&format!("{}\n", screen.bold("What there must be, and what there is")));
        screen.say(&self.tables());
        screen.say(&format!("{}\n", screen.bold("How")));
        screen.say(&self.figures());
        self.verdict(screen);
        Ok(())
    }

    fn flow(&self) -> String {
        let n = |name: &str| grouped(self.counts.get(name));
        let mut text = String::new();
        if let Some(seen) = &self.traffic.seen {
            let _ = write!(
                text,
                "  {} messages sent = {} deleted + {} dead letters + {} left\n  {} copies handed out; {} came again, {} of these by the workers' doing\n",
                grouped(self.sent as u64),
                grouped(seen.deleted),
                grouped(seen.dead),
                grouped(seen.left as u64),
                grouped(seen.handed_out),
                grouped(self.traffic.redelivered),
                grouped(self.redelivered_by_workers()),
            );
        } else {
            let _ = writeln!(text, "  {} messages sent", grouped(self.sent as u64));
        }
        if self.scenario.workers == 0 {
            return text;
        }
        let killed = if self.record.killed > 0 { " (of the killed ones as last asked)" } else { "" };
        let _ = write!(
            text,
            "  {} received by the workers{killed}\n      = {} stored + {} ignored (noise) + {} rejected + {} released + {} in hand\n  \
             {} events decoded, one per recipient\n      = {} inserted + {} duplicate + {} orphaned + {} quarantined\n  \
             both sums hold on {} of {} pages of the workers' metrics\n",
            n("messages_received_total"),
            n("messages_stored_total"),
            n("messages_ignored_total"),
            n("messages_rejected_total"),
            n("messages_released_total"),
            n("messages_in_hand"),
            n("events_decoded_total"),
            n("events_inserted_total"),
            n("events_duplicate_total"),
            n("events_orphaned_total"),
            n("events_quarantined_total"),
            grouped((self.record.pages - self.record.pages_with_drift) as u64),
            grouped(self.record.pages as u64),
        );
        text
    }

    fn tables(&self) -> String {
        let mut text = format!("  {:<36} {:>10} {:>10}\n", "", "expected", "found");
        let findings = &self.findings;
        table(&mut text, "events", &findings.events);
        table(&mut text, "events of mails that nobody knows", &findings.orphans);
        table(&mut text, "mails by status", &findings.mails);
        let wrong = Count { expected: 0, found: findings.wrong_mails };
        line(&mut text, "  with a wrong fact or status", &wrong);
        table(&mut text, "bodies in quarantine", &findings.quarantine);
        text
    }

    fn figures(&self) -> String {
        let mut text = String::new();
        let events = self.expected.events.max(1) as f64;
        let rate = self.sent as f64 / self.took.as_secs_f64().max(0.001);
        let _ =
            writeln!(text, "  time       {:.1} s: {} messages a second", self.took.as_secs_f64(), grouped(rate as u64));
        let until = if self.traffic.seen.is_some() { "deleted" } else { "stored" };
        let lag = |percent| grouped(percentile(&self.ages, percent));
        let _ = writeln!(
            text,
            "  lag        ms from sent to {until}: p50 {}, p95 {}, p99 {}, max {}",
            lag(0.5),
            lag(0.95),
            lag(0.99),
            lag(1.0)
        );
        if let Some([receives, deletes]) = self.fill() {
            let _ = writeln!(
                text,
                "  fill       {receives:.1} of 10 messages per receive that brought any, {deletes:.1} per delete"
            );
        }
        if self.scenario.workers > 0 {
            let [receives, deletes, visibility] = self.traffic.billed(&self.counts);
            let dollars = (receives + deletes + visibility) as f64 * DOLLARS_PER_REQUEST / events * 1e6;
            let _ = writeln!(
                text,
                "  cost       ${dollars:.2} per million events: {} receives, {} deletes, {} visibility",
                grouped(receives),
                grouped(deletes),
                grouped(visibility)
            );
            let _ = writeln!(text, "  workers    {}", self.lives());
        }
        match self.memory() {
            Some((first, last)) if self.scenario.flat_memory => {
                let _ = writeln!(text, "  memory     {first:.1} MiB in the first quarter, {last:.1} MiB in the last");
            }
            None if self.scenario.flat_memory => text.push_str("  memory     not known: there is no /proc here\n"),
            _ => {}
        }
        let done = &self.done;
        let mut troubles = Vec::new();
        for (times, what) in [(done.cuts, "cut"), (done.restarts, "restarted"), (done.crashes, "crashed")] {
            if times > 0 {
                troubles.push(format!("{what} {}", in_times(times as u64)));
            }
        }
        if !done.away.is_zero() {
            troubles.push(format!("away for {:?}", done.away));
        }
        if !troubles.is_empty() {
            let _ = writeln!(text, "  database   {}", troubles.join(", "));
        }
        if self.record.stood_still > Duration::from_secs(1) {
            let _ = writeln!(
                text,
                "  machine    stood still for up to {:.1} s: what is late or came again may be due to that",
                self.record.stood_still.as_secs_f64()
            );
        }
        if let Some(seen) = &self.traffic.seen {
            let faults = seen.receives.faults + seen.deletes.faults + seen.visibility.faults;
            if faults > 0 || seen.most_receives > 1 {
                let _ = writeln!(
                    text,
                    "  queue      {} requests failed on purpose; a message was received {} at most",
                    grouped(faults),
                    in_times(seen.most_receives as u64)
                );
            }
        }
        text
    }

    fn lives(&self) -> String {
        let (record, done) = (&self.record, &self.done);
        let mut text = format!("{} started", record.started);
        if record.killed > 0 {
            let _ =
                write!(text, ", {} killed ({} while messages were in flight)", record.killed, done.kills_under_load);
        }
        for words in &record.died {
            let _ = write!(text, "\n{}", wrapped("             one ", &one_line(words, 400)));
        }
        text
    }

    /// Messages per receive that brought any, and per delete.
    fn fill(&self) -> Option<[f64; 2]> {
        let seen = self.traffic.seen.as_ref()?;
        let ratio = |many: u64, requests: u64| many as f64 / requests.max(1) as f64;
        // Two requests of each worker only try its permissions.
        let batches = seen.deletes.requests.saturating_sub(self.record.started as u64);
        Some([ratio(self.traffic.received, self.traffic.full_receives), ratio(seen.deletes.entries, batches)])
    }

    fn verdict(&self, screen: &Screen) {
        if self.holds() {
            screen.say(&format!(
                "  {} Every row, fact and status is what it must be.\n         Nothing is lost, nothing is doubled.\n",
                screen.green("exact."),
            ));
            screen.say(&wrapped("  The same again: ", &self.command));
            return;
        }
        screen.say(&format!("  {}", screen.red("NOT AS IT MUST BE. These do not hold:")));
        for (promise, _) in self.promises().iter().filter(|(_, holds)| !holds) {
            screen.say(&format!("    {promise}"));
        }
        let differences = &self.findings.differences;
        if differences.count > 0 {
            screen.say(&format!("\n  {} differences. The first:", grouped(differences.count as u64)));
        }
        for difference in &differences.described {
            screen.say(&wrapped("    ", &one_line(difference, 400)));
        }
        if let Some(first) = &self.first {
            screen.say(&format!("\n  {}\n", screen.bold("The first mail that is not as it must be")));
            screen.say(first.in_words().trim_end());
        }
        screen.say(&wrapped("\n  The same again: ", &self.command));
    }

    fn as_json(&self) -> Value {
        let n = |name: &str| self.counts.get(name);
        let counts = |counts: &BTreeMap<String, Count>| -> Value {
            counts.iter().map(|(name, n)| (name.clone(), json!({ "expected": n.expected, "found": n.found }))).collect()
        };
        let findings = &self.findings;
        let [receives, deletes, visibility] = self.traffic.billed(&self.counts);
        let dollars =
            (receives + deletes + visibility) as f64 * DOLLARS_PER_REQUEST / self.expected.events.max(1) as f64;
        let seen = self.traffic.seen.as_ref();
        json!({
            "scenario": self.scenario.name,
            "seed": self.recipe.seed,
            "mails": self.recipe.mails,
            "replay": self.command,
            "holds": self.holds(),
            "promises": self.promises().into_iter().collect::<BTreeMap<_, _>>(),
            "seconds": self.took.as_secs_f64(),
            "messages": {
                "sent": self.sent,
                "handed_out": seen.map(|seen| seen.handed_out),
                "deleted": seen.map(|seen| seen.deleted),
                "dead_letters": seen.map(|seen| seen.dead),
                "left": seen.map(|seen| seen.left),
                "most_receives": seen.map(|seen| seen.most_receives),
                "redelivered": self.traffic.redelivered,
                "redelivered_by_workers": self.redelivered_by_workers(),
            },
            "workers": {
                "started": self.record.started,
                "killed": self.record.killed,
                "killed_under_load": self.done.kills_under_load,
                "died": self.record.died,
                "pages": self.record.pages,
                "pages_with_drift": self.record.pages_with_drift,
                "received": n("messages_received_total"),
                "stored": n("messages_stored_total"),
                "ignored": n("messages_ignored_total"),
                "rejected": n("messages_rejected_total"),
                "released": n("messages_released_total"),
                "in_hand": n("messages_in_hand"),
                "decoded": n("events_decoded_total"),
                "inserted": n("events_inserted_total"),
                "duplicate": n("events_duplicate_total"),
                "orphaned": n("events_orphaned_total"),
                "quarantined": n("events_quarantined_total"),
                "store_retries": n("store_retries_total"),
                "memory_mib": self.memory().map(|(first, last)| json!({ "first_quarter": first, "last_quarter": last })),
            },
            "events": counts(&findings.events),
            "orphans": counts(&findings.orphans),
            "statuses": counts(&findings.mails),
            "wrong_mails": findings.wrong_mails,
            "quarantine": counts(&findings.quarantine),
            "lag_ms": {
                "until": if seen.is_some() { "deleted" } else { "stored" },
                "p50": percentile(&self.ages, 0.5),
                "p95": percentile(&self.ages, 0.95),
                "p99": percentile(&self.ages, 0.99),
                "max": percentile(&self.ages, 1.0),
            },
            "fill": self.fill().map(|[receive, delete]| json!({ "receive": receive, "delete": delete })),
            "stood_still_seconds": self.record.stood_still.as_secs_f64(),
            "requests": { "receive": receives, "delete": deletes, "visibility": visibility },
            "dollars_per_million_events": dollars * 1e6,
            "troubles": {
                "cuts": self.done.cuts,
                "restarts": self.done.restarts,
                "crashes": self.done.crashes,
                "away_seconds": self.done.away.as_secs_f64(),
                "failed_requests": seen.map(|seen| seen.receives.faults + seen.deletes.faults + seen.visibility.faults),
            },
            "differences": { "count": findings.differences.count, "first": findings.differences.described },
            "first_differing_mail": self.first.as_ref().map(Differing::as_json),
        })
    }
}

impl Differing {
    fn in_words(&self) -> String {
        let mail = &self.explained;
        let none = || "no log row".to_owned();
        let mut text = format!(
            "    SES id     {}\n    log row    {}\n{}\n{}\n",
            mail.aws_message_id.as_deref().unwrap_or("nobody has reported it"),
            mail.log_uuid.map_or_else(none, |uuid| uuid.to_string()),
            wrapped("    expected   ", &mail.expected.clone().unwrap_or_else(none)),
            wrapped("    found      ", &mail.found.clone().unwrap_or_else(none)),
        );
        for (key, presence) in &mail.events {
            let link = key.link.as_deref().map(|link| one_line(link, 20)).unwrap_or_default();
            let line = format!("    {:<17} {:<17} {} {link}", in_a_word(*presence), key.kind, key.recipient);
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text.push_str("    told by\n");
        for carrier in &self.carriers {
            let _ = writeln!(
                text,
                "      message {:<7} {:<17} {} {}",
                grouped(carrier.number as u64),
                carrier.kind,
                clock(carrier.occurred_at),
                carrier.way
            );
        }
        text
    }

    fn as_json(&self) -> Value {
        let mail = &self.explained;
        let events = mail.events.iter().map(|(key, presence)| {
            json!({ "kind": key.kind, "recipient": key.recipient, "link": key.link, "is": in_a_word(*presence) })
        });
        let carriers = self.carriers.iter().map(|carrier| {
            json!({
                "message": carrier.number,
                "kind": carrier.kind,
                "occurred_at": clock(carrier.occurred_at),
                "way": carrier.way,
            })
        });
        json!({
            "aws_message_id": mail.aws_message_id,
            "log_uuid": mail.log_uuid.map(|uuid| uuid.to_string()),
            "expected": mail.expected,
            "found": mail.found,
            "events": events.collect::<Vec<_>>(),
            "told_by": carriers.collect::<Vec<_>>(),
        })
    }
}

fn in_times(n: u64) -> String {
    if n == 1 { "once".to_owned() } else { format!("{} times", grouped(n)) }
}

fn in_a_word(presence: Presence) -> &'static str {
    match presence {
        Presence::Right => "right",
        Presence::Missing => "missing",
        Presence::StillOrphaned => "still an orphan",
        Presence::Unexpected => "must not be there",
    }
}

fn table(text: &mut String, title: &str, rows: &BTreeMap<String, Count>) {
    let total = rows.values().fold(Count::default(), |sum, row| Count {
        expected: sum.expected + row.expected,
        found: sum.found + row.found,
    });
    line(text, title, &total);
    rows.iter().for_each(|(name, row)| line(text, &format!("  {name}"), row));
}

fn line(text: &mut String, title: &str, row: &Count) {
    let wrong = if row.expected == row.found { "" } else { "  <--" };
    let (expected, found) = (grouped(row.expected as u64), grouped(row.found as u64));
    let _ = writeln!(text, "  {title:<36} {expected:>10} {found:>10}{wrong}");
}

/// The smallest age that so large a share of the messages does not exceed.
fn percentile(ages: &BTreeMap<u64, u64>, share: f64) -> u64 {
    let wanted = (ages.values().sum::<u64>() as f64 * share).ceil() as u64;
    let mut seen = 0;
    let found = ages.iter().find(|(_, times)| {
        seen += **times;
        seen >= wanted
    });
    found.map_or(0, |(millis, _)| *millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_an_age_that_so_many_do_not_exceed() {
        let ages = BTreeMap::from([(10, 50), (20, 45), (300, 4), (4_000, 1)]);
        let of = |share| percentile(&ages, share);
        assert_eq!([of(0.5), of(0.51), of(0.95), of(0.99), of(1.0)], [10, 20, 20, 300, 4_000]);
        assert_eq!(percentile(&BTreeMap::new(), 0.5), 0);
    }
}
