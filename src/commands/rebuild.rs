//! `ses-ledger rebuild`: facts recomputed from stored events, with a diff before anything is changed.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use time::{Month, OffsetDateTime};
use uuid::Uuid;

use super::{
    ask,
    removal::is_wanted,
    screen::{Screen, grouped, wrapped},
};
use crate::{
    cli::DatabaseArgs,
    postgres::{
        Pooler,
        letting_go::Owner,
        rebuild::{self, Change, Difference, Progress, Scope},
    },
    readable::{self, plural},
};

/// Recompute the facts of mails from their stored events, and see what would change first
///
/// For after an upgrade whose changelog says that a rule has changed, after a restore, or after somebody changed rows by hand.
/// What stored events show is taken: a fact that is missing, later, milder or fewer than they say is mended, and one is taken
/// away if the very event that it came from states something else by today's rules. What a mail has beyond its stored events
/// is left and counted: two delays or two bounces of one recipient share one row, and events may have been removed. Mails
/// whose events were let go are not touched. It can be stopped at any moment, and finds what is left when it is called again.
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
    from: Option<OffsetDateTime>,

    /// Last month of mails [default: all mails]
    #[arg(long, value_name = "MONTH", value_parser = month, conflicts_with = "mail")]
    to: Option<OffsetDateTime>,

    /// Only this mail
    #[arg(long, value_name = "UUID")]
    mail: Option<Uuid>,

    /// Also take away what no stored event shows; what only an event without a row has told is lost by it
    #[arg(long)]
    strict: bool,

    /// Print one JSON document; progress and questions go to standard error
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

impl RebuildArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()?;
        if self.database.database_pooler == Pooler::Transaction {
            return Err(
                "rebuilding needs a session of its own, which DATABASE_POOLER=transaction does not give: name the \
                        server itself in DATABASE_URL, and leave out DATABASE_POOLER"
                    .to_owned(),
            );
        }
        match (self.from, self.to) {
            (Some(from), Some(to)) if to < from => Err("--to has to be the month of --from, or a later one".to_owned()),
            _ => Ok(()),
        }
    }

    fn scope(&self) -> Scope {
        Scope { from: self.from, to: self.to.map(next_month), mail: self.mail, strict: self.strict }
    }
}

/// Looks, asks, and changes what is to be changed. Exits with 1 if a dry run found a difference, or nobody agreed.
///
/// # Errors
/// If the tables cannot be read or changed. What was changed until then stays changed.
pub async fn run(args: RebuildArgs) -> anyhow::Result<ExitCode> {
    let reader = match ask::reader(&args.database).await {
        Ok(reader) => reader,
        Err(code) => return Ok(code),
    };
    let screen = Screen::new(args.json);
    let writer = if args.dry_run {
        None
    } else {
        let writer = match ask::connect(&args.database.settings()).await {
            Ok(writer) => writer,
            Err(code) => return Ok(code),
        };
        // Said before the long look, not after it.
        Owner::look(&writer).await?.end().await;
        Some(writer)
    };
    let (scope, started) = (args.scope(), Instant::now());
    let looked = rebuild::look(&reader, &scope, &mut shown(&screen, "looked at", "mails")).await?;
    end_of_progress(&screen);
    if args.mail.is_some() && looked.difference.mails == 0 {
        eprintln!("error: there is no such mail, or its events were let go");
        return Ok(ExitCode::FAILURE);
    }
    show_difference(&screen, &looked.difference, started.elapsed());
    let (differ, mut changed) = (looked.difference.differ, None);
    let mut code = ExitCode::SUCCESS;
    match &writer {
        _ if looked.difference.is_empty() => {}
        None => code = ExitCode::FAILURE,
        Some(writer) => match is_wanted(&format!("Change {}?", plural(differ, "mail", "mails")), args.yes) {
            Ok(true) => {
                let started = Instant::now();
                let mut owner = Owner::begin(writer).await?;
                let done = rebuild::apply(&mut owner, &scope, &looked, &mut shown(&screen, "changed", "mails")).await?;
                owner.end().await;
                end_of_progress(&screen);
                show_changed(&screen, &looked.difference, &done, started.elapsed());
                changed = Some(done);
            }
            Ok(false) => {
                eprintln!("Nothing was changed.");
                code = ExitCode::FAILURE;
            }
            Err(e) => {
                eprintln!("error: {e:#}. It would change {}", plural(differ, "mail", "mails"));
                code = ExitCode::FAILURE;
            }
        },
    }
    if args.json {
        let seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let changed = changed.map(|Difference { differ, changes, .. }| json!({"mails": differ, "changes": changes}));
        let answer = json!({
            "dry_run": args.dry_run, "strict": args.strict, "found": looked.difference, "changed": changed, "seconds": seconds
        });
        ask::print_json(&answer)?;
    }
    Ok(code)
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

/// Reads a month: `2026-03`.
fn month(text: &str) -> Result<OffsetDateTime, String> {
    let wrong = || format!("{text:?} is no month: write 2026-03");
    let (year, month) = text.split_once('-').filter(|(y, m)| y.len() == 4 && m.len() == 2).ok_or_else(wrong)?;
    let month: u8 = month.parse().map_err(|_| wrong())?;
    let first = Month::try_from(month).ok().zip(year.parse().ok());
    let first = first.and_then(|(month, year)| time::Date::from_calendar_date(year, month, 1).ok());
    first.map(|first| first.midnight().assume_utc()).ok_or_else(wrong)
}

fn next_month(first: OffsetDateTime) -> OffsetDateTime {
    // A month has at most 31 days, and 31 days after its first is always in the next one.
    (first + time::Duration::days(31)).replace_day(1).unwrap_or(first)
}
