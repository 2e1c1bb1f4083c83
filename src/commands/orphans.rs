//! `ses-ledger orphans`: events whose mail is not known, and why.

use std::{process::ExitCode, time::Duration};

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    ask::{connect, print},
    removal::{Export, REMOVALS, RemovalArgs, may_remove, refuses, show_progress, show_removals},
    screen::{Screen, grouped, listed, one_line, say, wrapped},
};
use crate::{
    aws::name_of,
    cli::{DatabaseArgs, EXIT_USAGE, duration},
    orphans::attach_next,
    postgres::{
        Postgres,
        stuck::{
            self, Candidate, OrphanGroup, OrphanGroups, OrphanedMail, OrphanedMailInFull, OrphanedMails, Page, Removal,
            Why, Work,
        },
    },
    readable::{plural, second, span},
};

/// Arguments of `orphans`.
#[derive(Clone, clap::Args)]
pub struct OrphansArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, clap::Subcommand)]
enum What {
    /// List why events wait, in groups; with --ids mail by mail
    List(ListArgs),
    /// Show all that waits for one mail, and what would attach it
    Show(ShowArgs),
    /// Attach now what the worker's sweep would attach later
    Retry(RetryArgs),
    /// Remove events that waited too long, visibly
    ///
    /// They are counted in the table ses_ledger_removals, with who removed them. Events whose log row is there by now are
    /// left alone: they are attached. Needs a login that is a member of ses_ledger_owner, or was granted the right to
    /// execute ses_ledger_expire_orphans.
    Expire(ExpireArgs),
}

#[derive(Clone, clap::Args)]
struct ListArgs {
    /// List the mails themselves, those with the newest event first
    #[arg(long)]
    ids: bool,

    /// Only those that wait for this reason
    #[arg(long, value_enum, value_name = "REASON", requires = "ids")]
    why: Option<Why>,

    /// At most so many mails, 1 to 1000
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), requires = "ids")]
    limit: u32,

    /// Go on where the page before ended
    #[arg(long, value_name = "UUID", requires = "ids")]
    after: Option<Uuid>,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Clone, clap::Args)]
struct ShowArgs {
    /// The id that SES gave the mail, or the uuid of one of its orphaned events
    id: String,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Clone, clap::Args)]
struct RetryArgs {
    /// Only the events of this mail: the id that SES gave it [default: all events that wait]
    #[arg(long, value_name = "ID")]
    id: Option<String>,

    /// Print one JSON object per line: progress, then the answer
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Clone, clap::Args)]
struct ExpireArgs {
    /// Those that were parked before that, like 90d; at least 1d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Duration,

    /// Only the events of this mail: the id that SES gave it [default: all]
    #[arg(long, value_name = "ID")]
    id: Option<String>,

    #[command(flatten)]
    removal: RemovalArgs,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

/// Events to read or remove at a time.
const SLICE: u32 = 1_000;

impl OrphansArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.what {
            What::List(args) => args.database.check(),
            What::Show(args) => args.database.check(),
            What::Retry(args) => args.database.check(),
            What::Expire(args) if args.older_than < Duration::from_secs(86_400) => {
                Err("--older-than has to be at least 1d: the log row of a younger event may still come".to_owned())
            }
            What::Expire(args) => args.database.check(),
        }
    }
}

/// Answers, or does it.
///
/// # Errors
/// If the database cannot be read, or the login may not.
pub async fn run(args: OrphansArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        What::List(args) => list(args).await,
        What::Show(args) => show(args).await,
        What::Retry(args) => retry(args).await,
        What::Expire(args) => expire(args).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let postgres = match connect(&args.database.reader()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    if args.ids {
        let found = mails(&postgres, &args).await?;
        return print(args.json, &found, || show_mails(&found));
    }
    let groups = stuck::orphan_groups(&postgres).await?;
    let removals = stuck::removals(&postgres, "orphans", REMOVALS).await?;
    let answer = json!({ "orphans": groups, "removals": removals });
    print(args.json, &answer, || show_groups(&Screen::new(false), &groups, &removals))
}

/// A page of mails. With a filter it reads on until the page is full, or ten pages were looked at.
async fn mails(postgres: &Postgres, args: &ListArgs) -> anyhow::Result<OrphanedMails> {
    let Some(why) = args.why else {
        return stuck::orphans(postgres, &Page { before: args.after, most: args.limit }).await;
    };
    let mut found = OrphanedMails { mails: Vec::new(), next: args.after };
    for _ in 0..10 {
        let page = stuck::orphans(postgres, &Page { before: found.next, most: SLICE }).await?;
        found.next = page.next;
        for mail in page.mails.into_iter().filter(|mail| mail.why == why) {
            if found.mails.len() == args.limit as usize {
                found.next = found.mails.last().map(|mail| mail.newest);
                return Ok(found);
            }
            found.mails.push(mail);
        }
        if found.next.is_none() {
            break;
        }
    }
    Ok(found)
}

async fn show(args: ShowArgs) -> anyhow::Result<ExitCode> {
    let postgres = match connect(&args.database.reader()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    match stuck::orphaned_mail(&postgres, &args.id).await? {
        Some(mail) => print(args.json, &mail, || show_mail(&Screen::new(false), &mail)),
        None => {
            eprintln!(
                "No orphaned event has this id. Perhaps it was attached: ses-ledger explain {}",
                one_line(&args.id, 100)
            );
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn retry(args: RetryArgs) -> anyhow::Result<ExitCode> {
    let postgres = match connect(&args.database.settings()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    if refuses(&postgres, Work::Retry, "attach orphaned events").await? {
        return Ok(ExitCode::FAILURE);
    }
    let attached = match &args.id {
        Some(id) => retry_one(&postgres, id).await?,
        None => retry_all(&postgres, args.json).await?,
    };
    let left = stuck::orphans_left(&postgres).await?;
    print(args.json, &json!({ "attached": attached, "left": left }), || {
        let found =
            plural(attached, "event found its mail and is attached", "events found their mail and are attached");
        let line = format!("{found}; {}.", plural(left as u64, "still waits", "still wait"));
        Screen::new(false).redraw(&line, true);
        if attached == 0 && left > 0 {
            say!("Why they wait: ses-ledger orphans list");
        }
    })
}

async fn retry_one(postgres: &Postgres, id: &str) -> anyhow::Result<u64> {
    let mut attached = 0;
    while let Some(mail) = stuck::orphaned_mail(postgres, id).await? {
        let before = attached;
        for orphan in &mail.orphans {
            let previous = Uuid::from_u128(orphan.uuid.as_u128().saturating_sub(1));
            attached += postgres.sweep(previous, 1).await?.attached;
        }
        if attached == before {
            break;
        }
    }
    Ok(attached)
}

async fn retry_all(postgres: &Postgres, as_json: bool) -> anyhow::Result<u64> {
    let screen = Screen::new(as_json);
    let (mut attached, mut after) = (0, Uuid::nil());
    while let Some(last) = attach_next(postgres, after, &mut attached).await? {
        after = last;
        let parked = last.get_timestamp().map(|t| t.to_unix().0 as i64);
        let parked = parked.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()).map(second);
        match as_json {
            true => say!("{}", json!({ "attached": attached, "looked_at_until": parked })),
            false if screen.terminal => {
                let parked = parked.unwrap_or_default();
                screen.redraw(&format!("{} attached; looked at those until {parked}", grouped(attached)), false);
            }
            false => {}
        }
    }
    Ok(attached)
}

async fn expire(args: ExpireArgs) -> anyhow::Result<ExitCode> {
    let postgres = match connect(&args.database.settings()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    if !args.removal.dry_run && refuses(&postgres, Work::Expire, "remove orphaned events").await? {
        return Ok(ExitCode::FAILURE);
    }
    let (uuids, screen) = (expirable(&postgres, &args).await?, Screen::new(args.json));
    let what = format!(
        "{} orphaned events that were parked more than {} ago",
        grouped(uuids.len() as u64),
        span(args.older_than)
    );
    if args.removal.dry_run || uuids.is_empty() {
        return print(args.json, &json!({ "would_remove": uuids.len(), "removed": 0 }), || {
            say!("{what} would be removed.");
        });
    }
    if !may_remove(&what, args.removal.yes) {
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    if let Some(file) = &args.removal.export {
        let mut export = Export::create(file)?;
        for (n, slice) in uuids.chunks(SLICE as usize).enumerate() {
            show_progress(&screen, n * SLICE as usize, uuids.len(), "written");
            for line in stuck::orphans_as_json(&postgres, slice).await? {
                export.line(&line)?;
            }
        }
        export.sync()?;
    }
    let (run, mut removed) = (Uuid::now_v7(), 0);
    let why = match &args.id {
        Some(_) => format!("older than {}, of one mail", span(args.older_than)),
        None => format!("older than {}", span(args.older_than)),
    };
    for (n, slice) in uuids.chunks(SLICE as usize).enumerate() {
        show_progress(&screen, n * SLICE as usize, uuids.len(), "removed");
        removed += stuck::expire_orphans(&postgres, run, slice, args.older_than, &why).await?;
    }
    print(args.json, &json!({ "removal": run.to_string(), "removed": removed }), || {
        let done = format!("Removed {} orphaned events; ses_ledger_removals tells so under", grouped(removed));
        screen.redraw(&done, true);
        say!("{run}.");
    })
}

async fn expirable(postgres: &Postgres, args: &ExpireArgs) -> anyhow::Result<Vec<Uuid>> {
    let (mut uuids, mut after) = (Vec::new(), Uuid::nil());
    loop {
        let page = stuck::expirable(postgres, args.older_than, args.id.as_deref(), after, SLICE).await?;
        let Some(last) = page.last() else { return Ok(uuids) };
        after = *last;
        uuids.extend(page);
    }
}

fn show_groups(screen: &Screen, all: &OrphanGroups, removals: &[Removal]) {
    match all.oldest_at {
        None => say!("No event waits for its mail."),
        Some(oldest) => {
            let age = OffsetDateTime::now_utc() - oldest;
            let waiting = plural(all.events as u64, "event waits", "events wait");
            say!("{waiting} for a log row; the oldest for {}.", span(age.unsigned_abs()));
        }
    }
    if all.truncated {
        say!("The groups tell of the {} mails with the newest events.", grouped(all.looked_at as u64));
    }
    for group in &all.groups {
        show_group(screen, group);
    }
    show_removals(removals);
}

fn show_group(screen: &Screen, group: &OrphanGroup) {
    let OrphanGroup { why, events, mails, first_seen_at, last_seen_at, .. } = group;
    say!("\n{}", screen.bold(title(*why)));
    let counts = format!("{} of {}", plural(*events as u64, "event", "events"), plural(*mails as u64, "mail", "mails"));
    say!("  {counts}, {} to {} UTC", second(*first_seen_at), second(*last_seen_at));
    let place = [
        group.sender_domain.as_ref().map(|domain| format!("from {domain}")),
        group.configuration_set.as_ref().map(|set| format!("configuration set {set}")),
        Some(format!("queue {}", name_of(&group.queue))),
    ];
    say!("{}", wrapped("  ", &one_line(&Vec::from_iter(place.into_iter().flatten()).join(", "), 300)));
    say!("{}", listed("kinds", &kinds(&group.kinds)));
    say!("{}", wrapped("  ", advice(*why)));
    say!("  ses-ledger orphans list --ids --why {}", why.as_str());
}

fn kinds(kinds: &std::collections::BTreeMap<String, i64>) -> Vec<(String, i64)> {
    let mut kinds: Vec<_> = kinds.iter().map(|(kind, count)| (one_line(kind, 64), *count)).collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    kinds
}

fn title(why: Why) -> &'static str {
    match why {
        Why::RowIsThere => "The log row is there by now",
        Why::NoSuchUuid => "The mail names a log row that does not exist",
        Why::OtherSender => "Probably not sent by this application",
        Why::Young => "No log row yet, but they are young",
        Why::NoRow => "No log row has their id",
    }
}

fn advice(why: Why) -> &'static str {
    match why {
        Why::RowIsThere => {
            "The next sweep attaches them. If they are older than a few minutes, no worker sweeps: attach them with \
             ses-ledger orphans retry."
        }
        Why::NoSuchUuid => {
            "The tag carries a uuid that is in no row of email_logs: was the row rolled back, deleted, or written to \
             another database?"
        }
        Why::OtherSender => {
            "None of the newest 10,000 log rows has this configuration set or sender's domain. If another application \
             sends it, give it a queue and a ledger of its own."
        }
        Why::Young => "The sender writes its row before or after sending; a sweep attaches them when it is there.",
        Why::NoRow => {
            "Does every way of sending write a row, with the id that SES answered? Rows without an id that could be \
             the mail's are told by ses-ledger orphans show ID."
        }
    }
}

fn show_mails(found: &OrphanedMails) {
    for mail in &found.mails {
        let OrphanedMail { aws_message_id, why, events, last_seen_at, kinds: of, .. } = mail;
        say!("{}", one_line(aws_message_id, 200));
        let names = Vec::from_iter(of.keys().map(|kind| one_line(kind, 64))).join(" ");
        let text = format!("{:<12} {} {names}", why.as_str(), grouped(*events as u64));
        say!("{}", wrapped(&format!("  {}  ", second(*last_seen_at)), &text));
    }
    match found.next {
        Some(next) => say!("More: add --after {next}"),
        None if found.mails.is_empty() => say!("No event waits."),
        None => {}
    }
}

fn show_mail(screen: &Screen, full: &OrphanedMailInFull) {
    let mail = &full.mail;
    say!("{}", screen.bold(&one_line(&mail.aws_message_id, 200)));
    let first = full.orphans.first();
    let told = |value: Option<&String>| value.map(|text| one_line(text, 120));
    let facts = [
        ("from", told(first.and_then(|orphan| orphan.source.as_ref()))),
        ("subject", told(first.and_then(|orphan| orphan.subject.as_ref()))),
        ("sent", told(first.and_then(|orphan| orphan.mail_sent_at.as_ref()))),
        ("config set", told(mail.configuration_set.as_ref())),
        ("queue", Some(one_line(&mail.queue, 200))),
        ("log uuid", first.and_then(|orphan| orphan.log_uuid).map(|uuid| format!("{uuid} (in the mail's tag)"))),
    ];
    for (name, fact) in facts {
        if let Some(fact) = fact {
            say!("{}", wrapped(&format!("  {name:<11} "), &fact));
        }
    }
    say!();
    for orphan in &full.orphans {
        let kind = one_line(&orphan.event_type, 20);
        say!("  {}  {kind:<17} {}", second(orphan.occurred_at), one_line(&orphan.recipient, 40));
        let details = [&orphan.bounce_type, &orphan.smtp_status, &orphan.diagnostic];
        let details = Vec::from_iter(details.into_iter().flatten().map(String::as_str)).join(" ");
        if !details.is_empty() {
            say!("{}", wrapped("                       ", &one_line(&details, 300)));
        }
        say!("                       event {}", orphan.uuid);
    }
    say!();
    show_what_would_attach(full);
}

fn show_what_would_attach(full: &OrphanedMailInFull) {
    let id = one_line(&full.mail.aws_message_id, 200);
    if let Some(log) = full.log_uuid {
        say!("{}", wrapped("  ", &format!("The log row {log} is there. To attach them now:")));
        say!("  ses-ledger orphans retry --id {id}");
        return;
    }
    say!("  A row of email_logs would attach them with one of these:");
    say!("  aws_message_id = '{id}'");
    if let Some(uuid) = full.orphans.iter().find_map(|orphan| orphan.log_uuid) {
        say!("  uuid = '{uuid}'");
    }
    for Candidate { log_uuid, created_at, .. } in &full.candidates {
        let text = format!(
            "The row {log_uuid} of {} has the same recipient and no id of SES. If it is this mail, write the id to it.",
            second(*created_at)
        );
        say!("{}", wrapped("  ", &text));
    }
}
