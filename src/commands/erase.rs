//! `ses-ledger erase`: a person is forgotten; the figures stay.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;

use super::{ask, screen::say};
use crate::{
    cli::{DatabaseArgs, EXIT_USAGE},
    erasure::Person,
    postgres::{
        PostgresSettings,
        erasure::{self, Erasure, ErasureReceipt, Found},
        letting_go::Owner,
    },
    readable::{grouped, second, span},
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
        self.database.check_own_session("erasing")
    }
}

/// Looks, or erases. Exits with 1 if she was found nowhere.
///
/// # Errors
/// If the database cannot be read or changed. What was erased until then stays erased.
pub async fn run(args: EraseArgs) -> anyhow::Result<ExitCode> {
    let settings = PostgresSettings { statement_timeout: Duration::ZERO, ..args.database.settings() };
    let postgres = match ask::connect(&settings).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let mut owner = if args.yes { Owner::begin(&postgres).await? } else { Owner::look(&postgres).await? };
    let Some(bare) = Person::parse(&args.address, "") else {
        eprintln!("error: this is no address: write it like ana@example.net");
        return Ok(ExitCode::from(EXIT_USAGE));
    };
    let name = erasure::name_of(&mut owner, bare.address()).await?;
    let Some(person) = Person::parse(&args.address, &name) else { return Ok(ExitCode::from(EXIT_USAGE)) };
    if !args.yes {
        let mut progress = Progress::begin(&mut owner).await?;
        let found = erasure::look(&mut owner, &person, |stage, seen| progress.tell(stage, seen)).await?;
        match args.json {
            true => ask::print_json(&json!({"name": name, "rows": found}))?,
            false => say!("{}", shown(&found, "would change").trim_end()),
        }
        return Ok(if found.total() == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let receipt = erase(&mut owner, &person, &name).await?;
    owner.end().await;
    match args.json {
        true => ask::print_json(&receipt)?,
        false => say!("{}", receipted(&receipt).trim_end()),
    }
    Ok(if receipt.rows.total() == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn erase(owner: &mut Owner, person: &Person, name: &str) -> anyhow::Result<ErasureReceipt> {
    let mut erasure = Erasure::begin(owner, name).await?;
    let mut progress = Progress::begin(owner).await?;
    while let Some((stage, seen)) = erasure.step(owner, person).await? {
        progress.tell(stage, seen);
    }
    erasure.receipt(owner).await
}

/// Says how far it has come, now and then.
struct Progress {
    about: BTreeMap<String, u64>,
    stage: &'static str,
    began: Instant,
    told: Instant,
}

impl Progress {
    async fn begin(owner: &mut Owner) -> anyhow::Result<Self> {
        let now = Instant::now();
        Ok(Self { about: erasure::about(owner).await?, stage: "", began: now, told: now })
    }

    fn tell(&mut self, stage: &'static str, seen: u64) {
        let now = Instant::now();
        if stage != self.stage {
            (self.stage, self.began, self.told) = (stage, now, now);
            eprintln!("looking through: {stage}");
        } else if now - self.told >= TELL_EVERY {
            self.told = now;
            let about = self.about.get(stage).copied().unwrap_or_default();
            eprintln!("{}", far(seen, about, now - self.began));
        }
    }
}

/// `1,200,000 of about 5,400,000 rows, 40 s to go`.
fn far(seen: u64, about: u64, took: Duration) -> String {
    match about.checked_sub(seen) {
        Some(left @ 1..) if seen > 0 => {
            let to_go = span(Duration::from_secs_f64((took.as_secs_f64() * left as f64 / seen as f64).round()));
            format!("  {} of about {} rows, {to_go} to go at this rate", grouped(seen), grouped(about))
        }
        _ => format!("  {} rows", grouped(seen)),
    }
}

/// How often it says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_with_what_is_left() {
        let took = Duration::from_secs(10);
        assert_eq!(far(1_000_000, 5_000_000, took), "  1,000,000 of about 5,000,000 rows, 40 s to go at this rate");
        assert_eq!(far(1_000_000, 0, took), "  1,000,000 rows", "never analysed");
        assert_eq!(far(6_000_000, 5_000_000, took), "  6,000,000 rows", "more than was thought");
    }
}
