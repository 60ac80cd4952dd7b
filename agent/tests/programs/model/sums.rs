//! Internet checksums by the book (RFC 1071), on whole slices and without any cleverness.

/// The ones' complement sum of big-endian words modulo 65,535; an odd last byte is padded with zero.
pub fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    words.sum::<u64>() % 0xffff
}

/// The checksum field that makes bytes with this sum right.
pub fn field(sum: u64) -> u16 {
    // A sum is never plus zero, because no packet is all zeros: the field is never all ones.
    let sum = if sum.is_multiple_of(0xffff) { 0xffff } else { sum % 0xffff };
    !(sum as u16)
}

/// The field after `old` bytes under it have become `new`: as right as it was before, or as wrong.
pub fn follow(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    field(u64::from(!checksum) + 0xffff - sum(old) + sum(new))
}

/// The sum of what a transport checksum covers beside the transport packet itself.
pub fn pseudo_header(src: &[u8], dst: &[u8], protocol: u8, length: usize) -> u64 {
    sum(src) + sum(dst) + u64::from(protocol) + (length as u64 & 0xffff) + (length as u64 >> 16)
}

/// Reads a field of a frame.
pub fn word(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// Writes a field of a frame.
pub fn set_word(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
