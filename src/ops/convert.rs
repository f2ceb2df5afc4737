//! Moves the blobs of a store that no larder has open to the other place: from sled into files, or back.

use crate::config::schema::{self, BlobStoreKind};
use crate::oci::Digest;
use crate::store::{Conversion, StepEnd, StoreError};

/// Blobs being moved. Each item is the length in bytes of the blob that was seen to last.
#[derive(Debug)]
pub struct Convert {
    conversion: Conversion,
    report: ConvertReport,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertReport {
    /// Blobs moved, and their length in bytes.
    pub moved: (u64, u64),
    /// Blobs that were in their new place already.
    pub found: u64,
    /// Blobs that were damaged and are gone; they will be fetched again when somebody asks for them.
    pub dropped: Vec<Digest>,
}

impl Convert {
    /// Opens the store in `options.path` to move its blobs to `to`. Work that was interrupted is gone on with.
    pub fn begin(options: &schema::Store, to: BlobStoreKind) -> Result<Self, StoreError> {
        Ok(Self { conversion: Conversion::begin(options, to)?, report: ConvertReport::default() })
    }

    /// Where the blobs come from; `None` if all of them were where they should be.
    pub fn from(&self) -> Option<BlobStoreKind> {
        self.conversion.from()
    }

    /// Length in bytes of all blobs.
    pub fn bytes(&self) -> u64 {
        self.conversion.bytes()
    }

    /// Ends the work, after the last blob: the store can be opened again.
    pub fn finish(self) -> Result<ConvertReport, StoreError> {
        self.conversion.finish()?;
        Ok(self.report)
    }
}

impl Iterator for Convert {
    type Item = Result<u64, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = match self.conversion.next()? {
            Ok(step) => step,
            Err(error) => return Some(Err(error)),
        };
        match step.end {
            StepEnd::Moved => {
                self.report.moved.0 += 1;
                self.report.moved.1 += step.size;
            }
            StepEnd::Found => self.report.found += 1,
            StepEnd::Dropped => self.report.dropped.push(step.digest),
        }
        Some(Ok(step.size))
    }
}
