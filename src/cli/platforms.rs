//! Platform options of the verbs that pull images or check pulls.

use clap::Args;

use crate::ops::platform;

/// Platform options.
#[derive(Args, Debug)]
pub(super) struct Platforms {
    /// Platform to use from an index; default: this machine's; may be repeated
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<String>,
    /// All platforms and attestations of an index
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
}

impl Platforms {
    /// Returns the selected platforms; an empty list means all.
    pub(super) fn wanted(self) -> Vec<String> {
        if self.platform.is_empty() && !self.all_platforms {
            return vec![platform::of_this_machine()];
        }
        self.platform
    }
}
