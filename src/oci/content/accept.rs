//! A client's Accept header, reduced to what a registry needs: does it take this media type?

use http::HeaderMap;
use http::header::ACCEPT;

use super::media::{CANONICAL_ACCEPT, MediaType};

/// The manifest types a client accepts. All Accept lines count, parameters, weights and order do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accept {
    /// No header, or a wildcard: anything will do.
    Any,
    /// Exactly these types, lower-case, sorted, without repetition.
    Only(Vec<String>),
}

impl Accept {
    /// Joins all Accept lines of a request.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut types = Vec::new();
        for line in headers.get_all(ACCEPT) {
            let Ok(line) = line.to_str() else { continue };
            for item in line.split(',') {
                let item = item.split(';').next().unwrap_or_default().trim();
                if matches!(item, "*/*" | "application/*") {
                    return Self::Any;
                }
                if !item.is_empty() {
                    types.push(item.to_ascii_lowercase());
                }
            }
        }
        types.sort_unstable();
        types.dedup();
        if types.is_empty() { Self::Any } else { Self::Only(types) }
    }

    /// Whether a document of `media_type` may be answered as it is.
    pub fn allows(&self, media_type: &MediaType) -> bool {
        match self {
            Self::Any => true,
            Self::Only(types) => types.iter().any(|t| t.eq_ignore_ascii_case(media_type.as_str())),
        }
    }

    /// The canonical manifest types that the client named, in canonical order: what an upstream may be asked for
    /// on its behalf. Empty if it named none of them.
    pub fn canonical(&self) -> Vec<&'static str> {
        CANONICAL_ACCEPT
            .split(", ")
            .filter(|known| match self {
                Self::Any => true,
                Self::Only(types) => types.iter().any(|t| t == known),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

    fn accept(lines: &[&str]) -> Accept {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, line.parse().expect("a header value"));
        }
        Accept::from_headers(&headers)
    }

    #[test]
    fn every_line_counts() {
        let found = accept(&[OCI_MANIFEST, "application/json", &format!("{DOCKER_LIST};q=0.1,{OCI_INDEX}")]);
        assert!(found.allows(&MediaType::new(OCI_INDEX).expect("a type")));
        assert!(found.allows(&MediaType::new(DOCKER_LIST).expect("a type")));
        assert!(!found.allows(&MediaType::new(DOCKER_MANIFEST).expect("a type")));
        assert_eq!(found.canonical(), [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST]);
    }

    #[test]
    fn wildcards_and_silence_take_anything() {
        assert_eq!(accept(&[]), Accept::Any);
        assert_eq!(accept(&[DOCKER_MANIFEST, "text/plain, */*;q=0.1"]), Accept::Any);
    }
}
