//! `ses-ledger health`: what a container's health check runs. An image without a shell has no other program to ask.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

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
    let answer = timeout(PATIENCE, ask(address)).await.context("no answer in time")?;
    let answer = answer.with_context(|| format!("cannot ask the worker at {address} (HTTP_ADDRESS)"))?;
    if !answer.starts_with("HTTP/1.1 200 ") {
        bail!("{}", answer.split("\r\n\r\n").nth(1).unwrap_or("the worker's answer cannot be read").trim());
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
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
