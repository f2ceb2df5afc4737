//! Endpoints for lists: tags, repositories and referrers, in pages.

use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderValue, Response};
use oci_spec::distribution::{RepositoryListBuilder, TagListBuilder};
use url::form_urlencoded;

use crate::api::body::Body;
use crate::api::refusal::Refusal;
use crate::api::response;
use crate::api::route::RegistryQuery;
use crate::cache::{Cache, NamePage, ReferrersAnswer, ReferrersQuery};
use crate::oci::{Digest, MediaType, Repository, media};
use crate::telemetry::Outcome;

use super::request::{RegistryAnswer, RequestHead, json};

/// Default page size of `_catalog`.
const CATALOG_PAGE: usize = 100;
/// Maximum page size.
const PAGE_MAX: usize = 10_000;
/// Maximum size of a page of referrers in bytes. Several clients read no larger document.
const REFERRERS_BYTES: usize = 4 * 1024 * 1024;

/// Lists the tags of a repository.
pub(super) async fn tags(
    cache: &Cache,
    request: &RequestHead<'_>,
    repository: &Repository,
) -> Result<RegistryAnswer, Refusal> {
    let limit = page_size(&request.query)?.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let listing = cache.tags(repository, request.query.last.clone(), limit).await?;
    let listing = listing.ok_or(Refusal::NoTags)?;
    let page = &listing.content;
    let list = TagListBuilder::default().name(repository.name.as_str()).tags(page.names.clone()).build();
    let mut answer = names_page(request, page, limit, list.ok());
    response::insert_listing(answer.headers_mut(), &listing);
    Ok(RegistryAnswer::Whole(answer, listing.outcome))
}

/// Lists the cached repositories.
pub(super) async fn catalog(
    cache: &Cache,
    request: &RequestHead<'_>,
    prefix: Option<&str>,
) -> Result<RegistryAnswer, Refusal> {
    // A larger page is refused, as in distribution (CVE-2023-2253).
    let limit = page_size(&request.query)?.unwrap_or(CATALOG_PAGE);
    if limit > PAGE_MAX {
        return Err(Refusal::PageSize(Some(PAGE_MAX)));
    }
    let only = request.query.ns.as_deref().or(prefix).map(|name| cache.upstream_named(name)).transpose()?;
    let page = cache.repositories(only, request.query.last.clone(), limit).await?;
    let list = RepositoryListBuilder::default().repositories(page.names.clone()).build();
    Ok(RegistryAnswer::Whole(names_page(request, &page, limit, list.ok()), Outcome::None))
}

/// Lists the referrers of a manifest.
pub(super) async fn referrers(
    cache: &Cache,
    request: &RequestHead<'_>,
    repository: &Repository,
    subject: &Digest,
) -> Result<RegistryAnswer, Refusal> {
    let artifact_type = filter(&request.query.artifact_types);
    let after = request.query.last.as_deref();
    let query = ReferrersQuery { artifact_type, after, most: REFERRERS_BYTES };
    let ReferrersAnswer { list: mut listing, is_filtered } =
        cache.referrers(repository, subject, query).await?;
    let mut answer = json(std::mem::take(&mut listing.content.body));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media::OCI_INDEX));
    if is_filtered {
        headers.insert(response::FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    response::insert_listing(headers, &listing);
    if let Some(last) = &listing.content.next {
        let filter =
            artifact_type.filter(|_| is_filtered).map(|artifact_type| ("artifactType", artifact_type));
        link_next(&mut answer, request, filter, last);
    }
    Ok(RegistryAnswer::Whole(answer, listing.outcome))
}

/// Returns the artifact type to filter by. The list is not filtered by several types, or by a text that is no media type: a
/// client applies a filter itself if `OCI-Filters-Applied` is missing (distribution-spec, "Listing Referrers"), but signatures
/// that are missing in a filtered list do not exist for it.
fn filter(artifact_types: &[String]) -> Option<&str> {
    let (first, rest) = artifact_types.split_first()?;
    let is_media_type = MediaType::from_header(first).is_some_and(|valid| valid.as_str() == first);
    (is_media_type && rest.iter().all(|other| other == first)).then_some(first.as_str())
}

/// Returns the page size that the client asks for.
fn page_size(query: &RegistryQuery) -> Result<Option<usize>, Refusal> {
    match &query.n {
        None => Ok(None),
        Some(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(Some(text.parse().unwrap_or(usize::MAX)))
        }
        Some(_) => Err(Refusal::PageSize(None)),
    }
}

/// Returns a page of names.
fn names_page(
    request: &RequestHead<'_>,
    page: &NamePage,
    limit: usize,
    list: Option<impl serde::Serialize>,
) -> Response<Body> {
    // Both lists are complete and plain data, so that this cannot fail.
    let mut answer = json(list.and_then(|list| serde_json::to_vec(&list).ok()).unwrap_or_default());
    if let (true, Some(last)) = (page.more, page.names.last()) {
        link_next(&mut answer, request, Some(("n", &limit.to_string())), last);
    }
    answer
}

/// A link to the next page, on the path that of the request (RFC 8288).
fn link_next(
    answer: &mut Response<Body>,
    request: &RequestHead<'_>,
    parameter: Option<(&str, &str)>,
    last: &str,
) {
    let mut next = form_urlencoded::Serializer::new(String::new());
    next.extend_pairs(parameter).append_pair("last", last);
    if let Some(ns) = &request.query.ns {
        next.append_pair("ns", ns);
    }
    let link = format!("<{}?{}>; rel=\"next\"", request.path, next.finish());
    response::insert_text(answer.headers_mut(), LINK, &link);
}
