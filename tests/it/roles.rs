//! Each role can do its work and nothing else.

use std::sync::atomic::{AtomicU32, Ordering};

use ses_ledger::{
    event::EventKind,
    orphans,
    pipeline::{
        Store as _,
        Verdict::{Inserted, Orphaned},
    },
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{
    arrivals::{arrivals, event, junk, opened, origin, tagged},
    database::{self, Database, connect},
};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The URL of a new login that is a member of these roles only.
pub(crate) async fn login(database: &Database, roles: &[&str]) -> String {
    let url = login_of(database, "LOGIN").await;
    let name = url.split(['/', ':']).nth(3).expect("a user comes after the scheme");
    for role in roles {
        database.run(&format!("GRANT {role} TO {name}")).await;
    }
    url
}

/// The URL of a new login with these attributes.
pub(crate) async fn login_of(database: &Database, attributes: &str) -> String {
    let name = format!("login_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    database.run(&format!("CREATE ROLE {name} {attributes} PASSWORD 'p'")).await;
    let server = database.url.split('@').nth(1).expect("the URL has a password");
    format!("postgres://{name}:p@{server}")
}

/// A session of such a login.
struct Session {
    connection: PgConnection,
    who: String,
}

impl Session {
    async fn open(database: &Database, roles: &[&str]) -> Self {
        let url = login(database, roles).await;
        Self { connection: PgConnection::connect(&url).await.expect("the login is new"), who: roles.join(",") }
    }

    /// The SQLSTATE, if it fails. Nothing of it stays.
    async fn code(&mut self, sql: &str) -> Option<String> {
        let mut transaction = self.connection.begin().await.expect("it is connected");
        let result = transaction.execute(AssertSqlSafe(sql.to_owned())).await;
        transaction.rollback().await.expect("it is connected");
        let error = result.err()?;
        Some(error.as_database_error().and_then(|e| e.code()).unwrap_or_else(|| panic!("{error}")).into_owned())
    }

    async fn may(&mut self, sql: &str) {
        assert_eq!(self.code(sql).await, None, "{}: {sql}", self.who);
    }

    async fn may_not(&mut self, sql: &str) {
        // 42501: insufficient privilege.
        assert_eq!(self.code(sql).await.as_deref(), Some("42501"), "{}: {sql}", self.who);
    }
}

const TABLES: [&str; 4] = ["email_logs", "email_events", "orphaned_events", "quarantined_messages"];
const VIEWS: [&str; 4] = ["pipeline_health", "quarantine_failures", "stuck", "recipient_timeline"];

/// A database with a mail, an event, an orphan and a body in quarantine in it.
async fn inhabited() -> Database {
    let database = database::fresh().await;
    database.log("m").await;
    let reject = junk("{", "invalid_json", "$", origin("sqs-1", 1));
    let events = arrivals([event("m", EventKind::Send), event("unknown", EventKind::Send)]);
    database.store().insert(&events, &[reject]).await.expect("all is well");
    database
}

/// What drops, alters or makes anything is for the owner.
async fn check_changes_no_schema(session: &mut Session) {
    for table in TABLES {
        session.may_not(&format!("DROP TABLE {table} CASCADE")).await;
        session.may_not(&format!("ALTER TABLE {table} ADD COLUMN more text")).await;
        session.may_not(&format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")).await;
        session.may_not(&format!("CREATE INDEX ON {table} (uuid)")).await;
        session.may_not(&format!("TRUNCATE {table} CASCADE")).await;
        session.may_not(&format!("CREATE POLICY mine ON {table} USING (true)")).await;
    }
    session.may_not("CREATE TABLE mine (a integer)").await;
    session.may_not("DROP FUNCTION email_events_ensure_ahead(integer)").await;
    session.may_not("SET ROLE ses_ledger_owner").await;
    session.may_not("DELETE FROM _sqlx_migrations").await;
    let partition = "SELECT count(*) FROM email_events_before_2015";
    session.may_not(partition).await;
}

#[tokio::test]
async fn the_worker_does_its_work_and_destroys_nothing() {
    let database = inhabited().await;
    let mut session = Session::open(&database, &["ses_ledger_worker"]).await;
    check_changes_no_schema(&mut session).await;
    for forbidden in [
        "DELETE FROM email_logs",
        "DELETE FROM email_events",
        "DELETE FROM quarantined_messages",
        "UPDATE email_events SET recipient = 'x'",
        "UPDATE email_logs SET subject = 'x'",
        "UPDATE email_logs SET recipients = '{}'",
        "UPDATE email_logs SET uuid = gen_random_uuid()",
        "INSERT INTO email_logs (aws_message_id) VALUES ('mine')",
        "SELECT * FROM recipient_timeline",
        "TRUNCATE ses_ledger_minutes",
        "DROP TABLE ses_ledger_workers",
        "DELETE FROM ses_ledger_kinds",
        "UPDATE ses_ledger_horizon SET events_from = now()",
        "INSERT INTO ses_ledger_retention_runs DEFAULT VALUES",
        "INSERT INTO ses_ledger_erased VALUES ('m', 'erased:x')",
        "SELECT * FROM ses_ledger_erasure_key",
        "SELECT * FROM ses_ledger_erasures",
        "SELECT ses_ledger_take_up('empty_bodies')",
    ] {
        session.may_not(forbidden).await;
    }
    for view in &VIEWS[..3] {
        session.may(&format!("SELECT * FROM {view}")).await;
    }
    // The function that empties payloads runs as the owner: what is fresh is out of its reach (22023: invalid value).
    session.may("SELECT * FROM ses_ledger_empty_payloads('1 day', 10)").await;
    let fresh = "SELECT * FROM ses_ledger_empty_payloads('-1 day', 10)";
    assert_eq!(session.code(fresh).await.as_deref(), Some("22023"));
    session.may("SELECT * FROM ses_ledger_empty_bodies('1 day', 10)").await;
    let fresh = "SELECT * FROM ses_ledger_empty_bodies('23 hours', 10)";
    assert_eq!(session.code(fresh).await.as_deref(), Some("22023"));
    session.may("SELECT ses_ledger_erased_name('bob@example.com'), (SELECT events_from FROM ses_ledger_horizon)").await;
    session.may_not("UPDATE ses_ledger_upkeep SET finished_at = NULL").await;
    // Derived: nobody writes it, whatever the rights (428C9: generated always).
    assert_eq!(session.code("UPDATE email_logs SET status = 'clicked'").await.as_deref(), Some("428C9"));

    let worker = connect(&login(&database, &["ses_ledger_worker"]).await);
    worker.ping().await.expect("it is connected");
    let log = database.log_of("01c0fe8d-e800-7000-8000-000000000001".parse().expect("a UUID"), None).await;
    let events = arrivals([
        event("m", EventKind::Bounce),
        tagged("of-2031", EventKind::Send, log),
        opened("later", 1),
        event("m", EventKind::Complaint),
    ]);
    let reject =
        || [junk("{", "invalid_json", "$", origin("sqs-2", 1)), junk("}", "invalid_json", "$", origin("sqs-3", 1))];
    assert_eq!(worker.insert(&events, &reject()).await.expect("it may"), [Inserted, Inserted, Orphaned, Inserted]);
    database.log("later").await;
    assert_eq!(orphans::sweep_all(&worker).await.expect("it may"), 1);
    assert!(worker.ensure_partitions(6).await.expect("it may") >= 2);
    assert_eq!(database.texts("SELECT status FROM email_logs ORDER BY 1").await, ["complained", "opened", "sent"]);
    assert_eq!(database.number("SELECT sum(times_seen)::bigint FROM quarantined_messages").await, 3);
}

#[tokio::test]
async fn the_sender_writes_its_part_of_a_row_and_not_the_facts() {
    let database = inhabited().await;
    let mut session = Session::open(&database, &["ses_ledger_sender"]).await;
    check_changes_no_schema(&mut session).await;
    session.may("INSERT INTO email_logs (aws_message_id, sender, recipients, subject, tags) VALUES ('<x@y.z>', 'a@x.org', '{b@x.org}', 'Hi', '{}')").await;
    session.may("INSERT INTO email_logs DEFAULT VALUES RETURNING uuid").await;
    session.may("INSERT INTO email_logs (uuid) VALUES (ses_ledger_uuid_v7()) ON CONFLICT DO NOTHING").await;
    session.may("UPDATE email_logs SET aws_message_id = 'other', body_full = NULL, headers = '{}'").await;
    session.may("SELECT status, opened_at FROM email_logs").await;
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
        session.may_not(&format!("UPDATE email_logs SET {fact} = now()")).await;
        session.may_not(&format!("INSERT INTO email_logs ({fact}) VALUES (now())")).await;
    }
    for forbidden in
        ["UPDATE email_logs SET open_count = 0", "UPDATE email_logs SET bounce_class = NULL", "DELETE FROM email_logs"]
    {
        session.may_not(forbidden).await;
    }
    for table in &TABLES[1..] {
        session.may_not(&format!("SELECT * FROM {table}")).await;
        session.may_not(&format!("DELETE FROM {table}")).await;
    }
    session.may_not("SELECT email_events_ensure_month(now())").await;
    session.may_not("SELECT ses_ledger_empty_payloads('90 days', 10)").await;
}

#[tokio::test]
async fn the_operator_reads_all_and_writes_nothing() {
    let database = inhabited().await;
    let mut session = Session::open(&database, &["ses_ledger_operator"]).await;
    check_changes_no_schema(&mut session).await;
    for name in TABLES.iter().chain(&VIEWS) {
        let sql = format!("SELECT count(*) FROM {name}");
        session.may(&sql).await;
        let seen: i64 =
            sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(&mut session.connection).await.expect("it may");
        assert!(seen > 0 && seen == database.number(&sql).await, "{name}: the rows are visible too");
    }
    for table in TABLES {
        session.may_not(&format!("DELETE FROM {table}")).await;
        session.may_not(&format!("INSERT INTO {table} DEFAULT VALUES")).await;
        session.may_not(&format!("UPDATE {table} SET uuid = uuid")).await;
    }
    session.may_not("SELECT email_events_ensure_month(now())").await;
    session.may_not("SELECT ses_ledger_empty_payloads('90 days', 10)").await;
}

#[tokio::test]
async fn a_login_without_a_role_sees_nothing() {
    let database = inhabited().await;
    let mut session = Session::open(&database, &[]).await;
    check_changes_no_schema(&mut session).await;
    for name in TABLES.iter().chain(&VIEWS) {
        session.may_not(&format!("SELECT * FROM {name}")).await;
    }
    // A right alone does not open the rows: row level security is on, and no policy names this login.
    let user = session_user(&mut session).await;
    for table in TABLES {
        database.run(&format!("GRANT SELECT ON {table} TO {user}")).await;
        let seen: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(&mut session.connection)
            .await
            .expect("it may by now");
        assert_eq!(seen, 0, "{table}");
    }
}

async fn session_user(session: &mut Session) -> String {
    sqlx::query_scalar("SELECT session_user::text").fetch_one(&mut session.connection).await.expect("it is connected")
}
