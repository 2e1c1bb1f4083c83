//! Who is erased is nowhere any more, is counted as before, and does not come back.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ses_ledger::{
    erasure::Person,
    event::{Address, Event, EventKind},
    orphans,
    pipeline::{
        Store as _,
        Verdict::{Duplicate, Inserted, Orphaned},
    },
    postgres::{
        Postgres,
        erasure::{self, Erasure, ErasureReceipt},
        letting_go::Owner,
    },
};
use uuid::Uuid;

use crate::{
    arrivals::{event, junk, opened, origin, store, with},
    database::{self, Database, connect},
    roles::login,
};

const ANA: &str = "ana.lee@example.net";

/// Every row of every table as text, with the bodies of the quarantine as far as they are text, and Base64 in them decoded.
async fn everything(database: &Database) -> String {
    let rows = database
        .texts(
            "SELECT e::text FROM email_events e UNION ALL SELECT o::text FROM orphaned_events o
             UNION ALL SELECT l::text FROM email_logs l UNION ALL SELECT encode(body, 'escape') FROM quarantined_messages
             UNION ALL SELECT x::text FROM ses_ledger_erased x UNION ALL SELECT r::text FROM ses_ledger_erasures r
             UNION ALL SELECT s::text FROM ses_ledger_suppressions s UNION ALL SELECT r::text FROM ses_ledger_suppression_removals r",
        )
        .await;
    rows.join("\n").to_lowercase()
}

async fn counts(database: &Database) -> Vec<String> {
    database
        .texts(
            "SELECT concat_ws(' ', event_type, count(*), count(DISTINCT recipient), count(DISTINCT (email_log_uuid, recipient)))
             FROM email_events GROUP BY event_type
             UNION ALL SELECT concat_ws(' ', 'orphan', event_type, count(*), count(DISTINCT recipient)) FROM orphaned_events GROUP BY event_type
             UNION ALL SELECT concat_ws(' ', aws_message_id, status, open_count, click_count, cardinality(recipients), template_name) FROM email_logs
             UNION ALL SELECT concat_ws(' ', 'quarantined', count(*), sum(times_seen)) FROM quarantined_messages ORDER BY 1",
        )
        .await
}

pub(crate) async fn erase(postgres: &Postgres, address: &str) -> ErasureReceipt {
    let mut owner = Owner::begin(postgres).await.expect("nobody is at it");
    let bare = Person::parse(address, "").expect("it is an address");
    let name = erasure::name_of(&mut owner, bare.address()).await.expect("it answers");
    let person = Person::parse(address, &name).expect("it is an address");
    let mut erasure = Erasure::begin(&mut owner, &name).await.expect("nothing is in the way");
    while erasure.step(&mut owner, &person).await.unwrap_or_else(|e| panic!("{e:#}")).is_some() {}
    let receipt = erasure.receipt(&mut owner).await.expect("it has ended");
    owner.end().await;
    receipt
}

fn to(message_id: &str, kind: EventKind, who: &str) -> Event {
    with(event(message_id, kind), |e| {
        e.recipient = Address::parse(who);
        let name = if who.to_lowercase().contains("ana.lee@") && !who.starts_with("di") { "Ana Lee" } else { "Other" };
        e.payload =
            Some(format!(r#"{{"mail":{{"destination":["{who}"],"commonHeaders":{{"to":["{name} <{who}>"]}}}}}}"#));
        e.detail.diagnostic = Some(format!("smtp; 550 5.1.1 <{who}>: no such user"));
        (e.detail.ip, e.detail.user_agent) = (Some("192.0.2.7".to_owned()), Some(format!("the phone of {name}")));
    })
}

fn click(message_id: &str) -> Event {
    with(to(message_id, EventKind::Click, ANA), |e| {
        e.detail.link = Some("https://x.org/?m=ana.lee%40example.net".to_owned())
    })
}

/// A mail to Ana alone, one to Ana and Bob, one of neither, an orphan of hers, and bodies that name her.
async fn story(database: &Database) -> Vec<Event> {
    database
        .run(
            r#"INSERT INTO email_logs (aws_message_id, sender, recipients, subject, template_name, tags, headers, body_full) VALUES
               ('one', 's@x.org', '{"Ana Lee <Ana.Lee@Example.net>"}', 'Dear Ana', 'hello', '{"user": "ana.lee@example.net"}', '{"To": "Ana"}', 'Dear Ana'),
               ('two', 's@x.org', '{"\"Lee, Ana\" <ana.lee@example.net>",bob@x.org}', 'To ana.lee@example.net and you', 'both', '{}',
                '{"To": "\"Lee, Ana\" <ana.lee@example.net>, bob@x.org"}', 'Ask ana.lee@example.net, Bob'),
               ('three', 's@x.org', '{diana.lee@example.net}', 'Hi', 'hello', '{}', '{"To": "diana.lee@example.net"}', 'Dear Diana')"#,
        )
        .await;
    let unnamed = with(opened("two", 9), |e| {
        (e.detail.ip, e.detail.user_agent) = (Some("192.0.2.7".to_owned()), Some("the phone of Ana Lee".to_owned()));
        e.payload = Some(format!(r#"{{"mail":{{"destination":["{ANA}","bob@x.org"]}}}}"#));
    });
    let events = vec![
        to("one", EventKind::Send, ANA),
        to("one", EventKind::Bounce, "rfc822; Ana.Lee@EXAMPLE.net"),
        click("one"),
        to("two", EventKind::Delivery, ANA),
        to("two", EventKind::Delivery, "bob@x.org"),
        unnamed,
        to("three", EventKind::Delivery, "diana.lee@example.net"),
        to("orphan", EventKind::Delivery, ANA),
    ];
    let mut verdicts = vec![Inserted; 7];
    verdicts.push(Orphaned);
    assert_eq!(store(&database.store(), events.clone()).await, verdicts);
    let inner = STANDARD.encode(format!(r#"{{"mail":{{"destination":["{ANA}"]}}}}"#));
    let bodies = [
        r#"{"to": "Ana <ANA.Lee@example.net>""#.to_owned(),
        format!(r#"{{"data": "{inner}""#),
        "{\"to\": \"bob@x.org\"".to_owned(),
    ];
    let rejects: Vec<_> =
        (1..).zip(&bodies).map(|(n, body)| junk(body, "invalid_json", "$", origin("sqs-1", n))).collect();
    database.store().insert(&[], &rejects).await.expect("it is stored");
    events
}

#[tokio::test]
async fn she_is_nowhere_afterwards_and_nothing_is_counted_otherwise() {
    let database = database::fresh().await;
    let postgres = database.store();
    story(&database).await;
    let before = counts(&database).await;
    let mut owner = Owner::look(&postgres).await.expect("it is the owner");
    let person = Person::parse("<ANA.LEE@example.net>", "erased:x").expect("it is an address");
    let found = erasure::look(&mut owner, &person, |_, _| {}).await.expect("it answers");
    owner.end().await;
    assert!(everything(&database).await.contains("ana.lee"), "looking changes nothing");
    let receipt = erase(&postgres, "<ANA.LEE@example.net>").await;

    let after = everything(&database).await;
    let rest = after.replace("diana", "d.");
    assert!(!rest.contains("ana.lee") && !rest.contains("ana%2elee") && !rest.contains("lee, ana"), "{rest}");
    assert!(!rest.contains("dear ana") && !rest.contains("ana lee"), "{rest}");
    assert!(!after.contains(&STANDARD.encode(format!(r#"{{"mail":{{"destination":["{ANA}"]}}}}"#)).to_lowercase()));
    assert_eq!(counts(&database).await, before);
    for kept in ["diana.lee@example.net", "dear diana", "bob@x.org", ", bob", "hello", "both", "s@x.org"] {
        assert!(after.contains(kept), "{kept} is somebody else's: {after}");
    }
    assert_eq!(
        receipt.rows.0.iter().map(|(table, rows)| format!("{table} {rows}")).collect::<Vec<_>>(),
        ["again 0", "events 5", "logs 2", "orphans 1", "quarantine 2", "suppressions 0", "unnamed 1"]
    );
    assert_eq!(found.0.values().copied().collect::<Vec<_>>(), [5, 2, 1, 2, 0], "as it was said before: {found:?}");
    let bobs = "SELECT payload::text FROM email_events WHERE recipient = 'bob@x.org' AND ip IS NOT NULL AND diagnostic IS NOT NULL";
    assert!(database.text(bobs).await.contains("bob@x.org"), "his row is whole");
    assert_eq!(
        database.text("SELECT subject FROM email_logs WHERE aws_message_id = 'two'").await,
        format!("To {} and you", receipt.name)
    );

    let again = erase(&postgres, ANA).await;
    assert_eq!((again.rows.total(), again.name), (0, receipt.name), "once is enough, and the digest stays the same");
}

#[tokio::test]
async fn an_event_that_comes_again_does_not_bring_her_back() {
    let database = database::fresh().await;
    let postgres = database.store();
    let events = story(&database).await;
    erase(&postgres, ANA).await;
    let (before, names) = (counts(&database).await, everything(&database).await);
    for _ in 0..2 {
        assert_eq!(store(&postgres, events.clone()).await, [Duplicate; 8]);
    }
    assert_eq!(counts(&database).await, before);
    assert_eq!(everything(&database).await, names);

    // What SES reports for the first time is stored, without her.
    let late = [
        to("one", EventKind::Complaint, ANA),
        click("two"),
        to("two", EventKind::Complaint, "bob@x.org"),
        opened("two", 77),
    ];
    assert_eq!(store(&postgres, late.clone()).await, [Inserted; 4]);
    assert_eq!(store(&postgres, late).await, [Duplicate; 4]);
    assert_eq!(store(&postgres, [to("orphan", EventKind::Bounce, ANA)]).await, [Orphaned]);
    let after = everything(&database).await.replace("diana", "d.");
    assert!(!after.contains("ana.lee") && !after.contains("ana lee"), "{after}");
    let bobs = "SELECT diagnostic FROM email_events WHERE event_type = 'complaint' AND recipient = 'bob@x.org'";
    assert!(database.text(bobs).await.contains("bob@x.org"));
    assert_eq!(database.text("SELECT status FROM email_logs WHERE aws_message_id = 'one'").await, "complained");

    // The orphan's mail appears, and a mail that is written to her later is another matter.
    database.run("INSERT INTO email_logs (aws_message_id) VALUES ('orphan'), ('new')").await;
    assert_eq!(orphans::sweep_all(&postgres).await.expect("nothing is in the way"), 2);
    assert_eq!(
        store(&postgres, [to("orphan", EventKind::Delivery, ANA), to("new", EventKind::Send, ANA)]).await,
        [Duplicate, Inserted]
    );
    let hers = "SELECT l.aws_message_id FROM email_events e JOIN email_logs l ON l.uuid = e.email_log_uuid WHERE recipient LIKE 'ana%'";
    assert_eq!(database.texts(hers).await, ["new"]);
}

#[tokio::test]
async fn an_erasure_that_was_cut_short_goes_on() {
    let database = database::fresh().await;
    let postgres = database.store();
    story(&database).await;
    let before = counts(&database).await;
    let mut owner = Owner::begin(&postgres).await.expect("nobody is at it");
    let name = erasure::name_of(&mut owner, ANA).await.expect("it answers");
    let person = Person::parse(ANA, &name).expect("it is an address");
    // Each step by another process.
    let mut steps = 0;
    loop {
        let mut erasure = Erasure::begin(&mut owner, &name).await.expect("nothing is in the way");
        steps += 1;
        if erasure.step(&mut owner, &person).await.expect("nothing is in the way").is_none() {
            break;
        }
        assert!(steps < 50, "it never comes to its end");
    }
    owner.end().await;
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_erasures WHERE ended_at IS NOT NULL").await, 1);
    assert_eq!(database.number("SELECT (counts->>'events')::bigint FROM ses_ledger_erasures").await, 5);
    assert!(!everything(&database).await.replace("diana", "d.").contains("ana.lee"));
    assert_eq!(counts(&database).await, before);
}

/// A row that was stored under the digest while the older one still had the address: one of them is enough.
#[tokio::test]
async fn a_double_that_came_between_is_counted_once() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = database.log("m").await;
    let open = with(to("m", EventKind::Open, ANA), |e| e.detail.diagnostic = None);
    assert_eq!(store(&postgres, [open.clone(), to("m", EventKind::Send, ANA)]).await, [Inserted; 2]);
    database.run("INSERT INTO ses_ledger_erased SELECT 'm', ses_ledger_erased_name('ana.lee@example.net')").await;
    assert_eq!(store(&postgres, [open.clone(), to("m", EventKind::Send, ANA)]).await, [Inserted; 2], "the window");
    erase(&postgres, ANA).await;
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 2);
    assert_eq!(database.number("SELECT open_count::bigint FROM email_logs").await, 1);
    assert_eq!(store(&postgres, [open, to("m", EventKind::Send, ANA)]).await, [Duplicate; 2]);
    assert_ne!(log, Uuid::nil());
}

/// Dead letters are redriven long after: those that cannot be understood go to quarantine whole.
#[tokio::test]
async fn a_body_that_comes_to_quarantine_after_the_erasure_does_not_bring_her_back() {
    let database = database::fresh().await;
    let postgres = connect(&login(&database, &["ses_ledger_worker"]).await);
    story(&database).await;
    erase(&database.store(), ANA).await;
    let inner = STANDARD.encode(r#"{"mail":{"messageId":"two","destination":["Ana.Lee@example.net"]}}"#);
    let bodies = [
        r#"{"mail":{"messageId":"one","destination":["\"Lee, Ana\" <ANA.Lee@example.net>","bob@x.org"]},"eventType":"#
            .to_owned(),
        r#"{"Message":"{\"messageId\":\"orphan\",\"to\":\"ana.lee\u0040example.net\""#.to_owned(),
        format!(r#"{{"data": "{inner}""#),
        // A mail that was written to her since, and one of somebody else.
        r#"{"messageId":"newer","to":"ana.lee@example.net""#.to_owned(),
        r#"{"messageId":"one","to":"diana.lee@example.net""#.to_owned(),
    ];
    let rejects: Vec<_> =
        (10..).zip(&bodies).map(|(n, body)| junk(body, "invalid_json", "$", origin("sqs-9", n))).collect();
    let before = database.number("SELECT count(*) FROM quarantined_messages").await;
    for _ in 0..2 {
        postgres.insert(&[], &rejects).await.expect("it is stored");
        let kept = "SELECT encode(body, 'escape') FROM quarantined_messages WHERE sqs_message_id = 'sqs-9' ORDER BY receive_count";
        let kept = database.texts(kept).await;
        assert_eq!(
            database.number("SELECT count(*) FROM quarantined_messages").await,
            before + 5,
            "each is known again"
        );
        for body in &kept[..3] {
            assert!(body.contains("erased:") && !body.to_lowercase().contains("ana.lee"), "{body}");
        }
        assert!(!kept[0].contains("Lee, Ana"), "{kept:?}");
        assert!(kept[0].contains("bob@x.org") && !kept[2].contains(&inner), "{kept:?}");
        assert_eq!(kept[3..], bodies[3..]);
    }
}

#[tokio::test]
async fn without_the_secrets_nobody_is_known_and_everything_is_stored() {
    let database = database::fresh().await;
    let postgres = connect(&login(&database, &["ses_ledger_worker"]).await);
    story(&database).await;
    erase(&database.store(), ANA).await;
    database.run("DELETE FROM ses_ledger_erasure_key").await;
    let late = [opened("two", 99), to("two", EventKind::Complaint, "bob@x.org"), to("one", EventKind::Complaint, ANA)];
    assert_eq!(store(&postgres, late.clone()).await, [Inserted; 3]);
    assert_eq!(store(&postgres, late).await, [Duplicate; 3]);
}

#[tokio::test]
async fn many_rows_without_her_come_before_hers() {
    let database = database::fresh().await;
    let postgres = database.store();
    database
        .run(
            "INSERT INTO email_logs (recipients) SELECT '{bob@x.org}' FROM generate_series(1, 4500);
             SELECT email_events_ensure_ahead(1), email_events_ensure_month(now());
             INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, queue, sqs_message_id, received_at)
             SELECT ses_ledger_uuid_v7(), uuid, 'send', now(), 'bob@x.org', 'q', 's', now() FROM email_logs",
        )
        .await;
    story(&database).await;
    let mut owner = Owner::look(&postgres).await.expect("it is the owner");
    let person = Person::parse(ANA, "erased:x").expect("it is an address");
    let mut told = Vec::new();
    let found = erasure::look(&mut owner, &person, |stage, seen| told.push((stage, seen))).await.expect("it answers");
    owner.end().await;
    assert_eq!(["events", "logs", "orphans", "quarantine"].map(|class| found.0[class]), [5, 2, 1, 2], "{found:?}");
    for (stage, rows) in [("events", 4_507), ("orphans", 1), ("logs", 4_503), ("quarantine", 3)] {
        assert_eq!(told.iter().rfind(|(it, _)| *it == stage).map(|(_, seen)| *seen), Some(rows), "{stage}: {told:?}");
    }
    assert_eq!(erase(&postgres, ANA).await.rows.0["events"], 5);
}
