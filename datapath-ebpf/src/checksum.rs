//! Internet checksum arithmetic (RFC 1071, RFC 1624): what the programs add up, checked against full recomputation.

/// Folds a 32-bit one's-complement sum to 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field after one 16-bit word changed from `old` to `new` (RFC 1624, equation 3). All three in the
/// same byte order, whichever it is.
#[inline(always)]
pub const fn replace(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum) as u32 + (!old) as u32 + new as u32)
}

/// Adds 16-bit words, in whatever byte order they come, to a one's-complement sum.
#[inline(always)]
pub fn add_words(sum: u32, words: impl IntoIterator<Item = u16>) -> u32 {
    words.into_iter().fold(sum, |sum, word| sum + word as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The plain definition: one's complement of the one's-complement sum of all words.
    fn full(words: &[u16]) -> u16 {
        let mut sum = 0u64;
        for &word in words {
            sum += u64::from(word);
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    /// 0x0000 and 0xffff are the same number in one's complement.
    fn canonical(checksum: u16) -> u16 {
        if checksum == 0xffff { 0 } else { checksum }
    }

    proptest! {
        #[test]
        fn replacing_a_word_equals_summing_everything_again(
            mut words in prop::collection::vec(any::<u16>(), 1..40), at in any::<prop::sample::Index>(), new in any::<u16>(),
        ) {
            let at = at.index(words.len());
            let before = full(&words);
            let old = std::mem::replace(&mut words[at], new);
            prop_assert_eq!(canonical(replace(before, old, new)), canonical(full(&words)));
        }

        #[test]
        fn adding_words_and_folding_is_the_full_sum(words in prop::collection::vec(any::<u16>(), 0..700)) {
            prop_assert_eq!(!fold(add_words(0, words.iter().copied())), full(&words));
        }
    }
}
