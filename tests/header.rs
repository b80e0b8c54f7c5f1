//! The C surface stays what it says it is: header, exported symbols, Python declarations, version, error catalogue.
//!
//! include/kavern.h and bindings/python/src/kavern/_ffi.py are made from src/c_api and compared here;
//! `KAVERN_BLESS=1` (that is `make header`) rewrites them. Tests that need a compiler or binutils are left out where
//! there are none, unless KAVERN_REQUIRE names `cc`.

#[path = "header/python.rs"]
mod python;
#[path = "header/surface.rs"]
mod surface;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use surface::Surface;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}; run `make header`"))
}

fn header() -> String {
    read("include/kavern.h")
}

/// Compares a generated file with its committed form, or rewrites it if asked to.
fn same_or_bless(path: &str, made: &str) {
    if std::env::var_os("KAVERN_BLESS").is_some() {
        std::fs::write(root().join(path), made).expect("the generated file can be written");
        return;
    }
    let committed = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    let differs = committed.lines().zip(made.lines()).position(|(a, b)| a != b);
    let at = differs.unwrap_or(committed.lines().count().min(made.lines().count()));
    let line = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_string();
    assert!(
        committed == made,
        "{path}:{}: has\n  {}\nbut src/c_api makes\n  {}\nrun `make header`",
        at + 1,
        line(&committed),
        line(made)
    );
}

/// Output of a tool; `None` if it is not installed and KAVERN_REQUIRE does not name `cc`.
fn tool(name: &str, arguments: &[&str]) -> Option<std::process::Output> {
    match Command::new(name).args(arguments).current_dir(root()).output() {
        Ok(output) => Some(output),
        Err(error) => {
            let required = std::env::var("KAVERN_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|word| word == "cc"), "{name} is required: {error}");
            None
        }
    }
}

fn text_of(name: &str, arguments: &[&str]) -> Option<String> {
    let output = tool(name, arguments)?;
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The shared library that was built with this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let path = test.with_file_name("libkavern.so");
    assert!(path.exists(), "{} is missing", path.display());
    path
}

fn make_header(surface: &Surface) -> String {
    let mut config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("cbindgen.toml");
    config.export.include.extend(surface.enums.iter().map(|item| item.name.clone()));
    config.export.include.extend(surface.structs.iter().map(|item| item.name.clone()));
    config.export.include.extend(surface.opaques.iter().map(|item| item.name.clone()));
    let source = root().join("src/c_api/mod.rs");
    let bindings = cbindgen::Builder::new().with_config(config).with_src(source).generate();
    let mut out = Vec::new();
    bindings.expect("cbindgen reads src/c_api").write(&mut out);
    for_c_readers(&String::from_utf8(out).expect("a header is text"))
}

/// Docs of one line stand in one line, what rustdoc calls a section is a line like the others, and types that have a
/// typedef go by it.
fn for_c_readers(header: &str) -> String {
    let lines: Vec<&str> = header.lines().collect();
    let (mut out, mut at) = (String::new(), 0);
    let starred = |at: usize| lines.get(at).and_then(|line: &&str| line.trim_start().strip_prefix("* "));
    while at < lines.len() {
        let indent = &lines[at][..lines[at].len() - lines[at].trim_start().len()];
        let ends = |at: usize| lines.get(at).is_some_and(|line| line.trim() == "*/");
        match (lines[at].trim(), starred(at + 1)) {
            ("/**", Some(doc)) if ends(at + 2) => {
                out += &format!("{indent}/** {doc} */\n");
                at += 3;
            }
            ("* # Safety", Some(doc)) => {
                out += &format!("{indent}* Safety: {doc}\n");
                at += 2;
            }
            _ => {
                let defines = lines[at].starts_with("typedef struct");
                out +=
                    &if defines { lines[at].into() } else { lines[at].replace("struct kavern_", "kavern_") };
                out.push('\n');
                at += 1;
            }
        }
    }
    out
}

/// Names of the functions that a header declares: `kavern_x(` outside of comments and defines.
fn declared_functions(header: &str) -> BTreeSet<String> {
    let code = without_comments(header);
    let lines = code.lines().filter(|line| !line.starts_with('#') && !line.starts_with("typedef"));
    let names = lines.filter_map(|line| {
        let before = line.split_once('(')?.0;
        let name = before.rsplit([' ', '*']).next()?;
        (name.starts_with("kavern_") && before.len() > name.len()).then(|| name.to_string())
    });
    names.collect()
}

fn without_comments(header: &str) -> String {
    let mut out = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        out.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, tail)| tail);
    }
    out + rest
}

/// `#define` lines whose value is a number below zero without parentheses: `2 -X` would eat the sign.
fn bare_negatives(header: &str) -> Vec<String> {
    let defines = header.lines().filter(|line| line.starts_with("#define"));
    let negative = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next().is_some_and(|value| value.starts_with('-'))
    };
    defines.filter(negative).map(String::from).collect()
}

#[test]
fn the_header_is_what_the_source_makes() {
    same_or_bless("include/kavern.h", &make_header(&Surface::read(root())));
}

#[test]
fn the_python_declarations_are_what_the_source_makes() {
    let made = python::write(&Surface::read(root()), VERSION);
    same_or_bless("bindings/python/src/kavern/_ffi.py", &made);
}

#[test]
fn every_type_and_function_of_c_api_is_in_the_header() {
    let surface = Surface::read(root());
    let code = without_comments(&make_header(&surface));
    let has = |name: &str| code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
    let constants = surface.enums.iter().flat_map(|item| item.of.iter().map(|value| &value.name));
    let types = surface.enums.iter().map(|e| &e.name).chain(surface.structs.iter().map(|s| &s.name));
    let functions = surface.functions.iter().map(|f| &f.name);
    let missing: Vec<_> = constants.chain(types).chain(functions).filter(|name| !has(name)).collect();
    assert!(missing.is_empty(), "not in the header: {missing:?}");
    let named: BTreeSet<String> = surface.functions.iter().map(|f| f.name.clone()).collect();
    assert_eq!(declared_functions(&make_header(&surface)), named);
}

#[test]
fn every_public_thing_has_a_doc_and_the_prefix() {
    let surface = Surface::read(root());
    let mut bad = Vec::new();
    for function in &surface.functions {
        if function.doc.is_empty() || !function.name.starts_with("kavern_") {
            bad.push(function.name.clone());
        }
    }
    for item in &surface.structs {
        let fields = item.of.iter().filter(|field| field.doc.is_empty());
        bad.extend(fields.map(|field| format!("{}.{}", item.name, field.name)));
    }
    for item in &surface.enums {
        let values = item.of.iter().filter(|v| v.doc.is_empty() || !v.name.starts_with("KAVERN_"));
        bad.extend(values.map(|value| value.name.clone()));
    }
    assert!(bad.is_empty(), "without doc or prefix: {bad:?}");
}

#[test]
fn constants_are_unique_and_structs_hold_only_fixed_types() {
    let surface = Surface::read(root());
    let names: Vec<_> = surface.enums.iter().flat_map(|e| e.of.iter().map(|v| v.name.clone())).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a constant is declared twice");
    for item in &surface.structs {
        for field in &item.of {
            let fixed = match &field.of {
                surface::CType::Named(name) => {
                    let number = ["u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f32", "f64"];
                    number.contains(&name.as_str())
                        || name == "kavern_status"
                        || surface.callbacks.iter().any(|callback| callback.name == *name)
                }
                surface::CType::Pointer(_) | surface::CType::Array(..) => true,
            };
            assert!(fixed, "{}.{}: no bool, enum, size_t or struct by value", item.name, field.name);
        }
    }
}

#[test]
fn the_library_exports_exactly_the_functions_of_the_header() {
    let path = library();
    let path = path.to_str().expect("a path of text");
    let Some(list) = text_of("nm", &["-D", "--defined-only", "--format=posix", path]) else { return };
    let exported: BTreeSet<String> =
        list.lines().filter_map(|line| line.split_whitespace().next()).map(String::from).collect();
    assert_eq!(exported, declared_functions(&header()));
}

#[test]
fn the_library_has_its_soname_and_is_never_unloaded() {
    let path = library();
    let Some(list) = text_of("readelf", &["-d", "-W", path.to_str().expect("a path of text")]) else {
        return;
    };
    assert!(list.contains("soname: [libkavern.so.0]"), "{list}");
    assert!(list.contains("NODELETE"), "{list}");
    let needs: Vec<_> = list.lines().filter(|line| line.contains("(NEEDED)")).collect();
    let known = ["libc.so", "libgcc_s.so", "libm.so", "ld-linux", "libpthread.so", "libdl.so", "librt.so"];
    let strange = needs.iter().filter(|line| !known.iter().any(|name| line.contains(name)));
    assert_eq!(strange.count(), 0, "the library needs something that not every machine has: {needs:?}");
}

#[test]
fn the_version_is_the_same_everywhere() {
    let define = |name: &str| {
        let text = header();
        let line = text.lines().find(|line| line.starts_with(&format!("#define KAVERN_VERSION_{name} ")));
        line.and_then(|line| line.split(['(', ')']).nth(1).map(String::from)).unwrap_or_default()
    };
    assert_eq!([define("MAJOR"), define("MINOR"), define("PATCH")].join("."), VERSION);
    assert!(read("CHANGELOG.md").contains(&format!("## {VERSION}")), "CHANGELOG.md does not know {VERSION}");
    let major = VERSION.split('.').next().expect("a version has a major number");
    assert!(read("build.rs").contains(&format!("-soname,libkavern.so.{major}")), "the soname in build.rs");
}

#[test]
fn no_constant_is_a_bare_negative_number() {
    assert_eq!(bare_negatives(&header()), Vec::<String>::new());
    assert_eq!(bare_negatives("#define A -2\n#define B (-2)\n#define C(x) -1").len(), 2);
}

#[test]
fn the_header_compiles_without_a_warning_in_every_dialect() {
    let strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-Iinclude"];
    let program = std::env::temp_dir().join(format!("kavern-header-{}.c", std::process::id()));
    let text = "#include <kavern.h>\n#include <kavern.h>\nint main(void) {\n    void *stream = KAVERN_STREAM_DEFAULT;\n    \
                return stream == NULL || KAVERN_SEQ_OF_OP(1 + 1) == KAVERN_OK || KAVERN_ABI_VERSION == 0u;\n}\n";
    std::fs::write(&program, text).expect("a temporary file can be written");
    let path = program.to_str().expect("a path of text");
    for (compiler, language, dialect) in [
        ("cc", "c", "c99"),
        ("cc", "c", "c11"),
        ("cc", "c", "c2x"),
        ("c++", "c++", "c++11"),
        ("c++", "c++", "c++17"),
        ("c++", "c++", "c++20"),
    ] {
        let dialect = format!("-std={dialect}");
        let arguments = [&strict[..], &[&dialect, "-x", language, path]].concat();
        let Some(output) = tool(compiler, &arguments) else { break };
        assert!(output.status.success(), "{dialect}: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_file(&program).expect("the temporary file is ours");
}

#[test]
fn the_status_numbers_of_the_rooms_and_of_c_are_the_same() {
    let text = read("src/error.rs").replace("pub enum Status", "pub enum kavern_room_status");
    let mut rooms = Surface::default();
    rooms.add_file(&text, None);
    let room =
        rooms.enums.iter().find(|e| e.name == "kavern_room_status").expect("error.rs has the statuses");
    let surface = Surface::read(root());
    let outside =
        surface.enums.iter().find(|e| e.name == "kavern_status_code").expect("c_api has the statuses");
    let plain = |name: &str| {
        name.trim_start_matches("KAVERN_").trim_start_matches("ERR_").replace('_', "").to_lowercase()
    };
    let of = |item: &surface::Named<Vec<surface::Named<i64>>>| {
        item.of.iter().map(|value| (plain(&value.name), value.of)).collect::<BTreeSet<_>>()
    };
    assert_eq!(of(room), of(outside));
}

#[test]
fn the_error_catalogue_has_a_row_for_every_status() {
    let catalogue = read("docs/abi.md");
    let surface = Surface::read(root());
    let statuses =
        surface.enums.iter().find(|e| e.name == "kavern_status_code").expect("c_api has the statuses");
    for status in &statuses.of {
        let row = format!("| `{}` | {} |", status.name, status.of);
        assert!(catalogue.contains(&row), "docs/abi.md lacks the row {row}");
    }
}

/// Texts of the blocks of a page that are marked as C.
fn c_examples(page: &str) -> Vec<String> {
    page.split("\n```c\n").skip(1).filter_map(|rest| Some(rest.split_once("\n```")?.0.to_string())).collect()
}

#[test]
fn the_c_example_of_the_readme_compiles_and_runs() {
    let examples = c_examples(&read("README.md"));
    assert_eq!(examples.len(), 1, "the README has one C program");
    let folder = std::env::temp_dir().join(format!("kavern-readme-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
    // Under both names, as an installation has it: the linker asks for one, the loader for the other.
    for name in ["libkavern.so", "libkavern.so.0"] {
        std::os::unix::fs::symlink(library(), folder.join(name)).expect("a link can be made");
    }
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("program.c"), format!("{}\n", examples[0])).expect("a temporary file can be written");
    let strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Iinclude"];
    let (search, run_path) = (format!("-L{}", folder.display()), format!("-Wl,-rpath,{}", folder.display()));
    let (source, program) = (path("program.c"), path("program"));
    let arguments = [&strict[..], &[&source, "-o", &program, &search, "-lkavern", &run_path]].concat();
    if let Some(compiled) = tool("cc", &arguments) {
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let ran = Command::new(&program).output().expect("what was compiled can be started");
        assert!(ran.status.success(), "{:?}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
    }
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}

#[test]
fn docs_are_folded_for_c_readers() {
    let long = "/**\n * A.\n *\n * # Safety\n * `p` is\n * valid.\n */\nint a;\n";
    assert_eq!(for_c_readers(long), "/**\n * A.\n *\n * Safety: `p` is\n * valid.\n */\nint a;\n");
    assert_eq!(for_c_readers("int f(struct kavern_a *a);"), "int f(kavern_a *a);\n");
    assert_eq!(for_c_readers("typedef struct kavern_a {"), "typedef struct kavern_a {\n");
    assert_eq!(for_c_readers("    /**\n     * B.\n     */\n    int b;\n"), "    /** B. */\n    int b;\n");
}

#[test]
fn the_reader_of_declarations_sees_every_form_that_c_api_uses() {
    let mut made_up = Surface::default();
    made_up.add_file(
        "/// A.\n#[repr(i32)] pub enum kavern_a { KAVERN_X = -2, KAVERN_Y }\n\
         pub struct kavern_b { _opaque: [u8; 0] }\n\
         #[repr(C)] pub struct kavern_c { pub name: [c_char; 64], pub b: *mut kavern_b }\n\
         pub type kavern_f = Option<unsafe extern \"C\" fn(userdata: *mut c_void, level: u32)>;\n\
         #[unsafe(no_mangle)] pub unsafe extern \"C\" fn kavern_d(out: *mut *mut kavern_b, n: usize) -> i32 { 0 }\n\
         pub(crate) fn inside() {}\n",
        None,
    );
    assert_eq!(made_up.enums[0].of[1].of, -1);
    assert_eq!((made_up.opaques.len(), made_up.structs.len()), (1, 1));
    let python = python::write(&made_up, "1.2.3");
    assert!(python.contains("KAVERN_ABI_VERSION = (1 << 16) | 2"));
    assert!(python.contains("(\"name\", _c.c_char * 64),"));
    assert!(python.contains("kavern_f = _c.CFUNCTYPE(None, _c.c_void_p, _c.c_uint32)"));
    assert!(python.contains("\"kavern_d\": (_c.c_int32, [_c.POINTER(kavern_b), _c.c_size_t]),"));
    let functions =
        declared_functions("/* kavern_no( */\nkavern_status kavern_x(int a);\nconst char *kavern_y(void);\n");
    assert_eq!(functions.into_iter().collect::<Vec<_>>(), ["kavern_x", "kavern_y"]);
}
