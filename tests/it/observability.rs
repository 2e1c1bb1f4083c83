//! What infra/ ships to watch workers with: the dashboard and the alerts against a real worker and a real Prometheus, and
//! the runbook against all alarms.

mod alerts;
mod dashboard;
mod prometheus;
mod runbook;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use ses_ledger::local::story::{Mess, Profile, Step, Story, StorySettings};
use time::macros::datetime;
use tokio::time::{Duration, sleep};

use self::prometheus::Prometheus;
use crate::{binary::Running, database, worker::Queue};

fn infra(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("infra").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(infra(file)).unwrap_or_else(|e| panic!("cannot read infra/{file}: {e}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_has_data_and_every_alert_can_be_asked() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let few = ["--batch-size=20", "--in-flight=100", "--visibility-timeout=30s"];
    let running = Running::start(&database.url, &queue.url, &few).await;
    let prometheus = Prometheus::start(&running.address().await).await;
    let mess = Mess { poison: 0.1, noise: 0.1, ..Mess::default() };
    let settings = StorySettings::new(71, 400, datetime!(2026-10-05 08:00 UTC));
    let story = Story::tell(&StorySettings { mess, profile: Profile::Small, ..settings });
    let mut steps = story.steps().collect::<Vec<_>>().into_iter().cycle();

    let queries = dashboard::queries();
    assert!(queries.len() > 40, "only {} queries found", queries.len());
    let mut empty: Vec<_> = queries.iter().collect();
    for _ in 0..240 {
        // Rates are of what changes while it is looked at.
        for step in steps.by_ref().take(40) {
            match step {
                Step::WriteLog(row) => drop(database.try_to_write_log(&row).await),
                Step::Publish(body) => drop(queue.handle.send(&body)),
            }
        }
        empty.retain(|it| !prometheus.ask(&it.now()).expect(&it.panel).iter().any(|value| value.is_finite()));
        if empty.is_empty() {
            break;
        }
        sleep(Duration::from_millis(250)).await;
    }
    let empty = Vec::from_iter(empty.iter().map(|it| format!("{}: {}", it.panel, it.now())));
    assert!(empty.is_empty(), "nothing is shown by\n{}", empty.join("\n"));

    let known = names_on(&running.get("/metrics").await.body);
    for (name, expression) in alerts::expressions() {
        prometheus.ask(&expression).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(unknown_to(&known, &expression), [""; 0], "{name}: {expression}");
    }
    for query in &queries {
        assert_eq!(unknown_to(&known, &query.expression), [""; 0], "{}: {}", query.panel, query.expression);
    }
    for variable in dashboard::variables() {
        assert_eq!(unknown_to(&known, &variable), [""; 0], "{variable}");
    }
    prometheus.has_loaded_all_alerts();
    running.stop().await;
}

/// The names of all metrics on a page, those of a histogram's parts as well.
fn names_on(page: &str) -> BTreeSet<String> {
    let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let parts = |(name, kind): (&str, &str)| match kind {
        "counter" => vec![format!("{name}_total")],
        "histogram" => ["bucket", "count", "sum"].map(|part| format!("{name}_{part}")).to_vec(),
        _ => vec![name.to_owned()],
    };
    let names: BTreeSet<String> = kinds.flat_map(parts).collect();
    assert!(names.len() > 50, "only {names:?} on the page");
    names
}

/// What an expression names that looks like a metric of the worker, and is none.
fn unknown_to<'e>(known: &BTreeSet<String>, expression: &'e str) -> Vec<&'e str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let starts = ["ses_ledger_", "messaging_", "db_", "process_"];
    // Of the labels, those are named by the conventions.
    let labels = ["messaging_operation_name", "messaging_destination_name", "messaging_operation_type"];
    let ours = words.filter(|word| starts.iter().any(|start| word.starts_with(start)) && !labels.contains(word));
    ours.filter(|word| !known.contains(*word)).collect()
}

#[test]
fn a_name_that_no_page_has_is_seen() {
    let known = BTreeSet::from(["ses_ledger_orphans".to_owned()]);
    assert_eq!(unknown_to(&known, r#"max(ses_ledger_orphans{job=~"$job"})"#), [""; 0]);
    assert_eq!(unknown_to(&known, "rate(ses_ledger_orphan[5m])"), ["ses_ledger_orphan"]);
}
