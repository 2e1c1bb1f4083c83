//! What infra/README.md tells people to type.

use std::fs;

use super::{Template, Templates, infra};

pub(super) fn the_readme_deploys_what_is_there(templates: &Templates) -> Vec<String> {
    let text = fs::read_to_string(infra().join("README.md")).expect("the README can be read");
    let outputs = &templates.pipeline.value["Outputs"];
    let mut wrong = Vec::new();

    let in_shell = text.split("$(pipeline ").skip(1).filter_map(|rest| rest.split(')').next());
    let in_terraform = text.split("outputs[\"").skip(1).filter_map(|rest| rest.split('"').next());
    for output in in_shell.chain(in_terraform) {
        if outputs[output].is_null() {
            wrong.push(format!("README.md: the pipeline has no output {output}"));
        }
    }

    let commands: Vec<&str> = text.split("aws cloudformation deploy").skip(1).collect();
    for command in &commands {
        let command = command.split("```").next().unwrap_or_default();
        let named = |template: &&Template| command.contains(&format!("--template-file infra/{}", template.file));
        let Some(template) = templates.all().into_iter().find(named) else {
            wrong.push(format!("README.md: no template is deployed by{}", command.lines().next().unwrap_or_default()));
            continue;
        };
        let (_, given) = command.split_once("--parameter-overrides").unwrap_or_default();
        let given: Vec<&str> = given
            .split_whitespace()
            .take_while(|word| *word != "#")
            .filter_map(|word| Some(word.split_once('=')?.0).filter(|name| !name.contains('"')))
            .collect();
        let unknown = given.iter().filter(|name| template.parameter(name).is_null());
        wrong.extend(unknown.map(|name| format!("README.md: {} has no parameter {name}", template.file)));
        // An update keeps what was given the first time.
        let first = given.len() > 1;
        let needed = template.value["Parameters"].as_object().into_iter().flatten();
        let needed = needed.filter(|(_, it)| first && it["Default"].is_null()).map(|(name, _)| name.as_str());
        let missing = needed.filter(|name| !given.contains(name));
        wrong.extend(missing.map(|name| format!("README.md: {} is deployed without {name}", template.file)));
    }
    if commands.len() < 4 {
        wrong.push(format!("README.md: only {} deployments found", commands.len()));
    }
    wrong
}
