//! The mails that people ask for: which there are for an address, an id or a few words, and all that is known of one.
//!
//! Newest first is by uuid. A page holds whole mails and ends with the uuid of its last one, so nothing is shown twice or left
//! out, whatever is written in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Serialize;
use sqlx::{
    FromRow, Row as _,
    postgres::{PgArguments, PgRow},
    query::QueryAs,
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Postgres,
    optional::{self, Set},
};
use crate::event::{Address, MessageId};

/// Mails that one statement looks at, where no index leads to them.
const SLICE: i64 = 20_000;
/// Events of one mail that are shown: a mailing list opens its mail without end.
const MOST_EVENTS: i64 = 1_000;
/// The newest events without a mail among which those of an address are looked for.
const ORPHANS_SEEN: i64 = 20_000;
/// Bytes of quarantined bodies in which an id is looked for, newest first.
const QUARANTINE_SEEN: i64 = 32 * 1024 * 1024;
/// Mails before one that tell what is usual.
const NEIGHBOURS: i64 = 5_000;

/// Every word that an outcome or a mail's status can be.
pub const STATUSES: [&str; 11] = [
    "queued",
    "sent",
    "delayed",
    "soft_bounced",
    "delivered",
    "opened",
    "clicked",
    "bounced",
    "complained",
    "failed",
    "rejected",
];

/// What somebody looks for.
#[derive(Clone)]
pub struct Search {
    pub what: What,
    /// Not before this moment. A mail's time is that of its uuid, or of its row if the uuid is not version 7.
    pub since: Option<OffsetDateTime>,
    /// Before this moment.
    pub until: Option<OffsetDateTime>,
    /// The recipient's own outcome, one of [`STATUSES`].
    pub status: Option<String>,
    pub template: Option<String>,
    pub campaign: Option<String>,
    /// Lines at most, unless a single mail has more recipients.
    pub limit: usize,
    /// Go on after this mail: the `next` of the page before.
    pub after: Option<Uuid>,
    /// How long to look where no index leads.
    pub patience: Duration,
}

/// What the words of a search are, by their form.
#[derive(Clone, PartialEq, Eq)]
pub enum What {
    /// Nothing in particular: the newest mails.
    Anything,
    /// A recipient.
    Address(Address),
    /// All recipients of a domain, which is in lower case.
    Domain(String),
    /// A mail's own uuid.
    Log(Uuid),
    /// The id that SES gave a mail.
    MessageId(MessageId),
    /// All of them in the subject, in any order and case.
    Words(Vec<String>),
    /// A part of a recipient, of the subject or of the campaign's id, in any case.
    Part(String),
}

/// A page of what was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Found {
    /// One per mail and recipient, newest mail first.
    #[serde(rename = "mails")]
    pub lines: Vec<Line>,
    /// The key of the next page, if there may be one.
    pub next: Option<Uuid>,
    /// The time was up: mails that are older than this were not looked at.
    #[serde(with = "time::serde::rfc3339::option")]
    pub looked_back_to: Option<OffsetDateTime>,
    /// Events to this address whose mail has no log row.
    pub orphans: Option<Waiting>,
    /// All mails had to be looked through, newest first, because this set of optional indexes is not there.
    pub lacks: Option<Set>,
}

/// What became of one mail for one recipient.
#[derive(Clone, Serialize)]
pub struct Line {
    pub log_uuid: Uuid,
    pub aws_message_id: Option<String>,
    /// Empty if neither the sender nor SES said who.
    pub recipient: String,
    pub subject: Option<String>,
    pub template_name: Option<String>,
    pub campaign_id: Option<String>,
    /// When SES accepted it; if that is not known, when the first thing happened to it, or when its row was written.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub outcome: Outcome,
    /// What happened, in order of time.
    pub facts: Vec<Fact>,
    /// How many recipients the mail has.
    pub recipients: usize,
    /// What became of the mail as a whole.
    pub mail_status: String,
}

/// What became of it, in a word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// One of [`STATUSES`].
    pub status: String,
    /// `transient`, `undetermined` or `permanent`, if it bounced.
    pub bounce_class: Option<String>,
    /// The recipient's server's enhanced status code, if it bounced or is delayed.
    pub smtp_status: Option<String>,
    /// The complaint came from one of several recipients, of whom this is one.
    pub candidate: bool,
}

/// That something happened, and when first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// `sent`, `delivered`, `delayed`, `bounced`, `complained`, `rejected`, `failed`, `opened` or `clicked`.
    pub fact: String,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// How often.
    pub times: i64,
    /// How often of these it was likely a program, as SES guesses.
    pub by_programs: i64,
    /// To this recipient, or to the mail as a whole: SES does not say who opened a mail of several recipients.
    pub hers: bool,
    #[serde(skip)]
    pub(crate) bounce_class: Option<String>,
    #[serde(skip)]
    pub(crate) smtp_status: Option<String>,
    #[serde(skip)]
    pub(crate) candidate: bool,
}

/// Events that wait for their mail's log row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    pub events: i64,
    /// Their kinds, each once.
    pub kinds: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// All that is known of one mail.
#[derive(Clone, Debug, Serialize)]
pub struct Mail {
    pub log: Log,
    /// What became of it for each recipient.
    pub lines: Vec<Line>,
    /// In order of time, the first thousand.
    pub events: Vec<MailEvent>,
    /// How many there are.
    pub events_in_all: i64,
    pub traces: Traces,
}

/// A mail's log row.
#[derive(Clone, FromRow, Serialize)]
pub struct Log {
    pub uuid: Uuid,
    pub aws_message_id: Option<String>,
    pub sender: Option<String>,
    pub recipients: Vec<String>,
    pub subject: Option<String>,
    pub template_name: Option<String>,
    pub campaign_id: Option<String>,
    pub configuration_set: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub sent_at: Option<OffsetDateTime>,
    pub status: String,
    pub bounce_class: Option<String>,
    pub open_count: i32,
    pub click_count: i32,
    /// The bare addresses in `recipients`, in lower case.
    #[serde(skip)]
    pub(crate) addresses: Vec<String>,
}

/// One event of a mail, with where it came from.
#[derive(Clone, FromRow, Serialize)]
pub struct MailEvent {
    pub uuid: Uuid,
    pub event_type: String,
    #[serde(with = "time::serde::rfc3339")]
    pub occurred_at: OffsetDateTime,
    /// `event`, `mail` or `received`: where that time was found.
    pub time_source: String,
    pub recipient: String,
    pub candidate: bool,
    pub bounce_type: Option<String>,
    pub bounce_subtype: Option<String>,
    pub smtp_status: Option<String>,
    pub diagnostic: Option<String>,
    pub complaint_type: Option<String>,
    pub complaint_subtype: Option<String>,
    pub delay_type: Option<String>,
    pub link: Option<String>,
    pub ip: Option<String>,
    pub user_agent: Option<String>,
    pub bot: Option<String>,
    pub feedback_id: Option<String>,
    pub reporting_mta: Option<String>,
    /// The configuration set that its payload names.
    pub configuration_set: Option<String>,
    /// There is a payload: it was kept, and retention has not emptied it.
    pub has_payload: bool,
    pub queue: String,
    pub sqs_message_id: String,
    pub sns_message_id: Option<String>,
    pub eventbridge_id: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub stored_at: OffsetDateTime,
}

/// What else there is of a mail, beside its events.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Traces {
    /// Events with its id that are not attached.
    pub orphans: Option<Waiting>,
    /// Bodies that could not be understood, with its id in them; five at most.
    pub quarantined: Vec<InQuarantine>,
    /// All bodies that may hold it were looked at.
    pub quarantine_seen: bool,
}

/// A quarantined body.
#[derive(Clone, Debug, FromRow, Serialize)]
pub struct InQuarantine {
    pub uuid: Uuid,
    pub reason: String,
    pub failed_at: String,
    #[serde(with = "time::serde::rfc3339")]
    pub last_seen_at: OffsetDateTime,
}

/// What an id leads to.
#[derive(Clone, Debug)]
pub enum Resolved {
    /// The uuid of a mail's log row.
    Mail(Uuid),
    /// No log row. What else there is of that id.
    Unknown(Traces),
}

/// What is usual around a mail, to tell what is missing from what is only not there yet.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Context {
    /// How long after it happened an event was stored, by the newest ones; in JSON as milliseconds.
    #[serde(rename = "lag_ms", serialize_with = "millis")]
    pub lag: Option<Duration>,
    /// When the newest event was received.
    #[serde(with = "time::serde::rfc3339::option")]
    pub newest_event_at: Option<OffsetDateTime>,
    /// The mails of the week before this one, 5,000 at most.
    pub neighbours: Neighbours,
    /// Those of them with the same configuration set.
    pub same_set: Neighbours,
}

/// The newest events of any mail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Newest {
    /// How long it took from the event to its row, for half of them.
    pub lag: Option<Duration>,
    pub received_at: Option<OffsetDateTime>,
}

/// How many mails there are, and how many of them have which fact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRow, Serialize)]
pub struct Neighbours {
    pub mails: i64,
    pub sent: i64,
    pub delivered: i64,
    pub bounced: i64,
    pub complained: i64,
    pub delayed: i64,
    pub opened: i64,
    pub clicked: i64,
    /// Milliseconds from `sent` to `delivered` that nine of ten need at most.
    pub delivered_within: Option<i64>,
}

impl What {
    /// What a text is compared with.
    fn patterns(&self) -> Vec<String> {
        match self {
            Self::Words(words) => words.iter().map(|word| containing(word)).collect(),
            Self::Part(text) => vec![containing(text)],
            _ => Vec::new(),
        }
    }

    /// Sees from the form what it is. `Ada <ada@example.net>` is an address, `@example.net` a domain,
    /// `<id@eu-west-1.amazonses.com>` and the id alone are SES's.
    pub fn read(text: &str) -> Self {
        let text = text.trim();
        if text.is_empty() {
            return Self::Anything;
        }
        if let Ok(uuid) = Uuid::try_parse(text) {
            return Self::Log(uuid);
        }
        let address = Address::parse(text);
        let domain = address.as_str().rsplit_once('@').map(|(_, domain)| domain.to_lowercase());
        let of_ses = domain.as_deref().is_none_or(|d| d == "amazonses.com" || d.ends_with(".amazonses.com"));
        match (MessageId::parse(text), domain) {
            (Some(id), _) if looks_like_ses(id.as_str()) => Self::MessageId(id),
            (Some(id), Some(_)) if of_ses => Self::MessageId(id),
            (_, Some(domain)) if address.as_str().len() == domain.len() + 1 => Self::Domain(domain),
            (_, Some(domain)) if !domain.is_empty() && !address.as_str().contains(char::is_whitespace) => {
                Self::Address(address)
            }
            _ => Self::Words(text.split_whitespace().map(str::to_owned).collect()),
        }
    }
}

/// `0102019abc012345-01234567-89ab-cdef-0123-456789abcdef-000000`: the form, not the alphabet, which emulators make freer.
pub(crate) fn looks_like_ses(id: &str) -> bool {
    let lengths = [16, 8, 4, 4, 4, 12, 6];
    id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && id.split('-').map(str::len).eq(lengths)
}

/// Looks for mails.
///
/// # Errors
/// If the database cannot be read.
pub async fn find(postgres: &Postgres, search: &Search) -> anyhow::Result<Found> {
    let context = "cannot look for the mails";
    let what = named_by_its_id(postgres, &search.what).await.context(context)?;
    let mut found = Found::default();
    if let What::Address(address) = &what {
        found.orphans = orphans_to(postgres, address).await.context("cannot look for the events without a mail")?;
    }
    let (began, mut before, mut shown) = (Instant::now(), search.after.unwrap_or(Uuid::max()), None);
    let mut lead = None;
    loop {
        let slice = match lead {
            None => Slice::after(postgres, search, &what, before).await,
            Some(lead) => Slice::led(postgres, search, &what, before, lead).await,
        };
        let slice = match slice {
            // So many fit that an index is of no help: what there is already, and how far it came.
            Err(e) if lead.is_some() && took_too_long(&e) => {
                found.next = Some(before);
                found.looked_back_to = time_of(postgres, before).await.context(context)?;
                return Ok(found);
            }
            slice => slice.context(context)?,
        };
        for lines in lines_of(postgres, &slice.mails).await.context(context)? {
            let lines = search.wanted(&what, lines);
            if lines.is_empty() {
                continue;
            }
            if shown.is_some() && found.lines.len() + lines.len() > search.limit {
                found.next = shown;
                return Ok(found);
            }
            shown = lines.first().map(|line| line.log_uuid);
            found.lines.extend(lines);
        }
        let Some(end) = slice.end else { return Ok(found) };
        before = end;
        // The newest were looked through, which is best where many fit. Where few do, an index leads to the others.
        if lead.is_none()
            && found.lacks.is_none()
            && let Some(possible) = Lead::of(search, &what)
        {
            lead = possible.is_ready(&optional::ready(postgres).await.context(context)?).then_some(possible);
            found.lacks = lead.is_none().then_some(possible.set());
            if lead.is_some() {
                continue;
            }
        }
        if began.elapsed() >= search.patience {
            found.next = Some(before);
            found.looked_back_to = time_of(postgres, before).await.context(context)?;
            return Ok(found);
        }
    }
}

/// A single word may be an id of a form that we do not know.
async fn named_by_its_id(postgres: &Postgres, what: &What) -> Result<What, sqlx::Error> {
    if let What::Words(words) = what
        && let [word] = words.as_slice()
        && let Some(id) = MessageId::parse(word)
        && log_of(postgres, &id).await?.is_some()
    {
        return Ok(What::MessageId(id));
    }
    Ok(what.clone())
}

/// The mails that one statement found, and how far it looked.
struct Slice {
    mails: Vec<Log>,
    /// All mails from here on are still to be looked at; `None`: there are no more.
    end: Option<Uuid>,
}

/// What leads to mails that would have to be looked through otherwise.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lead {
    /// The trigrams of the words in the subject.
    Words,
    /// The trigrams of a part of anything.
    Part,
    /// In order, so that the first ones are found without the others.
    Campaign,
    Template,
}

impl Lead {
    fn of(search: &Search, what: &What) -> Option<Self> {
        match what {
            What::Words(words) if words.iter().any(|word| has_trigrams(word)) => Some(Self::Words),
            What::Part(text) if has_trigrams(text) => Some(Self::Part),
            What::Anything if search.campaign.is_some() => Some(Self::Campaign),
            What::Anything if search.template.is_some() => Some(Self::Template),
            _ => None,
        }
    }

    fn set(self) -> Set {
        match self {
            Self::Words | Self::Part => Set::Search,
            Self::Campaign | Self::Template => Set::Analytics,
        }
    }

    fn is_ready(self, ready: &[String]) -> bool {
        let needed: &[&str] = match self {
            Self::Words => &["email_logs_search_subject"],
            Self::Part => &[
                "email_logs_search_recipients",
                "email_logs_search_subject",
                "email_logs_search_campaign",
                "email_events_search_recipient",
            ],
            Self::Campaign => &["email_logs_by_campaign"],
            Self::Template => &["email_logs_by_template"],
        };
        needed.iter().all(|name| ready.iter().any(|index| index == name))
    }
}

/// Three letters or digits in a row: with less, an index of trigrams would have to be read as a whole.
pub(crate) fn has_trigrams(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|run| run.chars().count() >= 3)
}

fn took_too_long(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("57014"))
}

/// What is shown of a mail, `l`.
const LOG: &str = "l.uuid, l.aws_message_id, l.sender, l.recipients, l.subject, l.template_name, l.campaign_id, \
                   l.configuration_set, l.created_at, l.sent_at, l.status, l.bounce_class::text AS bounce_class, l.open_count, \
                   l.click_count, ses_ledger_addresses(l.recipients) AS addresses";

/// Which mails, `l`, beside what leads to them. A recipient's outcome takes a fact of the mail; one recipient's is the mail's.
const FILTERS: &str = "l.uuid < $1
    AND ($2::timestamptz IS NULL OR $2 <= CASE substr(l.uuid::text, 15, 1) WHEN '7' THEN ses_ledger_uuid_time(l.uuid) ELSE l.created_at END)
    AND ($3::timestamptz IS NULL OR $3 > CASE substr(l.uuid::text, 15, 1) WHEN '7' THEN ses_ledger_uuid_time(l.uuid) ELSE l.created_at END)
    AND ($4::text IS NULL OR l.template_name = $4)
    AND ($5::text IS NULL OR l.campaign_id = $5)
    AND ($6::text IS NULL OR l.status = $6 OR (cardinality(l.recipients) <> 1 AND
         CASE $6 WHEN 'rejected' THEN l.rejected_at IS NOT NULL WHEN 'failed' THEN l.failed_at IS NOT NULL
                 WHEN 'complained' THEN l.complained_at IS NOT NULL WHEN 'bounced' THEN l.bounced_at IS NOT NULL
                 WHEN 'soft_bounced' THEN l.bounced_at IS NOT NULL WHEN 'clicked' THEN l.clicked_at IS NOT NULL
                 WHEN 'opened' THEN l.opened_at IS NOT NULL WHEN 'delivered' THEN l.delivered_at IS NOT NULL
                 WHEN 'delayed' THEN l.delayed_at IS NOT NULL
                 WHEN 'queued' THEN l.sent_at IS NULL AND l.rejected_at IS NULL AND l.failed_at IS NULL ELSE true END))";

/// A part of what the row of a mail, `l`, says; $7 holds its pattern.
const PART: &str = "(ses_ledger_written_to(l.recipients) ILIKE ($7::text[])[1] OR l.subject ILIKE ($7::text[])[1] OR l.campaign_id ILIKE ($7::text[])[1])";

/// The same of what SES has told, `e`, in the events that cover everybody to whom a mail went.
const PART_TOLD: &str = "FROM email_events AS e WHERE e.recipient ILIKE ($7::text[])[1] AND e.event_type IN ('delivery', 'bounce') AND e.recipient <> ''";

/// The subject of a mail, `l`, holds all of so many patterns in $7. Each by itself: an index is of no use for ALL of an array.
fn subject_holds(patterns: usize) -> String {
    let each = (1..=patterns).map(|n| format!("l.subject ILIKE ($7::text[])[{n}]"));
    each.chain(["true".to_owned()]).collect::<Vec<_>>().join(" AND ")
}

impl Slice {
    async fn after(postgres: &Postgres, search: &Search, what: &What, before: Uuid) -> Result<Self, sqlx::Error> {
        // One mail more than a page shows: then it is known whether there is a next one.
        let most = search.limit as i64 + 1;
        let (sql, key) = match what {
            What::Log(uuid) => (
                format!("SELECT {LOG} FROM email_logs AS l WHERE {FILTERS} AND l.uuid = $7::uuid LIMIT $8"),
                uuid.to_string(),
            ),
            What::MessageId(id) => (
                format!("SELECT {LOG} FROM email_logs AS l WHERE {FILTERS} AND l.aws_message_id = $7 LIMIT $8"),
                id.as_str().to_owned(),
            ),
            What::Domain(domain) => (
                format!(
                    "SELECT {LOG} FROM email_logs AS l
                     WHERE {FILTERS} AND ses_ledger_addresses(l.recipients) @> ARRAY['@' || lower($7)] ORDER BY l.uuid DESC LIMIT $8"
                ),
                domain.clone(),
            ),
            // What the sender wrote, and what SES said: not every sender writes all, and Bcc is none of the headers.
            What::Address(address) => (
                format!(
                    "WITH named AS (
                       (SELECT l.uuid FROM email_logs AS l
                        WHERE {FILTERS} AND ses_ledger_addresses(l.recipients) @> ARRAY[lower($7)] ORDER BY l.uuid DESC LIMIT $8)
                       UNION
                       (SELECT l.uuid FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid
                        WHERE e.recipient = $7 AND e.recipient <> '' AND e.email_log_uuid < $1 AND {FILTERS}
                        GROUP BY l.uuid ORDER BY l.uuid DESC LIMIT $8)
                       UNION
                       (SELECT l.uuid FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid
                        WHERE e.recipient = lower($7) AND e.recipient <> '' AND e.email_log_uuid < $1 AND {FILTERS}
                        GROUP BY l.uuid ORDER BY l.uuid DESC LIMIT $8)
                     )
                     SELECT {LOG} FROM named JOIN email_logs AS l USING (uuid) ORDER BY l.uuid DESC LIMIT $8"
                ),
                address.as_str().to_owned(),
            ),
            What::Anything | What::Words(_) | What::Part(_) => return Self::scanned(postgres, search, what, before, most).await,
        };
        let query = search.bound(sqlx::query_as(sqlx::AssertSqlSafe(sql)), before);
        let mails: Vec<Log> = query.bind(key).bind(most).fetch_all(postgres).await?;
        let end = mails.last().map(|mail| mail.uuid).filter(|_| mails.len() as i64 == most);
        Ok(Self { mails, end })
    }

    /// Finds mails by an optional index. What trigrams lead to is gathered first: left to itself, the server might rather look
    /// through all mails in their order, in the hope that enough of them fit.
    async fn led(
        postgres: &Postgres,
        search: &Search,
        what: &What,
        before: Uuid,
        lead: Lead,
    ) -> Result<Self, sqlx::Error> {
        let most = search.limit as i64 + 1;
        let gathered = |source: &str| {
            format!(
                "WITH fitting AS MATERIALIZED ({source})
                 SELECT {LOG} FROM (SELECT uuid FROM fitting ORDER BY uuid DESC LIMIT $8) AS newest JOIN email_logs AS l USING (uuid)
                 ORDER BY l.uuid DESC"
            )
        };
        let in_order = |of: &str| {
            format!("SELECT {LOG} FROM email_logs AS l WHERE {FILTERS} AND {of} ORDER BY l.uuid DESC LIMIT $8")
        };
        let sql = match lead {
            Lead::Words => {
                let holds = subject_holds(what.patterns().len());
                gathered(&format!("SELECT l.uuid FROM email_logs AS l WHERE {FILTERS} AND {holds}"))
            }
            Lead::Part => gathered(&format!(
                "SELECT l.uuid FROM email_logs AS l WHERE {FILTERS} AND {PART}
                 UNION SELECT l.uuid FROM email_logs AS l
                 WHERE {FILTERS} AND l.uuid IN (SELECT e.email_log_uuid {PART_TOLD} AND e.email_log_uuid < $1)"
            )),
            Lead::Campaign => in_order("l.campaign_id = $5 AND cardinality($7::text[]) >= 0"),
            Lead::Template => in_order("l.template_name = $4 AND cardinality($7::text[]) >= 0"),
        };
        let query = search.bound(sqlx::query_as(sqlx::AssertSqlSafe(sql)), before).bind(what.patterns()).bind(most);
        let mails: Vec<Log> = query.fetch_all(postgres).await?;
        let end = mails.last().map(|mail| mail.uuid).filter(|_| mails.len() as i64 == most);
        Ok(Self { mails, end })
    }

    /// Looks through the next mails in order.
    async fn scanned(
        postgres: &Postgres,
        search: &Search,
        what: &What,
        before: Uuid,
        most: i64,
    ) -> Result<Self, sqlx::Error> {
        let bounds = sqlx::query(
            "SELECT coalesce(ses_ledger_uuid_floor($1), '00000000-0000-0000-0000-000000000000'),
                    least($3, ses_ledger_uuid_floor($2 + interval '1 ms'))",
        );
        let row = bounds.bind(search.since).bind(search.until).bind(before).fetch_one(postgres).await?;
        let (first, before): (Uuid, Uuid) = (row.try_get(0)?, row.try_get(1)?);
        let end: Option<Uuid> = sqlx::query_scalar(
            "SELECT uuid FROM email_logs WHERE uuid < $1 AND uuid >= $2 ORDER BY uuid DESC OFFSET $3 LIMIT 1",
        )
        .bind(before)
        .bind(first)
        .bind(SLICE - 1)
        .fetch_optional(postgres)
        .await?;
        let fits = match what {
            What::Part(_) => format!("({PART} OR EXISTS (SELECT {PART_TOLD} AND e.email_log_uuid = l.uuid))"),
            _ => subject_holds(what.patterns().len()),
        };
        let sql = format!(
            "SELECT {LOG} FROM email_logs AS l
             WHERE {FILTERS} AND cardinality($7::text[]) >= 0 AND {fits} AND l.uuid >= $9 ORDER BY l.uuid DESC LIMIT $8"
        );
        let query = search.bound(sqlx::query_as(sqlx::AssertSqlSafe(sql)), before).bind(what.patterns()).bind(most);
        let mails: Vec<Log> = query.bind(end.unwrap_or(first)).fetch_all(postgres).await?;
        // Not all of the slice was looked at if there was enough in it.
        let enough = mails.last().map(|mail| mail.uuid).filter(|_| mails.len() as i64 == most);
        Ok(Self { mails, end: enough.or(end) })
    }
}

impl Search {
    /// What [`FILTERS`] names.
    fn bound<'q>(
        &self,
        query: QueryAs<'q, sqlx::Postgres, Log, PgArguments>,
        before: Uuid,
    ) -> QueryAs<'q, sqlx::Postgres, Log, PgArguments> {
        let query = query.bind(before).bind(self.since).bind(self.until);
        query.bind(self.template.clone()).bind(self.campaign.clone()).bind(self.status.clone())
    }

    /// Those of a mail's recipients that were asked for.
    fn wanted(&self, what: &What, mut lines: Vec<Line>) -> Vec<Line> {
        let asked_for: Box<dyn Fn(&Line) -> bool> = match what {
            What::Address(address) => {
                let address = address.as_str().to_lowercase();
                Box::new(move |line| line.recipient.to_lowercase() == address)
            }
            What::Domain(domain) => {
                let domain = format!("@{domain}");
                Box::new(move |line| line.recipient.to_lowercase().ends_with(&domain))
            }
            // All of them, if it was the subject or the campaign that had it.
            What::Part(text) if lines.iter().any(|line| line.is_to(text)) => Box::new(move |line| line.is_to(text)),
            _ => Box::new(|_| true),
        };
        lines.retain(|line| asked_for(line));
        lines.retain(|line| self.status.as_ref().is_none_or(|status| line.outcome.status == *status));
        lines
    }
}

impl Line {
    fn is_to(&self, part: &str) -> bool {
        self.recipient.to_lowercase().contains(&part.to_lowercase())
    }
}

/// A pattern for what contains this word, as it stands.
fn containing(word: &str) -> String {
    let mut pattern = String::from("%");
    for c in word.chars() {
        if matches!(c, '\\' | '%' | '_') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + "%"
}

async fn time_of(postgres: &Postgres, log: Uuid) -> Result<Option<OffsetDateTime>, sqlx::Error> {
    let query = sqlx::query_scalar(
        "SELECT CASE substr(uuid::text, 15, 1) WHEN '7' THEN ses_ledger_uuid_time(uuid) ELSE created_at END
         FROM email_logs WHERE uuid = $1",
    );
    query.bind(log).fetch_optional(postgres).await
}

/// The lines of each of these mails.
async fn lines_of(postgres: &Postgres, mails: &[Log]) -> Result<Vec<Vec<Line>>, sqlx::Error> {
    let uuids: Vec<Uuid> = mails.iter().map(|mail| mail.uuid).collect();
    let rows = sqlx::query(
        "SELECT email_log_uuid, recipient, fact, min(occurred_at) AS at, count(*) AS times,
                count(*) FILTER (WHERE bot = 'Likely') AS by_programs, max(class)::text AS bounce_class,
                (array_agg(smtp_status ORDER BY class DESC NULLS LAST, occurred_at) FILTER (WHERE smtp_status IS NOT NULL))[1] AS smtp_status,
                bool_and(candidate) AS candidate
         FROM (SELECT *, ses_ledger_fact(event_type, complaint_type, complaint_subtype) AS fact,
                      ses_ledger_bounce_class_of(event_type, bounce_type, complaint_subtype) AS class
               FROM email_events WHERE email_log_uuid = ANY ($1)) AS e
         GROUP BY email_log_uuid, recipient, fact
         ORDER BY at",
    );
    let mut told: BTreeMap<Uuid, Vec<(String, Option<Fact>)>> = BTreeMap::new();
    for row in rows.bind(uuids).fetch_all(postgres).await? {
        told.entry(row.try_get("email_log_uuid")?).or_default().push((row.try_get("recipient")?, fact(&row)?));
    }
    Ok(mails.iter().map(|mail| lines(mail, told.get(&mail.uuid).map_or(&[], Vec::as_slice))).collect())
}

/// `None` for what states no fact, like a changed subscription.
fn fact(row: &PgRow) -> Result<Option<Fact>, sqlx::Error> {
    let Some(fact) = row.try_get("fact")? else { return Ok(None) };
    Ok(Some(Fact {
        fact,
        at: row.try_get("at")?,
        times: row.try_get("times")?,
        by_programs: row.try_get("by_programs")?,
        hers: true,
        bounce_class: row.try_get("bounce_class")?,
        smtp_status: row.try_get("smtp_status")?,
        candidate: row.try_get("candidate")?,
    }))
}

/// One line per recipient: those whom the sender named, in his order, then others of whom SES told.
fn lines(mail: &Log, told: &[(String, Option<Fact>)]) -> Vec<Line> {
    let mut recipients: Vec<String> = Vec::new();
    let mut seen = BTreeSet::new();
    let named = mail.addresses.iter().filter(|address| !address.starts_with('@'));
    for recipient in named.chain(told.iter().map(|(recipient, _)| recipient)).filter(|r| !r.is_empty()) {
        if seen.insert(recipient.to_lowercase()) {
            recipients.push(recipient.clone());
        }
    }
    if recipients.is_empty() {
        recipients.push(String::new());
    }
    let count = recipients.len();
    recipients.into_iter().map(|recipient| line(mail, recipient, count, told)).collect()
}

fn line(mail: &Log, recipient: String, recipients: usize, told: &[(String, Option<Fact>)]) -> Line {
    let alone = recipients == 1;
    let is_hers = |whom: &str| alone || whom.to_lowercase() == recipient.to_lowercase();
    let facts: Vec<Fact> = told
        .iter()
        .filter(|(whom, fact)| {
            whom.is_empty() || is_hers(whom) || fact.as_ref().is_some_and(Fact::is_of_the_whole_mail)
        })
        .filter_map(|(whom, fact)| Some(Fact { hers: is_hers(whom), ..fact.clone()? }))
        .collect();
    let mut outcome = Outcome::of(&facts);
    if alone {
        // The mail's facts know more than its rows: of a transient and a permanent bounce only one is kept.
        outcome.status.clone_from(&mail.status);
        outcome.bounce_class = mail.bounce_class.clone();
    }
    Line {
        log_uuid: mail.uuid,
        aws_message_id: mail.aws_message_id.clone(),
        recipient,
        subject: mail.subject.clone(),
        template_name: mail.template_name.clone(),
        campaign_id: mail.campaign_id.clone(),
        at: mail.sent_at.or(facts.first().map(|fact| fact.at)).unwrap_or(mail.created_at),
        outcome,
        facts,
        recipients,
        mail_status: mail.status.clone(),
    }
}

impl Fact {
    /// What happens before a mail leaves happens to all of its recipients.
    pub fn is_of_the_whole_mail(&self) -> bool {
        matches!(self.fact.as_str(), "sent" | "rejected" | "failed")
    }
}

impl Outcome {
    /// The rule of `email_logs.status` for one recipient. Who opened it of several is not known.
    fn of(facts: &[Fact]) -> Self {
        let fact =
            |name: &str| facts.iter().find(|fact| fact.fact == name && (fact.hers || fact.is_of_the_whole_mail()));
        let bounced = fact("bounced");
        let final_bounce = bounced.filter(|fact| fact.bounce_class.as_deref() != Some("transient"));
        let status = match () {
            () if fact("rejected").is_some() => "rejected",
            () if fact("failed").is_some() => "failed",
            () if fact("complained").is_some() => "complained",
            () if final_bounce.is_some() => "bounced",
            () if fact("clicked").is_some() => "clicked",
            () if fact("opened").is_some() => "opened",
            () if fact("delivered").is_some() => "delivered",
            () if bounced.is_some() => "soft_bounced",
            () if fact("delayed").is_some() => "delayed",
            () if fact("sent").is_some() => "sent",
            () => "queued",
        };
        let told_by = match status {
            "bounced" | "soft_bounced" => bounced,
            "delayed" => fact("delayed"),
            _ => None,
        };
        Self {
            status: status.to_owned(),
            bounce_class: bounced.and_then(|fact| fact.bounce_class.clone()),
            smtp_status: told_by.and_then(|fact| fact.smtp_status.clone()),
            candidate: status == "complained" && fact("complained").is_some_and(|fact| fact.candidate),
        }
    }
}

/// Among the newest orphans, those to this address.
async fn orphans_to(postgres: &Postgres, address: &Address) -> Result<Option<Waiting>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT count(*) AS events, array_agg(DISTINCT event_type) AS kinds, min(received_at) AS since
         FROM (SELECT event_type, recipient, received_at FROM orphaned_events ORDER BY uuid DESC LIMIT $2) AS newest
         WHERE lower(recipient) = lower($1)",
    );
    waiting(&query.bind(address.as_str()).bind(ORPHANS_SEEN).fetch_one(postgres).await?)
}

fn waiting(row: &PgRow) -> Result<Option<Waiting>, sqlx::Error> {
    let Some(since) = row.try_get("since")? else { return Ok(None) };
    Ok(Some(Waiting { events: row.try_get("events")?, kinds: row.try_get("kinds")?, since }))
}

async fn log_of(postgres: &Postgres, id: &MessageId) -> Result<Option<Uuid>, sqlx::Error> {
    let query = sqlx::query_scalar("SELECT uuid FROM email_logs WHERE aws_message_id = $1");
    query.bind(id.as_str()).fetch_optional(postgres).await
}

/// Reads a log row's uuid, SES's id or a Message-ID header, and says which mail it is.
///
/// # Errors
/// If the database cannot be read.
pub async fn resolve(postgres: &Postgres, id: &str) -> anyhow::Result<Resolved> {
    let context = "cannot look for the mail";
    let (uuid, message_id) = match Uuid::try_parse(id.trim()) {
        Ok(uuid) => (Some(uuid), None),
        Err(_) => (None, MessageId::parse(id)),
    };
    let log = match (uuid, &message_id) {
        (Some(uuid), _) => {
            let query = sqlx::query_scalar("SELECT uuid FROM email_logs WHERE uuid = $1");
            query.bind(uuid).fetch_optional(postgres).await.context(context)?
        }
        (None, Some(id)) => log_of(postgres, id).await.context(context)?,
        (None, None) => None,
    };
    match log {
        Some(log) => Ok(Resolved::Mail(log)),
        None => Ok(Resolved::Unknown(traces(postgres, message_id.as_ref(), uuid, None).await?)),
    }
}

/// All that is known of a mail; `None` if there is no such row.
///
/// # Errors
/// If the database cannot be read.
pub async fn mail(postgres: &Postgres, log_uuid: Uuid) -> anyhow::Result<Option<Mail>> {
    let context = "cannot read the mail";
    let sql = format!("SELECT {LOG} FROM email_logs AS l WHERE l.uuid = $1");
    let log = sqlx::query_as::<_, Log>(sqlx::AssertSqlSafe(sql)).bind(log_uuid);
    let Some(log) = log.fetch_optional(postgres).await.context(context)? else { return Ok(None) };
    let events = sqlx::query_as(
        "SELECT uuid, event_type, occurred_at, time_source, recipient, candidate, bounce_type, bounce_subtype, smtp_status,
                diagnostic, complaint_type, complaint_subtype, delay_type, link, ip, user_agent, bot, feedback_id, reporting_mta,
                payload #>> '{mail,tags,ses:configuration-set,0}' AS configuration_set, payload IS NOT NULL AS has_payload,
                queue, sqs_message_id, sns_message_id, eventbridge_id, received_at, stored_at
         FROM email_events WHERE email_log_uuid = $1 ORDER BY occurred_at, uuid LIMIT $2",
    );
    let events: Vec<MailEvent> = events.bind(log_uuid).bind(MOST_EVENTS).fetch_all(postgres).await.context(context)?;
    let events_in_all = match events.len() as i64 {
        MOST_EVENTS => {
            let count =
                sqlx::query_scalar("SELECT count(*) FROM email_events WHERE email_log_uuid = $1").bind(log_uuid);
            count.fetch_one(postgres).await.context(context)?
        }
        all => all,
    };
    let lines = lines_of(postgres, std::slice::from_ref(&log)).await.context(context)?.remove(0);
    let id = log.aws_message_id.as_deref().and_then(MessageId::parse);
    let traces = traces(postgres, id.as_ref(), Some(log_uuid), Some(log.sent_at.unwrap_or(log.created_at))).await?;
    Ok(Some(Mail { log, lines, events, events_in_all, traces }))
}

/// What there is of an id beside a log row and its events. Bodies from before the mail cannot be about it.
async fn traces(
    postgres: &Postgres,
    id: Option<&MessageId>,
    log_uuid: Option<Uuid>,
    since: Option<OffsetDateTime>,
) -> anyhow::Result<Traces> {
    let id = id.map(MessageId::as_str);
    // The index of ids is two, one for what happens once and one for the rest; of uuids there is none.
    let orphans = sqlx::query(
        "SELECT count(*) AS events, array_agg(DISTINCT event_type) AS kinds, min(received_at) AS since
         FROM (SELECT uuid, event_type, received_at FROM orphaned_events
               WHERE aws_message_id = $1 AND event_type NOT IN ('open', 'click')
               UNION SELECT uuid, event_type, received_at FROM orphaned_events
               WHERE aws_message_id = $1 AND event_type IN ('open', 'click')
               UNION SELECT uuid, event_type, received_at
               FROM (SELECT uuid, event_type, received_at, log_uuid FROM orphaned_events ORDER BY uuid DESC LIMIT $3) AS newest
               WHERE log_uuid = $2) AS waiting",
    );
    let orphans = orphans.bind(id).bind(log_uuid).bind(ORPHANS_SEEN).fetch_one(postgres).await;
    let orphans = orphans.context("cannot read the orphaned events")?;
    // Clocks differ by a little.
    let since = since.map(|since| since - time::Duration::hours(1));
    let seen = sqlx::query(
        "SELECT count(*) FILTER (WHERE bytes > $2) = 0 AS all, min(uuid::text) FILTER (WHERE bytes <= $2)::uuid AS first
         FROM (SELECT uuid, sum(octet_length(body)) OVER (ORDER BY uuid DESC) AS bytes FROM quarantined_messages
               WHERE $1::timestamptz IS NULL OR last_seen_at >= $1) AS newest",
    );
    let context = "cannot look into the quarantine";
    let seen = seen.bind(since).bind(QUARANTINE_SEEN).fetch_one(postgres).await.context(context)?;
    let quarantined = sqlx::query_as(
        "SELECT uuid, reason, failed_at, last_seen_at FROM quarantined_messages
         WHERE uuid >= $1 AND ($2::timestamptz IS NULL OR last_seen_at >= $2)
           AND (position(convert_to($3, 'UTF8') IN body) > 0 OR position(convert_to($4, 'UTF8') IN body) > 0)
         ORDER BY uuid DESC LIMIT 5",
    );
    let first: Option<Uuid> = seen.try_get("first")?;
    let quarantined = quarantined.bind(first).bind(since).bind(id).bind(log_uuid.map(|uuid| uuid.to_string()));
    Ok(Traces {
        orphans: waiting(&orphans)?,
        quarantined: quarantined.fetch_all(postgres).await.context(context)?,
        quarantine_seen: seen.try_get("all")?,
    })
}

/// What is usual, by the newest events and by the mails of the week before this one.
///
/// # Errors
/// If the database cannot be read.
pub async fn context(postgres: &Postgres, log: &Log) -> anyhow::Result<Context> {
    let context = "cannot read what is usual";
    let Newest { lag, received_at: newest_event_at } = newest(postgres).await?;
    let facts = "count(*) AS mails, count(sent_at) AS sent, count(delivered_at) AS delivered, count(bounced_at) AS bounced,
                 count(complained_at) AS complained, count(delayed_at) AS delayed, count(opened_at) AS opened,
                 count(clicked_at) AS clicked,
                 (1000 * extract(epoch FROM percentile_disc(0.9) WITHIN GROUP (ORDER BY delivered_at - sent_at)))::bigint AS delivered_within";
    let sql = format!(
        "SELECT {facts} FROM (SELECT * FROM email_logs
           WHERE uuid <= $1 AND uuid >= ses_ledger_uuid_floor($2 - interval '7 days') ORDER BY uuid DESC LIMIT $3) AS l
         WHERE $4::text IS NULL OR configuration_set = $4"
    );
    let around = async |set: Option<&str>| {
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql.clone())).bind(log.uuid).bind(written(log));
        query.bind(NEIGHBOURS).bind(set.map(str::to_owned)).fetch_one(postgres).await.context(context)
    };
    let neighbours: Neighbours = around(None).await?;
    let same_set = match &log.configuration_set {
        Some(set) => around(Some(set)).await?,
        None => neighbours,
    };
    Ok(Context { lag, newest_event_at, neighbours, same_set })
}

/// When a mail was written, as its place in the order of mails says.
fn written(log: &Log) -> OffsetDateTime {
    let of_uuid = log.uuid.get_timestamp().filter(|_| log.uuid.get_version_num() == 7);
    let of_uuid = of_uuid.and_then(|at| OffsetDateTime::from_unix_timestamp(at.to_unix().0 as i64).ok());
    of_uuid.unwrap_or(log.created_at)
}

/// The newest thousand, by the order of their mails.
///
/// # Errors
/// If the database cannot be read.
pub async fn newest(postgres: &Postgres) -> anyhow::Result<Newest> {
    let row = sqlx::query(
        "SELECT (1000 * extract(epoch FROM percentile_disc(0.5) WITHIN GROUP (ORDER BY stored_at - occurred_at)
                   FILTER (WHERE time_source = 'event' AND event_type IN ('delivery', 'bounce', 'open', 'click'))))::bigint AS lag,
                max(received_at) AS newest
         FROM (SELECT * FROM email_events ORDER BY email_log_uuid DESC LIMIT 1000) AS newest",
    );
    let row = row.fetch_one(postgres).await.context("cannot read the newest events")?;
    let lag: Option<i64> = row.try_get("lag")?;
    let lag = lag.map(|ms| Duration::from_millis(ms.max(0).unsigned_abs()));
    Ok(Newest { lag, received_at: row.try_get("newest")? })
}

fn millis<S: serde::Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_millis() as u64).serialize(serializer)
}

// Whom somebody asked for, and what was found of them, stays out of logs, also by accident.

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Search").field("limit", &self.limit).field("after", &self.after).finish_non_exhaustive()
    }
}

impl fmt::Debug for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anything => "Anything",
            Self::Address(_) => "Address(…)",
            Self::Domain(_) => "Domain(…)",
            Self::Log(_) => "Log(…)",
            Self::MessageId(_) => "MessageId(…)",
            Self::Words(_) => "Words(…)",
            Self::Part(_) => "Part(…)",
        })
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("log_uuid", &self.log_uuid).field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("uuid", &self.uuid).field("status", &self.status).finish_non_exhaustive()
    }
}

impl fmt::Debug for MailEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MailEvent").field("uuid", &self.uuid).field("kind", &self.event_type).finish_non_exhaustive()
    }
}
