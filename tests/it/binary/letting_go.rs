//! `ses-ledger retention`, `partitions` and `erase`, as an operator runs them.

use std::{fs, path::PathBuf};

use serde_json::Value;
use ses_ledger::event::EventKind;
use uuid::Uuid;

use super::{Ended, end_of, ses_ledger};
use crate::{
    arrivals::{event, store},
    database::{self, Database},
    roles::login,
};

async fn call(url: &str, arguments: &[&str]) -> Ended {
    let mut command = ses_ledger(arguments.iter().copied());
    command.env("DATABASE_URL", url);
    end_of(command).await
}

/// The one JSON document that a command prints.
async fn json(url: &str, arguments: &[&str], code: i32) -> Value {
    let ended = call(url, &[arguments, &["--json"]].concat()).await;
    assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.out, ended.err);
    serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("not a document ({e}): {}", ended.out))
}

/// A mail of the beginning of 2025 with two events.
async fn old_mail(database: &Database) {
    let id = Uuid::parse_str("01946a00-0000-7000-8000-000000000001").expect("it is an id");
    database.log_of(id, Some("old")).await;
    store(&database.store(), [event("old", EventKind::Send), event("old", EventKind::Delivery)]).await;
}

#[tokio::test]
async fn retention_says_what_would_go_and_lets_it_go_with_an_export() {
    let database = database::fresh().await;
    old_mail(&database).await;
    let dry = json(&database.url, &["retention", "run", "--dry-run", "--retention-events=100d"], 0).await;
    assert_eq!((&dry["dry_run"], &dry["let_go"][0]["months"]), (&true.into(), &serde_json::json!(["2025-01"])));
    assert!(dry["let_go"][0]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{dry}");
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 2);

    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("export-binary-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let export = format!("--export={}", folder.display());
    let run = call(&database.url, &["retention", "run", "--retention-events=100d", &export]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.lines().all(|line| line.chars().count() <= 80), "{}", run.out);
    assert!(
        run.out.contains("month      2025-01") && run.err.contains("dropped the events of 2025-01: 2 rows"),
        "{}",
        run.out
    );
    assert!(
        folder.join("email_events-2025-01.ndjson.gz").exists()
            && folder.join("email_events-2025-01.ndjson.gz.json").exists()
    );
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 0);
    fs::remove_dir_all(&folder).expect("it is ours");
}

#[tokio::test]
async fn retention_without_a_setting_or_with_ones_that_do_not_fit_is_bad_usage() {
    let url = "postgres://u:p@127.0.0.1:1/none";
    for (arguments, why) in [
        (vec!["retention", "run"], "say how long what is kept"),
        (vec!["retention", "run", "--retention-logs=400d"], "RETENTION_LOGS needs RETENTION_EVENTS"),
        (
            vec!["retention", "run", "--retention-logs=100d", "--retention-events=200d"],
            "at least as long as RETENTION_EVENTS",
        ),
        (vec!["retention", "run", "--retention-events=30d"], "RETENTION_EVENTS has to be at least 31d"),
    ] {
        let ended = call(url, &arguments).await;
        assert_eq!(ended.code, Some(64), "{arguments:?}");
        assert!(ended.err.contains(why), "{}", ended.err);
    }
    assert_eq!(call(url, &["retention", "run", "--retention-events=100d"]).await.code, Some(69));
}

#[tokio::test]
async fn the_worker_cannot_let_go_of_rows() {
    let database = database::fresh().await;
    old_mail(&database).await;
    let worker = login(&database, &["ses_ledger_worker"]).await;
    for arguments in [vec!["retention", "run", "--retention-events=100d"], vec!["erase", "bob@example.com", "--yes"]] {
        let ended = call(&worker, &arguments).await;
        assert_eq!(ended.code, Some(1), "{}", ended.out);
        assert!(ended.err.contains("cannot become the role ses_ledger_owner"), "{}", ended.err);
    }
    let owner = login(&database, &["ses_ledger_owner"]).await;
    assert_eq!(call(&owner, &["retention", "run", "--retention-events=100d"]).await.code, Some(0));
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 0);
}

#[tokio::test]
async fn partitions_are_listed_and_made() {
    let database = database::fresh().await;
    let list = json(&database.url, &["partitions", "list"], 0).await;
    assert_eq!(list["months_ahead"], 3);
    assert_eq!(
        list["partitions"].as_array().map(Vec::len),
        Some(7),
        "last month to three ahead, and both ends: {list}"
    );
    let next = "SELECT to_regclass('email_events_' || to_char(now() + interval '2 months', '\"y\"YYYY\"m\"MM'))::text";
    database.run(&format!("DROP TABLE {}", database.text(next).await)).await;
    let list = call(&database.url, &["partitions", "list"]).await;
    assert_eq!(list.code, Some(1));
    assert!(list.out.contains("1 months ahead are ready, too few"), "{}", list.out);
    assert!(list.out.lines().all(|line| line.chars().count() <= 80), "{}", list.out);
    let made = json(&database.url, &["partitions", "ensure", "--months=5"], 0).await;
    assert_eq!((&made["made"], &made["months_ahead"]), (&3.into(), &5.into()));
}

#[tokio::test]
async fn a_month_that_somebody_divided_into_days_is_a_month_like_others() {
    let database = database::fresh().await;
    let days = include_str!("../../../infra/finer-month.sql").replace("2027-06-01", "2025-01-01");
    database.run(&days).await;
    database.run(&days.replace("2025-01-01", "2025-02-01").replace(" LOOP\n", " LOOP EXIT;\n")).await;
    assert_eq!(call(&database.url, &["migrate", "verify"]).await.code, Some(0));
    old_mail(&database).await;
    assert_eq!(database.number("SELECT count(*) FROM email_events_y2025m01d15").await, 2);
    store(&database.store(), [event("old", EventKind::Send)]).await;
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 2, "one that comes again is known");

    database.run("ANALYZE email_events").await;
    let list = json(&database.url, &["partitions", "list"], 0).await;
    let month = list["partitions"].as_array().and_then(|all| all.iter().find(|one| one["month"] == "2025-01"));
    let month = month.unwrap_or_else(|| panic!("the month is not there: {list}"));
    assert_eq!(month["rows"], 2, "{month}");
    assert!(month["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{month}");

    let run = json(&database.url, &["retention", "run", "--retention-events=100d"], 0).await;
    assert_eq!(run["let_go"][0]["months"], serde_json::json!(["2025-01", "2025-02"]), "also one without days: {run}");
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'email\\_events\\_y2025m0%'";
    assert_eq!(database.number(left).await, 0);
    store(&database.store(), [event("old", EventKind::Send)]).await;
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 0, "what went stays known");
}

#[tokio::test]
async fn erase_looks_first_and_leaves_a_receipt_without_the_address() {
    let database = database::fresh().await;
    old_mail(&database).await;
    let looked = call(&database.url, &["erase", "BOB@example.com"]).await;
    assert_eq!(looked.code, Some(0), "{}", looked.err);
    assert!(looked.out.contains("Nothing was changed"), "{}", looked.out);
    assert_eq!(database.number("SELECT count(*) FROM email_events WHERE recipient = 'bob@example.com'").await, 2);

    let receipt = json(&database.url, &["erase", "BOB@example.com", "--yes"], 0).await;
    assert_eq!((&receipt["rows"]["events"], &receipt["erased_by"]), (&2.into(), &"postgres".into()));
    assert!(!receipt.to_string().contains("bob"), "{receipt}");
    let stored =
        "SELECT count(*) FROM ses_ledger_erasures AS e WHERE ended_at IS NOT NULL AND e::text NOT ILIKE '%bob%'";
    assert_eq!(database.number(stored).await, 1);
    assert_eq!(database.number("SELECT count(*) FROM email_events WHERE recipient LIKE 'erased:%'").await, 2);
    assert_eq!(call(&database.url, &["erase", "bob@example.com"]).await.code, Some(1), "nothing is left to be found");
    assert_eq!(call(&database.url, &["erase", "nobody"]).await.code, Some(64));
}
