//! A pooler between the worker and the server: PgBouncer, which lends each transaction whichever of its two connections
//! is free.

use std::{
    env, fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ses_ledger::{
    local::{
        guard::{Guard, GuardSettings, free_port},
        postgres::unprivileged_user,
        story::{Story, StorySettings},
    },
    pipeline::{Store as _, StoreError},
    postgres::{Pooler, Postgres, PostgresSettings, migrations},
};
use sqlx::{
    PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use time::macros::datetime;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{Running, end_of, play, ses_ledger, swept, until};
use crate::{
    arrivals::{arrivals, opened},
    database::{self, Database},
    truth::assert_exact,
    worker::Queue,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_story_becomes_an_exact_history_over_two_connections_that_everybody_shares() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let bouncer = Bouncer::start(&database).await;
    let story = Story::tell(&StorySettings::new(51, 200, datetime!(2026-10-05 08:00 UTC)));
    let pooled = ["--database-pooler=transaction", "--database-connections=6", "--batch-size=50"];
    let running = [
        Running::start(&bouncer.url, &queue.url, &pooled).await,
        Running::start(&bouncer.url, &queue.url, &pooled).await,
    ];
    play(&database, &queue.handle, &story).await;
    queue.drained().await;
    swept(&database, &story).await;
    for running in running {
        let log = running.log();
        assert!(!log.contains(r#""level":"WARN""#) && !log.contains(r#""level":"ERROR""#), "{log}");
        running.stop().await;
    }
    assert_exact(&database, &story.truth).await;
    bouncer.nothing_is_left_on_its_connections().await;
}

#[tokio::test]
async fn without_the_setting_a_pooler_refuses_us() {
    let database = database::fresh().await;
    let bouncer = Bouncer::start(&database).await;
    let postgres = Postgres::new(&PostgresSettings::new(&bouncer.url)).expect("the URL is good");
    let error = postgres.try_connect().await.expect_err("PgBouncer takes no settings of a session");
    assert!(error.to_string().contains("unsupported startup parameter"), "{error}");
    bouncer.store().try_connect().await.expect("it takes us without");
}

#[tokio::test]
async fn the_settings_hold_in_each_transaction_all_the_same() {
    let database = database::empty().await;
    let own = PostgresSettings { schema: Some("ledger".to_owned()), ..PostgresSettings::new(&database.url) };
    migrations::up(&Postgres::new(&own).expect("the URL is good")).await.expect("the schema is made");
    let bouncer = Bouncer::start(&database).await;
    let store = bouncer.store_with(PostgresSettings {
        schema: own.schema,
        statement_timeout: Duration::from_millis(300),
        ..PostgresSettings::new(&bouncer.url)
    });
    let events = arrivals([opened("m", 1)]);
    store.insert(&events, &[]).await.expect("the tables are found");
    assert_eq!(database.number("SELECT count(*) FROM ledger.orphaned_events").await, 1);

    let mut lock = database.pool.begin().await.expect("it is connected");
    sqlx::query("LOCK TABLE ledger.orphaned_events").execute(&mut *lock).await.expect("nobody else has it");
    let waited = store.insert(&arrivals([opened("m", 2)]), &[]).await;
    let Err(StoreError::Transient(error)) = waited else { panic!("it has to wait too long: {waited:?}") };
    assert!(error.to_string().contains("statement timeout"), "{error}");
    lock.rollback().await.expect("it is connected");
    store.insert(&arrivals([opened("m", 2)]), &[]).await.expect("now it may");
    bouncer.nothing_is_left_on_its_connections().await;
}

#[tokio::test]
async fn migrations_are_refused_over_a_pooler_and_the_rest_works() {
    let database = database::fresh().await;
    let bouncer = Bouncer::start(&database).await;
    let migrate = async |what: &str| {
        let mut command = ses_ledger(["migrate", what]);
        command.env("DATABASE_URL", &bouncer.url).env("DATABASE_POOLER", "transaction");
        end_of(command).await
    };
    for what in ["up", "down"] {
        let ended = migrate(what).await;
        assert_eq!(ended.code, Some(64), "{}", ended.err);
        assert!(ended.err.contains("DATABASE_POOLER"), "{}", ended.err);
    }
    for what in ["status", "verify"] {
        let ended = migrate(what).await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    }
}

/// A round trip across regions is tens of milliseconds.
#[tokio::test]
async fn a_batch_is_one_round_trip_over_our_own_connection_and_four_over_a_poolers() {
    for (pooler, round_trips) in [(Pooler::None, 1), (Pooler::Transaction, 4)] {
        let database = database::fresh().await;
        let line = Line::to(&database).await;
        let settings = PostgresSettings { pooler, connections: 1, ..PostgresSettings::new(&line.url) };
        let store = Postgres::new(&settings).expect("the URL is good");
        // The first one logs in and prepares.
        store.insert(&arrivals([opened("m", 0)]), &[]).await.expect("all is well");
        let (before, batches) = (line.round_trips.load(Relaxed), 40);
        for n in 1..=batches {
            store.insert(&arrivals([opened("m", n)]), &[]).await.expect("all is well");
        }
        let made = line.round_trips.load(Relaxed) - before;
        // After each batch the store and its pool ask the connection how it is. No batch waits for that, nor do we here.
        let expected = batches as usize * (round_trips + 2);
        assert!(made.abs_diff(expected) <= 2, "{pooler:?}: {made} are not {expected}");
    }
}

/// A PgBouncer that passes whole transactions over two connections to the server.
struct Bouncer {
    url: String,
    _guard: Guard,
}

impl Bouncer {
    async fn start(database: &Database) -> Self {
        let user = unprivileged_user().expect("there is a user for servers");
        let mut guard = Guard::start(GuardSettings {
            parent: env::temp_dir(),
            name: "ses-ledger-pgbouncer",
            signals: &["INT", "TERM"],
            patience: 50,
            user: user.clone(),
            environment: vec![("PATH".into(), env::var_os("PATH").unwrap_or_default())],
        })
        .await
        .expect("there is a shell");
        let (login, place) = database.url.split_once('@').expect("the URL names a user");
        let (name, password) = login.trim_start_matches("postgres://").split_once(':').expect("it has a password");
        let (address, base) = place.split_once('/').expect("the URL names a database");
        let (host, port) = address.split_once(':').expect("the URL names a port");
        let own_port = free_port().expect("a port is free");
        let folder = guard.folder().display().to_string();
        let configuration = format!(
            "[databases]\n* = host={host} port={port}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own_port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {folder}/users\n\
             pool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 100\n"
        );
        let files = [("pgbouncer.ini", configuration), ("users", format!("\"{name}\" \"{password}\"\n"))];
        for (file, text) in &files {
            let path = guard.folder().join(file);
            fs::write(&path, text).expect("the folder is there");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is our file");
            if let Some(user) = &user {
                chown(&path, Some(user.uid), Some(user.gid)).expect("we are root");
            }
        }
        guard.run(&[&program(), &format!("{folder}/pgbouncer.ini")]).await.expect("it can be run");
        until("PgBouncer listens", async || TcpStream::connect(("127.0.0.1", own_port)).await.is_ok()).await;
        Self { url: format!("{login}@127.0.0.1:{own_port}/{base}"), _guard: guard }
    }

    fn store(&self) -> Postgres {
        self.store_with(PostgresSettings::new(&self.url))
    }

    fn store_with(&self, settings: PostgresSettings) -> Postgres {
        let pooled = PostgresSettings { pooler: Pooler::Transaction, ..settings };
        Postgres::new(&pooled).expect("the URL is good")
    }

    /// Looks at both of them, as the next client does.
    async fn nothing_is_left_on_its_connections(&self) {
        let options: PgConnectOptions = self.url.parse().expect("the URL is good");
        let pool = PgPoolOptions::new().connect_lazy_with(options.extra_float_digits(None));
        // Two transactions at a time need both connections.
        let mut both = [pool.begin().await.expect("one is free"), pool.begin().await.expect("one is free")];
        let mut processes = Vec::new();
        for connection in &mut both {
            let ask = async |connection: &mut PgConnection, sql: &'static str| -> String {
                sqlx::query_scalar(sql).persistent(false).fetch_one(connection).await.expect("it is connected")
            };
            processes.push(ask(connection, "SELECT pg_backend_pid()::text").await);
            assert_eq!(ask(connection, "SELECT count(*)::text FROM pg_prepared_statements").await, "0");
            for (name, sql) in [
                ("0", "SELECT current_setting('statement_timeout')"),
                ("0", "SELECT current_setting('idle_in_transaction_session_timeout')"),
                ("on", "SELECT current_setting('enable_seqscan')"),
                ("\"$user\", public", "SELECT current_setting('search_path')"),
            ] {
                assert_eq!(ask(connection, sql).await, name, "{sql}");
            }
        }
        processes.dedup();
        assert_eq!(processes.len(), 2, "two connections were looked at");
    }
}

/// A way to a database that counts how often an answer is waited for. It serves one connection at a time.
struct Line {
    url: String,
    round_trips: Arc<AtomicUsize>,
}

impl Line {
    async fn to(database: &Database) -> Self {
        let (login, place) = database.url.split_once('@').expect("the URL names a user");
        let (address, name) = place.split_once('/').expect("the URL names a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("{login}@{}/{name}", listener.local_addr().expect("it is bound"));
        let (address, round_trips) = (address.to_owned(), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&round_trips);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&address).await.expect("the server runs");
                let _ = relay(near, far, &counted).await;
            }
        });
        Self { url, round_trips }
    }
}

async fn relay(mut near: TcpStream, mut far: TcpStream, round_trips: &AtomicUsize) -> io::Result<()> {
    let (mut asked, mut answered, mut waiting) = (vec![0; 65_536], vec![0; 65_536], false);
    loop {
        let asks = tokio::select! {
            length = near.read(&mut asked) => (true, length?),
            length = far.read(&mut answered) => (false, length?),
        };
        match asks {
            (_, 0) => return Ok(()),
            (true, length) => far.write_all(&asked[..length]).await?,
            (false, length) => near.write_all(&answered[..length]).await?,
        }
        round_trips.fetch_add(usize::from(asks.0 && !waiting), Relaxed);
        waiting = asks.0;
    }
}

/// Where Debian puts it, or wherever it is.
fn program() -> String {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|folder| folder.join("pgbouncer")).find(|program| program.is_file());
    found.expect("the tests cannot do without PgBouncer: tests/run installs it").display().to_string()
}
