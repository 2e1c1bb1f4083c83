//! The bodies, field by field as SES, SNS and EventBridge write them.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;

use super::Notice;
use super::cast::{CONFIGURATION_SET, FIRST_NAMES, LAST_NAMES, Reader};
use super::dice::Dice;
use super::life::{Happening, Mail, Recipient, Spelling, What};
use super::relays::Relay;
use super::truth::time;

/// Everything that a body says, and how.
pub(super) struct Scene<'a> {
    pub(super) mail: &'a Mail,
    pub(super) happening: &'a Happening,
    pub(super) notice: Notice,
    pub(super) with_headers: bool,
    /// How many bytes the event shall have; `None`: as many as it has.
    pub(super) size: Option<usize>,
}

/// What is around a single notice.
#[derive(Clone, Copy)]
pub(super) enum Envelope {
    Sns,
    Raw,
    EventBridge,
    EventBridgeInSns,
    /// Passed on by something of the customer's own.
    Relayed(Relay),
}

/// How many in a thousand. The identity's feedback goes to SNS and nowhere else: to the first two.
const ENVELOPES: [(u64, Envelope); 12] = [
    (590, Envelope::Sns),
    (250, Envelope::Raw),
    (106, Envelope::EventBridge),
    (40, Envelope::EventBridgeInSns),
    (3, Envelope::Relayed(Relay::LambdaOfTopic)),
    (3, Envelope::Relayed(Relay::LambdaOfQueue)),
    (1, Envelope::Relayed(Relay::LambdaOfStream)),
    (2, Envelope::Relayed(Relay::LambdaDestination)),
    (1, Envelope::Relayed(Relay::QueueListing)),
    (1, Envelope::Relayed(Relay::JsonString)),
    (1, Envelope::Relayed(Relay::Base64)),
    (2, Envelope::Relayed(Relay::Base64InSns)),
];

/// By which of its two ways SES tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// By the configuration set: every kind, with tags.
    EventPublishing,
    /// By the identity: bounces, complaints and deliveries, without tags.
    IdentityFeedback,
}

impl Envelope {
    pub(super) fn pick(dice: &mut Dice, profile: super::Profile, path: Path) -> Self {
        let table = match (profile, path) {
            (super::Profile::Small | super::Profile::Sized(_), _) => return Self::Raw,
            (_, Path::IdentityFeedback) => &ENVELOPES[..2],
            (_, Path::EventPublishing) => &ENVELOPES,
        };
        dice.pick_weighted(table, |(weight, _)| *weight).1
    }
}

impl Scene<'_> {
    pub(super) fn body(&self) -> String {
        match (self.notice.envelope, self.notice.path) {
            (Envelope::Raw, Path::EventPublishing) => self.event() + "\n",
            (Envelope::Raw, Path::IdentityFeedback) => self.event(),
            (Envelope::Sns, Path::EventPublishing) => self.sns(SUBJECT, Some(&(self.event() + "\n"))),
            (Envelope::Sns, Path::IdentityFeedback) => self.sns(None, Some(&self.event())),
            (Envelope::EventBridge, _) => self.eventbridge(),
            (Envelope::EventBridgeInSns, _) => self.sns(None, Some(&self.eventbridge())),
            (Envelope::Relayed(relay), _) => relay.body(self),
        }
    }

    /// The event itself, without any envelope.
    pub(super) fn event(&self) -> String {
        let event = json(&EventJson(self));
        match self.size {
            None => event,
            Some(size) if size < LEAST_USUAL => cut_down(&event),
            Some(size) if event.len() + FILLER.len() < size => {
                let filler = self.filler(size - event.len() - FILLER.len());
                event.replacen(r#""tags":{"#, &FILLER.replace('_', &filler), 1)
            }
            Some(_) => event,
        }
    }

    /// Words that repeat as those of real tags do: neither a single letter that compresses to nothing, nor noise.
    fn filler(&self, length: usize) -> String {
        let mut dice = self.own_dice();
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            let (first, last) = (dice.pick(&FIRST_NAMES), dice.pick(&LAST_NAMES));
            text += &format!("{first}.{last}={:x};", dice.below(4096));
        }
        text.truncate(length);
        text
    }

    pub(super) fn sns(&self, subject: Option<&str>, message: Option<&str>) -> String {
        sns(self.notice.salt, self.happening.at_ms, "Notification", subject, message)
    }

    pub(super) fn eventbridge(&self) -> String {
        eventbridge(self.notice.salt, self.happening.at_ms, detail_type(&self.happening.what), &EventJson(self))
    }

    fn is_feedback(&self) -> bool {
        self.notice.path == Path::IdentityFeedback
    }

    /// What does not change from one notice of the same happening to the next.
    fn own_dice(&self) -> Dice {
        Dice::new(self.mail.log_uuid.as_u64_pair().1 ^ self.happening.at_ms.unsigned_abs())
    }
}

/// Takes the place of `"tags":{`.
const FILLER: &str = r#""tags":{"filler":["_"],"#;

/// The usual fields of an event have about as many bytes.
const LEAST_USUAL: usize = 600;

/// What is left is when, whose, to whom, and why: 190 to 350 bytes.
fn cut_down(event: &str) -> String {
    const NEEDED: [&str; 11] = [
        "timestamp",
        "messageId",
        "destination",
        "recipients",
        "bounceType",
        "bouncedRecipients",
        "complainedRecipients",
        "complaintSubType",
        "complaintFeedbackType",
        "delayedRecipients",
        "link",
    ];
    let mut event: Value = serde_json::from_str(event).expect("it has just been written");
    for object in event.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        if let Some(tags) = object.get_mut("tags").and_then(Value::as_object_mut) {
            tags.retain(|name, _| name == "email_log_uuid");
        }
        if let Some(fields) = object.as_object_mut() {
            fields.retain(|name, value| {
                NEEDED.contains(&name.as_str())
                    || (name == "tags" && value.as_object().is_some_and(|tags| !tags.is_empty()))
            });
        }
    }
    json(&event)
}

pub(super) const SUBJECT: Option<&str> = Some("Amazon SES Email Event Notification");
const REGION: &str = "eu-west-1";
const ACCOUNT: &str = "123456789012";
const IDENTITY: &str = "arn:aws:ses:eu-west-1:123456789012:identity/shop.example.com";
const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:ses-events";

/// `eventType`, then the mail and the type's own object; which of them comes first differs.
struct EventJson<'a>(&'a Scene<'a>);

impl Serialize for EventJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let scene = self.0;
        let (name, key) = wire(&scene.happening.what);
        let mut event = serializer.serialize_map(Some(3))?;
        event.serialize_entry(if scene.is_feedback() { "notificationType" } else { "eventType" }, name)?;
        if matches!(scene.happening.what, What::Bounce { .. } | What::Complaint { .. }) {
            event.serialize_entry(key, &object(scene))?;
            event.serialize_entry("mail", &mail(scene))?;
        } else {
            event.serialize_entry("mail", &mail(scene))?;
            event.serialize_entry(key, &object(scene))?;
        }
        event.end()
    }
}

/// The value of `eventType`, and the key of the type's own object.
pub(super) fn wire(what: &What) -> (&'static str, &'static str) {
    match what {
        What::Send => ("Send", "send"),
        What::Reject => ("Reject", "reject"),
        What::RenderingFailure => ("Rendering Failure", "failure"),
        What::Delivery { .. } => ("Delivery", "delivery"),
        What::DeliveryDelay { .. } => ("DeliveryDelay", "deliveryDelay"),
        What::Bounce { .. } => ("Bounce", "bounce"),
        What::Complaint { .. } => ("Complaint", "complaint"),
        What::Open { .. } => ("Open", "open"),
        What::Click { .. } => ("Click", "click"),
        What::Subscription => ("Subscription", "subscription"),
        What::Novel => ("InboxPlacement", "inboxPlacement"),
    }
}

fn detail_type(what: &What) -> &'static str {
    match what {
        What::Send => "Email Sent",
        What::Reject => "Email Rejected",
        What::RenderingFailure => "Email Rendering Failed",
        What::Delivery { .. } => "Email Delivered",
        What::DeliveryDelay { .. } => "Email Delivery Delayed",
        What::Bounce { .. } => "Email Bounced",
        What::Complaint { .. } => "Email Complaint Received",
        What::Open { .. } => "Email Opened",
        What::Click { .. } => "Email Clicked",
        What::Subscription => "Email Subscribed",
        What::Novel => "Email Inbox Placement",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MailJson<'a> {
    timestamp: String,
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_arn: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_ip: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller_identity: Option<&'a str>,
    sending_account_id: &'a str,
    message_id: &'a str,
    destination: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers_truncated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Vec<HeaderJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    common_headers: Option<CommonHeadersJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<TagsJson<'a>>,
}

#[derive(Serialize)]
struct HeaderJson<'a> {
    name: &'a str,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CommonHeadersJson<'a> {
    from: [&'a str; 1],
    to: Vec<&'a str>,
    message_id: &'a str,
    subject: &'a str,
}

struct TagsJson<'a>(Vec<(&'a str, String)>);

impl Serialize for TagsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, [value])))
    }
}

fn mail<'a>(scene: &Scene<'a>) -> MailJson<'a> {
    let (mail, what, feedback) = (scene.mail, &scene.happening.what, scene.is_feedback());
    let to: Vec<&str> = mail.recipients.iter().map(|r| r.written.as_str()).collect();
    // SES leaves the headers out where it has no mail yet, or no longer.
    let headers = scene.with_headers && !matches!(what, What::RenderingFailure | What::DeliveryDelay { .. });
    // The older feedback knows when a mail was sent to the second only, except for deliveries.
    let whole_seconds = feedback && !matches!(what, What::Delivery { .. });
    MailJson {
        timestamp: timestamp(mail.at_ms - if whole_seconds { mail.at_ms % 1_000 } else { 0 }),
        source: mail.campaign.sender,
        source_arn: (!matches!(what, What::Open { .. } | What::Click { .. })).then_some(IDENTITY),
        source_ip: feedback.then_some("192.0.2.10"),
        caller_identity: feedback.then_some("shop-mailer"),
        sending_account_id: ACCOUNT,
        message_id: &mail.message_id,
        headers_truncated: headers.then_some(false),
        headers: headers.then(|| original_headers(mail, &to)),
        common_headers: headers.then(|| CommonHeadersJson {
            from: [mail.campaign.sender],
            to: to.clone(),
            message_id: &mail.message_id,
            subject: mail.campaign.subject,
        }),
        tags: (!feedback).then(|| tags(mail, what)),
        destination: to,
    }
}

/// What the application handed over: SES puts its own id into a header that is not among them.
fn original_headers<'a>(mail: &Mail, to: &[&str]) -> Vec<HeaderJson<'a>> {
    let own_id = mail.log_uuid.simple();
    let mut headers = Vec::with_capacity(12);
    let mut add = |name, value| headers.push(HeaderJson { name, value });
    if mail.campaign.template.is_none() {
        let (host, id) = ("mailer.shop.example.com", &mail.message_id[4..16]);
        let by = format!("email-smtp.amazonaws.com with SMTP (SimpleEmailService-d-{id})");
        let when = timestamp(mail.at_ms);
        add("Received", format!("from {host} ({host} [192.0.2.10]) by {by} for {}; {when}", to[0]));
    }
    add("From", mail.campaign.sender.to_owned());
    add("Reply-To", "help@shop.example.com".to_owned());
    add("To", to.join(", "));
    add("Subject", mail.campaign.subject.to_owned());
    add("Message-ID", format!("<{own_id}@mailer.shop.example.com>"));
    add("MIME-Version", "1.0".to_owned());
    add("Content-Type", format!("multipart/alternative; boundary=\"----=_Part_{own_id}\""));
    add("X-SES-CONFIGURATION-SET", CONFIGURATION_SET.to_owned());
    if mail.campaign.campaign_id.is_some() {
        let (page, mailbox) = ("https://shop.example.com/unsubscribe/", "mailto:unsubscribe+");
        add("List-Unsubscribe", format!("<{page}{own_id}>, <{mailbox}{own_id}@shop.example.com>"));
        add("List-Unsubscribe-Post", "List-Unsubscribe=One-Click".to_owned());
    }
    headers
}

fn tags<'a>(mail: &Mail, what: &What) -> TagsJson<'a> {
    let mut tags = vec![
        ("ses:source-tls-version", "TLSv1.3".to_owned()),
        ("ses:configuration-set", CONFIGURATION_SET.to_owned()),
        ("ses:source-ip", "192.0.2.10".to_owned()),
        ("ses:from-domain", "shop.example.com".to_owned()),
        ("ses:caller-identity", "shop-mailer".to_owned()),
    ];
    // Without a template the application speaks SMTP, which is no operation.
    if mail.campaign.template.is_some() {
        tags.push(("ses:operation", "SendTemplatedEmail".to_owned()));
    }
    if matches!(what, What::Delivery { .. } | What::Open { .. } | What::Click { .. }) {
        tags.push(("ses:outgoing-ip", "198.51.100.25".to_owned()));
        tags.push(("ses:outgoing-tls-version", "TLSv1.2".to_owned()));
    }
    if let (Some(tenant), What::Bounce { .. } | What::Complaint { .. }) = (mail.campaign.tenant, what) {
        tags.push(("ses:tenant-name", tenant.to_owned()));
    }
    tags.extend(mail.campaign.own_tags().map(|(name, value)| (name, value.to_owned())));
    if mail.tagged {
        tags.push(("email_log_uuid", mail.log_uuid.to_string()));
    }
    TagsJson(tags)
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum ObjectJson<'a> {
    Send {},
    Reject {
        reason: &'static str,
    },
    #[serde(rename_all = "camelCase")]
    Failure {
        error_message: &'static str,
        template_name: &'static str,
    },
    #[serde(rename_all = "camelCase")]
    Delivery {
        timestamp: String,
        processing_time_millis: i64,
        recipients: Vec<&'a str>,
        smtp_response: String,
        remote_mta_ip: String,
        #[serde(rename = "reportingMTA")]
        reporting_mta: &'static str,
    },
    #[serde(rename_all = "camelCase")]
    DeliveryDelay {
        timestamp: String,
        delay_type: &'static str,
        expiration_time: String,
        #[serde(rename = "reportingMTA")]
        reporting_mta: &'static str,
        delayed_recipients: Vec<DsnJson>,
    },
    #[serde(rename_all = "camelCase")]
    Bounce {
        feedback_id: String,
        bounce_type: &'static str,
        bounce_sub_type: &'static str,
        bounced_recipients: Vec<DsnJson>,
        timestamp: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        remote_mta_ip: Option<String>,
        #[serde(rename = "reportingMTA", skip_serializing_if = "Option::is_none")]
        reporting_mta: Option<&'static str>,
    },
    #[serde(rename_all = "camelCase")]
    Complaint {
        feedback_id: String,
        /// Really `null`, not absent.
        complaint_sub_type: Option<&'static str>,
        complained_recipients: Vec<DsnJson>,
        timestamp: String,
        #[serde(flatten)]
        report: Option<ReportJson>,
    },
    #[serde(rename_all = "camelCase")]
    Read {
        timestamp: String,
        user_agent: &'static str,
        ip_address: String,
        is_bot_event: &'static str,
        #[serde(flatten)]
        link: Option<LinkJson>,
    },
    #[serde(rename_all = "camelCase")]
    Subscription {
        contact_list: &'static str,
        timestamp: String,
        source: &'static str,
        new_topic_preferences: TopicsJson,
        old_topic_preferences: TopicsJson,
    },
    Novel {
        timestamp: String,
        folder: &'static str,
    },
}

/// A recipient, with what its server said if it said anything.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DsnJson {
    email_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diagnostic_code: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReportJson {
    user_agent: &'static str,
    complaint_feedback_type: &'static str,
    arrival_date: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LinkJson {
    link: String,
    /// Really `null` where a link has no tags.
    link_tags: Option<LinkTagsJson>,
}

#[derive(Serialize)]
pub(super) struct LinkTagsJson {
    section: [&'static str; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TopicsJson {
    unsubscribe_all: bool,
    topic_subscription_status: [TopicJson; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TopicJson {
    topic_name: &'static str,
    subscription_status: &'static str,
}

/// The object that is named after the type.
pub(super) fn object<'a>(scene: &Scene<'a>) -> ObjectJson<'a> {
    let (mail, at_ms) = (scene.mail, scene.happening.at_ms);
    let mut dice = scene.own_dice();
    match &scene.happening.what {
        What::Send => ObjectJson::Send {},
        What::Reject => ObjectJson::Reject { reason: "Bad content" },
        What::RenderingFailure => ObjectJson::Failure {
            error_message: "Attribute 'firstName' is not present in the rendering data.",
            template_name: mail.campaign.template.unwrap_or_default(),
        },
        What::Delivery { to } => ObjectJson::Delivery {
            timestamp: timestamp(at_ms),
            processing_time_millis: at_ms - mail.at_ms,
            recipients: those(mail, to).map(|r| r.written.as_str()).collect(),
            smtp_response: format!("250 2.0.0 OK: queued as {:010X}", dice.roll() >> 24),
            remote_mta_ip: format!("203.0.113.{}", dice.between(1, 254)),
            reporting_mta: "a7-42.smtp-out.eu-west-1.amazonses.com",
        },
        What::DeliveryDelay { to, delay, spelling } => ObjectJson::DeliveryDelay {
            timestamp: timestamp(at_ms),
            delay_type: delay.kind,
            expiration_time: timestamp(mail.at_ms + 50_400_000),
            reporting_mta: "a7-42.smtp-out.eu-west-1.amazonses.com",
            delayed_recipients: those(mail, to)
                .map(|r| DsnJson { action: None, ..DsnJson::new(r, *spelling, Some((delay.status, delay.diagnostic))) })
                .collect(),
        },
        What::Bounce { to, verdict, spelling } => ObjectJson::Bounce {
            feedback_id: feedback_id(&mut dice, at_ms),
            bounce_type: verdict.class,
            bounce_sub_type: verdict.subtype,
            bounced_recipients: those(mail, to).map(|r| DsnJson::new(r, *spelling, verdict.dsn)).collect(),
            timestamp: timestamp(at_ms),
            remote_mta_ip: verdict.attempted.then(|| format!("203.0.113.{}", dice.between(1, 254))),
            reporting_mta: verdict.dsn.map(|_| "dns; amazonses.com"),
        },
        What::Complaint { by, report, suppressed_by } => ObjectJson::Complaint {
            feedback_id: feedback_id(&mut dice, at_ms),
            complaint_sub_type: *suppressed_by,
            complained_recipients: those(mail, by).map(|r| DsnJson::new(r, Spelling::AsWritten, None)).collect(),
            timestamp: timestamp(at_ms),
            report: report.map(|complaint_feedback_type| ReportJson {
                user_agent: "ExampleMail-FBL/2.0",
                complaint_feedback_type,
                arrival_date: timestamp(at_ms - dice.between(1_000, 60_000)),
            }),
        },
        What::Open { reader } => read(&mut dice, at_ms, reader, None),
        What::Click { reader, link } => {
            let link_tags = dice.chance(0.3).then_some(LinkTagsJson { section: ["footer"] });
            read(&mut dice, at_ms, reader, Some(LinkJson { link: link.url(), link_tags }))
        }
        What::Subscription => ObjectJson::Subscription {
            contact_list: "customers",
            timestamp: timestamp(at_ms),
            source: "UnsubscribeHeader",
            new_topic_preferences: topics(true),
            old_topic_preferences: topics(false),
        },
        What::Novel => ObjectJson::Novel { timestamp: timestamp(at_ms), folder: "Promotions" },
    }
}

fn read<'a>(dice: &mut Dice, at_ms: i64, reader: &Reader, link: Option<LinkJson>) -> ObjectJson<'a> {
    ObjectJson::Read {
        timestamp: timestamp(at_ms),
        user_agent: reader.user_agent,
        ip_address: format!("{}.{}", reader.network, dice.between(1, 254)),
        is_bot_event: reader.bot,
        link,
    }
}

fn topics(unsubscribe_all: bool) -> TopicsJson {
    let subscription_status = if unsubscribe_all { "OptOut" } else { "OptIn" };
    TopicsJson { unsubscribe_all, topic_subscription_status: [TopicJson { topic_name: "offers", subscription_status }] }
}

impl DsnJson {
    fn new(recipient: &Recipient, spelling: Spelling, dsn: Option<(&'static str, &'static str)>) -> Self {
        let Recipient { address, written } = recipient;
        Self {
            email_address: match spelling {
                Spelling::AsWritten => written.clone(),
                Spelling::Rfc822 => format!("rfc822; {address}"),
                Spelling::Brackets => format!("<{written}>"),
                Spelling::UpperCaseDomain => {
                    let local = &address[..address.len() - recipient.domain().len()];
                    format!("{local}{}", recipient.domain().to_uppercase())
                }
            },
            action: dsn.map(|_| "failed"),
            status: dsn.map(|(status, _)| status),
            diagnostic_code: dsn.map(|(_, diagnostic)| diagnostic),
        }
    }
}

fn those<'a>(mail: &'a Mail, which: &[u8]) -> impl Iterator<Item = &'a Recipient> {
    which.iter().map(|n| &mail.recipients[usize::from(*n)])
}

fn feedback_id(dice: &mut Dice, at_ms: i64) -> String {
    format!("0102{:012x}-{}-000000", at_ms + dice.between(0, 900), uuid(dice))
}

fn uuid(dice: &mut Dice) -> uuid::Uuid {
    uuid::Builder::from_random_bytes(dice.bytes()).into_uuid()
}

/// `2026-11-20T09:30:00.042Z`
fn timestamp(unix_ms: i64) -> String {
    let (t, ms) = (time(unix_ms), unix_ms % 1_000);
    let (date, [hour, minute, second]) = (t.date(), [t.hour(), t.minute(), t.second()]);
    format!("{date}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our own maps have string keys and our values cannot fail")
}

// The envelopes.

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SnsJson<'a> {
    r#type: &'a str,
    message_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    topic_arn: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    message: Option<&'a str>,
    timestamp: String,
    signature_version: &'a str,
    signature: String,
    #[serde(rename = "SigningCertURL")]
    signing_cert_url: &'a str,
    #[serde(rename = "SubscribeURL", skip_serializing_if = "Option::is_none")]
    subscribe_url: Option<&'a str>,
    #[serde(rename = "UnsubscribeURL", skip_serializing_if = "Option::is_none")]
    unsubscribe_url: Option<&'a str>,
}

pub(super) fn sns(salt: u64, at_ms: i64, kind: &str, subject: Option<&str>, message: Option<&str>) -> String {
    let mut dice = Dice::new(salt);
    let notification = kind == "Notification";
    json(&SnsJson {
        r#type: kind,
        message_id: uuid(&mut dice).to_string(),
        token: (!notification).then_some("2336412f37fb687f5d51e6e2425e90ccf23b"),
        topic_arn: TOPIC,
        subject,
        message,
        timestamp: timestamp(at_ms + dice.between(15, 90)),
        signature_version: if dice.chance(0.3) { "2" } else { "1" },
        signature: signature(&mut dice),
        signing_cert_url: "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-9c6465fa7f48f5cacd23014631ec1136.pem",
        subscribe_url: (!notification).then_some("https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=arn:aws:sns:eu-west-1:123456789012:ses-events&Token=2336412f37fb687f5d51e6e2425e90ccf23b"),
        unsubscribe_url: notification.then_some("https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe&SubscriptionArn=arn:aws:sns:eu-west-1:123456789012:ses-events:6f0d6f4e-52f5-4c6d-9a50-0d5a4b0d1c2e"),
    })
}

/// As long as a real one: 256 bytes in base64.
fn signature(dice: &mut Dice) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(344);
    while text.len() < 342 {
        let bits = dice.roll();
        text.extend((0..9).map(|n| char::from(DIGITS[(bits >> (6 * n)) as usize % 64])));
    }
    text + "=="
}

#[derive(Serialize)]
struct EventBridgeJson<'a, T> {
    version: &'a str,
    id: String,
    #[serde(rename = "detail-type")]
    detail_type: &'a str,
    source: &'a str,
    account: &'a str,
    time: String,
    region: &'a str,
    resources: [String; 1],
    detail: &'a T,
}

pub(super) fn eventbridge(salt: u64, at_ms: i64, detail_type: &str, detail: &impl Serialize) -> String {
    let whole_second = timestamp(at_ms - at_ms % 1_000).replace(".000", "");
    json(&EventBridgeJson {
        version: "0",
        id: uuid(&mut Dice::new(salt)).to_string(),
        detail_type,
        source: "aws.ses",
        account: ACCOUNT,
        time: whole_second,
        region: REGION,
        resources: [format!("arn:aws:ses:{REGION}:{ACCOUNT}:configuration-set/{CONFIGURATION_SET}")],
        detail,
    })
}
