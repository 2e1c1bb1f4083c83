//! A private PostgreSQL server: found or fetched by itself, used by the demo, the tests and the benchmarks.
//!
//! It listens on a random port of the loopback address and asks for a random password, since other users of
//! the machine can reach that port. Its folder goes with it, even when we are killed: see [`super::guard`].

use std::{
    ffi::OsString,
    fmt,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

use super::{
    binaries::{self, Binaries, Progress, Search},
    guard::{Guard, GuardSettings, User, free_port, random_hex},
};

/// From the start of the server to its first connection; crash recovery is part of it.
const START: Duration = Duration::from_secs(60);

/// A fast shutdown writes a checkpoint.
const STOP: Duration = Duration::from_secs(60);

/// How a [`LocalPostgres`] is found and run.
#[derive(Clone)]
pub struct LocalPostgresSettings {
    /// The value of `PATH`, where server programs are looked for first.
    pub path: OsString,
    /// The server's folder is made in here; in `/tmp` if we are root and others cannot enter this one.
    pub temp_dir: PathBuf,
    /// For what may be thrown away and is good to have: downloads go to `ses-ledger` in it;
    /// to `/var/cache` if we are root and others cannot enter this one.
    pub cache_dir: PathBuf,
    /// Which server programs to use.
    pub origin: OriginChoice,
    /// Survive a crash of the machine. Tests that need speed switch it off; a crash of the server alone
    /// loses no commit in either case.
    pub fsync: bool,
    /// Connections at a time.
    pub max_connections: u16,
    /// Further settings of the server, such as `("log_min_duration_statement", "0")`.
    pub options: Vec<(String, String)>,
    /// Follows the download, if there is one.
    pub progress: Option<Progress>,
}

/// Which server programs to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginChoice {
    /// Those of the machine, else downloaded ones.
    Any,
    /// Those of the machine or none.
    Machine,
    /// Downloaded ones, whatever the machine has.
    Download,
}

impl LocalPostgresSettings {
    /// Durable, 100 connections, programs from anywhere. The environment is the caller's to read.
    pub fn new(path: OsString, temp_dir: PathBuf, cache_dir: PathBuf) -> LocalPostgresSettings {
        LocalPostgresSettings {
            path,
            temp_dir,
            cache_dir,
            origin: OriginChoice::Any,
            fsync: true,
            max_connections: 100,
            options: Vec::new(),
            progress: None,
        }
    }
}

/// How to stop the server, in PostgreSQL's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Cut the connections, write a checkpoint.
    Fast,
    /// As in a crash: the next start recovers from the log.
    Immediate,
}

/// A running server. Dropping it stops it and removes its data in the background.
pub struct LocalPostgres {
    guard: Guard,
    origin: Binaries,
    port: u16,
    password: String,
    settings: LocalPostgresSettings,
}

impl fmt::Debug for LocalPostgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalPostgres")
            .field("origin", &self.origin)
            .field("port", &self.port)
            .field("data_dir", &self.data_dir())
            .finish_non_exhaustive()
    }
}

impl LocalPostgres {
    /// Finds or downloads server programs, makes an empty cluster, starts it, and waits until it answers.
    ///
    /// # Errors
    ///
    /// If no server can be had (the message names the command that installs one), or it does not start
    /// (the message ends with its log).
    pub async fn start(settings: LocalPostgresSettings) -> Result<LocalPostgres> {
        let user = unprivileged_user()?;
        let search = search(&settings, user.is_some());
        let origin = tokio::task::spawn_blocking(move || binaries::find(&search))
            .await
            .context("cannot look for PostgreSQL")??;

        let guard = Guard::start(GuardSettings {
            parent: reachable(&settings.temp_dir, "/tmp", user.is_some()),
            name: "ses-ledger-postgres",
            signals: &["INT", "QUIT"],
            patience: 100,
            user: user.clone(),
            environment: vec![("PATH".into(), settings.path.clone())],
        })
        .await?;

        let password = random_hex(20)?;
        let mut server = LocalPostgres { guard, origin, port: 0, password, settings };
        server.make_cluster(user.as_ref()).await?;
        server.run_on_free_port().await?;
        Ok(server)
    }

    /// The database `postgres`, with user and password.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// A database of this server, which need not exist yet, with user and password.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// The port on 127.0.0.1: the same one for the whole life of this value.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Which server programs run, and where they came from; its `Display` is made for people.
    pub fn origin(&self) -> &Binaries {
        &self.origin
    }

    /// The cluster. It is removed with the server.
    pub fn data_dir(&self) -> PathBuf {
        self.guard.folder().join("data")
    }

    /// What the server has to say.
    pub fn log(&self) -> PathBuf {
        self.guard.log()
    }

    /// Stops the server and keeps port and data for [`LocalPostgres::start_again`].
    ///
    /// # Errors
    ///
    /// If it does not stop within a minute.
    pub async fn stop(&mut self, mode: StopMode) -> Result<()> {
        self.guard.signal(match mode {
            StopMode::Fast => "INT",
            StopMode::Immediate => "QUIT",
        })?;
        self.guard.ended(STOP).await.context("cannot stop PostgreSQL")?;
        Ok(())
    }

    /// Starts the stopped server, with the data and on the port that it had.
    ///
    /// # Errors
    ///
    /// If it runs already, or does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        self.run().await
    }

    /// From now on the server runs on and its data stay, whatever becomes of us.
    ///
    /// # Errors
    ///
    /// If its guard is gone.
    pub fn keep(&mut self) -> Result<()> {
        self.guard.keep()
    }

    /// Stops the server, removes its data, and returns when both are gone. After [`LocalPostgres::keep`] it
    /// only lets go.
    ///
    /// # Errors
    ///
    /// If something is left.
    pub async fn close(self) -> Result<()> {
        self.guard.close().await
    }

    async fn make_cluster(&mut self, user: Option<&User>) -> Result<()> {
        let password_file = self.guard.folder().join("password");
        write_private(&password_file, &self.password, user)?;
        let mut initdb = vec![
            self.program("initdb")?,
            format!("--pgdata={}", self.data_dir().display()),
            format!("--pwfile={}", password_file.display()),
        ];
        initdb.extend(["--no-sync", "-N", "-U", "postgres", "--auth=scram-sha-256", "-E", "UTF8"].map(String::from));
        initdb.extend(locale(self.origin.major()).iter().map(|&argument| argument.to_owned()));
        self.guard.run(&initdb).await?;
        let code = self.guard.ended(START).await.context("cannot wait for initdb")?;
        if code != 0 {
            bail!("cannot make a database cluster with {}:\n{}", self.origin, self.guard.log_tail());
        }
        fs::remove_file(&password_file).context("cannot remove the password file")
    }

    /// Somebody may take a free port before the server does: a few attempts.
    async fn run_on_free_port(&mut self) -> Result<()> {
        for _ in 0..4 {
            self.port = free_port()?;
            match self.run().await {
                Err(error) if error.to_string().contains("Address already in use") => {}
                result => return result,
            }
        }
        bail!("cannot find a free port for PostgreSQL")
    }

    async fn run(&mut self) -> Result<()> {
        let mut command = vec![self.program("postgres")?, "-D".to_owned(), self.data_dir().display().to_string()];
        for (name, value) in self.options() {
            command.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        self.guard.run(&command).await?;
        let data_dir = self.data_dir();
        tokio::select! {
            ended = self.guard.ended(START) => match ended {
                Ok(code) => bail!("cannot start {} (exit status {code}):\n{}", self.origin, self.guard.log_tail()),
                Err(_) => bail!("cannot wait longer for {}:\n{}", self.origin, self.guard.log_tail()),
            },
            () = is_ready(&data_dir) => Ok(()),
        }
    }

    fn options(&self) -> Vec<(String, String)> {
        let durable = if self.settings.fsync { "on" } else { "off" };
        let port = self.port.to_string();
        let max_connections = self.settings.max_connections.to_string();
        let ours = [
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            // A socket would need a short path; everybody can use the port.
            ("unix_socket_directories", ""),
            ("max_connections", &max_connections),
            ("shared_buffers", "128MB"),
            ("max_wal_size", "2GB"),
            // A commit is one in either case: an immediate stop must not lose it.
            ("fsync", durable),
            ("full_page_writes", durable),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            // Some distributions log to files elsewhere.
            ("log_destination", "stderr"),
            ("logging_collector", "off"),
        ];
        let ours = ours.map(|(name, value)| (name.to_owned(), value.to_owned()));
        ours.into_iter().chain(self.settings.options.iter().cloned()).collect()
    }

    fn program(&self, name: &str) -> Result<String> {
        let path = self.origin.folder.join(name);
        path.into_os_string().into_string().ok().context("cannot use programs in a folder whose name is not UTF-8")
    }
}

fn search(settings: &LocalPostgresSettings, as_root: bool) -> Search {
    let cache = reachable(&settings.cache_dir, "/var/cache", as_root);
    Search {
        path: settings.path.clone(),
        root: "/".into(),
        machine: settings.origin != OriginChoice::Download,
        download_to: (settings.origin != OriginChoice::Machine).then(|| cache.join("ses-ledger")),
        for_others: as_root,
        progress: settings.progress.clone(),
    }
}

/// The folder, or a public one in its place if the server runs as a user who could not enter it.
fn reachable(folder: &Path, public: &str, as_root: bool) -> PathBuf {
    if as_root && !binaries::open_to_all(folder) {
        return public.into();
    }
    folder.to_owned()
}

/// Sorting and upper case by code point, for all of Unicode where the version allows.
fn locale(major: u32) -> &'static [&'static str] {
    if major >= 17 {
        &["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    } else if cfg!(target_os = "macos") {
        &["--locale=C"]
    } else {
        &["--locale=C.UTF-8"]
    }
}

/// Returns when the server takes connections: the last line of its lock file says so.
/// See `src/include/utils/pidfile.h` in PostgreSQL.
async fn is_ready(data_dir: &Path) {
    let lock = data_dir.join("postmaster.pid");
    let since = Instant::now();
    while !fs::read_to_string(&lock).is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready")) {
        let pause = if since.elapsed() < Duration::from_secs(1) { 10 } else { 100 };
        sleep(Duration::from_millis(pause)).await;
    }
}

/// Whom to run a server as: PostgreSQL refuses to run as root. `None`: we are not root.
///
/// # Errors
///
/// If we are root, and the machine has no user for servers.
pub fn unprivileged_user() -> Result<Option<User>> {
    let id = Command::new("id").arg("-u").output().context("cannot run id")?;
    if id.stdout.trim_ascii() != b"0" {
        return Ok(None);
    }
    let list = fs::read_to_string("/etc/passwd").context("cannot read the list of users")?;
    let user = user(&list, "postgres").or_else(|| user(&list, "nobody"));
    user.map(Some).context("cannot run PostgreSQL: it refuses to run as root, and there is no user postgres or nobody")
}

/// An entry of `/etc/passwd`.
fn user(list: &str, name: &str) -> Option<User> {
    // macOS writes nobody as -2.
    let number = |text: &str| text.parse().ok().or_else(|| text.parse::<i32>().ok().map(i32::cast_unsigned));
    list.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
        Some(User { name: name.to_owned(), uid, gid })
    })
}

/// Writes a file that only the server's user can read. Never follows a link.
fn write_private(path: &Path, text: &str, user: Option<&User>) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        user.map_or(Ok(()), |user| chown(path, Some(user.uid), Some(user.gid)))
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\n\
        nobody:*:-2:-2:Unprivileged User:/var/empty:/usr/bin/false\n\
        postgres:x:114:122:PostgreSQL:/var/lib/postgresql:/bin/bash\n";

    #[test]
    fn the_unprivileged_user_is_found_by_name() {
        let postgres = user(USERS, "postgres").map(|user| (user.uid, user.gid));
        assert_eq!(postgres, Some((114, 122)));
        let nobody = user(USERS, "nobody").map(|user| (user.uid, user.gid));
        assert_eq!(nobody, Some((4_294_967_294, 4_294_967_294)));
        assert_eq!(user(USERS, "post"), None);
    }

    #[test]
    fn downloads_go_where_the_servers_user_can_read_them() {
        let mut settings = LocalPostgresSettings::new("/bin".into(), "/tmp".into(), "/no/such/folder".into());
        let cache = |settings: &_, as_root| search(settings, as_root).download_to;
        assert_eq!(cache(&settings, false), Some("/no/such/folder/ses-ledger".into()));
        assert_eq!(cache(&settings, true), Some("/var/cache/ses-ledger".into()));
        settings.cache_dir = "/usr".into();
        assert_eq!(cache(&settings, true), Some("/usr/ses-ledger".into()));
        settings.origin = OriginChoice::Machine;
        assert_eq!(cache(&settings, true), None);
    }
}
