//! Takes a person out of the tables, slice by slice, and leaves a receipt.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, postgres::PgRow};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    letting_go::{Owner, is_in_the_way},
    rollup,
    session::Session,
};
use crate::{
    erasure::{Named, Person},
    event::{Address, MessageId},
};

/// Rows to look at in one transaction.
const SLICE: i64 = 2_000;
const BODIES: i64 = 100;
/// A slice that met somebody who stores is tried again.
const TRIES: usize = 20;

/// Where she is looked for, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Events,
    Orphans,
    Logs,
    Quarantine,
    /// Opens and clicks of her mails that do not say whose they are.
    Unnamed,
    /// Rows of hers that somebody stored while the others were changed.
    Again,
    /// That she is not to be written to; it is still known afterwards.
    Suppressions,
}

/// Rows in which she was found, by table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Found(pub BTreeMap<String, u64>);

/// What remains to be shown of an erasure. It holds no address.
#[derive(Clone, Debug, Serialize)]
pub struct ErasureReceipt {
    /// Our id of the erasure.
    #[serde(serialize_with = "as_text")]
    pub uuid: Uuid,
    /// What stands in the place of the address now.
    pub name: String,
    pub erased_by: String,
    #[serde(serialize_with = "rfc3339")]
    pub began_at: OffsetDateTime,
    #[serde(serialize_with = "rfc3339")]
    pub ended_at: OffsetDateTime,
    /// Rows that were changed, by table.
    pub rows: Found,
}

/// An erasure that is under way.
pub struct Erasure {
    uuid: Uuid,
    stage: Stage,
    after: (Uuid, Uuid),
    /// Rows of this stage that were looked at since it began, or went on.
    seen: u64,
    found: Found,
}

impl Stage {
    const ALL: [Self; 7] =
        [Self::Events, Self::Orphans, Self::Logs, Self::Quarantine, Self::Unnamed, Self::Again, Self::Suppressions];

    fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Orphans => "orphans",
            Self::Logs => "logs",
            Self::Quarantine => "quarantine",
            Self::Unnamed => "unnamed",
            Self::Again => "again",
            Self::Suppressions => "suppressions",
        }
    }

    fn next(self) -> Option<Self> {
        let at = Self::ALL.iter().position(|stage| *stage == self)?;
        Self::ALL.get(at + 1).copied()
    }

    /// Of the rows after the key ($1, $2), at most $3, those that hold both words ($4, $5), and the last in any case: so most
    /// rows are read, and few are sent. Each says how many were read.
    fn slice(self) -> String {
        let (table, key, columns, text) = match self {
            Self::Events => (
                "email_events",
                "email_log_uuid, uuid",
                "email_log_uuid AS log, uuid, recipient, diagnostic, link, user_agent, payload::text AS json",
                "recipient, diagnostic, link, user_agent, json",
            ),
            Self::Orphans => (
                "orphaned_events",
                "uuid",
                "uuid AS log, uuid, recipient, diagnostic, link, user_agent, payload::text AS json, aws_message_id",
                "recipient, diagnostic, link, user_agent, json",
            ),
            Self::Logs => (
                "email_logs",
                "uuid",
                "uuid AS log, uuid, aws_message_id, sender, recipients, subject, tags::text, headers::text, body_full",
                "sender, array_to_string(recipients, ' '), subject, tags, headers, body_full",
            ),
            // Base64 shows none of its words.
            Self::Quarantine | Self::Unnamed | Self::Again | Self::Suppressions => {
                ("quarantined_messages", "uuid", "uuid AS log, uuid, body", "")
            }
        };
        let after = if self == Self::Events { "($1, $2)" } else { "($1) AND $2::uuid IS NOT NULL" };
        // The words are of ASCII, and so are the texts that are compared with them: that needs no rules of a language, which
        // take as long as all the rest. A recipient is compared by those rules.
        let words = "text LIKE '%' || $4 || '%' AND text LIKE '%' || $5 || '%'";
        let may_be = match self {
            Self::Events | Self::Orphans => format!("{words} OR lower(recipient) LIKE '%' || $4 || '%'"),
            Self::Logs => words.to_owned(),
            _ => "text IS NOT NULL AND $4::text IS NOT NULL AND $5::text IS NOT NULL".to_owned(),
        };
        let mail = match self {
            Self::Events => "(SELECT aws_message_id FROM email_logs AS l WHERE l.uuid = s.log)",
            Self::Orphans | Self::Logs => "s.aws_message_id",
            _ => "NULL::text",
        };
        format!(
            "SELECT s.*, {mail} AS mail
             FROM (SELECT e.*, {may_be} AS may_be, row_number() OVER () AS n, count(*) OVER () AS read
                   FROM (SELECT {columns} FROM {table} WHERE ({key}) > {after} ORDER BY {key} LIMIT $3) AS e,
                        LATERAL (SELECT lower(concat_ws(' ', {text} '') COLLATE \"C\") AS text OFFSET 0) AS t) AS s
             WHERE may_be OR n = read ORDER BY log, uuid",
            text = if text.is_empty() { String::new() } else { format!("{text},") },
        )
    }
}

impl Found {
    fn add(&mut self, table: &str, rows: u64) {
        *self.0.entry(table.to_owned()).or_default() += rows;
    }

    /// In all tables.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// What stands in the place of an address.
///
/// # Errors
/// If the database cannot be reached.
pub async fn name_of(owner: &mut Owner, address: &str) -> anyhow::Result<String> {
    let query = sqlx::query_scalar("SELECT ses_ledger_erased_name(lower($1))").bind(address);
    query.fetch_one(owner.connection()).await.context("cannot make the digest of the address")
}

/// About how many rows there are to look through at each stage; as the planner guesses, so zero before the first ANALYZE.
///
/// # Errors
/// If the catalogue cannot be read.
pub async fn about(owner: &mut Owner) -> anyhow::Result<BTreeMap<String, u64>> {
    let query = sqlx::query(
        "SELECT stage, (SELECT sum(greatest(c.reltuples, 0))::bigint FROM pg_class AS c
                        WHERE c.relkind = 'r' AND (c.oid = to_regclass(name) OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(name))))) AS rows
         FROM (VALUES ('events', 'email_events'), ('orphans', 'orphaned_events'), ('logs', 'email_logs'),
                      ('quarantine', 'quarantined_messages')) AS stages (stage, name)",
    );
    let read = |row: PgRow| Ok((row.try_get("stage")?, row.try_get::<i64, _>("rows")?.unsigned_abs()));
    let all = query.try_map(read).fetch_all(owner.connection()).await;
    Ok(all.context("cannot guess how many rows there are")?.into_iter().collect())
}

/// Where she is, and how often. Changes nothing. `tell` hears after each slice where it is, and how many rows it read there.
///
/// # Errors
/// If the tables cannot be read.
pub async fn look(
    owner: &mut Owner,
    person: &Person,
    mut tell: impl FnMut(&'static str, u64),
) -> anyhow::Result<Found> {
    let mut found = Found::default();
    for stage in [Stage::Events, Stage::Orphans, Stage::Logs, Stage::Quarantine] {
        let (mut after, mut seen) = ((Uuid::nil(), Uuid::nil()), 0);
        tell(stage.as_str(), 0);
        loop {
            let rows = read(owner.connection(), stage, after, person).await;
            let rows = rows.with_context(|| format!("cannot look through the {}", stage.as_str()))?;
            let Some(last) = rows.last() else { break };
            after = (last.try_get("log")?, last.try_get("uuid")?);
            seen += last.try_get::<i64, _>("read")?.unsigned_abs();
            tell(stage.as_str(), seen);
            for row in &rows {
                found.add(
                    stage.as_str(),
                    u64::from(row.try_get("may_be")? && Change::of(stage, row, person)?.is_some()),
                );
            }
        }
    }
    let query = sqlx::query_scalar::<_, i64>(
        "SELECT count(*) FROM ses_ledger_suppressions WHERE address = ses_ledger_suppression_key($1)",
    );
    let suppressions = query.bind(person.address()).fetch_one(owner.connection()).await;
    let suppressions = suppressions.context("cannot look through the suppressions")? as u64;
    let removals = removals(owner.connection(), person).await.context("cannot look through the suppressions")?;
    found.add(Stage::Suppressions.as_str(), suppressions + removals.len() as u64);
    Ok(found)
}

impl Erasure {
    /// Begins, or goes on with one that was cut short.
    ///
    /// # Errors
    /// If the database cannot be reached, or months of events stand alone between being detached and dropped.
    pub async fn begin(owner: &mut Owner, name: &str) -> anyhow::Result<Self> {
        let alone: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^email_events_y[0-9]{4}m[0-9]{2}_let_go$'
             AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('email_events'))",
        )
        .fetch_one(owner.connection())
        .await?;
        anyhow::ensure!(
            alone == 0,
            "{alone} months of events are about to be dropped: run ses-ledger retention run first"
        );
        let row = sqlx::query(
            "WITH open AS (SELECT * FROM ses_ledger_erasures WHERE name = $1 AND ended_at IS NULL ORDER BY uuid LIMIT 1),
                  new AS (INSERT INTO ses_ledger_erasures (name) SELECT $1 WHERE NOT EXISTS (SELECT FROM open) RETURNING *)
             SELECT uuid, stage, after_log, after_event, counts::text FROM open
             UNION ALL SELECT uuid, stage, after_log, after_event, counts::text FROM new",
        )
        .bind(name)
        .fetch_one(owner.connection())
        .await
        .context("cannot begin the receipt")?;
        let stage: String = row.try_get("stage")?;
        let counts: String = row.try_get("counts")?;
        Ok(Self {
            uuid: row.try_get("uuid")?,
            stage: Stage::ALL.into_iter().find(|s| s.as_str() == stage).unwrap_or(Stage::Events),
            after: (row.try_get("after_log")?, row.try_get("after_event")?),
            seen: 0,
            found: Found(serde_json::from_str(&counts).context("cannot read the receipt")?),
        })
    }

    /// Changes the next slice; says where it is and how many rows it has read there, or nothing at the end.
    ///
    /// # Errors
    /// If it cannot be changed. Those before it are.
    pub async fn step(&mut self, owner: &mut Owner, person: &Person) -> anyhow::Result<Option<(&'static str, u64)>> {
        let stage = self.stage;
        let mut tries = 0;
        let (last, changed, read) = loop {
            tries += 1;
            match self.try_step(owner.connection(), person).await {
                Err(e) if tries < TRIES && is_passing(&e) => {}
                answer => break answer.with_context(|| format!("cannot erase from the {}", stage.as_str()))?,
            }
        };
        self.found.add(stage.as_str(), changed);
        match last {
            Some(last) => {
                self.after = last;
                self.seen += read;
            }
            None => {
                (self.after, self.seen) = ((Uuid::nil(), Uuid::nil()), 0);
                let Some(next) = stage.next() else { return Ok(None) };
                self.stage = next;
            }
        }
        Ok(Some((self.stage.as_str(), self.seen)))
    }

    /// One slice: how far it came if there was one, how many rows it changed, and how many it read.
    async fn try_step(
        &self,
        connection: &mut PgConnection,
        person: &Person,
    ) -> anyhow::Result<(Option<(Uuid, Uuid)>, u64, u64)> {
        let mut transaction = connection.begin().await?;
        // What is counted stays so meanwhile: where the person goes, her domain goes from the figures.
        rollup::hold(&mut *transaction).await?;
        let (last, changed, seen) = match self.stage {
            Stage::Unnamed => (None, unnamed(&mut transaction, person).await?, 0),
            Stage::Again => (None, again(&mut transaction, person).await?, 0),
            Stage::Suppressions => (None, suppressions(&mut transaction, person).await?, 0),
            stage => {
                let rows = read(&mut transaction, stage, self.after, person).await?;
                let possible = rows.iter().filter(|row| row.try_get("may_be").unwrap_or(true));
                let changes = possible.map(|row| Change::of(stage, row, person));
                let changes = changes.filter_map(Result::transpose).collect::<Result<_, _>>()?;
                let changed = apply(&mut transaction, changes).await?;
                let last = rows.last().map(|row| Ok::<_, sqlx::Error>((row.try_get("log")?, row.try_get("uuid")?)));
                let seen = rows.last().map_or(Ok(0), |row| row.try_get::<i64, _>("read"))?;
                (last.transpose()?, changed, seen.unsigned_abs())
            }
        };
        let mut found = self.found.clone();
        found.add(self.stage.as_str(), changed);
        let (stage, after) = match last {
            Some(last) => (Some(self.stage), last),
            None => (self.stage.next(), (Uuid::nil(), Uuid::nil())),
        };
        sqlx::query(
            "UPDATE ses_ledger_erasures SET stage = coalesce($2, stage), after_log = $3, after_event = $4, counts = $5::jsonb,
               ended_at = CASE WHEN $2 IS NULL THEN now() END
             WHERE uuid = $1",
        )
        .bind(self.uuid)
        .bind(stage.map(Stage::as_str))
        .bind(after.0)
        .bind(after.1)
        .bind(serde_json::to_string(&found)?)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok((last, changed, seen))
    }

    /// What remains to be shown of it.
    ///
    /// # Errors
    /// If it has not come to its end.
    pub async fn receipt(&self, owner: &mut Owner) -> anyhow::Result<ErasureReceipt> {
        let row = sqlx::query("SELECT name, erased_by, began_at, ended_at FROM ses_ledger_erasures WHERE uuid = $1");
        let row = row.bind(self.uuid).fetch_one(owner.connection()).await.context("cannot read the receipt")?;
        Ok(ErasureReceipt {
            uuid: self.uuid,
            name: row.try_get("name")?,
            erased_by: row.try_get("erased_by")?,
            began_at: row.try_get("began_at")?,
            ended_at: row.try_get("ended_at").context("the erasure has not come to its end")?,
            rows: self.found.clone(),
        })
    }
}

/// Bodies on their way to quarantine, without those who were erased in the mails that they name. `None`: it stays as it is.
/// A body that names none of these mails is one of a mail that was written since.
pub(super) async fn out_of_bodies(
    session: &mut Session,
    bodies: &[&[u8]],
) -> Result<Vec<Option<Vec<u8>>>, sqlx::Error> {
    let anybody = sqlx::query_scalar::<_, bool>("SELECT EXISTS (SELECT FROM ses_ledger_erased)");
    if bodies.is_empty() || !anybody.fetch_one(&mut *session).await? {
        return Ok(vec![None; bodies.len()]);
    }
    let mut without = Vec::new();
    for body in bodies {
        let Named { addresses, words } = Named::in_body(body);
        let erased: Vec<(String, String)> = sqlx::query_as(
            "SELECT DISTINCT a.address, x.name
             FROM unnest($1::text[]) AS a (address) JOIN ses_ledger_erased AS x ON x.name = ses_ledger_erased_name(a.address)
             WHERE x.mail = ANY ($2)",
        )
        .bind(Vec::from_iter(addresses))
        .bind(Vec::from_iter(words))
        .fetch_all(&mut *session)
        .await?;
        let mut kept = None;
        for (address, name) in erased {
            let Some(person) = Person::parse(&address, &name) else { continue };
            kept = person.out_of_body(kept.as_deref().unwrap_or(body)).or(kept);
        }
        without.push(kept);
    }
    Ok(without)
}

async fn read(
    connection: &mut PgConnection,
    stage: Stage,
    after: (Uuid, Uuid),
    person: &Person,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let most = if stage == Stage::Quarantine { BODIES } else { SLICE };
    let [local, domain] = person.words();
    sqlx::query(AssertSqlSafe(stage.slice()))
        .bind(after.0)
        .bind(after.1)
        .bind(most)
        .bind(local)
        .bind(domain)
        .fetch_all(connection)
        .await
}

/// Somebody is in the way, or stored the same row meanwhile.
fn is_passing(error: &anyhow::Error) -> bool {
    let Some(error) = error.downcast_ref::<sqlx::Error>() else { return false };
    is_in_the_way(error) || error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

/// What is to be changed in one row.
enum Change {
    Event { stage: Stage, key: (Uuid, Uuid), mail: Option<String>, hers: Option<String>, texts: [Option<String>; 4] },
    Log(Box<LogChange>),
    Body { uuid: Uuid, body: Vec<u8> },
}

struct LogChange {
    uuid: Uuid,
    mail: Option<String>,
    sender: Option<String>,
    recipients: Vec<String>,
    /// As the events spell them.
    spellings: Vec<String>,
    subject: Option<String>,
    tags: Option<String>,
    headers: Option<String>,
    body: Option<String>,
}

impl Change {
    fn of(stage: Stage, row: &PgRow, person: &Person) -> Result<Option<Self>, sqlx::Error> {
        match stage {
            Stage::Logs => Self::of_log(row, person),
            Stage::Quarantine => {
                let body: Vec<u8> = row.try_get("body")?;
                let uuid = row.try_get("uuid")?;
                Ok(person.out_of_body(&body).map(|body| Self::Body { uuid, body }))
            }
            _ => Self::of_event(stage, row, person),
        }
    }

    fn of_event(stage: Stage, row: &PgRow, person: &Person) -> Result<Option<Self>, sqlx::Error> {
        let text = |column| row.try_get::<Option<String>, _>(column);
        let recipient: String = row.try_get("recipient")?;
        let [diagnostic, link, user_agent] = [text("diagnostic")?, text("link")?, text("user_agent")?];
        let json = text("json")?;
        let without = |text: &Option<String>| text.as_deref().and_then(|text| person.out_of_answer(text));
        let texts = [
            without(&diagnostic),
            without(&link),
            without(&user_agent),
            json.as_deref().and_then(|json| person.out_of_json(json)),
        ];
        let hers = person.is(&recipient).then_some(recipient);
        let found = hers.is_some() || texts.iter().any(Option::is_some);
        let key = (row.try_get("log")?, row.try_get("uuid")?);
        Ok(found.then_some(Self::Event { stage, key, mail: text("mail")?, hers, texts }))
    }

    fn of_log(row: &PgRow, person: &Person) -> Result<Option<Self>, sqlx::Error> {
        let text = |column| row.try_get::<Option<String>, _>(column);
        let (sender, subject, body) = (text("sender")?, text("subject")?, text("body_full")?);
        let (tags, headers) = (text("tags")?, text("headers")?);
        let mut recipients: Vec<String> = row.try_get("recipients")?;
        let without = |text: &Option<String>| text.as_deref().and_then(|text| person.out_of_text(text));
        let json = |text: &Option<String>| text.as_deref().and_then(|text| person.out_of_json(text));
        let (mut spellings, mut others) = (Vec::new(), 0);
        for recipient in &mut recipients {
            match person.out_of_text(recipient) {
                Some(without) => {
                    spellings.push(Address::parse(recipient).as_str().to_owned());
                    *recipient = without;
                }
                None => others += 1,
            }
        }
        let changed = [without(&sender), without(&subject), without(&body), json(&tags), json(&headers)];
        let found = !spellings.is_empty() || changed.iter().any(Option::is_some);
        let [new_sender, new_subject, new_body, new_tags, new_headers] = changed;
        // A mail to her alone is about her, also where it does not say her address.
        let is_hers_alone = !spellings.is_empty() && others == 0;
        let kept = |new: Option<String>, old: Option<String>| if is_hers_alone { None } else { new.or(old) };
        let change = LogChange {
            uuid: row.try_get("uuid")?,
            mail: text("mail")?,
            sender: new_sender.or(sender),
            recipients,
            spellings,
            subject: kept(new_subject, subject),
            tags: new_tags.or(tags),
            headers: kept(new_headers, headers),
            body: kept(new_body, body),
        };
        Ok(found.then(|| Self::Log(Box::new(change))))
    }

    /// The mail whose figures it may change.
    fn log(&self) -> Option<Uuid> {
        match self {
            Self::Event { stage: Stage::Events, key, .. } => Some(key.0),
            Self::Log(log) => Some(log.uuid),
            Self::Event { .. } | Self::Body { .. } => None,
        }
    }

    async fn apply(self, connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
        match self {
            Self::Event { stage, key, mail, hers, texts } => {
                if let Some(spelling) = &hers {
                    let log = (stage == Stage::Events).then(|| key.0.to_string());
                    let mails = mail.into_iter().chain(log).collect();
                    mark(connection, mails, std::slice::from_ref(spelling)).await?;
                    if stage == Stage::Events {
                        give_way(connection, key).await?;
                    }
                }
                let query = match stage {
                    Stage::Events => EVENT,
                    _ => ORPHAN,
                };
                let [diagnostic, link, user_agent, payload] = texts;
                let query = sqlx::query(query).bind(key.0).bind(key.1).bind(hers.is_some());
                let query = query.bind(diagnostic).bind(link).bind(user_agent).bind(payload);
                query.execute(connection).await.map(|done| done.rows_affected())
            }
            Self::Log(log) => log.apply(connection).await,
            Self::Body { uuid, body } => {
                // Its digest stays: the same body is known when it comes again, and does not bring her back.
                let query =
                    sqlx::query("UPDATE quarantined_messages SET body = $2 WHERE uuid = $1").bind(uuid).bind(body);
                query.execute(connection).await.map(|done| done.rows_affected())
            }
        }
    }
}

/// $3: the row is hers, else only its texts name her.
const EVENT: &str = "UPDATE email_events SET
   recipient = CASE WHEN $3 THEN ses_ledger_erased_name(recipient) ELSE recipient END,
   diagnostic = coalesce($4, diagnostic), link = coalesce($5, link),
   ip = CASE WHEN $3 THEN NULL ELSE ip END, user_agent = CASE WHEN $3 THEN NULL ELSE coalesce($6, user_agent) END,
   payload = CASE WHEN $3 THEN NULL ELSE coalesce($7::jsonb, payload) END
 WHERE email_log_uuid = $1 AND uuid = $2";
const ORPHAN: &str = "UPDATE orphaned_events SET
   recipient = CASE WHEN $3 THEN ses_ledger_erased_name(recipient) ELSE recipient END,
   diagnostic = coalesce($4, diagnostic), link = coalesce($5, link),
   ip = CASE WHEN $3 THEN NULL ELSE ip END, user_agent = CASE WHEN $3 THEN NULL ELSE coalesce($6, user_agent) END,
   payload = CASE WHEN $3 THEN NULL ELSE coalesce($7::jsonb, payload) END
 WHERE uuid = $2 AND $1::uuid IS NOT NULL";

impl LogChange {
    async fn apply(self, connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
        let id = self.mail.as_deref().and_then(MessageId::parse).map(|id| id.as_str().to_owned());
        let mails = id.into_iter().chain([self.uuid.to_string()]).collect();
        mark(connection, mails, &self.spellings).await?;
        let query = sqlx::query(
            "UPDATE email_logs SET sender = $2, recipients = $3, subject = $4, tags = $5::jsonb, headers = $6::jsonb, body_full = $7
             WHERE uuid = $1",
        );
        let query = query.bind(self.uuid).bind(self.sender).bind(self.recipients).bind(self.subject);
        let query = query.bind(self.tags).bind(self.headers).bind(self.body);
        query.execute(connection).await.map(|done| done.rows_affected())
    }
}

fn as_text<S: serde::Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn rfc3339<S: serde::Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.format(&Rfc3339).unwrap_or_default())
}

/// Notes that somebody was erased in these mails, under the digest of each spelling.
async fn mark(connection: &mut PgConnection, mails: Vec<String>, spellings: &[String]) -> Result<(), sqlx::Error> {
    let query = sqlx::query(
        "INSERT INTO ses_ledger_erased (mail, name)
         SELECT DISTINCT mail, ses_ledger_erased_name(spelling) FROM unnest($1::text[]) AS mail, unnest($2::text[]) AS written, LATERAL (VALUES (written), (lower(written))) AS s (spelling)
         WHERE spelling <> '' ON CONFLICT DO NOTHING",
    );
    query.bind(mails).bind(spellings).execute(connection).await.map(drop)
}

/// Where the same event was stored anew between the slices, already under the digest, the older row stays and is counted once.
async fn give_way(connection: &mut PgConnection, key: (Uuid, Uuid)) -> Result<(), sqlx::Error> {
    let query = sqlx::query(
        "WITH twin AS (
           DELETE FROM email_events AS t USING email_events AS e
           WHERE e.email_log_uuid = $1 AND e.uuid = $2 AND t.email_log_uuid = $1 AND t.uuid <> e.uuid
             AND t.event_type = e.event_type AND t.recipient = ses_ledger_erased_name(e.recipient)
             AND (e.event_type NOT IN ('open', 'click') OR (t.occurred_at, t.link_digest) = (e.occurred_at, e.link_digest))
           RETURNING t.event_type)
         UPDATE email_logs SET
           open_count = open_count - (SELECT count(*) FROM twin WHERE event_type = 'open')::integer,
           click_count = click_count - (SELECT count(*) FROM twin WHERE event_type = 'click')::integer
         WHERE uuid = $1 AND EXISTS (SELECT FROM twin WHERE event_type IN ('open', 'click'))",
    );
    query.bind(key.0).bind(key.1).execute(connection).await.map(drop)
}

/// Opens and clicks that do not say whose they are may be hers: where from and with what is not kept.
async fn unnamed(connection: &mut PgConnection, person: &Person) -> Result<u64, sqlx::Error> {
    let query = sqlx::query(
        "UPDATE email_events AS e SET ip = NULL, user_agent = NULL
         FROM email_logs AS l
         WHERE l.aws_message_id IN (SELECT mail FROM ses_ledger_erased WHERE name = ses_ledger_erased_name($1))
           AND e.email_log_uuid = l.uuid AND e.recipient = '' AND (e.ip IS NOT NULL OR e.user_agent IS NOT NULL)",
    );
    query.bind(person.address()).execute(connection).await.map(|done| done.rows_affected())
}

/// Rows of hers in mails that are marked: somebody began to store them before that was known.
async fn again(connection: &mut PgConnection, person: &Person) -> anyhow::Result<u64> {
    let rows = sqlx::query(
        "SELECT e.email_log_uuid AS log, e.uuid, e.recipient, e.diagnostic, e.link, e.user_agent, e.payload::text AS json, l.aws_message_id AS mail
         FROM ses_ledger_erased AS x JOIN email_logs AS l ON l.aws_message_id = x.mail
         JOIN email_events AS e ON e.email_log_uuid = l.uuid AND lower(e.recipient) = $1
         WHERE x.name = ses_ledger_erased_name($1)",
    );
    let rows = rows.bind(person.address()).fetch_all(&mut *connection).await?;
    let changes = rows.iter().map(|row| Change::of_event(Stage::Events, row, person));
    let changes = changes.filter_map(Result::transpose).collect::<Result<_, _>>()?;
    Ok(apply(connection, changes).await?)
}

/// Makes the changes, and with them those of the figures.
async fn apply(connection: &mut PgConnection, changes: Vec<Change>) -> Result<u64, sqlx::Error> {
    let mut mails: Vec<Uuid> = changes.iter().filter_map(Change::log).collect();
    mails.sort_unstable();
    mails.dedup();
    if !mails.is_empty() {
        rollup::take_out(connection, &mails).await?;
    }
    let mut changed = 0;
    for change in changes {
        changed += change.apply(&mut *connection).await?;
    }
    if !mails.is_empty() {
        rollup::put_in(&mut *connection, &mails).await?;
    }
    Ok(changed)
}

/// Reports against her stay in force under the digest, and so do removals.
async fn suppressions(connection: &mut PgConnection, person: &Person) -> Result<u64, sqlx::Error> {
    let query = sqlx::query_scalar::<_, i64>(
        "WITH hers AS (DELETE FROM ses_ledger_suppressions WHERE address = ses_ledger_suppression_key($1) RETURNING *),
              kept AS (INSERT INTO ses_ledger_suppressions
                         (address, candidate, occurred_at, cause, subtype, smtp_status, email_log_uuid, event_uuid)
                       SELECT ses_ledger_erased_name(address), candidate, occurred_at, cause, subtype, smtp_status, email_log_uuid, event_uuid
                       FROM hers ON CONFLICT DO NOTHING)
         SELECT count(*) FROM hers",
    );
    let mut changed = query.bind(person.address()).fetch_one(&mut *connection).await? as u64;
    for (uuid, is_hers, reason) in removals(connection, person).await? {
        let query = sqlx::query(
            "UPDATE ses_ledger_suppression_removals SET
               address = CASE WHEN $2 THEN ses_ledger_erased_name(address) ELSE address END, reason = coalesce($3, reason)
             WHERE uuid = $1",
        );
        let done = query.bind(uuid).bind(is_hers).bind(reason).execute(&mut *connection).await?;
        changed += done.rows_affected();
    }
    Ok(changed)
}

/// Removals that name her: whether they are of her address, and their reason without her where she is in it.
async fn removals(
    connection: &mut PgConnection,
    person: &Person,
) -> Result<Vec<(Uuid, bool, Option<String>)>, sqlx::Error> {
    let [local, domain] = person.words();
    let rows = sqlx::query(
        "SELECT uuid, address = ses_ledger_suppression_key($1) AS is_hers, reason FROM ses_ledger_suppression_removals
         WHERE address = ses_ledger_suppression_key($1) OR lower(reason) LIKE '%' || $2 || '%' AND lower(reason) LIKE '%' || $3 || '%'",
    );
    let rows = rows.bind(person.address()).bind(local).bind(domain).fetch_all(connection).await?;
    let mut found = Vec::new();
    for row in rows {
        let (is_hers, reason) = (row.try_get("is_hers")?, person.out_of_text(row.try_get("reason")?));
        if is_hers || reason.is_some() {
            found.push((row.try_get("uuid")?, is_hers, reason));
        }
    }
    Ok(found)
}
