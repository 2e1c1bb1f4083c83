//! `ses-ledger adopt`, as an operator runs it: killed and run again, beside a worker, and what it says.

use serde_json::{Value, json};

use super::{Ended, Running, end_of, ses_ledger, until};
use crate::{
    adoption::{assert_facts, fill_phoenix_kit, history, phoenix_kit, prepare, run},
    database::{self, Database},
    worker::Queue,
};

fn command(database: &Database, arguments: &[&str]) -> tokio::process::Command {
    let mut command = ses_ledger(["adopt", "--from=phoenix-kit"].into_iter().chain(arguments.iter().copied()));
    command.env("DATABASE_URL", &database.url);
    command
}

async fn adopt(database: &Database, arguments: &[&str]) -> Ended {
    end_of(command(database, arguments)).await
}

fn report(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("no JSON ({e}): {}{}", ended.out, ended.err))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_goes_on_where_it_was_and_its_numbers_still_add_up() {
    let (killed, whole) = (database::fresh().await, database::fresh().await);
    for database in [&killed, &whole] {
        fill_phoenix_kit(database, 400).await;
    }
    let expected = run(&prepare(&whole, phoenix_kit()).await).await;
    // How far it has come, over all steps.
    let moved = async || {
        killed.number("SELECT coalesce(sum((counts->>'read')::bigint), 0)::bigint FROM ses_ledger_adoptions").await
    };
    let mut kills = 0;
    let all: i64 = expected.iter().map(|report| report.counts.read as i64).sum();
    for share in 1..8 {
        let mut running = command(&killed, &["--page=10"]).spawn().expect("the binary was built for this test");
        until("it has come further", async || {
            moved().await >= all * share / 9 || running.try_wait().is_ok_and(|end| end.is_some())
        })
        .await;
        kills += i64::from(running.try_wait().is_ok_and(|end| end.is_none()));
        running.kill().await.expect("it can be killed");
    }
    assert_eq!(kills, 7, "each of them hit it on its way");
    let last = adopt(&killed, &["--page=10", "--json"]).await;
    assert_eq!(last.code, Some(1), "some rows are left: {}", last.err);
    let last = report(&last);
    let steps = last["steps"].as_array().expect("there are steps");
    assert_eq!(steps.len(), expected.len());
    for (found, expected) in steps.iter().zip(&expected) {
        let expected = serde_json::to_value(&expected.counts).expect("they are numbers and texts");
        for (name, count) in expected.as_object().expect("it has fields") {
            assert_eq!(&found[name], count, "{name} of all runs together: {found:#}");
        }
        assert_eq!(found["resumed"], true);
    }
    assert_eq!(history(&killed).await, history(&whole).await);
    assert_facts(&killed).await;
    assert_eq!(
        killed.number("SELECT count(*) FROM ses_ledger_unmatched").await,
        whole.number("SELECT count(*) FROM ses_ledger_unmatched").await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_goes_on_meanwhile_and_nothing_is_counted_twice() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    fill_phoenix_kit(&database, 300).await;
    let worker = Running::start(&database.url, &queue.url, &[]).await;
    let mut adopting = command(&database, &["--page=20"]).spawn().expect("the binary was built for this test");
    // SES tells once more what the tables know, with milliseconds.
    let mails = "SELECT json_build_object('id', ses_id, 'to', recipient, 'second', n % 2 = 0 AND n % 20 <> 5,
                   'open', to_char((at + interval '1 minute') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'),
                   'again', to_char((at + interval '2 minutes') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'))::text
                 FROM pk_mails WHERE n % 50 <> 7 AND n % 20 <> 5";
    let mails: Vec<Value> =
        database.texts(mails).await.iter().map(|row| serde_json::from_str(row).expect("it is JSON")).collect();
    let tell = |mail: &Value, kind: &str, object: &str, at: &Value| {
        let body = json!({"eventType": kind, object: {"timestamp": at}, "mail": {"messageId": mail["id"], "destination": [mail["to"]]}});
        queue.handle.send(&body.to_string());
    };
    for mail in &mails {
        tell(mail, "Delivery", "delivery", &mail["open"]);
        if mail["second"] == true {
            tell(mail, "Open", "open", &mail["open"]);
            // Known there by its second only.
            tell(mail, "Open", "open", &mail["again"]);
        }
    }
    let end = adopting.wait().await.expect("it ends");
    assert_eq!(end.code(), Some(1), "some rows are left");
    // And again, when all of it is there.
    for mail in mails.iter().filter(|mail| mail["second"] == true) {
        tell(mail, "Open", "open", &mail["again"]);
    }
    queue.drained().await;
    until("no orphan is left", async || database.number("SELECT count(*) FROM orphaned_events").await == 0).await;
    worker.stop().await;
    assert_facts(&database).await;
}

#[tokio::test]
async fn it_says_what_it_would_do_what_it_did_and_what_is_left() {
    let database = database::fresh().await;
    fill_phoenix_kit(&database, 300).await;
    let rehearsal = adopt(&database, &["--dry-run"]).await;
    assert_eq!(rehearsal.code, Some(1), "{}", rehearsal.err);
    assert!(rehearsal.out.contains("nothing was changed"), "{}", rehearsal.out);
    assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 0);
    let done = adopt(&database, &[]).await;
    assert_eq!(done.code, Some(1), "{}", done.err);
    for line in [
        "  log rows     312 rows read",
        "= 300 adopted + 12 collapsed + 0 left",
        "3 left: its log row is not there, or was not taken (no_log)",
    ] {
        assert!(done.out.contains(line), "{line}: {}", done.out);
    }
    for text in [&rehearsal.out, &done.out] {
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('@'), "somebody's address: {text}");
    }
    let sums = |text: &str| {
        text.lines()
            .filter(|line| line.contains(" = ") || line.contains("SES ids"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(sums(&rehearsal.out), sums(&done.out));
    let list = adopt(&database, &["--list", "--json"]).await;
    let rows: Vec<Value> =
        list.out.lines().map(|line| serde_json::from_str(line).expect("one object per line")).collect();
    assert_eq!((list.code, rows.len()), (Some(1), 5), "{}", list.out);
    assert!(
        rows.iter().all(|row| row["table"] == "phoenix_kit_email_events" && row["step"] == "events"),
        "{}",
        list.out
    );

    database.run("DELETE FROM phoenix_kit_email_events WHERE event_type = ' ' OR email_log_uuid NOT IN (SELECT uuid FROM pk_mails)").await;
    let again = adopt(&database, &["--json"]).await;
    assert_eq!((again.code, &report(&again)["steps"][1]["unmatched"]), (Some(0), &json!(0)), "{}", again.err);
    assert_eq!(adopt(&database, &["--list"]).await.code, Some(0));
}

#[tokio::test]
async fn wrong_usage_ends_it_with_64_and_a_missing_database_with_69() {
    let database = database::fresh().await;
    for arguments in
        [&["--map=logs.colour=x"][..], &["--from-schema=nowhere"], &["--list", "--dry-run"], &["--source-url=nothing"]]
    {
        let ended = adopt(&database, arguments).await;
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}", ended.err);
    }
    let away = adopt(&database, &["--source-url=postgres://nobody@127.0.0.1:1/none"]).await;
    assert_eq!(away.code, Some(69), "{}", away.err);
    let view = adopt(&database, &["--view"]).await;
    assert_eq!(view.code, Some(64), "there is no table to mirror: {}", view.err);
}
