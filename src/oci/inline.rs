//! Content inside of descriptors (image-spec, "Descriptor", member `data`).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::value::RawValue;

use super::digest::Digest;
use super::json;

/// Largest content of a descriptor that is read.
const DATA_MAX: usize = 64 << 10;
/// Limit on descriptors with content that are read in one manifest.
const COUNT_MAX: usize = 16;

/// Returns the blobs that the descriptors of a manifest contain. Content that does not match its digest or size is left out, and
/// so is content of more than 64 KiB.
pub fn inline_blobs(manifest: &[u8]) -> Vec<(Digest, Bytes)> {
    let text = json::text(manifest);
    let mut found = Vec::new();
    // Few manifests have such content.
    if !text.contains("\"data\"") {
        return found;
    }
    let mut add = |value: &RawValue| {
        if found.len() < COUNT_MAX {
            found.extend(inline_blob(value));
        }
    };
    // A document that is no object was refused before.
    let _ = json::members(&text, |key, value| match key {
        "config" => add(value),
        "layers" | "blobs" => json::elements(value, &mut add),
        _ => {}
    });
    found
}

fn inline_blob(descriptor: &RawValue) -> Option<(Digest, Bytes)> {
    let (mut digest, mut size, mut data) = (None, None, None);
    json::members(descriptor.get(), |key, value| match key {
        "digest" => digest = json::string(value).and_then(|text| text.parse::<Digest>().ok()),
        "size" => size = json::unsigned(value),
        "data" if value.get().len() <= DATA_MAX / 3 * 4 + 8 => data = json::string(value),
        _ => {}
    })
    .ok()?;
    let (digest, data) = (digest?, BASE64_STANDARD.decode(data?).ok()?);
    let is_right = size == Some(data.len() as u64) && Digest::of(digest.algorithm(), &data) == digest;
    is_right.then(|| (digest, data.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::Algorithm;

    fn descriptor(content: &[u8]) -> Value {
        let digest = Digest::of(Algorithm::Sha256, content);
        json!({ "digest": digest, "size": content.len(), "data": BASE64_STANDARD.encode(content) })
    }

    #[test]
    fn only_right_content_is_found() {
        let (config, layer) = (descriptor(b"{}"), descriptor(&vec![7; DATA_MAX]));
        let mut wrong =
            [descriptor(b"1"), descriptor(b"2"), descriptor(b"3"), descriptor(&vec![1; DATA_MAX + 9])];
        wrong[0]["size"] = json!(2);
        wrong[1]["data"] = json!("Mw==");
        wrong[2]["data"] = json!("M");
        let mut layers = vec![layer];
        layers.extend(wrong);
        let manifest = json!({ "config": config, "layers": layers, "subject": descriptor(b"x") });
        let found = inline_blobs(manifest.to_string().as_bytes());
        let sizes: Vec<_> = found.iter().map(|(_, data)| data.len()).collect();
        assert_eq!(sizes, [2, DATA_MAX]);
        assert!(found.iter().all(|(digest, data)| Digest::of(digest.algorithm(), data) == *digest));
    }

    #[test]
    fn number_of_blobs_is_limited() {
        let layers: Vec<_> = (0..2 * COUNT_MAX).map(|n| descriptor(n.to_string().as_bytes())).collect();
        assert_eq!(inline_blobs(json!({ "layers": layers }).to_string().as_bytes()).len(), COUNT_MAX);
        assert!(inline_blobs(b"[\"data\"]").is_empty());
    }
}
