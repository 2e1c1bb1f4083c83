//! Heartbeats: written by several workers at once, again, late, and let go of; read back as they were.

use std::{sync::Arc, time::Duration};

use ses_ledger::{
    event::{EventKind, TimeSource},
    metrics::Metrics,
    pipeline::Verdict,
    postgres::{
        Postgres,
        pulse::{self as table, WorkerSeen},
    },
    pulse::{ALIVE, Identity, LAG_ENDS, Pulse, Runtime},
    retention::Retention,
    status,
};
use time::{OffsetDateTime, macros::datetime};

use crate::{
    arrivals::{arrivals, event, with},
    database::{self, Database, connect},
    roles::login,
    worker::{self, Queue, Running},
};

/// A worker that counts and beats, without a queue.
struct Beating {
    pulse: Pulse,
    metrics: Arc<Metrics>,
    postgres: Postgres,
}

impl Beating {
    async fn start(database: &Database, name: &str, runtime: Runtime) -> Self {
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        let retention = Retention { retention_payload: days(90), retention_events: days(400), ..Retention::default() };
        let identity = Identity { name: name.to_owned(), runtime, retention };
        let postgres = connect(&login(database, &["ses_ledger_worker"]).await);
        Self { pulse: Pulse::new(identity, MORNING), metrics: Arc::default(), postgres }
    }

    /// Counts as if a receive had brought so many messages, each of which became a new row.
    fn work(&self, messages: u64) {
        self.metrics.messages_received.inc_by(messages);
        self.metrics.messages_stored.inc_by(messages);
        self.metrics.events_decoded.inc_by(messages);
        self.metrics.events_inserted.inc_by(messages);
    }

    async fn beat(&mut self, now: OffsetDateTime, stopped: bool) {
        let beat = self.pulse.beat(&self.metrics, (2, 4), now, stopped);
        table::beat(&self.postgres, &beat).await.expect("the database takes it");
        self.pulse.sent(now);
    }

    /// A beat that the database does not get.
    fn lose_a_beat(&mut self, now: OffsetDateTime) {
        drop(self.pulse.beat(&self.metrics, (2, 4), now, false));
    }
}

const MORNING: OffsetDateTime = datetime!(2026-10-05 08:00 UTC);

fn at(seconds: u64) -> OffsetDateTime {
    MORNING + Duration::from_secs(seconds)
}

async fn minutes(postgres: &Postgres) -> Vec<(OffsetDateTime, i64)> {
    let minutes = table::minutes(postgres, MORNING).await.expect("it may read");
    minutes.iter().map(|minute| (minute.minute, minute.counts.inserted)).collect()
}

async fn only_worker(postgres: &Postgres) -> WorkerSeen {
    let mut workers = table::workers(postgres, ALIVE).await.expect("it may read");
    assert_eq!(workers.len(), 1, "{workers:?}");
    workers.remove(0)
}

#[tokio::test]
async fn what_a_worker_says_of_itself_is_read_back() {
    let database = database::fresh().await;
    let mut worker = Beating::start(&database, "blue", Runtime::Ecs).await;
    worker.work(7);
    worker.metrics.messages_received.inc();
    worker.metrics.messages_in_hand.inc();
    worker.metrics.events_decoded.inc(); // a fault: its verdict is missing
    worker.beat(at(10), false).await;
    let seen = only_worker(&database.store()).await;
    assert_eq!((seen.name.as_str(), seen.runtime.as_str(), seen.alive), ("blue", "ecs", true));
    assert_eq!((seen.started_at, seen.stopped_at, seen.version.as_str()), (MORNING, None, env!("CARGO_PKG_VERSION")));
    assert_eq!((seen.connections, seen.connections_most, seen.retention_payload_seconds), (2, 4, Some(7_776_000)));
    let retention = seen.retention.expect("it tells");
    assert_eq!(retention, [("events".to_owned(), 34_560_000), ("payloads".to_owned(), 7_776_000)].into());
    let i = seen.identities;
    assert_eq!((i.received, i.stored, i.in_hand, i.messages_drift), (8, 7, 1, 0));
    assert_eq!((i.decoded, i.inserted, i.events_drift), (8, 7, 1));
    worker.beat(at(12), true).await;
    let gone = only_worker(&database.store()).await;
    assert!(!gone.alive && gone.stopped_at == Some(gone.seen_at), "{gone:?}");
}

#[tokio::test]
async fn each_minute_is_told_whole_and_a_beat_that_comes_twice_changes_nothing() {
    let database = database::fresh().await;
    let mut worker = Beating::start(&database, "blue", Runtime::Other).await;
    let postgres = database.store();
    for n in 1..=6 {
        worker.work(10);
        worker.beat(at(10 * n), false).await;
    }
    // The last of these beats fell between two minutes: what it told belongs to the first.
    assert_eq!(minutes(&postgres).await, [(MORNING, 60)]);
    worker.work(5);
    let beat = worker.pulse.beat(&worker.metrics, (2, 4), at(70), false);
    for _ in 0..3 {
        table::beat(&worker.postgres, &beat).await.expect("the database takes it");
    }
    assert_eq!(minutes(&postgres).await, [(MORNING, 60), (at(60), 5)]);
}

#[tokio::test]
async fn minutes_that_the_database_did_not_get_come_later() {
    let database = database::fresh().await;
    let mut worker = Beating::start(&database, "blue", Runtime::Other).await;
    for n in 1..=17 {
        worker.work(1);
        worker.lose_a_beat(at(10 * n));
    }
    worker.work(1);
    worker.beat(at(180), false).await;
    assert_eq!(minutes(&database.store()).await, [(MORNING, 6), (at(60), 6), (at(120), 6)]);
}

#[tokio::test]
async fn what_a_function_did_after_a_long_sleep_belongs_to_now() {
    let database = database::fresh().await;
    let mut function = Beating::start(&database, "sleeper", Runtime::Lambda).await;
    function.work(1);
    function.metrics.delete_requests.inc_by(3);
    function.beat(at(1), false).await;
    function.work(2);
    function.beat(at(7_260), false).await;
    assert_eq!(minutes(&database.store()).await, [(MORNING, 1), (at(7_200), 2)]);
    let requests = database.number("SELECT sum(delete_requests)::bigint FROM ses_ledger_minutes").await;
    assert_eq!(requests, 0, "Lambda itself asks the queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_workers_beat_at_once_without_waiting_for_each_other_for_ever() {
    let database = database::fresh().await;
    let mut tasks = Vec::new();
    for n in 0..4 {
        let mut worker = Beating::start(&database, &format!("worker-{n}"), Runtime::Other).await;
        tasks.push(tokio::spawn(async move {
            // Kinds of the same rows, in another order for each.
            let mut kinds = [EventKind::Send, EventKind::Open, EventKind::Click, EventKind::Bounce];
            kinds.rotate_left(n);
            for round in 1..=40 {
                worker.work(1);
                for kind in kinds.clone() {
                    let late = with(event("m", kind), |e| e.occurred_at = at(round));
                    worker.metrics.count_stored(&arrivals([late]), &[Verdict::Orphaned]);
                }
                worker.beat(at(10 * round), false).await;
            }
        }));
    }
    for task in tasks {
        task.await.expect("every beat was taken");
    }
    let postgres = database.store();
    let sum: i64 = minutes(&postgres).await.iter().map(|(_, inserted)| inserted).sum();
    assert_eq!(sum, 160);
    assert_eq!(table::workers(&postgres, ALIVE).await.expect("it may read").len(), 4);
    let last = table::last_events(&postgres).await.expect("it may read");
    let known: Vec<_> = last.iter().filter_map(|last| Some((last.event_type.as_str(), last.occurred_at?))).collect();
    assert_eq!(known, ["bounce", "click", "open", "send"].map(|kind| (kind, at(40))));
    assert_eq!(last.len(), 10, "the others are there, without a time");
}

#[tokio::test]
async fn lag_is_that_of_new_rows_whose_time_is_their_own() {
    let database = database::fresh().await;
    let mut worker = Beating::start(&database, "blue", Runtime::Other).await;
    let ago = |seconds: f64| {
        with(event("m", EventKind::Open), |e| {
            e.occurred_at = OffsetDateTime::now_utc() - time::Duration::seconds_f64(seconds);
        })
    };
    let guessed = with(ago(50_000.0), |e| e.time_source = TimeSource::Received);
    let events = arrivals([ago(-3.0), ago(3.0), ago(3.0), ago(15.0), ago(50_000.0), ago(50_000.0), guessed]);
    use Verdict::{Duplicate, Inserted, Orphaned};
    let verdicts = [Inserted, Inserted, Inserted, Inserted, Duplicate, Orphaned, Inserted];
    worker.metrics.count_stored(&events, &verdicts);
    worker.beat(at(10), false).await;
    let minutes = table::minutes(&database.store(), MORNING).await.expect("it may read");
    let of = |end: f64| minutes[0].lags[LAG_ENDS.iter().position(|e| *e == end).expect("it is one")];
    assert_eq!((of(0.1), of(5.0), of(20.0)), (1, 2, 1));
    assert_eq!(minutes[0].lags.iter().sum::<i64>(), 4);
    let lag = status::Lag::of(&minutes[0].lags).expect("there are some");
    assert!((2.0..=5.0).contains(&lag.p50_seconds) && (10.0..=20.0).contains(&lag.p95_seconds), "{lag:?}");
    assert!(worker.metrics.encode().contains("ses_ledger_event_lag_seconds_count 4\n"));
}

/// What is refused is found by halving: each verdict stays with its event all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_database_refuses_is_not_taken_for_another() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    database.run("ALTER TABLE orphaned_events ADD CHECK (event_type <> 'bounce')").await;
    for kind in ["Bounce", "Send", "Open", "Reject", "Click"] {
        queue.handle.send(&format!(
            r#"{{"eventType":"{kind}","{}":{{}},"mail":{{"timestamp":"2026-10-05T08:00:00.000Z","messageId":"m"}}}}"#,
            kind.to_lowercase()
        ));
    }
    let running = Running::start(&queue.url, database.store(), worker::settings()).await;
    queue.drained().await;
    let mut worker = Beating::start(&database, "blue", Runtime::Other).await;
    worker.metrics = running.stop().await;
    assert_eq!(worker.metrics.events_quarantined.get(), 1);
    worker.beat(at(10), false).await;
    let last = table::last_events(&database.store()).await.expect("it may read");
    let known: Vec<_> = last.iter().filter(|last| last.stored_at.is_some()).map(|last| &*last.event_type).collect();
    assert_eq!(known, ["click", "open", "reject", "send"]);
}

#[tokio::test]
async fn only_what_is_older_than_two_days_is_let_go_of() {
    let database = database::fresh().await;
    let mut worker = Beating::start(&database, "blue", Runtime::Other).await;
    worker.work(1);
    worker.beat(OffsetDateTime::now_utc(), false).await;
    let fresh = database.number("SELECT count(*) FROM ses_ledger_minutes").await;
    database
        .run(
            "INSERT INTO ses_ledger_minutes
             SELECT (jsonb_populate_record(m, jsonb_build_object('minute', now() - make_interval(hours => age)))).*
             FROM ses_ledger_minutes AS m, unnest(ARRAY[47, 49]) AS age;
             INSERT INTO ses_ledger_workers
             SELECT (jsonb_populate_record(w, jsonb_build_object('id', gen_random_uuid(), 'seen_at', now() - make_interval(hours => age)))).*
             FROM ses_ledger_workers AS w, unnest(ARRAY[47, 49]) AS age",
        )
        .await;
    assert_eq!(table::forget(&worker.postgres).await.expect("it may"), 2);
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_minutes").await, fresh + 1);
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_workers").await, 2);
    // Even if it tried to: the rows are not its to remove.
    let rows = sqlx::query("DELETE FROM ses_ledger_minutes").execute(&worker.postgres).await.expect("it has the right");
    assert_eq!(rows.rows_affected(), 0);
}

#[tokio::test]
async fn an_operator_reads_the_heartbeats_and_writes_none() {
    let database = database::fresh().await;
    let mut worker = Beating::start(&database, "blue", Runtime::Other).await;
    worker.work(1);
    worker.beat(OffsetDateTime::now_utc(), false).await;
    let operator = connect(&login(&database, &["ses_ledger_operator"]).await);
    let status = status::status(&operator, Vec::new()).await.expect("it may read");
    assert_eq!((status.alive().count(), status.identities.inserted), (1, 1));
    assert_eq!((status.needs_somebody(), status.schema.len()), (vec![], 0));
    let beat = worker.pulse.beat(&worker.metrics, (0, 0), OffsetDateTime::now_utc(), false);
    table::beat(&operator, &beat).await.expect_err("it only reads");
    table::forget(&operator).await.expect_err("it only reads");
    let stranger = connect(&login(&database, &[]).await);
    table::workers(&stranger, ALIVE).await.expect_err("nobody may read without a role");
}
