//! The workers of a simulation: this program's own `run`, each in a process of its own, so that it can be killed.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{self, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStderr, Command},
    time::{Instant, sleep, timeout},
};

use crate::http;

/// How long a worker may take until it receives, and until it has left.
const START: Duration = Duration::from_secs(60);
const LEAVE: Duration = Duration::from_secs(60);

/// How long a page of metrics may take.
const PAGE: Duration = Duration::from_secs(2);

/// What of our environment would lead a worker elsewhere than to the queue and the database of the simulation.
const SURROUNDINGS: [&str; 6] =
    ["AWS_ENDPOINT_URL", "AWS_REGION", "DATABASE_SECRET", "DATABASE_AUTH", "DATABASE_POOLER", "DATABASE_SCHEMA"];

/// How to start a worker.
#[derive(Clone)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) variables: Vec<(String, String)>,
    /// The worker sees nothing else of our environment.
    pub(super) alone: bool,
    /// The user's own settings.
    pub(super) arguments: Vec<String>,
}

/// Several workers on one queue.
pub(super) struct Crew {
    launch: Launch,
    members: Mutex<Vec<Option<Member>>>,
    record: Mutex<Record>,
    watchman: Mutex<Watchman>,
    since: Instant,
}

/// What is known of all workers, those that have ended included.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// Processes that were started.
    pub(super) started: usize,
    /// Of these, those that we killed.
    pub(super) killed: usize,
    /// Of these, those that ended by themselves or badly, and their last words.
    pub(super) died: Vec<String>,
    /// What those that have ended had counted when they were last asked.
    ended: Page,
    /// Pages that were read, and those of them that did not add up.
    pub(super) pages: usize,
    pub(super) pages_with_drift: usize,
    /// How long this process did not get to run at most: the machine was busy, or asleep.
    pub(super) stood_still: Duration,
    /// Resident memory of all of them, in KiB, over time. Empty where there is no `/proc`.
    pub(super) memory: Vec<(Duration, u64)>,
}

/// The values of `/metrics`, by name and labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Page(BTreeMap<String, f64>);

struct Member {
    child: Child,
    process: u32,
    heard: Arc<Mutex<Heard>>,
    page: Page,
}

/// What a worker has logged.
#[derive(Default)]
struct Heard {
    address: Option<String>,
    receiving: bool,
    last_lines: VecDeque<String>,
}

impl Crew {
    /// Starts so many workers and waits until they receive.
    pub(super) async fn start(launch: Launch, workers: usize) -> anyhow::Result<Self> {
        let crew = Self {
            launch,
            members: Mutex::default(),
            record: Mutex::default(),
            watchman: Mutex::new(Watchman::start()?),
            since: Instant::now(),
        };
        for _ in 0..workers {
            let member = crew.spawn()?;
            lock(&crew.members).push(Some(member));
        }
        let deadline = Instant::now() + START;
        while !crew.all(|member| lock(&member.heard).receiving) {
            if Instant::now() > deadline || !crew.ended_by_themselves()?.is_empty() {
                bail!("cannot start a worker: it {}", crew.record().died.join("; "));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(crew)
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.members).len()
    }

    pub(super) fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// SIGKILL. It cannot prepare itself, and its place stays empty.
    pub(super) async fn kill(&self, place: usize) -> anyhow::Result<bool> {
        let Some(mut member) = lock(&self.members).get_mut(place).and_then(Option::take) else { return Ok(false) };
        lock(&self.watchman).forget(member.process);
        member.child.kill().await.context("cannot kill a worker")?;
        let mut record = lock(&self.record);
        record.killed += 1;
        record.ended.add(&member.page);
        Ok(true)
    }

    /// Fills an empty place.
    pub(super) fn replace(&self, place: usize) -> anyhow::Result<()> {
        let member = self.spawn()?;
        if let Some(empty) = lock(&self.members).get_mut(place) {
            *empty = Some(member);
        }
        Ok(())
    }

    /// Notes for how long this process did not run.
    pub(super) fn stood_still(&self, time: Duration) {
        let mut record = lock(&self.record);
        record.stood_still = record.stood_still.max(time);
    }

    /// Reads everybody's counts and memory, and replaces whoever ended by itself.
    pub(super) async fn look_after(&self) -> anyhow::Result<()> {
        for place in self.ended_by_themselves()? {
            self.replace(place)?;
        }
        let addresses: Vec<(u32, String)> = lock(&self.members)
            .iter()
            .flatten()
            .filter_map(|member| Some((member.process, lock(&member.heard).address.clone()?)))
            .collect();
        for (process, address) in &addresses {
            // One that is being killed does not answer.
            if let Ok(Ok(page)) = timeout(PAGE, http::ask(address, "/metrics")).await {
                self.keep(*process, Page::read(&page.body));
            }
        }
        let memory: Option<u64> = addresses.iter().map(|(process, _)| resident_memory(*process)).sum();
        if let Some(memory) = memory.filter(|memory| *memory > 0) {
            lock(&self.record).memory.push((self.since.elapsed(), memory));
        }
        Ok(())
    }

    /// The counts of all workers together, as far as they have told them.
    pub(super) fn counts(&self) -> Page {
        let mut all = lock(&self.record).ended.clone();
        lock(&self.members).iter().flatten().for_each(|member| all.add(&member.page));
        all
    }

    /// Messages that those who live hold, as last asked.
    pub(super) fn in_hand(&self) -> u64 {
        lock(&self.members).iter().flatten().map(|member| member.page.get("messages_in_hand")).sum()
    }

    /// SIGTERM to all: they finish what they hold.
    pub(super) async fn stop(&self) -> anyhow::Result<()> {
        self.look_after().await?;
        let members: Vec<Member> = lock(&self.members).iter_mut().filter_map(Option::take).collect();
        for member in &members {
            terminate(member.process).await?;
        }
        for mut member in members {
            let ended = timeout(LEAVE, member.child.wait()).await;
            lock(&self.watchman).forget(member.process);
            let mut record = lock(&self.record);
            record.ended.add(&member.page);
            match ended {
                Ok(status) if status.as_ref().is_ok_and(process::ExitStatus::success) => {}
                Ok(Ok(status)) => record.died.push(format!("ended with {status}: {}", member.last_words())),
                _ => record.died.push(format!("did not end within {LEAVE:?} of SIGTERM: {}", member.last_words())),
            }
        }
        Ok(())
    }

    fn spawn(&self) -> anyhow::Result<Member> {
        let mut command = Command::new(&self.launch.program);
        command.arg("run").args(&self.launch.arguments);
        if self.launch.alone {
            command.env_clear();
        } else {
            // A worker on our own queue must not be sent elsewhere, nor log in as somebody else.
            for name in SURROUNDINGS {
                command.env_remove(name);
            }
        }
        command
            .envs(self.launch.variables.iter().map(|(name, value)| (name, value)))
            .env("HTTP_ADDRESS", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .env("LOG", "warn,ses_ledger::commands::run=info,ses_ledger::pipeline=info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a worker")?;
        let process = child.id().context("cannot tell the worker's process")?;
        lock(&self.watchman).remember(process)?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        if let Some(log) = child.stderr.take() {
            tokio::spawn(listen(log, Arc::clone(&heard)));
        }
        lock(&self.record).started += 1;
        Ok(Member { child, process, heard, page: Page::default() })
    }

    fn all(&self, holds: impl Fn(&Member) -> bool) -> bool {
        lock(&self.members).iter().flatten().all(holds)
    }

    /// Takes out those that have ended, and notes their last words. Returns their places.
    fn ended_by_themselves(&self) -> anyhow::Result<Vec<usize>> {
        let mut places = Vec::new();
        for (place, slot) in lock(&self.members).iter_mut().enumerate() {
            let Some(member) = slot else { continue };
            if let Some(status) = member.child.try_wait().context("cannot look after a worker")? {
                lock(&self.watchman).forget(member.process);
                let mut record = lock(&self.record);
                record.died.push(format!("ended with {status}: {}", member.last_words()));
                record.ended.add(&member.page);
                *slot = None;
                places.push(place);
            }
        }
        Ok(places)
    }

    fn keep(&self, process: u32, page: Page) {
        {
            let mut record = lock(&self.record);
            record.pages += 1;
            record.pages_with_drift += usize::from(page.drifts());
        }
        let mut members = lock(&self.members);
        if let Some(member) = members.iter_mut().flatten().find(|member| member.process == process) {
            member.page = page;
        }
    }
}

impl Member {
    fn last_words(&self) -> String {
        Vec::from(lock(&self.heard).last_lines.clone()).join(" | ")
    }
}

impl Page {
    /// A value by its name without `ses_ledger_`; zero if nothing was counted yet.
    pub(super) fn get(&self, name: &str) -> u64 {
        self.0.get(&format!("ses_ledger_{name}")).map_or(0, |value| *value as u64)
    }

    fn read(text: &str) -> Self {
        let values = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(values.collect())
    }

    fn add(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            *self.0.entry(name.clone()).or_default() += value;
        }
    }

    /// Every page shows one moment, at which both identities hold.
    fn drifts(&self) -> bool {
        let sum = |names: &[&str]| names.iter().map(|name| self.get(name)).sum::<u64>();
        let settled = sum(&[
            "messages_stored_total",
            "messages_ignored_total",
            "messages_rejected_total",
            "messages_released_total",
            "messages_in_hand",
        ]);
        let judged = sum(&[
            "events_inserted_total",
            "events_duplicate_total",
            "events_orphaned_total",
            "events_quarantined_total",
        ]);
        self.get("messages_received_total") != settled || self.get("events_decoded_total") != judged
    }
}

/// Reads a worker's log: where its probes are, that it receives, and its last lines.
async fn listen(log: ChildStderr, heard: Arc<Mutex<Heard>>) {
    let mut lines = BufReader::new(log).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let message = entry["message"].as_str().unwrap_or(&line);
        let mut heard = lock(&heard);
        if let Some(rest) = message.strip_prefix("probes and metrics at http://") {
            heard.address = rest.split('/').next().map(str::to_owned);
        }
        heard.receiving |= message.starts_with("receiving from ");
        if heard.last_lines.len() == 3 {
            heard.last_lines.pop_front();
        }
        heard.last_lines.push_back(message.to_owned());
    }
}

/// In KiB; `None` where there is no `/proc`.
fn resident_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

async fn terminate(process: u32) -> anyhow::Result<()> {
    // The shell's own: a bare Debian has no program of that name. If it is gone already, its exit code says so.
    let kill = ["-c", r#"kill -s TERM "$0" 2>/dev/null"#, &process.to_string()];
    Command::new("/bin/sh").args(kill).status().await.map(drop).context("cannot end a worker")
}

/// A small shell that kills the workers when its standard input ends: also when somebody killed us with SIGKILL.
struct Watchman(process::Child);

const WATCH: &str = r#"
all=" "
while read -r sign pid; do
  case $sign in
  +) all="$all$pid " ;;
  -) all="${all%% "$pid" *} ${all#* "$pid" }" ;;
  esac
done
for pid in $all; do kill -s KILL "$pid"; done
"#;

impl Watchman {
    fn start() -> anyhow::Result<Self> {
        let shell = process::Command::new("/bin/sh")
            .args(["-c", WATCH])
            .env_clear()
            .process_group(0) // a Ctrl-C is for us
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        shell.map(Self).context("cannot start the shell that watches over the workers")
    }

    fn remember(&mut self, process: u32) -> anyhow::Result<()> {
        self.tell('+', process).context("cannot reach the shell that watches over the workers")
    }

    /// Before its end is taken note of: afterwards the number may be somebody else's.
    fn forget(&mut self, process: u32) {
        // If the shell is gone, so is its list.
        let _ = self.tell('-', process);
    }

    fn tell(&mut self, sign: char, process: u32) -> std::io::Result<()> {
        match &mut self.0.stdin {
            Some(shell) => writeln!(shell, "{sign} {process}"),
            None => Ok(()),
        }
    }
}

impl Drop for Watchman {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
