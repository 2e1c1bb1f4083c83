//! `/figures` and what is counted for it.

use ses_ledger::postgres::figures::{self, Asked, Dimension, Figure};
use time::{Duration, OffsetDateTime};

use super::{serve, settings};
use crate::database::{self, Database};

/// Sixty mails with a template and a campaign, two recipients each, and four without; everything happens to some.
async fn filled() -> Database {
    let database = database::fresh().await;
    database
        .run(
            "INSERT INTO email_logs (recipients, subject, template_name, campaign_id, sent_at, delivered_at, bounced_at, bounce_class, complained_at, opened_at, clicked_at)
             SELECT ARRAY['Ada <a' || n || '@Example.net>', 'b' || n || '@other.example', 'B' || n || '@OTHER.example'], 's', 'welcome', 'spring',
                    now(), CASE WHEN n > 6 THEN now() END, CASE WHEN n <= 6 THEN now() END,
                    CASE WHEN n <= 3 THEN 'permanent' WHEN n <= 6 THEN 'transient' END::ses_ledger_bounce_class,
                    CASE WHEN n = 60 THEN now() END, CASE WHEN n > 30 THEN now() END, CASE WHEN n > 40 THEN now() END
             FROM generate_series(1, 60) AS n",
        )
        .await;
    database.run("INSERT INTO email_logs (recipients, delivered_at, template_name) VALUES ('{c@third.example}', now(), ''), ('{}', NULL, NULL), ('{}', NULL, NULL), ('{d@third.example}', NULL, NULL)").await;
    database
        .run(
            "INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, recipient, bounce_type, complaint_type, complaint_subtype, candidate, queue, sqs_message_id, received_at)
             SELECT ses_ledger_uuid_v7(), l.uuid, e.kind, now(), e.recipient, e.bounce, e.complaint, e.subtype, e.candidate, 'q', 'm', now()
             FROM email_logs AS l, LATERAL (VALUES
               ('send', '', NULL, NULL, NULL, false),
               ('delivery', 'a' || substr(split_part(recipients[1], '@', 1), 7) || '@example.net', NULL, NULL, NULL, false),
               ('bounce', 'b@other.example', CASE WHEN bounce_class = 'permanent' THEN 'Permanent' ELSE 'Transient' END, NULL, NULL, false),
               ('complaint', 'b@other.example', NULL, 'abuse', NULL, complained_at IS NULL),
               ('complaint', 'a@example.net', NULL, 'not-spam', NULL, false),
               ('complaint', 'c@other.example', NULL, NULL, 'OnAccountSuppressionList', false)) AS e (kind, recipient, bounce, complaint, subtype, candidate)
             WHERE l.template_name = 'welcome'",
        )
        .await;
    database
}

async fn counted(database: &Database, dimension: Dimension, template: Option<&str>) -> Vec<Figure> {
    let now = OffsetDateTime::now_utc();
    let asked = Asked {
        dimension,
        from: now - Duration::days(2),
        to: now + Duration::days(1),
        template: template.map(str::to_owned),
        campaign: None,
    };
    figures::by(&database.store(), &asked).await.expect("the database is there").figures
}

fn figure(key: Option<&str>, counts: [u64; 5], opens: Option<[u64; 2]>) -> Figure {
    let [written, sent, delivered, bounced, complained] = counts;
    let (opened, clicked) = (opens.map(|[opened, _]| opened), opens.map(|[_, clicked]| clicked));
    Figure { key: key.map(str::to_owned), written, sent, delivered, bounced, complained, opened, clicked }
}

#[tokio::test]
async fn mails_are_counted_once_by_template_and_campaign() {
    let database = filled().await;
    let of_one = |name| figure(Some(name), [60, 60, 54, 3, 1], Some([30, 20]));
    let rest = figure(None, [4, 1, 1, 0, 0], Some([0, 0]));
    assert_eq!(counted(&database, Dimension::Template, None).await, [of_one("welcome"), rest.clone()]);
    assert_eq!(counted(&database, Dimension::Campaign, None).await, [of_one("spring"), rest]);
    assert_eq!(counted(&database, Dimension::Campaign, Some("welcome")).await, [of_one("spring")]);
}

#[tokio::test]
async fn days_are_those_of_the_mails_uuids_and_end_at_midnight_utc() {
    let database = database::fresh().await;
    let insert = "INSERT INTO email_logs (uuid, sent_at) SELECT overlay(ses_ledger_uuid_v7()::text placing left(ses_ledger_uuid_floor(at)::text, 13) from 1 for 13)::uuid, at
                  FROM unnest('{2026-10-04 23:59:59.999Z, 2026-10-05 00:00Z, 2026-10-05 12:00Z}'::timestamptz[]) AS at";
    database.run(insert).await;
    let served = serve(settings(&database.url)).await;
    let both = served.get("/figures?from=2026-10-04&to=2026-10-05").await.body;
    assert!(
        both.find("2026-10-05</a>") < both.find("2026-10-04</a>") && both.contains("2026-10-04</a>"),
        "the last day first: {both}"
    );
    let one = served.get("/figures?from=2026-10-05&to=2026-10-05").await.body;
    assert!(one.contains("2026-10-05</a>") && !one.contains("2026-10-04</a>"), "a day has all its hours: {one}");
    assert_eq!(served.get("/figures?from=2026-10-06&to=2026-10-05").await.status, 400);
}

#[tokio::test]
async fn by_domain_each_recipient_of_a_mail_is_counted_once() {
    let database = filled().await;
    let expected = [
        figure(Some("example.net"), [60, 60, 60, 0, 0], None),
        // Three bounced for good, sixty were on the suppression list; only one complaint names a single recipient.
        figure(Some("other.example"), [60, 60, 0, 63, 1], None),
        figure(Some("third.example"), [2, 1, 0, 0, 0], None),
    ];
    assert_eq!(counted(&database, Dimension::Domain, None).await, expected);
    assert_eq!(counted(&database, Dimension::Domain, Some("welcome")).await, expected[..2]);
}

#[tokio::test]
async fn of_too_few_mails_no_rate_is_shown() {
    let database = filled().await;
    let served = serve(settings(&database.url)).await;
    let page = served.get("/figures?by=template").await.body;
    let (welcome, rest) = page.split_once("(none)").expect("some have no template");
    let welcome = welcome.split_once("welcome").expect("most have one").1;
    let rest = rest.split_once("</tr>").expect("the row ends").0;
    assert!(welcome.contains("54 <span class=\"\">90.0 %</span>"), "of sixty: {welcome}");
    assert!(welcome.contains("3 <span class=\"warn\">5.0 %</span>"), "SES looks from here on: {welcome}");
    assert!(welcome.contains("1 <span class=\"bad\">1.9 %</span>"), "of those delivered: {welcome}");
    assert!(rest.contains("too few") && !rest.contains('%'), "of one: {rest}");
}

#[tokio::test]
async fn only_the_largest_lines_are_shown_and_it_is_said() {
    let database = database::fresh().await;
    database.run("INSERT INTO email_logs (template_name, sent_at) SELECT 't' || n, now() FROM generate_series(1, 101) AS n, generate_series(1, CASE WHEN n = 77 THEN 1 ELSE 2 END)").await;
    let served = serve(settings(&database.url)).await;
    let page = served.get("/figures?by=template").await.body;
    assert!(page.contains("Only the first 100 lines") && !page.contains(">t77<"), "{page}");
    assert!(!page.contains("<tfoot>"), "no total of what is not all");
}
