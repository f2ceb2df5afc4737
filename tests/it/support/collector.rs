//! A trace collector: OTLP stopped HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use super::listener::Listener;

#[derive(Default)]
struct State {
    spans: Mutex<Vec<Span>>,
    services: Mutex<Vec<String>>,
    silent: AtomicBool,
    requests: AtomicUsize,
}

/// The collector. Dropping it stops it.
pub struct Collector {
    listener: Listener,
    state: Arc<State>,
}

impl Collector {
    pub fn start() -> Self {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let listener = Listener::start(move |stream, stopped| {
            let _ = serve(&stream, &shared, stopped);
        });
        Self { listener, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.listener.addr())
    }

    /// From now on accepts requests without answering them.
    pub fn stop_answering(&self) {
        self.state.silent.store(true, Ordering::SeqCst);
    }

    /// Returns the number of received requests.
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub fn spans(&self) -> Vec<Span> {
        self.state.spans.lock().unwrap().clone()
    }

    /// Returns the service names of all received requests.
    pub fn services(&self) -> Vec<String> {
        self.state.services.lock().unwrap().clone()
    }
}

fn serve(mut stream: &TcpStream, state: &State, stopped: &AtomicBool) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut first) = (0, String::new());
        reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
        assert!(first.starts_with("POST /v1/traces "), "{first}");
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        state.requests.fetch_add(1, Ordering::SeqCst);
        while state.silent.load(Ordering::SeqCst) {
            if stopped.load(Ordering::SeqCst) {
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        for of in request.resource_spans {
            let resource = of.resource.unwrap_or_default();
            let service = value_of(&resource.attributes, "service.name").unwrap_or_default();
            state.services.lock().unwrap().push(service);
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            state.spans.lock().unwrap().extend(spans);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

/// Returns the value of an attribute as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    value_of(&span.attributes, key)
}

fn value_of(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    let Some(AnyValue { value: Some(value) }) = &found.value else { return None };
    Some(match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    })
}
