//! Lists of a registry, followed page by page to the end: tags, and referrers of a manifest.
//!
//! A list is complete or an error. A list that is interrupted, repeats a page or exceeds a limit is never returned in part,
//! because a missing entry would read as one that does not exist.

use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::encoding::is_gzip;
use super::limits::ConnectionLimits;
use super::link_header;
use super::request::RegistryRequest;
use super::response::{DocumentLimits, content_length, decode, expect_status, read_document};
use crate::oci::media::OCI_INDEX;
use crate::oci::{MediaType, Referrers, Tag};
use crate::source::{Counted, DocumentMemory, LIST_MAX, SourceError, TAGS_MAX};
use crate::upstream::auth::Auth;
use crate::upstream::transport::client::HttpClient;

/// Largest number of pages of one list.
const PAGES_MAX: usize = 1000;
/// Query that asks for this number of tags per page. Registries that send fewer say so in `Link`.
pub(super) const TAGS_PER_PAGE: &str = "n=1000";
/// Statuses with which registries without the referrers API answer. Distribution-spec, "Listing Referrers", names 404
/// only; clients in use know the others too.
pub(super) const WITHOUT_REFERRERS_API: &[StatusCode] = &[
    StatusCode::BAD_REQUEST,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::NOT_ACCEPTABLE,
    StatusCode::NOT_IMPLEMENTED,
];

/// One page as it was sent.
struct Page {
    status: StatusCode,
    content_type: Option<MediaType>,
    body: Bytes,
    /// Target of the link to the next page.
    next: Option<String>,
    /// True if another host sent the page, to which the registry redirects.
    is_elsewhere: bool,
}

/// Pages of a list, in order.
pub(super) struct Pages<'r> {
    http: &'r HttpClient,
    auth: &'r Auth,
    limits: &'r ConnectionLimits,
    request: RegistryRequest<'r>,
    /// Queries of the pages that have been requested.
    seen: HashSet<String>,
    /// Deadline of the next page's head. Each page has its own.
    deadline: Instant,
    /// Bytes of all pages so far.
    bytes: usize,
    ended: bool,
    memory: DocumentMemory,
}

/// Body of a page of tags.
#[derive(Deserialize)]
pub(super) struct TagList {
    /// `null` for an empty list in distribution.
    #[serde(default)]
    pub(super) tags: Tags,
}

/// Valid tags of a page. Other elements are skipped, so that they do not hide the others. Elements are read one by one, so
/// that a list of millions of invalid ones needs no memory.
#[derive(Default)]
pub(super) struct Tags(pub(super) Vec<Tag>);

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TagsVisitor)
    }
}

struct TagsVisitor;

impl<'de> Visitor<'de> for TagsVisitor {
    type Value = Tags;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tags")
    }

    fn visit_unit<E>(self) -> Result<Tags, E> {
        Ok(Tags::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tags, A::Error> {
        let mut tags = Vec::new();
        while let Some(element) = list.next_element::<&RawValue>()? {
            let tag = serde_json::from_str::<String>(element.get()).ok().and_then(|text| text.parse().ok());
            // One more than permitted is enough to refuse the list.
            tags.extend(tag.filter(|_| tags.len() <= TAGS_MAX));
        }
        Ok(Tags(tags))
    }
}

/// Body of an error (distribution-spec, "Error Codes").
#[derive(Deserialize)]
struct ErrorList {
    errors: Vec<CodedError>,
}

#[derive(Deserialize)]
struct CodedError {
    code: String,
}

/// Reads all tags. Invalid tags are left out, because clients cannot pull them.
pub(super) async fn tags(mut pages: Pages<'_>) -> Result<Vec<Tag>, SourceError> {
    let mut tags = Vec::new();
    while let Some(page) = pages.next().await? {
        let parse = move || serde_json::from_slice::<TagList>(&page.body).ok();
        let list = pages.process(parse).await?;
        let invalid = || SourceError::Invalid("its list of tags is not valid".to_owned());
        tags.extend(list.ok_or_else(invalid)?.tags.0);
        if tags.len() > TAGS_MAX {
            return Err(SourceError::Invalid(format!("it lists more than {TAGS_MAX} tags")));
        }
    }
    Ok(tags)
}

/// Reads all referrers.
pub(super) async fn referrers(mut pages: Pages<'_>) -> Result<Counted<Referrers>, SourceError> {
    let mut list = Referrers::default();
    let mut first = true;
    while let Some(page) = pages.next().await? {
        let mut rest = std::mem::take(&mut list);
        // All pages together: adding to a large list and dropping one takes long too.
        let add = move || {
            page.referrers().map(|part| {
                rest.extend(part);
                rest
            })
        };
        match pages.process(add).await? {
            Ok(longer) => list = longer,
            // After a valid first page the list exists, so it is damaged and not missing.
            Err(
                SourceError::NoReferrers { .. } | SourceError::ReferrersElsewhere | SourceError::NotReferrers,
            ) if !first => {
                return Err(SourceError::Invalid("a page of its list of referrers is not valid".to_owned()));
            }
            Err(error) => return Err(error),
        }
        first = false;
    }
    let Pages { mut memory, bytes, .. } = pages;
    memory.shrink(bytes);
    Ok(Counted::new(list, memory))
}

impl<'r> Pages<'r> {
    /// Runs `work` on the last page and those before it.
    async fn process<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SourceError> {
        self.memory.process(self.bytes, self.deadline, work).await
    }

    /// Starts at the page that `request` asks for.
    pub(super) fn new(
        http: &'r HttpClient,
        auth: &'r Auth,
        limits: &'r ConnectionLimits,
        request: RegistryRequest<'r>,
        deadline: Instant,
        memory: DocumentMemory,
    ) -> Self {
        let seen = HashSet::from([request.url.query().unwrap_or_default().to_owned()]);
        Self { http, auth, limits, request, seen, deadline, bytes: 0, ended: false, memory }
    }

    /// Fetches the next page; `None` after the last.
    async fn next(&mut self) -> Result<Option<Page>, SourceError> {
        if self.ended {
            return Ok(None);
        }
        let page = match self.fetch().await {
            // Some registries refuse pages that are larger than they permit (distribution: `PAGINATION_NUMBER_INVALID`).
            Err(SourceError::Unsupported(_)) if self.has_page_size() => {
                self.request.url.set_query(None);
                self.fetch().await?
            }
            page => page?,
        };
        self.deadline = Instant::now() + self.http.timeouts.total;
        self.bytes += page.body.len();
        match &page.next {
            Some(target) => self.turn_to(target)?,
            None => self.ended = true,
        }
        Ok(Some(page))
    }

    /// Returns true for the first request, if it asks for a number of tags per page.
    fn has_page_size(&self) -> bool {
        self.request.url.query() == Some(TAGS_PER_PAGE)
    }

    /// Makes the page behind a link the next one. Only the query of the link is used: host and path of a list are known,
    /// and registries behind proxies often send wrong ones.
    fn turn_to(&mut self, target: &str) -> Result<(), SourceError> {
        let invalid = |reason: &str| SourceError::Invalid(reason.to_owned());
        let next = self
            .request
            .url
            .join(target)
            .map_err(|_| invalid("its Link to the next page is no valid URL"))?;
        let query = next.query().unwrap_or_default();
        if !self.seen.insert(query.to_owned()) {
            return Err(invalid("the pages of its list repeat"));
        }
        if self.seen.len() > PAGES_MAX {
            return Err(SourceError::Invalid(format!("its list has more than {PAGES_MAX} pages")));
        }
        self.request.url.set_query(Some(query));
        Ok(())
    }

    async fn fetch(&mut self) -> Result<Page, SourceError> {
        let _permit = self.limits.for_document(self.request.name, self.deadline).await?;
        let mut response = self.request.send(self.http, self.auth, self.deadline).await?;
        if response.status().is_success() {
            expect_status(&response, StatusCode::OK)?;
        }
        let headers = response.headers();
        let encoded = is_gzip(headers)?;
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let (content_type, next) =
            (content_type.and_then(MediaType::from_header), link_header::next(headers));
        let size = content_length(headers);
        let status = response.status();
        let is_elsewhere = response.url().origin() != self.request.url.origin();
        if encoded {
            self.memory.reserve(LIST_MAX, self.deadline).await?;
        }
        // A list of one page has its length as the only one.
        let whole = size.filter(|_| self.bytes == 0 && next.is_none());
        let limits = DocumentLimits::new("list", self.bytes, whole, LIST_MAX, self.deadline);
        let body = read_document(self.http, &mut response, size, &limits, &mut self.memory).await?;
        let body = if encoded { decode(body, LIST_MAX, &self.memory, self.deadline).await? } else { body };
        Ok(Page { status, content_type, body, next, is_elsewhere })
    }
}

impl Page {
    /// Parses a page of referrers.
    fn referrers(&self) -> Result<Referrers, SourceError> {
        if self.status != StatusCode::OK {
            return Err(SourceError::NoReferrers { lasting: !self.is_about_the_name() });
        }
        // Some registries label every response as JSON. Other media types are not accepted.
        let fits = self.content_type.as_ref().is_none_or(|content_type| {
            [OCI_INDEX, "application/json"].iter().any(|it| content_type.as_str().eq_ignore_ascii_case(it))
        });
        let list = fits.then(|| Referrers::read(&self.body)).flatten();
        // A server that answers every path with an HTML page says nothing about what the registry supports.
        list.ok_or(if self.is_elsewhere {
            SourceError::ReferrersElsewhere
        } else {
            SourceError::NotReferrers
        })
    }

    /// Returns true if an error response is about the repository or digest, and not about the API.
    fn is_about_the_name(&self) -> bool {
        let list = serde_json::from_slice::<ErrorList>(&self.body);
        list.is_ok_and(|list| list.errors.first().is_some_and(|error| error.code != "UNSUPPORTED"))
    }
}
