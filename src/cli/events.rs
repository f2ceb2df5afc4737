//! Parser for server-sent events of the admin API: one line `event`, one line `data`, then an empty line.

/// Incremental parser: bytes in, events out.
#[derive(Debug, Default)]
pub(super) struct Events {
    line: Vec<u8>,
    event: String,
    data: String,
}

/// Event with its name and data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: String,
}

impl Events {
    /// Parses more bytes and returns the events that they complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut found = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                if !self.data.is_empty() {
                    found.push(Event {
                        name: std::mem::take(&mut self.event),
                        data: std::mem::take(&mut self.data),
                    });
                }
                self.event.clear();
            } else if let Some(name) = line.strip_prefix("event:") {
                name.trim_start().clone_into(&mut self.event);
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push_str(data.trim_start());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_parsed_at_any_chunk_boundary() {
        let text = b"event: progress\ndata: {\"a\":1}\n\n: still there\n\nevent: end\r\ndata: {}\r\n\r\n";
        let event = |name: &str, data: &str| Event { name: name.to_owned(), data: data.to_owned() };
        let wanted = vec![event("progress", "{\"a\":1}"), event("end", "{}")];
        for step in 1..text.len() {
            let mut events = Events::default();
            let found: Vec<Event> = text.chunks(step).flat_map(|piece| events.feed(piece)).collect();
            assert_eq!(found, wanted, "{step}");
        }
    }
}
