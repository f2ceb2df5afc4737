//! Notifications to systemd (`sd_notify(3)`): ready, reloading, stopping, watchdog, and the text of `systemctl status`.
//! Without systemd nothing is sent.

use std::future::Future;
use std::time::Duration;

use sd_notify::NotifyState;

/// Sends a notification. A failure is not an error of the server.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

/// Reports that requests are served.
pub(super) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that the configuration is reloaded. [`ready`] ends the reload.
pub(super) fn reloading() {
    // `Type=notify-reload` requires the time.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Reports that shutdown has begun.
pub(super) fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Returns the task that notifies the watchdog twice per `WatchdogSec=`; `None` without a watchdog.
pub(super) fn watchdog() -> Option<impl Future<Output = ()> + Send> {
    let every = sd_notify::watchdog_enabled()?.checked_div(2).filter(|every| *every > Duration::ZERO)?;
    Some(async move {
        let mut ticks = tokio::time::interval(every);
        loop {
            ticks.tick().await;
            notify(&[NotifyState::Watchdog]);
        }
    })
}
