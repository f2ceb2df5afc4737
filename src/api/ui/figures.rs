//! What `status` reports, as the overview shows it.

use crate::ops::jobs::{State, View};
use crate::ops::status::{Breaker, EndpointState, FillState, Report, ServiceReport, StoreState, Warning};

use super::words::{Size, Span, When, count, of, percent, short};

/// What changes while somebody looks on.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) when: When,
    pub(super) serving: Option<Serving>,
    pub(super) store: Kept,
    pub(super) upstreams: Vec<EndpointRow>,
    pub(super) fills: Vec<FillRow>,
    /// Child manifests that wait, in words.
    pub(super) children: Option<String>,
    pub(super) jobs: Vec<JobRow>,
    pub(super) warnings: Vec<WarningRow>,
}

/// What was served since the start.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) since: When,
    pub(super) addresses: Vec<String>,
    pub(super) clients: String,
    pub(super) hit_ratio: String,
    pub(super) hit_share: Option<f64>,
    pub(super) hits: String,
    pub(super) requests: String,
    pub(super) saved: Size,
    pub(super) saved_ratio: String,
    pub(super) saved_share: Option<f64>,
    pub(super) served: Size,
    pub(super) fetched: Size,
}

/// The store.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) kind: &'static str,
    pub(super) fails_for: Option<Span>,
    pub(super) content: Size,
    pub(super) manifests: String,
    pub(super) blobs: String,
    pub(super) is_empty: bool,
    pub(super) oldest: Option<When>,
    pub(super) limit: Size,
    pub(super) taken: Option<Size>,
    pub(super) free: Option<Size>,
}

/// A state in a word or two, and how it is coloured.
#[derive(Debug)]
pub(super) struct Badge {
    pub(super) class: &'static str,
    pub(super) text: String,
}

impl Badge {
    pub(super) fn new(class: &'static str, text: impl Into<String>) -> Self {
        Self { class, text: text.into() }
    }
}

/// One endpoint; the first of an upstream carries its name.
#[derive(Debug)]
pub(super) struct EndpointRow {
    pub(super) upstream: Option<String>,
    pub(super) default: bool,
    pub(super) url: String,
    pub(super) mirror: bool,
    pub(super) state: Badge,
    pub(super) error: Option<String>,
    pub(super) quota: Option<Quota>,
    pub(super) fetched: Option<Size>,
}

/// What is left of a quota.
#[derive(Debug)]
pub(super) struct Quota {
    pub(super) remaining: u64,
    pub(super) limit: u64,
    pub(super) seen: When,
    pub(super) resets: Option<When>,
}

/// A fill under way.
#[derive(Debug)]
pub(super) struct FillRow {
    pub(super) digest: String,
    pub(super) short: String,
    pub(super) repository: String,
    pub(super) received: Size,
    pub(super) total: Option<Size>,
    pub(super) percent: String,
    pub(super) rate: Size,
    pub(super) readers: String,
    pub(super) since: When,
    pub(super) state: Option<Badge>,
}

/// A job.
#[derive(Debug)]
pub(super) struct JobRow {
    pub(super) id: u64,
    pub(super) verb: String,
    pub(super) state: Badge,
    pub(super) since: When,
    pub(super) running: bool,
    pub(super) done: Size,
    pub(super) total: Size,
    pub(super) pieces: Option<String>,
    pub(super) error: Option<String>,
}

/// Something that the log warned of.
#[derive(Debug)]
pub(super) struct WarningRow {
    pub(super) when: When,
    pub(super) level: Badge,
    pub(super) message: String,
    pub(super) detail: String,
    /// How often, if more than once.
    pub(super) times: Option<String>,
}

impl Live {
    pub(super) fn new(report: Report) -> Self {
        let now = report.now;
        let children = (report.children_queued + report.children_deferred > 0).then(|| {
            format!(
                "{} waiting to be fetched, {} left for later until the quota allows it",
                of(report.children_queued, "child manifest"),
                count(report.children_deferred)
            )
        });
        let upstreams = report.upstreams.iter().flat_map(|row| {
            row.state.endpoints.iter().enumerate().map(|(place, endpoint)| EndpointRow {
                upstream: (place == 0).then(|| row.state.name.clone()),
                default: row.state.default,
                fetched: (place == 0).then_some(Size(row.fetched)),
                ..endpoint_row(endpoint, now)
            })
        });
        Self {
            when: When { at: now, now },
            upstreams: upstreams.collect(),
            serving: report.service.map(|service| serving(service, now)),
            store: kept(&report.store, now),
            fills: report.fills.iter().map(|fill| fill_row(fill, now)).collect(),
            children,
            warnings: report.warnings.into_iter().map(|warning| warning_row(warning, now)).collect(),
            jobs: report.jobs.iter().map(|job| job_row(job, now)).collect(),
        }
    }
}

fn serving(service: ServiceReport, now: u64) -> Serving {
    Serving {
        since: When { at: service.started_at, now },
        addresses: service.addresses,
        clients: of(service.connections, "client connection"),
        hit_ratio: percent(service.hit_ratio),
        hit_share: service.hit_ratio,
        hits: count(service.hits),
        requests: of(service.requests, "request"),
        saved: Size(service.saved),
        saved_ratio: percent(service.byte_hit_ratio),
        saved_share: service.byte_hit_ratio,
        served: Size(service.served),
        fetched: Size(service.fetched),
    }
}

fn kept(store: &StoreState, now: u64) -> Kept {
    Kept {
        kind: store.kind.as_str(),
        fails_for: store.degraded_at.map(|at| Span(now.saturating_sub(at))),
        content: Size(store.content),
        manifests: of(store.manifests, "manifest"),
        blobs: of(store.blobs, "blob"),
        is_empty: store.manifests + store.blobs == 0,
        oldest: store.oldest_access.map(|at| When { at, now }),
        limit: Size(store.max_size),
        taken: store.disk.map(|disk| Size(disk.taken)),
        free: store.disk.and_then(|disk| disk.free).map(Size),
    }
}

fn endpoint_row(endpoint: &EndpointState, now: u64) -> EndpointRow {
    let left = |until: Option<u64>| Span(until.unwrap_or(now).saturating_sub(now).max(1000));
    let health = &endpoint.health;
    let state = match health.breaker {
        Breaker::Open => Badge::new("bad", format!("left alone for {}", left(health.open_until))),
        Breaker::HalfOpen => Badge::new("fair", "to be tried again"),
        Breaker::Closed if endpoint.limited_until.is_some() => {
            Badge::new("fair", format!("limited for {}", left(endpoint.limited_until)))
        }
        Breaker::Closed if health.failures > 0 => Badge::new("fair", of(health.failures.into(), "failure")),
        Breaker::Closed => Badge::new("good", "well"),
    };
    let quota = endpoint.quota.as_ref().map(|quota| Quota {
        remaining: quota.remaining,
        limit: quota.limit,
        seen: When { at: quota.seen_at, now },
        resets: quota.resets_at.filter(|at| *at > now).map(|at| When { at, now }),
    });
    EndpointRow {
        upstream: None,
        default: false,
        url: endpoint.url.clone(),
        mirror: !endpoint.authoritative,
        state,
        error: health.error.clone(),
        quota,
        fetched: None,
    }
}

fn fill_row(fill: &FillState, now: u64) -> FillRow {
    let digest = fill.digest.to_string();
    // A ratio for people; what a float cannot tell apart does not show.
    #[allow(clippy::cast_precision_loss)]
    let share = fill.total.filter(|total| *total > 0).map(|total| fill.received as f64 / total as f64);
    FillRow {
        short: short(&digest),
        digest,
        repository: fill.repository.clone(),
        received: Size(fill.received),
        total: fill.total.map(Size),
        percent: percent(share),
        rate: Size(fill.rate),
        readers: of(fill.readers, "reader"),
        since: When { at: fill.started_at, now },
        state: match (fill.settling, fill.kept) {
            (true, _) => Some(Badge::new("good", "verified")),
            (false, false) => Some(Badge::new("fair", "not kept")),
            (false, true) => None,
        },
    }
}

fn warning_row(warning: Warning, now: u64) -> WarningRow {
    WarningRow {
        when: When { at: warning.at, now },
        level: if warning.error { Badge::new("bad", "error") } else { Badge::new("fair", "warning") },
        message: warning.message,
        detail: warning.detail,
        times: (warning.times > 1).then(|| of(warning.times, "time")),
    }
}

pub(super) fn job_row(job: &View, now: u64) -> JobRow {
    let bars = &job.progress.bars;
    let sum =
        |of: fn(&crate::ops::progress::Bar) -> u64| bars.iter().map(of).fold(0_u64, u64::saturating_add);
    JobRow {
        id: job.id,
        verb: job.verb.clone(),
        state: match job.state {
            State::Running => Badge::new("plain", "running"),
            State::Done => Badge::new("good", "done"),
            State::Failed => Badge::new("bad", "failed"),
            State::Cancelled => Badge::new("fair", "cancelled"),
        },
        since: When { at: job.started_at, now },
        running: job.state == State::Running,
        done: Size(sum(|bar| bar.done)),
        total: Size(sum(|bar| bar.total)),
        pieces: (job.progress.all > 1).then(|| format!("{} of {}", job.progress.ended, job.progress.all)),
        error: job.error.as_ref().map(|error| error.message.clone()),
    }
}
