//! What stands between SES and the queue in some places, and what it puts around what it passes on.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::bodies::{SUBJECT, Scene, json};
use super::junk::Poison;

/// Something that passes on one notice.
#[derive(Clone, Copy)]
pub(super) enum Relay {
    /// The event of a Lambda function that a topic calls.
    LambdaOfTopic,
    /// The event of a Lambda function that reads a queue.
    LambdaOfQueue,
    /// The event of a Lambda function that reads a Kinesis stream.
    LambdaOfStream,
    /// What Lambda says of a function that failed.
    LambdaDestination,
    /// What `aws sqs receive-message` shows, sent to another queue by hand.
    QueueListing,
    /// JSON as a string of JSON.
    JsonString,
    /// Base64.
    Base64,
    /// Base64, published to a topic.
    Base64InSns,
}

/// Something that gathers notices and passes on several in one body.
#[derive(Clone, Copy)]
pub(super) enum Gatherer {
    /// EventBridge Pipes.
    Pipe,
    /// Firehose to a file: a line for each.
    Lines,
    /// Firehose to an endpoint.
    Firehose,
    /// A Lambda function that reads a queue.
    Lambda,
}

impl Relay {
    pub(super) fn body(self, scene: &Scene) -> String {
        let published = || scene.sns(SUBJECT, Some(&(scene.event() + "\n")));
        match self {
            Self::LambdaOfTopic => lambda_of_topic(&published()),
            Self::LambdaOfQueue => records(&[queue_record(scene.notice.salt, &published())]),
            Self::LambdaOfStream => {
                let data = STANDARD.encode(scene.event());
                records(&[format!(
                    r#"{{"eventSource":"aws:kinesis","kinesis":{{"partitionKey":"ses","data":"{data}"}}}}"#
                )])
            }
            Self::LambdaDestination => format!(
                r#"{{"version":"1.0","requestContext":{{"condition":"RetriesExhausted","approximateInvokeCount":3}},"requestPayload":{},"responsePayload":{{"errorMessage":"Task timed out after 3.00 seconds"}}}}"#,
                lambda_of_topic(&published())
            ),
            Self::QueueListing => {
                let (salt, body) = (scene.notice.salt, json(&published()));
                format!(
                    r#"{{"Messages":[{{"MessageId":"{salt:032x}","ReceiptHandle":"AQEB{salt:016x}","Body":{body}}}]}}"#
                )
            }
            Self::JsonString => json(&scene.event()),
            Self::Base64 => STANDARD.encode(scene.event()),
            Self::Base64InSns => scene.sns(None, Some(&STANDARD.encode(scene.event()))),
        }
    }
}

impl Gatherer {
    /// Several notices in one body, with something that cannot be understood among them.
    pub(super) fn body(self, scenes: &[Scene], poison: Option<&Poison>) -> String {
        let notice = |scene: &Scene| match self {
            Self::Pipe => scene.eventbridge(),
            Self::Lines | Self::Firehose | Self::Lambda => scene.event(),
        };
        let mut notices: Vec<String> = scenes.iter().map(notice).collect();
        if let (Some(poison), Some(first)) = (poison, scenes.first()) {
            notices.insert(1, poison.body(first));
        }
        let salt = scenes.first().map_or(0, |scene| scene.notice.salt);
        match self {
            Self::Pipe => format!("[{}]", notices.join(",")),
            Self::Lines => notices.join("\n") + "\n",
            Self::Firehose => {
                let data: Vec<_> =
                    notices.iter().map(|notice| format!(r#"{{"data":"{}"}}"#, STANDARD.encode(notice))).collect();
                format!(r#"{{"requestId":"{salt:032x}","timestamp":1791190800000,"records":[{}]}}"#, data.join(","))
            }
            Self::Lambda => records(&Vec::from_iter(notices.iter().map(|notice| queue_record(salt, notice)))),
        }
    }
}

fn records(records: &[String]) -> String {
    format!(r#"{{"Records":[{}]}}"#, records.join(","))
}

fn lambda_of_topic(envelope: &str) -> String {
    records(&[format!(r#"{{"EventVersion":"1.0","EventSource":"aws:sns","Sns":{envelope}}}"#)])
}

fn queue_record(salt: u64, body: &str) -> String {
    let body = json(&body);
    format!(
        r#"{{"messageId":"{salt:032x}","receiptHandle":"AQEB{salt:016x}","body":{body},"attributes":{{"ApproximateReceiveCount":"1"}},"eventSource":"aws:sqs"}}"#
    )
}
