//! Optional indexes: `ses-ledger migrate --with`, `--without` and `--optional`, and that `find` makes use of them.

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use sqlx::Executor as _;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr},
    time::{Instant, sleep, timeout},
};

use super::{Ended, PATIENCE, end_of, ses_ledger, until};
use crate::{
    database::{self, Database},
    roles::login,
};

const OF_SEARCH: [&str; 4] = [
    "email_logs_search_recipients",
    "email_logs_search_subject",
    "email_logs_search_campaign",
    "email_events_search_recipient",
];
const OF_ANALYTICS: [&str; 3] = ["email_logs_by_template", "email_logs_by_campaign", "email_logs_with_content"];

async fn call(url: &str, arguments: &[&str]) -> Ended {
    let mut command = ses_ledger(arguments.iter().copied());
    command.env("DATABASE_URL", url);
    end_of(command).await
}

/// The report that a command ends with.
async fn report(database: &Database, arguments: &[&str]) -> Vec<Value> {
    let ended = call(&database.url, &[&["migrate", "--json"], arguments].concat()).await;
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}{}", ended.out, ended.err);
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("not a line of JSON ({e}): {line}"));
    ended.out.lines().map(parse).collect()
}

/// The names of those in this state.
fn named<'a>(report: &'a [Value], state: &str) -> Vec<&'a str> {
    let of_state = report.iter().filter(|index| index["state"] == state);
    of_state.map(|index| index["index"].as_str().expect("each has a name")).collect()
}

fn of<'a>(report: &'a [Value], name: &str) -> &'a Value {
    report.iter().find(|index| index["index"] == name).unwrap_or_else(|| panic!("{name} is in the report"))
}

async fn find(database: &Database, arguments: &[&str]) -> Value {
    let ended = call(&database.url, &[&["find", "--json"], arguments].concat()).await;
    serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}{}", ended.out, ended.err))
}

fn subjects(found: &Value) -> Vec<&str> {
    let mails = found["mails"].as_array().expect("a list");
    mails.iter().map(|mail| mail["subject"].as_str().unwrap_or("-")).collect()
}

/// Mails one second apart: more of hay than `find` looks through before it asks an index, and before them a few others.
async fn haystack() -> Database {
    let database = database::fresh().await;
    database
        .run(
            "INSERT INTO email_logs (uuid, recipients, subject, template_name, campaign_id, body_full)
             SELECT overlay(ses_ledger_uuid_floor(now() - n * interval '1 s')::text PLACING '7' FROM 15)::uuid,
                    CASE n WHEN 42001 THEN '{Jane Doe <Jane.Doe@Needles.Example>}' WHEN 42002 THEN '{}' ELSE ARRAY['hay' || n || '@example.net'] END,
                    CASE n WHEN 42001 THEN 'To Jane' WHEN 42002 THEN 'To nobody' WHEN 42003 THEN 'Now 100% rust_proof'
                           WHEN 42004 THEN 'Now 1000 rusty proofs' WHEN 42005 THEN 'In a campaign' ELSE 'hay' END,
                    CASE n WHEN 42005 THEN 'rare' ELSE 'common' END,
                    CASE n WHEN 42005 THEN 'Needlework-2026' ELSE 'hay' END,
                    CASE WHEN n > 42000 THEN 'a body' END
             FROM generate_series(1, 42010) AS n",
        )
        .await;
    database
        .run(
            "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, queue, sqs_message_id, received_at)
             SELECT ses_ledger_uuid_v7(), uuid, 'delivery', now(),
                    CASE subject WHEN 'hay' THEN 'hay' || substr(uuid::text, 1, 13) || '@example.net' ELSE 'hidden@needles.example' END,
                    'q', 'm', now()
             FROM email_logs WHERE subject IN ('hay', 'To nobody')",
        )
        .await;
    database.run("ANALYZE").await;
    database
}

/// How often an index was read. Who has read it counts when he leaves, a moment later.
async fn read_more_often(database: &Database, index: &str, than: i64) {
    let deadline = Instant::now() + PATIENCE;
    while of(&report(database, &["--optional"]).await, index)["used"].as_i64() <= Some(than) {
        assert!(Instant::now() < deadline, "{index} was not read");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn sets_are_built_told_of_and_dropped_again() {
    let database = database::fresh().await;
    let before = report(&database, &["--optional"]).await;
    assert_eq!(named(&before, "absent"), [&OF_SEARCH[..], &OF_ANALYTICS].concat());
    let search = report(&database, &["--with=search"]).await;
    assert_eq!((named(&search, "ready"), named(&search, "absent")), (OF_SEARCH.to_vec(), OF_ANALYTICS.to_vec()));
    for index in &search[..4] {
        assert!(index["bytes"].as_i64() > Some(0) && index["used"] == 0, "{index}");
        assert!(index["set"] == "search" && index["serves"].as_str().is_some_and(|text| text.starts_with("find ")));
    }
    let months = database.number("SELECT count(*) FROM pg_inherits WHERE inhparent = 'email_events'::regclass").await;
    assert_eq!(of(&search, "email_events_search_recipient")["partitions"], serde_json::json!([months, months]));

    let all = "SELECT string_agg(indexrelid::text, ',' ORDER BY indexrelid) FROM pg_index";
    let built = database.text(all).await;
    assert_eq!(named(&report(&database, &["--with=search"]).await, "ready"), OF_SEARCH, "again changes nothing");
    assert_eq!(database.text(all).await, built);
    assert_eq!(named(&report(&database, &["--with", "search,analytics"]).await, "ready").len(), 7);
    let verify = call(&database.url, &["migrate", "verify"]).await;
    assert_eq!(verify.code, Some(0), "{}", verify.out);

    let people = call(&database.url, &["migrate", "--optional"]).await.out;
    assert!(people.lines().all(|line| line.chars().count() <= 80), "{people}");
    assert!(people.contains("email_logs_search_subject       ready"), "{people}");

    let without = report(&database, &["--without=search"]).await;
    assert_eq!((named(&without, "ready"), named(&without, "absent")), (OF_ANALYTICS.to_vec(), OF_SEARCH.to_vec()));
    assert_eq!(named(&report(&database, &["--without=analytics"]).await, "absent").len(), 7);
    let left = "SELECT count(*) FROM pg_class WHERE relkind IN ('i', 'I') AND relname ~ '_(search|by|with)_'";
    assert_eq!(database.number(left).await, 0, "nothing of a partition is left either");
    assert_eq!(database.number("SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'").await, 1);
}

#[tokio::test]
async fn find_finds_the_same_with_and_without_and_reads_the_indexes_that_are_there() {
    let database = haystack().await;
    let questions: [(&[&str], &[&str]); 8] = [
        (&["--like", "jane.doe@need"], &["To Jane"]),
        (&["--like", "needles.example"], &["To Jane", "To nobody"]),
        (&["--like", "needlework"], &["In a campaign"]),
        (&["--like", "100% RUST_P"], &["Now 100% rust_proof"]),
        (&["--like", "rust_proof", "--status=delivered"], &[]),
        (&["rust_", "100%"], &["Now 100% rust_proof"]),
        (&["--campaign", "Needlework-2026"], &["In a campaign"]),
        (&["--template", "rare"], &["In a campaign"]),
    ];
    for (question, answer) in questions {
        let found = find(&database, question).await;
        assert_eq!(subjects(&found), answer, "{question:?}");
        assert!(found["lacks"] == "search" || found["lacks"] == "analytics", "{question:?}: {found}");
    }
    report(&database, &["--with=search,analytics"]).await;
    for (question, answer) in questions {
        let found = find(&database, question).await;
        assert_eq!((subjects(&found), &found["lacks"]), (answer.to_vec(), &Value::Null), "{question:?}");
    }
    for index in [&OF_SEARCH[..], &OF_ANALYTICS[..2]].concat() {
        read_more_often(&database, index, 0).await;
    }
    // Who looks for a part of one of many recipients sees that one; pages hold together.
    let page = find(&database, &["--like", "needles.example", "--limit=1"]).await;
    let next = page["next"].as_str().expect("there is another one");
    let second = find(&database, &["--like", "needles.example", "--limit=1", "--after", next]).await;
    assert_eq!((subjects(&page), subjects(&second)), (vec!["To Jane"], vec!["To nobody"]));
    assert_eq!(page["mails"][0]["recipient"], "jane.doe@needles.example");

    // So much fits that the index is of no help in time: it says how far it came.
    database
        .run(
            "CREATE OR REPLACE FUNCTION ses_ledger_written_to(recipients text[]) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT AS $$
             BEGIN
               IF recipients[1] ~ 'Jane' THEN PERFORM pg_sleep(60); END IF;
               RETURN array_to_string(recipients, ' ');
             END $$",
        )
        .await;
    let late = find(&database, &["--like", "jane.doe@need", "--statement-timeout=6s"]).await;
    assert!(subjects(&late).is_empty() && late["next"].is_string() && late["looked_back_to"].is_string(), "{late}");
}

#[tokio::test]
async fn a_dry_run_of_retention_weighs_bodies_by_the_index() {
    let database = haystack().await;
    report(&database, &["--with=analytics"]).await;
    database.run("UPDATE email_logs SET created_at = now() - interval '90 days'").await;
    database.run("ANALYZE email_logs").await;
    let dry = call(&database.url, &["retention", "run", "--dry-run", "--retention-body=1d", "--json"]).await;
    assert_eq!(dry.code, Some(0), "{}", dry.err);
    read_more_often(&database, "email_logs_with_content", 0).await;
}

/// Facts are written several times in a mail's life: none of these indexes may be in their way.
#[tokio::test]
async fn facts_are_written_past_the_optional_indexes() {
    let database = database::fresh().await;
    report(&database, &["--with=search,analytics"]).await;
    database
        .run(
            "INSERT INTO email_logs (recipients, subject, template_name, campaign_id, body_full)
              SELECT ARRAY['ada' || n || '@example.net'], 'Hello', 't', 'c', 'b' FROM generate_series(1, 5) AS n",
        )
        .await;
    let mut transaction = database.pool.begin().await.expect("it is connected");
    let facts = "UPDATE email_logs SET sent_at = now(), delivered_at = now(), opened_at = now(), clicked_at = now(), open_count = 1";
    transaction.execute(facts).await.expect("it is our table");
    let in_place = "SELECT pg_stat_get_xact_tuples_hot_updated('email_logs'::regclass)";
    let in_place: i64 =
        sqlx::query_scalar(in_place).fetch_one(&mut *transaction).await.expect("PostgreSQL counts them");
    assert_eq!(in_place, 5);
}

/// A build that says on standard error how it goes.
struct Building {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Building {
    fn start(database: &Database, arguments: &[&str]) -> Self {
        let mut command = ses_ledger([&["migrate", "--json"], arguments].concat());
        command.env("DATABASE_URL", &database.url).stdout(Stdio::null());
        let mut child = command.spawn().expect("the binary was built for this test");
        let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        Self { child, lines }
    }

    /// What it says when it waits for this session.
    async fn waits_for(&mut self, pid: i32) -> Value {
        let says = async {
            loop {
                let line = self.lines.next_line().await.expect("it writes lines").expect("it goes on");
                let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                if line["waits_for"]["pid"] == pid {
                    return line;
                }
            }
        };
        timeout(PATIENCE, says).await.expect("it says what it waits for")
    }

    /// As by Ctrl-C.
    async fn interrupted(&mut self) {
        let id = self.child.id().expect("it runs").to_string();
        let interrupt = tokio::process::Command::new("kill").args(["-INT", &id]).status().await;
        assert!(interrupt.is_ok_and(|status| status.success()));
        self.ends_with(1).await;
    }

    async fn ends_with(&mut self, code: i32) {
        let ended = timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("it ran");
        assert_eq!(ended.code(), Some(code));
    }
}

/// A transaction that has written a mail and does not end.
async fn open_transaction(database: &Database) -> (sqlx::Transaction<'static, sqlx::Postgres>, i32) {
    let mut open = database.pool.begin().await.expect("it is connected");
    open.execute("INSERT INTO email_logs (sender) VALUES ('slow')").await.expect("it is our table");
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *open).await.expect("it is connected");
    (open, pid)
}

/// In this database: other tests build as well.
async fn is_building(database: &Database) -> bool {
    let building = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND state = 'active' AND query LIKE 'CREATE INDEX CONC%'";
    database.number(building).await > 0
}

#[tokio::test]
async fn writers_go_on_while_an_index_is_built_and_it_says_what_it_waits_for() {
    let database = database::fresh().await;
    let (open, pid) = open_transaction(&database).await;
    let mut building = Building::start(&database, &["--with=analytics"]);
    let waiting = building.waits_for(pid).await;
    assert_eq!(
        (&waiting["index"], &waiting["phase"]),
        (&"email_logs_by_template".into(), &"waiting for writers before build".into())
    );
    assert!(waiting["waits_for"]["open_seconds"].is_i64(), "{waiting}");

    // Who writes meanwhile, and who changes what is there, does not wait.
    database
        .run("SET statement_timeout = '5s'; INSERT INTO email_logs (sender, template_name) VALUES ('quick', 't')")
        .await;
    database.run("SET statement_timeout = '5s'; UPDATE email_logs SET opened_at = now() WHERE sender = 'quick'").await;
    let second = call(&database.url, &["migrate", "--without=search"]).await;
    assert_eq!(second.code, Some(1), "{}", second.out);
    assert!(second.err.contains("another run builds or drops optional indexes"), "{}", second.err);

    open.commit().await.expect("it is connected");
    building.ends_with(0).await;
    assert_eq!(named(&report(&database, &["--optional"]).await, "ready"), OF_ANALYTICS);
    let by_index = "SET enable_seqscan = off; SELECT count(*) FROM email_logs WHERE template_name = 't'";
    database.run(by_index).await;
    assert_eq!(database.number("SELECT count(*) FROM email_logs WHERE template_name = 't'").await, 1);
}

#[tokio::test]
async fn a_build_that_was_killed_is_told_of_and_built_anew() {
    let database = database::fresh().await;
    let (open, pid) = open_transaction(&database).await;
    let mut building = Building::start(&database, &["--with=analytics"]);
    building.waits_for(pid).await;
    building.child.kill().await.expect("it runs");
    // The server notices by itself that nobody waits for it any more.
    until("the build ends for want of anybody", async || !is_building(&database).await).await;
    open.commit().await.expect("it is connected");
    let left = report(&database, &["--optional"]).await;
    assert_eq!(named(&left, "unfinished"), ["email_logs_by_template"]);
    let verify = call(&database.url, &["migrate", "verify", "--json"]).await;
    let finding: Value = serde_json::from_str(verify.out.trim()).unwrap_or_else(|e| panic!("{e}: {}", verify.out));
    assert!(finding["severity"] == "warning" && finding["fix"].to_string().contains("--with analytics"), "{finding}");

    assert_eq!(named(&report(&database, &["--with=analytics"]).await, "ready"), OF_ANALYTICS);
    assert_eq!(call(&database.url, &["migrate", "verify"]).await.code, Some(0));
}

#[tokio::test]
async fn an_interrupted_build_stops_at_once_and_goes_on_where_it_was() {
    let database = database::fresh().await;
    // As far as a month in the middle: its part is there and invalid, those before it are attached.
    report(&database, &["--with=search"]).await;
    database.run("DROP INDEX email_events_search_recipient, email_logs_search_subject").await;
    database
        .run(
            "CREATE INDEX email_events_search_recipient ON ONLY email_events USING gin (recipient gin_trgm_ops)
              WITH (fastupdate = off) WHERE event_type IN ('delivery', 'bounce') AND recipient <> ''",
        )
        .await;
    let month =
        database.text("SELECT min(relname) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'email_events_y%'").await;
    database.run(&format!("CREATE INDEX {month}_search_recipient ON {month} USING gin (recipient gin_trgm_ops)")).await;
    let invalid =
        format!("UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{month}_search_recipient'::regclass");
    database.run(&invalid).await;
    // A month that comes meanwhile has its part at once.
    database.run("SELECT email_events_ensure_month('2031-05-01')").await;

    let (open, pid) = open_transaction(&database).await;
    let mut building = Building::start(&database, &["--with=search"]);
    building.waits_for(pid).await;
    building.interrupted().await;
    until("the build ends with who asked for it", async || !is_building(&database).await).await;
    open.commit().await.expect("it is connected");

    let report = report(&database, &["--with=search"]).await;
    assert_eq!(named(&report, "ready"), OF_SEARCH);
    let partitions = &of(&report, "email_events_search_recipient")["partitions"];
    assert_eq!(partitions[0], partitions[1], "{report:?}");
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    assert_eq!(database.number(invalid).await, 0);
}

#[tokio::test]
async fn a_new_month_has_the_index_and_one_that_goes_takes_its_part_along() {
    let database = database::fresh().await;
    report(&database, &["--with=search"]).await;
    database.run("SELECT email_events_ensure_month('2031-05-01')").await;
    let attached = "SELECT count(*) FROM pg_inherits JOIN pg_index ON indexrelid = inhrelid
                    WHERE inhparent = 'email_events_search_recipient'::regclass AND indrelid = 'email_events_y2031m05'::regclass";
    assert_eq!(database.number(attached).await, 1);
    let state = |report: &[Value]| of(report, "email_events_search_recipient").clone();
    let with_it = state(&report(&database, &["--optional"]).await);
    assert_eq!((&with_it["state"], &with_it["partitions"][0]), (&"ready".into(), &with_it["partitions"][1]));

    // As retention lets a month go.
    let old = "SELECT email_events_ensure_month('2020-01-01')";
    database.run(old).await;
    let run = call(&database.url, &["retention", "run", "--retention-events=400d"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(database.number("SELECT count(*) FROM pg_class WHERE relname LIKE 'email_events_y2020m01%'").await, 0);
    assert_eq!(state(&report(&database, &["--optional"]).await), with_it);
}

/// What makes the whole valid is that the last part is attached: that must not be one that goes away.
#[tokio::test]
async fn a_month_that_goes_before_it_has_its_part_leaves_no_index_that_never_comes_to_be() {
    let database = database::fresh().await;
    database.run("SELECT email_events_ensure_month('2049-12-01')").await;
    let mut open = database.pool.begin().await.expect("it is connected");
    open.execute("LOCK TABLE email_events_y2049m12 IN ROW EXCLUSIVE MODE").await.expect("it is our table");
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *open).await.expect("it is connected");
    let mut building = Building::start(&database, &["--with=search"]);
    let waiting = building.waits_for(pid).await;
    let months = database.number("SELECT count(*) FROM pg_inherits WHERE inhparent = 'email_events'::regclass").await;
    assert_eq!(waiting["partition"], serde_json::json!([months - 2, months]), "the last month, and then the two ends");
    building.interrupted().await;
    open.commit().await.expect("it is connected");
    database.run("ALTER TABLE email_events DETACH PARTITION email_events_y2049m12").await;
    database.run("DROP TABLE email_events_y2049m12").await;
    assert_eq!(named(&report(&database, &["--with=search"]).await, "ready"), OF_SEARCH);
}

#[tokio::test]
async fn who_lacks_a_right_is_told_which() {
    let database = database::fresh().await;
    let worker = login(&database, &["ses_ledger_worker"]).await;
    let refused = call(&worker, &["migrate", "--with=analytics"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("GRANT ses_ledger_owner"), "{}", refused.err);

    // An owner of the tables that may not make extensions.
    let owner = login(&database, &["ses_ledger_owner", "ses_ledger_operator"]).await;
    let refused = call(&owner, &["migrate", "--with=search"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("CREATE EXTENSION pg_trgm"), "{}", refused.err);
    assert_eq!(named(&report(&database, &["--optional"]).await, "absent").len(), 7);
    database.run("CREATE EXTENSION pg_trgm").await;
    let built = call(&owner, &["migrate", "--with=search"]).await;
    assert_eq!(built.code, Some(0), "{}", built.err);
}

#[tokio::test]
async fn what_makes_no_sense_is_bad_usage() {
    let database = database::fresh().await;
    let senseless: [&[&str]; 6] = [
        &["migrate"],
        &["migrate", "--with=search", "up"],
        &["migrate", "--with=search", "--without=search"],
        &["migrate", "--with=everything"],
        &["find", "--like", "ab"],
        &["find", "--like", "abc", "words"],
    ];
    for arguments in senseless {
        let ended = call(&database.url, arguments).await;
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}{}", ended.out, ended.err);
    }
}
