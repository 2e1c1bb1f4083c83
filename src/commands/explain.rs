//! `ses-ledger explain`: what happened to this mail?

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use time::OffsetDateTime;

use super::{
    ask,
    screen::{Screen, clock, one_line, wrapped},
};
use crate::{
    cli::DatabaseArgs,
    explain::{self, Evidence, Explanation, Missing, Told},
    postgres::{
        Postgres,
        mails::{self, Log, Mail, Resolved, Traces},
    },
    readable::second,
};

/// Arguments of `explain`.
#[derive(Args, Clone)]
pub struct ExplainArgs {
    /// The uuid of a log row, the id that SES gave the mail, or the Message-ID header in which that stands:
    /// <ID@eu-west-1.amazonses.com>
    #[arg(value_name = "ID")]
    id: String,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

impl ExplainArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()
    }
}

/// Tells what happened to a mail.
///
/// # Errors
/// If the database cannot be read.
pub async fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let postgres = match ask::reader(&args.database).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let traces = match mails::resolve(&postgres, &args.id).await? {
        Resolved::Unknown(traces) => traces,
        Resolved::Mail(log_uuid) => match mails::mail(&postgres, log_uuid).await? {
            Some(mail) => return known(&postgres, &mail, args.json).await,
            None => Traces::default(), // it was deleted a moment ago
        },
    };
    unknown(&postgres, &args, &traces).await
}

async fn known(postgres: &Postgres, mail: &Mail, as_json: bool) -> anyhow::Result<ExitCode> {
    let context = mails::context(postgres, &mail.log).await?;
    let explanation = explain::explain(mail, &context, OffsetDateTime::now_utc());
    match as_json {
        true => ask::print_json(&json!({"mail": mail, "context": context, "explanation": explanation}))?,
        false => show(mail, &explanation),
    }
    Ok(ExitCode::SUCCESS)
}

async fn unknown(postgres: &Postgres, args: &ExplainArgs, traces: &Traces) -> anyhow::Result<ExitCode> {
    let newest = mails::newest(postgres).await?.received_at;
    let known = explain::unknown(traces, newest, OffsetDateTime::now_utc());
    if args.json {
        ask::print_json(&json!({"mail": null, "traces": traces, "known": known}))?;
    } else {
        let screen = Screen::new(false);
        screen.say(&screen.bold(&wrapped("", &format!("No mail has the id {}.", one_line(args.id.trim(), 200)))));
        screen.say("\nWhat is known:");
        known.iter().for_each(|missing| screen.say(&entry(missing)));
    }
    Ok(ExitCode::FAILURE)
}

fn show(mail: &Mail, explanation: &Explanation) {
    let screen = Screen::new(false);
    let subject = mail.log.subject.as_deref().unwrap_or("(no subject)");
    screen.say(&screen.bold(&wrapped("", &one_line(subject, 300))));
    head(&mail.log).iter().for_each(|line| screen.say(line));
    screen.say(&format!("\n{}", screen.bold(&wrapped("", &explanation.verdict))));
    for action in &explanation.who_must_act {
        let whom = match action.recipients.as_slice() {
            [] => String::new(),
            some => format!(", for {}", some.join(", ")),
        };
        screen.say(&wrapped("", &format!("{}{whom}: {}.", action.who.words(), action.what)));
    }
    // Said once, if it is the same for all.
    let queue = explanation.lines.first().map(|line| line.evidence.queue.clone());
    let queue = queue.filter(|queue| explanation.lines.iter().all(|line| line.evidence.queue == *queue));
    if !explanation.lines.is_empty() {
        screen.say("\nWhat happened (UTC)");
    }
    for line in &explanation.lines {
        screen.say(&told(line, mail.lines.len() > 1, queue.is_none(), &screen));
    }
    if let Some(queue) = queue {
        screen.say(&format!("\n{}", screen.dim(&wrapped("  ", &format!("All of it came through {queue}")))));
    }
    if !explanation.missing.is_empty() {
        screen.say("\nWhat is not there, and why");
    }
    explanation.missing.iter().for_each(|missing| screen.say(&entry(missing)));
}

/// What its sender wrote about it.
fn head(log: &Log) -> Vec<String> {
    let names = [
        ("template", &log.template_name),
        ("campaign", &log.campaign_id),
        ("configuration set", &log.configuration_set),
    ];
    let made: Vec<String> =
        names.iter().filter_map(|(what, name)| Some(format!("{what} {}", one_line(name.as_deref()?, 100)))).collect();
    let rows = [
        ("from", log.sender.clone()),
        ("to", Some(log.recipients.join(", ")).filter(|all| !all.is_empty())),
        ("made with", Some(made.join(", ")).filter(|made| !made.is_empty())),
        ("uuid", Some(log.uuid.to_string())),
        ("SES id", log.aws_message_id.clone().or_else(|| Some("none".to_owned()))),
        ("written", Some(format!("{} UTC", second(log.created_at)))),
    ];
    let row =
        |(title, text): (&str, Option<String>)| Some(wrapped(&format!("  {title:<11}"), &one_line(&text?, 2_000)));
    rows.into_iter().filter_map(row).collect()
}

/// A moment, what happened then, what it means, and the evidence.
fn told(line: &Told, several: bool, with_queue: bool, screen: &Screen) -> String {
    let mut lines = vec![wrapped(&format!("{}  ", clock(line.at)), &line.what)];
    let mut add = |text: &str| lines.push(wrapped("    ", text));
    if several && !line.recipient.is_empty() {
        add(&format!("to {}", line.recipient));
    }
    line.more.iter().for_each(|more| add(more));
    if let Some(quote) = &line.quote {
        add(&format!("“{quote}”"));
    }
    for part in evidence(&line.evidence, with_queue) {
        lines.push(screen.dim(&wrapped("    ", &part)));
    }
    lines.join("\n")
}

/// `received 2026-11-21 15:24:42, 2 s later`, then each of its ids.
fn evidence(evidence: &Evidence, with_queue: bool) -> Vec<String> {
    let Evidence { event, queue, sqs_message_id, sns_message_id, eventbridge_id, feedback_id, received_at, late } =
        evidence;
    let mut parts = vec![format!("received {}, {late} later", second(*received_at)), format!("event {event}")];
    parts.extend(with_queue.then(|| format!("queue {queue}")));
    parts.push(format!("SQS {sqs_message_id}"));
    let ids = [("SNS", sns_message_id), ("EventBridge", eventbridge_id), ("feedback", feedback_id)];
    parts.extend(ids.iter().filter_map(|(name, id)| Some(format!("{name} {}", id.as_ref()?))));
    parts
}

fn entry(missing: &Missing) -> String {
    wrapped("  - ", &format!("{}: {}.", missing.what, missing.why))
}
