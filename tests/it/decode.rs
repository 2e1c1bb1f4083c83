//! What becomes of every kind of body: the fixtures, tables of the small rules, and properties
//! that must hold for any bytes at all.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use serde_json::{Value, json};
use ses_ledger::event::{Address, Event, EventKind, MAX_INDEXED, MessageId, TimeSource};
use ses_ledger::pipeline::decode::{
    DecodeSettings, IgnoreReason, Leaf, Outcome, PayloadPolicy, RejectReason, SesEvent, Wrapper, decode,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;

#[path = "../fuzz/src/properties.rs"]
mod properties;

use properties::RECEIVED;

// The fixtures

#[test]
fn every_fixture_becomes_what_is_expected() {
    let mismatches: Vec<String> = expectations()
        .iter()
        .filter_map(|expected| {
            let file = text(&expected["file"]);
            let found = mismatch(expected, unwrap(&fixture(file)))?;
            Some(format!("{file}: {found}"))
        })
        .collect();
    assert!(mismatches.is_empty(), "{}", mismatches.join("\n"));
}

#[test]
fn every_fixture_has_one_expectation() {
    let lines = expectations();
    let expected: BTreeSet<String> = lines.iter().map(|line| text(&line["file"]).to_owned()).collect();
    let found: BTreeSet<String> = fs::read_dir(fixtures().join("bodies"))
        .expect("the bodies are part of the repository")
        .map(|entry| entry.expect("the directory can be read").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, expected);
    assert_eq!(lines.len(), found.len(), "a file is expected twice");
}

/// How a body differs from its expectation, if it does.
fn mismatch(expected: &Value, leaves: Vec<Leaf>) -> Option<String> {
    let count = |is: fn(&Outcome) -> bool| leaves.iter().filter(|leaf| is(&leaf.outcome)).count();
    let events = count(|outcome| matches!(outcome, Outcome::Event(_)));
    let rejected = count(|outcome| matches!(outcome, Outcome::Rejected(_)));
    let number = |key: &str| expected[key].as_u64().unwrap_or(0) as usize;
    let as_expected = match text(&expected["kind"]) {
        "event" => (events, leaves.len()) == (1, 1),
        "events" => (events, rejected) == (number("count"), number("rejected")) && leaves.len() == events + rejected,
        "ignored" => events == 0 && rejected == 0,
        "rejected" => events == 0 && rejected == leaves.len(),
        other => panic!("unknown kind {other}"),
    };
    if !as_expected {
        return Some(format!("expected {expected}, found {leaves:?}"));
    }
    match &leaves[0].outcome {
        Outcome::Event(event) if expected["kind"] == "event" => event_mismatch(expected, event),
        Outcome::Ignored(reason) => code_mismatch(expected, reason.as_str()),
        Outcome::Rejected(reject) => code_mismatch(expected, reject.reason.as_str()),
        Outcome::Event(_) => None,
    }
}

fn code_mismatch(expected: &Value, found: &str) -> Option<String> {
    let expected = expected["code"].as_str()?;
    (found != expected).then(|| format!("expected {expected}, found {found}"))
}

fn event_mismatch(expected: &Value, event: &SesEvent) -> Option<String> {
    let recipients: Vec<&str> = event.recipients.iter().map(|r| r.address.as_str()).collect();
    let same_recipients = match expected["recipients"].as_array() {
        Some(list) => {
            let mut listed: Vec<Address> = list.iter().map(|raw| Address::parse(text(raw))).collect();
            listed.dedup();
            listed.iter().map(Address::as_str).eq(recipients.iter().copied())
        }
        None => Some(recipients.len() as u64) == expected["recipient_count"].as_u64(),
    };
    let occurred_at = match expected["occurred_at"].as_str() {
        Some(time) => OffsetDateTime::parse(time, &Rfc3339).expect("expectations hold RFC 3339"),
        None => RECEIVED,
    };
    let same = event.kind.as_str() == expected["event_type"]
        && event.message_id.as_str() == expected["aws_message_id"]
        && event.occurred_at == occurred_at
        && (event.time_source == TimeSource::Received) == expected["occurred_at"].is_null()
        && same_recipients;
    (!same).then(|| format!("expected {expected}, found {event:?} {recipients:?}"))
}

fn expectations() -> Vec<Value> {
    ["expected.jsonl", "expected-more.jsonl"]
        .iter()
        .flat_map(|file| {
            let lines = fs::read_to_string(fixtures().join(file)).expect("the expectations are there");
            let parse = |line: &str| serde_json::from_str(line).expect("expectations are JSON");
            lines.lines().map(parse).collect::<Vec<Value>>()
        })
        .collect()
}

fn fixture(file: &str) -> Vec<u8> {
    fs::read(fixtures().join("bodies").join(file)).expect("every expected body is there")
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

// Times

#[test]
fn times_are_read_in_every_spelling() {
    let table = [
        (json!("2026-10-04T10:00:01.111Z"), "2026-10-04T10:00:01.111Z"),
        (json!("2026-10-04T10:00:01Z"), "2026-10-04T10:00:01Z"),
        (json!("2026-10-04T10:00Z"), "2026-10-04T10:00:00Z"),
        (json!(" 2026-10-04t10:00:01,5z "), "2026-10-04T10:00:01.5Z"),
        (json!("2018-10-08T14:05:45 +0000"), "2018-10-08T14:05:45Z"),
        (json!("2026-10-04T10:00:01.123456+00:00"), "2026-10-04T10:00:01.123456Z"),
        (json!("2026-10-04T10:00:01.1234569999Z"), "2026-10-04T10:00:01.123456Z"),
        (json!("2026-10-04T13:00:00+03:00"), "2026-10-04T10:00:00Z"),
        (json!("2026-10-04T04:30:00-0530"), "2026-10-04T10:00:00Z"),
        (json!("2026-10-04 12:00:00+02"), "2026-10-04T10:00:00Z"),
        (json!("2026-10-04 10:00:00 UTC"), "2026-10-04T10:00:00Z"),
        (json!("2026-10-04T10:00:00"), "2026-10-04T10:00:00Z"),
        (json!("2026-10-04"), "2026-10-04T00:00:00Z"),
        (json!("2024-02-29T00:00:00Z"), "2024-02-29T00:00:00Z"),
        (json!("2026-10-03T24:00:00.000Z"), "2026-10-04T00:00:00Z"),
        (json!("2016-12-31T23:59:60Z"), "2017-01-01T00:00:00Z"),
        (json!("2016-12-31T23:59:60.5Z"), "2017-01-01T00:00:00.5Z"),
        (json!("0001-01-01T00:00:00Z"), "0001-01-01T00:00:00Z"),
        (json!("9999-12-31T23:59:59.999Z"), "9999-12-31T23:59:59.999Z"),
        (json!("Mon, 08 Oct 2018 14:05:45 +0200"), "2018-10-08T12:05:45Z"),
        (json!(1_790_000_001), "2026-09-21T14:13:21Z"),
        (json!(1_790_000_001_111_u64), "2026-09-21T14:13:21.111Z"),
        (json!(1_790_000_001_111_222_u64), "2026-09-21T14:13:21.111222Z"),
        (json!(1_790_000_001.5), "2026-09-21T14:13:21.5Z"),
        (json!("1790000001111"), "2026-09-21T14:13:21.111Z"),
        (json!(100_000_000), "1973-03-03T09:46:40Z"),
    ];
    for (wire, expected) in table {
        assert_eq!(timed(&wire), (expected.to_owned(), TimeSource::Event), "{wire}");
    }
}

#[test]
fn unreadable_times_fall_back_and_say_so() {
    let unreadable = [
        json!(null),
        json!(true),
        json!([2026, 10, 4]),
        json!({}),
        json!(""),
        json!("not-a-date"),
        json!("now"),
        json!("infinity"),
        json!("nan"),
        json!("inf"),
        json!("2026-02-30T00:00:00Z"),
        json!("2025-02-29T00:00:00Z"),
        json!("2026-13-01T00:00:00Z"),
        json!("0000-00-00T00:00:00Z"),
        json!("0000-01-01T00:00:00Z"),
        json!("99999-01-01T00:00:00Z"),
        json!("-2026-01-01T00:00:00Z"),
        json!("2026-10-04T24:00:01Z"),
        json!("2026-10-04T25:00:00Z"),
        json!("2026-10-04T10:60:00Z"),
        json!("2026-10-04T10:00:61Z"),
        json!("2026-10-04T10:00:00."),
        json!("2026-10-04T"),
        json!("2026-10-04T10:00:00+24:00"),
        json!("2026-10-04T10:00:00+0"),
        json!("2026-10-04T10:00:00 PST"),
        json!("2026-10-04T10:00:00Zjunk"),
        json!("2026-10-04Té"),
        json!("２０２６-10-04T10:00:00Z"),
        json!("0001-01-01T00:00:00+01:00"),
        json!("9999-12-31T23:59:59-01:00"),
        json!("+2026-10-04T10:00:00Z"),
        json!(0),
        json!(-1_790_000_001),
        json!(1e300),
        json!(1e-300),
        json!(99_999_999),
        json!("2026"),
        json!("20261004"),
    ];
    for wire in unreadable {
        let (time, source) = timed(&wire);
        assert_eq!((time.as_str(), source), ("2026-10-04T10:00:00Z", TimeSource::Mail), "{wire}");
    }
}

#[test]
fn kinds_without_a_time_of_their_own_take_the_mails() {
    for (kind, source) in [
        ("Send", TimeSource::Event),
        ("Reject", TimeSource::Event),
        ("Rendering Failure", TimeSource::Event),
        ("Open", TimeSource::Mail),
        ("Novelty", TimeSource::Mail),
    ] {
        let event = event(&json!({ "eventType": kind, "mail": mail() }));
        assert_eq!((event.occurred_at, event.time_source), (datetime!(2026-10-04 10:00 UTC), source));
    }
    let nowhere = event(&json!({ "eventType": "Send", "mail": { "messageId": "x", "timestamp": 0 } }));
    assert_eq!((nowhere.occurred_at, nowhere.time_source), (RECEIVED, TimeSource::Received));
}

fn timed(wire: &Value) -> (String, TimeSource) {
    let body = json!({ "eventType": "Open", "mail": mail(), "open": { "timestamp": wire } });
    let event = event(&body);
    (event.occurred_at.format(&Rfc3339).expect("years 1 to 9999 can be written"), event.time_source)
}

// Names

#[test]
fn message_ids_are_bare() {
    let long = "x".repeat(MAX_INDEXED + 1);
    for (raw, expected) in [
        ("0100-aa-000000", Some("0100-aa-000000")),
        ("<0100-AA@email.amazonses.com>", Some("0100-AA")),
        ("0100-aa@us-east-2.amazonses.com", Some("0100-aa")),
        ("  0100-aa\r\n", Some("0100-aa")),
        ("01\u{0}00", Some("0100")),
        ("_a-B_", Some("_a-B_")),
        (&long[1..], Some(&long[1..])),
        (&long, None),
        ("", None),
        (" <> ", None),
        ("@example.com", None),
    ] {
        assert_eq!(MessageId::parse(raw).as_ref().map(MessageId::as_str), expected, "{raw:?}");
    }
}

#[test]
fn addresses_are_normalised() {
    let long = format!("{}@example.net", "x".repeat(MAX_INDEXED));
    for (raw, expected) in [
        ("to@example.net", "to@example.net"),
        ("To.Me@EXAMPLE.Net", "To.Me@example.net"),
        (" <to@example.net> ", "to@example.net"),
        ("Some One <to@Example.NET>", "to@example.net"),
        ("\"a <b>\" <to@example.net>", "to@example.net"),
        ("rfc822; To@EXAMPLE.net", "To@example.net"),
        ("RFC822;<to@example.net>", "to@example.net"),
        ("t\u{0}o@example.net\n", "to@example.net"),
        ("用户@例子.广告", "用户@例子.广告"),
        ("postmaster", "postmaster"),
        ("<>", ""),
        ("", ""),
        (&long, ""),
    ] {
        assert_eq!(Address::parse(raw).as_str(), expected, "{raw:?}");
    }
}

#[test]
fn kinds_are_compared_without_case_spaces_and_underscores() {
    for (wire, expected) in [
        ("Send", Some("send")),
        ("DELIVERY", Some("delivery")),
        ("Rendering Failure", Some("rendering_failure")),
        ("RENDERING_FAILURE", Some("rendering_failure")),
        ("renderingFailure", Some("rendering_failure")),
        ("DeliveryDelay", Some("delivery_delay")),
        ("Delivery Delay", Some("delivery_delay")),
        ("Quarantine", Some("quarantine")),
        ("NewThing", Some("new_thing")),
        ("NEW_THING", Some("new_thing")),
        (" new  thing ", Some("new_thing")),
        ("", None),
        (" _ - ", None),
    ] {
        assert_eq!(EventKind::parse(wire).as_ref().map(EventKind::as_str), expected, "{wire:?}");
    }
    let long = EventKind::parse(&"Ab".repeat(500)).expect("a long name is a name");
    assert!(long.as_str().chars().count() <= 64);
}

#[test]
fn codes_are_distinct_and_fit_for_labels() {
    let codes: Vec<&str> = (IgnoreReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(RejectReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(Wrapper::ALL.iter().map(|wrapper| wrapper.as_str()))
        .collect();
    assert_eq!(codes.iter().collect::<BTreeSet<_>>().len(), codes.len());
    assert!(codes.iter().all(|code| { code.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')) }));
}

// What is kept of an event

#[test]
fn the_columns_are_filled_from_every_kind() {
    let columns = |kind: &str, key: &str, object: Value| {
        let body = json!({ "eventType": kind, "mail": mail(), key: object });
        let detail = rows(&body, PayloadPolicy::None).remove(0).detail;
        json!({
            "bounce_type": detail.bounce_type, "bounce_subtype": detail.bounce_subtype,
            "smtp_status": detail.smtp_status, "diagnostic": detail.diagnostic,
            "complaint_type": detail.complaint_type, "complaint_subtype": detail.complaint_subtype,
            "delay_type": detail.delay_type, "link": detail.link, "ip": detail.ip,
            "user_agent": detail.user_agent, "bot": detail.bot, "feedback_id": detail.feedback_id,
            "reporting_mta": detail.reporting_mta,
        })
    };
    let check = |kind: &str, key: &str, object: Value, expected: Value| {
        let mut found = columns(kind, key, object);
        if let Value::Object(found) = &mut found {
            found.retain(|_, value| !value.is_null());
        }
        assert_eq!(found, expected, "{kind}");
    };
    let recipient = json!({ "emailAddress": "to@example.net", "status": "5.1.1", "diagnosticCode": "smtp; 550 no" });
    check(
        "Bounce",
        "bounce",
        json!({ "bounceType": "Permanent", "bounceSubType": "General", "feedbackId": "f",
                "reportingMTA": "dns; mta", "bouncedRecipients": [recipient] }),
        json!({ "bounce_type": "Permanent", "bounce_subtype": "General", "feedback_id": "f",
                "reporting_mta": "dns; mta", "smtp_status": "5.1.1", "diagnostic": "smtp; 550 no" }),
    );
    check(
        "Complaint",
        "complaint",
        json!({ "complaintSubType": null, "complaintFeedbackType": "not-spam", "userAgent": "fbl",
                "complainedRecipients": [{ "emailAddress": "to@example.net" }] }),
        json!({ "complaint_type": "not-spam", "user_agent": "fbl" }),
    );
    check(
        "Complaint",
        "complaint",
        json!({ "complaintSubType": "OnAccountSuppressionList" }),
        json!({ "complaint_subtype": "OnAccountSuppressionList" }),
    );
    check(
        "Delivery",
        "delivery",
        json!({ "smtpResponse": "250 2.6.0 queued", "recipients": ["to@example.net"], "reportingMTA": "a8" }),
        json!({ "smtp_status": "2.6.0", "diagnostic": "250 2.6.0 queued", "reporting_mta": "a8" }),
    );
    check(
        "DeliveryDelay",
        "deliveryDelay",
        json!({ "delayType": "MailboxFull", "delayedRecipients": recipient }),
        json!({ "delay_type": "MailboxFull", "smtp_status": "5.1.1", "diagnostic": "smtp; 550 no" }),
    );
    check("Reject", "reject", json!({ "reason": "Bad content" }), json!({ "diagnostic": "Bad content" }));
    check("Rendering Failure", "failure", json!({ "errorMessage": "no x" }), json!({ "diagnostic": "no x" }));
    check(
        "Open",
        "open",
        json!({ "ipAddress": "192.0.2.1", "userAgent": "", "isBotEvent": true }),
        json!({ "ip": "192.0.2.1", "bot": "Likely" }),
    );
    check("Open", "open", json!({ "isBotEvent": "Unlikely", "link": "x" }), json!({ "bot": "Unlikely" }));
    check("Click", "click", json!({ "link": "https://a", "url": "https://b" }), json!({ "link": "https://a" }));
    check("Click", "click", json!({ "url": "https://b", "linkTags": null }), json!({ "link": "https://b" }));
}

#[test]
fn the_smtp_status_is_found_where_servers_write_it() {
    for (status, diagnostic, expected) in [
        (json!("5.1.1"), json!("smtp; 550 5.7.1 no"), Some("5.1.1")),
        (json!(" 5.1."), json!("smtp; 550 5.1.1 user unknown"), Some("5.1.1")),
        (json!(null), json!("smtp;550-5.2.1 disabled"), Some("5.2.1")),
        (json!(null), json!("550 #5.1.0 Address rejected."), Some("5.1.0")),
        (json!(null), json!("4.4.7 Message expired"), Some("4.4.7")),
        (json!(null), json!("554 mx.example.com [192.0.2.5] says 5.7.1"), None),
        (json!(null), json!("250 ok 5.1.1"), None),
        (json!(null), json!("Amazon SES did not send the message"), None),
        (json!("odd"), json!(null), Some("odd")),
        (json!(5), json!(null), Some("5")),
    ] {
        let entry = json!({ "emailAddress": "to@example.net", "status": status, "diagnosticCode": diagnostic });
        let body = json!({ "eventType": "Bounce", "mail": mail(), "bounce": { "bouncedRecipients": [entry] } });
        let row = rows(&body, PayloadPolicy::None).remove(0);
        assert_eq!(row.detail.smtp_status.as_deref(), expected, "{entry}");
    }
}

#[test]
fn the_log_is_found_by_the_first_usable_tag() {
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    for (tags, expected) in [
        (json!({ "email_log_uuid": [id] }), Some(id)),
        (json!({ "email_log_uuid": id.to_uppercase() }), Some(id)),
        (json!({ "email_log_uuid": ["x", null, "00000000-0000-0000-0000-000000000000", id] }), Some(id)),
        (json!({ "email_log_uuid": ["x"] }), None),
        (json!({ "email_log_uuid": [] }), None),
        (json!({ "other": [id] }), None),
        (json!(null), None),
    ] {
        let mut mail = mail();
        mail["tags"] = tags;
        let found = event(&json!({ "eventType": "Send", "mail": mail })).log_uuid;
        assert_eq!(found.map(|uuid| uuid.to_string()).as_deref(), expected, "{mail}");
    }
    let settings = DecodeSettings { log_id_tag: "mine".to_owned(), ..DecodeSettings::default() };
    let body = json!({ "eventType": "Send", "mail": { "messageId": "x", "tags": { "mine": [id] } } });
    assert!(only_event(decode(body.to_string().as_bytes(), RECEIVED, &settings)).log_uuid.is_some());
}

#[test]
fn the_source_is_the_innermost_envelope_of_each_kind() {
    let inner = sns(&send().to_string(), "inner");
    let outer = sns(&eventbridge(json!(inner.to_string())).to_string(), "outer");
    let event = event(&outer);
    assert_eq!(event.source.sns_message_id.as_deref(), Some("inner"));
    assert_eq!(event.source.eventbridge_id.as_deref(), Some("eb"));

    let siblings = unwrap(json!([sns(&send().to_string(), "one"), send()]).to_string().as_bytes());
    let ids: Vec<_> = siblings.into_iter().map(|leaf| only_event(vec![leaf]).source.sns_message_id).collect();
    assert_eq!(ids, [Some("one".to_owned()), None]);
}

#[test]
fn the_zero_character_is_gone_from_every_key_and_string() {
    let body = r#"{"eventType":"Del\u0000ivery","ma\u0000il":{"messageId":"a\u0000b","x":["\u0000"],"\u0000":{"\u0000k\u0000":"v"}}}"#;
    let event = only_event(unwrap(sns(body, "m").to_string().as_bytes()));
    assert_eq!((event.kind.as_str(), event.message_id.as_str()), ("delivery", "ab"));
    let payload = payload(&event.into_events()[0]);
    assert_eq!(payload["mail"], json!({ "messageId": "ab", "x": [""], "": { "k": "v" } }));
}

#[test]
fn the_payload_follows_its_policy() {
    let mut mail = mail();
    mail["headers"] = json!([{ "name": "To", "value": "to@example.net" }]);
    mail["headersTruncated"] = json!(false);
    let body = json!({ "eventType": "Open", "mail": mail, "open": {}, "more": [1] });
    assert_eq!(payload(&rows(&body, PayloadPolicy::Full)[0]), body);
    assert_eq!(rows(&body, PayloadPolicy::None)[0].payload, None);
    let kept = payload(&rows(&body, PayloadPolicy::Event)[0]);
    let mut expected = body;
    for key in ["headers", "headersTruncated"] {
        expected["mail"].as_object_mut().expect("mail is an object").remove(key);
    }
    assert_eq!(kept, expected);
}

// Rows

#[test]
fn one_row_for_each_recipient_of_the_own_list() {
    for (kind, key, list) in [
        ("Bounce", "bounce", "bouncedRecipients"),
        ("Complaint", "complaint", "complainedRecipients"),
        ("Delivery", "delivery", "recipients"),
        ("DeliveryDelay", "deliveryDelay", "delayedRecipients"),
    ] {
        let listed = |list_of: Value| {
            let body = json!({ "eventType": kind, "mail": mail_to(&["a@x", "b@x", "c@x"]), key: { list: list_of } });
            let rows = rows(&body, PayloadPolicy::None);
            rows.iter().map(|row| (row.recipient.as_str().to_owned(), row.candidate)).collect::<Vec<_>>()
        };
        let several = kind == "Complaint";
        assert_eq!(
            listed(json!([{ "emailAddress": "a@x" }, "<b@X>", { "emailAddress": "A <a@x>" }, 7])),
            [("a@x".to_owned(), several), ("b@x".to_owned(), several)],
            "{kind}",
        );
        assert_eq!(listed(json!("c@x")), [("c@x".to_owned(), false)], "{kind}");
        assert_eq!(listed(json!([])), [(String::new(), false)], "{kind}");
        assert_eq!(listed(json!(null)), [(String::new(), false)], "{kind}");
    }
}

#[test]
fn a_mail_to_one_names_its_recipient_for_every_kind() {
    for kind in ["Send", "Open", "Click", "Delivery", "Bounce", "Novelty"] {
        for (to, expected) in [(&["a@x"][..], "a@x"), (&["a@x", "<a@X>"], "a@x"), (&["a@x", "b@x"], ""), (&[], "")] {
            let rows = rows(&json!({ "eventType": kind, "mail": mail_to(to) }), PayloadPolicy::None);
            assert_eq!(rows.len(), 1, "{kind}");
            assert_eq!((rows[0].recipient.as_str(), rows[0].candidate), (expected, false), "{kind}");
        }
    }
}

#[test]
fn a_row_brings_what_its_own_server_said() {
    let body = json!({ "eventType": "Bounce", "mail": mail_to(&["a@x", "b@x"]), "bounce": {
        "bounceType": "Permanent",
        "bouncedRecipients": [
            { "emailAddress": "a@x", "status": "5.1.1", "diagnosticCode": "a said no" },
            { "emailAddress": "b@x" },
        ],
    } });
    let rows = rows(&body, PayloadPolicy::None);
    let details = rows.iter().map(|row| {
        let detail = &row.detail;
        (detail.bounce_type.as_deref(), detail.smtp_status.as_deref(), detail.diagnostic.as_deref())
    });
    let expected = [(Some("Permanent"), Some("5.1.1"), Some("a said no")), (Some("Permanent"), None, None)];
    assert!(details.eq(expected));
}

#[test]
fn no_address_of_another_recipient_rides_along() {
    let mut mail = mail_to(&["A <a@x>", "b@x", "c@x"]);
    mail["commonHeaders"] = json!({ "to": ["a@x, b@x", "A <a@x>"], "cc": "b@x", "bcc": ["c@x"], "subject": "s" });
    mail["headers"] = json!([
        { "name": "TO", "value": "a@x, b@x" }, { "name": "Cc", "value": "c@x" }, { "name": "Subject", "value": "s" },
    ]);
    let body = json!({ "eventType": "Bounce", "mail": mail, "bounce": { "bouncedRecipients": [
        { "emailAddress": "a@x", "status": "5.1.1" }, { "emailAddress": "B@X" },
    ] } });
    let rows = rows(&body, PayloadPolicy::Full);
    let first = payload(&rows[0]);
    assert_eq!(first["bounce"]["bouncedRecipients"], json!([{ "emailAddress": "a@x", "status": "5.1.1" }]));
    assert_eq!(first["mail"]["destination"], json!(["A <a@x>"]));
    assert_eq!(first["mail"]["commonHeaders"], json!({ "to": ["A <a@x>"], "cc": [], "bcc": [], "subject": "s" }));
    assert_eq!(first["mail"]["headers"], json!([{ "name": "Subject", "value": "s" }]));
    // The list and the mail spell this one differently: the list's spelling stands in for the mail's.
    let second = payload(&rows[1]);
    assert_eq!(second["bounce"]["bouncedRecipients"], json!([{ "emailAddress": "B@X" }]));
    assert_eq!(second["mail"]["destination"], json!(["B@x"]));
}

#[test]
fn one_recipient_of_several_does_not_show_the_others() {
    let body =
        json!({ "eventType": "Delivery", "mail": mail_to(&["a@x", "b@x"]), "delivery": { "recipients": ["a@x"] } });
    assert!(!rows(&body, PayloadPolicy::Event)[0].payload.as_deref().unwrap_or_default().contains("b@x"));
}

#[test]
fn a_huge_fan_out_stays_small() {
    let to: Vec<String> = (0..20_000).map(|n| format!("{n}@x")).collect();
    let said = "é".repeat(50_000);
    let delivery = json!({ "recipients": to, "smtpResponse": said, "reportingMTA": said });
    let body = json!({ "eventType": "Delivery", "mail": mail_to(&["0@x"]), "delivery": delivery });
    let rows = rows(&body, PayloadPolicy::Event);
    assert_eq!(rows.len(), 20_000);
    assert!(rows[0].payload.is_some());
    assert!(rows[1..].iter().all(|row| row.payload.is_none()));
    let said: usize = rows.iter().filter_map(|row| row.detail.diagnostic.as_deref()).map(str::len).sum();
    assert!((20_000..4 << 20).contains(&said), "{said}");

    // Fifty is the most that SES takes: nothing is cut.
    let body = json!({ "eventType": "Delivery", "mail": mail(), "delivery": { "recipients": &to[..50], "smtpResponse": "x".repeat(9000) } });
    let whole = |row: &Event| row.payload.is_some() && row.detail.diagnostic.as_deref().map(str::len) == Some(9000);
    assert!(self::rows(&body, PayloadPolicy::Event).iter().all(whole));
}

// What is refused, and how it is told

#[test]
fn a_rejected_body_tells_why_and_where() {
    let deep = "[".repeat(100_000);
    for (body, reason, at) in [
        ("", RejectReason::Empty, "$"),
        ("\u{feff} \n", RejectReason::Empty, "$"),
        ("[]", RejectReason::EmptyBatch, "$"),
        (r#"{"Records":[]}"#, RejectReason::EmptyBatch, "$.Records"),
        (r#"{"Type":"Notification","TopicArn":"t"}"#, RejectReason::EmptyEnvelope, "$.Message"),
        ("oops", RejectReason::NotJson, "line 1 column 1"),
        (r#"{"a":NaN}"#, RejectReason::InvalidJson, "line 1 column 6"),
        (r#"{"Type":"Notification","Message":"{\"a\":\n'"}"#, RejectReason::InvalidJson, "$.Message line 2 column 1"),
        (r#"{"a":"#, RejectReason::TruncatedJson, "line 1 column 5"),
        // One text that is printed over several lines is not several texts.
        ("{\n  \"a\": [\n    {\"b\": 1}\n", RejectReason::TruncatedJson, "line 4 column 0"),
        (r#"{"a":"\ud83d"}"#, RejectReason::LoneSurrogate, "line 1 column 13"),
        (r#"{"a":"\ud83d\n"}"#, RejectReason::LoneSurrogate, "line 1 column 14"),
        (r#"{"a":"\ude00"}"#, RejectReason::LoneSurrogate, "line 1 column 12"),
        (r#"{"a":1e400}"#, RejectReason::NumberOutOfRange, "line 1 column 10"),
        (&deep, RejectReason::NestedTooDeep, "line 1 column 128"),
        ("7", RejectReason::NotAnObject, "$"),
        (r#"{"Records":[{"Sns":{"Message":"7"}}]}"#, RejectReason::NotAnObject, "$.Records[0].Sns.Message"),
        (r#"["a.PayloadS3Pointer",{}]"#, RejectReason::PayloadInS3, "$"),
        (r#"{"mail":{"messageId":"x"}}"#, RejectReason::NoType, "$"),
        (r#"{"eventType":"Send","mail":[]}"#, RejectReason::NoMail, "$.mail"),
        (r#"[{"detail":{"eventType":"Send","mail":{}}}]"#, RejectReason::NoMessageId, "$[0].detail.mail.messageId"),
    ] {
        let leaves = unwrap(body.as_bytes());
        let [Leaf { outcome: Outcome::Rejected(reject), .. }] = leaves.as_slice() else {
            panic!("{body:.80} became {leaves:?}");
        };
        assert_eq!((reject.reason, reject.at.as_str()), (reason, at), "{body:.80}");
        assert_eq!(reject.raw, body.as_bytes());
    }
    let leaves = unwrap(b"{\"a\":\xff}");
    assert!(
        matches!(&leaves[0].outcome, Outcome::Rejected(r) if r.reason == RejectReason::NotUtf8 && r.at == "byte 5")
    );
}

#[test]
fn a_bad_leaf_among_others_brings_its_own_text() {
    let body = json!([send(), { "eventType": "Send" }, 7, sns("{\"cut", "m"), "oops", []]).to_string();
    let leaves = unwrap(body.as_bytes());
    let raw: Vec<&str> = leaves
        .iter()
        .filter_map(|leaf| match &leaf.outcome {
            Outcome::Rejected(reject) => str::from_utf8(&reject.raw).ok(),
            _ => None,
        })
        .collect();
    assert_eq!(raw, [r#"{"eventType":"Send"}"#, "7", "{\"cut", "oops", "[]"]);
}

#[test]
fn the_way_to_a_leaf_is_told() {
    let base64 = "eyJldmVudFR5cGUiOiJTZW5kIiwibWFpbCI6eyJtZXNzYWdlSWQiOiJ4In19";
    let body = json!({ "requestPayload": { "Records": [{ "Sns": sns(&json!([base64]).to_string(), "m") }] } });
    let leaves = unwrap(body.to_string().as_bytes());
    let way: Vec<&str> = leaves[0].envelope.iter().map(|wrapper| wrapper.as_str()).collect();
    assert_eq!(way, ["lambda_destination", "records", "sns", "array", "string", "base64"]);
    assert!(matches!(leaves[0].outcome, Outcome::Event(_)));
}

/// Each of these was lost once.
#[test]
fn text_may_be_wrapped_in_text_again() {
    for wraps in [&[6, 6][..], &[6, 5, 6], &[5, 6, 5], &[6, 7], &[7, 7], &[7, 6, 7], &[0, 6, 7, 5]] {
        let wrap = |text: String, wrap: &u8| wrap_in(*wrap, &text);
        let body = wraps.iter().fold(send().to_string(), wrap);
        assert_eq!(only_event(unwrap(body.as_bytes())).message_id.as_str(), "0100-aa", "{wraps:?}");
    }
    // Base64 of nothing is nothing, and not base64 of nothing again.
    for empty in ["=", "A", "\"\"", "\"=\""] {
        assert!(all_rejected(&unwrap(empty.as_bytes())), "{empty}");
    }
}

#[test]
fn nobodys_address_is_in_debug_output() {
    let click = json!({ "link": "https://secret" });
    let body = json!({ "eventType": "Click", "mail": mail_to(&["secret@x"]), "click": click });
    let leaves = unwrap(json!([body, { "eventType": "Open", "x": "secret" }]).to_string().as_bytes());
    let rows = rows(&body, PayloadPolicy::Full);
    let row = (&rows[0].recipient, &rows[0].detail, &event(&body).recipients);
    let shown = format!("{leaves:?} {rows:?} {row:?}");
    assert!(!shown.contains("secret"), "{shown}");
}

// Size and depth

#[test]
fn no_depth_overflows_the_stack() {
    let arrays = "[".repeat(500_000) + &"]".repeat(500_000);
    let objects = r#"{"a":"#.repeat(100_000) + "1" + &"}".repeat(100_000);
    let envelopes = r#"{"Sns":"#.repeat(100_000);
    let mut strings = "x".to_owned();
    while strings.len() < 200_000 {
        strings = json!(strings).to_string();
    }
    for body in [&arrays, &objects, &envelopes, &strings] {
        assert!(all_rejected(&unwrap(body.as_bytes())));
        assert!(all_rejected(&unwrap(sns(&format!("[{body}"), "m").to_string().as_bytes())));
        assert!(all_rejected(&unwrap(json!([body, body]).to_string().as_bytes())));
    }
    let mut wrapped = send();
    for _ in 0..9 {
        wrapped = json!([wrapped]);
    }
    let leaves = unwrap(wrapped.to_string().as_bytes());
    assert!(matches!(&leaves[0].outcome, Outcome::Rejected(r) if r.reason == RejectReason::WrappedTooDeep));
}

#[test]
fn a_mebibyte_of_anything_is_decoded() {
    const MIB: usize = 1 << 20;
    let fill = |piece: &str| piece.repeat(MIB / piece.len());
    for junk in ["x", " ", "[1,\n", "{\n", "\"\n", "{}\n", "[[],\n", "7 ", "e30=", "\\u0000", "\u{feff}"] {
        assert!(all_rejected(&unwrap(fill(junk).as_bytes())), "{junk:?}");
    }
    // A batch of the shortest events is understood whole; a batch of more leaves than that is not.
    let shortest = r#"{"eventType":"Send","mail":{"messageId":"x"}}"#;
    let events = unwrap(fill(&format!("{shortest}\n")).as_bytes());
    assert_eq!(events.len(), MIB / (shortest.len() + 1));
    assert!(events.iter().all(|leaf| matches!(leaf.outcome, Outcome::Event(_))));
    let crowd = format!("[{}7]", "7,".repeat(40_000));
    let leaves = unwrap(crowd.as_bytes());
    assert_eq!(leaves.len(), 1);
    assert!(matches!(&leaves[0].outcome, Outcome::Rejected(r) if r.reason == RejectReason::TooManyLeaves));
    // So are more recipients, in one event or in several.
    for (events, recipients) in [(1, 32_768), (1, 32_769), (4, 8_193)] {
        let mut body = json!({ "eventType": "Delivery", "mail": mail(), "delivery": { "recipients": [] } });
        body["delivery"]["recipients"] = (0..recipients).map(|n| format!("{n}@x")).collect();
        let leaves = unwrap(Value::from(vec![body; events]).to_string().as_bytes());
        let too_many = matches!(&leaves[0].outcome, Outcome::Rejected(r) if r.reason == RejectReason::TooManyLeaves);
        assert_eq!(too_many, events * recipients > 32_768, "{recipients} in each of {events}");
    }
    // Ten thousand bad elements cost their own bytes, not ten thousand bodies.
    let junk = unwrap(format!("[{}7]", "7,".repeat(9_999)).as_bytes());
    let kept = junk.iter().map(|leaf| match &leaf.outcome {
        Outcome::Rejected(reject) => reject.raw.len(),
        _ => 0,
    });
    assert_eq!((junk.len(), kept.sum::<usize>()), (10_000, 10_000));
}

fn all_rejected(leaves: &[Leaf]) -> bool {
    !leaves.is_empty() && leaves.iter().all(|leaf| matches!(leaf.outcome, Outcome::Rejected(_)))
}

// The command

#[test]
fn the_command_shows_each_leaf_as_one_line_of_json() {
    let body = json!([{ "eventType": "Click", "mail": mail(), "click": { "link": "https://a" } }, sns("hi", "m"), 7]);
    let (code, out, _) = command(&["--json"], body.to_string().as_bytes());
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    let expected = [
        json!({ "outcome": "event", "event_type": "click", "aws_message_id": "0100-aa",
                "recipients": ["to@example.net"], "occurred_at": "2026-10-04T10:00:00Z",
                "time_source": "mail", "envelope": ["array"], "rows": 1, "link": "https://a" }),
        json!({ "outcome": "ignored", "reason": "plain_text", "envelope": ["array", "sns"] }),
        json!({ "outcome": "rejected", "reason": "not_an_object", "at": "$[2]", "envelope": ["array"] }),
    ];
    assert_eq!((code, lines.as_slice()), (Some(1), &expected[..]));
}

#[test]
fn the_command_is_content_with_what_is_not_rejected() {
    let (code, out, _) = command(&["-", "--payload", "event"], send().to_string().as_bytes());
    assert_eq!(code, Some(0));
    assert!(out.contains("event_type         send\n"), "{out}");
    assert!(out.contains("\"destination\":[\"to@example.net\"]"), "{out}");
    assert_eq!(command(&[], b"Successfully validated SNS topic for Amazon SES event publishing.").0, Some(0));
    assert_eq!(command(&[], b"{}").0, Some(1));
}

#[test]
fn the_command_tells_which_file_it_cannot_read() {
    let (code, out, err) = command(&["no/such/file"], b"");
    assert!(code != Some(0) && out.is_empty());
    assert!(err.contains("cannot read the body in no/such/file"), "{err}");
}

/// Runs `ses-ledger decode` on a body: its exit code, output and errors.
fn command(arguments: &[&str], body: &[u8]) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ses-ledger"))
        .arg("decode")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary was built for this test");
    let mut stdin = child.stdin.take().expect("standard input is a pipe, see above");
    // A command that does not read its input may be gone already.
    let _ = stdin.write_all(body);
    drop(stdin);
    let output = child.wait_with_output().expect("the command ends");
    let text = |bytes| String::from_utf8(bytes).expect("the command writes text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

// Properties

#[test]
fn every_fixture_is_sound() {
    for expected in expectations() {
        properties::check(&fixture(text(&expected["file"])));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_decoded(body in proptest::collection::vec(any::<u8>(), 0..1024)) {
        properties::check(&body);
    }

    #[test]
    fn any_json_is_decoded(body in any_json()) {
        properties::check(body.to_string().as_bytes());
        properties::check(sns(&body.to_string(), "m").to_string().as_bytes());
    }

    #[test]
    fn a_damaged_body_is_decoded(body in damaged_body()) {
        properties::check(&body);
    }

    #[test]
    fn no_envelope_changes_the_event(index in 0..SMALL_EVENTS.len(), wraps in proptest::collection::vec(0..8_u8, 0..5)) {
        let bare = unwrap(&fixture(SMALL_EVENTS[index]));
        let bare = only_event(bare);
        let body = rows(&serde_json::from_slice(&fixture(SMALL_EVENTS[index])).expect("these are JSON"), PayloadPolicy::Full);
        let mut wrapped = String::from_utf8(fixture(SMALL_EVENTS[index])).expect("these are text");
        for wrap in wraps {
            wrapped = wrap_in(wrap, &wrapped);
        }
        let event = only_event(unwrap_keeping(PayloadPolicy::Full, wrapped.as_bytes()));
        prop_assert_eq!(&event.message_id, &bare.message_id);
        let wrapped_rows = event.into_events();
        prop_assert_eq!(wrapped_rows.len(), body.len());
        for (found, expected) in wrapped_rows.iter().zip(&body) {
            prop_assert!(same_row(found, expected));
        }
    }
}

/// Events that stand bare in their files.
const SMALL_EVENTS: [&str; 6] = [
    "Bounce--empty-recipients.json",
    "Delivery--several-recipients.json",
    "Delivery--ts-garbage.json",
    "Click--link-9k.json",
    "Open--long-useragent-nonascii.json",
    "RenderingFailure--key-renderingfailure.json",
];

fn same_row(left: &Event, right: &Event) -> bool {
    let parsed = |payload: &Option<String>| payload.as_deref().map(|text| serde_json::from_str::<Value>(text).ok());
    left.message_id == right.message_id
        && left.log_uuid == right.log_uuid
        && left.kind == right.kind
        && left.occurred_at == right.occurred_at
        && left.time_source == right.time_source
        && left.recipient == right.recipient
        && left.candidate == right.candidate
        && left.detail == right.detail
        && parsed(&left.payload) == parsed(&right.payload)
}

fn wrap_in(wrap: u8, text: &str) -> String {
    let value = || serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    match wrap {
        0 => sns(text, "m").to_string(),
        1 => eventbridge(value()).to_string(),
        2 => json!({ "Records": [{ "EventSource": "aws:sns", "Sns": sns(text, "m") }] }).to_string(),
        3 => json!({ "requestPayload": value() }).to_string(),
        4 => json!([value()]).to_string(),
        5 => json!(text).to_string(),
        6 => base64(text.as_bytes()),
        _ => format!("\u{feff} {text}\r\n"),
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let encode = |chunk: &[u8]| {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..4)
            .map(|n| if n > chunk.len() { '=' } else { char::from(ALPHABET[(bits >> (18 - 6 * n) & 63) as usize]) })
            .collect::<String>()
    };
    bytes.chunks(3).map(encode).collect()
}

/// JSON that uses the words of SES and of its envelopes in all the wrong places.
fn any_json() -> impl Strategy<Value = Value> {
    let key = proptest::sample::select(vec![
        "eventType",
        "notificationType",
        "mail",
        "messageId",
        "timestamp",
        "destination",
        "tags",
        "bounce",
        "bouncedRecipients",
        "emailAddress",
        "delivery",
        "recipients",
        "Message",
        "Type",
        "TopicArn",
        "detail",
        "detail-type",
        "source",
        "Records",
        "Sns",
        "body",
        "data",
        "requestPayload",
        "commonHeaders",
        "to",
        "email_log_uuid",
        "headers",
        "kinesis",
        "\u{0}",
    ]);
    let word = proptest::sample::select(vec![
        "Bounce",
        "Delivery",
        "Open",
        "aws.ses",
        "Notification",
        "a@x",
        "b@x",
        "{\"eventType\":",
        "e30=",
        "[",
        "\u{0}",
        "2026-10-04T10:00:00Z",
        "Email Sent",
        "",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((key.clone(), inner.clone()), 0..10)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            inner.prop_map(|value| json!(value.to_string())),
        ]
    })
}

/// A body from the fixtures with flipped, lost, repeated and foreign bytes.
fn damaged_body() -> impl Strategy<Value = Vec<u8>> {
    let bodies: Vec<Vec<u8>> = expectations()
        .iter()
        .map(|expected| fixture(text(&expected["file"])))
        .filter(|body| !body.is_empty() && body.len() < 10_000)
        .collect();
    let body = proptest::sample::select(bodies.clone());
    let damage = (0..5_u8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>());
    (body, proptest::collection::vec(damage, 1..6)).prop_map(move |(mut body, damages)| {
        for (damage, at, other, byte) in damages {
            if body.is_empty() {
                break;
            }
            let at = at.index(body.len());
            let end = at + other.index(body.len() - at);
            match damage {
                0 => body[at] ^= byte | 1,
                1 => body.truncate(at),
                2 => drop(body.drain(at..end)),
                3 => body.extend_from_within(at..end),
                _ => drop(body.splice(at..at, other.get(&bodies).iter().copied())),
            }
        }
        body
    })
}

// The bodies that the tests are made of

fn mail() -> Value {
    mail_to(&["to@example.net"])
}

fn mail_to(destination: &[&str]) -> Value {
    json!({ "messageId": "0100-aa", "timestamp": "2026-10-04T10:00:00.000Z", "destination": destination })
}

fn send() -> Value {
    json!({ "eventType": "Send", "mail": mail(), "send": {} })
}

fn sns(message: &str, id: &str) -> Value {
    json!({ "Type": "Notification", "MessageId": id, "TopicArn": "arn", "Message": message })
}

fn eventbridge(detail: Value) -> Value {
    json!({ "version": "0", "id": "eb", "detail-type": "Email Sent", "source": "aws.ses", "detail": detail })
}

fn unwrap(body: &[u8]) -> Vec<Leaf> {
    decode(body, RECEIVED, &DecodeSettings::default())
}

fn unwrap_keeping(payload: PayloadPolicy, body: &[u8]) -> Vec<Leaf> {
    decode(body, RECEIVED, &DecodeSettings { payload, ..DecodeSettings::default() })
}

fn event(body: &Value) -> SesEvent {
    only_event(unwrap(body.to_string().as_bytes()))
}

fn only_event(leaves: Vec<Leaf>) -> SesEvent {
    match <[Leaf; 1]>::try_from(leaves) {
        Ok([Leaf { outcome: Outcome::Event(event), .. }]) => *event,
        other => panic!("not exactly one event: {other:?}"),
    }
}

fn rows(body: &Value, payload: PayloadPolicy) -> Vec<Event> {
    only_event(unwrap_keeping(payload, body.to_string().as_bytes())).into_events()
}

fn payload(row: &Event) -> Value {
    serde_json::from_str(row.payload.as_deref().unwrap_or_default()).expect("a payload is JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("expectations hold text here")
}
