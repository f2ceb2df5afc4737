//! The fault table: answer to the client, requests to the upstream and cached content, for every known fault of
//! upstreams.
//! This test produces the table in `fault_table.md`; `LARDER_BLESS=1` updates the file.
//!
//! Each row has its own upstream, so that circuit breakers and quotas do not affect other rows. One server serves all
//! rows,
//! in three steps: request the content, wait until the server is idle, request it again with all upstreams down.

use crate::support;

mod cases;
mod disk;
mod peculiarities;
mod site;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;

use cases::{Case, Request};
use site::Site;
use support::{Client, Fault, Larder, Setup, When};

/// Number of rows at the same time. Most of their time is waiting.
const THREADS: usize = 32;

/// One row: a case and one of its requests.
struct Row<'c> {
    case: &'c Case,
    request: Request,
    site: Site,
    response: String,
    requests: String,
    cached: String,
}

impl<'c> Row<'c> {
    fn new(case: &'c Case, request: Request, n: usize) -> Self {
        let site = Site::new(n, case);
        Self { case, request, site, response: String::new(), requests: String::new(), cached: String::new() }
    }

    fn get(&self, client: Client) -> Result<support::Answer, support::client::TransferError> {
        let path = self.site.path(self.request);
        let accept = [("Accept", self.case.accept.unwrap_or("*/*"))];
        client.try_send("GET", &path, &accept)
    }

    /// Caches the content if the row requires it.
    fn fill_cache(&self, client: Client) {
        if self.request.is_cached() {
            let answer = self.get(client).unwrap();
            assert_eq!(answer.status(), 200, "{}: {answer:?}", self.case.fault);
        }
    }

    /// Sends the request under the fault, and records the answer.
    fn send_request(&mut self, client: Client) {
        (self.case.inject)(&self.site);
        if let Some(byte) = self.case.hold_at {
            let fill_cache = Fault::HoldBody(byte, self.site.head.clone());
            self.site.first.script(When::blobs(), fill_cache);
        }
        for _ in 0..self.case.before {
            let _ = self.get(client);
        }
        self.site.forget_requests();
        let (outcome, reason) = self.outcome(client);
        self.response = outcome;
        if let Some(seconds) = self.case.within {
            let _ = write!(
                self.response,
                ", within {} s",
                if self.request.is_cached() { seconds.min(3) } else { seconds }
            );
            // The reason proves that a time limit of the server ended the wait. The test itself measures no time.
            assert!(reason.contains("no timely answer"), "{}: {reason}", self.case.fault);
        }
    }

    /// Returns a summary of the answer, and the reason in its error or warning.
    fn outcome(&self, client: Client) -> (String, String) {
        let path = self.site.path(self.request);
        let accept = [("Accept", self.case.accept.unwrap_or("*/*"))];
        let transfer = client.open("GET", &path, &accept).expect("an answer's head");
        let head = transfer.head.clone();
        self.site.head.open();
        let mut text = head.status.to_string();
        if head.status != 200 {
            let answer = transfer.finish().unwrap();
            let error = &answer.json()["errors"][0];
            let _ = write!(text, " {}", error["code"].as_str().unwrap());
            if head.header("retry-after").is_some() {
                text.push_str(", Retry-After");
            }
            assert_eq!(head.header("www-authenticate"), None, "{}", self.case.fault);
            return (text, error["message"].to_string());
        }
        let _ = write!(text, " {}", outcome(head.outcome()));
        match transfer.finish() {
            Ok(answer) => {
                let _ = write!(text, ", {}", self.site.verdict(self.request, &answer.body));
            }
            Err(_) => text.push_str(", interrupted"),
        }
        let warning = head.header("warning");
        if warning.is_some() {
            text.push_str(", Warning");
        }
        (text, warning.unwrap_or_default().to_owned())
    }

    /// Sends the request again without any upstream.
    fn send_without_upstream(&mut self, client: Client) {
        let (outcome, _) = self.outcome(client);
        self.cached = match outcome.strip_prefix("200 ") {
            Some(rest) => rest.split(',').next().unwrap().to_owned(),
            None => "nothing".to_owned(),
        };
        assert!(
            !outcome.contains("WRONG") && !outcome.contains("interrupted"),
            "{}: {outcome}",
            self.case.fault
        );
    }
}

/// Returns the outcome of the cache.
fn outcome(cache_status: &str) -> &str {
    cache_status.rsplit_once("detail=").map_or("hit", |(_, word)| word)
}

/// Calls `work` for all rows, with [`THREADS`] threads.
fn for_each<'c>(rows: &mut [Row<'c>], work: impl Fn(&mut Row<'c>) + Sync) {
    // Long waits start first.
    let (long, short): (Vec<_>, Vec<_>) = rows.iter_mut().partition(|row| row.case.within.is_some());
    let waiting = Mutex::new(long.into_iter().chain(short));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some(row) = waiting.lock().unwrap().next() else { return };
                    work(row);
                }
            });
        }
    });
}

fn start(rows: &[Row<'_>], mode: &str) -> Larder {
    let mut setup = Setup::empty().set("server.mode", mode).set("prefetch.children", false);
    for (n, row) in rows.iter().enumerate() {
        let name = &row.site.upstream;
        setup = setup
            .upstream_set(name, "endpoints", row.site.endpoints())
            .upstream_set(name, "default", n == 0)
            .upstream_set(name, "tag_ttl", "0s")
            .upstream_set(name, "negative_ttl", "0s");
        for (key, value) in (row.case.settings)(&row.site, &setup) {
            setup = setup.upstream_set(name, key, value);
        }
    }
    setup.start()
}

fn try_all(rows: &mut [Row<'_>], mode: &str) {
    let larder = start(rows, mode);
    let client = larder.api();
    for_each(rows, |row| row.fill_cache(client));
    larder.wait_idle();
    for_each(rows, |row| row.send_request(client));
    larder.wait_idle();
    for row in &mut *rows {
        row.requests = row.site.requests();
        row.site.down();
    }
    for_each(rows, |row| row.send_without_upstream(client));
}

fn render(rows: &[Row<'_>]) -> String {
    let mut text = String::from(
        "# Responses when an upstream fails\n\n\
         Result of `tests/it/fault_table/` with the real program. Update it with\n\
         `LARDER_BLESS=1 cargo test --test it fault_table::`.\n\n\
         * cached: the content was pulled before the fault.\n\
         * cached afterwards: the outcome of the same request when no upstream is left.\n\
         * All tags are older than `tag_ttl` (`\"0s\"`). If a body stalls, `idle_timeout` is 1 s. Bodies have 90,000 bytes.\n\
         * If a head is missing, `head_timeout` is 8 s.\n\
         * `@` is the start of a range; `×3` means three requests.\n\n\
         | fault of the upstream | request | response to the client | requests to the upstream | cached afterwards |\n\
         |---|---|---|---|---|\n",
    );
    let mut last = "";
    for row in rows {
        let fault = if row.case.fault == last { "" } else { row.case.fault };
        last = row.case.fault;
        let _ = writeln!(
            text,
            "| {fault} | {} | {} | {} | {} |",
            row.request, row.response, row.requests, row.cached
        );
    }
    text
}

fn rows<'c>(cases: &[&'c Case], from: usize) -> Vec<Row<'c>> {
    let request = cases.iter().flat_map(|case| case.request.iter().map(|request| (*case, *request)));
    request.enumerate().map(|(n, (case, request))| Row::new(case, request, from + n)).collect()
}

/// Returns the lines that only one of two texts has.
fn differences(committed: &str, found: &str) -> String {
    let mut out = String::new();
    let (committed, found): (Vec<_>, Vec<_>) = (committed.lines().collect(), found.lines().collect());
    for line in committed.iter().filter(|line| !found.contains(line)) {
        let _ = writeln!(out, "- {line}");
    }
    for line in found.iter().filter(|line| !committed.contains(line)) {
        let _ = writeln!(out, "+ {line}");
    }
    if out.is_empty() { "the same lines in another order, or more than once".to_owned() } else { out }
}

#[test]
fn faults_have_the_documented_outcomes() {
    let cases = cases::all();
    let (mirror, gateway): (Vec<_>, Vec<_>) = cases.iter().partition(|case| !case.gateway);
    let mut rows_of_mirror = rows(&mirror, 0);
    let mut rows_of_gateway = rows(&gateway, 1000);
    try_all(&mut rows_of_mirror, "mirror");
    try_all(&mut rows_of_gateway, "gateway");
    rows_of_mirror.append(&mut rows_of_gateway);
    let found = render(&rows_of_mirror) + &disk::rows();
    assert!(!found.contains("WRONG"), "a client completed wrong content:\n{found}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fault_table.md");
    if std::env::var_os("LARDER_BLESS").is_some() {
        std::fs::write(&path, &found).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == found,
        "the table differs from {} (LARDER_BLESS=1 writes it anew):\n{}",
        path.display(),
        differences(&committed, &found)
    );
}
