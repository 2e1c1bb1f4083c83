//! `ses-ledger retention`: lets go of what is too old, as a scheduled command with the rights of the owner.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{ask, screen::say};
use crate::{
    cli::DatabaseArgs,
    postgres::PostgresSettings,
    readable::{grouped, span, weight},
    retention::{LetGo, Retention, Run, preview},
};

/// Arguments of `retention`.
#[derive(Args, Clone)]
pub struct RetentionArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Clone)]
enum What {
    /// Let go of what is older than the RETENTION_ settings say
    ///
    /// Meant to be scheduled once a day. Needs a login that is a member of ses_ledger_owner, like the one that migrates: the
    /// worker cannot remove history. Works in bounded steps while the worker stores; what was cut short goes on next time.
    Run(Box<RunArgs>),
}

#[derive(Args, Clone)]
struct RunArgs {
    #[command(flatten)]
    database: DatabaseArgs,

    #[command(flatten)]
    retention: Retention,

    /// Only say what would go, and how much it weighs
    #[arg(long)]
    dry_run: bool,

    /// Folder for what is removed: compressed JSON lines, each file with a manifest of rows, length and SHA-256; nothing is
    /// removed before its file was read back [default: it is not kept]
    #[arg(long, env = "EXPORT_DIR", value_name = "DIR")]
    export: Option<PathBuf>,

    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl RetentionArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        let What::Run(run) = &self.what;
        run.check()
    }
}

impl RunArgs {
    fn check(&self) -> Result<(), String> {
        self.database.check()?;
        self.database.check_own_session("retention")?;
        if !self.retention.is_on() {
            return Err(
                "nothing is to be let go: say how long what is kept, for example RETENTION_EVENTS=400d".to_owned()
            );
        }
        self.retention.check()
    }
}

/// Lets go, or says what would go.
///
/// # Errors
/// If a step fails. Those before it are done.
pub async fn run(RetentionArgs { what: What::Run(args) }: RetentionArgs) -> anyhow::Result<ExitCode> {
    let settings = PostgresSettings { statement_timeout: Duration::ZERO, ..args.database.settings() };
    let postgres = match ask::connect(&settings).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let all = if args.dry_run {
        preview(&postgres, &args.retention).await?
    } else {
        let mut tell = |step: String| eprintln!("{step}");
        let export = args.export.filter(|folder| !folder.as_os_str().is_empty());
        Run { postgres: &postgres, retention: &args.retention, export, tell: &mut tell }.go().await?
    };
    ask::print(args.json, &json!({"dry_run": args.dry_run, "let_go": all}), || {
        say!("{}", shown(&all, args.dry_run).trim_end());
    })
}

fn shown(all: &[LetGo], dry_run: bool) -> String {
    let title = if dry_run { "would go" } else { "let go" };
    let mut text = format!("{:<12} {:<16} {:>16} {:>12}\n", title, "older than", "rows", "size");
    for LetGo { class, older_than, rows, bytes, months, exports } in all {
        let age = span(Duration::from_secs(*older_than));
        let size = if *bytes == 0 { "-".to_owned() } else { weight(*bytes) };
        text += &format!("{class:<12} {age:<16} {:>16} {size:>12}\n", grouped(*rows));
        if let [first, .., last] = months.as_slice() {
            text += &format!("  months     {first} to {last}\n");
        } else if let [only] = months.as_slice() {
            text += &format!("  month      {only}\n");
        }
        for file in exports {
            text += &format!("  exported   {} ({} rows, {})\n", file.file, grouped(file.rows), weight(file.bytes));
        }
    }
    text
}
