//! The reference plugins as a cluster's network, for comparison: bridge, host-local and portmap, and routes between nodes.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Machine;
use crate::{family::Family, shell, station::Station};

/// Makes every machine's network, once each Node object has its prefixes. Plain routes, no masquerade.
pub(super) fn install(machines: &[(&Machine, [String; 2])]) -> Result<()> {
    for (machine, cidrs) in machines {
        for (other, prefixes) in machines.iter().filter(|(other, _)| other.name() != machine.name()) {
            for (family, prefix) in Family::BOTH.into_iter().zip(prefixes) {
                let line = format!("{} route replace {prefix} via {}", family.flag(), other.address(family));
                shell::ip(machine.netns(), &line)?;
            }
        }
        // Renamed into place, so that the runtime never reads half a file.
        let (fresh, path) =
            (machine.path("/etc/cni/net.d/.fresh"), machine.path("/etc/cni/net.d/10-reference.conflist"));
        fs::write(&fresh, config(cidrs).to_string()).context("cannot write the reference configuration")?;
        fs::rename(&fresh, &path).context("cannot put the reference configuration in place")?;
    }
    Ok(())
}

fn config(cidrs: &[String; 2]) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": cidrs[0] }], [{ "subnet": cidrs[1] }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                    "dataDir": "/run/cni-ipam",
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}
