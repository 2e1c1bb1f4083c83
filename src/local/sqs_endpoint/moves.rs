//! Moving dead letters back: SQS's message move tasks. A message that is hidden stays where it is.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    Server, in_range,
    served_queue::{Queue, lock},
    wire::{self, SqsError},
};

/// How often a task moves its share of messages.
const STEP: Duration = Duration::from_millis(50);
const STEPS_PER_SECOND: u64 = 20;
/// What an unlimited task moves in one step.
const MOST_PER_STEP: u64 = 100;
/// SQS remembers so many tasks of a queue.
const MOST_TASKS: usize = 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Start {
    source_arn: String,
    destination_arn: Option<String>,
    max_number_of_messages_per_second: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct List {
    source_arn: String,
    max_results: Option<i64>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Handle {
    task_handle: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Moved {
    approximate_number_of_messages_moved: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    results: Vec<Task>,
}

/// A task as SQS tells about it.
#[derive(Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Task {
    /// Told as long as the task runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    task_handle: Option<String>,
    status: &'static str,
    source_arn: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_arn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_number_of_messages_per_second: Option<u64>,
    approximate_number_of_messages_moved: u64,
    approximate_number_of_messages_to_move: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_reason: Option<&'static str>,
    started_timestamp: u64,
}

/// Newest first.
pub(super) type Tasks = Mutex<VecDeque<Arc<Mutex<Task>>>>;

impl Server {
    pub(super) fn start_move(&self, body: &[u8]) -> Result<Bytes, SqsError> {
        let request: Start = wire::parse(body)?;
        let source = self.find_by_arn(&request.source_arn, "SourceArn")?;
        let to = request.destination_arn.as_ref();
        let destination = to.map(|arn| self.find_by_arn(arn, "DestinationArn")).transpose()?;
        let rate = request.max_number_of_messages_per_second;
        let rate = rate.map(|rate| in_range("MaxNumberOfMessagesPerSecond", rate, 1..=500)).transpose()?;
        if !self.is_dead_letter_queue(&source) {
            return Err(SqsError::invalid_value("Source queue must be configured as a Dead Letter Queue."));
        }
        let mut tasks = lock(&self.moves);
        if tasks.iter().map(|task| lock(task)).any(|t| t.source_arn == request.source_arn && t.task_handle.is_some()) {
            return Err(SqsError::invalid_value(
                "There is already a task running. Only one active task is allowed for a source queue arn at a given time.",
            ));
        }
        let (to_move, now) = source.with(|state, now| (state.messages.counts(now).visible as u64, now));
        let task_handle = Uuid::now_v7().to_string();
        let task = Arc::new(Mutex::new(Task {
            task_handle: Some(task_handle.clone()),
            status: "RUNNING",
            source_arn: request.source_arn,
            destination_arn: request.destination_arn,
            max_number_of_messages_per_second: rate,
            approximate_number_of_messages_moved: 0,
            approximate_number_of_messages_to_move: to_move,
            failure_reason: None,
            started_timestamp: now.as_millis() as u64,
        }));
        tasks.push_front(Arc::clone(&task));
        tasks.truncate(MOST_TASKS);
        self.runtime.spawn(run(task, Arc::downgrade(&source), destination));
        Ok(wire::json(&Handle { task_handle }))
    }

    pub(super) fn list_moves(&self, body: &[u8]) -> Result<Bytes, SqsError> {
        let request: List = wire::parse(body)?;
        self.find_by_arn(&request.source_arn, "SourceArn")?;
        let most = in_range("MaxResults", request.max_results.unwrap_or(1), 1..=10)?;
        let tasks = lock(&self.moves);
        let of_queue = tasks.iter().map(|task| lock(task).clone()).filter(|task| task.source_arn == request.source_arn);
        Ok(wire::json(&Listed { results: of_queue.take(most as usize).collect() }))
    }

    pub(super) fn cancel_move(&self, body: &[u8]) -> Result<Bytes, SqsError> {
        let request: Handle = wire::parse(body)?;
        for task in lock(&self.moves).iter() {
            let mut task = lock(task);
            if task.task_handle.as_ref() == Some(&request.task_handle) {
                task.status = "CANCELLING";
                let moved = task.approximate_number_of_messages_moved;
                return Ok(wire::json(&Moved { approximate_number_of_messages_moved: moved }));
            }
        }
        Err(SqsError::new(404, "ResourceNotFoundException", "Task does not exist."))
    }

    fn find_by_arn(&self, arn: &str, parameter: &str) -> Result<Arc<Queue>, SqsError> {
        self.find(arn.rsplit(':').next().unwrap_or(arn)).map_err(|_| {
            let message = format!("The resource that you specified for the {parameter} parameter doesn't exist.");
            SqsError::new(404, "ResourceNotFoundException", message)
        })
    }

    fn is_dead_letter_queue(&self, queue: &Arc<Queue>) -> bool {
        let queues = Vec::from_iter(lock(&self.queues).values().cloned());
        queues
            .iter()
            .any(|source| source.with(|state, _| state.heir.as_ref().is_some_and(|heir| Arc::ptr_eq(heir, queue))))
    }
}

/// Moves until nothing visible is left, somebody cancels, or it cannot tell where a message came from.
async fn run(task: Arc<Mutex<Task>>, source: Weak<Queue>, destination: Option<Arc<Queue>>) {
    let rate = lock(&task).max_number_of_messages_per_second;
    // A slow task takes longer steps, so that each moves something.
    let (step, share) = match rate {
        Some(rate) if rate < STEPS_PER_SECOND => (Duration::from_secs(1) / rate as u32, 1),
        Some(rate) => (STEP, rate / STEPS_PER_SECOND),
        None => (STEP, MOST_PER_STEP),
    };
    loop {
        for _ in 0..share {
            let Some(source) = source.upgrade() else { return };
            let end = match lock(&task).status {
                "CANCELLING" => Some(("CANCELLED", None)),
                _ => move_one(&source, destination.as_ref()),
            };
            let mut task = lock(&task);
            match end {
                None => task.approximate_number_of_messages_moved += 1,
                Some((status, why)) => {
                    (task.status, task.failure_reason, task.task_handle) = (status, why, None);
                    return;
                }
            }
        }
        sleep(step).await;
    }
}

/// Moves one message, as a new one. `Some` is the end: the status, and why it failed.
fn move_one(source: &Queue, destination: Option<&Arc<Queue>>) -> Option<(&'static str, Option<&'static str>)> {
    let next = source.with(|state, now| {
        let id = state.messages.next_visible(now)?;
        let target = destination.cloned().or_else(|| state.origins.get(&id)?.upgrade());
        let letter = target.as_ref().and_then(|_| state.messages.withdraw(now));
        state.origins.retain(|known, _| letter.is_none() || *known != id);
        Some(target.zip(letter))
    });
    match next {
        None => Some(("COMPLETED", None)),
        Some(None) => Some(("FAILED", Some("CouldNotDetermineMessageSource"))),
        Some(Some((target, letter))) => {
            target.with(|state, now| state.messages.send(letter.body, Duration::ZERO, now));
            None
        }
    }
}
