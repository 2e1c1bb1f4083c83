//! The [`Queue`] over Amazon SQS. With its folder, the only place that names the SDK's client.

pub mod dead_letters;
mod direct;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use aws_config::{retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_sqs::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::{
        ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, MessageSystemAttributeName,
        QueueAttributeName, SendMessageBatchRequestEntry,
    },
};
use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, timeout};

use self::direct::{Direct, Endpoint};
pub use crate::aws::Access;
use crate::{
    aws::{self, ATTEMPT, Answer, GIVE_CREDENTIALS, innermost, is_denied, lacks_credentials},
    metrics::{
        Metrics,
        conventions::{Request, Requests},
    },
    pipeline::{
        Queue, QueueError,
        ack::Deleted,
        receive::{Delivery, Receipt},
        store::Committed,
    },
};

/// SQS takes at most so many entries in one request.
const MOST_PER_REQUEST: usize = 10;
const MOST_BYTES_PER_SEND: usize = 200_000;
/// Requests of one delete or visibility change under way at the same time.
const REQUESTS_AT_ONCE: usize = 8;
/// What a receive may take beyond its wait, also if it does not wait at all. Without a limit of its own a receive can
/// hang for ever.
const RECEIVE_MARGIN: Duration = Duration::from_secs(5);

/// How to reach a queue.
#[derive(Clone, Debug)]
pub struct SqsSettings {
    pub queue_url: String,
    pub access: Access,
    /// For a queue whose URL does not tell it.
    pub region: Option<String>,
    /// Another endpoint than AWS's own: LocalStack, ministack, the embedded one.
    pub endpoint_url: Option<String>,
    /// The longest wait of a receive.
    pub receive_wait: Duration,
    /// How long a received message stays hidden. Set with each receive: the queue's own setting does not matter.
    pub visibility_timeout: Duration,
}

/// One queue.
pub struct Sqs {
    /// For receives: one attempt, no longer than the wait and a margin. The poller itself tries again.
    receiver: Client,
    /// For everything else: short attempts, repeated by the SDK.
    client: Client,
    /// For receives and deletes, as long as nothing goes wrong.
    direct: Direct,
    url: String,
    name: Arc<str>,
    visibility_timeout: Duration,
    requests: Requests,
}

/// Where a queue is, and with it what carries events to it.
pub(crate) struct Place {
    pub(crate) region: String,
    /// If it is not on AWS.
    pub(crate) endpoint: Option<String>,
    /// It is on this machine.
    pub(crate) local: bool,
}

impl SqsSettings {
    /// Where this queue is.
    pub(crate) fn place(&self) -> anyhow::Result<Place> {
        let url = &self.queue_url;
        let local = self.endpoint_url.as_deref().or(Some(url)).is_some_and(is_loopback);
        // The URL first: ECS and Lambda set AWS_REGION to their own, and a queue may be in another.
        let region = region_of(url).or_else(|| self.region.clone()).or_else(|| local.then(|| "us-east-1".to_owned()));
        let region = region.with_context(|| format!("cannot tell the region of the queue {url}: set AWS_REGION"))?;
        let endpoint = self.endpoint_url.clone().or_else(|| endpoint_of(url));
        Ok(Place { region, endpoint, local })
    }
}

impl Sqs {
    /// Prepares the clients; talks to nobody yet.
    ///
    /// # Errors
    /// If no region is given and the queue's URL does not tell it.
    pub async fn new(settings: &SqsSettings) -> anyhow::Result<Self> {
        let url = &settings.queue_url;
        let Place { region, endpoint, local } = settings.place()?;
        let name = arn_of(url, &region).unwrap_or_else(|| url.rsplit('/').next().unwrap_or(url).to_owned()).into();
        let shared = aws::config(&settings.access, region, endpoint, local).await;
        let endpoint = Endpoint::default();
        let quick = aws_sdk_sqs::config::Builder::from(&shared).interceptor(endpoint.clone()).build();
        let longest = settings.receive_wait + RECEIVE_MARGIN;
        let patient = aws_sdk_sqs::config::Builder::from(&shared)
            .interceptor(endpoint.clone())
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(3))
                    .operation_attempt_timeout(longest)
                    .operation_timeout(longest)
                    .build(),
            )
            .build();
        Ok(Self {
            receiver: Client::from_conf(patient),
            client: Client::from_conf(quick),
            direct: Direct::new(&shared, endpoint),
            url: url.clone(),
            requests: Requests::unread(Arc::clone(&name)),
            name,
            visibility_timeout: settings.visibility_timeout,
        })
    }

    /// Times its requests among these metrics.
    pub fn counting(mut self, metrics: &Metrics) -> Self {
        self.requests = metrics.conventions.requests(Arc::clone(&self.name));
        self
    }

    /// Tries to delete and to hide with a made-up receipt handle, so that a missing queue, bad credentials or a missing
    /// permission show now, and not after the first thousand messages or in the first outage. Receiving is tried by
    /// receiving.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] if the queue is not there, or the credentials do not allow it.
    pub async fn probe(&self) -> Result<(), QueueError> {
        let (url, made_up) = (&self.url, "ses-ledger-start-up-probe");
        let delete = self.client.delete_message().queue_url(url).receipt_handle(made_up);
        self.lets_us_in("sqs:DeleteMessage", delete.send().await)?;
        let hide = self.client.change_message_visibility().queue_url(url).receipt_handle(made_up).visibility_timeout(0);
        self.lets_us_in("sqs:ChangeMessageVisibility", hide.send().await)
    }

    fn lets_us_in<T, E, R>(&self, permission: &str, answer: Result<T, SdkError<E, R>>) -> Result<(), QueueError>
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: std::fmt::Debug + 'static,
    {
        match answer {
            // The service let us in, and dislikes only the handle.
            Err(SdkError::ServiceError(e)) if e.err().code().is_some_and(is_about_handle) => Ok(()),
            Err(e) => Err(self.sort_error(permission, &e)),
            Ok(_) => Ok(()),
        }
    }

    /// Sends messages, in order, and returns their ids. A worker only receives.
    ///
    /// # Errors
    /// If the queue does not take one of them.
    pub async fn send(&self, bodies: &[String]) -> Result<Vec<String>, QueueError> {
        let (mut rest, mut ids) = (bodies, Vec::with_capacity(bodies.len()));
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(fitting(rest));
            let entries = batch
                .iter()
                .enumerate()
                .map(|(n, body)| SendMessageBatchRequestEntry::builder().id(n.to_string()).message_body(body).build());
            let entries = entries.collect::<Result<Vec<_>, _>>().map_err(|e| QueueError::Transient(e.to_string()))?;
            let request = self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries));
            let answer = request.send().await.map_err(|e| self.sort_error("sqs:SendMessage", &e))?;
            if let Some(failed) = answer.failed().first() {
                return Err(QueueError::Transient(format!("the queue does not take a message: {}", failed.code())));
            }
            // In the order of the entries' numbers, whatever the order of the answers.
            let mut sent: Vec<(usize, &str)> =
                answer.successful().iter().filter_map(|s| Some((s.id().parse().ok()?, s.message_id()))).collect();
            sent.sort_unstable();
            ids.extend(sent.into_iter().map(|(_, id)| id.to_owned()));
            rest = after;
        }
        Ok(ids)
    }

    /// What SQS tells about the queue: all of its attributes, by the names that SQS gives them. Counts are approximate.
    ///
    /// # Errors
    /// If the queue does not tell.
    pub async fn attributes(&self) -> Result<BTreeMap<String, String>, QueueError> {
        let request = self.client.get_queue_attributes().queue_url(&self.url).attribute_names(QueueAttributeName::All);
        let answer = request.send().await.map_err(|e| self.sort_error("sqs:GetQueueAttributes", &e))?;
        let attributes = answer.attributes.unwrap_or_default().into_iter();
        Ok(attributes.map(|(name, value)| (name.as_str().to_owned(), value)).collect())
    }

    /// The same for who wants to know why the queue does not tell. `None` if there is no such queue.
    pub(crate) async fn look(&self) -> Answer<BTreeMap<String, String>> {
        let request = self.client.get_queue_attributes().queue_url(&self.url).attribute_names(QueueAttributeName::All);
        let answer = aws::answer("sqs:GetQueueAttributes", request.send().await)?;
        let attributes = answer.map(|it| it.attributes.unwrap_or_default().into_iter());
        Ok(attributes.map(|all| all.map(|(name, value)| (name.as_str().to_owned(), value)).collect()))
    }

    /// Its ARN, as far as its URL tells it.
    pub(crate) fn name_of_queue(&self) -> &str {
        &self.name
    }

    /// Whether these credentials may delete messages and hide them, tried with a made-up receipt handle.
    pub(crate) async fn rights_to_settle(&self) -> [(&'static str, Answer<()>); 2] {
        let (url, made_up) = (&self.url, "ses-ledger-doctor");
        let delete = self.client.delete_message().queue_url(url).receipt_handle(made_up);
        let hide = self.client.change_message_visibility().queue_url(url).receipt_handle(made_up).visibility_timeout(0);
        [
            ("sqs:DeleteMessage", right("sqs:DeleteMessage", delete.send().await)),
            ("sqs:ChangeMessageVisibility", right("sqs:ChangeMessageVisibility", hide.send().await)),
        ]
    }

    /// Whether these credentials may receive: tried by a receive that waits for nothing and hides nothing. A message that
    /// it brings counts as received once more.
    pub(crate) async fn right_to_receive(&self) -> Answer<()> {
        let request = self.client.receive_message().queue_url(&self.url).visibility_timeout(0).wait_time_seconds(0);
        right("sqs:ReceiveMessage", request.send().await)
    }

    /// How many messages the queue holds, also hidden ones. Approximate, as everything that SQS counts.
    ///
    /// # Errors
    /// If the queue does not tell.
    pub async fn depth(&self) -> Result<u64, QueueError> {
        let attributes = self.attributes().await?;
        let count = |name| attributes.get(name)?.parse::<u64>().ok();
        let counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
        Ok(counts.into_iter().filter_map(count).sum())
    }

    async fn delete_ten(&self, committed: Committed) -> Deleted {
        let started = Instant::now();
        let deleted = self.try_to_delete_ten(committed).await;
        self.requests.answered(Request::Delete, started.elapsed(), deleted.error.as_ref());
        deleted
    }

    async fn try_to_delete_ten(&self, committed: Committed) -> Deleted {
        let entries = committed.receipts().iter().enumerate();
        let entries = entries.map(|(n, receipt)| direct::Entry { id: n.to_string(), receipt_handle: receipt.handle() });
        let request = direct::DeleteMessageBatch { queue_url: &self.url, entries: entries.collect() };
        match timeout(ATTEMPT, self.direct.ask::<direct::Deleted>("AmazonSQS.DeleteMessageBatch", &request)).await {
            Ok(Some(answer)) => {
                let failed = answer.failed.iter().map(|f| (f.id.as_str(), f.sender_fault));
                Deleted { left: committed.keep(&still_to_delete(failed)), error: None }
            }
            Ok(None) => self.delete_ten_by_sdk(committed).await,
            Err(_) => Deleted { left: committed, error: Some(no_answer()) },
        }
    }

    async fn delete_ten_by_sdk(&self, committed: Committed) -> Deleted {
        let entries = committed.receipts().iter().enumerate().map(|(n, receipt)| {
            DeleteMessageBatchRequestEntry::builder().id(n.to_string()).receipt_handle(receipt.handle()).build()
        });
        let entries = match entries.collect() {
            Ok(entries) => entries,
            Err(e) => return Deleted { left: committed, error: Some(QueueError::Transient(e.to_string())) },
        };
        match self.client.delete_message_batch().queue_url(&self.url).set_entries(Some(entries)).send().await {
            Ok(answer) => {
                let failed = answer.failed().iter().map(|f| (f.id(), f.sender_fault()));
                Deleted { left: committed.keep(&still_to_delete(failed)), error: None }
            }
            Err(e) => Deleted { left: committed, error: Some(self.sort_error("sqs:DeleteMessage", &e)) },
        }
    }

    async fn hide_ten(&self, ten: &[&Receipt], timeout: Duration) -> Result<(), QueueError> {
        let entries = ten.iter().enumerate().map(|(n, receipt)| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(n.to_string())
                .receipt_handle(receipt.handle())
                .visibility_timeout(timeout.as_secs() as i32)
                .build()
        });
        let entries = entries.collect::<Result<Vec<_>, _>>().map_err(|e| QueueError::Transient(e.to_string()))?;
        let request = self.client.change_message_visibility_batch().queue_url(&self.url).set_entries(Some(entries));
        let answer = request.send().await.map_err(|e| self.sort_error("sqs:ChangeMessageVisibility", &e))?;
        match answer.failed().iter().find(|f| !f.sender_fault()) {
            None => Ok(()),
            Some(failed) => Err(QueueError::Transient(failed.code().to_owned())),
        }
    }

    async fn receive_directly(&self, max: usize, wait: Duration) -> Option<Vec<Delivery>> {
        let request = direct::ReceiveMessage {
            queue_url: &self.url,
            max_number_of_messages: max,
            wait_time_seconds: wait.as_secs(),
            visibility_timeout: self.visibility_timeout.as_secs(),
            message_system_attribute_names: ["ApproximateReceiveCount", "SentTimestamp"],
        };
        let answer: direct::Received = self.direct.ask("AmazonSQS.ReceiveMessage", &request).await?;
        let delivery = |message: direct::Message| Delivery {
            sent_at: message.attributes.sent_timestamp.as_deref().and_then(Delivery::time),
            receive_count: message.attributes.approximate_receive_count.and_then(|c| c.parse().ok()).unwrap_or(1),
            id: message.message_id,
            handle: message.receipt_handle,
            body: message.body,
        };
        Some(answer.messages.unwrap_or_default().into_iter().map(delivery).collect())
    }

    async fn receive_by_sdk(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let request = self
            .receiver
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(max as i32)
            .wait_time_seconds(wait.as_secs() as i32)
            .visibility_timeout(self.visibility_timeout.as_secs() as i32)
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp);
        let answer = request.send().await.map_err(|e| self.sort_error("sqs:ReceiveMessage", &e))?;
        let deliveries = answer.messages.unwrap_or_default().into_iter().filter_map(|message| {
            let attribute = |name| message.attributes().and_then(|a| a.get(&name)).map(String::as_str);
            let count = attribute(MessageSystemAttributeName::ApproximateReceiveCount);
            Some(Delivery {
                receive_count: count.and_then(|c| c.parse().ok()).unwrap_or(1),
                sent_at: attribute(MessageSystemAttributeName::SentTimestamp).and_then(Delivery::time),
                id: message.message_id?,
                handle: message.receipt_handle?,
                body: message.body.unwrap_or_default(),
            })
        });
        Ok(deliveries.collect())
    }

    /// Two decisions: come back later, or tell somebody to mend it.
    fn sort_error<E, R>(&self, permission: &str, error: &SdkError<E, R>) -> QueueError
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: std::fmt::Debug + 'static,
    {
        let code = error.code().unwrap_or_default();
        let name = &self.name;
        if code.contains("QueueDoesNotExist") || code.contains("NonExistentQueue") {
            return QueueError::Fatal(format!("the queue {name} does not exist: check QUEUE_URL and the region"));
        }
        if is_denied(code) {
            return QueueError::Fatal(format!(
                "access to the queue {name} is denied: the worker's role needs {permission} on it \
                 (and kms:Decrypt on its key, if it has one)"
            ));
        }
        if ["ExpiredToken", "RequestExpired"].iter().any(|c| code.contains(c)) {
            return QueueError::Fatal(format!(
                "the credentials for the queue {name} have expired: renew them and start again"
            ));
        }
        if [
            "InvalidClientTokenId",
            "UnrecognizedClient",
            "SignatureDoesNotMatch",
            "InvalidAccessKeyId",
            "MissingAuthenticationToken",
        ]
        .iter()
        .any(|c| code.contains(c))
        {
            return QueueError::Fatal(format!("AWS does not accept the credentials for the queue {name} ({code})"));
        }
        if lacks_credentials(error) {
            return QueueError::Fatal(format!("there are no AWS credentials for the queue {name}: {GIVE_CREDENTIALS}"));
        }
        // The SDK's context names the request's parts, so only service errors are shown with their message.
        QueueError::Transient(match error {
            SdkError::ServiceError(e) => format!("{code}: {}", e.err().message().unwrap_or("no message")),
            SdkError::TimeoutError(_) => "no answer in time".to_owned(),
            SdkError::DispatchFailure(e) if e.is_timeout() => "no connection in time".to_owned(),
            SdkError::DispatchFailure(e) => match e.as_connector_error() {
                Some(e) => format!("cannot connect: {}", innermost(e)),
                None => "cannot connect".to_owned(),
            },
            other => innermost(other),
        })
    }
}

impl Queue for Sqs {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let receive = async {
            match self.receive_directly(max, wait).await {
                Some(deliveries) => Ok(deliveries),
                // Boxed: the SDK's futures are several kilobytes each.
                None => Box::pin(self.receive_by_sdk(max, wait)).await,
            }
        };
        let started = Instant::now();
        let answer = timeout(wait + RECEIVE_MARGIN, receive).await.unwrap_or_else(|_| Err(no_answer()));
        self.requests.answered(Request::Receive, started.elapsed(), answer.as_ref().err());
        answer
    }

    async fn delete(&self, committed: Committed) -> Deleted {
        let requests = committed.into_chunks(MOST_PER_REQUEST).into_iter().map(|ten| Box::pin(self.delete_ten(ten)));
        let answers: Vec<Deleted> = stream::iter(requests).buffer_unordered(REQUESTS_AT_ONCE).collect().await;
        let mut error = None;
        let left = Committed::join(answers.into_iter().map(|answer| {
            error = error.take().or(answer.error);
            answer.left
        }));
        Deleted { left, error }
    }

    async fn change_visibility(&self, receipts: &[&Receipt], timeout: Duration) -> Result<(), QueueError> {
        let requests = receipts.chunks(MOST_PER_REQUEST).map(|ten| async move {
            let started = Instant::now();
            let answer = self.hide_ten(ten, timeout).await;
            self.requests.answered(Request::ChangeVisibility, started.elapsed(), answer.as_ref().err());
            answer
        });
        let requests: Vec<_> = requests.map(Box::pin).collect();
        let answers: Vec<_> = stream::iter(requests).buffer_unordered(REQUESTS_AT_ONCE).collect().await;
        answers.into_iter().collect()
    }
}

fn no_answer() -> QueueError {
    QueueError::Transient("no answer in time".to_owned())
}

/// Of the entries that failed, those to try again: an invalid or superseded handle will not become valid, its message is
/// gone or somebody else's by now.
fn still_to_delete<'a>(failed: impl Iterator<Item = (&'a str, bool)>) -> Vec<usize> {
    failed.filter(|(_, sender_fault)| !sender_fault).filter_map(|(id, _)| id.parse().ok()).collect()
}

/// What LocalStack calls this machine unless it is told otherwise: a public name of 127.0.0.1.
const LOCALSTACK: &str = ".localhost.localstack.cloud";

/// `https://sqs.eu-west-1.amazonaws.com/123456789012/name` is in eu-west-1; so is `https://eu-west-1.queue.amazonaws.com/…`.
fn region_of(queue_url: &str) -> Option<String> {
    let host = host_of(queue_url)?;
    let region = match host.strip_prefix("sqs.").or_else(|| host.strip_prefix("sqs-fips.")) {
        // LocalStack's URLs look alike: sqs.eu-west-1.localhost.localstack.cloud.
        Some(rest) => rest.split_once(".amazonaws.com").or_else(|| rest.split_once(LOCALSTACK))?.0,
        None => host.split_once(".queue.amazonaws.com")?.0,
    };
    region.contains('-').then(|| region.to_owned())
}

/// What AWS calls the queue, in every account and region: `arn:aws:sqs:eu-west-1:123456789012:name`.
fn arn_of(queue_url: &str, region: &str) -> Option<String> {
    let mut path = queue_url.split_once("://")?.1.rsplit('/');
    let (name, account) = (path.next()?, path.next()?);
    let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    let partition = match region.split_once('-')?.0 {
        "cn" => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    };
    is_account.then(|| format!("arn:{partition}:sqs:{region}:{account}:{name}"))
}

/// How many of these bodies go into one request: at most ten, and well below its limit in bytes.
fn fitting(bodies: &[String]) -> usize {
    let mut bytes = 0;
    let fits = |body: &&String| {
        bytes += body.len();
        bytes <= MOST_BYTES_PER_SEND
    };
    bodies.iter().take(MOST_PER_REQUEST).take_while(fits).count().max(1)
}

/// A queue that is not on AWS is its own endpoint.
fn endpoint_of(queue_url: &str) -> Option<String> {
    let host = host_of(queue_url)?;
    let scheme = queue_url.split_once("://")?.0;
    let authority = queue_url.split_once("://")?.1.split('/').next()?;
    let on_aws = host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn");
    (!on_aws).then(|| format!("{scheme}://{authority}"))
}

/// Whether the host is this machine.
pub fn is_loopback(url: &str) -> bool {
    host_of(url).is_some_and(|host| {
        host == "localhost" || host == "[::1]" || host.starts_with("127.") || host.ends_with(LOCALSTACK)
    })
}

fn host_of(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split('/').next()?;
    Some(match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    })
}

/// The service let us in if it dislikes nothing but the handle.
fn right<T, E, R>(permission: &'static str, answer: Result<T, SdkError<E, R>>) -> Answer<()>
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
    R: std::fmt::Debug + 'static,
{
    match answer {
        Err(SdkError::ServiceError(e)) if e.err().code().is_some_and(is_about_handle) => Ok(Some(())),
        answer => Ok(aws::answer(permission, answer)?.map(drop)),
    }
}

fn is_about_handle(code: &str) -> bool {
    ["ReceiptHandle", "InvalidParameterValue", "InvalidIdFormat"].iter().any(|c| code.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_url_tells_the_region() {
        let region = |url| region_of(url);
        assert_eq!(region("https://sqs.eu-west-1.amazonaws.com/123456789012/q").as_deref(), Some("eu-west-1"));
        assert_eq!(region("https://sqs-fips.us-gov-west-1.amazonaws.com/1/q").as_deref(), Some("us-gov-west-1"));
        assert_eq!(region("https://sqs.cn-north-1.amazonaws.com.cn/1/q").as_deref(), Some("cn-north-1"));
        assert_eq!(region("https://us-east-2.queue.amazonaws.com/1/q").as_deref(), Some("us-east-2"));
        assert_eq!(region("http://127.0.0.1:4566/000000000000/q"), None);
        let localstack = "http://sqs.eu-west-1.localhost.localstack.cloud:4566/000000000000/q";
        assert_eq!(region(localstack).as_deref(), Some("eu-west-1"));
        assert!(is_loopback(localstack) && !is_loopback("http://localhost.localstack.cloud.example.com/q"));
    }

    #[test]
    fn the_queue_url_and_the_region_make_the_arn() {
        let arn = |url, region| arn_of(url, region).unwrap_or_default();
        let of_aws = "https://sqs.eu-west-1.amazonaws.com/123456789012/q";
        assert_eq!(arn(of_aws, "eu-west-1"), "arn:aws:sqs:eu-west-1:123456789012:q");
        assert_eq!(arn("http://127.0.0.1:4566/000000000000/q", "us-east-1"), "arn:aws:sqs:us-east-1:000000000000:q");
        assert_eq!(arn("https://x/123456789012/q", "cn-north-1"), "arn:aws-cn:sqs:cn-north-1:123456789012:q");
        assert_eq!(arn("https://x/123456789012/q", "us-gov-west-1"), "arn:aws-us-gov:sqs:us-gov-west-1:123456789012:q");
        assert_eq!(arn_of("http://127.0.0.1:4566/queue/q", "us-east-1"), None);
    }

    #[tokio::test]
    async fn the_region_of_the_queue_wins_over_that_of_the_surroundings() {
        let name = async |queue_url: &str| {
            let settings = SqsSettings {
                queue_url: queue_url.to_owned(),
                access: Access::Default,
                region: Some("us-west-2".to_owned()),
                endpoint_url: None,
                receive_wait: Duration::from_secs(20),
                visibility_timeout: Duration::from_secs(120),
            };
            Sqs::new(&settings).await.expect("a region is given").name().to_string()
        };
        let elsewhere = "https://sqs.eu-west-1.amazonaws.com/123456789012/q";
        assert_eq!(name(elsewhere).await, "arn:aws:sqs:eu-west-1:123456789012:q");
        assert_eq!(name("http://127.0.0.1:1/000000000000/q").await, "arn:aws:sqs:us-west-2:000000000000:q");
    }

    #[test]
    fn a_queue_that_is_not_on_aws_is_its_own_endpoint() {
        assert_eq!(endpoint_of("http://127.0.0.1:4566/0/q").as_deref(), Some("http://127.0.0.1:4566"));
        assert_eq!(endpoint_of("https://sqs.eu-west-1.amazonaws.com/1/q"), None);
        assert!(
            is_loopback("http://localhost:4566/0/q")
                && is_loopback("http://[::1]:1/q")
                && !is_loopback("https://example.com/q")
        );
    }
}
