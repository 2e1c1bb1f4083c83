//! Who empties the queue: the real worker, or one of two others to compare it with. Each in processes of its own.

use std::{
    env,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_sqs::{
    Client,
    config::{Credentials, StalledStreamProtectionConfig},
    types::{DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName},
};
use ses_ledger::{
    event::Event,
    pipeline::decode::{DecodeSettings, Outcome, decode},
};
use sqlx::{PgPool, postgres::PgPoolOptions};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use uuid::Uuid;

/// The hidden arguments that make this program one of the two others.
pub(crate) const BARE: &str = "be-the-bare-loop";
pub(crate) const NAIVE: &str = "be-the-naive-worker";

/// Who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The real one: so many processes, and settings beyond those that every run has.
    Worker { processes: usize, settings: Vec<String> },
    /// Receives and deletes with the SDK, and does nothing else.
    Bare,
    /// The usual practice: one message at a time, look up, insert, delete.
    Naive,
}

/// Its processes.
pub(crate) struct Clients(Vec<Child>);

/// The pollers of both others: as many as the worker has.
const POLLERS: usize = 8;

impl Kind {
    pub(crate) fn start(&self, database_url: &str, queue_url: &str) -> anyhow::Result<Clients> {
        let mut clients = Clients(Vec::new());
        let processes = if let Self::Worker { processes, .. } = self { *processes } else { 1 };
        for _ in 0..processes {
            let mut command = match self {
                Self::Worker { settings, .. } => {
                    let mut command = Command::new(env!("CARGO_BIN_EXE_ses-ledger"));
                    command.args(["run", "--http-address", "127.0.0.1:0"]).args(settings).env_clear();
                    command
                }
                Self::Bare | Self::Naive => {
                    let mut command = Command::new(env::current_exe()?);
                    command.arg(if *self == Self::Bare { BARE } else { NAIVE });
                    command
                }
            };
            command.env("DATABASE_URL", database_url).env("QUEUE_URL", queue_url).env("LOG", "warn");
            clients.0.push(command.stdin(Stdio::null()).spawn().context("cannot start who empties the queue")?);
        }
        Ok(clients)
    }
}

/// Starts the worker as a Lambda function.
pub(crate) fn start_function(
    database_url: &str,
    environment: &[(&str, String)],
    settings: &[String],
) -> anyhow::Result<Clients> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ses-ledger"));
    command.arg("run").args(settings).env_clear().env("DATABASE_URL", database_url).env("LOG", "warn");
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    Ok(Clients(vec![command.stdin(Stdio::null()).spawn().context("cannot start the function")?]))
}

/// Starts `retention run`: exports the events of mails that are older than so many seconds to this folder, and drops them.
pub(crate) fn start_retention(database_url: &str, older_than: i64, export: &Path) -> anyhow::Result<Clients> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ses-ledger"));
    command
        .args(["retention", "run", "--json", "--retention-events", &format!("{older_than}s"), "--export"])
        .arg(export);
    command.env_clear().env("DATABASE_URL", database_url).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Clients(vec![command.stderr(Stdio::null()).spawn().context("cannot start the retention")?]))
}

impl Clients {
    /// Waits until all have ended by themselves.
    ///
    /// # Errors
    /// If one of them ends with an error.
    pub(crate) async fn ended(mut self) -> anyhow::Result<()> {
        for mut client in self.0.drain(..) {
            let status = tokio::task::spawn_blocking(move || client.wait()).await??;
            ensure!(status.success(), "what was started beside the worker did not end well");
        }
        Ok(())
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Child::id).collect()
    }

    /// # Errors
    /// If one of them has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for client in &mut self.0 {
            ensure!(client.try_wait()?.is_none(), "who empties the queue has ended early");
        }
        Ok(())
    }

    /// Has them leave, and waits for it.
    ///
    /// # Errors
    /// If one of them leaves with an error.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        for client in &self.0 {
            let asked = Command::new("sh").args(["-c", &format!("kill -TERM {}", client.id())]).status()?;
            ensure!(asked.success(), "cannot stop who empties the queue");
        }
        for mut client in self.0.drain(..) {
            ensure!(client.wait()?.success(), "who empties the queue did not end well");
        }
        Ok(())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for client in &mut self.0 {
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

/// Receives and deletes until it is killed.
pub(crate) async fn be_bare() -> anyhow::Result<()> {
    let (client, url) = sdk().await?;
    in_pollers(|_| {
        let (client, url) = (client.clone(), Arc::clone(&url));
        async move {
            loop {
                let messages = receive(&client, &url).await?;
                if !messages.is_empty() {
                    let entries = messages.into_iter().enumerate().map(|(n, message)| {
                        let handle = message.receipt_handle.unwrap_or_default();
                        DeleteMessageBatchRequestEntry::builder().id(n.to_string()).receipt_handle(handle).build()
                    });
                    let entries = entries.collect::<Result<Vec<_>, _>>()?;
                    Box::pin(client.delete_message_batch().queue_url(&*url).set_entries(Some(entries)).send()).await?;
                }
            }
        }
    })
    .await
}

/// Takes one message after the other until it is killed.
pub(crate) async fn be_naive() -> anyhow::Result<()> {
    let (client, url) = sdk().await?;
    let pool = PgPoolOptions::new().max_connections(POLLERS as u32).connect(&env::var("DATABASE_URL")?).await?;
    in_pollers(|_| {
        let (client, url, pool) = (client.clone(), Arc::clone(&url), pool.clone());
        async move {
            loop {
                for message in receive(&client, &url).await? {
                    let leaves = decode(
                        message.body().unwrap_or_default().as_bytes(),
                        OffsetDateTime::now_utc(),
                        &DecodeSettings::default(),
                    );
                    for leaf in leaves {
                        if let Outcome::Event(event) = leaf.outcome {
                            for event in event.into_events() {
                                insert(&pool, &event, message.message_id().unwrap_or_default()).await?;
                            }
                        }
                    }
                    let handle = message.receipt_handle.unwrap_or_default();
                    Box::pin(client.delete_message().queue_url(&*url).receipt_handle(handle).send()).await?;
                }
            }
        }
    })
    .await
}

async fn insert(pool: &PgPool, event: &Event, sqs_message_id: &str) -> anyhow::Result<()> {
    let log: Option<Uuid> = sqlx::query_scalar("SELECT uuid FROM email_logs WHERE aws_message_id = $1")
        .bind(event.message_id.as_str())
        .fetch_optional(pool)
        .await?;
    let detail = &event.detail;
    sqlx::query(
        "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, bounce_type, smtp_status,
           diagnostic, link, link_digest, ip, user_agent, payload, queue, sqs_message_id, received_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, md5(coalesce($9, ''))::uuid, $10, $11, $12::jsonb, 'bench', $13, now())
         ON CONFLICT DO NOTHING",
    )
    .bind(Uuid::now_v7())
    .bind(log)
    .bind(event.kind.as_str())
    .bind(event.occurred_at)
    .bind(event.recipient.as_str())
    .bind(&detail.bounce_type)
    .bind(&detail.smtp_status)
    .bind(&detail.diagnostic)
    .bind(&detail.link)
    .bind(&detail.ip)
    .bind(&detail.user_agent)
    .bind(&event.payload)
    .bind(sqs_message_id)
    .execute(pool)
    .await?;
    Ok(())
}

async fn receive(client: &Client, url: &str) -> anyhow::Result<Vec<Message>> {
    let request = client
        .receive_message()
        .queue_url(url)
        .max_number_of_messages(10)
        .wait_time_seconds(1)
        .visibility_timeout(120)
        .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
    Ok(Box::pin(request.send()).await?.messages.unwrap_or_default())
}

/// A client with the settings of the worker's own.
async fn sdk() -> anyhow::Result<(Client, Arc<str>)> {
    let url: Arc<str> = env::var("QUEUE_URL")?.into();
    let endpoint = url.rsplitn(3, '/').last().context("the queue's URL has no host")?;
    let shared = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "loopback"))
        .endpoint_url(endpoint)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_secs(3))
                .operation_attempt_timeout(Duration::from_secs(6))
                .operation_timeout(Duration::from_secs(12))
                .build(),
        )
        .load()
        .await;
    Ok((Client::new(&shared), url))
}

/// Runs as many of them as there are pollers, until one fails.
async fn in_pollers<F>(poll: impl Fn(usize) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut pollers: JoinSet<_> = (0..POLLERS).map(poll).collect();
    pollers.join_next().await.context("there are no pollers")?.context("a poller broke down")?
}
