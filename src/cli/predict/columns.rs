//! Which columns of a file are sent, which are keys, and how a message names a cell.

use clap::ValueEnum;

use super::delimiter::has_decimal_comma;
use crate::wire::tensor::Datatype;

/// What is made of a cell without a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Missing {
    /// The run ends and names it
    #[default]
    Refuse,
    /// NaN, for inputs of floating point
    Nan,
}

/// The words of `--columns` and `--key`. Whether they are names or positions is up to the file.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Empty: all columns but the keys.
    pub columns: Vec<String>,
    pub keys: Vec<String>,
}

/// The same as places in a row, from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    pub columns: Vec<usize>,
    pub keys: Vec<usize>,
    pub key_names: Vec<String>,
}

impl Choice {
    pub fn is_everything(&self) -> bool {
        self.columns.is_empty() && self.keys.is_empty()
    }

    /// # Errors
    /// There is no such column, or two of that name; one is named twice; or none is left to send.
    pub fn by_name(&self, names: &[String]) -> Result<Chosen, ColumnFault> {
        let find = |name: &String| place_of(name, names).map(|place| vec![place]);
        self.places(names.len(), find, |place| names[place].clone())
    }

    /// Columns without names are numbered from 1, and may be named as a range, such as `2-5`.
    ///
    /// # Errors
    /// As [`Self::by_name`].
    pub fn by_position(&self, count: usize) -> Result<Chosen, ColumnFault> {
        let find = |word: &String| positions(word, count);
        self.places(count, find, |place| format!("column_{}", place + 1))
    }

    fn places(
        &self,
        count: usize,
        find: impl Fn(&String) -> Result<Vec<usize>, ColumnFault>,
        name: impl Fn(usize) -> String,
    ) -> Result<Chosen, ColumnFault> {
        let mut taken = vec![false; count];
        let mut all = |words: &[String]| {
            let mut places = Vec::new();
            for word in words {
                for place in find(word)? {
                    if std::mem::replace(&mut taken[place], true) {
                        return Err(ColumnFault::Twice(name(place)));
                    }
                    places.push(place);
                }
            }
            Ok(places)
        };
        let keys = all(&self.keys)?;
        let mut columns = all(&self.columns)?;
        if self.columns.is_empty() {
            columns = (0..count).filter(|place| !keys.contains(place)).collect();
        }
        if columns.is_empty() {
            return Err(ColumnFault::NoneLeft);
        }
        let key_names = keys.iter().map(|place| name(*place)).collect();
        Ok(Chosen {
            columns,
            keys,
            key_names,
        })
    }
}

fn place_of(name: &str, names: &[String]) -> Result<usize, ColumnFault> {
    let exact = |place: &usize| names[*place] == name;
    // Of a header such as `a, b` the second name is ` b`.
    let trimmed = |place: &usize| names[*place].trim() == name;
    let is_exact = names.iter().any(|known| known == name);
    let mut places = (0..names.len()).filter(|place| if is_exact { exact(place) } else { trimmed(place) });
    match (places.next(), places.next()) {
        (Some(place), None) => Ok(place),
        (Some(_), Some(_)) => Err(ColumnFault::Ambiguous(name.to_owned())),
        (None, _) => Err(ColumnFault::NoName {
            name: name.to_owned(),
            names: listed(names),
        }),
    }
}

fn positions(word: &str, count: usize) -> Result<Vec<usize>, ColumnFault> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let number = |text: &str| text.trim().parse::<usize>().ok();
    match (number(first), number(last)) {
        (Some(first), Some(last)) if 1 <= first && first <= last && last <= count => Ok((first - 1..last).collect()),
        _ => Err(ColumnFault::NoPosition {
            word: word.to_owned(),
            count,
        }),
    }
}

/// The first few names, as a message may hold them.
pub fn listed(names: &[String]) -> String {
    let mut text: Vec<String> = names.iter().take(NAMES_LISTED).map(|name| shown(name)).collect();
    if names.len() > NAMES_LISTED {
        text.push(format!("and {} more", names.len() - NAMES_LISTED));
    }
    text.join(", ")
}

/// A text of the file as a message may hold it.
pub fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `3`, or `3 (`age`)` where it has a name.
pub fn column(place: usize, name: Option<&str>) -> String {
    match name {
        Some(name) if !name.is_empty() => format!("{} (`{}`)", place + 1, shown(name)),
        _ => (place + 1).to_string(),
    }
}

/// The columns that are asked for are not those of the file.
#[derive(Debug, thiserror::Error)]
pub enum ColumnFault {
    #[error("there is no column `{name}`; there are: {names}")]
    NoName { name: String, names: String },
    #[error("two columns are called `{0}`; give each a name of its own")]
    Ambiguous(String),
    #[error(
        "`{word}` names none of its columns: they have no names, so allowed are positions from 1 to {count} and ranges such as 1-{count}"
    )]
    NoPosition { word: String, count: usize },
    #[error("column `{0}` is named twice")]
    Twice(String),
    #[error("no column is left to send: all are keys")]
    NoneLeft,
    #[error("its rows have {axes} axes; --columns and --key are for rows of numbers, which have one")]
    Axes { axes: usize },
    #[error("{said}, and columns go to the inputs of their names: it needs names, or --input-name for one input")]
    NoNames { said: String },
    #[error(
        "columns go to the inputs of their names, {said}: {}", unmatched(.without, .left)
    )]
    Inputs {
        said: String,
        /// Inputs without a column.
        without: String,
        /// Columns without an input.
        left: String,
    },
    #[error("input `{input}` has no axis of rows, so that no column can be meant for it; an .npz gives it as it is")]
    NoRowAxis { input: String },
}

fn unmatched(without: &str, left: &str) -> String {
    let without = (!without.is_empty()).then(|| format!("there is no column for {without}"));
    let left = (!left.is_empty()).then(|| {
        format!("there is no input for {left} (--columns says which are sent, --key which stand beside the answers)")
    });
    let parts: Vec<String> = without.into_iter().chain(left).collect();
    parts.join("; ")
}

/// A cell that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum CellFault {
    #[error("{place}: the value is missing; --missing nan sends NaN in its place")]
    Missing { place: String },
    #[error("{place}: the value is missing")]
    NoValue { place: String },
    #[error("{place}: the value is missing, and datatype {datatype} has no NaN that --missing could send")]
    NoNan { place: String, datatype: Datatype },
    #[error("{place}: `{cell}` is not {}{}", kind(*.datatype), advice(.cell, *.datatype))]
    Value {
        place: String,
        cell: String,
        datatype: Datatype,
    },
}

impl CellFault {
    pub fn value(place: String, cell: &str, datatype: Datatype) -> Self {
        Self::Value {
            place,
            cell: shown(cell),
            datatype,
        }
    }
}

fn advice(cell: &str, datatype: Datatype) -> &'static str {
    let is_text = matches!(datatype, Datatype::Bytes | Datatype::Bool);
    if !is_text && has_decimal_comma(cell) {
        ": it has a decimal comma, and numbers have a point"
    } else {
        ""
    }
}

fn kind(datatype: Datatype) -> String {
    match datatype {
        Datatype::Bool => "true or false, or 1 or 0".to_owned(),
        Datatype::Bytes => "a text".to_owned(),
        number => format!("a number of datatype {number}"),
    }
}

const NAMES_LISTED: usize = 20;
const SHOWN_MAX: usize = 32;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn choice(columns: &[&str], keys: &[&str]) -> Choice {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Choice {
            columns: words(columns),
            keys: words(keys),
        }
    }

    fn names() -> Vec<String> {
        ["id", "a", "b", "b"].map(str::to_owned).into()
    }

    #[test]
    fn columns_are_found_by_name_in_the_order_asked_for_and_keys_are_left_out() {
        let chosen = choice(&["a", "id"], &[]).by_name(&names()[..3]).unwrap();
        let rest = choice(&[], &["id"]).by_name(&names()[..3]).unwrap();

        assert_eq!(chosen.columns, [1, 0]);
        assert_eq!((rest.columns, rest.keys), (vec![1, 2], vec![0]));
        assert_eq!(rest.key_names, ["id"]);
    }

    #[test]
    fn columns_without_names_are_found_by_position_and_range() {
        let chosen = choice(&["5-6", "2"], &["1"]).by_position(6).unwrap();

        assert_eq!((chosen.columns, chosen.keys), (vec![4, 5, 1], vec![0]));
        assert_eq!(chosen.key_names, ["column_1"]);
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        for (columns, keys, sentence) in [
            (&["c"][..], &[][..], "there is no column `c`; there are: id, a, b, b"),
            (&["b"], &[], "two columns are called `b`"),
            (&["a"], &["a"], "column `a` is named twice"),
        ] {
            let fault = choice(columns, keys).by_name(&names()).unwrap_err().to_string();
            assert!(fault.contains(sentence), "{fault}");
        }
        for word in ["0", "5", "3-2", "2-9", "a", "-", ""] {
            let fault = choice(&[word], &[]).by_position(4).unwrap_err().to_string();
            assert!(fault.contains("positions from 1 to 4"), "{fault}");
        }
        let fault = choice(&[], &["1-4"]).by_position(4).unwrap_err().to_string();
        assert!(fault.contains("no column is left"), "{fault}");
    }

    #[test]
    fn of_many_names_the_first_are_listed() {
        let many: Vec<String> = (0..1_000).map(|number| format!("f{number}")).collect();

        let fault = choice(&["x"], &[]).by_name(&many).unwrap_err().to_string();

        assert!(fault.ends_with("f18, f19, and 980 more"), "{fault}");
    }
}
