//! How we reach AWS, and what its SDK's errors come from: the same for every service.

use std::{error::Error, iter::successors, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, identity::IdentityCache, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, sts::AssumeRoleProvider, timeout::TimeoutConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{SharedCredentialsProvider, error::CredentialsError},
};

/// One attempt at any call but a receive, and all attempts.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(5);
const OPERATION: Duration = Duration::from_secs(12);

/// With which credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Those that are found as by the AWS command line; a queue on this machine needs none.
    #[default]
    Default,
    /// Those of a profile in the shared configuration files.
    Profile(String),
    /// Those of a role, which is assumed with the credentials that are found.
    Role { arn: String, external_id: Option<String> },
}

/// What the clients of all services are made from. `endpoint` takes the place of AWS's own; `local`: it is on this machine,
/// and needs no credentials.
pub(crate) async fn config(access: &Access, region: String, endpoint: Option<String>, local: bool) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region))
        .identity_cache(IdentityCache::lazy().load_timeout(Duration::from_secs(30)).build())
        // Made for downloads: it has ended quiet long polls.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_secs(3))
                .operation_attempt_timeout(ATTEMPT)
                .operation_timeout(OPERATION)
                .build(),
        );
    if let Some(endpoint) = endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    match access {
        Access::Profile(name) => loader = loader.profile_name(name),
        // Emulators check no signature, but the SDK does not send without one.
        _ if local => {
            loader = loader.credentials_provider(Credentials::new("test", "test", None, None, "loopback"));
        }
        _ => {}
    }
    let shared = loader.load().await;
    let Access::Role { arn, external_id } = access else { return shared };
    let mut role = AssumeRoleProvider::builder(arn).session_name("ses-ledger").configure(&shared);
    if let Some(id) = external_id {
        role = role.external_id(id);
    }
    let role = SharedCredentialsProvider::new(role.build().await);
    shared.into_builder().credentials_provider(role).build()
}

/// How to give us credentials.
pub(crate) const GIVE_CREDENTIALS: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the \
                                           container or the machine a role";

/// Nobody has given us any.
pub(crate) fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| matches!(cause.downcast_ref(), Some(CredentialsError::CredentialsNotLoaded(_))))
}

/// The last cause says what really happened; those before it only pass it on.
pub(crate) fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// The error and what it comes from, the last cause last.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}
