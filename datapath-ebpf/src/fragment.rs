//! Where a fragment belongs in its datagram, and what it may not do there. Pure: used by the programs, tested here.

use crate::maps::{FRAGMENT_WORDS, Fragment};

/// The largest datagram, counted from after the IP header.
const MAX_BYTES: u32 = 65_535;

/// A fragment's place, in units of eight bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The first unit.
    pub start: u16,
    /// The unit after the last; that one may be shorter than eight bytes.
    pub end: u16,
    /// No fragment follows.
    pub last: bool,
}

impl Piece {
    /// The place of `length` bytes at `start` (in bytes, a multiple of eight). `None` if no datagram can have such a fragment: it is
    /// empty, ends beyond the largest datagram, or others follow it that could not start where it ends.
    #[inline(always)]
    pub const fn new(start: u16, length: u32, last: bool) -> Option<Self> {
        let end = start as u32 + length;
        if length == 0 || end > MAX_BYTES || (!last && !length.is_multiple_of(8)) {
            return None;
        }
        Some(Self { start: start / 8, end: end.div_ceil(8) as u16, last })
    }

    /// Over how many words of [`Fragment::seen`] the fragment's units are spread.
    #[inline(always)]
    pub const fn words(&self) -> u32 {
        (self.end as u32 - 1) / 64 - self.start as u32 / 64 + 1
    }

    /// The index of one of these words, and the fragment's bits in it.
    #[inline(always)]
    pub const fn word(&self, number: u32) -> (usize, u64) {
        let (first, last) = (self.start as u32 / 64, (self.end as u32).wrapping_sub(1) / 64);
        let index = first + number;
        let mut mask = u64::MAX;
        if index == first {
            mask &= u64::MAX << (self.start % 64);
        }
        if index == last {
            mask &= u64::MAX >> (63 - (self.end.wrapping_sub(1) % 64));
        }
        (index as usize & (FRAGMENT_WORDS - 1), mask)
    }

    /// Whether the fragment disagrees with what is known about the datagram's length.
    #[inline(always)]
    pub const fn contradicts(&self, datagram: &Fragment) -> bool {
        if datagram.total == 0 {
            return self.last && self.end < datagram.end;
        }
        self.end > datagram.total || (self.last && self.end != datagram.total)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Ip;

    fn datagram(end: u16, total: u16) -> Fragment {
        Fragment {
            address: Ip::UNSPECIFIED,
            ifindex: 0,
            created: 0,
            units: 0,
            end,
            total,
            flags: 0,
            seen: [0; FRAGMENT_WORDS],
        }
    }

    #[test]
    fn what_no_datagram_can_have() {
        assert_eq!(Piece::new(8, 0, true), None, "nothing in it");
        assert_eq!(Piece::new(0, 12, false), None, "the next could not start there");
        assert_eq!(Piece::new(65_528, 8, true), None, "beyond the largest datagram");
        assert_eq!(Piece::new(65_528, 7, true), Some(Piece { start: 8191, end: 8192, last: true }));
        assert_eq!(Piece::new(0, 12, true), Some(Piece { start: 0, end: 2, last: true }));
    }

    #[test]
    fn lengths_that_disagree() {
        let piece = |start, end, last| Piece { start, end, last };
        let open = datagram(10, 0);
        assert!(!piece(10, 12, true).contradicts(&open));
        assert!(piece(6, 8, true).contradicts(&open), "ends before what was there");
        let closed = datagram(12, 12);
        assert!(!piece(10, 12, true).contradicts(&closed) && !piece(3, 5, false).contradicts(&closed));
        assert!(piece(10, 11, true).contradicts(&closed), "another end");
        assert!(piece(12, 14, false).contradicts(&closed), "beyond the end");
    }

    proptest! {
        #[test]
        fn the_masks_cover_exactly_the_units(start in 0u16..8191, length in 1u16..400, last: bool) {
            let end = (start + length).min(8192);
            let piece = Piece { start, end, last };
            let mut seen = [0u64; FRAGMENT_WORDS];
            for number in 0..piece.words() {
                let (index, mask) = piece.word(number);
                prop_assert!(mask != 0 && seen[index] == 0);
                seen[index] = mask;
            }
            for unit in 0..8192_usize {
                let covered = seen[unit / 64] >> (unit % 64) & 1 == 1;
                prop_assert_eq!(covered, (usize::from(start)..usize::from(end)).contains(&unit), "unit {}", unit);
            }
        }
    }
}
