//! `ses-ledger erase`: a person is forgotten; the figures stay.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::json;

use crate::{
    cli::{DatabaseArgs, EXIT_UNAVAILABLE, EXIT_USAGE},
    erasure::Person,
    postgres::{
        Pooler, Postgres, PostgresSettings,
        erasure::{self, Erasure, ErasureReceipt, Found},
        letting_go::Owner,
    },
    readable::{grouped, second},
};

/// Take a person out of mails, events, orphans and quarantine
///
/// Without --yes it only says where she is. What names her is replaced by a keyed digest: the same address has the same digest,
/// so nothing is counted otherwise, and an event that SES reports again is known and does not bring her back. Needs a login
/// that is a member of ses_ledger_owner. Looks at every row; what was cut short goes on when it is called again. Exports,
/// backups and logs of other programs are not ours to change.
#[derive(Args, Clone)]
pub struct EraseArgs {
    /// Her address, in any spelling
    #[arg(value_name = "ADDRESS")]
    address: String,

    /// Erase, and do not only say what would be erased
    #[arg(long)]
    yes: bool,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub database: DatabaseArgs,
}

impl EraseArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()?;
        match self.database.database_pooler {
            Pooler::None => Ok(()),
            Pooler::Transaction => {
                Err("erasing needs a session of its own, which DATABASE_POOLER=transaction does not give: \
                                        name the server itself in DATABASE_URL, and leave out DATABASE_POOLER"
                    .to_owned())
            }
        }
    }
}

/// Looks, or erases. Exits with 1 if she was found nowhere.
///
/// # Errors
/// If the database cannot be read or changed. What was erased until then stays erased.
pub async fn run(args: EraseArgs) -> anyhow::Result<ExitCode> {
    let settings = PostgresSettings { statement_timeout: Duration::ZERO, ..args.database.settings() };
    let postgres = Postgres::new(&settings)?;
    if let Err(e) = postgres.try_connect().await {
        eprintln!("error: {e}");
        return Ok(ExitCode::from(EXIT_UNAVAILABLE));
    }
    let mut owner = if args.yes { Owner::begin(&postgres).await? } else { Owner::look(&postgres).await? };
    let Some(bare) = Person::parse(&args.address, "") else {
        eprintln!("error: this is no address: write it like ana@example.net");
        return Ok(ExitCode::from(EXIT_USAGE));
    };
    let name = erasure::name_of(&mut owner, bare.address()).await?;
    let Some(person) = Person::parse(&args.address, &name) else { return Ok(ExitCode::from(EXIT_USAGE)) };
    let mut out = io::stdout().lock();
    if !args.yes {
        let found = erasure::look(&mut owner, &person).await?;
        match args.json {
            true => writeln!(out, "{}", json!({"name": name, "rows": found}))?,
            false => write!(out, "{}", shown(&found, "would change"))?,
        }
        return Ok(if found.total() == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let receipt = erase(&mut owner, &person, &name).await?;
    owner.end().await;
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&receipt)?)?,
        false => write!(out, "{}", receipted(&receipt))?,
    }
    Ok(if receipt.rows.total() == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn erase(owner: &mut Owner, person: &Person, name: &str) -> anyhow::Result<ErasureReceipt> {
    let mut erasure = Erasure::begin(owner, name).await?;
    let mut at = "";
    while let Some(stage) = erasure.step(owner, person).await? {
        if stage != at {
            eprintln!("looking through: {stage}");
            at = stage;
        }
    }
    erasure.receipt(owner).await
}

fn shown(found: &Found, title: &str) -> String {
    let mut text = format!("{title}\n");
    for (table, rows) in &found.0 {
        text += &format!("  {table:<12} {:>10} rows\n", grouped(*rows));
    }
    if title == "would change" {
        text += if found.total() == 0 {
            "She is in none of them.\n"
        } else {
            "Nothing was changed. To erase her: add --yes\n"
        };
    }
    text
}

fn receipted(receipt: &ErasureReceipt) -> String {
    let mut text = shown(&receipt.rows, "changed");
    for (what, value) in [
        ("receipt", receipt.uuid.to_string()),
        ("in her place", receipt.name.clone()),
        ("erased by", receipt.erased_by.clone()),
        ("began", second(receipt.began_at)),
        ("ended", second(receipt.ended_at)),
    ] {
        text += &format!("{what:<14} {value}\n");
    }
    text
}
