//! Runs one test binary: shows its output as it comes, counts its results, and ends it when it takes too long.

use std::io::{BufRead as _, BufReader, Read};
use std::ops::AddAssign;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// How tests ended.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Totals {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed, and binaries that could not say.
    pub failed: usize,
    /// Tests that were not run.
    pub skipped: usize,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs `command` and sums up the results it reports. A binary that dies, hangs or reports nothing counts as failed.
pub fn run(name: &str, command: &mut Command, limit: Duration) -> anyhow::Result<Totals> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name} ({})", command.get_program().display()))?;
    let lines = child.stdout.take().map(lines).context("a child without its output")?;
    let (mut totals, reported) = follow(name, &mut child, &lines, limit);
    let status = child.wait().with_context(|| format!("waiting for {name}"))?;
    if !reported {
        eprintln!("{name}: ended without a result ({status})");
        totals.failed += 1;
    } else if !status.success() && totals.failed == 0 {
        eprintln!("{name}: no test failed, but the binary did ({status})");
        totals.failed += 1;
    }
    Ok(totals)
}

/// Echoes lines until the child ends; the second value tells whether it reported a result.
fn follow(name: &str, child: &mut Child, lines: &Receiver<String>, limit: Duration) -> (Totals, bool) {
    let deadline = Instant::now() + limit;
    let mut totals = Totals::default();
    let mut reported = false;
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                println!("{line}");
                if let Some(result) = parse(&line) {
                    totals += result;
                    reported = true;
                }
            }
            // Something the child started may hold its output open: what counts is the child itself.
            Err(RecvTimeoutError::Timeout) if matches!(child.try_wait(), Ok(None)) => {}
            Err(_) => return (totals, reported),
        }
        if Instant::now() > deadline {
            eprintln!("{name}: still running after {} minutes: killed", limit.as_secs() / 60);
            // It may have ended by itself just now, which is as good.
            let _ = child.kill();
            totals.failed += 1;
            return (totals, true);
        }
    }
}

/// The lines of a pipe, read by a thread so that waiting for them can have an end.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The numbers of a line `test result: ok. 7 passed; 0 failed; 1 ignored; …`.
fn parse(line: &str) -> Option<Totals> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        let part = counts.split("; ").find_map(|part| part.strip_suffix(what));
        part.and_then(|number| number.trim().parse().ok())
    };
    Some(Totals { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn sums_every_result_line() {
        let result =
            "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s";
        let totals =
            run("two", &mut shell(&format!("echo '{result}'; echo '{result}'")), Duration::from_mins(1));
        assert_eq!(totals.unwrap(), Totals { passed: 14, failed: 0, skipped: 2 });
    }

    #[test]
    fn a_binary_that_says_nothing_failed() {
        let totals = run("silent", &mut shell("true"), Duration::from_mins(1)).unwrap();
        assert_eq!(totals, Totals { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_binary_that_dies_after_good_results_failed() {
        let result = "test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let totals =
            run("dying", &mut shell(&format!("echo '{result}'; exit 3")), Duration::from_mins(1)).unwrap();
        assert_eq!(totals, Totals { passed: 7, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_binary_that_hangs_is_killed_and_failed() {
        let started = Instant::now();
        let totals = run("hanging", &mut shell("exec sleep 600"), Duration::ZERO).unwrap();
        assert_eq!(totals.failed, 1);
        assert!(started.elapsed() < Duration::from_mins(1));
    }
}
