//! What other systems call a datatype, so that a refusal can say what it is called here. Pure.

use super::tensor::Datatype;

/// The datatype that is meant by a name of another system, or of this one in another case. Where a name means several things,
/// such as `int`, the one that most senders mean.
pub(super) fn nearest(name: &str) -> Option<Datatype> {
    let lower = name.trim().to_ascii_lowercase();
    let bare = unwrapped(&lower);
    // NumPy's codes with a byte order count bytes; Rust's names, which look the same, count bits.
    match bare.strip_prefix(['<', '>', '=', '|']) {
        Some("i8") => return Some(Datatype::Int64),
        Some("u8") => return Some(Datatype::Uint64),
        _ => {}
    }
    let bare = bare.trim_start_matches(['<', '>', '=', '|']);
    let (_, datatype) = NAMES
        .iter()
        .find(|(_, datatype)| datatype.name().eq_ignore_ascii_case(bare))
        .or_else(|| NAMES.iter().find(|(names, _)| names.contains(&bare)))?;
    Some(*datatype)
}

/// The name without what is put around it: a module, a class, a prefix.
fn unwrapped(name: &str) -> &str {
    // `<class 'numpy.float32'>`, `dtype('float32')`, `tensor(float)`.
    let around = ['\'', '"', '(', ')'];
    let mut inside = name
        .split(around)
        .skip(1)
        .filter(|part| part.contains(char::is_alphanumeric));
    let inner = inside.next().unwrap_or(name);
    // `torch.float32`, `np.float32`.
    let inner = inner.rsplit('.').next().unwrap_or(inner);
    // `TYPE_FP32` of Triton, `DT_FLOAT` of TensorFlow.
    let prefixes = ["type_", "dt_"];
    prefixes
        .iter()
        .find_map(|prefix| inner.strip_prefix(prefix))
        .unwrap_or(inner)
}

/// Names of NumPy, PyTorch, TensorFlow, ONNX, Arrow, Java, C and Rust.
const NAMES: [(&[&str], Datatype); 14] = [
    (&["boolean", "bool_", "bool8", "b1", "?", "b"], Datatype::Bool),
    (
        &["u1", "u8", "ubyte", "uchar", "uint8_t", "unsigned char", "byte"],
        Datatype::Uint8,
    ),
    (&["u2", "u16", "ushort", "uint16_t", "unsigned short"], Datatype::Uint16),
    (
        &["u4", "u32", "uint", "uintc", "uint32_t", "unsigned int"],
        Datatype::Uint32,
    ),
    (
        &["u64", "ulong", "uint64_t", "ulonglong", "unsigned long"],
        Datatype::Uint64,
    ),
    (&["i1", "i8", "sbyte", "char", "int8_t"], Datatype::Int8),
    (&["i2", "i16", "short", "int16_t"], Datatype::Int16),
    (&["i4", "i32", "intc", "int32_t", "integer32"], Datatype::Int32),
    (
        &["int", "i64", "long", "longlong", "int64_t", "int_", "integer", "bigint"],
        Datatype::Int64,
    ),
    (&["float16", "f2", "f16", "half", "halffloat"], Datatype::Fp16),
    (&["bfloat16", "bfloat", "bfloat16_t"], Datatype::Bf16),
    (
        &["float32", "float", "f4", "f32", "single", "float32_t", "real", "number"],
        Datatype::Fp32,
    ),
    (
        &["float64", "double", "f8", "f64", "float64_t", "float_"],
        Datatype::Fp64,
    ),
    (
        &[
            "string", "str", "text", "utf8", "unicode", "object", "o", "binary", "varchar", "str_", "bytes_",
        ],
        Datatype::Bytes,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_systems_are_known() {
        for (name, datatype) in [
            ("fp32", Datatype::Fp32),
            ("Float32", Datatype::Fp32),
            ("float", Datatype::Fp32),
            ("torch.float32", Datatype::Fp32),
            ("np.float32", Datatype::Fp32),
            ("<class 'numpy.float32'>", Datatype::Fp32),
            ("dtype('float32')", Datatype::Fp32),
            ("tensor(float)", Datatype::Fp32),
            ("TYPE_FP32", Datatype::Fp32),
            ("DT_FLOAT", Datatype::Fp32),
            ("<f4", Datatype::Fp32),
            (">f8", Datatype::Fp64),
            ("double", Datatype::Fp64),
            ("half", Datatype::Fp16),
            ("torch.bfloat16", Datatype::Bf16),
            ("int", Datatype::Int64),
            ("i8", Datatype::Int8),
            ("<i8", Datatype::Int64),
            ("<u8", Datatype::Uint64),
            ("|u1", Datatype::Uint8),
            ("|b1", Datatype::Bool),
            ("boolean", Datatype::Bool),
            ("str", Datatype::Bytes),
            ("TYPE_STRING", Datatype::Bytes),
            (" int32 ", Datatype::Int32),
        ] {
            assert_eq!(nearest(name), Some(datatype), "{name}");
        }
        for unknown in ["", "F4X", "complex64", "FP8", "'", "((", "datetime64[ns]"] {
            assert_eq!(nearest(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn every_datatype_of_the_protocol_is_found_in_any_case() {
        for datatype in Datatype::ALL {
            assert_eq!(nearest(&datatype.name().to_ascii_lowercase()), Some(datatype));
        }
    }

    #[test]
    fn no_name_means_two_datatypes() {
        let mut names: Vec<&str> = NAMES.iter().flat_map(|(names, _)| names.iter().copied()).collect();
        let all = names.len();

        names.sort_unstable();
        names.dedup();

        assert_eq!(names.len(), all);
    }
}
