use std::io;

use proptest::prelude::*;

use super::*;

/// A file that gives a few bytes at a time, so that buffers end anywhere.
struct Dripping<'a>(&'a [u8], usize);

impl Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.1.min(self.0.len()).min(buffer.len());
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

fn read(text: &[u8], step: usize) -> Result<Vec<Vec<String>>, RecordFault> {
    let mut records = Records::new(Dripping(text, step), Delimiter::default());
    let mut record = Record::default();
    let mut all = Vec::new();
    while records.read(&mut record)? {
        all.push(
            (0..record.cells())
                .map(|place| record.cell(place).map(str::to_owned))
                .collect::<Result<_, _>>()?,
        );
    }
    assert_eq!(records.taken_bytes(), text.len() as u64);
    Ok(all)
}

fn fault(text: &[u8]) -> String {
    read(text, 7).unwrap_err().to_string()
}

#[test]
fn cells_come_as_they_were_written() {
    let text = "a, b ,\"c\"\" d\"\r\n\"x\r\ny\",\t,\n\n\"\",\" \",1\rlast,2,\"\"";

    for step in 1..=text.len() {
        let records = read(text.as_bytes(), step).unwrap();

        let expected = [
            ["a", " b ", "c\" d"],
            ["x\r\ny", "\t", ""],
            ["", " ", "1"],
            ["last", "2", ""],
        ];
        assert_eq!(records, expected, "{step}");
    }
}

#[test]
fn what_is_no_table_is_named_by_line_and_column() {
    for (text, sentence) in [
        (
            "a,b\n1,\"2\n3,4\n",
            "line 2, column 2: the quote that opens this cell is never closed",
        ),
        ("a\n\"1\n2\"x\n", "line 2, column 1: text follows the quote that closes"),
        ("a,b\n1,\"2\" \n", "line 2, column 2: text follows"),
        (
            "a,b\n\"x\ny\",5\" pipe\n",
            "line 3, column 2: a quote stands within a cell",
        ),
        ("a,b\n1, \"2\"\n", "line 2, column 2: a quote stands within"),
    ] {
        assert!(
            fault(text.as_bytes()).contains(sentence),
            "{text}: {}",
            fault(text.as_bytes())
        );
    }
    assert!(fault(b"a,\xff\n").contains("line 1, column 2: the cell is not UTF-8"));
}

#[test]
fn a_quote_without_end_is_refused_before_it_fills_the_memory() {
    let rows = "1,2\n".repeat(11_000_000 / 16);
    let text = format!("a,b\n1,\"2\n{rows}");

    let mut records = Records::new(text.as_bytes(), Delimiter::default());
    let mut record = Record::default();
    assert!(records.read(&mut record).unwrap());
    let fault = records.read(&mut record).unwrap_err().to_string();

    assert!(
        fault.starts_with("line 2, column 2: the quote that opens this cell is not closed within 1 MiB"),
        "{fault}"
    );
    assert!(records.taken_bytes() < 2 << 20);
    assert!(record.text.capacity() <= 4 << 20);
}

#[test]
fn cells_without_end_are_refused() {
    let mut records = Records::new(io::repeat(b'1'), Delimiter::default());
    let long = records.read(&mut Record::default()).unwrap_err().to_string();
    let mut records = Records::new(io::repeat(b','), Delimiter::default());
    let many = records.read(&mut Record::default()).unwrap_err().to_string();

    assert!(
        long.starts_with("line 1, column 1: the cell has more than 1 MiB"),
        "{long}"
    );
    assert!(many.starts_with("line 1 has more than 64 MiB"), "{many}");
}

#[test]
fn empty_lines_are_rows_of_one_column_unless_they_end_the_file() {
    let mut records = Records::new(&b"\na\n1\n\n\r\n2\n\n\n"[..], Delimiter::default());
    let mut record = Record::default();
    assert!(records.read(&mut record).unwrap());
    records.keep_empty_lines();
    let mut lines = Vec::new();
    while records.read(&mut record).unwrap() {
        lines.push((record.line(), record.cell(0).unwrap().to_owned()));
    }

    let expected = [(3, "1"), (4, ""), (5, ""), (6, "2")].map(|(line, cell)| (line, cell.to_owned()));
    assert_eq!(lines, expected);
}

proptest! {
    /// What the `csv` crate writes, and what a lenient reader of it makes of any text that is not refused here.
    #[test]
    fn records_are_those_of_the_csv_crate(
        rows in prop::collection::vec(prop::collection::vec("[ab,\"\n\r\t é;]{0,6}", 2..4), 1..6), step in 1_usize..40
    ) {
        let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
        for row in &rows {
            writer.write_record(row).unwrap();
        }
        let text = writer.into_inner().unwrap();

        prop_assert_eq!(read(&text, step).unwrap(), rows);
    }

    #[test]
    fn what_is_not_refused_is_read_as_others_read_it(text in "[ab,\"\n\r é]{0,40}", step in 1_usize..40) {
        let mut lenient = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
        let theirs: Vec<Vec<String>> = lenient.records().map(|r| r.unwrap().iter().map(str::to_owned).collect()).collect();

        if let Ok(ours) = read(text.as_bytes(), step) {
            prop_assert_eq!(ours, theirs);
        }
    }
}
