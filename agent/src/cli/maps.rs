//! What the pinned maps hold: `hypha route`, `map` and `metrics`; `conntrack` and `nat` are in [`flows`]. They read the maps themselves, so
//! they work while no agent runs.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use datapath_ebpf::{flow::Class, maps::RouteKind};
use serde_json::{Value, json};

use super::{
    flows,
    output::{Format, print_listing},
};
use crate::{
    daemon::BPF_DIR,
    datapath::{DatapathError, read},
};

/// What every command that reads maps understands.
#[derive(Clone, Debug, clap::Args)]
pub struct MapArgs {
    /// The directory of the agent's pinned maps
    #[arg(long, env = "HYPHA_BPF_DIR", value_name = "DIR", default_value = BPF_DIR)]
    bpf_dir: PathBuf,

    /// Form of the output
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Format,
}

impl MapArgs {
    /// Reads something there.
    pub fn read<T>(&self, read: impl FnOnce(&Path) -> Result<T, DatapathError>) -> anyhow::Result<T> {
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

/// `hypha conntrack`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum ConntrackCommand {
    /// The flows, all or some
    List {
        #[command(flatten)]
        filter: flows::Filter,
        #[command(flatten)]
        args: MapArgs,
    },
}

/// `hypha nat`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum NatCommand {
    /// The ways back, all of them
    List(MapArgs),
    /// Remote ends by how many masquerade ports are in use towards them, most first
    Pools {
        /// How many remote ends
        #[arg(long, value_name = "N", default_value_t = 20)]
        top: usize,
        #[command(flatten)]
        args: MapArgs,
    },
}

/// `hypha map`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum MapCommand {
    /// All maps
    List(MapArgs),
    /// The entries of one
    Dump {
        /// endpoints, routes, host_ports, conntrack, nat, ports, claims, timeouts, event_stats or counters
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
            "host_ports" => host_ports(args),
            "conntrack" => flows::conntrack(&flows::Filter::default(), args),
            "nat" => flows::nat(args),
            "ports" => flows::pools(usize::MAX, args),
            "claims" => claims(args),
            "timeouts" => timeouts(args),
            "event_stats" => untold(args),
            "counters" => counters(args),
            _ => bail!(
                "no way to print map {name:?}: try endpoints, routes, host_ports, conntrack, nat, ports, claims, timeouts, event_stats \
                 or counters, or bpftool map dump pinned {}",
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

/// `hypha hostport list`. A family's unspecified address stands for all of the node's.
pub fn host_ports(args: &MapArgs) -> anyhow::Result<()> {
    let rows = args.read(read::host_ports)?.into_iter().map(|(key, to)| {
        let all = IpAddr::from(key.address).is_unspecified();
        let address = if all { json!("*") } else { json!(IpAddr::from(key.address)) };
        vec![
            flows::protocol(key.protocol),
            address,
            json!(key.port.get()),
            flows::end(to.address.into(), to.port),
            json!(to.endpoint),
        ]
    });
    print_listing(args.output, &["protocol", "address", "port", "to", "endpoint"], rows)
}

fn claims(args: &MapArgs) -> anyhow::Result<()> {
    let claims = args.read(read::claims)?;
    let rows = claims.iter().enumerate().map(|(bucket, &claims)| vec![json!(1_u64 << bucket), json!(claims)]);
    print_listing(args.output, &["tries_up_to", "claims"], rows)
}

fn timeouts(args: &MapArgs) -> anyhow::Result<()> {
    let seconds = args.read(read::timeouts)?;
    let rows = Class::ALL.iter().map(|&class| vec![json!(class.name()), json!(seconds[class as usize])]);
    print_listing(args.output, &["state", "timeout_s"], rows)
}

fn untold(args: &MapArgs) -> anyhow::Result<()> {
    let rows = args.read(read::untold)?.into_iter();
    let rows = rows.map(|row| vec![json!(row.reason), json!(row.suppressed), json!(row.lost)]);
    print_listing(args.output, &["reason", "suppressed", "lost"], rows)
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
