//! The answers, written row by row in the order of the input's rows.
//!
//! A failed row keeps its place: NaN (or 0) in `.npy`, empty cells in `.csv`, an object with `error` in JSON lines.

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::block::{Key, keys_object};
use super::cells::{Cells, nested};
use super::npy::Header;
use super::target::{OutputError, Target};
use crate::client::Answer;
use crate::wire::tensor::{Datatype, Tensor, rows_range};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// NumPy's array of one output
    Npy,
    /// Comma-separated cells of one output, with a line of names
    Csv,
    /// One JSON object a row, with all outputs
    Jsonl,
}

impl Format {
    /// As the name of the output says; JSON lines where it says nothing.
    pub fn of(path: Option<&Path>) -> Self {
        path.and_then(Self::named).unwrap_or(Self::Jsonl)
    }

    /// As the name says, if it says one of these.
    pub fn named(path: &Path) -> Option<Self> {
        match super::endings::ending(path).as_deref() {
            Some("npy") => Some(Self::Npy),
            Some("csv") => Some(Self::Csv),
            Some("jsonl" | "ndjson") => Some(Self::Jsonl),
            _ => None,
        }
    }
}

/// Answers on their way into a file.
pub struct Answers {
    target: Target,
    format: Format,
    /// The output that npy and csv hold; `None` is the first.
    output: Option<String>,
    /// Rows that there will be, if that is known.
    total: Option<u64>,
    rows: u64,
    layout: Option<Layout>,
    key_names: Vec<String>,
    /// Keys of failed rows that have no place yet, since nobody knows how wide a row is.
    unplaced: Vec<Vec<Key>>,
}

/// What one row of the output looks like: the same for all rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    name: String,
    #[serde(with = "datatype_name")]
    datatype: Datatype,
    tail: Vec<usize>,
}

mod datatype_name {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::wire::tensor::Datatype;

    pub fn serialize<S: Serializer>(datatype: &Datatype, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(datatype.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Datatype, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Layout {
    fn cells(&self) -> usize {
        self.tail.iter().product()
    }

    fn header(&self, rows: u64) -> Result<Vec<u8>, AnswerError> {
        let header = Header::new(self.datatype, [vec![rows as usize], self.tail.clone()].concat());
        header.encode().ok_or_else(|| AnswerError::NoNpy {
            output: self.name.clone(),
            datatype: self.datatype,
        })
    }
}

impl Answers {
    pub fn new(
        target: Target,
        format: Format,
        output: Option<String>,
        total: Option<u64>,
        key_names: Vec<String>,
    ) -> Result<Self, AnswerError> {
        if format == Format::Npy && total.is_none() && matches!(target, Target::Stream(_)) {
            return Err(AnswerError::RowsUnknown);
        }
        if format == Format::Npy && !key_names.is_empty() {
            return Err(AnswerError::NoPlaceForKeys);
        }
        Ok(Self {
            target,
            format,
            output,
            total,
            rows: 0,
            layout: None,
            key_names,
            unplaced: Vec::new(),
        })
    }

    /// Goes on after `rows` rows that an earlier run has written.
    #[must_use]
    pub fn after(self, rows: u64, layout: Option<Layout>) -> Self {
        Self { rows, layout, ..self }
    }

    /// Puts on disk what was written, and returns how many bytes and of which layout; `None` if it cannot be gone on with.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&mut self) -> Result<Option<(u64, Option<Layout>)>, AnswerError> {
        if self.rows == 0 || (self.layout.is_none() && self.format != Format::Jsonl) {
            return Ok(None);
        }
        let bytes = self.target.keep()?;
        Ok(bytes.map(|bytes| (bytes, self.layout.clone())))
    }

    /// Lets go of what was kept.
    pub fn discard(&mut self) {
        self.target.discard();
    }

    /// Appends the answers of `rows` rows, with their keys if there are key columns.
    ///
    /// # Errors
    /// An output cannot be told apart by row, does not fit what was written before, or cannot be written.
    pub fn push(&mut self, rows: usize, keys: &[Vec<Key>], answer: &Answer) -> Result<(), AnswerError> {
        match self.format {
            Format::Jsonl => {
                let outputs = answer.outputs.iter().map(|output| PerRow::of(answer, output, rows));
                self.push_json(rows, keys, &outputs.collect::<Result<Vec<_>, _>>()?)?;
            }
            Format::Npy | Format::Csv => {
                if answer.rows.is_none() {
                    // Nothing but their shapes tells, so one that has not a row each makes the others doubtful.
                    answer
                        .outputs
                        .iter()
                        .try_for_each(|output| PerRow::of(answer, output, rows).map(drop))?;
                }
                let chosen = PerRow::of(answer, self.chosen(&answer.outputs)?, rows)?.without_first_one();
                self.fit(chosen)?;
                match self.format {
                    Format::Npy => self.target.write(&chosen.output.data)?,
                    Format::Csv | Format::Jsonl => self.push_csv(rows, keys, chosen)?,
                }
            }
        }
        self.rows += rows as u64;
        Ok(())
    }

    /// Leaves a place for rows without an answer.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn push_failed(&mut self, rows: usize, keys: &[Vec<Key>], reason: &str) -> Result<(), AnswerError> {
        match (self.format, &self.layout) {
            (Format::Jsonl, _) => {
                let reason = serde_json::Value::from(reason);
                for row in 0..rows {
                    let line = format!("{}\"error\":{reason}}}\n", self.line_start(row, keys));
                    self.target.write(line.as_bytes())?;
                }
            }
            (_, Some(_)) => self.write_gap(rows as u64, keys)?,
            // As wide as the rows that are still to come.
            (_, None) => self.unplaced.extend_from_slice(keys),
        }
        self.rows += rows as u64;
        Ok(())
    }

    /// Completes the file; without a single answer there is none, but in JSON lines, which hold the reasons.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<(), AnswerError> {
        if self.format == Format::Npy
            && let Some(layout) = &self.layout
            && self.total != Some(self.rows)
        {
            self.target.write_over_start(&layout.header(self.rows)?)?;
        }
        if self.format == Format::Jsonl || self.layout.is_some() {
            self.target.finish()?;
        }
        Ok(())
    }

    fn chosen<'a>(&self, outputs: &'a [Tensor]) -> Result<&'a Tensor, AnswerError> {
        let chosen = match &self.output {
            None => outputs.first(),
            Some(name) => outputs.iter().find(|output| output.name == *name),
        };
        chosen.ok_or_else(|| AnswerError::NoOutput(self.output.clone().unwrap_or_default()))
    }

    /// Takes the layout of the first answer, and refuses another one.
    fn fit(&mut self, chosen: PerRow<'_>) -> Result<(), AnswerError> {
        let (output, tail) = (chosen.output, chosen.shape());
        if let Some(layout) = &self.layout {
            if layout.tail != tail {
                return Err(AnswerError::Uneven {
                    output: output.name.clone(),
                    row: self.rows,
                    came: tail.to_vec(),
                    before: layout.tail.clone(),
                });
            }
            return Ok(());
        }
        let layout = Layout {
            name: output.name.clone(),
            datatype: output.datatype,
            tail: tail.to_vec(),
        };
        match self.format {
            Format::Npy => self.target.write(&layout.header(self.total.unwrap_or(0))?)?,
            Format::Csv | Format::Jsonl => {
                let names: Vec<String> = match layout.cells() {
                    1 => vec![layout.name.clone()],
                    cells => (0..cells).map(|cell| format!("{}_{cell}", layout.name)).collect(),
                };
                self.write_lines([[self.key_names.clone(), names].concat()])?;
            }
        }
        self.layout = Some(layout);
        let unplaced = std::mem::take(&mut self.unplaced);
        self.write_gap(self.rows, &unplaced)
    }

    fn write_gap(&mut self, rows: u64, keys: &[Vec<Key>]) -> Result<(), AnswerError> {
        let Some(layout) = &self.layout else { return Ok(()) };
        let cells = layout.cells();
        let element = gap(layout.datatype);
        for row in 0..rows {
            match self.format {
                Format::Npy => self.target.write(&element.repeat(cells))?,
                Format::Csv | Format::Jsonl => {
                    let keys = plain(keys.get(row as usize));
                    self.write_lines([keys.chain(vec![String::new(); cells]).collect()])?;
                }
            }
        }
        Ok(())
    }

    fn push_csv(&mut self, rows: usize, keys: &[Vec<Key>], chosen: PerRow<'_>) -> Result<(), AnswerError> {
        self.write_lines((0..rows).map(|row| {
            let cells = Cells::Plain.of(chosen.output.datatype, chosen.data(row));
            plain(keys.get(row)).chain(cells).collect()
        }))
    }

    /// What the line of a row in JSON begins with; `row` counts from the first that is not yet written.
    fn line_start(&self, row: usize, keys: &[Vec<Key>]) -> String {
        let number = self.rows + row as u64;
        match keys.get(row) {
            Some(keys) => format!("{{\"row\":{number},\"key\":{},", keys_object(&self.key_names, keys)),
            None => format!("{{\"row\":{number},"),
        }
    }

    fn push_json(&mut self, rows: usize, keys: &[Vec<Key>], outputs: &[PerRow<'_>]) -> Result<(), AnswerError> {
        for row in 0..rows {
            let mut line = format!("{}\"outputs\":{{", self.line_start(row, keys));
            for (index, per_row) in outputs.iter().enumerate() {
                let cells = Cells::Json.of(per_row.output.datatype, per_row.data(row));
                let name = serde_json::Value::from(per_row.output.name.as_str());
                let comma = if index > 0 { "," } else { "" };
                line.push_str(&format!("{comma}{name}:{}", nested(&cells, per_row.shape())));
            }
            line.push_str("}}\n");
            self.target.write(line.as_bytes())?;
        }
        Ok(())
    }

    fn write_lines(&mut self, lines: impl IntoIterator<Item = Vec<String>>) -> Result<(), AnswerError> {
        let mut text = csv::Writer::from_writer(Vec::new());
        for cells in lines {
            text.write_record(cells)?;
        }
        let text = text.into_inner().map_err(csv::IntoInnerError::into_error)?;
        Ok(self.target.write(&text)?)
    }
}

/// An output, and the part of it that is the answer to each row.
#[derive(Clone, Copy)]
struct PerRow<'a> {
    output: &'a Tensor,
    /// The whole output is the answer to the only row of a job.
    is_whole: bool,
}

impl<'a> PerRow<'a> {
    fn of(answer: &Answer, output: &'a Tensor, rows: usize) -> Result<Self, AnswerError> {
        let is_by_row = answer.is_by_row(output, rows);
        if !is_by_row && rows != 1 {
            return Err(AnswerError::Rows {
                output: output.name.clone(),
                shape: output.shape.clone(),
                rows,
            });
        }
        Ok(Self {
            output,
            is_whole: !is_by_row,
        })
    }

    /// Leaves out a first axis of 1, which says nothing where all rows look alike.
    fn without_first_one(self) -> Self {
        Self {
            is_whole: self.is_whole && self.output.rows() != Some(1),
            ..self
        }
    }

    /// Shape of the answer to one row.
    fn shape(&self) -> &'a [usize] {
        let first = usize::from(!self.is_whole);
        &self.output.shape[first..]
    }

    fn data(&self, row: usize) -> &'a [u8] {
        let output = self.output;
        if self.is_whole {
            return &output.data;
        }
        let range = rows_range(&output.data, output.datatype, &output.shape, &(row..row + 1));
        &output.data[range]
    }
}

fn plain(keys: Option<&Vec<Key>>) -> impl Iterator<Item = String> + use<'_> {
    keys.into_iter().flatten().map(|key| key.plain().to_owned())
}

/// One element that stands for an answer that there is not.
fn gap(datatype: Datatype) -> Vec<u8> {
    match datatype {
        Datatype::Fp16 => half::f16::NAN.to_le_bytes().to_vec(),
        Datatype::Fp32 => f32::NAN.to_le_bytes().to_vec(),
        Datatype::Fp64 => f64::NAN.to_le_bytes().to_vec(),
        other => vec![0; other.element_bytes().unwrap_or(0)],
    }
}

/// The answers cannot be put down in this form.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(
        "output `{output}` has shape {shape:?} for {rows} rows, so its answers cannot be told apart by row: --rows-per-job 1 sends \
         every row by itself, --output-name takes another output"
    )]
    Rows {
        output: String,
        shape: Vec<usize>,
        rows: usize,
    },
    #[error("the model gives no output `{0}`")]
    NoOutput(String),
    #[error(
        "output `{output}` has rows of {came:?} at row {row} and of {before:?} before; --format jsonl can hold both"
    )]
    Uneven {
        output: String,
        row: u64,
        came: Vec<usize>,
        before: Vec<usize>,
    },
    #[error("output `{output}` is of datatype {datatype}, which .npy has not; use --format csv or jsonl")]
    NoNpy { output: String, datatype: Datatype },
    #[error("an .npy header begins with the number of rows, which the input does not say: give --output a file")]
    RowsUnknown,
    #[error("an .npy file has no place for the columns of --key; use --format csv or jsonl")]
    NoPlaceForKeys,
    #[error("cannot put a row into a line")]
    Csv(#[from] csv::Error),
    #[error("cannot put a row into a line")]
    Line(#[from] std::io::Error),
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::client::RowRelation;

    fn open(format: Format, output: Option<&str>, total: Option<u64>) -> (tempfile::TempDir, PathBuf, Answers) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("y");
        let target = Target::open(Some(&path)).unwrap();
        let answers = Answers::new(target, format, output.map(str::to_owned), total, Vec::new()).unwrap();
        (folder, path, answers)
    }

    /// An answer of a worker that says nothing of rows.
    fn unsaid(outputs: &[Tensor]) -> Answer {
        Answer {
            outputs: outputs.to_vec(),
            ..Answer::default()
        }
    }

    fn outputs() -> [Tensor; 2] {
        let label = Tensor {
            name: "label".to_owned(),
            datatype: Datatype::Int8,
            shape: vec![2],
            data: vec![7, 0xff].into(),
        };
        [Tensor::fp32("p", &[2, 2], &[0.25, 0.75, 1.0, f32::NAN]), label]
    }

    #[test]
    fn json_lines_hold_all_outputs_and_the_reasons_of_failed_rows() {
        let (_folder, path, mut answers) = open(Format::Jsonl, None, None);

        answers.push_failed(1, &[], "INTERNAL: \"no\"").unwrap();
        answers.push(2, &[], &unsaid(&outputs())).unwrap();
        answers.finish().unwrap();

        let expected = "{\"row\":0,\"error\":\"INTERNAL: \\\"no\\\"\"}\n\
                        {\"row\":1,\"outputs\":{\"p\":[0.25,0.75],\"label\":7}}\n\
                        {\"row\":2,\"outputs\":{\"p\":[1.0,null],\"label\":-1}}\n";
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn csv_holds_one_output_and_a_failed_row_keeps_its_place() {
        for (output, expected) in [
            (None, "p_0,p_1\n,\n0.25,0.75\n1.0,NaN\n,\n"),
            (Some("label"), "label\n\"\"\n7\n-1\n\"\"\n"),
        ] {
            let (_folder, path, mut answers) = open(Format::Csv, output, None);

            answers.push_failed(1, &[], "no").unwrap();
            answers.push(2, &[], &unsaid(&outputs())).unwrap();
            answers.push_failed(1, &[], "no").unwrap();
            answers.finish().unwrap();

            assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
        }
    }

    #[test]
    fn npy_counts_its_rows_at_the_end_where_it_could_not_before() {
        use ndarray_npy::ReadNpyExt;
        for total in [None, Some(4), Some(9)] {
            let (_folder, path, mut answers) = open(Format::Npy, None, total);

            answers.push_failed(1, &[], "no").unwrap();
            answers.push(2, &[], &unsaid(&outputs())).unwrap();
            answers.push_failed(1, &[], "no").unwrap();
            answers.finish().unwrap();

            let file = std::fs::File::open(path).unwrap();
            let array = ndarray::Array2::<f32>::read_npy(file).unwrap();
            assert_eq!(array.dim(), (4, 2));
            assert_eq!(array[[1, 1]], 0.75);
            assert!(array[[0, 0]].is_nan() && array[[3, 1]].is_nan());
        }
    }

    #[test]
    fn without_a_single_answer_there_is_no_array() {
        let (folder, _, mut answers) = open(Format::Npy, None, None);

        answers.push_failed(3, &[], "no").unwrap();
        answers.finish().unwrap();

        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_a_sentence() {
        let (_folder, _, mut answers) = open(Format::Npy, None, None);
        answers.push(2, &[], &unsaid(&outputs())).unwrap();
        let wider = answers
            .push(1, &[], &unsaid(&[Tensor::fp32("p", &[1, 1], &[0.5])]))
            .unwrap_err();
        let fewer = answers.push(3, &[], &unsaid(&outputs())).unwrap_err();
        let (_folder, _, mut answers) = open(Format::Csv, Some("q"), None);
        let unknown = answers.push(2, &[], &unsaid(&outputs())).unwrap_err();
        let stdout = Answers::new(Target::open(None).unwrap(), Format::Npy, None, None, Vec::new())
            .err()
            .unwrap();

        assert!(
            wider.to_string().contains("rows of [1] at row 2 and of [2] before"),
            "{wider}"
        );
        assert!(fewer.to_string().contains("shape [2, 2] for 3 rows"), "{fewer}");
        assert!(unknown.to_string().contains("no output `q`"), "{unknown}");
        assert!(stdout.to_string().contains("--output"), "{stdout}");
    }

    #[test]
    fn outputs_that_are_not_said_to_be_rows_are_not_dealt_out() {
        let coupled = |names: &[&str]| Answer {
            rows: Some(RowRelation::Coupled),
            row_outputs: Some(names.iter().map(ToString::to_string).collect()),
            ..unsaid(&outputs())
        };
        for (format, output, answer, is_written) in [
            (Format::Jsonl, None, coupled(&["p"]), false),
            (Format::Jsonl, None, coupled(&["label", "p"]), true),
            (Format::Csv, None, coupled(&["p"]), true),
            (Format::Csv, Some("label"), coupled(&["p"]), false),
            (Format::Npy, Some("label"), coupled(&[]), false),
        ] {
            let (_folder, _, mut answers) = open(format, output, None);

            let pushed = answers.push(2, &[], &answer);

            assert_eq!(pushed.is_ok(), is_written, "{format:?} {output:?}");
            if let Err(error) = pushed {
                let said = error.to_string();
                assert!(
                    said.contains("output `label` has shape [2] for 2 rows") || output.is_none(),
                    "{said}"
                );
                assert!(
                    said.contains("--rows-per-job 1") && said.contains("--output-name"),
                    "{said}"
                );
            }
        }
    }

    /// A constant, hits of a search, and a row, each of a job of one row.
    #[test]
    fn every_output_belongs_to_the_only_row_of_a_job() {
        let hits = |count: usize| Answer {
            rows: Some(RowRelation::Unknown),
            row_outputs: Some(vec!["y".to_owned()]),
            ..unsaid(&[
                Tensor::fp32("y", &[1, 1], &[7.0]),
                Tensor::fp32("hits", &[count, 2], &vec![0.5; 2 * count]),
                Tensor::fp32("one", &[], &[1.0]),
            ])
        };
        let (_folder, path, mut answers) = open(Format::Jsonl, None, None);
        for count in 0..3 {
            answers.push(1, &[], &hits(count)).unwrap();
        }
        answers.finish().unwrap();
        let (_folder, table, mut answers) = open(Format::Csv, Some("hits"), None);
        answers.push(1, &[], &hits(1)).unwrap();
        answers.push(1, &[], &hits(1)).unwrap();
        let uneven = answers.push(1, &[], &hits(2)).unwrap_err().to_string();
        answers.finish().unwrap();

        let expected = "{\"row\":0,\"outputs\":{\"y\":[7.0],\"hits\":[],\"one\":1.0}}\n\
                        {\"row\":1,\"outputs\":{\"y\":[7.0],\"hits\":[[0.5,0.5]],\"one\":1.0}}\n\
                        {\"row\":2,\"outputs\":{\"y\":[7.0],\"hits\":[[0.5,0.5],[0.5,0.5]],\"one\":1.0}}\n";
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
        assert_eq!(
            std::fs::read_to_string(table).unwrap(),
            "hits_0,hits_1\n0.5,0.5\n0.5,0.5\n"
        );
        assert!(uneven.contains("rows of [2, 2] at row 2 and of [2] before"), "{uneven}");
    }

    #[test]
    fn of_a_worker_that_says_nothing_the_first_axis_decides() {
        let constant = [outputs()[0].clone(), Tensor::fp32("c", &[4, 2], &[0.0; 8])];
        let (_folder, _, mut answers) = open(Format::Csv, None, None);

        let refused = answers.push(2, &[], &unsaid(&constant)).unwrap_err().to_string();

        assert!(refused.contains("output `c` has shape [4, 2] for 2 rows"), "{refused}");
    }

    #[test]
    fn keys_stand_beside_their_answers_and_beside_the_gaps_of_failed_rows() {
        let keys =
            |texts: &[&str]| -> Vec<Vec<Key>> { texts.iter().map(|&text| vec![Key::Text(text.to_owned())]).collect() };
        for (format, expected) in [
            (Format::Csv, "id,p_0,p_1\na,,\nb,0.25,0.75\nc,1.0,NaN\nd,,\n"),
            (
                Format::Jsonl,
                "{\"row\":0,\"key\":{\"id\":\"a\"},\"error\":\"no\"}\n\
                 {\"row\":1,\"key\":{\"id\":\"b\"},\"outputs\":{\"p\":[0.25,0.75]}}\n\
                 {\"row\":2,\"key\":{\"id\":\"c\"},\"outputs\":{\"p\":[1.0,null]}}\n\
                 {\"row\":3,\"key\":{\"id\":\"d\"},\"error\":\"no\"}\n",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("y");
            let target = Target::open(Some(&path)).unwrap();
            let mut answers = Answers::new(target, format, None, None, vec!["id".to_owned()]).unwrap();

            answers.push_failed(1, &keys(&["a"]), "no").unwrap();
            answers.push(2, &keys(&["b", "c"]), &unsaid(&outputs()[..1])).unwrap();
            answers.push_failed(1, &keys(&["d"]), "no").unwrap();
            answers.finish().unwrap();

            assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
        }
    }

    #[test]
    fn what_was_kept_is_gone_on_with_as_if_nothing_had_been() {
        for format in [Format::Npy, Format::Csv, Format::Jsonl] {
            let (_folder, path, mut whole) = open(format, None, None);
            whole.push(2, &[], &unsaid(&outputs()[..1])).unwrap();
            whole.push(2, &[], &unsaid(&outputs()[..1])).unwrap();
            whole.finish().unwrap();
            let expected = std::fs::read(&path).unwrap();

            let (_folder, path, mut first) = open(format, None, None);
            let nothing = first.keep().unwrap();
            first.push(2, &[], &unsaid(&outputs()[..1])).unwrap();
            let (bytes, layout) = first.keep().unwrap().unwrap();
            first
                .push(1, &[], &unsaid(&[Tensor::fp32("p", &[1, 2], &[9.0, 9.0])]))
                .unwrap();
            drop(first);
            let target = Target::go_on(&path, bytes).unwrap();
            let again = Answers::new(target, format, None, None, Vec::new()).unwrap();
            let mut again = again.after(2, layout);
            again.push(2, &[], &unsaid(&outputs()[..1])).unwrap();
            again.finish().unwrap();

            assert!(nothing.is_none());
            assert_eq!(std::fs::read(path).unwrap(), expected, "{format:?}");
        }
    }
}
