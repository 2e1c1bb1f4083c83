//! Lambda's runtime API, for one function: what AWS runs beside every function, so that one can be invoked on this machine.
//! Its four routes: <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::HeaderName,
    routing::{get, post},
    serve::ListenerExt as _,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Notify, mpsc},
};
use tokio_util::task::AbortOnDropHandle;

/// The API, and the side from which the function is invoked. Gone when it is dropped.
pub struct LambdaApi {
    address: SocketAddr,
    api: Arc<Api>,
    invocations: mpsc::UnboundedSender<(Value, Duration)>,
    answers: Mutex<mpsc::UnboundedReceiver<Answer>>,
    _server: AbortOnDropHandle<()>,
}

/// What a function says to an invocation.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Response(Value),
    /// The invocation failed as a whole, or the function could not start.
    Error(Value),
}

/// A message as an event source mapping hands it over.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub message_id: &'a str,
    pub body: &'a str,
    pub queue_arn: &'a str,
}

struct Api {
    waiting: Mutex<mpsc::UnboundedReceiver<(Value, Duration)>>,
    answers: mpsc::UnboundedSender<Answer>,
    /// The function has asked for its first invocation.
    ready: Notify,
    number: AtomicUsize,
}

impl LambdaApi {
    /// Listens on a free port of the loopback address.
    ///
    /// # Errors
    /// If there is none.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen on the loopback address")?;
        let address = listener.local_addr().context("cannot tell which port it listens on")?;
        let (invocations, waiting) = mpsc::unbounded_channel();
        let (said, answers) = mpsc::unbounded_channel();
        let (ready, number) = (Notify::new(), AtomicUsize::new(0));
        let api = Arc::new(Api { waiting: Mutex::new(waiting), answers: said, ready, number });
        let routes = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/2018-06-01/runtime/init/error", post(error_at_start))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&api));
        // Else each small answer waits for the other side's acknowledgement.
        let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
        let server = tokio::spawn(async move { _ = axum::serve(listener, routes).await });
        let _server = AbortOnDropHandle::new(server);
        Ok(Self { address, api, invocations, answers: Mutex::new(answers), _server })
    }

    /// What a function finds in its environment.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_LAMBDA_RUNTIME_API", self.address.to_string()),
            ("AWS_LAMBDA_FUNCTION_NAME", "ses-ledger".to_owned()),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256".to_owned()),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
        ]
    }

    /// Waits until the function asks for its first invocation: the end of its cold start.
    pub async fn ready(&self) {
        self.api.ready.notified().await;
    }

    /// Invokes the function with an event and so much time, and waits for its answer.
    ///
    /// # Errors
    /// If the API has ended.
    pub async fn invoke(&self, event: Value, time: Duration) -> anyhow::Result<Answer> {
        let mut answers = self.answers.lock().await; // one invocation at a time
        self.invocations.send((event, time)).ok().context("nobody invokes any more")?;
        answers.recv().await.context("nobody listens any more")
    }
}

/// An event as an SQS event source mapping sends it.
pub fn sqs_event<'a>(records: impl IntoIterator<Item = Record<'a>>) -> Value {
    let record = |Record { message_id, body, queue_arn }: Record<'_>| {
        json!({
            "messageId": message_id,
            "receiptHandle": "made-up",
            "body": body,
            "attributes": {
                "ApproximateReceiveCount": "1", "SentTimestamp": "1750000000000", "SenderId": "AIDAEXAMPLE",
                "ApproximateFirstReceiveTimestamp": "1750000000001",
            },
            "messageAttributes": {},
            "md5OfBody": "00000000000000000000000000000000",
            "eventSource": "aws:sqs",
            "eventSourceARN": queue_arn,
            "awsRegion": "us-east-1",
        })
    };
    json!({ "Records": records.into_iter().map(record).collect::<Vec<_>>() })
}

/// An event as a rule of EventBridge with a schedule sends it.
pub fn scheduled_event() -> Value {
    json!({
        "version": "0", "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa", "detail-type": "Scheduled Event",
        "source": "aws.events", "account": "000000000000", "time": "2026-10-05T08:00:00Z", "region": "us-east-1",
        "resources": ["arn:aws:events:us-east-1:000000000000:rule/upkeep"], "detail": {},
    })
}

async fn next(State(api): State<Arc<Api>>) -> ([(HeaderName, String); 3], String) {
    api.ready.notify_one();
    let Some((event, time)) = api.waiting.lock().await.recv().await else {
        std::future::pending().await // nobody invokes any more
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let header = HeaderName::from_static;
    let headers = [
        (header("lambda-runtime-aws-request-id"), format!("request-{}", api.number.fetch_add(1, Ordering::Relaxed))),
        (header("lambda-runtime-deadline-ms"), (now + time).as_millis().to_string()),
        (
            header("lambda-runtime-invoked-function-arn"),
            "arn:aws:lambda:us-east-1:000000000000:function:ses-ledger".to_owned(),
        ),
    ];
    (headers, event.to_string())
}

async fn response(State(api): State<Arc<Api>>, Path(_): Path<String>, body: Bytes) {
    let _ = api.answers.send(Answer::Response(read(&body)));
}

async fn error(State(api): State<Arc<Api>>, Path(_): Path<String>, body: Bytes) {
    let _ = api.answers.send(Answer::Error(read(&body)));
}

async fn error_at_start(State(api): State<Arc<Api>>, body: Bytes) {
    let _ = api.answers.send(Answer::Error(read(&body)));
}

fn read(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into())
}
