//! What every command does that takes something away: sees whether it may, asks, keeps a copy where it is told to, and
//! tells what was taken away before.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::screen::{Screen, grouped, one_line, say, wrapped};
use crate::{
    postgres::{
        Postgres,
        stuck::{self, Removal, Work},
    },
    readable::second,
};

/// Removals to tell about.
pub(super) const REMOVALS: u32 = 3;

/// How to remove something.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RemovalArgs {
    /// First write what is removed to this new file, one JSON object per line; nothing is removed before all of it is on disk
    #[arg(long, value_name = "FILE")]
    pub(super) export: Option<PathBuf>,

    /// Only say how many would be removed
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

/// A file of one JSON object per line.
pub(super) struct Export {
    out: BufWriter<File>,
    path: PathBuf,
}

impl Export {
    /// Makes the file, for its owner only: it holds what mails hold.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).with_context(|| format!("cannot make the file {}", path.display()))?;
        Ok(Self { out: BufWriter::new(file), path: path.to_owned() })
    }

    pub(super) fn line(&mut self, json: &str) -> anyhow::Result<()> {
        writeln!(self.out, "{json}").with_context(|| self.trouble())
    }

    /// Comes back when all lines are on disk.
    pub(super) fn sync(&mut self) -> anyhow::Result<()> {
        self.out.flush().and_then(|()| self.out.get_ref().sync_all()).with_context(|| self.trouble())
    }

    fn trouble(&self) -> String {
        format!("cannot write to {}: nothing that is not in it was removed", self.path.display())
    }
}

/// How far a long removal is; on a terminal only.
pub(super) fn show_progress(screen: &Screen, done: usize, all: usize, what: &str) {
    if screen.terminal && !screen.json {
        screen.redraw(&format!("{} of {} {what}", grouped(done as u64), grouped(all as u64)), false);
    }
}

/// Whether the login may not do that; then it is told what to do about it.
pub(super) async fn refuses(postgres: &Postgres, work: Work, what: &str) -> anyhow::Result<bool> {
    let grant = stuck::lacks(postgres, work).await?;
    if let Some(grant) = &grant {
        eprintln!("error: this login may not {what}. To mend it, have the schema's owner run: {grant}");
    }
    Ok(grant.is_some())
}

/// Asks, and says why not.
pub(super) fn may_remove(what: &str, yes: bool) -> bool {
    match is_wanted(&format!("Remove {what}?"), yes) {
        Ok(true) => true,
        Ok(false) => {
            eprintln!("Nothing was removed.");
            false
        }
        Err(e) => {
            eprintln!("error: {e:#}. It would remove {what}");
            false
        }
    }
}

/// What was removed before, so that nobody looks for it.
pub(super) fn show_removals(removals: &[Removal]) {
    if removals.is_empty() {
        return;
    }
    say!("\nRemoved before:");
    for removal in removals {
        let Removal { removed, reason, removed_by, ended_at, .. } = removal;
        let text = format!("{} by {}: {}", grouped(*removed as u64), one_line(removed_by, 40), one_line(reason, 200));
        say!("{}", wrapped(&format!("  {}  ", second(*ended_at)), &text));
    }
}

/// Whether to go on: somebody said so, on the command line or now.
///
/// # Errors
/// If nobody can be asked.
pub(super) fn is_wanted(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        anyhow::bail!("cannot ask here whether you are sure: add --yes");
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read your answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
