//! Logs: for people or for machines, on standard error. Traces, where somebody wants them.

mod traces;

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

pub use self::traces::{TraceSettings, Traces};

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

/// Starts logging, and traces if there are settings for them. `filter` is in the form of `RUST_LOG`: `info`,
/// `ses_ledger=debug,warn`.
///
/// # Errors
/// If the filter cannot be read, or traces cannot be prepared.
pub fn start(format: LogFormat, filter: &str, traces: Option<&TraceSettings>) -> anyhow::Result<Option<Traces>> {
    let filter = EnvFilter::builder().parse(filter).context("cannot read LOG (--log)")?;
    let traces = traces.map(Traces::start).transpose()?;
    let terminal = io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    let log = if json {
        fmt::layer().json().flatten_event(true).with_writer(io::stderr).boxed()
    } else {
        fmt::layer().with_target(false).with_ansi(terminal).with_writer(io::stderr).boxed()
    };
    // Without traces no filter asks for their spans, and each costs one comparison.
    tracing_subscriber::registry().with(log.with_filter(filter)).with(traces.as_ref().map(Traces::layer)).init();
    Ok(traces)
}
