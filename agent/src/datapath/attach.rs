//! Attaching: programs on devices by TCX links, swapped atomically, verified against what the kernel reports.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use aya::programs::{
    LinkOrder, SchedClassifier,
    links::FdLink,
    tc::{SchedClassifierLink, TcAttach, TcAttachType},
};
use datapath_ebpf::Program;
use tracing::{info, warn};

use super::{Changes, DatapathError, links, load::Programs};

/// What a device is to the datapath, and with it which programs it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Host end of a pod's veth.
    Pod,
    /// Leads to other nodes and the world.
    Uplink,
    /// The VXLAN device.
    Overlay,
}

impl Role {
    /// The programs of a device in this role.
    pub const fn programs(self) -> &'static [Program] {
        match self {
            // What leaves the pod first: a pod must never send past a missing program.
            Self::Pod => &[Program::FromPod, Program::ToPod],
            Self::Uplink => &[Program::ToUplink, Program::FromUplink],
            Self::Overlay => &[Program::FromOverlay],
        }
    }
}

/// The hook of a program.
pub const fn hook(program: Program) -> TcAttachType {
    match program {
        Program::FromPod | Program::FromUplink | Program::FromOverlay => TcAttachType::Ingress,
        Program::ToPod | Program::ToUplink => TcAttachType::Egress,
    }
}

/// The loaded programs and where they are attached.
#[derive(Debug)]
pub struct Attachments {
    programs: Programs,
    directory: PathBuf,
    /// Held besides being pinned: a link lives as long as either.
    links: BTreeMap<(u32, Program), FdLink>,
}

impl Attachments {
    /// Nothing attached yet; `directory` is where links are pinned.
    pub fn new(programs: Programs, directory: PathBuf) -> Self {
        Self { programs, directory, links: BTreeMap::new() }
    }

    /// Attaches the role's programs to a device, or swaps them in where an earlier agent's are attached.
    pub fn attach(&mut self, ifindex: u32, role: Role) -> Result<Changes, DatapathError> {
        let mut changes = Changes::default();
        for &program in role.programs() {
            let attached = self.attached_here(ifindex, program)?;
            if attached && self.links.contains_key(&(ifindex, program)) {
                continue;
            }
            changes += self.attach_one(ifindex, program)?;
        }
        Ok(changes)
    }

    /// Makes the attachments of all devices equal to `wanted`.
    pub fn attach_all(&mut self, wanted: &BTreeMap<u32, Role>) -> Result<Changes, DatapathError> {
        let mut changes = Changes::default();
        for (&ifindex, &role) in wanted {
            match self.attach(ifindex, role) {
                Ok(attached) => changes += attached,
                // It went away since `wanted` was put together; the next pass will know.
                Err(error) if !device_exists(ifindex) => {
                    warn!(ifindex, %error, "device vanished while programs were attached");
                }
                Err(error) => return Err(error),
            }
        }
        changes.removed += self.detach_unwanted(wanted)?;
        Ok(changes)
    }

    /// Whether every link this process holds is still pinned.
    pub fn pins_intact(&self) -> bool {
        self.links.keys().all(|&(ifindex, program)| links::pin_of(&self.directory, program, ifindex).exists())
    }

    /// Pins every held link again.
    pub fn repin(&mut self) -> Result<(), DatapathError> {
        for ((ifindex, program), link) in std::mem::take(&mut self.links) {
            let pin = links::pin_of(&self.directory, program, ifindex);
            let link = if pin.exists() { link } else { links::pin(link, &pin)? };
            self.links.insert((ifindex, program), link);
        }
        Ok(())
    }

    /// One of the loaded programs.
    pub fn program(&mut self, which: Program) -> Result<&mut SchedClassifier, DatapathError> {
        let missing = DatapathError::Missing { kind: "program", name: which.name() };
        self.programs.iter_mut().find(|(program, _)| *program == which).map(|(_, p)| p).ok_or(missing)
    }

    /// Whether the kernel reports our program on the device's hook.
    fn attached_here(&mut self, ifindex: u32, which: Program) -> Result<bool, DatapathError> {
        let failed = DatapathError::program(which.name(), ifindex);
        let ours = self.program(which)?.info().map_err(&failed)?.id();
        let (_, attached) = SchedClassifier::query_tcx(ifindex, hook(which)).map_err(&failed)?;
        Ok(attached.iter().any(|program| program.id() == ours))
    }

    /// Swaps our program into the link that is pinned for the device, or attaches it by a new link.
    fn attach_one(&mut self, ifindex: u32, which: Program) -> Result<Changes, DatapathError> {
        let pin = links::pin_of(&self.directory, which, ifindex);
        self.links.remove(&(ifindex, which));
        if let Some(link) = links::open(&pin)
            && let Some(link) = self.swap(link, ifindex, which)?
        {
            self.links.insert((ifindex, which), link);
            return Ok(Changes { updated: 1, ..Changes::default() });
        }
        let link = self.attach_new(ifindex, which)?;
        self.links.insert((ifindex, which), links::pin(link, &pin)?);
        Ok(Changes { added: 1, ..Changes::default() })
    }

    /// `None` when the link leads nowhere: its device is gone, or someone detached it.
    fn swap(&mut self, link: FdLink, ifindex: u32, which: Program) -> Result<Option<FdLink>, DatapathError> {
        let failed = DatapathError::program(which.name(), ifindex);
        let Ok(link) = SchedClassifierLink::try_from(link) else { return Ok(None) };
        let program = self.program(which)?;
        let Ok(id) = program.attach_to_link(link) else { return Ok(None) };
        let link = program.take_link(id).map_err(&failed)?;
        if !self.attached_here(ifindex, which)? {
            return Ok(None);
        }
        FdLink::try_from(link).map(Some).map_err(|error| failed(error.into()))
    }

    fn attach_new(&mut self, ifindex: u32, which: Program) -> Result<FdLink, DatapathError> {
        let failed = DatapathError::program(which.name(), ifindex);
        let program = self.program(which)?;
        let order = LinkOrder::default();
        let id =
            program.attach(ifindex, TcAttach::Tcx { attach_type: hook(which), order }).map_err(&failed)?;
        let link = program.take_link(id).map_err(&failed)?;
        FdLink::try_from(link).map_err(|error| failed(error.into()))
    }

    /// Detaches from devices that are no longer wanted and forgets those that are gone.
    fn detach_unwanted(&mut self, wanted: &BTreeMap<u32, Role>) -> Result<usize, DatapathError> {
        let is_wanted = |ifindex: u32, program: Program| {
            wanted.get(&ifindex).is_some_and(|role| role.programs().contains(&program))
        };
        let held = self.links.keys().map(|&(ifindex, program)| (program, ifindex));
        let known: BTreeSet<_> = held.chain(links::pinned(&self.directory)?).collect();
        let mut removed = 0;
        for (program, ifindex) in known {
            if is_wanted(ifindex, program) {
                continue;
            }
            // The pin first: closing the last handle on an unpinned link is what detaches.
            links::remove(&links::pin_of(&self.directory, program, ifindex))?;
            self.links.remove(&(ifindex, program));
            // Of a device that is gone only the pin was left.
            if device_exists(ifindex) {
                info!(program = program.name(), ifindex, "detached");
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn device_exists(ifindex: u32) -> bool {
    // nix 0.31 takes the C library's null for success: a device that is not there has an empty name.
    nix::net::if_::if_indextoname(ifindex).is_ok_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_exists_or_not() {
        assert!(device_exists(1), "the loopback device is always the first");
        assert!(!device_exists(u32::MAX));
    }
}
