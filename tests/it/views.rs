//! The views answer what operators ask.

use ses_ledger::{
    event::{Address, Event, EventKind},
    pipeline::Store as _,
};
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    arrivals::{arrivals, at, event, junk, opened, origin, store, with},
    database::{self, Database},
};

/// Five mails of this moment, five of two hours ago, one of last year; two orphans, one of them old; two bodies in quarantine.
async fn story() -> Database {
    let database = database::fresh().await;
    let postgres = database.store();
    let now = time::OffsetDateTime::now_utc().unix_timestamp() as u64;
    for (age, seconds) in [("new", 0), ("old", 7_200)] {
        for n in 0..5 {
            let uuid = Uuid::new_v7(Timestamp::from_unix(NoContext, now - seconds, 0));
            database.log_of(uuid, Some(&format!("{age}{n}"))).await;
        }
    }
    database.log_of(Uuid::new_v7(Timestamp::from_unix(NoContext, now - 400 * 86_400, 0)), Some("last-year")).await;
    let bounce =
        |id: &str, class: &str| with(event(id, EventKind::Bounce), |e| e.detail.bounce_type = Some(class.to_owned()));
    for age in ["new", "old"] {
        // The first has no event; sent; delivered; bounced; delayed.
        let id = |n| format!("{age}{n}");
        let events: [Event; 5] = [
            event(&id(1), EventKind::Send),
            event(&id(2), EventKind::Delivery),
            bounce(&id(3), "Permanent"),
            event(&id(4), EventKind::Send),
            event(&id(4), EventKind::DeliveryDelay),
        ];
        store(&postgres, events).await;
    }
    store(&postgres, [opened("unknown-1", 1), opened("unknown-2", 1)]).await;
    database.run("UPDATE orphaned_events SET uuid = overlay(uuid::text PLACING '0199' FROM 1 FOR 4)::uuid WHERE aws_message_id = 'unknown-1'").await;
    let rejects = [
        junk("a", "no_message_id", "$[0].mail", origin("sqs-1", 1)),
        junk("b", "no_message_id", "$[17].mail", origin("sqs-2", 1)),
        junk("c", "invalid_json", "$", origin("sqs-3", 1)),
    ];
    postgres.insert(&arrivals([]), &rejects).await.expect("they are quarantined");
    database
        .run("UPDATE quarantined_messages SET first_seen_at = now() - interval '3 hours' WHERE reason = 'invalid_json'")
        .await;
    database
}

#[tokio::test]
async fn health_counts_the_last_hour_and_what_waits() {
    let database = story().await;
    let row = "SELECT concat_ws(' ', mails_last_hour, mails_last_hour_without_event, mails_last_hour_failed, orphans, quarantined,
                                quarantined_last_hour, months_ahead, oldest_orphan_at <= newest_orphan_at, last_quarantined_at <= now())
               FROM pipeline_health";
    assert_eq!(database.text(row).await, "5 1 1 2 3 2 3 t t");
    let nothing = database::fresh().await;
    assert_eq!(nothing.text(row).await, "0 0 0 0 0 0 3", "one row also of nothing");
}

#[tokio::test]
async fn failures_are_grouped_by_the_way_in_which_they_failed() {
    let database = story().await;
    let groups = "SELECT concat_ws(' ', fingerprint, stage, reason, bodies, times_seen, replayed) FROM quarantine_failures ORDER BY bodies DESC";
    let expected = ["no_message_id:$[].mail decode no_message_id 2 2 0", "invalid_json:$ decode invalid_json 1 1 0"];
    assert_eq!(database.texts(groups).await, expected);
}

#[tokio::test]
async fn what_is_stuck_is_listed_and_nothing_else() {
    let database = story().await;
    let stuck = "SELECT concat_ws(' ', what, aws_message_id, detail) FROM stuck ORDER BY 1";
    let expected = [
        "mail old0 queued",
        "mail old1 sent",
        "mail old4 delayed",
        "orphan unknown-1 open",
        "quarantine invalid_json",
        "quarantine no_message_id",
        "quarantine no_message_id",
    ];
    assert_eq!(database.texts(stuck).await, expected);
    database.run("UPDATE quarantined_messages SET last_replayed_at = now(), replay_count = 1").await;
    assert_eq!(database.number("SELECT count(*) FROM stuck WHERE what = 'quarantine'").await, 0);
}

#[tokio::test]
async fn a_recipient_s_timeline_tells_what_became_of_her_mails() {
    let database = database::fresh().await;
    let postgres = database.store();
    for id in ["first", "second"] {
        database.log(id).await;
    }
    database.run("UPDATE email_logs SET subject = 'About ' || aws_message_id").await;
    let to = |who: &str, seconds, event| {
        with(event, |e: &mut Event| (e.recipient, e.occurred_at) = (Address::parse(who), at(seconds)))
    };
    let events = [
        to("ann@x.org", 1, event("first", EventKind::Delivery)),
        to("bob@x.org", 2, event("first", EventKind::Delivery)),
        to("ann@x.org", 3, event("second", EventKind::Bounce)),
        opened("first", 4),
    ];
    store(&postgres, events).await;
    let timeline = "SELECT concat_ws(' ', subject, status, event_type) FROM recipient_timeline
                    WHERE recipient = 'ann@x.org' ORDER BY email_log_uuid DESC, occurred_at DESC";
    assert_eq!(database.texts(timeline).await, ["About second bounced bounce", "About first opened delivery"]);
    assert_eq!(
        database.number("SELECT count(*) FROM recipient_timeline").await,
        3,
        "not what happened to nobody in particular"
    );
}
