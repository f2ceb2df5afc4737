//! Credential helpers: the programs `docker-credential-NAME`, run bounded in time and output, and their answers kept
//! for a minute.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::authorization::Identity;
use crate::clock::Clock;
use crate::config::docker::Credential;
use crate::oci::UpstreamName;
use crate::source::SourceError;

/// How long an answer is believed, so that not every request starts a program.
const KEPT: Duration = Duration::from_mins(1);
/// How long a failure is.
const FAILURE_KEPT: Duration = Duration::from_secs(5);
/// How long an answer stands that was refused and that the helper then gave again.
const REFUSED_KEPT: Duration = Duration::from_secs(10);
/// No answer is larger; the largest real ones are tokens of some kilobytes.
const ANSWER_MAX: usize = 64 * 1024;
/// How long a program that was killed is waited for; the runtime reaps it if it takes longer.
const REAP: Duration = Duration::from_secs(1);
/// Answers remembered at once.
const REMEMBERED: usize = 64;

/// The helpers of one upstream and what they last said.
#[derive(Debug)]
pub(crate) struct CredHelpers {
    upstream: UpstreamName,
    limit: Duration,
    clock: Clock,
    slots: Cache<(String, String), Arc<Mutex<Option<Answer>>>>,
}

/// What a helper said.
#[derive(Clone, Debug)]
struct Answer {
    at: std::time::Instant,
    result: Result<Option<Credential>, SourceError>,
    /// Whether the helper gave this again after it had been refused.
    again: bool,
}

impl Answer {
    /// Whether this need not be asked again. Being refused makes the helper worth asking at once, but only once: a
    /// credential may well be good and just not for what was asked.
    fn stands(&self, now: std::time::Instant, refused: Option<Identity>) -> bool {
        let doubted = refused.is_some() && self.identity() == refused;
        let kept = match &self.result {
            Err(_) => FAILURE_KEPT,
            Ok(_) if doubted && self.again => REFUSED_KEPT,
            Ok(_) if doubted => Duration::ZERO,
            Ok(_) => KEPT,
        };
        now.saturating_duration_since(self.at) < kept
    }

    fn identity(&self) -> Option<Identity> {
        self.result.as_ref().ok()?.as_ref().map(Identity::of)
    }
}

impl CredHelpers {
    /// `limit` bounds each run of a program.
    pub(crate) fn new(upstream: UpstreamName, limit: Duration, clock: Clock) -> Self {
        Self { upstream, limit, clock, slots: Cache::new(REMEMBERED) }
    }

    /// What the helper `name` knows for `server`, asked anew if the last answer is too old or is what was `refused`.
    pub(crate) async fn ask(
        &self,
        name: &str,
        server: &str,
        refused: Option<Identity>,
        deadline: Instant,
    ) -> Result<Option<Credential>, SourceError> {
        let late = || SourceError::Timeout("a credential helper".to_owned());
        let made: Result<_, std::convert::Infallible> =
            self.slots.get_or_insert_with(&(name.to_owned(), server.to_owned()), || Ok(Arc::default()));
        let Ok(slot) = made;
        let mut last = timeout_at(deadline, slot.lock_owned()).await.map_err(|_| late())?;
        if let Some(answer) = last.as_ref().filter(|answer| answer.stands(self.clock.instant(), refused)) {
            return answer.result.clone();
        }
        let (program, server) = (format!("docker-credential-{name}"), server.to_owned());
        let (upstream, limit, clock) = (self.upstream.clone(), self.limit, self.clock.clone());
        // A task of its own: a client that leaves must not end a program that others wait for.
        let run = tokio::spawn(async move {
            let result = run(&program, &server, limit).await.map_err(|failure| {
                tracing::warn!(
                    %upstream, program, server, error = %failure,
                    "a credential helper failed; `echo SERVER | PROGRAM get`, as the user that larder runs as, shows why"
                );
                SourceError::Local("a credential helper failed; the log says why".to_owned())
            });
            let mut answer = Answer { at: clock.instant(), result, again: false };
            answer.again = refused.is_some() && answer.identity() == refused;
            last.insert(answer).result.clone()
        });
        timeout_at(deadline, run).await.map_err(|_| late())?.unwrap_or_else(|error| {
            tracing::error!(upstream = %self.upstream, %error, "a credential helper's task failed");
            Err(SourceError::Local("a credential helper failed; the log says why".to_owned()))
        })
    }
}

/// Why a helper gave no answer. What it printed is never part of it: that may be the secret.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("it cannot be started: {0}; it has to be in a folder of PATH")]
    Start(io::Error),
    #[error("it cannot be talked to: {0}")]
    Pipe(#[from] io::Error),
    #[error("it did not answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    #[error("it printed more than {ANSWER_MAX} bytes")]
    Long,
    #[error("it ended with {0}")]
    Status(ExitStatus),
    #[error("it printed no JSON object with Username and Secret")]
    Garbage,
}

/// Runs one helper to its end, or to its killing.
async fn run(program: &str, server: &str, limit: Duration) -> Result<Option<Credential>, Failure> {
    let mut command = Command::new(program);
    // What it says on standard error is for a person in front of it and may hold anything.
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A group of its own, so that what it starts can be ended with it.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(Failure::Start)?;
    let group = Group::of(&child);
    match timeout(limit, talk(&mut child, server)).await.unwrap_or(Err(Failure::Late(limit))) {
        Ok((status, output)) => {
            group.forget();
            read(status, &output)
        }
        Err(failure) => {
            drop(group);
            let _ = timeout(REAP, child.wait()).await;
            Err(failure)
        }
    }
}

/// Hands over the question, takes the answer and waits for the end.
async fn talk(child: &mut Child, server: &str) -> Result<(ExitStatus, Vec<u8>), Failure> {
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()).await {
            // A helper that knows one login only need not listen.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_MAX as u64 + 1).read_to_end(&mut output).await?;
    }
    if output.len() > ANSWER_MAX {
        return Err(Failure::Long);
    }
    Ok((child.wait().await?, output))
}

/// A helper and what it started. Dropping it kills them all.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    /// The helper was waited for, so its number may be somebody else's by now.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // There is nobody left to be killed if this fails.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What a helper's output means. "Not found" is said on standard output, with a status of failure.
fn read(status: ExitStatus, output: &[u8]) -> Result<Option<Credential>, Failure> {
    #[derive(Deserialize)]
    struct Login {
        #[serde(rename = "Username")]
        username: Option<String>,
        #[serde(rename = "Secret")]
        secret: Option<String>,
    }
    if !status.success() {
        let said = String::from_utf8_lossy(output).to_ascii_lowercase();
        return if said.contains("credentials not found") { Ok(None) } else { Err(Failure::Status(status)) };
    }
    // The parser's message would quote what it read.
    let login: Login = serde_json::from_slice(output).map_err(|_| Failure::Garbage)?;
    let (username, secret) = (login.username.unwrap_or_default(), login.secret.unwrap_or_default());
    Ok(match username.as_str() {
        _ if secret.is_empty() => None,
        "<token>" => Some(Credential { identity_token: Some(secret), ..Credential::default() }),
        _ => Some(Credential { username, password: secret.into_bytes(), ..Credential::default() }),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const PATIENT: Duration = Duration::from_secs(20);

    /// A helper that is this shell script, run in its folder.
    fn script(folder: &Path, text: &str) -> String {
        let path = folder.join("docker-credential-x").to_str().expect("text").to_owned();
        let text = format!("#!/bin/sh\ncd '{}'\n{text}\n", folder.display());
        // Written by another process: a file that this one has open for writing, or a child of another test's making
        // has inherited, cannot be run.
        let mut write = std::process::Command::new("sh");
        write.args(["-c", "printf %s \"$2\" >\"$1\" && chmod 700 \"$1\"", "sh", &path, &text]);
        assert!(write.status().expect("a shell").success());
        path
    }

    async fn ran(text: &str, limit: Duration) -> Result<Option<Credential>, Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        let program = script(folder.path(), text);
        run(&program, "reg.test", limit).await
    }

    fn login(username: &str, password: &str) -> Credential {
        Credential { username: username.to_owned(), password: password.into(), ..Credential::default() }
    }

    #[tokio::test]
    async fn a_helper_is_asked_as_docker_asks() {
        let echo = r#"printf '{"ServerURL":"x","Username":"%s","Secret":"%s"}' "$1" "$(cat)""#;
        assert_eq!(ran(echo, PATIENT).await.expect("an answer"), Some(login("get", "reg.test")));
        let deaf = r#"exec 0<&-; echo '{"Username":"u","Secret":"s"}'"#;
        assert_eq!(ran(deaf, PATIENT).await.expect("an answer"), Some(login("u", "s")));
        let token = ran(r#"echo '{"Username":"<token>","Secret":"t"}'"#, PATIENT).await.expect("an answer");
        assert_eq!(token.and_then(|credential| credential.identity_token).as_deref(), Some("t"));
    }

    #[tokio::test]
    async fn nothing_found_is_no_failure() {
        let none = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(ran(none, PATIENT).await.expect("an answer"), None);
        assert_eq!(ran(r#"echo '{"Username":"","Secret":""}'"#, PATIENT).await.expect("an answer"), None);
    }

    #[tokio::test]
    async fn failures_are_told_apart_and_quote_nothing() {
        for (text, wanted) in [
            ("echo hush; echo hush >&2; exit 3", "exit status: 3"),
            ("echo hush", "no JSON object"),
            (r#"echo '["hush"]'"#, "no JSON object"),
            ("true", "no JSON object"),
            ("kill -9 $$", "signal: 9"),
            ("head -c 70000 /dev/zero", "more than 65536 bytes"),
        ] {
            let error = ran(text, PATIENT).await.expect_err(text).to_string();
            assert!(error.contains(wanted) && !error.contains("hush"), "{text}: {error}");
        }
        let error = run("docker-credential-that-is-not-there", "reg.test", PATIENT).await.expect_err("none");
        assert!(error.to_string().contains("PATH"), "{error}");
    }

    /// Whether a process is there, as a zombie too.
    fn exists(id: &str) -> bool {
        Path::new("/proc").join(id.trim()).exists()
    }

    #[tokio::test]
    async fn a_late_helper_is_killed_with_what_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "sleep 600 & echo $! >child; echo $$ >own; wait";
        let program = script(folder.path(), text);
        // Also: output without an end, and no end after the output.
        for text in [
            text,
            "echo $$ >own; echo $$ >child; yes",
            "exec 1>&-; sleep 600 & echo $! >child; echo $$ >own; wait",
        ] {
            script(folder.path(), text);
            let error = run(&program, "reg.test", Duration::from_secs(3)).await.expect_err("killed");
            assert!(matches!(error, Failure::Late(_) | Failure::Long), "{error}");
            let id = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("an id");
            assert!(!exists(&id("own")), "neither running nor a zombie");
            // It takes its time to die, and somebody else reaps it, for its parent is gone.
            let stat = Path::new("/proc").join(id("child").trim()).join("stat");
            let end = Instant::now() + PATIENT;
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                assert!(Instant::now() < end, "{stat:?} is still there");
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn answers_stand_for_a_while() {
        let now = std::time::Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let credential = login("u", "p");
        let own = Some(Identity::of(&credential));
        let other = Some(Identity::of(&login("u", "q")));
        let mut answer = Answer { at: now, result: Ok(Some(credential)), again: false };
        assert!(answer.stands(after(59), None) && !answer.stands(after(60), None));
        assert!(answer.stands(after(0), other), "another one was refused");
        assert!(!answer.stands(after(0), own), "worth asking again at once");
        answer.again = true;
        assert!(answer.stands(after(9), own) && !answer.stands(after(10), own), "but not over and over");
        assert!(answer.stands(after(59), None));
        let none = Answer { at: now, result: Ok(None), again: false };
        assert!(none.stands(after(59), own) && !none.stands(after(60), own));
        let failed = Answer { at: now, result: Err(SourceError::NotFound), again: false };
        assert!(failed.stands(after(4), own) && !failed.stands(after(5), None));
    }

    #[tokio::test]
    async fn a_failure_is_not_told_to_clients() {
        let helpers = CredHelpers::new("reg.test".parse().expect("a name"), PATIENT, Clock::default());
        let deadline = Instant::now() + PATIENT;
        let failed = helpers.ask("that-is-not-there", "reg.test", None, deadline).await;
        assert!(matches!(failed, Err(SourceError::Local(text)) if !text.contains("that-is-not-there")));
    }
}
