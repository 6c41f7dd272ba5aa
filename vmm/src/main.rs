//! The `sevferry` binary: everything is in the library's `cli`.

use std::env::args_os;
use std::process::ExitCode;

fn main() -> ExitCode {
    sevferry::cli::run(args_os())
}
