//! The bytes of records and bundles (`docs/formats.md`, "Records and bundles").
//!
//! Both are *sealed*: magic, version, SHA-256 of the rest, the rest. Neither is content-addressed, so that the
//! seal is what tells a damaged one from a good one, whatever kept it.

use super::preimage::Preimage;
use super::types::{Bundle, BundleStep, Record, Scope};
use crate::digest::Digest;
use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::layer::{LayerDescriptor, MediaType, Timestamp};

/// An encoded record may have this many bytes. Real ones have a few kilobytes, mostly environment; the rest is
/// room for a long `RUN` script.
pub const RECORD_BYTES_MAX: u64 = 4 << 20;

/// An encoded bundle may have this many bytes: thousands of ordinary records.
pub const BUNDLE_BYTES_MAX: u64 = 32 << 20;

const RECORD_MAGIC: [u8; 8] = *b"xdrecord";
const BUNDLE_MAGIC: [u8; 8] = *b"xdbundle";
const VERSION: u64 = 3;
/// Length of the seal's digest, always SHA-256.
const SEAL: usize = 32;

impl Record {
    /// The record as bytes. Equal records have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        self.write(&mut encoder);
        seal(RECORD_MAGIC, &encoder.finish())
    }

    /// Reads what [`Record::encode`] wrote.
    ///
    /// # Errors
    /// Anything that is not exactly one undamaged record of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let payload = unseal("record", RECORD_MAGIC, RECORD_BYTES_MAX, bytes)?;
        let mut decoder = Decoder::new(payload);
        let record = Self::read(&mut decoder)?;
        decoder.finish()?;
        Ok(record)
    }

    fn write(&self, encoder: &mut Encoder) {
        encoder.text(self.scope.as_str());
        self.preimage.encode(encoder);
        encoder.list(&self.layers, |e, layer| {
            e.digest(&layer.diff_id).digest(&layer.digest).uint(layer.size);
            e.uint(match layer.media_type {
                MediaType::Tar => 0,
                MediaType::Gzip => 1,
                MediaType::Zstd => 2,
            });
            e.digest(&layer.toc);
        });
        encoder.digest(&self.tree);
        encoder.int(self.created.seconds).uint(self.created.nanos.into());
        encoder.uint(self.duration_ms).text(&self.builder);
        encoder.option(self.log, |e, log| {
            e.digest(&log);
        });
        encoder.uint(self.foreign.into());
        encoder.option(self.readers, |e, readers| {
            e.digest(&readers);
        });
        encoder.list(&self.parts, |e, part| {
            e.digest(part);
        });
    }

    fn read(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let scope: Scope = d.text()?.parse().map_err(|_| d.malformed("scope"))?;
        let preimage = Preimage::decode(d)?;
        let layers = d.list(|d| {
            Ok(LayerDescriptor {
                diff_id: d.digest()?,
                digest: d.digest()?,
                size: d.uint()?,
                media_type: match d.uint()? {
                    0 => MediaType::Tar,
                    1 => MediaType::Gzip,
                    2 => MediaType::Zstd,
                    _ => return Err(d.malformed("media type")),
                },
                toc: d.digest()?,
            })
        })?;
        let tree = d.digest()?;
        let created = Timestamp { seconds: d.int()?, nanos: d.small("nanoseconds")? };
        if created.nanos >= 1_000_000_000 {
            return Err(d.malformed("nanoseconds"));
        }
        let duration_ms = d.uint()?;
        let builder = d.text()?.to_owned();
        let log = d.option(Decoder::digest)?;
        let foreign = match d.uint()? {
            0 => false,
            1 => true,
            _ => return Err(d.malformed("foreign")),
        };
        let readers = d.option(Decoder::digest)?;
        let parts = d.list(Decoder::digest)?;
        Ok(Self {
            scope,
            preimage,
            layers,
            tree,
            created,
            duration_ms,
            builder,
            log,
            readers,
            foreign,
            parts,
        })
    }
}

impl Bundle {
    /// The bundle as bytes. Equal bundles have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.list(&self.steps, |e, step| {
            e.text(&step.slot);
            step.record.write(e);
        });
        seal(BUNDLE_MAGIC, &encoder.finish())
    }

    /// Reads what [`Bundle::encode`] wrote.
    ///
    /// # Errors
    /// Anything that is not exactly one undamaged bundle of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let payload = unseal("bundle", BUNDLE_MAGIC, BUNDLE_BYTES_MAX, bytes)?;
        let mut decoder = Decoder::new(payload);
        let steps =
            decoder.list(|d| Ok(BundleStep { slot: d.text()?.to_owned(), record: Record::read(d)? }))?;
        decoder.finish()?;
        Ok(Self { steps })
    }
}

fn seal(magic: [u8; 8], payload: &[u8]) -> Vec<u8> {
    let mut version = Encoder::new();
    version.uint(VERSION);
    let mut bytes = magic.to_vec();
    bytes.extend(version.finish());
    bytes.extend_from_slice(Digest::of(payload).as_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn unseal<'a>(
    what: &'static str,
    magic: [u8; 8],
    limit: u64,
    bytes: &'a [u8],
) -> Result<&'a [u8], DecodeError> {
    let mut decoder = Decoder::new(bytes);
    if bytes.len() as u64 > limit {
        return Err(decoder.malformed(what));
    }
    if decoder.take(magic.len())? != magic {
        return Err(DecodeError::Malformed { what, at: 0 });
    }
    let found = decoder.uint()?;
    if found != VERSION {
        return Err(DecodeError::Version { what, found, known: VERSION });
    }
    let seal = decoder.take(SEAL)?;
    let payload = &bytes[decoder.position()..];
    if Digest::of(payload).as_bytes() == seal { Ok(payload) } else { Err(decoder.malformed("checksum")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Value;

    fn sample() -> Record {
        let mut preimage = Preimage::default();
        preimage.add("command", "make").add("tree", Digest::of("tree"));
        Record {
            scope: Scope::default(),
            preimage,
            layers: vec![LayerDescriptor {
                diff_id: Digest::of("tar"),
                digest: Digest::of("blob"),
                size: 300,
                media_type: MediaType::Zstd,
                toc: Digest::of("toc"),
            }],
            tree: Digest::of("after"),
            created: Timestamp { seconds: 1_700_000_000, nanos: 5 },
            duration_ms: 1234,
            builder: "crossdock 0.1.0".to_owned(),
            log: None,
            readers: None,
            foreign: false,
            parts: vec![Digest::of("part")],
        }
    }

    /// The bytes are put together by hand, from the page that describes them.
    #[test]
    fn golden_bytes() {
        let mut payload = b"\x07default\x02\x07command\x00\x04make\x04tree\x03\x00".to_vec();
        payload.extend(Digest::of("tree").as_bytes());
        payload.extend(b"\x01\x00");
        payload.extend(Digest::of("tar").as_bytes());
        payload.push(0);
        payload.extend(Digest::of("blob").as_bytes());
        payload.extend(b"\xac\x02\x02\x00");
        payload.extend(Digest::of("toc").as_bytes());
        payload.push(0);
        payload.extend(Digest::of("after").as_bytes());
        payload.extend(b"\x80\xc4\x9f\xd5\x0c\x05\xd2\x09\x0fcrossdock 0.1.0\x00\x00\x00\x01\x00");
        payload.extend(Digest::of("part").as_bytes());
        let mut expected = b"xdrecord\x03".to_vec();
        expected.extend(Digest::of(&payload).as_bytes());
        expected.extend(&payload);
        assert_eq!(sample().encode(), expected);
        let bundle = Bundle { steps: vec![BundleStep { slot: "build:RUN:3".to_owned(), record: sample() }] };
        let mut inner = b"\x01\x0bbuild:RUN:3".to_vec();
        inner.extend(&payload);
        let mut expected = b"xdbundle\x03".to_vec();
        expected.extend(Digest::of(&inner).as_bytes());
        expected.extend(&inner);
        assert_eq!(bundle.encode(), expected);
        assert_eq!(Bundle::decode(&expected), Ok(bundle));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let bytes = sample().encode();
        for at in 0..bytes.len() {
            assert!(Record::decode(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(Record::decode(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn other_versions_and_kinds_are_told_apart() {
        let mut bytes = sample().encode();
        assert!(Bundle::decode(&bytes).is_err());
        bytes[8] = 4;
        assert_eq!(Record::decode(&bytes), Err(DecodeError::Version { what: "record", found: 4, known: 3 }));
    }

    #[test]
    fn well_sealed_nonsense_is_refused() {
        for payload in [
            b"\x02..".as_slice(),
            b"\x07default\xff\xff\xff\xff\x0f",
            b"\x07default\x01\x01a\x04\xff\xff\xff\xff\x0f",
            &[&b"\x07default\x01\x01a"[..], &b"\x04\x01".repeat(2000)].concat(),
        ] {
            assert!(Record::decode(&seal(RECORD_MAGIC, payload)).is_err());
        }
        let mut trailing = Encoder::new();
        sample().write(&mut trailing);
        trailing.uint(0);
        let sealed = seal(RECORD_MAGIC, &trailing.finish());
        assert_eq!(Record::decode(&sealed), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn oversized_input_is_refused() {
        let payload = vec![0; RECORD_BYTES_MAX as usize];
        assert!(Record::decode(&seal(RECORD_MAGIC, &payload)).is_err());
    }

    fn any_digest() -> impl Strategy<Value = Digest> {
        prop_oneof![
            any::<[u8; 32]>().prop_map(Digest::Sha256),
            proptest::collection::vec(any::<u8>(), 64)
                .prop_map(|bytes| Digest::Sha512(bytes.try_into().unwrap())),
        ]
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<String>().prop_map(Value::Text),
            any::<Vec<u8>>().prop_map(Value::Bytes),
            any::<u64>().prop_map(Value::Uint),
            any_digest().prop_map(Value::Digest),
        ];
        leaf.prop_recursive(4, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                proptest::collection::vec((any::<String>(), inner), 0..4).prop_map(Value::Map),
            ]
        })
    }

    fn any_layer() -> impl Strategy<Value = LayerDescriptor> {
        let media = prop_oneof![Just(MediaType::Tar), Just(MediaType::Gzip), Just(MediaType::Zstd)];
        (any_digest(), any_digest(), any::<u64>(), media, any_digest()).prop_map(
            |(diff_id, digest, size, media_type, toc)| LayerDescriptor {
                diff_id,
                digest,
                size,
                media_type,
                toc,
            },
        )
    }

    prop_compose! {
        fn any_record()(
            scope in "[a-z0-9_-]{1,9}(/[a-z0-9._-]{3,9}){0,3}",
            fields in proptest::collection::vec((any::<String>(), any_value()), 0..4),
            layers in proptest::collection::vec(any_layer(), 0..3),
            tree in any_digest(),
            seconds: i64,
            nanos in 0_u32..1_000_000_000,
            duration_ms: u64,
            builder: String,
            log in proptest::option::of(any_digest()),
            readers in proptest::option::of(any_digest()),
            foreign: bool,
            parts in proptest::collection::vec(any_digest(), 0..3),
        ) -> Record {
            let mut preimage = Preimage::default();
            for (name, value) in fields {
                preimage.add(&name, value);
            }
            let scope = scope.replace("...", "a").parse().unwrap_or_default();
            let created = Timestamp { seconds, nanos };
            Record {
                scope, preimage, layers, tree, created, duration_ms, builder, log, readers, foreign, parts,
            }
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(record in any_record()) {
            let bytes = record.encode();
            let back = Record::decode(&bytes).unwrap();
            prop_assert_eq!(back.key(), record.key());
            prop_assert_eq!(back, record);
        }

        #[test]
        fn bundles_round_trip(records in proptest::collection::vec((any::<String>(), any_record()), 0..4)) {
            let steps = records.into_iter().map(|(slot, record)| BundleStep { slot, record }).collect();
            let bundle = Bundle { steps };
            prop_assert_eq!(Bundle::decode(&bundle.encode()), Ok(bundle));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes);
            let _ = Record::decode(&seal(RECORD_MAGIC, &bytes));
            let _ = Bundle::decode(&seal(BUNDLE_MAGIC, &bytes));
        }
    }
}
