//! Flows as an operator sees them: `hypha conntrack` and `hypha nat`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use datapath_ebpf::{
    Port,
    flow::{Class, is_echo, pool_of},
    maps::{Flow, FlowKey, MASQUERADE_PORTS, PoolKey},
    packet,
};
use serde_json::{Value, json};

use super::{maps::MapArgs, output::print_listing};
use crate::datapath::read::{self, FlowRow, PoolRow};

/// Which flows to list.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Filter {
    /// Only flows of this protocol: tcp, udp, icmp (both families'), sctp or a number
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<Protocol>,

    /// Only flows of this owner: a pod's address, or the host's
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,

    /// Only flows with this remote end
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    remote: Option<Remote>,

    /// Only flows in this state
    #[arg(long, value_name = "STATE", value_parser = clap::builder::PossibleValuesParser::new(Class::ALL.map(Class::name)))]
    state: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Number(u8),
    Icmp,
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Number(packet::TCP)),
            "udp" => Ok(Self::Number(packet::UDP)),
            "sctp" => Ok(Self::Number(packet::SCTP)),
            "icmp" => Ok(Self::Icmp),
            _ => text
                .parse()
                .map(Self::Number)
                .map_err(|_| "it must be tcp, udp, icmp, sctp or a number".to_owned()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remote {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Ok(Self { address: end.ip(), port: Some(end.port()) });
        }
        let address = text.trim_start_matches('[').trim_end_matches(']').parse();
        let address = address.map_err(|_| "it must be ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT".to_owned())?;
        Ok(Self { address, port: None })
    }
}

impl Filter {
    fn takes(&self, key: &FlowKey, flow: &Flow) -> bool {
        let protocol = |wanted: Protocol| match wanted {
            Protocol::Number(number) => key.protocol == number,
            Protocol::Icmp => is_echo(key.protocol),
        };
        let remote = |wanted: Remote| {
            IpAddr::from(key.dst) == wanted.address
                && wanted.port.is_none_or(|port| key.dst_port.get() == port)
        };
        self.protocol.is_none_or(protocol)
            && self.address.is_none_or(|address| IpAddr::from(key.src) == address)
            && self.remote.is_none_or(remote)
            && self.state.as_ref().is_none_or(|state| flow.class(key.protocol).name() == state)
    }
}

/// `hypha conntrack list`.
pub fn conntrack(filter: &Filter, args: &MapArgs) -> anyhow::Result<()> {
    let rows =
        args.read(read::flows)?.into_iter().filter(|row| filter.takes(&row.key, &row.flow)).map(|row| {
            let FlowRow { key, flow, timeout_seconds, idle_seconds } = row;
            vec![
                protocol(key.protocol),
                json!(direction(&flow)),
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
        "direction",
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

/// Who opened the flow: a pod, the world, a client of a host port, or the host itself.
const fn direction(flow: &Flow) -> &'static str {
    if flow.is_host_port() {
        "host-port"
    } else if flow.is_inbound() {
        "inbound"
    } else if flow.flags & Flow::HOST != 0 {
        "host"
    } else {
        "out"
    }
}

fn translation(flow: &Flow) -> Value {
    if flow.nat_address.is_unspecified() {
        Value::Null
    } else {
        end(IpAddr::from(flow.nat_address), flow.nat_port)
    }
}

/// `hypha nat list`.
pub fn nat(args: &MapArgs) -> anyhow::Result<()> {
    let rows = args.read(read::nat)?.into_iter().map(|(key, back)| {
        vec![
            protocol(key.protocol),
            end(IpAddr::from(key.src), key.src_port),
            end(IpAddr::from(key.dst), key.dst_port),
            end(IpAddr::from(back.address), back.port),
            json!(read::age(back.created)),
        ]
    });
    print_listing(args.output, &["protocol", "from", "to", "for", "age_s"], rows)
}

/// `hypha nat pools`.
pub fn pools(top: usize, args: &MapArgs) -> anyhow::Result<()> {
    let mut used: BTreeMap<PoolKey, (u64, Option<PoolRow>)> = BTreeMap::new();
    for (back, _) in args.read(read::nat)? {
        used.entry(pool_of(&back)).or_default().0 += 1;
    }
    for row in args.read(read::pools)? {
        used.entry(row.key).or_default().1 = Some(row);
    }
    let mut rows: Vec<_> = used.into_iter().collect();
    rows.sort_by_key(|(_, (ports, _))| std::cmp::Reverse(*ports));
    let rows = rows.into_iter().take(top).map(|(key, (ports, pool))| {
        vec![
            protocol(key.protocol),
            json!(IpAddr::from(key.nat_address)),
            end(IpAddr::from(key.remote), key.remote_port),
            json!(ports),
            json!(MASQUERADE_PORTS),
            json!(pool.as_ref().map(|pool| pool.known_taken)),
            json!(pool.map(|pool| pool.searched_seconds)),
        ]
    });
    let columns = ["protocol", "as", "remote", "used", "ports", "known_taken", "searched_s"];
    print_listing(args.output, &columns, rows)
}

pub(super) fn end(address: IpAddr, port: Port) -> Value {
    json!(SocketAddr::new(address, port.get()).to_string())
}

pub(super) fn protocol(number: u8) -> Value {
    match i32::from(number) {
        libc::IPPROTO_TCP => json!("tcp"),
        libc::IPPROTO_UDP => json!("udp"),
        libc::IPPROTO_SCTP => json!("sctp"),
        libc::IPPROTO_ICMP => json!("icmp"),
        libc::IPPROTO_ICMPV6 => json!("icmpv6"),
        _ => json!(number),
    }
}

#[cfg(test)]
mod tests {
    use datapath_ebpf::{Ip, maps::Direction};

    use super::*;

    fn sample() -> (FlowKey, Flow) {
        let key = FlowKey {
            src: Ip::from_v4([10, 244, 1, 5]),
            dst: Ip::from_v4([192, 0, 2, 1]),
            src_port: Port::new(40_000),
            dst_port: Port::new(443),
            protocol: packet::UDP,
            reserved: [0; 3],
        };
        let flow = Flow {
            created: 0,
            nat_address: Ip::from_v4([192, 0, 2, 9]),
            ifindex: 2,
            nat_port: Port::new(40_000),
            flags: 0,
            reserved: 0,
            sent: Direction { packets: 1, ..Direction::default() },
            received: Direction::default(),
        };
        (key, flow)
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn takes(line: &[&str]) -> Result<bool, String> {
        let (key, flow) = sample();
        let parsed = <Line as clap::Parser>::try_parse_from([&["list"], line].concat());
        parsed.map(|line| line.filter.takes(&key, &flow)).map_err(|error| error.to_string())
    }

    #[test]
    fn filters_take_what_they_say() {
        for (line, expected) in [
            (&[][..], true),
            (&["--protocol=udp", "--address=10.244.1.5", "--remote=192.0.2.1:443", "--state=udp-new"], true),
            (&["--protocol=17", "--remote=192.0.2.1"], true),
            (&["--protocol=tcp"], false),
            (&["--protocol=icmp"], false),
            (&["--address=10.244.1.6"], false),
            (&["--remote=192.0.2.1:444"], false),
            (&["--remote=[2001:db8::1]:443"], false),
            (&["--remote=2001:db8::1"], false),
            (&["--state=udp-stream"], false),
        ] {
            assert_eq!(takes(line), Ok(expected), "{line:?}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expected) in [
            ("--protocol=gre", "tcp, udp, icmp"),
            ("--remote=example", "ADDRESS:PORT"),
            ("--state=done", "tcp-established"),
            ("--address=10.244.1", "invalid IP address"),
        ] {
            let error = takes(&[line]).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn a_flow_is_out_inbound_through_a_host_port_or_the_hosts() {
        let (_, flow) = sample();
        assert_eq!(direction(&flow), "out");
        assert_eq!(direction(&Flow { flags: Flow::HOST, ..flow }), "host");
        assert_eq!(direction(&Flow { flags: Flow::INBOUND | Flow::HOST_PORT, ..flow }), "host-port");
        let inbound = Flow { flags: Flow::INBOUND, nat_address: Ip::UNSPECIFIED, ..flow };
        assert_eq!((direction(&inbound), translation(&inbound)), ("inbound", Value::Null));
        assert_eq!(translation(&flow), json!("192.0.2.9:40000"));
    }
}
