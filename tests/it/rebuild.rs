//! Facts follow from stored events: whatever somebody did to them, they can be computed again, and nothing else is lost by it.

use std::time::Duration;

use ses_ledger::{
    adoption::shape::{From, Shape},
    event::{Address, Event, EventKind},
    local::story::{Mess, Step, Story, StorySettings},
    orphans,
    postgres::{
        Postgres,
        letting_go::Owner,
        rebuild::{self, Change, Difference, Looked, Scope},
    },
    retention::{Retention, Run},
};
use sqlx::{Acquire as _, Executor as _};
use time::macros::datetime;
use uuid::Uuid;

use crate::{
    adoption,
    arrivals::{at, event, opened, store, store_patiently, with},
    database::{self, Database, connect},
    truth::assert_exact,
    worker::{Queue, Running, settings},
};

const DEFAULT: Scope = Scope { from: None, to: None, mail: None, strict: false };
const STRICT: Scope = Scope { strict: true, ..DEFAULT };

/// All facts of all mails.
const FACTS: &str = "SELECT concat_ws(' ', uuid, status, sent_at, '|', delivered_at, '|', delayed_at, '|', bounced_at, '|', complained_at,
    '|', rejected_at, '|', failed_at, '|', opened_at, '|', clicked_at, '|', open_count, click_count, bounce_class) FROM email_logs ORDER BY uuid";
const FORGET: &str = "UPDATE email_logs SET sent_at = NULL, delivered_at = NULL, delayed_at = NULL, bounced_at = NULL,
    complained_at = NULL, rejected_at = NULL, failed_at = NULL, opened_at = NULL, clicked_at = NULL, open_count = 0,
    click_count = 0, bounce_class = NULL";

/// Of these mails `l`, the rows tell the whole truth.
const WHOLE: &str = "(SELECT (delayed, bounced, complained, class) IS NOT DISTINCT FROM (delayed_at, bounced_at, complained_at, bounce_class)
    FROM (SELECT min(occurred_at) FILTER (WHERE fact = 'delayed') AS delayed, min(occurred_at) FILTER (WHERE fact = 'bounced') AS bounced,
                 min(occurred_at) FILTER (WHERE fact = 'complained') AS complained, max(c) AS class
          FROM (SELECT occurred_at, ses_ledger_fact(event_type, complaint_type, complaint_subtype) AS fact,
                       ses_ledger_bounce_class_of(event_type, bounce_type, complaint_subtype) AS c
                FROM email_events AS e WHERE e.email_log_uuid = l.uuid) AS e) AS s)";

async fn look(postgres: &Postgres, scope: &Scope) -> Looked {
    rebuild::look(postgres, scope, &mut |_| {}).await.unwrap_or_else(|e| panic!("the tables are there: {e:#}"))
}

async fn difference(database: &Database, scope: &Scope) -> Difference {
    look(&database.store(), scope).await.difference
}

/// Looks and applies; says what was applied.
async fn rebuild(postgres: &Postgres, scope: &Scope) -> Difference {
    let looked = look(postgres, scope).await;
    let mut owner = Owner::begin(postgres).await.expect("nobody is at it");
    let done = rebuild::apply(&mut owner, scope, &looked, &mut |_| {}).await;
    owner.end().await;
    done.unwrap_or_else(|e| panic!("nothing is in the way: {e:#}"))
}

/// `fact change: mails`, line by line.
fn lines(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|Change { fact, change, mails, .. }| format!("{fact} {change}: {mails}")).collect()
}

/// A database with everything that a story of many mails leaves in it.
async fn inhabited(seed: u64, mails: usize) -> (Database, Story) {
    // In any order: so also the second of two delays comes first.
    let calm = StorySettings::new(seed, mails, datetime!(2026-10-05 08:00 UTC));
    let mess = Mess { second_delays: 1.0, ..Mess::default() };
    let story = Story::tell(&StorySettings { mess, ..calm }).shuffled(seed);
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let running = Running::start(&queue.url, database.store(), settings()).await;
    for step in story.steps() {
        match step {
            Step::WriteLog(row) => database.write_log(&row).await,
            Step::Publish(body) => drop(queue.handle.send(&body)),
        }
    }
    queue.drained().await;
    running.stop().await;
    orphans::sweep_all(&database.store()).await.expect("the database is there");
    (database, story)
}

/// One mail for each way in which an event can be: every kind with every type that a rule asks for, and some that none knows.
fn of_every_kind() -> Vec<Event> {
    let kinds = [
        EventKind::Send,
        EventKind::Delivery,
        EventKind::Bounce,
        EventKind::Complaint,
        EventKind::Reject,
        EventKind::Open,
        EventKind::Click,
        EventKind::RenderingFailure,
        EventKind::DeliveryDelay,
        EventKind::Subscription,
        EventKind::Other("novelty".to_owned()),
    ];
    let types = [
        None,
        Some("Permanent"),
        Some("Transient"),
        Some("Undetermined"),
        Some("not-spam"),
        Some("Not-Spam"),
        Some("abuse"),
    ];
    let mut all = Vec::new();
    for kind in &kinds {
        for kind_of in types {
            for subtype in [None, Some("OnAccountSuppressionList")] {
                all.push(with(event(&format!("m{}", all.len()), kind.clone()), |e| {
                    e.detail.bounce_type = kind_of.map(str::to_owned);
                    e.detail.complaint_type = kind_of.map(str::to_owned);
                    e.detail.complaint_subtype = subtype.map(str::to_owned);
                }));
            }
        }
    }
    all
}

/// The statement that stores, and the one that rebuilds, know the same rules.
#[tokio::test]
async fn what_is_rebuilt_is_what_was_stored_for_every_kind_of_event() {
    let database = database::fresh().await;
    let (postgres, events) = (database.store(), of_every_kind());
    for event in &events {
        database.log(event.message_id.as_str()).await;
    }
    store(&postgres, events.clone()).await;
    let facts = database.texts(FACTS).await;
    let found = difference(&database, &STRICT).await;
    assert_eq!((found.mails, found.events), (events.len() as u64, events.len() as u64));
    assert_eq!((found.differ, &found.changes, &found.without_event), (0, &vec![], &vec![]));

    database.run(FORGET).await;
    let done = rebuild(&postgres, &DEFAULT).await;
    assert_eq!(database.texts(FACTS).await, facts);
    let status = |line: &&String| line.starts_with("status");
    assert_eq!(
        lines(&done.changes).iter().filter(status).collect::<Vec<_>>(),
        [
            // 7 types of a complaint with a subtype, and 12 bounces that are not transient.
            "status queued → bounced: 19",
            "status queued → clicked: 14",
            "status queued → complained: 5",
            "status queued → delayed: 14",
            "status queued → delivered: 14",
            "status queued → failed: 14",
            "status queued → opened: 14",
            "status queued → rejected: 14",
            "status queued → sent: 14",
            "status queued → soft_bounced: 2"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untidy_story_has_no_difference_and_each_damage_is_named_and_mended() {
    let (database, story) = inhabited(12, 500).await;
    let postgres = database.store();
    assert_exact(&database, &story.truth).await;
    let truth = database.texts(FACTS).await;
    let clean = difference(&database, &DEFAULT).await;
    assert_eq!((clean.differ, lines(&clean.changes)), (0, vec![]));
    assert!(clean.mails > 400 && clean.events > clean.mails, "{clean:?}");
    // Two delays, and two bounces, of one recipient share one row: what the other one told stays.
    assert!(
        lines(&clean.without_event).iter().any(|line| line.starts_with("delayed_at before its events")),
        "{clean:?}"
    );

    let facts = [
        "sent_at",
        "delivered_at",
        "delayed_at",
        "bounced_at",
        "complained_at",
        "rejected_at",
        "failed_at",
        "opened_at",
        "clicked_at",
    ];
    for fact in facts {
        let told = format!(
            "SELECT uuid::text FROM email_logs AS l WHERE {fact} IS NOT NULL AND {WHOLE} ORDER BY uuid LIMIT 1"
        );
        let mail = database.text(&told).await;
        for (damage, word) in [("NULL", "set"), (&*format!("{fact} + interval '3 hours'"), "earlier")] {
            database.run(&format!("UPDATE email_logs SET {fact} = {damage} WHERE uuid = '{mail}'")).await;
            let found = difference(&database, &DEFAULT).await;
            let changes: Vec<String> =
                lines(&found.changes).into_iter().filter(|line| !line.starts_with("status")).collect();
            assert_eq!((found.differ, changes), (1, vec![format!("{fact} {word}: 1")]), "{damage}");
            assert_eq!(found.without_event, clean.without_event);
            let done = rebuild(&postgres, &DEFAULT).await;
            assert_eq!((done.changes, done.differ), (found.changes, 1));
            assert_eq!(database.texts(FACTS).await, truth);
        }
        // Told of too early: an event without a row may have said so. Only who is strict, and of this mail, has it mended.
        database
            .run(&format!("UPDATE email_logs SET {fact} = {fact} - interval '7 minutes' WHERE uuid = '{mail}'"))
            .await;
        let found = difference(&database, &DEFAULT).await;
        assert_eq!(found.differ, 0, "{fact}: {found:?}");
        assert_ne!(found.without_event, clean.without_event, "{fact}");
        let only = Scope { mail: Some(mail.parse().expect("it is an id")), ..STRICT };
        assert_eq!(lines(&rebuild(&postgres, &only).await.changes), [format!("{fact} later: 1")]);
        assert_eq!(database.texts(FACTS).await, truth);
    }

    for (damage, mended) in [
        ("open_count = open_count - 1 WHERE open_count > 0", "open_count higher: 1"),
        ("click_count = 0 WHERE click_count > 0", "click_count higher: 1"),
        ("bounce_class = 'transient' WHERE bounce_class = 'permanent'", "bounce_class transient → permanent: 1"),
        ("bounce_class = NULL WHERE bounce_class = 'transient'", "bounce_class none → transient: 1"),
    ] {
        let (set, condition) = damage.split_once(" WHERE ").expect("it has a condition");
        database
            .run(&format!(
                "UPDATE email_logs SET {set} WHERE uuid = (SELECT uuid FROM email_logs AS l WHERE {condition} AND {WHOLE} LIMIT 1)"
            ))
            .await;
        let done = rebuild(&postgres, &DEFAULT).await;
        assert!(lines(&done.changes).contains(&mended.to_owned()), "{damage}: {done:?}");
        assert_eq!(database.texts(FACTS).await, truth);
    }
    let notes = "SELECT count(*) FROM ses_ledger_rebuilds WHERE ended_at IS NOT NULL AND changed ->> 'differ' = '1' AND run_by = session_user";
    assert_eq!(database.number(notes).await, 9 * 3 + 4);
}

#[tokio::test]
async fn facts_are_rebuilt_the_same_whatever_came_first() {
    let mut answers = Vec::new();
    for turn in 0..6 {
        let database = database::fresh().await;
        let log = database.log_of(Uuid::from_u128(0x01a1_b7cb_c09e_78d9_98ae_a9c9_4b52_23c3), Some("m")).await;
        let bounce = |seconds, kind: &str| {
            with(event("m", EventKind::Bounce), |e| {
                e.occurred_at = at(seconds);
                e.recipient = Address::parse(&format!("r{seconds}@example.com"));
                e.detail.bounce_type = Some(kind.to_owned());
            })
        };
        let mut events = vec![
            event("m", EventKind::Send),
            opened("m", 40),
            opened("m", 30),
            bounce(20, "Transient"),
            bounce(25, "Permanent"),
            with(event("m", EventKind::Delivery), |e| e.occurred_at = at(3)),
        ];
        events.rotate_left(turn);
        for event in events {
            store(&database.store(), [event]).await;
        }
        let facts = database.texts(FACTS).await;
        database.run(FORGET).await;
        rebuild(&database.store(), &Scope { mail: Some(log), ..DEFAULT }).await;
        assert_eq!(database.texts(FACTS).await, facts);
        answers.extend(facts);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[tokio::test]
async fn a_changed_rule_is_a_difference_and_can_be_taken_back() {
    let database = database::fresh().await;
    let postgres = database.store();
    let complaint = |id: &str, kind: Option<&str>, subtype: Option<&str>| {
        with(event(id, EventKind::Complaint), |e| {
            e.detail.complaint_type = kind.map(str::to_owned);
            e.detail.complaint_subtype = subtype.map(str::to_owned);
        })
    };
    for id in ["abuse", "not-spam", "suppressed", "opened"] {
        database.log(id).await;
        store(&postgres, [event(id, EventKind::Delivery)]).await;
    }
    let events = [
        complaint("abuse", Some("abuse"), None),
        complaint("not-spam", Some("not-spam"), None),
        complaint("suppressed", None, Some("OnAccountSuppressionList")),
        opened("opened", 5),
        opened("opened", 6),
    ];
    store(&postgres, events).await;
    let before = database.texts(FACTS).await;
    assert!(difference(&database, &DEFAULT).await.is_empty());

    // By another rule, complaints of every kind are complaints, and opens are nothing.
    let rule = database.text("SELECT pg_get_functiondef('ses_ledger_fact'::regproc)").await;
    database
        .run(
            "CREATE OR REPLACE FUNCTION ses_ledger_fact(event_type text, complaint_type text, complaint_subtype text) RETURNS text
             LANGUAGE sql IMMUTABLE PARALLEL SAFE
             RETURN CASE event_type WHEN 'delivery' THEN 'delivered' WHEN 'complaint' THEN 'complained' END",
        )
        .await;
    let class = database.text("SELECT pg_get_functiondef('ses_ledger_bounce_class_of'::regproc)").await;
    database
        .run(
            "CREATE OR REPLACE FUNCTION ses_ledger_bounce_class_of(event_type text, bounce_type text, complaint_subtype text)
             RETURNS ses_ledger_bounce_class LANGUAGE sql IMMUTABLE PARALLEL SAFE
             RETURN CASE event_type WHEN 'bounce' THEN 'permanent'::ses_ledger_bounce_class END",
        )
        .await;
    let found = difference(&database, &DEFAULT).await;
    let changes = [
        "status bounced → complained: 1",
        "status delivered → complained: 1",
        "status opened → delivered: 1",
        "bounced_at removed: 1",
        "bounce_class permanent → none: 1",
        "complained_at set: 2",
        "opened_at removed: 1",
        "open_count lower: 1",
    ];
    assert_eq!((lines(&found.changes), lines(&found.without_event)), (changes.map(str::to_owned).to_vec(), vec![]));
    assert_eq!(lines(&rebuild(&postgres, &DEFAULT).await.changes), changes);
    assert_ne!(database.texts(FACTS).await, before);

    database.run(&rule).await;
    database.run(&class).await;
    rebuild(&postgres, &DEFAULT).await;
    assert_eq!(database.texts(FACTS).await, before);
}

#[tokio::test]
async fn what_no_stored_event_shows_is_left_and_counted_unless_somebody_is_strict() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.log("m").await;
    let bounce = |seconds, kind: &str| {
        with(event("m", EventKind::Bounce), |e| {
            (e.occurred_at, e.detail.bounce_type) = (at(seconds), Some(kind.to_owned()))
        })
    };
    // The milder one has the row.
    for event in
        [event("m", EventKind::Send), bounce(20, "Transient"), bounce(10, "Permanent"), opened("m", 5), opened("m", 6)]
    {
        store(&postgres, [event]).await;
    }
    let facts = database.texts(FACTS).await;
    database.run("DELETE FROM email_events WHERE event_type = 'send' OR occurred_at = '2026-10-05 08:00:05+00'").await;
    let left = [
        "sent_at no event: 1",
        "bounced_at before its events: 1",
        "bounce_class permanent, by its events transient: 1",
        "opened_at before its events: 1",
        "open_count more than its events: 1",
    ];
    let found = difference(&database, &DEFAULT).await;
    assert_eq!((found.differ, lines(&found.without_event)), (0, left.map(str::to_owned).to_vec()));
    assert_eq!(rebuild(&postgres, &DEFAULT).await, Difference::default());
    assert_eq!(database.texts(FACTS).await, facts);

    let done = rebuild(&postgres, &STRICT).await;
    let taken = [
        "status bounced → opened: 1",
        "sent_at removed: 1",
        "bounced_at later: 1",
        "bounce_class permanent → transient: 1",
        "opened_at later: 1",
        "open_count lower: 1",
    ];
    assert_eq!(lines(&done.changes), taken);
    assert_eq!(difference(&database, &STRICT).await.without_event, []);
}

#[tokio::test]
async fn mails_whose_events_were_let_go_are_not_touched() {
    let database = database::fresh().await;
    let postgres = database.store();
    let old = "0192462e-0000-7000-8000-000000000001".parse().expect("it is an id"); // October 2024
    // Ids that tell no time go by the time of their row.
    let timeless: Uuid = "f192462e-0000-4000-8000-000000000002".parse().expect("it is an id");
    database.log_of(old, Some("old")).await;
    database.log_of(timeless, Some("timeless")).await;
    database.run(&format!("UPDATE email_logs SET created_at = '2024-10-01' WHERE uuid = '{timeless}'")).await;
    database.log("new").await;
    for id in ["old", "timeless", "new"] {
        store(&postgres, [event(id, EventKind::Delivery), opened(id, 5)]).await;
    }
    let keep = Retention { retention_events: Some(Duration::from_secs(90 * 24 * 3600)), ..Retention::default() };
    let run = Run { postgres: &postgres, retention: &keep, export: None, tell: &mut |_| {} }.go().await;
    run.unwrap_or_else(|e| panic!("nothing is in the way: {e:#}"));
    // What comes late still reaches the mail.
    store(&postgres, [event("old", EventKind::Complaint)]).await;
    let facts = database.texts(FACTS).await;
    for scope in [DEFAULT, STRICT] {
        let found = difference(&database, &scope).await;
        assert_eq!((found.mails, found.events, found.differ), (1, 2, 0), "{found:?}");
        assert_eq!(found.without_event, []);
        rebuild(&postgres, &scope).await;
    }
    assert_eq!(database.texts(FACTS).await, facts);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_adopted_stays() {
    let database = database::fresh().await;
    adoption::fill_phoenix_kit(&database, 300).await;
    adoption::run(&adoption::prepare(&database, adoption::phoenix_kit()).await).await;
    let facts = database.texts(FACTS).await;
    for scope in [DEFAULT, STRICT] {
        let found = difference(&database, &scope).await;
        assert_eq!((found.differ, &found.without_event), (0, &vec![]), "{found:?}");
    }
    database.run(FORGET).await;
    rebuild(&database.store(), &DEFAULT).await;
    assert_eq!(database.texts(FACTS).await, facts);
    adoption::assert_facts(&database).await;

    // Events alone, for mails that are here.
    let events_only = database::fresh().await;
    adoption::fill_phoenix_kit(&events_only, 300).await;
    events_only
        .run("INSERT INTO email_logs (uuid, aws_message_id) SELECT uuid, ses_id FROM pk_mails WHERE n % 50 <> 7")
        .await;
    let shape = Shape::new(From::PhoenixKit, None, Some("none"), None, &[]).expect("it is ready-made");
    adoption::run(&adoption::prepare(&events_only, shape).await).await;
    assert!(events_only.number("SELECT count(*) FROM email_logs WHERE status <> 'queued'").await > 100);
    assert_eq!(difference(&events_only, &STRICT).await.differ, 0);
}

#[tokio::test]
async fn only_the_mails_that_were_asked_for_are_looked_at() {
    let database = database::fresh().await;
    let months = [
        "019a4703-7400-7000-8000-000000000001",
        "019ae182-3c00-7000-8000-000000000002",
        "019b8127-6000-7000-8000-000000000003",
    ];
    // November, December 2025, January 2026.
    for (n, id) in months.iter().enumerate() {
        database.log_of(id.parse().expect("it is an id"), Some(&format!("m{n}"))).await;
        store(&database.store(), [event(&format!("m{n}"), EventKind::Send)]).await;
    }
    database.run(FORGET).await;
    let found = async |from, to| {
        let scope = Scope { from, to, ..DEFAULT };
        let changes = difference(&database, &scope).await.changes;
        changes.into_iter().find(|c| c.fact == "sent_at").map(|c| c.examples).unwrap_or_default()
    };
    let (november, december) = (datetime!(2025-11-01 00:00 UTC), datetime!(2025-12-01 00:00 UTC));
    assert_eq!(found(None, None).await, months);
    assert_eq!(found(Some(december), None).await, months[1..]);
    assert_eq!(found(Some(november), Some(december)).await, months[..1]);
    assert_eq!(found(None, Some(november)).await, [""; 0]);
    let one = Scope { mail: Some(months[1].parse().expect("it is an id")), ..DEFAULT };
    let done = rebuild(&database.store(), &one).await;
    assert_eq!((done.mails, done.differ), (1, 1));
    assert_eq!(found(None, None).await, [months[0], months[2]]);
}

/// A statement that is under way has seen that its event adds nothing to the mail, and does not look again.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_being_stored_is_not_lost_where_something_is_taken_away() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = database.log("m").await;
    // Told of too early, by nothing that is stored.
    database.run("UPDATE email_logs SET delivered_at = '2026-10-05 07:00:00+00'").await;
    let mut connection = database.pool.acquire().await.expect("it is there");
    let mut storing = connection.begin().await.expect("it is there");
    let event = format!(
        "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, queue, sqs_message_id, received_at)
         VALUES (gen_random_uuid(), '{log}', 'delivery', '2026-10-05 08:00:01+00', 'q', 's', now())"
    );
    database.run("SELECT email_events_ensure_month(now())").await;
    storing.execute(sqlx::AssertSqlSafe(event)).await.expect("the mail is there");
    let rebuilding = tokio::spawn({
        let postgres = postgres.clone();
        async move { rebuild(&postgres, &STRICT).await }
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'ShareLock' AND relation = 'email_events'::regclass";
    crate::binary::until("it waits for who stores", async || database.number(waits).await == 1).await;
    storing.commit().await.expect("it is there");
    let done = rebuilding.await.expect("it does not panic");
    assert_eq!(lines(&done.changes), ["delivered_at later: 1"]);
    assert!(difference(&database, &STRICT).await.is_empty());
}

/// The event is not committed when the mail is compared, and the mail is by the time it is written.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_being_stored_is_counted() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = database.log("m").await;
    store(&postgres, [event("m", EventKind::Delivery)]).await;
    database.run("UPDATE email_logs SET delivered_at = NULL").await;
    let mut connection = database.pool.acquire().await.expect("it is there");
    let mut storing = connection.begin().await.expect("it is there");
    let event = format!(
        "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, queue, sqs_message_id, received_at)
         VALUES (gen_random_uuid(), '{log}', 'open', '2026-10-05 08:00:05+00', 'q', 's', now());
         UPDATE email_logs SET opened_at = '2026-10-05 08:00:05+00', open_count = open_count + 1"
    );
    storing.execute(sqlx::AssertSqlSafe(event)).await.expect("the mail is there");
    let rebuilding = tokio::spawn(async move { rebuild(&postgres, &DEFAULT).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    crate::binary::until("it waits for the mail", async || database.number(waits).await == 1).await;
    storing.commit().await.expect("it is there");
    let done = rebuilding.await.expect("it does not panic");
    assert_eq!(lines(&done.changes), ["delivered_at set: 1"], "opened it is, and says so");
    assert_eq!(database.text("SELECT concat_ws(' ', status, open_count) FROM email_logs").await, "opened 1");
    assert!(difference(&database, &STRICT).await.is_empty());
}

/// Workers store all kinds into a few mails, while these are forgotten and rebuilt again and again.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_everybody_stores() {
    const MAILS: usize = 40;
    let database = database::fresh().await;
    for n in 0..MAILS {
        database.log(&format!("m{n}")).await;
    }
    let workers: Vec<_> = (0..3_i64)
        .map(|worker| {
            let postgres = connect(&database.url);
            tokio::spawn(async move {
                for round in 0..40 {
                    let batch = (0..60_i64).map(|n| {
                        let id = format!("m{}", (n * 7 + round * 3 + worker) as usize % MAILS);
                        let seconds = (n * 31 + round * 17 + worker * 5) % 5_000;
                        let kinds = [
                            EventKind::Open,
                            EventKind::Click,
                            EventKind::Delivery,
                            EventKind::Bounce,
                            EventKind::Send,
                        ];
                        let kind = kinds[(n + round) as usize % kinds.len()].clone();
                        let class = if seconds % 3 == 0 { "Permanent" } else { "Transient" };
                        with(event(&id, kind), |e| {
                            e.occurred_at = at(seconds);
                            // Each of its own: so the rows tell the whole truth.
                            e.recipient = Address::parse(&format!("r{seconds}@example.com"));
                            e.detail.bounce_type = Some(class.to_owned());
                        })
                    });
                    store_patiently(&postgres, &crate::arrivals::arrivals(batch)).await;
                }
            })
        })
        .collect();
    let (mut rounds, mut changed) = (0, 0);
    while workers.iter().any(|worker| !worker.is_finished()) || rounds < 5 {
        // Some mails forget everything; in every other round, others believe in what never was, so that something is taken away.
        // Nobody stores at the moment of the damage, or it would lose facts by itself.
        let scope = if rounds % 2 == 0 { DEFAULT } else { STRICT };
        let more = match scope.strict {
            true => {
                "UPDATE email_logs SET sent_at = '2026-01-01', opened_at = '2026-01-01', open_count = 900, bounce_class = 'permanent'
                 WHERE aws_message_id LIKE 'm2%';"
            }
            false => "",
        };
        database
            .run(&format!(
                "BEGIN; LOCK TABLE ONLY email_events IN SHARE MODE; {FORGET} WHERE aws_message_id LIKE 'm1%'; {more} COMMIT"
            ))
            .await;
        changed += rebuild(&database.store(), &scope).await.differ;
        rounds += 1;
    }
    for worker in workers {
        worker.await.expect("it does not panic");
    }
    assert!(changed > 0);
    let found = difference(&database, &STRICT).await;
    assert_eq!((found.differ, &found.changes), (0, &vec![]), "after {rounds} rounds");
    let counted = "SELECT (sum(open_count) + sum(click_count))::bigint FROM email_logs";
    let rows = "SELECT count(*) FROM email_events WHERE event_type IN ('open', 'click')";
    assert_eq!(database.number(counted).await, database.number(rows).await);
}

#[tokio::test]
async fn only_one_at_a_time_changes_something() {
    let database = database::fresh().await;
    let postgres = database.store();
    let first = Owner::begin(&postgres).await.expect("nobody is at it");
    let second = Owner::begin(&postgres).await.err().expect("somebody is");
    assert!(second.to_string().contains("another retention, erasure or rebuild is under way"), "{second}");
    first.end().await;
}
