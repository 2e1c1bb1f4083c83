//! Runs a server of ours so that nothing of it outlives us.
//!
//! Between us and the server stands a small shell whose standard input is a pipe that we hold. When the
//! pipe closes, because we are done or because somebody killed us with SIGKILL, the shell stops the server
//! and removes its folder. It has a process group of its own, so that a Ctrl-C in the terminal reaches only
//! us and the server stays until we have finished with it.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::watch;

/// Obeys lines: `run␟program␟argument…`, `signal NAME`, `keep`; says `ready`, `running`, `ended CODE`.
/// One server at a time. A subshell waits for the server, so that its end is told at once; it reports
/// through `started` before the next line is read, so that the server is never missed at the end.
const SCRIPT: &str = r#"
exec 2>&1
folder=$1 signals=$2 patience=$3 at_end=remove
umask 077
set -f
mkdir "$folder" && mkfifo "$folder/started" || exit 1
unit=$(printf '\037')
alive() { [ -e "$folder/alive" ] && kill -0 "$pid" 2>/dev/null; }
echo ready
while IFS= read -r line; do
  case $line in
  run*)
    IFS=$unit
    set -- ${line#run"$unit"}
    unset IFS
    : >"$folder/alive"
    ( "$@" </dev/null >>"$folder/log" 2>&1 &
      echo $! >"$folder/started"
      echo running
      wait $!
      code=$?
      rm -f "$folder/alive"
      echo "ended $code" ) &
    read -r pid <"$folder/started" ;;
  signal*) alive && kill -s "${line#signal }" "$pid" ;;
  keep) at_end=keep ;;
  esac
done
[ "$at_end" = keep ] && exit 0
for signal in $signals KILL; do
  alive && kill -s "$signal" "$pid"
  tries=$patience
  while alive && [ $tries -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
done
tries=50
until rm -rf "$folder" || [ $tries -eq 0 ]; do sleep 0.1; tries=$((tries - 1)); done
"#;

/// The shell needs no longer for a line than this.
const ANSWER: Duration = Duration::from_secs(10);

/// Separates the parts of a command on their way to the shell: no path contains it.
const UNIT: &str = "\u{1f}";

/// What a [`Guard`] is to run as, where, and how it ends.
#[derive(Debug)]
pub struct GuardSettings {
    /// Where the guard makes the server's private folder, which it also removes.
    pub parent: PathBuf,
    /// The folder's name, made unique by what follows it.
    pub name: &'static str,
    /// Signals that stop the server, the gentlest first; SIGKILL follows by itself.
    pub signals: &'static [&'static str],
    /// How long each of them may take, in tenths of a second.
    pub patience: u32,
    /// Whom to run as. `None`: as we are.
    pub user: Option<User>,
    /// The whole environment of the server: ours may hold credentials that are none of its business.
    pub environment: Vec<(OsString, OsString)>,
}

/// An entry of the machine's user list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
}

/// A server under guard. Dropping it stops the server and removes its folder in the background.
#[derive(Debug)]
pub struct Guard {
    folder: PathBuf,
    /// Its end, on purpose or not, is the signal to clean up.
    orders: Option<ChildStdin>,
    news: watch::Receiver<News>,
    runs: u32,
    kept: bool,
}

/// What the shell has said so far.
#[derive(Debug, Default)]
struct News {
    ready: bool,
    started: u32,
    ended: u32,
    code: i32,
    complaint: String,
    gone: bool,
}

impl Guard {
    /// Starts the guard and makes its folder. No server runs yet.
    ///
    /// # Errors
    ///
    /// If there is no `/bin/sh`, we may not become the user, or the folder cannot be made.
    pub async fn start(settings: GuardSettings) -> Result<Guard> {
        let folder = settings.parent.join(format!("{}-{}", settings.name, random_hex(8)?));
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SCRIPT, "guard"])
            .arg(&folder)
            .arg(settings.signals.join(" "))
            .arg(settings.patience.to_string())
            .env_clear()
            .envs(settings.environment)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(user) = &settings.user {
            command.uid(user.uid).gid(user.gid);
        }
        let mut shell = command.spawn().context("cannot start the shell that guards the server")?;
        let orders = shell.stdin.take();
        let (sender, news) = watch::channel(News::default());
        std::thread::spawn(move || listen(shell, &sender));

        let guard = Guard { folder, orders, news, runs: 0, kept: false };
        guard.heard(ANSWER, |news| news.ready).await.context("cannot make the server's folder")?;
        Ok(guard)
    }

    /// Starts a program and returns as soon as it is under way. Its output goes to [`Guard::log`].
    ///
    /// # Errors
    ///
    /// If another one is still running, or the guard is gone.
    pub async fn run<S: AsRef<str>>(&mut self, command: &[S]) -> Result<()> {
        ensure!(self.news.borrow().ended == self.runs, "cannot run two servers under one guard");
        let command: Vec<&str> = command.iter().map(AsRef::as_ref).collect();
        ensure!(
            !command.iter().any(|part| part.contains(['\n', '\u{1f}'])),
            "cannot run a command with a line break in it"
        );
        self.order(&format!("run{UNIT}{}", command.join(UNIT)))?;
        self.runs += 1;
        self.heard(ANSWER, |news| news.started == self.runs).await.context("cannot start the server")
    }

    /// Waits for the end of what runs, and returns its exit status as the shell tells it (128 + signal).
    ///
    /// # Errors
    ///
    /// If it takes longer than `patience`, or the guard is gone.
    pub async fn ended(&self, patience: Duration) -> Result<i32> {
        self.heard(patience, |news| news.ended == self.runs).await?;
        Ok(self.news.borrow().code)
    }

    /// Sends a signal (`INT`, `QUIT`, `TERM`…) to what runs; nothing happens if nothing does.
    ///
    /// # Errors
    ///
    /// If the guard is gone.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        self.order(&format!("signal {name}"))
    }

    /// From now on the server and its folder are left alone, whatever becomes of us.
    ///
    /// # Errors
    ///
    /// If the guard is gone.
    pub fn keep(&mut self) -> Result<()> {
        self.order("keep")?;
        self.kept = true;
        Ok(())
    }

    /// Stops what runs, removes the folder, and returns when that is done. After [`Guard::keep`]: at once.
    ///
    /// # Errors
    ///
    /// If the folder is still there afterwards.
    pub async fn close(mut self) -> Result<()> {
        self.orders = None;
        if self.kept {
            return Ok(());
        }
        let mut news = self.news.clone();
        // Past that even SIGKILL did not help: the server is stuck in the kernel.
        let _ = tokio::time::timeout(Duration::from_secs(60), news.wait_for(|news| news.gone)).await;
        ensure!(!self.folder.exists(), "cannot remove {}", self.folder.display());
        Ok(())
    }

    /// The server's private folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Everything that the server wrote to its standard output and error.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The last lines of the log, for an error message.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn order(&mut self, line: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("cannot use a closed guard")?;
        writeln!(orders, "{line}").context("cannot reach the guard of the server")
    }

    async fn heard(&self, patience: Duration, what: impl Fn(&News) -> bool) -> Result<()> {
        let mut news = self.news.clone();
        let wait = news.wait_for(|news| what(news) || news.gone);
        let Ok(Ok(news)) = tokio::time::timeout(patience, wait).await else {
            bail!("nothing happened for {} s", patience.as_secs());
        };
        ensure!(what(&news), "the guard has ended: {}", news.complaint);
        Ok(())
    }
}

/// A port of 127.0.0.1 on which nobody listens now. Somebody else may be faster than the server.
///
/// # Errors
///
/// If there is none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot find a free port")?;
    Ok(listener.local_addr().context("cannot find a free port")?.port())
}

/// Random bytes for names and passwords, two digits each.
pub(super) fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    let mut source = fs::File::open("/dev/urandom").context("cannot open the source of random numbers")?;
    source.read_exact(&mut buffer).context("cannot read random numbers")?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Follows the shell to its end, on a thread: servers outlive the runtime of the test that started them.
fn listen(mut shell: Child, news: &watch::Sender<News>) {
    let lines = shell.stdout.take().map(|out| BufReader::new(out).lines());
    for line in lines.into_iter().flatten().map_while(Result::ok) {
        news.send_modify(|news| match line.split_once(' ') {
            None if line == "ready" => news.ready = true,
            None if line == "running" => news.started += 1,
            Some(("ended", code)) => {
                news.ended += 1;
                news.code = code.parse().unwrap_or(-1);
            }
            _ => news.complaint = line,
        });
    }
    // A zombie would be left otherwise; how the shell ended says nothing that it has not told.
    let _ = shell.wait();
    news.send_modify(|news| news.gone = true);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guard in the temporary folder whose server gets `patience` tenths of a second.
    async fn guard(signals: &'static [&'static str], patience: u32) -> Guard {
        let settings = GuardSettings {
            parent: std::env::temp_dir(),
            name: "ses-ledger-guard-test",
            signals,
            patience,
            user: None,
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        };
        Guard::start(settings).await.expect("a shell and a temporary folder exist")
    }

    const A_WHILE: Duration = Duration::from_secs(20);

    async fn poll(what: &str, done: impl Fn() -> bool) {
        let begin = std::time::Instant::now();
        while !done() {
            assert!(begin.elapsed() < A_WHILE, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn logged(guard: &Guard) {
        poll("the server says nothing", || !guard.log_tail().is_empty()).await;
    }

    #[tokio::test]
    async fn the_end_and_the_output_of_a_server_are_told() -> Result<()> {
        let mut guard = guard(&["TERM"], 50).await;
        guard.run(&["sh", "-c", "echo 'on two'; echo words >&2; exit 7"]).await?;
        assert_eq!(guard.ended(A_WHILE).await?, 7);
        assert_eq!(guard.log_tail(), "on two\nwords");
        guard.run(&["no-such-program"]).await?;
        assert_eq!(guard.ended(A_WHILE).await?, 127);
        guard.close().await
    }

    #[tokio::test]
    async fn arguments_arrive_as_they_are() -> Result<()> {
        let mut guard = guard(&["TERM"], 50).await;
        guard.run(&["printf", "<%s>", "a  b", "", "*", "$HOME \\ '\""]).await?;
        guard.ended(A_WHILE).await?;
        assert_eq!(guard.log_tail(), "<a  b><><*><$HOME \\ '\">");
        assert!(guard.run(&["echo", "two\nlines"]).await.is_err());
        guard.close().await
    }

    #[tokio::test]
    async fn signals_reach_the_server_and_only_one_runs_at_a_time() -> Result<()> {
        let mut guard = guard(&["TERM"], 50).await;
        guard.run(&["sleep", "600"]).await?;
        assert!(guard.run(&["sleep", "600"]).await.is_err());
        guard.signal("TERM")?;
        assert_eq!(guard.ended(A_WHILE).await?, 128 + 15);
        guard.run(&["true"]).await?;
        assert_eq!(guard.ended(A_WHILE).await?, 0);
        guard.close().await
    }

    #[tokio::test]
    async fn closing_stops_even_a_stubborn_server_and_removes_the_folder() -> Result<()> {
        let mut guard = guard(&["TERM"], 2).await;
        guard.run(&["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.05; done"]).await?;
        logged(&guard).await;
        let (folder, pid) = (guard.folder().to_owned(), guard.log_tail());
        assert!(folder.exists() && alive(&pid));
        guard.close().await?;
        assert!(!folder.exists() && !alive(&pid));
        Ok(())
    }

    #[tokio::test]
    async fn dropping_stops_the_server_and_removes_the_folder() -> Result<()> {
        let mut guard = guard(&["TERM"], 50).await;
        guard.run(&["sh", "-c", "echo $$; exec sleep 600"]).await?;
        logged(&guard).await;
        let (folder, pid) = (guard.folder().to_owned(), guard.log_tail());
        assert!(folder.exists() && alive(&pid));
        drop(guard);
        poll("the server or its folder stays", || !folder.exists() && !alive(&pid)).await;
        Ok(())
    }

    #[tokio::test]
    async fn a_kept_server_is_left_alone() -> Result<()> {
        let mut guard = guard(&["TERM"], 50).await;
        guard.run(&["sh", "-c", "echo $$; exec sleep 600"]).await?;
        logged(&guard).await;
        let (folder, pid) = (guard.folder().to_owned(), guard.log_tail());
        guard.keep()?;
        let mut news = guard.news.clone();
        guard.close().await?;
        // The shell is gone at the latest when it would have used up its patience.
        let _ = tokio::time::timeout(Duration::from_secs(1), news.wait_for(|news| news.gone)).await;
        let left = folder.exists() && alive(&pid);
        kill("TERM", &pid);
        fs::remove_dir_all(folder)?;
        assert!(left);
        Ok(())
    }

    #[tokio::test]
    async fn the_environment_of_ours_stays_ours() -> Result<()> {
        let mut guard = guard(&["TERM"], 50).await;
        guard.run(&["env"]).await?;
        guard.ended(A_WHILE).await?;
        let log = guard.log_tail();
        assert!(log.contains("PATH=/usr/bin:/bin"), "{log}");
        assert!(!log.contains("CARGO"), "{log}");
        guard.close().await
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_signal_to_our_process_group_misses_the_server() -> Result<()> {
        let group = |stat: &str| stat.rsplit(')').next()?.split_whitespace().nth(2).map(str::to_owned);
        let mut guard = guard(&["TERM"], 50).await;
        guard.run(&["cat", "/proc/self/stat"]).await?;
        guard.ended(A_WHILE).await?;
        let ours = group(&fs::read_to_string("/proc/self/stat")?);
        let theirs = group(&guard.log_tail());
        assert!(ours.is_some() && theirs.is_some() && ours != theirs, "{ours:?} {theirs:?}");
        guard.close().await
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_an_error() {
        let settings = GuardSettings {
            parent: "/proc/no-such-folder".into(),
            name: "x",
            signals: &[],
            patience: 1,
            user: None,
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        };
        let error = format!("{:#}", Guard::start(settings).await.expect_err("no such folder"));
        assert!(error.contains("mkdir"), "{error}");
    }

    fn alive(pid: &str) -> bool {
        kill("0", pid)
    }

    /// By the shell: `kill` as a program is missing on small systems.
    fn kill(signal: &str, pid: &str) -> bool {
        Command::new("sh")
            .args(["-c", r#"kill -s "$0" "$1""#, signal, pid.trim()])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}
