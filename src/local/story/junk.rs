//! What nobody should send, and what others send to the same place.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::bodies::{SUBJECT, Scene, eventbridge, json, object, sns, wire};
use super::dice::Dice;
use crate::pipeline::decode::{IgnoreReason, RejectReason};

/// A body that looks as if it were for us and cannot be understood.
pub(super) struct Poison {
    pub(super) reason: RejectReason,
    /// In words, for people.
    pub(super) words: &'static str,
    weight: u64,
    /// An object of its own: it does not spoil a batch around it.
    is_object: bool,
    /// What a real notice would have become.
    body: fn(&Original) -> String,
}

/// A body that is in order, but not about a sent mail.
pub(super) struct Noise {
    pub(super) reason: IgnoreReason,
    /// In words, for people.
    pub(super) words: &'static str,
    body: fn(u64) -> String,
}

/// The real notice that something is made of.
struct Original<'a> {
    scene: &'a Scene<'a>,
    event: String,
    name: &'static str,
    key: &'static str,
}

impl Poison {
    pub(super) fn pick(dice: &mut Dice) -> &'static Self {
        dice.pick_weighted(&POISONS, |poison| poison.weight)
    }

    /// One that can stand in a batch.
    pub(super) fn pick_for_batch(dice: &mut Dice) -> &'static Self {
        dice.pick_weighted(&POISONS, |poison| poison.weight * u64::from(poison.is_object))
    }

    pub(super) fn body(&self, about: &Scene) -> String {
        let (name, key) = wire(&about.happening.what);
        (self.body)(&Original { scene: about, event: about.event(), name, key })
    }
}

impl Noise {
    pub(super) fn pick(dice: &mut Dice) -> &'static Self {
        dice.pick(&NOISES)
    }

    pub(super) fn body(&self, salt: u64) -> String {
        (self.body)(salt)
    }
}

pub(super) static POISONS: [Poison; 27] = [
    text(RejectReason::Empty, "nothing but white space", |_| " \n".to_owned()),
    text(RejectReason::EmptyBatch, "an empty array", |_| "[]".to_owned()),
    text(RejectReason::EmptyBatch, "a Lambda event without records", |_| r#"{"Records":[]}"#.to_owned()),
    text(RejectReason::EmptyEnvelope, "an SNS message that is null", |n| n.scene.sns(SUBJECT, None)),
    text(RejectReason::EmptyEnvelope, "an EventBridge event without a detail", |n| {
        eventbridge(n.scene.notice.salt, n.scene.happening.at_ms, "Email Sent", &Value::Null)
    }),
    // SQS refuses bytes that are no text, but not base64 of them.
    text(RejectReason::NotUtf8, "base64 of Latin-1", |n| {
        let (start, rest) = n.event.as_bytes().split_at(n.event.len() - 1);
        STANDARD.encode([start, br#","note":"M"#, &[0xfc], br#"ller""#, rest].concat())
    }),
    text(RejectReason::NotJson, "HTML", |_| "<html><body><h1>502 Bad Gateway</h1></body></html>".to_owned()),
    text(RejectReason::InvalidJson, "a Python dict", |n| {
        let id = &n.scene.mail.message_id;
        format!("{{'eventType': '{}', 'mail': {{'messageId': '{id}', 'headersTruncated': False}}}}", n.name)
    }),
    text(RejectReason::InvalidJson, "a raw newline in a string", |n| n.with("\"note\":\"250 first\nsecond\"")),
    text(RejectReason::InvalidJson, "NaN", |n| n.with(r#""processingTimeMillis":NaN"#)),
    text(RejectReason::TruncatedJson, "truncated JSON", |n| half(&n.event).to_owned()),
    text(RejectReason::TruncatedJson, "truncated JSON in an SNS message", |n| {
        n.scene.sns(SUBJECT, Some(half(&n.event)))
    }),
    text(RejectReason::LoneSurrogate, "a lone surrogate", |n| n.with(r#""note":"250 \ud83d OK""#)),
    text(RejectReason::NumberOutOfRange, "a number out of range", |n| n.with(r#""processingTimeMillis":1e400"#)),
    text(RejectReason::NestedTooDeep, "nested too deeply", |n| {
        n.with(&format!(r#""note":{}{}"#, "[".repeat(300), "]".repeat(300)))
    }),
    text(RejectReason::WrappedTooDeep, "wrapped too often", |n| {
        format!("{}{}{}", "[".repeat(9), n.event, "]".repeat(9))
    }),
    // 64 KiB of it: too much to be frequent.
    Poison {
        weight: 5,
        ..text(RejectReason::TooManyLeaves, "more elements than events can be", |_| {
            format!("[{}0]", "0,".repeat(32_768))
        })
    },
    text(RejectReason::NotAnObject, "null", |_| "null".to_owned()),
    text(RejectReason::NotAnObject, "a number", |_| "42".to_owned()),
    text(RejectReason::PayloadInS3, "a pointer to S3", |n| {
        let place = json!({ "s3BucketName": "large-messages", "s3Key": n.scene.mail.log_uuid.to_string() });
        json!(["software.amazon.payloadoffloading.PayloadS3Pointer", place]).to_string()
    }),
    object_of(RejectReason::NoType, "no type", |n| n.event.replace(&format!(r#""eventType":"{}","#, n.name), "")),
    object_of(RejectReason::NoMail, "no mail", |n| {
        format!(r#"{{"eventType":"{}","{}":{}}}"#, n.name, n.key, json(&object(n.scene)))
    }),
    object_of(RejectReason::NoMail, "a mail that is a string", |n| {
        let (id, own) = (&n.scene.mail.message_id, json(&object(n.scene)));
        format!(r#"{{"eventType":"{}","mail":"{id}","{}":{own}}}"#, n.name, n.key)
    }),
    object_of(RejectReason::NoMessageId, "an empty message id", |n| n.with_id(r#""""#)),
    object_of(RejectReason::NoMessageId, "a message id of brackets", |n| n.with_id(r#""<>""#)),
    object_of(RejectReason::NoMessageId, "a message id that is null", |n| n.with_id("null")),
    object_of(RejectReason::NoMessageId, "a message id that is a number", |n| n.with_id("12345")),
];

pub(super) static NOISES: [Noise; 18] = [
    noise(IgnoreReason::SesValidation, "SES tests a topic, raw", |_| VALIDATED.to_owned()),
    noise(IgnoreReason::SesValidation, "SES tests a topic", |salt| published(salt, SUBJECT, VALIDATED)),
    noise(IgnoreReason::SubscriptionSucceeded, "feedback of an identity is set up", |salt| {
        published(
            salt,
            None,
            r#"{"notificationType":"AmazonSnsSubscriptionSucceeded","message":"You have successfully subscribed your Amazon SNS topic 'arn:aws:sns:eu-west-1:123456789012:ses-events' to receive 'Bounce' notifications from Amazon SES for identity 'shop.example.com'."}"#,
        )
    }),
    noise(IgnoreReason::SetupNotification, "an inbound rule is set up", |salt| {
        published(
            salt,
            Some("Amazon SES Email Receipt Notification"),
            &received("AMAZON_SES_SETUP_NOTIFICATION").to_string(),
        )
    }),
    noise(IgnoreReason::SubscriptionConfirmation, "SNS asks to confirm", |salt| {
        const ASKS: &str = "You have chosen to subscribe to the topic arn:aws:sns:eu-west-1:123456789012:ses-events.\nTo confirm the subscription, visit the SubscribeURL included in this message.";
        sns(salt, LONG_AGO_MS, "SubscriptionConfirmation", None, Some(ASKS))
    }),
    noise(IgnoreReason::UnsubscribeConfirmation, "SNS says goodbye", |salt| {
        const SAYS: &str = "You have chosen to deactivate subscription arn:aws:sns:eu-west-1:123456789012:ses-events:6f0d6f4e-52f5-4c6d-9a50-0d5a4b0d1c2e.\nTo cancel this operation and restore the subscription, visit the SubscribeURL included in this message.";
        sns(salt, LONG_AGO_MS, "UnsubscribeConfirmation", None, Some(SAYS))
    }),
    noise(IgnoreReason::ReceivedMail, "a mail that SES received", |salt| {
        published(salt, Some("Amazon SES Email Receipt Notification"), &received(INBOUND_ID).to_string())
    }),
    noise(IgnoreReason::ReceivedMail, "a mail that SES received, for Lambda", |_| {
        let record = json!({ "eventSource": "aws:ses", "eventVersion": "1.0", "ses": received(INBOUND_ID) });
        json!({ "Records": [record] }).to_string()
    }),
    noise(IgnoreReason::SesAccount, "sending is switched off", |salt| {
        let detail = json!({ "version": "1.0", "lastUpdatedTimestamp": [2026, 10, 5, 0, 0, 0], "status": "DISABLED" });
        eventbridge(salt, LONG_AGO_MS, "Sending Status Disabled", &detail)
    }),
    noise(IgnoreReason::SesAccount, "advice for an identity", |salt| {
        let detail = json!({ "version": "1.0", "data": { "type": "DKIM", "impact": "HIGH", "status": "OPEN" } });
        eventbridge(salt, LONG_AGO_MS, "Advisor Recommendation Status Open", &detail)
    }),
    noise(IgnoreReason::CloudTrail, "an API call", |salt| {
        let detail = json!({
            "eventVersion": "1.08", "eventSource": "ses.amazonaws.com", "eventName": "SendEmail",
            "eventType": "AwsApiCall", "requestParameters": {}, "responseElements": null,
        });
        eventbridge(salt, LONG_AGO_MS, "AWS API Call via CloudTrail", &detail)
    }),
    noise(IgnoreReason::Sms, "a text message", |salt| {
        published(
            salt,
            None,
            r#"{"eventType":"TEXT_DELIVERED","eventVersion":"1.0","eventTimestamp":1791190800000,"isFinal":true,"originationPhoneNumber":"+12065550100","destinationPhoneNumber":"+12065550101","isoCountryCode":"US","messageId":"5ee3b2d6-1e36-4b5c-8f0e-0d5f4a1b7c3a","messageType":"TRANSACTIONAL","messageStatus":"DELIVERED"}"#,
        )
    }),
    noise(IgnoreReason::Pinpoint, "an event of Pinpoint", |_| {
        r#"{"event_type":"_email.delivered","event_timestamp":1791190800000,"arrival_timestamp":1791190801000,"event_version":"3.1","application":{"app_id":"0a1b2c3d4e5f60718293a4b5c6d7e8f9"},"client":{"client_id":"c-0001"},"attributes":{},"awsAccountId":"123456789012"}"#.to_owned()
    }),
    noise(IgnoreReason::S3Test, "S3 tests a queue", |_| {
        r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2026-10-05T00:00:00.000Z","Bucket":"shop-inbound","RequestId":"5582815E1AEA5ADF","HostId":"8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR+YstdA6Knx4Ip8EXAMPLE"}"#.to_owned()
    }),
    noise(IgnoreReason::PlainText, "somebody tries the topic", |salt| {
        published(salt, None, "[TEST] hello from the console")
    }),
    noise(IgnoreReason::Foreign, "an alarm", |salt| {
        published(
            salt,
            Some("ALARM: \"ses-bounce-rate\" in EU (Ireland)"),
            r#"{"AlarmName":"ses-bounce-rate","AWSAccountId":"123456789012","NewStateValue":"ALARM","NewStateReason":"Threshold Crossed","StateChangeTime":"2026-10-05T00:00:00.000+0000","Region":"EU (Ireland)","OldStateValue":"OK"}"#,
        )
    }),
    noise(IgnoreReason::Foreign, "an object in S3", |_| {
        r#"{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","awsRegion":"eu-west-1","eventTime":"2026-10-05T00:00:00.000Z","eventName":"ObjectCreated:Put","s3":{"s3SchemaVersion":"1.0","bucket":{"name":"shop-inbound"},"object":{"key":"mail/0001","size":4711}}}]}"#.to_owned()
    }),
    noise(IgnoreReason::Foreign, "JSON of a test", |salt| published(salt, None, r#"{"hello":"world"}"#)),
];

const fn text(reason: RejectReason, words: &'static str, body: fn(&Original) -> String) -> Poison {
    Poison { reason, words, weight: 20, is_object: false, body }
}

const fn object_of(reason: RejectReason, words: &'static str, body: fn(&Original) -> String) -> Poison {
    Poison { is_object: true, ..text(reason, words, body) }
}

const fn noise(reason: IgnoreReason, words: &'static str, body: fn(u64) -> String) -> Noise {
    Noise { reason, words, body }
}

impl Original<'_> {
    /// With a field in front of all others, because a truncated reader could stop before the last.
    fn with(&self, field: &str) -> String {
        format!("{{{field},{}", &self.event[1..])
    }

    fn with_id(&self, other: &str) -> String {
        let id = &self.scene.mail.message_id;
        self.event.replace(&format!(r#""messageId":"{id}""#), &format!(r#""messageId":{other}"#))
    }
}

fn half(text: &str) -> &str {
    &text[..text.floor_char_boundary(text.len() / 2)]
}

fn published(salt: u64, subject: Option<&str>, message: &str) -> String {
    sns(salt, LONG_AGO_MS, "Notification", subject, Some(message))
}

fn received(message_id: &str) -> Value {
    let mail = json!({
        "timestamp": "2026-10-05T00:00:00.000Z", "source": "somebody@example.net", "messageId": message_id,
        "destination": ["help@shop.example.com"],
    });
    let verdict = json!({ "status": "PASS" });
    let receipt = json!({ "recipients": ["help@shop.example.com"], "spamVerdict": verdict, "virusVerdict": verdict });
    json!({ "notificationType": "Received", "mail": mail, "receipt": receipt })
}

const INBOUND_ID: &str = "4g2cbpr8o1nhq3v0d5s6u7t9a1b2c3d4e5f6g7h8";
const VALIDATED: &str = "Successfully validated SNS topic for Amazon SES event publishing.";

/// When the topic was set up.
const LONG_AGO_MS: i64 = 1_790_000_000_000;
