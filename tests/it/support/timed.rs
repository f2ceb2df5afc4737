//! larder inside the test's own process, with a clock that the test moves: for what takes minutes or hours.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use larder::app::App;
use larder::clock::Clock;
use larder::config;
use tokio::sync::oneshot;

use super::client::{Answer, Client};
use super::larder::Setup;

/// A larder that listens. Dropping it stops it.
pub struct Timed {
    api: SocketAddr,
    admin: SocketAddr,
    clock: Clock,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
    setup: Setup,
    data: PathBuf,
    /// Whose folders the store is in.
    kept: Vec<Setup>,
}

impl Timed {
    /// Starts the application with the setup's configuration.
    pub fn start(setup: Setup) -> Self {
        Self::start_at(setup, Duration::ZERO)
    }

    /// The same with a clock that is ahead.
    fn start_at(setup: Setup, ahead: Duration) -> Self {
        let config = config::load(Some(&setup.config_file()), std::iter::empty(), config::Flags::default());
        let config = config.expect("a configuration");
        config::validate(&config).expect("a valid configuration");
        let clock = Clock::default();
        clock.advance(ahead);
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let owned = clock.clone();
        let running = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let app = App::build_with(config, owned).await.expect("an application");
                tell.send(app.api_addr().zip(app.admin_addr()).expect("two ports")).expect("the test waits");
                app.run(async { stopped.await.unwrap_or_default() }).await.expect("a clean end");
            });
        });
        let (api, admin) = told.recv().expect("it listens");
        let data = setup.data();
        Self { api, admin, clock, stop: Some(stop), running: Some(running), setup, data, kept: Vec::new() }
    }

    /// Stops it and starts another on the same store. The clock begins anew.
    pub fn restart(mut self) -> Self {
        self.end();
        let setup = std::mem::replace(&mut self.setup, Setup::empty());
        drop(self);
        Self::start(setup)
    }

    /// Stops it.
    pub fn stop(mut self) -> Setup {
        self.end();
        std::mem::replace(&mut self.setup, Setup::empty())
    }

    /// Stops it and starts another with a setup of its own on the same store, at a time so far from now.
    pub fn restart_with(mut self, setup: Setup, ahead: Duration) -> Self {
        self.end();
        let data = self.data();
        self.kept.push(std::mem::replace(&mut self.setup, Setup::empty()));
        let kept = std::mem::take(&mut self.kept);
        drop(self);
        let mut next = Self::start_at(setup.set("store.path", data.display().to_string()), ahead);
        (next.data, next.kept) = (data, kept);
        next
    }

    /// The store's folder.
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(running) = self.running.take() {
            running.join().expect("a clean end");
        }
    }

    pub fn api(&self) -> Client {
        Client::new(self.api)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.api().get(path)
    }

    /// Lets time pass, as far as ages go.
    pub fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// Sets the clock by so many milliseconds; no time passes by that.
    pub fn set_clock_by(&self, millis: i64) {
        self.clock.set_by(millis);
    }

    pub fn metrics_text(&self) -> String {
        Client::new(self.admin).get("/metrics").text()
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}
