//! What src/c_api declares for C, read with `syn`: enums, opaque objects, structs, callbacks, functions.
//!
//! Knows only the forms that the C ABI uses and panics on any other, so that nothing is left out unseen.

use std::path::Path;

use syn::{Attribute, Expr, Fields, Item, Lit, Type, Visibility};

/// A type as C sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CType {
    /// A number, `c_char`, `c_void`, or the name of a declared type.
    Named(String),
    /// A pointer, const or not.
    Pointer(Box<CType>),
    /// An array inside a struct.
    Array(Box<CType>, usize),
}

/// A name with the first line of its doc.
#[derive(Clone, Debug)]
pub(crate) struct Named<T> {
    /// The C name.
    pub(crate) name: String,
    /// First line of the doc.
    pub(crate) doc: String,
    /// What it is.
    pub(crate) of: T,
}

/// Parameters and result of a function or callback; no result is `c_void`.
#[derive(Clone, Debug)]
pub(crate) struct Signature {
    /// Name and type of each.
    pub(crate) params: Vec<(String, CType)>,
    /// What it returns.
    pub(crate) result: CType,
}

/// Everything that C sees.
#[derive(Debug, Default)]
pub(crate) struct Surface {
    /// Enums with the numbers of their constants.
    pub(crate) enums: Vec<Named<Vec<Named<i64>>>>,
    /// Other names of numbers.
    pub(crate) aliases: Vec<Named<CType>>,
    /// Structs that C only points to.
    pub(crate) opaques: Vec<Named<()>>,
    /// Function pointer types.
    pub(crate) callbacks: Vec<Named<Signature>>,
    /// Structs with their fields.
    pub(crate) structs: Vec<Named<Vec<Named<CType>>>>,
    /// Exported functions.
    pub(crate) functions: Vec<Named<Signature>>,
}

impl Surface {
    /// Reads `src/c_api/mod.rs` and the files that its `mod` lines name.
    pub(crate) fn read(root: &Path) -> Self {
        let folder = root.join("src/c_api");
        let mut surface = Self::default();
        surface
            .add_file(&std::fs::read_to_string(folder.join("mod.rs")).expect("c_api/mod.rs"), Some(&folder));
        surface
    }

    /// Reads one text; follows its `mod` lines into `folder` if given.
    pub(crate) fn add_file(&mut self, text: &str, folder: Option<&Path>) {
        for item in syn::parse_file(text).expect("c_api parses").items {
            match (item, folder) {
                (Item::Mod(module), Some(folder))
                    if module.content.is_none() && !for_tests(&module.attrs) =>
                {
                    let path = folder.join(format!("{}.rs", module.ident));
                    self.add_file(
                        &std::fs::read_to_string(path).expect("the file of a mod line"),
                        Some(folder),
                    );
                }
                (item, _) => self.add(item),
            }
        }
    }

    fn add(&mut self, item: Item) {
        match item {
            Item::Enum(item) if public(&item.vis) && has(&item.attrs, "repr") => {
                let mut next = 0;
                let values = item.variants.iter().map(|variant| {
                    let value = variant.discriminant.as_ref().map_or(next, |(_, value)| integer(value));
                    next = value + 1;
                    Named { name: variant.ident.to_string(), doc: doc(&variant.attrs), of: value }
                });
                self.enums.push(Named {
                    name: item.ident.to_string(),
                    doc: doc(&item.attrs),
                    of: values.collect(),
                });
            }
            Item::Struct(item) if public(&item.vis) => {
                let (name, doc_line) = (item.ident.to_string(), doc(&item.attrs));
                if !name.starts_with("kavern_") {
                    return;
                }
                if !has(&item.attrs, "repr") {
                    self.opaques.push(Named { name, doc: doc_line, of: () });
                    return;
                }
                let Fields::Named(fields) = item.fields else { panic!("{name}: fields need names") };
                let fields = fields.named.iter().map(|field| Named {
                    name: field.ident.as_ref().expect("a named field").to_string(),
                    doc: doc(&field.attrs),
                    of: c_type(&field.ty),
                });
                self.structs.push(Named { name, doc: doc_line, of: fields.collect() });
            }
            Item::Type(item) if public(&item.vis) && item.ident.to_string().starts_with("kavern_") => {
                let (name, doc) = (item.ident.to_string(), doc(&item.attrs));
                match callback(&item.ty) {
                    Some(of) => self.callbacks.push(Named { name, doc, of }),
                    None => self.aliases.push(Named { name, doc, of: c_type(&item.ty) }),
                }
            }
            Item::Fn(item) if item.sig.abi.is_some() && exported(&item.attrs) => {
                let params = item.sig.inputs.iter().map(|input| match input {
                    syn::FnArg::Typed(param) => (pattern(&param.pat), c_type(&param.ty)),
                    syn::FnArg::Receiver(_) => panic!("an exported method"),
                });
                let of = Signature { params: params.collect(), result: result(&item.sig.output) };
                self.functions.push(Named { name: item.sig.ident.to_string(), doc: doc(&item.attrs), of });
            }
            _ => {}
        }
    }
}

fn public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn has(attributes: &[Attribute], name: &str) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident(name))
}

fn for_tests(attributes: &[Attribute]) -> bool {
    attributes
        .iter()
        .any(|a| a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|i| i == "test"))
}

fn exported(attributes: &[Attribute]) -> bool {
    let wrapped = |a: &Attribute| a.parse_args::<syn::Ident>().is_ok_and(|inner| inner == "no_mangle");
    attributes.iter().any(|a| a.path().is_ident("no_mangle") || (a.path().is_ident("unsafe") && wrapped(a)))
}

fn doc(attributes: &[Attribute]) -> String {
    let mut lines = attributes.iter().filter(|a| a.path().is_ident("doc")).filter_map(|a| match &a.meta {
        syn::Meta::NameValue(pair) => match &pair.value {
            Expr::Lit(syn::ExprLit { lit: Lit::Str(text), .. }) => Some(text.value().trim().to_string()),
            _ => None,
        },
        _ => None,
    });
    lines.next().unwrap_or_default()
}

fn integer(value: &Expr) -> i64 {
    match value {
        Expr::Lit(syn::ExprLit { lit: Lit::Int(number), .. }) => number.base10_parse().expect("a number"),
        Expr::Unary(syn::ExprUnary { op: syn::UnOp::Neg(_), expr, .. }) => -integer(expr),
        Expr::Binary(syn::ExprBinary { op: syn::BinOp::Shl(_), left, right, .. }) => {
            integer(left) << integer(right)
        }
        other => panic!("write the number out: {other:?}"),
    }
}

fn pattern(pattern: &syn::Pat) -> String {
    match pattern {
        syn::Pat::Ident(name) => name.ident.to_string().trim_start_matches("r#").to_string(),
        other => panic!("a parameter without a name: {other:?}"),
    }
}

fn result(output: &syn::ReturnType) -> CType {
    match output {
        syn::ReturnType::Default => CType::Named("c_void".into()),
        syn::ReturnType::Type(_, ty) => c_type(ty),
    }
}

/// The signature behind `extern "C" fn(..)` or an `Option` of it.
fn callback(ty: &Type) -> Option<Signature> {
    match ty {
        Type::BareFn(function) => {
            let named = |(i, arg): (usize, &syn::BareFnArg)| {
                (arg.name.as_ref().map_or(format!("a{i}"), |(name, _)| name.to_string()), c_type(&arg.ty))
            };
            let params = function.inputs.iter().enumerate().map(named).collect();
            Some(Signature { params, result: result(&function.output) })
        }
        Type::Path(path) => callback(option(path)?),
        _ => None,
    }
}

fn option(path: &syn::TypePath) -> Option<&Type> {
    let last = path.path.segments.last().filter(|segment| segment.ident == "Option")?;
    match &last.arguments {
        syn::PathArguments::AngleBracketed(arguments) => match arguments.args.first() {
            Some(syn::GenericArgument::Type(inner)) => Some(inner),
            _ => None,
        },
        _ => None,
    }
}

fn c_type(ty: &Type) -> CType {
    match ty {
        Type::Ptr(pointer) => CType::Pointer(Box::new(c_type(&pointer.elem))),
        Type::Reference(reference) => CType::Pointer(Box::new(c_type(&reference.elem))),
        Type::Array(array) => CType::Array(Box::new(c_type(&array.elem)), integer(&array.len) as usize),
        Type::Path(path) => match option(path) {
            Some(inner) => c_type(inner),
            None => CType::Named(path.path.segments.last().expect("a path has an end").ident.to_string()),
        },
        other => panic!("a type that C does not know: {other:?}"),
    }
}
