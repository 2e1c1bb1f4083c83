//! The two requests that every message needs (receive, delete), without most of the SDK.
//!
//! Two thirds of what the SDK costs per request is its own orchestration. Here is only what an accepted request needs:
//! the SDK's HTTP connector, its signer and its credentials. Whatever is not simply accepted is left to the SDK, which
//! asks again: so its retries, its correction of a wrong clock and what it knows of errors are not lost.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow, bail};
use aws_config::SdkConfig;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_http_client::{Connector, proxy::ProxyConfig, tls};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        http::{HttpConnector as _, HttpConnectorSettings, SharedHttpConnector},
        identity::Identity,
        interceptors::{Intercept, context::BeforeTransmitInterceptorContextRef},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{body::SdkBody, config_bag::ConfigBag};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{sync::Mutex, time::timeout};
use tracing::debug;

const CONNECT: Duration = Duration::from_secs(3);
/// How long to wait for credentials here. The SDK has more patience, and can say why there are none.
const CREDENTIALS: Duration = Duration::from_secs(5);
/// Credentials are renewed so long before they expire.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// Sends requests of the AWS JSON protocol 1.0 to SQS.
pub(super) struct Direct {
    connector: SharedHttpConnector,
    endpoint: Endpoint,
    region: String,
    credentials: Option<SharedCredentialsProvider>,
    identity: Mutex<Option<Identity>>,
}

impl Direct {
    /// `endpoint` is to be given to the SDK's client as well, which fills it in.
    pub(super) fn new(shared: &SdkConfig, endpoint: Endpoint) -> Self {
        let connector = Connector::builder()
            .connector_settings(HttpConnectorSettings::builder().connect_timeout(CONNECT).build())
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
            .proxy_config(ProxyConfig::from_env());
        let connector = match shared.sleep_impl() {
            Some(sleep) => connector.sleep_impl(sleep),
            None => connector,
        };
        Self {
            connector: SharedHttpConnector::new(connector.build()),
            endpoint,
            region: shared.region().map(ToString::to_string).unwrap_or_default(),
            credentials: shared.credentials_provider(),
            identity: Mutex::default(),
        }
    }

    /// Asks once. `action` is like `AmazonSQS.ReceiveMessage`. `None` is anything but an accepted request: the SDK shall
    /// ask.
    pub(super) async fn ask<T: DeserializeOwned>(&self, action: &'static str, request: &impl Serialize) -> Option<T> {
        let answer = self.try_to_ask(action, request).await;
        answer.inspect_err(|e| debug!(action, "left to the SDK: {e:#}")).ok()
    }

    async fn try_to_ask<T: DeserializeOwned>(
        &self,
        action: &'static str,
        request: &impl Serialize,
    ) -> anyhow::Result<T> {
        let endpoint = self.endpoint.0.get().context("the SDK has not found the service yet")?;
        let identity = self.identity().await.context("no credentials")?;
        let request = self.signed(endpoint, &identity, action, serde_json::to_vec(request)?)?;
        let mut answer = self.connector.call(request.map(SdkBody::from).try_into()?).await?;
        let status = answer.status();
        if status.as_u16() != StatusCode::OK.as_u16() {
            if status.is_client_error() {
                *self.identity.lock().await = None; // perhaps they have been withdrawn
            }
            bail!("status {status}");
        }
        let body = answer.take_body().collect().await.map_err(anyhow::Error::from_boxed)?;
        // What the parser says may show some of it.
        serde_json::from_slice(&body.to_bytes()).map_err(|_| anyhow!("cannot read the answer"))
    }

    fn signed(
        &self,
        endpoint: &str,
        identity: &Identity,
        action: &'static str,
        body: Vec<u8>,
    ) -> anyhow::Result<Request<Vec<u8>>> {
        let mut request = Request::post(endpoint)
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.0"))
            .header("x-amz-target", HeaderValue::from_static(action))
            .header(header::USER_AGENT, HeaderValue::from_static(concat!("ses-ledger/", env!("CARGO_PKG_VERSION"))))
            .body(body)?;
        let signing = v4::SigningParams::builder()
            .identity(identity)
            .region(&self.region)
            .name("sqs")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?
            .into();
        let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let signable = SignableRequest::new("POST", endpoint, headers, SignableBody::Bytes(request.body()))?;
        let (signature, _) = sign(signable, &signing)?.into_parts();
        signature.apply_to_request_http1x(&mut request);
        Ok(request)
    }

    /// The credentials, until shortly before they expire.
    async fn identity(&self) -> Option<Identity> {
        let mut identity = self.identity.lock().await;
        let soon = SystemTime::now() + RENEW_BEFORE;
        if identity.as_ref().is_none_or(|identity| identity.expiration().is_some_and(|end| end < soon)) {
            let credentials = timeout(CREDENTIALS, self.credentials.as_ref()?.provide_credentials()).await;
            *identity = credentials.ok()?.ok().map(Identity::from);
        }
        identity.clone()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ReceiveMessage<'a> {
    pub(super) queue_url: &'a str,
    pub(super) max_number_of_messages: usize,
    pub(super) wait_time_seconds: u64,
    pub(super) visibility_timeout: u64,
    pub(super) message_system_attribute_names: [&'static str; 2],
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Received {
    pub(super) messages: Option<Vec<Message>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Message {
    pub(super) message_id: String,
    pub(super) receipt_handle: String,
    #[serde(default)]
    pub(super) body: String,
    #[serde(default)]
    pub(super) attributes: Attributes,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Attributes {
    pub(super) approximate_receive_count: Option<String>,
    pub(super) sent_timestamp: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DeleteMessageBatch<'a> {
    pub(super) queue_url: &'a str,
    pub(super) entries: Vec<Entry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry<'a> {
    pub(super) id: String,
    pub(super) receipt_handle: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Deleted {
    #[serde(default)]
    pub(super) failed: Vec<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Failure {
    pub(super) id: String,
    pub(super) sender_fault: bool,
}

/// Where the SDK sends its requests: it knows all that may say so (region, profile, variables, partitions), and it is
/// the first to ask.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoint(Arc<OnceLock<String>>);

impl Intercept for Endpoint {
    fn name(&self) -> &'static str {
        "Endpoint"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.get_or_init(|| context.request().uri().to_owned());
        Ok(())
    }
}
