//! Formatting of sizes, times, numbers and links for people.

use std::fmt;
use std::time::{Duration, SystemTime};

use url::form_urlencoded;

use crate::clock::Timestamp;

/// Number of bytes; displayed in a unit such as MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteCount(pub(super) u64);

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).display().iec().fmt(f)
    }
}

impl ByteCount {
    /// Returns the exact number of bytes.
    pub(super) fn exact(self) -> String {
        format!("{} bytes", thousands(self.0))
    }
}

/// Time relative to now, such as "5 minutes ago".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RelativeTime {
    pub(super) at: Timestamp,
    pub(super) now: Timestamp,
}

impl fmt::Display for RelativeTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, now } = *self;
        let span = HumanDuration(at.abs_diff(now));
        if span.0 < Duration::from_secs(1) {
            return f.write_str("just now");
        }
        if at > now { write!(f, "in {span}") } else { write!(f, "{span} ago") }
    }
}

impl RelativeTime {
    /// Returns the time as RFC 3339, in UTC.
    pub(super) fn exact(self) -> String {
        let at = self.at.min(Timestamp::RFC_3339_MAX);
        humantime::format_rfc3339_seconds(SystemTime::from(at)).to_string()
    }
}

/// Duration; displayed in its largest unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HumanDuration(pub(super) Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (number, unit) = match seconds {
            0..60 => (seconds, "second"),
            60..3600 => (seconds / 60, "minute"),
            3600..172_800 => (seconds / 3600, "hour"),
            _ => (seconds / 86_400, "day"),
        };
        write!(f, "{number} {unit}{}", if number == 1 { "" } else { "s" })
    }
}

/// Formats a number with separators between thousands.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a number with its noun in singular or plural.
pub(super) fn plural(number: u64, one: &str) -> String {
    format!("{} {one}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// Formats a ratio between 0 and 1.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

/// Shortens a digest for display.
pub(super) fn short_digest(digest: &str) -> String {
    match digest.split_once(':') {
        Some((algorithm, rest)) => format!("{algorithm}:{}", rest.chars().take(12).collect::<String>()),
        None => digest.chars().take(19).collect(),
    }
}

/// Returns the link to the page of an image.
pub(super) fn image_url(path: &str, reference: &str, more: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("reference", reference).extend_pairs(more);
    format!("{path}?{}", query.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable_and_exact() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(ByteCount(1 << 20).to_string(), "1.0 MiB");
        assert_eq!(ByteCount(1 << 20).exact(), "1,048,576 bytes");
        assert_eq!((plural(1, "tag"), plural(2000, "tag")), ("1 tag".to_owned(), "2,000 tags".to_owned()));
        assert_eq!((percent(None), percent(Some(0.5))), ("–".to_owned(), "50.0 %".to_owned()));
    }

    #[test]
    fn relative_time_is_relative_to_now() {
        let time = Timestamp::from_millis;
        let when = |at, now| RelativeTime { at: time(at), now: time(now) }.to_string();
        assert_eq!(when(0, 500), "just now");
        assert_eq!(when(0, 1000), "1 second ago");
        assert_eq!(when(0, 7_200_000), "2 hours ago");
        assert_eq!(when(120_000, 0), "in 2 minutes");
        assert_eq!(RelativeTime { at: time(0), now: time(0) }.exact(), "1970-01-01T00:00:00Z");
        assert_eq!(RelativeTime { at: Timestamp::MAX, now: time(0) }.exact(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn digest_is_shortened_and_link_is_encoded() {
        assert_eq!(short_digest("sha256:0123456789abcdef"), "sha256:0123456789ab");
        assert_eq!(short_digest("nothing"), "nothing");
        assert_eq!(
            image_url("/image", "a/b:1", &[("platform", "linux/arm64")]),
            "/image?reference=a%2Fb%3A1&platform=linux%2Farm64"
        );
    }
}
