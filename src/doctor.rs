//! Is it set up right? Hop by hop, from the identity that sends to the last event that came.
//!
//! What was found out ([`Facts`]) is gathered in `gather.rs`; everything else here is judgement: facts in, findings out.
//! What could not be asked is *unknown*, never *ok*.

mod database;
mod gather;
mod key;
mod policy;
mod queue;
mod rule;
mod sending;
mod topic;

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use serde_json::Value;

pub(crate) use self::{
    database::{DatabaseFacts, judge as judge_database},
    gather::{About, gather, gather_database},
};
use crate::aws::name_of;
use crate::{
    aws::{
        Answer, Unanswered,
        eventbridge::Rule,
        kms::Key,
        ses::{Account, Identity, Set},
        sns::Topic,
    },
    event::EventKind,
};

/// The kinds of events that SES can publish.
pub(crate) const KINDS: [EventKind; 10] = EventKind::ALL;

/// What was looked at, in the order in which an event passes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hop {
    Identity,
    ConfigurationSet,
    EventDestination,
    Topic,
    Subscription,
    Rule,
    Queue,
    DeadLetterQueue,
    Permissions,
    Database,
    Events,
}

impl Hop {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Identity => "Identity and account",
            Self::ConfigurationSet => "Configuration set",
            Self::EventDestination => "Event destination",
            Self::Topic => "Topic",
            Self::Subscription => "Subscription",
            Self::Rule => "EventBridge rule",
            Self::Queue => "Queue",
            Self::DeadLetterQueue => "Dead-letter queue",
            Self::Permissions => "Permissions",
            Self::Database => "Database",
            Self::Events => "Events",
        }
    }
}

/// How bad it is. The worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; it may well be meant so.
    Note,
    /// Could not be found out.
    Unknown,
    /// It works, until something else goes wrong.
    Warning,
    /// Events are lost or do not arrive, or the worker does not run.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) hop: Hop,
    pub(crate) severity: Severity,
    /// What was found.
    pub(crate) what: String,
    /// Why that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    /// A command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
}

/// Attributes of a queue, by the names that SQS gives them.
type Attributes = BTreeMap<String, String>;

/// Everything about one queue and what leads to it, as far as it could be found out.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) queue_url: String,
    pub(crate) queue_arn: String,
    /// Where SES, SNS and EventBridge are.
    pub(crate) region: String,
    pub(crate) times: Times,
    pub(crate) account: Answer<Account>,
    /// The domain or address that was asked about.
    pub(crate) identity: Option<(String, Answer<Identity>)>,
    /// The configuration set that was named.
    pub(crate) set_name: Option<String>,
    /// That one, or the first that leads to the queue.
    pub(crate) set: Answer<Set>,
    /// Topics that the set publishes to, and those that the queue's policy names.
    pub(crate) topics: BTreeMap<String, Topic>,
    /// Rules that have the queue as a target, or that its policy names.
    pub(crate) rules: BTreeMap<String, Answer<Rule>>,
    /// Why the rules could not be listed.
    pub(crate) rules_unlisted: Option<Unanswered>,
    /// By the ids under which topics and queues know them.
    pub(crate) keys: BTreeMap<String, Answer<Key>>,
    pub(crate) queue: Answer<Attributes>,
    /// The queue's own dead-letter queue, and those of subscriptions and rules.
    pub(crate) dead_letters: BTreeMap<String, Answer<Attributes>>,
    /// What the credentials may do with messages.
    pub(crate) rights: Vec<(&'static str, Answer<()>)>,
}

/// The worker's own settings that have to fit the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) visibility: Duration,
    /// How long a message may be in hand: waiting for its batch, being stored, being deleted.
    pub(crate) worst: Duration,
}

/// Judges one queue and what leads to it.
pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings { region: facts.region.clone(), all: Vec::new() };
    sending::judge(facts, &mut findings);
    topic::judge(facts, &mut findings);
    rule::judge(facts, &mut findings);
    queue::judge(facts, &mut findings);
    findings.all.sort_by_key(|it| it.hop);
    findings.all
}

/// Takes notes.
struct Findings {
    region: String,
    all: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, hop: Hop, severity: Severity, what: String, why: Option<&str>, fix: Option<String>) {
        self.all.push(Finding { hop, severity, what, why: why.map(str::to_owned), fix });
    }

    fn ok(&mut self, hop: Hop, what: impl Into<String>) {
        self.add(hop, Severity::Ok, what.into(), None, None);
    }

    fn note(&mut self, hop: Hop, what: impl Into<String>, why: &str, fix: Option<String>) {
        self.add(hop, Severity::Note, what.into(), Some(why), fix);
    }

    fn warning(&mut self, hop: Hop, what: impl Into<String>, why: &str, fix: String) {
        self.add(hop, Severity::Warning, what.into(), Some(why), Some(fix));
    }

    fn error(&mut self, hop: Hop, what: impl Into<String>, why: &str, fix: String) {
        self.add(hop, Severity::Error, what.into(), Some(why), Some(fix));
    }

    fn unknown(&mut self, hop: Hop, what: impl Into<String>, why: &str) {
        self.add(hop, Severity::Unknown, what.into(), Some(why), None);
    }

    /// `subject` was asked about in vain.
    fn unanswered(&mut self, hop: Hop, subject: &str, why: &Unanswered) {
        self.unknown(hop, format!("cannot look at {subject}"), &why.to_string());
    }

    /// What was answered and is there; otherwise says what is not.
    fn found<'a, T>(&mut self, hop: Hop, subject: &str, answer: &'a Answer<T>) -> Option<&'a T> {
        match answer {
            Ok(Some(found)) => return Some(found),
            Ok(None) => self.unknown(hop, format!("cannot look at {subject}"), "the answer says nothing about it"),
            Err(why) => self.unanswered(hop, subject, why),
        }
        None
    }

    /// A call of the AWS command line.
    fn aws(&self, rest: impl AsRef<str>) -> String {
        format!("aws {} --region {}", rest.as_ref(), self.region)
    }
}

impl Facts {
    /// Whether the topic has a subscription of the queue; `None` if that could not be found out.
    fn leads_to_queue(&self, topic: &str) -> Option<bool> {
        match self.topics.get(topic).map(|it| &it.subscription) {
            Some(Ok(subscription)) => Some(subscription.is_some()),
            Some(Err(_)) => None,
            None => Some(false),
        }
    }

    /// A topic that the queue is subscribed to.
    fn subscribed_topic(&self) -> Option<&str> {
        self.topics.keys().map(String::as_str).find(|topic| self.leads_to_queue(topic) == Some(true))
    }

    fn set(&self) -> Option<&Set> {
        self.set.as_ref().ok()?.as_ref()
    }

    /// Topics whose messages come to the queue, or may.
    fn topics_to_queue(&self) -> Vec<&str> {
        let topics = self.topics.keys().map(String::as_str);
        topics.filter(|topic| self.leads_to_queue(topic) != Some(false)).collect()
    }

    /// On whose behalf SES publishes.
    fn set_arn(&self, topic: &str) -> String {
        let parts: Vec<&str> = topic.split(':').collect();
        let part = |n: usize| parts.get(n).copied().unwrap_or_default();
        let name = self.set().map_or("*", |set| &set.name);
        format!("arn:{}:ses:{}:{}:configuration-set/{name}", part(1), part(3), part(4))
    }
}

/// A value as one word of a shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// JSON as one word of a shell, in lines that fit a terminal.
fn quoted_json(value: &Value) -> String {
    quoted(&in_lines(&value.to_string()))
}

/// Compact JSON, broken after commas: white space between values means nothing.
fn in_lines(json: &str) -> String {
    const WIDTH: usize = 60;
    let (mut lines, mut column, mut part, mut is_text, mut is_escaped) =
        (String::new(), 0, String::new(), false, false);
    for c in json.chars() {
        part.push(c);
        is_text ^= c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        if c == ',' && !is_text {
            let length = part.chars().count();
            if column > 0 && column + length > WIDTH {
                lines.push('\n');
                column = 0;
            }
            lines.push_str(&part);
            column += length;
            part.clear();
        }
    }
    if column > 0 && column + part.chars().count() > WIDTH {
        lines.push('\n');
    }
    lines + &part
}

/// `send, delivery and open`.
fn listed<T: AsRef<str>>(words: &[T]) -> String {
    match words {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [most @ .., last] => {
            let most: Vec<&str> = most.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", most.join(", "), last.as_ref())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_broken_where_it_means_nothing() {
        let value = json!({"a": "one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve and \"more\", too",
                           "b": [1, 2, 3], "c": vec!["BOUNCE"; 20]});
        let lines = in_lines(&value.to_string());
        assert_eq!(serde_json::from_str::<Value>(&lines).ok(), Some(value), "{lines}");
        assert!(lines.lines().count() > 3 && lines.lines().skip(1).all(|line| line.chars().count() <= 60), "{lines}");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn words_are_listed_as_people_do() {
        assert_eq!(
            [listed::<&str>(&[]), listed(&["a"]), listed(&["a", "b"]), listed(&["a", "b", "c"])],
            ["", "a", "a and b", "a, b and c"]
        );
    }
}
