//! An SQS of our own on the loopback interface, for the demo, tests and benchmarks: the real AWS SDK
//! talks to it and cannot tell.
//!
//! It speaks AWS JSON 1.0 over HTTP/1.1, for standard queues. The rules of a queue are those of
//! [`LocalQueue`](super::queue::LocalQueue); here are the protocol, long polls, dead-letter queues, moving back from them, and faults on demand.
//!
//! What it does not do: signatures, credentials and policies are accepted unchecked, which is why it
//! listens on 127.0.0.1 only. Queues are gone with the process, messages do not expire, message
//! attributes are refused, FIFO queues too. A purge is immediate and may be repeated at once.

mod faults;
mod moves;
mod served_queue;
mod wire;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    ops::RangeInclusive,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::HeaderMap,
    response::Response,
    serve::ListenerExt as _,
};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, runtime::Handle, sync::watch, task::JoinHandle};
use tracing::debug;
use uuid::Uuid;

pub use faults::{Action, Fault, Faults};
pub use wire::SqsError;

use self::{
    faults::Plan,
    moves::Tasks,
    served_queue::{Clock, Queue, StoredBody, check_attribute, keep_time, lock},
};
use super::queue::{Counts, Deletion, ReceiptHandle, Totals, VisibilityError};

/// A running endpoint. Stops when it is dropped.
pub struct SqsEndpoint {
    server: Arc<Server>,
    task: JoinHandle<()>,
}

/// How to start an endpoint.
#[derive(Clone, Debug, Default)]
pub struct SqsEndpointSettings {
    /// The TCP port on 127.0.0.1. Zero takes a free one.
    pub port: u16,
}

/// What an action was asked for so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Requests that arrived, those that met a fault included.
    pub requests: u64,
    /// Entries that these requests named, or messages that receives handed out. Nothing is counted
    /// for a request that was rejected.
    pub entries: u64,
    /// Requests that met a fault other than a delay.
    pub faults: u64,
    /// Requests as AWS bills them: of a receive's bodies, every 64 KiB are one.
    pub billed: u64,
}

impl SqsEndpoint {
    /// Starts to listen. Must be called inside a Tokio runtime, which then does the work.
    ///
    /// # Errors
    /// If the port cannot be had.
    pub async fn start(settings: SqsEndpointSettings) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, settings.port))
            .await
            .with_context(|| format!("cannot listen on 127.0.0.1:{}", settings.port))?;
        let address = listener.local_addr().context("cannot read the address of the endpoint")?;
        let server = Arc::new(Server::new(format!("http://{address}")));
        // Without NODELAY every answer of two segments waits for a delayed acknowledgement.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "cannot set TCP_NODELAY");
            }
        });
        let router = Router::new()
            .fallback(answer)
            .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
            .with_state(Arc::clone(&server));
        let stopped = stopped(server.stopping.subscribe());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
                debug!(%error, "the local SQS endpoint ended early");
            }
        });
        Ok(Self { server, task })
    }

    /// The endpoint's own URL, like `http://127.0.0.1:41234`: what `AWS_ENDPOINT_URL_SQS` takes.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// Creates a queue, or finds it if it exists with these attributes. Returns its URL.
    ///
    /// # Errors
    /// Those of the action CreateQueue.
    pub fn create_queue(&self, name: &str, attributes: &[(&str, &str)]) -> anyhow::Result<String> {
        let attributes = attributes.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let queue = self
            .server
            .create_queue(name, attributes)
            .map_err(|error| anyhow!("cannot create the queue {name}: {}: {}", error.code, error.message))?;
        Ok(self.server.queue_url(&queue.name))
    }

    /// A queue by name, to look at and to fill without HTTP.
    pub fn queue(&self, name: &str) -> Option<QueueHandle> {
        let queue = lock(&self.server.queues).get(name).cloned()?;
        Some(QueueHandle { url: self.server.queue_url(name), queue })
    }

    /// Changes the faults, effective from the next request on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.server.control).faults);
    }

    /// What an action was asked for so far.
    pub fn calls(&self, action: Action) -> Calls {
        lock(&self.server.control).calls.get(&action).copied().unwrap_or_default()
    }

    /// Stops: open long polls are answered (empty), hanging requests are cut, connections closed.
    pub async fn stop(mut self) {
        self.server.stopping.send_replace(true);
        // A client that never finishes its request must not keep us.
        if tokio::time::timeout(STOP_GRACE, &mut self.task).await.is_err() {
            debug!("the local SQS endpoint leaves connections open");
        }
    }
}

impl Drop for SqsEndpoint {
    fn drop(&mut self) {
        self.server.stopping.send_replace(true);
        self.task.abort();
    }
}

/// A queue of the endpoint, without HTTP in between. Cheap to clone.
#[derive(Clone)]
pub struct QueueHandle {
    url: String,
    queue: Arc<Queue>,
}

impl QueueHandle {
    /// The queue's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a message, with any text as its body. Returns the message's id.
    pub fn send(&self, body: &str) -> Uuid {
        self.send_delayed(body, Duration::ZERO)
    }

    /// Sends a message that becomes visible after `delay`.
    pub fn send_delayed(&self, body: &str, delay: Duration) -> Uuid {
        let body = Arc::new(StoredBody::new(body));
        self.queue.with(|state, now| state.messages.send(body, delay, now))
    }

    /// How many messages the queue holds.
    pub fn counts(&self) -> Counts {
        self.queue.with(|state, now| state.messages.counts(now))
    }

    /// What became of all messages so far.
    pub fn totals(&self) -> Totals {
        self.queue.with(|state, _| state.messages.totals())
    }

    /// How many messages were received so many times (the index), those that are gone included.
    pub fn receive_counts(&self) -> Vec<u64> {
        self.queue.with(|state, _| state.messages.receive_counts().to_vec())
    }

    /// How many messages were how old when they were deleted, in milliseconds rounded down by less than 1 %.
    pub fn ages(&self) -> BTreeMap<u64, u64> {
        self.queue.with(|state, _| state.messages.ages().clone())
    }

    /// The most times that any message was received, those that are gone included.
    pub fn max_receive_count(&self) -> usize {
        self.queue.with(|state, _| state.messages.max_receive_count())
    }

    /// How many receives handed out a message that had been received before.
    pub fn redelivered(&self) -> u64 {
        self.totals().redelivered
    }

    /// The bodies of all messages that the queue holds, oldest first.
    pub fn bodies(&self) -> Vec<String> {
        let bodies = self.queue.with(|state, _| state.messages.bodies());
        bodies.iter().map(|body| body.text()).collect()
    }

    /// Removes every message, also those in flight.
    pub fn purge(&self) {
        self.queue.with(|state, _| state.messages.purge());
    }

    /// Changes how many messages can be in flight.
    pub fn set_in_flight_cap(&self, cap: usize) {
        self.queue.with(|state, _| state.messages.settings_mut().in_flight_cap = cap);
    }
}

/// Ten bodies of 1 MiB in all, every byte of them escaped, and room to spare.
const MAX_REQUEST_BYTES: usize = 8 << 20;
/// What SQS takes as one message or one batch, since August 2025.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// So much of a payload is one request on the bill.
const BILLED_BYTES: usize = 64 << 10;
const STOP_GRACE: Duration = Duration::from_secs(5);
const ACCOUNT: &str = "000000000000";

struct Server {
    url: String,
    clock: Clock,
    runtime: Handle,
    queues: Mutex<BTreeMap<String, Arc<Queue>>>,
    control: Mutex<Control>,
    moves: Tasks,
    stopping: watch::Sender<bool>,
}

#[derive(Default)]
struct Control {
    faults: Faults,
    calls: HashMap<Action, Calls>,
}

/// One request: its fault, its work, its answer. A client that goes away drops this future. Messages
/// are taken from a queue only in the step that ends it, so none is lost to a dropped long poll.
async fn answer(State(server): State<Arc<Server>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let Some(action) = target.and_then(Action::from_target) else {
        let message = "This action, or a protocol other than AWS JSON 1.0, is not supported.";
        return wire::respond(Err(SqsError::unsupported(message)));
    };
    tokio::select! {
        biased;
        response = server.obey(action, &body) => response,
        () = stopped(server.stopping.subscribe()) => wire::broken_connection(),
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the server is gone, which is as good as stopped.
    let _ = stopping.wait_for(|&stopping| stopping).await;
}

impl Server {
    fn new(url: String) -> Self {
        Self {
            url,
            clock: Clock::start(),
            runtime: Handle::current(),
            queues: Mutex::default(),
            control: Mutex::default(),
            moves: Tasks::default(),
            stopping: watch::Sender::new(false),
        }
    }

    async fn obey(&self, action: Action, body: &[u8]) -> Response {
        let plan = self.plan(action);
        if !plan.delay.is_zero() {
            tokio::time::sleep(plan.delay).await;
        }
        match plan.fault {
            Fault::Reject(error) => return wire::respond(Err(error)),
            Fault::Hang => std::future::pending().await,
            Fault::None | Fault::LoseAnswer | Fault::Misreport(_) => {}
        }
        let answer = self.perform(action, body, &plan).await;
        match plan.fault {
            Fault::LoseAnswer => wire::broken_connection(),
            Fault::Misreport(error) => wire::respond(Err(error)),
            _ => wire::respond(answer),
        }
    }

    fn plan(&self, action: Action) -> Plan {
        let mut control = lock(&self.control);
        let plan = control.faults.next(action);
        let calls = control.calls.entry(action).or_default();
        calls.requests += 1;
        calls.faults += u64::from(plan.is_fault());
        calls.billed += 1;
        plan
    }

    fn count_entries(&self, action: Action, entries: usize) {
        lock(&self.control).calls.entry(action).or_default().entries += entries as u64;
    }

    fn bill_more(&self, action: Action, requests: usize) {
        lock(&self.control).calls.entry(action).or_default().billed += requests as u64;
    }

    async fn perform(&self, action: Action, body: &[u8], plan: &Plan) -> Result<Bytes, SqsError> {
        match action {
            Action::ReceiveMessage => self.receive_message(body, plan).await,
            Action::DeleteMessageBatch => self.batch(action, body, plan, delete),
            Action::DeleteMessage => self.single(action, body, delete),
            Action::ChangeMessageVisibilityBatch => self.batch(action, body, plan, change_visibility),
            Action::ChangeMessageVisibility => self.single(action, body, change_visibility),
            Action::SendMessageBatch => self.batch(action, body, plan, send),
            Action::SendMessage => self.single(action, body, send),
            Action::CreateQueue => {
                let wire::QueueName { queue_name } = wire::parse(body)?;
                let wire::Attributes { attributes } = wire::parse(body)?;
                let queue = self.create_queue(&queue_name, attributes)?;
                Ok(wire::json(&wire::QueueUrl { queue_url: self.queue_url(&queue.name) }))
            }
            Action::GetQueueUrl => {
                let wire::QueueName { queue_name } = wire::parse(body)?;
                let queue = self.find(&queue_name)?;
                Ok(wire::json(&wire::QueueUrl { queue_url: self.queue_url(&queue.name) }))
            }
            Action::ListQueues => {
                let wire::ListQueues { queue_name_prefix } = wire::parse(body)?;
                Ok(wire::json(&self.list_queues(&queue_name_prefix)))
            }
            Action::GetQueueAttributes => {
                let wire::AttributeNames { attribute_names } = wire::parse(body)?;
                let attributes = self.find_target(body)?.attributes(&attribute_names)?;
                Ok(wire::json(&wire::AttributeValues { attributes }))
            }
            Action::SetQueueAttributes => {
                let wire::Attributes { attributes } = wire::parse(body)?;
                self.set_attributes(&*self.find_target(body)?, attributes)?;
                Ok(wire::json(&wire::Done {}))
            }
            Action::PurgeQueue => {
                self.find_target(body)?.with(|state, _| state.messages.purge());
                Ok(wire::json(&wire::Done {}))
            }
            Action::DeleteQueue => {
                let queue = self.find_target(body)?;
                lock(&self.queues).remove(&queue.name);
                Ok(wire::json(&wire::Done {}))
            }
            Action::StartMessageMoveTask => self.start_move(body),
            Action::ListMessageMoveTasks => self.list_moves(body),
            Action::CancelMessageMoveTask => self.cancel_move(body),
        }
    }

    async fn receive_message(&self, body: &[u8], plan: &Plan) -> Result<Bytes, SqsError> {
        let request: wire::ReceiveMessage<'_> = wire::parse(body)?;
        let queue = self.find(&request.queue_url)?;
        let max = request.max_number_of_messages.unwrap_or(1);
        let max = in_range("MaxNumberOfMessages", max, 1..=10)?;
        let visibility = request.visibility_timeout.map(visibility_timeout).transpose()?;
        let wait = match request.wait_time_seconds {
            Some(wait) => in_range("WaitTimeSeconds", wait, 0..=20)?,
            None => queue.with(|state, _| state.number("ReceiveMessageWaitTimeSeconds")),
        };
        let over = async {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(wait)) => {}
                () = stopped(self.stopping.subscribe()) => {}
            }
        };
        let messages = queue.receive(plan.places(max as usize), visibility, over).await;
        let bytes: usize = messages.iter().map(|message| message.body.bytes).sum();
        self.count_entries(Action::ReceiveMessage, messages.len());
        self.bill_more(Action::ReceiveMessage, bytes.saturating_sub(1) / BILLED_BYTES);
        Ok(wire::received(&messages, &wire::WantedAttributes::new(&request)))
    }

    fn single<'a, E: Deserialize<'a>, S: Serialize>(
        &self,
        action: Action,
        body: &'a [u8],
        perform: impl Fn(&Queue, &E) -> Result<S, SqsError>,
    ) -> Result<Bytes, SqsError> {
        let entry = wire::parse(body)?;
        let queue = self.find_target(body)?;
        self.count_entries(action, 1);
        let outcome = perform(&queue, &entry)?;
        Ok(wire::json(&outcome))
    }

    fn batch<'a, E: wire::Entry + Deserialize<'a>, S: Serialize>(
        &self,
        action: Action,
        body: &'a [u8],
        plan: &Plan,
        perform: impl Fn(&Queue, &E) -> Result<S, SqsError>,
    ) -> Result<Bytes, SqsError> {
        let batch: wire::Batch<'a, E> = wire::parse(body)?;
        let queue = self.find(&batch.queue_url)?;
        check_batch(&batch.entries)?;
        self.count_entries(action, batch.entries.len());
        let mut answer = wire::BatchAnswer { successful: Vec::new(), failed: Vec::new() };
        for (index, entry) in batch.entries.iter().enumerate() {
            let outcome = if plan.fails(index) { Err(SqsError::internal()) } else { perform(&queue, entry) };
            match outcome {
                Ok(outcome) => answer.successful.push(wire::Success { id: entry.id(), outcome }),
                Err(error) => answer.failed.push(wire::Failure::new(entry.id(), error)),
            }
        }
        Ok(wire::json(&answer))
    }

    fn create_queue(&self, name: &str, attributes: BTreeMap<String, String>) -> Result<Arc<Queue>, SqsError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > 80 || !name.bytes().all(is_allowed) {
            return Err(SqsError::invalid_value(
                "A queue name is 1 to 80 letters, digits, hyphens and underscores. FIFO queues are \
                 not supported here.",
            ));
        }
        if let Ok(queue) = self.find(name) {
            let same =
                queue.with(|state, _| attributes.iter().all(|(name, value)| state.attributes.get(name) == Some(value)));
            let message = "A queue already exists with the same name and a different value.";
            return if same { Ok(queue) } else { Err(SqsError::new(400, "QueueNameExists", message)) };
        }
        let queue = Queue::new(name, self.clock);
        self.set_attributes(&queue, attributes)?;
        self.runtime.spawn(keep_time(Arc::downgrade(&queue), Arc::clone(&queue.earlier)));
        Ok(Arc::clone(lock(&self.queues).entry(name.to_owned()).or_insert(queue)))
    }

    fn set_attributes(&self, queue: &Queue, attributes: BTreeMap<String, String>) -> Result<(), SqsError> {
        for (name, value) in &attributes {
            check_attribute(name, value)?;
        }
        let redrive = match attributes.get("RedrivePolicy") {
            Some(policy) => Some(self.read_redrive_policy(queue, policy)?),
            None => None,
        };
        queue.with(|state, _| {
            if let Some(redrive) = redrive {
                let (heir, max_receive_count) = redrive.unzip();
                state.heir = heir;
                state.messages.settings_mut().max_receive_count = max_receive_count;
            }
            state.attributes.extend(attributes);
            state.attributes.retain(|_, value| !value.is_empty());
            let visibility = Duration::from_secs(state.number("VisibilityTimeout"));
            state.messages.settings_mut().visibility_timeout = visibility;
        });
        Ok(())
    }

    /// The dead-letter queue and the receive count of a policy; nothing for the empty policy.
    fn read_redrive_policy(&self, queue: &Queue, policy: &str) -> Result<Option<(Arc<Queue>, u32)>, SqsError> {
        if policy.is_empty() {
            return Ok(None);
        }
        let invalid = || {
            let message = format!("Value {policy} for parameter RedrivePolicy is invalid.");
            SqsError::invalid_value(message)
        };
        let policy: serde_json::Value = serde_json::from_str(policy).map_err(|_| invalid())?;
        let arn = policy["deadLetterTargetArn"].as_str().ok_or_else(invalid)?;
        let name = arn.rsplit(':').next().filter(|name| *name != queue.name).ok_or_else(invalid)?;
        let heir = self.find(name).map_err(|_| invalid())?;
        // SDK users write the number with quotes as often as without.
        let count = match &policy["maxReceiveCount"] {
            serde_json::Value::String(text) => text.parse().ok(),
            number => number.as_u64().and_then(|number| u32::try_from(number).ok()),
        };
        let count = count.filter(|count| (1..=1000).contains(count)).ok_or_else(invalid)?;
        Ok(Some((heir, count)))
    }

    fn list_queues(&self, prefix: &str) -> wire::QueueUrls {
        let queues = lock(&self.queues);
        let names = queues.keys().filter(|name| name.starts_with(prefix));
        wire::QueueUrls { queue_urls: names.map(|name| self.queue_url(name)).collect() }
    }

    fn queue_url(&self, name: &str) -> String {
        format!("{}/{ACCOUNT}/{name}", self.url)
    }

    fn find_target(&self, body: &[u8]) -> Result<Arc<Queue>, SqsError> {
        let wire::Target { queue_url } = wire::parse(body)?;
        self.find(&queue_url)
    }

    /// Finds a queue by URL or name: host and account of the URL are not looked at.
    fn find(&self, url: &str) -> Result<Arc<Queue>, SqsError> {
        let name = url.rsplit('/').next().unwrap_or(url);
        lock(&self.queues).get(name).cloned().ok_or_else(SqsError::queue_does_not_exist)
    }
}

fn send(queue: &Queue, entry: &wire::Send<'_>) -> Result<wire::Sent, SqsError> {
    let text = &*entry.message_body;
    if text.is_empty() {
        let message = "The request must contain the parameter MessageBody.";
        return Err(SqsError::new(400, "MissingParameter", message));
    }
    if !entry.message_attributes.is_empty() {
        return Err(SqsError::unsupported("Message attributes are not supported here."));
    }
    // What XML 1.0 allows, says the API reference of SendMessage.
    let is_allowed = |c: char| !matches!(c, '\0'..' ' | '\u{fffe}' | '\u{ffff}') || "\t\n\r".contains(c);
    if !text.chars().all(is_allowed) {
        let message = "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | \
                       #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF";
        return Err(SqsError::new(400, "InvalidMessageContents", message));
    }
    let delay = entry.delay_seconds.map(|delay| in_range("DelaySeconds", delay, 0..=900)).transpose()?;
    let body = Arc::new(StoredBody::new(text));
    let md5 = body.md5.clone();
    queue.with(|state, now| {
        if text.len() as u64 > state.number("MaximumMessageSize") {
            let message = "One or more parameters are invalid. Reason: the message is too long.";
            return Err(SqsError::invalid_value(message));
        }
        let delay = Duration::from_secs(delay.unwrap_or_else(|| state.number("DelaySeconds")));
        let id = state.messages.send(body, delay, now).to_string();
        Ok(wire::Sent { md5, id })
    })
}

/// A handle that is too old, or whose message is gone, is a success: see [`Deletion`].
fn delete(queue: &Queue, entry: &wire::Delete<'_>) -> Result<wire::Done, SqsError> {
    let handle: ReceiptHandle = entry.receipt_handle.parse().map_err(|_| SqsError::invalid_handle())?;
    queue
        .with(|state, now| state.messages.delete(handle, now))
        .map(|_: Deletion| wire::Done {})
        .map_err(|_| SqsError::invalid_handle())
}

fn change_visibility(queue: &Queue, entry: &wire::ChangeVisibility<'_>) -> Result<wire::Done, SqsError> {
    let timeout = visibility_timeout(entry.visibility_timeout)?;
    let handle: ReceiptHandle = entry.receipt_handle.parse().map_err(|_| SqsError::invalid_handle())?;
    queue.with(|state, now| state.messages.change_visibility(handle, timeout, now)).map(|()| wire::Done {}).map_err(
        |error| match error {
            VisibilityError::UnknownHandle => SqsError::invalid_handle(),
            VisibilityError::NotInFlight => {
                SqsError::new(400, "MessageNotInflight", "The message referred to is not in flight.")
            }
            VisibilityError::Gone => {
                SqsError::invalid_value("The message does not exist or is not available for visibility timeout change.")
            }
        },
    )
}

fn check_batch<E: wire::Entry>(entries: &[E]) -> Result<(), SqsError> {
    let refuse = |code: &'static str, message| Err(SqsError::new(400, code, message));
    if entries.is_empty() {
        return refuse("EmptyBatchRequest", "There should be at least one entry in the request.");
    }
    if entries.len() > 10 {
        let message = "Maximum number of entries per request are 10.";
        return refuse("TooManyEntriesInBatchRequest", message);
    }
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_id = |id: &str| (1..=80).contains(&id.len()) && id.bytes().all(is_allowed);
    if !entries.iter().all(|entry| is_id(entry.id())) {
        let message = "A batch entry id can only contain alphanumeric characters, hyphens and \
                       underscores. It can be at most 80 letters long.";
        return refuse("InvalidBatchEntryId", message);
    }
    let ids: HashSet<&str> = entries.iter().map(wire::Entry::id).collect();
    if ids.len() < entries.len() {
        return refuse("BatchEntryIdsNotDistinct", "Two or more batch entries have the same id.");
    }
    if entries.iter().map(wire::Entry::size).sum::<usize>() > MAX_MESSAGE_BYTES {
        let message = "Batch requests cannot be longer than 1048576 bytes.";
        return refuse("BatchRequestTooLong", message);
    }
    Ok(())
}

fn visibility_timeout(seconds: i64) -> Result<Duration, SqsError> {
    in_range("VisibilityTimeout", seconds, 0..=43_200).map(Duration::from_secs)
}

fn in_range(name: &str, value: i64, range: RangeInclusive<u64>) -> Result<u64, SqsError> {
    u64::try_from(value).ok().filter(|value| range.contains(value)).ok_or_else(|| {
        SqsError::invalid_value(format!(
            "Value {value} for parameter {name} is invalid. Reason: Must be between {} and {}, if \
             provided.",
            range.start(),
            range.end(),
        ))
    })
}

#[cfg(test)]
mod tests;
