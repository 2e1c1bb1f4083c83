//! How many messages a second, at what cost, and is the result exact?
//!
//! Starts a PostgreSQL (durable, as in production), the embedded queue endpoint in this process, and the real worker as
//! a process of its own; fills the queue with a story, lets the worker drain it, and compares the database with the
//! story's truth. CPU is what the operating system accounted for each process.
//!
//!     cargo bench --bench rate                       200,000 messages
//!     cargo bench --bench rate -- --mails 5000 -- --batch-size 1000    further settings go to the worker

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{
    env, fs,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use ses_ledger::{
    local::{
        postgres::{LocalPostgres, LocalPostgresSettings},
        sqs_endpoint::{QueueHandle, SqsEndpoint, SqsEndpointSettings},
        story::{Step, Story, StorySettings, Truth},
    },
    orphans,
    postgres::{Postgres, PostgresSettings, audit, migrations, sender},
};
use time::macros::datetime;

/// A story of so many mails is about 200,000 messages.
const USUAL_MAILS: usize = 51_500;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let (mails, worker_arguments) = arguments()?;
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools");
    let settings = LocalPostgresSettings::new(env::var_os("PATH").unwrap_or_default(), env::temp_dir(), tools);
    let server = LocalPostgres::start(settings).await?;
    let postgres = Postgres::new(&PostgresSettings {
        url: server.url(),
        connections: 4,
        statement_timeout: Duration::from_secs(120),
        schema: None,
    })?;
    migrations::up(&postgres).await?;
    let endpoint = SqsEndpoint::start(SqsEndpointSettings::default()).await?;
    let queue_url = endpoint.create_queue("rate", &[])?;
    let queue = endpoint.queue("rate").context("the queue was just made")?;
    println!("{}; {mails} mails; load average {}", server.origin(), first_word("/proc/loadavg")?);

    let truth = fill(mails, &postgres, &queue).await?;
    let postmaster =
        first_word(server.data_dir().join("postmaster.pid"))?.parse().context("cannot read postmaster.pid")?;
    let (database_before, here_before) = (cpu_of_family(postmaster)?, cpu_of("self")?);
    let mut worker = Worker::start(&server.url(), &queue_url, &worker_arguments)?;
    let took = worker.drain(&queue).await?;
    let worker_cpu = cpu_of(&worker.0.id().to_string())?;
    let worker_memory = peak_memory(worker.0.id())?;
    let (database_cpu, here_cpu) = (cpu_of_family(postmaster)? - database_before, cpu_of("self")? - here_before);
    worker.stop()?;

    orphans::sweep_all(&postgres).await.map_err(anyhow::Error::from)?;
    let differences = audit::compare(&postgres, &truth).await?;
    let per_event = |cpu: Duration| cpu.as_secs_f64() * 1e6 / truth.events as f64;
    println!("messages          {:>10}", truth.messages);
    println!("events            {:>10}   one per recipient", truth.events);
    println!("seconds           {:>10.1}", took.as_secs_f64());
    println!("messages/s        {:>10.0}", truth.messages as f64 / took.as_secs_f64());
    println!("events/s          {:>10.0}", truth.events as f64 / took.as_secs_f64());
    println!("worker CPU        {:>10.1} µs per event", per_event(worker_cpu));
    println!("database CPU      {:>10.1} µs per event", per_event(database_cpu));
    println!("endpoint CPU      {:>10.1} µs per event   (this process)", per_event(here_cpu));
    println!("worker peak RSS   {:>10.1} MiB", worker_memory as f64 / 1024.0);
    println!("redelivered       {:>10}", queue.redelivered());
    println!("differences       {:>10}   rows, facts and statuses against the truth", differences.count);
    differences.described.iter().for_each(|difference| println!("  {difference}"));
    server.close().await?;
    Ok(if differences.count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `--mails N`, and what is for the worker after a second `--`. Cargo adds `--bench`.
fn arguments() -> anyhow::Result<(usize, Vec<String>)> {
    let mut mails = USUAL_MAILS;
    let mut given = env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--bench" => {}
            "--mails" => mails = given.next().and_then(|n| n.parse().ok()).context("--mails takes a number")?,
            "--" => break,
            other => anyhow::bail!("cannot understand {other}: --mails N, and -- before the worker's own settings"),
        }
    }
    Ok((mails, given.filter(|argument| argument != "--bench").collect()))
}

/// Writes the log rows and fills the queue, so that both ends are full when the worker starts.
async fn fill(mails: usize, postgres: &Postgres, queue: &QueueHandle) -> anyhow::Result<Truth> {
    let story = Story::tell(&StorySettings::new(1, mails, datetime!(2026-10-05 08:00 UTC)));
    let mut rows = Vec::new();
    for step in story.steps() {
        match step {
            Step::WriteLog(row) => rows.push(row),
            Step::Publish(body) => drop(queue.send(&body)),
        }
        if rows.len() == 1_000 {
            sender::write_logs(postgres, &std::mem::take(&mut rows)).await?;
        }
    }
    sender::write_logs(postgres, &rows).await?;
    Ok(story.truth)
}

/// The real binary.
struct Worker(Child);

impl Worker {
    fn start(database_url: &str, queue_url: &str, arguments: &[String]) -> anyhow::Result<Self> {
        let worker = Command::new(env!("CARGO_BIN_EXE_ses-ledger"))
            .args(["run", "--http-address", "127.0.0.1:0", "--receive-wait", "1s", "--shutdown-grace", "30s"])
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", database_url)
            .env("QUEUE_URL", queue_url)
            .env("LOG", "warn")
            .stdin(Stdio::null())
            .spawn();
        worker.map(Self).context("cannot start the worker")
    }

    /// From the first receive until the queue is empty.
    async fn drain(&mut self, queue: &QueueHandle) -> anyhow::Result<Duration> {
        let mut begin = None;
        loop {
            ensure!(self.0.try_wait()?.is_none(), "the worker ended before the queue was empty");
            let (counts, received) = (queue.counts(), queue.totals().received);
            if begin.is_none() && received > 0 {
                begin = Some(Instant::now());
            }
            if let Some(begin) = begin
                && counts.visible + counts.in_flight == 0
            {
                return Ok(begin.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let asked = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.0.id())]).status()?;
        ensure!(asked.success() && self.0.wait()?.success(), "the worker did not end well");
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

/// User and system time of one process, its finished threads included.
fn cpu_of(process: &str) -> anyhow::Result<Duration> {
    Ok(ticks(&stat(process)?, &[11, 12]))
}

/// The same of a process, its children, and children that have ended.
fn cpu_of_family(parent: u32) -> anyhow::Result<Duration> {
    let mut total = ticks(&stat(&parent.to_string())?, &[11, 12, 13, 14]);
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A process may end while we look.
        if name.bytes().all(|b| b.is_ascii_digit())
            && let Ok(fields) = stat(&name)
            && fields.get(1).is_some_and(|ppid| *ppid == parent.to_string())
        {
            total += ticks(&fields, &[11, 12]);
        }
    }
    Ok(total)
}

/// The fields of /proc/PID/stat after the name, which is in parentheses and may hold anything.
fn stat(process: &str) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("cannot read /proc")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// The kernel counts these in hundredths of a second.
fn ticks(fields: &[String], which: &[usize]) -> Duration {
    let ticks: u64 = which.iter().filter_map(|n| fields.get(*n)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn peak_memory(process: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("cannot read the peak memory")?;
    line.trim().trim_end_matches(" kB").parse().context("cannot read the peak memory")
}

fn first_word(path: impl AsRef<Path>) -> anyhow::Result<String> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.split_whitespace().next().map(str::to_owned).with_context(|| format!("{} is empty", path.display()))
}
