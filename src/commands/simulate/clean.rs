//! Removes what simulations have left in a given database.

use std::io::{self, Write as _};

use anyhow::Context as _;
use serde_json::json;

use super::{Failure, Recipe, SimulateArgs, rejects, scenario::Name, stage::connect};
use crate::{
    commands::screen::{Screen, grouped},
    postgres::simulation::{self, Removed},
};

/// Removes what simulations have left in a given database.
pub(super) async fn clean(args: &SimulateArgs, screen: &Screen) -> Result<(), Failure> {
    let Some(url) = &args.target.database_url else { return Ok(()) };
    let postgres = connect(url).await?.postgres;
    let mut removed = Removed::default();
    for left in simulation::left(&postgres).await? {
        // One of another version may not be made up again; then its mark has to do.
        let Ok(recipe) = serde_json::from_value::<Recipe>(left.recipe) else { continue };
        let Some(scenario) = <Name as clap::ValueEnum>::from_str(&recipe.scenario, false).ok() else { continue };
        let Ok(rejects) = recipe.story(&scenario.scenario()).and_then(|story| rejects(&story)) else { continue };
        let digests: Vec<&[u8]> = rejects.keys().map(Vec::as_slice).collect();
        removed.quarantined += simulation::remove_quarantined(&postgres, &digests, left.since).await?;
    }
    let marked = simulation::remove_marked(&postgres).await?;
    removed = Removed { quarantined: removed.quarantined + marked.quarantined, ..marked };
    postgres.close().await;
    screen.say(&format!(
        "Removed what simulations had left: {} mails with {} events, {} orphans, {} bodies in\nquarantine.",
        grouped(removed.mails),
        grouped(removed.events),
        grouped(removed.orphans),
        grouped(removed.quarantined),
    ));
    if args.json && args.scenario.is_none() {
        let Removed { mails, events, orphans, quarantined } = removed;
        let json = json!({ "mails": mails, "events": events, "orphans": orphans, "quarantined": quarantined });
        writeln!(io::stdout().lock(), "{}", json!({ "removed": json })).context("cannot print")?;
    }
    Ok(())
}
