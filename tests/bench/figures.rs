//! Many samples become one figure, and figures are held against the goals.

use std::collections::BTreeMap;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    /// Events stored in a second, from the first receive until the queue is empty.
    EventsPerSecond,
    /// CPU of all worker processes, or of whoever is in their place, in µs per event.
    ClientCpu,
    /// CPU of all processes of PostgreSQL, in µs per event.
    DatabaseCpu,
    /// CPU of the queue endpoint, in µs per event.
    EndpointCpu,
    /// Messages per request to delete.
    PerDelete,
    /// Messages per receive that was asked for.
    PerReceive,
    /// The most memory that one worker process ever had, in MiB.
    PeakMemory,
    /// Times in ms.
    Median,
    P99,
    Longest,
    /// Requests of all kinds that reached the endpoint in a minute.
    RequestsPerMinute,
    /// CPU of the client in percent of one core.
    CoreShare,
    /// The same of PostgreSQL.
    DatabaseShare,
    /// Bytes of a stored payload, on average.
    Payload,
    /// From the start of a function until it asks for its first invocation, and that invocation, in ms.
    Start,
    First,
    /// 95th percentile, in ms.
    P95,
    /// Bytes of write-ahead log per event, and of these the pages that are logged whole after a checkpoint.
    Log,
    LogOfPages,
    /// In the unit that the line's name tells.
    Value,
    /// Of the rate alone, in percent; and of that time how much the other work took part, in percent.
    Share,
    Beside,
    /// Rows that were emptied or dropped.
    LetGo,
    /// Messages, or rows, that were measured.
    Messages,
    /// Messages that were handed out more than once.
    Redelivered,
    /// Cores kept busy by processes that have nothing to do with us.
    Others,
}

/// What was measured in one round of one cell.
pub(crate) type Sample = BTreeMap<Figure, f64>;

/// Several samples of one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) n: usize,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// What was to be reached, what was, and whether that is enough; `None`: it was not measured.
pub(crate) struct Goal {
    pub(crate) wanted: String,
    pub(crate) found: String,
    pub(crate) reached: Option<bool>,
}

impl Figure {
    pub(crate) const ALL: [Self; 26] = [
        Self::EventsPerSecond,
        Self::ClientCpu,
        Self::DatabaseCpu,
        Self::EndpointCpu,
        Self::PerDelete,
        Self::PerReceive,
        Self::PeakMemory,
        Self::Median,
        Self::P99,
        Self::Longest,
        Self::RequestsPerMinute,
        Self::CoreShare,
        Self::DatabaseShare,
        Self::Payload,
        Self::Start,
        Self::First,
        Self::P95,
        Self::Log,
        Self::LogOfPages,
        Self::Value,
        Self::Share,
        Self::Beside,
        Self::LetGo,
        Self::Messages,
        Self::Redelivered,
        Self::Others,
    ];

    /// As it is called in the JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EventsPerSecond => "events_per_second",
            Self::ClientCpu => "client_cpu_us_per_event",
            Self::DatabaseCpu => "database_cpu_us_per_event",
            Self::EndpointCpu => "endpoint_cpu_us_per_event",
            Self::PerDelete => "messages_per_delete_request",
            Self::PerReceive => "messages_per_receive_request",
            Self::PeakMemory => "peak_rss_mib",
            Self::Median => "median_ms",
            Self::P99 => "p99_ms",
            Self::Longest => "max_ms",
            Self::RequestsPerMinute => "requests_per_minute",
            Self::CoreShare => "percent_of_a_core",
            Self::DatabaseShare => "database_percent_of_a_core",
            Self::Payload => "payload_bytes",
            Self::Start => "start_ms",
            Self::First => "first_invocation_ms",
            Self::P95 => "p95_ms",
            Self::Log => "wal_bytes_per_event",
            Self::LogOfPages => "wal_full_page_bytes_per_event",
            Self::Value => "value",
            Self::Share => "percent_of_the_rate_alone",
            Self::Beside => "percent_of_the_time_beside",
            Self::LetGo => "rows_let_go",
            Self::Messages => "messages",
            Self::Redelivered => "redelivered",
            Self::Others => "cores_used_by_others",
        }
    }
}

/// `None` of nothing.
pub(crate) fn spread(samples: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut sorted: Vec<f64> = samples.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (*sorted.first()?, *sorted.last()?);
    let n = sorted.len();
    let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
    Some(Spread { n, median, least, most })
}

/// Every goal, held against the medians that `figure` knows by the name of their cell.
pub(crate) fn goals(figure: impl Fn(&str, Figure) -> Option<f64>) -> Vec<Goal> {
    use Figure::{ClientCpu, CoreShare, DatabaseCpu, EventsPerSecond, Longest, P99, PeakMemory, PerDelete};
    let mut goals = Vec::new();
    let mut add = |wanted: &str, found: Option<(String, bool)>| {
        let (found, reached) = found.unzip();
        let found = found.unwrap_or_else(|| "not measured".to_owned());
        goals.push(Goal { wanted: wanted.to_owned(), found, reached });
    };
    for (worker, loop_, place) in
        [("tidy", "bare SDK loop", "zero latency"), ("tidy, far", "bare SDK loop, far", "10-15 ms")]
    {
        let found = figure(worker, ClientCpu).zip(figure(loop_, ClientCpu)).map(|(worker, bare)| {
            let said = format!("{worker:.1} and {bare:.1} µs: {:.2} x, {:+.1} µs", worker / bare, worker - bare);
            (said, worker <= 1.4 * bare || worker <= bare + 30.0)
        });
        add(&format!("worker CPU <= 1.4 x bare SDK loop, or <= 30 µs beyond it; {place}"), found);
    }
    let database = figure("tidy", DatabaseCpu);
    add("database CPU <= 35 µs per event", database.map(|cpu| (format!("{cpu:.1} µs"), cpu <= 35.0)));
    let found = database.zip(figure("one COPY", DatabaseCpu));
    let found = found.map(|(cpu, copy)| (format!("{cpu:.1} and {copy:.1} µs: {:.2} x", cpu / copy), cpu <= 1.6 * copy));
    add("database CPU <= 1.6 x COPY into the same indexed table", found);
    let rate = figure("tidy", EventsPerSecond);
    add(">= 10,000 events/s on two cores, zero latency", rate.map(|rate| (format!("{rate:.0}"), rate >= 10_000.0)));
    for (cell, place) in [("tidy", "receives of 10"), ("tidy, far", "receives of 7.5")] {
        let found = figure(cell, PerDelete).map(|n| (format!("{n:.2}"), n >= 9.5));
        add(&format!(">= 9.5 messages per delete request; {place}"), found);
    }
    let (small, large) = (figure("small backlog", PeakMemory), figure("large backlog", PeakMemory));
    let found =
        small.zip(large).map(|(small, large)| (format!("{small:.1} and {large:.1} MiB"), small.max(large) <= 64.0));
    add("peak memory <= 64 MiB; at a small and at a large backlog", found);
    let found = figure("3 KB", PeakMemory).map(|mib| (format!("{mib:.1} MiB"), mib <= 64.0));
    add("peak memory <= 64 MiB; events of 3 KB", found);
    for place in ["recent mails", "all months"] {
        let (small, large) = (format!("1 x, {place}"), format!("10 x, {place}"));
        let found = figure(&small, EventsPerSecond).zip(figure(&large, EventsPerSecond));
        let found =
            found.map(|(small, large)| (format!("{:+.1} %", (large / small - 1.0) * 100.0), large >= 0.8 * small));
        add(&format!("rate at ten times the events within 20 %; {place}"), found);
    }
    for (cell, what) in [("beside emptying", "emptying payloads"), ("beside dropping", "exporting and dropping months")]
    {
        let found = figure(cell, Figure::Share).map(|share| (format!("{:+.1} %", share - 100.0), share > 90.0));
        add(&format!("retention under load costs the worker less than 10 %; {what}"), found);
    }
    let polls = figure("idle", Figure::RequestsPerMinute);
    // A long poll takes 20 s.
    add("idle: one long poll open", polls.map(|n| (format!("{n:.1} requests a minute"), n <= 4.0)));
    add("idle: < 0.1 % of a core", figure("idle", CoreShare).map(|share| (format!("{share:.3} %"), share < 0.1)));
    for (cell, place) in [("half load", "zero latency"), ("half load, far", "10-15 ms")] {
        let found = figure(cell, P99).map(|ms| (format!("{ms:.0} ms"), ms <= 250.0));
        add(&format!("receive to commit at half load: p99 <= 250 ms; {place}"), found);
    }
    let found = figure("one event", Longest).map(|ms| (format!("longest {ms:.1} ms"), ms <= 50.0));
    add("one event on an idle queue: sent to visible <= 50 ms", found);
    goals
}
