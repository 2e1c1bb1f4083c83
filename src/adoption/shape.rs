//! Which tables there are, and which of their columns say what.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, bail, ensure};

/// A ready-made mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum From {
    /// Columns have the names that we use; say with --map which have others
    #[default]
    Plain,
    /// The tables of PhoenixKit: phoenix_kit_email_logs and phoenix_kit_email_events
    PhoenixKit,
}

/// What a log row can say, each with the column of the plain shape first.
const LOG_FIELDS: [&str; 24] = [
    "id",
    "message_id",
    "other_id",
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
    "sent_at",
    "delivered_at",
    "delayed_at",
    "bounced_at",
    "complained_at",
    "rejected_at",
    "failed_at",
    "opened_at",
    "clicked_at",
    "bounce_type",
];

/// What an event row can say.
pub(super) const EVENT_FIELDS: [&str; 18] = [
    "id",
    "log_id",
    "message_id",
    "event_type",
    "occurred_at",
    "recipient",
    "payload",
    "bounce_type",
    "bounce_subtype",
    "smtp_status",
    "diagnostic",
    "complaint_type",
    "delay_type",
    "link",
    "ip",
    "user_agent",
    "received_at",
    "failure",
];

/// PhoenixKit's columns that are not called like our fields.
const PHOENIX_KIT_LOGS: [(&str, &str); 8] = [
    ("id", "uuid"),
    ("message_id", "aws_message_id"),
    // Its own id; before it had a column for that of SES, the one of SES.
    ("other_id", "message_id"),
    ("sender", "from"),
    ("recipients", "to"),
    ("tags", "message_tags"),
    ("created_at", "inserted_at"),
    ("bounce_type", ""),
];
const PHOENIX_KIT_EVENTS: [(&str, &str); 9] = [
    ("id", "uuid"),
    ("log_id", "email_log_uuid"),
    ("message_id", ""),
    ("payload", "event_data"),
    ("link", "link_url"),
    ("ip", "ip_address"),
    ("received_at", "inserted_at"),
    ("diagnostic", "reject_reason"),
    ("failure", "failure_reason"),
];

/// A table of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// In which schema; `None`: where the login's search path leads.
    pub schema: Option<String>,
    pub name: String,
    /// Which column says what: field → column.
    pub columns: BTreeMap<&'static str, String>,
    /// The fields whose column somebody named: these have to be there.
    pub named: Vec<&'static str>,
}

/// What to adopt from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub logs: Option<Table>,
    pub events: Option<Table>,
}

impl Shape {
    /// A ready-made mapping, with what somebody said about it: other tables (`none` is none), and `logs.subject=betreff`.
    /// An empty column leaves the field out.
    ///
    /// # Errors
    /// If a mapping names no field of ours.
    pub fn new(
        from: From,
        schema: Option<&str>,
        logs: Option<&str>,
        events: Option<&str>,
        mappings: &[String],
    ) -> anyhow::Result<Self> {
        let (usual_logs, usual_events) = match from {
            From::Plain => ("mails", "mail_events"),
            From::PhoenixKit => ("phoenix_kit_email_logs", "phoenix_kit_email_events"),
        };
        let (log_columns, event_columns): (&[_], &[_]) = match from {
            From::Plain => (&[], &[]),
            From::PhoenixKit => (&PHOENIX_KIT_LOGS, &PHOENIX_KIT_EVENTS),
        };
        let mut shape = Self {
            logs: Table::new(schema, logs.unwrap_or(usual_logs), &LOG_FIELDS, log_columns),
            events: Table::new(schema, events.unwrap_or(usual_events), &EVENT_FIELDS, event_columns),
        };
        for mapping in mappings {
            shape.map(mapping).with_context(|| format!("cannot read --map {mapping}"))?;
        }
        ensure!(shape.logs.is_some() || shape.events.is_some(), "there is nothing to adopt from: name a table");
        Ok(shape)
    }

    fn map(&mut self, mapping: &str) -> anyhow::Result<()> {
        let parts = mapping.split_once('=').and_then(|(field, column)| Some((field.split_once('.')?, column)));
        let Some(((table, field), column)) = parts else { bail!("it has to look like logs.subject=COLUMN") };
        let (table, fields): (_, &[&'static str]) = match table {
            "logs" => (&mut self.logs, &LOG_FIELDS),
            "events" => (&mut self.events, &EVENT_FIELDS),
            _ => bail!("it has to begin with logs. or events."),
        };
        let Some(field) = fields.iter().find(|known| **known == field) else {
            bail!("{field} is no field; there are {}", fields.join(", "))
        };
        let table = table.as_mut().context("there is no such table to adopt from")?;
        table.columns.remove(field);
        if !column.is_empty() {
            table.columns.insert(field, column.to_owned());
            table.named.push(field);
        }
        Ok(())
    }
}

impl Table {
    fn new(schema: Option<&str>, name: &str, fields: &[&'static str], others: &[(&str, &str)]) -> Option<Self> {
        let (own_schema, name) = name.split_once('.').map_or((None, name), |(schema, name)| (Some(schema), name));
        let column = |field: &&'static str| {
            let other = others.iter().find(|(name, _)| name == field).map(|(_, column)| *column);
            Some((*field, other.unwrap_or(field).to_owned())).filter(|(_, column)| !column.is_empty())
        };
        (name != "none").then(|| Self {
            schema: own_schema.or(schema).map(str::to_owned),
            name: name.to_owned(),
            columns: fields.iter().filter_map(column).collect(),
            named: Vec::new(),
        })
    }

    /// Keeps the fields whose column is there. Returns the fields that are left out, and the columns that nobody takes.
    ///
    /// # Errors
    /// If there is no key, or a column is missing that somebody named.
    pub fn fit(&mut self, there: &[String]) -> anyhow::Result<(Vec<&'static str>, Vec<String>)> {
        let missing = |column: &String| !there.contains(column);
        for field in &self.named {
            let column = &self.columns[field];
            ensure!(!missing(column), "cannot map {field}: {self} has no column {column}; it has {}", there.join(", "));
        }
        if self.columns.get("id").is_none_or(missing) {
            bail!("cannot tell the rows of {self} apart: name the column of its key with --map …id=COLUMN");
        }
        let out: Vec<_> = self.columns.iter().filter(|(_, column)| missing(column)).map(|(field, _)| *field).collect();
        self.columns.retain(|_, column| !missing(column));
        let untaken = there.iter().filter(|column| self.columns.values().all(|taken| taken != *column));
        Ok((out, untaken.cloned().collect()))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}
