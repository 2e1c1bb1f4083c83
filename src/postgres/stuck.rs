//! What waits for somebody, and why: orphaned events and quarantined bodies. Every question is bounded: lists come in
//! pages by key, newest first.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use sqlx::{Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Postgres;
pub use super::answers::orphans_left;
use crate::pipeline::decode::RejectReason;

/// A page of a list that is ordered newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// What came last on the page before; `None` begins with the newest.
    pub before: Option<Uuid>,
    /// At most so many.
    pub most: u32,
}

/// Why the events of a mail still wait, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Why {
    /// A log row with this id, or with the uuid in the tag, is there: the next sweep takes them
    RowIsThere,
    /// The mail carries the uuid of a log row that does not exist
    NoSuchUuid,
    /// Configuration set or sender's domain is in none of the newest log rows: probably another application's
    OtherSender,
    /// Parked within the last ten minutes: its log row is probably on its way
    Young,
    /// No log row has this id
    NoRow,
}

/// A mail that has no log row, and what waits for it.
#[derive(Clone, Debug, Serialize)]
pub struct OrphanedMail {
    pub aws_message_id: String,
    /// Its newest orphan: the key for the next page.
    pub newest: Uuid,
    pub why: Why,
    /// As the newest orphan tells.
    pub configuration_set: Option<String>,
    pub sender_domain: Option<String>,
    pub queue: String,
    pub events: i64,
    /// Events of each kind.
    pub kinds: BTreeMap<String, i64>,
    #[serde(with = "time::serde::rfc3339")]
    pub first_seen_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_seen_at: OffsetDateTime,
}

/// A page of them.
#[derive(Clone, Debug, Serialize)]
pub struct OrphanedMails {
    pub mails: Vec<OrphanedMail>,
    /// Where the next page begins; `None`: there is none.
    pub next: Option<Uuid>,
}

/// Orphans that wait for the same reason and come from the same place.
#[derive(Clone, Debug, Serialize)]
pub struct OrphanGroup {
    pub why: Why,
    pub configuration_set: Option<String>,
    pub sender_domain: Option<String>,
    pub queue: String,
    pub mails: i64,
    pub events: i64,
    /// Events of each kind.
    pub kinds: BTreeMap<String, i64>,
    #[serde(with = "time::serde::rfc3339")]
    pub first_seen_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_seen_at: OffsetDateTime,
    /// One of its mails.
    pub example: String,
}

/// All orphans, in groups, the largest first.
#[derive(Clone, Debug, Serialize)]
pub struct OrphanGroups {
    pub groups: Vec<OrphanGroup>,
    /// Orphans in all.
    pub events: i64,
    /// When the oldest was parked.
    #[serde(with = "time::serde::rfc3339::option")]
    pub oldest_at: Option<OffsetDateTime>,
    /// Mails that were looked at for the groups: the newest ones.
    pub looked_at: i64,
    /// There are more mails than were looked at.
    pub truncated: bool,
}

/// One orphaned event, for who asks about its mail.
#[derive(Clone, Serialize)]
pub struct Orphan {
    pub uuid: Uuid,
    pub aws_message_id: String,
    /// The log's own id, if the mail carried one in its tag.
    pub log_uuid: Option<Uuid>,
    pub event_type: String,
    #[serde(with = "time::serde::rfc3339")]
    pub occurred_at: OffsetDateTime,
    /// Empty where SES does not say who.
    pub recipient: String,
    pub bounce_type: Option<String>,
    pub smtp_status: Option<String>,
    pub diagnostic: Option<String>,
    pub queue: String,
    pub sqs_message_id: String,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub stored_at: OffsetDateTime,
    /// What the event tells about its mail, if its payload was kept.
    pub source: Option<String>,
    pub subject: Option<String>,
    pub mail_sent_at: Option<String>,
}

/// A log row without an id of SES that could be an orphan's mail: same recipient, same hour.
#[derive(Clone, Serialize)]
pub struct Candidate {
    pub log_uuid: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    pub subject: Option<String>,
}

/// All that waits for one mail.
#[derive(Clone, Debug, Serialize)]
pub struct OrphanedMailInFull {
    pub mail: OrphanedMail,
    /// In the order in which they happened; the first thousand.
    pub orphans: Vec<Orphan>,
    /// The log row that there is by now.
    pub log_uuid: Option<Uuid>,
    /// Log rows that it could be, at most five.
    pub candidates: Vec<Candidate>,
}

/// Bodies that failed in the same way.
#[derive(Clone, Debug, Serialize)]
pub struct QuarantineGroup {
    pub fingerprint: String,
    /// `decode`: not understood; `store`: refused by the database.
    pub stage: String,
    pub reason: String,
    /// Distinct bodies.
    pub bodies: i64,
    /// How often they arrived, all together.
    pub times_seen: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub first_seen_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_seen_at: OffsetDateTime,
    /// Bodies that were replayed at least once.
    pub replayed: i64,
    /// Bodies of which the last replay understood and stored everything.
    pub settled: i64,
    /// The newest of its bodies.
    pub example: Uuid,
}

/// A body in quarantine, without its bytes.
#[derive(Clone, Debug, Serialize)]
pub struct QuarantinedBody {
    pub uuid: Uuid,
    pub stage: String,
    pub reason: String,
    /// Where it failed: `$.mail.messageId`, `$.Message line 1 column 17`.
    pub at: String,
    pub fingerprint: String,
    /// Length in bytes.
    pub bytes: i64,
    pub queue: String,
    pub sqs_message_id: String,
    pub receive_count: i32,
    pub times_seen: i32,
    #[serde(with = "time::serde::rfc3339")]
    pub first_seen_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_seen_at: OffsetDateTime,
    pub replay_count: i32,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_replayed_at: Option<OffsetDateTime>,
    pub last_replay_outcome: Option<String>,
}

/// A page of them.
#[derive(Clone, Debug, Serialize)]
pub struct QuarantinedBodies {
    pub bodies: Vec<QuarantinedBody>,
    /// Where the next page begins; `None`: there is none.
    pub next: Option<Uuid>,
}

/// A body in quarantine, with its bytes.
#[derive(Clone)]
pub struct Body {
    pub about: QuarantinedBody,
    pub bytes: Vec<u8>,
}

/// Which bodies of the quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    Reason(String),
    Fingerprint(String),
    One(Uuid),
}

/// What a login may be asked to do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Attach orphans: as the worker does.
    Retry,
    /// Store what a body holds: as the worker does.
    Replay,
    /// Remove orphans: the worker may not.
    Expire,
    /// Remove bodies: the worker may not.
    Drop,
}

/// What somebody removed.
#[derive(Clone, Debug, Serialize)]
pub struct Removal {
    /// `orphans` or `quarantine`.
    pub what: String,
    pub reason: String,
    pub removed: i64,
    #[serde(with = "time::serde::rfc3339::option")]
    pub oldest_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub newest_at: Option<OffsetDateTime>,
    pub removed_by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub ended_at: OffsetDateTime,
}

/// Mails to look at for the groups.
const MOST_MAILS: u32 = 5_000;

const ORPHANED_MAILS: &str = include_str!("orphaned_mails.sql");

/// How a query about bodies names what it reads of them.
const ABOUT: &str = "uuid, stage, reason, failed_at, fingerprint, length(body)::bigint AS bytes, queue, sqs_message_id,
   receive_count, times_seen, first_seen_at, last_seen_at, replay_count, last_replayed_at, last_replay_outcome";

/// Why orphans wait, in groups, the largest first. Looks at the 5,000 newest mails.
///
/// # Errors
/// If the database cannot be read.
pub async fn orphan_groups(postgres: &Postgres) -> anyhow::Result<OrphanGroups> {
    let page = orphans(postgres, &Page { before: None, most: MOST_MAILS }).await?;
    let query = sqlx::query(
        "SELECT (SELECT count(*) FROM orphaned_events), (SELECT stored_at FROM orphaned_events ORDER BY uuid LIMIT 1)",
    );
    let counted =
        postgres.patiently(query.try_map(|row: PgRow| Ok((row.try_get(0)?, row.try_get(1)?))).fetch_one(postgres));
    let (events, oldest_at) = counted.await.context("cannot count the orphaned events")?;
    let looked_at = page.mails.len() as i64;
    let mut groups: BTreeMap<_, OrphanGroup> = BTreeMap::new();
    for mail in page.mails {
        let key = (mail.why, mail.configuration_set.clone(), mail.sender_domain.clone(), mail.queue.clone());
        groups.entry(key).and_modify(|group| group.add(&mail)).or_insert_with(|| OrphanGroup::of(mail));
    }
    let mut groups = Vec::from_iter(groups.into_values());
    groups.sort_by_key(|group| std::cmp::Reverse(group.events));
    Ok(OrphanGroups { groups, events, oldest_at, looked_at, truncated: page.next.is_some() })
}

/// Mails of which orphans wait, newest orphan first.
///
/// # Errors
/// If the database cannot be read.
pub async fn orphans(postgres: &Postgres, page: &Page) -> anyhow::Result<OrphanedMails> {
    let query = sqlx::query(ORPHANED_MAILS).bind(page.before.unwrap_or(Uuid::max())).bind(i64::from(page.most) + 1);
    let mails = postgres.patiently(query.try_map(|row| OrphanedMail::read(&row)).fetch_all(postgres));
    let (mails, next) = page.cut(mails.await.context("cannot read the orphaned events")?, |mail| mail.newest);
    Ok(OrphanedMails { mails, next })
}

/// All that waits for the mail with this id of SES, or with this orphan.
///
/// # Errors
/// If the database cannot be read.
pub async fn orphaned_mail(postgres: &Postgres, id: &str) -> anyhow::Result<Option<OrphanedMailInFull>> {
    postgres.patiently(read_mail(postgres, id)).await.context("cannot read the orphaned events of a mail")
}

/// The quarantine, by the ways in which bodies failed, most bodies first; at most a thousand groups.
///
/// # Errors
/// If the database cannot be read.
pub async fn quarantine_groups(postgres: &Postgres) -> anyhow::Result<Vec<QuarantineGroup>> {
    let query = sqlx::query(
        "SELECT g.*, example.uuid AS example
         FROM (SELECT fingerprint, stage, reason, count(*) AS bodies, sum(times_seen) AS times_seen,
                      min(first_seen_at) AS first_seen_at, max(last_seen_at) AS last_seen_at,
                      count(last_replayed_at) AS replayed,
                      count(*) FILTER (WHERE last_replay_outcome NOT LIKE 'still %') AS settled
               FROM quarantined_messages GROUP BY fingerprint, stage, reason
               ORDER BY bodies DESC, fingerprint LIMIT 1000) AS g,
              LATERAL (SELECT q.uuid FROM quarantined_messages AS q
                       WHERE q.fingerprint = g.fingerprint ORDER BY q.uuid DESC LIMIT 1) AS example
         ORDER BY g.bodies DESC, g.fingerprint",
    );
    let groups = postgres.patiently(query.try_map(|row| QuarantineGroup::read(&row)).fetch_all(postgres));
    groups.await.context("cannot read the quarantine")
}

/// Bodies in quarantine, newest first.
///
/// # Errors
/// If the database cannot be read.
pub async fn quarantined(postgres: &Postgres, which: &Which, page: &Page) -> anyhow::Result<QuarantinedBodies> {
    let (condition, value) = which.condition();
    let text =
        format!("SELECT {ABOUT} FROM quarantined_messages WHERE uuid < $1 AND {condition} ORDER BY uuid DESC LIMIT $3");
    // Not from outside: one of the conditions below.
    let query = sqlx::query(sqlx::AssertSqlSafe(text));
    let query = query.bind(page.before.unwrap_or(Uuid::max())).bind(value).bind(i64::from(page.most) + 1);
    let bodies = postgres.patiently(query.try_map(|row| QuarantinedBody::read(&row)).fetch_all(postgres));
    let (bodies, next) = page.cut(bodies.await.context("cannot read the quarantine")?, |body| body.uuid);
    Ok(QuarantinedBodies { bodies, next })
}

/// One body, with its bytes.
///
/// # Errors
/// If the database cannot be read.
pub async fn body(postgres: &Postgres, uuid: Uuid) -> anyhow::Result<Option<Body>> {
    let text = format!("SELECT {ABOUT}, body FROM quarantined_messages WHERE uuid = $1");
    let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(uuid);
    let read = |row: PgRow| Ok(Body { about: QuarantinedBody::read(&row)?, bytes: row.try_get("body")? });
    let body = postgres.patiently(query.try_map(read).fetch_optional(postgres)).await;
    body.context("cannot read a body in quarantine")
}

/// The latest removals, newest first.
///
/// # Errors
/// If the database cannot be read.
pub async fn removals(postgres: &Postgres, what: &str, most: u32) -> anyhow::Result<Vec<Removal>> {
    let query = sqlx::query(
        "SELECT what, reason, removed, oldest_at, newest_at, removed_by, ended_at FROM ses_ledger_removals
         WHERE what = $1 ORDER BY uuid DESC LIMIT $2",
    );
    let read = |row: PgRow| {
        Ok(Removal {
            what: row.try_get("what")?,
            reason: row.try_get("reason")?,
            removed: row.try_get("removed")?,
            oldest_at: row.try_get("oldest_at")?,
            newest_at: row.try_get("newest_at")?,
            removed_by: row.try_get("removed_by")?,
            ended_at: row.try_get("ended_at")?,
        })
    };
    let query = query.bind(what).bind(i64::from(most));
    let removals = postgres.patiently(query.try_map(read).fetch_all(postgres)).await;
    removals.context("cannot read what was removed; is the schema up to date (ses-ledger migrate status)?")
}

/// Notes what a replay of a body came to. `outcome` begins with `still ` unless all of it was understood and stored.
///
/// # Errors
/// If the database cannot be reached, or the login may not.
pub async fn note_replay(postgres: &Postgres, uuid: Uuid, outcome: &str) -> anyhow::Result<()> {
    let query = sqlx::query(
        "UPDATE quarantined_messages
         SET replay_count = replay_count + 1, last_replayed_at = now(), last_replay_outcome = $2 WHERE uuid = $1",
    );
    let noted = postgres.patiently(query.bind(uuid).bind(outcome).execute(postgres)).await;
    noted.map(drop).context("cannot note that a body was replayed")
}

/// Orphans that were parked before that, oldest first: of one mail, or of all. Not those whose mail is known by now, which
/// the next sweep takes. `after` is the last one of the page before.
///
/// # Errors
/// If the database cannot be read.
pub async fn expirable(
    postgres: &Postgres,
    older_than: Duration,
    id: Option<&str>,
    after: Uuid,
    most: u32,
) -> anyhow::Result<Vec<Uuid>> {
    let query = sqlx::query_scalar(
        "SELECT o.uuid FROM orphaned_events AS o
         WHERE o.uuid > $1 AND o.uuid < ses_ledger_uuid_floor(now() - make_interval(secs => $2))
           AND o.stored_at < now() - make_interval(secs => $2)
           AND ($3::text IS NULL OR o.aws_message_id = ses_ledger_message_id($3))
           AND NOT EXISTS (SELECT FROM email_logs AS l WHERE l.aws_message_id = o.aws_message_id)
           AND NOT EXISTS (SELECT FROM email_logs AS l WHERE l.uuid = o.log_uuid)
         ORDER BY o.uuid LIMIT $4",
    );
    let query = query.bind(after).bind(older_than.as_secs_f64()).bind(id).bind(i64::from(most));
    postgres.patiently(query.fetch_all(postgres)).await.context("cannot read the orphaned events")
}

/// These orphans as they are, as JSON.
///
/// # Errors
/// If the database cannot be read.
pub async fn orphans_as_json(postgres: &Postgres, uuids: &[Uuid]) -> anyhow::Result<Vec<String>> {
    let query =
        sqlx::query_scalar("SELECT to_jsonb(o)::text FROM orphaned_events AS o WHERE uuid = ANY ($1) ORDER BY uuid");
    postgres.patiently(query.bind(uuids).fetch_all(postgres)).await.context("cannot read the orphaned events")
}

/// Removes those of these orphans that were parked before that and whose mail is unknown. `run` and `why` are those of
/// all slices of one removal. Returns how many there were.
///
/// # Errors
/// If the database cannot be reached, or the login may not.
pub async fn expire_orphans(
    postgres: &Postgres,
    run: Uuid,
    uuids: &[Uuid],
    older_than: Duration,
    why: &str,
) -> anyhow::Result<u64> {
    let query = sqlx::query_scalar("SELECT ses_ledger_expire_orphans($1, $2, make_interval(secs => $3), $4)");
    let query = query.bind(run).bind(uuids).bind(older_than.as_secs_f64()).bind(why);
    let removed: i64 = postgres.patiently(query.fetch_one(postgres)).await.context("cannot remove orphaned events")?;
    Ok(removed as u64)
}

/// Removes these bodies from the quarantine. `run` and `why` are those of all slices of one removal. Returns how many
/// there were.
///
/// # Errors
/// If the database cannot be reached, or the login may not.
pub async fn drop_quarantined(postgres: &Postgres, run: Uuid, uuids: &[Uuid], why: &str) -> anyhow::Result<u64> {
    let query = sqlx::query_scalar("SELECT ses_ledger_drop_quarantined($1, $2, $3)").bind(run).bind(uuids).bind(why);
    let removed: i64 =
        postgres.patiently(query.fetch_one(postgres)).await.context("cannot remove quarantined bodies")?;
    Ok(removed as u64)
}

/// What this login lacks for such work, as the statement that gives it. `None`: nothing.
///
/// # Errors
/// If the database cannot be read.
pub async fn lacks(postgres: &Postgres, work: Work) -> anyhow::Result<Option<String>> {
    let (question, grant) = match work {
        Work::Replay => (
            "has_table_privilege('email_events', 'INSERT') AND has_table_privilege('quarantined_messages', 'UPDATE')",
            "GRANT ses_ledger_worker TO",
        ),
        Work::Retry => ("has_table_privilege('orphaned_events', 'DELETE')", "GRANT ses_ledger_worker TO"),
        Work::Expire => (
            "has_function_privilege('ses_ledger_expire_orphans(uuid, uuid[], interval, text)', 'EXECUTE')",
            "GRANT EXECUTE ON FUNCTION ses_ledger_expire_orphans TO",
        ),
        Work::Drop => (
            "has_function_privilege('ses_ledger_drop_quarantined(uuid, uuid[], text)', 'EXECUTE')",
            "GRANT EXECUTE ON FUNCTION ses_ledger_drop_quarantined TO",
        ),
    };
    // Not from outside: one of the questions above.
    let query = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {question}, quote_ident(current_user)")));
    let read = |row: PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
    let (may, login): (bool, String) = postgres
        .patiently(query.try_map(read).fetch_one(postgres))
        .await
        .context("cannot read what this login may do; is the schema up to date (ses-ledger migrate status)?")?;
    Ok((!may).then(|| format!("{grant} {login};")))
}

impl Why {
    /// The code, as a filter takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RowIsThere => "row_is_there",
            Self::NoSuchUuid => "no_such_uuid",
            Self::OtherSender => "other_sender",
            Self::Young => "young",
            Self::NoRow => "no_row",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "row_is_there" => Self::RowIsThere,
            "no_such_uuid" => Self::NoSuchUuid,
            "other_sender" => Self::OtherSender,
            "young" => Self::Young,
            _ => Self::NoRow,
        }
    }
}

impl Which {
    /// The condition, and what it is compared with: the query's second value. Each finds its bodies by an index.
    fn condition(&self) -> (&'static str, String) {
        match self {
            Self::All => ("$2 = ''", String::new()),
            Self::Reason(reason) => ("reason = $2", reason.clone()),
            Self::Fingerprint(fingerprint) => ("fingerprint = $2", fingerprint.clone()),
            Self::One(uuid) => ("uuid = $2::uuid", uuid.to_string()),
        }
    }
}

impl Page {
    /// Of what was read, one more than the page: the page, and where the next one begins.
    fn cut<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> Uuid) -> (Vec<T>, Option<Uuid>) {
        let more = rows.len() > self.most as usize;
        rows.truncate(self.most as usize);
        let next = rows.last().filter(|_| more).map(key);
        (rows, next)
    }
}

impl OrphanedMail {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (kinds, counts): (Vec<String>, Vec<i64>) = (row.try_get("kinds")?, row.try_get("kind_counts")?);
        Ok(Self {
            aws_message_id: row.try_get("aws_message_id")?,
            newest: row.try_get("uuid")?,
            why: Why::parse(row.try_get("why")?),
            configuration_set: row.try_get("configuration_set")?,
            sender_domain: row.try_get("sender_domain")?,
            queue: row.try_get("queue")?,
            events: row.try_get("events")?,
            kinds: kinds.into_iter().zip(counts).collect(),
            first_seen_at: row.try_get("first_at")?,
            last_seen_at: row.try_get("last_at")?,
        })
    }
}

impl OrphanGroup {
    fn of(mail: OrphanedMail) -> Self {
        Self {
            why: mail.why,
            configuration_set: mail.configuration_set,
            sender_domain: mail.sender_domain,
            queue: mail.queue,
            mails: 1,
            events: mail.events,
            kinds: mail.kinds,
            first_seen_at: mail.first_seen_at,
            last_seen_at: mail.last_seen_at,
            example: mail.aws_message_id,
        }
    }

    fn add(&mut self, mail: &OrphanedMail) {
        self.mails += 1;
        self.events += mail.events;
        for (kind, count) in &mail.kinds {
            *self.kinds.entry(kind.clone()).or_default() += count;
        }
        self.first_seen_at = self.first_seen_at.min(mail.first_seen_at);
        self.last_seen_at = self.last_seen_at.max(mail.last_seen_at);
    }
}

impl QuarantineGroup {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            fingerprint: row.try_get("fingerprint")?,
            stage: row.try_get("stage")?,
            reason: row.try_get("reason")?,
            bodies: row.try_get("bodies")?,
            times_seen: row.try_get("times_seen")?,
            first_seen_at: row.try_get("first_seen_at")?,
            last_seen_at: row.try_get("last_seen_at")?,
            replayed: row.try_get("replayed")?,
            settled: row.try_get("settled")?,
            example: row.try_get("example")?,
        })
    }
}

impl QuarantinedBody {
    /// The last replay understood and stored everything in it.
    pub fn is_settled(&self) -> bool {
        self.last_replay_outcome.as_ref().is_some_and(|outcome| !outcome.starts_with("still "))
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            uuid: row.try_get("uuid")?,
            stage: row.try_get("stage")?,
            reason: row.try_get("reason")?,
            at: row.try_get("failed_at")?,
            fingerprint: row.try_get("fingerprint")?,
            bytes: row.try_get("bytes")?,
            queue: row.try_get("queue")?,
            sqs_message_id: row.try_get("sqs_message_id")?,
            receive_count: row.try_get("receive_count")?,
            times_seen: row.try_get("times_seen")?,
            first_seen_at: row.try_get("first_seen_at")?,
            last_seen_at: row.try_get("last_seen_at")?,
            replay_count: row.try_get("replay_count")?,
            last_replayed_at: row.try_get("last_replayed_at")?,
            last_replay_outcome: row.try_get("last_replay_outcome")?,
        })
    }
}

async fn read_mail(postgres: &Postgres, id: &str) -> Result<Option<OrphanedMailInFull>, sqlx::Error> {
    let id = match id.parse::<Uuid>() {
        Ok(uuid) => {
            let query = sqlx::query_scalar("SELECT aws_message_id FROM orphaned_events WHERE uuid = $1");
            let Some(id) = query.bind(uuid).fetch_optional(postgres).await? else { return Ok(None) };
            id
        }
        Err(_) => id.to_owned(),
    };
    let orphans = sqlx::query(
        "SELECT o.*, o.payload #>> '{mail,source}' AS source, o.payload #>> '{mail,commonHeaders,subject}' AS subject,
                o.payload #>> '{mail,timestamp}' AS mail_sent_at
         FROM (SELECT * FROM orphaned_events WHERE aws_message_id = ses_ledger_message_id($1) AND event_type NOT IN ('open', 'click')
               UNION ALL
               SELECT * FROM orphaned_events WHERE aws_message_id = ses_ledger_message_id($1) AND event_type IN ('open', 'click')) AS o
         ORDER BY o.occurred_at, o.uuid LIMIT 1000",
    );
    let orphans: Vec<Orphan> = orphans.bind(id).try_map(|row| Orphan::read(&row)).fetch_all(postgres).await?;
    let Some(newest) = orphans.iter().map(|orphan| orphan.uuid).max() else { return Ok(None) };
    // The mail's own line: the first of the page that begins with its newest orphan.
    let page = sqlx::query(ORPHANED_MAILS).bind(Uuid::from_u128(newest.as_u128() + 1)).bind(1_i64);
    let Some(mail) = page.try_map(|row| OrphanedMail::read(&row)).fetch_optional(postgres).await? else {
        return Ok(None);
    };
    let log = sqlx::query_scalar("SELECT uuid FROM email_logs WHERE aws_message_id = $1 OR uuid = ANY ($2) LIMIT 1");
    let tags: Vec<Uuid> = orphans.iter().filter_map(|orphan| orphan.log_uuid).collect();
    let log_uuid = log.bind(&mail.aws_message_id).bind(&tags).fetch_optional(postgres).await?;
    let candidates = match log_uuid {
        None => candidates(postgres, &orphans).await?,
        Some(_) => Vec::new(),
    };
    Ok(Some(OrphanedMailInFull { mail, orphans, log_uuid, candidates }))
}

/// Log rows to which nobody has written the id of SES: of the hour around the first event, to one of its recipients.
async fn candidates(postgres: &Postgres, orphans: &[Orphan]) -> Result<Vec<Candidate>, sqlx::Error> {
    const AROUND: Duration = Duration::from_secs(3600);
    let recipients: Vec<&str> = orphans.iter().map(|o| o.recipient.as_str()).filter(|r| !r.is_empty()).collect();
    let Some(first) = orphans.iter().map(|orphan| orphan.occurred_at).min() else { return Ok(Vec::new()) };
    let query = sqlx::query(
        "SELECT uuid, created_at, subject
         FROM (SELECT * FROM email_logs
               WHERE uuid >= ses_ledger_uuid_floor($1) AND uuid < ses_ledger_uuid_floor($2)
               ORDER BY uuid LIMIT 50000) AS near
         WHERE aws_message_id IS NULL
           AND EXISTS (SELECT FROM unnest(recipients) AS r WHERE lower(substring(r FROM '[^<>\\s]+@[^<>\\s]+')) = ANY ($3))
         ORDER BY uuid LIMIT 5",
    );
    let recipients: Vec<String> = recipients.into_iter().map(str::to_lowercase).collect();
    let query = query.bind(first - AROUND).bind(first + AROUND).bind(recipients);
    let read = |row: PgRow| {
        Ok(Candidate {
            log_uuid: row.try_get("uuid")?,
            created_at: row.try_get("created_at")?,
            subject: row.try_get("subject")?,
        })
    };
    query.try_map(read).fetch_all(postgres).await
}

impl Orphan {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            uuid: row.try_get("uuid")?,
            aws_message_id: row.try_get("aws_message_id")?,
            log_uuid: row.try_get("log_uuid")?,
            event_type: row.try_get("event_type")?,
            occurred_at: row.try_get("occurred_at")?,
            recipient: row.try_get("recipient")?,
            bounce_type: row.try_get("bounce_type")?,
            smtp_status: row.try_get("smtp_status")?,
            diagnostic: row.try_get("diagnostic")?,
            queue: row.try_get("queue")?,
            sqs_message_id: row.try_get("sqs_message_id")?,
            received_at: row.try_get("received_at")?,
            stored_at: row.try_get("stored_at")?,
            source: row.try_get("source")?,
            subject: row.try_get("subject")?,
            mail_sent_at: row.try_get("mail_sent_at")?,
        })
    }
}

// What people wrote to each other stays out of logs, also by accident.

impl fmt::Debug for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orphan").field("uuid", &self.uuid).field("event_type", &self.event_type).finish_non_exhaustive()
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate").field("log_uuid", &self.log_uuid).finish_non_exhaustive()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("about", &self.about).finish_non_exhaustive()
    }
}

/// Why a body is in quarantine, in one sentence. Of a newer binary's reasons nothing is known.
pub fn meaning(stage: &str, reason: &str) -> &'static str {
    match RejectReason::ALL.iter().find(|known| known.as_str() == reason) {
        _ if stage == "store" => "The database refused the row.",
        Some(known) => known.meaning(),
        None => "Not understood.",
    }
}
