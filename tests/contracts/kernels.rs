//! Modules and launches.

use kavern::device::{Arg, CpuArgs, Kernel, Launch, Stream};
use kavern::error::Status;

use super::support::{Gate, bytes_of, each, refused};

static ADD: Kernel = Kernel { name: "contract_add", cpu: add };
static FAIL: Kernel = Kernel { name: "contract_fail", cpu: fail };

/// out[i] = a[i] + b[i] * factor, one thread an element.
fn add(args: &mut CpuArgs<'_>) {
    let (grid, block) = args.grid();
    let factor = args.number(3) as i32;
    let (out, others) = args.write_and_read::<i32>(0);
    let (a, b) = (others.read::<i32>(1), others.read::<i32>(2));
    for i in 0..out.len().min((grid * block) as usize) {
        out[i] = a[i] + b[i] * factor;
    }
}

fn fail(_: &mut CpuArgs<'_>) {
    panic!("this kernel fails on purpose");
}

fn ints(values: impl Iterator<Item = i32>) -> Vec<u8> {
    values.flat_map(i32::to_le_bytes).collect()
}

#[test]
fn a_launch_gives_the_result_of_its_reference() {
    each(|subject| {
        let device = subject.open();
        device.module_load(&[&ADD]).unwrap();
        device.module_load(&[&ADD]).unwrap();
        let [out, a, b] = [0; 3].map(|_| device.memory_allocate(4000).unwrap());
        device.write(a, &ints(0..1000)).unwrap();
        device.write(b, &ints((0..1000).rev())).unwrap();
        let args = [Arg::Write(out), Arg::Read(a), Arg::Read(b), Arg::U64(3)];
        device.launch(Stream::DEFAULT, &Launch { kernel: &ADD, grid: 4, block: 256, args: &args }).unwrap();
        assert_eq!(bytes_of(&*device, out), ints((0..1000).map(|i| i + (999 - i) * 3)));
    });
}

#[test]
fn a_wrong_launch_is_refused_before_it_is_enqueued() {
    each(|subject| {
        let device = subject.open();
        let memory = device.memory_allocate(4000).unwrap();
        device.memset(Stream::DEFAULT, memory, 0).unwrap();
        let (low, high) = (memory.part(0, 400).unwrap(), memory.part(396, 400).unwrap());
        let launch = |args: &[Arg], grid, block| {
            refused(device.launch(Stream::DEFAULT, &Launch { kernel: &ADD, grid, block, args }))
        };
        assert_eq!(launch(&[], 1, 1), Status::InvalidArgument, "not loaded");
        device.module_load(&[&ADD]).unwrap();
        assert_eq!(launch(&[Arg::Write(low), Arg::Read(high)], 1, 1), Status::InvalidArgument);
        assert_eq!(launch(&[Arg::Write(low), Arg::Write(high)], 1, 1), Status::InvalidArgument);
        assert_eq!(launch(&[Arg::U64(0); Launch::ARGS_MAX + 1], 1, 1), Status::InvalidArgument);
        assert_eq!(launch(&[], 0, 1), Status::InvalidArgument);
        assert_eq!(launch(&[], 1, 0), Status::InvalidArgument);
        let other = subject.open();
        let foreign = other.memory_allocate(400).unwrap();
        assert_eq!(launch(&[Arg::Write(foreign)], 1, 1), Status::InvalidArgument);
        device.synchronize().unwrap();
        let adjacent = [low, memory.part(400, 400).unwrap(), memory.part(400, 400).unwrap()];
        let args = [Arg::Write(adjacent[0]), Arg::Read(adjacent[1]), Arg::Read(adjacent[2]), Arg::U64(0)];
        device.launch(Stream::DEFAULT, &Launch { kernel: &ADD, grid: 1, block: 100, args: &args }).unwrap();
        device.synchronize().unwrap();
    });
}

#[test]
fn a_panic_in_a_kernel_latches_the_loss_and_releases_all_waits() {
    each(|subject| {
        let device = subject.open();
        if !device.description().capabilities.host_addressable {
            // There a lost device ends the process; `a_trap_of_a_kernel_ends_the_process_but_not_its_memory` starts one.
            return;
        }
        device.module_load(&[&FAIL]).unwrap();
        let (failing, waiting) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        let event = device.event_create().unwrap();
        let memory = device.memory_allocate(64).unwrap();
        let page = device.page_create(device.description().page_bytes).unwrap();
        let pinned = device.pinned_allocate(64).unwrap();
        let gate = Gate::close(&*device, failing, || {});
        device.launch(failing, &Launch { kernel: &FAIL, grid: 1, block: 1, args: &[] }).unwrap();
        device.memset(failing, memory, 1).unwrap();
        device.event_record(event, failing).unwrap();
        device.stream_wait_event(waiting, event).unwrap();
        gate.open();
        let error = device.event_synchronize(event).unwrap_err();
        assert_eq!(error.status, Status::DeviceLost);
        assert!(error.text.contains("on purpose"), "{error}");
        for status in [
            refused(device.synchronize()),
            refused(device.stream_synchronize(waiting)),
            refused(device.stream_create()),
            refused(device.stream_destroy(waiting)),
            refused(device.event_is_done(event)),
            refused(device.event_destroy(event)),
            refused(device.memory_info()),
            refused(device.memory_allocate(64)),
            refused(device.memory_free(memory)),
            refused(device.page_release(page)),
            refused(device.virtual_reserve(device.description().page_bytes)),
            refused(device.pinned_free(pinned)),
            refused(device.write(memory, &[0; 64])),
            refused(device.memset(failing, memory, 0)),
            refused(device.module_load(&[])),
            refused(device.launch(waiting, &Launch { kernel: &FAIL, grid: 1, block: 1, args: &[] })),
        ] {
            assert_eq!(status, Status::DeviceLost);
        }
        drop(device);
        subject.open().synchronize().unwrap();
    });
}
