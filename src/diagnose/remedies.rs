//! Steps for failed logins, rate limits and wrong clocks, and the remedies for certificate errors.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::DATE;
use rustls::{CertificateError, Error as TlsError};

use super::report::Step;
use crate::source::SourceError;

/// Remedy for rejected credentials.
pub(super) const RENEW_CREDENTIALS: &str =
    "check `username` and the contents of `password_file`, or log in again to renew `docker_config`";
/// Clock difference from which there is a warning. Tokens and certificates depend on the time.
const SKEW_WARNING: Duration = Duration::from_mins(1);
/// Clock difference from which the check fails.
const SKEW_FAILURE: Duration = Duration::from_mins(10);

/// Returns the step for a login without a result. `sent` is true if credentials were sent, `own` if any are configured.
pub(super) fn login_failed(error: SourceError, service: &str, sent: bool, own: bool) -> Step {
    match error {
        error @ SourceError::Denied(_) if sent => {
            Step::fails("login", format!("{service} rejects the credentials ({error})"), RENEW_CREDENTIALS)
        }
        error @ SourceError::Invalid(_) if error.to_string().contains("allow_private") => Step::fails(
            "login",
            format!("{service}: {error}"),
            "set `allow_private` if the token service should be at this address",
        ),
        // Some token services require a repository, and none is known here.
        SourceError::Denied(_) | SourceError::Invalid(_) if !own => Step::warning(
            "login",
            format!("{service} gives no anonymous token without a repository"),
            "pull an image through larder, and run this again: the check then uses its repository",
        ),
        error @ SourceError::RateLimited { .. } => rate_limited(Some(error)),
        error => Step::fails(
            "login",
            format!("{service}: {error}"),
            "check that the registry's token service can be reached from here",
        ),
    }
}

/// Returns the step for a registry that responds with 429.
pub(super) fn rate_limited(error: Option<SourceError>) -> Step {
    let wait = error.and_then(|error| error.retry_after());
    let wait = wait.map_or_else(String::new, |wait| {
        format!(", for another {}", humantime::format_duration(Duration::from_secs(wait.as_secs())))
    });
    Step::fails(
        "quota",
        format!("429: the registry limits the rate of requests{wait}"),
        "cached content is still served; wait, or set `username` and `password_file` of an account with a larger quota",
    )
}

/// Returns the remedy for a failed TLS handshake.
pub(super) fn certificate_remedy(error: Option<&TlsError>) -> &'static str {
    match error {
        Some(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "if the certificate is right, name its authority in `ca_file`"
        }
        Some(TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "write the host in `endpoints` as in the certificate",
        Some(TlsError::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => "check this machine's clock; if it is right, the registry needs a new certificate",
        Some(TlsError::InvalidCertificate(_)) => {
            "if the certificate is right, name its authority in `ca_file`; a proxy that inspects TLS has its own authority"
        }
        Some(TlsError::AlertReceived(_)) => {
            "the registry refuses the TLS handshake; some require `client_cert` and `client_key`"
        }
        _ => "check scheme and port in `endpoints`: the port may not use TLS",
    }
}

/// Returns a step if this machine's clock differs too much from the registry's.
pub(super) fn clock_skew(headers: &HeaderMap, now: SystemTime) -> Option<Step> {
    let there = headers.get(DATE)?.to_str().ok()?;
    let there = httpdate::parse_http_date(there).ok()?;
    let (skew, word) = match now.duration_since(there) {
        Ok(skew) => (skew, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let shown = humantime::format_duration(Duration::from_secs(skew.as_secs()));
    let found = format!("this machine's clock is {shown} {word} the registry's");
    let remedy =
        "set this machine's clock (timedatectl set-ntp true): certificates and tokens depend on the time";
    match skew {
        _ if skew < SKEW_WARNING => None,
        _ if skew < SKEW_FAILURE => Some(Step::warning("clock", found, remedy)),
        _ => Some(Step::fails("clock", found, remedy)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    #[test]
    fn clock_skew_warns_and_fails() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * 50);
        let verdict = |date: SystemTime| {
            let mut headers = HeaderMap::new();
            headers.insert(DATE, httpdate::fmt_http_date(date).parse().expect("a header"));
            clock_skew(&headers, now).map(|step| (step.verdict, step.found))
        };
        assert_eq!(verdict(now - Duration::from_secs(50)), None);
        let ahead = "this machine's clock is 2m ahead of the registry's".to_owned();
        assert_eq!(verdict(now - Duration::from_mins(2)), Some((Verdict::Warning, ahead)));
        let behind = "this machine's clock is 1h behind the registry's".to_owned();
        assert_eq!(verdict(now + Duration::from_hours(1)), Some((Verdict::Fails, behind)));
        assert_eq!(clock_skew(&HeaderMap::new(), now), None);
    }

    #[test]
    fn rate_limit_names_the_remaining_time() {
        let wait = Some(SourceError::RateLimited { retry_after: Some(Duration::from_mins(5)) });
        assert!(rate_limited(wait).found.ends_with("for another 5m"));
        assert!(rate_limited(None).found.ends_with("requests"));
    }
}
