//! Events that come before their mail's log row: they wait, and find it.

use ses_ledger::{
    event::{Event, EventKind, Source},
    orphans,
    pipeline::Verdict::{Duplicate, Inserted, Orphaned},
    postgres::Postgres,
};
use uuid::Uuid;

use crate::{
    arrivals::{event, opened, store, tagged, with},
    database::{self, Database},
    store::gone,
};

async fn sweep(postgres: &Postgres) -> u64 {
    orphans::sweep_all(postgres).await.expect("nobody is in the way")
}

async fn check_left(database: &Database, events: i64, orphans: i64) {
    let count = async |table| database.number(&format!("SELECT count(*) FROM {table}")).await;
    assert_eq!((count("email_events").await, count("orphaned_events").await), (events, orphans));
}

#[tokio::test]
async fn an_orphan_keeps_where_it_came_from_and_when() {
    let database = database::fresh().await;
    let postgres = database.store();
    let bounce = with(event("m", EventKind::Bounce), |e| {
        e.detail.bounce_type = Some("Permanent".to_owned());
        e.detail.diagnostic = Some("550 no such user".to_owned());
        e.candidate = true;
        e.source = Source { sns_message_id: Some("sns".to_owned()), eventbridge_id: Some("bridge".to_owned()) };
    });
    assert_eq!(store(&postgres, [bounce]).await, [Orphaned]);
    let row = |table| {
        format!(
            "SELECT to_jsonb(t) - '{{email_log_uuid,aws_message_id,log_uuid,fact_key,stored_at}}'::text[] || '{{}}' FROM {table} AS t"
        )
    };
    let text = |table| format!("SELECT ({})::text", row(table));
    let parked = database.text(&text("orphaned_events")).await;
    assert_eq!(sweep(&postgres).await, 0, "its mail is not known");
    database.log("m").await;
    assert_eq!(sweep(&postgres).await, 1);
    assert_eq!(database.text(&text("email_events")).await, parked);
    assert!(parked.contains(r#""received_at": "2026-10-05T08:01:00+00:00""#), "{parked}");
    assert_eq!(database.text("SELECT status FROM email_logs").await, "bounced");
    check_left(&database, 1, 0).await;
}

#[tokio::test]
async fn repeats_before_and_after_change_nothing() {
    let database = database::fresh().await;
    let postgres = database.store();
    let batch = || [opened("m", 1), opened("m", 2), event("m", EventKind::Send)];
    assert_eq!(store(&postgres, batch()).await, [Orphaned; 3]);
    assert_eq!(store(&postgres, batch()).await, [Duplicate; 3]);
    database.log("m").await;
    // One of them comes again before the sweep.
    assert_eq!(store(&postgres, [opened("m", 2)]).await, [Inserted]);
    assert_eq!(sweep(&postgres).await, 3);
    assert_eq!(store(&postgres, batch()).await, [Duplicate; 3]);
    assert_eq!(sweep(&postgres).await, 0);
    check_left(&database, 3, 0).await;
    assert_eq!(database.number("SELECT open_count::bigint FROM email_logs").await, 2);
}

#[tokio::test]
async fn a_tag_finds_the_log_that_appears_later() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = Uuid::now_v7();
    assert_eq!(
        store(&postgres, [tagged("m", EventKind::Send, log), event("m", EventKind::Delivery)]).await,
        [Orphaned; 2]
    );
    database.log_of(log, None).await;
    assert_eq!(sweep(&postgres).await, 2, "the second has no tag: it is found by the id that the first one brought");
    assert_eq!(database.text("SELECT aws_message_id || ' ' || status FROM email_logs").await, "m delivered");
    check_left(&database, 2, 0).await;
}

#[tokio::test]
async fn linking_a_log_attaches_its_orphans_at_once() {
    let database = database::fresh().await;
    let postgres = database.store();
    let waiting = [event("m", EventKind::Delivery), opened("m", 1), opened("m", 2), opened("other", 1)];
    assert_eq!(store(&postgres, waiting).await, [Orphaned; 4]);
    let log = database.log_of(Uuid::now_v7(), None).await;
    assert_eq!(store(&postgres, [tagged("m", EventKind::Send, log)]).await, [Inserted]);
    check_left(&database, 4, 1).await;
    assert_eq!(database.text("SELECT status || open_count FROM email_logs").await, "opened2");
}

#[tokio::test]
async fn a_tag_that_came_with_a_repeat_is_not_lost() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = Uuid::now_v7();
    // The same bounce over two ways, of which one knows no tags.
    let bounce = |tag| with(event("m", EventKind::Bounce), |e| e.log_uuid = tag);
    store(&postgres, [bounce(None)]).await;
    store(&postgres, [bounce(Some(log))]).await;
    database.log_of(log, None).await;
    sweep(&postgres).await;
    check_left(&database, 1, 0).await;
    assert_eq!(database.text("SELECT aws_message_id FROM email_logs").await, "m");
}

#[tokio::test]
async fn bounces_that_state_different_facts_wait_side_by_side() {
    let database = database::fresh().await;
    let postgres = database.store();
    let bounce = |class: &str| with(event("m", EventKind::Bounce), |e| e.detail.bounce_type = Some(class.to_owned()));
    assert_eq!(store(&postgres, [bounce("Transient"), bounce("Permanent"), bounce("transient")]).await.len(), 3);
    check_left(&database, 0, 2).await;
    database.log("m").await;
    assert_eq!(sweep(&postgres).await, 2);
    check_left(&database, 1, 0).await;
    assert_eq!(database.text("SELECT status FROM email_logs").await, "bounced");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sweepers_share_thousands_of_orphans() {
    let database = database::fresh().await;
    let stores = [database.store(), database.store(), database.store()];
    // 700 mails with seven opens each; every seventh mail stays unknown.
    let orphans: Vec<Event> = (0..4_900).map(|n| opened(&format!("m{}", n % 700), n / 700)).collect();
    assert_eq!(store(&stores[0], orphans.clone()).await, [Orphaned; 4_900]);
    database
        .run(
            "INSERT INTO email_logs (aws_message_id) SELECT 'm' || n FROM generate_series(0, 699) AS n WHERE n % 7 > 0",
        )
        .await;
    // Meanwhile half of them come again.
    let repeat = async |half: Vec<Event>| store(&stores[2], half).await;
    let (a, b, _) = tokio::join!(sweep(&stores[0]), sweep(&stores[1]), repeat(orphans[..2_450].to_vec()));
    let rest = sweep(&stores[0]).await;
    assert!(a + b + rest >= 4_200, "{a} and {b} and {rest}");
    check_left(&database, 4_200, 700).await;
    assert_eq!(
        database.number("SELECT count(*) FROM email_logs WHERE open_count = 7 AND status = 'opened'").await,
        600
    );
    assert_eq!(database.number("SELECT count(DISTINCT (email_log_uuid, occurred_at)) FROM email_events").await, 4_200);
    for store in stores {
        store.close().await;
    }
    gone(&database).await;
    assert_eq!(database.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await, 0);
}

#[tokio::test]
async fn a_slice_says_how_far_it_came() {
    let database = database::fresh().await;
    let postgres = database.store();
    store(&postgres, (0..25).map(|n| opened(&format!("m{n}"), 1))).await;
    database.log("m24").await;
    let (mut after, mut slices, mut attached) = (Uuid::nil(), 0, 0);
    while let Some(last) = {
        let slice = postgres.sweep(after, 10).await.expect("nobody is in the way");
        attached += slice.attached;
        slice.last
    } {
        assert!(last > after);
        (after, slices) = (last, slices + 1);
    }
    assert_eq!((slices, attached), (3, 1));
}
