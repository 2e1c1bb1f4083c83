//! A way from SES to a queue, made on the emulator as `infra/pipeline.yaml` describes it, so that tests can spoil it; and
//! what stands before the emulator: it can refuse calls, change answers, and keep a list.

use std::sync::{Arc, Mutex, PoisonError};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_eventbridge::types::{DeadLetterConfig, Target};
use aws_sdk_sesv2::types::{
    EventBridgeDestination, EventDestinationDefinition, EventType, ReputationOptions, SnsDestination,
};
use aws_sdk_sqs::types::QueueAttributeName;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, Uri},
    response::Response,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::emulator;

pub(crate) const KINDS: [&str; 10] = [
    "DELIVERY_DELAY",
    "SEND",
    "DELIVERY",
    "BOUNCE",
    "COMPLAINT",
    "REJECT",
    "OPEN",
    "CLICK",
    "RENDERING_FAILURE",
    "SUBSCRIPTION",
];

pub(crate) const DETAIL_TYPES: [&str; 10] = [
    "Email Sent",
    "Email Delivered",
    "Email Bounced",
    "Email Complaint Received",
    "Email Rejected",
    "Email Opened",
    "Email Clicked",
    "Email Rendering Failed",
    "Email Delivery Delayed",
    "Email Subscribed",
];

const ACCOUNT: &str = "000000000000";

/// Which way events take.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Via {
    Topic,
    Bus,
}

/// Everything is named after it.
pub(crate) struct Pipeline {
    pub(crate) name: String,
    /// Of what stands before the emulator.
    pub(crate) endpoint: String,
    pub(crate) queue_url: String,
    pub(crate) queue: String,
    pub(crate) topic: String,
    pub(crate) subscription: String,
    pub(crate) key: String,
    pub(crate) ses: aws_sdk_sesv2::Client,
    pub(crate) sns: aws_sdk_sns::Client,
    pub(crate) kms: aws_sdk_kms::Client,
    pub(crate) events: aws_sdk_eventbridge::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    front: Front,
}

impl Pipeline {
    /// A pipeline as it should be.
    pub(crate) async fn make(name: &str, via: Via) -> Self {
        let emulator = emulator::endpoint().await;
        let config = config(emulator).await;
        let front = Front::start(emulator).await;
        let mut pipeline = Self {
            name: name.to_owned(),
            endpoint: front.url.clone(),
            queue_url: String::new(),
            queue: format!("arn:aws:sqs:us-east-1:{ACCOUNT}:{name}"),
            topic: format!("arn:aws:sns:us-east-1:{ACCOUNT}:{name}"),
            subscription: String::new(),
            key: String::new(),
            ses: aws_sdk_sesv2::Client::new(&config),
            sns: aws_sdk_sns::Client::new(&config),
            kms: aws_sdk_kms::Client::new(&config),
            events: aws_sdk_eventbridge::Client::new(&config),
            sqs: aws_sdk_sqs::Client::new(&config),
            front,
        };
        pipeline.make_key_and_queues().await;
        match via {
            Via::Topic => pipeline.make_topic().await,
            Via::Bus => pipeline.make_rule().await,
        }
        pipeline.make_set(via).await;
        // The emulator never gets there by itself.
        pipeline.replace("GET /v2/email/identities/", r#""SigningEnabled": false"#, r#""SigningEnabled": true"#);
        pipeline.replace("GET /v2/email/identities/", "PENDING", "SUCCESS");
        pipeline
    }

    async fn make_key_and_queues(&mut self) {
        let key = self.kms.create_key().send().await.expect("it makes keys").key_metadata.expect("it says which");
        self.key = key.arn.expect("it has one");
        self.key_policy(&["ses.amazonaws.com", "sns.amazonaws.com", "events.amazonaws.com"]).await;
        for name in [format!("{}-dead", self.name), format!("{}-undelivered", self.name), self.name.clone()] {
            let retention = (QueueAttributeName::MessageRetentionPeriod, "1209600");
            let made = self.sqs.create_queue().queue_name(name).attributes(retention.0, retention.1).send().await;
            self.queue_url = made.expect("it makes queues").queue_url.expect("it has one");
        }
        self.queue_attribute("VisibilityTimeout", "390").await;
        self.queue_attribute("KmsMasterKeyId", &self.key).await;
        self.redrive(&self.sibling("dead"), 100).await;
    }

    async fn make_topic(&mut self) {
        let topic = self.sns.create_topic().name(&self.name).attributes("KmsMasterKeyId", &self.key).send().await;
        assert_eq!(topic.expect("it makes topics").topic_arn.as_ref(), Some(&self.topic));
        let ours = json!({"StringEquals": {"aws:SourceAccount": ACCOUNT},
                          "ArnLike": {"aws:SourceArn": format!("arn:aws:ses:us-east-1:{ACCOUNT}:configuration-set/*")}});
        self.topic_policy(json!([
            {"Sid": "SesPublishes", "Effect": "Allow", "Principal": {"Service": "ses.amazonaws.com"}, "Action": "sns:Publish",
             "Resource": self.topic, "Condition": ours},
            {"Sid": "TlsOnly", "Effect": "Deny", "Principal": "*", "Action": "sns:Publish", "Resource": self.topic,
             "Condition": {"Bool": {"aws:SecureTransport": "false"}}}]))
            .await;
        self.queue_policy("sns.amazonaws.com", Some(&self.topic)).await;
        let redrive = json!({"deadLetterTargetArn": self.sibling("undelivered")}).to_string();
        let request = self.sns.subscribe().topic_arn(&self.topic).protocol("sqs").endpoint(&self.queue);
        let request = request.attributes("RawMessageDelivery", "true").attributes("RedrivePolicy", redrive);
        let made = request.send().await.expect("it subscribes");
        self.subscription = made.subscription_arn.expect("it has one");
    }

    async fn make_rule(&self) {
        let pattern = json!({"source": ["aws.ses"], "detail-type": DETAIL_TYPES}).to_string();
        let made = self.events.put_rule().name(&self.name).event_pattern(pattern).send().await.expect("it makes rules");
        self.target(true).await;
        self.queue_policy("events.amazonaws.com", made.rule_arn.as_deref()).await;
    }

    async fn make_set(&self, via: Via) {
        let reputation = ReputationOptions::builder().reputation_metrics_enabled(true).build();
        let set = self.ses.create_configuration_set().configuration_set_name(&self.name).reputation_options(reputation);
        set.send().await.expect("it makes sets");
        let to = if via == Via::Topic {
            self.topic.clone()
        } else {
            format!("arn:aws:events:us-east-1:{ACCOUNT}:event-bus/default")
        };
        let request = self.ses.create_configuration_set_event_destination().configuration_set_name(&self.name);
        let request = request.event_destination_name("events").event_destination(definition(true, &KINDS, &to));
        request.send().await.expect("it makes destinations");
        self.ses.create_email_identity().email_identity(self.identity()).send().await.expect("it makes identities");
    }

    pub(crate) fn identity(&self) -> String {
        format!("{}.example.com", self.name)
    }

    /// ARN of the queue `NAME-what`.
    pub(crate) fn sibling(&self, what: &str) -> String {
        format!("{}-{what}", self.queue)
    }

    pub(crate) async fn destination(&self, enabled: bool, kinds: &[&str], topic: &str) {
        let request = self.ses.update_configuration_set_event_destination().configuration_set_name(&self.name);
        let request = request.event_destination_name("events").event_destination(definition(enabled, kinds, topic));
        request.send().await.expect("it is there");
    }

    pub(crate) async fn delete_set(&self) {
        self.ses.delete_configuration_set().configuration_set_name(&self.name).send().await.expect("it is there");
    }

    pub(crate) async fn switch_set_off(&self) {
        let request = self.ses.put_configuration_set_sending_options().configuration_set_name(&self.name);
        request.sending_enabled(false).send().await.expect("it is there");
    }

    pub(crate) async fn topic_policy(&self, statements: Value) {
        let policy = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
        let request = self.sns.set_topic_attributes().topic_arn(&self.topic).attribute_name("Policy");
        request.attribute_value(policy).send().await.expect("it is there");
    }

    pub(crate) async fn subscription_attribute(&self, name: &str, value: &str) {
        let request = self.sns.set_subscription_attributes().subscription_arn(&self.subscription);
        request.attribute_name(name).attribute_value(value).send().await.expect("it is there");
    }

    /// Lets the account and these services use the key.
    pub(crate) async fn key_policy(&self, services: &[&str]) {
        let root = format!("arn:aws:iam::{ACCOUNT}:root");
        let mut statements =
            vec![json!({"Effect": "Allow", "Principal": {"AWS": root}, "Action": "kms:*", "Resource": "*"})];
        statements.extend(services.iter().map(|service| {
            json!({"Effect": "Allow", "Principal": {"Service": service}, "Action": ["kms:GenerateDataKey*", "kms:Decrypt"], "Resource": "*"})
        }));
        let policy = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
        self.kms.put_key_policy().key_id(&self.key).policy(policy).send().await.expect("it is there");
    }

    /// Lets a service send on behalf of this source; of none: nobody may.
    pub(crate) async fn queue_policy(&self, service: &str, source: Option<&str>) {
        let source = source.unwrap_or("arn:aws:sns:us-east-1:000000000000:nobody");
        let sends = json!({"Effect": "Allow", "Principal": {"Service": service}, "Action": "sqs:SendMessage", "Resource": self.queue,
                           "Condition": {"ArnEquals": {"aws:SourceArn": source}}});
        let policy = json!({"Version": "2012-10-17", "Statement": [sends]}).to_string();
        self.queue_attribute("Policy", &policy).await;
    }

    pub(crate) async fn redrive(&self, dead: &str, most: u32) {
        let policy = json!({"deadLetterTargetArn": dead, "maxReceiveCount": most}).to_string();
        self.queue_attribute("RedrivePolicy", &policy).await;
    }

    pub(crate) async fn queue_attribute(&self, name: &str, value: &str) {
        self.set_attribute(self.queue_url.clone(), name, value).await;
    }

    pub(crate) async fn attribute_of(&self, sibling: &str, name: &str, value: &str) {
        self.set_attribute(format!("{}-{sibling}", self.queue_url), name, value).await;
    }

    async fn set_attribute(&self, queue_url: String, name: &str, value: &str) {
        let request = self.sqs.set_queue_attributes().queue_url(queue_url);
        request.attributes(QueueAttributeName::from(name), value).send().await.expect("it is there");
    }

    /// The queue is the rule's target, with or without a dead-letter queue.
    pub(crate) async fn target(&self, dead_letters: bool) {
        let dead = DeadLetterConfig::builder().arn(self.sibling("undelivered")).build();
        let target =
            Target::builder().id("queue").arn(&self.queue).set_dead_letter_config(dead_letters.then_some(dead));
        let target = target.build().expect("it has all it needs");
        self.events.put_targets().rule(&self.name).targets(target).send().await.expect("it is there");
    }

    /// Changes the answers to calls that are named like this.
    pub(crate) fn replace(&self, call: &str, from: &str, to: &str) {
        let edit = Edit { call: call.to_owned(), from: from.to_owned(), to: to.to_owned() };
        self.front.state().edits.push(edit);
    }

    /// Refuses calls that are named like these, and no other.
    pub(crate) fn deny(&self, calls: &[&str]) {
        self.front.state().denied = calls.iter().map(|&call| call.to_owned()).collect();
    }

    /// The names of all calls so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.front.state().calls.clone()
    }
}

/// A configuration set that publishes everything to these topics and event buses. Returns the address of its SES.
pub(crate) async fn set_to(name: &str, places: &[&str]) -> &'static str {
    let emulator = emulator::endpoint().await;
    let ses = aws_sdk_sesv2::Client::new(&config(emulator).await);
    let reputation = ReputationOptions::builder().reputation_metrics_enabled(true).build();
    let set = ses.create_configuration_set().configuration_set_name(name).reputation_options(reputation);
    set.send().await.expect("it makes sets");
    for (number, place) in places.iter().enumerate() {
        let request = ses.create_configuration_set_event_destination().configuration_set_name(name);
        let request = request.event_destination_name(format!("to-{number}"));
        request.event_destination(definition(true, &KINDS, place)).send().await.expect("it makes destinations");
    }
    emulator
}

fn definition(enabled: bool, kinds: &[&str], to: &str) -> EventDestinationDefinition {
    let mut definition = EventDestinationDefinition::builder().enabled(enabled);
    for &kind in kinds {
        definition = definition.matching_event_types(EventType::from(kind));
    }
    match to.contains(":sns:") {
        true => definition.sns_destination(SnsDestination::builder().topic_arn(to).build().expect("it has an ARN")),
        false => definition.event_bridge_destination(
            EventBridgeDestination::builder().event_bus_arn(to).build().expect("it has an ARN"),
        ),
    }
    .build()
}

async fn config(endpoint: &str) -> SdkConfig {
    let loader = aws_config::defaults(BehaviorVersion::latest()).region(Region::new("us-east-1"));
    loader
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(endpoint)
        .load()
        .await
}

/// What stands before the emulator.
struct Front {
    url: String,
    state: Arc<Mutex<FrontState>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct FrontState {
    emulator: String,
    calls: Vec<String>,
    denied: Vec<String>,
    edits: Vec<Edit>,
}

#[derive(Clone)]
struct Edit {
    call: String,
    from: String,
    to: String,
}

impl Front {
    async fn start(emulator: &str) -> Self {
        let state = Arc::new(Mutex::new(FrontState { emulator: emulator.to_owned(), ..FrontState::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it goes on") });
        Self { url, state, task }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FrontState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    State(state): State<Arc<Mutex<FrontState>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let call = name_of(&method, &uri, &headers, &body);
    let (emulator, denied, edits) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.calls.push(call.clone());
        let edits: Vec<Edit> = state.edits.iter().filter(|edit| call.contains(&edit.call)).cloned().collect();
        (state.emulator.clone(), state.denied.iter().any(|denied| call.contains(denied)), edits)
    };
    if denied {
        return refusal(&call);
    }
    let (status, kind, mut text) =
        tokio::task::spawn_blocking(move || forward(&emulator, &method, &uri, &headers, &body))
            .await
            .expect("a request does not panic");
    for edit in edits.into_iter().filter(|_| status == 200) {
        assert!(text.contains(&edit.from), "{} is not in the answer to {call}: {text}", edit.from);
        text = text.replace(&edit.from, &edit.to);
    }
    // SES names an error in a header, the emulator only in its text.
    let error = serde_json::from_str::<Value>(&text).ok().filter(|_| status != 200);
    let mut answer = Response::builder().status(status).header("content-type", kind);
    if let Some(name) = error.and_then(|it| it["name"].as_str().map(str::to_owned)) {
        answer = answer.header("x-amzn-errortype", name);
    }
    answer.body(Body::from(text)).expect("it is well formed")
}

/// `AmazonSQS.GetQueueAttributes`, `Action=GetTopicAttributes`, `GET /v2/email/account`.
fn name_of(method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> String {
    let target = headers.get("x-amz-target").and_then(|it| it.to_str().ok()).map(str::to_owned);
    let form = String::from_utf8_lossy(body).into_owned();
    let action = || form.split('&').find(|part| part.starts_with("Action=")).map(str::to_owned);
    target.or_else(action).unwrap_or_else(|| format!("{method} {}", uri.path()))
}

/// As AWS says no, in the protocol of the call.
fn refusal(call: &str) -> Response {
    let (kind, body) = match call.starts_with("Action=") {
        true => (
            "text/xml",
            "<ErrorResponse><Error><Type>Sender</Type><Code>AuthorizationError</Code><Message>no</Message></Error>\
             <RequestId>1</RequestId></ErrorResponse>",
        ),
        false => ("application/json", r#"{"__type":"AccessDeniedException","message":"no"}"#),
    };
    Response::builder().status(403).header("content-type", kind).body(Body::from(body)).expect("it is well formed")
}

fn forward(emulator: &str, method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> (u16, String, String) {
    let mut request = ureq::http::Request::builder().method(method.as_str()).uri(format!("{emulator}{uri}"));
    for (name, value) in headers.iter().filter(|(name, _)| !["host", "content-length"].contains(&name.as_str())) {
        request = request.header(name.as_str(), value.as_bytes());
    }
    let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
    let request = request.body(body.to_vec()).expect("it is well formed");
    let mut answer = agent.run(request).expect("the emulator answers");
    let kind =
        answer.headers().get("content-type").and_then(|it| it.to_str().ok()).unwrap_or("application/json").to_owned();
    (answer.status().as_u16(), kind, answer.body_mut().read_to_string().expect("it answers with text"))
}
