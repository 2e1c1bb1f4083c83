//! Is it keeping up? One answer from the queues, the workers' heartbeats and the database.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::{sync::OnceCell, time::timeout};

use crate::{
    aws::name_of,
    pipeline::Queue as _,
    postgres::{
        Postgres,
        letting_go::{self, FEWEST_MONTHS_AHEAD},
        pulse::{self, DatabaseHealth, LastEvent, WorkerSeen},
        schema::{self, Finding, Severity},
    },
    pulse::{ALIVE, Counts, Identities, LAG_ENDS, Minute},
    readable::{plural, span},
    retention::standing::Standing,
    sqs::{Sqs, SqsSettings},
};

/// What SQS charges for a million requests, in dollars.
pub const DOLLARS_PER_MILLION_REQUESTS: f64 = 0.40;
/// How long a queue may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// An orphan that waits longer needs somebody: its mail was not sent by this application, or its log row is missing.
const ORPHAN_IS_OLD: Duration = Duration::from_secs(3_600);
const MINUTE: time::Duration = time::Duration::minutes(1);
const HOUR: time::Duration = time::Duration::hours(1);

/// What was asked for, or why it could not be found out.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Asked<T> {
    Known(T),
    Unknown { unknown: String },
}

/// Everything that `ses-ledger status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// None if nobody said which queues to ask.
    pub queues: Vec<QueueState>,
    /// Over the last full minute; if nobody ran then, over what has passed of the present one.
    pub last_minute: Rate,
    /// The present minute included.
    pub last_hour: Rate,
    pub last_events: Vec<LastEvent>,
    /// Those of the last two days: alive, stopped, or gone without a word.
    pub workers: Vec<WorkerSeen>,
    pub database: DatabaseHealth,
    /// What is not as this binary needs it.
    pub schema: Vec<Finding>,
    /// The sum over the workers that were seen within the last hour, each since its start.
    pub identities: Identities,
    pub cost: Cost,
    pub retention: Standing,
}

/// A queue, as it was when it was asked.
#[derive(Clone, Debug, Serialize)]
pub struct QueueState {
    /// Its ARN.
    pub name: String,
    /// Messages that wait.
    pub visible: Asked<u64>,
    pub in_flight: Asked<u64>,
    pub delayed: Asked<u64>,
    /// ARN of its dead-letter queue.
    pub dead_letter_queue: Option<String>,
    pub dead_letters: Asked<u64>,
    /// Of the messages received in the last minute, how old the oldest was.
    pub oldest_age_seconds: Asked<f64>,
    /// As in [`Status::last_minute`].
    pub deleted_per_second: f64,
    /// How long the backlog takes at this rate, if no more came in.
    pub drain_seconds: Asked<f64>,
    /// Known only to who looks twice: see [`Status::compare`].
    pub sent_per_second: Option<f64>,
}

/// What was done over a time that is over.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    pub seconds: u32,
    #[serde(flatten)]
    pub counts: Counts,
    pub messages_per_second: f64,
    pub events_per_second: f64,
    /// From when something happened to when its event was committed; of the events that became a new row.
    pub lag: Asked<Lag>,
}

/// How late events were, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lag {
    pub events: i64,
    pub p50_seconds: f64,
    pub p95_seconds: f64,
}

/// What SQS costs, over the last hour.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    pub requests: i64,
    pub receives: i64,
    pub delete_requests: i64,
    pub visibility_requests: i64,
    pub events: i64,
    pub dollars_per_million_events: Asked<f64>,
    /// Messages per receive that brought any, of ten.
    pub fill: Asked<f64>,
    /// Receives that brought nothing, of all: 0 to 1.
    pub idle: Asked<f64>,
}

/// Asks all, in little time.
///
/// # Errors
/// If the database cannot be read. What a queue does not tell is unknown.
pub async fn status(postgres: &Postgres, queues: Vec<QueueState>) -> anyhow::Result<Status> {
    let (database, schema) = (pulse::health(postgres).await?, schema::verify_for_reading(postgres).await?);
    let workers = pulse::workers(postgres, ALIVE).await?;
    let minutes = pulse::minutes(postgres, database.now - Duration::from_secs(3_720)).await?;
    let recent = Recent::of(&minutes, &workers, database.now);
    let (last_minute, last_hour) = (recent.rate(), Rate::of_hour(&minutes, database.now));
    let identities = workers
        .iter()
        .filter(|worker| database.now - worker.seen_at < HOUR)
        .fold(Identities::default(), |sum, worker| sum.plus(worker.identities));
    let cost = Cost::of(&last_hour.counts);
    let retention = Standing::of(&letting_go::past(postgres).await?, &workers);
    Ok(Status {
        queues: queues.into_iter().map(|queue| queue.with(&recent)).collect(),
        last_minute,
        last_hour,
        last_events: pulse::last_events(postgres).await?,
        workers,
        database,
        schema,
        identities,
        cost,
        retention,
    })
}

/// Queues to ask, perhaps again and again.
pub struct Queues(Vec<Watched>);

struct Watched {
    settings: SqsSettings,
    queue: anyhow::Result<Sqs>,
    /// Known when the queue has told its name.
    dead_letters: OnceCell<Sqs>,
}

impl Queues {
    /// Prepares the clients; asks nobody yet.
    pub async fn new(settings: Vec<SqsSettings>) -> Self {
        let watched = settings.into_iter().map(async |settings| {
            let queue = Sqs::new(&settings).await;
            Watched { settings, queue, dead_letters: OnceCell::new() }
        });
        Self(join_all(watched).await)
    }

    /// Asks each queue, all at the same time, and its dead-letter queue.
    pub async fn ask(&self) -> Vec<QueueState> {
        join_all(self.0.iter().map(Watched::ask)).await
    }
}

/// Asks each queue once.
pub async fn ask(queues: &[SqsSettings]) -> Vec<QueueState> {
    Queues::new(queues.to_vec()).await.ask().await
}

impl Status {
    /// What needs somebody, each with what to do next. Empty: all is well, as far as it is known.
    pub fn needs_somebody(&self) -> Vec<String> {
        let mut needs = Vec::new();
        self.about_workers(&mut needs);
        for queue in &self.queues {
            if let Asked::Unknown { unknown } = &queue.visible {
                needs.push(format!("whether {} keeps up is not known: {unknown}", queue.short_name()));
            }
            if let Asked::Known(letters @ 1..) = queue.dead_letters {
                let dead = queue.dead_letter_queue.as_deref().map_or("its dead-letter queue", name_of);
                let letters = plural(letters, "dead letter", "dead letters");
                needs.push(format!("{letters} in {dead}: ses-ledger dlq peek"));
            }
        }
        self.about_database(&mut needs);
        needs.extend(self.retention.needs());
        needs
    }

    /// Workers that were seen lately.
    pub fn alive(&self) -> impl Iterator<Item = &WorkerSeen> {
        self.workers.iter().filter(|worker| worker.alive)
    }

    /// Workers of the last hour that said goodbye.
    pub fn stopped(&self) -> impl Iterator<Item = &WorkerSeen> {
        self.of_last_hour().filter(|worker| worker.stopped_at.is_some())
    }

    /// Workers of the last hour that are gone without a word. A Lambda function that has nothing to do only sleeps.
    pub fn missing(&self) -> impl Iterator<Item = &WorkerSeen> {
        self.of_last_hour().filter(|worker| !worker.alive && worker.stopped_at.is_none() && worker.runtime != "lambda")
    }

    /// What comes in: known by the change of what the queue holds since an earlier look, and by what was taken out.
    pub fn compare(&mut self, earlier: &Self) {
        let seconds = (self.database.now - earlier.database.now).as_seconds_f64();
        for queue in &mut self.queues {
            let before = earlier.queues.iter().find(|before| before.name == queue.name).and_then(QueueState::holds);
            if let (Some(before), Some(now)) = (before, queue.holds())
                && seconds >= 1.0
            {
                let growth = (now as f64 - before as f64) / seconds;
                queue.sent_per_second = Some((growth + queue.deleted_per_second).max(0.0));
            }
        }
    }

    fn of_last_hour(&self) -> impl Iterator<Item = &WorkerSeen> {
        self.workers.iter().filter(|worker| self.database.now - worker.seen_at < HOUR)
    }

    fn about_workers(&self, needs: &mut Vec<String>) {
        let waiting: u64 = self.queues.iter().filter_map(|queue| queue.visible.known()).sum();
        if self.alive().next().is_none() {
            if waiting > 0 {
                let waiting = plural(waiting, "message waits", "messages wait");
                needs.push(format!("no worker is alive, and {waiting}: ses-ledger run"));
            } else if self.missing().next().is_some() {
                needs.push("no worker is alive, and the last one did not say goodbye: ses-ledger run".to_owned());
            }
        }
        let Identities { messages_drift, events_drift, .. } = self.identities;
        if (messages_drift, events_drift) != (0, 0) {
            needs.push(format!(
                "the counts do not add up, by {messages_drift} messages and {events_drift} events: please report this as a \
                 fault of ses-ledger, with the worker's log"
            ));
        }
    }

    fn about_database(&self, needs: &mut Vec<String>) {
        let health = &self.database;
        if self.schema.iter().any(|finding| finding.severity == Severity::Error) {
            needs.push("the schema is not what this binary needs: ses-ledger migrate verify".to_owned());
        }
        if health.months_ahead < FEWEST_MONTHS_AHEAD {
            needs.push(format!(
                "partitions are ready for {} only, though a worker makes them every hour: ses-ledger partitions ensure",
                plural(health.months_ahead.unsigned_abs(), "month", "months")
            ));
        }
        if health.quarantined_untried > 0 {
            let bodies = plural(health.quarantined_untried.unsigned_abs(), "body", "bodies");
            needs.push(format!("{bodies} in quarantine that nobody has tried again: ses-ledger quarantine list"));
        }
        let age = seconds(health.oldest_orphan_seconds.unwrap_or_default());
        if age > ORPHAN_IS_OLD {
            let orphans = plural(health.orphans.unsigned_abs(), "orphan waits", "orphans wait");
            needs.push(format!("{orphans} for their mails, the oldest for {}: ses-ledger orphans list", span(age)));
        }
    }
}

impl QueueState {
    /// The name without account and region.
    pub fn short_name(&self) -> &str {
        name_of(&self.name)
    }

    /// What it holds, visible or not.
    fn holds(&self) -> Option<u64> {
        Some(self.visible.known()? + self.in_flight.known()? + self.delayed.known()?)
    }

    fn unknown(name: &str, why: &str) -> Self {
        let unknown = || Asked::unknown(why);
        Self {
            name: name.to_owned(),
            visible: unknown(),
            in_flight: unknown(),
            delayed: unknown(),
            dead_letter_queue: None,
            dead_letters: unknown(),
            oldest_age_seconds: Asked::unknown("nobody received from it in the last minute"),
            deleted_per_second: 0.0,
            drain_seconds: Asked::unknown(why),
            sent_per_second: None,
        }
    }

    /// Adds what the heartbeats know of it.
    fn with(mut self, recent: &Recent<'_>) -> Self {
        let of_queue = |minute: &&Minute| minute.queues.get(&self.name).copied();
        let age = recent.passing.or(recent.minute).and_then(|minute| of_queue(&minute)?.oldest_age_ms);
        if let Some(age) = age.or_else(|| of_queue(&recent.minute?)?.oldest_age_ms) {
            self.oldest_age_seconds = Asked::Known(age as f64 / 1000.0);
        }
        let deleted = recent.minute.as_ref().and_then(of_queue).map_or(0, |minute| minute.deleted);
        self.deleted_per_second = deleted as f64 / f64::from(recent.seconds);
        if let Asked::Known(visible) = self.visible {
            self.drain_seconds = match (visible, deleted) {
                (0, _) => Asked::Known(0.0),
                (_, 0) => Asked::unknown("nothing was taken out in the last minute"),
                _ => Asked::Known(visible as f64 / self.deleted_per_second),
            };
        }
        self
    }
}

/// What was done lately.
struct Recent<'a> {
    /// The last full minute; or, if nobody ran then, the one that passes.
    minute: Option<&'a Minute>,
    /// How much of that is told.
    seconds: u32,
    /// The minute that passes.
    passing: Option<&'a Minute>,
}

impl<'a> Recent<'a> {
    fn of(minutes: &'a [Minute], workers: &[WorkerSeen], now: OffsetDateTime) -> Self {
        // The last beat of a minute comes a moment after it.
        let settled = now - Duration::from_secs(5);
        let full = minutes.iter().find(|minute| (MINUTE..MINUTE * 2).contains(&(settled - minute.minute)));
        let passing = minutes.iter().rfind(|minute| settled - minute.minute < MINUTE);
        let (minute, seconds) = match (full, passing) {
            (Some(full), _) => (Some(full), 60),
            (None, Some(passing)) => (Some(passing), told(passing, workers)),
            (None, None) => (None, 60),
        };
        Self { minute, seconds, passing }
    }

    fn rate(&self) -> Rate {
        Rate::of(self.minute.into_iter(), self.seconds)
    }
}

/// How many seconds of a minute the beats tell of, if somebody started in it.
fn told(minute: &Minute, workers: &[WorkerSeen]) -> u32 {
    let beaten = || workers.iter().filter(|worker| worker.seen_at > minute.minute);
    let start = beaten().map(|worker| worker.started_at).min().unwrap_or(minute.minute).max(minute.minute);
    let end = beaten().map(|worker| worker.seen_at).max().unwrap_or(start);
    (end - start).whole_seconds().clamp(1, 60) as u32
}

impl Rate {
    /// Over the last hour, the present minute included.
    fn of_hour(minutes: &[Minute], now: OffsetDateTime) -> Self {
        Self::of(minutes.iter().filter(|minute| now - minute.minute < HOUR), 3_600)
    }

    fn of<'a>(minutes: impl Iterator<Item = &'a Minute>, seconds: u32) -> Self {
        let mut counts = Counts::default();
        let mut lags = vec![0; LAG_ENDS.len() + 1];
        for minute in minutes {
            counts = counts.plus(minute.counts);
            lags.iter_mut().zip(&minute.lags).for_each(|(sum, lag)| *sum += lag);
        }
        Self {
            seconds,
            messages_per_second: counts.messages() as f64 / f64::from(seconds),
            events_per_second: counts.events() as f64 / f64::from(seconds),
            counts,
            lag: Lag::of(&lags).map_or_else(|| Asked::unknown("no event became a new row"), Asked::Known),
        }
    }
}

impl Lag {
    /// Of counts by bucket; `None` if there is nothing in them.
    pub fn of(lags: &[i64]) -> Option<Self> {
        let events = lags.iter().sum();
        Some(Self { events, p50_seconds: quantile(lags, 0.5)?, p95_seconds: quantile(lags, 0.95)? })
    }
}

/// Lags are told apart up to a limit.
pub(crate) fn is_beyond(lag_seconds: f64) -> bool {
    lag_seconds >= LAG_ENDS[LAG_ENDS.len() - 1]
}

impl Cost {
    fn of(counts: &Counts) -> Self {
        let (requests, events) = (counts.requests(), counts.events());
        let known = |part: f64, whole: i64, why: &str| match whole {
            0 => Asked::unknown(why),
            _ => Asked::Known(part / whole as f64),
        };
        let no_requests = "no worker made a request in the last hour (on Lambda, Lambda itself makes them)";
        let dollars = match requests {
            0 => Asked::unknown(no_requests),
            _ => known(requests as f64 * DOLLARS_PER_MILLION_REQUESTS, events, "no events in the last hour"),
        };
        let with_messages = counts.receives_with_messages;
        Self {
            requests,
            receives: counts.receives(),
            delete_requests: counts.delete_requests,
            visibility_requests: counts.visibility_requests,
            events,
            dollars_per_million_events: dollars,
            fill: known(counts.received as f64, with_messages, "no receive brought a message in the last hour"),
            idle: known(counts.receives_empty as f64, counts.receives(), no_requests),
        }
    }
}

impl<T> Asked<T> {
    pub fn unknown(why: &str) -> Self {
        Self::Unknown { unknown: why.to_owned() }
    }

    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown { .. } => None,
        }
    }
}

impl Watched {
    async fn ask(&self) -> QueueState {
        let queue = match &self.queue {
            Ok(queue) => queue,
            Err(e) => return QueueState::unknown(&self.settings.queue_url, &format!("{e:#}")),
        };
        let name = queue.name();
        let attributes = match attributes(queue).await {
            Ok(attributes) => attributes,
            Err(why) => return QueueState::unknown(&name, &why),
        };
        let [visible, in_flight, delayed] = COUNTS.map(|count| counted(&attributes, &[count]));
        let dead = dead_letter_queue(&attributes);
        let dead_letters = match &dead {
            Some(arn) => self.dead_letters(name_of(arn)).await.unwrap_or_else(|why| Asked::Unknown { unknown: why }),
            None => Asked::unknown("the queue has no dead-letter queue"),
        };
        QueueState {
            visible,
            in_flight,
            delayed,
            dead_letters,
            dead_letter_queue: dead,
            ..QueueState::unknown(&name, "")
        }
    }

    /// A dead-letter queue is in the region and account of its queue: their URLs differ in the name only.
    async fn dead_letters(&self, name: &str) -> Result<Asked<u64>, String> {
        let (place, _) = self.settings.queue_url.rsplit_once('/').ok_or("the queue's URL has no name in it")?;
        let settings = SqsSettings { queue_url: format!("{place}/{name}"), ..self.settings.clone() };
        let queue = self.dead_letters.get_or_try_init(|| Sqs::new(&settings)).await.map_err(|e| format!("{e:#}"))?;
        Ok(counted(&attributes(queue).await?, &COUNTS))
    }
}

/// Waiting, hidden, delayed.
const COUNTS: [&str; 3] =
    ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"];

type Attributes = BTreeMap<String, String>;

/// The sum of these counts.
fn counted(attributes: &Attributes, names: &[&str]) -> Asked<u64> {
    let count = |name: &&str| attributes.get(*name)?.parse::<u64>().ok();
    names.iter().map(count).sum::<Option<u64>>().map_or_else(|| Asked::unknown("the queue does not tell"), Asked::Known)
}

fn dead_letter_queue(attributes: &Attributes) -> Option<String> {
    let policy: serde_json::Value = serde_json::from_str(attributes.get("RedrivePolicy")?).ok()?;
    policy.get("deadLetterTargetArn")?.as_str().map(str::to_owned)
}

async fn attributes(queue: &Sqs) -> Result<Attributes, String> {
    match timeout(PATIENCE, queue.attributes()).await {
        Ok(answer) => answer.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer within {}", span(PATIENCE))),
    }
}

/// As if the lags lay evenly within each bucket; of what is older than all ends, the last end.
fn quantile(lags: &[i64], share: f64) -> Option<f64> {
    let total: i64 = lags.iter().sum();
    let wanted = share * total as f64;
    let mut below = 0.0;
    for (n, count) in lags.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (start, end) = (n.checked_sub(1).map_or(0.0, |n| LAG_ENDS[n]), LAG_ENDS.get(n));
        let inside = below + *count as f64;
        if inside >= wanted {
            let part = (wanted - below) / *count as f64;
            return Some(end.map_or(start, |end| start + (end - start) * part));
        }
        below = inside;
    }
    None
}

/// None below zero.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lags(filled: &[(usize, i64)]) -> Vec<i64> {
        let mut lags = vec![0; LAG_ENDS.len() + 1];
        filled.iter().for_each(|(n, count)| lags[*n] = *count);
        lags
    }

    #[test]
    fn a_quantile_lies_in_the_bucket_that_holds_it() {
        // 90 between 0.5 and 1 s, 10 between 10 and 20 s.
        let lag = Lag::of(&lags(&[(3, 90), (7, 10)])).expect("there are some");
        assert_eq!((lag.events, lag.p95_seconds), (100, 15.0));
        assert!((lag.p50_seconds - (0.5 + 0.5 * 50.0 / 90.0)).abs() < 1e-9, "{lag:?}");
        let oldest = Lag::of(&lags(&[(LAG_ENDS.len(), 1)])).expect("there is one");
        assert_eq!(oldest.p50_seconds, 86_400.0, "older than all that is told apart");
        assert_eq!(Lag::of(&lags(&[])), None);
    }

    fn minute(minute: OffsetDateTime, deleted: i64, age: i64) -> Minute {
        let counts = Counts { stored: deleted, inserted: 2 * deleted, ..Counts::default() };
        let queue = crate::pulse::QueueMinute { received: deleted, deleted, oldest_age_ms: Some(age) };
        Minute { minute, counts, lags: lags(&[(0, 2 * deleted)]), queues: [("q".to_owned(), queue)].into() }
    }

    #[test]
    fn rates_are_those_of_full_minutes() {
        let start = OffsetDateTime::from_unix_timestamp(1_750_000_020 / 60 * 60).expect("it is a time");
        let at = |seconds| start + Duration::from_secs(seconds);
        let minutes = [minute(at(0), 60, 1), minute(at(60), 600, 2), minute(at(120), 6_000, 3)];
        let rate = Recent::of(&minutes, &[], at(150)).rate();
        assert_eq!((rate.messages_per_second, rate.events_per_second), (10.0, 20.0), "the present one is not over");
        assert_eq!(Recent::of(&minutes, &[], at(182)).rate(), rate, "the last beat of the last one may be on its way");
        assert_eq!(Recent::of(&minutes, &[], at(186)).rate().messages_per_second, 100.0);
        assert_eq!(Rate::of_hour(&minutes, at(150)).counts.stored, 6_660, "it is");
        assert_eq!(Rate::of_hour(&minutes, at(3_660)).counts.stored, 6_000);
    }

    #[test]
    fn a_worker_that_has_just_started_has_a_rate() {
        let start = OffsetDateTime::from_unix_timestamp(1_750_000_020 / 60 * 60).expect("it is a time");
        let minutes = [minute(start, 300, 7)];
        let rate = Recent::of(&minutes, &[], start + Duration::from_secs(30)).rate();
        assert_eq!((rate.seconds, rate.messages_per_second), (1, 300.0), "nobody says since when");
        let rate = Recent::of(&minutes, &[], start + Duration::from_secs(70)).rate();
        assert_eq!((rate.seconds, rate.messages_per_second), (60, 5.0));
    }

    #[test]
    fn a_backlog_drains_at_the_rate_of_the_last_minute() {
        let start = OffsetDateTime::from_unix_timestamp(1_750_000_020 / 60 * 60).expect("it is a time");
        let queue = |visible| QueueState { visible: Asked::Known(visible), ..QueueState::unknown("q", "") };
        let drained = |visible, deleted| {
            let minutes = [minute(start, deleted, 1_500)];
            queue(visible).with(&Recent::of(&minutes, &[], start + Duration::from_secs(70)))
        };
        assert_eq!(drained(6_000, 600).drain_seconds, Asked::Known(600.0));
        assert_eq!(drained(6_000, 600).oldest_age_seconds, Asked::Known(1.5));
        assert_eq!(drained(0, 0).drain_seconds, Asked::Known(0.0));
        assert_eq!(drained(5, 0).drain_seconds.known(), None, "never, at this rate");
        let unknown = QueueState::unknown("q", "denied").with(&Recent::of(&[], &[], start));
        assert_eq!((unknown.drain_seconds, unknown.visible), (Asked::unknown("denied"), Asked::unknown("denied")));
    }

    #[test]
    fn the_cost_is_that_of_all_requests() {
        let counts = Counts {
            received: 900,
            inserted: 1_000,
            receives_with_messages: 100,
            receives_empty: 300,
            delete_requests: 95,
            visibility_requests: 5,
            ..Counts::default()
        };
        let cost = Cost::of(&counts);
        assert_eq!((cost.requests, &cost.fill, &cost.idle), (500, &Asked::Known(9.0), &Asked::Known(0.75)));
        let dollars = cost.dollars_per_million_events.known().copied().unwrap_or_default();
        assert!((dollars - 0.2).abs() < 1e-9, "half a request for an event, at 0.40 a million: {dollars}");
        let nothing = Cost::of(&Counts::default());
        assert_eq!(
            (nothing.dollars_per_million_events.known(), nothing.fill.known(), nothing.idle.known()),
            (None, None, None)
        );
    }
}
