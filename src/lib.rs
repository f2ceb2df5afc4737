//! larder: a pull-through cache for container images.
//!
//! A reverse proxy for the read side of the OCI Distribution API. It downloads missing content from the real registry,
//! verifies it by digest, stores it in sled and in files, and serves it from then on, also while the registry is slow,
//! rate-limited or down. This page describes the architecture. The manuals are `README.md`, `config/README.md` (every
//! setting) and `deploy/README.md` (operation).
//!
//! # Layers
//!
//! A layer imports only what stands below it, as the last column says; a test reads every `use crate::` line.
//!
//! | layer | module | what it is | may import |
//! |---|---|---|---|
//! | 7 | [`cli`] | arguments in, exit codes out | app, ops, config, oci |
//! | 6 | [`app`] | builds the layers from a configuration, serves, drains, flushes | all below |
//! | 5 | [`api`] | HTTP in and out; the only place that picks a status | ops, cache, oci, telemetry |
//! | 4 | [`ops`] | what a timer or an operator asks for | cache, store and below |
//! | 3 | [`cache`] | the only place where store and upstream meet | store, upstream and below |
//! | 2 | [`store`] | blobs and manifests by digest, facts by key | oci, config, telemetry, clock |
//! | 2 | [`upstream`] | registries over HTTP as sources: routing, endpoints, health, quota, credentials | source, oci, config, telemetry, clock |
//! | 2 | [`source`] | contract of all places that content is fetched from, and the OCI image layout | oci, telemetry |
//! | 2 | [`server`] | sockets, TLS and HTTP connections; knows no registry | oci, config, telemetry |
//! | 1 | [`telemetry`] | every metric series; the log and traces | oci, config's schema |
//! | 1 | [`config`] | plain data, where it comes from, what is wrong with it | oci |
//! | 0 | [`oci`] | the field's vocabulary; no I/O, no clock | nothing |
//! | 0 | [`clock`] | what time it is | nothing |
//!
//! Requests go down as (repository, reference or digest, byte range); content comes up. Nothing low calls up: no
//! callbacks, no event bus, no globals. Background work is a task that owns its inputs.
//!
//! # Three journeys
//!
//! **A tag is asked for** (`GET /v2/library/busybox/manifests/latest`). [`server`] reads the head, [`api`] parses
//! the path from the right and lets [`upstream::Router`] find the [repository](oci::Repository).
//! [`cache::Cache::manifest`] looks for the tag in memory, then in the store, and judges its age
//! ([`cache::freshness::judge`]). Fresh: the document is answered from memory, `hit`. Expired: one flight asks the
//! upstream with one HEAD, for all who wait. The same digest: only the time of the check moves, `revalidated`.
//! Another: a GET by tag, verified against the announced digest, stored, and then the tag moves, `miss`; the
//! children of an index follow in the background, as far as the upstream's quota allows, and what has to wait is
//! noted in the store. No answer in time: the last known document, `stale`. The list of what refers to a manifest goes
//! the same way ([`cache::Cache::referrers`]): it is put together from the upstream's pages, kept as a document, and
//! pointed at as by a tag. So does the upstream's list of tags, in memory alone.
//!
//! Below the cache one question becomes a round through the upstream's endpoints, in order, until one answers. An
//! endpoint that failed several times in a row, or asked to be left alone, is passed over at no cost; when its time is
//! up, one request finds out for all whether it is back.
//!
//! **Several clients ask for a blob that nobody has.** The first request makes [`cache::Cache::blob`] start a fill,
//! a task of the cache's own; the others join. The fill opens a [draft](store::Draft), taking over what an earlier
//! one left, and asks the upstream for the rest. What comes in goes two ways: into the draft's window, from where
//! every [reader](cache::BlobReader) takes it at its own pace, and through a bounded queue to a blocking thread
//! that hashes it and writes it to a file. A reader that falls behind the window reads what is written. The draft shows
//! all but its last byte, which is shown when size and digest have matched. Then it [settles](store::VerifiedDraft), which
//! no client waits for: its file is renamed, or copied into sled's pages, a few at a time, and when the bytes are where
//! they are to stay, one transaction makes them content. Who comes before that reads the draft.
//! If they do not match, every connection is cut short of its Content-Length and the draft is dropped. If the
//! upstream breaks off, the fill goes on with a ranged request where it stopped; clients notice nothing.
//!
//! **The disk takes nothing.** The draft goes on without one: hashed as it comes, shown from its window to those who
//! [follow](store::Follower) it, at the pace of the slowest, verified before its last byte, and forgotten. Who comes too late
//! for the window gets a fill of their own. Where the store cannot be asked, nothing is held and the upstream is asked. One
//! probe every few seconds finds out whether the disk takes something again, and opens the store anew
//! ([`store::Store::recover`]): nobody keeps a handle of sled's beyond one operation, so that it can be closed at any time.
//!
//! **Something must go.** Content that turns out to be damaged leaves in the order in which nobody can find a half
//! of it: one transaction takes its fact away and condemns its bytes ([`store::Removal::CorruptBlob`]), so that the next
//! request is a miss. A file goes at once; pages are removed by the fill which that starts, and so are those that a crash
//! left of a copy: they are condemned before the first of them is written. Eviction goes the same way. A ledger in memory
//! knows what is held, what needs it and when it was last asked for; a [keeper](cache::Cache::run_evictor) measures the disk
//! whenever something comes, takes from the ledger what has to go, closes it to fills, and removes first what leads to a
//! document, then the document, then blobs that no document needs. A request that reads a blob holds it in the ledger.
//!
//! **An archive comes in** ([`ops::import`]). A tar is read once, as it is sent. Its blobs go into drafts and have a place on
//! the board, but are nobody's ([`cache::Importer`]): who asks for one meanwhile needs a right of their own and reads along.
//! What may be a manifest waits until the archive's index says what it is. Then manifests are kept, each after what it
//! points at, with the links that they give their repository, and at last the tag is set, as if its upstream had just
//! confirmed it. The way out ([`ops::export`]) finds out first what an archive will consist of, so that its length is known,
//! and then reads blobs as a client does.
//!
//! # Glossary
//!
//! Our own words; all others are the specification's.
//!
//! * **fill**: one download of one digest from an upstream into the store.
//! * **draft**: the growing, unverified bytes of a fill. It survives a restart.
//! * **flight**: the set of requests that wait for the same work; its end is told to all of them.
//! * **link**: the fact that a repository contains a digest. Bytes are shared between repositories, access is not.
//! * **outcome**: what the cache did: `hit`, `miss`, `join`, `revalidated`, `stale` or `bypass`
//!   ([`telemetry::Outcome`]); the same word in logs, metrics and headers.

#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod oci;
pub mod ops;
pub mod server;
pub mod source;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod upstream;
