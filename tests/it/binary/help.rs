//! `--help`, word by word: it is what a newcomer reads first.
//!
//! A changed text fails with what changed. To take it over, run the tests once with `UPDATE_SNAPSHOTS=1` and read the
//! difference before you commit it.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use super::{end_of, ses_ledger};

/// Asks for help at a width; standard output is no terminal, so the width is what `COLUMNS` says.
async fn help(command: &[&str], columns: usize) -> String {
    let mut asking = ses_ledger(command.iter().copied().chain(["--help"]));
    asking.env("COLUMNS", columns.to_string());
    let ended = end_of(asking).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{command:?}");
    ended.out
}

/// Compares with the snapshots, one for each width.
async fn check(command: &[&str]) {
    for columns in [80, 100] {
        let found = help(command, columns).await;
        let name = ["help"].iter().chain(command).copied().collect::<Vec<_>>().join("-");
        let file = snapshots().join(format!("{name}-{columns}.txt"));
        if env::var_os("UPDATE_SNAPSHOTS").is_some_and(|value| value == "1") {
            fs::create_dir_all(snapshots()).expect("the folder can be made");
            fs::write(&file, &found).expect("the snapshot can be written");
        }
        let renew = "if that is on purpose, renew it: UPDATE_SNAPSHOTS=1 cargo test --test it binary::help";
        let expected =
            fs::read_to_string(&file).unwrap_or_else(|e| panic!("cannot read {}: {e}; {renew}", file.display()));
        assert!(
            found == expected,
            "{} is not the help any more; {renew}\n{}",
            file.display(),
            difference(&expected, &found)
        );
    }
}

fn snapshots() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/snapshots")
}

/// The lines that only one of both has.
fn difference(expected: &str, found: &str) -> String {
    let (gone, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let start = gone.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let same_end = gone[start..].iter().rev().zip(new[start..].iter().rev()).take_while(|(a, b)| a == b).count();
    let lines = |sign, lines: &[&str]| lines.iter().map(|line| format!("{sign} {line}\n")).collect::<String>();
    format!(
        "from line {}:\n{}{}",
        start + 1,
        lines('-', &gone[start..gone.len() - same_end]),
        lines('+', &new[start..new.len() - same_end])
    )
}

const COMMANDS: [&[&str]; 36] = [
    &[],
    &["run"],
    &["serve"],
    &["demo"],
    &["health"],
    &["status"],
    &["find"],
    &["explain"],
    &["figures"],
    &["figures", "update"],
    &["figures", "rebuild"],
    &["suppressed"],
    &["suppressed", "list"],
    &["suppressed", "remove"],
    &["suppressed", "removals"],
    &["orphans", "list"],
    &["orphans", "show"],
    &["orphans", "retry"],
    &["orphans", "expire"],
    &["quarantine", "list"],
    &["quarantine", "show"],
    &["quarantine", "replay"],
    &["quarantine", "drop"],
    &["dlq", "peek"],
    &["dlq", "redrive"],
    &["dlq", "export"],
    &["doctor"],
    &["smoke"],
    &["retention", "run"],
    &["partitions"],
    &["erase"],
    &["rebuild"],
    &["adopt"],
    &["simulate"],
    &["migrate"],
    &["decode"],
];

#[tokio::test]
async fn the_help_of_every_command_is_the_one_that_was_read_last() {
    for command in COMMANDS.into_iter().chain([&["migrate", "down"][..]]) {
        check(command).await;
    }
}

#[tokio::test]
async fn no_line_of_the_help_is_wider_than_the_terminal() {
    for command in COMMANDS {
        for columns in [80, 100] {
            let text = help(command, columns).await;
            let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > columns).collect();
            assert!(wide.is_empty(), "{command:?} at {columns}: {wide:#?}");
        }
    }
}

/// Flag, variable, and a default or a word on what happens without: for every setting of the worker.
#[tokio::test]
async fn every_setting_shows_its_variable_its_form_and_its_default() {
    // Those that are there or not.
    let flags = ["shadow\n", "site-mask\n"];
    let text = help(&["run"], 100).await;
    let mut variables = BTreeSet::new();
    for setting in text.split("\n      --").skip(1) {
        let name = setting.split(' ').next().expect("a name stands first");
        let head = setting.lines().next().expect("it has a first line");
        assert!(
            head.contains('<') || flags.iter().any(|flag| setting.starts_with(flag)),
            "--{name} does not say what it takes"
        );
        let variable = setting.split("[env: ").nth(1).and_then(|rest| rest.split(['=', ']']).next());
        let variable = variable.unwrap_or_else(|| panic!("--{name} does not name its variable"));
        assert!(variables.insert(variable.to_owned()), "{variable} belongs to two settings");
        let without = ["database-url", "queue-url"].iter().chain(&flags).any(|n| setting.starts_with(n));
        assert!(without != setting.contains("[default: "), "--{name} does not show its default");
        if head.contains("<TIME>") {
            let default = setting.split("[default: ").nth(1).expect("asserted above");
            let unit = default.trim_start_matches(|c: char| c.is_ascii_digit());
            let off = ["never]", "keep them]"].iter().any(|word| default.starts_with(word));
            let has_unit = ["ms]", "s]", "m]", "h]"].iter().any(|u| unit.starts_with(u));
            assert!(off || has_unit, "--{name} shows no unit: {default}");
        }
    }
    assert!(variables.len() >= 20, "{variables:?}");
    assert!(text.contains("500ms"), "nothing says how times are written");
}
