//! What a step looked at: the *shape* of its read set, and the *values* that it saw (`docs/formats.md`, "Read sets").

use std::collections::{BTreeSet, HashMap};

use crate::digest::Digest;
use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::layer::path_problem;
use crate::tree::{Look, Observer, Seen, Tree};

use super::preimage::{Preimage, Value};

/// An encoded shape may have this many bytes: some hundreds of thousands of paths.
pub const SHAPE_BYTES_MAX: u64 = 32 << 20;

/// Encoded values may have this many bytes: as many as there are paths in the largest shape.
pub const VALUES_BYTES_MAX: u64 = 32 << 20;

const MAGIC: &[u8] = b"crossdock-shape\n";
const VERSION: u64 = 1;

/// A step looks into this many trees at most: its own, and one for each mount that shows something.
const TREES_MAX: usize = 256;

/// The paths of one tree, sorted, each with how it was looked at.
pub type Looks = Vec<(Vec<u8>, Look)>;

/// The paths that a step looked at: first those of the tree that it starts from, then those of what each of its mounts
/// shows, in their order. Equal shapes have equal bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// The paths of each tree.
    pub trees: Vec<Looks>,
}

impl Shape {
    /// The shape as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.uint(VERSION);
        encoder.list(&self.trees, |e, looks| {
            let mut before: &[u8] = b"";
            e.list(looks, |e, (path, look)| {
                // Neighbours have most of their path in common.
                let shared = path.iter().zip(before).take_while(|(a, b)| a == b).count();
                e.uint(shared as u64).bytes(&path[shared..]).uint(look.bits().into());
                before = path;
            });
        });
        [MAGIC, &encoder.finish()].concat()
    }

    /// Reads what [`Shape::encode`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = begin("shape", MAGIC, SHAPE_BYTES_MAX, bytes)?;
        let mut left = SHAPE_BYTES_MAX;
        let trees = decoder.list(|d| {
            let mut before: Option<Vec<u8>> = None;
            d.list(|d| {
                let shared: usize = d.small("path")?;
                let suffix = d.bytes()?;
                let common = match &before {
                    Some(before) => before.get(..shared).ok_or_else(|| d.malformed("path"))?,
                    None if shared == 0 => b"",
                    None => return Err(d.malformed("path")),
                };
                let path = [common, suffix].concat();
                // Common parts are written once and would be stored many times.
                left = left.checked_sub(path.len() as u64 + 1).ok_or_else(|| d.malformed("path"))?;
                let sorted = before.as_ref().is_none_or(|before| *before < path);
                let longest = before
                    .as_ref()
                    .is_none_or(|before| before.get(shared).is_none_or(|byte| suffix.first() != Some(byte)));
                if path_problem(&path).is_some() || !sorted || !longest {
                    return Err(d.malformed("path"));
                }
                let look = Look::of_bits(d.small("look")?).ok_or_else(|| d.malformed("look"))?;
                before = Some(path.clone());
                Ok((path, look))
            })
        })?;
        decoder.finish()?;
        if trees.len() > TREES_MAX {
            return Err(DecodeError::Malformed { what: "shape", at: 0 });
        }
        Ok(Self { trees })
    }

    /// What those who look at each of today's trees see of it; `None` if there are not as many.
    pub fn values(&self, observers: &[Observer<'_>]) -> Option<Values> {
        if observers.len() != self.trees.len() {
            return None;
        }
        let of_tree = |(looks, observer): (&'_ Looks, &'_ Observer<'_>)| -> Vec<Seen> {
            looks.iter().map(|(path, look)| observer.see(path, *look)).collect()
        };
        Some(Values(self.trees.iter().zip(observers).flat_map(of_tree).collect()))
    }

    /// All paths with the number of their tree, in the order of their values.
    pub fn paths(&self) -> impl Iterator<Item = (usize, &[u8], Look)> {
        let trees = self.trees.iter().enumerate();
        trees.flat_map(|(number, looks)| looks.iter().map(move |(path, look)| (number, &**path, *look)))
    }
}

/// What follows the magic and the version.
fn begin<'b>(
    what: &'static str,
    magic: &[u8],
    limit: u64,
    bytes: &'b [u8],
) -> Result<Decoder<'b>, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    if bytes.len() as u64 > limit || decoder.take(magic.len())? != magic {
        return Err(DecodeError::Malformed { what, at: 0 });
    }
    let found = decoder.uint()?;
    if found != VERSION {
        return Err(DecodeError::Version { what, found, known: VERSION });
    }
    Ok(decoder)
}

/// What was seen of each path of a shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(pub Vec<Seen>);

impl Values {
    /// The values as bytes, one behind the other.
    pub fn encode(&self) -> Vec<u8> {
        self.0.concat()
    }

    /// Reads what [`Values::encode`] wrote; `None` if it is no whole number of values.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (values, rest) = bytes.as_chunks();
        rest.is_empty().then(|| Self(values.to_vec()))
    }
}

/// Which program was the first to read, or list, each path of a shape, in its order, as far as that is known. Two runs with
/// the same shape may differ in this: it is no part of a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readers(pub Vec<Option<String>>);

/// Encoded readers may have this many bytes: a million paths, each of which stands for up to a hundred bytes of memory.
pub const READERS_BYTES_MAX: u64 = 1 << 20;

const READERS_MAGIC: &[u8] = b"crossdock-readers\n";

impl Readers {
    /// The readers as bytes: the programs, and for each path the number of one of them, from 1 on, or 0.
    pub fn encode(&self) -> Vec<u8> {
        let programs: BTreeSet<&str> = self.0.iter().flatten().map(String::as_str).collect();
        let numbers: HashMap<&str, u64> = programs.iter().copied().zip(1..).collect();
        let mut encoder = Encoder::new();
        encoder.uint(VERSION);
        encoder.list(&programs, |e, program| {
            e.text(program);
        });
        encoder.list(&self.0, |e, reader| {
            e.uint(reader.as_deref().and_then(|reader| numbers.get(reader)).copied().unwrap_or(0));
        });
        [READERS_MAGIC, &encoder.finish()].concat()
    }

    /// Reads what [`Readers::encode`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = begin("readers", READERS_MAGIC, READERS_BYTES_MAX, bytes)?;
        let programs = decoder.list(|d| Ok(d.text()?.to_owned()))?;
        // A number stands for as much memory as the name that it is replaced by.
        if programs.iter().any(|program| program.len() > PROGRAM_BYTES_MAX) {
            return Err(decoder.malformed("program"));
        }
        let readers = decoder.list(|d| match d.small::<usize>("program")? {
            0 => Ok(None),
            number => programs.get(number - 1).cloned().map(Some).ok_or_else(|| d.malformed("program")),
        })?;
        decoder.finish()?;
        Ok(Self(readers))
    }
}

/// A program's name has this many bytes at most: 15 of the kernel's, each of which may stand for a character of three.
const PROGRAM_BYTES_MAX: usize = 45;

/// Whether there was nothing where this was seen.
pub fn is_absent(seen: &Seen, look: Look) -> bool {
    // In an empty tree there is nothing but its root.
    *seen == Observer::new(&Tree::empty()).see(b"x", look)
}

/// The fields of a traced key, besides those of the definition.
const SHAPE: &str = "shape";
const VALUES: &str = "values";

impl Preimage {
    /// What a step is without what it starts from and what its mounts show: the inputs of the `exact` key that do not
    /// depend on any tree.
    #[must_use]
    pub fn definition(&self) -> Self {
        let mut definition = self.clone();
        definition.fields.retain(|field| ![TREE, SHAPE, VALUES].contains(&field.name.as_str()));
        for field in &mut definition.fields {
            let Value::List(mounts) = &mut field.value else { continue };
            if field.name != "mounts" {
                continue;
            }
            for mount in mounts {
                let Value::Map(fields) = mount else { continue };
                // That it shows something stays: it says whose tree is whose in a shape.
                let before = fields.len();
                fields.retain(|(name, _)| name != "input" && name != "selection");
                if fields.len() < before {
                    fields.push((SHOWN.to_owned(), true.into()));
                }
            }
        }
        definition
    }

    /// The traced key's preimage: this definition, what the step looked at, and what it saw. Both are also blobs.
    #[must_use]
    pub fn traced(&self, shape: Digest, values: Digest) -> Self {
        let mut traced = self.clone();
        traced.add(SHAPE, shape).add(VALUES, values);
        traced
    }

    /// The blobs with what a step looked at and saw, in the preimage of a traced key.
    pub fn reads(&self) -> Option<(Digest, Digest)> {
        match (self.get(SHAPE)?, self.get(VALUES)?) {
            (Value::Digest(shape), Value::Digest(values)) => Some((*shape, *values)),
            _ => None,
        }
    }
}

/// The field of a definition's mount that shows a tree.
const SHOWN: &str = "shown";

/// The field of an exact key with the tree that the step starts from.
const TREE: &str = "tree";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Shape {
        let looks = |paths: &[(&str, Look)]| -> Looks {
            paths.iter().map(|(path, look)| (path.as_bytes().to_vec(), *look)).collect()
        };
        Shape {
            trees: vec![
                looks(&[
                    ("", Look::NODE.and(Look::NAMES)),
                    ("src", Look::NODE),
                    ("src/a.c", Look::NODE.and(Look::CONTENT)),
                    ("src/b.c", Look::NODE),
                ]),
                Vec::new(),
            ],
        }
    }

    /// The bytes are put together by hand, from the page that describes them.
    #[test]
    fn golden_bytes() {
        let expected =
            b"crossdock-shape\n\x01\x02\x04\x00\x00\x05\x00\x03src\x01\x03\x04/a.c\x03\x04\x03b.c\x01\x00";
        assert_eq!(sample().encode(), expected);
        assert_eq!(Shape::decode(expected), Ok(sample()));
    }

    #[test]
    fn what_is_not_in_order_is_refused() {
        let head = b"crossdock-shape\n\x01\x01".as_slice();
        for bad in [
            // A path twice, paths out of order, a prefix that is not the longest, one of nothing.
            b"\x02\x00\x01a\x01\x01\x00\x01".as_slice(),
            b"\x02\x00\x01b\x01\x00\x01a\x01",
            b"\x02\x00\x01a\x01\x00\x02ab\x01",
            b"\x01\x01\x01a\x01",
            // A path that is none, a look that is none, a content without a node.
            b"\x01\x00\x03a/.\x01",
            b"\x01\x00\x01a\x00",
            b"\x01\x00\x01a\x02",
            b"\x01\x00\x01a\x09",
            // More than there is.
            b"\xff\xff\xff\xff\x0f",
        ] {
            assert!(Shape::decode(&[head, bad].concat()).is_err(), "{}", bad.escape_ascii());
        }
        assert!(Shape::decode(b"crossdock-shape\n\x02\x00").is_err());
        assert_eq!(Values::decode(&[0; 17]), None);
    }

    #[test]
    fn readers_are_numbered() {
        let readers = |names: &[&str]| {
            let name = |name: &&str| (!name.is_empty()).then(|| (*name).to_owned());
            Readers(names.iter().map(name).collect())
        };
        let expected = b"crossdock-readers\n\x01\x02\x03cc1\x02sh\x04\x02\x00\x01\x02";
        assert_eq!(readers(&["sh", "", "cc1", "sh"]).encode(), expected);
        assert_eq!(Readers::decode(expected), Ok(readers(&["sh", "", "cc1", "sh"])));
        // A program that there is not, one that is too long, and more than there is.
        let long = [b"crossdock-readers\n\x01\x01\x2e".as_slice(), &[b'a'; 46], b"\x00"].concat();
        for bad in [
            b"crossdock-readers\n\x01\x01\x01a\x01\x02".as_slice(),
            &long,
            b"crossdock-readers\n\x01\x00\x02\x00",
        ] {
            assert!(Readers::decode(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn nothing_is_told_from_something() {
        let empty = Tree::empty();
        let observer = Observer::new(&empty);
        for look in [Look::NODE, Look::NODE.and(Look::CONTENT), Look::NODE.and(Look::NAMES)] {
            assert!(is_absent(&observer.see(b"a/b", look), look));
            assert!(!is_absent(&observer.see(b"", look), look));
        }
    }

    #[test]
    fn a_definition_knows_no_tree() {
        let mount = |digest: &str| {
            let fields = vec![
                ("target".to_owned(), Value::Text("/x".to_owned())),
                ("selection".to_owned(), Digest::of(digest).into()),
            ];
            Value::List(vec![Value::Map(fields)])
        };
        let preimage = |tree: &str, mounted: &str| {
            let mut preimage = Preimage::default();
            preimage.add("command", "make").add("tree", Digest::of(tree)).add("mounts", mount(mounted));
            preimage
        };
        let definition = preimage("a", "x").definition();
        assert_eq!(definition, preimage("b", "y").definition());
        let (shape, values) = (Digest::of("shape"), Digest::of("values"));
        let traced = definition.traced(shape, values);
        assert_eq!(traced.reads(), Some((shape, values)));
        assert_eq!(traced.definition(), definition);
        assert_eq!(definition.reads(), None);
    }

    proptest! {
        #[test]
        fn shapes_come_back(trees in proptest::collection::vec(
            proptest::collection::btree_map("[ab]{1,3}(/[ab]{1,3}){0,3}", 0..4_u8, 0..20), 0..4))
        {
            let looks = |tree: std::collections::BTreeMap<String, u8>| -> Looks {
                let look = |bits: u8| Look::of_bits(bits << 1 | 1).unwrap();
                tree.into_iter().map(|(path, bits)| (path.into_bytes(), look(bits))).collect()
            };
            let shape = Shape { trees: trees.into_iter().map(looks).collect() };
            let bytes = shape.encode();
            prop_assert_eq!(Shape::decode(&bytes), Ok(shape));
            for at in 0..bytes.len() {
                prop_assert!(Shape::decode(&bytes[..at]).is_err());
            }
        }

        #[test]
        fn whatever_is_read_is_written_again(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [MAGIC, b"\x01", &bytes].concat();
            if let Ok(shape) = Shape::decode(&bytes) {
                prop_assert_eq!(shape.encode(), bytes);
            }
        }
    }
}
