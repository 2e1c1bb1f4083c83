//! Policies of topics, queues and keys: may this service do that?
//!
//! Read conservatively: where a statement says something that is not understood here, the answer is that we do not know.

use serde_json::Value;

/// What a policy says about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    Allowed,
    /// A statement forbids it; its name, or its place.
    Denied(String),
    /// No statement allows it.
    NotAllowed,
    /// It depends on what is not understood here.
    Unclear(String),
}

/// A service wants to do something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// Like `sns.amazonaws.com`.
    pub(crate) service: &'a str,
    /// Like `sqs:SendMessage`.
    pub(crate) action: &'a str,
    pub(crate) resource: &'a str,
    /// On behalf of what, if the service says so: `aws:SourceArn` and `aws:SourceAccount`.
    pub(crate) source: Option<&'a str>,
}

/// Whether a condition holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Truth {
    Yes,
    No,
    Unclear(String),
}

/// Judges a request by a policy.
pub(crate) fn judge(policy: &str, request: &Request<'_>) -> Ruling {
    let Ok(policy) = serde_json::from_str::<Value>(policy) else {
        return Ruling::Unclear("the policy is not JSON".to_owned());
    };
    let (mut is_allowed, mut unclear) = (false, None);
    for (number, statement) in (1..).zip(list(&policy["Statement"])) {
        let name =
            statement["Sid"].as_str().map_or_else(|| format!("statement {number}"), |sid| format!("statement {sid}"));
        let is_deny = statement["Effect"] == "Deny";
        match applies(statement, request) {
            Truth::No => {}
            Truth::Yes if is_deny => return Ruling::Denied(name),
            Truth::Yes => is_allowed = true,
            // What forbids for an unknown reason spoils what others allow.
            Truth::Unclear(what) if is_deny => return Ruling::Unclear(format!("{name} forbids it under {what}")),
            Truth::Unclear(what) => unclear = Some(format!("{name} allows it under {what}")),
        }
    }
    match (is_allowed, unclear) {
        (true, _) => Ruling::Allowed,
        (false, Some(what)) => Ruling::Unclear(what),
        (false, None) => Ruling::NotAllowed,
    }
}

/// The statement that lets anybody do this, without a condition.
pub(crate) fn open_to_all(policy: &str, action: &str) -> Option<String> {
    let policy: Value = serde_json::from_str(policy).ok()?;
    let is_open = |statement: &&Value| {
        let principal = &statement["Principal"];
        let anybody = *principal == "*" || list(&principal["AWS"]).any(|it| *it == "*");
        let condition = statement["Condition"].as_object().is_some_and(|it| !it.is_empty());
        statement["Effect"] == "Allow" && anybody && !condition && names(&statement["Action"], action, true)
    };
    let name = |statement: &Value| statement["Sid"].as_str().unwrap_or("a statement without a name").to_owned();
    list(&policy["Statement"]).find(is_open).map(name)
}

/// ARNs that the policy's conditions name as sources, such as topics and rules; those with wildcards are left out.
pub(crate) fn sources(policy: &str) -> Vec<String> {
    let policy: Value = serde_json::from_str(policy).unwrap_or_default();
    let conditions = list(&policy["Statement"]).filter(|it| it["Effect"] == "Allow");
    let conditions = conditions.flat_map(|it| it["Condition"].as_object().into_iter().flatten());
    let keys = conditions.flat_map(|(_, keys)| keys.as_object().into_iter().flatten());
    let arns = keys.filter(|(key, _)| key.eq_ignore_ascii_case("aws:SourceArn")).flat_map(|(_, value)| list(value));
    arns.filter_map(Value::as_str).filter(|arn| !arn.contains(['*', '?'])).map(str::to_owned).collect()
}

/// The policy with one more statement.
pub(crate) fn with(policy: Option<&str>, statement: Value) -> Value {
    let empty = || serde_json::json!({"Version": "2012-10-17", "Statement": []});
    let mut policy = policy.and_then(|it| serde_json::from_str(it).ok()).filter(Value::is_object).unwrap_or_else(empty);
    let mut statements: Vec<Value> = list(&policy["Statement"]).cloned().collect();
    statements.retain(|it| it["Sid"].is_null() || it["Sid"] != statement["Sid"]);
    statements.push(statement);
    policy["Statement"] = Value::Array(statements);
    policy
}

fn applies(statement: &Value, request: &Request<'_>) -> Truth {
    for negated in ["NotPrincipal", "NotAction", "NotResource"] {
        if !statement[negated].is_null() {
            return Truth::Unclear(negated.to_owned());
        }
    }
    let principal = &statement["Principal"];
    let is_meant = *principal == "*"
        || list(&principal["AWS"]).any(|it| *it == "*")
        || list(&principal["Service"]).any(|it| *it == "*" || *it == request.service);
    let is_about = names(&statement["Action"], request.action, true)
        && (statement["Resource"].is_null() || names(&statement["Resource"], request.resource, false));
    if !is_meant || !is_about {
        return Truth::No;
    }
    let mut unclear = None;
    for (operator, keys) in statement["Condition"].as_object().into_iter().flatten() {
        for (key, expected) in keys.as_object().into_iter().flatten() {
            match holds(operator, key, expected, request) {
                Truth::Yes => {}
                Truth::No => return Truth::No,
                Truth::Unclear(what) => unclear = Some(what),
            }
        }
    }
    unclear.map_or(Truth::Yes, Truth::Unclear)
}

/// One line of a condition. Keys that the request does not tell, and operators that are not listed, are not understood.
fn holds(operator: &str, key: &str, expected: &Value, request: &Request<'_>) -> Truth {
    let unclear = || Truth::Unclear(format!("the condition {operator} {key}"));
    let Some(value) = value_of(key, request) else { return unclear() };
    let matches =
        |test: &dyn Fn(&str) -> bool| list(expected).any(|it| it.as_str().map_or_else(|| test(&it.to_string()), test));
    // `…IfExists` differs only where there is no value.
    let operator = operator.strip_suffix("IfExists").unwrap_or(operator);
    let found = match operator {
        "StringEquals" => matches(&|it| it == value),
        "StringEqualsIgnoreCase" | "Bool" => matches(&|it| it.eq_ignore_ascii_case(value)),
        "StringLike" => matches(&|it| like(it, value)),
        "ArnEquals" | "ArnLike" => matches(&|it| arn_like(it, value)),
        "StringNotEquals" => !matches(&|it| it == value),
        "StringNotLike" => !matches(&|it| like(it, value)),
        "ArnNotEquals" | "ArnNotLike" => !matches(&|it| arn_like(it, value)),
        "Null" => matches(&|it| it == "false"),
        _ => return unclear(),
    };
    if found { Truth::Yes } else { Truth::No }
}

/// What services say about their requests, as far as we know it.
fn value_of<'a>(key: &str, request: &Request<'a>) -> Option<&'a str> {
    match key.to_ascii_lowercase().as_str() {
        "aws:sourcearn" => request.source,
        "aws:sourceaccount" => {
            request.source.and_then(|arn| arn.split(':').nth(4)).filter(|account| !account.is_empty())
        }
        "aws:securetransport" | "aws:principalisawsservice" => Some("true"),
        "aws:principalservicename" => Some(request.service),
        _ => None,
    }
}

fn names(patterns: &Value, wanted: &str, is_action: bool) -> bool {
    let wanted = if is_action { wanted.to_ascii_lowercase() } else { wanted.to_owned() };
    list(patterns).filter_map(Value::as_str).any(|pattern| match is_action {
        // Topics' own default policy writes `SNS:Publish`.
        true => like(&pattern.to_ascii_lowercase(), &wanted),
        false => like(pattern, &wanted),
    })
}

/// A value, or the values of a list.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    let (one, many) = match value {
        Value::Null => (None, None),
        Value::Array(all) => (None, Some(all.iter())),
        one => (Some(one), None),
    };
    one.into_iter().chain(many.into_iter().flatten())
}

/// Each of an ARN's six parts is compared for itself: a wildcard does not reach over a colon, but in the last.
fn arn_like(pattern: &str, arn: &str) -> bool {
    let (patterns, parts): (Vec<_>, Vec<_>) = (pattern.splitn(6, ':').collect(), arn.splitn(6, ':').collect());
    pattern == "*"
        || patterns.len() == parts.len() && patterns.iter().zip(&parts).all(|(pattern, part)| like(pattern, part))
}

/// `*` is any text, `?` one character.
fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some('?') => (p, t) = (p + 1, t + 1),
            Some(c) if *c == text[t] => (p, t) = (p + 1, t + 1),
            // The last star takes one character more.
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:events";
    const QUEUE: &str = "arn:aws:sqs:eu-west-1:123456789012:events";
    const SEND: Request<'_> =
        Request { service: "sns.amazonaws.com", action: "sqs:SendMessage", resource: QUEUE, source: Some(TOPIC) };

    fn check(statement: Value, expected: Ruling) {
        let mut whole = json!({"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage",
                               "Resource": QUEUE});
        let parts = whole.as_object_mut().expect("it is one");
        parts.extend(statement.as_object().expect("it is one").clone());
        let policy = json!({"Version": "2012-10-17", "Statement": whole});
        assert_eq!(judge(&policy.to_string(), &SEND), expected, "{policy}");
    }

    fn unclear(what: &str) -> Ruling {
        Ruling::Unclear(format!("statement 1 allows it under {what}"))
    }

    #[test]
    fn a_statement_allows_what_it_names() {
        check(json!({}), Ruling::Allowed);
        check(json!({"Action": ["sqs:*"], "Resource": "arn:aws:sqs:*:*:events"}), Ruling::Allowed);
        check(json!({"Action": "SQS:sendmessage"}), Ruling::Allowed);
        check(json!({"Principal": "*"}), Ruling::Allowed);
        check(json!({"Principal": {"AWS": "*"}}), Ruling::Allowed);
        check(json!({"Principal": {"Service": ["events.amazonaws.com", "sns.amazonaws.com"]}}), Ruling::Allowed);
    }

    #[test]
    fn a_statement_about_something_else_allows_nothing() {
        check(json!({"Action": "sqs:ReceiveMessage"}), Ruling::NotAllowed);
        check(json!({"Resource": "arn:aws:sqs:eu-west-1:123456789012:events-2"}), Ruling::NotAllowed);
        check(json!({"Principal": {"Service": "events.amazonaws.com"}}), Ruling::NotAllowed);
        // An account's root are its users and roles, no services.
        check(json!({"Principal": {"AWS": "arn:aws:iam::123456789012:root"}}), Ruling::NotAllowed);
    }

    #[test]
    fn conditions_on_the_source_are_understood() {
        let other = "arn:aws:sns:eu-west-1:123456789012:other";
        for (condition, expected) in [
            (json!({"ArnEquals": {"aws:SourceArn": TOPIC}}), Ruling::Allowed),
            (json!({"ArnLike": {"AWS:SourceArn": "arn:aws:sns:*:123456789012:*"}}), Ruling::Allowed),
            (json!({"StringLike": {"aws:SourceArn": [other, "arn:aws:sns:*"]}}), Ruling::Allowed),
            (json!({"StringEquals": {"aws:SourceAccount": "123456789012"}}), Ruling::Allowed),
            (json!({"ArnEquals": {"aws:SourceArn": other}}), Ruling::NotAllowed),
            (json!({"StringEquals": {"aws:SourceArn": "arn:aws:sns:*"}}), Ruling::NotAllowed),
            (json!({"StringNotEquals": {"aws:SourceAccount": "123456789012"}}), Ruling::NotAllowed),
            (
                json!({"StringEquals": {"aws:SourceAccount": "1"}, "Bool": {"aws:SecureTransport": "true"}}),
                Ruling::NotAllowed,
            ),
        ] {
            check(json!({"Condition": condition}), expected);
        }
    }

    #[test]
    fn what_is_not_understood_is_unclear_and_never_allowed() {
        check(
            json!({"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}),
            unclear("the condition IpAddress aws:SourceIp"),
        );
        check(
            json!({"Condition": {"StringEquals": {"aws:PrincipalOrgID": "o-1"}}}),
            unclear("the condition StringEquals aws:PrincipalOrgID"),
        );
        check(
            json!({"Condition": {"ForAnyValue:StringEquals": {"aws:SourceAccount": "123456789012"}}}),
            unclear("the condition ForAnyValue:StringEquals aws:SourceAccount"),
        );
        check(json!({"Action": null, "NotAction": "sqs:DeleteQueue"}), unclear("NotAction"));
        assert_eq!(judge("{", &SEND), Ruling::Unclear("the policy is not JSON".to_owned()));
        // It does not hold whatever the unclear part says.
        let both = json!({"StringEquals": {"aws:SourceAccount": "1", "aws:PrincipalOrgID": "o-1"}});
        check(json!({"Condition": both}), Ruling::NotAllowed);
    }

    #[test]
    fn what_forbids_wins() {
        let allow = json!({"Effect": "Allow", "Principal": "*", "Action": "sqs:*", "Resource": "*"});
        let judged = |deny: Value| judge(&json!({"Statement": [deny, allow]}).to_string(), &SEND);
        let deny = json!({"Sid": "No", "Effect": "Deny", "Principal": "*", "Action": "sqs:*", "Resource": "*"});
        assert_eq!(judged(deny.clone()), Ruling::Denied("statement No".to_owned()));
        let with = |condition: Value| {
            let mut deny = deny.clone();
            deny["Condition"] = condition;
            judged(deny)
        };
        assert_eq!(with(json!({"Bool": {"aws:SecureTransport": "false"}})), Ruling::Allowed);
        let org = with(json!({"StringNotEquals": {"aws:PrincipalOrgID": "o-1"}}));
        assert_eq!(
            org,
            Ruling::Unclear(
                "statement No forbids it under the condition StringNotEquals aws:PrincipalOrgID".to_owned()
            )
        );
    }

    #[test]
    fn wildcards_of_arns_stay_within_a_part() {
        assert!(arn_like(
            "arn:aws:ses:*:123456789012:configuration-set/*",
            "arn:aws:ses:eu-west-1:123456789012:configuration-set/a/b"
        ));
        assert!(!arn_like(
            "arn:aws:ses:*:configuration-set/*",
            "arn:aws:ses:eu-west-1:123456789012:configuration-set/a"
        ));
        assert!(like("a*c?e", "abbbcde") && !like("a*c?e", "abbbcdd") && like("**", "") && !like("?", ""));
    }

    #[test]
    fn a_policy_tells_which_sources_it_names_and_whether_it_is_open() {
        let policy = json!({"Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Condition": {"ArnEquals": {"aws:SourceArn": [TOPIC, "arn:aws:sns:*"]}}},
            {"Effect": "Allow", "Sid": "All", "Principal": {"AWS": "*"}, "Action": "sqs:*"}]})
        .to_string();
        assert_eq!(sources(&policy), [TOPIC]);
        assert_eq!(open_to_all(&policy, "sqs:SendMessage").as_deref(), Some("All"));
        let longer = with(Some(&policy), json!({"Sid": "All", "Effect": "Deny"}));
        assert_eq!(longer["Statement"].as_array().map(Vec::len), Some(2), "a statement of the same name is replaced");
    }
}
