//! Challenges of registries: the header `WWW-Authenticate` (RFC 9110, section 11.6.1).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use http_auth::ChallengeRef;
use http_auth::parser::ChallengeParser;

/// Challenge of a supported scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token of a token service.
    Bearer {
        /// URL of the token service, possibly relative.
        realm: String,
        /// Name of the registry at the token service.
        service: Option<String>,
        /// Access that the token must grant.
        scope: Option<String>,
    },
    /// User name and password.
    Basic,
}

/// Returns the challenge to answer: the first Bearer, or else the first Basic, of all header lines.
///
/// An invalid challenge ends its own line only. Unknown schemes are skipped.
pub(crate) fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let lines = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|line| line.to_str().ok());
    let challenges = lines.flat_map(|line| ChallengeParser::new(line).map_while(Result::ok));
    let mut basic = None;
    for challenge in challenges {
        if challenge.scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = parameter(&challenge, "realm") {
                let (service, scope) = (parameter(&challenge, "service"), parameter(&challenge, "scope"));
                return Some(Challenge::Bearer { realm, service, scope });
            }
        } else if challenge.scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

fn parameter(challenge: &ChallengeRef<'_>, name: &str) -> Option<String> {
    let (_, value) = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    Some(value.to_unescaped()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, line.parse().expect("a header"));
        }
        choose(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn choose_reads_a_bearer_challenge() {
        let line =
            r#"Bearer realm="https://auth.test/token",service="reg.test",scope="repository:a/b:pull,push""#;
        let expected = bearer("https://auth.test/token", Some("reg.test"), Some("repository:a/b:pull,push"));
        assert_eq!(of(&[line]), Some(expected));
    }

    #[test]
    fn choose_prefers_bearer() {
        let expected = Some(bearer("https://a.test", None, None));
        assert_eq!(of(&[r#"Basic realm="x", Bearer realm="https://a.test""#]), expected);
        assert_eq!(of(&[r#"Basic realm="x""#, r#"bEARER REALM="https://a.test""#]), expected);
        assert_eq!(of(&[r#"Negotiate, Basic realm="x""#]), Some(Challenge::Basic));
    }

    #[test]
    fn choose_accepts_unusual_spellings() {
        let quoted = r#"Bearer realm="https://a.test/\"q\"",service=reg"#;
        assert_eq!(of(&[quoted]), Some(bearer("https://a.test/\"q\"", Some("reg"), None)));
        assert_eq!(of(&["Bearer realm=token"]), Some(bearer("token", None, None)));
        assert_eq!(of(&[r#"Bearer service="only""#]), None);
        assert_eq!(of(&[r#"Bearer realm="""#, r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(of(&["== broken", r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(of(&[]), None);
    }
}
