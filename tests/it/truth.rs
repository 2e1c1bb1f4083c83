//! Compares what a database holds with what a story says it must hold.

use ses_ledger::{local::story::Truth, postgres::audit};

use crate::database::Database;

/// Every row, every fact and every status, exactly.
pub(crate) async fn assert_exact(database: &Database, truth: &Truth) {
    let differences = audit::compare(&database.store(), truth).await.expect("the tables are there");
    assert_eq!(differences.count, 0, "{:#?}", differences.described);
}
