//! Identity of the server at an endpoint, as learned from its responses.

use http::HeaderMap;

use crate::upstream::via::{Hops, ServerId};

/// Server at an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Peer {
    /// It has not responded yet.
    #[default]
    Unknown,
    /// A larder server.
    Server(ServerId),
    /// Any other registry.
    Other,
}

impl Peer {
    /// Returns the server that sent these headers.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Hops::parse(headers).first().map_or(Self::Other, Self::Server)
    }

    /// Returns the identity of a larder server.
    pub(crate) fn server(self) -> Option<ServerId> {
        match self {
            Self::Server(server) => Some(server),
            Self::Unknown | Self::Other => None,
        }
    }
}
