//! The queue and the database of a simulation, and what of them is ours to trouble.

use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Mutex;

use super::{Failure, SimulateArgs, scenario::Scenario, workers::Crew};
use crate::{
    cli::Surroundings,
    commands::{
        screen::Screen,
        target::{Database, Queue},
    },
    local::{
        postgres::LocalPostgres,
        sqs_endpoint::{QueueHandle, SqsEndpoint},
    },
    postgres::{Postgres, migrations, schema},
    sqs::Sqs,
};

/// The queue and the database, and what of them is ours to trouble.
pub(super) struct Stage {
    pub(super) queue_url: String,
    pub(super) embedded: Option<Embedded>,
    /// A client of the queue, whichever it is.
    pub(super) sqs: Sqs,
    pub(super) database_url: String,
    pub(super) postgres: Postgres,
    /// Our own server, to stop and start.
    pub(super) server: Mutex<Option<LocalPostgres>>,
    pub(super) has_server: bool,
}

/// Our own queue.
pub(super) struct Embedded {
    pub(super) endpoint: SqsEndpoint,
    pub(super) queue: QueueHandle,
    pub(super) dead_letters: QueueHandle,
}

const QUEUE: &str = "ses-events";
const DEAD_LETTERS: &str = "ses-events-dead-letters";

/// For our own questions, which look at whole tables.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

impl Stage {
    pub(super) async fn open(
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

    pub(super) async fn close(self) -> anyhow::Result<()> {
        let database = Database { url: self.database_url, postgres: self.postgres, server: self.server.into_inner() };
        database.close().await?;
        if let Some(embedded) = self.embedded {
            embedded.endpoint.stop().await;
        }
        Ok(())
    }

    /// Messages that have been dealt with.
    pub(super) fn done(&self, crew: &Crew) -> u64 {
        match &self.embedded {
            Some(embedded) => {
                let totals = embedded.queue.totals();
                totals.deleted + totals.dead
            }
            None => crew.counts().get("messages_deleted_total"),
        }
    }

    /// Messages that can be received now, as far as we see.
    pub(super) fn backlog(&self) -> usize {
        self.embedded.as_ref().map_or(0, |embedded| embedded.queue.counts().visible)
    }

    /// Messages that somebody holds, if we see that.
    pub(super) fn in_flight(&self) -> Option<usize> {
        self.embedded.as_ref().map(|embedded| embedded.queue.counts().in_flight)
    }

    pub(super) fn redelivered(&self) -> Option<u64> {
        self.embedded.as_ref().map(|embedded| embedded.queue.totals().redelivered)
    }

    /// Messages that are in the queue.
    pub(super) async fn left(&self) -> anyhow::Result<u64> {
        match &self.embedded {
            Some(embedded) => {
                let counts = embedded.queue.counts();
                Ok((counts.visible + counts.in_flight + counts.delayed) as u64)
            }
            None => self.sqs.depth().await.context("cannot ask the queue"),
        }
    }
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

pub(super) async fn connect(url: &str) -> Result<Database, Failure> {
    let database = Database::given(url, None, STATEMENT_TIMEOUT)?;
    database.postgres.try_connect().await.map_err(|e| Failure::Away(e.into()))?;
    Ok(database)
}
