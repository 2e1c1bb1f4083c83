//! The pages in a real Chromium, driven over WebDriver: with what a worker has stored, empty, and with hostile words.

use std::{env, path::PathBuf, process::Stdio, time::Duration};

use serde_json::{Value, json};
use ses_ledger::local::story::{Mess, Profile, Story, StorySettings};
use time::macros::datetime;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use super::{Filled, HOSTILE, filled, serve, settings};
use crate::{
    binary::{Running, play, until},
    database,
    worker::Queue,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A phone and a desk.
const WIDTHS: [u32; 2] = [360, 1_280];

/// What a page may not do, counted in the page itself.
const LOOK: &str = "
    const links = [...document.querySelectorAll('[href],[src],[action]')].map(e => e.href || e.src || e.action);
    return {
        scripts: document.scripts.length,
        title: document.title,
        wide: document.documentElement.scrollWidth - window.innerWidth,
        styled: getComputedStyle(document.querySelector('header')).display,
        outside: links.filter(link => !link.startsWith(location.origin + '/')),
        elements: document.querySelectorAll('img,iframe,object,embed,script,link,base').length,
    };";

/// A browser with a profile of its own. Both processes end with their test.
struct Browser {
    _driver: Child,
    port: u16,
    session: String,
    profile: PathBuf,
}

impl Browser {
    async fn start() -> Self {
        for program in ["chromium", "chromedriver"] {
            let there =
                env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(program).is_file());
            assert!(
                there,
                "{program} is missing: it is in Debian's packages chromium and chromium-driver, which tests/run installs"
            );
        }
        let mut driver = Command::new("chromedriver");
        driver.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut driver = driver.spawn().expect("it is in the path");
        let mut lines = BufReader::new(driver.stdout.take().expect("it is piped")).lines();
        let port = loop {
            let line = timeout(PATIENCE, lines.next_line())
                .await
                .expect("it starts")
                .expect("it writes text")
                .expect("it says where it listens");
            let port = line
                .split_once("started successfully on port ")
                .and_then(|(_, port)| port.trim_end_matches('.').parse().ok());
            if let Some(port) = port {
                break port;
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let profile = env::temp_dir().join(format!("ses-ledger-chromium-{}-{port}", std::process::id()));
        let mut browser = Self { _driver: driver, port, session: String::new(), profile };
        let mut arguments: Vec<String> = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ]
        .map(str::to_owned)
        .into();
        arguments.push(format!("--user-data-dir={}", browser.profile.display()));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            // A dialog stays open, and every command after it fails.
            "unhandledPromptBehavior": "ignore",
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "goog:chromeOptions": {"args": arguments},
        }}});
        let session = browser.call("POST", "/session", Some(&wanted)).await;
        browser.session = session["sessionId"].as_str().expect("a session has an id").to_owned();
        browser
    }

    /// One request to the driver. Whatever it refuses fails the test.
    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let path = if path == "/session" { path.to_owned() } else { format!("/session/{}{path}", self.session) };
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let talk = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            // As long as it says: it does not always hang up.
            loop {
                let text = String::from_utf8_lossy(&answer);
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|line| {
                        line.to_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
                    });
                    if length.is_some_and(|length| body.len() >= length) {
                        return std::io::Result::Ok(body.to_owned());
                    }
                }
                if stream.read_buf(&mut answer).await? == 0 {
                    return Ok(String::new());
                }
            }
        };
        let answer = timeout(PATIENCE, talk).await.expect("the driver answers").expect("the driver is there");
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{path}: {e}: {answer}"));
        assert!(answer["value"]["error"].is_null(), "{method} {path}: {}", answer["value"]);
        answer["value"].clone()
    }

    async fn tell(&self, command: &str, parameters: Value) -> Value {
        self.call("POST", "/goog/cdp/execute", Some(&json!({"cmd": command, "params": parameters}))).await
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let log = self.call("POST", "/se/log", Some(&json!({"type": kind}))).await;
        log.as_array().expect("a log is a list").clone()
    }

    /// Opens a page at each width, in light and dark, and looks for anything that should not be.
    async fn look_at(&self, base: &str, path: &str) {
        for (width, scheme) in WIDTHS.into_iter().flat_map(|width| [(width, "light"), (width, "dark")]) {
            let context = format!("{path} at {width}, {scheme}");
            let size = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500});
            self.tell("Emulation.setDeviceMetricsOverride", size).await;
            self.tell(
                "Emulation.setEmulatedMedia",
                json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
            )
            .await;
            self.call("POST", "/url", Some(&json!({"url": format!("{base}{path}")}))).await;
            let seen = self.call("POST", "/execute/sync", Some(&json!({"script": LOOK, "args": []}))).await;
            let title = seen["title"].as_str().unwrap_or_default();
            assert!(title.ends_with(" · ses-ledger"), "{context}: a script ran, or there is no page: {seen}");
            assert_eq!(
                (&seen["scripts"], &seen["elements"], &seen["outside"]),
                (&json!(0), &json!(0), &json!([])),
                "{context}"
            );
            assert_eq!(seen["styled"], "flex", "{context}: the policy lets its own style in");
            assert!(seen["wide"].as_i64().is_some_and(|wide| wide <= 0), "{context} is too wide: {seen}");
        }
        let complaints = self.log("browser").await;
        let expected = |entry: &&Value| {
            !(path == "/nothing" && entry["message"].as_str().is_some_and(|said| said.contains("404")))
        };
        assert_eq!(complaints.iter().filter(expected).count(), 0, "{path}: {complaints:?}");
        for entry in self.log("performance").await {
            let message: Value =
                serde_json::from_str(entry["message"].as_str().unwrap_or_default()).expect("it is JSON");
            let message = &message["message"];
            if message["method"] == "Network.requestWillBeSent" {
                let url = message["params"]["request"]["url"].as_str().unwrap_or_default();
                // Chromium's own first page may still be at it.
                let is_ours = message["params"]["documentURL"].as_str().is_some_and(|page| page.starts_with(base));
                assert!(url.starts_with(base) || !is_ours, "{path} asks for {url}");
            }
            assert_ne!(message["method"], "Page.javascriptDialogOpening", "{path} opens a dialog");
        }
    }

    async fn end(self) {
        self.call("DELETE", "", None).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

async fn check(found: &Filled) {
    let served = serve(settings(&found.database.url)).await;
    let (browser, base) = (Browser::start().await, format!("http://{}", served.address));
    for path in found.paths() {
        browser.look_at(&base, &path).await;
    }
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_words_are_only_words() {
    check(&filled(HOSTILE).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_without_an_end_do_not_break_the_layout() {
    check(&filled(&"W".repeat(2_000)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_ledger_is_a_page_like_any_other() {
    let database = database::fresh().await;
    let served = serve(settings(&database.url)).await;
    let (browser, base) = (Browser::start().await, format!("http://{}", served.address));
    for path in ["/", "/mail", "/stuck", "/stuck/orphans", "/stuck/quarantine", "/figures", "/figures?by=domain"] {
        browser.look_at(&base, path).await;
    }
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_has_stored_fits_on_a_phone_and_on_a_desk() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let settings = StorySettings::new(61, 200, datetime!(2026-10-05 08:00 UTC));
    let story = Story::tell(&StorySettings {
        mess: Mess { poison: 0.1, ..Mess::default() },
        profile: Profile::Small,
        ..settings
    });
    play(&database, &queue.handle, &story).await;
    let running = Running::start(&database.url, &queue.url, &["--visibility-timeout=30s"]).await;
    queue.drained().await;
    until("it told of itself", async || database.number("SELECT count(*) FROM ses_ledger_workers").await > 0).await;
    let id = async |sql: &str| database.text(sql).await;
    let paths = [
        "/".to_owned(),
        "/mail".to_owned(),
        "/mail?q=@example.net&status=bounced".to_owned(),
        format!(
            "/mail/{}",
            id("SELECT email_log_uuid::text FROM email_events WHERE event_type = 'bounce' LIMIT 1").await
        ),
        format!(
            "/mail/{}",
            id("SELECT email_log_uuid::text FROM email_events GROUP BY 1 ORDER BY count(*) DESC LIMIT 1").await
        ),
        "/stuck".to_owned(),
        "/stuck/orphans".to_owned(),
        format!("/stuck/orphan?id={}", id("SELECT aws_message_id FROM orphaned_events LIMIT 1").await),
        "/stuck/quarantine".to_owned(),
        format!(
            "/stuck/body/{}",
            id("SELECT uuid::text FROM quarantined_messages ORDER BY length(body) DESC LIMIT 1").await
        ),
        "/figures?from=2026-10-01".to_owned(),
        "/figures?by=template&from=2026-10-01".to_owned(),
        "/figures?by=domain&from=2026-10-01".to_owned(),
    ];
    let (browser, base) = (Browser::start().await, format!("http://{}", running.address().await));
    for path in &paths {
        browser.look_at(&base, path).await;
    }
    browser.end().await;
    running.stop().await;
}
