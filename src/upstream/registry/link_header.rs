//! Header `Link` of paged lists (RFC 8288).

use http::HeaderMap;
use http::header::LINK;

/// Returns the target of the link to the next page, as sent; `None` on the last page.
pub(crate) fn next(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all(LINK).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(links).find(|(_, parameters)| is_next(parameters)).map(|(target, _)| target.to_owned())
}

/// Splits a line into links, each a target with its parameters. An invalid link ends the line.
fn links(mut line: &str) -> impl Iterator<Item = (&str, &str)> {
    std::iter::from_fn(move || {
        let rest = line.trim_start_matches([' ', '\t', ',']).strip_prefix('<')?;
        let (target, rest) = rest.split_once('>')?;
        let mut quoted = false;
        let end = rest.find(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        let (parameters, rest) = rest.split_at(end.unwrap_or(rest.len()));
        line = rest;
        Some((target, parameters))
    })
}

/// Returns true if the relations of a link include `next`.
fn is_next(parameters: &str) -> bool {
    parameters.split(';').any(|parameter| {
        parameter.split_once('=').is_some_and(|(name, value)| {
            let relations = value.trim().trim_matches('"').split_ascii_whitespace();
            name.trim().eq_ignore_ascii_case("rel") && { relations }
                .any(|relation| relation.eq_ignore_ascii_case("next"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(lines: &[&str]) -> Option<String> {
        let lines = lines.iter().map(|line| (LINK, line.parse().expect("a header value")));
        next(&lines.collect::<HeaderMap>())
    }

    #[test]
    fn next_finds_the_link_in_any_spelling() {
        let target = Some("/v2/a/tags/list?n=2&last=b".to_owned());
        for lines in [
            &["</v2/a/tags/list?n=2&last=b>; rel=\"next\""][..],
            &["</v2/a/tags/list?n=2&last=b>;rel=next"],
            &["  </v2/a/tags/list?n=2&last=b> ; title=\"x, <y>; z\" ; REL = \"last Next\""],
            &["</first>; rel=\"first\", </v2/a/tags/list?n=2&last=b>; rel=\"next\""],
            &["</first>; rel=first", "</v2/a/tags/list?n=2&last=b>; rel=next"],
        ] {
            assert_eq!(found(lines), target, "{lines:?}");
        }
    }

    #[test]
    fn next_finds_nothing_without_a_valid_link() {
        for lines in
            [&[][..], &[""], &["</a>; rel=prev"], &["</a>"], &["/a; rel=next"], &["<a; rel=next"], &[",,"]]
        {
            assert_eq!(found(lines), None, "{lines:?}");
        }
    }
}
