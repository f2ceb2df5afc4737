//! The error codes of the distribution-spec and the document that carries them to a client.

/// An error code as clients see it, together with those that distribution uses outside the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A code of the distribution-spec.
    Spec(&'static str),
    /// A code known from distribution's registry only.
    Distribution(&'static str),
}

impl Code {
    /// Blob unknown to the registry.
    pub const BLOB_UNKNOWN: Self = Self::Spec("BLOB_UNKNOWN");
    /// Manifest unknown to the registry.
    pub const MANIFEST_UNKNOWN: Self = Self::Spec("MANIFEST_UNKNOWN");
    /// Repository name not known.
    pub const NAME_UNKNOWN: Self = Self::Spec("NAME_UNKNOWN");
    /// Repository name breaks the grammar.
    pub const NAME_INVALID: Self = Self::Spec("NAME_INVALID");
    /// Digest breaks the grammar.
    pub const DIGEST_INVALID: Self = Self::Spec("DIGEST_INVALID");
    /// The upstream refuses.
    pub const DENIED: Self = Self::Spec("DENIED");
    /// The operation is unsupported.
    pub const UNSUPPORTED: Self = Self::Spec("UNSUPPORTED");
    /// Too many requests.
    pub const TOOMANYREQUESTS: Self = Self::Spec("TOOMANYREQUESTS");
    /// An error of our own.
    pub const UNKNOWN: Self = Self::Distribution("UNKNOWN");
    /// The upstream cannot be asked now.
    pub const UNAVAILABLE: Self = Self::Distribution("UNAVAILABLE");
    /// A range outside the body.
    pub const RANGE_INVALID: Self = Self::Distribution("RANGE_INVALID");
    /// `n` is no number.
    pub const PAGINATION_NUMBER_INVALID: Self = Self::Distribution("PAGINATION_NUMBER_INVALID");

    /// The code's text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spec(text) | Self::Distribution(text) => text,
        }
    }
}

/// The body of an error answer: `{"errors":[{"code":…,"message":…}]}`.
pub fn document(code: Code, message: &str) -> Vec<u8> {
    serde_json::json!({ "errors": [{ "code": code.as_str(), "message": message }] }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::distribution::ErrorCode;

    fn is_in_spec(code: &str) -> bool {
        serde_json::from_value::<ErrorCode>(serde_json::Value::String(code.to_owned())).is_ok()
    }

    #[test]
    fn spec_codes_are_the_specs() {
        for code in [
            Code::BLOB_UNKNOWN,
            Code::MANIFEST_UNKNOWN,
            Code::NAME_UNKNOWN,
            Code::NAME_INVALID,
            Code::DIGEST_INVALID,
            Code::DENIED,
            Code::UNSUPPORTED,
            Code::TOOMANYREQUESTS,
        ] {
            assert!(is_in_spec(code.as_str()), "{code:?}");
        }
        assert!(!is_in_spec(Code::UNKNOWN.as_str()));
    }
}
