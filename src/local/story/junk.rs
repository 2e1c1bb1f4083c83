//! What nobody should send, and what others send to the same place.

use super::bodies::{SUBJECT, Scene, eventbridge, json, object, sns, wire};

/// A body that looks as if it were for us and cannot be understood.
#[derive(Clone, Copy)]
pub(super) enum Poison {
    TruncatedJson,
    TruncatedMessage,
    Html,
    PythonDict,
    Null,
    Number,
    EmptyArray,
    RawNewline,
    LoneSurrogate,
    HugeNumber,
    NotANumber,
    TooDeep,
    MessageNull,
    NoMail,
    MailString,
    IdEmpty,
    IdNull,
    IdNumber,
    NoType,
}

impl Poison {
    pub(super) const ALL: [Self; 19] = [
        Self::TruncatedJson,
        Self::TruncatedMessage,
        Self::Html,
        Self::PythonDict,
        Self::Null,
        Self::Number,
        Self::EmptyArray,
        Self::RawNewline,
        Self::LoneSurrogate,
        Self::HugeNumber,
        Self::NotANumber,
        Self::TooDeep,
        Self::MessageNull,
        Self::NoMail,
        Self::MailString,
        Self::IdEmpty,
        Self::IdNull,
        Self::IdNumber,
        Self::NoType,
    ];

    /// Those that do not spoil a batch around them.
    pub(super) const VALID_JSON: [Self; 6] =
        [Self::NoMail, Self::MailString, Self::IdEmpty, Self::IdNull, Self::IdNumber, Self::NoType];

    /// In words, for people.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::TruncatedJson => "truncated JSON",
            Self::TruncatedMessage => "truncated JSON in an SNS message",
            Self::Html => "HTML",
            Self::PythonDict => "a Python dict",
            Self::Null => "null",
            Self::Number => "a number",
            Self::EmptyArray => "an empty array",
            Self::RawNewline => "a raw newline in a string",
            Self::LoneSurrogate => "a lone surrogate",
            Self::HugeNumber => "a number out of range",
            Self::NotANumber => "NaN",
            Self::TooDeep => "nested too deeply",
            Self::MessageNull => "an SNS message that is null",
            Self::NoMail => "no mail",
            Self::MailString => "a mail that is a string",
            Self::IdEmpty => "an empty message id",
            Self::IdNull => "a message id that is null",
            Self::IdNumber => "a message id that is a number",
            Self::NoType => "no type",
        }
    }

    /// What a real notice would have become.
    pub(super) fn body(self, about: &Scene) -> String {
        let event = about.event();
        let (name, key) = wire(&about.happening.what);
        let id = &about.mail.message_id;
        let with_id =
            |other: &str| event.replace(&format!(r#""messageId":"{id}""#), &format!(r#""messageId":{other}"#));
        // A field in front of all others, because a truncated reader could stop before the last.
        let with_field = |field: &str| format!("{{{field},{}", &event[1..]);
        match self {
            Self::TruncatedJson => half(&event).to_owned(),
            Self::TruncatedMessage => about.sns(SUBJECT, half(&event)),
            Self::Html => "<html><body><h1>502 Bad Gateway</h1></body></html>".to_owned(),
            Self::PythonDict => {
                format!("{{'eventType': '{name}', 'mail': {{'messageId': '{id}', 'headersTruncated': False}}}}")
            }
            Self::Null => "null".to_owned(),
            Self::Number => "42".to_owned(),
            Self::EmptyArray => "[]".to_owned(),
            Self::RawNewline => with_field("\"note\":\"250 first\nsecond\""),
            Self::LoneSurrogate => with_field(r#""note":"250 \ud83d OK""#),
            Self::HugeNumber => with_field(r#""processingTimeMillis":1e400"#),
            Self::NotANumber => with_field(r#""processingTimeMillis":NaN"#),
            Self::TooDeep => with_field(&format!(r#""note":{}{}"#, "[".repeat(300), "]".repeat(300))),
            Self::MessageNull => sns(about.notice.salt, about.happening.at_ms, "Notification", SUBJECT, None),
            Self::NoMail => format!(r#"{{"eventType":"{name}","{key}":{}}}"#, json(&object(about))),
            Self::MailString => format!(r#"{{"eventType":"{name}","mail":"{id}","{key}":{}}}"#, json(&object(about))),
            Self::IdEmpty => with_id(r#""""#),
            Self::IdNull => with_id("null"),
            Self::IdNumber => with_id("12345"),
            Self::NoType => event.replace(&format!(r#""eventType":"{name}","#), ""),
        }
    }
}

fn half(text: &str) -> &str {
    let mut end = text.len() / 2;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A body that is in order, but not about a mail.
#[derive(Clone, Copy)]
pub(super) enum Noise {
    Validated,
    ValidatedInSns,
    SubscriptionSucceeded,
    SubscriptionConfirmation,
    Alarm,
    CloudTrail,
    Sms,
}

impl Noise {
    pub(super) const ALL: [Self; 7] = [
        Self::Validated,
        Self::ValidatedInSns,
        Self::SubscriptionSucceeded,
        Self::SubscriptionConfirmation,
        Self::Alarm,
        Self::CloudTrail,
        Self::Sms,
    ];

    pub(super) fn body(self, salt: u64) -> String {
        const VALIDATED: &str = "Successfully validated SNS topic for Amazon SES event publishing.";
        let notification = |subject, message: &str| sns(salt, LONG_AGO_MS, "Notification", subject, Some(message));
        match self {
            Self::Validated => VALIDATED.to_owned(),
            Self::ValidatedInSns => notification(SUBJECT, VALIDATED),
            Self::SubscriptionSucceeded => notification(
                None,
                r#"{"notificationType":"AmazonSnsSubscriptionSucceeded","message":"You have successfully subscribed your Amazon SNS topic 'arn:aws:sns:eu-west-1:123456789012:ses-events' to receive 'Bounce' notifications from Amazon SES for identity 'shop.example.com'."}"#,
            ),
            Self::SubscriptionConfirmation => sns(
                salt,
                LONG_AGO_MS,
                "SubscriptionConfirmation",
                None,
                Some(
                    "You have chosen to subscribe to the topic arn:aws:sns:eu-west-1:123456789012:ses-events.\nTo confirm the subscription, visit the SubscribeURL included in this message.",
                ),
            ),
            Self::Alarm => notification(
                Some("ALARM: \"ses-bounce-rate\" in EU (Ireland)"),
                r#"{"AlarmName":"ses-bounce-rate","AWSAccountId":"123456789012","NewStateValue":"ALARM","NewStateReason":"Threshold Crossed","StateChangeTime":"2026-10-05T00:00:00.000+0000","Region":"EU (Ireland)","OldStateValue":"OK"}"#,
            ),
            Self::CloudTrail => eventbridge(
                salt,
                LONG_AGO_MS,
                "AWS API Call via CloudTrail",
                &serde_json::json!({
                    "eventVersion": "1.08", "eventSource": "ses.amazonaws.com", "eventName": "SendEmail",
                    "eventType": "AwsApiCall", "requestParameters": {}, "responseElements": null,
                }),
            ),
            Self::Sms => notification(
                None,
                r#"{"eventType":"TEXT_DELIVERED","eventVersion":"1.0","eventTimestamp":1791190800000,"isFinal":true,"originationPhoneNumber":"+12065550100","destinationPhoneNumber":"+12065550101","isoCountryCode":"US","messageId":"5ee3b2d6-1e36-4b5c-8f0e-0d5f4a1b7c3a","messageType":"TRANSACTIONAL","messageStatus":"DELIVERED"}"#,
            ),
        }
    }
}

/// When the topic was set up.
const LONG_AGO_MS: i64 = 1_790_000_000_000;
