//! The password of the database is a secret that somebody replaces while the worker runs.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, http::HeaderMap, routing::post};
use serde_json::json;
use tokio::{net::TcpListener, process::Command};

use super::{Running, SHORT_TIMES, end_of, ses_ledger};
use crate::{
    database::{self, Database},
    roles,
    worker::Queue,
};

const ARN: &str = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:database-AbCdEf";

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_replaced_costs_no_restart() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let url = roles::login(&database, &["ses_ledger_worker"]).await;
    let service = SecretsManager::start(secret_of(&url, "p")).await;
    // The secret says everything; the URL is not needed.
    let running = Running::watch(service.worker(&queue));
    running.says("receiving from ").await;
    queue.handle.send("of the time before");
    queue.drained().await;
    assert_eq!(service.reads(), 1);

    let user = user_of(&url);
    database.run(&format!("ALTER ROLE {user} PASSWORD 'q'")).await;
    queue.handle.send("still over the old connection");
    queue.drained().await;
    cut(&database, user).await;
    queue.handle.send("refused at first");
    running.says("the database refused the login").await;
    service.replace(secret_of(&url, "q"));
    queue.drained().await;

    let log = running.log();
    running.stop().await;
    assert_eq!(database.number("SELECT count(*) FROM quarantined_messages").await, 3);
    assert!((2..=4).contains(&service.reads()), "the secret was read {} times:\n{log}", service.reads());
    assert!(!log.contains(r#""password""#), "the log holds the secret:\n{log}");
}

#[tokio::test]
async fn a_secret_that_is_not_there_is_final_and_named() {
    let queue = Queue::start().await;
    let service = SecretsManager::start(None).await;
    let ended = end_of(service.worker(&queue)).await;
    assert_eq!(ended.code, Some(69), "{}", ended.err);
    assert!(ended.err.contains("ResourceNotFoundException") && ended.err.contains(ARN), "{}", ended.err);
    assert!(ended.err.contains("DATABASE_SECRET"), "{}", ended.err);
}

#[tokio::test]
async fn missing_credentials_are_final_and_the_ways_to_give_them_are_told() {
    for settings in [
        [("DATABASE_SECRET", ARN), ("DATABASE_URL", "")],
        [("DATABASE_AUTH", "iam"), ("DATABASE_URL", "postgres://me@db.eu-west-1.rds.amazonaws.com/none")],
    ] {
        let mut command = ses_ledger(["migrate", "status"]);
        command.envs(settings).env("HOME", "/nonexistent").env("AWS_EC2_METADATA_DISABLED", "true");
        let ended = end_of(command).await;
        assert_eq!(ended.code, Some(69), "{settings:?}: {}", ended.err);
        for word in ["AWS_ACCESS_KEY_ID", "AWS_PROFILE", "role"] {
            assert!(ended.err.contains(word), "{settings:?}: not a word of {word}: {}", ended.err);
        }
        assert_eq!(ended.err.lines().count(), 1, "{}", ended.err);
    }
}

fn user_of(url: &str) -> &str {
    url.split(['/', ':', '@']).nth(3).expect("the URL names a user")
}

/// As RDS writes it.
fn secret_of(url: &str, password: &str) -> Option<String> {
    let place: Vec<&str> = url.split('@').nth(1).expect("the URL names a user").split([':', '/']).collect();
    let [host, port, name] = place[..] else { panic!("{url}") };
    let port: u16 = port.parse().expect("a port is a number");
    let user = user_of(url);
    Some(json!({ "username": user, "password": password, "host": host, "port": port, "dbname": name }).to_string())
}

async fn cut(database: &Database, user: &str) {
    let cut = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{user}'");
    assert!(database.number(&cut).await > 0);
}

/// The service, with one secret or without.
struct SecretsManager {
    url: String,
    secret: Arc<Mutex<Option<String>>>,
    reads: Arc<AtomicUsize>,
}

impl SecretsManager {
    async fn start(secret: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (secret, reads) = (Arc::new(Mutex::new(secret)), Arc::<AtomicUsize>::default());
        let answer = {
            let (secret, reads) = (Arc::clone(&secret), Arc::clone(&reads));
            async move |headers: HeaderMap, body: String| {
                assert_eq!(headers["x-amz-target"], "secretsmanager.GetSecretValue");
                let signature = headers["authorization"].to_str().expect("it is text");
                assert!(signature.contains("/eu-west-1/secretsmanager/aws4_request"), "{signature}");
                assert!(body.contains(ARN), "{body}");
                reads.fetch_add(1, Ordering::Relaxed);
                match secret.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                    Some(secret) => {
                        (axum::http::StatusCode::OK, json!({ "ARN": ARN, "SecretString": secret }).to_string())
                    }
                    None => (
                        axum::http::StatusCode::BAD_REQUEST,
                        json!({ "__type": "ResourceNotFoundException" }).to_string(),
                    ),
                }
            }
        };
        tokio::spawn(async { axum::serve(listener, Router::new().route("/", post(answer))).await });
        Self { url, secret, reads }
    }

    fn replace(&self, secret: Option<String>) {
        *self.secret.lock().unwrap_or_else(PoisonError::into_inner) = secret;
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    /// A worker that knows nothing but the secret's name.
    fn worker(&self, queue: &Queue) -> Command {
        let mut command = ses_ledger(["run"]);
        command.envs(SHORT_TIMES).env("LOG_FORMAT", "json").env("HTTP_ADDRESS", "127.0.0.1:0");
        command.env("DATABASE_SECRET", ARN).env("QUEUE_URL", &queue.url);
        command.env("AWS_ENDPOINT_URL_SECRETS_MANAGER", &self.url);
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        command
    }
}
