//! Config enums of the form `{name: maconv, intermediate: 20}`: a mapping whose `name` chooses the
//! type of the other keys.
//!
//! serde's internally tagged enums read the same form, but their errors do not name the key of a
//! wrong value; these do.

/// Declares an enum of named configs with its serialisation and deserialisation. Each variant holds
/// the `Config` of one operator, network or data set, which implements the given trait. An unknown
/// name or key is an error that names it.
#[macro_export]
macro_rules! registry {
    ($(#[$doc:meta])* $vis:vis enum $enum:ident: $access:vis $trait:path, $what:literal {
        $($(#[doc = $summary:literal])* $name:literal => $variant:ident($config:ty)),+ $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        $vis enum $enum { $($(#[doc = $summary])* $variant($config)),+ }

        impl $enum {
            /// All names that a config file may give.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// Returns the name as in the config file.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name),+ }
            }

            /// Returns the options as the trait of their kind.
            $access fn recipe(&self) -> &dyn $trait {
                match self { $(Self::$variant(config) => config),+ }
            }

            /// Returns the options for resolution of those that are left open.
            #[allow(dead_code)]
            $access fn recipe_mut(&mut self) -> &mut dyn $trait {
                match self { $(Self::$variant(config) => config),+ }
            }

            /// Returns all names with their options, as documented in the code.
            pub fn entries() -> Vec<$crate::options::Entry> {
                $crate::options::variants::<Self>()
            }
        }

        impl schemars::JsonSchema for $enum {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($enum).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let variants = vec![$({
                    let options = <$config as schemars::JsonSchema>::json_schema(generator);
                    $crate::registry::variant($what, $name, &[$($summary),*], options, generator)
                }),+];
                schemars::json_schema!({"oneOf": variants})
            }
        }

        impl serde::Serialize for $enum {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$variant(config) => {
                        $crate::registry::to_mapping::<S::Error, _>($name, config)?.serialize(serializer)
                    })+
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $enum {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let (name, rest) = $crate::registry::split_name::<D>(deserializer, $what, Self::NAMES)?;
                match name.as_str() {
                    $($name => Ok(Self::$variant($crate::registry::options::<D::Error, _>(rest)?)),)+
                    _ => unreachable!("split_name returns a known name"),
                }
            }
        }
    };
}

use schemars::{Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Serialises a config to a mapping of `name` followed by the options.
#[doc(hidden)]
pub fn to_mapping<E: serde::ser::Error, C: Serialize>(name: &str, config: &C) -> Result<Map<String, Value>, E> {
    let mut mapping = Map::new();
    mapping.insert("name".into(), name.into());
    match serde_json::to_value(config).map_err(E::custom)? {
        Value::Object(options) => mapping.extend(options),
        Value::Null => {}
        other => return Err(E::custom(format!("options must be a mapping, not {other:?}"))),
    }
    Ok(mapping)
}

/// Returns the schema of a name and its options.
#[doc(hidden)]
pub fn variant(
    what: &str,
    name: &str,
    summary: &[&str],
    options: Schema,
    generator: &SchemaGenerator,
) -> serde_json::Value {
    let options = options.to_value();
    // The schema of a struct that wraps another one is a reference.
    let wrapped = options["$ref"].as_str().and_then(|path| generator.definitions().get(path.rsplit('/').next()?));
    let options = wrapped.unwrap_or(&options);
    let mut properties = serde_json::Map::new();
    properties.insert("name".into(), serde_json::json!({"const": name}));
    properties.extend(options["properties"].as_object().cloned().unwrap_or_default());
    let required = options["required"].as_array().into_iter().flatten().cloned();
    let required: Vec<_> = std::iter::once("name".into()).chain(required).collect();
    let summary = summary.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    serde_json::json!({
        "type": "object", "what": what, "description": summary, "properties": properties, "required": required,
        "additionalProperties": options["additionalProperties"],
    })
}

/// Splits a mapping into `name` and the rest; refuses a missing or unknown name.
#[doc(hidden)]
pub fn split_name<'de, D: Deserializer<'de>>(
    deserializer: D,
    what: &str,
    known: &[&str],
) -> Result<(String, Map<String, Value>), D::Error> {
    let mut mapping = Map::deserialize(deserializer)?;
    let name = match mapping.remove("name") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(D::Error::custom(format!("name: the {what}'s name must be a string"))),
        None => return Err(D::Error::custom(format!("name: missing; give one of {}", known.join(", ")))),
    };
    if !known.contains(&name.as_str()) {
        let hint = crate::error::suggest(&name, known.iter().copied());
        return Err(D::Error::custom(format!("name: no {what} `{name}`{hint}")));
    }
    Ok((name, mapping))
}

/// Reads the options; an error names the key.
#[doc(hidden)]
pub fn options<E: serde::de::Error, C: DeserializeOwned>(rest: Map<String, Value>) -> Result<C, E> {
    serde_path_to_error::deserialize(Value::Object(rest)).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if path == "." { E::custom(inner) } else { E::custom(format!("{path}: {inner}")) }
    })
}

/// Returns whether an option has its default value. Options that were introduced later are not
/// written if they have it, so that names that are derived from the written config, such as those
/// of trials, do not change.
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
