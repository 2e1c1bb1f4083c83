//! `/`: is it keeping up?

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::extract::State;
use maud::{Markup, html};
use time::OffsetDateTime;
use tokio::sync::{Mutex, OnceCell};

use super::{
    Answer, Site, chart, in_time,
    page::{Page, when},
    text::line,
};
use crate::{
    postgres::pulse::{self, LastEvent, WorkerSeen},
    pulse::{Identities, Minute},
    readable::{grouped, percent, span, weight},
    sqs::SqsSettings,
    status::{self, Asked, Lag, QueueState, Rate, Status},
};

/// The browser asks again after so many seconds.
const AGAIN: u32 = 15;
/// Whoever looks, however often: the queues are asked no more than once in so long.
const ASK_QUEUES: Duration = Duration::from_secs(5);
/// Minutes in the charts.
const MINUTES: usize = 60;
/// Workers in the table.
const WORKERS: usize = 50;

/// The queues, as they were when they were last asked.
pub(super) struct Queues {
    settings: Vec<SqsSettings>,
    /// Made when somebody first looks.
    clients: OnceCell<status::Queues>,
    last: Mutex<Option<(Instant, Vec<QueueState>)>>,
}

impl Queues {
    pub(super) fn new(settings: Vec<SqsSettings>) -> Self {
        Self { settings, clients: OnceCell::new(), last: Mutex::new(None) }
    }

    /// Those who come while they are asked wait for the same answer.
    async fn state(&self) -> Vec<QueueState> {
        let mut last = self.last.lock().await;
        if let Some((_, states)) = last.as_ref().filter(|(asked, _)| asked.elapsed() < ASK_QUEUES) {
            return states.clone();
        }
        let clients = self.clients.get_or_init(|| status::Queues::new(self.settings.clone())).await;
        let states = clients.ask().await;
        *last = Some((Instant::now(), states.clone()));
        states
    }
}

pub(super) async fn page(State(site): State<Arc<Site>>) -> Answer {
    let queues = site.queues.state().await;
    let found = in_time(async {
        let status = status::status(&site.postgres, queues).await?;
        let since = status.database.now - Duration::from_secs(60 * (MINUTES as u64 + 2));
        let minutes = pulse::minutes(&site.postgres, since).await?;
        Ok((status, minutes))
    });
    let (status, minutes) = found.await?;
    let body = html! {
        h1 { "Now" }
        (needs(&status))
        (rates(&status, &minutes))
        h2 { "Queues" } (queues_of(&status.queues))
        h2 { "Workers" } (workers(&status))
        h2 { "The books" } (identities(&status.identities))
        h2 { "Last events" } (last_events(&status.last_events, status.database.now))
        h2 { "Database" } (database(&status))
        h2 { "Cost" } (cost(&status))
    };
    Ok(Page::new("/", "Now", body).refreshed(AGAIN))
}

fn needs(status: &Status) -> Markup {
    let needs = status.needs_somebody();
    html! {
        @if needs.is_empty() {
            div.say.good { p { "All is well, as far as it is known." } }
        } @else {
            div.say.warn { ul { @for need in &needs { li { (with_command(need)) } } } }
        }
    }
}

/// What is to be typed stands behind the last colon.
fn with_command(need: &str) -> Markup {
    match need.rsplit_once(": ") {
        Some((what, how)) if how.starts_with("ses-ledger ") => html! { (line(what)) ": " code { (line(how)) } },
        _ => line(need),
    }
}

/// What a chart shows of one minute.
type OfMinute = fn(&Minute) -> u64;

fn rates(status: &Status, minutes: &[Minute]) -> Markup {
    let now = status.database.now;
    let minute = &status.last_minute;
    let chart = |what: &str, of: OfMinute, show: fn(u64) -> String| {
        let values = by_minute(minutes, now, of);
        let highest = show(values.iter().copied().max().unwrap_or(0));
        let words = format!("{what} in each minute of the last hour, at most {highest}");
        html! { (chart::bars(&values, &words)) p.small.faint { "at most " (highest) } }
    };
    html! {
        div.cards {
            (card("Messages received", &format!("{} a minute", count(minute.counts.received)),
                html! { (count(status.last_hour.counts.received)) " in the last hour" },
                chart("messages received", |m| m.counts.received.unsigned_abs(), grouped)))
            (card("Events stored", &per_second(minute.events_per_second),
                html! { (count(status.last_hour.counts.events())) " in the last hour, "
                    (count(status.last_hour.counts.duplicate)) " of them known already" },
                chart("events", |m| m.counts.events().unsigned_abs(), grouped)))
            (card("Lag, from event to row", &lag(minute, |lag| lag.p50_seconds),
                html! { "for half of them; for 95 of 100 " (lag(minute, |lag| lag.p95_seconds)) },
                chart("lag of the slowest 5 %", |m| Lag::of(&m.lags).map_or(0, |lag| (lag.p95_seconds * 1000.0) as u64), |ms| span(Duration::from_millis(ms)))))
            (card("Parked or not understood", &format!("{} a minute", count(minute.counts.orphaned + minute.counts.rejected)),
                html! { (count(status.last_hour.counts.orphaned)) " events without a mail, "
                    (count(status.last_hour.counts.rejected)) " messages not understood in the last hour" },
                chart("orphaned events and rejected messages", |m| (m.counts.orphaned + m.counts.rejected).unsigned_abs(), grouped)))
        }
        p.small.faint { "Figures are those of the last full minute. Charts show each minute of the last hour, the present to the right." }
    }
}

fn card(what: &str, figure: &str, more: Markup, chart: Markup) -> Markup {
    html! { div.card { div.what { (what) } div.figure { (figure) } p.small.faint { (more) } (chart) } }
}

/// A value for each of the last full minutes, oldest first; zero where no worker ran.
fn by_minute(minutes: &[Minute], now: OffsetDateTime, of: OfMinute) -> Vec<u64> {
    let present = now.unix_timestamp().div_euclid(60);
    let mut values = vec![0; MINUTES];
    for minute in minutes {
        let ago = present - minute.minute.unix_timestamp().div_euclid(60);
        if let Some(value) = usize::try_from(ago).ok().and_then(|ago| values.get_mut(MINUTES.checked_sub(ago)?)) {
            *value = of(minute);
        }
    }
    values
}

fn lag(rate: &Rate, of: fn(&Lag) -> f64) -> String {
    let Some(lag) = rate.lag.known().map(of) else { return "–".to_owned() };
    let over = if status::is_beyond(lag) { "over " } else { "" };
    format!("{over}{}", span(status::seconds(lag)))
}

fn per_second(rate: f64) -> String {
    match rate {
        _ if rate >= 10.0 => format!("{} a second", grouped(rate.round() as u64)),
        _ => format!("{rate:.1} a second"),
    }
}

fn queues_of(queues: &[QueueState]) -> Markup {
    html! {
        @if queues.is_empty() {
            p { "Nobody said which queues to ask. " code { "QUEUE_URL" } " names them." }
        } @else {
            table.rows {
                thead { tr {
                    th { "Queue" } th.number { "Waiting" } th.number { "Oldest" } th.number { "In flight" }
                    th.number { "Delayed" } th.number { "Out" } th.number { "Empty in" } th.number { "Dead letters" }
                } }
                tbody {
                    @for queue in queues {
                        tr {
                            td data-is="Queue" { (line(queue.short_name())) }
                            td.number data-is="Waiting" { (known(&queue.visible, |n| grouped(*n))) }
                            td.number data-is="Oldest" {
                                (known(&queue.oldest_age_seconds, |age| span(status::seconds(*age))))
                            }
                            td.number data-is="In flight" { (known(&queue.in_flight, |n| grouped(*n))) }
                            td.number data-is="Delayed" { (known(&queue.delayed, |n| grouped(*n))) }
                            td.number data-is="Out" { span { (per_second(queue.deleted_per_second)) } }
                            td.number data-is="Empty in" {
                                (known(&queue.drain_seconds, |time| span(status::seconds(*time))))
                            }
                            td.number data-is="Dead letters" { (known(&queue.dead_letters, |n| grouped(*n))) }
                        }
                    }
                }
            }
        }
    }
}

fn known<T>(asked: &Asked<T>, show: impl Fn(&T) -> String) -> Markup {
    html! {
        @match asked {
            Asked::Known(value) => span { (show(value)) },
            Asked::Unknown { unknown } => span.faint title=(unknown) { "unknown" },
        }
    }
}

fn workers(status: &Status) -> Markup {
    let alive = status.alive().count();
    let gone = status.workers.len() - alive;
    html! {
        @if status.workers.is_empty() {
            p { "None has written a heartbeat in the last two days." }
        } @else {
            p { @if alive == 0 { span.bad { "None is alive" } } @else { (grouped(alive as u64)) " alive" }
                @if gone > 0 { ", " (grouped(gone as u64)) " gone in the last two days" } "." }
            table.rows {
                thead { tr {
                    th { "Worker" } th { "State" } th { "Runs on" } th { "Version" }
                    th.number { "Received, last minute" } th.number { "In hand" } th { "Started" } th { "Last seen" }
                } }
                tbody { @for worker in status.workers.iter().take(WORKERS) { (self::worker(worker)) } }
            }
            @if status.workers.len() > WORKERS { p.faint { "And " (grouped((status.workers.len() - WORKERS) as u64))
                " more: " code { "ses-ledger status" } } }
        }
    }
}

fn worker(worker: &WorkerSeen) -> Markup {
    html! {
        tr {
            td data-is="Worker" { (line(&worker.name)) }
            td data-is="State" {
                @match (worker.alive, worker.stopped_at) {
                    (true, _) => span.good { "alive" },
                    (false, Some(_)) => span.faint { "stopped" },
                    (false, None) => span.warn { "gone without a word" },
                }
            }
            td data-is="Runs on" { (line(&worker.runtime)) }
            td data-is="Version" { (line(&worker.version)) }
            td.number data-is="Last minute" { span { (count(worker.last_minute.received)) } }
            td.number data-is="In hand" { span { (count(worker.identities.in_hand)) } }
            td.time data-is="Started" { (when(worker.started_at)) }
            td.time data-is="Last seen" { (when(worker.seen_at)) }
        }
    }
}

/// Both identities, each with its sum and whether it holds.
fn identities(books: &Identities) -> Markup {
    html! {
        p.small.faint { "Of the workers seen in the last hour, each since its start. Both sums hold at every moment." }
        (sum("messages received", books.received, &[("stored", books.stored), ("ignored", books.ignored), ("rejected", books.rejected),
             ("released", books.released), ("in hand", books.in_hand)], books.messages_drift))
        (sum("events decoded", books.decoded, &[("inserted", books.inserted), ("duplicate", books.duplicate), ("orphaned", books.orphaned),
             ("quarantined", books.quarantined)], books.events_drift))
    }
}

fn sum(what: &str, whole: i64, parts: &[(&str, i64)], drift: i64) -> Markup {
    html! {
        p {
            strong { (count(whole)) } " " (what) " ="
            @for (n, (name, part)) in parts.iter().enumerate() { @if n > 0 { " +" } " " strong { (count(*part)) }
                " " (name) }
            " "
            @if drift == 0 { span.good { "✓ holds" } } @else { span.bad { "does not hold, by " (drift)
                ": please report this as a fault of ses-ledger" } }
        }
    }
}

fn last_events(events: &[LastEvent], now: OffsetDateTime) -> Markup {
    html! {
        @if events.is_empty() { p { "No worker has told of any yet." } } @else {
            table.rows {
                thead { tr { th { "Kind" } th { "Last happened" } th { "Stored" } th { "That was" } } }
                tbody {
                    @for event in events {
                        tr {
                            td data-is="Kind" { (line(&event.event_type)) }
                            td.time data-is="Happened" {
                                @match event.occurred_at {
                                    Some(at) => (when(at)),
                                    None => span.faint { "never since " (when(event.since)) },
                                }
                            }
                            td.time data-is="Stored" { @if let Some(at) = event.stored_at { (when(at)) } }
                            td data-is="That was" {
                                @if let Some(at) = event.stored_at {
                                    span { (span(status::seconds((now - at).as_seconds_f64()))) " ago" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn database(status: &Status) -> Markup {
    let health = &status.database;
    html! {
        dl {
            dt { "Server" } dd { "PostgreSQL " (line(&health.version)) ", " (count(health.connections)) " of "
                (count(health.connections_most)) " connections used" }
            dt { "Oldest transaction" } dd {
                @match health.oldest_transaction_seconds {
                    Some(age) => { (span(status::seconds(age))) }
                    None => "none is open",
                }
                @if !health.sees_transactions { span.faint { ", as far as this login sees" } }
            }
            dt { "Schema" } dd {
                @if status.schema.is_empty() { span.good { "as this version needs it" } }
                @for finding in &status.schema { (line(&finding.what)) ": " span.faint { (line(&finding.fix)) } br; }
            }
            dt { "Partitions" } dd { "ready for " (count(health.months_ahead)) " months after this one" }
            dt { "Stuck" }
            dd {
                a href="/stuck" { (count(health.orphans)) " orphans, " (count(health.quarantined))
                    " bodies in quarantine" }
            }
            dt { "Size" } dd { @for (n, table) in health.tables.iter().enumerate() { @if n > 0 { ", " } (table.name)
                " " (weight(table.bytes.unsigned_abs())) } }
        }
    }
}

fn cost(status: &Status) -> Markup {
    let cost = &status.cost;
    html! {
        p {
            @match &cost.dollars_per_million_events {
                Asked::Known(dollars) => { "SQS: $" (format!("{dollars:.2}")) " per million events" }
                Asked::Unknown { unknown } => { "SQS: not known, " (line(unknown)) }
            }
            " · " (count(cost.receives)) " receives, " (count(cost.delete_requests)) " deletes, "
                (count(cost.visibility_requests)) " visibility changes in the last hour"
            @if let Asked::Known(fill) = cost.fill { " · " (format!("{fill:.1}"))
                " of 10 messages per receive that brought any" }
            @if let Asked::Known(idle) = cost.idle { " · " (percent((idle * 1000.0) as u64, 1000))
                " of the receives brought none" }
        }
    }
}

fn count(number: i64) -> String {
    grouped(number.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pulse::Counts;

    #[test]
    fn a_chart_ends_with_the_last_full_minute_and_has_gaps_where_no_worker_ran() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000 * 60 + 30);
        let minute = |ago: u64| Minute {
            minute: now - Duration::from_secs(60 * ago + 30),
            counts: Counts { received: ago as i64, ..Counts::default() },
            lags: Vec::new(),
            queues: BTreeMap::new(),
        };
        let values = by_minute(&[minute(61), minute(60), minute(2), minute(1), minute(0)], now, |m| {
            m.counts.received.unsigned_abs()
        });
        assert_eq!((values.len(), values[0], values[58], values[59]), (60, 60, 2, 1));
        assert_eq!(
            values.iter().filter(|value| **value > 0).count(),
            3,
            "neither the present minute nor what is older"
        );
    }
}
