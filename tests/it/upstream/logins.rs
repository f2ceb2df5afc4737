//! Credentials of the running program: credential helpers in its `PATH`, and invalid files.

use std::path::Path;

use serde_json::json;

use crate::support::{Auth, Blob, Fault, Gate, Helpers, Image, Larder, Registry, Setup, When, eventually};

const TAG: &str = "/v2/library/app/manifests/v1";

/// A registry with one image and this authentication.
fn registry(auth: Auth) -> (Registry, Image) {
    let (registry, image) = (Registry::start(), Image::small(1));
    registry.add_image("library/app", "v1", &image);
    registry.require_auth(auth);
    (registry, image)
}

fn login(user: &str, password: &str) -> Auth {
    Auth::Basic(user.to_owned(), password.to_owned())
}

/// A configuration with this `config.json` for its only upstream. Each tag is revalidated at every request.
fn setup(registry: &Registry, config: &serde_json::Value) -> Setup {
    Setup::with(registry).set("cache.tag_ttl", "0s").docker_config("docker.io", config)
}

/// Returns a path that was not requested before, so that the registry is contacted.
fn fresh(registry: &Registry, seed: u64) -> String {
    let blob = Blob::random(seed, 100);
    registry.add_blob("library/app", &blob);
    format!("/v2/library/app/blobs/{}", blob.digest)
}

#[test]
fn helper_is_called_like_docker_does_and_cached() {
    let (registry, image) = registry(login("me", "hush"));
    let host = registry.addr().to_string();
    let setup = setup(&registry, &json!({ "credHelpers": { host.as_str(): "own" } }));
    let helpers = Helpers::new(&setup);
    helpers.add_login("own", "me", "hush");
    let larder = helpers.start(setup);
    for _ in 0..3 {
        larder.get(TAG).assert_body(&image.manifest.bytes);
    }
    for blob in image.blobs() {
        larder.get(&format!("/v2/library/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
    assert_eq!(helpers.requests(), [format!("own {host}")]);
}

#[test]
fn helper_precedence_is_registry_then_common_then_file() {
    let written = json!({ "username": "written", "password": "p" });
    for (entries, expected) in [
        (json!({ "credHelpers": { "docker.io": "own" }, "credsStore": "common" }), "own"),
        (json!({ "credHelpers": { "other.test": "own" }, "credsStore": "common" }), "common"),
        (json!({ "credHelpers": { "https://index.docker.io/v1/": "own" } }), "own"),
        (json!({ "credHelpers": { "other.test": "own" } }), "written"),
        // docker's way to exclude one registry from the common helper.
        (json!({ "credHelpers": { "docker.io": "" }, "credsStore": "empty" }), "written"),
        // No result for the address of the registry, which is requested first.
        (json!({ "credsStore": "hub" }), "hub"),
    ] {
        let (registry, _) = registry(login(expected, "p"));
        let mut config = entries;
        config["auths"] = json!({ "docker.io": written });
        let setup = setup(&registry, &config);
        let helpers = Helpers::new(&setup);
        helpers.add_login("own", "own", "p");
        helpers.add_login("common", "common", "p");
        helpers.add_empty("empty");
        helpers.add(
            "hub",
            "[ \"$SERVER\" = https://index.docker.io/v1/ ] || { echo credentials not found in native keychain; exit 1; }\n\
             echo '{\"Username\":\"hub\",\"Secret\":\"p\"}'",
        );
        let larder = helpers.start(setup);
        assert_eq!(larder.get(TAG).status(), 200, "{config}");
        let hub = "https://index.docker.io/v1/";
        let asked = match expected {
            "own" => vec![format!("own {hub}")],
            "common" => vec![format!("common {}", registry.addr())],
            "hub" => vec![format!("hub {}", registry.addr()), format!("hub {hub}")],
            _ => vec![],
        };
        assert_eq!(helpers.requests(), asked, "{config}");
    }
}

#[test]
fn helper_may_return_an_identity_token() {
    let (registry, _) = registry(Auth::Bearer(None));
    registry.script(
        When::any().path("/token"),
        Fault::rewrite(|seen, plan| {
            let form = String::from_utf8_lossy(&seen.body).into_owned();
            if seen.method != "POST" || !form.contains("refresh_token=hush") {
                plan.status = 401;
            }
        }),
    );
    let setup = setup(&registry, &json!({ "credsStore": "tokens" }));
    let helpers = Helpers::new(&setup);
    helpers.add_login("tokens", "<token>", "hush");
    let larder = helpers.start(setup);
    assert_eq!(larder.get(TAG).status(), 200);
    assert_eq!(registry.count("POST", "/token"), 1);
}

#[test]
fn login_missing_in_the_keychain_is_anonymous() {
    let (registry, _) = registry(Auth::Bearer(None));
    let setup = setup(&registry, &json!({ "credsStore": "empty" }));
    let helpers = Helpers::new(&setup);
    helpers.add_empty("empty");
    let larder = helpers.start(setup);
    for _ in 0..3 {
        assert_eq!(larder.get(TAG).status(), 200);
    }
    assert!(
        registry
            .requests()
            .iter()
            .all(|seen| { !seen.header("authorization").is_some_and(|value| value.starts_with("Basic")) })
    );
    assert_eq!(helpers.requests().len(), 2, "about its address and about its name: {:?}", helpers.requests());
}

#[test]
fn helper_call_is_coalesced_and_survives_a_disconnect() {
    let (registry, image) = registry(login("me", "hush"));
    let setup = setup(&registry, &json!({ "credHelpers": { "docker.io": "slow" } }));
    let helpers = Helpers::new(&setup);
    helpers.add(
        "slow",
        "while [ ! -e go ]; do sleep 0.02; done; echo '{\"Username\":\"me\",\"Secret\":\"hush\"}'",
    );
    let larder = helpers.start(setup);
    let left = larder.api().connect().unwrap();
    let request = format!("GET {TAG} HTTP/1.1\r\nHost: x\r\n\r\n");
    std::io::Write::write_all(&mut &left, request.as_bytes()).unwrap();
    eventually("the helper runs", || helpers.requests().len() == 1);
    drop(left);
    let blobs: Vec<String> = (10..16).map(|seed| fresh(&registry, seed)).collect();
    std::thread::scope(|scope| {
        let larder = &larder;
        let clients: Vec<_> =
            blobs.iter().map(|blob| scope.spawn(move || larder.get(blob).status())).collect();
        registry.wait_for(blobs.len(), "GET", "/blobs/");
        std::fs::write(helpers.file("go"), "").unwrap();
        for client in clients {
            assert_eq!(client.join().unwrap(), 200);
        }
    });
    larder.get(TAG).assert_body(&image.manifest.bytes);
    assert_eq!(helpers.requests().len(), 1, "{:?}", helpers.requests());
}

#[test]
fn refused_login_is_renewed_at_once() {
    for refusal in [400, 401, 403] {
        let (registry, _) = registry(login("AWS", "hush-1"));
        let setup = setup(&registry, &json!({ "credsStore": "ecr-login" }));
        let helpers = Helpers::new(&setup);
        helpers.add_login("ecr-login", "AWS", "hush-1");
        let larder = helpers.start(setup);
        assert_eq!(larder.get(&fresh(&registry, 10)).status(), 200);
        assert_eq!(helpers.requests().len(), 1);
        // The password has expired, and the helper has the next one.
        registry.require_auth(login("AWS", "hush-2"));
        helpers.add_login("ecr-login", "AWS", "hush-2");
        if refusal != 401 {
            // The answers of ECR to an expired password.
            registry.script(
                When::any(),
                Fault::rewrite(move |seen, plan| {
                    if plan.status == 401 && seen.header("authorization").is_some() {
                        plan.status = refusal;
                        plan.remove("WWW-Authenticate");
                    }
                }),
            );
        }
        assert_eq!(larder.get(&fresh(&registry, 11)).status(), 200, "{refusal}");
        assert_eq!(helpers.requests().len(), 2);
        // A password that is refused again is requested once more, and then not for a while.
        registry.require_auth(login("AWS", "hush-3"));
        for seed in 20..24 {
            let status = larder.get(&fresh(&registry, seed)).status();
            assert_eq!(status, if refusal == 400 { 502 } else { 404 }, "refused");
        }
        assert_eq!(helpers.requests().len(), 3, "{refusal}: {:?}", helpers.requests());
    }
}

#[test]
fn token_service_refusal_renews_the_login() {
    let credential = |password: &str| Auth::Bearer(Some(("me".to_owned(), password.to_owned())));
    let (registry, _) = registry(credential("hush-1"));
    registry.add_image("library/other", "v1", &Image::small(2));
    let setup = setup(&registry, &json!({ "credHelpers": { "docker.io": "own" } }));
    let helpers = Helpers::new(&setup);
    helpers.add_login("own", "me", "hush-1");
    let larder = helpers.start(setup);
    assert_eq!(larder.get(TAG).status(), 200);
    registry.require_auth(credential("hush-2"));
    helpers.add_login("own", "me", "hush-2");
    assert_eq!(larder.get("/v2/library/other/manifests/v1").status(), 200);
    assert_eq!(helpers.requests().len(), 2);
    let labels = |result| [("upstream", "docker.io"), ("result", result)];
    let counted = |result| larder.counter("larder_upstream_token_requests_total", &labels(result));
    assert_eq!((counted("ok"), counted("denied")), (2, 1));
}

/// Returns the first warning that contains this text.
fn warning(larder: &Larder, part: &str) -> serde_json::Value {
    larder.wait_for_line(part, |line| line["level"] == "WARN" && line.to_string().contains(part))
}

#[test]
fn failing_helper_is_named_only_in_the_log() {
    for (script, wanted) in [
        ("echo hush; echo hush >&2; exit 3", "exit status: 3"),
        ("echo '{\"Username\":\"hush\"'", "no JSON object"),
        ("yes hush", "more than 65536 bytes"),
    ] {
        let (registry, _) = registry(login("me", "hush"));
        let setup = setup(&registry, &json!({ "credHelpers": { "docker.io": "broken" } }));
        let helpers = Helpers::new(&setup);
        helpers.add("broken", script);
        let larder = helpers.start(setup);
        for seed in 10..13 {
            let answer = larder.get(&fresh(&registry, seed));
            assert!(answer.status() >= 500, "{answer:?}");
            assert!(answer.text().contains("credential helper"), "{}", answer.text());
            for hidden in ["hush", "broken", "PATH"] {
                assert!(!answer.text().contains(hidden), "{}", answer.text());
            }
        }
        let line = warning(&larder, wanted);
        assert_eq!(line["program"], "docker-credential-broken", "{line}");
        assert_eq!(line["server"], "https://index.docker.io/v1/", "{line}");
        assert!(!larder.log_text().contains("hush"));
        assert_eq!(helpers.requests().len(), 1, "a failure is kept for a few seconds");
    }
    let (registry, _) = registry(login("me", "hush"));
    let larder = setup(&registry, &json!({ "credsStore": "that-is-not-there" })).start();
    assert!(larder.get(TAG).status() >= 500);
    assert_eq!(warning(&larder, "PATH")["program"], "docker-credential-that-is-not-there");
}

/// Returns the child processes of a process that have not been waited for.
fn children(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists =
        tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn hanging_helper_is_killed() {
    let (registry, _) = registry(login("me", "hush"));
    let setup = setup(&registry, &json!({ "credHelpers": { "docker.io": "hung" } }));
    let helpers = Helpers::new(&setup);
    helpers.add("hung", "echo $$ >own; sleep 600 & echo $! >child; wait");
    let larder = helpers.start(setup);
    assert!(larder.get(TAG).status() >= 500);
    warning(&larder, "did not answer within");
    let gone = |name: &str| {
        let id = std::fs::read_to_string(helpers.file(name)).unwrap();
        let stat = std::fs::read_to_string(Path::new("/proc").join(id.trim()).join("stat"));
        // The process that adopts an orphan may reap it later.
        stat.map_or(true, |stat| name == "child" && stat.contains(") Z "))
    };
    eventually("the helper and its child have exited", || gone("own") && gone("child"));
    assert_eq!(children(larder.pid()), Vec::<String>::new());
}

#[test]
fn stop_kills_running_helpers() {
    let (registry, _) = registry(login("me", "hush"));
    let setup =
        setup(&registry, &json!({ "credHelpers": { "docker.io": "hung" } })).set("server.grace", "0s");
    let helpers = Helpers::new(&setup);
    helpers.add("hung", "sleep 600 & echo $! >child; wait");
    let mut larder = helpers.start(setup);
    let client = larder.api().connect().unwrap();
    let request = format!("GET {TAG} HTTP/1.1\r\nHost: x\r\n\r\n");
    std::io::Write::write_all(&mut &client, request.as_bytes()).unwrap();
    let started = || std::fs::read_to_string(helpers.file("child")).is_ok_and(|id| id.ends_with('\n'));
    eventually("the helper runs", started);
    let id = std::fs::read_to_string(helpers.file("child")).unwrap();
    larder.stop();
    eventually("the child of the helper has exited", || {
        let stat = std::fs::read_to_string(Path::new("/proc").join(id.trim()).join("stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    });
}

#[test]
fn broken_docker_config_is_named_only_in_the_log() {
    let (registry, image) = registry(login("me", "hush"));
    let good = json!({ "auths": { "docker.io": { "username": "me", "password": "hush" } } });
    let larder = setup(&registry, &good).start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    let file = larder.setup().folder().join("docker.io.json");
    for (content, wanted) in [
        (Some("{\"auths\": hush"), "not valid JSON"),
        (Some("{\"auths\":{\"docker.io\":{\"auth\":\"hush\"}}}"), "is not the Base64"),
        (None, "cannot be read"),
    ] {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let answer = larder.get(&fresh(&registry, wanted.len() as u64));
        assert!(answer.status() >= 500, "{answer:?}");
        assert!(answer.text().contains("docker_config"), "{}", answer.text());
        assert!(!answer.text().contains("docker.io.json") && !answer.text().contains("hush"));
        let line = warning(&larder, wanted);
        assert_eq!(
            (line["path"].as_str(), line["key"].as_str()),
            (file.to_str(), Some("docker_config")),
            "{line}"
        );
        // Cached content is served nevertheless.
        larder.get(TAG).assert_body(&image.manifest.bytes);
    }
    std::fs::write(&file, good.to_string()).unwrap();
    assert_eq!(larder.get(&fresh(&registry, 99)).status(), 200);
    assert!(!larder.log_text().contains("hush"));
}

#[test]
fn malformed_docker_config_refuses_to_start() {
    let (registry, _) = registry(Auth::Nothing);
    for (config, wanted) in [
        (json!({ "credsStore": "../../bin/sh" }), "names the helper"),
        (json!({ "credHelpers": { "docker.io": "/bin/sh" } }), "names the helper"),
        (json!({ "auths": { "docker.io": { "auth": "hush" } } }), "is not the Base64"),
        (json!(["hush"]), "wrong type"),
    ] {
        let exit = setup(&registry, &config).run_to_exit();
        assert!(!exit.status.success());
        assert!(exit.stderr.contains("docker_config") && exit.stderr.contains(wanted), "{}", exit.stderr);
        assert!(!exit.stderr.contains("hush"), "{}", exit.stderr);
    }
}

#[test]
fn token_request_is_coalesced() {
    let (registry, _) = registry(Auth::Bearer(Some(("me".to_owned(), "hush".to_owned()))));
    let gate = Gate::new();
    registry.script(When::any().path("/token"), Fault::HoldHead(gate.clone()));
    let config = json!({ "auths": { "docker.io": { "username": "me", "password": "hush" } } });
    let larder = setup(&registry, &config).start();
    let blobs: Vec<String> = (10..18).map(|seed| fresh(&registry, seed)).collect();
    std::thread::scope(|scope| {
        let larder = &larder;
        let clients: Vec<_> =
            blobs.iter().map(|blob| scope.spawn(move || larder.get(blob).status())).collect();
        registry.wait_for(blobs.len(), "GET", "/blobs/");
        gate.wait_reached(1);
        gate.open();
        for client in clients {
            assert_eq!(client.join().unwrap(), 200);
        }
    });
    assert_eq!(registry.count("GET", "/token"), 1);
}
