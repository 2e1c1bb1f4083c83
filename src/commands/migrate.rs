//! `ses-ledger migrate`: the schema, up and down, and whether it is right.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::ask;
use crate::{
    cli::{DatabaseArgs, EXIT_USAGE},
    postgres::{
        Pooler, Postgres, PostgresSettings,
        migrations::{self, Migration, State},
        schema::{self, Finding, Severity},
    },
};

/// Arguments of `migrate`.
#[derive(Args, Clone)]
pub struct MigrateArgs {
    #[command(subcommand)]
    what: What,

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
        // Whoever migrates holds a lock of his session, so that nobody else does meanwhile.
        if matches!(self.what, What::Up | What::Down { .. }) && self.database.database_pooler == Pooler::Transaction {
            return Err(
                "a migration needs a session of its own, which DATABASE_POOLER=transaction does not give: name the server \
                 itself in DATABASE_URL, and leave out DATABASE_POOLER (RDS Proxy also gives a session to those that need one)"
                    .to_owned(),
            );
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
    match args.what {
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
