//! What sends, and where it reports to: account, identity, configuration set, event destinations.

use serde_json::json;

use super::{Facts, Findings, Hop, KINDS, Severity, listed, name_of, quoted_json};
use crate::{
    aws::ses::{Destination, Set, To},
    event::EventKind,
};

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    account(facts, findings);
    identity(facts, findings);
    set(facts, findings);
}

fn account(facts: &Facts, findings: &mut Findings) {
    let hop = Hop::Identity;
    let Some(account) = findings.found(hop, "the account", &facts.account) else { return };
    match account.enforcement.as_deref() {
        Some("SHUTDOWN") => findings.error(
            hop,
            "SES has stopped this account",
            "SES refuses every mail",
            findings.aws("sesv2 get-account") + "  # then answer the case that AWS has opened",
        ),
        Some(status @ "PROBATION") => findings.warning(
            hop,
            format!("SES has put this account under review ({status})"),
            "SES may stop it if bounces or complaints go on",
            findings.aws("sesv2 get-account") + "  # then answer the case that AWS has opened",
        ),
        _ => {}
    }
    if !account.may_send && account.enforcement.as_deref() != Some("SHUTDOWN") {
        findings.error(
            hop,
            "sending is switched off for this account",
            "SES refuses every mail",
            findings.aws("sesv2 put-account-sending-attributes --sending-enabled"),
        );
    }
    match account.is_in_production {
        false => findings.warning(
            hop,
            "the account is in the sandbox",
            "it can write only to verified addresses and to the simulator",
            findings.aws(
                "sesv2 put-account-details --production-access-enabled --mail-type TRANSACTIONAL --website-url https://YOUR-SITE",
            ),
        ),
        true if account.may_send => findings.ok(hop, "the account may send, to anybody"),
        true => {}
    }
}

fn identity(facts: &Facts, findings: &mut Findings) {
    let hop = Hop::Identity;
    let Some((name, answer)) = &facts.identity else {
        let why = "name what your mails come from with --identity DOMAIN_OR_ADDRESS";
        return findings.note(hop, "no identity was looked at", why, None);
    };
    if let Ok(None) = answer {
        let create = findings.aws(format!("sesv2 create-email-identity --email-identity {name}"));
        return findings.error(hop, format!("SES does not know {name}"), "SES refuses every mail from it", create);
    }
    let Some(identity) = findings.found(hop, name, answer) else { return };
    match identity.is_verified {
        true => findings.ok(hop, format!("{name} is verified")),
        false => findings.error(
            hop,
            format!("{name} is not verified"),
            "SES refuses every mail from it",
            findings.aws(format!("sesv2 get-email-identity --email-identity {name}"))
                + "  # says which DNS records are missing",
        ),
    }
    match identity.dkim.as_deref() {
        Some("SUCCESS") => findings.ok(hop, "its mails are signed (DKIM)"),
        status => findings.warning(
            hop,
            status.map_or_else(
                || format!("mails from {name} are not signed (DKIM)"),
                |status| format!("DKIM of {name} is not ready: {status}"),
            ),
            "large providers refuse bulk mail without it",
            findings.aws(format!("sesv2 put-email-identity-dkim-attributes --email-identity {name} --signing-enabled")),
        ),
    }
    default_set(facts, name, identity.configuration_set.as_deref(), findings);
}

/// A mail without a configuration set is reported to nobody.
fn default_set(facts: &Facts, identity: &str, default: Option<&str>, findings: &mut Findings) {
    let Some(set) = facts.set() else { return };
    if default == Some(&set.name) {
        return findings
            .ok(Hop::Identity, format!("its mails are sent with {} unless they name another set", set.name));
    }
    let what = match default {
        Some(other) => format!("mails that name no configuration set are sent with {other}, not with {}", set.name),
        None => "mails that name no configuration set are sent without one".to_owned(),
    };
    let fix = findings.aws(format!(
        "sesv2 put-email-identity-configuration-set-attributes --email-identity {identity} --configuration-set-name {}",
        set.name
    ));
    findings.note(Hop::Identity, what, "nothing of them is reported here", Some(fix));
}

fn set(facts: &Facts, findings: &mut Findings) {
    let hop = Hop::ConfigurationSet;
    match (&facts.set, &facts.set_name) {
        (Ok(Some(set)), _) => found_set(facts, set, findings),
        (Ok(None), Some(name)) => findings.error(
            hop,
            format!("there is no configuration set {name}"),
            "SES refuses mails that name it, and reports nothing of the others",
            findings.aws(format!("sesv2 create-configuration-set --configuration-set-name {name}")),
        ),
        (Ok(None), None) => findings.error(
            hop,
            "no configuration set leads to this queue",
            "nothing that SES reports arrives here; name the set that you send with to see what it lacks",
            "ses-ledger doctor --config-set NAME".to_owned(),
        ),
        (Err(why), _) => findings.unanswered(hop, facts.set_name.as_deref().unwrap_or("the configuration sets"), why),
    }
}

fn found_set(facts: &Facts, set: &Set, findings: &mut Findings) {
    let (hop, name) = (Hop::ConfigurationSet, &set.name);
    match set.may_send {
        true => findings.ok(hop, format!("{name} is there, and may send")),
        false => findings.error(
            hop,
            format!("sending is switched off for {name}"),
            "SES refuses every mail with it",
            findings.aws(format!(
                "sesv2 put-configuration-set-sending-options --configuration-set-name {name} --sending-enabled"
            )),
        ),
    }
    match set.has_reputation_metrics {
        true => findings.ok(hop, "its bounces and complaints are counted (reputation metrics)"),
        false => findings.note(
            hop,
            "reputation metrics are off",
            "CloudWatch counts bounces and complaints of the account only, not of this set",
            Some(findings.aws(format!(
                "sesv2 put-configuration-set-reputation-options --configuration-set-name {name} --reputation-metrics-enabled"
            ))),
        ),
    }
    match &set.destinations {
        Err(why) => findings.unanswered(Hop::EventDestination, &format!("the event destinations of {name}"), why),
        Ok(all) => destinations(facts, set, all.as_deref().unwrap_or_default(), findings),
    }
}

fn destinations(facts: &Facts, set: &Set, all: &[Destination], findings: &mut Findings) {
    let hop = Hop::EventDestination;
    let leads = |it: &&Destination| match &it.to {
        To::Topic(topic) => facts.leads_to_queue(topic) != Some(false),
        To::Bus(_) => !facts.rules.is_empty() || facts.rules_unlisted.is_some(),
        To::Elsewhere => false,
    };
    let ours: Vec<&Destination> = all.iter().filter(leads).collect();
    if ours.is_empty() {
        return nowhere(facts, set, all, findings);
    }
    let enabled: Vec<&&Destination> = ours.iter().filter(|it| it.is_enabled).collect();
    for destination in &ours {
        let place = place(&destination.to);
        match destination.is_enabled {
            true => findings.ok(hop, format!("the destination {} publishes to {place}", destination.name)),
            // Another one does its work.
            false if !enabled.is_empty() => {
                findings.note(
                    hop,
                    format!("{} is switched off", destination.name),
                    "another destination publishes",
                    None,
                );
            }
            false => findings.error(
                hop,
                format!("the destination {}, which publishes to {place}, is switched off", destination.name),
                "nothing that SES reports leaves SES",
                update(findings, set, destination, &destination.kinds),
            ),
        }
    }
    let published = |kind: &EventKind| enabled.iter().any(|it| it.kinds.contains(kind));
    let missing: Vec<&EventKind> = KINDS.iter().filter(|kind| !enabled.is_empty() && !published(kind)).collect();
    if let Some(first) = enabled.first() {
        let mut all = first.kinds.clone();
        all.extend(missing.iter().map(|kind| (*kind).clone()));
        dropped(
            hop,
            &missing,
            &format!("the destination {} does not publish", first.name),
            Some(update(findings, set, first, &all)),
            findings,
        );
        if missing.is_empty() {
            findings.ok(hop, "all ten kinds of events are published");
        }
    }
}

/// Kinds that do not come through, in up to three findings: what the history needs, what explains it, what is optional.
pub(super) fn dropped(hop: Hop, missing: &[&EventKind], who: &str, fix: Option<String>, findings: &mut Findings) {
    let severity = |kind: &EventKind| match kind {
        EventKind::RenderingFailure | EventKind::DeliveryDelay => Severity::Warning,
        EventKind::Open | EventKind::Click | EventKind::Subscription => Severity::Note,
        _ => Severity::Error,
    };
    for (level, why) in [
        (Severity::Error, "the history of every mail lacks them, and so does its status"),
        (Severity::Warning, "mails that are late, or were never made, stay unexplained"),
        (Severity::Note, "well if you do not want to know; else they are missing"),
    ] {
        let kinds: Vec<&str> =
            missing.iter().filter(|kind| severity(kind) == level).map(|kind| kind.as_str()).collect();
        if !kinds.is_empty() {
            findings.add(hop, level, format!("{who} {}", listed(&kinds)), Some(why), fix.clone());
        }
    }
}

/// None of the destinations leads to the queue.
fn nowhere(facts: &Facts, set: &Set, all: &[Destination], findings: &mut Findings) {
    let hop = Hop::EventDestination;
    let topic = facts.subscribed_topic();
    let wrong = all.iter().find(|it| it.to != To::Elsewhere);
    match (wrong, topic) {
        // The topic's subscription is what is missing: said there.
        (Some(destination), None) => {
            findings.ok(hop, format!("the destination {} publishes to {}", destination.name, place(&destination.to)))
        }
        (Some(destination), Some(topic)) => {
            let to = Destination { to: To::Topic(topic.to_owned()), ..destination.clone() };
            findings.error(
                hop,
                format!(
                    "the destination {} publishes to {}, which does not lead to this queue",
                    destination.name,
                    place(&destination.to)
                ),
                &format!("the queue is subscribed to the topic {}", name_of(topic)),
                update(findings, set, &to, &destination.kinds),
            );
        }
        (None, topic) => {
            let topic = topic.or_else(|| facts.topics.keys().next().map(String::as_str)).unwrap_or("TOPIC_ARN");
            let made = Destination {
                name: "ses-ledger".to_owned(),
                is_enabled: true,
                kinds: KINDS.to_vec(),
                to: To::Topic(topic.to_owned()),
            };
            findings.error(
                hop,
                format!("{} publishes to no topic and to no event bus", set.name),
                "nothing that SES reports leaves SES",
                command(findings, "create", set, &made, &KINDS),
            );
        }
    }
}

fn place(to: &To) -> String {
    match to {
        To::Topic(arn) => format!("the topic {}", name_of(arn)),
        To::Bus(_) => "EventBridge".to_owned(),
        To::Elsewhere => "somewhere else".to_owned(),
    }
}

fn update(findings: &Findings, set: &Set, destination: &Destination, kinds: &[EventKind]) -> String {
    command(findings, "update", set, destination, kinds)
}

fn command(findings: &Findings, verb: &str, set: &Set, destination: &Destination, kinds: &[EventKind]) -> String {
    let kinds: Vec<String> = kinds.iter().map(|kind| kind.as_str().to_ascii_uppercase()).collect();
    let mut definition = json!({"Enabled": true, "MatchingEventTypes": kinds});
    match &destination.to {
        To::Topic(arn) => definition["SnsDestination"] = json!({"TopicArn": arn}),
        To::Bus(arn) => definition["EventBridgeDestination"] = json!({"EventBusArn": arn}),
        To::Elsewhere => {}
    }
    findings.aws(format!(
        "sesv2 {verb}-configuration-set-event-destination --configuration-set-name {} --event-destination-name {} \
         --event-destination {}",
        set.name,
        destination.name,
        quoted_json(&definition)
    ))
}
