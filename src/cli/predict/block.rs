//! Rows on their way from a file into jobs, with the keys by which their answers are known.

use std::borrow::Cow;
use std::sync::Arc;

use crate::wire::tensor::{Tensor, rows_range};

/// Rows that follow one another.
#[derive(Debug, Clone, Default)]
pub struct Block {
    rows: usize,
    /// One for each input of the model that has rows; the first axis of each counts them.
    pub inputs: Vec<Tensor>,
    /// Inputs without rows, which every job is given whole.
    pub whole: Arc<[Tensor]>,
    /// The key cells of each row; without key columns there are none.
    pub keys: Vec<Vec<Key>>,
}

impl Block {
    pub fn new(inputs: Vec<Tensor>, keys: Vec<Vec<Key>>) -> Self {
        let rows = inputs
            .first()
            .map_or(0, |input| input.shape.first().copied().unwrap_or(0));
        Self {
            rows,
            inputs,
            whole: Arc::default(),
            keys,
        }
    }

    /// The only job of inputs that have no rows: its answer is one row.
    pub fn of_whole(whole: Arc<[Tensor]>) -> Self {
        Self {
            rows: 1,
            whole,
            ..Self::default()
        }
    }

    #[must_use]
    pub fn with(self, whole: &Arc<[Tensor]>) -> Self {
        Self {
            whole: whole.clone(),
            ..self
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// All inputs of the job.
    pub fn tensors(&self) -> Vec<Tensor> {
        self.inputs.iter().chain(&*self.whole).cloned().collect()
    }

    /// Puts blocks together in their order; `None` where there is none, or their rows are not of one kind.
    pub fn concat(mut blocks: Vec<Self>) -> Option<Self> {
        if blocks.len() == 1 {
            return blocks.pop();
        }
        let inputs = (0..blocks.first()?.inputs.len()).map(|place| {
            let parts: Option<Vec<&Tensor>> = blocks.iter().map(|block| block.inputs.get(place)).collect();
            Tensor::concat_rows(&parts?)
        });
        Some(Self {
            rows: blocks.iter().map(Self::rows).sum(),
            inputs: inputs.collect::<Option<_>>()?,
            whole: blocks.first()?.whole.clone(),
            keys: blocks.into_iter().flat_map(|block| block.keys).collect(),
        })
    }

    /// Keeps the first `rows` rows, and returns those after them.
    pub fn split_off(&mut self, rows: usize) -> Option<Self> {
        if rows >= self.rows {
            return None;
        }
        let inputs = self.inputs.iter_mut().map(|input| {
            let count = input.shape[0];
            let first = rows_range(&input.data, input.datatype, &input.shape, &(0..rows));
            let mut rest = input.clone();
            rest.data = input.data.split_off(first.end);
            rest.shape[0] = count - rows;
            input.shape[0] = rows;
            rest
        });
        let rest = Self {
            rows: self.rows - rows,
            inputs: inputs.collect(),
            whole: self.whole.clone(),
            keys: self.keys.split_off(rows.min(self.keys.len())),
        };
        self.rows = rows;
        Some(rest)
    }
}

/// A cell of a key column, as it came: an `0017` stays what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    Text(String),
    /// A number, boolean or `null` as JSON writes it; or `NaN`, `inf` and `-inf`, for which JSON has no word.
    Literal(String),
}

impl Key {
    pub fn plain(&self) -> &str {
        match self {
            Self::Literal(literal) if literal == "null" => "",
            Self::Text(text) | Self::Literal(text) => text,
        }
    }

    pub fn json(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => serde_json::Value::from(text.as_str()).to_string().into(),
            Self::Literal(literal) if matches!(&**literal, "NaN" | "inf" | "-inf") => "null".into(),
            Self::Literal(literal) => literal.into(),
        }
    }
}

/// The keys of one row as a JSON object.
pub fn keys_object(names: &[String], keys: &[Key]) -> String {
    let pairs = names.iter().zip(keys);
    let pairs: Vec<String> = pairs
        .map(|(name, key)| format!("{}:{}", serde_json::Value::from(name.as_str()), key.json()))
        .collect();
    format!("{{{}}}", pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tensor::{Datatype, push_bytes_element};

    #[test]
    fn a_block_is_cut_between_rows_whatever_their_length() {
        let mut texts = Vec::new();
        for text in ["a", "", "ccc"] {
            push_bytes_element(&mut texts, text.as_bytes());
        }
        let words = Tensor {
            name: "words".to_owned(),
            datatype: Datatype::Bytes,
            shape: vec![3],
            data: texts.into(),
        };
        let mut block = Block::new(
            vec![Tensor::fp32("x", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), words],
            ["p", "q", "r"].map(|key| vec![Key::Text(key.to_owned())]).into(),
        );

        let rest = block.split_off(2).unwrap();

        assert_eq!(block.inputs[0], Tensor::fp32("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0]));
        assert_eq!(rest.inputs[0], Tensor::fp32("x", &[1, 2], &[5.0, 6.0]));
        assert_eq!(block.inputs[1].data.len(), 9);
        assert_eq!(rest.inputs[1].data[..], *b"\x03\0\0\0ccc");
        assert_eq!((block.keys.len(), rest.keys.len()), (2, 1));
        assert!(block.split_off(2).is_none());
        let whole = Block::concat(vec![block, rest]).unwrap();
        assert_eq!((whole.inputs[0].rows(), whole.inputs[1].data.len()), (Some(3), 16));
        assert_eq!((whole.keys.len(), whole.keys[2][0].plain()), (3, "r"));
    }

    #[test]
    fn a_key_is_written_as_it_came() {
        let keys = [
            Key::Text("0\"7".to_owned()),
            Key::Literal("17".to_owned()),
            Key::Literal("null".to_owned()),
        ];
        let names = ["a", "b", "c"].map(str::to_owned);

        assert_eq!(keys.each_ref().map(Key::plain), ["0\"7", "17", ""]);
        assert_eq!(keys_object(&names, &keys), r#"{"a":"0\"7","b":17,"c":null}"#);
    }
}
