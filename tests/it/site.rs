//! The page: who may see it, what every answer carries, what it shows, and that nothing of a mail does anything in it.

mod in_a_browser;
mod of_the_binary;
mod with_figures;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ses_ledger::{
    http::{self, Health},
    postgres::PostgresSettings,
    site::{self, Keys, SiteSettings},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::database::{self, Database};

const HERE: [u8; 4] = [127, 0, 0, 1];
const EVERYWHERE: [u8; 4] = [0, 0, 0, 0];

/// Somebody else's words, wherever words can stand.
const HOSTILE: &str = "<script>document.title='pwned'</script>\"><img src=x onerror=alert(1)>'&lt;javascript:alert(2)\u{202e}\u{7}\u{200b}";

/// A site within the test process. Gone when its test lets go of it.
struct Served {
    address: SocketAddr,
    _stop: DropGuard,
}

struct Fine;

impl Health for Fine {
    fn alive(&self) -> Result<(), String> {
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

struct Response {
    status: u16,
    headers: BTreeMap<String, Vec<String>>,
    body: String,
}

impl Response {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |values| &values[0])
    }

    /// Where the first link with these words leads.
    fn link(&self, words: &str) -> Option<String> {
        let before =
            self.body.split(&format!(">{words}</a>")).next().filter(|before| before.len() < self.body.len())?;
        let href = before.rsplit_once("href=\"")?.1.split('"').next()?;
        Some(href.replace("&amp;", "&"))
    }
}

fn settings(url: &str) -> SiteSettings {
    let database = PostgresSettings::new(url);
    SiteSettings { ip: HERE.into(), database, queues: Vec::new(), keys: Keys::default(), mask: false }
}

/// Listens on this machine, whatever the settings say.
async fn serve(settings: SiteSettings) -> Served {
    let stop = CancellationToken::new();
    let router = site::router(settings).expect("the settings are good");
    let address =
        http::serve((HERE, 0).into(), Arc::new(Fine), None, router, stop.clone()).await.expect("a port is free");
    Served { address, _stop: stop.drop_guard() }
}

impl Served {
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let host = self.address.to_string();
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            request += &format!("Host: {host}\r\n");
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(self.address).await.expect("it is served");
        stream.write_all((request + "\r\n").as_bytes()).await.expect("it takes requests");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers with text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
        let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            headers.entry(name.to_lowercase()).or_default().push(value.to_owned());
        }
        Response { status, headers, body: body.to_owned() }
    }

    async fn get(&self, path: &str) -> Response {
        self.ask("GET", path, &[]).await
    }
}

/// What every answer of the site carries, and that its policy lets in the one style that it has.
fn assert_guarded(answer: &Response) {
    let style = answer.body.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>"));
    let digest = style.map(|(style, _)| BASE64_STANDARD.encode(Sha256::digest(style)));
    let policy = answer.header("content-security-policy");
    for part in ["default-src 'none'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.split("; ").any(|found| found == part), "{part} is missing in {policy}");
    }
    assert!(digest.is_none_or(|digest| policy.contains(&format!("style-src 'sha256-{digest}'"))), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("script-src") && !policy.contains("img-src"), "{policy}");
    let others = ["x-content-type-options", "referrer-policy", "cache-control", "x-frame-options"];
    assert_eq!(others.map(|name| answer.header(name)), ["nosniff", "no-referrer", "no-store", "DENY"]);
}

/// Every tag and attribute of the page is one of ours, and leads nowhere but to the site itself. So nothing that came
/// from outside is one: what is escaped holds no `<`.
fn assert_harmless(page: &str) {
    const TAGS: &str = "!DOCTYPE html head meta title style body header span nav a main footer h1 h2 p div svg line rect table thead \
                        tbody tfoot tr th td dl dt dd ul ol li form label input select option button code pre mark bdi br time \
                        strong blockquote";
    const ATTRIBUTES: &str = "html lang charset name content http-equiv class href aria-current aria-label aria-hidden role viewBox \
                              preserveAspectRatio x y x1 y1 x2 y2 width height data-is datetime method action type value \
                              placeholder size maxlength autocomplete selected title rel";
    for part in page.split('<').skip(1) {
        let tag = part.split_once('>').map(|(tag, _)| tag).expect("every tag ends");
        let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(TAGS.split_whitespace().any(|ours| ours == name.trim_start_matches('/')), "<{tag}>");
        while !rest.is_empty() {
            let (attribute, value, after) = match rest.split_once("=\"") {
                Some((attribute, rest)) if !attribute.contains(' ') => {
                    let (value, after) = rest.split_once('"').expect("a value ends");
                    (attribute, value, after)
                }
                _ => (rest.split(' ').next().unwrap_or(rest), "", rest.split_once(' ').map_or("", |(_, after)| after)),
            };
            assert!(ATTRIBUTES.split_whitespace().any(|ours| ours == attribute), "{attribute} in <{tag}>");
            if ["href", "action"].contains(&attribute) {
                assert!(value.starts_with('/') && !value.starts_with("//"), "{value} in <{tag}>");
            }
            rest = after.trim_start();
        }
    }
    let seen = page.chars().find(|c| {
        matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}') || (c.is_control() && *c != '\n')
    });
    assert_eq!(seen, None, "a character that nobody sees, or that turns the text around");
}

/// What a fresh database is filled with.
struct Filled {
    database: Database,
    mail: Uuid,
    body: Uuid,
}

impl Filled {
    /// Every kind of page, with something on it.
    fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = [
            "/",
            "/mail",
            "/mail?q=word",
            "/mail?q=@example.net&status=delivered",
            "/stuck",
            "/stuck/orphans",
            "/stuck/orphan?id=unknown-mail",
            "/stuck/quarantine",
            "/figures",
            "/figures?by=template",
            "/figures?by=campaign",
            "/figures?by=domain",
            "/nothing",
        ]
        .map(str::to_owned)
        .into();
        paths.extend([format!("/mail/{}", self.mail), format!("/stuck/body/{}", self.body)]);
        paths
    }
}

/// One mail with one event of some kinds, one orphan, one body in quarantine and one worker. `word` stands wherever
/// somebody else's words can stand.
async fn filled(word: &str) -> Filled {
    let database = database::fresh().await;
    let address = format!("{word}@example.net");
    let mail: Uuid = sqlx::query_scalar(
        "INSERT INTO email_logs (aws_message_id, sender, recipients, subject, template_name, campaign_id, configuration_set, sent_at, delivered_at, clicked_at)
         VALUES ('known-mail', $1, ARRAY[$1, 'b@example.net'], $2, $2, $2, $2, now(), now(), now()) RETURNING uuid",
    )
    .bind(&address)
    .bind(word)
    .fetch_one(&database.pool)
    .await
    .expect("a log row can be written");
    for kind in [
        "send",
        "delivery",
        "bounce",
        "complaint",
        "delivery_delay",
        "open",
        "click",
        "reject",
        "rendering_failure",
        word,
    ] {
        sqlx::query(
            "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, bounce_type, bounce_subtype, smtp_status,
               diagnostic, complaint_type, delay_type, link, ip, user_agent, bot, feedback_id, reporting_mta, payload, queue, sqs_message_id, received_at)
             VALUES ($1, $2, $3, now(), $4, $5, $5, $5, $5, $5, $5, $6, $5, $5, $5, $5, $5, '{}', $5, $5, now())",
        )
        .bind(Uuid::now_v7())
        .bind(mail)
        .bind(kind)
        .bind(&address)
        .bind(word)
        .bind(format!("javascript:alert(document.domain)//{word}"))
        .execute(&database.pool)
        .await
        .expect("an event can be written");
    }
    let payload = serde_json::json!({"mail": {"source": address, "timestamp": word, "commonHeaders": {"subject": word},
        "tags": {"ses:configuration-set": [word]}}});
    sqlx::query(
        "INSERT INTO orphaned_events (uuid, aws_message_id, event_type, occurred_at, recipient, bounce_type, smtp_status, diagnostic, payload, queue, sqs_message_id, received_at)
         VALUES ($1, 'unknown-mail', 'bounce', now(), $2, $3, $3, $3, $4::jsonb, $3, $3, now())",
    )
    .bind(Uuid::now_v7())
    .bind(&address)
    .bind(word)
    .bind(payload.to_string())
    .execute(&database.pool)
    .await
    .expect("an orphan can be written");
    let body = Uuid::now_v7();
    let bytes = [br#"{"eventType": "Bounce", "mail": {"messageId": ["#, word.as_bytes(), b"\xff\0]}}"].concat();
    sqlx::query(
        "INSERT INTO quarantined_messages (uuid, body, body_digest, stage, reason, failed_at, fingerprint, queue, sqs_message_id, receive_count, last_replayed_at, last_replay_outcome)
         VALUES ($1, $2, $2, 'decode', $3, '$.mail.messageId', $3, $3, $3, 1, now(), $3)",
    )
    .bind(body)
    .bind(bytes)
    .bind(word)
    .execute(&database.pool)
    .await
    .expect("a body can be written");
    sqlx::query(
        "INSERT INTO ses_ledger_workers VALUES ($1, $2, $2, 'other', ARRAY[$2], now(), now(), NULL, 7, 7, 0, 0, 0, 0, 0, 7, 7, 0, 0, 0, 0, 1, 2, NULL)",
    )
    .bind(Uuid::now_v7())
    .bind(word)
    .execute(&database.pool)
    .await
    .expect("a worker can be written");
    Filled { database, mail, body }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn who_comes_in_depends_on_the_address_and_the_key() {
    let database = database::fresh().await;
    let token = Some("correct-horse".to_owned());
    let login = Some(("ada".to_owned(), "pass:word".to_owned()));
    let doors = [
        (HERE, Keys::default()),
        (HERE, Keys { token: token.clone(), basic: None }),
        (EVERYWHERE, Keys::default()),
        (EVERYWHERE, Keys { token: token.clone(), basic: None }),
        (EVERYWHERE, Keys { token: None, basic: login.clone() }),
        (EVERYWHERE, Keys { token, basic: login }),
    ];
    let (right, wrong) = (basic("ada", "pass:word"), basic("ada", "password"));
    let tries = [
        ("", [200, 401, 403, 401, 401, 401]),
        ("Bearer correct-horse", [200, 200, 403, 200, 401, 200]),
        ("bearer correct-horse", [200, 200, 403, 200, 401, 200]),
        ("Bearer correct-horse2", [200, 401, 403, 401, 401, 401]),
        ("Bearer ", [200, 401, 403, 401, 401, 401]),
        ("correct-horse", [200, 401, 403, 401, 401, 401]),
        (&right, [200, 401, 403, 401, 200, 200]),
        (&wrong, [200, 401, 403, 401, 401, 401]),
        (&basic("", "correct-horse"), [200, 401, 403, 401, 401, 401]),
        ("Basic !", [200, 401, 403, 401, 401, 401]),
    ];
    for (door, (ip, keys)) in doors.into_iter().enumerate() {
        let served = serve(SiteSettings { ip: IpAddr::from(ip), keys: keys.clone(), ..settings(&database.url) }).await;
        for (given, expected) in &tries {
            let answer = served.ask("GET", "/figures", &[("Authorization", given)]).await;
            assert_eq!(answer.status, expected[door], "door {door}, {given:?}");
            assert_guarded(&answer);
            assert_eq!(answer.body.contains("What is counted"), answer.status == 200, "door {door}, {given:?}");
            let asked: BTreeSet<&str> = answer
                .headers
                .get("www-authenticate")
                .into_iter()
                .flatten()
                .filter_map(|s| s.split(' ').next())
                .collect();
            let schemes = [keys.token.is_some().then_some("Bearer"), keys.basic.is_some().then_some("Basic")];
            let schemes: BTreeSet<&str> = schemes.into_iter().flatten().collect();
            assert_eq!(asked, if answer.status == 401 { schemes } else { BTreeSet::new() }, "door {door}");
        }
        for probe in ["/livez", "/readyz"] {
            assert_eq!(served.get(probe).await.status, 200, "door {door}: probes are open");
        }
    }
}

#[tokio::test]
async fn a_closed_page_says_what_to_set() {
    let database = database::fresh().await;
    let served = serve(SiteSettings { ip: EVERYWHERE.into(), ..settings(&database.url) }).await;
    for path in ["/", "/mail?q=ada@example.net", "/nothing"] {
        let answer = served.get(path).await;
        assert_eq!(answer.status, 403);
        for name in ["SITE_TOKEN", "SITE_USER", "SITE_PASSWORD", "HTTP_ADDRESS"] {
            assert!(answer.body.contains(name), "not a word of {name}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn every_answer_carries_the_same_policy() {
    let found = filled("word").await;
    let served = serve(settings(&found.database.url)).await;
    let wrong = [
        "/mail/none",
        "/stuck/body/none",
        "/mail?after=none",
        "/figures?by=none",
        "/figures?from=none",
        "/mail?q=%ff",
        "/mail?status=none",
    ];
    for path in found.paths().into_iter().chain(wrong.map(str::to_owned)) {
        for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
            let answer = served.ask(method, &path, &[]).await;
            assert_guarded(&answer);
            let expected: &[u16] = match (method, &*path) {
                ("GET" | "HEAD", "/nothing" | "/mail/none" | "/stuck/body/none") => &[404],
                ("GET" | "HEAD", path) if wrong.contains(&path) => &[400, 200],
                ("GET" | "HEAD", _) => &[200],
                _ => &[405],
            };
            assert!(expected.contains(&answer.status), "{method} {path}: {}", answer.status);
            assert_eq!(answer.header("allow"), if answer.status == 405 { "GET, HEAD" } else { "" });
            assert_eq!(answer.body.is_empty(), method == "HEAD", "{method} {path}");
        }
    }
}

#[tokio::test]
async fn on_this_machine_it_answers_to_its_own_names_only() {
    let database = database::fresh().await;
    let served = serve(settings(&database.url)).await;
    let hosts = [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:9464", 200),
        ("example.net", 421),
        ("127.0.0.1.example.net", 421),
        ("", 421),
    ];
    for (host, status) in hosts {
        let answer = served.ask("GET", "/figures", &[("Host", host)]).await;
        assert_eq!(answer.status, status, "{host}");
        assert_guarded(&answer);
    }
    assert_eq!(served.ask("GET", "http://example.net/figures", &[]).await.status, 421);
    assert_eq!(served.ask("GET", "/livez", &[("Host", "example.net")]).await.status, 200, "probes have no names");
}

#[tokio::test]
async fn nothing_of_a_mail_does_anything_in_a_page() {
    for word in [HOSTILE.to_owned(), "<".repeat(10_240), format!("{HOSTILE}{}", "\u{202e}\u{feff}é".repeat(3_000))] {
        let found = filled(&word).await;
        let served = serve(settings(&found.database.url)).await;
        for path in found.paths() {
            let answer = served.get(&path).await;
            assert_eq!(answer.status, if path == "/nothing" { 404 } else { 200 }, "{path}");
            assert_harmless(&answer.body);
            assert!(answer.body.len() < 400_000, "{path} has {} bytes", answer.body.len());
        }
    }
    let found = filled(HOSTILE).await;
    let served = serve(settings(&found.database.url)).await;
    for path in ["/mail", "/stuck/quarantine", "/figures?by=template", "/"] {
        let page = served.get(path).await.body;
        assert!(page.contains("&lt;script&gt;document.title='pwned'"), "it is there to be read: {path} {page}");
        assert!(page.contains("U+202E"), "what cannot be seen is told: {path}");
    }
}

#[tokio::test]
async fn what_is_asked_comes_back_as_text() {
    let database = database::fresh().await;
    let served = serve(settings(&database.url)).await;
    let hostile: String = url::form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
    for path in [
        "/mail?q=",
        "/mail?template=",
        "/mail?from=",
        "/mail?status=",
        "/figures?by=",
        "/figures?from=",
        "/figures?campaign=",
        "/stuck/quarantine?reason=",
        "/stuck/orphan?id=",
        "/mail/",
        "/",
    ] {
        assert_harmless(&served.get(&format!("{path}{hostile}")).await.body);
    }
    let long = "x".repeat(10_240);
    assert_eq!(served.get(&format!("/mail?q={long}")).await.status, 400);
}

#[tokio::test]
async fn a_failing_place_is_marked_and_bytes_that_are_no_text_are_told() {
    let found = filled("word").await;
    let served = serve(settings(&found.database.url)).await;
    let page = served.get(&format!("/stuck/body/{}", found.body)).await.body;
    assert!(page.contains("<mark>") && page.contains("byte FF"), "{page}");
    let command = format!("ses-ledger quarantine replay --dry-run {}", found.body);
    assert!(page.contains(&command), "{page}");
}

#[tokio::test]
async fn masked_pages_name_nobody() {
    let found = filled("secretword").await;
    let served = serve(SiteSettings { mask: true, ..settings(&found.database.url) }).await;
    let mail = served.get(&format!("/mail/{}", found.mail)).await.body;
    assert!(mail.contains("s…@e….net") && mail.contains("(masked)"), "{mail}");
    for path in found.paths() {
        let page = served.get(&path).await.body;
        for told in ["secretword@", "b@example.net", "javascript:alert", "eventType"] {
            assert!(!page.contains(told), "{path} tells {told}: {page}");
        }
    }
    let subjects = served.get("/mail?template=secretword").await.body;
    let rows = subjects.split_once("<tbody>").expect("the mail is found").1;
    assert_eq!(
        rows.matches("secretword").count(),
        rows.matches("<span class=\"small faint\"><bdi>secretword").count(),
        "only the template's name: {rows}"
    );
}

#[tokio::test]
async fn pages_follow_each_other_without_a_gap_or_a_repeat() {
    let database = database::fresh().await;
    database.run("INSERT INTO email_logs (recipients, subject) SELECT ARRAY['a' || n || '@example.net'], 'mail ' || n FROM generate_series(1, 120) AS n").await;
    database.run("INSERT INTO quarantined_messages (uuid, body, body_digest, stage, reason, failed_at, fingerprint, queue, sqs_message_id, receive_count)
                  SELECT ses_ledger_uuid_v7(), n::text::bytea, n::text::bytea, 'decode', 'not_json', '$', 'not_json:$', 'q', 'm', 1 FROM generate_series(1, 120) AS n").await;
    database.run("INSERT INTO orphaned_events (uuid, aws_message_id, event_type, occurred_at, queue, sqs_message_id, received_at)
                  SELECT ses_ledger_uuid_v7(), 'orphan-' || n, 'send', now(), 'q', 'm', now() FROM generate_series(1, 120) AS n").await;
    let served = serve(settings(&database.url)).await;
    for (path, mark) in [
        ("/mail?q=mail", "href=\"/mail/"),
        ("/stuck/quarantine?reason=not_json", "href=\"/stuck/body/"),
        ("/stuck/orphans", "href=\"/stuck/orphan?id="),
    ] {
        let (mut seen, mut sizes, mut next) = (BTreeSet::new(), Vec::new(), Some(path.to_owned()));
        while let Some(path) = next {
            let page = served.get(&path).await;
            let found: Vec<String> =
                page.body.split(mark).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect();
            sizes.push(found.len());
            seen.extend(found);
            next = page.link("Next page »");
        }
        assert_eq!((seen.len(), sizes.iter().sum::<usize>()), (120, 120), "{path}: {sizes:?}");
        assert!(sizes.len() == 3 && sizes[0] == 50, "{path}: {sizes:?}");
    }
}

#[tokio::test]
async fn an_empty_ledger_says_so() {
    let database = database::fresh().await;
    let served = serve(settings(&database.url)).await;
    let pages = [
        ("/", "None has written a heartbeat"),
        ("/mail", "No mail is found"),
        ("/stuck", "Every event has found its mail"),
        ("/stuck/quarantine", "There are no more"),
        ("/figures", "No mails in this time"),
    ];
    for (path, words) in pages {
        let answer = served.get(path).await;
        assert!(answer.status == 200 && answer.body.contains(words), "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn without_a_database_it_says_so_and_without_the_schema_what_is_missing() {
    let gone = serve(settings("postgres://nobody@127.0.0.1:1/none")).await;
    let empty = database::empty().await;
    let bare = serve(settings(&empty.url)).await;
    for path in ["/", "/mail", "/stuck", "/figures"] {
        let answer = gone.get(path).await;
        assert!(answer.status == 503 && answer.body.contains("The database is not there"), "{path}: {}", answer.body);
        assert_guarded(&answer);
        let answer = bare.get(path).await;
        assert!(answer.status == 503 && answer.body.contains("ses-ledger migrate verify"), "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn what_takes_too_long_is_cut_short_and_a_shorter_time_is_offered() {
    let database = database::fresh().await;
    let served = serve(settings(&database.url)).await;
    let mut blocker = database.pool.begin().await.expect("the database is there");
    let lock = "LOCK TABLE email_logs, orphaned_events, quarantined_messages IN ACCESS EXCLUSIVE MODE";
    sqlx::query(lock).execute(&mut *blocker).await.expect("the tables are there");
    let pages = [
        ("/figures?from=90d", "/figures?from=7d"),
        ("/mail?q=word&from=90d", "/mail?q=word&amp;from=1h"),
        ("/stuck", "ses-ledger orphans list"),
    ];
    for (path, offered) in pages {
        let started = std::time::Instant::now();
        let answer = served.get(path).await;
        assert!(answer.status == 200 && answer.body.contains(offered), "{path}: {} {}", answer.status, answer.body);
        assert!(started.elapsed() < Duration::from_secs(10), "{path} took {:?}", started.elapsed());
    }
    blocker.rollback().await.expect("nothing was done");
    assert!(served.get("/figures").await.body.contains("No mails in this time"));
}

#[tokio::test]
async fn a_login_that_may_only_read_is_enough_for_every_page() {
    let found = filled("word").await;
    found.database.run("DO $$ BEGIN CREATE ROLE page_reader LOGIN PASSWORD 'reads' IN ROLE ses_ledger_operator; EXCEPTION WHEN duplicate_object THEN NULL; END $$").await;
    let (_, place) = found.database.url.split_once('@').expect("the URL names a host");
    let served = serve(settings(&format!("postgres://page_reader:reads@{place}"))).await;
    for path in found.paths() {
        let answer = served.get(&path).await;
        assert_eq!(answer.status, if path == "/nothing" { 404 } else { 200 }, "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn whatever_a_question_does_nothing_is_changed() {
    let database = database::fresh().await;
    database.run("CREATE TABLE changes (at timestamptz)").await;
    database.run("INSERT INTO email_logs (subject) VALUES ('word')").await;
    // A question that would change something: only the connection stands in its way.
    database
        .run(
            "CREATE OR REPLACE FUNCTION ses_ledger_uuid_floor(at timestamptz) RETURNS uuid LANGUAGE plpgsql VOLATILE AS
             $$ BEGIN INSERT INTO changes VALUES (at); RETURN '00000000-0000-0000-0000-000000000000'; END $$",
        )
        .await;
    let served = serve(settings(&database.url)).await;
    assert_eq!(served.get("/figures").await.status, 500);
    assert_eq!(database.number("SELECT count(*) FROM changes").await, 0);
}
