//! What a row of somebody else's table says. Values in, values out.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    event::{Event, EventKind, MessageId, TimeSource, folded},
    pipeline::decode::{self, DecodeSettings, Outcome},
};

/// Why a row cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It has no key.
    NoId,
    /// Its values are no JSON that anybody can read.
    Unreadable,
    /// It says neither what happened nor has an event of SES.
    NoType,
    /// It names neither a log row nor a mail by its SES id.
    NoMail,
    /// The log row that it names is not there, or could not be taken.
    NoLog,
    /// It holds a message that is no event, or one that nobody can understand.
    NoEvent,
    /// The database refuses it.
    Refused,
}

impl Reason {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoId => "no_id",
            Self::Unreadable => "unreadable",
            Self::NoType => "no_type",
            Self::NoMail => "no_mail",
            Self::NoLog => "no_log",
            Self::NoEvent => "no_event",
            Self::Refused => "refused",
        }
    }

    /// The same for people.
    pub fn in_words(name: &str) -> &'static str {
        match name {
            "no_id" => "the row has no key",
            "unreadable" => "its values cannot be read",
            "no_type" => "nothing says what happened",
            "no_mail" => "it names no mail",
            "no_log" => "its log row is not there, or was not taken",
            "no_event" => "what it holds is no event of SES",
            _ => "the database refuses it",
        }
    }
}

/// Where the SES id of a mail was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdFrom {
    /// In its own column.
    Column,
    /// In the mail's headers.
    Headers,
    /// In the tags, or in another column that holds one.
    Elsewhere,
    /// Nowhere.
    Nowhere,
}

/// A row of a log table.
#[derive(Clone)]
pub struct LogRow {
    pub source_id: String,
    /// Its own key if that is a UUID, else one made of its time and key: always the same.
    pub uuid: Uuid,
    pub message_id: Option<MessageId>,
    pub id_from: IdFrom,
    pub sender: Option<String>,
    pub recipients: Vec<String>,
    pub subject: Option<String>,
    pub template_name: Option<String>,
    pub campaign_id: Option<String>,
    pub configuration_set: Option<String>,
    /// A JSON object.
    pub tags: String,
    /// Any JSON.
    pub headers: Option<String>,
    pub body_full: Option<String>,
    pub created_at: OffsetDateTime,
    /// What the row itself says that happened, whether or not an event says so.
    pub facts: Vec<Fact>,
}

/// A thing that only the log row tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    pub kind: EventKind,
    pub at: OffsetDateTime,
    /// `Permanent` or `Transient`, for bounces.
    pub bounce_type: Option<&'static str>,
}

/// A row of an event table.
pub struct EventRow {
    pub source_id: String,
    /// The key of its log row.
    pub log_id: Option<String>,
    /// The SES id of its mail.
    pub message_id: Option<MessageId>,
    /// When it was written there.
    pub received_at: OffsetDateTime,
    fields: Fields,
    payload: Map<String, Value>,
}

/// The mail of an event, as it stands in our own table. It holds addresses: there is no `Debug` of it.
#[derive(Clone, Default)]
pub struct Mail {
    pub uuid: Uuid,
    pub message_id: Option<String>,
    pub recipients: Vec<String>,
    /// The kinds of events of which the mail has a fact.
    pub known: Vec<String>,
}

/// The values of a row by our names for them.
struct Fields(Map<String, Value>);

impl Fields {
    fn read(row: &str) -> Result<Self, Reason> {
        match serde_json::from_str(row) {
            Ok(Value::Object(mut fields)) => {
                fields.values_mut().for_each(without_nul);
                Ok(Self(fields))
            }
            _ => Err(Reason::Unreadable),
        }
    }

    fn text(&self, field: &str) -> Option<String> {
        match self.0.get(field)? {
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }

    fn time(&self, field: &str) -> Option<OffsetDateTime> {
        decode::time_in(&self.text(field)?)
    }

    /// JSON, also where the column is a text that holds some.
    fn json(&self, field: &str) -> Option<Value> {
        match self.0.get(field)? {
            Value::Null => None,
            Value::String(text) => {
                let mut value = serde_json::from_str(text).ok()?;
                without_nul(&mut value);
                Some(value)
            }
            other => Some(other.clone()),
        }
    }

    /// Addresses: a list, or one text with commas between them.
    fn addresses(&self, field: &str) -> Vec<String> {
        let text = |value: &Value| value.as_str().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        match self.json(field) {
            Some(Value::Array(all)) => all.iter().filter_map(text).collect(),
            _ => self.text(field).map(|all| split_addresses(&all)).unwrap_or_default(),
        }
    }
}

/// PostgreSQL stores no U+0000.
fn without_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => text.retain(|c| c != '\0'),
        Value::Array(all) => all.iter_mut().for_each(without_nul),
        Value::Object(all) => {
            if all.keys().any(|key| key.contains('\0')) {
                *all = std::mem::take(all).into_iter().map(|(key, value)| (key.replace('\0', ""), value)).collect();
            }
            all.values_mut().for_each(without_nul);
        }
        _ => {}
    }
}

/// `"Lovelace, Ada" <ada@example.net>, bob@example.net` are two.
fn split_addresses(all: &str) -> Vec<String> {
    let mut quoted = false;
    let parts = all.split(|c| {
        quoted ^= c == '"';
        (c == ',' || c == ';') && !quoted
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

impl LogRow {
    /// Reads a row, given as a JSON object with our names for its columns.
    ///
    /// # Errors
    /// Says why it cannot be taken.
    pub fn read(table: &str, row: &str) -> Result<Self, Reason> {
        let fields = Fields::read(row)?;
        let source_id = fields.text("id").ok_or(Reason::NoId)?;
        let headers = fields.json("headers");
        let tags = fields.json("tags").filter(Value::is_object).unwrap_or_else(|| json!({}));
        let (message_id, id_from) = message_id(&fields, headers.as_ref(), &tags);
        let times = ["created_at", "sent_at", "delivered_at", "bounced_at", "failed_at"];
        let created_at = times.iter().find_map(|field| fields.time(field)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Ok(Self {
            uuid: Uuid::try_parse(&source_id).unwrap_or_else(|_| derived_uuid(table, &source_id, created_at)),
            facts: facts(&fields),
            message_id,
            id_from,
            sender: fields.text("sender"),
            recipients: fields.addresses("recipients"),
            subject: fields.text("subject"),
            template_name: fields.text("template_name"),
            campaign_id: fields.text("campaign_id"),
            configuration_set: fields.text("configuration_set"),
            tags: tags.to_string(),
            headers: headers.map(|headers| headers.to_string()),
            body_full: fields.0.get("body_full").and_then(Value::as_str).map(str::to_owned),
            created_at,
            source_id,
        })
    }
}

/// The id that SES gave the mail: in its own column, else in the headers, else in the tags or in a column that may hold one.
fn message_id(fields: &Fields, headers: Option<&Value>, tags: &Value) -> (Option<MessageId>, IdFrom) {
    let own = || fields.text("message_id").and_then(|text| MessageId::parse(&text));
    if let Some(id) = own() {
        return (Some(id), IdFrom::Column);
    }
    if let Some(id) = headers.and_then(id_in_headers) {
        return (Some(id), IdFrom::Headers);
    }
    let tagged = || MessageId::parse(tags.get("aws_message_id")?.as_str()?);
    let other = || MessageId::parse(&fields.text("other_id")?).filter(|id| is_of_ses(id.as_str()));
    match tagged().or_else(other) {
        Some(id) => (Some(id), IdFrom::Elsewhere),
        None => (None, IdFrom::Nowhere),
    }
}

/// The headers in which programs keep it, the surest first; compared without case, dashes and underscores.
const ID_HEADERS: [&str; 6] =
    ["xsesmessageid", "sesmessageid", "xawsmessageid", "awsmessageid", "xawssesmessageid", "messageid"];

/// Headers may be an object, `[{"name": …, "value": …}]`, or `[["name", "value"]]`.
fn id_in_headers(headers: &Value) -> Option<MessageId> {
    let pairs: Vec<(&str, &Value)> = match headers {
        Value::Object(all) => all.iter().map(|(name, value)| (name.as_str(), value)).collect(),
        Value::Array(all) => all
            .iter()
            .filter_map(|entry| match entry {
                Value::Array(pair) => Some((pair.first()?.as_str()?, pair.get(1)?)),
                entry => Some((entry.get("name")?.as_str()?, entry.get("value")?)),
            })
            .collect(),
        _ => return None,
    };
    ID_HEADERS.iter().find_map(|header| {
        let named = pairs.iter().filter(|(name, _)| folded(name).eq(header.chars()));
        named.filter_map(|(_, value)| first_text(value)).find_map(|raw| id_of_header(header, raw))
    })
}

fn first_text(value: &Value) -> Option<&str> {
    value.as_array().map_or(Some(value), |all| all.first())?.as_str()
}

/// `Message-ID` is a header that every program writes: with a domain it is SES's only if the domain is.
fn id_of_header(header: &str, raw: &str) -> Option<MessageId> {
    let of_ses = match raw.rsplit_once('@') {
        Some((_, domain)) if header == "messageid" => {
            let domain = domain.trim().trim_end_matches('>').to_ascii_lowercase();
            domain == "amazonses.com" || domain.ends_with(".amazonses.com")
        }
        _ => true,
    };
    MessageId::parse(raw).filter(|_| of_ses)
}

/// `0100019f30000029-dddddddd-0000-4000-8000-000000000029-000000`.
fn is_of_ses(id: &str) -> bool {
    let parts: Vec<&str> = id.split('-').collect();
    let lengths = [16, 8, 4, 4, 4, 12, 6];
    parts.len() == lengths.len()
        && parts.iter().zip(lengths).all(|(part, length)| part.len() == length)
        && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A UUID of version 7 for a key that is none: the row's time, then a digest of table and key.
fn derived_uuid(table: &str, source_id: &str, created_at: OffsetDateTime) -> Uuid {
    let millis = (created_at.unix_timestamp_nanos() / 1_000_000).clamp(0, (1 << 48) - 1) as u64;
    let digest = Sha256::digest(format!("{table}\0{source_id}"));
    let mut random = [0; 10];
    random.copy_from_slice(&digest[..10]);
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

/// What the row says that happened.
fn facts(fields: &Fields) -> Vec<Fact> {
    let kinds = [
        ("sent_at", EventKind::Send),
        ("delivered_at", EventKind::Delivery),
        ("delayed_at", EventKind::DeliveryDelay),
        ("bounced_at", EventKind::Bounce),
        ("complained_at", EventKind::Complaint),
        ("rejected_at", EventKind::Reject),
        // Of the program that sends, not of SES: it is kept, and says nothing about the mail's way.
        ("failed_at", EventKind::Other("failed".to_owned())),
        ("opened_at", EventKind::Open),
        ("clicked_at", EventKind::Click),
    ];
    let bounce = fields.text("bounce_type").or_else(|| fields.text("status")).unwrap_or_default().to_lowercase();
    let bounce = match bounce.as_str() {
        text if text.contains("hard") || text.contains("permanent") => Some("Permanent"),
        text if text.contains("soft") || text.contains("transient") => Some("Transient"),
        _ => None,
    };
    let fact = |(field, kind): (&str, EventKind)| {
        let bounce_type = bounce.filter(|_| kind == EventKind::Bounce);
        Some(Fact { at: fields.time(field)?, kind, bounce_type })
    };
    kinds.into_iter().filter_map(fact).collect()
}

impl Fact {
    /// The event that this fact stands for.
    pub fn into_events(self, mail: &Mail) -> Vec<Event> {
        let mut event = Map::new();
        let time = self.at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        event.insert("timestamp".to_owned(), time.into());
        if let Some(bounce_type) = self.bounce_type {
            event.insert("bounceType".to_owned(), bounce_type.into());
        }
        let mut events = decoded(&ses_event(self.kind.as_str(), event, mail), self.at).unwrap_or_default();
        for event in &mut events {
            // Nothing of SES lies behind it.
            (event.time_source, event.payload) = (TimeSource::Received, None);
        }
        events
    }
}

impl EventRow {
    /// Reads a row, given as a JSON object with our names for its columns.
    ///
    /// # Errors
    /// Says why it cannot be taken.
    pub fn read(row: &str) -> Result<Self, Reason> {
        let fields = Fields::read(row)?;
        let source_id = fields.text("id").ok_or(Reason::NoId)?;
        let payload = match fields.json("payload") {
            Some(Value::Object(payload)) => payload,
            _ => Map::new(),
        };
        let in_payload = || payload.get("mail")?.get("messageId")?.as_str().and_then(MessageId::parse);
        let mut row = Self {
            message_id: fields.text("message_id").and_then(|id| MessageId::parse(&id)).or_else(in_payload),
            log_id: fields.text("log_id"),
            received_at: ["received_at", "occurred_at"]
                .iter()
                .find_map(|field| fields.time(field))
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
            source_id,
            fields,
            payload,
        };
        if row.is_wrapped() && row.message_id.is_none() {
            let events = decoded(&Value::Object(row.payload.clone()), row.received_at)?;
            row.message_id = events.into_iter().next().map(|event| event.message_id);
        }
        if !row.is_whole() && row.fields.text("event_type").and_then(|kind| EventKind::parse(&kind)).is_none() {
            return Err(Reason::NoType);
        }
        if row.log_id.is_none() && row.message_id.is_none() {
            return Err(Reason::NoMail);
        }
        Ok(row)
    }

    /// The payload is a whole event of SES, or a message that wraps one.
    fn is_whole(&self) -> bool {
        let is_event = self.payload.contains_key("eventType") || self.payload.contains_key("notificationType");
        self.is_wrapped() || is_event && self.payload.get("mail").is_some_and(Value::is_object)
    }

    fn is_wrapped(&self) -> bool {
        self.payload.get("Message").is_some_and(Value::is_string) || self.payload.contains_key("detail-type")
    }

    /// The events that it stands for, one for each recipient whom it names, as the worker reads them.
    ///
    /// # Errors
    /// Says why it cannot be taken.
    pub fn into_events(mut self, mail: Option<&Mail>) -> Result<Vec<Event>, Reason> {
        let received_at = self.received_at;
        if self.is_whole() {
            return decoded(&Value::Object(self.payload), received_at);
        }
        let kind = self.fields.text("event_type").unwrap_or_default();
        let (kind, hint) = usual_kind(&kind);
        let only = self.fields.text("recipient");
        let known = Mail { message_id: self.message_id.map(|id| id.as_str().to_owned()), ..Mail::default() };
        let mut mail = mail.cloned().unwrap_or(known);
        if let Some(recipient) = &only {
            mail.recipients = vec![recipient.clone()];
        }
        // Where a program keeps the object of a kind by its own name, that is the one.
        let own = self.payload.iter().find(|(key, value)| folded(key).eq(folded(&kind)) && value.is_object());
        if let Some(Value::Object(own)) = own.map(|(_, own)| own.clone()) {
            self.payload = own;
        }
        let object = with_columns(&kind, self.payload, &self.fields, hint, &mail);
        decoded(&ses_event(&kind, object, &mail), received_at)
    }
}

/// The names that other programs have for the kinds, and what they say about a bounce.
fn usual_kind(kind: &str) -> (String, Option<&'static str>) {
    let name: String = folded(kind).collect();
    let (name, hint) = match name.as_str() {
        "sent" => ("send", None),
        "delivered" => ("delivery", None),
        "bounced" => ("bounce", None),
        "hardbounce" | "hardbounced" => ("bounce", Some("Permanent")),
        "softbounce" | "softbounced" => ("bounce", Some("Transient")),
        "complained" | "spam" => ("complaint", None),
        "rejected" => ("reject", None),
        "opened" => ("open", None),
        "clicked" => ("click", None),
        "delayed" => ("delivery_delay", None),
        _ => (kind, None),
    };
    (name.to_owned(), hint)
}

/// The object of the kind as SES writes it: what the payload says, filled up with what the columns say.
fn with_columns(
    kind: &str,
    mut object: Map<String, Value>,
    fields: &Fields,
    hint: Option<&'static str>,
    mail: &Mail,
) -> Map<String, Value> {
    let bounce_type = match fields.text("bounce_type").map(|text| text.to_lowercase()).as_deref() {
        Some("hard") => Some("Permanent".to_owned()),
        Some("soft") => Some("Transient".to_owned()),
        Some(_) => fields.text("bounce_type"),
        None => hint.map(str::to_owned),
    };
    let readable = |value: &Value| value.as_str().and_then(decode::time_in).is_some();
    if !object.get("timestamp").is_some_and(readable)
        && let Some(at) = fields.text("occurred_at")
    {
        object.insert("timestamp".to_owned(), at.into());
    }
    let diagnostic = fields.text("diagnostic").or_else(|| fields.text("failure"));
    let (diagnostic_key, list) = match EventKind::parse(kind) {
        Some(EventKind::Reject) => ("reason", None),
        Some(EventKind::RenderingFailure) => ("errorMessage", None),
        Some(EventKind::Bounce) => ("diagnosticCode", Some("bouncedRecipients")),
        Some(EventKind::DeliveryDelay) => ("diagnosticCode", Some("delayedRecipients")),
        _ => ("smtpResponse", None),
    };
    let columns = [
        ("bounceType", bounce_type),
        ("bounceSubType", fields.text("bounce_subtype")),
        ("complaintFeedbackType", fields.text("complaint_type")),
        ("delayType", fields.text("delay_type")),
        ("link", fields.text("link")),
        ("ipAddress", fields.text("ip")),
        ("userAgent", fields.text("user_agent")),
        (diagnostic_key, diagnostic.clone()),
    ];
    for (key, value) in columns {
        if let Some(value) = value
            && object.get(key).and_then(Value::as_str).is_none_or(str::is_empty)
        {
            object.insert(key.to_owned(), value.into());
        }
    }
    let status = fields.text("smtp_status");
    if let ([only], Some(list), true) = (mail.recipients.as_slice(), list, status.is_some() || diagnostic.is_some())
        && !object.contains_key(list)
    {
        let recipient = json!([{"emailAddress": only, "status": status, "diagnosticCode": diagnostic}]);
        object.insert(list.to_owned(), recipient);
    }
    object
}

/// An event as SES writes it.
fn ses_event(kind: &str, object: Map<String, Value>, mail: &Mail) -> Value {
    // Every event has an id; that of a mail without one is left out again before it is stored.
    let id = mail.message_id.as_deref().unwrap_or("unknown");
    let mut event = json!({"eventType": kind, "mail": {"messageId": id, "destination": mail.recipients}});
    event[kind] = Value::Object(object);
    event
}

fn decoded(event: &Value, received_at: OffsetDateTime) -> Result<Vec<Event>, Reason> {
    let mut events = Vec::new();
    for leaf in decode::decode(event.to_string().as_bytes(), received_at, &DecodeSettings::default()) {
        match leaf.outcome {
            Outcome::Event(event) => events.extend(event.into_events()),
            Outcome::Ignored(_) | Outcome::Rejected(_) => return Err(Reason::NoEvent),
        }
    }
    Ok(events)
}
