//! `/figures`: how many mails arrive, bounce and are complained about.

use std::sync::Arc;

use axum::extract::State;
use maud::{Markup, html};
use serde::Deserialize;
use time::{Duration, OffsetDateTime, Time};

use super::{
    Answer, Asked, Problem, Site, chart, first_moment, given, in_time, last_moment, link,
    page::Page,
    text::{line, typed},
};
use crate::{
    postgres::figures::{self, Dimension, Figure, Figures, MOST_FIGURES},
    readable::{grouped, percent},
};

/// Of fewer mails no rate is shown: one bounce more or less would make another one of it.
pub(super) const FLOOR: u64 = 50;

const DIMENSIONS: [(Dimension, &str, &str); 4] = [
    (Dimension::Day, "day", "Day"),
    (Dimension::Template, "template", "Template"),
    (Dimension::Campaign, "campaign", "Campaign"),
    (Dimension::Domain, "domain", "Recipient domain"),
];

/// Up to now: as it is written, its name, days.
const PERIODS: [(&str, &str, i64); 4] =
    [("1d", "1 day", 1), ("7d", "7 days", 7), ("30d", "30 days", 30), ("90d", "90 days", 90)];

/// What the form sends.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Form {
    by: String,
    from: String,
    to: String,
    template: String,
    campaign: String,
}

pub(super) async fn page(State(site): State<Arc<Site>>, Asked(form): Asked<Form>) -> Answer {
    let question = form.read()?;
    let answer = in_time(figures::by(&site.postgres, &question)).await;
    let found = match answer {
        Ok(found) => html! { (table(question.dimension, &found)) },
        Err(Problem::TooLong) => form.too_long(question.to - question.from),
        Err(other) => return Err(other),
    };
    let (_, _, name) = dimension(question.dimension);
    let body = html! {
        h1 { "Figures by " (name.to_lowercase()) }
        (form.tabs(question.dimension))
        (form.fields())
        (found)
        (notes(question.dimension))
    };
    Ok(Page::new("/figures", "Figures", body))
}

fn dimension(wanted: Dimension) -> (Dimension, &'static str, &'static str) {
    DIMENSIONS.into_iter().find(|(dimension, ..)| *dimension == wanted).unwrap_or(DIMENSIONS[0])
}

impl Form {
    /// The last 30 days, today included, unless it says otherwise.
    fn read(&self) -> Result<figures::Asked, Problem> {
        let dimension = DIMENSIONS.iter().find(|(_, name, _)| *name == self.by).map(|(dimension, ..)| *dimension);
        if dimension.is_none() && !self.by.is_empty() {
            return Err(Problem::Unreadable(format!("by={} is none of day, template, campaign, domain.", self.by)));
        }
        let to = last_moment(&self.to)?.unwrap_or_else(OffsetDateTime::now_utc);
        let from = match first_moment(&self.from)? {
            // Whole days: half of one would look like a bad one.
            Some(from) if !self.from.contains('T') => from.replace_time(Time::MIDNIGHT),
            Some(from) => from,
            None => (to - Duration::days(30)).replace_time(Time::MIDNIGHT),
        };
        if from >= to {
            return Err(Problem::Unreadable("The time ends before it begins.".to_owned()));
        }
        let (template, campaign) = (given(&self.template), given(&self.campaign));
        Ok(figures::Asked { dimension: dimension.unwrap_or_default(), from, to, template, campaign })
    }

    fn link(&self, by: &str, from: &str, to: &str) -> String {
        let rest = [("by", by), ("from", from), ("to", to), ("template", &self.template), ("campaign", &self.campaign)];
        link("/figures", rest)
    }

    fn tabs(&self, current: Dimension) -> Markup {
        html! {
            nav.tabs aria-label="Counted by" {
                @for (dimension, by, name) in DIMENSIONS {
                    a href=(self.link(by, &self.from, &self.to))
                        aria-current=[(dimension == current).then_some("true")] { (name) }
                }
            }
        }
    }

    fn fields(&self) -> Markup {
        html! {
            form.ask method="get" action="/figures" {
                input type="hidden" name="by" value=(typed(&self.by));
                label { "From" input name="from" value=(typed(&self.from)) placeholder="30d" size="12"; }
                label { "To" input name="to" value=(typed(&self.to)) placeholder="now" size="12"; }
                label { "Template" input name="template" value=(typed(&self.template)) placeholder="any" size="14"; }
                label { "Campaign" input name="campaign" value=(typed(&self.campaign)) placeholder="any" size="14"; }
                button { "Count" }
            }
            p.small.faint {
                "Times are written like " code { "2026-11-21" } " or " code { "7d" }
                    " for seven days ago, in UTC. The last "
                @for (n, (from, name, _)) in PERIODS.into_iter().enumerate() {
                    @if n > 0 { " · " }
                    a href=(self.link(&self.by, from, "")) { (name) }
                }
            }
        }
    }

    /// Offers what is shorter than the time that was asked for.
    fn too_long(&self, asked: Duration) -> Markup {
        let shorter = PERIODS.into_iter().filter(|(.., days)| Duration::days(*days) * 2 < asked);
        html! {
            div.say.warn {
                p { "There are more mails in this time than can be counted within " (super::PATIENCE.as_secs())
                    " seconds; the database was told to stop." }
                p { "A shorter time: "
                    @for (from, name, _) in shorter { a href=(self.link(&self.by, from, "")) { (name) } " · " }
                    "or one day, with both dates the same."
                }
            }
        }
    }
}

fn table(dimension: Dimension, found: &Figures) -> Markup {
    let (_, _, name) = self::dimension(dimension);
    if found.figures.is_empty() {
        return html! { div.say { p { "No mails in this time. Rows of " code { "email_logs" }
        " are what is counted." } } };
    }
    let opens = dimension != Dimension::Domain;
    html! {
        @if found.cut { p.warn { "Only the first " (MOST_FIGURES) " lines." } }
        table.rows {
            thead { tr {
                th { (name) } th.number { "Written" } th.number { "Sent" } th.number { "Delivered" }
                    th.number { "Bounced" }
                th.number { "Complained" }
                @if opens { th.number { "Opened, est." } th.number { "Clicked, est." } }
            } }
            tbody { @for figure in &found.figures { (row(dimension, figure, key(dimension, figure), opens)) } }
            @if let Some(total) = found.total().filter(|_| found.figures.len() > 1) {
                tfoot { (row(dimension, &total, html! { "All" }, opens)) }
            }
        }
    }
}

fn key(dimension: Dimension, figure: &Figure) -> Markup {
    match (&figure.key, dimension) {
        (None, _) => html! { span.faint { "(none)" } },
        (Some(key), Dimension::Template) => {
            html! { a href=(link("/mail", [("template", key.as_str())])) { (line(key)) } }
        }
        (Some(key), Dimension::Campaign) => {
            html! { a href=(link("/mail", [("campaign", key.as_str())])) { (line(key)) } }
        }
        (Some(key), Dimension::Day) => {
            html! { a href=(link("/mail", [("from", key.as_str()), ("to", key)])) { (key) } }
        }
        (Some(key), Dimension::Domain) => html! { (line(key)) },
    }
}

fn row(dimension: Dimension, figure: &Figure, key: Markup, opens: bool) -> Markup {
    let (_, _, name) = self::dimension(dimension);
    let Figure { sent, delivered, .. } = *figure;
    html! {
        tr {
            td data-is=(name) { span { (key) } }
            td.number data-is="Written" { span { (grouped(figure.written)) } }
            td.number data-is="Sent" { span { (grouped(sent)) } }
            td.number data-is="Delivered" {
                span { (counted(delivered, sent, |_| "")) @if sent >= FLOOR { (chart::share(delivered, sent)) } }
            }
            td.number data-is="Bounced" { span { (counted(figure.bounced, sent, |rate| judged(rate, 0.05, 0.1))) } }
            td.number data-is="Complained" {
                span { (counted(figure.complained, delivered, |rate| judged(rate, 0.001, 0.005))) }
            }
            @if opens {
                td.number data-is="Opened, est." { span { (counted(figure.opened.unwrap_or(0), delivered, |_| "")) } }
                td.number data-is="Clicked, est." { span { (counted(figure.clicked.unwrap_or(0), delivered, |_| "")) } }
            }
        }
    }
}

/// The count, and its share if there are enough to speak of one.
fn counted(part: u64, whole: u64, judge: impl Fn(f64) -> &'static str) -> Markup {
    html! {
        (grouped(part)) " "
        @if whole < FLOOR {
            span.faint.small { "too few" }
        } @else {
            span class=(judge(part as f64 / whole as f64)) { (rate(part, whole)) }
        }
    }
}

/// Complaints are rare: where a tenth of a percent decides, hundredths are told.
fn rate(part: u64, whole: u64) -> String {
    let rate = part as f64 * 100.0 / whole as f64;
    if part > 0 && rate < 1.0 { format!("{rate:.2} %") } else { percent(part, whole) }
}

/// From where on SES looks at an account, and from where on it stops its sending.
fn judged(rate: f64, looked_at: f64, stopped: f64) -> &'static str {
    match rate {
        _ if rate >= stopped => "bad",
        _ if rate >= looked_at => "warn",
        _ => "",
    }
}

fn notes(dimension: Dimension) -> Markup {
    html! {
        h2 { "What is counted" }
        dl.small {
            @match dimension {
                Dimension::Domain => {
                    dt { "Each line" }
                    dd { "recipients of mails, each recipient of a mail once, under the domain of the address" }
                }
                _ => { dt { "Each line" }
                    dd { "mails, each once, however many recipients it has and however often SES reported it" } }
            }
            dt { "Written" } dd { "log rows of your application, by the time of their uuid (version 7), in UTC" }
            dt { "Sent" } dd { "SES took it: an event other than a refusal is known" }
            dt { "Delivered" } dd { "of those sent: a recipient's server took it" }
            dt { "Bounced" } dd { "of those sent: it came back for good. " span.warn { "5 %" }
                " and SES looks at the account, " span.bad { "10 %" } " and it may stop its sending" }
            dt { "Complained" } dd { "of those delivered: a recipient called it spam. " span.warn { "0.1 %" }
                " and SES looks, " span.bad { "0.5 %" } " and it may stop" }
            @if dimension != Dimension::Domain {
                dt { "Opened, clicked" }
                dd { "of those delivered; estimates: mail programs load pictures and links unasked, or never" }
            }
            dt { "Too few" }
            dd { "fewer than " (FLOOR) ": no rate is shown, since one mail more or less would make another one of it" }
        }
    }
}
