//! Content digests (image-spec, descriptor.md, section "Digests"): parsing, formatting and computing.
//!
//! A new algorithm needs one line in the table of algorithms below.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// Declares the digest algorithms. The code is part of the format on disk and must not change.
macro_rules! algorithms {
    ($($(#[$doc:meta])* $variant:ident: $name:literal, code $code:literal, $hasher:ty;)+) => {
        /// Digest algorithm that can be verified.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Algorithm {
            $($(#[$doc])* $variant,)+
        }

        impl Algorithm {
            /// All algorithms.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the name, which is the part of a digest before the colon.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Returns the code of the algorithm in the format on disk.
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)+
                }
            }

            /// Returns the length of the raw digest in bytes.
            pub fn size(self) -> usize {
                match self {
                    $(Self::$variant => <$hasher>::output_size(),)+
                }
            }
        }

        #[derive(Clone, Debug)]
        enum HasherState {
            $($variant($hasher),)+
        }

        impl Hasher {
            /// Creates a hasher without content.
            pub fn new(algorithm: Algorithm) -> Self {
                Self(match algorithm {
                    $(Algorithm::$variant => HasherState::$variant(<$hasher>::new()),)+
                })
            }

            /// Adds `bytes` to the content.
            pub fn update(&mut self, bytes: &[u8]) {
                match &mut self.0 {
                    $(HasherState::$variant(hasher) => hasher.update(bytes),)+
                }
            }

            /// Returns the digest of the content.
            pub fn finish(self) -> Digest {
                match self.0 {
                    $(HasherState::$variant(hasher) => Digest::new(Algorithm::$variant, &hasher.finalize()),)+
                }
            }
        }
    };
}

algorithms! {
    /// SHA-256, supported by every conforming registry.
    Sha256: "sha256", code 1, sha2::Sha256;
    /// SHA-512, optional in the image-spec.
    Sha512: "sha512", code 2, sha2::Sha512;
}

impl Algorithm {
    /// Returns the algorithm with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|algorithm| algorithm.as_str() == name)
    }

    /// Returns the algorithm with this code in the format on disk.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|algorithm| algorithm.code() == code)
    }
}

/// Error of parsing a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The text does not match `algorithm ":" encoded`, or the encoded part has the wrong length.
    #[error("`{0}` is not a digest: expected sha256:<64 lower-case hex digits> or sha512:<128>")]
    Syntax(String),
    /// The digest is well-formed, but the algorithm cannot be verified.
    #[error("digest algorithm `{0}` is not supported: only sha256 and sha512 can be verified")]
    Unsupported(String),
}

/// Well-formed digest of an algorithm that cannot be verified, for example `blake3:…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnverifiableDigest(String);

/// Maximum length of a digest that cannot be verified.
const UNVERIFIABLE_MAX: usize = 256;

impl UnverifiableDigest {
    /// Returns the name of the algorithm.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }
}

impl fmt::Display for UnverifiableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UnverifiableDigest {
    type Err = DigestError;

    /// Parses a digest that [`Digest`] does not support.
    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.parse::<Digest>() {
            Err(DigestError::Unsupported(_)) if text.len() <= UNVERIFIABLE_MAX => Ok(Self(text.to_owned())),
            Err(error @ DigestError::Syntax(_)) => Err(error),
            Ok(_) | Err(DigestError::Unsupported(_)) => {
                Err(DigestError::Syntax(text.chars().take(200).collect()))
            }
        }
    }
}

/// Maximum length of a raw digest, in bytes.
const SIZE_MAX: usize = 64;

/// Digest of a supported algorithm, formatted as `sha256:…` or `sha512:…` with lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// Raw digest. The bytes after the algorithm's size are zero.
    raw: [u8; SIZE_MAX],
}

impl Digest {
    /// Computes the digest of `content`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// Creates a digest from raw bytes, which have the algorithm's size.
    fn new(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut raw = [0; SIZE_MAX];
        for (to, from) in raw.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self { algorithm, raw }
    }

    /// Returns the algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw[..self.algorithm.size()]
    }

    /// Creates a digest from raw bytes. Returns `None` if the length is wrong.
    pub fn from_bytes(algorithm: Algorithm, raw: &[u8]) -> Option<Self> {
        (raw.len() == algorithm.size()).then(|| Self::new(algorithm, raw))
    }

    /// Returns the hex digits after the colon.
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

    /// Parses `algorithm ":" encoded`. Upper-case hex digits are an error (image-spec: "MUST NOT").
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let syntax = || DigestError::Syntax(text.chars().take(200).collect());
        let (algorithm, encoded) = text.split_once(':').ok_or_else(syntax)?;
        let algorithm = match Algorithm::from_name(algorithm) {
            Some(known) => known,
            None if is_algorithm(algorithm) && is_encoded(encoded) => {
                return Err(DigestError::Unsupported(algorithm.chars().take(64).collect()));
            }
            None => return Err(syntax()),
        };
        let hex = encoded.as_bytes();
        if hex.len() != algorithm.size() * 2 {
            return Err(syntax());
        }
        let mut raw = [0_u8; SIZE_MAX];
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

/// Returns true if the text matches `algorithm` in the grammar of the image-spec.
fn is_algorithm(text: &str) -> bool {
    text.split(['+', '.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

fn is_encoded(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
}

/// Incremental computation of a digest.
#[derive(Clone, Debug)]
pub struct Hasher(HasherState);

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_is_parsed_and_formatted() {
        let digest: Digest = EMPTY.parse().expect("a digest");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest, Digest::of(Algorithm::Sha256, b""));
        let long = Digest::of(Algorithm::Sha512, b"x");
        assert_eq!(long.to_string().parse::<Digest>().expect("a digest"), long);
    }

    #[test]
    fn unverifiable_digest_is_well_formed_and_unknown() {
        let long = format!("blake3:{}", "0".repeat(300));
        for bad in [EMPTY, "sha256:00", "blake3", "blake3:", "blake3:../x", "blake3:a?b", "a b:00", &long] {
            assert!(bad.parse::<UnverifiableDigest>().is_err(), "{bad}");
        }
        let digest: UnverifiableDigest = "sha512+b64u:aGVs-_=".parse().expect("a digest");
        assert_eq!((digest.to_string().as_str(), digest.algorithm()), ("sha512+b64u:aGVs-_=", "sha512+b64u"));
    }

    #[test]
    fn parse_rejects_upper_case_short_and_unsupported_digests() {
        assert!(matches!(EMPTY.to_uppercase().parse::<Digest>(), Err(DigestError::Syntax(_))));
        let upper = EMPTY.replace('e', "E");
        assert!(matches!(upper.parse::<Digest>(), Err(DigestError::Syntax(_))));
        assert!(matches!("sha256:baddigeststring".parse::<Digest>(), Err(DigestError::Syntax(_))));
        assert!(matches!("sha256".parse::<Digest>(), Err(DigestError::Syntax(_))));
        assert!(matches!("blake3:abc=_-".parse::<Digest>(), Err(DigestError::Unsupported(_))));
        assert!(matches!("md5+:abc".parse::<Digest>(), Err(DigestError::Syntax(_))));
    }

    #[test]
    fn algorithm_codes_and_names_are_unique_and_fit() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_code(algorithm.code()), Some(*algorithm));
            assert_eq!(Algorithm::from_name(algorithm.as_str()), Some(*algorithm));
            assert!(algorithm.size() <= SIZE_MAX);
            let digest = Digest::of(*algorithm, b"x");
            assert_eq!(Digest::from_bytes(*algorithm, digest.as_bytes()), Some(digest));
        }
        // Codes are part of the format on disk.
        assert_eq!((Algorithm::Sha256.code(), Algorithm::Sha512.code()), (1, 2));
        assert_eq!(Algorithm::from_code(0), None);
        assert_eq!(Digest::from_bytes(Algorithm::Sha256, &[0; 64]), None);
    }
}
