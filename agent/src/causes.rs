//! An error with all its causes, in one line.

use std::error::Error;

/// Many messages contain their cause already: it is not said twice.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn each_cause_is_said_once() {
        let error = anyhow!("no such file").context("cannot open x: no such file").context("cannot start");
        assert_eq!(with_causes(error.as_ref()), "cannot start: cannot open x: no such file");
    }
}
