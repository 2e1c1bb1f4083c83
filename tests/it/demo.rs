//! The demo, as a newcomer runs it.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use ses_ledger::local::sqs_endpoint::{SqsEndpoint, SqsEndpointSettings};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::database;

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ses-ledger"));
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools");
    command
        .arg("demo")
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("XDG_CACHE_HOME", cache)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn summary_of(mut command: Command) -> Value {
    let output =
        timeout(Duration::from_secs(120), command.output()).await.expect("a demo ends").expect("the binary starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    serde_json::from_str(stdout.trim()).unwrap_or_else(|e| panic!("{e}: {stdout}"))
}

fn assert_adds_up(summary: &Value) {
    assert_eq!(summary["exact"], true, "{summary}");
    let sum =
        |of: &str, parts: &[&str]| parts.iter().map(|part| summary[of][part].as_u64().expect("a number")).sum::<u64>();
    assert!(sum("messages", &["received"]) > 100, "{summary}");
    assert_eq!(
        sum("messages", &["received"]),
        sum("messages", &["stored", "ignored", "rejected", "released", "in_hand"])
    );
    assert_eq!(sum("events", &["decoded"]), sum("events", &["inserted", "duplicate", "orphaned", "quarantined"]));
    assert!(sum("events", &["duplicate"]) > 0 && sum("orphans", &["attached"]) > 0, "it is an untidy story: {summary}");
}

#[tokio::test]
async fn the_demo_ends_with_an_exact_history() {
    assert_adds_up(&summary_of(demo(&["--mails", "60", "--seed", "5", "--json"])).await);
}

#[tokio::test]
async fn the_demo_uses_a_database_and_a_queue_that_are_there_and_leaves_them_as_they_were() {
    let database = database::fresh().await;
    let endpoint = SqsEndpoint::start(SqsEndpointSettings::default()).await.expect("a port is free");
    let queue_url = endpoint.create_queue("mine", &[]).expect("the name is good");
    let mut command = demo(&["--mails", "60", "--seed", "5", "--json"]);
    command.env("DATABASE_URL", &database.url).env("QUEUE_URL", &queue_url);
    assert_adds_up(&summary_of(command).await);
    assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 0, "the user's own tables are not touched");
    assert_eq!(database.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'ses_ledger_demo'").await, 0);
    let queue = endpoint.queue("mine").expect("it is still there");
    assert_eq!(queue.bodies().len(), 0);

    queue.send("somebody's real message");
    let mut command = demo(&["--mails", "60"]);
    command.env("DATABASE_URL", &database.url).env("QUEUE_URL", &queue_url);
    let refused = command.output().await.expect("the binary starts");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("use an empty queue"));
    assert_eq!(queue.bodies().len(), 1, "it is not taken away");
}

#[tokio::test]
async fn a_queue_that_is_not_on_this_machine_is_not_touched() {
    let output = demo(&["--queue-url", "https://sqs.eu-west-1.amazonaws.com/123456789012/real"])
        .output()
        .await
        .expect("the binary starts");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--remote-queue"));
}

#[tokio::test]
async fn what_is_kept_can_be_used_until_ctrl_c_and_then_is_gone() {
    let mut kept = demo(&["--mails", "20", "--keep"]).spawn().expect("the binary starts");
    let (page, database_url, queue_url) =
        timeout(Duration::from_secs(120), urls(&mut kept)).await.expect("it tells its URLs");
    let address = page.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let page = ses_ledger::http::ask(&address, "/").await.expect("the page is served").body;
    let mails: i64 = {
        let pool = sqlx::PgPool::connect(&database_url).await.expect("the database is up");
        sqlx::query_scalar("SELECT count(*) FROM email_logs").fetch_one(&pool).await.expect("the schema is there")
    };
    assert!(mails > 10);
    assert!(page.contains("The books") && page.contains("holds"), "{page}");
    assert!(queue_url.starts_with("http://127.0.0.1:"));

    let pid = kept.id().expect("it runs");
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {pid}")]).status().await.expect("there is a shell");
    assert!(sent.success());
    let status = timeout(Duration::from_secs(60), kept.wait()).await.expect("it ends").expect("it was ours");
    assert_eq!(status.code(), Some(130));
    assert!(sqlx::PgPool::connect(&database_url).await.is_err(), "the database is gone");
}

async fn urls(kept: &mut Child) -> (String, String, String) {
    let mut lines = BufReader::new(kept.stdout.take().expect("it is piped")).lines();
    let (mut page, mut database, mut queue) = (None, None, None);
    while let Some(line) = lines.next_line().await.expect("it is text") {
        let value = |name| line.trim().strip_prefix(name).map(|url: &str| url.trim_matches('\'').to_owned());
        page = page
            .or((line.trim().starts_with("http://127.0.0.1:") && line.ends_with('/')).then(|| line.trim().to_owned()));
        database = database.or(value("export DATABASE_URL="));
        queue = queue.or(value("export QUEUE_URL="));
        if let (Some(page), Some(database), Some(queue)) = (&page, &database, &queue) {
            return (page.clone(), database.clone(), queue.clone());
        }
    }
    panic!("the demo ended without its URLs");
}
