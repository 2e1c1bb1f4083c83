//! Several queues in one process: each with credentials of its own, and none in the way of another.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use ses_ledger::local::sqs_endpoint::{Action, Fault, SqsError};
use tokio::net::TcpListener;

use super::{PATIENCE, Running, ses_ledger, until};
use crate::{database, worker::Queue};

fn send_event(message_id: &str) -> String {
    format!(
        r#"{{"eventType":"Send","send":{{}},"mail":{{"timestamp":"2026-10-05T08:00:00.000Z","messageId":"{message_id}"}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_does_not_let_us_in_does_not_trouble_the_others() {
    let (database, good, bad) = (database::fresh().await, Queue::start().await, Queue::start().await);
    bad.endpoint.faults(|faults| _ = faults.always(Action::ReceiveMessage, Fault::Reject(SqsError::access_denied())));
    let missing = good.url.replace("ses-events", "sea-events");
    let urls = [missing, bad.url.clone(), good.url.clone()].join(",");
    let running = Running::start(&database.url, &urls, &[]).await;
    running.says("the other queues go on").await;
    for n in 0..50 {
        good.handle.send(&send_event(&format!("mail-{n}")));
    }
    good.drained().await;
    running.answers("/readyz", 200, "ok\n").await;
    let page = running.get("/metrics").await.body;
    assert!(page.contains("\nses_ledger_queues_failed 2\n"), "{page}");
    let farewell = running.stop().await;
    assert_eq!(farewell.count("orphaned"), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_hangs_does_not_slow_the_others() {
    let (database, good, slow) = (database::fresh().await, Queue::start().await, Queue::start().await);
    slow.endpoint.faults(|faults| _ = faults.always(Action::ReceiveMessage, Fault::Hang));
    let urls = [slow.url.clone(), good.url.clone()].join(",");
    let running = Running::start(&database.url, &urls, &[]).await;
    for n in 0..500 {
        good.handle.send(&send_event(&format!("mail-{n}")));
    }
    // Well within the time in which the other queue's first receive is given up.
    tokio::time::timeout(Duration::from_secs(5), good.drained()).await.expect("nobody waits for the other queue");
    running.stop().await;
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_knows_the_queue_that_it_came_from() {
    let (database, one) = (database::fresh().await, Queue::start().await);
    let other = one.endpoint.create_queue("other-events", &[]).expect("the name is good");
    let running = Running::start(&database.url, &[one.url.as_str(), &other].join(","), &[]).await;
    one.handle.send(&send_event("mail-1"));
    one.endpoint.queue("other-events").expect("it was just made").send(&send_event("mail-2"));
    until("both are stored", async || database.number("SELECT count(*) FROM orphaned_events").await == 2).await;
    running.stop().await;
    assert_eq!(
        database.texts("SELECT aws_message_id || ' ' || queue FROM orphaned_events ORDER BY 1").await,
        [
            "mail-1 arn:aws:sqs:us-east-1:000000000000:ses-events",
            "mail-2 arn:aws:sqs:us-east-1:000000000000:other-events"
        ]
    );
}

/// Answers as STS for AssumeRole, passes all else on to the queue, and notes with which access key it was signed.
struct Account {
    queue: String,
    assumed: Mutex<Vec<String>>,
    keys: Mutex<Vec<String>>,
}

async fn answer(State(account): State<Arc<Account>>, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let request = String::from_utf8_lossy(&body).into_owned();
    if request.contains("Action=AssumeRole") {
        account.assumed.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        return ([(header::CONTENT_TYPE, "text/xml")], ASSUMED).into_response();
    }
    let key = text("authorization").split("Credential=").nth(1).and_then(|c| c.split('/').next()).map(str::to_owned);
    account.keys.lock().unwrap_or_else(PoisonError::into_inner).extend(key);
    let (url, content_type, target) = (account.queue.clone(), text("content-type"), text("x-amz-target"));
    let passed_on = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = agent.post(&url).header("content-type", content_type).header("x-amz-target", target);
        let mut answer = request.send(&body[..]).expect("the queue is there");
        (answer.status().as_u16(), answer.body_mut().read_to_vec().expect("it answers"))
    });
    let (status, body) = passed_on.await.expect("it does not panic");
    (StatusCode::from_u16(status).expect("a status"), body).into_response()
}

const ASSUMED: &str = r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
  <AssumedRoleUser><Arn>arn:aws:sts::222222222222:assumed-role/reader/ses-ledger</Arn><AssumedRoleId>AROA:ses-ledger</AssumedRoleId></AssumedRoleUser>
  <Credentials><AccessKeyId>ASIAOFTHEROLE</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>
  <SessionToken>token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleResult></AssumeRoleResponse>"#;

async fn account(queue: &Queue) -> (Arc<Account>, String) {
    let (scheme_and_host, path) =
        queue.url.split_at(queue.url.find("/000000000000/").expect("the URL names an account"));
    let account =
        Arc::new(Account { queue: scheme_and_host.to_owned(), assumed: Mutex::default(), keys: Mutex::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}{path}", listener.local_addr().expect("it is bound"));
    let routes = Router::new().fallback(answer).with_state(Arc::clone(&account));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (account, url)
}

fn keys(account: &Account) -> Vec<String> {
    let mut keys = account.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
    keys.sort();
    keys.dedup();
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_another_account_is_read_with_the_role_that_it_names() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let (account, url) = account(&queue).await;
    let role = "arn:aws:iam::222222222222:role/reader";
    let running = Running::start(&database.url, &format!("{url}#role={role}&external_id=ours"), &[]).await;
    queue.handle.send(&send_event("mail-1"));
    queue.drained().await;
    running.stop().await;
    assert_eq!(keys(&account), ["ASIAOFTHEROLE"]);
    let assumed = account.assumed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // Once for the SDK, once for the requests that go past it.
    assert!((1..=3).contains(&assumed.len()), "{} times", assumed.len());
    assert!(assumed[0].contains("role%2Freader") && assumed[0].contains("ExternalId=ours"), "{}", assumed[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_read_with_the_profile_that_it_names() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let (account, url) = account(&queue).await;
    let file = std::env::temp_dir().join(format!("ses-ledger-profile-{}", std::process::id()));
    let profile = "[mail]\naws_access_key_id = AKIAOFTHEPROFILE\naws_secret_access_key = secret\n";
    std::fs::write(&file, profile).expect("temporary files can be written");
    let mut command = ses_ledger(["run"]);
    command.envs(super::SHORT_TIMES).env("LOG_FORMAT", "json").env("HTTP_ADDRESS", "127.0.0.1:0");
    command.env("DATABASE_URL", &database.url).env("QUEUE_URL", format!("{url}#profile=mail"));
    command.env("AWS_SHARED_CREDENTIALS_FILE", &file);
    let running = Running::watch(command);
    running.says("receiving from ").await;
    queue.handle.send(&send_event("mail-1"));
    tokio::time::timeout(PATIENCE, queue.drained()).await.expect("it is read");
    running.stop().await;
    std::fs::remove_file(&file).expect("it was just written");
    assert_eq!(keys(&account), ["AKIAOFTHEPROFILE"]);
}
