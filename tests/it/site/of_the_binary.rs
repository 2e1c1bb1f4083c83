//! The page as `run` and `serve` offer it.

use tokio::process::Command;

use crate::{
    binary::{Running, end_of, ses_ledger, until},
    database,
    worker::Queue,
};

fn serve(database_url: &str, more: &[&str]) -> Command {
    let mut command = ses_ledger(["serve"]);
    command.env("LOG_FORMAT", "json").env("HTTP_ADDRESS", "127.0.0.1:0").env("DATABASE_URL", database_url).args(more);
    command
}

#[tokio::test]
async fn serve_refuses_an_address_that_others_reach_if_nobody_is_asked_for_anything() {
    let nowhere = "postgres://nobody:secret@127.0.0.1:1/none";
    for more in [&["--http-address=0.0.0.0:0"][..], &["--http-address=[::]:0", "--site-token="], &["--site-user=ada"]] {
        let ended = end_of(serve(nowhere, more)).await;
        assert_eq!(ended.code, Some(64), "{more:?}: {}", ended.err);
        assert!(ended.err.contains("SITE_PASSWORD") && !ended.err.contains("secret"), "{more:?}: {}", ended.err);
    }
    let ended = end_of(serve(nowhere, &["--site-database-url=mysql://x"])).await;
    assert!(ended.code == Some(64) && ended.err.contains("SITE_DATABASE_URL"), "{}", ended.err);
}

#[tokio::test]
async fn serve_shows_the_page_without_a_worker_until_it_is_told_to_stop() {
    let database = database::fresh().await;
    let running = Running::watch(serve(&database.url, &["--log=trace"]));
    let address = running.address_after("the page is at http://").await;
    until("the database is there", async || running.get_at(&address, "/readyz", "x").await.status == 200).await;
    let page = running.get_at(&address, "/mail?q=somebody%40example.net", "localhost").await;
    assert!(page.status == 200 && page.body.contains("No mail is found"), "{}", page.body);
    assert_eq!(running.get_at(&address, "/metrics", "localhost").await.status, 404, "there is no worker to be counted");
    running.signal("TERM").await;
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("somebody"), "whom somebody asks for is nobody's business: {log}");
}

#[tokio::test]
async fn serve_ends_at_once_if_the_database_does_not_let_it_in() {
    let database = database::fresh().await;
    let password = database.url.split([':', '@']).nth(2).expect("the URL holds a password");
    let ended = end_of(serve(&database.url.replace(password, "not-the-password"), &[])).await;
    assert!(ended.code == Some(69) && ended.err.contains("password authentication failed"), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_on_every_address_serves_its_probes_and_no_page_until_there_is_a_key() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let reach = |address: &str| address.replace("0.0.0.0", "127.0.0.1");
    let closed = Running::start(&database.url, &queue.url, &["--http-address=0.0.0.0:0"]).await;
    closed.says("the page is closed: ").await;
    let address = reach(&closed.address().await);
    for (path, status) in
        [("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/", 403), ("/mail", 403), ("/none", 403)]
    {
        assert_eq!(closed.get_at(&address, path, "probe").await.status, status, "{path}");
    }
    closed.stop().await;
    let keys = ["--http-address=0.0.0.0:0", "--site-token=correct-horse", "--site-mask"];
    let open = Running::start(&database.url, &queue.url, &keys).await;
    let address = reach(&open.address().await);
    assert_eq!(open.get_at(&address, "/", "x").await.status, 401);
    assert_eq!(open.get_at(&address, "/", "x\r\nAuthorization: Bearer correct-horse").await.status, 200);
    assert_eq!(open.get_at(&address, "/metrics", "x").await.status, 200, "metrics stay open");
    open.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_shows_its_own_queue_and_worker() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let running = Running::start(&database.url, &queue.url, &[]).await;
    let address = running.address().await;
    running.shows(&address, "/", &["ses-events", "1 alive", "✓ holds"]).await;
    running.stop().await;
}
