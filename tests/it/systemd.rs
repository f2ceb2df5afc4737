//! Messages to a service manager, received by a socket in the place of systemd's.

use crate::support;

use std::os::unix::net::UnixDatagram;

use support::{Larder, Registry, Setup, TIME_LIMIT};

struct Manager(UnixDatagram);

impl Manager {
    /// Returns the next message.
    #[track_caller]
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// Returns the next message with a line that begins like this.
    #[track_caller]
    fn wait(&self, start: &str) -> String {
        loop {
            let message = self.next();
            if message.lines().any(|line| line.starts_with(start)) {
                return message;
            }
        }
    }
}

fn managed(watchdog: Option<&str>) -> (Manager, Larder, Registry) {
    let registry = Registry::start();
    let setup = Setup::with(&registry);
    let path = setup.folder().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(TIME_LIMIT)).unwrap();
    let mut command = setup.command();
    command.env("NOTIFY_SOCKET", &path);
    if let Some(time) = watchdog {
        command.env("WATCHDOG_USEC", time);
    }
    (Manager(socket), setup.start_by(&mut command), registry)
}

#[test]
fn service_manager_is_notified_of_each_step() {
    let (manager, mut larder, _registry) = managed(None);
    let ready = manager.next();
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    let status = format!("STATUS=serving on {}", larder.api_addr());
    assert!(ready.lines().any(|line| line == status), "{ready}");
    // Ready means that requests are answered.
    larder.get("/v2/").assert_body(b"{}");
    larder.hang_up();
    let reloading = manager.next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert!(manager.next().starts_with("READY=1"));
    // An automatic reload is also reported.
    larder.rewrite(|setup| setup.set("cache.tag_ttl", "9s"));
    manager.wait("RELOADING=1");
    manager.wait("READY=1");
    larder.terminate();
    assert!(manager.next().starts_with("STOPPING=1\nSTATUS="));
    assert!(larder.wait_exit().success());
}

#[test]
fn watchdog_is_notified_periodically() {
    let (manager, _larder, _registry) = managed(Some("200000"));
    for _ in 0..5 {
        manager.wait("WATCHDOG=1");
    }
}

#[test]
fn missing_service_manager_is_harmless() {
    let (manager, mut larder, _registry) = managed(Some("100000"));
    manager.wait("READY=1");
    drop(manager);
    larder.get("/v2/").assert_body(b"{}");
    larder.hang_up();
    larder.wait_for_line("message about the reload", |line| {
        line["message"].as_str().is_some_and(|m| m.contains("configuration reloaded"))
    });
    larder.stop();
}
