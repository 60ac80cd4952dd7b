//! Transport headers as they lie in a packet.

use crate::Port;

/// A TCP header without options.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// Sequence number, network order.
    pub seq: u32,
    /// Acknowledgement, network order.
    pub ack: u32,
    /// Header length in words in the upper four bits.
    pub data_offset: u8,
    /// The flags.
    pub flags: u8,
    /// Receive window, network order.
    pub window: u16,
    /// Checksum, network order.
    pub checksum: u16,
    /// Urgent pointer, network order.
    pub urgent: u16,
}

/// A UDP header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Udp {
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// Length of header and payload, network order.
    pub length: u16,
    /// Checksum, network order; 0 for none.
    pub checksum: u16,
}

const _: () = assert!(size_of::<Tcp>() == 20);
const _: () = assert!(size_of::<Udp>() == 8);
