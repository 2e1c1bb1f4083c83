//! `ses-ledger suppressed`: may I write to her?

use std::process::Stdio;

use serde_json::Value;
use ses_ledger::event::{Address, Event, EventKind};
use tokio::io::AsyncWriteExt as _;

use super::{
    Ended, end_of,
    finding::{answer, ask},
    ses_ledger,
};
use crate::{
    arrivals::{at, event, store, with},
    database::{self, Database},
    roles::login,
};

fn report(kind: EventKind, who: &str, seconds: i64) -> Event {
    with(event("m", kind), |e| {
        (e.recipient, e.occurred_at) = (Address::parse(who), at(seconds));
        match e.kind {
            EventKind::Bounce => {
                let detail = &mut e.detail;
                detail.bounce_type = Some("Permanent".to_owned());
                detail.bounce_subtype = Some("NoEmail".to_owned());
                detail.smtp_status = Some("5.1.1".to_owned());
            }
            _ => e.detail.complaint_type = Some("abuse".to_owned()),
        }
    })
}

/// Ana bounced, Bob complained, Carol perhaps did.
async fn reported() -> Database {
    let database = database::fresh().await;
    database.log_of("019b2f00-0000-7000-8000-000000000001".parse().expect("a UUID"), Some("m")).await;
    let carol = with(report(EventKind::Complaint, "carol@example.net", 30), |e| e.candidate = true);
    let events =
        [report(EventKind::Bounce, "Ana@example.net", 10), report(EventKind::Complaint, "bob@example.net", 20), carol];
    store(&database.store(), events).await;
    database
}

/// As somebody who may take addresses off.
async fn ask_as_owner(database: &Database, arguments: &[&str]) -> Ended {
    let mut command = ses_ledger(arguments.iter().copied());
    command.env("DATABASE_URL", login(database, &["ses_ledger_owner"]).await);
    end_of(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_address_is_answered_in_words_and_by_the_exit_code() {
    let database = reported().await;
    let ended = ask(
        &database,
        &["suppressed", "ANA@example.net", "dora@example.net", "carol@example.net", "Bob <bob@example.net>"],
    )
    .await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(1), ""));
    let expected = "\
suppressed ANA@example.net
           A mail to it came back for good (NoEmail, 5.1.1), 2026-10-05 08:00:10
           UTC.
           ses-ledger explain 019b2f00-0000-7000-8000-000000000001
write      dora@example.net
perhaps    carol@example.net
           A mail to it and others was called spam, and SES does not say by whom
           (abuse), 2026-10-05 08:00:30 UTC. It may be written to.
           ses-ledger explain 019b2f00-0000-7000-8000-000000000001
suppressed Bob <bob@example.net>
           A mail to it was called spam (abuse), 2026-10-05 08:00:20 UTC.
           ses-ledger explain 019b2f00-0000-7000-8000-000000000001
2 of 4 addresses are suppressed.
";
    assert_eq!(ended.out, expected);
    for free in ["dora@example.net", "carol@example.net"] {
        assert_eq!(ask(&database, &["suppressed", free]).await.code, Some(0), "{free}");
    }
    let (code, json) =
        answer(&database, &["suppressed", "ana@example.net", "carol@example.net", "dora@example.net"]).await;
    assert_eq!(code, Some(1));
    let told = json["addresses"].as_array().expect("a list").iter();
    let told =
        told.map(|a| (a["suppressed"].as_bool(), a["report"]["certain"].as_bool(), a["report"]["cause"].as_str()));
    let expected = [
        (Some(true), Some(true), Some("bounce")),
        (Some(false), Some(false), Some("complaint")),
        (Some(false), None, None),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected, "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_come_from_standard_input_as_well() {
    let database = reported().await;
    let mut command = ses_ledger(["suppressed", "-", "--json"]);
    command.env("DATABASE_URL", login(&database, &["ses_ledger_operator"]).await);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it is there");
    let lines: String = (0..2_500).map(|n| format!("user{n}@example.net\r\n")).collect();
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(format!("{lines}\n  bob@example.net").as_bytes()).await.expect("it reads");
    drop(input);
    let output = child.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("one document");
    let told = json["addresses"].as_array().expect("a list");
    assert_eq!(
        (told.len(), &told[2_500]["suppressed"], &told[7]["address"]),
        (2_501, &true.into(), &"user7@example.net".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_suppressed_is_listed() {
    let database = reported().await;
    let ended = ask(&database, &["suppressed", "list"]).await;
    let expected = "\
2026-10-05 08:00:20  complaint  bob@example.net
  abuse  mail 019b2f00-0000-7000-8000-000000000001
2026-10-05 08:00:10  bounce     ana@example.net
  NoEmail  5.1.1  mail 019b2f00-0000-7000-8000-000000000001
";
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (Some(0), expected, ""));
    for (filter, expected) in [
        (&["--cause", "bounce"][..], &["ana@example.net"][..]),
        (&["--since", "2026-10-05T08:00:15Z"], &["bob@example.net"]),
        (&["--limit", "1"], &["bob@example.net"]),
        (&["--cause", "ses_list"], &[]),
    ] {
        let (code, json) = answer(&database, &[&["suppressed", "list"], filter].concat()).await;
        let told = json["suppressed"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|report| report["address"].as_str().unwrap_or_default());
        assert_eq!((code, told.collect::<Vec<_>>()), (Some(0), expected.to_vec()), "{filter:?}");
    }
    let mut pages = Vec::new();
    let same = [report(EventKind::Bounce, "x@example.net", 20), report(EventKind::Bounce, "a@example.net", 20)];
    store(&database.store(), same).await;
    let mut more = vec!["suppressed".to_owned(), "list".to_owned(), "--limit=1".to_owned()];
    loop {
        let page = ask(&database, &more.iter().map(String::as_str).collect::<Vec<_>>()).await.out;
        pages.extend(page.lines().next().and_then(|line| line.split("  ").last()).map(|who| who.trim().to_owned()));
        let Some((_, key)) = page.split_once("More: add --after ") else { break };
        more.truncate(3);
        more.extend(["--after".to_owned(), key.trim().to_owned()]);
    }
    let expected = ["x@example.net", "bob@example.net", "a@example.net", "ana@example.net", "That was the last one."];
    assert_eq!(pages, expected, "nobody is left out where a page ends");
    let csv = ask(&database, &["suppressed", "list", "--csv", "--cause", "bounce"]).await.out;
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "address,cause,occurred_at,reports,subtype,smtp_status,email_log_uuid,event_uuid");
    let begin =
        "\"ana@example.net\",bounce,2026-10-05T08:00:10Z,1,\"NoEmail\",\"5.1.1\",019b2f00-0000-7000-8000-000000000001,";
    assert!(lines.len() == 4 && lines[3].starts_with(begin), "{csv}");
    assert_eq!(ask(&database, &["suppressed", "list", "--csv", "--json"]).await.code, Some(64));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_taken_off_with_a_reason() {
    let database = reported().await;
    let remove = ["suppressed", "remove", "Ana <ANA@example.net>", "--reason", "She wrote to us"];
    let refused = ask(&database, &remove).await;
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.err.contains("GRANT EXECUTE ON FUNCTION ses_ledger_remove_suppression TO login_"),
        "{}",
        refused.err
    );
    assert_eq!(ask_as_owner(&database, &["suppressed", "remove", "ana@example.net"]).await.code, Some(64), "why?");
    let blank = ask_as_owner(&database, &["suppressed", "remove", "ana@example.net", "--reason", ""]).await;
    assert_eq!(blank.code, Some(64), "{}", blank.err);
    let removed = ask_as_owner(&database, &remove).await;
    assert_eq!((removed.code, removed.err.as_str()), (Some(0), ""));
    assert!(
        removed.out.contains("It may be written to again.") && removed.out.contains("aws sesv2"),
        "{}",
        removed.out
    );
    assert_eq!(ask(&database, &["suppressed", "ana@example.net"]).await.code, Some(0));
    let again = ask_as_owner(&database, &remove).await;
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("is not suppressed: nothing was changed"), "{}", again.err);

    let (code, json) = answer(&database, &["suppressed", "removals"]).await;
    assert_eq!(code, Some(0));
    let [removal] = json["removals"].as_array().expect("a list").as_slice() else { panic!("there is one: {json}") };
    assert_eq!((&removal["address"], &removal["reason"]), (&"ana@example.net".into(), &"She wrote to us".into()));
    assert!(removal["removed_by"].as_str().is_some_and(|by| by.starts_with("login_")), "{json}");
    let words = ask(&database, &["suppressed", "removals", "ANA@example.net"]).await.out;
    assert!(words.contains("  ana@example.net\n  by login_") && words.contains(": She wrote to us\n"), "{words}");
    let none = ask(&database, &["suppressed", "removals", "bob@example.net"]).await;
    assert_eq!((none.code, none.out.as_str()), (Some(0), "Nothing was taken off.\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_told_with_its_remedy() {
    let database = reported().await;
    for wrong in [
        &["suppressed"][..],
        &["suppressed", "ana"],
        &["suppressed", "list", "--limit", "0"],
        &["suppressed", "list", "--after", "yesterday"],
        &["suppressed", "remove", "ana", "--reason", "x"],
    ] {
        assert_eq!(ask(&database, wrong).await.code, Some(64), "{wrong:?}");
    }
    for away in [
        &["suppressed", "a@b.org"][..],
        &["suppressed", "list"],
        &["suppressed", "remove", "a@b.org", "--reason", "x"],
        &["suppressed", "removals"],
    ] {
        let mut command = ses_ledger(away.iter().copied());
        command.env("DATABASE_URL", "postgres://nobody:secret@127.0.0.1:1/none").env("LOG", "error");
        let ended = end_of(command).await;
        assert_eq!(ended.code, Some(69), "{away:?}: {}", ended.err);
        assert!(ended.err.starts_with("error: cannot connect") && !ended.err.contains("secret"), "{}", ended.err);
    }
}
