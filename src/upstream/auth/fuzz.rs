//! Fuzz targets of challenges, of the answers of token services, and of the trust in them.

use bolero::check;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue};
use url::Url;

use super::challenge::{Challenge, choose};
use super::token_service::parse;
use super::token_trust::TokenTrust;
use crate::fuzz::{Input, TEST_TIME, inputs};

const CHALLENGES: &[&str] = &[
    "Bearer",
    "bearer",
    "Basic",
    "Negotiate",
    "Digest",
    " ",
    ",",
    "=",
    "\"",
    "\\",
    "\\\"",
    "realm",
    "service",
    "scope",
    "REALM",
    "realm=\"https://auth.test/token\"",
    "service=reg.test",
    "scope=\"repository:a/b:pull\"",
    "token68==",
    "error=\"insufficient_scope\"",
    "\t",
];

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[test]
fn challenge_is_read_as_it_was_quoted() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut headers = HeaderMap::new();
        let mut length = 0;
        for _ in 0..input.below(4) {
            let line = input.bytes_of(CHALLENGES);
            length += line.len();
            if let Ok(value) = HeaderValue::from_bytes(&line) {
                headers.append(WWW_AUTHENTICATE, value);
            }
        }
        if let Some(Challenge::Bearer { realm, service, scope }) = choose(&headers) {
            let texts = [Some(realm), service, scope];
            assert!(texts.iter().flatten().all(|text| !text.is_empty()));
            assert!(texts.iter().flatten().map(String::len).sum::<usize>() < length);
        }

        let printable =
            |text: String| -> String { text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect() };
        let [realm, service, scope] = [(); 3].map(|()| printable(input.text_of(CHALLENGES)));
        let line =
            format!("Bearer realm={},service={},scope={}", quoted(&realm), quoted(&service), quoted(&scope));
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, line.parse().expect("a header"));
        let filled = |text: String| Some(text).filter(|text| !text.is_empty());
        let wanted = filled(realm).map(|realm| Challenge::Bearer {
            realm,
            service: filled(service),
            scope: filled(scope),
        });
        assert_eq!(choose(&headers), wanted, "{line}");
    });
}

#[test]
fn token_answer_gives_a_header_and_a_bounded_lifetime() {
    const KEYS: &[&str] = &["token", "access_token", "expires_in", "refresh_token", "issued_at"];
    const TEXTS: &[&str] = &["secret", "", "secret\\n", "\\u00e9", "secret.secret", "60"];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let lifetime = input.number();
        let plain = format!(r#"{{"token":"secret","expires_in":{lifetime}}}"#);
        let token = parse(plain.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(token.lifetime.as_secs(), lifetime.clamp(60, 24 * 60 * 60));
        match parse(&input.json_of(KEYS, TEXTS)) {
            Ok(token) => {
                assert!(token.header.as_bytes().starts_with(b"Bearer ") && token.header.len() > 7);
                assert!((60..=24 * 60 * 60).contains(&token.lifetime.as_secs()));
            }
            Err(error) => assert!(!error.to_string().contains("secret"), "{error}"),
        }
    });
}

#[test]
fn token_service_of_another_owner_is_not_trusted() {
    const HOSTS: &[&str] = &[
        "reg.test",
        "auth.reg.test",
        "example.co.uk",
        "co.uk",
        "auth.",
        ".",
        "amazonaws.com",
        "azurecr.io",
        "docker.io",
        "a",
        "evil",
        "-",
        "127.0.0.1",
        "[::1]",
        "localhost",
        ":80",
        ":5000",
        "@",
        "/",
        "?x=",
        "#",
        "\\",
        "%2e",
    ];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut any = || {
            let scheme = input.pick(&["https", "http", "ftp"]);
            let parts = 1 + input.below(3);
            let host: String = (0..parts).map(|_| input.pick(HOSTS)).collect();
            Url::parse(&format!("{scheme}://{host}"))
        };
        let (Ok(endpoint), Ok(realm)) = (any(), any()) else { return };
        if !TokenTrust::new(endpoint.clone(), &[]).trusts(&realm) {
            return;
        }
        assert!(realm.scheme() == "https" || (realm.scheme() == "http" && endpoint.scheme() == "http"));
        let (Some(endpoint), Some(realm)) = (endpoint.host_str(), realm.host_str()) else {
            panic!("no host")
        };
        if endpoint != realm {
            // The last two labels are the least that one owner has.
            let owner = |host: &str| host.rsplitn(3, '.').take(2).map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(owner(endpoint), owner(realm), "{endpoint} {realm}");
            for suffix in ["amazonaws.com", "azurecr.io"] {
                assert!(!realm.ends_with(&format!(".{suffix}")), "{endpoint} {realm}");
            }
        }
    });
}
