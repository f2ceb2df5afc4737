//! Credentials in Docker's `config.json`: parsing, and look-up of the entry for a registry and repository.

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

/// Maximum size of a file with credentials.
pub const FILE_MAX: u64 = 1 << 20;

/// Base64 with or without padding, because tools differ.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Names of Docker Hub in such files. `docker login` writes `https://index.docker.io/v1/`.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// Name of Docker Hub for credential helpers.
const DOCKER_HUB_LOGIN: &str = "https://index.docker.io/v1/";

/// Credential for a registry. `Debug` does not show it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credential {
    /// User name. May be empty if there is an identity token.
    pub username: String,
    /// Password. Bytes, because a password file may contain any bytes.
    pub password: Vec<u8>,
    /// Token for the token service only, which exchanges it for other tokens (`refresh_token` in OAuth 2.0).
    pub identity_token: Option<String>,
    /// Token for the registry, sent unchanged.
    pub registry_token: Option<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").finish_non_exhaustive()
    }
}

/// Error of reading a `config.json`. Its content is never shown.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// The file does not exist, cannot be read, is not a regular file, or is too large.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The file is not JSON, or a value has the wrong type.
    #[error("{} at line {line}, column {column}", if *syntax { "not valid JSON" } else { "a value has the wrong type" })]
    Json {
        /// True if the file is not JSON.
        syntax: bool,
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
    },
    /// An `auth` value is not the Base64 encoding of `user:password`.
    #[error("auths.{0:?}.auth is not the Base64 encoding of `user:password`")]
    Auth(String),
    /// The name of a helper contains forbidden characters. It could name any program.
    #[error(
        "{key} names the helper {helper:?}; use only letters, digits and `.`, `_`, `-`; larder runs \
         the program docker-credential-NAME"
    )]
    Helper {
        /// Key that names the helper.
        key: String,
        /// Name of the helper.
        helper: String,
    },
}

/// Credentials of a `config.json`.
#[derive(Clone, Debug, Default)]
pub struct DockerConfig {
    helpers: Vec<(AuthKey, String)>,
    store: Option<String>,
    auths: Vec<(AuthKey, Credential)>,
}

/// Location of the credential for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialLocation {
    /// The program `docker-credential-NAME` has the credential.
    Helper {
        /// Name after `docker-credential-`.
        name: String,
        /// Server names to request from the helper, in this order.
        logins: Vec<String>,
    },
    /// The credential is in the file.
    Credential(Credential),
}

impl DockerConfig {
    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Self, DockerConfigError> {
        Self::parse(&read_secret(path)?)
    }

    /// Parses the content of a file. One invalid entry makes the whole file invalid, as in Docker.
    pub fn parse(text: &[u8]) -> Result<Self, DockerConfigError> {
        // The message of the parser would show values, and values are secrets.
        let file: ConfigFile = serde_json::from_slice(text).map_err(|error| DockerConfigError::Json {
            syntax: !error.is_data(),
            line: error.line(),
            column: error.column(),
        })?;
        let mut config = Self::default();
        for (key, name) in file.cred_helpers.unwrap_or_default() {
            let at = || format!("credHelpers.{key:?}");
            // In Docker an empty name excludes a registry from credsStore.
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

    /// Returns the location of the credential for a repository. `names` are the names of its registry, the best one first.
    ///
    /// A helper for this registry takes precedence over `credsStore`, and that over `auths`.
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

/// Reads a file with credentials. Only regular files are accepted, because a pipe can be read only once.
pub fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    let refuse = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    // Checked before opening, because opening a pipe waits for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(refuse("not a regular file".to_owned()));
    }
    let mut content = Vec::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_MAX {
        return Err(refuse(format!("larger than {FILE_MAX} bytes")));
    }
    Ok(content)
}

fn helper_name(name: String, at: impl FnOnce() -> String) -> Result<String, DockerConfigError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.bytes().all(allowed) {
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
    /// Returns the credential of the entry; `None` if `auth` is invalid. `auth` takes precedence over the other fields.
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

/// Splits an `auth` value into user name and password. Some tools pad both with NULs.
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

/// Name of a registry, as used in `config.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryHost {
    host: String,
    port: u16,
    /// True if the port is the default of the scheme.
    default_port: bool,
}

impl RegistryHost {
    /// Returns the registry of an endpoint; `None` if the URL has no host or port.
    pub fn at(endpoint: &Url) -> Option<Self> {
        let (host, port) = (endpoint.host_str()?, endpoint.port_or_known_default()?);
        Some(Self { host: hub(&host.to_ascii_lowercase()), port, default_port: endpoint.port().is_none() })
    }

    /// Returns the registry with the name of an upstream.
    pub fn named(upstream: &UpstreamName) -> Self {
        let (host, port) = split_port(upstream.as_str());
        Self { host: hub(host), port: port.unwrap_or(443), default_port: port.is_none() }
    }

    /// Returns the server name for credential helpers, as stored by `docker login`.
    pub fn login(&self) -> String {
        if self.host == DOCKER_HUB[0] {
            DOCKER_HUB_LOGIN.to_owned()
        } else if self.default_port {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Key of `auths` or `credHelpers`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AuthKey {
    host: String,
    port: Option<u16>,
    /// Prefix of the repositories that the key applies to; empty for all.
    namespace: String,
    /// Form of the key. Of two equal keys the simpler form takes precedence.
    form: KeyForm,
}

/// Form of a key, in ascending precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum KeyForm {
    /// A URL with a path that is not an API path. Docker applies it to the whole registry.
    Url,
    /// `https://host/v1/`.
    Api,
    /// `host`.
    Host,
}

impl AuthKey {
    /// Parses a key in any form; `None` if it is not a key for a registry.
    fn parse(key: &str) -> Option<Self> {
        let lower = key.to_ascii_lowercase();
        let bare = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://"));
        let (host, path) = match bare.unwrap_or(&lower).split_once('/') {
            Some((host, path)) => (host, path.trim_matches('/')),
            None => (bare.unwrap_or(&lower), ""),
        };
        let (namespace, form) = match (path, bare.is_some()) {
            ("", false) => ("", KeyForm::Host),
            ("" | "v1" | "v2", _) => ("", KeyForm::Api),
            (namespace, false) => (namespace, KeyForm::Host),
            // Docker stores the tokens of a browser login under these keys. They are not for the registry.
            (_, true) if path.ends_with("/access-token") || path.ends_with("/refresh-token") => return None,
            (_, true) => ("", KeyForm::Url),
        };
        let (host, port) = split_port(host);
        (!host.is_empty()).then(|| Self { host: hub(host), port, namespace: namespace.to_owned(), form })
    }

    fn fits(&self, server: &RegistryHost, repository: &Name) -> bool {
        let port = self.port.map_or(server.default_port, |port| port == server.port);
        let inside = self.namespace.is_empty()
            || repository
                .as_str()
                .strip_prefix(self.namespace.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.host == server.host && port && inside
    }
}

/// Returns the value of the most specific matching key.
fn best<'c, T>(entries: &'c [(AuthKey, T)], server: &RegistryHost, repository: &Name) -> Option<&'c T> {
    let fitting = entries.iter().filter(|(key, _)| key.fits(server, repository));
    fitting.max_by_key(|(key, _)| (key.namespace.len(), key.form)).map(|(_, value)| value)
}

/// Maps all names of Docker Hub to one.
fn hub(host: &str) -> String {
    if DOCKER_HUB.contains(&host) { DOCKER_HUB[0].to_owned() } else { host.to_owned() }
}

fn split_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        // The colons of an IPv6 address are inside brackets.
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

    /// Returns the user name, or the helper, for a repository.
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
    fn auth_is_split_at_its_first_colon() {
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
    fn entry_reads_other_fields() {
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
    fn key_parses_all_forms() {
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
    fn key_matches_its_port_only() {
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
    fn docker_hub_has_several_names() {
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
    fn find_returns_the_most_specific_key() {
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
    fn find_prefers_helpers() {
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
    fn helper_must_be_a_name_without_path() {
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
    fn errors_show_no_secret() {
        for (bad, wanted) in [
            ("", "not valid JSON at line 1"),
            ("{\n\"auths\": hush", "not valid JSON at line 2"),
            (r#"{"auths":"hush"}"#, "a value has the wrong type at line 1"),
            (r#"{"auths":{"reg.test":"hush"}}"#, "a value has the wrong type at line 1"),
            (r#"{"auths":{"reg.test":{"password":7,"auth":"hush"}}}"#, "wrong type"),
            (r#"{"credsStore":["hush"]}"#, "wrong type"),
            (r#"["hush"]"#, "wrong type"),
            (r#"{"auths":{"reg.test":{"auth":"hush"}}}"#, r#"auths."reg.test".auth is not the Base64"#),
            (r#"{"auths":{"reg.test":{"auth":"hush!"}}}"#, r#"auths."reg.test".auth is not the Base64"#),
        ] {
            let error = refusal(bad);
            assert!(error.contains(wanted) && !error.contains("hush"), "{bad}: {error}");
        }
        let shown = format!("{:?}", config(r#"{"auths":{"reg.test":{"auth":"aHVzaDpodXNo"}}}"#));
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn read_secret_accepts_regular_files_of_limited_size_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        assert!(DockerConfig::load(&path).is_err(), "not there");
        assert!(
            DockerConfig::load(folder.path()).expect_err("a folder").to_string().contains("regular file")
        );
        std::fs::write(&path, "{}").expect("written");
        assert!(DockerConfig::load(&path).is_ok());
        let large = File::options().write(true).open(&path).expect("opened");
        large.set_len(FILE_MAX + 1).expect("grown");
        assert!(DockerConfig::load(&path).expect_err("too large").to_string().contains("larger"));
    }
}
