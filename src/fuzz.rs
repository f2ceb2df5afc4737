//! Inputs of the fuzz targets. The targets are the tests in modules called `fuzz`, beside the code that they test.
//!
//! Each target decodes one byte string into texts, numbers or operations with an [`Input`]. The engine, random or guided by
//! coverage, knows nothing but these bytes. CONTRIBUTING.md describes how to run the targets.

use std::time::Duration;

use bolero::{ValueGenerator, produce_with};

/// Time of one target in `cargo test`. The variable `BOLERO_RANDOM_TEST_TIME_MS` replaces it.
pub(crate) const TEST_TIME: Duration = Duration::from_millis(150);
/// Maximum length of a byte string.
const LENGTH_MAX: usize = 2048;
/// Maximum number of pieces of one text.
const PIECES_MAX: usize = 40;
/// Maximum depth of a JSON document, except for its deep members.
const DEPTH_MAX: usize = 4;
/// Values at which arithmetic is most likely to be wrong.
const EXTREMES: [u64; 12] =
    [0, 1, 2, 60, 512, 1 << 20, 0xffff_ffff, 1 << 53, 0x7fff_ffff_ffff_ffff, 1 << 63, u64::MAX - 1, u64::MAX];
/// JSON values that readers of JSON treat differently.
const ODD_VALUES: [&str; 14] = [
    "null",
    "true",
    "false",
    "-1",
    "-0",
    "1.0",
    "1e2",
    "1e999",
    "18446744073709551616",
    r#""\ud83d""#,
    r#""""#,
    "[]",
    "{}",
    "[[{}]]",
];

/// Returns the generator of byte strings.
pub(crate) fn inputs() -> impl ValueGenerator<Output = Vec<u8>> {
    produce_with::<Vec<u8>>().len(0..=LENGTH_MAX)
}

/// Unread part of a byte string. After its end, all values are zero.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Creates an input with all bytes.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns true if all bytes have been read.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the next byte.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Returns the next `count` bytes, or fewer at the end.
    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Returns a number below `end`, which is at most 65,536.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let high = if end > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (high | usize::from(self.byte())) % end.max(1)
    }

    /// Returns true or false.
    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Returns one of `values`, which are not empty.
    pub(crate) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Returns any number. Extreme, small and arbitrary numbers are equally frequent.
    pub(crate) fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.pick(&EXTREMES),
            1 => u64::from(self.byte()),
            2 => self.pick(&EXTREMES).wrapping_add(u64::from(self.byte())).wrapping_sub(128),
            _ => self.bytes(8).iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
        }
    }

    /// Returns a text that consists mostly of `words`, and otherwise of numbers and arbitrary bytes.
    pub(crate) fn bytes_of(&mut self, words: &[&str]) -> Vec<u8> {
        let mut text = Vec::new();
        for _ in 0..self.below(PIECES_MAX) {
            match self.below(10) {
                0 => text.push(self.byte()),
                1 => text.extend(self.number().to_string().into_bytes()),
                2 => text.extend(self.character().to_string().into_bytes()),
                _ => text.extend(self.pick(words).bytes()),
            }
        }
        text
    }

    /// As [`bytes_of`](Self::bytes_of), as UTF-8.
    pub(crate) fn text_of(&mut self, words: &[&str]) -> String {
        String::from_utf8_lossy(&self.bytes_of(words)).into_owned()
    }

    /// Returns a character, which may be outside ASCII.
    fn character(&mut self) -> char {
        self.pick(&[
            ' ',
            '\0',
            '\n',
            '"',
            '\\',
            '%',
            '\u{e9}',
            '\u{17f}',
            '\u{212a}',
            '\u{fffd}',
            '\u{1f600}',
        ])
    }

    /// Returns bytes that are JSON in most cases: an object of these keys and texts, with any other values among them.
    pub(crate) fn json_of(&mut self, keys: &[&str], texts: &[&str]) -> Vec<u8> {
        let mut document = Vec::new();
        self.object(keys, texts, 0, &mut document);
        // Some documents are damaged.
        if self.below(8) == 7 && !document.is_empty() {
            let at = self.below(document.len().min(65_536));
            document[at] = self.byte();
        }
        document
    }

    fn object(&mut self, keys: &[&str], texts: &[&str], depth: usize, into: &mut Vec<u8>) {
        into.push(b'{');
        for member in 0..self.below(9) {
            if member > 0 {
                into.push(b',');
            }
            into.push(b'"');
            into.extend(self.pick(keys).bytes());
            into.extend(b"\":");
            self.value(keys, texts, depth, into);
        }
        into.push(b'}');
    }

    fn value(&mut self, keys: &[&str], texts: &[&str], depth: usize, into: &mut Vec<u8>) {
        match self.below(10) {
            0 => into.extend(self.pick(&ODD_VALUES).bytes()),
            1 => into.extend(self.number().to_string().into_bytes()),
            2 | 3 if depth < DEPTH_MAX => self.object(keys, texts, depth + 1, into),
            4..=6 if depth < DEPTH_MAX => {
                into.push(b'[');
                for element in 0..self.below(5) {
                    if element > 0 {
                        into.extend(b", ");
                    }
                    self.object(keys, texts, depth + 1, into);
                }
                into.push(b']');
            }
            7 if self.below(8) == 7 => {
                let depth = self.below(300);
                into.extend("[".repeat(depth).bytes());
                into.extend("]".repeat(depth).bytes());
            }
            _ => {
                into.push(b'"');
                into.extend(self.pick(texts).bytes());
                into.push(b'"');
            }
        }
    }
}
