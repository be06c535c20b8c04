//! Interpretation of a pickle's calls as tensors and dicts of tensors, as PyTorch's
//! `torch/_utils.py` rebuilds them.

use super::Entry;
use super::stored::{Storage, Stored};
use crate::pickle::{Node, Pickle};
use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use tch::Kind;

/// Maximum nesting depth of dicts.
const DEEPEST: usize = 16;
/// Maximum number of values visited in one file. Dicts that contain each other repeatedly would
/// otherwise take unbounded time.
const MOST_STEPS: usize = 1 << 20;
/// Memory, in bytes beyond the size of the file, that names and positions of tensors may take; a
/// dict that is referenced many times is copied each time. An entry counts `PLACE` bytes, its name
/// with those of the enclosing dicts, and 16 bytes per axis.
const ROOM: u64 = 4 << 20;
const PLACE: usize = 128;

/// Functions, and classes whose names begin with a lower-case letter, that a file may refer to:
/// tensors, plain values and their containers. None is ever called.
const NAMES: [&str; 40] = [
    "collections.defaultdict",
    "collections.deque",
    "datetime.datetime",
    "datetime.date",
    "datetime.timedelta",
    "_codecs.encode",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.bool_",
    "numpy.int32",
    "numpy.int64",
    "numpy.float32",
    "numpy.float64",
    "torch.device",
    "torch.dtype",
    "torch._tensor._rebuild_from_type_v2",
    "torch._C._TensorBase",
    "torch.serialization._get_layout",
    "torch.strided",
    "torch.preserve_format",
    "torch.contiguous_format",
    "torch.channels_last",
    "datetime.time",
    "datetime.timezone",
    "functools.partial",
    "re._compile",
    "array.array",
    "array._array_reconstructor",
    "copyreg.__newobj__",
    "numpy.core.numeric._frombuffer",
    "numpy._core.numeric._frombuffer",
    "torch.per_tensor_affine",
    "torch.per_channel_affine",
    "torch.per_channel_affine_float_qparams",
];
const BUILTINS: [&str; 13] = [
    "set",
    "frozenset",
    "list",
    "dict",
    "tuple",
    "object",
    "int",
    "float",
    "bool",
    "bytes",
    "bytearray",
    "complex",
    "slice",
];
/// Precisions that are recognised but can't be read.
const OTHER_KINDS: [&str; 5] = ["torch.uint16", "torch.uint32", "torch.uint64", "torch.complex64", "torch.complex128"];
/// Functions that rebuild tensors and are recognised, but whose tensors can't be read.
const OTHER_TENSORS: [(&str, &str); 5] = [
    ("sparse_tensor", "a sparse tensor"),
    ("sparse_csr_tensor", "a sparse tensor"),
    ("nested_tensor", "a nested tensor"),
    ("qtensor", "a quantised tensor"),
    ("meta_tensor_no_storage", "a tensor on the device meta, which has no numbers"),
];
/// Reason why the objects of a file are not made.
const NO_CODE: &str =
    "which is neither a tensor nor a plain value, and no code of a file is run; save `model.state_dict()` alone";
/// Prefix of the functions that rebuild tensors.
const REBUILD: &str = "torch._utils._rebuild_";
/// Prefix of TorchScript's own classes.
const SCRIPT: &str = "__torch__.";

/// Checks that a pickle may refer to a name. Objects of any class are accepted beside the tensors,
/// because they are not made; an unknown function means that the file wants to run code.
pub(super) fn known(name: &str) -> Result<(), String> {
    let builtin = name.strip_prefix("builtins.").or_else(|| name.strip_prefix("__builtin__."));
    let below = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
    if NAMES.contains(&name)
        || builtin.is_some_and(|name| BUILTINS.contains(&name))
        || name.rsplit('.').next().is_some_and(is_class)
        || below(SCRIPT)
        || below(REBUILD)
        || below("torch.jit._pickle.")
        || below("numpy.random.")
        || kind(name).is_some()
        || below("torch.float8_")
        || OTHER_KINDS.contains(&name)
    {
        return Ok(());
    }
    Err(NO_CODE.into())
}

/// Returns whether a name is that of a class: by Python's convention it begins with a capital
/// letter, possibly after `_`.
fn is_class(name: &str) -> bool {
    name.trim_start_matches('_').starts_with(|first: char| first.is_ascii_uppercase())
}

/// Returns the precision of a name such as `torch.float32`.
pub(super) fn kind(name: &str) -> Option<Kind> {
    Some(match name.strip_prefix("torch.")? {
        "float32" | "float" => Kind::Float,
        "float64" | "double" => Kind::Double,
        "float16" | "half" => Kind::Half,
        "bfloat16" => Kind::BFloat16,
        "int64" | "long" => Kind::Int64,
        "int32" | "int" => Kind::Int,
        "int16" | "short" => Kind::Int16,
        "int8" => Kind::Int8,
        "uint8" => Kind::Uint8,
        "bool" => Kind::Bool,
        _ => return None,
    })
}

/// Returns the precision of a class such as `torch.FloatStorage` or `torch.cuda.FloatStorage`.
pub(super) fn kind_of_storage(name: &str) -> Option<Kind> {
    let name = name.strip_prefix("torch.cuda.").or_else(|| name.strip_prefix("torch."))?;
    Some(match name.strip_suffix("Storage")? {
        "Float" => Kind::Float,
        "Double" => Kind::Double,
        "Half" => Kind::Half,
        "BFloat16" => Kind::BFloat16,
        "Long" => Kind::Int64,
        "Int" => Kind::Int,
        "Short" => Kind::Int16,
        "Char" => Kind::Int8,
        "Byte" => Kind::Uint8,
        "Bool" => Kind::Bool,
        _ => return None,
    })
}

/// The object that a persistent identifier of a pickle refers to.
pub(super) enum Kept {
    /// A storage.
    Storage(Storage),
    /// A complete tensor.
    Tensor(Stored),
}

/// A persistent identifier of a storage: `('storage', class, key, location, elements[, view])`.
pub(super) struct StorageId<'p> {
    /// Name of the storage in the file.
    pub key: &'p str,
    /// Precision; uint8 for an untyped storage.
    pub kind: Kind,
    /// Number of elements that the identifier claims.
    pub elements: u64,
    /// Offset of the part that the identifier refers to, in elements.
    pub offset: u64,
}

impl<'p> StorageId<'p> {
    pub(super) fn of(identifier: Node<'p>) -> Result<StorageId<'p>, String> {
        let unknown = "refers to a storage in an unknown way";
        let fields = identifier.tuple().ok_or(unknown)?;
        let [tag, class, key, _, elements, view @ ..] = fields.as_slice() else { return Err(unknown.into()) };
        if tag.text() != Some("storage") {
            return Err("holds more than tensors: a whole model; save `model.state_dict()` alone".into());
        }
        let class = class.name().ok_or(unknown)?;
        let kind = if class == "torch.storage.UntypedStorage" { Some(Kind::Uint8) } else { kind_of_storage(class) };
        let natural = |node: &Node| node.int().and_then(|n| u64::try_from(n).ok()).ok_or(unknown);
        // Files before torch 0.4 may refer to a part, as (key, offset, elements).
        let offset = match view.first().and_then(|view| view.tuple()).as_deref() {
            Some([_, offset, _]) => natural(offset)?,
            _ => 0,
        };
        let kind = kind.ok_or_else(|| format!("has a `{class}`, which is not read"))?;
        Ok(StorageId { key: key.text().ok_or(unknown)?, kind, elements: natural(elements)?, offset })
    }

    /// Returns the number of bytes that the identifier claims.
    pub(super) fn bytes(&self) -> Result<u64, String> {
        let bytes = self.elements.checked_mul(self.kind.elt_size_in_bytes() as u64);
        bytes.ok_or_else(|| format!("claims a storage of {} elements", self.elements))
    }
}

/// Returns the dicts and tensors of a pickle; `length` is the size of the file, and `resolve` finds
/// the object of a persistent identifier.
pub(super) fn entries(
    pickle: &Pickle,
    length: u64,
    resolve: &dyn Fn(Node) -> Result<Kept, String>,
) -> Result<Option<Entry>, String> {
    let (room, kinds) = (length.saturating_add(ROOM), HashMap::new());
    let root = pickle.root();
    let entry = Rebuild { resolve, kinds, steps: 0, room, path: 0 }.entry(root, 0)?;
    match (&entry, root.call()) {
        (None, Some((name, _))) => Err(format!("asks for `{name:.80}`, {NO_CODE}")),
        _ => Ok(entry),
    }
}

struct Rebuild<'r> {
    resolve: &'r dyn Fn(Node) -> Result<Kept, String>,
    /// Precision of each storage, by its position.
    kinds: HashMap<u64, Kind>,
    steps: usize,
    /// Bytes that names and positions may still take.
    room: u64,
    /// Total length of the keys that lead to the current dict.
    path: usize,
}

impl Rebuild<'_> {
    /// Returns the entry of a value; None if it is neither a tensor nor a dict.
    fn entry(&mut self, node: Node, depth: usize) -> Result<Option<Entry>, String> {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err("has dicts that hold each other without end".into());
        }
        if let Some(identifier) = node.persistent() {
            return Ok(match (self.resolve)(identifier)? {
                Kept::Tensor(tensor) => Some(Entry::Tensor(tensor)),
                Kept::Storage(_) => None,
            });
        }
        match node.call() {
            None => self.dict(node, depth),
            Some((name, arguments)) => self.call(node, name, &arguments, depth),
        }
    }

    fn dict(&mut self, node: Node, depth: usize) -> Result<Option<Entry>, String> {
        if depth >= DEEPEST {
            return Ok(None);
        }
        let Some(entries) = node.entries() else { return self.sequence(node, depth) };
        let mut items = Vec::new();
        for (key, value) in entries {
            self.item(key, value, depth, &mut items)?;
        }
        Ok(Some(Entry::Dict(last_of_each(items))))
    }

    /// Returns the dicts in a list or a tuple such as `(epoch, state)`, with their indices as keys.
    /// Tensors directly in a sequence are a history, not weights.
    fn sequence(&mut self, node: Node, depth: usize) -> Result<Option<Entry>, String> {
        let Some(nodes) = node.tuple().or_else(|| Some(node.list()?.collect())) else { return Ok(None) };
        let mut items = Vec::new();
        for (at, node) in nodes.into_iter().enumerate() {
            self.named(&at.to_string(), node, depth, &mut items)?;
        }
        items.retain(|(_, entry)| matches!(entry, Entry::Dict(_)));
        Ok((!items.is_empty()).then_some(Entry::Dict(items)))
    }

    fn item(&mut self, key: Node, value: Node, depth: usize, items: &mut Vec<(String, Entry)>) -> Result<(), String> {
        let digits = key.int().map(|key| key.to_string());
        match key.text().or(digits.as_deref()) {
            Some(key) => self.named(key, value, depth, items),
            None => Ok(()),
        }
    }

    fn named(&mut self, key: &str, value: Node, depth: usize, items: &mut Vec<(String, Entry)>) -> Result<(), String> {
        self.path += key.len();
        let entry = self.entry(value, depth + 1);
        let path = self.path;
        self.path -= key.len();
        match entry {
            Ok(Some(entry)) => {
                let axes = if let Entry::Tensor(tensor) = &entry { tensor.size.len() } else { 0 };
                let taken = (PLACE + path + 16 * axes) as u64;
                self.room = self.room.checked_sub(taken).ok_or("has dicts that hold each other too often")?;
                items.push((key.to_string(), entry));
            }
            Ok(None) => {}
            Err(what) if what.contains(" (at `") => return Err(what),
            Err(what) => return Err(format!("{what} (at `{key:.80}`)")),
        }
        Ok(())
    }

    fn call(&mut self, node: Node, name: &str, arguments: &[Node], depth: usize) -> Result<Option<Entry>, String> {
        match (name, arguments) {
            (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                [storage, offset, size, strides, more @ ..],
            ) => match more.get(2).is_some_and(|metadata| metadata.get("neg").or(metadata.get("conj")).is_some()) {
                true => Ok(Some(Entry::Unreadable("a view with another sign".into()))),
                false => self.tensor(*storage, *offset, *size, *strides, None).map(Some),
            },
            ("torch._utils._rebuild_tensor_v3", [storage, offset, size, strides, _, _, kind, ..]) => {
                let name = kind.name().unwrap_or("a tensor of an unknown precision");
                match self::kind(name) {
                    Some(kind) => self.tensor(*storage, *offset, *size, *strides, Some(kind)).map(Some),
                    None => Ok(Some(Entry::Unreadable(name.trim_start_matches("torch.").to_string()))),
                }
            }
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", [data, ..]) => {
                self.entry(*data, depth)
            }
            ("torch._tensor._rebuild_from_type_v2", [function, _, arguments, ..]) if depth < DEEPEST => {
                match (function.name(), arguments.tuple()) {
                    (Some(name), Some(arguments)) => self.call(node, name, &arguments, depth + 1),
                    _ => Ok(None),
                }
            }
            _ if name.starts_with(REBUILD) => {
                let way = name.trim_start_matches(REBUILD);
                let known = OTHER_TENSORS.iter().find(|(other, _)| *other == way);
                let what = known.map_or_else(|| format!("a tensor made by `{way:.80}`"), |(_, what)| what.to_string());
                Ok(Some(Entry::Unreadable(what)))
            }
            // Python 2 passed the pairs as an argument.
            ("collections.OrderedDict", [pairs]) if pairs.list().is_some() => {
                let mut items = Vec::new();
                for pair in pairs.list().into_iter().flatten() {
                    let pair = pair.tuple().or_else(|| Some(pair.list()?.collect()));
                    if let Some([key, value]) = pair.as_deref() {
                        self.item(*key, *value, depth, &mut items)?;
                    }
                }
                Ok(Some(Entry::Dict(last_of_each(items))))
            }
            ("collections.OrderedDict" | "collections.defaultdict", _) => self.dict(node, depth),
            // The state of a TorchScript module is a dict of its tensors and submodules.
            _ if name.starts_with(SCRIPT) => match node.state() {
                Some(state) => self.dict(state, depth),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Returns the tensor that is a view of a storage; `kind` is its precision if the storage is
    /// untyped.
    fn tensor(
        &mut self,
        storage: Node,
        offset: Node,
        size: Node,
        strides: Node,
        kind: Option<Kind>,
    ) -> Result<Entry, String> {
        let unknown = "has a tensor in an unknown form";
        let Kept::Storage(mut storage) = (self.resolve)(storage.persistent().ok_or(unknown)?)? else {
            return Err(unknown.into());
        };
        // PyTorch gives a storage the precision of the first reference to it.
        let first = *self.kinds.entry(storage.start).or_insert(storage.kind);
        if first != storage.kind {
            return Err(format!("has a storage of two precisions, {first:?} and {:?}", storage.kind));
        }
        storage.kind = kind.unwrap_or(storage.kind);
        let numbers = |node: Node| {
            // torch.Size is a tuple; if it was pickled as torch.Size, it is a call.
            let items = node.tuple().or_else(|| node.call()?.1.first()?.tuple());
            items.and_then(|items| items.into_iter().map(Node::int).collect::<Option<Vec<i64>>>()).ok_or(unknown)
        };
        let offset = offset.int().ok_or(unknown)?;
        Stored::new(storage, offset, numbers(size)?, numbers(strides)?).map(Entry::Tensor)
    }
}

/// Returns the last value of each key at the position of its first occurrence, as Python's dict
/// does.
fn last_of_each(items: Vec<(String, Entry)>) -> Vec<(String, Entry)> {
    let (mut places, mut kept) = (HashMap::new(), Vec::<(String, Entry)>::with_capacity(items.len()));
    for (key, entry) in items {
        match places.entry(key) {
            Vacant(place) => {
                kept.push((place.key().clone(), entry));
                place.insert(kept.len() - 1);
            }
            Occupied(place) => kept[*place.get()].1 = entry,
        }
    }
    kept
}
