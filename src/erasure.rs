//! Finds a person's address in whatever we store, and takes it out.
//!
//! Pure: texts in, texts out.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde_json::Value;

use crate::event::Address;

/// A stretch of Base64 that is shorter can hold no address worth looking for.
const SHORTEST_BASE64: usize = 16;
/// Base64 within Base64 is looked into so often.
const MOST_NESTED: usize = 4;
/// No id of a mail is longer.
const LONGEST_ID: usize = 256;

/// Whom to take out, and what to put in her place.
pub struct Person {
    address: String,
    name: String,
}

impl Person {
    /// Somebody with this address, in any spelling. `None` if it is none.
    pub fn parse(address: &str, name: &str) -> Option<Self> {
        let address = Address::parse(address).as_str().to_lowercase();
        let (local, domain) = address.rsplit_once('@')?;
        (!local.is_empty() && !domain.is_empty()).then(|| Self { name: name.to_owned(), address: address.clone() })
    }

    /// The address in lower case.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether this is her address, however it is spelled: `rfc822; Ana <ANA@Example.org>`.
    pub fn is(&self, address: &str) -> bool {
        Address::parse(address).as_str().to_lowercase() == self.address
    }

    /// Two words that every text with the address holds, however it is encoded: for a database to look for.
    pub fn words(&self) -> [&str; 2] {
        let (local, domain) = self.address.rsplit_once('@').unwrap_or((&self.address, ""));
        [local, domain].map(|part| {
            let words = part.split(|c: char| !c.is_ascii_alphanumeric());
            words.max_by_key(|word| word.len()).unwrap_or_default()
        })
    }

    /// The text without her; `None` if she is not in it. A display name before `<address>` goes as well.
    pub fn out_of_text(&self, text: &str) -> Option<String> {
        self.out_of_bytes(text.as_bytes(), true).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The same for what a server says, where words before `<address>` are no name.
    pub fn out_of_answer(&self, text: &str) -> Option<String> {
        self.out_of_bytes(text.as_bytes(), false).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The same for bytes that need not be text. Base64 in which she is found is replaced as a whole.
    pub fn out_of_body(&self, body: &[u8]) -> Option<Vec<u8>> {
        let plain = self.out_of_bytes(body, true);
        self.out_of_base64(plain.as_deref().unwrap_or(body)).or(plain)
    }

    /// The JSON without her, in its keys and its texts; `None` if she is not in it.
    pub fn out_of_json(&self, json: &str) -> Option<String> {
        let mut value: Value = serde_json::from_str(json).ok()?;
        self.out_of_value(&mut value).then(|| value.to_string())
    }

    fn out_of_value(&self, value: &mut Value) -> bool {
        match value {
            Value::String(text) => match self.out_of_text(text) {
                Some(without) => {
                    *text = without;
                    true
                }
                None => false,
            },
            Value::Array(items) => items.iter_mut().fold(false, |found, item| self.out_of_value(item) | found),
            Value::Object(map) => {
                let mut found = map.values_mut().fold(false, |found, item| self.out_of_value(item) | found);
                for key in map.keys().cloned().collect::<Vec<_>>() {
                    if let Some(without) = self.out_of_text(&key)
                        && let Some(item) = map.remove(&key)
                    {
                        map.insert(without, item);
                        found = true;
                    }
                }
                found
            }
            _ => false,
        }
    }

    fn out_of_bytes(&self, bytes: &[u8], with_names: bool) -> Option<Vec<u8>> {
        let (mut without, mut from, mut at) = (Vec::new(), 0, 0);
        while at < bytes.len() {
            let Some(end) = self.ends_at(bytes, at) else {
                at += 1;
                continue;
            };
            let (start, end) = if with_names { with_display_name(bytes, from, at, end) } else { (at, end) };
            without.extend_from_slice(&bytes[from..start]);
            without.extend_from_slice(self.name.as_bytes());
            (from, at) = (end, end);
        }
        without.extend_from_slice(&bytes[from..]);
        (from > 0).then_some(without)
    }

    /// Where her address ends, if it begins here.
    fn ends_at(&self, bytes: &[u8], start: usize) -> Option<usize> {
        let mut at = start;
        for expected in self.address.bytes() {
            let (byte, length) = decoded(&bytes[at..])?;
            if byte.to_ascii_lowercase() != expected {
                return None;
            }
            at += length;
        }
        (is_start(&bytes[..start]) && is_end(&bytes[at..])).then_some(at)
    }

    fn out_of_base64(&self, body: &[u8]) -> Option<Vec<u8>> {
        let (mut without, mut from, mut at) = (Vec::new(), 0, 0);
        while at < body.len() {
            let length = base64_length(&body[at..]);
            let stretch = &body[at..at + length];
            if length >= SHORTEST_BASE64 && self.is_in_base64(stretch) {
                without.extend_from_slice(&body[from..at]);
                without.extend_from_slice(self.name.as_bytes());
                from = at + length;
            }
            at += length.max(1);
        }
        without.extend_from_slice(&body[from..]);
        (from > 0).then_some(without)
    }

    fn is_in_base64(&self, stretch: &[u8]) -> bool {
        from_base64(stretch).is_some_and(|body| self.out_of_body(&body).is_some())
    }
}

/// What a stretch of Base64 holds, in either alphabet, also with line breaks and cut at its end.
fn from_base64(stretch: &[u8]) -> Option<Vec<u8>> {
    let clean = |b: &u8| match b {
        b'-' => Some(b'+'),
        b'_' => Some(b'/'),
        b if b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/') => Some(*b),
        _ => None,
    };
    let mut text: Vec<u8> = stretch.iter().filter_map(clean).collect();
    text.truncate(text.len() - usize::from(text.len() % 4 == 1));
    // The last bits of a stretch that was cut may say nothing.
    let whole = text.len() / 4 * 4;
    STANDARD_NO_PAD.decode(&text).or_else(|_| STANDARD_NO_PAD.decode(&text[..whole])).ok()
}

/// What a body names that may be an address or a mail's id.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// In lower case.
    pub(crate) addresses: BTreeSet<String>,
    /// Everything else that could be the id of a mail, as it is written.
    pub(crate) words: BTreeSet<String>,
}

impl Named {
    /// In every form in which [`Person::out_of_body`] would find an address.
    pub(crate) fn in_body(body: &[u8]) -> Self {
        let mut named = Self::default();
        named.look(body, MOST_NESTED);
        named
    }

    fn look(&mut self, body: &[u8], deep: usize) {
        let plain = plain(body);
        for word in plain.split(|byte| !is_of_address(*byte) && *byte != b'@') {
            if let Some(at) = word.iter().position(|byte| *byte == b'@') {
                // Where there are two, as in a path of old mail routes, the last one tells the domain.
                let last = word.iter().rposition(|byte| *byte == b'@').unwrap_or(at);
                let end = word[last + 1..]
                    .iter()
                    .position(|byte| !is_of_domain(*byte))
                    .map_or(word.len(), |end| last + 1 + end);
                let address = String::from_utf8_lossy(&word[..end]);
                self.addresses.insert(address.trim_end_matches(['.', '-']).to_lowercase());
            } else if (1..=LONGEST_ID).contains(&word.len()) {
                self.words.insert(String::from_utf8_lossy(word).into_owned());
            }
        }
        let mut at = 0;
        while deep > 0 && at < body.len() {
            let length = base64_length(&body[at..]);
            if length >= SHORTEST_BASE64
                && let Some(inner) = from_base64(&body[at..at + length])
            {
                self.look(&inner, deep - 1);
            }
            at += length.max(1);
        }
    }
}

/// What is encoded as it reads, and a blank for each escaped line break.
fn plain(mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    while let Some((byte, length)) = decoded(bytes) {
        let is_break = bytes[0] == b'\\' && matches!(bytes.get(1), Some(b'n' | b'r' | b't'));
        plain.push(if is_break { b' ' } else { byte });
        bytes = &bytes[if is_break { 2 } else { length }..];
    }
    plain
}

/// How much of this is one stretch of Base64: its alphabets, and line breaks, also as `\n`.
fn base64_length(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let is_break = byte == &b'\\' && matches!(bytes.get(at + 1), Some(b'n' | b'r'));
        match byte {
            _ if is_break => at += 2,
            b'\r' | b'\n' if at > 0 => at += 1,
            b'+' | b'/' | b'-' | b'_' | b'=' => at += 1,
            b if b.is_ascii_alphanumeric() => at += 1,
            _ => break,
        }
    }
    at
}

/// The next character and how long it is written: as itself, `%40`, `%2540`, `\u0040`, `&#64;` or `&#x40;`.
fn decoded(bytes: &[u8]) -> Option<(u8, usize)> {
    let hex = |from: usize, to: usize| {
        let digits = std::str::from_utf8(bytes.get(from..to)?).ok()?;
        u8::from_str_radix(digits, 16).ok()
    };
    let first = *bytes.first()?;
    let encoded = match first {
        b'%' if bytes.starts_with(b"%25") => hex(3, 5).map(|byte| (byte, 5)),
        b'%' => hex(1, 3).map(|byte| (byte, 3)),
        b'\\' if bytes.starts_with(b"\\u00") => hex(4, 6).map(|byte| (byte, 6)),
        b'&' if bytes.starts_with(b"&#") => entity(bytes),
        _ => None,
    };
    Some(encoded.unwrap_or((first, 1)))
}

fn entity(bytes: &[u8]) -> Option<(u8, usize)> {
    let end = bytes.iter().take(8).position(|byte| *byte == b';')?;
    let digits = std::str::from_utf8(&bytes[2..end]).ok()?;
    let byte = match digits.strip_prefix(['x', 'X']) {
        Some(hex) => u8::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    byte.ok().map(|byte| (byte, end + 1))
}

/// Nothing before it belongs to the address: `diana@…` is not `ana@…`.
fn is_start(before: &[u8]) -> bool {
    for length in [5, 3] {
        // As in %3Cana@…: what is encoded is one character.
        if let Some(tail) = before.len().checked_sub(length).map(|at| &before[at..])
            && tail[0] == b'%'
            && let Some((byte, all)) = decoded(tail)
            && all == length
        {
            return !is_of_address(byte);
        }
    }
    if before.ends_with(b"\\n") || before.ends_with(b"\\r") || before.ends_with(b"\\t") {
        return true;
    }
    match before {
        [.., quoted, b'\''] => !is_of_address(*quoted),
        [.., last] => !is_of_address(*last),
        [] => true,
    }
}

/// Nothing after it belongs to the address: `…@example.org.uk` is not `…@example.org`.
fn is_end(after: &[u8]) -> bool {
    match after {
        [b'.' | b'-', next, ..] => !next.is_ascii_alphanumeric(),
        [next, ..] => !next.is_ascii_alphanumeric(),
        [] => true,
    }
}

fn is_of_domain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || matches!(byte, b'.' | b'-' | b'_')
}

fn is_of_address(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b".!#$*+-/^_`{|}~".contains(&byte)
}

/// `Ana Example <ana@…>` as a whole: back to what separates addresses, but not into what is done already.
fn with_display_name(bytes: &[u8], from: usize, start: usize, end: usize) -> (usize, usize) {
    if start <= from || bytes[start - 1] != b'<' || bytes.get(end) != Some(&b'>') {
        return (start, end);
    }
    let mut first = start - 1;
    // A name in quotes may hold what separates addresses elsewhere.
    let mut at = first;
    while at > from && bytes[at - 1] == b' ' {
        at -= 1;
    }
    let quoted = |quote: &[u8]| {
        bytes[from..at].ends_with(quote).then(|| {
            let inner = &bytes[from..at - quote.len()];
            inner.windows(quote.len()).rposition(|window| window == quote).map(|found| from + found)
        })
    };
    if let Some(open) = quoted(b"\\\"").or_else(|| quoted(b"\"")).flatten() {
        return (open, end + 1);
    }
    while first > from && !b",;:\"'\\[]{}<>\r\n".contains(&bytes[first - 1]) {
        first -= 1;
    }
    while first < start && bytes[first] == b' ' {
        first += 1;
    }
    // 550 5.1.1 <ana@…>: that is an answer.
    if bytes[first].is_ascii_digit() { (start, end) } else { (first, end + 1) }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn ana() -> Person {
        Person::parse(" \"Ana\" <Ana.Lee+x@Example.ORG> ", "erased:1").expect("it is an address")
    }

    #[track_caller]
    fn check(text: &str, without: &str) {
        assert_eq!(ana().out_of_text(text).as_deref(), Some(without), "{text}");
    }

    #[test]
    fn every_form_of_the_address_is_found() {
        check("ana.lee+x@example.org", "erased:1");
        check("to ANA.Lee+x@EXAMPLE.org.", "to erased:1.");
        check("<ana.lee+x@example.org>", "erased:1");
        check("rfc822;ana.lee+x@example.org", "rfc822;erased:1");
        check("https://x.org/?m=ana.lee%2Bx%40example.org&y=1", "https://x.org/?m=erased:1&y=1");
        check("https://x.org/?u=ana.lee%252Bx%2540example.org", "https://x.org/?u=erased:1");
        check("%3Cana.lee%2bx%40example.org%3E", "%3Cerased:1%3E");
        check("mailto:ana.lee&#43;x&#x40;example.org", "mailto:erased:1");
        check(r#"{"to":"ana.lee\u002bx\u0040example.org"}"#, r#"{"to":"erased:1"}"#);
        check("'ana.lee+x@example.org'", "'erased:1'");
        check("a ana.lee+x@example.org b ana.lee+x@example.org", "a erased:1 b erased:1");
    }

    #[test]
    fn her_display_name_goes_and_others_stay() {
        check("Ana Lee <ana.lee+x@example.org>", "erased:1");
        check("Bob <b@x.org>, Ana Lee <ana.lee+x@example.org>, c@x.org", "Bob <b@x.org>, erased:1, c@x.org");
        check(r#"b@x.org, "Lee, Ana" <ana.lee+x@example.org>"#, "b@x.org, erased:1");
        check("smtp; 550 5.1.1 <ana.lee+x@example.org>: no such user", "smtp; 550 5.1.1 <erased:1>: no such user");
        let answer = ana().out_of_answer("no mailbox <ana.lee+x@example.org> here");
        assert_eq!(answer.as_deref(), Some("no mailbox <erased:1> here"));
        check("To: Ana <ana.lee+x@example.org>\r\nFrom: s@x.org", "To: erased:1\r\nFrom: s@x.org");
        check(r#"{"to":["\"Lee, Ana\" <ana.lee+x@example.org>"]}"#, r#"{"to":["erased:1"]}"#);
    }

    #[test]
    fn nobody_else_is_taken_for_her() {
        for other in [
            "diana.lee+x@example.org",
            "ana.lee+x@example.org.uk",
            "ana.lee+x@example.organic",
            "ana.lee@example.org",
            "o'ana.lee+x@example.org",
            "x.ana.lee+x@example.org",
            "%61ana.lee+x@example.org",
            "",
        ] {
            assert_eq!(ana().out_of_text(other), None, "{other}");
        }
        assert!(ana().is("rfc822; ANA.lee+X@example.org") && !ana().is("ana.lee@example.org"));
        assert!(Person::parse("nobody", "erased:1").is_none() && Person::parse("@x.org", "erased:1").is_none());
    }

    #[test]
    fn json_stays_json_and_base64_goes_as_a_whole() {
        let json = r#"{"a":[1,{"ana.lee+x@example.org":"Ana <ana.lee+x@example.org>"}]}"#;
        assert_eq!(ana().out_of_json(json).as_deref(), Some(r#"{"a":[1,{"erased:1":"erased:1"}]}"#));
        assert_eq!(ana().out_of_json(r#"{"a":"b@x.org"}"#), None);
        for before in ["", "x", "xy"] {
            let inner = STANDARD.encode(format!("{before} to ana.lee+x@example.org: hello, and more of it"));
            let body = format!("{{\"data\":\"{inner}\"}}");
            let without = ana().out_of_body(body.as_bytes()).expect("she is in it");
            assert_eq!(String::from_utf8_lossy(&without), "{\"data\":\"erased:1\"}");
        }
        assert_eq!(ana().out_of_body(&[0xff, 0, b'a']), None);
        assert_eq!(ana().out_of_body(b"\xffana.lee+x@example.org\xfe"), None, "it goes on before it");
        assert_eq!(ana().out_of_body(b"\0ana.lee+x@example.org\xfe").as_deref(), Some(&b"\0erased:1\xfe"[..]));
    }

    #[test]
    fn what_a_body_names_is_found_in_every_form() {
        let texts = [
            r#"{"messageId":"0100-a","to":"Ana <Ana.Lee+x@Example.ORG>"#,
            "0100-a\\nana.lee%2Bx%40example.org.",
            r"0100-a mailto:ana.lee&#43;x&#x40;example.org",
            r#"0100-a ana.lee\u002bx\u0040example.org"#,
            "<ana.lee+x@example.org>, 0100-a: no such user",
        ];
        for text in texts {
            let inner = STANDARD.encode(format!("{text} and more"));
            for body in [text.to_owned(), format!("{{\"data\":\"{inner}\"}}")] {
                let named = Named::in_body(body.as_bytes());
                assert!(named.addresses.contains("ana.lee+x@example.org"), "{body}: {named:?}");
                assert!(named.words.contains("0100-a"), "{body}: {named:?}");
                assert!(ana().out_of_body(body.as_bytes()).is_some(), "{body}");
            }
        }
        assert_eq!(Named::in_body(b"\xff\0").addresses, BTreeSet::new());
    }

    #[test]
    fn what_a_database_looks_for_is_in_every_form() {
        assert_eq!(ana().words(), ["lee", "example"]);
    }
}
