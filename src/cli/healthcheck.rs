//! `larder healthy`: health check of the server with this configuration, for container images without a shell.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::Method;

use super::output::{note, print, sentence};
use super::remote::{AdminAddress, Remote};
use super::serve::on_runtime;
use super::settings::Settings;

/// Time-out of the request. A healthy server answers within milliseconds, and orchestrators wait for a few seconds only.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Succeeds if `/readyz` on the admin port answers 200.
pub(super) fn run(settings: &Settings) -> anyhow::Result<()> {
    let (config, invalid) = settings.load_for_server();
    if let Some(error) = invalid {
        // The server goes on with its last valid configuration. An orchestrator must not stop it for an error in the file.
        note(&format!("warning: {}", sentence(&error)))?;
    }
    let address = AdminAddress::of(&config.admin).context(
        "admin.listen has no address that can be reached without TLS; add IP:PORT or unix:/PATH to it",
    )?;
    let remote = Remote::new(address.clone(), None, None)?;
    let request = remote.request(Method::GET, "/readyz")?.timeout(TIMEOUT);
    let answer = on_runtime(async { Ok(request.send().await) })?;
    let answer = answer.with_context(|| format!("no server answers at {address}"))?;
    match answer.status().as_u16() {
        200 => print("ready\n"),
        other => bail!("{address} answers /readyz with {other}"),
    }
}
