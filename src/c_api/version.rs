//! Versions, features, names and texts of errors: the functions that work everywhere, even in a forked child.
//!
//! What it does not: fail in a way that changes the last error. Invariant: nothing here opens a device or starts a
//! thread.

use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

use super::guard;
use super::text;
use super::types::kavern_status;

/// Major and minor number of the ABI; the major one is that of the soname.
const ABI: (u32, u32) = (0, 1);

const BACKENDS: &str = if cfg!(feature = "cuda") { "host cuda" } else { "host" };

/// What [`kavern_has_feature`] knows.
const FEATURES: &[(&str, bool)] = &[
    ("host", true),
    ("cuda", cfg!(feature = "cuda")),
    ("streams", true),
    ("tickets", true),
    ("report", true),
    ("log", true),
    ("kv", true),
    ("pool", true),
    ("pinned", true),
    ("kv-events", true),
];

/// Version of the ABI that the loaded library serves: major << 16 | minor.
///
/// Compare with KAVERN_ABI_VERSION of the header: the major numbers must be equal, the library's minor number at least
/// the header's.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn kavern_abi_version() -> u32 {
    ABI.0 << 16 | ABI.1
}

/// Version of the library, for example "0.1.0".
///
/// Owner: static text, never free it.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn kavern_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// One line about the build, for reports of faults: version, ABI, backends, target, profile.
///
/// Owner: static text, never free it.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn kavern_build_info() -> *const c_char {
    static INFO: OnceLock<CString> = OnceLock::new();
    let make = || {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let (version, arch, os) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS);
        let text =
            format!("kavern {version}; abi {}.{}; backends {BACKENDS}; {arch} {os}; {profile}", ABI.0, ABI.1);
        CString::new(text).unwrap_or_default()
    };
    INFO.get_or_init(make).as_ptr()
}

/// 1 if this build has the feature, 0 if not or if nobody knows the name.
///
/// Names: "host", "cuda" (backends; a device need not be there), "streams", "tickets", "report", "log", "kv",
/// "kv-events", "pool", "pinned".
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_has_feature(name: *const c_char) -> u32 {
    // SAFETY: the header asks for a text or null.
    let Ok(name) = (unsafe { text::read(name, "name") }) else { return 0 };
    u32::from(FEATURES.iter().any(|&(feature, is_there)| is_there && feature == name))
}

/// Copies the text of this thread's latest failure: function, what was asked, what was there, what to do.
///
/// Success never clears it; it is empty before the first failure. `needed` (may be null) receives the size with the
/// terminating zero; `buf` null with `cap` 0 asks for that size alone.
/// Units: bytes; at most 1024 are needed.
/// Errors: KAVERN_ERR_BUFFER_TOO_SMALL with `needed` set and `buf` untouched; KAVERN_ERR_NULL_POINTER. A failure here
/// does not change the text.
/// Threads: each thread has its own text. Works in a forked child.
/// Since: 0.1
///
/// # Safety
/// `buf` must be null or point to `cap` writable bytes, `needed` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_last_error(
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> kavern_status {
    guard::with_last_error(|text| {
        // SAFETY: the header asks for what the doc above says.
        let result = unsafe { text::write(text, buf, cap, needed) };
        result.unwrap_or_else(|error| error.status) as kavern_status
    })
}

/// Name of a status, for example "KAVERN_ERR_NULL_POINTER"; "unknown" for a number that is none.
///
/// Owner: static text, never free it.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn kavern_status_name(status: kavern_status) -> *const c_char {
    status_name(status).as_ptr()
}

fn status_name(status: kavern_status) -> &'static CStr {
    match status {
        0 => c"KAVERN_OK",
        1 => c"KAVERN_PARTIAL",
        2 => c"KAVERN_PENDING",
        -1 => c"KAVERN_ERR_INVALID_ARGUMENT",
        -2 => c"KAVERN_ERR_NULL_POINTER",
        -3 => c"KAVERN_ERR_INVALID_HANDLE",
        -4 => c"KAVERN_ERR_STALE_ID",
        -5 => c"KAVERN_ERR_STRUCT_SIZE",
        -6 => c"KAVERN_ERR_UNSUPPORTED",
        -7 => c"KAVERN_ERR_DEPENDENCY",
        -8 => c"KAVERN_ERR_WRONG_STATE",
        -9 => c"KAVERN_ERR_BUFFER_TOO_SMALL",
        -10 => c"KAVERN_ERR_KEY_MODE",
        -11 => c"KAVERN_ERR_IN_USE",
        -12 => c"KAVERN_ERR_ALREADY_EXISTS",
        -13 => c"KAVERN_ERR_NOT_FOUND",
        -100 => c"KAVERN_ERR_OUT_OF_MEMORY",
        -101 => c"KAVERN_ERR_OUT_OF_BLOCKS",
        -102 => c"KAVERN_ERR_LIMIT_REACHED",
        -103 => c"KAVERN_ERR_TOO_MANY_STEPS",
        -104 => c"KAVERN_ERR_OUT_OF_HOST_MEMORY",
        -200 => c"KAVERN_ERR_NO_DEVICE",
        -201 => c"KAVERN_ERR_DEVICE",
        -202 => c"KAVERN_ERR_DEVICE_LOST",
        -203 => c"KAVERN_ERR_OS",
        -204 => c"KAVERN_ERR_FORKED",
        -300 => c"KAVERN_ERR_PANIC",
        -301 => c"KAVERN_ERR_POISONED",
        -302 => c"KAVERN_ERR_INTERNAL",
        _ => c"unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::c_api::types::STATUSES;

    #[test]
    fn numbers_and_names_of_statuses_are_the_same_everywhere() {
        for &(code, status) in STATUSES {
            assert_eq!(code as i32, status as i32, "{code:?}");
            assert_eq!(status_name(code as i32).to_str().unwrap(), format!("{code:?}"));
        }
        let named = (-400..10).filter(|&number| status_name(number) != c"unknown").count();
        assert_eq!(named, STATUSES.len());
    }
}
