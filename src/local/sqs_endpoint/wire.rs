//! The AWS JSON 1.0 protocol of SQS: what requests and answers look like. Nothing here acts.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _, io};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::served_queue::MessageBody;
use crate::local::queue::Received;

/// An error as SQS answers it, for a whole request or for an entry of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqsError {
    /// The HTTP status. Below 500 the sender is to blame.
    pub status: u16,
    /// The error's name in the SQS API, like `QueueDoesNotExist`.
    pub code: Cow<'static, str>,
    /// A sentence for people.
    pub message: Cow<'static, str>,
}

impl SqsError {
    /// Any error.
    pub fn new(status: u16, code: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code: code.into(), message: message.into() }
    }

    /// The queue does not exist.
    pub fn queue_does_not_exist() -> Self {
        Self::new(400, "QueueDoesNotExist", "The specified queue does not exist.")
    }

    /// SQS throttles the caller.
    pub fn throttled() -> Self {
        Self::new(400, "RequestThrottled", "The request was denied due to request throttling.")
    }

    /// The front of AWS throttles the caller: the same thing under its other name.
    pub fn throttling_exception() -> Self {
        Self::new(400, "ThrottlingException", "Rate exceeded")
    }

    /// The service is away.
    pub fn unavailable() -> Self {
        Self::new(503, "ServiceUnavailable", "The service is temporarily unavailable.")
    }

    /// The service failed.
    pub fn internal() -> Self {
        Self::new(500, "InternalError", "We encountered an internal error. Please try again.")
    }

    /// The caller's rights do not suffice.
    pub fn access_denied() -> Self {
        Self::new(403, "AccessDeniedException", "Access to the resource is denied.")
    }

    /// The caller's session credentials are over.
    pub fn expired_token() -> Self {
        let message = "The security token included in the request is expired";
        Self::new(403, "ExpiredTokenException", message)
    }

    pub(super) fn invalid_handle() -> Self {
        Self::new(400, "ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
    }

    pub(super) fn invalid_value(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "InvalidParameterValue", message)
    }

    pub(super) fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "UnsupportedOperation", message)
    }

    /// The code of the old query protocol, which SDKs still show. Only few differ.
    fn query_code(&self) -> Cow<'_, str> {
        match &*self.code {
            "QueueDoesNotExist" => "AWS.SimpleQueueService.NonExistentQueue".into(),
            "QueueNameExists" => "QueueAlreadyExists".into(),
            "AccessDeniedException" => "AccessDenied".into(),
            "ExpiredTokenException" => "ExpiredToken".into(),
            "ThrottlingException" => "Throttling".into(),
            code @ ("BatchEntryIdsNotDistinct"
            | "BatchRequestTooLong"
            | "EmptyBatchRequest"
            | "InvalidBatchEntryId"
            | "MessageNotInflight"
            | "TooManyEntriesInBatchRequest"
            | "UnsupportedOperation") => format!("AWS.SimpleQueueService.{code}").into(),
            code => code.into(),
        }
    }
}

/// Reads a request. The signature is not looked at.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, SqsError> {
    serde_json::from_slice(body).map_err(|error| SqsError::new(400, "SerializationException", error.to_string()))
}

/// An answer, or an error, as an HTTP response.
pub(super) fn respond(answer: Result<Bytes, SqsError>) -> Response {
    let (status, query_error, body) = match answer {
        Ok(body) => (StatusCode::OK, None, body),
        Err(error) => {
            let blame = if error.status < 500 { "Sender" } else { "Receiver" };
            let query_error = format!("{};{blame}", error.query_code());
            let shape = ErrorShape { kind: format!("com.amazonaws.sqs#{}", error.code), message: &error.message };
            let status = StatusCode::from_u16(error.status);
            let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, HeaderValue::try_from(query_error).ok(), json(&shape))
        }
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let json_type = HeaderValue::from_static("application/x-amz-json-1.0");
    headers.insert(header::CONTENT_TYPE, json_type);
    if let Ok(id) = HeaderValue::try_from(Uuid::now_v7().to_string()) {
        headers.insert("x-amzn-requestid", id);
    }
    if let Some(query_error) = query_error {
        headers.insert("x-amzn-query-error", query_error);
    }
    response
}

/// A response whose body fails before it begins, so that the server closes the connection.
pub(super) fn broken_connection() -> Response {
    let failure = io::Error::from(io::ErrorKind::ConnectionReset);
    Response::new(Body::from_stream(futures_util::stream::once(async { Err::<Bytes, io::Error>(failure) })))
}

/// Writes an answer.
pub(super) fn json(answer: &impl Serialize) -> Bytes {
    serde_json::to_vec(answer).expect("answers are maps with text keys and no failing parts").into()
}

/// Writes the answer to a receive. By hand, because bodies are kept as JSON text: escaping them anew
/// for every receive would be most of the endpoint's work.
pub(super) fn received(messages: &[Received<MessageBody>], wanted: &WantedAttributes) -> Bytes {
    if messages.is_empty() {
        return Bytes::from_static(b"{}");
    }
    let bodies: usize = messages.iter().map(|message| message.body.json.len()).sum();
    let mut out = String::with_capacity(bodies + 1024 * messages.len());
    out.push_str(r#"{"Messages":["#);
    for (index, message) in messages.iter().enumerate() {
        let separator = if index > 0 { "," } else { "" };
        write!(
            out,
            r#"{separator}{{"MessageId":"{}","ReceiptHandle":"{}","MD5OfBody":"{}","Body":{}"#,
            message.id, message.handle, message.body.md5, message.body.json,
        )
        .expect("a string takes everything");
        wanted.write(message, &mut out);
        out.push('}');
    }
    out.push_str("]}");
    out.into()
}

/// The system attributes that a receive asked for.
pub(super) struct WantedAttributes([bool; 4]);

const SYSTEM_ATTRIBUTES: [&str; 4] =
    ["ApproximateReceiveCount", "SentTimestamp", "ApproximateFirstReceiveTimestamp", "SenderId"];

impl WantedAttributes {
    pub(super) fn new(request: &ReceiveMessage<'_>) -> Self {
        let asked = |name: &str| {
            let lists = request.attribute_names.iter().chain(&request.message_system_attribute_names);
            lists.into_iter().any(|asked| *asked == name || *asked == "All")
        };
        Self(SYSTEM_ATTRIBUTES.map(asked))
    }

    fn write(&self, message: &Received<MessageBody>, out: &mut String) {
        let mut opening = r#","Attributes":{"#;
        for (&name, _) in SYSTEM_ATTRIBUTES.iter().zip(self.0).filter(|(_, wanted)| *wanted) {
            let value = match name {
                "ApproximateReceiveCount" => u128::from(message.receive_count),
                "SentTimestamp" => message.sent_at.as_millis(),
                "ApproximateFirstReceiveTimestamp" => message.first_received_at.as_millis(),
                _ => 0, // everybody is account 000000000000
            };
            let width = if name == "SenderId" { 12 } else { 0 };
            write!(out, r#"{opening}"{name}":"{value:0width$}""#).expect("a string takes everything");
            opening = ",";
        }
        if opening == "," {
            out.push('}');
        }
    }
}

/// Requests that name a queue and nothing else; the other fields of the rest.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Target<'a> {
    #[serde(borrow)]
    pub(super) queue_url: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct QueueName<'a> {
    #[serde(borrow)]
    pub(super) queue_name: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Attributes {
    #[serde(default)]
    pub(super) attributes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AttributeNames<'a> {
    #[serde(borrow, default)]
    pub(super) attribute_names: Vec<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListQueues<'a> {
    #[serde(borrow, default)]
    pub(super) queue_name_prefix: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ReceiveMessage<'a> {
    #[serde(borrow)]
    pub(super) queue_url: Cow<'a, str>,
    pub(super) max_number_of_messages: Option<i64>,
    pub(super) wait_time_seconds: Option<i64>,
    pub(super) visibility_timeout: Option<i64>,
    #[serde(borrow, default)]
    attribute_names: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    message_system_attribute_names: Vec<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Batch<'a, E> {
    #[serde(borrow)]
    pub(super) queue_url: Cow<'a, str>,
    #[serde(default = "Vec::new")]
    pub(super) entries: Vec<E>,
}

/// An entry of a batch. The single form of an action has the same fields but no id.
pub(super) trait Entry {
    fn id(&self) -> &str;

    /// What counts towards the size limit of a batch, in bytes.
    fn size(&self) -> usize {
        0
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Send<'a> {
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) message_body: Cow<'a, str>,
    pub(super) delay_seconds: Option<i64>,
    #[serde(default)]
    pub(super) message_attributes: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Delete<'a> {
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) receipt_handle: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ChangeVisibility<'a> {
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) receipt_handle: Cow<'a, str>,
    pub(super) visibility_timeout: i64,
}

impl Entry for Send<'_> {
    fn id(&self) -> &str {
        &self.id
    }

    fn size(&self) -> usize {
        self.message_body.len()
    }
}

impl Entry for Delete<'_> {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Entry for ChangeVisibility<'_> {
    fn id(&self) -> &str {
        &self.id
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct QueueUrl {
    pub(super) queue_url: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct QueueUrls {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) queue_urls: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AttributeValues {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) attributes: BTreeMap<String, String>,
}

#[derive(Serialize)]
pub(super) struct Sent {
    #[serde(rename = "MD5OfMessageBody")]
    pub(super) md5: String,
    #[serde(rename = "MessageId")]
    pub(super) id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct BatchAnswer<'a, S> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) successful: Vec<Success<'a, S>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) failed: Vec<Failure<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Success<'a, S> {
    pub(super) id: &'a str,
    #[serde(flatten)]
    pub(super) outcome: S,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Failure<'a> {
    id: &'a str,
    sender_fault: bool,
    code: Cow<'static, str>,
    message: Cow<'static, str>,
}

impl<'a> Failure<'a> {
    pub(super) fn new(id: &'a str, error: SqsError) -> Self {
        let sender_fault = error.status < 500;
        Self { id, sender_fault, code: error.code, message: error.message }
    }
}

/// The outcome of an entry that says nothing but that it worked.
#[derive(Serialize)]
pub(super) struct Done {}

#[derive(Serialize)]
struct ErrorShape<'a> {
    #[serde(rename = "__type")]
    kind: String,
    message: &'a str,
}
