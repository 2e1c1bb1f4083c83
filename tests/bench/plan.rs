//! What is measured: every cell of the table, as data.

use crate::{
    client::Kind,
    endpoint::Conditions,
    tale::{Tale, Untidy},
};

/// How long everything may take.
#[derive(Clone, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// Messages of an ordinary cell.
    pub(crate) messages: usize,
    /// How the tables grow.
    pub(crate) steps: Vec<Step>,
    /// How often each question is asked there.
    pub(crate) calls: usize,
    /// Messages of each backlog that retention runs beside, rounds of it, and events of each month that it drops.
    pub(crate) beside: (usize, usize, u64),
    /// Messages that wait for the worker whose memory is measured.
    pub(crate) backlogs: [usize; 2],
    /// Seconds: how long the worker may work on the larger of them, half load, and with nothing to do.
    pub(crate) working: u64,
    pub(crate) half_load: f64,
    pub(crate) idle: u64,
    /// Events sent one by one.
    pub(crate) single: usize,
    /// Settings of the worker in every cell.
    pub(crate) worker: Vec<String>,
    /// Every cell far away as well, not only the first.
    pub(crate) far_everywhere: bool,
    /// Where stories begin: yesterday.
    pub(crate) yesterday: i64,
}

impl Effort {
    pub(crate) fn usual(yesterday: i64) -> Self {
        Self {
            rounds: 3,
            messages: 40_000,
            steps: vec![
                Step { events: 1_000_000, months: 12 },
                Step { events: 1_000_000, months: 36 },
                Step { events: 10_000_000, months: 36 },
                Step { events: 30_000_000, months: 36 },
            ],
            calls: 200,
            beside: (150_000, 4, 30_000),
            backlogs: [1_000, 1_000_000],
            working: 45,
            half_load: 8.0,
            idle: 60,
            single: 50,
            worker: Vec::new(),
            far_everywhere: true,
            yesterday,
        }
    }

    /// Everything is tried, nothing is measured well.
    pub(crate) fn quick(yesterday: i64) -> Self {
        Self {
            rounds: 1,
            messages: 4_000,
            steps: vec![
                Step { events: 20_000, months: 12 },
                Step { events: 20_000, months: 36 },
                Step { events: 80_000, months: 36 },
            ],
            calls: 10,
            beside: (8_000, 1, 1_000),
            backlogs: [1_000, 10_000],
            working: 5,
            half_load: 1.0,
            idle: 5,
            single: 5,
            far_everywhere: false,
            ..Self::usual(yesterday)
        }
    }
}

/// So many events over so many months. The next step adds what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) events: u64,
    pub(crate) months: u32,
}

/// A part of the table that can be asked for alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    Rate,
    Mess,
    Size,
    Processes,
    Pollers,
    Limits,
    Latency,
    Memory,
    Idle,
    Lambda,
    Scale,
    ScaleTimes,
    ScaleSizes,
    ScaleUpkeep,
    ScaleRetention,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) group: Group,
    pub(crate) name: String,
    pub(crate) what: What,
    /// Not in every round.
    pub(crate) once: bool,
}

/// How one line is measured.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A full queue is emptied.
    Drain { kind: Kind, conditions: Conditions, tale: Tale, ground: Ground },
    /// The statement that stores, with the same rows, and no queue.
    Store { tale: Tale },
    /// The same rows by COPY: so many in a transaction.
    Copy { tale: Tale, rows_each: usize },
    /// The peak memory at a backlog of so many messages.
    Memory { backlog: usize },
    /// Nothing to do.
    Idle,
    /// Half of what was reached in that cell.
    HalfLoad { conditions: Conditions, of: &'static str },
    /// One event at a time.
    Single,
    /// As a Lambda function, with so many messages in each invocation.
    Function { batch: usize, tale: Tale },
}

/// What the database of a drain holds at the beginning, and what is compared at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    /// The log rows. Everything is compared with the truth.
    Logs,
    /// The log rows and every event.
    Everything,
    /// The log rows; it is only counted how many events there are in the end.
    Counted,
    /// Nobody writes into it.
    Nothing,
}

impl Group {
    /// Those of scale come together, by the name of the first.
    pub(crate) const ALL: [Self; 11] = [
        Self::Rate,
        Self::Mess,
        Self::Size,
        Self::Processes,
        Self::Pollers,
        Self::Limits,
        Self::Latency,
        Self::Memory,
        Self::Idle,
        Self::Lambda,
        Self::Scale,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Mess => "mess",
            Self::Size => "size",
            Self::Processes => "processes",
            Self::Pollers => "pollers",
            Self::Limits => "limits",
            Self::Latency => "latency",
            Self::Memory => "memory",
            Self::Idle => "idle",
            Self::Lambda => "lambda",
            Self::Scale => "scale",
            Self::ScaleTimes => "scale, questions",
            Self::ScaleSizes => "scale, sizes",
            Self::ScaleUpkeep => "scale, upkeep",
            Self::ScaleRetention => "scale, retention",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Rate => "How many events, at what cost",
            Self::Mess => "Duplicates, unknown mails, poison",
            Self::Size => "Size of an event",
            Self::Processes => "Worker processes",
            Self::Pollers => "Pollers in one worker process",
            Self::Limits => "The limits, and the usual practice",
            Self::Latency => "How long it takes",
            Self::Memory => "Memory",
            Self::Idle => "With nothing to do",
            Self::Lambda => "As a Lambda function: messages in each invocation",
            Self::Scale => "Years of data: what an event costs",
            Self::ScaleTimes => "Years of data: how long a question takes, median / 95th percentile in ms",
            Self::ScaleSizes => "Years of data: MiB per million rows",
            Self::ScaleUpkeep => "Years of data: filling and cleaning",
            Self::ScaleRetention => "Years of data: retention beside a full backlog",
        }
    }
}

/// 1 KB raw, tidy: what all other cells differ from in one respect.
pub(crate) fn tidy(effort: &Effort, messages: usize) -> Tale {
    Tale {
        seed: 1,
        messages,
        bytes: Some(1_024),
        mess: Untidy::Nothing,
        start: effort.yesterday,
        gap: 1,
        shuffled: false,
    }
}

/// The whole table.
pub(crate) fn cells(effort: &Effort) -> Vec<Cell> {
    let mut cells = Vec::new();
    let n = effort.messages;
    let tidy_of = |messages| tidy(effort, messages);
    let worker = |processes, pollers: usize| Kind::Worker {
        processes,
        settings: worker_settings(
            effort,
            &["--receive-wait=1s", "--shutdown-grace=30s", &format!("--pollers={pollers}")],
        ),
    };
    // Far away a poller does a few hundred messages a second: those cells take no longer for fewer messages.
    let far = |pollers: usize| n.min(pollers * n / 16);
    let mut both = |group, name: &str, processes: usize, pollers: usize, tale: Tale, ground| {
        let as_well = effort.far_everywhere || group == Group::Rate;
        for (conditions, suffix) in
            [(Conditions::Near, ""), (Conditions::Far, ", far")].into_iter().take(1 + usize::from(as_well))
        {
            let messages = if conditions == Conditions::Near { n } else { far(pollers * processes) };
            let tale = Tale { messages, ..tale };
            let what = What::Drain { kind: worker(processes, pollers), conditions, tale, ground };
            cells.push(Cell { group, name: format!("{name}{suffix}"), what, once: false });
        }
    };
    let base = tidy_of(n);
    both(Group::Rate, "tidy", 1, 8, base, Ground::Logs);
    both(Group::Rate, "as in life", 1, 8, Tale { bytes: None, mess: Untidy::Everything, ..base }, Ground::Logs);
    both(Group::Mess, "10 % duplicates", 1, 8, Tale { mess: Untidy::Duplicates(10), ..base }, Ground::Logs);
    both(Group::Mess, "100 % duplicates", 1, 8, base, Ground::Everything);
    both(Group::Mess, "1 % orphans", 1, 8, Tale { mess: Untidy::Orphans(1), ..base }, Ground::Logs);
    both(Group::Mess, "1 % poison", 1, 8, Tale { mess: Untidy::Poison(1), ..base }, Ground::Logs);
    both(Group::Size, "200 B", 1, 8, Tale { bytes: Some(200), ..base }, Ground::Logs);
    both(Group::Size, "3 KB", 1, 8, Tale { bytes: Some(3_072), ..base }, Ground::Logs);
    both(Group::Processes, "3 processes", 3, 8, base, Ground::Logs);
    for pollers in [1, 4, 16, 64] {
        let name = if pollers == 1 { "1 poller".to_owned() } else { format!("{pollers} pollers") };
        both(Group::Pollers, &name, 1, pollers, base, Ground::Logs);
    }

    let mut add = |group, name: &str, once, what| cells.push(Cell { group, name: name.to_owned(), what, once });
    add(Group::Limits, "bare store statement", false, What::Store { tale: base });
    add(Group::Limits, "COPY by 500", false, What::Copy { tale: base, rows_each: 500 });
    add(Group::Limits, "one COPY", false, What::Copy { tale: base, rows_each: usize::MAX });
    for (conditions, suffix, bare, naive) in
        [(Conditions::Near, "", n, n / 8), (Conditions::Far, ", far", n / 2, n / 32)]
    {
        let (bare, naive) = (tidy_of(bare), tidy_of(naive));
        let what = What::Drain { kind: Kind::Bare, conditions, tale: bare, ground: Ground::Nothing };
        add(Group::Limits, &format!("bare SDK loop{suffix}"), false, what);
        let what = What::Drain { kind: Kind::Naive, conditions, tale: naive, ground: Ground::Counted };
        add(Group::Limits, &format!("naive worker{suffix}"), false, what);
    }
    let (conditions, of) = (Conditions::Near, "tidy");
    add(Group::Latency, "half load", false, What::HalfLoad { conditions, of });
    let (conditions, of) = (Conditions::Far, "tidy, far");
    add(Group::Latency, "half load, far", false, What::HalfLoad { conditions, of });
    add(Group::Latency, "one event", true, What::Single);
    let [small, large] = effort.backlogs;
    add(Group::Memory, "small backlog", true, What::Memory { backlog: small });
    add(Group::Memory, "large backlog", true, What::Memory { backlog: large });
    add(Group::Idle, "idle", true, What::Idle);
    for batch in [10, 100, 1_000] {
        // Small invocations are many.
        let tale = tidy_of(if batch == 10 { n / 8 } else { n / 2 });
        add(Group::Lambda, &format!("{batch}"), false, What::Function { batch, tale });
    }
    cells
}

impl Step {
    /// `10 M, 36 months`
    pub(crate) fn label(&self) -> String {
        format!("{} M, {} months", self.events as f64 / 1e6, self.months)
    }
}

/// These settings, except where the caller of the benchmark wants others, and all of his.
pub(crate) fn worker_settings(effort: &Effort, ours: &[&str]) -> Vec<String> {
    let name = |setting: &str| setting.split('=').next().unwrap_or(setting).to_owned();
    let is_theirs = |setting: &&&str| effort.worker.iter().any(|theirs| name(theirs) == name(setting));
    let ours = ours.iter().filter(|setting| !is_theirs(setting)).map(|setting| (*setting).to_owned());
    ours.chain(effort.worker.iter().cloned()).collect()
}
