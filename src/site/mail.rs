//! `/mail`: which mails there are for somebody, and what became of one.

use std::sync::Arc;

use axum::extract::{Path, State};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Answer, Asked, PATIENCE, Problem, Site, first_moment, given, in_time, last_moment, link,
    page::{Page, command, when},
    stuck::pager,
    text::{Eyes, line, typed},
};
use crate::{
    aws::name_of,
    explain::{self, Evidence, Explanation, Told},
    postgres::mails::{self, Fact, Found, Line, Mail, STATUSES, Search, Waiting, What},
    readable::grouped,
};

/// Lines of a page.
const PAGE: usize = 50;
/// A search may be as long as an id or a subject, not as a mail.
const LONGEST: usize = 1_000;

/// What the form sends.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Form {
    q: String,
    from: String,
    to: String,
    status: String,
    template: String,
    campaign: String,
    /// The last mail of the page before.
    after: String,
}

/// Looks for mails.
pub(super) async fn search(State(site): State<Arc<Site>>, Asked(form): Asked<Form>) -> Answer {
    let search = form.read()?;
    let found = match in_time(mails::find(&site.postgres, &search)).await {
        Err(Problem::TooLong) => form.too_long(),
        found => form.found(&found?, site.eyes),
    };
    let body = html! { h1 { "Mail" } (form.fields()) (found) };
    Ok(Page::new("/mail", "Mail", body))
}

impl Form {
    fn read(&self) -> Result<Search, Problem> {
        if [&self.q, &self.template, &self.campaign].iter().any(|text| text.chars().count() > LONGEST) {
            return Err(Problem::Unreadable(format!("That is longer than {} characters.", grouped(LONGEST as u64))));
        }
        let after = given(&self.after).map(|after| Uuid::try_parse(&after)).transpose();
        let status = given(&self.status);
        if status.as_deref().is_some_and(|status| !STATUSES.contains(&status)) {
            return Err(Problem::Unreadable(format!("status= is none of {}.", STATUSES.join(", "))));
        }
        Ok(Search {
            what: What::read(&self.q),
            since: first_moment(&self.from)?,
            until: last_moment(&self.to)?,
            status,
            template: given(&self.template),
            campaign: given(&self.campaign),
            limit: PAGE,
            after: after.map_err(|_| Problem::Unreadable("after= is no uuid.".to_owned()))?,
            patience: PATIENCE,
        })
    }

    fn link(&self, from: &str, after: &str) -> String {
        link(
            "/mail",
            [
                ("q", self.q.as_str()),
                ("from", from),
                ("to", &self.to),
                ("status", &self.status),
                ("template", &self.template),
                ("campaign", &self.campaign),
                ("after", after),
            ],
        )
    }

    fn fields(&self) -> Markup {
        html! {
            form.ask method="get" action="/mail" role="search" {
                div.first {
                    label.wide { "Address, @domain, id, or words of the subject" input type="search" name="q"
                        value=(typed(&self.q)) maxlength=(LONGEST) autocomplete="off"; }
                    button { "Find" }
                }
                label { "Outcome"
                    select name="status" {
                        option value="" { "any" }
                        @for status in STATUSES { option value=(status)
                            selected[status == self.status] { (status.replace('_', " ")) } }
                    }
                }
                label { "From" input name="from" value=(typed(&self.from)) placeholder="any time" size="10"; }
                label { "To" input name="to" value=(typed(&self.to)) placeholder="now" size="10"; }
                label { "Template" input name="template" value=(typed(&self.template)) placeholder="any" size="12"; }
                label { "Campaign" input name="campaign" value=(typed(&self.campaign)) placeholder="any" size="12"; }
            }
        }
    }

    fn too_long(&self) -> Markup {
        html! {
            div.say.warn {
                p { "The database was not done within " (PATIENCE.as_secs()) " seconds, and was told to stop." }
                p { "A shorter time: "
                    @for (n, (from, name)) in [("1h", "the last hour"), ("1d", "day"), ("7d", "week")].into_iter().enumerate() {
                        @if n > 0 { " · " }
                        a href=(self.link(from, "")) { (name) }
                    }
                    ". An address or an id is found at once, however old the mail is."
                }
            }
        }
    }

    fn found(&self, found: &Found, eyes: Eyes) -> Markup {
        let next = found.next.map(|next| self.link(&self.from, &next.to_string()));
        html! {
            @if let Some(orphans) = &found.orphans { (waiting(orphans)) }
            @if found.lines.is_empty() {
                div.say {
                    @match found.looked_back_to {
                        Some(at) => p { "None among the mails since " (when(at))
                            "; older ones were not looked at within " (PATIENCE.as_secs())
                            " seconds. The next page goes on there." }
                        None => { p { "No mail is found." } (advice(&self.q)) }
                    }
                }
            } @else {
                (lines(&found.lines, eyes))
                @if let Some(at) = found.looked_back_to {
                    p.warn { "Mails before " (when(at)) " were not looked at within " (PATIENCE.as_secs())
                        " seconds. The next page goes on there." }
                }
            }
            (pager(self.after.is_empty(), &self.link(&self.from, ""), next))
        }
    }
}

/// What may be the reason that there is none.
fn advice(q: &str) -> Markup {
    html! {
        @match What::read(q) {
            What::Address(_) => p { "Neither does a log row name this address, nor has SES told of it." }
            What::Log(_) | What::MessageId(_) => p { "No log row has this id. Perhaps its events wait: "
                a href=(link("/stuck/orphan", [("id", q.trim())])) { "look among the orphans" } "." }
            What::Words(_) => p { "The words have to be in the subject, all of them." }
            _ => p { "Rows of " code { "email_logs" } " are what is looked for." }
        }
    }
}

fn waiting(orphans: &Waiting) -> Markup {
    html! {
        div.say.warn { p {
            (grouped(orphans.events.unsigned_abs())) " events to this address wait since " (when(orphans.since))
            " for a log row of their mail (" (line(&orphans.kinds.join(", "))) "): " a href="/stuck" { "stuck" }
        } }
    }
}

fn lines(lines: &[Line], eyes: Eyes) -> Markup {
    html! {
        table.rows {
            thead { tr { th { "When" } th { "Recipient" } th { "Subject" } th { "Outcome" } th { "What happened" } } }
            tbody {
                @for found in lines {
                    tr {
                        td.time data-is="When" { a href={ "/mail/" (found.log_uuid) } { (when(found.at)) } }
                        td.who data-is="Recipient" { span { @if found.recipient.is_empty() { span.faint { "not known" } } @else { (eyes.address(&found.recipient)) } } }
                        td.who data-is="Subject" { span {
                            @if let Some(subject) = &found.subject { (eyes.private(subject)) }
                                @else { span.faint { "none" } }
                            @if let Some(template) = &found.template_name { br; span.small.faint { (line(template)) } }
                        } }
                        td data-is="Outcome" { span { (outcome(found)) } }
                        td data-is="Happened" { span.small { (facts(&found.facts)) } }
                    }
                }
            }
        }
    }
}

fn outcome(found: &Line) -> Markup {
    html! {
        (status(&found.outcome.status))
        @if let Some(code) = &found.outcome.smtp_status { " " (line(code)) }
        @if found.outcome.candidate { br; span.small.faint { "one of several may have been it" } }
    }
}

/// A status, coloured by what it means for the mail.
pub(super) fn status(status: &str) -> Markup {
    let colour = match status {
        "delivered" | "opened" | "clicked" => "good",
        "soft_bounced" | "delayed" => "warn",
        "bounced" | "complained" | "failed" | "rejected" => "bad",
        _ => "",
    };
    html! { span class=(colour) { (line(&status.replace('_', " "))) } }
}

fn facts(facts: &[Fact]) -> Markup {
    html! {
        @for (n, fact) in facts.iter().enumerate() {
            @if n > 0 { br; }
            (when(fact.at)) " " (line(&fact.fact))
            @if fact.times > 1 { " " (grouped(fact.times.unsigned_abs())) " times" }
            @if fact.by_programs > 0 { " (" (grouped(fact.by_programs.unsigned_abs())) " by programs)" }
        }
    }
}

/// One mail: what happened to it, and what did not.
pub(super) async fn page(State(site): State<Arc<Site>>, Path(uuid): Path<String>) -> Answer {
    let missing = Problem::NotFound("There is no such mail");
    let Ok(uuid) = Uuid::try_parse(&uuid) else { return Err(missing) };
    let mail = in_time(mails::mail(&site.postgres, uuid)).await?.ok_or(missing)?;
    let context = in_time(mails::context(&site.postgres, &mail.log)).await?;
    let explanation = explain::explain(&mail, &context, OffsetDateTime::now_utc());
    Ok(Page::new("/mail", "A mail", one_mail(&mail, &explanation, site.eyes)))
}

fn one_mail(mail: &Mail, explanation: &Explanation, eyes: Eyes) -> Markup {
    let log = &mail.log;
    html! {
        h1 {
            @match &log.subject {
                Some(subject) => (eyes.private(subject)),
                None => span.faint { "A mail without a subject" },
            }
        }
        p { a href="/mail" { "Mail" } " · " (status(&log.status)) }
        (verdict(explanation, eyes))
        @if mail.lines.len() > 1 { h2 { "Recipients" } (recipients(&mail.lines, eyes)) }
        h2 { "What happened" }
        @if explanation.lines.is_empty() { p { "SES has reported nothing of it." } } @else {
            @if mail.events_in_all > mail.events.len() as i64 { p.warn { "The first " (mail.events.len()) " of "
                (grouped(mail.events_in_all.unsigned_abs())) " events." } }
            ol.timeline { @for (told, event) in explanation.lines.iter().zip(&mail.events) {
                    li { (moment(told, event.link.is_some(), mail.lines.len() > 1, eyes)) }
                } }
        }
        @if !explanation.missing.is_empty() {
            h2 { "What is not there, and why" }
            ul { @for missing in &explanation.missing { li { strong { (eyes.words(&missing.what)) } ": "
                (eyes.words(&missing.why)) } } }
        }
        h2 { "The mail" }
        (about(mail, eyes))
        (command("The same on the command line", &format!("ses-ledger explain {}", log.uuid)))
    }
}

/// What became of it, and who must act.
fn verdict(explanation: &Explanation, eyes: Eyes) -> Markup {
    html! {
        div.say {
            p { strong { (eyes.words(&explanation.verdict)) } }
            @for action in &explanation.who_must_act {
                p { (action.who.words())
                    @for (n, recipient) in action.recipients.iter().enumerate() { @if n == 0 { ", for " }
                        @else { ", " } (eyes.address(recipient)) }
                    ": " (eyes.words(&action.what)) "." }
            }
        }
    }
}

fn recipients(lines: &[Line], eyes: Eyes) -> Markup {
    html! {
        table.rows {
            thead { tr { th { "Recipient" } th { "Outcome" } th { "What happened" } } }
            tbody {
                @for found in lines {
                    tr {
                        td.who data-is="Recipient" { span { @if found.recipient.is_empty() { span.faint { "not known" } } @else { (eyes.address(&found.recipient)) } } }
                        td data-is="Outcome" { span { (outcome(found)) } }
                        td data-is="Happened" { span.small { (facts(&found.facts)) } }
                    }
                }
            }
        }
    }
}

/// One event in words, with its evidence. What is quoted of a click is its link.
fn moment(told: &Told, is_click: bool, several: bool, eyes: Eyes) -> Markup {
    let Evidence { event, queue, sqs_message_id, sns_message_id, eventbridge_id, feedback_id, received_at, late } =
        &told.evidence;
    let ids = [("SNS", sns_message_id), ("EventBridge", eventbridge_id), ("feedback", feedback_id)];
    html! {
        div.at { (when(told.at)) }
        div {
            strong { (eyes.words(&told.what)) }
            @if several && !told.recipient.is_empty() { " " span.faint { "to " (eyes.address(&told.recipient)) } }
            @for more in &told.more { p { (eyes.words(more)) } }
            @if let Some(quote) = &told.quote { blockquote { @if is_click { (eyes.private(quote)) }
                @else { (eyes.words(quote)) } } }
            p.small.faint { "received " (when(*received_at)) ", " (late) " later · event " (event) " · "
                (line(name_of(queue))) ", SQS " (line(sqs_message_id))
                @for (name, id) in ids { @if let Some(id) = id { " · " (name) " " (line(id)) } } }
        }
    }
}

/// What the log row says, and what else there is of its id.
fn about(mail: &Mail, eyes: Eyes) -> Markup {
    let (log, traces) = (&mail.log, &mail.traces);
    let lines = [
        ("Template", &log.template_name),
        ("Campaign", &log.campaign_id),
        ("Configuration set", &log.configuration_set),
    ];
    html! {
        dl {
            dt { "Log row" } dd { (log.uuid) ", written " (when(log.created_at)) }
            dt { "Id of SES" }
            dd { @match &log.aws_message_id { Some(id) => (line(id)), None => span.faint { "not known" } } }
            @if let Some(sender) = &log.sender { dt { "From" } dd { (eyes.address(sender)) } }
            dt { "To" } dd { @for (n, to) in log.recipients.iter().take(100).enumerate() { @if n > 0 { ", " }
                (eyes.address(to)) } @if log.recipients.len() > 100 { " and " (log.recipients.len() - 100) " more" } }
            @for (name, value) in lines { @if let Some(value) = value { dt { (name) } dd { (line(value)) } } }
            @if let Some(orphans) = &traces.orphans {
                dt { "Orphans" }
                dd { span.warn { (grouped(orphans.events.unsigned_abs())) " events with its id are not attached yet" }
                    @if let Some(id) = &log.aws_message_id { ": "
                        a href=(link("/stuck/orphan", [("id", id.as_str())])) { "look" } } }
            }
            @if !traces.quarantined.is_empty() {
                dt { "Quarantine" } dd { @for body in &traces.quarantined { a href={ "/stuck/body/"
                    (body.uuid) } { (line(&body.reason)) } " seen " (when(body.last_seen_at)) br; } }
            }
        }
    }
}
