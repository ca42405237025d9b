//! Arrays in, arrays out.

use half::{bf16, f16};
use ndarray::{ArrayBase, ArrayD, Data, Dimension, IxDyn};

use super::{CallError, Client};
use crate::wire::tensor::{Datatype, Tensor};

/// A Rust type that is one of the protocol's datatypes.
pub trait Element: Copy {
    const DATATYPE: Datatype;
    /// Little-endian bytes.
    type Bytes: AsRef<[u8]> + for<'a> TryFrom<&'a [u8]>;
    fn to_bytes(self) -> Self::Bytes;
    fn from_bytes(bytes: Self::Bytes) -> Self;
}

macro_rules! elements {
    ($($rust:ty = $datatype:ident,)*) => {$(
        impl Element for $rust {
            const DATATYPE: Datatype = Datatype::$datatype;
            type Bytes = [u8; size_of::<$rust>()];

            fn to_bytes(self) -> Self::Bytes {
                self.to_le_bytes()
            }

            fn from_bytes(bytes: Self::Bytes) -> Self {
                Self::from_le_bytes(bytes)
            }
        }
    )*};
}

elements! {
    u8 = Uint8, u16 = Uint16, u32 = Uint32, u64 = Uint64,
    i8 = Int8, i16 = Int16, i32 = Int32, i64 = Int64,
    f16 = Fp16, bf16 = Bf16, f32 = Fp32, f64 = Fp64,
}

impl Element for bool {
    const DATATYPE: Datatype = Datatype::Bool;
    type Bytes = [u8; 1];

    fn to_bytes(self) -> [u8; 1] {
        [self.into()]
    }

    fn from_bytes([byte]: [u8; 1]) -> Self {
        byte != 0
    }
}

impl Client {
    /// Runs a model with one input on an array, whose first axis counts the rows, and returns its first output.
    ///
    /// The model takes elements of type `A`, and answers with elements of type `B`.
    /// # Errors
    /// [`CallError`]; `Datatype` if the output has elements of another type.
    pub async fn predict_array<A: Element, B: Element, S: Data<Elem = A>, D: Dimension>(
        &self,
        model: &str,
        rows: &ArrayBase<S, D>,
    ) -> Result<ArrayD<B>, CallError> {
        let answer = self.predict(model, vec![tensor(rows)]).await?;
        // A worker answers with every output that a model has, and a model has one at least.
        answer.outputs.first().map_or_else(|| Ok(empty()), array)
    }
}

fn empty<B: Element>() -> ArrayD<B> {
    ArrayD::from_shape_fn(IxDyn(&[0]), |_| unreachable!("no element"))
}

/// Unnamed, which a model with a single input allows.
fn tensor<S: Data<Elem: Element>, D: Dimension>(rows: &ArrayBase<S, D>) -> Tensor {
    let mut data = Vec::with_capacity(rows.len() * size_of::<S::Elem>());
    for element in rows {
        data.extend_from_slice(element.to_bytes().as_ref());
    }
    Tensor {
        name: String::new(),
        datatype: <S::Elem as Element>::DATATYPE,
        shape: rows.shape().to_vec(),
        data: data.into(),
    }
}

fn array<B: Element>(tensor: &Tensor) -> Result<ArrayD<B>, CallError> {
    let elements = tensor.data.chunks_exact(size_of::<B::Bytes>());
    let elements: Option<Vec<B>> = elements.map(|bytes| bytes.try_into().ok().map(B::from_bytes)).collect();
    let shape = IxDyn(&tensor.shape);
    let array = (tensor.datatype == B::DATATYPE)
        .then_some(elements)
        .flatten()
        .and_then(|elements| ArrayD::from_shape_vec(shape, elements).ok());
    // A reply is decoded only if its data are as long as its shape says.
    array.ok_or(CallError::Datatype {
        came: tensor.datatype,
        asked: B::DATATYPE,
    })
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, arr2};

    use super::*;

    #[test]
    fn an_array_comes_back_as_it_was_whatever_its_layout() {
        let rows = arr2(&[[1_i16, -2, 3], [4, 5, 6]]);

        let plain: ArrayD<i16> = array(&tensor(&rows)).unwrap();
        let turned: ArrayD<i16> = array(&tensor(&rows.t())).unwrap();

        assert_eq!(plain, rows.clone().into_dyn());
        assert_eq!(turned, rows.t().to_owned().into_dyn());
    }

    #[test]
    fn elements_of_another_type_are_refused_and_none_are_none() {
        let refused = array::<f64>(&tensor(&arr2(&[[1_f32]]))).unwrap_err();
        let none: ArrayD<bool> = array(&tensor(&Array2::<bool>::default((0, 4)))).unwrap();

        assert_eq!(refused.to_string(), "the answer is FP32, not FP64 as asked for");
        assert_eq!(none.shape(), [0, 4]);
    }
}
