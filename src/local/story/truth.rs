//! What the database must hold at the end of a story, by the rules that the whole product follows,
//! applied to what the story knows and not to what anybody could read in a body.

use std::collections::{BTreeMap, BTreeSet};

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::Beat;
use super::life::{Happening, Mail, What};
use crate::pipeline::decode::{IgnoreReason, RejectReason};

/// What must be there when every message has been taken in and every orphan been attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// The rows of `email_events`: of the mails that have a log row.
    pub rows: BTreeSet<RowKey>,
    /// The rows of `orphaned_events`: of the mails that never get a log row.
    pub orphans: BTreeSet<RowKey>,
    /// Every log row, with what is known of its mail.
    pub facts: BTreeMap<Uuid, Facts>,
    /// Messages published, of every sort.
    pub messages: usize,
    /// Events decoded: one per recipient and notice, repeats included.
    pub events: usize,
    /// Events that found their row taken.
    pub duplicates: usize,
    /// Messages in which nothing concerns us.
    pub ignored: usize,
    /// Messages with something in them that cannot be understood, also between good events.
    pub rejected: usize,
    /// What must be ignored: why, in words, and how often.
    pub ignored_leaves: BTreeMap<(IgnoreReason, &'static str), usize>,
    /// What must be quarantined: why, in words, and how often. No message has two of them.
    pub rejected_leaves: BTreeMap<(RejectReason, &'static str), usize>,
}

/// What makes a row unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The bare id.
    pub aws_message_id: String,
    /// In snake_case, as it is stored.
    pub kind: String,
    /// Domain in lower case; empty where SES does not say who.
    pub recipient: String,
    /// Unix ms. Opens and clicks only: everything else happens once.
    pub occurred_at_ms: Option<i64>,
    /// Clicks only.
    pub link: Option<String>,
}

/// What is known of a mail: the first time of everything, to the millisecond.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// SES accepted it.
    pub sent_at: Option<OffsetDateTime>,
    /// A recipient's server took it.
    pub delivered_at: Option<OffsetDateTime>,
    /// The times of which the database must hold one; none if the mail was never delayed.
    /// A delay that is reported again keeps whichever report is stored first, so that with
    /// [`second_delays`](super::Mess::second_delays) there can be more than one.
    pub delayed_at: BTreeSet<OffsetDateTime>,
    /// It came back, or SES did not even try because the recipient is suppressed.
    pub bounced_at: Option<OffsetDateTime>,
    /// A recipient complained.
    pub complained_at: Option<OffsetDateTime>,
    /// SES refused it.
    pub rejected_at: Option<OffsetDateTime>,
    /// Its template could not be rendered.
    pub failed_at: Option<OffsetDateTime>,
    /// First open, by whomever or whatever.
    pub opened_at: Option<OffsetDateTime>,
    /// First click, by whomever or whatever.
    pub clicked_at: Option<OffsetDateTime>,
    /// Rows of opens.
    pub open_count: usize,
    /// Rows of clicks.
    pub click_count: usize,
    /// The worst of its bounces.
    pub bounce_class: Option<BounceClass>,
}

/// How bad a bounce is; the last is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BounceClass {
    /// May work another time.
    Transient,
    /// SES cannot tell, or says something we do not know.
    Undetermined,
    /// Will not work another time.
    Permanent,
}

impl BounceClass {
    /// The name under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Undetermined => "undetermined",
            Self::Permanent => "permanent",
        }
    }
}

impl Facts {
    /// The one word for a mail: the first that applies, from the worst to the least.
    pub fn status(&self) -> &'static str {
        let bounced = self.bounced_at.is_some();
        let for_good = self.bounce_class > Some(BounceClass::Transient);
        let ladder = [
            (self.rejected_at.is_some(), "rejected"),
            (self.failed_at.is_some(), "failed"),
            (self.complained_at.is_some(), "complained"),
            (bounced && for_good, "bounced"),
            (self.clicked_at.is_some(), "clicked"),
            (self.opened_at.is_some(), "opened"),
            (self.delivered_at.is_some(), "delivered"),
            (bounced, "soft_bounced"),
            (!self.delayed_at.is_empty(), "delayed"),
            (self.sent_at.is_some(), "sent"),
        ];
        let first = ladder.into_iter().find(|(applies, _)| *applies);
        first.map_or("queued", |(_, status)| status)
    }

    /// The database may hold this as `delayed_at`.
    pub fn admits_delay(&self, delayed_at: Option<OffsetDateTime>) -> bool {
        match delayed_at {
            Some(time) => self.delayed_at.contains(&time),
            None => self.delayed_at.is_empty(),
        }
    }
}

impl Truth {
    pub(super) fn of(mails: &[Mail], happenings: &[Happening], beats: &[Beat]) -> Self {
        let mut truth = Self::default();
        for of_one_mail in happenings.chunk_by(|a, b| a.mail == b.mail) {
            let mail = &mails[of_one_mail[0].mail as usize];
            let rows: BTreeSet<RowKey> = of_one_mail.iter().flat_map(|happening| rows(mail, happening)).collect();
            if mail.known {
                truth.facts.insert(mail.log_uuid, facts(mail, of_one_mail, &rows));
                truth.rows.extend(rows);
            } else {
                truth.orphans.extend(rows);
            }
        }
        for mail in mails.iter().filter(|mail| mail.known) {
            truth.facts.entry(mail.log_uuid).or_default();
        }
        for beat in beats {
            truth.count(mails, happenings, beat);
        }
        truth.duplicates = truth.events - truth.rows.len() - truth.orphans.len();
        truth
    }

    fn count(&mut self, mails: &[Mail], happenings: &[Happening], beat: &Beat) {
        let poison = match beat {
            Beat::WriteLog(_) => return,
            Beat::Batch { poison, .. } => *poison,
            Beat::Poison { poison, .. } => Some(*poison),
            Beat::Notice(_) | Beat::Noise { .. } => None,
        };
        self.messages += 1;
        if let Beat::Noise { noise, .. } = beat {
            self.ignored += 1;
            *self.ignored_leaves.entry((noise.reason, noise.words)).or_default() += 1;
        }
        if let Some(poison) = poison {
            self.rejected += 1;
            *self.rejected_leaves.entry((poison.reason, poison.words)).or_default() += 1;
        }
        for notice in beat.notices() {
            let happening = &happenings[notice.happening as usize];
            self.events += recipients(&mails[happening.mail as usize], &happening.what).len();
        }
    }
}

/// One row per recipient.
fn rows(mail: &Mail, happening: &Happening) -> impl Iterator<Item = RowKey> {
    let what = &happening.what;
    let again = matches!(what, What::Open { .. } | What::Click { .. });
    let link = match what {
        What::Click { link, .. } => Some(link.url()),
        _ => None,
    };
    recipients(mail, what).into_iter().map(move |recipient| RowKey {
        aws_message_id: mail.message_id.clone(),
        kind: kind(what).to_owned(),
        recipient: recipient.to_owned(),
        occurred_at_ms: again.then_some(happening.at_ms),
        link: link.clone(),
    })
}

/// Those that SES names; else the only one there is; else nobody, for the mail as a whole.
fn recipients<'a>(mail: &'a Mail, what: &What) -> Vec<&'a str> {
    match what {
        What::Delivery { to }
        | What::DeliveryDelay { to, .. }
        | What::Bounce { to, .. }
        | What::Complaint { by: to, .. } => {
            to.iter().map(|n| mail.recipients[usize::from(*n)].address.as_str()).collect()
        }
        _ => match &mail.recipients[..] {
            [only] => vec![&only.address],
            _ => vec![""],
        },
    }
}

fn kind(what: &What) -> &'static str {
    match what {
        What::Send => "send",
        What::Reject => "reject",
        What::RenderingFailure => "rendering_failure",
        What::Delivery { .. } => "delivery",
        What::DeliveryDelay { .. } => "delivery_delay",
        What::Bounce { .. } => "bounce",
        What::Complaint { .. } => "complaint",
        What::Open { .. } => "open",
        What::Click { .. } => "click",
        What::Subscription => "subscription",
        What::Novel => "inbox_placement",
    }
}

fn facts(mail: &Mail, happenings: &[Happening], rows: &BTreeSet<RowKey>) -> Facts {
    let mut facts = Facts {
        open_count: rows.iter().filter(|row| row.kind == "open").count(),
        click_count: rows.iter().filter(|row| row.kind == "click").count(),
        delayed_at: possible_delays(happenings),
        ..Facts::default()
    };
    for happening in happenings {
        // Three kinds have no time of their own: they happened when SES accepted the mail.
        let at_ms = match happening.what {
            What::Send | What::Reject | What::RenderingFailure => mail.at_ms,
            _ => happening.at_ms,
        };
        let (fact, class) = match &happening.what {
            What::Send => (&mut facts.sent_at, None),
            What::Reject => (&mut facts.rejected_at, None),
            What::RenderingFailure => (&mut facts.failed_at, None),
            What::Delivery { .. } => (&mut facts.delivered_at, None),
            What::Open { .. } => (&mut facts.opened_at, None),
            What::Click { .. } => (&mut facts.clicked_at, None),
            What::Bounce { verdict, .. } => (&mut facts.bounced_at, Some(class(verdict.class))),
            // A complaint that SES knew of beforehand: it did not send, and nobody complained.
            What::Complaint { suppressed_by: Some(_), .. } => (&mut facts.bounced_at, Some(BounceClass::Permanent)),
            // The opposite of a complaint.
            What::Complaint { report: Some("not-spam"), .. } => continue,
            What::Complaint { .. } => (&mut facts.complained_at, None),
            What::DeliveryDelay { .. } | What::Subscription | What::Novel => continue,
        };
        *fact = Some(fact.map_or(time(at_ms), |first| first.min(time(at_ms))));
        facts.bounce_class = facts.bounce_class.max(class);
    }
    facts
}

fn class(bounce_type: &str) -> BounceClass {
    match bounce_type {
        "Permanent" => BounceClass::Permanent,
        "Transient" => BounceClass::Transient,
        _ => BounceClass::Undetermined,
    }
}

/// Each recipient keeps one of its delays, and the earliest of those kept becomes the fact:
/// any delay that is not later than the latest of every other recipient.
pub(super) fn possible_delays(happenings: &[Happening]) -> BTreeSet<OffsetDateTime> {
    let mut latest: BTreeMap<u8, i64> = BTreeMap::new();
    let mut all = BTreeSet::new();
    for happening in happenings {
        if let What::DeliveryDelay { to, .. } = &happening.what {
            all.insert(happening.at_ms);
            for recipient in to {
                let latest = latest.entry(*recipient).or_insert(happening.at_ms);
                *latest = happening.at_ms.max(*latest);
            }
        }
    }
    let bound = latest.into_values().min().unwrap_or_default();
    all.into_iter().filter(|at_ms| *at_ms <= bound).map(time).collect()
}

/// The time at so many ms after 1970.
pub(super) fn time(unix_ms: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(unix_ms)
}

/// Whole ms since 1970.
pub(super) fn unix_ms(time: OffsetDateTime) -> i64 {
    (time - OffsetDateTime::UNIX_EPOCH).whole_milliseconds().clamp(0, 1 << 47) as i64
}
