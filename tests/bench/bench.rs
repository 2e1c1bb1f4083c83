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
mod function;
mod machine;
mod measure;
mod plan;
mod proc;
mod report;
mod tale;

use std::{env, fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, bail};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};

use figures::{Figure, Sample, spread};
use machine::Machine;
use measure::Bench;
use plan::{Cell, Effort, Group};
use report::Report;

const HELP: &str = "\
Measures ses-ledger: rate, CPU, memory and latency, with its own PostgreSQL and queue endpoint.

  tests/bench/run [OPTIONS] [-- SETTINGS OF THE WORKER]

  --quick            everything once and small: whether it works, not how fast
  --only GROUP,...   rate mess size processes pollers limits growth latency memory idle lambda
  --rounds N         how often each cell is measured [default: 3]
  --messages N       messages of an ordinary cell [default: 40000]
  --grow MILLIONS    the events of the largest table [default: 10]
  --json FILE        every sample, for programs
  --markdown FILE    the tables, below what people wrote in that file
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
        let mut given = arguments.drain(..);
        while let Some(argument) = given.next() {
            let mut value = || given.next().with_context(|| format!("{argument} takes a value"));
            let effort = &mut options.effort;
            match argument.as_str() {
                "--quick" | "--all-cores" => {}
                "--only" => options.only = value()?.split(',').map(group).collect::<anyhow::Result<_>>()?,
                "--rounds" => effort.rounds = number(&value()?)?,
                "--messages" => effort.messages = number(&value()?)?,
                "--grow" => {
                    let factor = (number(&value()?)? as u64 * 1_000_000).div_ceil(effort.logs);
                    effort.factors = if factor > 10 { vec![1, 10, factor] } else { vec![1, factor] };
                    effort.factors.dedup();
                }
                "--json" => options.json = Some(value()?.into()),
                "--markdown" => options.markdown = Some(value()?.into()),
                "--" => break,
                other => bail!("cannot understand {other}; tests/bench/run --help tells more"),
            }
        }
        options.effort.worker = given.collect();
        Ok(options)
    }
}

fn group(name: &str) -> anyhow::Result<Group> {
    Group::ALL.into_iter().find(|group| group.name() == name).with_context(|| format!("there is no group {name}"))
}

fn number(text: &str) -> anyhow::Result<usize> {
    text.parse().ok().filter(|n| *n > 0).with_context(|| format!("{text} is no number"))
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
            match bench.measure(cell, round).await {
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
    let figure = |name: &str, figure| {
        let (_, samples) = results.iter().find(|(cell, _)| cell.name == name)?;
        spread(values(samples, figure)).map(|spread| spread.median)
    };
    let goals = if options.quick { Vec::new() } else { figures::goals(figure) };
    let report = Report {
        goals,
        machine,
        postgres: bench.server.describe(),
        load_before,
        load_after: machine::load()?,
        command,
        date: date.replace_nanosecond(0)?.format(&Rfc3339)?,
        minutes: started.elapsed().as_secs_f64() / 60.0,
        notes: bench.notes(options.quick),
        cells: results,
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
