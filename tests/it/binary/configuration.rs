//! Bad usage ends with 64 before anything is touched, and the message says what to change.

use super::{end_of, ses_ledger};

const NOWHERE: [&str; 2] =
    ["--database-url=postgres://nobody:secret@127.0.0.1:1/none", "--queue-url=http://127.0.0.1:1/000000000000/none"];

/// Runs the worker with defaults but for these flags: it has to refuse, and to name these settings.
async fn check(flags: &[&str], named: &[&str]) {
    let ended = end_of(ses_ledger(["run"].into_iter().chain(NOWHERE).chain(flags.iter().copied()))).await;
    assert_eq!(ended.code, Some(64), "{flags:?}: {}", ended.err);
    for name in named {
        assert!(ended.err.contains(name), "{flags:?} is refused without a word of {name}: {}", ended.err);
    }
    assert!(ended.err.contains("--help"), "{flags:?}: the message leads nowhere: {}", ended.err);
    assert!(!ended.err.contains("secret"), "{flags:?}: the message holds the password: {}", ended.err);
    assert_eq!(ended.out, "", "{flags:?}");
}

#[tokio::test]
async fn settings_that_do_not_go_together_are_refused_by_both_names() {
    check(
        &["--visibility-timeout=36s", "--batch-age=1s"],
        &["VISIBILITY_TIMEOUT", "BATCH_AGE", "STORE_TIMEOUT", "DELETE_BUDGET"],
    )
    .await;
    check(&["--batch-age=90s"], &["VISIBILITY_TIMEOUT", "BATCH_AGE"]).await;
    check(&["--delete-budget=2m"], &["VISIBILITY_TIMEOUT", "DELETE_BUDGET"]).await;
    check(&["--delete-budget=61s"], &["VISIBILITY_TIMEOUT", "at least twice DELETE_BUDGET"]).await;
    check(&["--shutdown-grace=40s"], &["SHUTDOWN_GRACE", "RECEIVE_WAIT", "STORE_TIMEOUT"]).await;
    check(&["--statement-timeout=15s"], &["STATEMENT_TIMEOUT", "STORE_TIMEOUT"]).await;
    check(&["--in-flight=499"], &["IN_FLIGHT", "BATCH_SIZE"]).await;
}

#[tokio::test]
async fn a_value_out_of_its_range_is_refused_by_name() {
    check(&["--pollers=0"], &["POLLERS", "1"]).await;
    check(&["--batch-size=0"], &["BATCH_SIZE", "10000"]).await;
    check(&["--batch-size=10001", "--in-flight=20000"], &["BATCH_SIZE", "10000"]).await;
    check(&["--in-flight=9"], &["IN_FLIGHT", "10"]).await;
    check(&["--in-flight=120001"], &["IN_FLIGHT", "120000"]).await;
    check(&["--receive-wait=21s"], &["RECEIVE_WAIT", "20s"]).await;
    check(&["--receive-wait=1500ms"], &["RECEIVE_WAIT", "whole seconds"]).await;
    check(&["--visibility-timeout=1s"], &["VISIBILITY_TIMEOUT", "2s"]).await;
    check(&["--visibility-timeout=13h"], &["VISIBILITY_TIMEOUT", "12h"]).await;
    check(&["--otlp-endpoint=127.0.0.1:4317"], &["--otlp-endpoint", "http://127.0.0.1:4318"]).await;
    check(&["--sweep-interval=0s"], &["SWEEP_INTERVAL"]).await;
    check(&["--database-connections=0"], &["DATABASE_CONNECTIONS", "1"]).await;
}

#[tokio::test]
async fn a_way_to_the_database_that_cannot_work_is_refused_by_name() {
    check(&["--database-auth=token"], &["--database-auth", "password, iam"]).await;
    check(&["--database-pooler=session"], &["--database-pooler", "none, transaction"]).await;
    for name in ["Ledger", "1st", "a-b", "a;b", "a,b", "\"a\"", &"a".repeat(64)] {
        check(&[&format!("--database-schema={name}")], &["DATABASE_SCHEMA"]).await;
    }
}

#[tokio::test]
async fn tls_that_cannot_be_is_refused_before_anything_waits_for_it() {
    let check = async |url: &str, flags: &[&str], word: &str| {
        let mut command = ses_ledger(["run", NOWHERE[1]].into_iter().chain(flags.iter().copied()));
        command.env("DATABASE_URL", url);
        let ended = end_of(command).await;
        assert_eq!(ended.code, Some(64), "{url}: {}", ended.err);
        assert!(ended.err.contains("DATABASE_URL") && ended.err.contains(word), "{url}: {}", ended.err);
        assert!(!ended.err.contains("hidden"), "the message holds the password: {}", ended.err);
    };
    check("postgres://me:hidden@127.0.0.1/none?sslmode=disable", &["--database-auth=iam"], "needs TLS").await;
    check("postgres://me:hidden@db.example.com/none?sslrootcert=/no/such/file", &[], "/no/such/file").await;
    check("postgres://me:hidden@db.example.com/none", &["--pgsslrootcert=/no/such/file"], "/no/such/file").await;
}

/// Templates cannot always leave out what is not needed.
#[tokio::test]
async fn a_variable_without_a_value_says_nothing() {
    let mut command = ses_ledger(["run"]);
    command.env("DATABASE_URL", "").env("DATABASE_SECRET", "").env("DATABASE_SCHEMA", "");
    command.env("QUEUE_URL", "http://127.0.0.1:1/000000000000/none");
    let ended = end_of(command).await;
    assert_eq!(ended.code, Some(64), "{}", ended.err);
    assert!(ended.err.contains("DATABASE_URL (--database-url) or DATABASE_SECRET"), "{}", ended.err);
}

/// Each of these would be accepted by SQS or PostgreSQL, with a meaning that nobody wants.
#[tokio::test]
async fn zero_is_no_length_of_time_where_it_would_mean_never_or_without_a_pause() {
    check(&["--receive-wait=0s"], &["RECEIVE_WAIT", "1s"]).await;
    check(&["--statement-timeout=0s"], &["STATEMENT_TIMEOUT"]).await;
    check(&["--delete-budget=0s"], &["DELETE_BUDGET"]).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_an_example() {
    check(&["--batch-age=1"], &["--batch-age", "500ms", "20s"]).await;
    check(&["--batch-age=1.5s"], &["--batch-age", "500ms"]).await;
    check(&["--batch-age=99999999999999999999h"], &["--batch-age", "500ms"]).await;
    check(&["--pollers=many"], &["--pollers", "many"]).await;
    check(&["--payload=some"], &["--payload", "event, full, none"]).await;
    check(&["--http-address=9464"], &["--http-address"]).await;
    check(&["--pollors=4"], &["--pollors", "--pollers"]).await;
    check(&["surplus"], &["surplus"]).await;
}

#[tokio::test]
async fn a_url_that_is_none_is_refused_before_anything_waits_for_it() {
    /// Replaces one of the two URLs.
    async fn check(database_url: &str, queue_url: &str, named: &str) {
        let mut command = ses_ledger(["run"]);
        command.env("DATABASE_URL", database_url).env("QUEUE_URL", queue_url);
        let ended = end_of(command).await;
        assert_eq!(ended.code, Some(64), "{database_url} {queue_url}: {}", ended.err);
        assert!(ended.err.contains(named), "{database_url} {queue_url}: {}", ended.err);
        assert!(!ended.err.contains("secret"), "the message holds the password: {}", ended.err);
    }
    let [database, queue] = ["postgres://nobody:secret@127.0.0.1:1/none", "http://127.0.0.1:1/000000000000/none"];
    check("", queue, "DATABASE_URL").await;
    check("mysql://nobody:secret@127.0.0.1/none", queue, "DATABASE_URL").await;
    check("postgres://127.0.0.1/none", queue, "DATABASE_URL").await;
    // Not percent-encoded: the usual mistake with generated passwords.
    check("postgres://nobody:sec#ret@127.0.0.1/none", queue, "DATABASE_URL").await;
    check("postgres://nobody:secret@127.0.0.1/none?sslmode=maybe", queue, "DATABASE_URL").await;
    check(database, "", "QUEUE_URL").await;
    check(database, "ses-events", "QUEUE_URL").await;
    check(database, "arn:aws:sqs:eu-west-1:000000000000:ses-events", "QUEUE_URL").await;
    check(database, "https://sqs.eu-west-1.amazonaws.com", "QUEUE_URL").await;
    check(database, &format!("{queue},,{queue}-2"), "QUEUE_URL").await;
}

#[tokio::test]
async fn the_two_settings_without_a_default_are_asked_for() {
    let ended = end_of(ses_ledger(["run"])).await;
    assert_eq!(ended.code, Some(64));
    for flag in ["--database-url", "--queue-url"] {
        assert!(ended.err.contains(flag), "{}", ended.err);
    }
    let ended = end_of(ses_ledger(["migrate", "up"])).await;
    assert_eq!(ended.code, Some(64));
    assert!(ended.err.contains("--database-url"), "{}", ended.err);
}

#[tokio::test]
async fn flags_and_variables_both_work_and_the_flag_wins() {
    let refusal = async |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = ses_ledger(["run"].into_iter().chain(NOWHERE).chain(flags.iter().copied()));
        command.envs(variables.iter().copied());
        let ended = end_of(command).await;
        assert_eq!(ended.code, Some(64), "{variables:?} {flags:?}");
        ended.err
    };
    assert!(refusal(&[("BATCH_SIZE", "0")], &[]).await.contains("BATCH_SIZE has to be"));
    // Checked after the batch size, so it shows that the flag was taken.
    let err = refusal(&[("BATCH_SIZE", "0"), ("SWEEP_INTERVAL", "0s")], &["--batch-size=100"]).await;
    assert!(err.contains("SWEEP_INTERVAL") && !err.contains("BATCH_SIZE"), "{err}");
}

#[tokio::test]
async fn a_log_filter_that_cannot_be_read_is_refused() {
    let mut command = ses_ledger(["run"].into_iter().chain(NOWHERE));
    command.env("LOG", "=a=b=");
    let ended = end_of(command).await;
    assert_eq!(ended.code, Some(64));
    assert!(ended.err.contains("LOG"), "{}", ended.err);
}

#[tokio::test]
async fn no_command_and_an_unknown_one_are_bad_usage_but_the_version_is_not() {
    assert_eq!(end_of(ses_ledger([])).await.code, Some(64));
    assert_eq!(end_of(ses_ledger(["walk"])).await.code, Some(64));
    let version = end_of(ses_ledger(["--version"])).await;
    assert_eq!(
        (version.code, version.out.as_str()),
        (Some(0), concat!("ses-ledger ", env!("CARGO_PKG_VERSION"), "\n"))
    );
}
