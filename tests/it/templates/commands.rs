//! What the commands ask of AWS, and what the roles for people allow.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use super::{Template, Templates};

/// The files in which the doctor asks AWS.
const ASKING: [&str; 4] = ["ses.rs", "sns.rs", "kms.rs", "eventbridge.rs"];

/// Every right that the doctor's calls take, as their sources name it for error messages.
pub(super) fn the_doctor_may_ask_what_it_asks(templates: &Templates) -> Vec<String> {
    let allowed = allowed(&templates.pipeline, "DoctorRole");
    let lacking = asked().into_iter().filter(|right| !allowed.contains(right));
    lacking.map(|right| format!("pipeline.yaml: DoctorRole lacks {right}")).collect()
}

pub(super) fn the_doctor_may_change_nothing(templates: &Templates) -> Vec<String> {
    let reads = |right: &String| {
        let call = right.split_once(':').map_or("", |(_, call)| call);
        ["Get", "List", "Describe"].iter().any(|verb| call.starts_with(verb))
    };
    let allowed = allowed(&templates.pipeline, "DoctorRole").into_iter().filter(|right| !reads(right));
    allowed.map(|right| format!("pipeline.yaml: DoctorRole has {right}")).collect()
}

pub(super) fn smoke_may_send_and_nothing_else(templates: &Templates) -> Vec<String> {
    let allowed = allowed(&templates.pipeline, "SmokeRole");
    let sends = BTreeSet::from(["ses:SendEmail".to_owned()]);
    if allowed == sends { Vec::new() } else { vec![format!("pipeline.yaml: SmokeRole has {allowed:?}")] }
}

/// `"ses:GetAccount"` and the like, in the sources.
fn asked() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/aws");
    let sources = ASKING.map(|file| fs::read_to_string(folder.join(file)).expect("the source is there"));
    let words: Vec<&str> = sources.iter().flat_map(|source| source.split('"').skip(1).step_by(2)).collect();
    let is_right = |word: &&&str| ["ses:", "sns:", "kms:", "events:"].iter().any(|service| word.starts_with(service));
    let mut asked: BTreeSet<String> = words.iter().filter(is_right).map(|word| (*word).to_owned()).collect();
    assert!(asked.len() >= 13, "the sources name the rights otherwise by now: {asked:?}");
    asked.insert("sqs:GetQueueAttributes".to_owned());
    asked
}

fn allowed(template: &Template, role: &str) -> BTreeSet<String> {
    let policies = template.properties(role)["Policies"].as_array().into_iter().flatten();
    let statements = policies.flat_map(|it| it["PolicyDocument"]["Statement"].as_array().into_iter().flatten());
    let actions = statements.flat_map(|it| match &it["Action"] {
        Value::Array(all) => all.clone(),
        one => vec![one.clone()],
    });
    actions.filter_map(|it| it.as_str().map(str::to_owned)).collect()
}
