//! The troublemaker: kills workers, stops the database, cuts connections, each at its moment.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    scenario::{Planned, Trouble},
    settle::Patience,
    stage::Stage,
    workers::Crew,
};
use crate::{
    local::{postgres::StopMode, story::dice::Dice},
    postgres::simulation,
};

/// What was done so far.
#[derive(Default)]
pub(super) struct Mischief(Mutex<Done>);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    pub(super) kills: usize,
    /// Of the kills: those at which messages were in flight.
    pub(super) kills_under_load: usize,
    /// Messages in flight at each kill, all together: at most so many come again because of it.
    pub(super) hit: u64,
    pub(super) cuts: usize,
    pub(super) restarts: usize,
    pub(super) crashes: usize,
    pub(super) away: Duration,
    /// The database is not there now.
    pub(super) is_away: bool,
}

/// A worker that dies may have asked for so many more messages: sixty for each of its eight pollers.
const ASKED_FOR: u64 = 480;

/// Does everything that is planned. Ends early if no work is done any more.
pub(super) async fn run(
    stage: &Stage,
    crew: &Crew,
    planned: &[Planned],
    messages: usize,
    seed: u64,
    patience: Duration,
    mischief: &Mischief,
) -> anyhow::Result<()> {
    let mut dice = Dice::new(!seed);
    for planned in planned {
        let due = (planned.done * messages as f64) as u64;
        let mut waiting = Patience::new(patience);
        while stage.done(crew) < due {
            if waiting.is_over(&(stage.done(crew), 0)) {
                return Ok(()); // the report says what is missing
            }
            sleep(Duration::from_millis(2)).await;
        }
        sleep(planned.after).await;
        match planned.trouble {
            Trouble::Kill => kill(stage, crew, &mut dice, mischief).await?,
            Trouble::Cut => {
                // Its own connection may be one that a restart has cut.
                let _ = simulation::cut_connections(&stage.postgres).await;
                mischief.with(|done| done.cuts += 1);
            }
            Trouble::Restart(mode) => {
                stop_for(stage, mode, Duration::ZERO, mischief).await?;
                mischief.with(|done| match mode {
                    StopMode::Fast => done.restarts += 1,
                    StopMode::Immediate => done.crashes += 1,
                });
            }
            Trouble::Away(time) => {
                stop_for(stage, StopMode::Fast, time, mischief).await?;
                mischief.with(|done| done.away += time);
            }
        }
    }
    Ok(())
}

async fn kill(stage: &Stage, crew: &Crew, dice: &mut Dice, mischief: &Mischief) -> anyhow::Result<()> {
    // Somebody who holds nothing loses nothing: wait until there is something to lose.
    let asked = Instant::now();
    let held = || stage.in_flight().map_or_else(|| crew.in_hand(), |messages| messages as u64);
    while held() == 0 && asked.elapsed() < Duration::from_secs(5) {
        sleep(Duration::from_millis(1)).await;
    }
    let place = dice.index(crew.len().max(1));
    let before = held();
    if !crew.kill(place).await? {
        return Ok(());
    }
    mischief.with(|done| {
        done.kills += 1;
        done.kills_under_load += usize::from(before > 0);
        done.hit += before.max(held()) + ASKED_FOR;
    });
    sleep(Duration::from_millis(dice.below(200))).await;
    crew.replace(place)
}

async fn stop_for(stage: &Stage, mode: StopMode, time: Duration, mischief: &Mischief) -> anyhow::Result<()> {
    let mut server = stage.server.lock().await;
    let Some(server) = server.as_mut() else { return Ok(()) };
    mischief.with(|done| done.is_away = true);
    server.stop(mode).await?;
    sleep(time).await;
    server.start_again().await?;
    mischief.with(|done| done.is_away = false);
    Ok(())
}

impl Mischief {
    pub(super) fn done(&self) -> Done {
        *self.lock()
    }

    fn with(&self, note: impl FnOnce(&mut Done)) {
        note(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Done> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
