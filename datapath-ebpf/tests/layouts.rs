//! The layouts of the maps' keys and values, as a snapshot: pinned maps outlive the agent that made them.
//!
//! When this fails, a layout changed: raise `LAYOUT` in `src/maps.rs`, accept the snapshot (`cargo insta review`), and
//! add the line that `cargo xtask tidy` asks for to `layouts`.

use std::fmt::Write as _;
use std::mem::offset_of;

use datapath_ebpf::maps::{
    Counter, Direction, Endpoint, Flow, FlowKey, Fragment, FragmentKey, Held, HostPort, HostPortKey, LAYOUT,
    Node, Pool, PoolKey, Prefix, Reverse, Route, Uplink,
};
use datapath_ebpf::{
    Ip, Mac, Port,
    event::{Event, Told},
};

/// Describes a type by offset and size of its fields, and checks that the list names them all.
macro_rules! layout {
    ($text:ident, $type:ident { $($field:ident),+ $(,)? }) => {{
        let size_of_field = |field: fn(&$type) -> usize| {
            // SAFETY: every bit pattern is a value of these types (`zerocopy::FromBytes`).
            field(&unsafe { std::mem::zeroed::<$type>() })
        };
        let mut fields = vec![$((
            offset_of!($type, $field),
            size_of_field(|value| size_of_val(&value.$field)),
            stringify!($field),
        )),+];
        fields.sort_unstable();
        writeln!($text, "{} {}", stringify!($type), size_of::<$type>()).unwrap();
        let mut end = 0;
        for (offset, size, name) in fields {
            assert_eq!(offset, end, "{}: a field before `{name}` is missing here", stringify!($type));
            end += size;
            writeln!($text, "  {offset:>3} +{size:<2} {name}").unwrap();
        }
        assert_eq!(end, size_of::<$type>(), "{}: the last fields are missing here", stringify!($type));
    }};
}

#[test]
fn layouts_are_those_of_the_version_they_claim() {
    let mut text = format!("LAYOUT {LAYOUT}\n");
    layout!(text, Ip { bytes });
    layout!(text, Mac { bytes });
    layout!(text, Port { bytes });
    layout!(text, Endpoint { ifindex, mac, flags, id });
    layout!(text, Route { next_hop, underlay_next_hop, ifindex, underlay_ifindex, mtu, kind, flags });
    layout!(text, Uplink { masquerade_v6, masquerade_v4, mtu, flags });
    layout!(text, Prefix { address, mask });
    layout!(text, Node { address_v4, address_v6, pods_v4, pods_v6, overlay_ifindex, layout });
    layout!(text, FlowKey { src, dst, src_port, dst_port, protocol, reserved });
    layout!(text, Direction { packets, bytes, last_seen, end, ack, tcp_flags, reserved });
    layout!(text, Flow { created, nat_address, ifindex, nat_port, flags, reserved, sent, received });
    layout!(text, Reverse { address, created, port, flags, reserved });
    layout!(text, HostPortKey { address, port, protocol, reserved });
    layout!(text, HostPort { address, endpoint, port, reserved });
    layout!(text, PoolKey { nat_address, remote, remote_port, protocol, reserved });
    layout!(text, Pool { last_used, reserved, taken });
    layout!(text, FragmentKey { src, dst, id, ifindex, protocol, reserved });
    layout!(text, Fragment { address, ifindex, created, units, end, total, flags, seen });
    layout!(text, Held { state, key, created, ifindex, length, frame });
    layout!(text, Counter { packets, bytes });
    layout!(
        text,
        Event {
            time,
            src,
            dst,
            ifindex,
            length,
            src_port,
            dst_port,
            ether_type,
            program,
            reason,
            protocol,
            reserved
        }
    );
    layout!(text, Told { window, used, suppressed, lost });
    insta::assert_snapshot!(text);
}
