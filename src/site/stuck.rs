//! `/stuck`: what waits for somebody, and why. What to do about it is a command, which the page shows.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::{Path, State};
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Answer, Asked, Problem, Site, given, in_time, link,
    page::{Page, command, quoted, when},
    text::{Eyes, line},
};
use crate::{
    aws::name_of,
    pipeline::decode::{DecodeSettings, Excerpt, excerpt},
    postgres::stuck::{self, Body, OrphanGroup, OrphanedMailInFull, QuarantineGroup, QuarantinedBody, Which, Why},
    readable::grouped,
    replay,
};

/// Lines of a page.
const PAGE: u32 = 50;
/// Bytes of a body that are shown before and after the failing place.
const WINDOW: usize = 4_000;

/// Everything in groups.
pub(super) async fn page(State(site): State<Arc<Site>>) -> Answer {
    let postgres = &site.postgres;
    let orphans = in_time(stuck::orphan_groups(postgres)).await;
    let bodies = in_time(stuck::quarantine_groups(postgres)).await;
    let body = html! {
        h1 { "Stuck" }
        h2 { "Orphans: events whose mail has no log row" }
        @match cut_short(orphans)? {
            None => (too_many("orphans", "ses-ledger orphans list")),
            Some(found) if found.groups.is_empty() => { div.say.good { p { "None. Every event has found its mail." } } }
            Some(found) => {
                p { (count(found.events)) " events wait"
                    @if let Some(at) = found.oldest_at { ", the oldest since " (when(at)) }
                    ". They are attached by themselves as soon as the row appears. "
                    a href="/stuck/orphans" { "All mails, newest first" } }
                @if found.truncated { p.warn { "Grouped are the " (count(found.looked_at))
                    " newest mails; there are more." } }
                (orphan_groups(&found.groups))
            }
        }
        h2 { "Quarantine: bodies that could not be understood or stored" }
        @match cut_short(bodies)? {
            None => (too_many("bodies", "ses-ledger quarantine list")),
            Some(groups) if groups.is_empty() => { div.say.good { p { "Empty. Everything that came was understood." } } }
            Some(groups) => {
                p { (count(groups.iter().map(|group| group.bodies).sum())) " bodies that failed in "
                    (count(groups.len() as i64)) @if groups.len() == 1 { " way. " } @else { " ways. " }
                    a href="/stuck/quarantine" { "All bodies, newest first" } }
                (quarantine_groups(&groups))
                (command("See what a newer version would make of them; nothing changes", "ses-ledger quarantine replay --dry-run"))
            }
        }
    };
    Ok(Page::new("/stuck", "Stuck", body))
}

/// `None` if it took too long: the rest of the page is worth showing.
fn cut_short<T>(found: Result<T, Problem>) -> Result<Option<T>, Problem> {
    match found {
        Err(Problem::TooLong) => Ok(None),
        found => found.map(Some),
    }
}

fn too_many(what: &str, instead: &str) -> Markup {
    html! {
        div.say.warn {
            p { "There are too many " (what) " to group within " (super::PATIENCE.as_secs())
                " seconds; the database was told to stop." }
            p { "On the command line it may take longer: " code { (instead) } }
        }
    }
}

fn orphan_groups(groups: &[OrphanGroup]) -> Markup {
    html! {
        table.rows {
            thead { tr {
                th { "Why" } th { "Configuration set" } th { "Sender" } th { "Queue" } th.number { "Mails" }
                th.number { "Events" } th { "Kinds" } th { "First, last seen" }
            } }
            tbody {
                @for group in groups {
                    tr {
                        td.name data-is="Why" { span { (why(group.why)) } }
                        td data-is="Configuration set" { (or_none(group.configuration_set.as_deref())) }
                        td.name data-is="Sender" { (or_none(group.sender_domain.as_deref())) }
                        td data-is="Queue" { (line(name_of(&group.queue))) }
                        td.number data-is="Mails" { span { (count(group.mails)) } }
                        td.number data-is="Events" { span { (count(group.events)) } }
                        td data-is="Kinds" { span.small { (kinds(&group.kinds)) } }
                        td.time data-is="First, last" { span { (when(group.first_seen_at))
                            br; (when(group.last_seen_at)) br;
                            a.small href=(mail_link(&group.example)) { "one of them" } } }
                    }
                }
            }
        }
    }
}

fn quarantine_groups(groups: &[QuarantineGroup]) -> Markup {
    html! {
        table.rows {
            thead { tr {
                th { "Reason" } th { "What is wrong, and where" } th.number { "Bodies" } th.number { "Times seen" }
                th.number { "Replayed" } th { "First, last seen" }
            } }
            tbody {
                @for group in groups {
                    tr {
                        td.name data-is="Reason" { a href=(link("/stuck/quarantine", [("fingerprint", group.fingerprint.as_str())])) { code { (line(&group.reason)) } } }
                        td.who data-is="Way" { span { (stuck::meaning(&group.stage, &group.reason))
                            br; code.small { (line(group.fingerprint.strip_prefix(&format!("{}:", group.reason)).unwrap_or(&group.fingerprint))) } } }
                        td.number data-is="Bodies" { span { (count(group.bodies)) } }
                        td.number data-is="Times seen" { span { (count(group.times_seen)) } }
                        td.number data-is="Replayed" { span { (count(group.replayed)) } }
                        td.time data-is="First, last" { span { (when(group.first_seen_at))
                            br; (when(group.last_seen_at))
                            br; a.small href=(body_link(group.example)) { "the newest" } } }
                    }
                }
            }
        }
    }
}

/// What the lists send.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Listed {
    reason: String,
    fingerprint: String,
    id: String,
    /// What came last on the page before.
    before: String,
}

impl Listed {
    fn page(&self) -> Result<stuck::Page, Problem> {
        let before = given(&self.before).map(|before| Uuid::try_parse(&before)).transpose();
        let before = before.map_err(|_| Problem::Unreadable("before= is no uuid.".to_owned()))?;
        Ok(stuck::Page { before, most: PAGE })
    }
}

/// Mails without a log row.
pub(super) async fn orphans(State(site): State<Arc<Site>>, Asked(asked): Asked<Listed>) -> Answer {
    let found = in_time(stuck::orphans(&site.postgres, &asked.page()?)).await?;
    let body = html! {
        h1 { "Orphans" }
        p { a href="/stuck" { "Stuck" } " · mails without a log row, newest event first" }
        @if found.mails.is_empty() { div.say { p { "There are no more." } } } @else {
            table.rows {
                thead { tr {
                    th { "Mail, as SES calls it" } th { "Why" } th { "Configuration set" } th.number { "Events" }
                    th { "Kinds" } th { "Last seen" }
                } }
                tbody {
                    @for mail in &found.mails {
                        tr {
                            td.who data-is="Mail" {
                                a href=(mail_link(&mail.aws_message_id)) { (line(&mail.aws_message_id)) }
                            }
                            td.who data-is="Why" { span { (why(mail.why)) } }
                            td data-is="Configuration set" { (or_none(mail.configuration_set.as_deref())) }
                            td.number data-is="Events" { span { (count(mail.events)) } }
                            td data-is="Kinds" { span.small { (kinds(&mail.kinds)) } }
                            td.time data-is="Last seen" { (when(mail.last_seen_at)) }
                        }
                    }
                }
            }
        }
        (pager(asked.before.is_empty(), "/stuck/orphans", found.next.map(|next| link("/stuck/orphans", [("before", next.to_string().as_str())]))))
    };
    Ok(Page::new("/stuck", "Orphans", body))
}

/// What waits for one mail.
pub(super) async fn orphan(State(site): State<Arc<Site>>, Asked(asked): Asked<Listed>) -> Answer {
    let id = given(&asked.id).ok_or(Problem::NotFound("No mail is named"))?;
    let found = in_time(stuck::orphaned_mail(&site.postgres, &id)).await?;
    let found = found.ok_or(Problem::NotFound("No orphans wait for that mail any more"))?;
    Ok(Page::new("/stuck", "Orphans of a mail", orphaned_mail(&found, site.eyes)))
}

fn orphaned_mail(found: &OrphanedMailInFull, eyes: Eyes) -> Markup {
    let mail = &found.mail;
    html! {
        h1 { "Orphans of one mail" }
        p { a href="/stuck" { "Stuck" } " · " a href="/stuck/orphans" { "orphans" } }
        dl {
            dt { "Mail, as SES calls it" } dd { (line(&mail.aws_message_id)) }
            dt { "Why" } dd { (why(mail.why)) }
            dt { "Configuration set" } dd { (or_none(mail.configuration_set.as_deref())) }
            dt { "Sender's domain" } dd { (or_none(mail.sender_domain.as_deref())) }
            @if let Some(subject) = found.orphans.iter().find_map(|orphan| orphan.subject.as_deref()) {
                dt { "Subject" } dd { (eyes.private(subject)) }
            }
            dt { "Queue" } dd { (line(name_of(&mail.queue))) }
            @if let Some(log) = found.log_uuid { dt { "Its log row" } dd { a href={ "/mail/" (log) } { (log) }
                ": the next sweep attaches them" } }
        }
        @if !found.candidates.is_empty() {
            h2 { "Log rows that it could be" }
            p { "Same recipient, same hour, and no id of SES yet. If one of these is the mail, your application did not write down the id that SES returned." }
            ul { @for row in &found.candidates { li { a href={ "/mail/" (row.log_uuid) } { (row.log_uuid) } ", "
                (when(row.created_at)) ", " (eyes.private(row.subject.as_deref().unwrap_or(""))) } } }
        }
        h2 { "Events" }
        table.rows {
            thead { tr { th { "When" } th { "What" } th { "Recipient" } th { "Said" } th { "Received" } } }
            tbody {
                @for orphan in &found.orphans {
                    tr {
                        td.time data-is="When" { (when(orphan.occurred_at)) }
                        td data-is="What" {
                            span {
                                (line(&orphan.event_type)) @if let Some(kind) = &orphan.bounce_type { ", " (line(kind)) }
                            }
                        }
                        td.who data-is="Recipient" { span { (eyes.address(&orphan.recipient)) } }
                        td.who data-is="Said" { span { @if let Some(status) = &orphan.smtp_status { (line(status))
                            " " } (eyes.words(orphan.diagnostic.as_deref().unwrap_or(""))) } }
                        td.time data-is="Received" { (when(orphan.received_at)) }
                    }
                }
            }
        }
        (command("Look for its log row now, and attach them", &format!("ses-ledger orphans retry --id {}", quoted(&mail.aws_message_id))))
    }
}

/// Bodies in quarantine.
pub(super) async fn quarantine(State(site): State<Arc<Site>>, Asked(asked): Asked<Listed>) -> Answer {
    let which = match (given(&asked.fingerprint), given(&asked.reason)) {
        (Some(fingerprint), _) => Which::Fingerprint(fingerprint),
        (None, Some(reason)) => Which::Reason(reason),
        (None, None) => Which::All,
    };
    let found = in_time(stuck::quarantined(&site.postgres, &which, &asked.page()?)).await?;
    let again = |before: &str| {
        link(
            "/stuck/quarantine",
            [("fingerprint", asked.fingerprint.as_str()), ("reason", &asked.reason), ("before", before)],
        )
    };
    let replay = match &which {
        Which::Fingerprint(of) => format!("ses-ledger quarantine replay --dry-run --fingerprint {}", quoted(of)),
        Which::Reason(of) => format!("ses-ledger quarantine replay --dry-run --reason {}", quoted(of)),
        _ => "ses-ledger quarantine replay --dry-run".to_owned(),
    };
    let body = html! {
        h1 { "Quarantine" }
        p { a href="/stuck" { "Stuck" } " · bodies "
            @match &which {
                Which::Fingerprint(of) => { "that failed in the way " code { (line(of)) } }
                Which::Reason(of) => { "with the reason " code { (line(of)) } }
                _ => {}
            }
            " newest first" }
        @if found.bodies.is_empty() { div.say { p { "There are no more." } } } @else { (bodies(&found.bodies)) }
        (pager(asked.before.is_empty(), &again(""), found.next.map(|next| again(&next.to_string()))))
        (command("See what a newer version would make of them; nothing changes", &replay))
    };
    Ok(Page::new("/stuck", "Quarantine", body))
}

fn bodies(bodies: &[QuarantinedBody]) -> Markup {
    html! {
        table.rows {
            thead { tr {
                th { "First seen" } th { "Reason" } th { "Where it failed" } th.number { "Bytes" }
                th.number { "Times seen" } th { "Last replay" } th { "Look" }
            } }
            tbody {
                @for body in bodies {
                    tr {
                        td.time data-is="First seen" { (when(body.first_seen_at)) }
                        td.name data-is="Reason" { code { (line(&body.reason)) } }
                        td data-is="Where" { code { (line(&body.at)) } }
                        td.number data-is="Bytes" { span { (count(body.bytes)) } }
                        td.number data-is="Times seen" { span { (count(body.times_seen.into())) } }
                        td data-is="Last replay" { (or_none(body.last_replay_outcome.as_deref())) }
                        td data-is="Look" { a href=(body_link(body.uuid)) { "body" } }
                    }
                }
            }
        }
    }
}

/// One body, with the place where it failed.
pub(super) async fn body(State(site): State<Arc<Site>>, Path(uuid): Path<String>) -> Answer {
    let missing = Problem::NotFound("No such body is in quarantine");
    let Ok(uuid) = Uuid::try_parse(&uuid) else { return Err(missing) };
    let found = in_time(stuck::body(&site.postgres, uuid)).await?.ok_or(missing)?;
    Ok(Page::new("/stuck", "A body in quarantine", one_body(&found, site.eyes)))
}

fn one_body(Body { about, bytes }: &Body, eyes: Eyes) -> Markup {
    let reading = replay::read(bytes, &DecodeSettings::default());
    // Where this version fails. That of the row may be meant in the whole of which this is a part.
    let place = reading.rejected.first().map_or(&about.at, |failure| &failure.at);
    html! {
        h1 { "A body in quarantine" }
        p { a href="/stuck" { "Stuck" } " · "
            a href=(link("/stuck/quarantine", [("fingerprint", about.fingerprint.as_str())])) { "all that failed in the same way" } }
        dl {
            dt { "Reason" }
            dd { code { (line(&about.reason)) } " " span.faint { (stuck::meaning(&about.stage, &about.reason)) } }
            dt { "Where it failed" } dd { code { (line(&about.at)) } }
            dt { "This version" } dd { (line(&reading.to_string())) }
            dt { "Length" } dd { (count(about.bytes)) " bytes" }
            dt { "Seen" } dd { (count(about.times_seen.into())) @if about.times_seen == 1 { " time, " }
                @else { " times, " } (when(about.first_seen_at)) " to " (when(about.last_seen_at)) }
            dt { "Queue" } dd { (line(name_of(&about.queue))) ", message " (line(&about.sqs_message_id))
                ", handed out " (count(about.receive_count.into())) @if about.receive_count == 1 { " time" }
                @else { " times" } }
            dt { "Replayed" } dd {
                @match (about.last_replayed_at, &about.last_replay_outcome) {
                    (Some(at), outcome) => { (count(about.replay_count.into()))
                        @if about.replay_count == 1 { " time, last " } @else { " times, last " } (when(at)) ": "
                        (or_none(outcome.as_deref())) }
                    (None, _) => "never"
                }
            }
        }
        @if eyes.masked {
            div.say { p { "Bodies are masked here. With a login to the database: "
                code { "ses-ledger quarantine show " (about.uuid) } } }
        } @else {
            (marked(&excerpt(bytes, place, WINDOW), eyes))
        }
        (command("See what a newer version would make of it; nothing changes", &format!("ses-ledger quarantine replay --dry-run {}", about.uuid)))
    }
}

/// The body around the failing place, which is marked.
fn marked(found: &Excerpt, eyes: Eyes) -> Markup {
    html! {
        @if let Some(missing) = &found.missing { p { "In what is marked, " code { (line(missing)) } " is missing." } }
        @else if found.failing.is_empty() { p { "It ends where it should go on." } }
        pre {
            @if found.start > 0 { span.faint { "(" (count(found.start as i64)) " bytes before)\n" } }
            (eyes.body(&found.before))
            mark {
                @if found.failing.is_empty() { "◂" } @else { (eyes.body(&found.failing)) }
                @if found.omitted > 0 { span.faint { " … " (count(found.omitted as i64)) " bytes more … " } }
            }
            (eyes.body(&found.after))
            @if found.rest > 0 { span.faint { "\n(" (count(found.rest as i64)) " bytes after)" } }
        }
    }
}

/// Why a mail's events wait, and who can do something about it.
fn why(why: Why) -> &'static str {
    match why {
        Why::RowIsThere => "its log row is there: the next sweep attaches them",
        Why::NoSuchUuid => "it carries the uuid of a log row that does not exist",
        Why::OtherSender => {
            "probably sent by another application: none of the newest log rows has its configuration set or sender"
        }
        Why::Young => "younger than ten minutes: its log row is probably on its way",
        Why::NoRow => "no log row has its id",
    }
}

fn kinds(kinds: &BTreeMap<String, i64>) -> Markup {
    html! { @for (n, (kind, count)) in kinds.iter().enumerate() { @if n > 0 { ", " } (line(kind)) " "
    (self::count(*count)) } }
}

fn or_none(text: Option<&str>) -> Markup {
    html! { @match text { Some(text) => span { (line(text)) }, None => span.faint { "none" } } }
}

fn count(number: i64) -> String {
    grouped(number.unsigned_abs())
}

fn mail_link(id: &str) -> String {
    link("/stuck/orphan", [("id", id)])
}

fn body_link(uuid: Uuid) -> String {
    format!("/stuck/body/{uuid}")
}

/// The way to the next page, and back to the first.
pub(super) fn pager(is_first: bool, first: &str, next: Option<String>) -> Markup {
    html! {
        p.pager {
            @if !is_first { a href=(first) { "« First page" } " " }
            @if let Some(next) = next { a href=(next) rel="next" { "Next page »" } }
        }
    }
}
