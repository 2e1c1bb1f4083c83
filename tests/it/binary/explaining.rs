//! `ses-ledger explain`: what happened to this mail? Told of through the real worker.

use std::{env, fs, path::Path};

use serde_json::json;

use super::finding::{Sent, answer, ask, report, ses_id, told, uuid_at, write};
use crate::database::{self, Database};

const GORAN: &str = "goran@example.net";

/// A mail that bounced.
async fn bounced() -> Database {
    let database = database::fresh().await;
    write(&database, &Sent { at: 1, id: Some(1), recipients: &["Goran <goran@example.net>"], subject: "Your order" })
        .await;
    let bounce = json!({"bounceType": "Permanent", "bounceSubType": "General", "feedbackId": "feedback-1", "bouncedRecipients":
        [{"emailAddress": GORAN, "status": "5.1.1", "diagnosticCode": "smtp; 550-5.1.1 No such mailbox.\n550 5.1.1 Bye."}]});
    told(&database, &[report("Send", 1, 1, &[GORAN], json!({})), report("Bounce", 1, 4, &[GORAN], bounce)]).await;
    database
}

/// What is different each time: when it was received, and which ids it got on the way.
fn without_chance(text: &str) -> String {
    let line =
        |line: &str| match ["received ", "event ", "SQS "].iter().find(|word| line.trim_start().starts_with(**word)) {
            Some(word) => format!("    {word}…"),
            None => line.to_owned(),
        };
    text.lines().map(|text| line(text) + "\n").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounced_mail_is_explained_as_it_was_read_last() {
    let database = bounced().await;
    let ended = ask(&database, &["explain", &uuid_at(1).to_string()]).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    assert!(ended.out.lines().all(|line| line.chars().count() <= 80), "{}", ended.out);
    let found = without_chance(&ended.out);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/snapshots/explain-bounced.txt");
    if env::var_os("UPDATE_SNAPSHOTS").is_some_and(|value| value == "1") {
        fs::write(&file, &found).expect("the snapshot can be written");
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(found, expected, "renew it: UPDATE_SNAPSHOTS=1 cargo test --test it binary::explaining");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_of_its_id_leads_to_the_mail() {
    let database = bounced().await;
    let id = ses_id(1);
    for spelling in [
        id.clone(),
        format!("<{id}@eu-west-1.amazonses.com>"),
        format!(" {id}@email.amazonses.com"),
        uuid_at(1).to_string(),
    ] {
        let (code, answer) = answer(&database, &["explain", &spelling]).await;
        assert_eq!((code, &answer["mail"]["log"]["uuid"]), (Some(0), &json!(uuid_at(1).to_string())), "{spelling}");
        let explanation = &answer["explanation"];
        assert_eq!(explanation["who_must_act"][0]["who"], "sender");
        assert_eq!(explanation["lines"].as_array().map(Vec::len), Some(2));
        let evidence = &explanation["lines"][1]["evidence"];
        let row = "SELECT sqs_message_id || ' ' || queue FROM email_events WHERE event_type = 'bounce'";
        let told = [&evidence["sqs_message_id"], &evidence["queue"]]
            .map(|id| id.as_str().unwrap_or_default().to_owned())
            .join(" ");
        assert_eq!(told, database.text(row).await, "it leads to the message that brought it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_unknown_id_is_told_what_is_known() {
    let database = bounced().await;
    let half = format!(r#"{{"eventType":"Delivery","mail":{{"messageId":"{}","#, ses_id(8));
    told(&database, &[report("Delivery", 7, 5, &[GORAN], json!({"recipients": [GORAN]})), half]).await;
    let check = async |id: u32, words: &[&str]| {
        let ended = ask(&database, &["explain", &ses_id(id)]).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(1), ""));
        let text = ended.out.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(text.contains(word), "{id}: {word}: {}", ended.out);
        }
    };
    check(
        7,
        &["No mail has the id", "one event without a log row: delivery", "has not written its row", "was received"],
    )
    .await;
    let body = database.text("SELECT uuid::text FROM quarantined_messages").await;
    check(8, &["a body in quarantine", &format!("ses-ledger quarantine show {body}")]).await;
    check(9, &["no trace of it", "Is it the id that SES returned?"]).await;
    let (code, answer) = answer(&database, &["explain", &ses_id(7)]).await;
    assert_eq!((code, &answer["mail"], &answer["traces"]["orphans"]["events"]), (Some(1), &json!(null), &json!(1)));
}

/// The mail's own quarantined body is named, and an event that could not be read is not said to be missing for another reason.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_looked_for_where_it_may_be() {
    let database = database::fresh().await;
    let sent = |at, id| Sent { at, id, recipients: &[GORAN], subject: "Your order" };
    write(&database, &sent(1, Some(1))).await;
    write(&database, &sent(2, None)).await;
    told(&database, &[format!(r#"{{"eventType":"Delivery","mail":{{"messageId":"{}","#, ses_id(1))]).await;
    let missing = async |at: i64| {
        let (code, answer) = answer(&database, &["explain", &uuid_at(at).to_string()]).await;
        assert_eq!(code, Some(0));
        answer["explanation"]["missing"].to_string()
    };
    assert!(missing(1).await.contains("a body in quarantine"));
    assert!(missing(2).await.contains("it was never sent"));
    database.run("DELETE FROM quarantined_messages").await;
    assert!(missing(1).await.contains("no event of any mail has ever come"));
}
