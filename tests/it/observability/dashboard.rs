//! The dashboard for Grafana, as Grafana reads it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::read;

/// What one line of a panel asks for.
pub(super) struct Query {
    pub(super) panel: String,
    pub(super) expression: String,
}

impl Query {
    /// The expression with Grafana's variables filled in.
    pub(super) fn now(&self) -> String {
        let values = [("$__rate_interval", "10s"), ("$job", ".*"), ("$instance", ".*")];
        values.iter().fold(self.expression.clone(), |text, (name, value)| text.replace(name, value))
    }
}

fn dashboard() -> Value {
    serde_json::from_str(&read("grafana/ses-ledger.json")).expect("the dashboard is JSON")
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().into_iter().flatten()
}

pub(super) fn queries() -> Vec<Query> {
    let dashboard = dashboard();
    let of_panel = |panel: &Value| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().expect("it is a text").to_owned();
        let query = |it: &Value| Query { panel: text(&panel["title"]), expression: text(&it["expr"]) };
        targets.iter().map(query).collect::<Vec<_>>()
    };
    panels(&dashboard).flat_map(of_panel).collect()
}

/// What the variables at the top ask for.
pub(super) fn variables() -> Vec<String> {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("it has variables");
    let asking: Vec<String> =
        variables.iter().filter_map(|it| Some(it["query"]["query"].as_str()?.to_owned())).collect();
    assert_eq!(asking.len(), 2, "job and instance");
    asking
}

#[test]
fn every_panel_has_its_place_its_words_and_its_source() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().expect("a panel has a title");
        assert!(ids.insert(panel["id"].as_u64().expect("a panel has a number")), "{title}: its number is taken");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{title} has no {key}"));
        let (x, y, w, h) = (place("x"), place("y"), place("w"), place("h"));
        assert!(w > 0 && h > 0 && x + w <= 24, "{title} is not on the page");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} lies over another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 8), "{title} is not explained");
        let targets = panel["targets"].as_array().expect("a panel asks for something");
        for it in targets.iter().chain([panel]) {
            assert_eq!(it["datasource"]["uid"], "${datasource}", "{title}");
        }
        let references: BTreeSet<&str> = targets.iter().filter_map(|it| it["refId"].as_str()).collect();
        assert_eq!(references.len(), targets.len(), "{title}: lines of the same name");
        for it in targets {
            let expression = it["expr"].as_str().unwrap_or_default();
            assert!(expression.contains(r#"{job=~"$job", instance=~"$instance""#), "{title} shows others as well");
        }
    }
    let names = dashboard["templating"]["list"].as_array().into_iter().flatten().filter_map(|it| it["name"].as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["datasource", "job", "instance"]);
    assert_eq!(dashboard["id"], Value::Null, "the number of somebody's installation");
}

/// As the order says: all of these have to be on it.
#[test]
fn nothing_that_operators_look_for_is_missing() {
    let all = queries().into_iter().map(|it| it.expression).collect::<Vec<_>>().join("\n");
    for metric in [
        "messages_stored_total",
        "messages_rejected_total",
        "events_inserted_total",
        "events_duplicate_total",
        "messages_drift",
        "events_drift",
        "event_lag_seconds_bucket",
        "store_duration_seconds_bucket",
        "store_retries_total",
        "messages_redelivered_total",
        "receives_total",
        "messages_per_receive_sum",
        "orphans",
        "oldest_orphan_age_seconds",
        "quarantined_bodies",
        "months_ahead",
        "retention_runs_total",
        "retention_age_seconds",
        "emptying_age_seconds",
        "figures_lag_seconds",
        "retention_emptied_total",
        "events_expired_total",
        "pollers_replaced_total",
        "queues_failed",
        "messages_in_hand",
        "ready",
    ] {
        assert!(all.contains(&format!("ses_ledger_{metric}")), "no panel shows {metric}");
    }
}
