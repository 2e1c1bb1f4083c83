//! `ses-ledger migrate`: the schema, up and down, whether it is right, and the indexes that not everybody wants.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    ask,
    screen::{Screen, grouped, one_line, say, wrapped},
};
use crate::{
    cli::{DatabaseArgs, EXIT_UNAVAILABLE, EXIT_USAGE},
    postgres::{
        Postgres, PostgresSettings,
        migrations::{self, Migration, State},
        optional::{self, Blocker, Builder, Optional, Progress, Set},
        schema::{self, Finding, Severity},
    },
    readable::{span, weight},
};

/// How often to tell how a build goes, where nobody looks at a terminal.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Arguments of `migrate`.
#[derive(Args, Clone)]
pub struct MigrateArgs {
    #[command(subcommand)]
    what: Option<What>,

    /// Build a set of optional indexes, also beside running workers: nobody who writes waits for more than a moment. What was cut
    /// short is built again by the next run
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SET", help_heading = "Optional indexes")]
    with: Vec<Set>,

    /// Drop a set of optional indexes, finished or not
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SET", help_heading = "Optional indexes")]
    without: Vec<Set>,

    /// Show the optional indexes: what each is for, whether it is there, its size, and how often it was read
    #[arg(long, help_heading = "Optional indexes")]
    optional: bool,

    #[command(flatten)]
    pub database: DatabaseArgs,

    /// Print one JSON object per line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Clone)]
enum What {
    /// Run all migrations that have not run yet
    Up,
    /// Revert migrations: the last one, or all after --to. This removes the tables they made, and what is in them
    Down {
        /// Revert everything after this version; 0 reverts all
        #[arg(long, value_name = "VERSION")]
        to: Option<i64>,
        /// Revert even if that removes mails or events
        #[arg(long)]
        yes: bool,
    },
    /// Show which migrations have run
    Status,
    /// Compare the database with what this binary needs; exits with 1 if something is missing
    Verify,
}

impl MigrateArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()?;
        let of_indexes = self.optional || !self.with.is_empty() || !self.without.is_empty();
        if self.what.is_some() == of_indexes {
            return Err(
                "say what to do: one of up, down, status and verify, or any of --with, --without and --optional"
                    .to_owned(),
            );
        }
        if self.with.iter().any(|set| self.without.contains(set)) {
            return Err("one set is named by --with and by --without: which is meant?".to_owned());
        }
        let changes = matches!(self.what, Some(What::Up | What::Down { .. })) || of_indexes;
        if changes {
            let proxy = |e| format!("{e} (RDS Proxy also gives a session to those that need one)");
            self.database.check_own_session("a migration").map_err(proxy)?;
        }
        Ok(())
    }
}

/// Migrates or looks.
///
/// # Errors
/// If the database cannot be reached or a migration fails.
pub async fn run(args: MigrateArgs) -> anyhow::Result<ExitCode> {
    // A migration may take as long as it takes.
    let settings = PostgresSettings { statement_timeout: Duration::ZERO, ..args.database.settings() };
    let postgres = match ask::connect(&settings).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let Some(what) = args.what else { return indexes(&postgres, &args).await };
    match what {
        What::Up => {
            migrations::up(&postgres).await?;
            show_status(&migrations::status(&postgres).await?, args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Down { to, yes } => down(&postgres, to, yes, args.json).await,
        What::Status => {
            let all = migrations::status(&postgres).await?;
            show_status(&all, args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Verify => {
            let findings = schema::verify(&postgres).await?;
            show_findings(&findings, args.json)?;
            Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// Drops, builds, and shows how the optional indexes then stand.
async fn indexes(postgres: &Postgres, args: &MigrateArgs) -> anyhow::Result<ExitCode> {
    if let Some(pending) = migrations::status(postgres).await?.iter().find(|m| m.state == State::Pending) {
        let Migration { version, description, .. } = pending;
        eprintln!("error: migration {version} ({description}) has not run here. To mend it: ses-ledger migrate up");
        return Ok(ExitCode::from(EXIT_UNAVAILABLE));
    }
    if !args.with.is_empty() || !args.without.is_empty() {
        let mut teller = Teller { screen: Screen::new(true), as_json: args.json, told: None };
        let mut builder = Builder::begin(postgres, |progress| teller.tell(progress)).await?;
        let done = change(&mut builder, args).await;
        builder.end().await;
        teller.end();
        done?;
    }
    let all = optional::report(postgres).await?;
    match args.json {
        true => all.iter().try_for_each(ask::print_json)?,
        false => show_indexes(&all),
    }
    Ok(ExitCode::SUCCESS)
}

async fn change<Tell: FnMut(Progress)>(builder: &mut Builder<'_, Tell>, args: &MigrateArgs) -> anyhow::Result<()> {
    for set in &args.without {
        builder.without(*set).await?;
    }
    for set in &args.with {
        builder.with(*set).await?;
    }
    Ok(())
}

/// Tells how a build goes, on standard error: on a terminal in one line that is redrawn, elsewhere when there is something new.
struct Teller {
    screen: Screen,
    as_json: bool,
    told: Option<(Instant, Progress)>,
}

impl Teller {
    fn tell(&mut self, progress: Progress) {
        let same = |told: &Progress| {
            let pid = |progress: &Progress| progress.waits_for.as_ref().map(|blocker| blocker.pid);
            (told.index, told.partition, &told.phase, pid(told))
                == (progress.index, progress.partition, &progress.phase, pid(&progress))
        };
        let news = self.told.as_ref().is_none_or(|(at, told)| !same(told) || at.elapsed() >= TOLD_EVERY);
        if self.screen.terminal && !self.as_json {
            self.screen.redraw(&one_line(&going(&progress), 78), false);
        } else if news && self.as_json {
            self.screen.say(&json!(progress).to_string());
        } else if news {
            self.screen.say(&going(&progress));
        }
        if let (true, false, Some(blocker)) = (news, self.as_json, &progress.waits_for) {
            let end = if self.screen.terminal { "\n" } else { "" };
            self.screen.say(&format!("{end}{}", wrapped("  ", &waiting(blocker))));
        }
        if news {
            self.told = Some((Instant::now(), progress));
        }
    }

    fn end(&self) {
        if self.told.is_some() && self.screen.terminal && !self.as_json {
            self.screen.redraw("", true);
        }
    }
}

/// `email_events_search_recipient, partition 3 of 12: building index, 45 %`
fn going(progress: &Progress) -> String {
    let Progress { index, partition, phase, percent, .. } = progress;
    let partition = partition.map(|(number, of)| format!(", partition {number} of {of}")).unwrap_or_default();
    let percent = percent.map(|percent| format!(", {percent} %")).unwrap_or_default();
    format!("{index}{partition}: {phase}{percent}")
}

fn waiting(blocker: &Blocker) -> String {
    let Blocker { pid, login, state, open_seconds } = blocker;
    let open = open_seconds.map(|seconds| format!("open for {}", span(Duration::from_secs(seconds.unsigned_abs()))));
    let known: Vec<String> = [login.clone(), state.clone(), open].into_iter().flatten().collect();
    let known = if known.is_empty() { "this login may not see whose".to_owned() } else { known.join(", ") };
    format!(
        "waits for the transaction of process {pid} ({}) to end. To end that one: {}",
        one_line(&known, 200),
        blocker.ending()
    )
}

fn show_indexes(all: &[Optional]) {
    say!("{:<10} {:<31} {:<10} {:>9} {:>14}", "set", "index", "state", "size", "times read");
    for Optional { set, index, serves, state, bytes, used, partitions, .. } in all {
        let (state, size, used) = match state {
            optional::State::Absent => ("absent", "-".to_owned(), "-".to_owned()),
            optional::State::Ready => ("ready", weight(bytes.unsigned_abs()), grouped(used.unsigned_abs())),
            optional::State::Unfinished => ("unfinished", weight(bytes.unsigned_abs()), "-".to_owned()),
        };
        say!("{:<10} {index:<31} {state:<10} {size:>9} {used:>14}", set.as_str());
        let of = partitions.map(|(built, of)| format!(" ({built} of {of} partitions)")).unwrap_or_default();
        say!("{}", wrapped("           ", &format!("{serves}{of}")));
    }
    if all.iter().any(|index| index.state == optional::State::Unfinished) {
        let advice = "What is unfinished costs who writes and serves nobody. If nobody builds it just now: --with builds it, \
                      --without drops it.";
        say!("{}", wrapped("", advice));
    }
}

async fn down(postgres: &Postgres, to: Option<i64>, yes: bool, as_json: bool) -> anyhow::Result<ExitCode> {
    let all = migrations::status(postgres).await?;
    let applied: Vec<i64> = all.iter().filter(|m| m.state != State::Pending).map(|m| m.version).collect();
    let target = match (to, applied.as_slice()) {
        (Some(version), _) => version,
        (None, [.., previous, _last]) => *previous,
        (None, _) => 0,
    };
    if !yes && let Some(table) = migrations::would_lose(postgres, target).await? {
        eprintln!("error: this removes the table {table}, which is not empty. To do it all the same, add --yes");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    migrations::down(postgres, target).await?;
    show_status(&migrations::status(postgres).await?, as_json)?;
    Ok(ExitCode::SUCCESS)
}

fn show_status(all: &[Migration], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for Migration { version, description, state } in all {
        let state = match state {
            State::Applied => "applied",
            State::Pending => "pending",
            State::Changed => "changed",
            State::Unknown => "unknown",
        };
        match as_json {
            true => writeln!(out, "{}", json!({"version": version, "description": description, "state": state}))?,
            false => writeln!(out, "{version:04}  {state:<8} {description}")?,
        }
    }
    Ok(())
}

fn show_findings(findings: &[Finding], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for Finding { severity, what, fix } in findings {
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        match as_json {
            true => writeln!(out, "{}", json!({"severity": severity, "what": what, "fix": fix}))?,
            false => writeln!(out, "{severity}: {what}\n  to mend it: {fix}")?,
        }
    }
    if findings.is_empty() && !as_json {
        writeln!(out, "The schema is what this binary needs.")?;
    }
    Ok(())
}
