//! Disk side of a fill: received bytes are hashed and written in steps, each on a blocking thread.
//!
//! No thread is held between two steps, so that any number of fills can wait for their upstreams.

use std::sync::Arc;

use bytes::Bytes;

use crate::cache::error::CacheError;
use crate::cache::eviction::capacity::Capacity;
use crate::cache::eviction::draft_space::DraftShare;
use crate::oci::Digest;
use crate::store::{Draft, DraftFile, DraftHasher, DraftWriter, Store, Work};

/// Part of the disk that one draft may use.
pub(super) struct DraftRoom<'a> {
    pub(super) capacity: &'a Capacity,
    pub(super) share: Arc<DraftShare>,
    pub(super) digest: &'a Digest,
}

/// Writer of a draft, with the bytes of the next step.
pub(super) struct WritePipeline<'a> {
    store: Store,
    room: DraftRoom<'a>,
    draft: Arc<Draft>,
    state: PipelineState,
    chunks: Vec<Bytes>,
    bytes: usize,
}

#[expect(clippy::large_enum_variant, reason = "there is one per fill, and it moves once per half MiB")]
enum PipelineState {
    /// No step is running.
    Idle(DraftHasher, DraftFile),
    /// One step is running.
    Busy(Work<DraftHasher>, Work<DraftFile>),
    /// A step has failed.
    Failed,
}

impl<'a> WritePipeline<'a> {
    pub(super) fn new(store: Store, room: DraftRoom<'a>, writer: DraftWriter) -> Self {
        let draft = Arc::clone(writer.draft());
        let (hasher, file) = writer.split();
        let state = PipelineState::Idle(hasher, file);
        Self { store, room, draft, state, chunks: Vec::new(), bytes: 0 }
    }

    /// Adds the next bytes of the draft. Waits while the previous step is running (back-pressure), which bounds the memory.
    pub(super) async fn append(&mut self, chunk: Bytes) -> Result<(), CacheError> {
        self.bytes += chunk.len();
        self.chunks.push(chunk);
        if self.bytes < self.draft.step() { Ok(()) } else { self.start_step().await }
    }

    /// Waits until all bytes are written, so that a later fill can resume after them.
    pub(super) async fn finish(mut self) -> Result<DraftWriter, CacheError> {
        if !self.chunks.is_empty() {
            self.start_step().await?;
        }
        let (hasher, file) = self.idle().await?;
        let share = self.room.share;
        if file.is_stored() {
            share.set_complete();
        }
        let flushed = self.store.run_long(move |_| {
            let mut writer = DraftWriter::join(hasher, file);
            writer.flush()?;
            share.set_unwritten(writer.unwritten());
            Ok(writer)
        });
        Ok(flushed.await?)
    }

    async fn start_step(&mut self) -> Result<(), CacheError> {
        let (mut hasher, mut file) = self.idle().await?;
        let chunks = std::mem::take(&mut self.chunks);
        let bytes = std::mem::take(&mut self.bytes);
        let DraftRoom { capacity, share, digest } = &self.room;
        let is_admitted = file.is_stored() && capacity.admit(share, bytes as u64).await;
        if file.is_stored() && !is_admitted {
            let (upstream, repository) = share.owner().map(|it| (&it.upstream, &it.name)).unzip();
            tracing::warn!(
                upstream = upstream.map(tracing::field::display),
                repository = repository.map(tracing::field::display),
                %digest,
                arrived = share.bytes().saturating_add(bytes as u64),
                "blob is passed through and not stored: the unverified bytes of its repository or upstream, or of all \
                 downloads, take as much of store.max_size or of the free disk space as they may"
            );
        }
        let share = Arc::clone(share);
        let to_hash = chunks.clone();
        let hashing = self.store.run_long(move |_| {
            for chunk in to_hash {
                hasher.append(&chunk)?;
            }
            Ok(hasher)
        });
        let writing = self.store.run_long(move |_| {
            if !is_admitted && file.is_stored() {
                // The bytes stay in memory until the readers have taken them.
                share.set_unlinked();
                file.stop_storing(Arc::clone(&share))?;
            }
            for chunk in chunks {
                file.append(chunk)?;
            }
            share.set_unwritten(file.unwritten());
            Ok(file)
        });
        self.state = PipelineState::Busy(hashing, writing);
        Ok(())
    }

    /// Waits for the running step.
    async fn idle(&mut self) -> Result<(DraftHasher, DraftFile), CacheError> {
        match std::mem::replace(&mut self.state, PipelineState::Failed) {
            PipelineState::Idle(hasher, file) => Ok((hasher, file)),
            PipelineState::Busy(hashing, writing) => {
                // Both tasks are awaited before an error is returned: nothing may be writing when the fill ends.
                let (hasher, file) = (hashing.await, writing.await);
                let file = file?;
                Ok((hasher?, file))
            }
            PipelineState::Failed => Err(CacheError::Interrupted),
        }
    }
}
