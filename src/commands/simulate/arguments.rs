//! What can be simulated where: arguments, and whether they fit together.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;

use super::{
    Failure, Recipe,
    scenario::{Name, QueueTroubles, SOAK_RATE, Scenario, Trouble},
    stage::Stage,
    workers::Launch,
};
use crate::{
    cli::duration,
    commands::screen::Screen,
    local::postgres::StopMode,
    postgres::PostgresSettings,
    sqs::{Access, SqsSettings, is_loopback},
};

/// Arguments of `simulate`.
#[derive(Args, Clone)]
pub struct SimulateArgs {
    /// What to simulate [default: smoke]
    #[arg(value_enum, value_name = "SCENARIO")]
    pub(super) scenario: Option<Name>,

    /// The same number makes up the same mails, events and troubles [default: a new one, which is printed]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,

    /// Mails to send; each is good for about four messages [default: the scenario's]
    #[arg(long, value_name = "N")]
    pub(super) mails: Option<usize>,

    /// Workers to start; 0: your own deployment takes the messages in [default: the scenario's]
    #[arg(long, value_name = "N")]
    pub(super) workers: Option<usize>,

    /// How long the sending takes, like 30s or 10m; soak sends as many mails more or less [default: the scenario's]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(super) duration: Option<Duration>,

    /// Give up when nothing has moved for so long
    #[arg(long, value_parser = duration, default_value = "60s", value_name = "TIME")]
    pub(super) patience: Duration,

    /// Print the report as JSON to standard output, everything else to standard error
    #[arg(long)]
    pub(super) json: bool,

    /// Remove what simulations have left in the database; without SCENARIO nothing else is done; with one, it is done at the end if all is as it must be
    #[arg(long)]
    pub(super) clean: bool,

    /// Do not ask before writing to a queue or a database that is not on this machine
    #[arg(long)]
    pub(super) yes: bool,

    /// Settings of the workers that are started, as for `run`: -- --batch-size 1000
    #[arg(last = true, value_name = "SETTING")]
    pub(super) settings: Vec<String>,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) troubles: TroubleArgs,
}

#[derive(Args, Clone)]
#[command(next_help_heading = "Target")]
pub(super) struct TargetArgs {
    /// Write to this migrated database instead of a private one; the rows are marked. No variable names it, on purpose
    #[arg(long, value_name = "URL")]
    pub(super) database_url: Option<String>,

    /// Send to this queue instead of the embedded one. No variable names it, on purpose
    #[arg(long, value_name = "URL")]
    pub(super) queue_url: Option<String>,

    /// AWS region of the queue [default: the one in its URL]
    #[arg(long, env = "AWS_REGION", value_name = "REGION")]
    pub(super) region: Option<String>,

    /// Where SQS is, for LocalStack and the like [default: AWS, or the queue URL's own host]
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL")]
    pub(super) endpoint_url: Option<String>,
}

/// Each takes the place of what the scenario says.
#[derive(Args, Clone)]
#[command(next_help_heading = "Troubles, instead of the scenario's")]
pub(super) struct TroubleArgs {
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
    pub(super) fn ask(&self, screen: &Screen) -> Result<(), Failure> {
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
        let host = target.database_url.as_ref().and_then(|url| PostgresSettings::new(url).foreign_host())?;
        Some(format!(
            "the database at {host} is not on this machine, and rows of made-up mails are written to it or removed"
        ))
    }

    /// The named scenario, with what the user wants otherwise.
    pub(super) fn scenario(&self) -> Scenario {
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

    pub(super) fn sqs(&self, queue_url: &str) -> SqsSettings {
        SqsSettings {
            queue_url: queue_url.to_owned(),
            access: Access::Default,
            region: self.target.region.clone(),
            endpoint_url: self.target.endpoint_url.clone(),
            receive_wait: Duration::from_secs(1),
            visibility_timeout: Duration::from_secs(30),
        }
    }

    pub(super) fn launch(&self, scenario: &Scenario, stage: &Stage) -> anyhow::Result<Launch> {
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
    pub(super) fn replay(&self, recipe: &Recipe) -> String {
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
