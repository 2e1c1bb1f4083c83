//! `/metrics`: text that Prometheus reads, in which the counts add up at any moment.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use ses_ledger::local::story::{Mess, Profile, Story, StorySettings};
use time::macros::datetime;
use tokio::io::AsyncReadExt as _;

use super::{Running, play, until};
use crate::{database, worker::Queue};

#[tokio::test(flavor = "multi_thread")]
async fn the_counts_add_up_whenever_they_are_asked_for() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let mess = Mess { poison: 0.05, noise: 0.05, ..Mess::default() };
    let settings = StorySettings::new(51, 500, datetime!(2026-10-05 08:00 UTC));
    let story = Story::tell(&StorySettings { mess, profile: Profile::Small, ..settings });
    play(&database, &queue.handle, &story).await;
    let few = ["--visibility-timeout=30s", "--batch-size=20", "--in-flight=100"];
    let running = Running::start(&database.url, &queue.url, &few).await;
    let mut moments = BTreeSet::new();
    while queue.handle.totals().deleted < story.truth.messages as u64 {
        let page = Page::read(&running.get("/metrics").await.body);
        let of = |name: &str| page.value(&format!("ses_ledger_{name}"));
        let settled =
            ["stored", "ignored", "rejected", "released"].map(|outcome| of(&format!("messages_{outcome}_total")));
        assert_eq!(of("messages_received_total"), settled.iter().sum::<f64>() + of("messages_in_hand"));
        let judged =
            ["inserted", "duplicate", "orphaned", "quarantined"].map(|verdict| of(&format!("events_{verdict}_total")));
        assert_eq!(of("events_decoded_total"), judged.iter().sum::<f64>());
        assert_eq!((of("messages_drift"), of("events_drift")), (0.0, 0.0));
        moments.insert(of("messages_received_total") as u64);
    }
    assert!(moments.len() >= 20, "it was asked at the same moments again and again: {moments:?}");
    queue.drained().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_has_its_help_and_type() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let running = Running::start(&database.url, &queue.url, &[]).await;
    queue.handle.send("poison, so that something is counted");
    queue.drained().await;
    let page = Page::read(&running.get("/metrics").await.body);
    for family in page.values.keys().map(|name| page.family(name)) {
        assert!(page.help.get(&family).is_some_and(|help| help.len() > 10), "{family} has no help");
        assert!(page.kinds.contains_key(&family), "{family} has no type");
    }
    for family in page.help.keys() {
        let names = ["ses_ledger_", "messaging_", "db_client_", "process_"];
        assert!(names.iter().any(|start| family.starts_with(start)), "{family}");
        // A counter with labels has no sample before something was counted.
        assert!(page.values.keys().any(|name| page.family(name) == *family), "{family} has no value");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_timed_by_the_names_of_opentelemetry() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    for _ in 0..25 {
        queue.handle.send("poison");
    }
    let mut running = Running::start(&database.url, &queue.url, &[]).await;
    let mut output = running.child.stdout.take().expect("it is piped");
    queue.drained().await;
    let page = Page::read(&running.get("/metrics").await.body);
    let name = "arn:aws:sqs:us-east-1:000000000000:ses-events";
    let of = |metric: &str, operation: &str, kind: &str| {
        let operation = format!("messaging_operation_name=\"{operation}\",messaging_operation_type=\"{kind}\"");
        let queue = format!("messaging_system=\"aws_sqs\",messaging_destination_name=\"{name}\"");
        page.value(&format!("{metric}_seconds_count{{{queue},{operation},error_type=\"\"}}"))
    };
    let receives = of("messaging_client_operation_duration", "receive", "receive");
    let answered: f64 = ["messages", "empty"].iter().map(|result| page.receives(result)).sum();
    // A long poll may come to its end between the two.
    assert!((receives - answered).abs() <= 1.0, "each request is timed once: {receives} and {answered}");
    assert!(of("messaging_client_operation_duration", "delete", "settle") >= 3.0, "25 messages, ten in a request");
    assert!(of("messaging_process_duration", "process", "process") >= 1.0);
    assert!(page.value(STORED) >= 1.0);
    until("the months are counted", async || {
        Page::read(&running.get("/metrics").await.body).value("ses_ledger_months_ahead") == 3.0
    })
    .await;
    let consumed = page.values.iter().find(|(name, _)| name.starts_with("messaging_client_consumed_messages_total{"));
    assert_eq!(consumed.map(|(_, count)| *count), Some(25.0));
    assert!(page.value("process_resident_memory_bytes") > 1e6 && page.value("process_open_fds") > 3.0);
    let now = time::OffsetDateTime::now_utc().unix_timestamp() as f64;
    assert!((now - page.value("process_start_time_seconds")).abs() < 300.0);
    assert_eq!((page.value("ses_ledger_ready"), page.value("process_cpu_seconds_total") > 0.0), (1.0, true));
    running.stop().await;
    let mut text = String::new();
    output.read_to_string(&mut text).await.expect("it can be read");
    assert_eq!(text, "", "nobody asked for metrics on standard output");
}

const STORED: &str = "db_client_operation_duration_seconds_count{db_system_name=\"postgresql\",\
                      db_query_summary=\"INSERT email_events\",error_type=\"\"}";

/// A page in the text format of OpenMetrics.
#[derive(Default)]
struct Page {
    help: BTreeMap<String, String>,
    kinds: BTreeMap<String, String>,
    /// By name and labels, as they stand there.
    values: BTreeMap<String, f64>,
}

impl Page {
    /// Every line has to be one of a comment, a sample, and the end.
    fn read(text: &str) -> Self {
        let mut page = Self::default();
        let lines = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("it has no end:\n{text}"));
        for line in lines.lines() {
            match line.strip_prefix("# ") {
                Some(comment) => page.comment(comment).unwrap_or_else(|| panic!("cannot be read: {line:?}")),
                None => page.sample(line).unwrap_or_else(|| panic!("cannot be read: {line:?}")),
            }
        }
        page
    }

    fn comment(&mut self, comment: &str) -> Option<()> {
        let mut parts = comment.splitn(3, ' ');
        let (keyword, name, rest) = (parts.next()?, parts.next()?.to_owned(), parts.next()?.to_owned());
        let place = match keyword {
            "HELP" => &mut self.help,
            "TYPE" if ["counter", "gauge", "histogram"].contains(&rest.as_str()) => &mut self.kinds,
            _ => return None,
        };
        assert_eq!(place.insert(name, rest), None, "said twice: {comment}");
        Some(())
    }

    fn sample(&mut self, line: &str) -> Option<()> {
        let (name, value) = line.rsplit_once(' ')?;
        let (bare, labels) = name.split_once('{').unwrap_or((name, "}"));
        let is_name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !text.is_empty();
        let is_text = |text: &str| text.len() > 1 && text.starts_with('"') && text.ends_with('"');
        let is_label = |label: &str| label.split_once('=').is_some_and(|(key, text)| is_name(key) && is_text(text));
        let labels = labels.strip_suffix('}')?;
        if !is_name(bare) || !(labels.is_empty() || labels.split(',').all(is_label)) {
            return None;
        }
        assert_eq!(self.values.insert(name.to_owned(), value.parse().ok()?), None, "counted twice: {line}");
        let kind = self.kinds.get(&self.family(name))?;
        assert_eq!(kind == "counter", bare.ends_with("_total"), "{line}");
        Some(())
    }

    fn value(&self, name: &str) -> f64 {
        *self.values.get(name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// Receives with this result; none may have been counted yet.
    fn receives(&self, result: &str) -> f64 {
        self.values.get(&format!("ses_ledger_receives_total{{result=\"{result}\"}}")).copied().unwrap_or_default()
    }

    /// The metric that a sample belongs to.
    fn family(&self, sample: &str) -> String {
        let bare = sample.split('{').next().unwrap_or(sample);
        let suffixes = ["_total", "_bucket", "_sum", "_count", ""];
        let families = suffixes.iter().filter_map(|suffix| bare.strip_suffix(suffix));
        let known = families.into_iter().find(|family| self.kinds.contains_key(*family));
        known.unwrap_or_else(|| panic!("{sample} belongs to nothing")).to_owned()
    }
}

/// What CloudWatch reads is on standard output, one object per line; the log is not.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_for_cloudwatch_are_lines_of_their_own() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let settings = ["--metrics=emf", "--emf-interval=1s", "--emf-namespace=mail", "--emf-service=ledger"];
    let mut running = Running::start(&database.url, &queue.url, &settings).await;
    let mut output = running.child.stdout.take().expect("it is piped");
    queue.handle.send("neither JSON nor anything else");
    queue.drained().await;
    running.stop().await;
    let mut text = String::new();
    output.read_to_string(&mut text).await.expect("it writes text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line is an object")).collect();
    assert!(lines.len() >= 2, "at the start and at the end: {text}");
    assert_eq!(lines.iter().filter_map(|line| line["MessagesRejected"].as_u64()).sum::<u64>(), 1, "{text}");
    for line in lines {
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!((&directive["Namespace"], &line["Service"]), (&"mail".into(), &"ledger".into()), "{line}");
    }
}
