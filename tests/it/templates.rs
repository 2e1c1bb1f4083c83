//! What stands inside the strings of the templates in infra/, and what the binary has to agree with. What CloudFormation
//! would refuse, and our own rules, are the business of tests/check-templates.

pub(crate) mod binary;
mod commands;
mod dashboards;
mod defects;
mod metrics;
mod names;
mod readme;
pub(crate) mod yaml;

use std::{fs, path::PathBuf};

use serde_json::Value;

/// The three templates, as they are or with a defect.
struct Templates {
    pipeline: Template,
    ecs: Template,
    lambda: Template,
}

struct Template {
    file: &'static str,
    text: String,
    /// The text, with every short tag in its long form: `{"Ref": …}`, `{"Fn::GetAtt": [resource, attribute]}`.
    value: Value,
}

impl Templates {
    fn read() -> Self {
        let read = |file| {
            let path = infra().join(file);
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
            Template::new(file, text)
        };
        Self { pipeline: read("pipeline.yaml"), ecs: read("worker-ecs.yaml"), lambda: read("worker-lambda.yaml") }
    }

    fn all(&self) -> [&Template; 3] {
        [&self.pipeline, &self.ecs, &self.lambda]
    }

    fn of_workers(&self) -> [&Template; 2] {
        [&self.ecs, &self.lambda]
    }
}

impl Template {
    fn new(file: &'static str, text: String) -> Self {
        let value = yaml::read(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
        Self { file, text, value }
    }

    /// The resources of a type: their names and properties.
    fn of_type<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let resources = self.value["Resources"].as_object().into_iter().flatten();
        resources.filter(move |(_, it)| it["Type"] == kind).map(|(name, it)| (name.as_str(), &it["Properties"]))
    }

    fn properties(&self, resource: &str) -> &Value {
        &self.value["Resources"][resource]["Properties"]
    }

    fn parameter(&self, name: &str) -> &Value {
        &self.value["Parameters"][name]
    }
}

/// A line for each thing that is wrong.
type Check = fn(&Templates) -> Vec<String>;

const CHECKS: [Check; 20] = [
    names::every_template_is_small_enough,
    names::every_parameter_is_explained_and_limited,
    names::every_parameter_is_in_one_group,
    names::the_pipeline_puts_out_what_the_workers_take,
    names::every_kind_of_event_is_published,
    names::every_alarm_is_named_after_its_stack,
    metrics::every_metric_exists,
    metrics::every_dimension_is_what_the_metric_has,
    metrics::every_statistic_suits_its_metric,
    metrics::metric_math_is_closed_and_has_one_result,
    metrics::thresholds_have_the_unit_of_their_metric,
    metrics::what_has_to_wake_somebody_has_an_alarm,
    dashboards::every_dashboard_can_be_drawn,
    binary::the_binary_knows_every_setting,
    binary::the_binary_knows_every_command,
    binary::times_agree,
    binary::the_function_is_asked_for_maintenance,
    commands::the_doctor_may_ask_what_it_asks,
    commands::the_doctor_may_change_nothing,
    commands::smoke_may_send_and_nothing_else,
];

fn infra() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("infra")
}

fn assert_sound(check: Check) {
    let wrong = check(&Templates::read());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_template_can_be_passed_on_the_command_line() {
    assert_sound(names::every_template_is_small_enough);
}

#[test]
fn every_parameter_is_explained_and_limited_and_has_its_place() {
    assert_sound(names::every_parameter_is_explained_and_limited);
    assert_sound(names::every_parameter_is_in_one_group);
}

#[test]
fn the_pipeline_puts_out_what_the_workers_take() {
    assert_sound(names::the_pipeline_puts_out_what_the_workers_take);
}

#[test]
fn every_kind_of_event_is_published() {
    assert_sound(names::every_kind_of_event_is_published);
}

#[test]
fn alarms_are_named_after_their_stack_and_watch_metrics_that_exist() {
    assert_sound(names::every_alarm_is_named_after_its_stack);
    assert_sound(metrics::every_metric_exists);
    assert_sound(metrics::every_dimension_is_what_the_metric_has);
    assert_sound(metrics::every_statistic_suits_its_metric);
    assert_sound(metrics::thresholds_have_the_unit_of_their_metric);
    assert_sound(metrics::what_has_to_wake_somebody_has_an_alarm);
}

#[test]
fn metric_math_is_closed_and_has_one_result() {
    assert_sound(metrics::metric_math_is_closed_and_has_one_result);
}

#[test]
fn the_dashboard_can_be_drawn() {
    assert_sound(dashboards::every_dashboard_can_be_drawn);
}

#[test]
fn the_binary_knows_every_setting_and_command() {
    assert_sound(binary::the_binary_knows_every_setting);
    assert_sound(binary::the_binary_knows_every_command);
}

#[test]
fn the_binary_writes_every_metric() {
    let written = fs::read_to_string(infra().with_file_name("src/metrics/emf.rs")).expect("the metrics have a source");
    for (name, _) in metrics::OURS {
        assert!(written.contains(&format!("\"{name}\"")), "the worker writes no {name}");
    }
}

#[test]
fn times_agree_with_each_other_and_with_the_binary() {
    assert_sound(binary::times_agree);
    assert_sound(binary::the_function_is_asked_for_maintenance);
}

#[test]
fn the_roles_for_people_allow_what_their_commands_ask() {
    assert_sound(commands::the_doctor_may_ask_what_it_asks);
    assert_sound(commands::the_doctor_may_change_nothing);
    assert_sound(commands::smoke_may_send_and_nothing_else);
}

#[test]
fn the_readme_deploys_what_is_there() {
    assert_sound(readme::the_readme_deploys_what_is_there);
}

#[test]
fn every_planted_defect_is_found() {
    let found_anyhow: Vec<String> = all_that_is_wrong(&Templates::read());
    for defect in defects::for_these_checks() {
        let mut templates = Templates::read();
        let planted = match &*defect.file {
            "pipeline.yaml" => &mut templates.pipeline,
            "worker-ecs.yaml" => &mut templates.ecs,
            "worker-lambda.yaml" => &mut templates.lambda,
            other => panic!("there is no template {other}"),
        };
        *planted = Template::new(planted.file, defect.plant(&planted.text));
        let found = all_that_is_wrong(&templates).into_iter().find(|wrong| !found_anyhow.contains(wrong));
        let found = found.unwrap_or_else(|| panic!("nothing finds: {}", defect.name));
        // With --nocapture, beside the table of tests/check-templates.
        eprintln!("{:<20}{:<74}{found}", defect.file, defect.name);
    }
}

fn all_that_is_wrong(templates: &Templates) -> Vec<String> {
    CHECKS.iter().flat_map(|check| check(templates)).collect()
}
