//! Error codes of the distribution-spec, and the JSON body of an error answer.

/// Error code for clients: a code of the specification, or one that only the distribution registry uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Code of the distribution-spec.
    Spec(&'static str),
    /// Code of the distribution registry, not part of the specification.
    Distribution(&'static str),
}

impl Code {
    /// The blob is unknown.
    pub const BLOB_UNKNOWN: Self = Self::Spec("BLOB_UNKNOWN");
    /// The manifest is unknown.
    pub const MANIFEST_UNKNOWN: Self = Self::Spec("MANIFEST_UNKNOWN");
    /// The repository is unknown.
    pub const NAME_UNKNOWN: Self = Self::Spec("NAME_UNKNOWN");
    /// The repository name is invalid.
    pub const NAME_INVALID: Self = Self::Spec("NAME_INVALID");
    /// The digest is invalid.
    pub const DIGEST_INVALID: Self = Self::Spec("DIGEST_INVALID");
    /// The upstream denied access.
    pub const DENIED: Self = Self::Spec("DENIED");
    /// The operation is not supported.
    pub const UNSUPPORTED: Self = Self::Spec("UNSUPPORTED");
    /// Too many requests.
    pub const TOOMANYREQUESTS: Self = Self::Spec("TOOMANYREQUESTS");
    /// Internal error.
    pub const UNKNOWN: Self = Self::Distribution("UNKNOWN");
    /// The upstream is not available.
    pub const UNAVAILABLE: Self = Self::Distribution("UNAVAILABLE");
    /// The range is outside the body.
    pub const RANGE_INVALID: Self = Self::Distribution("RANGE_INVALID");
    /// `n` is not a number.
    pub const PAGINATION_NUMBER_INVALID: Self = Self::Distribution("PAGINATION_NUMBER_INVALID");

    /// Returns the text of the code.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spec(text) | Self::Distribution(text) => text,
        }
    }
}

/// Returns the body of an error answer: `{"errors":[{"code":…,"message":…}]}`.
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
    fn spec_codes_are_part_of_the_specification() {
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
