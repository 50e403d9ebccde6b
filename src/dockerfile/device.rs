//! `RUN --device=…`.

use super::mount::{csv_fields, parse_bool};

/// A `--device` option (`instructions/commands_rundevice.go`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device, as the Container Device Interface names it: `vendor.com/class=name`.
    pub name: String,
    /// Whether the step cannot do without it.
    pub required: bool,
}

impl Device {
    /// Understands the option's value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut device = Self { name: String::new(), required: false };
        for field in csv_fields(text).map_err(|error| error.to_string())? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), Some(value)),
                None => (field.to_lowercase(), None),
            };
            match (key.as_str(), value) {
                ("required", None) => device.required = true,
                ("required", Some(value)) => {
                    device.required =
                        parse_bool(value).ok_or_else(|| format!("invalid value for {key}: {value}"))?;
                }
                ("name", Some(_)) if !device.name.is_empty() => {
                    return Err(format!("device name already set to {}", device.name));
                }
                ("name", Some(value)) => value.clone_into(&mut device.name),
                _ if device.name.is_empty() => device.name.clone_from(&field),
                (_, None) => return Err(format!("invalid field '{field}' must be a key=value pair")),
                (_, Some(_)) => return Err(format!("unexpected key '{key}' in '{field}'")),
            }
        }
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        let device = |name: &str, required| Ok(Device { name: name.to_owned(), required });
        assert_eq!(Device::parse("vendor.com/gpu=all"), device("vendor.com/gpu=all", false));
        assert_eq!(Device::parse("vendor.com/gpu=all,required"), device("vendor.com/gpu=all", true));
        assert_eq!(Device::parse("name=fuse,required=true"), device("fuse", true));
        assert_eq!(Device::parse("required=0,fuse"), device("fuse", false));
        for bad in ["a,b", "a,name=b", "a,x=b", "a,required=perhaps"] {
            assert!(Device::parse(bad).is_err(), "{bad}");
        }
    }
}
