//! A secret of AWS Secrets Manager, in the form in which RDS keeps it. The only file that names the SDK's client.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_secretsmanager::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::login::LoginError;
use crate::aws::innermost;

/// One attempt to read it, and all attempts. Somebody waits to log in meanwhile.
const ATTEMPT: Duration = Duration::from_secs(3);
const OPERATION: Duration = Duration::from_secs(8);

/// What only somebody else can mend.
const FINAL: [&str; 8] = [
    "ResourceNotFoundException",
    "AccessDeniedException",
    "InvalidParameterException",
    "InvalidRequestException",
    "DecryptionFailure",
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "ExpiredTokenException",
];

/// Where a secret is kept.
pub(super) struct Source {
    /// Its ARN or its name.
    id: String,
    client: OnceCell<Client>,
}

/// What it says.
#[derive(Clone, Deserialize)]
pub(super) struct Secret {
    pub(super) username: String,
    /// IAM authentication does without.
    pub(super) password: Option<String>,
    pub(super) host: Option<String>,
    pub(super) port: Option<Port>,
    pub(super) dbname: Option<String>,
}

/// RDS writes a number; people write what they like.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Port {
    Number(u16),
    Text(String),
}

impl Port {
    pub(super) fn number(&self) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
        }
    }
}

impl Source {
    pub(super) fn new(id: String) -> Self {
        Self { id, client: OnceCell::new() }
    }

    /// In a service that a test has made.
    #[cfg(test)]
    pub(super) fn at(id: &str, endpoint: &str) -> Self {
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("eu-west-1"))
            .endpoint_url(endpoint)
            .credentials_provider(aws_sdk_secretsmanager::config::Credentials::new("test", "test", None, None, "test"))
            .build();
        Self { id: id.to_owned(), client: OnceCell::new_with(Some(Client::from_conf(config))) }
    }

    /// Asks for its current version.
    pub(super) async fn read(&self) -> Result<Secret, LoginError> {
        let client = self.client.get_or_try_init(|| self.connect()).await?;
        let answer = client.get_secret_value().secret_id(&self.id).send().await.map_err(|e| self.explain(&e))?;
        self.understand(answer.secret_string().unwrap_or_default())
    }

    async fn connect(&self) -> Result<Client, LoginError> {
        let times = TimeoutConfig::builder()
            .connect_timeout(ATTEMPT)
            .operation_attempt_timeout(ATTEMPT)
            .operation_timeout(OPERATION)
            .build();
        let loader = aws_config::defaults(BehaviorVersion::latest())
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            .timeout_config(times);
        let loader = match region_of(&self.id) {
            Some(region) => loader.region(Region::new(region.to_owned())),
            None => loader,
        };
        let shared = loader.load().await;
        if shared.region().is_none() {
            return Err(self.wrong("its region is not known: write its ARN, or set AWS_REGION"));
        }
        Ok(Client::new(&shared))
    }

    /// What a parser says may show some of it.
    fn understand(&self, text: &str) -> Result<Secret, LoginError> {
        let secret: Secret = serde_json::from_str(text)
            .map_err(|_| self.wrong(r#"it has to be JSON like {"username": "…", "password": "…", "host": "…"}"#))?;
        match &secret.port {
            Some(port) if port.number().is_none() => Err(self.wrong("its port is not a number")),
            _ => Ok(secret),
        }
    }

    fn explain<E, R>(&self, error: &SdkError<E, R>) -> LoginError
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: std::fmt::Debug + 'static,
    {
        match error.code() {
            Some(code @ "AccessDeniedException") => self.wrong(&format!(
                "{code}: the role needs secretsmanager:GetSecretValue on it, and kms:Decrypt on its key if it has one"
            )),
            Some(code) if FINAL.contains(&code) => self.wrong(code),
            Some(code) => LoginError::for_now(format!("cannot read the secret {}: {code}", self.id)),
            None => LoginError::for_credentials(error).unwrap_or_else(|| {
                LoginError::for_now(format!("cannot read the secret {}: {}", self.id, innermost(error)))
            }),
        }
    }

    fn wrong(&self, what: &str) -> LoginError {
        LoginError::for_good(format!("cannot read the secret {} (DATABASE_SECRET): {what}", self.id))
    }
}

/// `arn:aws:secretsmanager:eu-west-1:123456789012:secret:name-AbCdEf` is in eu-west-1.
fn region_of(id: &str) -> Option<&str> {
    let mut parts = id.split(':');
    (parts.next()? == "arn" && parts.nth(1)? == "secretsmanager").then(|| parts.next())?.filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understand(text: &str) -> Result<Secret, LoginError> {
        Source::new("production/database".to_owned()).understand(text)
    }

    #[test]
    fn an_arn_tells_the_region() {
        let arn = "arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:rds!cluster-1-AbCdEf";
        assert_eq!(region_of(arn), Some("cn-north-1"));
        assert_eq!(region_of("production/database"), None);
        assert_eq!(region_of("arn:aws:ssm:eu-west-1:123456789012:parameter/database"), None);
    }

    #[test]
    fn the_forms_that_rds_and_people_write_are_understood() {
        // RDS itself keeps only these two, where it manages the password.
        let secret = understand(r#"{"username":"u","password":"p"}"#).expect("it is complete");
        assert!(
            secret.username == "u"
                && secret.password.as_deref() == Some("p")
                && secret.host.is_none()
                && secret.port.is_none()
        );
        for port in ["5433", "\"5433\""] {
            let text = format!(
                r#"{{"engine":"postgres","username":"u","password":"p","host":"h","port":{port},"dbname":"d","extra":{{}}}}"#
            );
            let secret = understand(&text).expect("it is complete");
            assert_eq!(secret.port.and_then(|port| port.number()), Some(5433));
            assert_eq!((secret.host.as_deref(), secret.dbname.as_deref()), (Some("h"), Some("d")));
        }
    }

    #[test]
    fn what_is_wrong_with_a_secret_does_not_show_it() {
        for text in ["hunter2", r#""hunter2""#, r#"{"password":"hunter2"}"#, r#"{"username":"u","port":"hunter2"}"#] {
            let error = understand(text).err().expect("it is not complete");
            assert!(error.is_final && error.to_string().contains("production/database"), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
