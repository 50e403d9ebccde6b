//! Platforms: operating system, architecture, variant (OCI image index specification, `platform`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A platform in normal form: Go's names for systems and architectures, and containerd's for variants.
///
/// `linux/x86_64` becomes `linux/amd64`, `linux/aarch64` and `linux/arm64/v8` become `linux/arm64`,
/// `linux/armhf` becomes `linux/arm/v7` (`containerd/platforms`, `database.go`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// The architecture, as `GOARCH`.
    pub architecture: String,
    /// The operating system, as `GOOS`.
    pub os: String,
    /// The version of the operating system (Windows only in practice).
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// The variant of the architecture, such as `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is not a [`Platform`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a platform (expected os[/arch[/variant]], for example linux/arm64)")]
pub struct PlatformError(String);

impl Platform {
    /// A platform from its parts, normalised.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.map(str::to_ascii_lowercase).unwrap_or_default();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self {
            architecture: architecture.to_owned(),
            os,
            os_version: None,
            variant: (!variant.is_empty()).then(|| variant.to_owned()),
        }
    }

    /// The platform of the machine that this program runs on.
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// The same platform in normal form. Platforms read from other people's JSON need this.
    pub fn normalized(&self) -> Self {
        let mut normal = Self::new(&self.os, &self.architecture, self.variant.as_deref());
        normal.os_version.clone_from(&self.os_version);
        normal
    }

    /// How well an image for `candidate` serves this platform: `None` not at all, 0 exactly, more is worse.
    /// A variant serves the newer ones of `arm` and of `amd64` as well.
    pub fn distance(&self, candidate: &Self) -> Option<u32> {
        let candidate = candidate.normalized();
        if self.os != candidate.os || self.architecture != candidate.architecture {
            return None;
        }
        let level = |platform: &Self| {
            let default = match platform.architecture.as_str() {
                "arm64" => 8,
                _ => 1,
            };
            match platform.variant.as_deref() {
                None => Some(default),
                Some(variant) => variant.strip_prefix('v')?.parse::<u32>().ok(),
            }
        };
        if self.variant == candidate.variant {
            return Some(0);
        }
        level(self)?.checked_sub(level(&candidate)?)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let valid = |part: &&str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-.()".contains(c))
        };
        if parts.len() > 3 || !parts.iter().all(valid) {
            return Err(PlatformError(text.to_owned()));
        }
        let host = Self::host();
        Ok(match parts.as_slice() {
            ["local"] => host,
            // A single word is a system or an architecture, whichever it is known as.
            [word] => match word.to_ascii_lowercase().as_str() {
                "linux" | "windows" | "darwin" | "macos" | "freebsd" => {
                    Self::new(word, &host.architecture, host.variant.as_deref())
                }
                "386" | "amd64" | "arm" | "arm64" | "ppc64le" | "riscv64" | "s390x" | "i386" | "x86_64"
                | "x86-64" | "aarch64" | "armhf" | "armel" | "loong64" | "mips64le" => {
                    Self::new(&host.os, word, None)
                }
                _ => return Err(PlatformError(text.to_owned())),
            },
            [os, architecture] => Self::new(os, architecture, None),
            [os, architecture, variant] => Self::new(os, architecture, Some(variant)),
            _ => return Err(PlatformError(text.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_normalised() {
        assert_eq!(platform("linux/x86_64").to_string(), "linux/amd64");
        assert_eq!(platform("linux/arm64/v8").to_string(), "linux/arm64");
        assert_eq!(platform("linux/armhf").to_string(), "linux/arm/v7");
        assert_eq!(platform("linux/arm").to_string(), "linux/arm/v7");
        assert_eq!(platform("arm64").architecture, "arm64");
        for bad in ["", "linux/", "a/b/c/d", "plan 9/x", "nonsense"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn older_variants_serve_newer_machines() {
        assert_eq!(platform("linux/arm/v7").distance(&platform("linux/arm/v6")), Some(1));
        assert_eq!(platform("linux/arm/v6").distance(&platform("linux/arm/v7")), None);
        assert_eq!(platform("linux/amd64").distance(&platform("linux/x86_64")), Some(0));
        assert_eq!(platform("linux/amd64/v3").distance(&platform("linux/amd64")), Some(2));
        assert_eq!(platform("linux/amd64").distance(&platform("linux/arm64")), None);
    }
}
