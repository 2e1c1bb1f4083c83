//! The sending application's side of the database: it writes one row per mail.

use anyhow::Context as _;

use super::Postgres;
use crate::local::story::LogRow;

/// Writes log rows, as an application does before or after it sends. A row that is there already stays as it is.
///
/// # Errors
/// If the database cannot be reached or refuses a row.
pub async fn write_logs(postgres: &Postgres, rows: &[LogRow]) -> anyhow::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut insert = sqlx::QueryBuilder::new(
        "INSERT INTO email_logs
           (uuid, aws_message_id, sender, recipients, subject, template_name, campaign_id, configuration_set, tags) ",
    );
    insert.push_values(rows, |mut values, row| {
        values
            .push_bind(row.uuid)
            .push_bind(&row.aws_message_id)
            .push_bind(&row.sender)
            .push_bind(&row.recipients)
            .push_bind(&row.subject)
            .push_bind(&row.template_name)
            .push_bind(&row.campaign_id)
            .push_bind(&row.configuration_set)
            .push_bind(row.tags.to_string())
            .push_unseparated("::jsonb");
    });
    insert.push(" ON CONFLICT (uuid) DO NOTHING");
    insert.build().execute(postgres).await.map(drop).context("cannot write the log rows")
}
