//! Calls of libtorch's operators by name, for graphs whose operators are known at run time only.

use super::{check, take};
use std::ffi::{CString, c_char, c_void};
use std::fmt;
use tch::Tensor;

/// A value that an operator takes or returns.
#[derive(Debug, Default)]
pub enum Value {
    /// Python's None.
    #[default]
    None,
    /// A tensor.
    Tensor(Tensor),
    /// An integer, also the number of an element type, a layout or a memory format.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// A name, such as the mode of a padding, or a device.
    Text(String),
    /// A list or a tuple.
    List(Vec<Value>),
}

impl Clone for Value {
    /// Copies the value; a tensor is shared.
    fn clone(&self) -> Value {
        match self {
            Value::None => Value::None,
            Value::Tensor(tensor) => Value::Tensor(tensor.shallow_clone()),
            Value::Int(value) => Value::Int(*value),
            Value::Float(value) => Value::Float(*value),
            Value::Bool(value) => Value::Bool(*value),
            Value::Text(text) => Value::Text(text.clone()),
            Value::List(items) => Value::List(items.clone()),
        }
    }
}

/// An argument of an operator.
#[derive(Clone, Debug)]
pub struct Argument {
    /// Name, as in `torch.ops.aten`.
    pub name: String,
    /// Value where none is given; absent if one must be given.
    pub default: Option<Value>,
}

/// An operator of libtorch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Operator(*const c_void);

// SAFETY: operators are immutable and live as long as the process.
unsafe impl Send for Operator {}
// SAFETY: as above.
unsafe impl Sync for Operator {}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Operator")
    }
}

impl Operator {
    /// Returns the operator of a name, such as `aten::conv2d`, and the overload of a name, which is
    /// empty for most; none if libtorch has no such operator.
    pub fn find(name: &str, overload: &str) -> Option<Operator> {
        let (name, overload) = (CString::new(name).ok()?, CString::new(overload).ok()?);
        // SAFETY: both strings end with a zero.
        let found = unsafe { foldconv_operator(name.as_ptr(), overload.as_ptr()) };
        (!found.is_null()).then_some(Operator(found))
    }

    /// Returns the arguments in their order, and the number of results.
    pub fn schema(self) -> (Vec<Argument>, usize) {
        let mut results = 0;
        // SAFETY: the operator is live; the string is ours to free.
        let json = unsafe { take(foldconv_operator_schema(self.0, &mut results)) };
        let arguments: Vec<serde_json::Value> = serde_json::from_str(&json).expect("written by dispatch.cpp");
        let argument = |of: &serde_json::Value| Argument {
            name: of["name"].as_str().unwrap_or_default().into(),
            default: of.get("default").map(value),
        };
        (arguments.iter().map(argument).collect(), results as usize)
    }

    /// Calls the operator with all its arguments in their order. Gradients are recorded as usual.
    ///
    /// # Errors
    /// libtorch's message.
    pub fn call(self, arguments: &[Value]) -> Result<Vec<Value>, String> {
        let mut lists = Vec::new();
        let raw: Vec<Raw> = arguments.iter().map(|value| Raw::borrow(value, &mut lists)).collect();
        let (mut results, mut n) = (std::ptr::null_mut(), 0);
        // SAFETY: the arguments borrow from `arguments` and `lists`, which outlive the call. On
        // success the array is ours, and each tensor in it is taken once.
        unsafe {
            check(foldconv_operator_call(self.0, raw.as_ptr(), raw.len() as i64, &mut results, &mut n))?;
            let values = (0..n as usize).map(|at| (*results.add(at)).own()).collect();
            foldconv_values_free(results, n);
            Ok(values)
        }
    }
}

/// Returns a number that JSON does not have, which is written as text.
fn special(text: &serde_json::Value) -> f64 {
    text.as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

/// Converts a value that json.h wrote, and that is no tensor.
pub fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Bool(flag) => Value::Bool(*flag),
        serde_json::Value::Number(number) => Value::Int(number.as_i64().unwrap_or_default()),
        serde_json::Value::Array(items) => Value::List(items.iter().map(value).collect()),
        serde_json::Value::Object(of) => match (of.get("float"), of.get("text")) {
            (Some(number), _) => Value::Float(number.as_f64().unwrap_or_else(|| special(number))),
            (_, Some(text)) => Value::Text(text.as_str().unwrap_or_default().into()),
            _ => Value::None,
        },
        _ => Value::None,
    }
}

/// `Value` of dispatch.cpp.
#[repr(C)]
struct Raw {
    tag: i32,
    integer: i64,
    number: f64,
    pointer: *mut c_void,
}

impl Raw {
    const NONE: Raw = Raw { tag: 0, integer: 0, number: 0., pointer: std::ptr::null_mut() };

    /// Borrows from a value. The arrays of its lists are kept in `lists`.
    fn borrow(value: &Value, lists: &mut Vec<Vec<Raw>>) -> Raw {
        match value {
            Value::None => Raw::NONE,
            Value::Tensor(tensor) => Raw { tag: 1, pointer: tensor.as_ptr().cast_mut().cast(), ..Raw::NONE },
            Value::Int(integer) => Raw { tag: 2, integer: *integer, ..Raw::NONE },
            Value::Float(number) => Raw { tag: 3, number: *number, ..Raw::NONE },
            Value::Bool(flag) => Raw { tag: 4, integer: (*flag).into(), ..Raw::NONE },
            Value::Text(text) => {
                let pointer = text.as_ptr().cast_mut().cast();
                Raw { tag: 5, integer: text.len() as i64, pointer, ..Raw::NONE }
            }
            Value::List(items) => {
                let mut array: Vec<Raw> = items.iter().map(|item| Raw::borrow(item, lists)).collect();
                let raw = Raw { tag: 6, integer: array.len() as i64, pointer: array.as_mut_ptr().cast(), ..Raw::NONE };
                // Moving a vector leaves its elements where they are.
                lists.push(array);
                raw
            }
        }
    }

    /// Takes the tensors, and copies the rest.
    ///
    /// # Safety
    /// The value must be a result of `foldconv_operator_call`, and is taken once.
    unsafe fn own(&self) -> Value {
        match self.tag {
            1 => Value::Tensor(unsafe { Tensor::from_ptr(self.pointer.cast()) }),
            2 => Value::Int(self.integer),
            3 => Value::Float(self.number),
            4 => Value::Bool(self.integer != 0),
            5 => {
                let bytes = unsafe { std::slice::from_raw_parts(self.pointer.cast::<u8>(), self.integer as usize) };
                Value::Text(String::from_utf8_lossy(bytes).into_owned())
            }
            6 => {
                let items = self.pointer.cast::<Raw>();
                Value::List((0..self.integer as usize).map(|at| unsafe { (*items.add(at)).own() }).collect())
            }
            _ => Value::None,
        }
    }
}

unsafe extern "C" {
    fn foldconv_operator(name: *const c_char, overload: *const c_char) -> *const c_void;
    fn foldconv_operator_schema(operator: *const c_void, results: *mut i64) -> *mut c_char;
    fn foldconv_operator_call(
        operator: *const c_void,
        arguments: *const Raw,
        n: i64,
        results: *mut *mut Raw,
        n_results: *mut i64,
    ) -> *mut c_char;
    fn foldconv_values_free(values: *mut Raw, n: i64);
}
