//! Rules of the default event bus. The only file that names the SDK's client for them.

use aws_config::SdkConfig;
use aws_sdk_eventbridge::{Client, types::Target};

use super::{Answer, answer};

/// EventBridge in one region.
pub(crate) struct EventBridge(Client);

/// A rule that takes events to the queue.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) arn: String,
    /// `ENABLED`, or not.
    pub(crate) state: String,
    /// Which events it takes, as JSON.
    pub(crate) pattern: Option<String>,
    /// How it hands them to the queue; `None` if the queue is no target of it.
    pub(crate) target: Answer<RuleTarget>,
}

/// The queue, as the target of a rule.
#[derive(Clone, Debug)]
pub(crate) struct RuleTarget {
    pub(crate) id: String,
    /// ARN of the queue for what cannot be delivered.
    pub(crate) dead_letters: Option<String>,
    /// It hands over something else than the event, or a part other than `$.detail`.
    pub(crate) is_rewritten: bool,
}

impl EventBridge {
    pub(crate) fn new(config: &SdkConfig) -> Self {
        Self(Client::new(config))
    }

    /// Names of the rules with this queue as a target.
    pub(crate) async fn rules_to(&self, queue: &str) -> Answer<Vec<String>> {
        let answered = self.0.list_rule_names_by_target().target_arn(queue).send().await;
        let answered = answer("events:ListRuleNamesByTarget", answered)?;
        Ok(answered.map(|it| it.rule_names.unwrap_or_default()))
    }

    /// A rule, as far as it concerns this queue.
    pub(crate) async fn rule(&self, name: &str, queue: &str) -> Answer<Rule> {
        let described = answer("events:DescribeRule", self.0.describe_rule().name(name).send().await)?;
        let Some(rule) = described else { return Ok(None) };
        let targets = answer("events:ListTargetsByRule", self.0.list_targets_by_rule().rule(name).send().await);
        let target = targets.map(|it| {
            it.and_then(|it| it.targets.unwrap_or_default().into_iter().find(|it| it.arn == queue)).map(target)
        });
        Ok(Some(Rule {
            arn: rule.arn.unwrap_or_else(|| name.to_owned()),
            state: rule.state.map_or_else(|| "of unknown state".to_owned(), |state| state.as_str().to_owned()),
            pattern: rule.event_pattern,
            target,
        }))
    }
}

fn target(target: Target) -> RuleTarget {
    let path = target.input_path.as_deref().is_some_and(|path| path != "$.detail" && path != "$");
    RuleTarget {
        id: target.id,
        dead_letters: target.dead_letter_config.and_then(|it| it.arn),
        is_rewritten: target.input.is_some() || target.input_transformer.is_some() || path,
    }
}
