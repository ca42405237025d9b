//! Golden vectors as `numpy.savez` writes them.

use std::io::Cursor;

use ndarray::{ArrayD, OwnedRepr};
use ndarray_npy::npy::header::Header;
use ndarray_npy::{NpzReader, ReadNpyError, ReadNpzError, ReadableElement};

use super::{Contents, FileFault};
use crate::model::compare::Tolerance;
use crate::wire::tensor::{Datatype, Tensor};

type Npz = NpzReader<Cursor<Vec<u8>>>;

/// Reads the keys `input:<name>`, `output:<name>` and, optional, `tolerance` as `[absolute, relative]`.
pub(super) fn parse(bytes: Vec<u8>) -> Result<Contents, FileFault> {
    check_sizes(&bytes)?;
    let mut npz = Npz::new(Cursor::new(bytes)).map_err(FileFault::Npz)?;
    let keys = npz.names().map_err(FileFault::Npz)?;
    let mut contents = Contents::default();
    for (index, key) in keys.iter().enumerate() {
        if let Some(name) = key.strip_prefix("input:") {
            contents.inputs.push(tensor(&mut npz, index, key, name)?);
        } else if let Some(name) = key.strip_prefix("output:") {
            contents.outputs.push(tensor(&mut npz, index, key, name)?);
        } else if key == "tolerance" {
            contents.tolerance = Some(tolerance(&mut npz, index)?);
        } else {
            return Err(FileFault::NpzKey { key: key.clone() });
        }
    }
    Ok(contents)
}

/// Refuses headers that would make the reader ask for more memory, or recurse deeper, than the file warrants.
///
/// `ndarray-npy` allocates what a header states before it reads, and an allocation that fails ends the process. The
/// entries of an uncompressed archive lie in the file as they are, so every header is found by its magic string.
fn check_sizes(bytes: &[u8]) -> Result<(), FileFault> {
    for at in 0..bytes.len().saturating_sub(MAGIC.len()) {
        let entry = &bytes[at..];
        if !entry.starts_with(MAGIC) {
            continue;
        }
        let length = match entry.get(6..12) {
            Some(&[1, _, low, high, ..]) => u16::from_le_bytes([low, high]).into(),
            Some(&[_, _, a, b, c, d]) => u32::from_le_bytes([a, b, c, d]) as usize,
            _ => continue, // Cut off: the reader says so.
        };
        let brackets = entry
            .iter()
            .take(length.min(HEADER_BYTES_MAX) + 12)
            .filter(|byte| b"([{".contains(byte));
        if length > HEADER_BYTES_MAX || brackets.count() > BRACKETS_MAX {
            return Err(FileFault::NpzSize);
        }
        // A header that cannot be read is reported by the reader itself, with its key.
        if let Ok(header) = Header::from_reader(&mut &*entry) {
            let elements = header
                .shape
                .iter()
                .try_fold(1_usize, |product, size| product.checked_mul(*size));
            if elements.is_none_or(|elements| elements > bytes.len()) {
                return Err(FileFault::NpzSize);
            }
        }
    }
    Ok(())
}

fn tensor(npz: &mut Npz, index: usize, key: &str, name: &str) -> Result<Tensor, FileFault> {
    for read in READERS {
        match read(npz, index, name) {
            Ok(tensor) => return Ok(tensor),
            Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(_))) => {}
            Err(ReadNpzError::Npy(source)) => {
                return Err(FileFault::Npy {
                    key: key.to_owned(),
                    source,
                });
            }
            Err(error) => return Err(FileFault::Npz(error)),
        }
    }
    Err(FileFault::NpzDatatype { key: key.to_owned() })
}

fn tolerance(npz: &mut Npz, index: usize) -> Result<Tolerance, FileFault> {
    let values = npz
        .by_index::<OwnedRepr<f64>, ndarray::IxDyn>(index)
        .map_err(|_| FileFault::Tolerance)?;
    match values.as_slice() {
        Some(&[absolute, relative]) => Ok(Tolerance { absolute, relative }),
        _ => Err(FileFault::Tolerance),
    }
}

/// An element type of `.npy` files that is a datatype of ours.
trait Element: ReadableElement + Copy {
    const DATATYPE: Datatype;
    fn push_to(self, data: &mut Vec<u8>);
}

fn read<T: Element>(npz: &mut Npz, index: usize, name: &str) -> Result<Tensor, ReadNpzError> {
    let array: ArrayD<T> = npz.by_index(index)?;
    let mut data = Vec::new();
    // In row-major order, also where the file is in Fortran's.
    for element in &array {
        element.push_to(&mut data);
    }
    Ok(Tensor {
        name: name.to_owned(),
        datatype: T::DATATYPE,
        shape: array.shape().to_vec(),
        data: data.into(),
    })
}

macro_rules! elements {
    ($($element:ty: $datatype:ident),*) => {
        $(impl Element for $element {
            const DATATYPE: Datatype = Datatype::$datatype;
            fn push_to(self, data: &mut Vec<u8>) {
                data.extend(self.to_le_bytes());
            }
        })*
        /// One reader a type: the library tells a file's type only by refusing all others.
        const READERS: [fn(&mut Npz, usize, &str) -> Result<Tensor, ReadNpzError>; 11] = [read::<bool>, $(read::<$element>),*];
    };
}

elements!(
    f32: Fp32, f64: Fp64, i64: Int64, i32: Int32, i16: Int16, i8: Int8,
    u64: Uint64, u32: Uint32, u16: Uint16, u8: Uint8
);

impl Element for bool {
    const DATATYPE: Datatype = Datatype::Bool;
    fn push_to(self, data: &mut Vec<u8>) {
        data.push(self.into());
    }
}

/// Where every `.npy` begins.
const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy's own limit, `_MAX_HEADER_SIZE` in `numpy/lib/format.py`; a plain array needs about a hundred bytes.
const HEADER_BYTES_MAX: usize = 10_000;
/// Brackets in the header of a plain array: one dictionary, one shape. More is a structured type.
const BRACKETS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use ndarray::{IxDyn, ShapeBuilder, array};
    use ndarray_npy::{NpzWriter, WritableElement};
    use proptest::prelude::*;

    use super::*;
    use crate::model::test_engine::f32_bytes;

    fn npz(fill: impl FnOnce(&mut NpzWriter<Cursor<Vec<u8>>>)) -> Vec<u8> {
        let mut npz = NpzWriter::new(Cursor::new(Vec::new()));
        fill(&mut npz);
        npz.finish().unwrap().into_inner()
    }

    /// Two rows for `TestEngine::sums`, whose outputs are their sum and their first value.
    fn sums_npz(outputs: [f32; 4]) -> Vec<u8> {
        npz(|npz| {
            npz.add_array("input:x", &array![[1_f32, 2.0, 3.0], [4.0, 5.0, 6.0]])
                .unwrap();
            npz.add_array(
                "output:y",
                &ArrayD::from_shape_vec(IxDyn(&[2, 2]), outputs.to_vec()).unwrap(),
            )
            .unwrap();
        })
    }

    fn with_element<T: WritableElement + Clone>(value: T) -> Result<Contents, FileFault> {
        parse(npz(|npz| {
            npz.add_array("input:x", &ArrayD::from_elem(IxDyn(&[1, 2]), value))
                .unwrap();
        }))
    }

    /// An archive whose one entry has this text as its header.
    fn npz_with_header(replace: &str, by: &str) -> Vec<u8> {
        let mut bytes = sums_npz([0.0; 4]);
        let at = bytes
            .windows(replace.len())
            .position(|window| window == replace.as_bytes())
            .unwrap();
        bytes[at..at + by.len()].copy_from_slice(by.as_bytes());
        bytes
    }

    #[test]
    fn every_datatype_that_numpy_shares_with_us_is_read() {
        let of = |contents: Result<Contents, FileFault>| contents.unwrap().inputs.remove(0);
        let cases = [
            (of(with_element(true)), Datatype::Bool),
            (of(with_element(1_u8)), Datatype::Uint8),
            (of(with_element(1_u16)), Datatype::Uint16),
            (of(with_element(1_u32)), Datatype::Uint32),
            (of(with_element(1_u64)), Datatype::Uint64),
            (of(with_element(1_i8)), Datatype::Int8),
            (of(with_element(1_i16)), Datatype::Int16),
            (of(with_element(1_i32)), Datatype::Int32),
            (of(with_element(1_i64)), Datatype::Int64),
            (of(with_element(1_f32)), Datatype::Fp32),
            (of(with_element(1_f64)), Datatype::Fp64),
        ];
        for (tensor, datatype) in cases {
            assert_eq!(tensor.datatype, datatype);
            assert_eq!(tensor.name, "x");
            assert_eq!(tensor.data.len(), 2 * datatype.element_bytes().unwrap());
        }
    }

    #[test]
    fn an_array_in_fortran_order_comes_out_row_major() {
        let columns_first = ArrayD::from_shape_vec(IxDyn(&[2, 2]).f(), vec![1_f32, 3.0, 2.0, 4.0]).unwrap();

        let contents = parse(npz(|npz| npz.add_array("input:x", &columns_first).unwrap())).unwrap();

        assert_eq!(contents.inputs[0].data, f32_bytes([1.0, 2.0, 3.0, 4.0]));
    }

    #[test]
    fn a_key_of_no_meaning_is_refused_with_those_that_have_one() {
        let error = parse(npz(|npz| npz.add_array("x", &array![1_f32]).unwrap())).unwrap_err();

        assert_eq!(
            error.to_string(),
            "x is an unknown key; allowed are input:<name>, output:<name> and tolerance"
        );
    }

    #[test]
    fn a_header_that_states_more_than_the_file_holds_is_refused_before_memory_is_asked_for() {
        for shape in [
            "(2, 99999999999999)}",
            "(9999999999, 999999999)}",
            "(99999999999999999999,)}",
        ] {
            let error = parse(npz_with_header("(2, 3)}", shape)).unwrap_err();
            assert!(
                matches!(error, FileFault::NpzSize | FileFault::Npy { .. }),
                "{shape}: {error}"
            );
        }
    }

    #[test]
    fn a_header_that_nests_without_end_is_refused_before_it_is_parsed() {
        let error = parse(npz_with_header("(2, 3)}", "((((((((((((((((")).unwrap_err();

        assert!(matches!(error, FileFault::NpzSize));
    }

    #[test]
    fn a_file_cut_off_at_any_length_is_refused() {
        let whole = sums_npz([6.0, 1.0, 15.0, 4.0]);

        for length in 0..whole.len() {
            assert!(parse(whole[..length].to_vec()).is_err(), "{length}");
        }
    }

    #[test]
    fn a_value_that_changed_in_storage_is_found_by_the_checksum() {
        let mut bytes = sums_npz([6.0, 1.0, 15.0, 4.0]);
        let at = bytes
            .windows(4)
            .position(|window| window == 15_f32.to_le_bytes())
            .unwrap();
        bytes[at] ^= 1;

        assert!(matches!(parse(bytes), Err(FileFault::Npy { key, .. }) if key == "output:y"));
    }

    #[test]
    fn a_datatype_that_we_do_not_have_is_refused_with_those_we_do() {
        let bytes = npz_with_header("'<f4'", "'<c8'");

        assert!(matches!(parse(bytes), Err(FileFault::NpzDatatype { key }) if key == "input:x"));
    }

    proptest! {
        #[test]
        fn a_damaged_npz_is_read_or_refused_and_never_a_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = sums_npz([6.0, 1.0, 15.0, 4.0]);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(contents) = parse(bytes) {
                for tensor in contents.inputs.iter().chain(&contents.outputs) {
                    let elements: usize = tensor.shape.iter().product();
                    prop_assert_eq!(Some(tensor.data.len()), tensor.datatype.element_bytes().map(|bytes| bytes * elements));
                }
            }
        }

        #[test]
        fn any_bytes_are_no_npz_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(parse(bytes).is_err());
        }
    }
}
