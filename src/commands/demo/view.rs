//! What the demo prints. Its mails are made up, so it may show them.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    commands::screen::{Screen, clock, grouped, listed, one_line},
    metrics::{Drift, Metrics},
    postgres::{answers::Timeline, audit::Differences},
};

/// The demo on the screen.
pub(super) struct View {
    pub(super) screen: Screen,
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
        Self { screen: Screen::new(json) }
    }

    pub(super) fn title(&self) {
        self.say(&format!("{}\n", self.screen.bold("ses-ledger demo: from SQS to an exact history in PostgreSQL")));
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
            if self.screen.terminal || finished || lines % 20 == 0 {
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
        self.screen.redraw(&line, finished);
    }

    /// What came in and what became of it.
    pub(super) fn summary(&self, summary: &Summary, metrics: &Metrics) -> io::Result<()> {
        if self.screen.json {
            return writeln!(io::stdout().lock(), "{}", as_json(summary, metrics));
        }
        let n = |counter: &prometheus_client::metrics::counter::Counter| grouped(counter.get());
        let rate = metrics.messages_received.get() as f64 / summary.took.as_secs_f64();
        self.say(&format!(
            "{}\n\n  {} messages received in {:.1} s ({:.0} a second: as fast as the demo sends)\n      \
             = {} stored + {} ignored (noise) + {} rejected + {} released + {} in hand\n  \
             {} events decoded, one per recipient\n      \
             = {} inserted + {} duplicate + {} orphaned + {} quarantined\n",
            self.screen.bold("What came in, and what became of it"),
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
                self.screen.green("exact.")
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
            self.screen.bold("One mail from beginning to end"),
            timeline.subject,
            timeline.recipients.join(", "),
            self.screen.bold(&timeline.status)
        ));
        for event in &timeline.events {
            let detail = event.detail.as_deref().map(|text| one_line(text, 30)).unwrap_or_default();
            self.say(format!("    {}  {:<17}  {detail}", clock(event.occurred_at), event.event_type).trim_end());
        }
        self.say("");
    }

    pub(super) fn keep(&self, program: &str, database_url: &str, queue_url: &str, page: SocketAddr) {
        self.say(&format!(
            "Everything is still running, until you press Ctrl-C. Look at it on a page:\n\n  \
             http://{page}/\n\nor with the commands, and psql:\n\n  \
             export DATABASE_URL='{database_url}'\n  export QUEUE_URL='{queue_url}'\n\n  \
             {program} status\n  {program} find\n  {program} quarantine list\n  \
             psql \"$DATABASE_URL\" -c 'TABLE recipient_timeline ORDER BY email_log_uuid DESC LIMIT 20'\n"
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
            self.screen.bold("Try next")
        ));
    }

    fn say(&self, text: &str) {
        self.screen.say(text);
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
