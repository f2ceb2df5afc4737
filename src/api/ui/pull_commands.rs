//! Pull commands for several clients, ready to copy.

use crate::ops::Service;

/// Address of the client port, from the listening sockets. The `Host` of a request is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PullAddress {
    /// Host and port.
    pub(super) host: String,
    /// True if the port uses TLS.
    pub(super) tls: bool,
    /// True if the server listens on all addresses, so that `host` is valid on this machine only.
    pub(super) everywhere: bool,
}

/// Command for one client.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PullCommand {
    pub(super) client: &'static str,
    pub(super) line: String,
}

impl PullAddress {
    /// Returns the first address that is not a unix socket.
    pub(super) fn of(service: Option<&Service>) -> Option<Self> {
        service?.addresses.iter().find_map(|address| {
            let (scheme, host) = address.split_once("://")?;
            let port = host.rsplit_once(':')?.1;
            let (host, everywhere) = if host.starts_with("0.0.0.0:") {
                (format!("127.0.0.1:{port}"), true)
            } else if host.starts_with("[::]:") {
                (format!("[::1]:{port}"), true)
            } else {
                (host.to_owned(), false)
            };
            Some(Self { host, tls: scheme == "https", everywhere })
        })
    }

    /// Returns the commands that pull `image`: upstream, repository, and tag or digest.
    pub(super) fn commands(&self, image: &str, platform: Option<&str>) -> Vec<PullCommand> {
        let Self { host, tls, .. } = self;
        let plain = |flag: &str| if *tls { String::new() } else { format!(" {flag}") };
        // The platform comes from an index: a name with shell syntax is left out.
        let is_safe = |text: &&str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
        let platform = platform.filter(is_safe);
        let wanted = platform.map_or_else(String::new, |it| format!(" --platform {it}"));
        let parts = platform.unwrap_or_default().split('/').filter(|part| !part.is_empty());
        let overrides = ["os", "arch", "variant"]
            .iter()
            .zip(parts)
            .fold(String::new(), |all, (flag, part)| all + " --override-" + flag + " " + part);
        let name = image.rsplit('/').next().unwrap_or(image).split([':', '@']).next().unwrap_or(image);
        [
            ("docker", format!("docker pull{wanted} {host}/{image}")),
            ("podman", format!("podman pull{}{wanted} {host}/{image}", plain("--tls-verify=false"))),
            ("ctr", format!("ctr images pull{}{wanted} {host}/{image}", plain("--plain-http"))),
            (
                "skopeo",
                format!(
                    "skopeo{overrides} copy{} docker://{host}/{image} oci:{name}",
                    plain("--src-tls-verify=false")
                ),
            ),
            ("crane", format!("crane pull{}{wanted} {host}/{image} {name}.tar", plain("--insecure"))),
        ]
        .map(|(client, line)| PullCommand { client, line })
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(addresses: &[&str]) -> Option<PullAddress> {
        let addresses = addresses.iter().map(|it| (*it).to_owned()).collect();
        PullAddress::of(Some(&Service { addresses, ..Service::default() }))
    }

    #[test]
    fn pull_address_is_the_first_network_socket() {
        let found = |addresses| place(addresses).map(|place| (place.host, place.tls, place.everywhere));
        let own = |host: &str, tls, everywhere| Some((host.to_owned(), tls, everywhere));
        assert_eq!(found(&["unix:/run/a", "http://10.0.0.7:5000"]), own("10.0.0.7:5000", false, false));
        assert_eq!(found(&["http://0.0.0.0:80"]), own("127.0.0.1:80", false, true));
        assert_eq!(found(&["https://[::]:443"]), own("[::1]:443", true, true));
        assert_eq!(found(&["unix:/run/a"]), None);
        assert_eq!(PullAddress::of(None), None);
    }

    #[test]
    fn commands_have_the_options_of_each_client() {
        let plain = place(&["http://127.0.0.1:5000"]).expect("a place");
        let lines: Vec<_> =
            plain.commands("docker.io/a/b:1", Some("linux/arm/v7")).into_iter().map(|it| it.line).collect();
        assert_eq!(
            lines,
            [
                "docker pull --platform linux/arm/v7 127.0.0.1:5000/docker.io/a/b:1",
                "podman pull --tls-verify=false --platform linux/arm/v7 127.0.0.1:5000/docker.io/a/b:1",
                "ctr images pull --plain-http --platform linux/arm/v7 127.0.0.1:5000/docker.io/a/b:1",
                "skopeo --override-os linux --override-arch arm --override-variant v7 copy --src-tls-verify=false \
                 docker://127.0.0.1:5000/docker.io/a/b:1 oci:b",
                "crane pull --insecure --platform linux/arm/v7 127.0.0.1:5000/docker.io/a/b:1 b.tar",
            ]
        );
        let secure = place(&["https://10.0.0.7:5443"]).expect("a place");
        let hostile = secure.commands("docker.io/a@sha256:0", Some("linux;rm -rf/x"));
        assert_eq!(hostile[3].line, "skopeo copy docker://10.0.0.7:5443/docker.io/a@sha256:0 oci:a");
        assert!(hostile.iter().all(|it| !it.line.contains("rm -rf") && !it.line.contains("insecure")));
    }
}
