//! Credentials of docker: a `config.json`, and credential helpers as shell scripts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use super::larder::{Larder, Setup};

/// A folder of credential helpers. They record the requests that they receive.
#[derive(Debug)]
pub struct Helpers {
    folder: PathBuf,
}

impl Helpers {
    /// Creates an empty folder in the folder of the set-up.
    pub fn new(setup: &Setup) -> Self {
        let folder = setup.folder().join("helpers");
        std::fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    /// Adds `docker-credential-NAME`, or replaces it atomically. The script runs in the folder of the helpers, with the
    /// requested server in `$SERVER`.
    pub fn add(&self, name: &str, script: &str) {
        let folder = self.folder.display();
        let text = format!(
            "#!/bin/sh\ncd '{folder}'\n[ \"$1\" = get ] || exit 9\nSERVER=$(cat)\necho \"{name} $SERVER\" >>requests\n{script}\n"
        );
        let path = self.folder.join(format!("docker-credential-{name}"));
        // Another process writes the file. A file that this process has open for writing can be inherited by a child
        // process of another test, and could then not be executed ("text file busy").
        let line = "printf %s \"$2\" >\"$1.new\" && chmod 700 \"$1.new\" && mv \"$1.new\" \"$1\"";
        let written = Command::new("sh").args(["-c", line, "sh"]).arg(path).arg(text).status().unwrap();
        assert!(written.success());
    }

    /// Adds a helper that returns one login for every server.
    pub fn add_login(&self, name: &str, username: &str, secret: &str) {
        let answer = serde_json::json!({ "ServerURL": "x", "Username": username, "Secret": secret });
        self.add(name, &format!("echo '{answer}'"));
    }

    /// Adds a helper without credentials.
    pub fn add_empty(&self, name: &str) {
        self.add(name, "echo 'credentials not found in native keychain'; exit 1");
    }

    /// Returns the path of a file in the folder of the helpers.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns the received requests, each as `NAME SERVER`.
    pub fn requests(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file("requests")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Starts a server with the helpers in its `PATH`.
    #[track_caller]
    pub fn start(&self, setup: Setup) -> Larder {
        let mut path = OsString::from(&self.folder);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = setup.command();
        command.env("PATH", path);
        setup.start_by(&mut command)
    }
}

impl Setup {
    /// Writes a `config.json` for an upstream and configures it.
    #[must_use]
    pub fn docker_config(self, upstream: &str, content: &serde_json::Value) -> Self {
        let file = self.write(&format!("{}.json", upstream.replace(':', "_")), &content.to_string());
        self.upstream_set(upstream, "docker_config", file.display().to_string())
    }
}
