//! Existing tables of another shape: what comes of each row, again and again, beside a worker, and in other databases.

use ses_ledger::{
    adoption::{
        Adoption, Step, StepReport,
        shape::{From, Shape},
    },
    event::{Address, EventKind},
    orphans,
    pipeline::Verdict::{Duplicate, Inserted, Orphaned},
    postgres::{Postgres, PostgresSettings, rollup},
};
use time::macros::datetime;

use crate::{
    arrivals::{NOBODY, event, store, with},
    database::{self, Database},
};

/// PhoenixKit's tables, with what they look like after years.
pub(crate) async fn fill_phoenix_kit(database: &Database, mails: u32) {
    database.run(&include_str!("../bench/phoenix_kit.sql").replace(":mails", &mails.to_string())).await;
}

fn reader(url: &str) -> Postgres {
    let settings = PostgresSettings { read_only: true, ..PostgresSettings::new(url) };
    Postgres::new(&settings).expect("the URL is well formed")
}

/// An adoption from tables of the same database, with small pages.
pub(crate) async fn prepare(database: &Database, shape: Shape) -> Adoption {
    prepare_from(database, &database.url, None, shape).await
}

async fn prepare_from(database: &Database, url: &str, elsewhere: Option<&str>, shape: Shape) -> Adoption {
    let adoption = Adoption::new(database.store(), reader(url), shape, elsewhere, 70).await;
    adoption.unwrap_or_else(|e| panic!("the tables are there: {e:#}"))
}

pub(crate) fn phoenix_kit() -> Shape {
    Shape::new(From::PhoenixKit, None, None, None, &[]).expect("it is ready-made")
}

fn plain(mappings: &[&str]) -> Shape {
    let mappings: Vec<String> = mappings.iter().map(|mapping| (*mapping).to_owned()).collect();
    Shape::new(From::Plain, None, None, None, &mappings).expect("the mappings are good")
}

pub(crate) async fn run(adoption: &Adoption) -> Vec<StepReport> {
    let reports = adoption.run(&mut |_, _, _| {}).await.unwrap_or_else(|e| panic!("it runs: {e:#}"));
    adoption.attach_orphans().await.expect("nobody is in the way");
    reports
}

/// `read = adopted + parked + collapsed + there + unmatched` of a step.
fn sums(reports: &[StepReport], step: Step) -> [u64; 6] {
    let counts = &reports.iter().find(|report| report.step == step).expect("the step was done").counts;
    assert!(counts.adds_up(), "{counts:?}");
    [counts.read, counts.adopted, counts.parked, counts.collapsed, counts.there, counts.unmatched]
}

/// Everything that we store, but when and under which key of ours.
pub(crate) async fn history(database: &Database) -> Vec<String> {
    database
        .texts(
            "SELECT concat_ws(' ', l.aws_message_id, l.status, l.sent_at, l.delivered_at, l.bounced_at, l.opened_at, l.clicked_at,
                              l.open_count, l.click_count, l.bounce_class, e.event_type, e.occurred_at, e.recipient, e.link,
                              e.smtp_status, e.queue, e.sqs_message_id)
             FROM email_logs AS l LEFT JOIN email_events AS e ON e.email_log_uuid = l.uuid ORDER BY l.uuid, 1",
        )
        .await
}

/// Statuses, counts and classes, by questions to PhoenixKit's tables themselves.
pub(crate) async fn assert_facts(database: &Database) {
    let statuses = "SELECT count(*) FROM pk_mails AS m JOIN email_logs AS l USING (uuid)
                    WHERE status <> CASE WHEN n % 50 = 7 THEN 'queued' WHEN n % 20 = 5 THEN 'bounced' WHEN n % 2 = 0 THEN 'clicked' ELSE 'delivered' END
                       OR open_count <> CASE WHEN n % 2 = 0 AND n % 50 <> 7 THEN 2 ELSE 0 END
                       OR click_count <> CASE WHEN n % 2 = 0 AND n % 50 <> 7 THEN 2 ELSE 0 END
                       OR bounce_class::text IS DISTINCT FROM CASE WHEN n % 20 = 5 THEN 'permanent' END";
    assert_eq!(database.number(statuses).await, 0, "mails with a wrong status, count or class");
}

/// What must be there, by questions to PhoenixKit's tables themselves.
async fn assert_adopted(database: &Database, mails: i64) {
    let number = async |sql: &str| database.number(sql).await;
    assert_eq!(number("SELECT count(*) FROM email_logs").await, mails, "one for each mail");
    let wrong = "SELECT count(*) FROM pk_mails AS m LEFT JOIN email_logs AS l USING (uuid)
                 WHERE l.aws_message_id IS DISTINCT FROM CASE WHEN n % 50 <> 7 THEN ses_id END
                    OR l.recipients <> ARRAY[m.recipient] OR l.subject <> 'Your order ' || n OR l.template_name <> 'order'
                    OR l.created_at <> m.at";
    assert_eq!(number(wrong).await, 0, "mails that are not what their row says");
    let kept = "SELECT count(*) FROM (
                  SELECT min(e.uuid::text) AS id FROM phoenix_kit_email_events AS e JOIN phoenix_kit_email_logs AS l ON l.uuid = e.email_log_uuid
                  WHERE event_type <> ' ' GROUP BY e.email_log_uuid, event_type, link_url,
                    CASE WHEN event_type IN ('open', 'click') THEN occurred_at END) AS earliest
                FULL JOIN (SELECT sqs_message_id FROM email_events WHERE queue = 'adopted:phoenix_kit_email_events') AS ours ON sqs_message_id = id
                WHERE id IS NULL OR sqs_message_id IS NULL";
    assert_eq!(number(kept).await, 0, "of each event the earliest row is here, and no other");
    assert_facts(database).await;
    let facts = "SELECT count(*) FROM email_events WHERE queue = 'adopted:phoenix_kit_email_logs'";
    let told = "SELECT count(*) FROM pk_mails WHERE n % 30 = 11";
    assert_eq!(number(facts).await, number(told).await, "deliveries that only the log rows tell");
    let detail = "SELECT count(*) FROM email_events WHERE event_type = 'bounce' AND smtp_status = '5.1.1' AND diagnostic LIKE 'smtp; 550%'
                    AND bounce_type = 'Permanent' AND bounce_subtype = 'NoEmail' AND recipient LIKE 'user%@example.net'";
    assert_eq!(number(detail).await, number("SELECT count(*) FROM pk_mails WHERE n % 20 = 5").await);
    assert_eq!(number("SELECT count(*) FROM email_events WHERE recipient NOT LIKE 'user%@example.net'").await, 0);
}

#[tokio::test]
async fn phoenix_kit_s_tables_are_adopted_row_by_row_and_the_numbers_add_up() {
    let database = database::fresh().await;
    fill_phoenix_kit(&database, 600).await;
    let adoption = prepare(&database, phoenix_kit()).await;
    let rehearsed = adoption.rehearse(&mut |_, _, _| {}).await.expect("it only reads");
    assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 0, "a rehearsal changes nothing");
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_adoptions").await, 0);

    let first = run(&adoption).await;
    assert_adopted(&database, 600).await;
    assert_eq!(sums(&first, Step::Logs), [624, 600, 0, 24, 0, 0]);
    let rows = database.number("SELECT count(*) FROM phoenix_kit_email_events").await as u64;
    let [read, adopted, parked, collapsed, there, unmatched] = sums(&first, Step::Events);
    assert_eq!((read, parked, there, unmatched), (rows, 0, 0, 9), "{first:#?}");
    assert!(collapsed > 600 && adopted > 1_500, "{adopted} {collapsed}");
    for step in [Step::Logs, Step::Events, Step::Facts] {
        assert_eq!(sums(&rehearsed, step), sums(&first, step), "{step:?} as rehearsed");
    }
    let events = &first[1].counts;
    assert_eq!(rehearsed[1].counts.reasons, events.reasons);
    assert_eq!((events.reasons["no_log"].rows, events.reasons["no_type"].rows), (6, 3));
    let ids: Vec<_> = first[0].counts.ids.iter().map(|(place, n)| (place.as_str(), *n)).collect();
    assert_eq!(ids, [("elsewhere", 30), ("in_headers", 144), ("in_their_column", 438), ("nowhere", 12)]);
    let told: Vec<&str> = first.iter().take(2).flat_map(|report| &report.not_taken).map(String::as_str).collect();
    assert!(told.contains(&"error_message") && told.contains(&"geo_location"), "{told:?}");
    let listed = database.number("SELECT count(*) FROM ses_ledger_unmatched").await;
    assert_eq!(listed, 9, "all of them can be listed");

    let before = history(&database).await;
    let again = run(&adoption).await;
    assert_eq!(history(&database).await, before, "again changes nothing");
    assert_eq!(sums(&again, Step::Logs), [624, 0, 0, 24, 600, 0]);
    assert_eq!(sums(&again, Step::Events), [read, 0, 0, collapsed, adopted, 9]);
    assert_eq!(database.number("SELECT count(*) FROM ses_ledger_unmatched").await, 9);
    // What is new there since comes with the next run.
    database.run("INSERT INTO phoenix_kit_email_events (event_type, occurred_at, inserted_at, updated_at, uuid, email_log_uuid)
                  SELECT 'complaint', '2026-07-01', now(), now(), pk_uuid(now(), 'new'), uuid FROM pk_mails WHERE n = 4").await;
    assert_eq!(sums(&run(&adoption).await, Step::Events), [read + 1, 1, 0, collapsed, adopted, 9]);
    assert_eq!(
        database.text("SELECT status FROM email_logs JOIN pk_mails USING (uuid) WHERE n = 4").await,
        "complained"
    );
    // A mail that was erased here stays away.
    database.run("DELETE FROM email_logs WHERE uuid IN (SELECT uuid FROM pk_mails WHERE n = 6)").await;
    let erased = run(&adoption).await;
    assert_eq!(sums(&erased, Step::Logs), [624, 0, 0, 24, 600, 0]);
    assert_eq!(erased[1].counts.reasons["no_log"].rows, 6 + 8, "{:?}", erased[1].counts);
    assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 599);
}

/// An open or click of PhoenixKit's mail `n`, so long after it was sent, as the queue brings it again.
fn redelivered(
    message_id: &str,
    kind: EventKind,
    at: time::OffsetDateTime,
    recipient: &str,
) -> ses_ledger::event::Event {
    with(event(message_id, kind), |e| {
        e.occurred_at = at;
        e.recipient = Address::parse(recipient);
    })
}

#[tokio::test]
async fn what_comes_again_with_milliseconds_is_known_by_its_second() {
    let database = database::fresh().await;
    fill_phoenix_kit(&database, 60).await;
    let postgres = database.store();
    let id = database.text("SELECT ses_id FROM pk_mails WHERE n = 4").await;
    // n = 4: sent at 08:01:20.25, opened at 08:02:20.250 (its data says so) and at 08:03:20 (nobody knows better).
    let (precise, coarse) = (datetime!(2026-06-01 08:02:20.250 UTC), datetime!(2026-06-01 08:03:20.417 UTC));
    run(&prepare(&database, phoenix_kit()).await).await;
    let before = history(&database).await;
    let user = "user4@example.net";
    let open = |at, of: &str| redelivered(&id, EventKind::Open, at, of);
    let again = [
        open(precise, user),
        open(coarse, user),
        open(coarse, NOBODY),
        redelivered(&id, EventKind::Send, precise, user),
    ];
    assert_eq!(store(&postgres, again).await, [Duplicate; 4]);
    assert_eq!(history(&database).await, before);
    // Another second, and another mail of the same second, are new.
    let other = database.text("SELECT ses_id FROM pk_mails WHERE n = 5").await;
    let later = coarse + time::Duration::seconds(1);
    assert_eq!(
        store(&postgres, [open(later, user), redelivered(&other, EventKind::Open, coarse, "user5@example.net")]).await,
        [Inserted, Inserted]
    );
    // Within the second of an open that has its milliseconds, another is another.
    assert_eq!(store(&postgres, [open(precise + time::Duration::milliseconds(300), user)]).await, [Inserted]);
}

#[tokio::test]
async fn what_the_worker_had_before_is_not_doubled_by_an_adoption() {
    let database = database::fresh().await;
    fill_phoenix_kit(&database, 60).await;
    let postgres = database.store();
    let id = database.text("SELECT ses_id FROM pk_mails WHERE n = 4").await;
    let coarse = datetime!(2026-06-01 08:03:20.417 UTC);
    // Before anybody knows the mail: it waits. And a mail that the sender has written to our table already.
    let open = redelivered(&id, EventKind::Open, coarse, "user4@example.net");
    assert_eq!(store(&postgres, [open]).await, [Orphaned]);
    let other = database.text("SELECT ses_id FROM pk_mails WHERE n = 8").await;
    let ours = database.log(&other).await;
    let open = redelivered(&other, EventKind::Open, datetime!(2026-06-01 08:04:40.9 UTC), NOBODY);
    assert_eq!(store(&postgres, [open]).await, [Inserted]);
    // And one that it wrote without the id, under the same uuid.
    database.run("INSERT INTO email_logs (uuid) SELECT uuid FROM pk_mails WHERE n = 12").await;

    let reports = run(&prepare(&database, phoenix_kit()).await).await;
    assert_eq!(sums(&reports, Step::Logs), [63, 58, 0, 3, 2, 0]);
    assert_eq!(reports[0].counts.ids["filled"], 1);
    let opens = "SELECT open_count FROM email_logs WHERE aws_message_id = (SELECT ses_id FROM pk_mails WHERE n = ";
    for n in [4, 8, 12] {
        assert_eq!(database.number(&format!("SELECT ({opens}{n}))::bigint")).await, 2, "mail {n}");
    }
    let of_ours = format!("SELECT count(*) FROM email_events WHERE email_log_uuid = '{ours}'");
    assert_eq!(database.number(&of_ours).await, 6, "its send, delivery, two opens and two clicks went to our row");
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_worker_stores_in_the_very_moment_of_an_adoption_is_not_doubled_either() {
    let database = database::fresh().await;
    fill_phoenix_kit(&database, 20).await;
    // The mail is ours already, and the worker is about to commit its open of 08:03:20.417.
    let log = "SELECT uuid FROM pk_mails WHERE n = 4";
    database.run(&format!("INSERT INTO email_logs (uuid) {log}; SELECT email_events_ensure_month('2026-06-01')")).await;
    let mut worker = database.pool.begin().await.expect("it runs");
    let store = String::from(
        "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, queue, sqs_message_id, received_at)
         SELECT '019e8240-0000-7000-8000-000000000009', uuid, 'open', '2026-06-01 08:03:20.417+00', 'user4@example.net', 'q', 's', now()
         FROM pk_mails WHERE n = 4",
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(store)).execute(&mut *worker).await.expect("it is a good row");
    let (adoption, commit) = (prepare(&database, phoenix_kit()).await, async {
        let adopted = "SELECT count(*) FROM email_events WHERE email_log_uuid = (SELECT uuid FROM pk_mails WHERE n = 4) AND occurred_at = '2026-06-01 08:03:20+00'";
        while database.number(adopted).await == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let count = format!("UPDATE email_logs SET open_count = open_count + 1 WHERE uuid = ({log})");
        sqlx::raw_sql(sqlx::AssertSqlSafe(count)).execute(&mut *worker).await.expect("nobody holds it");
        worker.commit().await.expect("nothing is in the way");
        // Both are in the figures for a moment.
        crate::figures::count_all(&database.store()).await;
    });
    let (reports, ()) = tokio::join!(run(&adoption), commit);
    let opens = format!("SELECT count(*) FROM email_events WHERE event_type = 'open' AND email_log_uuid = ({log})");
    assert_eq!(database.number(&opens).await, 2, "{reports:#?}");
    assert_eq!(database.number(&format!("SELECT open_count::bigint FROM email_logs WHERE uuid = ({log})")).await, 2);
    assert!(sums(&reports, Step::Events)[4] > 0, "the row was there already, as it turned out");
    let difference = rollup::rebuild(&database.store(), false, None, |_| {}).await.expect("it counts");
    assert_eq!(difference.lines(), 0, "the one that went is not counted any more: {difference:?}");
}

#[tokio::test]
async fn a_plain_table_with_names_of_its_own_is_mapped_and_what_cannot_be_is_told() {
    let (database, other) = (database::fresh().await, database::empty().await);
    other
        .run(
            r#"CREATE SCHEMA post;
               CREATE TABLE post.mails (id serial PRIMARY KEY, betreff text, an text, headers text, created_at timestamp, farbe text, zugestellt timestamp);
               CREATE TABLE post.mail_events (id bigserial PRIMARY KEY, mail int, event_type text, occurred_at timestamp, payload json, grund text, message_id text);
               INSERT INTO post.mails (betreff, an, headers, created_at, zugestellt) VALUES
                 ('eins', 'Ada <ada@Example.net>', '[{"name": "MESSAGE-ID", "value": "<m-1@email.amazonses.com>"}]', '2026-05-01 10:00', NULL),
                 ('zwei', '"Lovelace, Ada" <ada@example.net>, bob@example.net', 'X-Odd: no JSON', '2026-05-02 10:00', '2026-05-02 10:01'),
                 ('drei', 'eva@example.net', '{"x-ses-message-id": ["<m-3>"]}', NULL, NULL);
               INSERT INTO post.mail_events (mail, event_type, occurred_at, payload, grund, message_id) VALUES
                 (1, 'Delivered', '2026-05-01 10:00:05', NULL, NULL, NULL),
                 (1, 'soft_bounce', '2026-05-01 10:00:02', NULL, 'smtp; 452 4.2.2 full', NULL),
                 (2, 'bounce', '2026-05-02 10:00:02', '{"bounceType": "Transient", "bouncedRecipients": [{"emailAddress": "bob@example.net"}, {"emailAddress": "ada@example.net"}]}', NULL, NULL),
                 (NULL, NULL, NULL, '{"eventType": "Open", "open": {"timestamp": "2026-05-01T11:00:00.123Z"}, "mail": {"messageId": "m-1", "destination": ["ada@example.net"]}}', NULL, NULL),
                 (NULL, 'complaint', '2026-05-01 12:00', NULL, NULL, '<m-9@email.amazonses.com>'),
                 (77, 'open', '2026-05-01 12:00', NULL, NULL, NULL),
                 (NULL, 'open', '2026-05-01 12:00', NULL, NULL, NULL),
                 (3, 'click', '2026-05-03 12:00', '{"link": "https://example.com/\u0000a"}', NULL, NULL)"#,
        )
        .await;
    let mappings = [
        "logs.subject=betreff",
        "logs.recipients=an",
        "logs.delivered_at=zugestellt",
        "events.log_id=mail",
        "events.diagnostic=grund",
    ];
    let shape = Shape::new(From::Plain, Some("post"), None, None, &mappings.map(str::to_owned)).expect("it is good");
    let adoption = prepare_from(&database, &other.url, Some("old"), shape).await;
    let reports = run(&adoption).await;
    assert_eq!(sums(&reports, Step::Logs), [3, 3, 0, 0, 0, 0], "{reports:#?}");
    assert_eq!(sums(&reports, Step::Events), [8, 5, 1, 0, 0, 2]);
    assert_eq!(sums(&reports, Step::Facts), [1, 1, 0, 0, 0, 0]);
    assert_eq!(reports[0].not_taken, ["farbe"]);
    assert!(reports[0].left_out.contains(&"template_name"), "{:?}", reports[0].left_out);
    let reasons: Vec<_> = reports[1]
        .counts
        .reasons
        .iter()
        .map(|(reason, rows)| (reason.as_str(), rows.rows, rows.examples.clone()))
        .collect();
    assert_eq!(reasons, [("no_log", 1, vec!["6".to_owned()]), ("no_mail", 1, vec!["7".to_owned()])]);
    let told = "SELECT concat_ws('|', subject, aws_message_id, array_to_string(recipients, ';'), status, open_count, click_count) FROM email_logs ORDER BY subject";
    assert_eq!(
        database.texts(told).await,
        [
            "drei|m-3|eva@example.net|clicked|0|1",
            "eins|m-1|Ada <ada@Example.net>|opened|1|0",
            "zwei|\"Lovelace, Ada\" <ada@example.net>;bob@example.net|delivered|0|0",
        ]
    );
    let events = "SELECT concat_ws('|', event_type, recipient, bounce_type, smtp_status, link, sqs_message_id, queue) FROM email_events ORDER BY event_type, recipient, sqs_message_id DESC";
    let at = "adopted:post.mail_events@old";
    assert_eq!(
        database.texts(events).await,
        [
            format!("bounce|ada@example.net|Transient|3|{at}"),
            format!("bounce|ada@example.net|Transient|4.2.2|2|{at}"),
            format!("bounce|bob@example.net|Transient|3|{at}"),
            format!("click|eva@example.net|https://example.com/a|8|{at}"),
            "delivery||2/delivery|adopted:post.mails@old".to_owned(),
            format!("delivery|ada@example.net|1|{at}"),
            format!("open|ada@example.net|4|{at}"),
        ]
    );
    assert_eq!(database.text("SELECT aws_message_id FROM orphaned_events").await, "m-9", "its mail may come yet");
    // The key is no UUID: the mail has one of its time, always the same.
    let months = "SELECT count(*) FROM email_logs WHERE ses_ledger_uuid_time(uuid) = created_at";
    assert_eq!(database.number(months).await, 3);
    let before = history(&database).await;
    assert_eq!(sums(&run(&adoption).await, Step::Events), [8, 0, 0, 0, 6, 2]);
    assert_eq!(history(&database).await, before);
}

#[tokio::test]
async fn where_keys_tell_no_time_the_earliest_by_time_stays() {
    let database = database::fresh().await;
    database
        .run(
            "CREATE TABLE mails (id uuid PRIMARY KEY, message_id text, created_at timestamptz);
             CREATE TABLE mail_events (id uuid, log_id uuid, event_type text, occurred_at timestamptz);
             INSERT INTO mails VALUES ('f47ac10b-58cc-4372-a567-0e02b2c3d479', 'm', '2026-05-01'),
               ('147ac10b-58cc-4372-a567-0e02b2c3d479', '<m>', '2026-05-02');
             INSERT INTO mail_events SELECT gen_random_uuid(), 'f47ac10b-58cc-4372-a567-0e02b2c3d479', 'delivery',
               timestamptz '2026-05-01 12:00:00' - n * interval '1 second' FROM generate_series(0, 499) AS n;
             INSERT INTO mail_events VALUES (NULL, 'f47ac10b-58cc-4372-a567-0e02b2c3d479', 'open', '2026-05-01')",
        )
        .await;
    let reports = run(&prepare(&database, plain(&[])).await).await;
    assert_eq!(sums(&reports, Step::Logs), [2, 1, 0, 1, 0, 0]);
    assert_eq!(sums(&reports, Step::Events), [501, 1, 0, 499, 0, 1]);
    assert_eq!(reports[1].counts.reasons["no_id"].rows, 1);
    assert_eq!(database.text("SELECT uuid::text FROM email_logs").await, "f47ac10b-58cc-4372-a567-0e02b2c3d479");
    let kept = "SELECT (occurred_at AT TIME ZONE 'UTC')::text FROM email_events";
    assert_eq!(database.text(kept).await, "2026-05-01 11:51:41");
}

#[tokio::test]
async fn a_row_that_the_database_refuses_is_left_and_its_neighbours_are_taken() {
    let database = database::fresh().await;
    // A check of the deployment's own stands for whatever the database may refuse.
    database.run("ALTER TABLE email_logs ADD CHECK (subject <> 'never')").await;
    database
        .run(
            "CREATE TABLE mails (id int PRIMARY KEY, subject text, created_at timestamptz DEFAULT now());
             INSERT INTO mails SELECT n, CASE n WHEN 33 THEN 'never' ELSE 'fine' END FROM generate_series(1, 100) AS n",
        )
        .await;
    let shape = Shape::new(From::Plain, None, None, Some("none"), &[]).expect("it is good");
    let reports = run(&prepare(&database, shape).await).await;
    assert_eq!(sums(&reports, Step::Logs), [100, 99, 0, 0, 0, 1]);
    assert_eq!(reports[0].counts.reasons["refused"].examples, ["33"]);
}

#[tokio::test]
async fn what_was_said_wrongly_is_told_before_anything_is_done() {
    let database = database::fresh().await;
    let check = async |shape: Shape, expected: &str| {
        let error = Adoption::new(database.store(), reader(&database.url), shape, None, 10).await.err();
        let error = format!("{:#}", error.expect("it cannot work"));
        assert!(error.contains(expected), "{error}");
    };
    check(phoenix_kit(), "cannot find the table phoenix_kit_email_logs").await;
    let ours = Shape::new(From::Plain, None, Some("email_logs"), Some("none"), &[]).expect("it can be read");
    check(ours, "it is ours").await;
    database.run("CREATE TABLE mails (nummer int, subject text); CREATE TABLE mail_events (id int)").await;
    check(plain(&[]), "name the column of its key").await;
    check(plain(&["logs.id=nummer", "logs.subject=betreff"]), "mails has no column betreff").await;
    for (mapping, expected) in [
        ("logs.colour=x", "there are id, message_id"),
        ("subject=x", "has to look like"),
        ("log.subject=x", "begin with"),
    ] {
        let error = Shape::new(From::Plain, None, None, None, &[mapping.to_owned()]).expect_err("it is wrong");
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    }
}

#[tokio::test]
async fn a_log_table_that_stays_the_truth_is_mirrored_and_shows_what_became_of_its_rows() {
    let database = database::fresh().await;
    fill_phoenix_kit(&database, 20).await;
    let adoption = prepare(&database, phoenix_kit()).await;
    // As psql would run it.
    sqlx::raw_sql(sqlx::AssertSqlSafe(adoption.mirror(false).await.expect("its key is a UUID")))
        .execute(&database.pool)
        .await
        .expect("the script runs");
    // The application has no right to anything of ours.
    database.run("DROP ROLE IF EXISTS mirrored_app; CREATE ROLE mirrored_app; GRANT ALL ON phoenix_kit_email_logs, phoenix_kit_email_logs_with_ses TO mirrored_app").await;
    let insert = "SET ROLE mirrored_app;
        INSERT INTO phoenix_kit_email_logs (uuid, message_id, \"to\", \"from\", subject, inserted_at, updated_at)
        VALUES ('019e8240-0000-7000-8000-000000000001', 'pk_x', 'ada@example.net', 'shop@example.com', 'Hello', now(), now());
        UPDATE phoenix_kit_email_logs SET aws_message_id = '<m@email.amazonses.com>' WHERE message_id = 'pk_x';
        INSERT INTO phoenix_kit_email_logs (uuid, message_id, \"to\", \"from\", inserted_at, updated_at, aws_message_id)
        VALUES ('019e8240-0000-7000-8000-000000000002', 'pk_y', 'ada@example.net', 'shop@example.com', now(), now(), 'm');
        RESET ROLE";
    database.run(insert).await;
    let mirrored = "SELECT concat_ws(' ', subject, aws_message_id, recipients::text) FROM email_logs ORDER BY uuid";
    assert_eq!(
        database.texts(mirrored).await,
        ["Hello m {ada@example.net}", "{ada@example.net}"],
        "one mail for each row, one id for each mail"
    );
    assert_eq!(store(&database.store(), [event("m", EventKind::Delivery)]).await, [Inserted]);
    let seen = "SELECT concat_ws(' ', subject, status, ses_status, ses_delivered_at IS NOT NULL) FROM phoenix_kit_email_logs_with_ses
                WHERE message_id = 'pk_x'";
    assert_eq!(database.text(seen).await, "Hello sent delivered t");
    // The rows that were there before come by adoption, and those of the mirror are there already.
    assert_eq!(sums(&run(&adoption).await, Step::Logs), [23, 20, 0, 2, 1, 0]);
    let unknown = "SELECT count(*) FROM phoenix_kit_email_logs_with_ses WHERE ses_status IS NULL";
    assert_eq!(database.number(unknown).await, 1, "the second row of one mail");

    // Nothing of ours stops a mail: the trigger tells and lets the row pass.
    database.run("ALTER TABLE email_logs RENAME TO elsewhere").await;
    database
        .run(
            "INSERT INTO phoenix_kit_email_logs (uuid, message_id, \"to\", \"from\", inserted_at, updated_at)
                  VALUES ('019e8240-0000-7000-8000-000000000003', 'pk_z', 'a', 'b', now(), now())",
        )
        .await;
    database.run("ALTER TABLE elsewhere RENAME TO email_logs").await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(adoption.mirror(true).await.expect("it is written anyhow")))
        .execute(&database.pool)
        .await
        .expect("the script runs");
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE '%with_ses'";
    assert_eq!(
        database.number(left).await
            + database.number("SELECT count(*) FROM pg_trigger WHERE tgname = 'ses_ledger_mirror'").await,
        0
    );
    assert_eq!(orphans::sweep_all(&database.store()).await.expect("nobody is in the way"), 0);
}
