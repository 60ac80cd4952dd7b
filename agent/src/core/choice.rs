//! Whom new flows to the world appear as, and why: the kernel's choice, put into words for `hypha status`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::facts::{Facts, SourceReason, UplinkInfo};

/// How many routes that name their own source are shown of one uplink: a table from a routing protocol may have any number.
const SHOWN: usize = 32;

/// The source of new flows to some destinations by one uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The uplink's name.
    pub device: String,
    /// The destinations; all of a family stand for those that no other choice is about.
    pub destinations: IpNet,
    /// The source; `None` means that nothing gets out.
    pub source: Option<IpAddr>,
    /// Why it is that one.
    pub reason: &'static str,
}

/// The choices of every uplink: per family what holds by default, then the routes that name another source.
pub fn choices(facts: &Facts) -> Vec<Choice> {
    if !facts.masquerade {
        return Vec::new();
    }
    facts.uplinks.iter().flat_map(|uplink| of_family(uplink, true).chain(of_family(uplink, false))).collect()
}

fn of_family(uplink: &UplinkInfo, v4: bool) -> impl Iterator<Item = Choice> {
    let (source, reason) = match v4 {
        true => (uplink.masquerade_v4, uplink.reason_v4),
        false => (uplink.masquerade_v6, uplink.reason_v6),
    };
    let choice = move |destinations: IpNet, source, reason| Choice {
        device: uplink.name.clone(),
        destinations,
        source,
        reason,
    };
    let default = choice(everything(v4), source, in_words(reason));
    let others = uplink.named_sources.iter().filter(move |route| route.prefix.addr().is_ipv4() == v4);
    let others = others.filter(move |route| Some(route.source) != source).take(SHOWN);
    std::iter::once(default)
        .chain(others.map(move |route| choice(route.prefix, Some(route.source), "named by the route")))
}

fn in_words(reason: SourceReason) -> &'static str {
    match reason {
        SourceReason::Named => "named by the default route",
        SourceReason::Chosen => "the kernel's choice for the default route",
        SourceReason::First => "the device's first lasting address: no default route leads through it",
        SourceReason::Missing => "no address: packets are dropped",
    }
}

fn everything(v4: bool) -> IpNet {
    if v4 { IpNet::V4(ipnet::Ipv4Net::default()) } else { IpNet::V6(ipnet::Ipv6Net::default()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        desired::tests::{facts, ip, net},
        facts::{NamedSource, Routing},
    };

    fn lines(facts: &Facts) -> Vec<String> {
        let line = |it: Choice| {
            let source = it.source.map_or_else(|| "none".to_owned(), |source| source.to_string());
            format!("{} {} {source}: {}", it.device, it.destinations, it.reason)
        };
        choices(facts).into_iter().map(line).collect()
    }

    #[test]
    fn the_default_comes_first_and_then_routes_that_differ() {
        let mut facts = facts(Routing::Native);
        let named = |prefix, source| NamedSource { prefix: net(prefix), source: ip(source) };
        facts.uplinks[0].named_sources = vec![
            named("192.0.2.0/24", "192.0.2.1"),
            named("198.51.100.0/24", "192.0.2.9"),
            named("2001:db8:9::/64", "2001:db8::9"),
        ];
        facts.uplinks[0].reason_v4 = SourceReason::Named;
        assert_eq!(
            lines(&facts),
            [
                "eth0 0.0.0.0/0 192.0.2.1: named by the default route",
                "eth0 198.51.100.0/24 192.0.2.9: named by the route",
                "eth0 ::/0 2001:db8::1: the kernel's choice for the default route",
                "eth0 2001:db8:9::/64 2001:db8::9: named by the route",
            ]
        );
    }

    #[test]
    fn a_family_without_an_address_says_so() {
        let mut facts = facts(Routing::Native);
        (facts.uplinks[0].masquerade_v6, facts.uplinks[0].reason_v6) = (None, SourceReason::Missing);
        assert_eq!(lines(&facts)[1], "eth0 ::/0 none: no address: packets are dropped");
    }

    #[test]
    fn a_large_table_is_cut_short() {
        let mut facts = facts(Routing::Native);
        let route =
            |number: u8| NamedSource { prefix: net(&format!("10.0.{number}.0/24")), source: ip("192.0.2.9") };
        facts.uplinks[0].named_sources = (0..200).map(route).collect();
        assert_eq!(choices(&facts).len(), 2 + SHOWN);
    }

    #[test]
    fn without_masquerade_there_is_nothing_to_choose() {
        assert!(choices(&Facts { masquerade: false, ..facts(Routing::Native) }).is_empty());
    }
}
