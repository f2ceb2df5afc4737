//! Tolerant reading of JSON documents that others wrote, without a tree of values.
//!
//! A document is read level by level: the members of an object and the elements of a list are slices of its text. Members
//! that nobody asks for are skipped without recursion and without memory. So a number beyond a double, a lone surrogate or
//! deep nesting harms only the member that contains it, as with the JSON decoder of Go.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Returns a document as text. Bytes that are not UTF-8 become U+FFFD, as in Go.
pub(super) fn text(document: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(document)
}

/// Calls `each` for the members of an object, in their order. Fails if the text is no object.
pub(super) fn members<'a>(
    object: &'a str,
    each: impl FnMut(&str, &'a RawValue),
) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(object);
    deserializer.deserialize_map(Members(each))?;
    deserializer.end()
}

/// Calls `each` for the elements of a list, in their order. A value that is no list has none.
pub(super) fn elements<'a>(list: &'a RawValue, each: impl FnMut(&'a RawValue)) {
    if is_list(list) {
        let mut deserializer = serde_json::Deserializer::from_str(list.get());
        // The syntax was checked when the list was skipped as a member.
        let _ = deserializer.deserialize_seq(Elements(each));
    }
}

/// Returns a text. `None` for a value of another type. Lone surrogates become U+FFFD.
pub(super) fn string(value: &RawValue) -> Option<String> {
    if !value.get().starts_with('"') {
        return None;
    }
    let mut deserializer = serde_json::Deserializer::from_str(value.get());
    TolerantText.deserialize(&mut deserializer).ok()
}

/// Returns the text of one member of an object. `None` if the value is no object, or the member no text.
pub(super) fn text_member(object: &RawValue, wanted: &str) -> Option<String> {
    let mut found = None;
    members(object.get(), |key, value| {
        if key == wanted {
            found = string(value);
        }
    })
    .ok()?;
    found
}

/// Returns a number that is an unsigned integer.
pub(super) fn unsigned(value: &RawValue) -> Option<u64> {
    serde_json::from_str(value.get()).ok()
}

/// Returns true for `null`.
pub(super) fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// Returns true for a list.
pub(super) fn is_list(value: &RawValue) -> bool {
    value.get().starts_with('[')
}

/// Returns true for a list without elements.
pub(super) fn is_empty_list(value: &RawValue) -> bool {
    value.get().strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with(']'))
}

/// Returns true if Go's JSON decoder treats both keys as equal. It uses Unicode case folding, where two characters outside
/// ASCII fold to ASCII letters.
pub(super) fn equal_in_go(key: &str, known: &str) -> bool {
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(folded).eq(known.chars().map(folded))
}

struct Members<F>(F);

impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(TolerantText)? {
            (self.0)(&key, map.next_value()?);
        }
        Ok(())
    }
}

struct Elements<F>(F);

impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Elements<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element()? {
            (self.0)(element);
        }
        Ok(())
    }
}

/// Text that may contain lone surrogates.
struct TolerantText;

impl<'de> DeserializeSeed<'de> for TolerantText {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        // serde_json checks surrogates in texts, and not in bytes.
        deserializer.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for TolerantText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<String, E> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<String, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Err(A::Error::custom("a list is no text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(object: &str) -> Option<Vec<(String, String)>> {
        let mut found = Vec::new();
        members(object, |key, value| found.push((key.to_owned(), value.get().to_owned()))).ok()?;
        Some(found)
    }

    #[test]
    fn members_are_slices_of_the_text() {
        let found = read(r#" {"a": [1, {"b":2}], "a":1e999 , "c":"\ud83d"} "#).expect("an object");
        let found: Vec<_> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, [("a", r#"[1, {"b":2}]"#), ("a", "1e999"), ("c", r#""\ud83d""#)]);
        for wrong in ["", "[]", "7", "null", r#"{"a"}"#, r#"{"a":1} x"#, r#"{"a":[}"#, "{\"a\":\"\n\"}"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn depth_is_unlimited() {
        let deep = format!(r#"{{"x":{}{},"y":2}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(read(&deep).map(|found| found.len()), Some(2));
        let open = format!(r#"{{"x":{}"#, "[{\"a\":".repeat(1_000_000));
        assert_eq!(read(&open), None);
    }

    #[test]
    fn scalars_are_read_by_type() {
        let value = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        assert_eq!(string(&value(r#""a\u0062\n""#)).as_deref(), Some("ab\n"));
        assert!(string(&value(r#""\ud83d!""#)).is_some_and(|text| text.ends_with("\u{fffd}!")));
        for other in ["7", "null", "[34]", "{}", "true"] {
            assert_eq!(string(&value(other)), None, "{other}");
        }
        assert_eq!(unsigned(&value("7")), Some(7));
        for other in ["-1", "1.5", "1e999", "\"7\"", "18446744073709551616"] {
            assert_eq!(unsigned(&value(other)), None, "{other}");
        }
        assert!(is_empty_list(&value("[ \n ]")) && !is_empty_list(&value("[[]]")) && !is_list(&value("{}")));
        assert!(is_null(&value("null")));
    }

    #[test]
    fn text_replaces_bytes_that_are_not_utf_8() {
        assert_eq!(text(b"M\xfcller"), "M\u{fffd}ller");
    }
}
