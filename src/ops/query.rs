//! The questions that an operator may ask, and how each is written as a path and a query of the admin API.
//!
//! Both sides are here, so that the command line cannot write what the API does not read.

use serde::Serialize;
use serde_json::Value;
use url::form_urlencoded;

use super::{Operations, OpsError, check, inspect, list, status};

/// Where the admin API is.
pub const ROOT: &str = "/api/v1";

/// Something that is answered at once and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// What is held, of one repository or of all.
    List {
        /// The only repository.
        repository: Option<String>,
    },
    /// The tags held of a repository.
    Tags {
        /// Which one.
        repository: String,
    },
    /// A manifest, index or config.
    Inspect(inspect::InspectQuery),
    /// Whether pulls would succeed without the upstream.
    Check(check::CheckQuery),
    /// How the larder is doing.
    Status,
}

impl Query {
    /// Path and query.
    pub fn target(&self) -> String {
        let (path, pairs) = self.written();
        target(path, pairs)
    }

    fn written(&self) -> (&'static str, Vec<(&'static str, String)>) {
        let mut pairs = Vec::new();
        let path = match self {
            Self::List { repository } => {
                pairs.extend(repository.clone().map(|name| ("repository", name)));
                "/images"
            }
            Self::Tags { repository } => {
                pairs.push(("repository", repository.clone()));
                "/tags"
            }
            Self::Inspect(ask) => {
                pairs.push(("reference", ask.reference.clone()));
                pairs.extend(ask.platform.clone().map(|platform| ("platform", platform)));
                pairs.extend(ask.media_type.clone().map(|media_type| ("media_type", media_type)));
                for (key, flag) in [("index", ask.index), ("oci", ask.oci), ("config", ask.config)] {
                    pairs.extend(flag.then(|| (key, "true".to_owned())));
                }
                "/inspect"
            }
            Self::Check(ask) => {
                pairs.extend(ask.references.iter().map(|it| ("reference", it.clone())));
                pairs.extend(ask.platforms.iter().map(|it| ("platform", it.clone())));
                "/check"
            }
            Self::Status => "/status",
        };
        (path, pairs)
    }

    /// Reads what `target` wrote; the path is what follows [`ROOT`]. `None` if it is no question's.
    pub fn read(path: &str, query: &str) -> Option<Result<Self, OpsError>> {
        let mut pairs = Pairs::of(query);
        let question = match path {
            "/images" => pairs.one("repository").map(|repository| Self::List { repository }),
            "/tags" => pairs.needed("repository").map(|repository| Self::Tags { repository }),
            "/inspect" => inspect_ask(&mut pairs).map(Self::Inspect),
            "/check" => {
                let (references, platforms) = (pairs.all("reference"), pairs.all("platform"));
                Ok(Self::Check(check::CheckQuery { references, platforms }))
            }
            "/status" => Ok(Self::Status),
            _ => return None,
        };
        Some(question.and_then(|question| pairs.end().map(|()| question)))
    }

    /// The answer, as JSON.
    pub async fn answer(self, operations: &Operations) -> Result<Value, OpsError> {
        let cache = operations.cache();
        match self {
            Self::List { repository } => json(&list::list(cache, repository.as_deref(), true).await?),
            Self::Tags { repository } => json(&list::list(cache, Some(&repository), false).await?),
            Self::Inspect(ask) => json(&inspect::inspect(cache, ask).await?),
            Self::Check(ask) => json(&check::check(cache, ask).await?),
            Self::Status => json(&status::status(operations).await?),
        }
    }
}

/// A path below [`ROOT`] with its query.
pub(super) fn target(path: &str, pairs: Vec<(&'static str, String)>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    let query = query.finish();
    if query.is_empty() { format!("{ROOT}{path}") } else { format!("{ROOT}{path}?{query}") }
}

fn inspect_ask(pairs: &mut Pairs) -> Result<inspect::InspectQuery, OpsError> {
    Ok(inspect::InspectQuery {
        reference: pairs.needed("reference")?,
        platform: pairs.one("platform")?,
        index: pairs.flag("index")?,
        oci: pairs.flag("oci")?,
        media_type: pairs.one("media_type")?,
        config: pairs.flag("config")?,
    })
}

/// A report as JSON.
pub(super) fn json(report: &impl Serialize) -> Result<Value, OpsError> {
    serde_json::to_value(report)
        .map_err(|error| OpsError::Content(format!("the report cannot be written: {error}")))
}

/// The pairs of a query that nobody has asked for yet.
pub(super) struct Pairs(Vec<(String, String)>);

impl Pairs {
    pub(super) fn of(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    pub(super) fn all(&mut self, key: &str) -> Vec<String> {
        let (found, left) = std::mem::take(&mut self.0).into_iter().partition(|(name, _)| name == key);
        self.0 = left;
        let found: Vec<(String, String)> = found;
        found.into_iter().map(|(_, value)| value).collect()
    }

    pub(super) fn one(&mut self, key: &str) -> Result<Option<String>, OpsError> {
        let mut found = self.all(key);
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(OpsError::Invalid(format!("`{key}` may be given once"))),
        }
    }

    pub(super) fn needed(&mut self, key: &str) -> Result<String, OpsError> {
        self.one(key)?.ok_or_else(|| OpsError::Invalid(format!("`{key}` is missing")))
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<bool, OpsError> {
        match self.one(key)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(_) => Err(OpsError::Invalid(format!("`{key}` is true or false"))),
        }
    }

    pub(super) fn end(&self) -> Result<(), OpsError> {
        match self.0.first() {
            Some((key, _)) => {
                let key: String = key.chars().filter(char::is_ascii_graphic).take(40).collect();
                Err(OpsError::Invalid(format!("`{key}` says nothing here")))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_come_back_as_they_went() {
        let (text, other) = (|text: &str| text.to_owned(), |text: &str| Some(text.to_owned()));
        for question in [
            Query::List { repository: None },
            Query::List { repository: other("a/b&c=d") },
            Query::Tags { repository: text("busybox") },
            Query::Inspect(inspect::InspectQuery {
                reference: text("a:1@sha256:0"),
                platform: other("linux/arm/v7"),
                media_type: other("application/vnd.x+json"),
                oci: true,
                config: true,
                index: false,
            }),
            Query::Status,
            Query::Check(check::CheckQuery {
                references: vec![text("a"), text("b")],
                platforms: vec![text("linux/amd64")],
            }),
        ] {
            let target = question.target();
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let read = Query::read(path.strip_prefix(ROOT).expect("below the root"), query);
            assert_eq!(read.expect("a question").expect("well written"), question);
        }
    }

    #[test]
    fn what_is_no_question_is_refused() {
        assert!(Query::read("/nothing", "").is_none());
        for (path, query) in [
            ("/tags", ""),
            ("/images", "repository=a&repository=b"),
            ("/images", "repositry=a"),
            ("/status", "verbose"),
            ("/inspect", "reference=a&oci=maybe"),
        ] {
            assert!(Query::read(path, query).is_some_and(|read| read.is_err()), "{path}?{query}");
        }
    }
}
