//! Background tasks of the server: started together, cancelled and awaited together at shutdown.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks that run until shutdown.
#[derive(Debug, Default)]
pub(super) struct BackgroundTasks {
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl BackgroundTasks {
    /// Starts a task. It is dropped at its next `await` after [`stop`](Self::stop).
    pub(super) fn spawn<F>(&self, task: F)
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(task));
    }

    /// Cancels all tasks and waits for their end.
    pub(super) async fn stop(self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_ends_all_tasks() {
        let tasks = BackgroundTasks::default();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn(async move {
            let _dropped_at_the_end = sender;
            std::future::pending::<()>().await;
        });
        tasks.spawn(async {});
        tasks.stop().await;
        assert!(receiver.await.is_err());
    }
}
