//! The binary `hypha`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hypha_agent::cli::main()
}
