//! `ses-ledger figures`: what is counted already; counting it on now; counting it anew.

use std::{
    io::{self, IsTerminal as _},
    ops::RangeInclusive,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::json;
use time::{Date, OffsetDateTime, macros::format_description};
use tokio::time::{Instant, sleep};

use super::{
    ask::{connect, print_json, reader},
    removal::is_wanted,
    screen::say,
};
use crate::{
    cli::{DatabaseArgs, figures_tag},
    postgres::{
        PostgresSettings,
        rollup::{
            self, Difference, Example, MonthDifference, Position, Rollup, Step,
            lines::{Asked, Line, Lines, lines},
        },
    },
    readable::{self, grouped, one_line, percent, plural, second, span},
};

/// How long to try to count on while others are at it.
const PATIENCE: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// As far back as no event goes.
const NEVER: i64 = 1;

/// Arguments of `figures`.
#[derive(Args, Clone)]
pub struct FiguresArgs {
    #[command(subcommand)]
    what: Option<What>,

    /// By what: day, template, campaign, configuration-set, domain, or tag:NAME for a tag of FIGURES_TAGS
    #[arg(long, value_name = "WHAT", default_value = "day", value_parser = dimension)]
    by: Dimension,

    /// Only the template (campaign, …) of this name, day by day; "" for mails without one
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// First day, like 2026-11-01, in UTC [default: the first there is; by day, 30 days ago]
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<Date>,

    /// Last day [default: the last there is]
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<Date>,

    /// Print all counts as comma-separated values
    #[arg(long, conflicts_with = "json")]
    csv: bool,

    /// Print one JSON document
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    pub database: DatabaseArgs,
}

#[derive(Subcommand, Clone)]
enum What {
    /// Count on now, up to what was stored a few seconds ago; the worker does so every FIGURES_INTERVAL
    Update,
    /// Count everything anew from the stored events, show what is otherwise in the figures, and mend it
    ///
    /// For a tag that was chosen later, for templates that were renamed, after rows were changed by hand or restored. Months
    /// whose events were let go stay as they are. Without --yes it asks on a terminal, and elsewhere only shows.
    Rebuild(RebuildArgs),
}

#[derive(Args, Clone)]
struct RebuildArgs {
    /// Only show what differs; exits with 1 if anything does
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,

    /// Mend it without asking
    #[arg(long)]
    yes: bool,

    /// First month of mails, like 2026-09 [default: the first there is]
    #[arg(long, value_name = "MONTH", value_parser = month)]
    from: Option<Date>,

    /// Last month of mails [default: the last there is]
    #[arg(long, value_name = "MONTH", value_parser = month)]
    to: Option<Date>,

    /// Tags to count by from now on, with commas between them; the worker's FIGURES_TAGS have to be the same, or it takes its
    /// own again [default: those that the worker counts by]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = figures_tag)]
    tags: Option<Vec<String>>,
}

/// By what. `None`: all mails, by day.
#[derive(Clone, Debug)]
struct Dimension(Option<String>);

impl FiguresArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()?;
        if self.name.is_some() && self.by.0.is_none() {
            return Err(
                "--name (figures) needs --by template, campaign, configuration-set, domain or tag:NAME".to_owned()
            );
        }
        match self.what {
            Some(What::Rebuild(_)) => self.database.check_own_session("counting anew"),
            _ => Ok(()),
        }
    }
}

/// Shows, counts on, or counts anew.
///
/// # Errors
/// If the database cannot be read, or the login may not count.
pub async fn run(args: FiguresArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        None => show(&args).await,
        Some(What::Update) => update(&args).await,
        Some(What::Rebuild(rebuilt)) => rebuild(&args, rebuilt).await,
    }
}

async fn show(args: &FiguresArgs) -> anyhow::Result<ExitCode> {
    let postgres = match reader(&args.database).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let by_day = args.by.0.is_none() || args.name.is_some();
    let month_ago = (OffsetDateTime::now_utc() - time::Duration::days(30)).date();
    let asked = Asked {
        dimension: args.by.0.clone(),
        key: args.name.clone(),
        from: args.from.or_else(|| (by_day && args.to.is_none()).then_some(month_ago)),
        to: args.to,
    };
    let position = rollup::position(&postgres).await?;
    let found = lines(&postgres, &asked).await?;
    if args.json {
        print_json(&json!({"figures": found, "counted": position}))?;
    } else if args.csv {
        say!("{}", as_csv(&found)?);
    } else {
        say!("{}", shown(&found, by_day, &position).trim_end());
    }
    Ok(if found.lines.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn shown(found: &Lines, by_day: bool, position: &Position) -> String {
    let title = if by_day { "day" } else { "name" };
    let mut text = format!(
        "{title:<18} {:>10} {:>10} {:>7} {:>7} {:>7} {:>7} {:>7}\n",
        "sent", "delivered", "", "bounced", "compl.", "opened", "clicked"
    );
    for line in &found.lines {
        let key = if line.key.is_empty() { "(none)".to_owned() } else { one_line(&line.key, 17) };
        text += &row(&key, line);
    }
    match found.lines.as_slice() {
        [] => text += "Nothing was counted.\n",
        [_] => {}
        _ => text += &row("all", &found.total),
    }
    if found.cut {
        text +=
            &format!("These are the {} largest; --csv and --json print no more.\n", grouped(found.lines.len() as u64));
    }
    text += &format!("\n{}\n", until(position));
    text
}

fn until(position: &Position) -> String {
    if position.counted_until.unix_timestamp() < NEVER {
        return "Nothing is counted yet: the worker does so every FIGURES_INTERVAL, or ses-ledger figures update."
            .to_owned();
    }
    let behind = span(Duration::try_from_secs_f64(position.behind_seconds).unwrap_or_default());
    format!("Counted is what was stored until {}, {behind} ago.", second(position.counted_until))
}

/// Of the recipients of whom the end is known: how many got it, and from how many it came back for good. Of those who got it:
/// who complained. Of the mails that were sent: which were opened and clicked.
fn row(key: &str, line: &Line) -> String {
    let ended = count(line.deliveries + line.bounces_permanent + line.bounces_undetermined);
    let of_sent =
        |part: Option<i64>| part.map_or_else(|| "-".to_owned(), |part| percent(count(part), count(line.sends)));
    format!(
        "{key:<18} {:>10} {:>10} {:>7} {:>7} {:>7} {:>7} {:>7}\n",
        grouped(count(line.sends)),
        grouped(count(line.deliveries)),
        percent(count(line.deliveries), ended),
        percent(count(line.bounces_permanent), ended),
        percent(count(line.complaints), count(line.deliveries)),
        of_sent(line.opened),
        of_sent(line.clicked),
    )
}

/// As in JSON. The sum is left out: a spreadsheet makes its own.
const COLUMNS: [&str; 17] = [
    "key",
    "sends",
    "deliveries",
    "delays",
    "bounces_permanent",
    "bounces_transient",
    "bounces_undetermined",
    "suppressed",
    "complaints",
    "rejects",
    "failures",
    "opens",
    "clicks",
    "opens_by_bots",
    "clicks_by_bots",
    "opened",
    "clicked",
];

fn as_csv(found: &Lines) -> anyhow::Result<String> {
    let mut text = COLUMNS.join(",");
    for line in &found.lines {
        let line = serde_json::to_value(line)?;
        let cells: Vec<String> = COLUMNS.iter().map(|name| cell(&line[*name])).collect();
        text += &format!("\n{}", cells.join(","));
    }
    Ok(text)
}

/// A name that a spreadsheet would take for a formula is none.
fn cell(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(name) => {
            let name = readable::visible(name.as_bytes());
            let guarded = if name.starts_with(['=', '+', '-', '@']) { format!("'{name}") } else { name };
            match guarded.contains([',', '"', ' ']) {
                true => format!("\"{}\"", guarded.replace('"', "\"\"")),
                false => guarded,
            }
        }
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}

async fn update(args: &FiguresArgs) -> anyhow::Result<ExitCode> {
    let postgres = match connect(&args.database.settings()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let patience = Instant::now() + PATIENCE;
    let ended = loop {
        // As long as it moves on.
        let progress = |until| eprintln!("counted until {}", second(until));
        let step =
            Rollup::default().run(&postgres, Instant::now() + Duration::from_secs(365 * 86_400), 0, progress).await?;
        match step {
            Some(Step::Counted { .. }) => break Ok(()),
            Some(Step::ClockBehind) => {
                break Err(
                    "the database's clock was set back: when it has caught up, ses-ledger figures rebuild counts what was \
                           stored meanwhile",
                );
            }
            None | Some(Step::Busy | Step::MonthInTransit) if Instant::now() < patience => sleep(TRY_AGAIN).await,
            None => {
                break Err("somebody has been storing in one transaction for a minute: try again when that has ended");
            }
            Some(Step::Busy) => {
                break Err("somebody else has been counting for a minute: try again when that has ended");
            }
            Some(Step::MonthInTransit) => {
                break Err("retention stopped while it let go of a month: ses-ledger retention run goes on with it");
            }
        }
    };
    let position = rollup::position(&postgres).await?;
    if args.json {
        print_json(&json!({"counted": position, "stopped": ended.err()}))?;
    } else {
        say!("{}", until(&position));
        if let Err(why) = ended {
            eprintln!("error: {why}");
        }
    }
    Ok(if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn rebuild(args: &FiguresArgs, wanted: &RebuildArgs) -> anyhow::Result<ExitCode> {
    let settings = PostgresSettings { statement_timeout: Duration::ZERO, ..args.database.settings() };
    let postgres = match connect(&settings).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let months = months(wanted.from, wanted.to);
    let tags = wanted.tags.as_deref();
    let tell = |month: &MonthDifference| {
        eprintln!(
            "{}: {} lines, {} differ",
            month_name(month.month),
            grouped(count(month.lines)),
            grouped(count(month.different))
        );
    };
    let seen = rollup::rebuild_by(&postgres, false, months.clone(), tags, tell).await?;
    if !args.json {
        say!("{}", differing(&seen).trim_end());
    }
    if seen.lines() == 0 || !(wanted.yes || !wanted.dry_run && is_agreed()) {
        if args.json {
            print_json(&seen)?;
        }
        return Ok(if seen.lines() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    // Counted again while it is mended: what came meanwhile is in it.
    let mended = rollup::rebuild_by(&postgres, true, months, tags, |_| {}).await?;
    match args.json {
        true => print_json(&mended)?,
        false => say!("Mended {}.", plural(count(mended.lines()), "line", "lines")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether somebody is there and says yes.
fn is_agreed() -> bool {
    if io::stdout().is_terminal()
        && let Ok(agreed) = is_wanted("Mend it?", false)
    {
        return agreed;
    }
    eprintln!("Nothing was changed. To mend it: add --yes");
    false
}

pub(super) fn differing(difference: &Difference) -> String {
    let mut text = String::new();
    for month in difference.months.iter().filter(|month| month.different > 0) {
        let of = plural(count(month.different), "line differs", "lines differ");
        text += &format!("Mails of {}: {of}\n", month_name(month.month));
        for Example { dimension, key, day, counters } in &month.examples {
            let name = one_line(key, 24);
            let what =
                counters.iter().map(|(name, was, is)| format!("{name} {was} → {is}")).collect::<Vec<_>>().join(", ");
            text += &format!("  {day}  {dimension} {name}\n      {}\n", one_line(&what, 73));
        }
        if month.different > month.examples.len() as i64 {
            text += "  …\n";
        }
    }
    if text.is_empty() {
        text = format!(
            "The figures of {} are those of the events.\n",
            plural(difference.months.len() as u64, "month", "months")
        );
    }
    text
}

fn count(number: i64) -> u64 {
    number.max(0) as u64
}

fn month_name(month: Date) -> String {
    month.format(format_description!("[year]-[month]")).unwrap_or_default()
}

fn day(text: &str) -> Result<Date, String> {
    Date::parse(text, format_description!("[year]-[month]-[day]"))
        .map_err(|_| format!("{text:?} is no day: write 2026-11-21"))
}

/// First days of the first and of the last month. `None`: all.
pub(super) fn months(from: Option<Date>, to: Option<Date>) -> Option<RangeInclusive<Date>> {
    (from.is_some() || to.is_some()).then(|| from.unwrap_or(Date::MIN)..=to.unwrap_or(Date::MAX))
}

pub(super) fn month(text: &str) -> Result<Date, String> {
    let first = format!("{text}-01");
    Date::parse(&first, format_description!("[year]-[month]-[day]"))
        .map_err(|_| format!("{text:?} is no month: write 2026-11"))
}

fn dimension(text: &str) -> Result<Dimension, String> {
    match text {
        "day" => Ok(Dimension(None)),
        "template" | "campaign" | "configuration-set" | "domain" => Ok(Dimension(Some(text.to_owned()))),
        tag if tag.len() > 4 && tag.starts_with("tag:") => Ok(Dimension(Some(tag.to_owned()))),
        other => Err(format!("{other:?} is none of day, template, campaign, configuration-set, domain, tag:NAME")),
    }
}
