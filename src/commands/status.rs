//! `ses-ledger status`: is it keeping up?

use std::{
    convert::Infallible,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::sleep;

use super::ask;
use super::screen::{Screen, grouped, one_line, wrapped};
use crate::{
    aws::name_of,
    cli::{DatabaseArgs, EXIT_UNAVAILABLE, QueueArgs, duration},
    event::EventKind,
    postgres::{Postgres, pulse::WorkerSeen},
    pulse::Identities,
    readable::{percent, plural, second, span, weight},
    retention::standing::Kept,
    status::{Asked, DOLLARS_PER_MILLION_REQUESTS, QueueState, Queues, Rate, Status, is_beyond, seconds, status},
};

/// Arguments of `status`.
#[derive(Args, Clone)]
pub struct StatusArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,

    #[command(flatten)]
    pub queue: QueueArgs,

    /// Look again and again, so often, until Ctrl-C; then also what comes in is known
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "2s", value_parser = duration)]
    watch: Option<Duration>,

    /// Print one JSON document; with --watch one object per line
    #[arg(long)]
    json: bool,
}

/// Shows how it is.
///
/// # Errors
/// If standard output is closed.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let screen = Screen::new(args.json);
    let postgres = match ask::connect(&args.database.reader()).await {
        Ok(postgres) => postgres,
        Err(code) => return Ok(code),
    };
    let queues = Queues::new(args.queue.sqs()).await;
    let first = match status(&postgres, queues.ask().await).await {
        Ok(first) => first,
        Err(e) => {
            eprintln!("error: {e:#}. To see why: ses-ledger migrate verify");
            return Ok(ExitCode::from(EXIT_UNAVAILABLE));
        }
    };
    show(&first, &screen)?;
    match args.watch {
        None if first.needs_somebody().is_empty() => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::FAILURE),
        Some(every) => {
            tokio::select! {
                closed = watch(&postgres, &queues, first, every, &screen) => match closed? {},
                stopped = tokio::signal::ctrl_c() => stopped?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Looks again and again, until nobody reads what it writes.
async fn watch(
    postgres: &Postgres,
    queues: &Queues,
    first: Status,
    every: Duration,
    screen: &Screen,
) -> io::Result<Infallible> {
    if screen.terminal && !screen.json {
        screen.clear();
        show(&first, screen)?;
    }
    // What comes in is told over the last looks: one by one they are too near to each other.
    let mut looks = vec![first];
    loop {
        sleep(every.max(Duration::from_millis(100))).await;
        match status(postgres, queues.ask().await).await {
            Ok(mut now) => {
                let old = now.database.now - COMPARE;
                let recent = looks.iter().position(|look| look.database.now >= old).unwrap_or(looks.len() - 1);
                looks.drain(..recent);
                now.compare(&looks[0]);
                if !screen.json {
                    screen.clear();
                }
                show(&now, screen)?;
                looks.push(now);
            }
            Err(e) => eprintln!("error: {e:#}; asking again"),
        }
    }
}

/// What comes in is told over this time.
const COMPARE: Duration = Duration::from_secs(60);

fn show(status: &Status, screen: &Screen) -> io::Result<()> {
    let needs = status.needs_somebody();
    if screen.json {
        let mut answer = json!(status);
        answer["needs_somebody"] = json!(needs);
        writeln!(io::stdout().lock(), "{answer}")?;
        return Ok(());
    }
    for part in [
        title(status, screen),
        about_queues(status, screen),
        about_rates(status, screen),
        about_kinds(status, screen),
        about_workers(status, screen),
        about_identities(status, screen),
        about_database(status, screen),
        about_retention(status, screen),
        about_cost(status, screen),
    ] {
        screen.say(&part);
    }
    if needs.is_empty() {
        screen.say(&screen.green("Nothing needs you, as far as it is known."));
    } else {
        screen.say(&screen.red("This needs somebody:"));
        needs.iter().for_each(|need| screen.say(&wrapped("  - ", need)));
    }
    Ok(())
}

fn title(status: &Status, screen: &Screen) -> String {
    screen.bold(&format!("Is it keeping up? {} UTC", second(status.database.now))) + "\n"
}

fn about_queues(status: &Status, screen: &Screen) -> String {
    let mut lines = vec![screen.bold("Queues")];
    if status.queues.is_empty() {
        lines.push("  QUEUE_URL (--queue-url) is not set, so no queue is asked".to_owned());
    }
    for queue in &status.queues {
        lines.push(format!("  {}", one_line(queue.short_name(), 78)));
        if let Asked::Unknown { unknown } = &queue.visible {
            lines.push(wrapped("    backlog      unknown: ", unknown));
            continue;
        }
        let count = |asked: &Asked<u64>| shown(asked, |count| grouped(*count));
        let (visible, in_flight, delayed) = (&queue.visible, &queue.in_flight, &queue.delayed);
        let counts = format!("{} waiting, {} in flight, {} delayed", count(visible), count(in_flight), count(delayed));
        lines.push(wrapped("    backlog      ", &counts));
        let age = shown(&queue.oldest_age_seconds, |age| format!("{} old when it was received", span(seconds(*age))));
        lines.push(wrapped("    oldest       ", &age));
        let dead = queue.dead_letter_queue.as_deref().map(name_of);
        let dead = dead.map_or(String::new(), |name| format!(" in {name}"));
        lines.push(wrapped("    dead letters ", &format!("{}{dead}", count(&queue.dead_letters))));
        lines.push(wrapped("    in and out   ", &in_and_out(queue)));
    }
    lines.join("\n") + "\n"
}

fn in_and_out(queue: &QueueState) -> String {
    let incoming = match queue.sent_per_second {
        Some(rate) => format!("about {} in", per_second(rate)),
        None => "in unknown at one look (see --watch)".to_owned(),
    };
    let drained = match &queue.drain_seconds {
        Asked::Known(0.0) => "nothing to drain".to_owned(),
        Asked::Known(time) => format!("drained in {}, if no more came in", span(seconds(*time))),
        Asked::Unknown { unknown } => format!("time to drain unknown: {unknown}"),
    };
    format!("{} out, {incoming}; {drained}", per_second(queue.deleted_per_second))
}

fn about_rates(status: &Status, screen: &Screen) -> String {
    let (minute, hour) = (&status.last_minute, &status.last_hour);
    let lately = match minute.seconds {
        60 => "last full minute".to_owned(),
        seconds => format!("since {seconds} s"),
    };
    let line = |title: &str, value: fn(&Rate) -> String| format!("  {title:<22}{:<27}{}", value(minute), value(hour));
    [
        screen.bold(&format!("{:<24}{lately:<27}{}", "Workers together", "last hour")),
        line("messages", |rate| counted(rate.counts.messages(), rate.messages_per_second)),
        line("events", |rate| counted(rate.counts.events(), rate.events_per_second)),
        line("new rows", |rate| grouped(rate.counts.inserted as u64)),
        line("redelivered", |rate| grouped(rate.counts.redelivered as u64)),
        line("lag, half of them", |rate| shown_or_dash(&rate.lag, |lag| within(lag.p50_seconds))),
        line("lag, 95 % of them", |rate| shown_or_dash(&rate.lag, |lag| within(lag.p95_seconds))),
    ]
    .join("\n")
        + "\n"
}

fn about_kinds(status: &Status, screen: &Screen) -> String {
    let now = status.database.now;
    let mut lines = vec![screen.bold(&format!("{:<24}{:<27}{}", "Last event", "happened", "stored"))];
    for kind in &EventKind::ALL {
        let last = status.last_events.iter().find(|last| last.event_type == kind.as_str());
        let (occurred_at, stored_at) = last.map_or((None, None), |last| (last.occurred_at, last.stored_at));
        lines.push(match (occurred_at, stored_at, last) {
            (Some(occurred_at), Some(stored_at), _) => {
                format!("  {:<22}{:<27}{}", kind.as_str(), second(occurred_at), ago(now, stored_at))
            }
            (_, _, Some(last)) => format!("  {:<22}never since {}", kind.as_str(), second(last.since)),
            (_, _, None) => format!("  {:<22}never", kind.as_str()),
        });
    }
    let others =
        status.last_events.iter().filter(|last| EventKind::ALL.iter().all(|kind| kind.as_str() != last.event_type));
    let others: Vec<_> = others.map(|last| one_line(&last.event_type, 64)).collect();
    if !others.is_empty() {
        lines.push(wrapped("  of other kinds        ", &others.join(", ")));
    }
    lines.join("\n") + "\n"
}

fn about_workers(status: &Status, screen: &Screen) -> String {
    let mut lines = vec![screen.bold(&format!(
        "{:<24}{:<10}{:<12}{:>9}{:>9}{:>8}{:>7}",
        "Workers alive", "version", "up", "msg/s", "event/s", "in hand", "drift"
    ))];
    for worker in status.alive() {
        let up = span(seconds((worker.seen_at - worker.started_at).as_seconds_f64()));
        let (messages, events) = rates_of(worker);
        let drift = worker.identities.messages_drift.abs() + worker.identities.events_drift.abs();
        lines.push(format!(
            "  {:<22}{:<10}{up:<12}{messages:>9.1}{events:>9.1}{:>8}{drift:>7}",
            one_line(&worker.name, 20),
            one_line(&worker.version, 8),
            worker.identities.in_hand,
        ));
    }
    if status.alive().next().is_none() {
        lines.push(match status.workers.first() {
            Some(last) => format!("  none; the last was seen {}", ago(status.database.now, last.seen_at)),
            None => "  none in the last two days".to_owned(),
        });
    }
    let names = |workers: Vec<&WorkerSeen>, since: fn(&WorkerSeen) -> OffsetDateTime| {
        let name = |worker: &&WorkerSeen| {
            format!("{} {}", one_line(&worker.name, 40), ago(status.database.now, since(worker)))
        };
        let mut names: Vec<String> = workers.iter().take(MOST_NAMES).map(name).collect();
        if workers.len() > MOST_NAMES {
            names.push(format!("and {} more", workers.len() - MOST_NAMES));
        }
        names.join(", ")
    };
    let (stopped, missing) = (Vec::from_iter(status.stopped()), Vec::from_iter(status.missing()));
    if !stopped.is_empty() {
        lines.push(wrapped("  stopped: ", &names(stopped, |worker| worker.stopped_at.unwrap_or(worker.seen_at))));
    }
    if !missing.is_empty() {
        lines.push(wrapped("  gone without a word: ", &names(missing, |worker| worker.seen_at)));
    }
    lines.join("\n") + "\n"
}

/// Messages and events a second: over the last full minute, or since it has started.
fn rates_of(worker: &WorkerSeen) -> (f64, f64) {
    let up = (worker.seen_at - worker.started_at).as_seconds_f64();
    let Identities { stored, ignored, rejected, inserted, duplicate, orphaned, quarantined, .. } = worker.identities;
    let (messages, events, seconds) = if up < 120.0 {
        (stored + ignored + rejected, inserted + duplicate + orphaned + quarantined, up.max(1.0))
    } else {
        (worker.last_minute.messages(), worker.last_minute.events(), 60.0)
    };
    (messages as f64 / seconds, events as f64 / seconds)
}

/// Names in one line; an hour of a Lambda function or of a worker that crashes has many.
const MOST_NAMES: usize = 5;

const FAULT: &str = "DOES NOT HOLD";

fn about_identities(status: &Status, screen: &Screen) -> String {
    let i = &status.identities;
    // Wrapped first: what paints takes no columns.
    let shown = |title: &str, text: String, drift: i64| match drift {
        0 => wrapped(title, &format!("holds: {text}")).replacen("holds", &screen.green("holds"), 1),
        _ => wrapped(title, &format!("DOES NOT HOLD, by {drift}: {text}")).replacen(FAULT, &screen.red(FAULT), 1),
    };
    let n = |number: i64| grouped(number.unsigned_abs());
    let messages = format!(
        "{} received = {} stored + {} ignored + {} rejected + {} released + {} in hand",
        n(i.received),
        n(i.stored),
        n(i.ignored),
        n(i.rejected),
        n(i.released),
        n(i.in_hand)
    );
    let events = format!(
        "{} decoded = {} inserted + {} duplicate + {} orphaned + {} quarantined",
        n(i.decoded),
        n(i.inserted),
        n(i.duplicate),
        n(i.orphaned),
        n(i.quarantined)
    );
    [
        screen.bold("Both identities, since the start of each worker that was seen in the last hour"),
        shown("  messages   ", messages, i.messages_drift),
        shown("  events     ", events, i.events_drift),
    ]
    .join("\n")
        + "\n"
}

fn about_database(status: &Status, screen: &Screen) -> String {
    let health = &status.database;
    let open = match (health.oldest_transaction_seconds, health.sees_transactions) {
        (Some(age), true) => format!("oldest open transaction {}", span(seconds(age))),
        (None, true) => "no open transaction".to_owned(),
        (_, false) => "oldest open transaction unknown: GRANT pg_read_all_stats TO this login".to_owned(),
    };
    let server = format!(
        "PostgreSQL {}; {} of {} connections; {open}",
        health.version, health.connections, health.connections_most
    );
    let oldest = health.oldest_orphan_seconds.map_or(String::new(), |age| format!(", oldest {}", span(seconds(age))));
    let rooms = format!(
        "{}{oldest}; {} in quarantine, {} of them not tried again",
        plural(health.orphans.unsigned_abs(), "orphan", "orphans"),
        plural(health.quarantined.unsigned_abs(), "body", "bodies"),
        grouped(health.quarantined_untried.unsigned_abs()),
    );
    let schema = match status.schema.first() {
        None => "what this binary needs".to_owned(),
        Some(first) => format!("{} ({} findings: ses-ledger migrate verify)", first.what, status.schema.len()),
    };
    let sizes: Vec<String> =
        health.tables.iter().map(|table| format!("{} {}", table.name, weight(table.bytes.unsigned_abs()))).collect();
    [
        screen.bold("Database"),
        wrapped("  server     ", &server),
        wrapped("  waiting    ", &rooms),
        wrapped("  schema     ", &schema),
        wrapped(
            "  partitions ",
            &format!("ready for {} after this one", plural(health.months_ahead.unsigned_abs(), "month", "months")),
        ),
        wrapped("  on disk    ", &sizes.join(", ")),
    ]
    .join("\n")
        + "\n"
}

fn about_retention(status: &Status, screen: &Screen) -> String {
    let standing = &status.retention;
    let mut lines =
        vec![screen.bold(&format!(
            "{:<13}{:<14}{:<21}{:<21}{:>11}",
            "Retention", "goes after", "last ran", "ended", "let go"
        ))];
    let mut notes: Vec<(String, Vec<&str>)> = Vec::new();
    for kept in &standing.classes {
        let class = kept.class.as_str();
        let at = |at: Option<OffsetDateTime>| at.map_or("-".to_owned(), second);
        let rows = kept.rows.map_or("-".to_owned(), grouped);
        let (setting, note) = setting(kept);
        lines.push(format!("  {class:<11}{setting:<14}{:<21}{:<21}{rows:>11}", at(kept.ran_at), at(kept.ended_at)));
        if let Some(note) = note {
            match notes.iter_mut().find(|(same, _)| *same == note) {
                Some((_, classes)) => classes.push(class),
                None => notes.push((note, vec![class])),
            }
        }
    }
    lines.extend(notes.iter().map(|(note, classes)| wrapped("  ", &format!("{}: {note}", classes.join(", ")))));
    let day = |at: OffsetDateTime| second(at).chars().take(10).collect::<String>();
    let mut from = Vec::from_iter(standing.events_from.map(|at| format!("events of mails since {}", day(at))));
    from.extend(standing.logs_from.map(|at| format!("mails since {}", day(at))));
    if !from.is_empty() {
        lines.push(wrapped("  kept are   ", &from.join(", ")));
    }
    if let Some(began_at) = standing.unfinished_run {
        lines.push(wrapped(
            "  ",
            &format!("a retention run began {} and has not ended", ago(status.database.now, began_at)),
        ));
    }
    lines.join("\n") + "\n"
}

/// After which time it goes, and what is to be said of that.
fn setting(kept: &Kept) -> (String, Option<String>) {
    let words = |age: &Option<u64>| age.map_or("off".to_owned(), |age| span(Duration::from_secs(age)));
    let told: Vec<String> = kept.workers_say.iter().map(words).collect();
    let last_run = kept.last_run_said.map(|age| words(&Some(age)));
    match (told.as_slice(), last_run) {
        ([], Some(run)) => (run, Some("so says its last run; no worker has told its setting".to_owned())),
        ([], None) => ("unknown".to_owned(), Some("no worker has told its setting".to_owned())),
        ([told], Some(run)) if *told != run => {
            (run, Some(format!("so says its last run; the workers' setting is {told}")))
        }
        ([told], _) => (told.clone(), None),
        (several, _) => ("differs".to_owned(), Some(format!("{}, as the workers are set", several.join(" or ")))),
    }
}

fn about_cost(status: &Status, screen: &Screen) -> String {
    let cost = &status.cost;
    let n = |number: i64| grouped(number.unsigned_abs());
    let dollars = shown(&cost.dollars_per_million_events, |dollars| {
        format!(
            "${dollars:.3} per million events: {} requests ({} receives, {} deletes, {} for visibility) for {} events, at \
             ${DOLLARS_PER_MILLION_REQUESTS:.2} per million requests",
            n(cost.requests),
            n(cost.receives),
            n(cost.delete_requests),
            n(cost.visibility_requests),
            n(cost.events),
        )
    });
    let fill = shown(&cost.fill, |fill| format!("{fill:.1} of 10 messages for each receive that brings any"));
    let idle =
        shown(&cost.idle, |idle| format!("{} of the receives bring nothing", percent((idle * 1e6) as u64, 1_000_000)));
    [
        screen.bold("What SQS cost, in the last hour"),
        wrapped("  price      ", &dollars),
        wrapped("  fill       ", &fill),
        wrapped("  idle       ", &idle),
    ]
    .join("\n")
        + "\n"
}

fn shown<T>(asked: &Asked<T>, show: impl FnOnce(&T) -> String) -> String {
    match asked {
        Asked::Known(value) => show(value),
        Asked::Unknown { unknown } => format!("unknown: {unknown}"),
    }
}

fn shown_or_dash<T>(asked: &Asked<T>, show: impl FnOnce(&T) -> String) -> String {
    asked.known().map_or_else(|| "-".to_owned(), show)
}

fn counted(count: i64, rate: f64) -> String {
    format!("{} ({})", grouped(count.unsigned_abs()), per_second(rate))
}

fn per_second(rate: f64) -> String {
    if rate >= 100.0 { format!("{}/s", grouped(rate as u64)) } else { format!("{rate:.1}/s") }
}

fn within(lag: f64) -> String {
    let word = if is_beyond(lag) { "more than" } else { "within" };
    format!("{word} {}", span(seconds(lag)))
}

fn ago(now: OffsetDateTime, at: OffsetDateTime) -> String {
    match seconds((now - at).as_seconds_f64().floor()) {
        Duration::ZERO => "just now".to_owned(),
        age => format!("{} ago", span(age)),
    }
}
