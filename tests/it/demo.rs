//! `larder demo`: the printed table, the exit code, and `--stay`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::TIME_LIMIT;

fn demo(temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.arg("demo").env_clear().env("TMPDIR", temporary).current_dir(temporary);
    command.stdin(Stdio::null());
    command
}

/// Returns the cells of a row. Columns are separated by at least two spaces.
fn cells(row: &str) -> Vec<&str> {
    row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

/// Returns the number of an outcome in a cell such as `6 hit, 1 stale`.
fn count(outcomes: &str, word: &str) -> usize {
    outcomes
        .split(", ")
        .filter_map(|one| one.split_once(' '))
        .filter(|(_, found)| *found == word)
        .map(|(count, _)| count.parse::<usize>().expect("a number"))
        .sum()
}

#[test]
fn demo_pulls_three_times_and_the_last_needs_no_upstream() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = demo(temporary.path()).output().expect("the program runs");
    let said = String::from_utf8(out.stdout).expect("text");
    let errors = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{said}\n{errors}");
    let rows: Vec<_> = said.lines().take(4).map(cells).collect();
    assert_eq!(rows[0], ["pull", "upstream", "requests", "outcomes", "from upstream", "time"]);
    for (number, row) in (1_u8..).zip(&rows[1..]) {
        // An index, two manifests, two configs, two layers.
        let upstream = if number < 3 { "up" } else { "down" };
        assert_eq!(row[..3], [number.to_string().as_str(), upstream, "7"], "{said}");
        assert!(row[5].ends_with(" ms"), "{said}");
    }
    let [first, second, third] = [rows[1][3], rows[2][3], rows[3][3]];
    // Child manifests are prefetched and may already be cached. Other content is downloaded on request.
    assert!(count(first, "miss") >= 5, "{said}");
    assert!(rows[1][4].ends_with("MiB"), "{said}");
    assert_eq!((count(second, "hit"), count(second, "revalidated")), (6, 1), "{said}");
    assert_eq!((count(third, "hit"), count(third, "stale")), (6, 1), "{said}");
    assert_eq!([rows[2][4], rows[3][4]], ["0 B", "0 B"], "{said}");
    assert!(said.contains("matched its digest"), "{said}");
    let left = std::fs::read_dir(temporary.path()).expect("the folder").count();
    assert_eq!(left, 0, "the demonstration leaves nothing behind");
}

#[test]
fn stay_serves_until_a_signal() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut child =
        demo(temporary.path()).arg("--stay").stdout(Stdio::piped()).spawn().expect("the program runs");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let line = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("docker pull ")));
    let line = line.expect("the invitation").expect("text");
    let image = line.trim().strip_prefix("docker pull ").expect("a command");
    let (address, rest) = image.split_once('/').expect("a repository");
    let (repository, tag) = rest.rsplit_once(':').expect("a tag");

    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(TIME_LIMIT)).expect("a timeout");
    let request = format!(
        "HEAD /v2/{repository}/manifests/{tag} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    let pid = child.id().to_string();
    let killed = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status();
    assert!(killed.expect("sh runs").success());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert_eq!(std::fs::read_dir(temporary.path()).expect("the folder").count(), 0);
}
