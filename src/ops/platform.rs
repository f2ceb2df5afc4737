//! Selection of a platform of an index by `os/arch[/variant]`.

use crate::oci::Descriptor;

use super::protocol::OpsError;
use super::reference::ImageReference;

/// Platform of a manifest that is not an image, such as an attestation.
pub const NO_IMAGE: &str = "unknown/unknown";

/// Normalised platform. All spellings of one platform are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Number of the variant, or 0 for none.
    variant: u32,
}

impl Platform {
    /// Parses `os/arch[/variant]`.
    pub fn parse(text: &str) -> Result<Self, OpsError> {
        Self::read(text).ok_or_else(|| {
            OpsError::Invalid(format!(
                "`{text}` is not a platform; write os/arch or os/arch/variant, such as linux/arm64"
            ))
        })
    }

    /// Parses a platform, with the architecture names of other systems. Returns `None` if it is invalid.
    fn read(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let mut parts = lower.split('/');
        let (os, architecture, variant) = (parts.next()?, parts.next()?, parts.next());
        if os.is_empty() || architecture.is_empty() || parts.next().is_some() || variant == Some("") {
            return None;
        }
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            "i386" => ("386", None),
            other => (other, None),
        };
        // As in containerd (platforms/database.go): some variants are the default of their architecture.
        let variant = match (architecture, variant.or(implied)) {
            ("arm", None) => 7,
            (_, None) | ("arm64", Some("8" | "v8")) | ("amd64", Some("v1")) => 0,
            (_, Some(variant)) => variant.trim_start_matches('v').parse().ok()?,
        };
        Some(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }

    /// Returns the position of the best match in `available`: the same variant, or the nearest lower one, which the same
    /// machines can run.
    pub fn choose<'a>(&self, available: impl Iterator<Item = Option<&'a str>>) -> Option<usize> {
        self.choose_all(available.map(|platform| (platform, None))).first().copied()
    }

    /// Returns the positions of the best match in `available`, which are pairs of platform and `os.version`.
    ///
    /// Images for several versions of Windows have one platform. A host takes the one for its version, so all of them match.
    pub fn choose_all<'a>(
        &self,
        available: impl Iterator<Item = (Option<&'a str>, Option<&'a str>)>,
    ) -> Vec<usize> {
        let found = available.enumerate().filter_map(|(position, (platform, version))| {
            let other = Self::read(platform?)?;
            let fits = other.os == self.os && other.architecture == self.architecture;
            Some((self.variant.checked_sub(other.variant).filter(|_| fits)?, position, version))
        });
        let found: Vec<_> = found.collect();
        let Some(nearest) = found.iter().map(|(distance, ..)| *distance).min() else { return Vec::new() };
        let mut versions = Vec::new();
        let mut positions = Vec::new();
        for (_, position, version) in found.into_iter().filter(|(distance, ..)| *distance == nearest) {
            // The first of equal candidates is chosen.
            if !versions.contains(&version) && (versions.is_empty() || version.is_some()) {
                versions.push(version);
                positions.push(position);
            }
        }
        positions
    }
}

/// Returns the positions of the children of an index for these platforms, without duplicates; all positions if there are no
/// platforms. Each platform has the text with which it was requested.
pub fn choose_children(
    reference: &ImageReference,
    platforms: &[(String, Platform)],
    children: &[Descriptor],
) -> Result<Vec<usize>, OpsError> {
    if platforms.is_empty() {
        return Ok((0..children.len()).collect());
    }
    let mut positions = Vec::new();
    for (text, platform) in platforms {
        let available = children.iter().map(|child| (child.platform.as_deref(), child.os_version.as_deref()));
        let found = platform.choose_all(available);
        if found.is_empty() {
            return Err(OpsError::NoPlatform {
                reference: reference.to_string(),
                wanted: text.clone(),
                available: children
                    .iter()
                    .filter_map(|child| child.platform.clone())
                    .filter(|it| it != NO_IMAGE)
                    .collect(),
            });
        }
        for position in found {
            if !positions.contains(&position) {
                positions.push(position);
            }
        }
    }
    Ok(positions)
}

/// Returns the platform of images for this machine.
pub fn of_this_machine() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "arm" => "arm/v7",
        "powerpc64" => "ppc64le",
        other => other,
    };
    // On other systems containers run in a Linux virtual machine.
    format!("linux/{architecture}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(wanted: &str, available: &[&str]) -> Option<usize> {
        Platform::parse(wanted).expect("a platform").choose(available.iter().map(|text| Some(*text)))
    }

    #[test]
    fn platform_chooses_the_nearest_variant() {
        let index = ["linux/amd64", "linux/arm/v5", "linux/arm/v7", "linux/arm64/v8", "unknown/unknown"];
        assert_eq!(choose("linux/arm64", &index), Some(3));
        assert_eq!(choose("linux/aarch64", &index), Some(3));
        assert_eq!(choose("linux/arm64/v8", &index), Some(3));
        assert_eq!(choose("linux/arm", &index), Some(2));
        assert_eq!(choose("linux/arm/v6", &index), Some(1));
        assert_eq!(choose("Linux/x86_64", &index), Some(0));
        assert_eq!(choose("linux/amd64/v3", &index), Some(0));
        assert_eq!(choose("linux/s390x", &index), None);
        assert_eq!(choose("windows/amd64", &index), None);
        assert_eq!(choose("linux/amd64", &["linux/amd64", "linux/amd64"]), Some(0));
    }

    #[test]
    fn all_versions_of_the_operating_system_are_chosen() {
        let index = [
            (Some("linux/amd64"), None),
            (Some("windows/amd64"), Some("10.0.17763.1")),
            (Some("windows/amd64"), Some("10.0.20348.1")),
            (Some("windows/amd64"), Some("10.0.17763.1")),
            (Some("windows/arm64"), Some("10.0.20348.1")),
            (Some("linux/amd64"), None),
        ];
        let choose_all =
            |text: &str| Platform::parse(text).expect("a platform").choose_all(index.iter().copied());
        assert_eq!(choose_all("windows/amd64"), [1, 2]);
        assert_eq!(choose_all("linux/amd64"), [0]);
        assert_eq!(choose_all("linux/s390x"), Vec::<usize>::new());
    }

    #[test]
    fn invalid_platform_is_refused() {
        for text in ["", "linux", "linux/", "/arm64", "a/b/c/d", "linux/arm/", "linux/arm/x"] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
        assert!(Platform::parse(&of_this_machine()).is_ok());
    }
}
