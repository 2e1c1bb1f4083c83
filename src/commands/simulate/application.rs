//! The sending application and SES: they write log rows and publish, each in its turn.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::stage::Stage;
use crate::{
    local::story::{LogRow, Step, Story},
    postgres::{sender, simulation},
};

/// Who is so far behind makes the others wait: in log rows, in messages.
const MOST_ROWS_BEHIND: usize = 500;
const MOST_MESSAGES_BEHIND: usize = 100_000;

/// Log rows in one statement.
const ROWS_AT_ONCE: usize = 500;

/// How far the sending is.
#[derive(Default)]
pub(super) struct Sending {
    /// Messages that are in the queue.
    pub(super) sent: AtomicUsize,
    /// Log rows that are to be written.
    rows_behind: AtomicUsize,
    /// The database did not take the last rows: the application keeps them and goes on sending.
    keeps_rows: AtomicBool,
}

/// When each message was sent, since the Unix epoch, by its id. Empty for a queue that knows it itself.
pub(super) type SentAt = BTreeMap<String, Duration>;

/// Lets the story happen, evenly over `within`, or as fast as it goes.
pub(super) async fn perform(
    story: &Story,
    stage: &Stage,
    within: Duration,
    recipe: &serde_json::Value,
    sending: &Sending,
) -> anyhow::Result<SentAt> {
    let (rows, to_write) = mpsc::unbounded_channel();
    let (sent_at, ()) =
        tokio::try_join!(publish(story, stage, within, sending, rows), write_logs(stage, recipe, sending, to_write))?;
    Ok(sent_at)
}

async fn publish(
    story: &Story,
    stage: &Stage,
    within: Duration,
    sending: &Sending,
    rows: mpsc::UnboundedSender<LogRow>,
) -> anyhow::Result<SentAt> {
    let mut sent_at = SentAt::new();
    let (started, steps) = (Instant::now(), story.steps());
    let pause = within.as_secs_f64() / steps.len().max(1) as f64;
    let mut bodies = Vec::new();
    for (number, step) in steps.enumerate() {
        let due = Duration::from_secs_f64(pause * number as f64);
        let early = due.saturating_sub(started.elapsed()) > Duration::from_millis(5);
        // In tens, unless there is time.
        if bodies.len() == 10 || (early && !bodies.is_empty()) {
            send(stage, &mut bodies, sending, &mut sent_at).await?;
        }
        if early {
            sleep(due.saturating_sub(started.elapsed())).await;
        }
        match step {
            Step::WriteLog(row) => {
                // What was sent before the row was written is in the queue before it.
                send(stage, &mut bodies, sending, &mut sent_at).await?;
                sending.rows_behind.fetch_add(1, Ordering::Relaxed);
                rows.send(row).context("nobody writes the log rows any more")?;
            }
            Step::Publish(body) => bodies.push(body),
        }
        keep_together(stage, sending).await;
    }
    send(stage, &mut bodies, sending, &mut sent_at).await?;
    Ok(sent_at)
}

/// Waits for whoever is far behind, unless an outage is why.
async fn keep_together(stage: &Stage, sending: &Sending) {
    let rows = || sending.rows_behind.load(Ordering::Relaxed) > MOST_ROWS_BEHIND;
    while rows() && !sending.keeps_rows.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(1)).await;
    }
    while stage.backlog() > MOST_MESSAGES_BEHIND {
        sleep(Duration::from_millis(20)).await;
    }
}

async fn send(stage: &Stage, bodies: &mut Vec<String>, sending: &Sending, sent_at: &mut SentAt) -> anyhow::Result<()> {
    if bodies.is_empty() {
        return Ok(());
    }
    match &stage.embedded {
        Some(embedded) => {
            for body in bodies.iter() {
                embedded.queue.send(body);
            }
            tokio::task::yield_now().await;
        }
        None => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let ids = stage.sqs.send(bodies).await.context("cannot send to the queue")?;
            sent_at.extend(ids.into_iter().map(|id| (id, now)));
        }
    }
    sending.sent.fetch_add(bodies.len(), Ordering::Relaxed);
    bodies.clear();
    Ok(())
}

/// Writes the rows in their order. During an outage the application keeps them, as one with an outbox does.
async fn write_logs(
    stage: &Stage,
    recipe: &serde_json::Value,
    sending: &Sending,
    mut to_write: mpsc::UnboundedReceiver<LogRow>,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    while to_write.recv_many(&mut rows, ROWS_AT_ONCE).await > 0 {
        for row in &mut rows {
            if let Some(tags) = row.tags.as_object_mut() {
                tags.insert(simulation::TAG.to_owned(), recipe.clone());
            }
        }
        let since = Instant::now();
        loop {
            let written = timeout(Duration::from_secs(10), sender::write_logs(&stage.postgres, &rows)).await;
            let error = match written {
                Ok(Ok(())) => break,
                Ok(Err(e)) => e,
                Err(_) => anyhow::anyhow!("the database does not answer"),
            };
            // A database that nobody troubles has no excuse.
            if !stage.has_server || since.elapsed() > Duration::from_secs(600) {
                return Err(error);
            }
            sending.keeps_rows.store(true, Ordering::Relaxed);
            sleep(Duration::from_millis(100)).await;
        }
        sending.keeps_rows.store(false, Ordering::Relaxed);
        sending.rows_behind.fetch_sub(rows.len(), Ordering::Relaxed);
        rows.clear();
    }
    Ok(())
}
