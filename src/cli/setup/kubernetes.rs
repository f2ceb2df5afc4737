//! k3s (`registries.yaml`) and kind.

use std::fmt::Write as _;

use anyhow::bail;

use super::file_edit::{Conflict, FileEdit, HEAD, Merge, Plan};
use super::instance::Instance;

const AUTHORITY: &str = "/etc/rancher/k3s/larder-ca.crt";

/// Plans the configuration of k3s.
pub(super) fn k3s(instance: &Instance) -> Plan {
    let after = "systemctl restart k3s (on agents: k3s-agent)\n\
                 RKE2 uses the same file as /etc/rancher/rke2/registries.yaml."
        .to_owned();
    let mut content = format!("{HEAD}mirrors:\n");
    // Writing to a String cannot fail.
    for name in &instance.upstreams {
        let _ = write!(content, "  \"{name}\":\n    endpoint:\n      - \"{}\"\n", instance.url());
    }
    let mut edits = Vec::new();
    if let Some(pem) = &instance.authority {
        let _ = write!(content, "configs:\n  \"{instance}\":\n    tls:\n      ca_file: \"{AUTHORITY}\"\n");
        edits.push(FileEdit {
            path: AUTHORITY.into(),
            content: pem.clone(),
            after: after.clone(),
            merge: Merge::Whole,
        });
    }
    let path = "/etc/rancher/k3s/registries.yaml".into();
    edits.insert(0, FileEdit { path, content, after, merge: Merge::Ours(unchecked) });
    Plan { edits, notes: Vec::new() }
}

/// Accepts any text: larder has no YAML parser, and refuses files that it did not write anyway.
// The signature is that of the checks for other formats.
#[allow(clippy::unnecessary_wraps)]
fn unchecked(_: &str) -> Result<(), Conflict> {
    Ok(())
}

/// Plans the configuration of kind and of its nodes.
pub(super) fn kind(instance: &Instance) -> anyhow::Result<Plan> {
    if instance.is_loopback() {
        bail!(
            "inside a kind node, {instance} is the node itself; let the server listen on an address that the nodes can \
             reach, and give it with --address HOST:PORT (a container on kind's network: its name; this machine: the \
             gateway address of that network)"
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
    let mut edits = Vec::new();
    if let Some(pem) = &instance.authority {
        hosts.push_str("  ca = \"/etc/containerd/certs.d/larder-ca.crt\"\n");
        edits.push(("larder-ca.crt", pem.clone()));
    }
    edits.splice(0..0, [("kind.yaml", cluster.to_owned()), ("hosts.toml", hosts)]);
    let after = if instance.authority.is_some() {
        after.replace(
            "\ndone",
            "\n  docker exec -i \"$node\" cp /dev/stdin /etc/containerd/certs.d/larder-ca.crt <larder-ca.crt\ndone",
        )
    } else {
        after
    };
    let edits = edits.into_iter().map(|(name, content)| FileEdit {
        path: name.into(),
        content,
        after: after.clone(),
        merge: Merge::Whole,
    });
    Ok(Plan { edits: edits.collect(), notes: Vec::new() })
}
