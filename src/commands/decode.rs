//! `ses-ledger decode`: shows what a message body becomes, without a queue or a database.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::event::{Detail, TimeSource};
use crate::pipeline::decode::{
    DecodeSettings, IgnoreReason, Leaf, Outcome, PayloadPolicy, Reject, SesEvent, Wrapper, decode,
};

/// Show what the body of a message becomes
///
/// Needs no queue and no database. Exits with 1 if anything in the body is rejected.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The file that holds the body of one message; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,

    /// Print one JSON object per line for each thing that the body holds
    #[arg(long)]
    json: bool,

    /// The SES message tag in which a mail carries the id of its log
    #[arg(long, default_value_t = DecodeSettings::default().log_id_tag)]
    log_id_tag: String,

    /// What to show of each row's payload
    #[arg(long, value_enum, default_value_t = PayloadPolicy::None)]
    payload: PayloadPolicy,
}

/// Decodes one body and prints its leaves.
///
/// # Errors
///
/// The file cannot be read or the output cannot be written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let body = read(&args.file)?;
    let settings = DecodeSettings { payload: args.payload, log_id_tag: args.log_id_tag };
    let leaves = decode(&body, OffsetDateTime::now_utc(), &settings);
    let rejected = leaves.iter().any(|leaf| matches!(leaf.outcome, Outcome::Rejected(_)));
    match print(leaves, args.json, &settings) {
        // The reader has seen enough, like `head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed.context("cannot write to standard output")?,
    }
    Ok(if rejected { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut body = Vec::new();
        io::stdin().read_to_end(&mut body).context("cannot read standard input")?;
        return Ok(body);
    }
    std::fs::read(file).with_context(|| format!("cannot read the body in {}", file.display()))
}

fn print(leaves: Vec<Leaf>, as_json: bool, settings: &DecodeSettings) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let several = leaves.len() > 1;
    for (index, leaf) in leaves.into_iter().enumerate() {
        let fields = fields(leaf, settings);
        if as_json {
            let object: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            writeln!(out, "{}", Value::Object(object))?;
            continue;
        }
        if several {
            writeln!(out, "{}#{}", if index > 0 { "\n" } else { "" }, index + 1)?;
        }
        for (name, value) in fields {
            writeln!(out, "{name:<18} {}", readable(&value))?;
        }
    }
    out.flush()
}

/// A leaf as named values, in the order in which one reads them.
fn fields(leaf: Leaf, settings: &DecodeSettings) -> Vec<(&'static str, Value)> {
    let envelope: Vec<&str> = leaf.envelope.into_iter().map(Wrapper::as_str).collect();
    let mut fields = match leaf.outcome {
        Outcome::Event(event) => event_fields(*event, settings),
        Outcome::Ignored(reason) => ignored_fields(reason),
        Outcome::Rejected(reject) => rejected_fields(&reject),
    };
    fields.push(("envelope", json!(envelope)));
    fields
}

fn event_fields(event: SesEvent, settings: &DecodeSettings) -> Vec<(&'static str, Value)> {
    let recipients: Vec<&str> = event.recipients.iter().map(|r| r.address.as_str()).collect();
    let time_source = match event.time_source {
        TimeSource::Event => "event",
        TimeSource::Mail => "mail",
        TimeSource::Received => "received",
    };
    let mut fields = vec![
        ("outcome", json!("event")),
        ("event_type", json!(event.kind.as_str())),
        ("aws_message_id", json!(event.message_id.as_str())),
        ("recipients", json!(recipients)),
        ("occurred_at", json!(event.occurred_at.format(&Rfc3339).ok())),
        ("time_source", json!(time_source)),
    ];
    fields.extend(event.log_uuid.map(|uuid| ("log_uuid", json!(uuid.to_string()))));
    let rows = event.into_events();
    fields.push(("rows", json!(rows.len())));
    // What differs between rows (status and diagnostic) is shown of the first.
    fields.extend(rows.first().into_iter().flat_map(|row| detail_fields(&row.detail)));
    if settings.payload != PayloadPolicy::None {
        let payloads = rows.iter().filter_map(|row| serde_json::from_str(row.payload.as_deref()?).ok());
        fields.push(("payloads", Value::Array(payloads.collect())));
    }
    fields
}

fn detail_fields(detail: &Detail) -> impl Iterator<Item = (&'static str, Value)> {
    [
        ("bounce_type", &detail.bounce_type),
        ("bounce_subtype", &detail.bounce_subtype),
        ("smtp_status", &detail.smtp_status),
        ("diagnostic", &detail.diagnostic),
        ("complaint_type", &detail.complaint_type),
        ("complaint_subtype", &detail.complaint_subtype),
        ("delay_type", &detail.delay_type),
        ("link", &detail.link),
        ("ip", &detail.ip),
        ("user_agent", &detail.user_agent),
        ("bot", &detail.bot),
        ("feedback_id", &detail.feedback_id),
        ("reporting_mta", &detail.reporting_mta),
    ]
    .into_iter()
    .filter_map(|(name, text)| Some((name, json!(text.as_deref()?))))
}

fn ignored_fields(reason: IgnoreReason) -> Vec<(&'static str, Value)> {
    vec![("outcome", json!("ignored")), ("reason", json!(reason.as_str()))]
}

fn rejected_fields(reject: &Reject) -> Vec<(&'static str, Value)> {
    vec![("outcome", json!("rejected")), ("reason", json!(reject.reason.as_str())), ("at", json!(reject.at))]
}

/// A value without JSON's quotes and brackets, on one line: control characters would let a body
/// write to the terminal.
fn readable(value: &Value) -> String {
    match value {
        Value::String(text) => text.replace(|c: char| c.is_control(), " "),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(readable).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
