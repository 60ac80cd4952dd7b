//! The rules that a mistake can be made in: the comparison must notice each of them.

/// What the model holds to be right. Any other value than the default's is a mistake.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Only an RST in the right place ends a connection.
    pub rst_must_be_credible: bool,
    /// A SYN on a closed connection starts anew.
    pub reopens: bool,
    /// A UDP checksum of zero stays zero.
    pub zero_udp_stays: bool,
    /// A port that a socket of the host has is not claimed.
    pub spares_sockets: bool,
    /// The transport checksum inside of an ICMP error follows the translation.
    pub quoted_sums_follow: bool,
    /// What the world sends to a pod's own address is followed.
    pub follows_inbound: bool,
    /// A wrong IPv4 header checksum is found.
    pub checks_headers: bool,
    /// Seconds that a flow may be idle, by [`State`](super::flow::State).
    pub timeouts: [u32; 7],
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            rst_must_be_credible: true,
            reopens: true,
            zero_udp_stays: true,
            spares_sockets: true,
            quoted_sums_follow: true,
            follows_inbound: true,
            checks_headers: true,
            timeouts: [60, 7440, 30, 30, 180, 30, 600],
        }
    }
}
