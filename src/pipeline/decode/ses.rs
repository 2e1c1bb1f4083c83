//! Reads one SES event. A kind and `mail.messageId` are all that it needs.
//!
//! SES documents its fields loosely, adds to them at any time, and is imitated by emulators, so
//! every field is looked up by itself and a wrong type is the same as no field.

use std::collections::HashSet;
use std::fmt;

use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

use super::json::{Object, Value};
use super::{DecodeSettings, RejectReason, rows, timestamp};
use crate::event::{Address, Detail, EventKind, MessageId, Source, TimeSource, folded};

/// One SES event: something that happened to one mail, before it is spread over its recipients.
#[derive(Clone)]
pub struct SesEvent {
    /// The mail.
    pub message_id: MessageId,
    /// The log's own id, if the mail carries it in its tag.
    pub log_uuid: Option<Uuid>,
    /// What happened.
    pub kind: EventKind,
    /// When it happened, in UTC.
    pub occurred_at: OffsetDateTime,
    /// Where that time was found.
    pub time_source: TimeSource,
    /// When SES took the mail, if it says so.
    pub(super) mailed_at: Option<OffsetDateTime>,
    /// Whom the event names, in its order and without repeats: by the list of its own kind if it
    /// brings one, else everybody to whom the mail went.
    pub recipients: Vec<Recipient>,
    /// Where the event came from.
    pub source: Source,
    /// The recipients come from the list of the event's own kind, not from the mail.
    pub(super) named_by_kind: bool,
    /// Everybody to whom the mail went.
    pub(super) destination: Vec<Address>,
    /// What is true for every recipient.
    pub(super) detail: Detail,
    /// What is kept of the event for each of its rows, as JSON text.
    pub(super) payloads: Vec<Option<String>>,
}

/// A recipient and what its server said.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient {
    /// Never empty.
    pub address: Address,
    /// The enhanced status code, like `5.1.1`.
    pub smtp_status: Option<String>,
    /// What the server said.
    pub diagnostic: Option<String>,
}

/// What an event cannot do without.
pub(super) struct Identity {
    kind: EventKind,
    message_id: MessageId,
}

/// The kind and the mail of an event, or why there is none and at which path.
pub(super) fn identify(map: &Object<'_>) -> Result<Identity, (RejectReason, &'static str)> {
    let kind = kinds(map).next().ok_or((RejectReason::NoType, ""))?;
    let mail = map.get("mail").and_then(Value::as_object).ok_or((RejectReason::NoMail, ".mail"))?;
    let message_id = mail.get("messageId").and_then(Value::as_str).and_then(MessageId::parse);
    let message_id = message_id.ok_or((RejectReason::NoMessageId, ".mail.messageId"))?;
    Ok(Identity { kind, message_id })
}

/// Reads everything else. Cannot fail: what is missing or unusable is left out.
pub(super) fn read(
    Identity { kind, message_id }: Identity,
    body: Object<'_>,
    source: Source,
    settings: &DecodeSettings,
    received_at: OffsetDateTime,
) -> SesEvent {
    let empty = Object::default();
    let mail = body.get("mail").and_then(Value::as_object).unwrap_or(&empty);
    let object = own_object(&kind, &body).map_or(&empty, |(_, object)| object);
    let mailed_at = mail.get("timestamp").and_then(timestamp::read);
    let (occurred_at, time_source) = time(&kind, object, mailed_at, received_at);
    let destination = recipients(mail.get("destination")).unwrap_or_default();
    let own = list_key(&kind).and_then(|key| recipients(object.get(key)));
    let mut event = SesEvent {
        message_id,
        log_uuid: log_uuid(mail, &settings.log_id_tag),
        occurred_at,
        time_source,
        mailed_at,
        named_by_kind: own.is_some(),
        destination: destination.iter().map(|recipient| recipient.address.clone()).collect(),
        recipients: own.unwrap_or(destination),
        detail: detail(&kind, object),
        kind,
        source,
        payloads: Vec::new(),
    };
    event.payloads = rows::payloads(&event, body, settings.payload);
    event
}

/// The kinds that an event gives. `eventType` (event publishing) comes before `notificationType`
/// (identity feedback).
pub(super) fn kinds(map: &Object<'_>) -> impl Iterator<Item = EventKind> {
    ["eventType", "notificationType"]
        .into_iter()
        .filter_map(|key| map.get(key).and_then(Value::as_str))
        .filter_map(EventKind::parse)
}

/// Has what makes an event of SES, whether usable or not.
pub(super) fn is_event(map: &Object<'_>) -> bool {
    map.has("mail") && kinds(map).next().is_some()
}

/// Has anything of SES: a mail, one of its kinds, or an object named after one.
pub(super) fn looks_like_ses(map: &Object<'_>) -> bool {
    let is_known = |kind: EventKind| !matches!(kind, EventKind::Other(_));
    map.has("mail")
        || kinds(map).any(is_known)
        || map.iter().any(|(key, value)| value.as_object().is_some() && EventKind::parse(key).is_some_and(is_known))
}

/// The key under which a kind lists its recipients.
pub(super) fn list_key(kind: &EventKind) -> Option<&'static str> {
    match kind {
        EventKind::Bounce => Some("bouncedRecipients"),
        EventKind::Complaint => Some("complainedRecipients"),
        EventKind::Delivery => Some("recipients"),
        EventKind::DeliveryDelay => Some("delayedRecipients"),
        _ => None,
    }
}

/// A list as SES means it: a single thing in its place is a list of one, `null` is no list.
pub(super) fn as_list<'v, 'a>(value: &'v Value<'a>) -> Option<&'v [Value<'a>]> {
    match value {
        Value::Array(items) => Some(items),
        Value::String(_) | Value::Object(_) => Some(std::slice::from_ref(value)),
        _ => None,
    }
}

/// The object named after the kind, and its key; `failure` for a rendering failure. Of several the first by name.
pub(super) fn own_object<'v, 'a>(kind: &EventKind, body: &'v Object<'a>) -> Option<(&'v str, &'v Object<'a>)> {
    let is_own = |key: &str| {
        folded(key).eq(folded(kind.as_str()))
            || *kind == EventKind::RenderingFailure && folded(key).eq("failure".chars())
    };
    let own = body.iter().filter(|(key, _)| is_own(key)).filter_map(|(key, value)| Some((key, value.as_object()?)));
    own.min_by_key(|(key, _)| *key)
}

fn time(
    kind: &EventKind,
    object: &Object<'_>,
    mailed_at: Option<OffsetDateTime>,
    received_at: OffsetDateTime,
) -> (OffsetDateTime, TimeSource) {
    if let Some(time) = object.get("timestamp").and_then(timestamp::read) {
        return (time, TimeSource::Event);
    }
    if let Some(time) = mailed_at {
        let has_no_own = matches!(kind, EventKind::Send | EventKind::Reject | EventKind::RenderingFailure);
        return (time, if has_no_own { TimeSource::Event } else { TimeSource::Mail });
    }
    (received_at.checked_to_offset(UtcOffset::UTC).unwrap_or(received_at), TimeSource::Received)
}

/// The first tag value that is a UUID. The nil UUID is what a program writes that has none.
fn log_uuid(mail: &Object<'_>, tag: &str) -> Option<Uuid> {
    let values = as_list(mail.get("tags")?.get(tag)?)?;
    values.iter().filter_map(|value| Uuid::try_parse(value.as_str()?.trim()).ok()).find(|uuid| !uuid.is_nil())
}

/// The recipients of a list, without repeats. `None` is no list.
fn recipients(list: Option<&Value<'_>>) -> Option<Vec<Recipient>> {
    let list = as_list(list?)?;
    let mut seen = HashSet::new();
    let named = list.iter().filter_map(|entry| {
        let is_new = |address: &Address| list.len() == 1 || seen.insert(address.clone());
        let address = address_of(entry).filter(is_new)?;
        let diagnostic = text(entry.get("diagnosticCode"));
        let smtp_status = status(text(entry.get("status")), diagnostic.as_deref());
        Some(Recipient { address, smtp_status, diagnostic })
    });
    Some(named.collect())
}

/// Whom an entry of a list names: it is an address, or an object with an `emailAddress`.
pub(super) fn address_of(entry: &Value<'_>) -> Option<Address> {
    let raw = entry.as_str().or_else(|| entry.get("emailAddress")?.as_str())?;
    Some(Address::parse(raw)).filter(|address| !address.is_empty())
}

fn detail(kind: &EventKind, object: &Object<'_>) -> Detail {
    let field = |key: &str| text(object.get(key));
    let diagnostic = match kind {
        EventKind::Delivery => field("smtpResponse"),
        EventKind::Reject => field("reason"),
        EventKind::RenderingFailure => field("errorMessage"),
        _ => None,
    };
    Detail {
        bounce_type: field("bounceType"),
        bounce_subtype: field("bounceSubType"),
        smtp_status: diagnostic
            .as_deref()
            .filter(|_| *kind == EventKind::Delivery)
            .and_then(status_in_response)
            .map(str::to_owned),
        diagnostic,
        complaint_type: field("complaintFeedbackType"),
        complaint_subtype: field("complaintSubType"),
        delay_type: field("delayType"),
        // Yandex Cloud Postbox calls it `url`.
        link: if *kind == EventKind::Click { field("link").or_else(|| field("url")) } else { None },
        ip: field("ipAddress"),
        user_agent: field("userAgent"),
        bot: match object.get("isBotEvent") {
            Some(Value::Bool(true)) => Some("Likely".to_owned()),
            Some(Value::Bool(false)) => Some("Unlikely".to_owned()),
            other => text(other),
        },
        feedback_id: field("feedbackId"),
        reporting_mta: field("reportingMTA"),
    }
}

/// A text that says something; a number in its place is taken as it is written.
fn text(value: Option<&Value<'_>>) -> Option<String> {
    match value? {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The status a recipient's entry gives, if it is one; else the one in the diagnostic; else
/// whatever the entry says.
fn status(given: Option<String>, diagnostic: Option<&str>) -> Option<String> {
    match given {
        Some(code) if is_enhanced_status(&code) => Some(code),
        given => diagnostic.and_then(status_in_response).map(str::to_owned).or(given),
    }
}

/// The enhanced status code of a server's answer (RFC 3463): `2.0.0` in `250 2.0.0 OK`, `5.1.1` in
/// `smtp; 550-5.1.1 unknown`. It stands first or next to the reply code whose class it repeats,
/// so that a version number or an address further on is not taken for one.
fn status_in_response(response: &str) -> Option<&str> {
    let mut numbers = response
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .map(|number| number.trim_end_matches('.'))
        .filter(|number| !number.is_empty());
    let first = numbers.next()?;
    if is_enhanced_status(first) {
        return Some(first);
    }
    let second = numbers.next()?;
    let repeats_class = first.len() == 3 && first.as_bytes()[0] == second.as_bytes()[0];
    (repeats_class && is_enhanced_status(second)).then_some(second)
}

fn is_enhanced_status(code: &str) -> bool {
    let mut parts = code.split('.');
    let number = |part: Option<&str>| {
        part.is_some_and(|part| matches!(part.len(), 1..=3) && part.bytes().all(|b| b.is_ascii_digit()))
    };
    matches!(parts.next(), Some("2" | "4" | "5"))
        && number(parts.next())
        && number(parts.next())
        && parts.next().is_none()
}

// People's addresses stay out of logs, also by accident.

impl fmt::Debug for SesEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SesEvent")
            .field("message_id", &self.message_id)
            .field("kind", &self.kind)
            .field("occurred_at", &self.occurred_at)
            .field("recipients", &self.recipients.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recipient(…)")
    }
}
