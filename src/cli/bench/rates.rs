//! The rates of an open loop, as they are asked for: `500`, `100..2000`, `100@10s,500@30s`. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One stage after the other; there is at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates(pub Vec<Stage>);

/// Jobs a second, constant or changing evenly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stage {
    pub from: f64,
    pub to: f64,
    /// `None` until somebody says how long it lasts.
    pub lasts: Option<Duration>,
}

impl Stage {
    pub fn constant(rate: f64, lasts: Option<Duration>) -> Self {
        Self {
            from: rate,
            to: rate,
            lasts,
        }
    }

    pub fn is_constant(&self) -> bool {
        self.from.to_bits() == self.to.to_bits()
    }
}

impl Rates {
    /// The rates with `rest` as the duration of the stage that has none.
    ///
    /// # Errors
    /// All stages have one, or another than the only stage has none.
    pub fn lasting(&self, rest: Option<Duration>) -> Result<Vec<Stage>, DurationFault> {
        let mut stages = self.0.clone();
        match stages.as_mut_slice() {
            [only] if only.lasts.is_none() => only.lasts = rest,
            stages if stages.iter().any(|stage| stage.lasts.is_none()) => return Err(DurationFault::Missing),
            _ if rest.is_some() => return Err(DurationFault::Twice),
            _ => {}
        }
        Ok(stages)
    }
}

/// Why nobody knows how long the load lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationFault {
    #[error("each of several stages of --rate needs its own duration, such as 100@10s,500@30s")]
    Missing,
    #[error("--rate says how long its stages last, so leave out --duration")]
    Twice,
}

impl FromStr for Rates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rates, lasts) = match text.split_once('@') {
            Some((rates, lasts)) => (rates, Some(duration(lasts)?)),
            None => (text, None),
        };
        let (from, to) = match rates.split_once("..") {
            Some((from, to)) => (rate(from)?, rate(to)?),
            None => (rate(rates)?, rate(rates)?),
        };
        if from.max(to) <= 0.0 {
            return Err(format!("`{text}` sends nothing: {ALLOWED}"));
        }
        Ok(Self { from, to, lasts })
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.from)?;
        if !self.is_constant() {
            write!(f, "..{}", self.to)?;
        }
        match self.lasts {
            Some(lasts) => write!(f, " jobs/s for {}", humantime::format_duration(lasts)),
            None => f.write_str(" jobs/s"),
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.trim().parse().ok();
    rate.filter(|rate| (0.0..=RATE_MAX).contains(rate))
        .ok_or_else(|| format!("`{text}` is no rate: {ALLOWED}"))
}

/// A duration with its unit, such as `500ms`.
///
/// # Errors
/// One sentence with what is allowed.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text.trim()).ok();
    parsed.filter(|lasts| *lasts <= DURATION_MAX).ok_or_else(|| {
        format!("`{text}` is no duration: allowed is a number with a unit, up to 7 days, such as 500ms, 10s or 2m")
    })
}

const ALLOWED: &str = "allowed are jobs a second up to 1000000, such as 500, 100..2000 or 100@10s,500@30s";
/// More than a broker moves.
pub const RATE_MAX: f64 = 1e6;
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(from: f64, to: f64, seconds: Option<u64>) -> Stage {
        Stage {
            from,
            to,
            lasts: seconds.map(Duration::from_secs),
        }
    }

    #[test]
    fn a_rate_a_ramp_and_stages_are_one_syntax() {
        let rates = |text: &str| text.parse::<Rates>().unwrap().0;

        assert_eq!(rates("500"), [stage(500.0, 500.0, None)]);
        assert_eq!(rates("0..2.5"), [stage(0.0, 2.5, None)]);
        assert_eq!(
            rates("100@10s, 100..500@1m"),
            [stage(100.0, 100.0, Some(10)), stage(100.0, 500.0, Some(60))]
        );
        assert_eq!(rates("100..500@2m")[0].to_string(), "100..500 jobs/s for 2m");
    }

    #[test]
    fn what_is_no_rate_is_named_with_what_is_allowed() {
        for (text, named) in [
            ("", "`` is no rate"),
            ("fast", "`fast` is no rate"),
            ("-1", "`-1` is no rate"),
            ("1e9", "`1e9` is no rate"),
            ("nan", "`nan` is no rate"),
            ("5..", "`` is no rate"),
            ("0", "`0` sends nothing"),
            ("5@10", "`10` is no duration"),
            ("5@9999d", "`9999d` is no duration"),
        ] {
            let said = text.parse::<Rates>().unwrap_err();

            assert!(said.starts_with(named) && said.contains("such as"), "{text}: {said}");
        }
    }

    #[test]
    fn every_stage_has_one_duration() {
        let rates = |text: &str| text.parse::<Rates>().unwrap();
        let rest = Some(Duration::from_secs(3));

        assert_eq!(rates("5").lasting(rest).unwrap(), [stage(5.0, 5.0, Some(3))]);
        assert_eq!(rates("5").lasting(None).unwrap(), [stage(5.0, 5.0, None)]);
        assert_eq!(rates("5@1s,6@2s").lasting(None).unwrap().len(), 2);
        assert_eq!(rates("5@1s,6").lasting(rest), Err(DurationFault::Missing));
        assert_eq!(rates("5@1s").lasting(rest), Err(DurationFault::Twice));
    }
}
