//! What docker keeps logins with: a `config.json`, and credential helpers, here small shell scripts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use super::larder::{Larder, Setup};

/// A folder of credential helpers that note down what they are asked.
#[derive(Debug)]
pub struct Helpers {
    folder: PathBuf,
}

impl Helpers {
    /// None yet, in the setup's folder.
    pub fn new(setup: &Setup) -> Self {
        let folder = setup.folder().join("helpers");
        std::fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    /// `docker-credential-NAME`: `script` finds the server in `$SERVER`, and the helpers' folder as its own. Replaces
    /// an earlier one at once.
    pub fn add(&self, name: &str, script: &str) {
        let place = self.folder.display();
        let text = format!(
            "#!/bin/sh\ncd '{place}'\n[ \"$1\" = get ] || exit 9\nSERVER=$(cat)\necho \"{name} $SERVER\" >>asked\n{script}\n"
        );
        let path = self.folder.join(format!("docker-credential-{name}"));
        // Written by another process: while this one has a file open for writing, and so perhaps a larder that another
        // test is just starting, it cannot be run.
        let line = "printf %s \"$2\" >\"$1.new\" && chmod 700 \"$1.new\" && mv \"$1.new\" \"$1\"";
        let written = Command::new("sh").args(["-c", line, "sh"]).arg(path).arg(text).status().unwrap();
        assert!(written.success());
    }

    /// A helper that knows one login, whatever it is asked.
    pub fn add_login(&self, name: &str, username: &str, secret: &str) {
        let answer = serde_json::json!({ "ServerURL": "x", "Username": username, "Secret": secret });
        self.add(name, &format!("echo '{answer}'"));
    }

    /// A helper that knows nothing.
    pub fn add_empty(&self, name: &str) {
        self.add(name, "echo 'credentials not found in native keychain'; exit 1");
    }

    /// A file in the helpers' folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What they were asked, as `NAME SERVER`.
    pub fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Starts a larder that has them on its `PATH`.
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
    /// Gives an upstream this `config.json`.
    #[must_use]
    pub fn docker_config(self, upstream: &str, content: &serde_json::Value) -> Self {
        let file = self.write(&format!("{}.json", upstream.replace(':', "_")), &content.to_string());
        self.upstream_set(upstream, "docker_config", file.display().to_string())
    }
}
