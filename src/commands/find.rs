//! `ses-ledger find`: did she get my mail?

use std::{process::ExitCode, time::Duration};

use clap::{Args, builder::PossibleValuesParser};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    ask,
    screen::{Screen, grouped, one_line, wrapped},
};
use crate::{
    cli::{DatabaseArgs, moment},
    postgres::mails::{self, Fact, Found, Line, STATUSES, Search, Waiting, What},
    readable::{second, span},
};

/// Arguments of `find`.
#[derive(Args, Clone)]
pub struct FindArgs {
    /// An address (also with a name: 'Ada <ada@example.net>'), @example.net for a whole domain, the uuid of a log row, an id of
    /// SES or a Message-ID header, or words that the subject has, in any order and case
    #[arg(value_name = "WORDS")]
    words: Vec<String>,

    /// A part of an address, of the subject or of the campaign's id, as it stands, the case aside; three letters or digits of it
    /// in a row. Where there are many mails, `ses-ledger migrate --with search` makes this fast
    #[arg(long, conflicts_with = "words", value_name = "TEXT", value_parser = part)]
    like: Option<String>,

    /// Only mails from this moment on: 2026-11-21, 2026-11-21T15:30:00Z, or 2d for two days ago
    #[arg(long, value_parser = moment, value_name = "WHEN", help_heading = "Which")]
    since: Option<OffsetDateTime>,

    /// Only mails from before this moment
    #[arg(long, value_parser = moment, value_name = "WHEN", help_heading = "Which")]
    until: Option<OffsetDateTime>,

    /// Only recipients for whom this became of it
    #[arg(long, value_parser = PossibleValuesParser::new(STATUSES), value_name = "STATUS", help_heading = "Which")]
    status: Option<String>,

    /// Only mails made from this template
    #[arg(long, value_name = "NAME", help_heading = "Which")]
    template: Option<String>,

    /// Only mails of this campaign
    #[arg(long, value_name = "ID", help_heading = "Which")]
    campaign: Option<String>,

    /// Entries at most, 1 to 1000; a single mail with more recipients is shown as a whole
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000), value_name = "N", help_heading = "Which")]
    limit: u16,

    /// Go on after this mail: the last page ends with its key
    #[arg(long, value_name = "KEY", help_heading = "Which")]
    after: Option<Uuid>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

impl FindArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.database.check()
    }

    fn search(&self) -> Search {
        Search {
            what: match &self.like {
                Some(text) => What::Part(text.clone()),
                None => What::read(&self.words.join(" ")),
            },
            since: self.since,
            until: self.until,
            status: self.status.clone(),
            template: self.template.clone(),
            campaign: self.campaign.clone(),
            limit: usize::from(self.limit),
            after: self.after,
            // Half of it, so that the statement that is under way then comes to its end.
            patience: self.database.statement_timeout / 2,
        }
    }

    /// The same question about what comes after this mail.
    fn next(&self, key: Uuid) -> String {
        let mut command = "ses-ledger find".to_owned();
        let moment = |at: OffsetDateTime| second(at).replace(' ', "T") + "Z";
        let mut add = |flag: &str, value: Option<String>| {
            if let Some(value) = value {
                command.push_str(&format!(" {flag}{}", quoted(&value)));
            }
        };
        add("", Some(self.words.join(" ")).filter(|words| !words.is_empty()));
        add("--like ", self.like.clone());
        add("--since ", self.since.map(moment));
        add("--until ", self.until.map(moment));
        add("--status ", self.status.clone());
        add("--template ", self.template.clone());
        add("--campaign ", self.campaign.clone());
        add("--limit ", Some(self.limit.to_string()).filter(|_| self.limit != 20));
        add("--after ", Some(key.to_string()));
        command
    }
}

/// Looks for mails and shows them.
///
/// # Errors
/// If the database cannot be read.
pub async fn run(args: FindArgs) -> anyhow::Result<ExitCode> {
    let postgres = match ask::reader(&args.database).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let search = args.search();
    let found = mails::find(&postgres, &search).await?;
    match args.json {
        true => ask::print_json(&found)?,
        false => show(&args, &search, &found),
    }
    Ok(if found.lines.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn show(args: &FindArgs, search: &Search, found: &Found) {
    let screen = Screen::new(false);
    for line in &found.lines {
        screen.say(&entry(line, &screen));
    }
    if found.lines.is_empty() {
        screen.say(&wrapped("", &nothing(search, found)));
    }
    if let Some(orphans) = &found.orphans {
        screen.say(&wrapped("", &hint(orphans)));
    }
    if let Some(to) = found.looked_back_to {
        screen.say(&wrapped(
            "",
            &format!("Looked at the mails since {} UTC; there was no time for older ones.", second(to)),
        ));
        if let Some(set) = found.lacks {
            let set = set.as_str();
            screen
                .say(&wrapped("", &format!("An index would lead to them: ses-ledger migrate --with {set} builds it.")));
        }
    }
    if let Some(key) = found.next {
        screen.say(&format!("More: {}", args.next(key)));
    }
}

/// When, what became of it, for whom; each fact with its time; which mail.
fn entry(line: &Line, screen: &Screen) -> String {
    let recipient = match line.recipient.as_str() {
        "" => "(recipient not known)".to_owned(),
        recipient => one_line(recipient, 120),
    };
    let status = format!("{:<12}", line.outcome.status);
    let status = match line.outcome.status.as_str() {
        "bounced" | "complained" | "rejected" | "failed" => screen.red(&status),
        "delivered" | "opened" | "clicked" => screen.green(&status),
        _ => screen.bold(&status),
    };
    let subject = line.subject.as_deref().map_or_else(|| "(no subject)".to_owned(), |subject| one_line(subject, 39));
    format!(
        "{}  {status}  {recipient}\n{}\n{}",
        second(line.at),
        wrapped("  ", &facts(line)),
        screen.dim(&format!("  {}  {subject}", line.log_uuid)),
    )
}

/// `+3 s delivered, +2 h 5 min opened 3 times`.
fn facts(line: &Line) -> String {
    let told: Vec<String> = line.facts.iter().filter(|fact| fact.fact != "sent").map(|fact| told(fact, line)).collect();
    let mut text = match (told.is_empty(), line.outcome.status.as_str()) {
        (false, _) => told.join(", "),
        (true, "queued") => "no event yet".to_owned(),
        (true, _) => "nothing since it was sent".to_owned(),
    };
    if line.recipients > 1 {
        text.push_str(&format!("; one of {} recipients", line.recipients));
    }
    text
}

fn told(fact: &Fact, line: &Line) -> String {
    let mut text = format!("{} {}", relative(fact.at, line.at), fact.fact);
    if fact.fact == "bounced" {
        let of_line = [&line.outcome.bounce_class, &line.outcome.smtp_status];
        let [class, status] = of_line.map(|text| text.as_deref().map(|text| one_line(text, 20)));
        text.push_str(&class.map(|class| format!(" ({class})")).unwrap_or_default());
        text.push_str(&status.map(|status| format!(" {status}")).unwrap_or_default());
    }
    if fact.times > 1 {
        text.push_str(&format!(" {} times", grouped(fact.times.unsigned_abs())));
    }
    match (fact.by_programs, fact.times) {
        (0, _) => {}
        (programs, times) if programs == times => text.push_str(" (likely by a program)"),
        (programs, _) => text.push_str(&format!(" ({} likely by a program)", grouped(programs.unsigned_abs()))),
    }
    if !fact.hers && !fact.is_of_the_whole_mail() {
        text.push_str(" by whom SES does not say");
    }
    if fact.fact == "complained" && line.outcome.candidate {
        text.push_str(" (this recipient or another one at that provider)");
    }
    text
}

/// `+3 s`; clocks differ, so it may be `-0.2 s`.
pub(super) fn relative(at: OffsetDateTime, base: OffsetDateTime) -> String {
    let sign = if at < base { '-' } else { '+' };
    let distance = Duration::try_from((at - base).abs()).unwrap_or_default();
    format!("{sign}{}", span(distance))
}

fn nothing(search: &Search, found: &Found) -> String {
    let narrowed = search.since.is_some()
        || search.until.is_some()
        || search.status.is_some()
        || search.template.is_some()
        || search.campaign.is_some();
    let what = match &search.what {
        What::Anything => "No mail is known".to_owned(),
        What::Address(address) => format!("No mail to {} is known", one_line(address.as_str(), 120)),
        What::Domain(domain) => format!("No mail to anybody at {} is known", one_line(domain, 120)),
        What::Log(uuid) => format!("No mail has the uuid {uuid}"),
        What::MessageId(id) => format!("No mail has the SES id {}", one_line(id.as_str(), 120)),
        What::Part(text) => format!("No recipient, subject or campaign holds {}", one_line(text, 120)),
        What::Words(words) => format!("No subject holds {}", one_line(&words.join(" "), 120)),
    };
    let advice = match &search.what {
        _ if narrowed => " and fits the other filters. Try it without them.",
        _ if search.after.is_some() => " that is older.",
        _ if found.looked_back_to.is_some() => " among the newest.",
        What::Log(_) | What::MessageId(_) => ": ses-ledger explain says what else is known of it.",
        What::Address(_) => {
            ", neither from the senders' log rows nor from SES. Did the application write its row? \
             ses-ledger orphans list shows events of mails without one."
        }
        What::Domain(_) => ". Only what the senders wrote as recipients is looked at for a domain.",
        What::Part(_) => ": it has to be in one of them as it stands, the case aside.",
        What::Words(_) => ": each word has to be in it as it stands, the case aside.",
        What::Anything => ": no application has written a log row yet.",
    };
    what + advice
}

fn hint(orphans: &Waiting) -> String {
    format!(
        "{}, since {} UTC: {}. See ses-ledger orphans list.",
        match orphans.events {
            1 => "One event to this address waits for the log row of its mail".to_owned(),
            events => format!(
                "{} events to this address wait for the log rows of their mails",
                grouped(events.unsigned_abs())
            ),
        },
        second(orphans.since),
        one_line(&orphans.kinds.join(", "), 200),
    )
}

fn part(text: &str) -> Result<String, String> {
    match mails::has_trigrams(text.trim()) {
        true => Ok(text.trim().to_owned()),
        false => Err("it takes three letters or digits in a row to look for a part of something".to_owned()),
    }
}

/// As a shell takes it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@.-_+:/=,%".contains(c);
    match text.chars().all(plain) && !text.is_empty() {
        true => text.to_owned(),
        false => format!("'{}'", one_line(text, 1_000).replace('\'', r"'\''")),
    }
}
