//! Why a verb ended early, and the exit code that says so.
//!
//! Exit codes are an interface for scripts: 1 means that the run itself failed (wrong bytes, a refused call),
//! 2 that the input cannot be used. A reader that closes our pipe is no failure worth a word.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// What ends a verb early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments or the trace cannot be used.
    Input(String),
    /// The run started and went wrong.
    Run(String),
    /// Nobody reads our output any more.
    Quiet,
}

/// A file of results that an option names and that cannot be written.
pub(crate) fn unwritable(option: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::Input(format!("{option} {}: {error}; expected a file that can be written", path.display()))
}

impl Failure {
    /// 1, 2, or what a shell reports for a program that died of SIGPIPE.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Input(_) => ExitCode::from(2),
            Failure::Run(_) => ExitCode::from(1),
            Failure::Quiet => ExitCode::from(128 + 13),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Input(text) | Failure::Run(text) => f.write_str(text),
            Failure::Quiet => Ok(()),
        }
    }
}

/// A failed write to the screen.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Quiet,
            _ => Failure::Run(format!("cannot write the result: {error}")),
        }
    }
}
