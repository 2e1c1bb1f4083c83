//! The index of recipients: what it finds, and that it stands in nobody's way.

use std::time::Duration;

use ses_ledger::postgres::mails::{self, Search, What};
use sqlx::Executor as _;

use crate::database::{self, Database};

/// A log row with these recipients.
async fn written(database: &Database, recipients: &[Option<String>]) {
    let query = sqlx::query("INSERT INTO email_logs (recipients) VALUES ($1)").bind(recipients);
    query.execute(&database.pool).await.expect("whatever stands in recipients, a row can be written");
}

/// What the sender wrote as one recipient, and the addresses that are found in it.
async fn check(database: &Database, written: &str, found: &[&str]) {
    let query = sqlx::query_scalar("SELECT ses_ledger_addresses(ARRAY[$1])").bind(written);
    let keys: Vec<String> = query.fetch_one(&database.pool).await.expect("it never fails");
    let addresses: Vec<&String> = keys.iter().filter(|key| !key.starts_with('@')).collect();
    assert_eq!(addresses, found, "{written:?}");
    for address in found {
        let domain = &address[address.rfind('@').expect("it is an address")..];
        assert!(keys.iter().any(|key| key == domain), "{written:?} is not found by {domain}");
    }
}

#[tokio::test]
async fn addresses_are_found_in_what_senders_write() {
    let database = database::fresh().await;
    check(&database, "ada@example.net", &["ada@example.net"]).await;
    check(&database, " Ada@Example.NET ", &["ada@example.net"]).await;
    check(&database, "Ada Lovelace <ada@example.net>", &["ada@example.net"]).await;
    check(&database, "\"Lovelace, Ada\" <Ada+tag@example.net>", &["ada+tag@example.net"]).await;
    check(&database, "\"ada@work\" <ada@example.net>", &["ada@example.net"]).await;
    check(&database, "ada@example.net, Bob <bob@example.net>", &["ada@example.net", "bob@example.net"]).await;
    check(&database, "ada@example.net,bob@example.net", &["ada@example.net", "bob@example.net"]).await;
    check(&database, "A <ada@example.net>, B <bob@example.net>", &["ada@example.net", "bob@example.net"]).await;
    check(&database, "rfc822; ada@example.net", &["ada@example.net"]).await;
    check(&database, "ÄDA@bücher.example", &["äda@bücher.example"]).await;
    for no_address in ["", "undisclosed-recipients:;", "@example.net", "ada@", "<>", "@", "\u{1b}[31m"] {
        check(&database, no_address, &[]).await;
    }
}

#[tokio::test]
async fn every_row_can_be_written_whatever_its_recipients_are() {
    let database = database::fresh().await;
    let long = format!("{}@example.net", "a".repeat(100_000));
    let random: String = (0..3_000).map(|n| char::from(b'a' + (n * n % 26) as u8)).collect();
    let hostile = ["@".repeat(50_000), "<".repeat(50_000), "a@".repeat(50_000), format!("{random}@example.net"), long];
    for recipient in hostile {
        written(&database, &[Some(recipient.clone())]).await;
        written(&database, &[None, Some(format!("Name <{recipient}>")), Some("\u{1b}[2J\u{202e}".to_owned())]).await;
    }
    written(&database, &[]).await;
    database.run("INSERT INTO email_logs (recipients) VALUES ('{{a@example.net,b@example.net},{c@example.net,d@example.net}}')").await;
    let found = "SELECT count(*) FROM email_logs WHERE ses_ledger_addresses(recipients) @> '{d@example.net}'";
    assert_eq!(database.number(found).await, 1);
    assert_eq!(database.number("SELECT count(*) FROM email_logs").await, 12);
}

/// An update that touches no index is done on the row's own page: facts are written several times in a mail's life.
#[tokio::test]
async fn facts_are_written_past_all_indexes() {
    let database = database::fresh().await;
    // So few that there is room on the page for all that follows.
    database
        .run("INSERT INTO email_logs (recipients) SELECT ARRAY['Ada <ada' || n || '@example.net>'] FROM generate_series(1, 5) AS n")
        .await;
    let mut transaction = database.pool.begin().await.expect("it is connected");
    let mut updates = async |set: &str| {
        let update = format!("UPDATE email_logs SET {set}");
        transaction.execute(sqlx::AssertSqlSafe(update)).await.expect("it is our table");
        let counts: (i64, i64) = sqlx::query_as(
            "SELECT pg_stat_get_xact_tuples_updated('email_logs'::regclass), pg_stat_get_xact_tuples_hot_updated('email_logs'::regclass)",
        )
        .fetch_one(&mut *transaction)
        .await
        .expect("PostgreSQL counts them");
        counts
    };
    assert_eq!(updates("delivered_at = now(), sent_at = now()").await, (5, 5));
    assert_eq!(updates("opened_at = now(), open_count = open_count + 1").await, (10, 10));
    // The same count sees what does touch the index.
    assert_eq!(updates("recipients = recipients || 'bob@example.net'::text").await, (15, 10));
}

/// A question about an address reads the index, not the table; so does one of a domain that is rare.
#[tokio::test]
async fn an_address_is_looked_up_in_the_index() {
    let database = database::fresh().await;
    database
        .run("INSERT INTO email_logs (recipients) SELECT ARRAY['ada' || n || '@example' || n % 5000 || '.net'] FROM generate_series(1, 20000) AS n")
        .await;
    database.run("ANALYZE email_logs").await;
    for key in ["ada17@example17.net", "@example17.net"] {
        let plan = database
            .texts(&format!(
                "EXPLAIN SELECT uuid FROM email_logs WHERE ses_ledger_addresses(recipients) @> ARRAY['{key}'] ORDER BY uuid DESC LIMIT 21"
            ))
            .await;
        assert!(plan.iter().any(|line| line.contains("email_logs_addresses")), "{key}: {plan:#?}");
    }
}

/// Without an index to lead it, a search looks at so many mails at a time, and stops when its time is up.
#[tokio::test]
async fn a_search_that_runs_out_of_time_says_how_far_it_came_and_goes_on_there() {
    let database = database::fresh().await;
    database
        .run(
            "INSERT INTO email_logs (uuid, subject)
             SELECT overlay(ses_ledger_uuid_floor(now() + n * interval '1 s')::text PLACING '7' FROM 15)::uuid,
                    CASE n WHEN 1 THEN 'the needle' ELSE 'hay' END
             FROM generate_series(1, 45000) AS n",
        )
        .await;
    let search = |after, seconds| Search {
        what: What::read("needle"),
        since: None,
        until: None,
        status: None,
        template: None,
        campaign: None,
        limit: 20,
        after,
        patience: Duration::from_secs(seconds),
    };
    let (mut after, mut reached) = (None, Vec::new());
    let found = loop {
        let found = mails::find(&database.store(), &search(after, 0)).await.expect("the tables are there");
        if !found.lines.is_empty() || found.next.is_none() {
            break found;
        }
        reached.push(found.looked_back_to.expect("it says how far it came"));
        after = found.next;
    };
    assert_eq!(found.lines.len(), 1, "it is in the last part");
    assert_eq!(reached.len(), 2, "after 20,000 and 40,000 mails");
    assert_eq!((reached[0] - reached[1]).whole_seconds(), 20_000);
    let at_once = mails::find(&database.store(), &search(None, 60)).await.expect("the tables are there");
    assert_eq!((at_once.lines.len(), at_once.next, at_once.looked_back_to), (1, None, None));
}
