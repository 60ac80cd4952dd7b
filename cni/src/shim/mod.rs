//! The CNI plugin: reads `CNI_*` variables and standard input, asks the agent, prints a result or an error.
//!
//! Everything here is synchronous and short-lived: one process for each verb on one interface.

mod config;
mod delegate;
mod environment;
mod loopback;
mod port_mappings;
mod result;
mod verbs;
mod version;

use std::io::{self, Read, Write};

use serde_json::{Value, json};

use crate::protocol::{ErrorReply, code};

use environment::{Environment, Verb};
use version::{SUPPORTED, SpecVersion};

/// Longest network configuration read, in bytes; one of GC with ten thousand attachments has about 1 MiB.
const MAX_STDIN: u64 = 16 << 20;

/// Runs one invocation and returns the process's exit code: 0, or 1 with an error object on standard output.
pub fn run() -> i32 {
    let mut version = SpecVersion::LATEST;
    let outcome = invoke(&mut version);
    let printed = match &outcome {
        Ok(None) => Ok(()),
        Ok(Some(result)) => print(result),
        Err(error) => print(&json!({
            "cniVersion": version.as_str(),
            "code": error.code,
            "msg": error.msg,
            "details": error.details,
        })),
    };
    i32::from(outcome.is_err() || printed.is_err())
}

/// One invocation; what it returns is to be printed. `version` becomes the configuration's as soon as it is known,
/// for the errors that come after.
fn invoke(version: &mut SpecVersion) -> Result<Option<Value>, ErrorReply> {
    let environment = Environment::read(|name| std::env::var_os(name))?;
    let stdin = read_stdin()?;
    if environment.verb == Verb::Version {
        return supported_versions(&stdin).map(Some);
    }
    let object = config::parse_object(&stdin)?;
    if let Ok(declared) = config::declared_version(&object).and_then(|text| SpecVersion::parse(&text)) {
        *version = declared;
    }
    if loopback::is_meant(std::env::args_os().next().as_deref()) {
        return loopback::execute(&environment, &object, *version);
    }
    let config = config::Config::read(&object, environment.verb)?;
    verbs::Invocation::new(environment, config, &stdin).execute()
}

fn read_stdin() -> Result<Vec<u8>, ErrorReply> {
    let mut stdin = Vec::new();
    let failed = |details: String| ErrorReply::new(code::IO_FAILURE, "cannot read standard input", details);
    io::stdin().lock().take(MAX_STDIN + 1).read_to_end(&mut stdin).map_err(|e| failed(e.to_string()))?;
    if stdin.len() as u64 > MAX_STDIN {
        return Err(failed(format!("the network configuration is longer than {MAX_STDIN} bytes")));
    }
    Ok(stdin)
}

/// The answer to VERSION repeats the caller's version, also one that is not supported: that is what it asks for.
fn supported_versions(stdin: &[u8]) -> Result<Value, ErrorReply> {
    let asked = if stdin.trim_ascii().is_empty() {
        SpecVersion::LATEST.as_str().to_owned()
    } else {
        config::declared_version(&config::parse_object(stdin)?)?
    };
    Ok(json!({ "cniVersion": asked, "supportedVersions": SUPPORTED.map(SpecVersion::as_str) }))
}

fn print(value: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{value}")?;
    stdout.flush()
}
