//! `ses-ledger quarantine`: bodies that could not be understood or stored, and what to do with them.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    ask::{connect, print},
    removal::{Export, REMOVALS, RemovalArgs, may_remove, refuses, show_progress, show_removals},
    screen::{Screen, grouped, one_line, say, wrapped},
};
use crate::{
    aws::name_of,
    cli::{DatabaseArgs, DecodeArgs, EXIT_USAGE},
    pipeline::decode::{Excerpt, excerpt},
    postgres::{
        Postgres,
        stuck::{self, Body, Page, QuarantineGroup, QuarantinedBodies, QuarantinedBody, Removal, Which, Work},
    },
    readable::{plural, second, visible},
    replay::{self, Reading, Replayed},
};

/// Arguments of `quarantine`.
#[derive(Clone, clap::Args)]
pub struct QuarantineArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, clap::Subcommand)]
enum What {
    /// List the ways in which bodies failed; with --reason or --fingerprint the bodies themselves
    List(ListArgs),
    /// Show one body, with the failing place between » and «
    Show(ShowArgs),
    /// Send bodies through the pipeline again
    ///
    /// What this binary understands by now becomes events, as if it had just arrived: no row is stored twice, however often
    /// it is replayed. The body stays in quarantine, with what came of it. Bodies that an earlier replay has understood and
    /// stored are passed over. Exits with 1 if a body is still not understood or not stored.
    Replay(ReplayArgs),
    /// Remove bodies, visibly
    ///
    /// They are counted in the table ses_ledger_removals, with who removed them. Needs a login that is a member of
    /// ses_ledger_owner, or was granted the right to execute ses_ledger_drop_quarantined.
    Drop(DropArgs),
}

/// Which bodies.
#[derive(Clone, clap::Args)]
#[group(multiple = false)]
struct WhichArgs {
    /// One body
    uuid: Option<Uuid>,

    /// Bodies that failed for this reason, like no_mail
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,

    /// Bodies that failed in the same way, like no_mail:$.mail
    #[arg(long, value_name = "FINGERPRINT")]
    fingerprint: Option<String>,
}

#[derive(Clone, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    which: WhichArgs,

    /// At most so many bodies, 1 to 1000
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,

    /// Go on where the page before ended
    #[arg(long, value_name = "UUID")]
    after: Option<Uuid>,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Clone, clap::Args)]
struct ShowArgs {
    /// The uuid of a body, or a fingerprint: then its newest body
    body: String,

    /// Bytes to show on each side of the failing place
    #[arg(long, default_value_t = 300, value_name = "BYTES")]
    window: usize,

    /// Write the body itself to standard output, byte by byte
    #[arg(long, conflicts_with = "json")]
    raw: bool,

    /// With --raw: also to a terminal, on which it may act
    #[arg(long, requires = "raw")]
    force: bool,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    decode: DecodeArgs,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Clone, clap::Args)]
struct ReplayArgs {
    #[command(flatten)]
    which: WhichArgs,

    /// Only show what this binary makes of each body; nothing is written
    #[arg(long)]
    dry_run: bool,

    /// At most so many bodies, the newest [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<u64>,

    /// Also those that an earlier replay has understood and stored
    #[arg(long)]
    again: bool,

    /// Print one JSON object per line: one for each body, then a summary
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    decode: DecodeArgs,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Clone, clap::Args)]
struct DropArgs {
    #[command(flatten)]
    which: WhichArgs,

    /// Only those that a replay has understood and stored
    #[arg(long)]
    understood: bool,

    #[command(flatten)]
    removal: RemovalArgs,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

/// Bodies to read about, or remove, at a time.
const SLICE: u32 = 500;

impl QuarantineArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.what {
            What::List(args) => args.database.check(),
            What::Show(args) => args.database.check(),
            What::Replay(args) => args.database.check(),
            What::Drop(args) if args.which.which() == Which::All && !args.understood => {
                Err("which bodies? Name one by its uuid, or --fingerprint, --reason or --understood".to_owned())
            }
            What::Drop(args) => args.database.check(),
        }
    }
}

impl WhichArgs {
    fn which(&self) -> Which {
        match (&self.uuid, &self.reason, &self.fingerprint) {
            (Some(uuid), ..) => Which::One(*uuid),
            (_, Some(reason), _) => Which::Reason(reason.clone()),
            (.., Some(fingerprint)) => Which::Fingerprint(fingerprint.clone()),
            _ => Which::All,
        }
    }
}

/// Answers, or does it.
///
/// # Errors
/// If the database cannot be read, or the login may not.
pub async fn run(args: QuarantineArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        What::List(args) => list(args).await,
        What::Show(args) => show(args).await,
        What::Replay(args) => replay(args).await,
        What::Drop(args) => remove(args).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let postgres = match connect(&args.database.reader()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let which = args.which.which();
    if which != Which::All || args.after.is_some() {
        let page = Page { before: args.after, most: args.limit };
        let found = stuck::quarantined(&postgres, &which, &page).await?;
        return print(args.json, &found, || show_bodies(&found));
    }
    let groups = stuck::quarantine_groups(&postgres).await?;
    let removals = stuck::removals(&postgres, "quarantine", REMOVALS).await?;
    let answer = json!({ "groups": groups, "removals": removals });
    print(args.json, &answer, || show_groups(&Screen::new(false), &groups, &removals))
}

async fn show(args: ShowArgs) -> anyhow::Result<ExitCode> {
    let postgres = match connect(&args.database.reader()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let Some(body) = find(&postgres, &args.body).await? else {
        eprintln!("No body in quarantine has this uuid or fingerprint: ses-ledger quarantine list");
        return Ok(ExitCode::FAILURE);
    };
    if args.raw {
        return raw(&body.bytes, args.force);
    }
    let reading = replay::read(&body.bytes, &args.decode.settings());
    let excerpt = excerpt(&body.bytes, place(&body.about, &reading), args.window);
    let answer = json!({ "body": body.about, "reading": reading, "excerpt": excerpt });
    print(args.json, &answer, || show_body(&body.about, &reading, &excerpt))
}

async fn find(postgres: &Postgres, name: &str) -> anyhow::Result<Option<Body>> {
    let uuid = match name.parse() {
        Ok(uuid) => uuid,
        Err(_) => {
            let which = Which::Fingerprint(name.to_owned());
            let page = stuck::quarantined(postgres, &which, &Page { before: None, most: 1 }).await?;
            let Some(newest) = page.bodies.first() else { return Ok(None) };
            newest.uuid
        }
    };
    stuck::body(postgres, uuid).await
}

/// Where to look: where this binary fails, else where the one that quarantined it did. They differ for a part of a body,
/// whose place was told as that in the whole.
fn place<'a>(about: &'a QuarantinedBody, reading: &'a Reading) -> &'a str {
    match reading.rejected.as_slice() {
        [failure, ..] => &failure.at,
        [] => &about.at,
    }
}

fn raw(bytes: &[u8], force: bool) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    if out.is_terminal() && !force {
        eprintln!("error: a body may act on your terminal. Send it to a file or a program, or add --force");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write the body to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// What a replay came to, all bodies together.
#[derive(Default)]
struct Sum {
    bodies: u64,
    settled: u64,
    inserted: u64,
    duplicate: u64,
    orphaned: u64,
}

async fn replay(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let settings = if args.dry_run { args.database.reader() } else { args.database.settings() };
    let postgres = match connect(&settings).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    if !args.dry_run && refuses(&postgres, Work::Replay, "replay bodies").await? {
        return Ok(ExitCode::FAILURE);
    }
    let which = args.which.which();
    let again = args.again || matches!(which, Which::One(_));
    let (mut sum, mut before, screen) = (Sum::default(), None, Screen::new(args.json));
    'pages: loop {
        let page = stuck::quarantined(&postgres, &which, &Page { before, most: SLICE }).await?;
        for about in page.bodies.iter().filter(|about| again || !about.is_settled()) {
            if args.limit.is_some_and(|limit| sum.bodies >= limit) {
                break 'pages;
            }
            replay_one(&postgres, about, &args, &mut sum, &screen).await?;
        }
        match page.next {
            Some(next) => before = Some(next),
            None => break,
        }
    }
    sum.tell(&args, &screen);
    Ok(if sum.settled == sum.bodies { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn replay_one(
    postgres: &Postgres,
    about: &QuarantinedBody,
    args: &ReplayArgs,
    sum: &mut Sum,
    screen: &Screen,
) -> anyhow::Result<()> {
    let settings = args.decode.settings();
    // Somebody may have removed it meanwhile.
    let Some(body) = stuck::body(postgres, about.uuid).await? else { return Ok(()) };
    let (outcome, told) = match args.dry_run {
        true => {
            let reading = replay::read(&body.bytes, &settings);
            sum.settled += u64::from(reading.is_understood());
            (becomes(&reading), json!({ "uuid": about.uuid.to_string(), "reading": reading }))
        }
        false => {
            let replayed = replay::replay(postgres, &body, &settings).await?;
            sum.add(&replayed);
            (
                replayed.to_string(),
                json!({ "uuid": about.uuid.to_string(), "outcome": replayed.to_string(), "replayed": replayed }),
            )
        }
    };
    sum.bodies += 1;
    if args.json {
        say!("{told}");
    } else if args.dry_run || !screen.terminal {
        say!("{}", wrapped(&format!("{}  ", about.uuid), &one_line(&outcome, 400)));
    } else {
        screen.redraw(&format!("{} replayed, {} of them understood", grouped(sum.bodies), grouped(sum.settled)), false);
    }
    Ok(())
}

impl Sum {
    fn add(&mut self, replayed: &Replayed) {
        self.settled += u64::from(replayed.is_settled());
        self.inserted += replayed.inserted;
        self.duplicate += replayed.duplicate;
        self.orphaned += replayed.orphaned;
    }

    fn tell(&self, args: &ReplayArgs, screen: &Screen) {
        let Self { bodies, settled, inserted, duplicate, orphaned } = *self;
        if args.json {
            let summary = json!({
                "bodies": bodies, "settled": settled, "inserted": inserted, "duplicate": duplicate, "orphaned": orphaned,
            });
            say!("{summary}");
            return;
        }
        let (all, good) = (plural(bodies, "body", "bodies"), grouped(settled));
        let line = match args.dry_run {
            true => format!("This binary understands {good} of {all}. Nothing was written."),
            false => format!(
                "Replayed {all}, {good} of them understood: stored {}, duplicate {}, orphaned {}.",
                grouped(inserted),
                grouped(duplicate),
                grouped(orphaned)
            ),
        };
        screen.redraw(&line, true);
    }
}

async fn remove(args: DropArgs) -> anyhow::Result<ExitCode> {
    let postgres = match connect(&args.database.settings()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    if !args.removal.dry_run && refuses(&postgres, Work::Drop, "remove bodies").await? {
        return Ok(ExitCode::FAILURE);
    }
    let which = args.which.which();
    let (uuids, screen) = (chosen(&postgres, &which, args.understood).await?, Screen::new(args.json));
    let why = reason(&which, args.understood);
    let what = format!("{} in quarantine ({why})", plural(uuids.len() as u64, "body", "bodies"));
    if args.removal.dry_run || uuids.is_empty() {
        return print(args.json, &json!({ "would_remove": uuids.len(), "removed": 0 }), || {
            say!("{}", wrapped("", &one_line(&format!("{what} would be removed."), 400)));
        });
    }
    if !may_remove(&one_line(&what, 300), args.removal.yes) {
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    if let Some(file) = &args.removal.export {
        let mut export = Export::create(file)?;
        for (n, uuid) in uuids.iter().enumerate() {
            show_progress(&screen, n, uuids.len(), "written");
            if let Some(body) = stuck::body(&postgres, *uuid).await? {
                export.line(&as_json(&body)?)?;
            }
        }
        export.sync()?;
    }
    let (run, mut removed) = (Uuid::now_v7(), 0);
    for (n, slice) in uuids.chunks(SLICE as usize).enumerate() {
        show_progress(&screen, n * SLICE as usize, uuids.len(), "removed");
        removed += stuck::drop_quarantined(&postgres, run, slice, &why).await?;
    }
    print(args.json, &json!({ "removal": run.to_string(), "removed": removed }), || {
        screen.redraw(
            &format!("Removed {}; ses_ledger_removals tells so under", plural(removed, "body", "bodies")),
            true,
        );
        say!("{run}.");
    })
}

async fn chosen(postgres: &Postgres, which: &Which, understood: bool) -> anyhow::Result<Vec<Uuid>> {
    let (mut uuids, mut before) = (Vec::new(), None);
    loop {
        let page = stuck::quarantined(postgres, which, &Page { before, most: SLICE }).await?;
        let bodies = page.bodies.iter().filter(|body| !understood || body.is_settled());
        uuids.extend(bodies.map(|body| body.uuid));
        match page.next {
            Some(next) => before = Some(next),
            None => return Ok(uuids),
        }
    }
}

/// Which they were, for whoever looks for them later.
fn reason(which: &Which, understood: bool) -> String {
    let which = match which {
        Which::All => "all".to_owned(),
        Which::Reason(reason) => format!("reason {reason}"),
        Which::Fingerprint(fingerprint) => format!("fingerprint {fingerprint}"),
        Which::One(uuid) => format!("body {uuid}"),
    };
    if understood { which + " that a replay has understood" } else { which }
}

/// All that is known of a body, and its bytes: as text, or in base64 if they are none.
fn as_json(body: &Body) -> anyhow::Result<String> {
    let mut object = serde_json::to_value(&body.about)?;
    let (name, bytes) = match str::from_utf8(&body.bytes) {
        Ok(text) => ("body", Value::from(text)),
        Err(_) => ("body_base64", Value::from(BASE64_STANDARD.encode(&body.bytes))),
    };
    object[name] = bytes;
    Ok(object.to_string())
}

fn show_groups(screen: &Screen, groups: &[QuarantineGroup], removals: &[Removal]) {
    let sum = |count: fn(&QuarantineGroup) -> i64| groups.iter().map(count).sum::<i64>();
    match groups {
        [] => say!("No body is in quarantine."),
        _ => say!(
            "{} in quarantine, seen {}; {} of them understood since.",
            plural(sum(|g| g.bodies) as u64, "body is", "bodies are"),
            times(sum(|g| g.times_seen)),
            grouped(sum(|g| g.settled) as u64)
        ),
    }
    for group in groups {
        let QuarantineGroup { bodies, times_seen, first_seen_at, last_seen_at, replayed, settled, .. } = group;
        say!("\n{}", screen.bold(&one_line(&group.fingerprint, 200)));
        let seen = format!("{}, seen {}", plural(*bodies as u64, "body", "bodies"), times(*times_seen));
        let replays = match replayed {
            0 => String::new(),
            n => format!("; {} replayed, {} understood since", grouped(*n as u64), grouped(*settled as u64)),
        };
        say!("{}", wrapped("  ", stuck::meaning(&group.stage, &group.reason)));
        say!("  {seen}{replays}");
        say!("  {} to {} UTC", second(*first_seen_at), second(*last_seen_at));
    }
    if let Some(group) = groups.first() {
        say!("\nOne of them:       ses-ledger quarantine show '{}'", one_line(&group.fingerprint, 200));
        say!("What they become:  ses-ledger quarantine replay --dry-run");
    }
    show_removals(removals);
}

fn show_bodies(found: &QuarantinedBodies) {
    for body in &found.bodies {
        let QuarantinedBody { uuid, bytes, times_seen, first_seen_at, .. } = body;
        say!(
            "{uuid}  {}  {} bytes, seen {}",
            second(*first_seen_at),
            grouped(*bytes as u64),
            times(i64::from(*times_seen))
        );
        let replayed = body.last_replay_outcome.as_ref().map(|outcome| format!("; replayed: {outcome}"));
        let text = format!("{} at {}{}", body.reason, body.at, replayed.unwrap_or_default());
        say!("{}", wrapped("  ", &one_line(&text, 400)));
    }
    match found.next {
        Some(next) => say!("More: add --after {next}"),
        None if found.bodies.is_empty() => say!("No body in quarantine is of this kind."),
        None => {}
    }
}

fn show_body(about: &QuarantinedBody, reading: &Reading, excerpt: &Excerpt) {
    let QuarantinedBody { stage, reason, at, bytes, times_seen, receive_count, .. } = about;
    let replays = match (&about.last_replayed_at, &about.last_replay_outcome) {
        (Some(when), Some(outcome)) => {
            format!("{}, last {}: {outcome}", times(i64::from(about.replay_count)), second(*when))
        }
        _ => "never".to_owned(),
    };
    let next = match reading.is_understood() {
        true => format!("{}: ses-ledger quarantine replay {}", becomes(reading), about.uuid),
        false => becomes(reading),
    };
    say!("{}", about.uuid);
    let facts = [
        ("reason", format!("{reason} at {at}")),
        ("", stuck::meaning(stage, reason).to_owned()),
        (
            "seen",
            format!(
                "{}, {} to {} UTC",
                times(i64::from(*times_seen)),
                second(about.first_seen_at),
                second(about.last_seen_at)
            ),
        ),
        (
            "from",
            format!(
                "{}, message {}, received {}",
                name_of(&about.queue),
                about.sqs_message_id,
                times(i64::from(*receive_count))
            ),
        ),
        ("body", format!("{} bytes", grouped(*bytes as u64))),
        ("replayed", replays),
        ("this binary", next),
    ];
    say!("  fingerprint  '{}'", one_line(&about.fingerprint, 500));
    for (name, fact) in facts {
        say!("{}", wrapped(&format!("  {name:<12} "), &one_line(&fact, 500)));
    }
    if let Some(missing) = &excerpt.missing {
        say!("{}", wrapped("  missing      ", &one_line(missing, 200)));
    }
    say!("\n{}", folded(&marked(excerpt)));
}

/// What this binary makes of a body, in words.
fn becomes(reading: &Reading) -> String {
    match reading.is_understood() && !reading.events.is_empty() {
        true => format!("becomes {reading}"),
        false => reading.to_string(),
    }
}

/// The excerpt as it can be shown anywhere, with the failing place between » and «.
fn marked(excerpt: &Excerpt) -> String {
    let left_out = |bytes: usize| match bytes {
        0 => String::new(),
        n => format!(" …{} bytes… ", grouped(n as u64)),
    };
    format!(
        "{}{}»{}{}«{}{}",
        left_out(excerpt.start),
        visible(&excerpt.before),
        visible(&excerpt.failing),
        left_out(excerpt.omitted),
        visible(&excerpt.after),
        left_out(excerpt.rest)
    )
}

/// In lines of 78 characters, wherever that is.
fn folded(text: &str) -> String {
    let characters = Vec::from_iter(text.trim().chars());
    let lines = characters.chunks(78).map(|line| format!("  {}", String::from_iter(line)));
    lines.collect::<Vec<_>>().join("\n")
}

fn times(count: i64) -> String {
    match count {
        1 => "once".to_owned(),
        n => format!("{} times", grouped(n.unsigned_abs())),
    }
}
