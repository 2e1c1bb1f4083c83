//! The named scenarios, as data: what is sent, who works, and what goes wrong.

use std::time::Duration;

use crate::local::{
    postgres::StopMode,
    sqs_endpoint::{Action, Fault, Faults, SqsError},
    story::{Mess, Profile, dice::Dice},
};

/// What to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Name {
    /// A few hundred mails, as untidy as in real life, in seconds
    Smoke,
    /// 100,000 mails in one burst
    Campaign,
    /// The database is away for an hour, at 60:1: for a minute, with all waits scaled alike; the queue gives up a message
    /// after 5 receives
    Outage,
    /// Three workers, killed 120 times while they work
    KillStorm,
    /// As many messages that nobody can understand as good ones
    PoisonFlood,
    /// Half of all log rows are written after the events, and every third message comes out of order
    LateLogs,
    /// Receives and deletes that fail, get lost, are throttled, come late or half empty, and a low cap of messages in
    /// flight; not one message may come twice because of it
    FlakyQueue,
    /// Ten minutes of steady traffic with small troubles; memory has to stay flat
    Soak,
}

/// What is sent, who works, and what goes wrong.
#[derive(Clone)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) mails: usize,
    pub(super) mess: Mess,
    pub(super) profile: Profile,
    /// How long the sending takes; zero is as fast as it goes.
    pub(super) sending: Duration,
    pub(super) workers: usize,
    /// Variables of the workers, beside those that say where things are.
    pub(super) settings: Vec<(&'static str, &'static str)>,
    pub(super) queue: QueueTroubles,
    /// How often each happens, at random moments while there is work.
    pub(super) troubles: Vec<(Trouble, usize)>,
    /// Whether the workers' memory has to stay flat.
    pub(super) flat_memory: bool,
}

/// What goes wrong once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// A worker gets SIGKILL and is started again.
    Kill,
    /// All connections to the database are cut.
    Cut,
    /// The database stops and starts again at once.
    Restart(StopMode),
    /// The database is away for so long.
    Away(Duration),
}

/// What the embedded queue does wrong all the time. Shares are from 0 to 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct QueueTroubles {
    /// Of the receives: those that are answered with an error, in turns 503, 500 and two kinds of throttling.
    pub(super) failed_receives: f64,
    /// Of the messages to delete: those that fail.
    pub(super) failed_deletes: f64,
    /// Of the requests to delete: those that are obeyed, and whose answer is lost.
    pub(super) lost_deletes: f64,
    /// Before every answer, and up to as much again.
    pub(super) latency: Duration,
    /// How full receives come back, of the places after the first.
    pub(super) fill: Option<f64>,
    /// How many messages can be in flight.
    pub(super) in_flight_cap: Option<usize>,
    /// A message that was received so often becomes a dead letter.
    pub(super) max_receive_count: Option<u32>,
}

/// A trouble and its moment: when so much of the work is done (0 to 1), and so much later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) done: f64,
    pub(super) after: Duration,
    pub(super) trouble: Trouble,
}

/// Waits that are short enough to watch. Everything else is the product's own default.
const SHORT_WAITS: [(&str, &str); 3] = [("RECEIVE_WAIT", "1s"), ("SWEEP_INTERVAL", "500ms"), ("SHUTDOWN_GRACE", "30s")];

/// What a killed worker held comes back soon. As short as the cross-checks allow.
const SHORT_TIMES: [(&str, &str); 9] = [
    ("RECEIVE_WAIT", "1s"),
    ("SWEEP_INTERVAL", "500ms"),
    ("SHUTDOWN_GRACE", "30s"),
    ("BATCH_AGE", "200ms"),
    ("VISIBILITY_TIMEOUT", "6s"),
    ("STATEMENT_TIMEOUT", "1500ms"),
    ("STORE_TIMEOUT", "2s"),
    ("DELETE_BUDGET", "2s"),
    ("BATCH_SIZE", "100"),
];

/// The defaults at 60:1, as near as whole seconds allow.
const SIXTY_TO_ONE: [(&str, &str); 8] = [
    ("RECEIVE_WAIT", "1s"),
    ("SWEEP_INTERVAL", "500ms"),
    ("SHUTDOWN_GRACE", "30s"),
    ("BATCH_AGE", "50ms"),
    ("VISIBILITY_TIMEOUT", "2s"),
    ("STATEMENT_TIMEOUT", "400ms"),
    ("STORE_TIMEOUT", "500ms"),
    ("DELETE_BUDGET", "800ms"),
];

/// Mails that a soak sends in a second: four messages each.
pub(super) const SOAK_RATE: f64 = 60.0;

impl Name {
    pub(super) fn scenario(self) -> Scenario {
        let smoke = Scenario {
            name: "smoke",
            mails: 300,
            mess: Mess::default(),
            profile: Profile::Usual,
            sending: Duration::from_secs(2),
            workers: 2,
            settings: SHORT_WAITS.to_vec(),
            queue: QueueTroubles::default(),
            troubles: Vec::new(),
            flat_memory: false,
        };
        let minute = Duration::from_secs(60);
        match self {
            Self::Smoke => smoke,
            Self::Campaign => {
                Scenario { name: "campaign", mails: 100_000, sending: Duration::ZERO, workers: 1, ..smoke }
            }
            Self::Outage => Scenario {
                name: "outage",
                mails: 5_000,
                sending: Duration::from_secs(80),
                settings: SIXTY_TO_ONE.to_vec(),
                queue: QueueTroubles { max_receive_count: Some(5), ..QueueTroubles::default() },
                troubles: vec![(Trouble::Away(minute), 1)],
                ..smoke
            },
            Self::KillStorm => Scenario {
                name: "kill-storm",
                mails: 20_000,
                sending: Duration::ZERO,
                workers: 3,
                settings: [&SHORT_TIMES[..], &[("IN_FLIGHT", "400"), ("POLLERS", "4")]].concat(),
                troubles: vec![(Trouble::Kill, 120)],
                ..smoke
            },
            Self::PoisonFlood => Scenario {
                name: "poison-flood",
                mails: 2_000,
                mess: Mess { poison: 1.0, noise: 0.3, ..Mess::default() },
                sending: Duration::ZERO,
                ..smoke
            },
            Self::LateLogs => Scenario {
                name: "late-logs",
                mails: 5_000,
                mess: Mess {
                    late_logs: 0.5,
                    unknown_mails: 0.03,
                    linked_by_tag: 0.4,
                    reordered: 0.3,
                    second_delays: 0.5,
                    ..Mess::default()
                },
                sending: Duration::from_secs(10),
                ..smoke
            },
            Self::FlakyQueue => Scenario {
                name: "flaky-queue",
                mails: 10_000,
                sending: Duration::ZERO,
                queue: QueueTroubles {
                    failed_receives: 0.04,
                    failed_deletes: 0.02,
                    lost_deletes: 0.01,
                    latency: Duration::from_millis(10),
                    fill: Some(0.72),
                    in_flight_cap: Some(3_000),
                    max_receive_count: Some(5),
                },
                ..smoke
            },
            Self::Soak => Scenario {
                name: "soak",
                mails: (SOAK_RATE * 600.0) as usize,
                sending: minute * 10,
                queue: QueueTroubles {
                    failed_receives: 0.005,
                    failed_deletes: 0.01,
                    lost_deletes: 0.002,
                    latency: Duration::from_millis(2),
                    fill: Some(0.9),
                    in_flight_cap: None,
                    max_receive_count: Some(5),
                },
                troubles: vec![(Trouble::Cut, 3), (Trouble::Restart(StopMode::Fast), 1)],
                flat_memory: true,
                ..smoke
            },
        }
    }
}

impl Scenario {
    /// All troubles in their order, each at a moment of its own. The same seed and the same story give the same.
    pub(super) fn planned(&self, seed: u64) -> Vec<Planned> {
        let mut dice = Dice::new(seed.rotate_left(32));
        let mut share = |low: f64, high: f64| low + (high - low) * (dice.below(1 << 32) as f64 / (1_u64 << 32) as f64);
        let mut planned = Vec::new();
        for &(trouble, times) in &self.troubles {
            for _ in 0..times {
                // A long one comes early, so that there is work before, during and after.
                let done = if let Trouble::Away(_) = trouble { share(0.1, 0.3) } else { share(0.02, 0.9) };
                let after = Duration::from_millis(share(0.0, 150.0) as u64);
                planned.push(Planned { done, after, trouble });
            }
        }
        planned.sort_by(|a, b| a.done.total_cmp(&b.done));
        planned
    }

    /// Whether the database has to be our own.
    pub(super) fn troubles_database(&self) -> bool {
        self.troubles.iter().any(|(trouble, times)| *trouble != Trouble::Kill && *times > 0)
    }

    /// Whether the queue has to be our own.
    pub(super) fn troubles_queue(&self) -> bool {
        self.queue != QueueTroubles::default()
    }

    /// Whether workers are killed.
    pub(super) fn kills(&self) -> bool {
        self.troubles.iter().any(|(trouble, times)| *trouble == Trouble::Kill && *times > 0)
    }
}

impl QueueTroubles {
    /// The attributes of the queue, with a dead-letter queue of this name if it has one.
    pub(super) fn redrive_policy(&self, dead_letters: &str) -> Option<String> {
        let count = self.max_receive_count?;
        let arn = format!("arn:aws:sqs:us-east-1:000000000000:{dead_letters}");
        Some(serde_json::json!({ "deadLetterTargetArn": arn, "maxReceiveCount": count }).to_string())
    }

    /// Sets the endpoint up to do all this.
    pub(super) fn arrange(&self, faults: &mut Faults, seed: u64) {
        faults.seed(seed);
        let errors =
            [SqsError::unavailable(), SqsError::throttled(), SqsError::internal(), SqsError::throttling_exception()];
        for error in errors {
            faults.sometimes(Action::ReceiveMessage, self.failed_receives / 4.0, Fault::Reject(error.clone()));
            // The SDK tries deletes again by itself, three times in all.
            faults.sometimes(Action::DeleteMessageBatch, self.failed_receives / 8.0, Fault::Reject(error));
        }
        faults.sometimes(Action::DeleteMessageBatch, self.lost_deletes, Fault::LoseAnswer);
        faults.fail_entries(Action::DeleteMessageBatch, self.failed_deletes);
        for action in [Action::ReceiveMessage, Action::DeleteMessageBatch, Action::ChangeMessageVisibilityBatch] {
            faults.delay(action, self.latency, self.latency);
        }
        if let Some(fill) = self.fill {
            faults.thin_receives(fill);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn the_same_seed_plans_the_same_troubles_and_another_seed_others() {
        let moments =
            |seed| -> Vec<f64> { Name::Soak.scenario().planned(seed).iter().map(|planned| planned.done).collect() };
        assert_eq!(moments(1), moments(1));
        assert_ne!(moments(1), moments(2));
    }

    #[test]
    fn troubles_are_planned_in_order_while_there_is_work() {
        for name in Name::value_variants() {
            let scenario = name.scenario();
            let planned = scenario.planned(7);
            assert_eq!(planned.len(), scenario.troubles.iter().map(|(_, times)| times).sum::<usize>());
            assert!(planned.is_sorted_by(|a, b| a.done <= b.done));
            assert!(planned.iter().all(|planned| (0.02..0.9).contains(&planned.done)), "{planned:?}");
        }
    }
}
