//! The alerts for Prometheus, checked by Prometheus's own tool.

use std::process::Command;

use serde_json::Value;

use super::{infra, read};
use crate::templates::yaml;

fn rules() -> Vec<Value> {
    let file = yaml::read(&read("prometheus/alerts.yaml")).expect("the alerts are YAML");
    let groups = file["groups"].as_array().expect("there are groups");
    groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
}

/// Each alert's name and what it asks.
pub(super) fn expressions() -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("it is a text").to_owned();
    let all: Vec<_> = rules().iter().map(|rule| (text(&rule["alert"]), text(&rule["expr"]))).collect();
    assert!(all.len() >= 20, "only {} alerts", all.len());
    all
}

/// Each alert's name and the section of the runbook that it leads to.
pub(super) fn sections() -> Vec<(String, String)> {
    let section = |rule: &Value| {
        let name = rule["alert"].as_str().expect("it has a name");
        let url = rule["annotations"]["runbook_url"].as_str().unwrap_or_else(|| panic!("{name} leads nowhere"));
        let anchor = url.strip_prefix("infra/RUNBOOK.md#").unwrap_or_else(|| panic!("{name} leads to {url}"));
        (name.to_owned(), anchor.to_owned())
    };
    rules().iter().map(section).collect()
}

fn promtool(arguments: &[&str]) {
    let asked = Command::new("promtool").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let asked = asked.expect("promtool is there (Debian: apt-get install prometheus)");
    let said = [asked.stdout, asked.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(asked.status.success(), "{arguments:?}:\n{said}");
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_it_is() {
    for rule in rules() {
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["critical", "warning"].contains(&severity), "{rule}");
        for text in ["summary", "description"] {
            let text = rule["annotations"][text].as_str().unwrap_or_default();
            assert!(text.len() > 10 && !text.contains('\n'), "{rule}");
        }
    }
}

#[test]
fn prometheus_accepts_the_alerts() {
    promtool(&["check", "rules", &infra("prometheus/alerts.yaml").display().to_string()]);
}

#[test]
fn every_alert_fires_in_time_and_is_quiet_before() {
    promtool(&["test", "rules", "tests/fixtures/alerts-tests.yaml"]);
    let tests = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/alerts-tests.yaml"));
    let tests = yaml::read(&tests.expect("there are tests")).expect("they are YAML");
    let tests: Vec<&Value> = tests["tests"].as_array().into_iter().flatten().collect();
    for (name, _) in expressions() {
        let asked = tests.iter().flat_map(|test| test["alert_rule_test"].as_array()).flatten();
        let asked: Vec<bool> =
            asked.filter(|it| it["alertname"] == *name).map(|it| it["exp_alerts"] != Value::Array(vec![])).collect();
        assert!(asked.contains(&true) && asked.contains(&false), "{name} is not seen to fire and to be quiet");
    }
}
