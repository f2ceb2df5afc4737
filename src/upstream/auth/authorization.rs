//! What a credential looks like in `Authorization`, and what it is recognised by.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use crate::config::docker::Credential;

/// What a credential is recognised by: the same for the same, another for any other, and of no use to a thief.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity([u8; 32]);

impl Identity {
    pub(crate) fn of(credential: &Credential) -> Self {
        let Credential { username, password, identity_token, registry_token } = credential;
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned().into_bytes();
        let mut hash = Sha256::new();
        for part in [username.as_bytes(), password, &text(identity_token), &text(registry_token)] {
            // With its length, so that nothing moves from one part to the next unnoticed.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

/// User name and password as Basic; an identity token stands in for a password that is not there.
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

/// A token as Bearer; `None` if it is of a form that no header can hold.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("Bearer {token}")).ok().map(secret)
}

/// Marks a header value as one that `Debug` must not show and HTTP/2 must not index.
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
    fn another_credential_has_another_identity() {
        let all = [
            credential("a", "b", None),
            credential("ab", "", None),
            credential("", "ab", None),
            credential("a", "c", None),
            credential("a", "b", Some("c")),
            Credential { registry_token: Some("c".to_owned()), ..credential("a", "b", None) },
        ];
        for (n, one) in all.iter().enumerate() {
            let same = all.iter().position(|other| Identity::of(other) == Identity::of(one));
            assert_eq!(same, Some(n));
        }
    }

    #[test]
    fn basic_is_user_and_password() {
        let shown = |credential| basic(&credential).map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(shown(credential("user", "pw", None)).as_deref(), Some("Basic dXNlcjpwdw=="));
        assert_eq!(shown(credential("user", "pw", Some("t"))).as_deref(), Some("Basic dXNlcjpwdw=="));
        assert_eq!(shown(credential("user", "", Some("pw"))).as_deref(), Some("Basic dXNlcjpwdw=="));
        assert_eq!(shown(credential("", "", Some("t"))).as_deref(), Some("Basic OnQ="));
        assert_eq!(shown(credential("", "", None)), None);
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let value = bearer("hush").expect("a header");
        assert_eq!(value, "Bearer hush");
        assert!(!format!("{value:?}").contains("hush"));
        let value = basic(&credential("user", "hush", None)).expect("a header");
        assert!(!format!("{value:?}").contains("Basic"));
        assert!(bearer("hush\n").is_none());
    }
}
