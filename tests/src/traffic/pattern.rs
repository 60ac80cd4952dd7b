//! Bytes that tell when they are missing, repeated, swapped or changed.

/// A prime, so that no packet or buffer size divides the period and shifted data never looks right.
const PERIOD: usize = 1_048_583;

/// An endless sequence of pseudo-random bytes with a long period.
#[derive(Debug)]
pub struct Pattern {
    /// Two periods, so that any window of one period is contiguous.
    bytes: Vec<u8>,
}

impl Default for Pattern {
    fn default() -> Self {
        Self::new()
    }
}

impl Pattern {
    /// The largest window that [`Self::at`] returns.
    pub const WINDOW: usize = PERIOD;

    /// The one sequence that every sender and receiver uses.
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            // xorshift64: short, and good enough to look different at every offset.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        let mut bytes: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
        bytes.extend_from_within(..);
        Self { bytes }
    }

    /// `len` bytes (at most [`Self::WINDOW`]) from an offset in the sequence.
    pub fn at(&self, offset: u64, len: usize) -> &[u8] {
        let start = usize::try_from(offset % PERIOD as u64).unwrap_or_default();
        &self.bytes[start..start + len.min(PERIOD)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_continues_where_the_one_before_ended() {
        let pattern = Pattern::new();
        let offset = PERIOD as u64 - 10;
        let whole = pattern.at(offset, 100);
        assert_eq!(&whole[..40], pattern.at(offset, 40));
        assert_eq!(&whole[40..], pattern.at(offset + 40, 60));
    }

    #[test]
    fn shifted_data_differs() {
        let pattern = Pattern::new();
        for shift in [1_u64, 8, 1448, 1500, 4096, 65_536] {
            assert_ne!(pattern.at(0, 64), pattern.at(shift, 64), "shift {shift}");
        }
    }
}
