//! Captures of graphs as far as those who share a device with one can break them; nothing is recorded or launched.
//!
//! What it does: says which streams are captured, refuses what a driver refuses meanwhile, and remembers which captures
//! that broke. What it does not: tell streams that the default stream waits for from others; all are such here.
//! Invariant: an event that was recorded in a capture has no mark until it is recorded outside of one. Source: the CUDA
//! programming guide on stream capture, "prohibited and unhandled operations".

use super::gpu::Gpu;
use crate::error::{Error, Result, Status};

/// A capture under way.
pub(super) struct Capture {
    stream: u64,
    is_broken: bool,
}

fn refusal(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Status::WrongState, text)
}

impl Gpu {
    /// Begins the capture of a stream, or ends it. Refused where something has broken it, which ends it too.
    pub(super) fn capture(&mut self, stream: u64, is_on: bool) -> Result<()> {
        let at = self.captures.iter().position(|capture| capture.stream == stream);
        match (at, is_on) {
            (None, true) => {
                self.captures.push(Capture { stream, is_broken: false });
                Ok(())
            }
            (Some(at), false) if !self.captures.swap_remove(at).is_broken => Ok(()),
            (Some(_), false) => Err(refusal("a call that is not allowed beside a capture has broken it")),
            (None, false) | (Some(_), true) => Err(refusal("a capture begins once and ends once")),
        }
    }

    /// Whether a stream is captured.
    pub(super) fn is_captured(&self, stream: u64) -> bool {
        self.captures.iter().any(|capture| capture.stream == stream)
    }

    /// Whether work for a stream would reach into a capture: its own, or that of one that the default stream waits for.
    pub(super) fn is_in_capture(&self, stream: u64) -> bool {
        self.is_captured(stream) || stream == 0 && !self.captures.is_empty()
    }

    /// Refuses what a capture forbids, which breaks those under way.
    pub(super) fn keep_out(&mut self, is_forbidden: bool, what: &str) -> Result<()> {
        if !is_forbidden {
            return Ok(());
        }
        self.captures.iter_mut().for_each(|capture| capture.is_broken = true);
        Err(refusal(format!("{what} is not allowed while a stream is captured")))
    }
}

#[cfg(test)]
mod tests {
    use crate::device::{Stream, registry};
    use crate::error::Status;

    #[test]
    fn what_a_capture_forbids_is_refused_and_breaks_it_and_nothing_else_does() {
        let device = registry::open("sim?capture=1").unwrap();
        assert!(device.description().capabilities.capture);
        let simulator = device.simulator().unwrap();
        let [captured, other] = [(); 2].map(|()| device.stream_create().unwrap());
        let event = device.event_create().unwrap();
        let is_free =
            || [captured, other, Stream::DEFAULT].map(|one| device.stream_takes_events(one).unwrap());
        assert_eq!(is_free(), [true; 3]);
        simulator.capture(captured, true).unwrap();
        assert_eq!(is_free(), [false, true, false]);
        assert!(device.stream_is_capturing(captured).unwrap());
        assert!(!device.stream_is_capturing(Stream::DEFAULT).unwrap());
        device.event_record(event, other).unwrap();
        device.event_synchronize(event).unwrap();
        device.event_record(event, captured).unwrap();
        simulator.capture(captured, false).unwrap();
        assert_eq!(simulator.capture(captured, false).unwrap_err().status, Status::WrongState);
        let forbidden: [&dyn Fn() -> crate::error::Result<()>; 5] = [
            &|| device.event_is_done(event).map(drop),
            &|| device.event_synchronize(event),
            &|| device.event_record(event, Stream::DEFAULT),
            &|| device.stream_synchronize(captured),
            &|| device.stream_wait_event(Stream::DEFAULT, event),
        ];
        for (number, call) in forbidden.into_iter().enumerate() {
            simulator.capture(captured, true).unwrap();
            assert_eq!(call().unwrap_err().status, Status::WrongState, "{number}");
            assert!(simulator.capture(captured, false).is_err(), "{number} broke it");
        }
        assert!(device.event_is_done(event).is_err(), "it is a graph's until it is recorded again");
        device.event_record(event, captured).unwrap();
        assert!(device.event_is_done(event).is_ok());
        let pinned = device.pinned_allocate(64).unwrap();
        let memory = [device.memory_allocate(64).unwrap(), device.managed_allocate(64).unwrap()];
        simulator.capture(captured, true).unwrap();
        device.synchronize().unwrap();
        memory.into_iter().for_each(|slice| device.memory_free(slice).unwrap());
        device.pinned_free(pinned).unwrap();
        simulator.capture(captured, false).expect("waits for the whole device leave it whole");
    }
}
