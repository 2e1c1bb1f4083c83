//! `ses-ledger partitions`: the months of the events, ahead of time and as they are.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{ask, screen::say};
use crate::{
    cli::DatabaseArgs,
    postgres::{
        PostgresSettings,
        letting_go::{self, Partition},
    },
    readable::{grouped, weight},
};

/// Fewer than so many months ahead are too few.
const FEWEST: i64 = 2;

/// Arguments of `partitions`.
#[derive(Args, Clone)]
pub struct PartitionsArgs {
    #[command(subcommand)]
    what: What,

    #[command(flatten)]
    pub database: DatabaseArgs,

    /// Print one JSON document
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Clone)]
enum What {
    /// Make the partitions from last month to so many months ahead; the worker does so every hour
    Ensure {
        /// Months ahead, 0 to 120
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=120))]
        months: u32,
    },
    /// List all partitions with their size; exits with 1 if fewer than two months ahead are ready
    List,
}

/// Makes or lists.
///
/// # Errors
/// If the database cannot be asked.
pub async fn run(args: PartitionsArgs) -> anyhow::Result<ExitCode> {
    let settings = PostgresSettings { read_only: matches!(args.what, What::List), ..args.database.settings() };
    let postgres = match ask::connect(&settings).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    match args.what {
        What::Ensure { months } => {
            let made = postgres.ensure_partitions(months).await?;
            let ahead = letting_go::months_ahead(&postgres).await?;
            ask::print(args.json, &json!({"made": made, "months_ahead": ahead}), || {
                say!("Made {made} partitions; {ahead} months ahead are ready.");
            })
        }
        What::List => {
            let all = letting_go::partitions(&postgres).await?;
            let ahead = letting_go::months_ahead(&postgres).await?;
            ask::print(args.json, &json!({"partitions": all, "months_ahead": ahead}), || {
                say!("{}", listed(&all, ahead).trim_end());
            })?;
            Ok(if ahead < FEWEST { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
    }
}

fn listed(all: &[Partition], ahead: i64) -> String {
    let mut text = format!("{:<28} {:<9} {:>16} {:>12}\n", "partition", "month", "events (about)", "size");
    for Partition { name, month, rows, bytes } in all {
        let month = month.as_deref().unwrap_or("catch-all");
        text += &format!("{name:<28} {month:<9} {:>16} {:>12}\n", grouped(*rows as u64), weight(*bytes as u64));
    }
    text += &match ahead < FEWEST {
        true => format!("\n{ahead} months ahead are ready, too few: ses-ledger partitions ensure makes more.\n"),
        false => format!("\n{ahead} months ahead are ready.\n"),
    };
    text
}
