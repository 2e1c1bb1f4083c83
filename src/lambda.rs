//! The same decode, batch and store behind Lambda's event source mapping.
//!
//! There Lambda receives the messages and, after the answer, deletes all that the answer does not name as failed. So each
//! invocation is a queue of its own that comes to an end: `Handed` hands out its messages, and what was not deleted from
//! it is what the answer names. Nothing is kept between invocations but the connections, and what was counted.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow, bail};
use futures_util::{FutureExt as _, TryFutureExt as _};
use lambda_runtime::{LambdaEvent, service_fn};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use crate::{
    cli::SHADOW_SUFFIX,
    metrics::{Metrics, emf::Emf},
    pipeline::{
        self, PipelineSettings, Queue, QueueError, Shutdown, Worker,
        ack::Deleted,
        receive::{Delivery, Receipt},
        store::Committed,
    },
    postgres::{Postgres, schema},
    pulse::{Identity, Pulse},
    upkeep::{self, UpkeepSettings},
};

/// What is left of an invocation's time when it stops storing, to answer with what it has: a fifth of it, at most this.
const TO_ANSWER: Duration = Duration::from_secs(2);

/// A function that stores what it is invoked with.
pub struct Function {
    postgres: Postgres,
    pipeline: PipelineSettings,
    upkeep: UpkeepSettings,
    metrics: Arc<Metrics>,
    /// One beat at a time.
    pulse: tokio::sync::Mutex<Pulse>,
    emf: Option<Emf>,
    /// Only queues of copies are its business.
    shadow: bool,
    /// The schema was looked at, and is what we need.
    checked: OnceCell<()>,
}

/// What a function answers to an event source mapping: the messages that are to come again. All others are deleted.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    pub batch_item_failures: Vec<FailedItem>,
}

/// A message that is to come again.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedItem {
    pub item_identifier: String,
}

/// What an event source mapping of SQS invokes with.
#[derive(Deserialize)]
struct SqsEvent {
    #[serde(rename = "Records")]
    records: Vec<Record>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    message_id: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    attributes: Attributes,
    #[serde(rename = "eventSourceARN")]
    queue_arn: Arc<str>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attributes {
    approximate_receive_count: Option<String>,
    sent_timestamp: Option<String>,
}

impl Function {
    /// Connects nothing yet. A shadow takes no queue whose name does not end in `-shadow`.
    pub fn new(
        postgres: Postgres,
        pipeline: PipelineSettings,
        upkeep: UpkeepSettings,
        identity: Identity,
        emf: Option<Emf>,
        shadow: bool,
    ) -> Self {
        let pulse = tokio::sync::Mutex::new(Pulse::new(identity, OffsetDateTime::now_utc()));
        let metrics = Arc::new(Metrics::default());
        let postgres = postgres.counting(metrics.orphans_attached.clone());
        // One invocation is one poller: Lambda itself runs several at once.
        let pipeline = PipelineSettings { pollers: 1, ..pipeline };
        Self { postgres, pipeline, upkeep, metrics, pulse, emf, shadow, checked: OnceCell::new() }
    }

    /// Answers invocations, one after the other, for as long as Lambda lets it.
    ///
    /// # Errors
    /// If the runtime API cannot be reached.
    pub async fn serve(self) -> anyhow::Result<()> {
        let function = &self;
        let handler = service_fn(|event: LambdaEvent<Value>| {
            let left = event.context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
            function.invoke(event.payload, left).map_err(|e| format!("{e:#}")).boxed()
        });
        lambda_runtime::run(handler)
            .await
            .map_err(anyhow::Error::from_boxed)
            .context("cannot talk to Lambda's runtime API")
    }

    /// One invocation, with what is left of its time: messages of an event source mapping, or the schedule's reminder.
    ///
    /// # Errors
    /// If the event is neither, or the upkeep fails. Never for what is in a message.
    pub async fn invoke(&self, event: Value, left: Duration) -> anyhow::Result<Value> {
        let until = Instant::now() + left - TO_ANSWER.min(left / 5);
        let has_messages = event.get("Records").is_some();
        let answer = if has_messages {
            // What the parser says may show some of it.
            let event: SqsEvent =
                serde_json::from_value(event).ok().context("cannot read the records of this event")?;
            serde_json::to_value(self.store(event.records, until).await)?
        } else if is_reminder(&event) {
            self.look_after(until).await?
        } else {
            bail!("this event is neither from an SQS event source mapping nor from a schedule");
        };
        if let Some(emf) = &self.emf {
            // What waits was counted by the reminder, in one of perhaps many processes: old news in all others.
            emf.write(&self.metrics, !has_messages);
        }
        self.beat(until).await;
        Ok(answer)
    }

    /// Says that it is there, at most every ten seconds, and only in time that is left. Nothing depends on it.
    async fn beat(&self, until: Instant) {
        let Ok(mut pulse) = self.pulse.try_lock() else { return };
        if !pulse.is_due(OffsetDateTime::now_utc()) {
            return;
        }
        match timeout_at(until, upkeep::beat(&self.postgres, &mut pulse, &self.metrics, false)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => warn!("cannot write the heartbeat: {e:#}"),
            Err(_) => warn!("cannot write the heartbeat: there is no time left"),
        }
    }

    async fn store(&self, records: Vec<Record>, until: Instant) -> Failed {
        let mut failed = Failed::default();
        let checked = timeout_at(until, self.check_schema()).await;
        let checked = checked.unwrap_or_else(|_| Err(anyhow!("the database does not answer")));
        if let Err(e) = &checked {
            error!("{e:#}: {} messages go back to the queue", records.len());
        }
        for queue in Handed::by_queue(records) {
            let is_ours = !self.shadow || queue.arn.ends_with(SHADOW_SUFFIX);
            if !is_ours {
                error!(
                    "SHADOW takes no queue whose name does not end in {SHADOW_SUFFIX}: {} stays as it is",
                    queue.arn
                );
            }
            let left = if checked.is_ok() && is_ours { self.store_queue(queue, until).await } else { queue.left() };
            let items = left.into_iter().map(|item_identifier| FailedItem { item_identifier });
            failed.batch_item_failures.extend(items);
        }
        failed
    }

    /// Stores the messages of one queue, until the time is up. Says which are left.
    async fn store_queue(&self, queue: Handed, until: Instant) -> Vec<String> {
        let shutdown = Shutdown::default();
        let worker = Worker::new(
            queue,
            self.postgres.clone(),
            self.pipeline.clone(),
            Arc::clone(&self.metrics),
            shutdown.clone(),
        );
        let _alarm = AbortOnDropHandle::new(tokio::spawn(async move {
            sleep_until(until).await;
            shutdown.stop.cancel();
            shutdown.give_up.cancel();
        }));
        if let Err(e) = pipeline::drain(&worker).await {
            error!("{e}");
        }
        worker.queue.left()
    }

    /// What a worker does beside its queue: attaches orphans, makes partitions, lets go of what is too old.
    async fn look_after(&self, until: Instant) -> anyhow::Result<Value> {
        self.check_schema().await?;
        let done = upkeep::once(&self.postgres, &self.upkeep, &self.metrics, until).await?;
        upkeep::gauge(&self.postgres, &self.upkeep.retention, &self.metrics).await?;
        info!(
            attached = done.attached,
            partitions = done.partitions,
            emptied = done.emptied,
            "looked after the tables"
        );
        Ok(serde_json::to_value(done)?)
    }

    /// Once per process. A unique index that is missing or invalid lets duplicates in without a word.
    async fn check_schema(&self) -> anyhow::Result<()> {
        self.checked.get_or_try_init(|| schema::ensure_usable(&self.postgres)).await.copied()
    }
}

/// The messages of one queue that an invocation was given.
struct Handed {
    arn: Arc<str>,
    messages: Mutex<Messages>,
}

#[derive(Default)]
struct Messages {
    waiting: VecDeque<Delivery>,
    /// Their ids, until they are deleted. The handle of a delivery is its position here: SQS may hand out one message twice.
    left: Vec<Option<String>>,
}

impl Handed {
    /// An event source mapping has one queue, so this is nearly always one.
    fn by_queue(records: Vec<Record>) -> Vec<Self> {
        let mut queues: Vec<Self> = Vec::new();
        for record in records {
            let known = queues.iter().position(|queue| queue.arn == record.queue_arn);
            let known = known.unwrap_or_else(|| {
                queues.push(Self { arn: Arc::clone(&record.queue_arn), messages: Mutex::default() });
                queues.len() - 1
            });
            queues[known].messages().add(record);
        }
        queues
    }

    /// What was not deleted.
    fn left(&self) -> Vec<String> {
        self.messages().left.iter().flatten().cloned().collect()
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Messages {
    fn add(&mut self, record: Record) {
        let receive_count =
            record.attributes.approximate_receive_count.and_then(|count| count.parse().ok()).unwrap_or(1);
        let handle = self.left.len().to_string();
        let sent_at = record.attributes.sent_timestamp.as_deref().and_then(Delivery::time);
        let (id, body) = (record.message_id.clone(), record.body);
        self.waiting.push_back(Delivery { id, handle, body, receive_count, sent_at });
        self.left.push(Some(record.message_id));
    }

    fn delete(&mut self, receipt: &Receipt) {
        let position: Option<usize> = receipt.handle().parse().ok();
        if let Some(message) = position.and_then(|position| self.left.get_mut(position)) {
            *message = None;
        }
    }
}

impl Queue for Handed {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.arn)
    }

    async fn receive(&self, max: usize, _wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let waiting = &mut self.messages().waiting;
        let count = max.min(waiting.len());
        Ok(waiting.drain(..count).collect())
    }

    async fn delete(&self, committed: Committed) -> Deleted {
        committed.receipts().iter().for_each(|receipt| self.messages().delete(receipt));
        Deleted { left: committed.keep(&[]), error: None }
    }

    /// Lambda keeps them hidden while the function works, and shows those that come back when their time is over.
    async fn change_visibility(&self, _receipts: &[&Receipt], _timeout: Duration) -> Result<(), QueueError> {
        Ok(())
    }
}

/// An event of EventBridge's schedule, or what a schedule with an input of its own sends.
fn is_reminder(event: &Value) -> bool {
    let says = |key: &str, value: &str| event.get(key).and_then(Value::as_str) == Some(value);
    says("source", "aws.events") || says("source", "aws.scheduler") || says("ses_ledger", "maintain")
}
