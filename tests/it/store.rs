//! One batch after the other and many at once: every event gets its verdict, and the rows are exact.

use std::{collections::BTreeSet, fs, time::Duration};

use ses_ledger::{
    event::{Address, Event, EventKind, Source},
    orphans,
    pipeline::{
        Store as _, StoreError,
        Verdict::{Duplicate, Inserted, Orphaned},
        batch::{Arrival, Quarantined, Stage},
        decode::{DecodeSettings, Outcome, PayloadPolicy, decode},
    },
    postgres::{Postgres, PostgresSettings},
};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::{
    arrivals::{arrivals, at, event, junk, opened, origin, store, store_patiently, tagged, with},
    database::{self, Database},
};

const EVENTS: &str = "SELECT count(*) FROM email_events";
const ORPHANS: &str = "SELECT count(*) FROM orphaned_events";

#[tokio::test]
async fn every_event_has_its_verdict_in_the_order_of_the_batch() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.log("known").await;
    let batch = || {
        [
            event("known", EventKind::Send),
            event("unknown", EventKind::Send),
            event("known", EventKind::Send),
            event("known", EventKind::Delivery),
            event("unknown", EventKind::Send),
            event("unknown", EventKind::Delivery),
        ]
    };
    let first = [Inserted, Orphaned, Duplicate, Inserted, Duplicate, Orphaned];
    assert_eq!(store(&postgres, batch()).await, first);
    assert_eq!(store(&postgres, batch()).await, [Duplicate; 6]);
    assert_eq!(store(&postgres, []).await, []);
    assert_eq!((database.number(EVENTS).await, database.number(ORPHANS).await), (2, 2));
}

#[tokio::test]
async fn each_recipient_has_a_row_of_its_own() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.log("m").await;
    let to = |who: &str, seconds| {
        with(event("m", EventKind::Delivery), |e| (e.recipient, e.occurred_at) = (Address::parse(who), at(seconds)))
    };
    let verdicts = store(&postgres, [to("a@x.org", 9), to("b@x.org", 5), to("a@x.org", 7), to("", 8)]).await;
    assert_eq!(verdicts.iter().filter(|v| **v == Inserted).count(), 3, "a, b and the message itself: {verdicts:?}");
    assert_eq!(store(&postgres, [to("b@x.org", 3)]).await, [Duplicate]);
    assert_eq!(database.number(EVENTS).await, 3);
    let delivered = "SELECT extract(epoch FROM delivered_at)::bigint FROM email_logs";
    assert_eq!(
        database.number(delivered).await,
        at(3).unix_timestamp(),
        "the earliest, also of a report whose row was there"
    );
}

#[tokio::test]
async fn links_clicked_in_the_same_millisecond_stay_apart() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.log("m").await;
    let long = |end: &str| format!("https://x.org/{}{end}", "z".repeat(9_000));
    let click = |link: &str| with(event("m", EventKind::Click), |e| e.detail.link = Some(link.to_owned()));
    let batch = || {
        [
            click("https://x.org/a"),
            click("https://x.org/b"),
            click(&long("1")),
            click(&long("2")),
            event("m", EventKind::Click),
        ]
    };
    assert_eq!(store(&postgres, batch()).await, [Inserted; 5]);
    assert_eq!(store(&postgres, batch()).await, [Duplicate; 5]);
    assert_eq!(store(&postgres, [opened("m", 1), opened("m", 2), opened("m", 1)]).await[..2], [Inserted, Inserted]);
    assert_eq!(database.number("SELECT click_count::bigint FROM email_logs").await, 5);
    assert_eq!(database.number("SELECT open_count::bigint FROM email_logs").await, 2);
    assert_eq!(database.number("SELECT max(length(link))::bigint FROM email_events").await, 9_015);
}

#[tokio::test]
async fn what_is_stored_is_what_was_reported() {
    let database = database::fresh().await;
    let full = |id: &str| {
        with(event(id, EventKind::Bounce), |e| {
            for (n, text) in detail_fields(e).into_iter().enumerate() {
                *text = Some(format!("text {n}"));
            }
            e.candidate = true;
            e.payload = Some(r#"{"a": [1, "ü"]}"#.to_owned());
            e.source = Source { sns_message_id: Some("sns".to_owned()), eventbridge_id: Some("bridge".to_owned()) };
        })
    };
    database.log("known").await;
    assert_eq!(store(&database.store(), [full("known"), full("unknown")]).await, [Inserted, Orphaned]);
    for table in ["email_events", "orphaned_events"] {
        let row = format!(
            "SELECT concat_ws('|', event_type, occurred_at AT TIME ZONE 'UTC', time_source, recipient, candidate, bounce_type,
               bounce_subtype, smtp_status, diagnostic, complaint_type, complaint_subtype, delay_type, link, ip, user_agent,
               bot, feedback_id, reporting_mta, payload, queue, sqs_message_id, sns_message_id, eventbridge_id,
               received_at AT TIME ZONE 'UTC') FROM {table}"
        );
        let expected = "bounce|2026-10-05 08:00:01|event|bob@example.com|t|text 0|text 1|text 2|text 3|text 4|text 5|text 6|\
                        text 7|text 8|text 9|text 10|text 11|text 12|{\"a\": [1, \"ü\"]}|ses-events|0f8e5a2c-sqs|sns|bridge|\
                        2026-10-05 08:01:00";
        assert_eq!(database.text(&row).await, expected, "{table}");
    }
}

/// In the order of the columns.
fn detail_fields(event: &mut Event) -> [&mut Option<String>; 13] {
    let d = &mut event.detail;
    [
        &mut d.bounce_type,
        &mut d.bounce_subtype,
        &mut d.smtp_status,
        &mut d.diagnostic,
        &mut d.complaint_type,
        &mut d.complaint_subtype,
        &mut d.delay_type,
        &mut d.link,
        &mut d.ip,
        &mut d.user_agent,
        &mut d.bot,
        &mut d.feedback_id,
        &mut d.reporting_mta,
    ]
}

#[tokio::test]
async fn a_tag_finds_the_log_and_fills_in_the_id() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = database.log_of(Uuid::now_v7(), None).await;
    assert_eq!(store(&postgres, [tagged("ses-1", EventKind::Send, log)]).await, [Inserted]);
    check_id(&database, log, "ses-1").await;
    // From now on the id alone is enough.
    assert_eq!(store(&postgres, [event("ses-1", EventKind::Delivery)]).await, [Inserted]);
    assert_eq!(database.text("SELECT status FROM email_logs").await, "delivered");
}

#[tokio::test]
async fn an_id_that_is_there_is_not_written_over() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = database.log("ses-1").await;
    // Sent twice under one log: both histories belong to it, and it keeps the id that it has.
    assert_eq!(store(&postgres, [tagged("ses-2", EventKind::Delivery, log)]).await, [Inserted]);
    check_id(&database, log, "ses-1").await;

    let fresh = database.log_of(Uuid::now_v7(), None).await;
    let both = [tagged("ses-4", EventKind::Send, fresh), tagged("ses-3", EventKind::Delivery, fresh)];
    assert_eq!(store(&postgres, both).await, [Inserted, Inserted]);
    check_id(&database, fresh, "ses-3").await;
    assert_eq!(database.number(EVENTS).await, 3);
}

#[tokio::test]
async fn one_id_with_two_tags_links_one_log() {
    let database = database::fresh().await;
    let postgres = database.store();
    let logs = [database.log_of(Uuid::now_v7(), None).await, database.log_of(Uuid::now_v7(), None).await];
    let batch = || logs.map(|log| tagged("ses-1", EventKind::Send, log));
    assert_eq!(store(&postgres, batch()).await, [Inserted, Inserted]);
    assert_eq!(database.number("SELECT count(*) FROM email_logs WHERE aws_message_id = 'ses-1'").await, 1);
    check_id(&database, logs[0], "ses-1").await;
}

#[tokio::test]
async fn an_id_that_the_log_would_spell_otherwise_blocks_nobody() {
    let database = database::fresh().await;
    let taken = database.log("X").await;
    let tag = database.log_of(Uuid::now_v7(), None).await;
    // What is left of these is not bare yet, and the log row's own rule makes the other mail's id of it.
    for (n, id) in ["< <X", "X> @example.com"].into_iter().enumerate() {
        let kind = EventKind::Other(format!("kind_{n}"));
        assert_eq!(store(&database.store(), [tagged(id, kind, tag), event("X", EventKind::Send)]).await.len(), 2);
    }
    check_id(&database, taken, "X").await;
}

async fn check_id(database: &Database, log: Uuid, id: &str) {
    let found =
        database.text(&format!("SELECT coalesce(aws_message_id, 'none') FROM email_logs WHERE uuid = '{log}'")).await;
    assert_eq!(found, id);
}

#[tokio::test]
async fn a_batch_of_five_thousand_is_one_statement() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.run("INSERT INTO email_logs (aws_message_id) SELECT 'm' || n FROM generate_series(0, 499) AS n").await;
    // 1,000 mails, of which every second is known; five distinct opens each.
    let batch: Vec<_> = (0..5_000).map(|n| opened(&mail(n % 1_000), n / 1_000)).collect();
    let verdicts = store(&postgres, batch.clone()).await;
    for (n, verdict) in verdicts.iter().enumerate() {
        assert_eq!(*verdict, if n % 2 == 0 { Inserted } else { Orphaned }, "event {n}");
    }
    assert_eq!(store(&postgres, batch).await, vec![Duplicate; 5_000]);
    assert_eq!((database.number(EVENTS).await, database.number(ORPHANS).await), (2_500, 2_500));
    assert_eq!(database.number("SELECT count(*) FROM email_logs WHERE open_count = 5").await, 500);

    fn mail(n: i64) -> String {
        if n % 2 == 0 { format!("m{}", n / 2) } else { format!("unknown-{n}") }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_the_same_events_in_opposite_orders_do_not_disturb_each_other() {
    let database = database::fresh().await;
    database.run("INSERT INTO email_logs (aws_message_id) SELECT 'm' || n FROM generate_series(0, 39) AS n").await;
    let stores = [database.store(), database.store(), database.store()];
    let mut inserted = 0;
    for round in 0..40 {
        // Half of the mails are unknown.
        let forth: Vec<Event> = (0..240).map(|n| opened(&format!("m{}", n % 80), round * 10 + n / 80)).collect();
        let back: Vec<Event> = forth.iter().rev().cloned().collect();
        let twice: Vec<Event> = forth.iter().skip(100).chain(&forth[..150]).cloned().collect();
        let batches = [forth, back, twice].map(arrivals);
        let [a, b, c] = [0, 1, 2].map(|n| store_patiently(&stores[n], &batches[n]));
        let (a, b, c) = tokio::join!(a, b, c);
        inserted += [a, b, c].iter().flatten().filter(|verdict| **verdict == Inserted).count();
    }
    assert_eq!(inserted, 40 * 120);
    assert_eq!((database.number(EVENTS).await, database.number(ORPHANS).await), (40 * 120, 40 * 120));
    assert_eq!(database.number("SELECT count(*) FROM email_logs WHERE open_count = 120").await, 40);
    check_no_deadlock(&database, stores).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_who_heard_of_the_same_at_other_times_do_not_disturb_each_other() {
    let database = database::fresh().await;
    database.run("INSERT INTO email_logs (aws_message_id) SELECT 'm' || n FROM generate_series(0, 4) AS n").await;
    let stores = [database.store(), database.store()];
    for round in 0..40 {
        // The first heard of the first recipient first, the second of the last.
        let delayed = |n: i64, time: i64| {
            with(event(&format!("m{}", n % 10), EventKind::Other(format!("delay_{round}"))), |e| {
                (e.recipient, e.occurred_at) = (Address::parse(&format!("r{n}@x.org")), at(time));
            })
        };
        let batches =
            [(0..100).map(|n| delayed(n, n)).collect(), (0..100).map(|n| delayed(n, 100 - n)).collect::<Vec<_>>()];
        let batches = batches.map(arrivals);
        tokio::join!(store_patiently(&stores[0], &batches[0]), store_patiently(&stores[1], &batches[1]));
    }
    assert_eq!(database.number(EVENTS).await, 40 * 50);
    check_no_deadlock(&database, stores).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_writers_link_one_mail_once() {
    let database = database::fresh().await;
    let stores = [database.store(), database.store()];
    for round in 0..30 {
        let logs: Vec<Uuid> = (0..10).map(|_| Uuid::now_v7()).collect();
        for log in &logs {
            database.log_of(*log, None).await;
        }
        let link = |(n, log): (usize, &Uuid)| tagged(&format!("m{round}-{n}"), EventKind::Send, *log);
        let forth: Vec<Event> = logs.iter().enumerate().map(link).collect();
        let batches = [forth.clone(), forth.into_iter().rev().collect()].map(arrivals);
        let (a, b) = tokio::join!(store_patiently(&stores[0], &batches[0]), store_patiently(&stores[1], &batches[1]));
        assert_eq!(a.iter().chain(&b).filter(|verdict| **verdict == Inserted).count(), 10);
    }
    assert_eq!(
        database.number("SELECT count(*) FROM email_logs WHERE aws_message_id IS NOT NULL AND status = 'sent'").await,
        300
    );
    check_no_deadlock(&database, stores).await;
}

/// A deadlock would be tried again and do no harm, but it costs a second: the order of the rows is there to avoid it.
pub(crate) async fn check_no_deadlock<const N: usize>(database: &Database, stores: [Postgres; N]) {
    for postgres in stores {
        postgres.close().await;
    }
    gone(database).await;
    assert_eq!(database.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await, 0);
}

/// Waits for the end of the store's sessions: a session tells its counts when it ends.
pub(crate) async fn gone(database: &Database) {
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ses-ledger'";
    while database.number(sessions).await > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_writes_its_rows_meanwhile_loses_nothing() {
    let database = database::fresh().await;
    let (postgres, sweeper) = (database.store(), database.store());
    const MAILS: usize = 300;
    let logs: Vec<Uuid> = (0..MAILS).map(|_| Uuid::now_v7()).collect();
    let sender = async {
        for (n, log) in logs.iter().enumerate() {
            let mut transaction = database.pool.begin().await.expect("the database is there");
            // Every third is found by its tag, and half of those get their id later.
            let id = (n % 3 != 0).then(|| format!("m{n}"));
            let insert =
                sqlx::query("INSERT INTO email_logs (uuid, aws_message_id) VALUES ($1, $2)").bind(log).bind(id);
            insert.execute(&mut *transaction).await.expect("the row is new");
            tokio::task::yield_now().await;
            transaction.commit().await.expect("nothing is deferred");
            if n % 6 == 0 {
                let update = sqlx::query("UPDATE email_logs SET aws_message_id = $2 WHERE uuid = $1");
                update.bind(log).bind(format!("<m{n}@x.org>")).execute(&database.pool).await.expect("the id is free");
            }
        }
    };
    let worker = async {
        for seconds in 0..20 {
            let batch: Vec<Event> = (0..MAILS)
                .map(|n| with(opened(&format!("m{n}"), seconds), |e| e.log_uuid = (n % 3 == 0).then_some(logs[n])))
                .collect();
            store_patiently(&postgres, &arrivals(batch)).await;
        }
    };
    let sweep = async {
        for _ in 0..20 {
            match orphans::sweep_all(&sweeper).await {
                Ok(_) | Err(StoreError::Transient(_)) => {}
                Err(refused) => panic!("{refused}"),
            }
        }
    };
    tokio::join!(sender, worker, sweep);
    orphans::sweep_all(&sweeper).await.expect("nobody is in the way any more");
    assert_eq!((database.number(EVENTS).await, database.number(ORPHANS).await), (20 * MAILS as i64, 0));
    let whole =
        "SELECT count(*) FROM email_logs WHERE open_count = 20 AND aws_message_id IS NOT NULL AND status = 'opened'";
    assert_eq!(database.number(whole).await, MAILS as i64);
}

#[tokio::test]
async fn a_row_that_the_database_refuses_takes_its_batch_along_and_is_named_by_its_code() {
    let database = database::fresh().await;
    database.log("m").await;
    let bounce = |id: &str, change: fn(&mut Event)| with(event(id, EventKind::Bounce), change);
    // Not in an index entry of the orphans, and incompressible.
    let long = |e: &mut Event| e.detail.bounce_type = Some((0..300).map(|_| Uuid::now_v7().to_string()).collect());
    check_refused(&database, bounce("unknown", long), "54000").await;
    let payload = |text: &'static str| with(event("m", EventKind::Send), |e| e.payload = Some(text.to_owned()));
    check_refused(&database, payload(r#"{"subject": "\ud83d"}"#), "22P02").await;
    check_refused(&database, payload(r#"{"subject": "\u0000"}"#), "22P05").await;
    check_refused(&database, payload(r#"{"size": 1e400000}"#), "22003").await;
    check_refused(&database, payload("{not json"), "22P02").await;
    check_refused(&database, bounce("m", |e| e.detail.diagnostic = Some("a\0b".to_owned())), "22021").await;
}

async fn check_refused(database: &Database, poison: Event, expected: &str) {
    let neighbours = [event("m", EventKind::Delivery), event("unknown", EventKind::Delivery)];
    let batch = arrivals(neighbours.into_iter().chain([poison]));
    let reject = junk("{", "invalid_json", "$", origin("sqs-1", 1));
    match database.store().insert(&batch, &[reject]).await {
        Err(StoreError::Refused { code, source }) => {
            assert_eq!(code, expected);
            assert!(!format!("{source:#}").contains("subject"), "{source:#}");
        }
        other => panic!("{expected}: {other:?}"),
    }
    let everything = format!("SELECT ({EVENTS}) + ({ORPHANS}) + (SELECT count(*) FROM quarantined_messages)");
    assert_eq!(database.number(&everything).await, 0, "{expected}: nothing of the batch is stored");
}

#[tokio::test]
async fn a_mail_of_any_month_and_of_any_kind_of_uuid_is_stored() {
    let database = database::fresh().await;
    let postgres = database.store();
    // Version 7 of 2031 and of 2019, version 1, version 4, and both ends.
    let uuids = [
        "01c0fe8d-e800-7000-8000-000000000001",
        "0168b8b5-e800-7000-8000-000000000001",
        "e902893a-9d22-11ee-8c90-0242ac120002",
        "0190a3f0-1b2c-4d3e-9f00-aabbccddeeff",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ];
    for (n, uuid) in uuids.into_iter().enumerate() {
        let (log, id) = (uuid.parse().expect("a UUID"), format!("m{n}"));
        database.log_of(log, Some(&id).filter(|_| n % 2 == 0).map(String::as_str)).await;
        // Found by its id or by its tag; and one event by the tag alone.
        let batch = [tagged(&id, EventKind::Send, log), event(&id, EventKind::Delivery)];
        let verdicts = store(&postgres, batch).await;
        assert_eq!(verdicts[0], Inserted, "{uuid}");
    }
    orphans::sweep_all(&postgres).await.expect("the database is there");
    assert_eq!(database.number("SELECT count(*) FROM email_logs WHERE status = 'delivered'").await, 6);
    let places = "SELECT DISTINCT tableoid::regclass::text FROM email_events ORDER BY 1";
    let expected = [
        "email_events_after_2049",
        "email_events_before_2015",
        "email_events_y2019m02",
        "email_events_y2024m07",
        "email_events_y2031m02",
    ];
    let found = database.texts(places).await;
    assert_eq!(found.len(), 5, "{found:?}");
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn making_a_month_does_not_stop_the_senders() {
    let database = database::fresh().await;
    let postgres = database.store();
    // A sender with a transaction that is left open.
    let mut idle = database.pool.begin().await.expect("the database is there");
    sqlx::query("INSERT INTO email_logs DEFAULT VALUES").execute(&mut *idle).await.expect("it may");
    let making = tokio::spawn(async move { postgres.ensure_partitions(6).await });
    somebody_waits(&database).await;
    // Waits behind it, for a moment only.
    let insert = sqlx::query("INSERT INTO email_logs DEFAULT VALUES").execute(&database.pool);
    tokio::time::timeout(Duration::from_secs(10), insert).await.expect("it comes through").expect("it may");
    making.await.expect("no panic").expect_err("the months are made another time");
    idle.commit().await.expect("nothing is deferred");
    assert_eq!(database.store().ensure_partitions(6).await.expect("nobody is in the way"), 3);
}

#[tokio::test]
async fn an_orphan_finds_its_mail_in_a_month_that_has_no_partition() {
    let database = database::fresh().await;
    let postgres = database.store();
    assert_eq!(store(&postgres, [event("m", EventKind::Send)]).await, [Orphaned]);
    database.log_of("01c0fe8d-e800-7000-8000-000000000001".parse().expect("a UUID"), Some("m")).await;
    assert_eq!(orphans::sweep_all(&postgres).await.expect("the month is made"), 1);
    assert_eq!(database.text("SELECT status FROM email_logs").await, "sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_log_is_deleted_meanwhile_waits_as_an_orphan() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = database.log("m").await;
    let mut eraser = database.pool.begin().await.expect("the database is there");
    sqlx::query("DELETE FROM email_logs WHERE uuid = $1").bind(log).execute(&mut *eraser).await.expect("it is there");
    let storing = tokio::spawn(async move { store_patiently(&postgres, &arrivals([opened("m", 1)])).await });
    somebody_waits(&database).await;
    eraser.commit().await.expect("nothing is deferred");
    assert_eq!(storing.await.expect("no panic"), [Orphaned]);
    assert_eq!((database.number(EVENTS).await, database.number(ORPHANS).await), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_senders_of_one_id_cost_time_and_no_event() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = database.log_of(Uuid::now_v7(), None).await;
    // Somebody writes another row with the id that the worker is about to fill in.
    let mut sender = database.pool.begin().await.expect("the database is there");
    let insert = sqlx::query("INSERT INTO email_logs (aws_message_id) VALUES ('m')");
    insert.execute(&mut *sender).await.expect("the id is free");
    let storing =
        tokio::spawn(async move { store_patiently(&postgres, &arrivals([tagged("m", EventKind::Send, log)])).await });
    somebody_waits(&database).await;
    sender.commit().await.expect("nothing is deferred");
    assert_eq!(storing.await.expect("no panic"), [Inserted]);
    check_id(&database, log, "none").await;
}

/// Waits until the store under test waits for a lock.
async fn somebody_waits(database: &Database) {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    for _ in 0..1_000 {
        if database.number(waiting).await > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody waits for a lock");
}

#[tokio::test]
async fn the_server_ends_a_statement_that_waits_too_long_and_it_can_be_tried_again() {
    let database = database::fresh().await;
    let (url, statement_timeout) = (database.url.clone(), Duration::from_millis(300));
    let settings = PostgresSettings { connections: 1, statement_timeout, ..PostgresSettings::new(&url) };
    let postgres = Postgres::new(&settings).expect("the URL is well formed");
    let log = database.log("m").await;
    let mut holder = PgConnection::connect(&database.url).await.expect("the database is there");
    let mut transaction = holder.begin().await.expect("it answers");
    sqlx::query("SELECT FROM email_logs WHERE uuid = $1 FOR UPDATE")
        .bind(log)
        .execute(&mut *transaction)
        .await
        .expect("it is there");
    let batch: Vec<Arrival> = arrivals([opened("m", 1)]);
    assert!(matches!(postgres.insert(&batch, &[]).await, Err(StoreError::Transient(_))));
    transaction.rollback().await.expect("it answers");
    assert_eq!(postgres.insert(&batch, &[]).await.expect("nobody is in the way"), [Inserted]);
}

#[tokio::test]
async fn a_body_is_quarantined_once_and_its_deliveries_are_counted() {
    let database = database::fresh().await;
    let postgres = database.store();
    let seen = "SELECT string_agg(times_seen::text, ',' ORDER BY reason) FROM quarantined_messages";
    let deliver = async |sqs_message_id: &str, receive_count| {
        let rejects = [
            junk("<html>", "invalid_json", "$[12].a", origin(sqs_message_id, receive_count)),
            junk("{}", "no_message_id", "$", origin(sqs_message_id, receive_count)),
        ];
        postgres.insert(&[], &rejects).await.expect("it is quarantined");
        database.text(seen).await
    };
    assert_eq!(deliver("sqs-1", 1).await, "1,1");
    assert_eq!(deliver("sqs-1", 1).await, "1,1", "the same delivery again: the answer was lost");
    assert_eq!(deliver("sqs-1", 2).await, "2,2", "handed out again");
    assert_eq!(deliver("sqs-2", 2).await, "3,3", "sent again");
    assert_eq!(database.text("SELECT sqs_message_id FROM quarantined_messages LIMIT 1").await, "sqs-2");
}

#[tokio::test]
async fn two_messages_with_one_body_in_one_batch_are_both_seen() {
    let database = database::fresh().await;
    let postgres = database.store();
    let rejects =
        || [("sqs-1", 1), ("sqs-2", 1)].map(|(id, count)| junk("<html>", "invalid_json", "$", origin(id, count)));
    for _ in 0..2 {
        postgres.insert(&[], &rejects()).await.expect("they are quarantined");
        let seen = database.number("SELECT times_seen::bigint FROM quarantined_messages").await;
        assert_eq!(seen, 2, "also when the answer was lost and the batch is stored again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_and_events_are_stored_together_by_many() {
    let database = database::fresh().await;
    database.run("INSERT INTO email_logs (aws_message_id) SELECT 'm' || n FROM generate_series(0, 9) AS n").await;
    let stores = [database.store(), database.store()];
    for round in 0..20 {
        let rejects = |worker: u32| -> Vec<_> {
            let bodies = (0..10).map(|n| {
                junk(&format!("body {n}"), "invalid_json", "$", origin(&format!("sqs-{round}-{worker}-{n}"), 1))
            });
            if worker == 0 { bodies.collect() } else { bodies.rev().collect() }
        };
        let events = |worker: i64| arrivals((0..10).map(|n| opened(&format!("m{}", (n - worker * 9).abs()), round)));
        let insert = async |worker: usize| {
            stores[worker].insert(&events(worker as i64), &rejects(worker as u32)).await.expect("no deadlock")
        };
        tokio::join!(insert(0), insert(1));
    }
    assert_eq!(database.number("SELECT sum(times_seen)::bigint FROM quarantined_messages").await, 400);
    assert_eq!(database.number("SELECT count(*) FROM email_logs WHERE open_count = 20").await, 10);
    check_no_deadlock(&database, stores).await;
}

#[tokio::test]
async fn bodies_that_failed_in_the_same_way_are_one_group() {
    let database = database::fresh().await;
    let rejects = [
        junk("a", "no_message_id", "$[0].Records[17].mail", origin("sqs-1", 1)),
        junk("b", "no_message_id", "$[1].Records[2].mail", origin("sqs-1", 1)),
        junk("c", "no_message_id", "$.mail", origin("sqs-2", 1)),
        junk("d", "invalid_json", "$.mail", origin("sqs-3", 1)),
    ];
    database.store().insert(&[], &rejects).await.expect("they are quarantined");
    let groups =
        "SELECT reason || ' ' || bodies || ' ' || times_seen FROM quarantine_failures ORDER BY bodies DESC, reason";
    assert_eq!(database.texts(groups).await, ["no_message_id 2 2", "invalid_json 1 1", "no_message_id 1 1"]);
}

#[tokio::test]
async fn events_of_all_kinds_have_a_row_each() {
    let database = database::fresh().await;
    database.log("m").await;
    let kinds = [
        "send",
        "delivery",
        "bounce",
        "complaint",
        "reject",
        "open",
        "click",
        "renderingfailure",
        "deliverydelay",
        "subscription",
        "Teleported",
    ];
    let kinds = kinds.map(|kind| EventKind::parse(kind).expect("it has a name"));
    let names: BTreeSet<String> = kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
    let verdicts = store(&database.store(), kinds.into_iter().map(|kind| event("m", kind))).await;
    assert_eq!(verdicts, [Inserted; 11]);
    let found = database.texts("SELECT event_type FROM email_events").await;
    assert_eq!(BTreeSet::from_iter(found), names);
}

/// Whatever was in the body: what is taken out of it fits the columns and their indexes.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_refused_that_decode_makes_of_any_fixture() {
    let (database, settings) =
        (database::fresh().await, DecodeSettings { payload: PayloadPolicy::Full, ..DecodeSettings::default() });
    let bodies = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bodies")).expect("they are there");
    let mut stored = 0;
    for body in bodies {
        let body = body.expect("the folder can be read").path();
        let (mut events, mut rejects) = (Vec::new(), Vec::new());
        for leaf in decode(&fs::read(&body).expect("it can be read"), at(60), &settings) {
            match leaf.outcome {
                Outcome::Event(event) => events.extend(event.into_events()),
                Outcome::Rejected(reject) => {
                    let origin = origin("0f8e5a2c-sqs", 1);
                    rejects.push(Quarantined::new(
                        reject.raw,
                        Stage::Decode,
                        reject.reason.as_str(),
                        &reject.at,
                        origin,
                    ));
                }
                Outcome::Ignored(_) => {}
            }
        }
        let answer = database.store().insert(&arrivals(events), &rejects).await;
        stored += answer.unwrap_or_else(|e| panic!("{}: {e}", body.display())).len();
    }
    assert!(stored > 2_000, "{stored} events");
}

#[tokio::test]
async fn who_gives_up_while_a_transaction_begins_leaves_none_open() {
    let database = database::fresh().await;
    let settings = PostgresSettings { connections: 1, ..PostgresSettings::new(&database.url) };
    let postgres = Postgres::new(&settings).expect("the URL is well formed");
    for polls in 1..8 {
        let id = format!("after-{polls}");
        database.log(&id).await;
        // A batch with something for quarantine is a transaction.
        let junk = [junk(&format!("junk {polls}"), "no_json", "1:1", origin("0f8e5a2c-sqs", 1))];
        let mut given_up = Box::pin(postgres.insert(&[], &junk));
        for _ in 0..polls {
            if futures_util::poll!(&mut given_up).is_ready() {
                break;
            }
        }
        drop(given_up);
        // Over the only connection there is. What it says is stored is to be seen by everybody.
        assert_eq!(store(&postgres, [event(&id, EventKind::Send)]).await, [Inserted]);
        assert_eq!(database.number("SELECT count(*) FROM email_events").await, polls);
    }
}
