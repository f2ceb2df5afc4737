//! The disk side of a fill: what came in is hashed and written, each on a blocking thread of its own, in steps.
//!
//! Between two steps no thread is held, so that any number of fills can wait for their upstreams.

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::store::{DraftFile, DraftHasher, DraftWriter, StoreError};

use crate::cache::blocking::blocking;
use crate::cache::error::CacheError;

/// How much is gathered for one step: few enough steps to cost nothing, and little enough to be still in the processor's
/// cache.
const STEP: usize = 512 << 10;

/// The writer of a draft, and what it has not been given yet.
pub(in crate::cache) struct WritePipeline {
    state: PipelineState,
    gathered: Vec<Bytes>,
    bytes: usize,
}

#[expect(clippy::large_enum_variant, reason = "there is one per fill, and it is moved for every half MiB")]
enum PipelineState {
    Idle(DraftHasher, DraftFile),
    /// One step.
    Busy(Half<DraftHasher>, Half<DraftFile>),
    /// A step failed.
    Lost,
}

type Half<T> = JoinHandle<Result<T, StoreError>>;

impl WritePipeline {
    pub(in crate::cache) fn new(writer: DraftWriter) -> Self {
        let (hasher, file) = writer.split();
        Self { state: PipelineState::Idle(hasher, file), gathered: Vec::new(), bytes: 0 }
    }

    /// Takes what the draft has received next. Waits while the step before the next one is under way, and so bounds what
    /// is in memory.
    pub(in crate::cache) async fn take(&mut self, chunk: Bytes) -> Result<(), CacheError> {
        self.bytes += chunk.len();
        self.gathered.push(chunk);
        if self.bytes < STEP { Ok(()) } else { self.step().await }
    }

    /// Waits until everything is written that the next fill could go on from.
    pub(in crate::cache) async fn end(mut self) -> Result<DraftWriter, CacheError> {
        if !self.gathered.is_empty() {
            self.step().await?;
        }
        let (hasher, file) = self.halves().await?;
        blocking(move || {
            let mut writer = DraftWriter::join(hasher, file);
            writer.flush()?;
            Ok(writer)
        })
        .await
    }

    async fn step(&mut self) -> Result<(), CacheError> {
        let (mut hasher, mut file) = self.halves().await?;
        let pieces = std::mem::take(&mut self.gathered);
        self.bytes = 0;
        let same = pieces.clone();
        let hashing = spawn_blocking(move || {
            for piece in same {
                hasher.append(&piece)?;
            }
            Ok(hasher)
        });
        let writing = spawn_blocking(move || {
            for piece in pieces {
                file.append(piece)?;
            }
            Ok(file)
        });
        self.state = PipelineState::Busy(hashing, writing);
        Ok(())
    }

    async fn halves(&mut self) -> Result<(DraftHasher, DraftFile), CacheError> {
        match std::mem::replace(&mut self.state, PipelineState::Lost) {
            PipelineState::Idle(hasher, file) => Ok((hasher, file)),
            PipelineState::Busy(hashing, writing) => {
                // Both are waited for: nothing may still be writing when the fill leaves the board.
                let (hasher, file) = (hashing.await, writing.await);
                let file = file.map_err(|_| CacheError::Interrupted)??;
                let hasher = hasher.map_err(|_| CacheError::Interrupted)??;
                Ok((hasher, file))
            }
            PipelineState::Lost => Err(CacheError::Interrupted),
        }
    }
}
