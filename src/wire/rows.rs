//! How the rows of a model relate, as every result says it: whoever cuts rows into jobs and deals answers out must know.

use std::fmt;
use std::str::FromStr;

/// How the answer to a row depends on the rows beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowRelation {
    /// The answer to a row is the same whatever rows are beside it, and every output has one row for each row of the inputs.
    Independent,
    /// The answer to a row depends on the rows beside it, or on how many there are.
    Coupled,
    /// Neither was shown.
    Unknown,
}

impl RowRelation {
    pub const ALL: [Self; 3] = [Self::Independent, Self::Coupled, Self::Unknown];

    /// Name on the wire, in metrics and in `inferq models`, such as `independent`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Independent => "independent",
            Self::Coupled => "coupled",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for RowRelation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RowRelation {
    type Err = UnknownRelation;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|relation| relation.name() == name);
        found.ok_or(UnknownRelation)
    }
}

/// The text names no relation of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not one of independent, coupled and unknown")]
pub struct UnknownRelation;

/// Header of a result: the name of a [`RowRelation`], a long string.
pub const ROWS_HEADER: &str = "inferq-rows";
/// Header of a result whose rows are not independent: an array of long strings, the names of those of its outputs whose first
/// axis counts the rows of the job; outputs that it does not name must not be dealt out by row.
pub const ROW_OUTPUTS_HEADER: &str = "inferq-row-outputs";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_reads_back_as_it_is_printed() {
        for relation in RowRelation::ALL {
            assert_eq!(relation.to_string().parse(), Ok(relation));
        }
        assert_eq!("INDEPENDENT".parse::<RowRelation>(), Err(UnknownRelation));
    }
}
