//! Traces, as a collector sees them: one for each batch, with nothing of what is in the messages.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message as _;
use ses_ledger::local::story::{Profile, Story, StorySettings};
use time::macros::datetime;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{Running, SHORT_TIMES, leaving::block, play, ses_ledger, until};
use crate::{database, worker::Queue};

/// Everything that was sent to it.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

struct Collector {
    endpoint: String,
    received: Received,
    _serving: AbortOnDropHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let received = Received::default();
        let app = Router::new().route("/v1/traces", post(take)).with_state(received.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let endpoint = format!("http://{}", listener.local_addr().expect("it listens"));
        let serving: JoinHandle<()> =
            tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves until the end") });
        Self { endpoint, received, _serving: AbortOnDropHandle::new(serving) }
    }

    /// All spans by their id, each with the name of the service that sent it.
    fn spans(&self) -> BTreeMap<Vec<u8>, (String, Span)> {
        let requests = self.received.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut spans = BTreeMap::new();
        for of_service in requests.into_iter().flat_map(|request| request.resource_spans) {
            let service = of_service.resource.map(|it| text(&it.attributes, "service.name")).unwrap_or_default();
            for span in of_service.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                assert!(spans.insert(span.span_id.clone(), (service.clone(), span)).is_none(), "sent twice");
            }
        }
        spans
    }
}

async fn take(State(received): State<Received>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).expect("the worker speaks OTLP");
    received.0.lock().unwrap_or_else(PoisonError::into_inner).push(request);
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|it| it.key == key)?.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{key} is {other:?} in {attributes:?}"),
    }
}

fn number(attributes: &[KeyValue], key: &str) -> i64 {
    match value(attributes, key) {
        Some(Value::IntValue(number)) => *number,
        other => panic!("{key} is {other:?} in {attributes:?}"),
    }
}

const QUEUE: &str = "arn:aws:sqs:us-east-1:000000000000:ses-events";

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_a_trace_with_its_store_and_its_delete() {
    let (database, queue, collector) = (database::fresh().await, Queue::start().await, Collector::start().await);
    let settings = StorySettings::new(61, 100, datetime!(2026-10-05 08:00 UTC));
    let story = Story::tell(&StorySettings { profile: Profile::Small, ..settings });
    play(&database, &queue.handle, &story).await;
    let otlp = [format!("--otlp-endpoint={}/", collector.endpoint), "--otlp-service=mail-ledger".to_owned()];
    let arguments: Vec<&str> = otlp.iter().map(String::as_str).chain(["--batch-size=50", "--in-flight=200"]).collect();
    let running = Running::start(&database.url, &queue.url, &arguments).await;
    queue.drained().await;
    let received = running.stop().await.count("received") as i64;

    let spans = collector.spans();
    let (roots, children): (Vec<_>, Vec<_>) = spans.values().partition(|(_, span)| span.parent_span_id.is_empty());
    let messages = |span: &Span| number(&span.attributes, "messaging.batch.message_count");
    assert_eq!(roots.iter().map(|(_, span)| messages(span)).sum::<i64>(), received, "every message is in one trace");
    assert!(roots.len() > 2 && children.len() == roots.len() * 2, "{} and {}", roots.len(), children.len());
    for (service, span) in &roots {
        assert_eq!((service.as_str(), span.name.as_str()), ("mail-ledger", &*format!("process {QUEUE}")));
        assert_eq!(span.kind, SpanKind::Consumer as i32);
        assert_eq!(text(&span.attributes, "messaging.system"), "aws_sqs");
        assert_eq!(text(&span.attributes, "messaging.destination.name"), QUEUE);
        assert_eq!(text(&span.attributes, "messaging.operation.type"), "process");
    }
    for (_, span) in &children {
        let (_, parent) = &spans[&span.parent_span_id];
        assert_eq!((span.kind, &span.trace_id), (SpanKind::Client as i32, &parent.trace_id));
        assert!(span.start_time_unix_nano >= parent.start_time_unix_nano, "{} begins too early", span.name);
        assert!(span.end_time_unix_nano <= parent.end_time_unix_nano, "{} ends too late", span.name);
        if span.name == "INSERT email_events" {
            assert_eq!(text(&span.attributes, "db.system.name"), "postgresql");
        } else {
            assert_eq!(text(&span.attributes, "messaging.operation.type"), "settle");
            assert_eq!(messages(span), messages(parent), "all of it is deleted");
        }
    }
    let stored = children.iter().filter(|(_, span)| span.name == "INSERT email_events").count();
    assert_eq!(stored, roots.len(), "one store for each batch, the others are deletes");
    let said = format!("{spans:?}");
    assert!(!said.contains('@') && !said.to_lowercase().contains("subject"), "somebody's mail: {said}");
}

/// One store that fails is part of its trace, and is seen as a failure if it is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_given_up_is_an_error() {
    let (database, queue, collector) = (database::fresh().await, Queue::start().await, Collector::start().await);
    let running =
        Running::start(&database.url, &queue.url, &[&format!("--otlp-endpoint={}", collector.endpoint)]).await;
    let locked = block(&database).await;
    queue.handle.send("poison");
    running.says("cannot store, holding").await;
    running.signal("TERM").await;
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
    drop(locked);
    let spans = collector.spans();
    let failed: Vec<&str> = spans
        .values()
        .filter(|(_, span)| span.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32))
        .inspect(|(_, span)| assert_eq!(text(&span.attributes, "error.type"), "gave_up"))
        .map(|(_, span)| span.name.as_str())
        .collect();
    assert_eq!(failed.len(), 2, "the batch and its store: {spans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_one_warning() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port is free").local_addr().expect("it has one");
    let running = start(&database.url, &queue.url, &format!("http://{nobody}"));
    for _ in 0..5 {
        queue.handle.send("poison");
        queue.drained().await;
        until("traces are missed", async || running.log().contains("cannot send traces")).await;
    }
    let (code, log) = leave(running).await;
    assert_eq!((code, log.matches("cannot send traces to OTLP_ENDPOINT").count()), (Some(0), 1), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_holds_nobody_up() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    // Connections are taken by the kernel, and by nobody else.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let running = start(&database.url, &queue.url, &format!("http://{}", silent.local_addr().expect("it has one")));
    queue.handle.send("poison");
    queue.drained().await;
    let asked = Instant::now();
    let (code, log) = leave(running).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(asked.elapsed() < Duration::from_secs(15), "it took {:?} to leave", asked.elapsed());
    drop(silent);
}

/// A worker that sends traces every few milliseconds.
fn start(database_url: &str, queue_url: &str, endpoint: &str) -> Running {
    let mut command = ses_ledger(["run"]);
    command.envs(SHORT_TIMES).env("LOG_FORMAT", "json").env("HTTP_ADDRESS", "127.0.0.1:0");
    command.env("DATABASE_URL", database_url).env("QUEUE_URL", queue_url);
    command.env("OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "20");
    Running::watch(command)
}

async fn leave(running: Running) -> (Option<i32>, String) {
    running.signal("TERM").await;
    running.ended().await
}
