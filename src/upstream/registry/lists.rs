//! Lists of a registry over HTTP, followed page by page to their end: tags, and what refers to a manifest.
//!
//! A list is whole or it is an error: one that breaks off, goes in a circle or exceeds a bound is never passed on as
//! far as it came, because what is missing in it would read as not being there.

use std::collections::HashSet;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use super::encoding::{self, is_gzip};
use super::request::RegistryRequest;
use super::{Registry, length, link_header, only, permit};
use crate::oci::media::OCI_INDEX;
use crate::oci::{Digest, MediaType, Name, Referrers, Tag};
use crate::upstream::error::UpstreamError;
use crate::upstream::{LIST_MAX, TAGS_MAX};

/// Pages of one list.
const PAGES_MAX: usize = 1000;
/// Tags asked for per page; registries that give fewer say so by their Link.
const TAGS_PER_PAGE: &str = "n=1000";
/// Statuses by which registries without the referrers API answer; some clients know them all (distribution-spec,
/// "Listing Referrers", asks for 404).
const WITHOUT_API: &[StatusCode] = &[
    StatusCode::BAD_REQUEST,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::NOT_ACCEPTABLE,
    StatusCode::NOT_IMPLEMENTED,
];

/// One page as it came.
struct Page {
    status: StatusCode,
    content_type: Option<MediaType>,
    body: Bytes,
    /// Where the next one is said to be.
    next: Option<String>,
}

/// A list being followed.
struct Walk<'w> {
    registry: &'w Registry,
    request: RegistryRequest<'w>,
    /// The queries of the pages that have been asked for.
    asked: HashSet<String>,
    /// Until when the head of the page must have come; counts from one page to the next.
    deadline: Instant,
    /// Bytes that have come.
    bytes: usize,
    ended: bool,
}

#[derive(Deserialize)]
struct TagList {
    /// distribution writes `null` for none.
    #[serde(default)]
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ErrorList {
    errors: Vec<CodedError>,
}

#[derive(Deserialize)]
struct CodedError {
    code: String,
}

impl Registry {
    /// All tags, in no particular order. What is no tag by the grammar is left out: nobody could pull it.
    pub(crate) async fn tags(&self, name: &Name, deadline: Instant) -> Result<Vec<Tag>, UpstreamError> {
        let mut request = self.request(Method::GET, name, "tags", &"list", None)?;
        request.url.set_query(Some(TAGS_PER_PAGE));
        let mut walk = Walk::new(self, request, deadline);
        let mut tags = Vec::new();
        while let Some(page) = walk.page().await? {
            let list: TagList = serde_json::from_slice(&page.body)
                .map_err(|_| UpstreamError::Invalid("its list of tags is none".to_owned()))?;
            tags.extend(list.tags.unwrap_or_default().iter().filter_map(|tag| tag.parse::<Tag>().ok()));
            if tags.len() > TAGS_MAX {
                return Err(UpstreamError::Invalid(format!("it lists more than {TAGS_MAX} tags")));
            }
        }
        Ok(tags)
    }

    /// All that refers to `subject`.
    pub(crate) async fn referrers(
        &self,
        name: &Name,
        subject: &Digest,
        deadline: Instant,
    ) -> Result<Referrers, UpstreamError> {
        let mut request = self.request(Method::GET, name, "referrers", subject, Some(OCI_INDEX))?;
        request.read_too = WITHOUT_API;
        let mut walk = Walk::new(self, request, deadline);
        let mut list = Referrers::default();
        let mut first = true;
        while let Some(page) = walk.page().await? {
            match page.referrers() {
                Ok(part) => list.extend(part),
                // What has begun as a list and goes on as something else is broken, not missing.
                Err(UpstreamError::NoReferrers { .. }) if !first => {
                    return Err(UpstreamError::Invalid("a page of its list of referrers is none".to_owned()));
                }
                Err(error) => return Err(error),
            }
            first = false;
        }
        Ok(list)
    }
}

impl<'w> Walk<'w> {
    fn new(registry: &'w Registry, request: RegistryRequest<'w>, deadline: Instant) -> Self {
        let asked = HashSet::from([request.url.query().unwrap_or_default().to_owned()]);
        Self { registry, request, asked, deadline, bytes: 0, ended: false }
    }

    /// The next page; `None` after the last.
    async fn page(&mut self) -> Result<Option<Page>, UpstreamError> {
        if self.ended {
            return Ok(None);
        }
        let page = self.registry.page(&self.request, self.deadline, self.bytes).await?;
        self.deadline = Instant::now() + self.registry.http.timeouts.total;
        self.bytes += page.body.len();
        match &page.next {
            Some(target) => self.turn_to(target)?,
            None => self.ended = true,
        }
        Ok(Some(page))
    }

    /// Makes the next page the one to ask for. Of a Link only its query is taken: the host and the path of a list are
    /// known, and registries behind proxies are often wrong about their own.
    fn turn_to(&mut self, target: &str) -> Result<(), UpstreamError> {
        let invalid = |reason: &str| UpstreamError::Invalid(reason.to_owned());
        let next =
            self.request.url.join(target).map_err(|_| invalid("its Link to the next page is no URL"))?;
        let query = next.query().unwrap_or_default();
        if !self.asked.insert(query.to_owned()) {
            return Err(invalid("the pages of its list go in a circle"));
        }
        if self.asked.len() > PAGES_MAX {
            return Err(UpstreamError::Invalid(format!("its list has more than {PAGES_MAX} pages")));
        }
        self.request.url.set_query(Some(query));
        Ok(())
    }
}

impl Registry {
    async fn page(
        &self,
        request: &RegistryRequest<'_>,
        deadline: Instant,
        before: usize,
    ) -> Result<Page, UpstreamError> {
        let _permit = permit(&self.small, deadline).await?;
        let mut response = request.send(&self.http, &self.auth, deadline).await?;
        if response.status().is_success() {
            only(&response, StatusCode::OK)?;
        }
        let headers = response.headers();
        let encoded = is_gzip(headers)?;
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let (content_type, next) =
            (content_type.and_then(MediaType::from_header), link_header::next(headers));
        let size = length(headers);
        let status = response.status();
        let body = self.body(&mut response, size, "list", before, LIST_MAX).await?;
        let body = if encoded { encoding::document(body, LIST_MAX)? } else { body };
        Ok(Page { status, content_type, body, next })
    }
}

impl Page {
    /// Reads a page of a list of referrers.
    fn referrers(&self) -> Result<Referrers, UpstreamError> {
        if self.status != StatusCode::OK {
            return Err(UpstreamError::NoReferrers { lasting: !self.speaks_of_the_name() });
        }
        // Some registries write JSON over everything. What says that it is something else is something else.
        let fits = self.content_type.as_ref().is_none_or(|content_type| {
            [OCI_INDEX, "application/json"].iter().any(|it| content_type.as_str().eq_ignore_ascii_case(it))
        });
        let list = fits.then(|| Referrers::read(&self.body)).flatten();
        // Whoever answers any path with a page of HTML has told nothing of what the registry can do.
        list.ok_or(UpstreamError::NoReferrers { lasting: false })
    }

    /// Whether a refusal is about the repository or the digest that was asked for, and not about the API.
    fn speaks_of_the_name(&self) -> bool {
        let list = serde_json::from_slice::<ErrorList>(&self.body);
        list.is_ok_and(|list| list.errors.first().is_some_and(|error| error.code != "UNSUPPORTED"))
    }
}
