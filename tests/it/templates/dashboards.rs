//! The dashboard is JSON inside a string: CloudFormation does not look at it, and CloudWatch shows what it can.

use serde_json::Value;

use super::{
    Template, Templates,
    metrics::{OF_AWS, OURS},
};

/// CloudWatch's grid has so many columns.
const COLUMNS: u64 = 24;

pub(super) fn every_dashboard_can_be_drawn(templates: &Templates) -> Vec<String> {
    let template = &templates.pipeline;
    let mut wrong = Vec::new();
    for (name, it) in template.of_type("AWS::CloudWatch::Dashboard") {
        let text = it["DashboardBody"]["Fn::Sub"].as_str().unwrap_or_default();
        wrong.extend(unresolved(template, text).map(|unknown| format!("{name}: there is no {unknown}")));
        match serde_json::from_str::<Value>(text) {
            Ok(body) => wrong.extend(check(&body).into_iter().map(|what| format!("{name}: {what}"))),
            Err(e) => wrong.push(format!("{name}: no JSON: {e}")),
        }
    }
    wrong
}

/// What is to be put in and is neither a parameter nor a resource.
fn unresolved<'a>(template: &'a Template, text: &'a str) -> impl Iterator<Item = &'a str> {
    let put_in = text.split("${").skip(1).filter_map(|rest| rest.split('}').next());
    put_in.filter(|it| {
        let name = it.split('.').next().unwrap_or_default();
        !name.starts_with("AWS::") && template.parameter(name).is_null() && template.value["Resources"][name].is_null()
    })
}

fn check(body: &Value) -> Vec<String> {
    let widgets = body["widgets"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut wrong = Vec::new();
    if widgets.len() < 4 {
        wrong.push(format!("{} widgets", widgets.len()));
    }
    for (number, widget) in widgets.iter().enumerate() {
        let title = &widget["properties"]["title"];
        if widgets[..number].iter().any(|other| overlap(other, widget)) {
            wrong.push(format!("{title} lies on another"));
        }
        if place(widget).is_none_or(|[x, _, width, _]| x + width > COLUMNS) {
            wrong.push(format!("{title} is off the grid"));
        }
        let mut ids: Vec<&str> = Vec::new();
        for metric in widget["properties"]["metrics"].as_array().into_iter().flatten() {
            match metric[0]["expression"].as_str() {
                Some(expression) => {
                    let id = metric[0]["id"].as_str().unwrap_or_default();
                    if ids.contains(&id) || !id.starts_with(|first: char| first.is_ascii_lowercase()) {
                        wrong.push(format!("{title}: {id:?} is no id, or not the only one"));
                    }
                    ids.push(id);
                    wrong.extend(check_search(expression).map(|what| format!("{title}: {what}")));
                }
                None => wrong.extend(check_metric(metric, &widget["properties"]["stat"])),
            }
        }
    }
    wrong
}

fn place(widget: &Value) -> Option<[u64; 4]> {
    let [x, y, width, height] = ["x", "y", "width", "height"].map(|key| widget[key].as_u64());
    Some([x?, y?, width?, height?])
}

fn overlap(one: &Value, other: &Value) -> bool {
    let (Some([x, y, width, height]), Some([x2, y2, width2, height2])) = (place(one), place(other)) else {
        return true;
    };
    x < x2 + width2 && x2 < x + width && y < y2 + height2 && y2 < y + height
}

/// `["NAMESPACE", "METRIC", "DIMENSION", "VALUE", …, {options}]`
fn check_metric(metric: &Value, statistic: &Value) -> Option<String> {
    let words: Vec<&str> = metric.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let dimensions: Vec<&str> = words.iter().skip(2).step_by(2).copied().collect();
    let known = OF_AWS.iter().any(|(namespace, name, of, statistics)| {
        words.starts_with(&[namespace, name])
            && dimensions == *of
            && statistics.iter().any(|suited| statistic == suited)
    });
    (!known).then(|| format!("{metric} with {statistic} shows nothing"))
}

/// `SEARCH('{NAMESPACE,Service} MetricName="NAME"', 'STATISTIC', PERIOD)`
fn check_search(expression: &str) -> Option<String> {
    let known = OURS.iter().any(|(name, statistic)| {
        let start = format!("SEARCH('{{${{MetricNamespace}},Service}} MetricName=\"{name}\"', '{statistic}', ");
        let period = expression.strip_prefix(&*start).and_then(|rest| rest.strip_suffix(')'));
        period.is_some_and(|period| period.parse::<u32>().is_ok_and(|period| period % 60 == 0))
    });
    (!known).then(|| format!("{expression} finds nothing"))
}
