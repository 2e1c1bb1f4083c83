//! The page: what operators and support ask most, on the operations port. It only reads, needs no JavaScript and loads
//! nothing; what changes anything is a command, and the page shows which.

mod chart;
mod door;
mod figures;
mod mail;
mod now;
mod page;
mod stuck;
mod text;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{FromRequestParts, Query},
    http::{StatusCode, request::Parts},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use maud::{Markup, html};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::time::timeout;
use tracing::warn;
use url::form_urlencoded;

pub use self::door::Keys;
use self::{
    door::{Door, guard},
    now::Queues,
    page::Page,
    text::Eyes,
};
use crate::{
    cli::moment,
    postgres::{Postgres, PostgresSettings, Trouble, trouble},
    sqs::SqsSettings,
};

/// The database ends a question of the page that takes longer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Several questions of one page together, and the wait for a connection.
const PAGE_PATIENCE: Duration = Duration::from_secs(8);

/// Enough for a few readers; those of the worker are its own.
const CONNECTIONS: u32 = 3;

/// What the page shows, where, and to whom.
#[derive(Clone)]
pub struct SiteSettings {
    /// Where it listens.
    pub ip: IpAddr,
    /// The login that asks. Whatever it may do, it is not used to change anything.
    pub database: PostgresSettings,
    /// Queues whose backlog is shown.
    pub queues: Vec<SqsSettings>,
    pub keys: Keys,
    /// Addresses, subjects, links and bodies are not shown.
    pub mask: bool,
}

/// What every page needs.
struct Site {
    postgres: Postgres,
    queues: Queues,
    eyes: Eyes,
}

impl SiteSettings {
    /// Others can reach it, and nobody would be asked for anything: it shows nothing then.
    pub fn is_closed(&self) -> bool {
        Door { ip: self.ip, keys: self.keys.clone() }.is_closed()
    }
}

/// The pages, and the answer to all other paths.
///
/// # Errors
/// If the database's URL cannot be read.
pub fn router(settings: SiteSettings) -> anyhow::Result<Router> {
    let database = PostgresSettings {
        read_only: true,
        connections: CONNECTIONS,
        statement_timeout: PATIENCE,
        ..settings.database
    };
    let site = Site {
        postgres: Postgres::new(&database)?,
        queues: Queues::new(settings.queues),
        eyes: Eyes { masked: settings.mask },
    };
    let door = Door { ip: settings.ip, keys: settings.keys };
    Ok(Router::new()
        .route("/", get(now::page))
        .route("/mail", get(mail::search))
        .route("/mail/{uuid}", get(mail::page))
        .route("/stuck", get(stuck::page))
        .route("/stuck/orphans", get(stuck::orphans))
        .route("/stuck/orphan", get(stuck::orphan))
        .route("/stuck/quarantine", get(stuck::quarantine))
        .route("/stuck/body/{uuid}", get(stuck::body))
        .route("/figures", get(figures::page))
        .fallback(async || Problem::NotFound("There is no such page"))
        .layer(middleware::from_fn_with_state(Arc::new(door), guard))
        .with_state(Arc::new(site)))
}

type Answer = Result<Page, Problem>;

/// Why a page has no answer.
enum Problem {
    NotFound(&'static str),
    /// What was asked cannot be read.
    Unreadable(String),
    /// The database was not done in time.
    TooLong,
    /// It is not there, or does not let us in.
    Away,
    /// Its schema is not the one that this binary needs, or the login may not read it.
    Unfit(String),
    Broken,
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        match trouble(&error) {
            Trouble::TooLong => Self::TooLong,
            Trouble::Away => Self::Away,
            Trouble::Unfit(code) => Self::Unfit(code),
            Trouble::Other => {
                warn!("the page cannot answer: {}", error);
                Self::Broken
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, title, what) = match self {
            Self::NotFound(what) => (StatusCode::NOT_FOUND, "Not found", html! { p { (what) "." } }),
            Self::Unreadable(why) => {
                (StatusCode::BAD_REQUEST, "That cannot be read", html! { p { (text::line(&why)) } })
            }
            Self::TooLong => (StatusCode::SERVICE_UNAVAILABLE, "That takes too long", too_long()),
            Self::Away => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The database is not there",
                html! { p { "It does not answer in time, or does not let us in. The worker waits for it as well; no event is lost by it." }
                p { "To see why: " code { "ses-ledger migrate status" } } },
            ),
            Self::Unfit(code) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The database cannot be read",
                html! { p { "It says " code { "SQLSTATE " (code) } ": its schema is not the one that this version needs, or the login may not "
                    "read it." }
                p { "To see what is missing: " code { "ses-ledger migrate verify" } ". The login has to be a member of "
                    code { "ses_ledger_operator" } " or " code { "ses_ledger_worker" } "." } },
            ),
            Self::Broken => {
                (StatusCode::INTERNAL_SERVER_ERROR, "That did not work", html! { p { "The log says why." } })
            }
        };
        Page::problem(status, title, what).into_response()
    }
}

fn too_long() -> Markup {
    html! { p { "The database was not done within " (PATIENCE.as_secs()) " seconds, and was told to stop. Ask for a shorter time." } }
}

/// A page whose questions take longer than somebody waits is cut short.
async fn in_time<T>(work: impl Future<Output = anyhow::Result<T>>) -> Result<T, Problem> {
    Ok(timeout(PAGE_PATIENCE, work).await.map_err(|_| Problem::TooLong)??)
}

/// What stands after the `?`. What cannot be read is answered in our own words.
struct Asked<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|Query(asked)| Self(asked))
            .map_err(|_| Problem::Unreadable("Something after the ? is no question of ours.".to_owned()))
    }
}

/// A path with a query; what is empty is left out.
fn link<'a>(path: &str, query: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs = form_urlencoded::Serializer::new(String::new());
    pairs.extend_pairs(query.into_iter().filter(|(_, value)| !value.is_empty()));
    match pairs.finish() {
        query if query.is_empty() => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

/// The moment that a time begins with; nothing is given for any.
fn first_moment(text: &str) -> Result<Option<OffsetDateTime>, Problem> {
    given(text).map(|text| moment(&text)).transpose().map_err(Problem::Unreadable)
}

/// The moment after which it is over: a last day is meant with all its hours.
fn last_moment(text: &str) -> Result<Option<OffsetDateTime>, Problem> {
    let is_day = text.trim().len() == "2026-11-21".len() && text.trim().starts_with(|c: char| c.is_ascii_digit());
    let whole = if is_day && text.contains('-') { time::Duration::DAY } else { time::Duration::ZERO };
    Ok(first_moment(text)?.map(|last| last.saturating_add(whole)))
}

/// Something that is given, without blanks around it.
fn given(text: &str) -> Option<String> {
    Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned)
}
