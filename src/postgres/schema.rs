//! What the binary needs of the database, compared with what stands there.

use anyhow::Context as _;
use serde::Serialize;
use sqlx::Row as _;
use tracing::{error, warn};

use super::{
    Postgres,
    letting_go::{FEWEST_MONTHS_AHEAD, months_ahead},
    migrations::{self, State},
    optional::{self, Set},
};
use crate::{pulse::Counts, readable::plural};

/// Something that is not as the binary needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What is missing or different.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

/// Whether the worker can run with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The worker refuses to start.
    Error,
    /// It runs, but somebody should look.
    Warning,
}

/// Tables and the columns that the statements name.
const TABLES: [(&str, &[&[&str]]); 13] = [
    ("email_logs", &[&LOG_COLUMNS, &FACTS]),
    ("email_events", &[&["email_log_uuid"], &EVENT_COLUMNS]),
    ("orphaned_events", &[&["aws_message_id", "log_uuid", "fact_key"], &EVENT_COLUMNS]),
    ("quarantined_messages", &[&QUARANTINE_COLUMNS]),
    ("ses_ledger_workers", &[&WORKER_COLUMNS]),
    ("ses_ledger_minutes", &[&["minute", "worker", "lags", "queues"], Counts::NAMES]),
    ("ses_ledger_kinds", &[&["event_type", "last_occurred_at", "last_stored_at", "since"]]),
    ("ses_ledger_horizon", &[&["events_from", "events_from_id", "logs_from", "logs_from_id"]]),
    ("ses_ledger_erased", &[&["mail", "name"]]),
    ("ses_ledger_adoptions", &[&["whole_seconds_until"]]),
    ("ses_ledger_figures", &[&["counted_until", "tags", "updated_at"]]),
    ("email_figures", &[&["month", "dimension", "key", "day", "sends", "opened", "clicked"]]),
    ("ses_ledger_suppressions", &[&SUPPRESSION_COLUMNS]),
];

const SUPPRESSION_COLUMNS: [&str; 8] =
    ["address", "candidate", "occurred_at", "cause", "subtype", "smtp_status", "email_log_uuid", "event_uuid"];

/// What the worker only reads of a log row, or does not look at.
const LOG_COLUMNS: [&str; 12] = [
    "uuid",
    "sender",
    "recipients",
    "subject",
    "template_name",
    "campaign_id",
    "configuration_set",
    "tags",
    "headers",
    "body_full",
    "created_at",
    "status",
];

/// What the worker writes of a log row.
const FACTS: [&str; 13] = [
    "aws_message_id",
    "sent_at",
    "delivered_at",
    "delayed_at",
    "bounced_at",
    "complained_at",
    "rejected_at",
    "failed_at",
    "opened_at",
    "clicked_at",
    "open_count",
    "click_count",
    "bounce_class",
];

/// What an event is, with its mail or still without.
const EVENT_COLUMNS: [&str; 27] = [
    "uuid",
    "event_type",
    "occurred_at",
    "time_source",
    "recipient",
    "candidate",
    "bounce_type",
    "bounce_subtype",
    "smtp_status",
    "diagnostic",
    "complaint_type",
    "complaint_subtype",
    "delay_type",
    "link",
    "link_digest",
    "ip",
    "user_agent",
    "bot",
    "feedback_id",
    "reporting_mta",
    "payload",
    "queue",
    "sqs_message_id",
    "sns_message_id",
    "eventbridge_id",
    "received_at",
    "stored_at",
];

const QUARANTINE_COLUMNS: [&str; 16] = [
    "uuid",
    "body",
    "body_digest",
    "stage",
    "reason",
    "failed_at",
    "fingerprint",
    "queue",
    "sqs_message_id",
    "receive_count",
    "times_seen",
    "first_seen_at",
    "last_seen_at",
    "replay_count",
    "last_replayed_at",
    "last_replay_outcome",
];

const WORKER_COLUMNS: [&str; 25] = [
    "id",
    "name",
    "version",
    "runtime",
    "queues",
    "started_at",
    "seen_at",
    "stopped_at",
    "received",
    "stored",
    "ignored",
    "rejected",
    "released",
    "in_hand",
    "messages_drift",
    "decoded",
    "inserted",
    "duplicate",
    "orphaned",
    "quarantined",
    "events_drift",
    "connections",
    "connections_most",
    "retention_payload",
    "retention",
];

/// A unique index that deduplication rests on: its name, table, key columns and predicate, as PostgreSQL prints them.
struct UniqueIndex {
    name: &'static str,
    table: &'static str,
    columns: &'static str,
    predicate: &'static str,
    migration: &'static str,
}

const ONCE: &str = "(event_type <> ALL (ARRAY['open'::text, 'click'::text]))";
const AGAIN: &str = "(event_type = ANY (ARRAY['open'::text, 'click'::text]))";

const UNIQUE_INDEXES: [UniqueIndex; 6] = [
    UniqueIndex {
        name: "email_events_once",
        table: "email_events",
        columns: "email_log_uuid, event_type, recipient",
        predicate: ONCE,
        migration: "migrations/0004_email_events.up.sql",
    },
    UniqueIndex {
        name: "email_events_again",
        table: "email_events",
        columns: "email_log_uuid, event_type, occurred_at, recipient, link_digest",
        predicate: AGAIN,
        migration: "migrations/0004_email_events.up.sql",
    },
    UniqueIndex {
        name: "email_logs_aws_message_id",
        table: "email_logs",
        columns: "aws_message_id",
        predicate: "(aws_message_id IS NOT NULL)",
        migration: "migrations/0003_email_logs.up.sql",
    },
    UniqueIndex {
        name: "orphaned_events_once",
        table: "orphaned_events",
        columns: "aws_message_id, event_type, recipient, occurred_at, fact_key",
        predicate: ONCE,
        migration: "migrations/0005_orphaned_events.up.sql",
    },
    UniqueIndex {
        name: "orphaned_events_again",
        table: "orphaned_events",
        columns: "aws_message_id, event_type, occurred_at, recipient, link_digest",
        predicate: AGAIN,
        migration: "migrations/0005_orphaned_events.up.sql",
    },
    UniqueIndex {
        name: "quarantined_messages_body",
        table: "quarantined_messages",
        columns: "body_digest",
        predicate: "",
        migration: "migrations/0006_quarantined_messages.up.sql",
    },
];

const FUNCTIONS: [&str; 12] = [
    "ses_ledger_message_id(text)",
    "ses_ledger_fact(text, text, text)",
    "ses_ledger_bounce_class_of(text, text, text)",
    "ses_ledger_uuid_floor(timestamptz)",
    "email_events_ensure_month(timestamptz)",
    "email_events_ensure_ahead(integer)",
    "email_events_ensure_for(text[], uuid[])",
    "ses_ledger_empty(text, interval, integer)",
    "ses_ledger_months_ahead()",
    "ses_ledger_erased_name(text)",
    "ses_ledger_suppression_key(text)",
    "ses_ledger_suppression_cause(text, text, text, text, text)",
];

/// What the worker does to each table.
const WORKER_RIGHTS: [(&str, &str); 33] = [
    ("email_logs", "SELECT"),
    ("email_events", "SELECT"),
    ("email_events", "INSERT"),
    ("orphaned_events", "SELECT"),
    ("orphaned_events", "INSERT"),
    ("orphaned_events", "UPDATE"),
    ("orphaned_events", "DELETE"),
    ("quarantined_messages", "SELECT"),
    ("quarantined_messages", "INSERT"),
    ("quarantined_messages", "UPDATE"),
    ("ses_ledger_workers", "SELECT"),
    ("ses_ledger_workers", "INSERT"),
    ("ses_ledger_workers", "UPDATE"),
    ("ses_ledger_workers", "DELETE"),
    ("ses_ledger_minutes", "SELECT"),
    ("ses_ledger_minutes", "INSERT"),
    ("ses_ledger_minutes", "UPDATE"),
    ("ses_ledger_minutes", "DELETE"),
    ("ses_ledger_kinds", "SELECT"),
    ("ses_ledger_kinds", "INSERT"),
    ("ses_ledger_kinds", "UPDATE"),
    ("ses_ledger_horizon", "SELECT"),
    ("ses_ledger_erased", "SELECT"),
    ("ses_ledger_adoptions", "SELECT"),
    ("ses_ledger_months_let_go", "SELECT"),
    ("ses_ledger_figures", "SELECT"),
    ("ses_ledger_figures", "UPDATE"),
    ("email_figures", "SELECT"),
    ("email_figures", "INSERT"),
    ("email_figures", "UPDATE"),
    ("email_figures", "DELETE"),
    ("ses_ledger_suppressions", "SELECT"),
    ("ses_ledger_suppressions", "INSERT"),
];

/// Compares the database with what this binary needs. Empty means that all is well.
///
/// # Errors
/// If the database cannot be reached.
pub async fn verify(postgres: &Postgres) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::from_iter(version(postgres).await.context("cannot read the version of PostgreSQL")?);
    findings.extend(history(postgres).await?);
    if findings.iter().any(|f| f.severity == Severity::Error) {
        return Ok(findings); // the rest would only repeat it
    }
    let context = "cannot read the schema";
    findings.extend(columns(postgres).await.context(context)?);
    findings.extend(indexes(postgres).await.context(context)?);
    findings.extend(functions(postgres).await.context(context)?);
    if findings.iter().all(|f| f.severity == Severity::Warning) {
        findings.extend(rights(postgres).await.context(context)?);
        findings.extend(security(postgres).await.context(context)?);
        findings.extend(triggers(postgres).await.context(context)?);
        findings.extend(partitions(postgres).await.context(context)?);
        findings.extend(optional_indexes(postgres).await.context(context)?);
    }
    Ok(findings)
}

/// The same for a login that only reads: what the worker may do is not looked at.
///
/// # Errors
/// If the database cannot be reached.
pub async fn verify_for_reading(postgres: &Postgres) -> anyhow::Result<Vec<Finding>> {
    let mut findings = history(postgres).await?;
    if findings.iter().all(|f| f.severity == Severity::Warning) {
        let context = "cannot read the schema";
        findings.extend(columns(postgres).await.context(context)?);
        findings.extend(indexes(postgres).await.context(context)?);
        findings.extend(partitions(postgres).await.context(context)?);
        findings.extend(optional_indexes(postgres).await.context(context)?);
    }
    Ok(findings)
}

/// The worker's own question before it stores: logs what is not as it should be.
///
/// # Errors
/// If the database cannot be reached, or something is missing that the worker cannot do without.
pub async fn ensure_usable(postgres: &Postgres) -> anyhow::Result<()> {
    let findings = verify(postgres).await?;
    for finding in &findings {
        match finding.severity {
            Severity::Error => error!("{}. To mend it: {}", finding.what, finding.fix),
            Severity::Warning => warn!("{}. To mend it: {}", finding.what, finding.fix),
        }
    }
    let unusable = findings.iter().any(|finding| finding.severity == Severity::Error);
    anyhow::ensure!(
        !unusable,
        "the database's schema is not what this binary needs: see above, or run ses-ledger migrate verify"
    );
    Ok(())
}

impl Finding {
    fn error(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Error, what: what.into(), fix: fix.into() }
    }

    fn warning(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, what: what.into(), fix: fix.into() }
    }
}

async fn version(postgres: &Postgres) -> Result<Option<Finding>, sqlx::Error> {
    let number: i32 =
        sqlx::query_scalar("SELECT current_setting('server_version_num')::integer").fetch_one(postgres).await?;
    Ok((number < 150_000).then(|| {
        Finding::error(format!("PostgreSQL {} is too old", number / 10_000), "use PostgreSQL 15 or newer".to_owned())
    }))
}

async fn history(postgres: &Postgres) -> anyhow::Result<Vec<Finding>> {
    let all = match migrations::status(postgres).await {
        Err(e) if is_denied(&e) => {
            return Ok(vec![Finding::error("this login may not read which migrations have run", grant_worker())]);
        }
        answer => answer?,
    };
    let findings = all.into_iter().filter_map(|m| {
        let name = format!("migration {} ({})", m.version, m.description);
        match m.state {
            State::Applied => None,
            State::Pending => Some(Finding::error(format!("{name} has not run"), "ses-ledger migrate up")),
            State::Changed => Some(Finding::error(
                format!("{name} ran with another text than this binary has"),
                "use the binary that migrated",
            )),
            State::Unknown => Some(Finding::warning(
                format!("{name} is unknown: the schema is newer than this binary"),
                "nothing, as long as nothing else is reported; update the binary when you can",
            )),
        }
    });
    Ok(findings.collect())
}

fn is_denied(error: &anyhow::Error) -> bool {
    let answer = error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    answer.is_some_and(|e| e.code().as_deref() == Some("42501"))
}

async fn columns(postgres: &Postgres) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    for (table, columns) in TABLES {
        let there: Vec<String> = sqlx::query_scalar(
            "SELECT attname::text FROM pg_attribute
             WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
        )
        .bind(table)
        .fetch_all(postgres)
        .await?;
        if there.is_empty() {
            findings.push(Finding::error(
                format!("the table {table} is missing"),
                "restore it, or start over: ses-ledger migrate down, then up",
            ));
            continue;
        }
        let missing = columns.iter().copied().flatten().filter(|column| there.iter().all(|t| t != *column));
        findings.extend(missing.map(|column| {
            Finding::error(
                format!("the column {table}.{column} is missing"),
                format!("add it as the migrations define it, or restore {table}"),
            )
        }));
    }
    Ok(findings)
}

/// An invalid unique index lets duplicates in without a word, and one with another predicate leaves types out.
async fn indexes(postgres: &Postgres) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    for index in UNIQUE_INDEXES {
        let row = sqlx::query(
            "SELECT i.indisunique, i.indisvalid AND i.indisready AS usable,
                    coalesce(pg_get_expr(i.indpred, i.indrelid), '') AS predicate,
                    (SELECT string_agg(a.attname, ', ' ORDER BY k.n)
                     FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, n)
                     JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum) AS columns
             FROM pg_index AS i
             WHERE i.indexrelid = to_regclass($1) AND i.indrelid = to_regclass($2)",
        )
        .bind(index.name)
        .bind(index.table)
        .fetch_optional(postgres)
        .await?;
        let UniqueIndex { name, table, columns, predicate, migration } = index;
        let rebuild =
            format!("drop it and make it again (not CONCURRENTLY) as {migration} does, after removing duplicates");
        let Some(row) = row else {
            findings.push(Finding::error(
                format!("the unique index {name} on {table} is missing"),
                format!("make it as {migration} does"),
            ));
            continue;
        };
        let found: (bool, bool, String, String) =
            (row.try_get("indisunique")?, row.try_get("usable")?, row.try_get("predicate")?, row.try_get("columns")?);
        if !found.0 || found.2 != predicate || found.3 != columns {
            findings.push(Finding::error(
                format!(
                    "the index {name} is not UNIQUE ({columns}) WHERE {predicate}, but ({}) WHERE {}",
                    found.3, found.2
                ),
                rebuild,
            ));
        } else if !found.1 {
            findings.push(Finding::error(
                format!("the unique index {name} is not valid, so it lets duplicates in"),
                rebuild,
            ));
        }
    }
    Ok(findings)
}

async fn functions(postgres: &Postgres) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    for function in FUNCTIONS {
        let may: Option<bool> = sqlx::query_scalar("SELECT has_function_privilege(to_regprocedure($1), 'EXECUTE')")
            .bind(function)
            .fetch_one(postgres)
            .await?;
        match may {
            Some(true) => {}
            Some(false) => findings.push(Finding::error(format!("this login may not call {function}"), grant_worker())),
            None => findings.push(Finding::error(
                format!("the function {function} is missing"),
                "restore it as the migrations define it",
            )),
        }
    }
    Ok(findings)
}

async fn rights(postgres: &Postgres) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    for (table, right) in WORKER_RIGHTS {
        let may: bool = sqlx::query_scalar("SELECT has_table_privilege($1::text, $2::text)")
            .bind(table)
            .bind(right)
            .fetch_one(postgres)
            .await?;
        if !may {
            findings.push(Finding::error(format!("this login lacks {right} on {table}"), grant_worker()));
        }
    }
    let read_only: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM unnest($1::text[]) AS name WHERE NOT has_column_privilege('email_logs', name, 'UPDATE')",
    )
    .bind(FACTS.as_slice())
    .fetch_all(postgres)
    .await?;
    findings.extend(
        read_only
            .into_iter()
            .map(|column| Finding::error(format!("this login may not write email_logs.{column}"), grant_worker())),
    );
    Ok(findings)
}

/// Row level security: off, anybody with a right sees all; on without a policy for this login, every mail looks unknown.
async fn security(postgres: &Postgres) -> Result<Vec<Finding>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT relname::text AS name, NOT relrowsecurity AS is_open,
                row_security_active(c.oid) AND NOT EXISTS (
                  SELECT FROM pg_policy AS p, unnest(p.polroles) AS policy_role
                  WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('*', 'r')
                    AND CASE WHEN policy_role = 0 THEN true ELSE pg_has_role(policy_role, 'USAGE') END) AS is_hidden
         FROM pg_class AS c WHERE c.oid = ANY (ARRAY[to_regclass('email_logs'), to_regclass('email_events'),
                                                     to_regclass('orphaned_events'), to_regclass('quarantined_messages'),
                                                     to_regclass('ses_ledger_workers'), to_regclass('ses_ledger_minutes'),
                                                     to_regclass('ses_ledger_kinds')])",
    )
    .fetch_all(postgres)
    .await?;
    let mut findings = Vec::new();
    for row in rows {
        let table: String = row.try_get("name")?;
        if row.try_get("is_open")? {
            let fix = format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY");
            findings.push(Finding::warning(format!("row level security is off for {table}"), fix));
        }
        if row.try_get("is_hidden")? {
            findings.push(Finding::error(format!("row level security hides {table} from this login"), grant_worker()));
        }
    }
    Ok(findings)
}

async fn partitions(postgres: &Postgres) -> Result<Option<Finding>, sqlx::Error> {
    let ahead = months_ahead(postgres).await?;
    Ok((ahead < FEWEST_MONTHS_AHEAD).then(|| {
        let months = plural(ahead.unsigned_abs(), "month", "months");
        Finding::warning(
            format!("partitions are ready for {months} after this one, without a gap: two have to be"),
            "ses-ledger partitions ensure; the worker does so by itself, every hour",
        )
    }))
}

/// Without it a bounce is stored, and the address is not known as suppressed.
async fn triggers(postgres: &Postgres) -> Result<Option<Finding>, sqlx::Error> {
    let works: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('email_events')
                          AND tgname = 'ses_ledger_note_suppression' AND tgenabled IN ('O', 'A'))",
    )
    .fetch_one(postgres)
    .await?;
    Ok((!works).then(|| {
        Finding::warning(
            "the trigger ses_ledger_note_suppression on email_events is missing or off: who bounces is not suppressed",
            "ALTER TABLE email_events ENABLE TRIGGER ses_ledger_note_suppression, or make it as migrations/0018_suppression.up.sql does",
        )
    }))
}

/// Nobody needs them; but one that is invalid costs, and serves nobody.
async fn optional_indexes(postgres: &Postgres) -> Result<Vec<Finding>, sqlx::Error> {
    let finding = |name: String| {
        let set = optional::set_of(&name).map_or("search", Set::as_str);
        Finding::warning(
            format!("the optional index {name} is unfinished: it costs who writes, and serves nobody"),
            format!("if nobody builds it just now: ses-ledger migrate --with {set}, or --without {set}"),
        )
    };
    Ok(optional::unfinished(postgres).await?.into_iter().map(finding).collect())
}

fn grant_worker() -> String {
    "GRANT ses_ledger_worker TO the login of the worker".to_owned()
}
