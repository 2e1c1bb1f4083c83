//! `ses-ledger suppressed`: may I write to her?

use std::{
    collections::HashMap,
    io::{self, BufRead as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde::Serialize;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    ask::{self, connect},
    screen::{Screen, grouped, one_line, say, wrapped},
};
use crate::{
    cli::{DatabaseArgs, EXIT_USAGE, moment},
    postgres::{
        PostgresSettings,
        suppression::{self, Listed, Removal, Suppression},
    },
    readable::{plural, second},
};

/// Arguments of `suppressed`.
#[derive(Args, Clone)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SuppressedArgs {
    #[command(subcommand)]
    what: Option<What>,

    /// Addresses to ask about, in any spelling; - reads them from standard input, one per line
    #[arg(value_name = "ADDRESS", required = true)]
    addresses: Vec<String>,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Subcommand, Clone)]
enum What {
    /// List who is suppressed, the newest report first
    List(ListArgs),
    /// Allow an address to be written to again
    ///
    /// Needs a reason, which is kept with the login and the time. What happened until then counts no more, also where SES
    /// reports it late; what happens afterwards does. Exits with 1 if the address is not suppressed. Needs a login that is a
    /// member of ses_ledger_owner, or was granted the right to execute ses_ledger_remove_suppression.
    Remove(RemoveArgs),
    /// List what was taken off, by whom and why, newest first
    Removals(RemovalsArgs),
}

#[derive(Args, Clone)]
struct ListArgs {
    /// Only those whose newest report is from this moment on: 2026-11-21, 2026-11-21T15:30:00Z, or 2d for two days ago
    #[arg(long, value_parser = moment, value_name = "WHEN")]
    since: Option<OffsetDateTime>,

    /// Only those with this cause
    #[arg(long, value_parser = PossibleValuesParser::new(["bounce", "complaint", "ses_list"]), value_name = "CAUSE")]
    cause: Option<String>,

    /// At most so many, 1 to 100000
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    limit: u32,

    /// Go on after this one: the last page ends with its key
    #[arg(long, value_parser = key, value_name = "KEY")]
    after: Option<(OffsetDateTime, String)>,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    csv: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Args, Clone)]
struct RemoveArgs {
    /// The address, in any spelling
    address: String,

    /// Why she may be written to again
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Args, Clone)]
struct RemovalsArgs {
    /// Only of this address
    address: Option<String>,

    /// At most so many, 1 to 100000
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    limit: u32,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

/// What is said about one address that was asked for.
#[derive(Serialize)]
struct Answer<'a> {
    address: String,
    /// Not to be written to.
    suppressed: bool,
    /// The report that says so, or that says it perhaps.
    report: Option<&'a Suppression>,
}

impl SuppressedArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.what {
            None => self.database.check(),
            Some(What::List(args)) => args.database.check(),
            Some(What::Remove(args)) => args.database.check(),
            Some(What::Removals(args)) => args.database.check(),
        }
    }
}

/// Answers, or takes an address off. Asked about addresses it exits with 1 if one of them is suppressed.
///
/// # Errors
/// If the database cannot be asked, or standard input not be read.
pub async fn run(args: SuppressedArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        None => ask_about(args).await,
        Some(What::List(args)) => list(args).await,
        Some(What::Remove(args)) => remove(args).await,
        Some(What::Removals(args)) => removals(args).await,
    }
}

async fn ask_about(args: SuppressedArgs) -> anyhow::Result<ExitCode> {
    let addresses = addresses(&args.addresses)?;
    if let Some(wrong) = addresses.iter().find(|address| !address.contains('@')) {
        return Ok(no_address(wrong));
    }
    let postgres = match ask::reader(&args.database).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let found = suppression::suppressed(&postgres, &addresses).await?;
    let mut reports: HashMap<&str, &Suppression> = HashMap::new();
    for report in &found {
        // Of several addresses in one text one that is certain.
        let told = reports.entry(&report.address).or_insert(report);
        *told = if told.certain { told } else { report };
    }
    let answer = |address: &'_ String| {
        let report = reports.get(address.as_str()).copied();
        Answer { address: address.clone(), suppressed: report.is_some_and(|report| report.certain), report }
    };
    let answers: Vec<Answer> = addresses.iter().map(answer).collect();
    match args.json {
        true => ask::print_json(&json!({ "addresses": answers }))?,
        false => show(&answers),
    }
    let any = answers.iter().any(|answer| answer.suppressed);
    Ok(if any { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Those of the command line, with those of standard input in the place of `-`.
fn addresses(given: &[String]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for address in given {
        if address != "-" {
            all.push(address.clone());
            continue;
        }
        for line in io::stdin().lock().lines() {
            let line = line.context("cannot read addresses from standard input")?;
            all.extend(Some(line.trim().to_owned()).filter(|line| !line.is_empty()));
        }
    }
    Ok(all)
}

fn no_address(text: &str) -> ExitCode {
    eprintln!("error: {:?} is no address: write it like ana@example.net", one_line(text, 80));
    ExitCode::from(EXIT_USAGE)
}

fn show(answers: &[Answer]) {
    let screen = Screen::new(false);
    for Answer { address, suppressed, report } in answers {
        let address = one_line(address, 120);
        match report {
            None => say!("{}  {address}", screen.green("write    ")),
            Some(report) => {
                let word = if *suppressed { screen.red("suppressed") } else { screen.bold("perhaps   ") };
                say!("{word} {address}");
                say!("{}", wrapped("           ", &reason(report)));
                if let Some(mail) = report.email_log_uuid {
                    say!("           ses-ledger explain {mail}");
                }
            }
        }
    }
    if answers.len() > 1 {
        let count = answers.iter().filter(|answer| answer.suppressed).count();
        let be = if count == 1 { "is" } else { "are" };
        say!("{} of {} {be} suppressed.", grouped(count as u64), plural(answers.len() as u64, "address", "addresses"));
    }
}

/// `A mail to it came back for good (NoEmail, 5.1.1), 2026-11-21 15:30:00 UTC; 3 reports in all.`
fn reason(report: &Suppression) -> String {
    let why = match (report.cause.as_str(), report.certain) {
        ("bounce", true) => "A mail to it came back for good",
        ("complaint", true) => "A mail to it was called spam",
        ("complaint", false) => "A mail to it and others was called spam, and SES does not say by whom",
        ("ses_list", true) => "SES did not send to it, because it is on a suppression list of SES",
        _ => "SES did not send to it or to others, because one of them is on a suppression list of SES",
    };
    let details = [&report.subtype, &report.smtp_status].into_iter().flatten().map(|text| one_line(text, 40));
    let details = details.collect::<Vec<_>>().join(", ");
    let details = if details.is_empty() { details } else { format!(" ({details})") };
    let reports = match report.reports {
        1 => String::new(),
        1_000 => "; 1,000 reports or more".to_owned(),
        reports => format!("; {} reports in all", grouped(reports.unsigned_abs().into())),
    };
    let perhaps = if report.certain { "" } else { " It may be written to." };
    format!("{why}{details}, {} UTC{reports}.{perhaps}", second(report.occurred_at))
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let postgres = match ask::reader(&args.database).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let is_first = args.after.is_none();
    let which = Listed { since: args.since, after: args.after, cause: args.cause, limit: args.limit };
    let found = suppression::list(&postgres, &which).await?;
    if args.csv {
        say!("address,cause,occurred_at,reports,subtype,smtp_status,email_log_uuid,event_uuid");
        found.iter().for_each(|report| say!("{}", csv(report)));
        return Ok(ExitCode::SUCCESS);
    }
    let next = found.last().filter(|_| found.len() == args.limit as usize).map(key_of);
    ask::print(args.json, &json!({ "suppressed": found, "next": next }), || {
        for report in &found {
            let (at, cause, address) = (second(report.occurred_at), &report.cause, one_line(&report.address, 120));
            say!("{at}  {cause:<9}  {address}");
            let detail = [&report.subtype, &report.smtp_status].into_iter().flatten().map(|text| one_line(text, 40));
            let mail = report.email_log_uuid.map(|mail| format!("mail {mail}"));
            let detail = detail.chain(mail).collect::<Vec<_>>().join("  ");
            if !detail.is_empty() {
                say!("  {detail}");
            }
        }
        match next {
            _ if found.is_empty() && is_first => say!("Nobody is suppressed."),
            _ if found.is_empty() => say!("That was the last one."),
            Some(key) => say!("More: add --after {key}"),
            None => {}
        }
    })
}

/// Where a page ends: the moment of the newest report, and the address.
fn key_of(report: &Suppression) -> String {
    format!("{},{}", report.occurred_at.format(&Rfc3339).unwrap_or_default(), one_line(&report.address, 1_100))
}

fn key(text: &str) -> Result<(OffsetDateTime, String), String> {
    let read = text
        .split_once(',')
        .and_then(|(at, address)| Some((OffsetDateTime::parse(at, &Rfc3339).ok()?, address.to_owned())));
    read.ok_or_else(|| "this is no key: take the one with which the last page ends".to_owned())
}

/// One line of comma-separated values.
fn csv(report: &Suppression) -> String {
    let quoted = |text: &str| format!("\"{}\"", one_line(text, 1_100).replace('"', "\"\""));
    let text = |text: &Option<String>| text.as_deref().map(quoted).unwrap_or_default();
    let uuid = |uuid: Option<Uuid>| uuid.map(|uuid| uuid.to_string()).unwrap_or_default();
    let at = report.occurred_at.format(&Rfc3339).unwrap_or_default();
    [
        quoted(&report.address),
        report.cause.clone(),
        at,
        report.reports.to_string(),
        text(&report.subtype),
        text(&report.smtp_status),
        uuid(report.email_log_uuid),
        uuid(report.event_uuid),
    ]
    .join(",")
}

async fn remove(args: RemoveArgs) -> anyhow::Result<ExitCode> {
    if !args.address.contains('@') {
        return Ok(no_address(&args.address));
    }
    let settings = PostgresSettings { read_only: false, ..args.database.reader() };
    let postgres = match connect(&settings).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    if let Some(grant) = suppression::lacks_removal(&postgres).await? {
        eprintln!("error: this login may not take addresses off. To mend it, have the schema's owner run: {grant}");
        return Ok(ExitCode::FAILURE);
    }
    let removal = suppression::remove(&postgres, &args.address, args.reason.trim()).await?;
    match (args.json, removal) {
        (true, _) => ask::print_json(&json!({ "removed": removal.is_some(), "removal": removal }))?,
        (false, Some(_)) => say!(
            "{}",
            wrapped(
                "",
                "It may be written to again. If it is on the list of your SES account as well: \
                 aws sesv2 delete-suppressed-destination --email-address ADDRESS"
            )
        ),
        (false, None) => eprintln!("error: {} is not suppressed: nothing was changed", one_line(&args.address, 120)),
    }
    Ok(if removal.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn removals(args: RemovalsArgs) -> anyhow::Result<ExitCode> {
    let postgres = match ask::reader(&args.database).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let found = suppression::removals(&postgres, args.address.as_deref(), args.limit).await?;
    ask::print(args.json, &json!({ "removals": found }), || {
        for Removal { address, reason, removed_by, removed_at, .. } in &found {
            say!("{}  {}", second(*removed_at), one_line(address, 120));
            say!("{}", wrapped("  ", &format!("by {}: {}", one_line(removed_by, 63), one_line(reason, 500))));
        }
        if found.is_empty() {
            say!("Nothing was taken off.");
        }
    })
}
