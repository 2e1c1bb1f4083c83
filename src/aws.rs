//! What the errors of the AWS SDK come from: the same for every service.

use std::{error::Error, iter::successors};

use aws_credential_types::provider::error::CredentialsError;

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
