//! Who and what there is to pick from. All of it made up, at names that are reserved for that.

pub(super) struct Campaign {
    pub(super) sender: &'static str,
    pub(super) subject: &'static str,
    pub(super) template: Option<&'static str>,
    pub(super) campaign_id: Option<&'static str>,
    /// The SES tenant for whom it is sent.
    pub(super) tenant: Option<&'static str>,
    /// What the application tags its mails with.
    pub(super) tags: &'static [(&'static str, &'static str)],
}

/// Why SES could not deliver yet.
pub(super) struct Delay {
    pub(super) kind: &'static str,
    pub(super) status: &'static str,
    pub(super) diagnostic: &'static str,
}

/// How a mail bounced.
pub(super) struct Verdict {
    pub(super) class: &'static str,
    pub(super) subtype: &'static str,
    /// Status and diagnostic of the DSN; an out-of-office reply has none.
    pub(super) dsn: Option<(&'static str, &'static str)>,
    /// SES reached the remote server.
    pub(super) attempted: bool,
}

/// Whoever or whatever opens and clicks.
pub(super) struct Reader {
    pub(super) user_agent: &'static str,
    /// The first three parts of its addresses.
    pub(super) network: &'static str,
    pub(super) bot: &'static str,
}

pub(super) const CONFIGURATION_SET: &str = "transactional";

pub(super) const CAMPAIGNS: [Campaign; 7] = [
    mailing(ORDERS, "Your order has been shipped", Some("order-shipped"), None),
    Campaign {
        tags: &[("language", "de"), ("priority", "high")],
        ..mailing(ORDERS, "Vielen Dank für Ihre Bestellung", Some("order-confirmed"), None)
    },
    Campaign {
        tags: &[("priority", "high")],
        ..mailing("no-reply@shop.example.com", "Reset your password", None, None)
    },
    mailing("billing@shop.example.com", "Invoice for last month", None, None),
    mailing(NEWS, "You left something in your cart", Some("cart-reminder"), Some("cart")),
    Campaign {
        tags: &[("variant", "b")],
        ..mailing(NEWS, "Spring is here: 20 % off", Some("newsletter"), Some("spring-sale"))
    },
    // The shop sends for a partner, too.
    Campaign {
        tenant: Some("partner-garden"),
        tags: &[("tenant", "partner-garden"), ("variant", "a")],
        ..mailing(GARDEN, "Your garden in May", Some("partner-news"), Some("garden-may"))
    },
];
const ORDERS: &str = "Example Shop <orders@shop.example.com>";
const GARDEN: &str = "Garden Partner <garden@shop.example.com>";
const NEWS: &str = "\"Example Shop\" <news@shop.example.com>";

pub(super) const FIRST_NAMES: [&str; 16] = [
    "Ana", "Bilal", "Chen", "Dora", "Emeka", "Fatima", "Goran", "Hana", "Ivo", "Jaya", "Kofi", "Lena", "Marek", "Noor",
    "Olga", "Pablo",
];
pub(super) const LAST_NAMES: [&str; 12] =
    ["Silva", "Haddad", "Wei", "Novak", "Okafor", "Khan", "Petrov", "Sato", "Rossi", "Iyer", "Mensah", "Braun"];
pub(super) const DOMAINS: [&str; 8] = [
    "inbox.example",
    "mail.example.net",
    "post.example.org",
    "corp.example",
    "uni.example.net",
    "example.com",
    "web.example.net",
    "office.example.org",
];

pub(super) const DELAYS: [Delay; 5] = [
    delay("TransientCommunicationFailure", "4.4.1", "smtp; 421 4.4.1 unable to connect"),
    delay("MailboxFull", "4.2.2", "smtp; 452 4.2.2 mailbox full"),
    delay("SpamDetected", "4.7.0", "smtp; 421 4.7.0 try again later"),
    delay("RecipientServerError", "4.3.0", "smtp; 451 4.3.0 temporary local problem"),
    delay("General", "4.0.0", "smtp; 450 4.0.0 deferred"),
];

pub(super) const BOUNCES: [Verdict; 12] = [
    UNKNOWN_USER,
    bounce("Permanent", "General", "5.1.1", "smtp; 550-5.1.1 No such mailbox.\n550 5.1.1 Bye."),
    bounce("Permanent", "General", "5.7.1", "smtp; 550 5.7.1 refused by policy"),
    bounce("Permanent", "NoEmail", "5.1.2", "smtp; 550 5.1.2 no such address"),
    bounce("Undetermined", "Undetermined", "5.0.0", "smtp; 550 mail not accepted"),
    bounce("Transient", "General", "5.4.4", "smtp; 550 5.4.4 invalid domain"),
    bounce("Transient", "General", "4.4.7", "smtp; 421 4.4.2 connection dropped"),
    bounce("Transient", "MailboxFull", "4.2.2", "smtp; 552 4.2.2 mailbox full"),
    bounce("Transient", "MessageTooLarge", "5.3.4", "smtp; 552 5.3.4 message too big"),
    bounce("Transient", "ContentRejected", "5.6.0", "smtp; 554 5.6.0 content not accepted"),
    bounce("Transient", "AttachmentRejected", "5.7.0", "smtp; 552 5.7.0 attachment blocked"),
    bounce("Transient", "CustomTimeoutExceeded", "4.4.7", "message expired before delivery"),
];
pub(super) const UNKNOWN_USER: Verdict = bounce("Permanent", "General", "5.1.1", "smtp; 550 5.1.1 user unknown");

/// Bounced, although it was delivered.
pub(super) const OUT_OF_OFFICE_REPLY: Verdict =
    Verdict { class: "Transient", subtype: "General", dsn: None, attempted: false };

/// A type that SES does not document: an open set stays open.
pub(super) const NOVEL_BOUNCE: Verdict = bounce("Deferred", "Greylisted", "4.7.1", "smtp; 451 4.7.1 greylisted");

pub(super) const SUPPRESSIONS: [Verdict; 5] = [
    suppression(
        "OnAccountSuppressionList",
        "Amazon SES did not send the message to this address because it is on the suppression \
         list for your account.",
    ),
    suppression(
        "OnTenantSuppressionList",
        "Amazon SES did not send the message to this address because it is on the suppression \
         list for your tenant.",
    ),
    suppression(
        "Suppressed",
        "Amazon SES has suppressed sending to this address because it has a recent history of \
         bouncing as an invalid address.",
    ),
    suppression("EmailValidationSuppressed", "The address did not pass validation."),
    suppression("UnsubscribedRecipient", "The recipient unsubscribed from the contact list."),
];

/// What a complaint's report says, if there is one.
pub(super) const COMPLAINT_REPORTS: [Option<&str>; 8] =
    [Some("abuse"), Some("abuse"), Some("abuse"), Some("abuse"), Some("fraud"), Some("other"), Some("not-spam"), None];

pub(super) const PEOPLE: [Reader; 4] = [
    reader(
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 \
         (KHTML, like Gecko) Mobile/15E148",
        "192.0.2",
        "Unlikely",
    ),
    reader(
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
         Chrome/140.0.0.0 Safari/537.36",
        "198.51.100",
        "Unlikely",
    ),
    reader("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.5.0", "203.0.113", "Unlikely"),
    reader(
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 \
         (KHTML, like Gecko)",
        "198.51.100",
        "Unlikely",
    ),
];

/// They fetch the pictures of a mail before anybody has seen it.
pub(super) const PROXIES: [Reader; 2] = [
    reader(
        "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 \
         (via ggpht.com GoogleImageProxy)",
        "66.249.93",
        "Unlikely",
    ),
    reader("Mozilla/5.0", "17.58.101", "Likely"),
];

pub(super) const SCANNERS: [Reader; 2] = [
    reader(
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
         Chrome/119.0.0.0 Safari/537.36",
        "40.94.29",
        "Likely",
    ),
    reader("Mozilla/5.0 (compatible; link-check/2.1)", "40.94.29", "Likely"),
];

impl Campaign {
    /// The tags that the application gives its mails, and keeps with their log rows.
    pub(super) fn own_tags(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.campaign_id.map(|id| ("campaign", id)).into_iter().chain(self.tags.iter().copied())
    }
}

const fn mailing(
    sender: &'static str,
    subject: &'static str,
    template: Option<&'static str>,
    campaign_id: Option<&'static str>,
) -> Campaign {
    Campaign { sender, subject, template, campaign_id, tenant: None, tags: &[] }
}

const fn delay(kind: &'static str, status: &'static str, diagnostic: &'static str) -> Delay {
    Delay { kind, status, diagnostic }
}

const fn bounce(class: &'static str, subtype: &'static str, status: &'static str, diagnostic: &'static str) -> Verdict {
    Verdict { class, subtype, dsn: Some((status, diagnostic)), attempted: true }
}

const fn suppression(subtype: &'static str, diagnostic: &'static str) -> Verdict {
    Verdict { class: "Permanent", subtype, dsn: Some(("5.1.1", diagnostic)), attempted: false }
}

const fn reader(user_agent: &'static str, network: &'static str, bot: &'static str) -> Reader {
    Reader { user_agent, network, bot }
}
