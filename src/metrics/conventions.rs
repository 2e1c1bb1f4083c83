//! Metrics that OpenTelemetry has names for, so that a dashboard made for any consumer shows this one as well:
//! <https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/>. For Prometheus a dot is an underscore, and
//! the unit is part of the name.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use crate::pipeline::QueueError;

/// Upper bounds in seconds, as the conventions ask for them. A long poll may take longer than the last.
const OF_MESSAGING: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const OF_DATABASES: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// What the conventions count, of all queues and of the database.
pub struct Conventions {
    requests: Durations<OperationLabels>,
    processed: Durations<OperationLabels>,
    consumed: Family<ConsumedLabels, Counter>,
    statements: Durations<StatementLabels>,
    /// Of `statements`, those that went well.
    stored: Histogram,
}

/// How long the requests to one queue take.
#[derive(Clone)]
pub struct Requests {
    all: Durations<OperationLabels>,
    queue: Arc<str>,
    /// Those that go well are looked up once, not each time.
    received: Histogram,
    deleted: Histogram,
}

/// What is counted of one queue's messages.
pub(crate) struct OfQueue {
    all: Durations<OperationLabels>,
    queue: Arc<str>,
    processed: Histogram,
    pub(crate) consumed: Counter,
}

/// A request to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Receive,
    Delete,
    ChangeVisibility,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    messaging_system: &'static str,
    messaging_destination_name: Arc<str>,
    messaging_operation_name: &'static str,
    messaging_operation_type: &'static str,
    error_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConsumedLabels {
    messaging_system: &'static str,
    messaging_destination_name: Arc<str>,
    messaging_operation_name: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatementLabels {
    db_system_name: &'static str,
    db_query_summary: &'static str,
    error_type: &'static str,
}

/// For Prometheus a label without a value is none.
const NO_ERROR: &str = "";

impl Conventions {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let of_messaging = || Family::new_with_constructor((|| Histogram::new(OF_MESSAGING)) as fn() -> Histogram);
        let (requests, processed) = (of_messaging(), of_messaging());
        let consumed = Family::default();
        let statements = Family::new_with_constructor((|| Histogram::new(OF_DATABASES)) as fn() -> Histogram);
        registry.register(
            "messaging_client_operation_duration_seconds",
            "Duration of each request to the queue; a receive also waits",
            requests.clone(),
        );
        registry.register(
            "messaging_process_duration_seconds",
            "Duration from a batch's first message to its commit",
            processed.clone(),
        );
        registry.register(
            "messaging_client_consumed_messages",
            "Messages received, by queue, each time one is handed out",
            consumed.clone(),
        );
        registry.register(
            "db_client_operation_duration_seconds",
            "Duration of each attempt to store a batch, also of those that fail",
            statements.clone(),
        );
        let stored = statements.get_or_create_owned(&StatementLabels::new(NO_ERROR));
        Self { requests, processed, consumed, statements, stored }
    }

    /// For the requests to this queue.
    pub fn requests(&self, queue: Arc<str>) -> Requests {
        Requests::new(self.requests.clone(), queue)
    }

    pub(crate) fn of_queue(&self, queue: Arc<str>) -> OfQueue {
        let consumed = self.consumed.get_or_create_owned(&ConsumedLabels {
            messaging_system: "aws_sqs",
            messaging_destination_name: Arc::clone(&queue),
            messaging_operation_name: "receive",
        });
        let processed = self.processed.get_or_create_owned(&process(&queue, NO_ERROR));
        OfQueue { all: self.processed.clone(), queue, processed, consumed }
    }

    /// One attempt to store. `error` is one of a few words.
    pub(crate) fn statement(&self, took: Duration, error: Option<&'static str>) {
        match error {
            None => self.stored.observe(took.as_secs_f64()),
            Some(error) => {
                self.statements.get_or_create(&StatementLabels::new(error)).observe(took.as_secs_f64());
            }
        }
    }
}

impl Requests {
    fn new(all: Durations<OperationLabels>, queue: Arc<str>) -> Self {
        let of = |request: Request| all.get_or_create_owned(&request.labels(&queue, NO_ERROR));
        let (received, deleted) = (of(Request::Receive), of(Request::Delete));
        Self { all, queue, received, deleted }
    }

    /// Counts that nobody reads.
    pub fn unread(queue: Arc<str>) -> Self {
        Self::new(Family::new_with_constructor(|| Histogram::new(OF_MESSAGING)), queue)
    }

    pub fn answered(&self, request: Request, took: Duration, error: Option<&QueueError>) {
        let took = took.as_secs_f64();
        match (request, error) {
            (Request::Receive, None) => self.received.observe(took),
            (Request::Delete, None) => self.deleted.observe(took),
            (Request::ChangeVisibility, None) | (_, Some(_)) => {
                let error = error.map_or(NO_ERROR, QueueError::kind);
                self.all.get_or_create(&request.labels(&self.queue, error)).observe(took);
            }
        }
    }
}

impl OfQueue {
    /// A batch came to its commit, or was given up.
    pub(crate) fn processed(&self, took: Duration, gave_up: bool) {
        if gave_up {
            self.all.get_or_create(&process(&self.queue, "gave_up")).observe(took.as_secs_f64());
        } else {
            self.processed.observe(took.as_secs_f64());
        }
    }
}

impl Request {
    fn labels(self, queue: &Arc<str>, error_type: &'static str) -> OperationLabels {
        let (messaging_operation_name, messaging_operation_type) = match self {
            Self::Receive => ("receive", "receive"),
            Self::Delete => ("delete", "settle"),
            // Hides messages as well as giving them back: of no one type.
            Self::ChangeVisibility => ("change_visibility", ""),
        };
        OperationLabels {
            messaging_system: "aws_sqs",
            messaging_destination_name: Arc::clone(queue),
            messaging_operation_name,
            messaging_operation_type,
            error_type,
        }
    }
}

impl StatementLabels {
    fn new(error_type: &'static str) -> Self {
        Self { db_system_name: "postgresql", db_query_summary: "INSERT email_events", error_type }
    }
}

fn process(queue: &Arc<str>, error_type: &'static str) -> OperationLabels {
    OperationLabels {
        messaging_system: "aws_sqs",
        messaging_destination_name: Arc::clone(queue),
        messaging_operation_name: "process",
        messaging_operation_type: "process",
        error_type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_request_that_fails_says_how() {
        let metrics = Metrics::default();
        let requests = metrics.conventions.requests("a-queue".into());
        let (took, denied) = (Duration::from_millis(30), QueueError::Fatal("denied".to_owned()));
        requests.answered(Request::Delete, took, Some(&denied));
        requests.answered(Request::ChangeVisibility, took, None);
        metrics.conventions.statement(took, Some("timeout"));
        metrics.conventions.of_queue("a-queue".into()).processed(took, true);
        let page = metrics.encode();
        for counted in [
            r#"name="delete",messaging_operation_type="settle",error_type="fatal"} 1"#,
            r#"name="delete",messaging_operation_type="settle",error_type=""} 0"#,
            r#"name="change_visibility",messaging_operation_type="",error_type=""} 1"#,
            r#"name="process",messaging_operation_type="process",error_type="gave_up"} 1"#,
            r#"summary="INSERT email_events",error_type="timeout"} 1"#,
        ] {
            assert!(page.contains(counted), "no {counted} in\n{page}");
        }
    }
}
