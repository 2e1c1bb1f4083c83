//! How many events a second, at what cost, and is the result exact? Started by `tests/bench/run`.
//!
//! Starts a PostgreSQL (durable, as in production), a queue endpoint and the real worker, each in processes of its own,
//! and measures cell after cell: fills the queue with a story, lets the worker empty it, reads what the operating system
//! accounted for each of the three, and compares the database with the story's truth. All cells are measured in each
//! round, so that a machine that gets slower for a while does not spoil one of them alone.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its figures")]

mod client;
mod database;
mod endpoint;
mod figures;
mod fill;
mod function;
mod machine;
mod measure;
mod plan;
mod proc;
mod report;
mod scale;
mod tale;

use std::{env, fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, bail, ensure};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};

use figures::{Figure, Sample, spread};
use machine::Machine;
use measure::Bench;
use plan::{Cell, Effort, Group, Step};
use report::{Line, Report};
use scale::Scaled;

const HELP: &str = "\
Measures ses-ledger: rate, CPU, memory and latency, with its own PostgreSQL and queue endpoint.

  tests/bench/run [OPTIONS] [-- SETTINGS OF THE WORKER]

  --quick            everything once and small: whether it works, not how fast
  --only GROUP,...   rate mess size processes pollers limits latency memory idle lambda scale
                     [default: all but scale; with --quick all]
  --rounds N         how often each cell is measured [default: 3]
  --messages N       messages of an ordinary cell [default: 40000]
  --steps MILLIONS   scale: the events at each step, each at least as many as before [default: 1,1,10,30]
  --partitions N,... scale: the months that they lie in at each step [default: 12,36,36,36]
  --json FILE        every sample, for programs
  --markdown FILE    the tables, in their place in that file: those of scale have one of their own
  --all-cores        not on the first two cores only

Exit codes: 0 all results were exact, whether or not the goals are reached; 1 they were not.";

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some(endpoint::ARGUMENT) => return endpoint::be().map(|()| ExitCode::SUCCESS),
        Some(client::BARE) => return run(client::be_bare()).map(|()| ExitCode::SUCCESS),
        Some(client::NAIVE) => return run(client::be_naive()).map(|()| ExitCode::SUCCESS),
        Some("--help" | "-h") => {
            println!("{HELP}");
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let command = format!("tests/bench/run {}", arguments.join(" ")).trim_end().to_owned();
    let options = Options::read(&mut arguments)?;
    // What was started is stopped by those who hold it: a signal must not end us before them.
    run(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = bench(&options, command) => ended,
            _ = ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

struct Options {
    effort: Effort,
    only: Vec<Group>,
    quick: bool,
    json: Option<PathBuf>,
    markdown: Option<PathBuf>,
}

impl Options {
    fn read(arguments: &mut Vec<String>) -> anyhow::Result<Self> {
        let yesterday = (OffsetDateTime::now_utc() - Duration::DAY).unix_timestamp();
        let quick = arguments.iter().any(|argument| argument == "--quick");
        let effort = if quick { Effort::quick(yesterday) } else { Effort::usual(yesterday) };
        let mut options = Self { effort, only: Group::ALL.to_vec(), quick, json: None, markdown: None };
        // Half an hour and 35 GiB.
        options.only.retain(|group| quick || *group != Group::Scale);
        let (mut millions, mut months) = (None, None);
        let mut given = arguments.drain(..);
        while let Some(argument) = given.next() {
            let mut value = || given.next().with_context(|| format!("{argument} takes a value"));
            let effort = &mut options.effort;
            match argument.as_str() {
                "--quick" | "--all-cores" => {}
                "--only" => options.only = value()?.split(',').map(group).collect::<anyhow::Result<_>>()?,
                "--rounds" => effort.rounds = number(&value()?)?,
                "--messages" => effort.messages = number(&value()?)?,
                "--steps" => millions = Some(list(&value()?, |text| text.parse::<f64>().ok().filter(|n| *n > 0.0))?),
                "--partitions" => months = Some(list(&value()?, |text| text.parse().ok().filter(|n| *n > 0))?),
                "--json" => options.json = Some(value()?.into()),
                "--markdown" => options.markdown = Some(value()?.into()),
                "--" => break,
                other => bail!("cannot understand {other}; tests/bench/run --help tells more"),
            }
        }
        options.effort.worker = given.collect();
        let usual = &options.effort.steps;
        let millions = millions.unwrap_or_else(|| usual.iter().map(|step| step.events as f64 / 1e6).collect());
        let months = months.unwrap_or_else(|| usual.iter().map(|step| step.months).collect());
        ensure!(millions.len() == months.len(), "--steps and --partitions have to name as many values");
        let step = |(events, months): (&f64, &u32)| Step { events: (events * 1e6).round() as u64, months: *months };
        options.effort.steps = millions.iter().zip(&months).map(step).collect();
        Ok(options)
    }
}

fn group(name: &str) -> anyhow::Result<Group> {
    Group::ALL.into_iter().find(|group| group.name() == name).with_context(|| format!("there is no group {name}"))
}

fn number(text: &str) -> anyhow::Result<usize> {
    text.parse().ok().filter(|n| *n > 0).with_context(|| format!("{text} is no number"))
}

fn list<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> anyhow::Result<Vec<T>> {
    text.split(',').map(|one| read(one).with_context(|| format!("{one} is no number"))).collect()
}

async fn bench(options: &Options, command: String) -> anyhow::Result<ExitCode> {
    let (started, date) = (Instant::now(), OffsetDateTime::now_utc());
    let (machine, load_before) = (Machine::look()?, machine::load()?);
    let mut bench = Bench::start(options.effort.clone()).await?;
    let cells: Vec<Cell> =
        plan::cells(&options.effort).into_iter().filter(|cell| options.only.contains(&cell.group)).collect();
    let mut results: Vec<(Cell, Vec<Sample>)> = cells.into_iter().map(|cell| (cell, Vec::new())).collect();
    let mut wrong = Vec::new();
    for round in 1..=options.effort.rounds {
        for (cell, samples) in results.iter_mut().filter(|(cell, _)| round == 1 || !cell.once) {
            let (label, begun) = (format!("round {round}: {}: {}", cell.group.name(), cell.name), Instant::now());
            match bench.measure(cell).await {
                Ok(measured) => {
                    eprintln!("{label:<45} {}  {:.0} s", told(&measured.sample), begun.elapsed().as_secs_f64());
                    wrong.extend(measured.wrong.into_iter().map(|wrong| format!("{label}: {wrong}")));
                    samples.push(measured.sample);
                    if let Some(rate) = spread(values(samples, Figure::EventsPerSecond)) {
                        bench.rates.insert(cell.name.clone(), rate.median);
                    }
                }
                // The others may still tell something.
                Err(e) => {
                    eprintln!("{label:<45} {e:#}");
                    wrong.push(format!("{label}: {e:#}"));
                }
            }
        }
    }
    let mut scaled = Scaled::default();
    if options.only.contains(&Group::Scale)
        && let Err(e) = scale::measure(&mut bench, &mut scaled).await
    {
        eprintln!("scale: {e:#}");
        scaled.wrong.push(format!("scale: {e:#}"));
    }
    wrong.append(&mut scaled.wrong);
    let line = |(cell, samples): (Cell, _)| Line { group: cell.group, name: cell.name, at: None, samples };
    let mut lines: Vec<Line> = results.into_iter().map(line).collect();
    lines.append(&mut scaled.lines);
    let figure = |name: &str, figure| {
        let name = scaled.names.get(name).map_or(name, String::as_str);
        let line = lines.iter().find(|line| line.name == name)?;
        spread(values(&line.samples, figure)).map(|spread| spread.median)
    };
    let mut goals = if options.quick { Vec::new() } else { figures::goals(figure) };
    // What could not be measured is among what is wrong.
    goals.retain(|goal| goal.reached.is_some());
    if options.quick {
        scaled.notes.insert(0, "quick: too small to measure; it shows that everything works".to_owned());
    }
    let report = Report {
        goals,
        machine,
        postgres: bench.server.describe(),
        load_before,
        load_after: machine::load()?,
        command,
        date: date.replace_nanosecond(0)?.format(&Rfc3339)?,
        minutes: started.elapsed().as_secs_f64() / 60.0,
        notes: scaled.notes,
        lines,
        wrong,
    };
    println!("{}", report.text());
    if let Some(file) = &options.json {
        fs::write(file, format!("{:#}\n", report.json()))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &options.markdown {
        report.write_markdown(file)?;
    }
    bench.server.close().await?;
    Ok(if report.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn values(samples: &[Sample], figure: Figure) -> Vec<f64> {
    samples.iter().filter_map(|sample| sample.get(&figure).copied()).collect()
}

/// A sample in a few words, to follow what goes on.
fn told(sample: &Sample) -> String {
    let words = [
        (Figure::EventsPerSecond, "events/s", 0),
        (Figure::ClientCpu, "µs client", 1),
        (Figure::DatabaseCpu, "µs database", 1),
        (Figure::P99, "ms p99", 1),
        (Figure::Longest, "ms longest", 1),
        (Figure::PeakMemory, "MiB", 0),
    ];
    let words = words
        .iter()
        .filter_map(|&(figure, unit, decimals)| Some(format!("{:.decimals$} {unit}", sample.get(&figure)?)));
    words.collect::<Vec<_>>().join(", ")
}
