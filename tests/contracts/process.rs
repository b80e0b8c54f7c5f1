//! What holds for the process: forks, time, randomness.

use kavern::device::Stream;
use kavern::error::Status;
use kavern::sys::{clock, fork, random};

use super::support::each;

#[test]
fn a_forked_child_is_refused_and_may_close_its_devices() {
    each(|subject| {
        let device = subject.open();
        let memory = device.memory_allocate(64).unwrap();
        device.memset(Stream::DEFAULT, memory, 1).unwrap();
        // SAFETY: the child only makes calls that answer at once, and leaves without running anything else.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let is_right = fork::is_forked_child()
                && [
                    device.synchronize(),
                    device.memory_free(memory),
                    device.memset(Stream::DEFAULT, memory, 2),
                    device.event_create().map(drop),
                ]
                .into_iter()
                .all(|result| result.is_err_and(|error| error.status == Status::Forked));
            drop(device);
            // SAFETY: ends the child without the handlers of its parent's threads.
            unsafe { libc::_exit(if is_right { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for the child that was just made.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        assert!(!fork::is_forked_child());
        device.memory_free(memory).unwrap();
    });
}

#[test]
fn time_never_goes_back_and_randomness_is_not_constant() {
    let times: Vec<u64> = (0..1000).map(|_| clock::now_ns()).collect();
    assert!(times.is_sorted());
    let (mut a, mut b) = ([0; 32], [0; 32]);
    random::fill(&mut a).unwrap();
    random::fill(&mut b).unwrap();
    random::fill(&mut []).unwrap();
    assert_ne!(a, b);
}
