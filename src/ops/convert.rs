//! Conversion of the blobs of a store without a server: from sled to files, or back.

use crate::config::schema::{self, BlobStoreKind};
use crate::oci::Digest;
use crate::store::{Conversion, StepEnd, StoreError};

/// Running conversion. Each item is the length in bytes of a converted blob.
#[derive(Debug)]
pub struct Convert {
    conversion: Conversion,
    report: ConvertReport,
}

/// Result of a conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertReport {
    /// Number and bytes of converted blobs.
    pub moved: (u64, u64),
    /// Blobs that were converted before.
    pub found: u64,
    /// Corrupt blobs that were removed. They are fetched again on the next pull.
    pub dropped: Vec<Digest>,
}

impl Convert {
    /// Opens the store in `options.path` to move its blobs to `to`. Continues an interrupted conversion.
    pub fn begin(options: &schema::Store, to: BlobStoreKind) -> Result<Self, StoreError> {
        Ok(Self { conversion: Conversion::begin(options, to)?, report: ConvertReport::default() })
    }

    /// Returns the kind of store that the blobs come from, or `None` if all blobs were converted before.
    pub fn from(&self) -> Option<BlobStoreKind> {
        self.conversion.from()
    }

    /// Returns the length of all blobs in bytes.
    pub fn bytes(&self) -> u64 {
        self.conversion.bytes()
    }

    /// Finishes the conversion. The store can be opened again.
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
