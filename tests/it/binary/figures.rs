//! `ses-ledger figures`, as somebody calls it who wants to know how things are going.

use serde_json::{Value, json};
use ses_ledger::event::EventKind;

use super::{Ended, end_of, ses_ledger};
use crate::{
    arrivals::{event, opened, store},
    database,
    roles::login,
};

async fn call(url: &str, arguments: &[&str]) -> Ended {
    let mut command = ses_ledger(arguments.iter().copied());
    command.env("DATABASE_URL", url);
    end_of(command).await
}

async fn json(url: &str, arguments: &[&str], code: i32) -> Value {
    let ended = call(url, &[arguments, &["--json"]].concat()).await;
    assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.out, ended.err);
    serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("not a document ({e}): {}", ended.out))
}

#[tokio::test]
async fn figures_are_counted_shown_and_mended() {
    let database = database::fresh().await;
    let (worker, reader) =
        (login(&database, &["ses_ledger_worker"]).await, login(&database, &["ses_ledger_operator"]).await);
    let none = call(&reader, &["figures", "--from=2026-10-01"]).await;
    assert_eq!(none.code, Some(1), "{}", none.err);
    assert!(none.out.contains("Nothing is counted yet"), "{}", none.out);

    for (n, (template, tag)) in [("welcome", "a"), ("welcome", "b"), ("=cmd, \"x\"", "a")].into_iter().enumerate() {
        let uuid = database.log(&format!("m{n}")).await;
        let query = sqlx::query(
            "UPDATE email_logs SET template_name = $2, tags = jsonb_build_object('ring', $3) WHERE uuid = $1",
        );
        query.bind(uuid).bind(template).bind(tag).execute(&database.pool).await.expect("it can be written");
        let id = format!("m{n}");
        store(&database.store(), [event(&id, EventKind::Send), event(&id, EventKind::Delivery)]).await;
    }
    store(&database.store(), [opened("m0", 2 * 86_400)]).await;
    // What was stored a moment ago is left to the next time, in case the clock is set back.
    database.run("UPDATE email_events SET stored_at = stored_at - interval '1 minute'").await;
    let counted = json(&worker, &["figures", "update"], 0).await;
    assert!(counted["counted"]["behind_seconds"].as_f64().is_some_and(|behind| behind < 60.0), "{counted}");

    let days = call(&reader, &["figures", "--from=2026-10-01"]).await;
    assert_eq!(days.code, Some(0), "{}", days.err);
    assert!(days.out.lines().all(|line| line.chars().count() <= 80), "{}", days.out);
    for part in [
        "2026-10-05                  3          3 100.0 %   0.0 %   0.0 %",
        "2026-10-07",
        "33.3 %",
        "Counted is what was stored until",
    ] {
        assert!(days.out.contains(part), "{part}: {}", days.out);
    }
    let templates = json(&reader, &["figures", "--by=template"], 0).await;
    let lines = &templates["figures"]["lines"];
    assert_eq!((&lines[0]["key"], &lines[0]["sends"], &lines[0]["opened"]), (&json!("welcome"), &json!(2), &json!(1)));
    assert_eq!(templates["figures"]["total"]["deliveries"], 3);
    let domains = json(&reader, &["figures", "--by=domain", "--name=example.com", "--to=2026-10-05"], 0).await;
    assert_eq!(domains["figures"]["lines"][0]["key"], "2026-10-05");
    let csv = call(&reader, &["figures", "--by=template", "--csv"]).await;
    let first = csv.out.lines().next().unwrap_or_default();
    assert!(first.starts_with("key,sends,deliveries,") && first.ends_with(",opened,clicked"), "{}", csv.out);
    assert!(csv.out.contains("\"'=cmd, \"\"x\"\"\",1,1,"), "{}", csv.out);

    // Damaged, and by a tag that was not chosen yet.
    database.run("UPDATE email_figures SET sends = 9 WHERE dimension = 'all'").await;
    let dry = call(&worker, &["figures", "rebuild", "--dry-run"]).await;
    assert_eq!(dry.code, Some(1), "{}", dry.err);
    assert!(dry.out.contains("2 lines differ") && dry.out.contains("sends 9 → 3"), "{}", dry.out);
    assert!(dry.out.lines().all(|line| line.chars().count() <= 80), "{}", dry.out);
    let unasked = call(&worker, &["figures", "rebuild"]).await;
    assert_eq!((unasked.code, unasked.err.contains("add --yes")), (Some(1), true), "{}", unasked.err);
    let mended = call(&worker, &["figures", "rebuild", "--yes", "--tags=ring"]).await;
    assert_eq!(mended.code, Some(0), "{}", mended.err);
    assert!(mended.out.contains("Mended"), "{}", mended.out);
    assert_eq!(json(&worker, &["figures", "rebuild", "--dry-run"], 0).await["months"][0]["different"], 0);
    let rings = json(&reader, &["figures", "--by=tag:ring"], 0).await;
    assert_eq!(
        (&rings["figures"]["lines"][0]["key"], &rings["figures"]["lines"][0]["sends"]),
        (&json!("a"), &json!(2))
    );

    // Who only reads cannot count.
    let refused = call(&reader, &["figures", "rebuild", "--yes"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("permission denied"), "{}", refused.err);
}

#[tokio::test]
async fn what_cannot_be_asked_is_bad_usage() {
    let url = "postgres://u:p@127.0.0.1:1/none";
    for (arguments, why) in [
        (vec!["figures", "--by=weather"], "is none of day, template"),
        (vec!["figures", "--name=welcome"], "needs --by template"),
        (vec!["figures", "--from=yesterday"], "is no day"),
        (vec!["figures", "rebuild", "--dry-run", "--yes"], "cannot be used with"),
        (vec!["figures", "--database-pooler=transaction", "rebuild"], "a session of its own"),
        (
            vec!["run", "--queue-url=http://127.0.0.1:1/0/q", "--figures-interval=10ms"],
            "FIGURES_INTERVAL has to be at least 1s",
        ),
        (vec!["run", "--queue-url=http://127.0.0.1:1/0/q", "--figures-tags=a,b,c,d,e,f,g,h,i"], "at most 8 tags"),
    ] {
        let ended = call(url, &arguments).await;
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains(why), "{}", ended.err);
    }
    assert_eq!(call(url, &["figures"]).await.code, Some(69));
}
