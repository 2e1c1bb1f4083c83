//! The schema: up and down, by whom, side by side, and what is said of one that is not right.

use ses_ledger::{
    event::EventKind,
    local::postgres::{LocalPostgres, LocalPostgresSettings, OriginChoice},
    orphans,
    pipeline::Verdict::{Duplicate, Inserted, Orphaned},
    postgres::{
        migrations::{self, State},
        schema::{self, Severity},
    },
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{
    arrivals::{event, opened, store, tagged},
    database::{self, Database, connect},
    roles::{login, login_of},
};

async fn newest(database: &Database) -> i64 {
    let all = migrations::status(&database.store()).await.expect("the database is there");
    all.last().expect("there are migrations").version
}

async fn check_states(database: &Database, applied: i64) {
    let all = migrations::status(&database.store()).await.expect("the database is there");
    assert!(all.is_sorted_by(|a, b| a.version < b.version), "{all:?}");
    for migration in all {
        let expected = if migration.version <= applied { State::Applied } else { State::Pending };
        assert_eq!(migration.state, expected, "{migration:?}");
    }
}

/// A mail with two events, an orphan and a body in quarantine.
async fn tell_a_small_story(database: &Database) {
    let postgres = database.store();
    let log = database.log_of(uuid::Uuid::now_v7(), None).await;
    let verdicts = store(&postgres, [tagged("m", EventKind::Send, log), opened("m", 5), opened("unknown", 5)]).await;
    assert_eq!(verdicts, [Inserted, Orphaned, Orphaned]);
    assert_eq!(orphans::sweep_all(&postgres).await.expect("nobody is in the way"), 0, "attached with the link");
    assert_eq!(database.text("SELECT aws_message_id || ' ' || status FROM email_logs").await, "m opened");
}

#[tokio::test]
async fn every_migration_can_be_reverted_and_run_again() {
    let database = database::empty().await;
    let postgres = database.store();
    check_states(&database, 0).await;
    migrations::up(&postgres).await.expect("it runs on an empty database");
    let newest = newest(&database).await;
    check_states(&database, newest).await;
    let made = catalogue(&database).await;
    for version in (0..newest).rev() {
        migrations::down(&postgres, version).await.unwrap_or_else(|e| panic!("down to {version}: {e:#}"));
        check_states(&database, version).await;
        // Each is undone completely: it can be done again on what is left.
        migrations::up(&postgres).await.unwrap_or_else(|e| panic!("up from {version}: {e:#}"));
        assert_eq!(catalogue(&database).await, made, "after going down to {version} and up again");
        migrations::down(&postgres, version).await.unwrap_or_else(|e| panic!("down to {version}: {e:#}"));
    }
    check_states(&database, 0).await;
    let left =
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE '\\_sqlx%'";
    assert_eq!(database.number(left).await, 0);
    assert_eq!(database.number("SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace").await, 0);
}

/// Everything that is there, with its rights.
async fn catalogue(database: &Database) -> Vec<String> {
    database
        .texts(
            "SELECT concat_ws(' ', relname, relkind, relacl::text, relrowsecurity, reloptions::text) FROM pg_class
             WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE '\\_sqlx%'
             UNION ALL SELECT concat_ws(' ', oid::regprocedure, proacl::text, proconfig::text) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
             UNION ALL SELECT concat_ws(' ', polname, polrelid::regclass) FROM pg_policy
             UNION ALL SELECT concat_ws(' ', tgname, tgrelid::regclass) FROM pg_trigger WHERE NOT tgisinternal
             ORDER BY 1",
        )
        .await
}

#[tokio::test]
async fn ids_can_be_made_for_every_row_of_a_large_table() {
    let database = database::fresh().await;
    database.run("INSERT INTO email_logs (sender) SELECT 'a@example.com' FROM generate_series(1, 5000)").await;
    // A small table passes for a large one.
    let made = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
                CREATE TABLE made AS SELECT ses_ledger_uuid_v7() AS id FROM email_logs";
    database.run(made).await;
    assert_eq!(database.number("SELECT count(DISTINCT id) FROM made").await, 5_000);
}

#[tokio::test]
async fn a_schema_with_data_goes_down_and_up_again() {
    let database = database::empty().await;
    let postgres = database.store();
    for _ in 0..2 {
        migrations::up(&postgres).await.expect("nothing is in the way");
        assert_eq!(migrations::would_lose(&postgres, 0).await.expect("it answers"), None);
        tell_a_small_story(&database).await;
        assert_eq!(migrations::would_lose(&postgres, 0).await.expect("it answers"), Some("email_logs"));
        assert_eq!(migrations::would_lose(&postgres, 5).await.expect("it answers"), None, "nothing is in quarantine");
        migrations::down(&postgres, 0).await.expect("it asks nobody");
    }
}

/// A row in each table that a version has, written without anything that came later.
const ROWS: [(i64, &str, &str); 4] = [
    (
        3,
        "email_logs",
        "INSERT INTO email_logs (uuid, aws_message_id, recipients, delivered_at)
         VALUES ('0199b2f0-0000-7000-8000-000000000001', '<m@x.org>', '{bob@example.com}', '2026-10-05 08:00:01+00')",
    ),
    (
        4,
        "email_events",
        "SELECT email_events_ensure_month(ses_ledger_uuid_time('0199b2f0-0000-7000-8000-000000000001'));
         INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, payload, queue, sqs_message_id, received_at)
         VALUES ('0199b2f0-0000-7000-8000-000000000002', '0199b2f0-0000-7000-8000-000000000001', 'delivery', '2026-10-05 08:00:01+00',
                 'bob@example.com', '{\"kept\": true}', 'q', 's', now())",
    ),
    (
        5,
        "orphaned_events",
        "INSERT INTO orphaned_events (uuid, aws_message_id, event_type, occurred_at, queue, sqs_message_id, received_at)
         VALUES ('0199b2f0-0000-7000-8000-000000000003', 'unknown', 'open', '2026-10-05 08:00:05+00', 'q', 's', now())",
    ),
    (
        6,
        "quarantined_messages",
        "INSERT INTO quarantined_messages (uuid, body, body_digest, stage, reason, failed_at, fingerprint, queue, sqs_message_id, receive_count)
         VALUES ('0199b2f0-0000-7000-8000-000000000004', 'x', 'y', 'decode', 'not_json', '$', 'f', 'q', 's', 1)",
    ),
];

#[tokio::test]
async fn a_database_of_each_earlier_version_comes_up_with_what_is_in_it() {
    let newest = newest(&database::fresh().await).await;
    for version in 3..newest {
        let database = database::fresh().await;
        migrations::down(&database.store(), version).await.unwrap_or_else(|e| panic!("down to {version}: {e:#}"));
        for (_, _, row) in ROWS.iter().filter(|(since, ..)| *since <= version) {
            sqlx::raw_sql(*row)
                .execute(&database.pool)
                .await
                .unwrap_or_else(|e| panic!("at version {version}: {row}: {e}"));
        }
        let before = contents(&database, version).await;
        assert_eq!(before.len(), ROWS.iter().filter(|(since, ..)| *since <= version).count());
        for way in ["up", "down and up again"] {
            if way != "up" {
                migrations::down(&connect(&database.url), version)
                    .await
                    .unwrap_or_else(|e| panic!("down to {version}: {e:#}"));
                assert_eq!(contents(&database, version).await, before, "down to {version}");
            }
            migrations::up(&connect(&database.url)).await.unwrap_or_else(|e| panic!("{way} from {version}: {e:#}"));
            assert_eq!(contents(&database, version).await, before, "{way} from {version}");
            check_sound(&database.url).await;
        }
        // And it goes on with it.
        let postgres = connect(&database.url);
        let expected = if version < 4 { Inserted } else { Duplicate };
        assert_eq!(store(&postgres, [event("m", EventKind::Delivery)]).await, [expected], "from {version}");
        database.log("unknown").await;
        let attached = orphans::sweep_all(&postgres).await.expect("nobody is in the way");
        assert_eq!(attached, u64::from(version >= 5), "from {version}");
    }
}

/// What is in the tables that a version has, as far as every version says it.
async fn contents(database: &Database, version: i64) -> Vec<String> {
    let questions = [
        "SELECT concat_ws(' ', uuid, aws_message_id, recipients::text, delivered_at, status) FROM email_logs",
        "SELECT concat_ws(' ', uuid, email_log_uuid, event_type, occurred_at, recipient, payload::text) FROM email_events",
        "SELECT concat_ws(' ', uuid, aws_message_id, event_type, occurred_at) FROM orphaned_events",
        "SELECT concat_ws(' ', uuid, body::text, reason) FROM quarantined_messages",
    ];
    let mut contents = Vec::new();
    for ((since, ..), question) in ROWS.iter().zip(questions) {
        if *since <= version {
            contents.extend(database.texts(question).await);
        }
    }
    contents
}

#[tokio::test(flavor = "multi_thread")]
async fn many_can_migrate_at_once() {
    let database = database::empty().await;
    let stores: Vec<_> = (0..6).map(|_| connect(&database.url)).collect();
    let all: Vec<_> =
        stores.into_iter().map(|store| tokio::spawn(async move { migrations::up(&store).await })).collect();
    for one in all {
        one.await.expect("no panic").expect("one works, the others wait");
    }
    check_sound(&database.url).await;
    // Databases of one cluster share the roles.
    let (a, b) = (database::empty().await, database::empty().await);
    let (a_store, b_store) = (a.store(), b.store());
    let (first, second) = tokio::join!(migrations::up(&a_store), migrations::up(&b_store));
    first.and(second).expect("they do not disturb each other");
}

#[tokio::test]
async fn two_schemas_of_one_database_do_not_know_each_other() {
    let database = database::empty().await;
    database.run("CREATE SCHEMA one; CREATE SCHEMA two").await;
    let urls = ["one", "two"].map(|schema| format!("{}?options=-csearch_path%3D{schema}", database.url));
    for url in &urls {
        migrations::up(&connect(url)).await.expect("the roles are there already, the rest is not");
        check_sound(url).await;
    }
    database.run("INSERT INTO one.email_logs (aws_message_id) VALUES ('<m@x.org>')").await;
    assert_eq!(store(&connect(&urls[0]), [event("m", EventKind::Send)]).await, [Inserted]);
    assert_eq!(store(&connect(&urls[1]), [event("m", EventKind::Send)]).await, [Orphaned]);
    // Made with whatever search path the caller has.
    database.run("SELECT one.email_events_ensure_month('2044-05-05')").await;
    assert_eq!(
        database
            .number("SELECT count(*) FROM pg_class WHERE relname = 'email_events_y2044m05' AND relkind = 'r'")
            .await,
        1
    );
    migrations::down(&connect(&urls[0]), 0).await.expect("it takes only its own");
    check_sound(&urls[1]).await;
}

async fn check_sound(url: &str) {
    assert_eq!(schema::verify(&connect(url)).await.expect("the database is there"), []);
}

#[tokio::test]
async fn a_right_schema_is_right_also_for_a_login_with_the_least_rights() {
    let database = database::fresh().await;
    check_sound(&database.url).await;
    check_sound(&login(&database, &["ses_ledger_worker"]).await).await;
}

/// Breaks a right schema in several ways at once, and reads what is said about each to somebody with the worker's rights.
async fn check_findings(severity: Severity, breakages: &[(String, String)]) {
    let database = database::fresh().await;
    let worker = login(&database, &["ses_ledger_worker"]).await;
    for (breakage, _) in breakages {
        database.run(breakage).await;
    }
    let findings = schema::verify(&connect(&worker)).await.unwrap_or_else(|e| panic!("{breakages:?}: {e:#}"));
    for (breakage, expected) in breakages {
        let found = findings.iter().any(|finding| finding.severity == severity && finding.what.contains(expected));
        assert!(found, "{breakage}: {findings:#?}");
    }
    assert_eq!(findings.len(), breakages.len(), "nothing else is wrong: {findings:#?}");
    assert!(findings.iter().all(|finding| !finding.fix.is_empty()), "{findings:#?}");
}

async fn check_finding(severity: Severity, breakage: &str, expected: &str) {
    check_findings(severity, &[(breakage.to_owned(), expected.to_owned())]).await;
}

#[tokio::test]
async fn a_missing_table_or_column_is_found() {
    let tables = ["email_logs", "email_events", "orphaned_events", "quarantined_messages"];
    let drop = tables.map(|table| (format!("DROP TABLE {table} CASCADE"), format!("the table {table} is missing")));
    let indexes = [
        "email_events_once",
        "email_events_again",
        "email_logs_aws_message_id",
        "orphaned_events_once",
        "orphaned_events_again",
        "quarantined_messages_body",
    ];
    let with_them = indexes.map(|index| ("SELECT".to_owned(), format!("the unique index {index}")));
    check_findings(Severity::Error, &[drop.as_slice(), &with_them].concat()).await;
    let columns = [
        ("email_logs", "click_count"),
        ("email_events", "bot"),
        ("orphaned_events", "stored_at"),
        ("quarantined_messages", "stage"),
        ("ses_ledger_workers", "seen_at"),
        ("ses_ledger_minutes", "lags"),
        ("ses_ledger_minutes", "deleted"),
        ("ses_ledger_kinds", "since"),
    ];
    let drop = columns.map(|(table, column)| {
        (format!("ALTER TABLE {table} DROP COLUMN {column} CASCADE"), format!("the column {table}.{column} is missing"))
    });
    check_findings(Severity::Error, &drop).await;
}

#[tokio::test]
async fn a_unique_index_that_does_not_do_its_work_is_found() {
    let indexes = [
        ("email_events_once", "email_events (email_log_uuid, event_type, recipient)"),
        ("email_events_again", "email_events (email_log_uuid, event_type, occurred_at, recipient, link_digest)"),
        ("email_logs_aws_message_id", "email_logs (aws_message_id)"),
        ("orphaned_events_once", "orphaned_events (aws_message_id, event_type, recipient, occurred_at, fact_key)"),
        ("orphaned_events_again", "orphaned_events (aws_message_id, event_type, occurred_at, recipient, link_digest)"),
        ("quarantined_messages_body", "quarantined_messages (body_digest)"),
    ];
    let missing = indexes.map(|(name, _)| (format!("DROP INDEX {name}"), format!("the unique index {name}")));
    check_findings(Severity::Error, &missing).await;
    let not_unique = indexes.map(|(name, on)| {
        let predicate = "WHERE event_type IN ('open', 'click')";
        let predicate = if name.ends_with("again") { predicate } else { "" };
        (
            format!("DROP INDEX {name}; CREATE INDEX {name} ON {on} {predicate}"),
            format!("the index {name} is not UNIQUE"),
        )
    });
    check_findings(Severity::Error, &not_unique).await;
    let other = [
        (
            "DROP INDEX email_events_once; CREATE UNIQUE INDEX email_events_once ON email_events (email_log_uuid, event_type, recipient)
             WHERE event_type NOT IN ('open', 'click', 'subscription')",
            "subscription",
        ),
        (
            "DROP INDEX email_events_again; CREATE UNIQUE INDEX email_events_again ON email_events (email_log_uuid, event_type, occurred_at)
             WHERE event_type IN ('open', 'click')",
            "but (email_log_uuid, event_type, occurred_at)",
        ),
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orphaned_events_again'::regclass", "orphaned_events_again is not valid"),
        ("UPDATE pg_index SET indisready = false WHERE indexrelid = 'orphaned_events_once'::regclass", "orphaned_events_once is not valid"),
    ];
    check_findings(Severity::Error, &other.map(|(breakage, what)| (breakage.to_owned(), what.to_owned()))).await;
}

#[tokio::test]
async fn a_missing_function_is_found() {
    let functions = [
        "email_events_ensure_ahead(integer)",
        "email_events_ensure_month(timestamptz)",
        "email_events_ensure_for(text[], uuid[])",
        "ses_ledger_suppression_cause(text, text, text, text, text)",
        "ses_ledger_fact(text, text, text)",
        "ses_ledger_message_id(text)",
        "ses_ledger_empty(text, interval, integer)",
    ];
    let drop = functions.map(|f| (format!("DROP FUNCTION {f}"), format!("the function {f} is missing")));
    check_findings(Severity::Error, &drop).await;
}

#[tokio::test]
async fn a_trigger_that_is_off_is_found() {
    let off = "ALTER TABLE email_events DISABLE TRIGGER ses_ledger_note_suppression";
    check_finding(Severity::Warning, off, "the trigger ses_ledger_note_suppression").await;
}

#[tokio::test]
async fn a_missing_right_is_found() {
    let rights = [
        ("SELECT", "email_events"),
        ("INSERT", "email_events"),
        ("SELECT", "orphaned_events"),
        ("INSERT", "orphaned_events"),
        ("UPDATE", "orphaned_events"),
        ("DELETE", "orphaned_events"),
        ("SELECT", "quarantined_messages"),
        ("INSERT", "quarantined_messages"),
        ("UPDATE", "quarantined_messages"),
        ("INSERT", "ses_ledger_workers"),
        ("DELETE", "ses_ledger_minutes"),
        ("UPDATE", "ses_ledger_kinds"),
        ("SELECT", "ses_ledger_adoptions"),
    ];
    let rights = rights.map(|(right, table)| {
        (format!("REVOKE {right} ON {table} FROM ses_ledger_worker"), format!("this login lacks {right} on {table}"))
    });
    let columns = ["aws_message_id", "sent_at", "clicked_at", "open_count", "bounce_class"].map(|column| {
        let revoke = format!("REVOKE UPDATE ({column}) ON email_logs FROM ses_ledger_worker");
        (revoke, format!("may not write email_logs.{column}"))
    });
    check_findings(Severity::Error, &[rights.as_slice(), &columns].concat()).await;
    // Takes the rights to its columns along.
    check_finding(
        Severity::Error,
        "REVOKE SELECT ON email_logs FROM ses_ledger_worker",
        "this login lacks SELECT on email_logs",
    )
    .await;
    let revoke = "REVOKE EXECUTE ON FUNCTION email_events_ensure_month(timestamptz) FROM ses_ledger_worker";
    check_finding(Severity::Error, revoke, "this login may not call email_events_ensure_month").await;
}

#[tokio::test]
async fn open_doors_and_missing_months_are_worth_a_warning() {
    let tables = [
        "email_logs",
        "email_events",
        "orphaned_events",
        "quarantined_messages",
        "ses_ledger_workers",
        "ses_ledger_minutes",
        "ses_ledger_kinds",
    ];
    let mut breakages = Vec::from(tables.map(|table| {
        (format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"), format!("row level security is off for {table}"))
    }));
    let next_month = "DO $$ BEGIN EXECUTE 'DROP TABLE email_events_' || to_char(now() + interval '1 month', '\"y\"YYYY\"m\"MM'); END $$";
    breakages.push((next_month.to_owned(), "partitions are ready for 0 months after this one".to_owned()));
    // Hides none of the others.
    breakages.push((NEWER.to_owned(), "migration 999 (newer) is unknown".to_owned()));
    check_findings(Severity::Warning, &breakages).await;
}

const NEWER: &str = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (999, 'newer', true, 'x', 0)";

#[tokio::test]
async fn a_policy_that_hides_the_tables_from_the_worker_is_found() {
    // Every event would become an orphan, without a word.
    let database = database::fresh().await;
    let worker = login(&database, &["ses_ledger_worker"]).await;
    database.run("DROP POLICY worker ON email_logs").await;
    let findings = schema::verify(&connect(&worker)).await.expect("the database is there");
    assert!(
        findings
            .iter()
            .any(|f| f.severity == Severity::Error && f.what.contains("row level security hides email_logs")),
        "{findings:#?}"
    );
    check_sound(&database.url).await;
}

#[tokio::test]
async fn a_schema_of_another_version_is_found() {
    check_finding(Severity::Error, "DELETE FROM _sqlx_migrations WHERE version = 7", "migration 7 (views) has not run")
        .await;
    check_finding(
        Severity::Error,
        "UPDATE _sqlx_migrations SET checksum = 'x' WHERE version = 3",
        "ran with another text",
    )
    .await;

    let database = database::empty().await;
    let findings = schema::verify(&database.store()).await.expect("the database is there");
    let all = migrations::status(&database.store()).await.expect("the database is there").len();
    assert_eq!(findings.len(), all, "nothing has run: {findings:#?}");
    assert_eq!(findings[0].fix, "ses-ledger migrate up");

    let edited = database::fresh().await;
    edited.run("UPDATE _sqlx_migrations SET checksum = 'x' WHERE version = 3").await;
    let error = migrations::up(&edited.store()).await.expect_err("the history is another one");
    assert!(format!("{error:#}").contains("migration 3 ran with another text"), "{error:#}");
}

#[tokio::test]
async fn the_owner_of_a_database_can_migrate_where_the_roles_are_there() {
    let database = database::empty().await;
    let plain = login_of(&database, "LOGIN").await;
    database.run(&own(&database, &plain)).await;
    check_hint(&plain).await;
    // What the hint says helps.
    database.run(&format!("GRANT ses_ledger_owner TO {}", user_of(&plain))).await;
    migrations::up(&connect(&plain)).await.expect("it may become the owner");
    check_sound(&plain).await;
    migrations::down(&connect(&plain), 0).await.expect("it may become the owner");
}

/// Refused, and told what to do about it.
async fn check_hint(url: &str) {
    let error = format!("{:#}", migrations::up(&connect(url)).await.expect_err("it may not make or become the owner"));
    for part in ["cannot migrate the database", "CREATEROLE", "GRANT ses_ledger_owner TO"] {
        assert!(error.contains(part), "{error}");
    }
}

fn own(database: &Database, url: &str) -> String {
    let name = database.url.rsplit('/').next().expect("it ends with the name");
    format!("ALTER DATABASE {name} OWNER TO {}", user_of(url))
}

fn user_of(url: &str) -> &str {
    url.split(['/', ':']).nth(3).expect("a user comes after the scheme")
}

#[tokio::test]
async fn a_cluster_without_the_roles_gets_them_from_a_login_that_may_make_roles() {
    check_new_cluster(OriginChoice::Any).await;
}

#[tokio::test]
async fn the_newest_postgresql_understands_the_same_dialect() {
    let version = check_new_cluster(OriginChoice::Download).await;
    assert!(version >= 180_000, "{version}");
}

/// Nobody but the one who starts the cluster is a superuser. Returns the version.
async fn check_new_cluster(origin: OriginChoice) -> i64 {
    let settings = LocalPostgresSettings { origin, max_connections: 20, ..database::local_settings() };
    let cluster = LocalPostgres::start(settings).await.expect("PostgreSQL can be had");
    let mut admin = PgConnection::connect(&cluster.url()).await.expect("it runs");
    let make = "CREATE ROLE plain LOGIN PASSWORD 'p'; CREATE ROLE maker LOGIN CREATEROLE PASSWORD 'p'; CREATE ROLE worker LOGIN PASSWORD 'p'";
    admin.execute(make).await.expect("the cluster is new");
    for name in ["plain", "maker"] {
        admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name} OWNER {name}"))).await.expect("the cluster is new");
    }
    let url = |user: &str, database: &str| format!("postgres://{user}:p@127.0.0.1:{}/{database}", cluster.port());

    check_hint(&url("plain", "plain")).await;
    let maker = url("maker", "maker");
    migrations::up(&connect(&maker)).await.unwrap_or_else(|e| panic!("a login with CREATEROLE: {e:#}"));
    check_sound(&maker).await;
    migrations::down(&connect(&maker), 0).await.unwrap_or_else(|e| panic!("a login with CREATEROLE: {e:#}"));
    migrations::up(&connect(&maker)).await.expect("the roles are there by now");
    admin.execute("GRANT ses_ledger_worker TO worker").await.expect("both are there");
    check_sound(&url("worker", "maker")).await;

    let worker = connect(&url("worker", "maker"));
    let mut sender = PgConnection::connect(&maker).await.expect("it runs");
    sender
        .execute("SET ROLE ses_ledger_owner; INSERT INTO email_logs (aws_message_id) VALUES ('m')")
        .await
        .expect("it is the owner");
    assert_eq!(
        store(&worker, [event("m", EventKind::Send), opened("m", 5), opened("n", 5)]).await,
        [Inserted, Inserted, Orphaned]
    );
    sender.execute("INSERT INTO email_logs (aws_message_id) VALUES ('n')").await.expect("it is the owner");
    assert_eq!(orphans::sweep_all(&worker).await.expect("nobody is in the way"), 1);
    let statuses: Vec<String> =
        sqlx::query_scalar("SELECT status FROM email_logs").fetch_all(&mut sender).await.expect("it is there");
    assert_eq!(statuses, ["opened", "opened"]);
    worker.close().await;
    let version: String =
        sqlx::query_scalar("SHOW server_version_num").fetch_one(&mut admin).await.expect("it answers");
    cluster.close().await.expect("nothing is left");
    version.parse().expect("a number")
}
