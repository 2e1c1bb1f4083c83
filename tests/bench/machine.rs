//! The machine that everything runs on, and what it accounted for whom.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Serialize;

use crate::proc;

/// What somebody needs to know to compare our figures with his.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    /// Cores that we may use, and that there are.
    pub(crate) cores: usize,
    pub(crate) cores_of_machine: usize,
    pub(crate) kernel: String,
    pub(crate) commit: Option<String>,
}

/// Which processes play a part.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    pub(crate) clients: Vec<u32>,
    pub(crate) postmaster: u32,
    pub(crate) endpoint: u32,
}

/// What was accounted for each part up to now.
pub(crate) struct Account {
    at: Instant,
    pub(crate) clients: Duration,
    pub(crate) database: Duration,
    pub(crate) endpoint: Duration,
    /// This process and everything else on the machine.
    own: Duration,
    busy: Duration,
}

impl Machine {
    /// # Errors
    /// If this is no Linux: there is no other account to read.
    pub(crate) fn look() -> anyhow::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("the benchmark reads /proc, which only Linux has")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's version")?;
        Ok(Self {
            processor: proc::processor(&cpuinfo).unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            cores_of_machine: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: kernel.trim().to_owned(),
            commit: commit(),
        })
    }
}

impl Account {
    pub(crate) fn read(parts: &Parts) -> anyhow::Result<Self> {
        let clients = parts.clients.iter().map(|pid| cpu_of(&pid.to_string())).sum::<anyhow::Result<Duration>>()?;
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Ok(Self {
            at: Instant::now(),
            clients,
            database: cpu_of_family(parts.postmaster)?,
            endpoint: cpu_of(&parts.endpoint.to_string())?,
            own: cpu_of("self")?,
            busy: proc::busy(&stat).context("cannot understand /proc/stat")?,
        })
    }

    /// What was added since.
    pub(crate) fn since(&self, before: &Self) -> Spent {
        let elapsed = self.at - before.at;
        let (clients, database) = (self.clients - before.clients, self.database.saturating_sub(before.database));
        let (endpoint, own) = (self.endpoint - before.endpoint, self.own - before.own);
        let others = self.busy.saturating_sub(before.busy).saturating_sub(clients + database + endpoint + own);
        Spent { elapsed, clients, database, endpoint, own, others: others.as_secs_f64() / elapsed.as_secs_f64() }
    }
}

/// CPU time between two readings.
pub(crate) struct Spent {
    pub(crate) elapsed: Duration,
    pub(crate) clients: Duration,
    pub(crate) database: Duration,
    pub(crate) endpoint: Duration,
    pub(crate) own: Duration,
    /// Cores.
    pub(crate) others: f64,
}

pub(crate) fn load() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read the load")?;
    proc::load(&text).context("cannot understand the load")
}

/// In KiB.
pub(crate) fn available_memory() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read the memory")?;
    proc::available_memory(&text).context("cannot understand the memory")
}

/// In MiB.
pub(crate) fn peak_memory(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("cannot read the peak memory")?;
    Ok(proc::peak_memory(&status).context("cannot understand the peak memory")? as f64 / 1024.0)
}

/// The process whose id is the first word of this file.
pub(crate) fn pid_in(file: &Path) -> anyhow::Result<u32> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.split_whitespace().next().and_then(|word| word.parse().ok()).context("there is no process id in it")
}

fn cpu_of(process: &str) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("a process that is measured has ended")?;
    proc::cpu(&stat).context("cannot understand /proc")
}

/// The process, its children, and its children that have ended.
fn cpu_of_family(process: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("PostgreSQL has ended")?;
    let mut total = proc::cpu_with_ended_children(&stat).context("cannot understand /proc")?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let is_process = entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit());
        // A process may end while we look.
        if is_process
            && let Ok(stat) = fs::read_to_string(entry.path().join("stat"))
            && proc::parent(&stat) == Some(process)
        {
            total += proc::cpu(&stat).unwrap_or_default();
        }
    }
    Ok(total)
}

/// What is checked out, if git knows; marked if it has been changed.
fn commit() -> Option<String> {
    let folder = env!("CARGO_MANIFEST_DIR");
    let git = Command::new("git")
        .args([
            "-c",
            &format!("safe.directory={folder}"),
            "-C",
            folder,
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
        ])
        .output()
        .ok()?;
    git.status.success().then(|| String::from_utf8_lossy(&git.stdout).trim().to_owned())
}
