//! infra/compose.yaml, read: no engine runs here. Whether it is a compose file at all, its schema says; here stands what
//! it has to agree with.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::templates::{binary::SETTINGS, yaml};

#[test]
fn every_image_is_pinned_and_localstack_to_one_that_needs_no_account() {
    for (name, service) in services() {
        let image = text(&service["image"]);
        let (_, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{name}: {image} has no tag"));
        let is_built = service["build"]["context"] == "..";
        assert!(is_built || tag.contains('.') && tag.starts_with(|c: char| c.is_ascii_digit()), "{name}: {image}");
    }
    assert_eq!(service("localstack")["image"], "localstack/localstack:4.14.0");
}

#[test]
fn nothing_can_be_reached_from_other_machines() {
    let services = services();
    let ports: Vec<&Value> = services.iter().filter_map(|(_, it)| it["ports"].as_array()).flatten().collect();
    assert_eq!(ports.len(), 2, "LocalStack's, and that of the probes: {ports:?}");
    for port in ports {
        assert!(text(port).starts_with("127.0.0.1:"), "{port}");
    }
}

#[test]
fn every_setting_is_one_that_the_binary_knows() {
    for name in ["migrate", "worker"] {
        let environment = service(name)["environment"].clone();
        for setting in environment.as_object().expect("names and values").keys() {
            let is_the_sdks = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].contains(&setting.as_str());
            assert!(is_the_sdks || SETTINGS.contains_key(setting), "{name}: the binary knows no {setting}");
        }
    }
}

#[test]
fn the_worker_is_led_to_the_queue_and_the_database_that_are_there() {
    let (worker, postgres) = (service("worker"), service("postgres"));
    let (settings, database) = (&worker["environment"], &postgres["environment"]);
    let [user, password, name] = ["USER", "PASSWORD", "DB"].map(|part| text(&database[format!("POSTGRES_{part}")]));
    let url = format!("postgres://{user}:{password}@postgres:5432/{name}?sslmode=disable");
    assert_eq!(settings["DATABASE_URL"], Value::from(url.clone()));
    assert_eq!(service("migrate")["environment"]["DATABASE_URL"], Value::from(url));

    let template = yaml::read(&file("pipeline.yaml")).expect("it is YAML");
    let queue = text(&template["Parameters"]["Name"]["Default"]);
    let url = format!("http://localstack:4566/queue/us-east-1/000000000000/{queue}");
    assert_eq!(settings["QUEUE_URL"], Value::from(url));
    assert_eq!(settings["AWS_REGION"], "us-east-1");
}

#[test]
fn the_worker_starts_when_all_is_there_and_has_the_time_to_end() {
    let worker = service("worker");
    assert_eq!(worker["depends_on"]["localstack"]["condition"], "service_healthy");
    assert_eq!(worker["depends_on"]["migrate"]["condition"], "service_completed_successfully");
    assert_eq!(service("migrate")["depends_on"]["postgres"]["condition"], "service_healthy");
    for name in ["localstack", "postgres", "worker"] {
        assert!(service(name)["healthcheck"]["test"].is_array(), "{name} is healthy when?");
    }
    assert_eq!(worker["healthcheck"]["test"], json!(["CMD", "/usr/local/bin/ses-ledger", "health"]));
    let seconds = |time: &str| time.trim_end_matches('s').parse::<u32>().expect("seconds");
    let grace = SETTINGS["SHUTDOWN_GRACE"].as_deref().expect("it has a default");
    assert!(seconds(text(&worker["stop_grace_period"])) > seconds(grace));
}

#[test]
fn what_is_built_here_can_write_nothing_and_become_nobody() {
    for name in ["migrate", "worker"] {
        let service = service(name);
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"][0], "ALL", "{name}");
        assert_eq!(service["security_opt"][0], "no-new-privileges:true", "{name}");
    }
}

#[test]
fn localstack_is_given_the_hook_and_the_template_and_is_as_without_containers() {
    let localstack = service("localstack");
    let mounts = localstack["volumes"].as_array().expect("it has some");
    let mounts: Vec<Vec<&str>> = mounts.iter().map(|mount| text(mount).split(':').collect()).collect();
    for mount in &mounts {
        assert!(infra().join(mount[0]).exists() && mount[2] == "ro", "{mount:?}");
    }
    let target = |source: &str| mounts.iter().find(|mount| mount[0] == source).map(|mount| mount[1]);
    assert_eq!(target("./localstack/ready.d"), Some("/etc/localstack/init/ready.d"));
    // LocalStack reads scripts of this kind itself: nobody has to be allowed to execute it.
    assert!(infra().join("localstack/ready.d/deploy.py").exists());
    assert_eq!(target("./pipeline.yaml"), localstack["environment"]["PIPELINE_TEMPLATE"].as_str());

    let run = file("localstack/run");
    for setting in
        ["SERVICES", "STRICT_SERVICE_LOADING", "CFN_IGNORE_UNSUPPORTED_RESOURCE_TYPES", "SQS_ENDPOINT_STRATEGY"]
    {
        let same = format!("{setting}={}", text(&localstack["environment"][setting]));
        assert!(run.split_whitespace().any(|word| word == same), "infra/localstack/run is without {same}");
    }
}

fn services() -> Vec<(String, Value)> {
    let compose = yaml::read(&file("compose.yaml")).expect("it is YAML");
    let services = compose["services"].as_object().expect("names and services");
    services.iter().map(|(name, service)| (name.clone(), service.clone())).collect()
}

fn service(name: &str) -> Value {
    services().into_iter().find_map(|(it, service)| (it == name).then_some(service)).expect("it is there")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
}

fn file(name: &str) -> String {
    fs::read_to_string(infra().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn infra() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("infra")
}
