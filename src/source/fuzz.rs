//! Fuzz targets of the gzip decoder.

use std::io::{Read as _, Write as _};

use bolero::check;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::error::SourceError;
use super::gunzip::{Gunzip, decode_document};
use crate::fuzz::{Input, TEST_TIME, inputs};

/// Largest piece of output.
const PIECE_MAX: usize = 128 << 10;

/// Decodes input in chunks of the lengths that `input` gives.
fn decode(encoded: &[u8], input: &mut Input<'_>) -> Result<Vec<u8>, SourceError> {
    let (mut gunzip, mut out, mut rest) = (Gunzip::new(), Vec::new(), encoded);
    while !rest.is_empty() {
        let step = if input.is_empty() { rest.len() } else { 1 + input.below(2000) };
        let (chunk, left) = rest.split_at(step.min(rest.len()));
        rest = left;
        gunzip.feed(Bytes::copy_from_slice(chunk));
        while let Some(piece) = gunzip.piece()? {
            assert!(!piece.is_empty() && piece.len() <= PIECE_MAX, "{} bytes at once", piece.len());
            out.extend_from_slice(&piece);
        }
    }
    out.extend_from_slice(&gunzip.end()?.unwrap_or_default());
    Ok(out)
}

fn gzip(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(content).expect("written");
    encoder.finish().expect("finished")
}

#[test]
fn gunzip_decodes_what_was_encoded() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let (level, repetitions, members) =
            (u32::from(input.byte()) % 10, 1 + input.below(300), 1 + input.below(3));
        let mut steps = Input::new(input.bytes(64));
        let content = input.bytes(1000).repeat(repetitions);
        let encoded = gzip(&content, level).repeat(members);
        let wanted = content.repeat(members);
        assert!(decode(&encoded, &mut steps).expect("decoded") == wanted);
        let max = input.below(2000);
        match decode_document(encoded.into(), max) {
            Ok(document) => assert!(document == wanted && wanted.len() <= max),
            Err(error) => assert!(matches!(error, SourceError::Invalid(_)) && wanted.len() > max),
        }
    });
}

#[test]
fn gunzip_of_damaged_input_agrees_with_another_decoder() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut steps = Input::new(input.bytes(32));
        let mut encoded = if input.flag() { gzip(input.bytes(200), 6) } else { b"\x1f\x8b\x08".to_vec() };
        for _ in 0..input.below(4) {
            let at = input.below(encoded.len());
            encoded[at] = input.byte();
        }
        encoded.extend_from_slice(input.bytes(usize::MAX));
        let found = decode(&encoded, &mut steps);
        if !encoded.starts_with(b"\x1f\x8b") {
            assert_eq!(found.expect("unchanged"), encoded);
            return;
        }
        let mut wanted = Vec::new();
        if MultiGzDecoder::new(encoded.as_slice()).read_to_end(&mut wanted).is_ok() {
            assert!(found.expect("decoded") == wanted);
        }
    });
}
