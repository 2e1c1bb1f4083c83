//! What becomes of one mail: the made-up recipients, their servers, readers and scanners.

use uuid::Uuid;

use super::cast::{
    BOUNCES, CAMPAIGNS, COMPLAINT_REPORTS, CONFIGURATION_SET, Campaign, DELAYS, DOMAINS, Delay, FIRST_NAMES,
    LAST_NAMES, NOVEL_BOUNCE, OUT_OF_OFFICE_REPLY, PEOPLE, PROXIES, Reader, SCANNERS, SUPPRESSIONS, UNKNOWN_USER,
    Verdict,
};
use super::dice::Dice;
use super::{LogRow, Mess};

/// One mail of the story. Its texts are looked up or derived when a step is told.
#[derive(Clone)]
pub(super) struct Mail {
    /// Unix ms at which SES accepted it; its id and its uuid carry the same time.
    pub(super) at_ms: i64,
    pub(super) message_id: String,
    pub(super) log_uuid: Uuid,
    pub(super) recipients: Vec<Recipient>,
    pub(super) campaign: &'static Campaign,
    /// The application writes a log row.
    pub(super) known: bool,
    /// The mail carries its log's uuid in a tag, and the log row no SES id.
    pub(super) tagged: bool,
    /// The send call went through: without it SES knows nothing of the mail.
    pub(super) sent: bool,
    spelling: IdSpelling,
}

/// Every id of a made-up mail ends in this. Those that SES gives end in six zeros.
pub const MARK: &str = "-facade";

/// How a sender stores the id that SES gave the mail.
#[derive(Clone, Copy)]
enum IdSpelling {
    Bare,
    HeaderOfUsEast1,
    WithRegion,
}

#[derive(Clone)]
pub(super) struct Recipient {
    /// As the database must hold it: domain in lower case.
    pub(super) address: String,
    /// As the application wrote it.
    pub(super) written: String,
}

impl Recipient {
    pub(super) fn domain(&self) -> &str {
        self.address.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

/// What SES says once about a mail.
#[derive(Clone)]
pub(super) struct Happening {
    /// Index of the mail.
    pub(super) mail: u32,
    pub(super) at_ms: i64,
    pub(super) what: What,
}

/// Recipients are indices into those of the mail.
#[derive(Clone)]
pub(super) enum What {
    Send,
    Reject,
    RenderingFailure,
    Delivery {
        to: Vec<u8>,
    },
    DeliveryDelay {
        to: Vec<u8>,
        delay: &'static Delay,
        spelling: Spelling,
    },
    Bounce {
        to: Vec<u8>,
        verdict: &'static Verdict,
        spelling: Spelling,
    },
    Complaint {
        by: Vec<u8>,
        report: Option<&'static str>,
        suppressed_by: Option<&'static str>,
    },
    Open {
        reader: &'static Reader,
    },
    Click {
        reader: &'static Reader,
        link: Link,
    },
    Subscription,
    /// A kind that SES may add one day.
    Novel,
}

/// How a remote server writes a recipient into its delivery status notification.
#[derive(Clone, Copy)]
pub(super) enum Spelling {
    AsWritten,
    Rfc822,
    Brackets,
    UpperCaseDomain,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Short(u8),
    /// 9 kB of redirect: more than an index entry of PostgreSQL can hold.
    Long(u64),
}

impl Mail {
    pub(super) fn new(dice: &mut Dice, mess: &Mess, mails: usize, at_ms: i64) -> Self {
        let recipients = if dice.chance(mess.several_recipients) {
            // Mostly a few, at most 50.
            let most = 1 << dice.between(1, 6);
            2 + dice.below(most).min(48)
        } else {
            1
        };
        let first = dice.below(mails as u64 / 3 + 8);
        let uuid = uuid::Builder::from_random_bytes(dice.bytes()).into_uuid();
        let known = !dice.chance(mess.unknown_mails);
        Self {
            at_ms,
            // The id's region, the Unix ms, a random uuid and a counter, which SES leaves at zero.
            message_id: format!("0102{at_ms:012x}-{uuid}{MARK}"),
            log_uuid: uuid::Builder::from_unix_timestamp_millis(at_ms.unsigned_abs(), &dice.bytes()).into_uuid(),
            recipients: (first..first + recipients).map(|n| person(n, dice.below(12) == 0)).collect(),
            campaign: dice.pick(&CAMPAIGNS),
            known,
            tagged: dice.chance(mess.linked_by_tag),
            sent: !known || !dice.chance(NEVER_SENT),
            spelling: match dice.below(10) {
                0 => IdSpelling::HeaderOfUsEast1,
                1 => IdSpelling::WithRegion,
                _ => IdSpelling::Bare,
            },
        }
    }

    /// The row that the application writes.
    pub(super) fn log_row(&self) -> LogRow {
        let id = &self.message_id;
        LogRow {
            uuid: self.log_uuid,
            aws_message_id: (self.sent && !self.tagged).then(|| match self.spelling {
                IdSpelling::Bare => id.clone(),
                IdSpelling::HeaderOfUsEast1 => format!("<{id}@email.amazonses.com>"),
                IdSpelling::WithRegion => format!("{id}@eu-west-1.amazonses.com"),
            }),
            sender: self.campaign.sender.to_owned(),
            recipients: self.recipients.iter().map(|r| r.written.clone()).collect(),
            subject: self.campaign.subject.to_owned(),
            template_name: self.campaign.template.map(str::to_owned),
            campaign_id: self.campaign.campaign_id.map(str::to_owned),
            configuration_set: Some(CONFIGURATION_SET.to_owned()),
            tags: self.campaign.own_tags().collect(),
        }
    }

    /// Everything that happens to the mail, not yet in order.
    pub(super) fn life(&self, dice: &mut Dice, mess: &Mess) -> Vec<(i64, What)> {
        let mut life = Life { mail: self, dice, mess, happenings: Vec::new() };
        if self.sent {
            life.of_the_mail();
        }
        life.happenings
    }
}

impl Link {
    pub(super) fn url(self) -> String {
        match self {
            Self::Short(n) => {
                format!("https://shop.example.com/go/{n}?utm_source=ses&utm_medium=email")
            }
            Self::Long(seed) => {
                let mut dice = Dice::new(seed);
                let mut url = "https://shop.example.com/r?state=".to_owned();
                for _ in 0..560 {
                    url.push_str(&format!("{:016x}", dice.roll()));
                }
                url
            }
        }
    }
}

struct Life<'a> {
    mail: &'a Mail,
    dice: &'a mut Dice,
    mess: &'a Mess,
    happenings: Vec<(i64, What)>,
}

impl Life<'_> {
    fn of_the_mail(&mut self) {
        let everybody: Vec<u8> = (0u8..).zip(&self.mail.recipients).map(|(n, _)| n).collect();
        let soon = self.mail.at_ms + self.dice.between(150, 1_500);
        if self.mail.campaign.template.is_some() && self.dice.chance(RENDERING_FAILED) {
            return self.add(self.mail.at_ms, What::RenderingFailure);
        }
        self.add(self.mail.at_ms, What::Send);
        if self.dice.chance(self.mess.novelties) {
            self.add(soon, What::Novel);
        }
        if self.dice.chance(REJECTED) {
            self.add(soon, What::Reject);
        } else if self.dice.chance(SUPPRESSED) {
            let verdict = self.dice.pick(&SUPPRESSIONS);
            self.add(soon, What::Bounce { to: everybody, verdict, spelling: Spelling::AsWritten });
        } else if self.dice.chance(COMPLAINT_SUPPRESSED) {
            let suppressed_by = Some(*self.dice.pick(&["OnAccountSuppressionList", "OnTenantSuppressionList"]));
            self.add(soon, What::Complaint { by: everybody, report: None, suppressed_by });
        } else {
            self.at_every_domain(&everybody);
        }
    }

    /// SES makes one delivery per domain, and readers see the mail once one has arrived.
    fn at_every_domain(&mut self, everybody: &[u8]) {
        let mut first_delivery = None;
        let mut rest = everybody.to_vec();
        while let Some(&n) = rest.first() {
            let domain = self.mail.recipients[usize::from(n)].domain();
            let recipients = &self.mail.recipients;
            let (here, elsewhere) = rest.iter().partition(|n| recipients[usize::from(**n)].domain() == domain);
            rest = elsewhere;
            let delivered = self.at_a_domain(here);
            first_delivery = first_delivery.into_iter().chain(delivered).min();
        }
        if let Some(delivered) = first_delivery {
            self.is_read(delivered);
        }
    }

    /// Delay, then delivery to some and bounces of others, or silence.
    /// Returns the time of the delivery.
    fn at_a_domain(&mut self, to: Vec<u8>) -> Option<i64> {
        let mut now = self.mail.at_ms + self.dice.between(180, 4_000);
        let delayed = self.dice.chance(DELAYED);
        if delayed {
            now = self.delayed(now, &to);
        }
        if self.dice.chance(if delayed { UNHEARD_OF_AFTER_DELAY } else { UNHEARD_OF }) {
            return None;
        }
        let (bounced, delivered): (Vec<u8>, Vec<u8>) = to.into_iter().partition(|_| self.dice.chance(BOUNCED));
        let together = self.dice.chance(0.3);
        for to in bounced.chunks(if together { bounced.len().max(1) } else { 1 }) {
            let verdict = if self.dice.chance(self.mess.novelties) { &NOVEL_BOUNCE } else { self.dice.pick(&BOUNCES) };
            self.bounce(now, to.to_vec(), verdict);
        }
        if delivered.is_empty() {
            return None;
        }
        self.add(now, What::Delivery { to: delivered.clone() });
        self.after_delivery(now, &delivered);
        Some(now)
    }

    fn delayed(&mut self, now: i64, to: &[u8]) -> i64 {
        let mut now = now + self.dice.skewed(60_000, 5);
        let second = self.dice.chance(self.mess.second_delays);
        for _ in 0..=usize::from(second) {
            let (delay, spelling) = (self.dice.pick(&DELAYS), self.spelling());
            self.add(now, What::DeliveryDelay { to: to.to_vec(), delay, spelling });
            now += self.dice.skewed(300_000, 4);
        }
        now
    }

    /// At most one bounce and one complaint per recipient: of several with different times
    /// the database keeps whichever comes first, and then the truth would depend on the order.
    fn after_delivery(&mut self, now: i64, delivered: &[u8]) {
        for &n in delivered {
            if self.dice.chance(OUT_OF_OFFICE) {
                let later = now + self.dice.skewed(400, 8);
                self.bounce(later, vec![n], &OUT_OF_OFFICE_REPLY);
            } else if self.dice.chance(BOUNCED_AFTER_ALL) {
                let later = now + self.dice.skewed(1_000, 16);
                self.bounce(later, vec![n], &UNKNOWN_USER);
            }
        }
        if self.dice.chance(COMPLAINED) {
            const HOUR: i64 = 3_600_000;
            // Mostly within days; who only tidies up after a holiday complains weeks later.
            let later = now + self.dice.skewed(6 * HOUR, 7).min(COMPLAINTS_END);
            let report = *self.dice.pick(&COMPLAINT_REPORTS);
            // The report names the domain only: everybody there is a candidate.
            self.add(later, What::Complaint { by: delivered.to_vec(), report, suppressed_by: None });
        }
    }

    fn is_read(&mut self, delivered: i64) {
        if self.dice.chance(PREFETCHED) {
            let reader = self.dice.pick(&PROXIES);
            let at = delivered + self.dice.between(80, 900);
            self.add(at, What::Open { reader });
        }
        if self.dice.chance(SCANNED) {
            let at = delivered + self.dice.between(300, 5_000);
            self.is_scanned(at);
        }
        let mut now = delivered;
        if self.dice.chance(OPENED) {
            let reader = self.dice.pick(&PEOPLE);
            for _ in 0..=self.dice.below(4) {
                now += self.dice.skewed(20_000, 13);
                self.add(now, What::Open { reader });
            }
            if self.dice.chance(CLICKED) {
                for _ in 0..=self.dice.below(3) {
                    now += self.dice.skewed(1_500, 6);
                    let link = self.link();
                    self.add(now, What::Click { reader, link });
                }
            }
        }
        if self.dice.chance(UNSUBSCRIBED) {
            self.add(now + 5_000, What::Subscription);
        }
    }

    /// A scanner follows every link in the same millisecond, some of them twice.
    fn is_scanned(&mut self, at: i64) {
        for n in 0..=u8::try_from(self.dice.between(1, 4)).unwrap_or(1) {
            let link = Link::Short(n);
            self.add(at, What::Click { reader: &SCANNERS[0], link });
            if self.dice.chance(0.2) {
                self.add(at, What::Click { reader: &SCANNERS[1], link });
            }
        }
    }

    fn bounce(&mut self, at: i64, to: Vec<u8>, verdict: &'static Verdict) {
        let spelling = self.spelling();
        self.add(at, What::Bounce { to, verdict, spelling });
    }

    fn spelling(&mut self) -> Spelling {
        use Spelling::{AsWritten, Brackets, Rfc822, UpperCaseDomain};
        *self.dice.pick(&[AsWritten, AsWritten, AsWritten, Rfc822, Brackets, UpperCaseDomain])
    }

    fn link(&mut self) -> Link {
        if self.dice.chance(0.01) {
            Link::Long(self.dice.roll())
        } else {
            Link::Short(self.dice.roll().to_le_bytes()[0] % 6)
        }
    }

    fn add(&mut self, at_ms: i64, what: What) {
        self.happenings.push((at_ms, what));
    }
}

/// The same number is the same person, so that people get several mails.
fn person(n: u64, shouting: bool) -> Recipient {
    let (first, rest) = name(&FIRST_NAMES, n);
    let (last, number) = name(&LAST_NAMES, rest);
    let number = if number == 0 { String::new() } else { number.to_string() };
    let local = format!("{first}.{last}{number}");
    // The local part belongs to its server: its case is kept.
    let local = if n.is_multiple_of(11) { local } else { local.to_lowercase() };
    let domain = Dice::new(n).pick(&DOMAINS).to_owned();
    let written = if shouting { domain.to_uppercase() } else { domain.to_owned() };
    Recipient { address: format!("{local}@{domain}"), written: format!("{local}@{written}") }
}

/// The name for a number, and what is left of the number.
fn name(of: &[&'static str], n: u64) -> (&'static str, u64) {
    let length = of.len() as u64;
    (of[(n % length) as usize], n / length)
}

/// Nobody complains later than this after the delivery: 30 days, in ms.
const COMPLAINTS_END: i64 = 30 * 86_400_000;

// How often what happens. Roughly what a well-kept list sees, with the rare things a little less
// rare, so that a thousand mails show them all.
const NEVER_SENT: f64 = 0.005;
const RENDERING_FAILED: f64 = 0.015;
const REJECTED: f64 = 0.01;
const SUPPRESSED: f64 = 0.015;
const COMPLAINT_SUPPRESSED: f64 = 0.007;
const DELAYED: f64 = 0.06;
const UNHEARD_OF: f64 = 0.005;
const UNHEARD_OF_AFTER_DELAY: f64 = 0.1;
const BOUNCED: f64 = 0.06;
const OUT_OF_OFFICE: f64 = 0.015;
const BOUNCED_AFTER_ALL: f64 = 0.004;
const COMPLAINED: f64 = 0.012;
const PREFETCHED: f64 = 0.15;
const SCANNED: f64 = 0.05;
const OPENED: f64 = 0.42;
const CLICKED: f64 = 0.3;
const UNSUBSCRIBED: f64 = 0.015;
