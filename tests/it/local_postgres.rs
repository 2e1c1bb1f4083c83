//! The private PostgreSQL, for real: it keeps its data, asks for its password, and leaves nothing behind.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ses_ledger::local::{
    binaries::Source,
    postgres::{LocalPostgres, LocalPostgresSettings, OriginChoice, StopMode},
};
use sqlx::{Connection, PgConnection};

fn settings() -> LocalPostgresSettings {
    LocalPostgresSettings {
        fsync: false,
        ..LocalPostgresSettings::new(
            env::var_os("PATH").unwrap_or_default(),
            env::temp_dir(),
            Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools"),
        )
    }
}

#[tokio::test]
async fn a_server_keeps_port_and_data_over_a_stop_and_a_crash() -> Result<()> {
    let mut server = LocalPostgres::start(settings()).await?;
    // Read by the test below, which kills this one about now.
    eprintln!("data in {}", server.data_dir().display());
    let url = server.url();
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::query("CREATE TABLE kept (number int)").execute(&mut connection).await?;
    for (number, mode) in [(1, StopMode::Fast), (2, StopMode::Immediate)] {
        sqlx::query("INSERT INTO kept VALUES ($1)").bind(number).execute(&mut connection).await?;
        server.stop(mode).await?;
        assert!(PgConnection::connect(&url).await.is_err());
        server.start_again().await?;
        assert_eq!(server.url(), url);
        connection = PgConnection::connect(&url).await?;
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(&mut connection).await?;
        assert_eq!(rows, i64::from(number));
    }
    assert!(server.start_again().await.is_err(), "it runs already");

    let data = server.data_dir();
    server.close().await?;
    assert!(!data.exists());
    assert!(PgConnection::connect(&url).await.is_err());
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_when_the_owner_is_killed() -> Result<()> {
    let mut owner = Command::new(env::current_exe()?)
        .args(["--exact", "--nocapture", "local_postgres::a_server_keeps_port_and_data_over_a_stop_and_a_crash"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let lines = BufReader::new(owner.stderr.take().context("piped")?).lines();
    let data = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("data in ").map(PathBuf::from));
    let data = data.context("the test above says where its data are")?;
    let server = server_of(&data)?;
    assert!(is_alive(&server));
    owner.kill()?;
    assert_eq!(owner.wait()?.signal(), Some(9), "it was killed in the middle");

    poll("its folder is left", || !data.exists() && data.parent().is_some_and(|folder| !folder.exists())).await;
    poll("its server is left", || !is_alive(&server)).await;
    Ok(())
}

#[tokio::test]
async fn a_kept_server_stays_when_its_owner_goes() -> Result<()> {
    let mut server = LocalPostgres::start(settings()).await?;
    let (url, data) = (server.url(), server.data_dir());
    server.keep()?;
    server.close().await?;
    let connected = PgConnection::connect(&url).await;

    let server = server_of(&data)?;
    assert!(kill("INT", &server), "it runs");
    poll("the server cannot be stopped", || !is_alive(&server)).await;
    fs::remove_dir_all(data.parent().context("the data are in a folder")?)?;
    connected?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_the_right_one_is_not_shown() -> Result<()> {
    let server = LocalPostgres::start(settings()).await?;
    let url = server.url();
    PgConnection::connect(&url).await?;
    // postgres://user:password@host:port/database
    let password = url.split([':', '@']).nth(2).context("a URL with a password")?;
    assert!(password.len() >= 32 && !format!("{server:?}").contains(password));
    let wrong = url.replace(password, "wrong");
    let error = PgConnection::connect(&wrong).await.expect_err("a wrong password").to_string();
    assert!(error.contains("password authentication failed"), "{error}");
    server.close().await
}

#[tokio::test]
async fn the_error_of_a_server_that_does_not_start_holds_its_log() {
    let mut settings = settings();
    settings.options = vec![("shared_buffers".to_owned(), "many".to_owned())];
    let error = LocalPostgres::start(settings).await.expect_err("no number").to_string();
    assert!(error.contains(r#"invalid value for parameter "shared_buffers""#), "{error}");
}

#[tokio::test]
async fn the_downloaded_server_works_and_is_kept_for_the_next_time() -> Result<()> {
    for _ in 0..2 {
        let mut settings = settings();
        settings.origin = OriginChoice::Download;
        let server = LocalPostgres::start(settings).await?;
        assert_eq!(server.origin().source, Source::Download);
        let mut connection = PgConnection::connect(&server.url()).await?;
        // What the index for searches needs, and upper case beyond ASCII.
        sqlx::query("CREATE EXTENSION pg_trgm").execute(&mut connection).await?;
        let upper: String = sqlx::query_scalar("SELECT upper('é')").fetch_one(&mut connection).await?;
        assert_eq!(upper, "É");
        server.close().await?;
    }
    Ok(())
}

/// The first line of a server's lock file: the id of its process.
fn server_of(data: &Path) -> Result<String> {
    let lock = fs::read_to_string(data.join("postmaster.pid"))?;
    Ok(lock.lines().next().context("the lock file is empty")?.to_owned())
}

fn is_alive(process: &str) -> bool {
    kill("0", process)
}

/// By the shell: `kill` as a program is missing on small systems.
fn kill(signal: &str, process: &str) -> bool {
    Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1""#, signal, process])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

async fn poll(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
