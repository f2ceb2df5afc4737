//! Which platforms a verb is about; shared by the verbs that pull, or would.

use clap::Args;

use crate::ops::platform;

/// The flags.
#[derive(Args, Debug)]
pub(super) struct Platforms {
    /// Of an index the platform that is wanted, otherwise this machine's; may be repeated
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<String>,
    /// Everything that an index has, attestations included
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
}

impl Platforms {
    /// The platforms that are wanted; none is all of them.
    pub(super) fn wanted(self) -> Vec<String> {
        if self.platform.is_empty() && !self.all_platforms {
            return vec![platform::of_this_machine()];
        }
        self.platform
    }
}
