//! `larder status`.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use console::{Term, measure_text_width, style, truncate_str};

use super::backend::{Answer, Backend, ServerOptions};
use super::output::{note, print, sentence};
use super::table::{Table, ago, bad, fair, good, iec, many};
use crate::clock::Timestamp;
use crate::ops::protocol::Query;
use crate::ops::status::{
    Breaker, ConfigState, EndpointState, FillStatus, RefusedAccess, ServiceReport, StatusReport, StoreStatus,
    UpstreamRow,
};

/// Maximum number of warnings to show.
const WARNINGS: usize = 5;
/// Width of a bar in cells.
const BAR: u64 = 20;

/// Arguments of `larder status`.
#[derive(Args, Debug)]
pub(super) struct Status {
    /// Refresh every SECONDS seconds (default 2) until a signal arrives
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,
    #[command(flatten)]
    server: ServerOptions,
}

/// Shows the state of the server.
pub(super) fn run(Status { watch, server }: Status) -> anyhow::Result<()> {
    server.with(async |backend| {
        let Answer { value, report } = backend.ask::<StatusReport>(Query::Status).await?;
        let Some(seconds) = watch else { return server.print(&value, || render(&report)) };
        if matches!(backend, Backend::Local(_)) {
            server.print(&value, || render(&report))?;
            return note("no server runs with this store, so there is nothing to watch");
        }
        let mut screen = Screen::new(server.json);
        screen.show(&if server.json { format!("{value}\n") } else { render(&report) })?;
        loop {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            match backend.ask::<StatusReport>(Query::Status).await {
                Ok(Answer { value, .. }) if server.json => screen.show(&format!("{value}\n"))?,
                Ok(Answer { report, .. }) => screen.show(&render(&report))?,
                // The server may be restarting: keep watching.
                Err(error) if server.json => note(&sentence(&error))?,
                Err(error) => screen.show(&format!("{}: {}\n", bad("no answer"), sentence(&error)))?,
            }
        }
    })
}

/// Output that is replaced on a terminal, and appended elsewhere.
struct Screen {
    term: Option<Term>,
    /// Number of lines on the screen.
    shown: usize,
    first: bool,
    json: bool,
}

impl Screen {
    fn new(json: bool) -> Self {
        let term = Some(Term::stdout()).filter(|term| term.is_term() && !json);
        Self { term, shown: 0, first: true, json }
    }

    fn show(&mut self, text: &str) -> anyhow::Result<()> {
        let first = std::mem::take(&mut self.first);
        let Some(term) = &self.term else {
            return print(&if first || self.json { text.to_owned() } else { format!("\n{text}") });
        };
        let (height, width) = term.size();
        let room = usize::from(height).saturating_sub(1).max(1);
        term.move_cursor_up(self.shown)?;
        self.shown = 0;
        for line in text.lines().take(room) {
            term.clear_line()?;
            term.write_line(&truncate_str(line, usize::from(width), "…"))?;
            self.shown += 1;
        }
        term.clear_to_end_of_screen()?;
        Ok(())
    }
}

fn render(report: &StatusReport) -> String {
    let mut text = String::new();
    match &report.service {
        Some(service) => served(&mut text, report, service),
        None => line(&mut text, "larder", &format!("{}, {}", report.version, fair("no server runs"))),
    }
    stored(&mut text, report.now, &report.store);
    if report.service.is_some() {
        filling(&mut text, report);
        upstreams(&mut text, report.now, &report.upstreams);
        for job in &report.jobs {
            let (done, total) = job.progress.bars.iter().fold((0_u64, 0_u64), |(done, total), bar| {
                (done.saturating_add(bar.done), total.saturating_add(bar.total))
            });
            let items = if job.progress.all > 1 {
                format!("{} of {} done, ", job.progress.ended, job.progress.all)
            } else {
                String::new()
            };
            let since = ago(report.now, Some(job.started_at));
            let entry =
                format!("{} {}, {items}{} of {}, for {since}", job.id, job.verb, iec(done), iec(total));
            line(&mut text, "job", &entry);
        }
    }
    for warning in report.warnings.iter().take(WARNINGS) {
        let times = if warning.times > 1 { format!(" ({} times)", warning.times) } else { String::new() };
        let detail = if warning.detail.is_empty() { String::new() } else { format!(" ({})", warning.detail) };
        let entry = format!("{} ago{times}: {}{detail}", ago(report.now, Some(warning.at)), warning.message);
        line(&mut text, if warning.error { "error" } else { "warning" }, &entry);
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "{}{}  {value}", style(name).bold(), " ".repeat(9_usize.saturating_sub(name.len())));
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn served(text: &mut String, report: &StatusReport, service: &ServiceReport) {
    let up = ago(report.now, Some(service.started_at));
    let addresses = service.addresses.join(", ");
    line(text, "larder", &format!("{}, {} for {up} on {addresses}", report.version, good("serving")));
    if let ConfigState { failed_at: Some(failed_at), error, loaded_at } = &service.configuration {
        let error = error.as_deref().unwrap_or_default();
        let (failed, loaded) = (ago(report.now, Some(*failed_at)), ago(report.now, Some(*loaded_at)));
        let entry = format!(
            "{}: {error}; the configuration of {loaded} ago is in effect",
            bad(&format!("reload failed {failed} ago"))
        );
        line(text, "config", &entry);
    }
    let ServiceReport { requests, hits, connections, .. } = service;
    let hits = format!(
        "{} of {} ({}), {}",
        percent(service.hit_ratio),
        many(*requests, "request"),
        many(*hits, "hit"),
        many(*connections, "client")
    );
    line(text, "hits", &hits);
    if service.failed > 0 {
        line(text, "failed", &bad(&format!("{} answered with 5xx", many(service.failed, "request"))));
    }
    if service.stale > 0 {
        let entry = format!("{} answered without the upstream", many(service.stale, "request"));
        line(text, "stale", &fair(&entry));
    }
    let traffic = format!(
        "{} served, {} fetched, {} saved ({})",
        iec(service.served),
        iec(service.fetched),
        iec(service.saved),
        percent(service.byte_hit_ratio)
    );
    line(text, "traffic", &traffic);
}

fn stored(text: &mut String, now: Timestamp, store: &StoreStatus) {
    let state = match store.degraded_at {
        Some(at) => bad(&format!(
            "degraded mode for {}: nothing is stored, clients are served from upstreams",
            ago(now, Some(at))
        )),
        None => good("ok"),
    };
    line(text, "store", &format!("{}, {state}", store.kind.as_str()));
    let disk = match &store.disk {
        None => bad("cannot be measured"),
        Some(disk) => {
            let free = disk.free.map_or_else(String::new, |free| format!(", {} free", iec(free)));
            format!(
                "{} {} of {}{free}",
                bar(disk.taken, store.max_size),
                iec(disk.taken),
                iec(store.max_size)
            )
        }
    };
    line(text, "disk", &disk);
    let oldest = match store.oldest_access {
        Some(at) => format!(", least recently used {} ago", ago(now, Some(at))),
        None => String::new(),
    };
    let (manifests, blobs) = (many(store.manifests, "manifest"), many(store.blobs, "blob"));
    let content = format!("{} in {manifests} and {blobs}{oldest}", iec(store.content));
    line(text, "content", &content);
}

fn filling(text: &mut String, report: &StatusReport) {
    if report.fills.is_empty() {
        line(text, "fills", "none");
    }
    for fill in &report.fills {
        line(text, "fill", &filled(fill));
    }
    if report.children_queued + report.children_deferred > 0 {
        let waiting = format!("{} queued, {} deferred", report.children_queued, report.children_deferred);
        line(text, "children", &waiting);
    }
}

fn filled(fill: &FillStatus) -> String {
    let digest: String = fill.digest.to_string().chars().take(19).collect();
    let size = match fill.total {
        Some(total) => format!("{} {} of {}", bar(fill.received, total), iec(fill.received), iec(total)),
        None => iec(fill.received),
    };
    let state = match (fill.settling, fill.kept) {
        (true, _) => good("verified"),
        (false, true) => format!("{}/s", iec(fill.rate)),
        (false, false) => fair(&format!("{}/s, not stored", iec(fill.rate))),
    };
    format!("{digest} {size} {state}, {}  {}", many(fill.readers, "reader"), fill.repository)
}

fn upstreams(text: &mut String, now: Timestamp, rows: &[UpstreamRow]) {
    if rows.is_empty() {
        line(text, "upstreams", &bad("none"));
        return;
    }
    let mut table = Table::new(&["UPSTREAM", "ENDPOINT", "STATE", "QUOTA", "FETCHED"]);
    for row in rows {
        let more = std::iter::once(iec(row.fetched)).chain(std::iter::repeat(String::new()));
        let names = std::iter::once(row.state.name.clone()).chain(std::iter::repeat(String::new()));
        for ((endpoint, name), fetched) in row.state.endpoints.iter().zip(names).zip(more) {
            table.row(vec![
                name,
                endpoint.url.clone(),
                breaker(endpoint, now),
                quota(endpoint, now),
                fetched,
            ]);
        }
    }
    text.push('\n');
    text.push_str(&table.lines());
}

/// Returns the time from `now` to `then` in one unit.
fn left(now: Timestamp, then: Timestamp) -> String {
    ago(then, Some(now))
}

fn breaker(endpoint: &EndpointState, now: Timestamp) -> String {
    let health = &endpoint.health;
    match health.breaker {
        Breaker::Open => bad("open, probed every 2 s"),
        Breaker::HalfOpen => fair("half-open"),
        Breaker::Closed => match endpoint.limited_until {
            Some(until) => fair(&format!("rate limited for {}", left(now, until))),
            None if endpoint.refused.is_some() => bad(&refusal(endpoint)),
            None if !endpoint.asked => "not asked yet".to_owned(),
            None if health.failures > 0 => fair(&many(health.failures, "failure")),
            None => good("ok"),
        },
    }
}

fn refusal(endpoint: &EndpointState) -> String {
    match &endpoint.refused {
        Some(RefusedAccess { repositories, .. }) if *repositories > 1 => {
            format!("credentials refused for {repositories} repositories")
        }
        Some(RefusedAccess { repository, .. }) => format!("credentials refused for {repository}"),
        None => String::new(),
    }
}

fn quota(endpoint: &EndpointState, now: Timestamp) -> String {
    let Some(quota) = &endpoint.quota else { return "-".to_owned() };
    let resets = match quota.resets_at {
        Some(at) if at > now => format!(", resets within {}", left(now, at)),
        _ => String::new(),
    };
    let text =
        format!("{} of {}{resets}, seen {} ago", quota.remaining, quota.limit, ago(now, Some(quota.seen_at)));
    // The same threshold as the dashboard's warning.
    if quota.remaining.saturating_mul(10) < quota.limit { fair(&text) } else { text }
}

/// Returns a bar for `done` of `all`.
fn bar(done: u64, all: u64) -> String {
    let full = u128::from(done) * u128::from(BAR) / u128::from(all.max(1));
    let full = usize::try_from(full.min(u128::from(BAR))).unwrap_or_default();
    let empty = usize::try_from(BAR).unwrap_or_default() - full;
    let bar = format!("{}{}", "█".repeat(full), "░".repeat(empty));
    debug_assert_eq!(measure_text_width(&bar) as u64, BAR);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_has_a_fixed_width() {
        assert_eq!(bar(0, 0), "░".repeat(20));
        assert_eq!(bar(1, 2), "█".repeat(10) + &"░".repeat(10));
        assert_eq!(bar(u64::MAX, 1), "█".repeat(20));
    }

    #[test]
    fn percent_and_remaining_time_are_formatted() {
        assert_eq!(percent(None), "-");
        assert_eq!(percent(Some(0.9876)), "98.8 %");
        let time = Timestamp::from_millis;
        assert_eq!(left(time(1000), time(61_000)), "1m");
        assert_eq!(left(time(5000), time(1000)), "0s");
    }
}
