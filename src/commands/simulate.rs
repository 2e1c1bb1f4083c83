//! `ses-ledger simulate`: a proof that nothing is lost, doubled or wrong, whatever goes wrong on the way.
//!
//! A story makes up mails and what SES reports about them, and knows the truth. The real worker takes it in, as processes
//! of its own, while queue, database and the workers themselves misbehave. At the end the database must hold the truth.

mod application;
mod chaos;
mod report;
mod scenario;
mod workers;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    sync::atomic::Ordering,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, macros::datetime};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::{
    cli::{EXIT_UNAVAILABLE, EXIT_USAGE, Surroundings, duration},
    commands::{
        screen::{Screen, grouped},
        target::{Database, INTERRUPTED, Queue, unless_interrupted},
    },
    local::{
        postgres::{LocalPostgres, StopMode},
        sqs_endpoint::{QueueHandle, SqsEndpoint},
        story::{Step, Story, StorySettings},
    },
    pipeline::decode::{DecodeSettings, Outcome, decode},
    postgres::{
        Postgres, PostgresSettings,
        audit::{self, Findings, Rejects},
        migrations, schema,
        simulation::{self, Removed},
    },
    sqs::{Sqs, SqsSettings, is_loopback},
};
use application::{Sending, SentAt};
use chaos::Mischief;
use report::{Report, Traffic};
use scenario::{Name, QueueTroubles, SOAK_RATE, Scenario, Trouble};
use workers::{Crew, Launch};

/// Arguments of `simulate`.
#[derive(Args, Clone)]
pub struct SimulateArgs {
    /// What to simulate [default: smoke]
    #[arg(value_enum, value_name = "SCENARIO")]
    scenario: Option<Name>,

    /// The same number makes up the same mails, events and troubles [default: a new one, which is printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Mails to send; each is good for about four messages [default: the scenario's]
    #[arg(long, value_name = "N")]
    mails: Option<usize>,

    /// Workers to start; 0: your own deployment takes the messages in [default: the scenario's]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,

    /// How long the sending takes, like 30s or 10m; soak sends as many mails more or less [default: the scenario's]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    duration: Option<Duration>,

    /// Give up when nothing has moved for so long
    #[arg(long, value_parser = duration, default_value = "60s", value_name = "TIME")]
    patience: Duration,

    /// Print the report as JSON to standard output, everything else to standard error
    #[arg(long)]
    json: bool,

    /// Remove what simulations have left in the database; without SCENARIO nothing else is done; with one, it is done at the end if all is as it must be
    #[arg(long)]
    clean: bool,

    /// Do not ask before writing to a queue or a database that is not on this machine
    #[arg(long)]
    yes: bool,

    /// Settings of the workers that are started, as for `run`: -- --batch-size 1000
    #[arg(last = true, value_name = "SETTING")]
    settings: Vec<String>,

    #[command(flatten)]
    target: TargetArgs,

    #[command(flatten)]
    troubles: TroubleArgs,
}

#[derive(Args, Clone)]
#[command(next_help_heading = "Target")]
struct TargetArgs {
    /// Write to this migrated database instead of a private one; the rows are marked. No variable names it, on purpose
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,

    /// Send to this queue instead of the embedded one. No variable names it, on purpose
    #[arg(long, value_name = "URL")]
    queue_url: Option<String>,

    /// AWS region of the queue [default: the one in its URL]
    #[arg(long, env = "AWS_REGION", value_name = "REGION")]
    region: Option<String>,

    /// Where SQS is, for LocalStack and the like [default: AWS, or the queue URL's own host]
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL")]
    endpoint_url: Option<String>,
}

/// Each takes the place of what the scenario says.
#[derive(Args, Clone)]
#[command(next_help_heading = "Troubles, instead of the scenario's")]
struct TroubleArgs {
    /// None of the scenario's troubles with queue, database and workers: only the untidy mails are left
    #[arg(long)]
    calm: bool,

    /// Times that a worker gets SIGKILL and is started again
    #[arg(long, value_name = "N")]
    kills: Option<usize>,

    /// Times that all connections to the private database are cut
    #[arg(long, value_name = "N")]
    cuts: Option<usize>,

    /// Times that the private database is stopped and started again
    #[arg(long, value_name = "N")]
    restarts: Option<usize>,

    /// Times that the private database crashes and recovers
    #[arg(long, value_name = "N")]
    crashes: Option<usize>,

    /// How long the private database is away, once, like 60s
    #[arg(long, value_parser = duration, value_name = "TIME")]
    away: Option<Duration>,

    /// Percent of receives that the embedded queue answers with an error, and of delete requests half as many
    #[arg(long, value_name = "PERCENT")]
    failed_receives: Option<f64>,

    /// Percent of deletes that fail in the embedded queue
    #[arg(long, value_name = "PERCENT")]
    failed_deletes: Option<f64>,

    /// Percent of delete requests of which the embedded queue's answer is lost
    #[arg(long, value_name = "PERCENT")]
    lost_deletes: Option<f64>,

    /// How late the embedded queue answers, and up to as much again, like 20ms
    #[arg(long, value_parser = duration, value_name = "TIME")]
    latency: Option<Duration>,

    /// How full the embedded queue's receives come back, in percent
    #[arg(long, value_name = "PERCENT")]
    fill: Option<f64>,

    /// How many messages can be in flight in the embedded queue
    #[arg(long, value_name = "N")]
    in_flight_cap: Option<usize>,

    /// The embedded queue gives up a message that was received so often
    #[arg(long, value_name = "N")]
    max_receives: Option<u32>,
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

/// The queue and the database, and what of them is ours to trouble.
struct Stage {
    queue_url: String,
    embedded: Option<Embedded>,
    /// A client of the queue, whichever it is.
    sqs: Sqs,
    database_url: String,
    postgres: Postgres,
    /// Our own server, to stop and start.
    server: Mutex<Option<LocalPostgres>>,
    has_server: bool,
}

/// Our own queue.
struct Embedded {
    endpoint: SqsEndpoint,
    queue: QueueHandle,
    dead_letters: QueueHandle,
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
    let recipe_tag = serde_json::to_value(&recipe).context("cannot write the recipe")?;

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
    let findings = compare(args, stage, &story, (&rejects, &before, since), &mischief, scenario).await?;
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

/// Waits until the queue is empty and the orphans are attached, or nothing moves any more. Says how long the queue took.
async fn settle(
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

/// Waits as long as something moves.
struct Patience {
    longest: Duration,
    last: Option<(u64, u64)>,
    still: Duration,
    looked: Instant,
}

impl Patience {
    fn new(longest: Duration) -> Self {
        Self { longest, last: None, still: Duration::ZERO, looked: Instant::now() }
    }

    /// Looks at two numbers. Nothing has changed in them for too long, not counting times at which we did not run ourselves.
    fn is_over(&mut self, now: &(u64, u64)) -> bool {
        let passed = std::mem::replace(&mut self.looked, Instant::now()).elapsed();
        let moved = self.last.replace(*now) != Some(*now);
        self.still = if moved { Duration::ZERO } else { self.still + passed.min(Duration::from_secs(5)) };
        self.still > self.longest
    }
}

/// Compares with the truth; where somebody else's workers are at work, until it is exact or nothing changes any more.
async fn compare(
    args: &SimulateArgs,
    stage: &Stage,
    story: &Story,
    (rejects, before, since): (&Rejects, &Rejects, OffsetDateTime),
    mischief: &Mischief,
    scenario: &Scenario,
) -> anyhow::Result<Findings> {
    let mut waiting = Patience::new(args.patience);
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
async fn patiently<T, F: Future<Output = anyhow::Result<T>>>(ask: impl Fn() -> F) -> anyhow::Result<T> {
    for _ in 0..10 {
        if let Ok(answer) = ask().await {
            return Ok(answer);
        }
        sleep(Duration::from_millis(100)).await;
    }
    ask().await
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

/// Removes what simulations have left in a given database.
async fn clean(args: &SimulateArgs, screen: &Screen) -> Result<(), Failure> {
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

/// The embedded queue with its dead-letter queue, or the user's.
async fn open_queue(args: &SimulateArgs, scenario: &Scenario) -> Result<(Queue, Sqs), Failure> {
    let Some(url) = &args.target.queue_url else {
        let queue = Queue::embedded(DEAD_LETTERS, &[]).await?;
        let endpoint = queue.endpoint.as_ref().context("it was just started")?;
        let policy = scenario.queue.redrive_policy(DEAD_LETTERS);
        let attributes: Vec<_> = policy.iter().map(|policy| ("RedrivePolicy", policy.as_str())).collect();
        let queue = Queue { url: endpoint.create_queue(QUEUE, &attributes)?, ..queue };
        let sqs = queue.sqs(args.sqs(&queue.url)).await?;
        return Ok((queue, sqs));
    };
    let queue = Queue::given(url.clone());
    let sqs = queue.sqs(args.sqs(url)).await?;
    let depth = sqs.depth().await.map_err(|e| Failure::Away(e.into()))?;
    if depth > 0 && scenario.workers > 0 {
        return Err(Failure::Refused(format!(
            "the queue {url} holds {depth} messages: the simulator's workers would take them away; use an empty queue, or \
             --workers 0 with your own deployment on it"
        )));
    }
    Ok((queue, sqs))
}

/// A private PostgreSQL, or the user's database with its schema.
async fn open_database(args: &SimulateArgs, surroundings: Surroundings, screen: &Screen) -> Result<Database, Failure> {
    let Some(url) = &args.target.database_url else {
        let database = Database::private(surroundings, screen.download(), STATEMENT_TIMEOUT).await?;
        migrations::up(&database.postgres).await?;
        return Ok(database);
    };
    let database = connect(url).await?;
    let findings = schema::verify(&database.postgres).await.map_err(Failure::Away)?;
    if findings.iter().any(|finding| finding.severity == schema::Severity::Error) {
        let why = "the database's schema is not what this binary needs: run ses-ledger migrate verify";
        return Err(Failure::Away(anyhow::anyhow!(why)));
    }
    Ok(database)
}

async fn connect(url: &str) -> Result<Database, Failure> {
    let database = Database::given(url, None, STATEMENT_TIMEOUT)?;
    database.postgres.try_connect().await.map_err(|e| Failure::Away(e.into()))?;
    Ok(database)
}

/// For our own questions, which look at whole tables.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// What people can type.
fn draw_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_millis() as u64 % 1_000_000)
}

impl Stage {
    async fn open(
        args: &SimulateArgs,
        scenario: &Scenario,
        surroundings: Surroundings,
        screen: &Screen,
    ) -> Result<Self, Failure> {
        let (queue, sqs) = open_queue(args, scenario).await?;
        let database = open_database(args, surroundings, screen).await?;
        let embedded = queue.endpoint.map(|endpoint| -> anyhow::Result<Embedded> {
            endpoint.faults(|faults| scenario.queue.arrange(faults, args.seed.unwrap_or_default()));
            let find = |name| endpoint.queue(name).context("the queue was just made");
            let (queue, dead_letters) = (find(QUEUE)?, find(DEAD_LETTERS)?);
            if let Some(cap) = scenario.queue.in_flight_cap {
                queue.set_in_flight_cap(cap);
            }
            Ok(Embedded { queue, dead_letters, endpoint })
        });
        Ok(Self {
            queue_url: queue.url,
            embedded: embedded.transpose()?,
            sqs,
            database_url: database.url,
            postgres: database.postgres,
            has_server: database.server.is_some(),
            server: Mutex::new(database.server),
        })
    }

    async fn close(self) -> anyhow::Result<()> {
        let database = Database { url: self.database_url, postgres: self.postgres, server: self.server.into_inner() };
        database.close().await?;
        if let Some(embedded) = self.embedded {
            embedded.endpoint.stop().await;
        }
        Ok(())
    }

    /// Messages that have been dealt with.
    fn done(&self, crew: &Crew) -> u64 {
        match &self.embedded {
            Some(embedded) => {
                let totals = embedded.queue.totals();
                totals.deleted + totals.dead
            }
            None => crew.counts().get("messages_deleted_total"),
        }
    }

    /// Messages that can be received now, as far as we see.
    fn backlog(&self) -> usize {
        self.embedded.as_ref().map_or(0, |embedded| embedded.queue.counts().visible)
    }

    /// Messages that somebody holds, if we see that.
    fn in_flight(&self) -> Option<usize> {
        self.embedded.as_ref().map(|embedded| embedded.queue.counts().in_flight)
    }

    fn redelivered(&self) -> Option<u64> {
        self.embedded.as_ref().map(|embedded| embedded.queue.totals().redelivered)
    }

    /// Messages that are in the queue.
    async fn left(&self) -> anyhow::Result<u64> {
        match &self.embedded {
            Some(embedded) => {
                let counts = embedded.queue.counts();
                Ok((counts.visible + counts.in_flight + counts.delayed) as u64)
            }
            None => self.sqs.depth().await.context("cannot ask the queue"),
        }
    }
}

const QUEUE: &str = "ses-events";
const DEAD_LETTERS: &str = "ses-events-dead-letters";

/// When the first mail is sent, in a private database.
const START: OffsetDateTime = datetime!(2026-10-05 08:00 UTC);

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

impl SimulateArgs {
    /// What does not fit together, before anything is started.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (scenario, target) = (self.scenario(), &self.target);
        let rules = [
            (
                self.clean && target.database_url.is_none(),
                "--clean removes rows from a database that is given with --database-url: a private one is gone anyway",
            ),
            (
                scenario.workers == 0 && (target.database_url.is_none() || target.queue_url.is_none()),
                "--workers 0 needs --queue-url and --database-url: those of your own deployment",
            ),
            (
                scenario.troubles_database() && target.database_url.is_some(),
                "this stops the database or cuts its connections, which is done to a private one only: leave out \
                 --database-url, or add --calm",
            ),
            (
                scenario.troubles_queue() && target.queue_url.is_some(),
                "this makes the queue fail, which only the embedded one does: leave out --queue-url, or add --calm",
            ),
            (
                scenario.kills() && scenario.workers == 0,
                "this kills workers, which is done to those of the simulator only: leave out --workers 0, or add --calm",
            ),
        ];
        if let Some((_, why)) = rules.into_iter().find(|(broken, _)| *broken) {
            return Err(why.to_owned());
        }
        let percents = [&self.troubles.failed_receives, &self.troubles.failed_deletes, &self.troubles.lost_deletes];
        if percents.into_iter().chain([&self.troubles.fill]).flatten().any(|percent| !(0.0..=100.0).contains(percent)) {
            return Err("a PERCENT is from 0 to 100".to_owned());
        }
        match self.foreign() {
            Some(what) if !self.yes && !io::stdin().is_terminal() => Err(format!("{what}: add --yes if that is meant")),
            _ => Ok(()),
        }
    }

    /// Asks before anything is written that is not on this machine.
    fn ask(&self, screen: &Screen) -> Result<(), Failure> {
        let Some(what) = self.foreign().filter(|_| !self.yes) else { return Ok(()) };
        screen.say(&format!("{what}.\nIs that meant? Type yes to go on:"));
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).context("cannot read the answer")?;
        if answer.trim() == "yes" { Ok(()) } else { Err(Failure::Refused("nothing was written".to_owned())) }
    }

    /// What is not on this machine.
    fn foreign(&self) -> Option<String> {
        let target = &self.target;
        let place = |url: &String| target.endpoint_url.as_ref().unwrap_or(url).clone();
        if let Some(url) = target.queue_url.as_ref().filter(|url| !is_loopback(&place(url))) {
            return Some(format!("the queue {url} is not on this machine, and made-up mails are sent to it"));
        }
        let settings = |url: &String| PostgresSettings {
            url: url.clone(),
            connections: 1,
            statement_timeout: Duration::ZERO,
            schema: None,
        };
        let host = target.database_url.as_ref().and_then(|url| settings(url).foreign_host())?;
        Some(format!(
            "the database at {host} is not on this machine, and rows of made-up mails are written to it or removed"
        ))
    }

    /// The named scenario, with what the user wants otherwise.
    fn scenario(&self) -> Scenario {
        let mut scenario = self.scenario.unwrap_or(Name::Smoke).scenario();
        if let Some(duration) = self.duration {
            scenario.sending = duration;
            if scenario.flat_memory {
                scenario.mails = (SOAK_RATE * duration.as_secs_f64()) as usize;
            }
        }
        scenario.mails = self.mails.unwrap_or(scenario.mails);
        scenario.workers = self.workers.unwrap_or(scenario.workers);
        self.troubles.apply(&mut scenario);
        scenario
    }

    fn sqs(&self, queue_url: &str) -> SqsSettings {
        SqsSettings {
            queue_url: queue_url.to_owned(),
            region: self.target.region.clone(),
            endpoint_url: self.target.endpoint_url.clone(),
            receive_wait: Duration::from_secs(1),
            visibility_timeout: Duration::from_secs(30),
        }
    }

    fn launch(&self, scenario: &Scenario, stage: &Stage) -> anyhow::Result<Launch> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut variables: Vec<(String, String)> = scenario.settings.iter().map(own).collect();
        variables.push(("DATABASE_URL".to_owned(), stage.database_url.clone()));
        variables.push(("QUEUE_URL".to_owned(), stage.queue_url.clone()));
        if stage.embedded.is_none() {
            let given = [("AWS_REGION", &self.target.region), ("AWS_ENDPOINT_URL", &self.target.endpoint_url)];
            variables.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))));
        }
        Ok(Launch {
            program: std::env::current_exe().context("cannot find this program itself")?,
            variables,
            alone: stage.embedded.is_some() && stage.has_server,
            arguments: self.settings.clone(),
        })
    }

    /// The command that makes the same up again.
    fn replay(&self, recipe: &Recipe) -> String {
        let mut words = vec![format!("ses-ledger simulate {} --seed {}", recipe.scenario, recipe.seed)];
        let usual = self.scenario.unwrap_or(Name::Smoke).scenario();
        if recipe.mails != usual.mails {
            words.push(format!("--mails {}", recipe.mails));
        }
        words.extend(self.workers.map(|workers| format!("--workers {workers}")));
        words.extend(self.duration.map(|time| format!("--duration {}ms", time.as_millis())));
        words.extend(self.troubles.words());
        if !self.settings.is_empty() {
            words.push(format!("-- {}", self.settings.join(" ")));
        }
        words.join(" ")
    }
}

impl TroubleArgs {
    fn apply(&self, scenario: &mut Scenario) {
        if self.calm {
            scenario.troubles.clear();
            scenario.queue = QueueTroubles::default();
        }
        let mut set = |wanted: Option<usize>, trouble: Trouble| {
            if let Some(times) = wanted {
                scenario.troubles.retain(|(other, _)| *other != trouble);
                scenario.troubles.push((trouble, times));
            }
        };
        set(self.kills, Trouble::Kill);
        set(self.cuts, Trouble::Cut);
        set(self.restarts, Trouble::Restart(StopMode::Fast));
        set(self.crashes, Trouble::Restart(StopMode::Immediate));
        if let Some(time) = self.away {
            scenario.troubles.retain(|(other, _)| !matches!(other, Trouble::Away(_)));
            scenario.troubles.push((Trouble::Away(time), usize::from(!time.is_zero())));
        }
        let queue = &mut scenario.queue;
        for (wanted, share) in [
            (self.failed_receives, &mut queue.failed_receives),
            (self.failed_deletes, &mut queue.failed_deletes),
            (self.lost_deletes, &mut queue.lost_deletes),
        ] {
            *share = wanted.map_or(*share, |percent| percent / 100.0);
        }
        queue.latency = self.latency.unwrap_or(queue.latency);
        queue.fill = self.fill.map(|percent| percent / 100.0).or(queue.fill);
        queue.in_flight_cap = self.in_flight_cap.or(queue.in_flight_cap);
        queue.max_receive_count = self.max_receives.or(queue.max_receive_count);
    }

    /// The flags as they were given.
    fn words(&self) -> Vec<String> {
        let text = |value: Option<String>, name: &str| value.map(|value| format!("--{name} {value}"));
        let number = |value: Option<usize>, name| text(value.map(|value| value.to_string()), name);
        let percent = |value: Option<f64>, name| text(value.map(|value| value.to_string()), name);
        let time = |value: Option<Duration>, name| text(value.map(|value| format!("{}ms", value.as_millis())), name);
        [
            self.calm.then(|| "--calm".to_owned()),
            number(self.kills, "kills"),
            number(self.cuts, "cuts"),
            number(self.restarts, "restarts"),
            number(self.crashes, "crashes"),
            time(self.away, "away"),
            percent(self.failed_receives, "failed-receives"),
            percent(self.failed_deletes, "failed-deletes"),
            percent(self.lost_deletes, "lost-deletes"),
            time(self.latency, "latency"),
            percent(self.fill, "fill"),
            number(self.in_flight_cap, "in-flight-cap"),
            number(self.max_receives.map(|n| n as usize), "max-receives"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
