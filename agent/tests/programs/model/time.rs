//! When something happened: never known exactly, always between two readings of the clock.
//!
//! The model's clock runs ahead of the kernel's by all the time that a sequence has jumped, see
//! [`Bench::jump`](super::bench::Bench::jump).

use nix::time::{ClockId, clock_gettime};

/// Binary logarithm of the nanoseconds in a tick of the maps.
const TICK_SHIFT: u32 = 20;

/// Seconds in whole ticks.
pub fn ticks(seconds: f64) -> i64 {
    (seconds * 1e9) as i64 >> TICK_SHIFT
}

/// Ticks in nanoseconds.
pub fn nanoseconds(ticks: i64) -> i64 {
    ticks << TICK_SHIFT
}

/// Some moment from the first to the second of these, in nanoseconds of the model's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    pub from: i64,
    pub to: i64,
}

/// Something done between two readings of the clock, which has jumped by `ahead` nanoseconds so far.
pub fn during<T>(ahead: i64, act: impl FnOnce() -> T) -> (Span, T) {
    // Programs may read the coarse clock, which lags behind the fine one by up to a timer interrupt.
    let from = read(ClockId::CLOCK_MONOTONIC_COARSE) + ahead;
    let result = act();
    (Span { from, to: read(ClockId::CLOCK_MONOTONIC) + ahead }, result)
}

fn read(clock: ClockId) -> i64 {
    let time = clock_gettime(clock).unwrap();
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}

impl Span {
    /// Whether a map's ticks, written by the kernel's clock, lie within.
    pub fn holds_ticks(self, ticks: u32, ahead: i64) -> bool {
        let at = |moment: i64| ((moment - ahead) >> TICK_SHIFT) as u32;
        ticks.wrapping_sub(at(self.from)) <= at(self.to).wrapping_sub(at(self.from))
    }

    /// Whether a map's nanoseconds, written by the kernel's clock, lie within.
    pub fn holds_nanoseconds(self, nanoseconds: u64, ahead: i64) -> bool {
        let at = |moment: i64| (moment - ahead).cast_unsigned();
        nanoseconds.wrapping_sub(at(self.from)) <= at(self.to).wrapping_sub(at(self.from))
    }

    /// Whether more than `limit` seconds lie between the moment and `now`; `None` when that depends on where exactly in their
    /// spans the two are.
    pub fn is_older_than(self, limit: u32, now: Self) -> Option<bool> {
        let limit = i64::from(limit) * 1_000_000_000;
        let tick = 1 << TICK_SHIFT;
        if now.from - self.to > limit + tick {
            Some(true)
        } else if now.to - self.from <= limit - tick {
            Some(false)
        } else {
            None
        }
    }
}
