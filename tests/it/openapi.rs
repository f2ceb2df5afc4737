//! Checks the `OpenAPI` document of the admin API: calls each route and checks each response against its schema.

use crate::support;

use serde_json::{Value, json};
use support::{Image, Index, Larder, Registry, verb};

const ROOT: &str = "/api/v1";
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(place) => {
            document.pointer(place.trim_start_matches('#')).unwrap_or_else(|| panic!("{place} leads nowhere"))
        }
        None => schema,
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type {other}"),
    }
}

/// Returns a schema with the fields of all its parts (`allOf`) in one place.
fn merge(document: &Value, schema: &Value) -> Value {
    let schema = resolve(document, schema);
    let Some(parts) = schema["allOf"].as_array() else { return schema.clone() };
    let (mut properties, mut required) = (serde_json::Map::new(), Vec::new());
    for part in parts {
        let part = merge(document, part);
        assert_eq!(part["type"], "object", "only objects can be merged: {part}");
        properties.extend(part["properties"].as_object().unwrap().clone());
        required.extend(part["required"].as_array().cloned().unwrap_or_default());
    }
    json!({ "type": "object", "properties": properties, "required": required })
}

/// Checks a value against a schema. Supports the parts of the schema language that the document uses.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    let schema = &merge(document, schema);
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = |choice: &&Value| {
            let choice = merge(document, choice);
            choice["type"].as_str().is_none_or(|name| has_type(value, name))
        };
        let choice = choices.iter().find(fits).unwrap_or_else(|| panic!("{at} fits no choice: {value}"));
        return check(document, choice, value, at);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => return,
    };
    assert!(types.iter().any(|name| has_type(value, name)), "{at} is not of {types:?}: {value}");
    if let (Some(known), Some(text)) = (schema["enum"].as_array(), value.as_str()) {
        assert!(known.iter().any(|it| it == text), "{at}: {text}");
    }
    if let Some(items) = value.as_array() {
        for (place, item) in items.iter().enumerate() {
            check(document, &schema["items"], item, &format!("{at}[{place}]"));
        }
    }
    let (Some(table), Some(properties)) = (value.as_object(), schema["properties"].as_object()) else {
        return;
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(table.contains_key(name.as_str().unwrap()), "{at} lacks {name}: {value}");
    }
    for (name, value) in table {
        let property = properties.get(name).unwrap_or_else(|| panic!("{at}.{name} is not in the document"));
        check(document, property, value, &format!("{at}.{name}"));
    }
}

/// A server with an index of which one platform is cached, a finished job, and the `OpenAPI` document.
fn fixture() -> (Registry, Larder, Value) {
    let registry = Registry::start();
    registry.add_index("library/multi", "v1", &Index::oci(7));
    registry.add_image("org/app", "1", &Image::small(3));
    let larder = Larder::in_front_of(&registry);
    verb::online(&larder, &["warm", "multi:v1", "org/app:1", "--platform", "linux/amd64"]).exited_with(0);
    let document = larder.admin().get("/api/v1/openapi.json").json();
    (registry, larder, document)
}

/// Returns the requests that make each path return data.
fn target(path: &str) -> String {
    let query = match path {
        "/tags" => "?repository=multi",
        "/inspect" => "?reference=multi:v1&platform=linux/arm64",
        "/check" => "?reference=multi:v1&reference=gone&platform=linux/arm64",
        "/setup" => "?client=docker",
        "/export" => "?reference=org/app:1",
        _ => "",
    };
    format!("{ROOT}{}{query}", path.replace("{id}", "1"))
}

#[test]
fn routes_answer_as_documented() {
    let (_registry, larder, document) = fixture();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let operations = operations.as_object().unwrap();
        for method in METHODS {
            let answer = larder.admin().send(method, &target(path), &[("Content-Type", "application/json")]);
            let Some(operation) = operations.get(&method.to_lowercase()) else {
                assert_eq!(answer.status(), 405, "{method} {path}");
                let allowed = answer.header("allow").unwrap().to_lowercase();
                assert!(
                    operations.keys().filter(|it| *it != "parameters").all(|it| allowed.contains(it)),
                    "{path}: {allowed}"
                );
                continue;
            };
            let documented = &operation["responses"][answer.status().to_string()];
            assert!(documented.is_object(), "{method} {path} answers {}: {}", answer.status(), answer.text());
            let content = resolve(&document, documented)["content"].as_object().unwrap();
            let media_type = answer.header("content-type").unwrap();
            let schema =
                &content.get(media_type).unwrap_or_else(|| panic!("{method} {path}: {media_type}"))["schema"];
            match media_type {
                "application/json" => check(&document, schema, &answer.json(), path),
                "text/event-stream" => {
                    let text = answer.text();
                    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
                    check(&document, schema, &serde_json::from_str(data).unwrap(), path);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn inventory_matches_its_schema() {
    let (_registry, larder, document) = fixture();
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    for (path, name) in [
        ("/images", "Images"),
        ("/inspect?reference=multi:v1", "Inspection"),
        ("/inspect?reference=multi:v1&platform=linux/amd64&config", "Inspection"),
        ("/inspect?reference=org/app:1", "Inspection"),
        ("/check?reference=org/app:1", "Verdicts"),
        ("/jobs", "Jobs"),
        ("/status", "Status"),
    ] {
        let answer = larder.admin().get(&format!("{ROOT}{path}"));
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        check(&document, &schema(name), &answer.json(), path);
    }
    for (path, status) in
        [("/inspect?reference=gone", 404), ("/inspect", 400), ("/nothing", 404), ("/jobs/99", 404)]
    {
        let answer = larder.admin().get(&format!("{ROOT}{path}"));
        assert_eq!(answer.status(), status, "{path}");
        check(&document, &schema("Refusal"), &answer.json(), path);
    }
}
