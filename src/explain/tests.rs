use time::macros::datetime;

use super::*;
use crate::postgres::mails::{Fact, InQuarantine, Log, Outcome, Waiting};

const SENT: OffsetDateTime = datetime!(2026-11-07 15:20:41 UTC);
const ID: &str = "0102019ae0000000-01234567-89ab-cdef-0123-456789abcdef-000000";

fn after(seconds: i64) -> OffsetDateTime {
    SENT + time::Duration::seconds(seconds)
}

/// A mail to one recipient, of which this became.
fn mail(status: &str, events: Vec<MailEvent>) -> Mail {
    let log = Log {
        uuid: Uuid::from_u128(1),
        aws_message_id: Some(ID.to_owned()),
        sender: None,
        recipients: vec!["ada@example.net".to_owned()],
        subject: None,
        template_name: None,
        campaign_id: None,
        configuration_set: Some("main".to_owned()),
        created_at: SENT,
        sent_at: Some(SENT),
        status: status.to_owned(),
        bounce_class: None,
        open_count: 0,
        click_count: 0,
        addresses: Vec::new(),
    };
    let events_in_all = events.len() as i64;
    let traces = Traces { quarantine_seen: true, ..Traces::default() };
    Mail { log, lines: vec![line("ada@example.net", status)], events, events_in_all, traces }
}

fn line(recipient: &str, status: &str) -> Line {
    Line {
        log_uuid: Uuid::from_u128(1),
        aws_message_id: None,
        recipient: recipient.to_owned(),
        subject: None,
        template_name: None,
        campaign_id: None,
        at: SENT,
        outcome: Outcome { status: status.to_owned(), ..Outcome::default() },
        facts: Vec::<Fact>::new(),
        recipients: 1,
        mail_status: status.to_owned(),
    }
}

fn event(kind: &str) -> MailEvent {
    MailEvent {
        uuid: Uuid::from_u128(2),
        event_type: kind.to_owned(),
        occurred_at: after(2),
        time_source: "event".to_owned(),
        recipient: "ada@example.net".to_owned(),
        candidate: false,
        bounce_type: None,
        bounce_subtype: None,
        smtp_status: None,
        diagnostic: None,
        complaint_type: None,
        complaint_subtype: None,
        delay_type: None,
        link: None,
        ip: None,
        user_agent: None,
        bot: None,
        feedback_id: None,
        reporting_mta: None,
        configuration_set: Some("main".to_owned()),
        has_payload: true,
        queue: "arn:aws:sqs:eu-west-1:123456789012:ses-events".to_owned(),
        sqs_message_id: "sqs-1".to_owned(),
        sns_message_id: None,
        eventbridge_id: None,
        received_at: after(4),
        stored_at: after(4),
    }
}

fn bounce(class: &str, subtype: &str, status: Option<&str>, diagnostic: Option<&str>) -> MailEvent {
    MailEvent {
        bounce_type: Some(class.to_owned()),
        bounce_subtype: Some(subtype.to_owned()),
        smtp_status: status.map(str::to_owned),
        diagnostic: diagnostic.map(str::to_owned),
        ..event("bounce")
    }
}

/// A thousand mails of that time have all that mails have; events take four seconds.
fn usual() -> Context {
    let neighbours = Neighbours {
        mails: 1_000,
        sent: 1_000,
        delivered: 950,
        bounced: 30,
        complained: 2,
        delayed: 10,
        opened: 400,
        clicked: 100,
        delivered_within: Some(5_000),
    };
    Context {
        lag: Some(Duration::from_secs(4)),
        newest_event_at: Some(after(100_000)),
        neighbours,
        same_set: neighbours,
    }
}

fn later() -> OffsetDateTime {
    after(100_000)
}

/// The verdict, and who must act.
fn check_bounce(event: MailEvent, status: &str, words: &str, who: Who) {
    let explanation = explain(&mail(status, vec![event]), &usual(), later());
    assert!(explanation.verdict.contains(words), "{}", explanation.verdict);
    assert_eq!(explanation.who_must_act[0].who, who, "{}", explanation.verdict);
}

/// `Debug` says nothing of a mail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it is plain data")
}

#[test]
fn a_bounce_says_why_and_who_must_act() {
    let permanent = |subtype, status| bounce("Permanent", subtype, status, None);
    let transient = |subtype, status| bounce("Transient", subtype, status, None);
    check_bounce(permanent("General", Some("5.1.1")), "bounced", "there is no such mailbox", Who::Sender);
    check_bounce(permanent("General", Some("5.7.1")), "bounced", "refused by the policy", Who::Sender);
    check_bounce(permanent("General", Some("5.4.6")), "bounced", "in a circle", Who::RecipientsProvider);
    check_bounce(permanent("General", Some("5.7.99")), "bounced", "security or policy", Who::Sender);
    check_bounce(permanent("General", None), "bounced", "refused it for good", Who::Sender);
    check_bounce(transient("MailboxFull", Some("4.2.2")), "soft_bounced", "the mailbox is full", Who::AddressOwner);
    check_bounce(transient("General", Some("4.2.2")), "soft_bounced", "the mailbox is full", Who::AddressOwner);
    check_bounce(transient("General", Some("4.4.1")), "soft_bounced", "does not answer", Who::RecipientsProvider);
    check_bounce(transient("General", None), "soft_bounced", "refused it for now", Who::Sender);
    check_bounce(bounce("Undetermined", "Undetermined", None, None), "bounced", "did not say clearly", Who::Sender);
    check_bounce(bounce("Novel", "Thing", None, None), "bounced", "did not say clearly", Who::Sender);
}

#[test]
fn what_ses_did_not_even_try_did_not_come_back() {
    for subtype in ["OnAccountSuppressionList", "OnTenantSuppressionList", "Suppressed", "UnsubscribedRecipient"] {
        let event = bounce("Permanent", subtype, Some("5.1.1"), Some("Amazon SES did not send the message"));
        let explanation = explain(&mail("bounced", vec![event]), &usual(), later());
        assert!(explanation.verdict.starts_with("SES did not send it: "), "{subtype}: {}", explanation.verdict);
        assert!(explanation.lines[0].what.starts_with("SES did not send"), "{subtype}: {}", explanation.lines[0].what);
        assert!(
            !explanation.lines[0].more[0].contains("no such mailbox"),
            "the list's status says nothing of the mailbox"
        );
    }
    let complaint = MailEvent { complaint_subtype: Some("OnAccountSuppressionList".to_owned()), ..event("complaint") };
    check_bounce(complaint, "bounced", "on your account's suppression list", Who::Sender);
}

#[test]
fn the_status_is_read_from_the_servers_words_if_ses_gives_none() {
    let event = bounce("Permanent", "General", Some(" 5.1."), Some("smtp; 550-5.1.1 No such mailbox.\n550 5.1.1 Bye."));
    let explanation = explain(&mail("bounced", vec![event]), &usual(), later());
    assert_eq!(explanation.lines[0].more, ["Permanent, General, 5.1.1: there is no such mailbox."]);
    assert_eq!(explanation.lines[0].quote.as_deref(), Some("smtp; 550-5.1.1 No such mailbox. 550 5.1.1 Bye."));
    for not_one in ["10.5.1.1", "5.1", "3.1.1", "5.1.1111", "5..1"] {
        let event = bounce("Permanent", "General", None, Some(&format!("550 {not_one} no")));
        assert_eq!(smtp_status(&event), None, "{not_one}");
    }
}

#[test]
fn an_out_of_office_reply_is_no_bounce() {
    let events = vec![event("delivery"), bounce("Transient", "General", None, None)];
    let explanation = explain(&mail("delivered", events), &usual(), later());
    assert!(explanation.verdict.contains("An automatic answer came back"), "{}", explanation.verdict);
    assert!(explanation.lines[1].what.contains("automatic answer"), "{}", explanation.lines[1].what);
    assert_eq!(
        explanation.who_must_act,
        [Action { who: Who::Nobody, what: "all is well".to_owned(), recipients: vec![] }]
    );
}

#[test]
fn complaints_delays_rejects_and_failures_have_their_words() {
    let complaint = |kind: &str| MailEvent { complaint_type: Some(kind.to_owned()), ..event("complaint") };
    check_bounce(complaint("abuse"), "complained", "called it spam", Who::Sender);
    check_bounce(complaint("fraud"), "complained", "phishing", Who::Sender);
    check_bounce(event("complaint"), "complained", "without its kind", Who::Sender);
    let delay = |kind: &str| MailEvent { delay_type: Some(kind.to_owned()), ..event("delivery_delay") };
    check_bounce(delay("MailboxFull"), "delayed", "the mailbox is full", Who::AddressOwner);
    check_bounce(delay("IPFailure"), "delayed", "blocks or slows down", Who::Sender);
    check_bounce(delay("SomethingNew"), "delayed", "put it off", Who::Nobody);
    check_bounce(event("reject"), "rejected", "refused to send it", Who::Sender);
    check_bounce(event("rendering_failure"), "failed", "could not be filled in", Who::Sender);
    let not_spam = explain(&mail("delivered", vec![complaint("not-spam")]), &usual(), later());
    assert!(not_spam.lines[0].what.contains("is not spam"), "{}", not_spam.lines[0].what);
}

#[test]
fn each_recipient_of_several_has_a_share_of_the_verdict() {
    let to = |whom: &str, event: MailEvent| MailEvent { recipient: whom.to_owned(), ..event };
    let events = vec![
        to("ada@example.net", event("delivery")),
        to("Bob@example.net", bounce("Permanent", "General", Some("5.1.1"), None)),
        to("cem@example.net", bounce("Transient", "MailboxFull", Some("4.2.2"), None)),
    ];
    let lines = vec![
        line("ada@example.net", "delivered"),
        line("bob@example.net", "bounced"),
        line("cem@example.net", "soft_bounced"),
    ];
    let mail = Mail { lines, ..mail("bounced", events) };
    let explanation = explain(&mail, &usual(), later());
    assert_eq!(explanation.verdict, "It went to 3 recipients: 1 bounced, 1 delivered, 1 soft-bounced.");
    let whom: Vec<_> =
        explanation.who_must_act.iter().map(|action| (action.who, action.recipients.join(" "))).collect();
    assert_eq!(whom, [(Who::Sender, "bob@example.net".to_owned()), (Who::AddressOwner, "cem@example.net".to_owned())]);
}

/// What is said to be missing, and a part of the reason.
fn check_missing(mail: &Mail, context: &Context, now: OffsetDateTime, what: &str, why: &str) {
    let missing = explain(mail, context, now).missing;
    let found = missing.iter().find(|missing| missing.what.contains(what));
    assert!(found.is_some_and(|missing| missing.why.contains(why)), "{what}: {why}: {}", json(&missing));
}

#[test]
fn what_is_not_there_has_a_reason() {
    let unlinked = |status| {
        let mut mail = mail(status, vec![]);
        (mail.log.aws_message_id, mail.log.sent_at) = (None, None);
        mail
    };
    let (queued, any) = (mail("queued", vec![]), "any event");
    check_missing(
        &queued,
        &usual(),
        after(10),
        any,
        "not yet: the mail is 10 s old, and an event is usually here 4 s after",
    );
    check_missing(&unlinked("queued"), &usual(), after(10), any, "not yet");
    check_missing(&unlinked("queued"), &usual(), later(), any, "it was never sent");
    let mut foreign = queued.clone();
    foreign.log.aws_message_id = Some("20261107.1234@shop".to_owned());
    check_missing(&foreign, &usual(), later(), any, "has not the form of SES's ids");
    let silent = Context { newest_event_at: Some(after(-100)), ..usual() };
    check_missing(&queued, &silent, later(), any, "stands still");
    check_missing(&queued, &Context { newest_event_at: None, ..usual() }, later(), any, "has ever come");
    let mut without_set = queued.clone();
    without_set.log.configuration_set = None;
    check_missing(&without_set, &usual(), later(), any, "names no configuration set");
    let set = Neighbours { mails: 50, ..Neighbours::default() };
    check_missing(&queued, &Context { same_set: set, ..usual() }, later(), any, "none of the 50 mails before it with");
    check_missing(&queued, &usual(), later(), any, "dlq peek");
}

#[test]
fn a_kind_that_no_mail_has_is_not_reported() {
    let sent = mail("sent", vec![event("send")]);
    let no_deliveries = Context { same_set: Neighbours { delivered: 0, ..usual().same_set }, ..usual() };
    check_missing(&sent, &no_deliveries, later(), "delivery or bounce", "DELIVERY is not among the kinds");
    check_missing(&sent, &usual(), after(10), "delivery or bounce", "not yet");
    check_missing(&sent, &usual(), later(), "delivery or bounce", "gives up after 14 hours");
    let few = Context { same_set: Neighbours { mails: 5, delivered: 0, ..usual().same_set }, ..usual() };
    check_missing(&sent, &few, later(), "delivery or bounce", "gives up after 14 hours");
    let delivered = mail("delivered", vec![event("delivery")]);
    let no_sends = Context { same_set: Neighbours { sent: 0, ..usual().same_set }, ..usual() };
    check_missing(&delivered, &no_sends, later(), "SES accepted it", "SEND is not among the kinds");
    check_missing(&delivered, &usual(), later(), "SES accepted it", "SES keeps no order");
    let untracked = Context { same_set: Neighbours { opened: 0, clicked: 0, ..usual().same_set }, ..usual() };
    check_missing(&delivered, &untracked, later(), "opens and clicks", "not tracked");
    check_missing(&delivered, &usual(), later(), "opens and clicks", "no sign that it was not read");
    let late = mail("delayed", vec![event("delivery_delay")]);
    check_missing(&late, &usual(), after(7_200), "delivery or bounce", "SES tries for up to 14 hours");
}

#[test]
fn what_lies_elsewhere_is_named() {
    let mut queued = mail("queued", vec![]);
    queued.traces.orphans = Some(Waiting { events: 2, kinds: vec!["send".to_owned()], since: after(1) });
    check_missing(&queued, &usual(), after(100), "2 events that wait", "within seconds");
    check_missing(&queued, &usual(), later(), "2 events that wait", "is a worker running");
    check_missing(&queued, &usual(), later(), "any event", "not attached");
    let body = InQuarantine {
        uuid: Uuid::from_u128(7),
        reason: "invalid_json".to_owned(),
        failed_at: "$".to_owned(),
        last_seen_at: after(3),
    };
    let traces = Traces { quarantined: vec![body], quarantine_seen: false, ..Traces::default() };
    let queued = Mail { traces: traces.clone(), ..mail("queued", vec![]) };
    check_missing(&queued, &usual(), later(), "a body in quarantine", "ses-ledger quarantine show 00000000-0000");
    check_missing(&queued, &usual(), later(), "the whole quarantine", "newest 32 MB");
    let known = unknown(&traces, Some(after(0)), after(60));
    assert!(
        known[0].why.contains("invalid_json") && known[2].why.contains("60 s ago") || known[2].why.contains("1 min"),
        "{}",
        json(&known)
    );
    assert!(
        unknown(&Traces { quarantine_seen: true, ..Traces::default() }, None, later())[0].what.contains("no trace")
    );
    let emptied = mail("delivered", vec![MailEvent { has_payload: false, ..event("delivery") }]);
    check_missing(&emptied, &usual(), later(), "the original JSON of one event", "RETENTION_PAYLOAD");
}

#[test]
fn nothing_of_a_mail_moves_the_cursor_or_turns_the_writing() {
    let hostile = || Some(format!("a\x1b[2J\u{9b}31m\u{202e}b\r\nc{}", "x".repeat(10_000)));
    let event = |kind: &str| MailEvent {
        recipient: hostile().unwrap_or_default(),
        bounce_type: hostile(),
        bounce_subtype: hostile(),
        smtp_status: hostile(),
        diagnostic: hostile(),
        complaint_type: hostile(),
        delay_type: hostile(),
        link: hostile(),
        ip: hostile(),
        user_agent: hostile(),
        feedback_id: hostile(),
        queue: hostile().unwrap_or_default(),
        sqs_message_id: hostile().unwrap_or_default(),
        ..event(kind)
    };
    for kind in [
        "send",
        "delivery",
        "bounce",
        "complaint",
        "reject",
        "open",
        "click",
        "rendering_failure",
        "delivery_delay",
        "\x1b[31mnew",
    ] {
        for status in ["queued", "sent", "bounced", "complained", "delayed", "rejected", "failed", "delivered"] {
            let mut mail = mail(status, vec![event(kind)]);
            mail.lines = vec![line(&hostile().unwrap_or_default(), status), line("b@example.net", "sent")];
            mail.log.configuration_set = hostile();
            let told = explain(&mail, &usual(), later());
            let json = serde_json::to_value(&told).expect("it is plain data");
            assert_tame(&json, kind);
        }
    }
}

fn assert_tame(value: &serde_json::Value, kind: &str) {
    match value {
        serde_json::Value::String(text) => {
            assert_eq!(*text, one_line(text, 2_000), "{kind}");
        }
        serde_json::Value::Array(all) => all.iter().for_each(|value| assert_tame(value, kind)),
        serde_json::Value::Object(all) => all.values().for_each(|value| assert_tame(value, kind)),
        _ => {}
    }
}
