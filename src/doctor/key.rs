//! The key of a topic or of a queue: whoever hands a message over has to be able to use it.

use serde_json::json;

use super::{
    Facts, Findings, Hop,
    policy::{self, Request, Ruling},
    quoted_json,
};
use crate::aws::kms::Key;

/// Somebody who has to use a key.
pub(super) struct User<'a> {
    /// Like `sns.amazonaws.com`.
    pub(super) service: &'a str,
    /// On whose behalf, where the service says so.
    pub(super) source: Option<&'a str>,
}

const ACTIONS: [&str; 2] = ["kms:GenerateDataKey", "kms:Decrypt"];

/// `whose`: like `the topic events`. `off`: a command that does without the key.
pub(super) fn judge(facts: &Facts, hop: Hop, id: &str, whose: &str, users: &[User<'_>], findings: &mut Findings) {
    let Some(answer) = facts.keys.get(id) else { return };
    if let Ok(None) = answer {
        let fix = "choose another key, or give this one back".to_owned();
        return findings.error(
            hop,
            format!("the key of {whose} does not exist: {id}"),
            "nothing can be encrypted, so nothing arrives",
            fix,
        );
    }
    let Some(key) = findings.found(hop, &format!("the key of {whose}"), answer) else { return };
    if !is_usable(hop, key, whose, findings) {
        return;
    }
    if key.is_of_aws {
        let services: Vec<&str> = users.iter().map(|it| it.service).collect();
        return findings.error(
            hop,
            format!("{whose} is encrypted with a key that AWS made for itself ({id})"),
            &format!("nobody can let {} use it, so nothing arrives", super::listed(&services)),
            findings.aws("kms create-key") + "  # and use that one, with a policy for these services",
        );
    }
    let Some(policy) = findings.found(hop, &format!("the policy of the key of {whose}"), &key.policy) else { return };
    for user in users {
        user_of(hop, key, policy, whose, user, findings);
    }
}

fn is_usable(hop: Hop, key: &Key, whose: &str, findings: &mut Findings) -> bool {
    let fix = match key.state.as_str() {
        "Enabled" => return true,
        "Disabled" => format!("kms enable-key --key-id {}", key.arn),
        "PendingDeletion" => {
            format!("kms cancel-key-deletion --key-id {0} && aws kms enable-key --key-id {0}", key.arn)
        }
        _ => format!("kms describe-key --key-id {}", key.arn),
    };
    let what = format!("the key of {whose} cannot be used: it is {}", key.state);
    findings.error(hop, what, "nothing can be encrypted or read, so nothing arrives", findings.aws(fix));
    false
}

fn user_of(hop: Hop, key: &Key, policy: &str, whose: &str, user: &User<'_>, findings: &mut Findings) {
    let service = user.service;
    let ruling = |action: &str| {
        let (resource, source) = (key.arn.as_str(), user.source);
        policy::judge(policy, &Request { service, action, resource, source })
    };
    let refused = ACTIONS.into_iter().find_map(|action| match ruling(action) {
        Ruling::Allowed => None,
        other => Some((action, other)),
    });
    match refused {
        None => findings.ok(hop, format!("{service} may use the key of {whose}")),
        Some((_, Ruling::Unclear(what))) => {
            findings.unknown(hop, format!("cannot tell whether {service} may use the key of {whose}"), &what);
        }
        Some((_, Ruling::Denied(statement))) => findings.error(
            hop,
            format!("{service} may not use the key of {whose}: {statement} forbids it"),
            "what cannot be encrypted does not arrive, and nobody is told",
            findings.aws(format!("kms get-key-policy --key-id {} --policy-name default", key.arn))
                + "  # take that statement out",
        ),
        Some((action, _)) => {
            let sid = if service.starts_with("ses.") { "SesPublishes" } else { "Delivers" };
            let allow = json!({"Sid": format!("{sid}{}", service.split('.').next().unwrap_or_default()), "Effect": "Allow",
                               "Principal": {"Service": service}, "Action": ACTIONS, "Resource": "*"});
            let longer = quoted_json(&policy::with(Some(policy), allow));
            findings.error(
                hop,
                format!("{service} may not use the key of {whose}: nothing allows {action}"),
                "what cannot be encrypted does not arrive, and nobody is told",
                findings
                    .aws(format!("kms put-key-policy --key-id {} --policy-name default --policy {longer}", key.arn)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::{
        aws::{Unanswered, Why},
        doctor::{Severity, Times},
    };

    const POLICY: &str = r#"{"Statement": {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "kms:*", "Resource": "*"}}"#;

    /// What is said about a key that SNS and SES have to use.
    fn check(state: &str, is_of_aws: bool, policy: &str, expected: &[(Severity, &str)]) {
        let key =
            Key { arn: "KEY".to_owned(), state: state.to_owned(), is_of_aws, policy: Ok(Some(policy.to_owned())) };
        let nobody = || Unanswered { permission: "ses:GetAccount", why: Why::Denied };
        let facts = Facts {
            queue_url: String::new(),
            queue_arn: String::new(),
            region: "eu-west-1".to_owned(),
            times: Times { visibility: Duration::ZERO, worst: Duration::ZERO },
            account: Err(nobody()),
            identity: None,
            set_name: None,
            set: Ok(None),
            topics: BTreeMap::new(),
            rules: BTreeMap::new(),
            rules_unlisted: None,
            keys: BTreeMap::from([("k".to_owned(), Ok(Some(key)))]),
            queue: Err(nobody()),
            dead_letters: BTreeMap::new(),
            rights: Vec::new(),
        };
        let users = ["sns.amazonaws.com", "ses.amazonaws.com"].map(|service| User { service, source: None });
        let mut findings = Findings { region: "eu-west-1".to_owned(), all: Vec::new() };
        judge(&facts, Hop::Queue, "k", "the queue", &users, &mut findings);
        let found: Vec<(Severity, &str)> = findings.all.iter().map(|it| (it.severity, it.what.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_key_has_to_be_on_and_let_each_service_use_it() {
        let (ok, error) = (Severity::Ok, Severity::Error);
        let sns = (ok, "sns.amazonaws.com may use the key of the queue");
        let ses = (error, "ses.amazonaws.com may not use the key of the queue: nothing allows kms:GenerateDataKey");
        check("Enabled", false, POLICY, &[sns, ses]);
        check("Disabled", false, POLICY, &[(error, "the key of the queue cannot be used: it is Disabled")]);
        check(
            "PendingDeletion",
            false,
            POLICY,
            &[(error, "the key of the queue cannot be used: it is PendingDeletion")],
        );
        check("Enabled", true, POLICY, &[(error, "the queue is encrypted with a key that AWS made for itself (k)")]);
        let denies = POLICY.replace("Allow", "Deny");
        let denied = (error, "sns.amazonaws.com may not use the key of the queue: statement 1 forbids it");
        check("Enabled", false, &denies, &[denied, ses]);
    }
}
