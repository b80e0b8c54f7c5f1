//! The driver's codes: their names, what they mean for a caller, which of them are the end of a context.
//!
//! What it does not: ask the driver for a name. Invariant: a code that is not in the table still has a text.

use crate::error::{Error, Status};

/// What a driver call answers.
pub(super) type Code = u32;

pub(super) const SUCCESS: Code = 0;
pub(super) const OUT_OF_MEMORY: Code = 2;
pub(super) const NO_DEVICE: Code = 100;
pub(super) const NOT_READY: Code = 600;
pub(super) const PEER_ACCESS_ALREADY_ENABLED: Code = 704;
pub(super) const CAPTURE_IMPLICIT: Code = 906;

/// After these every later call of the process on that GPU fails.
const STICKY: &[Code] = &[46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721];

#[rustfmt::skip]
const NAMES: &[(Code, &str, Status)] = &[
    (1, "INVALID_VALUE", Status::Device),
    (2, "OUT_OF_MEMORY", Status::OutOfMemory),
    (3, "NOT_INITIALIZED", Status::Device),
    (4, "DEINITIALIZED", Status::Device),
    (34, "STUB_LIBRARY", Status::NoDevice),
    (46, "DEVICE_UNAVAILABLE", Status::DeviceLost),
    (100, "NO_DEVICE", Status::NoDevice),
    (101, "INVALID_DEVICE", Status::NoDevice),
    (200, "INVALID_IMAGE", Status::Device),
    (201, "INVALID_CONTEXT", Status::Device),
    (205, "MAP_FAILED", Status::Device),
    (206, "UNMAP_FAILED", Status::Device),
    (209, "NO_BINARY_FOR_GPU", Status::Unsupported),
    (214, "ECC_UNCORRECTABLE", Status::DeviceLost),
    (217, "PEER_ACCESS_UNSUPPORTED", Status::Unsupported),
    (218, "INVALID_PTX", Status::Device),
    (220, "NVLINK_UNCORRECTABLE", Status::DeviceLost),
    (221, "JIT_COMPILER_NOT_FOUND", Status::Unsupported),
    (222, "UNSUPPORTED_PTX_VERSION", Status::Unsupported),
    (226, "CONTAINED", Status::DeviceLost),
    (304, "OPERATING_SYSTEM", Status::Os),
    (400, "INVALID_HANDLE", Status::InvalidArgument),
    (401, "ILLEGAL_STATE", Status::WrongState),
    (500, "NOT_FOUND", Status::NotFound),
    (600, "NOT_READY", Status::Pending),
    (700, "ILLEGAL_ADDRESS", Status::DeviceLost),
    (701, "LAUNCH_OUT_OF_RESOURCES", Status::Device),
    (702, "LAUNCH_TIMEOUT", Status::DeviceLost),
    (704, "PEER_ACCESS_ALREADY_ENABLED", Status::AlreadyExists),
    (705, "PEER_ACCESS_NOT_ENABLED", Status::Device),
    (709, "CONTEXT_IS_DESTROYED", Status::DeviceLost),
    (710, "ASSERT", Status::DeviceLost),
    (711, "TOO_MANY_PEERS", Status::LimitReached),
    (712, "HOST_MEMORY_ALREADY_REGISTERED", Status::AlreadyExists),
    (713, "HOST_MEMORY_NOT_REGISTERED", Status::InvalidArgument),
    (714, "HARDWARE_STACK_ERROR", Status::DeviceLost),
    (715, "ILLEGAL_INSTRUCTION", Status::DeviceLost),
    (716, "MISALIGNED_ADDRESS", Status::DeviceLost),
    (717, "INVALID_ADDRESS_SPACE", Status::DeviceLost),
    (718, "INVALID_PC", Status::DeviceLost),
    (719, "LAUNCH_FAILED", Status::DeviceLost),
    (721, "TENSOR_MEMORY_LEAK", Status::DeviceLost),
    (800, "NOT_PERMITTED", Status::Device),
    (801, "NOT_SUPPORTED", Status::Unsupported),
    (802, "SYSTEM_NOT_READY", Status::Device),
    (803, "SYSTEM_DRIVER_MISMATCH", Status::Device),
    (900, "STREAM_CAPTURE_UNSUPPORTED", Status::WrongState),
    (901, "STREAM_CAPTURE_INVALIDATED", Status::WrongState),
    (904, "STREAM_CAPTURE_UNJOINED", Status::WrongState),
    (905, "STREAM_CAPTURE_ISOLATION", Status::WrongState),
    (906, "STREAM_CAPTURE_IMPLICIT", Status::WrongState),
    (907, "CAPTURED_EVENT", Status::WrongState),
    (908, "STREAM_CAPTURE_WRONG_THREAD", Status::WrongState),
    (999, "UNKNOWN", Status::Device),
];

/// Whether the context is at its end.
pub(super) fn is_sticky(code: Code) -> bool {
    STICKY.contains(&code)
}

/// The code for people.
pub(super) fn text(call: &str, code: Code) -> String {
    match NAMES.iter().find(|entry| entry.0 == code) {
        Some((_, name, _)) => format!("{call} answered CUDA_ERROR_{name} ({code})"),
        None => format!("{call} answered the CUDA error {code}"),
    }
}

/// The code as an error.
pub(super) fn error(call: &str, code: Code) -> Error {
    let status = NAMES.iter().find(|entry| entry.0 == code).map_or(Status::Device, |entry| entry.2);
    Error::new(status, text(call, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sticky_codes_have_names_and_mean_a_lost_device_and_no_other_does() {
        for &(code, name, status) in NAMES {
            assert_eq!(is_sticky(code), status == Status::DeviceLost, "{name}");
        }
        assert!(STICKY.iter().all(|&code| error("x", code).status == Status::DeviceLost));
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0), "in order, none twice");
        assert_eq!(text("cuX", 12345), "cuX answered the CUDA error 12345");
    }
}
