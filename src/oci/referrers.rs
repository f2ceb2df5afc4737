//! Lists of referrers (distribution-spec, "Listing Referrers"): descriptors of the manifests that refer to one manifest.
//!
//! A list is a view that is merged from several sources. It is sorted by digest, so equal entries always give the same
//! bytes. Descriptors keep all members that they were received with.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::content::media::{ManifestKind, MediaType, OCI_INDEX};
use super::digest::{Digest, DigestError};
use super::json;

/// Entry of a list: the descriptor of a manifest or index that refers to another manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Referrer {
    digest: Box<str>,
    artifact_type: Option<Box<str>>,
    size: Option<u64>,
    /// JSON object, as it was received.
    descriptor: Box<str>,
}

impl Referrer {
    /// Creates the descriptor of a cached manifest: media type, digest, size, annotations, and `artifactType` (or the media
    /// type of the config). Annotations that are no texts are left out: clients would refuse the whole list. `None` if the
    /// manifest is not a JSON object.
    pub fn describe(digest: &Digest, media_type: &MediaType, body: &[u8]) -> Option<Self> {
        let text = json::text(body);
        let (mut own_type, mut config_type, mut annotations) = (None, None, None);
        json::members(&text, |key, value| match key {
            "artifactType" => own_type = json::string(value),
            "config" => config_type = json::text_member(value, "mediaType"),
            "annotations" => annotations = texts(value),
            _ => {}
        })
        .ok()?;
        let is_index = media_type.kind() == Some(ManifestKind::Index);
        let named = own_type.filter(|text| !text.is_empty());
        let artifact_type = named
            .or(config_type.filter(|_| !is_index))
            .filter(|text| !text.is_empty())
            .map(String::into_boxed_str);
        let mut descriptor = Map::new();
        descriptor.insert("mediaType".to_owned(), media_type.as_str().into());
        descriptor.insert("digest".to_owned(), digest.to_string().into());
        descriptor.insert("size".to_owned(), body.len().into());
        if let Some(artifact_type) = &artifact_type {
            descriptor.insert("artifactType".to_owned(), (**artifact_type).into());
        }
        if let Some(annotations) = annotations {
            descriptor.insert("annotations".to_owned(), annotations.into());
        }
        Some(Self {
            digest: digest.to_string().into(),
            artifact_type,
            size: Some(body.len() as u64),
            descriptor: Value::Object(descriptor).to_string().into(),
        })
    }

    /// Parses an entry of an upstream's list. `None` if no client could fetch it, or if two clients could read different
    /// digests.
    fn read(descriptor: &RawValue) -> Option<Self> {
        let (mut digest, mut media_type, mut size, mut artifact_type) = (None, None, None, None);
        let mut digests = 0;
        json::members(descriptor.get(), |key, value| {
            match key {
                "digest" => digest = json::string(value),
                "mediaType" => media_type = json::string(value),
                "size" => size = json::unsigned(value),
                "artifactType" => artifact_type = json::string(value),
                _ => {}
            }
            digests += usize::from(json::equal_in_go(key, "digest"));
        })
        .ok()?;
        let (digest, _) = (digest?, media_type?);
        // The client may support an algorithm that larder does not, and can contact the registry itself.
        let known = matches!(digest.parse::<Digest>(), Ok(_) | Err(DigestError::Unsupported(_)));
        (known && digests == 1 && size.is_some()).then(|| Self {
            digest: digest.into(),
            artifact_type: artifact_type.map(String::into_boxed_str),
            size,
            descriptor: descriptor.get().into(),
        })
    }

    /// Returns the artifact type given in the list.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// Returns the digest. Its algorithm may be unsupported.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the size in bytes given in the list.
    pub fn size(&self) -> Option<u64> {
        self.size
    }
}

/// Returns the members of an object that are texts. `None` if the value is no object.
fn texts(object: &RawValue) -> Option<Map<String, Value>> {
    let mut found = Map::new();
    json::members(object.get(), |key, value| {
        if let Some(text) = json::string(value) {
            found.insert(key.to_owned(), text.into());
        }
    })
    .ok()?;
    Some(found)
}

/// List of referrers, sorted by digest, without duplicates.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Referrers(BTreeMap<Box<str>, Referrer>);

/// Page of a list, as an image index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// JSON document.
    pub body: Vec<u8>,
    /// Last digest of this page, if there are more pages.
    pub next: Option<String>,
}

impl Referrers {
    /// Parses an image index. `None` if the document is not an object, has no list of manifests, or has keys of an image.
    pub fn read(body: &[u8]) -> Option<Self> {
        let text = json::text(body);
        let (mut typed, mut image, mut manifests) = (true, false, None);
        json::members(&text, |key, value| match key {
            "mediaType" => typed = json::string(value).is_some_and(|named| named == OCI_INDEX),
            "config" | "layers" | "fsLayers" => image = true,
            "manifests" => manifests = Some(value),
            _ => {}
        })
        .ok()?;
        // Go encodes an empty list as null by default.
        let manifests = manifests.filter(|list| json::is_list(list) || json::is_null(list))?;
        if !typed || image {
            return None;
        }
        let mut list = Self::default();
        json::elements(manifests, |entry| list.extend(Referrer::read(entry)));
        Some(list)
    }

    /// Returns true if the list contains this digest.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.contains_key(digest.to_string().as_str())
    }

    /// Returns all entries, sorted by digest.
    pub fn iter(&self) -> impl Iterator<Item = &Referrer> {
        self.0.values()
    }

    /// Returns true if the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes entries of other artifact types.
    pub fn retain(&mut self, artifact_type: &str) {
        self.0.retain(|_, referrer| referrer.artifact_type() == Some(artifact_type));
    }

    /// Returns the whole list as an image index.
    pub fn to_index(&self) -> Vec<u8> {
        self.page(None, usize::MAX).body
    }

    /// Returns the entries after `last`, as many as fit into a document of `most` bytes, but at least one.
    pub fn page(&self, last: Option<&str>, most: usize) -> Page {
        let mut body = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":["#).into_bytes();
        let mut written: Option<&str> = None;
        let mut next = None;
        for (digest, referrer) in &self.0 {
            if last.is_some_and(|last| **digest <= *last) {
                continue;
            }
            let descriptor = &referrer.descriptor;
            // One comma before the entry and two brackets after it.
            if let Some(written) = written
                && body.len().saturating_add(descriptor.len() + 3) > most
            {
                next = Some(written.to_owned());
                break;
            }
            if written.is_some() {
                body.push(b',');
            }
            body.extend_from_slice(descriptor.as_bytes());
            written = Some(&**digest);
        }
        body.extend_from_slice(b"]}");
        Page { body, next }
    }
}

impl Extend<Referrer> for Referrers {
    /// Adds the entries whose digests are not in the list yet.
    fn extend<T: IntoIterator<Item = Referrer>>(&mut self, referrers: T) {
        for referrer in referrers {
            self.0.entry(referrer.digest.clone()).or_insert(referrer);
        }
    }
}

impl IntoIterator for Referrers {
    type Item = Referrer;
    type IntoIter = std::collections::btree_map::IntoValues<Box<str>, Referrer>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_values()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oci::Algorithm;
    use crate::oci::media::OCI_MANIFEST;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn list(entries: &[Value]) -> Vec<u8> {
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries }).to_string().into_bytes()
    }

    fn entry(text: &str, artifact_type: &str) -> Value {
        json!({
            "mediaType": OCI_MANIFEST, "digest": digest(text).to_string(), "size": text.len(),
            "artifactType": artifact_type, "annotations": { "made": text }, "x-own": [1, null],
        })
    }

    #[test]
    fn equal_entries_give_equal_bytes() {
        let (a, b) = (entry("a", "t"), entry("b", "t"));
        let one = Referrers::read(&list(&[a.clone(), b.clone(), a.clone()])).expect("an index");
        let mut other = Referrers::read(&list(&[b])).expect("an index");
        other.extend(Referrers::read(&list(std::slice::from_ref(&a))).expect("an index"));
        assert_eq!(one.to_index(), other.to_index());
        assert_eq!(Referrers::read(&one.to_index()), Some(one.clone()));
        let document: Value = serde_json::from_slice(&one.to_index()).expect("JSON");
        assert_eq!(document["manifests"].as_array().map(Vec::len), Some(2));
        assert!(document["manifests"].as_array().is_some_and(|all| all.contains(&a)), "with all its members");
        assert_eq!(document["schemaVersion"], 2);
    }

    #[test]
    fn empty_list_is_valid() {
        let empty: Value = serde_json::from_slice(&Referrers::default().to_index()).expect("JSON");
        assert_eq!(empty, json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }));
        for text in [r#"{"manifests":null}"#, r#"{"schemaVersion":2,"manifests":[]}"#] {
            assert_eq!(Referrers::read(text.as_bytes()), Some(Referrers::default()), "{text}");
        }
    }

    #[test]
    fn read_rejects_documents_that_are_not_an_index() {
        let manifest = format!(r#"{{"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
        for text in
            ["", "[]", "{}", "<html>", r#"{"manifests":{}}"#, r#"{"manifests":[],"layers":[]}"#, &manifest]
        {
            assert_eq!(Referrers::read(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn read_skips_entries_that_cannot_be_fetched() {
        let bad = [
            json!("text"),
            json!({ "mediaType": OCI_MANIFEST, "size": 1 }),
            json!({ "mediaType": OCI_MANIFEST, "size": 1, "digest": "sha256:short" }),
            json!({ "mediaType": OCI_MANIFEST, "size": -1, "digest": digest("a").to_string() }),
            json!({ "size": 1, "digest": digest("a").to_string() }),
            // Go reads the second digest.
            json!({ "mediaType": OCI_MANIFEST, "size": 1, "digest": digest("a").to_string(), "Digest": "sha256:x" }),
        ];
        assert_eq!(Referrers::read(&list(&bad)), Some(Referrers::default()));
        let foreign = json!({ "mediaType": OCI_MANIFEST, "size": 1, "digest": "blake3:00ff" });
        assert!(!Referrers::read(&list(&[foreign])).expect("an index").is_empty());
    }

    #[test]
    fn odd_members_spoil_no_list() {
        let deep = format!("{}{}", "[".repeat(130), "]".repeat(130));
        let entry = format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":1,"x":{deep},"y":1e999,"annotations":{{"a":"\ud83d"}}}}"#,
            digest("a")
        );
        let found = Referrers::read(format!(r#"{{"z":{deep},"manifests":[{entry}]}}"#).as_bytes());
        let found = found.expect("an index");
        assert!(String::from_utf8(found.to_index()).expect("UTF-8").contains(&entry));
        let image = MediaType::new(OCI_MANIFEST).expect("a type");
        let body = b"{\"annotations\":{\"a\":\"M\xfcller\",\"b\":7,\"c\":\"\\ud83d\"}}";
        let described = Referrer::describe(&digest("x"), &image, body).expect("an object");
        let described: Value = serde_json::from_str(&described.descriptor).expect("JSON");
        assert_eq!(described["annotations"]["a"], "M\u{fffd}ller");
        assert_eq!(described["annotations"].as_object().map(Map::len), Some(2));
    }

    #[test]
    fn retain_keeps_one_artifact_type() {
        let mut found = Referrers::read(&list(&[entry("a", "t"), entry("b", "u")])).expect("an index");
        found.retain("u");
        assert!(found.contains(&digest("b")) && !found.contains(&digest("a")));
        found.retain("none");
        assert!(found.is_empty());
    }

    #[test]
    fn pages_are_complete_and_limited_in_size() {
        let entries: Vec<_> = (0..100).map(|n| entry(&n.to_string(), "t")).collect();
        let all = Referrers::read(&list(&entries)).expect("an index");
        for most in [0, 700, 1000, 5000] {
            let (mut whole, mut last, mut pages) = (Referrers::default(), None, 0);
            loop {
                let page = all.page(last.as_deref(), most);
                let part = Referrers::read(&page.body).expect("an index");
                assert!(page.body.len() <= most || part.0.len() == 1, "{} of {most}", page.body.len());
                assert!(part.0.keys().all(|digest| !whole.0.contains_key(digest)));
                whole.extend(part);
                pages += 1;
                last = page.next;
                if last.is_none() {
                    break;
                }
            }
            assert_eq!(whole, all, "{most}");
            assert!(pages > 1, "{most}");
        }
        // A list that fits exactly is one page.
        let exact = all.to_index().len();
        assert_eq!(all.page(None, exact).next, None);
        assert!(all.page(None, exact - 1).next.is_some());
        assert_eq!(all.page(Some("z"), exact).body, Referrers::default().to_index());
    }

    #[test]
    fn describe_matches_the_descriptor_of_a_registry() {
        let image = MediaType::new(OCI_MANIFEST).expect("a type");
        let index = MediaType::new(OCI_INDEX).expect("a type");
        let describe = |media_type: &MediaType, value: Value| {
            let body = value.to_string();
            let found = Referrer::describe(&digest("x"), media_type, body.as_bytes()).expect("an object");
            let descriptor: Value = serde_json::from_str(&found.descriptor).expect("JSON");
            assert_eq!(descriptor["size"], body.len());
            assert_eq!(descriptor["mediaType"], media_type.as_str());
            (found.artifact_type().map(str::to_owned), descriptor.get("annotations").cloned())
        };
        let config = json!({ "mediaType": "application/vnd.c" });
        let of_type = Some("application/vnd.a".to_owned());
        let of_config = Some("application/vnd.c".to_owned());
        let typed =
            json!({ "artifactType": "application/vnd.a", "config": config, "annotations": { "k": "v" } });
        assert_eq!(describe(&image, typed.clone()), (of_type.clone(), Some(json!({ "k": "v" }))));
        assert_eq!(describe(&index, typed), (of_type, Some(json!({ "k": "v" }))));
        assert_eq!(describe(&image, json!({ "config": config, "artifactType": "" })), (of_config, None));
        assert_eq!(describe(&index, json!({ "config": config })), (None, None));
        assert_eq!(Referrer::describe(&digest("x"), &image, b"[]"), None);
    }
}
