//! Who is not to be written to again is known whatever came first, outlives the events, and is found by any spelling.

use ses_ledger::{
    erasure::Person,
    event::{Address, Event, EventKind},
    orphans,
    pipeline::Verdict::{Duplicate, Expired, Inserted, Orphaned},
    postgres::{
        Postgres,
        erasure::{self, Erasure},
        letting_go::Owner,
        migrations,
        suppression::{self, Listed, Suppression},
    },
    retention::{Retention, Run},
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use time::OffsetDateTime;
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    arrivals::{arrivals, at, event, store, store_patiently, with},
    database,
    roles::login_of,
    store::check_no_deadlock,
};

const ANA: &str = "ana@example.net";

/// A report about somebody, so many seconds after the beginning.
fn report(id: &str, kind: EventKind, who: &str, seconds: i64) -> Event {
    with(event(id, kind), |e| (e.recipient, e.occurred_at) = (Address::parse(who), at(seconds)))
}

fn bounce(id: &str, who: &str, (class, subtype): (&str, &str), seconds: i64) -> Event {
    with(report(id, EventKind::Bounce, who, seconds), |e| {
        (e.detail.bounce_type, e.detail.bounce_subtype) = (Some(class.to_owned()), Some(subtype.to_owned()));
    })
}

fn complaint(id: &str, who: &str, kind: Option<&str>, seconds: i64) -> Event {
    with(report(id, EventKind::Complaint, who, seconds), |e| e.detail.complaint_type = kind.map(str::to_owned))
}

const GONE: (&str, &str) = ("Permanent", "NoEmail");
const FULL: (&str, &str) = ("Transient", "MailboxFull");

async fn told(postgres: &Postgres, addresses: &[&str]) -> Vec<Suppression> {
    let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
    suppression::suppressed(postgres, &addresses).await.expect("it answers")
}

/// The cause, if she is suppressed.
async fn cause(postgres: &Postgres, address: &str) -> Option<String> {
    let report = told(postgres, &[address]).await.pop()?;
    report.certain.then_some(report.cause)
}

async fn is_suppressed(postgres: &Postgres, address: &str) -> bool {
    cause(postgres, address).await.is_some()
}

#[tokio::test]
async fn each_report_has_its_cause_or_none() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.log("m").await;
    let listed = |who, subtype: &str| {
        with(complaint("m", who, None, 1), |e| e.detail.complaint_subtype = Some(subtype.to_owned()))
    };
    let cases = [
        (bounce("m", "a@x.org", GONE, 1), Some("bounce")),
        (bounce("m", "b@x.org", ("permanent", "General"), 1), Some("bounce")),
        (bounce("m", "c@x.org", FULL, 1), None),
        (bounce("m", "d@x.org", ("Undetermined", "Undetermined"), 1), None),
        (bounce("m", "e@x.org", ("Permanent", "OnAccountSuppressionList"), 1), Some("ses_list")),
        (bounce("m", "f@x.org", ("Permanent", "Suppressed"), 1), Some("ses_list")),
        (bounce("m", "g@x.org", ("Permanent", "EmailValidationSuppressed"), 1), Some("ses_list")),
        // Of one contact list: she may still want her password.
        (bounce("m", "h@x.org", ("Permanent", "UnsubscribedRecipient"), 1), None),
        (complaint("m", "i@x.org", Some("abuse"), 1), Some("complaint")),
        (complaint("m", "j@x.org", None, 1), Some("complaint")),
        (complaint("m", "k@x.org", Some("Not-Spam"), 1), None),
        (listed("l@x.org", "OnTenantSuppressionList"), Some("ses_list")),
        (report("m", EventKind::Reject, "n@x.org", 1), None),
        (report("m", EventKind::DeliveryDelay, "o@x.org", 1), None),
    ];
    let events: Vec<Event> = cases.iter().map(|(event, _)| event.clone()).collect();
    assert_eq!(store(&postgres, events).await, [Inserted; 14]);
    for (event, expected) in &cases {
        let who = event.recipient.as_str();
        assert_eq!(cause(&postgres, who).await.as_deref(), *expected, "{who}");
    }
    assert_eq!(cause(&postgres, "somebody.else@x.org").await, None);
    let first = told(&postgres, &["A@x.org"]).await.remove(0);
    assert_eq!((first.address.as_str(), first.subtype.as_deref()), ("A@x.org", Some("NoEmail")), "as it was asked for");
    let row = "SELECT concat_ws(' ', email_log_uuid, uuid) FROM email_events WHERE recipient = 'a@x.org'";
    let ids = [first.email_log_uuid, first.event_uuid].map(|id| id.expect("both are known").to_string());
    assert_eq!(database.text(row).await, ids.join(" "));
}

#[tokio::test]
async fn an_address_is_found_by_any_spelling() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.log("m").await;
    store(&postgres, [bounce("m", "rfc822; Ana Lee <Ana.Lee@EXAMPLE.net>", GONE, 1)]).await;
    for asked in [
        "ana.lee@example.net",
        " ANA.LEE@EXAMPLE.NET\t",
        "Ana Lee <ana.lee@example.net>",
        "\"Lee, Ana\" <Ana.Lee@example.net>",
        "rfc822;ana.lee@example.net",
        "bob@x.org, ana.lee@example.net",
        "Bob <bob@x.org>; Ana <ana.lee@example.net>",
    ] {
        assert!(is_suppressed(&postgres, asked).await, "{asked}");
    }
    for asked in ["diana.lee@example.net", "lee@example.net", "ana.lee@example.ne", "", "<>", "@example.net", "%"] {
        assert!(!is_suppressed(&postgres, asked).await, "{asked}");
    }
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_suppressed(NULL::text)").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_suppressed(NULL::text[])").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_suppressed('ANA.lee@example.net')").await, 1);
}

#[tokio::test]
async fn candidates_are_told_and_nothing_is_held_against_them() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.log("m").await;
    let both = ["bob@x.org", ANA].map(|who| with(complaint("m", who, Some("abuse"), 5), |e| e.candidate = true));
    store(&postgres, both.clone()).await;
    assert_eq!(
        database.number("SELECT count(*) FROM ses_ledger_suppressed(ARRAY['bob@x.org', 'ana@example.net'])").await,
        0
    );
    let perhaps = told(&postgres, &["bob@x.org", ANA]).await;
    assert_eq!(
        perhaps.iter().map(|report| (report.certain, report.cause.as_str())).collect::<Vec<_>>(),
        [(false, "complaint"); 2]
    );
    let listed = suppression::list(&postgres, &Listed { limit: 9, ..Listed::default() }).await.expect("it answers");
    assert!(listed.is_empty(), "{listed:?}");
    // The same row of the mail, and now it is certain.
    assert_eq!(store(&postgres, [complaint("m", ANA, Some("abuse"), 4)]).await, [Duplicate]);
    let now = told(&postgres, &["bob@x.org", ANA]).await;
    assert_eq!(now.iter().map(|report| report.certain).collect::<Vec<_>>(), [false, true]);
    assert_eq!(suppression::remove(&postgres, "bob@x.org", "why not").await.expect("it answers"), None);
}

/// A transient and a permanent bounce of one mail share a row, and so do complaints: which one it is depends on what came first.
#[tokio::test]
async fn whatever_comes_first_the_same_is_known() {
    let database = database::fresh().await;
    let postgres = database.store();
    let story = |n: usize| {
        let (id, other, who) = (format!("m{n}"), format!("n{n}"), format!("u@{n}.org"));
        let candidate = with(complaint(&id, &who, Some("abuse"), 30), |e| e.candidate = true);
        vec![
            bounce(&id, &who, FULL, 10),
            bounce(&id, &who, GONE, 20),
            candidate,
            complaint(&id, &who, Some("fraud"), 40),
            bounce(&other, &who, GONE, 20),
        ]
    };
    let orders = permutations(5);
    for (n, order) in orders.iter().enumerate() {
        let (id, other) = (format!("m{n}"), format!("n{n}"));
        // Some mails are known from the beginning, some later, some in between.
        let (early, late) = if n % 2 == 0 { (&id, &other) } else { (&other, &id) };
        database.log_of(numbered(n, *early != id), Some(early)).await;
        let events: Vec<Event> = order.iter().map(|k| story(n)[*k].clone()).collect();
        let batches: Vec<Vec<Event>> = match n % 3 {
            0 => vec![events.clone()],
            1 => events.iter().map(|event| vec![event.clone()]).collect(),
            _ => events.chunks(2).map(<[Event]>::to_vec).collect(),
        };
        let half = batches.len() / 2;
        for (k, batch) in batches.into_iter().enumerate() {
            if k == half {
                database.log_of(numbered(n, *late != id), Some(late)).await;
            }
            store(&postgres, batch).await;
        }
        // All of it once more.
        store(&postgres, events).await;
    }
    while orphans::sweep_all(&postgres).await.expect("nobody is in the way") > 0 {}
    let all = database
        .texts(
            "SELECT DISTINCT string_agg(concat_ws(' ', candidate, occurred_at AT TIME ZONE 'UTC', cause, subtype, left(l.aws_message_id, 1)), ', '
                                        ORDER BY candidate, occurred_at)
             FROM ses_ledger_suppressions AS s LEFT JOIN email_logs AS l ON l.uuid = s.email_log_uuid GROUP BY address",
        )
        .await;
    let expected = "f 2026-10-05 08:00:20 bounce NoEmail m, f 2026-10-05 08:00:40 complaint fraud m, t 2026-10-05 08:00:30 complaint abuse m";
    assert_eq!(all, [expected], "in each of {} orders", orders.len());
    assert_eq!(told(&postgres, &["u@7.org"]).await[0].reports, 2);
}

/// Of two mails the other one has the greater id.
fn numbered(n: usize, is_other: bool) -> Uuid {
    Uuid::from_u128(n as u128 * 2 + 2 + u128::from(is_other))
}

fn permutations(of: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for n in 0..of {
        all = all
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                (0..=order.len()).map(move |place| {
                    let mut order = order.clone();
                    order.insert(place, n);
                    order
                })
            })
            .collect();
    }
    all
}

#[tokio::test]
async fn what_happened_before_a_removal_does_not_come_back_and_what_happens_after_it_does() {
    let database = database::fresh().await;
    let postgres = database.store();
    for id in ["one", "two", "three", "four"] {
        database.log(id).await;
    }
    let now = || (OffsetDateTime::now_utc() - at(0)).whole_seconds();
    assert_eq!(suppression::remove(&postgres, ANA, "not yet").await.expect("it answers"), None);
    store(&postgres, [bounce("one", ANA, GONE, 10)]).await;
    let removal =
        suppression::remove(&postgres, "Ana <ANA@example.net>", " She wrote to us ").await.expect("it answers");
    assert!(removal.is_some() && !is_suppressed(&postgres, ANA).await);
    assert_eq!(suppression::remove(&postgres, ANA, "again").await.expect("it answers"), None, "there is nothing left");
    let told = suppression::removals(&postgres, Some("ANA@example.net"), 9).await.expect("it answers");
    assert_eq!(
        told.iter().map(|r| (r.address.as_str(), r.reason.as_str())).collect::<Vec<_>>(),
        [(ANA, "She wrote to us")]
    );
    // Older, and heard of only now.
    store(&postgres, [complaint("two", ANA, None, 20), bounce("one", ANA, GONE, 10)]).await;
    assert!(!is_suppressed(&postgres, ANA).await);
    store(&postgres, [bounce("three", ANA, GONE, now() + 5)]).await;
    assert!(is_suppressed(&postgres, ANA).await);
    // A clock that is ahead: what is known is covered all the same.
    store(&postgres, [bounce("four", ANA, GONE, now() + 500_000)]).await;
    assert!(suppression::remove(&postgres, ANA, "She wrote again").await.expect("it answers").is_some());
    assert!(!is_suppressed(&postgres, ANA).await);
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_suppression_removals").await, 2);
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_suppressions").await, 4, "nothing is forgotten");
    let blank = suppression::remove(&postgres, ANA, "  ").await;
    assert!(format!("{:#}", blank.expect_err("a reason is wanted")).contains("reason"));
}

fn id_of(days_ago: i64) -> Uuid {
    let at = OffsetDateTime::now_utc() - time::Duration::days(days_ago);
    Uuid::new_v7(Timestamp::from_unix(NoContext, at.unix_timestamp() as u64, 0))
}

fn days(days: u64) -> std::time::Duration {
    std::time::Duration::from_secs(days * 24 * 3600)
}

fn of_old(event: Event, days_ago: i64) -> Event {
    with(event, |e| {
        let at =
            OffsetDateTime::now_utc().replace_nanosecond(0).expect("zero is good") - time::Duration::days(days_ago);
        (e.mailed_at, e.occurred_at) = (Some(at), at);
    })
}

#[tokio::test]
async fn it_outlives_the_events_and_what_is_not_stored_any_more_is_known_as_well() {
    let database = database::fresh().await;
    let postgres = database.store();
    for (id, age) in [("old", 200), ("older", 300)] {
        database.log_of(id_of(age), Some(id)).await;
        store(&postgres, [of_old(bounce(id, &format!("{id}@x.org"), GONE, 0), age)]).await;
    }
    let retention =
        Retention { retention_events: Some(days(90)), retention_logs: Some(days(250)), ..Retention::default() };
    Run { postgres: &postgres, retention: &retention, export: None, tell: &mut |_| {} }
        .go()
        .await
        .expect("nothing is in the way");
    assert_eq!(database.number("SELECT count(*) FROM email_events").await, 0);
    assert_eq!(database.texts("SELECT aws_message_id FROM email_logs").await, ["old"]);
    assert!(is_suppressed(&postgres, "old@x.org").await && is_suppressed(&postgres, "older@x.org").await);
    // Of a mail whose events were let go, and of one that was let go itself.
    let late = [
        of_old(complaint("old", "late@x.org", None, 0), 199),
        of_old(bounce("older", "later@x.org", GONE, 0), 299),
        of_old(bounce("older", "later@y.org", FULL, 0), 299),
    ];
    assert_eq!(store(&postgres, late).await, [Expired; 3]);
    assert_eq!(cause(&postgres, "late@x.org").await.as_deref(), Some("complaint"));
    let later = told(&postgres, &["later@x.org", "later@y.org"]).await;
    assert_eq!((later.len(), later[0].email_log_uuid, later[0].event_uuid), (1, None, None));
    // One that waits for its mail tells as well.
    assert_eq!(store(&postgres, [bounce("unknown", "waits@x.org", GONE, 1)]).await, [Orphaned]);
    assert!(is_suppressed(&postgres, "waits@x.org").await);
    let log = database.log("unknown").await;
    assert_eq!(orphans::sweep_all(&postgres).await.expect("nobody is in the way"), 1);
    let waits = told(&postgres, &["waits@x.org"]).await.remove(0);
    assert_eq!((waits.email_log_uuid, waits.event_uuid.is_some(), waits.reports), (Some(log), true, 1));
}

async fn erase(postgres: &Postgres, address: &str) -> String {
    let mut owner = Owner::begin(postgres).await.expect("nobody is at it");
    let bare = Person::parse(address, "").expect("it is an address");
    let name = erasure::name_of(&mut owner, bare.address()).await.expect("it answers");
    let person = Person::parse(address, &name).expect("it is an address");
    let found = erasure::look(&mut owner, &person, |_, _| {}).await.expect("it answers");
    let mut erasure = Erasure::begin(&mut owner, &name).await.expect("nothing is in the way");
    while erasure.step(&mut owner, &person).await.unwrap_or_else(|e| panic!("{e:#}")).is_some() {}
    let receipt = erasure.receipt(&mut owner).await.expect("it has ended");
    assert_eq!(receipt.rows.0["suppressions"], found.0["suppressions"], "as it was said before");
    owner.end().await;
    format!("{} {name}", receipt.rows.0["suppressions"])
}

const EVERYTHING: &str = "SELECT string_agg(t, ' ') FROM (
    SELECT s::text AS t FROM ses_ledger_suppressions AS s UNION ALL SELECT r::text FROM ses_ledger_suppression_removals AS r
    UNION ALL SELECT e::text FROM email_events AS e UNION ALL SELECT l::text FROM email_logs AS l) AS rows";

#[tokio::test]
async fn who_was_erased_is_still_not_written_to_and_her_address_is_nowhere() {
    let database = database::fresh().await;
    let postgres = database.store();
    database.run("INSERT INTO email_logs (aws_message_id, recipients) VALUES ('one', '{Ana@Example.net,bob@x.org}'), ('two', '{ana@example.net}')").await;
    store(&postgres, [bounce("one", "Ana@Example.net", GONE, 10), bounce("one", "bob@x.org", GONE, 10)]).await;
    suppression::remove(&postgres, ANA, "Ana Lee <ana@example.net> wrote to us")
        .await
        .expect("it answers")
        .expect("she is");
    suppression::remove(&postgres, "bob@x.org", "as ANA@example.net says").await.expect("it answers").expect("he is");
    let ahead = (OffsetDateTime::now_utc() - at(0)).whole_seconds() + 5;
    store(&postgres, [complaint("two", ANA, Some("abuse"), ahead)]).await;
    let receipt = erase(&postgres, "ANA@example.net").await;
    assert!(receipt.starts_with("4 erased:"), "two reports, two removals: {receipt}");
    let nowhere = async || {
        let all = database.text(EVERYTHING).await.to_lowercase();
        assert!(!all.contains("ana@") && !all.contains("ana lee"), "{all}");
    };
    nowhere().await;
    assert_eq!(cause(&postgres, "Ana <ANA@example.net>").await.as_deref(), Some("complaint"));
    assert_eq!(told(&postgres, &[ANA]).await[0].reports, 1, "what the removal covers stays covered");
    // She may be written to again, under the digest.
    let removal = suppression::remove(&postgres, ANA, "by letter").await.expect("it answers");
    assert!(removal.is_some() && !is_suppressed(&postgres, ANA).await);
    nowhere().await;
    // SES reports something new about her, in the spelling of that mail; then all of it once more.
    for _ in 0..2 {
        store(
            &postgres,
            [complaint("one", "Ana@example.net", None, ahead + 600), bounce("one", "Ana@Example.net", GONE, 10)],
        )
        .await;
        let now = told(&postgres, &["ana@EXAMPLE.net"]).await;
        assert_eq!(now.iter().map(|r| (r.cause.as_str(), r.reports)).collect::<Vec<_>>(), [("complaint", 1)]);
    }
    nowhere().await;
}

#[tokio::test]
async fn a_thousand_addresses_are_one_question_that_scans_nothing() {
    let database = database::fresh().await;
    let postgres = database.store();
    database
        .run(
            "INSERT INTO ses_ledger_suppressions (address, candidate, occurred_at, cause)
             SELECT concat('u', n, '@x.org'), n % 10 = 0, now() - make_interval(mins => n), 'bounce' FROM generate_series(1, 3000) AS n",
        )
        .await;
    let scans = "SELECT sum(seq_scan)::bigint FROM pg_stat_user_tables WHERE relname LIKE 'ses_ledger_suppression%'";
    let mut asking = PgConnection::connect(&database.url).await.expect("it is there");
    // As little as possible in favour of the index: no statistics, and whatever a session may set.
    asking
        .execute("SET enable_indexscan = on; SET enable_seqscan = on; SET random_page_cost = 1000")
        .await
        .expect("it may");
    let before = database.number(scans).await;
    let asked: Vec<String> = (1..=1_000).map(|n| format!("U{}@X.org", n * 4)).collect();
    for _ in 0..8 {
        let rows = sqlx::query("SELECT * FROM ses_ledger_suppressed($1::text[])").bind(&asked);
        assert_eq!(
            rows.fetch_all(&mut asking).await.expect("it answers").len(),
            600,
            "750 are known, 150 of them perhaps"
        );
    }
    asking.execute("SELECT pg_stat_force_next_flush()").await.expect("it answers");
    asking.close().await.expect("it is open");
    let index =
        "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'ses_ledger_suppressions'";
    assert!(database.number(index).await >= 8_000, "the statistics are there");
    assert_eq!(database.number(scans).await, before);
    let all =
        suppression::suppressed(&postgres, &[asked.as_slice(), &asked, &asked].concat()).await.expect("it answers");
    assert_eq!(all.len(), 3 * 750, "in slices");
}

#[tokio::test]
async fn a_sender_may_ask_and_read_nothing_else() {
    let database = database::fresh().await;
    database.log("m").await;
    store(&database.store(), [bounce("m", ANA, GONE, 1)]).await;
    let url = login_of(&database, "LOGIN").await;
    let name = url.split(['/', ':']).nth(3).expect("a user comes after the scheme").to_owned();
    let ask = "SELECT cause FROM ses_ledger_suppressed('ana@example.net')";
    let mut sender = PgConnection::connect(&url).await.expect("the login is new");
    assert!(sender.execute(ask).await.is_err(), "nobody granted it");
    database.run(&format!("GRANT EXECUTE ON FUNCTION ses_ledger_suppressed(text, boolean), ses_ledger_suppressed(text[], boolean) TO {name}")).await;
    database.run(&format!("GRANT USAGE ON SCHEMA public TO {name}")).await;
    let cause: String = sqlx::query_scalar(ask).fetch_one(&mut sender).await.expect("it may");
    assert_eq!(cause, "bounce");
    // Whatever the caller's search path holds.
    sender
        .execute("SET search_path = pg_temp, public; CREATE TEMP TABLE ses_ledger_suppressions (address text)")
        .await
        .expect("it may");
    let cause: String = sqlx::query_scalar(ask).fetch_one(&mut sender).await.expect("it may");
    assert_eq!(cause, "bounce");
    for forbidden in [
        "SELECT * FROM public.ses_ledger_suppressions",
        "SELECT * FROM public.ses_ledger_suppression_removals",
        "SELECT * FROM public.email_events",
        "SELECT * FROM public.email_logs",
        "SELECT public.ses_ledger_remove_suppression('ana@example.net', 'why not')",
        "SELECT public.ses_ledger_erased_name('ana@example.net')",
    ] {
        let refused = sender.execute(forbidden).await.expect_err(forbidden);
        assert_eq!(refused.as_database_error().and_then(|e| e.code()).as_deref(), Some("42501"), "{forbidden}");
    }
    let as_role = async |role: &str, sql: &'static str| {
        let mut session =
            PgConnection::connect(&crate::roles::login(&database, &[role]).await).await.expect("it is new");
        session.execute(sql).await.err().and_then(|e| e.as_database_error()?.code().map(|code| code.into_owned()))
    };
    assert_eq!(as_role("ses_ledger_sender", ask).await, None);
    assert_eq!(as_role("ses_ledger_operator", ask).await, None);
    assert_eq!(as_role("ses_ledger_operator", "SELECT * FROM ses_ledger_suppression_removals").await, None);
    for role in ["ses_ledger_sender", "ses_ledger_operator", "ses_ledger_worker"] {
        for sql in [
            "SELECT ses_ledger_remove_suppression('ana@example.net', 'why not')",
            "DELETE FROM ses_ledger_suppressions",
            "UPDATE ses_ledger_suppressions SET address = 'x'",
            "UPDATE ses_ledger_suppression_removals SET reason = 'x'",
            "INSERT INTO ses_ledger_suppression_removals (address, reason, covers_until) VALUES ('x', 'x', now())",
        ] {
            assert_eq!(as_role(role, sql).await.as_deref(), Some("42501"), "{role}: {sql}");
        }
    }
}

/// A worker of an older version, or somebody's hand, in a month that is made later.
#[tokio::test]
async fn whatever_stores_an_event_is_heard() {
    let database = database::fresh().await;
    database.run("SELECT email_events_ensure_month('2030-05-05')").await;
    let log = database.log_of("01bb6b6a-0000-7000-8000-000000000001".parse().expect("a UUID"), Some("m")).await;
    let insert = format!(
        "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, bounce_type, queue, sqs_message_id, received_at)
         SELECT ses_ledger_uuid_v7(), '{log}', kind, now(), who, 'Permanent', 'q', 's', now()
         FROM (VALUES ('bounce', 'Ana@example.net'), ('delivery', 'bob@x.org'), ('bounce', ''), ('bounce', 'erased:00')) AS v (kind, who)"
    );
    database.run(&insert).await;
    assert_eq!(database.texts("SELECT address FROM ses_ledger_suppressions").await, [ANA]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_the_same_reports_in_opposite_orders_do_not_disturb_each_other() {
    let database = database::fresh().await;
    database.run("INSERT INTO email_logs (aws_message_id) SELECT 'm' || n FROM generate_series(0, 39) AS n").await;
    let stores = [database.store(), database.store(), database.store()];
    for round in 0..20 {
        // Half of the mails are unknown; of each the second report gets no row of its own.
        let of = |n: i64| {
            let (id, who) = (format!("m{}", n % 80), format!("u{}@{round}.org", n * 7 % 80));
            [bounce(&id, &who, FULL, 5), bounce(&id, &who, GONE, n)]
        };
        let forth: Vec<Event> = (0..80).flat_map(of).collect();
        let back: Vec<Event> = forth.iter().rev().cloned().collect();
        let twice: Vec<Event> = forth.iter().skip(70).chain(&forth[..90]).cloned().collect();
        let batches = [forth, back, twice].map(arrivals);
        let [a, b, c] = [0, 1, 2].map(|n| store_patiently(&stores[n], &batches[n]));
        tokio::join!(a, b, c);
    }
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_suppressions").await, 20 * 80);
    check_no_deadlock(&database, stores).await;
}

#[tokio::test]
async fn what_was_stored_before_is_known_after_the_migration() {
    let database = database::fresh().await;
    let postgres = database.store();
    let ids = ["bounced", "both", "let go", "several", "fine"];
    for (n, id) in ids.into_iter().enumerate() {
        let to = if id == "several" { "{s1@x.org,s2@x.org}".to_owned() } else { format!("{{U{n}@x.org}}") };
        database.run(&format!("INSERT INTO email_logs (aws_message_id, recipients) VALUES ('{id}', '{to}')")).await;
    }
    let story = [
        bounce("bounced", "u0@x.org", GONE, 10),
        bounce("both", "u1@x.org", FULL, 10),
        bounce("both", "u1@x.org", GONE, 20),
        complaint("let go", "u2@x.org", None, 30),
        bounce("several", "s1@x.org", GONE, 40),
        bounce("several", "s2@x.org", FULL, 40),
        bounce("fine", "u4@x.org", FULL, 50),
        complaint("unknown", "waits@x.org", None, 60),
    ];
    store(&postgres, story).await;
    database.run("DELETE FROM email_events WHERE event_type = 'complaint'").await;
    let who = "SELECT concat_ws(' ', address, cause) FROM ses_ledger_suppressions ORDER BY 1";
    let before = database.texts(who).await;
    assert_eq!(
        before,
        ["s1@x.org bounce", "u0@x.org bounce", "u1@x.org bounce", "u2@x.org complaint", "waits@x.org complaint"]
    );
    migrations::down(&postgres, 16).await.expect("nothing is in the way");
    assert_eq!(database.number("SELECT count(*) FROM pg_class WHERE relname LIKE 'ses_ledger_suppression%'").await, 0);
    migrations::up(&postgres).await.expect("nothing is in the way");
    assert_eq!(database.texts(who).await, before);
    store(&database::connect(&database.url), [bounce("fine", "u5@x.org", GONE, 70)]).await;
    assert!(is_suppressed(&postgres, "u5@x.org").await);
    suppression::remove(&postgres, "u5@x.org", "why not").await.expect("it answers");
    assert_eq!(
        migrations::would_lose(&postgres, 17).await.expect("it answers"),
        Some("ses_ledger_suppression_removals")
    );
}
