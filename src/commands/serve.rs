//! `ses-ledger serve`: the page, without a worker.

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::interval,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use crate::{
    cli::{DatabaseArgs, EXIT_UNAVAILABLE, QueueArgs, SiteArgs},
    http::{self, Health},
    postgres::Postgres,
    site,
};

/// How often to look whether the database is there.
const LOOK: Duration = Duration::from_secs(5);

/// Arguments of `serve`.
#[derive(Args, Clone)]
pub struct ServeArgs {
    #[command(flatten)]
    database: DatabaseArgs,

    #[command(flatten)]
    queue: QueueArgs,

    /// Where to serve the page, /livez and /readyz; port 0 takes a free one
    #[arg(long, env, default_value = "127.0.0.1:9464", value_name = "ADDRESS", help_heading = "Page")]
    http_address: SocketAddr,

    #[command(flatten)]
    site: SiteArgs,
}

impl ServeArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()?;
        self.site.check()?;
        if self.site.settings(self.http_address, &self.database, Vec::new()).is_closed() {
            return Err(format!(
                "HTTP_ADDRESS ({}) can be reached by others: the page needs SITE_TOKEN, or SITE_USER and SITE_PASSWORD; or let \
                 HTTP_ADDRESS be on 127.0.0.1",
                self.http_address
            ));
        }
        Ok(())
    }
}

/// Serves until a signal ends it.
///
/// # Errors
/// If the port is not free.
pub async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let settings = args.site.settings(args.http_address, &args.database, args.queue.sqs());
    let postgres = Postgres::new(&settings.database)?;
    match postgres.try_connect().await {
        Ok(()) => {}
        Err(e) if e.is_final() => {
            eprintln!("error: {e}");
            return Ok(ExitCode::from(EXIT_UNAVAILABLE));
        }
        Err(e) => warn!("cannot reach the database yet: {e}"),
    }
    let (seen, stop) = (Arc::new(Seen::default()), CancellationToken::new());
    let _look = AbortOnDropHandle::new(tokio::spawn(look(postgres, Arc::clone(&seen))));
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let address = http::serve(args.http_address, seen, None, site::router(settings)?, stop.clone()).await?;
    info!("the page is at http://{address}/; probes at /livez, /readyz");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    Ok(ExitCode::SUCCESS)
}

/// Whether the database was there when somebody last looked. `None`: nobody has looked.
#[derive(Default)]
struct Seen(Mutex<Option<bool>>);

async fn look(postgres: Postgres, seen: Arc<Seen>) {
    let mut ticks = interval(LOOK);
    loop {
        ticks.tick().await;
        let is_there = postgres.try_connect().await.is_ok();
        *seen.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(is_there);
    }
}

impl Health for Seen {
    fn alive(&self) -> Result<(), String> {
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(true) => Ok(()),
            Some(false) => Err("the database is not there".to_owned()),
            None => Err("waiting for the database".to_owned()),
        }
    }
}
