//! Deduplication of log messages: the first of several similar warnings or errors is logged, the others are counted, and
//! their number is logged once per minute.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Time during which similar messages are suppressed after one was logged.
const WINDOW: Duration = Duration::from_mins(1);

/// Maximum number of distinct failures. Beyond it, all failures of one call site count as similar.
const FAILURES_MAX: usize = 512;

/// Log target of messages that are never suppressed, for example because they answer an operator's command.
pub const NO_DEDUP: &str = "larder::always";

/// Maximum length of a stored message, in characters.
const MESSAGE_MAX: usize = 200;

/// Identity of a failure. Two failures are similar if message, upstream, endpoint and reason are equal. Numbers, names and
/// digests in the reason are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FailureKey {
    hash: u64,
    /// Hash of the call site alone, used beyond `FAILURES_MAX`.
    coarse: u64,
    message: String,
    upstream: Option<String>,
}

/// Failure that was logged.
#[derive(Debug)]
struct LoggedFailure {
    at: Instant,
    suppressed: u64,
    message: String,
    upstream: Option<String>,
}

/// Messages suppressed since a failure was last logged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Suppressed {
    times: u64,
    message: String,
    upstream: Option<String>,
}

/// Failures logged recently. Pure: the time is an argument.
#[derive(Debug, Default)]
struct SeenFailures(HashMap<u64, LoggedFailure>);

impl SeenFailures {
    /// Returns true if the failure is to be logged now. Otherwise counts it as suppressed.
    fn admits(&mut self, key: FailureKey, now: Instant) -> bool {
        let full = self.0.len() >= FAILURES_MAX && !self.0.contains_key(&key.hash);
        let FailureKey { hash, coarse, message, upstream } = key;
        // Coarse keys are few: one for each call site of the program.
        let entry = if full { coarse } else { hash };
        match self.0.get_mut(&entry) {
            Some(failure) if now.saturating_duration_since(failure.at) < WINDOW => {
                failure.suppressed += 1;
                false
            }
            Some(failure) => {
                failure.at = now;
                true
            }
            None => {
                self.0.insert(entry, LoggedFailure { at: now, suppressed: 0, message, upstream });
                true
            }
        }
    }

    /// Takes the counts of suppressed messages that are due, and forgets failures that did not occur again.
    fn take_due(&mut self, now: Instant) -> Vec<Suppressed> {
        let mut due = Vec::new();
        self.0.retain(|_, failure| {
            if now.saturating_duration_since(failure.at) < WINDOW {
                return true;
            }
            if failure.suppressed == 0 {
                return false;
            }
            // The failure continues, so the next messages are counted too.
            let times = std::mem::take(&mut failure.suppressed);
            failure.at = now;
            due.push(Suppressed {
                times,
                message: failure.message.clone(),
                upstream: failure.upstream.clone(),
            });
            true
        });
        due
    }
}

/// Deduplication of the log. Clones share the state.
#[derive(Clone, Debug, Default)]
pub(super) struct LogDedup(Arc<Mutex<SeenFailures>>);

impl LogDedup {
    fn state(&self) -> MutexGuard<'_, SeenFailures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the number of suppressed messages.
    pub(super) fn report_suppressed(&self, now: Instant) {
        // The lock is released first, because logging takes it again.
        let due = self.state().take_due(now);
        for Suppressed { times, message, upstream } in due {
            tracing::warn!(target: NO_DEDUP, times, of = message, upstream, "suppressed repeated messages");
        }
    }
}

/// Event formatter that omits repeated messages.
///
/// A filter of the subscriber cannot do this: a filter that depends on an event's fields makes the subscriber lose the next
/// event.
#[derive(Debug)]
pub(super) struct DedupFormat<F> {
    pub(super) lines: F,
    pub(super) dedup: LogDedup,
}

impl<S, N, F> FormatEvent<S, N> for DedupFormat<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let of = event.metadata();
        // More severe levels are smaller.
        let deduplicated = *of.level() <= Level::WARN && of.target() != NO_DEDUP;
        if deduplicated && !self.dedup.state().admits(failure_key(event), Instant::now()) {
            return Ok(());
        }
        self.lines.format_event(context, writer, event)
    }
}

fn failure_key(event: &Event<'_>) -> FailureKey {
    let mut seen = FailureFields::default();
    event.record(&mut seen);
    let hash = |parts: &[&str]| {
        let mut hasher = DefaultHasher::new();
        event.metadata().callsite().hash(&mut hasher);
        parts.hash(&mut hasher);
        hasher.finish()
    };
    let place = seen.upstream.as_deref().unwrap_or_default();
    let fine = hash(&[&seen.message, place, &seen.rest, &reason(&seen.error)]);
    FailureKey { hash: fine, coarse: hash(&[]), message: seen.message, upstream: seen.upstream }
}

/// Returns the text of an error without words that differ between similar failures.
fn reason(error: &str) -> String {
    error.split_whitespace().filter(|word| !word.contains(|c: char| c.is_ascii_digit() || c == '/')).collect()
}

/// Fields of an event that identify the failure.
#[derive(Debug, Default)]
struct FailureFields {
    message: String,
    upstream: Option<String>,
    error: String,
    /// Values of the fields that name where the failure occurred.
    rest: String,
}

impl Visit for FailureFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text.chars().take(MESSAGE_MAX).collect(),
            "upstream" => self.upstream = Some(text),
            "error" => self.error = text,
            "endpoint" | "host" | "realm" | "key" | "keys" | "cert" => {
                // Writing to a String cannot fail.
                let _ = write!(self.rest, "{text} ");
            }
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(hash: u64) -> FailureKey {
        FailureKey { hash, coarse: u64::MAX, message: format!("message {hash}"), upstream: None }
    }

    #[test]
    fn log_dedup_logs_the_first_and_counts_the_others() {
        let (mut seen, begin) = (SeenFailures::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(seen.admits(key(1), at(0)));
        assert!(!seen.admits(key(1), at(0)));
        assert!(seen.admits(key(2), at(10)), "another failure");
        assert!(!seen.admits(key(1), at(59)));
        assert_eq!(seen.take_due(at(59)), []);
        let suppressed = Suppressed { times: 2, message: "message 1".to_owned(), upstream: None };
        assert_eq!(seen.take_due(at(60)), [suppressed]);
        // A continuing failure is counted on. A failure that ended is forgotten and logged when it occurs again.
        assert!(!seen.admits(key(1), at(61)));
        assert_eq!(seen.take_due(at(100)), []);
        assert!(seen.admits(key(2), at(101)));
        assert_eq!(seen.take_due(at(120)).len(), 1);
        assert_eq!(seen.take_due(at(180)), []);
        assert!(seen.admits(key(1), at(181)));
    }

    #[test]
    fn log_dedup_without_reports_logs_once_per_window() {
        let (mut seen, begin) = (SeenFailures::default(), Instant::now());
        let logged = (0..300).filter(|second| seen.admits(key(1), begin + Duration::from_secs(*second)));
        assert_eq!(logged.count(), 5);
    }

    #[test]
    fn log_dedup_state_is_bounded() {
        let (mut seen, now) = (SeenFailures::default(), Instant::now());
        let logged = (0..10_000).filter(|number| seen.admits(key(*number), now)).count();
        assert_eq!(logged, FAILURES_MAX + 1, "beyond the limit all are similar");
        assert!(seen.0.len() <= FAILURES_MAX + 1);
        assert!(!seen.admits(key(3), now), "known failures stay known");
        assert_eq!(seen.take_due(now + WINDOW).len(), 2);
    }

    #[test]
    fn reason_ignores_numbers_and_names() {
        assert_eq!(reason("connect 127.0.0.1:5000: refused"), reason("connect 127.0.0.1:40001: refused"));
        assert_ne!(reason("connect: refused"), reason("connect: timed out"));
        assert_eq!(reason("sha256:ab1 of org/app failed"), reason("sha256:cd2 of org/other failed"));
    }
}
