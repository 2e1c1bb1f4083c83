//! What is not there, or does not let us in, when the worker starts: it waits where waiting helps, and says what to mend
//! where it does not.

use ses_ledger::local::sqs_endpoint::{Action, Fault, SqsError};
use tokio::net::TcpListener;

use super::{Running, end_of, ses_ledger};
use crate::{database, worker::Queue};

/// Starts the worker: it has to give up with 69, and its last word has to hold all of this.
async fn check(database_url: &str, queue_url: &str, words: &[&str]) {
    let (code, log) = Running::spawn(database_url, queue_url, &[]).ended().await;
    assert_eq!(code, Some(69), "{log}");
    let last = log.lines().last().expect("it says why");
    assert!(last.contains(r#""level":"ERROR""#), "{last}");
    for word in words {
        assert!(log.contains(word), "not a word of {word:?}:\n{log}");
    }
    let password = database_url.split([':', '@']).nth(2).expect("the URL holds a password");
    assert!(!log.contains(password), "the log holds the password:\n{log}");
}

#[tokio::test]
async fn a_wrong_password_is_final() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let password = database.url.split([':', '@']).nth(2).expect("the URL holds a password");
    let wrong = database.url.replace(password, "not-the-password");
    check(&wrong, &queue.url, &["DATABASE_URL", "password authentication failed"]).await;
}

#[tokio::test]
async fn an_unknown_database_is_final() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    check(&format!("{}_not_there", database.url), &queue.url, &["DATABASE_URL", "_not_there", "does not exist"]).await;
}

#[tokio::test]
async fn a_database_without_the_schema_is_final_and_the_way_to_make_it_is_told() {
    let (database, queue) = (database::empty().await, Queue::start().await);
    check(&database.url, &queue.url, &["ses-ledger migrate up", "ses-ledger migrate verify"]).await;
}

#[tokio::test]
async fn a_login_without_the_workers_rights_is_final_and_the_grant_is_told() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    database.run("DO $$ BEGIN CREATE ROLE stranger LOGIN PASSWORD 'strange'; EXCEPTION WHEN duplicate_object THEN NULL; END $$").await;
    let (_, place) = database.url.split_once('@').expect("the URL names a host");
    check(&format!("postgres://stranger:strange@{place}"), &queue.url, &["GRANT ses_ledger_worker TO"]).await;
}

#[tokio::test]
async fn the_workers_own_role_is_enough() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    database.run("DO $$ BEGIN CREATE ROLE worker_login LOGIN PASSWORD 'works' IN ROLE ses_ledger_worker; EXCEPTION WHEN duplicate_object THEN NULL; END $$").await;
    let (_, place) = database.url.split_once('@').expect("the URL names a host");
    let running = Running::start(&format!("postgres://worker_login:works@{place}"), &queue.url, &[]).await;
    queue.handle.send("neither JSON nor anything else");
    queue.drained().await;
    running.stop().await;
    assert_eq!(database.number("SELECT count(*) FROM quarantined_messages").await, 1);
}

#[tokio::test]
async fn a_missing_queue_is_final() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let wrong = queue.url.replace("ses-events", "sea-events");
    check(&database.url, &wrong, &[":sea-events does not exist", "QUEUE_URL"]).await;
}

#[tokio::test]
async fn a_missing_right_to_delete_shows_at_the_start_and_not_after_the_first_thousand_messages() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    queue.endpoint.faults(|faults| _ = faults.always(Action::DeleteMessage, Fault::Reject(SqsError::access_denied())));
    queue.handle.send("not to be received");
    check(&database.url, &queue.url, &["sqs:DeleteMessage", "ses-events"]).await;
    assert_eq!(queue.handle.totals().received, 0);
}

#[tokio::test]
async fn a_right_to_receive_that_is_taken_away_ends_the_worker() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let running = Running::start(&database.url, &queue.url, &[]).await;
    queue.endpoint.faults(|faults| _ = faults.always(Action::ReceiveMessage, Fault::Reject(SqsError::access_denied())));
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains("sqs:ReceiveMessage"), "{log}");
}

#[tokio::test]
async fn a_queue_that_does_not_answer_yet_is_waited_for() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let unavailable = || Fault::Reject(SqsError::unavailable());
    // The SDK itself asks three times.
    queue
        .endpoint
        .faults(|faults| _ = faults.script(Action::DeleteMessage, std::iter::repeat_with(unavailable).take(3)));
    let running = Running::start(&database.url, &queue.url, &[]).await;
    assert!(running.log().contains("cannot reach the queue"), "{}", running.log());
    running.stop().await;
}

/// Asks nobody: there is nothing that it could sign a request with.
#[tokio::test]
async fn missing_credentials_are_final_and_the_ways_to_give_them_are_told() {
    let database = database::fresh().await;
    let mut command = ses_ledger(["run", "--http-address=127.0.0.1:0"]);
    command.env("DATABASE_URL", &database.url).env("HOME", "/nonexistent").env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com/000000000000/ses-events");
    let ended = end_of(command).await;
    assert_eq!(ended.code, Some(69), "{}", ended.err);
    for word in ["ses-events", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "role"] {
        assert!(ended.err.contains(word), "not a word of {word}: {}", ended.err);
    }
}

#[tokio::test]
async fn a_taken_port_is_told_with_the_setting_that_chooses_it() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    let (code, log) = Running::spawn(&database.url, &queue.url, &["--http-address", &address]).ended().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(&address) && log.contains("HTTP_ADDRESS"), "{log}");
}
