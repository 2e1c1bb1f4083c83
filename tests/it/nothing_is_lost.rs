//! Whatever comes in, whatever the limits, whatever goes wrong and however often the worker is stopped or killed:
//! each event is stored exactly once, each poison body is in quarantine, and nothing was deleted before.
//!
//! Time is paused, so hours pass in milliseconds. A case that fails is made small and kept in
//! `tests/proptest-regressions`, from where every later run tries it first.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};
use ses_ledger::{
    local::story::{RowKey, Step, Story, StorySettings},
    metrics::{Drift, Metrics},
    pipeline::{
        self, PipelineSettings, Shutdown, Worker,
        decode::{DecodeSettings, Outcome, decode},
    },
};
use time::{OffsetDateTime, macros::datetime};
use tokio::{
    runtime::Builder,
    time::{Instant, sleep, timeout},
};

use crate::doubles::{Call, Fault, MemoryQueue, MemoryStore, REFUSED};

/// Longer than any number of planted faults can last.
const LONGEST: Duration = Duration::from_secs(2 * 3600);

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn each_event_is_stored_exactly_once(bodies in vec(body(), 0..40), trouble in trouble()) {
        check(&World::of(&bodies), &trouble);
    }

    #[test]
    fn so_is_each_event_of_a_whole_story(seed in any::<u64>(), mails in 1..8_usize, trouble in trouble()) {
        let story = Story::tell(&StorySettings::new(seed, mails, datetime!(2026-10-05 08:00 UTC)));
        check(&World::of_story(&story.shuffled(seed)), &trouble);
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
    known: BTreeSet<String>,
    rows: BTreeSet<RowKey>,
    orphans: BTreeSet<RowKey>,
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
        event[name.to_lowercase()] = json!({ "timestamp": at, "link": "https://example.com/" });
        event
    }

    /// By the rules of the README, not by the code under test.
    fn row(&self) -> RowKey {
        let (_, kind) = KINDS[self.kind];
        let second = datetime!(2026-10-05 08:00 UTC).unix_timestamp() + i64::from(self.second);
        RowKey {
            aws_message_id: self.message_id(),
            kind: kind.to_owned(),
            recipient: "a@example.com".to_owned(),
            occurred_at_ms: matches!(kind, "open" | "click").then_some(second * 1_000),
            link: (kind == "click").then(|| "https://example.com/".to_owned()),
        }
    }
}

impl World {
    /// Every other mail has a log row.
    fn of(bodies: &[Body]) -> Self {
        let mut world = Self::default();
        world.known.extend((0..8).step_by(2).map(|mail| format!("mail-{mail}")));
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
                } else if world.known.contains(&happening.message_id()) {
                    world.rows.insert(happening.row());
                } else {
                    world.orphans.insert(happening.row());
                }
            }
            world.steps.push(Step::Publish(text));
        }
        world
    }

    fn of_story(story: &Story) -> Self {
        Self {
            steps: story.steps().collect(),
            rows: story.truth.rows.clone(),
            orphans: story.truth.orphans.clone(),
            quarantine: rejects(story),
            ..Self::default()
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

/// Plays all of it on paused time.
fn check(world: &World, trouble: &Trouble) {
    fastrand::seed(trouble.jitter);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime can be had");
    runtime.block_on(play(world, trouble));
}

async fn play(world: &World, trouble: &Trouble) {
    let store = MemoryStore::default();
    let queue = MemoryQueue::new(Duration::from_secs(trouble.visibility_s), &store);
    world.known.iter().for_each(|id| store.know(id));
    queue.script(Call::Receive, trouble.receive.iter().copied());
    queue.script(Call::Delete, trouble.delete.iter().copied());
    queue.script(Call::ChangeVisibility, trouble.visibility.iter().copied());
    queue.fail_entries(trouble.failing_entries.iter().copied());
    store.script(trouble.store.iter().copied());

    let sending = send(world, trouble, &queue, &store);
    let others = Vec::from_iter((1..trouble.workers).map(|_| Worked::start(&queue, &store, trouble)));
    let working = async {
        for life in &trouble.lives {
            Worked::start(&queue, &store, trouble).end(*life).await;
        }
        Worked::start(&queue, &store, trouble)
    };
    let (last, ()) = tokio::join!(working, sending);
    let drained = async {
        while !queue.is_drained() {
            sleep(Duration::from_millis(500)).await;
        }
    };
    let drained = timeout(LONGEST, drained).await;
    assert!(drained.is_ok(), "the queue is never drained: {:?}", queue.counts());
    for worked in others.into_iter().chain([last]) {
        worked.end(Life { ms: 0, end: End::Stopped }).await;
    }

    store.sweep();
    assert_eq!(store.rows(), world.rows, "stored events");
    assert_eq!(store.orphans(), world.orphans, "events of unknown mails");
    assert_eq!(store.quarantine(), world.quarantine, "bodies in quarantine");
    let totals = queue.totals();
    assert_eq!((totals.deleted, totals.sent), (totals.sent, publishes(world)), "deleted and sent messages");
    assert_eq!(queue.broken_rules(), [""; 0], "deleted before it was stored");
}

fn publishes(world: &World) -> u64 {
    world.steps.iter().filter(|step| matches!(step, Step::Publish(_))).count() as u64
}

async fn send(world: &World, trouble: &Trouble, queue: &MemoryQueue, store: &MemoryStore) {
    for (step, pause) in world.steps.iter().zip(trouble.pauses_ms.iter().cycle()) {
        sleep(Duration::from_millis(*pause)).await;
        match step {
            Step::WriteLog(row) => store.write_log(row),
            Step::Publish(body) => queue.send(body),
        }
    }
}

/// A worker, from its start to its end.
struct Worked {
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    run: tokio::task::JoinHandle<Result<(), pipeline::QueueError>>,
}

impl Worked {
    fn start(queue: &MemoryQueue, store: &MemoryStore, trouble: &Trouble) -> Self {
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

    /// Lets it live for so long, ends it, and checks its counts.
    async fn end(mut self, life: Life) {
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
    }
}
