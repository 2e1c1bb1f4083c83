//! IAM database authentication: a token that we sign ourselves takes the place of a password.
//! See <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.html>.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use aws_config::BehaviorVersion;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_runtime_api::client::identity::Identity;
use sqlx::postgres::PgConnectOptions;
use tokio::{sync::OnceCell, time::timeout};

use super::login::LoginError;

/// How long a server takes a token. It looks at it once, when somebody logs in.
const VALID: Duration = Duration::from_secs(900);
/// How long we use one, and how long before its credentials expire it is too old: clocks differ, and logging in takes
/// its time.
const USED: Duration = Duration::from_secs(600);
const MARGIN: Duration = Duration::from_secs(60);
/// Credentials may come from the network.
const CREDENTIALS: Duration = Duration::from_secs(10);

/// Makes tokens with the credentials of the process.
#[derive(Default)]
pub(super) struct Iam {
    signer: OnceCell<Signer>,
}

pub(super) struct Signer {
    credentials: SharedCredentialsProvider,
    /// What the surroundings say. A host name of RDS knows better.
    region: Option<String>,
}

/// A password for a few minutes.
pub(super) struct Token {
    pub(super) text: String,
    /// From then on another one is made before somebody logs in.
    pub(super) stale_at: SystemTime,
}

impl Iam {
    /// With these credentials and nothing else.
    #[cfg(test)]
    pub(super) fn with(credentials: aws_credential_types::Credentials, region: Option<&str>) -> Self {
        let credentials = SharedCredentialsProvider::new(credentials);
        Self { signer: OnceCell::new_with(Some(Signer { credentials, region: region.map(str::to_owned) })) }
    }

    /// Signs that this user may log in at this host and port.
    pub(super) async fn token(&self, options: &PgConnectOptions, now: SystemTime) -> Result<Token, LoginError> {
        let signer = self.signer.get_or_try_init(Signer::load).await?;
        let (host, user) = (options.get_host(), options.get_username());
        let region = region_of(host).or(signer.region.as_deref());
        let region =
            region.ok_or_else(|| LoginError::for_good(format!("cannot tell the region of {host}: set AWS_REGION")))?;
        let credentials = timeout(CREDENTIALS, signer.credentials.provide_credentials()).await;
        let credentials =
            credentials.map_err(|_| LoginError::for_now("no credentials within 10 seconds"))?.map_err(|e| {
                LoginError::for_credentials(&e)
                    .unwrap_or_else(|| LoginError::for_now(format!("no AWS credentials yet: {e}")))
            })?;
        let expires = credentials.expiry().map(|expires| expires - MARGIN);
        let text = signed(&credentials.into(), region, host, options.get_port(), user, now)
            .map_err(|e| LoginError::for_good(format!("{e:#}")))?;
        let stale_at = expires.map_or(now + USED, |expires| expires.min(now + USED));
        Ok(Token { text, stale_at })
    }
}

impl Signer {
    async fn load() -> Result<Self, LoginError> {
        let shared = aws_config::load_defaults(BehaviorVersion::latest()).await;
        let credentials = shared
            .credentials_provider()
            .ok_or_else(|| LoginError::for_good("no credentials for DATABASE_AUTH=iam"))?;
        Ok(Self { credentials, region: shared.region().map(ToString::to_string) })
    }
}

/// `name.abcdefghijkl.eu-west-1.rds.amazonaws.com` is in eu-west-1.
fn region_of(host: &str) -> Option<&str> {
    let name = host.strip_suffix(".rds.amazonaws.com").or_else(|| host.strip_suffix(".rds.amazonaws.com.cn"))?;
    name.rsplit('.').next().filter(|region| region.contains('-'))
}

/// A presigned request, less its scheme.
fn signed(
    identity: &Identity,
    region: &str,
    host: &str,
    port: u16,
    user: &str,
    now: SystemTime,
) -> anyhow::Result<String> {
    const SCHEME: &str = "https://";
    let url = format!("{SCHEME}{host}:{port}/?Action=connect&DBUser={}", encoded(user));
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(VALID);
    let parameters = v4::SigningParams::builder()
        .identity(identity)
        .region(region)
        .name("rds-db")
        .time(now)
        .settings(settings)
        .build()?
        .into();
    let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(&[]))
        .context("cannot sign for this host and user")?;
    let (signature, _) = sign(request, &parameters).context("cannot sign")?.into_parts();
    let mut request = http::Request::get(&url).body(()).context("cannot sign for this host and user")?;
    signature.apply_to_request_http1x(&mut request);
    Ok(request.uri().to_string().split_off(SCHEME.len()))
}

/// As signatures want it: everything but letters, digits and `-._~` in hexadecimal.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use aws_credential_types::Credentials;
    use time::macros::datetime;

    use super::*;

    const HOST: &str = "db.abcdefghijkl.eu-west-1.rds.amazonaws.com";
    const KEY: (&str, &str) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");

    fn now() -> SystemTime {
        datetime!(2026-10-05 08:00 UTC).into()
    }

    fn credentials(session: Option<&str>, expires: Option<SystemTime>) -> Credentials {
        Credentials::new(KEY.0, KEY.1, session.map(str::to_owned), expires, "test")
    }

    fn options(host: &str, user: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().host(host).port(5432).username(user)
    }

    /// The part before the query, and its parameters in order.
    fn parts(token: &str) -> (String, Vec<String>) {
        let (place, query) = token.split_once('?').expect("a query follows");
        let mut parameters: Vec<_> = query.split('&').map(str::to_owned).collect();
        parameters.sort();
        (place.to_owned(), parameters)
    }

    /// Both were made by another implementation, botocore 1.44.5, with its clock stopped.
    #[tokio::test]
    async fn a_token_is_the_one_that_aws_computes() {
        let scope = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20261005%2Feu-west-1%2Frds-db\
                     %2Faws4_request&X-Amz-Date=20261005T080000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host";
        let session = "FwoGZXIvYXdzEJr//////////wEaDExample+Token/==";
        for (session, rest) in [
            (None, "&X-Amz-Signature=abac06945d8ed2f61ac9ac6879d6f37c40852eb649e3d502211042bf364ee7f0"),
            (
                Some(session),
                "&X-Amz-Security-Token=FwoGZXIvYXdzEJr%2F%2F%2F%2F%2F%2F%2F%2F%2F%2FwEaDExample%2BToken%2F%3D%3D\
                 &X-Amz-Signature=fe1c20c15ddf1d24ed023ff08b37b4fca4b14b2b77a517d5e536e32c22912b2a",
            ),
        ] {
            let token = Iam::with(credentials(session, None), None).token(&options(HOST, "ses_ledger+x"), now()).await;
            let expected = format!("{HOST}:5432/?Action=connect&DBUser=ses_ledger%2Bx&{scope}{rest}");
            assert_eq!(parts(&token.expect("all is given").text), parts(&expected));
        }
    }

    #[tokio::test]
    async fn a_token_is_used_for_ten_minutes_or_as_long_as_its_credentials() {
        let minutes = |minutes: u64| now() + Duration::from_secs(minutes * 60);
        for (expires, stale) in [(None, 10), (Some(60), 10), (Some(6), 5), (Some(1), 0)] {
            let iam = Iam::with(credentials(None, expires.map(minutes)), None);
            let token = iam.token(&options(HOST, "u"), now()).await.expect("all is given");
            assert_eq!(token.stale_at, minutes(stale), "{expires:?}");
        }
    }

    #[tokio::test]
    async fn the_host_tells_the_region_better_than_the_surroundings() {
        let region = async |host: &str, surroundings| {
            let token = Iam::with(credentials(None, None), surroundings).token(&options(host, "u"), now()).await?;
            Ok(token.text.split("%2F").nth(2).expect("the scope has a region").to_owned())
        };
        let ok = |region: Result<String, LoginError>| region.expect("there is a region");
        assert_eq!(ok(region(HOST, Some("us-east-1")).await), "eu-west-1");
        assert_eq!(ok(region("p.proxy-abc.cn-north-1.rds.amazonaws.com.cn", None).await), "cn-north-1");
        assert_eq!(ok(region("db.example.com", Some("us-east-1")).await), "us-east-1");
        let error = region("db.example.com", None).await.expect_err("nobody tells it");
        assert!(error.is_final && error.to_string().contains("AWS_REGION"), "{error}");
    }
}
