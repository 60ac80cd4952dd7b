//! Anything in the lab that sends and receives: a pod, a node, the gateway, the world.

use std::net::IpAddr;

use anyhow::Result;

use crate::{family::Family, netns::Netns, traffic::tools};

/// A place with a network stack and an address of each family.
pub trait Station: Send + Sync {
    /// Its name in messages and tables.
    fn name(&self) -> &str;

    /// Where its sockets live.
    fn netns(&self) -> &Netns;

    /// The address that others reach it by.
    fn address(&self, family: Family) -> IpAddr;

    /// Its IPv4 address.
    fn v4(&self) -> IpAddr {
        self.address(Family::V4)
    }

    /// Its IPv6 address.
    fn v6(&self) -> IpAddr {
        self.address(Family::V6)
    }

    /// Three echo requests by the real `ping`; all must be answered.
    fn ping(&self, to: IpAddr) -> Result<tools::PingReport> {
        tools::ping(self.netns(), to, 3)
    }
}
