//! Who logs in where: by the URL, a secret, a token, or several of them together; and what to do when it is refused.
//!
//! Credentials are looked at when somebody logs in, and not by a clock of ours: on Lambda nothing runs between two
//! invocations. Connections that are open do not care when a password is replaced or a token gets old.

#[cfg(test)]
mod tests;

use std::{
    error::Error,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use sqlx::{ConnectOptions as _, PgPool, postgres::PgConnectOptions};
use tokio::sync::Mutex;
use tracing::{info, warn};
use url::Url;

use super::{
    PostgresSettings,
    iam::Iam,
    secret::{Secret, Source},
    session::Settings,
    tls,
};
use crate::aws::{GIVE_CREDENTIALS, lacks_credentials};

/// New credentials are asked for once in so long at most, however often a login is refused.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// What a login proves itself with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Auth {
    /// The password of the URL or the secret
    #[default]
    Password,
    /// A token of IAM database authentication, signed with the AWS credentials; needs TLS
    Iam,
}

/// Why there are no credentials to log in with, or no agreement on how.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct LoginError {
    message: String,
    /// Waiting does not help.
    pub(super) is_final: bool,
}

/// Gives the pool what it connects with.
pub(super) struct Login {
    target: Target,
    secret: Option<Source>,
    iam: Option<Iam>,
    known: Mutex<Known>,
    clock: Box<dyn Fn() -> SystemTime + Send + Sync>,
}

/// What was found out so far.
#[derive(Default)]
struct Known {
    secret: Option<Secret>,
    /// When credentials were asked for.
    asked_at: Option<SystemTime>,
    /// When they get too old, if they do.
    stale_at: Option<SystemTime>,
}

/// What the URL and the settings say, and what of it a secret may fill in.
pub(super) struct Target {
    options: PgConnectOptions,
    names_host: bool,
    names_port: bool,
    names_database: bool,
    wishes: tls::Wishes,
}

impl LoginError {
    pub(super) fn for_good(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_final: true }
    }

    pub(super) fn for_now(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_final: false }
    }

    /// If it comes from there being no AWS credentials at all.
    pub(super) fn for_credentials(error: &(dyn Error + 'static)) -> Option<Self> {
        let lacking = || Self::for_good(format!("there are no AWS credentials: {GIVE_CREDENTIALS}"));
        lacks_credentials(error).then(lacking)
    }
}

impl From<LoginError> for sqlx::Error {
    fn from(error: LoginError) -> Self {
        Self::Configuration(error.into())
    }
}

impl Login {
    pub(super) fn new(settings: &PostgresSettings) -> anyhow::Result<Self> {
        Ok(Self {
            target: Target::read(settings)?,
            secret: settings.secret.clone().map(Source::new),
            iam: (settings.auth == Auth::Iam).then(Iam::default),
            known: Mutex::default(),
            clock: Box::new(SystemTime::now),
        })
    }

    /// What a pool can begin with, although a secret or a token may be missing yet.
    pub(super) fn first_options(&self) -> Result<PgConnectOptions, LoginError> {
        match self.is_fixed() {
            true => self.target.options(None),
            false => Ok(self.target.options.clone()),
        }
    }

    /// Connects with current credentials; when they are refused, once more with new ones, if there are any.
    pub(super) async fn connect<T, F>(&self, pool: &PgPool, connect: impl Fn() -> F) -> Result<T, sqlx::Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        if self.is_fixed() {
            return connect().await;
        }
        self.keep_fresh(pool).await?;
        let tried = pool.connect_options();
        match connect().await {
            Err(refused) if is_refused(&refused) => match self.renew(pool, &tried).await {
                true => connect().await,
                false => Err(refused),
            },
            answer => answer,
        }
    }

    /// The URL says everything, for good.
    fn is_fixed(&self) -> bool {
        self.secret.is_none() && self.iam.is_none()
    }

    /// Looks for credentials if there are none yet, and makes a new token before the last one gets too old.
    async fn keep_fresh(&self, pool: &PgPool) -> Result<(), LoginError> {
        let mut known = self.known.lock().await;
        let now = (self.clock)();
        match (known.asked_at, known.stale_at) {
            (None, _) => self.ask(pool, &mut known, now).await,
            (Some(asked_at), Some(stale_at)) if stale_at <= now && is_past(asked_at, now) => {
                known.asked_at = Some(now);
                let answer = self.ask(pool, &mut known, now).await;
                // Perhaps no login is needed: there may be a connection.
                answer.unwrap_or_else(|e| warn!("cannot renew the credentials for the database yet: {e}"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Looks for other credentials than these, which were refused. Says whether there are any.
    async fn renew(&self, pool: &PgPool, refused: &Arc<PgConnectOptions>) -> bool {
        let mut known = self.known.lock().await;
        if !Arc::ptr_eq(refused, &pool.connect_options()) {
            return true; // somebody else has just looked
        }
        let now = (self.clock)();
        if !known.asked_at.is_none_or(|asked_at| is_past(asked_at, now)) {
            return false;
        }
        (known.asked_at, known.secret) = (Some(now), None);
        match self.ask(pool, &mut known, now).await {
            Ok(()) => {
                info!("the database refused the login: trying again with new credentials");
                true
            }
            Err(e) => {
                warn!("the database refused the login, and there are no new credentials: {e}");
                false
            }
        }
    }

    async fn ask(&self, pool: &PgPool, known: &mut Known, now: SystemTime) -> Result<(), LoginError> {
        if let (Some(source), None) = (&self.secret, &known.secret) {
            known.secret = Some(source.read().await?);
        }
        let mut options = self.target.options(known.secret.as_ref())?;
        if let Some(iam) = &self.iam {
            let token = iam.token(&options, now).await?;
            options = options.password(&token.text);
            known.stale_at = Some(token.stale_at);
        }
        known.asked_at = Some(now);
        pool.set_connect_options(options);
        Ok(())
    }
}

impl Target {
    pub(super) fn read(settings: &PostgresSettings) -> anyhow::Result<Self> {
        const WRONG: &str = "cannot read DATABASE_URL: expected postgres://USER:PASSWORD@HOST:5432/NAME";
        // The parser's own words may show a part of it.
        let url = Url::parse(settings.url.as_deref().unwrap_or("postgres://")).ok().context(WRONG)?;
        let options = PgConnectOptions::from_url(&url).ok().context(WRONG)?;
        // Statements are logged by what they do for a batch, not by their hundred lines of text.
        let options = options.disable_statement_logging().application_name("ses-ledger");
        let says = |keys: &[&str]| url.query_pairs().find(|(key, _)| keys.contains(&&**key)).map(|(_, value)| value);
        let root_cert = says(&["sslrootcert", "ssl-root-cert", "ssl-ca"]).map(|file| PathBuf::from(&*file));
        Ok(Self {
            options: Settings::of(settings).apply(options),
            names_host: url.host_str().is_some_and(|host| !host.is_empty()) || says(&["host", "hostaddr"]).is_some(),
            names_port: url.port().is_some() || says(&["port"]).is_some(),
            names_database: !url.path().trim_start_matches('/').is_empty() || says(&["dbname"]).is_some(),
            wishes: tls::Wishes {
                names_mode: says(&["sslmode", "ssl-mode"]).is_some(),
                root_cert: root_cert.or_else(|| settings.root_cert.clone()),
                must_be_secret: settings.auth == Auth::Iam,
            },
        })
    }

    /// The host, if it is not this machine.
    pub(super) fn foreign_host(&self) -> Option<String> {
        (!tls::is_here(&self.options)).then(|| self.options.get_host().to_owned())
    }

    /// With what the secret knows better, or alone.
    pub(super) fn options(&self, secret: Option<&Secret>) -> Result<PgConnectOptions, LoginError> {
        let mut options = self.options.clone();
        if let Some(secret) = secret {
            options = options.username(&secret.username);
            if let Some(password) = &secret.password {
                options = options.password(password);
            }
            if let (false, Some(host)) = (self.names_host, &secret.host) {
                options = options.host(host);
            }
            if let (false, Some(port)) = (self.names_port, secret.port.as_ref().and_then(|port| port.number())) {
                options = options.port(port);
            }
            if let (false, Some(database)) = (self.names_database, &secret.dbname) {
                options = options.database(database);
            }
        }
        tls::settle(options, &self.wishes)
    }
}

fn is_past(asked_at: SystemTime, now: SystemTime) -> bool {
    // A clock that was set back must not stop us.
    now.duration_since(asked_at).is_err() || now >= asked_at + ASK_AGAIN
}

/// The server does not believe that we are who we say: 28P01 is a wrong password, 28000 what IAM answers.
fn is_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    matches!(code.as_deref(), Some("28P01" | "28000"))
}
