//! Running the programs that the tests rely on.

use std::ffi::OsStr;
use std::process::{Command, Output};

/// Runs a program to its end and returns its output.
///
/// # Panics
/// When the program is not installed.
pub fn output<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C");
    command.output().unwrap_or_else(|error| panic!("cannot run {program}, which this test needs: {error}"))
}

/// Runs a program that must succeed and returns its standard output.
///
/// # Panics
/// When it is not installed, fails, or prints something that is not UTF-8 (names in dumps are ASCII in the tests).
pub fn stdout<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let output = output(program, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed ({}): {errors}", output.status);
    String::from_utf8(output.stdout).unwrap_or_else(|_| panic!("{program} printed bytes that are not UTF-8"))
}
