//! Topics and their subscriptions. The only file that names the SDK's client for them.

use std::collections::BTreeMap;

use aws_config::SdkConfig;
use aws_sdk_sns::Client;

use super::{Answer, answer};

/// How many pages of a hundred subscriptions are looked through.
const PAGES: usize = 5;

/// SNS in one region.
pub(crate) struct Sns(Client);

/// A topic, by the names that SNS gives its attributes.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) attributes: Answer<BTreeMap<String, String>>,
    /// The subscription of one queue; `None` if the topic has none of it.
    pub(crate) subscription: Answer<Subscription>,
}

/// What takes a topic's messages to the queue.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) arn: String,
    /// Unconfirmed ones have no attributes that anybody could ask for.
    pub(crate) attributes: Answer<BTreeMap<String, String>>,
}

impl Sns {
    pub(crate) fn new(config: &SdkConfig) -> Self {
        Self(Client::new(config))
    }

    /// A topic, with the subscription of this queue.
    pub(crate) async fn topic(&self, arn: &str, queue: &str) -> Topic {
        let attributes = self.0.get_topic_attributes().topic_arn(arn).send().await;
        let attributes = answer("sns:GetTopicAttributes", attributes);
        let attributes = attributes.map(|it| it.map(|it| it.attributes.unwrap_or_default().into_iter().collect()));
        Topic { attributes, subscription: self.subscription(arn, queue).await }
    }

    async fn subscription(&self, topic: &str, queue: &str) -> Answer<Subscription> {
        let mut next = None;
        for _ in 0..PAGES {
            let request = self.0.list_subscriptions_by_topic().topic_arn(topic).set_next_token(next);
            let Some(page) = answer("sns:ListSubscriptionsByTopic", request.send().await)? else { return Ok(None) };
            // One that is gone is listed for some days, as `Deleted`.
            let ours = page.subscriptions().iter().filter(|it| it.endpoint() == Some(queue));
            let ours = ours.filter_map(|it| it.subscription_arn()).filter(|arn| *arn != "Deleted");
            if let Some(arn) = ours.max_by_key(|arn| arn.starts_with("arn:")) {
                return Ok(Some(self.attributes(arn).await));
            }
            next = page.next_token;
            if next.is_none() {
                break;
            }
        }
        Ok(None)
    }

    async fn attributes(&self, arn: &str) -> Subscription {
        let attributes = match arn.starts_with("arn:") {
            true => {
                let answered = self.0.get_subscription_attributes().subscription_arn(arn).send().await;
                let answered = answer("sns:GetSubscriptionAttributes", answered);
                answered.map(|it| it.map(|it| it.attributes.unwrap_or_default().into_iter().collect()))
            }
            // `PendingConfirmation` stands in its place.
            false => Ok(None),
        };
        Subscription { arn: arn.to_owned(), attributes }
    }
}
