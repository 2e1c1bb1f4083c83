//! `ses-ledger demo`: the whole product on made-up mails, on any machine, within a minute.

mod view;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use time::OffsetDateTime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{QueueAddress, Surroundings, WorkerArgs},
    commands::{
        run,
        target::{Database, INTERRUPTED, Queue, unless_interrupted},
    },
    local::story::{Step, Story, StorySettings},
    metrics::Metrics,
    orphans,
    pipeline::Shutdown,
    postgres::{Postgres, PostgresSettings, answers, audit, migrations, sender},
    site::{self, Keys, SiteSettings},
    sqs::{SqsSettings, is_loopback},
};
use view::{Summary, View};

/// Arguments of `demo`.
#[derive(Args, Clone)]
pub struct DemoArgs {
    /// Mails to send; each is good for about four messages
    #[arg(long, default_value_t = 300, value_name = "N")]
    mails: usize,

    /// The same number makes up the same mails, events and mishaps
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,

    /// Leave everything running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,

    /// Print the summary as JSON
    #[arg(long)]
    json: bool,

    /// Use this database, in a schema `ses_ledger_demo` of its own that is removed again, instead of a private PostgreSQL
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,

    /// Use this queue, which has to be empty, instead of the embedded one
    #[arg(long, env, value_name = "URL")]
    queue_url: Option<String>,

    /// Use a queue that is not on this machine
    #[arg(long)]
    remote_queue: bool,

    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// Where the demo keeps its tables in a database that is not its own.
const SCHEMA: &str = "ses_ledger_demo";

/// Runs the demo. Whatever it started is gone afterwards, also after Ctrl-C.
///
/// # Errors
/// If something cannot be set up.
pub async fn run(args: DemoArgs, surroundings: Surroundings) -> anyhow::Result<ExitCode> {
    let view = View::new(args.json);
    view.title();
    let Some(opened) = unless_interrupted("demo", open(&args, surroundings, &view)).await? else {
        return Ok(INTERRUPTED.into());
    };
    let (queue, database) = opened?;
    let outcome = unless_interrupted("demo", play(&args, &view, &queue, &database)).await?;
    if database.server.is_none() {
        database.postgres.drop_schema(SCHEMA).await?;
    }
    database.close().await?;
    queue.close().await;
    match outcome {
        Some(exact) => {
            let exact = exact?;
            view.next_steps(&program());
            Ok(if exact { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        None => Ok(INTERRUPTED.into()),
    }
}

async fn open(args: &DemoArgs, surroundings: Surroundings, view: &View) -> anyhow::Result<(Queue, Database)> {
    let queue = open_queue(args).await?;
    view.queue(&queue.url, queue.endpoint.is_some());
    let database = open_database(args, surroundings, view).await?;
    migrations::up(&database.postgres).await?;
    match &database.server {
        Some(server) => view.database("private", &server.origin().to_string()),
        None => {
            let version = database.postgres.server_version().await?;
            view.database(&format!("yours, in the schema {SCHEMA}"), &format!("PostgreSQL {version}"));
        }
    }
    Ok((queue, database))
}

/// Sends the mails, lets the worker take in what SES reports, and looks at what came of it. Says whether it is exact.
async fn play(args: &DemoArgs, view: &View, queue: &Queue, database: &Database) -> anyhow::Result<bool> {
    let postgres = &database.postgres;
    // Two weeks ago, so that complaints, which come days later, have been made by now.
    let start = (OffsetDateTime::now_utc() - Duration::from_secs(14 * 86_400)).replace_nanosecond(0);
    let story = Story::tell(&StorySettings::new(args.seed, args.mails, start.context("cannot round the time")?));
    view.story(args.mails, story.truth.messages);

    let (metrics, shutdown) = (Arc::new(Metrics::default()), Shutdown::default());
    let _stop_at_the_end = (shutdown.stop.clone().drop_guard(), shutdown.give_up.clone().drop_guard());
    let settings = hurried(&args.worker);
    let queues = vec![queue.settings(settings.sqs(&QueueAddress::new(&queue.url)))];
    let site = page(&settings, queues.clone(), database);
    let (probed, address) = run::serve_probes(&settings, &shutdown, &metrics, site::router(site)?).await?;
    let worker = tokio::spawn({
        let (postgres, metrics) = (postgres.clone(), Arc::clone(&metrics));
        let shutdown = shutdown.clone();
        async move { run::work(queues, &postgres, &settings, shutdown, metrics, &probed).await }
    });
    let (started, sent) = (Instant::now(), CancellationToken::new());
    tokio::try_join!(
        async { send(&story, queue, args, postgres).await.inspect(|()| sent.cancel()) },
        view.follow(&metrics, story.truth.messages, &sent),
    )?;
    let took = started.elapsed();
    orphans::sweep_all(&postgres.clone().counting(metrics.orphans_attached.clone()))
        .await
        .map_err(anyhow::Error::from)?;

    let summary = Summary {
        took,
        orphans_left: answers::orphans_left(postgres).await?,
        quarantine: answers::quarantine_by_reason(postgres).await?,
        statuses: answers::mails_by_status(postgres).await?,
        timeline: answers::richest_timeline(postgres).await?,
        differences: audit::compare(postgres, &story.truth).await?,
        drift: metrics.check_identities(),
    };
    view.summary(&summary, &metrics)?;
    if args.keep {
        view.keep(&program(), &database.url, &queue.url, address);
        std::future::pending::<()>().await;
    }
    shutdown.stop.cancel();
    worker.await.context("the worker broke down")???;
    Ok(summary.is_exact())
}

/// As the user can type it: `target/release/ses-ledger` after `cargo run`.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "ses-ledger".to_owned())
}

/// The page, on this machine only.
fn page(settings: &WorkerArgs, queues: Vec<SqsSettings>, database: &Database) -> SiteSettings {
    let schema = database.server.is_none().then(|| SCHEMA.to_owned());
    let database = PostgresSettings { schema, read_only: true, ..PostgresSettings::new(&database.url) };
    SiteSettings { ip: settings.http_address.ip(), database, queues, keys: Keys::default(), mask: false }
}

/// The worker's settings, with short waits: a demo is watched.
fn hurried(args: &WorkerArgs) -> WorkerArgs {
    WorkerArgs {
        receive_wait: args.receive_wait.min(Duration::from_secs(1)),
        sweep_interval: args.sweep_interval.min(Duration::from_millis(500)),
        http_address: ([127, 0, 0, 1], 0).into(),
        ..args.clone()
    }
}

/// How long the sending takes at least, so that there is something to watch. Longer stories take their own time.
const WATCHED: Duration = Duration::from_secs(4);

/// Lets the story happen: the application writes its rows, SES publishes, each in its turn.
async fn send(story: &Story, queue: &Queue, args: &DemoArgs, postgres: &Postgres) -> anyhow::Result<()> {
    let sqs = queue.sqs(args.worker.sqs(&QueueAddress::new(&queue.url))).await?;
    let (mut rows, mut bodies) = (Vec::new(), Vec::new());
    let (started, steps) = (Instant::now(), story.steps());
    let pause = WATCHED / steps.len().max(1) as u32;
    for (number, step) in (0..).zip(steps) {
        sleep((pause * number).saturating_sub(started.elapsed())).await;
        match step {
            Step::WriteLog(row) => {
                sqs.send(&std::mem::take(&mut bodies)).await?;
                rows.push(row);
            }
            Step::Publish(body) => {
                sender::write_logs(postgres, &std::mem::take(&mut rows)).await?;
                bodies.push(body);
            }
        }
    }
    sqs.send(&bodies).await?;
    sender::write_logs(postgres, &rows).await
}

async fn open_queue(args: &DemoArgs) -> anyhow::Result<Queue> {
    let Some(url) = args.queue_url.clone() else { return Queue::embedded("ses-events", &[]).await };
    let here = is_loopback(args.worker.endpoint_url.as_deref().unwrap_or(&url));
    ensure!(
        here || args.remote_queue,
        "the queue {url} is not on this machine: the demo would send made-up mails to it and take whatever is in it; \
         unset QUEUE_URL to use the embedded queue, or add --remote-queue"
    );
    let queue = Queue::given(url);
    let depth = queue.sqs(args.worker.sqs(&QueueAddress::new(&queue.url))).await?.depth().await?;
    ensure!(
        depth == 0,
        "the queue {} holds {depth} messages: the demo would take them away; use an empty queue",
        queue.url
    );
    Ok(queue)
}

/// A private PostgreSQL, or a schema of our own in the user's database.
async fn open_database(args: &DemoArgs, surroundings: Surroundings, view: &View) -> anyhow::Result<Database> {
    const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
    let Some(url) = &args.database_url else {
        return Database::private(surroundings, view.screen.download(), STATEMENT_TIMEOUT).await;
    };
    let database = Database::given(url, Some(SCHEMA), STATEMENT_TIMEOUT)?;
    database.postgres.try_connect().await?;
    database.postgres.renew_schema(SCHEMA).await?;
    Ok(database)
}
