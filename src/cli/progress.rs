//! Progress bars on standard error, one for each running item. Nothing is drawn if standard error is not a terminal.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::ops::protocol::{Progress, ProgressItem};

/// Maximum number of bars on the screen.
const SHOWN: usize = 12;

/// Progress bars of a job.
#[derive(Debug)]
pub(super) struct ProgressBars {
    screen: MultiProgress,
    shown: HashMap<u64, ProgressBar>,
    /// Bar with the number of finished items, if there are several items.
    count: Option<ProgressBar>,
}

impl ProgressBars {
    pub(super) fn new() -> Self {
        Self { screen: MultiProgress::new(), shown: HashMap::new(), count: None }
    }

    /// Shows the current progress.
    pub(super) fn show(&mut self, progress: &Progress) {
        self.shown.retain(|id, bar| {
            let there = progress.bars.iter().any(|it| it.id == *id);
            if !there {
                bar.finish_and_clear();
            }
            there
        });
        if progress.all > 1 {
            let count =
                self.count.get_or_insert_with(|| self.screen.add(ProgressBar::new(0).with_style(pieces())));
            count.set_length(progress.all);
            count.set_position(progress.ended);
        }
        for bar in &progress.bars {
            if let Some(shown) = self.shown.get(&bar.id) {
                update(shown, bar);
            } else if self.shown.len() < SHOWN {
                let shown = self.screen.add(ProgressBar::new(bar.total).with_style(bytes()));
                update(&shown, bar);
                self.shown.insert(bar.id, shown);
            }
        }
    }

    /// Removes all bars.
    pub(super) fn end(self) {
        for bar in self.shown.into_values().chain(self.count) {
            bar.finish_and_clear();
        }
    }
}

fn update(shown: &ProgressBar, bar: &ProgressItem) {
    shown.set_length(bar.total.max(bar.done));
    shown.set_position(bar.done);
    shown.set_prefix(match bar.waiting_for.first() {
        Some(other) => format!("{} (waits for {other}, which stores the same blob)", bar.name),
        None => bar.name.clone(),
    });
}

/// Returns the style for one item: bytes, rate and remaining time.
pub(super) fn bytes() -> ProgressStyle {
    style("{prefix} {bytes} of {total_bytes} {wide_bar} {binary_bytes_per_sec}, {eta} left")
}

fn pieces() -> ProgressStyle {
    style("{pos} of {len} done {wide_bar} {elapsed}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_well_formed() {
        for template in [
            "{prefix} {bytes} of {total_bytes} {wide_bar} {binary_bytes_per_sec}, {eta} left",
            "{pos} of {len} done {wide_bar} {elapsed}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
