//! A standard SQS queue as a state machine: no clock, no I/O, no lock. Time comes in as an argument.
//!
//! It keeps the rules that a consumer can trip over. A received message is hidden until its timeout
//! and then comes back; only its newest receipt handle deletes it; a message that was received too
//! often turns into a dead letter; at the in-flight cap a receive comes back empty, not with an error.
//! It does not expire messages (`MessageRetentionPeriod`), and it repeats none that was deleted.
//!
//! Times are durations since one fixed start, the same for every call. The Unix epoch makes the
//! timestamps those that SQS reports; a test may start at zero.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    str::FromStr,
    time::Duration,
};

use uuid::Uuid;

/// A queue of bodies of type `B`. A body is cloned for every receive: make that cheap (`Arc<str>`).
///
/// Every call costs logarithmic time at most, whatever the backlog.
pub struct LocalQueue<B> {
    settings: QueueSettings,
    seed: u64,
    messages: HashMap<u64, Message<B>>,
    /// Visible messages, first in first out. One that is deleted while visible leaves its serial
    /// number behind, which the next receive skips.
    ready: VecDeque<u64>,
    /// Delayed and in-flight messages by the time at which they become visible.
    hidden: BTreeSet<(Duration, u64)>,
    dead: Vec<DeadLetter<B>>,
    next_serial: u64,
    counts: Counts,
    totals: Totals,
    /// How many messages were received so many times; the index is the number of times.
    receive_counts: Vec<u64>,
    ages: BTreeMap<u64, u64>,
}

/// What a queue is told when it is made. All but the seed can be changed later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// How long a received message stays hidden if the receive does not say.
    pub visibility_timeout: Duration,
    /// How many messages can be in flight. SQS allows about 120,000 in a standard queue.
    pub in_flight_cap: usize,
    /// A message that was received so many times is not handed out again but becomes a dead letter.
    pub max_receive_count: Option<u32>,
    /// Makes message ids and receipt handles differ between queues. The same seed and the same calls
    /// give the same ids and handles.
    pub seed: u64,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { visibility_timeout: Duration::from_secs(30), in_flight_cap: 120_000, max_receive_count: None, seed: 0 }
    }
}

/// A message as a receive hands it out.
#[derive(Clone)]
pub struct Received<B> {
    /// The message's own id: the same for every receive, kept when it becomes a dead letter.
    pub id: Uuid,
    /// Deletes the message, or changes how long it stays hidden. New with every receive.
    pub handle: ReceiptHandle,
    /// The body.
    pub body: B,
    /// How often the message was received, this time included.
    pub receive_count: u32,
    /// When it was sent.
    pub sent_at: Duration,
    /// When it was received for the first time.
    pub first_received_at: Duration,
}

/// A message that was received too often.
#[derive(Clone)]
pub struct DeadLetter<B> {
    /// The message's own id.
    pub id: Uuid,
    /// The body.
    pub body: B,
    /// How often it was received.
    pub receive_count: u32,
    /// When it was sent to the queue that gave it up.
    pub sent_at: Duration,
}

/// The messages that a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Can be received now (`ApproximateNumberOfMessages`).
    pub visible: usize,
    /// Received and hidden (`ApproximateNumberOfMessagesNotVisible`).
    pub in_flight: usize,
    /// Sent with a delay that is not over (`ApproximateNumberOfMessagesDelayed`).
    pub delayed: usize,
}

/// What became of all messages since the queue was made.
/// `sent` = `deleted` + `purged` + `dead` + `moved` + everything in [`Counts`], at all times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages that came in, dead letters of other queues included.
    pub sent: u64,
    /// Times that a message was handed out.
    pub received: u64,
    /// Of these, the times that it was not the message's first.
    pub redelivered: u64,
    /// Messages deleted by handle.
    pub deleted: u64,
    /// Messages removed by a purge.
    pub purged: u64,
    /// Messages that became dead letters.
    pub dead: u64,
    /// Messages moved to another queue.
    pub moved: u64,
}

/// What a delete did. In SQS all three are a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// The message is gone now.
    Deleted,
    /// It was gone before.
    Gone,
    /// The message was received again since: the handle is too old, and the message stays. SQS
    /// documents for standard queues that "the request will succeed, but the message might not be
    /// deleted" (API reference, DeleteMessage). Here it never is, so that a consumer that relies on
    /// it shows.
    Superseded,
}

/// The queue never gave out this handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownHandle;

/// Why the visibility of a message was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisibilityError {
    /// The queue never gave out this handle.
    UnknownHandle,
    /// The message was deleted, purged or given up.
    Gone,
    /// The message is not in flight under this handle: it is visible again, or received again.
    NotInFlight,
}

impl<B: Clone> LocalQueue<B> {
    /// An empty queue.
    pub fn new(settings: QueueSettings) -> Self {
        Self {
            seed: settings.seed,
            settings,
            messages: HashMap::new(),
            ready: VecDeque::new(),
            hidden: BTreeSet::new(),
            dead: Vec::new(),
            next_serial: 0,
            counts: Counts::default(),
            totals: Totals::default(),
            receive_counts: vec![0],
            ages: BTreeMap::new(),
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &QueueSettings {
        &self.settings
    }

    /// The settings, to change them. What is already hidden stays so as long as it was told.
    pub fn settings_mut(&mut self) -> &mut QueueSettings {
        &mut self.settings
    }

    /// Takes a message in, to become visible after `delay`. Returns its id.
    pub fn send(&mut self, body: B, delay: Duration, now: Duration) -> Uuid {
        let id = self.message_id();
        self.admit(id, body, now, delay, now);
        id
    }

    /// Takes in a dead letter of another queue: visible at once, under its own id and age, received
    /// by nobody so far.
    pub fn accept(&mut self, letter: DeadLetter<B>, now: Duration) {
        self.admit(letter.id, letter.body, letter.sent_at, Duration::ZERO, now);
    }

    /// Hands out up to `max` visible messages and hides them for `visibility`, or for the queue's own
    /// timeout. Fewer where fewer are visible or the in-flight cap is near: none at the cap.
    ///
    /// Messages that were received too often do not count: they go to
    /// [`take_dead_letters`](Self::take_dead_letters).
    pub fn receive(&mut self, max: usize, visibility: Option<Duration>, now: Duration) -> Vec<Received<B>> {
        self.advance(now);
        let room = self.settings.in_flight_cap.saturating_sub(self.counts.in_flight);
        let until = now.saturating_add(visibility.unwrap_or(self.settings.visibility_timeout));
        let mut received = Vec::new();
        while received.len() < max.min(room) {
            let Some(serial) = self.ready.pop_front() else {
                break;
            };
            match self.messages.get(&serial).map(|message| message.receive_count) {
                None => {} // deleted while it was visible
                Some(count) if self.settings.max_receive_count.is_some_and(|max| count >= max) => {
                    self.bury(serial);
                }
                Some(_) => received.extend(self.hand_out(serial, until, now)),
            }
        }
        received
    }

    /// Deletes the message of the handle, also if it is visible again, but only if the handle is the
    /// newest one of its message.
    ///
    /// # Errors
    /// If the handle is not one of this queue.
    pub fn delete(&mut self, handle: ReceiptHandle, now: Duration) -> Result<Deletion, UnknownHandle> {
        self.advance(now);
        if !self.knows(handle) {
            return Err(UnknownHandle);
        }
        let Some(message) = self.messages.get(&handle.serial) else {
            return Ok(Deletion::Gone);
        };
        if message.receive_count != handle.receive {
            return Ok(Deletion::Superseded);
        }
        let age = now.saturating_sub(message.sent_at);
        *self.ages.entry(rounded(age.as_millis() as u64)).or_default() += 1;
        self.remove(handle.serial);
        self.totals.deleted += 1;
        Ok(Deletion::Deleted)
    }

    /// Hides the message of the handle for `timeout` from now on; zero makes it visible at once.
    ///
    /// # Errors
    /// If the handle is not one of this queue or its message is not in flight under it.
    pub fn change_visibility(
        &mut self,
        handle: ReceiptHandle,
        timeout: Duration,
        now: Duration,
    ) -> Result<(), VisibilityError> {
        self.advance(now);
        if !self.knows(handle) {
            return Err(VisibilityError::UnknownHandle);
        }
        let message = self.messages.get_mut(&handle.serial).ok_or(VisibilityError::Gone)?;
        let State::InFlight(until) = message.state else {
            return Err(VisibilityError::NotInFlight);
        };
        if message.receive_count != handle.receive {
            return Err(VisibilityError::NotInFlight);
        }
        let later = now.saturating_add(timeout);
        message.state = State::InFlight(later);
        self.hidden.remove(&(until, handle.serial));
        self.hidden.insert((later, handle.serial));
        Ok(())
    }

    /// The message that is next to be received.
    pub fn next_visible(&mut self, now: Duration) -> Option<Uuid> {
        self.advance(now);
        while self.ready.front().is_some_and(|serial| !self.messages.contains_key(serial)) {
            self.ready.pop_front(); // deleted while it was visible
        }
        self.ready.front().and_then(|serial| Some(self.messages.get(serial)?.id))
    }

    /// Takes the message that is next to be received out of the queue, to be moved to another.
    pub fn withdraw(&mut self, now: Duration) -> Option<DeadLetter<B>> {
        self.next_visible(now)?;
        let message = self.ready.pop_front().and_then(|serial| self.remove(serial))?;
        self.totals.moved += 1;
        let Message { id, body, receive_count, sent_at, .. } = message;
        Some(DeadLetter { id, body, receive_count, sent_at })
    }

    /// Removes every message, also those in flight and delayed. Totals and receive counts stay.
    pub fn purge(&mut self) {
        self.totals.purged += self.messages.len() as u64;
        self.messages.clear();
        self.ready.clear();
        self.hidden.clear();
        self.counts = Counts::default();
    }

    /// The dead letters since the last call, oldest first.
    pub fn take_dead_letters(&mut self) -> Vec<DeadLetter<B>> {
        std::mem::take(&mut self.dead)
    }

    /// Whether a receive would find something now. The one question of a long poll.
    pub fn has_deliverable(&mut self, now: Duration) -> bool {
        self.advance(now);
        self.counts.visible > 0 && self.counts.in_flight < self.settings.in_flight_cap
    }

    /// When the next hidden message becomes visible by itself. A long poll that found nothing has
    /// nothing to look for before, unless something is sent, released or (at the cap) deleted.
    pub fn next_visible_at(&self) -> Option<Duration> {
        self.hidden.first().map(|&(at, _)| at)
    }

    /// How many messages the queue holds now.
    pub fn counts(&mut self, now: Duration) -> Counts {
        self.advance(now);
        self.counts
    }

    /// What became of all messages so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many messages were received so many times (the index), those that are gone included.
    pub fn receive_counts(&self) -> &[u64] {
        &self.receive_counts
    }

    /// The most times that any message was received, those that are gone included.
    pub fn max_receive_count(&self) -> usize {
        self.receive_counts.len() - 1
    }

    /// How old the deleted messages were, from their sending to their delete, and how many were so old. In milliseconds,
    /// rounded down by less than 1 %.
    pub fn ages(&self) -> &BTreeMap<u64, u64> {
        &self.ages
    }

    /// The bodies of all messages that the queue holds, oldest first.
    pub fn bodies(&self) -> Vec<B> {
        let mut serials: Vec<_> = self.messages.iter().collect();
        serials.sort_unstable_by_key(|&(serial, _)| serial);
        serials.into_iter().map(|(_, message)| message.body.clone()).collect()
    }

    /// Looks like a random id (version 4), because those of SQS do.
    fn message_id(&self) -> Uuid {
        let bits = (u128::from(self.seed) << 64) | u128::from(self.next_serial);
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }

    fn admit(&mut self, id: Uuid, body: B, sent_at: Duration, delay: Duration, now: Duration) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let state = if delay.is_zero() {
            self.ready.push_back(serial);
            self.counts.visible += 1;
            State::Visible
        } else {
            let until = now.saturating_add(delay);
            self.hidden.insert((until, serial));
            self.counts.delayed += 1;
            State::Delayed(until)
        };
        let message = Message { id, body, state, receive_count: 0, sent_at, first_received_at: None };
        self.messages.insert(serial, message);
        self.totals.sent += 1;
        self.receive_counts[0] += 1;
    }

    /// Makes visible what is due.
    fn advance(&mut self, now: Duration) {
        while let Some(&(at, serial)) = self.hidden.first()
            && at <= now
        {
            self.hidden.pop_first();
            if let Some(message) = self.messages.get_mut(&serial) {
                self.counts.leave(message.state);
                self.counts.visible += 1;
                message.state = State::Visible;
                self.ready.push_back(serial);
            }
        }
    }

    fn hand_out(&mut self, serial: u64, until: Duration, now: Duration) -> Option<Received<B>> {
        let message = self.messages.get_mut(&serial)?;
        self.receive_counts[message.receive_count as usize] -= 1;
        message.receive_count += 1;
        if self.receive_counts.len() == message.receive_count as usize {
            self.receive_counts.push(0);
        }
        self.receive_counts[message.receive_count as usize] += 1;
        self.totals.received += 1;
        self.totals.redelivered += u64::from(message.receive_count > 1);

        message.state = State::InFlight(until);
        self.hidden.insert((until, serial));
        self.counts.visible -= 1;
        self.counts.in_flight += 1;
        Some(Received {
            id: message.id,
            handle: ReceiptHandle { queue: self.seed, serial, receive: message.receive_count },
            body: message.body.clone(),
            receive_count: message.receive_count,
            sent_at: message.sent_at,
            first_received_at: *message.first_received_at.get_or_insert(now),
        })
    }

    fn bury(&mut self, serial: u64) {
        if let Some(message) = self.remove(serial) {
            self.totals.dead += 1;
            self.dead.push(DeadLetter {
                id: message.id,
                body: message.body,
                receive_count: message.receive_count,
                sent_at: message.sent_at,
            });
        }
    }

    fn remove(&mut self, serial: u64) -> Option<Message<B>> {
        let message = self.messages.remove(&serial)?;
        self.counts.leave(message.state);
        if let State::InFlight(until) | State::Delayed(until) = message.state {
            self.hidden.remove(&(until, serial));
        }
        Some(message)
    }

    fn knows(&self, handle: ReceiptHandle) -> bool {
        handle.queue == self.seed && handle.serial < self.next_serial && handle.receive > 0
    }
}

/// Keeps the first eight bits, so that there are few different ages.
fn rounded(millis: u64) -> u64 {
    let drop = (u64::BITS - millis.leading_zeros()).saturating_sub(8);
    millis >> drop << drop
}

/// Stands for one receive of one message. Opaque to consumers; text on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReceiptHandle {
    queue: u64,
    serial: u64,
    receive: u32,
}

/// The text is about as long as that of SQS, so that requests are as long and as dear to sign.
const HANDLE_PADDING: &str = match std::str::from_utf8(&[b'A'; 372]) {
    Ok(padding) => padding,
    Err(_) => panic!("the letter A is UTF-8"),
};

impl fmt::Display for ReceiptHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HANDLE_PADDING}{:016x}{:016x}{:08x}", self.queue, self.serial, self.receive)
    }
}

impl FromStr for ReceiptHandle {
    type Err = UnknownHandle;

    fn from_str(text: &str) -> Result<Self, UnknownHandle> {
        let digits = text.strip_prefix(HANDLE_PADDING).ok_or(UnknownHandle)?;
        if digits.len() != 40 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(UnknownHandle);
        }
        let part = |range| u64::from_str_radix(&digits[range], 16).map_err(|_| UnknownHandle);
        Ok(Self {
            queue: part(0..16)?,
            serial: part(16..32)?,
            receive: u32::try_from(part(32..40)?).map_err(|_| UnknownHandle)?,
        })
    }
}

impl fmt::Debug for ReceiptHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReceiptHandle(..)")
    }
}

struct Message<B> {
    id: Uuid,
    body: B,
    state: State,
    receive_count: u32,
    sent_at: Duration,
    first_received_at: Option<Duration>,
}

#[derive(Clone, Copy)]
enum State {
    Visible,
    Delayed(Duration),
    InFlight(Duration),
}

impl Counts {
    fn leave(&mut self, state: State) {
        match state {
            State::Visible => self.visible -= 1,
            State::Delayed(_) => self.delayed -= 1,
            State::InFlight(_) => self.in_flight -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn queue() -> LocalQueue<&'static str> {
        LocalQueue::new(QueueSettings::default())
    }

    /// Receives one message that must be there.
    fn one<B: Clone>(queue: &mut LocalQueue<B>, now: Duration) -> Received<B> {
        queue.receive(1, None, now).pop().expect("a message is visible")
    }

    fn counts(visible: usize, in_flight: usize, delayed: usize) -> Counts {
        Counts { visible, in_flight, delayed }
    }

    #[test]
    fn a_received_message_is_hidden_until_its_timeout_and_comes_back_older() {
        let mut queue = queue();
        let id = queue.send("a", Duration::ZERO, at(5));
        let first = one(&mut queue, at(10));
        assert!(queue.receive(10, None, at(39)).is_empty());
        assert_eq!(queue.counts(at(39)), counts(0, 1, 0));
        let second = one(&mut queue, at(40));
        assert_eq!((first.id, second.id), (id, id));
        assert_eq!((first.receive_count, second.receive_count), (1, 2));
        assert_eq!((second.sent_at, second.first_received_at), (at(5), at(10)));
        assert_ne!(first.handle, second.handle);
    }

    #[test]
    fn the_receive_says_how_long_to_hide() {
        let mut queue = queue();
        queue.send("a", Duration::ZERO, at(0));
        queue.receive(1, Some(at(100)), at(0));
        assert_eq!(queue.next_visible_at(), Some(at(100)));
        assert!(!queue.has_deliverable(at(99)));
        assert!(queue.has_deliverable(at(100)));
    }

    #[test]
    fn the_ages_of_deleted_messages_are_kept_and_nearly_exact() {
        let mut queue = queue();
        for sent in [0, 0, 100] {
            queue.send("old", Duration::ZERO, at(sent));
        }
        for deleted in [7, 1_000, 1_000] {
            let received = one(&mut queue, at(deleted));
            assert_eq!(queue.delete(received.handle, at(deleted)), Ok(Deletion::Deleted));
            assert_eq!(queue.delete(received.handle, at(deleted)), Ok(Deletion::Gone));
        }
        let ages: Vec<_> = queue.ages().iter().map(|(millis, times)| (*millis, *times)).collect();
        let near = |found: u64, exact: u64| found <= exact && (exact - found) * 100 < exact;
        assert!(near(ages[0].0, 7_000) && near(ages[1].0, 900_000) && near(ages[2].0, 1_000_000), "{ages:?}");
        assert!(ages.iter().all(|(_, times)| *times == 1));
    }

    #[test]
    fn a_deleted_message_never_comes_back_and_can_be_deleted_again() {
        let mut queue = queue();
        queue.send("a", Duration::ZERO, at(0));
        let handle = one(&mut queue, at(0)).handle;
        assert_eq!(queue.delete(handle, at(1)), Ok(Deletion::Deleted));
        assert_eq!(queue.delete(handle, at(1)), Ok(Deletion::Gone));
        assert!(queue.receive(10, None, HOUR).is_empty());
        assert_eq!(queue.counts(HOUR), Counts::default());
    }

    #[test]
    fn the_newest_handle_deletes_also_after_its_timeout() {
        let mut queue = queue();
        queue.send("a", Duration::ZERO, at(0));
        queue.send("b", Duration::ZERO, at(0));
        let handle = one(&mut queue, at(0)).handle;
        assert_eq!(queue.delete(handle, HOUR), Ok(Deletion::Deleted));
        let rest: Vec<_> = queue.receive(10, None, HOUR).iter().map(|m| m.body).collect();
        assert_eq!(rest, ["b"]);
    }

    #[test]
    fn a_superseded_handle_deletes_nothing_and_hides_nothing() {
        let mut queue = queue();
        queue.send("a", Duration::ZERO, at(0));
        let old = one(&mut queue, at(0)).handle;
        let new = one(&mut queue, at(30)).handle;
        assert_eq!(queue.delete(old, at(31)), Ok(Deletion::Superseded));
        assert_eq!(queue.change_visibility(old, HOUR, at(31)), Err(VisibilityError::NotInFlight));
        assert_eq!(queue.next_visible_at(), Some(at(60)));
        assert_eq!(queue.delete(new, at(31)), Ok(Deletion::Deleted));
    }

    #[test]
    fn a_handle_of_another_queue_is_unknown() {
        let mut other = LocalQueue::new(QueueSettings { seed: 1, ..QueueSettings::default() });
        other.send("a", Duration::ZERO, at(0));
        let handle = one(&mut other, at(0)).handle;
        let mut queue = queue();
        queue.send("a", Duration::ZERO, at(0));
        one(&mut queue, at(0));
        assert_eq!(queue.delete(handle, at(0)), Err(UnknownHandle));
        assert_eq!(queue.change_visibility(handle, HOUR, at(0)), Err(VisibilityError::UnknownHandle));
    }

    #[test]
    fn visibility_counts_from_the_change_and_zero_releases() {
        let mut queue = queue();
        queue.send("a", Duration::ZERO, at(0));
        let handle = one(&mut queue, at(0)).handle;
        assert_eq!(queue.change_visibility(handle, at(60), at(20)), Ok(()));
        assert_eq!(queue.next_visible_at(), Some(at(80)));
        assert_eq!(queue.change_visibility(handle, Duration::ZERO, at(21)), Ok(()));
        assert_eq!(queue.counts(at(21)), counts(1, 0, 0));
        assert_eq!(queue.change_visibility(handle, at(60), at(21)), Err(VisibilityError::NotInFlight));
        queue.purge();
        assert_eq!(queue.change_visibility(handle, at(60), at(21)), Err(VisibilityError::Gone));
    }

    #[test]
    fn a_delayed_message_waits() {
        let mut queue = queue();
        queue.send("a", at(10), at(0));
        assert!(queue.receive(1, None, at(9)).is_empty());
        assert_eq!(queue.counts(at(9)), counts(0, 0, 1));
        assert_eq!(one(&mut queue, at(10)).receive_count, 1);
    }

    #[test]
    fn at_the_in_flight_cap_receives_are_empty_until_something_is_deleted() {
        let settings = QueueSettings { in_flight_cap: 2, ..QueueSettings::default() };
        let mut queue = LocalQueue::new(settings);
        (0..5).for_each(|n| {
            queue.send(n, Duration::ZERO, at(0));
        });
        let received = queue.receive(10, None, at(0));
        assert_eq!(received.len(), 2);
        assert!(!queue.has_deliverable(at(1)));
        assert!(queue.receive(10, None, at(1)).is_empty());
        assert_eq!(queue.delete(received[0].handle, at(1)), Ok(Deletion::Deleted));
        assert_eq!(queue.receive(10, None, at(1)).len(), 1);
    }

    #[test]
    fn a_message_received_too_often_becomes_a_dead_letter_of_the_same_id() {
        let settings = QueueSettings { max_receive_count: Some(2), ..QueueSettings::default() };
        let mut queue = LocalQueue::new(settings);
        let id = queue.send("poison", Duration::ZERO, at(7));
        queue.send("fine", at(63), at(7));
        one(&mut queue, at(10));
        one(&mut queue, at(40));
        assert!(queue.take_dead_letters().is_empty());
        // The dead letter does not use up the one message that is asked for.
        assert_eq!(one(&mut queue, at(70)).body, "fine");
        let letter = queue.take_dead_letters().pop().expect("there is a dead letter");
        assert_eq!((letter.id, letter.receive_count), (id, 2));

        let mut heir = LocalQueue::new(QueueSettings { seed: 9, ..QueueSettings::default() });
        heir.accept(letter, at(70));
        let inherited = one(&mut heir, at(70));
        assert_eq!((inherited.id, inherited.body), (id, "poison"));
        assert_eq!((inherited.sent_at, inherited.receive_count), (at(7), 1));
    }

    #[test]
    fn receive_counts_remember_what_is_gone() {
        let mut queue = queue();
        queue.send("never", HOUR, at(0));
        queue.send("a", Duration::ZERO, at(0));
        queue.send("b", Duration::ZERO, at(0));
        let a = one(&mut queue, at(0));
        assert_eq!(queue.delete(a.handle, at(0)), Ok(Deletion::Deleted));
        for round in 0..3 {
            assert_eq!(one(&mut queue, at(30 * round)).body, "b");
        }
        queue.purge();
        assert_eq!(queue.receive_counts(), [1, 1, 0, 1]);
        assert_eq!(queue.max_receive_count(), 3);
        assert_eq!(queue.totals().redelivered, 2);
    }

    #[test]
    fn a_handle_survives_its_text_and_shows_nothing_in_debug() {
        let mut queue = queue();
        queue.send("a", Duration::ZERO, at(0));
        let handle = one(&mut queue, at(0)).handle;
        assert_eq!(handle.to_string().parse(), Ok(handle));
        for garbage in ["", "AQEB", &handle.to_string()[1..], &format!("{handle}0")] {
            assert_eq!(garbage.parse::<ReceiptHandle>(), Err(UnknownHandle));
        }
        assert_eq!(format!("{handle:?}"), "ReceiptHandle(..)");
    }

    /// What a consumer can do. Handles are named by the order in which they were received.
    #[derive(Clone, Debug)]
    enum Step {
        Send { delay: u64 },
        Receive { max: usize, visibility: u64 },
        Delete { handle: prop::sample::Index },
        ChangeVisibility { handle: prop::sample::Index, timeout: u64 },
        Wait { seconds: u64 },
        Purge,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3_u64).prop_map(|delay| Step::Send { delay }),
            4 => (1..4_usize, 0..5_u64)
                .prop_map(|(max, visibility)| Step::Receive { max, visibility }),
            3 => any::<prop::sample::Index>().prop_map(|handle| Step::Delete { handle }),
            2 => (any::<prop::sample::Index>(), 0..5_u64)
                .prop_map(|(handle, timeout)| Step::ChangeVisibility { handle, timeout }),
            3 => (1..4_u64).prop_map(|seconds| Step::Wait { seconds }),
            1 => Just(Step::Purge),
        ]
    }

    /// What the outside knows of a message.
    #[derive(Clone, Copy, Default)]
    struct Known {
        newest: Option<ReceiptHandle>,
        hidden_until: Duration,
        gone: bool,
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_or_shown_while_hidden(
            steps in prop::collection::vec(step(), 1..120),
            max_receive_count in prop::option::of(1..4_u32),
            in_flight_cap in 1..6_usize,
        ) {
            let settings = QueueSettings {
                max_receive_count,
                in_flight_cap,
                ..QueueSettings::default()
            };
            let mut queue = LocalQueue::new(settings);
            let mut known: Vec<Known> = Vec::new();
            let mut handles: Vec<(usize, ReceiptHandle)> = Vec::new();
            let mut now = at(0);
            let mut dead = 0;
            for step in steps {
                match step {
                    Step::Send { delay } => {
                        queue.send(known.len(), at(delay), now);
                        known.push(Known { hidden_until: now + at(delay), ..Known::default() });
                    }
                    Step::Receive { max, visibility } => {
                        let visible = known.iter().filter(|k| !k.gone && k.hidden_until <= now).count();
                        let received = queue.receive(max, Some(at(visibility)), now);
                        let letters = queue.take_dead_letters();
                        dead += letters.len() as u64;
                        let room = in_flight_cap - (queue.counts.in_flight - received.len());
                        let wanted = max.min(room);
                        let full = received.len() == wanted;
                        let empty = received.len() + letters.len() == visible;
                        prop_assert!(received.len() <= wanted && (full || empty));
                        for message in received {
                            let known = &mut known[message.body];
                            prop_assert!(!known.gone && known.hidden_until <= now);
                            known.newest = Some(message.handle);
                            known.hidden_until = now + at(visibility);
                            handles.push((message.body, message.handle));
                        }
                        for letter in letters {
                            prop_assert_eq!(Some(letter.receive_count), max_receive_count);
                            known[letter.body].gone = true;
                        }
                    }
                    Step::Delete { handle } if !handles.is_empty() => {
                        let (body, handle) = *handle.get(&handles);
                        let deletion = queue.delete(handle, now);
                        let expected = match known[body] {
                            Known { gone: true, .. } => Deletion::Gone,
                            Known { newest, .. } if newest != Some(handle) => Deletion::Superseded,
                            _ => Deletion::Deleted,
                        };
                        prop_assert_eq!(deletion, Ok(expected));
                        known[body].gone |= expected == Deletion::Deleted;
                    }
                    Step::ChangeVisibility { handle, timeout } if !handles.is_empty() => {
                        let (body, handle) = *handle.get(&handles);
                        let changed = queue.change_visibility(handle, at(timeout), now);
                        let known = &mut known[body];
                        let in_flight = known.newest == Some(handle) && known.hidden_until > now;
                        prop_assert_eq!(changed.is_ok(), in_flight && !known.gone);
                        if changed.is_ok() {
                            known.hidden_until = now + at(timeout);
                        }
                    }
                    Step::Delete { .. } | Step::ChangeVisibility { .. } => {}
                    Step::Wait { seconds } => now += at(seconds),
                    Step::Purge => {
                        queue.purge();
                        known.iter_mut().for_each(|known| known.gone = true);
                    }
                }
                let counts = queue.counts(now);
                let held = counts.visible + counts.in_flight + counts.delayed;
                let totals = queue.totals();
                prop_assert_eq!(totals.dead, dead);
                prop_assert_eq!(
                    totals.sent,
                    held as u64 + totals.deleted + totals.purged + totals.dead
                );
                prop_assert_eq!(totals.sent, queue.receive_counts().iter().sum::<u64>());
                let living = known.iter().filter(|known| !known.gone);
                let visible = living.clone().filter(|known| known.hidden_until <= now).count();
                prop_assert_eq!((held, counts.visible), (living.clone().count(), visible));
                let next = living.map(|k| k.hidden_until).filter(|&until| until > now).min();
                prop_assert_eq!(queue.next_visible_at(), next);
            }
        }
    }
}
