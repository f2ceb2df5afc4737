//! The way to a registry, step by step: its name, a connection, TLS, an answer, a login, its quota.

mod connection;
mod remedy;

use std::time::{Duration, Instant as Began, SystemTime};

use http::header::{AUTHORIZATION, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::auth::challenge::{self, Challenge};
use super::probe::{Known, Step, Verdict};
use super::registry::Registry;
use super::transport::status::check_status;
use crate::config::schema;
use crate::oci::{Name, Reference};
use crate::source::{Source as _, SourceError};
use connection::Peer;
use remedy::{End, RENEW, clock, limited, unmet};

/// What Docker keeps to have its quota read from: a HEAD of it is not counted.
const HUB_PREVIEW: (&str, &str) = ("ratelimitpreview/test", "latest");
/// For whose sake credentials are looked up where no repository is known.
const NOBODYS: &str = "larder/doctor";

impl Registry {
    /// Tries all of it, up to the first step that fails.
    pub(crate) async fn steps(&self, settings: &schema::Upstream, known: Option<&Known>) -> Vec<Step> {
        let mut steps = Vec::new();
        // How far it came is what the steps say.
        let _ = self.walk(settings, known, &mut steps).await;
        steps
    }

    async fn walk(
        &self,
        settings: &schema::Upstream,
        known: Option<&Known>,
        steps: &mut Vec<Step>,
    ) -> Result<(), End> {
        let url = Url::parse(&format!("{}/v2/", self.base)).map_err(|error| {
            steps.push(Step::fails("name", error.to_string(), "correct `endpoints`"));
            End
        })?;
        let stream = self.reached(&url, settings, steps).await?;
        if url.scheme() == "https" {
            self.secured(Peer::Endpoint, &url, settings, stream, steps).await?;
        }
        let answer = self.answered(&url, steps).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.let_in(&url, answer.headers(), known, steps).await?;
        }
        self.counted(known, steps).await
    }

    /// What is said to `GET /v2/`.
    async fn answered(&self, url: &Url, steps: &mut Vec<Step>) -> Result<Response, End> {
        let began = Began::now();
        let answer = match self.get(url, None).await {
            Ok(answer) => answer,
            Err(error) => {
                let remedy = "the registry is slow or in trouble; what is held is served meanwhile. Try again, or name \
                              another endpoint";
                steps.push(Step::fails("/v2/", error.to_string(), remedy).since(began));
                return Err(End);
            }
        };
        let status = answer.status().as_u16();
        let step = match status {
            200 => Step::ok("/v2/", "200, open to everybody"),
            401 => Step::ok("/v2/", "401, wants a login"),
            429 => limited(check_status(&answer).err()),
            301 | 302 | 303 | 307 | 308 => {
                let to = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok());
                let to = to.and_then(|to| url.join(to).ok());
                let host = to.as_ref().and_then(Url::host_str).unwrap_or("nowhere");
                Step::ok("/v2/", format!("{status}, sends on to {host}"))
            }
            404 => Step::fails(
                "/v2/",
                "404: there is no registry at this URL",
                "check host, port and path in `endpoints`; /v2 is added to what stands there",
            ),
            500.. => {
                Step::fails("/v2/", format!("{status}: the registry is in trouble"), "wait, and try again")
            }
            _ => Step::fails(
                "/v2/",
                format!("{status}, which no registry says"),
                "check host, port and path in `endpoints`, and what stands between",
            ),
        };
        let failed = step.verdict == Verdict::Fails;
        steps.push(step.since(began));
        steps.extend(clock(answer.headers(), SystemTime::now()));
        if failed { Err(End) } else { Ok(answer) }
    }

    async fn get(&self, url: &Url, authorization: Option<&HeaderValue>) -> Result<Response, SourceError> {
        self.http.policy.check(url)?;
        let mut request = self.http.client.get(url.clone());
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answer = self.http.send(request, url, "GET", self.doctor_deadline()).await?;
        self.http.quota.observe(answer.headers());
        Ok(answer)
    }

    fn doctor_deadline(&self) -> Instant {
        Instant::now() + self.http.timeouts.total
    }

    /// Reports the login, or the token for anonymous clients.
    async fn let_in(
        &self,
        url: &Url,
        headers: &HeaderMap,
        known: Option<&Known>,
        steps: &mut Vec<Step>,
    ) -> Result<(), End> {
        let began = Began::now();
        let Some(step) = self.login_step(url, headers, known).await else { return Ok(()) };
        let failed = step.verdict == Verdict::Fails;
        steps.push(step.since(began));
        if failed { Err(End) } else { Ok(()) }
    }

    /// Answers the challenge in `headers` and returns the result; none if there is nothing to log in with.
    async fn login_step(&self, url: &Url, headers: &HeaderMap, known: Option<&Known>) -> Option<Step> {
        let Some(challenge) = challenge::choose(headers) else {
            return Some(Step::fails(
                "login",
                "it wants one of a kind that larder does not know (neither Bearer nor Basic)",
                "check whether a proxy of somebody else's stands before the registry",
            ));
        };
        let name = known.map(|(name, _)| name.clone()).or_else(|| NOBODYS.parse().ok())?;
        let own = match self.auth.has_credential(&name, self.doctor_deadline()).await {
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
                "it wants a user name and a password, and none is configured",
                "set `username` and `password_file`, or `docker_config`",
            ));
        }
        let service = realm.as_ref().and_then(Url::host_str).unwrap_or("the registry itself");
        let trusted = realm.as_ref().is_none_or(|realm| self.auth.trusts(realm));
        // As a pull asks for it, where there is something that could be pulled.
        let met = match known {
            Some(_) => self.auth.answer_challenge(headers, url, &name, None, self.doctor_deadline()).await,
            None => self.auth.login(headers, url, &name, self.doctor_deadline()).await,
        };
        Some(match met {
            Err(error) => unmet(error, service, own && trusted, own),
            Ok(_) if own && !trusted => Step::warning(
                "login",
                format!(
                    "{service} is asked for a token without the credentials: it is not the registry's own"
                ),
                "if it may have them, name it in `realm_hosts`",
            ),
            Ok(_) if !own => {
                Step::ok("login", format!("none, with a token of {service} that everybody gets"))
            }
            Ok(header) => self.credentials_step(url, &header, service).await,
        })
    }

    /// Sends the credentials: only the registry's answer shows that they are valid.
    async fn credentials_step(&self, url: &Url, header: &HeaderValue, service: &str) -> Step {
        match self.get(url, Some(header)).await {
            Ok(answer) if answer.status().is_success() => {
                Step::ok("login", format!("the credentials are good ({service})"))
            }
            Ok(answer) if matches!(answer.status().as_u16(), 401 | 403) => Step::fails(
                "login",
                format!("the registry refuses the credentials with {}", answer.status().as_u16()),
                RENEW,
            ),
            Ok(answer) => {
                let found = format!("the registry answers a login with {}", answer.status().as_u16());
                Step::warning("login", found, "try again")
            }
            Err(error) => Step::fails("login", error.to_string(), "try again"),
        }
    }

    /// Whether it says something of a quota, and whether that is used up.
    async fn counted(&self, known: Option<&Known>, steps: &mut Vec<Step>) -> Result<(), End> {
        let began = Began::now();
        let hub = Url::parse(&self.base).is_ok_and(|base| is_hub(&base)).then(|| {
            let (name, tag) = HUB_PREVIEW;
            Some((name.parse::<Name>().ok()?, tag.parse::<Reference>().ok()?))
        });
        let asked = known.cloned().or_else(|| hub.flatten());
        let answer = match &asked {
            Some((name, reference)) => {
                let accept = "application/vnd.oci.image.index.v1+json, \
                              application/vnd.docker.distribution.manifest.list.v2+json, \
                              application/vnd.oci.image.manifest.v1+json, \
                              application/vnd.docker.distribution.manifest.v2+json";
                self.head(name, reference, accept, Some(self.doctor_deadline())).await.map(drop)
            }
            None => Ok(()),
        };
        let step = match (answer, self.http.quota.announced(), &asked) {
            (Err(error @ SourceError::RateLimited { .. }), _, _) => {
                steps.push(limited(Some(error)).since(began));
                return Err(End);
            }
            (Err(error), None, Some((name, _))) if known.is_some() => Step::warning(
                "pull",
                format!("{name}, which is held, is refused: {error}"),
                "check the credentials and whether the repository is still there",
            ),
            (_, Some((0, limit, window)), _) => Step::warning(
                "quota",
                format!("none of {limit} requests {} is left", within(window)),
                "what is held is served on; `username` and `password_file` of an account bring a larger quota",
            ),
            (_, Some((left, limit, window)), _) => {
                Step::ok("quota", format!("{left} of {limit} requests {} are left", within(window)))
            }
            (Ok(()), None, Some((name, _))) if known.is_some() => {
                Step::ok("pull", format!("{name} is there"))
            }
            _ => return Ok(()),
        };
        steps.push(step.since(began));
        Ok(())
    }
}

fn is_hub(base: &Url) -> bool {
    base.host_str().is_some_and(|host| host == "docker.io" || host.ends_with(".docker.io"))
}

fn within(window: Option<Duration>) -> String {
    window.map_or_else(|| "in all".to_owned(), |window| format!("in {}", humantime::format_duration(window)))
}
