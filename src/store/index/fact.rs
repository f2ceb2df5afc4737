//! Values of facts: small records after a version byte.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::oci::Digest;

use crate::store::error::StoreError;

/// Record with a version. A new version gets a new number and a branch in `decode`.
pub(in crate::store) trait Fact: Serialize + DeserializeOwned {
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        // Plain data in a growing vector cannot fail. An empty value would not decode.
        postcard::to_extend(self, vec![Self::VERSION]).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        match bytes.split_first() {
            Some((&version, rest)) if version == Self::VERSION => {
                postcard::from_bytes(rest).map_err(|error| StoreError::Fact(error.to_string()))
            }
            Some((version, _)) => Err(StoreError::Fact(format!("version {version} is not known"))),
            None => Err(StoreError::Fact("it is empty".to_owned())),
        }
    }
}

/// Target of a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagFact {
    /// The manifest that the pointer points at.
    #[serde(with = "digest")]
    pub digest: Digest,
    /// Time of the last confirmation by the upstream.
    pub checked_at: Timestamp,
    /// Time at which the pointer last changed.
    pub moved_at: Timestamp,
}

/// Absence of a pointer that belongs to one manifest, such as its list of referrers: the upstream has answered that there is
/// none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbsenceFact {
    /// Time of the last confirmation by the upstream.
    pub checked_at: Timestamp,
}

/// Link from a repository to a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFact {
    /// Size in a descriptor, or of the verified content. A descriptor may be wrong, so this is a hint.
    pub size: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct ManifestFact {
    pub(in crate::store) media_type: String,
    pub(in crate::store) size: u64,
    pub(in crate::store) stored_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct BlobFact {
    pub(in crate::store) size: u64,
    pub(in crate::store) stored_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct LeftoverFact {
    /// True if bytes of content without a fact must be removed before anything else: they are wrong, or an incomplete copy.
    /// This does not concern a draft of the same digest.
    pub(in crate::store) must_remove: bool,
}

/// Last access to content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct AccessFact {
    pub(in crate::store) last: Timestamp,
}

/// Last verification of content against its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct VerifiedFact {
    pub(in crate::store) at: Timestamp,
}

impl Fact for TagFact {}
impl Fact for AbsenceFact {}
impl Fact for LinkFact {}
impl Fact for ManifestFact {}
impl Fact for BlobFact {}
impl Fact for LeftoverFact {}
impl Fact for AccessFact {}
impl Fact for VerifiedFact {}

mod digest {
    //! Digest inside a record: algorithm code and raw bytes.

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::oci::{Algorithm, Digest};

    /// Difference to [`Algorithm::code`]: the first version of the record had a boolean here, true for SHA-512.
    const OFFSET: u8 = 1;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        (digest.algorithm().code() - OFFSET, digest.as_bytes()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let (code, raw) = <(u8, Vec<u8>)>::deserialize(deserializer)?;
        let algorithm = code.checked_add(OFFSET).and_then(Algorithm::from_code);
        algorithm
            .and_then(|algorithm| Digest::from_bytes(algorithm, &raw))
            .ok_or_else(|| serde::de::Error::custom("unknown algorithm, or a digest of the wrong length"))
    }
}

/// Decodes a fact. A fact that cannot be decoded counts as missing, which costs a request to the upstream.
pub(in crate::store) fn readable<F: Fact>(bytes: &[u8]) -> Option<F> {
    F::decode(bytes)
        .inspect_err(|error| tracing::error!(%error, "ignored a fact that cannot be decoded"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn record_survives_encoding() {
        for algorithm in Algorithm::ALL.iter().copied() {
            let fact = TagFact {
                digest: Digest::of(algorithm, b"x"),
                checked_at: Timestamp::from_millis(7),
                moved_at: Timestamp::from_millis(u64::MAX),
            };
            assert_eq!(TagFact::decode(&fact.encode()).expect("a fact"), fact);
            // The byte that earlier versions read as a boolean.
            assert_eq!(fact.encode()[1], u8::from(algorithm == Algorithm::Sha512));
        }
    }

    #[test]
    fn unknown_bytes_are_errors() {
        assert!(TagFact::decode(&[]).is_err());
        assert!(TagFact::decode(&[9, 1, 2]).is_err());
        assert!(TagFact::decode(&[1]).is_err());
    }
}
