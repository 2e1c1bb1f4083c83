//! Attaches orphaned events when their mail's log row has appeared, and keeps partitions ahead of time.

use std::{convert::Infallible, time::Duration};

use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    pipeline::StoreError,
    postgres::{Postgres, Sweep},
};

/// Orphans to look at in one statement.
const SLICE: usize = 1_000;
/// Orphans younger than this are looked at in every sweep: their log row is probably on its way.
const YOUNG: Duration = Duration::from_secs(600);
/// Older ones take turns, so many slices in each sweep. A million takes an hour at the default interval.
const OLD_SLICES: usize = 5;

/// How often partitions are looked after, and how many months they are made ahead.
const PARTITIONS_EVERY: Duration = Duration::from_secs(3600);
const MONTHS_AHEAD: u32 = 3;

/// Sweeps until it is told to stop.
pub async fn sweep_forever(postgres: Postgres, every: Duration, stop: CancellationToken) {
    // Cut short wherever it is: what it was about to attach waits for the next sweep.
    let _ = stop.run_until_cancelled(sweep_on_and_on(postgres, every)).await;
}

async fn sweep_on_and_on(postgres: Postgres, every: Duration) -> Infallible {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turn = Uuid::nil();
    let mut partitions_due = Instant::now();
    loop {
        ticks.tick().await;
        if Instant::now() >= partitions_due {
            partitions_due = Instant::now() + PARTITIONS_EVERY;
            look_after_partitions(&postgres).await;
        }
        match sweep(&postgres, &mut turn).await {
            Ok(0) => {}
            Ok(attached) => info!("attached {attached} orphaned events to their mails"),
            Err(e) => warn!("cannot sweep the orphaned events: {:#}", anyhow::Error::from(e)),
        }
    }
}

/// Sweeps all orphans once. Returns how many found their mail.
///
/// # Errors
/// As for [`Postgres::sweep`].
pub async fn sweep_all(postgres: &Postgres) -> Result<u64, StoreError> {
    sweep_after(postgres, Uuid::nil()).await
}

async fn sweep_after(postgres: &Postgres, mut after: Uuid) -> Result<u64, StoreError> {
    let mut attached = 0;
    while let Some(last) = next_slice(postgres, after, &mut attached).await? {
        after = last;
    }
    Ok(attached)
}

/// All young orphans, and the next slices of the older ones.
async fn sweep(postgres: &Postgres, turn: &mut Uuid) -> Result<u64, StoreError> {
    let young = floor(OffsetDateTime::now_utc() - YOUNG);
    let mut attached = sweep_after(postgres, young).await?;
    for _ in 0..OLD_SLICES {
        match next_slice(postgres, *turn, &mut attached).await? {
            Some(last) if last < young => *turn = last,
            _ => {
                *turn = Uuid::nil(); // round again
                break;
            }
        }
    }
    Ok(attached)
}

/// One slice. An orphan that the database refuses to attach is found by smaller and smaller slices, and passed over.
async fn next_slice(postgres: &Postgres, after: Uuid, attached: &mut u64) -> Result<Option<Uuid>, StoreError> {
    let mut limit = SLICE;
    loop {
        match postgres.sweep(after, limit).await {
            Ok(Sweep { last, attached: more }) => {
                *attached += more;
                return Ok(last);
            }
            Err(StoreError::Refused { .. }) if limit > 1 => limit /= 2,
            Err(StoreError::Refused { code, .. }) => {
                let last = postgres.orphan_after(after).await?;
                warn!(code, "the database refuses to attach the orphaned event {last:?}: it stays an orphan");
                return Ok(last);
            }
            Err(e) => return Err(e),
        }
    }
}

async fn look_after_partitions(postgres: &Postgres) {
    match postgres.ensure_partitions(MONTHS_AHEAD).await {
        Ok(0) => {}
        Ok(made) => info!("made {made} monthly partitions"),
        Err(e) => warn!("{e:#}"),
    }
}

/// The smallest UUID of version 7 of that moment, near enough: its random bits are zero.
fn floor(at: OffsetDateTime) -> Uuid {
    let seconds = u64::try_from(at.unix_timestamp()).unwrap_or_default();
    let made = Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, at.nanosecond()));
    let mut bytes = *made.as_bytes();
    bytes[6..].fill(0);
    Uuid::from_bytes(bytes)
}
