//! Reads a time in any spelling that was seen in an SES event.
//!
//! SES writes `2026-10-04T10:00:01.111Z`; its documentation also shows `2018-10-08T14:05:45 +0000`,
//! relays and emulators add offsets, microseconds, spaces for the `T` and numbers. What cannot be
//! read is `None`, never an error: no event is lost because of its time.

use time::format_description::well_known::Rfc2822;
use time::{Date, Duration, Month, OffsetDateTime, UtcDateTime};

use super::json::Value;

/// The time in UTC, cut to the microsecond; `None` if unreadable or outside of the years 1 to 9999.
pub(super) fn read(value: &Value<'_>) -> Option<OffsetDateTime> {
    let time = match value {
        Value::String(text) => text.parse().ok().and_then(epoch).or_else(|| spelled_out(text.trim())),
        Value::Number(number) => epoch(number.as_f64()?),
        _ => None,
    }?;
    let time = time.replace_microsecond(time.microsecond()).ok()?;
    (1..=9999).contains(&time.year()).then_some(time)
}

/// A number counts seconds, milli-, micro- or nanoseconds since 1970, by its size: each unit from
/// March 1973 up to the year 5138. What is less is no time of ours: zero, a year, `20261004`.
fn epoch(number: f64) -> Option<OffsetDateTime> {
    const YEAR_1973: f64 = 1e8;
    const YEAR_5138: f64 = 1e11;
    let units = [1.0, 1e3, 1e6, 1e9];
    let per_second = units.iter().find(|unit| number / **unit < YEAR_5138)?;
    let seconds = Some(number / per_second).filter(|seconds| *seconds >= YEAR_1973)?;
    let micros = (seconds * 1e6).round();
    OffsetDateTime::from_unix_timestamp_nanos(micros as i128 * 1000).ok()
}

/// `YYYY-MM-DD`, then optionally `T` or a space and `hh:mm[:ss[.f]]`, then optionally a zone.
fn spelled_out(text: &str) -> Option<OffsetDateTime> {
    let mut rest = Reader(text);
    let Some(date) = rest.date() else {
        return OffsetDateTime::parse(text, &Rfc2822).ok()?.checked_to_offset(time::UtcOffset::UTC);
    };
    let since_midnight = if rest.0.is_empty() { Duration::ZERO } else { rest.clock()? };
    let offset = rest.zone()?;
    let midnight = UtcDateTime::new(date, time::Time::MIDNIGHT);
    let time = midnight.checked_add(since_midnight)?.checked_sub(offset)?;
    Some(time.into())
}

/// What is still to be read of a time.
struct Reader<'a>(&'a str);

impl Reader<'_> {
    fn date(&mut self) -> Option<Date> {
        let year = self.digits(4)?;
        self.one_of(&['-'])?;
        let month = self.digits(2)?;
        self.one_of(&['-'])?;
        let day = self.digits(2)?;
        let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
        Date::from_calendar_date(i32::try_from(year).ok()?, month, u8::try_from(day).ok()?).ok()
    }

    /// The time of day as the time since midnight: 24:00 is the next midnight, and a leap second
    /// the first second of the next minute.
    fn clock(&mut self) -> Option<Duration> {
        self.one_of(&['T', 't', ' '])?;
        let hours = self.digits(2)?;
        self.one_of(&[':'])?;
        let minutes = self.digits(2)?;
        let seconds = if self.one_of(&[':']).is_some() { self.digits(2)? } else { 0 };
        let nanos = if self.one_of(&['.', ',']).is_some() { self.fraction()? } else { 0 };
        let day_end = hours == 24 && minutes == 0 && seconds == 0 && nanos == 0;
        ((hours < 24 || day_end) && minutes < 60 && seconds <= 60)
            .then(|| Duration::new(hours * 3600 + minutes * 60 + seconds, nanos))
    }

    /// How far the zone is ahead of UTC. No zone is UTC: everything in AWS is.
    fn zone(&mut self) -> Option<Duration> {
        self.0 = self.0.trim();
        if self.0.is_empty() || ["z", "utc", "gmt"].iter().any(|z| self.0.eq_ignore_ascii_case(z)) {
            return Some(Duration::ZERO);
        }
        let sign = if self.one_of(&['+', '-'])? == '-' { -1 } else { 1 };
        let hours = self.digits(2)?;
        let minutes = if self.0.is_empty() {
            0
        } else {
            self.one_of(&[':']);
            self.digits(2)?
        };
        (self.0.is_empty() && hours < 24 && minutes < 60).then(|| Duration::minutes(sign * (hours * 60 + minutes)))
    }

    /// Nanoseconds; digits after the ninth say nothing.
    fn fraction(&mut self) -> Option<i32> {
        let digits = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (fraction, rest) = self.0.split_at(digits);
        self.0 = rest;
        format!("{:0<9.9}", fraction).parse().ok().filter(|_| digits > 0)
    }

    /// A number of exactly so many digits.
    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    }

    fn one_of(&mut self, accepted: &[char]) -> Option<char> {
        let first = self.0.chars().next().filter(|c| accepted.contains(c))?;
        self.0 = &self.0[first.len_utf8()..];
        Some(first)
    }
}
