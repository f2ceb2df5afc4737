//! Encoding of requests and reports of the admin API: paths, queries and JSON.

use serde::Serialize;
use serde_json::Value;
use url::form_urlencoded;

use super::error::OpsError;

/// Path of the admin API.
pub const ROOT: &str = "/api/v1";

/// Header that marks the requests of `larder doctor` to the registry API. The server does not count these requests.
pub const PROBE_HEADER: &str = "larder-probe";

/// Returns a path below [`ROOT`] with its query.
pub(super) fn target(path: &str, pairs: Vec<(&'static str, String)>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    let query = query.finish();
    if query.is_empty() { format!("{ROOT}{path}") } else { format!("{ROOT}{path}?{query}") }
}

/// Converts a report to JSON.
pub(in crate::ops) fn json(report: &impl Serialize) -> Result<Value, OpsError> {
    serde_json::to_value(report)
        .map_err(|error| OpsError::Content(format!("the report cannot be written: {error}")))
}

/// Parameters of a query string that were not taken yet.
pub(super) struct Pairs(Vec<(String, String)>);

impl Pairs {
    /// Parses a query string.
    pub(super) fn of(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// Takes all values of a parameter.
    pub(super) fn all(&mut self, key: &str) -> Vec<String> {
        let (found, left) = std::mem::take(&mut self.0).into_iter().partition(|(name, _)| name == key);
        self.0 = left;
        let found: Vec<(String, String)> = found;
        found.into_iter().map(|(_, value)| value).collect()
    }

    /// Takes a parameter that may occur once.
    pub(super) fn one(&mut self, key: &str) -> Result<Option<String>, OpsError> {
        let mut found = self.all(key);
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(OpsError::Invalid(format!("`{key}` may be given once"))),
        }
    }

    /// Takes a required parameter.
    pub(super) fn needed(&mut self, key: &str) -> Result<String, OpsError> {
        self.one(key)?.ok_or_else(|| OpsError::Invalid(format!("`{key}` is missing")))
    }

    /// Takes a parameter that is true or false.
    pub(super) fn flag(&mut self, key: &str) -> Result<bool, OpsError> {
        match self.one(key)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(_) => Err(OpsError::Invalid(format!("`{key}` must be true or false"))),
        }
    }

    /// Returns an error if a parameter was not taken.
    pub(super) fn end(&self) -> Result<(), OpsError> {
        match self.0.first() {
            Some((key, _)) => {
                let key: String = key.chars().filter(char::is_ascii_graphic).take(40).collect();
                Err(OpsError::Invalid(format!("`{key}` is not a parameter of this request")))
            }
            None => Ok(()),
        }
    }
}
