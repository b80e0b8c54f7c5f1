//! Kernels of a GPU: which prebuilt module fits, loading, launching.
//!
//! The modules are built ahead of time and lie in the library (kernels/README.md). For each one the first that fits is
//! loaded: machine code of exactly this compute capability, machine code of a lower minor number of the same major
//! one, else the portable PTX, which the driver compiles. What it does not: compile anything itself.
//! Launch ABI: every slice becomes two 64-bit parameters, address and bytes; every number one.
//! Invariant: a function in the table is loaded on the device, so that no launch loads anything. Lock order: `loaded`,
//! then nothing; the driver is called under it only while loading.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use super::Cuda;
use super::context::{Context, Entered};
use super::driver::Raw;
use crate::device::{Arg, Kernel, Launch, Stream};
use crate::error::{Error, Result, Status};
use crate::event::Level;
use crate::sync::RwLock;

/// Machine code for one compute capability.
struct Cubin {
    /// Ten times major plus minor.
    compute: u32,
    /// Runs on exactly this capability and no other.
    is_exact: bool,
    bytes: &'static [u8],
}

/// One compiled source.
struct Module {
    name: &'static str,
    /// Names with the count of 64-bit parameters.
    kernels: &'static [(&'static str, usize)],
    cubins: &'static [Cubin],
    ptx: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK.
const MAX_THREADS: u32 = 0;
/// Two parameters for each slice.
const PARAMETERS_MAX: usize = 2 * Launch::ARGS_MAX;

#[derive(Clone, Copy)]
struct Function {
    raw: Raw,
    parameters: usize,
    threads_max: u32,
}

#[derive(Default)]
struct Loaded {
    functions: HashMap<&'static str, Function>,
    modules: Vec<(&'static str, Raw)>,
}

/// What is loaded on one instance.
#[derive(Default)]
pub(super) struct Kernels {
    loaded: RwLock<Loaded>,
}

/// The images of a module that run on a GPU, best first; 0 stands for PTX.
fn images(module: &Module, compute: (i32, i32)) -> Vec<(u32, &'static [u8])> {
    let (major, minor) = (compute.0 as u32, compute.1 as u32);
    let wanted = 10 * major + minor;
    let fits = |cubin: &&Cubin| {
        cubin.compute == wanted || (!cubin.is_exact && cubin.compute / 10 == major && cubin.compute < wanted)
    };
    let mut found: Vec<_> =
        module.cubins.iter().filter(fits).map(|cubin| (cubin.compute, cubin.bytes)).collect();
    found.sort_by_key(|image| std::cmp::Reverse(image.0));
    found.push((0, module.ptx));
    found
}

fn load_module(entered: &Entered<'_>, module: &Module, compute: (i32, i32)) -> Result<Raw> {
    let context = entered.context();
    let mut last = Error::internal("a module without an image");
    for (number, bytes) in images(module, compute) {
        // A copy that is aligned, and ends with zeros as PTX has to.
        let mut image = vec![0u64; bytes.len() / 8 + 2];
        bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..bytes.len()].copy_from_slice(bytes);
        let mut raw = 0;
        // SAFETY: the image is complete and readable, the result is writable, the context is current.
        let code = unsafe { (context.driver.api.cuModuleLoadData)(&mut raw, image.as_ptr().cast()) };
        match entered.done("cuModuleLoadData", code) {
            Ok(()) => {
                context
                    .say(Level::Debug, || format!("kernels {} loaded from {}", module.name, shown(number)));
                return Ok(raw);
            }
            Err(error) if error.status == Status::DeviceLost => return Err(error),
            Err(error) => {
                context
                    .say(Level::Warn, || format!("kernels {} from {}: {error}", module.name, shown(number)));
                last = error;
            }
        }
    }
    Err(last.context(module.name))
}

fn shown(compute: u32) -> String {
    if compute == 0 { "PTX".to_owned() } else { format!("sm_{compute}") }
}

fn find_function(entered: &Entered<'_>, module: Raw, name: &str, parameters: usize) -> Result<Function> {
    let driver = entered.context().driver;
    let text = CString::new(name).map_err(|_| Error::internal("a kernel's name with a zero"))?;
    let (mut raw, mut threads) = (0, 0);
    // SAFETY: the module is loaded, the name ends with a zero, the result is writable.
    let code = unsafe { (driver.api.cuModuleGetFunction)(&mut raw, module, text.as_ptr()) };
    entered.done("cuModuleGetFunction", code).map_err(|error| error.context(name))?;
    if let Some(load) = driver.function_load {
        // SAFETY: the function was found just now.
        entered.done("cuFuncLoad", unsafe { load(raw) })?;
    }
    // Older drivers load a function when it is asked for something.
    // SAFETY: as above, and the result is writable.
    let code = unsafe { (driver.api.cuFuncGetAttribute)(&mut threads, MAX_THREADS, raw) };
    entered.done("cuFuncGetAttribute", code)?;
    Ok(Function { raw, parameters, threads_max: threads as u32 })
}

impl Loaded {
    /// Loads the module of a kernel with all its functions.
    fn load(&mut self, entered: &Entered<'_>, kernel: &'static Kernel, compute: (i32, i32)) -> Result<()> {
        if self.functions.contains_key(kernel.name) {
            return Ok(());
        }
        let has = |module: &&Module| module.kernels.iter().any(|(name, _)| *name == kernel.name);
        let module = MODULES.iter().find(has).ok_or_else(|| {
            let text = format!("kernel {} has no device code in this library", kernel.name);
            Error::new(Status::Unsupported, text)
        })?;
        let raw = load_module(entered, module, compute)?;
        let found: Result<Vec<_>> = module
            .kernels
            .iter()
            .map(|&(name, parameters)| Ok((name, find_function(entered, raw, name, parameters)?)))
            .collect();
        match found {
            Ok(found) => {
                self.functions.extend(found);
                self.modules.push((module.name, raw));
                Ok(())
            }
            Err(error) => {
                unload(entered, raw);
                Err(error)
            }
        }
    }
}

fn unload(entered: &Entered<'_>, module: Raw) {
    // SAFETY: the module is loaded, and nobody launches from it any more.
    let code = unsafe { (entered.context().driver.api.cuModuleUnload)(module) };
    let _ = entered.done("cuModuleUnload", code);
}

impl Kernels {
    /// Loads what is not loaded yet.
    pub(super) fn load(
        &self,
        context: &Context,
        compute: (i32, i32),
        kernels: &[&'static Kernel],
    ) -> Result<()> {
        let entered = context.enter_relaxed()?;
        if kernels.iter().all(|kernel| self.loaded.read().functions.contains_key(kernel.name)) {
            return Ok(());
        }
        let mut loaded = self.loaded.write();
        kernels.iter().try_for_each(|kernel| loaded.load(&entered, kernel, compute))
    }

    /// Unloads everything, once no work is left.
    pub(super) fn clear(&self, entered: &Entered<'_>) {
        let loaded = std::mem::take(&mut *self.loaded.write());
        for (_, module) in loaded.modules {
            unload(entered, module);
        }
    }
}

impl Cuda {
    /// Enqueues a checked launch.
    pub(super) fn enqueue_launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<()> {
        let entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        launch.check()?;
        let name = launch.kernel.name;
        let mut values = [0u64; PARAMETERS_MAX];
        let mut count = 0;
        for arg in launch.args {
            let pair = match arg {
                Arg::Read(slice) | Arg::Write(slice) => {
                    self.reach(slice)?;
                    [slice.address(), slice.bytes()]
                }
                Arg::U64(number) => [*number, 0],
            };
            values[count..count + 2].copy_from_slice(&pair);
            count += if matches!(arg, Arg::U64(_)) { 1 } else { 2 };
        }
        let function = self.kernels.loaded.read().functions.get(name).copied();
        let Some(function) = function else {
            return Err(Error::argument(format!("kernel {name} is not loaded; load it first")));
        };
        if count != function.parameters {
            let text = format!("kernel {name}: {count} parameters, it takes {}", function.parameters);
            return Err(Error::argument(text));
        }
        if launch.block > function.threads_max || launch.grid > i32::MAX as u32 {
            let (grid, block) = (launch.grid, launch.block);
            return Err(Error::argument(format!("kernel {name}: a grid of {grid} x {block} is too large")));
        }
        let mut places = values.each_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>());
        // SAFETY: the function takes as many 64-bit parameters as there are places, whose slices were checked; the
        // driver copies them before it returns.
        let code = unsafe {
            (self.context.driver.api.cuLaunchKernel)(
                function.raw,
                launch.grid,
                1,
                1,
                launch.block,
                1,
                1,
                0,
                stream.raw,
                places.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        entered.done("cuLaunchKernel", code).map_err(|error| error.context(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_images(compute: (i32, i32)) -> Vec<Vec<u32>> {
        MODULES
            .iter()
            .map(|module| images(module, compute).into_iter().map(|(number, _)| number).collect())
            .collect()
    }

    #[test]
    fn the_nearest_machine_code_comes_first_and_ptx_last() {
        assert!(!MODULES.is_empty());
        for (compute, expected) in [
            ((7, 5), &[0][..]),
            ((8, 0), &[80, 0]),
            ((8, 6), &[86, 80, 0]),
            ((8, 7), &[86, 80, 0]),
            ((8, 9), &[89, 86, 80, 0]),
            ((9, 0), &[90, 0]),
            ((10, 0), &[100, 0]),
            ((10, 3), &[0]),
            ((12, 0), &[120, 0]),
            ((12, 1), &[0]),
        ] {
            for images in shown_images(compute) {
                assert_eq!(images, expected, "compute {compute:?}");
            }
        }
    }

    #[test]
    fn every_kernel_stands_once_and_has_few_parameters() {
        let mut names: Vec<_> = MODULES.iter().flat_map(|module| module.kernels).collect();
        assert!(names.iter().all(|(_, parameters)| *parameters <= PARAMETERS_MAX));
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0].0 != pair[1].0), "{names:?}");
    }
}
