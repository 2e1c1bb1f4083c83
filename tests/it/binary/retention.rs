//! Payloads that are old enough go; the rows, and with them the memory that prevents doubles, stay.

use super::{Running, until};
use crate::{database, worker::Queue};

const EVENT: &str = r#"{"eventType":"Delivery","delivery":{"timestamp":"2026-01-05T08:00:01.000Z","recipients":["ana@example.net"]},
  "mail":{"timestamp":"2026-01-05T08:00:00.000Z","messageId":"MAIL","destination":["ana@example.net"]}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn old_payloads_are_emptied_and_an_event_that_comes_again_is_a_duplicate() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    // An old mail, a new one, and one whose id tells no time.
    database
        .run(
            "INSERT INTO email_logs (uuid, aws_message_id) VALUES
               ('019b8d0e-0000-7000-8000-000000000001', 'old'), (DEFAULT, 'new'),
               ('f47ac10b-58cc-4372-a567-0e02b2c3d479', 'timeless')",
        )
        .await;
    let first = Running::start(&database.url, &queue.url, &[]).await;
    for mail in ["old", "new", "timeless"] {
        queue.handle.send(&EVENT.replace("MAIL", mail));
    }
    queue.drained().await;
    first.stop().await;
    let kept = "SELECT count(*) FROM email_events WHERE payload IS NOT NULL";
    assert_eq!(database.number(kept).await, 3, "off unless it is asked for");

    // All arrived long ago, as far as the rows say. The new mail is younger than that: a late row of a clock that is wrong.
    database.run("UPDATE email_events SET received_at = now() - interval '100 days'").await;
    let second = Running::start(&database.url, &queue.url, &["--retention-payload=90d"]).await;
    until("the old payloads are gone", async || database.number(kept).await == 1).await;
    let counted = "\nses_ledger_retention_runs_total 1\n";
    until("the run is counted", async || second.get("/metrics").await.body.contains(counted)).await;
    queue.handle.send(&EVENT.replace("MAIL", "old"));
    queue.drained().await;
    let farewell = second.stop().await;
    assert_eq!((farewell.count("inserted"), farewell.count("duplicate")), (0, 1));
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 3);
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_upkeep WHERE finished_at IS NOT NULL").await, 1);
}
