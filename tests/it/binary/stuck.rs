//! "What is stuck, and why?" Orphaned events: grouped, shown, attached, removed visibly.

use std::{collections::BTreeSet, path::PathBuf, process::Stdio};

use serde_json::Value;
use ses_ledger::event::EventKind;
use tokio::process::Command;
use uuid::Uuid;

use super::{Ended, end_of, ses_ledger};
use crate::{
    arrivals::{event, opened, store, tagged, with},
    database::{self, Database},
    roles::login,
};

/// One command about this database, as this login.
pub(super) async fn ask(url: &str, arguments: &[&str]) -> Ended {
    let mut command = ses_ledger(arguments.iter().copied());
    command.env("DATABASE_URL", url);
    end_of(command).await
}

/// Its answer as JSON.
pub(super) async fn answer(url: &str, arguments: &[&str]) -> Value {
    let ended = ask(url, &[arguments, &["--json"]].concat()).await;
    serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}{}", ended.out, ended.err))
}

/// A file of the test's own that is not there yet.
pub(super) fn new_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.ndjson", Uuid::now_v7()))
}

/// The same command where no file can become longer than a block, as on a full disk.
pub(super) async fn on_a_full_disk(url: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap '' XFSZ; ulimit -f 0; exec "$0" "$@""#, env!("CARGO_BIN_EXE_ses-ledger")]);
    command.args(arguments).env_clear().env("DATABASE_URL", url).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    end_of(command).await
}

/// Orphans of each sort: two mails without a row, one whose tag names none, one whose row has come since.
async fn inhabited() -> Database {
    let database = database::fresh().await;
    let from = |domain: &str, set: &str| {
        Some(format!(
            r#"{{"mail":{{"source":"x@{domain}","tags":{{"ses:configuration-set":["{set}"],"ses:from-domain":["{domain}"]}}}}}}"#
        ))
    };
    let ours = |e| with(e, |e| e.payload = from("shop.example.com", "ours"));
    let theirs = |e| with(e, |e| e.payload = from("elsewhere.example.net", "theirs"));
    let events = [
        ours(event("no-row", EventKind::Send)),
        ours(event("no-row", EventKind::Delivery)),
        ours(opened("no-row", 5)),
        theirs(event("foreign", EventKind::Send)),
        ours(tagged("tagged", EventKind::Bounce, Uuid::now_v7())),
        ours(event("late", EventKind::Send)),
    ];
    store(&database.store(), events).await;
    // No longer young.
    database.run("UPDATE orphaned_events SET stored_at = stored_at - interval '1 hour'").await;
    database
        .run("INSERT INTO email_logs (sender, configuration_set) VALUES ('Shop <a@Shop.example.com>', 'ours')")
        .await;
    database.log("late").await;
    database
}

#[tokio::test]
async fn orphans_are_grouped_by_why_they_wait() {
    let database = inhabited().await;
    let found = answer(&database.url, &["orphans", "list"]).await;
    let group = |why: &str| {
        let groups = found["orphans"]["groups"].as_array().expect("a list").iter();
        let of: Vec<&Value> = groups.filter(|group| group["why"] == why).collect();
        let [group] = of[..] else { panic!("one group {why}: {found}") };
        group.clone()
    };
    assert_eq!(found["orphans"]["events"], 6);
    let no_row = group("no_row");
    assert_eq!((&no_row["events"], &no_row["mails"]), (&Value::from(3), &Value::from(1)));
    assert_eq!(no_row["kinds"], serde_json::json!({"send": 1, "delivery": 1, "open": 1}));
    assert_eq!((&no_row["sender_domain"], &no_row["configuration_set"]), (&"shop.example.com".into(), &"ours".into()));
    assert_eq!(group("other_sender")["sender_domain"], "elsewhere.example.net");
    assert_eq!(group("no_such_uuid")["example"], "tagged");
    assert_eq!(group("row_is_there")["example"], "late");

    let told = ask(&database.url, &["orphans", "list"]).await;
    assert_eq!(told.code, Some(0), "{}", told.err);
    for words in ["6 events wait", "No log row has their id", "elsewhere.example.net", "configuration set ours"] {
        assert!(told.out.contains(words), "{words:?} is missing:\n{}", told.out);
    }
    assert!(told.out.lines().all(|line| line.chars().count() <= 80), "{}", told.out);
    assert!(!told.out.contains("bob@"), "nobody asked for addresses:\n{}", told.out);

    // One that was parked now may have its row on the way.
    store(&database.store(), [event("young", EventKind::Send)]).await;
    let now = answer(&database.url, &["orphans", "list", "--ids", "--why", "young"]).await;
    assert_eq!(now["mails"][0]["aws_message_id"], "young", "{now}");
}

#[tokio::test]
async fn ids_are_paged_by_key_and_each_mail_comes_once() {
    let database = database::fresh().await;
    for n in 0..25 {
        let id = format!("mail-{n}");
        store(&database.store(), [event(&id, EventKind::Send), opened(&id, n), opened("again-and-again", n)]).await;
    }
    let (mut ids, mut pages, mut after) = (Vec::new(), 0, String::new());
    loop {
        let more = ["orphans", "list", "--ids", "--limit", "7", "--after", &after];
        let page = answer(&database.url, if after.is_empty() { &more[..5] } else { &more }).await;
        let mails = page["mails"].as_array().expect("a list");
        assert!(mails.len() <= 7);
        ids.extend(mails.iter().map(|mail| mail["aws_message_id"].as_str().expect("an id").to_owned()));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => break,
        }
    }
    assert_eq!((ids.len(), pages), (26, 4));
    assert_eq!(BTreeSet::from_iter(&ids).len(), 26, "none comes twice: {ids:?}");
    let young = answer(&database.url, &["orphans", "list", "--ids", "--why", "young", "--limit", "3"]).await;
    assert_eq!(young["mails"].as_array().map(Vec::len), Some(3), "{young}");
    let next = young["next"].as_str().expect("there are more");
    let rest = answer(&database.url, &["orphans", "list", "--ids", "--why", "young", "--after", next]).await;
    assert_eq!(rest["mails"].as_array().map(Vec::len), Some(23), "{rest}");
}

#[tokio::test]
async fn one_mail_is_shown_with_what_would_attach_it() {
    let database = inhabited().await;
    let told = ask(&database.url, &["orphans", "show", "no-row"]).await;
    assert_eq!(told.code, Some(0), "{}", told.err);
    assert!(told.out.contains("delivery") && told.out.contains("bob@example.com"), "{}", told.out);
    assert!(told.out.contains("aws_message_id = 'no-row'"), "{}", told.out);

    // A row of that hour to the same recipient, to which nobody wrote the id.
    let candidate = "01993d0a-f900-7000-8000-000000000000"; // 2025-09-12
    database.run("UPDATE orphaned_events SET occurred_at = '2025-09-12 12:20:00Z' WHERE event_type <> 'open'").await;
    let insert =
        format!("INSERT INTO email_logs (uuid, recipients) VALUES ('{candidate}', '{{Bob <Bob@Example.com>}}')");
    database.run(&insert).await;
    let at = database.text(&format!("SELECT ses_ledger_uuid_time('{candidate}')::text")).await;
    database.run(&format!("UPDATE orphaned_events SET occurred_at = '{at}'::timestamptz + interval '3 seconds'")).await;
    let found = answer(&database.url, &["orphans", "show", "<no-row@eu-west-1.amazonses.com>"]).await;
    assert_eq!(found["candidates"][0]["log_uuid"], candidate, "{found}");

    let late = ask(&database.url, &["orphans", "show", "late"]).await;
    assert!(late.out.contains("ses-ledger orphans retry --id late"), "{}", late.out);
    let orphan = database.text("SELECT uuid::text FROM orphaned_events WHERE aws_message_id = 'tagged'").await;
    assert!(ask(&database.url, &["orphans", "show", &orphan]).await.out.contains("bounce"));
    assert_eq!(ask(&database.url, &["orphans", "show", "nobody"]).await.code, Some(1));
}

#[tokio::test]
async fn retry_attaches_what_the_sweep_would() {
    let database = inhabited().await;
    database.log("no-row").await;
    let one = answer(&database.url, &["orphans", "retry", "--id", "no-row"]).await;
    assert_eq!((&one["attached"], &one["left"]), (&Value::from(3), &Value::from(3)));
    let worker = login(&database, &["ses_ledger_worker"]).await;
    let all = ask(&worker, &["orphans", "retry"]).await;
    assert_eq!(all.code, Some(0), "{}", all.err);
    assert!(all.out.contains("1 event found its mail and is attached; 2 still wait"), "{}", all.out);
    let events = "SELECT count(*) FROM email_events e JOIN email_logs l ON l.uuid = e.email_log_uuid WHERE aws_message_id IN ('no-row', 'late')";
    assert_eq!(database.number(events).await, 4);
    assert_eq!(database.number("SELECT count(*) FROM email_logs WHERE sent_at IS NOT NULL").await, 2);

    let operator = login(&database, &["ses_ledger_operator"]).await;
    let refused = ask(&operator, &["orphans", "retry"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("GRANT ses_ledger_worker TO"), "{}", refused.err);
}

#[tokio::test]
async fn expire_removes_only_what_is_old_and_tells_of_it_for_ever() {
    let database = inhabited().await;
    let old = "UPDATE orphaned_events SET stored_at = now() - interval '100 days', uuid = (lpad(to_hex((extract(epoch FROM now() - interval '100 days') * 1000)::bigint), 12, '0') || substr(replace(uuid::text, '-', ''), 13))::uuid WHERE aws_message_id <> 'foreign'";
    database.run(old).await;
    let file = new_file("orphans");
    let path = file.to_str().expect("a plain name");
    let expire = ["orphans", "expire", "--older-than", "90d"];

    let young = ask(&database.url, &["orphans", "expire", "--older-than", "23h", "--yes"]).await;
    assert_eq!(young.code, Some(64), "{}", young.err);
    let unasked = ask(&database.url, &expire).await;
    assert_eq!(unasked.code, Some(64));
    assert!(unasked.err.contains("add --yes"), "{}", unasked.err);
    let dry = answer(&database.url, &[&expire[..], &["--dry-run"]].concat()).await;
    // Not that of the mail whose row is there by now, and not the fresh one.
    assert_eq!(dry["would_remove"], 4, "{dry}");
    for role in ["ses_ledger_operator", "ses_ledger_worker"] {
        let refused = ask(&login(&database, &[role]).await, &[&expire[..], &["--yes"]].concat()).await;
        assert_eq!(refused.code, Some(1), "{role}");
        assert!(
            refused.err.contains("GRANT EXECUTE ON FUNCTION ses_ledger_expire_orphans TO login_"),
            "{}",
            refused.err
        );
    }
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 6, "nothing happened so far");

    let full = on_a_full_disk(&database.url, &[&expire[..], &["--yes", "--export", path]].concat()).await;
    assert_eq!(full.code, Some(1), "{}", full.err);
    assert!(full.err.contains("nothing that is not in it was removed"), "{}", full.err);
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 6, "nothing is gone without its copy");

    let cleaner = login(&database, &["ses_ledger_operator"]).await;
    let name = cleaner.split(['/', ':']).nth(3).expect("a user").to_owned();
    database.run(&format!("GRANT EXECUTE ON FUNCTION ses_ledger_expire_orphans TO {name}")).await;
    std::fs::remove_file(&file).expect("the full disk has left an empty one");
    let done = answer(&cleaner, &[&expire[..], &["--yes", "--export", path]].concat()).await;
    assert_eq!(done["removed"], 4, "{done}");
    let lines = std::fs::read_to_string(&file).expect("it was made");
    let copies: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(copies.len(), 4);
    assert!(copies.iter().all(|copy| copy["payload"]["mail"]["source"] == "x@shop.example.com"), "{lines}");
    std::fs::remove_file(&file).expect("it is ours");

    let told = "SELECT what || ' ' || removed || ' ' || removed_by || ' ' || reason || ' ' || (oldest_at < now() - interval '99 days')::text FROM ses_ledger_removals";
    assert_eq!(database.texts(told).await, [format!("orphans 4 {name} older than 90 days true")]);
    let left = database.texts("SELECT DISTINCT aws_message_id FROM orphaned_events ORDER BY 1").await;
    assert_eq!(left, ["foreign", "late"]);
    let list = ask(&database.url, &["orphans", "list"]).await;
    assert!(list.out.contains(&format!("4 by {name}: older than 90 days")), "{}", list.out);
}

#[tokio::test]
async fn what_an_event_says_does_not_act_on_the_terminal() {
    let database = database::fresh().await;
    let hostile = "\u{1b}[2Jx\u{202e}";
    let payload = serde_json::json!({"mail": {
        "source": format!("a@{hostile}"), "commonHeaders": {"subject": hostile},
        "tags": {"ses:configuration-set": [hostile]},
    }});
    let bad = with(event("hostile", EventKind::Other(format!("k{hostile}"))), |e| {
        (e.payload, e.detail.diagnostic) = (Some(payload.to_string()), Some(hostile.to_owned()));
    });
    store(&database.store(), [bad]).await;
    for command in [&["orphans", "list"][..], &["orphans", "list", "--ids"], &["orphans", "show", "hostile"]] {
        let told = ask(&database.url, command).await;
        assert_eq!(told.code, Some(0), "{}", told.err);
        assert!(!told.out.contains(['\u{1b}', '\u{202e}']), "{command:?}: {:?}", told.out);
    }
}
