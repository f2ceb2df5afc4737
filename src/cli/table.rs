//! Text output: tables, ages, sizes, plurals and colours.

use bytesize::ByteSize;
use console::{Alignment, measure_text_width, pad_str, style};

use crate::clock::Timestamp;

/// Table with a header. Columns are as wide as their content.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|name| style(*name).bold().to_string()).collect()] }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Returns the lines. The last column is not padded.
    pub(super) fn lines(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| measure_text_width(cell))
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<_> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| pad_str(cell, *width, Alignment::Left, None))
                .collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Marks a good state in green.
pub(super) fn good(text: &str) -> String {
    style(text).green().to_string()
}

/// Marks a state that needs attention in yellow.
pub(super) fn fair(text: &str) -> String {
    style(text).yellow().to_string()
}

/// Marks a bad state in red.
pub(super) fn bad(text: &str) -> String {
    style(text).red().to_string()
}

pub(super) fn iec(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Returns a count with its noun in singular or plural.
pub(super) fn many(count: impl Into<u64>, noun: &str) -> String {
    match count.into() {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// Returns counts of manifests and blobs with their total size.
pub(super) fn content(manifests: u64, blobs: u64, bytes: u64) -> String {
    format!("{} and {} ({})", many(manifests, "manifest"), many(blobs, "blob"), iec(bytes))
}

/// Returns the time since `then` in one unit.
pub(super) fn ago(now: Timestamp, then: Option<Timestamp>) -> String {
    let Some(then) = then else { return "-".to_owned() };
    let seconds = now.since(then).as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "m"),
        3600..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{count}{unit}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let start = Timestamp::default();
        let shown = [0, 59, 60, 3599, 3600, 172_799, 172_800]
            .map(|seconds| ago(start.plus(Duration::from_secs(seconds)), Some(start)));
        assert_eq!(shown, ["0s", "59s", "1m", "59m", "1h", "47h", "2d"]);
        assert_eq!(ago(start, None), "-");
        assert_eq!(ago(start, Some(start.plus(Duration::from_secs(5)))), "0s");
    }

    #[test]
    fn many_uses_singular_for_one() {
        assert_eq!([0_u64, 1, 2].map(|count| many(count, "blob")), ["0 blobs", "1 blob", "2 blobs"]);
        assert_eq!(content(1, 2, 1024), "1 manifest and 2 blobs (1.0 KiB)");
    }

    #[test]
    fn table_columns_are_aligned() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec!["long".to_owned(), "x".to_owned()]);
        let lines = console::strip_ansi_codes(&table.lines()).into_owned();
        assert_eq!(lines, "A     B\nlong  x\n");
    }
}
