//! Fuzz targets of Docker's `config.json`, and of the numbers of a configuration.

use base64::Engine as _;
use bolero::check;

use super::address::ListenAddress;
use super::docker::{CredentialLocation, DockerConfig, DockerConfigError, RegistryHost};
use super::open_files::{client_connections, needed};
use super::schema::Config;
use crate::fuzz::{Input, TEST_TIME, inputs};

const KEYS: &[&str] = &[
    "auths",
    "credHelpers",
    "credsStore",
    "auth",
    "username",
    "password",
    "identitytoken",
    "registrytoken",
    "reg.test",
    "https://reg.test/v1/",
    "reg.test:5000",
    "docker.io",
    "reg.test/org",
    "[::1]",
    ":",
    "/",
];
const TEXTS: &[&str] = &["dTpw", "hush", "aHVzaA==", "ecr-login", "../x", "", "dTpw\\n", "\\u0000"];

#[test]
fn docker_config_is_read_or_refused_without_its_secrets() {
    let servers = ["reg.test", "reg.test:5000", "docker.io"]
        .map(|name| RegistryHost::named(&name.parse().expect("a name")));
    let repository = "org/app".parse().expect("a name");
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let document = Input::new(bytes).json_of(KEYS, TEXTS);
        match DockerConfig::parse(&document) {
            Ok(config) => {
                // The name of a helper is no secret.
                let has_helper = document.windows(4).any(|it| it == b"cred");
                assert!(has_helper || !format!("{config:?}").contains("hush"));
                let found = config.find(&servers, &repository);
                if let Some(CredentialLocation::Helper { name, logins }) = found {
                    // The name becomes the name of a program.
                    assert!(!name.is_empty() && !name.contains('/') && !logins.is_empty());
                }
            }
            Err(DockerConfigError::Helper { .. }) => {}
            Err(error) => assert!(!error.to_string().contains("hush"), "{error}"),
        }
    });
}

#[test]
fn credential_is_read_as_it_was_encoded() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let username = input.text_of(KEYS).replace([':', '\0'], "");
        let password: Vec<u8> = input.bytes(100).iter().copied().filter(|byte| *byte != 0).collect();
        let pair = [username.as_bytes(), b":", &password].concat();
        let auth = base64::prelude::BASE64_STANDARD.encode(pair);
        let file = format!(r#"{{"auths":{{"https://reg.test/v2/":{{"auth":"{auth}"}}}}}}"#);
        let config = DockerConfig::parse(file.as_bytes()).expect("a file");
        let server = RegistryHost::named(&"reg.test".parse().expect("a name"));
        let found = config.find(&[server], &"a".parse().expect("a name"));
        let Some(CredentialLocation::Credential(credential)) = found else {
            assert!(username.is_empty() && password.is_empty());
            return;
        };
        assert_eq!((credential.username, credential.password), (username, password));
    });
}

#[test]
fn connections_leave_open_files_for_everything_else() {
    let usual = Config::default();
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut config = usual.clone();
        let mut number = || usize::try_from(input.number()).unwrap_or(usize::MAX);
        config.server.max_connections = number();
        for upstream in config.upstream.values_mut() {
            upstream.max_connections = number();
        }
        let limit = input.number();
        let wanted = config.server.max_connections;
        let permitted = client_connections(&config, Some(limit));
        assert!(permitted <= wanted && permitted >= wanted.min(16));
        let files = u128::from(limit);
        assert!(permitted <= 16 || 2 * permitted as u128 + 320 <= files, "{permitted} of {limit}");
        assert_eq!(client_connections(&config, None), wanted);
        if needed(&config) < u64::MAX && limit >= needed(&config) {
            assert_eq!(permitted, wanted);
        }
    });
}

#[test]
fn address_is_read_as_it_is_written() {
    const WORDS: &[&str] = &[
        "127.0.0.1",
        "[::1]",
        "[fe80::1%1]",
        ":",
        "0",
        "5000",
        "unix:",
        "/run/a",
        "systemd:",
        "fd:",
        "+3",
        "larder",
        "/",
    ];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let text: String = (0..=input.below(4)).map(|_| input.pick(WORDS)).collect();
        if let Ok(address) = text.parse::<ListenAddress>() {
            assert_eq!(address.to_string().parse().as_ref(), Ok(&address), "{text}");
        }
    });
}
