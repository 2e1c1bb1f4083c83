//! `ses-ledger rebuild`: facts and figures recomputed from stored events, with a diff before anything is changed.

use std::{
    ops::RangeInclusive,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::{
    ask,
    figures::{differing, month, months},
    removal::is_wanted,
    screen::{Screen, grouped, wrapped},
};
use crate::{
    cli::DatabaseArgs,
    postgres::{
        Postgres, Trouble,
        letting_go::Owner,
        rebuild::{self, Change, Difference, Looked, Progress, Scope},
        rollup, trouble,
    },
    readable::{self, plural},
};

/// Recompute facts and figures from stored events, and see what would change first
///
/// For after an upgrade whose changelog says that a rule has changed, after a restore, or after somebody changed rows by hand.
/// What stored events show is taken: a fact that is missing, later, milder or fewer than they say is mended, and one is taken
/// away if the very event that it came from states something else by today's rules. What a mail has beyond its stored events
/// is left and counted: two delays or two bounces of one recipient share one row, and events may have been removed. Mails
/// whose events were let go are not touched. The figures follow, as by `ses-ledger figures rebuild`. It can be stopped at any moment, and finds what is left when it is called again.
/// To look is enough of the role ses_ledger_operator; to change something needs a login that is a member of ses_ledger_owner.
#[derive(Args, Clone)]
pub struct RebuildArgs {
    /// Only say what would change; exits with 1 if anything would
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    /// First month of mails, like 2026-03; ids that tell no time are left out [default: all mails]
    #[arg(long, value_name = "MONTH", value_parser = month, conflicts_with = "mail")]
    from: Option<Date>,

    /// Last month of mails [default: all mails]
    #[arg(long, value_name = "MONTH", value_parser = month, conflicts_with = "mail")]
    to: Option<Date>,

    /// Only this mail
    #[arg(long, value_name = "UUID")]
    mail: Option<Uuid>,

    /// Also take away what no stored event shows; what only an event without a row has told is lost by it
    #[arg(long)]
    strict: bool,

    /// Leave the figures (see `ses-ledger figures`) as they are; so does --mail
    #[arg(long)]
    facts_only: bool,

    /// Print one JSON document; progress and questions go to standard error
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

impl RebuildArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()?;
        self.database.check_own_session("rebuilding")?;
        match (self.from, self.to) {
            (Some(from), Some(to)) if to < from => Err("--to has to be the month of --from, or a later one".to_owned()),
            _ => Ok(()),
        }
    }

    fn scope(&self) -> Scope {
        let start = |day: Date| day.midnight().assume_utc();
        let to = self.to.map(|to| start(next_month(to)));
        Scope { from: self.from.map(start), to, mail: self.mail, strict: self.strict }
    }

    /// First days of the first and of the last month.
    fn months(&self) -> Option<RangeInclusive<Date>> {
        months(self.from, self.to)
    }
}

/// Looks, asks, and changes what is to be changed. Exits with 1 if a dry run found a difference, or nobody agreed.
///
/// # Errors
/// If the tables cannot be read or changed. What was changed until then stays changed.
pub async fn run(args: RebuildArgs) -> anyhow::Result<ExitCode> {
    let (reader, writer) = match (ask::reader(&args.database).await, ask::connect(&args.database.settings()).await) {
        (Ok(reader), Ok(writer)) => (reader, writer),
        (Err(code), _) | (_, Err(code)) => return Ok(code),
    };
    if !args.dry_run {
        // Said before the long look, not after it.
        Owner::look(&writer).await?.end().await;
    }
    let (screen, scope, started) = (Screen::new(args.json), args.scope(), Instant::now());
    let looked = rebuild::look(&reader, &scope, &mut shown(&screen, "looked at", "mails")).await?;
    end_of_progress(&screen);
    if args.mail.is_some() && looked.difference.mails == 0 {
        eprintln!("error: there is no such mail, or its events were let go");
        return Ok(ExitCode::FAILURE);
    }
    show_difference(&screen, &looked.difference, started.elapsed());
    let figures = look_at_figures(&args, &writer, &screen).await?;
    let found =
        Found { mails: looked.difference.differ, lines: figures.as_ref().map_or(0, |f| f.lines().unsigned_abs()) };
    let (mut changed, mut code) = (None, ExitCode::SUCCESS);
    if found.is_something() {
        if !args.dry_run && is_wanted_now(&found, args.yes) {
            changed = Some(change(&args, &writer, &screen, &looked, &found).await?);
        } else {
            code = ExitCode::FAILURE;
        }
    }
    if args.json {
        let seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let changed = changed
            .map(|(facts, lines)| json!({"mails": facts.differ, "changes": facts.changes, "lines_of_figures": lines}));
        let answer = json!({
            "dry_run": args.dry_run, "strict": args.strict, "found": looked.difference, "figures": figures, "changed": changed,
            "seconds": seconds
        });
        ask::print_json(&answer)?;
    }
    Ok(code)
}

/// How much would change.
struct Found {
    mails: u64,
    lines: u64,
}

impl Found {
    fn is_something(&self) -> bool {
        self.mails > 0 || self.lines > 0
    }

    fn in_words(&self) -> String {
        let mails = plural(self.mails, "mail", "mails");
        match (self.mails, plural(self.lines, "line of the figures", "lines of the figures")) {
            (_, _) if self.lines == 0 => mails,
            (0, lines) => lines,
            (_, lines) => format!("{mails} and {lines}"),
        }
    }
}

/// Asks, and says why nothing is done.
fn is_wanted_now(found: &Found, yes: bool) -> bool {
    match is_wanted(&format!("Change {}?", found.in_words()), yes) {
        Ok(true) => return true,
        Ok(false) => eprintln!("Nothing was changed."),
        Err(e) => eprintln!("error: {e:#}. It would change {}", found.in_words()),
    }
    false
}

/// Changes facts, then figures.
async fn change(
    args: &RebuildArgs,
    writer: &Postgres,
    screen: &Screen,
    looked: &Looked,
    found: &Found,
) -> anyhow::Result<(Difference, u64)> {
    let (started, mut facts, mut lines) = (Instant::now(), Difference::default(), 0);
    if found.mails > 0 {
        let mut owner = Owner::begin(writer).await?;
        facts = rebuild::apply(&mut owner, &args.scope(), looked, &mut shown(screen, "changed", "mails")).await?;
        owner.end().await;
        end_of_progress(screen);
        show_changed(screen, &looked.difference, &facts, started.elapsed());
    }
    if found.lines > 0 {
        // Counted again while it is mended: what came meanwhile is in it.
        lines = rollup::rebuild(writer, true, args.months(), |_| {}).await?.lines().unsigned_abs();
        let mended = plural(lines, "line of the figures was changed", "lines of the figures were changed");
        screen.say(&format!("{}.", screen.green(&mended)));
    }
    Ok((facts, lines))
}

/// Looks how the figures differ from what stored events make. `None`: they are none of our business.
async fn look_at_figures(
    args: &RebuildArgs,
    writer: &Postgres,
    screen: &Screen,
) -> anyhow::Result<Option<rollup::Difference>> {
    if args.facts_only || args.mail.is_some() {
        return Ok(None);
    }
    let found = match rollup::rebuild(writer, false, args.months(), |_| {}).await {
        Err(e) if args.dry_run && matches!(trouble(&e), Trouble::Unfit(_)) => {
            eprintln!("The figures were not looked at: that takes more than the right to read (--facts-only).");
            return Ok(None);
        }
        answer => answer?,
    };
    screen.say("");
    screen.say(
        match found.lines() {
            0 => "Every figure is what its events make.".to_owned(),
            _ => differing(&found),
        }
        .trim_end(),
    );
    Ok(Some(found))
}

/// Shows how far it is: five times a second on a terminal, every ten seconds elsewhere.
fn shown<'a>(screen: &'a Screen, verb: &'a str, what: &'a str) -> impl FnMut(Progress) + Send + 'a {
    let mut said = Instant::now();
    let pause = if screen.terminal { Duration::from_millis(200) } else { Duration::from_secs(10) };
    move |Progress { done, about, last }| {
        if said.elapsed() >= pause {
            said = Instant::now();
            let of = about.map(|about| format!(" of about {}", grouped(about.max(done)))).unwrap_or_default();
            let month = last.get_timestamp().and_then(|time| {
                let at = OffsetDateTime::from_unix_timestamp(time.to_unix().0 as i64).ok()?;
                Some(format!(", mails of {}-{:02}", at.year(), u8::from(at.month())))
            });
            let line = format!("  {verb} {}{of} {what}{}", grouped(done), month.unwrap_or_default());
            screen.redraw(&line, false);
        }
    }
}

fn end_of_progress(screen: &Screen) {
    if screen.terminal {
        // Takes the place of the progress.
        screen.redraw("", true);
    }
}

fn show_difference(screen: &Screen, found: &Difference, took: Duration) {
    let looked = format!(
        "Looked at {} and {} in {}.",
        plural(found.mails, "mail", "mails"),
        plural(found.events, "event", "events"),
        readable::span(took)
    );
    let verdict = match found.differ {
        0 => screen.green("Every fact is what its events say."),
        1 => screen.bold("1 mail would change:"),
        n => screen.bold(&format!("{} mails would change:", grouped(n))),
    };
    screen.say(&wrapped("", &format!("{looked} {verdict}")));
    show_changes(screen, &found.changes);
    if !found.without_event.is_empty() {
        screen.say("");
        screen
            .say(&wrapped("", "Left, because a mail knows more than its stored events show (--strict takes it away):"));
        show_changes(screen, &found.without_event);
    }
}

fn show_changes(screen: &Screen, changes: &[Change]) {
    for Change { fact, change, mails, examples } in changes {
        // One is enough to look at; JSON has more.
        let example = examples.first().map(String::as_str).unwrap_or_default();
        let text = format!("{change}: {}, like {example}", plural(*mails, "mail", "mails"));
        screen.say(&wrapped(&format!("  {fact:<14} "), &text));
    }
}

fn show_changed(screen: &Screen, found: &Difference, done: &Difference, took: Duration) {
    let mails = screen.green(&plural(done.differ, "mail was changed", "mails were changed"));
    screen.say(&wrapped("", &format!("{mails}. {}", readable::span(took))));
    if done.changes != found.changes {
        screen.say("The database had moved on. What was changed:");
        show_changes(screen, &done.changes);
    }
}

fn next_month(first: Date) -> Date {
    // A month has at most 31 days, and 31 days after its first is always in the next one.
    first.checked_add(time::Duration::days(31)).and_then(|next| next.replace_day(1).ok()).unwrap_or(Date::MAX)
}
