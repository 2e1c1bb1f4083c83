//! The frame of every page.

use std::sync::LazyLock;

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use super::text::line;
use crate::readable::second;

const STYLE: &str = include_str!("style.css");

/// Nothing is loaded, nothing runs; the one style is known by its digest.
pub(super) static CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
});

/// The four questions.
const PAGES: [(&str, &str); 4] = [("/", "Now"), ("/mail", "Mail"), ("/stuck", "Stuck"), ("/figures", "Figures")];

/// One page.
pub(super) struct Page {
    status: StatusCode,
    title: String,
    /// Where it belongs, of [`PAGES`].
    under: &'static str,
    /// Seconds until the browser asks again.
    refresh: Option<u32>,
    body: Markup,
}

impl Page {
    pub(super) fn new(under: &'static str, title: &str, body: Markup) -> Self {
        Self { status: StatusCode::OK, title: title.to_owned(), under, refresh: None, body }
    }

    /// Why there is no answer, and what to do.
    pub(super) fn problem(status: StatusCode, title: &str, body: Markup) -> Self {
        let body = html! { h1 { (title) } (body) };
        Self { status, ..Self::new("", title, body) }
    }

    pub(super) fn refreshed(self, seconds: u32) -> Self {
        Self { refresh: Some(seconds), ..self }
    }
}

/// What to type to do something, since the page itself does nothing.
pub(super) fn command(what: &str, command: &str) -> Markup {
    html! { p.command { (what) ":" br; code { (line(command)) } } }
}

/// As a shell takes it for one word.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A moment, to the second. All times of the page are in UTC.
pub(super) fn when(at: OffsetDateTime) -> Markup {
    html! { time datetime=(at.format(&Rfc3339).unwrap_or_default()) { (second(at.to_offset(UtcOffset::UTC))) } }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="robots" content="noindex";
                    @if let Some(seconds) = self.refresh { meta http-equiv="refresh" content=(seconds); }
                    title { (self.title) " · ses-ledger" }
                    // As it stands: the policy names its digest.
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        span.name { "ses-ledger" }
                        nav {
                            @for (path, name) in PAGES {
                                a href=(path) aria-current=[(path == self.under).then_some("page")] { (name) }
                            }
                        }
                    }
                    main { (self.body) }
                    footer { "Times are in UTC. Read at " (second(OffsetDateTime::now_utc())) "." }
                }
            }
        };
        (self.status, page).into_response()
    }
}
