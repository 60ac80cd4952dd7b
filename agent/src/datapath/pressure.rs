//! How long flows may be idle while the map fills up: pf's adaptive timeouts, in two steps.
//!
//! Up to [`START`] every class has its whole timeout. From there on the timeouts of flows that nobody has confirmed (a handshake that is not
//! complete, datagrams without an answer, closed connections, echoes) shrink in proportion to the room that is left: that is what a
//! flood or a scan consists of. Confirmed flows keep theirs for longer, because it is a promise to applications (RFC 5382, REQ-5): a
//! connection may be silent for two hours. Only beyond [`START_ASSURED`] they give way too, since then the choice is between
//! a connection that has been silent for long and one that could not be opened at all.

use datapath_ebpf::flow::{Class, TIMEOUTS, ticks_of_seconds};

/// The whole, in which shares of the map and of a timeout are given.
const ONE: u64 = 1024;
/// From this share of the map on, timeouts of flows that are not assured shrink.
const START: u64 = 60 * ONE / 100;
/// What is left of them when the map is full.
const FLOOR: u64 = ONE / 16;
/// From this share on, those of assured flows shrink too.
const START_ASSURED: u64 = 85 * ONE / 100;
/// What is left of them when the map is full.
const FLOOR_ASSURED: u64 = ONE / 4;

/// Seconds by class as ticks, scaled to how many of `max` flows there are.
pub fn limits(seconds: &[u32; TIMEOUTS], flows: u64, max: u32) -> [u32; TIMEOUTS] {
    let mut limits = seconds.map(ticks_of_seconds);
    for class in Class::ALL {
        let scaled = u64::from(limits[class as usize]) * factor(class, flows, max) / ONE;
        // It has become smaller.
        limits[class as usize] = scaled as u32;
    }
    limits
}

/// Whether timeouts are shorter than usual.
pub fn is_high(flows: u64, max: u32) -> bool {
    share(flows, max) > START
}

fn share(flows: u64, max: u32) -> u64 {
    (flows * ONE / u64::from(max).max(1)).min(ONE)
}

fn factor(class: Class, flows: u64, max: u32) -> u64 {
    let (start, floor) = if class.is_assured() { (START_ASSURED, FLOOR_ASSURED) } else { (START, FLOOR) };
    let above = share(flows, max).saturating_sub(start);
    ONE - above * (ONE - floor) / (ONE - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: [u32; TIMEOUTS] = [60, 7440, 30, 30, 180, 30, 600, 0];
    const MAX: u32 = 100_000;

    fn at(percent: u64, class: Class) -> u64 {
        let whole = u64::from(ticks_of_seconds(SECONDS[class as usize]));
        u64::from(limits(&SECONDS, percent * u64::from(MAX) / 100, MAX)[class as usize]) * 1000 / whole
    }

    #[test]
    fn below_the_start_nothing_shrinks() {
        for class in Class::ALL {
            for percent in [0, 30, 59] {
                assert_eq!(at(percent, class), 1000, "{class:?} {percent}");
            }
        }
        assert!(!is_high(59_000, MAX) && is_high(62_000, MAX));
    }

    #[test]
    fn what_is_not_assured_shrinks_first_and_furthest() {
        assert_eq!(at(80, Class::TcpEstablished), 1000);
        assert!((520..545).contains(&at(80, Class::TcpOpening)), "{}", at(80, Class::TcpOpening));
        assert!((61..64).contains(&at(100, Class::UdpNew)), "{}", at(100, Class::UdpNew));
        assert!((248..251).contains(&at(100, Class::UdpStream)), "{}", at(100, Class::UdpStream));
    }

    #[test]
    fn shrinking_has_no_jumps_and_an_end() {
        for class in Class::ALL {
            let all: Vec<u64> = (0..=120).map(|percent| at(percent, class)).collect();
            assert!(
                all.windows(2).all(|pair| pair[1] <= pair[0] && pair[0] - pair[1] < 60),
                "{class:?} {all:?}"
            );
            assert_eq!(all[100], all[120], "{class:?}");
            assert!(all[120] > 0);
        }
    }

    #[test]
    fn a_map_of_no_size_is_full_and_nothing_overflows() {
        assert!(is_high(1, 0));
        let longest = [u32::MAX; TIMEOUTS];
        assert_eq!(limits(&longest, 0, u32::MAX)[0], i32::MAX as u32);
    }
}
