//! `/livez`, `/readyz` and `/metrics` on one port.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the probes ask.
pub trait Health: Send + Sync + 'static {
    /// `Err` says why the process should be replaced.
    fn alive(&self) -> Result<(), String>;
    /// `Err` says why it does no work at the moment.
    fn ready(&self) -> Result<(), String>;
}

/// Serves until it is told to stop. Returns the address once it listens.
///
/// # Errors
/// If the address is not free.
pub async fn serve<H: Health>(
    address: SocketAddr,
    health: Arc<H>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (set HTTP_ADDRESS)"))?;
    let address = listener.local_addr().context("cannot tell which port it listens on")?;
    let app = Router::new()
        .route("/livez", get(|State(health): State<Arc<H>>| async move { probe(health.alive()) }))
        .route("/readyz", get(|State(health): State<Arc<H>>| async move { probe(health.ready()) }))
        .with_state(health)
        .route("/metrics", get(|| async move { ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.encode()) }));
    tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::error!("cannot serve the probes any more: {e}");
        }
    });
    Ok(address)
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn probe(answer: Result<(), String>) -> impl IntoResponse {
    match answer {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
