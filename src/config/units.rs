//! Durations and sizes as people write them: `100ms`, `64KiB`.

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};

/// A duration with its unit: `us`, `ms`, `s`, `m` or `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

/// A number of bytes with its unit: `B`, `kB`, `MB`, `GB`, `KiB`, `MiB` or `GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub usize);

impl std::str::FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no duration: write a number and a unit, as in \"100ms\", \"5s\", \"1h\"");
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let duration = match unit {
            "us" => Duration::from_micros(number),
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" | "min" => Duration::from_secs(number.checked_mul(60).ok_or_else(wrong)?),
            "h" => Duration::from_secs(number.checked_mul(3600).ok_or_else(wrong)?),
            _ => return Err(wrong()),
        };
        // A year: longer is a mistake, and would overflow the clock's arithmetic.
        if duration > Duration::from_secs(365 * 24 * 3600) {
            return Err(format!("{text:?} is longer than a year"));
        }
        Ok(Self(duration))
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size: write a number and a unit, as in \"500B\", \"64KiB\", \"1MiB\"");
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let factor: u64 = match unit {
            "B" => 1,
            "kB" | "KB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).and_then(|bytes| usize::try_from(bytes).ok()).map(Self).ok_or_else(wrong)
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..at].parse().ok()?, text[at..].trim_start_matches(' ')))
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl schemars::JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[0-9]+ ?(us|ms|s|m|min|h)$"})
    }
}

impl schemars::JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[0-9]+ ?(B|[kK]B|MB|GB|KiB|MiB|GiB)$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_a_unit() {
        let time = |text: &str| text.parse::<Time>().ok().map(|t| t.0.as_micros());
        assert_eq!(time("100ms"), Some(100_000));
        assert_eq!(time("5 s"), Some(5_000_000));
        assert_eq!(time("1h"), Some(3_600_000_000));
        assert_eq!(time("8760h"), Some(31_536_000_000_000));
        for text in ["", "5", "ms", "-1s", "1.5s", "5 sec", "8761h", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(time(text), None, "{text}");
        }
        let size = |text: &str| text.parse::<Size>().ok().map(|s| s.0);
        assert_eq!(size("0B"), Some(0));
        assert_eq!(size("64KiB"), Some(65_536));
        assert_eq!(size("2 MB"), Some(2_000_000));
        for text in ["many", "5", "5b", "1TiB", "18446744073709551615GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
