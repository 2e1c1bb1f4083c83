//! Who may come in, and what every answer carries.

use std::{hint::black_box, net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use maud::html;
use sha2::{Digest as _, Sha256};

use super::page::{CONTENT_SECURITY_POLICY, Page};

/// What the site asks for.
#[derive(Clone, Default)]
pub struct Keys {
    /// `Authorization: Bearer …`
    pub token: Option<String>,
    /// User and password of basic authentication.
    pub basic: Option<(String, String)>,
}

impl Keys {
    fn are_none(&self) -> bool {
        self.token.is_none() && self.basic.is_none()
    }

    /// Whether the request proves one of them.
    fn fit(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, given)) = given.and_then(|value| value.split_once(' ')) else { return false };
        let given = given.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.token.as_ref().is_some_and(|token| is_same(token, given));
        }
        let given = BASE64_STANDARD.decode(given).ok().and_then(|given| String::from_utf8(given).ok());
        let basic = self.basic.as_ref().map(|(user, password)| format!("{user}:{password}"));
        scheme.eq_ignore_ascii_case("basic") && basic.zip(given).is_some_and(|(basic, given)| is_same(&basic, &given))
    }
}

/// The same time for every wrong key: what is compared are digests, to their end.
fn is_same(key: &str, given: &str) -> bool {
    let pairs = Sha256::digest(key).into_iter().zip(Sha256::digest(given));
    black_box(pairs.fold(0, |difference, (a, b)| black_box(difference | (a ^ b)))) == 0
}

/// The site's door.
#[derive(Clone)]
pub(super) struct Door {
    /// Where it listens.
    pub(super) ip: IpAddr,
    pub(super) keys: Keys,
}

impl Door {
    /// Others can reach it, and nobody would be asked for anything.
    pub(super) fn is_closed(&self) -> bool {
        !is_here(self.ip) && self.keys.are_none()
    }

    /// A name that a page from elsewhere has made to mean this machine is not ours.
    fn is_ours(&self, host: &str) -> bool {
        let name = host
            .rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|c| c.is_ascii_digit()))
            .map_or(host, |(name, _)| name);
        let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| is_here(ip) || ip == self.ip)
    }

    /// The answer to who may not come in.
    fn refusal(&self, request: &Request) -> Option<Response> {
        if self.is_closed() {
            return Some(
                Page::problem(
                    StatusCode::FORBIDDEN,
                    "The page is closed",
                    html! {
                        p { "It would be open to everybody who reaches this address. Set " code { "SITE_TOKEN" } ", or "
                            code { "SITE_USER" } " and " code { "SITE_PASSWORD" } "; or let " code { "HTTP_ADDRESS" }
                                " be on 127.0.0.1." }
                    },
                )
                .into_response(),
            );
        }
        let hosts = [
            request.headers().get(header::HOST).and_then(|host| host.to_str().ok()),
            request.uri().authority().map(|authority| authority.as_str()),
        ];
        let mut named = hosts.into_iter().flatten().peekable();
        if is_here(self.ip) && (named.peek().is_none() || !named.all(|host| self.is_ours(host))) {
            return Some(
                Page::problem(
                    StatusCode::MISDIRECTED_REQUEST,
                    "Not under this name",
                    html! { p { "Ask for it as http://localhost:PORT/ or http://127.0.0.1:PORT/." } },
                )
                .into_response(),
            );
        }
        if !self.keys.are_none() && !self.keys.fit(request.headers()) {
            return Some(self.ask_for_keys());
        }
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let body = html! { p { "This site only answers questions. What changes anything is a command: "
            code { "ses-ledger --help" } } };
            let page = Page::problem(StatusCode::METHOD_NOT_ALLOWED, "Only for reading", body);
            return Some(([(header::ALLOW, "GET, HEAD")], page).into_response());
        }
        None
    }

    fn ask_for_keys(&self) -> Response {
        let mut answer = Page::problem(
            StatusCode::UNAUTHORIZED,
            "Who are you?",
            html! { p { "It takes the token or the password that its operator has set." } },
        )
        .into_response();
        let schemes = [
            self.keys.basic.is_some().then_some(r#"Basic realm="ses-ledger", charset="UTF-8""#),
            self.keys.token.is_some().then_some(r#"Bearer realm="ses-ledger""#),
        ];
        for scheme in schemes.into_iter().flatten() {
            answer.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        answer
    }
}

/// Nobody from another machine comes this way.
pub(super) fn is_here(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Lets in who may come in. Every answer, also that to a stranger, tells the browser to trust nothing in it.
pub(super) async fn guard(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let mut answer = match door.refusal(&request) {
        None => next.run(request).await,
        Some(refusal) => refusal,
    };
    let always = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in always {
        answer.headers_mut().insert(name, HeaderValue::from_str(value).expect("they are plain ASCII"));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_ours() {
        let door = Door { ip: [127, 0, 0, 1].into(), keys: Keys::default() };
        let ours = ["localhost", "LocalHost:9464", "127.0.0.1:1", "[::1]:80", "[::1]", "127.0.0.1"];
        let theirs =
            ["example.net", "localhost.example.net", "10.0.0.1:9464", "127.0.0.1.nip.io", "", ":80", "localhost:80@x"];
        assert_eq!(ours.map(|host| door.is_ours(host)), [true; 6]);
        assert_eq!(theirs.map(|host| door.is_ours(host)), [false; 7]);
    }

    #[test]
    fn an_address_of_this_machine_in_the_clothes_of_the_other_version_is_one() {
        let ips = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "10.1.2.3"];
        let here = ips.map(|ip| is_here(ip.parse().expect("it is an address")));
        assert_eq!(here, [true, true, true, false, false, false]);
    }

    #[test]
    fn only_the_very_same_key_fits() {
        assert!(is_same("correct horse", "correct horse"));
        assert!(
            !["", "correct hors", "correct horse ", "Correct horse"]
                .iter()
                .any(|given| is_same("correct horse", given))
        );
    }
}
