//! What happened to a mail, in plain words: what each event says, who must act, what is missing and why.
//!
//! Values in, words out. Nothing of a mail gets into them but on one line, without anything that a terminal would obey.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::meanings::Who;
use self::meanings::{Meaning, bounce, complaint, delay, is_suppression, smtp};
use crate::{
    postgres::mails::{Context, Line, Mail, MailEvent, Neighbours, Traces, looks_like_ses},
    readable::{grouped, one_line, second, span},
};

mod meanings;

/// The longest text of a mail that is quoted, in characters.
const QUOTE: usize = 500;
/// Fewer mails than this say nothing about what is usual.
const ENOUGH: i64 = 20;
/// A bounce or a complaint is rare: fewer mails than this need not have any.
const ENOUGH_FOR_RARE: i64 = 1_000;
/// SES gives up then, unless the sender says otherwise.
const SES_TRIES_FOR: Duration = Duration::from_secs(14 * 3600);
/// A sweep attaches orphans in seconds. Whatever waits longer waits for something else.
const SWEPT_WITHIN: Duration = Duration::from_secs(300);

/// What happened to a mail.
#[derive(Clone, Serialize)]
pub struct Explanation {
    /// What became of it, in a sentence or two.
    pub verdict: String,
    /// Who must do what, most urgent first; never empty.
    pub who_must_act: Vec<Action>,
    /// Each event, in order of time.
    pub lines: Vec<Told>,
    /// What one would expect to find and does not, and why.
    pub missing: Vec<Missing>,
}

/// Somebody, and what he has to do.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Action {
    pub who: Who,
    pub what: String,
    /// For these recipients, if not for all.
    pub recipients: Vec<String>,
}

/// One event in words.
#[derive(Clone, Serialize)]
pub struct Told {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// To whom it happened; empty if SES does not say.
    pub recipient: String,
    /// What happened.
    pub what: String,
    /// What it means, in further sentences.
    pub more: Vec<String>,
    /// What the other side said, as it said it.
    pub quote: Option<String>,
    pub evidence: Evidence,
}

/// Where an event is recorded, and on which way it came.
#[derive(Clone, Debug, Serialize)]
pub struct Evidence {
    /// `email_events.uuid`.
    pub event: Uuid,
    pub queue: String,
    pub sqs_message_id: String,
    pub sns_message_id: Option<String>,
    pub eventbridge_id: Option<String>,
    /// SES's id of a bounce or complaint.
    pub feedback_id: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    /// How long after it happened: `2 s`.
    pub late: String,
}

/// Something that is not there.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub what: String,
    pub why: String,
}

/// Puts all that is known of a mail into words.
pub fn explain(mail: &Mail, context: &Context, now: OffsetDateTime) -> Explanation {
    Explanation {
        verdict: verdict(mail),
        who_must_act: actions(mail, context, now),
        lines: mail.events.iter().map(|event| told(event, mail)).collect(),
        missing: missing(mail, context, now),
    }
}

/// What is known of an id that no log row has, in sentences.
pub fn unknown(traces: &Traces, newest_event_at: Option<OffsetDateTime>, now: OffsetDateTime) -> Vec<Missing> {
    let mut known = Vec::new();
    known.extend(traces.orphans.as_ref().map(|orphans| Missing {
        what: format!("{} without a log row: {}", events(orphans.events), one_line(&orphans.kinds.join(", "), QUOTE)),
        why: format!(
            "SES knows this mail, the application has not written its row: the first of them waits since {} UTC. Once the row is \
             there they are attached by themselves. See ses-ledger orphans list",
            second(orphans.since)
        ),
    }));
    known.extend(in_quarantine(traces));
    if known.is_empty() {
        known.push(Missing {
            what: "no trace of it".to_owned(),
            why: "neither a log row, nor a waiting event, nor a quarantined body has this id. Is it the id that SES returned? \
                  SES gives every mail a Message-ID of its own, so the one that the application wrote into the header leads nowhere"
                .to_owned(),
        });
    }
    known.push(newest(newest_event_at, now));
    known
}

fn newest(newest_event_at: Option<OffsetDateTime>, now: OffsetDateTime) -> Missing {
    Missing {
        what: "the newest event of any mail".to_owned(),
        why: match newest_event_at {
            Some(at) => format!("was received {} ago, at {} UTC", span(between(at, now)), second(at)),
            None => "does not exist: no event of any mail has been stored yet".to_owned(),
        },
    }
}

// The verdict, and who must act.

fn verdict(mail: &Mail) -> String {
    match mail.lines.as_slice() {
        [line] => verdict_for(line, mail),
        lines => {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for line in lines {
                *counts.entry(&line.outcome.status).or_default() += 1;
            }
            let mut counts: Vec<_> = counts.into_iter().collect();
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let counts: Vec<String> =
                counts.iter().map(|(status, count)| format!("{count} {}", status.replace('_', "-"))).collect();
            let opened = mail.log.open_count > 0 && lines.iter().all(|line| line.outcome.status != "opened");
            let by_whom = if opened { " It was opened; SES does not say by which of them." } else { "" };
            format!("It went to {} recipients: {}.{by_whom}", lines.len(), counts.join(", "))
        }
    }
}

fn verdict_for(line: &Line, mail: &Mail) -> String {
    let because = deciding(line, mail).map(|event| meaning(event).words).unwrap_or_default();
    let suppressed = deciding(line, mail).is_some_and(is_suppressed);
    match line.outcome.status.as_str() {
        "queued" => "Nothing is known of it yet: no event has come.".to_owned(),
        "sent" => "SES accepted it. Nothing has been reported since.".to_owned(),
        "delayed" => format!("SES is still trying: {because}."),
        "soft_bounced" => format!("It came back, but not for good: {because}."),
        "delivered" => match deciding(line, mail) {
            Some(event) if is_automatic_answer(event, mail) => {
                "It was delivered. An automatic answer came back, as of somebody who is out of office.".to_owned()
            }
            Some(_) => format!("It was delivered. It also came back, but not for good: {because}."),
            None => {
                "It was delivered: the recipient's server took it. Into which folder it put it, nobody outside can see."
                    .to_owned()
            }
        },
        "opened" => "It was delivered, and opened.".to_owned(),
        "clicked" => "It was delivered, and a link in it was clicked.".to_owned(),
        "bounced" if suppressed => format!("SES did not send it: {because}."),
        "bounced" => format!("It was not delivered, and will not be: {because}."),
        "complained" => format!("It was delivered, and a complaint came: {because}."),
        "rejected" => "SES refused to send it, because of what is in it.".to_owned(),
        "failed" => "It was never made: its template could not be filled in.".to_owned(),
        other => format!("Its status is {}.", one_line(other, 40)),
    }
}

/// One action for all recipients with the same trouble. Nobody has to act if there is none.
fn actions(mail: &Mail, context: &Context, now: OffsetDateTime) -> Vec<Action> {
    if is_unsent(mail, context, now) {
        let what = "look why it was not sent, and send it if it is still wanted".to_owned();
        return vec![Action { who: Who::Sender, what, recipients: Vec::new() }];
    }
    let mut actions: Vec<Action> = Vec::new();
    for line in &mail.lines {
        let Some((who, what)) = action_for(line, mail) else { continue };
        let recipient = one_line(&line.recipient, 120);
        match actions.iter_mut().find(|action| action.who == who && action.what == what) {
            Some(action) => action.recipients.push(recipient),
            None => actions.push(Action { who, what, recipients: vec![recipient] }),
        }
    }
    if actions.len() > 1 {
        actions.retain(|action| action.who != Who::Nobody);
    }
    for action in &mut actions {
        if action.recipients.len() == mail.lines.len() {
            action.recipients.clear();
        }
    }
    if actions.is_empty() {
        actions.push(Action { who: Who::Nobody, what: "all is well".to_owned(), recipients: Vec::new() });
    }
    actions.sort_by_key(|action| action.who);
    actions
}

fn action_for(line: &Line, mail: &Mail) -> Option<(Who, String)> {
    let say = |who, what: &str| Some((who, what.to_owned()));
    match line.outcome.status.as_str() {
        "bounced" | "soft_bounced" | "complained" | "delayed" | "rejected" | "failed" => {
            let Meaning { who, advice, .. } = deciding(line, mail).map(meaning)?;
            say(who, advice)
        }
        "queued" | "sent" => say(Who::Nobody, "wait, or see below what is missing"),
        _ => None,
    }
}

/// The event that its outcome follows from.
fn deciding<'a>(line: &Line, mail: &'a Mail) -> Option<&'a MailEvent> {
    let is_hers = |event: &&MailEvent| {
        mail.lines.len() == 1
            || event.recipient.is_empty()
            || event.recipient.to_lowercase() == line.recipient.to_lowercase()
    };
    let of = |wanted: fn(&MailEvent) -> bool| mail.events.iter().filter(is_hers).filter(move |event| wanted(event));
    let is_bounce = |event: &MailEvent| event.event_type == "bounce" || is_suppressed(event);
    match line.outcome.status.as_str() {
        "bounced" => of(is_bounce).max_by_key(|event| is_suppressed(event) || !is_class(event, "transient")),
        "soft_bounced" | "delivered" => of(is_bounce).next_back(),
        "complained" => of(|event| event.event_type == "complaint").next_back(),
        "delayed" => of(|event| event.event_type == "delivery_delay").next_back(),
        "rejected" => of(|event| event.event_type == "reject").next_back(),
        "failed" => of(|event| event.event_type == "rendering_failure").next_back(),
        _ => None,
    }
}

fn is_class(event: &MailEvent, class: &str) -> bool {
    event.bounce_type.as_deref().is_some_and(|of_event| of_event.eq_ignore_ascii_case(class))
}

/// SES did not send, because of a list.
fn is_suppressed(event: &MailEvent) -> bool {
    event.event_type == "complaint" && event.complaint_subtype.is_some()
        || event.event_type == "bounce" && event.bounce_subtype.as_deref().is_some_and(is_suppression)
}

/// A bounce without a status, of a mail that is in the mailbox.
fn is_automatic_answer(event: &MailEvent, mail: &Mail) -> bool {
    let delivered = || mail.events.iter().any(|e| e.event_type == "delivery" && e.recipient == event.recipient);
    is_class(event, "transient") && event.smtp_status.is_none() && event.diagnostic.is_none() && delivered()
}

/// What the event that decides means.
fn meaning(event: &MailEvent) -> Meaning {
    match event.event_type.as_str() {
        "complaint" if event.complaint_subtype.is_some() => {
            bounce("permanent", event.complaint_subtype.as_deref().unwrap_or_default(), None)
        }
        "complaint" => complaint(event.complaint_type.as_deref().unwrap_or_default()),
        "delivery_delay" => delay(event.delay_type.as_deref().unwrap_or_default(), smtp_status(event).as_deref()),
        "reject" => meanings::REJECT,
        "rendering_failure" => meanings::RENDERING_FAILURE,
        _ => bounce(
            event.bounce_type.as_deref().unwrap_or_default(),
            event.bounce_subtype.as_deref().unwrap_or_default(),
            smtp_status(event).as_deref(),
        ),
    }
}

/// The column, or what stands in the server's words: `550 5.1.1 user unknown`.
fn smtp_status(event: &MailEvent) -> Option<String> {
    let is_status = |word: &str| {
        let parts: Vec<&str> = word.split('.').collect();
        let digits = |part: &&str| !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
        parts.len() == 3 && matches!(parts[0], "2" | "4" | "5") && parts.iter().all(digits)
    };
    let column = event.smtp_status.as_deref().map(str::trim).filter(|status| is_status(status));
    let said = || {
        let words = event.diagnostic.as_deref()?.split(|c: char| c.is_whitespace() || c == '-' || c == ';' || c == ',');
        words.take(100).find(|word| is_status(word))
    };
    column.or_else(said).map(str::to_owned)
}

// The events.

fn told(event: &MailEvent, mail: &Mail) -> Told {
    let (what, more) = words(event, mail);
    let quote = match event.event_type.as_str() {
        "click" => event.link.as_deref(),
        _ => event.diagnostic.as_deref(),
    };
    Told {
        at: event.occurred_at,
        recipient: one_line(&event.recipient, 254),
        what,
        more,
        quote: quote.filter(|text| !text.trim().is_empty()).map(|text| one_line(text.trim(), QUOTE)),
        evidence: Evidence {
            event: event.uuid,
            queue: one_line(&event.queue, 200),
            sqs_message_id: one_line(&event.sqs_message_id, 100),
            sns_message_id: event.sns_message_id.as_deref().map(|id| one_line(id, 100)),
            eventbridge_id: event.eventbridge_id.as_deref().map(|id| one_line(id, 100)),
            feedback_id: event.feedback_id.as_deref().map(|id| one_line(id, 100)),
            received_at: event.received_at,
            late: span(between(event.occurred_at, event.received_at)),
        },
    }
}

fn words(event: &MailEvent, mail: &Mail) -> (String, Vec<String>) {
    let mut more = Vec::new();
    let what = match event.event_type.as_str() {
        "send" => "SES accepted the mail".to_owned(),
        "delivery" => "the recipient's server took the mail".to_owned(),
        "bounce" => bounced(event, mail, &mut more),
        "complaint" => complained(event, &mut more),
        "delivery_delay" => {
            more.push(labelled(&[event.delay_type.as_deref()], event));
            "the mail could not be delivered yet; SES goes on trying".to_owned()
        }
        "reject" => "SES refused to send the mail: it found a virus, or what it takes for one".to_owned(),
        "rendering_failure" => "the mail's template could not be filled in; nothing was sent".to_owned(),
        "open" => read(event, "the mail was opened", &mut more),
        "click" => read(event, "a link was clicked", &mut more),
        "subscription" => "the recipient changed which mails to get from a contact list".to_owned(),
        other => format!("{} (SES reported a kind of event that this version does not know)", one_line(other, 64)),
    };
    match event.time_source.as_str() {
        "mail" => more.push("Its own time could not be read; this is the time of the mail.".to_owned()),
        "received" => more.push("It had no time that could be read; this is when it was received.".to_owned()),
        _ => {}
    }
    (what, more)
}

fn bounced(event: &MailEvent, mail: &Mail, more: &mut Vec<String>) -> String {
    let labels = [event.bounce_type.as_deref(), event.bounce_subtype.as_deref()];
    if is_automatic_answer(event, mail) {
        more.push("SES reports out-of-office replies and the like as a transient bounce.".to_owned());
        return "an automatic answer came back; the mail was delivered all the same".to_owned();
    }
    more.push(labelled(&labels, event));
    match event.bounce_type.as_deref().unwrap_or_default().to_lowercase().as_str() {
        _ if is_suppressed(event) => "SES did not send the mail to this address",
        "permanent" => "the mail came back for good",
        "transient" => "the mail came back, though not for good: SES tries no more, a later mail may get through",
        _ => "the mail came back; SES could not tell whether for good",
    }
    .to_owned()
}

fn complained(event: &MailEvent, more: &mut Vec<String>) -> String {
    let labels = [event.complaint_type.as_deref(), event.complaint_subtype.as_deref()];
    more.push(labelled(&labels, event));
    if event.candidate {
        more.push(
            "SES names all recipients at that provider: it was this one or another of them who complained.".to_owned(),
        );
    }
    match (event.complaint_subtype.is_some(), event.complaint_type.as_deref()) {
        (true, _) => "SES did not send the mail to this address".to_owned(),
        (false, Some("not-spam")) => "the recipient said that the mail is not spam".to_owned(),
        (false, _) => "a complaint came from the recipient's provider".to_owned(),
    }
}

fn read(event: &MailEvent, what: &str, more: &mut Vec<String>) -> String {
    match event.bot.as_deref() {
        Some("Likely") => {
            more.push("Likely by a program that looks at mails, not by a person, as SES guesses.".to_owned())
        }
        Some("Unlikely") => more.push("Likely by a person, as SES guesses.".to_owned()),
        _ => {}
    }
    if event.recipient.is_empty() {
        more.push("SES does not say which of the recipients it was.".to_owned());
    }
    let text = |text: &Option<String>, longest| text.as_deref().map(|text| one_line(text, longest));
    match (text(&event.ip, 60), text(&event.user_agent, 200)) {
        (None, None) => {}
        (ip, agent) => {
            let parts: Vec<String> =
                ip.map(|ip| format!("from {ip}")).into_iter().chain(agent.map(|a| format!("with {a}"))).collect();
            more.push(format!("{}.", parts.join(" ")));
        }
    }
    what.to_owned()
}

/// `Permanent, General, 5.1.1: there is no such mailbox.` and what the status says beyond that.
fn labelled(labels: &[Option<&str>], event: &MailEvent) -> String {
    let Meaning { words, advice, .. } = meaning(event);
    let status = smtp_status(event);
    let mut labels: Vec<String> = labels.iter().flatten().map(|label| one_line(label, 60)).collect();
    labels.extend(status.clone());
    // A mail that was not sent has no status of its own, but the one that SES gives it.
    let beyond = status.as_deref().and_then(smtp).filter(|meaning| meaning.advice != advice && !is_suppressed(event));
    let beyond = beyond.map(|meaning| format!(". The status says: {}", meaning.words)).unwrap_or_default();
    match labels.is_empty() {
        true => format!("{}{beyond}.", capital(words)),
        false => format!("{}: {words}{beyond}.", labels.join(", ")),
    }
}

// What is missing.

fn missing(mail: &Mail, context: &Context, now: OffsetDateTime) -> Vec<Missing> {
    let mut missing = Vec::new();
    missing.extend(mail.traces.orphans.as_ref().map(|orphans| attached_soon(mail, orphans.events, orphans.since, now)));
    missing.extend(in_quarantine(&mail.traces));
    let age = between(mail.log.sent_at.unwrap_or(mail.log.created_at), now);
    if mail.events.is_empty() {
        missing.push(no_event(mail, context, age, now));
    } else {
        missing.extend(no_send(mail, context));
        missing.extend(no_outcome(mail, context, age, now));
        missing.extend(not_read(mail, context));
    }
    let shown = mail.events.len() as i64;
    if mail.events_in_all > shown {
        let rest = grouped((mail.events_in_all - shown).unsigned_abs());
        missing.push(missed("later events", format!("there are {rest} more; the first {shown} are shown")));
    }
    let emptied = mail.events.iter().filter(|event| !event.has_payload).count() as i64;
    if emptied > 0 {
        missing.push(missed(
            &format!("the original JSON of {}", events(emptied)),
            "it was not kept (PAYLOAD=none), or has been emptied by retention (RETENTION_PAYLOAD); the rows themselves stay",
        ));
    }
    missing
}

fn missed(what: &str, why: impl Into<String>) -> Missing {
    Missing { what: what.to_owned(), why: why.into() }
}

fn attached_soon(mail: &Mail, count: i64, since: OffsetDateTime, now: OffsetDateTime) -> Missing {
    let waited = between(since, now);
    let why = match waited < SWEPT_WITHIN {
        true => "they came before the log row, and the next sweep attaches them, within seconds".to_owned(),
        false if mail.log.aws_message_id.is_none() => {
            "they carry this mail's uuid, but are still not attached: is a worker running? See ses-ledger status".to_owned()
        }
        false => "a sweep should have attached them long ago: is a worker running? See ses-ledger status, and ses-ledger orphans list"
            .to_owned(),
    };
    missed(&format!("{} that wait since {} UTC", events(count), second(since)), why)
}

fn in_quarantine(traces: &Traces) -> Vec<Missing> {
    let mut missing: Vec<Missing> = traces
        .quarantined
        .iter()
        .map(|body| Missing {
            what: format!("what a body in quarantine says: {}", body.uuid),
            why: format!(
                "it holds this id and could not be understood ({} at {}), last seen {} UTC. See ses-ledger quarantine show {}",
                one_line(&body.reason, 100),
                one_line(&body.failed_at, 100),
                second(body.last_seen_at),
                body.uuid
            ),
        })
        .collect();
    if !traces.quarantine_seen {
        missing.push(missed(
            "a look at the whole quarantine",
            "it is too large for that: only its newest 32 MB were searched for this id",
        ));
    }
    missing
}

/// Not one event: the most likely reason, from the nearest to the farthest.
fn no_event(mail: &Mail, context: &Context, age: Duration, now: OffsetDateTime) -> Missing {
    let why = |why: String| Missing { what: "any event".to_owned(), why };
    let (all, set) = (&context.neighbours, &context.same_set);
    if age < patience(context) {
        return why(format!("not yet: the mail is {} old, and {}", span(age), lag(context)));
    }
    if mail.traces.orphans.is_some() || !mail.traces.quarantined.is_empty() {
        return why("they are there, but not attached: see above".to_owned());
    }
    let Some(id) = &mail.log.aws_message_id else {
        return why(
            "as far as can be seen it was never sent: its log row has no SES id, and no event carried its uuid. Either the \
             application stopped between writing the row and sending, or it neither stores the id that SES returns nor sends the \
             uuid in the tag that LOG_ID_TAG names"
                .to_owned(),
        );
    };
    if !looks_like_ses(id) {
        return why(
            "the id in its log row has not the form of SES's ids. Is it the Message-ID that the application made? Store the id that \
             the call to SES returns (over SMTP: that stands in the line 250 Ok)"
                .to_owned(),
        );
    }
    match context.newest_event_at {
        Some(newest) if newest < mail.log.created_at => {
            return why(format!(
                "no event of any mail has come since before it: the newest was received {} ago. Something on the way from SES to \
                 here stands still: see ses-ledger status and ses-ledger doctor",
                span(between(newest, now))
            ));
        }
        None => return why("no event of any mail has ever come: see ses-ledger doctor".to_owned()),
        Some(_) => {}
    }
    if mail.log.configuration_set.is_none() {
        return why(
            "other mails have events. Its log row names no configuration set: a mail that is sent without one, by an identity that \
             has no default, is not reported at all"
                .to_owned(),
        );
    }
    if set.mails >= ENOUGH && set.sent + set.delivered + set.bounced == 0 && all.sent + all.delivered > 0 {
        return why(format!(
            "none of the {} mails before it with the configuration set {} has an event: its event destination is missing, \
             disabled, or leads elsewhere. See ses-ledger doctor",
            grouped(set.mails.unsigned_abs()),
            quoted(mail.log.configuration_set.as_deref())
        ));
    }
    why("other mails of that time have events. This one may have been sent with another configuration set than its row says, or \
         SES published and the queue's dead letters hold it: see ses-ledger dlq peek"
        .to_owned())
}

fn no_send(mail: &Mail, context: &Context) -> Option<Missing> {
    if mail.events.iter().any(|event| event.event_type == "send") {
        return None;
    }
    let (set, legacy) = (&context.same_set, mail.events.iter().all(|event| event.configuration_set.is_none()));
    let why = match not_reported(set.mails, set.sent, set) {
        Some(of) => format!("SEND is not among the kinds that SES reports: {of}"),
        None if legacy && mail.log.configuration_set.is_none() => {
            "its events name no configuration set: an identity's own notifications tell of bounces, complaints and deliveries only"
                .to_owned()
        }
        None => "other mails have theirs; it may still be on its way, since SES keeps no order".to_owned(),
    };
    Some(missed("the event that SES accepted it (send)", why))
}

/// Recipients of whom nothing final is known.
fn no_outcome(mail: &Mail, context: &Context, age: Duration, now: OffsetDateTime) -> Option<Missing> {
    let open: Vec<&Line> = mail
        .lines
        .iter()
        .filter(|line| matches!(line.outcome.status.as_str(), "queued" | "sent" | "delayed"))
        .collect();
    let (first, set) = (open.first()?, &context.same_set);
    let whom = match open.len() {
        1 if mail.lines.len() == 1 => String::new(),
        1 => format!(" for {}", one_line(&first.recipient, 120)),
        several => format!(" for {several} of {} recipients", mail.lines.len()),
    };
    let delayed = open.iter().any(|line| line.outcome.status == "delayed");
    let why = match not_reported(set.mails, set.delivered, set) {
        _ if delayed && age < SES_TRIES_FOR => {
            format!("not yet: SES tries for up to 14 hours and then reports a bounce; {} have passed", span(age))
        }
        Some(of) => format!("DELIVERY is not among the kinds that SES reports: {of}"),
        None if age < patience(context) => format!("not yet: the mail is {} old; {}", span(age), lag(context)),
        None if context.newest_event_at.is_some_and(|newest| between(newest, now) > Duration::from_secs(3_600)) => {
            newest(context.newest_event_at, now).why + ", so nothing comes in at all: see ses-ledger status"
        }
        None if age < SES_TRIES_FOR => {
            format!("SES may still be trying, which it does for 14 hours, with a delay reported on the way; {} have passed", span(age))
        }
        None if set.mails >= ENOUGH_FOR_RARE && set.bounced == 0 => {
            "it can only have bounced by now, and BOUNCE seems not to be among the kinds that SES reports: no mail of that time has one"
                .to_owned()
        }
        None => {
            "SES gives up after 14 hours and should have reported by now. The event may be among the queue's dead letters (ses-ledger \
             dlq peek), or was published while no destination took it"
                .to_owned()
        }
    };
    Some(missed(&format!("delivery or bounce{whom}"), why))
}

fn not_read(mail: &Mail, context: &Context) -> Option<Missing> {
    let log = &mail.log;
    let delivered = mail.events.iter().any(|event| event.event_type == "delivery");
    if !delivered || log.open_count > 0 || log.click_count > 0 {
        return None;
    }
    let set = &context.same_set;
    Some(missed(
        "opens and clicks",
        match set.delivered >= ENOUGH && set.opened + set.clicked == 0 {
            true => format!(
                "they are not tracked, or OPEN and CLICK are not among the kinds that SES reports: none of the {} delivered mails \
                 before it has any",
                grouped(set.delivered.unsigned_abs())
            ),
            false => {
                "none was reported. That is no sign that it was not read: many programs load no pictures".to_owned()
            }
        },
    ))
}

/// How many mails lack a kind altogether, if they are enough to say so.
fn not_reported(mails: i64, with: i64, neighbours: &Neighbours) -> Option<String> {
    let any = neighbours.sent + neighbours.delivered + neighbours.bounced > 0;
    (mails >= ENOUGH && with == 0 && any).then(|| {
        format!("none of the {} mails before it has one. See ses-ledger doctor", grouped(mails.unsigned_abs()))
    })
}

/// Nothing says that the application ever sent it, and by now something should.
fn is_unsent(mail: &Mail, context: &Context, now: OffsetDateTime) -> bool {
    mail.log.aws_message_id.is_none()
        && mail.events.is_empty()
        && mail.traces.orphans.is_none()
        && between(mail.log.created_at, now) >= patience(context)
}

/// How long nothing need be said.
fn patience(context: &Context) -> Duration {
    let usual = Duration::from_millis(context.same_set.delivered_within.unwrap_or_default().max(0).unsigned_abs());
    let lag = context.lag.unwrap_or_default();
    // A lag of hours is an outage that has just ended, and says nothing about the next mail.
    (usual.min(SES_TRIES_FOR) * 2 + lag.min(SWEPT_WITHIN) * 3).max(Duration::from_secs(60))
}

/// What is usual, in words.
fn lag(context: &Context) -> String {
    let lag = match context.lag {
        Some(lag) => format!("an event is usually here {} after it happened", span(lag)),
        None => "no other event has come lately".to_owned(),
    };
    match context.same_set.delivered_within {
        Some(ms) if ms > 0 => {
            format!("{lag}; nine of ten mails are delivered within {}", span(Duration::from_millis(ms.unsigned_abs())))
        }
        _ => lag,
    }
}

fn between(earlier: OffsetDateTime, later: OffsetDateTime) -> Duration {
    Duration::try_from(later - earlier).unwrap_or_default()
}

fn events(count: i64) -> String {
    match count {
        1 => "one event".to_owned(),
        several => format!("{} events", grouped(several.unsigned_abs())),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn quoted(text: Option<&str>) -> String {
    one_line(text.unwrap_or_default(), 100)
}

impl fmt::Debug for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Explanation")
            .field("lines", &self.lines.len())
            .field("missing", &self.missing.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Action").field("who", &self.who).field("what", &self.what).finish_non_exhaustive()
    }
}

impl fmt::Debug for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Missing").finish_non_exhaustive()
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").field("at", &self.at).field("evidence", &self.evidence).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
