//! A PostgreSQL that speaks TLS, with certificates of an authority that nobody knows.
//!
//! It is reached as 0.0.0.0, which is this machine for the system, and another one for us.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use ses_ledger::{
    local::postgres::{LocalPostgres, StopMode},
    pipeline::Store as _,
    postgres::{ConnectError, Postgres, PostgresSettings},
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::database;

const ELSEWHERE: &str = "0.0.0.0";

#[tokio::test]
async fn a_server_elsewhere_is_only_believed_if_its_certificate_is_right() {
    let mut server = Server::start(ELSEWHERE).await;
    let trusted = format!("sslrootcert={}", server.roots.display());
    server.lets_in("", &trusted).await;
    server.lets_in("sslmode=require", "").await;
    server.lets_in("sslmode=verify-ca", &trusted).await;

    let unknown = [("", ""), ("sslmode=verify-full", ""), ("sslmode=verify-ca", "")];
    for (mode, roots) in unknown {
        let error = server.refused(mode, roots).await;
        assert!(error.contains("UnknownIssuer") && error.contains("?sslrootcert=FILE"), "{error}");
    }

    server.show_certificate_of("db.example.com").await;
    let error = server.refused("", &trusted).await;
    assert!(error.contains(ELSEWHERE) && error.contains("use the name in its certificate"), "{error}");
    server.lets_in("sslmode=verify-ca", &trusted).await;
}

#[tokio::test]
async fn roots_may_be_named_by_a_setting_as_well() {
    let server = Server::start(ELSEWHERE).await;
    let settings =
        PostgresSettings { root_cert: Some(server.roots.clone()), ..PostgresSettings::new(&server.url("", "")) };
    let postgres = Postgres::new(&settings).expect("the URL is good");
    postgres.try_connect().await.expect("the server's certificate is right");
}

#[tokio::test]
async fn a_server_without_tls_is_only_believed_here_or_if_that_is_meant() {
    let url = database::empty().await.url;
    let elsewhere = url.replace("127.0.0.1", ELSEWHERE);
    connect(&url).await.expect("nobody else can listen in on the loopback address");
    connect(&format!("{elsewhere}?sslmode=disable")).await.expect("it is meant");
    for mode in ["", "?sslmode=require", "?sslmode=verify-full"] {
        let error = connect(&format!("{elsewhere}{mode}")).await.expect_err("it does not speak TLS");
        assert!(error.is_final(), "{error}");
        assert!(error.to_string().contains("?sslmode=disable to DATABASE_URL"), "{error}");
    }
    connect(&format!("{url}?sslmode=verify-full")).await.expect_err("TLS is meant");
}

async fn connect(url: &str) -> Result<(), ConnectError> {
    let postgres = Postgres::new(&PostgresSettings::new(url)).expect("the URL is good");
    let outcome = postgres.try_connect().await;
    postgres.close().await;
    outcome
}

/// A server with an authority of its own.
struct Server {
    local: LocalPostgres,
    authority: Issuer<'static, KeyPair>,
    /// The authority's certificate.
    roots: PathBuf,
}

impl Server {
    async fn start(name: &str) -> Self {
        let local = LocalPostgres::start(database::local_settings()).await.expect("there is a PostgreSQL");
        let key = KeyPair::generate().expect("a key can be made");
        let mut authority = CertificateParams::new([]).expect("there is no name to dislike");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&key).expect("the key is good").pem();
        let roots = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("roots-{}.pem", local.port()));
        fs::write(&roots, certificate).expect("the folder is for such files");
        let mut server = Self { local, authority: Issuer::new(authority, key), roots };
        server.show_certificate_of(name).await;
        server
    }

    /// From now on.
    async fn show_certificate_of(&mut self, name: &str) {
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = CertificateParams::new([name.to_owned()]).expect("the name is good");
        let certificate = certificate.signed_by(&key, &self.authority).expect("the key is good").pem();
        let mut admin = PgConnection::connect(&self.local.url()).await.expect("it runs");
        // The server writes the files itself: they have to be its user's own.
        let write = |file: &str, text: String| {
            let lines = text.lines().map(|line| format!("('{line}')")).collect::<Vec<_>>().join(", ");
            format!("COPY (VALUES {lines}) TO PROGRAM 'umask 077; cat >{file}'")
        };
        for statement in [
            write("server.key", key.serialize_pem()),
            write("server.crt", certificate),
            "ALTER SYSTEM SET ssl = on".to_owned(),
        ] {
            admin.execute(AssertSqlSafe(statement)).await.expect("it may write to its own folder");
        }
        self.local.stop(StopMode::Fast).await.expect("it runs");
        self.local.start_again().await.expect("its files are good");
    }

    fn url(&self, mode: &str, roots: &str) -> String {
        let (login, place) =
            self.local.url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("it names a user");
        format!("{login}@{}?{mode}&{roots}", place.replace("127.0.0.1", ELSEWHERE))
    }

    /// It does, over TLS.
    async fn lets_in(&self, mode: &str, roots: &str) {
        let postgres = Postgres::new(&PostgresSettings::new(&self.url(mode, roots))).expect("the URL is good");
        postgres.try_connect().await.unwrap_or_else(|e| panic!("{mode} {roots}: {e}"));
        let mut admin = PgConnection::connect(&self.local.url()).await.expect("it runs");
        postgres.ping().await.expect("it was just there");
        let over_tls = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'ses-ledger'";
        let over_tls: Option<bool> = sqlx::query_scalar(over_tls).fetch_one(&mut admin).await.expect("it runs");
        assert_eq!(over_tls, Some(true), "{mode} {roots}");
        postgres.close().await;
    }

    /// We do, for good.
    async fn refused(&self, mode: &str, roots: &str) -> String {
        let error = connect(&self.url(mode, roots)).await.expect_err("the certificate is not right");
        assert!(error.is_final(), "{error}");
        error.to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.roots);
    }
}
