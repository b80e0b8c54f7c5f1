//! NVIDIA GPUs through their driver. So far it finds and describes them.
//!
//! What it does not: open a device for work; `open` says so. Invariant: without a driver, or with one that lacks a
//! function, every call answers an error; nothing panics and nothing is printed.

mod driver;

use std::sync::Arc;

use super::registry::Spec;
use super::{Capabilities, Description, Device};
use crate::error::{Error, Result, Status};

/// What may follow the question mark in the spec.
pub(super) const PARAMS: &[&str] = &[];

/// Size of the smallest mapping that drivers report on all current GPUs.
const PAGE_BYTES: u64 = 2 << 20;

/// How many GPUs the driver shows; 0 without a driver. A driver that is there but broken is an error, not a 0.
pub(super) fn count() -> Result<u32> {
    match driver::probe() {
        Ok(driver) => driver.count(),
        Err(error) if error.status == Status::NoDevice => Ok(0),
        Err(error) => Err(error),
    }
}

/// What a GPU is.
pub(super) fn describe(spec: &Spec) -> Result<Description> {
    let driver = driver::probe()?;
    if driver.count()? == 0 {
        return Err(Error::new(Status::NoDevice, "the CUDA driver is there, but it shows no GPU"));
    }
    let facts = driver.facts(spec.ordinal)?;
    Ok(Description {
        name: format!("cuda:{}", spec.ordinal),
        model: format!("{} (compute {}.{})", facts.name, facts.compute.0, facts.compute.1),
        backend: "cuda",
        ordinal: spec.ordinal,
        total_bytes: facts.total_bytes,
        page_bytes: PAGE_BYTES,
        capabilities: Capabilities::default(),
    })
}

/// Answers what is missing: a driver, a GPU, or the part of this build that works on it.
pub(super) fn open(spec: &Spec) -> Result<Arc<dyn Device>> {
    let description = describe(spec)?;
    Err(Error::new(
        Status::Unsupported,
        format!(
            "{} is {}, but this build can only describe GPUs, not work on them; open \"host\" instead",
            description.name, description.model
        ),
    ))
}
