//! Against a server that only knows how to let somebody in, over TLS, and a service that only knows one secret.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_credential_types::Credentials;
use axum::{Router, http::HeaderMap, routing::post};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
};
use sqlx::{
    ConnectOptions as _, PgPool,
    pool::PoolConnection,
    postgres::{PgPoolOptions, Postgres},
};

use super::{Iam, Login, LoginError, PostgresSettings, Secret, Source, Target, Url, is_refused};

#[tokio::test]
async fn a_token_is_made_for_who_logs_in_and_not_again_within_ten_minutes() {
    let server = Server::start();
    let client = Client::of(&server, Some(iam()), None);
    let first = client.connect().await.expect("everybody is let in");
    client.pass(Duration::from_secs(599));
    let second = client.connect().await.expect("everybody is let in");
    drop((first, second));
    // On Lambda: nothing runs for long, and then there is work.
    client.pass(Duration::from_secs(1));
    let fresh: Vec<_> = futures_util::future::join_all((0..4).map(|_| client.connect())).await;
    assert!(fresh.iter().all(Result::is_ok));
    let seen = server.passwords();
    let token_of = async |seconds| {
        let options = client.target().options(None).expect("the URL is good");
        iam().token(&options, START + Duration::from_secs(seconds)).await.expect("all is given").text
    };
    assert_eq!(seen[..2], [token_of(0).await, token_of(0).await]);
    assert!(seen.len() > 2 && seen[2..].iter().all(|seen| seen.contains("X-Amz-Expires=900")));
    let new = token_of(600).await;
    assert!(seen[2..].iter().all(|seen| *seen == new), "a new one for all that log in later");
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_before_its_time() {
    let server = Server::start();
    let client = Client::of(&server, Some(iam()), None);
    let _held = client.connect().await.expect("everybody is let in");
    client.pass(Duration::from_secs(60));
    let old = server.passwords().remove(0);
    server.refuse(&old);
    let _new = client.connect().await.expect("the new token is not refused");
    assert_eq!(server.passwords().len(), 3, "one refused, one let in");
}

#[tokio::test]
async fn a_replaced_password_is_read_again_while_old_connections_live_on() {
    let (server, service) = (Server::start(), Service::start("old").await);
    let client = Client::of(&server, None, Some(&service));
    server.let_in("old");
    let held = client.connect().await.expect("the secret is right");
    assert_eq!(service.reads(), 1);
    client.pass(Duration::from_secs(3600));
    service.replace("new");
    server.let_in("new");
    let all = futures_util::future::join_all((0..6).map(|_| client.connect())).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(service.reads(), 2, "one for all that were refused");
    assert_eq!(server.passwords().last().map(String::as_str), Some("new"));
    drop((held, all));
}

#[tokio::test]
async fn a_secret_that_lags_behind_is_not_read_more_than_once_in_ten_seconds() {
    let (server, service) = (Server::start(), Service::start("old").await);
    let client = Client::of(&server, None, Some(&service));
    server.let_in("old");
    drop(client.connect().await.expect("the secret is right"));
    server.let_in("new");
    let (mut refused, held) = (0, client.hold().await);
    for _ in 0..40 {
        client.pass(Duration::from_secs(1));
        refused += usize::from(client.connect().await.is_err_and(|e| is_refused(&e)));
    }
    assert_eq!(refused, 40);
    assert_eq!(service.reads(), 1 + 4);
    service.replace("new");
    client.pass(Duration::from_secs(10));
    client.connect().await.expect("the secret is right again");
    drop(held);
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_says_whether_waiting_helps() {
    let (server, service) = (Server::start(), Service::start("old").await);
    for (answer, is_final) in [("InternalServiceError", false), ("AccessDeniedException", true)] {
        service.fail(answer);
        let client = Client::of(&server, None, Some(&service));
        let error = client.connect().await.expect_err("there is no password");
        let sqlx::Error::Configuration(error) = error else { panic!("{error}") };
        let error = error.downcast_ref::<LoginError>().expect("it is ours");
        assert_eq!(error.is_final, is_final, "{error}");
        assert!(error.to_string().contains(answer) && error.to_string().contains(SECRET), "{error}");
    }
    assert!(server.passwords().is_empty(), "nobody tried to log in");
}

#[test]
fn the_secret_wins_over_the_urls_user_and_fills_in_what_the_url_leaves_out() {
    let secret = |text: &str| serde_json::from_str::<Secret>(text).expect("it is complete");
    let full = secret(r#"{"username":"su","password":"sp","host":"sh.example.com","port":6000,"dbname":"sd"}"#);
    let told = |url: Option<&str>, secret: &Secret| {
        let settings = PostgresSettings { url: url.map(str::to_owned), ..PostgresSettings::new("") };
        let target = Target::read(&settings).expect("the URL is good");
        target.options(Some(secret)).expect("TLS is no question").to_url_lossy()
    };
    let place = |url: &Url| {
        format!(
            "{}@{}:{}{}",
            url.username(),
            url.host_str().unwrap_or_default(),
            url.port().unwrap_or(5432),
            url.path()
        )
    };
    for (url, expected) in [
        (None, "su@sh.example.com:6000/sd"),
        (Some("postgres://uu:up@uh.example.com:7000/ud"), "su@uh.example.com:7000/ud"),
        (Some("postgres:///ud"), "su@sh.example.com:6000/ud"),
        (Some("postgres://uh.example.com"), "su@uh.example.com:6000/sd"),
        (Some("postgres:///?host=uh.example.com&port=7000&dbname=ud"), "su@uh.example.com:7000/ud"),
    ] {
        let url = told(url, &full);
        assert_eq!(place(&url), expected);
        assert_eq!(url.password(), Some("sp"));
        // Only now it is known that the server is elsewhere.
        assert!(url.query_pairs().any(|(key, value)| key == "sslmode" && value == "verify-full"), "{expected}");
    }
    let short = secret(r#"{"username":"su","password":"sp"}"#);
    assert_eq!(place(&told(Some("postgres://uh.example.com/ud"), &short)), "su@uh.example.com:5432/ud");
}

const START: SystemTime = UNIX_EPOCH;
const SECRET: &str = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:database-AbCdEf";

fn iam() -> Iam {
    Iam::with(Credentials::new("AKIAIOSFODNN7EXAMPLE", "secret", None, None, "test"), Some("eu-west-1"))
}

/// A login and its pool, with a clock that only moves when it is told to.
struct Client {
    login: Login,
    pool: PgPool,
    url: String,
    passed: Arc<AtomicU64>,
}

impl Client {
    fn of(server: &Server, iam: Option<Iam>, service: Option<&Service>) -> Self {
        let url = format!("postgres://worker:unused@127.0.0.1:{}/db?sslmode=require", server.port);
        let passed = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&passed);
        let login = Login {
            target: Target::read(&PostgresSettings::new(&url)).expect("the URL is good"),
            secret: service.map(|service| Source::at(SECRET, &service.url)),
            iam,
            known: tokio::sync::Mutex::default(),
            clock: Box::new(move || START + Duration::from_secs(clock.load(Ordering::Relaxed))),
        };
        let options = login.first_options().expect("the URL is good");
        let pool = PgPoolOptions::new().max_connections(20).connect_lazy_with(options);
        Self { login, pool, url, passed }
    }

    fn target(&self) -> Target {
        Target::read(&PostgresSettings::new(&self.url)).expect("the URL is good")
    }

    fn pass(&self, time: Duration) {
        self.passed.fetch_add(time.as_secs(), Ordering::Relaxed);
    }

    async fn connect(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        self.login.connect(&self.pool, || self.pool.acquire()).await
    }

    /// Takes the connections that are there, so that the next one has to log in.
    async fn hold(&self) -> Vec<PoolConnection<Postgres>> {
        let mut held = Vec::new();
        while (held.len() as u32) < self.pool.size() {
            held.extend(self.pool.try_acquire());
            tokio::task::yield_now().await;
        }
        held
    }
}

/// Lets in whoever has the right password, and remembers all that were tried.
struct Server {
    port: u16,
    doorman: Arc<Mutex<Doorman>>,
}

#[derive(Default)]
struct Doorman {
    right: Option<String>,
    wrong: Option<String>,
    seen: Vec<String>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let own = rcgen::generate_simple_self_signed(["server".to_owned()]).expect("a certificate can be made");
        let key = PrivateKeyDer::from_pem_slice(own.signing_key.serialize_pem().as_bytes()).expect("it is a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows them")
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .expect("the key is the certificate's");
        let (config, doorman) = (Arc::new(config), Arc::<Mutex<Doorman>>::default());
        thread::spawn({
            let doorman = Arc::clone(&doorman);
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let (config, doorman) = (Arc::clone(&config), Arc::clone(&doorman));
                    thread::spawn(move || serve(stream, config, &doorman));
                }
            }
        });
        Self { port, doorman }
    }

    fn doorman(&self) -> MutexGuard<'_, Doorman> {
        self.doorman.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_in(&self, password: &str) {
        self.doorman().right = Some(password.to_owned());
    }

    fn refuse(&self, password: &str) {
        self.doorman().wrong = Some(password.to_owned());
    }

    fn passwords(&self) -> Vec<String> {
        self.doorman().seen.clone()
    }
}

impl Doorman {
    fn lets_in(&mut self, password: String) -> bool {
        let is_right = self.right.as_ref().is_none_or(|right| *right == password);
        let is_wrong = self.wrong.as_ref() == Some(&password);
        self.seen.push(password);
        is_right && !is_wrong
    }
}

/// See <https://www.postgresql.org/docs/current/protocol-flow.html>.
fn serve(mut stream: TcpStream, config: Arc<ServerConfig>, doorman: &Mutex<Doorman>) -> io::Result<()> {
    const READY: &[u8] = b"Z\0\0\0\x05I";
    body(&mut stream)?; // may we speak TLS?
    stream.write_all(b"S")?;
    let tls = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(tls, stream);
    body(&mut stream)?; // who it is, and where to
    stream.write_all(b"R\0\0\0\x08\0\0\0\x03")?;
    stream.read_exact(&mut [0])?;
    let password = body(&mut stream)?;
    let password = String::from_utf8_lossy(password.strip_suffix(b"\0").unwrap_or(&password)).into_owned();
    if !doorman.lock().unwrap_or_else(PoisonError::into_inner).lets_in(password) {
        let error = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0";
        stream.write_all(b"E")?;
        stream.write_all(&(error.len() as u32 + 4).to_be_bytes())?;
        return stream.write_all(error);
    }
    stream.write_all(b"R\0\0\0\x08\0\0\0\0")?;
    stream.write_all(READY)?;
    // From now on the pool only asks whether we are there.
    loop {
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        body(&mut stream)?;
        if &kind == b"S" {
            stream.write_all(READY)?;
        }
    }
}

/// A message after its kind: a length that counts itself, and the rest.
fn body(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// Secrets Manager, with one secret.
struct Service {
    url: String,
    says: Arc<Mutex<Result<String, String>>>,
    reads: Arc<AtomicUsize>,
}

impl Service {
    async fn start(password: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let says = Arc::new(Mutex::new(Ok(password.to_owned())));
        let reads = Arc::<AtomicUsize>::default();
        let answer = {
            let (says, reads) = (Arc::clone(&says), Arc::clone(&reads));
            async move |headers: HeaderMap, body: String| {
                assert_eq!(headers["x-amz-target"], "secretsmanager.GetSecretValue");
                assert!(body.contains(SECRET), "{body}");
                reads.fetch_add(1, Ordering::Relaxed);
                let says = says.lock().unwrap_or_else(PoisonError::into_inner).clone();
                match says {
                    Ok(password) => {
                        let secret = serde_json::json!({ "username": "worker", "password": password }).to_string();
                        (axum::http::StatusCode::OK, serde_json::json!({ "SecretString": secret }).to_string())
                    }
                    Err(code) => {
                        (axum::http::StatusCode::BAD_REQUEST, serde_json::json!({ "__type": code }).to_string())
                    }
                }
            }
        };
        tokio::spawn(async { axum::serve(listener, Router::new().route("/", post(answer))).await });
        Self { url, says, reads }
    }

    fn replace(&self, password: &str) {
        *self.says.lock().unwrap_or_else(PoisonError::into_inner) = Ok(password.to_owned());
    }

    fn fail(&self, code: &str) {
        *self.says.lock().unwrap_or_else(PoisonError::into_inner) = Err(code.to_owned());
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}
