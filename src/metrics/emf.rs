//! Metrics for CloudWatch, in its embedded metric format: one JSON object per line on standard output, past the log, which
//! CloudWatch Logs turns into metrics by itself. The format:
//! <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value, json};
use tracing::warn;

use super::Metrics;

/// Where the metrics go, and how often.
#[derive(Clone, Debug)]
pub struct EmfSettings {
    pub interval: Duration,
    /// CloudWatch's namespace.
    pub namespace: String,
    /// Value of the only dimension, `Service`.
    pub service: String,
}

/// Writes what has changed since it last wrote.
pub struct Emf {
    settings: EmfSettings,
    written: Mutex<BTreeMap<&'static str, u64>>,
}

impl Emf {
    pub fn new(settings: EmfSettings) -> Self {
        Self { settings, written: Mutex::default() }
    }

    /// Writes one line. Counters as their increase since the line before, gauges as they are: those of the waiting rooms
    /// only if they have been counted lately.
    pub fn write(&self, metrics: &Metrics, counted: bool) {
        let line = self.line(metrics, counted, SystemTime::now());
        if let Err(e) = writeln!(io::stdout().lock(), "{line}") {
            warn!("cannot write metrics to standard output: {e}");
        }
    }

    fn line(&self, metrics: &Metrics, counted: bool, now: SystemTime) -> Value {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let increase = |(name, value)| (name, "Count", value - written.insert(name, value).unwrap_or_default());
        let mut figures = Vec::from_iter(metrics.counters().map(increase));
        figures.extend(metrics.gauges());
        if counted {
            figures.extend(metrics.waiting_rooms());
        }
        let mut values: Map<String, Value> =
            figures.iter().map(|(name, _, value)| ((*name).to_owned(), (*value).into())).collect();
        let announced = figures.iter().map(|(name, unit, _)| json!({ "Name": name, "Unit": unit }));
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        values.insert("Service".to_owned(), self.settings.service.as_str().into());
        values.insert(
            "_aws".to_owned(),
            json!({
                "Timestamp": since_1970.as_millis() as u64,
                "CloudWatchMetrics": [{
                    "Namespace": self.settings.namespace,
                    "Dimensions": [["Service"]],
                    "Metrics": announced.collect::<Vec<_>>(),
                }],
            }),
        );
        values.into()
    }
}

/// Name, unit and value.
type Figure = (&'static str, &'static str, u64);

impl Metrics {
    fn counters(&self) -> [(&'static str, u64); 20] {
        [
            ("MessagesReceived", &self.messages_received),
            ("MessagesStored", &self.messages_stored),
            ("MessagesIgnored", &self.messages_ignored),
            ("MessagesRejected", &self.messages_rejected),
            ("MessagesReleased", &self.messages_released),
            ("MessagesDeleted", &self.messages_deleted),
            ("MessagesUndeleted", &self.messages_undeleted),
            ("MessagesRedelivered", &self.messages_redelivered),
            ("EventsDecoded", &self.events_decoded),
            ("EventsInserted", &self.events_inserted),
            ("EventsDuplicate", &self.events_duplicate),
            ("EventsExpired", &self.events_expired),
            ("EventsOrphaned", &self.events_orphaned),
            ("EventsQuarantined", &self.events_quarantined),
            ("OrphansAttached", &self.orphans_attached),
            ("StoreRetries", &self.store_retries),
            ("DeleteRetries", &self.delete_retries),
            ("PollersReplaced", &self.pollers_replaced),
            ("RetentionRuns", &self.retention_runs),
            ("RetentionEmptied", &self.retention_emptied),
        ]
        .map(|(name, counter)| (name, counter.get()))
    }

    fn gauges(&self) -> [Figure; 3] {
        let drift = self.check_identities();
        [
            ("MessagesInHand", "Count", self.messages_in_hand.get().unsigned_abs()),
            ("MessagesDrift", "Count", drift.messages.unsigned_abs()),
            ("EventsDrift", "Count", drift.events.unsigned_abs()),
        ]
    }

    /// The gauges that come of looking into the database.
    fn waiting_rooms(&self) -> [Figure; 7] {
        [
            ("Orphans", "Count", self.orphans.get().unsigned_abs()),
            ("OldestOrphanAge", "Seconds", self.oldest_orphan_age_seconds.get().unsigned_abs()),
            ("QuarantinedBodies", "Count", self.quarantined_bodies.get().unsigned_abs()),
            ("MonthsAhead", "Count", self.months_ahead.get().unsigned_abs()),
            ("EmptyingAge", "Seconds", self.emptying_age_seconds.get().unsigned_abs()),
            ("RetentionAge", "Seconds", self.retention_age_seconds.get().unsigned_abs()),
            ("FiguresLag", "Seconds", self.figures_lag_seconds.get().unsigned_abs()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_what_was_counted_since_the_line_before() {
        let emf = Emf::new(EmfSettings {
            interval: Duration::from_secs(60),
            namespace: "mail".to_owned(),
            service: "ledger".to_owned(),
        });
        let metrics = Metrics::default();
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_750_000_000_123);
        metrics.events_inserted.inc_by(5);
        metrics.oldest_orphan_age_seconds.set(77);
        let first = emf.line(&metrics, true, at);
        metrics.events_inserted.inc_by(2);
        let second = emf.line(&metrics, true, at);

        assert_eq!((&first["EventsInserted"], &second["EventsInserted"]), (&json!(5), &json!(2)));
        assert_eq!((&first["OldestOrphanAge"], &second["OldestOrphanAge"]), (&json!(77), &json!(77)));
        assert_eq!((&first["Service"], &first["_aws"]["Timestamp"]), (&json!("ledger"), &json!(1_750_000_000_123_u64)));
        let directive = &first["_aws"]["CloudWatchMetrics"][0];
        assert_eq!((&directive["Namespace"], &directive["Dimensions"]), (&json!("mail"), &json!([["Service"]])));
    }

    #[test]
    fn a_waiting_room_that_nobody_counted_is_left_out() {
        let emf = Emf::new(EmfSettings { interval: Duration::ZERO, namespace: String::new(), service: String::new() });
        let line = emf.line(&Metrics::default(), false, SystemTime::now());
        let announced = line["_aws"]["CloudWatchMetrics"][0]["Metrics"].to_string();
        for name in ["Orphans", "OldestOrphanAge", "QuarantinedBodies", "MonthsAhead", "EmptyingAge", "RetentionAge"] {
            assert!(line.get(name).is_none() && !announced.contains(&format!("{name:?}")), "{line}");
        }
        assert_eq!(line["MessagesDrift"], 0);
    }

    #[test]
    fn every_metric_that_is_announced_has_a_value_and_the_other_way_round() {
        let emf = Emf::new(EmfSettings { interval: Duration::ZERO, namespace: String::new(), service: String::new() });
        let line = emf.line(&Metrics::default(), true, SystemTime::now());
        let announced = line["_aws"]["CloudWatchMetrics"][0]["Metrics"].as_array().into_iter().flatten();
        let mut announced: Vec<&str> = announced.filter_map(|metric| metric["Name"].as_str()).collect();
        announced.sort_unstable();
        let values =
            line.as_object().into_iter().flatten().filter(|(name, _)| !["_aws", "Service"].contains(&name.as_str()));
        let values: Vec<&str> = values.map(|(name, _)| name.as_str()).collect();
        assert_eq!(announced, values);
        assert_eq!(values.len(), 30);
    }
}
