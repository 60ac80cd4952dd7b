//! Which programs are attached to a device, asked from the kernel: a pin proves nothing.

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::net::if_::if_nametoindex;

use crate::netns::Netns;

/// The names of the TCX programs of a device, in the order that they run, incoming packets' first.
pub fn attached(netns: &Netns, device: &str) -> Result<Vec<String>> {
    let query = || -> Result<Vec<String>> {
        let ifindex = if_nametoindex(device)?;
        let mut names = Vec::new();
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = SchedClassifier::query_tcx(ifindex, side)?;
            names.extend(programs.iter().map(|program| program.name_as_str().unwrap_or_default().to_owned()));
        }
        Ok(names)
    };
    netns
        .enter(query)?
        .with_context(|| format!("cannot tell what is attached to {device} in {}", netns.name()))
}
