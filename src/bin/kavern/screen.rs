//! The one place that writes to the terminal.
//!
//! Results go to stdout in one piece, so that a failed run leaves nothing half-printed there; complaints and progress
//! go to stderr, and progress only where a person looks at it.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Writes a finished text to stdout.
pub(crate) fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes one line to stderr; a closed stderr is nobody's concern.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "kavern: {text}");
}

/// A bar over `total` requests; invisible unless stderr is a terminal.
pub(crate) fn progress(total: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let template = "{bar:32} {pos}/{len} requests  {msg}  {eta} left";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
