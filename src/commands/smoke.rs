//! `ses-ledger smoke`: does it work from end to end? Sends to the mailbox simulator of SES, and waits for the rows.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::ask;
use super::screen::{Screen, wrapped};
use crate::{
    aws::{
        self,
        ses::{Mail, Refused, Ses},
    },
    cli::{DatabaseArgs, QueueArgs, duration},
    local::story::LogRow,
    postgres::{
        Postgres, sender,
        smoke::{self, Seen, TAG},
    },
    readable::span,
    sqs::{Access, SqsSettings},
};

/// How often to look for the rows.
const LOOK: Duration = Duration::from_millis(250);

/// Arguments of `smoke`.
#[derive(Args)]
pub struct SmokeArgs {
    /// Address to send from; SES has to know it or its domain
    #[arg(long, value_name = "ADDRESS", required_unless_present = "clean", help_heading = "SES")]
    from: Option<String>,

    /// Configuration set to send with [default: that of the identity]
    #[arg(long, value_name = "NAME", help_heading = "SES")]
    config_set: Option<String>,

    /// Which of the simulator's mailboxes to send to; several with commas between them
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Mailbox::ALL, hide_default_value = true, value_name = "MAILBOX", help_heading = "SES")]
    only: Vec<Mailbox>,

    /// How long to wait for the rows
    #[arg(long, default_value = "120s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,

    /// SES message tag in which a mail carries the uuid of its own log row, as for the worker
    #[arg(long, env, default_value = "email_log_uuid", value_name = "TAG", help_heading = "SES")]
    log_id_tag: String,

    #[command(flatten)]
    database: DatabaseArgs,

    #[command(flatten)]
    queue: QueueArgs,

    /// Leave the rows where they are
    #[arg(long)]
    keep: bool,

    /// Send nothing: remove what earlier smoke tests have left
    #[arg(long, conflicts_with_all = ["from", "keep"])]
    clean: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl SmokeArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()?;
        match self.from.as_ref().is_some_and(|from| !from.contains('@')) {
            true => Err("--from has to be an address, like shop@example.com".to_owned()),
            false => Ok(()),
        }
    }
}

/// A mailbox of the simulator. There is no other recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mailbox {
    /// Takes the mail
    Success,
    /// Sends it back for good
    Bounce,
    /// Takes it, and calls it spam
    Complaint,
    /// Takes it, and answers that nobody is there
    Ooto,
    /// Is on SES's suppression list
    Suppressionlist,
}

impl Mailbox {
    const ALL: [Self; 5] = [Self::Success, Self::Bounce, Self::Complaint, Self::Ooto, Self::Suppressionlist];

    fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Bounce => "bounce",
            Self::Complaint => "complaint",
            Self::Ooto => "ooto",
            Self::Suppressionlist => "suppressionlist",
        }
    }

    fn address(self, mark: &str) -> String {
        format!("{}+{mark}@simulator.amazonses.com", self.name())
    }

    /// What has to come of a mail to it: kinds, and the type of a bounce.
    fn expects(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            Self::Success => &[("send", None), ("delivery", None)],
            Self::Bounce | Self::Suppressionlist => &[("send", None), ("bounce", Some("Permanent"))],
            Self::Complaint => &[("send", None), ("delivery", None), ("complaint", None)],
            Self::Ooto => &[("send", None), ("delivery", None), ("bounce", Some("Transient"))],
        }
    }
}

/// A mail that was sent.
struct Sent {
    mailbox: Mailbox,
    log_uuid: Uuid,
    message_id: String,
    called_at: OffsetDateTime,
}

/// What has come of a mail.
struct Outcome<'a> {
    sent: &'a Sent,
    seen: Vec<&'a Seen>,
    /// What was expected and has not come.
    missing: Vec<&'static str>,
}

/// Sends, waits, compares.
///
/// # Errors
/// If the database cannot be asked or the region cannot be told.
pub async fn run(args: SmokeArgs) -> anyhow::Result<ExitCode> {
    let screen = Screen::new(args.json);
    let postgres = match ask::connect(&args.database.settings()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let Some(from) = &args.from else { return clean(&screen, &postgres, args.json).await };
    // Before anything is sent: whether we could see it arrive.
    smoke::seen(&postgres, &[]).await?;
    let ses = ses(&args.queue).await?;
    let mark = mark();
    screen.say(&format!("ses-ledger smoke {mark}: {} mails to the simulator of SES\n", args.only.len()));
    let sent = match send_all(&args, from, &mark, &ses, &postgres).await? {
        Ok(sent) => sent,
        Err((mailbox, refused)) => {
            eprintln!("error: SES does not take the mail to {}: {} {}", mailbox.name(), refused.code, refused.message);
            eprintln!("{}", wrapped("  to mend it: ", &advice(&refused, from)));
            tidy(&screen, &postgres, &mark, args.keep).await?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let seen = wait(&screen, &postgres, &sent, args.timeout).await?;
    let outcomes = outcomes(&sent, &seen);
    let is_complete = outcomes.iter().all(|it| it.missing.is_empty());
    show(&screen, &outcomes);
    // What has not come yet finds its row later.
    let removed = tidy(&screen, &postgres, &mark, args.keep || !is_complete).await?;
    postgres.close().await;
    match is_complete {
        true => screen.say(&screen.green("It works from end to end.")),
        false => screen.say(&screen.red(&missing(&seen, args.config_set.as_deref(), args.timeout))),
    }
    if args.json {
        writeln!(io::stdout(), "{}", document(&mark, &outcomes, removed))?;
    }
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn clean(screen: &Screen, postgres: &Postgres, as_json: bool) -> anyhow::Result<ExitCode> {
    let Some(removed) = smoke::remove(postgres, None).await? else {
        anyhow::bail!("this login may not remove rows: use the one that migrates");
    };
    match as_json {
        true => writeln!(io::stdout(), "{}", json!({ "removed": removed }))?,
        false => screen.say(&format!("{removed} mails of earlier smoke tests are removed, with their events.")),
    }
    Ok(ExitCode::SUCCESS)
}

/// SES where the queue is, if one is named.
async fn ses(queue: &QueueArgs) -> anyhow::Result<Ses> {
    let by_region = || SqsSettings {
        queue_url: "https://sqs.amazonaws.com/".to_owned(),
        access: Access::Default,
        region: queue.region.clone(),
        endpoint_url: queue.endpoint_url.clone(),
        receive_wait: Duration::ZERO,
        visibility_timeout: Duration::ZERO,
    };
    let place = queue.sqs().into_iter().next().unwrap_or_else(by_region).place();
    let place = place.context("cannot tell where SES is: set AWS_REGION, or QUEUE_URL")?;
    let config = aws::config(&Access::Default, place.region, place.endpoint, place.local).await;
    Ok(Ses::new(&aws::with_endpoints_of_services(config)))
}

/// What the addresses and the rows of this run have in common.
fn mark() -> String {
    // The last digits of a version 7 are as random as they come.
    Uuid::now_v7().simple().to_string().chars().skip(20).collect()
}

type Sending = Result<Vec<Sent>, (Mailbox, Refused)>;

/// As an application does: first the row, then the mail with the row's uuid in its tag.
async fn send_all(args: &SmokeArgs, from: &str, mark: &str, ses: &Ses, postgres: &Postgres) -> anyhow::Result<Sending> {
    let mut all = Vec::new();
    for &mailbox in &args.only {
        let recipient = mailbox.address(mark);
        let subject = format!("ses-ledger smoke {mark}: {}", mailbox.name());
        let log_uuid = Uuid::now_v7();
        let row = LogRow {
            uuid: log_uuid,
            aws_message_id: None,
            sender: from.to_owned(),
            recipients: vec![recipient.clone()],
            subject: subject.clone(),
            template_name: None,
            campaign_id: None,
            configuration_set: args.config_set.clone(),
            tags: json!({ TAG: mark }),
        };
        let written = sender::write_logs(postgres, std::slice::from_ref(&row)).await;
        written.context("the login needs ses_ledger_sender, as the application's")?;
        let uuid = log_uuid.to_string();
        let mail = Mail {
            sender: from,
            recipient: &recipient,
            subject: &subject,
            text: "Sent by ses-ledger to see whether what SES reports arrives.",
            configuration_set: args.config_set.as_deref(),
            tag: (&args.log_id_tag, &uuid),
        };
        let called_at = OffsetDateTime::now_utc();
        match ses.send(&mail).await? {
            Ok(message_id) => all.push(Sent { mailbox, log_uuid, message_id, called_at }),
            Err(refused) => return Ok(Err((mailbox, refused))),
        }
    }
    Ok(Ok(all))
}

/// Looks until everything has come, or the time is up.
async fn wait(screen: &Screen, postgres: &Postgres, sent: &[Sent], patience: Duration) -> anyhow::Result<Vec<Seen>> {
    let (begin, logs) = (Instant::now(), sent.iter().map(|it| it.log_uuid).collect::<Vec<_>>());
    loop {
        let seen = smoke::seen(postgres, &logs).await?;
        let missing: usize = outcomes(sent, &seen).iter().map(|it| it.missing.len()).sum();
        if missing == 0 || begin.elapsed() >= patience {
            return Ok(seen);
        }
        if screen.terminal {
            screen.redraw(&format!("  {} s: waiting for {missing} events", begin.elapsed().as_secs()), false);
        }
        sleep(LOOK).await;
    }
}

fn outcomes<'a>(sent: &'a [Sent], seen: &'a [Seen]) -> Vec<Outcome<'a>> {
    let outcome = |sent: &'a Sent| {
        let seen: Vec<&Seen> = seen.iter().filter(|it| it.log_uuid == sent.log_uuid).collect();
        let has = |kind: &str, bounce: Option<&str>| {
            seen.iter().any(|it| it.event_type == kind && bounce.is_none_or(|of| it.bounce_type.as_deref() == Some(of)))
        };
        let expected = sent.mailbox.expects().iter();
        let missing = expected.filter(|(kind, bounce)| !has(kind, *bounce)).map(|(kind, _)| *kind).collect();
        Outcome { sent, seen, missing }
    };
    sent.iter().map(outcome).collect()
}

/// The rows of this run, unless they are to stay. Returns whether they are gone.
async fn tidy(screen: &Screen, postgres: &Postgres, mark: &str, keep: bool) -> anyhow::Result<bool> {
    if keep {
        screen.say("The rows stay. To remove them, as the login that migrates:\n  ses-ledger smoke --clean\n");
        return Ok(false);
    }
    let removed = smoke::remove(postgres, Some(mark)).await?.is_some();
    match removed {
        true => screen.say("The rows of these mails are removed.\n"),
        false => screen.say(
            "The rows stay: this login may not remove any. As the login that migrates:\n  ses-ledger smoke --clean\n",
        ),
    }
    Ok(removed)
}

/// One line for each event: how long it took from the call to the event, to the worker, to the row.
fn show(screen: &Screen, outcomes: &[Outcome<'_>]) {
    screen.say(&screen.bold("  mailbox         event     to SES    to worker to row"));
    for outcome in outcomes {
        let mut name = outcome.sent.mailbox.name();
        for seen in &outcome.seen {
            let [event, worker, row] = hops(outcome.sent, seen).map(|time| span(time.try_into().unwrap_or_default()));
            let line = format!("  {name:<16}{:<10}{event:<10}{worker:<10}{row:<8}{}", seen.event_type, bounce(seen));
            screen.say(line.trim_end());
            name = "";
        }
        for missing in &outcome.missing {
            screen.say(&screen.red(&format!("  {name:<16}{missing:<10}missing")));
            name = "";
        }
    }
    screen.say("\n  to SES: from our call to what happened; to worker: until it was received;");
    screen.say("  to row: until it was being stored. Told by the clocks of all of these.\n");
}

/// What kind of bounce it is, as short as it can be told.
fn bounce(seen: &Seen) -> String {
    match (&seen.bounce_type, &seen.bounce_subtype) {
        (Some(kind), Some(subtype)) if subtype == "General" => format!("{kind} {subtype}"),
        (_, Some(only)) | (Some(only), None) => only.clone(),
        (None, None) => String::new(),
    }
}

/// The parts of an event's way. Clocks differ: a part may be negative.
fn hops(sent: &Sent, seen: &Seen) -> [time::Duration; 3] {
    [seen.occurred_at - sent.called_at, seen.received_at - seen.occurred_at, seen.stored_at - seen.received_at]
}

fn missing(seen: &[Seen], config_set: Option<&str>, timeout: Duration) -> String {
    let set = config_set.map_or_else(String::new, |name| format!(" --config-set {name}"));
    let what = match seen {
        [] => "Nothing came within {}: does a worker run? To look at each hop:",
        _ => "Something did not come within {}. To look at each hop:",
    };
    format!("{}\n  ses-ledger doctor{set}", what.replace("{}", &span(timeout)))
}

/// What to do about a mail that SES did not take.
fn advice(refused: &Refused, from: &str) -> String {
    let (code, said) = (refused.code.as_str(), refused.message.as_str());
    let domain = from.rsplit('@').next().unwrap_or(from);
    match code {
        _ if said.contains("not verified") => format!(
            "verify {domain} (aws sesv2 create-email-identity --email-identity {domain}) in the region that you send from; \
             in the sandbox, too, the simulator can be written to once the sender is verified"
        ),
        _ if aws::is_denied(code) => "these credentials lack ses:SendEmail for this sender and configuration set: take the smoke \
                                      role of infra/pipeline.yaml"
            .to_owned(),
        "AccountSuspendedException" | "SendingPausedException" => {
            "sending is switched off for the account or the configuration set: ses-ledger doctor says for which".to_owned()
        }
        _ if code.contains("NotFound") || said.contains("onfiguration set") => {
            "name a configuration set that is there, in this region: aws sesv2 list-configuration-sets".to_owned()
        }
        _ if code.contains("TooManyRequests") || code.contains("LimitExceeded") || code.contains("Throttling") => {
            "the account sends as fast as it may, or has sent as much as it may today: try again later, or with --only success"
                .to_owned()
        }
        "no answer" => "look whether SES can be reached from here, and whether AWS_REGION is right".to_owned(),
        _ => "ses-ledger doctor looks at the account, the identity and the configuration set".to_owned(),
    }
}

fn document(mark: &str, outcomes: &[Outcome<'_>], removed: bool) -> Value {
    let event = |sent: &Sent, seen: &Seen| {
        let [event, worker, row] = hops(sent, seen).map(|time| time.whole_milliseconds() as i64);
        json!({"event_type": seen.event_type, "bounce_type": seen.bounce_type, "bounce_subtype": seen.bounce_subtype,
               "to_ses_ms": event, "to_worker_ms": worker, "to_row_ms": row})
    };
    let mail = |it: &Outcome<'_>| {
        json!({"mailbox": it.sent.mailbox, "log_uuid": it.sent.log_uuid.to_string(), "aws_message_id": it.sent.message_id,
               "events": it.seen.iter().map(|seen| event(it.sent, seen)).collect::<Vec<_>>(), "missing": it.missing})
    };
    let is_complete = outcomes.iter().all(|it| it.missing.is_empty());
    json!({"mark": mark, "complete": is_complete, "removed": removed, "mails": outcomes.iter().map(mail).collect::<Vec<_>>()})
}
