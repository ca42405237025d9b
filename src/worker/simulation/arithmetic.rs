//! The model of the simulation.

use super::super::infer::{Engine, EngineError, Input, Output};
use super::mutants::Mutant;
use super::schedule::Kind;
use crate::model::signature::Signature;
use crate::model::test_engine::spec;
use crate::wire::tensor::Datatype;

/// Gives the first two columns of each row. The third says what goes wrong.
pub struct Arithmetic {
    signature: Signature,
    isolated: bool,
    mutant: Option<Mutant>,
    /// The output before.
    last: Option<Vec<u8>>,
}

impl Arithmetic {
    /// `isolated`: in a process of its own, which may end.
    pub fn new(isolated: bool, mutant: Option<Mutant>) -> Self {
        Self {
            signature: Signature {
                inputs: vec![spec("x", Datatype::Fp32, &["batch", "3"])],
                outputs: vec![spec("y", Datatype::Fp32, &["batch", "2"])],
            },
            isolated,
            mutant,
            last: None,
        }
    }
}

impl Engine for Arithmetic {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError> {
        let data = inputs[0].parts.concat();
        let rows = inputs[0].shape[0];
        let is = |kind: Kind| {
            let kind = f32::from(kind as u8).to_le_bytes();
            data.chunks_exact(ROW_BYTES).any(|row| row[8..] == kind)
        };
        if is(Kind::Poison) {
            return Err(if self.isolated {
                EngineError::Run("the process ended".to_owned())
            } else {
                EngineError::Device("the process ends".to_owned())
            });
        }
        if is(Kind::Culprit) {
            return Err(EngineError::Run("it fails".to_owned()));
        }
        if is(Kind::TooHeavy) || is(Kind::Heavy) && rows > 2 {
            return Err(EngineError::Memory("too big".to_owned()));
        }
        let mut out: Vec<&[u8]> = data.chunks_exact(ROW_BYTES).map(|row| &row[..8]).collect();
        if rows > 1 && self.mutant == Some(Mutant::RowsSwapped) {
            out.swap(0, 1);
        }
        let mut out = out.concat();
        if self.mutant == Some(Mutant::SliceRepeated)
            && let Some(last) = self.last.take().filter(|last| last.len() == out.len())
        {
            out = last;
        }
        self.last = Some(out.clone());
        Ok(vec![Output::new(vec![rows, 2], out)])
    }
}

const ROW_BYTES: usize = 12;
