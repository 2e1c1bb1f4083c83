//! What a command shows to people: lines, one line that is redrawn, numbers and lists in 80 columns.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::local::binaries::Progress;
pub(super) use crate::readable::{clock, grouped, one_line};

/// Prints a line to standard output. A reader who has gone away, like `head`, is no reason to stop.
macro_rules! say {
    () => { say!("") };
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}
pub(super) use say;

/// Prints to standard output; with JSON wanted there, to standard error.
pub(super) struct Screen {
    pub(super) json: bool,
    /// Redraws its progress line, and uses bold and colour.
    pub(super) terminal: bool,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        let terminal = if json { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        Self { json, terminal }
    }

    pub(super) fn say(&self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    /// A line that takes the place of the one before, unless that was the last word.
    pub(super) fn redraw(&self, line: &str, finished: bool) {
        match self.terminal && !finished {
            true => self.write(&format!("\r{line:<79}")),
            false if self.terminal => self.say(&format!("\r{line:<79}")),
            false => self.say(line),
        }
    }

    /// Shows how the download of PostgreSQL goes, if there is one.
    pub(super) fn download(&self) -> Progress {
        let (terminal, shown) = (self.terminal, AtomicU64::new(u64::MAX));
        Arc::new(move |bytes, total| {
            let percent = bytes * 100 / total.max(1);
            // Once per percent on a terminal, once per quarter elsewhere.
            let step = if terminal { percent } else { percent / 25 };
            if shown.swap(step, Ordering::Relaxed) != step {
                let end = if terminal && percent < 100 { "\r" } else { "\n" };
                eprint!(
                    "  database   no PostgreSQL here: downloading one, {percent} % of {} MB{end}",
                    total / 1_000_000
                );
            }
        })
    }

    /// Makes room for the next look: on a terminal in the place of the one before.
    pub(super) fn clear(&self) {
        self.write(if self.terminal { "\x1b[H\x1b[2J" } else { "\n" });
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.painted("1", text)
    }

    pub(super) fn dim(&self, text: &str) -> String {
        self.painted("2", text)
    }

    pub(super) fn green(&self, text: &str) -> String {
        self.painted("1;32", text)
    }

    pub(super) fn red(&self, text: &str) -> String {
        self.painted("1;31", text)
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.terminal { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A reader who has gone away is no reason to stop.
    fn write(&self, text: &str) {
        let _ = match self.json {
            true => io::stderr().write_all(text.as_bytes()),
            false => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
        };
    }
}

/// `  mails        12 delivered, 3 bounced`, wrapped at 80 columns.
pub(super) fn listed(title: &str, pairs: &[(String, i64)]) -> String {
    let mut text = format!("  {title:<12}");
    let mut column = text.len();
    for (n, (name, count)) in pairs.iter().enumerate() {
        let end = if n + 1 < pairs.len() { "," } else { "" };
        let word = format!("{} {name}{end}", grouped(*count as u64));
        if column + 1 + word.len() > 80 {
            text.push_str("\n              ");
            column = 14;
        }
        text.push(' ');
        text.push_str(&word);
        column += 1 + word.len();
    }
    if pairs.is_empty() { text + "  nothing" } else { text }
}

/// A title and a text, wrapped at 80 columns; further lines begin below the text. A word that fits no line is cut.
pub(super) fn wrapped(title: &str, text: &str) -> String {
    let (mut lines, indent) = (title.to_owned(), title.chars().count());
    let mut column = indent;
    let words = text.split_whitespace().flat_map(|word| pieces(word, 80 - indent.min(60)));
    for (n, word) in words.enumerate() {
        let length = word.chars().count();
        if n > 0 && column + 1 + length > 80 {
            lines.push_str(&format!("\n{:indent$}", ""));
            column = indent;
        } else if n > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

fn pieces(word: &str, longest: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(word);
    std::iter::from_fn(move || {
        let word = rest.take()?;
        let (piece, more) = word.char_indices().nth(longest).map_or((word, None), |(at, _)| {
            let (piece, more) = word.split_at(at);
            (piece, Some(more))
        });
        rest = more;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_fits_80_columns_and_loses_no_word() {
        let text = "one two three ".repeat(30);
        let shown = wrapped("    title   ", &text);
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(
            shown.lines().skip(1).all(|line| line.starts_with("            ") && !line.starts_with("             "))
        );
        let words: Vec<&str> = shown.split_whitespace().skip(1).collect();
        assert_eq!(words, text.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn a_word_that_fits_no_line_is_cut() {
        let word = "é".repeat(200);
        let shown = wrapped("  - ", &format!("a {word} b"));
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert_eq!(shown.matches('é').count(), 200);
    }
}
