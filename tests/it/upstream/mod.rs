//! The upstream layer against small registries on loopback and layout folders.

mod answers;
mod credentials;
mod identity;
mod layout;
mod lists;
mod logins;
mod ranges;
mod redirects;
mod registry;
mod secrets;
mod tls;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use larder::clock::Clock;
use larder::config::Config;
use larder::config::schema::{Endpoint, Upstream as Settings};
use larder::telemetry::Metrics;
use larder::upstream::Upstreams;

#[test]
fn malformed_endpoints_are_named() {
    let build = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|url| Endpoint::new(*url)).collect();
        let settings = Settings { endpoints, ..Settings::default() };
        let config =
            Config { upstream: BTreeMap::from([("reg.test".to_owned(), settings)]), ..Config::default() };
        Upstreams::build(&config, Arc::new(Metrics::new()), Clock::default()).map(|_| ())
    };
    for wrong in [
        "",
        "reg.test",
        "ftp://reg.test",
        "http://user:hush@reg.test",
        "https://reg.test/?x=hush",
        "oci://relative/x",
    ] {
        let error = build(&[wrong]).expect_err(wrong).to_string();
        assert!(error.contains("reg.test") && !error.contains("hush"), "{error}");
    }
    assert!(build(&[]).is_err());
    assert!(build(&["https://a.test", "https://b.test", "oci:///srv/c"]).is_ok());
    for right in ["https://reg.test", "http://127.0.0.1:5000/path", "oci:///srv/some%20folder"] {
        assert!(build(&[right]).is_ok(), "{right}");
    }
    Upstreams::build(&Config::default(), Arc::new(Metrics::new()), Clock::default())
        .expect("the built-in upstreams");
}
