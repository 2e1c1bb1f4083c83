//! Dead letters: messages that were received too often. Looking at them, and moving them back where they came from.

use std::{collections::BTreeMap, fmt, time::Duration};

use aws_sdk_sqs::{
    error::{ProvideErrorMetadata, SdkError},
    types::{
        ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, ListMessageMoveTasksResultEntry,
        MessageSystemAttributeName,
    },
};
use serde::Serialize;
use time::OffsetDateTime;

use super::{MOST_PER_REQUEST, Sqs, is_denied};
use crate::pipeline::QueueError;

/// Where a queue sends what was received too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedrivePolicy {
    pub dead_letter_queue_arn: String,
    pub max_receive_count: u32,
}

/// A dead letter in hand: hidden from others until it is given back, or its time is over.
#[derive(Clone, Serialize)]
pub struct Letter {
    pub message_id: String,
    /// When it was sent to the queue that gave it up.
    #[serde(with = "time::serde::rfc3339::option")]
    pub sent_at: Option<OffsetDateTime>,
    /// How often it was received, this time included.
    pub receive_count: u32,
    /// The other attributes, by the names that SQS gives them.
    pub attributes: BTreeMap<String, String>,
    /// What it was sent with.
    pub message_attributes: BTreeMap<String, String>,
    pub body: String,
    #[serde(skip)]
    handle: String,
}

/// A task of SQS that moves dead letters back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Move {
    /// `RUNNING`, `COMPLETED`, `CANCELLING`, `CANCELLED` or `FAILED`.
    pub status: String,
    /// Approximate.
    pub moved: u64,
    /// Approximate, when it began.
    pub to_move: u64,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// Messages in a second, if that was limited.
    pub rate: Option<u32>,
    pub failure: Option<String>,
    /// What it takes to cancel it, while it runs.
    #[serde(skip)]
    handle: Option<String>,
}

/// What a move needs, as its error says it.
const TO_MOVE: &str = "sqs:StartMessageMoveTask, sqs:ReceiveMessage, sqs:DeleteMessage and sqs:GetQueueAttributes on it, and \
                       sqs:SendMessage on the queue that it moves to";

impl Sqs {
    /// Where the queue sends what was received too often; `None`: nowhere.
    ///
    /// # Errors
    /// If the queue does not tell.
    pub async fn redrive_policy(&self) -> Result<Option<RedrivePolicy>, QueueError> {
        let attributes = self.attributes().await?;
        let Some(policy) = attributes.get("RedrivePolicy") else { return Ok(None) };
        let policy: serde_json::Value = serde_json::from_str(policy)
            .map_err(|_| QueueError::Fatal(format!("the redrive policy of the queue {} cannot be read", self.name)))?;
        let count = &policy["maxReceiveCount"];
        let count = count.as_u64().or_else(|| count.as_str()?.parse().ok()).unwrap_or_default();
        Ok(policy["deadLetterTargetArn"]
            .as_str()
            .map(|arn| RedrivePolicy { dead_letter_queue_arn: arn.to_owned(), max_receive_count: count as u32 }))
    }

    /// Takes up to ten letters and hides them for so long; waits a moment for the first.
    ///
    /// # Errors
    /// If the queue does not answer, or does not let us.
    pub async fn take_letters(&self, most: usize, hide: Duration) -> Result<Vec<Letter>, QueueError> {
        let request = self
            .receiver
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(most.clamp(1, MOST_PER_REQUEST) as i32)
            // Not zero: only a receive that waits asks all of SQS's servers.
            .wait_time_seconds(1)
            .visibility_timeout(hide.as_secs() as i32)
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All");
        let answer = request.send().await.map_err(|e| self.letter_error("sqs:ReceiveMessage on it", &e))?;
        let letter = |message: aws_sdk_sqs::types::Message| {
            let attributes = message.attributes.unwrap_or_default().into_iter();
            let attributes: BTreeMap<_, _> =
                attributes.map(|(name, value)| (name.as_str().to_owned(), value)).collect();
            let millis = attributes.get("SentTimestamp").and_then(|millis| millis.parse::<i128>().ok());
            let texts = message.message_attributes.unwrap_or_default().into_iter();
            Some(Letter {
                message_id: message.message_id?,
                sent_at: millis.and_then(|ms| OffsetDateTime::from_unix_timestamp_nanos(ms * 1_000_000).ok()),
                receive_count: attributes.get("ApproximateReceiveCount").and_then(|n| n.parse().ok()).unwrap_or(1),
                attributes,
                message_attributes: texts.filter_map(|(name, value)| Some((name, value.string_value?))).collect(),
                body: message.body.unwrap_or_default(),
                handle: message.receipt_handle?,
            })
        };
        Ok(answer.messages.unwrap_or_default().into_iter().filter_map(letter).collect())
    }

    /// Gives letters back: others can receive them at once.
    ///
    /// # Errors
    /// If the queue does not take some of them; these come back by themselves when their time is over.
    pub async fn give_back(&self, letters: &[Letter]) -> Result<(), QueueError> {
        let mut outcome = Ok(());
        for ten in letters.chunks(MOST_PER_REQUEST) {
            let entries = ten.iter().enumerate().map(|(n, letter)| {
                let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(n.to_string());
                entry.receipt_handle(&letter.handle).visibility_timeout(0).build()
            });
            let entries = entries.collect::<Result<Vec<_>, _>>().map_err(|e| QueueError::Transient(e.to_string()))?;
            let request = self.client.change_message_visibility_batch().queue_url(&self.url).set_entries(Some(entries));
            match request.send().await {
                Ok(answer) if answer.failed().is_empty() => {}
                Ok(_) => outcome = Err(QueueError::Transient("SQS did not take some of them".to_owned())),
                Err(e) => outcome = Err(self.letter_error("sqs:ChangeMessageVisibility on it", &e)),
            }
        }
        outcome
    }

    /// Deletes letters. Returns the positions of those that SQS did not delete.
    ///
    /// # Errors
    /// If the queue does not answer, or does not let us.
    pub async fn delete_letters(&self, letters: &[Letter]) -> Result<Vec<usize>, QueueError> {
        let mut left = Vec::new();
        for (n, ten) in letters.chunks(MOST_PER_REQUEST).enumerate() {
            let entries = ten.iter().enumerate().map(|(n, letter)| {
                DeleteMessageBatchRequestEntry::builder().id(n.to_string()).receipt_handle(&letter.handle).build()
            });
            let entries = entries.collect::<Result<Vec<_>, _>>().map_err(|e| QueueError::Transient(e.to_string()))?;
            let request = self.client.delete_message_batch().queue_url(&self.url).set_entries(Some(entries));
            let answer = request.send().await.map_err(|e| self.letter_error("sqs:DeleteMessage on it", &e))?;
            let failed = answer.failed().iter().filter_map(|failed| failed.id().parse::<usize>().ok());
            left.extend(failed.map(|position| n * MOST_PER_REQUEST + position));
        }
        Ok(left)
    }

    /// Has SQS move the letters of this queue to another, or to where they came from, so many in a second at most.
    ///
    /// # Errors
    /// If SQS does not start: no permission, no dead-letter queue, or a task runs already.
    pub async fn start_move(&self, arn: &str, to: Option<String>, rate: Option<u32>) -> Result<(), QueueError> {
        let request = self.client.start_message_move_task().source_arn(arn).set_destination_arn(to);
        let request = request.set_max_number_of_messages_per_second(rate.map(|rate| rate as i32));
        request.send().await.map(drop).map_err(|e| self.letter_error(TO_MOVE, &e))
    }

    /// The latest tasks that move letters of this queue, newest first.
    ///
    /// # Errors
    /// If SQS does not tell.
    pub async fn moves(&self, arn: &str) -> Result<Vec<Move>, QueueError> {
        let request = self.client.list_message_move_tasks().source_arn(arn).max_results(10);
        let answer = request.send().await.map_err(|e| self.letter_error("sqs:ListMessageMoveTasks on it", &e))?;
        Ok(answer.results.unwrap_or_default().into_iter().map(Move::read).collect())
    }

    /// Cancels a task; says how many letters it has moved. What is moved stays moved.
    ///
    /// # Errors
    /// If it does not run, or SQS does not let us.
    pub async fn cancel_move(&self, task: &Move) -> Result<u64, QueueError> {
        let Some(handle) = &task.handle else {
            return Err(QueueError::Fatal("this task does not run any more".to_owned()));
        };
        let request = self.client.cancel_message_move_task().task_handle(handle);
        let answer = request.send().await.map_err(|e| self.letter_error("sqs:CancelMessageMoveTask on it", &e))?;
        Ok(answer.approximate_number_of_messages_moved.max(0) as u64)
    }

    /// The worker needs no rights to dead letters: whoever runs the command does.
    fn letter_error<E, R>(&self, permission: &str, error: &SdkError<E, R>) -> QueueError
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: std::fmt::Debug + 'static,
    {
        match error.code().unwrap_or_default() {
            code if is_denied(code) => QueueError::Fatal(format!(
                "access to the queue {} is denied: these credentials need {permission} (and kms:Decrypt and \
                 kms:GenerateDataKey on the queues' keys, if they have any)",
                self.name
            )),
            "ResourceNotFoundException" | "InvalidParameterValue" | "InvalidParameterValueException" => {
                let message = error.message().unwrap_or("no message");
                QueueError::Fatal(format!("SQS refuses it for the queue {}: {message}", self.name))
            }
            _ => self.sort_error(permission, error),
        }
    }
}

impl Letter {
    /// Keeps only what it takes to give it back: many are held at a time.
    pub fn forget_body(&mut self) {
        (self.body, self.attributes, self.message_attributes) = Default::default();
    }
}

impl Move {
    fn read(task: ListMessageMoveTasksResultEntry) -> Self {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(task.started_timestamp) * 1_000_000).ok();
        Self {
            status: task.status.unwrap_or_default(),
            moved: task.approximate_number_of_messages_moved.max(0) as u64,
            to_move: task.approximate_number_of_messages_to_move.unwrap_or_default().max(0) as u64,
            started_at: at.filter(|_| task.started_timestamp > 0),
            rate: task.max_number_of_messages_per_second.and_then(|rate| u32::try_from(rate).ok()),
            failure: task.failure_reason,
            handle: task.task_handle,
        }
    }

    /// It goes on.
    pub fn is_running(&self) -> bool {
        matches!(self.status.as_str(), "RUNNING" | "CANCELLING" | "CREATED")
    }
}

// Who has a handle can delete the letter, and a body is somebody's mail.
impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Letter").field("message_id", &self.message_id).finish_non_exhaustive()
    }
}
