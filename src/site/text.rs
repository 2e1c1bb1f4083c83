//! How words that came from outside are shown: as text, with nothing in it that hides, reorders or reaches the reader.

use std::net::IpAddr;

use maud::{Markup, html};

use crate::readable::grouped;

/// What the reader may see.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Eyes {
    /// Addresses are shortened; subjects, links and bodies are not shown.
    pub(super) masked: bool,
}

/// Characters shown of a line.
const LINE: usize = 300;
/// Characters shown of a body, and of what a server said.
const BODY: usize = 20_000;

const HIDDEN: &str = "(masked)";

impl Eyes {
    pub(super) fn address(self, address: &str) -> Markup {
        if self.masked { line(&masked_address(address)) } else { line(address) }
    }

    /// A subject, a link, an IP address: all of it is somebody's.
    pub(super) fn private(self, text: &str) -> Markup {
        if self.masked && !text.is_empty() {
            html! { span.faint { (HIDDEN) } }
        } else {
            line(text)
        }
    }

    /// Words that may speak of addresses and links, like what a server answered.
    pub(super) fn words(self, text: &str) -> Markup {
        if self.masked { line(&masked_words(text)) } else { line(text) }
    }

    /// A piece of a body; bytes that are no UTF-8 are told. Masked, there is nothing to see.
    pub(super) fn body(self, bytes: &[u8]) -> Markup {
        html! {
            @for chunk in bytes.utf8_chunks().filter(|_| !self.masked) {
                (visible(chunk.valid(), BODY, |c| matches!(c, '\n' | '\t')))
                @for byte in chunk.invalid() { span.odd { "byte " (format!("{byte:02X}")) } }
            }
        }
    }
}

/// Text of one line; a long one is cut.
pub(super) fn line(text: &str) -> Markup {
    visible(text, LINE, |_| false)
}

/// What somebody typed, to be changed in its field, without what would not be seen there.
pub(super) fn typed(text: &str) -> String {
    text.chars().filter(|c| !is_odd(*c)).collect()
}

/// Text whose invisible characters can be seen. It is a world of its own for the direction of writing.
fn visible(text: &str, most: usize, keep: impl Fn(char) -> bool) -> Markup {
    let cut = text.char_indices().nth(most).map(|(end, _)| &text[..end]);
    html! {
        bdi {
            @for piece in cut.unwrap_or(text).split_inclusive(|c| is_odd(c) && !keep(c)) {
                @match piece.char_indices().next_back().filter(|&(_, c)| is_odd(c) && !keep(c)) {
                    Some((at, odd)) => { (piece[..at]) (sign(odd)) }
                    None => (piece)
                }
            }
        }
        @if cut.is_some() { span.faint { "… (" (grouped(text.chars().count() as u64)) " characters)" } }
    }
}

/// What stands for a character that would not be seen.
fn sign(odd: char) -> Markup {
    match odd {
        '\n' => html! { span.odd title="a new line" { "↵" } },
        odd => html! { span.odd { "U+" (format!("{:04X}", u32::from(odd))) } },
    }
}

/// Control characters, those that change the direction of writing, and those without a width or a shape. The joiners
/// U+200C and U+200D stay: scripts and emoji need them.
fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// `ada@example.net` as `a…@e….net`.
fn masked_address(address: &str) -> String {
    let first = |text: &str| text.chars().next().map(String::from).unwrap_or_default();
    match address.rsplit_once('@') {
        Some((local, domain)) => {
            let end = domain.rsplit_once('.').map_or("", |(_, end)| end);
            let (local, domain) = (first(local.trim_start_matches(['<', '"', ' '])), first(domain));
            format!("{local}…@{domain}….{}", end.trim_end_matches(['>', ' ']))
        }
        None if address.is_empty() => String::new(),
        None => HIDDEN.to_owned(),
    }
}

/// Everything that looks like an address or a link is masked, the words around it stay.
fn masked_words(text: &str) -> String {
    let is_edge =
        |c: char| c.is_whitespace() || matches!(c, '<' | '>' | '(' | ')' | '"' | ',' | ';' | '[' | ']' | '\'');
    let mask = |word: &str| {
        let (core, dots) = word.split_at(word.trim_end_matches(['.', ':', '!', '?']).len());
        match core {
            _ if core.contains("://") || core.starts_with("www.") || core.parse::<IpAddr>().is_ok() => {
                format!("{HIDDEN}{dots}")
            }
            _ if core.contains('@') => format!("{}{dots}", masked_address(core)),
            _ => word.to_owned(),
        }
    };
    let word = |part: &str| match part.char_indices().next_back() {
        Some((at, edge)) if is_edge(edge) => format!("{}{edge}", mask(&part[..at])),
        _ => mask(part),
    };
    text.split_inclusive(is_edge).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_markup_and_nothing_is_invisible() {
        let shown = line("<img src=x onerror=alert(1)>\u{202e}gnp\u{0}\n\"'&").into_string();
        assert_eq!(
            shown,
            "<bdi>&lt;img src=x onerror=alert(1)&gt;<span class=\"odd\">U+202E</span>gnp<span class=\"odd\">U+0000</span>\
             <span class=\"odd\" title=\"a new line\">↵</span>&quot;'&amp;</bdi>"
        );
    }

    #[test]
    fn long_text_is_cut_and_says_so() {
        let shown = line(&"ä".repeat(10_240)).into_string();
        assert!(shown.contains("… (10,240 characters)") && shown.len() < 1_000, "{shown}");
    }

    #[test]
    fn a_masked_address_tells_its_first_letters_and_its_country() {
        let masked = ["ada@example.net", "Ada <ada@mail.example.co.uk>", "nobody", ""].map(masked_address);
        assert_eq!(masked, ["a…@e….net", "A…@m….uk", "(masked)", ""]);
    }

    #[test]
    fn what_a_server_says_is_masked_where_it_names_somebody() {
        let said = "550 5.1.1 <ada@example.net>: user unknown, see https://example.net/?who=ada from 192.0.2.1.";
        assert_eq!(masked_words(said), "550 5.1.1 <a…@e….net>: user unknown, see (masked) from (masked).");
    }
}
