//! Credential helpers: the programs `docker-credential-NAME` (docker/docker-credential-helpers), run with limits on time
//! and output. Their answers are kept for a minute.
//!
//! Own code and not a crate: a helper must not block an async thread, must be killed with its children when it is late,
//! and must not put its output into an error.

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

use super::authorization::CredentialId;
use crate::clock::Clock;
use crate::config::docker::Credential;
use crate::oci::UpstreamName;
use crate::source::SourceError;

/// Time for which an answer is kept, so that not every request starts a program.
const ANSWER_KEPT: Duration = Duration::from_mins(1);
/// Time for which a failure is kept.
const FAILURE_KEPT: Duration = Duration::from_secs(5);
/// Time for which an answer is kept that was refused and that the helper then repeated.
const REFUSED_KEPT: Duration = Duration::from_secs(10);
/// Largest answer in bytes. The largest real ones are tokens of some kilobytes.
const ANSWER_MAX: usize = 64 * 1024;
/// Time to wait for the end of a killed program. If it takes longer, the runtime reaps it.
const REAP: Duration = Duration::from_secs(1);
/// Number of answers that are kept.
const ANSWERS_MAX: usize = 64;

/// Helpers of one upstream, with their last answers.
#[derive(Debug)]
pub(crate) struct CredHelpers {
    upstream: UpstreamName,
    limit: Duration,
    clock: Clock,
    slots: Cache<(String, String), Arc<Mutex<Option<HelperAnswer>>>>,
}

/// Answer of a helper.
#[derive(Clone, Debug)]
struct HelperAnswer {
    at: std::time::Instant,
    result: Result<Option<Credential>, SourceError>,
    /// True if the helper repeated this answer after it had been refused.
    repeated: bool,
}

impl HelperAnswer {
    /// Returns true if the helper need not be asked again. After a refusal it is asked at once, but only once: the
    /// credential may be valid and just not permit this request.
    fn is_fresh(&self, now: std::time::Instant, refused: Option<CredentialId>) -> bool {
        let was_refused = refused.is_some() && self.credential_id() == refused;
        let kept = match &self.result {
            Err(_) => FAILURE_KEPT,
            Ok(_) if was_refused && self.repeated => REFUSED_KEPT,
            Ok(_) if was_refused => Duration::ZERO,
            Ok(_) => ANSWER_KEPT,
        };
        now.saturating_duration_since(self.at) < kept
    }

    fn credential_id(&self) -> Option<CredentialId> {
        self.result.as_ref().ok()?.as_ref().map(CredentialId::of)
    }
}

impl CredHelpers {
    /// Creates the helpers of an upstream; each run of a program may take `limit`.
    pub(crate) fn new(upstream: UpstreamName, limit: Duration, clock: Clock) -> Self {
        Self { upstream, limit, clock, slots: Cache::new(ANSWERS_MAX) }
    }

    /// Returns the answer of the helper `name` for `server`. It is asked again if its last answer is too old or is the
    /// `refused` one.
    pub(crate) async fn ask(
        &self,
        name: &str,
        server: &str,
        refused: Option<CredentialId>,
        deadline: Instant,
    ) -> Result<Option<Credential>, SourceError> {
        let late = || SourceError::Timeout("a credential helper".to_owned());
        let made: Result<_, std::convert::Infallible> =
            self.slots.get_or_insert_with(&(name.to_owned(), server.to_owned()), || Ok(Arc::default()));
        let Ok(slot) = made;
        let mut last = timeout_at(deadline, slot.lock_owned()).await.map_err(|_| late())?;
        if let Some(answer) = last.as_ref().filter(|answer| answer.is_fresh(self.clock.instant(), refused)) {
            return answer.result.clone();
        }
        let (program, server) = (format!("docker-credential-{name}"), server.to_owned());
        let (upstream, limit, clock) = (self.upstream.clone(), self.limit, self.clock.clone());
        // In a task of its own: a client that disconnects must not end a program that others wait for.
        let run = tokio::spawn(async move {
            let result = run(&program, &server, limit).await.map_err(|failure| {
                tracing::warn!(
                    %upstream, program, server, error = %failure,
                    "a credential helper failed; run `echo SERVER | PROGRAM get` as larder's user to see why"
                );
                SourceError::Local("a credential helper failed; see the log".to_owned())
            });
            let mut answer = HelperAnswer { at: clock.instant(), result, repeated: false };
            answer.repeated = refused.is_some() && answer.credential_id() == refused;
            last.insert(answer).result.clone()
        });
        timeout_at(deadline, run).await.map_err(|_| late())?.unwrap_or_else(|error| {
            tracing::error!(upstream = %self.upstream, %error, "a credential helper's task failed");
            Err(SourceError::Local("a credential helper failed; see the log".to_owned()))
        })
    }
}

/// Failure of a helper. Never contains its output, which may be the secret.
#[derive(Debug, thiserror::Error)]
enum HelperFailure {
    #[error("it cannot be started: {0}; install it in a folder of PATH")]
    Start(io::Error),
    #[error("its pipe failed: {0}")]
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

/// Runs a helper until it ends, or kills it.
async fn run(program: &str, server: &str, limit: Duration) -> Result<Option<Credential>, HelperFailure> {
    let mut command = Command::new(program);
    // Standard error is for a person and may contain anything.
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // In a process group of its own, so that its children can be killed with it.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(HelperFailure::Start)?;
    let group = ProcessGroup::of(&child);
    match timeout(limit, converse(&mut child, server)).await.unwrap_or(Err(HelperFailure::Late(limit))) {
        Ok((status, output)) => {
            group.forget();
            parse(status, &output)
        }
        Err(failure) => {
            drop(group);
            let _ = timeout(REAP, child.wait()).await;
            Err(failure)
        }
    }
}

/// Writes the server's name, reads the answer and waits for the end.
async fn converse(child: &mut Child, server: &str) -> Result<(ExitStatus, Vec<u8>), HelperFailure> {
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()).await {
            // A helper with a single login need not read its input.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_MAX as u64 + 1).read_to_end(&mut output).await?;
    }
    if output.len() > ANSWER_MAX {
        return Err(HelperFailure::Long);
    }
    Ok((child.wait().await?, output))
}

/// Process group of a helper. Dropping it kills the helper and its children.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    /// Ends the responsibility: the helper has been reaped, so its number may be reused.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It fails only if no process is left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Parses a helper's output. Helpers report "not found" on standard output, with a failure as exit status.
fn parse(status: ExitStatus, output: &[u8]) -> Result<Option<Credential>, HelperFailure> {
    #[derive(Deserialize)]
    struct HelperLogin {
        #[serde(rename = "Username")]
        username: Option<String>,
        #[serde(rename = "Secret")]
        secret: Option<String>,
    }
    if !status.success() {
        let output = String::from_utf8_lossy(output).to_ascii_lowercase();
        return if output.contains("credentials not found") {
            Ok(None)
        } else {
            Err(HelperFailure::Status(status))
        };
    }
    // The parser's error would quote the output.
    let login: HelperLogin = serde_json::from_slice(output).map_err(|_| HelperFailure::Garbage)?;
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

    const LONG: Duration = Duration::from_secs(20);

    /// Writes a helper that is this shell script, run in its folder.
    fn script(folder: &Path, text: &str) -> String {
        let path = folder.join("docker-credential-x").to_str().expect("text").to_owned();
        let text = format!("#!/bin/sh\ncd '{}'\n{text}\n", folder.display());
        // Written by another process: a file that is open for writing here, or in a child of another test, cannot be
        // executed.
        let mut write = std::process::Command::new("sh");
        write.args(["-c", "printf %s \"$2\" >\"$1\" && chmod 700 \"$1\"", "sh", &path, &text]);
        assert!(write.status().expect("a shell").success());
        path
    }

    async fn ran(text: &str, limit: Duration) -> Result<Option<Credential>, HelperFailure> {
        let folder = tempfile::tempdir().expect("a folder");
        let program = script(folder.path(), text);
        run(&program, "reg.test", limit).await
    }

    fn login(username: &str, password: &str) -> Credential {
        Credential { username: username.to_owned(), password: password.into(), ..Credential::default() }
    }

    #[tokio::test]
    async fn helper_is_run_like_docker_does() {
        let echo = r#"printf '{"ServerURL":"x","Username":"%s","Secret":"%s"}' "$1" "$(cat)""#;
        assert_eq!(ran(echo, LONG).await.expect("an answer"), Some(login("get", "reg.test")));
        let deaf = r#"exec 0<&-; echo '{"Username":"u","Secret":"s"}'"#;
        assert_eq!(ran(deaf, LONG).await.expect("an answer"), Some(login("u", "s")));
        let token = ran(r#"echo '{"Username":"<token>","Secret":"t"}'"#, LONG).await.expect("an answer");
        assert_eq!(token.and_then(|credential| credential.identity_token).as_deref(), Some("t"));
    }

    #[tokio::test]
    async fn helper_without_a_login_is_no_failure() {
        let none = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(ran(none, LONG).await.expect("an answer"), None);
        assert_eq!(ran(r#"echo '{"Username":"","Secret":""}'"#, LONG).await.expect("an answer"), None);
    }

    #[tokio::test]
    async fn helper_failures_are_distinguished_and_quote_nothing() {
        for (text, wanted) in [
            ("echo hush; echo hush >&2; exit 3", "exit status: 3"),
            ("echo hush", "no JSON object"),
            (r#"echo '["hush"]'"#, "no JSON object"),
            ("true", "no JSON object"),
            ("kill -9 $$", "signal: 9"),
            ("head -c 70000 /dev/zero", "more than 65536 bytes"),
        ] {
            let error = ran(text, LONG).await.expect_err(text).to_string();
            assert!(error.contains(wanted) && !error.contains("hush"), "{text}: {error}");
        }
        let error = run("docker-credential-that-is-not-there", "reg.test", LONG).await.expect_err("none");
        assert!(error.to_string().contains("PATH"), "{error}");
    }

    /// Returns true if a process exists, also as a zombie.
    fn exists(id: &str) -> bool {
        Path::new("/proc").join(id.trim()).exists()
    }

    #[tokio::test]
    async fn late_helper_is_killed_with_its_children() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "sleep 600 & echo $! >child; echo $$ >own; wait";
        let program = script(folder.path(), text);
        // Also: endless output, and no end after the output.
        for text in [
            text,
            "echo $$ >own; echo $$ >child; yes",
            "exec 1>&-; sleep 600 & echo $! >child; echo $$ >own; wait",
        ] {
            script(folder.path(), text);
            let error = run(&program, "reg.test", Duration::from_secs(3)).await.expect_err("killed");
            assert!(matches!(error, HelperFailure::Late(_) | HelperFailure::Long), "{error}");
            let id = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("an id");
            assert!(!exists(&id("own")), "neither running nor a zombie");
            // Its end takes some time, and another process reaps it, because its parent has ended.
            let stat = Path::new("/proc").join(id("child").trim()).join("stat");
            let end = Instant::now() + LONG;
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                assert!(Instant::now() < end, "{stat:?} is still there");
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn helper_answer_is_fresh_for_a_minute() {
        let now = std::time::Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let credential = login("u", "p");
        let own = Some(CredentialId::of(&credential));
        let other = Some(CredentialId::of(&login("u", "q")));
        let mut answer = HelperAnswer { at: now, result: Ok(Some(credential)), repeated: false };
        assert!(answer.is_fresh(after(59), None) && !answer.is_fresh(after(60), None));
        assert!(answer.is_fresh(after(0), other), "another one was refused");
        assert!(!answer.is_fresh(after(0), own), "worth asking again at once");
        answer.repeated = true;
        assert!(answer.is_fresh(after(9), own) && !answer.is_fresh(after(10), own), "but not over and over");
        assert!(answer.is_fresh(after(59), None));
        let none = HelperAnswer { at: now, result: Ok(None), repeated: false };
        assert!(none.is_fresh(after(59), own) && !none.is_fresh(after(60), own));
        let failed = HelperAnswer { at: now, result: Err(SourceError::NotFound), repeated: false };
        assert!(failed.is_fresh(after(4), own) && !failed.is_fresh(after(5), None));
    }

    #[tokio::test]
    async fn helper_failure_hides_the_program_from_clients() {
        let helpers = CredHelpers::new("reg.test".parse().expect("a name"), LONG, Clock::default());
        let deadline = Instant::now() + LONG;
        let failed = helpers.ask("that-is-not-there", "reg.test", None, deadline).await;
        assert!(matches!(failed, Err(SourceError::Local(text)) if !text.contains("that-is-not-there")));
    }
}
