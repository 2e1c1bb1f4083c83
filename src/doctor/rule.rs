//! The rules by which EventBridge takes events to the queue.

use serde_json::{Value, json};

use super::{Facts, Findings, Hop, KINDS, name_of, quoted_json, sending, topic};
use crate::{
    aws::{
        eventbridge::{Rule, RuleTarget},
        ses::To,
    },
    event::EventKind,
};

/// `detail-type` of the kinds, in the order of [`KINDS`].
const DETAIL_TYPES: [&str; 10] = [
    "Email Sent",
    "Email Rejected",
    "Email Rendering Failed",
    "Email Delivered",
    "Email Delivery Delayed",
    "Email Bounced",
    "Email Complaint Received",
    "Email Opened",
    "Email Clicked",
    "Email Subscribed",
];

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    let hop = Hop::Rule;
    let destinations = facts.set().and_then(|set| set.destinations.as_ref().ok()?.as_deref()).unwrap_or_default();
    let by_bus = destinations.iter().any(|it| matches!(it.to, To::Bus(_)) && it.is_enabled);
    if let Some(why) = facts.rules_unlisted.as_ref().filter(|_| by_bus && facts.rules.is_empty()) {
        return findings.unanswered(hop, "the rules that lead to this queue", why);
    }
    for (name, answer) in &facts.rules {
        match answer {
            Ok(None) => findings.error(
                hop,
                format!("there is no rule {name}"),
                "the queue's policy names it",
                put_rule(findings, name),
            ),
            answer => {
                if let Some(rule) = findings.found(hop, &format!("the rule {name}"), answer) {
                    judge_rule(facts, name, rule, findings);
                }
            }
        }
    }
    let by_topic = facts.subscribed_topic().is_some();
    if by_bus && facts.rules.is_empty() && !by_topic {
        let (name, queue) = (name_of(&facts.queue_arn), &facts.queue_arn);
        let targets = quoted_json(&json!([{"Id": "queue", "Arn": queue}]));
        findings.error(
            hop,
            "SES publishes to EventBridge, and no rule leads to this queue",
            "nothing that SES reports arrives here",
            put_rule(findings, name)
                + " && \\\n"
                + &findings.aws(format!("events put-targets --rule {name} --targets {targets}")),
        );
    }
}

fn judge_rule(facts: &Facts, name: &str, rule: &Rule, findings: &mut Findings) {
    let hop = Hop::Rule;
    match rule.state.starts_with("ENABLED") {
        true => findings.ok(hop, format!("the rule {name} is enabled")),
        false => findings.error(
            hop,
            format!("the rule {name} is {}", rule.state),
            "it takes nothing to the queue",
            findings.aws(format!("events enable-rule --name {name}")),
        ),
    }
    judge_pattern(name, rule.pattern.as_deref().unwrap_or_default(), findings);
    match &rule.target {
        Ok(None) => {
            let targets = quoted_json(&json!([{"Id": "queue", "Arn": facts.queue_arn}]));
            let fix = findings.aws(format!("events put-targets --rule {name} --targets {targets}"));
            findings.error(
                hop,
                format!("this queue is no target of the rule {name}"),
                "it takes nothing to the queue",
                fix,
            );
        }
        answer => {
            if let Some(target) = findings.found(hop, &format!("the targets of the rule {name}"), answer) {
                judge_target(facts, name, target, findings);
            }
        }
    }
}

fn judge_pattern(name: &str, pattern: &str, findings: &mut Findings) {
    let hop = Hop::Rule;
    let pattern: Value = serde_json::from_str(pattern).unwrap_or_default();
    let words =
        |key: &str| pattern[key].as_array().map(|all| all.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    match words("source") {
        Some(Some(sources)) if !sources.contains(&"aws.ses") => {
            let why = "the events of SES do not match it";
            return findings.error(
                hop,
                format!("the rule {name} takes no events of SES"),
                why,
                put_rule(findings, name),
            );
        }
        Some(None) => {
            return findings.unknown(
                hop,
                format!("cannot tell which events the rule {name} takes"),
                "its source is no list of words",
            );
        }
        _ => {}
    }
    let others: Vec<&str> = pattern.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    let others: Vec<&str> = others.into_iter().filter(|key| !["source", "detail-type"].contains(key)).collect();
    if !others.is_empty() {
        let what = format!("the rule {name} also looks at {}", super::listed(&others));
        findings.unknown(hop, what, "whether the events of your mails match that cannot be told from here");
    }
    match words("detail-type") {
        None => findings.ok(hop, "it takes every kind of event"),
        Some(None) => findings.unknown(
            hop,
            format!("cannot tell which kinds the rule {name} takes"),
            "detail-type is no list of words",
        ),
        Some(Some(types)) => {
            let missing: Vec<&EventKind> =
                KINDS.iter().zip(DETAIL_TYPES).filter(|(_, it)| !types.contains(it)).map(|(kind, _)| kind).collect();
            if missing.is_empty() {
                findings.ok(hop, "it takes all ten kinds of events");
            }
            sending::dropped(
                hop,
                &missing,
                &format!("the rule {name} does not take"),
                Some(put_rule(findings, name)),
                findings,
            );
        }
    }
}

fn judge_target(facts: &Facts, name: &str, target: &RuleTarget, findings: &mut Findings) {
    let hop = Hop::Rule;
    if target.is_rewritten {
        let targets = quoted_json(&json!([{"Id": target.id, "Arn": facts.queue_arn}]));
        findings.warning(
            hop,
            format!("the rule {name} rewrites events before it hands them over"),
            "the worker reads what SES wrote, whole or as $.detail; anything else may end in quarantine",
            findings.aws(format!("events put-targets --rule {name} --targets {targets}")),
        );
    }
    match &target.dead_letters {
        Some(arn) => topic::undelivered(facts, hop, arn, findings),
        None => {
            let dead = json!({"Arn": topic::sibling(&facts.queue_arn, "undelivered")});
            let targets = quoted_json(&json!([{"Id": target.id, "Arn": facts.queue_arn, "DeadLetterConfig": dead}]));
            findings.warning(
                hop,
                "what EventBridge cannot deliver is lost: the target has no dead-letter queue",
                "it gives up at once if the queue or its key refuses it, and else after a day",
                findings.aws(format!("events put-targets --rule {name} --targets {targets}")),
            );
        }
    }
}

fn put_rule(findings: &Findings, name: &str) -> String {
    let pattern = quoted_json(&json!({"source": ["aws.ses"], "detail-type": DETAIL_TYPES}));
    findings.aws(format!("events put-rule --name {name} --state ENABLED --event-pattern {pattern}"))
}
