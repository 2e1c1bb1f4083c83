//! Small pictures of numbers, drawn as SVG.

use maud::{Markup, html};

/// A bar for each value, oldest first, with room for as many values; the highest fills the height. What it shows is told in words
/// as well.
pub(super) fn bars(values: &[u64], words: &str) -> Markup {
    let highest = values.iter().copied().max().unwrap_or(0).max(1);
    // Something that is there can be seen, however small it is.
    let height = |value: u64| if value == 0 { 0.0 } else { (value as f64 * 100.0 / highest as f64).max(3.0) };
    html! {
        svg.chart viewBox=(format!("0 0 {} 100", values.len().max(1) * 10)) preserveAspectRatio="none" role="img"
            aria-label=(words) {
            line x1="0" y1="99.5" x2=(values.len().max(1) * 10) y2="99.5" {}
            @for (n, value) in values.iter().enumerate() {
                @if *value > 0 {
                    rect x=(n * 10 + 1) y=(format!("{:.1}", 100.0 - height(*value))) width="8"
                        height=(format!("{:.1}", height(*value))) {}
                }
            }
        }
    }
}

/// A part of a whole, as a bar in a line of text.
pub(super) fn share(part: u64, whole: u64) -> Markup {
    let percent = if whole == 0 { 0.0 } else { (part as f64 * 100.0 / whole as f64).min(100.0) };
    html! {
        svg.share viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
            rect.all x="0" y="0" width="100" height="10" {}
            rect.part x="0" y="0" width=(format!("{percent:.1}")) height="10" {}
        }
    }
}
