//! Who asked the API server for what: its audit log, read.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

/// Logs every request once it was answered, and those that stay open (watches) once they have begun.
pub(super) const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Who asked.
    pub user: String,
    /// By what program.
    pub agent: String,
    /// `get`, `list`, `watch`, `patch`, …
    pub verb: String,
    /// `nodes`, `nodes/status`, …; empty for what is no resource.
    pub resource: String,
    /// What was asked for, with its query.
    pub uri: String,
    /// The HTTP status of the answer.
    pub code: u64,
}

/// Requests by verb and resource (`list nodes`), counted.
pub fn count<'a>(requests: impl IntoIterator<Item = &'a Request>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in requests {
        *counts.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
    }
    counts
}

/// Every request of a log, in order.
pub(super) fn read(log: &Path) -> Result<Vec<Request>> {
    let text = fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(parse(&text))
}

/// A request that stays open is in the log twice: when it began and when it ended.
fn parse(log: &str) -> Vec<Request> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut requests = Vec::new();
    // The last line may be half written.
    for event in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let id = text(&event["auditID"]);
        if seen.insert(id, requests.len()).is_none() {
            requests.push(request(&event));
        }
    }
    requests
}

fn request(event: &Value) -> Request {
    let object = &event["objectRef"];
    let resource = match (object["resource"].as_str(), object["subresource"].as_str()) {
        (Some(resource), Some(part)) => format!("{resource}/{part}"),
        (resource, _) => resource.unwrap_or_default().to_owned(),
    };
    Request {
        user: text(&event["user"]["username"]),
        agent: text(&event["userAgent"]),
        verb: text(&event["verb"]),
        resource,
        uri: text(&event["requestURI"]),
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_watch_counts_once_and_half_a_line_not_at_all() {
        let event = |id: &str, verb: &str, stage: &str| {
            json!({
                "auditID": id, "verb": verb, "stage": stage, "userAgent": "hypha/1",
                "objectRef": { "resource": "nodes" }, "responseStatus": { "code": 200 },
            })
            .to_string()
        };
        let log = [
            event("1", "watch", "ResponseStarted"),
            event("2", "patch", "ResponseComplete"),
            event("1", "watch", "ResponseComplete"),
            "{\"auditID\":".to_owned(),
        ];
        let requests = parse(&log.join("\n"));
        let counts = count(&requests);
        assert_eq!(
            counts.into_iter().collect::<Vec<_>>(),
            [("patch nodes".to_owned(), 1), ("watch nodes".to_owned(), 1)]
        );
    }
}
