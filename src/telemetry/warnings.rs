//! Recent warnings and errors of the log, for the status page and the admin API.

use std::collections::VecDeque;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::clock::Timestamp;

/// Number of messages kept.
const KEPT: usize = 20;
/// Maximum length of a message and of its details, in characters.
const LENGTH_MAX: usize = 500;

/// Warning or error of the log. Repetitions are counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Warning {
    /// Time of the last occurrence.
    pub at: Timestamp,
    /// True for an error, false for a warning.
    pub error: bool,
    /// The message.
    pub message: String,
    /// Other fields of the last occurrence.
    pub detail: String,
    /// Number of occurrences.
    pub times: u64,
}

/// Recent warnings and errors. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<VecDeque<Warning>>>);

impl Warnings {
    /// Returns the recent warnings, newest first.
    pub fn latest(&self) -> Vec<Warning> {
        self.lock().iter().rev().cloned().collect()
    }

    fn add(&self, mut warning: Warning) {
        let mut kept = self.lock();
        if let Some(place) = kept.iter().position(|it| it.message == warning.message)
            && let Some(before) = kept.remove(place)
        {
            warning.times = before.times.saturating_add(1);
        }
        kept.push_back(warning);
        while kept.len() > KEPT {
            kept.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Warning>> {
        // No code under this lock panics, so the list is consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // More severe levels are smaller.
        if *event.metadata().level() > Level::WARN {
            return;
        }
        let mut text = EventText::default();
        event.record(&mut text);
        self.add(Warning {
            at: SystemTime::now().into(),
            error: *event.metadata().level() == Level::ERROR,
            message: cut(&text.message),
            detail: cut(&text.detail),
            times: 1,
        });
    }
}

fn cut(text: &str) -> String {
    text.chars().take(LENGTH_MAX).collect()
}

/// Message and other fields of an event.
#[derive(Default)]
struct EventText {
    message: String,
    detail: String,
}

impl Visit for EventText {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            let between = if self.detail.is_empty() { "" } else { ", " };
            write!(self.detail, "{between}{}: {value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn warnings_are_kept_and_counted() {
        let warnings = Warnings::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(warnings.clone()), || {
            tracing::info!("nothing");
            tracing::warn!(upstream = %"a.test", "it is slow");
            tracing::error!(code = 7, reason = "none", "it fails");
            tracing::warn!(upstream = "b.test", "it is slow");
        });
        let kept = warnings.latest();
        let found: Vec<_> =
            kept.iter().map(|it| (it.message.as_str(), it.detail.as_str(), it.times, it.error)).collect();
        let wanted =
            [("it is slow", "upstream: b.test", 2, false), ("it fails", "code: 7, reason: none", 1, true)];
        assert_eq!(found, wanted);
        for number in 0..100 {
            let message = format!("{number}{}", "x".repeat(2 * LENGTH_MAX));
            warnings.add(Warning { message, ..kept[0].clone() });
        }
        assert_eq!(warnings.latest().len(), KEPT);
    }
}
