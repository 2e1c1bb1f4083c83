//! Unwraps a body until only leaves are left.

use time::OffsetDateTime;

use super::{
    DecodeSettings, IgnoreReason, Leaf, Outcome, Reject, RejectReason, Wrapper,
    json::{Object, Value, parse, parse_stream},
    noise, ses,
};
use crate::event::Source;

/// The most wrappers around one leaf. Six were seen.
const MAX_WRAPPERS: usize = 8;

/// The most leaves of one body, and the most rows of all its leaves together. SQS takes 1 MiB, which holds about 23,000 of
/// the shortest events; but also 140,000 recipients of one event, whose rows would take 300 MiB of memory.
const MAX_LEAVES: usize = 32_768;

pub(super) fn unwrap(body: &[u8], received_at: OffsetDateTime, settings: &DecodeSettings) -> Vec<Leaf> {
    let mut walk = Walk::new(received_at, settings);
    match str::from_utf8(body) {
        Ok(text) => walk.text(text),
        Err(error) => {
            let at = format!(" byte {}", error.valid_up_to());
            walk.reject(RejectReason::NotUtf8, &at, Vec::new);
        }
    }
    if walk.leaves.len() > MAX_LEAVES || rows(&walk.leaves) > MAX_LEAVES {
        walk = Walk::new(received_at, settings);
        walk.reject(RejectReason::TooManyLeaves, "", Vec::new);
    }
    if let [Leaf { outcome: Outcome::Rejected(reject), .. }] = walk.leaves.as_mut_slice() {
        reject.raw = body.to_vec();
    }
    walk.leaves
}

fn rows(leaves: &[Leaf]) -> usize {
    let of = |leaf: &Leaf| match &leaf.outcome {
        Outcome::Event(event) => event.row_count(),
        Outcome::Ignored(_) | Outcome::Rejected(_) => 1,
    };
    leaves.iter().map(of).sum()
}

/// The way from the body to the leaf at hand, and the leaves found so far.
struct Walk<'a> {
    received_at: OffsetDateTime,
    settings: &'a DecodeSettings,
    leaves: Vec<Leaf>,
    trail: Vec<Wrapper>,
    path: String,
    source: Source,
    /// The body has several leaves, so that each rejected one must bring its own text.
    siblings: bool,
}

impl<'a> Walk<'a> {
    fn new(received_at: OffsetDateTime, settings: &'a DecodeSettings) -> Self {
        Self {
            received_at,
            settings,
            leaves: Vec::with_capacity(1),
            trail: Vec::new(),
            path: "$".to_owned(),
            source: Source::default(),
            siblings: false,
        }
    }

    fn text(&mut self, text: &str) {
        let text = without_byte_order_mark(text);
        if self.trail.len() > MAX_WRAPPERS {
            return self.reject(RejectReason::WrappedTooDeep, "", || text.into());
        }
        if noise::is_validation(text) {
            return self.ignore(IgnoreReason::SesValidation);
        }
        match parse(text) {
            Ok(value) => self.value(value),
            Err(error) => self.not_one_json(text, &error),
        }
    }

    /// Text that is not one JSON text: several, or base64, or words, or broken.
    fn not_one_json(&mut self, text: &str, error: &serde_json::Error) {
        if text.trim().is_empty() {
            return self.reject(RejectReason::Empty, "", || text.into());
        }
        if let Some(pieces) = several(text) {
            return self.batch(Wrapper::Ndjson, pieces, |walk, piece| match piece {
                Ok(value) => walk.value(value),
                Err(text) => walk.text(text),
            });
        }
        match base64_of_json(text) {
            Some(Ok(decoded)) => self.within(Wrapper::Base64, "", |walk| walk.text(&decoded)),
            Some(Err(())) => self.reject(RejectReason::NotUtf8, "", || text.into()),
            None if self.published() && !starts_like_json(text) => {
                self.ignore(IgnoreReason::PlainText);
            }
            None => self.reject_json(text, error),
        }
    }

    fn value(&mut self, value: Value<'_>) {
        if self.trail.len() > MAX_WRAPPERS {
            return self.reject(RejectReason::WrappedTooDeep, "", || value.to_text().into_bytes());
        }
        match value {
            Value::Object(map) => self.object(map),
            Value::Array(items) if is_s3_pointer(&items) => {
                self.reject(RejectReason::PayloadInS3, "", || Value::Array(items).to_text().into_bytes());
            }
            Value::Array(items) => self.batch(Wrapper::Array, items, Self::value),
            Value::String(text) => self.within(Wrapper::String, "", |walk| walk.text(&text)),
            scalar => self.reject(RejectReason::NotAnObject, "", || scalar.to_text().into_bytes()),
        }
    }

    fn object(&mut self, mut map: Object<'_>) {
        match Shape::of(&map) {
            Shape::Sns => self.sns(map),
            Shape::SnsRecord => match map.remove("Sns") {
                Some(Value::Object(envelope)) => self.at(".Sns", |walk| walk.sns(envelope)),
                _ => self.leaf(map),
            },
            Shape::EventBridge => self.eventbridge(map),
            Shape::Records(key) => match map.remove(key) {
                Some(Value::Array(records)) => self.at(&format!(".{key}"), |walk| {
                    walk.batch(Wrapper::Records, records, Self::value);
                }),
                _ => self.leaf(map),
            },
            Shape::Carrier(wrapper, key) => match map.remove(key) {
                Some(Value::String(text)) => {
                    self.within(wrapper, &format!(".{key}"), |walk| walk.text(&text));
                }
                Some(inner) => self.within(wrapper, &format!(".{key}"), |walk| walk.value(inner)),
                None => self.leaf(map),
            },
            Shape::Leaf => self.leaf(map),
        }
    }

    fn sns(&mut self, mut map: Object<'_>) {
        match map.get("Type").and_then(Value::as_str) {
            Some("SubscriptionConfirmation") => {
                return self.ignore(IgnoreReason::SubscriptionConfirmation);
            }
            Some("UnsubscribeConfirmation") => {
                return self.ignore(IgnoreReason::UnsubscribeConfirmation);
            }
            _ => {}
        }
        if !matches!(map.get("Message"), Some(Value::String(_) | Value::Object(_) | Value::Array(_))) {
            return self.reject(RejectReason::EmptyEnvelope, ".Message", || map.to_text().into_bytes());
        }
        let message = map.remove("Message").unwrap_or_default();
        let outer = self.source.sns_message_id.clone();
        self.source.sns_message_id = short_text(&map, "MessageId").or_else(|| outer.clone());
        self.within(Wrapper::Sns, ".Message", |walk| match message {
            Value::String(text) => walk.text(&text),
            relayed => walk.value(relayed),
        });
        self.source.sns_message_id = outer;
    }

    fn eventbridge(&mut self, mut map: Object<'_>) {
        let unwraps = match map.get("detail") {
            Some(Value::Object(detail)) => Shape::of(detail) != Shape::Leaf,
            Some(Value::String(text)) => starts_like_json(text),
            _ => false,
        };
        if let Some(reason) = noise::eventbridge(&map, unwraps) {
            return self.ignore(reason);
        }
        if matches!(map.get("detail"), None | Some(Value::Null)) {
            return self.reject(RejectReason::EmptyEnvelope, ".detail", || map.to_text().into_bytes());
        }
        let detail = map.remove("detail").unwrap_or_default();
        let outer = self.source.eventbridge_id.clone();
        self.source.eventbridge_id = short_text(&map, "id").or_else(|| outer.clone());
        self.within(Wrapper::EventBridge, ".detail", |walk| walk.value(detail));
        self.source.eventbridge_id = outer;
    }

    fn leaf(&mut self, map: Object<'_>) {
        if let Some(reason) = noise::object(&map, self.published()) {
            return self.ignore(reason);
        }
        match ses::identify(&map) {
            Ok(identity) => {
                let event = ses::read(identity, map, self.source.clone(), self.settings, self.received_at);
                self.add(Outcome::Event(Box::new(event)));
            }
            Err((reason, at)) => self.reject(reason, at, || map.to_text().into_bytes()),
        }
    }

    fn batch<T>(&mut self, wrapper: Wrapper, items: Vec<T>, each: impl Fn(&mut Self, T)) {
        if items.is_empty() {
            return self.reject(RejectReason::EmptyBatch, "", || b"[]".to_vec());
        }
        let outer = self.siblings;
        self.siblings |= items.len() > 1;
        for (index, item) in items.into_iter().enumerate() {
            if self.leaves.len() > MAX_LEAVES {
                break;
            }
            self.within(wrapper, &format!("[{index}]"), |walk| each(walk, item));
        }
        self.siblings = outer;
    }

    fn within(&mut self, wrapper: Wrapper, segment: &str, inside: impl FnOnce(&mut Self)) {
        self.trail.push(wrapper);
        self.at(segment, inside);
        self.trail.pop();
    }

    fn at(&mut self, segment: &str, inside: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(segment);
        inside(self);
        self.path.truncate(length);
    }

    /// The innermost envelope is one of SNS.
    fn published(&self) -> bool {
        let inner = |wrapper: &&Wrapper| !matches!(wrapper, Wrapper::String | Wrapper::Base64);
        self.trail.iter().rev().find(inner) == Some(&Wrapper::Sns)
    }

    fn ignore(&mut self, reason: IgnoreReason) {
        self.add(Outcome::Ignored(reason));
    }

    fn reject_json(&mut self, text: &str, error: &serde_json::Error) {
        let at = format!(" line {} column {}", error.line(), error.column());
        self.reject(json_reason(text, error), &at, || text.into());
    }

    fn reject(&mut self, reason: RejectReason, at: &str, own_text: impl FnOnce() -> Vec<u8>) {
        let raw = if self.siblings { own_text() } else { Vec::new() };
        let at = match (self.path.as_str(), at.strip_prefix(' ')) {
            ("$", Some(position)) => position.to_owned(),
            (path, _) => format!("{path}{at}"),
        };
        self.add(Outcome::Rejected(Reject { reason, at, raw }));
    }

    fn add(&mut self, outcome: Outcome) {
        self.leaves.push(Leaf { envelope: self.trail.clone(), outcome });
    }
}

/// What an object is, by its keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Sns,
    SnsRecord,
    EventBridge,
    Records(&'static str),
    /// Something whose content lies under this key.
    Carrier(Wrapper, &'static str),
    /// An SES event, or nothing that we can unwrap.
    Leaf,
}

impl Shape {
    fn of(map: &Object<'_>) -> Self {
        let has = |key: &str| map.has(key);
        // An event stays an event, whatever fields SES adds to it.
        if ses::is_event(map) {
            return Self::Leaf;
        }
        if has("Message") && (has("TopicArn") || has("Type") || has("MessageId"))
            || has("TopicArn") && has("Type")
            || map.get("Message").and_then(Value::as_str).is_some_and(starts_like_json)
        {
            return Self::Sns;
        }
        if matches!(map.get("Sns"), Some(Value::Object(_))) {
            return Self::SnsRecord;
        }
        if let Some(key) =
            ["Records", "records", "Messages"].into_iter().find(|key| matches!(map.get(key), Some(Value::Array(_))))
        {
            return Self::Records(key);
        }
        if has("detail-type") || map.get("detail").and_then(Value::as_object).is_some_and(ses::is_event) {
            return Self::EventBridge;
        }
        if has("requestPayload") {
            return Self::Carrier(Wrapper::LambdaDestination, "requestPayload");
        }
        if has("kinesis") {
            return Self::Carrier(Wrapper::Records, "kinesis");
        }
        // These two keys are common words: they must hold something for us.
        let from_a_queue = has("receiptHandle") || has("ReceiptHandle");
        let carries =
            |key: &str| map.get(key).and_then(Value::as_str).is_some_and(|text| from_a_queue || holds_json(text));
        [("body", Wrapper::Sqs), ("Body", Wrapper::Sqs), ("data", Wrapper::Records)]
            .into_iter()
            .find(|(key, _)| carries(key))
            .map_or(Self::Leaf, |(key, wrapper)| Self::Carrier(wrapper, key))
    }
}

/// Without the byte order marks before the text. White space before it stays where there is no
/// mark, so that the parser counts its lines.
fn without_byte_order_mark(text: &str) -> &str {
    let start = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let has_mark = text[..text.len() - start.len()].contains('\u{feff}');
    if has_mark { start } else { text }
}

/// Several JSON texts one after the other, usually one per line: the good ones as values, the bad
/// ones as text. `None` if this does not look like several.
fn several(text: &str) -> Option<Vec<Result<Value<'_>, &str>>> {
    let mut pieces = Vec::new();
    let read = |text, pieces: &mut Vec<_>| {
        parse_stream(text, (MAX_LEAVES + 1).saturating_sub(pieces.len()), |value| pieces.push(Ok(value)))
    };
    let rest = read(text, &mut pieces);
    if !rest.trim().is_empty() {
        let good = pieces.len();
        let mut found = false;
        for line in rest.lines().map(without_byte_order_mark) {
            let before = pieces.len();
            let bad = read(line, &mut pieces);
            // A line of a single pretty-printed text is indented.
            found |= line.starts_with('{') && pieces.len() > before;
            if !bad.trim().is_empty() {
                pieces.push(Err(bad));
            }
        }
        if !found {
            pieces.truncate(good);
            pieces.push(Err(rest));
        }
    }
    let is_content = |piece: &Result<Value<'_>, &str>| match piece {
        Ok(Value::String(text)) => starts_like_json(text),
        Ok(value) => matches!(value, Value::Object(_) | Value::Array(_)),
        Err(_) => false,
    };
    (pieces.len() > 1 && pieces.iter().any(is_content)).then_some(pieces)
}

/// Whether somebody meant this to be JSON: `{…`, `[{…`, `"{…`, but not `[TEST] hello`.
fn starts_like_json(text: &str) -> bool {
    let text = text.trim_start();
    match text.chars().next() {
        Some('{') => true,
        Some('[') => {
            let item = text[1..].trim_start();
            item.starts_with(['{', '[', ']', '"', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
                || ["null", "true", "false"].iter().any(|word| item.starts_with(word))
        }
        Some('"') => text.trim_start_matches(['"', '\\', ' ']).starts_with(['{', '[']),
        _ => false,
    }
}

/// The text whose base64 this is, if that holds JSON; `Err` if it is no text.
fn base64_of_json(text: &str) -> Option<Result<String, ()>> {
    match String::from_utf8(base64(text)?) {
        Ok(decoded) => holds_json(&decoded).then_some(Ok(decoded)),
        Err(error) => error.as_bytes().starts_with(b"{").then_some(Err(())),
    }
}

/// Whether somebody meant this to hold JSON, also as base64 or as a string in whatever order.
/// Ends soon: each round is shorter, base64 by a quarter and a string by its quotes and escapes.
fn holds_json(text: &str) -> bool {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    !text.is_empty()
        && (starts_like_json(text)
            || base64_of_json(text).is_some()
            || text.starts_with('"') && serde_json::from_str::<String>(text).is_ok_and(|inner| holds_json(&inner)))
}

/// Decodes base64 in either alphabet, with or without padding and line breaks.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim().trim_end_matches('=').bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

/// What extended client libraries put in the place of a body that lies in S3. A pointer must not
/// be taken for a batch.
fn is_s3_pointer(items: &[Value<'_>]) -> bool {
    matches!(items, [Value::String(class), Value::Object(_)] if class.ends_with("S3Pointer"))
}

/// An id of an envelope, if it is of a size that an id can have.
fn short_text(map: &Object<'_>, key: &str) -> Option<String> {
    map.get(key)?.as_str().filter(|text| !text.is_empty() && text.len() <= 128).map(str::to_owned)
}

fn json_reason(text: &str, error: &serde_json::Error) -> RejectReason {
    // The parser does not tell its reasons apart by type.
    let message = error.to_string();
    if message.starts_with("recursion limit") {
        RejectReason::NestedTooDeep
    } else if message.starts_with("lone leading surrogate") || message.starts_with("unexpected end of hex") {
        RejectReason::LoneSurrogate
    } else if message.starts_with("number out of range") {
        RejectReason::NumberOutOfRange
    } else if error.is_eof() {
        RejectReason::TruncatedJson
    } else if starts_like_json(text) {
        RejectReason::InvalidJson
    } else {
        RejectReason::NotJson
    }
}
