//! A scripted registry on loopback. It records every request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use super::TIME_LIMIT;
use super::content::{Blob, Document, Image, Index};
use super::lists::ListOptions;
use super::port::Port;
use super::script::{Fault, Plan, When};
use super::wire;
use base64::Engine as _;

/// A received request, and the progress of its answer.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: Instant,
    pub sent: Arc<AtomicU64>,
}

impl Seen {
    /// Returns the first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Returns the number of bytes of the answer's body that have been sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Returns `N` of `Range: bytes=N-`.
    pub fn range_start(&self) -> Option<u64> {
        self.header("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }

    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }
}

/// Authentication that the registry requires.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    #[default]
    Nothing,
    Basic(String, String),
    /// A token from `/token` of this registry, issued to all clients or only for a user name and password.
    Bearer(Option<(String, String)>),
}

#[derive(Default)]
struct Repository {
    manifests: BTreeMap<String, Document>,
    blobs: BTreeMap<String, Blob>,
    tags: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    requests: Vec<Seen>,
    script: Vec<(When, Fault)>,
    lists: ListOptions,
    auth: Auth,
    tokens: BTreeSet<String>,
    connections: BTreeMap<u64, TcpStream>,
    accepted: u64,
}

pub(super) struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    /// Incremented when the registry goes down. Connections of earlier generations are closed.
    pub(super) generation: AtomicU64,
    pub(super) addr: SocketAddr,
}

/// The registry. Dropping it closes everything.
pub struct Registry {
    inner: Arc<Inner>,
    listening: Mutex<Option<JoinHandle<()>>>,
    port: Port,
}

impl Registry {
    /// Starts an empty registry on a free port.
    pub fn start() -> Self {
        let port = Port::reserve();
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            changed: Condvar::new(),
            generation: AtomicU64::new(0),
            addr: port.addr(),
        });
        let thread = Inner::listen(&inner, port.listen());
        Self { inner, listening: Mutex::new(Some(thread)), port }
    }

    pub fn addr(&self) -> SocketAddr {
        self.inner.addr
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.inner.addr)
    }

    fn repository<R>(&self, name: &str, change: impl FnOnce(&mut Repository) -> R) -> R {
        change(self.inner.lock().repositories.entry(name.to_owned()).or_default())
    }

    pub fn add_blob(&self, repository: &str, blob: &Blob) {
        self.repository(repository, |r| r.blobs.insert(blob.digest.clone(), blob.clone()));
    }

    pub fn add_manifest(&self, repository: &str, document: &Document) {
        self.repository(repository, |r| r.manifests.insert(document.digest.clone(), document.clone()));
    }

    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.repository(repository, |r| r.tags.insert(tag.to_owned(), digest.to_owned()));
    }

    pub fn untag(&self, repository: &str, tag: &str) {
        self.repository(repository, |r| r.tags.remove(tag));
    }

    /// Adds an image with its blobs and a tag.
    pub fn add_image(&self, repository: &str, tag: &str, image: &Image) {
        self.add_manifest(repository, &image.manifest);
        image.blobs().for_each(|blob| self.add_blob(repository, blob));
        self.tag(repository, tag, &image.manifest.digest);
    }

    /// Adds an index with all its content and a tag.
    pub fn add_index(&self, repository: &str, tag: &str, index: &Index) {
        index.documents().into_iter().for_each(|document| self.add_manifest(repository, document));
        for image in index.all_images() {
            image.blobs().for_each(|blob| self.add_blob(repository, blob));
        }
        self.tag(repository, tag, &index.document.digest);
    }

    /// Applies `fault` to the answers of all following requests that match `when`.
    pub fn script(&self, when: When, fault: Fault) {
        self.inner.lock().script.push((when, fault));
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.inner.lock().script.clear();
    }

    /// Switches the referrers API on or off. It is off at the start.
    pub fn offer_referrers(&self, offered: bool) {
        self.inner.lock().lists.referrers = offered;
    }

    /// Limits the pages of lists to this number of entries.
    pub fn page_lists(&self, entries: usize) {
        self.inner.lock().lists.page_size = Some(entries);
    }

    pub fn remove_manifest(&self, repository: &str, digest: &str) {
        self.repository(repository, |r| r.manifests.remove(digest));
    }

    /// Removes a repository with all its content.
    pub fn remove_repository(&self, name: &str) {
        self.inner.lock().repositories.remove(name);
    }

    pub fn require_auth(&self, auth: Auth) {
        self.inner.lock().auth = auth;
    }

    /// Invalidates all issued tokens.
    pub fn revoke_tokens(&self) {
        self.inner.lock().tokens.clear();
    }

    /// Stops listening and closes all connections.
    pub fn down(&self) {
        let Some(thread) = self.listening.lock().unwrap().take() else { return };
        self.inner.generation.fetch_add(1, Ordering::SeqCst);
        for connection in std::mem::take(&mut self.inner.lock().connections).into_values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // The listening thread blocks in accept. This connection wakes it.
        let _ = TcpStream::connect(self.inner.addr);
        let _ = thread.join();
    }

    /// Starts to listen again on the same port.
    pub fn up(&self) {
        let mut listening = self.listening.lock().unwrap();
        if listening.is_none() {
            *listening = Some(Inner::listen(&self.inner, self.port.listen()));
        }
    }

    /// Returns all requests in the order of their arrival.
    pub fn requests(&self) -> Vec<Seen> {
        self.inner.lock().requests.clone()
    }

    pub fn forget_requests(&self) {
        self.inner.lock().requests.clear();
    }

    /// Returns the number of requests with this method whose path contains `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.inner.lock().requests.iter().filter(|seen| seen.is(method, part)).count()
    }

    /// Returns the requests with this method whose path contains `part`.
    pub fn seen(&self, method: &str, part: &str) -> Vec<Seen> {
        self.inner.lock().requests.iter().filter(|seen| seen.is(method, part)).cloned().collect()
    }

    /// Waits until at least `n` requests with this method, and with `part` in their path, have arrived.
    #[track_caller]
    pub fn wait_for(&self, n: usize, method: &str, part: &str) {
        let end = Instant::now() + TIME_LIMIT;
        let mut state = self.inner.lock();
        loop {
            let found = state.requests.iter().filter(|seen| seen.is(method, part)).count();
            if found >= n {
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            let all: Vec<_> = state.requests.iter().map(|s| format!("{} {}", s.method, s.path)).collect();
            assert!(
                !left.is_zero(),
                "{found} of {n} requests {method} …{part}… arrived; all requests: {all:#?}"
            );
            state = self.inner.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.down();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn listen(inner: &Arc<Self>, listener: TcpListener) -> JoinHandle<()> {
        let inner = Arc::clone(inner);
        let generation = inner.generation.load(Ordering::SeqCst);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if inner.generation.load(Ordering::SeqCst) != generation {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let id = {
                    let mut state = inner.lock();
                    state.accepted += 1;
                    let id = state.accepted;
                    if let Ok(clone) = stream.try_clone() {
                        state.connections.insert(id, clone);
                    }
                    id
                };
                let inner = Arc::clone(&inner);
                std::thread::spawn(move || {
                    wire::serve(&inner, generation, &stream);
                    let _ = stream.shutdown(Shutdown::Both);
                    inner.lock().connections.remove(&id);
                });
            }
        })
    }

    /// Records the request and returns its answer.
    pub(super) fn answer(&self, seen: &Seen) -> Plan {
        let mut state = self.lock();
        state.requests.push(seen.clone());
        let mut plan = state.normal(self.addr, seen);
        let mut script = std::mem::take(&mut state.script);
        for (when, fault) in &mut script {
            if when.fires(seen) {
                plan.apply(seen, fault);
            }
        }
        state.script = script;
        self.changed.notify_all();
        plan
    }
}

impl State {
    fn normal(&mut self, addr: SocketAddr, seen: &Seen) -> Plan {
        if seen.path == "/token" {
            return self.token(seen);
        }
        if let Some(refusal) = self.refusal(addr, seen) {
            return refusal;
        }
        if seen.path == "/v2/" || seen.path == "/v2" {
            return Plan::new(200, &[("Content-Type", "application/json")], Arc::new(b"{}".to_vec()));
        }
        if !matches!(seen.method.as_str(), "GET" | "HEAD") {
            return Plan::error(405, "UNSUPPORTED");
        }
        let parts: Vec<&str> = seen.path.trim_start_matches("/v2/").rsplitn(3, '/').collect();
        let [reference, what, name] = parts[..] else { return Plan::error(404, "NAME_UNKNOWN") };
        let Some(repository) = self.repositories.get(name) else { return Plan::error(404, "NAME_UNKNOWN") };
        match (what, reference) {
            ("manifests", reference) => repository.manifest(reference),
            ("blobs", digest) => repository.blob(digest, seen.header("range")),
            ("tags", "list") => self.lists.tags(name, &repository.tags, seen),
            ("referrers", subject) => self.lists.referrers(&repository.manifests, subject, seen),
            _ => Plan::error(404, "NAME_UNKNOWN"),
        }
    }

    fn refusal(&self, addr: SocketAddr, seen: &Seen) -> Option<Plan> {
        let given = seen.header("authorization").unwrap_or_default();
        let challenge = match &self.auth {
            Auth::Nothing => return None,
            Auth::Basic(user, password) => {
                if basic(given).is_some_and(|pair| pair == (user.clone(), password.clone())) {
                    return None;
                }
                "Basic realm=\"scripted\"".to_owned()
            }
            Auth::Bearer(_) => {
                if given.strip_prefix("Bearer ").is_some_and(|token| self.tokens.contains(token)) {
                    return None;
                }
                let path = seen.path.trim_start_matches("/v2/");
                let scope = path
                    .rsplitn(3, '/')
                    .nth(2)
                    .map_or_else(String::new, |name| format!(",scope=\"repository:{name}:pull\""));
                format!("Bearer realm=\"http://{addr}/token\",service=\"scripted.registry\"{scope}")
            }
        };
        let mut plan = Plan::error(401, "UNAUTHORIZED");
        plan.set("WWW-Authenticate", &challenge);
        Some(plan)
    }

    fn token(&mut self, seen: &Seen) -> Plan {
        let Auth::Bearer(wanted) = &self.auth else { return Plan::error(404, "UNSUPPORTED") };
        let given = basic(seen.header("authorization").unwrap_or_default());
        if wanted.is_some() && *wanted != given {
            return Plan::error(401, "UNAUTHORIZED");
        }
        let token = format!("scripted-token-{}-{}", self.requests.len(), self.tokens.len());
        self.tokens.insert(token.clone());
        let body = serde_json::json!({ "token": token, "expires_in": 300 }).to_string();
        Plan::new(200, &[("Content-Type", "application/json")], Arc::new(body.into_bytes()))
    }
}

fn basic(header: &str) -> Option<(String, String)> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

impl Repository {
    fn manifest(&self, reference: &str) -> Plan {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        let Some(document) = self.manifests.get(digest) else { return Plan::error(404, "MANIFEST_UNKNOWN") };
        let headers =
            [("Content-Type", document.media_type.as_str()), ("Docker-Content-Digest", &document.digest)];
        Plan::new(200, &headers, Arc::clone(&document.bytes))
    }

    fn blob(&self, digest: &str, range: Option<&str>) -> Plan {
        let Some(blob) = self.blobs.get(digest) else { return Plan::error(404, "BLOB_UNKNOWN") };
        let headers = [
            ("Content-Type", "application/octet-stream"),
            ("Docker-Content-Digest", digest),
            ("Accept-Ranges", "bytes"),
        ];
        let mut plan = Plan::new(200, &headers, Arc::clone(&blob.bytes));
        let length = blob.bytes.len();
        if let Some((first, last)) =
            range.and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.split_once('-'))
        {
            let (from, to) = match (first.parse::<usize>(), last.parse::<usize>()) {
                (Ok(from), Ok(to)) => (from, (to + 1).min(length)),
                (Ok(from), Err(_)) => (from, length),
                (Err(_), Ok(n)) => (length.saturating_sub(n), length),
                _ => return plan,
            };
            if from >= to {
                let mut plan = Plan::error(416, "RANGE_INVALID");
                plan.set("Content-Range", &format!("bytes */{length}"));
                return plan;
            }
            plan.status = 206;
            (plan.from, plan.to) = (from, to);
            plan.set("Content-Range", &format!("bytes {from}-{}/{length}", to - 1));
        }
        plan
    }
}
