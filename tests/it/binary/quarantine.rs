//! "What is stuck, and why?" Quarantined bodies: grouped, shown, replayed, removed visibly.

use serde_json::{Value, json};
use ses_ledger::{
    event::EventKind,
    local::story::{Mess, Step, Story, StorySettings},
    pipeline::{
        Store as _,
        batch::{Quarantined, Stage},
    },
};
use time::macros::datetime;

use super::{
    Running, play, ses_ledger,
    stuck::{answer, ask, new_file, on_a_full_disk},
    swept,
};
use crate::{
    arrivals::{event, junk, origin, store},
    database::{self, Database},
    roles::login,
    truth::assert_exact,
    worker::Queue,
};

fn delivery(id: &str) -> String {
    json!({
        "eventType": "Delivery",
        "mail": {"timestamp": "2026-10-05T08:00:00.000Z", "messageId": id, "destination": ["bob@example.com"]},
        "delivery": {"timestamp": "2026-10-05T08:00:01.000Z", "recipients": ["bob@example.com"]},
    })
    .to_string()
}

async fn quarantine(database: &Database, bodies: &[Quarantined]) {
    database.store().insert(&[], bodies).await.expect("the quarantine takes everything");
}

async fn uuid_of(database: &Database, reason: &str) -> String {
    database.text(&format!("SELECT uuid::text FROM quarantined_messages WHERE reason = '{reason}'")).await
}

/// A body that this binary understands, as an older one has left it; and some that nobody understands.
async fn inhabited() -> Database {
    let database = database::fresh().await;
    let no_mail =
        |n: usize| junk(&format!(r#"{{"eventType":"Send","n":{n}}}"#), "no_mail", "$.mail", origin("sqs-2", 3));
    let understood = junk(&delivery("m"), "no_type", "$", origin("sqs-1", 2));
    quarantine(&database, &[understood, no_mail(1), no_mail(2)]).await;
    quarantine(&database, &[junk("{\"a\":\u{1b}[2J\u{202e}", "invalid_json", "line 1 column 6", origin("sqs-3", 1))])
        .await;
    database
}

const ROWS: &str = "SELECT (SELECT string_agg(to_jsonb(e)::text, ',' ORDER BY uuid) FROM email_events e)
    || (SELECT string_agg(to_jsonb(l)::text, ',' ORDER BY uuid) FROM email_logs l)
    || (SELECT count(*) FROM orphaned_events)::text || (SELECT count(*) FROM quarantined_messages)::text";

#[tokio::test]
async fn bodies_are_grouped_by_how_they_failed() {
    let database = inhabited().await;
    // It arrives once more.
    quarantine(&database, &[junk(r#"{"eventType":"Send","n":1}"#, "no_mail", "$.mail", origin("sqs-9", 1))]).await;
    let found = answer(&database.url, &["quarantine", "list"]).await;
    let first = &found["groups"][0];
    assert_eq!(
        (&first["fingerprint"], &first["bodies"], &first["times_seen"]),
        (&"no_mail:$.mail".into(), &2.into(), &3.into())
    );
    assert_eq!(found["groups"].as_array().map(Vec::len), Some(3), "{found}");

    let operator = login(&database, &["ses_ledger_operator"]).await;
    let told = ask(&operator, &["quarantine", "list"]).await;
    assert_eq!(told.code, Some(0), "{}", told.err);
    assert!(
        told.out.contains("4 bodies are in quarantine, seen 5 times") && told.out.contains("no `mail` object"),
        "{}",
        told.out
    );
    assert!(told.out.lines().all(|line| line.chars().count() <= 80), "{}", told.out);

    let page = answer(&operator, &["quarantine", "list", "--fingerprint", "no_mail:$.mail", "--limit", "1"]).await;
    let next = page["next"].as_str().expect("there is another");
    let rest = answer(&operator, &["quarantine", "list", "--reason", "no_mail", "--after", next]).await;
    assert_eq!((page["bodies"].as_array().map(Vec::len), rest["bodies"].as_array().map(Vec::len)), (Some(1), Some(1)));
    assert_ne!(page["bodies"][0]["uuid"], rest["bodies"][0]["uuid"]);
    assert!(rest["next"].is_null(), "{rest}");
}

#[tokio::test]
async fn a_body_is_shown_with_the_failing_place_marked_and_nothing_acts_on_the_terminal() {
    let database = inhabited().await;
    let hostile = ask(&database.url, &["quarantine", "show", &uuid_of(&database, "invalid_json").await]).await;
    assert_eq!(hostile.code, Some(0), "{}", hostile.err);
    assert!(hostile.out.contains(r#"{"a":»\u{1b}«[2J\u{202e}"#), "{}", hostile.out);
    assert!(!hostile.out.contains(['\u{1b}', '\u{202e}']), "{:?}", hostile.out);
    for list in [
        &["quarantine", "list"][..],
        &["quarantine", "list", "--reason", "invalid_json"],
        &["quarantine", "replay", "--dry-run"],
    ] {
        assert!(!ask(&database.url, list).await.out.contains('\u{1b}'), "{list:?}");
    }

    let newest = ask(&database.url, &["quarantine", "show", "no_mail:$.mail"]).await;
    assert!(
        newest.out.contains(r#"»{"eventType":"Send","n":"#) && newest.out.contains("missing      mail"),
        "{}",
        newest.out
    );
    let understood = ask(&database.url, &["quarantine", "show", &uuid_of(&database, "no_type").await]).await;
    assert!(understood.out.contains("becomes 1 delivery event: ses-ledger quarantine replay"), "{}", understood.out);

    // Byte by byte, whatever they are; but not on a terminal.
    database.run(r"UPDATE quarantined_messages SET body = '\xff00fe1b' WHERE reason = 'no_type'").await;
    let mut raw = ses_ledger(["quarantine", "show", "no_type:$", "--raw"]);
    let output = raw.env("DATABASE_URL", &database.url).output().await.expect("it runs");
    assert_eq!(output.stdout, b"\xff\x00\xfe\x1b");
    assert!(ask(&database.url, &["quarantine", "show", "no_type:$"]).await.out.contains(r"\xff"));
    assert_eq!(ask(&database.url, &["quarantine", "show", "no_such:$"]).await.code, Some(1));
}

#[tokio::test]
async fn replay_stores_what_is_understood_by_now_and_storing_again_changes_nothing() {
    let database = inhabited().await;
    database.log("m").await;
    let worker = login(&database, &["ses_ledger_worker"]).await;

    let operator = login(&database, &["ses_ledger_operator"]).await;
    let dry = ask(&operator, &["quarantine", "replay", "--dry-run"]).await;
    assert_eq!(dry.code, Some(1), "some are still not understood: {}", dry.err);
    for words in [
        "becomes 1 delivery event",
        "not understood: no_mail at $.mail",
        "understands 1 of 4 bodies. Nothing was written",
    ] {
        assert!(dry.out.contains(words), "{words:?} is missing:\n{}", dry.out);
    }
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM quarantined_messages WHERE replay_count > 0").await, 0);

    let seen = "SELECT string_agg(uuid::text || times_seen || first_seen_at || last_seen_at, ',' ORDER BY uuid) FROM quarantined_messages";
    let seen_before = database.text(seen).await;
    let replayed = ask(&worker, &["quarantine", "replay"]).await;
    assert_eq!(replayed.code, Some(1), "{}", replayed.err);
    assert!(
        replayed.out.contains("Replayed 4 bodies, 1 of them understood: stored 1, duplicate 0, orphaned 0."),
        "{}",
        replayed.out
    );
    let provenance = "SELECT event_type || ' ' || e.recipient || ' ' || e.queue || ' ' || e.sqs_message_id || ' ' || (received_at = first_seen_at)::text
                      FROM email_events e, quarantined_messages q WHERE q.reason = 'no_type'";
    assert_eq!(database.texts(provenance).await, ["delivery bob@example.com ses-events sqs-1 true"]);
    assert_eq!(database.text("SELECT status FROM email_logs").await, "delivered");
    let notes = "SELECT reason || ' ' || replay_count || ' ' || last_replay_outcome FROM quarantined_messages WHERE reason <> 'invalid_json' ORDER BY reason, uuid";
    let still = "no_mail 1 still not understood: no_mail at $.mail";
    assert_eq!(database.texts(notes).await, [still, still, "no_type 1 stored 1"]);
    assert_eq!(database.text(seen).await, seen_before, "replaying is not arriving");

    let rows = database.text(ROWS).await;
    let again = ask(&worker, &["quarantine", "replay", &uuid_of(&database, "no_type").await]).await;
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert!(again.out.contains("duplicate 1"), "{}", again.out);
    let all = ask(&worker, &["quarantine", "replay", "--again"]).await;
    assert!(all.out.contains("Replayed 4 bodies"), "{}", all.out);
    assert_eq!(database.text(ROWS).await, rows, "nothing new");
    let rest = ask(&worker, &["quarantine", "replay"]).await;
    assert!(rest.out.contains("Replayed 3 bodies, 0 of them"), "what is understood is passed over: {}", rest.out);
    let limited = ask(&worker, &["quarantine", "replay", "--reason", "no_mail", "--limit", "1"]).await;
    assert!(limited.out.contains("Replayed 1 body"), "{}", limited.out);

    let refused = ask(&operator, &["quarantine", "replay"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("GRANT ses_ledger_worker TO login_"), "{}", refused.err);
}

/// A body of several events of which one fails; a body that the database refused; an event whose mail is unknown; noise.
#[tokio::test]
async fn a_replay_comes_to_what_a_delivery_would_come_to() {
    let database = database::fresh().await;
    database.log("m").await;
    let both = format!("[{},{{\"eventType\":\"Send\"}}]", delivery("m"));
    let refused =
        Quarantined::new(delivery("m2").into_bytes(), Stage::Store, "sqlstate_23514", "delivery", origin("s2", 1));
    let noise = r#"{"Type":"SubscriptionConfirmation","TopicArn":"t","Message":"m","SubscribeURL":"u"}"#;
    quarantine(
        &database,
        &[
            junk(&both, "invalid_json", "$", origin("s1", 1)),
            refused,
            junk(&delivery("unknown"), "no_type", "$", origin("s3", 1)),
            junk(noise, "not_json", "$", origin("s4", 1)),
        ],
    )
    .await;
    database.log("m2").await;
    database.run("ALTER TABLE email_events ADD CONSTRAINT no_m2 CHECK (sqs_message_id <> 's2') NOT VALID").await;
    ask(&database.url, &["quarantine", "replay"]).await;
    let notes =
        "SELECT reason || ': ' || last_replay_outcome FROM quarantined_messages WHERE replay_count > 0 ORDER BY reason";
    let expected = [
        "invalid_json: still not understood: no_mail at $[1].mail, stored 1",
        "no_type: orphaned 1",
        "not_json: ignored: subscription_confirmation",
        "sqlstate_23514: still refused by the database: 1 (23514)",
    ];
    assert_eq!(database.texts(notes).await, expected);
    let part = "SELECT convert_from(body, 'UTF8') FROM quarantined_messages WHERE reason = 'no_mail'";
    assert_eq!(database.texts(part).await, [r#"{"eventType":"Send"}"#], "the part that failed, as from the queue");

    database.run("ALTER TABLE email_events DROP CONSTRAINT no_m2").await;
    let mended = ask(&database.url, &["quarantine", "replay", "--reason", "sqlstate_23514"]).await;
    assert_eq!(mended.code, Some(0), "{}{}", mended.out, mended.err);
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 2);
}

/// Every body of a story is in quarantine and in the queue, and both are at work at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_beside_a_running_worker_leaves_the_exact_history() {
    let mess = Mess { poison: 0.0, ..Mess::default() };
    let settings = StorySettings { mess, ..StorySettings::new(31, 60, datetime!(2026-10-05 08:00 UTC)) };
    let (database, queue, story) = (database::fresh().await, Queue::start().await, Story::tell(&settings));
    let bodies = story.steps().filter_map(|step| match step {
        Step::Publish(body) => Some(junk(&body, "no_type", "$", origin("earlier", 1))),
        Step::WriteLog(_) => None,
    });
    quarantine(&database, &bodies.collect::<Vec<_>>()).await;
    let running = Running::start(&database.url, &queue.url, &[]).await;
    let (replayed, ()) =
        tokio::join!(ask(&database.url, &["quarantine", "replay"]), play(&database, &queue.handle, &story));
    assert_eq!(replayed.code, Some(0), "{}{}", replayed.out, replayed.err);
    queue.drained().await;
    swept(&database, &story).await;
    running.stop().await;
    // All but the bodies, which stay in quarantine after a replay.
    database.run("DELETE FROM quarantined_messages").await;
    assert_exact(&database, &story.truth).await;
}

#[tokio::test]
async fn drop_removes_bodies_with_their_copy_and_tells_of_it_for_ever() {
    let database = inhabited().await;
    let file = new_file("quarantine");
    let path = file.to_str().expect("a plain name");
    let drop_them = ["quarantine", "drop", "--reason", "no_mail"];
    let bodies = async || database.number("SELECT count(*) FROM quarantined_messages").await;

    assert_eq!(ask(&database.url, &["quarantine", "drop", "--yes"]).await.code, Some(64), "which ones?");
    assert_eq!(ask(&database.url, &drop_them).await.code, Some(64), "nobody was asked");
    for role in ["ses_ledger_worker", "ses_ledger_operator"] {
        let refused = ask(&login(&database, &[role]).await, &[&drop_them[..], &["--yes"]].concat()).await;
        assert_eq!(refused.code, Some(1), "{role}");
        assert!(
            refused.err.contains("GRANT EXECUTE ON FUNCTION ses_ledger_drop_quarantined TO login_"),
            "{}",
            refused.err
        );
    }
    assert_eq!(answer(&database.url, &[&drop_them[..], &["--dry-run"]].concat()).await["would_remove"], 2);
    let nowhere = ask(&database.url, &[&drop_them[..], &["--yes", "--export", "/no/such/folder/x"]].concat()).await;
    assert_eq!(nowhere.code, Some(1), "{}", nowhere.err);
    let full = on_a_full_disk(&database.url, &[&drop_them[..], &["--yes", "--export", path]].concat()).await;
    assert_eq!(full.code, Some(1), "{}", full.err);
    let there = ask(&database.url, &[&drop_them[..], &["--yes", "--export", path]].concat()).await;
    assert_eq!(there.code, Some(1), "a file that is there is not written over: {}", there.err);
    assert_eq!(bodies().await, 4, "nothing was removed without its copy");

    std::fs::remove_file(&file).expect("the full disk has left an empty one");
    let owner = login(&database, &["ses_ledger_owner"]).await;
    let name = owner.split(['/', ':']).nth(3).expect("a user").to_owned();
    let done = answer(&owner, &[&drop_them[..], &["--yes", "--export", path]].concat()).await;
    assert_eq!((&done["removed"], bodies().await), (&Value::from(2), 2));
    let lines = std::fs::read_to_string(&file).expect("it was made");
    let copies: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(
        copies.len() == 2 && copies.iter().all(|c| c["body"].as_str().is_some_and(|b| b.contains("Send"))),
        "{lines}"
    );
    std::fs::remove_file(&file).expect("it is ours");
    let told = "SELECT what || ' ' || removed || ' ' || removed_by || ' ' || reason FROM ses_ledger_removals";
    assert_eq!(database.texts(told).await, [format!("quarantine 2 {name} reason no_mail")]);

    database.log("m").await;
    ask(&database.url, &["quarantine", "replay"]).await;
    let understood = answer(&database.url, &["quarantine", "drop", "--understood", "--yes"]).await;
    assert_eq!(understood["removed"], 1, "{understood}");
    assert_eq!(database.texts("SELECT reason FROM quarantined_messages").await, ["invalid_json"]);
}

/// Who may execute the functions can remove, and neither what is fresh nor in somebody else's name.
#[tokio::test]
async fn the_functions_that_remove_guard_themselves() {
    let database = inhabited().await;
    let url = login(&database, &["ses_ledger_owner"]).await;
    let owner = database::connect(&url);
    let run = uuid::Uuid::now_v7();
    let ids: Vec<uuid::Uuid> = database
        .texts("SELECT uuid::text FROM quarantined_messages WHERE reason = 'no_mail' ORDER BY uuid")
        .await
        .iter()
        .map(|uuid| uuid.parse().expect("a uuid"))
        .collect();
    use ses_ledger::postgres::stuck::{drop_quarantined, expire_orphans};
    let young = expire_orphans(&owner, run, &ids, std::time::Duration::from_secs(3600), "why").await;
    assert!(format!("{:#}", young.expect_err("an hour is no age")).contains("older than a day"));
    store(&database.store(), [event("fresh", EventKind::Send)]).await;
    let fresh = database.text("SELECT uuid::text FROM orphaned_events").await.parse().expect("a uuid");
    let day = std::time::Duration::from_secs(86_400);
    assert_eq!(expire_orphans(&owner, run, &[fresh], day, "why").await.expect("it may"), 0, "it is fresh");
    assert_eq!(drop_quarantined(&owner, run, &ids[..1], "mine").await.expect("it may"), 1);
    let other = database::connect(&login(&database, &["ses_ledger_owner"]).await);
    assert!(drop_quarantined(&other, run, &ids[1..], "mine").await.is_err(), "that removal is somebody else's");
    assert_eq!(database.number("SELECT count(*) FROM quarantined_messages").await, 3);
}
