//! What systemd is told (`sd_notify(3)`): ready, reloading, stopping, alive, and a line for `systemctl status`. Without
//! systemd, nothing.

use std::future::Future;
use std::time::Duration;

use sd_notify::NotifyState;

/// Tells it; who does not listen is no reason to stop.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// Requests are served.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A configuration is read again; [`ready`] ends it.
pub(super) fn reloading() {
    // `Type=notify-reload` goes by the time, to tell this from an earlier one.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The end has begun.
pub(super) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Tells the watchdog that the runtime runs, twice in the time that it waits (`WatchdogSec=`). `None` without one.
pub(super) fn watchdog() -> Option<impl Future<Output = ()> + Send> {
    let every = sd_notify::watchdog_enabled()?.checked_div(2).filter(|every| *every > Duration::ZERO)?;
    Some(async move {
        let mut ticks = tokio::time::interval(every);
        loop {
            ticks.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    })
}
