//! Events made by hand, as they arrive at the store, and log rows as a sender writes them.

use std::{sync::Arc, time::Duration};

use ses_ledger::{
    event::{Address, Detail, Event, EventKind, MessageId, Source, TimeSource},
    pipeline::{
        Store as _, StoreError, Verdict,
        batch::{Arrival, Quarantined, Stage},
        receive::Origin,
    },
    postgres::Postgres,
};
use time::{OffsetDateTime, macros::datetime};
use uuid::Uuid;

use crate::database::Database;

pub(crate) const NOBODY: &str = "";

/// A moment of the mail's life, in seconds.
pub(crate) fn at(seconds: i64) -> OffsetDateTime {
    datetime!(2026-10-05 08:00 UTC) + time::Duration::seconds(seconds)
}

/// Something that happened to `bob@example.com` a second after the beginning.
pub(crate) fn event(message_id: &str, kind: EventKind) -> Event {
    Event {
        message_id: MessageId::parse(message_id).expect("the id is good"),
        log_uuid: None,
        kind,
        occurred_at: at(1),
        time_source: TimeSource::Event,
        mailed_at: None,
        recipient: Address::parse("bob@example.com"),
        candidate: false,
        detail: Detail::default(),
        payload: Some("{}".to_owned()),
        source: Source::default(),
    }
}

/// The same event with something else in it.
pub(crate) fn with(mut event: Event, change: impl FnOnce(&mut Event)) -> Event {
    change(&mut event);
    event
}

pub(crate) fn tagged(message_id: &str, kind: EventKind, log: Uuid) -> Event {
    with(event(message_id, kind), |e| e.log_uuid = Some(log))
}

pub(crate) fn opened(message_id: &str, seconds: i64) -> Event {
    with(event(message_id, EventKind::Open), |e| (e.occurred_at, e.recipient) = (at(seconds), Address::parse(NOBODY)))
}

pub(crate) fn origin(sqs_message_id: &str, receive_count: u32) -> Arc<Origin> {
    let (queue, received_at) = ("ses-events".into(), at(60));
    Arc::new(Origin { queue, sqs_message_id: sqs_message_id.to_owned(), receive_count, received_at })
}

pub(crate) fn arrivals(events: impl IntoIterator<Item = Event>) -> Vec<Arrival> {
    let origin = origin("0f8e5a2c-sqs", 1);
    events.into_iter().map(|event| Arrival::new(event, Arc::clone(&origin))).collect()
}

pub(crate) fn junk(body: &str, reason: &str, place: &str, origin: Arc<Origin>) -> Quarantined {
    Quarantined::new(body.as_bytes().to_vec(), Stage::Decode, reason, place, origin)
}

/// Stores one batch, which has to work the first time.
pub(crate) async fn store(postgres: &Postgres, events: impl IntoIterator<Item = Event>) -> Vec<Verdict> {
    postgres.insert(&arrivals(events), &[]).await.expect("the database takes it")
}

/// Stores one batch as the pipeline does: as often as it takes. Whatever fails has to be worth trying again.
pub(crate) async fn store_patiently(postgres: &Postgres, events: &[Arrival]) -> Vec<Verdict> {
    for _ in 0..200 {
        match postgres.insert(events, &[]).await {
            Ok(verdicts) => return verdicts,
            Err(StoreError::Transient(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(refused) => panic!("{refused}"),
        }
    }
    panic!("the batch never comes through")
}

impl Database {
    /// A log row with the id that SES gave the mail, as after the call that sends.
    pub(crate) async fn log(&self, message_id: &str) -> Uuid {
        self.log_of(Uuid::now_v7(), Some(message_id)).await
    }

    /// A log row of a sender that puts its own id into the tag.
    pub(crate) async fn log_of(&self, uuid: Uuid, message_id: Option<&str>) -> Uuid {
        let query = sqlx::query("INSERT INTO email_logs (uuid, aws_message_id) VALUES ($1, $2)");
        query.bind(uuid).bind(message_id).execute(&self.pool).await.expect("a log row can be written");
        uuid
    }
}
