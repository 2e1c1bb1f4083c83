//! Measures one cell once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use ses_ledger::{
    local::story::{Step, Story},
    orphans,
    pipeline::{
        Store as _, Verdict,
        batch::Arrival,
        decode::{DecodeSettings, Outcome, decode},
        receive::Origin,
    },
    postgres::{Postgres, audit},
};
use time::OffsetDateTime;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    client::{Clients, Kind},
    database::{Database, Server},
    endpoint::{Answer, Conditions, Endpoint},
    figures::{Figure, Sample},
    function::Function,
    machine::{self, Account, Parts, Spent},
    plan::{Cell, Effort, Ground, What, tidy, worker_settings},
    tale::Tale,
};

/// As many events as the worker stores in one transaction unless it is told otherwise.
const BATCH: usize = 500;
/// Connections of the worker unless it is told otherwise.
const CONNECTIONS: usize = 4;
/// A queue that does not get shorter for so long does not get empty.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that runs.
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) endpoint: Endpoint,
    pub(crate) effort: Effort,
    stories: HashMap<Tale, Arc<Story>>,
    /// Rows as COPY takes them: columns and portions, by the number of rows in each.
    copies: HashMap<usize, (String, Vec<Vec<u8>>)>,
    /// Medians of what has been measured so far.
    pub(crate) rates: HashMap<String, f64>,
}

/// A measurement, and what was not as it must be.
#[derive(Default)]
pub(crate) struct Measured {
    pub(crate) sample: Sample,
    pub(crate) wrong: Vec<String>,
}

impl Bench {
    pub(crate) async fn start(effort: Effort) -> anyhow::Result<Self> {
        Ok(Self {
            server: Server::start().await?,
            endpoint: Endpoint::start()?,
            effort,
            stories: HashMap::new(),
            copies: HashMap::new(),
            rates: HashMap::new(),
        })
    }

    pub(crate) async fn measure(&mut self, cell: &Cell) -> anyhow::Result<Measured> {
        match &cell.what {
            What::Drain { kind, conditions, tale, ground } => self.drain(kind, *conditions, tale, *ground).await,
            What::Store { tale } => self.store(tale).await,
            What::Copy { tale, rows_each } => self.copy(tale, *rows_each).await,
            What::Memory { backlog } => self.memory(*backlog).await,
            What::Idle => self.idle().await,
            What::HalfLoad { conditions, of } => self.half_load(*conditions, of).await,
            What::Single => self.single().await,
            What::Function { batch, tale } => self.function(*batch, tale).await,
        }
    }

    async fn drain(
        &mut self,
        kind: &Kind,
        conditions: Conditions,
        tale: &Tale,
        ground: Ground,
    ) -> anyhow::Result<Measured> {
        let story = self.story(tale);
        let database = match ground {
            Ground::Everything => self.loaded(tale).await?,
            _ => self.with_logs(tale).await?,
        };
        self.endpoint.close(conditions)?;
        let messages = self.endpoint.fill(tale)?;
        let mut sample = self.empty_queue(kind, &database, messages, story.truth.events).await?;
        if ground == Ground::Logs {
            sample.insert(Figure::Payload, database.payload_bytes().await?);
        }
        let mut wrong = match ground {
            Ground::Logs | Ground::Everything => compare(&database.postgres, &story).await?,
            Ground::Counted => count(&database, &story).await?,
            Ground::Nothing => Vec::new(),
        };
        if messages != story.truth.messages as u64 {
            wrong.push(format!("{messages} messages instead of {}", story.truth.messages));
        }
        self.server.drop(database).await?;
        Ok(Measured { sample, wrong })
    }

    async fn store(&mut self, tale: &Tale) -> anyhow::Result<Measured> {
        let story = self.story(tale);
        let database = self.with_logs(tale).await?;
        let batches = batches(&story);
        let parts = Parts { postmaster: self.server.postmaster, endpoint: self.endpoint.pid(), clients: Vec::new() };
        database.postgres.try_connect().await?;
        self.server.checkpoint().await?;
        let before = Account::read(&parts)?;
        let stored = store_all(&database.postgres, batches).await?;
        let spent = Account::read(&parts)?.since(&before);
        let mut wrong = compare(&database.postgres, &story).await?;
        if stored != story.truth.rows.len() {
            wrong.push(format!("{stored} rows inserted instead of {}", story.truth.rows.len()));
        }
        self.server.drop(database).await?;
        Ok(Measured { sample: sample_of_own(&spent, story.truth.events), wrong })
    }

    async fn copy(&mut self, tale: &Tale, rows_each: usize) -> anyhow::Result<Measured> {
        let story = self.story(tale);
        if !self.copies.contains_key(&rows_each) {
            let database = self.loaded(tale).await?;
            let rows = database.copy_out(rows_each).await?;
            self.copies.insert(rows_each, rows);
            self.server.drop(database).await?;
        }
        let database = self.with_logs(tale).await?;
        let (columns, portions) = self.copies.get(&rows_each).context("they have just been read")?;
        let parts = Parts { postmaster: self.server.postmaster, endpoint: self.endpoint.pid(), clients: Vec::new() };
        database.count("SELECT 1::bigint").await?;
        self.server.checkpoint().await?;
        let before = Account::read(&parts)?;
        let rows = database.copy_in(columns, portions).await?;
        let spent = Account::read(&parts)?.since(&before);
        let mut wrong = count(&database, &story).await?;
        if rows as usize != story.truth.rows.len() {
            wrong.push(format!("{rows} rows copied instead of {}", story.truth.rows.len()));
        }
        self.server.drop(database).await?;
        Ok(Measured { sample: sample_of_own(&spent, rows as usize), wrong })
    }

    async fn memory(&mut self, backlog: usize) -> anyhow::Result<Measured> {
        // Told in pieces, each of which is forgotten at once.
        const PIECE: usize = 125_000;
        let usual =
            Tale { bytes: None, mess: crate::tale::Untidy::Everything, ..tidy(&self.effort, backlog.min(PIECE)) };
        let tales: Vec<Tale> = (0..backlog.div_ceil(PIECE)).map(|n| Tale { seed: 50 + n as u64, ..usual }).collect();
        let kib = backlog as u64 * 4 + (1 << 20);
        ensure!(machine::available_memory()? > kib, "a backlog of {backlog} messages takes {} MiB", kib >> 10);
        let database = self.server.with_logs_of(&tales, Tale::tell).await?;
        self.endpoint.close(Conditions::Near)?;
        let mut messages = 0;
        for tale in &tales {
            messages = self.endpoint.fill(tale)?;
        }
        let mut clients = self.start_clients(&usual_worker(&self.effort), &database).await?;
        self.endpoint.open()?;
        let end = Instant::now() + Duration::from_secs(self.effort.working);
        let mut answer = self.endpoint.wait()?;
        while answer.seconds.is_none() && Instant::now() < end {
            clients.check()?;
            answer = self.endpoint.wait()?;
        }
        let mut sample = Sample::new();
        sample.insert(Figure::PeakMemory, machine::peak_memory(clients.pids()[0])?);
        sample.insert(Figure::Messages, messages as f64);
        clients.check()?;
        drop(clients); // what it holds does not matter any more
        self.endpoint.close(Conditions::Near)?;
        self.server.drop(database).await?;
        Ok(Measured { sample, wrong: Vec::new() })
    }

    async fn idle(&mut self) -> anyhow::Result<Measured> {
        let database = self.server.create("idle").await?;
        self.endpoint.close(Conditions::Near)?;
        self.endpoint.open()?;
        let mut clients = self.start_clients(&default_worker(&self.effort), &database).await?;
        sleep(Duration::from_secs(3)).await;
        let (parts, before) = (self.parts(&clients), self.endpoint.count()?);
        let account = Account::read(&parts)?;
        sleep(Duration::from_secs(self.effort.idle)).await;
        let (spent, after) = (Account::read(&parts)?.since(&account), self.endpoint.count()?);
        clients.check()?;
        let minutes = spent.elapsed.as_secs_f64() / 60.0;
        let percent = |cpu: Duration| cpu.as_secs_f64() / spent.elapsed.as_secs_f64() * 100.0;
        let mut sample = Sample::new();
        sample.insert(Figure::RequestsPerMinute, (after.requests - before.requests) as f64 / minutes);
        sample.insert(Figure::CoreShare, percent(spent.clients));
        sample.insert(Figure::DatabaseShare, percent(spent.database));
        sample.insert(Figure::PeakMemory, machine::peak_memory(clients.pids()[0])?);
        drop(clients);
        self.server.drop(database).await?;
        Ok(Measured { sample, wrong: Vec::new() })
    }

    async fn half_load(&mut self, conditions: Conditions, of: &str) -> anyhow::Result<Measured> {
        let rate = match self.rates.get(of) {
            Some(rate) => *rate,
            None => self.find_rate(conditions).await?,
        } / 2.0;
        let tale = Tale { seed: 7, ..tidy(&self.effort, (rate * self.effort.half_load) as usize) };
        let story = self.story(&tale);
        let database = self.with_logs(&tale).await?;
        self.endpoint.close(conditions)?;
        let mut clients = self.start_clients(&usual_worker(&self.effort), &database).await?;
        self.endpoint.open()?;
        let account = Account::read(&self.parts(&clients))?;
        self.endpoint.pace(&tale, rate)?;
        let sending = Account::read(&self.parts(&clients))?.since(&account);
        self.until_empty(&mut clients, story.truth.messages as u64).await?;
        let [median, p99, longest] = database.receive_to_commit().await?;
        clients.stop()?;
        let mut sample = Sample::new();
        sample.insert(Figure::EventsPerSecond, rate);
        sample.insert(Figure::ClientCpu, per_event(sending.clients, story.truth.events));
        sample.insert(Figure::Median, median);
        sample.insert(Figure::P99, p99);
        sample.insert(Figure::Longest, longest);
        sample.insert(Figure::Messages, story.truth.messages as f64);
        sample.insert(Figure::Others, sending.others);
        let wrong = compare(&database.postgres, &story).await?;
        self.server.drop(database).await?;
        self.stories.remove(&tale);
        Ok(Measured { sample, wrong })
    }

    async fn function(&mut self, batch: usize, tale: &Tale) -> anyhow::Result<Measured> {
        let story = self.story(tale);
        let database = self.with_logs(tale).await?;
        let function = Function::start(&database.url, &self.effort.worker).await?;
        let sample = function.play(&story, batch, &self.parts(&function.process)).await?;
        let wrong = compare(&database.postgres, &story).await?;
        drop(function);
        self.server.drop(database).await?;
        Ok(Measured { sample, wrong })
    }

    async fn find_rate(&mut self, conditions: Conditions) -> anyhow::Result<f64> {
        let tale = tidy(&self.effort, self.effort.messages / 2);
        let measured = self.drain(&usual_worker(&self.effort), conditions, &tale, Ground::Logs).await?;
        measured.sample.get(&Figure::EventsPerSecond).copied().context("the rate is what was measured")
    }

    async fn single(&mut self) -> anyhow::Result<Measured> {
        let tale = Tale { seed: 9, ..tidy(&self.effort, self.effort.single * 8) };
        let story = self.story(&tale);
        let database = self.with_logs(&tale).await?;
        self.endpoint.close(Conditions::Near)?;
        self.endpoint.open()?;
        let mut clients = self.start_clients(&default_worker(&self.effort), &database).await?;
        // Each is a row of its own: every mail is sent once.
        let bodies = story.steps().filter_map(|step| match step {
            Step::Publish(body) => body.contains(r#""eventType":"Send""#).then_some(body),
            Step::WriteLog(_) => None,
        });
        let mut times = Vec::new();
        for body in bodies.take(self.effort.single) {
            sleep(Duration::from_millis(150)).await; // as long as it takes to be idle again, and more
            let sent = Instant::now();
            self.endpoint.send(body)?;
            while database.count("SELECT count(*) FROM email_events").await? <= times.len() as i64 {
                clients.check()?;
                ensure!(sent.elapsed() < PATIENCE, "an event does not become visible");
                sleep(Duration::from_millis(1)).await;
            }
            times.push(sent.elapsed().as_secs_f64() * 1000.0);
        }
        drop(clients);
        ensure!(times.len() == self.effort.single, "the story has only {} sends", times.len());
        let spread = crate::figures::spread(times.iter().copied()).context("no event was sent")?;
        let mut sample = Sample::new();
        sample.insert(Figure::Median, spread.median);
        sample.insert(Figure::Longest, spread.most);
        sample.insert(Figure::Messages, spread.n as f64);
        self.server.drop(database).await?;
        Ok(Measured { sample, wrong: Vec::new() })
    }

    /// Starts who empties the queue, lets all begin at one moment, and reads the accounts when it is empty.
    pub(crate) async fn empty_queue(
        &mut self,
        kind: &Kind,
        database: &Database,
        messages: u64,
        events: usize,
    ) -> anyhow::Result<Sample> {
        let mut clients = self.start_clients(kind, database).await?;
        self.server.checkpoint().await?;
        let parts = self.parts(&clients);
        let asked = self.endpoint.count()?;
        let before = Account::read(&parts)?;
        self.endpoint.open()?;
        let answer = self.until_empty(&mut clients, messages).await?;
        let spent = Account::read(&parts)?.since(&before);
        let seconds = answer.seconds.context("the queue is empty")?;
        let mut sample = Sample::new();
        sample.insert(Figure::EventsPerSecond, events as f64 / seconds);
        sample.insert(Figure::ClientCpu, per_event(spent.clients, events));
        sample.insert(Figure::DatabaseCpu, per_event(spent.database, events));
        sample.insert(Figure::EndpointCpu, per_event(spent.endpoint, events));
        sample.insert(
            Figure::PerDelete,
            (answer.deleted - asked.deleted) as f64 / (answer.deletes - asked.deletes) as f64,
        );
        sample.insert(Figure::PerReceive, answer.received as f64 / (answer.receives - asked.receives).max(1) as f64);
        sample.insert(Figure::Redelivered, answer.redelivered as f64);
        sample.insert(Figure::Messages, messages as f64);
        sample.insert(Figure::Others, spent.others);
        let peaks = parts.clients.iter().map(|pid| machine::peak_memory(*pid)).collect::<anyhow::Result<Vec<f64>>>()?;
        sample.insert(Figure::PeakMemory, peaks.into_iter().fold(0.0, f64::max));
        match kind {
            Kind::Worker { .. } => clients.stop()?,
            Kind::Bare | Kind::Naive => drop(clients),
        }
        Ok(sample)
    }

    /// Returns when each of its processes waits for messages.
    async fn start_clients(&mut self, kind: &Kind, database: &Database) -> anyhow::Result<Clients> {
        let before = self.endpoint.count()?.receives;
        let mut clients = kind.start(&database.url, &self.endpoint.url)?;
        let (started, processes) = (Instant::now(), clients.pids().len() as u64);
        // With several, one may ask twice before another asks at all: those get a second.
        let settle = Duration::from_secs(if processes > 1 { 1 } else { 0 });
        while self.endpoint.count()?.receives < before + processes || started.elapsed() < settle {
            clients.check()?;
            ensure!(started.elapsed() < PATIENCE, "nobody receives");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(clients)
    }

    async fn until_empty(&mut self, clients: &mut Clients, messages: u64) -> anyhow::Result<Answer> {
        let (mut left, mut since) = (messages, Instant::now());
        loop {
            let answer = self.endpoint.wait()?;
            if answer.messages == 0 && answer.seconds.is_some() {
                return Ok(answer);
            }
            clients.check()?;
            if answer.messages < left {
                (left, since) = (answer.messages, Instant::now());
            }
            if since.elapsed() > PATIENCE {
                bail!("the queue still holds {left} messages and does not get shorter");
            }
        }
    }

    fn parts(&self, clients: &Clients) -> Parts {
        Parts { clients: clients.pids(), postmaster: self.server.postmaster, endpoint: self.endpoint.pid() }
    }

    pub(crate) fn story(&mut self, tale: &Tale) -> Arc<Story> {
        Arc::clone(self.stories.entry(*tale).or_insert_with(|| Arc::new(tale.tell())))
    }

    async fn with_logs(&mut self, tale: &Tale) -> anyhow::Result<Database> {
        let story = self.story(tale);
        self.server.with_logs_of(std::slice::from_ref(tale), |_| (*story).clone()).await
    }

    /// A fresh database that holds the logs and every event already.
    async fn loaded(&mut self, tale: &Tale) -> anyhow::Result<Database> {
        let name = format!("loaded_{}", tale.messages);
        if !self.server.has(&name) {
            let (story, database) = (self.story(tale), self.with_logs(tale).await?);
            store_all(&database.postgres, batches(&story)).await?;
            self.server.keep(database, &name).await?;
        }
        self.server.copy(&name).await
    }
}

/// The worker as in every cell where nothing else is said. A short long poll lets it leave soon.
pub(crate) fn usual_worker(effort: &Effort) -> Kind {
    Kind::Worker { processes: 1, settings: worker_settings(effort, &["--receive-wait=1s", "--shutdown-grace=30s"]) }
}

/// The worker with nothing but its defaults.
fn default_worker(effort: &Effort) -> Kind {
    Kind::Worker { processes: 1, settings: worker_settings(effort, &[]) }
}

fn per_event(cpu: Duration, events: usize) -> f64 {
    cpu.as_secs_f64() * 1e6 / events as f64
}

/// Of what this process did by itself.
fn sample_of_own(spent: &Spent, events: usize) -> Sample {
    let mut sample = Sample::new();
    sample.insert(Figure::EventsPerSecond, events as f64 / spent.elapsed.as_secs_f64());
    sample.insert(Figure::ClientCpu, per_event(spent.own, events));
    sample.insert(Figure::DatabaseCpu, per_event(spent.database, events));
    sample.insert(Figure::Messages, events as f64);
    sample.insert(Figure::Others, spent.others);
    sample
}

/// The events of a story, in batches as the worker makes them.
pub(crate) fn batches(story: &Story) -> Vec<Vec<Arrival>> {
    let now = OffsetDateTime::now_utc();
    let settings = DecodeSettings::default();
    let mut arrivals = Vec::new();
    for (n, step) in story.steps().enumerate() {
        let Step::Publish(body) = step else { continue };
        let origin =
            Origin { queue: "bench".into(), sqs_message_id: format!("{n:036}"), receive_count: 1, received_at: now };
        let origin = Arc::new(origin);
        for leaf in decode(body.as_bytes(), now, &settings) {
            if let Outcome::Event(event) = leaf.outcome {
                let events = event.into_events().into_iter();
                arrivals.extend(events.map(|event| Arrival::new(event, Arc::clone(&origin))));
            }
        }
    }
    let mut batches = Vec::new();
    let mut rest = arrivals.into_iter().peekable();
    while rest.peek().is_some() {
        batches.push(rest.by_ref().take(BATCH).collect());
    }
    batches
}

/// Stores all batches over as many connections as the worker has. Says how many events became a row.
async fn store_all(postgres: &Postgres, batches: Vec<Vec<Arrival>>) -> anyhow::Result<usize> {
    let batches = Arc::new(Mutex::new(batches.into_iter()));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (postgres, batches) = (postgres.clone(), Arc::clone(&batches));
        tasks.spawn(async move {
            let next = || batches.lock().unwrap_or_else(PoisonError::into_inner).next();
            let mut inserted = 0;
            while let Some(batch) = next() {
                let verdicts = postgres.insert(&batch, &[]).await?;
                inserted += verdicts.iter().filter(|verdict| **verdict == Verdict::Inserted).count();
            }
            anyhow::Ok(inserted)
        });
    }
    let mut inserted = 0;
    while let Some(task) = tasks.join_next().await {
        inserted += task??;
    }
    Ok(inserted)
}

/// Every row, fact and status against the truth.
async fn compare(postgres: &Postgres, story: &Story) -> anyhow::Result<Vec<String>> {
    orphans::sweep_all(postgres).await?;
    let differences = audit::compare(postgres, &story.truth).await?;
    let more = differences.count.saturating_sub(differences.described.len());
    let mut wrong = differences.described;
    if more > 0 {
        wrong.push(format!("and {more} more"));
    }
    Ok(wrong)
}

/// Where tables hold more than the story, only the number of its rows.
pub(crate) async fn count(database: &Database, story: &Story) -> anyhow::Result<Vec<String>> {
    let (found, expected) = (database.events_of(story).await?, story.truth.rows.len());
    Ok(if found == expected as i64 { Vec::new() } else { vec![format!("{found} events instead of {expected}")] })
}
