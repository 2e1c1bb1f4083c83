//! `/livez`, `/readyz`, `/metrics` and the page on one port: serving them, and asking a worker for them.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the probes ask.
pub trait Health: Send + Sync + 'static {
    /// `Err` says why the process should be replaced.
    fn alive(&self) -> Result<(), String>;
    /// `Err` says why it does no work at the moment.
    fn ready(&self) -> Result<(), String>;
}

/// Serves until it is told to stop: the probes, the metrics of a worker, and beside them the page, or nothing.
/// Returns the address once it listens.
///
/// # Errors
/// If the address is not free.
pub async fn serve<H: Health>(
    address: SocketAddr,
    health: Arc<H>,
    metrics: Option<Arc<Metrics>>,
    page: Router,
    stop: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (set HTTP_ADDRESS)"))?;
    let address = listener.local_addr().context("cannot tell which port it listens on")?;
    let mut probes = Router::new()
        .route("/livez", get(|State(health): State<Arc<H>>| async move { probe(health.alive()) }))
        .route("/readyz", get(|State(health): State<Arc<H>>| async move { probe(health.ready()) }));
    if let Some(metrics) = metrics {
        let read = |State(health): State<Arc<H>>| async move { exposition(health.ready().is_ok(), &metrics) };
        probes = probes.route("/metrics", get(read));
    }
    let app = probes.with_state(health).merge(page);
    tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::error!("cannot serve the probes any more: {e}");
        }
    });
    Ok(address)
}

/// What a worker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// Asks the worker that serves at this address. Waits as long as it takes.
///
/// # Errors
/// If nobody is there, or the answer is none of HTTP's.
pub async fn ask(address: &str, path: &str) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let parts =
        answer.split_once("\r\n\r\n").and_then(|(head, body)| Some((head.split(' ').nth(1)?.parse().ok()?, body)));
    let (status, body) = parts.context("cannot read the answer")?;
    Ok(Answer { status, body: body.to_owned() })
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn exposition(ready: bool, metrics: &Metrics) -> impl IntoResponse + use<> {
    metrics.ready.set(ready.into());
    ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.encode())
}

fn probe(answer: Result<(), String>) -> impl IntoResponse {
    match answer {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
