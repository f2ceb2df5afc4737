//! Probes of an endpoint that seems to fail: requests for `/v2/` in the background, until one is answered.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::endpoint::Endpoint;

/// Interval between probes, and time-out of each of them.
const INTERVAL: Duration = Duration::from_millis(1500);

/// Probes an endpoint in the background. Ends with the endpoint.
pub(crate) fn start(endpoint: &Arc<Endpoint>) {
    tokio::spawn(run(Arc::downgrade(endpoint)));
}

async fn run(endpoint: Weak<Endpoint>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(endpoint) = endpoint.upgrade() else { return };
        let goes_on = match endpoint.source.probe(INTERVAL).await {
            Ok(()) => {
                endpoint.health.probe_succeeded();
                false
            }
            Err(error) => {
                tracing::debug!(endpoint = endpoint.health.endpoint(), %error, "probe failed");
                endpoint.health.probe_failed(&error)
            }
        };
        if !goes_on {
            return;
        }
    }
}
