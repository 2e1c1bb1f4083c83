//! `ses-ledger find`: did she get my mail? Mails are written as an application does, and told of through the real worker.

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::datetime};
use uuid::{NoContext, Timestamp, Uuid};

use super::{Ended, Running, end_of, ses_ledger};
use crate::{
    database::{self, Database},
    roles::login,
    worker::Queue,
};

pub(super) const BEGAN: OffsetDateTime = datetime!(2026-10-05 08:00 UTC);

/// A mail as the application writes it.
pub(super) struct Sent<'a> {
    /// Seconds after the beginning; also decides its place.
    pub(super) at: i64,
    /// Made to look like SES's own.
    pub(super) id: Option<u32>,
    pub(super) recipients: &'a [&'a str],
    pub(super) subject: &'a str,
}

/// The id that SES gives the mail of this number.
pub(super) fn ses_id(number: u32) -> String {
    format!("0102019ae0000000-{number:08x}-89ab-cdef-0123-456789abcdef-000000")
}

/// A uuid that is the same each time.
pub(super) fn uuid_at(seconds: i64) -> Uuid {
    let at = (BEGAN.unix_timestamp() + seconds).unsigned_abs();
    let uuid = Uuid::new_v7(Timestamp::from_unix(NoContext, at, 0)).as_u128();
    // What follows the time is random: here it is the number of seconds.
    Uuid::from_u128(uuid & !((1 << 76) - 1) | 0x7000_8000_0000_0000_0000 | u128::from(seconds.unsigned_abs()))
}

pub(super) async fn write(database: &Database, sent: &Sent<'_>) -> Uuid {
    let uuid = uuid_at(sent.at);
    let query = sqlx::query(
        "INSERT INTO email_logs (uuid, aws_message_id, sender, recipients, subject, template_name, campaign_id, configuration_set, created_at)
         VALUES ($1, $2, 'Shop <shop@example.com>', $3, $4, split_part($4, ' ', 1), split_part($4, ' ', 2), 'main', $5)",
    );
    let id = sent.id.map(|number| format!("<{}@eu-west-1.amazonses.com>", ses_id(number)));
    let at = BEGAN + time::Duration::seconds(sent.at);
    let query = query.bind(uuid).bind(id).bind(sent.recipients).bind(sent.subject).bind(at);
    query.execute(&database.pool).await.expect("a log row can be written");
    uuid
}

/// What SES reports about a mail, so many seconds after the beginning.
pub(super) fn report(kind: &str, number: u32, at: i64, to: &[&str], mut of_kind: Value) -> String {
    let at = (BEGAN + time::Duration::seconds(at)).format(&Rfc3339).expect("a time can be written");
    of_kind["timestamp"] = at.clone().into();
    let mail = json!({"timestamp": at, "messageId": ses_id(number), "destination": to, "tags": {"ses:configuration-set": ["main"]}});
    let key = match kind {
        "DeliveryDelay" => "deliveryDelay".to_owned(),
        "Rendering Failure" => "failure".to_owned(),
        other => other.to_lowercase(),
    };
    json!({"eventType": kind, "mail": mail, key: of_kind}).to_string()
}

/// The worker takes all of it in.
pub(super) async fn told(database: &Database, bodies: &[String]) {
    let queue = Queue::start().await;
    for body in bodies {
        queue.handle.send(body);
    }
    let running = Running::start(&database.url, &queue.url, &[]).await;
    queue.drained().await;
    running.stop().await;
}

/// Asks as somebody who may only read.
pub(super) async fn ask(database: &Database, arguments: &[&str]) -> Ended {
    let url = login(database, &["ses_ledger_operator"]).await;
    let mut command = ses_ledger(arguments.iter().copied());
    command.env("DATABASE_URL", url);
    end_of(command).await
}

/// Asks for JSON: the exit code, and one document.
pub(super) async fn answer(database: &Database, arguments: &[&str]) -> (Option<i32>, Value) {
    let ended = ask(database, &[arguments, &["--json"]].concat()).await;
    assert_eq!(ended.err, "", "{arguments:?}");
    let answer = serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", ended.out));
    (ended.code, answer)
}

/// `subject recipient outcome` of each entry.
fn entries(answer: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let entry = |line: &Value| {
        let parts = [&line["subject"], &line["recipient"], &line["outcome"]["status"]];
        parts.map(text).join(" ").trim_end().to_owned()
    };
    answer["mails"].as_array().expect("a list").iter().map(entry).collect()
}

async fn check(database: &Database, arguments: &[&str], expected: &[&str]) {
    let (code, answer) = answer(database, &[&["find"], arguments].concat()).await;
    assert_eq!(entries(&answer), expected, "{arguments:?}");
    assert_eq!(code, Some(if expected.is_empty() { 1 } else { 0 }), "{arguments:?}");
}

const ADA: &str = "ada@example.net";

/// Four mails to Ada, of which one is known only by SES and one only by its sender; and one to somebody like her.
async fn correspondence() -> Database {
    let database = database::fresh().await;
    let sent = |at, id, recipients, subject| Sent { at, id, recipients, subject };
    write(&database, &sent(1, Some(1), &["Ada Lovelace <Ada@Example.NET>", "bob@example.net"], "Your order 1")).await;
    write(&database, &sent(2, Some(2), &[], "Your invoice 2")).await;
    write(&database, &sent(3, None, &["ADA@example.net"], "A reminder 3")).await;
    write(&database, &sent(4, Some(4), &["ada@example.net"], "Your ORDER 4")).await;
    write(&database, &sent(5, Some(5), &["ada+tag@example.net"], "Your order 5")).await;
    let both = [ADA, "bob@example.net"];
    let bounced = json!({"bounceType": "Permanent", "bounceSubType": "General", "bouncedRecipients":
        [{"emailAddress": "Bob@example.net", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 user unknown"}]});
    let bodies = [
        report("Send", 1, 1, &both, json!({})),
        report("Delivery", 1, 4, &both, json!({"recipients": [ADA]})),
        report("Bounce", 1, 5, &both, bounced),
        report("Open", 1, 3_600, &both, json!({"ipAddress": "192.0.2.1", "isBotEvent": "Unlikely"})),
        report("Delivery", 2, 6, &[ADA], json!({"recipients": [ADA]})),
        report("Send", 4, 7, &[ADA], json!({})),
        report("Delivery", 4, 8, &[ADA], json!({"recipients": [ADA]})),
        report("Open", 4, 60, &[ADA], json!({})),
        report("Open", 4, 70, &[ADA], json!({})),
        report("Send", 5, 9, &["ada+tag@example.net"], json!({})),
        report("Delivery", 99, 9, &["Ada@example.net"], json!({"recipients": ["Ada@example.net"]})),
    ];
    told(&database, &bodies).await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn her_mails_are_found_in_any_spelling_each_with_her_own_outcome() {
    let database = correspondence().await;
    let hers = [
        "Your ORDER 4 ada@example.net opened",
        "A reminder 3 ada@example.net queued",
        "Your invoice 2 ada@example.net delivered",
        "Your order 1 ada@example.net delivered",
    ];
    for spelling in [ADA, "Ada@EXAMPLE.net", "ADA@EXAMPLE.NET", "Ada Lovelace <ada@example.net>", " ada@example.net "] {
        check(&database, &[spelling], &hers).await;
    }
    check(&database, &["BOB@example.net"], &["Your order 1 bob@example.net bounced"]).await;
    check(&database, &["ada+tag@example.net"], &["Your order 5 ada+tag@example.net sent"]).await;
    let (_, answer) = answer(&database, &["find", "bob@example.net"]).await;
    let outcome = &answer["mails"][0]["outcome"];
    assert_eq!((&outcome["bounce_class"], &outcome["smtp_status"]), (&json!("permanent"), &json!("5.1.1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_seen_from_its_form() {
    let database = correspondence().await;
    let of_order_1 = ["Your order 1 ada@example.net delivered", "Your order 1 bob@example.net bounced"];
    let id = ses_id(1);
    for form in [
        id.clone(),
        format!("<{id}@eu-west-1.amazonses.com>"),
        format!("{id}@email.amazonses.com"),
        uuid_at(1).to_string(),
    ] {
        check(&database, &[&form], &of_order_1).await;
    }
    check(
        &database,
        &["@EXAMPLE.net", "--limit=2"],
        &["Your order 5 ada+tag@example.net sent", "Your ORDER 4 ada@example.net opened"],
    )
    .await;
    check(&database, &["4", "order"], &["Your ORDER 4 ada@example.net opened"]).await;
    check(&database, &["INVOICE your"], &["Your invoice 2 ada@example.net delivered"]).await;
    check(&database, &["100%"], &[]).await;
    check(&database, &["Your_order"], &[]).await;
    check(&database, &["--limit=1"], &["Your order 5 ada+tag@example.net sent"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_leave_the_rest_out() {
    let database = correspondence().await;
    let (second, fourth) = ("Your invoice 2 ada@example.net delivered", "Your ORDER 4 ada@example.net opened");
    let first = "Your order 1 ada@example.net delivered";
    check(&database, &[ADA, "--status=delivered"], &[second, first]).await;
    check(&database, &[ADA, "--status=opened"], &[fourth]).await;
    check(&database, &["--status=bounced"], &["Your order 1 bob@example.net bounced"]).await;
    check(&database, &[ADA, "--campaign=ORDER"], &[fourth]).await;
    check(&database, &[ADA, "--template=A"], &["A reminder 3 ada@example.net queued"]).await;
    check(&database, &[ADA, "--since=2026-10-05T08:00:04Z"], &[fourth]).await;
    check(&database, &[ADA, "--until=2026-10-05T08:00:02Z"], &[first]).await;
    check(&database, &["--since=2026-10-05T08:00:02Z", "--until=2026-10-05T08:00:03Z"], &[second]).await;
    check(&database, &[ADA, "--since=1d"], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_reads_well_in_eighty_columns() {
    let database = correspondence().await;
    let ended = ask(&database, &["find", ADA]).await;
    let expected = format!(
        "\
2026-10-05 08:00:07  opened        ada@example.net
  +1 s delivered, +53 s opened 2 times
  {}  Your ORDER 4
2026-10-05 08:00:03  queued        ADA@example.net
  no event yet
  {}  A reminder 3
2026-10-05 08:00:06  delivered     ada@example.net
  +0 ms delivered
  {}  Your invoice 2
2026-10-05 08:00:01  delivered     ada@example.net
  +3 s delivered, +59 min opened by whom SES does not say; one of 2 recipients
  {}  Your order 1
One event to this address waits for the log row of its mail",
        uuid_at(4),
        uuid_at(3),
        uuid_at(2),
        uuid_at(1)
    );
    assert!(ended.out.starts_with(&expected.replace("ADA@", "ada@")), "{}", ended.out);
    assert!(ended.out.lines().all(|line| line.chars().count() <= 80), "{}", ended.out);
    assert!(!ended.out.contains('\x1b'), "no colours where there is no terminal");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_each_entry_once_whatever_is_written_in_between() {
    let database = database::fresh().await;
    for at in (10..70).step_by(2) {
        let recipients: &[&str] = if at == 30 { &[ADA, "b@example.net", "c@example.net"] } else { &[ADA] };
        write(&database, &Sent { at, id: None, recipients, subject: "Mail" }).await;
    }
    for arguments in [&["find", ADA][..], &["find", "mail"], &["find", "@example.net"], &["find"]] {
        let (mut seen, mut after, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let key = after.iter().map(|key| format!("--after={key}")).collect::<Vec<_>>();
            let arguments: Vec<&str> =
                arguments.iter().copied().chain(["--limit=7"]).chain(key.iter().map(String::as_str)).collect();
            let (_, answer) = answer(&database, &arguments).await;
            let page = answer["mails"].as_array().expect("a list");
            assert!((1..=7).contains(&page.len()), "{} on a page", page.len());
            seen.extend(page.iter().map(|line| format!("{} {}", line["log_uuid"], line["recipient"])));
            pages += 1;
            // Newer ones do not move the pages.
            let at = 100 + database.number("SELECT count(*) FROM email_logs").await;
            write(&database, &Sent { at, id: None, recipients: &[ADA], subject: "Mail" }).await;
            match answer["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => break,
            }
        }
        database.run(&format!("DELETE FROM email_logs WHERE uuid > '{}'", uuid_at(99))).await;
        let expected = if arguments.contains(&ADA) { 30 } else { 32 };
        assert_eq!((seen.len(), pages), (expected, 5), "{arguments:?}");
        let mut once = seen.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), expected, "{arguments:?}: {seen:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_line_is_the_command_for_the_next_page() {
    let database = database::fresh().await;
    for at in 1..=3 {
        write(&database, &Sent { at, id: None, recipients: &[ADA], subject: "It's here" }).await;
    }
    let ended = ask(&database, &["find", "it's", "HERE", "--limit=2", "--until=2027-01-01"]).await;
    let expected =
        format!(r"More: ses-ledger find 'it'\''s HERE' --until 2027-01-01T00:00:00Z --limit 2 --after {}", uuid_at(2));
    assert_eq!(ended.out.lines().last(), Some(expected.as_str()), "{}", ended.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_found_is_said_with_what_to_try() {
    let database = database::fresh().await;
    for (words, sentence) in [
        (&["eve@example.net"][..], "No mail to eve@example.net is known, neither from the senders' log rows nor"),
        (&["@example.org"], "No mail to anybody at example.org is known."),
        (&["a", "secret"], "No subject holds a secret: each word has to be in it"),
        (&["eve@example.net", "--status=bounced"], "Try it without"),
        (&["00000000-0000-7000-8000-000000000000"], "ses-ledger explain says what else is known"),
        (&[], "No mail is known"),
    ] {
        let ended = ask(&database, &[&["find"], words].concat()).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(1), ""), "{words:?}");
        let text = ended.out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(sentence), "{words:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mail_says_is_nothing_that_a_terminal_obeys() {
    let database = database::fresh().await;
    let hostile = format!("\x1b]0;owned\x07\x1b[2J\u{9b}31m\u{202e}txt.exe\u{2028}\r\n{}", "é".repeat(10_000));
    let to = format!("{}eve@example.net", "\u{202e}\x1b[31m");
    write(&database, &Sent { at: 1, id: Some(1), recipients: &[&to, &hostile], subject: &hostile }).await;
    let bounced = json!({"bounceType": &hostile, "bounceSubType": &hostile, "bouncedRecipients":
        [{"emailAddress": to, "status": &hostile, "diagnosticCode": &hostile}]});
    let bodies = [
        report("Bounce", 1, 5, &[&to], bounced),
        report("Click", 1, 6, &[&to], json!({"link": &hostile, "userAgent": &hostile, "ipAddress": &hostile})),
        report("Reject", 1, 6, &[&to], json!({"reason": &hostile})),
        report("\x1b[31mNew\u{202e}", 1, 6, &[&to], json!({})),
    ];
    told(&database, &bodies).await;
    let uuid = uuid_at(1).to_string();
    for arguments in [
        &["find"][..],
        &["find", "txt.exe"],
        &["find", &to],
        &["explain", &uuid],
        &["find", "--json"],
        &["explain", "--json", &uuid],
    ] {
        let ended = ask(&database, arguments).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{arguments:?}");
        assert!(ended.out.contains("txt.exe"), "{arguments:?} shows it: {}", ended.out);
        let obeyed = |c: &char| {
            c.is_control() && *c != '\n'
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        assert_eq!(ended.out.chars().find(obeyed), None, "{arguments:?}");
        let wide = ended.out.lines().find(|line| line.chars().count() > 80);
        assert!(arguments.contains(&"--json") || wide.is_none() || arguments[0] == "find", "{arguments:?}: {wide:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_or_not_migrated_is_told_with_its_remedy() {
    for command in ["find", "explain"] {
        let empty = database::empty().await;
        let mut asking = ses_ledger([command, "x"]);
        asking.env("DATABASE_URL", &empty.url);
        let ended = end_of(asking).await;
        assert_eq!(ended.code, Some(69), "{}", ended.err);
        assert!(ended.err.contains("ses-ledger migrate up"), "{}", ended.err);
        let mut asking = ses_ledger([command, "x", "--database-url", "postgres://nobody:secret@127.0.0.1:1/none"]);
        asking.env("LOG", "error");
        let ended = end_of(asking).await;
        assert_eq!(ended.code, Some(69), "{}", ended.err);
        assert!(ended.err.starts_with("error: cannot connect") && !ended.err.contains("secret"), "{}", ended.err);
        let migrated = database::fresh().await;
        let mut asking = ses_ledger([command, "x"]);
        asking.env("DATABASE_URL", login(&migrated, &[]).await);
        let ended = end_of(asking).await;
        assert_eq!(ended.code, Some(69), "{}", ended.err);
        assert!(ended.err.contains("GRANT ses_ledger_operator"), "{}", ended.err);
    }
    let ended = end_of(ses_ledger(["find", "x", "--limit=0", "--database-url=postgres://a@b/c"])).await;
    assert_eq!(ended.code, Some(64), "{}", ended.err);
}
