//! A naive reader derives the truth from the steps again, with rules of its own.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;

use super::*;
use crate::pipeline::decode::{DecodeSettings, IgnoreReason, Outcome, RejectReason, Wrapper, decode};

fn settings(seed: u64, mails: usize) -> StorySettings {
    StorySettings::new(seed, mails, datetime!(2026-11-02 08:00:00.123 UTC))
}

fn publications(story: &Story) -> Vec<String> {
    let body = |step| match step {
        Step::Publish(body) => Some(body),
        Step::WriteLog(_) => None,
    };
    story.steps().filter_map(body).collect()
}

fn logs(story: &Story) -> Vec<LogRow> {
    let row = |step| match step {
        Step::WriteLog(row) => Some(row),
        Step::Publish(_) => None,
    };
    story.steps().filter_map(row).collect()
}

/// What the naive reader makes of a body.
#[derive(Debug, Default)]
struct Read {
    events: Vec<Value>,
    ignored: usize,
    rejected: usize,
}

fn events_in(body: &str) -> Vec<Value> {
    let mut content = Read::default();
    read(body, &mut content);
    content.events
}

fn read(body: &str, into: &mut Read) {
    let lines: Vec<&str> = body.lines().collect();
    if let [_, _, ..] = lines[..]
        && lines.iter().all(|line| serde_json::from_str::<Value>(line).is_ok())
    {
        return lines.into_iter().for_each(|line| read(line, into));
    }
    if let Ok(bytes) = STANDARD.decode(body)
        && bytes.starts_with(b"{")
    {
        return match String::from_utf8(bytes) {
            Ok(text) => read(&text, into),
            Err(_) => into.rejected += 1,
        };
    }
    match serde_json::from_str(body) {
        _ if body.starts_with("[[[[[[[[[") => into.rejected += 1,
        Ok(value) => read_value(value, into),
        Err(_) if body.starts_with("Successfully validated") || body.starts_with("[TEST]") => into.ignored += 1,
        Err(_) => into.rejected += 1,
    }
}

fn read_value(value: Value, into: &mut Read) {
    match value {
        Value::String(text) => read(&text, into),
        Value::Array(all) if all.is_empty() || all[0].is_string() || all.len() > 32_768 => into.rejected += 1,
        Value::Array(all) => all.into_iter().for_each(|v| read_value(v, into)),
        Value::Object(envelope) if envelope.contains_key("TopicArn") => {
            match (envelope["Type"].as_str(), &envelope["Message"]) {
                (Some("Notification"), Value::String(message)) => read(message, into),
                (Some("Notification"), _) => into.rejected += 1,
                _ => into.ignored += 1,
            }
        }
        Value::Object(mut envelope) if envelope.contains_key("detail-type") => match envelope["detail-type"].as_str() {
            Some(name) if !name.starts_with("Email ") => into.ignored += 1,
            _ => read_value(envelope["detail"].take(), into),
        },
        Value::Object(ref event) => {
            const NESTS: [&str; 9] =
                ["Records", "records", "Messages", "Sns", "requestPayload", "kinesis", "body", "Body", "data"];
            if let Some(inner) = NESTS.iter().find_map(|key| event.get(*key)) {
                return read_value(inner.clone(), into);
            }
            let kind = event.get("eventType").or(event.get("notificationType"));
            let id = value.pointer("/mail/messageId").and_then(Value::as_str).unwrap_or_default();
            if let Some("TEXT_DELIVERED" | "AmazonSnsSubscriptionSucceeded" | "Received") = kind.and_then(Value::as_str)
            {
                into.ignored += 1;
            } else if ["AlarmName", "eventSource", "event_type", "Event", "hello"]
                .iter()
                .any(|k| event.contains_key(*k))
            {
                into.ignored += 1;
            } else if kind.is_none() || id.trim_matches(['<', '>']).is_empty() {
                into.rejected += 1;
            } else {
                into.events.push(value);
            }
        }
        _ => into.rejected += 1,
    }
}

/// The type's own object. It is the one that is neither the mail nor the type.
fn own(event: &Value) -> &Value {
    let fields = event.as_object().expect("the reader keeps objects only");
    let own = fields.iter().find(|(key, _)| !matches!(key.as_str(), "mail" | "eventType" | "notificationType"));
    own.expect("every event has an object of its own").1
}

fn kind_of(event: &Value) -> String {
    let kind = event.get("eventType").or(event.get("notificationType"));
    match kind.and_then(Value::as_str).expect("the reader keeps events with a type only") {
        "Rendering Failure" => "rendering_failure".to_owned(),
        "DeliveryDelay" => "delivery_delay".to_owned(),
        "InboxPlacement" => "inbox_placement".to_owned(),
        other => other.to_lowercase(),
    }
}

fn when(event: &Value) -> OffsetDateTime {
    let own = own(event).get("timestamp");
    let text = own.unwrap_or(&event["mail"]["timestamp"]).as_str();
    OffsetDateTime::parse(text.expect("times are strings"), &Rfc3339).expect("times are RFC 3339")
}

fn address(raw: &str) -> String {
    let address = raw.trim_start_matches("rfc822;").trim().trim_matches(['<', '>']);
    let (local, domain) = address.split_once('@').expect("addresses have an @");
    format!("{local}@{}", domain.to_lowercase())
}

fn bare(id: &str) -> String {
    let id = id.trim_matches(['<', '>']);
    id.split_once('@').map_or(id, |(bare, _)| bare).to_owned()
}

fn recipients_of(event: &Value) -> Vec<String> {
    let text = |value: &Value| {
        let address_field = value.get("emailAddress").unwrap_or(value);
        address(address_field.as_str().expect("addresses are strings"))
    };
    let lists = ["recipients", "bouncedRecipients", "complainedRecipients", "delayedRecipients"];
    if let Some(named) = lists.iter().find_map(|list| own(event).get(list)) {
        return named.as_array().expect("recipients are a list").iter().map(text).collect();
    }
    match &event["mail"]["destination"].as_array().expect("destinations are a list")[..] {
        [only] => vec![text(only)],
        _ => vec![String::new()],
    }
}

fn keys_of(event: &Value) -> Vec<RowKey> {
    let kind = kind_of(event);
    let repeats = kind == "open" || kind == "click";
    let key = |recipient| RowKey {
        aws_message_id: event["mail"]["messageId"].as_str().expect("ids are strings").to_owned(),
        kind: kind.clone(),
        recipient,
        occurred_at_ms: repeats.then(|| truth::unix_ms(when(event))),
        link: own(event).get("link").map(|link| link.as_str().expect("a URL").to_owned()),
    };
    recipients_of(event).into_iter().map(key).collect()
}

/// Folds the steps, in their order, into rows and facts, as a database would that keeps the first.
fn folded(story: &Story) -> Truth {
    let mut truth = Truth::default();
    let mut stored: Vec<(RowKey, Value)> = Vec::new();
    let mut seen = HashSet::new();
    for body in publications(story) {
        let mut content = Read::default();
        read(&body, &mut content);
        truth.messages += 1;
        truth.rejected += usize::from(content.rejected > 0);
        truth.ignored += usize::from(content.events.is_empty() && content.ignored > 0);
        *truth.rejected_leaves.entry((RejectReason::NotJson, "all")).or_default() += content.rejected;
        for event in content.events {
            for key in keys_of(&event) {
                truth.events += 1;
                if seen.insert(key.clone()) {
                    stored.push((key, event.clone()));
                } else {
                    truth.duplicates += 1;
                }
            }
        }
    }

    let mut log_of = BTreeMap::new();
    let mut by_uuid = BTreeMap::new();
    for row in logs(story) {
        truth.facts.insert(row.uuid, Facts::default());
        by_uuid.insert(row.uuid.to_string(), row.uuid);
        if let Some(id) = row.aws_message_id {
            let bare = id.trim_matches(['<', '>']).split('@').next().map(str::to_owned);
            log_of.insert(bare.expect("split gives one part at least"), row.uuid);
        }
    }
    for (key, event) in &stored {
        let tag = event.pointer("/mail/tags/email_log_uuid/0").and_then(Value::as_str);
        if let Some(uuid) = tag.and_then(|tag| by_uuid.get(tag)) {
            log_of.insert(key.aws_message_id.clone(), *uuid);
        }
    }
    for (key, event) in stored {
        match log_of.get(&key.aws_message_id).and_then(|uuid| truth.facts.get_mut(uuid)) {
            Some(facts) => {
                learn(facts, &key.kind, &event);
                truth.rows.insert(key);
            }
            None => {
                truth.orphans.insert(key);
            }
        }
    }
    truth
}

fn learn(facts: &mut Facts, kind: &str, event: &Value) {
    let text = |field| own(event).get(field).and_then(Value::as_str);
    let (mut bounce, mut complaint) = (None, false);
    match kind {
        "bounce" => bounce = text("bounceType"),
        "complaint" if text("complaintSubType").is_some() => bounce = Some("Permanent"),
        "complaint" => complaint = text("complaintFeedbackType") != Some("not-spam"),
        _ => (),
    }
    if let Some(class) = bounce {
        let class = match class {
            "Permanent" => BounceClass::Permanent,
            "Transient" => BounceClass::Transient,
            _ => BounceClass::Undetermined,
        };
        facts.bounce_class = facts.bounce_class.max(Some(class));
    }
    let first = |fact: &mut Option<OffsetDateTime>| {
        *fact = Some(fact.unwrap_or(when(event)).min(when(event)));
    };
    match kind {
        "send" => first(&mut facts.sent_at),
        "delivery" => first(&mut facts.delivered_at),
        "reject" => first(&mut facts.rejected_at),
        "rendering_failure" => first(&mut facts.failed_at),
        "open" => {
            facts.open_count += 1;
            first(&mut facts.opened_at);
        }
        "click" => {
            facts.click_count += 1;
            first(&mut facts.clicked_at);
        }
        "delivery_delay" => {
            let mut delayed = facts.delayed_at.first().copied();
            first(&mut delayed);
            facts.delayed_at = delayed.into_iter().collect();
        }
        _ if bounce.is_some() => first(&mut facts.bounced_at),
        _ if complaint => first(&mut facts.complained_at),
        _ => (),
    }
}

fn check_truth(story: &Story) {
    let (told, folded) = (&story.truth, folded(story));
    let counts = |truth: &Truth| [truth.messages, truth.events, truth.duplicates, truth.ignored, truth.rejected];
    assert_eq!(counts(told), counts(&folded));
    assert!(told.rows == folded.rows, "rows differ");
    assert!(told.orphans == folded.orphans, "orphans differ");
    let leaves = |truth: &Truth| truth.rejected_leaves.values().sum::<usize>();
    assert_eq!(leaves(told), leaves(&folded));

    assert_eq!(told.facts.len(), folded.facts.len());
    for (uuid, mut folded) in folded.facts {
        let told = &told.facts[&uuid];
        assert!(told.admits_delay(folded.delayed_at.first().copied()), "{told:?} {folded:?}");
        assert_eq!(told.status(), folded.status());
        folded.delayed_at.clone_from(&told.delayed_at);
        assert_eq!(*told, folded);
    }
}

#[test]
fn the_truth_is_what_a_naive_reader_finds() {
    check_truth(&Story::tell(&settings(1, 1_000)));
}

#[test]
fn the_truth_is_the_same_in_any_order() {
    let story = Story::tell(&settings(2, 200));
    for seed in 0..5 {
        let shuffled = story.shuffled(seed);
        assert!(shuffled.steps().ne(story.steps()), "not shuffled");
        check_truth(&shuffled);
    }
}

#[test]
fn the_truth_holds_in_the_greatest_mess() {
    let mess = Mess {
        duplicates: 0.8,
        reordered: 0.8,
        late_logs: 0.5,
        unknown_mails: 0.3,
        linked_by_tag: 0.5,
        several_recipients: 0.7,
        second_delays: 0.8,
        identity_feedback: 0.7,
        novelties: 0.5,
        poison: 0.7,
        noise: 0.5,
    };
    let story = Story::tell(&StorySettings { mess, ..settings(3, 250) });
    check_truth(&story);
    assert!(story.truth.facts.values().any(|facts| facts.delayed_at.len() > 1));
}

#[test]
fn the_same_settings_tell_the_same_story() {
    let [one, same, other] = [7, 7, 8].map(|seed| Story::tell(&settings(seed, 200)));
    assert!(one.steps().eq(same.steps()));
    assert!(one.truth == same.truth);
    assert!(one.steps().ne(other.steps()));
    assert!(one.shuffled(1).steps().eq(same.shuffled(1).steps()));
}

#[test]
fn a_thousand_mails_show_every_kind_every_envelope_and_every_status() {
    for seed in [1, 2, 3] {
        let story = Story::tell(&settings(seed, 1_000));
        let truth = &story.truth;

        let kinds: BTreeSet<&str> = truth.rows.iter().map(|row| row.kind.as_str()).collect();
        let all = "bounce click complaint delivery delivery_delay inbox_placement open reject \
                   rendering_failure send subscription";
        assert_eq!(kinds.into_iter().collect::<Vec<_>>().join(" "), all);

        let statuses: BTreeSet<&str> = truth.facts.values().map(Facts::status).collect();
        let all = "bounced clicked complained delayed delivered failed opened queued rejected \
                   sent soft_bounced";
        assert_eq!(statuses.into_iter().collect::<Vec<_>>().join(" "), all);

        let bodies = publications(&story);
        let has = |what: &dyn Fn(&str) -> bool| bodies.iter().any(|body| what(body));
        assert!(has(
            &|body| body.starts_with(r#"{"Type":"Notification""#) && body.contains(r#""Message":"{\"eventType\""#)
        ));
        assert!(has(&|body| body.starts_with(r#"{"eventType""#) && body.lines().count() == 1));
        assert!(has(&|body| body.starts_with(r#"{"eventType""#) && body.lines().count() > 1));
        assert!(has(&|body| body.starts_with(r#"{"version":"0""#)));
        assert!(has(&|body| body.starts_with(r#"[{"version":"0""#)));
        assert!(has(&|body| body.contains(r#""Message":"{\"version\":\"0\""#)));
        assert!(has(&|body| body.contains(r#"\"notificationType\":"#)));
        assert!(truth.ignored > 0 && truth.rejected > 0 && !truth.orphans.is_empty());
    }
}

#[test]
fn every_poison_and_every_noise_comes_up() {
    let mess = Mess { poison: 0.3, noise: 0.3, ..Mess::none() };
    let story = Story::tell(&StorySettings { mess, ..settings(5, 1_500) });
    let all: BTreeSet<_> = junk::POISONS.iter().map(|poison| (poison.reason, poison.words)).collect();
    assert_eq!((story.truth.rejected_leaves.keys().copied().collect(), all.len()), (all, junk::POISONS.len()));
    let all: BTreeSet<_> = junk::NOISES.iter().map(|noise| (noise.reason, noise.words)).collect();
    assert_eq!((story.truth.ignored_leaves.keys().copied().collect(), all.len()), (all, junk::NOISES.len()));
    let mixed = publications(&story).iter().any(|body| {
        let mut content = Read::default();
        read(body, &mut content);
        content.rejected > 0 && !content.events.is_empty()
    });
    assert!(mixed, "no batch with one bad element");
    check_truth(&story);
}

/// The story and `decode` were written apart: where both say the same, and both know all there is, both are right.
#[test]
fn decode_finds_all_there_is_and_as_often_as_the_truth_says() {
    let mess = Mess { poison: 0.05, noise: 0.05, ..Mess::default() };
    let story = Story::tell(&StorySettings { mess, ..settings(16, 3_000) });
    let (mut rejected, mut ignored) = (BTreeMap::new(), BTreeMap::new());
    let (mut wrappers, mut kinds, mut events, mut keys) = (BTreeSet::new(), BTreeSet::new(), 0, BTreeSet::new());
    for body in publications(&story) {
        let mut outcomes = Vec::new();
        for leaf in decode(body.as_bytes(), OffsetDateTime::UNIX_EPOCH, &DecodeSettings::default()) {
            match leaf.outcome {
                Outcome::Rejected(reject) => *rejected.entry(reject.reason).or_insert(0) += 1,
                Outcome::Ignored(reason) => outcomes.push(reason),
                Outcome::Event(event) => {
                    wrappers.extend(leaf.envelope);
                    for row in event.into_events() {
                        events += 1;
                        kinds.insert(row.kind.as_str().to_owned());
                        keys.insert(RowKey {
                            aws_message_id: row.message_id.as_str().to_owned(),
                            kind: row.kind.as_str().to_owned(),
                            recipient: row.recipient.as_str().to_owned(),
                            occurred_at_ms: row.kind.happens_again().then(|| truth::unix_ms(row.occurred_at)),
                            link: row.detail.link,
                        });
                    }
                }
            }
        }
        for reason in outcomes {
            *ignored.entry(reason).or_insert(0) += 1;
        }
    }

    let truth = &story.truth;
    assert_eq!((rejected, ignored), (by_reason(&truth.rejected_leaves), by_reason(&truth.ignored_leaves)));
    assert_eq!(events, truth.events);
    assert!(keys == truth.rows.union(&truth.orphans).cloned().collect(), "decode reads other rows");

    // Nothing that `decode` knows is missing from the story. A body of SQS is text, so bytes that are none come as base64.
    assert!(
        truth
            .rejected_leaves
            .keys()
            .map(|(reason, _)| reason)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .eq(RejectReason::ALL)
    );
    assert!(
        truth
            .ignored_leaves
            .keys()
            .map(|(reason, _)| reason)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .eq(IgnoreReason::ALL)
    );
    assert!(wrappers.iter().eq(Wrapper::ALL), "{wrappers:?}");
    assert_eq!(kinds.len(), 11, "the ten of SES, and one that it may add: {kinds:?}");
}

fn by_reason<R: Ord + Copy>(leaves: &BTreeMap<(R, &str), usize>) -> BTreeMap<R, usize> {
    let mut counts = BTreeMap::new();
    for ((reason, _), count) in leaves {
        *counts.entry(*reason).or_insert(0) += count;
    }
    counts
}

#[test]
fn who_complains_does_so_within_hours_or_weeks_later() {
    let story = Story::tell(&settings(17, 3_000));
    let days = |(mail, happening): (&Mail, &Happening)| (happening.at_ms - mail.at_ms) / 86_400_000;
    let late: Vec<i64> = story
        .happenings
        .iter()
        .filter(|happening| matches!(happening.what, What::Complaint { suppressed_by: None, .. }))
        .map(|happening| days((&story.mails[happening.mail as usize], happening)))
        .collect();
    let share = |is: fn(&i64) -> bool| late.iter().filter(|days| is(days)).count() as f64 / late.len() as f64;
    assert!(share(|days| *days < 1) > 0.15 && share(|days| *days >= 14) > 0.1, "{late:?}");
    assert!(late.iter().all(|days| *days <= 31), "{late:?}");
}

#[test]
fn tenants_and_the_applications_own_tags_are_in_events_and_logs() {
    let story = Story::tell(&settings(18, 2_000));
    let events: Vec<Value> = publications(&story).iter().flat_map(|body| events_in(body)).collect();
    let tagged = |tag: &str, of: &dyn Fn(&str) -> bool| {
        let has = |event: &&Value| event.pointer("/mail/tags").is_some_and(|tags| tags.get(tag).is_some());
        events.iter().filter(has).filter(|event| of(&kind_of(event))).count()
    };
    assert!(tagged("ses:tenant-name", &|kind| matches!(kind, "bounce" | "complaint")) > 0);
    assert_eq!(tagged("ses:tenant-name", &|kind| !matches!(kind, "bounce" | "complaint")), 0);
    for tag in ["campaign", "tenant", "priority", "variant", "language"] {
        assert!(tagged(tag, &|_| true) > 0, "no event with the tag {tag}");
        assert!(logs(&story).iter().any(|row| row.tags.get(tag).is_some()), "no log with the tag {tag}");
    }
}

#[test]
fn a_plan_is_small() {
    assert!(size_of::<Beat>() <= 48, "{} bytes", size_of::<Beat>());
    assert!(size_of::<Happening>() <= 80, "{} bytes", size_of::<Happening>());
}

#[test]
fn the_status_is_the_first_that_applies() {
    let time = Some(truth::time(1));
    let mut facts = Facts::default();
    let mut check = |learn: &dyn Fn(&mut Facts), status| {
        learn(&mut facts);
        assert_eq!(facts.status(), status);
    };
    check(&|_| (), "queued");
    check(&|facts| facts.sent_at = time, "sent");
    check(&|facts| facts.delayed_at.extend(time), "delayed");
    check(&|facts| facts.bounced_at = time, "soft_bounced");
    check(&|facts| facts.bounce_class = Some(BounceClass::Transient), "soft_bounced");
    check(&|facts| facts.delivered_at = time, "delivered");
    check(&|facts| facts.opened_at = time, "opened");
    check(&|facts| facts.clicked_at = time, "clicked");
    check(&|facts| facts.bounce_class = Some(BounceClass::Undetermined), "bounced");
    check(&|facts| facts.bounce_class = Some(BounceClass::Permanent), "bounced");
    check(&|facts| facts.complained_at = time, "complained");
    check(&|facts| facts.failed_at = time, "failed");
    check(&|facts| facts.rejected_at = time, "rejected");
}

#[test]
fn a_tidy_world_is_tidy() {
    let story = Story::tell(&StorySettings { mess: Mess::none(), ..settings(6, 500) });
    let truth = &story.truth;
    assert_eq!([truth.ignored, truth.rejected, truth.orphans.len()], [0; 3]);
    assert_eq!(truth.facts.len(), 500);
    // A scanner that follows a link twice in a millisecond is not the story's mess but the world's.
    let scans = truth.duplicates;
    assert!(scans * 50 < truth.events, "{scans} of {}", truth.events);
    check_truth(&story);
}

#[test]
fn shares_are_met() {
    fn check(what: &str, share: f64, found: usize, of: usize) {
        let found = found as f64 / of as f64;
        assert!((found - share).abs() < 0.05, "{what}: {found} instead of {share}");
    }
    let mess =
        Mess { unknown_mails: 0.2, linked_by_tag: 0.3, several_recipients: 0.4, late_logs: 0.25, ..Mess::none() };
    let story = Story::tell(&StorySettings { mess, ..settings(9, 2_000) });
    let known = story.truth.facts.len();
    let rows = logs(&story);
    check("unknown", 0.2, 2_000 - known, 2_000);
    check("linked by tag", 0.3, rows.iter().filter(|r| r.aws_message_id.is_none()).count(), known);
    check("several", 0.4, rows.iter().filter(|r| r.recipients.len() > 1).count(), known);
    let most = rows.iter().map(|row| row.recipients.len()).max();
    assert!(most > Some(30) && most <= Some(50), "{most:?}");

    let repeats = Story::tell(&StorySettings { mess: Mess { duplicates: 0.3, ..Mess::none() }, ..settings(9, 2_000) });
    let bodies = publications(&repeats);
    let distinct: HashSet<&String> = bodies.iter().collect();
    let Truth { events, duplicates, .. } = repeats.truth;
    // A repeat is one message, in a tenth of the cases a few more.
    check("duplicates", 0.3 * 1.35 / (1.0 + 0.3 * 1.35), duplicates, events);
    let identical = (bodies.len() - distinct.len()) as f64 / duplicates as f64;
    assert!((0.4..0.7).contains(&identical), "{identical} of the repeats are byte for byte");
}

#[test]
fn late_logs_come_after_all_of_their_events() {
    for (late_logs, linked_by_tag) in [(1.0, 0.0), (0.0, 0.0)] {
        let mess = Mess { late_logs, linked_by_tag, ..Mess::none() };
        let story = Story::tell(&StorySettings { mess, ..settings(13, 300) });
        let mut written = HashSet::new();
        for step in story.steps() {
            match step {
                Step::WriteLog(row) => written.extend(row.aws_message_id.as_deref().map(bare)),
                Step::Publish(body) => {
                    for event in events_in(&body) {
                        let id = event["mail"]["messageId"].as_str().expect("ids are strings");
                        assert_eq!(written.contains(id), late_logs == 0.0);
                    }
                }
            }
        }
        assert!(written.len() > 250);
    }
}

#[test]
fn reordered_events_come_later_than_newer_ones() {
    for reordered in [0.0, 0.3] {
        let mess = Mess { reordered, ..Mess::none() };
        let story = Story::tell(&StorySettings { mess, ..settings(14, 1_000) });
        let (mut late, mut newest) = (0, OffsetDateTime::UNIX_EPOCH);
        for event in publications(&story).iter().flat_map(|body| events_in(body)) {
            late += usize::from(when(&event) + time::Duration::seconds(3) < newest);
            newest = newest.max(when(&event));
        }
        let found = late as f64 / story.truth.events as f64;
        assert!((found - reordered).abs() < 0.08, "{found} instead of {reordered}");
    }
}

#[test]
fn the_identity_feeds_back_and_delays_are_repeated_as_often_as_asked() {
    for share in [0.0, 1.0] {
        let mess = Mess { identity_feedback: share, second_delays: share, ..Mess::none() };
        let story = Story::tell(&StorySettings { mess, ..settings(15, 600) });
        let events: Vec<Value> = publications(&story).iter().flat_map(|b| events_in(b)).collect();
        let count = |of: &dyn Fn(&Value) -> bool| events.iter().filter(|e| of(e)).count() as f64;
        let feedback = count(&|event| event.get("notificationType").is_some());
        let both_ways = ["bounce", "complaint", "delivery"];
        let published = count(&|event| event.get("eventType").is_some() && both_ways.contains(&&*kind_of(event)));
        assert_eq!(feedback, published * share);
        let delays = count(&|event| kind_of(event) == "delivery_delay");
        let delayed = story.truth.rows.iter().filter(|row| row.kind == "delivery_delay").count();
        assert_eq!(delays, delayed as f64 * (1.0 + share));
    }
}

#[test]
fn the_delay_that_is_kept_is_never_later_than_the_last_of_another_recipient() {
    let delay = |at_ms, to: &[u8]| Happening {
        mail: 0,
        at_ms,
        what: What::DeliveryDelay { to: to.to_vec(), delay: &cast::DELAYS[0], spelling: life::Spelling::AsWritten },
    };
    let check = |delays: &[Happening], possible: &[i64]| {
        let possible: BTreeSet<OffsetDateTime> = possible.iter().map(|ms| truth::time(*ms)).collect();
        assert_eq!(truth::possible_delays(delays), possible);
    };
    check(&[], &[]);
    check(&[delay(10, &[0])], &[10]);
    check(&[delay(10, &[0]), delay(30, &[0])], &[10, 30]);
    check(&[delay(10, &[0]), delay(30, &[0]), delay(20, &[1])], &[10, 20]);
    check(&[delay(10, &[0, 1]), delay(30, &[0, 1])], &[10, 30]);
}

#[test]
fn ids_carry_the_time_of_the_mail() {
    let story = Story::tell(&settings(10, 50));
    for key in story.truth.rows.iter().filter(|key| key.kind == "send") {
        let ms = i64::from_str_radix(&key.aws_message_id[4..16], 16).expect("twelve hex digits");
        let facts = story.truth.facts.values().find(|f| f.sent_at == Some(truth::time(ms)));
        assert!(facts.is_some(), "no mail was sent at the time in {}", key.aws_message_id);
        assert_eq!(key.aws_message_id.len(), 60);
    }
    for row in logs(&story) {
        assert_eq!(row.uuid.get_version_num(), 7);
        let Some(id) = row.aws_message_id else {
            continue;
        };
        let hex = row.uuid.simple().to_string();
        assert_eq!(id.trim_start_matches('<')[4..16], hex[..12]);
    }
}

#[test]
fn bodies_are_as_big_as_the_profile_says() {
    let profiles = [
        (Profile::Small, 550, 1_000),
        (Profile::Usual, 1_500, 4_000),
        (Profile::Sized(200), 180, 400),
        (Profile::Sized(1_024), 1_000, 1_050),
        (Profile::Sized(3_072), 3_060, 3_090),
    ];
    for (profile, low, high) in profiles {
        let mess = Mess { several_recipients: 0.0, ..Mess::default() };
        let story = Story::tell(&StorySettings { profile, mess, ..settings(11, 500) });
        let mut sizes: Vec<usize> = publications(&story).iter().map(String::len).collect();
        sizes.sort_unstable();
        let [low_end, middle, high_end] = [10, 50, 90].map(|p| sizes[sizes.len() * p / 100]);
        assert!(low <= low_end && high_end <= high, "{profile:?}: {low_end} {middle} {high_end}");
    }
}

#[test]
fn a_size_changes_nothing_but_the_bodies() {
    let mess = || Mess { linked_by_tag: 0.3, ..Mess::none() };
    let tell = |profile| Story::tell(&StorySettings { profile, mess: mess(), ..settings(16, 200) });
    let small = tell(Profile::Small);
    for bytes in [200, 1_024, 3_072] {
        let sized = tell(Profile::Sized(bytes));
        assert_eq!(sized.truth, small.truth);
        let (sized, small) = (publications(&sized), publications(&small));
        assert_eq!(sized.len(), small.len());
        for (sized, small) in sized.iter().zip(&small) {
            let [sized, small]: [Value; 2] = [sized, small].map(|body| serde_json::from_str(body).expect("JSON"));
            let id = |event: &Value| event["mail"]["messageId"].clone();
            let log = |event: &Value| event["mail"]["tags"]["email_log_uuid"].clone();
            assert_eq!((id(&sized), log(&sized)), (id(&small), log(&small)));
            assert_eq!(sized["eventType"], small["eventType"]);
        }
    }
}

#[test]
fn the_gap_is_the_mean_time_between_two_mails() {
    for seconds in [1, 3_600] {
        let gap = std::time::Duration::from_secs(seconds);
        let story = Story::tell(&StorySettings { gap, ..settings(17, 1_000) });
        let sent = story.truth.facts.keys().map(|uuid| (uuid.as_u128() >> 80) as u64);
        let (first, last) = (sent.clone().min().unwrap_or_default(), sent.max().unwrap_or_default());
        let mean = (last - first) / 1_000 / 1_000;
        assert!((seconds * 9 / 10..=seconds * 11 / 10).contains(&mean), "{mean} s instead of {seconds} s");
    }
}

#[test]
fn nothing_of_a_mail_is_printed() {
    let story = Story::tell(&settings(12, 20));
    let printed = format!("{:?}", story.steps().collect::<Vec<_>>());
    assert!(!printed.contains('@') && printed.contains("Publish("), "{printed}");
}
