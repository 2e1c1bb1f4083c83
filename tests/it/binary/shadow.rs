//! Beside a pipeline that is there: a schema of its own, a queue of its own. And what asks a worker whether it lives.

use super::{Running, end_of, ses_ledger, until};
use crate::{database, worker::Queue};

const EVENT: &str =
    r#"{"eventType":"Send","send":{},"mail":{"timestamp":"2026-10-05T08:00:00.000Z","messageId":"mail-1"}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_stores_beside_what_is_there_and_takes_only_its_own_copies() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let copies = queue.endpoint.create_queue("ses-events-shadow", &[]).expect("the name is good");
    let mut migrate = ses_ledger(["migrate", "up"]);
    migrate.env("DATABASE_URL", &database.url).env("DATABASE_SCHEMA", "ses_ledger_shadow");
    let migrated = end_of(migrate).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.err);

    let refused = Running::spawn(&database.url, &queue.url, &["--shadow"]).ended().await;
    assert_eq!(refused.0, Some(64), "{}", refused.1);
    assert!(refused.1.contains("-shadow"), "{}", refused.1);

    queue.handle.send(EVENT);
    queue.endpoint.queue("ses-events-shadow").expect("it was just made").send(EVENT);
    database.run("INSERT INTO ses_ledger_shadow.email_logs (aws_message_id) VALUES ('mail-1')").await;
    let running = Running::start(&database.url, &copies, &["--shadow"]).await;
    until("it is stored", async || database.number("SELECT count(*) FROM ses_ledger_shadow.email_events").await == 1)
        .await;
    running.stop().await;
    assert_eq!(database.text("SELECT status FROM ses_ledger_shadow.email_logs").await, "sent");
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 0);
    assert_eq!(queue.handle.counts().visible, 1, "what belongs to the pipeline that is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_whether_the_worker_moves_on() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let running = Running::start(&database.url, &queue.url, &[]).await;
    running.answers("/livez", 200, "ok\n").await;
    let address = running.address().await;
    let healthy = end_of(ses_ledger(["health", "--http-address", &address])).await;
    assert_eq!((healthy.code, healthy.err.as_str()), (Some(0), ""));
    running.stop().await;
    let gone = end_of(ses_ledger(["health", "--http-address", &address])).await;
    assert_eq!(gone.code, Some(1));
    assert!(gone.err.contains(&address) && gone.err.contains("HTTP_ADDRESS"), "{}", gone.err);
}
