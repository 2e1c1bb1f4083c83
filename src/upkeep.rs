//! What has to be done beside the queue: attach orphans, keep partitions ahead of time, let go of what is too old, and say
//! that we are there.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use anyhow::anyhow;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    metrics::Metrics,
    orphans::{self, Turns},
    postgres::{
        self, Postgres,
        letting_go::{OVERDUE, past},
        pulse::forget,
        rollup::{self, Rollup, Step},
        upkeep::{Content, Emptied, empty, waiting_rooms},
    },
    pulse::{self, Pulse},
    readable::span,
    retention::Retention,
};

/// How often partitions and retention are looked after, and how many months partitions are made ahead.
const SELDOM: Duration = Duration::from_secs(3600);
const MONTHS_AHEAD: u32 = 3;
/// How often the waiting rooms are counted.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Events to look at in one statement, and how many times as long as it took to leave the database to others after it: so it
/// has a tenth of one connection, however slow the database is.
const SLICE: u32 = 1_000;
/// What a beat may take; and the last one, for which a process that leaves has little time.
const BEAT: Duration = Duration::from_secs(5);
const GOODBYE: Duration = Duration::from_millis(500);
const REST: u32 = 9;

/// What to do how often.
#[derive(Clone, Debug)]
pub struct UpkeepSettings {
    pub sweep_interval: Duration,
    /// How often to count the figures on; `None`: never.
    pub figures_interval: Option<Duration>,
    /// Tags to count them by.
    pub figures_tags: Vec<String>,
    /// How long what is kept.
    pub retention: Retention,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Orphans that found their mail.
    pub attached: u64,
    /// Monthly partitions that were missing.
    pub partitions: i32,
    /// Payloads and bodies that were let go of.
    pub emptied: u64,
    /// The time was enough for all of it; else the next round goes on.
    pub complete: bool,
}

/// Goes on until it is told to stop.
pub async fn forever(postgres: Postgres, settings: UpkeepSettings, metrics: Arc<Metrics>, stop: CancellationToken) {
    let rounds = async {
        tokio::join!(
            sweep_on_and_on(&postgres, settings.sweep_interval),
            look_after_tables(&postgres, settings.retention, &metrics),
            count_on_and_on(&postgres, &settings.retention, &metrics),
            count_figures_on_and_on(&postgres, &settings, &metrics),
        )
    };
    // Cut short wherever it is: what it was about to do waits for the next round.
    let _ = stop.run_until_cancelled(rounds).await;
}

/// Beats until the worker is done, and once more to say goodbye. Nothing depends on it.
pub async fn beat_until(postgres: Postgres, mut pulse: Pulse, metrics: Arc<Metrics>, done: CancellationToken) {
    let mut silent = false;
    loop {
        let waited = done.run_until_cancelled(sleep(until_next_beat(OffsetDateTime::now_utc()))).await;
        let outcome = match waited {
            // Cut short if the worker leaves meanwhile: what it was about to tell goes with the goodbye.
            Some(()) => done.run_until_cancelled(beat(&postgres, &mut pulse, &metrics, false)).await,
            None => Some(beat(&postgres, &mut pulse, &metrics, true).await),
        };
        match outcome {
            Some(Ok(())) => silent = false,
            // Said once: an outage shows in other places as well.
            Some(Err(e)) if !std::mem::replace(&mut silent, true) => {
                warn!("cannot write the heartbeat, status knows less until it succeeds: {e:#}");
            }
            Some(Err(_)) | None => {}
        }
        if waited.is_none() {
            return;
        }
    }
}

/// One beat, if the database takes it within a moment.
///
/// # Errors
/// If it does not.
pub async fn beat(postgres: &Postgres, pulse: &mut Pulse, metrics: &Metrics, stopped: bool) -> anyhow::Result<()> {
    let now = OffsetDateTime::now_utc();
    let next = pulse.beat(metrics, postgres.connections(), now, stopped);
    let patience = if stopped { GOODBYE } else { BEAT };
    timeout(patience, postgres::pulse::beat(postgres, &next))
        .await
        .unwrap_or_else(|_| Err(anyhow!("no answer within {patience:?}")))?;
    pulse.sent(now);
    Ok(())
}

/// Beats fall on the same seconds of every minute, and one of them between two minutes: so each minute is told whole.
fn until_next_beat(now: OffsetDateTime) -> Duration {
    let every = pulse::EVERY.as_nanos() as i128;
    Duration::from_nanos((every - now.unix_timestamp_nanos().rem_euclid(every)) as u64)
}

/// One round of everything, until the time is up.
///
/// # Errors
/// If the database cannot be reached, or refuses something. What was done until then stays done.
pub async fn once(
    postgres: &Postgres,
    settings: &UpkeepSettings,
    metrics: &Metrics,
    until: Instant,
) -> anyhow::Result<Done> {
    let partitions = postgres.ensure_partitions(MONTHS_AHEAD).await?;
    let mut done = Done { partitions, ..Done::default() };
    let swept = orphans::sweep_until(postgres, until, &mut done.attached).await?;
    forget(postgres).await?;
    let counted = match settings.figures_interval {
        Some(_) => count_figures(postgres, &settings.figures_tags, metrics, until).await?,
        None => true,
    };
    let retained = retain(postgres, settings.retention, metrics, until, &mut done.emptied).await?;
    done.complete = swept && counted && retained;
    Ok(done)
}

/// Counts what waits, orphans and bodies in quarantine, the months that have their partition, and for how long nobody has let
/// go of what is too old.
///
/// # Errors
/// If the database cannot be read.
pub async fn gauge(postgres: &Postgres, retention: &Retention, metrics: &Metrics) -> anyhow::Result<()> {
    let rooms = waiting_rooms(postgres).await?;
    let age = rooms.oldest_orphan_at.map_or(0, |at| (OffsetDateTime::now_utc() - at).whole_seconds().max(0));
    metrics.orphans.set(rooms.orphans);
    metrics.oldest_orphan_age_seconds.set(age);
    metrics.quarantined_bodies.set(rooms.quarantined_bodies);
    metrics.months_ahead.set(rooms.months_ahead);
    gauge_retention(postgres, retention, metrics).await
}

async fn sweep_on_and_on(postgres: &Postgres, every: Duration) -> Infallible {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turns = Turns::default();
    loop {
        ticks.tick().await;
        match orphans::sweep(postgres, &mut turns).await {
            Ok(0) => {}
            Ok(attached) => info!("attached {attached} orphaned events to their mails"),
            Err(e) => warn!("cannot sweep the orphaned events: {:#}", anyhow::Error::from(e)),
        }
    }
}

async fn look_after_tables(postgres: &Postgres, retention: Retention, metrics: &Metrics) -> Infallible {
    let mut ticks = interval(SELDOM);
    loop {
        ticks.tick().await;
        match postgres.ensure_partitions(MONTHS_AHEAD).await {
            Ok(0) => {}
            Ok(made) => info!("made {made} monthly partitions"),
            Err(e) => warn!("{e:#}"),
        }
        if let Err(e) = forget(postgres).await {
            warn!("{e:#}");
        }
        let (mut emptied, until) = (0, Instant::now() + SELDOM);
        let outcome = retain(postgres, retention, metrics, until, &mut emptied).await;
        if emptied > 0 {
            info!("emptied {emptied} payloads and bodies that were older than RETENTION_PAYLOAD or RETENTION_BODY");
        }
        if let Err(e) = outcome {
            warn!("{e:#}");
        }
        let age = Duration::from_secs(metrics.retention_age_seconds.get().unsigned_abs());
        if age > OVERDUE {
            warn!("nobody has removed what is too old for {}: schedule ses-ledger retention run", span(age));
        }
    }
}

async fn count_on_and_on(postgres: &Postgres, retention: &Retention, metrics: &Metrics) -> Infallible {
    let mut ticks = interval(COUNT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(e) = gauge(postgres, retention, metrics).await {
            warn!("{e:#}");
        }
    }
}

async fn count_figures_on_and_on(postgres: &Postgres, settings: &UpkeepSettings, metrics: &Metrics) -> Infallible {
    let Some(every) = settings.figures_interval else { return pending().await };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(e) = count_figures(postgres, &settings.figures_tags, metrics, Instant::now() + SELDOM).await {
            warn!("{e:#}");
        }
    }
}

/// Counts the figures on; says whether they are up to date, or somebody else sees to it.
async fn count_figures(
    postgres: &Postgres,
    tags: &[String],
    metrics: &Metrics,
    until: Instant,
) -> anyhow::Result<bool> {
    let rollup = Rollup { tags: Some(tags), ..Rollup::default() };
    let outcome = rollup.run(postgres, until, rollup::REST, |_| {}).await;
    // Whoever counted, and also if nobody could: that is what has to be seen.
    metrics.figures_lag_seconds.set(rollup::position(postgres).await?.behind_seconds as i64);
    let step = outcome?;
    if step == Some(Step::ClockBehind) {
        warn!(
            "the figures are not counted on: the database's clock was set back. When it has caught up, \
             `ses-ledger figures rebuild` counts what was stored meanwhile"
        );
    }
    Ok(!matches!(step, Some(Step::Counted { is_up_to_date: false, .. })))
}

/// For how long nobody has let go of what is too old: of what workers empty, and of what only `retention run` removes.
async fn gauge_retention(postgres: &Postgres, retention: &Retention, metrics: &Metrics) -> anyhow::Result<()> {
    if !retention.is_on() {
        return Ok(());
    }
    let past = past(postgres).await?;
    let oldest = |is_emptied: bool| {
        let classes = retention.classes().filter(|class| class.is_emptied() == is_emptied);
        classes.map(|class| past.of(class).age.as_secs() as i64).max().unwrap_or_default()
    };
    metrics.emptying_age_seconds.set(oldest(true));
    metrics.retention_age_seconds.set(oldest(false));
    Ok(())
}

/// Lets go of what is too old and stays in its row, if anything ever is. Says whether it came to an end.
async fn retain(
    postgres: &Postgres,
    retention: Retention,
    metrics: &Metrics,
    until: Instant,
    emptied: &mut u64,
) -> anyhow::Result<bool> {
    let before = *emptied;
    let mut complete = true;
    for (what, age) in retention.emptied() {
        complete &= empty_until(postgres, what, age, until, emptied).await?;
    }
    metrics.retention_emptied.inc_by(*emptied - before);
    metrics.retention_runs.inc();
    Ok(complete)
}

/// Empties what is old, slice by slice; says whether it came to an end.
pub(crate) async fn empty_until(
    postgres: &Postgres,
    what: Content,
    age: Duration,
    until: Instant,
    emptied: &mut u64,
) -> anyhow::Result<bool> {
    let mut pace = Pace::begin();
    while Instant::now() < until {
        let Emptied { rows, finished } = empty(postgres, what, age, SLICE).await?;
        *emptied += rows;
        if finished {
            return Ok(true);
        }
        pace.rest().await;
    }
    Ok(false)
}

/// Works a little and rests for long, so that those who store hardly notice.
pub(crate) struct Pace {
    since: Instant,
    rest: u32,
}

impl Pace {
    pub(crate) fn begin() -> Self {
        Self::resting(REST)
    }

    /// Rests so many times as long as it worked.
    pub(crate) fn resting(rest: u32) -> Self {
        Self { since: Instant::now(), rest }
    }

    pub(crate) async fn rest(&mut self) {
        sleep(self.since.elapsed() * self.rest).await;
        self.since = Instant::now();
    }
}
