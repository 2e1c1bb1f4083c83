//! `ses-ledger simulate`: a proof that nothing is lost, doubled or wrong, whatever goes wrong on the way.
//!
//! A story makes up mails and what SES reports about them, and knows the truth. The real worker takes it in, as processes
//! of its own, while queue, database and the workers themselves misbehave. At the end the database must hold the truth.

mod application;
mod arguments;
mod chaos;
mod clean;
mod report;
mod scenario;
mod settle;
mod stage;
mod workers;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    process::ExitCode,
    sync::atomic::Ordering,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::datetime};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

pub use arguments::SimulateArgs;

use crate::{
    cli::{EXIT_UNAVAILABLE, EXIT_USAGE, Surroundings},
    commands::{
        screen::{Screen, grouped},
        target::{INTERRUPTED, unless_interrupted},
    },
    local::story::{Step, Story, StorySettings},
    pipeline::decode::{DecodeSettings, Outcome, decode},
    postgres::{
        audit::{self, Rejects},
        simulation,
    },
};
use application::{Sending, SentAt};
use chaos::Mischief;
use clean::clean;
use report::{Report, Traffic};
use scenario::{Scenario, Trouble};
use settle::{compare, patiently, settle};
use stage::Stage;
use workers::Crew;

/// Simulates, and says whether all is as it must be. Whatever it started is gone afterwards, also after Ctrl-C.
///
/// # Errors
/// If something cannot be set up or breaks down.
pub async fn run(args: SimulateArgs, surroundings: Surroundings) -> anyhow::Result<ExitCode> {
    let screen = Screen::new(args.json);
    let args = SimulateArgs { seed: Some(args.seed.unwrap_or_else(draw_seed)), ..args };
    let scenario = args.scenario();
    let simulation = async {
        if args.clean && args.scenario.is_none() {
            clean(&args, &screen).await?;
            return Ok(true);
        }
        let stage = Stage::open(&args, &scenario, surroundings, &screen).await?;
        let report = play(&args, &scenario, &stage, &screen).await?;
        report.print(&screen)?;
        // What is not as it must be stays, to be looked at.
        if args.clean && report.holds() {
            clean(&args, &screen).await?;
        }
        stage.close().await?;
        Ok(report.holds())
    };
    let outcome = match args.ask(&screen) {
        Ok(()) => unless_interrupted("simulator", simulation).await?,
        Err(refused) => Some(Err(refused)),
    };
    match outcome {
        Some(Ok(true)) => Ok(ExitCode::SUCCESS),
        Some(Ok(false)) => Ok(ExitCode::FAILURE),
        Some(Err(Failure::Broken(e))) => Err(e),
        Some(Err(Failure::Away(e))) => {
            eprintln!("error: {e:#}");
            Ok(EXIT_UNAVAILABLE.into())
        }
        Some(Err(Failure::Refused(why))) => {
            eprintln!("error: {why}");
            Ok(EXIT_USAGE.into())
        }
        None => Ok(INTERRUPTED.into()),
    }
}

/// Sends the story, lets the workers take it in and the troublemaker trouble them, and looks at what came of it.
async fn play(args: &SimulateArgs, scenario: &Scenario, stage: &Stage, screen: &Screen) -> Result<Report, Failure> {
    let seed = args.seed.unwrap_or_default();
    let recipe = Recipe::new(scenario, seed, stage.has_server);
    let story = recipe.story(scenario)?;
    report::introduce(screen, scenario, stage, &recipe, story.truth.messages);

    let rejects = rejects(&story)?;
    let far_away = OffsetDateTime::now_utc() + Duration::from_secs(3600);
    let before = audit::quarantined(&stage.postgres, &rejects, far_away).await?;
    let since = simulation::now(&stage.postgres).await?;
    let planned = scenario.planned(seed);
    let crew = Crew::start(args.launch(scenario, stage)?, scenario.workers).await.map_err(Failure::Away)?;
    let (sending, mischief, started) = (Sending::default(), Mischief::default(), Instant::now());
    let mut recipe_tag = serde_json::to_value(&recipe).context("cannot write the recipe")?;
    // A body may be in quarantine before the first log row is written.
    recipe_tag["since"] = since.format(&Rfc3339).context("cannot write the time")?.into();

    let working = async {
        let messages = story.truth.messages;
        let (sent_at, ()) = tokio::try_join!(
            application::perform(&story, stage, scenario.sending, &recipe_tag, &sending),
            chaos::run(stage, &crew, &planned, messages, seed, args.patience, &mischief),
        )?;
        let took = settle(stage, &crew, &story, args.patience, started).await?;
        anyhow::Ok((sent_at, took))
    };
    let (sent_at, took) = tokio::select! {
        done = working => done?,
        broken = look_after(&crew) => return Err(broken.into()),
        never = show_progress(screen, stage, &crew, &story, &sending, &mischief, started) => match never {},
    };
    let sent = sending.sent.load(Ordering::Relaxed);
    screen.redraw(&progress_line(stage, &crew, &story, sent, &mischief, started), true);
    screen.say("  comparing the database with the truth");
    let findings = compare(args.patience, stage, &story, (&rejects, &before, since), &mischief, scenario).await?;
    crew.stop().await?;
    let first = match findings.differences.mails.first() {
        Some(moment) => {
            let explained = patiently(|| audit::explain(&stage.postgres, &story.truth, moment)).await?;
            Some(report::Differing { carriers: report::carriers(&story, moment), explained })
        }
        None => None,
    };
    Ok(Report {
        command: args.replay(&recipe),
        scenario: scenario.clone(),
        recipe,
        took,
        sent,
        planned_kills: planned.iter().filter(|planned| planned.trouble == Trouble::Kill).count(),
        ages: ages(stage, &story, &sent_at).await?,
        traffic: Traffic::of(stage, &crew),
        counts: crew.counts(),
        record: crew.record(),
        done: mischief.done(),
        findings,
        first,
        expected: story.truth,
    })
}

/// Why nothing was simulated.
enum Failure {
    /// Exit code 69.
    Away(anyhow::Error),
    /// Exit code 64.
    Refused(String),
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

/// How the same simulation is made up again. Each of its log rows carries it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Recipe {
    scenario: String,
    seed: u64,
    mails: usize,
    /// Of the first mail: Unix milliseconds.
    start_ms: i64,
}

impl Recipe {
    fn new(scenario: &Scenario, seed: u64, private: bool) -> Self {
        // A private database makes up the same mails every time. To that of a deployment each simulation's are new, and two
        // weeks old, so that complaints, which come days later, have been made by now.
        let start = if private { START } else { OffsetDateTime::now_utc() - Duration::from_secs(14 * 86_400) };
        let start_ms = start.unix_timestamp() * 1_000;
        Self { scenario: scenario.name.to_owned(), seed, mails: scenario.mails, start_ms }
    }

    fn story(&self, scenario: &Scenario) -> anyhow::Result<Story> {
        let start = OffsetDateTime::from_unix_timestamp(self.start_ms / 1_000).context("cannot read the time")?;
        let settings = StorySettings::new(self.seed, self.mails, start);
        Ok(Story::tell(&StorySettings { mess: scenario.mess.clone(), profile: scenario.profile, ..settings }))
    }
}

/// When the first mail is sent, in a private database.
const START: OffsetDateTime = datetime!(2026-10-05 08:00 UTC);

/// What people can type.
fn draw_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_millis() as u64 % 1_000_000)
}

/// What must be in quarantine. The story knows how many there are, but not which part of a body they are.
fn rejects(story: &Story) -> anyhow::Result<Rejects> {
    let mut rejects = Rejects::new();
    for step in story.steps() {
        let Step::Publish(body) = step else { continue };
        for leaf in decode(body.as_bytes(), OffsetDateTime::UNIX_EPOCH, &DecodeSettings::default()) {
            if let Outcome::Rejected(reject) = leaf.outcome {
                let reason = reject.reason.as_str().to_owned();
                rejects.entry(Sha256::digest(&reject.raw).to_vec()).or_insert((reason, 0)).1 += 1;
            }
        }
    }
    let (found, expected) =
        (rejects.values().map(|(_, times)| times).sum::<usize>(), story.truth.rejected_leaves.values().sum::<usize>());
    anyhow::ensure!(found == expected, "the decoder rejects {found} parts of messages; the story has made {expected}");
    Ok(rejects)
}

/// From sending to deleting, or to storing where we do not see the queue: how many messages took how many milliseconds.
async fn ages(stage: &Stage, story: &Story, sent_at: &SentAt) -> anyhow::Result<BTreeMap<u64, u64>> {
    if let Some(embedded) = &stage.embedded {
        return Ok(embedded.queue.ages());
    }
    let mut ages = BTreeMap::new();
    let logs: Vec<Uuid> = story.truth.facts.keys().copied().collect();
    for (id, stored) in simulation::storing_times(&stage.postgres, &logs).await? {
        if let Some(sent) = sent_at.get(&id) {
            *ages.entry(stored.saturating_sub(*sent).as_millis() as u64).or_default() += 1;
        }
    }
    Ok(ages)
}

/// Asks the workers how they are, for ever.
async fn look_after(crew: &Crew) -> anyhow::Error {
    const EVERY: Duration = Duration::from_millis(200);
    loop {
        if let Err(e) = crew.look_after().await {
            return e;
        }
        let asked = Instant::now();
        sleep(EVERY).await;
        crew.stood_still(asked.elapsed().saturating_sub(EVERY));
    }
}

async fn show_progress(
    screen: &Screen,
    stage: &Stage,
    crew: &Crew,
    story: &Story,
    sending: &Sending,
    mischief: &Mischief,
    started: Instant,
) -> Infallible {
    // A terminal is redrawn; a file gets a line every five seconds.
    let every = Duration::from_millis(if screen.terminal { 100 } else { 5_000 });
    loop {
        sleep(every).await;
        let sent = sending.sent.load(Ordering::Relaxed);
        screen.redraw(&progress_line(stage, crew, story, sent, mischief, started), false);
    }
}

/// Fits into 80 columns: a line that wraps cannot be redrawn.
fn progress_line(
    stage: &Stage,
    crew: &Crew,
    story: &Story,
    sent: usize,
    mischief: &Mischief,
    started: Instant,
) -> String {
    let (done, mischief) = (stage.done(crew), mischief.done());
    let database = if mischief.is_away { ", database away" } else { "" };
    let kills = if mischief.kills > 0 { format!(", {} kills", mischief.kills) } else { String::new() };
    format!(
        "  {:>4} s {:>3} %   sent {}, done {}{kills}{database}",
        started.elapsed().as_secs(),
        done * 100 / story.truth.messages.max(1) as u64,
        grouped(sent as u64),
        grouped(done),
    )
}
