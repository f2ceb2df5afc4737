//! Progress bars on standard error, one for each piece of work under way; nothing is drawn where that is no terminal.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::ops::progress::{Progress, ProgressItem};

/// More bars than this fit no screen.
const SHOWN: usize = 12;

/// The bars on the screen.
#[derive(Debug)]
pub(super) struct Bars {
    screen: MultiProgress,
    shown: HashMap<u64, ProgressBar>,
    /// How many pieces have ended, where there are several.
    count: Option<ProgressBar>,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self { screen: MultiProgress::new(), shown: HashMap::new(), count: None }
    }

    /// Shows what is under way now.
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
                let shown = self
                    .screen
                    .add(ProgressBar::new(bar.total).with_style(bytes()).with_prefix(bar.name.clone()));
                update(&shown, bar);
                self.shown.insert(bar.id, shown);
            }
        }
    }

    /// Clears the screen.
    pub(super) fn end(self) {
        for bar in self.shown.into_values().chain(self.count) {
            bar.finish_and_clear();
        }
    }
}

fn update(shown: &ProgressBar, bar: &ProgressItem) {
    shown.set_length(bar.total.max(bar.done));
    shown.set_position(bar.done);
}

/// One piece: bytes, rate, and what is left.
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
    fn the_templates_are_well_formed() {
        for template in [
            "{prefix} {bytes} of {total_bytes} {wide_bar} {binary_bytes_per_sec}, {eta} left",
            "{pos} of {len} done {wide_bar} {elapsed}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
