//! Failures that are said again and again: the first is logged, those like it are counted for a while and then told by
//! their number.

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

/// For how long what is like something that was said is left out.
const WINDOW: Duration = Duration::from_mins(1);

/// Kinds of failures known at once. Beyond it failures with the same message count as one kind.
const KINDS: usize = 512;

/// The target of what is never left out, however often it is said: it answers somebody who asked.
pub const NO_DEDUP: &str = "larder::always";

/// No more of a message is kept, in characters.
const MESSAGE: usize = 200;

/// What makes two failures alike: the same message about the same upstream and endpoint, for the same reason but for
/// numbers, names and digests in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FailureKey {
    hash: u64,
    /// For failures beyond those that are known.
    coarse: u64,
    message: String,
    upstream: Option<String>,
}

/// A failure that was said.
#[derive(Debug)]
struct LoggedFailure {
    at: Instant,
    left_out: u64,
    message: String,
    upstream: Option<String>,
}

/// What was left out of the log since it was last said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Suppressed {
    times: u64,
    message: String,
    upstream: Option<String>,
}

/// What was said lately. Pure: the time is an argument.
#[derive(Debug, Default)]
struct SeenFailures(HashMap<u64, LoggedFailure>);

impl SeenFailures {
    /// Whether a failure is to be said now.
    fn admits(&mut self, kind: FailureKey, now: Instant) -> bool {
        let full = self.0.len() >= KINDS && !self.0.contains_key(&kind.hash);
        let FailureKey { hash, coarse, message, upstream } = kind;
        // The coarse kinds are few: there is one for each message in the program.
        let key = if full { coarse } else { hash };
        match self.0.get_mut(&key) {
            Some(said) if now.saturating_duration_since(said.at) < WINDOW => {
                said.left_out += 1;
                false
            }
            Some(said) => {
                said.at = now;
                true
            }
            None => {
                self.0.insert(key, LoggedFailure { at: now, left_out: 0, message, upstream });
                true
            }
        }
    }

    /// What was left out and is to be told now; forgets what was not said again.
    fn take_due(&mut self, now: Instant) -> Vec<Suppressed> {
        let mut due = Vec::new();
        self.0.retain(|_, said| {
            if now.saturating_duration_since(said.at) < WINDOW {
                return true;
            }
            if said.left_out == 0 {
                return false;
            }
            // It is still going on, or just was: what comes next is counted on.
            let times = std::mem::take(&mut said.left_out);
            said.at = now;
            due.push(Suppressed { times, message: said.message.clone(), upstream: said.upstream.clone() });
            true
        });
        due
    }
}

/// Keeps the log from being flooded; clones share what was said.
#[derive(Clone, Debug, Default)]
pub(super) struct LogDedup(Arc<Mutex<SeenFailures>>);

impl LogDedup {
    fn record(&self) -> MutexGuard<'_, SeenFailures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what was left out for a while.
    pub(super) fn report_suppressed(&self, now: Instant) {
        // Collected first: saying it comes back here.
        let due = self.record().take_due(now);
        for Suppressed { times, message, upstream } in due {
            tracing::warn!(target: NO_DEDUP, times, of = message, upstream, "left out of the log");
        }
    }
}

/// Writes lines as `lines` does, but for those that repeat.
///
/// Not a filter of the subscriber: one that judges by an event's fields makes it lose the event after it.
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
        // The more severe levels are the smaller ones.
        let spared = *of.level() <= Level::WARN && of.target() != NO_DEDUP;
        if spared && !self.dedup.record().admits(failure_key(event), Instant::now()) {
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

/// An error without what differs from one failure of its kind to the next.
fn reason(error: &str) -> String {
    error.split_whitespace().filter(|word| !word.contains(|c: char| c.is_ascii_digit() || c == '/')).collect()
}

/// The fields of a failure that tell its kind.
#[derive(Debug, Default)]
struct FailureFields {
    message: String,
    upstream: Option<String>,
    error: String,
    /// Fields that name the place where it failed.
    rest: String,
}

impl Visit for FailureFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text.chars().take(MESSAGE).collect(),
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

    fn kind(hash: u64) -> FailureKey {
        FailureKey { hash, coarse: u64::MAX, message: format!("message {hash}"), upstream: None }
    }

    #[test]
    fn the_first_is_said_and_the_others_are_counted() {
        let (mut record, begin) = (SeenFailures::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(record.admits(kind(1), at(0)));
        assert!(!record.admits(kind(1), at(0)));
        assert!(record.admits(kind(2), at(10)), "another kind");
        assert!(!record.admits(kind(1), at(59)));
        assert_eq!(record.take_due(at(59)), []);
        let left_out = Suppressed { times: 2, message: "message 1".to_owned(), upstream: None };
        assert_eq!(record.take_due(at(60)), [left_out]);
        // What went on is counted on; what was not said again is forgotten, and said when it comes again.
        assert!(!record.admits(kind(1), at(61)));
        assert_eq!(record.take_due(at(100)), []);
        assert!(record.admits(kind(2), at(101)));
        assert_eq!(record.take_due(at(120)).len(), 1);
        assert_eq!(record.take_due(at(180)), []);
        assert!(record.admits(kind(1), at(181)));
    }

    #[test]
    fn without_anybody_who_tells_it_is_said_once_a_window() {
        let (mut record, begin) = (SeenFailures::default(), Instant::now());
        let said = (0..300).filter(|second| record.admits(kind(1), begin + Duration::from_secs(*second)));
        assert_eq!(said.count(), 5);
    }

    #[test]
    fn kinds_are_bounded() {
        let (mut record, now) = (SeenFailures::default(), Instant::now());
        let said = (0..10_000).filter(|number| record.admits(kind(*number), now)).count();
        assert_eq!(said, KINDS + 1, "beyond the bound all are of one kind");
        assert!(record.0.len() <= KINDS + 1);
        assert!(!record.admits(kind(3), now), "those that are known stay known");
        assert_eq!(record.take_due(now + WINDOW).len(), 2);
    }

    #[test]
    fn reasons_are_alike_but_for_numbers_and_names() {
        assert_eq!(reason("connect 127.0.0.1:5000: refused"), reason("connect 127.0.0.1:40001: refused"));
        assert_ne!(reason("connect: refused"), reason("connect: timed out"));
        assert_eq!(reason("sha256:ab1 of org/app failed"), reason("sha256:cd2 of org/other failed"));
    }
}
