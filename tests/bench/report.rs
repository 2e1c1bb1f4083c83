//! The same figures for people, for a page, and for programs.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    figures::{Figure, Goal, Sample, Spread, spread},
    machine::Machine,
    plan::{Cell, Group},
};

/// All that was found out.
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) postgres: String,
    pub(crate) load_before: f64,
    pub(crate) load_after: f64,
    pub(crate) command: String,
    pub(crate) date: String,
    pub(crate) minutes: f64,
    /// Cells with one sample for each round.
    pub(crate) cells: Vec<(Cell, Vec<Sample>)>,
    /// Sizes of the tables that grow, in GiB, by factor.
    pub(crate) notes: Vec<String>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) wrong: Vec<String>,
}

/// A table, before it is known who reads it.
struct Table {
    title: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// A column of a table and the figure in it.
type Column = (&'static str, Figure, usize);

impl Report {
    /// For people in front of a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text =
            self.facts().into_iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect::<String>();
        for table in self.tables() {
            text += &format!("\n{}\n{}", table.title, table.text());
        }
        text += &format!("\n{}\n", explanations().join("\n"));
        if !self.goals.is_empty() {
            text += &format!("\nThe goals\n{}", self.goals_table().text());
        }
        text + &self.warnings("  ")
    }

    /// For a page, without a heading.
    pub(crate) fn markdown(&self) -> String {
        let mut text = "| | |\n|---|---|\n".to_owned();
        text += &self.facts().into_iter().map(|(name, value)| format!("| {name} | {value} |\n")).collect::<String>();
        if !self.goals.is_empty() {
            text += &format!("\n## The goals\n\n{}", self.goals_table().markdown());
        }
        text += &self.warnings("- ");
        for table in self.tables() {
            text += &format!("\n## {}\n\n{}", table.title, table.markdown());
        }
        text
    }

    /// For programs: every sample of every figure.
    pub(crate) fn json(&self) -> Value {
        let cells = self.cells.iter().map(|(cell, samples)| {
            let mut figures = BTreeMap::<&str, Value>::new();
            for figure in Figure::ALL {
                let values: Vec<f64> = samples.iter().filter_map(|sample| sample.get(&figure)).copied().collect();
                if let Some(Spread { n, median, least, most }) = spread(values.iter().copied()) {
                    let value = json!({ "n": n, "median": median, "min": least, "max": most, "samples": values });
                    figures.insert(figure.name(), value);
                }
            }
            json!({ "group": cell.group.name(), "cell": cell.name, "figures": figures })
        });
        let goals =
            self.goals.iter().map(|goal| json!({ "goal": goal.wanted, "found": goal.found, "reached": goal.reached }));
        json!({
            "machine": self.machine,
            "postgres": self.postgres,
            "load_before": self.load_before,
            "load_after": self.load_after,
            "command": self.command,
            "date": self.date,
            "minutes": self.minutes,
            "cells": cells.collect::<Vec<_>>(),
            "goals": goals.collect::<Vec<_>>(),
            "wrong": self.wrong,
        })
    }

    /// Replaces what stands in this file below the line that says so, or makes the file.
    pub(crate) fn write_markdown(&self, file: &Path) -> anyhow::Result<()> {
        let old = fs::read_to_string(file).unwrap_or_default();
        let above = old.split_once(MARK).map_or("# Results\n\n", |(above, _)| above);
        fs::write(file, format!("{above}{MARK}\n\n{}", self.markdown()))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let Machine { processor, cores, cores_of_machine, kernel, commit } = &self.machine;
        let mut facts = vec![
            ("processor", format!("{processor}, {cores} of {cores_of_machine} cores used")),
            ("kernel", kernel.clone()),
            ("database", self.postgres.clone()),
            ("commit", commit.clone().unwrap_or_else(|| "unknown".to_owned())),
            ("command", self.command.clone()),
            ("date", format!("{}, {:.0} minutes", self.date, self.minutes)),
            ("load", format!("{:.2} before, {:.2} after (our own included)", self.load_before, self.load_after)),
        ];
        let others = self.samples(Figure::Others);
        if let Some(others) = spread(others) {
            facts.push((
                "others",
                format!("kept {:.2} cores busy meanwhile (median; at most {:.2})", others.median, others.most),
            ));
        }
        facts.extend(self.notes.iter().map(|note| ("note", note.clone())));
        facts
    }

    fn warnings(&self, bullet: &str) -> String {
        let mut warnings = Vec::new();
        let busy = spread(self.samples(Figure::Others)).is_some_and(|others| others.median > 0.1);
        if self.load_before > 0.5 || busy {
            warnings.push(
                "The machine was busy with other things: rates are lower, and CPU per event higher, than they can be."
                    .to_owned(),
            );
        }
        warnings.extend(self.wrong.iter().map(|wrong| format!("WRONG: {wrong}")));
        match warnings.is_empty() {
            true => String::new(),
            false => warnings.iter().fold("\n".to_owned(), |text, warning| text + &format!("{bullet}{warning}\n")),
        }
    }

    fn samples(&self, figure: Figure) -> Vec<f64> {
        self.cells.iter().flat_map(|(_, samples)| samples).filter_map(|sample| sample.get(&figure).copied()).collect()
    }

    fn tables(&self) -> Vec<Table> {
        let mut groups: Vec<Group> = self.cells.iter().map(|(cell, _)| cell.group).collect();
        groups.dedup();
        groups.into_iter().map(|group| self.table(group)).collect()
    }

    fn table(&self, group: Group) -> Table {
        let columns = columns(group);
        let rows = self.cells.iter().filter(|(cell, _)| cell.group == group).map(|(cell, samples)| {
            let spread_of = |figure| spread(samples.iter().filter_map(|sample| sample.get(&figure).copied()));
            let value = |&(_, figure, decimals): &Column| match spread_of(figure) {
                None => "-".to_owned(),
                Some(Spread { median, least, most, n }) if figure == Figure::EventsPerSecond && n > 1 => {
                    format!("{} ({}-{})", number(median, 0), number(least, 0), number(most, 0))
                }
                Some(Spread { median, .. }) => number(median, decimals),
            };
            let values = columns.iter().map(value);
            [cell.name.clone()].into_iter().chain(values).chain([samples.len().to_string()]).collect()
        });
        let rows = rows.collect();
        let titles = columns.iter().map(|(title, ..)| *title);
        Table { title: group.title(), columns: [""].into_iter().chain(titles).chain(["rounds"]).collect(), rows }
    }

    fn goals_table(&self) -> Table {
        let rows = self.goals.iter().map(|Goal { wanted, found, reached }| {
            let verdict = match reached {
                Some(true) => "reached",
                Some(false) => "MISSED",
                None => "-",
            };
            vec![wanted.clone(), found.clone(), verdict.to_owned()]
        });
        Table { title: "The goals", columns: vec!["goal", "found", ""], rows: rows.collect() }
    }
}

/// What is above it in a file is written by people.
pub(crate) const MARK: &str = "<!-- Everything below is written by tests/bench/run --markdown -->";

/// What the words in the tables mean.
fn explanations() -> [&'static str; 4] {
    [
        "Medians over the rounds, in brackets the least and the most. CPU in µs per event, as the",
        "operating system accounted it: user and system time of all processes of each part. far:",
        "10 to 15 ms for each request and 7.5 messages in a receive; else no latency and full receives.",
        "RSS: the peak of one worker process, in MiB. payload: bytes stored of an event, on average.",
    ]
}

fn columns(group: Group) -> &'static [Column] {
    use Figure::*;
    match group {
        Group::Size => &[
            ("events/s", EventsPerSecond, 0),
            ("worker", ClientCpu, 1),
            ("database", DatabaseCpu, 1),
            ("endpoint", EndpointCpu, 1),
            ("payload", Payload, 0),
            ("RSS", PeakMemory, 0),
            ("messages", Messages, 0),
        ],
        Group::Rate | Group::Mess | Group::Processes | Group::Pollers | Group::Growth => &[
            ("events/s", EventsPerSecond, 0),
            ("worker", ClientCpu, 1),
            ("database", DatabaseCpu, 1),
            ("endpoint", EndpointCpu, 1),
            ("per receive", PerReceive, 1),
            ("per delete", PerDelete, 2),
            ("RSS", PeakMemory, 0),
            ("messages", Messages, 0),
        ],
        Group::Limits => &[
            ("events/s", EventsPerSecond, 0),
            ("client", ClientCpu, 1),
            ("database", DatabaseCpu, 1),
            ("endpoint", EndpointCpu, 1),
            ("messages", Messages, 0),
        ],
        Group::Latency => &[
            ("events/s", EventsPerSecond, 0),
            ("median ms", Median, 1),
            ("p99 ms", P99, 1),
            ("longest ms", Longest, 1),
            ("worker", ClientCpu, 1),
            ("messages", Messages, 0),
        ],
        Group::Memory => &[("peak RSS, MiB", PeakMemory, 1), ("messages", Messages, 0)],
        Group::Idle => &[
            ("requests/min", RequestsPerMinute, 1),
            ("worker, % of a core", CoreShare, 3),
            ("database, % of a core", DatabaseShare, 3),
            ("RSS, MiB", PeakMemory, 1),
        ],
        Group::Lambda => &[
            ("events/s", EventsPerSecond, 0),
            ("worker", ClientCpu, 1),
            ("database", DatabaseCpu, 1),
            ("start ms", Start, 1),
            ("first ms", First, 1),
            ("median ms", Median, 1),
            ("RSS", PeakMemory, 0),
            ("messages", Messages, 0),
        ],
    }
}

impl Table {
    fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let titles: Vec<String> = self.columns.iter().map(|&title| title.to_owned()).collect();
        let mut text = String::new();
        for row in [&titles].into_iter().chain(&self.rows) {
            let line: String = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(n, (cell, &width))| match n == 0 || self.is_prose() {
                    true => format!("  {cell:<width$}"),
                    false => format!("  {cell:>width$}"),
                })
                .collect();
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let titles: Vec<String> = self.columns.iter().map(|&title| title.to_owned()).collect();
        let ruler = |n: usize| if n == 0 || self.is_prose() { "---" } else { "--:" }.to_owned();
        let rulers: Vec<String> = (0..titles.len()).map(ruler).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        line(&titles) + &line(&rulers) + &rows
    }

    fn is_prose(&self) -> bool {
        self.columns.contains(&"goal")
    }
}

/// With commas between the thousands.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}
