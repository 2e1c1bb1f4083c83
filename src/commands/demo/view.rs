//! What the demo prints. Its mails are made up, so it may show them.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use time::{OffsetDateTime, macros::format_description};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    local::binaries::Progress,
    metrics::{Drift, Metrics},
    postgres::{answers::Timeline, audit::Differences},
};

/// Prints to standard output; with JSON wanted there, to standard error.
pub(super) struct View {
    json: bool,
    /// Redraws its progress line, and uses bold and colour.
    terminal: bool,
}

/// What there is to say at the end.
pub(super) struct Summary {
    pub(super) took: Duration,
    pub(super) orphans_left: i64,
    pub(super) quarantine: Vec<(String, i64)>,
    pub(super) statuses: Vec<(String, i64)>,
    pub(super) timeline: Option<Timeline>,
    pub(super) differences: Differences,
    pub(super) drift: Drift,
}

impl Summary {
    /// The database holds what it must hold, and the worker's counts add up.
    pub(super) fn is_exact(&self) -> bool {
        self.differences.count == 0 && self.drift == Drift { messages: 0, events: 0 }
    }
}

impl View {
    pub(super) fn new(json: bool) -> Self {
        let terminal = if json { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        Self { json, terminal }
    }

    pub(super) fn title(&self) {
        self.say(&format!("{}\n", self.bold("ses-ledger demo: from SQS to an exact history in PostgreSQL")));
    }

    pub(super) fn queue(&self, url: &str, embedded: bool) {
        let which = if embedded { "embedded; speaks the SQS protocol, to the real AWS SDK" } else { "yours" };
        self.say(&format!("  queue      {which}\n             {url}"));
    }

    pub(super) fn database(&self, whose: &str, server: &str) {
        self.say(&format!("  database   {whose}, migrated\n             {server}\n"));
    }

    pub(super) fn story(&self, mails: usize, messages: usize) {
        self.say(&format!(
            "Sending {} mails. SES reports them in {} messages: wrapped by SNS, raw, from\n\
             EventBridge; some twice, some out of order, some before their log row is\n\
             written, some for mails that nobody knows, some malformed.\n",
            grouped(mails as u64),
            grouped(messages as u64)
        ));
    }

    /// Shows how the download of PostgreSQL goes, if there is one.
    pub(super) fn download(&self) -> Progress {
        let (terminal, shown) = (self.terminal, std::sync::atomic::AtomicU64::new(u64::MAX));
        Arc::new(move |bytes, total| {
            let percent = bytes * 100 / total.max(1);
            // Once per percent on a terminal, once per quarter elsewhere.
            let step = if terminal { percent } else { percent / 25 };
            if shown.swap(step, std::sync::atomic::Ordering::Relaxed) != step {
                let end = if terminal && percent < 100 { "\r" } else { "\n" };
                eprint!(
                    "  database   no PostgreSQL here: downloading one, {percent} % of {} MB{end}",
                    total / 1_000_000
                );
            }
        })
    }

    /// Follows the worker until it has handled everything that was sent.
    pub(super) async fn follow(
        &self,
        metrics: &Metrics,
        messages: usize,
        sent: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut lines = 0;
        loop {
            let done = metrics.messages_stored.get() + metrics.messages_ignored.get() + metrics.messages_rejected.get();
            let finished = sent.is_cancelled()
                && metrics.messages_deleted.get() >= messages as u64
                && metrics.messages_in_hand.get() == 0;
            // A terminal is redrawn; a file gets a line every two seconds.
            if self.terminal || finished || lines % 20 == 0 {
                self.progress(metrics, done, messages, finished);
            }
            if finished {
                self.say("");
                return Ok(());
            }
            lines += 1;
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn progress(&self, metrics: &Metrics, done: u64, messages: usize, finished: bool) {
        // Fits into 80 columns: a line that wraps cannot be redrawn.
        let line = format!(
            "  {:>3} %   inserted {}   duplicate {}   orphaned {}   rejected {}",
            (done as usize * 100 / messages.max(1)).min(100),
            grouped(metrics.events_inserted.get()),
            grouped(metrics.events_duplicate.get()),
            grouped(metrics.events_orphaned.get()),
            grouped(metrics.messages_rejected.get()),
        );
        match self.terminal && !finished {
            true => self.write(&format!("\r{line}")),
            false if self.terminal => self.say(&format!("\r{line}")),
            false => self.say(&line),
        }
    }

    /// What came in and what became of it.
    pub(super) fn summary(&self, summary: &Summary, metrics: &Metrics) -> io::Result<()> {
        if self.json {
            return writeln!(io::stdout().lock(), "{}", as_json(summary, metrics));
        }
        let n = |counter: &prometheus_client::metrics::counter::Counter| grouped(counter.get());
        let rate = metrics.messages_received.get() as f64 / summary.took.as_secs_f64();
        self.say(&format!(
            "{}\n\n  {} messages received in {:.1} s ({:.0} a second: as fast as the demo sends)\n      \
             = {} stored + {} ignored (noise) + {} rejected + {} released + {} in hand\n  \
             {} events decoded, one per recipient\n      \
             = {} inserted + {} duplicate + {} orphaned + {} quarantined\n",
            self.bold("What came in, and what became of it"),
            n(&metrics.messages_received),
            summary.took.as_secs_f64(),
            rate,
            n(&metrics.messages_stored),
            n(&metrics.messages_ignored),
            n(&metrics.messages_rejected),
            n(&metrics.messages_released),
            metrics.messages_in_hand.get(),
            n(&metrics.events_decoded),
            n(&metrics.events_inserted),
            n(&metrics.events_duplicate),
            n(&metrics.events_orphaned),
            n(&metrics.events_quarantined),
        ));
        self.say(&format!(
            "  orphaned     {} attached when their log row appeared;\n               {} still wait for a mail that nobody knows",
            n(&metrics.orphans_attached),
            grouped(summary.orphans_left as u64),
        ));
        self.say(&listed("quarantine", &summary.quarantine));
        self.say(&format!("{}\n", listed("mails", &summary.statuses)));
        self.verdict(summary);
        if let Some(timeline) = &summary.timeline {
            self.timeline(timeline);
        }
        Ok(())
    }

    fn verdict(&self, summary: &Summary) {
        if summary.is_exact() {
            self.say(&format!(
                "  {} Every row, fact and status is what it must be.\n         Nothing is lost, nothing is doubled.\n",
                self.green("exact.")
            ));
            return;
        }
        self.say(&format!(
            "  NOT EXACT: {} differences, drift {:?}. Please report this.",
            summary.differences.count, summary.drift
        ));
        for difference in &summary.differences.described {
            self.say(&format!("    {difference}"));
        }
        self.say("");
    }

    fn timeline(&self, timeline: &Timeline) {
        self.say(&format!(
            "{}\n\n  \"{}\" to {}: {}",
            self.bold("One mail from beginning to end"),
            timeline.subject,
            timeline.recipients.join(", "),
            self.bold(&timeline.status)
        ));
        for event in &timeline.events {
            let detail = event.detail.as_deref().map(one_line).unwrap_or_default();
            self.say(format!("    {}  {:<17}  {detail}", clock(event.occurred_at), event.event_type).trim_end());
        }
        self.say("");
    }

    pub(super) fn keep(&self, database_url: &str, queue_url: &str) {
        self.say(&format!(
            "Everything is still running, until you press Ctrl-C:\n\n  \
             export DATABASE_URL='{database_url}'\n  export QUEUE_URL='{queue_url}'\n\n  \
             psql \"$DATABASE_URL\" -c 'TABLE recipient_timeline ORDER BY email_log_uuid DESC LIMIT 20'\n  \
             psql \"$DATABASE_URL\" -c 'TABLE quarantine_failures'\n"
        ));
    }

    pub(super) fn next_steps(&self, program: &str) {
        self.say(&format!(
            "{}\n\n  \
             {program} demo --keep         look around yourself\n  \
             {program} demo --mails 5000   more of it\n  \
             {program} decode FILE         what becomes of a message body\n  \
             {program} migrate up          set up your own database, then\n  \
             {program} run --help          run the worker: every setting",
            self.bold("Try next")
        ));
    }

    fn say(&self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    /// A reader who has gone away is no reason to stop.
    fn write(&self, text: &str) {
        let _ = match self.json {
            true => io::stderr().write_all(text.as_bytes()),
            false => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
        };
    }

    fn bold(&self, text: &str) -> String {
        if self.terminal { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn green(&self, text: &str) -> String {
        if self.terminal { format!("\x1b[1;32m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn as_json(summary: &Summary, metrics: &Metrics) -> serde_json::Value {
    let pairs = |pairs: &[(String, i64)]| pairs.iter().cloned().collect::<std::collections::BTreeMap<_, _>>();
    json!({
        "exact": summary.is_exact(),
        "seconds": summary.took.as_secs_f64(),
        "messages": {
            "received": metrics.messages_received.get(),
            "stored": metrics.messages_stored.get(),
            "ignored": metrics.messages_ignored.get(),
            "rejected": metrics.messages_rejected.get(),
            "released": metrics.messages_released.get(),
            "in_hand": metrics.messages_in_hand.get(),
        },
        "events": {
            "decoded": metrics.events_decoded.get(),
            "inserted": metrics.events_inserted.get(),
            "duplicate": metrics.events_duplicate.get(),
            "orphaned": metrics.events_orphaned.get(),
            "quarantined": metrics.events_quarantined.get(),
        },
        "orphans": { "attached": metrics.orphans_attached.get(), "left": summary.orphans_left },
        "quarantine": pairs(&summary.quarantine),
        "mails": pairs(&summary.statuses),
        "differences": summary.differences.described,
    })
}

/// `  mails        12 delivered, 3 bounced`, wrapped at 80 columns.
fn listed(title: &str, pairs: &[(String, i64)]) -> String {
    let mut text = format!("  {title:<12}");
    let mut column = text.len();
    for (n, (name, count)) in pairs.iter().enumerate() {
        let end = if n + 1 < pairs.len() { "," } else { "" };
        let word = format!("{} {name}{end}", grouped(*count as u64));
        if column + 1 + word.len() > 80 {
            text.push_str("\n              ");
            column = 14;
        }
        text.push(' ');
        text.push_str(&word);
        column += 1 + word.len();
    }
    if pairs.is_empty() { text + "  nothing" } else { text }
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn clock(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]");
    at.format(format).unwrap_or_default()
}

/// What fits beside a timestamp and a kind on a terminal of 80 columns.
fn one_line(text: &str) -> String {
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match flat.char_indices().nth(30) {
        Some((end, _)) => format!("{}…", &flat[..end]),
        None => flat,
    }
}
