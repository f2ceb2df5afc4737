//! Upstream check: every endpoint of every upstream, in parallel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::registry::{self, KnownImage};
use super::report::Step;
use crate::clock::Clock;
use crate::config::{Config, schema};
use crate::ops::list::ListRow;
use crate::source::OciLayout;
use crate::telemetry::Metrics;
use crate::upstream::{BuildError, Endpoint, EndpointSource, Timeouts, Upstreams};

/// Time-outs shorter than those of the server, because a person waits. A healthy registry is far quicker.
const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(3),
    head: Duration::from_secs(4),
    blob_head: Duration::from_secs(4),
    total: Duration::from_secs(5),
    idle: Duration::from_secs(5),
};

/// Steps for one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointCheck {
    /// Name of the upstream.
    pub upstream: String,
    /// URL of the endpoint, as configured.
    pub endpoint: String,
    /// Steps in order, up to the first that fails.
    pub steps: Vec<Step>,
}

/// Checks all endpoints. One of the cached `images` of each upstream is requested, if there is one.
pub async fn check(config: &Config, images: &[ListRow]) -> Result<Vec<EndpointCheck>, BuildError> {
    let metrics = Arc::new(Metrics::new());
    let built = Upstreams::build_with(config, metrics, Clock::default(), TIMEOUTS)?;
    let mut tasks = JoinSet::new();
    for upstream in built.iter() {
        let name = upstream.name().as_str();
        let Some(settings) = config.upstream.get(name) else { continue };
        let known = known_image(name, images);
        for (position, endpoint) in upstream.endpoints().iter().cloned().enumerate() {
            let (name, settings, known) = (name.to_owned(), settings.clone(), known.clone());
            tasks.spawn(async move {
                let steps = check_endpoint(&name, &endpoint, &settings, known.as_ref()).await;
                let endpoint = endpoint.health.endpoint().to_owned();
                (position, EndpointCheck { upstream: name, endpoint, steps })
            });
        }
    }
    let mut checks = tasks.join_all().await;
    checks.sort_by(|(one, a), (other, b)| (&a.upstream, one).cmp(&(&b.upstream, other)));
    Ok(checks.into_iter().map(|(_, check)| check).collect())
}

/// Returns the first cached image of an upstream.
fn known_image(upstream: &str, images: &[ListRow]) -> Option<KnownImage> {
    images.iter().find_map(|image| {
        let (of, name) = image.repository.split_once('/')?;
        let (name, reference) = (name.parse().ok()?, image.tag.as_deref()?.parse().ok()?);
        (of == upstream).then_some((name, reference))
    })
}

async fn check_endpoint(
    name: &str,
    endpoint: &Endpoint,
    settings: &schema::Upstream,
    known: Option<&KnownImage>,
) -> Vec<Step> {
    match &endpoint.source {
        EndpointSource::Registry(registry) => registry::check(name, registry, settings, known).await,
        EndpointSource::OciLayout(layout) => vec![check_layout(layout).await],
    }
}

async fn check_layout(layout: &OciLayout) -> Step {
    let started = Instant::now();
    let root = layout.root().to_owned();
    let count = tokio::task::spawn_blocking(move || std::fs::read_dir(root).map(Iterator::count)).await;
    let step = match count {
        Ok(Ok(0)) => {
            Step::warning("folder", "the folder is empty", "add layouts, one folder for each repository")
        }
        Ok(Ok(_)) => Step::ok("folder", "the folder can be read"),
        Ok(Err(error)) => Step::fails(
            "folder",
            format!("the folder cannot be read: {error}"),
            "correct `endpoints`, or the permissions of the folder",
        ),
        Err(error) => Step::fails("folder", format!("the folder cannot be read: {error}"), "try again"),
    };
    step.since(started)
}
