//! What is said of a step that did not go well, and what helps.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::DATE;
use rustls::{CertificateError, Error as TlsError};

use super::super::probe::Step;
use crate::source::SourceError;

/// Marker: later steps cannot be tried.
pub(super) struct End;

/// What helps where credentials are refused.
pub(super) const RENEW: &str =
    "check `username` and what is in `password_file`, or log in anew where `docker_config` is written";
/// From here on, clocks that differ are worth a word; tokens and certificates go by them.
const SKEW: Duration = Duration::from_mins(1);
const SKEW_TOO_MUCH: Duration = Duration::from_mins(10);

/// No login came about. `sent` says whether credentials were sent, `own` whether there are any.
pub(super) fn unmet(error: SourceError, service: &str, sent: bool, own: bool) -> Step {
    match error {
        error @ SourceError::Denied(_) if sent => {
            Step::fails("login", format!("{service} refuses the credentials ({error})"), RENEW)
        }
        error @ SourceError::Invalid(_) if error.to_string().contains("allow_private") => Step::fails(
            "login",
            format!("{service}: {error}"),
            "set `allow_private`, if that is where it should be",
        ),
        // Some give a token only for a repository, and none is known here.
        SourceError::Denied(_) | SourceError::Invalid(_) if !own => Step::warning(
            "login",
            format!("{service} gives nobody a token that is for no repository"),
            "pull something through larder, and try again: then there is a repository to ask for",
        ),
        error @ SourceError::RateLimited { .. } => limited(Some(error)),
        error => Step::fails(
            "login",
            format!("{service}: {error}"),
            "check that the token service that the registry names can be reached from here",
        ),
    }
}

/// A registry that refuses for its rate.
pub(super) fn limited(error: Option<SourceError>) -> Step {
    let again = error.and_then(|error| error.retry_after());
    let again = again.map_or_else(String::new, |wait| {
        format!(", for {} more", humantime::format_duration(Duration::from_secs(wait.as_secs())))
    });
    Step::fails(
        "quota",
        format!("429: it limits the rate of requests{again}"),
        "what is held is served meanwhile; wait, or set `username` and `password_file` of an account with a larger quota",
    )
}

pub(super) fn distrusted(error: Option<&TlsError>) -> &'static str {
    match error {
        Some(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "if the certificate is right, name its authority in `ca_file`"
        }
        Some(TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "write the host in `endpoints` as the certificate has it",
        Some(TlsError::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => "check this machine's clock; else the registry's certificate has to be renewed",
        Some(TlsError::InvalidCertificate(_)) => {
            "if the certificate is right, name its authority in `ca_file`; a proxy that opens TLS has one of its own"
        }
        Some(TlsError::AlertReceived(_)) => {
            "the registry refuses what larder offers; some want `client_cert` and `client_key`"
        }
        _ => "check scheme and port in `endpoints`: what answers there may not speak TLS",
    }
}

/// The difference between the registry's clock and ours, if it is worth a step.
pub(super) fn clock(headers: &HeaderMap, now: SystemTime) -> Option<Step> {
    let there = headers.get(DATE)?.to_str().ok()?;
    let there = httpdate::parse_http_date(there).ok()?;
    let (skew, word) = match now.duration_since(there) {
        Ok(skew) => (skew, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let shown = humantime::format_duration(Duration::from_secs(skew.as_secs()));
    let found = format!("this machine's is {shown} {word} the registry's");
    let remedy = "set this machine's clock (timedatectl set-ntp true): certificates and tokens go by it";
    match skew {
        _ if skew < SKEW => None,
        _ if skew < SKEW_TOO_MUCH => Some(Step::warning("clock", found, remedy)),
        _ => Some(Step::fails("clock", found, remedy)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::probe::Verdict;
    use super::*;

    #[test]
    fn clocks_differ_a_little_and_too_much() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * 50);
        let verdict = |date: SystemTime| {
            let mut headers = HeaderMap::new();
            headers.insert(DATE, httpdate::fmt_http_date(date).parse().expect("a header"));
            clock(&headers, now).map(|step| (step.verdict, step.found))
        };
        assert_eq!(verdict(now - Duration::from_secs(50)), None);
        let ahead = "this machine's is 2m ahead of the registry's".to_owned();
        assert_eq!(verdict(now - Duration::from_mins(2)), Some((Verdict::Warning, ahead)));
        let behind = "this machine's is 1h behind the registry's".to_owned();
        assert_eq!(verdict(now + Duration::from_hours(1)), Some((Verdict::Fails, behind)));
        assert_eq!(clock(&HeaderMap::new(), now), None);
    }

    #[test]
    fn a_limit_says_for_how_long() {
        let wait = Some(SourceError::RateLimited { retry_after: Some(Duration::from_mins(5)) });
        assert!(limited(wait).found.ends_with("for 5m more"));
        assert!(limited(None).found.ends_with("requests"));
    }
}
