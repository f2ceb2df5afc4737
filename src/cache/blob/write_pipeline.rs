//! Disk side of a fill: received bytes are hashed and written in steps, each on a blocking thread.
//!
//! No thread is held between two steps, so that any number of fills can wait for their upstreams.

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::cache::blocking::blocking;
use crate::cache::error::CacheError;
use crate::store::{DraftFile, DraftHasher, DraftWriter, StoreError};

/// Bytes of one step: large enough for a low cost per step, small enough to stay in the CPU cache.
const STEP: usize = 512 << 10;

/// Writer of a draft, with the bytes of the next step.
pub(super) struct WritePipeline {
    state: PipelineState,
    chunks: Vec<Bytes>,
    bytes: usize,
}

#[expect(clippy::large_enum_variant, reason = "there is one per fill, and it moves once per half MiB")]
enum PipelineState {
    /// No step is running.
    Idle(DraftHasher, DraftFile),
    /// One step is running.
    Busy(StepTask<DraftHasher>, StepTask<DraftFile>),
    /// A step has failed.
    Failed,
}

type StepTask<T> = JoinHandle<Result<T, StoreError>>;

impl WritePipeline {
    pub(super) fn new(writer: DraftWriter) -> Self {
        let (hasher, file) = writer.split();
        Self { state: PipelineState::Idle(hasher, file), chunks: Vec::new(), bytes: 0 }
    }

    /// Adds the next bytes of the draft. Waits while the previous step is running (back-pressure), which bounds the memory.
    pub(super) async fn append(&mut self, chunk: Bytes) -> Result<(), CacheError> {
        self.bytes += chunk.len();
        self.chunks.push(chunk);
        if self.bytes < STEP { Ok(()) } else { self.start_step().await }
    }

    /// Waits until all bytes are written, so that a later fill can resume after them.
    pub(super) async fn finish(mut self) -> Result<DraftWriter, CacheError> {
        if !self.chunks.is_empty() {
            self.start_step().await?;
        }
        let (hasher, file) = self.idle().await?;
        blocking(move || {
            let mut writer = DraftWriter::join(hasher, file);
            writer.flush()?;
            Ok(writer)
        })
        .await
    }

    async fn start_step(&mut self) -> Result<(), CacheError> {
        let (mut hasher, mut file) = self.idle().await?;
        let chunks = std::mem::take(&mut self.chunks);
        self.bytes = 0;
        let to_hash = chunks.clone();
        let hashing = spawn_blocking(move || {
            for chunk in to_hash {
                hasher.append(&chunk)?;
            }
            Ok(hasher)
        });
        let writing = spawn_blocking(move || {
            for chunk in chunks {
                file.append(chunk)?;
            }
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
                let file = file.map_err(|_| CacheError::Interrupted)??;
                let hasher = hasher.map_err(|_| CacheError::Interrupted)??;
                Ok((hasher, file))
            }
            PipelineState::Failed => Err(CacheError::Interrupted),
        }
    }
}
