//! Durations as operators write them, in the notation of Kubernetes: `90s`, `2h`, `1m30s`, `1.5h`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: write a number with a unit, such as 90s, 2h or 1m30s")]
pub struct DurationError {
    text: String,
}

/// Units and their nanoseconds. A unit comes before any that it starts with.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads one duration. Negative ones and bare numbers are none, but for `0`.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    total(text.trim()).ok_or_else(|| DurationError { text: text.to_owned() })
}

fn total(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    loop {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, unit) = rest.split_at(digits);
        let (name, nanoseconds) = UNITS.into_iter().find(|(name, _)| unit.starts_with(name))?;
        total = total.checked_add(scaled(number, nanoseconds)?)?;
        rest = &unit[name.len()..];
        if rest.is_empty() {
            return Some(total);
        }
    }
}

/// A decimal number of units. What is left below a nanosecond is cut off.
fn scaled(number: &str, unit: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let mut nanoseconds = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.chars() {
        place /= 10;
        nanoseconds = nanoseconds.checked_add(u64::from(digit.to_digit(10)?) * place)?;
    }
    Some(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notations_of_kubernetes_are_read() {
        for (text, seconds) in [
            ("90s", 90.0),
            ("2h", 7200.0),
            ("2h4m", 7440.0),
            ("1m30s", 90.0),
            ("1h0m0s", 3600.0),
            ("1.5h", 5400.0),
            (".5s", 0.5),
            ("250ms", 0.25),
            ("1500us", 0.0015),
            ("1500\u{b5}s", 0.0015),
            ("0", 0.0),
            ("0s", 0.0),
            (" 60s ", 60.0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            ["", "60", "s", ".s", "-5s", "1 h", "1d", "5s3", "1..5s", "1.2.3s", "h1", "99999999999999h"]
        {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains("1m30s"), "{text}: {error}");
        }
    }
}
