//! Names of devices.

use kavern::device::registry::{self, BACKENDS};
use kavern::error::Status;

use super::support::refused;

#[test]
fn a_spec_that_is_wrong_says_what_is_known() {
    for (spec, status, text) in [
        ("", Status::InvalidArgument, "host"),
        ("gpu", Status::InvalidArgument, "host"),
        ("host:", Status::InvalidArgument, "ordinal"),
        ("host:x", Status::InvalidArgument, "ordinal"),
        ("host:-1", Status::InvalidArgument, "ordinal"),
        ("host:+1", Status::InvalidArgument, "ordinal"),
        ("host:99999999999", Status::InvalidArgument, "ordinal"),
        ("host:8", Status::NoDevice, "8"),
        ("host?", Status::InvalidArgument, "key=value"),
        ("host?memory", Status::InvalidArgument, "key=value"),
        ("host?memory=1", Status::InvalidArgument, "memory_bytes"),
        ("host?memory_bytes=1&memory_bytes=2", Status::InvalidArgument, "twice"),
        ("host?memory_bytes=lots", Status::InvalidArgument, "whole number"),
        ("host?page_bytes=1000", Status::InvalidArgument, "power of two"),
        ("host?page_bytes=2048", Status::InvalidArgument, "power of two"),
        ("host?fail_rate=2", Status::InvalidArgument, "fail_rate"),
        ("host?fail_from=0", Status::InvalidArgument, "from 1"),
        ("host?kind=tea", Status::InvalidArgument, "pinned"),
        ("host?error=tea", Status::InvalidArgument, "oom"),
    ] {
        let error = registry::open(spec).err().unwrap_or_else(|| panic!("{spec} must be refused"));
        assert_eq!(error.status, status, "{spec}: {error}");
        assert!(error.text.contains(text), "{spec}: {error}");
    }
    assert_eq!(refused(registry::count("tea")), Status::InvalidArgument);
}

#[test]
fn every_counted_device_can_be_described() {
    for backend in BACKENDS {
        let count = registry::count(backend.name).unwrap();
        for ordinal in 0..count {
            let description = registry::describe(&format!("{}:{ordinal}", backend.name)).unwrap();
            assert_eq!((description.backend, description.ordinal), (backend.name, ordinal));
            assert!(description.total_bytes > 0 && description.page_bytes.is_power_of_two());
            assert!(!description.model.is_empty());
        }
        if count == 0 {
            let spec = format!("{}:0", backend.name);
            let error = registry::describe(&spec).unwrap_err();
            assert_eq!(error.status, Status::NoDevice, "{error}");
            assert_eq!(registry::open(&spec).err().map(|error| error.status), Some(Status::NoDevice));
        }
    }
}

#[test]
fn the_host_is_the_default_and_has_eight_devices() {
    assert_eq!(BACKENDS[0].name, "host");
    assert_eq!(registry::count("host").unwrap(), 8);
    assert_eq!(registry::open("host").unwrap().description().name, "host");
    assert_eq!(registry::open("host:7?page_bytes=4096").unwrap().description().page_bytes, 4096);
}
