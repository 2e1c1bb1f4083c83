//! The topic that SES publishes to, and the subscription that takes its messages to the queue.

use serde_json::{Value, json};

use super::{
    Facts, Findings, Hop, KINDS,
    key::{self, User},
    name_of,
    policy::{self, Request, Ruling},
    queue, quoted, quoted_json, sending,
};
use crate::{
    aws::{
        ses::To,
        sns::{Subscription, Topic},
    },
    event::EventKind,
    readable::grouped,
};

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    let destinations = facts.set().and_then(|set| set.destinations.as_ref().ok()?.as_deref()).unwrap_or_default();
    let mut targets: Vec<&str> = destinations
        .iter()
        .filter_map(|it| match &it.to {
            To::Topic(arn) => Some(arn.as_str()),
            _ => None,
        })
        .collect();
    // Others may read other topics. If none is ours, all are looked at.
    if targets.iter().any(|topic| facts.leads_to_queue(topic) != Some(false)) {
        targets.retain(|topic| facts.leads_to_queue(topic) != Some(false));
    } else if let Some(topic) = facts.subscribed_topic() {
        // The destination is the one that is wrong.
        targets = vec![topic];
    }
    targets.sort_unstable();
    targets.dedup();
    for arn in targets {
        if let Some(topic) = facts.topics.get(arn) {
            judge_topic(facts, arn, topic, findings);
        }
    }
}

fn judge_topic(facts: &Facts, arn: &str, topic: &Topic, findings: &mut Findings) {
    let (hop, name) = (Hop::Topic, format!("the topic {}", name_of(arn)));
    if let Ok(None) = topic.attributes {
        let fix = findings.aws(format!("sns create-topic --name {}", name_of(arn)));
        return findings.error(hop, format!("{name} does not exist"), "SES has nowhere to publish to", fix);
    }
    if let Some(attributes) = findings.found(hop, &name, &topic.attributes) {
        publishing(facts, arn, attributes.get("Policy").map(String::as_str), findings);
        match attributes.get("KmsMasterKeyId").filter(|id| !id.is_empty()) {
            // SES says nothing of itself to KMS, so a condition on it cannot be judged.
            Some(id) => {
                key::judge(facts, hop, id, &name, &[User { service: "ses.amazonaws.com", source: None }], findings)
            }
            None => findings.note(hop, format!("{name} is not encrypted"), "well, as long as nobody asks for it", None),
        }
    }
    match &topic.subscription {
        Ok(Some(subscription)) => judge_subscription(facts, arn, subscription, findings),
        Ok(None) => findings.error(
            Hop::Subscription,
            format!("{name} has no subscription of this queue"),
            "nothing that SES publishes arrives here",
            subscribe(findings, facts, arn),
        ),
        Err(why) => findings.unanswered(Hop::Subscription, &format!("the subscriptions of {name}"), why),
    }
}

fn publishing(facts: &Facts, arn: &str, topics_policy: Option<&str>, findings: &mut Findings) {
    let (hop, name) = (Hop::Topic, name_of(arn));
    let source = facts.set_arn(arn);
    let request = Request { service: "ses.amazonaws.com", action: "sns:Publish", resource: arn, source: Some(&source) };
    let ruling = topics_policy.map_or(Ruling::NotAllowed, |policy| policy::judge(policy, &request));
    let why = "SES cannot publish, and tells nobody but its own metrics";
    match ruling {
        Ruling::Allowed => findings.ok(hop, format!("SES may publish to {name}")),
        Ruling::Unclear(what) => findings.unknown(hop, format!("cannot tell whether SES may publish to {name}"), &what),
        Ruling::Denied(statement) => findings.error(
            hop,
            format!("SES may not publish to {name}: {statement} of its policy forbids it"),
            why,
            findings.aws(format!("sns get-topic-attributes --topic-arn {arn}"))
                + "  # take that statement out of Policy",
        ),
        Ruling::NotAllowed => {
            let account = arn.split(':').nth(4).unwrap_or_default();
            let allow = json!({"Sid": "SesPublishes", "Effect": "Allow", "Principal": {"Service": "ses.amazonaws.com"},
                               "Action": "sns:Publish", "Resource": arn,
                               "Condition": {"StringEquals": {"aws:SourceAccount": account}}});
            let longer = quoted_json(&policy::with(topics_policy, allow));
            let what = match topics_policy.is_some_and(|it| it.contains("ses.amazonaws.com")) {
                true => format!("the policy of {name} lets SES publish, but not for {source}"),
                false => format!("SES may not publish to {name}: nothing in its policy allows it"),
            };
            let set = format!(
                "sns set-topic-attributes --topic-arn {arn} --attribute-name Policy --attribute-value {longer}"
            );
            findings.error(hop, what, why, findings.aws(set));
        }
    }
}

fn judge_subscription(facts: &Facts, topic: &str, subscription: &Subscription, findings: &mut Findings) {
    let hop = Hop::Subscription;
    let unconfirmed = |findings: &mut Findings| {
        findings.error(
            hop,
            "the subscription of this queue is not confirmed",
            "SNS delivers nothing before; subscribing with the credentials of the queue's own account confirms by itself",
            subscribe(findings, facts, topic),
        );
    };
    if !subscription.arn.starts_with("arn:") {
        return unconfirmed(findings);
    }
    let subject = "the subscription of this queue";
    let Some(attributes) = findings.found(hop, subject, &subscription.attributes) else { return };
    let attribute = |name: &str| attributes.get(name).map(String::as_str).filter(|value| !value.is_empty());
    if attribute("PendingConfirmation") == Some("true") {
        return unconfirmed(findings);
    }
    findings.ok(
        hop,
        match attribute("RawMessageDelivery") {
            Some("true") => "confirmed, with raw delivery",
            _ => "confirmed, with messages in an envelope of SNS; the worker reads both",
        },
    );
    if let Some(filter) = attribute("FilterPolicy").filter(|it| *it != "{}") {
        judge_filter(subscription, filter, attribute("FilterPolicyScope") == Some("MessageBody"), findings);
    } else {
        findings.ok(hop, "no filter policy: every kind passes");
    }
    match attribute("RedrivePolicy").and_then(queue::dead_letter_target) {
        Some(arn) => undelivered(facts, hop, &arn, findings),
        None => {
            let redrive = json!({"deadLetterTargetArn": sibling(&facts.queue_arn, "undelivered")}).to_string();
            findings.warning(
                hop,
                "what SNS cannot deliver is lost: the subscription has no redrive policy",
                "SNS gives up at once if the queue or its key refuses it",
                findings.aws(set(subscription, "RedrivePolicy", &quoted(&redrive))),
            );
        }
    }
}

/// SES publishes without attributes: a filter on them passes nothing.
fn judge_filter(subscription: &Subscription, filter: &str, is_of_body: bool, findings: &mut Findings) {
    let hop = Hop::Subscription;
    let remove = findings.aws(set(subscription, "FilterPolicy", "'{}'"));
    if !is_of_body {
        let why = "SES writes no message attributes, so nothing passes";
        return findings.error(hop, "the filter policy looks at message attributes", why, remove);
    }
    let policy: Value = serde_json::from_str(filter).unwrap_or_default();
    let only_kinds = policy.as_object().filter(|it| it.len() == 1).and_then(|it| it.get("eventType")?.as_array());
    let names: Option<Vec<&str>> = only_kinds.and_then(|it| it.iter().map(Value::as_str).collect());
    let Some(names) = names else {
        let why = "what does not match is dropped without a word";
        return findings.warning(hop, format!("a filter policy drops events: {filter}"), why, remove);
    };
    let passing: Vec<EventKind> = names.into_iter().filter_map(EventKind::parse).collect();
    let missing: Vec<&EventKind> = KINDS.iter().filter(|kind| !passing.contains(kind)).collect();
    sending::dropped(hop, &missing, "the filter policy drops", Some(remove), findings);
}

/// The queue for what could not be delivered.
pub(super) fn undelivered(facts: &Facts, hop: Hop, arn: &str, findings: &mut Findings) {
    let name = name_of(arn);
    match facts.dead_letters.get(arn) {
        Some(Ok(Some(attributes))) => match queue::waiting(attributes) {
            0 => findings.ok(hop, format!("what cannot be delivered goes to {name}, which is empty")),
            count => findings.warning(
                hop,
                match count {
                    1 => format!("a message could not be delivered, and waits in {name}"),
                    _ => format!("{} messages could not be delivered, and wait in {name}", grouped(count)),
                },
                "they are not in the history; mend what kept them away, then move them",
                findings.aws(format!(
                    "sqs start-message-move-task --source-arn {arn} --destination-arn {}",
                    facts.queue_arn
                )),
            ),
        },
        Some(Ok(None)) => findings.warning(
            hop,
            format!("what cannot be delivered is lost: the queue {name} does not exist"),
            "the redrive policy names it",
            findings.aws(format!("sqs create-queue --queue-name {name} --attributes MessageRetentionPeriod=1209600")),
        ),
        Some(Err(why)) => findings.unanswered(hop, &format!("the queue {name}, for what cannot be delivered"), why),
        None => findings.unknown(
            hop,
            format!("cannot look at the queue {name}, for what cannot be delivered"),
            "it is in another account or region than this queue",
        ),
    }
}

fn set(subscription: &Subscription, attribute: &str, value: &str) -> String {
    format!(
        "sns set-subscription-attributes --subscription-arn {} --attribute-name {attribute} --attribute-value {value}",
        subscription.arn
    )
}

fn subscribe(findings: &Findings, facts: &Facts, topic: &str) -> String {
    findings.aws(format!(
        "sns subscribe --topic-arn {topic} --protocol sqs --notification-endpoint {} --attributes RawMessageDelivery=true",
        facts.queue_arn
    ))
}

/// The ARN of the queue `NAME-what`.
pub(super) fn sibling(queue: &str, what: &str) -> String {
    format!("{queue}-{what}")
}
