//! `hypha endpoint list` and `hypha endpoint get`.

use std::net::IpAddr;

use anyhow::bail;
use hypha_cni::protocol::{Call, EndpointInfo, PortMapping, Response};

use super::{
    client::ClientArgs,
    output::{Format, print_json, print_table},
};

/// What to show.
#[derive(Debug, clap::Subcommand)]
pub enum EndpointCommand {
    /// All of them
    List(ClientArgs),
    /// One in full
    Get {
        /// An address, a pod (NAMESPACE/NAME or NAME), or the beginning of a container ID
        which: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Prints endpoints.
pub fn run(command: &EndpointCommand) -> anyhow::Result<()> {
    match command {
        EndpointCommand::List(client) => list(client),
        EndpointCommand::Get { which, client } => get(which, client),
    }
}

fn ask(client: &ClientArgs) -> anyhow::Result<Vec<EndpointInfo>> {
    match client.ask(Call::Endpoints)? {
        Response::Endpoints(endpoints) => Ok(endpoints),
        _ => bail!("the agent gave no answer to the question"),
    }
}

fn list(client: &ClientArgs) -> anyhow::Result<()> {
    let endpoints = ask(client)?;
    match client.output {
        Format::Json => print_json(&endpoints),
        Format::Table => {
            print_table(&["POD", "STATE", "INTERFACE", "IPV4", "IPV6", "DEVICE"], endpoints.iter().map(row));
            Ok(())
        }
    }
}

fn row(endpoint: &EndpointInfo) -> Vec<String> {
    let address = |v4| {
        let found = endpoint.addresses.iter().find(|address| address.is_ipv4() == v4);
        found.map_or_else(|| "-".to_owned(), ToString::to_string)
    };
    let ifname = endpoint.attachment.ifname.clone();
    vec![name(endpoint), state(endpoint), ifname, address(true), address(false), endpoint.host_ifname.clone()]
}

/// What Kubernetes says about the pod.
fn state(endpoint: &EndpointInfo) -> String {
    endpoint.pod_state.clone().unwrap_or_else(|| "-".to_owned())
}

/// The pod, or for lack of it the container.
fn name(endpoint: &EndpointInfo) -> String {
    match &endpoint.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => endpoint.attachment.container_id.chars().take(13).collect(),
    }
}

fn get(which: &str, client: &ClientArgs) -> anyhow::Result<()> {
    let mut found = ask(client)?;
    found.retain(|endpoint| matches(endpoint, which));
    match (&found[..], client.output) {
        ([], _) => bail!("no endpoint is {which}: see hypha endpoint list"),
        (found, Format::Json) => print_json(&found),
        (found, Format::Table) => {
            for endpoint in found {
                print_table(&["ENDPOINT", &name(endpoint)], details(endpoint));
            }
            Ok(())
        }
    }
}

fn matches(endpoint: &EndpointInfo, which: &str) -> bool {
    if let Ok(address) = which.parse::<IpAddr>() {
        return endpoint.addresses.contains(&address);
    }
    let is_pod = endpoint.pod.as_ref().is_some_and(|pod| match which.split_once('/') {
        Some((namespace, name)) => pod.namespace == namespace && pod.name == name,
        None => pod.name == which,
    });
    is_pod || endpoint.attachment.container_id.starts_with(which)
}

fn details(endpoint: &EndpointInfo) -> Vec<Vec<String>> {
    let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
    let ifindex = endpoint.host_ifindex.map_or_else(|| "-".to_owned(), |ifindex| ifindex.to_string());
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    vec![
        row("state", state(endpoint)),
        row("container", endpoint.attachment.container_id.clone()),
        row("interface", endpoint.attachment.ifname.clone()),
        row("network", endpoint.attachment.network.clone()),
        row("addresses", addresses.join(", ")),
        row("host ports", host_ports(endpoint)),
        row("MAC", endpoint.mac.clone()),
        row("MTU", endpoint.mtu.to_string()),
        row("device", format!("{} (ifindex {ifindex})", endpoint.host_ifname)),
        row("namespace", endpoint.netns.display().to_string()),
    ]
}

fn host_ports(endpoint: &EndpointInfo) -> String {
    let one = |mapping: &PortMapping| format!("{mapping} to {}", mapping.container_port);
    let all: Vec<_> = endpoint.port_mappings.iter().map(one).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use hypha_cni::protocol::{Attachment, PodName};

    use super::*;

    #[test]
    fn endpoints_are_found_by_what_people_know_of_them() {
        let attachment =
            Attachment { container_id: "c0ffee11".into(), ifname: "eth0".into(), network: "hypha".into() };
        let endpoint = EndpointInfo {
            attachment,
            pod: Some(PodName { namespace: "shop".into(), name: "cart-7".into(), uid: None }),
            netns: "/run/netns/x".into(),
            host_ifname: "hy0".into(),
            host_ifindex: Some(4),
            mac: String::new(),
            mtu: 1450,
            addresses: vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            pod_state: None,
            port_mappings: Vec::new(),
        };
        for (which, expected) in [
            ("10.1.0.5", true),
            ("fd00:0::5", true),
            ("shop/cart-7", true),
            ("cart-7", true),
            ("c0ff", true),
            ("10.1.0.6", false),
            ("other/cart-7", false),
            ("cart", false),
            ("ffee", false),
        ] {
            assert_eq!(matches(&endpoint, which), expected, "{which}");
        }
    }
}
