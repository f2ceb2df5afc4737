//! docker's `config.json` as a source of credentials: what it holds, and which of it is meant for whom.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use url::Url;

use crate::oci::{Name, UpstreamName};

/// No file with credentials is larger.
pub const FILE_MAX: u64 = 1 << 20;

/// Tools differ in whether they pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The names that Docker Hub has in such files; `docker login` writes `https://index.docker.io/v1/`.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// What Docker Hub is called towards credential helpers.
const DOCKER_HUB_LOGIN: &str = "https://index.docker.io/v1/";

/// Who larder is at a registry. `Debug` shows nothing of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credential {
    /// May be empty beside an identity token.
    pub username: String,
    /// Bytes rather than text: a password file may hold any.
    pub password: Vec<u8>,
    /// For the token service alone, which gives tokens for it (`refresh_token` in OAuth 2.0).
    pub identity_token: Option<String>,
    /// For the registry, as it is.
    pub registry_token: Option<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").finish_non_exhaustive()
    }
}

/// Why a `config.json` cannot be used. Its content is never quoted.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// Not there, not readable, no file, or too large.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// No JSON, or a value of another type than docker writes.
    #[error("{} at line {line}, column {column}", if *syntax { "it is no JSON" } else { "a value has the wrong type" })]
    Json {
        /// Whether it is no JSON at all.
        syntax: bool,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// An `auth` that is no base64 of `user:password`.
    #[error("auths.{0:?}.auth is no base64 of `user:password`")]
    Auth(String),
    /// A helper that could be a program anywhere.
    #[error(
        "{key} names the helper {helper:?}; a helper's name has only letters, digits and `.`, `_`, `-`, and stands for \
         the program docker-credential-NAME"
    )]
    Helper {
        /// Where it is named.
        key: String,
        /// The name.
        helper: String,
    },
}

/// What a `config.json` says about credentials.
#[derive(Clone, Debug, Default)]
pub struct DockerConfig {
    helpers: Vec<(AuthKey, String)>,
    store: Option<String>,
    auths: Vec<(AuthKey, Credential)>,
}

/// Where the credential for a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialLocation {
    /// The program `docker-credential-NAME` knows.
    Helper {
        /// What comes after `docker-credential-`.
        name: String,
        /// What it is to be asked about, one after the other until it knows one.
        logins: Vec<String>,
    },
    /// In the file.
    Credential(Credential),
}

impl DockerConfig {
    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Self, DockerConfigError> {
        Self::parse(&read_secret(path)?)
    }

    /// Parses a file's content. One wrong entry makes the whole file wrong, as it does for docker.
    pub fn parse(text: &[u8]) -> Result<Self, DockerConfigError> {
        // The parser's own message would quote values, and values are secrets.
        let file: ConfigFile = serde_json::from_slice(text).map_err(|error| DockerConfigError::Json {
            syntax: !error.is_data(),
            line: error.line(),
            column: error.column(),
        })?;
        let mut config = Self::default();
        for (key, name) in file.cred_helpers.unwrap_or_default() {
            let at = || format!("credHelpers.{key:?}");
            // An empty name is docker's way to except a registry from credsStore.
            let name = if name.is_empty() { name } else { helper_name(name, at)? };
            config.helpers.extend(AuthKey::parse(&key).map(|key| (key, name)));
        }
        if let Some(name) = file.creds_store.filter(|name| !name.is_empty()) {
            config.store = Some(helper_name(name, || "credsStore".to_owned())?);
        }
        for (key, entry) in file.auths.unwrap_or_default() {
            let credential = entry.credential().ok_or_else(|| DockerConfigError::Auth(key.clone()))?;
            if credential != Credential::default() {
                config.auths.extend(AuthKey::parse(&key).map(|key| (key, credential)));
            }
        }
        Ok(config)
    }

    /// Where the credential is for a repository of a registry that has these names, the best one first. A helper of the
    /// registry's own comes before the common one, and that before what is written down, whatever is found there.
    pub fn find(&self, names: &[RegistryHost], repository: &Name) -> Option<CredentialLocation> {
        let own = names.iter().find_map(|server| Some((best(&self.helpers, server, repository)?, server)));
        let helper = match (own, &self.store) {
            (Some((name, server)), _) => Some((name, vec![server.login()])),
            (None, Some(store)) => Some((store, names.iter().map(RegistryHost::login).collect())),
            (None, None) => None,
        };
        if let Some((name, logins)) = helper.filter(|(name, _)| !name.is_empty()) {
            return Some(CredentialLocation::Helper { name: name.clone(), logins });
        }
        let written = names.iter().find_map(|server| best(&self.auths, server, repository));
        written.cloned().map(CredentialLocation::Credential)
    }
}

/// Reads a file that holds credentials. What is no plain file is refused: a pipe can be read only once.
pub fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    let refuse = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    // Opening a pipe would wait for its writer, so this is asked first.
    if !std::fs::metadata(path)?.is_file() {
        return Err(refuse("it is no plain file".to_owned()));
    }
    let mut content = Vec::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_MAX {
        return Err(refuse(format!("it is larger than {FILE_MAX} bytes")));
    }
    Ok(content)
}

fn helper_name(name: String, at: impl FnOnce() -> String) -> Result<String, DockerConfigError> {
    let harmless = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.bytes().all(harmless) {
        Ok(name)
    } else {
        Err(DockerConfigError::Helper { key: at(), helper: name })
    }
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(rename = "credHelpers")]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
    auths: Option<BTreeMap<String, AuthEntry>>,
}

#[derive(Deserialize)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl AuthEntry {
    /// What the entry says; `auth` wins over the fields beside it. `None` if `auth` cannot be read.
    fn credential(self) -> Option<Credential> {
        let filled = |text: &String| !text.is_empty();
        let (username, password) = match self.auth.filter(filled) {
            Some(auth) => pair(&auth)?,
            None => (self.username.unwrap_or_default(), self.password.unwrap_or_default().into_bytes()),
        };
        Some(Credential {
            username,
            password,
            identity_token: self.identitytoken.filter(filled),
            registry_token: self.registrytoken.filter(filled),
        })
    }
}

/// The two halves of an `auth`. Some tools pad them with NULs.
fn pair(auth: &str) -> Option<(String, Vec<u8>)> {
    let encoded: Vec<u8> = auth.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let decoded = BASE64.decode(encoded).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let username = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    let mut password = &decoded[colon + 1..];
    while let Some(rest) = password.strip_suffix(&[0]).or_else(|| password.strip_prefix(&[0])) {
        password = rest;
    }
    Some((username.trim_matches('\0').to_owned(), password.to_vec()))
}

/// A registry under the name that it has in `config.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryHost {
    host: String,
    port: u16,
    /// Whether the port is the scheme's own, which is left out.
    implied: bool,
}

impl RegistryHost {
    /// The registry at an endpoint; `None` if the URL has no host or port.
    pub fn at(endpoint: &Url) -> Option<Self> {
        let (host, port) = (endpoint.host_str()?, endpoint.port_or_known_default()?);
        Some(Self { host: hub(&host.to_ascii_lowercase()), port, implied: endpoint.port().is_none() })
    }

    /// The registry that an upstream is named after.
    pub fn named(upstream: &UpstreamName) -> Self {
        let (host, port) = split_port(upstream.as_str());
        Self { host: hub(host), port: port.unwrap_or(443), implied: port.is_none() }
    }

    /// What a credential helper is asked about: what `docker login` has stored it under.
    pub fn login(&self) -> String {
        if self.host == DOCKER_HUB[0] {
            DOCKER_HUB_LOGIN.to_owned()
        } else if self.implied {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// A key of `auths` or `credHelpers`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AuthKey {
    host: String,
    port: Option<u16>,
    /// The part of the registry's repositories that it is for; empty for all.
    namespace: String,
    /// Of two keys for the same, the one that says nothing more goes first.
    plain: KeyForm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum KeyForm {
    /// A URL with a path that is no API's: docker takes it for the whole registry.
    Url,
    /// `https://host/v1/`.
    Api,
    /// `host`.
    Host,
}

impl AuthKey {
    /// Reads a key in any of its forms; `None` for one that is for something else than a registry.
    fn parse(key: &str) -> Option<Self> {
        let lower = key.to_ascii_lowercase();
        let bare = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://"));
        let (host, path) = match bare.unwrap_or(&lower).split_once('/') {
            Some((host, path)) => (host, path.trim_matches('/')),
            None => (bare.unwrap_or(&lower), ""),
        };
        let (namespace, plain) = match (path, bare.is_some()) {
            ("", false) => ("", KeyForm::Host),
            ("" | "v1" | "v2", _) => ("", KeyForm::Api),
            (namespace, false) => (namespace, KeyForm::Host),
            // What docker keeps of a login in the browser; it is not for the registry.
            (_, true) if path.ends_with("/access-token") || path.ends_with("/refresh-token") => return None,
            (_, true) => ("", KeyForm::Url),
        };
        let (host, port) = split_port(host);
        (!host.is_empty()).then(|| Self { host: hub(host), port, namespace: namespace.to_owned(), plain })
    }

    fn fits(&self, server: &RegistryHost, repository: &Name) -> bool {
        let port = self.port.map_or(server.implied, |port| port == server.port);
        let inside = self.namespace.is_empty()
            || repository
                .as_str()
                .strip_prefix(self.namespace.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.host == server.host && port && inside
    }
}

/// The value under the most specific key that fits.
fn best<'c, T>(entries: &'c [(AuthKey, T)], server: &RegistryHost, repository: &Name) -> Option<&'c T> {
    let fitting = entries.iter().filter(|(key, _)| key.fits(server, repository));
    fitting.max_by_key(|(key, _)| (key.namespace.len(), key.plain)).map(|(_, value)| value)
}

/// One name for all that Docker Hub has.
fn hub(host: &str) -> String {
    if DOCKER_HUB.contains(&host) { DOCKER_HUB[0].to_owned() } else { host.to_owned() }
}

fn split_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if !port.ends_with(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (host, None),
        },
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> DockerConfig {
        DockerConfig::parse(text.as_bytes()).expect(text)
    }

    fn refusal(text: &str) -> String {
        DockerConfig::parse(text.as_bytes()).expect_err(text).to_string()
    }

    fn at(url: &str) -> RegistryHost {
        RegistryHost::at(&Url::parse(url).expect("a URL")).expect("a server")
    }

    fn named(name: &str) -> RegistryHost {
        RegistryHost::named(&name.parse().expect("a name"))
    }

    /// The user name, or the helper, for a repository.
    fn who(config: &DockerConfig, server: &RegistryHost, repository: &str) -> String {
        whose(config, std::slice::from_ref(server), repository)
    }

    fn whose(config: &DockerConfig, names: &[RegistryHost], repository: &str) -> String {
        match config.find(names, &repository.parse().expect("a name")) {
            Some(CredentialLocation::Credential(credential)) => credential.username,
            Some(CredentialLocation::Helper { name, logins }) => {
                format!("{name} about {}", logins.join(" and "))
            }
            None => "nobody".to_owned(),
        }
    }

    fn entry(text: &str) -> Credential {
        let config = config(&format!(r#"{{"auths":{{"reg.test":{text}}}}}"#));
        match config.find(&[named("reg.test")], &"a".parse().expect("a name")) {
            Some(CredentialLocation::Credential(credential)) => credential,
            other => panic!("{text}: {}", other.is_some()),
        }
    }

    #[test]
    fn an_auth_is_split_at_its_first_colon() {
        let of = |bytes: &[u8]| {
            let auth = base64::prelude::BASE64_STANDARD.encode(bytes);
            let credential = entry(&format!(r#"{{"auth":"{auth}"}}"#));
            (credential.username, String::from_utf8(credential.password).expect("text"))
        };
        let is = |user: &str, password: &str| (user.to_owned(), password.to_owned());
        assert_eq!(of(b"user:pass"), is("user", "pass"));
        assert_eq!(of(b"user:pa:ss"), is("user", "pa:ss"));
        assert_eq!(of(b"user:pass\0\0"), is("user", "pass"));
        assert_eq!(of(b"\0user\0:\0pass\0"), is("user", "pass"));
        assert_eq!(of(b"user:"), is("user", ""));
        assert_eq!(of(b":pass"), is("", "pass"));
        assert_eq!(entry(r#"{"auth":"dTpw\n"}"#).username, "u");
        assert_eq!(entry(r#"{"auth":"dTpwdw"}"#).password, b"pw", "without padding");
    }

    #[test]
    fn other_fields_of_an_entry() {
        let plain = entry(r#"{"username":"u","password":"p","email":"u@x.test"}"#);
        assert_eq!((plain.username.as_str(), plain.password.as_slice()), ("u", b"p".as_slice()));
        assert_eq!(entry(r#"{"auth":"dTpw","username":"x","password":"y"}"#).username, "u");
        let tokens = entry(r#"{"auth":"","identitytoken":"i","registrytoken":"r"}"#);
        assert_eq!(tokens.identity_token.as_deref(), Some("i"));
        assert_eq!(tokens.registry_token.as_deref(), Some("r"));
        let empty = config(r#"{"auths":{"reg.test":{},"b.test":{"auth":"","identitytoken":""}}}"#);
        assert_eq!(who(&empty, &named("reg.test"), "a"), "nobody");
        assert_eq!(who(&config("{}"), &named("reg.test"), "a"), "nobody");
        assert_eq!(who(&config(r#"{"auths":null,"credHelpers":null}"#), &named("reg.test"), "a"), "nobody");
    }

    #[test]
    fn a_key_has_many_forms() {
        let server = at("https://reg.test");
        let asked = |key: &str| {
            let config = config(&format!(r#"{{"auths":{{"{key}":{{"username":"u"}}}}}}"#));
            who(&config, &server, "org/app")
        };
        for key in [
            "reg.test",
            "REG.test",
            "reg.test:443",
            "reg.test/",
            "https://reg.test",
            "https://reg.test/v1/",
            "https://reg.test/v2/",
            "http://reg.test/v1",
            "reg.test/v1/",
            "https://reg.test/artifactory/api/docker/x",
        ] {
            assert_eq!(asked(key), "u", "{key}");
        }
        for key in [
            "other.test",
            "reg.test:5000",
            "sub.reg.test",
            "https://reg.test/v1/access-token",
            "",
            "https://",
            "/",
        ] {
            assert_eq!(asked(key), "nobody", "{key}");
        }
    }

    #[test]
    fn ports_are_not_mixed_up() {
        let key = |key: &str| config(&format!(r#"{{"auths":{{"{key}":{{"username":"u"}}}}}}"#));
        assert_eq!(who(&key("reg.test:5000"), &at("http://reg.test:5000"), "a"), "u");
        assert_eq!(who(&key("reg.test:5000"), &named("reg.test:5000"), "a"), "u");
        assert_eq!(who(&key("reg.test"), &at("http://reg.test:5000"), "a"), "nobody");
        assert_eq!(who(&key("reg.test:443"), &at("http://reg.test"), "a"), "nobody");
        assert_eq!(who(&key("reg.test:80"), &at("http://reg.test"), "a"), "u");
        assert_eq!(who(&key("[::1]:5000"), &at("http://[::1]:5000"), "a"), "u");
        assert_eq!(who(&key("[::1]"), &at("https://[::1]"), "a"), "u");
    }

    #[test]
    fn docker_hub_goes_by_all_its_names() {
        for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"] {
            let config = config(&format!(r#"{{"auths":{{"{key}":{{"username":"u"}}}}}}"#));
            for server in [at("https://registry-1.docker.io"), named("docker.io")] {
                assert_eq!(who(&config, &server, "library/app"), "u", "{key}");
                assert_eq!(server.login(), "https://index.docker.io/v1/");
            }
            assert_eq!(who(&config, &named("hub.docker.io"), "a"), "nobody");
        }
        assert_eq!(at("https://reg.test").login(), "reg.test");
        assert_eq!(at("http://reg.test:5000").login(), "reg.test:5000");
        assert_eq!(named("reg.test:443").login(), "reg.test:443");
    }

    #[test]
    fn the_most_specific_key_counts() {
        let config = config(
            r#"{"auths":{"reg.test":{"username":"all"},"reg.test/org":{"username":"org"},
                "reg.test/org/app":{"username":"app"},"https://reg.test/v1/":{"username":"api"},
                "docker.io/library":{"username":"official"}}}"#,
        );
        let server = named("reg.test");
        for (repository, user) in [
            ("org/app", "app"),
            ("org/app/deep", "app"),
            ("org/application", "org"),
            ("org", "org"),
            ("organisation/app", "all"),
            ("app", "all"),
        ] {
            assert_eq!(who(&config, &server, repository), user, "{repository}");
        }
        assert_eq!(who(&config, &named("docker.io"), "library/app"), "official");
        assert_eq!(who(&config, &named("docker.io"), "org/app"), "nobody");
    }

    #[test]
    fn helpers_come_first() {
        let config = config(
            r#"{"auths":{"a.test":{"username":"u"},"b.test":{"username":"u"},"c.test":{"username":"u"}},
                "credHelpers":{"a.test":"own","c.test":""},"credsStore":"common"}"#,
        );
        assert_eq!(who(&config, &named("a.test"), "x"), "own about a.test");
        assert_eq!(who(&config, &named("b.test"), "x"), "common about b.test");
        assert_eq!(who(&config, &named("c.test"), "x"), "u", "excepted from credsStore");
        assert_eq!(who(&config, &named("d.test"), "x"), "common about d.test");
        // Whichever of its names is in the file.
        let both = |one: &str, other: &str| whose(&config, &[named(one), named(other)], "x");
        assert_eq!(both("d.test", "a.test"), "own about a.test");
        assert_eq!(both("d.test", "b.test"), "common about d.test and b.test");
        assert_eq!(both("d.test", "c.test"), "u");
    }

    #[test]
    fn a_helper_is_a_name_and_no_path() {
        for bad in ["../x", "/bin/sh", "a/b", "a b", "a\\u0000", "a;b", "é"] {
            for text in [
                format!(r#"{{"credsStore":"{bad}"}}"#),
                format!(r#"{{"credHelpers":{{"reg.test":"{bad}"}}}}"#),
            ] {
                assert!(refusal(&text).contains("names the helper"), "{text}");
            }
        }
        config(r#"{"credsStore":"ecr-login_2.0"}"#);
        assert!(config(r#"{"credsStore":""}"#).store.is_none());
    }

    #[test]
    fn what_is_wrong_is_said_without_a_secret() {
        for (bad, wanted) in [
            ("", "it is no JSON at line 1"),
            ("{\n\"auths\": hush", "it is no JSON at line 2"),
            (r#"{"auths":"hush"}"#, "a value has the wrong type at line 1"),
            (r#"{"auths":{"reg.test":"hush"}}"#, "a value has the wrong type at line 1"),
            (r#"{"auths":{"reg.test":{"password":7,"auth":"hush"}}}"#, "wrong type"),
            (r#"{"credsStore":["hush"]}"#, "wrong type"),
            (r#"["hush"]"#, "wrong type"),
            (r#"{"auths":{"reg.test":{"auth":"hush"}}}"#, r#"auths."reg.test".auth is no base64"#),
            (r#"{"auths":{"reg.test":{"auth":"hush!"}}}"#, r#"auths."reg.test".auth is no base64"#),
        ] {
            let error = refusal(bad);
            assert!(error.contains(wanted) && !error.contains("hush"), "{bad}: {error}");
        }
        let shown = format!("{:?}", config(r#"{"auths":{"reg.test":{"auth":"aHVzaDpodXNo"}}}"#));
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn only_plain_files_of_bounded_size_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        assert!(DockerConfig::load(&path).is_err(), "not there");
        assert!(DockerConfig::load(folder.path()).expect_err("a folder").to_string().contains("plain file"));
        std::fs::write(&path, "{}").expect("written");
        assert!(DockerConfig::load(&path).is_ok());
        let large = File::options().write(true).open(&path).expect("opened");
        large.set_len(FILE_MAX + 1).expect("grown");
        assert!(DockerConfig::load(&path).expect_err("too large").to_string().contains("larger"));
    }
}
