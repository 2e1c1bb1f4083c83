//! `ses-ledger health`: what a container's health check runs. An image without a shell has no other program to ask.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::time::timeout;

use crate::http;

/// A worker that moves on answers at once.
const PATIENCE: Duration = Duration::from_secs(3);

/// Arguments of `health`.
#[derive(clap::Args)]
pub struct Args {
    /// Where the worker serves /livez
    #[arg(long, env, default_value = "127.0.0.1:9464", value_name = "ADDRESS", help_heading = "Probes and metrics")]
    pub http_address: SocketAddr,
}

/// Asks `/livez`.
///
/// # Errors
/// If the worker is not there, does not answer in time, or says that it is stuck.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let address = reachable(args.http_address);
    let answer = timeout(PATIENCE, http::ask(&address.to_string(), "/livez")).await.context("no answer in time")?;
    let answer = answer.with_context(|| format!("cannot ask the worker at {address} (HTTP_ADDRESS)"))?;
    ensure!(answer.status == 200, "{}", answer.body.trim());
    Ok(ExitCode::SUCCESS)
}

/// A worker that listens on all addresses is asked on the loopback one.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
