//! Where in a body it failed: finds the bytes that a reject's `at` speaks of, also inside of strings that hold JSON.
//!
//! Pure, and at home in broken bodies: it reads only as much JSON as it takes to follow the path.

use std::{fmt, ops::Range};

use serde::{Serialize, Serializer};

use super::envelope::base64;

/// A body around the place where it failed. Bytes as they are: who shows them has to escape them.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    /// Bytes of the body before the window.
    pub start: usize,
    #[serde(serialize_with = "lossy")]
    pub before: Vec<u8>,
    /// What failed: at most two windows of it. Empty where the body ends too early.
    #[serde(serialize_with = "lossy")]
    pub failing: Vec<u8>,
    #[serde(serialize_with = "lossy")]
    pub after: Vec<u8>,
    /// Bytes of `failing` that are left out after its first two windows.
    pub omitted: usize,
    /// Bytes of the body after the window.
    pub rest: usize,
    /// What is not there inside of `failing`, like `mail.messageId`.
    pub missing: Option<String>,
}

/// The bytes around the failing place, up to `window` of them on each side. `at` is what the reject says; where it leads
/// nowhere (a kind, for what the database refused), the whole body is the place.
pub fn excerpt(body: &[u8], at: &str, window: usize) -> Excerpt {
    let (Range { start, end }, missing) = Place::parse(at).map_or((0..body.len(), None), |place| place.find(body));
    let from = boundary(body, start.saturating_sub(window));
    let shown = boundary(body, end.min(start + window * 2)).max(start);
    let to = boundary(body, end.saturating_add(window).min(body.len()));
    Excerpt {
        start: from,
        before: body[from..start].to_vec(),
        failing: body[start..shown].to_vec(),
        after: if shown < end { Vec::new() } else { body[end..to.max(end)].to_vec() },
        omitted: end - shown,
        rest: if shown < end { body.len() - end } else { body.len() - to.max(end) },
        missing,
    }
}

/// What an `at` says: a path, and perhaps a position in the text that lies there.
struct Place<'a> {
    path: Vec<Step<'a>>,
    position: Option<Position>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

#[derive(Clone, Copy)]
enum Position {
    /// Both from 1, the column in bytes.
    LineColumn(usize, usize),
    Byte(usize),
}

/// A text, and where each of its bytes begins in the body. One entry more than bytes, for the end.
struct Layer {
    text: Vec<u8>,
    origin: Vec<usize>,
}

impl<'a> Place<'a> {
    fn parse(at: &'a str) -> Option<Self> {
        let (path, position) = match at.find("line ").or_else(|| at.find("byte ")) {
            Some(n) => (at[..n].trim_end(), Some(Position::parse(&at[n..])?)),
            None => (at, None),
        };
        let mut rest = match path {
            "" => "",
            path => path.strip_prefix('$')?,
        };
        let mut path = Vec::new();
        while !rest.is_empty() {
            let step_end = rest[1..].find(['.', '[']).map_or(rest.len(), |n| n + 1);
            let (step, after) = rest.split_at(step_end);
            path.push(match step.strip_prefix('.') {
                Some(key) => Step::Key(key),
                None => Step::Index(step.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?),
            });
            rest = after;
        }
        Some(Self { path, position })
    }

    /// The bytes, and what is not there in them.
    fn find(&self, body: &[u8]) -> (Range<usize>, Option<String>) {
        let mut layer = Layer::of(body);
        let mut value = layer.trimmed(0..body.len());
        for (n, step) in self.path.iter().enumerate() {
            let found = loop {
                if let Some(found) = step.within(&layer.text, &value) {
                    break Some(found);
                }
                match layer.inside(&value) {
                    Some(inner) => layer = inner,
                    None => break None,
                }
                value = layer.trimmed(0..layer.text.len());
            };
            match found {
                Some(found) => value = found,
                None => return (layer.in_body(&value), Some(names(&self.path[n..]))),
            }
        }
        let Some(position) = self.position else { return (layer.in_body(&value), None) };
        // The position is one in the text that the value holds.
        let mut whole = value.start..value.end;
        if self.path.is_empty() {
            whole = 0..layer.text.len();
        }
        while let Some(inner) = layer.inside(&layer.trimmed(whole.clone())) {
            layer = inner;
            whole = 0..layer.text.len();
        }
        let byte = whole.start + position.byte(&layer.text[whole.clone()]);
        (layer.in_body(&(byte..(byte + 1).min(whole.end))), None)
    }
}

impl Position {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        match (words.next()?, words.next()?, words.next(), words.next()) {
            ("line", line, Some("column"), Some(column)) => {
                Some(Self::LineColumn(line.parse().ok()?, column.parse().ok()?))
            }
            ("byte", byte, None, None) => Some(Self::Byte(byte.parse().ok()?)),
            _ => None,
        }
    }

    /// The byte in the text, its length at most.
    fn byte(self, text: &[u8]) -> usize {
        let byte = match self {
            Self::Byte(byte) => byte,
            Self::LineColumn(line, column) => {
                let begin: usize =
                    text.split_inclusive(|b| *b == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
                // Column zero is the line break before.
                (begin + column).saturating_sub(1)
            }
        };
        byte.min(text.len())
    }
}

impl Step<'_> {
    /// Where it leads to inside of this value; `None` if it leads nowhere.
    fn within(self, text: &[u8], value: &Range<usize>) -> Option<Range<usize>> {
        match (self, text.get(value.start)?) {
            (Self::Key(key), b'{') => {
                members(text, value).filter(|(name, _)| *name == key.as_bytes()).last().map(|(_, v)| v)
            }
            (Self::Index(n), b'[') if skip(text, value.start) >= trimmed_end(text, value) => {
                items(text, value.start + 1, value.end).nth(n)
            }
            // Several JSON texts one after the other.
            (Self::Index(n), b'{' | b'[') => items(text, value.start, value.end).nth(n),
            _ => None,
        }
    }
}

impl Layer {
    fn of(body: &[u8]) -> Self {
        Self { text: body.to_vec(), origin: (0..=body.len()).collect() }
    }

    /// Without white space and byte order marks around it.
    fn trimmed(&self, range: Range<usize>) -> Range<usize> {
        let mut start = range.start;
        loop {
            match &self.text[start..range.end] {
                [b, ..] if b.is_ascii_whitespace() => start += 1,
                [0xef, 0xbb, 0xbf, ..] => start += 3,
                _ => break,
            }
        }
        start..trimmed_end(&self.text, &(start..range.end))
    }

    /// The text that a string holds, or that base64 does.
    fn inside(&self, value: &Range<usize>) -> Option<Self> {
        let text = &self.text[value.clone()];
        match text {
            [b'"', ..] if skip(text, 0) == text.len() => Some(self.unescaped(value.start + 1..value.end)),
            [b'{' | b'[', ..] => None,
            _ => {
                let decoded = base64(str::from_utf8(text).ok()?).filter(|bytes| !bytes.is_empty())?;
                if !decoded.trim_ascii_start().starts_with(b"{") && !decoded.trim_ascii_start().starts_with(b"[") {
                    return None;
                }
                // Four letters are three bytes; line breaks shift that a little, and nobody will mind.
                let at = |n: usize| self.origin[(value.start + n * 4 / 3).min(value.end)];
                Some(Self { origin: (0..=decoded.len()).map(at).collect(), text: decoded })
            }
        }
    }

    /// What stands between the quotes, up to the second of them.
    fn unescaped(&self, range: Range<usize>) -> Self {
        let (mut text, mut origin) = (Vec::with_capacity(range.len()), Vec::with_capacity(range.len()));
        let mut at = range.start;
        while at < range.end && self.text[at] != b'"' {
            let (length, character) = unescape(&self.text[at..range.end]);
            let mut buffer = [0; 4];
            let bytes = match character {
                Some(c) => c.encode_utf8(&mut buffer).as_bytes(),
                None => &self.text[at..at + length],
            };
            text.extend_from_slice(bytes);
            origin.resize(text.len(), self.origin[at]);
            at += length;
        }
        origin.push(self.origin[at.min(range.end)]);
        Self { text, origin }
    }

    fn in_body(&self, range: &Range<usize>) -> Range<usize> {
        self.origin[range.start]..self.origin[range.end].max(self.origin[range.start])
    }
}

/// One character of a string: how many bytes it takes, and what it stands for if it is escaped.
fn unescape(text: &[u8]) -> (usize, Option<char>) {
    let escaped = |c| (2.min(text.len()), Some(c));
    match text {
        [b'\\', b'n', ..] => escaped('\n'),
        [b'\\', b't', ..] => escaped('\t'),
        [b'\\', b'r', ..] => escaped('\r'),
        [b'\\', b'b', ..] => escaped('\u{8}'),
        [b'\\', b'f', ..] => escaped('\u{c}'),
        [b'\\', b'u', digits @ ..] => {
            let unit = |digits: &[u8]| u32::from_str_radix(str::from_utf8(digits.get(..4)?).ok()?, 16).ok();
            let first = unit(digits);
            let second = digits.get(4..6).filter(|next| next == b"\\u").and_then(|_| unit(&digits[6..]));
            match (first, second) {
                (Some(high @ 0xd800..0xdc00), Some(low @ 0xdc00..0xe000)) => {
                    (12, char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)))
                }
                (Some(unit), _) => (6, Some(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))),
                (None, _) => (2, None),
            }
        }
        [b'\\', c, ..] if c.is_ascii() => escaped(*c as char),
        _ => (1, None),
    }
}

/// Keys, as they are written, and values of an object.
fn members<'t>(text: &'t [u8], object: &Range<usize>) -> impl Iterator<Item = (&'t [u8], Range<usize>)> {
    let (mut at, end) = (object.start + 1, object.end);
    std::iter::from_fn(move || {
        at = skip_blank(text, at, end);
        if text.get(at) != Some(&b'"') {
            return None;
        }
        let key = at + 1..skip(text, at).min(end);
        let key = &text[key.start..key.end.saturating_sub(1).max(key.start)];
        let value = skip_blank(text, skip(text, at), end);
        let value = value..skip(text, value).min(end).max(value);
        at = value.end;
        Some((key, value))
    })
}

/// Values that stand one after the other.
fn items(text: &[u8], start: usize, end: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = start;
    std::iter::from_fn(move || {
        at = skip_blank(text, at, end);
        if at >= end || matches!(text[at], b']' | b'}') {
            return None;
        }
        let item = at..skip(text, at).min(end);
        at = item.end.max(item.start + 1);
        Some(item)
    })
}

/// The next byte that is neither white space nor a comma or colon.
fn skip_blank(text: &[u8], at: usize, end: usize) -> usize {
    let blank = |b: &u8| b.is_ascii_whitespace() || matches!(b, b',' | b':');
    let at = at.min(end);
    at + text[at..end].iter().take_while(|b| blank(b)).count()
}

/// Behind the value that begins here; the end of the text if it does not end.
fn skip(text: &[u8], start: usize) -> usize {
    let (mut depth, mut quoted, mut at) = (0_usize, false, start);
    while let Some(b) = text.get(at) {
        at += 1;
        match (quoted, b) {
            (true, b'\\') => at += 1,
            (_, b'"') => {
                quoted = !quoted;
                if !quoted && depth == 0 {
                    return at;
                }
            }
            (true, _) => {}
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']') if depth > 1 => depth -= 1,
            (false, b'}' | b']') if depth == 1 => return at,
            // A scalar ends where something else begins.
            (false, b) if depth == 0 && (b.is_ascii_whitespace() || matches!(b, b',' | b':' | b'}' | b']')) => {
                return at - 1;
            }
            (false, _) => {}
        }
    }
    text.len()
}

fn trimmed_end(text: &[u8], range: &Range<usize>) -> usize {
    range.start + text[range.clone()].trim_ascii_end().len()
}

/// The steps as one would write them: `mail.messageId`.
fn names(path: &[Step<'_>]) -> String {
    let name = |step: &Step<'_>| match step {
        Step::Key(key) => format!(".{key}"),
        Step::Index(n) => format!("[{n}]"),
    };
    path.iter().map(name).collect::<String>().trim_start_matches('.').to_owned()
}

/// Not in the middle of a character, if it is text.
fn boundary(body: &[u8], at: usize) -> usize {
    let middle = |at: &usize| body.get(*at).is_some_and(|b| b & 0xc0 == 0x80);
    (at..body.len().min(at + 3)).find(|at| !middle(at)).unwrap_or(at)
}

fn lossy<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&String::from_utf8_lossy(bytes))
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.start + self.before.len();
        f.debug_struct("Excerpt").field("at", &at).field("missing", &self.missing).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::{
        super::{DecodeSettings, Outcome, decode},
        *,
    };

    /// What is marked in a body that is not understood, and what is missing there.
    fn marked(body: &[u8]) -> (String, Option<String>) {
        let leaves = decode(body, OffsetDateTime::UNIX_EPOCH, &DecodeSettings::default());
        let [Outcome::Rejected(reject)] = &leaves.iter().map(|leaf| &leaf.outcome).collect::<Vec<_>>()[..] else {
            panic!("one reject: {leaves:?}");
        };
        let excerpt = excerpt(body, &reject.at, 400);
        let whole = [&excerpt.before[..], &excerpt.failing, &excerpt.after].concat();
        assert_eq!(String::from_utf8_lossy(&whole), String::from_utf8_lossy(body), "nothing is left out");
        (String::from_utf8_lossy(&excerpt.failing).into_owned(), excerpt.missing)
    }

    fn check(body: &str, failing: &str, missing: Option<&str>) {
        assert_eq!(marked(body.as_bytes()), (failing.to_owned(), missing.map(str::to_owned)), "{body}");
    }

    #[test]
    fn the_byte_that_breaks_the_rules_is_marked() {
        check(r#"{"eventType":?}"#, "?", None);
        check("{\"a\":1,\n \"b\":?}", "?", None);
        check(r#"{"eventType": "#, " ", None);
        assert_eq!(marked(b"{\"a\":\"\xff\"}").0, "\u{fffd}");
    }

    #[test]
    fn it_is_found_inside_of_strings_that_hold_json() {
        let sns = |message: &str| {
            serde_json::json!({"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": message}).to_string()
        };
        check(&sns("{\"a\":\"ü\n\",\"b\":?}"), "\\n", None);
        check(&sns("{\"a\":\"ü\",\n\"b\":?}"), "?", None);
        check(&sns(&serde_json::json!("{\"b\":?}").to_string()), "?", None);
    }

    #[test]
    fn what_is_not_there_is_named_with_the_object_that_lacks_it() {
        check(
            r#"{"eventType":"Send","mail":{"a":[{"messageId":"no"}]}}"#,
            r#"{"a":[{"messageId":"no"}]}"#,
            Some("messageId"),
        );
        check(r#"{"eventType":"Send","mail":{"messageId":7}}"#, "7", None);
        check(r#"[[{"eventType":"Send"}]]"#, r#"{"eventType":"Send"}"#, Some("mail"));
    }

    #[test]
    fn a_window_limits_what_is_shown_and_says_what_is_left_out() {
        let body = format!(
            "{{\"eventType\":\"Send\",\"x\":\"{}\",\"mail\":{{\"y\":\"{}\"}}}}",
            "ä".repeat(500),
            "z".repeat(900)
        );
        let excerpt = excerpt(body.as_bytes(), "$.mail.messageId", 40);
        assert!(str::from_utf8(&excerpt.before).is_ok(), "cut between characters");
        assert_eq!((excerpt.failing.len(), excerpt.after.len()), (80, 0));
        let shown = excerpt.start + excerpt.before.len() + excerpt.failing.len();
        assert_eq!(shown + excerpt.omitted + excerpt.rest, body.len());
    }

    #[test]
    fn no_place_is_beyond_any_body() {
        let places = [
            "$",
            "$.a.b",
            "$[7]",
            "$.a[0].b line 9 column 99",
            "byte 99999",
            "line 7 column 8",
            "bounce",
            "$.",
            "$[",
            "$[]",
        ];
        for body in [
            &b""[..],
            b"{",
            b"\"",
            b"{\"a\"",
            b"{\"a\":",
            b"[1,",
            b"\"\\",
            b"\"\\u12",
            b"\xff\xfe",
            b"e30",
            b"{}{}",
            b"[}",
        ] {
            for at in places {
                for window in [0, 1, 100] {
                    let excerpt = excerpt(body, at, window);
                    assert!(excerpt.before.len() + excerpt.failing.len() + excerpt.after.len() <= body.len());
                }
            }
        }
    }
}
