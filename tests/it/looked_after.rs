//! Who looks after the tables, and who notices when nobody does.

use std::time::Duration;

use ses_ledger::{
    event::EventKind,
    metrics::Metrics,
    pipeline::Verdict::Inserted,
    postgres::{
        letting_go::months_ahead,
        schema::{self, Severity},
    },
    pulse::{Identity, Pulse, Runtime},
    retention::{Class, Retention, Run, standing::Kept},
    status::{Status, status},
    upkeep,
};
use time::OffsetDateTime;

use crate::{
    arrivals::{event, store},
    binary::{Running, end_of, ses_ledger, until},
    database::{self, Database, connect},
    roles::login,
    worker::Queue,
};

async fn drop_month(database: &Database, ahead: i32) {
    let name = format!(
        "SELECT 'email_events_' || to_char((now() AT TIME ZONE 'UTC')::date + make_interval(months => {ahead}), '\"y\"YYYY\"m\"MM')"
    );
    let name = database.text(&name).await;
    database.run(&format!("DROP TABLE {name}")).await;
}

/// What everybody says who counts months: the function, the view, the metrics, `status`, and `migrate verify` with `doctor`.
async fn check_months(database: &Database, expected: i64) {
    let postgres = database.store();
    assert_eq!(months_ahead(&postgres).await.expect("it is there"), expected);
    assert_eq!(database.number("SELECT months_ahead FROM pipeline_health").await, expected);
    let metrics = Metrics::default();
    upkeep::gauge(&postgres, &Retention::default(), &metrics).await.expect("it is there");
    assert_eq!(metrics.months_ahead.get(), expected);

    let few = expected < 2;
    let operator = connect(&login(database, &["ses_ledger_operator"]).await);
    let status = status(&operator, Vec::new()).await.expect("it may look");
    assert_eq!(status.database.months_ahead, expected);
    let needs = status.needs_somebody();
    assert_eq!(needs.iter().any(|need| need.contains("ses-ledger partitions ensure")), few, "{needs:?}");
    let all = schema::verify(&postgres).await.expect("it is there");
    let warned = all.iter().any(|it| it.severity == Severity::Warning && it.what.contains("partitions are ready for"));
    assert_eq!(warned, few, "{all:?}");
}

#[tokio::test]
async fn months_are_counted_up_to_the_first_gap_and_everybody_counts_the_same() {
    let database = database::fresh().await;
    database.run("SELECT email_events_ensure_ahead(5)").await;
    check_months(&database, 5).await;
    drop_month(&database, 3).await;
    check_months(&database, 2).await;
    drop_month(&database, 2).await;
    check_months(&database, 1).await;
    drop_month(&database, 0).await;
    check_months(&database, 0).await;
    database.run("SELECT email_events_ensure_ahead(3)").await;
    check_months(&database, 5).await;
}

fn days(days: u64) -> Option<Duration> {
    Some(Duration::from_secs(days * 86_400))
}

/// A worker with these settings says that it is there.
async fn beat(database: &Database, name: &str, retention: Retention) {
    let identity = Identity { name: name.to_owned(), runtime: Runtime::Other, retention };
    let mut pulse = Pulse::new(identity, OffsetDateTime::now_utc());
    let postgres = connect(&login(database, &["ses_ledger_worker"]).await);
    upkeep::beat(&postgres, &mut pulse, &Metrics::default(), false).await.expect("the database takes it");
}

/// As somebody who may only look.
async fn look(database: &Database) -> Status {
    let operator = connect(&login(database, &["ses_ledger_operator"]).await);
    status(&operator, Vec::new()).await.expect("it may look")
}

fn of(status: &Status, class: Class) -> &Kept {
    status.retention.classes.iter().find(|kept| kept.class == class).expect("every class is shown")
}

async fn shown(database: &Database) -> String {
    let mut asking = ses_ledger(["status"]);
    asking.env("DATABASE_URL", &database.url);
    let shown = end_of(asking).await.out;
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    shown.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn retention_is_shown_class_by_class() {
    let database = database::fresh().await;
    let nobody = look(&database).await;
    assert!(nobody.retention.classes.iter().all(|kept| kept.workers_say.is_empty() && kept.rows.is_none()));
    assert!(shown(&database).await.contains("payloads, bodies, events, logs, orphans, quarantine: no worker has told"));

    let mail = "INSERT INTO email_logs (uuid, aws_message_id, created_at, body_full)
                VALUES (ses_ledger_uuid_floor(now() - interval '200 days'), 'old', now() - interval '200 days', 'Dear Bob')";
    database.run(mail).await;
    assert_eq!(store(&database.store(), [event("old", EventKind::Send)]).await, [Inserted]);
    database.run("UPDATE email_events SET received_at = now() - interval '200 days'").await;
    let keep = Retention { retention_payload: days(90), retention_events: days(100), ..Retention::default() };
    beat(&database, "one", keep).await;
    let (postgres, run) = (database.store(), Retention { retention_body: days(30), ..keep });
    Run { postgres: &postgres, retention: &run, export: None, tell: &mut |_| {} }
        .go()
        .await
        .expect("nothing is in the way");

    let status = look(&database).await;
    let [payloads, bodies, events, logs] =
        [Class::Payloads, Class::Bodies, Class::Events, Class::Logs].map(|class| of(&status, class));
    assert_eq!((&payloads.workers_say, payloads.rows), (&[Some(7_776_000)].into(), Some(1)));
    assert_eq!((&bodies.workers_say, bodies.rows), (&[None].into(), Some(1)));
    assert_eq!(
        (&events.workers_say, events.last_run_said, events.rows),
        (&[Some(8_640_000)].into(), Some(8_640_000), Some(1))
    );
    assert_eq!((&logs.workers_say, logs.last_run_said, logs.ended_at), (&[None].into(), None, None));
    for kept in [payloads, bodies, events] {
        assert!(
            !kept.overdue && kept.age_seconds < 3_600 && kept.ran_at.is_some() && kept.ended_at >= kept.ran_at,
            "{kept:?}"
        );
    }
    let horizon = status.retention.events_from.expect("it has moved");
    assert_eq!((horizon.day(), status.retention.logs_from), (1, None));
    assert_eq!((status.retention.unfinished_run, status.needs_somebody()), (None, vec![]));
    let words = shown(&database).await;
    for part in [
        "payloads 90 days 20",
        "bodies off 20",
        "events 100 days 20",
        "logs off - - -",
        "kept are events of mails since 20",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }

    // A second worker has other settings, a third is from before workers told them.
    beat(&database, "two", Retention::default()).await;
    database.run("INSERT INTO ses_ledger_retention_runs (uuid) VALUES (DEFAULT)").await;
    assert_eq!(of(&look(&database).await, Class::Payloads).workers_say, [None, Some(7_776_000)].into());
    let words = shown(&database).await;
    for part in ["payloads differs", "payloads: off or 90 days, as the workers are set", "has not ended"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    database.run("DELETE FROM ses_ledger_workers WHERE name = 'two'").await;
    database.run("UPDATE ses_ledger_workers SET retention = NULL").await;
    let status = look(&database).await;
    assert_eq!(of(&status, Class::Payloads).workers_say, [Some(7_776_000)].into());
    assert!(of(&status, Class::Events).workers_say.is_empty());
    assert!(shown(&database).await.contains("events: so says its last run; no worker has told its setting"));
}

/// What `status` and the metrics say when the last time was so long ago.
async fn check_age(database: &Database, keep: Retention, hours: i64, emptying: bool, removing: bool) {
    let metrics = Metrics::default();
    upkeep::gauge(&database.store(), &keep, &metrics).await.expect("it is there");
    for (gauge, is_old) in [(&metrics.emptying_age_seconds, emptying), (&metrics.retention_age_seconds, removing)] {
        let expected = if is_old { hours * 3_600..(hours + 1) * 3_600 } else { 0..3_600 };
        assert!(expected.contains(&gauge.get()), "{} is not in {expected:?}", gauge.get());
    }
    let overdue = |is_on: bool, what: &str| (is_on && hours > 49, what.to_owned());
    let needs = look(database).await.needs_somebody();
    for (expected, what) in [
        overdue(emptying, "no worker has emptied what is too old for"),
        overdue(removing, "schedule ses-ledger retention run"),
    ] {
        assert_eq!(needs.iter().any(|need| need.contains(&what)), expected, "{what}, {hours} h: {needs:?}");
    }
}

#[tokio::test]
async fn what_has_not_run_for_two_days_is_overdue() {
    let keep = Retention { retention_body: days(30), retention_orphans: days(30), ..Retention::default() };
    let database = database::fresh().await;
    beat(&database, "one", keep).await;
    check_age(&database, keep, 0, false, false).await;

    // Nobody has ever done so, since that is possible.
    for hours in [48, 50] {
        database.run(&format!("UPDATE _sqlx_migrations SET installed_on = now() - interval '{hours} hours'")).await;
        check_age(&database, keep, hours, true, true).await;
    }
    // The worker has, and still does.
    database.run("UPDATE ses_ledger_upkeep SET ran_at = now(), finished_at = now() - interval '9 days' WHERE task = 'empty_bodies'").await;
    check_age(&database, keep, 50, false, true).await;
    // So has somebody else, but for another class; and then for this one.
    for (class, is_old) in [("quarantine", true), ("orphans", false)] {
        let run = "INSERT INTO ses_ledger_retention_runs (ended_at, let_go) VALUES (now(), '[{\"class\": \"CLASS\", \"rows\": 3, \"older_than\": 9}]')";
        database.run(&run.replace("CLASS", class)).await;
        check_age(&database, keep, 50, false, is_old).await;
    }
    // Both stopped.
    for hours in [48, 50] {
        let ran =
            format!("UPDATE ses_ledger_upkeep SET ran_at = now() - interval '{hours} hours', finished_at = ran_at");
        database.run(&ran).await;
        database
            .run(&format!("UPDATE ses_ledger_retention_runs SET ended_at = now() - interval '{hours} hours'"))
            .await;
        check_age(&database, keep, hours, true, true).await;
    }
    // A run that does not come to its end is none.
    database.run("INSERT INTO ses_ledger_retention_runs (uuid) VALUES (DEFAULT)").await;
    check_age(&database, keep, 50, true, true).await;
    // Where nothing is to go, nobody waits for it.
    database.run("DELETE FROM ses_ledger_workers").await;
    beat(&database, "two", Retention::default()).await;
    check_age(&database, Retention::default(), 50, false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_empties_at_once_and_tells_that_nobody_removes() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    database.run("UPDATE _sqlx_migrations SET installed_on = now() - interval '50 hours'").await;
    let running =
        Running::start(&database.url, &queue.url, &["--retention-payload=90d", "--retention-events=400d"]).await;
    let gauge = async |name: &str| {
        let page = running.get("/metrics").await.body;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned);
        line.and_then(|number| number.parse::<i64>().ok()).expect("every page has it")
    };
    until("the age of what is removed is told", async || gauge("ses_ledger_retention_age_seconds").await >= 50 * 3_600)
        .await;
    let ran = "SELECT count(*) FROM ses_ledger_upkeep WHERE task = 'empty_payloads' AND ran_at > now() - interval '1 hour' AND emptied = 0";
    until("payloads are looked at", async || database.number(ran).await == 1).await;
    until("that is counted", async || gauge("ses_ledger_retention_runs_total").await == 1).await;
    running.stop().await;
}
