//! How we reach AWS, and what its SDK's errors come from: the same for every service. In the folder one file for each
//! service that `doctor` looks at.

pub(crate) mod eventbridge;
pub(crate) mod kms;
pub(crate) mod ses;
pub(crate) mod sns;

use std::{error::Error, fmt, iter::successors, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, identity::IdentityCache, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, sts::AssumeRoleProvider, timeout::TimeoutConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{SharedCredentialsProvider, error::CredentialsError},
};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

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

/// The same, with `AWS_ENDPOINT_URL_SESV2` and its like before the endpoint that all services share: one that is set by
/// hand would win over them.
pub(crate) fn with_endpoints_of_services(config: SdkConfig) -> SdkConfig {
    let anywhere = config.get_origin("nowhere");
    let mut builder = config.into_builder();
    builder.insert_origin("endpoint_url", anywhere);
    builder.build()
}

/// What AWS answers when it is asked about a thing: `None` if there is no such thing.
pub(crate) type Answer<T> = Result<Option<T>, Unanswered>;

/// A question that AWS did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unanswered {
    /// The right that the question takes, like `ses:GetAccount`.
    pub(crate) permission: &'static str,
    pub(crate) why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// These credentials may not ask.
    Denied,
    /// Whoever answers does not know the question: an emulator.
    NotOffered,
    /// No answer, no connection, no credentials.
    Failed(String),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let permission = self.permission;
        match &self.why {
            Why::Denied => write!(f, "these credentials lack {permission}"),
            Why::NotOffered => write!(f, "{permission} is not offered by this endpoint"),
            Why::Failed(why) => write!(f, "{permission}: {why}"),
        }
    }
}

/// Sorts what a service answered.
pub(crate) fn answer<T, E, R>(permission: &'static str, answer: Result<T, SdkError<E, R>>) -> Answer<T>
where
    E: Error + ProvideErrorMetadata + 'static,
    R: fmt::Debug + 'static,
{
    let error = match answer {
        Ok(found) => return Ok(Some(found)),
        Err(error) => error,
    };
    let code = error.code().unwrap_or_default();
    let why = match &error {
        _ if is_missing(code) => return Ok(None),
        _ if is_denied(code) => Why::Denied,
        _ if is_unknown_here(code) => Why::NotOffered,
        SdkError::ServiceError(e) => {
            let code = if code.is_empty() { "an error without a name" } else { code };
            Why::Failed(format!("{code}: {}", e.err().message().unwrap_or("no message")))
        }
        SdkError::TimeoutError(_) => Why::Failed("no answer in time".to_owned()),
        error if lacks_credentials(error) => Why::Failed(format!("there are no AWS credentials: {GIVE_CREDENTIALS}")),
        error => Why::Failed(innermost(error)),
    };
    Err(Unanswered { permission, why })
}

/// A service let us in, but not to do that.
pub(crate) fn is_denied(code: &str) -> bool {
    ["AccessDenied", "Unauthorized", "AuthorizationError", "NotAuthorized"].iter().any(|c| code.contains(c))
        || code == "Forbidden"
}

fn is_missing(code: &str) -> bool {
    ["NotFound", "QueueDoesNotExist", "NonExistentQueue"].iter().any(|c| code.contains(c))
}

fn is_unknown_here(code: &str) -> bool {
    ["NotImplemented", "UnknownOperation", "UnknownAction", "InvalidAction", "UnsupportedOperation"]
        .iter()
        .any(|c| code.contains(c))
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

/// The last part of an ARN: what people call the queue or the topic.
pub(crate) fn name_of(arn: &str) -> &str {
    arn.rsplit([':', '/']).next().unwrap_or(arn)
}
