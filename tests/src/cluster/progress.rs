//! What a person is told while something takes longer than a second.

/// Takes one line about what is being done now. Whoever shows it decides how: a line that changes on a terminal, lines
/// that follow each other elsewhere.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

/// Lines on standard error: what tests say, whose output nobody watches on a terminal.
pub fn to_stderr(step: &str) {
    eprintln!("{step}");
}
