//! The queue and the database that the demo and the simulator play with: our own for the time being, or the user's.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal;

use crate::{
    cli::Surroundings,
    local::{
        binaries::Progress,
        postgres::{LocalPostgres, LocalPostgresSettings},
        sqs_endpoint::{SqsEndpoint, SqsEndpointSettings},
    },
    postgres::{Postgres, PostgresSettings},
    sqs::{Sqs, SqsSettings},
};

/// The embedded queue, or the user's.
pub(super) struct Queue {
    pub(super) url: String,
    pub(super) endpoint: Option<SqsEndpoint>,
}

impl Queue {
    /// A queue of our own, with these attributes.
    pub(super) async fn embedded(name: &str, attributes: &[(&str, &str)]) -> anyhow::Result<Self> {
        let endpoint = SqsEndpoint::start(SqsEndpointSettings::default()).await?;
        let url = endpoint.create_queue(name, attributes)?;
        Ok(Self { url, endpoint: Some(endpoint) })
    }

    pub(super) fn given(url: String) -> Self {
        Self { url, endpoint: None }
    }

    /// A client of this queue, whichever queue the settings name.
    pub(super) async fn sqs(&self, settings: SqsSettings) -> anyhow::Result<Sqs> {
        Sqs::new(&self.settings(settings)).await
    }

    /// How to reach this queue, whichever queue the settings name.
    pub(super) fn settings(&self, settings: SqsSettings) -> SqsSettings {
        let own = self.endpoint.is_some();
        let endpoint_url = settings.endpoint_url.filter(|_| !own); // it is its own
        SqsSettings { queue_url: self.url.clone(), endpoint_url, ..settings }
    }

    pub(super) async fn close(self) {
        if let Some(endpoint) = self.endpoint {
            endpoint.stop().await;
        }
    }
}

/// A private PostgreSQL, or the user's.
pub(super) struct Database {
    pub(super) url: String,
    pub(super) postgres: Postgres,
    pub(super) server: Option<LocalPostgres>,
}

impl Database {
    /// A server of our own, empty; `statement_timeout` is for our own questions.
    pub(super) async fn private(
        surroundings: Surroundings,
        progress: Progress,
        statement_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let Surroundings { path, temp_dir, cache_dir } = surroundings;
        let local =
            LocalPostgresSettings { progress: Some(progress), ..LocalPostgresSettings::new(path, temp_dir, cache_dir) };
        let server = LocalPostgres::start(local).await?;
        let database = Self::given(&server.url(), None, statement_timeout)?;
        Ok(Self { server: Some(server), ..database })
    }

    /// The user's, with the tables in the schema or where the login's search path leads. Connects nothing yet.
    pub(super) fn given(url: &str, schema: Option<&str>, statement_timeout: Duration) -> anyhow::Result<Self> {
        let schema = schema.map(str::to_owned);
        let settings = PostgresSettings { connections: 6, statement_timeout, schema, ..PostgresSettings::new(url) };
        Ok(Self { url: url.to_owned(), postgres: Postgres::new(&settings)?, server: None })
    }

    /// Takes leave of it; a server of our own is removed.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        self.postgres.close().await;
        match self.server {
            Some(server) => server.close().await,
            None => Ok(()),
        }
    }
}

/// The exit code after Ctrl-C, as shells have it.
pub(super) const INTERRUPTED: u8 = 130;

/// Does the work, or as much of it as there is before Ctrl-C.
pub(super) async fn unless_interrupted<T>(command: &str, work: impl Future<Output = T>) -> anyhow::Result<Option<T>> {
    tokio::select! {
        outcome = work => Ok(Some(outcome)),
        heard = signal::ctrl_c() => {
            heard.context("cannot listen for Ctrl-C")?;
            eprintln!("\nCtrl-C: removing everything that the {command} started.");
            Ok(None)
        }
    }
}
