//! The results of plugins: the one that ADD prints, and those that it is given.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::protocol::{Added, ErrorReply, code};

use super::config::{Config, Dns};

/// The previous plugins' result, to which ADD adds its own.
///
/// It is edited as JSON and not taken apart into types, so that what later versions of the specification or other
/// plugins put into it stays.
pub(super) struct Previous {
    rest: Map<String, Value>,
    interfaces: Vec<Value>,
    ips: Vec<Value>,
    routes: Vec<Value>,
}

impl Previous {
    /// Reads `prevResult`; without one all is empty.
    pub(super) fn read(config: &Config) -> Result<Self, ErrorReply> {
        let mut rest = match &config.prev_result {
            None => Map::new(),
            Some(Value::Object(previous)) => previous.clone(),
            Some(other) => return Err(bad_prev_result(&format!("it is no object but {other}"))),
        };
        let mut list = |key| match rest.remove(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(bad_prev_result(&format!("its {key} is no array"))),
        };
        let (interfaces, ips, routes) = (list("interfaces")?, list("ips")?, list("routes")?);
        Ok(Self { rest, interfaces, ips, routes })
    }

    /// The result with the agent's wiring in it; `sandbox` is `CNI_NETNS`.
    pub(super) fn with(mut self, config: &Config, added: &Added, sandbox: &str, ipam_dns: &Dns) -> Value {
        let container = self.interfaces.len() + 1;
        self.interfaces.extend([
            interface(config, &added.host_ifname, &added.host_mac, added.mtu, None),
            interface(config, &added.container_ifname, &added.mac, added.mtu, Some(sandbox)),
        ]);
        self.ips.extend(added.addresses.iter().map(|address| ip(config, added, *address, container)));
        self.routes.extend(added.gateways.iter().map(|gateway| default_route(*gateway)));
        let mut result = self.rest;
        result.insert("cniVersion".to_owned(), json!(config.version.as_str()));
        result.insert("interfaces".to_owned(), self.interfaces.into());
        result.insert("ips".to_owned(), self.ips.into());
        result.insert("routes".to_owned(), self.routes.into());
        let dns = if config.dns.is_empty() { ipam_dns } else { &config.dns };
        if !dns.is_empty() {
            result.insert("dns".to_owned(), json!(dns));
        }
        Value::Object(result)
    }
}

fn bad_prev_result(why: &str) -> ErrorReply {
    ErrorReply::new(code::INVALID_CONFIG, "the network configuration's prevResult is wrong", why)
}

fn interface(config: &Config, name: &str, mac: &str, mtu: u32, sandbox: Option<&str>) -> Value {
    let mut interface = json!({ "name": name, "mac": mac });
    if config.version.interfaces_have_mtu() {
        interface["mtu"] = json!(mtu);
    }
    if let Some(sandbox) = sandbox {
        interface["sandbox"] = json!(sandbox);
    }
    interface
}

fn ip(config: &Config, added: &Added, address: IpNet, container: usize) -> Value {
    let is_v4 = address.addr().is_ipv4();
    let mut ip = json!({ "interface": container, "address": address });
    if config.version.ips_have_version() {
        ip["version"] = json!(if is_v4 { "4" } else { "6" });
    }
    if let Some(gateway) = added.gateways.iter().find(|gateway| gateway.is_ipv4() == is_v4) {
        ip["gateway"] = json!(gateway);
    }
    ip
}

fn default_route(gateway: IpAddr) -> Value {
    json!({ "dst": if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "gw": gateway })
}

/// What matters of a result that is read; absent and `null` lists are the same to every runtime.
#[derive(Deserialize)]
struct Given {
    interfaces: Option<Vec<GivenInterface>>,
    ips: Option<Vec<GivenIp>>,
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct GivenInterface {
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct GivenIp {
    address: IpNet,
    interface: Option<usize>,
}

/// The addresses which `prevResult` says the container's interface has.
pub(super) fn expected_addresses(config: &Config, ifname: &str) -> Result<Vec<IpNet>, ErrorReply> {
    let Some(previous) = &config.prev_result else {
        return Err(bad_prev_result("CHECK needs the result of ADD, and there is none"));
    };
    let given = Given::deserialize(previous).map_err(|e| bad_prev_result(&e.to_string()))?;
    let interfaces = given.interfaces.unwrap_or_default();
    let ours = |interface: &GivenInterface| interface.name == ifname && !interface.sandbox.is_empty();
    let Some(index) = interfaces.iter().position(ours) else {
        return Err(bad_prev_result(&format!("it has no interface {ifname} inside a sandbox")));
    };
    let ips = given.ips.unwrap_or_default();
    Ok(ips.into_iter().filter(|ip| ip.interface == Some(index)).map(|ip| ip.address).collect())
}

/// Addresses and DNS settings that an IPAM plugin printed.
pub(super) fn from_ipam(plugin: &str, stdout: &[u8]) -> Result<(Vec<IpNet>, Dns), ErrorReply> {
    let bad = |why: String| {
        ErrorReply::new(code::DECODE_FAILURE, format!("the result of IPAM plugin {plugin} is unusable"), why)
    };
    let given: Given = serde_json::from_slice(stdout).map_err(|e| bad(e.to_string()))?;
    let addresses: Vec<IpNet> = given.ips.unwrap_or_default().into_iter().map(|ip| ip.address).collect();
    if addresses.is_empty() {
        return Err(bad("it has no addresses".to_owned()));
    }
    Ok((addresses, given.dns.unwrap_or_default()))
}
