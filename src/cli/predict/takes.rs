//! What a model takes, as the worker that serves it says.
//!
//! A job for an input that no model has is refused with the names, datatypes and shapes of those that there are. So nothing needs
//! to be known of the model here, and any worker of any version answers.

use crate::client::CallError;
use crate::model::signature::{Dim, TensorSpec};
use crate::wire::status::Status;
use crate::wire::tensor::{Datatype, Tensor};

/// The input of the job that is to be refused.
pub fn question() -> Tensor {
    Tensor {
        name: "inferq predict asks for the inputs".to_owned(),
        datatype: Datatype::Uint8,
        shape: vec![1],
        data: vec![0].into(),
    }
}

/// Reads the inputs out of a refusal; none where it does not name them all.
pub fn inputs(refusal: &CallError) -> Vec<TensorSpec> {
    match refusal {
        CallError::Refused {
            code: Status::InvalidArgument,
            error,
        } => named(error).unwrap_or_default(),
        _ => Vec::new(),
    }
}

fn named(sentence: &str) -> Option<Vec<TensorSpec>> {
    let (_, mut rest) = sentence.split_once("` takes `")?;
    let mut specs = Vec::new();
    loop {
        let (spec, behind) = first(rest)?;
        specs.push(spec);
        match behind.split_once('`') {
            Some((_, next)) => rest = next,
            None => return Some(specs),
        }
    }
}

/// An input such as `` x FP32 [batch,4]` ``, and what stands behind it. Its name and its axes may hold anything.
fn first(text: &str) -> Option<(TensorSpec, &str)> {
    let ends = text.match_indices("]`").map(|(end, _)| end);
    ends.map(|end| (&text[..end], &text[end + 2..]))
        .find_map(|(spec, behind)| Some((parse(spec)?, behind)))
}

fn parse(text: &str) -> Option<TensorSpec> {
    let (start, shape) = text.rsplit_once(" [")?;
    let (name, datatype) = start.rsplit_once(' ')?;
    let dim = |axis: &str| match axis {
        "?" => Dim::Dynamic(String::new()),
        axis => axis.parse().map_or_else(|_| Dim::Dynamic(axis.to_owned()), Dim::Fixed),
    };
    let axes = shape.split(',').filter(|axis| !axis.is_empty());
    Some(TensorSpec {
        name: name.to_owned(),
        datatype: datatype.parse().ok()?,
        shape: axes.map(dim).collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::inputs::tests::spec;
    use super::*;
    use crate::error::JobError;

    fn refused(error: &JobError) -> CallError {
        CallError::Refused {
            code: error.status(),
            error: error.to_string(),
        }
    }

    fn listed(takes: &[TensorSpec]) -> String {
        let takes: Vec<String> = takes.iter().map(|spec| format!("`{spec}`")).collect();
        takes.join(", ")
    }

    fn refusals(takes: &[TensorSpec]) -> [CallError; 2] {
        let (model, takes) = ("m".to_owned(), listed(takes));
        let count = JobError::InputCount {
            came: 1,
            model: model.clone(),
            takes: takes.clone(),
        };
        let name = JobError::InputName {
            index: 0,
            name: question().name,
            model,
            takes,
        };
        [refused(&count), refused(&name)]
    }

    #[test]
    fn inputs_are_read_out_of_what_a_worker_says() {
        let takes = [
            spec("input:0", Datatype::Fp32, &["batch", "3", "h - 1"]),
            spec("sepal length (cm)", Datatype::Bytes, &["", "1"]),
            spec("scale", Datatype::Int64, &[]),
        ];
        for refusal in refusals(&takes) {
            assert_eq!(inputs(&refusal), takes);
        }
        let other = CallError::Refused {
            code: Status::Internal,
            error: "no".to_owned(),
        };
        assert_eq!(inputs(&other), []);
    }

    proptest! {
        #[test]
        fn names_and_axes_may_be_nearly_anything(
            names in prop::collection::vec("[a-z][a-z0-9 :()\\[\\],./é]{0,12}", 1..4),
            axes in prop::collection::vec("[a-z][a-z0-9_ *-]{0,8}|[0-9]{1,4}|", 0..4),
        ) {
            let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
            let takes: Vec<TensorSpec> = names.iter().map(|name| spec(name, Datatype::Fp16, &axes)).collect();

            for refusal in refusals(&takes) {
                prop_assert_eq!(inputs(&refusal), takes.clone());
            }
        }
    }
}
