//! `ses-ledger dlq`: what is in the dead-letter queue, and how it gets out of it.

use std::{collections::HashSet, path::PathBuf, process::ExitCode, time::Duration};

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{
    signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    },
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    ask::print,
    removal::Export,
    screen::{Screen, grouped, one_line, say, wrapped},
};
use crate::{
    aws::name_of,
    cli::{DecodeArgs, EXIT_UNAVAILABLE, EXIT_USAGE, QueueAddress, QueueArgs, queue},
    pipeline::{Queue as _, QueueError},
    readable::{plural, second, visible},
    replay::{self, Reading},
    sqs::{
        Sqs,
        dead_letters::{Letter, Move},
    },
};

/// Arguments of `dlq`.
#[derive(Clone, clap::Args)]
pub struct DlqArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, clap::Subcommand)]
enum What {
    /// Look at letters, and give them back at once
    ///
    /// They are hidden from others for as long as it takes, seconds; also when it is interrupted. SQS counts it as a receive.
    Peek(PeekArgs),
    /// Have SQS move the letters back to the queue that they came from
    ///
    /// SQS itself moves them: it goes on when this command is interrupted. --status follows it, --cancel ends it. Needs a
    /// redrive policy.
    Redrive(RedriveArgs),
    /// Write the letters to a file, one JSON object per line
    ///
    /// They stay in the queue, unless --delete is given: then each is deleted once its line is on disk.
    Export(ExportArgs),
}

/// Which dead-letter queue.
#[derive(Clone, clap::Args)]
struct LetterBoxArgs {
    #[command(flatten)]
    queue: QueueArgs,

    /// The dead-letter queue itself [default: that of the redrive policy of QUEUE_URL]
    #[arg(long, env, value_name = "URL", value_parser = queue, help_heading = "Queue")]
    dead_letter_queue_url: Option<QueueAddress>,
}

#[derive(Clone, clap::Args)]
struct PeekArgs {
    /// At most so many letters, 1 to 100
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    limit: u16,

    /// Show the bodies as well: they hold addresses and more
    #[arg(long)]
    bodies: bool,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    decode: DecodeArgs,

    #[command(flatten)]
    letters: LetterBoxArgs,
}

#[derive(Clone, clap::Args)]
struct RedriveArgs {
    /// Move at most so many in a second, like 50/s; 1 to 500 [default: as fast as SQS can]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<u32>,

    /// Only say how many would be moved, and where to
    #[arg(long, group = "instead")]
    dry_run: bool,

    /// Follow the task that runs, or tell how the last one ended
    #[arg(long, group = "instead")]
    status: bool,

    /// Cancel the task that runs; what is moved stays moved
    #[arg(long, group = "instead")]
    cancel: bool,

    /// Receive each letter, send it to QUEUE_URL, and then delete it: for a dead-letter queue from which SQS moves nothing, like
    /// that of an SNS subscription (--dead-letter-queue-url)
    #[arg(long, group = "instead", conflicts_with = "rate")]
    one_by_one: bool,

    /// Print one JSON object per line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    letters: LetterBoxArgs,
}

#[derive(Clone, clap::Args)]
struct ExportArgs {
    /// The file to make
    file: PathBuf,

    /// Delete each letter once its line is on disk
    #[arg(long)]
    delete: bool,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    letters: LetterBoxArgs,
}

/// How long letters stay hidden if nobody gives them back: while somebody looks, and while they are written.
const LOOK: Duration = Duration::from_secs(30);
const WRITE: Duration = Duration::from_secs(300);
/// How often to ask how a move gets on.
const EVERY: Duration = Duration::from_secs(1);
/// How often to look for a task that was just started.
const PATIENCE: u32 = 20;
/// What a shell calls the end by Ctrl-C.
const INTERRUPTED: u8 = 130;

impl DlqArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        let letters = match &self.what {
            What::Peek(args) => &args.letters,
            What::Redrive(args) => &args.letters,
            What::Export(args) => &args.letters,
        };
        match (&letters.dead_letter_queue_url, letters.queue.queue_url.as_slice()) {
            (Some(_), _) | (None, [_]) => Ok(()),
            (None, []) => Err("QUEUE_URL (--queue-url) has to name the worker's queue, or DEAD_LETTER_QUEUE_URL \
                               (--dead-letter-queue-url) its dead-letter queue"
                .to_owned()),
            (None, _) => Err("QUEUE_URL names several queues: name one of them with --queue-url".to_owned()),
        }
    }
}

/// Looks, moves or writes.
///
/// # Errors
/// If a file cannot be written.
pub async fn run(args: DlqArgs) -> anyhow::Result<ExitCode> {
    let letters = match &args.what {
        What::Peek(args) => &args.letters,
        What::Redrive(args) => &args.letters,
        What::Export(args) => &args.letters,
    };
    let letter_box = match LetterBox::find(letters).await {
        Ok(letter_box) => letter_box,
        Err(trouble) => return trouble.tell(),
    };
    let done = match args.what {
        What::Peek(args) => peek(&letter_box, &args).await,
        What::Redrive(args) => redrive(&letter_box, &args).await,
        What::Export(args) => export(&letter_box, &args).await,
    };
    done.or_else(Trouble::tell)
}

/// Why it did not come to an end.
enum Trouble {
    Queue(QueueError),
    Usage(String),
    Other(anyhow::Error),
}

impl Trouble {
    fn tell(self) -> anyhow::Result<ExitCode> {
        let (message, code) = match self {
            Self::Queue(e) => (e.to_string(), EXIT_UNAVAILABLE),
            Self::Usage(message) => (message, EXIT_USAGE),
            Self::Other(e) => return Err(e),
        };
        eprintln!("error: {message}");
        Ok(ExitCode::from(code))
    }
}

impl From<QueueError> for Trouble {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// A dead-letter queue, and what we know of where its letters come from.
struct LetterBox {
    sqs: Sqs,
    /// The worker's queue, if it is known.
    source: Option<Sqs>,
    /// How often a message was received before it became a letter.
    max_receive_count: Option<u32>,
}

impl LetterBox {
    async fn find(args: &LetterBoxArgs) -> Result<Self, Trouble> {
        if let Some(address) = &args.dead_letter_queue_url {
            let queue = QueueArgs { queue_url: vec![address.clone()], ..args.queue.clone() };
            let source = match args.queue.queue_url.as_slice() {
                [_] => Some(open(&args.queue).await?),
                _ => None,
            };
            return Ok(Self { sqs: open(&queue).await?, source, max_receive_count: None });
        }
        let source = open(&args.queue).await?;
        let Some(policy) = source.redrive_policy().await? else {
            return Err(Trouble::Usage(format!(
                "the queue {} has no redrive policy, and so no dead letters: what fails is handed out until it is too old. \
                 Set one: aws sqs set-queue-attributes --queue-url URL --attributes RedrivePolicy=…",
                source.name()
            )));
        };
        let mut queue = args.queue.clone();
        for address in &mut queue.queue_url {
            // It always is in the same account and region.
            let place = address.url.rsplit_once('/').map_or("", |(place, _)| place);
            address.url = format!("{place}/{}", name_of(&policy.dead_letter_queue_arn));
        }
        let (sqs, max_receive_count) = (open(&queue).await?, Some(policy.max_receive_count));
        Ok(Self { sqs, source: Some(source), max_receive_count })
    }
}

async fn arn_of(queue: &Sqs) -> Result<String, QueueError> {
    let arn = queue.attributes().await?.remove("QueueArn");
    arn.ok_or_else(|| QueueError::Transient(format!("the queue {} does not tell its ARN", queue.name())))
}

async fn open(args: &QueueArgs) -> Result<Sqs, Trouble> {
    let settings = args.sqs().into_iter().next().ok_or_else(|| Trouble::Usage("name a queue".to_owned()))?;
    Sqs::new(&settings).await.map_err(|e| Trouble::Usage(format!("{e:#}")))
}

/// Is cancelled by Ctrl-C or SIGTERM, so that what was begun can be brought to an end.
fn interruption() -> (CancellationToken, AbortOnDropHandle<()>) {
    let token = CancellationToken::new();
    let interrupted = token.clone();
    let waiting = tokio::spawn(async move {
        // Without it, a SIGTERM ends the program as ever.
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
            }
            Err(_) => drop(ctrl_c().await),
        }
        interrupted.cancel();
    });
    (token, AbortOnDropHandle::new(waiting))
}

async fn peek(letter_box: &LetterBox, args: &PeekArgs) -> Result<ExitCode, Trouble> {
    let (stop, _waiting) = interruption();
    let mut held = Vec::new();
    let taken = take(letter_box, args, &stop, &mut held).await;
    // Whatever happened, and before anything is shown.
    let given_back = letter_box.sqs.give_back(&held).await;
    if let Err(e) = given_back {
        eprintln!("warning: cannot give the letters back ({e}): others see them again in {} s", LOOK.as_secs());
    }
    taken?;
    let settings = args.decode.settings();
    let readings: Vec<(&Letter, Reading)> =
        held.iter().map(|letter| (letter, replay::read(letter.body.as_bytes(), &settings))).collect();
    let count = letter_box.sqs.depth().await?;
    let letters: Vec<Value> = readings.iter().map(|(letter, reading)| told(letter, reading, args.bodies)).collect();
    let answer = json!({ "queue": &*letter_box.sqs.name(), "letters_in_all": count, "letters": letters });
    print(args.json, &answer, || show_letters(letter_box, &readings, count, args.bodies))?;
    Ok(if stop.is_cancelled() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// A receive that has begun is waited for, also by who is interrupted: cut short, it would hide letters for nobody.
async fn take(
    letter_box: &LetterBox,
    args: &PeekArgs,
    stop: &CancellationToken,
    held: &mut Vec<Letter>,
) -> Result<(), QueueError> {
    let limit = usize::from(args.limit);
    while held.len() < limit && !stop.is_cancelled() {
        let letters = letter_box.sqs.take_letters(limit - held.len(), LOOK).await?;
        if letters.is_empty() {
            break;
        }
        held.extend(letters);
    }
    Ok(())
}

fn told(letter: &Letter, reading: &Reading, bodies: bool) -> Value {
    let mut told = json!(letter);
    told["reading"] = json!(reading);
    told["why"] = json!(why(reading));
    if !bodies && let Some(fields) = told.as_object_mut() {
        fields.remove("body");
        fields.remove("message_attributes");
    }
    told
}

fn show_letters(letter_box: &LetterBox, letters: &[(&Letter, Reading)], count: u64, bodies: bool) {
    let queue = letter_box.sqs.name();
    let queue = name_of(&queue);
    match letters {
        [] if count == 0 => say!("No letter is in {queue}."),
        [] => say!(
            "About {} letters are in {queue}, but none can be received now: somebody else has them.",
            grouped(count)
        ),
        _ => say!(
            "About {} in {queue}. {} of them:",
            plural(count.max(letters.len() as u64), "letter is", "letters are"),
            letters.len()
        ),
    }
    let screen = Screen::new(false);
    for (letter, reading) in letters {
        let sent = letter.sent_at.map_or_else(|| "?".to_owned(), second);
        say!("\n{}", screen.bold(&letter.message_id));
        say!("  sent {sent}, received {}", plural(u64::from(letter.receive_count), "time", "times"));
        say!("{}", wrapped("  ", &one_line(&reading.to_string(), 300)));
        for mail in reading.mails.iter().take(3) {
            say!("  mail {}", one_line(mail, 100));
        }
        say!("{}", wrapped("  → ", why(reading)));
        if bodies {
            say!("{}", folded(&visible(letter.body.as_bytes())));
        }
    }
    if letters.is_empty() {
        return;
    }
    let before = letter_box.max_receive_count.map(|n| format!(" (a message becomes one after {n} receives)"));
    say!(
        "\n{}",
        wrapped(
            "",
            &format!("They are all given back; each counts one receive more now{}.", before.unwrap_or_default())
        )
    );
    say!("Move them back: ses-ledger dlq redrive");
}

/// Why a letter probably failed. A worker stores, ignores or quarantines everything: whatever the body, it was not for it.
fn why(reading: &Reading) -> &'static str {
    match (reading.is_understood(), reading.events.is_empty()) {
        (true, false) => {
            "Understood: it would be stored. It was received too often and never deleted: the database or the workers \
             were away for long, or workers were killed again and again. Redrive it when they are well."
        }
        (true, true) => {
            "None of our business: a worker would delete it. Redrive it, or delete it with export --delete."
        }
        (false, _) => {
            "Not understood: a worker would put it into quarantine, and not leave it here. Was another consumer at the \
             queue, or no worker? Redrive it, then look into ses-ledger quarantine."
        }
    }
}

fn folded(text: &str) -> String {
    let characters = Vec::from_iter(text.chars());
    let lines = characters.chunks(76).map(|line| format!("    {}", String::from_iter(line)));
    lines.collect::<Vec<_>>().join("\n")
}

async fn redrive(letter_box: &LetterBox, args: &RedriveArgs) -> Result<ExitCode, Trouble> {
    if args.one_by_one {
        return carry(letter_box, args.json).await;
    }
    let arn = arn_of(&letter_box.sqs).await?;
    if args.cancel {
        return cancel(letter_box, &arn, args.json).await;
    }
    if args.status {
        return follow(letter_box, &arn, None, args.json).await;
    }
    let before = letter_box.sqs.moves(&arn).await?;
    let running = before.iter().find(|task| task.is_running());
    let count = letter_box.sqs.depth().await?;
    let queue = name_of(&arn).to_owned();
    if args.dry_run || count == 0 {
        print(args.json, &json!({ "letters": count, "running": running }), || match count {
            0 => say!("No letter is in {queue}."),
            n => say!("About {} of {queue} would be moved back.", plural(n, "letter", "letters")),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    match running {
        Some(_) => eprintln!("A task moves the letters of {queue} already."),
        None => {
            // Said, because SQS itself knows it only of letters that it has put there.
            let to = match &letter_box.source {
                Some(source) => Some(arn_of(source).await?),
                None => None,
            };
            letter_box.sqs.start_move(&arn, to, args.rate).await.map_err(|e| match e {
                QueueError::Fatal(why) | QueueError::Transient(why) if why.contains("Dead Letter Queue") => {
                    Trouble::Usage(format!("{why} SQS moves letters of queues only: --one-by-one does without it"))
                }
                other => other.into(),
            })?;
        }
    }
    let ended = before.iter().filter(|task| !task.is_running()).filter_map(|task| task.started_at).max();
    follow(letter_box, &arn, Some(ended), args.json).await
}

async fn cancel(letter_box: &LetterBox, arn: &str, as_json: bool) -> Result<ExitCode, Trouble> {
    let Some(running) = letter_box.sqs.moves(arn).await?.into_iter().find(Move::is_running) else {
        eprintln!("No task moves letters of {} now.", name_of(arn));
        return Ok(ExitCode::FAILURE);
    };
    let moved = letter_box.sqs.cancel_move(&running).await?;
    print(as_json, &json!({ "cancelled": true, "moved": moved }), || {
        say!("Cancelled. {} letters are moved, and stay where they are now.", grouped(moved));
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Tells how the newest task gets on, until it has ended. `begun`: one was started after all that began until then, and
/// SQS may take a moment to list it.
async fn follow(
    letter_box: &LetterBox,
    arn: &str,
    begun: Option<Option<OffsetDateTime>>,
    as_json: bool,
) -> Result<ExitCode, Trouble> {
    let (stop, _waiting) = interruption();
    let (screen, mut last, mut misses) = (Screen::new(as_json), None, 0);
    loop {
        let tasks = letter_box.sqs.moves(arn).await?.into_iter();
        let newest = tasks.max_by_key(|task| (task.is_running(), task.started_at));
        let newest = newest.filter(|task| begun.is_none_or(|ended| task.is_running() || task.started_at > ended));
        if let Some(task) = newest {
            let changed = last.as_ref() != Some(&task);
            match as_json {
                true if changed => say!("{}", json!(task)),
                false if changed || screen.terminal => screen.redraw(&progress(&task), !task.is_running()),
                _ => {}
            }
            if !task.is_running() {
                return Ok(ended(letter_box, &task));
            }
            last = Some(task);
        } else if begun.is_none() || misses == PATIENCE {
            eprintln!("No task has moved letters of {} lately.", name_of(arn));
            return Ok(ExitCode::FAILURE);
        } else {
            misses += 1;
        }
        if stop.run_until_cancelled(sleep(EVERY)).await.is_none() {
            eprintln!(
                "\nSQS goes on moving them. Follow it: ses-ledger dlq redrive --status; end it: ses-ledger dlq redrive --cancel"
            );
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }
}

fn progress(task: &Move) -> String {
    let Move { status, moved, to_move, rate, .. } = task;
    let rate = rate.map(|rate| format!(", at most {rate} in a second")).unwrap_or_default();
    format!("{}: moved {} of about {} letters{rate}", status.to_lowercase(), grouped(*moved), grouped(*to_move))
}

fn ended(letter_box: &LetterBox, task: &Move) -> ExitCode {
    if let Some(failure) = &task.failure {
        eprintln!("error: SQS gave up moving them: {}", one_line(failure, 200));
        if failure.contains("CouldNotDetermineMessageSource") {
            eprintln!(
                "They were sent to {} itself, so that SQS cannot tell where they belong: name their queue as well, with QUEUE_URL.",
                letter_box.sqs.name()
            );
        }
    }
    if task.status == "COMPLETED" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Moves letters without SQS's help. Each is deleted only after the worker's queue has it: one that is in both is stored once.
async fn carry(letter_box: &LetterBox, as_json: bool) -> Result<ExitCode, Trouble> {
    let LetterBox { sqs, source: Some(source), .. } = letter_box else {
        return Err(Trouble::Usage("--one-by-one needs QUEUE_URL (--queue-url): where the letters go".to_owned()));
    };
    let (stop, _waiting) = interruption();
    let (mut moved, screen) = (0, Screen::new(as_json));
    while !stop.is_cancelled() {
        let letters = sqs.take_letters(10, WRITE).await?;
        if letters.is_empty() {
            break;
        }
        let bodies: Vec<String> = letters.iter().map(|letter| letter.body.clone()).collect();
        if let Err(e) = source.send(&bodies).await {
            sqs.give_back(&letters).await?;
            return Err(e.into());
        }
        let left = sqs.delete_letters(&letters).await?;
        moved += (letters.len() - left.len()) as u64;
        if screen.terminal && !as_json {
            screen.redraw(&format!("{} letters moved", grouped(moved)), false);
        }
    }
    print(as_json, &json!({ "moved": moved }), || {
        let line = format!("{} moved to {}.", plural(moved, "letter is", "letters are"), name_of(&source.name()));
        screen.redraw(&line, true);
    })?;
    Ok(if stop.is_cancelled() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

async fn export(letter_box: &LetterBox, args: &ExportArgs) -> Result<ExitCode, Trouble> {
    let (stop, _waiting) = interruption();
    let mut file = Export::create(&args.file)?;
    let mut held = Vec::new();
    let outcome = write(letter_box, args, &stop, &mut file, &mut held).await;
    if let Err(e) = letter_box.sqs.give_back(&held).await {
        eprintln!("warning: cannot give the letters back ({e}): others see them again in {} s", WRITE.as_secs());
    }
    let (written, deleted) = outcome?;
    print(args.json, &json!({ "written": written, "deleted": deleted }), || {
        let deleted = if args.delete {
            format!("{} of them are deleted", grouped(deleted))
        } else {
            "all stay in the queue".to_owned()
        };
        let line = format!("{} in {}; {deleted}.", plural(written, "letter is", "letters are"), args.file.display());
        Screen::new(false).redraw(&line, true);
    })?;
    Ok(match (stop.is_cancelled(), args.delete && deleted < written) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (_, true) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// Writes until the queue has no more that it did not see. `held`: what is to be given back, whatever happens.
async fn write(
    letter_box: &LetterBox,
    args: &ExportArgs,
    stop: &CancellationToken,
    file: &mut Export,
    held: &mut Vec<Letter>,
) -> Result<(u64, u64), Trouble> {
    let (mut seen, mut deleted, screen) = (HashSet::new(), 0, Screen::new(args.json));
    while !stop.is_cancelled() {
        let mut letters = letter_box.sqs.take_letters(10, WRITE).await?;
        let from = held.len();
        held.append(&mut letters);
        let mut news = 0;
        for letter in &held[from..] {
            if seen.insert(letter.message_id.clone()) {
                file.line(&json!(letter).to_string())?;
                news += 1;
            }
        }
        if news == 0 && (!args.delete || held.len() == from) {
            break;
        }
        file.sync()?;
        if args.delete {
            let left = letter_box.sqs.delete_letters(&held[from..]).await?;
            deleted += (held.len() - from - left.len()) as u64;
            let batch = held.split_off(from).into_iter().enumerate();
            held.extend(batch.filter(|(n, _)| left.contains(n)).map(|(_, letter)| letter));
        } else {
            held.iter_mut().for_each(Letter::forget_body);
        }
        if screen.terminal && !args.json {
            screen.redraw(&format!("{} letters written", grouped(seen.len() as u64)), false);
        }
    }
    Ok((seen.len() as u64, deleted))
}

/// Reads `50` or `50/s`.
fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    let rate = number.parse().ok().filter(|rate| (1..=500).contains(rate));
    rate.ok_or_else(|| format!("{text:?} is no rate: write 1/s to 500/s"))
}
