//! Metrics that alarms, scaling and dashboards name: CloudWatch takes any name, and then waits for ever.

use serde_json::{Value, json};
use ses_ledger::postgres::letting_go;

use super::{Template, Templates};

/// Namespace, metric, its dimensions, the statistics that say something.
type Metric = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

const OF_A_QUEUE: &[&str] = &["QueueName"];
const OF_A_TOPIC: &[&str] = &["TopicName"];
const OF_A_FUNCTION: &[&str] = &["FunctionName"];
const OF_A_SERVICE: &[&str] = &["ClusterName", "ServiceName"];

/// Those of AWS that are of use here.
pub(super) const OF_AWS: &[Metric] = &[
    ("AWS/SQS", "ApproximateAgeOfOldestMessage", OF_A_QUEUE, &["Maximum"]),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible", OF_A_QUEUE, &["Maximum"]),
    ("AWS/SQS", "ApproximateNumberOfMessagesNotVisible", OF_A_QUEUE, &["Maximum"]),
    ("AWS/SQS", "NumberOfMessagesSent", OF_A_QUEUE, &["Sum"]),
    ("AWS/SQS", "NumberOfMessagesDeleted", OF_A_QUEUE, &["Sum"]),
    ("AWS/SNS", "NumberOfMessagesPublished", OF_A_TOPIC, &["Sum"]),
    ("AWS/SNS", "NumberOfNotificationsFailed", OF_A_TOPIC, &["Sum"]),
    ("AWS/SES", "Send", &[], &["Sum"]),
    ("AWS/SES", "Reputation.BounceRate", &[], &["Maximum"]),
    ("AWS/SES", "Reputation.ComplaintRate", &[], &["Maximum"]),
    ("ECS/ContainerInsights", "DesiredTaskCount", OF_A_SERVICE, &["Maximum"]),
    ("ECS/ContainerInsights", "RunningTaskCount", OF_A_SERVICE, &["Minimum"]),
    ("AWS/Lambda", "Errors", OF_A_FUNCTION, &["Sum"]),
    ("AWS/Lambda", "Throttles", OF_A_FUNCTION, &["Sum"]),
    ("AWS/Lambda", "Invocations", OF_A_FUNCTION, &["Sum"]),
    ("AWS/Lambda", "Duration", OF_A_FUNCTION, &["Maximum"]),
];

/// Those that the worker writes, with the statistic that says something: counters are added up.
pub(super) const OURS: &[(&str, &str)] = &[
    ("MessagesReceived", "Sum"),
    ("MessagesStored", "Sum"),
    ("MessagesIgnored", "Sum"),
    ("MessagesRejected", "Sum"),
    ("MessagesReleased", "Sum"),
    ("MessagesDeleted", "Sum"),
    ("MessagesUndeleted", "Sum"),
    ("MessagesRedelivered", "Sum"),
    ("EventsDecoded", "Sum"),
    ("EventsInserted", "Sum"),
    ("EventsDuplicate", "Sum"),
    ("EventsExpired", "Sum"),
    ("EventsOrphaned", "Sum"),
    ("EventsQuarantined", "Sum"),
    ("OrphansAttached", "Sum"),
    ("StoreRetries", "Sum"),
    ("DeleteRetries", "Sum"),
    ("PollersReplaced", "Sum"),
    ("RetentionRuns", "Sum"),
    ("RetentionEmptied", "Sum"),
    ("MessagesInHand", "Maximum"),
    ("MessagesDrift", "Maximum"),
    ("EventsDrift", "Maximum"),
    ("Orphans", "Maximum"),
    ("OldestOrphanAge", "Maximum"),
    ("QuarantinedBodies", "Maximum"),
    ("MonthsAhead", "Maximum"),
    ("EmptyingAge", "Maximum"),
    ("RetentionAge", "Maximum"),
    ("FiguresLag", "Maximum"),
];

/// Words of metric math that are no ids.
const FUNCTIONS: [&str; 8] = ["IF", "FILL", "AND", "OR", "ABS", "CEIL", "MAX", "MIN"];

/// A metric that a resource reads.
struct Use<'a> {
    template: &'a Template,
    resource: &'a str,
    namespace: &'a Value,
    name: &'a Value,
    dimensions: Vec<(&'a str, &'a Value)>,
    statistic: &'a str,
}

enum Known {
    Aws(&'static Metric),
    /// With the statistic for it.
    Ours(&'static str),
    /// Made in the template by a filter over a log.
    Filtered,
}

impl Use<'_> {
    fn known(&self) -> Option<Known> {
        let filters = self.template.of_type("AWS::Logs::MetricFilter");
        let mut filtered = filters.map(|(_, filter)| &filter["MetricTransformations"][0]);
        if filtered.any(|it| it["MetricName"] == *self.name && it["MetricNamespace"] == *self.namespace) {
            return Some(Known::Filtered);
        }
        if *self.namespace == json!({ "Ref": "MetricNamespace" }) {
            return OURS.iter().find(|(name, _)| *self.name == *name).map(|(_, statistic)| Known::Ours(statistic));
        }
        let of_aws = OF_AWS.iter().find(|(namespace, name, _, _)| *self.namespace == *namespace && *self.name == *name);
        of_aws.map(Known::Aws)
    }

    fn place(&self) -> String {
        format!("{}: {}", self.template.file, self.resource)
    }
}

pub(super) fn every_metric_exists(templates: &Templates) -> Vec<String> {
    let uses = uses(templates);
    assert!(uses.len() > 25, "only {} metrics found: are alarms read at all?", uses.len());
    let unknown = uses.iter().filter(|it| it.known().is_none());
    unknown.map(|it| format!("{} watches {} {}, which is not there", it.place(), it.namespace, it.name)).collect()
}

pub(super) fn every_dimension_is_what_the_metric_has(templates: &Templates) -> Vec<String> {
    let mut wrong = Vec::new();
    for it in uses(templates) {
        let names: Vec<&str> = it.dimensions.iter().map(|(name, _)| *name).collect();
        let expected: &[&str] = match it.known() {
            Some(Known::Aws((_, _, dimensions, _))) => dimensions,
            Some(Known::Ours(_)) => &["Service"],
            Some(Known::Filtered) | None => &[],
        };
        if names != expected {
            wrong.push(format!("{}: {} has the dimensions {expected:?}, not {names:?}", it.place(), it.name));
        }
        let ill = it.dimensions.iter().filter(|(name, value)| !names_it(it.template, name, value));
        wrong.extend(ill.map(|(name, value)| format!("{}: {value} is no {name}", it.place())));
    }
    wrong
}

/// Whether a value of a dimension is the name of such a thing, not its URL, ARN or id.
fn names_it(template: &Template, dimension: &str, value: &Value) -> bool {
    let kind_of = |name: &Value| {
        let resource = name.as_str().map(|name| &template.value["Resources"][name]["Type"]);
        resource.and_then(Value::as_str).unwrap_or_default()
    };
    let (resource, attribute) = (&value["Fn::GetAtt"][0], &value["Fn::GetAtt"][1]);
    match dimension {
        "QueueName" => {
            (kind_of(resource) == "AWS::SQS::Queue" && attribute == "QueueName") || value["Ref"] == "QueueName"
        }
        "TopicName" => kind_of(resource) == "AWS::SNS::Topic" && attribute == "TopicName",
        "ServiceName" => kind_of(resource) == "AWS::ECS::Service" && attribute == "Name",
        "FunctionName" => kind_of(&value["Ref"]) == "AWS::Lambda::Function",
        "ClusterName" => value["Fn::If"][1] == json!({ "Ref": "Cluster" }),
        "Service" => *value == service_of_the_worker(template),
        _ => false,
    }
}

/// What the worker is told to write as its dimension.
fn service_of_the_worker(template: &Template) -> Value {
    let of_function = &template.properties("Function")["Environment"]["Variables"]["EMF_SERVICE"];
    let of_task = template.properties("TaskDefinition")["ContainerDefinitions"][0]["Environment"].as_array();
    let of_task = of_task.into_iter().flatten().find(|it| it["Name"] == "EMF_SERVICE");
    of_task.map_or(of_function, |it| &it["Value"]).clone()
}

pub(super) fn every_statistic_suits_its_metric(templates: &Templates) -> Vec<String> {
    let ill = |it: &Use<'_>| match it.known() {
        Some(Known::Aws((_, _, _, statistics))) => !statistics.contains(&it.statistic),
        // Samples are counted to see how many workers there are: each writes one a minute.
        Some(Known::Ours(statistic)) => ![statistic, "SampleCount"].contains(&it.statistic),
        Some(Known::Filtered) | None => false,
    };
    let uses = uses(templates).into_iter().filter(ill);
    uses.map(|it| format!("{}: the {} of {} says nothing", it.place(), it.statistic, it.name)).collect()
}

pub(super) fn metric_math_is_closed_and_has_one_result(templates: &Templates) -> Vec<String> {
    let mut wrong = Vec::new();
    for template in templates.all() {
        for (resource, metrics) in math(template) {
            let mut say = |what: String| wrong.push(format!("{}: {resource}: {what}", template.file));
            let results = metrics.iter().filter(|it| it["ReturnData"] == true).count();
            if results != 1 || metrics.iter().any(|it| !it["ReturnData"].is_boolean()) {
                say(format!("{results} results, not one"));
            }
            let ids: Vec<&str> = metrics.iter().filter_map(|it| it["Id"].as_str()).collect();
            let mut used = Vec::new();
            for expression in metrics.iter().filter_map(|it| expression(template, it)) {
                if let Err(what) = check_expression(&expression, &ids) {
                    say(format!("{expression:?}: {what}"));
                }
                used.extend(words(&expression).map(str::to_owned));
            }
            for it in metrics.iter().filter(|it| it["ReturnData"] == false) {
                let id = it["Id"].as_str().unwrap_or_default();
                if !used.iter().any(|used| used == id) {
                    say(format!("nothing reads {id}"));
                }
            }
        }
    }
    wrong
}

/// The text of an expression, with numbers in place of parameters. None for a metric.
fn expression(template: &Template, metric: &Value) -> Option<String> {
    let mut text = match &metric["Expression"] {
        Value::String(text) => text.clone(),
        it => it["Fn::Sub"].as_str()?.to_owned(),
    };
    for (name, parameter) in template.value["Parameters"].as_object().into_iter().flatten() {
        text = text.replace(&format!("${{{name}}}"), &parameter["Default"].to_string());
    }
    Some(text)
}

fn check_expression(expression: &str, ids: &[&str]) -> Result<(), String> {
    let mut open = 0;
    for letter in expression.chars() {
        open += i32::from(letter == '(') - i32::from(letter == ')');
        if open < 0 {
            return Err("closes what is not open".to_owned());
        }
    }
    if open > 0 {
        return Err("is not closed".to_owned());
    }
    if expression.contains("${") {
        return Err("holds what is no parameter".to_owned());
    }
    let known = |word: &&str| ids.contains(word) || FUNCTIONS.contains(word);
    words(expression).find(|word| !known(word)).map_or(Ok(()), |word| Err(format!("there is no {word}")))
}

/// Words that begin with a letter.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with(|letter: char| letter.is_alphabetic()))
}

pub(super) fn thresholds_have_the_unit_of_their_metric(templates: &Templates) -> Vec<String> {
    let expected = [
        ("BounceRateAlarm", json!(0.05)),
        ("ComplaintRateAlarm", json!(0.001)),
        ("DeadLetterAlarm", json!(0)),
        ("UndeliveredAlarm", json!(0)),
        ("NotificationsFailedAlarm", json!(0)),
        ("InFlightAlarm", json!(100_000)),
        ("OldestAgeAlarm", json!({ "Ref": "OldestAge" })),
    ];
    let alarm = |name: &str| templates.pipeline.properties(name);
    let mut wrong: Vec<String> = expected
        .iter()
        .filter(|(name, threshold)| alarm(name)["Threshold"] != *threshold)
        .map(|(name, threshold)| format!("pipeline.yaml: the threshold of {name} is not {threshold}"))
        .collect();
    for worker in templates.of_workers() {
        let expected = [
            ("RetentionOverdueAlarm", letting_go::OVERDUE.as_secs()),
            ("PartitionsAlarm", letting_go::FEWEST_MONTHS_AHEAD.unsigned_abs()),
        ];
        for (name, threshold) in expected {
            if worker.properties(name)["Threshold"] != json!(threshold) {
                wrong.push(format!("{}: the threshold of {name} is not {threshold}", worker.file));
            }
        }
    }
    // Milliseconds of an invocation, seconds of its timeout.
    let late = templates.lambda.properties("DurationAlarm")["Metrics"].as_array();
    let late = late.into_iter().flatten().find_map(|it| it["Expression"]["Fn::Sub"].as_str()).unwrap_or_default();
    let factor = late.split_once("${Timeout} * ").and_then(|(_, rest)| rest.split(',').next()?.parse::<f64>().ok());
    if !factor.is_some_and(|factor| (500.0..1000.0).contains(&factor)) {
        wrong.push(format!("worker-lambda.yaml: {late:?} does not compare milliseconds with part of the timeout"));
    }
    wrong
}

/// The alarms without which something could go wrong for weeks.
pub(super) fn what_has_to_wake_somebody_has_an_alarm(templates: &Templates) -> Vec<String> {
    let pipeline = [
        "ApproximateAgeOfOldestMessage",
        "ApproximateNumberOfMessagesVisible",
        "ApproximateNumberOfMessagesNotVisible",
        "NumberOfMessagesSent",
        "NumberOfNotificationsFailed",
        "Send",
        "Reputation.BounceRate",
        "Reputation.ComplaintRate",
    ];
    let both = [
        "MessagesDrift",
        "EventsDrift",
        "MessagesRejected",
        "OldestOrphanAge",
        "RetentionRuns",
        "EmptyingAge",
        "RetentionAge",
        "MonthsAhead",
    ];
    let ecs = ["MessagesInHand", "DesiredTaskCount", "RunningTaskCount"];
    let lambda = ["Errors", "Throttles", "Duration", "Invocations"];
    let needed: [(&Template, Vec<&str>); 3] = [
        (&templates.pipeline, pipeline.to_vec()),
        (&templates.ecs, [&both[..], &ecs].concat()),
        (&templates.lambda, [&both[..], &lambda].concat()),
    ];
    let mut wrong = Vec::new();
    for (template, names) in needed {
        let watched: Vec<Use<'_>> = uses_of(template)
            .into_iter()
            .filter(|it| template.value["Resources"][it.resource]["Type"] == "AWS::CloudWatch::Alarm")
            .collect();
        let missing = names.iter().filter(|name| !watched.iter().any(|it| *it.name == **name));
        wrong.extend(missing.map(|name| format!("{}: no alarm watches {name}", template.file)));
    }
    wrong
}

fn uses(templates: &Templates) -> Vec<Use<'_>> {
    templates.all().into_iter().flat_map(uses_of).collect()
}

fn uses_of(template: &Template) -> Vec<Use<'_>> {
    let alarms = template.of_type("AWS::CloudWatch::Alarm").filter(|(_, it)| !it["MetricName"].is_null());
    let plain = alarms.map(|(resource, it)| read_use(template, resource, it, &it["Statistic"]));
    let in_math = math(template).into_iter().flat_map(|(resource, metrics)| {
        let stats = metrics.iter().map(|it| &it["MetricStat"]).filter(|it| !it.is_null());
        stats.map(move |it| read_use(template, resource, &it["Metric"], &it["Stat"]))
    });
    plain.chain(in_math).collect()
}

fn read_use<'a>(template: &'a Template, resource: &'a str, metric: &'a Value, statistic: &'a Value) -> Use<'a> {
    let dimensions = metric["Dimensions"].as_array().into_iter().flatten();
    Use {
        template,
        resource,
        namespace: &metric["Namespace"],
        name: &metric["MetricName"],
        dimensions: dimensions.map(|it| (it["Name"].as_str().unwrap_or_default(), &it["Value"])).collect(),
        statistic: statistic.as_str().unwrap_or_default(),
    }
}

/// Each list of metrics and expressions that are computed together, with the name of its resource.
fn math(template: &Template) -> Vec<(&str, &Vec<Value>)> {
    let alarms = template.of_type("AWS::CloudWatch::Alarm").map(|(name, it)| (name, &it["Metrics"]));
    let policies = template.of_type("AWS::ApplicationAutoScaling::ScalingPolicy").map(|(name, it)| {
        let tracking = &it["TargetTrackingScalingPolicyConfiguration"];
        (name, &tracking["CustomizedMetricSpecification"]["Metrics"])
    });
    alarms.chain(policies).filter_map(|(name, metrics)| Some((name, metrics.as_array()?))).collect()
}
