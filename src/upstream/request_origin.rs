//! Origin of the request that the current task works for: its client, and the servers that it has passed.
//!
//! The origin is kept in the task, because a flight or a fill sends requests on behalf of the request that started it. Work
//! of the server itself, such as prefetch and jobs, has no client.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderMap;

use super::via::Hops;
use crate::config::address::client_network;

/// Origin of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestOrigin {
    /// Servers that the request has passed.
    pub hops: Hops,
    /// Network of the client; `None` for the server itself and on Unix sockets.
    pub client: Option<IpAddr>,
}

tokio::task_local! {
    static CURRENT: Arc<RequestOrigin>;
}

impl RequestOrigin {
    /// Returns the origin of a request with these headers.
    pub fn of(headers: &HeaderMap, client: Option<SocketAddr>) -> Self {
        Self { hops: Hops::parse(headers), client: client.map(client_network) }
    }

    /// Runs `work` on behalf of a request from here.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(Arc::new(self), work).await
    }

    /// Returns the origin of the request of the current task.
    pub(crate) fn current() -> Arc<Self> {
        CURRENT.try_with(Arc::clone).unwrap_or_default()
    }

    /// Returns `work` on behalf of the request of the current task, for another task.
    pub(crate) fn inherit<F: Future>(work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Self::current(), work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn task_inherits_the_origin() {
        let origin = RequestOrigin { client: Some([10, 0, 0, 1].into()), ..RequestOrigin::default() };
        let in_task = origin.clone().scope(async {
            let task = tokio::spawn(RequestOrigin::inherit(async { RequestOrigin::current() }));
            task.await.expect("no panic")
        });
        assert_eq!(*in_task.await, origin);
        assert_eq!(*RequestOrigin::current(), RequestOrigin::default());
    }
}
