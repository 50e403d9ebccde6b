//! Serde helpers for the shapes that Go's JSON takes: `null` for empty, objects as sets, empty strings as absent.

use serde::{Deserialize, Deserializer};

use crate::platform::Platform;

/// Reads `null` as the default value.
pub(super) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads an empty string as `None`.
pub(super) fn non_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()))
}

/// Reads a platform; one without a system or an architecture (old buildx wrote `{}`) is none.
pub(super) fn platform<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Platform>, D::Error> {
    #[derive(Deserialize)]
    struct Lenient {
        #[serde(default, deserialize_with = "null_default")]
        architecture: String,
        #[serde(default, deserialize_with = "null_default")]
        os: String,
        #[serde(rename = "os.version", default, deserialize_with = "non_empty")]
        os_version: Option<String>,
        #[serde(default, deserialize_with = "non_empty")]
        variant: Option<String>,
    }
    let platform = Option::<Lenient>::deserialize(deserializer)?;
    Ok(platform.filter(|platform| !platform.architecture.is_empty() && !platform.os.is_empty()).map(
        |platform| Platform {
            architecture: platform.architecture,
            os: platform.os,
            os_version: platform.os_version,
            variant: platform.variant,
        },
    ))
}

/// A set in the form `{"80/tcp": {}}`.
pub(super) mod object_set {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::ser::SerializeMap as _;
    use serde::{Deserialize as _, Deserializer, Serializer};
    use serde_json::Value;

    pub(in crate::image) fn serialize<S: Serializer>(
        set: &BTreeSet<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(set.len()))?;
        for name in set {
            map.serialize_entry(name, &serde_json::Map::new())?;
        }
        map.end()
    }

    pub(in crate::image) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, Value>>::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}
