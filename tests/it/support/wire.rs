//! HTTP/1.1 of the scripted registry. Written by hand, because it must be able to violate the protocol.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::registry::{Inner, Seen};
use super::script::Plan;

/// Answers requests on one connection until it ends.
pub(super) fn serve(inner: &Inner, generation: u64, stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    let is_down = || inner.generation.load(Ordering::SeqCst) != generation;
    while let Some(seen) = read_request(&mut reader) {
        if is_down() {
            return;
        }
        let plan = inner.answer(&seen);
        let last = seen.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if deliver(stream, &seen, &plan, is_down).is_none() || last {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Seen> {
    let first = read_line(reader)?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let length = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Seen {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body,
        at: Instant::now(),
        sent: Arc::default(),
    })
}

fn read_line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    match reader.read_line(&mut line) {
        Ok(n) if n > 0 => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
        _ => None,
    }
}

/// Sends the answer. `None` closes the connection.
fn deliver(mut stream: &TcpStream, seen: &Seen, plan: &Plan, is_down: impl Fn() -> bool) -> Option<()> {
    if plan.close {
        return None;
    }
    let head_time = Instant::now() + plan.head_delay;
    while Instant::now() < head_time {
        if is_down() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    if !plan.head_gates.iter().all(|gate| gate.pass(&is_down)) {
        return None;
    }
    let no_body = seen.method == "HEAD" || matches!(plan.status, 204 | 304);
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", plan.status);
    for (name, value) in &plan.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if plan.chunked {
        head.push_str("Transfer-Encoding: chunked\r\n");
    } else if plan.until_close {
        head.push_str("Connection: close\r\n");
    } else if !plan.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("Content-Length: {}\r\n", plan.content_length.unwrap_or(plan.to - plan.from)));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    if no_body {
        return (!plan.until_close).then_some(());
    }
    send_body(stream, seen, plan, is_down)?;
    let complete =
        !plan.until_close && plan.content_length.is_none_or(|length| length == plan.to - plan.from);
    complete.then_some(())
}

fn send_body(mut stream: &TcpStream, seen: &Seen, plan: &Plan, is_down: impl Fn() -> bool) -> Option<()> {
    const STEP: usize = 64 * 1024;
    let began = Instant::now();
    let end = plan.cut.map_or(plan.to, |cut| plan.to.min(plan.from + cut));
    let mut at = plan.from;
    while at < end {
        let mut stop = end.min(at + plan.throttle.map_or(STEP, |rate| STEP.min(rate / 50 + 1)));
        for (hold, gate) in &plan.holds {
            if *hold == at && !gate.pass(&is_down) {
                return None;
            }
            if *hold > at {
                stop = stop.min(*hold);
            }
        }
        if is_down() {
            return None;
        }
        let part = &plan.content[at..stop];
        if plan.chunked {
            stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).ok()?;
        }
        stream.write_all(part).ok()?;
        if plan.chunked {
            stream.write_all(b"\r\n").ok()?;
        }
        at = stop;
        seen.sent.fetch_add(part.len() as u64, Ordering::SeqCst);
        if let Some(rate) = plan.throttle {
            let due = Duration::from_secs_f64((at - plan.from) as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    if plan.cut.is_some() {
        return None;
    }
    if plan.chunked {
        stream.write_all(b"0\r\n\r\n").ok()?;
    }
    Some(())
}
