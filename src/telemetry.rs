//! Logs: for people or for machines, on standard error.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Human on a terminal, JSON elsewhere
    Auto,
    /// One readable line per event
    Human,
    /// One JSON object per line
    Json,
}

/// Starts logging. `filter` is in the form of `RUST_LOG`: `info`, `ses_ledger=debug,warn`.
///
/// # Errors
/// If the filter cannot be read.
pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(filter)?;
    let terminal = io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).init();
    } else {
        registry.with(fmt::layer().with_target(false).with_ansi(terminal).with_writer(io::stderr)).init();
    }
    Ok(())
}
