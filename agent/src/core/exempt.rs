//! Exempt prefixes as the maps can hold them.
//!
//! One trie serves both families, IPv4 in its mapped form below `::ffff:0:0/96`. A prefix of IPv6 that contains those,
//! `::/0` before all, would be found for IPv4 destinations, too: it is taken apart into the pieces beside them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

/// Where IPv4 addresses are among those of IPv6.
const MAPPED: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
const MAPPED_LENGTH: u8 = 96;

/// The prefixes, none of which contains addresses of the other family, that together are `cidr`.
pub fn pieces(cidr: IpNet) -> Vec<IpNet> {
    match cidr.trunc() {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_LENGTH && v6.addr().to_ipv4_mapped().is_some() => {
            as_v4(v6).into_iter().collect()
        }
        IpNet::V6(v6) if v6.contains(&MAPPED) => beside_v4(v6),
        other => vec![other],
    }
}

/// Somebody has written IPv4 addresses in their mapped form.
fn as_v4(mapped: Ipv6Net) -> Option<IpNet> {
    let v4 = mapped.addr().to_ipv4_mapped()?;
    IpNet::new(IpAddr::V4(v4), mapped.prefix_len() - MAPPED_LENGTH).ok()
}

/// For every bit more on the way down to the IPv4 addresses, the half that turns away from them.
fn beside_v4(v6: Ipv6Net) -> Vec<IpNet> {
    let away = |length: u8| {
        let turned = MAPPED.to_bits() ^ (1 << (128 - u32::from(length)));
        Ipv6Net::new(turned.into(), length).ok().map(|half| IpNet::V6(half.trunc()))
    };
    (v6.prefix_len() + 1..=MAPPED_LENGTH).filter_map(away).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        pieces(text.parse().unwrap()).iter().map(ToString::to_string).collect()
    }

    fn covered(text: &str, address: &str) -> bool {
        let address: Ipv6Addr = address.parse().unwrap();
        pieces(text.parse().unwrap()).iter().any(|piece| piece.contains(&IpAddr::V6(address)))
    }

    #[test]
    fn what_holds_one_family_stays_whole() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "fd00::/8", "2000::/3", "64:ff9b::/96", "::1/128"] {
            assert_eq!(of(text), [text]);
        }
        assert_eq!(of("10.1.2.3/8"), ["10.0.0.0/8"]);
    }

    #[test]
    fn all_of_ipv6_is_everything_but_ipv4() {
        assert_eq!(pieces("::/0".parse().unwrap()).len(), 96);
        for address in [
            "2001:db8::1",
            "fd00::1",
            "fe80::1",
            "ff02::1",
            "64:ff9b::1",
            "::1",
            "::",
            "::fffe:1:2",
            "::1:0:0:0",
        ] {
            assert!(covered("::/0", address), "{address}");
        }
        for address in ["::ffff:0.0.0.0", "::ffff:10.0.0.1", "::ffff:255.255.255.255"] {
            assert!(!covered("::/0", address), "{address}");
            assert!(!covered("::/64", address), "{address}");
        }
        assert!(covered("::/64", "::1") && !covered("::/64", "2001:db8::1"));
    }

    #[test]
    fn the_mapped_form_means_ipv4() {
        assert_eq!(of("::ffff:10.0.0.0/104"), ["10.0.0.0/8"]);
        assert_eq!(of("::ffff:0:0/96"), ["0.0.0.0/0"]);
    }
}
