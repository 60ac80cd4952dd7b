//! Waiting without guessing: poll until it is so, or until a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// How long the lab waits between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// Tries until `attempt` succeeds and returns what it returned; after `within`, fails with its last error.
pub fn eventually<T>(what: &str, within: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= within => {
                return Err(error).with_context(|| format!("gave up after {within:?} waiting until {what}"));
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    eventually(what, within, || {
        ensure!(condition(), "not yet");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn stops_at_the_first_success() {
        let mut attempts = 0;
        let value = eventually("the third attempt", Duration::from_secs(5), || {
            attempts += 1;
            ensure!(attempts == 3, "attempt {attempts}");
            Ok("done")
        });
        assert_eq!((value.unwrap(), attempts), ("done", 3));
    }

    #[test]
    fn says_what_it_waited_for_and_what_went_wrong_last() {
        let error =
            eventually("pigs fly", Duration::ZERO, || -> Result<()> { bail!("no wings") }).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("pigs fly") && text.contains("no wings"), "{text}");
    }
}
