//! Registry check: connection, `GET /v2/`, login, and quota or pull. Stops at the first step that fails.

use std::time::{Duration, Instant as StdInstant, SystemTime};

use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Request, Response};
use tokio::time::Instant;
use url::Url;

use super::connection::{Aborted, ConnectionCheck};
use super::remedies::{RENEW_CREDENTIALS, clock_skew, login_failed, rate_limited};
use super::report::{Step, Verdict};
use crate::config::advice::known_endpoint;
use crate::config::schema;
use crate::oci::{Name, Reference};
use crate::source::{Source as _, SourceError};
use crate::upstream::{Challenge, Registry, check_status, choose_challenge};

/// Image that Docker provides for reading the quota. A HEAD request for it does not count.
const HUB_PREVIEW: (&str, &str) = ("ratelimitpreview/test", "latest");
/// Repository name for the look-up of credentials when no cached repository is known.
const NO_REPOSITORY: &str = "larder/doctor";
const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
                                application/vnd.docker.distribution.manifest.list.v2+json, \
                                application/vnd.oci.image.manifest.v1+json, \
                                application/vnd.docker.distribution.manifest.v2+json";

/// Limit on redirects of `GET /v2/`.
const REDIRECTS_MAX: usize = 5;

/// Repository and reference that are known to exist at an upstream.
pub(super) type KnownImage = (Name, Reference);

/// Runs all steps for a registry of the upstream `name`. `known` allows checks of a pull.
pub(super) async fn check(
    name: &str,
    registry: &Registry,
    settings: &schema::Upstream,
    known: Option<&KnownImage>,
) -> Vec<Step> {
    let mut check = RegistryCheck { name, registry, known, steps: Vec::new() };
    // The last step says why a check was aborted.
    let _ = check.run(settings).await;
    check.steps
}

struct RegistryCheck<'a> {
    /// Name of the upstream.
    name: &'a str,
    registry: &'a Registry,
    known: Option<&'a KnownImage>,
    steps: Vec<Step>,
}

impl RegistryCheck<'_> {
    async fn run(&mut self, settings: &schema::Upstream) -> Result<(), Aborted> {
        let url = Url::parse(&format!("{}/v2/", self.registry.base)).map_err(|error| {
            self.steps.push(Step::fails("name", error.to_string(), "correct `endpoints`"));
            Aborted
        })?;
        let connection = ConnectionCheck { http: &self.registry.http, settings, steps: &mut self.steps };
        connection.run(&url).await?;
        let answer = self.check_base(&url).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.check_login(&url, answer.headers()).await?;
        }
        self.check_quota().await
    }

    /// Adds a step. Returns an error if it fails.
    fn add(&mut self, step: Step) -> Result<(), Aborted> {
        let fails = step.verdict == Verdict::Fails;
        self.steps.push(step);
        if fails { Err(Aborted) } else { Ok(()) }
    }

    /// Sends `GET /v2/`.
    async fn check_base(&mut self, url: &Url) -> Result<Response, Aborted> {
        let started = StdInstant::now();
        let answer = match self.get(url, None).await {
            Ok(answer) => answer,
            Err(error) => {
                let remedy = "the registry is slow or down; cached content is still served. Try again, or configure another \
                              endpoint";
                self.steps.push(Step::fails("/v2/", error.to_string(), remedy).since(started));
                return Err(Aborted);
            }
        };
        let step = self.redirected_step(url, &answer).await.unwrap_or_else(|| self.base_step(&answer));
        let result = self.add(step.since(started));
        self.steps.extend(clock_skew(answer.headers(), SystemTime::now()));
        result.map(|()| answer)
    }

    /// Returns the step for an answer to `GET /v2/`.
    fn base_step(&self, answer: &Response) -> Step {
        if is_web_page(answer) {
            let found = format!("{}: a web page answers, not a registry", answer.status().as_u16());
            return Step::warning("/v2/", found, self.right_endpoint());
        }
        base_step(answer)
    }

    /// Follows the redirects of `GET /v2/`: web sites redirect every path to a page. Returns `None` if there is none.
    async fn redirected_step(&self, url: &Url, answer: &Response) -> Option<Step> {
        let (status, mut target) = (answer.status().as_u16(), redirect(url, answer)?);
        let mut found = None;
        for _ in 0..REDIRECTS_MAX {
            let answer = match self.get(&target, None).await {
                Ok(answer) => answer,
                Err(error) => {
                    let found = format!("{status}, redirects to {target}: {error}");
                    return Some(Step::warning("/v2/", found, self.right_endpoint()));
                }
            };
            if let Some(next) = redirect(&target, &answer) {
                target = next;
            } else {
                found = Some(answer);
                break;
            }
        }
        let host = target.host_str().unwrap_or("an unknown host");
        let is_registry = found
            .is_some_and(|answer| matches!(answer.status().as_u16(), 200 | 401) && !is_web_page(&answer));
        if is_registry {
            return Some(Step::ok("/v2/", format!("{status}, redirects to {host}")));
        }
        let found = format!("{status}, redirects to {host}, where no registry answers");
        Some(Step::warning("/v2/", found, self.right_endpoint()))
    }

    /// Returns the remedy for an endpoint that is not a registry.
    fn right_endpoint(&self) -> String {
        let known = known_endpoint(self.name).map(|url| format!("; the registry of {} is {url}", self.name));
        format!("name the registry in `endpoints`, not its web site{}", known.unwrap_or_default())
    }

    async fn get(&self, url: &Url, authorization: Option<&HeaderValue>) -> Result<Response, SourceError> {
        let http = &self.registry.http;
        http.policy.check(url)?;
        let mut request = Request::new(Method::GET, url.clone());
        if let Some(authorization) = authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let answer = http.send(request, http.timeouts.head, self.deadline()).await?;
        http.quota.observe(answer.headers());
        Ok(answer)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.registry.http.timeouts.total
    }

    async fn check_login(&mut self, url: &Url, headers: &HeaderMap) -> Result<(), Aborted> {
        let started = StdInstant::now();
        match self.login_step(url, headers).await {
            Some(step) => self.add(step.since(started)),
            None => Ok(()),
        }
    }

    /// Answers the challenge in `headers` and returns the result.
    async fn login_step(&self, url: &Url, headers: &HeaderMap) -> Option<Step> {
        let auth = &self.registry.auth;
        let Some(challenge) = choose_challenge(headers) else {
            return Some(Step::fails(
                "login",
                "the registry requires an authentication method other than Bearer and Basic",
                "check whether a proxy of a third party answers instead of the registry",
            ));
        };
        let name = self.known.map(|(name, _)| name.clone()).or_else(|| NO_REPOSITORY.parse().ok())?;
        let own = match auth.has_credential(&name, self.deadline()).await {
            Ok(own) => own,
            Err(error) => {
                let remedy = "check the files and the credential helper that the upstream's table names";
                return Some(Step::fails("login", error.to_string(), remedy));
            }
        };
        let realm = match &challenge {
            Challenge::Basic => None,
            Challenge::Bearer { realm, .. } => url.join(realm).ok(),
        };
        if challenge == Challenge::Basic && !own {
            return Some(Step::fails(
                "login",
                "the registry requires a user name and a password, and none is configured",
                "set `username` and `password_file`, or `docker_config`",
            ));
        }
        let service = realm.as_ref().and_then(Url::host_str).unwrap_or("the registry");
        let trusted = realm.as_ref().is_none_or(|realm| auth.trusts(realm));
        // With a known repository, the token is requested as for a pull.
        let authorization = match self.known {
            Some(_) => auth.answer_challenge(headers, url, &name, None, self.deadline()).await,
            None => auth.login(headers, url, &name, self.deadline()).await,
        };
        Some(match authorization {
            Err(error) => login_failed(error, service, own && trusted, own),
            Ok(_) if own && !trusted => Step::warning(
                "login",
                format!(
                    "the credentials are not sent to {service}: this token service does not belong to the registry"
                ),
                "if it may receive them, name it in `realm_hosts`",
            ),
            Ok(_) if !own => Step::ok("login", format!("anonymous, with a token of {service}")),
            Ok(header) => self.credentials_step(url, &header, service).await,
        })
    }

    /// Sends the credentials: only the registry's answer shows that they are valid.
    async fn credentials_step(&self, url: &Url, header: &HeaderValue, service: &str) -> Step {
        match self.get(url, Some(header)).await {
            Ok(answer) if answer.status().is_success() => {
                Step::ok("login", format!("the credentials are valid ({service})"))
            }
            Ok(answer) if matches!(answer.status().as_u16(), 401 | 403) => Step::fails(
                "login",
                format!("the registry rejects the credentials with {}", answer.status().as_u16()),
                RENEW_CREDENTIALS,
            ),
            Ok(answer) => {
                let found = format!("the registry answers the login with {}", answer.status().as_u16());
                Step::warning("login", found, "try again")
            }
            Err(error) => Step::fails("login", error.to_string(), "try again"),
        }
    }

    /// Requests the known image, or the preview image of Docker Hub, and reports the quota in the answer.
    async fn check_quota(&mut self) -> Result<(), Aborted> {
        let started = StdInstant::now();
        let image = self.known.cloned().or_else(|| self.hub_preview());
        let answer = match &image {
            Some((name, reference)) => {
                let deadline = Some(self.deadline());
                self.registry.head(name, reference, ACCEPT_MANIFESTS, deadline).await.map(drop)
            }
            None => Ok(()),
        };
        let step = match (answer, self.registry.http.quota.announced(), &image) {
            (Err(error @ SourceError::RateLimited { .. }), _, _) => rate_limited(Some(error)),
            (Err(error), None, Some((name, _))) if self.known.is_some() => Step::warning(
                "pull",
                format!("{name} is cached, but the registry refuses it: {error}"),
                "check the credentials, and that the repository still exists",
            ),
            (_, Some((0, limit, window)), _) => Step::warning(
                "quota",
                format!("none of {limit} requests{} is left", within(window)),
                "cached content is still served; set `username` and `password_file` of an account with a larger quota",
            ),
            (_, Some((left, limit, window)), _) => {
                Step::ok("quota", format!("{left} of {limit} requests{} are left", within(window)))
            }
            (Ok(()), None, Some((name, _))) if self.known.is_some() => {
                Step::ok("pull", format!("{name} is available"))
            }
            _ => return Ok(()),
        };
        self.add(step.since(started))
    }

    fn hub_preview(&self) -> Option<KnownImage> {
        let base = Url::parse(&self.registry.base).ok()?;
        let host = base.host_str().filter(|host| *host == "docker.io" || host.ends_with(".docker.io"));
        let (name, tag) = HUB_PREVIEW;
        host.and_then(|_| Some((name.parse().ok()?, tag.parse().ok()?)))
    }
}

/// Returns the step for the answer to `GET /v2/`.
fn base_step(answer: &Response) -> Step {
    let status = answer.status().as_u16();
    match status {
        200 => Step::ok("/v2/", "200, no login required"),
        401 => Step::ok("/v2/", "401, login required"),
        429 => rate_limited(check_status(answer).err()),
        404 => Step::fails(
            "/v2/",
            "404: there is no registry at this URL",
            "check host, port and path in `endpoints`; larder adds /v2 to the path",
        ),
        500.. => Step::fails("/v2/", format!("{status}: the registry fails"), "wait, and try again"),
        _ => Step::fails(
            "/v2/",
            format!("{status}: unexpected status for a registry"),
            "check host, port and path in `endpoints`, and proxies on the route",
        ),
    }
}

/// Returns the target of a redirect.
fn redirect(url: &Url, answer: &Response) -> Option<Url> {
    let is_redirect = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let target = answer.headers().get(LOCATION).filter(|_| is_redirect)?;
    url.join(target.to_str().ok()?).ok()
}

/// Returns true for a page for browsers. A login of a proxy in front of a registry may also be a page, with a challenge.
fn is_web_page(answer: &Response) -> bool {
    let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_html = media_type.is_some_and(|text| {
        let text = text.split(';').next().unwrap_or_default().trim();
        text.eq_ignore_ascii_case("text/html") || text.eq_ignore_ascii_case("application/xhtml+xml")
    });
    is_html && answer.status().is_success()
}

/// Formats the window of a quota.
fn within(window: Option<Duration>) -> String {
    window.map_or_else(String::new, |window| format!(" in {}", humantime::format_duration(window)))
}
