//! The network configuration that a runtime passes on standard input.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::{DEFAULT_SOCKET, ErrorReply, Kept, PortMapping, code};

use super::environment::{Verb, is_name};
use super::port_mappings;
use super::version::SpecVersion;

/// Time for a whole invocation unless the configuration says otherwise. The kubelet gives its runtime two minutes
/// for most calls; what is left is for undoing and for the other plugins of the chain.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45);

/// IPv6 works on no link with less (RFC 8200), and every pod has both families.
const MIN_MTU: u32 = 1280;

/// `runtimeConfig` keys that ask for nothing the shim would have to do, or that it does.
const SERVED_CAPABILITIES: [&str; 4] = ["dns", "aliases", "cgroupPath", port_mappings::KEY];

/// `runtimeConfig` keys that an IPAM plugin serves.
const IPAM_CAPABILITIES: [&str; 2] = ["ips", "ipRanges"];

/// One plugin's configuration, as far as it matters to the shim.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    pub(super) version: SpecVersion,
    /// Name of the network.
    pub(super) name: String,
    /// MTU asked for, in bytes.
    pub(super) mtu: Option<u32>,
    /// Where the agent listens.
    pub(super) socket: PathBuf,
    /// Executable name of the IPAM plugin to delegate to; without one the agent gives out addresses.
    pub(super) ipam: Option<String>,
    /// DNS settings to pass on to the runtime.
    pub(super) dns: Dns,
    /// Ports of the node that lead to the container; for ADD and CHECK.
    pub(super) port_mappings: Vec<PortMapping>,
    /// Result of the plugins before this one; interpreted by ADD and CHECK only, so that a DEL never fails for it.
    pub(super) prev_result: Option<Value>,
    /// `cni.dev/valid-attachments`.
    pub(super) valid_attachments: Option<Vec<Kept>>,
    /// Time for the whole invocation.
    pub(super) timeout: Duration,
}

/// The specification's DNS dictionary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
}

impl Dns {
    /// Nothing set: results leave it out.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// The JSON object on standard input.
pub(super) fn parse_object(stdin: &[u8]) -> Result<Map<String, Value>, ErrorReply> {
    let undecodable = |details: String| {
        ErrorReply::new(code::DECODE_FAILURE, "cannot decode the network configuration", details)
    };
    match serde_json::from_slice(stdin) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(undecodable(format!("standard input is no JSON object but {other}"))),
        Err(error) => Err(undecodable(format!("standard input is not JSON: {error}"))),
    }
}

/// `cniVersion` as given; version 0.1.0 knew no such key.
pub(super) fn declared_version(object: &Map<String, Value>) -> Result<String, ErrorReply> {
    Ok(field(object, "cniVersion")?.unwrap_or_else(|| "0.1.0".to_owned()))
}

impl Config {
    /// Checks the configuration for `verb`.
    ///
    /// What only ADD uses is only checked by ADD: a configuration that ADD refused must not make the DEL that follows
    /// fail for ever.
    pub(super) fn read(object: &Map<String, Value>, verb: Verb) -> Result<Self, ErrorReply> {
        let version = SpecVersion::parse(&declared_version(object)?)?;
        version.require(verb)?;
        let ipam = ipam(object)?;
        let is_add = verb == Verb::Add;
        if is_add {
            refuse_unserved_capabilities(object, ipam.is_some())?;
        }
        Ok(Self {
            version,
            name: name(object)?,
            mtu: if is_add { mtu(object)? } else { None },
            socket: socket(object)?,
            ipam,
            dns: if is_add { dns(object)? } else { Dns::default() },
            port_mappings: match verb {
                Verb::Add | Verb::Check => port_mappings::read(runtime_config(object)?.as_ref())?,
                _ => Vec::new(),
            },
            prev_result: object.get("prevResult").filter(|value| !value.is_null()).cloned(),
            valid_attachments: if verb == Verb::Gc { valid_attachments(object)? } else { None },
            timeout: if is_add { timeout(object)? } else { timeout(object).unwrap_or(DEFAULT_TIMEOUT) },
        })
    }
}

/// The value of `key`; `null` is the same as absent.
fn field<T: DeserializeOwned>(object: &Map<String, Value>, key: &str) -> Result<Option<T>, ErrorReply> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|e| invalid(key, value, &e.to_string())),
    }
}

/// Like [`field`], for a dictionary: serde would take an array for one, too.
fn dictionary<T: DeserializeOwned>(object: &Map<String, Value>, key: &str) -> Result<Option<T>, ErrorReply> {
    match object.get(key) {
        Some(value) if !value.is_object() && !value.is_null() => Err(invalid(key, value, "it is no object")),
        _ => field(object, key),
    }
}

fn invalid(key: &str, value: &Value, why: &str) -> ErrorReply {
    let msg = format!("the network configuration's key {key:?} is wrong");
    ErrorReply::new(code::INVALID_CONFIG, msg, format!("{key} is {value}: {why}"))
}

fn name(object: &Map<String, Value>) -> Result<String, ErrorReply> {
    let name: String = field(object, "name")?.unwrap_or_default();
    if is_name(&name) {
        return Ok(name);
    }
    let why = "a network's name starts with a letter or digit, then come letters, digits, '_', '.' and '-'";
    Err(invalid("name", &Value::String(name), why))
}

fn socket(object: &Map<String, Value>) -> Result<PathBuf, ErrorReply> {
    match field::<PathBuf>(object, "socket")? {
        Some(path) if !path.is_absolute() => {
            Err(invalid("socket", &path.to_string_lossy().into(), "it must be an absolute path"))
        }
        path => Ok(path.unwrap_or_else(|| DEFAULT_SOCKET.into())),
    }
}

/// 0 means "as the plugin thinks best", as it does to the reference plugins.
fn mtu(object: &Map<String, Value>) -> Result<Option<u32>, ErrorReply> {
    match field(object, "mtu")? {
        None | Some(0) => Ok(None),
        Some(mtu @ MIN_MTU..=65535) => Ok(Some(mtu)),
        Some(mtu) => Err(invalid("mtu", &mtu.into(), "it must be 0 (automatic) or from 1280 to 65535")),
    }
}

fn ipam(object: &Map<String, Value>) -> Result<Option<String>, ErrorReply> {
    let kind = dictionary::<Ipam>(object, "ipam")?.map(|ipam| ipam.kind).unwrap_or_default();
    if kind.contains('/') || kind == "." || kind == ".." {
        return Err(invalid(
            "ipam.type",
            &Value::String(kind),
            "it is a file name in CNI_PATH, without slashes",
        ));
    }
    Ok(Some(kind).filter(|kind| !kind.is_empty()))
}

/// A runtime's `dns` capability argument goes before the configuration's own settings.
fn dns(object: &Map<String, Value>) -> Result<Dns, ErrorReply> {
    let runtime = runtime_config(object)?;
    let wanted = runtime.as_ref().map(runtime_dns).transpose()?.flatten();
    Ok(match wanted {
        Some(dns) if !dns.is_empty() => dns,
        _ => dictionary(object, "dns")?.unwrap_or_default(),
    })
}

/// The capability convention names two of the keys differently (`servers`, `searches`).
fn runtime_dns(runtime: &Map<String, Value>) -> Result<Option<Dns>, ErrorReply> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct RuntimeDns {
        servers: Vec<String>,
        searches: Vec<String>,
        options: Vec<String>,
    }
    let dns: Option<RuntimeDns> = dictionary(runtime, "dns")?;
    Ok(dns.map(|dns| Dns {
        nameservers: dns.servers,
        domain: String::new(),
        search: dns.searches,
        options: dns.options,
    }))
}

fn runtime_config(object: &Map<String, Value>) -> Result<Option<Map<String, Value>>, ErrorReply> {
    field(object, "runtimeConfig")
}

/// A fixed MAC address or a bandwidth limit that is silently not made would be found out much later.
fn refuse_unserved_capabilities(object: &Map<String, Value>, has_ipam: bool) -> Result<(), ErrorReply> {
    for (key, value) in runtime_config(object)?.iter().flatten() {
        let served = SERVED_CAPABILITIES.contains(&key.as_str())
            || (has_ipam && IPAM_CAPABILITIES.contains(&key.as_str()));
        if !served && !is_blank(value) {
            return Err(ErrorReply::new(
                code::UNSUPPORTED_FIELD,
                format!("runtimeConfig key {key:?} is not supported: {value}"),
                format!("remove {key:?} from Hypha's \"capabilities\", or give it to a chained plugin"),
            ));
        }
    }
    Ok(())
}

fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn valid_attachments(object: &Map<String, Value>) -> Result<Option<Vec<Kept>>, ErrorReply> {
    let attachments: Option<Vec<ValidAttachment>> = field(object, "cni.dev/valid-attachments")?;
    let kept = |a: ValidAttachment| Kept { container_id: a.container_id, ifname: a.ifname };
    Ok(attachments.map(|attachments| attachments.into_iter().map(kept).collect()))
}

fn timeout(object: &Map<String, Value>) -> Result<Duration, ErrorReply> {
    let Some(seconds) = field::<f64>(object, "timeout")? else {
        return Ok(DEFAULT_TIMEOUT);
    };
    if !(0.01..=600.0).contains(&seconds) {
        return Err(invalid("timeout", &seconds.into(), "it is in seconds, from 0.01 to 600"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Config, ErrorReply> {
        Config::read(&parse_object(json.as_bytes())?, Verb::Add)
    }

    #[test]
    fn null_and_zero_mean_the_default() {
        let config = read(
            r#"{"cniVersion": "1.0.0", "name": "n", "mtu": 0, "socket": null, "ipam": {}, "dns": null,
                "prevResult": null, "runtimeConfig": {"mac": "", "ips": []}}"#,
        );
        let expected = Config {
            version: SpecVersion::V1_0_0,
            name: "n".into(),
            mtu: None,
            socket: DEFAULT_SOCKET.into(),
            ipam: None,
            dns: Dns::default(),
            port_mappings: Vec::new(),
            prev_result: None,
            valid_attachments: None,
            timeout: DEFAULT_TIMEOUT,
        };
        assert_eq!(config.unwrap(), expected);
    }

    #[test]
    fn an_ipam_plugin_may_serve_addresses_the_runtime_asks_for() {
        let with = |ipam: &str| {
            let ips = r#""runtimeConfig": {"ips": ["10.0.0.9/24"]}"#;
            read(&format!(r#"{{"cniVersion": "1.0.0", "name": "n", {ips}, "ipam": {ipam}}}"#))
        };
        assert_eq!(with(r#"{"type": "static"}"#).unwrap().ipam.as_deref(), Some("static"));
        assert_eq!(with("{}").unwrap_err().code, code::UNSUPPORTED_FIELD);
    }

    /// Any JSON of a few levels, with the keys that matter among its keys.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "1.0.0|1.1.0|[a-z/.]{0,6}".prop_map(Value::from),
        ];
        let key = "cniVersion|name|mtu|socket|ipam|type|dns|runtimeConfig|prevResult|timeout|ips|[a-z]{1,3}";
        leaf.prop_recursive(3, 24, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 0..8)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_input_is_accepted_or_refused_with_a_code_of_the_specification(value in json()) {
            if let Err(error) = read(&value.to_string()) {
                let codes = [
                    code::INCOMPATIBLE_VERSION, code::UNSUPPORTED_FIELD, code::DECODE_FAILURE, code::INVALID_CONFIG,
                ];
                prop_assert!(codes.contains(&error.code), "{}", error);
            }
        }
    }
}
