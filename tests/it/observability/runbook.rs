//! infra/RUNBOOK.md: a section for each alert and alarm, an alert or alarm for each section.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use super::{alerts, read};
use crate::templates::yaml;

/// Sections under "Alerts": the anchor of each, the alarms that it is for, and its text.
fn sections() -> BTreeMap<String, (BTreeSet<String>, String)> {
    let runbook = read("RUNBOOK.md");
    let (_, alerts) = runbook.split_once("\n## Alerts\n").expect("there is a chapter of alerts");
    let alerts = alerts.split("\n## ").next().unwrap_or_default();
    let mut sections = BTreeMap::new();
    for section in alerts.split("\n### ").skip(1) {
        let (title, text) = section.split_once('\n').expect("a section has a text");
        let names = text.trim_start().lines().next().unwrap_or_default();
        let names = names.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(sections.insert(anchor(title), (names, text.to_owned())).is_none(), "{title} is there twice");
    }
    sections
}

/// What a forge makes of a heading.
fn anchor(title: &str) -> String {
    let kept = title.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

/// All alarms of CloudWatch, by the names that the templates give them: `NAME-silence`, `WORKER-drift`; and the section
/// that each names.
fn alarms() -> BTreeMap<String, String> {
    let mut alarms = BTreeMap::new();
    for file in ["pipeline.yaml", "worker-ecs.yaml", "worker-lambda.yaml"] {
        let template = yaml::read(&read(file)).expect("the template is YAML");
        let resources = template["Resources"].as_object().expect("it has resources");
        for (resource, it) in resources.iter().filter(|(_, it)| it["Type"] == "AWS::CloudWatch::Alarm") {
            let name = it["Properties"]["AlarmName"]["Fn::Sub"].as_str().expect("it has a name");
            let name = name.replace("${Name}", "NAME").replace("${AWS::StackName}", "WORKER");
            let description = it["Properties"]["AlarmDescription"].as_str().expect("it is explained");
            let section = description.rsplit_once("RUNBOOK.md#").map(|(_, anchor)| anchor.trim().to_owned());
            let section = section.unwrap_or_else(|| panic!("{file}: {resource} leads nowhere: {description}"));
            let known = alarms.insert(name.clone(), section.clone());
            assert!(known.is_none_or(|known| known == section), "{name} leads to two sections");
        }
    }
    assert!(alarms.len() > 15, "only {alarms:?}");
    alarms
}

#[test]
fn every_alert_and_alarm_has_its_section_and_every_section_is_for_one() {
    let sections = sections();
    let leading: BTreeMap<String, String> = alerts::sections().into_iter().chain(alarms()).collect();
    for (alarm, anchor) in &leading {
        let Some((names, _)) = sections.get(anchor) else { panic!("{alarm} leads to {anchor}, which is not there") };
        assert!(names.contains(alarm), "{alarm} leads to {anchor}, which is for {names:?}");
    }
    for (anchor, (names, _)) in &sections {
        assert!(!names.is_empty(), "{anchor} is for no alert");
        for name in names {
            assert_eq!(leading.get(name), Some(anchor), "{anchor} is for {name}");
        }
    }
}

#[test]
fn every_section_says_what_it_means_what_to_run_what_to_do_and_when_it_is_over() {
    for (anchor, (_, text)) in sections() {
        let parts = ["**Means.**", "**Run.**", "**Do.**", "**Over when**"];
        let places: Vec<Option<usize>> = parts.iter().map(|part| text.find(part)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{anchor}: {places:?}");
        assert!(!text.contains("TODO"), "{anchor} is not finished");
    }
}

#[test]
fn links_within_the_runbook_lead_somewhere() {
    let runbook = read("RUNBOOK.md");
    let headings: BTreeSet<String> =
        runbook.lines().filter_map(|line| line.split_once("# ")).map(|(_, title)| anchor(title)).collect();
    let links: Vec<&str> = runbook.split("](#").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() > 10, "only {links:?}");
    for link in links {
        assert!(headings.contains(link), "#{link} leads nowhere");
    }
}

/// Commands, their subcommands and their flags: what somebody types at three in the morning has to be there.
#[test]
fn the_binary_knows_every_command_that_the_runbook_runs() {
    let runbook = read("RUNBOOK.md");
    // In code, and in the trees: there a command ends at a mark, or where a gap begins.
    let (_, trees) = runbook.split_once("\n## Questions\n").expect("there is a chapter of questions");
    let trees = trees.split("\n## ").next().unwrap_or_default().split("ses-ledger ").skip(1);
    let in_trees = trees.filter_map(|rest| rest.split(['\n', ',', ';', ':', '`', '.']).next()?.split("  ").next());
    let commands: BTreeSet<Vec<&str>> = runbook
        .split('`')
        .filter_map(|code| code.strip_prefix("ses-ledger "))
        .chain(in_trees)
        .map(|code| code.split_whitespace().collect())
        .collect();
    assert!(commands.len() > 15, "only {commands:?}");
    for command in commands {
        let is_name = |word: &&&str| word.bytes().all(|b| b.is_ascii_lowercase());
        let names = 1 + command[1..].iter().take(usize::from(has_subcommands(command[0]))).filter(is_name).count();
        let help = help_of(&command[..names]).unwrap_or_else(|| panic!("there is no {command:?}"));
        for flag in command.iter().filter(|word| word.starts_with("--")) {
            assert!(
                help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}\n")),
                "{command:?}: no {flag}"
            );
        }
    }
}

fn has_subcommands(command: &str) -> bool {
    help_of(&[command]).is_some_and(|help| help.contains("\nCommands:\n"))
}

/// None if the binary does not know the command.
fn help_of(command: &[&str]) -> Option<String> {
    let asked = Command::new(env!("CARGO_BIN_EXE_ses-ledger")).args(command).arg("--help").env_clear().output();
    let asked = asked.expect("the binary was built for the tests");
    asked.status.success().then(|| String::from_utf8_lossy(&asked.stdout).into_owned())
}
