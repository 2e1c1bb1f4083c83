//! The same figures for people, for a page, and for programs.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    figures::{Figure, Goal, Sample, Spread, spread},
    machine::Machine,
    plan::Group,
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
    pub(crate) lines: Vec<Line>,
    pub(crate) notes: Vec<String>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) wrong: Vec<String>,
}

/// A line of a table, with one sample for each round.
pub(crate) struct Line {
    pub(crate) group: Group,
    pub(crate) name: String,
    /// Where the same is measured in several places: in which. Each is a column.
    pub(crate) at: Option<String>,
    pub(crate) samples: Vec<Sample>,
}

/// A table, before it is known who reads it.
struct Table {
    title: &'static str,
    columns: Vec<String>,
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
        let cells = self.lines.iter().map(|Line { group, name, at, samples }| {
            let mut figures = BTreeMap::<&str, Value>::new();
            for figure in Figure::ALL {
                let values: Vec<f64> = samples.iter().filter_map(|sample| sample.get(&figure)).copied().collect();
                if let Some(Spread { n, median, least, most }) = spread(values.iter().copied()) {
                    let value = json!({ "n": n, "median": median, "min": least, "max": most, "samples": values });
                    figures.insert(figure.name(), value);
                }
            }
            json!({ "group": group.name(), "cell": name, "at": at, "figures": figures })
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
            "notes": self.notes,
            "cells": cells.collect::<Vec<_>>(),
            "goals": goals.collect::<Vec<_>>(),
            "wrong": self.wrong,
        })
    }

    /// Replaces what an earlier run wrote into this file, or makes the file. Scale by itself has a place of its own there.
    pub(crate) fn write_markdown(&self, file: &Path) -> anyhow::Result<()> {
        let old = fs::read_to_string(file).unwrap_or_else(|_| "# Results\n\n".to_owned());
        let is_scale = self.lines.iter().all(|line| line.group >= Group::Scale);
        let (mark, next) = if is_scale { (SCALE_MARK, MARK) } else { (MARK, SCALE_MARK) };
        let (above, below) = old.split_once(mark).unwrap_or((&old, ""));
        let below = below.find(next).map_or("", |at| &below[at..]);
        let text = format!("{above}{mark}\n\n{}\n{below}", self.markdown());
        fs::write(file, text.trim_end().to_owned() + "\n").with_context(|| format!("cannot write {}", file.display()))
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
        self.lines.iter().flat_map(|line| &line.samples).filter_map(|sample| sample.get(&figure).copied()).collect()
    }

    fn tables(&self) -> Vec<Table> {
        let mut groups: Vec<Group> = self.lines.iter().map(|line| line.group).collect();
        groups.dedup();
        let places = |group| self.lines.iter().any(|line| line.group == group && line.at.is_some());
        groups.into_iter().map(|group| if places(group) { self.places(group) } else { self.table(group) }).collect()
    }

    fn table(&self, group: Group) -> Table {
        let columns = columns(group);
        let rows = self.lines.iter().filter(|line| line.group == group).map(|line| {
            let value = |&(_, figure, decimals): &Column| match line.spread(figure) {
                None => "-".to_owned(),
                Some(Spread { median, least, most, n }) if figure == Figure::EventsPerSecond && n > 1 => {
                    format!("{} ({}-{})", number(median, 0), number(least, 0), number(most, 0))
                }
                Some(Spread { median, .. }) => number(median, decimals),
            };
            let values = columns.iter().map(value);
            [line.name.clone()].into_iter().chain(values).chain([line.samples.len().to_string()]).collect()
        });
        let rows = rows.collect();
        let titles = columns.iter().map(|(title, ..)| *title);
        let columns = [""].into_iter().chain(titles).chain(["rounds"]).map(str::to_owned).collect();
        Table { title: group.title(), columns, rows }
    }

    /// A column for each place, a row for each name.
    fn places(&self, group: Group) -> Table {
        let lines: Vec<&Line> = self.lines.iter().filter(|line| line.group == group).collect();
        let (mut names, mut places): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for line in &lines {
            let place = line.at.as_deref().unwrap_or_default();
            if !names.contains(&line.name.as_str()) {
                names.push(&line.name);
            }
            if !places.contains(&place) {
                places.push(place);
            }
        }
        let value = |name: &str, place: &str| {
            let line = lines.iter().find(|line| line.name == name && line.at.as_deref() == Some(place));
            line.map_or_else(|| "-".to_owned(), |line| line.in_one_cell())
        };
        let rows = names.iter().map(|name| {
            [(*name).to_owned()].into_iter().chain(places.iter().map(|place| value(name, place))).collect()
        });
        let rows = rows.collect();
        let columns = [""].into_iter().chain(places.iter().copied()).map(str::to_owned).collect();
        Table { title: group.title(), columns, rows }
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
        Table { title: "The goals", columns: ["goal", "found", ""].map(str::to_owned).to_vec(), rows: rows.collect() }
    }
}

/// What stands below is written by the benchmark, up to the other mark or the end of the file.
const MARK: &str = "<!-- Everything below is written by tests/bench/run --markdown -->";
const SCALE_MARK: &str = "<!-- Everything below is written by tests/bench/run --only scale --markdown -->";

/// What the words in the tables mean.
fn explanations() -> [&'static str; 5] {
    [
        "Medians over the rounds, in brackets the least and the most. CPU in µs per event, as the",
        "operating system accounted it: user and system time of all processes of each part. far:",
        "10 to 15 ms for each request and 7.5 messages in a receive; else no latency and full receives.",
        "RSS: the peak of one worker process, in MiB. payload: bytes stored of an event, on average.",
        "log: write-ahead log per event, right after a checkpoint, when pages are logged whole.",
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
        Group::Rate | Group::Mess | Group::Processes | Group::Pollers => &[
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
        Group::Scale => &[
            ("events/s", EventsPerSecond, 0),
            ("worker", ClientCpu, 1),
            ("database", DatabaseCpu, 1),
            ("log, B", Log, 0),
            ("of it whole pages, B", LogOfPages, 0),
            ("messages", Messages, 0),
        ],
        Group::ScaleRetention => &[
            ("events/s", EventsPerSecond, 0),
            ("% of alone", Share, 1),
            ("worker", ClientCpu, 1),
            ("database", DatabaseCpu, 1),
            ("rows let go", LetGo, 0),
            ("of the time, %", Beside, 0),
            ("messages", Messages, 0),
        ],
        // A column for each step.
        Group::ScaleTimes | Group::ScaleSizes | Group::ScaleUpkeep => &[],
    }
}

impl Line {
    fn spread(&self, figure: Figure) -> Option<Spread> {
        spread(self.samples.iter().filter_map(|sample| sample.get(&figure).copied()))
    }

    fn in_one_cell(&self) -> String {
        let short = |value: f64| {
            number(
                value,
                if value >= 99.95 {
                    0
                } else if value >= 9.995 {
                    1
                } else {
                    2
                },
            )
        };
        match (self.spread(Figure::Median), self.spread(Figure::P95), self.spread(Figure::Value)) {
            (Some(median), Some(p95), _) => format!("{} / {}", short(median.median), short(p95.median)),
            (.., Some(value)) => short(value.median),
            _ => "-".to_owned(),
        }
    }
}

impl Table {
    fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for row in [&self.columns].into_iter().chain(&self.rows) {
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
        let ruler = |n: usize| if n == 0 || self.is_prose() { "---" } else { "--:" }.to_owned();
        let rulers: Vec<String> = (0..self.columns.len()).map(ruler).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        line(&self.columns) + &line(&rulers) + &rows
    }

    fn is_prose(&self) -> bool {
        self.columns.iter().any(|title| title == "goal")
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
