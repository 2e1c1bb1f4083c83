//! `ses-ledger migrate`: up, status, verify and down, as an operator runs them.

use serde_json::Value;

use super::{Ended, end_of, ses_ledger};
use crate::database::{self, Database};

async fn migrate(database: &Database, arguments: &[&str]) -> Ended {
    let mut command = ses_ledger(["migrate"].into_iter().chain(arguments.iter().copied()));
    command.env("DATABASE_URL", &database.url);
    end_of(command).await
}

/// What a command prints with `--json`.
async fn lines(database: &Database, arguments: &[&str], code: i32) -> Vec<Value> {
    let ended = migrate(database, &[arguments, &["--json"]].concat()).await;
    assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.out, ended.err);
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("not a line of JSON ({e}): {line}"));
    ended.out.lines().map(parse).collect()
}

fn states(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["state"].as_str().expect("every migration has a state")).collect()
}

#[tokio::test]
async fn an_empty_database_is_brought_up_and_is_then_what_the_binary_needs() {
    let database = database::empty().await;
    let before = lines(&database, &["status"], 0).await;
    assert!(before.len() >= 8 && states(&before).iter().all(|state| *state == "pending"), "{before:?}");
    let findings = lines(&database, &["verify"], 1).await;
    assert_eq!(findings.len(), before.len(), "one for each migration: {findings:?}");
    for finding in &findings {
        assert_eq!((&finding["severity"], &finding["fix"]), (&"error".into(), &"ses-ledger migrate up".into()));
        assert!(finding["what"].as_str().is_some_and(|what| what.ends_with("has not run")), "{finding}");
    }

    let after = lines(&database, &["up"], 0).await;
    assert!(states(&after).iter().all(|state| *state == "applied"), "{after:?}");
    assert_eq!(lines(&database, &["up"], 0).await, after, "again changes nothing");
    assert_eq!(lines(&database, &["status"], 0).await, after);
    assert_eq!(lines(&database, &["verify"], 0).await, Vec::<Value>::new());
}

#[tokio::test]
async fn people_read_the_same_without_json() {
    let database = database::empty().await;
    let verify = migrate(&database, &["verify"]).await;
    assert_eq!(verify.code, Some(1));
    assert!(verify.out.contains("has not run\n  to mend it: ses-ledger migrate up\n"), "{}", verify.out);
    let up = migrate(&database, &["up"]).await;
    assert_eq!(up.code, Some(0));
    assert!(up.out.starts_with("0001  applied  roles\n"), "{}", up.out);
    let verify = migrate(&database, &["verify"]).await;
    assert_eq!((verify.code, verify.out.as_str()), (Some(0), "The schema is what this binary needs.\n"));
}

#[tokio::test]
async fn verify_finds_an_index_that_somebody_dropped() {
    let database = database::fresh().await;
    database.run("DROP INDEX email_events_once").await;
    let findings = lines(&database, &["verify"], 1).await;
    assert!(findings.iter().any(|finding| finding["what"].to_string().contains("email_events_once")), "{findings:?}");
}

#[tokio::test]
async fn down_goes_back_step_by_step_and_up_comes_again() {
    let database = database::fresh().await;
    let all = lines(&database, &["status"], 0).await.len();
    let less = lines(&database, &["down"], 0).await;
    assert_eq!(states(&less).iter().filter(|state| **state == "applied").count(), all - 1);
    let none = lines(&database, &["down", "--to=0"], 0).await;
    assert!(states(&none).iter().all(|state| *state == "pending"), "{none:?}");
    let again = lines(&database, &["up"], 0).await;
    assert!(states(&again).iter().all(|state| *state == "applied"), "{again:?}");
}

#[tokio::test]
async fn down_does_not_remove_mails_without_being_told_to() {
    let database = database::fresh().await;
    database.run("INSERT INTO email_logs (sender) VALUES ('a@example.com')").await;
    let refused = migrate(&database, &["down", "--to=0"]).await;
    assert_eq!(refused.code, Some(64), "{}", refused.err);
    assert!(refused.err.contains("email_logs") && refused.err.contains("--yes"), "{}", refused.err);
    assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 1);
    assert_eq!(lines(&database, &["verify"], 0).await, Vec::<Value>::new(), "nothing was reverted");

    let forced = migrate(&database, &["down", "--to=0", "--yes"]).await;
    assert_eq!(forced.code, Some(0), "{}", forced.err);
    assert_eq!(database.number("SELECT count(*) FROM pg_tables WHERE tablename = 'email_logs'").await, 0);
}

#[tokio::test]
async fn a_database_that_is_not_there_ends_it_soon_with_69_and_the_reason() {
    let mut command = ses_ledger(["migrate", "up"]);
    command.env("DATABASE_URL", "postgres://nobody:secret@127.0.0.1:1/none");
    let ended = end_of(command).await;
    assert_eq!(ended.code, Some(69), "{}", ended.err);
    assert!(ended.err.contains("DATABASE_URL") && ended.err.contains("refused"), "{}", ended.err);
    assert!(!ended.err.contains("secret"), "{}", ended.err);
}
