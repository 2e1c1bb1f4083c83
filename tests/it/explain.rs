//! With many rows, every statement finds its way by an index.

use std::{collections::BTreeMap, time::Duration};

use ses_ledger::{
    event::{Event, EventKind},
    orphans,
    postgres::{Postgres, PostgresSettings},
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use crate::{
    arrivals::{event, opened, store, tagged, with},
    database::{self, Database},
    roles::login,
    store::gone,
};

/// Mails, three minutes apart; two events each.
const MAILS: i64 = 40_000;
/// Orphans, of as many mails.
const ORPHANS: i64 = 12_000;

/// A database with two months of mails in it, and counters that are zero.
async fn busy() -> Database {
    let database = database::fresh().await;
    let mut filler = session(&format!("{}?application_name=ses-ledger", database.url)).await;
    let fill = format!(
        "SELECT email_events_ensure_month(now() - make_interval(months => n)) FROM generate_series(0, 4) AS n;
         INSERT INTO email_logs (uuid, aws_message_id)
           SELECT (left(ses_ledger_uuid_floor(now() - n * interval '3 minutes')::text, 14) || '7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'm' || n
           FROM generate_series(0, {MAILS} - 1) AS n;
         INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, queue, sqs_message_id, received_at)
           SELECT ses_ledger_uuid_v7(), uuid, kind, now(), 
             CASE WHEN kind = 'open' THEN '' WHEN hashtext(uuid::text) % 20 = 0 THEN 'busy@x.org' ELSE uuid || '@x.org' END, 'q', 's', now()
           FROM email_logs, unnest(ARRAY['send', 'open']) AS kind;
         INSERT INTO orphaned_events (uuid, aws_message_id, event_type, occurred_at, queue, sqs_message_id, received_at)
           SELECT ses_ledger_uuid_v7(), 'o' || n, CASE n % 2 WHEN 0 THEN 'send' ELSE 'open' END, now(), 'q', 's', now()
           FROM generate_series(1, {ORPHANS}) AS n;
         INSERT INTO quarantined_messages (uuid, body, body_digest, stage, reason, failed_at, fingerprint, queue, sqs_message_id, receive_count)
           SELECT ses_ledger_uuid_v7(), '', decode(md5(n::text), 'hex'), 'decode', 'invalid_json', '$', 'f' || n % 80, 'q', 's', 1
           FROM generate_series(1, 20000) AS n;"
    );
    filler.execute(AssertSqlSafe(fill)).await.expect("the tables are empty");
    filler.execute("VACUUM ANALYZE").await.expect("nobody is in the way");
    filler.close().await.expect("it is connected");
    gone(&database).await;
    database.run("SELECT pg_stat_reset()").await;
    database
}

async fn session(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("the database is there")
}

/// One connection, with the worker's rights: its first plans are made for the batch, later ones for any batch.
async fn worker(database: &Database) -> Postgres {
    let (url, statement_timeout) = (login(database, &["ses_ledger_worker"]).await, Duration::from_secs(20));
    let settings = PostgresSettings { connections: 1, statement_timeout, ..PostgresSettings::new(&url) };
    Postgres::new(&settings).expect("the URL is well formed")
}

/// How often each index was looked into, partitions under the name of the whole.
async fn index_scans(database: &Database) -> BTreeMap<String, i64> {
    let sql = "SELECT coalesce(parent.relname, s.indexrelname)::text AS name, sum(s.idx_scan)::bigint AS scans
               FROM pg_stat_user_indexes AS s
               LEFT JOIN pg_inherits AS i ON i.inhrelid = s.indexrelid
               LEFT JOIN pg_class AS parent ON parent.oid = i.inhparent
               GROUP BY 1";
    let rows = sqlx::query(sql).fetch_all(&database.pool).await.expect("anybody may");
    rows.iter().map(|row| (row.get("name"), row.get("scans"))).collect()
}

async fn check_no_table_was_read_through(database: &Database) {
    let sql = "SELECT relname || ': ' || seq_scan FROM pg_stat_user_tables WHERE seq_scan > 0 AND relname NOT LIKE '\\_sqlx%'";
    assert_eq!(database.texts(sql).await, Vec::<String>::new());
}

#[tokio::test]
async fn storing_looks_up_mails_and_conflicts_by_their_indexes() {
    let database = busy().await;
    let worker = worker(&database).await;
    const BATCHES: i64 = 12;
    for batch in 0..BATCHES {
        let log = database.log_of(uuid::Uuid::now_v7(), None).await;
        let known = |n: i64| format!("m{}", (batch * 2_017 + n * 131) % MAILS);
        let events = (0..100).flat_map(|n| {
            let delivery = event(&known(n), EventKind::Delivery);
            [
                delivery,
                opened(&known(n), batch),
                opened(&format!("new{batch}-{n}"), 1),
                event(&format!("o{n}"), EventKind::Delivery),
            ]
        });
        let batch: Vec<Event> = events.chain([tagged(&format!("tagged{batch}"), EventKind::Send, log)]).collect();
        store(&worker, batch).await;
    }
    worker.close().await;
    gone(&database).await;
    check_no_table_was_read_through(&database).await;
    let scans = index_scans(&database).await;
    // A look-up for every event, a conflict check for every row.
    assert!(scans["email_logs_aws_message_id"] >= BATCHES * 401, "{scans:?}");
    let found = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'email_logs_aws_message_id'";
    assert!(database.number(found).await <= BATCHES * 401, "a look-up reads one entry or none");
    assert!(scans["email_events_once"] >= BATCHES * 101, "{scans:?}");
    assert!(scans["email_events_again"] >= BATCHES * 100, "{scans:?}");
    assert!(scans["orphaned_events_once"] >= BATCHES * 100, "{scans:?}");
    assert!(scans["orphaned_events_again"] >= BATCHES * 100, "{scans:?}");
    assert!(scans["email_logs_pkey"] >= BATCHES, "{scans:?}");
}

#[tokio::test]
async fn plans_that_were_made_for_empty_tables_do_not_stay() {
    let database = database::fresh().await;
    database.run("ALTER TABLE email_logs SET (autovacuum_enabled = false)").await;
    let worker = worker(&database).await;
    for round in 0..10 {
        store(&worker, (0..20).map(|n| opened(&format!("m{n}"), round))).await;
    }
    database.run("INSERT INTO email_logs (aws_message_id) SELECT 'x' || n FROM generate_series(1, 20000) AS n").await;
    database.run("ANALYZE email_logs").await; // as autovacuum does within a minute
    for round in 0..10 {
        store(&worker, (0..20).map(|n| opened(&format!("x{n}"), round))).await;
    }
    worker.close().await;
    gone(&database).await;
    let read = "SELECT seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes AS i WHERE i.relid = t.relid)::bigint
                FROM pg_stat_user_tables AS t WHERE relname = 'email_logs'";
    let read = database.number(read).await;
    assert!(read < 5_000, "{read} rows of email_logs were read for 200 events");
}

#[tokio::test]
async fn sweeping_goes_along_the_primary_key_and_linking_by_both_indexes() {
    let database = busy().await;
    let worker = worker(&database).await;
    let log = database.log_of(uuid::Uuid::now_v7(), None).await;
    // Two of these mails are known by now, so that something is attached.
    database.log("o17").await;
    database.log("o18").await;
    let before = index_scans(&database).await;
    let linking = with(tagged("o20", EventKind::Delivery, log), |e| e.payload = None);
    store(&worker, [linking]).await;
    for _ in 0..7 {
        orphans::sweep_all(&worker).await.expect("nobody is in the way");
    }
    worker.close().await;
    gone(&database).await;
    check_no_table_was_read_through(&database).await;
    let after = index_scans(&database).await;
    let used = |index: &str| after[index] - before[index];
    assert!(used("orphaned_events_pkey") >= 7 * ORPHANS / 1_000, "{after:?}");
    // The linked mail's own orphans; everything else of them was a conflict check.
    assert!(used("orphaned_events_once") >= 1 && used("orphaned_events_again") >= 1, "{after:?}");
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, ORPHANS - 3);
}

/// Explains a listing to an operator.
async fn check_listing(operator: &mut PgConnection, sql: &str, index: &str) {
    let lines: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!("EXPLAIN (COSTS OFF) {sql}")))
        .fetch_all(&mut *operator)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
    let plan = lines.join("\n");
    assert!(plan.contains(index), "{sql} does without {index}:\n{plan}");
    assert!(!plan.contains("Seq Scan") && !plan.contains("Sort"), "{sql}:\n{plan}");
    let rows = operator.execute(AssertSqlSafe(sql.to_owned())).await.expect("it may read");
    assert!(rows.rows_affected() > 0, "{sql} finds something");
}

#[tokio::test]
async fn listings_come_newest_first_without_sorting() {
    let database = busy().await;
    let mut operator = session(&login(&database, &["ses_ledger_operator"]).await).await;
    let log = database.text("SELECT uuid::text FROM email_logs WHERE aws_message_id = 'm700'").await;
    let listings = [
        (
            "SELECT * FROM email_logs ORDER BY uuid DESC LIMIT 50".to_owned(),
            "Index Scan Backward using email_logs_pkey",
        ),
        ("SELECT * FROM email_logs WHERE aws_message_id = 'm700'".to_owned(), "email_logs_aws_message_id"),
        (format!("SELECT * FROM email_logs WHERE uuid < '{log}' ORDER BY uuid DESC LIMIT 50"), "email_logs_pkey"),
        (format!("SELECT * FROM email_events WHERE email_log_uuid = '{log}' ORDER BY uuid DESC LIMIT 50"), "_pkey"),
        (
            "SELECT * FROM email_events ORDER BY email_log_uuid DESC, uuid DESC LIMIT 50".to_owned(),
            "Index Scan Backward",
        ),
        (
            "SELECT * FROM recipient_timeline WHERE recipient = 'busy@x.org' ORDER BY email_log_uuid DESC LIMIT 50"
                .to_owned(),
            "recipient_email_log_uuid_idx",
        ),
        ("SELECT * FROM quarantined_messages ORDER BY uuid DESC LIMIT 50".to_owned(), "quarantined_messages_pkey"),
        (
            "SELECT * FROM quarantined_messages WHERE fingerprint = 'f1' ORDER BY uuid DESC LIMIT 50".to_owned(),
            "quarantined_messages_fingerprint",
        ),
        ("SELECT * FROM orphaned_events ORDER BY uuid DESC LIMIT 50".to_owned(), "orphaned_events_pkey"),
    ];
    for (sql, index) in listings {
        check_listing(&mut operator, &sql, index).await;
    }
}

#[tokio::test]
async fn a_mail_s_events_are_looked_for_in_its_month_only() {
    let database = busy().await;
    let log = database.text("SELECT uuid::text FROM email_logs WHERE aws_message_id = 'm700'").await;
    let plan =
        database.texts(&format!("EXPLAIN (COSTS OFF) SELECT * FROM email_events WHERE email_log_uuid = '{log}'")).await;
    assert_eq!(plan.iter().filter(|line| line.contains(" on email_events_")).count(), 1, "{plan:#?}");
}
