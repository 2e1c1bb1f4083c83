//! The queue: who may send to it, how long it keeps and hides messages, what becomes of those that fail; and what these
//! credentials may do with messages.

use serde_json::{Value, json};

use super::{
    Attributes, Facts, Findings, Hop, Severity,
    key::{self, User},
    listed, name_of,
    policy::{self, Request, Ruling},
    quoted, topic,
};
use crate::{
    aws::{Answer, Why},
    readable::{grouped, span},
};

use std::time::Duration;

const DAY: u64 = 24 * 3600;
/// The longest that SQS keeps messages.
const LONGEST: u64 = 14 * DAY;
/// An outage of the worker's own is no reason to give up a message.
const FEWEST_RECEIVES: u64 = 5;

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    let name = name_of(&facts.queue_arn);
    match &facts.queue {
        Ok(None) => {
            let fix = findings
                .aws(format!("sqs create-queue --queue-name {name} --attributes MessageRetentionPeriod={LONGEST}"));
            findings.error(
                Hop::Queue,
                format!("the queue {name} does not exist"),
                "there is nothing to receive from",
                fix,
            );
        }
        answer => {
            if let Some(queue) = findings.found(Hop::Queue, &format!("the queue {name}"), answer) {
                policy_of(facts, queue, findings);
                encryption(facts, queue, findings);
                keeping(facts, queue, findings);
                dead_letters(facts, queue, findings);
            }
        }
    }
    rights(facts, findings);
}

/// ARN of the queue that a redrive policy names.
pub(super) fn dead_letter_target(redrive: &str) -> Option<String> {
    let redrive: Value = serde_json::from_str(redrive).ok()?;
    redrive["deadLetterTargetArn"].as_str().map(str::to_owned)
}

/// Messages that can be received.
pub(super) fn waiting(attributes: &Attributes) -> u64 {
    number(attributes, "ApproximateNumberOfMessages").unwrap_or_default()
}

fn number(attributes: &Attributes, name: &str) -> Option<u64> {
    attributes.get(name)?.parse().ok()
}

fn set(findings: &Findings, url: &str, attributes: &str) -> String {
    findings.aws(format!("sqs set-queue-attributes --queue-url {url} --attributes {attributes}"))
}

fn policy_of(facts: &Facts, queue: &Attributes, findings: &mut Findings) {
    let hop = Hop::Queue;
    let policy = queue.get("Policy").map(String::as_str).filter(|it| !it.is_empty());
    if let Some(statement) = policy.and_then(|it| policy::open_to_all(it, "sqs:SendMessage")) {
        findings.warning(
            hop,
            format!("anybody may send to the queue: {statement} of its policy has no condition"),
            "who can send can write your history",
            set(findings, &facts.queue_url, "file://policy.json") + "  # with conditions on aws:SourceArn",
        );
    }
    for topic in facts.topics_to_queue() {
        sending(facts, policy, "sns.amazonaws.com", topic, &format!("the topic {}", name_of(topic)), findings);
    }
    for (name, rule) in &facts.rules {
        if let Ok(Some(rule)) = rule {
            sending(facts, policy, "events.amazonaws.com", &rule.arn, &format!("the rule {name}"), findings);
        }
    }
}

fn sending(facts: &Facts, policy: Option<&str>, service: &str, source: &str, who: &str, findings: &mut Findings) {
    let hop = Hop::Queue;
    let request = Request { service, action: "sqs:SendMessage", resource: &facts.queue_arn, source: Some(source) };
    let why = "nothing that it hands over is taken, and nobody is told";
    match policy.map_or(Ruling::NotAllowed, |policy| policy::judge(policy, &request)) {
        Ruling::Allowed => findings.ok(hop, format!("{who} may send to the queue")),
        Ruling::Unclear(what) => {
            findings.unknown(hop, format!("cannot tell whether {who} may send to the queue"), &what)
        }
        Ruling::Denied(statement) => findings.error(
            hop,
            format!("{who} may not send to the queue: {statement} of its policy forbids it"),
            why,
            findings.aws(format!("sqs get-queue-attributes --queue-url {} --attribute-names Policy", facts.queue_url))
                + "  # take that statement out",
        ),
        Ruling::NotAllowed => {
            let sid = if service.starts_with("sns.") { "TopicSends" } else { "RuleSends" };
            let allow = json!({"Sid": sid, "Effect": "Allow", "Principal": {"Service": service}, "Action": "sqs:SendMessage",
                               "Resource": facts.queue_arn, "Condition": {"ArnEquals": {"aws:SourceArn": source}}});
            let longer = json!({"Policy": policy::with(policy, allow).to_string()}).to_string();
            let what = match policy {
                Some(_) => format!("{who} may not send to the queue: nothing in its policy allows it"),
                None => format!("{who} may not send to the queue: it has no policy"),
            };
            findings.error(hop, what, why, set(findings, &facts.queue_url, &quoted(&longer)));
        }
    }
}

fn encryption(facts: &Facts, queue: &Attributes, findings: &mut Findings) {
    let hop = Hop::Queue;
    match queue.get("KmsMasterKeyId").filter(|id| !id.is_empty()) {
        Some(id) => {
            let topics = facts.topics_to_queue();
            let mut users: Vec<User<'_>> =
                topics.iter().map(|topic| User { service: "sns.amazonaws.com", source: Some(topic) }).collect();
            let rules = facts.rules.values().filter_map(|rule| rule.as_ref().ok()?.as_ref());
            users.extend(rules.map(|rule| User { service: "events.amazonaws.com", source: Some(&rule.arn) }));
            key::judge(facts, hop, id, "the queue", &users, findings);
        }
        None if queue.get("SqsManagedSseEnabled").is_some_and(|it| it == "true") => {
            findings.ok(hop, "encrypted with a key of SQS, which everybody who may send can use");
        }
        None => {
            let fix = set(findings, &facts.queue_url, "SqsManagedSseEnabled=true");
            findings.note(
                hop,
                "the queue is not encrypted",
                "addresses lie in it for as long as the worker is away",
                Some(fix),
            );
        }
    }
}

/// How long messages are kept, and how long they are hidden.
fn keeping(facts: &Facts, queue: &Attributes, findings: &mut Findings) {
    let (hop, times) = (Hop::Queue, facts.times);
    match number(queue, "MessageRetentionPeriod") {
        Some(seconds) if seconds >= LONGEST => findings.ok(hop, "messages are kept for 14 days"),
        Some(seconds) => findings.warning(
            hop,
            format!("messages are kept for {} only", span(Duration::from_secs(seconds))),
            "an outage that is longer than that loses events; 14 days is the most, and costs nothing",
            set(findings, &facts.queue_url, &format!("MessageRetentionPeriod={LONGEST}")),
        ),
        None => findings.unknown(hop, "cannot tell how long messages are kept", "the queue does not say"),
    }
    let worst = span(times.worst);
    if times.visibility <= times.worst {
        findings.error(
            hop,
            format!("the worker hides a message for {}, and may need {worst}", span(times.visibility)),
            "it refuses to start: messages would come back while they are being handled",
            "set VISIBILITY_TIMEOUT of the worker to 120s, or make BATCH_AGE, STORE_TIMEOUT and DELETE_BUDGET shorter"
                .to_owned(),
        );
    }
    match number(queue, "VisibilityTimeout").map(Duration::from_secs) {
        Some(own) if own > times.worst => {
            findings.ok(hop, format!("messages stay hidden for {}; handling one takes {worst} at worst", span(own)));
        }
        Some(own) => findings.warning(
            hop,
            format!("the queue hides messages for {}, and handling one may take {worst}", span(own)),
            "`run` asks for its own time at each receive; on Lambda the queue's own counts, and messages come back too early",
            set(findings, &facts.queue_url, "VisibilityTimeout=390"),
        ),
        None => findings.unknown(hop, "cannot tell how long messages stay hidden", "the queue does not say"),
    }
}

fn dead_letters(facts: &Facts, queue: &Attributes, findings: &mut Findings) {
    let hop = Hop::DeadLetterQueue;
    let redrive: Option<Value> = queue.get("RedrivePolicy").and_then(|it| serde_json::from_str(it).ok());
    let target = redrive.as_ref().and_then(|it| it["deadLetterTargetArn"].as_str());
    let Some((redrive, target)) = redrive.as_ref().zip(target) else {
        let fix = redrive_to(facts, &topic::sibling(&facts.queue_arn, "dead"), findings);
        let why = "a message that fails again and again is tried for days, and then gone without a trace";
        return findings.error(hop, "the queue has no redrive policy", why, fix);
    };
    // SQS takes the number as a text, too.
    let most = redrive["maxReceiveCount"].as_u64().or_else(|| redrive["maxReceiveCount"].as_str()?.parse().ok());
    match most {
        Some(count) if count < FEWEST_RECEIVES => findings.error(
            hop,
            format!("a message is given up after {count} receives"),
            "a short outage makes dead letters of good messages; what cannot be understood goes to quarantine at once anyhow",
            redrive_to(facts, target, findings),
        ),
        Some(count) => findings.ok(hop, format!("a message is given up after {count} receives")),
        None => findings.unknown(hop, "cannot tell after how many receives a message is given up", "the redrive policy does not say"),
    }
    let name = name_of(target);
    if target == facts.queue_arn {
        let fix = redrive_to(facts, &topic::sibling(&facts.queue_arn, "dead"), findings);
        return findings.error(hop, "the queue is its own dead-letter queue", "dead letters come back for ever", fix);
    }
    match facts.dead_letters.get(target) {
        Some(Ok(None)) | None => findings.error(
            hop,
            format!("the dead-letter queue {name} does not exist"),
            "what is given up is gone",
            findings.aws(format!("sqs create-queue --queue-name {name} --attributes MessageRetentionPeriod={LONGEST}")),
        ),
        Some(answer) => {
            if let Some(dead) = findings.found(hop, &format!("the dead-letter queue {name}"), answer) {
                judge_dead(facts, queue, dead, name, findings);
            }
        }
    }
}

fn redrive_to(facts: &Facts, arn: &str, findings: &Findings) -> String {
    let policy = json!({"deadLetterTargetArn": arn, "maxReceiveCount": "100"}).to_string();
    set(findings, &facts.queue_url, &quoted(&json!({"RedrivePolicy": policy}).to_string()))
}

fn judge_dead(facts: &Facts, queue: &Attributes, dead: &Attributes, name: &str, findings: &mut Findings) {
    let hop = Hop::DeadLetterQueue;
    let url = sibling_url(&facts.queue_url, name);
    let (kept, here) = (number(dead, "MessageRetentionPeriod"), number(queue, "MessageRetentionPeriod"));
    match (kept, here) {
        (Some(kept), Some(here)) if kept < here => findings.warning(
            hop,
            format!("{name} keeps messages for {} only", span(Duration::from_secs(kept))),
            "their age counts from when they were sent: they may be gone as soon as they are dead letters",
            set(findings, &url, &format!("MessageRetentionPeriod={LONGEST}")),
        ),
        (Some(_), Some(_)) => findings.ok(hop, format!("{name} keeps messages for as long as the queue")),
        _ => findings.unknown(hop, format!("cannot tell how long {name} keeps messages"), "it does not say"),
    }
    let allow: Value = dead.get("RedriveAllowPolicy").and_then(|it| serde_json::from_str(it).ok()).unwrap_or_default();
    let is_source =
        || allow["sourceQueueArns"].as_array().is_some_and(|it| it.iter().any(|arn| *arn == facts.queue_arn));
    if allow["redrivePermission"] == "denyAll" || allow["redrivePermission"] == "byQueue" && !is_source() {
        let policy = json!({"redrivePermission": "byQueue", "sourceQueueArns": [facts.queue_arn]}).to_string();
        findings.error(
            hop,
            format!("{name} takes no dead letters of this queue"),
            "its redrive allow policy names others",
            set(findings, &url, &quoted(&json!({"RedriveAllowPolicy": policy}).to_string())),
        );
    }
    match waiting(dead) {
        0 => findings.ok(hop, format!("{name} is empty")),
        count => findings.warning(
            hop,
            match count {
                1 => format!("a dead letter waits in {name}"),
                _ => format!("{} dead letters wait in {name}", grouped(count)),
            },
            "their events are not in the history",
            format!("ses-ledger dlq peek --queue-url {}", facts.queue_url),
        ),
    }
}

/// A queue in the same account and region.
pub(super) fn sibling_url(queue_url: &str, name: &str) -> String {
    let place = queue_url.rsplit_once('/').map_or(queue_url, |(place, _)| place);
    format!("{place}/{name}")
}

/// Credentials that may do nothing with messages are not the worker's; those that may do some of it are.
fn rights(facts: &Facts, findings: &mut Findings) {
    let hop = Hop::Permissions;
    let is_denied = |answer: &Answer<()>| matches!(answer, Err(why) if why.why == Why::Denied);
    let with = |wanted: bool| -> Vec<&str> {
        facts.rights.iter().filter(|(_, it)| is_denied(it) == wanted).map(|(name, _)| *name).collect()
    };
    let (denied, allowed) = (with(true), with(false));
    if !denied.is_empty() && allowed.is_empty() {
        let what = format!("these credentials lack {}", listed(&denied));
        return findings.unknown(hop, what, "well if they are not the worker's: ask again with those");
    }
    for (permission, answer) in &facts.rights {
        match answer {
            Ok(Some(())) => findings.ok(hop, *permission),
            Ok(None) => {}
            Err(why) if why.why == Why::Denied => findings.add(
                hop,
                Severity::Error,
                format!("these credentials lack {permission}"),
                Some(&format!("a worker with them may do {}, but cannot do its work", listed(&allowed))),
                Some(format!(
                    "allow {permission} on {} in the worker's role (and kms:Decrypt on its key)",
                    facts.queue_arn
                )),
            ),
            Err(why) => findings.unknown(hop, format!("cannot try {permission}"), &why.to_string()),
        }
    }
}
