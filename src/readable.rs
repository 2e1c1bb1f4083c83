//! How times, counts and texts are written for people, on the terminal and on the page.

use std::time::Duration;

use time::{OffsetDateTime, macros::format_description};

/// 1234567 as 1,234,567.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 message`, `2,000 messages`.
pub(crate) fn plural(count: u64, one: &str, several: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { several })
}

/// Date and time to the millisecond.
pub(crate) fn clock(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]");
    at.format(format).unwrap_or_default()
}

/// Date and time to the second.
pub(crate) fn second(at: OffsetDateTime) -> String {
    at.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second]")).unwrap_or_default()
}

/// A length of time in its two largest units: `320 ms`, `4 s`, `12 min`, `3 h 5 min`, `2 days 4 h`.
pub(crate) fn span(time: Duration) -> String {
    let (seconds, millis) = (time.as_secs(), time.subsec_millis());
    let two = |large: u64, unit: &str, small: u64, of: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {of}"),
    };
    match seconds {
        0 => format!("{millis} ms"),
        1..10 if millis >= 100 => format!("{seconds}.{} s", millis / 100),
        1..120 => format!("{seconds} s"),
        120..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        86_400..172_800 => two(1, "day", seconds % 86_400 / 3_600, "h"),
        _ => two(seconds / 86_400, "days", seconds % 86_400 / 3_600, "h"),
    }
}

/// A share in percent, with as many digits as its count carries: `12.3 %`. Nothing of nothing is `-`.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

/// Bytes in the largest unit that fits: `512 B`, `1.4 kB`, `648.0 MB`.
pub(crate) fn weight(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut size = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if size < 1_000.0 {
            break;
        }
        (size, unit) = (size / 1_000.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") }
}

/// At most so many characters, none of them one that acts on the terminal.
pub(crate) fn one_line(text: &str, longest: usize) -> String {
    let flat: String = text.chars().take(longest + 1).map(|c| if acts_on_terminal(c) { ' ' } else { c }).collect();
    match flat.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &flat[..end]),
        None => flat,
    }
}

/// Bytes as they can be shown on any terminal, without losing one: `\n`, `\u{1b}`, `\xff`.
pub(crate) fn visible(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match acts_on_terminal(c) {
                true => text.extend(c.escape_default()),
                false => text.push(c),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// As JSON on one line, in which a terminal finds nothing to obey either.
///
/// # Errors
/// If it cannot be written as JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match acts_on_terminal(c) {
            // In JSON that was written on one line they stand within strings. All of them take four digits.
            true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => text.push(c),
        }
    }
    Ok(text)
}

/// Control characters, and those that hide or turn around what stands next to them.
fn acts_on_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn nothing_acts_on_the_terminal_and_no_byte_is_lost() {
        assert_eq!(visible("ä\n\u{1b}[2J\u{202e}".as_bytes()), "ä\\n\\u{1b}[2J\\u{202e}");
        assert_eq!(visible(b"a\xff\xc3"), "a\\xff\\xc3");
        assert_eq!(one_line("a\u{1b}\u{202e}b", 9), "a  b");
    }

    #[test]
    fn a_weight_is_told_in_the_largest_unit_that_fits() {
        assert_eq!(
            [0, 999, 1_400, 648_000_000, 5_000_000_000_000].map(weight),
            ["0 B", "999 B", "1.4 kB", "648.0 MB", "5.0 TB"]
        );
    }

    #[test]
    fn a_length_of_time_is_told_in_its_two_largest_units() {
        let told =
            [0, 320, 1_500, 59_000, 150_000, 7_260_000, 93_600_000, 180_000_000].map(Duration::from_millis).map(span);
        assert_eq!(told, ["0 ms", "320 ms", "1.5 s", "59 s", "2 min", "2 h 1 min", "1 day 2 h", "2 days 2 h"]);
    }

    #[test]
    fn what_a_terminal_would_obey_becomes_a_blank_and_an_escape_in_json() {
        let hostile = "a\x1b[2Jb\u{9b}31mc\u{202e}d\ne\u{2028}f\u{2066}g\u{7f}";
        assert_eq!(one_line(hostile, 80), "a [2Jb 31mc d e f g ");
        assert_eq!(one_line(hostile, 3), "a […");
        let json = json(&hostile).expect("it is text");
        assert!(json.chars().all(|c| !acts_on_terminal(c)), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).expect("it is JSON"), hostile);
    }
}
