//! The queue, in a process of its own: it fills itself with a story and answers questions on its standard input.

use std::{
    collections::HashMap,
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use ses_ledger::local::{
    sqs_endpoint::{Action, Faults, QueueHandle, SqsEndpoint, SqsEndpointSettings},
    story::{Step, Story},
};

use crate::tale::Tale;

/// The hidden argument that makes this program the endpoint.
pub(crate) const ARGUMENT: &str = "be-the-endpoint";

/// Seen from the benchmark.
pub(crate) struct Endpoint {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) url: String,
}

/// How the queue behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Conditions {
    /// Every request is answered at once, every receive is full.
    Near,
    /// As SQS from the same region: 10 to 15 ms for each request, 7.5 messages in a receive on average.
    Far,
}

/// What the endpoint can be asked for. Each is answered with an [`Answer`].
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Empty the queue and hide what comes from now on.
    Close(Conditions),
    /// Take these messages in.
    Fill(Tale),
    /// Show them; the clock starts.
    Open,
    /// Wait up to so many ms until the queue is empty.
    Drained(u64),
    /// Send these at so many a second.
    Pace(Tale, f64),
    Send(String),
    Count,
}

/// Where things stand.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) url: String,
    /// Messages that the queue holds.
    pub(crate) messages: u64,
    /// From opening until the queue was empty, if it was.
    pub(crate) seconds: Option<f64>,
    /// Requests since closing: of every kind, to receive, to delete; and the messages in the latter two.
    pub(crate) requests: u64,
    pub(crate) receives: u64,
    pub(crate) received: u64,
    pub(crate) deletes: u64,
    pub(crate) deleted: u64,
    /// Messages that were handed out more than once, since the endpoint was started.
    pub(crate) redelivered: u64,
}

impl Endpoint {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the endpoint")?;
        let asks = process.stdin.take().context("the endpoint takes no questions")?;
        let answers = BufReader::new(process.stdout.take().context("the endpoint gives no answers")?);
        let mut endpoint = Self { process, asks, answers, url: String::new() };
        endpoint.url = endpoint.ask(&Ask::Count)?.url;
        Ok(endpoint)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Empties the queue. Nothing is handed out before it is opened.
    pub(crate) fn close(&mut self, conditions: Conditions) -> anyhow::Result<()> {
        self.ask(&Ask::Close(conditions)).map(drop)
    }

    /// Says how many messages the queue holds then.
    pub(crate) fn fill(&mut self, tale: &Tale) -> anyhow::Result<u64> {
        Ok(self.ask(&Ask::Fill(*tale))?.messages)
    }

    pub(crate) fn open(&mut self) -> anyhow::Result<()> {
        self.ask(&Ask::Open).map(drop)
    }

    /// Looks for half a second at most whether the queue is empty.
    pub(crate) fn wait(&mut self) -> anyhow::Result<Answer> {
        self.ask(&Ask::Drained(500))
    }

    /// Sends a whole story at this rate; back when all is sent.
    pub(crate) fn pace(&mut self, tale: &Tale, per_second: f64) -> anyhow::Result<Answer> {
        self.ask(&Ask::Pace(*tale, per_second))
    }

    pub(crate) fn send(&mut self, body: String) -> anyhow::Result<()> {
        self.ask(&Ask::Send(body)).map(drop)
    }

    pub(crate) fn count(&mut self) -> anyhow::Result<Answer> {
        self.ask(&Ask::Count)
    }

    fn ask(&mut self, ask: &Ask) -> anyhow::Result<Answer> {
        writeln!(self.asks, "{}", serde_json::to_string(ask)?).context("the endpoint is gone")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the endpoint is gone");
        let answer: Result<Answer, String> = serde_json::from_str(&line)?;
        answer.map_err(|e| anyhow::anyhow!("the endpoint cannot do {ask:?}: {e}"))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The endpoint itself. Ends when nobody can ask any more.
pub(crate) fn be() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut served = runtime.block_on(Served::start())?;
    for line in std::io::stdin().lines() {
        let ask: Ask = serde_json::from_str(&line?)?;
        let answer = runtime.block_on(served.obey(ask)).map_err(|e| format!("{e:#}"));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

/// Seen from inside.
struct Served {
    endpoint: SqsEndpoint,
    queue: QueueHandle,
    /// Stories that have been told before. Only the plan of each: bodies are written as they are sent.
    stories: HashMap<Tale, Story>,
    /// The counts when the queue was closed.
    before: Answer,
    drained: Arc<Mutex<Option<Duration>>>,
}

/// All that a worker asks for.
const ACTIONS: [Action; 5] = [
    Action::ReceiveMessage,
    Action::DeleteMessageBatch,
    Action::DeleteMessage,
    Action::ChangeMessageVisibilityBatch,
    Action::ChangeMessageVisibility,
];
const USUAL_CAP: usize = 120_000;
/// Larger stories are told once only.
const WORTH_KEEPING: usize = 100_000;

impl Served {
    async fn start() -> anyhow::Result<Self> {
        let endpoint = SqsEndpoint::start(SqsEndpointSettings::default()).await?;
        endpoint.create_queue("bench", &[])?;
        let queue = endpoint.queue("bench").context("the queue was just made")?;
        Ok(Self { endpoint, queue, stories: HashMap::new(), before: Answer::default(), drained: Arc::default() })
    }

    async fn obey(&mut self, ask: Ask) -> anyhow::Result<Answer> {
        match ask {
            Ask::Close(conditions) => {
                // With no place for a message in flight, receives wait and find nothing.
                self.queue.set_in_flight_cap(0);
                *self.lock() = None;
                self.queue.purge();
                self.endpoint.faults(|faults| conditions.set(faults));
                self.before = Answer::default();
                self.before = self.count();
            }
            Ask::Fill(tale) => self.each_body(&tale, |queue, body| {
                queue.send(&body);
            }),
            Ask::Open => {
                tokio::spawn(watch(self.queue.clone(), Arc::clone(&self.drained)));
                self.queue.set_in_flight_cap(USUAL_CAP);
            }
            Ask::Drained(ms) => {
                let end = Instant::now() + Duration::from_millis(ms);
                while self.lock().is_none() && Instant::now() < end {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            Ask::Pace(tale, per_second) => self.pace(&tale, per_second).await,
            Ask::Send(body) => {
                self.queue.send(&body);
            }
            Ask::Count => {}
        }
        Ok(self.count())
    }

    /// The messages that are due go every other millisecond; their bodies are there beforehand.
    async fn pace(&mut self, tale: &Tale, per_second: f64) {
        let mut bodies = Vec::new();
        self.each_body(tale, |_, body| bodies.push(body));
        let start = Instant::now();
        let mut sent = 0;
        while sent < bodies.len() {
            let due = ((start.elapsed().as_secs_f64() * per_second) as usize).min(bodies.len());
            for body in &bodies[sent..due] {
                self.queue.send(body);
            }
            sent = due;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn each_body(&mut self, tale: &Tale, mut work: impl FnMut(&QueueHandle, String)) {
        let told;
        let story = if tale.messages > WORTH_KEEPING {
            told = tale.tell();
            &told
        } else {
            self.stories.entry(*tale).or_insert_with(|| tale.tell())
        };
        for step in story.steps() {
            if let Step::Publish(body) = step {
                work(&self.queue, body);
            }
        }
    }

    fn count(&self) -> Answer {
        let (counts, totals) = (self.queue.counts(), self.queue.totals());
        let calls = |action| self.endpoint.calls(action);
        let deletes = [Action::DeleteMessageBatch, Action::DeleteMessage].map(calls);
        Answer {
            url: self.queue.url().to_owned(),
            messages: (counts.visible + counts.in_flight + counts.delayed) as u64,
            seconds: self.lock().map(|time| time.as_secs_f64()),
            requests: ACTIONS.map(|action| calls(action).requests).iter().sum::<u64>() - self.before.requests,
            receives: calls(Action::ReceiveMessage).requests - self.before.receives,
            received: calls(Action::ReceiveMessage).entries - self.before.received,
            deletes: deletes.map(|d| d.requests).iter().sum::<u64>() - self.before.deletes,
            deleted: deletes.map(|d| d.entries).iter().sum::<u64>() - self.before.deleted,
            redelivered: totals.redelivered,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Duration>> {
        self.drained.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Conditions {
    fn set(self, faults: &mut Faults) {
        faults.clear();
        if self == Self::Far {
            for action in ACTIONS {
                faults.delay(action, Duration::from_millis(10), Duration::from_millis(5));
            }
            faults.thin_receives(0.722);
        }
    }
}

/// Notes when the queue is empty.
async fn watch(queue: QueueHandle, drained: Arc<Mutex<Option<Duration>>>) {
    let start = Instant::now();
    loop {
        let counts = queue.counts();
        if counts.visible + counts.in_flight + counts.delayed == 0 {
            *drained.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(start.elapsed());
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
