//! Who looks after the tables, and who notices when nobody does.

use ses_ledger::{
    metrics::Metrics,
    postgres::{
        letting_go::months_ahead,
        schema::{self, Severity},
    },
    status::status,
    upkeep,
};

use crate::{
    database::{self, Database, connect},
    roles::login,
};

async fn drop_month(database: &Database, ahead: i32) {
    let name = format!(
        "SELECT 'email_events_' || to_char((now() AT TIME ZONE 'UTC')::date + make_interval(months => {ahead}), '\"y\"YYYY\"m\"MM')"
    );
    let name = database.text(&name).await;
    database.run(&format!("DROP TABLE {name}")).await;
}

/// What everybody says who counts months: the function, the view, the metrics, `status`, and `migrate verify` with `doctor`.
async fn check_months(database: &Database, expected: i64) {
    let postgres = database.store();
    assert_eq!(months_ahead(&postgres).await.expect("it is there"), expected);
    assert_eq!(database.number("SELECT months_ahead FROM pipeline_health").await, expected);
    let metrics = Metrics::default();
    upkeep::gauge(&postgres, &metrics).await.expect("it is there");
    assert_eq!(metrics.months_ahead.get(), expected);

    let few = expected < 2;
    let operator = connect(&login(database, &["ses_ledger_operator"]).await);
    let status = status(&operator, Vec::new()).await.expect("it may look");
    assert_eq!(status.database.months_ahead, expected);
    let needs = status.needs_somebody();
    assert_eq!(needs.iter().any(|need| need.contains("ses-ledger partitions ensure")), few, "{needs:?}");
    let all = schema::verify(&postgres).await.expect("it is there");
    let warned = all.iter().any(|it| it.severity == Severity::Warning && it.what.contains("partitions are ready for"));
    assert_eq!(warned, few, "{all:?}");
}

#[tokio::test]
async fn months_are_counted_up_to_the_first_gap_and_everybody_counts_the_same() {
    let database = database::fresh().await;
    database.run("SELECT email_events_ensure_ahead(5)").await;
    check_months(&database, 5).await;
    drop_month(&database, 3).await;
    check_months(&database, 2).await;
    drop_month(&database, 2).await;
    check_months(&database, 1).await;
    drop_month(&database, 0).await;
    check_months(&database, 0).await;
    database.run("SELECT email_events_ensure_ahead(3)").await;
    check_months(&database, 5).await;
}
