//! View of the status report, as the overview shows it.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::ops::protocol::{JobState, JobView};
use crate::ops::status::{
    Breaker, ConfigState, EndpointState, FillStatus, RefusedAccess, ServiceReport, StatusReport, StoreStatus,
    Warning,
};

use super::format::{ByteCount, HumanDuration, RelativeTime, percent, plural, short_digest, thousands};

/// Content of the part of the overview that is updated.
#[derive(Debug)]
pub(super) struct StatusView {
    pub(super) when: RelativeTime,
    pub(super) serving: Option<ServerView>,
    pub(super) store: StoreView,
    pub(super) upstreams: Vec<EndpointRow>,
    pub(super) fills: Vec<FillRow>,
    /// Queued child manifests, in words.
    pub(super) children: Option<String>,
    pub(super) jobs: Vec<JobRow>,
    pub(super) warnings: Vec<WarningRow>,
}

/// Traffic since the start.
#[derive(Debug)]
pub(super) struct ServerView {
    /// Failed reload of the configuration.
    pub(super) reload: Option<FailedReload>,
    pub(super) since: RelativeTime,
    pub(super) addresses: Vec<String>,
    pub(super) clients: String,
    pub(super) hit_ratio: String,
    pub(super) hit_share: Option<f64>,
    pub(super) hits: String,
    pub(super) requests: String,
    /// Failed requests, if there are any.
    pub(super) failed: Option<String>,
    /// Hits for which the upstream was not available, if there are any.
    pub(super) stale: Option<String>,
    pub(super) saved: ByteCount,
    pub(super) saved_ratio: String,
    pub(super) saved_share: Option<f64>,
    pub(super) served: ByteCount,
    pub(super) fetched: ByteCount,
}

/// Failed reload of the configuration.
#[derive(Debug)]
pub(super) struct FailedReload {
    pub(super) when: RelativeTime,
    pub(super) error: String,
    /// Time at which the configuration in effect was loaded.
    pub(super) loaded: RelativeTime,
}

/// State of the store.
#[derive(Debug)]
pub(super) struct StoreView {
    pub(super) kind: &'static str,
    pub(super) fails_for: Option<HumanDuration>,
    pub(super) content: ByteCount,
    pub(super) manifests: String,
    pub(super) blobs: String,
    pub(super) is_empty: bool,
    pub(super) oldest: Option<RelativeTime>,
    pub(super) limit: ByteCount,
    pub(super) taken: Option<ByteCount>,
    pub(super) free: Option<ByteCount>,
}

/// State in one or two words, with its CSS class.
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

/// Endpoint; the first endpoint of an upstream has its name.
#[derive(Debug)]
pub(super) struct EndpointRow {
    pub(super) upstream: Option<String>,
    pub(super) default: bool,
    pub(super) url: String,
    pub(super) mirror: bool,
    pub(super) state: Badge,
    pub(super) error: Option<String>,
    pub(super) quota: Option<QuotaView>,
    pub(super) fetched: Option<ByteCount>,
}

/// Rest of a quota.
#[derive(Debug)]
pub(super) struct QuotaView {
    pub(super) remaining: u64,
    pub(super) limit: u64,
    pub(super) seen: RelativeTime,
    pub(super) resets: Option<RelativeTime>,
}

/// Running fill.
#[derive(Debug)]
pub(super) struct FillRow {
    pub(super) digest: String,
    pub(super) short: String,
    pub(super) repository: String,
    pub(super) received: ByteCount,
    pub(super) total: Option<ByteCount>,
    pub(super) percent: String,
    pub(super) rate: ByteCount,
    pub(super) readers: String,
    pub(super) since: RelativeTime,
    pub(super) state: Option<Badge>,
}

/// Job.
#[derive(Debug)]
pub(super) struct JobRow {
    pub(super) id: u64,
    pub(super) verb: String,
    pub(super) state: Badge,
    pub(super) since: RelativeTime,
    pub(super) running: bool,
    pub(super) done: ByteCount,
    pub(super) total: ByteCount,
    pub(super) pieces: Option<String>,
    pub(super) error: Option<String>,
}

/// Warning from the log.
#[derive(Debug)]
pub(super) struct WarningRow {
    pub(super) when: RelativeTime,
    pub(super) level: Badge,
    pub(super) message: String,
    pub(super) detail: String,
    /// Number of repetitions, if more than one.
    pub(super) times: Option<String>,
}

impl StatusView {
    pub(super) fn new(report: StatusReport) -> Self {
        let now = report.now;
        let children = (report.children_queued + report.children_deferred > 0).then(|| {
            format!(
                "{} queued, {} deferred until the quota of the upstream allows the download",
                plural(report.children_queued, "child manifest"),
                thousands(report.children_deferred)
            )
        });
        let upstreams = report.upstreams.iter().flat_map(|row| {
            row.state.endpoints.iter().enumerate().map(|(place, endpoint)| EndpointRow {
                upstream: (place == 0).then(|| row.state.name.clone()),
                default: row.state.default,
                fetched: (place == 0).then_some(ByteCount(row.fetched)),
                ..endpoint_row(endpoint, now)
            })
        });
        Self {
            when: RelativeTime { at: now, now },
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

fn serving(service: ServiceReport, now: Timestamp) -> ServerView {
    let ConfigState { loaded_at, failed_at, error } = service.configuration;
    let time = |at| RelativeTime { at, now };
    ServerView {
        reload: failed_at.map(|failed_at| FailedReload {
            when: time(failed_at),
            error: error.unwrap_or_default(),
            loaded: time(loaded_at),
        }),
        since: RelativeTime { at: service.started_at, now },
        addresses: service.addresses,
        clients: plural(service.connections, "client connection"),
        hit_ratio: percent(service.hit_ratio),
        hit_share: service.hit_ratio,
        hits: thousands(service.hits),
        requests: plural(service.requests, "request"),
        failed: (service.failed > 0).then(|| plural(service.failed, "request")),
        stale: (service.stale > 0).then(|| plural(service.stale, "request")),
        saved: ByteCount(service.saved),
        saved_ratio: percent(service.byte_hit_ratio),
        saved_share: service.byte_hit_ratio,
        served: ByteCount(service.served),
        fetched: ByteCount(service.fetched),
    }
}

fn kept(store: &StoreStatus, now: Timestamp) -> StoreView {
    StoreView {
        kind: store.kind.as_str(),
        fails_for: store.degraded_at.map(|at| HumanDuration(now.since(at))),
        content: ByteCount(store.content),
        manifests: plural(store.manifests, "manifest"),
        blobs: plural(store.blobs, "blob"),
        is_empty: store.manifests + store.blobs == 0,
        oldest: store.oldest_access.map(|at| RelativeTime { at, now }),
        limit: ByteCount(store.max_size),
        taken: store.disk.map(|disk| ByteCount(disk.taken)),
        free: store.disk.and_then(|disk| disk.free).map(ByteCount),
    }
}

fn refusal(refused: &RefusedAccess) -> String {
    let RefusedAccess { repository, repositories, .. } = refused;
    match repositories {
        1 => repository.clone(),
        count => format!("{repository} and {} more", count - 1),
    }
}

fn endpoint_row(endpoint: &EndpointState, now: Timestamp) -> EndpointRow {
    let left =
        |until: Option<Timestamp>| HumanDuration(until.unwrap_or(now).since(now).max(Duration::from_secs(1)));
    let health = &endpoint.health;
    let state = match health.breaker {
        Breaker::Open => Badge::new("bad", "circuit breaker open"),
        Breaker::HalfOpen => Badge::new("fair", "circuit breaker half open"),
        Breaker::Closed if endpoint.limited_until.is_some() => {
            Badge::new("fair", format!("rate limited for {}", left(endpoint.limited_until)))
        }
        Breaker::Closed if endpoint.refused.is_some() => Badge::new("bad", "credentials refused"),
        Breaker::Closed if !endpoint.asked => Badge::new("idle", "not asked yet"),
        Breaker::Closed if health.failures > 0 => {
            Badge::new("fair", plural(health.failures.into(), "failure"))
        }
        Breaker::Closed => Badge::new("good", "healthy"),
    };
    let quota = endpoint.quota.as_ref().map(|quota| QuotaView {
        remaining: quota.remaining,
        limit: quota.limit,
        seen: RelativeTime { at: quota.seen_at, now },
        resets: quota.resets_at.filter(|at| *at > now).map(|at| RelativeTime { at, now }),
    });
    EndpointRow {
        upstream: None,
        default: false,
        url: endpoint.url.clone(),
        mirror: !endpoint.authoritative,
        state,
        error: endpoint.refused.as_ref().map(refusal).or_else(|| health.error.clone()),
        quota,
        fetched: None,
    }
}

fn fill_row(fill: &FillStatus, now: Timestamp) -> FillRow {
    let digest = fill.digest.to_string();
    // A ratio for people; the precision of a float is enough.
    #[allow(clippy::cast_precision_loss)]
    let share = fill.total.filter(|total| *total > 0).map(|total| fill.received as f64 / total as f64);
    FillRow {
        short: short_digest(&digest),
        digest,
        repository: fill.repository.clone(),
        received: ByteCount(fill.received),
        total: fill.total.map(ByteCount),
        percent: percent(share),
        rate: ByteCount(fill.rate),
        readers: plural(fill.readers, "reader"),
        since: RelativeTime { at: fill.started_at, now },
        state: match (fill.settling, fill.kept) {
            (true, _) => Some(Badge::new("good", "verified")),
            (false, false) => Some(Badge::new("fair", "not stored")),
            (false, true) => None,
        },
    }
}

fn warning_row(warning: Warning, now: Timestamp) -> WarningRow {
    WarningRow {
        when: RelativeTime { at: warning.at, now },
        level: if warning.error { Badge::new("bad", "error") } else { Badge::new("fair", "warning") },
        message: warning.message,
        detail: warning.detail,
        times: (warning.times > 1).then(|| plural(warning.times, "time")),
    }
}

pub(super) fn job_row(job: &JobView, now: Timestamp) -> JobRow {
    let bars = &job.progress.bars;
    let sum = |of: fn(&crate::ops::protocol::ProgressItem) -> u64| {
        bars.iter().map(of).fold(0_u64, u64::saturating_add)
    };
    JobRow {
        id: job.id,
        verb: job.verb.clone(),
        state: match job.state {
            JobState::Running => Badge::new("plain", "running"),
            JobState::Done => Badge::new("good", "done"),
            JobState::Failed => Badge::new("bad", "failed"),
            JobState::Cancelled => Badge::new("fair", "cancelled"),
        },
        since: RelativeTime { at: job.started_at, now },
        running: job.state == JobState::Running,
        done: ByteCount(sum(|bar| bar.done)),
        total: ByteCount(sum(|bar| bar.total)),
        pieces: (job.progress.all > 1).then(|| format!("{} of {}", job.progress.ended, job.progress.all)),
        error: job.error.as_ref().map(|error| error.message.clone()),
    }
}
