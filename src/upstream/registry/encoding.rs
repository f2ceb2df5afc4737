//! `Content-Encoding` of responses. No request asks for an encoding, but some registries encode or label their responses.

use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use crate::source::SourceError;

/// Returns true if a response is labelled as gzip-encoded. Any other encoding is an error, because none was accepted.
pub(crate) fn is_gzip(headers: &HeaderMap) -> Result<bool, SourceError> {
    let mut gzip = false;
    for value in headers.get_all(CONTENT_ENCODING) {
        let value = value.to_str().unwrap_or("unprintable");
        for coding in value.split(',').map(str::trim) {
            let again = gzip;
            match coding.to_ascii_lowercase().as_str() {
                "" | "identity" => {}
                "gzip" | "x-gzip" if !again => gzip = true,
                _ => {
                    return Err(SourceError::Invalid(format!(
                        "it has Content-Encoding `{value}` although none was accepted"
                    )));
                }
            }
        }
    }
    Ok(gzip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_gzip_refuses_other_encodings() {
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
}
