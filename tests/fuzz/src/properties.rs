//! What must hold for every body at all. Asked here of bodies that libFuzzer makes up, and in `tests/it/decode.rs`
//! of all fixtures and of bodies that chance makes up.

use std::collections::BTreeSet;

use serde_json::Value;
use ses_ledger::{
    event::{Detail, Event, MAX_INDEXED},
    pipeline::decode::{DecodeSettings, Leaf, Outcome, PayloadPolicy, Reject, RejectReason, SesEvent, decode},
};
use time::{OffsetDateTime, macros::datetime};

/// When all bodies are received.
pub(crate) const RECEIVED: OffsetDateTime = datetime!(2026-11-20 10:00:05 UTC);

/// More than any wrapping of SQS's 1 MiB can hold.
const MOST_LEAVES: usize = 32_769;

/// What the payloads of one event may weigh beyond four times its body: numbers grow when they are written again.
const MOST_PAYLOADS: usize = 5 << 20;

/// Panics if something does not hold.
pub(crate) fn check(body: &[u8]) {
    for payload in [PayloadPolicy::Event, PayloadPolicy::Full] {
        check_keeping(payload, body);
    }
}

fn check_keeping(payload: PayloadPolicy, body: &[u8]) {
    let leaves = leaves(body, payload);
    assert!((1..=MOST_LEAVES).contains(&leaves.len()), "{} leaves", leaves.len());
    let alone = leaves.len() == 1;
    for (leaf, same) in leaves.iter().zip(self::leaves(body, payload)) {
        assert!(leaf.envelope.len() <= 9, "{:?}", leaf.envelope);
        assert_eq!(leaf.envelope, same.envelope);
        match (&leaf.outcome, same.outcome) {
            (Outcome::Ignored(reason), Outcome::Ignored(same)) => assert_eq!(*reason, same),
            (Outcome::Rejected(reject), Outcome::Rejected(same)) => {
                assert_eq!(*reject, same);
                check_reject(reject, body, alone);
            }
            (Outcome::Event(event), Outcome::Event(same)) => check_event(event, *same, body.len()),
            (one, other) => panic!("not the same twice: {one:?} {other:?}"),
        }
    }
}

fn leaves(body: &[u8], payload: PayloadPolicy) -> Vec<Leaf> {
    decode(body, RECEIVED, &DecodeSettings { payload, ..DecodeSettings::default() })
}

fn check_reject(reject: &Reject, body: &[u8], alone: bool) {
    let Reject { reason, at, raw } = reject;
    if alone {
        assert!(raw == body, "the only leaf does not keep its body");
        assert!(raw == body || !raw.is_empty());
    }
    assert!(is_a_place(at), "{reason:?} at {at}");
    // What is replayed one day is rejected again, unless it was its place in the body that was wrong with it.
    if !alone && *reason != RejectReason::WrappedTooDeep {
        let again = leaves(raw, PayloadPolicy::None);
        let is_event = |leaf: &Leaf| matches!(leaf.outcome, Outcome::Event(_));
        assert!(!again.iter().any(is_event), "{reason:?} at {at} becomes {again:?}");
    }
}

/// `$.Message[3].mail line 1 column 17`: of what the body says, nothing.
fn is_a_place(at: &str) -> bool {
    const WORDS: [&str; 19] = [
        "$",
        "Sns",
        "Records",
        "records",
        "Messages",
        "Message",
        "detail",
        "requestPayload",
        "kinesis",
        "body",
        "Body",
        "data",
        "mail",
        "messageId",
        "line",
        "column",
        "byte",
        "at",
        "",
    ];
    let is_known = |word: &str| WORDS.contains(&word) || word.bytes().all(|byte| byte.is_ascii_digit());
    !at.is_empty() && at.len() <= 256 && at.split(['.', '[', ']', ' ']).all(is_known)
}

fn check_event(event: &SesEvent, same: SesEvent, body: usize) {
    assert!((1..=9999).contains(&event.occurred_at.year()) && event.occurred_at.offset().is_utc());
    let named: BTreeSet<_> = event.recipients.iter().map(|recipient| &recipient.address).collect();
    assert_eq!(named.len(), event.recipients.len(), "a recipient is repeated");
    assert!(named.iter().all(|address| !address.is_empty()));

    let rows = event.clone().into_events();
    let recipients: BTreeSet<&str> = rows.iter().map(|row| row.recipient.as_str()).collect();
    assert!((1..=MOST_LEAVES).contains(&rows.len()), "{} rows", rows.len());
    assert_eq!(recipients.len(), rows.len(), "a recipient has two rows");
    assert!(rows.len() == 1 || !recipients.contains(""));
    for (row, same) in rows.iter().zip(same.into_events()) {
        check_row(row);
        assert!(is_same(row, &same), "a row is not the same twice");
        if let Some(payload) = &row.payload {
            check_payload(row, payload);
        }
    }
    let weight: usize = rows.iter().map(weight).sum();
    assert!(weight <= 4 * body + 2 * MOST_PAYLOADS, "{} rows of {weight} bytes", rows.len());
}

/// What PostgreSQL's columns and indexes take.
fn check_row(row: &Event) {
    let Event { message_id, kind, recipient, detail, source, .. } = row;
    let indexed = [message_id.as_str(), kind.as_str(), recipient.as_str()];
    assert!(indexed.iter().all(|text| text.len() <= MAX_INDEXED && !text.contains(char::is_control)));
    assert!(!message_id.as_str().is_empty() && !kind.as_str().is_empty());
    let ids = [&source.sns_message_id, &source.eventbridge_id].map(Option::as_deref);
    for text in texts(detail).into_iter().chain(ids).flatten() {
        assert!(!text.is_empty() && !text.contains('\0'));
    }
    assert!(row.log_uuid.is_none_or(|uuid| !uuid.is_nil()));
    assert!((1..=9999).contains(&row.occurred_at.year()) && row.occurred_at.nanosecond().is_multiple_of(1_000));
}

/// What PostgreSQL's `jsonb` takes, and what a payload is kept for: it says again what its row says.
fn check_payload(row: &Event, payload: &str) {
    let value: Value = serde_json::from_str(payload).expect("a payload is JSON");
    assert!(value.is_object() && is_without_nul(&value));
    let [Leaf { outcome: Outcome::Event(event), .. }] = &leaves(payload.as_bytes(), PayloadPolicy::None)[..] else {
        panic!("a payload is not one event any more");
    };
    assert_eq!((&event.message_id, &event.kind, event.log_uuid), (&row.message_id, &row.kind, row.log_uuid));
    assert_eq!((event.occurred_at, event.time_source), (row.occurred_at, row.time_source));
    let rows = event.clone().into_events();
    assert!(rows.len() == 1 && rows[0].recipient == row.recipient, "a payload names somebody else");
}

/// Half a surrogate pair, a number beyond a double and a depth beyond 128 are no `Value` to begin with.
fn is_without_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.contains('\0'),
        Value::Array(items) => items.iter().all(is_without_nul),
        Value::Object(map) => map.iter().all(|(key, value)| !key.contains('\0') && is_without_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

fn is_same(left: &Event, right: &Event) -> bool {
    left.recipient == right.recipient
        && left.candidate == right.candidate
        && left.detail == right.detail
        && left.payload == right.payload
        && left.source == right.source
}

/// Every text of a detail.
fn texts(detail: &Detail) -> [Option<&str>; 13] {
    [
        &detail.bounce_type,
        &detail.bounce_subtype,
        &detail.smtp_status,
        &detail.diagnostic,
        &detail.complaint_type,
        &detail.complaint_subtype,
        &detail.delay_type,
        &detail.link,
        &detail.ip,
        &detail.user_agent,
        &detail.bot,
        &detail.feedback_id,
        &detail.reporting_mta,
    ]
    .map(Option::as_deref)
}

/// What is stored of a row in texts, in bytes; not what each row repeats of an id.
fn weight(row: &Event) -> usize {
    let detail: usize = texts(&row.detail).into_iter().flatten().map(str::len).sum();
    detail + row.payload.as_deref().map_or(0, str::len)
}
