use std::{pin::pin, task::Poll};

use futures_util::poll;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use super::*;

const RECEIVE: &str = "ReceiveMessage";
const DELETE_BATCH: &str = "DeleteMessageBatch";

/// An endpoint with the queue `q`.
async fn endpoint() -> (SqsEndpoint, QueueHandle) {
    let endpoint = SqsEndpoint::start(SqsEndpointSettings::default()).await.expect("a port is free");
    endpoint.create_queue("q", &[]).expect("the name is good");
    let queue = endpoint.queue("q").expect("it was just created");
    (endpoint, queue)
}

/// What an endpoint does without its listener, so that time can be paused.
fn server() -> Server {
    Server::new("http://unused".to_owned())
}

fn queue_of(server: &Server) -> Arc<Queue> {
    server.create_queue("q", BTreeMap::new()).expect("the name is good")
}

fn send_text(queue: &Queue, text: &str) {
    let body = Arc::new(StoredBody::new(text));
    queue.with(|state, now| state.messages.send(body, Duration::ZERO, now));
}

/// The end of a long poll that should find something long before.
fn an_hour() -> impl Future<Output = ()> {
    tokio::time::sleep(Duration::from_secs(3600))
}

/// Writes a request, adding the URL of the queue `q`, and leaves the connection open.
async fn start(endpoint: &SqsEndpoint, action: &str, mut body: Value) -> TcpStream {
    if body.get("QueueUrl").is_none() {
        body["QueueUrl"] = json!(format!("{}/000000000000/q", endpoint.url()));
    }
    let body = body.to_string();
    let address = endpoint.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.expect("the endpoint listens");
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/x-amz-json-1.0\r\nx-amz-target: AmazonSQS.{action}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len(),
    );
    stream.write_all(request.as_bytes()).await.expect("the endpoint reads");
    stream
}

/// All that comes until the server closes: the head in lower case, and the body.
async fn finish(mut stream: TcpStream) -> (String, Value) {
    let mut answer = String::new();
    // A reset is one way to close.
    let _ = stream.read_to_string(&mut answer).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (head.to_lowercase(), serde_json::from_str(body).unwrap_or_default())
}

async fn call(endpoint: &SqsEndpoint, action: &str, body: Value) -> (String, Value) {
    finish(start(endpoint, action, body).await).await
}

/// The ids in a list of an answer.
fn ids(answer: &Value, list: &str) -> Vec<String> {
    let entries = answer[list].as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().map(|entry| entry["Id"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits for what should be true in a moment.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("it comes true");
}

/// Ten entries with the handles of the messages that a receive of ten hands out.
async fn receive_ten(endpoint: &SqsEndpoint) -> Vec<Value> {
    let (_, answer) = call(endpoint, RECEIVE, json!({"MaxNumberOfMessages": 10})).await;
    let messages = answer["Messages"].as_array().cloned().unwrap_or_default();
    let entry =
        |(index, message): (usize, &Value)| json!({"Id": index.to_string(), "ReceiptHandle": message["ReceiptHandle"]});
    messages.iter().enumerate().map(entry).collect()
}

#[tokio::test]
async fn a_message_comes_back_as_it_was_sent_and_goes_when_deleted() {
    let (endpoint, queue) = endpoint().await;
    let body = "{\"a\": \"ö 😀 \\\"\"}\n";
    let (head, sent) = call(&endpoint, "SendMessage", json!({"MessageBody": body})).await;
    assert!(head.starts_with("http/1.1 200") && head.contains("x-amzn-requestid: "), "{head}");
    assert_eq!(sent["MD5OfMessageBody"], "bc6738e9c44fc91b94081598f56c696b");

    let wanted = json!({"AttributeNames": ["SenderId"],
        "MessageSystemAttributeNames": ["ApproximateReceiveCount"]});
    let (_, answer) = call(&endpoint, RECEIVE, wanted).await;
    let message = &answer["Messages"][0];
    assert_eq!(message["Body"], body);
    assert_eq!(message["MessageId"], sent["MessageId"]);
    assert_eq!(message["MD5OfBody"], sent["MD5OfMessageBody"]);
    let attributes = json!({"ApproximateReceiveCount": "1", "SenderId": "000000000000"});
    assert_eq!(message["Attributes"], attributes);

    let entries = json!({"Entries": [
        {"Id": "good", "ReceiptHandle": message["ReceiptHandle"]},
        {"Id": "again", "ReceiptHandle": message["ReceiptHandle"]},
        {"Id": "bad", "ReceiptHandle": "garbage"},
    ]});
    let (head, answer) = call(&endpoint, DELETE_BATCH, entries).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(ids(&answer, "Successful"), ["good", "again"]);
    assert_eq!(answer["Failed"][0]["Code"], "ReceiptHandleIsInvalid");
    assert_eq!(answer["Failed"][0]["SenderFault"], true);
    assert_eq!(queue.totals().deleted, 1);
    assert_eq!(endpoint.calls(Action::DeleteMessageBatch).entries, 3);
}

#[tokio::test]
async fn errors_have_the_shape_that_sdks_read() {
    let (endpoint, _) = endpoint().await;
    let entry = |id: &str, text: &str| json!({"Id": id, "MessageBody": text});
    let long = "x".repeat(600_000);
    for (action, body, code, query_code) in [
        (
            RECEIVE,
            json!({"QueueUrl": "http://x/0/none"}),
            "QueueDoesNotExist",
            "aws.simplequeueservice.nonexistentqueue",
        ),
        (RECEIVE, json!({"MaxNumberOfMessages": 11}), "InvalidParameterValue", "invalidparametervalue"),
        (DELETE_BATCH, json!({"Entries": []}), "EmptyBatchRequest", "aws.simplequeueservice.emptybatchrequest"),
        (
            "SendMessageBatch",
            json!({"Entries": [entry("a", "x"), entry("a", "y")]}),
            "BatchEntryIdsNotDistinct",
            "aws.simplequeueservice.batchentryidsnotdistinct",
        ),
        (
            "SendMessageBatch",
            json!({"Entries": [entry("a", &long), entry("b", &long)]}),
            "BatchRequestTooLong",
            "aws.simplequeueservice.batchrequesttoolong",
        ),
        ("SendMessage", json!({"MessageBody": "\0"}), "InvalidMessageContents", "invalidmessagecontents"),
        ("DeleteMessage", json!({"ReceiptHandle": "garbage"}), "ReceiptHandleIsInvalid", "receipthandleisinvalid"),
        ("GetQueueAttributes", json!({"AttributeNames": ["Colour"]}), "InvalidAttributeName", "invalidattributename"),
        ("TagQueue", json!({}), "UnsupportedOperation", "aws.simplequeueservice.unsupportedoperation"),
    ] {
        let (head, answer) = call(&endpoint, action, body).await;
        assert!(head.starts_with("http/1.1 400"), "{head}");
        assert_eq!(answer["__type"], format!("com.amazonaws.sqs#{code}"));
        let header = format!("x-amzn-query-error: {query_code};sender");
        assert!(head.contains(&header), "{head}");
    }
}

#[tokio::test]
async fn poison_moves_to_the_dead_letter_queue_and_keeps_its_id() {
    let (endpoint, dead_letters) = endpoint().await;
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:q","maxReceiveCount":"1"}"#;
    let attributes = [("RedrivePolicy", policy), ("VisibilityTimeout", "0")];
    let url = endpoint.create_queue("main", &attributes).expect("the policy is good");
    let queue = endpoint.queue("main").expect("it was just created");
    let id = queue.send("poison");
    for received in [1, 0] {
        let (_, answer) = call(&endpoint, RECEIVE, json!({"QueueUrl": url})).await;
        assert_eq!(answer["Messages"].as_array().map_or(0, Vec::len), received);
    }
    assert_eq!((queue.totals().dead, queue.max_receive_count()), (1, 1));
    assert_eq!(dead_letters.bodies(), ["poison"]);
    let (_, answer) = call(&endpoint, RECEIVE, json!({})).await;
    assert_eq!(answer["Messages"][0]["MessageId"], id.to_string());
}

#[tokio::test]
async fn a_client_that_leaves_its_long_poll_takes_no_message_along() {
    let (endpoint, queue) = endpoint().await;
    let idle = Arc::strong_count(&endpoint.server);
    let stream = start(&endpoint, RECEIVE, json!({"WaitTimeSeconds": 20})).await;
    until(|| endpoint.calls(Action::ReceiveMessage).requests == 1).await;
    drop(stream);
    until(|| Arc::strong_count(&endpoint.server) == idle).await;
    queue.send("still here");
    let (_, answer) = call(&endpoint, RECEIVE, json!({"WaitTimeSeconds": 20})).await;
    assert_eq!(answer["Messages"][0]["Body"], "still here");
    assert_eq!(queue.max_receive_count(), 1);
}

#[tokio::test]
async fn stopping_answers_long_polls_and_cuts_what_hangs() {
    let (endpoint, _) = endpoint().await;
    endpoint.faults(|faults| {
        faults.always(Action::PurgeQueue, Fault::Hang);
    });
    let polling = start(&endpoint, RECEIVE, json!({"WaitTimeSeconds": 20})).await;
    let hanging = start(&endpoint, "PurgeQueue", json!({})).await;
    until(|| endpoint.calls(Action::ReceiveMessage).requests == 1).await;
    until(|| endpoint.calls(Action::PurgeQueue).requests == 1).await;
    endpoint.stop().await;
    assert_eq!(finish(polling).await.1, json!({}));
    assert_eq!(finish(hanging).await.0, "");
}

#[tokio::test]
async fn a_script_of_faults_runs_step_by_step() {
    let (endpoint, queue) = endpoint().await;
    (0..5).for_each(|n| {
        queue.send(&n.to_string());
    });
    endpoint.faults(|faults| {
        faults.script(
            Action::ReceiveMessage,
            [
                Fault::Reject(SqsError::unavailable()),
                Fault::None,
                Fault::LoseAnswer,
                Fault::Misreport(SqsError::internal()),
            ],
        );
    });
    let mut heads = Vec::new();
    for in_flight in [0, 1, 2, 3, 4] {
        let (head, _) = call(&endpoint, RECEIVE, json!({})).await;
        assert_eq!(queue.counts().in_flight, in_flight);
        heads.push(head.lines().next().unwrap_or_default().to_owned());
    }
    let ok = "http/1.1 200 ok";
    let (unavailable, failed) = ("http/1.1 503 service unavailable", "http/1.1 500 internal server error");
    assert_eq!(heads, [unavailable, ok, "", failed, ok]);
    let calls = Calls { requests: 5, entries: 4, faults: 3, billed: 5 };
    assert_eq!(endpoint.calls(Action::ReceiveMessage), calls);
}

#[tokio::test]
async fn faults_by_lot_hit_their_share_and_leave_the_script_its_turn() {
    let (endpoint, _) = endpoint().await;
    let mut draws = Vec::new();
    for seed in [1, 1, 2] {
        endpoint.faults(|faults| {
            faults.clear().seed(seed).script(Action::ReceiveMessage, [Fault::None, Fault::None]);
            faults.sometimes(Action::ReceiveMessage, 0.3, Fault::Reject(SqsError::unavailable()));
            faults.sometimes(Action::ReceiveMessage, 0.2, Fault::Reject(SqsError::throttled()));
        });
        let mut codes = Vec::new();
        for _ in 0..200 {
            let (_, answer) = call(&endpoint, RECEIVE, json!({})).await;
            codes.push(answer["__type"].as_str().unwrap_or("none").to_owned());
        }
        assert_eq!(codes[..2], ["none", "none"]);
        let times = |code: &str| codes.iter().filter(|found| found.ends_with(code)).count();
        let (unavailable, throttled) = (times("ServiceUnavailable"), times("RequestThrottled"));
        assert!((40..80).contains(&unavailable), "{unavailable} of 200 are no 30 %");
        assert!((22..60).contains(&throttled), "{throttled} of 200 are no 20 %");
        assert_eq!(times("none"), 200 - unavailable - throttled);
        draws.push(codes);
    }
    assert_eq!(draws[0], draws[1]);
    assert_ne!(draws[0], draws[2]);
}

#[tokio::test]
async fn every_64_kib_that_a_receive_brings_is_a_request_on_the_bill() {
    let (endpoint, queue) = endpoint().await;
    (0..10).for_each(|_| {
        queue.send(&"x".repeat(20 << 10));
    });
    receive_ten(&endpoint).await;
    let (_, answer) = call(&endpoint, RECEIVE, json!({})).await;
    assert!(answer["Messages"].is_null(), "{answer}");
    // 200 KiB, and an empty one.
    let calls = endpoint.calls(Action::ReceiveMessage);
    assert_eq!((calls.requests, calls.billed), (2, 4 + 1));
}

#[tokio::test]
async fn failing_entries_are_drawn_by_seed_and_left_undone() {
    let (endpoint, queue) = endpoint().await;
    let mut draws = Vec::new();
    for seed in [1, 1, 2] {
        endpoint.faults(|faults| {
            faults.seed(seed).fail_entries(Action::DeleteMessageBatch, 0.5);
        });
        queue.purge();
        (0..10).for_each(|n| {
            queue.send(&n.to_string());
        });
        let deleted = queue.totals().deleted;
        let entries = json!({"Entries": receive_ten(&endpoint).await});
        let (_, answer) = call(&endpoint, DELETE_BATCH, entries).await;
        let failed = ids(&answer, "Failed");
        assert!(!failed.is_empty() && failed.len() < 10, "half of ten");
        assert_eq!(answer["Failed"][0]["Code"], "InternalError");
        assert_eq!(answer["Failed"][0]["SenderFault"], false);
        assert_eq!(queue.totals().deleted - deleted, 10 - failed.len() as u64);
        draws.push(failed);
    }
    assert_eq!(draws[0], draws[1]);
    assert_ne!(draws[0], draws[2]);
}

#[tokio::test]
async fn thin_receives_are_partly_filled_but_never_empty() {
    let (endpoint, queue) = endpoint().await;
    endpoint.faults(|faults| {
        faults.thin_receives(0.72);
    });
    (0..1_000).for_each(|n| {
        queue.send(&n.to_string());
    });
    let mut receives = 0;
    while queue.counts().visible >= 10 {
        assert!(!receive_ten(&endpoint).await.is_empty());
        receives += 1;
    }
    assert!((120..150).contains(&receives), "mean fill 7.5: about 133, not {receives}");
}

#[tokio::test(start_paused = true)]
async fn a_delayed_action_waits_its_base_and_at_most_its_jitter() {
    let (base, jitter) = (Duration::from_secs(2), Duration::from_secs(1));
    let mut faults = Faults::default();
    faults.delay(Action::SendMessage, base, jitter);
    let delays: Vec<_> = (0..100).map(|_| faults.next(Action::SendMessage).delay).collect();
    assert!(delays.iter().all(|delay| (base..base + jitter).contains(delay)));
    assert!(delays.iter().any(|delay| *delay > base + jitter / 2));
    assert_eq!(faults.next(Action::ReceiveMessage).delay, Duration::ZERO);

    let server = server();
    let queue = queue_of(&server);
    lock(&server.control).faults = faults;
    let start = Instant::now();
    let body = json!({"QueueUrl": "q", "MessageBody": "late"}).to_string();
    server.obey(Action::SendMessage, body.as_bytes()).await;
    assert!(start.elapsed() >= base);
    assert_eq!(queue.with(|state, now| state.messages.counts(now)).visible, 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_wakes_when_a_message_is_sent() {
    let queue = queue_of(&server());
    let mut poll_1 = pin!(queue.receive(10, None, an_hour()));
    assert!(poll!(&mut poll_1).is_pending());
    send_text(&queue, "a");
    assert_eq!(poll_1.await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_wakes_when_a_hidden_message_comes_back_by_itself() {
    let queue = queue_of(&server());
    let start = Instant::now();
    let mut waiting = pin!(queue.receive(10, None, an_hour()));
    // Every step moves the alarm forward, with the timekeeper asleep.
    for seconds in [50, 20, 5] {
        tokio::task::yield_now().await;
        send_text(&queue, "a");
        let received = queue.take(10, Some(Duration::from_secs(seconds)));
        assert_eq!(received.len(), 1);
        assert!(poll!(&mut waiting).is_pending());
    }
    assert_eq!(waiting.await[0].receive_count, 2);
    assert!((5..6).contains(&start.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn messages_go_to_the_longest_waiting_polls_and_nobody_is_forgotten() {
    let queue = queue_of(&server());
    let mut polls: Vec<_> = (0..5).map(|_| Box::pin(queue.receive(1, None, an_hour()))).collect();
    for waiting in &mut polls {
        assert!(poll!(waiting).is_pending());
    }
    // The first goes away, with the wake-up already in its hands.
    send_text(&queue, "0");
    drop(polls.remove(0));
    (1..3).for_each(|n| send_text(&queue, &n.to_string()));
    let mut served = Vec::new();
    // Asked in reverse, so that it counts who was woken and not who came first.
    for waiting in polls.iter_mut().rev() {
        served.push(matches!(poll!(waiting), Poll::Ready(messages) if messages.len() == 1));
    }
    assert_eq!(served, [false, true, true, true]);
}

#[tokio::test(start_paused = true)]
async fn at_the_in_flight_cap_a_long_poll_ends_empty_or_wakes_on_a_delete() {
    let queue = queue_of(&server());
    queue.with(|state, _| state.messages.settings_mut().in_flight_cap = 1);
    (0..3).for_each(|n| send_text(&queue, &n.to_string()));
    let first = queue.take(10, Some(Duration::from_secs(3600)));
    assert_eq!(first.len(), 1);
    let start = Instant::now();
    let over = tokio::time::sleep(Duration::from_secs(20));
    assert!(queue.receive(10, None, over).await.is_empty());
    assert_eq!(start.elapsed().as_secs(), 20);

    let mut waiting = pin!(queue.receive(10, None, an_hour()));
    assert!(poll!(&mut waiting).is_pending());
    queue.with(|state, now| state.messages.delete(first[0].handle, now)).expect("it is its own");
    assert_eq!(waiting.await.len(), 1);
}
