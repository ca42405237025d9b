//! Sizes of axes as polynomials over the number of rows and other sizes that only a run knows.

use std::fmt;

/// A size that only a run knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Symbol {
    pub origin: Origin,
    pub number: u32,
}

/// Where a size comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Origin {
    /// The number of rows itself.
    Rows,
    /// The size of an axis behind the first: the same for all jobs that may share a run.
    Free,
    /// A number computed from such sizes, which may be negative.
    Number,
    /// A number computed from the number of rows.
    Counted,
}

/// A sum of products, such as `3·rows·h + 1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Size {
    /// Ascending by their symbols; no factor is 0.
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Term {
    /// Ascending; a square stands twice.
    symbols: Vec<Symbol>,
    factor: i64,
}

impl Size {
    pub fn constant(value: i64) -> Self {
        let term = Term {
            symbols: Vec::new(),
            factor: value,
        };
        Self {
            terms: if value == 0 { Vec::new() } else { vec![term] },
        }
    }

    pub fn symbol(symbol: Symbol) -> Self {
        let term = Term {
            symbols: vec![symbol],
            factor: 1,
        };
        Self { terms: vec![term] }
    }

    pub fn rows() -> Self {
        Self::symbol(ROWS)
    }

    pub fn one() -> Self {
        Self::constant(1)
    }

    pub fn to_constant(&self) -> Option<i64> {
        match &self.terms[..] {
            [] => Some(0),
            [term] if term.symbols.is_empty() => Some(term.factor),
            _ => None,
        }
    }

    pub fn is(&self, value: i64) -> bool {
        self.to_constant() == Some(value)
    }

    /// `Counted` if the number of rows is in it, `Free` otherwise.
    pub fn origin(&self) -> Origin {
        let mut symbols = self.terms.iter().flat_map(|term| &term.symbols);
        match symbols.any(|symbol| matches!(symbol.origin, Origin::Rows | Origin::Counted)) {
            true => Origin::Counted,
            false => Origin::Free,
        }
    }

    /// True if no symbol is in it that was made later than so many.
    pub fn is_made_of_first(&self, count: u32) -> bool {
        let mut symbols = self.terms.iter().flat_map(|term| &term.symbols);
        symbols.all(|symbol| symbol.number <= count)
    }

    pub fn has_rows(&self) -> bool {
        self.terms.iter().any(|term| term.symbols.contains(&ROWS))
    }

    /// True if no run makes it less than 0.
    fn is_positive(&self) -> bool {
        let mut symbols = self.terms.iter().flat_map(|term| &term.symbols);
        let are_sizes = symbols.all(|symbol| matches!(symbol.origin, Origin::Rows | Origin::Free));
        are_sizes && self.terms.iter().all(|term| term.factor > 0)
    }

    pub fn plus(&self, other: &Self) -> Option<Self> {
        self.sum(other, 1)
    }

    pub fn minus(&self, other: &Self) -> Option<Self> {
        self.sum(other, -1)
    }

    fn sum(&self, other: &Self, sign: i64) -> Option<Self> {
        let mut terms = self.terms.clone();
        for term in &other.terms {
            add(
                &mut terms,
                Term {
                    symbols: term.symbols.clone(),
                    factor: term.factor.checked_mul(sign)?,
                },
            )?;
        }
        Some(Self { terms })
    }

    pub fn times(&self, other: &Self) -> Option<Self> {
        let mut terms = Vec::new();
        for one in &self.terms {
            for two in &other.terms {
                let mut symbols = [&one.symbols[..], &two.symbols[..]].concat();
                symbols.sort_unstable();
                let factor = one.factor.checked_mul(two.factor)?;
                add(&mut terms, Term { symbols, factor })?;
            }
        }
        Some(Self { terms })
    }

    /// The product of sizes; `None` where it has too many terms.
    pub fn product<'a>(sizes: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        sizes
            .into_iter()
            .try_fold(Self::one(), |product, size| product.times(size))
    }

    /// The quotient, if there is no remainder whatever the symbols are. A size in the divisor is taken not to be 0.
    pub fn over(&self, other: &Self) -> Option<Self> {
        if self == other && !self.terms.is_empty() {
            return Some(Self::one());
        }
        let [divisor] = &other.terms[..] else { return None };
        let mut terms = Vec::new();
        for term in &self.terms {
            let mut symbols = term.symbols.clone();
            for symbol in &divisor.symbols {
                let at = symbols.iter().position(|other| other == symbol)?;
                symbols.remove(at);
            }
            if term.factor % divisor.factor != 0 {
                return None;
            }
            add(
                &mut terms,
                Term {
                    symbols,
                    factor: term.factor.checked_div(divisor.factor)?,
                },
            )?;
        }
        Some(Self { terms })
    }

    /// Whether they are equal in every run or in none; `None` if that depends.
    pub fn equals(&self, other: &Self) -> Option<bool> {
        let difference = self.minus(other)?;
        if let Some(constant) = difference.to_constant() {
            return Some(constant == 0);
        }
        let apart = |positive: &Self, negative: &Self| {
            positive.is_positive() && negative.to_constant().is_some_and(|value| value < 0)
        };
        (apart(self, other) || apart(other, self)).then_some(false)
    }
}

/// Adds a term; `None` if there are too many of them, or a factor grows too large.
fn add(terms: &mut Vec<Term>, term: Term) -> Option<()> {
    match terms.binary_search_by(|other| other.symbols.cmp(&term.symbols)) {
        Ok(at) => {
            terms[at].factor = terms[at].factor.checked_add(term.factor)?;
            if terms[at].factor == 0 {
                terms.remove(at);
            }
        }
        Err(at) if term.factor != 0 => terms.insert(at, term),
        Err(_) => {}
    }
    (terms.len() <= TERMS_MAX).then_some(())
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_constant() {
            Some(constant) => write!(f, "{constant}"),
            None if *self == Self::rows() => f.write_str("rows"),
            None if self.has_rows() => f.write_str("a multiple of rows"),
            None => f.write_str("?"),
        }
    }
}

const ROWS: Symbol = Symbol {
    origin: Origin::Rows,
    number: 0,
};
/// Sizes of real models have one or two.
const TERMS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn free(number: u32) -> Size {
        Size::symbol(Symbol {
            origin: Origin::Free,
            number,
        })
    }

    #[test]
    fn sums_of_products_are_kept_in_one_form() {
        let (rows, h) = (Size::rows(), free(1));
        let one = rows.plus(&h).unwrap().times(&h).unwrap();
        let two = h.times(&h).unwrap().plus(&h.times(&rows).unwrap()).unwrap();

        assert_eq!(one, two);
        assert_eq!(one.minus(&two).unwrap(), Size::constant(0));
        assert!(rows.times(&Size::constant(0)).unwrap().is(0));
    }

    #[test]
    fn a_quotient_has_no_remainder_or_is_none() {
        let rows_h = Size::rows().times(&free(1)).unwrap();
        let eight = rows_h.times(&Size::constant(8)).unwrap();

        assert_eq!(eight.over(&free(1)), Size::rows().times(&Size::constant(8)));
        assert_eq!(eight.over(&Size::constant(4)), rows_h.times(&Size::constant(2)));
        assert_eq!(eight.over(&Size::constant(3)), None);
        assert_eq!(eight.over(&free(2)), None);
        assert_eq!(Size::constant(0).over(&Size::constant(0)), None);
    }

    #[test]
    fn sizes_are_never_negative() {
        assert_eq!(Size::rows().equals(&Size::constant(-1)), Some(false));
        assert_eq!(Size::rows().equals(&Size::constant(1)), None);
        assert_eq!(Size::rows().equals(&Size::rows()), Some(true));
        assert_eq!(Size::constant(2).equals(&Size::constant(1)), Some(false));
    }

    #[test]
    fn numbers_too_large_are_none() {
        let large = Size::constant(i64::MAX);

        assert_eq!(large.times(&large), None);
        assert_eq!(large.plus(&large), None);
    }
}
