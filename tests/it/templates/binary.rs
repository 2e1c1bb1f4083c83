//! What the templates say to the binary: settings it has to know, times that have to agree with its own.

use std::{collections::BTreeMap, process::Command, sync::LazyLock, time::Duration};

use serde_json::{Value, json};

use super::{Template, Templates};

/// Environment variables of `run`, each with its default.
pub(crate) static SETTINGS: LazyLock<BTreeMap<String, Option<String>>> =
    LazyLock::new(|| settings_in(&ask(&["run", "--help"])));

fn settings_in(help: &str) -> BTreeMap<String, Option<String>> {
    let mut settings = BTreeMap::new();
    let mut lines = help.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("[env: ") {
            let name = name.split(['=', ']']).next().unwrap_or_default();
            let default = lines.peek().and_then(|next| next.strip_prefix("[default: ")?.strip_suffix(']'));
            settings.insert(name.to_owned(), default.map(str::to_owned));
        }
    }
    assert!(settings.len() > 15, "the help names only {settings:?}");
    settings
}

fn ask(arguments: &[&str]) -> String {
    let asked = Command::new(env!("CARGO_BIN_EXE_ses-ledger")).args(arguments).env_clear().output();
    let asked = asked.expect("the binary was built for the tests");
    assert!(asked.status.success(), "{arguments:?}: {}", asked.status);
    String::from_utf8(asked.stdout).expect("the help is UTF-8")
}

pub(super) fn the_binary_knows_every_setting(templates: &Templates) -> Vec<String> {
    let mut wrong = Vec::new();
    // What is removed is told to the worker as well: else nobody notices that it is not.
    let task = names_in(retention_task(&templates.ecs));
    let known = settings_in(&ask(&["retention", "run", "--help"]));
    let unknown = task.iter().filter(|name| !known.contains_key(**name));
    wrong.extend(unknown.map(|name| format!("worker-ecs.yaml: retention run knows no {name}")));
    for template in templates.of_workers() {
        let set = settings_of(template);
        let all = known.keys().filter(|name| name.starts_with("RETENTION_"));
        let untold = all.filter(|name| !set.contains(&name.as_str()) || !task.contains(&name.as_str()));
        wrong.extend(untold.map(|name| format!("{}: {name} cannot be set", template.file)));
    }
    for template in templates.of_workers() {
        let set = settings_of(template);
        assert!(set.len() > 8, "{}: only {set:?} is set", template.file);
        let unknown = set.iter().filter(|name| !SETTINGS.contains_key(**name));
        wrong.extend(unknown.map(|name| format!("{}: the binary knows no {name}", template.file)));
    }
    wrong
}

/// Names of the variables in the container or function, also behind a condition.
fn settings_of(template: &Template) -> Vec<&str> {
    let of_function = template.properties("Function")["Environment"]["Variables"].as_object();
    let of_function = of_function.into_iter().flatten().map(|(name, _)| name.as_str());
    names_in(container(template)).into_iter().chain(of_function).collect()
}

fn names_in(container: &Value) -> Vec<&str> {
    let listed = ["Environment", "Secrets"].into_iter().flat_map(|list| container[list].as_array()).flatten();
    let listed = listed.map(|it| if it["Fn::If"].is_null() { it } else { &it["Fn::If"][1] });
    listed.map(|it| it["Name"].as_str().unwrap_or_default()).collect()
}

pub(super) fn the_binary_knows_every_command(templates: &Templates) -> Vec<String> {
    let container = container(&templates.ecs);
    let help = ask(&["--help"]);
    let commands: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    let mut wrong = Vec::new();
    let check = &container["HealthCheck"]["Command"];
    if check[1] != "/usr/local/bin/ses-ledger" {
        wrong.push(format!("worker-ecs.yaml: {check} does not ask the binary"));
    }
    let retention = &retention_task(&templates.ecs)["Command"];
    if *retention != json!(["retention", "run"]) {
        wrong.push(format!("worker-ecs.yaml: {retention} does not let go of what is too old"));
    }
    for command in [&container["Command"][0], &check[2], &retention[0]] {
        if !command.as_str().is_some_and(|command| commands.contains(&command)) {
            wrong.push(format!("worker-ecs.yaml: the binary has no command {command}"));
        }
    }
    wrong
}

pub(super) fn times_agree(templates: &Templates) -> Vec<String> {
    let Templates { pipeline, ecs, lambda } = templates;
    let mut wrong = Vec::new();
    let mut say = |broken: bool, what: String| {
        if broken {
            wrong.push(what);
        }
    };

    let stop = seconds(&container(ecs)["StopTimeout"]);
    let grace = ecs.parameter("ShutdownGrace");
    let usual = default("SHUTDOWN_GRACE");
    say(time(&grace["Default"]) != Some(usual), format!("ShutdownGrace is not {usual:?}, as the binary's"));
    // The longest that the parameter takes, as its description says.
    let longest = grace["ConstraintDescription"].as_str().and_then(|text| text.split(" to ").nth(1));
    let longest = longest.and_then(|text| time(&json!(text)));
    say(
        longest.is_none_or(|longest| longest + Duration::from_secs(5) > stop),
        format!("a task is killed after {stop:?}, and may have {longest:?} to finish"),
    );
    say(stop > Duration::from_secs(120), format!("Fargate waits 120 s at most, not {stop:?}"));

    let hidden = pipeline.parameter("VisibilityTimeout");
    let (timeout, window) = (lambda.parameter("Timeout"), lambda.parameter("BatchWindow"));
    let needed = seconds(&timeout["MaxValue"]) * 6 + seconds(&window["MaxValue"]);
    for limit in ["Default", "MinValue"] {
        let hidden = seconds(&hidden[limit]);
        say(
            hidden < needed || hidden < default("VISIBILITY_TIMEOUT"),
            format!("VisibilityTimeout {limit}: messages are hidden for {hidden:?}, and the function needs {needed:?}"),
        );
    }
    let outage =
        seconds(&hidden["Default"]) * pipeline.parameter("MaxReceiveCount")["Default"].as_u64().unwrap_or(0) as u32;
    say(outage < Duration::from_secs(10 * 3600), format!("an outage of {outage:?} makes dead letters"));
    let kept = seconds(&pipeline.properties("Queue")["MessageRetentionPeriod"]);
    say(kept != Duration::from_secs(14 * 86_400), format!("messages are kept for {kept:?}, not 14 days"));

    // CloudWatch looks back a day at most, and a week where the period is an hour or more.
    let silence = pipeline.parameter("SilenceHours")["MaxValue"].as_u64().unwrap_or(u64::MAX);
    say(silence > 7 * 24, format!("CloudWatch looks back seven days at most, not {silence} hours"));

    for template in templates.of_workers() {
        let metrics = setting(template, "METRICS");
        say(metrics != Some(&json!("emf")), format!("{}: METRICS is {metrics:?}, not emf", template.file));
        let interval = setting(template, "EMF_INTERVAL").map_or_else(|| Some(default("EMF_INTERVAL")), time);
        // RunningAlarm and BacklogPolicy count on one line a minute.
        say(
            interval != Some(Duration::from_secs(60)),
            format!("{}: metrics come every {interval:?}, not every minute", template.file),
        );
    }
    wrong
}

pub(super) fn the_function_is_asked_for_maintenance(templates: &Templates) -> Vec<String> {
    let target = &templates.lambda.properties("Maintenance")["Targets"][0];
    let input = target["Input"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    if input == Some(json!({ "ses_ledger": "maintain" })) {
        return Vec::new();
    }
    vec![format!("worker-lambda.yaml: the function does not understand {}", target["Input"])]
}

fn container(template: &Template) -> &Value {
    &template.properties("TaskDefinition")["ContainerDefinitions"][0]
}

fn retention_task(template: &Template) -> &Value {
    &template.properties("RetentionTask")["ContainerDefinitions"][0]
}

/// What a variable is set to.
fn setting<'a>(template: &'a Template, name: &str) -> Option<&'a Value> {
    let of_task = container(template)["Environment"].as_array().into_iter().flatten().find(|it| it["Name"] == name);
    let of_function = template.properties("Function")["Environment"]["Variables"].get(name);
    of_task.map(|it| &it["Value"]).or(of_function)
}

/// The binary's own default for a time.
fn default(name: &str) -> Duration {
    let text = SETTINGS.get(name).and_then(Option::as_ref).unwrap_or_else(|| panic!("{name} has no default"));
    time(&json!(text)).unwrap_or_else(|| panic!("{name}: {text:?} is no time"))
}

/// A time as the binary reads it: 90s.
fn time(value: &Value) -> Option<Duration> {
    value.as_str()?.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

/// A time as CloudFormation writes it: a number of seconds.
fn seconds(value: &Value) -> Duration {
    Duration::from_secs(value.as_u64().unwrap_or_else(|| panic!("{value} is no number of seconds")))
}
