//! Reserved addresses, pages, mappings, access.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use kavern::device::{Access, Device, DeviceSlice, Page, Stream, registry};
use kavern::error::Status;

use super::support::{Subject, assert_free, assert_memory, bytes_of, each, pattern, refused};

fn page_bytes(device: &dyn Device) -> u64 {
    device.description().page_bytes
}

fn map_whole(device: &dyn Device, range: DeviceSlice, pages: &[Page]) {
    let unit = page_bytes(device);
    for (index, page) in pages.iter().enumerate() {
        device.virtual_map(range.part(index as u64 * unit, unit).unwrap(), *page).unwrap();
    }
    let mapped = range.part(0, pages.len() as u64 * unit).unwrap();
    device.virtual_set_access(mapped, Access::ReadWrite).unwrap();
}

fn each_with_virtual_memory(sentence: impl Fn(&Subject, &dyn Device)) {
    each(|subject| {
        let device = subject.open();
        if device.description().capabilities.virtual_memory {
            sentence(subject, &*device);
        }
    });
}

#[test]
fn a_page_keeps_its_content_when_it_is_mapped_elsewhere() {
    each_with_virtual_memory(|_, device| {
        let unit = page_bytes(device);
        let before = device.memory_info().unwrap();
        let (a, b) = (device.virtual_reserve(4 * unit).unwrap(), device.virtual_reserve(4 * unit).unwrap());
        assert_eq!((a.address() % unit, a.bytes()), (0, 4 * unit));
        let pages = [0; 3].map(|_| device.page_create(unit).unwrap());
        assert_free(device, before.free_bytes - 3 * unit);
        map_whole(device, a, &pages);
        let whole = a.part(0, 3 * unit).unwrap();
        let content = pattern(4, 3 * unit as usize);
        device.write(whole, &content).unwrap();
        device.virtual_unmap(whole).unwrap();
        map_whole(device, b, &[pages[2], pages[0], pages[1]]);
        let seen = bytes_of(device, b.part(0, 3 * unit).unwrap());
        let (first, rest) = seen.split_at(unit as usize);
        assert!(first == &content[2 * unit as usize..] && rest == &content[..2 * unit as usize]);
        device.virtual_unmap(b.part(0, 3 * unit).unwrap()).unwrap();
        for page in pages {
            device.page_release(page).unwrap();
        }
        device.virtual_release(a).unwrap();
        device.virtual_release(b).unwrap();
        assert_memory(device, before);
    });
}

#[test]
fn a_page_mapped_twice_shows_the_same_bytes_at_both_addresses() {
    each_with_virtual_memory(|_, device| {
        let unit = page_bytes(device);
        let range = device.virtual_reserve(2 * unit).unwrap();
        let page = device.page_create(unit).unwrap();
        map_whole(device, range, &[page, page]);
        let (low, high) = (range.part(0, unit).unwrap(), range.part(unit, unit).unwrap());
        device.memset(Stream::DEFAULT, low, 5).unwrap();
        assert_eq!(bytes_of(device, high), vec![5; unit as usize]);
        let content = pattern(6, unit as usize);
        device.write(high, &content).unwrap();
        assert_eq!(bytes_of(device, low), content);
        device.virtual_unmap(range).unwrap();
    });
}

#[test]
fn a_released_page_lives_until_its_last_mapping_goes() {
    each_with_virtual_memory(|_, device| {
        let unit = page_bytes(device);
        let before = device.memory_info().unwrap();
        let range = device.virtual_reserve(2 * unit).unwrap();
        let page = device.page_create(unit).unwrap();
        map_whole(device, range, &[page, page]);
        let (low, high) = (range.part(0, unit).unwrap(), range.part(unit, unit).unwrap());
        device.write(low, &pattern(1, unit as usize)).unwrap();
        device.page_release(page).unwrap();
        refused(device.page_release(page));
        device.virtual_unmap(low).unwrap();
        assert_eq!(bytes_of(device, high), pattern(1, unit as usize));
        refused(device.virtual_map(low, page));
        assert!(device.memory_info().unwrap().free_bytes < before.free_bytes);
        device.virtual_unmap(high).unwrap();
        assert_memory(device, before);
        device.virtual_release(range).unwrap();
    });
}

#[test]
fn misuse_of_virtual_memory_is_refused_and_changes_nothing() {
    each_with_virtual_memory(|subject, device| {
        let unit = page_bytes(device);
        for bytes in [0, 1, unit - 1, unit + 1] {
            refused(device.virtual_reserve(bytes));
            refused(device.page_create(bytes));
        }
        refused(device.virtual_reserve(u64::MAX / unit * unit));
        refused(device.page_create(u64::MAX / unit * unit));
        let range = device.virtual_reserve(6 * unit).unwrap();
        let part = |first: u64, count: u64| range.part(first * unit, count * unit).unwrap();
        let (one, two) = (device.page_create(unit).unwrap(), device.page_create(2 * unit).unwrap());
        device.virtual_map(part(1, 1), one).unwrap();
        device.virtual_map(part(2, 2), two).unwrap();
        device.virtual_set_access(part(1, 3), Access::ReadWrite).unwrap();
        let content = pattern(2, 3 * unit as usize);
        device.write(part(1, 3), &content).unwrap();
        let info = device.memory_info().unwrap();

        refused(device.virtual_map(part(0, 2), one));
        refused(device.virtual_map(part(1, 1), one));
        refused(device.virtual_map(part(3, 2), two));
        refused(device.virtual_map(part(0, 2), two));
        refused(device.virtual_map(range.part(1, unit).unwrap(), one));
        refused(device.virtual_map(range.part(4 * unit + 1, unit).unwrap(), one));
        refused(device.virtual_map(part(4, 0), one));
        refused(device.virtual_map(part(4, 1), Page(u64::MAX)));
        // SAFETY: the range is only named, and refused.
        let outside =
            unsafe { DeviceSlice::from_foreign(device.key(), range.address() + 5 * unit, 2 * unit) }.unwrap();
        refused(device.virtual_map(outside, two));
        refused(device.virtual_map(outside, one));
        for wrong in [part(0, 2), part(2, 1), part(3, 1), part(1, 2), part(3, 2), part(4, 1), part(1, 0)] {
            refused(device.virtual_unmap(wrong));
            refused(device.virtual_set_access(wrong, Access::None));
        }
        refused(device.virtual_unmap(range.part(unit + 1, unit).unwrap()));
        assert_eq!(refused(device.virtual_release(range)), Status::InUse);
        refused(device.virtual_release(part(0, 1)));
        let other = subject.open();
        refused(other.virtual_unmap(part(1, 3)));
        refused(other.virtual_release(range));

        assert_memory(device, info);
        assert_eq!(bytes_of(device, part(1, 3)), content);
        device.virtual_unmap(part(1, 3)).unwrap();
        refused(device.virtual_unmap(part(1, 3)));
        device.virtual_release(range).unwrap();
        refused(device.virtual_release(range));
        device.page_release(one).unwrap();
        device.page_release(two).unwrap();
        refused(device.page_release(one));
    });
}

#[test]
fn released_page_memory_really_goes_back_to_the_system() {
    each_with_virtual_memory(|subject, device| {
        if subject.backend != "host" {
            return;
        }
        let bytes = 64 << 20;
        let range = device.virtual_reserve(bytes).unwrap();
        let page = device.page_create(bytes).unwrap();
        device.virtual_map(range, page).unwrap();
        device.virtual_set_access(range, Access::ReadWrite).unwrap();
        device.memset(Stream::DEFAULT, range, 1).unwrap();
        device.synchronize().unwrap();
        device.virtual_unmap(range).unwrap();
        device.page_release(page).unwrap();
        let page = device.page_create(bytes).unwrap();
        device.virtual_map(range, page).unwrap();
        device.virtual_set_access(range, Access::Read).unwrap();
        // The same offsets of the memory file read as zero, so the old memory has gone.
        assert!(bytes_of(device, range).iter().all(|&byte| byte == 0));
    });
}

const FAULTS: [&str; 5] = ["reserved", "mapped", "write_to_read_only", "taken_away", "unmapped"];

#[test]
fn access_that_is_not_allowed_faults() {
    each_with_virtual_memory(|subject, device| {
        if !device.description().capabilities.host_addressable {
            return;
        }
        for fault in FAULTS {
            let child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "contracts::virtual_memory::child_that_faults",
                    "--ignored",
                    "--test-threads=1",
                ])
                .env("KAVERN_TEST_FAULT", fault)
                .env("KAVERN_TEST_SPEC", subject.spec(0, ""))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert_eq!(child.signal(), Some(libc::SIGSEGV), "{fault}: {child}");
        }
    });
}

#[test]
#[ignore = "started by access_that_is_not_allowed_faults, which expects it to die"]
fn child_that_faults() {
    let (Ok(fault), Ok(spec)) = (std::env::var("KAVERN_TEST_FAULT"), std::env::var("KAVERN_TEST_SPEC"))
    else {
        return;
    };
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is valid; no core file is wanted of a death on purpose.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) };
    let device = registry::open(&spec).unwrap();
    let unit = page_bytes(&*device);
    let range = device.virtual_reserve(unit).unwrap();
    let page = device.page_create(unit).unwrap();
    let mut byte = [0];
    let first = range.part(0, 1).unwrap();
    if fault != "reserved" {
        device.virtual_map(range, page).unwrap();
    }
    if !matches!(fault.as_str(), "reserved" | "mapped") {
        device.virtual_set_access(range, Access::ReadWrite).unwrap();
        device.write(first, &[1]).unwrap();
    }
    match fault.as_str() {
        "write_to_read_only" => {
            device.virtual_set_access(range, Access::Read).unwrap();
            device.read(first, &mut byte).unwrap();
            device.write(first, &[2]).unwrap();
        }
        "taken_away" => device.virtual_set_access(range, Access::None).unwrap(),
        "unmapped" => device.virtual_unmap(range).unwrap(),
        _ => {}
    }
    device.read(first, &mut byte).unwrap();
}
