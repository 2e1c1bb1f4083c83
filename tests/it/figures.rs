//! The figures that are counted already are those that one would count from all rows at the end: whatever the order in which
//! events arrive, wherever the counting stops, and whoever else is at it.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use ses_ledger::{
    event::{Address, Event, EventKind},
    metrics::Metrics,
    postgres::{
        Postgres, PostgresSettings,
        rollup::{self, Rollup, Step},
    },
    retention::{Retention, Run},
    upkeep::{self, UpkeepSettings},
};
use sqlx::{Acquire as _, Row as _};
use time::{OffsetDateTime, macros::datetime};
use tokio::time::{Instant, timeout};
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    arrivals::{event, opened, store, with},
    database::{self, Database},
};

/// By month, dimension, key, day and counter.
type Figures = BTreeMap<(String, String, String, String, String), i64>;

const COUNTERS: &str = "sends deliveries delays bounces_permanent bounces_transient bounces_undetermined suppressed complaints \
                        rejects failures opens clicks opens_by_bots clicks_by_bots opened clicked";

/// Counts in slices of seven events, without a margin: nobody sets a clock back here.
fn rollup(tags: &[String]) -> Rollup<'_> {
    Rollup { tags: Some(tags), margin: Duration::ZERO, slice: 7 }
}

fn variant() -> Vec<String> {
    vec!["variant".to_owned()]
}

async fn count_on(postgres: &Postgres) -> Option<Step> {
    let patience = Instant::now() + Duration::from_secs(60);
    rollup(&variant()).run(postgres, patience, 0, |_| {}).await.unwrap_or_else(|e| panic!("{e:#}"))
}

pub(crate) async fn count_all(postgres: &Postgres) {
    let patience = Instant::now() + Duration::from_secs(60);
    let step = loop {
        match count_on(postgres).await {
            // The connection of one that was killed may still be at it.
            Some(Step::Busy) if Instant::now() < patience => tokio::time::sleep(Duration::from_millis(5)).await,
            step => break step,
        }
    };
    assert!(matches!(step, Some(Step::Counted { is_up_to_date: true, .. })), "{step:?}");
}

/// As they are in the table; lines and counters of nothing left out.
async fn kept(database: &Database) -> Figures {
    let rows = sqlx::query("SELECT month::text, dimension, key, day::text, to_jsonb(f)::text FROM email_figures AS f");
    let rows = rows.fetch_all(&database.pool).await.expect("they can be read");
    let mut figures = Figures::new();
    for row in rows {
        let text = |n: usize| row.get::<String, _>(n);
        let counters: serde_json::Value = serde_json::from_str(&text(4)).expect("it is JSON");
        for name in COUNTERS.split_whitespace() {
            let count = counters[name].as_i64().expect("each counter is there");
            figures.insert((text(0), text(1), text(2), text(3), name.to_owned()), count);
        }
    }
    figures.retain(|_, count| *count != 0);
    figures
}

/// Counted one by one, from the rows and by the words of SES.
async fn naive(database: &Database, tag: &str) -> Figures {
    let rows = sqlx::query(
        "SELECT e.email_log_uuid::text, coalesce(template_name, ''), coalesce(campaign_id, ''), coalesce(configuration_set, ''),
                coalesce(l.tags ->> $1, ''), recipient, event_type, coalesce(bounce_type, ''), coalesce(bounce_subtype, ''),
                coalesce(complaint_type, ''), complaint_subtype IS NOT NULL, candidate, coalesce(bot, ''),
                to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), to_char(l.created_at AT TIME ZONE 'UTC', 'YYYY-MM-01')
         FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid ORDER BY occurred_at",
    );
    let rows = rows.bind(tag).fetch_all(&database.pool).await.expect("they can be read");
    let mut figures = Figures::new();
    let mut seen = std::collections::HashSet::new();
    for row in rows {
        let text = |n: usize| row.get::<String, _>(n);
        let (mail, recipient, kind, day) = (text(0), text(5), text(6), text(13));
        let (bounce, subtype, complaint, of_list, candidate) =
            (text(7), text(8), text(9), row.get::<bool, _>(10), row.get::<bool, _>(11));
        let month = match mail.as_bytes()[14] {
            b'7' => {
                let id = Uuid::parse_str(&mail).expect("it is an id");
                let (seconds, _) = id.get_timestamp().expect("it tells a time").to_unix();
                let at = OffsetDateTime::from_unix_timestamp(seconds as i64).expect("it is one");
                format!("{}-{:02}-01", at.year(), at.month() as u8)
            }
            _ => text(14),
        };
        let mut counters = match (kind.as_str(), bounce.as_str()) {
            ("send", _) => vec!["sends"],
            ("delivery", _) => vec!["deliveries"],
            ("delivery_delay", _) => vec!["delays"],
            ("bounce", "Permanent") if subtype == "Suppressed" => vec!["bounces_permanent", "suppressed"],
            ("bounce", "Permanent") => vec!["bounces_permanent"],
            ("bounce", "Transient") => vec!["bounces_transient"],
            ("bounce", _) => vec!["bounces_undetermined"],
            ("complaint", _) if of_list => vec!["bounces_permanent", "suppressed"],
            ("complaint", _) if complaint == "not-spam" || candidate => vec![],
            ("complaint", _) => vec!["complaints"],
            ("reject", _) => vec!["rejects"],
            ("rendering_failure", _) => vec!["failures"],
            ("open", _) => vec!["opens"],
            ("click", _) => vec!["clicks"],
            _ => vec![],
        };
        if text(12) == "Likely" {
            counters.extend(match kind.as_str() {
                "open" => Some("opens_by_bots"),
                "click" => Some("clicks_by_bots"),
                _ => None,
            });
        }
        let domain = recipient.rsplit('@').next().unwrap_or_default().to_lowercase();
        let mut keys = vec![("all", String::new()), ("template", text(1)), ("campaign", text(2))];
        let tagged = format!("tag:{tag}");
        keys.extend([("configuration-set", text(3)), (tagged.as_str(), text(4)), ("domain", domain)]);
        let first = match kind.as_str() {
            "open" if seen.insert((mail.clone(), "opened")) => Some("opened"),
            "click" if seen.insert((mail.clone(), "clicked")) => Some("clicked"),
            _ => None,
        };
        for (dimension, key) in keys {
            for counter in counters.iter().copied().chain(first.filter(|_| dimension != "domain")) {
                let place = (month.clone(), dimension.to_owned(), key.clone(), day.clone(), counter.to_owned());
                *figures.entry(place).or_default() += 1;
            }
        }
    }
    figures
}

async fn assert_counted(database: &Database) {
    pretty(kept(database).await, naive(database, "variant").await);
}

fn pretty(kept: Figures, naive: Figures) {
    let wrong: Vec<_> =
        kept.iter().filter(|(k, n)| naive.get(*k) != Some(n)).map(|(k, n)| format!("has {k:?} {n}")).collect();
    let missing: Vec<_> =
        naive.iter().filter(|(k, n)| kept.get(*k) != Some(n)).map(|(k, n)| format!("not {k:?} {n}")).collect();
    assert!(wrong.is_empty() && missing.is_empty(), "{wrong:#?}\n{missing:#?}");
}

/// What a random mail is, and everything that SES reports about it.
async fn mail(database: &Database, rng: &mut Rng, n: usize) -> Vec<Event> {
    let sent = datetime!(2026-08-20 00:00 UTC) + time::Duration::seconds(rng.i64(0..70 * 86_400));
    let timed = Uuid::new_v7(Timestamp::from_unix(NoContext, sent.unix_timestamp() as u64, 0));
    // Some lie anywhere: one behind all months, one that only looks like September 2026.
    let uuid = match n % 10 {
        3 => Uuid::parse_str(&format!("f0{:06x}-0000-4000-8000-{n:012x}", rng.u32(..0xff_ffff))).expect("it is an id"),
        4 => Uuid::parse_str(&format!("01990000-0000-4000-8000-{n:012x}")).expect("it is an id"),
        _ => timed,
    };
    let id = format!("mail-{n}");
    let name = |rng: &mut Rng, name: &str| (rng.u8(..4) > 0).then(|| format!("{name}-{}", rng.u8(..3)));
    let tags = if rng.bool() { format!("{{\"variant\": \"{}\"}}", rng.u8(..2)) } else { "{}".to_owned() };
    let log = sqlx::query(
        "INSERT INTO email_logs (uuid, aws_message_id, template_name, campaign_id, configuration_set, tags, created_at)
         VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7)",
    );
    let log = log.bind(uuid).bind(&id).bind(name(rng, "template")).bind(name(rng, "campaign")).bind(name(rng, "set"));
    log.bind(tags).bind(sent).execute(&database.pool).await.expect("a log can be written");

    let domains = ["example.com", "example.net", "EXAMPLE.org"];
    let to = format!("p{n}@{}", domains[rng.usize(..3)]);
    let later = |rng: &mut Rng, days: i64| sent + time::Duration::seconds(rng.i64(0..days * 86_400));
    let of = |kind, at: OffsetDateTime, recipient: &str| {
        let at = at.replace_nanosecond(0).expect("zero is a good one");
        with(event(&id, kind), |e| (e.occurred_at, e.recipient) = (at, Address::parse(recipient)))
    };
    let mut events = vec![of(EventKind::Send, sent, &to)];
    match rng.u8(..8) {
        0 => events.push(of(EventKind::Reject, sent, "")),
        1 => events.push(of(EventKind::RenderingFailure, sent, "")),
        2 => events.push(with(of(EventKind::Bounce, later(rng, 2), &to), |e| {
            let class = ["Permanent", "Transient", "Undetermined", "Permanent"][rng.usize(..4)];
            e.detail.bounce_type = Some(class.to_owned());
            e.detail.bounce_subtype = (class == "Permanent" && rng.bool()).then(|| "Suppressed".to_owned());
        })),
        _ => {
            events.push(of(EventKind::DeliveryDelay, later(rng, 1), &to));
            events.push(of(EventKind::Delivery, later(rng, 3), &to));
            for _ in 0..rng.u8(..4) {
                events.push(with(of(EventKind::Open, later(rng, 40), ""), |e| {
                    e.detail.bot = [None, Some("Likely"), Some("Unlikely")][rng.usize(..3)].map(str::to_owned);
                }));
            }
            for _ in 0..rng.u8(..3) {
                events.push(of(EventKind::Click, later(rng, 40), ""));
            }
        }
    }
    if rng.u8(..3) == 0 {
        events.push(with(of(EventKind::Complaint, later(rng, 20), &to), |e| {
            e.detail.complaint_type = Some(["abuse", "not-spam"][rng.usize(..2)].to_owned());
            e.detail.complaint_subtype = (rng.u8(..3) == 0).then(|| "OnAccountSuppressionList".to_owned());
            e.candidate = rng.bool();
        }));
    }
    events.push(of(EventKind::Subscription, later(rng, 3), &to));
    events
}

/// Batches of many mails' events in an order of their own, some of them twice.
async fn story(database: &Database, seed: u64, mails: usize) -> (Vec<Vec<Event>>, Rng) {
    let mut rng = Rng::with_seed(seed);
    let mut events = Vec::new();
    for n in 0..mails {
        events.extend(mail(database, &mut rng, n).await);
    }
    let again: Vec<Event> = events.iter().filter(|_| rng.u8(..4) == 0).cloned().collect();
    events.extend(again);
    rng.shuffle(&mut events);
    let mut batches = Vec::new();
    while !events.is_empty() {
        let rest = events.split_off(rng.usize(1..40).min(events.len()));
        batches.push(std::mem::replace(&mut events, rest));
    }
    (batches, rng)
}

#[tokio::test]
async fn in_whatever_order_events_arrive_and_counting_stops_the_figures_are_those_of_all_rows() {
    for seed in [1, 2, 3] {
        let database = database::fresh().await;
        let postgres = database.store();
        let (batches, mut rng) = story(&database, seed, 60).await;
        for batch in batches {
            store(&postgres, batch).await;
            match rng.u8(..4) {
                0 => {
                    count_all(&postgres).await;
                    assert_counted(&database).await;
                }
                // Killed somewhere: what it was about to do is undone, and done by the next.
                1 => {
                    let patience = Duration::from_micros(rng.u64(..20_000));
                    let _ = timeout(patience, count_on(&postgres)).await;
                }
                2 => {
                    let safe = rollup::safe_until(&postgres, Duration::ZERO).await.expect("it answers");
                    let step = rollup(&variant()).step(&postgres, safe.expect("nobody stores")).await;
                    step.unwrap_or_else(|e| panic!("{e:#}"));
                }
                _ => {}
            }
        }
        count_all(&postgres).await;
        assert_counted(&database).await;
        let figures = kept(&database).await;
        assert!(figures.len() > 300 && figures.keys().any(|k| k.4 == "opened"), "{}", figures.len());
        let months = database.number("SELECT count(DISTINCT tableoid) FROM email_events").await;
        assert!(months >= 4, "the events lie in {months} partitions");

        let difference = rollup::rebuild(&postgres, false, None, |_| {}).await.expect("it counts");
        assert_eq!(difference.lines(), 0, "{difference:?}");
        assert!(!difference.months.is_empty());
    }
}

#[tokio::test]
async fn several_count_while_several_store() {
    let database = database::fresh().await;
    let postgres = database.store();
    let (batches, _) = story(&database, 7, 120).await;
    let stored = async {
        let halves: Vec<Vec<Vec<Event>>> = batches.chunks(batches.len().div_ceil(2)).map(<[_]>::to_vec).collect();
        let each = halves.into_iter().map(|half| {
            let postgres = database::connect(&database.url);
            async move {
                for batch in half {
                    let arrivals = crate::arrivals::arrivals(batch);
                    crate::arrivals::store_patiently(&postgres, &arrivals).await;
                }
            }
        });
        futures_util::future::join_all(each).await;
    };
    let done = tokio_util::sync::CancellationToken::new();
    let counters = (0..3).map(|_| {
        let (postgres, done) = (database::connect(&database.url), done.clone());
        tokio::spawn(async move {
            while !done.is_cancelled() {
                count_on(&postgres).await;
            }
        })
    });
    let counters: Vec<_> = counters.collect();
    stored.await;
    done.cancel();
    for counter in counters {
        counter.await.expect("it does not panic");
    }
    count_all(&postgres).await;
    assert_counted(&database).await;
}

#[tokio::test]
async fn what_an_open_transaction_stores_is_neither_missed_nor_counted_twice() {
    let database = database::fresh().await;
    let postgres = database.store();
    let mail = database.log("held").await;
    database.log("other").await;
    let mut connection = database.pool.acquire().await.expect("there is one");
    // It began before everything, and stores later.
    let mut early = connection.begin().await.expect("it begins");
    sqlx::query("SELECT now()").execute(&mut *early).await.expect("it answers");
    store(&postgres, [event("other", EventKind::Send)]).await;
    count_all(&postgres).await;

    let held =
        "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, queue, sqs_message_id, received_at)
                VALUES ($1, $2, $3, now(), 'q', 's', now())";
    sqlx::query(held).bind(Uuid::now_v7()).bind(mail).bind("send").execute(&mut *early).await.expect("it is stored");
    store(&postgres, [event("other", EventKind::Delivery)]).await;
    let before = rollup::position(&postgres).await.expect("it is known").counted_until;
    assert_eq!(count_on(&postgres).await, None, "somebody is storing");
    assert_eq!(rollup::position(&postgres).await.expect("it is known").counted_until, before, "nothing has moved");
    sqlx::query(held)
        .bind(Uuid::now_v7())
        .bind(mail)
        .bind("delivery")
        .execute(&mut *early)
        .await
        .expect("it is stored");
    early.commit().await.expect("it is committed");

    count_all(&postgres).await;
    let sum = "SELECT concat_ws(' ', sum(sends), sum(deliveries)) FROM email_figures WHERE dimension = 'all'";
    assert_eq!(database.text(sum).await, "2 2");
    assert_counted(&database).await;
    count_all(&postgres).await;
    assert_eq!(database.text(sum).await, "2 2", "counting again counts nothing");
}

#[tokio::test]
async fn a_late_event_lands_in_its_own_day_and_an_earlier_open_moves_the_first() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.log("late").await;
    let days = "SELECT string_agg(concat_ws(' ', to_char(day, 'MM-DD'), deliveries, opens, opened), ', ' ORDER BY day)
                FROM email_figures WHERE dimension = 'template' AND key = ''";
    store(&postgres, [event("late", EventKind::Delivery), opened("late", 3 * 86_400)]).await;
    count_all(&postgres).await;
    assert_eq!(database.text(days).await, "10-05 1 0 0, 10-08 0 1 1");
    store(&postgres, [opened("late", 5 * 86_400), opened("late", 86_400)]).await;
    count_all(&postgres).await;
    assert_eq!(database.text(days).await, "10-05 1 0 0, 10-06 0 1 1, 10-08 0 1 0, 10-10 0 1 0");
    assert_counted(&database).await;
}

#[tokio::test]
async fn damaged_figures_are_told_and_counted_anew_to_the_same_numbers() {
    let database = database::fresh().await;
    let postgres = database.store();
    for batch in story(&database, 5, 60).await.0 {
        store(&postgres, batch).await;
    }
    count_all(&postgres).await;
    let good = kept(&database).await;

    database
        .run("UPDATE email_figures SET opens = opens + 3 WHERE dimension = 'template' AND key = 'template-1'")
        .await;
    database.run("DELETE FROM email_figures WHERE dimension = 'domain' AND key = 'example.net'").await;
    database.run("INSERT INTO email_figures (month, dimension, key, day, sends) VALUES ('2026-08-01', 'campaign', 'ghost', '2026-09-09', 1)").await;
    // A tag that is chosen now is counted for the past as well.
    database.run("UPDATE ses_ledger_figures SET tags = '{variant,ring}'").await;
    let damaged = kept(&database).await;
    let difference = rollup::rebuild(&postgres, false, None, |_| {}).await.expect("it counts");
    assert!(difference.lines() > 3 && !difference.applied, "{difference:?}");
    assert_eq!(kept(&database).await, damaged, "it was only told");
    let one = rollup::rebuild(
        &postgres,
        true,
        Some(datetime!(2026-08-01 00:00 UTC).date()..=datetime!(2026-08-01 00:00 UTC).date()),
        |_| {},
    );
    assert_eq!(one.await.expect("it counts").months.len(), 1);
    let rest = rollup::rebuild(&postgres, true, None, |_| {}).await.expect("it counts");
    assert!(rest.lines() < difference.lines() && rest.months[0].different == 0, "what was mended is not told again");
    let mut mended = kept(&database).await;
    let with_ring = mended.len();
    mended.retain(|place, _| place.1 != "tag:ring");
    assert!(mended.len() < with_ring);
    pretty(mended, good);
    assert_eq!(rollup::rebuild(&postgres, true, None, |_| {}).await.expect("it counts").lines(), 0);
}

#[tokio::test]
async fn the_figures_of_months_that_were_let_go_stay() {
    let database = database::fresh().await;
    let postgres = database.store();
    for batch in story(&database, 11, 60).await.0 {
        store(&postgres, batch).await;
    }
    // Nobody has counted yet: who drops events counts them first.
    let all = naive(&database, "variant").await;
    database.run("UPDATE ses_ledger_figures SET tags = '{variant}'").await;
    let month = OffsetDateTime::now_utc() - datetime!(2026-10-01 00:00 UTC);
    let retention = Retention { retention_events: Some(month.unsigned_abs()), ..Retention::default() };
    let gone = Run { postgres: &postgres, retention: &retention, export: None, tell: &mut |_| {} }.go().await;
    let gone = gone.unwrap_or_else(|e| panic!("{e:#}"));
    assert!(gone[0].rows > 20, "{gone:?}");
    pretty(kept(&database).await, all.clone());

    let difference = rollup::rebuild(&postgres, true, None, |_| {}).await.expect("it counts");
    assert_eq!(difference.lines(), 0, "{difference:?}");
    assert!(difference.months.iter().all(|m| m.month >= datetime!(2026-10-01 00:00 UTC).date()), "{difference:?}");
    pretty(kept(&database).await, all);
}

#[tokio::test]
async fn a_name_of_any_length_is_counted() {
    let database = database::fresh().await;
    let postgres = database.store();
    for (n, end) in ["a", "b"].iter().enumerate() {
        let uuid = database.log(&format!("long-{n}")).await;
        let name = format!("{}{end}", "n\u{1F4E7}".repeat(2_000));
        let query = sqlx::query("UPDATE email_logs SET template_name = $2 WHERE uuid = $1").bind(uuid).bind(name);
        query.execute(&database.pool).await.expect("it can be long");
        store(&postgres, [event(&format!("long-{n}"), EventKind::Send)]).await;
    }
    count_all(&postgres).await;
    let keys = "SELECT count(*) FROM email_figures WHERE dimension = 'template' AND length(key) < 300 AND sends = 1";
    assert_eq!(database.number(keys).await, 2, "two long names are two");
}

#[tokio::test]
async fn who_is_erased_goes_from_the_figures_with_her_domain() {
    let database = database::fresh().await;
    let postgres = database.store();
    let log = database.log("hers").await;
    let tag = sqlx::query("UPDATE email_logs SET tags = '{\"variant\": \"for ana@rare.example\"}' WHERE uuid = $1");
    tag.bind(log).execute(&database.pool).await.expect("it can be written");
    let of_ana = |kind| with(event("hers", kind), |e| e.recipient = Address::parse("Ana@Rare.example"));
    store(&postgres, [of_ana(EventKind::Send), of_ana(EventKind::Delivery), opened("hers", 9)]).await;
    count_all(&postgres).await;
    // And one that is not counted yet.
    store(&postgres, [of_ana(EventKind::Complaint)]).await;
    assert_eq!(database.number("SELECT count(*) FROM email_figures WHERE key LIKE '%rare.example%'").await, 2);

    crate::erasure::erase(&postgres, "ana@rare.example").await;
    let all = database.texts("SELECT f::text FROM email_figures AS f").await.join("\n");
    assert!(!all.contains("rare.example") && all.contains("(erased)"), "{all}");
    let sums = "SELECT string_agg(DISTINCT concat_ws(' ', dimension, s, d), ', ') FROM (
                  SELECT dimension, sum(sends) AS s, sum(deliveries) AS d FROM email_figures GROUP BY 1) AS x WHERE (s, d) <> (1, 1)";
    assert_eq!(database.text(&format!("SELECT coalesce(({sums}), 'none')")).await, "none");
    assert_eq!(rollup::rebuild(&postgres, false, None, |_| {}).await.expect("it counts").lines(), 0);
    count_all(&postgres).await;
    assert_eq!(rollup::rebuild(&postgres, false, None, |_| {}).await.expect("it counts").lines(), 0);
}

#[tokio::test]
async fn where_a_slice_takes_longer_than_a_statement_may_smaller_ones_do() {
    let database = database::fresh().await;
    for batch in story(&database, 13, 120).await.0 {
        store(&database.store(), batch).await;
    }
    // Every event takes its time now.
    database
        .run(
            "CREATE OR REPLACE FUNCTION ses_ledger_fact(event_type text, complaint_type text, complaint_subtype text) RETURNS text
             LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.004);
               RETURN CASE event_type WHEN 'send' THEN 'sent' END; END $$",
        )
        .await;
    let settings =
        PostgresSettings { statement_timeout: Duration::from_secs(1), ..PostgresSettings::new(&database.url) };
    let slow = Postgres::new(&settings).expect("the URL is well formed");
    let rollup = Rollup { margin: Duration::ZERO, ..Rollup::default() };
    let patience = Instant::now() + Duration::from_secs(60);
    let step = rollup.run(&slow, patience, 0, |_| {}).await.unwrap_or_else(|e| panic!("{e:#}"));
    assert!(matches!(step, Some(Step::Counted { is_up_to_date: true, .. })), "{step:?}");
    assert_eq!(database.number("SELECT sum(sends)::bigint FROM email_figures WHERE dimension = 'all'").await, 120);
}

#[tokio::test]
async fn a_round_of_upkeep_counts_the_figures_on_unless_that_is_off() {
    let database = database::fresh().await;
    let (postgres, metrics) = (database.store(), Metrics::default());
    let log = database.log("m").await;
    let tags = sqlx::query("UPDATE email_logs SET tags = '{\"plan\": \"free\"}' WHERE uuid = $1").bind(log);
    tags.execute(&database.pool).await.expect("it can be written");
    store(&postgres, [event("m", EventKind::Send)]).await;
    // The margin is left out of it: that is for clocks.
    database.run("UPDATE email_events SET stored_at = stored_at - interval '1 minute'").await;
    let on = UpkeepSettings {
        sweep_interval: Duration::from_secs(10),
        figures_interval: Some(Duration::from_secs(60)),
        figures_tags: vec!["plan".to_owned()],
        retention: Retention::default(),
    };
    let off = UpkeepSettings { figures_interval: None, ..on.clone() };
    let until = || Instant::now() + Duration::from_secs(60);
    assert!(upkeep::once(&postgres, &off, &metrics, until()).await.expect("it works").complete);
    assert_eq!(database.number("SELECT count(*) FROM email_figures").await, 0);
    assert!(upkeep::once(&postgres, &on, &metrics, until()).await.expect("it works").complete);
    let keys = "SELECT string_agg(concat_ws('=', dimension, key, sends), ' ' ORDER BY dimension) FROM email_figures";
    assert_eq!(
        database.text(keys).await,
        "all==1 campaign==1 configuration-set==1 domain=example.com=1 tag:plan=free=1 template==1"
    );
    assert!((5..60).contains(&metrics.figures_lag_seconds.get()), "{:?}", metrics.figures_lag_seconds);
}
