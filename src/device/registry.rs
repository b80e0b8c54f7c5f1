//! The backends, one line each, and how a device is named: `backend[:ordinal][?key=value[&key=value]...]`.
//!
//! What it does: count, describe, open; puts the fault wrapper around a device when a parameter asks for it. What it
//! does not: keep open devices; each open makes an instance. Invariant: a parameter that nobody reads is an error.

use std::sync::Arc;

use super::{Description, Device, fault, host, sim};
use crate::error::{Error, Result, Status};
use crate::event::{EventSink, NoSink};

type Open = fn(&Spec, Arc<dyn EventSink>) -> Result<Arc<dyn Device>>;

/// One kind of device.
pub struct Backend {
    /// The first word of a spec.
    pub name: &'static str,
    /// What it is, for people.
    pub about: &'static str,
    params: &'static [&'static str],
    count: fn() -> Result<u32>,
    describe: fn(&Spec) -> Result<Description>,
    open: Open,
}

/// All backends of this build; the first is the default.
#[rustfmt::skip]
pub static BACKENDS: &[Backend] = &[
    Backend { name: "host", about: "the CPU as a device", params: host::PARAMS, count: host::count, describe: host::describe, open: host::open },
    Backend { name: "sim", about: "streams in an order that a seed chooses, with a search for races", params: sim::PARAMS, count: sim::count, describe: sim::describe, open: sim::open },
    #[cfg(feature = "cuda")]
    Backend { name: "cuda", about: "NVIDIA GPUs through their driver", params: super::cuda::PARAMS, count: super::cuda::count, describe: super::cuda::describe, open: super::cuda::open },
];

/// A spec taken apart.
pub(super) struct Spec {
    /// Which device of the backend.
    pub(super) ordinal: u32,
    params: Vec<(String, String)>,
}

impl Spec {
    /// A parameter, if it was given.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.params.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A parameter that is a whole number.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>> {
        let parse = |value: &str| {
            value.parse().map_err(|_| Error::argument(format!("{key}={value} is no whole number")))
        };
        self.text(key).map(parse).transpose()
    }
}

fn find(backend: &str) -> Result<&'static Backend> {
    BACKENDS.iter().find(|found| found.name == backend).ok_or_else(|| {
        let known: Vec<&str> = BACKENDS.iter().map(|backend| backend.name).collect();
        Error::argument(format!("device backend \"{backend}\" is unknown; known are {}", known.join(", ")))
    })
}

fn parse(text: &str) -> Result<(&'static Backend, Spec)> {
    let (place, params) = text.split_once('?').map_or((text, None), |(place, params)| (place, Some(params)));
    let (name, ordinal) = place.split_once(':').map_or((place, "0"), |(name, ordinal)| (name, ordinal));
    let backend = find(name)?;
    let is_number = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
    let ordinal = ordinal.parse().ok().filter(|_| is_number).ok_or_else(|| {
        Error::argument(format!("device \"{text}\": \"{ordinal}\" is no ordinal; write {name}:0"))
    })?;
    let mut spec = Spec { ordinal, params: Vec::new() };
    for param in params.into_iter().flat_map(|params| params.split('&')) {
        let Some((key, value)) = param.split_once('=') else {
            return Err(Error::argument(format!("device \"{text}\": \"{param}\" is no key=value")));
        };
        if !backend.params.contains(&key) && !fault::PARAMS.contains(&key) {
            let known: Vec<&str> = backend.params.iter().chain(fault::PARAMS).copied().collect();
            return Err(Error::argument(format!(
                "device \"{text}\": parameter \"{key}\" is unknown; known are {}",
                known.join(", ")
            )));
        }
        if spec.text(key).is_some() {
            return Err(Error::argument(format!("device \"{text}\": parameter \"{key}\" stands twice")));
        }
        spec.params.push((key.to_owned(), value.to_owned()));
    }
    Ok((backend, spec))
}

fn check_ordinal(backend: &Backend, spec: &Spec) -> Result<()> {
    let count = (backend.count)()?;
    // Without any device the backend itself says why.
    if count > 0 && spec.ordinal >= count {
        return Err(Error::new(
            Status::NoDevice,
            format!("{}:{} does not exist; there are {count}, counted from 0", backend.name, spec.ordinal),
        ));
    }
    Ok(())
}

/// Opens a device, for example "host", "host:1?memory_bytes=1073741824", "cuda:0".
pub fn open(spec: &str) -> Result<Arc<dyn Device>> {
    open_telling(spec, Arc::new(NoSink))
}

/// Opens a device that tells `sink` what cannot be an answer of a call: that it was lost, that it works otherwise than
/// one may expect.
pub fn open_telling(spec: &str, sink: Arc<dyn EventSink>) -> Result<Arc<dyn Device>> {
    let (backend, spec) = parse(spec)?;
    check_ordinal(backend, &spec)?;
    let plan = fault::Plan::of(&spec, backend.params)?;
    let device = (backend.open)(&spec, sink)?;
    Ok(match plan {
        Some(plan) => fault::wrap(device, plan),
        None => device,
    })
}

/// How many devices a backend has on this machine; 0 if what it needs is missing.
pub fn count(backend: &str) -> Result<u32> {
    (find(backend)?.count)()
}

/// What a device is, without opening it for work.
pub fn describe(spec: &str) -> Result<Description> {
    let (backend, spec) = parse(spec)?;
    check_ordinal(backend, &spec)?;
    (backend.describe)(&spec)
}
