//! What SES sends with, and where it reports to. The only file that names the SDK's client for it.

use anyhow::Context as _;
use aws_config::SdkConfig;
use aws_sdk_sesv2::{
    Client,
    error::{ProvideErrorMetadata as _, SdkError},
    types::{Body, Content, Destination as Recipients, EmailContent, EventDestination, Message, MessageTag},
};

use super::{Answer, answer, innermost};
use crate::event::EventKind;

/// SES in one region.
pub(crate) struct Ses(Client);

/// The account in this region.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) may_send: bool,
    /// Out of the sandbox: may write to anybody.
    pub(crate) is_in_production: bool,
    /// `HEALTHY`, `PROBATION` or `SHUTDOWN`.
    pub(crate) enforcement: Option<String>,
}

/// A domain or an address to send from.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) is_verified: bool,
    /// `SUCCESS`, or how far it has come; `None` for who does not sign.
    pub(crate) dkim: Option<String>,
    /// What its mails are sent with unless they name another.
    pub(crate) configuration_set: Option<String>,
}

/// A configuration set.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) may_send: bool,
    pub(crate) has_reputation_metrics: bool,
    pub(crate) destinations: Answer<Vec<Destination>>,
}

/// Where a configuration set publishes events.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) name: String,
    pub(crate) is_enabled: bool,
    pub(crate) kinds: Vec<EventKind>,
    pub(crate) to: To,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Topic(String),
    Bus(String),
    /// CloudWatch, Firehose, Pinpoint.
    Elsewhere,
}

/// A mail to one recipient.
pub(crate) struct Mail<'a> {
    pub(crate) sender: &'a str,
    pub(crate) recipient: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) text: &'a str,
    pub(crate) configuration_set: Option<&'a str>,
    /// The tag by which its events find its log row.
    pub(crate) tag: (&'a str, &'a str),
}

/// SES did not take a mail.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Like `MessageRejected`.
    pub(crate) code: String,
    pub(crate) message: String,
}

impl Ses {
    pub(crate) fn new(config: &SdkConfig) -> Self {
        Self(Client::new(config))
    }

    /// The account that the credentials belong to.
    pub(crate) async fn account(&self) -> Answer<Account> {
        let account = answer("ses:GetAccount", self.0.get_account().send().await)?;
        Ok(account.map(|it| Account {
            may_send: it.sending_enabled,
            is_in_production: it.production_access_enabled,
            enforcement: it.enforcement_status,
        }))
    }

    /// A domain or an address.
    pub(crate) async fn identity(&self, name: &str) -> Answer<Identity> {
        let request = self.0.get_email_identity().email_identity(name);
        let identity = answer("ses:GetEmailIdentity", request.send().await)?;
        Ok(identity.map(|it| Identity {
            is_verified: it.verified_for_sending_status,
            dkim: it
                .dkim_attributes
                .filter(|dkim| dkim.signing_enabled)
                .map(|dkim| dkim.status.map_or_else(|| "UNKNOWN".to_owned(), |it| it.as_str().to_owned())),
            configuration_set: it.configuration_set_name,
        }))
    }

    /// A configuration set with its destinations.
    pub(crate) async fn set(&self, name: &str) -> Answer<Set> {
        let request = self.0.get_configuration_set().configuration_set_name(name);
        let Some(set) = answer("ses:GetConfigurationSet", request.send().await)? else { return Ok(None) };
        Ok(Some(Set {
            name: name.to_owned(),
            // What is not said is as it is by default: on for sending.
            may_send: set.sending_options.is_none_or(|it| it.sending_enabled),
            has_reputation_metrics: set.reputation_options.is_some_and(|it| it.reputation_metrics_enabled),
            destinations: self.destinations(name).await,
        }))
    }

    /// Where a set publishes to.
    pub(crate) async fn destinations(&self, set: &str) -> Answer<Vec<Destination>> {
        let request = self.0.get_configuration_set_event_destinations().configuration_set_name(set);
        let answered = answer("ses:GetConfigurationSetEventDestinations", request.send().await)?;
        Ok(answered.map(|it| it.event_destinations.unwrap_or_default().into_iter().map(destination).collect()))
    }

    /// Names of the first hundred configuration sets.
    pub(crate) async fn sets(&self) -> Answer<Vec<String>> {
        let answered =
            answer("ses:ListConfigurationSets", self.0.list_configuration_sets().page_size(100).send().await)?;
        Ok(answered.map(|it| it.configuration_sets.unwrap_or_default()))
    }

    /// Sends a mail, and returns the id that SES gives it.
    pub(crate) async fn send(&self, mail: &Mail<'_>) -> anyhow::Result<Result<String, Refused>> {
        let part = |text: &str| Content::builder().data(text).charset("UTF-8").build();
        let body = Body::builder().text(part(mail.text)?).build();
        let message = Message::builder().subject(part(mail.subject)?).body(body).build();
        let tag = MessageTag::builder().name(mail.tag.0).value(mail.tag.1).build()?;
        let request = self
            .0
            .send_email()
            .from_email_address(mail.sender)
            .destination(Recipients::builder().to_addresses(mail.recipient).build())
            .content(EmailContent::builder().simple(message).build())
            .set_configuration_set_name(mail.configuration_set.map(str::to_owned))
            .email_tags(tag);
        match request.send().await {
            Ok(sent) => sent.message_id.context("SES took a mail and gave it no id").map(Ok),
            Err(SdkError::ServiceError(e)) => Ok(Err(Refused {
                code: e.err().code().unwrap_or("an error without a name").to_owned(),
                message: e.err().message().unwrap_or_default().to_owned(),
            })),
            Err(e) => Ok(Err(Refused { code: "no answer".to_owned(), message: innermost(&e) })),
        }
    }
}

fn destination(destination: EventDestination) -> Destination {
    let to = match (destination.sns_destination, destination.event_bridge_destination) {
        (Some(sns), _) => To::Topic(sns.topic_arn),
        (_, Some(bus)) => To::Bus(bus.event_bus_arn),
        _ => To::Elsewhere,
    };
    let kinds = destination.matching_event_types.iter();
    Destination {
        name: destination.name,
        is_enabled: destination.enabled,
        kinds: kinds.filter_map(|kind| EventKind::parse(kind.as_str())).collect(),
        to,
    }
}
