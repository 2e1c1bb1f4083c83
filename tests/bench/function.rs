//! The worker as a Lambda function: its start, and invocations of one size, one after the other.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde_json::Value;
use ses_ledger::local::{
    lambda_api::{Answer, LambdaApi, Record, scheduled_event, sqs_event},
    story::{Step, Story},
};

use crate::{
    client::{Clients, start_function},
    figures::{Figure, Sample, spread},
    machine::{self, Account, Parts},
};

/// More than anything here takes.
const TIME: Duration = Duration::from_secs(60);
const QUEUE_ARN: &str = "arn:aws:sqs:us-east-1:000000000000:bench";

/// A function that has been started, and how long that took.
pub(crate) struct Function {
    api: LambdaApi,
    pub(crate) process: Clients,
    started: Duration,
}

impl Function {
    /// Starts it, and waits until it asks for its first invocation.
    pub(crate) async fn start(database_url: &str, settings: &[String]) -> anyhow::Result<Self> {
        let api = LambdaApi::start().await?;
        let begun = Instant::now();
        let process = start_function(database_url, &api.environment(), settings)?;
        tokio::time::timeout(TIME, api.ready()).await?;
        Ok(Self { api, process, started: begun.elapsed() })
    }

    /// Hands it the story's messages, so many in each invocation. The log rows are there.
    pub(crate) async fn play(&self, story: &Story, batch: usize, parts: &Parts) -> anyhow::Result<Sample> {
        let bodies: Vec<String> = story
            .steps()
            .filter_map(|step| match step {
                Step::Publish(body) => Some(body),
                Step::WriteLog(_) => None,
            })
            .collect();
        let ids: Vec<String> = (0..bodies.len()).map(|n| format!("{n:036}")).collect();
        let record = |(message_id, body)| Record { message_id, body, queue_arn: QUEUE_ARN };
        let records: Vec<Record<'_>> =
            ids.iter().map(String::as_str).zip(bodies.iter().map(String::as_str)).map(record).collect();
        let mut events = records.chunks(batch).map(|records| sqs_event(records.iter().copied()));

        let (first, mut times) = (self.time(events.next().unwrap_or_default()).await?, Vec::new());
        let (before, begun) = (Account::read(parts)?, Instant::now());
        for event in events {
            times.push(self.time(event).await?);
        }
        let (spent, elapsed) = (Account::read(parts)?.since(&before), begun.elapsed());
        let share = 1.0 - batch.min(bodies.len()) as f64 / bodies.len() as f64; // without the first
        let measured = story.truth.events as f64 * share;
        let mut sample = Sample::new();
        sample.insert(Figure::EventsPerSecond, measured / elapsed.as_secs_f64());
        sample.insert(Figure::ClientCpu, spent.clients.as_secs_f64() * 1e6 / measured);
        sample.insert(Figure::DatabaseCpu, spent.database.as_secs_f64() * 1e6 / measured);
        sample.insert(Figure::Start, self.started.as_secs_f64() * 1e3);
        sample.insert(Figure::First, first);
        sample.insert(Figure::Median, spread(times).map_or(first, |spread| spread.median));
        sample.insert(Figure::PeakMemory, machine::peak_memory(self.process.pids()[0])?);
        sample.insert(Figure::Messages, bodies.len() as f64);
        sample.insert(Figure::Others, spent.others);
        // Attaches what a story without log rows in time would leave; here it only has to answer.
        ensure!(matches!(self.api.invoke(scheduled_event(), TIME).await?, Answer::Response(_)), "the schedule failed");
        Ok(sample)
    }

    /// One invocation, in ms.
    async fn time(&self, event: Value) -> anyhow::Result<f64> {
        let begun = Instant::now();
        match self.api.invoke(event, TIME).await? {
            Answer::Response(answer) if answer["batchItemFailures"].as_array().is_some_and(Vec::is_empty) => {
                Ok(begun.elapsed().as_secs_f64() * 1e3)
            }
            other => bail!("the function did not store everything: {other:?}"),
        }
    }
}
