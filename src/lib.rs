//! larder: a pull-through cache for container images.
//!
//! larder is a reverse proxy for the read side of the OCI Distribution API. It downloads missing content from the upstream
//! registry, verifies the digest, stores the content, and serves it from then on. Cached content is also served when the
//! registry is slow, rate-limited or down.
//!
//! This page describes the architecture. README.md describes the product, and `config/larder.toml` lists all configuration
//! keys.
//!
//! # Layers
//!
//! A module imports only modules of lower layers, as listed in the last column. The test `tests/it/layers` checks this.
//!
//! | layer | module | contents | may import |
//! |---|---|---|---|
//! | 7 | [`cli`] | command line: arguments in, exit codes out | app, diagnose, ops, config, tls, oci, clock |
//! | 6 | [`app`] | composition root: builds the layers, serves, reloads, drains | all below |
//! | 5 | [`api`] | HTTP in and out; the only place that selects a status code | ops, cache, oci, telemetry, clock |
//! | 4 | [`ops`] | operations for operators, the admin API and timers; [`ops::protocol`] is common to admin API and command line | cache, store and layers 0 and 1 |
//! | 4 | [`diagnose`] | checks of `larder doctor` | ops, upstream, source, store, and layers 0 and 1 |
//! | 3 | [`cache`] | the only place where store and upstream meet | store, upstream, source and layers 0 and 1 |
//! | 2 | [`store`] | content and facts on disk: sled, and files | layers 0 and 1 |
//! | 2 | [`source`] | contract of a source of content, and the OCI layout directory as a source | layout, oci, telemetry, clock |
//! | 2 | [`upstream`] | registries: routing, endpoints, health, quota, credentials | source, tls and layers 0 and 1 |
//! | 2 | [`server`] | sockets, TLS, HTTP connections, limits, drain; knows no registry | config, tls |
//! | 1 | [`tls`] | server certificates; trust and client certificates for upstreams | config, telemetry |
//! | 1 | [`telemetry`] | metrics, log, recent warnings, traces | oci, config, clock |
//! | 1 | [`config`] | configuration: schema, loading, validation, changes | oci |
//! | 0 | [`oci`] | vocabulary of the OCI specifications; no I/O | nothing |
//! | 0 | [`clock`] | time, adjustable by tests | nothing |
//!
//! Requests go down as (repository, reference or digest, byte range); content comes up. Lower layers never call higher ones:
//! there are no callbacks, no event bus and no global state. Background work is a task that owns its inputs.
//!
//! # Data flow
//!
//! ## Request for a tag
//!
//! `GET /v2/library/busybox/manifests/latest`:
//!
//! 1. [`server`] reads the request head. [`api`] parses the path, and [`upstream::Router`] selects the
//!    [repository](oci::Repository).
//! 2. [`cache::Cache`] looks up the tag in memory, then in the store. [`cache::freshness`] compares the age of the tag with
//!    `cache.tag_ttl`.
//! 3. If the tag is fresh, the manifest is served: outcome `hit`.
//! 4. If the tag has expired, one flight sends one HEAD request to the upstream, for all waiting clients. If the digest is
//!    unchanged, only the time of the check is updated: outcome `revalidated`.
//! 5. If the digest is new, one GET request downloads the manifest. The manifest is verified and stored, and then the tag
//!    moves: outcome `miss`. The child manifests of an index are prefetched in the background, within the quota of the
//!    upstream. Deferred indexes are recorded in the store.
//! 6. If the upstream does not respond in time, the last known manifest is served: outcome `stale`.
//!
//! A request to an upstream tries its endpoints in order. An endpoint is skipped while its circuit breaker is open or while
//! it has asked the server to wait. After the back-off, one request probes the endpoint for all others.
//! The referrers of a manifest are cached by the same rules, and so is the fact that the upstream has none
//! ([`store::AbsenceFact`]). The tag list of an upstream is cached in memory only.
//!
//! ## Cold blob with several clients
//!
//! 1. The first request starts a fill, a task that is owned by the cache. Further requests join it: outcome `join`.
//! 2. The fill opens a [draft](store::Draft). If an earlier fill of the same upstream left one, the fill resumes it with a
//!    Range request.
//! 3. Received bytes go into the draft's window in memory and, by a bounded queue, to a blocking thread that hashes and
//!    writes them. Every [reader](cache::BlobReader) reads from the window at its own pace. A reader that falls behind reads
//!    from the file.
//! 4. Readers get all bytes but the last one. The last byte is released when size and digest have been verified. On a
//!    mismatch all connections are closed before the end of the body, and the draft is deleted.
//! 5. The [verified draft](store::VerifiedDraft) is committed in the background: its file is renamed, or copied into pages of
//!    sled. A [permit](store::CommitPermit) limits the number of concurrent commits. One transaction makes the blob visible.
//!    Requests that arrive earlier read the draft.
//!
//! If the upstream interrupts a download, the fill resumes it with a Range request. Clients do not notice.
//!
//! ## Blob of two upstreams
//!
//! Content is stored once, and served for an upstream only if this upstream has
//! [delivered](store::StoreSession::is_delivered) all its bytes once. A link or an answer to HEAD is not enough. For another
//! upstream, a fill downloads the bytes again, verifies and serves them, records the delivery, and stores nothing. The same
//! happens while a fill of another upstream is running, so that a slow upstream does not delay the others.
//!
//! ## Disk failure
//!
//! If the store fails, the server enters degraded mode. Content is passed through from the upstream and not stored. A
//! running fill continues without a file: readers [follow](store::Follower) its window at the pace of the slowest one, and
//! the content is still verified. A request that is too late for the window starts its own download. Every few seconds one
//! probe writes to the disk. When the probe succeeds, the store is reopened and degraded mode ends.
//!
//! ## Eviction
//!
//! 1. An index in memory holds the size, the dependencies and the last-access time of all content.
//! 2. The evictor runs when content was added or bytes have arrived. It measures the disk and compares the usage with
//!    `store.max_size` and `store.min_free`.
//! 3. Above the limit it takes the least recently used entries from the index. Entries with a [pin](cache::ContentPin) are
//!    skipped. A manifest is evicted before the blobs that only this manifest needs.
//! 4. For each entry the pointers are deleted first, then the manifests, then the blobs (`cache/eviction/delete.rs`). New
//!    fills of these digests are blocked meanwhile.
//!
//! Unverified bytes of running fills count as they arrive, in running sums (`cache/eviction/draft_space.rs`). A fill, the
//! fills of one repository and those of one upstream have a share of the store each. A fill beyond its share, or without
//! room on the disk, continues as in degraded mode: its bytes are passed through, verified and not stored.
//!
//! Corrupt content is removed by the same rule: one transaction deletes its record and marks its bytes for deletion, so the
//! next request is a miss. Bytes that remain after a crash are deleted by garbage collection.
//!
//! ## Import and export
//!
//! [`ops::import`] reads a tar archive once, as a stream. Blobs become drafts and are committed by
//! [`cache::Importer`]. Possible manifests are kept in a temporary file until `index.json` names them. Then manifests are
//! stored, each one after its content, with links for the repository. At the end the tag is set, as if the upstream had
//! just confirmed it.
//!
//! [`ops::export`] first determines all members of the archive, so the length is known in advance. Then it reads the blobs
//! as a client does.
//!
//! # Glossary
//!
//! Terms of our own:
//!
//! | term | meaning | code |
//! |---|---|---|
//! | fill | one download of one digest from an upstream into the store | `cache/blob/fill.rs` |
//! | draft | growing, unverified bytes of a fill; survives a restart | [`store::Draft`] |
//! | link | fact that a repository contains a digest; content is shared between repositories, access is not | [`store::LinkFact`] |
//! | outcome | result of the cache for one request: `hit`, `miss`, `join`, `revalidated`, `stale` or `bypass` | [`telemetry::Outcome`] |
//! | flight | one piece of work with all requests that wait for its result | `cache/flight.rs` |
//!
//! Terms of the field, and where they are implemented:
//!
//! | term | meaning here | code |
//! |---|---|---|
//! | back-off, retry | growing delay between attempts to contact an upstream | `cache/blob/download.rs`, `upstream/health.rs` |
//! | back-pressure | bounded queues slow down a download when the disk or the readers are slower | `cache/blob/write_pipeline.rs`, [`store::Follower`] |
//! | circuit breaker | failing endpoint is skipped until a probe succeeds | [`upstream::Breaker`], `upstream/health.rs` |
//! | coalesce, single flight | concurrent requests for the same content cause one download | `cache/flight.rs`, `cache/fills.rs` |
//! | commit | makes a verified draft visible as content, atomically | [`store::VerifiedDraft`], [`store::CommitPermit`] |
//! | degraded mode | store fails; content is passed through | `cache/degraded_mode.rs`, `cache/store_health.rs` |
//! | drain | running answers finish before the server stops | [`server::serve`] |
//! | evict, least recently used (LRU) | removes content to stay within the limits | `cache/eviction/evictor.rs`, `cache/eviction/index.rs` |
//! | fresh, stale, revalidate | age of a tag compared with its TTL; check at the upstream | [`cache::freshness`] |
//! | garbage collection | deletes orphaned records and bytes | `store/lifecycle/gc.rs` |
//! | high and low watermark | eviction starts above a limit and continues to a lower one | `cache/eviction/policy.rs`, `cache/eviction/budget.rs` |
//! | in flight | started and not finished, as a request, fill or flight | [`cache::FillStatus`] |
//! | keep-alive, time-out | supervision of client connections | [`server::ConnectionLimits`], `server/h2_keepalive.rs` |
//! | lease, lock | only one process uses a store | `store/lifecycle/lock.rs` |
//! | lingering close | reads from a closing connection so that the client gets all bytes | `server/lingering_close.rs` |
//! | negative cache | remembered 404 of an upstream | `cache/memory.rs`, `cache/manifest/absences.rs` |
//! | orphaned | record or bytes that nothing refers to | [`store::Collected`] |
//! | pin | protects content from eviction while it is read | [`cache::ContentPin`] |
//! | prefetch, prefetch queue | downloads child manifests and blobs before clients request them | `cache/prefetch/`, `cache/prefetch_queue.rs` |
//! | quarantine | damaged store is moved into a dated directory | `store/lifecycle/quarantine.rs` |
//! | quota, rate limit | requests that an upstream allows per period | [`upstream::QuotaState`], `upstream/quota.rs` |
//! | scrub | periodic verification of all stored content | [`cache::Integrity`], `cache/maintenance/scrub.rs` |
//! | source | registry or directory that content is downloaded from | [`source::Source`] |
//! | withheld tail | last byte of a body, sent after verification only | [`cache::BlobReader`] |

#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod diagnose;
#[cfg(test)]
mod fuzz;
pub mod layout;
pub mod oci;
pub mod ops;
pub mod server;
pub mod source;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod upstream;
