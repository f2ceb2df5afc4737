//! A server in the process of the test, with an adjustable clock. For behaviour over minutes or hours.

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

/// A listening server. Dropping it stops the server.
pub struct InProcessLarder {
    api: SocketAddr,
    admin: SocketAddr,
    clock: Clock,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
    setup: Setup,
    data: PathBuf,
    /// Earlier set-ups: their folders contain the store.
    earlier: Vec<Setup>,
}

impl InProcessLarder {
    /// Starts the application with the configuration of the set-up.
    pub fn start(setup: Setup) -> Self {
        Self::start_at(setup, Duration::ZERO)
    }

    /// As `start`, with a clock that is ahead by `ahead`.
    fn start_at(setup: Setup, ahead: Duration) -> Self {
        let config = config::load(Some(&setup.config_file()), std::iter::empty(), config::Flags::default());
        let config = config.expect("a configuration");
        config::validate(&config).expect("a valid configuration");
        let clock = Clock::default();
        clock.advance(ahead);
        let (stop, stopped) = oneshot::channel();
        let (send, receive) = std::sync::mpsc::channel();
        let owned = clock.clone();
        let running = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let app = App::build_with(config, owned).await.expect("an application");
                send.send(app.api_addr().zip(app.admin_addr()).expect("two ports")).expect("the test waits");
                app.run(async { stopped.await.unwrap_or_default() }).await.expect("a clean end");
            });
        });
        let (api, admin) = receive.recv().expect("the addresses");
        let data = setup.data();
        Self { api, admin, clock, stop: Some(stop), running: Some(running), setup, data, earlier: Vec::new() }
    }

    /// Stops the server and starts it again on the same store. The clock starts again at the real time.
    pub fn restart(mut self) -> Self {
        self.end();
        let setup = std::mem::replace(&mut self.setup, Setup::empty());
        drop(self);
        Self::start(setup)
    }

    /// Stops the server.
    pub fn stop(mut self) -> Setup {
        self.end();
        std::mem::replace(&mut self.setup, Setup::empty())
    }

    /// Stops the server and starts another one with `setup` on the same store. Its clock is ahead by `ahead`.
    pub fn restart_with(mut self, setup: Setup, ahead: Duration) -> Self {
        self.end();
        let data = self.data();
        self.earlier.push(std::mem::replace(&mut self.setup, Setup::empty()));
        let earlier = std::mem::take(&mut self.earlier);
        drop(self);
        let mut next = Self::start_at(setup.set("store.path", data.display().to_string()), ahead);
        (next.data, next.earlier) = (data, earlier);
        next
    }

    /// Returns the folder of the store.
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

    /// Advances the clock.
    pub fn advance(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// Changes the wall clock by `millis`. The monotonic clock does not change.
    pub fn set_clock_by(&self, millis: i64) {
        self.clock.set_by(millis);
    }

    pub fn metrics_text(&self) -> String {
        Client::new(self.admin).get("/metrics").text()
    }
}

impl Drop for InProcessLarder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}
