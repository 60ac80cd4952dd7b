//! Running other programs: their output as text, a deadline for each, and errors that show what they said.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::netns::Netns;

/// Longer than any program of the lab runs unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a program to its end with `input` on standard input, and kills it when it does not end.
pub fn run(command: &mut Command, input: &[u8]) -> Result<Output> {
    run_within(command, input, DEADLINE)
}

/// The same for a program that may take longer or must be quicker.
pub fn run_within(command: &mut Command, input: &[u8], deadline: Duration) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", line(command)))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let stdin = child.stdin.take();
    let (done, ended) = mpsc::channel();
    thread::scope(|scope| {
        // A program that does not read its input must not stop us: it may end with the pipe full.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input)));
        scope.spawn(move || done.send(child.wait_with_output()));
        match ended.recv_timeout(deadline) {
            Ok(output) => output.with_context(|| format!("cannot wait for {}", line(command))),
            Err(_) => {
                // The waiting thread has not reaped it yet, so the process id is still this child's.
                kill(pid, Signal::SIGKILL).context("cannot kill a program that hangs")?;
                bail!("{} did not end within {deadline:?}", line(command))
            }
        }
    })
}

/// What a program that must succeed wrote to standard output.
pub fn text(command: &mut Command) -> Result<String> {
    text_within(command, DEADLINE)
}

/// The same for a program that may take longer or must be quicker.
pub fn text_within(command: &mut Command, deadline: Duration) -> Result<String> {
    let output = run_within(command, b"", deadline)?;
    if !output.status.success() {
        bail!("{} failed ({}):\n{}", line(command), output.status, said(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the lines of `script` through one `ip -batch` inside a namespace; the first that fails ends it.
pub fn ip_batch(netns: &Netns, script: &str) -> Result<()> {
    let mut command = netns.command("ip");
    command.args(["-batch", "-"]);
    let output = run(&mut command, script.as_bytes())?;
    if !output.status.success() {
        bail!("ip -batch in {} failed:\n{}script:\n{script}", netns.name(), said(&output));
    }
    Ok(())
}

/// One `ip` command line inside a namespace.
pub fn ip(netns: &Netns, arguments: &str) -> Result<String> {
    text(netns.command("ip").args(arguments.split_whitespace()))
}

/// Everything a program said, standard error last.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The command line for messages.
fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_a_success_is_returned() {
        assert_eq!(text(Command::new("echo").arg("hello")).unwrap(), "hello\n");
    }

    #[test]
    fn a_failure_tells_the_command_and_what_it_said() {
        let error =
            text(Command::new("sh").args(["-c", "echo the reason >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("the reason"), "{error}");
    }

    #[test]
    fn a_program_that_ignores_its_input_does_not_hang_the_caller() {
        let output = run(&mut Command::new("true"), &vec![0; 1 << 20]).unwrap();
        assert!(output.status.success());
    }
}
