//! `ses-ledger rebuild`, as an operator runs it.

use serde_json::Value;
use ses_ledger::event::EventKind;
use sqlx::{Acquire as _, Executor as _};

use super::{Ended, end_of, ses_ledger, until};
use crate::{
    arrivals::{event, opened, store},
    database::{self, Database},
    roles::login,
};

async fn rebuild(url: &str, arguments: &[&str]) -> Ended {
    let mut command = ses_ledger(["rebuild"].iter().chain(arguments).copied());
    command.env("DATABASE_URL", url);
    end_of(command).await
}

/// The one JSON document that it prints.
async fn json(url: &str, arguments: &[&str], code: i32) -> Value {
    let ended = rebuild(url, &[arguments, &["--json"]].concat()).await;
    assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.out, ended.err);
    serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("not a document ({e}): {}", ended.out))
}

/// Two mails, of which one has forgotten that it was opened.
async fn damaged() -> Database {
    let database = database::fresh().await;
    for id in ["a", "b"] {
        database.log(id).await;
        store(&database.store(), [event(id, EventKind::Send), event(id, EventKind::Delivery), opened(id, 5)]).await;
    }
    database.run("UPDATE email_logs SET opened_at = NULL, open_count = 0 WHERE aws_message_id = 'b'").await;
    database
}

const OPENED: &str = "SELECT count(*) FROM email_logs WHERE status = 'opened' AND open_count = 1";

#[tokio::test]
async fn it_shows_what_would_change_and_changes_it_when_somebody_agrees() {
    let database = damaged().await;
    let mail = database.text("SELECT uuid::text FROM email_logs WHERE aws_message_id = 'b'").await;
    let dry = rebuild(&database.url, &["--dry-run"]).await;
    assert_eq!(dry.code, Some(1), "{}", dry.err);
    assert!(dry.out.lines().all(|line| line.chars().count() <= 80), "{}", dry.out);
    let shown = dry.out.split_whitespace().collect::<Vec<_>>().join(" ");
    for line in [
        "Looked at 2 mails and 6 events in".to_owned(),
        "1 mail would change:".to_owned(),
        format!("status delivered → opened: 1 mail, like {mail} opened_at set: 1 mail, like {mail}"),
        format!("open_count higher: 1 mail, like {mail}"),
    ] {
        assert!(shown.contains(&line), "{line}: {}", dry.out);
    }
    assert!(!dry.out.contains("example.com"), "{}", dry.out);
    let alone = rebuild(&database.url, &[]).await;
    assert_eq!(alone.code, Some(1));
    assert!(
        alone.err.contains("cannot ask here whether you are sure: add --yes. It would change 1 mail"),
        "{}",
        alone.err
    );
    assert_eq!(database.number(OPENED).await, 1, "nobody has agreed yet");

    let done = rebuild(&database.url, &["--yes"]).await;
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.out.contains("1 mail was changed."), "{}", done.out);
    assert_eq!(database.number(OPENED).await, 2);
    let clean = rebuild(&database.url, &["--dry-run"]).await;
    assert_eq!(clean.code, Some(0), "{}", clean.err);
    assert!(clean.out.contains("Every fact is what its events say."), "{}", clean.out);
    assert_eq!(
        database.text("SELECT scope || ' ' || (ended_at IS NOT NULL) FROM ses_ledger_rebuilds").await,
        "all mails true"
    );
}

#[tokio::test]
async fn the_json_says_the_same() {
    let database = damaged().await;
    let mail = database.text("SELECT uuid::text FROM email_logs WHERE aws_message_id = 'b'").await;
    let found = json(&database.url, &["--dry-run"], 1).await;
    assert_eq!(
        (&found["dry_run"], &found["found"]["mails"], &found["found"]["differ"]),
        (&true.into(), &2.into(), &1.into())
    );
    let first = serde_json::json!({"fact": "status", "change": "delivered → opened", "mails": 1, "examples": [mail]});
    assert_eq!((&found["found"]["changes"][0], &found["changed"]), (&first, &Value::Null));
    let only = format!("--mail={mail}");
    let done = json(&database.url, &["--yes", &only], 0).await;
    assert_eq!((&done["changed"]["mails"], &done["changed"]["changes"][0]), (&1.into(), &first));

    // What no event shows is told, and left.
    database.run("DELETE FROM email_events WHERE event_type = 'send'").await;
    let left = json(&database.url, &["--dry-run"], 0).await;
    assert_eq!(left["found"]["without_event"][0]["change"], "no event");
    assert_eq!(json(&database.url, &["--dry-run", "--strict"], 1).await["found"]["differ"], 2);
    let unknown = rebuild(&database.url, &["--dry-run", "--mail=01a1b7cb-c09e-78d9-98ae-a9c94b5223c3"]).await;
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.contains("there is no such mail, or its events were let go"), "{}", unknown.err);
    let month = json(&database.url, &["--dry-run", "--strict", "--from=2025-01", "--to=2025-02"], 0).await;
    assert_eq!(month["found"]["mails"], 0);
}

#[tokio::test]
async fn who_may_read_can_look_and_the_owner_alone_changes() {
    let database = damaged().await;
    let operator = login(&database, &["ses_ledger_operator"]).await;
    let looked = rebuild(&operator, &["--dry-run"]).await;
    assert!(looked.err.contains("The figures were not looked at"), "{}", looked.err);
    assert_eq!(rebuild(&operator, &["--dry-run", "--facts-only"]).await.err, "");
    assert_eq!(rebuild(&operator, &["--dry-run"]).await.code, Some(1));
    for role in ["ses_ledger_operator", "ses_ledger_worker"] {
        let refused = rebuild(&login(&database, &[role]).await, &["--yes"]).await;
        assert_eq!(refused.code, Some(1), "{}", refused.out);
        assert!(refused.err.contains("cannot become the role ses_ledger_owner"), "{}", refused.err);
        assert!(!refused.out.contains("Looked at"), "said before the look: {}", refused.out);
    }
    assert_eq!(rebuild(&login(&database, &[]).await, &["--dry-run"]).await.code, Some(69));
    assert_eq!(database.number(OPENED).await, 1);
    assert_eq!(
        rebuild(&login(&database, &["ses_ledger_owner", "ses_ledger_operator"]).await, &["--yes"]).await.code,
        Some(0)
    );
    assert_eq!(database.number(OPENED).await, 2);
    for (wrong, code) in [
        (["--from=2026-13", ""], 64),
        (["--from=2026-03", "--to=2026-02"], 64),
        (["--dry-run", "--yes"], 64),
        (["--database-pooler=transaction", "--dry-run"], 64),
        (["--database-url=postgres://nobody@127.0.0.1:1/x", "--dry-run"], 69),
    ] {
        let arguments: Vec<&str> = wrong.into_iter().filter(|argument| !argument.is_empty()).collect();
        assert_eq!(rebuild(&database.url, &arguments).await.code, Some(code), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_killed_is_found_again_and_nothing_is_done_twice() {
    let database = database::fresh().await;
    database
        .run(
            "INSERT INTO email_logs (created_at) SELECT now() FROM generate_series(1, 2500);
             INSERT INTO email_events (uuid, email_log_uuid, event_type, occurred_at, queue, sqs_message_id, received_at)
             SELECT gen_random_uuid(), uuid, kind, '2026-10-05 08:00:01+00', 'q', 's', now()
             FROM email_logs, unnest(ARRAY['send', 'open', 'click']) AS kind",
        )
        .await;
    // Somebody holds the last mail, so that it cannot come to its end.
    let mut connection = database.pool.acquire().await.expect("it is there");
    let mut holding = connection.begin().await.expect("it is there");
    let last = "SELECT uuid FROM email_logs ORDER BY uuid DESC LIMIT 1 FOR UPDATE";
    holding.execute(last).await.expect("it is there");
    let mut command = ses_ledger(["rebuild", "--yes"]);
    let mut running = command.env("DATABASE_URL", &database.url).spawn().expect("the binary was built for this test");
    let changed = "SELECT count(*) FROM email_logs WHERE status = 'clicked'";
    until("two transactions are through", async || database.number(changed).await == 2_000).await;
    running.kill().await.expect("it runs");
    holding.rollback().await.expect("it is there");

    until("the server has noticed", async || {
        database.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").await == 0
    })
    .await;
    let noted = "SELECT (changed ->> 'differ')::bigint FROM ses_ledger_rebuilds WHERE ended_at IS NULL";
    assert_eq!(database.number(noted).await, 2_000, "what was done is noted with it");
    let rest = json(&database.url, &["--yes"], 0).await;
    assert_eq!((&rest["found"]["differ"], &rest["changed"]["mails"]), (&500.into(), &500.into()));
    assert_eq!(database.number(changed).await, 2_500);
    assert_eq!(database.number("SELECT (sum(open_count) + sum(click_count))::bigint FROM email_logs").await, 5_000);
}

#[tokio::test]
async fn figures_follow_the_facts() {
    let database = damaged().await;
    // What has just come is counted a few seconds later.
    database.run("UPDATE email_events SET stored_at = stored_at - interval '1 minute'").await;
    let counted = end_of({
        let mut command = ses_ledger(["figures", "update"]);
        command.env("DATABASE_URL", &database.url);
        command
    });
    assert_eq!(counted.await.code, Some(0));
    let clean = rebuild(&database.url, &["--dry-run"]).await;
    assert!(clean.out.contains("Every figure is what its events make."), "{}", clean.out);
    database.run("UPDATE email_figures SET opens = opens + 5 WHERE dimension = 'all'").await;
    let found = json(&database.url, &["--dry-run"], 1).await;
    assert_eq!((&found["found"]["differ"], &found["figures"]["months"][0]["different"]), (&1.into(), &1.into()));
    let alone = rebuild(&database.url, &[]).await;
    assert!(alone.err.contains("It would change 1 mail and 1 line of the figures"), "{}", alone.err);
    assert_eq!(json(&database.url, &["--yes", "--facts-only"], 0).await["changed"]["lines_of_figures"], 0);

    // Figures alone are a difference, too.
    let dry = rebuild(&database.url, &["--dry-run"]).await;
    assert_eq!(dry.code, Some(1), "{}", dry.out);
    assert!(dry.out.contains("Every fact is what its") && dry.out.contains("opens 7 → 2"), "{}", dry.out);
    assert_eq!(rebuild(&database.url, &["--dry-run", "--facts-only"]).await.code, Some(0));
    assert_eq!(json(&database.url, &["--yes"], 0).await["changed"]["lines_of_figures"], 1);
    assert_eq!(rebuild(&database.url, &["--dry-run"]).await.code, Some(0));
    assert_eq!(database.number("SELECT opens::bigint FROM email_figures WHERE dimension = 'all'").await, 2);
}
