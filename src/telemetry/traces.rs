//! Traces, to a collector that speaks OTLP over HTTP. Sent from a thread of their own: a collector that is away, or slow,
//! costs traces and nothing else.

use std::{
    fmt,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Subscriber, info, warn};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use crate::{local::binaries, pipeline};

/// How long one request may take, and how long the last one may when the worker leaves.
const REQUEST: Duration = Duration::from_secs(3);
const LAST_REQUEST: Duration = Duration::from_secs(4);

/// Where traces go.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// Of the collector, without a path: `http://127.0.0.1:4318`.
    pub endpoint: String,
    /// `service.name` of all spans.
    pub service: String,
}

/// Traces on their way.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Talks to nobody yet.
    ///
    /// # Errors
    /// If the endpoint is no URL, or is one of TLS on a machine without root certificates.
    pub(super) fn start(settings: &TraceSettings) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(&settings.endpoint)?)
            .with_endpoint(format!("{}/v1/traces", settings.endpoint.trim_end_matches('/')))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(REQUEST)
            .build()
            .context("cannot prepare traces")?;
        let resource = Resource::builder().with_service_name(settings.service.clone()).build();
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    /// What makes traces of spans.
    pub(super) fn layer<S: Subscriber + for<'s> LookupSpan<'s>>(&self) -> impl Layer<S> + use<S> {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("ses-ledger"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(filter_fn(|it| it.is_span() && it.target() == pipeline::spans::TARGET))
    }

    /// Sends what is left, if the collector takes it within seconds.
    pub fn finish(self) {
        // What went wrong the collector's client has said.
        let _ = self.0.shutdown_with_timeout(LAST_REQUEST);
    }
}

/// The way to the collector. Blocks: the thread that sends has nothing else to do.
struct Collector {
    agent: ureq::Agent,
    away: AtomicBool,
}

impl Collector {
    fn new(endpoint: &str) -> anyhow::Result<Self> {
        let mut config = ureq::Agent::config_builder().timeout_global(Some(REQUEST)).http_status_as_error(false);
        if endpoint.starts_with("https:") {
            config = config.tls_config(binaries::trusted_by_this_machine()?);
        }
        Ok(Self { agent: config.build().new_agent(), away: AtomicBool::new(false) })
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.agent.run(request.map(|body| body.to_vec()))?;
        let (head, mut body) = answer.into_parts();
        Ok(Response::from_parts(head, body.read_to_vec()?.into()))
    }

    /// Says it once if traces get lost, and once if they do not any more.
    fn note(&self, answer: &Result<Response<Bytes>, HttpError>) {
        let trouble = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers with {}", answer.status())),
            Err(e) => Some(e.to_string()),
        };
        match (trouble, self.away.load(Ordering::Relaxed)) {
            (Some(trouble), false) => warn!("cannot send traces to OTLP_ENDPOINT, going on without: {trouble}"),
            (None, true) => info!("traces are sent again"),
            (Some(_), true) | (None, false) => return,
        }
        self.away.fetch_xor(true, Ordering::Relaxed);
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'answer>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'answer>>
    where
        'a: 'answer,
        Self: 'answer,
    {
        let answer = self.send(request);
        self.note(&answer);
        Box::pin(std::future::ready(answer))
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector(…)")
    }
}
