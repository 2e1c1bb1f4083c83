//! The real binary: started with an environment of our own, watched through its log, its probes and its metrics, and
//! ended by signals.

mod adopting;
mod configuration;
mod database_away;
mod dead_letters;
mod decoding;
mod doctor;
mod explaining;
mod figures;
mod finding;
mod help;
mod history;
mod killed;
mod lambda;
mod leaving;
mod letting_go;
mod metrics_page;
mod migrating;
mod optional;
mod poison;
mod pooled;
mod quarantine;
mod rebuilding;
mod retention;
mod rotation;
mod several_queues;
mod shadow;
mod smoke;
mod starting;
mod status;
mod stuck;
mod suppressed;
mod traces;

use std::{
    env,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use ses_ledger::local::{
    sqs_endpoint::QueueHandle,
    story::{Step, Story},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    database::Database,
    worker::{Queue, eventually},
};

/// Longer than anything here takes, on a machine that compiles something else at the same time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Messages that somebody lost come back within a test. Everything else is as short as the cross-checks ask for.
const SHORT_TIMES: [(&str, &str); 8] = [
    ("BATCH_AGE", "200ms"),
    ("RECEIVE_WAIT", "1s"),
    ("VISIBILITY_TIMEOUT", "4s"),
    ("STATEMENT_TIMEOUT", "500ms"),
    ("STORE_TIMEOUT", "1s"),
    ("DELETE_BUDGET", "1s"),
    ("SHUTDOWN_GRACE", "8s"),
    ("SWEEP_INTERVAL", "200ms"),
];

/// The binary, with these arguments and next to nothing in its environment.
pub(crate) fn ses_ledger<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ses-ledger"));
    command
        .args(arguments)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// What a finished run of the binary leaves behind.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a command that ends by itself.
pub(crate) async fn end_of(mut command: Command) -> Ended {
    let output = timeout(PATIENCE, command.output()).await.expect("the command ends by itself");
    let output = output.expect("the binary was built for this test");
    let text = |bytes| String::from_utf8(bytes).expect("the binary writes text");
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A running worker. Killed when its test lets go of it.
pub(crate) struct Running {
    child: Child,
    log: Arc<Mutex<String>>,
    reading: JoinHandle<()>,
}

/// What a probe answers.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Running {
    /// Starts a worker with short times, and waits until it takes messages.
    pub(crate) async fn start(database_url: &str, queue_url: &str, more: &[&str]) -> Self {
        let running = Self::spawn(database_url, queue_url, more);
        running.says("receiving from ").await;
        running
    }

    /// Starts a worker with short times.
    fn spawn(database_url: &str, queue_url: &str, more: &[&str]) -> Self {
        let mut command = ses_ledger(["run"]);
        command.envs(SHORT_TIMES).env("LOG_FORMAT", "json").env("HTTP_ADDRESS", "127.0.0.1:0");
        command.env("DATABASE_URL", database_url).env("QUEUE_URL", queue_url).args(more);
        Self::watch(command)
    }

    pub(crate) fn watch(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary was built for this test");
        let log = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let reading = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        Self { child, log, reading }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the log holds this.
    pub(crate) async fn says(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            let said = self.log();
            assert!(Instant::now() < deadline && !self.reading.is_finished(), "it never said {text:?}:\n{said}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where it serves its probes.
    pub(crate) async fn address(&self) -> String {
        self.address_after("probes and metrics at http://").await
    }

    /// The address that its log names after these words.
    pub(crate) async fn address_after(&self, words: &str) -> String {
        self.says(words).await;
        let log = self.log();
        let address = log.split(words).nth(1).and_then(|rest| rest.split('/').next());
        address.expect("the log names it").to_owned()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.get_at(&self.address().await, path, "probe").await
    }

    pub(crate) async fn get_at(&self, address: &str, path: &str, host: &str) -> Answer {
        let mut stream = TcpStream::connect(address).await.expect("it is served");
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it takes requests");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers with text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        Answer { status, body: body.to_owned() }
    }

    /// Waits until a page has all of these words.
    pub(crate) async fn shows(&self, address: &str, path: &str, words: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get_at(address, path, "localhost").await;
            if words.iter().all(|word| answer.body.contains(word)) {
                return;
            }
            assert!(Instant::now() < deadline, "{path} never showed {words:?}, but {}:\n{}", answer.body, self.log());
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a probe answers like this.
    async fn answers(&self, path: &str, status: u16, body: &str) {
        let expected = Answer { status, body: body.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path).await;
            if answer == expected {
                return;
            }
            let said = self.log();
            assert!(Instant::now() < deadline, "{path} never was {expected:?}, but {answer:?}:\n{said}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a signal by its name.
    pub(crate) async fn signal(&self, name: &str) {
        let process = self.child.id().expect("it runs").to_string();
        // The shell's own: a bare Debian has no program of that name.
        let kill = ["-c", r#"kill -s "$0" "$1""#, name, &process];
        let kill = Command::new("sh").args(kill).status().await.expect("there is a shell");
        assert!(kill.success(), "it was gone before SIG{name}");
    }

    /// Waits for the end: its exit code, and all that it logged.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let Ok(status) = timeout(PATIENCE, self.child.wait()).await else { panic!("it does not end:\n{}", self.log()) };
        (&mut self.reading).await.expect("reading the log does not panic");
        (status.expect("it is our child").code(), self.log())
    }

    /// SIGTERM, and the farewell of a worker that left as it should.
    pub(crate) async fn stop(self) -> Farewell {
        self.signal("TERM").await;
        let (code, log) = self.ended().await;
        assert_eq!(code, Some(0), "{log}");
        Farewell::read(&log)
    }

    /// SIGKILL: it cannot prepare itself.
    async fn kill(mut self) {
        self.child.kill().await.expect("it runs");
    }
}

/// The counts in the last line of the log.
pub(crate) struct Farewell(Value);

impl Farewell {
    fn read(log: &str) -> Self {
        let last = log.lines().last().expect("it logs");
        let last: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("not a line of JSON ({e}): {last}"));
        assert_eq!(last["message"], "stopped", "{log}");
        assert_eq!(last["drift"], 0, "{last}");
        let farewell = Self(last);
        let settled = ["stored", "ignored", "rejected", "released"].map(|outcome| farewell.count(outcome));
        assert_eq!(farewell.count("received"), settled.iter().sum::<usize>(), "nothing is left in hand");
        farewell
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.0[name].as_u64().unwrap_or_else(|| panic!("no {name} in {}", self.0)) as usize
    }
}

/// The application and SES do their part, all of it.
pub(crate) async fn play(database: &Database, queue: &QueueHandle, story: &Story) {
    for step in story.steps() {
        match step {
            Step::WriteLog(row) => database.write_log(&row).await,
            Step::Publish(body) => drop(queue.send(&body)),
        }
    }
}

/// Waits until the mails' parked events are attached, and only those of unknown mails are left.
async fn swept(database: &Database, story: &Story) {
    let deadline = Instant::now() + PATIENCE;
    while database.number("SELECT count(*) FROM orphaned_events").await as usize != story.truth.orphans.len() {
        assert!(Instant::now() < deadline, "the orphans are not attached");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until so many messages are deleted.
async fn deleted(queue: &Queue, messages: u64) {
    eventually("messages are deleted", || queue.handle.totals().deleted >= messages).await;
}

/// Waits for something that has to come true.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
