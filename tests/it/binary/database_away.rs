//! The database is away, at the start or in the middle: the worker waits, holds what it has, and goes on by itself.

use std::{net::SocketAddr, time::Duration};

use ses_ledger::local::{
    postgres::{LocalPostgres, StopMode},
    sqs_endpoint::Action,
    story::{Profile, Step, Story, StorySettings},
};
use time::macros::datetime;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};

use super::{Running, play, swept};
use crate::{
    database::{self, local_settings, migrate},
    truth::assert_exact,
    worker::{Queue, eventually},
};

fn story(seed: u64) -> Story {
    let settings = StorySettings::new(seed, 60, datetime!(2026-10-05 08:00 UTC));
    Story::tell(&StorySettings { profile: Profile::Small, ..settings })
}

/// A server of our own, to stop.
async fn server() -> LocalPostgres {
    let server = LocalPostgres::start(local_settings()).await.expect("the tests cannot do without PostgreSQL");
    migrate(&server.url()).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_costs_time_and_nothing_else() {
    let (mut server, queue, story) = (server().await, Queue::start().await, story(61));
    let running = Running::start(&server.url(), &queue.url, &[]).await;
    let before = database::at(&server.url()).await;
    for step in story.steps() {
        if let Step::WriteLog(row) = step {
            before.write_log(&row).await;
        }
    }
    before.pool.close().await;
    running.answers("/readyz", 200, "ok\n").await;

    server.stop(StopMode::Fast).await.expect("it runs");
    for step in story.steps() {
        if let Step::Publish(body) = step {
            queue.handle.send(&body);
        }
    }
    running.answers("/readyz", 503, "waiting for the database\n").await;
    running.answers("/livez", 200, "ok\n").await;
    // Longer than the visibility timeout: what is in hand has to be kept invisible.
    // (Nothing is in hand if it noticed before the first message came.)
    eventually("what is in hand is kept invisible", || {
        queue.endpoint.calls(Action::ChangeMessageVisibilityBatch).requests >= 3 || queue.handle.counts().in_flight == 0
    })
    .await;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        running.answers("/livez", 200, "ok\n").await;
    }
    assert_eq!(queue.handle.totals().deleted, 0, "nothing was stored");

    server.start_again().await.expect("it was stopped");
    running.answers("/readyz", 200, "ok\n").await;
    queue.drained().await;
    let database = database::at(&server.url()).await;
    swept(&database, &story).await;
    running.stop().await;
    assert_exact(&database, &story.truth).await;
    assert_eq!(queue.handle.max_receive_count(), 1, "no message came nearer to the dead letters");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_while_nothing_comes_in_is_noticed() {
    let (mut server, queue) = (server().await, Queue::start().await);
    let running = Running::start(&server.url(), &queue.url, &[]).await;
    running.answers("/readyz", 200, "ok\n").await;
    server.stop(StopMode::Fast).await.expect("it runs");
    running.answers("/readyz", 503, "waiting for the database\n").await;
    server.start_again().await.expect("it was stopped");
    running.answers("/readyz", 200, "ok\n").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_comes_later_is_waited_for() {
    let (mut server, queue) = (server().await, Queue::start().await);
    server.stop(StopMode::Fast).await.expect("it runs");
    let running = Running::spawn(&server.url(), &queue.url, &[]);
    running.says("cannot reach the database yet").await;
    let log = running.log();
    assert!(log.contains("refused"), "it does not say why: {log}");
    server.start_again().await.expect("it was stopped");
    running.answers("/readyz", 200, "ok\n").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_waits_at_the_start_it_is_alive_and_not_ready() {
    let queue = Queue::start().await;
    let running = Running::spawn("postgres://nobody:secret@127.0.0.1:1/none", &queue.url, &[]);
    running.answers("/livez", 200, "ok\n").await;
    running.answers("/readyz", 503, "waiting for the database and the queue\n").await;
    running.signal("TERM").await;
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
}

/// A partition of the network: no answer, and no error either.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_falls_silent_is_left_behind_when_it_answers_again_and_when_we_leave() {
    let (database, queue, story) = (database::fresh().await, Queue::start().await, story(62));
    let (wire, url) = Wire::to(&database.url).await;
    // One connection for the worker and one for the sweep: the silence meets both.
    let running = Running::start(&url, &queue.url, &["--database-connections=2"]).await;
    eventually("the wire is in use", || wire.connections() > 0).await;
    wire.silence(true);
    play(&database, &queue.handle, &story).await;
    running.answers("/readyz", 503, "waiting for the database\n").await;

    wire.silence(false);
    running.answers("/readyz", 200, "ok\n").await;
    queue.drained().await;
    swept(&database, &story).await;

    wire.silence(true);
    queue.handle.send("cannot be quarantined now");
    running.answers("/readyz", 503, "waiting for the database\n").await;
    running.signal("TERM").await;
    let since = Instant::now();
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
    // After three seconds of the grace period it gives back what it holds; then nothing is left to wait for.
    assert!(since.elapsed() < Duration::from_secs(6), "{log}");
    let counts = queue.handle.counts();
    assert_eq!((counts.visible, counts.in_flight), (1, 0), "{log}");
    assert_exact(&database, &story.truth).await;
}

/// A TCP connection to the database that can be made silent. Connections that met the silence stay silent for ever.
struct Wire {
    silent: watch::Sender<bool>,
    connections: watch::Receiver<usize>,
}

impl Wire {
    /// Returns the database's URL with the wire in between.
    async fn to(url: &str) -> (Self, String) {
        let place = url.split(['@', '/']).nth(3).expect("the URL names host and port").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address: SocketAddr = listener.local_addr().expect("it is bound");
        let through = url.replace(&place, &address.to_string());
        let (silent, silence) = watch::channel(false);
        let (count, connections) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.send_modify(|count| *count += 1);
                tokio::spawn(pass_on(client, place.clone(), silence.clone()));
            }
        });
        (Self { silent, connections }, through)
    }

    fn silence(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    fn connections(&self) -> usize {
        *self.connections.borrow()
    }
}

async fn pass_on(mut client: TcpStream, place: String, mut silence: watch::Receiver<bool>) {
    if !*silence.borrow() {
        let Ok(mut server) = TcpStream::connect(place).await else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = silence.wait_for(|silent| *silent) => {}
        }
        // The server sees the end, the client sees nothing.
        drop(server);
    }
    std::future::pending::<()>().await;
}
