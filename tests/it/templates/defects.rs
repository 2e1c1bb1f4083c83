//! Planted defects: what each check has to find. The same list is tried by tests/check-templates.

use std::{fs, path::PathBuf};

use serde_json::Value;

use super::yaml;

pub(super) struct Defect {
    pub name: String,
    pub file: String,
    within: Option<String>,
    before: String,
    after: String,
}

/// Those that the checks of this module have to find.
pub(super) fn for_these_checks() -> Vec<Defect> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/template-defects.yaml");
    let list = yaml::read(&fs::read_to_string(path).expect("the list can be read")).expect("the list is YAML");
    let list = list.as_array().expect("the list is a list");
    let ours: Vec<Defect> = list.iter().filter(|defect| defect["caught_by"] == "test").map(defect).collect();
    assert!(ours.len() >= 20, "only {} defects for these checks", ours.len());
    ours
}

fn defect(value: &Value) -> Defect {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let need = |key: &str| text(key).unwrap_or_else(|| panic!("a defect without {key}: {value}"));
    Defect {
        name: need("defect"),
        file: need("file"),
        within: text("within"),
        before: need("before"),
        after: need("after"),
    }
}

impl Defect {
    /// The text with one line changed. That line has to stand in its section exactly once.
    pub(super) fn plant(&self, text: &str) -> String {
        let mut inside = self.within.is_none();
        let mut changed = 0;
        let mut planted = String::new();
        for line in text.lines() {
            let unindented = line.trim_start();
            let indent = &line[..line.len() - unindented.len()];
            if let Some(within) = &self.within
                && indent.len() <= 2
                && !unindented.is_empty()
            {
                inside = line.trim_end() == format!("  {within}:");
            }
            if inside && line.trim() == self.before {
                changed += 1;
                if !self.after.is_empty() {
                    planted += &format!("{indent}{}\n", self.after);
                }
            } else {
                planted += &format!("{line}\n");
            }
        }
        assert_eq!(changed, 1, "lines to change for: {}", self.name);
        planted
    }
}
