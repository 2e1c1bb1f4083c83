//! The database, and which kinds of events have come.

use time::OffsetDateTime;

use super::{Finding, Findings, Hop, KINDS, listed};
use crate::{
    postgres::{
        condition::{self, Condition, NEWEST},
        schema,
    },
    readable::{grouped, second, span},
};

use std::time::Duration;

/// Clocks that differ by more make the times of events misleading.
const CLOCKS: Duration = Duration::from_secs(5);

/// What the database says.
#[derive(Debug)]
pub(crate) enum DatabaseFacts {
    /// It does not let us in, or is not there.
    Unreachable(String),
    Reached {
        condition: Result<Condition, String>,
        /// How far its clock is ahead of ours.
        clock: time::Duration,
        schema: Result<Vec<schema::Finding>, String>,
        /// The kinds among the newest events, with the time of each one's last.
        kinds: Result<Vec<(String, OffsetDateTime)>, String>,
        /// Connections that one worker takes.
        wanted: u32,
    },
}

/// Judges the database.
pub(crate) fn judge(facts: &DatabaseFacts) -> Vec<Finding> {
    let mut findings = Findings { region: String::new(), all: Vec::new() };
    match facts {
        DatabaseFacts::Unreachable(why) => {
            findings.error(
                Hop::Database,
                "the database does not let us in",
                why,
                "ses-ledger migrate status".to_owned(),
            );
        }
        DatabaseFacts::Reached { condition, clock, schema, kinds, wanted } => {
            match condition {
                Ok(condition) => judge_condition(condition, *clock, *wanted, &mut findings),
                Err(why) => findings.unknown(Hop::Database, "cannot ask the server about itself", why),
            }
            match schema {
                Ok(found) => judge_schema(found, &mut findings),
                Err(why) => findings.unknown(Hop::Database, "cannot look at the schema", why),
            }
            match kinds {
                Ok(kinds) => judge_kinds(kinds, &mut findings),
                Err(why) => findings.unknown(Hop::Events, "cannot look at the events", why),
            }
        }
    }
    findings.all
}

fn judge_condition(condition: &Condition, clock: time::Duration, wanted: u32, findings: &mut Findings) {
    let (hop, login) = (Hop::Database, &condition.login);
    match condition.is_replica {
        true => findings.error(
            hop,
            "the server is a standby, which takes no changes",
            "the worker cannot store",
            "name the primary in DATABASE_URL".to_owned(),
        ),
        false => findings.ok(hop, format!("PostgreSQL {}", condition.version)),
    }
    let grant = || condition::use_worker(login);
    if condition.is_superuser {
        findings.warning(
            hop,
            format!("{login} is a superuser"),
            "a worker that may do everything can destroy everything",
            grant(),
        );
    } else if condition.is_owner {
        findings.warning(
            hop,
            format!("{login} may drop and alter the tables (ses_ledger_owner)"),
            "the worker needs none of that",
            grant(),
        );
    } else if condition.may_delete {
        let fix = condition::take_deleting(login);
        findings.warning(hop, format!("{login} may delete events"), "the worker needs none of that", fix);
    } else {
        findings.ok(hop, format!("{login} cannot drop, alter or delete history"));
    }
    let (open, most) = (condition.connections, condition.most_connections);
    let what = format!("{open} of {most} connections are open; a worker takes {wanted}");
    match most - open >= i64::from(wanted) {
        true => findings.ok(hop, what),
        false => findings.warning(
            hop,
            what,
            "another worker would not get in",
            "raise max_connections, or put a pooler in between and set DATABASE_POOLER=transaction".to_owned(),
        ),
    }
    let apart = clock.unsigned_abs();
    match apart > CLOCKS {
        true => findings.warning(
            hop,
            format!("the server's clock and ours are {} apart", span(apart)),
            "lag and the months of new rows are told by both",
            "timedatectl set-ntp true  # on the one that is wrong".to_owned(),
        ),
        false => findings.ok(hop, "the server's clock is as ours"),
    }
}

fn judge_schema(found: &[schema::Finding], findings: &mut Findings) {
    for finding in found {
        let (what, fix) = (finding.what.clone(), finding.fix.clone());
        match finding.severity {
            schema::Severity::Error => findings.error(Hop::Database, what, "the worker refuses to start", fix),
            schema::Severity::Warning => {
                findings.warning(Hop::Database, what, "it works, but somebody should look", fix)
            }
        }
    }
    if found.is_empty() {
        findings.ok(Hop::Database, "tables, both unique indexes of the events, rights and partitions are as needed");
    }
}

fn judge_kinds(kinds: &[(String, OffsetDateTime)], findings: &mut Findings) {
    for (kind, at) in kinds {
        findings.ok(Hop::Events, format!("{} UTC: the last {kind}", second(*at)));
    }
    let missing: Vec<&str> =
        KINDS.iter().map(|kind| kind.as_str()).filter(|kind| kinds.iter().all(|(seen, _)| seen != kind)).collect();
    if !missing.is_empty() {
        let what = match kinds.is_empty() {
            true => "no event has come yet".to_owned(),
            false => {
                format!("none of {} is among the newest {} events", listed(&missing), grouped(NEWEST.unsigned_abs()))
            }
        };
        let fix = "ses-ledger smoke --from ADDRESS --config-set NAME".to_owned();
        findings.note(
            Hop::Events,
            what,
            "that may well be so; to see some arrive, send to the simulator of SES",
            Some(fix),
        );
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::doctor::Severity;

    fn right() -> Condition {
        Condition {
            version: "15.18".to_owned(),
            is_replica: false,
            login: "worker".to_owned(),
            is_superuser: false,
            is_owner: false,
            may_delete: false,
            connections: 10,
            most_connections: 97,
            clock: datetime!(2026-11-21 12:00 UTC),
        }
    }

    fn check(change: impl FnOnce(&mut Condition), clock: time::Duration, severity: Severity, what: &str) {
        let mut condition = right();
        change(&mut condition);
        let (schema, kinds) = (Ok(Vec::new()), Ok(Vec::new()));
        let found = judge(&DatabaseFacts::Reached { condition: Ok(condition), clock, schema, kinds, wanted: 2 });
        let worst = found.iter().max_by_key(|it| it.severity).expect("it says something");
        assert_eq!((worst.severity, worst.what.as_str()), (severity, what), "{found:#?}");
    }

    #[test]
    fn the_server_has_to_take_changes_and_more_connections() {
        let now = time::Duration::ZERO;
        check(|_| {}, now, Severity::Note, "no event has come yet");
        check(|it| it.is_replica = true, now, Severity::Error, "the server is a standby, which takes no changes");
        check(|it| it.connections = 96, now, Severity::Warning, "96 of 97 connections are open; a worker takes 2");
        check(|it| it.connections = 95, now, Severity::Note, "no event has come yet");
        check(|it| it.may_delete = true, now, Severity::Warning, "worker may delete events");
        let apart = "the server's clock and ours are 9 s apart";
        check(|_| {}, time::Duration::seconds(-9), Severity::Warning, apart);
        check(|_| {}, time::Duration::seconds(4), Severity::Note, "no event has come yet");
    }

    #[test]
    fn what_the_database_does_not_say_is_unknown() {
        let no = || "no".to_owned();
        let clock = time::Duration::ZERO;
        let silent =
            DatabaseFacts::Reached { condition: Err(no()), clock, schema: Err(no()), kinds: Err(no()), wanted: 2 };
        let found = judge(&silent);
        assert!(found.len() == 3 && found.iter().all(|it| it.severity == Severity::Unknown), "{found:#?}");
    }
}
