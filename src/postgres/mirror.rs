//! A script for those who keep their own log table: each of its rows is mirrored as a mail, and a view shows what became of it.

use anyhow::ensure;

use super::{
    Postgres,
    adoption::{Column, ident, quoted},
};
use crate::adoption::shape::Table;

const INSTALL: &str = include_str!("mirror_install.sql");
const REMOVE: &str = include_str!("mirror_remove.sql");

/// What is mirrored of a row, beside its key and its SES id.
const MIRRORED: [&str; 7] =
    ["sender", "recipients", "subject", "template_name", "campaign_id", "configuration_set", "created_at"];

/// The script that installs the mirror, or takes it away.
///
/// # Errors
/// If the key is no UUID, or the database cannot be read.
pub async fn script(postgres: &Postgres, table: &Table, there: &[Column], remove: bool) -> anyhow::Result<String> {
    let kind = |field: &str| {
        let column = table.columns.get(field)?;
        there.iter().find(|c| c.name == *column).map(|c| (ident(column), c.kind.as_str()))
    };
    let id = kind("id").filter(|(_, kind)| *kind == "uuid").map(|(id, _)| id);
    ensure!(
        id.is_some(),
        "cannot mirror {table}: its key is no UUID, and the mail here has the same one; adopt it instead"
    );
    let id = id.unwrap_or_default();
    let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(postgres).await?;
    let message_id = kind("message_id").map_or("NULL".to_owned(), |(column, kind)| match kind {
        "text" | "character varying" => format!("ses_ledger_message_id(NEW.{column})"),
        _ => format!("ses_ledger_message_id(NEW.{column}::text)"),
    });
    let mirrored: Vec<(&str, String, &str)> =
        MIRRORED.iter().filter_map(|field| kind(field).map(|(column, kind)| (*field, column, kind))).collect();
    let fields: String = mirrored.iter().map(|(field, ..)| format!(", {field}")).collect();
    let values: String =
        mirrored.iter().map(|(field, column, kind)| format!(", {}", value(field, column, kind))).collect();
    let watched = [kind("message_id").map(|(column, _)| column)].into_iter().flatten();
    let watched: Vec<String> = std::iter::once(id.clone()).chain(watched).collect();
    let view = quoted(&Table { name: format!("{}_with_ses", table.name), ..table.clone() });
    let script = if remove { REMOVE } else { INSTALL };
    Ok(script
        .replace("{schema}", &ident(&schema))
        .replace("{function}", &ident(&format!("ses_ledger_mirror_{}", table.name)))
        .replace("{table}", &quoted(table))
        .replace("{view}", &view)
        .replace("{id}", &id)
        .replace("{message_id}", &message_id)
        .replace("{fields}", &fields)
        .replace("{values}", &values)
        .replace("{watched}", &watched.join(", ")))
}

/// A column as the type that we have for it.
fn value(field: &str, column: &str, kind: &str) -> String {
    match (field, kind) {
        ("recipients", "text[]" | "character varying[]") => format!("coalesce(NEW.{column}::text[], '{{}}')"),
        ("recipients", "json" | "jsonb") => {
            format!("ARRAY(SELECT jsonb_array_elements_text(coalesce(NEW.{column}::jsonb, '[]')))")
        }
        ("recipients", _) => format!("array_remove(ARRAY[NEW.{column}::text], NULL)"),
        ("created_at", _) => format!("coalesce(NEW.{column}::timestamptz, now())"),
        _ => format!("NEW.{column}::text"),
    }
}
