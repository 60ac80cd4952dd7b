//! Fragmented datagrams under way: which eighths of their bytes have passed, and where they go.

use std::collections::{BTreeMap, BTreeSet};

use datapath_ebpf::{DropReason, Ip};

use super::{packet::Packet, time::Span};

/// Source, destination, identification, and in IPv4 the protocol; whether a pod sends it.
type Name = (Ip, Ip, u32, u8, bool);

/// How long the parts of a datagram belong together, in seconds.
const LIFETIME: u32 = 30;

#[derive(Default)]
pub struct Datagrams {
    under_way: BTreeMap<Name, Datagram>,
}

struct Datagram {
    /// What its address is replaced with.
    address: Ip,
    begun: Span,
    passed: BTreeSet<usize>,
    /// Known once the last fragment has come.
    length: Option<usize>,
    spoiled: bool,
}

/// A fragment with its place, in eighths.
pub struct Part {
    name: Name,
    from: usize,
    to: usize,
    last: bool,
}

impl Part {
    /// The place of a fragment; a packet that is none has none.
    pub fn of(packet: &Packet, by_pod: bool) -> Result<Option<Self>, DropReason> {
        let header = &packet.header;
        let Some(fragment) = header.fragment else { return Ok(None) };
        let length = header.end - fragment.data;
        let end = fragment.start + length;
        if length == 0 || end > 65_535 || fragment.more && !length.is_multiple_of(8) {
            return Err(DropReason::Malformed);
        }
        let protocol = if header.v4 { header.protocol } else { 0 };
        let name = (header.src, header.dst, fragment.id, protocol, by_pod);
        Ok(Some(Self { name, from: fragment.start / 8, to: end.div_ceil(8), last: !fragment.more }))
    }
}

impl Part {
    /// Whether the world sends it to a pod.
    pub fn is_for_pod(&self) -> bool {
        !self.name.4
    }
}

impl Datagrams {
    /// What the datagram's address is replaced with, if it is under way and this part of it may pass. `is_gone` says whether an
    /// address is nobody's any more.
    pub fn pass(
        &mut self,
        part: &Part,
        now: Span,
        is_gone: impl Fn(Ip) -> bool,
    ) -> Result<Option<Ip>, DropReason> {
        let Some(datagram) = self.under_way.get_mut(&part.name) else { return Ok(None) };
        let address = datagram.address;
        if datagram.begun.is_older_than(LIFETIME, now).unwrap_or(false) || is_gone(address) {
            self.under_way.remove(&part.name);
            return Ok(None);
        }
        datagram.take(part)?;
        if datagram.length == Some(datagram.passed.len()) {
            self.under_way.remove(&part.name);
        }
        Ok(Some(address))
    }

    /// Forgets those of pods that `is_there` does not know.
    pub fn keep_of(&mut self, is_there: impl Fn(Ip) -> bool) {
        self.under_way
            .retain(|&(src, .., by_pod), datagram| is_there(if by_pod { src } else { datagram.address }));
    }

    /// The first part has passed.
    pub fn begin(&mut self, part: &Part, address: Ip, now: Span) {
        let passed = (part.from..part.to).collect();
        let datagram = Datagram { address, begun: now, passed, length: None, spoiled: false };
        self.under_way.insert(part.name, datagram);
    }
}

impl Datagram {
    fn take(&mut self, part: &Part) -> Result<(), DropReason> {
        const REFUSED: Result<(), DropReason> = Err(DropReason::FragmentOverlap);
        if self.spoiled {
            return REFUSED;
        }
        let own: BTreeSet<usize> = (part.from..part.to).collect();
        let furthest = self.passed.last().map_or(0, |unit| unit + 1);
        let contradicts = match self.length {
            Some(length) => part.to > length || part.last && part.to != length,
            None => part.last && part.to < furthest,
        };
        if own.is_subset(&self.passed) && !contradicts {
            return REFUSED;
        }
        if contradicts || !own.is_disjoint(&self.passed) {
            self.spoiled = true;
            return REFUSED;
        }
        self.passed.extend(own);
        if part.last {
            self.length = Some(part.to);
        }
        Ok(())
    }
}
