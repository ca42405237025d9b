//! What a row of JSON looks like: which columns it has, which inputs they make up, and in which shapes.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::de::Deserialize;
use serde_json::value::RawValue;

use super::block::Key;
use super::columns::{Choice, Chosen, Missing, column, shown};
use super::inputs::{Inputs, Sending};
use super::json_values::{Columns, Unfit, Values, key, python_number};
use super::lines::LineFault;
use crate::wire::elements::Elements;

/// What a row looks like: as the first one does.
#[derive(Default)]
pub struct Layout {
    /// `None` for arrays.
    names: Option<Vec<String>>,
    /// Whether columns that nobody asked for may come and go.
    may_have_others: bool,
    /// Whether columns that were asked for may be absent.
    may_lack: bool,
    /// `None` for arrays that are sent whole.
    chosen: Option<Chosen>,
    inputs: Inputs,
}

/// What was found in a row, besides its elements.
pub struct Row {
    /// Of each column of each input.
    pub shapes: Vec<Vec<Vec<usize>>>,
    pub keys: Vec<Key>,
}

impl Layout {
    /// # Errors
    /// The row is none, or has not the columns that are asked for.
    pub fn of(line: &[u8], number: u64, missing: Missing, choice: &Choice) -> Result<Self, LineFault> {
        let may_lack = missing == Missing::Nan;
        if line.trim_ascii_start().starts_with(b"{") {
            let Columns(columns) = parse(line, number)?;
            once(&columns, number)?;
            let mut names: Vec<String> = columns.iter().map(|(name, _)| name.to_string()).collect();
            if may_lack {
                let absent = choice.columns.iter().filter(|name| !names.contains(name));
                names.extend(absent.cloned().collect::<Vec<_>>());
            }
            return Ok(Self {
                chosen: Some(choice.by_name(&names)?),
                names: Some(names),
                may_have_others: !choice.columns.is_empty(),
                may_lack,
                inputs: Inputs::default(),
            });
        }
        let parts: Vec<&RawValue> = parse(line, number)?;
        let chosen = if choice.is_everything() {
            None
        } else {
            Some(choice.by_position(parts.len())?)
        };
        Ok(Self {
            chosen,
            ..Self::default()
        })
    }

    /// Deals the columns out to the inputs, in the shapes of the first row.
    ///
    /// # Errors
    /// They are no inputs of the model, or the row cannot be sent.
    pub fn bind(&mut self, sending: &Sending, line: &[u8], number: u64) -> Result<(), LineFault> {
        if let (Some(names), Some(chosen)) = (&mut self.names, &mut self.chosen)
            && self.may_lack
            && !self.may_have_others
            && sending.takes.len() > 1
            && sending.input.is_empty()
        {
            // The first row may lack a column as well as any other.
            let is_part = |rest: &str| rest.is_empty() || rest.starts_with(['_', '.']);
            let is_of = |known: &String, name: &String| known.strip_prefix(name.as_str()).is_some_and(is_part);
            let absent = |name: &String| !names.iter().any(|known| is_of(known, name));
            let absent: Vec<String> = sending
                .takes
                .iter()
                .map(|spec| spec.name.clone())
                .filter(absent)
                .collect();
            chosen.columns.extend(names.len()..names.len() + absent.len());
            names.extend(absent);
        }
        let columns = self.chosen.as_ref().map_or(&[][..], |chosen| &chosen.columns);
        self.inputs = Inputs::of(sending, columns, self.names.as_deref())?;
        let first = self.read(line, number, &mut self.inputs.elements(0))?;
        for (part, shapes) in self.inputs.parts.iter_mut().zip(first.shapes) {
            part.shapes = shapes;
        }
        if self.inputs.has_empty_row() {
            return Err(LineFault::Nothing(number));
        }
        Ok(())
    }

    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    pub fn key_names(&self) -> &[String] {
        self.chosen.as_ref().map_or(&[], |chosen| &chosen.key_names)
    }

    /// Places of the key columns.
    pub fn keys(&self) -> &[usize] {
        self.chosen.as_ref().map_or(&[], |chosen| &chosen.keys)
    }

    /// Appends what a row holds.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn read(&self, line: &[u8], number: u64, elements: &mut [Elements]) -> Result<Row, LineFault> {
        let Some(chosen) = &self.chosen else {
            let shape = self.push(parse(line, number)?, 0, elements, || format!("line {number}"))?;
            return Ok(Row {
                shapes: vec![vec![shape]],
                keys: Vec::new(),
            });
        };
        let cells = match &self.names {
            Some(names) => self.columns_of(line, number, names, chosen)?,
            None => parse(line, number)?,
        };
        let cell = |place: usize| {
            cells.get(place).copied().ok_or(LineFault::Short {
                line: number,
                came: cells.len(),
            })
        };
        let mut shapes = Vec::with_capacity(self.inputs.parts.len());
        for (part, input) in self.inputs.parts.iter().enumerate() {
            let mut of_part = Vec::with_capacity(input.columns.len());
            for &place in &input.columns {
                let at = || format!("line {number}, column {}", column(place, self.name(place)));
                of_part.push(self.push(cell(place)?, part, elements, at)?);
            }
            shapes.push(of_part);
        }
        let keys = chosen.keys.iter().map(|&place| cell(place).map(key));
        Ok(Row {
            shapes,
            keys: keys.collect::<Result<_, _>>()?,
        })
    }

    fn name(&self, place: usize) -> Option<&str> {
        self.names.as_ref().map(|names| &*names[place])
    }

    fn push(
        &self,
        raw: &RawValue,
        part: usize,
        elements: &mut [Elements],
        place: impl FnOnce() -> String,
    ) -> Result<Vec<usize>, LineFault> {
        let values = Values {
            inputs: &self.inputs,
            part,
            elements,
        };
        values.push(raw).map_err(|unfit| match unfit {
            Unfit::Value(fault, cell) => self.inputs.fault(part, fault, place(), &cell).into(),
            Unfit::Ragged(one, other) => LineFault::Ragged {
                place: place(),
                one,
                other,
            },
        })
    }

    /// The values of an object in the order of the first line's; those that nobody asked for may be `null` for want of any.
    fn columns_of<'a>(
        &self,
        line: &'a [u8],
        number: u64,
        names: &[String],
        chosen: &Chosen,
    ) -> Result<Vec<&'a RawValue>, LineFault> {
        let Columns(columns) = parse(line, number)?;
        let is_like_first =
            columns.len() == names.len() && columns.iter().zip(names).all(|((came, _), name)| came == name);
        if !is_like_first {
            once(&columns, number)?;
        }
        if !self.may_have_others
            && let Some((other, _)) = columns.iter().find(|(name, _)| !self.has(names, name, columns.len()))
        {
            return Err(LineFault::Other {
                line: number,
                name: shown(other),
            });
        }
        let mut cells = vec![RawValue::NULL; names.len()];
        for &place in chosen.columns.iter().chain(&chosen.keys) {
            let name = &names[place];
            // As a rule all lines have their columns in one order.
            let found = columns.get(place).filter(|(found, _)| found == name);
            let found = found.or_else(|| columns.iter().find(|(found, _)| found == name));
            cells[place] = match found {
                Some((_, cell)) => cell,
                None if self.may_lack && chosen.columns.contains(&place) => RawValue::NULL,
                None => {
                    let name = shown(name);
                    return Err(LineFault::NoColumn { line: number, name });
                }
            };
        }
        Ok(cells)
    }

    fn has(&self, names: &[String], name: &str, columns: usize) -> bool {
        // With as many columns as the first line, a stranger shows as one that is missing.
        (columns == names.len() && !self.may_lack) || names.iter().any(|known| known == name)
    }

    /// All rows must look alike, since they travel in one tensor.
    ///
    /// # Errors
    /// This one does not.
    pub fn fit(&self, shapes: &[Vec<Vec<usize>>], line: u64) -> Result<(), LineFault> {
        for (part, came) in self.inputs.parts.iter().zip(shapes) {
            let mut pairs = came.iter().zip(&part.shapes).enumerate();
            if let Some((index, (came, before))) = pairs.find(|(_, (came, before))| came != before) {
                let column = part
                    .columns
                    .get(index)
                    .map(|&place| format!(", column {}", column(place, self.name(place))));
                return Err(LineFault::Uneven {
                    line,
                    column: column.unwrap_or_default(),
                    came: came.clone(),
                    before: before.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Refuses a row that has a column twice: nobody can tell which is meant.
fn once(columns: &[(Cow<'_, str>, &RawValue)], line: u64) -> Result<(), LineFault> {
    let mut names = HashSet::with_capacity(columns.len());
    match columns.iter().find(|(name, _)| !names.insert(&**name)) {
        None => Ok(()),
        Some((name, _)) => Err(LineFault::Twice {
            line,
            name: shown(name),
        }),
    }
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8], number: u64) -> Result<T, LineFault> {
    serde_json::from_slice(line).map_err(|cause| match python_number(line) {
        Some("NaN") => LineFault::NotANumber(number),
        Some(word) => LineFault::Infinity { line: number, word },
        None => LineFault::Json { line: number, cause },
    })
}
