//! AWS for the tests as far as LocalStack goes: CloudFormation, SNS, SES and EventBridge beside SQS. Started once for
//! all of them.

use std::{collections::BTreeMap, ffi::OsString, path::Path, time::Duration};

use anyhow::{Result, bail};
use serde_json::Value;
use ses_ledger::local::guard::{Guard, GuardSettings, free_port};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep},
};

use ureq::{Body, RequestBuilder, http::Response, typestate::WithBody};

use crate::emulator::{install, is_healthy};

/// Twenty seconds are plenty on an idle machine; the build may still keep this one busy.
const START: Duration = Duration::from_secs(120);
/// A stack takes five seconds on an idle machine.
const DEPLOYMENT: Duration = Duration::from_secs(180);

/// LocalStack's address, such as `http://127.0.0.1:41234`. Region and credentials may be anything; what is made there
/// is seen by all tests, so give yours a name of its own.
pub(crate) async fn endpoint() -> &'static str {
    static LOCALSTACK: OnceCell<Result<(Guard, String), String>> = OnceCell::const_new();
    let started = LOCALSTACK.get_or_init(async || start().await.map_err(|error| format!("{error:#}"))).await;
    match started {
        Ok((_, endpoint)) => endpoint,
        Err(error) => panic!("cannot test without LocalStack: {error}"),
    }
}

/// A deployed stack, by its outputs.
pub(crate) struct Stack(BTreeMap<String, String>);

impl Stack {
    /// Deploys a template with these parameters, and waits until all of it is there.
    pub(crate) async fn deploy(name: &str, template: &str, parameters: &[(&str, &str)]) -> Self {
        let mut form =
            vec![("StackName".to_owned(), name.to_owned()), ("TemplateBody".to_owned(), template.to_owned())];
        for (number, (key, value)) in (1..).zip(parameters) {
            form.push((format!("Parameters.member.{number}.ParameterKey"), (*key).to_owned()));
            form.push((format!("Parameters.member.{number}.ParameterValue"), (*value).to_owned()));
        }
        form.push(("Capabilities.member.1".to_owned(), "CAPABILITY_IAM".to_owned()));
        query("cloudformation", "CreateStack", &form).await;

        let deadline = Instant::now() + DEPLOYMENT;
        loop {
            let about = query("cloudformation", "DescribeStacks", &[("StackName".to_owned(), name.to_owned())]).await;
            match element(&about, "StackStatus") {
                "CREATE_COMPLETE" => return Self(outputs(&about)),
                "CREATE_IN_PROGRESS" if Instant::now() < deadline => sleep(Duration::from_millis(200)).await,
                other => panic!("the stack is {other}: {about}\n{}", resources(name).await),
            }
        }
    }

    /// One of its outputs.
    pub(crate) fn output(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("no output {key} among {:?}", self.0.keys()))
    }
}

/// One request in the protocol of CloudFormation, SNS and the first version of SES. Answers with XML.
pub(crate) async fn query(service: &str, action: &str, parameters: &[(String, String)]) -> String {
    let mut form = vec![("Action".to_owned(), action.to_owned())];
    form.extend_from_slice(parameters);
    ask(service, move |request| request.send_form(form)).await
}

/// One request in the protocol of EventBridge (`AWSEvents.PutEvents`) and KMS (`TrentService.GetKeyPolicy`). Takes JSON,
/// and answers with it.
pub(crate) async fn json_query(service: &str, target: &'static str, request: &Value) -> Value {
    let body = request.to_string();
    let headers = [("Content-Type", "application/x-amz-json-1.1"), ("X-Amz-Target", target)];
    let answer = ask(service, move |request| {
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send(body)
    });
    serde_json::from_str(&answer.await).unwrap_or_else(|e| panic!("{service} does not answer with JSON: {e}"))
}

/// LocalStack checks no signature, but tells by it which service is meant.
async fn ask<S>(service: &str, send: S) -> String
where
    S: FnOnce(RequestBuilder<WithBody>) -> Result<Response<Body>, ureq::Error> + Send + 'static,
{
    let url = endpoint().await;
    let signature = format!("AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/{service}/aws4_request, Signature=00");
    let sent = tokio::task::spawn_blocking(move || {
        let request = ureq::post(url).config().http_status_as_error(false).proxy(None).build();
        let mut answer = send(request.header("Authorization", signature))?;
        Ok::<_, ureq::Error>((answer.status(), answer.body_mut().read_to_string()?))
    });
    let (status, answer) = sent.await.expect("a request does not panic").expect("LocalStack answers");
    assert!(status.is_success(), "{service} refuses: {answer}");
    answer
}

/// The text of the first such element.
pub(crate) fn element<'a>(xml: &'a str, name: &str) -> &'a str {
    elements(xml, name).next().unwrap_or_else(|| panic!("no {name} in {xml}"))
}

/// The contents of all such elements that are not inside of each other.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (opening, closing) = (format!("<{name}>"), format!("</{name}>"));
    xml.split(&opening).skip(1).filter_map(move |rest| rest.split(&closing).next()).collect::<Vec<_>>().into_iter()
}

fn outputs(about: &str) -> BTreeMap<String, String> {
    let pairs = elements(about, "OutputKey").zip(elements(about, "OutputValue"));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// What became of each resource, for an error message.
async fn resources(stack: &str) -> String {
    query("cloudformation", "DescribeStackResources", &[("StackName".to_owned(), stack.to_owned())]).await
}

async fn start() -> Result<(Guard, String)> {
    let folder = tokio::task::spawn_blocking(|| install("localstack", "tests/install-localstack")).await??;
    let port = free_port()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut guard = Guard::start(GuardSettings {
        parent: std::env::temp_dir(),
        name: "ses-ledger-localstack",
        // Asked to end it takes five seconds, and has nothing to save.
        signals: &[],
        patience: 0,
        user: None,
        environment: vec![("PATH".into(), path)],
    })
    .await?;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("infra/localstack/run");
    let data = guard.folder().join("data");
    let parts: [OsString; 4] = [program.into(), folder.into(), port.to_string().into(), data.into()];
    let parts = parts.map(|part| part.into_string());
    let Ok(command) = parts.into_iter().collect::<Result<Vec<String>, _>>() else {
        bail!("cannot use a folder whose name is not UTF-8")
    };
    guard.run(&command).await?;
    tokio::select! {
        _ = guard.ended(START) => bail!("cannot start LocalStack:\n{}", guard.log_tail()),
        () = is_healthy(port, "/_localstack/health") => {}
    }
    Ok((guard, format!("http://127.0.0.1:{port}")))
}
