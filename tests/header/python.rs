//! Writes `bindings/python/src/kavern/_ffi.py` from the surface that the header is made of.
//!
//! Plain `ctypes`, no dependency. Types are declared first and get their fields afterwards, so order does not matter.

use std::fmt::Write;

use crate::surface::{CType, Named, Signature, Surface};

const HEAD: &str = r#"# Generated from src/c_api by `make header`; do not edit.
"""The C functions, structs and numbers of libkavern, one to one, for ctypes.

Names and meaning are those of include/kavern.h. Nothing here checks a status or owns a handle.
"""

import ctypes as _c
import os as _os
from pathlib import Path as _Path
"#;

const LOAD: &str = r#"

def KAVERN_SEQ_OF_OP(i):
    """In a list of operations: the sequence that operation i of the same list admits."""
    return (0x5F << 56) | i


def _candidates(path):
    """Where the library may be: the one that was asked for, or else the usual places in order."""
    chosen = path or _os.environ.get("KAVERN_LIBRARY")
    if chosen:
        return [_os.fspath(chosen)]
    here = _Path(__file__).resolve().parent
    beside = [here / "libkavern.so.0", here / "libkavern.so"]
    return [str(p) for p in beside if p.exists()] + ["libkavern.so.0"]


def load(path=None):
    """Load libkavern and give each function its types.

    Looks at `path`, then KAVERN_LIBRARY, then beside this package, then where the loader looks.
    OSError if there is none, if its ABI is not this module's, or if it lacks a function.
    """
    problems = []
    for candidate in _candidates(path):
        try:
            library = _c.CDLL(candidate)
        except OSError as problem:
            problems.append(f"{candidate}: {problem}")
            continue
        _bind(library, candidate)
        return library
    raise OSError("libkavern not found; build it, or set KAVERN_LIBRARY; tried " + "; ".join(problems))


def _bind(library, name):
    try:
        library.kavern_abi_version.restype = _c.c_uint32
        found = library.kavern_abi_version()
        if found >> 16 != KAVERN_ABI_VERSION >> 16 or found < KAVERN_ABI_VERSION:
            raise OSError(
                f"{name} has ABI {found >> 16}.{found & 0xFFFF}, this module needs "
                f"{KAVERN_ABI_VERSION >> 16}.{KAVERN_ABI_VERSION & 0xFFFF}; install a matching pair"
            )
        for symbol, (restype, argtypes) in FUNCTIONS.items():
            function = getattr(library, symbol)
            function.restype = restype
            function.argtypes = argtypes
    except AttributeError as problem:
        raise OSError(f"{name} is not this version of libkavern: {problem}") from None
"#;

/// The whole module.
pub(crate) fn write(surface: &Surface, version: &str) -> String {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().expect("a version number"));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let mut out = String::from(HEAD);
    let line = |out: &mut String, text: String| writeln!(out, "{text}").expect("a string takes everything");
    line(&mut out, format!("\nVERSION = \"{version}\"\nKAVERN_ABI_VERSION = ({major} << 16) | {minor}"));
    line(&mut out, "KAVERN_STREAM_DEFAULT = 1  # as void *: the device's default stream".into());
    line(&mut out, "KAVERN_MARGIN_DEFAULT = 10  # percent, for kavern_can_allocate".into());

    for item in &surface.enums {
        line(&mut out, format!("\n# {}: {}", item.name, item.doc));
        for value in &item.of {
            line(&mut out, format!("{} = {}", value.name, value.of));
        }
    }
    line(&mut out, String::new());
    for item in &surface.aliases {
        line(&mut out, format!("{} = {}  # {}", item.name, python(&item.of, surface), item.doc));
    }
    for item in &surface.opaques {
        line(&mut out, format!("\n\nclass {}(_c.c_void_p):\n    {}", item.name, docstring(&item.doc)));
    }
    for item in &surface.structs {
        line(&mut out, format!("\n\nclass {}(_c.Structure):\n    {}", item.name, docstring(&item.doc)));
    }
    line(&mut out, "\n".into());
    for item in &surface.callbacks {
        let types = [vec![result(&item.of, surface)], params(&item.of, surface)].concat();
        line(&mut out, format!("# {}\n{} = _c.CFUNCTYPE({})", item.doc, item.name, types.join(", ")));
    }
    for item in &surface.structs {
        line(&mut out, format!("\n{}._fields_ = [", item.name));
        for field in &item.of {
            line(&mut out, format!("    (\"{}\", {}),", field.name, python(&field.of, surface)));
        }
        line(&mut out, "]".into());
    }
    line(&mut out, "\n# Name: (restype, argtypes).\nFUNCTIONS = {".into());
    for item in &surface.functions {
        let types = params(&item.of, surface).join(", ");
        line(&mut out, format!("    \"{}\": ({}, [{types}]),", item.name, result(&item.of, surface)));
    }
    line(&mut out, "}".into());
    out.push_str(LOAD);
    out
}

fn docstring(doc: &str) -> String {
    format!("\"\"\"{}\"\"\"", doc.replace('\\', "\\\\").replace("\"\"\"", "'''"))
}

fn params(signature: &Signature, surface: &Surface) -> Vec<String> {
    signature.params.iter().map(|(_, ty)| python(ty, surface)).collect()
}

fn result(signature: &Signature, surface: &Surface) -> String {
    match &signature.result {
        CType::Named(name) if name == "c_void" => "None".into(),
        other => python(other, surface),
    }
}

fn knows<T>(items: &[Named<T>], name: &str) -> bool {
    items.iter().any(|item| item.name == name)
}

fn python(ty: &CType, surface: &Surface) -> String {
    match ty {
        CType::Named(name) => match name.as_str() {
            "u8" | "u16" | "u32" | "u64" => format!("_c.c_uint{}", &name[1..]),
            "i8" | "i16" | "i32" | "i64" => format!("_c.c_int{}", &name[1..]),
            "usize" => "_c.c_size_t".into(),
            "f32" => "_c.c_float".into(),
            "f64" => "_c.c_double".into(),
            "bool" => "_c.c_bool".into(),
            "c_char" | "c_int" => format!("_c.{name}"),
            _ if knows(&surface.structs, name) || knows(&surface.callbacks, name) => name.clone(),
            _ if knows(&surface.aliases, name) => name.clone(),
            _ => panic!("{name} is no type that crosses the C ABI"),
        },
        CType::Pointer(inner) => match inner.as_ref() {
            CType::Named(name) if name == "c_void" => "_c.c_void_p".into(),
            CType::Named(name) if name == "c_char" => "_c.c_char_p".into(),
            CType::Named(name) if knows(&surface.opaques, name) => name.clone(),
            other => format!("_c.POINTER({})", python(other, surface)),
        },
        CType::Array(inner, count) => format!("{} * {count}", python(inner, surface)),
    }
}
