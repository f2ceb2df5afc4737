//! Checks of the running server: reachable, ready, version, open files and endpoints with an open circuit breaker.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use reqwest::Method;
use tokio::time::timeout;

use crate::app::examine::{self, Step};
use crate::cli::output::sentence;
use crate::cli::remote::Remote;
use crate::config::Config;

/// Time-out for each request to the running server.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the step for a server that does not answer.
pub(super) fn absent(remote: Option<&Remote>) -> Step {
    match remote {
        Some(remote) => Step::warning(
            "running",
            format!("no server answers at {}; client requests were not tried", remote.address()),
            "start the server with `larder serve`, or name one with --server",
        ),
        None => Step::warning(
            "running",
            "admin.listen has no address that can be reached without TLS; client requests were not tried",
            "name the admin API with --server",
        ),
    }
}

/// Returns the steps for a server that answers.
pub(super) async fn steps(remote: &Remote, config: &Config) -> Vec<Step> {
    let began = Instant::now();
    let (ready, metrics) = tokio::join!(text(remote, "/readyz"), text(remote, "/metrics"));
    let mut steps = vec![
        match ready {
            Ok((200, said)) if said.trim() == "ok" => Step::ok("ready", format!("at {}", remote.address())),
            Ok((200, said)) => Step::fails(
                "ready",
                format!("/readyz answers: {}", said.trim()),
                "until then clients are served directly from the upstreams; free disk space or repair the disk, and caching \
                 resumes by itself",
            ),
            Ok((status, said)) => Step::fails(
                "ready",
                format!("/readyz answers {status}: {}", said.trim()),
                "unless the server is stopping, see its log",
            ),
            Err(error) => Step::fails("ready", sentence(&error), "see the server's log"),
        }
        .since(began),
    ];
    let Ok((200, metrics)) = metrics else { return steps };
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
    if let Some(allowed) = value(&metrics, "process_max_fds") {
        steps.push(examine::open_files_of(config, allowed));
    }
    for line in metrics.lines().filter(|line| line.starts_with("larder_upstream_endpoint_open{")) {
        let of = |name: &str| label(line, "larder_upstream_endpoint_open", name).unwrap_or_default();
        if line.ends_with(" 1") {
            steps.push(Step::warning(
                "circuit breaker",
                format!(
                    "endpoint {} of {} is not asked now, after repeated failures",
                    of("endpoint"),
                    of("upstream")
                ),
                "the server retries by itself within a minute; its log names the failures",
            ));
        }
    }
    steps
}

async fn text(remote: &Remote, target: &str) -> anyhow::Result<(u16, String)> {
    let asked = async {
        let answer = remote.request(Method::GET, target)?.send().await?;
        anyhow::Ok((answer.status().as_u16(), answer.text().await?))
    };
    timeout(TIMEOUT, asked).await.context("no answer in time")?
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

    #[test]
    fn values_and_labels_are_read() {
        let text = "# HELP a b\nlarder_build_info{version=\"1.2.3\"} 1\nprocess_max_fds 1048576\n\
                    larder_upstream_endpoint_open{endpoint=\"http://a\",upstream=\"b\"} 1\n";
        assert_eq!(label(text, "larder_build_info", "version").as_deref(), Some("1.2.3"));
        assert_eq!(label(text, "larder_upstream_endpoint_open", "upstream").as_deref(), Some("b"));
        assert_eq!(label(text, "larder_build_info", "commit"), None);
        assert_eq!(value(text, "process_max_fds"), Some(1 << 20));
        assert_eq!(value(text, "process_open_fds"), None);
    }
}
