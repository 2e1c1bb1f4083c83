//! Whatever comes in, whatever the limits, whatever goes wrong and however often the worker is stopped or killed:
//! each event is stored exactly once, each mail has its facts and its status, each poison body is in quarantine, and
//! nothing was deleted before.
//!
//! Time is paused, so hours pass in milliseconds. A case that fails is made small and kept in
//! `tests/proptest-regressions`, from where every later run tries it first. As many as you like, and what they were:
//!
//! ```sh
//! PROPTEST_CASES=5000 cargo test --release --test it nothing_is_lost -- --nocapture
//! ```

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    env, fmt,
    sync::Arc,
    time::Duration,
};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};
use serde_json::{Value, json};
use ses_ledger::{
    local::story::{BounceClass, Facts, LogRow, RowKey, Step, Story, StorySettings},
    metrics::{Drift, Metrics},
    pipeline::{
        self, PipelineSettings, Shutdown, Store, Worker,
        decode::{DecodeSettings, Outcome, decode},
    },
};
use time::{OffsetDateTime, macros::datetime};
use tokio::{
    runtime::Builder,
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use crate::{
    doubles::{Call, Fault, MemoryQueue, MemoryStore, REFUSED},
    real_store::RealStore,
};

/// Longer than any number of planted faults can last.
const LONGEST: Duration = Duration::from_secs(2 * 3600);

#[test]
fn each_event_is_stored_exactly_once() {
    prove("each_event_is_stored_exactly_once", 300, (vec(body(), 0..40), trouble()), |(bodies, trouble)| {
        in_memory(&World::of(&bodies), &trouble)
    });
}

#[test]
fn so_is_each_event_of_a_whole_story() {
    prove("so_is_each_event_of_a_whole_story", 300, (story(), trouble()), |(seed, trouble)| {
        in_memory(&World::of_story(&seed.tell()), &trouble)
    });
}

#[test]
fn and_a_real_database_holds_every_row_every_fact_and_every_status() {
    let store = RealStore::start();
    prove(
        "and_a_real_database_holds_every_row_every_fact_and_every_status",
        40,
        (story(), trouble()),
        |(seed, trouble)| in_postgres(&store.emptied(), &seed.tell(), &trouble),
    );
}

/// Tries so many scripts, or as many as `PROPTEST_CASES` says, starting from `PROPTEST_RNG_SEED` if there is one.
#[expect(clippy::print_stdout, reason = "figures for whoever asks for them; captured otherwise")]
fn prove<S: Strategy>(name: &'static str, cases: u32, scripts: S, play: impl Fn(S::Value) -> Played) {
    let default = ProptestConfig::default();
    let seed = match default.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => Uuid::now_v7().as_u64_pair().1,
    };
    let config = ProptestConfig {
        cases: if env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases },
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: 1_000,
        max_shrink_time: 60_000,
        source_file: Some(file!()),
        test_name: Some(name),
        ..default
    };
    let (cases, started) = (config.cases, std::time::Instant::now());
    let (begun, sum) = (RefCell::new(Vec::new()), RefCell::new(Played::default()));
    let outcome = TestRunner::new(config).run(&scripts, |script| {
        begun.borrow_mut().push(false);
        sum.borrow_mut().add(&play(script));
        begun.borrow_mut().last_mut().into_iter().for_each(|done| *done = true);
        Ok(())
    });
    if let Err(failure) = outcome {
        let first = begun.borrow().iter().take_while(|done| **done).count() + 1;
        panic!(
            "{failure}\nscript {first} of {cases} failed; again, from the start:\n\
             PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases} cargo test --test it {name}"
        );
    }
    let (scripts, seconds) = (begun.borrow().len(), started.elapsed().as_secs_f64());
    println!("{name}\n  {scripts} scripts in {seconds:.1} s from PROPTEST_RNG_SEED={seed}\n{}", sum.borrow());
}

/// What came up in a script, or in many.
#[derive(Default)]
struct Played {
    messages: u64,
    /// Rows that have to be there at the end.
    rows: u64,
    quarantined: u64,
    mails: u64,
    received: u64,
    redelivered: u64,
    faults: u64,
    /// Workers that were stopped, gave up, or were killed.
    ended: [u64; 3],
}

impl Played {
    fn of(world: &World, trouble: &Trouble, queue: &MemoryQueue, store: &MemoryStore) -> Self {
        let totals = queue.totals();
        let ended = |is: fn(&End) -> bool| trouble.lives.iter().filter(|life| is(&life.end)).count() as u64;
        Self {
            messages: totals.sent,
            rows: (world.rows.len() + world.orphans.len()) as u64,
            quarantined: world.quarantine.len() as u64,
            mails: world.facts.len() as u64,
            received: totals.received,
            redelivered: totals.redelivered,
            faults: queue.faults_met() + store.faults_met(),
            ended: [
                ended(|end| matches!(end, End::Stopped)),
                ended(|end| matches!(end, End::GivesUp { .. })),
                ended(|end| matches!(end, End::Killed)),
            ],
        }
    }

    fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.rows += other.rows;
        self.quarantined += other.quarantined;
        self.mails += other.mails;
        self.received += other.received;
        self.redelivered += other.redelivered;
        self.faults += other.faults;
        for (sum, ended) in self.ended.iter_mut().zip(other.ended) {
            *sum += ended;
        }
    }
}

impl fmt::Display for Played {
    /// Only what held can be printed: whatever is lost, doubled or wrong ends the run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, rows, quarantined, mails, received, redelivered, faults, ended } = self;
        let [stopped, gave_up, killed] = ended;
        writeln!(f, "  {messages} messages, received {received} times, {redelivered} of them again")?;
        writeln!(f, "  {faults} calls met a fault; workers: {stopped} stopped, {gave_up} gave up, {killed} killed")?;
        writeln!(f, "  {rows} events stored, {quarantined} bodies in quarantine, {mails} mails")?;
        write!(f, "  0 lost, 0 doubled, 0 wrong facts, 0 deleted before they were stored")
    }
}

/// Limits and faults.
#[derive(Clone, Debug)]
struct Trouble {
    /// On the same queue and the same store.
    workers: usize,
    pollers: usize,
    batch_size: usize,
    batch_age_ms: u64,
    in_flight: usize,
    receive_wait_s: u64,
    visibility_s: u64,
    /// Milliseconds before each message that is sent.
    pauses_ms: Vec<u64>,
    receive: Vec<Fault>,
    store: Vec<Fault>,
    delete: Vec<Fault>,
    failing_entries: Vec<bool>,
    visibility: Vec<Fault>,
    /// How the first worker ends before its time, again and again.
    lives: Vec<Life>,
    /// Where the jitter of all delays starts.
    jitter: u64,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    ms: u64,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Stopped,
    /// Stopped, and so long after it also gives up.
    GivesUp {
        after_ms: u64,
    },
    /// The process dies.
    Killed,
}

/// A message.
#[derive(Clone, Debug)]
enum Body {
    Event(Happening),
    Several(Vec<Happening>),
    SeveralAndPoison(Vec<Happening>, u8),
    Poison(u8),
    Noise,
}

/// So few mails, kinds and times that many of them are the same.
#[derive(Clone, Debug)]
struct Happening {
    mail: u8,
    kind: usize,
    second: u8,
    refused: bool,
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        8 => happening().prop_map(Body::Event),
        3 => vec(happening(), 2..6).prop_map(Body::Several),
        1 => (vec(happening(), 1..4), 0..4_u8).prop_map(|(happenings, n)| Body::SeveralAndPoison(happenings, n)),
        1 => (0..4_u8).prop_map(Body::Poison),
        1 => Just(Body::Noise),
    ]
}

/// Which story, of how many mails.
#[derive(Clone, Debug)]
struct Seed(u64, usize);

impl Seed {
    fn tell(&self) -> Story {
        let Self(seed, mails) = *self;
        Story::tell(&StorySettings::new(seed, mails, datetime!(2026-10-05 08:00 UTC))).shuffled(seed)
    }
}

fn story() -> impl Strategy<Value = Seed> {
    (any::<u64>(), 1..8_usize).prop_map(|(seed, mails)| Seed(seed, mails))
}

fn happening() -> impl Strategy<Value = Happening> {
    let refused = prop::bool::weighted(0.05);
    (0..8_u8, 0..KINDS.len(), 0..4_u8, refused).prop_map(|(mail, kind, second, refused)| Happening {
        mail,
        kind,
        second,
        refused,
    })
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let limits = (
        1..=2_usize,
        1..=4_usize,
        1..=50_usize,
        prop_oneof![Just(0), 1..3_000_u64],
        prop_oneof![1..=20_usize, Just(1_000)],
        1..=20_u64,
        2..=40_u64,
    );
    let pauses = vec(prop_oneof![6 => Just(0), 2 => 0..50_u64, 1 => 0..40_000_u64], 1..40);
    let faults = (script(12), script(25), script(12), vec(prop::bool::weighted(0.2), 0..60), script(12));
    let life = (
        0..60_000_u64,
        prop_oneof![
            Just(End::Stopped),
            (0..30_000_u64).prop_map(|after_ms| End::GivesUp { after_ms }),
            Just(End::Killed),
        ],
    );
    let lives = vec(life.prop_map(|(ms, end)| Life { ms, end }), 0..4);
    (limits, pauses, faults, lives, any::<u64>()).prop_map(|(limits, pauses_ms, faults, lives, jitter)| {
        let (workers, pollers, batch_size, batch_age_ms, in_flight, receive_wait_s, visibility_s) = limits;
        let (receive, store, delete, failing_entries, visibility) = faults;
        Trouble {
            workers,
            pollers,
            batch_size,
            batch_age_ms,
            in_flight,
            receive_wait_s,
            visibility_s,
            pauses_ms,
            receive,
            store,
            delete,
            failing_entries,
            visibility,
            lives,
            jitter,
        }
    })
}

fn script(longest: usize) -> impl Strategy<Value = Vec<Fault>> {
    let fault = prop_oneof![
        4 => Just(Fault::None),
        2 => Just(Fault::Reject),
        2 => Just(Fault::LoseAnswer),
        1 => Just(Fault::Hang),
    ];
    vec(fault, 0..longest)
}

/// What happens, and what must be stored at the end.
#[derive(Default)]
struct World {
    steps: Vec<Step>,
    rows: BTreeSet<RowKey>,
    orphans: BTreeSet<RowKey>,
    facts: BTreeMap<Uuid, Facts>,
    quarantine: BTreeSet<String>,
}

const KINDS: [(&str, &str); 5] =
    [("Send", "send"), ("Delivery", "delivery"), ("Bounce", "bounce"), ("Open", "open"), ("Click", "click")];

impl Happening {
    fn message_id(&self) -> String {
        format!("{}mail-{}", if self.refused { REFUSED } else { "" }, self.mail)
    }

    fn json(&self) -> Value {
        let (name, _) = KINDS[self.kind];
        let at = format!("2026-10-05T08:00:0{}.000Z", self.second);
        let mail = json!({
            "messageId": self.message_id(),
            "timestamp": "2026-10-05T07:59:00.000Z",
            "destination": ["a@example.com"],
        });
        let mut event = json!({ "eventType": name, "mail": mail });
        let class = CLASSES[usize::from(self.second)].0;
        event[name.to_lowercase()] = json!({ "timestamp": at, "link": "https://example.com/", "bounceType": class });
        event
    }

    fn at(&self) -> OffsetDateTime {
        datetime!(2026-10-05 08:00 UTC) + Duration::from_secs(u64::from(self.second))
    }

    /// By the rules of the README, not by the code under test.
    fn row(&self) -> RowKey {
        let (_, kind) = KINDS[self.kind];
        RowKey {
            aws_message_id: self.message_id(),
            kind: kind.to_owned(),
            recipient: "a@example.com".to_owned(),
            occurred_at_ms: matches!(kind, "open" | "click").then_some(self.at().unix_timestamp() * 1_000),
            link: (kind == "click").then(|| "https://example.com/".to_owned()),
        }
    }
}

/// The types of the bounces in each second.
const CLASSES: [(&str, BounceClass); 4] = [
    ("Transient", BounceClass::Transient),
    ("Permanent", BounceClass::Permanent),
    ("Novel", BounceClass::Undetermined),
    ("Transient", BounceClass::Transient),
];

/// What everything that happened says about a mail.
fn facts(happenings: &[&Happening]) -> Facts {
    let of = |kind: &'static str| happenings.iter().copied().filter(move |happening| KINDS[happening.kind].1 == kind);
    let first = |kind| of(kind).map(Happening::at).min();
    let times = |kind| of(kind).map(|happening| happening.second).collect::<BTreeSet<_>>().len();
    Facts {
        sent_at: first("send"),
        delivered_at: first("delivery"),
        bounced_at: first("bounce"),
        opened_at: first("open"),
        clicked_at: first("click"),
        open_count: times("open"),
        click_count: times("click"),
        bounce_class: of("bounce").map(|happening| CLASSES[usize::from(happening.second)].1).max(),
        ..Facts::default()
    }
}

fn log_row(mail: u8) -> LogRow {
    LogRow {
        uuid: Uuid::from_u128(u128::from(mail)),
        aws_message_id: Some(format!("mail-{mail}")),
        sender: "shop@example.com".to_owned(),
        recipients: vec!["a@example.com".to_owned()],
        subject: String::new(),
        template_name: None,
        campaign_id: None,
        configuration_set: None,
        tags: json!({}),
    }
}

impl World {
    /// Every other mail has a log row, written before or after its events.
    fn of(bodies: &[Body]) -> Self {
        let mut world = Self::default();
        let mut told: BTreeMap<u8, Vec<&Happening>> = (0..8).step_by(2).map(|mail| (mail, Vec::new())).collect();
        for body in bodies {
            let poison = |n: &u8| json!({ "eventType": "Send", "mail": n }).to_string();
            let (text, happenings, poison) = match body {
                Body::Event(happening) => (happening.json().to_string(), std::slice::from_ref(happening), None),
                Body::Several(happenings) => (array(happenings, None), happenings.as_slice(), None),
                Body::SeveralAndPoison(happenings, n) => {
                    (array(happenings, Some(poison(n))), happenings.as_slice(), Some(poison(n)))
                }
                Body::Poison(n) => (format!("{{ broken {n}"), [].as_slice(), Some(format!("{{ broken {n}"))),
                Body::Noise => (NOISE.to_owned(), [].as_slice(), None),
            };
            world.quarantine.extend(poison);
            for happening in happenings {
                if happening.refused {
                    world.quarantine.insert(text.clone());
                } else if let Some(told) = told.get_mut(&happening.mail) {
                    told.push(happening);
                    world.rows.insert(happening.row());
                } else {
                    world.orphans.insert(happening.row());
                }
            }
            world.steps.push(Step::Publish(text));
        }
        for (mail, happenings) in told {
            let row = log_row(mail);
            world.facts.insert(row.uuid, facts(&happenings));
            world.steps.insert(world.steps.len().min(usize::from(mail) * 4), Step::WriteLog(row));
        }
        world
    }

    fn of_story(story: &Story) -> Self {
        Self {
            steps: story.steps().collect(),
            rows: story.truth.rows.clone(),
            orphans: story.truth.orphans.clone(),
            facts: story.truth.facts.clone(),
            quarantine: rejects(story),
        }
    }
}

/// A story knows how many there are, but not which part of a body they are.
fn rejects(story: &Story) -> BTreeSet<String> {
    let mut rejects = Vec::new();
    for step in story.steps() {
        let Step::Publish(body) = step else { continue };
        for leaf in decode(body.as_bytes(), OffsetDateTime::UNIX_EPOCH, &DecodeSettings::default()) {
            if let Outcome::Rejected(reject) = leaf.outcome {
                rejects.push(String::from_utf8_lossy(&reject.raw).into_owned());
            }
        }
    }
    assert_eq!(rejects.len(), story.truth.rejected_leaves.values().sum::<usize>());
    BTreeSet::from_iter(rejects)
}

/// What SES sends to try out a topic.
const NOISE: &str = "Successfully validated SNS topic for Amazon SES event publishing.";

fn array(happenings: &[Happening], more: Option<String>) -> String {
    let elements: Vec<String> = happenings.iter().map(|happening| happening.json().to_string()).chain(more).collect();
    format!("[{}]", elements.join(","))
}

fn in_memory(world: &World, trouble: &Trouble) -> Played {
    let store = MemoryStore::default();
    let played = play(world, trouble, &store, &store, |row| store.write_log(row));
    store.sweep();
    assert_eq!(store.rows(), world.rows, "stored events");
    assert_eq!(store.orphans(), world.orphans, "events of unknown mails");
    assert_eq!(store.facts(), earliest_delays(&world.facts), "facts");
    assert_eq!(store.quarantine(), world.quarantine, "bodies in quarantine");
    played
}

fn in_postgres(store: &RealStore, story: &Story, trouble: &Trouble) -> Played {
    let world = World::of_story(story);
    let played = play(&world, trouble, store, &store.known, |row| store.write_log(row));
    store.sweep();
    let differences = store.differences(&story.truth);
    assert_eq!(differences.count, 0, "{:#?}", differences.described);
    let quarantine = store.quarantine();
    assert_eq!(BTreeSet::from_iter(quarantine.iter().cloned()), world.quarantine, "bodies in quarantine");
    assert_eq!(quarantine.len(), world.quarantine.len(), "a body is in quarantine twice");
    played
}

/// Of a delay that is reported twice the earlier time is the fact.
fn earliest_delays(facts: &BTreeMap<Uuid, Facts>) -> BTreeMap<Uuid, Facts> {
    let mut facts = facts.clone();
    for facts in facts.values_mut() {
        facts.delayed_at = facts.delayed_at.first().copied().into_iter().collect();
    }
    facts
}

/// Plays all of it on paused time. `known` is what the worker knows to be stored, and holds the store's script.
fn play<S: Store + Clone>(
    world: &World,
    trouble: &Trouble,
    store: &S,
    known: &MemoryStore,
    write_log: impl Fn(&LogRow),
) -> Played {
    fastrand::seed(trouble.jitter);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime can be had");
    runtime.block_on(async {
        let queue = MemoryQueue::new(Duration::from_secs(trouble.visibility_s), known);
        queue.script(Call::Receive, trouble.receive.iter().copied());
        queue.script(Call::Delete, trouble.delete.iter().copied());
        queue.script(Call::ChangeVisibility, trouble.visibility.iter().copied());
        queue.fail_entries(trouble.failing_entries.iter().copied());
        known.script(trouble.store.iter().copied());
        let inserted = work(world, trouble, &queue, store, write_log).await;
        assert!(inserted <= world.rows.len() as u64, "{inserted} new events are counted of {}", world.rows.len());
        let totals = queue.totals();
        assert_eq!((totals.deleted, totals.sent), (totals.sent, publishes(world)), "deleted and sent messages");
        assert_eq!(queue.broken_rules(), [""; 0], "deleted before it was stored");
        Played::of(world, trouble, &queue, known)
    })
}

/// Workers come and go until the queue is drained. Returns how many events they took for new: fewer than there are where
/// an answer was lost or an event waited for its mail, but never more.
async fn work<S: Store + Clone>(
    world: &World,
    trouble: &Trouble,
    queue: &MemoryQueue,
    store: &S,
    write_log: impl Fn(&LogRow),
) -> u64 {
    let sending = async {
        for (step, pause) in world.steps.iter().zip(trouble.pauses_ms.iter().cycle()) {
            sleep(Duration::from_millis(*pause)).await;
            match step {
                Step::WriteLog(row) => write_log(row),
                Step::Publish(body) => queue.send(body),
            }
        }
    };
    let others = Vec::from_iter((1..trouble.workers).map(|_| Worked::start(queue, store, trouble)));
    let working = async {
        let mut inserted = 0;
        for life in &trouble.lives {
            inserted += Worked::start(queue, store, trouble).end(*life).await;
        }
        (inserted, Worked::start(queue, store, trouble))
    };
    let ((mut inserted, last), ()) = tokio::join!(working, sending);
    let drained = async {
        while !queue.is_drained() {
            sleep(Duration::from_millis(500)).await;
        }
    };
    let drained = timeout(LONGEST, drained).await;
    assert!(drained.is_ok(), "the queue is never drained: {:?}", queue.counts());
    for worked in others.into_iter().chain([last]) {
        inserted += worked.end(Life { ms: 0, end: End::Stopped }).await;
    }
    inserted
}

fn publishes(world: &World) -> u64 {
    world.steps.iter().filter(|step| matches!(step, Step::Publish(_))).count() as u64
}

/// A worker, from its start to its end.
struct Worked {
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    run: tokio::task::JoinHandle<Result<(), pipeline::QueueError>>,
}

impl Worked {
    fn start<S: Store + Clone>(queue: &MemoryQueue, store: &S, trouble: &Trouble) -> Self {
        let settings = PipelineSettings {
            pollers: trouble.pollers,
            batch_size: trouble.batch_size,
            batch_age: Duration::from_millis(trouble.batch_age_ms),
            in_flight: trouble.in_flight,
            receive_wait: Duration::from_secs(trouble.receive_wait_s),
            visibility_timeout: Duration::from_secs(trouble.visibility_s),
            store_timeout: Duration::from_secs(2),
            delete_budget: Duration::from_secs(3),
            decode: DecodeSettings::default(),
        };
        let (metrics, shutdown) = (Arc::new(Metrics::default()), Shutdown::default());
        let worker = Worker::new(queue.clone(), store.clone(), settings, Arc::clone(&metrics), shutdown.clone());
        Self { metrics, shutdown, run: tokio::spawn(pipeline::run(worker)) }
    }

    /// Lets it live for so long, ends it, and checks its counts. Returns how many events it took for new.
    async fn end(mut self, life: Life) -> u64 {
        sleep(Duration::from_millis(life.ms)).await;
        match life.end {
            End::Stopped => self.shutdown.stop.cancel(),
            End::GivesUp { after_ms } => {
                self.shutdown.stop.cancel();
                sleep(Duration::from_millis(after_ms)).await;
                self.shutdown.give_up.cancel();
            }
            End::Killed => self.run.abort(),
        }
        let start = Instant::now();
        let ended = timeout(LONGEST, &mut self.run).await;
        match ended.unwrap_or_else(|_| panic!("it does not end within {:?} after {:?}", start.elapsed(), life.end)) {
            Ok(outcome) => outcome.expect("nothing was fatal"),
            Err(e) => assert!(e.is_cancelled() && matches!(life.end, End::Killed), "the pipeline panics: {e}"),
        }
        sleep(Duration::from_millis(1)).await; // a killed worker's tasks end one after the other
        assert_eq!(self.metrics.check_identities(), Drift { messages: 0, events: 0 }, "after {:?}", life.end);
        assert_eq!(self.metrics.messages_in_hand.get(), 0, "in hand after {:?}", life.end);
        self.metrics.events_inserted.get()
    }
}
