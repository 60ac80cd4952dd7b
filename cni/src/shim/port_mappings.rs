//! The capability argument `portMappings`: ports of the node that lead to the container.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::protocol::{ErrorReply, PortMapping, Transport, code};

/// Its key in `runtimeConfig`.
pub(super) const KEY: &str = "portMappings";

/// One of them as runtimes write it: containerd with capitals, as Go does where nobody says otherwise, and the reference
/// plugins, which read like Go, take either. Numbers are wider than ports, so that a wrong one is named and not just of the wrong kind.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    #[serde(default, alias = "HostPort")]
    host_port: i64,
    #[serde(default, alias = "ContainerPort")]
    container_port: i64,
    #[serde(default, alias = "Protocol")]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

/// Reads them; sorted, each once. Those without host port map nothing, and some runtimes list them.
pub(super) fn read(runtime: Option<&Map<String, Value>>) -> Result<Vec<PortMapping>, ErrorReply> {
    let Some(value) = runtime.and_then(|runtime| runtime.get(KEY)).filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let given = Vec::<Given>::deserialize(value).map_err(|error| invalid(value, &error.to_string()))?;
    let wanted = given.iter().filter(|given| given.host_port != 0);
    let mappings: Result<Vec<_>, _> = wanted.map(mapping).collect();
    let mut mappings = mappings.map_err(|why| invalid(value, &why))?;
    mappings.sort_unstable();
    mappings.dedup();
    Ok(mappings)
}

fn mapping(given: &Given) -> Result<PortMapping, String> {
    let protocol = if given.protocol.is_empty() { Transport::Tcp } else { given.protocol.parse()? };
    let address = Some(given.host_ip.as_str()).filter(|text| !text.is_empty());
    let address: Option<Result<IpAddr, _>> = address.map(str::parse);
    let host_ip = address.transpose().map_err(|_| format!("hostIP {:?} is no IP address", given.host_ip))?;
    Ok(PortMapping {
        host_port: port("hostPort", given.host_port)?,
        container_port: port("containerPort", given.container_port)?,
        protocol,
        host_ip,
    })
}

fn port(key: &str, number: i64) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("{key} {number} is no port: it must be from 1 to 65535")),
    }
}

fn invalid(value: &Value, why: &str) -> ErrorReply {
    let msg = format!("runtimeConfig key {KEY:?} is wrong");
    ErrorReply::new(code::INVALID_CONFIG, msg, format!("{KEY} is {value}: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(value: &Value) -> Result<String, String> {
        let runtime = json!({ KEY: value });
        let mappings = read(runtime.as_object()).map_err(|error| error.details)?;
        let text = |mapping: &PortMapping| format!("{mapping} -> {}", mapping.container_port);
        Ok(mappings.iter().map(text).collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn what_runtimes_write_is_understood() {
        for (value, expected) in [
            (json!(null), ""),
            (json!([]), ""),
            (json!([{"hostPort": 80, "containerPort": 8080}]), "*:80/tcp -> 8080"),
            (
                json!([{"hostPort": 80, "containerPort": 80, "protocol": "UDP", "hostIP": ""}]),
                "*:80/udp -> 80",
            ),
            (
                json!([{"hostPort": 80, "containerPort": 80, "protocol": "sctp", "hostIP": "192.0.2.1"}]),
                "192.0.2.1:80/sctp -> 80",
            ),
            (
                json!([{"hostPort": 443, "containerPort": 8443, "protocol": "tcp", "hostIP": "2001:db8::1"}]),
                "[2001:db8::1]:443/tcp -> 8443",
            ),
            (json!([{"hostPort": 80, "containerPort": 80, "hostIP": "0.0.0.0"}]), "*:80/tcp -> 80"),
            // containerd 2.1.
            (
                json!([{"HostPort": 80, "ContainerPort": 8080, "Protocol": "udp", "HostIP": "192.0.2.1"}]),
                "192.0.2.1:80/udp -> 8080",
            ),
            (json!([{"hostPort": 0, "containerPort": 80}, {"containerPort": 81}]), ""),
            (
                json!([
                    {"hostPort": 81, "containerPort": 81},
                    {"hostPort": 80, "containerPort": 80},
                    {"hostPort": 81, "containerPort": 81, "protocol": "TCP"}
                ]),
                "*:80/tcp -> 80, *:81/tcp -> 81",
            ),
        ] {
            assert_eq!(parsed(&value), Ok(expected.to_owned()), "{value}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (value, expected) in [
            (json!({"hostPort": 80}), "invalid type"),
            (json!([{"hostPort": 65536, "containerPort": 80}]), "hostPort 65536"),
            (json!([{"hostPort": -1, "containerPort": 80}]), "hostPort -1"),
            (json!([{"hostPort": 80}]), "containerPort 0"),
            (json!([{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]), "tcp, udp and sctp"),
            (
                json!([{"hostPort": 80, "containerPort": 80, "hostIP": "localhost"}]),
                "\"localhost\" is no IP address",
            ),
        ] {
            let error = parsed(&value).unwrap_err();
            assert!(error.contains(expected), "{value}: {error}");
        }
    }
}
