//! The domain: what SES says about a mail, in our own words.
//!
//! Nothing here reads a clock, a socket or an environment variable.

use std::{borrow::Cow, fmt};

use time::OffsetDateTime;
use uuid::Uuid;

/// What became of a mail. The ten kinds that SES documents, and whatever it adds next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// SES accepted the mail and will try to deliver it.
    Send,
    /// A recipient's server accepted the mail.
    Delivery,
    /// A recipient's server refused the mail for good, or SES did not try or gave up.
    Bounce,
    /// A recipient called the mail spam.
    Complaint,
    /// SES accepted the mail and then found a virus in it.
    Reject,
    /// A recipient's mail program loaded the tracking picture.
    Open,
    /// A recipient followed a tracked link.
    Click,
    /// The mail's template could not be filled in.
    RenderingFailure,
    /// A recipient's server refused the mail for now.
    DeliveryDelay,
    /// A recipient changed its topic preferences.
    Subscription,
    /// A kind that this version does not know, under its own name in snake_case.
    Other(String),
}

/// The id that SES gave the mail: bare, without `<>` and `@domain`. Never empty, at most
/// [`MAX_INDEXED`] bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(String);

/// A recipient as we store it: trimmed, without angle brackets and `rfc822;`, domain in lower case.
/// Empty where SES does not say who. At most [`MAX_INDEXED`] bytes.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(String);

/// The longest id or address that is kept, in bytes. An entry of a PostgreSQL index has room for
/// about 2,700 bytes in all; ids have 60 in practice and addresses at most 254 (RFC 5321).
pub const MAX_INDEXED: usize = 1024;

/// Where the time of an event was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSource {
    /// The event's own timestamp, or the mail's for the kinds that have none.
    Event,
    /// The event's own timestamp was missing or unreadable: the time at which SES accepted the mail.
    Mail,
    /// No readable time at all: the time at which the message was received.
    Received,
}

/// One thing that happened to one recipient of one mail: one row of `email_events`.
#[derive(Clone)]
pub struct Event {
    /// The mail.
    pub message_id: MessageId,
    /// The log's own id, if the mail carried it in its tag.
    pub log_uuid: Option<Uuid>,
    /// What happened.
    pub kind: EventKind,
    /// When it happened, in UTC, to the microsecond (PostgreSQL keeps no more).
    pub occurred_at: OffsetDateTime,
    /// Where that time was found.
    pub time_source: TimeSource,
    /// To whom it happened, if SES says so.
    pub recipient: Address,
    /// The recipient is one of several candidates (complaints name everybody at the domain).
    pub candidate: bool,
    /// When SES took the mail, if the event says so.
    pub mailed_at: Option<OffsetDateTime>,
    /// The columns that people filter by.
    pub detail: Detail,
    /// What is kept of the event, as JSON text without U+0000.
    pub payload: Option<String>,
    /// Where the event came from.
    pub source: Source,
}

/// The columns that people filter by. All optional: SES documents its fields loosely.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// `Permanent`, `Transient`, `Undetermined`, as SES wrote it.
    pub bounce_type: Option<String>,
    /// Like `General` or `OnAccountSuppressionList`. An open set: SES adds to it.
    pub bounce_subtype: Option<String>,
    /// The enhanced status code of the recipient's server, like `5.1.1`.
    pub smtp_status: Option<String>,
    /// What the server said: `diagnosticCode`, `smtpResponse`, `reject.reason`, `failure.errorMessage`.
    pub diagnostic: Option<String>,
    /// `complaintFeedbackType`, like `abuse` or `not-spam`.
    pub complaint_type: Option<String>,
    /// Like `OnAccountSuppressionList`: SES did not send, nobody complained anew.
    pub complaint_subtype: Option<String>,
    /// `delayType`, like `MailboxFull`.
    pub delay_type: Option<String>,
    /// What was clicked.
    pub link: Option<String>,
    /// From where it was opened or clicked. Text: SES's own sample is not an address.
    pub ip: Option<String>,
    /// The program that opened, clicked or (for complaints) sent the report.
    pub user_agent: Option<String>,
    /// `Likely` or `Unlikely`, as SES wrote it; absent is not `Unlikely`.
    pub bot: Option<String>,
    /// SES's id of the bounce or complaint report.
    pub feedback_id: Option<String>,
    /// The server that reported the delivery, the bounce or the delay.
    pub reporting_mta: Option<String>,
}

/// Where an event came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// `MessageId` of the SNS envelope: the same for every retry of SNS.
    pub sns_message_id: Option<String>,
    /// `id` of the EventBridge envelope: the same for a replay from an archive.
    pub eventbridge_id: Option<String>,
}

impl EventKind {
    /// The kinds that SES reports, in the order in which they happen.
    pub const ALL: [Self; 10] = [
        Self::Send,
        Self::Reject,
        Self::RenderingFailure,
        Self::Delivery,
        Self::DeliveryDelay,
        Self::Bounce,
        Self::Complaint,
        Self::Open,
        Self::Click,
        Self::Subscription,
    ];

    /// Reads a kind without regard to case, spaces and underscores.
    /// `None` if nothing is left to name it by.
    pub fn parse(wire: &str) -> Option<Self> {
        // As SES writes the usual ones; what is spelled otherwise takes the longer way.
        match wire {
            "Send" => return Some(Self::Send),
            "Delivery" => return Some(Self::Delivery),
            "Open" => return Some(Self::Open),
            "Click" => return Some(Self::Click),
            "Bounce" => return Some(Self::Bounce),
            _ => {}
        }
        let folded: String = folded(wire).collect();
        Some(match folded.as_str() {
            "send" => Self::Send,
            "delivery" => Self::Delivery,
            "bounce" => Self::Bounce,
            "complaint" => Self::Complaint,
            "reject" => Self::Reject,
            "open" => Self::Open,
            "click" => Self::Click,
            "renderingfailure" => Self::RenderingFailure,
            "deliverydelay" => Self::DeliveryDelay,
            "subscription" => Self::Subscription,
            "" => return None,
            _ => Self::Other(snake_case(wire)),
        })
    }

    /// The name under which the kind is stored.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Send => "send",
            Self::Delivery => "delivery",
            Self::Bounce => "bounce",
            Self::Complaint => "complaint",
            Self::Reject => "reject",
            Self::Open => "open",
            Self::Click => "click",
            Self::RenderingFailure => "rendering_failure",
            Self::DeliveryDelay => "delivery_delay",
            Self::Subscription => "subscription",
            Self::Other(name) => name,
        }
    }

    /// Opens and clicks happen again and again; everything else once per recipient.
    pub fn happens_again(&self) -> bool {
        matches!(self, Self::Open | Self::Click)
    }
}

/// A name without what its spellings differ in: case, spaces, dashes and underscores.
pub(crate) fn folded(name: &str) -> impl Iterator<Item = char> {
    name.chars()
        .filter(|c| !c.is_whitespace() && !matches!(c, '_' | '-') && !c.is_control())
        .flat_map(char::to_lowercase)
}

/// `NewThing`, `new thing` and `NEW_THING` are all `new_thing`. At most 64 characters.
fn snake_case(wire: &str) -> String {
    let mut name = String::with_capacity(wire.len() + 4);
    let mut after_lower = false;
    for c in wire.trim().chars().filter(|c| !c.is_control()) {
        if c.is_whitespace() || matches!(c, '_' | '-') {
            if !name.is_empty() && !name.ends_with('_') {
                name.push('_');
            }
            after_lower = false;
            continue;
        }
        if c.is_uppercase() && after_lower {
            name.push('_');
        }
        after_lower = c.is_lowercase() || c.is_numeric();
        name.extend(c.to_lowercase());
    }
    let name: String = name.chars().take(64).collect();
    name.trim_end_matches('_').to_owned()
}

fn without_controls(text: &str) -> Cow<'_, str> {
    match text.chars().any(char::is_control) {
        true => text.chars().filter(|c| !c.is_control()).collect(),
        false => text.into(),
    }
}

impl MessageId {
    /// Normalises an id as any sender may have stored it: trims, cuts `<>` and `@domain`,
    /// removes control characters, keeps the case. `None` if nothing is left, or more than
    /// [`MAX_INDEXED`] bytes.
    pub fn parse(raw: &str) -> Option<Self> {
        let clean = without_controls(raw);
        let id = clean.trim().trim_start_matches('<').trim_end_matches('>');
        let id = id.split('@').next().unwrap_or_default().trim();
        (!id.is_empty() && id.len() <= MAX_INDEXED).then(|| Self(id.to_owned()))
    }

    /// The bare id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Address {
    /// Normalises an address: `rfc822; Bob <Bob@Example.NET>` is `Bob@example.net`.
    /// What is longer than [`MAX_INDEXED`] bytes is no address: it counts as not saying who.
    pub fn parse(raw: &str) -> Self {
        let clean = without_controls(raw);
        let mut address = clean.trim();
        if let Some((prefix, rest)) = address.split_once(';')
            && prefix.trim().eq_ignore_ascii_case("rfc822")
        {
            address = rest.trim();
        }
        if let (Some(open), Some(close)) = (address.rfind('<'), address.rfind('>'))
            && open < close
        {
            address = address[open + 1..close].trim();
        }
        let address = match address.rsplit_once('@') {
            Some((local, domain)) if domain.is_ascii() => {
                let mut address = address.to_owned();
                address[local.len()..].make_ascii_lowercase();
                address
            }
            Some((local, domain)) => format!("{local}@{}", domain.to_lowercase()),
            None => address.to_owned(),
        };
        Self(if address.len() > MAX_INDEXED { String::new() } else { address })
    }

    /// The normalised address, or nothing.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// SES does not say who.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Detail {
    /// Every text of this detail.
    pub(crate) fn texts_mut(&mut self) -> [&mut Option<String>; 13] {
        [
            &mut self.bounce_type,
            &mut self.bounce_subtype,
            &mut self.smtp_status,
            &mut self.diagnostic,
            &mut self.complaint_type,
            &mut self.complaint_subtype,
            &mut self.delay_type,
            &mut self.link,
            &mut self.ip,
            &mut self.user_agent,
            &mut self.bot,
            &mut self.feedback_id,
            &mut self.reporting_mta,
        ]
    }
}

// People's addresses and what they clicked stay out of logs, also by accident.

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({})", self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "Address()" } else { "Address(…)" })
    }
}

impl fmt::Debug for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Detail(…)")
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("message_id", &self.message_id)
            .field("kind", &self.kind)
            .field("occurred_at", &self.occurred_at)
            .finish_non_exhaustive()
    }
}
