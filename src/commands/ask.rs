//! What the commands that ask questions share: the connection, and answers as JSON.

use std::process::ExitCode;

use serde::Serialize;

use super::screen::say;
use crate::{
    cli::{DatabaseArgs, EXIT_UNAVAILABLE, EXIT_USAGE},
    postgres::{
        Postgres, PostgresSettings,
        migrations::{self, State},
    },
    readable,
};

/// A database that lets us in. Says what is wrong otherwise, and how the program is to end.
pub(super) async fn connect(settings: &PostgresSettings) -> Result<Postgres, ExitCode> {
    let postgres = Postgres::new(settings).map_err(|e| refused(&format!("{e:#}"), EXIT_USAGE))?;
    postgres.try_connect().await.map_err(|e| refused(&e.to_string(), EXIT_UNAVAILABLE))?;
    Ok(postgres)
}

/// The same for questions: nobody can change anything through it, and its schema has what we ask for.
pub(super) async fn reader(database: &DatabaseArgs) -> Result<Postgres, ExitCode> {
    let postgres = connect(&database.reader()).await?;
    let all = migrations::status(&postgres).await.map_err(|e| {
        let fix = "To mend it: GRANT ses_ledger_operator TO this login";
        refused(&format!("{e:#}. {fix}"), EXIT_UNAVAILABLE)
    })?;
    match all.iter().find(|migration| migration.state == State::Pending) {
        None => Ok(postgres),
        Some(pending) => {
            let what = format!("migration {} ({}) has not run here", pending.version, pending.description);
            Err(refused(&format!("{what}. To mend it: ses-ledger migrate up"), EXIT_UNAVAILABLE))
        }
    }
}

fn refused(why: &str, code: u8) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(code)
}

/// One document on standard output. What a terminal would obey is escaped in it.
///
/// # Errors
/// If it cannot be written as JSON.
pub(super) fn print_json(answer: &impl Serialize) -> anyhow::Result<()> {
    say!("{}", readable::json(answer)?);
    Ok(())
}

/// One JSON document, or words.
///
/// # Errors
/// If it cannot be written as JSON.
pub(super) fn print(as_json: bool, answer: &impl Serialize, words: impl FnOnce()) -> anyhow::Result<ExitCode> {
    match as_json {
        true => print_json(answer)?,
        false => words(),
    }
    Ok(ExitCode::SUCCESS)
}
