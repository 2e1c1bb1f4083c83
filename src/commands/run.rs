//! `ses-ledger run`: the worker.

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{interval, sleep},
};
use tracing::{error, info, warn};

use crate::{
    cli::{EXIT_UNAVAILABLE, RELEASE_BUDGET, RunArgs, WorkerArgs},
    http::{self, Health},
    metrics::Metrics,
    orphans,
    pipeline::{self, QueueError, Shutdown, Worker},
    postgres::{
        Postgres,
        schema::{self, Severity},
    },
    sqs::Sqs,
};

/// How long to wait before asking again for something that is not there yet at start-up.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Runs until a signal or a fault ends it.
///
/// # Errors
/// If something cannot be set up.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let shutdown = Shutdown::default();
    leave_on_signals(&shutdown, args.worker.shutdown_grace)?;
    let postgres = Postgres::new(&args.database.settings())?;
    let metrics = Arc::new(Metrics::default());
    let workers = serve_probes(&args.worker, &shutdown, &metrics).await?;
    let prepared = shutdown.stop.run_until_cancelled(prepare(&args, &postgres)).await;
    let queues = match prepared {
        Some(Ok(queues)) => queues,
        Some(Err(e)) => {
            error!("{e:#}");
            return Ok(ExitCode::from(EXIT_UNAVAILABLE));
        }
        None => return Ok(ExitCode::SUCCESS),
    };
    let failed = work(queues, &postgres, &args.worker, shutdown, Arc::clone(&metrics), &workers).await?;
    postgres.close().await;
    say_goodbye(&metrics);
    Ok(if failed { ExitCode::from(EXIT_UNAVAILABLE) } else { ExitCode::SUCCESS })
}

/// Lets the probes answer from now on: while it waits for database and queues, a worker is alive, but not ready.
///
/// # Errors
/// If the probes' port is not free.
pub async fn serve_probes(
    args: &WorkerArgs,
    shutdown: &Shutdown,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Arc<Workers>> {
    let workers = Arc::new(Workers::default());
    let stop = shutdown.give_up.clone();
    let address = http::serve(args.http_address, Arc::clone(&workers), Arc::clone(metrics), stop).await?;
    info!("probes and metrics at http://{address}/livez, /readyz, /metrics");
    Ok(workers)
}

/// The worker itself, on queues and a database that are known to be there. Says whether a queue failed for good.
///
/// # Errors
/// If a part of it breaks down.
pub async fn work(
    queues: Vec<Sqs>,
    postgres: &Postgres,
    args: &WorkerArgs,
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
    probed: &Workers,
) -> anyhow::Result<bool> {
    let postgres = postgres.clone().counting(metrics.orphans_attached.clone());
    let start = |queue| Worker::new(queue, postgres.clone(), args.pipeline(), Arc::clone(&metrics), shutdown.clone());
    let workers: Vec<_> = queues.into_iter().map(start).collect();

    let _ = probed.0.set(workers.clone());
    let stop = &shutdown.stop;
    let sweep = orphans::sweep_forever(postgres.clone(), args.sweep_interval, stop.clone());
    let sweeper = tokio::spawn(sweep);
    let watch = tokio::spawn(watch_identities(Arc::clone(&metrics)));

    let mut pipelines: JoinSet<_> = workers.into_iter().map(pipeline::run).collect();
    let mut failed = false;
    while let Some(ended) = pipelines.join_next().await {
        failed |= ended.context("a pipeline broke down")?.is_err();
    }
    stop.cancel();
    sweeper.await.context("the sweep broke down")?;
    watch.abort();
    Ok(failed)
}

/// Waits until database and queues are there. Ends with an error only for what waiting does not mend.
async fn prepare(args: &RunArgs, postgres: &Postgres) -> anyhow::Result<Vec<Sqs>> {
    check_schema(postgres).await?;
    let mut queues = Vec::new();
    for url in &args.queue_url {
        let queue = Sqs::new(&args.worker.sqs(url)).await?;
        loop {
            match queue.probe().await {
                Ok(()) => break,
                Err(e @ QueueError::Fatal(_)) => return Err(e.into()),
                Err(QueueError::Transient(e)) => warn!("cannot reach the queue {url} yet: {e}"),
            }
            sleep(ASK_AGAIN).await;
        }
        queues.push(queue);
    }
    Ok(queues)
}

async fn check_schema(postgres: &Postgres) -> anyhow::Result<()> {
    loop {
        match postgres.try_connect().await {
            Ok(()) => break,
            Err(e) if e.is_final() => return Err(e.into()),
            Err(e) => warn!("cannot reach the database yet: {e}"),
        }
        sleep(ASK_AGAIN).await;
    }
    let findings = schema::verify(postgres).await?;
    for finding in &findings {
        match finding.severity {
            Severity::Error => error!("{}. To mend it: {}", finding.what, finding.fix),
            Severity::Warning => warn!("{}. To mend it: {}", finding.what, finding.fix),
        }
    }
    let unusable = findings.iter().any(|finding| finding.severity == Severity::Error);
    anyhow::ensure!(
        !unusable,
        "the database's schema is not what this binary needs: see above, or run ses-ledger migrate verify"
    );
    Ok(())
}

/// The first signal: stop receiving, finish what is in hand, give back the rest. The second: leave at once.
fn leave_on_signals(shutdown: &Shutdown, grace: Duration) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let Shutdown { stop, give_up } = shutdown.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 143),
                _ = interrupt.recv() => ("SIGINT", 130),
            }
        };
        let (name, _) = next().await;
        info!("{name}: finishing what is in hand within {grace:?}; a second signal leaves at once");
        stop.cancel();
        let give_up_after = async {
            sleep(grace.saturating_sub(RELEASE_BUDGET)).await;
            warn!("the grace period is nearly over: giving back what is not stored");
            give_up.cancel();
            sleep(RELEASE_BUDGET).await;
        };
        tokio::select! {
            (name, code) = next() => {
                warn!("{name} again: leaving at once; what is in hand comes back after its visibility timeout");
                std::process::exit(code);
            }
            () = give_up_after => {
                error!("the grace period is over: leaving; what is in hand comes back after its visibility timeout");
                std::process::exit(1);
            }
        }
    });
    Ok(())
}

/// Both identities hold at every moment. If one does not, the worker has a fault, and somebody should know.
async fn watch_identities(metrics: Arc<Metrics>) {
    let mut ticks = interval(Duration::from_secs(5));
    let mut known = metrics.check_identities();
    loop {
        ticks.tick().await;
        let drift = metrics.check_identities();
        if drift != known {
            error!(
                messages = drift.messages,
                events = drift.events,
                "the counts of messages or events do not add up: please report this as a fault of ses-ledger"
            );
            known = drift;
        }
    }
}

fn say_goodbye(metrics: &Metrics) {
    let drift = metrics.check_identities();
    info!(
        received = metrics.messages_received.get(),
        stored = metrics.messages_stored.get(),
        ignored = metrics.messages_ignored.get(),
        rejected = metrics.messages_rejected.get(),
        released = metrics.messages_released.get(),
        deleted = metrics.messages_deleted.get(),
        inserted = metrics.events_inserted.get(),
        duplicate = metrics.events_duplicate.get(),
        orphaned = metrics.events_orphaned.get(),
        quarantined = metrics.events_quarantined.get(),
        drift = drift.messages.abs() + drift.events.abs(),
        "stopped"
    );
}

/// All workers of the process, as the probes see them; none before database and queues are there.
#[derive(Default)]
pub struct Workers(OnceLock<Vec<Arc<Worker<Sqs, Postgres>>>>);

impl Health for Workers {
    fn alive(&self) -> Result<(), String> {
        match self.0.get().into_iter().flatten().find(|worker| !worker.is_alive()) {
            None => Ok(()),
            Some(stuck) => Err(format!("the pollers of {} do not move on", pipeline::Queue::name(&stuck.queue))),
        }
    }

    fn ready(&self) -> Result<(), String> {
        let Some(workers) = self.0.get() else { return Err("waiting for the database and the queue".to_owned()) };
        match workers.iter().find_map(|worker| worker.is_ready().err()) {
            None => Ok(()),
            Some(why) => Err(why.to_owned()),
        }
    }
}
