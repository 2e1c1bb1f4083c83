//! Faults as data: what the endpoint shall do wrong, request by request.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::wire::SqsError;

/// The actions that the endpoint knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the SQS API, which documents them")]
pub enum Action {
    CancelMessageMoveTask,
    ChangeMessageVisibility,
    ChangeMessageVisibilityBatch,
    CreateQueue,
    DeleteMessage,
    DeleteMessageBatch,
    DeleteQueue,
    GetQueueAttributes,
    GetQueueUrl,
    ListMessageMoveTasks,
    ListQueues,
    PurgeQueue,
    ReceiveMessage,
    SendMessage,
    SendMessageBatch,
    SetQueueAttributes,
    StartMessageMoveTask,
}

/// What goes wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the request is performed and answered. A step of a script that lets one through.
    None,
    /// Not performed; answered with this error.
    Reject(SqsError),
    /// Not performed and never answered, until the client gives up or the endpoint stops.
    Hang,
    /// Performed, then the connection is closed instead of an answer.
    LoseAnswer,
    /// Performed, then answered with this error.
    Misreport(SqsError),
}

/// The faults of an endpoint. Empty at first; changed at run time by `SqsEndpoint::faults`.
///
/// A request meets its delay first, then the next step of its action's script or, where that is used
/// up, one of the faults that come by lot, or the action's standing fault. Entry failures and thin receives apply to what is still performed.
/// Everything that is drawn by lot follows from [`seed`](Self::seed) and the order of the requests.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    rules: HashMap<Action, Rule>,
    lot: u64,
}

impl Faults {
    /// Appends to the script of an action: one step per request, in this order, each used once.
    pub fn script(&mut self, action: Action, steps: impl IntoIterator<Item = Fault>) -> &mut Self {
        self.rule(action).script.extend(steps);
        self
    }

    /// Sets what befalls every request of the action that no script covers. `Fault::None` ends it.
    pub fn always(&mut self, action: Action, fault: Fault) -> &mut Self {
        self.rule(action).standing = fault;
        self
    }

    /// Adds a fault that befalls this share (0 to 1) of the action's requests that no script covers, drawn one by one.
    pub fn sometimes(&mut self, action: Action, share: f64, fault: Fault) -> &mut Self {
        self.rule(action).by_lot.push((share, fault));
        self
    }

    /// Delays every request of the action by `base` and up to `jitter` on top, evenly drawn. The
    /// request is performed after the delay, so a client that leaves before has changed nothing.
    pub fn delay(&mut self, action: Action, base: Duration, jitter: Duration) -> &mut Self {
        let rule = self.rule(action);
        (rule.delay, rule.jitter) = (base, jitter);
        self
    }

    /// Fails this share (0 to 1) of the entries of a batch action, drawn one by one, inside an HTTP
    /// 200: code `InternalError`, not the sender's fault, not performed.
    pub fn fail_entries(&mut self, action: Action, share: f64) -> &mut Self {
        self.rule(action).failing_entries = share;
        self
    }

    /// Makes receives come back partly filled even with a backlog, as those of SQS do: each of the
    /// places that a receive asks for but the first is filled with this probability (0 to 1). 0.72
    /// gives 7.5 of 10 on average, as seen with real queues.
    pub fn thin_receives(&mut self, fill: f64) -> &mut Self {
        self.rule(Action::ReceiveMessage).empty_places = 1.0 - fill;
        self
    }

    /// Where the drawing of lots starts: the same seed and the same requests meet the same faults.
    pub fn seed(&mut self, seed: u64) -> &mut Self {
        self.lot = seed;
        self
    }

    /// Ends all faults, scripts included.
    pub fn clear(&mut self) -> &mut Self {
        self.rules.clear();
        self
    }

    /// What befalls the next request of this action.
    pub(super) fn next(&mut self, action: Action) -> Plan {
        let Some(rule) = self.rules.get_mut(&action) else {
            return Plan::default();
        };
        let scripted = rule.script.pop_front();
        let (by_lot, standing) = (rule.by_lot.clone(), rule.standing.clone());
        let (delay, jitter) = (rule.delay, rule.jitter);
        let (failing_entries, empty_places) = (rule.failing_entries, rule.empty_places);
        Plan {
            fault: scripted.or_else(|| self.draw_fault(&by_lot)).unwrap_or(standing),
            delay: if jitter.is_zero() { delay } else { delay + jitter.mul_f64(self.draw()) },
            failing_entries: self.draw_ten(failing_entries),
            empty_places: self.draw_ten(empty_places),
        }
    }

    fn rule(&mut self, action: Action) -> &mut Rule {
        self.rules.entry(action).or_default()
    }

    fn draw_fault(&mut self, by_lot: &[(f64, Fault)]) -> Option<Fault> {
        let mut lot = if by_lot.is_empty() { 1.0 } else { self.draw() };
        let hit = by_lot.iter().find(|(share, _)| {
            lot -= share;
            lot < 0.0
        });
        hit.map(|(_, fault)| fault.clone())
    }

    fn draw_ten(&mut self, share: f64) -> [bool; 10] {
        if share > 0.0 { std::array::from_fn(|_| self.draw() < share) } else { [false; 10] }
    }

    /// The next number of SplitMix64, scaled to 0..1.
    fn draw(&mut self) -> f64 {
        self.lot = self.lot.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.lot;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What befalls one request.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) fault: Fault,
    pub(super) delay: Duration,
    failing_entries: [bool; 10],
    empty_places: [bool; 10],
}

impl Default for Plan {
    fn default() -> Self {
        Self { fault: Fault::None, delay: Duration::ZERO, failing_entries: [false; 10], empty_places: [false; 10] }
    }
}

impl Plan {
    /// Whether the client will see anything but a delay.
    pub(super) fn is_fault(&self) -> bool {
        self.fault != Fault::None
    }

    /// Whether the entry at this place of a batch fails.
    pub(super) fn fails(&self, index: usize) -> bool {
        self.failing_entries.get(index).copied().unwrap_or(false)
    }

    /// How many messages a receive that asks for `wanted` gets at most: never none.
    pub(super) fn places(&self, wanted: usize) -> usize {
        wanted - self.empty_places.iter().take(wanted - 1).filter(|&&empty| empty).count()
    }
}

#[derive(Clone, Debug)]
struct Rule {
    script: VecDeque<Fault>,
    by_lot: Vec<(f64, Fault)>,
    standing: Fault,
    delay: Duration,
    jitter: Duration,
    failing_entries: f64,
    empty_places: f64,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            script: VecDeque::new(),
            by_lot: Vec::new(),
            standing: Fault::None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            failing_entries: 0.0,
            empty_places: 0.0,
        }
    }
}

impl Action {
    /// Reads the header `X-Amz-Target`, like `AmazonSQS.ReceiveMessage`.
    pub(super) fn from_target(target: &str) -> Option<Self> {
        Some(match target.strip_prefix("AmazonSQS.")? {
            "CancelMessageMoveTask" => Self::CancelMessageMoveTask,
            "ChangeMessageVisibility" => Self::ChangeMessageVisibility,
            "ChangeMessageVisibilityBatch" => Self::ChangeMessageVisibilityBatch,
            "CreateQueue" => Self::CreateQueue,
            "DeleteMessage" => Self::DeleteMessage,
            "DeleteMessageBatch" => Self::DeleteMessageBatch,
            "DeleteQueue" => Self::DeleteQueue,
            "GetQueueAttributes" => Self::GetQueueAttributes,
            "GetQueueUrl" => Self::GetQueueUrl,
            "ListMessageMoveTasks" => Self::ListMessageMoveTasks,
            "ListQueues" => Self::ListQueues,
            "PurgeQueue" => Self::PurgeQueue,
            "ReceiveMessage" => Self::ReceiveMessage,
            "SendMessage" => Self::SendMessage,
            "SendMessageBatch" => Self::SendMessageBatch,
            "SetQueueAttributes" => Self::SetQueueAttributes,
            "StartMessageMoveTask" => Self::StartMessageMoveTask,
            _ => return None,
        })
    }
}
