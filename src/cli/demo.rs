//! `larder demo`: shows on any machine, without a network, that images are cached, verified and served in an outage.

mod image;
mod pull;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::pull::{Client, Pull};
use super::output::print;
use super::serve;
use crate::app::{self, App, InheritedSockets};
use crate::config::Config;
use crate::config::schema::{Endpoint, Upstream, builtin_upstreams};

const REPOSITORY: &str = "larder/demo";
const TAG: &str = "latest";

/// Pulls twice with the upstream and once without it, prints a table, and with `stay` keeps serving.
pub(super) fn run(stay: bool) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("larder-demo-")
        .tempdir()
        .context("the demonstration needs a temporary folder")?;
    let played = serve::on_runtime(play(stay, folder.path()));
    // Remove the folder only after the server has closed its store.
    played.and(folder.close().context("the demonstration's folder could not be removed"))
}

async fn play(stay: bool, folder: &Path) -> anyhow::Result<()> {
    let signalled = serve::shutdown_signal()?;
    let layout = folder.join("upstream");
    let index = image::write(&layout, &format!("{REPOSITORY}:{TAG}"))?;
    let config = config(folder, &layout)?;
    app::init_log(&config.log)?;
    let app = App::build(config, InheritedSockets::none()).await?;
    let addresses = app.api_addr().zip(app.admin_addr());
    let (api, admin) = addresses.context("the demonstration has no port")?;
    let client = Client::new(api, admin)?;

    let stop = CancellationToken::new();
    let mut serving = std::pin::pin!(app.run(stop.cancelled()));
    let shown = {
        let acts = async {
            let pulls = three_pulls(&client, &layout, &index).await?;
            print(&table(&pulls))?;
            judge(&pulls)?;
            if stay {
                print(&invitation(&client))?;
                std::future::pending::<()>().await;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            shown = acts => shown,
            () = signalled => if stay { Ok(()) } else { Err(anyhow::anyhow!("stopped by a signal")) },
            ended = &mut serving => {
                ended?;
                anyhow::bail!("the server stopped before the demonstration was over");
            }
        }
    };
    drop(client);
    stop.cancel();
    let ended = serving.await;
    shown.and(ended)
}

/// Returns a configuration with the layout as the only upstream, on ports that the system chooses.
fn config(folder: &Path, layout: &Path) -> anyhow::Result<Config> {
    let mut config = Config { builtin_upstreams: false, ..Config::default() };
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    config.server.listen = loopback.into();
    // Closing a store on a slow disk takes time; files written after that would be left behind.
    config.server.grace = Duration::from_secs(10);
    config.admin.listen = loopback.into();
    config.store.path = folder.join("data");
    // Each pull revalidates the tag, so that the last one meets the outage.
    config.cache.tag_ttl = Duration::ZERO;
    // Show the table, not the log.
    "error".clone_into(&mut config.log.level);
    let file = Url::from_file_path(layout)
        .map_err(|()| anyhow::anyhow!("the temporary folder {} has no absolute path", layout.display()))?;
    let endpoints = vec![Endpoint::new(format!("oci://{}", file.path()))];
    config.upstream = builtin_upstreams()
        .into_iter()
        .filter(|(_, upstream)| upstream.default)
        .map(|(name, upstream)| (name, Upstream { endpoints: endpoints.clone(), ..upstream }))
        .collect();
    Ok(config)
}

async fn three_pulls(
    client: &Client,
    layout: &Path,
    index: &crate::oci::Digest,
) -> anyhow::Result<[Pull; 3]> {
    let first = client.pull(REPOSITORY, TAG, index).await.context("the first pull failed")?;
    let second = client.pull(REPOSITORY, TAG, index).await.context("the second pull failed")?;
    std::fs::rename(layout, layout.with_extension("gone")).context("the upstream cannot be removed")?;
    let third = client.pull(REPOSITORY, TAG, index).await.context("the pull without the upstream failed")?;
    Ok([first, second, third])
}

/// Column titles of the table.
const TITLES: [&str; 6] = ["pull", "upstream", "requests", "outcomes", "from upstream", "time"];

fn table(pulls: &[Pull; 3]) -> String {
    let rows = pulls.iter().enumerate().map(|(number, pull)| {
        let outcomes: Vec<_> = pull.outcomes.iter().map(|(word, count)| format!("{count} {word}")).collect();
        [
            (number + 1).to_string(),
            if number < 2 { "up" } else { "down" }.to_owned(),
            pull.requests.to_string(),
            outcomes.join(", "),
            pull.fetched.display().iec().to_string(),
            format!("{:.1} ms", pull.took.as_secs_f64() * 1e3),
        ]
    });
    let mut lines = vec![TITLES.map(str::to_owned)];
    lines.extend(rows);
    let widths: Vec<usize> = (0..TITLES.len())
        .map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text.push_str("\nEvery manifest and blob of both platforms matched its digest, each time.\n");
    text
}

/// Checks that the pulls show the intended behaviour. Each pull is already verified.
fn judge(pulls: &[Pull; 3]) -> anyhow::Result<()> {
    let [first, _, third] = pulls;
    anyhow::ensure!(first.fetched.as_u64() > 0, "the first pull fetched nothing from the upstream");
    anyhow::ensure!(
        third.fetched.as_u64() == 0,
        "the pull without the upstream fetched {} from it",
        third.fetched
    );
    Ok(())
}

fn invitation(client: &Client) -> String {
    let image = format!("{}/{REPOSITORY}:{TAG}", client.api());
    format!(
        "\nThe server keeps serving the image without its upstream until it is stopped (Ctrl-C). Pull it with one of\n\n  \
         docker pull {image}\n  \
         podman pull --tls-verify=false {image}\n  \
         skopeo copy --all --src-tls-verify=false docker://{image} oci:demo\n  \
         ctr images pull --plain-http --all-platforms {image}\n\n\
         Status page: http://{}/\n",
        client.admin()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytesize::ByteSize;

    fn pull(fetched: u64, outcomes: &[(&str, usize)]) -> Pull {
        Pull {
            requests: outcomes.iter().map(|(_, count)| count).sum(),
            outcomes: outcomes.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect(),
            fetched: ByteSize(fetched),
            took: Duration::from_micros(12_340),
        }
    }

    #[test]
    fn table_is_aligned() {
        let pulls = [
            pull(4 << 20, &[("miss", 7)]),
            pull(0, &[("hit", 6), ("revalidated", 1)]),
            pull(0, &[("hit", 6), ("stale", 1)]),
        ];
        let wanted = "\
pull  upstream  requests  outcomes              from upstream  time
1     up        7         7 miss                4.0 MiB        12.3 ms
2     up        7         6 hit, 1 revalidated  0 B            12.3 ms
3     down      7         6 hit, 1 stale        0 B            12.3 ms
";
        assert!(table(&pulls).starts_with(wanted), "{}", table(&pulls));
        judge(&pulls).expect("shown");
    }

    #[test]
    fn pull_without_upstream_must_not_fetch() {
        let some = || pull(1, &[("miss", 1)]);
        let none = || pull(0, &[("hit", 1)]);
        assert!(judge(&[some(), none(), none()]).is_ok());
        assert!(judge(&[some(), none(), some()]).is_err());
        assert!(judge(&[none(), none(), none()]).is_err());
    }

    #[test]
    fn demo_configuration_is_valid() {
        let config = config(Path::new("/tmp/a b"), Path::new("/tmp/a b/upstream")).expect("made");
        assert_eq!(crate::config::validate(&config), Ok(()));
        assert_eq!(config.upstream["docker.io"].endpoints, [Endpoint::new("oci:///tmp/a%20b/upstream")]);
        assert_eq!(config.upstream.len(), 1);
    }
}
