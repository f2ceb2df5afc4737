//! The real binary as a child process: configuration, log, metrics, signals, exit.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use super::client::{Answer, Client};
use super::registry::Registry;
use super::{TIME_LIMIT, eventually};

/// A configuration and a data folder to start servers with.
#[derive(Debug)]
pub struct Setup {
    config: toml::Table,
    folder: TempDir,
}

impl Setup {
    /// Returns a configuration with free ports, JSON logs and no upstream.
    pub fn empty() -> Self {
        let folder = tempfile::Builder::new().prefix("larder-test-").tempdir().unwrap();
        let mut setup = Self { config: toml::Table::new(), folder };
        for (key, value) in
            [("server.listen", "127.0.0.1:0"), ("admin.listen", "127.0.0.1:0"), ("log.format", "json")]
        {
            setup = setup.set(key, value);
        }
        // Most tests count the requests of clients only. Tests about lists of referrers switch this on.
        let setup = setup.set("prefetch.referrers", false);
        let data = setup.data().display().to_string();
        let setup = setup.set("builtin_upstreams", false).set("store.path", data);
        // `BLOBS=files cargo test` runs all tests with the other kind of blob store.
        match std::env::var("BLOBS") {
            Ok(kind) => setup.set("store.blobs", kind),
            Err(_) => setup,
        }
    }

    /// As `empty`, with `registry` as the default upstream docker.io.
    pub fn with(registry: &Registry) -> Self {
        Self::empty().upstream("docker.io", registry).upstream_set("docker.io", "default", true)
    }

    /// Adds an upstream.
    #[must_use]
    pub fn upstream(self, name: &str, registry: &Registry) -> Self {
        self.upstream_set(name, "endpoints", vec![registry.url()])
    }

    /// Sets `section.key`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        let mut table = &mut self.config;
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap();
        for part in parts {
            let entry = table.entry(part).or_insert_with(|| toml::Table::new().into());
            table = entry.as_table_mut().unwrap();
        }
        table.insert(last.to_owned(), value.into());
        self
    }

    /// Sets a key of an upstream.
    #[must_use]
    pub fn upstream_set(mut self, name: &str, key: &str, value: impl Into<toml::Value>) -> Self {
        let all = self.config.entry("upstream").or_insert_with(|| toml::Table::new().into());
        let one = all.as_table_mut().unwrap().entry(name).or_insert_with(|| toml::Table::new().into());
        one.as_table_mut().unwrap().insert(key.to_owned(), value.into());
        self
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Lets the admin API listen on a Unix socket too. Returns the address of the socket as `--server` expects it.
    #[must_use]
    pub fn admin_socket(self) -> (Self, String) {
        let socket = format!("unix:{}", self.folder().join("admin.sock").display());
        let setup = self.set("admin.listen", vec!["127.0.0.1:0".to_owned(), socket.clone()]);
        (setup, socket)
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Writes a file beside the data folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes the configuration file and returns its path.
    pub fn config_file(&self) -> PathBuf {
        self.write("larder.toml", &toml::to_string(&self.config).unwrap())
    }

    /// Returns the command `larder serve` with this configuration.
    pub fn command(&self) -> Command {
        let file = self.config_file();
        let mut command = self.bare_command();
        command.arg("serve").arg("--config").arg(file);
        command
    }

    /// Returns a command of the binary without arguments, in the folder of the set-up.
    pub fn bare_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        // The environment of the person who runs the tests must not configure the server.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_ascii_lowercase();
            if text.starts_with("larder_") || text.ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command.current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Starts a server and waits until it listens.
    #[track_caller]
    pub fn start(self) -> Larder {
        let mut command = self.command();
        self.start_by(&mut command)
    }

    /// Starts a server with the given command.
    #[track_caller]
    pub fn start_by(self, command: &mut Command) -> Larder {
        Larder { running: Running::start(command), setup: self }
    }

    /// Runs a server that is expected to exit by itself.
    #[track_caller]
    pub fn run_to_exit(&self) -> Exit {
        run_to_exit(&mut self.command())
    }
}

/// Runs a command that is expected to exit by itself.
#[track_caller]
pub fn run_to_exit(command: &mut Command) -> Exit {
    let mut child = command.spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let status = wait(&mut child).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("larder still runs after {TIME_LIMIT:?}")
    });
    Exit { status, stderr: reader.join().unwrap() }
}

/// Returns the sum of all samples of `name` with these labels in a metrics text; 0 if there is none.
pub fn sum_of(exposition: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    exposition
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = rest.rsplit_once(' ')?;
            let whole_name = found.is_empty() || found.starts_with('{');
            let fits = labels.iter().all(|(k, v)| found.contains(&format!("{k}=\"{v}\"")));
            (whole_name && fits).then(|| value.parse::<f64>().unwrap())
        })
        .sum()
}

/// Exit status and standard error of a finished process.
#[derive(Debug)]
pub struct Exit {
    pub status: ExitStatus,
    pub stderr: String,
}

impl Exit {
    /// Asserts exit code 1 and an error that contains all `words`.
    #[track_caller]
    pub fn assert_error(&self, words: &[&str]) {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in: {}", self.stderr);
        }
    }
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + TIME_LIMIT;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    None
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

#[derive(Debug)]
struct Running {
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    /// Log line `listening`, with all addresses.
    listening: Value,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Running {
    /// Returns the TCP addresses in the field `api`, `api_tls`, `admin` or `admin_tls` of the log line.
    fn addresses(&self, field: &str) -> Vec<SocketAddr> {
        let text = self.listening[field].as_str().unwrap_or_default();
        text.split(", ").filter_map(|address| address.parse().ok()).collect()
    }

    #[track_caller]
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Log::default());
        let (stderr, shared) = (child.stderr.take().unwrap(), Arc::clone(&log));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n') {
                let Ok(line) = line else { break };
                shared.lines.lock().unwrap().0.push(String::from_utf8_lossy(&line).into_owned());
                shared.changed.notify_all();
            }
            shared.lines.lock().unwrap().1 = true;
            shared.changed.notify_all();
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut running =
            Self { child, log, reader: Some(reader), listening: Value::Null, api: nowhere, admin: nowhere };
        let line = running.wait_for_line("log line `listening`", |line| {
            line["message"] == "listening" && line["api"].is_string()
        });
        running.listening = line;
        running.api = running.addresses("api")[0];
        running.admin = running.addresses("admin")[0];
        running
    }

    #[track_caller]
    fn wait_for_line(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + TIME_LIMIT;
        let mut lines = self.log.lines.lock().unwrap();
        let mut read = 0;
        loop {
            while read < lines.0.len() {
                match serde_json::from_str(&lines.0[read]) {
                    Ok(line) if wanted(&line) => return line,
                    _ => read += 1,
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!lines.1 && !left.is_zero(), "no {what} in the log:\n{}", lines.0.join("\n"));
            lines = self.log.changed.wait_timeout(lines, left).unwrap().0;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A listening server. Dropping it kills the process.
#[derive(Debug)]
pub struct Larder {
    running: Running,
    setup: Setup,
}

impl Larder {
    /// Starts a server in front of `registry` with default settings.
    #[track_caller]
    pub fn in_front_of(registry: &Registry) -> Self {
        Setup::with(registry).start()
    }

    pub fn api(&self) -> Client {
        Client::new(self.running.api)
    }

    pub fn admin(&self) -> Client {
        Client::new(self.running.admin)
    }

    pub fn api_addr(&self) -> SocketAddr {
        self.running.api
    }

    pub fn admin_addr(&self) -> SocketAddr {
        self.running.admin
    }

    /// Returns all addresses of `api`, `api_tls`, `admin` or `admin_tls`.
    pub fn addresses(&self, field: &str) -> Vec<SocketAddr> {
        self.running.addresses(field)
    }

    /// Returns the set-up of the server, which is killed if it still runs.
    pub fn into_setup(self) -> Setup {
        self.setup
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.api().get(path)
    }

    #[track_caller]
    pub fn head(&self, path: &str) -> Answer {
        self.api().head(path)
    }

    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill9(&mut self) {
        self.running.child.kill().unwrap();
        self.running.child.wait().unwrap();
    }

    fn signal(&self, signal: &str) {
        // `kill` of the shell: the program `kill` is not installed everywhere.
        let line = format!("kill -s {signal} {}", self.pid());
        assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    }

    /// Sends SIGTERM, without waiting for the end.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Stops the server and asserts a successful exit.
    #[track_caller]
    pub fn stop(&mut self) {
        self.terminate();
        assert!(self.wait_exit().success(), "{}", self.log_text());
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) {
        self.signal("HUP");
    }

    pub fn interrupt(&self) {
        self.signal("INT");
    }

    /// Waits until the process has exited by itself.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        match wait(&mut self.running.child) {
            Some(status) => status,
            None => panic!("larder did not end within {TIME_LIMIT:?}; its log:\n{}", self.log_text()),
        }
    }

    /// Returns true if the process has not exited.
    pub fn is_running(&mut self) -> bool {
        self.running.child.try_wait().unwrap().is_none()
    }

    /// Kills the server if it runs, and starts it again with the same data folder on new ports.
    #[track_caller]
    pub fn restart(&mut self) {
        self.restart_by(|_| {});
    }

    /// As `restart`; `change` modifies the command.
    #[track_caller]
    pub fn restart_by(&mut self, change: impl FnOnce(&mut Command)) {
        self.kill9_if_running();
        let mut command = self.setup.command();
        change(&mut command);
        self.running = Running::start(&mut command);
    }

    /// Starts the server again with another configuration.
    #[track_caller]
    pub fn restart_with(self, change: impl FnOnce(Setup) -> Setup) -> Self {
        let Self { running, setup } = self;
        drop(running);
        change(setup).start()
    }

    /// Changes the configuration file of the running server.
    pub fn rewrite(&mut self, change: impl FnOnce(Setup) -> Setup) {
        let setup = std::mem::replace(&mut self.setup, Setup::empty());
        self.setup = change(setup);
        self.setup.config_file();
    }

    fn kill9_if_running(&mut self) {
        if self.is_running() {
            self.kill9();
        }
    }

    /// Returns everything that the server has written to standard error.
    pub fn log_text(&self) -> String {
        self.running.log.lines.lock().unwrap().0.join("\n")
    }

    /// Returns all JSON lines of the log.
    pub fn log_lines(&self) -> Vec<Value> {
        let lines = self.running.log.lines.lock().unwrap();
        lines.0.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the first log line that `wanted` accepts. `what` describes the line if it does not appear.
    #[track_caller]
    pub fn wait_for_line(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.running.wait_for_line(what, wanted)
    }

    /// Returns true if a thread of the server has panicked.
    pub fn has_panicked(&self) -> bool {
        self.running.log.lines.lock().unwrap().0.iter().any(|line| line.contains("panicked at"))
    }

    /// Returns the number of log lines with this message.
    pub fn count_lines(&self, message: &str) -> usize {
        self.log_lines().iter().filter(|line| line["message"] == message).count()
    }

    /// Returns the resident memory in bytes.
    pub fn rss(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Returns the largest resident memory so far in bytes.
    pub fn peak_rss(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    pub fn metrics_text(&self) -> String {
        let answer = self.admin().get("/metrics");
        assert_eq!(answer.status(), 200);
        answer.text()
    }

    /// Returns the sum of all samples of `name` with these labels; 0 if there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum_of(&self.metrics_text(), name, labels)
    }

    /// As `metric`, as a whole number.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.metric(name, labels).round() as u64
    }

    /// Waits until a counter is at least `value`.
    #[track_caller]
    pub fn wait_counter(&self, name: &str, labels: &[(&str, &str)], value: u64) {
        eventually(&format!("{name}{labels:?} is {value}"), || self.counter(name, labels) >= value);
    }

    /// Waits until no fill runs and no child manifest is queued.
    #[track_caller]
    pub fn wait_idle(&self) {
        eventually("no fill runs and no child manifest is queued", || {
            self.counter("larder_fills_running", &[]) == 0 && self.counter("larder_children_queued", &[]) == 0
        });
    }
}
