//! What the pinned maps hold: `hypha route`, `conntrack`, `nat`, `map` and `metrics`. They read the maps themselves, so
//! they work while no agent runs.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use datapath_ebpf::{
    Port,
    maps::{Flow, FlowKey, RouteKind},
};
use serde_json::{Value, json};

use super::output::{Format, print_listing};
use crate::{
    daemon::BPF_DIR,
    datapath::{
        DatapathError,
        read::{self, FlowRow},
    },
};

/// What every command that reads maps understands.
#[derive(Clone, Debug, clap::Args)]
pub struct MapArgs {
    /// The directory of the agent's pinned maps
    #[arg(long, env = "HYPHA_BPF_DIR", value_name = "DIR", default_value = BPF_DIR)]
    bpf_dir: PathBuf,

    /// Form of the output
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

impl MapArgs {
    fn read<T>(&self, read: impl FnOnce(&Path) -> Result<T, DatapathError>) -> anyhow::Result<T> {
        let hint = || {
            format!("cannot read the maps in {} (root, and the agent's --bpf-dir?)", self.bpf_dir.display())
        };
        read(&self.bpf_dir).with_context(hint)
    }
}

/// `list` of one map's entries.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum ListCommand {
    /// All of them
    List(MapArgs),
}

/// `hypha map`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum MapCommand {
    /// All maps
    List(MapArgs),
    /// The entries of one
    Dump {
        /// endpoints, routes, conntrack, nat or counters
        name: String,
        #[command(flatten)]
        args: MapArgs,
    },
}

/// `hypha map list` and `hypha map dump`.
pub fn map(command: &MapCommand) -> anyhow::Result<()> {
    match command {
        MapCommand::List(args) => list(args),
        MapCommand::Dump { name, args } => match name.as_str() {
            "endpoints" => endpoints(args),
            "routes" => routes(args),
            "conntrack" => conntrack(args),
            "nat" => nat(args),
            "counters" => counters(args),
            _ => bail!(
                "no way to print map {name:?}: try endpoints, routes, conntrack, nat or counters, or bpftool map \
                 dump pinned {}",
                args.bpf_dir.join(name).display()
            ),
        },
    }
}

fn list(args: &MapArgs) -> anyhow::Result<()> {
    let rows = args.read(read::maps)?.into_iter().map(|map| {
        let sizes = [map.key_size, map.value_size, map.max_entries].map(Value::from);
        [vec![json!(map.name), json!(map.kind), json!(map.id)], sizes.to_vec()].concat()
    });
    print_listing(args.output, &["map", "kind", "id", "key_bytes", "value_bytes", "max_entries"], rows)
}

fn endpoints(args: &MapArgs) -> anyhow::Result<()> {
    let rows = args.read(read::endpoints)?.into_iter().map(|(address, endpoint)| {
        let kind = if endpoint.flags & datapath_ebpf::maps::Endpoint::HOST == 0 { "pod" } else { "node" };
        vec![
            json!(address),
            json!(kind),
            json!(endpoint.id),
            json!(endpoint.ifindex),
            json!(endpoint.mac.to_string()),
        ]
    });
    print_listing(args.output, &["address", "kind", "endpoint", "ifindex", "mac"], rows)
}

/// `hypha route list`.
pub fn routes(args: &MapArgs) -> anyhow::Result<()> {
    let rows = args.read(read::routes)?.into_iter().map(|(prefix, route)| {
        let via =
            if route.next_hop.is_unspecified() { Value::Null } else { json!(route.next_hop.to_string()) };
        let device = if route.ifindex == 0 { Value::Null } else { json!(route.ifindex) };
        let mtu = if route.mtu == u16::MAX { Value::Null } else { json!(route.mtu) };
        vec![json!(prefix), json!(kind(route.kind)), via, device, mtu]
    });
    print_listing(args.output, &["prefix", "kind", "via", "ifindex", "mtu"], rows)
}

fn kind(number: u8) -> &'static str {
    match number {
        _ if number == RouteKind::Local as u8 => "local",
        _ if number == RouteKind::Native as u8 => "native",
        _ if number == RouteKind::Tunnel as u8 => "tunnel",
        _ if number == RouteKind::Exempt as u8 => "exempt",
        _ => "unknown",
    }
}

/// `hypha conntrack list`.
pub fn conntrack(args: &MapArgs) -> anyhow::Result<()> {
    let rows = args.read(read::flows)?.into_iter().map(|row| {
        let FlowRow { key, flow, timeout_seconds, idle_seconds } = row;
        vec![
            protocol(key.protocol),
            end(IpAddr::from(key.src), key.src_port),
            end(IpAddr::from(key.dst), key.dst_port),
            translation(&flow),
            json!(flow.class(key.protocol).name()),
            json!(flow.sent.packets),
            json!(flow.sent.bytes),
            json!(flow.received.packets),
            json!(flow.received.bytes),
            json!(idle_seconds),
            json!(timeout_seconds),
        ]
    });
    let columns = [
        "protocol",
        "owner",
        "remote",
        "as",
        "state",
        "sent",
        "sent_bytes",
        "received",
        "received_bytes",
        "idle_s",
        "timeout_s",
    ];
    print_listing(args.output, &columns, rows)
}

fn translation(flow: &Flow) -> Value {
    if flow.flags & Flow::INBOUND != 0 {
        return json!("inbound");
    }
    end(IpAddr::from(flow.nat_address), flow.nat_port)
}

/// `hypha nat list`.
pub fn nat(args: &MapArgs) -> anyhow::Result<()> {
    let rows = args.read(read::nat)?.into_iter().map(|(key, back)| {
        let FlowKey { src, dst, src_port, dst_port, protocol: number, .. } = key;
        vec![
            protocol(number),
            end(IpAddr::from(src), src_port),
            end(IpAddr::from(dst), dst_port),
            end(IpAddr::from(back.address), back.port),
        ]
    });
    print_listing(args.output, &["protocol", "from", "to", "for"], rows)
}

/// `hypha metrics`.
pub fn counters(args: &MapArgs) -> anyhow::Result<()> {
    let rows = args.read(read::counters)?.into_iter().map(|row| {
        let fate = if row.drop { "drop" } else { "forward" };
        vec![
            json!(row.program),
            json!(fate),
            json!(row.outcome),
            json!(row.packets),
            json!(row.bytes),
            json!(row.description),
        ]
    });
    print_listing(args.output, &["program", "fate", "outcome", "packets", "bytes", "meaning"], rows)
}

fn end(address: IpAddr, port: Port) -> Value {
    json!(std::net::SocketAddr::new(address, port.get()).to_string())
}

fn protocol(number: u8) -> Value {
    match i32::from(number) {
        libc::IPPROTO_TCP => json!("tcp"),
        libc::IPPROTO_UDP => json!("udp"),
        libc::IPPROTO_SCTP => json!("sctp"),
        libc::IPPROTO_ICMP => json!("icmp"),
        libc::IPPROTO_ICMPV6 => json!("icmpv6"),
        _ => json!(number),
    }
}
