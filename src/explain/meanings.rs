//! What the codes mean: of RFC 3463, and of SES. All of SES's are open sets: what is not in a table is told as it came.

use serde::Serialize;

/// Who must act, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The application that sends.
    Sender,
    /// Whom the mail was for.
    AddressOwner,
    /// Who runs the recipient's mail server.
    RecipientsProvider,
    Nobody,
}

impl Who {
    /// As the beginning of a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::Sender => "The sender must act",
            Self::AddressOwner => "The owner of the address must act",
            Self::RecipientsProvider => "The recipient's provider must act",
            Self::Nobody => "Nobody must act",
        }
    }
}

/// What something means, who must act, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) words: &'static str,
    pub(super) who: Who,
    pub(super) advice: &'static str,
}

const fn means(words: &'static str, who: Who, advice: &'static str) -> Meaning {
    Meaning { words, who, advice }
}

const STOP: &str = "write to this address no more, and ask its owner on another way for one that works";
const LATER: &str = "write again later; if it goes on, ask the recipient on another way";
const WAIT: &str = "SES goes on by itself and reports how it ends";
const PROVIDER: &str =
    "its server refuses or does not answer; a later mail may get through, else tell them, with the quoted text";
const SLIMMER: &str = "send it smaller: as a link instead of an attachment";
const CONTENT: &str = "change what is in the mail; the quoted text says what was wrong";
const REPUTATION: &str = "check SPF, DKIM, DMARC and the complaint rate of the sending domain; the quoted text often names a page where \
                          to ask for release";
const PROOF: &str = "mend the DNS records of the sending domain: SPF, DKIM and DMARC have to pass";
const SUPPRESSED: &str = "if the address is good, remove it from the list (aws sesv2 delete-suppressed-destination \
                          --email-address …), else write to it no more";

/// Statuses of RFC 3463 and its registry, without their class.
const STATUSES: [(&str, Meaning); 40] = [
    ("1.0", means("something is wrong with the address", Who::Sender, STOP)),
    ("1.1", means("there is no such mailbox", Who::Sender, STOP)),
    ("1.2", means("the domain does not exist, or takes no mail", Who::Sender, STOP)),
    ("1.3", means("the address is not well formed", Who::Sender, STOP)),
    ("1.4", means("the address is not unique there", Who::Sender, STOP)),
    ("1.6", means("the mailbox has moved, and has left no new address", Who::Sender, STOP)),
    ("1.7", means("the sender's address is not well formed", Who::Sender, "mend the From or Return-Path address")),
    ("1.8", means("the sender's domain cannot be found", Who::Sender, PROOF)),
    ("1.10", means("the domain says that it takes no mail at all", Who::Sender, STOP)),
    ("2.0", means("something is wrong with the mailbox", Who::AddressOwner, LATER)),
    ("2.1", means("the mailbox is disabled, or takes no mail", Who::Sender, STOP)),
    (
        "2.2",
        means("the mailbox is full", Who::AddressOwner, "make room in the mailbox; then a later mail gets through"),
    ),
    ("2.3", means("the mail is larger than the mailbox takes", Who::Sender, SLIMMER)),
    ("2.4", means("the mailing list there could not be expanded", Who::RecipientsProvider, PROVIDER)),
    ("3.0", means("the recipient's mail system has trouble", Who::RecipientsProvider, PROVIDER)),
    ("3.1", means("the recipient's mail system is full", Who::RecipientsProvider, PROVIDER)),
    ("3.2", means("the recipient's mail system takes no mail at present", Who::RecipientsProvider, PROVIDER)),
    ("3.3", means("the recipient's mail system cannot handle this kind of mail", Who::Sender, CONTENT)),
    ("3.4", means("the mail is too big for the recipient's mail system", Who::Sender, SLIMMER)),
    ("3.5", means("the recipient's mail system is not set up right", Who::RecipientsProvider, PROVIDER)),
    ("4.0", means("the network on the way had trouble", Who::RecipientsProvider, PROVIDER)),
    ("4.1", means("the recipient's server does not answer", Who::RecipientsProvider, PROVIDER)),
    ("4.2", means("the connection to the recipient's server broke off", Who::RecipientsProvider, PROVIDER)),
    ("4.3", means("a name server or directory on the way failed", Who::RecipientsProvider, PROVIDER)),
    (
        "4.4",
        means(
            "no mail server could be found for the domain (DNS)",
            Who::Sender,
            "look whether the domain is spelled right and exists",
        ),
    ),
    ("4.5", means("the recipient's mail system is overloaded", Who::RecipientsProvider, PROVIDER)),
    ("4.6", means("the mail went round in a circle between servers", Who::RecipientsProvider, PROVIDER)),
    ("4.7", means("it took too long: the time for trying was over", Who::RecipientsProvider, PROVIDER)),
    ("5.0", means("the servers did not understand each other", Who::RecipientsProvider, PROVIDER)),
    (
        "5.3",
        means(
            "the mail has more recipients than that server takes",
            Who::Sender,
            "send it to fewer recipients at once",
        ),
    ),
    ("6.0", means("that server does not take what is in the mail", Who::Sender, CONTENT)),
    ("7.0", means("it was refused for reasons of security or policy", Who::Sender, REPUTATION)),
    ("7.1", means("it was refused by the policy of that server", Who::Sender, REPUTATION)),
    (
        "7.2",
        means(
            "the sender may not write to that mailing list",
            Who::AddressOwner,
            "allow the sender to write to the list",
        ),
    ),
    ("7.20", means("no DKIM signature passed", Who::Sender, PROOF)),
    ("7.23", means("SPF did not pass", Who::Sender, PROOF)),
    ("7.25", means("the sending address has no name in DNS that fits", Who::Sender, PROOF)),
    ("7.26", means("neither SPF nor DKIM passed, or DMARC forbids it", Who::Sender, PROOF)),
    (
        "7.27",
        means(
            "the sender's domain says that it takes no mail",
            Who::Sender,
            "give the sending domain an MX record that takes answers",
        ),
    ),
    (
        "7.28",
        means("that server has had too many mails from this sender", Who::Sender, "send more slowly to that provider"),
    ),
];

/// SES's subtypes of a bounce that say more than a status does. In lower case.
const BOUNCES: [(&str, Meaning); 11] = [
    (
        "onaccountsuppressionlist",
        means(
            "the address is on your account's suppression list, because of an earlier bounce or complaint",
            Who::Sender,
            SUPPRESSED,
        ),
    ),
    (
        "ontenantsuppressionlist",
        means(
            "the address is on the tenant's suppression list, because of an earlier bounce or complaint",
            Who::Sender,
            SUPPRESSED,
        ),
    ),
    (
        "suppressed",
        means(
            "the address is on the suppression list of SES itself: it has lately bounced for other senders as well",
            Who::Sender,
            SUPPRESSED,
        ),
    ),
    ("emailvalidationsuppressed", means("the address did not pass SES's validation", Who::Sender, STOP)),
    (
        "unsubscribedrecipient",
        means(
            "the recipient has unsubscribed from the contact list",
            Who::Sender,
            "write to this address no more about this topic",
        ),
    ),
    ("noemail", means("the address could not be found in the bounce, or does not exist", Who::Sender, STOP)),
    (
        "mailboxfull",
        means("the mailbox is full", Who::AddressOwner, "make room in the mailbox; then a later mail gets through"),
    ),
    ("messagetoolarge", means("the mail is too large for that server", Who::Sender, SLIMMER)),
    ("contentrejected", means("that server does not take what is in the mail", Who::Sender, CONTENT)),
    (
        "attachmentrejected",
        means(
            "that server does not take an attachment of this kind",
            Who::Sender,
            "send it without the attachment, as a link",
        ),
    ),
    (
        "customtimeoutexceeded",
        means(
            "the sender's own time limit for the delivery was over",
            Who::Sender,
            "allow more time (MaxDeliverySeconds), or send again",
        ),
    ),
];

/// Types of a delay. In lower case.
const DELAYS: [(&str, Meaning); 9] = [
    ("internalfailure", means("SES itself has trouble", Who::Nobody, WAIT)),
    ("mailboxfull", means("the mailbox is full", Who::AddressOwner, "make room in the mailbox; SES goes on trying")),
    (
        "spamdetected",
        means("that server has had much mail from this sender that it takes for spam", Who::Sender, REPUTATION),
    ),
    ("recipientservererror", means("the recipient's server has trouble at present", Who::RecipientsProvider, WAIT)),
    ("ipfailure", means("that provider blocks or slows down the IP address that sends", Who::Sender, REPUTATION)),
    (
        "transientcommunicationfailure",
        means("the conversation with the recipient's server broke off", Who::RecipientsProvider, WAIT),
    ),
    (
        "byoiphostnamelookupunavailable",
        means(
            "SES could not look up the name of your own IP addresses",
            Who::Sender,
            "look at the DNS records of the IP addresses that you brought along",
        ),
    ),
    ("sendingdeferral", means("SES holds the mail back on purpose, and sends it later", Who::Nobody, WAIT)),
    ("undetermined", means("SES cannot tell why", Who::Nobody, WAIT)),
];

/// Types of a complaint's report.
const COMPLAINTS: [(&str, Meaning); 6] = [
    ("abuse", means("the recipient called it spam", Who::Sender, "write to this address no more")),
    ("auth-failure", means("it failed the authentication of the recipient's provider", Who::Sender, PROOF)),
    (
        "fraud",
        means(
            "the recipient called it fraud or phishing",
            Who::Sender,
            "write to this address no more, and look whether the mail is really yours",
        ),
    ),
    ("not-spam", means("the recipient said that it is not spam", Who::Nobody, "this is good news")),
    (
        "virus",
        means("a virus is said to be in it", Who::Sender, "look at what was sent; write to this address no more"),
    ),
    ("other", means("the provider names no kind that is known", Who::Sender, "write to this address no more")),
];

pub(super) const REJECT: Meaning = means(
    "SES found a virus in it",
    Who::Sender,
    "look at the attachments: SES found a virus in the mail and sent it to nobody",
);

pub(super) const RENDERING_FAILURE: Meaning = means(
    "its template could not be filled in",
    Who::Sender,
    "give the template all the values that it names (the quoted text says which was missing), and send again",
);

/// What an enhanced status code means, like `5.1.1`.
pub(super) fn smtp(status: &str) -> Option<Meaning> {
    let (_, detail) = status.split_once('.')?;
    let subject = |n: &str| format!("{}.0", n.split('.').next().unwrap_or_default());
    entry(&STATUSES, detail).or_else(|| entry(&STATUSES, &subject(detail)))
}

/// What a bounce means: by its subtype where that is particular, else by its status, else by its type.
pub(super) fn bounce(class: &str, subtype: &str, status: Option<&str>) -> Meaning {
    let by_subtype = entry(&BOUNCES, &subtype.to_lowercase());
    let by_status = || status.and_then(smtp);
    let by_class = || match class.to_lowercase().as_str() {
        "permanent" => means("the recipient's server refused it for good", Who::Sender, STOP),
        "transient" => means("the recipient's server refused it for now", Who::Sender, LATER),
        _ => means("the recipient's server refused it, and did not say clearly why", Who::Sender, LATER),
    };
    by_subtype.or_else(by_status).unwrap_or_else(by_class)
}

/// SES did not even try.
pub(super) fn is_suppression(subtype: &str) -> bool {
    let subtype = subtype.to_lowercase();
    subtype.contains("suppress") || subtype == "unsubscribedrecipient"
}

/// What a delay means: by its type where that is particular, else by its status.
pub(super) fn delay(kind: &str, status: Option<&str>) -> Meaning {
    let by_status = || status.and_then(smtp).map(|meaning| Meaning { advice: WAIT, ..meaning });
    let unknown = means("the recipient's server has put it off", Who::Nobody, WAIT);
    entry(&DELAYS, &kind.to_lowercase()).or_else(by_status).unwrap_or(unknown)
}

/// What a complaint means.
pub(super) fn complaint(kind: &str) -> Meaning {
    let unknown =
        means("the provider reported a complaint without its kind", Who::Sender, "write to this address no more");
    entry(&COMPLAINTS, &kind.to_lowercase()).unwrap_or(unknown)
}

fn entry(table: &[(&str, Meaning)], key: &str) -> Option<Meaning> {
    table.iter().find(|(name, _)| *name == key).map(|(_, meaning)| *meaning)
}
