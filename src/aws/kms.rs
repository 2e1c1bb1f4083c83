//! Keys. The only file that names the SDK's client for them.

use aws_config::SdkConfig;
use aws_sdk_kms::Client;

use super::{Answer, answer};

/// KMS in one region.
pub(crate) struct Kms(Client);

/// A key, as far as somebody else's messages depend on it.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) arn: String,
    /// `Enabled`, or why it cannot be used.
    pub(crate) state: String,
    /// AWS made it for one of its services: nobody can change who may use it.
    pub(crate) is_of_aws: bool,
    /// Who may use it, as JSON.
    pub(crate) policy: Answer<String>,
}

impl Kms {
    pub(crate) fn new(config: &SdkConfig) -> Self {
        Self(Client::new(config))
    }

    /// A key by its id, ARN or alias.
    pub(crate) async fn key(&self, id: &str) -> Answer<Key> {
        let described = answer("kms:DescribeKey", self.0.describe_key().key_id(id).send().await)?;
        let Some(about) = described.and_then(|it| it.key_metadata) else { return Ok(None) };
        let arn = about.arn.unwrap_or(about.key_id);
        // An alias has no policy of its own.
        let policy = self.0.get_key_policy().key_id(&arn).policy_name("default").send().await;
        let policy = answer("kms:GetKeyPolicy", policy).map(|it| it.and_then(|it| it.policy));
        let state = about.key_state.map_or_else(|| "of unknown state".to_owned(), |state| state.as_str().to_owned());
        let is_of_aws = about.key_manager.is_some_and(|manager| manager.as_str() == "AWS");
        Ok(Some(Key { arn, state, is_of_aws, policy }))
    }
}
