//! Kubeconfig files: complete in themselves, so that they mean the same in any mount namespace.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::pki::Pair;

/// How a client proves who it is.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    /// By certificate.
    Certificate(&'a Pair),
    /// By bearer token.
    Token(&'a str),
}

/// The text of a kubeconfig for one cluster and one user: JSON, which every reader of YAML takes.
pub fn kubeconfig(server: &str, authority: &str, credential: Credential<'_>) -> String {
    let user = match credential {
        Credential::Certificate(pair) => json!({
            "client-certificate-data": STANDARD.encode(&pair.certificate),
            "client-key-data": STANDARD.encode(&pair.key),
        }),
        Credential::Token(token) => json!({ "token": token }),
    };
    let config: Value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(authority),
        } }],
        "users": [{ "name": "user", "user": user }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "user" } }],
        "current-context": "lab",
    });
    format!("{config:#}\n")
}
