//! Content-Encoding: none is ever asked for, and some upstreams encode, or say so, all the same.
//!
//! gzip is undone; every other encoding is refused by name. The label alone tells little: object stores put it on
//! layers that simply are gzip files. A manifest's first bytes settle it, since no document begins like a gzip file.
//! For a blob whoever asks decides, by the length that a descriptor promised or, in the end, by the digest.

use std::io::Write as _;

use bytes::{Bytes, BytesMut};
use flate2::write::MultiGzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use crate::upstream::error::UpstreamError;

/// What every gzip file begins with (RFC 1952, section 2.3.1).
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Whether an answer is labelled as gzip. Any other encoding is an error: its bytes are not the content's.
pub(crate) fn is_gzip(headers: &HeaderMap) -> Result<bool, UpstreamError> {
    let mut gzip = false;
    for value in headers.get_all(CONTENT_ENCODING) {
        let value = value.to_str().unwrap_or("unprintable");
        for coding in value.split(',').map(str::trim) {
            let again = gzip;
            match coding.to_ascii_lowercase().as_str() {
                "" | "identity" => {}
                "gzip" | "x-gzip" if !again => gzip = true,
                _ => {
                    return Err(UpstreamError::Invalid(format!(
                        "it has Content-Encoding `{value}` although none was accepted"
                    )));
                }
            }
        }
    }
    Ok(gzip)
}

/// The document of at most `most` bytes that a body labelled as gzip holds.
pub(crate) fn document(body: Bytes, most: usize) -> Result<Bytes, UpstreamError> {
    let mut gunzip = Gunzip::new();
    gunzip.feed(body);
    let mut document = BytesMut::new();
    loop {
        let (piece, more) = match gunzip.piece()? {
            Some(piece) => (Some(piece), true),
            None => (gunzip.end()?, false),
        };
        document.extend_from_slice(&piece.unwrap_or_default());
        if document.len() > most {
            return Err(UpstreamError::Invalid(format!("the document is larger than {most} bytes")));
        }
        if !more {
            return Ok(document.freeze());
        }
    }
}

/// Undoes gzip piece by piece; what does not begin as gzip passes as it is.
pub(crate) struct Gunzip {
    state: State,
    waiting: Bytes,
}

enum State {
    /// The first bytes, until there are enough to tell.
    Beginning(BytesMut),
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Plain,
}

impl Gunzip {
    pub(crate) fn new() -> Self {
        Self { state: State::Beginning(BytesMut::new()), waiting: Bytes::new() }
    }

    /// Takes the next bytes; those before must have been used up.
    pub(crate) fn feed(&mut self, bytes: Bytes) {
        self.waiting = bytes;
        if let State::Beginning(first) = &mut self.state {
            first.extend_from_slice(&self.waiting);
            self.waiting = Bytes::new();
            if first.len() >= MAGIC.len() {
                self.waiting = first.split().freeze();
                self.state = if self.waiting.starts_with(&MAGIC) {
                    State::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))
                } else {
                    State::Plain
                };
            }
        }
    }

    /// The next piece, of some ten KiB at most however much a byte stands for; `None`: more bytes are needed.
    pub(crate) fn piece(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        match &mut self.state {
            State::Beginning(_) => Ok(None),
            State::Plain => Ok(Some(std::mem::take(&mut self.waiting)).filter(|bytes| !bytes.is_empty())),
            State::Gzip(decoder) => {
                while !self.waiting.is_empty() {
                    let used = decoder.write(&self.waiting).map_err(|_| UpstreamError::Undecodable)?;
                    let piece = std::mem::take(decoder.get_mut());
                    if used == 0 && piece.is_empty() {
                        return Err(UpstreamError::Undecodable);
                    }
                    drop(self.waiting.split_to(used));
                    if !piece.is_empty() {
                        return Ok(Some(piece.into()));
                    }
                }
                Ok(None)
            }
        }
    }

    /// The last piece, after the last byte was fed.
    pub(crate) fn end(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let last = match &mut self.state {
            State::Beginning(first) => first.split().freeze(),
            State::Plain => Bytes::new(),
            State::Gzip(decoder) => {
                decoder.try_finish().map_err(|_| UpstreamError::Undecodable)?;
                std::mem::take(decoder.get_mut()).into()
            }
        };
        self.state = State::Plain;
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

    /// Fed in steps of this size.
    fn gunzip(bytes: &[u8], step: usize) -> Result<Vec<u8>, UpstreamError> {
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
    fn encodings_are_named() {
        let labelled = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, value.parse().expect("a header"));
            }
            is_gzip(&headers)
        };
        assert_eq!(labelled(&[]), Ok(false));
        assert_eq!(labelled(&["Identity", ""]), Ok(false));
        for gzip in [&["GZIP"][..], &["x-gzip"], &["identity, gzip"], &["identity", "gzip"]] {
            assert_eq!(labelled(gzip), Ok(true), "{gzip:?}");
        }
        for odd in [&["br"][..], &["zstd"], &["deflate"], &["gzip, gzip"], &["gzip", "gzip"], &["gzip, br"]] {
            let error = labelled(odd).expect_err("refused").to_string();
            assert!(error.contains(odd[odd.len() - 1]), "{error}");
        }
    }

    #[test]
    fn what_was_encoded_is_decoded_however_it_comes() {
        let content: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let encoded = gzip(&content);
        for step in [1, 2, 3, 1000, 1 << 20] {
            assert!(gunzip(&encoded, step).expect("decoded") == content, "step {step}");
        }
        let twice = [gzip(b"one"), gzip(b"two")].concat();
        assert_eq!(gunzip(&twice, 5).expect("several members"), b"onetwo");
        assert_eq!(gunzip(&gzip(b""), 4).expect("an empty one"), b"");
        // A little that stands for much is given out a little at a time.
        let much = vec![0; 50 << 20];
        assert!(gunzip(&gzip(&much), 1 << 20).expect("decoded") == much);
    }

    #[test]
    fn what_is_not_gzip_passes() {
        for plain in [&b""[..], b"{", b"{}", b"\x1f", b"\x1f\x8a", b"a whole document"] {
            for step in [1, 100] {
                assert_eq!(gunzip(plain, step).as_deref(), Ok(plain));
            }
        }
    }

    #[test]
    fn half_of_it_and_nonsense_are_errors() {
        let encoded = gzip(&[7; 1000]);
        for end in 2..encoded.len() {
            assert_eq!(gunzip(&encoded[..end], 3), Err(UpstreamError::Undecodable), "{end} bytes");
        }
        assert!(gunzip(b"\x1f\x8bnonsense that goes on", 4).is_err());
        assert!(gunzip(&[&encoded[..], b"more"].concat(), 1000).is_err());
    }

    #[test]
    fn a_document_has_its_bound_after_decoding() {
        let encoded = Bytes::from(gzip(&[b' '; 1000]));
        assert_eq!(document(encoded.clone(), 1000).expect("it fits").len(), 1000);
        assert!(matches!(document(encoded, 999), Err(UpstreamError::Invalid(_))));
        assert_eq!(document(Bytes::from_static(b"{}"), 10).expect("as it is"), "{}");
        let bomb = Bytes::from(gzip(&vec![0; 30 << 20]));
        assert!(matches!(document(bomb, 4 << 20), Err(UpstreamError::Invalid(_))));
    }
}
