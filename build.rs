//! Gives the shared library its soname and lists the prebuilt kernels for `device/cuda`. Calls no compiler and never
//! touches the header.
#![expect(clippy::disallowed_macros, reason = "cargo reads its instructions from the output")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // 0 = the ABI's major number, which docs/abi.md says when to raise.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkavern.so.0");
        // Never unloaded: threads of the host backend and thread-local destructors outlive a dlclose.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
    println!("cargo:rerun-if-changed=kernels/prebuilt");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let table = kernel_table(&PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("kernels/prebuilt"));
        let target = PathBuf::from(variable("OUT_DIR")).join("kernels.rs");
        if let Err(error) = std::fs::write(&target, table) {
            panic!("{}: {error}", target.display());
        }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// The images of one module by what follows its name: "compute_80.ptx", "sm_90a.cubin".
type Images = BTreeMap<String, PathBuf>;

/// `static MODULES` for src/device/cuda/kernel.rs.
fn kernel_table(folder: &Path) -> String {
    let mut modules: BTreeMap<String, Images> = BTreeMap::new();
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some((module, image)) = name.split_once('.')
            && (name.ends_with(".cubin") || name.ends_with(".ptx"))
        {
            modules.entry(module.to_owned()).or_default().insert(image.to_owned(), entry.path());
        }
    }
    let mut table = String::from("static MODULES: &[Module] = &[\n");
    for (module, images) in &modules {
        let (cubins, ptx): (Vec<_>, Vec<_>) = images.iter().partition(|(image, _)| image.starts_with("sm_"));
        let [(_, ptx)] = ptx[..] else { panic!("module {module} needs one PTX") };
        let kernels = entries_of(ptx);
        assert!(!kernels.is_empty(), "module {module} has no kernels");
        let _ = writeln!(table, "Module {{ name: {module:?}, kernels: &{kernels:?}, cubins: &[");
        for (image, path) in cubins {
            let architecture = image.trim_start_matches("sm_").trim_end_matches(".cubin");
            let compute = architecture.trim_end_matches('a');
            let is_exact = compute != architecture;
            let _ = writeln!(
                table,
                "Cubin {{ compute: {compute}, is_exact: {is_exact}, bytes: include_bytes!({path:?}) }},"
            );
        }
        let _ = writeln!(table, "], ptx: include_bytes!({ptx:?}) }},");
    }
    table.push_str("];\n");
    table
}

/// Names of the kernels in a PTX text with the count of their parameters, which are all of 64 bits.
fn entries_of(path: &Path) -> Vec<(String, usize)> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let entries = text.split(".visible .entry ").skip(1);
    let parse = |entry: &str| {
        let (name, rest) = entry.split_once('(')?;
        let (parameters, _) = rest.split_once(')')?;
        let count = parameters.matches(".param ").count();
        assert_eq!(parameters.matches(".param .u64 ").count(), count, "{name}: parameters of 64 bits only");
        Some((name.to_owned(), count))
    };
    entries.filter_map(parse).collect()
}
