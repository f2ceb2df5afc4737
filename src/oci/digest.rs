//! Content digests (image-spec, descriptor.md "Digests"): parsing, printing and computing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// A digest algorithm that larder can verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256; every conforming registry offers it.
    Sha256,
    /// SHA-512; optional in the image-spec.
    Sha512,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Returns the number of the algorithm in stored keys and facts. A number is never reused.
    pub const fn code(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }

    /// Returns the algorithm with a number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.code() == code)
    }

    /// The name as it stands before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the raw digest, in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// Why a string is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// It does not match `algorithm ":" encoded`, or the encoded part does not fit the algorithm.
    #[error("`{0}` is not a digest: expected sha256:<64 lower-case hex digits> or sha512:<128>")]
    Syntax(String),
    /// Well formed, but of an algorithm that cannot be verified here.
    #[error("digest algorithm `{0}` is not supported: only sha256 and sha512 can be verified")]
    Unsupported(String),
}

/// A verified-by-construction digest: `sha256:…` or `sha512:…`, lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// A SHA-256 value.
    Sha256([u8; 32]),
    /// A SHA-512 value.
    Sha512([u8; 64]),
}

impl Digest {
    /// The digest of `content` under `algorithm`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The algorithm this value was computed with.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw bytes, 32 or 64 of them.
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(raw) => raw,
            Self::Sha512(raw) => raw,
        }
    }

    /// Rebuilds a digest from its raw bytes.
    pub fn from_bytes(algorithm: Algorithm, raw: &[u8]) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => raw.try_into().ok().map(Self::Sha256),
            Algorithm::Sha512 => raw.try_into().ok().map(Self::Sha512),
        }
    }

    /// The part after the colon.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let raw = self.as_bytes();
        let mut out = String::with_capacity(raw.len() * 2);
        for byte in raw {
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        out
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.hex())
    }
}

impl utoipa::PartialSchema for Digest {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .pattern(Some("^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$"))
            .build()
            .into()
    }
}

impl utoipa::ToSchema for Digest {}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    /// Parses `algorithm ":" encoded`; upper-case hex is refused (image-spec: "MUST NOT").
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let syntax = || DigestError::Syntax(text.chars().take(200).collect());
        let (algorithm, encoded) = text.split_once(':').ok_or_else(syntax)?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other if is_algorithm(other) && is_encoded(encoded) => {
                return Err(DigestError::Unsupported(other.chars().take(64).collect()));
            }
            _ => return Err(syntax()),
        };
        let hex = encoded.as_bytes();
        if hex.len() != algorithm.size() * 2 {
            return Err(syntax());
        }
        let mut raw = [0_u8; 64];
        for (byte, pair) in raw.iter_mut().zip(hex.chunks_exact(2)) {
            let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
                return Err(syntax());
            };
            *byte = high << 4 | low;
        }
        Self::from_bytes(algorithm, &raw[..algorithm.size()]).ok_or_else(syntax)
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// `algorithm-component *[algorithm-separator algorithm-component]` of the image-spec grammar.
fn is_algorithm(text: &str) -> bool {
    text.split(['+', '.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

fn is_encoded(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
}

/// A running digest.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// An empty hasher for `algorithm`.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds `bytes` at the end of what was hashed so far.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            State::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn prints_what_it_parsed() {
        let digest: Digest = EMPTY.parse().expect("a digest");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest, Digest::of(Algorithm::Sha256, b""));
        let long = Digest::of(Algorithm::Sha512, b"x");
        assert_eq!(long.to_string().parse::<Digest>().expect("a digest"), long);
    }

    #[test]
    fn refuses_upper_case_short_and_foreign() {
        assert!(matches!(EMPTY.to_uppercase().parse::<Digest>(), Err(DigestError::Syntax(_))));
        let upper = EMPTY.replace('e', "E");
        assert!(matches!(upper.parse::<Digest>(), Err(DigestError::Syntax(_))));
        assert!(matches!("sha256:baddigeststring".parse::<Digest>(), Err(DigestError::Syntax(_))));
        assert!(matches!("sha256".parse::<Digest>(), Err(DigestError::Syntax(_))));
        assert!(matches!("blake3:abc=_-".parse::<Digest>(), Err(DigestError::Unsupported(_))));
        assert!(matches!("md5+:abc".parse::<Digest>(), Err(DigestError::Syntax(_))));
    }
}
