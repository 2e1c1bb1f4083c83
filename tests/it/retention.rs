//! What was let go stays known as let go: it is not stored again, and nobody waits for it.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use flate2::read::GzDecoder;
use ses_ledger::{
    event::{Event, EventKind},
    export, orphans,
    pipeline::{
        Store as _,
        Verdict::{self, Duplicate, Expired, Inserted, Orphaned},
    },
    postgres::{Postgres, letting_go::Owner},
    retention::{LetGo, Retention, Run, preview},
};
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    arrivals::{arrivals, event, junk, opened, origin, store, tagged, with},
    database::{self, Database},
};

const EVENTS: &str = "SELECT count(*) FROM email_events";
const ORPHANS: &str = "SELECT count(*) FROM orphaned_events";
const FACTS: &str = "SELECT concat_ws(' ', status, open_count, delivered_at, opened_at, complained_at) FROM email_logs";

fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3600)
}

/// An id of that many days ago.
fn id_of(days_ago: i64) -> Uuid {
    let at = OffsetDateTime::now_utc() - time::Duration::days(days_ago);
    Uuid::new_v7(Timestamp::from_unix(NoContext, at.unix_timestamp() as u64, 0))
}

/// An id without a time: it lies behind all months.
fn id_without_time() -> Uuid {
    Uuid::parse_str(&format!("f{}", &Uuid::now_v7().to_string().replace("-7", "-4")[1..])).expect("it is an id")
}

async fn old_log(database: &Database, message_id: &str, days_ago: i64) -> Uuid {
    log_from(database, id_of(days_ago), message_id, days_ago).await
}

async fn log_from(database: &Database, id: Uuid, message_id: &str, days_ago: i64) -> Uuid {
    let query = sqlx::query(
        "INSERT INTO email_logs (uuid, aws_message_id, created_at, body_full, headers)
         VALUES ($1, $2, now() - make_interval(days => $3), 'Dear Bob', '{\"To\": \"Bob\"}')",
    );
    query.bind(id).bind(message_id).bind(days_ago as i32).execute(&database.pool).await.expect("a log can be written");
    id
}

/// Something that happened to a mail that SES took so many days ago.
fn of_old(event: Event, days_ago: i64) -> Event {
    with(event, |e| {
        let at = OffsetDateTime::now_utc().replace_nanosecond(0).expect("zero is a good one")
            - time::Duration::days(days_ago);
        (e.mailed_at, e.occurred_at) = (Some(at), at);
    })
}

async fn let_go(postgres: &Postgres, retention: Retention, export: Option<&Path>) -> Vec<LetGo> {
    let export = export.map(Path::to_owned);
    let all = Run { postgres, retention: &retention, export, tell: &mut |_| {} }.go().await;
    all.unwrap_or_else(|e| panic!("nothing is in the way: {e:#}"))
}

fn events_older_than(age: u64) -> Retention {
    Retention { retention_events: Some(days(age)), ..Retention::default() }
}

fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("export-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    folder
}

fn lines(file: &Path) -> Vec<serde_json::Value> {
    let mut text = String::new();
    GzDecoder::new(fs::File::open(file).expect("it is there")).read_to_string(&mut text).expect("it is whole");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is a row")).collect()
}

#[tokio::test]
async fn an_event_of_a_month_that_was_dropped_is_known_and_its_mail_keeps_its_facts() {
    let database = database::fresh().await;
    let postgres = database.store();
    old_log(&database, "old", 200).await;
    let batch = || {
        let open = of_old(event("old", EventKind::Open), 199);
        [of_old(event("old", EventKind::Send), 200), of_old(event("old", EventKind::Delivery), 200), open]
    };
    let batch: [Event; 3] = batch();
    assert_eq!(store(&postgres, batch.clone()).await, [Inserted; 3]);
    let facts = database.text(FACTS).await;

    let gone = let_go(&postgres, events_older_than(90), None).await;
    assert_eq!((gone[0].rows, gone[0].months.len()), (3, 1), "{gone:?}");
    assert_eq!(database.number(EVENTS).await, 0);
    assert_eq!(store(&postgres, batch.clone()).await, [Expired; 3]);
    assert_eq!(store(&postgres, batch).await, [Expired; 3], "again and again");
    assert_eq!((database.number(EVENTS).await, database.number(ORPHANS).await), (0, 0));
    assert_eq!(database.text(FACTS).await, facts);

    // What comes for the first time is no row either, but its fact is kept.
    assert_eq!(store(&postgres, [of_old(event("old", EventKind::Complaint), 1)]).await, [Expired]);
    assert_eq!(database.text("SELECT status FROM email_logs").await, "complained");
    assert_eq!(database.number(EVENTS).await, 0);
    let month =
        "SELECT count(*) FROM pg_class WHERE relname ~ to_char(now() - interval '200 days', '\"y\"YYYY\"m\"MM')";
    assert_eq!(database.number(month).await, 0, "nobody made its month again");
}

#[tokio::test]
async fn a_late_event_of_a_mail_that_is_kept_is_stored() {
    let database = database::fresh().await;
    let postgres = database.store();
    for (id, age) in [("gone", 200), ("kept", 50), ("new", 0)] {
        old_log(&database, id, age).await;
        assert_eq!(store(&postgres, [of_old(event(id, EventKind::Send), age)]).await, [Inserted]);
    }
    let_go(&postgres, events_older_than(90), None).await;
    assert_eq!(database.number(EVENTS).await, 2);
    let open = |id, age| with(of_old(event(id, EventKind::Open), age), |e| e.occurred_at = OffsetDateTime::now_utc());
    let late = [open("gone", 200), open("kept", 50), open("new", 0), event("unknown", EventKind::Send)];
    assert_eq!(store(&postgres, late).await, [Expired, Inserted, Inserted, Orphaned]);
    // An orphan waits whatever it is as long as mails are kept for ever.
    assert_eq!(store(&postgres, [of_old(event("ancient", EventKind::Send), 4_000)]).await, [Orphaned]);
}

#[tokio::test]
async fn events_of_mails_that_were_removed_are_known_by_the_tag_or_by_the_time_of_the_mail() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = old_log(&database, "old", 300).await;
    let young = old_log(&database, "young", 130).await;
    let send = || of_old(event("old", EventKind::Send), 299);
    assert_eq!(store(&postgres, [send(), of_old(event("young", EventKind::Send), 130)]).await, [Inserted; 2]);
    let keep = Retention { retention_logs: Some(days(200)), ..events_older_than(90) };
    let gone = let_go(&postgres, keep, None).await;
    assert_eq!((gone[0].class, gone[0].rows, gone[1].class, gone[1].rows), ("events", 2, "logs", 1), "{gone:?}");
    assert_eq!(database.texts("SELECT aws_message_id FROM email_logs").await, ["young"]);

    // The id of SES is forgotten; the mail's time in the event is not.
    let by_tag = tagged("old", EventKind::Delivery, log);
    let late = with(send(), |e| (e.kind, e.occurred_at) = (EventKind::Complaint, OffsetDateTime::now_utc()));
    assert_eq!(store(&postgres, [send(), by_tag, late]).await, [Expired; 3]);
    assert_eq!(store(&postgres, [tagged("young", EventKind::Delivery, young)]).await, [Expired], "its month is gone");
    assert_eq!(database.text("SELECT status FROM email_logs").await, "delivered");
    assert_eq!(
        store(&postgres, [of_old(event("unknown", EventKind::Send), 199)]).await,
        [Orphaned],
        "it may still come"
    );
    assert_eq!(database.number(EVENTS).await, 0);
}

/// A mail that is written long before it is sent: its id is older than the time of the mail in its events.
#[tokio::test]
async fn a_mail_is_not_removed_before_its_events_can_be_known() {
    let database = database::fresh().await;
    let postgres = database.store();
    old_log(&database, "scheduled", 300).await;
    let send = || of_old(event("scheduled", EventKind::Send), 150);
    assert_eq!(store(&postgres, [send()]).await, [Inserted]);
    let keep = |logs| Retention { retention_logs: Some(days(logs)), ..events_older_than(90) };
    let_go(&postgres, keep(200), None).await;
    assert_eq!(store(&postgres, [send()]).await, [Expired]);
    assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 1, "else this would have been an orphan");
    let_go(&postgres, keep(120), None).await;
    assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 0);
    assert_eq!(store(&postgres, [send()]).await, [Expired]);
}

#[tokio::test]
async fn ids_without_a_time_go_by_the_time_of_their_log() {
    let database = database::fresh().await;
    let postgres = database.store();
    // Two that lie behind all months, and two that look like a month which is about to go.
    let like_then = |n: u8| {
        let mut bytes = *id_of(200).as_bytes();
        (bytes[6], bytes[15]) = (0x40, n);
        Uuid::from_bytes(bytes)
    };
    log_from(&database, id_without_time(), "old", 200).await;
    log_from(&database, id_without_time(), "new", 1).await;
    log_from(&database, like_then(1), "old in month", 200).await;
    log_from(&database, like_then(2), "new in month", 1).await;
    let ids = ["old", "new", "old in month", "new in month"];
    let batch = || ids.map(|id| event(id, EventKind::Send));
    assert_eq!(store(&postgres, batch()).await, [Inserted; 4]);
    for round in 0..3 {
        let gone = let_go(&postgres, events_older_than(90), None).await;
        assert_eq!(gone[0].months.len(), usize::from(round == 0), "a month that is back for some stays: {gone:?}");
        let left =
            "SELECT l.aws_message_id FROM email_events e JOIN email_logs l ON l.uuid = e.email_log_uuid ORDER BY 1";
        assert_eq!(database.texts(left).await, ["new", "new in month"]);
        assert_eq!(store(&postgres, batch()).await, [Expired, Duplicate, Expired, Duplicate]);
    }
    let opens = ids.map(|id| opened(id, 5));
    assert_eq!(store(&postgres, opens).await, [Expired, Inserted, Expired, Inserted]);
    assert_eq!(database.number("SELECT kept FROM ses_ledger_months_let_go").await, 1);
}

#[tokio::test]
async fn a_new_mail_may_look_like_a_month_that_is_gone() {
    let database = database::fresh().await;
    let postgres = database.store();
    old_log(&database, "old", 200).await;
    assert_eq!(store(&postgres, [event("old", EventKind::Send)]).await, [Inserted]);
    let_go(&postgres, events_older_than(90), None).await;
    let mut bytes = *id_of(200).as_bytes();
    bytes[6] = 0x40;
    log_from(&database, Uuid::from_bytes(bytes), "new", 0).await;
    assert_eq!(
        store(&postgres, [event("new", EventKind::Send), event("old", EventKind::Send)]).await,
        [Inserted, Expired]
    );
    assert_eq!(store(&postgres, [event("new", EventKind::Send)]).await, [Duplicate]);
}

#[tokio::test]
async fn what_goes_is_exported_first_with_everything_in_it() {
    let database = database::fresh().await;
    let postgres = database.store();
    old_log(&database, "old", 300).await;
    let bounce =
        with(of_old(event("old", EventKind::Bounce), 300), |e| e.detail.diagnostic = Some("550 \"ü\" \n".to_owned()));
    let open = |n| with(of_old(event("old", EventKind::Open), 299), |e| e.occurred_at += time::Duration::seconds(n));
    assert_eq!(store(&postgres, [bounce, open(1), open(2)]).await, [Inserted; 3]);
    let reject = junk("{", "invalid_json", "$", origin("sqs-1", 1));
    postgres.insert(&arrivals([event("unknown", EventKind::Send)]), &[reject]).await.expect("it is stored");
    database.run("UPDATE orphaned_events SET uuid = ses_ledger_uuid_floor(now() - interval '40 days'), stored_at = now() - interval '40 days'").await;
    database
        .run("UPDATE quarantined_messages SET uuid = ses_ledger_uuid_floor(now() - interval '40 days'), last_seen_at = now() - interval '40 days'")
        .await;
    let before = database.texts("SELECT row_to_json(e)::text FROM email_events e ORDER BY uuid").await;
    let keep = Retention {
        retention_logs: Some(days(200)),
        retention_orphans: Some(days(30)),
        retention_quarantine: Some(days(30)),
        ..events_older_than(90)
    };
    let expected = preview(&postgres, &keep).await.expect("it answers");
    assert_eq!(database.number(EVENTS).await, 3, "a preview changes nothing");

    let folder = folder("all");
    let gone = let_go(&postgres, keep, Some(&folder)).await;
    let classes = |all: &[LetGo]| all.iter().map(|one| one.class).collect::<Vec<_>>();
    assert_eq!(classes(&gone), ["orphans", "quarantine", "events", "logs"]);
    assert_eq!(classes(&gone), classes(&expected));
    assert_eq!(gone.iter().map(|one| one.rows).collect::<Vec<_>>(), [1, 1, 3, 1]);
    assert_eq!(gone[2].months, expected[2].months);
    for one in &gone {
        let [manifest] = one.exports.as_slice() else { panic!("one file for each: {one:?}") };
        let file = folder.join(&manifest.file);
        assert_eq!(export::verify(&file).expect("it can be read back"), *manifest);
        assert_eq!(manifest.rows, one.rows);
        assert_eq!(manifest.bytes, fs::metadata(&file).expect("it is there").len());
    }
    let mut rows = lines(&folder.join(&gone[2].exports[0].file));
    rows.sort_by_key(|row| row["uuid"].to_string());
    let before: Vec<serde_json::Value> = before.iter().map(|row| serde_json::from_str(row).expect("JSON")).collect();
    assert_eq!(rows, before);
    assert_eq!(lines(&folder.join(&gone[3].exports[0].file))[0]["aws_message_id"], "old");
    assert!(
        fs::read_dir(&folder)
            .expect("it is there")
            .all(|file| { !file.expect("it can be listed").file_name().to_string_lossy().contains("unfinished") })
    );
    let noted =
        "SELECT export_sha256 FROM ses_ledger_months_let_go WHERE events = 3 AND gone_at IS NOT NULL AND bytes > 0";
    assert_eq!(database.text(noted).await, gone[2].exports[0].sha256);
    let removed =
        "SELECT string_agg(concat_ws(' ', what, removed, reason), ', ' ORDER BY what) FROM ses_ledger_removals";
    assert_eq!(database.text(removed).await, "orphans 1 RETENTION_ORPHANS, quarantine 1 RETENTION_QUARANTINE");
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_retention_runs WHERE ended_at IS NOT NULL").await, 1);
    fs::remove_dir_all(&folder).expect("it is ours");
}

#[tokio::test]
async fn nothing_is_dropped_whose_export_cannot_be_written() {
    let database = database::fresh().await;
    let postgres = database.store();
    old_log(&database, "old", 200).await;
    assert_eq!(store(&postgres, [event("old", EventKind::Send)]).await, [Inserted]);
    let file = folder("none");
    fs::write(&file, "in the way").expect("it can be written");
    let (retention, export) = (events_older_than(90), Some(file.clone()));
    let failed = Run { postgres: &postgres, retention: &retention, export, tell: &mut |_| {} }.go().await;
    let failed = format!("{:#}", failed.expect_err("there is a file where the folder should be"));
    assert!(failed.contains("cannot write the export"), "{failed}");
    let left =
        "SELECT relname::text FROM pg_class WHERE relname LIKE '%let_go' AND relkind = 'r' AND relname LIKE 'email%'";
    let left = database.text(left).await;
    assert_eq!(database.number(&format!("SELECT count(*) FROM {left}")).await, 1, "it stands alone, whole");
    assert_eq!(store(&postgres, [event("old", EventKind::Send)]).await, [Expired]);

    fs::remove_file(&file).expect("it is ours");
    let gone = let_go(&postgres, retention, Some(&file)).await;
    assert_eq!((gone[0].rows, gone[0].exports[0].rows), (1, 1), "the next run goes on with it");
    fs::remove_dir_all(&file).expect("it is ours");
}

/// An export that lost its end, or a bit, does not pass for one.
#[test]
fn a_damaged_export_is_found() {
    let folder = folder("damaged");
    let mut export = export::Export::begin(&folder, "x", "email_events").expect("it can be made");
    for n in 0..1_000 {
        export.add(&format!("{{\"n\": {n}}}")).expect("it can be written");
    }
    let manifest = export.finish().expect("it is whole");
    assert_eq!(manifest.rows, 1_000);
    let path = folder.join(&manifest.file);
    let whole = fs::read(&path).expect("it is there");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&whole[..whole.len() - 9], &[], &flipped, &[whole.as_slice(), b"x"].concat()] {
        fs::write(&path, damaged).expect("it can be written");
        export::verify(&path).expect_err("it is damaged");
    }
    fs::remove_dir_all(&folder).expect("it is ours");
}

/// Wherever a run is killed, the next one goes on, and whoever stores meanwhile is not stopped.
#[tokio::test]
async fn a_run_that_was_cut_short_is_taken_up_again() {
    for stage in ["horizon", "renamed", "half detached", "detached", "dropped"] {
        let database = database::fresh().await;
        let postgres = database.store();
        old_log(&database, "old", 200).await;
        let sent = || of_old(event("old", EventKind::Send), 200);
        assert_eq!(store(&postgres, [sent()]).await, [Inserted]);
        let plain = database.text("SELECT tableoid::regclass::text FROM email_events").await;
        let horizon =
            "UPDATE ses_ledger_horizon SET events_from = date_trunc('month', now() - interval '90 days', 'UTC')";
        database.run(horizon).await;
        let month =
            "INSERT INTO ses_ledger_months_let_go (month) VALUES (date_trunc('month', now() - interval '200 days'))";
        database.run(month).await;
        if stage != "horizon" {
            database.run(&format!("ALTER TABLE {plain} RENAME TO {plain}_let_go")).await;
        }
        match stage {
            "half detached" => half_detach(&database, &format!("{plain}_let_go")).await,
            "detached" => database.run(&format!("ALTER TABLE email_events DETACH PARTITION {plain}_let_go")).await,
            "dropped" => {
                database.run("UPDATE ses_ledger_months_let_go SET events = 1, bytes = 1").await;
                database.run(&format!("DROP TABLE {plain}_let_go")).await;
            }
            _ => {}
        }
        assert_eq!(store(&postgres, [sent()]).await, [Expired], "{stage}");
        // A new mail whose id looks like that month has to find a place at every stage.
        let mut bytes = *id_of(200).as_bytes();
        bytes[6] = 0x40;
        log_from(&database, Uuid::from_bytes(bytes), "lookalike", 0).await;
        assert_eq!(store(&postgres, [event("lookalike", EventKind::Send)]).await, [Inserted], "{stage}");

        let gone = let_go(&postgres, events_older_than(90), None).await;
        assert_eq!(gone[0].rows, u64::from(stage != "dropped"), "{stage}: {gone:?}");
        assert_eq!(database.number(EVENTS).await, 1, "{stage}");
        assert_eq!(
            database.number("SELECT count(*) FROM ses_ledger_months_let_go WHERE gone_at IS NULL").await,
            0,
            "{stage}"
        );
        let left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'email%let_go' AND relkind = 'r'";
        assert_eq!(database.number(left).await, 0, "{stage}");
        let both = store(&postgres, [sent(), event("lookalike", EventKind::Send)]).await;
        assert_eq!(both, [Expired, Duplicate], "{stage}");
        let again = let_go(&postgres, events_older_than(90), None).await;
        assert_eq!((again[0].rows, again[0].months.len()), (0, 0), "{stage}: {again:?}");
    }
}

/// DETACH CONCURRENTLY given up while it waits for a transaction that still sees the month.
async fn half_detach(database: &Database, table: &str) {
    let mut reader = PgConnection::connect(&database.url).await.expect("it is there");
    let mut reader = reader.begin().await.expect("it is there");
    sqlx::query("SELECT count(*) FROM email_events").execute(&mut *reader).await.expect("it can be read");
    let mut session = PgConnection::connect(&database.url).await.expect("it is there");
    sqlx::query("SET lock_timeout = '100ms'").execute(&mut session).await.expect("it is a setting");
    let detach = format!("ALTER TABLE email_events DETACH PARTITION {table} CONCURRENTLY");
    sqlx::query(sqlx::AssertSqlSafe(detach)).execute(&mut session).await.expect_err("the reader is in the way");
    reader.rollback().await.expect("it is there");
    assert_eq!(
        database.number("SELECT count(*) FROM pg_inherits WHERE inhdetachpending").await,
        1,
        "it is half detached"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn months_go_while_others_store_into_them_and_nobody_is_refused() {
    let database = database::fresh().await;
    let postgres = database.store();
    for age in [0, 40, 200, 230, 260] {
        old_log(&database, &format!("{age}"), age).await;
    }
    let stop = tokio_util::sync::CancellationToken::new();
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (postgres, stop) = (database::connect(&database.url), stop.clone());
            tokio::spawn(async move {
                let (mut n, mut stored) = (0_i64, [0; 2]);
                while !stop.is_cancelled() {
                    n += 1;
                    let open =
                        |id: &str| with(opened(id, n), |e| e.occurred_at += time::Duration::milliseconds(writer));
                    let batch = arrivals(["0", "40", "200", "230", "260"].map(open));
                    let verdicts: Vec<Verdict> = crate::arrivals::store_patiently(&postgres, &batch).await;
                    assert_eq!(verdicts[..2], [Inserted; 2]);
                    assert!(verdicts[2..].iter().all(|v| matches!(v, Inserted | Expired)), "{verdicts:?}");
                    stored[0] += 2;
                    stored[1] += verdicts[2..].iter().filter(|v| **v == Inserted).count() as u64;
                }
                stored
            })
        })
        .collect();
    while database.number(EVENTS).await < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let gone = let_go(&postgres, events_older_than(90), None).await;
    let after = database.number(EVENTS).await;
    while database.number(EVENTS).await < after + 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    let mut stored = [0; 2];
    for writer in writers {
        let one = writer.await.expect("nobody is refused");
        stored = [stored[0] + one[0], stored[1] + one[1]];
    }
    assert_eq!(gone[0].months.len(), 3);
    assert_eq!(gone[0].rows, stored[1], "every row that was stored in these months is accounted for");
    assert_eq!(database.number(EVENTS).await as u64, stored[0]);
    let counts = "SELECT sum(open_count)::bigint FROM email_logs";
    assert_eq!(database.number(counts).await as u64, stored[0] + stored[1], "and counted on its mail");
}

#[tokio::test]
async fn a_second_run_waits_its_turn_and_a_reader_holds_nobody_up_for_ever() {
    let database = database::fresh().await;
    let postgres = database.store();
    let first = Owner::begin(&postgres).await.expect("nobody is at it");
    let second = Owner::begin(&postgres).await.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(second.contains("another retention, erasure or rebuild is under way"), "{second}");
    first.end().await;
    Owner::begin(&postgres).await.expect("the first has ended").end().await;
}

#[tokio::test]
async fn old_bodies_are_emptied_and_a_finished_pass_is_not_read_again() {
    let database = database::fresh().await;
    let postgres = database.store();
    for (id, age) in [("a", 300), ("b", 100), ("c", 10)] {
        old_log(&database, id, age).await;
        assert_eq!(store(&postgres, [event(id, EventKind::Send)]).await, [Inserted]);
    }
    log_from(&database, id_without_time(), "d", 100).await;
    database.run("UPDATE email_events SET received_at = now() - interval '9 days'").await;
    let keep = Retention { retention_payload: Some(days(5)), retention_body: Some(days(90)), ..Retention::default() };
    let gone = let_go(&postgres, keep, None).await;
    assert_eq!((gone[0].rows, gone[1].rows), (3, 3), "{gone:?}");
    let full = "SELECT aws_message_id FROM email_logs WHERE body_full IS NOT NULL AND headers IS NOT NULL";
    assert_eq!(database.texts(full).await, ["c"]);

    // The next day: what came meanwhile, and nothing of what is two months older than that.
    let tomorrow = "UPDATE ses_ledger_upkeep SET finished_at = finished_at - interval '25 hours'";
    database.run(tomorrow).await;
    database.run("UPDATE email_events SET payload = '{}', received_at = now() - interval '9 days'").await;
    let gone = let_go(&postgres, keep, None).await;
    assert_eq!(gone[0].rows, 1, "those of a and b were not looked at");
    // A month later it looks at everything again.
    database.run("UPDATE ses_ledger_upkeep SET finished_at = now() - interval '2 days', whole_at = now() - interval '31 days'").await;
    assert_eq!(let_go(&postgres, keep, None).await[0].rows, 2);
}

#[tokio::test]
async fn the_horizon_does_not_move_back() {
    let database = database::fresh().await;
    let postgres = database.store();
    let_go(&postgres, events_older_than(90), None).await;
    let horizon = "SELECT events_from::text FROM ses_ledger_horizon";
    let (before, next) = (database.text(horizon).await, events_older_than(400));
    let_go(&postgres, next, None).await;
    assert_eq!(database.text(horizon).await, before);
    let mut session = PgConnection::connect(&database.url).await.expect("it is there");
    for back in
        ["UPDATE ses_ledger_horizon SET events_from = events_from - interval '1 day'", "DELETE FROM ses_ledger_horizon"]
    {
        sqlx::query(back).execute(&mut session).await.expect_err(back);
    }
    assert_eq!(orphans::sweep_all(&postgres).await.expect("nothing is in the way"), 0);
}
