//! What a device of the case's namespace receives: packets that a program has sent in again.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, setsockopt, socket,
            sockopt,
        },
        time::TimeVal,
    },
};

use crate::frames::Mac;

/// Listens on every device from when it is made.
pub struct Received {
    socket: OwnedFd,
}

impl Received {
    pub fn listen() -> Self {
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll).unwrap();
        Self { socket }
    }

    /// The next `count` frames from this sender that the device received, in order of their bytes; none may be left over.
    pub fn frames(&self, ifindex: u32, sender: Mac, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        // What a program sends in again is received before its run returns, or soon after.
        while frames.len() < count {
            frames.push(self.next(ifindex, sender, 2_000).expect("fewer frames came in than were kept"));
        }
        if let Some(frame) = self.next(ifindex, sender, 50) {
            panic!("one more frame came in: {frame:02x?}");
        }
        frames.sort();
        frames
    }

    fn next(&self, ifindex: u32, sender: Mac, milliseconds: i64) -> Option<Vec<u8>> {
        let timeout = TimeVal::new(milliseconds / 1000, milliseconds % 1000 * 1000);
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &timeout).unwrap();
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return None,
                Err(Errno::EINTR) => continue,
                Err(error) => panic!("{error}"),
            };
            let from = from.unwrap();
            let on = from.as_link_addr().unwrap().ifindex();
            // The stack at the other end of the wire says something to everybody now and then.
            let to_everybody = buffer[0] & 1 != 0;
            if on == ifindex as usize && buffer[6..12] == sender && !to_everybody {
                return Some(buffer[..length].to_vec());
            }
        }
    }
}
