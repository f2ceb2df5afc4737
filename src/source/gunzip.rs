//! Decoding of gzip, chunk by chunk, for content that its sender labels as gzip-encoded.
//!
//! The label alone is not reliable: object stores put it on layers that simply are gzip files. The first bytes of a
//! manifest settle it, since no JSON document begins like a gzip file. For a blob the caller decides, by the size in a
//! descriptor or, in the end, by the digest.

use std::io::Write as _;

use bytes::{Bytes, BytesMut};
use flate2::write::MultiGzDecoder;

use super::error::SourceError;

/// First bytes of every gzip file (RFC 1952, section 2.3.1).
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Returns the document that a body labelled as gzip contains; an error if it has more than `max` bytes.
pub(crate) fn decode_document(body: Bytes, max: usize) -> Result<Bytes, SourceError> {
    let mut gunzip = Gunzip::new();
    gunzip.feed(body);
    let mut document = BytesMut::new();
    loop {
        let (piece, more) = match gunzip.piece()? {
            Some(piece) => (Some(piece), true),
            None => (gunzip.end()?, false),
        };
        document.extend_from_slice(&piece.unwrap_or_default());
        if document.len() > max {
            return Err(SourceError::Invalid(format!("the document is larger than {max} bytes")));
        }
        if !more {
            return Ok(document.freeze());
        }
    }
}

/// Decoder of gzip. Input that does not begin as gzip passes unchanged.
pub(crate) struct Gunzip {
    state: GunzipState,
    pending: Bytes,
}

enum GunzipState {
    /// First bytes, until there are enough to recognise gzip.
    Beginning(BytesMut),
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Plain,
}

impl Gunzip {
    pub(crate) fn new() -> Self {
        Self { state: GunzipState::Beginning(BytesMut::new()), pending: Bytes::new() }
    }

    /// Takes the next input; [`piece`](Self::piece) must have returned `None` for the input before it.
    pub(crate) fn feed(&mut self, bytes: Bytes) {
        self.pending = bytes;
        if let GunzipState::Beginning(first) = &mut self.state {
            first.extend_from_slice(&self.pending);
            self.pending = Bytes::new();
            if first.len() >= MAGIC.len() {
                self.pending = first.split().freeze();
                self.state = if self.pending.starts_with(&MAGIC) {
                    GunzipState::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))
                } else {
                    GunzipState::Plain
                };
            }
        }
    }

    /// Returns the next output, at most some ten KiB whatever the ratio of compression; `None` if more input is needed.
    pub(crate) fn piece(&mut self) -> Result<Option<Bytes>, SourceError> {
        match &mut self.state {
            GunzipState::Beginning(_) => Ok(None),
            GunzipState::Plain => {
                Ok(Some(std::mem::take(&mut self.pending)).filter(|bytes| !bytes.is_empty()))
            }
            GunzipState::Gzip(decoder) => {
                while !self.pending.is_empty() {
                    let used = decoder.write(&self.pending).map_err(|_| SourceError::Undecodable)?;
                    let piece = std::mem::take(decoder.get_mut());
                    if used == 0 && piece.is_empty() {
                        return Err(SourceError::Undecodable);
                    }
                    drop(self.pending.split_to(used));
                    if !piece.is_empty() {
                        return Ok(Some(piece.into()));
                    }
                }
                Ok(None)
            }
        }
    }

    /// Returns the last output, after the last input.
    pub(crate) fn end(&mut self) -> Result<Option<Bytes>, SourceError> {
        let last = match &mut self.state {
            GunzipState::Beginning(first) => first.split().freeze(),
            GunzipState::Plain => Bytes::new(),
            GunzipState::Gzip(decoder) => {
                decoder.try_finish().map_err(|_| SourceError::Undecodable)?;
                std::mem::take(decoder.get_mut()).into()
            }
        };
        self.state = GunzipState::Plain;
        Ok(Some(last).filter(|bytes| !bytes.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    }

    /// Decodes input that arrives in chunks of this size.
    fn gunzip(bytes: &[u8], step: usize) -> Result<Vec<u8>, SourceError> {
        let mut gunzip = Gunzip::new();
        let mut out = Vec::new();
        for part in bytes.chunks(step) {
            gunzip.feed(Bytes::copy_from_slice(part));
            while let Some(piece) = gunzip.piece()? {
                assert!(piece.len() <= 128 << 10, "{} bytes at once", piece.len());
                out.extend_from_slice(&piece);
            }
        }
        out.extend_from_slice(&gunzip.end()?.unwrap_or_default());
        Ok(out)
    }

    #[test]
    fn gunzip_decodes_chunks_of_any_size() {
        let content: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let encoded = gzip(&content);
        for step in [1, 2, 3, 1000, 1 << 20] {
            assert!(gunzip(&encoded, step).expect("decoded") == content, "step {step}");
        }
        let twice = [gzip(b"one"), gzip(b"two")].concat();
        assert_eq!(gunzip(&twice, 5).expect("several members"), b"onetwo");
        assert_eq!(gunzip(&gzip(b""), 4).expect("an empty one"), b"");
        // A high ratio of compression still gives small pieces of output.
        let zeros = vec![0; 50 << 20];
        assert!(gunzip(&gzip(&zeros), 1 << 20).expect("decoded") == zeros);
    }

    #[test]
    fn gunzip_passes_input_that_is_not_gzip() {
        for plain in [&b""[..], b"{", b"{}", b"\x1f", b"\x1f\x8a", b"a whole document"] {
            for step in [1, 100] {
                assert_eq!(gunzip(plain, step).as_deref(), Ok(plain));
            }
        }
    }

    #[test]
    fn gunzip_refuses_truncated_and_invalid_input() {
        let encoded = gzip(&[7; 1000]);
        for end in 2..encoded.len() {
            assert_eq!(gunzip(&encoded[..end], 3), Err(SourceError::Undecodable), "{end} bytes");
        }
        assert!(gunzip(b"\x1f\x8bnonsense that goes on", 4).is_err());
        assert!(gunzip(&[&encoded[..], b"more"].concat(), 1000).is_err());
    }

    #[test]
    fn decode_document_limits_the_decoded_size() {
        let encoded = Bytes::from(gzip(&[b' '; 1000]));
        assert_eq!(decode_document(encoded.clone(), 1000).expect("it fits").len(), 1000);
        assert!(matches!(decode_document(encoded, 999), Err(SourceError::Invalid(_))));
        assert_eq!(decode_document(Bytes::from_static(b"{}"), 10).expect("as it is"), "{}");
        let bomb = Bytes::from(gzip(&vec![0; 30 << 20]));
        assert!(matches!(decode_document(bomb, 4 << 20), Err(SourceError::Invalid(_))));
    }
}
