//! When all is done: waits as long as something moves, and compares with the truth.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::{chaos::Mischief, scenario::Scenario, stage::Stage, workers::Crew};
use crate::{
    local::story::Story,
    postgres::audit::{self, Findings, Rejects},
};

/// Waits until the queue is empty and the orphans are attached, or nothing moves any more. Says how long the queue took.
pub(super) async fn settle(
    stage: &Stage,
    crew: &Crew,
    story: &Story,
    patience: Duration,
    started: Instant,
) -> anyhow::Result<Duration> {
    let (mut waiting, mut empty) = (Patience::new(patience), 0);
    // What somebody else counts is approximate: asked three times.
    while empty < if stage.embedded.is_some() { 1 } else { 3 } {
        let left = stage.left().await?;
        empty = if left == 0 { empty + 1 } else { 0 };
        if waiting.is_over(&(left, stage.done(crew))) {
            break;
        }
        sleep(Duration::from_millis(if stage.embedded.is_some() { 10 } else { 500 })).await;
    }
    let took = started.elapsed();
    let (mut waiting, expected) = (Patience::new(patience), &story.truth.orphans);
    loop {
        let asked = Instant::now();
        let orphans = patiently(|| audit::own_orphans(&stage.postgres, &story.truth)).await?;
        let attached = orphans.iter().all(|key| expected.contains(key));
        if attached || waiting.is_over(&(orphans.len() as u64, 0)) {
            return Ok(took);
        }
        sleep(asked.elapsed().max(Duration::from_millis(50))).await;
    }
}

/// Compares with the truth; where somebody else's workers are at work, until it is exact or nothing changes any more.
pub(super) async fn compare(
    patience: Duration,
    stage: &Stage,
    story: &Story,
    (rejects, before, since): (&Rejects, &Rejects, OffsetDateTime),
    mischief: &Mischief,
    scenario: &Scenario,
) -> anyhow::Result<Findings> {
    let mut waiting = Patience::new(patience);
    let again = stage.redelivered().unwrap_or(0) > 0 || mischief.done().kills > 0;
    let exactly = !again && !scenario.troubles_database() && stage.embedded.is_some();
    loop {
        let mut findings = patiently(|| audit::compare_own(&stage.postgres, &story.truth)).await?;
        let found = patiently(|| audit::quarantined(&stage.postgres, rejects, since)).await?;
        findings.quarantine(rejects, before, &found, exactly);
        let count = findings.differences.count;
        if count == 0 || stage.embedded.is_some() || waiting.is_over(&(count as u64, 0)) {
            return Ok(findings);
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Asks again where a connection was one of those that were cut.
pub(super) async fn patiently<T, F: Future<Output = anyhow::Result<T>>>(ask: impl Fn() -> F) -> anyhow::Result<T> {
    for _ in 0..10 {
        if let Ok(answer) = ask().await {
            return Ok(answer);
        }
        sleep(Duration::from_millis(100)).await;
    }
    ask().await
}

/// Waits as long as something moves.
pub(super) struct Patience {
    longest: Duration,
    last: Option<(u64, u64)>,
    still: Duration,
    looked: Instant,
}

impl Patience {
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, last: None, still: Duration::ZERO, looked: Instant::now() }
    }

    /// Looks at two numbers. Nothing has changed in them for too long, not counting times at which we did not run ourselves.
    pub(super) fn is_over(&mut self, now: &(u64, u64)) -> bool {
        let passed = std::mem::replace(&mut self.looked, Instant::now()).elapsed();
        let moved = self.last.replace(*now) != Some(*now);
        self.still = if moved { Duration::ZERO } else { self.still + passed.min(Duration::from_secs(5)) };
        self.still > self.longest
    }
}
