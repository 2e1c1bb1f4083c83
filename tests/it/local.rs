//! `infra/local`, as its reader uses it: start, send, let the mail bounce, ask, stop. Nothing is left.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use serde_json::Value;
use ses_ledger::local::guard::{Guard, GuardSettings};
use tokio::{
    net::TcpStream,
    process::Command,
    time::{sleep, timeout},
};

/// LocalStack and its stack take ten seconds, on an idle machine.
const START: Duration = Duration::from_secs(240);
/// Longer than the script itself waits for a mail's events.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_goes_through_the_local_pipeline_and_nothing_is_left_of_it() {
    let mut guard = guard().await;
    let folder = guard.folder().to_owned();
    let state = folder.join("state.json");
    let text = |path: &Path| path.to_str().expect("the temporary folder is UTF-8").to_owned();
    let script = text(&root().join("infra/local"));
    let worker = env!("CARGO_BIN_EXE_ses-ledger");
    guard.run(&[&script, "--state", &text(&state), "start", "--worker", worker]).await.expect("it starts");
    tokio::select! {
        _ = guard.ended(START) => panic!("it has ended:\n{}", guard.log_tail()),
        () = says(&guard, "Ctrl-C stops all of it") => {}
    }

    let sent = ask(&state, &["send", "--to", "o'hara@example.net"]).await;
    for line in ["delivered", "send       | o'hara@example.net", "delivery   | o'hara@example.net"] {
        assert!(sent.contains(line), "no {line:?}:\n{sent}");
    }
    let bounce = text(&root().join("tests/fixtures/bodies/Bounce--permanent-general.json"));
    let bounced = ask(&state, &["publish", &bounce]).await;
    for line in ["bounced", "bounce     | o'hara@example.net"] {
        assert!(bounced.contains(line), "no {line:?}:\n{bounced}");
    }
    let half = text(&folder.join("half"));
    fs::write(&half, r#"{"eventType": "Bounce", "mail": {"#).expect("the folder is ours");
    let broken = ask(&state, &["publish", &half]).await;
    assert!(broken.contains("truncated_json"), "{broken}");
    let rows = ask(&state, &["sql", "SELECT string_agg(event_type, '+' ORDER BY event_type) FROM email_events"]).await;
    assert!(rows.contains("bounce+delivery+send"), "{rows}");

    let again = end_of(&state, &["start"]).await;
    assert!(String::from_utf8_lossy(&again.stderr).contains("it runs already"), "{again:?}");

    let noted: Value = serde_json::from_slice(&fs::read(&state).expect("it is noted")).expect("as JSON");
    let left = PathBuf::from(noted["folder"].as_str().expect("it is noted"));
    assert!(left.join("LocalStack.log").exists());
    let ports = ["endpoint", "database_url"].map(|name| port(noted[name].as_str().expect("it is noted")));
    guard.signal("INT").expect("it runs");
    assert_eq!(guard.ended(Duration::from_secs(60)).await.expect("it ends"), 130, "{}", guard.log_tail());
    assert!(!state.exists());
    assert!(!left.exists(), "{} is left", left.display());
    for port in ports {
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "somebody still listens on port {port}");
    }
    guard.close().await.expect("nobody holds its folder");
}

#[tokio::test]
async fn a_mail_needs_a_pipeline_that_runs() {
    let nowhere = Path::new("/no/such/folder/state.json");
    let sent = end_of(nowhere, &["send"]).await;
    assert_eq!(sent.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&sent.stderr), "infra/local: it does not run: start it with infra/local\n");
}

/// Waits until its output holds this.
async fn says(guard: &Guard, text: &str) {
    while !fs::read_to_string(guard.log()).is_ok_and(|log| log.contains(text)) {
        sleep(Duration::from_millis(100)).await;
    }
}

/// What the script says to a command that has to succeed.
async fn ask(state: &Path, arguments: &[&str]) -> String {
    let output = end_of(state, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that ends by itself.
async fn end_of(state: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("python3");
    command.arg(root().join("infra/local")).arg("--state").arg(state).args(arguments).kill_on_drop(true);
    timeout(PATIENCE, command.output()).await.expect("the command ends by itself").expect("Python runs")
}

/// Ends the script even if the test does not come to its end, and gives it a folder for what it writes.
async fn guard() -> Guard {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("");
    let settings = GuardSettings {
        parent: std::env::temp_dir(),
        name: "ses-ledger-local-test",
        signals: &["TERM"],
        patience: 300,
        user: None,
        environment: vec![("PATH".into(), path), ("CARGO_TARGET_DIR".into(), tools.into())],
    };
    Guard::start(settings).await.expect("a shell and a temporary folder exist")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The port in a URL.
fn port(url: &str) -> u16 {
    let digits = url.rsplit(':').next().expect("a colon").split('/').next().expect("digits");
    digits.parse().unwrap_or_else(|e| panic!("no port ({e})"))
}
