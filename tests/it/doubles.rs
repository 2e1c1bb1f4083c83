//! A queue and a store in memory that behave like the real ones, on Tokio's clock (also while it is paused), and do
//! wrong what a script tells them to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, btree_map::Entry},
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ses_ledger::{
    event::{Event, EventKind, MessageId},
    local::{
        queue::{Counts, Deletion, LocalQueue, QueueSettings, ReceiptHandle, Totals},
        story::{BounceClass, Facts, LogRow, RowKey},
    },
    pipeline::{
        Queue, QueueError, Store, StoreError, Verdict,
        ack::Deleted,
        batch::{Arrival, Quarantined},
        decode::{self, DecodeSettings, decode},
        receive::{Delivery, Receipt},
        store::Committed,
    },
};
use time::OffsetDateTime;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use uuid::Uuid;

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Not done, and the answer says so.
    Reject,
    /// Done, but the answer is lost.
    LoseAnswer,
    /// Not done, and never answered.
    Hang,
}

/// What befalls call after call: first the script, each step once, then the standing fault.
#[derive(Clone, Debug)]
struct Script {
    steps: VecDeque<Fault>,
    standing: Fault,
    /// How many calls met with a fault.
    met: u64,
}

impl Default for Script {
    fn default() -> Self {
        Self { steps: VecDeque::new(), standing: Fault::None, met: 0 }
    }
}

impl Script {
    fn next(&mut self) -> Fault {
        let fault = self.steps.pop_front().unwrap_or(self.standing);
        self.met += u64::from(fault != Fault::None);
        fault
    }
}

/// A call that a queue's script is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Receive,
    Delete,
    ChangeVisibility,
}

/// A queue. Its clones are the same queue.
#[derive(Clone)]
pub(crate) struct MemoryQueue {
    /// For how long a receive through this clone hides its messages.
    visibility: Duration,
    start: Instant,
    /// What the calendar said then.
    born: OffsetDateTime,
    state: Arc<Mutex<QueueState>>,
    /// Something may have become visible.
    arrivals: Arc<Notify>,
    /// Where everything that is deleted has to be by then.
    store: MemoryStore,
}

struct QueueState {
    messages: LocalQueue<Arc<Posted>>,
    /// What was handed out under which receipt handle.
    handed_out: HashMap<String, Arc<Posted>>,
    scripts: [Script; 3],
    /// How long every receive takes before it looks.
    latency: Duration,
    /// One step for each entry of a delete: whether it fails.
    failing_entries: VecDeque<bool>,
    open_receives: usize,
    most_open_receives: usize,
    broken_rules: Vec<String>,
}

/// A message, and what has to be stored before it may be deleted.
struct Posted {
    body: String,
    needs: Vec<Need>,
}

enum Need {
    Row(RowKey),
    Quarantined(Vec<u8>),
}

impl MemoryQueue {
    pub(crate) fn new(visibility: Duration, store: &MemoryStore) -> Self {
        let state = QueueState {
            messages: LocalQueue::new(QueueSettings::default()),
            handed_out: HashMap::new(),
            scripts: Default::default(),
            latency: Duration::ZERO,
            failing_entries: VecDeque::new(),
            open_receives: 0,
            most_open_receives: 0,
            broken_rules: Vec::new(),
        };
        Self {
            visibility,
            start: Instant::now(),
            born: OffsetDateTime::now_utc(),
            state: Arc::new(Mutex::new(state)),
            arrivals: Arc::default(),
            store: store.clone(),
        }
    }

    /// The same queue for a receiver that hides messages for another time.
    pub(crate) fn with_visibility(&self, visibility: Duration) -> Self {
        Self { visibility, ..self.clone() }
    }

    pub(crate) fn send(&self, body: &str) {
        let posted = Arc::new(Posted { body: body.to_owned(), needs: needs(body) });
        self.change(|state, now| state.messages.send(posted, Duration::ZERO, now));
    }

    /// Appends to the script of a call.
    pub(crate) fn script(&self, call: Call, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state).scripts[call as usize].steps.extend(faults);
    }

    /// Sets what befalls every call that no script covers. Takes back what is left of the script.
    pub(crate) fn always(&self, call: Call, fault: Fault) {
        lock(&self.state).scripts[call as usize] = Script { standing: fault, ..Script::default() };
    }

    /// Lets every receive take so long before it looks.
    pub(crate) fn slow_receives(&self, latency: Duration) {
        lock(&self.state).latency = latency;
    }

    /// Lets entries of deletes fail: one step for each entry, in the order in which they come.
    pub(crate) fn fail_entries(&self, fails: impl IntoIterator<Item = bool>) {
        lock(&self.state).failing_entries.extend(fails);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.change(|state, now| state.messages.counts(now))
    }

    pub(crate) fn totals(&self) -> Totals {
        lock(&self.state).messages.totals()
    }

    /// How many calls, or entries of calls, met with a fault.
    pub(crate) fn faults_met(&self) -> u64 {
        lock(&self.state).scripts.iter().map(|script| script.met).sum()
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.counts() == Counts::default()
    }

    /// Receives that wait for an answer now, and the most that ever did at the same time.
    pub(crate) fn open_receives(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.open_receives, state.most_open_receives)
    }

    /// Every time somebody wanted to delete what was not stored.
    pub(crate) fn broken_rules(&self) -> Vec<String> {
        lock(&self.state).broken_rules.clone()
    }

    fn change<R>(&self, work: impl FnOnce(&mut QueueState, Duration) -> R) -> R {
        let result = work(&mut lock(&self.state), self.start.elapsed());
        self.arrivals.notify_waiters();
        result
    }

    fn take(&self, max: usize) -> Vec<Delivery> {
        let mut state = lock(&self.state);
        let received = state.messages.receive(max, Some(self.visibility), self.start.elapsed());
        let deliveries = received.into_iter().map(|message| {
            let handle = message.handle.to_string();
            state.handed_out.insert(handle.clone(), Arc::clone(&message.body));
            Delivery {
                id: message.id.to_string(),
                handle,
                body: message.body.body.clone(),
                receive_count: message.receive_count,
                sent_at: Some(self.born + message.sent_at),
            }
        });
        deliveries.collect()
    }

    /// Takes messages, waiting for the first until `end`. None are lost if the caller does not wait for them.
    async fn poll(&self, max: usize, end: Instant) -> Vec<Delivery> {
        loop {
            let arrival = self.arrivals.notified();
            let deliveries = self.take(max);
            if !deliveries.is_empty() || Instant::now() >= end {
                return deliveries;
            }
            let next = lock(&self.state).messages.next_visible_at().map_or(end, |at| self.start + at);
            tokio::select! {
                () = arrival => {}
                () = sleep_until(next.min(end)) => {}
            }
        }
    }

    /// Deleted ⇒ committed, asked directly, whether the delete is then performed or not.
    fn check_stored(&self, committed: &Committed) {
        let mut state = lock(&self.state);
        for receipt in committed.receipts() {
            let posted = state.handed_out.get(receipt.handle()).expect("only what was received can be deleted");
            if !self.store.holds(&posted.needs) {
                let broken = format!("a message is to be deleted of which something is not stored: {}", posted.body);
                state.broken_rules.push(broken);
            }
        }
    }

    /// Deletes and says which entries failed.
    fn perform_delete(&self, committed: &Committed) -> Vec<usize> {
        self.change(|state, now| {
            let mut failed = Vec::new();
            for (entry, receipt) in committed.receipts().iter().enumerate() {
                if state.failing_entries.pop_front() == Some(true) {
                    state.scripts[Call::Delete as usize].met += 1;
                    failed.push(entry);
                } else {
                    let deletion = state.messages.delete(handle(receipt), now).expect("the handle is of this queue");
                    // As on SQS, a handle that is too old is a success that deletes nothing.
                    let (Deletion::Deleted | Deletion::Gone | Deletion::Superseded) = deletion;
                }
            }
            failed
        })
    }
}

impl Queue for MemoryQueue {
    fn name(&self) -> Arc<str> {
        "memory".into()
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        assert!((1..=10).contains(&max) && wait <= Duration::from_secs(20), "SQS would refuse this receive");
        let _open = OpenReceive::new(&self.state);
        let (fault, latency) = {
            let mut state = lock(&self.state);
            (state.scripts[Call::Receive as usize].next(), state.latency)
        };
        let poll = async {
            sleep(latency).await;
            self.poll(max, Instant::now() + wait).await
        };
        match fault {
            Fault::None => Ok(poll.await),
            Fault::Reject => Err(rejected()),
            Fault::LoseAnswer => {
                poll.await;
                Err(answer_lost())
            }
            Fault::Hang => pending().await,
        }
    }

    async fn delete(&self, committed: Committed) -> Deleted {
        self.check_stored(&committed);
        let fault = lock(&self.state).scripts[Call::Delete as usize].next();
        match fault {
            Fault::None => {
                let failed = self.perform_delete(&committed);
                Deleted { left: committed.keep(&failed), error: None }
            }
            Fault::Reject => Deleted { left: committed, error: Some(rejected()) },
            Fault::LoseAnswer => {
                self.perform_delete(&committed);
                Deleted { left: committed, error: Some(answer_lost()) }
            }
            Fault::Hang => pending().await,
        }
    }

    async fn change_visibility(&self, receipts: &[&Receipt], timeout: Duration) -> Result<(), QueueError> {
        let fault = lock(&self.state).scripts[Call::ChangeVisibility as usize].next();
        let perform = || {
            self.change(|state, now| {
                for receipt in receipts {
                    // What is not in flight any more is passed over.
                    let _ = state.messages.change_visibility(handle(receipt), timeout, now);
                }
            });
        };
        match fault {
            Fault::None => {
                perform();
                Ok(())
            }
            Fault::Reject => Err(rejected()),
            Fault::LoseAnswer => {
                perform();
                Err(answer_lost())
            }
            Fault::Hang => pending().await,
        }
    }
}

/// Counts a receive from its start to its end, however it ends.
struct OpenReceive<'q>(&'q Mutex<QueueState>);

impl<'q> OpenReceive<'q> {
    fn new(queue: &'q Mutex<QueueState>) -> Self {
        let mut state = lock(queue);
        state.open_receives += 1;
        state.most_open_receives = state.most_open_receives.max(state.open_receives);
        Self(queue)
    }
}

impl Drop for OpenReceive<'_> {
    fn drop(&mut self) {
        lock(self.0).open_receives -= 1;
    }
}

fn handle(receipt: &Receipt) -> ReceiptHandle {
    receipt.handle().parse().expect("the handle is of this queue")
}

fn rejected() -> QueueError {
    QueueError::Transient("a planted fault".to_owned())
}

fn answer_lost() -> QueueError {
    QueueError::Transient("a planted loss of an answer".to_owned())
}

/// What the store must hold of a body.
fn needs(body: &str) -> Vec<Need> {
    let settings = DecodeSettings::default();
    let leaves = decode(body.as_bytes(), OffsetDateTime::UNIX_EPOCH, &settings);
    let needs = leaves.into_iter().flat_map(|leaf| match leaf.outcome {
        decode::Outcome::Ignored(_) => vec![],
        decode::Outcome::Rejected(reject) => vec![Need::Quarantined(reject.raw)],
        decode::Outcome::Event(event) => {
            let need = |event: Event| match is_refused(&event) {
                true => Need::Quarantined(body.as_bytes().to_vec()),
                false => Need::Row(row_key(&event)),
            };
            event.into_events().into_iter().map(need).collect()
        }
    });
    needs.collect()
}

/// The store refuses every event of a mail whose id begins like this.
pub(crate) const REFUSED: &str = "refused";
/// The store refuses to quarantine a body that holds this.
pub(crate) const UNSTORABLE: &str = "unstorable";

/// A store with the product's two rules of uniqueness and its rules for facts. Its clones are the same store.
#[derive(Clone, Default)]
pub(crate) struct MemoryStore(Arc<Mutex<StoreState>>);

#[derive(Default)]
struct StoreState {
    rows: BTreeSet<RowKey>,
    orphans: BTreeMap<RowKey, Parked>,
    /// The bodies, and why each is here.
    quarantine: BTreeMap<Vec<u8>, String>,
    /// The log of each mail whose id is known.
    logs: HashMap<String, Uuid>,
    facts: BTreeMap<Uuid, Facts>,
    script: Script,
    miscounts: usize,
    /// It never answers to more rows at once.
    most_rows: Option<usize>,
}

/// An event of a mail that is not known yet.
struct Parked {
    /// The log that it names in its tag.
    log: Option<Uuid>,
    /// What it says about its mail, it and all others with the same key.
    says: Facts,
}

impl MemoryStore {
    /// Appends to the script of inserts.
    pub(crate) fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.0).script.steps.extend(faults);
    }

    /// Sets what befalls every insert that no script covers, and every ping.
    pub(crate) fn always(&self, fault: Fault) {
        lock(&self.0).script.standing = fault;
    }

    /// Lets the next inserts that store events leave out one verdict.
    pub(crate) fn miscount(&self, inserts: usize) {
        lock(&self.0).miscounts = inserts;
    }

    /// Lets inserts of more rows than so many take too long.
    pub(crate) fn most_rows(&self, rows: usize) {
        lock(&self.0).most_rows = Some(rows);
    }

    /// What befalls the next insert, for a store that keeps this one beside itself.
    pub(crate) fn next_fault(&self) -> Fault {
        lock(&self.0).script.next()
    }

    /// How many inserts met with a fault.
    pub(crate) fn faults_met(&self) -> u64 {
        lock(&self.0).script.met
    }

    /// The log row of a mail is there.
    pub(crate) fn write_log(&self, row: &LogRow) {
        let mut state = lock(&self.0);
        state.facts.entry(row.uuid).or_default();
        let id = row.aws_message_id.as_deref().and_then(MessageId::parse);
        state.logs.extend(id.map(|id| (id.as_str().to_owned(), row.uuid)));
    }

    /// Attaches orphans whose mail is known by now.
    pub(crate) fn sweep(&self) {
        let mut state = lock(&self.0);
        let orphans = std::mem::take(&mut state.orphans);
        // An orphan that names its log tells the id of the mail for all others.
        for (key, parked) in &orphans {
            state.log_of(&key.aws_message_id, parked.log);
        }
        for (key, parked) in orphans {
            match state.log_of(&key.aws_message_id, parked.log) {
                Some(log) => drop(state.attach(log, key, parked.says)),
                None => drop(state.orphans.insert(key, parked)),
            }
        }
    }

    pub(crate) fn rows(&self) -> BTreeSet<RowKey> {
        lock(&self.0).rows.clone()
    }

    pub(crate) fn orphans(&self) -> BTreeSet<RowKey> {
        lock(&self.0).orphans.keys().cloned().collect()
    }

    pub(crate) fn facts(&self) -> BTreeMap<Uuid, Facts> {
        lock(&self.0).facts.clone()
    }

    /// The bodies in quarantine.
    pub(crate) fn quarantine(&self) -> BTreeSet<String> {
        lock(&self.0).quarantine.keys().map(|body| String::from_utf8_lossy(body).into_owned()).collect()
    }

    /// Inserts whatever the script says.
    pub(crate) fn insert_now(
        &self,
        arrivals: &[Arrival],
        quarantined: &[Quarantined],
    ) -> Result<Vec<Verdict>, StoreError> {
        lock(&self.0).insert(arrivals, quarantined)
    }

    fn holds(&self, needs: &[Need]) -> bool {
        let state = lock(&self.0);
        needs.iter().all(|need| match need {
            Need::Row(key) => state.rows.contains(key) || state.orphans.contains_key(key),
            Need::Quarantined(body) => state.quarantine.contains_key(body),
        })
    }
}

impl Store for MemoryStore {
    async fn insert(&self, arrivals: &[Arrival], quarantined: &[Quarantined]) -> Result<Vec<Verdict>, StoreError> {
        if lock(&self.0).most_rows.is_some_and(|most| arrivals.len() + quarantined.len() > most) {
            return pending().await;
        }
        match self.next_fault() {
            Fault::None => self.insert_now(arrivals, quarantined),
            Fault::Reject => Err(StoreError::Transient(anyhow::anyhow!("a planted fault"))),
            Fault::LoseAnswer => {
                self.insert_now(arrivals, quarantined)?;
                Err(StoreError::Transient(anyhow::anyhow!("a planted loss of an answer")))
            }
            Fault::Hang => pending().await,
        }
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let standing = lock(&self.0).script.standing;
        match standing {
            Fault::None => Ok(()),
            Fault::Reject | Fault::LoseAnswer => Err(StoreError::Transient(anyhow::anyhow!("a planted fault"))),
            Fault::Hang => pending().await,
        }
    }
}

impl StoreState {
    /// All of it or nothing.
    fn insert(&mut self, arrivals: &[Arrival], quarantined: &[Quarantined]) -> Result<Vec<Verdict>, StoreError> {
        let is_unstorable = |q: &Quarantined| String::from_utf8_lossy(&q.body).contains(UNSTORABLE);
        if arrivals.iter().any(|arrival| is_refused(&arrival.event)) || quarantined.iter().any(is_unstorable) {
            let source = anyhow::anyhow!("a planted refusal");
            return Err(StoreError::Refused { code: "22P02".to_owned(), source });
        }
        for body in quarantined {
            self.quarantine.insert(body.body.clone(), body.reason.clone());
        }
        let mut verdicts: Vec<_> = arrivals.iter().map(|arrival| self.insert_one(&arrival.event)).collect();
        if self.miscounts > 0 && verdicts.pop().is_some() {
            self.miscounts -= 1;
        }
        Ok(verdicts)
    }

    fn insert_one(&mut self, event: &Event) -> Verdict {
        let (key, says) = (row_key(event), says(event));
        if let Some(log) = self.log_of(&key.aws_message_id, event.log_uuid) {
            return if self.attach(log, key, says) { Verdict::Inserted } else { Verdict::Duplicate };
        }
        match self.orphans.entry(key) {
            Entry::Occupied(mut parked) => {
                learn(&mut parked.get_mut().says, Facts { open_count: 0, click_count: 0, ..says });
                Verdict::Duplicate
            }
            Entry::Vacant(place) => {
                place.insert(Parked { log: event.log_uuid, says });
                Verdict::Orphaned
            }
        }
    }

    /// Whether the row is new. What it says counts in any case, but opens and clicks only once for each row.
    fn attach(&mut self, log: Uuid, key: RowKey, says: Facts) -> bool {
        let is_new = self.rows.insert(key);
        let counted = Facts { open_count: 0, click_count: 0, ..says.clone() };
        learn(self.facts.entry(log).or_default(), if is_new { says } else { counted });
        is_new
    }

    /// By the id of SES, else by the tag, which tells the id from then on.
    fn log_of(&mut self, message_id: &str, tag: Option<Uuid>) -> Option<Uuid> {
        if let Some(log) = self.logs.get(message_id) {
            return Some(*log);
        }
        let log = tag.filter(|log| self.facts.contains_key(log))?;
        self.logs.insert(message_id.to_owned(), log);
        Some(log)
    }
}

/// What one event says about its mail.
fn says(event: &Event) -> Facts {
    let (at, detail, none) = (Some(event.occurred_at), &event.detail, Facts::default());
    match event.kind {
        EventKind::Send => Facts { sent_at: at, ..none },
        EventKind::Delivery => Facts { delivered_at: at, ..none },
        EventKind::DeliveryDelay => Facts { delayed_at: at.into_iter().collect(), ..none },
        EventKind::Reject => Facts { rejected_at: at, ..none },
        EventKind::RenderingFailure => Facts { failed_at: at, ..none },
        EventKind::Open => Facts { opened_at: at, open_count: 1, ..none },
        EventKind::Click => Facts { clicked_at: at, click_count: 1, ..none },
        EventKind::Bounce => {
            let class = match detail.bounce_type.as_deref() {
                Some("Permanent") => BounceClass::Permanent,
                Some("Transient") => BounceClass::Transient,
                _ => BounceClass::Undetermined,
            };
            Facts { bounced_at: at, bounce_class: Some(class), ..none }
        }
        EventKind::Complaint if detail.complaint_subtype.is_some() => {
            Facts { bounced_at: at, bounce_class: Some(BounceClass::Permanent), ..none }
        }
        EventKind::Complaint if detail.complaint_type.as_deref() == Some("not-spam") => none,
        EventKind::Complaint => Facts { complained_at: at, ..none },
        EventKind::Subscription | EventKind::Other(_) => none,
    }
}

/// The earliest of every time, the worst of the bounces, and the sums.
fn learn(facts: &mut Facts, says: Facts) {
    let times = [
        (&mut facts.sent_at, says.sent_at),
        (&mut facts.delivered_at, says.delivered_at),
        (&mut facts.bounced_at, says.bounced_at),
        (&mut facts.complained_at, says.complained_at),
        (&mut facts.rejected_at, says.rejected_at),
        (&mut facts.failed_at, says.failed_at),
        (&mut facts.opened_at, says.opened_at),
        (&mut facts.clicked_at, says.clicked_at),
    ];
    for (known, said) in times {
        *known = [*known, said].into_iter().flatten().min();
    }
    facts.delayed_at = facts.delayed_at.union(&says.delayed_at).min().copied().into_iter().collect();
    facts.bounce_class = facts.bounce_class.max(says.bounce_class);
    facts.open_count += says.open_count;
    facts.click_count += says.click_count;
}

fn is_refused(event: &Event) -> bool {
    event.message_id.as_str().starts_with(REFUSED)
}

/// The two rules: opens and clicks happen again, everything else once for each recipient.
fn row_key(event: &Event) -> RowKey {
    let millis = (event.occurred_at.unix_timestamp_nanos() / 1_000_000) as i64;
    RowKey {
        aws_message_id: event.message_id.as_str().to_owned(),
        kind: event.kind.as_str().to_owned(),
        recipient: event.recipient.as_str().to_owned(),
        occurred_at_ms: event.kind.happens_again().then_some(millis),
        link: event.detail.link.clone().filter(|_| event.kind == EventKind::Click),
    }
}

/// A panic of one test's poller must not look like another fault.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
