//! Values of the header `Authorization`, and identifiers of credentials.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use crate::config::docker::Credential;

/// Identifier of a credential: a hash of all its parts, which does not reveal them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CredentialId([u8; 32]);

impl CredentialId {
    pub(crate) fn of(credential: &Credential) -> Self {
        let Credential { username, password, identity_token, registry_token } = credential;
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned().into_bytes();
        let mut hash = Sha256::new();
        for part in [username.as_bytes(), password, &text(identity_token), &text(registry_token)] {
            // Each part with its length, so that moving bytes from one part to the next changes the hash.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

/// Returns user name and password as Basic (RFC 7617). An identity token replaces a missing password.
pub(crate) fn basic(credential: &Credential) -> Option<HeaderValue> {
    let password = match (credential.password.as_slice(), &credential.identity_token) {
        ([], Some(token)) => token.as_bytes(),
        (password, _) => password,
    };
    if credential.username.is_empty() && password.is_empty() {
        return None;
    }
    let pair = [credential.username.as_bytes(), b":", password].concat();
    // Base64 is always a legal header value.
    HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair))).ok().map(secret)
}

/// Returns a token as Bearer (RFC 6750); `None` if it has characters that no header can contain.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("Bearer {token}")).ok().map(secret)
}

/// Marks a header value as secret: `Debug` does not show it, and HTTP/2 does not index it.
fn secret(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(username: &str, password: &str, token: Option<&str>) -> Credential {
        Credential {
            username: username.to_owned(),
            password: password.into(),
            identity_token: token.map(str::to_owned),
            registry_token: None,
        }
    }

    #[test]
    fn credential_id_differs_for_each_part() {
        let all = [
            credential("a", "b", None),
            credential("ab", "", None),
            credential("", "ab", None),
            credential("a", "c", None),
            credential("a", "b", Some("c")),
            Credential { registry_token: Some("c".to_owned()), ..credential("a", "b", None) },
        ];
        for (n, one) in all.iter().enumerate() {
            let same = all.iter().position(|other| CredentialId::of(other) == CredentialId::of(one));
            assert_eq!(same, Some(n));
        }
    }

    #[test]
    fn basic_encodes_user_and_password() {
        let shown = |credential| basic(&credential).map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(shown(credential("user", "pw", None)).as_deref(), Some("Basic dXNlcjpwdw=="));
        assert_eq!(shown(credential("user", "pw", Some("t"))).as_deref(), Some("Basic dXNlcjpwdw=="));
        assert_eq!(shown(credential("user", "", Some("pw"))).as_deref(), Some("Basic dXNlcjpwdw=="));
        assert_eq!(shown(credential("", "", Some("t"))).as_deref(), Some("Basic OnQ="));
        assert_eq!(shown(credential("", "", None)), None);
    }

    #[test]
    fn debug_shows_no_secret() {
        let value = bearer("hush").expect("a header");
        assert_eq!(value, "Bearer hush");
        assert!(!format!("{value:?}").contains("hush"));
        let value = basic(&credential("user", "hush", None)).expect("a header");
        assert!(!format!("{value:?}").contains("Basic"));
        assert!(bearer("hush\n").is_none());
    }
}
