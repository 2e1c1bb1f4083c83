//! `ses-ledger adopt`: mails and events from existing tables of another shape.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::screen::{Screen, grouped, wrapped};
use crate::{
    adoption::{
        Adoption, Counts, Step, StepReport,
        rows::Reason,
        shape::{From, Shape},
    },
    cli::{DatabaseArgs, EXIT_UNAVAILABLE, EXIT_USAGE, check_database_url},
    postgres::{Postgres, PostgresSettings, adoption as tables},
    readable,
};

/// Arguments of `adopt`.
#[derive(Args, Clone)]
pub struct AdoptArgs {
    /// Ready-made mapping of tables and columns
    #[arg(long, value_enum, default_value_t)]
    from: From,

    /// Schema of the tables to adopt from [default: where the login's search path leads]
    #[arg(long, value_name = "NAME")]
    from_schema: Option<String>,

    /// Table of the mails; none if there is none [default: mails, or PhoenixKit's]
    #[arg(long, value_name = "TABLE")]
    logs: Option<String>,

    /// Table of the events; none if there is none [default: mail_events, or PhoenixKit's]
    #[arg(long, value_name = "TABLE")]
    events: Option<String>,

    /// Which column says what, like logs.subject=betreff or events.log_id=mail_id; without a column it is left out
    #[arg(long, value_name = "FIELD=COLUMN")]
    map: Vec<String>,

    /// Database of these tables, if it is another one than DATABASE_URL [default: the same]
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    source_url: Option<String>,

    /// Say what would be adopted, collapsed, linked and left, and change nothing
    #[arg(long, conflicts_with_all = ["list", "view"])]
    dry_run: bool,

    /// List the rows that the last run could not take, with their reasons
    #[arg(long, conflicts_with = "view")]
    list: bool,

    /// Adopt nothing, but print the script that mirrors your log table here, or takes the mirror away
    #[arg(long, value_enum, value_name = "WHAT", num_args = 0..=1, default_missing_value = "install")]
    view: Option<View>,

    /// Rows in one transaction, 1 to 10000
    #[arg(long, default_value_t = 1_000, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    page: u32,

    #[command(flatten)]
    database: DatabaseArgs,

    /// Print the report as one JSON object; progress goes to standard error
    #[arg(long)]
    json: bool,
}

/// What to do with the mirror of a log table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum View {
    /// Each row that is written to your table becomes a mail, and a view shows what became of it
    Install,
    /// Take trigger, function and view away; the mails stay
    Remove,
}

impl AdoptArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()?;
        match &self.source_url {
            Some(url) => {
                check_database_url(url, false).map_err(|e| e.replace("DATABASE_URL (--database-url)", "--source-url"))
            }
            None => Ok(()),
        }
    }

    /// How to read the tables: nothing is changed there, and a page may take its time.
    fn source(&self) -> PostgresSettings {
        let same = PostgresSettings { statement_timeout: Duration::ZERO, connections: 1, ..self.database.reader() };
        match &self.source_url {
            Some(url) => PostgresSettings { url: Some(url.clone()), secret: None, schema: None, ..same },
            // The tables are looked for where the login's search path leads, not in our schema.
            None => PostgresSettings { schema: None, ..same },
        }
    }
}

/// Adopts, rehearses, lists, or prints the script of the mirror.
///
/// # Errors
/// If a database fails for long, or the tables are not what was said.
pub async fn run(args: AdoptArgs) -> anyhow::Result<ExitCode> {
    let shape =
        Shape::new(args.from, args.from_schema.as_deref(), args.logs.as_deref(), args.events.as_deref(), &args.map);
    let shape = match shape {
        Ok(shape) => shape,
        Err(e) => {
            eprintln!("error: {e:#}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    let settings = if args.dry_run { args.database.reader() } else { args.database.settings() };
    let (postgres, source) = (Postgres::new(&settings)?, Postgres::new(&args.source())?);
    for database in [&postgres, &source] {
        if let Err(e) = database.try_connect().await {
            eprintln!("error: {e}");
            return Ok(ExitCode::from(EXIT_UNAVAILABLE));
        }
    }
    let elsewhere = args.source_url.as_deref().map(|url| name_of(url).to_owned());
    let adoption = match Adoption::new(postgres.clone(), source, shape, elsewhere.as_deref(), args.page).await {
        Ok(adoption) => adoption,
        Err(e) => {
            eprintln!("error: {e:#}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    if let Some(view) = args.view {
        let screen = Screen::new(false);
        screen.say(adoption.mirror(view == View::Remove).await?.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    if args.list {
        return list(&postgres, &adoption, args.json).await;
    }
    adopt(&adoption, &args).await
}

async fn adopt(adoption: &Adoption, args: &AdoptArgs) -> anyhow::Result<ExitCode> {
    let screen = Screen::new(args.json);
    let started = Instant::now();
    let tables = adoption.labels().join(" and ");
    let what = if args.dry_run { "What would be adopted from" } else { "Adopting from" };
    screen.say(&wrapped("", &format!("{what} {tables}")));
    screen.say("");
    let mut said = Instant::now();
    let mut progress = |step: Step, counts: &Counts, about: Option<i64>| {
        let pause = if screen.terminal { Duration::from_millis(200) } else { Duration::from_secs(10) };
        if said.elapsed() >= pause {
            said = Instant::now();
            screen.redraw(&progress_line(step, counts, about), false);
        }
    };
    let reports = match args.dry_run {
        true => adoption.rehearse(&mut progress).await?,
        false => adoption.run(&mut progress).await?,
    };
    let attached = if args.dry_run { 0 } else { adoption.attach_orphans().await? };
    let seconds = started.elapsed();
    if screen.terminal {
        // Takes the place of the progress.
        screen.redraw("", true);
    }
    let unmatched: u64 = reports.iter().map(|report| report.counts.unmatched).sum();
    if args.json {
        let seconds = (seconds.as_secs_f64() * 10.0).round() / 10.0;
        let report =
            json!({"dry_run": args.dry_run, "steps": reports, "orphans_attached": attached, "seconds": seconds});
        print_line(&report.to_string());
    } else {
        reports.iter().for_each(|report| show(&screen, report));
        if attached > 0 {
            screen.say(&format!("  orphans      {} events that waited have found their mail\n", grouped(attached)));
        }
        let how = match (args.dry_run, unmatched) {
            (true, 0) => screen.bold("every row would be taken; nothing was changed"),
            (true, _) => screen.bold("some rows would not be taken; nothing was changed"),
            (false, 0) => screen.green("every row is accounted for, and none is left"),
            (false, _) => {
                screen.bold("every row is accounted for; `ses-ledger adopt --list` shows those that are left")
            }
        };
        screen.say(&wrapped("  ", &format!("{how}. {}", readable::span(seconds))));
    }
    Ok(if unmatched == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn progress_line(step: Step, counts: &Counts, about: Option<i64>) -> String {
    let of = match about.filter(|about| *about > 0 && step != Step::Facts) {
        Some(about) => format!(" of about {}", grouped(about as u64)),
        None => String::new(),
    };
    format!("  {:<12} {} read{of}", step.as_str(), grouped(counts.read))
}

/// Title, and what the numbers of a step add up to.
fn show(screen: &Screen, report: &StepReport) {
    let (title, unit) = match report.step {
        Step::Logs => ("log rows", "rows"),
        Step::Events => ("event rows", "rows"),
        Step::Facts => ("facts", "facts that log rows tell"),
    };
    let counts = &report.counts;
    let resumed = if report.resumed { ", partly by a run that was stopped" } else { "" };
    screen.say(&format!("  {title:<12} {} {unit} read{resumed}", grouped(counts.read)));
    let parts = [
        (counts.adopted, "adopted"),
        (counts.parked, "wait for their mail"),
        (counts.collapsed, "collapsed"),
        (counts.there, if report.step == Step::Facts { "known" } else { "there already" }),
        (counts.unmatched, "left"),
    ];
    let shown = parts.iter().filter(|(count, what)| *count > 0 || ["adopted", "left"].contains(what));
    let sum: Vec<String> = shown.map(|(count, what)| format!("{} {what}", grouped(*count))).collect();
    screen.say(&wrapped("               ", &format!("= {}", sum.join(" + "))));
    if !counts.ids.is_empty() {
        let ids: Vec<String> =
            counts.ids.iter().map(|(place, n)| format!("{} {}", grouped(*n), place_in_words(place))).collect();
        screen.say(&wrapped("               ", &format!("SES ids: {}", ids.join(", "))));
    }
    if !counts.events.is_empty() {
        let kinds: Vec<String> = counts.events.iter().map(|(kind, n)| format!("{} {kind}", grouped(*n))).collect();
        screen.say(&wrapped("               ", &format!("events: {}", kinds.join(", "))));
    }
    for (reason, rows) in &counts.reasons {
        let words = format!("{} left: {} ({reason})", grouped(rows.rows), Reason::in_words(reason));
        let examples = rows.examples.iter().filter(|id| !id.is_empty()).cloned().collect::<Vec<_>>().join(", ");
        let examples = if examples.is_empty() { examples } else { format!(", like {examples}") };
        screen.say(&wrapped("               ", &format!("{words}{examples}")));
    }
    if report.step != Step::Facts && !report.left_out.is_empty() {
        screen.say(&wrapped("               ", &format!("no column for: {}", report.left_out.join(", "))));
    }
    if report.step != Step::Facts && !report.not_taken.is_empty() {
        screen.say(&wrapped("               ", &format!("columns not taken: {}", report.not_taken.join(", "))));
    }
    screen.say("");
}

fn place_in_words(place: &str) -> &str {
    match place {
        "in_their_column" => "in their column",
        "in_headers" => "found in headers",
        "elsewhere" => "found in tags or other columns",
        "nowhere" => "nowhere",
        _ => "given to mails here that had none",
    }
}

/// Rows of a list that are read at once.
const LISTED: i64 = 10_000;

async fn list(postgres: &Postgres, adoption: &Adoption, as_json: bool) -> anyhow::Result<ExitCode> {
    let labels = adoption.labels();
    let mut after = (String::new(), String::new(), String::new());
    let mut found = ExitCode::SUCCESS;
    loop {
        let rows = tables::unmatched(postgres, &labels, &after, LISTED).await?;
        for (table, step, id, reason) in &rows {
            found = ExitCode::FAILURE;
            match as_json {
                true => print_line(&json!({"table": table, "step": step, "id": id, "reason": reason}).to_string()),
                false => print_line(&format!("{table}  {id}  {reason}: {}", Reason::in_words(reason))),
            }
        }
        match rows.last() {
            Some((table, step, id, _)) if rows.len() as i64 == LISTED => {
                after = (table.clone(), step.clone(), id.clone())
            }
            _ => return Ok(found),
        }
    }
}

/// A line of the answer.
fn print_line(line: &str) {
    use std::io::Write as _;
    // A reader who has gone away is no reason to fail.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// The name of the database in a URL.
fn name_of(url: &str) -> &str {
    let path = url.split("://").nth(1).and_then(|rest| rest.split_once('/')).map_or("", |(_, path)| path);
    path.split('?').next().unwrap_or_default()
}
