//! A real SQS over HTTP for the tests: ministack, started once for all of them.
//!
//! It is installed on first use. Where that is impossible the tests that need it fail: a queue that nobody
//! tested against is not a passed test.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use ses_ledger::local::guard::{Guard, GuardSettings, free_port};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::OnceCell,
    time::{Instant, sleep},
};

/// The emulator's address, such as `http://127.0.0.1:41234`. Region and credentials may be anything; queues
/// are shared by all tests, so give yours a name of its own.
pub(crate) async fn endpoint() -> &'static str {
    static EMULATOR: OnceCell<Result<(Guard, String), String>> = OnceCell::const_new();
    let started = EMULATOR.get_or_init(async || start().await.map_err(|error| format!("{error:#}"))).await;
    match started {
        Ok((_, endpoint)) => endpoint,
        Err(error) => panic!("cannot test without the SQS emulator: {error}"),
    }
}

/// A new queue, with a client and its URL.
pub(crate) async fn queue(name: &str) -> (aws_sdk_sqs::Client, String) {
    let client = client(endpoint().await);
    let answer = client.create_queue().queue_name(name).send().await.expect("the emulator makes queues");
    (client, answer.queue_url.expect("a queue has a URL"))
}

/// A client of an emulator.
pub(crate) fn client(endpoint: &str) -> aws_sdk_sqs::Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(endpoint)
        .build();
    aws_sdk_sqs::Client::from_conf(config)
}

/// Ten seconds are plenty on an idle machine; the build may still keep this one busy.
const START: Duration = Duration::from_secs(60);

async fn start() -> Result<(Guard, String)> {
    let folder = tokio::task::spawn_blocking(|| install("ministack", "tests/install-emulator")).await??;
    let program = folder.join("bin/ministack");
    let program = program.to_str().context("cannot use a folder whose name is not UTF-8")?;
    let port = free_port()?;
    let mut guard = Guard::start(GuardSettings {
        parent: std::env::temp_dir(),
        name: "ses-ledger-emulator",
        signals: &["TERM"],
        patience: 20,
        user: None,
        environment: vec![
            ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()),
            ("BIND_HOST".into(), "127.0.0.1".into()),
            ("MINISTACK_HOST".into(), "127.0.0.1".into()),
            ("GATEWAY_PORT".into(), port.to_string().into()),
        ],
    })
    .await?;
    guard.run(&[program]).await?;
    tokio::select! {
        _ = guard.ended(START) => bail!("cannot start ministack:\n{}", guard.log_tail()),
        () = is_healthy(port, "/_ministack/health") => {}
    }
    Ok((guard, format!("http://127.0.0.1:{port}")))
}

/// Returns the folder of the virtual environment, made by the same script as in `tests/run`.
pub(crate) fn install(name: &str, script: &str) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools").join(name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new("bash").arg(script).arg(&folder).output().context("cannot run bash")?;
    ensure!(
        output.status.success(),
        "cannot install {name}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(folder)
}

/// Waits until this page of an emulator answers as it should.
pub(crate) async fn is_healthy(port: u16, page: &str) {
    let begin = Instant::now();
    while !matches!(get(port, page).await, Ok(answer) if answer.starts_with("HTTP/1.1 200")) {
        let pause = if begin.elapsed() < Duration::from_secs(5) { 50 } else { 500 };
        sleep(Duration::from_millis(pause)).await;
    }
}

async fn get(port: u16, page: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {page} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn the_emulator_answers_and_is_the_same_for_all_tests() {
    let (first, second) = tokio::join!(endpoint(), endpoint());
    assert_eq!(first, second);
    let port = first.rsplit(':').next().and_then(|port| port.parse().ok()).expect("it ends with a port");
    let answer = get(port, "/_ministack/health").await.expect("it was healthy before");
    assert!(answer.contains(r#""sqs": "available""#), "{answer}");
}
