//! Asks AWS and the database. Nothing here changes anything: not a call that writes, but for a receive of a queue that
//! forgives one (a message that it brings is not hidden, and counts as received once more).

use std::collections::{BTreeMap, btree_map::Entry};

use time::OffsetDateTime;

use super::{Attributes, DatabaseFacts, Facts, Times, name_of, policy, queue};
use crate::{
    aws::{
        self, Answer,
        eventbridge::EventBridge,
        kms::Kms,
        ses::{Destination, Ses, Set, To},
        sns::{Sns, Topic},
    },
    postgres::{Postgres, condition, schema},
    sqs::{Sqs, SqsSettings},
};

/// Configuration sets that are looked through for one that leads to the queue.
const MOST_SETS: usize = 100;

/// What is asked about.
pub(crate) struct About<'a> {
    pub(crate) queue: &'a SqsSettings,
    /// Where SES, SNS and EventBridge are, if not where the queue is.
    pub(crate) region: Option<&'a str>,
    pub(crate) config_set: Option<&'a str>,
    pub(crate) identity: Option<&'a str>,
    pub(crate) times: Times,
}

struct Clients {
    ses: Ses,
    sns: Sns,
    events: EventBridge,
    kms: Kms,
    /// Where the queue is.
    kms_of_queue: Kms,
}

/// Finds out everything about one queue and what leads to it.
///
/// # Errors
/// If no region is given and the queue's URL does not tell it.
pub(crate) async fn gather(about: &About<'_>) -> anyhow::Result<Facts> {
    let place = about.queue.place()?;
    let sqs = Sqs::new(about.queue).await?;
    let region = about.region.unwrap_or(&place.region).to_owned();
    let config = |region: String| aws::config(&about.queue.access, region, place.endpoint.clone(), place.local);
    let shared = aws::with_endpoints_of_services(config(region.clone()).await);
    let of_queue = aws::with_endpoints_of_services(config(place.region.clone()).await);
    let clients = Clients {
        ses: Ses::new(&shared),
        sns: Sns::new(&shared),
        events: EventBridge::new(&shared),
        kms: Kms::new(&shared),
        kms_of_queue: Kms::new(&of_queue),
    };
    let (attributes, account, identity) =
        tokio::join!(sqs.look(), clients.ses.account(), identity(&clients.ses, about.identity));
    let known = attributes.as_ref().ok().and_then(Option::as_ref);
    let queue_arn = known.and_then(|it| it.get("QueueArn").cloned()).unwrap_or_else(|| sqs.name_of_queue().to_owned());
    let sources = known.and_then(|it| it.get("Policy")).map(|it| policy::sources(it)).unwrap_or_default();
    let ((set, mut topics), rights) =
        tokio::join!(set_and_topics(&clients, about.config_set, &queue_arn), rights(&sqs, known));
    for topic in sources.iter().filter(|arn| arn.contains(":sns:")) {
        if !topics.contains_key(topic) {
            topics.insert(topic.clone(), clients.sns.topic(topic, &queue_arn).await);
        }
    }
    let mut facts = Facts {
        queue_url: about.queue.queue_url.clone(),
        queue_arn,
        region,
        times: about.times,
        account,
        identity,
        set_name: about.config_set.map(str::to_owned),
        set,
        topics,
        rules: BTreeMap::new(),
        rules_unlisted: None,
        keys: BTreeMap::new(),
        rights,
        queue: attributes,
        dead_letters: BTreeMap::new(),
    };
    rules(&clients.events, &sources, &mut facts).await;
    keys(&clients, &mut facts).await;
    dead_letters(about.queue, &mut facts).await;
    Ok(facts)
}

/// An address is verified by itself, or by its domain.
async fn identity(ses: &Ses, name: Option<&str>) -> Option<(String, Answer<aws::ses::Identity>)> {
    let name = name?;
    let own = ses.identity(name).await;
    match (&own, name.split_once('@')) {
        (Ok(None), Some((_, domain))) => match ses.identity(domain).await {
            Ok(None) => Some((name.to_owned(), own)),
            of_domain => Some((domain.to_owned(), of_domain)),
        },
        _ => Some((name.to_owned(), own)),
    }
}

type Topics = BTreeMap<String, Topic>;

/// The set that was named, or the first that leads to the queue; and the topics that it publishes to.
async fn set_and_topics(clients: &Clients, name: Option<&str>, queue: &str) -> (Answer<Set>, Topics) {
    let mut topics = Topics::new();
    if let Some(name) = name {
        let set = clients.ses.set(name).await;
        let destinations = set.as_ref().ok().and_then(|set| set.as_ref()?.destinations.as_ref().ok()?.clone());
        look_at(&clients.sns, &destinations.unwrap_or_default(), queue, &mut topics).await;
        return (set, topics);
    }
    let names = match clients.ses.sets().await {
        Ok(names) => names.unwrap_or_default(),
        Err(why) => return (Err(why), topics),
    };
    let (mut bus, mut unanswered) = (None, None);
    for name in names.into_iter().take(MOST_SETS) {
        let destinations = match clients.ses.destinations(&name).await {
            Ok(destinations) => destinations.unwrap_or_default(),
            Err(why) => {
                unanswered = Some(why);
                continue;
            }
        };
        look_at(&clients.sns, &destinations, queue, &mut topics).await;
        let leads = |it: &Destination| matches!(&it.to, To::Topic(arn) if is_subscribed(&topics, arn));
        if destinations.iter().any(leads) {
            return (clients.ses.set(&name).await, topics);
        }
        if destinations.iter().any(|it| matches!(it.to, To::Bus(_))) {
            bus.get_or_insert(name);
        }
    }
    // Whoever publishes to EventBridge leads here if a rule does.
    match (bus, clients.events.rules_to(queue).await) {
        (Some(name), Ok(Some(rules))) if !rules.is_empty() => return (clients.ses.set(&name).await, topics),
        (Some(_), Err(why)) => unanswered = Some(why),
        _ => {}
    }
    // A set that may not be looked at may be the one.
    let subscriptions = topics.values().find_map(|it| it.subscription.as_ref().err().cloned());
    (subscriptions.or(unanswered).map_or(Ok(None), Err), Topics::new())
}

async fn look_at(sns: &Sns, destinations: &[Destination], queue: &str, topics: &mut Topics) {
    for destination in destinations {
        if let To::Topic(arn) = &destination.to
            && !topics.contains_key(arn)
        {
            topics.insert(arn.clone(), sns.topic(arn, queue).await);
        }
    }
}

fn is_subscribed(topics: &Topics, arn: &str) -> bool {
    topics.get(arn).is_some_and(|topic| matches!(topic.subscription, Ok(Some(_))))
}

/// Only if something may come by EventBridge: else nobody needs the right to ask.
async fn rules(events: &EventBridge, sources: &[String], facts: &mut Facts) {
    let rule_name =
        |arn: &String| arn.contains(":events:").then(|| arn.split_once(":rule/").map(|(_, it)| it.to_owned()));
    let mut names: Vec<String> = sources.iter().filter_map(rule_name).flatten().collect();
    let destinations = facts.set().and_then(|set| set.destinations.as_ref().ok()?.clone()).unwrap_or_default();
    if names.is_empty() && !destinations.iter().any(|it| matches!(it.to, To::Bus(_))) {
        return;
    }
    match events.rules_to(&facts.queue_arn).await {
        Ok(listed) => names.extend(listed.unwrap_or_default()),
        Err(why) => facts.rules_unlisted = Some(why),
    }
    for name in names {
        // A rule of a bus of one's own is named BUS/NAME; SES publishes to the default bus only.
        if !facts.rules.contains_key(&name) && !name.contains('/') {
            let rule = events.rule(&name, &facts.queue_arn).await;
            facts.rules.insert(name, rule);
        }
    }
}

async fn keys(clients: &Clients, facts: &mut Facts) {
    let key_of = |attributes: &Attributes| attributes.get("KmsMasterKeyId").filter(|id| !id.is_empty()).cloned();
    let topics = facts.topics.values().filter_map(|it| it.attributes.as_ref().ok()?.as_ref());
    let of_topics: Vec<String> = topics.filter_map(key_of).collect();
    for id in of_topics {
        if let Entry::Vacant(place) = facts.keys.entry(id) {
            let key = clients.kms.key(place.key()).await;
            place.insert(key);
        }
    }
    let of_queue = facts.queue.as_ref().ok().and_then(|it| key_of(it.as_ref()?));
    if let Some(id) = of_queue.filter(|id| !facts.keys.contains_key(id)) {
        let key = clients.kms_of_queue.key(&id).await;
        facts.keys.insert(id, key);
    }
}

/// The queue's own dead-letter queue, and those of its subscriptions and rules, as far as they are beside it.
async fn dead_letters(settings: &SqsSettings, facts: &mut Facts) {
    let own = facts.queue.as_ref().ok().and_then(|it| it.as_ref()?.get("RedrivePolicy"));
    let mut arns: Vec<String> = own.and_then(|it| queue::dead_letter_target(it)).into_iter().collect();
    for topic in facts.topics.values() {
        let subscription =
            topic.subscription.as_ref().ok().and_then(|it| it.as_ref()?.attributes.as_ref().ok()?.as_ref());
        arns.extend(subscription.and_then(|it| it.get("RedrivePolicy")).and_then(|it| queue::dead_letter_target(it)));
    }
    for rule in facts.rules.values().filter_map(|it| it.as_ref().ok()?.as_ref()) {
        arns.extend(rule.target.as_ref().ok().and_then(|it| it.as_ref()?.dead_letters.clone()));
    }
    for arn in arns {
        let queue_url = queue::sibling_url(&facts.queue_url, name_of(&arn));
        let is_beside = arn.rsplit_once(':').map(|it| it.0) == facts.queue_arn.rsplit_once(':').map(|it| it.0);
        if is_beside && arn != facts.queue_arn && !facts.dead_letters.contains_key(&arn) {
            let found = look(&SqsSettings { queue_url, ..settings.clone() }).await;
            facts.dead_letters.insert(arn, found);
        }
    }
}

async fn look(settings: &SqsSettings) -> Answer<Attributes> {
    match Sqs::new(settings).await {
        Ok(sqs) => sqs.look().await,
        // Only its region could be missing, and that is the queue's own.
        Err(_) => Ok(None),
    }
}

async fn rights(sqs: &Sqs, queue: Option<&Attributes>) -> Vec<(&'static str, Answer<()>)> {
    let mut rights = Vec::from(sqs.rights_to_settle().await);
    // A queue that gives messages up early must not get one more receive from us.
    let redrive =
        queue.and_then(|it| it.get("RedrivePolicy")).and_then(|it| serde_json::from_str::<serde_json::Value>(it).ok());
    let most =
        redrive.and_then(|it| it["maxReceiveCount"].as_u64().or_else(|| it["maxReceiveCount"].as_str()?.parse().ok()));
    if most.is_none_or(|count| count >= 5) {
        rights.push(("sqs:ReceiveMessage", sqs.right_to_receive().await));
    }
    rights
}

/// Asks the database. `wanted`: the connections that a worker takes.
pub(crate) async fn gather_database(postgres: &Postgres, wanted: u32) -> DatabaseFacts {
    if let Err(e) = postgres.try_connect().await {
        return DatabaseFacts::Unreachable(e.to_string());
    }
    let before = OffsetDateTime::now_utc();
    let condition = condition::condition(postgres).await;
    let after = OffsetDateTime::now_utc();
    // Somewhere between question and answer the server looked at its clock.
    let clock = match &condition {
        Ok(it) if it.clock < before => it.clock - before,
        Ok(it) if it.clock > after => it.clock - after,
        _ => time::Duration::ZERO,
    };
    let text = |e: anyhow::Error| format!("{e:#}");
    DatabaseFacts::Reached {
        condition: condition.map_err(text),
        clock,
        schema: schema::verify(postgres).await.map_err(text),
        kinds: condition::newest_kinds(postgres).await.map_err(text),
        wanted,
    }
}
