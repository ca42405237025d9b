//! The bodies and names of simulated jobs.

use bytes::Bytes;
use lapin::types::ShortString;

use super::oracle::JobNumber;
use super::schedule::{BODY_BYTES_MAX, Kind};
use crate::wire::Encoding;
use crate::wire::reply::{ReplyMeta, ReplyOutput, encode_reply};
use crate::wire::tensor::Datatype;

pub fn queue_name(queue: usize) -> &'static str {
    ["replies-0", "replies-1", "replies-2"][queue]
}

/// The message id of a job; also its correlation id.
pub fn message_id(twin_of: JobNumber) -> ShortString {
    format!("job-{twin_of}").into()
}

pub const MODEL: &str = "pair";

/// A request for `rows` rows of the job's number, the row's number and the kind.
pub fn body(number: JobNumber, kind: Kind, rows: usize) -> Bytes {
    if kind == Kind::Undecodable {
        return Bytes::from_static(b"{\"inputs\":[");
    }
    let row = |row: usize| format!("{number},{row},{}", kind as u8);
    let values: Vec<_> = (0..rows).map(row).collect();
    let mut body = format!(
        r#"{{"id":"{number}","inputs":[{{"datatype":"FP32","shape":[{rows},3],"data":[{}]}}]}}"#,
        values.join(",")
    );
    if kind == Kind::Oversize {
        body.extend(std::iter::repeat_n(' ', BODY_BYTES_MAX));
    }
    body.into()
}

/// The reply to that, of rows with the job's number and the row's.
pub fn expected(number: JobNumber, rows: usize) -> Bytes {
    let values = (0..rows).flat_map(|row| [number as f32, row as f32]);
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    let meta = ReplyMeta {
        model_name: MODEL,
        model_version: "1",
        id: Some(&number.to_string()),
    };
    let output = ReplyOutput {
        name: "y",
        datatype: Datatype::Fp32,
        shape: &[rows, 2],
        parts: &[&bytes],
        binary: false,
    };
    encode_reply(&Encoding::Json, &meta, &[output]).body
}
