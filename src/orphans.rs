//! Attaches orphaned events when their mail's log row has appeared.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::warn;
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

/// Where the sweep over the older orphans goes on.
#[derive(Default)]
pub struct Turns(Uuid);

/// Sweeps all orphans once. Returns how many found their mail.
///
/// # Errors
/// As for [`Postgres::sweep`].
pub async fn sweep_all(postgres: &Postgres) -> Result<u64, StoreError> {
    let mut attached = 0;
    sweep_after(postgres, Uuid::nil(), None, &mut attached).await?;
    Ok(attached)
}

/// Sweeps all orphans once, or as many as the time allows; says whether it came to an end.
///
/// # Errors
/// As for [`Postgres::sweep`]. `attached` then holds how many have found their mail until then.
pub async fn sweep_until(postgres: &Postgres, until: Instant, attached: &mut u64) -> Result<bool, StoreError> {
    sweep_after(postgres, Uuid::nil(), Some(until), attached).await
}

/// Sweeps all young orphans, and the next slices of the older ones. Returns how many found their mail.
///
/// # Errors
/// As for [`Postgres::sweep`].
pub async fn sweep(postgres: &Postgres, turns: &mut Turns) -> Result<u64, StoreError> {
    let young = floor(OffsetDateTime::now_utc() - YOUNG);
    let mut attached = 0;
    sweep_after(postgres, young, None, &mut attached).await?;
    for _ in 0..OLD_SLICES {
        match attach_next(postgres, turns.0, &mut attached).await? {
            Some(last) if last < young => turns.0 = last,
            _ => {
                *turns = Turns::default(); // round again
                break;
            }
        }
    }
    Ok(attached)
}

async fn sweep_after(
    postgres: &Postgres,
    mut after: Uuid,
    until: Option<Instant>,
    attached: &mut u64,
) -> Result<bool, StoreError> {
    while let Some(last) = attach_next(postgres, after, attached).await? {
        after = last;
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The next slice after this orphan; the last one that it looked at. An orphan that the database refuses to attach is found by smaller and smaller slices, and passed over.
///
/// # Errors
/// As for [`Postgres::sweep`].
pub async fn attach_next(postgres: &Postgres, after: Uuid, attached: &mut u64) -> Result<Option<Uuid>, StoreError> {
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

/// The smallest UUID of version 7 of that moment, near enough: its random bits are zero.
fn floor(at: OffsetDateTime) -> Uuid {
    let seconds = u64::try_from(at.unix_timestamp()).unwrap_or_default();
    let made = Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, at.nanosecond()));
    let mut bytes = *made.as_bytes();
    bytes[6..].fill(0);
    Uuid::from_bytes(bytes)
}
