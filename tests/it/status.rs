//! Whatever arrives first: a mail's facts and status are the same.

use std::collections::BTreeMap;

use ses_ledger::{
    event::{Address, Event, EventKind},
    orphans,
    postgres::Postgres,
};
use sqlx::Row as _;
use uuid::Uuid;

use crate::{
    arrivals::{NOBODY, arrivals, at, event, store_patiently, with},
    database::{self, Database},
};

/// An event that can happen to a mail, and what it says about it.
struct Sample {
    kind: &'static str,
    /// Bounce type, complaint type, complaint subtype.
    detail: [Option<&'static str>; 3],
    fact: Option<&'static str>,
    class: Option<Class>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Transient,
    Undetermined,
    Permanent,
}

const fn plain(kind: &'static str, fact: Option<&'static str>) -> Sample {
    Sample { kind, detail: [None; 3], fact, class: None }
}

const fn bounce(bounce_type: &'static str, class: Class) -> Sample {
    Sample { kind: "bounce", detail: [Some(bounce_type), None, None], fact: Some("bounced"), class: Some(class) }
}

const fn complaint(detail: [Option<&'static str>; 2], fact: Option<&'static str>, class: Option<Class>) -> Sample {
    Sample { kind: "complaint", detail: [None, detail[0], detail[1]], fact, class }
}

/// The first eleven decide a status.
const SAMPLES: [Sample; 16] = [
    plain("send", Some("sent")),
    plain("delivery", Some("delivered")),
    plain("delivery_delay", Some("delayed")),
    bounce("Transient", Class::Transient),
    bounce("Permanent", Class::Permanent),
    complaint([Some("abuse"), None], Some("complained"), None),
    complaint([None, Some("OnAccountSuppressionList")], Some("bounced"), Some(Class::Permanent)),
    plain("reject", Some("rejected")),
    plain("rendering_failure", Some("failed")),
    plain("open", Some("opened")),
    plain("click", Some("clicked")),
    bounce("Undetermined", Class::Undetermined),
    bounce("Novel", Class::Undetermined),
    complaint([Some("not-spam"), None], None, None),
    plain("subscription", None),
    plain("teleported", None),
];

/// One mail: its events in the order of their arrival, and how many of them come before its log row.
struct Case {
    log: Uuid,
    id: String,
    order: Vec<usize>,
    log_after: usize,
}

/// What a mail's row says.
#[derive(Debug, Default, PartialEq)]
struct Facts {
    status: String,
    /// In seconds, by name.
    times: BTreeMap<&'static str, i64>,
    class: Option<Class>,
    counts: [i32; 2],
    /// How many rows its events have.
    events: i64,
}

#[tokio::test(flavor = "multi_thread")]
async fn three_events_in_any_order_with_the_log_row_anywhere_between() {
    let mut cases = Vec::new();
    for order in orders(SAMPLES.len(), 3) {
        for log_after in 0..=order.len() {
            cases.push((order.clone(), log_after));
        }
    }
    check(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_events_that_decide_a_status_in_any_order() {
    let orders = orders(11, 4).into_iter().filter(|order| order.len() == 4);
    check(orders.enumerate().map(|(n, order)| (order, n % 5)).collect()).await;
}

/// All orders of up to `most` different samples of the first `samples`.
fn orders(samples: usize, most: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    let mut longest = all.clone();
    for _ in 0..most {
        longest = longest
            .iter()
            .flat_map(|order| (0..samples).filter(|n| !order.contains(n)).map(|n| [order.as_slice(), &[n]].concat()))
            .collect();
        all.extend_from_slice(&longest);
    }
    all
}

/// Stores all mails side by side: their first events in one batch, then their second ones…
async fn check(cases: Vec<(Vec<usize>, usize)>) {
    let database = database::fresh().await;
    let postgres = database.store();
    let case = |(n, (order, log_after))| Case { log: Uuid::now_v7(), id: format!("m{n}"), order, log_after };
    let cases: Vec<Case> = cases.into_iter().enumerate().map(case).collect();
    let longest = cases.iter().map(|case| case.order.len()).max().unwrap_or_default();
    for step in 0..=longest {
        write_logs(&database, cases.iter().filter(|case| case.log_after == step)).await;
        if step > 0 {
            orphans::sweep_all(&postgres).await.expect("nobody is in the way");
        }
        // The next event, and the one before it once more.
        let arriving = cases.iter().flat_map(|case| {
            let earlier = step.checked_sub(1).and_then(|earlier| case.order.get(earlier));
            case.order.get(step).into_iter().chain(earlier).map(|sample| made(&case.id, *sample))
        });
        insert(&postgres, arriving.collect()).await;
    }
    orphans::sweep_all(&postgres).await.expect("nobody is in the way");
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 0);
    let mut found = read(&database).await;
    for case in &cases {
        let expected = expected(&case.order);
        let names: Vec<_> = case.order.iter().map(|n| (SAMPLES[*n].kind, SAMPLES[*n].detail)).collect();
        assert_eq!(found.remove(&case.log), Some(expected), "{names:?}, the log row after {} of them", case.log_after);
    }
}

async fn write_logs(database: &Database, cases: impl Iterator<Item = &Case>) {
    let (uuids, ids): (Vec<Uuid>, Vec<&str>) = cases.map(|case| (case.log, case.id.as_str())).unzip();
    let insert =
        sqlx::query("INSERT INTO email_logs (uuid, aws_message_id) SELECT * FROM unnest($1::uuid[], $2::text[])");
    insert.bind(uuids).bind(ids).execute(&database.pool).await.expect("they are new");
}

async fn insert(postgres: &Postgres, events: Vec<Event>) {
    let events = arrivals(events);
    for batch in events.chunks(5_000) {
        store_patiently(postgres, batch).await;
    }
}

/// The later in the list, the earlier it happened.
fn second(sample: usize) -> i64 {
    100 - sample as i64
}

fn made(id: &str, sample: usize) -> Event {
    let Sample { kind, detail, .. } = &SAMPLES[sample];
    let [bounce_type, complaint_type, complaint_subtype] = detail.map(|text| text.map(str::to_owned));
    with(event(id, EventKind::parse(kind).expect("it has a name")), |e| {
        e.occurred_at = at(second(sample));
        if e.kind.happens_again() {
            e.recipient = Address::parse(NOBODY);
        }
        (e.detail.bounce_type, e.detail.complaint_type, e.detail.complaint_subtype) =
            (bounce_type, complaint_type, complaint_subtype);
        e.payload = None;
    })
}

/// The rules as they are written down, applied to a set.
fn expected(order: &[usize]) -> Facts {
    let mut facts = Facts::default();
    let mut kinds: Vec<&str> = Vec::new();
    for n in order {
        let sample = &SAMPLES[*n];
        if let Some(fact) = sample.fact {
            let earliest = facts.times.entry(fact).or_insert(i64::MAX);
            *earliest = second(*n).min(*earliest);
        }
        facts.class = facts.class.max(sample.class);
        facts.counts[0] += i32::from(sample.kind == "open");
        facts.counts[1] += i32::from(sample.kind == "click");
        kinds.push(sample.kind);
    }
    kinds.sort_unstable();
    kinds.dedup();
    facts.events = kinds.len() as i64;
    let is = |fact| facts.times.contains_key(fact);
    let for_good = facts.class.is_some_and(|class| class > Class::Transient);
    let ladder = [
        (is("rejected"), "rejected"),
        (is("failed"), "failed"),
        (is("complained"), "complained"),
        (is("bounced") && for_good, "bounced"),
        (is("clicked"), "clicked"),
        (is("opened"), "opened"),
        (is("delivered"), "delivered"),
        (is("bounced"), "soft_bounced"),
        (is("delayed"), "delayed"),
        (is("sent"), "sent"),
    ];
    facts.status = ladder.iter().find(|(holds, _)| *holds).map_or("queued", |(_, status)| status).to_owned();
    facts
}

async fn read(database: &Database) -> BTreeMap<Uuid, Facts> {
    const FACTS: [&str; 9] =
        ["sent", "delivered", "delayed", "bounced", "complained", "rejected", "failed", "opened", "clicked"];
    let rows = sqlx::query(
        "SELECT uuid, sent_at, delivered_at, delayed_at, bounced_at, complained_at, rejected_at, failed_at, opened_at, clicked_at,
                status, bounce_class::text AS class, ARRAY[open_count, click_count] AS counts, coalesce(e.rows, 0) AS events
         FROM email_logs LEFT JOIN (SELECT email_log_uuid, count(*) AS rows FROM email_events GROUP BY 1) AS e ON email_log_uuid = uuid",
    );
    let rows = rows.fetch_all(&database.pool).await.expect("the tables are there");
    let facts = |row: &sqlx::postgres::PgRow| Facts {
        status: row.get("status"),
        times: (FACTS.iter().enumerate())
            .filter_map(|(n, fact)| {
                row.get::<Option<time::OffsetDateTime>, _>(n + 1).map(|time| (*fact, (time - at(0)).whole_seconds()))
            })
            .collect(),
        class: row.get::<Option<&str>, _>("class").map(|class| match class {
            "transient" => Class::Transient,
            "undetermined" => Class::Undetermined,
            "permanent" => Class::Permanent,
            other => panic!("{other} is no class"),
        }),
        counts: row.get::<Vec<i32>, _>("counts").try_into().expect("two counts"),
        events: row.get("events"),
    };
    rows.iter().map(|row| (row.get("uuid"), facts(row))).collect()
}
