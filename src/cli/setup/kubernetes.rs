//! Kubernetes where its nodes are not configured file by file: `registries.yaml` of k3s, and clusters made by kind.

use std::fmt::Write as _;

use anyhow::bail;

use super::instance::Instance;
use super::piece::{Conflict, HEAD, Merge, Piece, Plan};

const AUTHORITY: &str = "/etc/rancher/k3s/larder-ca.crt";

/// What k3s has to be told.
pub(super) fn k3s(instance: &Instance) -> Plan {
    let after = "systemctl restart k3s (on agents: k3s-agent)\n\
                 RKE2 reads the same as /etc/rancher/rke2/registries.yaml."
        .to_owned();
    let mut content = format!("{HEAD}mirrors:\n");
    // Writing to a String cannot fail.
    for name in &instance.upstreams {
        let _ = write!(content, "  \"{name}\":\n    endpoint:\n      - \"{}\"\n", instance.url());
    }
    let mut pieces = Vec::new();
    if let Some(pem) = &instance.authority {
        let _ = write!(content, "configs:\n  \"{instance}\":\n    tls:\n      ca_file: \"{AUTHORITY}\"\n");
        pieces.push(Piece {
            path: AUTHORITY.into(),
            content: pem.clone(),
            after: after.clone(),
            merge: Merge::Whole,
        });
    }
    let path = "/etc/rancher/k3s/registries.yaml".into();
    pieces.insert(0, Piece { path, content, after, merge: Merge::Ours(unchecked) });
    Plan { pieces, notes: Vec::new() }
}

/// There is nobody here who reads YAML; what is not ours is refused anyway.
// The signature is that of those that do check.
#[allow(clippy::unnecessary_wraps)]
fn unchecked(_: &str) -> Result<(), Conflict> {
    Ok(())
}

/// What kind, and the nodes of a cluster that it makes, have to be told.
pub(super) fn kind(instance: &Instance) -> anyhow::Result<Plan> {
    if instance.is_loopback() {
        bail!(
            "in a node of kind's, {instance} is the node itself; let larder listen where the nodes reach it, and name that \
             with --address HOST:PORT (a container on kind's network by its name, this machine by the address of that \
             network's gateway)"
        );
    }
    let after = "kind create cluster --config kind.yaml\n\
                 for node in $(kind get nodes); do\n  \
                 docker exec \"$node\" mkdir -p /etc/containerd/certs.d/_default\n  \
                 docker exec -i \"$node\" cp /dev/stdin /etc/containerd/certs.d/_default/hosts.toml <hosts.toml\n\
                 done"
        .to_owned();
    let cluster = "kind: Cluster\n\
                   apiVersion: kind.x-k8s.io/v1alpha4\n\
                   containerdConfigPatches:\n  \
                   - |-\n    \
                   [plugins.\"io.containerd.grpc.v1.cri\".registry]\n      \
                   config_path = \"/etc/containerd/certs.d\"\n";
    let mut hosts = format!("[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", instance.url());
    let mut pieces = Vec::new();
    if let Some(pem) = &instance.authority {
        hosts.push_str("  ca = \"/etc/containerd/certs.d/larder-ca.crt\"\n");
        pieces.push(("larder-ca.crt", pem.clone()));
    }
    pieces.splice(0..0, [("kind.yaml", cluster.to_owned()), ("hosts.toml", hosts)]);
    let after = if instance.authority.is_some() {
        after.replace(
            "\ndone",
            "\n  docker exec -i \"$node\" cp /dev/stdin /etc/containerd/certs.d/larder-ca.crt <larder-ca.crt\ndone",
        )
    } else {
        after
    };
    let pieces = pieces.into_iter().map(|(name, content)| Piece {
        path: name.into(),
        content,
        after: after.clone(),
        merge: Merge::Whole,
    });
    Ok(Plan { pieces: pieces.collect(), notes: Vec::new() })
}
