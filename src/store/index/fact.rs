//! The values of facts: small records behind a version byte.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::oci::Digest;

use crate::store::error::StoreError;

/// A record that knows its version. A new version gets a new number and a branch in `decode`.
pub(in crate::store) trait Fact: Serialize + DeserializeOwned {
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        // Serialising plain data into a growing vector cannot fail; if it ever did, the empty value that results
        // does not decode and reads as damage.
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

/// What a tag stands for, or where a list of referrers is, and since when that is known. Times are milliseconds since
/// 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagFact {
    /// The manifest.
    #[serde(with = "digest")]
    pub digest: Digest,
    /// When the upstream last confirmed it.
    pub checked_at: Timestamp,
    /// When it last moved.
    pub moved_at: Timestamp,
}

/// A repository's right to a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFact {
    /// The size that a descriptor promised, or that the verified content has. Not what an upstream says in a HEAD:
    /// content is held against this.
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
pub(in crate::store) struct DraftFact {
    /// What lies in the place of content, with no fact that points at it, must go before anything else: it is known to
    /// be wrong, or a part of what was to be copied there. A draft of the same digest is not meant.
    pub(in crate::store) condemned: bool,
}

/// When content was last asked for, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct AccessFact {
    pub(in crate::store) last: Timestamp,
}

/// When content was last held against its digest, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct VerifiedFact {
    pub(in crate::store) at: Timestamp,
}

impl Fact for TagFact {}
impl Fact for LinkFact {}
impl Fact for ManifestFact {}
impl Fact for BlobFact {}
impl Fact for DraftFact {}
impl Fact for AccessFact {}
impl Fact for VerifiedFact {}

mod digest {
    //! A digest inside a record: algorithm byte and raw bytes.

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::oci::{Algorithm, Digest};

    pub(in crate::store) fn serialize<S: Serializer>(
        digest: &Digest,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        (digest.algorithm() == Algorithm::Sha512, digest.as_bytes()).serialize(serializer)
    }

    pub(in crate::store) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Digest, D::Error> {
        let (long, raw) = <(bool, Vec<u8>)>::deserialize(deserializer)?;
        let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
        Digest::from_bytes(algorithm, &raw)
            .ok_or_else(|| serde::de::Error::custom("a digest of the wrong length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn records_come_back_as_they_went() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let fact = TagFact {
                digest: Digest::of(algorithm, b"x"),
                checked_at: Timestamp::from_millis(7),
                moved_at: Timestamp::from_millis(u64::MAX),
            };
            assert_eq!(TagFact::decode(&fact.encode()).expect("a fact"), fact);
        }
    }

    #[test]
    fn strange_bytes_are_errors() {
        assert!(TagFact::decode(&[]).is_err());
        assert!(TagFact::decode(&[9, 1, 2]).is_err());
        assert!(TagFact::decode(&[1]).is_err());
    }
}
