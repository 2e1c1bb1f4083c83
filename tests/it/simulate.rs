//! The simulator, as a user runs it: it finds what is wrong, and nothing else.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use ses_ledger::local::story::{Mess, Profile, Story, StorySettings};
use time::macros::datetime;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::timeout,
};

use crate::{binary::Running, database, emulator, worker::Queue};

fn simulate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ses-ledger"));
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools");
    command
        .arg("simulate")
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("XDG_CACHE_HOME", cache)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Its exit code, and what it says.
async fn end_of(mut command: Command) -> (Option<i32>, String, String) {
    let output = timeout(Duration::from_secs(180), command.output()).await.expect("a simulation ends");
    let output = output.expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The report, as JSON.
async fn report(code: i32, arguments: &[&str]) -> Value {
    let (found, out, err) = end_of(simulate(&[arguments, &["--json"]].concat())).await;
    assert_eq!(found, Some(code), "{out}{err}");
    serde_json::from_str(out.trim()).unwrap_or_else(|e| panic!("{e}: {out}"))
}

fn number(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number {path} in {report}"))
}

/// All expected, and all found.
fn sums(report: &Value, table: &str) -> (u64, u64) {
    let rows: Vec<&Value> = report[table].as_object().expect("it is a table").values().collect();
    let sum = |column: &str| rows.iter().filter_map(|row| row[column].as_u64()).sum();
    (sum("expected"), sum("found"))
}

#[tokio::test]
async fn a_quiet_simulation_is_exact_and_its_report_adds_up() {
    let report = report(0, &["smoke", "--mails", "80", "--seed", "5", "--duration", "1s"]).await;
    let n = |path: &str| number(&report, path);
    assert_eq!(report["holds"], true);
    assert!(n("/messages/sent") > 200, "{report}");
    assert_eq!(n("/messages/sent"), n("/messages/deleted"));
    assert_eq!(n("/messages/handed_out"), n("/messages/sent"), "nothing comes again: {report}");
    let settled = ["stored", "ignored", "rejected", "released", "in_hand"].map(|name| n(&format!("/workers/{name}")));
    assert_eq!(n("/workers/received"), settled.iter().sum::<u64>());
    assert_eq!(n("/workers/received"), n("/messages/sent"));
    let judged = ["inserted", "duplicate", "orphaned", "quarantined"].map(|name| n(&format!("/workers/{name}")));
    assert_eq!(n("/workers/decoded"), judged.iter().sum::<u64>());
    assert!(n("/workers/pages") > 0 && n("/workers/pages_with_drift") == 0);

    // The same story, told here.
    let settings = StorySettings::new(5, 80, datetime!(2026-10-05 08:00 UTC));
    let truth = Story::tell(&StorySettings { mess: Mess::default(), profile: Profile::Usual, ..settings }).truth;
    assert_eq!(n("/messages/sent"), truth.messages as u64);
    assert_eq!(n("/workers/decoded"), truth.events as u64);
    assert_eq!(sums(&report, "events"), (truth.rows.len() as u64, truth.rows.len() as u64));
    assert_eq!(sums(&report, "orphans"), (truth.orphans.len() as u64, truth.orphans.len() as u64));
    assert_eq!(sums(&report, "statuses"), (truth.facts.len() as u64, truth.facts.len() as u64));
    let (expected, found) = sums(&report, "quarantine");
    assert!(expected > 0 && expected == found, "{report}");
    let lag = ["p50", "p95", "p99", "max"].map(|name| n(&format!("/lag_ms/{name}")));
    assert!(lag.is_sorted() && lag[3] > 0, "{report}");
    assert!(report["fill"]["receive"].as_f64().is_some_and(|fill| (1.0..=10.0).contains(&fill)));
    assert!(report["dollars_per_million_events"].as_f64().is_some_and(|dollars| dollars > 0.04));
    assert_eq!(report["replay"], "ses-ledger simulate smoke --seed 5 --mails 80 --duration 1000ms");
}

#[tokio::test]
async fn killed_workers_lose_and_double_nothing() {
    let report = report(0, &["kill-storm", "--mails", "1500", "--kills", "8", "--seed", "3"]).await;
    assert_eq!((number(&report, "/workers/killed"), number(&report, "/workers/killed_under_load")), (8, 8));
    assert_eq!(number(&report, "/workers/started"), 11);
    assert!(number(&report, "/messages/redelivered") > 0, "no kill hit anything: {report}");
    assert_eq!(number(&report, "/differences/count"), 0);
}

#[tokio::test]
async fn a_queue_that_fails_makes_no_message_come_twice() {
    let report = report(0, &["flaky-queue", "--mails", "600", "--seed", "4", "--failed-deletes", "10"]).await;
    assert!(number(&report, "/troubles/failed_requests") > 5, "{report}");
    assert_eq!((number(&report, "/messages/redelivered"), number(&report, "/messages/dead_letters")), (0, 0));
}

#[tokio::test]
async fn an_outage_gives_no_message_up() {
    let all = [
        "outage",
        "--mails",
        "400",
        "--duration",
        "4s",
        "--away",
        "12s",
        "--cuts",
        "1",
        "--crashes",
        "1",
        "--seed",
        "6",
    ];
    let report = report(0, &all).await;
    assert_eq!(report["troubles"]["away_seconds"], 12.0);
    assert_eq!((number(&report, "/troubles/cuts"), number(&report, "/troubles/crashes")), (1, 1));
    assert!(number(&report, "/lag_ms/max") > 11_000, "nobody waited for the database: {report}");
    assert_eq!(number(&report, "/messages/dead_letters"), 0);
    assert!(number(&report, "/requests/visibility") > 10, "nothing was held: {report}");
}

/// A database that moves the status of one mail backwards, and loses an event of another.
#[tokio::test]
async fn what_is_wrong_is_found_counted_and_explained() {
    let database = database::fresh().await;
    database
        .run(
            "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.rejected_at := NULL; RETURN NEW; END $$;
             CREATE TRIGGER forget BEFORE UPDATE ON email_logs FOR EACH ROW EXECUTE FUNCTION forget()",
        )
        .await;
    let mails = ["smoke", "--mails", "300", "--seed", "7", "--duration", "1s", "--database-url", &database.url];
    let report = report(1, &mails).await;
    let wrong = number(&report, "/wrong_mails");
    assert!(wrong > 0, "nobody was rejected: {report}");
    assert_eq!(number(&report, "/differences/count"), wrong, "nothing else is wrong");
    assert_eq!(report["promises"]["every row, fact and status is what it must be"], false);
    assert_eq!(report["statuses"]["rejected"], json!({ "expected": wrong, "found": 0 }));
    let mail = &report["first_differing_mail"];
    let (expected, found) = (mail["expected"].as_str(), mail["found"].as_str());
    assert!(expected.is_some_and(|facts| facts.starts_with("rejected")), "{mail}");
    assert!(found.is_some_and(|facts| !facts.contains("rejected")), "{mail}");
    let told = mail["told_by"].as_array().expect("it is a list");
    assert!(told.iter().any(|carrier| carrier["kind"] == "reject"), "{mail}");

    let (code, out, err) = end_of(simulate(&mails)).await;
    assert_eq!(code, Some(1), "{out}{err}");
    for word in ["NOT AS IT MUST BE", "The first mail that is not as it must be", "--seed 7", "told by"] {
        assert!(out.contains(word), "no {word:?} in {out}");
    }
    let wide: Vec<&str> = out.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{wide:#?}");
}

#[tokio::test]
async fn a_lost_row_is_found_and_named() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    // As soon as it is attached to its mail, or stored: gone.
    database
        .run(
            "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN DELETE FROM email_events WHERE uuid = NEW.uuid AND email_log_uuid = NEW.email_log_uuid; RETURN NULL; END $$;
             CREATE TRIGGER lose AFTER INSERT ON email_events FOR EACH ROW WHEN (NEW.event_type = 'reject')
               EXECUTE FUNCTION lose()",
        )
        .await;
    let target = ["--database-url", &database.url, "--queue-url", &queue.url, "--patience", "2s"];
    let report =
        report(1, &[&["smoke", "--mails", "300", "--seed", "7", "--duration", "1s"], &target[..]].concat()).await;
    let lost = number(&report, "/events/reject/expected");
    assert!(lost > 0 && number(&report, "/events/reject/found") == 0, "{report}");
    assert_eq!(number(&report, "/differences/count"), lost);
    let events = report["first_differing_mail"]["events"].as_array().expect("it is a list");
    assert!(events.iter().any(|event| event["kind"] == "reject" && event["is"] == "missing"), "{report}");
}

#[tokio::test]
async fn a_deployment_of_ones_own_is_proved_and_left_as_it_was() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    // Somebody's mail, its event, an orphan, and a body that simulations send as well.
    let own = Story::tell(&StorySettings {
        mess: Mess { unknown_mails: 0.3, ..Mess::none() },
        ..StorySettings::new(99, 20, datetime!(2026-09-01 08:00 UTC))
    });
    let running = Running::start(&database.url, &queue.url, &["--visibility-timeout", "30s"]).await;
    crate::binary::play(&database, &queue.handle, &own).await;
    queue.handle.send("null");
    queue.drained().await;
    database.run("UPDATE orphaned_events SET aws_message_id = replace(aws_message_id, '-facade', '-000000')").await;
    database.run("UPDATE email_logs SET aws_message_id = replace(aws_message_id, '-facade', '-000000')").await;
    let rows = async || {
        let mut contents = Vec::new();
        for table in ["email_logs", "email_events", "orphaned_events"] {
            contents.push(
                database.text(&format!("SELECT md5(string_agg(t::text, '' ORDER BY uuid)) FROM {table} AS t")).await,
            );
        }
        contents.push(
            database.text("SELECT string_agg(body_digest::text, '' ORDER BY uuid) FROM quarantined_messages").await,
        );
        contents
    };
    let before = rows().await;
    let target = ["--database-url", &database.url, "--queue-url", &queue.url, "--workers", "0"];
    let all = [&["smoke", "--mails", "300", "--seed", "8", "--duration", "1s"], &target[..]].concat();
    let report = report(0, &all).await;
    assert_eq!((number(&report, "/workers/started"), number(&report, "/wrong_mails")), (0, 0));
    assert_eq!(report["lag_ms"]["until"], "stored");
    assert!(number(&report, "/lag_ms/max") > 0, "{report}");
    let marked = "SELECT count(*) FROM email_logs WHERE tags ? 'ses_ledger_simulation'";
    assert_eq!(database.number(marked).await as u64, sums(&report, "statuses").0);
    assert_ne!(rows().await, before);

    let (code, out, err) = end_of(simulate(&["--clean", "--database-url", &database.url])).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("Removed what simulations had left"), "{out}");
    assert_eq!(rows().await, before, "{out}");
    running.stop().await;
}

#[tokio::test]
async fn a_simulation_cleans_up_behind_itself_if_it_is_told_to() {
    let database = database::fresh().await;
    let all = ["late-logs", "--mails", "150", "--duration", "1s", "--clean", "--database-url", &database.url];
    let (code, out, err) = end_of(simulate(&all)).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("exact.") && out.contains("Removed what simulations had left"), "{out}");
    for table in ["email_logs", "email_events", "orphaned_events", "quarantined_messages"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
}

async fn check_refused(code: i32, word: &str, arguments: &[&str]) {
    let (found, out, err) = end_of(simulate(arguments)).await;
    assert_eq!((found, out.as_str()), (Some(code), ""), "{arguments:?}: {err}");
    assert!(err.contains(word), "no {word:?} in {err}");
}

#[tokio::test]
async fn what_is_not_the_simulators_own_is_not_troubled_and_not_written_to_unasked() {
    let here = "postgres://me@127.0.0.1:1/mine";
    check_refused(64, "--yes", &["--queue-url", "https://sqs.eu-west-1.amazonaws.com/123456789012/real"]).await;
    check_refused(64, "--yes", &["--database-url", "postgres://me:secret@db.example.com/mine"]).await;
    check_refused(64, "--yes", &["--clean", "--database-url", "postgres://me:secret@db.example.com/mine"]).await;
    check_refused(64, "private one only", &["outage", "--database-url", here]).await;
    check_refused(64, "private one only", &["--restarts", "1", "--database-url", here]).await;
    check_refused(64, "embedded one", &["flaky-queue", "--queue-url", "http://127.0.0.1:1/0/mine"]).await;
    check_refused(64, "--workers 0 needs", &["--workers", "0"]).await;
    check_refused(64, "--clean removes", &["--clean"]).await;
    check_refused(64, "from 0 to 100", &["--failed-deletes", "200"]).await;
    check_refused(69, "cannot connect to the database", &["--database-url", here]).await;
    check_refused(69, "migrate", &["--database-url", &database::empty().await.url]).await;
}

#[tokio::test]
async fn an_emulator_of_sqs_is_a_target_with_its_own_queue_and_workers_that_are_killed() {
    let (_, queue_url) = emulator::queue("simulation").await;
    let all = ["smoke", "--mails", "400", "--seed", "9", "--kills", "2", "--queue-url", &queue_url];
    let settings =
        ["--", "--visibility-timeout=6s", "--store-timeout=2s", "--statement-timeout=1s", "--delete-budget=2s"];
    let (code, out, err) = end_of(simulate(&[&all[..], &["--json"], &settings].concat())).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let report: Value = serde_json::from_str(out.trim()).expect("it is JSON");
    assert_eq!((number(&report, "/workers/killed"), number(&report, "/differences/count")), (2, 0));
    assert_eq!(report["lag_ms"]["until"], "stored");
    assert!(number(&report, "/requests/receive") > 0 && number(&report, "/requests/delete") > 0, "{report}");
    assert!(report["messages"]["deleted"].is_null(), "nobody has seen that: {report}");
}

#[tokio::test]
async fn messages_of_others_are_not_taken_away() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    queue.handle.send("somebody's real message");
    check_refused(64, "use an empty queue", &["--database-url", &database.url, "--queue-url", &queue.url]).await;
    assert_eq!(queue.handle.bodies().len(), 1);
}

#[tokio::test]
async fn the_workers_end_with_the_simulator_however_it_ends() {
    for (signal, code) in [("INT", Some(130)), ("KILL", None)] {
        let mut running = simulate(&["smoke", "--duration", "60s"]).spawn().expect("the binary starts");
        let mut lines = BufReader::new(running.stdout.take().expect("it is piped")).lines();
        let workers = async {
            // It says how it goes once the workers receive.
            while let Some(line) = lines.next_line().await.expect("it is text") {
                if line.contains(" done ") {
                    break;
                }
            }
            children(running.id().expect("it runs"))
        };
        let workers = timeout(Duration::from_secs(60), workers).await.expect("it starts its workers");
        assert_eq!(workers.len(), 2, "two workers");
        let kill = format!("kill -s {signal} {}", running.id().expect("it runs"));
        assert!(Command::new("sh").args(["-c", &kill]).status().await.expect("there is a shell").success());
        let status = timeout(Duration::from_secs(60), running.wait()).await.expect("it ends").expect("it was ours");
        assert_eq!(status.code(), code, "SIG{signal}");
        crate::worker::eventually("the workers are gone", || workers.iter().all(|worker| !is_worker(worker))).await;
    }
}

/// The processes of this parent that are workers.
fn children(parent: u32) -> Vec<String> {
    let of_parent = |process: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let fields =
            stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        fields.is_some_and(|fields| fields.get(1) == Some(&parent.to_string())) && is_worker(process)
    };
    let all = std::fs::read_dir("/proc").expect("the tests run on Linux").flatten();
    all.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(of_parent).collect()
}

fn is_worker(process: &String) -> bool {
    std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| line.windows(4).any(|part| part == b"\0run"))
}
