//! No emulator checks a signature, so a request that AWS would refuse could go unnoticed: these are checked here, by the
//! rules of <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html> and nobody's library.

use std::{collections::BTreeMap, time::Duration};

use ses_ledger::{
    pipeline::Queue as _,
    sqs::{Access, Sqs, SqsSettings},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

#[tokio::test]
async fn every_request_is_signed_as_aws_asks() {
    let mut service = Service::start().await;
    let settings = SqsSettings {
        queue_url: format!("{}/000000000000/events", service.url),
        access: Access::Default,
        region: None,
        endpoint_url: None,
        receive_wait: Duration::from_secs(1),
        visibility_timeout: Duration::from_secs(30),
    };
    let queue = Sqs::new(&settings).await.expect("the URL is good");
    let mut senders = Vec::new();
    for _ in 0..3 {
        queue.receive(10, Duration::ZERO).await.expect("the service answers");
        let request = service.requests.recv().await.expect("a receive is a request");
        assert_eq!(request.header("x-amz-target"), "AmazonSQS.ReceiveMessage");
        assert_eq!(request.header("content-type"), "application/x-amz-json-1.0");
        assert_eq!(request.signature(), request.expected_signature("test", "us-east-1", "sqs"));
        senders.push(request.header("user-agent").split('/').next().unwrap_or_default().to_owned());
    }
    // The SDK finds out where the service is; from then on it is only asked when something is not right.
    assert_eq!(senders, ["aws-sdk-rust", "ses-ledger", "ses-ledger"]);
}

/// Answers every request as an empty queue does, and passes it on.
struct Service {
    url: String,
    requests: mpsc::UnboundedReceiver<Request>,
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sender.clone()));
            }
        });
        Self { url, requests }
    }
}

async fn serve(mut stream: TcpStream, sender: mpsc::UnboundedSender<Request>) {
    while let Some(request) = Request::read(&mut stream).await {
        let _ = sender.send(request);
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: 2\r\n\r\n{}";
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

struct Request {
    line: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    async fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        let mut lines = head.lines();
        let line = lines.next()?.to_owned();
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let headers: BTreeMap<_, _> = lines.filter_map(header).collect();
        let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
        stream.read_exact(&mut body).await.ok()?;
        Some(Self { line, headers, body })
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("there is no header {name}"))
    }

    /// A part of the header `Authorization`.
    fn credential(&self, name: &str) -> &str {
        let parts = self.header("authorization").trim_start_matches("AWS4-HMAC-SHA256 ").split(", ");
        let find = |part: &'_ str| part.strip_prefix(name)?.strip_prefix('=').map(str::len);
        let part = parts.clone().find(|part| find(part).is_some()).unwrap_or_else(|| panic!("there is no {name}"));
        &part[name.len() + 1..]
    }

    fn signature(&self) -> &str {
        self.credential("Signature")
    }

    fn expected_signature(&self, secret: &str, region: &str, service: &str) -> String {
        let signed = self.credential("SignedHeaders");
        for required in ["host", "x-amz-date", "x-amz-target"] {
            assert!(signed.split(';').any(|name| name == required), "{required} is not signed");
        }
        let headers: String = signed.split(';').map(|name| format!("{name}:{}\n", self.header(name))).collect();
        let path = self.line.split(' ').nth(1).unwrap_or_default();
        let request = format!("POST\n{path}\n\n{headers}\n{signed}\n{}", hex(&Sha256::digest(&self.body)));
        let time = self.header("x-amz-date");
        let scope = format!("{}/{region}/{service}/aws4_request", &time[..8]);
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(request)));
        let key = scope.split('/').fold(format!("AWS4{secret}").into_bytes(), |key, part| hmac(&key, part));
        hex(&hmac(&key, &to_sign))
    }
}

/// HMAC with SHA-256 (RFC 2104), for keys of up to 64 bytes.
fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    let padded = |pad: u8| -> Vec<u8> { (0..64).map(|n| key.get(n).copied().unwrap_or(0) ^ pad).collect() };
    let inner = Sha256::digest([padded(0x36), message.as_bytes().to_vec()].concat());
    Sha256::digest([padded(0x5c), inner.to_vec()].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
