//! The worker inside the test process: the real SDK, the embedded queue, a real PostgreSQL.

use std::{sync::Arc, time::Duration};

use ses_ledger::{
    local::sqs_endpoint::{QueueHandle, SqsEndpoint, SqsEndpointSettings},
    metrics::{Drift, Metrics},
    pipeline::{self, PipelineSettings, QueueError, Shutdown, Worker, decode::DecodeSettings},
    postgres::Postgres,
    sqs::{Access, Sqs, SqsSettings},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// An endpoint with one queue.
pub(crate) struct Queue {
    pub(crate) endpoint: SqsEndpoint,
    pub(crate) url: String,
    pub(crate) handle: QueueHandle,
}

impl Queue {
    pub(crate) async fn start() -> Self {
        let endpoint = SqsEndpoint::start(SqsEndpointSettings::default()).await.expect("a port is free");
        let url = endpoint.create_queue("ses-events", &[]).expect("the name is good");
        let handle = endpoint.queue("ses-events").expect("it was just made");
        Self { endpoint, url, handle }
    }

    /// Waits until the queue holds nothing, also nothing in flight.
    pub(crate) async fn drained(&self) {
        eventually("the queue is drained", || {
            let counts = self.handle.counts();
            counts.visible + counts.in_flight + counts.delayed == 0
        })
        .await;
    }
}

/// Short times, so that faults show within a test.
pub(crate) fn settings() -> PipelineSettings {
    PipelineSettings {
        pollers: 4,
        batch_size: 200,
        batch_age: Duration::from_millis(200),
        in_flight: 5_000,
        receive_wait: Duration::from_secs(1),
        visibility_timeout: Duration::from_secs(30),
        store_timeout: Duration::from_secs(5),
        delete_budget: Duration::from_secs(5),
        decode: DecodeSettings::default(),
    }
}

/// A running worker.
pub(crate) struct Running {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) worker: Arc<Worker<Sqs, Postgres>>,
    pub(crate) shutdown: Shutdown,
    task: JoinHandle<Result<(), QueueError>>,
}

impl Running {
    pub(crate) async fn start(queue_url: &str, store: Postgres, settings: PipelineSettings) -> Self {
        let sqs = SqsSettings {
            queue_url: queue_url.to_owned(),
            access: Access::Default,
            region: None,
            endpoint_url: None,
            receive_wait: settings.receive_wait,
            visibility_timeout: settings.visibility_timeout,
        };
        let queue = Sqs::new(&sqs).await.expect("the URL is good");
        let (metrics, shutdown) = (Arc::new(Metrics::default()), Shutdown::default());
        let worker = Worker::new(queue, store, settings, Arc::clone(&metrics), shutdown.clone());
        let task = tokio::spawn(pipeline::run(Arc::clone(&worker)));
        Self { metrics, worker, shutdown, task }
    }

    /// Stops it, and checks that both identities hold.
    pub(crate) async fn stop(mut self) -> Arc<Metrics> {
        self.shutdown.stop.cancel();
        self.ended().await.expect("nothing was fatal");
        assert_eq!(self.metrics.check_identities(), Drift { messages: 0, events: 0 });
        assert_eq!(self.metrics.messages_in_hand.get(), 0);
        self.metrics
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self) -> Result<(), QueueError> {
        (&mut self.task).await.expect("the pipeline does not panic")
    }
}

/// Waits for something that has to come true.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
