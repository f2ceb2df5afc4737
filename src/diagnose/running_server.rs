//! Check of the running server by its answers to `/readyz` and `/metrics`: readiness, version, open files, circuit breakers.

use std::time::Duration;

use super::open_files;
use super::report::Step;
use crate::config::Config;

/// Answers of the admin API.
#[derive(Debug)]
pub struct Answers {
    /// Status and body of `/readyz`, or the error.
    pub ready: Result<(u16, String), String>,
    /// Body of `/metrics`, if it was answered with 200.
    pub metrics: Option<String>,
    /// Duration of the requests.
    pub duration: Duration,
}

/// Returns the step for a server that does not answer. `address` is the address of its admin API, if it is known.
pub fn no_answer(address: Option<String>) -> Step {
    match address {
        Some(address) => Step::warning(
            "running",
            format!("no server answers at {address}; client requests were not tried"),
            "start the server with `larder serve`, or name one with --server",
        ),
        None => Step::warning(
            "running",
            "admin.listen has no address that can be reached without TLS; client requests were not tried",
            "name the admin API with --server",
        ),
    }
}

/// Returns the steps for a server that answers at `address`.
pub fn check(address: &str, answers: Answers, config: &Config) -> Vec<Step> {
    let mut steps = vec![readiness(address, answers.ready).lasting(answers.duration)];
    let Some(metrics) = answers.metrics else { return steps };
    let version = label(&metrics, "larder_build_info", "version").unwrap_or_default();
    steps.push(if version == env!("CARGO_PKG_VERSION") {
        Step::ok("version", version)
    } else {
        Step::warning(
            "version",
            format!("the server has version {version}, this program {}", env!("CARGO_PKG_VERSION")),
            "restart the server, or use the program that started it",
        )
    });
    if value(&metrics, "larder_config_last_reload_success") == Some(0) {
        steps.push(Step::warning(
            "reload",
            "the last reload of the configuration failed; the previous one stays in effect",
            "correct the key that `larder status` and the server's log name; after the next start only the file counts",
        ));
    }
    if let Some(allowed) = value(&metrics, "process_max_fds") {
        steps.push(open_files::check_server(config, allowed));
    }
    steps.extend(metrics.lines().filter_map(open_breaker));
    steps
}

fn readiness(address: &str, ready: Result<(u16, String), String>) -> Step {
    match ready {
        Ok((200, body)) if body.trim() == "ok" => Step::ok("ready", format!("at {address}")),
        Ok((200, body)) => Step::fails(
            "ready",
            format!("/readyz answers: {}", body.trim()),
            "until then clients are served directly from the upstreams; free disk space or repair the disk, and caching \
             resumes by itself",
        ),
        Ok((status, body)) => Step::fails(
            "ready",
            format!("/readyz answers {status}: {}", body.trim()),
            "unless the server is stopping, see its log",
        ),
        Err(error) => Step::fails("ready", error, "see the server's log"),
    }
}

/// Returns a step if a line of the metrics reports an open circuit breaker.
fn open_breaker(line: &str) -> Option<Step> {
    const SERIES: &str = "larder_upstream_endpoint_open";
    if !line.starts_with(&format!("{SERIES}{{")) || !line.ends_with(" 1") {
        return None;
    }
    let of = |name: &str| label(line, SERIES, name).unwrap_or_default();
    Some(Step::warning(
        "circuit breaker",
        format!("endpoint {} of {} is skipped after repeated failures", of("endpoint"), of("upstream")),
        "the server probes it every 2 seconds and uses it again once it answers; the log names the failures",
    ))
}

/// Returns the value of a series without labels.
fn value(exposition: &str, name: &str) -> Option<u64> {
    let line = exposition.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    let value: f64 = line.trim().parse().ok()?;
    // The value is an integer; infinity becomes the largest integer.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some(value as u64)
}

/// Returns a label of the first sample of a series.
fn label(exposition: &str, series: &str, name: &str) -> Option<String> {
    let rest = exposition.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix('{'))?;
    let start = format!("{name}=\"");
    let at = rest.find(&start)? + start.len();
    Some(rest.get(at..)?.split('"').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# HELP a b\nlarder_build_info{version=\"1.2.3\"} 1\nprocess_max_fds 1048576\n\
                           larder_upstream_endpoint_open{endpoint=\"http://a\",upstream=\"b\"} 1\n\
                           larder_upstream_endpoint_open{endpoint=\"http://c\",upstream=\"b\"} 0\n";

    #[test]
    fn values_and_labels_are_read() {
        assert_eq!(label(METRICS, "larder_build_info", "version").as_deref(), Some("1.2.3"));
        assert_eq!(label(METRICS, "larder_upstream_endpoint_open", "upstream").as_deref(), Some("b"));
        assert_eq!(label(METRICS, "larder_build_info", "commit"), None);
        assert_eq!(value(METRICS, "process_max_fds"), Some(1 << 20));
        assert_eq!(value(METRICS, "process_open_fds"), None);
    }

    #[test]
    fn failed_reload_is_a_warning() {
        let ready = Ok((200, "ok\n".to_owned()));
        let metrics = Some("larder_config_last_reload_success 0\n".to_owned());
        let answers = Answers { ready, metrics, duration: Duration::ZERO };
        let steps = check("http://127.0.0.1:5001", answers, &Config::default());
        assert!(steps.iter().any(|step| step.step == "reload"), "{steps:?}");
    }

    #[test]
    fn answers_become_steps() {
        let ready = Ok((200, "ok\n".to_owned()));
        let answers = Answers { ready, metrics: Some(METRICS.to_owned()), duration: Duration::ZERO };
        let steps = check("http://127.0.0.1:5001", answers, &Config::default());
        let names: Vec<_> = steps.iter().map(|step| step.step.as_str()).collect();
        assert_eq!(names, ["ready", "version", "open files", "circuit breaker"]);
        assert!(steps.last().expect("a step").found.contains("http://a of b"));
    }
}
