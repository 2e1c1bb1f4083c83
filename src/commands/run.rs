//! `ses-ledger run`: the worker.

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use axum::Router;
use time::OffsetDateTime;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{error, info, warn};

use crate::{
    cli::{EXIT_UNAVAILABLE, RELEASE_BUDGET, RunArgs, WorkerArgs},
    http::{self, Health},
    lambda::Function,
    metrics::{
        Metrics,
        emf::{Emf, EmfSettings},
    },
    pipeline::{self, QueueError, Shutdown, Worker},
    postgres::{Postgres, schema},
    pulse::{Identity, Pulse, Runtime},
    site,
    sqs::{Sqs, SqsSettings},
    upkeep,
};

/// How long to wait before asking again for something that is not there yet at start-up.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A queue that does not let us in, beside others that do, is tried again so often.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Runs until a signal or a fault ends it. On Lambda: until Lambda ends it.
///
/// # Errors
/// If something cannot be set up.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let postgres = Postgres::new(&args.database.settings())?;
    if args.aws_lambda_runtime_api.is_some() {
        let emf = args.worker.emf().map(Emf::new);
        let identity = Identity { runtime: Runtime::Lambda, ..args.worker.identity() };
        Function::new(postgres, args.worker.pipeline(), args.worker.upkeep(), identity, emf, args.shadow)
            .serve()
            .await?;
        return Ok(ExitCode::SUCCESS);
    }
    let shutdown = Shutdown::default();
    leave_on_signals(&shutdown, args.worker.shutdown_grace)?;
    let metrics = Arc::new(Metrics::default());
    let queues: Vec<_> = args.queue_url.iter().map(|queue| args.worker.sqs(queue)).collect();
    let site = args.site.settings(args.worker.http_address, &args.database, queues.clone());
    let is_closed = site.is_closed();
    let (probed, address) = serve_probes(&args.worker, &shutdown, &metrics, site::router(site)?).await?;
    match is_closed {
        true => info!(
            "the page is closed: {address} can be reached by others; to open it set SITE_TOKEN, or SITE_USER and SITE_PASSWORD"
        ),
        false => info!("the page is at http://{address}/"),
    }
    match shutdown.stop.run_until_cancelled(wait_for_database(&postgres)).await {
        Some(Ok(())) => {}
        Some(Err(e)) => {
            error!("{e:#}");
            return Ok(ExitCode::from(EXIT_UNAVAILABLE));
        }
        None => return Ok(ExitCode::SUCCESS),
    }
    let ended = work(queues, &postgres, &args.worker, shutdown, Arc::clone(&metrics), &probed).await?;
    postgres.close().await;
    say_goodbye(&metrics);
    Ok(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            error!("{e}");
            ExitCode::from(EXIT_UNAVAILABLE)
        }
    })
}

/// Lets the probes, and the page beside them, answer from now on: while it waits for database and queues, a worker is
/// alive, but not ready.
///
/// # Errors
/// If the probes' port is not free.
pub async fn serve_probes(
    args: &WorkerArgs,
    shutdown: &Shutdown,
    metrics: &Arc<Metrics>,
    page: Router,
) -> anyhow::Result<(Arc<Workers>, SocketAddr)> {
    let workers = Arc::new(Workers::default());
    let stop = shutdown.give_up.clone();
    let address = http::serve(args.http_address, Arc::clone(&workers), Some(Arc::clone(metrics)), page, stop).await?;
    info!("probes and metrics at http://{address}/livez, /readyz, /metrics");
    Ok((workers, address))
}

/// The worker itself, on a database that is known to be there. The inner error is that of its only queue, or of the last.
///
/// # Errors
/// If a part of it breaks down.
pub async fn work(
    queues: Vec<SqsSettings>,
    postgres: &Postgres,
    args: &WorkerArgs,
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
    probed: &Arc<Workers>,
) -> anyhow::Result<Result<(), QueueError>> {
    let postgres = postgres.clone().counting(metrics.orphans_attached.clone());
    let stop = &shutdown.stop;
    let upkeep = tokio::spawn(upkeep::forever(postgres.clone(), args.upkeep(), Arc::clone(&metrics), stop.clone()));
    let (pulse, done) = (Pulse::new(args.identity(), OffsetDateTime::now_utc()), CancellationToken::new());
    let beating = tokio::spawn(upkeep::beat_until(postgres.clone(), pulse, Arc::clone(&metrics), done.clone()));
    let _watch = AbortOnDropHandle::new(tokio::spawn(watch_identities(Arc::clone(&metrics))));
    let emf = args.emf().map(|settings| tokio::spawn(write_emf(settings, Arc::clone(&metrics), stop.clone())));

    let alone = queues.len() == 1;
    let mut pipelines = JoinSet::new();
    for settings in queues {
        let slot = probed.add();
        let (probed, pipeline) = (Arc::clone(probed), args.pipeline());
        let (postgres, metrics, shutdown) = (postgres.clone(), Arc::clone(&metrics), shutdown.clone());
        pipelines.spawn(async move {
            let start = |queue| {
                Worker::new(queue, postgres.clone(), pipeline.clone(), Arc::clone(&metrics), shutdown.of_one_queue())
            };
            let serve = || serve(&settings, &shutdown.stop, |queue| probed.set(slot, start(queue.counting(&metrics))));
            if alone { serve().await } else { serve_again_and_again(serve, &shutdown.stop, &metrics).await }
        });
    }
    let mut outcome = Ok(());
    while let Some(ended) = pipelines.join_next().await {
        outcome = ended.context("a pipeline broke down")?.and(outcome);
    }
    stop.cancel();
    upkeep.await.context("the upkeep broke down")?;
    done.cancel();
    beating.await.context("the heartbeat broke down")?;
    if let Some(emf) = emf {
        emf.await.context("the writer of metrics broke down")?;
    }
    Ok(outcome)
}

/// Waits until the queue is there, and serves it until the worker is told to stop, or it does not let us in any more.
async fn serve(
    settings: &SqsSettings,
    stop: &CancellationToken,
    start: impl Fn(Sqs) -> Served,
) -> Result<(), QueueError> {
    let queue = Sqs::new(settings).await.map_err(|e| QueueError::Fatal(format!("{e:#}")))?;
    let there = async {
        while let Err(e) = queue.probe().await {
            match e {
                QueueError::Fatal(_) => return Err(e),
                QueueError::Transient(e) => warn!("cannot reach the queue {} yet: {e}", settings.queue_url),
            }
            sleep(ASK_AGAIN).await;
        }
        Ok(())
    };
    match stop.run_until_cancelled(there).await {
        Some(Ok(())) => pipeline::run(start(queue)).await,
        Some(Err(e)) => Err(e),
        None => Ok(()),
    }
}

/// One of several queues: what is wrong with it is no reason to stop the others, and somebody may mend it.
async fn serve_again_and_again<F: Future<Output = Result<(), QueueError>>>(
    serve: impl Fn() -> F,
    stop: &CancellationToken,
    metrics: &Metrics,
) -> Result<(), QueueError> {
    while let Err(e) = serve().await {
        error!("{e}: trying again in {TRY_AGAIN:?}; the other queues go on");
        metrics.queues_failed.inc();
        let stopped = stop.run_until_cancelled(sleep(TRY_AGAIN)).await.is_none();
        metrics.queues_failed.dec();
        if stopped {
            break;
        }
    }
    Ok(())
}

async fn wait_for_database(postgres: &Postgres) -> anyhow::Result<()> {
    loop {
        match postgres.try_connect().await {
            Ok(()) => break,
            Err(e) if e.is_final() => return Err(e.into()),
            Err(e) => warn!("cannot reach the database yet: {e}"),
        }
        sleep(ASK_AGAIN).await;
    }
    schema::ensure_usable(postgres).await
}

/// Writes metrics for CloudWatch until it is told to stop, and what came since then.
async fn write_emf(settings: EmfSettings, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut ticks = interval(settings.interval);
    let emf = Emf::new(settings);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        emf.write(&metrics, true);
    }
    emf.write(&metrics, true);
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

/// All workers of the process, as the probes see them: one place for each queue, empty until the queue is there.
#[derive(Default)]
pub struct Workers(Mutex<Vec<Option<Served>>>);

/// A queue that is there.
type Served = Arc<Worker<Sqs, Postgres>>;

impl Workers {
    /// A place for another queue.
    fn add(&self) -> usize {
        let mut workers = self.all();
        workers.push(None);
        workers.len() - 1
    }

    fn set(&self, place: usize, worker: Served) -> Served {
        self.all()[place] = Some(Arc::clone(&worker));
        worker
    }

    fn all(&self) -> MutexGuard<'_, Vec<Option<Served>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health for Workers {
    fn alive(&self) -> Result<(), String> {
        match self.all().iter().flatten().find(|worker| !worker.is_alive()) {
            None => Ok(()),
            Some(stuck) => Err(format!("the pollers of {} do not move on", pipeline::Queue::name(&stuck.queue))),
        }
    }

    /// Ready if at least one queue is served: of several, one that is not there does not make the others useless.
    fn ready(&self) -> Result<(), String> {
        let mut why = "waiting for the database and the queue".to_owned();
        for worker in self.all().iter().flatten() {
            match worker.is_ready() {
                Ok(()) => return Ok(()),
                Err(e) => e.clone_into(&mut why),
            }
        }
        Err(why)
    }
}
