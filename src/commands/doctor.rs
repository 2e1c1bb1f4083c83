//! `ses-ledger doctor`: is it set up right, hop by hop?

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::json;

use super::screen::{Screen, wrapped};
use crate::{
    cli::{DatabaseArgs, QueueArgs, duration},
    doctor::{self, About, Finding, Severity, Times},
    postgres::Postgres,
};

/// Arguments of `doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// Configuration set that your mails are sent with [default: the first that leads to the queue]
    #[arg(long, value_name = "NAME", help_heading = "SES")]
    config_set: Option<String>,

    /// Domain or address that your mails come from [default: none is looked at]
    #[arg(long, value_name = "DOMAIN_OR_ADDRESS", help_heading = "SES")]
    identity: Option<String>,

    /// Region of SES, its topic and its rules [default: the queue's]
    #[arg(long, value_name = "REGION", help_heading = "SES")]
    ses_region: Option<String>,

    #[command(flatten)]
    database: DatabaseArgs,

    #[command(flatten)]
    queue: QueueArgs,

    /// How long the worker hides a message
    #[arg(long, env, default_value = "120s", value_parser = duration, value_name = "TIME", help_heading = "The worker's settings")]
    visibility_timeout: Duration,

    /// How long its oldest message may wait for its batch to fill
    #[arg(long, env, default_value = "150ms", value_parser = duration, value_name = "TIME", help_heading = "The worker's settings")]
    batch_age: Duration,

    /// How long one attempt of it to store a batch may take
    #[arg(long, env, default_value = "15s", value_parser = duration, value_name = "TIME", help_heading = "The worker's settings")]
    store_timeout: Duration,

    /// How long deleting a stored batch may take it
    #[arg(long, env, default_value = "20s", value_parser = duration, value_name = "TIME", help_heading = "The worker's settings")]
    delete_budget: Duration,

    /// Exit with 1 also on warnings, and on what could not be found out
    #[arg(long)]
    strict: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl DoctorArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()?;
        match self.queue.queue_url.is_empty() {
            true => Err("QUEUE_URL (--queue-url) has to name the queue that the worker receives from".to_owned()),
            false => Ok(()),
        }
    }

    fn times(&self) -> Times {
        let worst = self.batch_age + self.store_timeout + self.delete_budget;
        Times { visibility: self.visibility_timeout, worst }
    }
}

/// What was found about one thing.
struct Part {
    title: String,
    findings: Vec<Finding>,
}

/// Looks, and says what it found.
///
/// # Errors
/// If a queue's region cannot be told.
pub async fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let database = Postgres::new(&args.database.reader())?;
    let wanted = args.database.database_connections;
    let (parts, about_database) = tokio::join!(look(&args), doctor::gather_database(&database, wanted));
    database.close().await;
    let mut parts = parts?;
    parts.push(Part { title: "database".to_owned(), findings: doctor::judge_database(&about_database) });
    match args.json {
        true => writeln!(io::stdout(), "{}", document(&parts))?,
        false => show(&parts),
    }
    let is_bad = |severity: Severity| severity == Severity::Error || args.strict && severity >= Severity::Unknown;
    let bad = parts.iter().flat_map(|it| &it.findings).any(|it| is_bad(it.severity));
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Looks at each queue and what leads to it.
async fn look(args: &DoctorArgs) -> anyhow::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for queue in &args.queue.sqs() {
        let about = About {
            queue,
            region: args.ses_region.as_deref(),
            config_set: args.config_set.as_deref(),
            identity: args.identity.as_deref(),
            times: args.times(),
        };
        let facts = Box::pin(doctor::gather(&about)).await?;
        parts.push(Part { title: facts.queue_arn.clone(), findings: doctor::judge(&facts) });
    }
    Ok(parts)
}

fn count(parts: &[Part], severity: Severity) -> usize {
    parts.iter().flat_map(|it| &it.findings).filter(|it| it.severity == severity).count()
}

const SEVERITIES: [(Severity, &str); 5] = [
    (Severity::Error, "error"),
    (Severity::Warning, "warning"),
    (Severity::Unknown, "unknown"),
    (Severity::Note, "note"),
    (Severity::Ok, "ok"),
];

fn document(parts: &[Part]) -> serde_json::Value {
    let of = |part: &Part| json!({"about": part.title, "findings": part.findings});
    let counts: serde_json::Map<_, _> =
        SEVERITIES.iter().map(|(severity, name)| ((*name).to_owned(), json!(count(parts, *severity)))).collect();
    json!({"counts": counts, "parts": parts.iter().map(of).collect::<Vec<_>>()})
}

fn show(parts: &[Part]) {
    let screen = Screen::new(false);
    for part in parts.iter().filter(|it| it.title != "database") {
        screen.say(&wrapped("ses-ledger doctor: ", &part.title));
        show_findings(&screen, &part.findings);
    }
    for part in parts.iter().filter(|it| it.title == "database") {
        show_findings(&screen, &part.findings);
    }
    let of = |severity, one: &str, many: &str| match count(parts, severity) {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    };
    let (errors, warnings) = (of(Severity::Error, "error", "errors"), of(Severity::Warning, "warning", "warnings"));
    let unknown = of(Severity::Unknown, "unknown", "unknown");
    let summary = format!("{errors}, {warnings}, {unknown}");
    let worst = parts.iter().flat_map(|it| &it.findings).map(|it| it.severity).max();
    screen.say(&match worst {
        Some(Severity::Error) => format!("\n{}", screen.red(&summary)),
        Some(Severity::Warning) => format!("\n{}", screen.bold(&summary)),
        Some(Severity::Unknown) => {
            format!("\n{}", screen.bold(&format!("{summary}: what could be looked at is right.")))
        }
        _ => format!("\n{}", screen.green(&format!("{summary}: it is set up right."))),
    });
}

fn show_findings(screen: &Screen, findings: &[Finding]) {
    let mut hop = None;
    for finding in findings {
        if hop.replace(finding.hop) != Some(finding.hop) {
            screen.say(&format!("\n{}", screen.bold(finding.hop.title())));
        }
        show_finding(screen, finding);
    }
}

/// The severity in the margin, then what, why, and the command. A word of a command is never cut.
fn show_finding(screen: &Screen, finding: &Finding) {
    let (margin, paint): (_, fn(&Screen, &str) -> String) = match finding.severity {
        Severity::Ok => ("  ok       ", |_, text| text.to_owned()),
        Severity::Note => ("  note     ", |_, text| text.to_owned()),
        Severity::Unknown => ("  unknown  ", Screen::bold),
        Severity::Warning => ("  warning  ", Screen::bold),
        Severity::Error => ("  ERROR    ", Screen::red),
    };
    let text = wrapped(margin, &finding.what);
    screen.say(&text.replacen(margin, &paint(screen, margin), 1));
    if let Some(why) = &finding.why {
        screen.say(&wrapped("           ", why));
    }
    match &finding.fix {
        Some(fix) if is_command(fix) => screen.say(&command(fix)),
        Some(fix) => screen.say(&wrapped("           to mend it: ", fix)),
        None => {}
    }
}

/// What a shell takes; the rest is SQL, or says what to do elsewhere.
fn is_command(fix: &str) -> bool {
    ["aws ", "ses-ledger "].iter().any(|program| fix.starts_with(program))
}

/// A command in lines of a terminal's width where it can be broken: outside of quotes.
fn command(text: &str) -> String {
    const INDENT: &str = "             ";
    let (mut lines, mut line, mut quoted) = (Vec::new(), String::from("           $"), false);
    for word in text.split(' ') {
        let first = word.lines().next().unwrap_or_default().chars().count();
        let is_long = line.lines().last().unwrap_or_default().chars().count() + 1 + first > 76;
        // What looks like a place to break inside of quotes is none.
        if is_long && !quoted && line.trim() != "$" && !line.trim().is_empty() {
            lines.push(format!("{line} \\"));
            line = format!("{INDENT}{word}");
        } else {
            line.push_str(if line.is_empty() { INDENT } else { " " });
            line.push_str(word);
        }
        quoted ^= word.matches('\'').count() % 2 == 1;
    }
    lines.push(line);
    // The lines of JSON: what stands before a value means nothing.
    lines.iter().map(|line| line.replace('\n', &format!("\n{INDENT}"))).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_broken_only_where_a_shell_takes_it_on() {
        let text = "aws sqs set-queue-attributes --queue-url https://sqs.eu-west-1.amazonaws.com/123456789012/events \
                    --attributes '{\"a\": \"it is a very long text that has blanks in it, and more of them\"}' --region eu-west-1";
        let shown = command(text);
        let joined = shown.replace(" \\\n", " ").trim_start().trim_start_matches("$ ").to_owned();
        assert_eq!(
            joined.split_whitespace().collect::<Vec<_>>(),
            text.split_whitespace().collect::<Vec<_>>(),
            "{shown}"
        );
        assert!(joined.contains("has blanks in it, and more of them"), "nothing is put into quotes: {shown}");
        assert!(shown.lines().count() > 2, "{shown}");
    }
}
