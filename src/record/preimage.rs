//! Preimages: everything that a key is a digest of, kept readable so that a miss can be explained.

use std::fmt;

use crate::digest::Digest;
use crate::encoding::{DecodeError, Decoder, Encoder};

/// The cache key of a step: the digest of the encoded [`Preimage`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub Digest);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0.short())
    }
}

/// One input's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// A number.
    Uint(u64),
    /// The digest of content that is somewhere else.
    Digest(Digest),
    /// Values in an order that matters.
    List(Vec<Value>),
    /// Named values, such as an environment; the order is kept and matters.
    Map(Vec<(String, Value)>),
}

/// A named input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The input's name: `command`, `env`, `tree` …
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// The preimage of a key: named inputs in a fixed order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preimage {
    /// The inputs.
    pub fields: Vec<Field>,
}

/// Begins every encoded preimage, so that a key can never be the digest of anything else. The number is the
/// version of the meaning of keys: raise it when the same inputs would have to give another result.
const MAGIC: &[u8] = b"crossdock-key-1\n";

/// Values nest at most this deep; deeper input is hostile.
const DEPTH_MAX: u32 = 8;

impl Preimage {
    /// Adds an input.
    pub fn add(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.fields.push(Field { name: name.to_owned(), value: value.into() });
        self
    }

    /// The same inputs, but another value of `name`.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        if let Some(field) = self.fields.iter_mut().find(|field| field.name == name) {
            field.value = value.into();
        }
        self
    }

    /// The value of the input `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|field| field.name == name).map(|field| &field.value)
    }

    /// The key.
    pub fn key(&self) -> Key {
        let mut encoder = Encoder::new();
        self.encode(&mut encoder);
        let mut hasher = crate::digest::Hasher::default();
        hasher.update(MAGIC);
        hasher.update(&encoder.finish());
        Key(hasher.finish())
    }

    /// Appends this preimage to `encoder`.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.list(&self.fields, |e, field| {
            e.text(&field.name);
            field.value.encode(e);
        });
    }

    /// Reads what [`Preimage::encode`] wrote.
    pub fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let fields = decoder
            .list(|d| Ok(Field { name: d.text()?.to_owned(), value: Value::decode(d, DEPTH_MAX)? }))?;
        Ok(Self { fields })
    }
}

impl Value {
    fn encode(&self, encoder: &mut Encoder) {
        match self {
            Self::Text(text) => {
                encoder.uint(0).text(text);
            }
            Self::Bytes(bytes) => {
                encoder.uint(1).bytes(bytes);
            }
            Self::Uint(number) => {
                encoder.uint(2).uint(*number);
            }
            Self::Digest(digest) => {
                encoder.uint(3).digest(digest);
            }
            Self::List(items) => {
                encoder.uint(4).list(items, |e, item| item.encode(e));
            }
            Self::Map(items) => {
                encoder.uint(5).list(items, |e, (name, value)| {
                    e.text(name);
                    value.encode(e);
                });
            }
        }
    }

    fn decode(decoder: &mut Decoder<'_>, depth: u32) -> Result<Self, DecodeError> {
        let Some(depth) = depth.checked_sub(1) else { return Err(decoder.malformed("nesting")) };
        Ok(match decoder.uint()? {
            0 => Self::Text(decoder.text()?.to_owned()),
            1 => Self::Bytes(decoder.bytes()?.to_vec()),
            2 => Self::Uint(decoder.uint()?),
            3 => Self::Digest(decoder.digest()?),
            4 => Self::List(decoder.list(|d| Self::decode(d, depth))?),
            5 => Self::Map(decoder.list(|d| Ok((d.text()?.to_owned(), Self::decode(d, depth)?)))?),
            _ => return Err(decoder.malformed("value")),
        })
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Uint(number)
    }
}

impl From<Digest> for Value {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Uint(flag.into())
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(items: Vec<T>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }
}
