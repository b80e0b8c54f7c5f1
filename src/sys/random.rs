//! Randomness of the operating system, for keys and salts.
//!
//! What it does not: fast or repeatable numbers; tests and policies bring their own seeded generator.

use crate::error::{Error, Result};

/// Fills the bytes with randomness fit for keys. May block early in the boot of a machine.
pub fn fill(bytes: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: pointer and length are those of a live exclusive slice; the call writes at most that many bytes.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(Error::from_io("random bytes from the system", &error));
                }
            }
        }
    }
    Ok(())
}
