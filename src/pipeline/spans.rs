//! What a trace shows of a batch, by OpenTelemetry's conventions: one span from its first message to its last delete, and in
//! it one for storing and one for deleting. No span for each message, and nothing of what is in them.
//!
//! They have a target of their own and the level of details, so that without `OTLP_ENDPOINT` nobody makes them.

use tracing::{Span, field::Empty, trace_span};

use super::batch::Batch;

/// Spans with this target are traces, and nothing else is.
pub(crate) const TARGET: &str = "ses_ledger::traces";

/// A batch whose first message is there.
pub(super) fn process(queue: &str) -> Span {
    trace_span!(
        target: TARGET,
        parent: None,
        "process",
        otel.name = format!("process {queue}"),
        otel.kind = "consumer",
        otel.status_code = Empty,
        messaging.system = "aws_sqs",
        messaging.destination.name = queue,
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.batch.message_count = Empty,
        error.type = Empty,
    )
}

/// All attempts to store it. Its size is known by now.
pub(super) fn store(batch: &Batch) -> Span {
    batch.span.record("messaging.batch.message_count", count(batch.messages.len()));
    trace_span!(
        target: TARGET,
        parent: &batch.span,
        "store",
        otel.name = "INSERT email_events",
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "postgresql",
        db.query.summary = "INSERT email_events",
        db.operation.batch.size = count(batch.arrivals.len()),
        error.type = Empty,
    )
}

/// All attempts to delete its messages.
pub(super) fn delete(process: &Span, queue: &str, messages: usize) -> Span {
    trace_span!(
        target: TARGET,
        parent: process,
        "delete",
        otel.name = format!("delete {queue}"),
        otel.kind = "client",
        otel.status_code = Empty,
        messaging.system = "aws_sqs",
        messaging.destination.name = queue,
        messaging.operation.name = "delete",
        messaging.operation.type = "settle",
        messaging.batch.message_count = count(messages),
        error.type = Empty,
    )
}

/// It did not come to what it was for.
pub(super) fn failed(span: &Span, why: &str) {
    span.record("error.type", why);
    span.record("otel.status_code", "ERROR");
}

/// OpenTelemetry's numbers have a sign; others become texts.
fn count(items: usize) -> i64 {
    i64::try_from(items).unwrap_or(i64::MAX)
}
