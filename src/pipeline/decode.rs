//! The decode stage: the body of one SQS message in, its leaves out.
//!
//! Pure: bytes and a time in, values out. No clock, no I/O, no panic, whatever the body holds.
//!
//! A body is unwrapped until nothing is left to unwrap (`envelope`). Every leaf then becomes
//! exactly one of three things, and one bad leaf does not lose its neighbours:
//!
//! - **An event** has a kind and a `mail.messageId`. Nothing else is required (`ses`).
//! - **Ignored** is what we recognise as not being about a sent mail (`noise`): service notices by
//!   their own marks, foreign EventBridge sources, and inside an SNS envelope also plain text and
//!   JSON objects without any word of SES (no mail, none of its kinds), because topics are shared
//!   and people test them.
//! - **Rejected** is everything else: what looks like SES and cannot be understood, and what is
//!   not recognised at all. It is kept with its bytes, so that nothing is lost by a wrong guess.
//!   Text that starts like JSON is never a plain notice, and a kind is never guessed from keys.

mod envelope;
mod excerpt;
mod json;
mod noise;
mod rows;
mod ses;
mod timestamp;

use std::fmt;

use time::OffsetDateTime;

pub use excerpt::{Excerpt, excerpt};
pub use ses::{Recipient, SesEvent};

/// What an operator may choose about decoding.
#[derive(Clone, Debug)]
pub struct DecodeSettings {
    /// What is kept of an event beside its columns.
    pub payload: PayloadPolicy,
    /// The name of the SES message tag in which a mail carries the id of its log.
    pub log_id_tag: String,
}

impl Default for DecodeSettings {
    fn default() -> Self {
        Self { payload: PayloadPolicy::Event, log_id_tag: "email_log_uuid".to_owned() }
    }
}

/// What is kept of an event beside its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PayloadPolicy {
    /// The event without the mail's headers
    Event,
    /// The whole event, with the mail's headers
    Full,
    /// Nothing
    None,
}

/// One thing that a body held, and what it was wrapped in, outermost first.
#[derive(Debug)]
pub struct Leaf {
    /// What it was wrapped in, outermost first.
    pub envelope: Vec<Wrapper>,
    /// What it is.
    pub outcome: Outcome,
}

/// Every leaf is exactly one of these.
#[derive(Debug)]
pub enum Outcome {
    /// Something happened to a mail.
    Event(Box<SesEvent>),
    /// Recognised, and not about a sent mail.
    Ignored(IgnoreReason),
    /// Not understood.
    Rejected(Reject),
}

/// Why a leaf was not understood, and the bytes that were not.
#[derive(PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// Where, for an operator and without content: `$.mail.messageId`, `$.Message line 1 column 17`.
    pub at: String,
    /// The whole body as it was received if it has one leaf, else this leaf's own text.
    pub raw: Vec<u8>,
}

impl fmt::Debug for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reject").field("reason", &self.reason).field("at", &self.at).finish_non_exhaustive()
    }
}

/// Decodes the body of one message. The answer is never empty.
///
/// `received_at` is the time of events that carry no readable time themselves.
pub fn decode(body: &[u8], received_at: OffsetDateTime, settings: &DecodeSettings) -> Vec<Leaf> {
    envelope::unwrap(body, received_at, settings)
}

/// Reads a time in any spelling that was seen in an event; `None` if it is none.
pub(crate) fn time_in(text: &str) -> Option<OffsetDateTime> {
    timestamp::read(&json::Value::String(text.into()))
}

/// Declares a fieldless enum whose variants have a stable name, and a meaning: their doc comment.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $(#[doc = $meaning:literal] $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $(#[doc = $meaning] $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable name: a metric label and a stored code.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }.trim()
            }
        }
    };
}

named! {
    /// What an event can be wrapped in.
    Wrapper {
        /// An SNS envelope.
        Sns = "sns",
        /// An EventBridge envelope.
        EventBridge = "eventbridge",
        /// The `Records` of a Lambda event, or the `records` of a Firehose request.
        Records = "records",
        /// A message of a queue, as Lambda, Pipes and the AWS CLI show it.
        Sqs = "sqs",
        /// What Lambda sends to a failure destination.
        LambdaDestination = "lambda_destination",
        /// A JSON array.
        Array = "array",
        /// Several JSON texts one after the other, usually one per line.
        Ndjson = "ndjson",
        /// A JSON string that holds JSON.
        String = "string",
        /// Base64 of JSON.
        Base64 = "base64",
    }
}

named! {
    /// Why a leaf is none of our business.
    IgnoreReason {
        /// SES tests a topic that was chosen as an event destination.
        SesValidation = "ses_validation",
        /// SES tells that a topic was chosen for identity feedback.
        SubscriptionSucceeded = "subscription_succeeded",
        /// SES tests a topic of an inbound rule.
        SetupNotification = "setup_notification",
        /// SNS asks to confirm a subscription; a consumer of a queue must not.
        SubscriptionConfirmation = "subscription_confirmation",
        /// SNS tells that a subscription ended.
        UnsubscribeConfirmation = "unsubscribe_confirmation",
        /// A mail that SES received, not one that it sent.
        ReceivedMail = "received_mail",
        /// SES about an account or an identity: advice, sending switched on or off.
        SesAccount = "ses_account",
        /// An API call that CloudTrail recorded.
        CloudTrail = "cloudtrail",
        /// A text message of AWS End User Messaging.
        Sms = "sms",
        /// An event of a Pinpoint stream.
        Pinpoint = "pinpoint",
        /// S3 tests a topic or queue that was chosen for its notifications.
        S3Test = "s3_test",
        /// Words that somebody published to the topic.
        PlainText = "plain_text",
        /// A message of another service.
        Foreign = "foreign",
    }
}

named! {
    /// Why a leaf could not be understood.
    RejectReason {
        /// Nothing but white space.
        Empty = "empty",
        /// A batch without elements.
        EmptyBatch = "empty_batch",
        /// An envelope without content.
        EmptyEnvelope = "empty_envelope",
        /// Not UTF-8.
        NotUtf8 = "not_utf8",
        /// Does not even start like JSON.
        NotJson = "not_json",
        /// Starts like JSON and breaks its rules.
        InvalidJson = "invalid_json",
        /// JSON that ends too early.
        TruncatedJson = "truncated_json",
        /// Half of a surrogate pair, which no text can hold.
        LoneSurrogate = "lone_surrogate",
        /// A number that no double can hold.
        NumberOutOfRange = "number_out_of_range",
        /// JSON nested in more than 127 levels.
        NestedTooDeep = "nested_too_deep",
        /// More than eight wrappers around each other.
        WrappedTooDeep = "wrapped_too_deep",
        /// More leaves, or recipients in all, than a body of 1 MiB can hold events.
        TooManyLeaves = "too_many_leaves",
        /// JSON, but a bare value and not an object.
        NotAnObject = "not_an_object",
        /// A pointer of an extended client library: the body itself lies in S3.
        PayloadInS3 = "payload_in_s3",
        /// Neither `eventType` nor `notificationType`.
        NoType = "no_type",
        /// A kind, but no `mail` object.
        NoMail = "no_mail",
        /// A mail without a usable `messageId`.
        NoMessageId = "no_message_id",
    }
}
