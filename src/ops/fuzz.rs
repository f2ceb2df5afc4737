//! Fuzz targets of references as an operator writes them.

use bolero::check;

use super::reference::{familiar, tag_of};
use crate::fuzz::{Input, TEST_TIME, inputs};

#[test]
fn tag_of_a_reference_is_a_part_of_it() {
    const WORDS: &[&str] = &[
        "docker.io",
        "library",
        "busybox",
        "/",
        ":",
        "@",
        "latest",
        "1.0",
        "localhost:5000",
        "[::1]:5000",
        "sha256:",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "..",
    ];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let text = Input::new(bytes).text_of(WORDS);
        match tag_of(&text) {
            Ok(Some(tag)) => assert!(tag.as_str() == "latest" || text.contains(&format!(":{tag}")), "{text}"),
            Ok(None) => assert!(text.contains('@'), "{text}"),
            Err(error) => assert!(error.to_string().len() < 1000),
        }
        assert!(text.ends_with(familiar(&text)));
    });
}
