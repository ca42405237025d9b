//! Decoding: from a [`Delivery`] to a [`Job`] that fits its model. Pure; after it nobody checks a shape again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::backlog::PaceHandle;
use super::coalesce::Hurry;
use super::consume::Delivery;
use super::lane_rows::LaneRows;
use super::message;
use super::prefetch::Load;
use super::reply::{Answer, Outcome};
use super::settle::{Receipt, Verdict};
use crate::broker::bodies::Claim;
use crate::error::JobError;
use crate::model::capacity::Estimate;
use crate::model::signature::{Dim, Dims, Signature, TensorSpec};
use crate::telemetry::export::{Traced, Traces};
use crate::telemetry::metrics::{LaneMetrics, ModelMetrics};
use crate::telemetry::trace::{Arrival, Trace};
use crate::wire::amqp10;
use crate::wire::error::{WireError, excerpt};
use crate::wire::headers;
use crate::wire::reply_address::{self, AddressError};
use crate::wire::request::{Request, RequestInput, decode_request};
use crate::wire::tensor::{Datatype, Tensor, bytes_elements};
use crate::wire::{Encoding, JSON_BYTES_HEADER};

/// A model as a worker serves it: one lane a version.
pub struct Served {
    pub name: Arc<str>,
    pub lanes: BTreeMap<u64, (Arc<Lane>, Sender<Job>)>,
    /// The version for jobs that pin none.
    pub default_version: u64,
    /// Versions that are meant to be served and are not here: jobs that pin them wait for a worker that has them.
    pub left_out: Vec<u64>,
    pub metrics: Arc<ModelMetrics>,
    /// Where the traces of its jobs go, if anywhere.
    pub traces: Option<Traces>,
    /// How fast the worker is with it.
    pub pace: PaceHandle,
}

/// One version of a model, with its own engines and batches.
pub struct Lane {
    pub model: Arc<str>,
    pub version: String,
    pub signature: Signature,
    /// Inputs that a job may leave out, since they have a value of their own.
    pub defaults: Vec<TensorSpec>,
    pub rows: Arc<LaneRows>,
    pub rows_max: usize,
    /// How many of its runs may go on at once.
    pub engines: usize,
    /// What a run takes; its engines keep it up to date.
    pub capacity: Arc<Estimate>,
    pub hurry: Hurry,
    pub metrics: LaneMetrics,
}

impl Lane {
    /// What its engines do with jobs; `None` until it has been measured.
    pub fn load(&self) -> Option<Load> {
        Some(Load {
            capacity: self.capacity.get()?,
            engines: self.engines,
            rows_max: self.rows.are_batched().then_some(self.rows_max),
            job_rows: self.metrics.job_rows(),
        })
    }
}

/// What a job may ask of the worker.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub body_bytes_max: usize,
    /// Deliveries without an answer after which a job is given up; the broker would drop it into the dead letters at
    /// the next return, without an answer to the sender.
    pub delivery_limit: u64,
}

/// All of a job but its rows: who asked, how to answer, and the right to settle.
pub struct Envelope {
    pub model: Arc<str>,
    /// Version that answers, or where there is none the one asked for, cut short.
    pub version: String,
    pub properties: BasicProperties,
    pub reply_to: ReplyTo,
    /// The original body, kept for the dead letters.
    pub body: Bytes,
    /// How the body is encoded, and so the reply; unknown content types are answered in JSON.
    pub encoding: Encoding,
    pub arrived: Instant,
    pub deadline: Option<Instant>,
    pub redelivered: bool,
    /// Earlier deliveries that the broker knows of.
    pub delivery_count: u64,
    /// Rows of the job; 1 where its body could not be read.
    pub rows: usize,
    pub metrics: Arc<ModelMetrics>,
    /// When the broker confirmed what was published for the job last.
    pub confirmed: Option<Instant>,
    /// `None` unless the producer samples its trace, and somebody collects it.
    pub trace: Option<Box<Traced>>,
    pub receipt: Receipt,
    _claim: Option<Claim>,
}

/// Where the reply to a job goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyTo {
    /// The property is the name of a queue, or says nothing.
    AsItIs,
    /// The property is the address of this queue.
    Queue(ShortString),
    /// The property is an address of something else. The job becomes a dead letter.
    Refused(AddressError),
}

impl ReplyTo {
    fn of(properties: &BasicProperties) -> Self {
        let came = properties.reply_to().as_ref().map_or("", ShortString::as_str);
        match reply_address::queue(came) {
            Ok(None) => Self::AsItIs,
            // No longer than the address.
            Ok(Some(queue)) => Self::Queue(ShortString::try_new(&*queue).unwrap_or_default()),
            Err(refusal) => Self::Refused(refusal),
        }
    }
}

/// A job that fits its model.
pub struct Job {
    /// In a box: half a kilobyte that every stage hands on.
    pub envelope: Box<Envelope>,
    pub lane: Arc<Lane>,
    pub id: Option<String>,
    /// In the order of the signature.
    pub inputs: Vec<Tensor>,
    /// Empty, or for each input with a value of its own the one that takes its place, if any. Such a job is a run of its own.
    pub given: Vec<Option<Tensor>>,
    pub rows: usize,
    pub outputs: Vec<WantedOutput>,
}

/// An output to send back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedOutput {
    /// Its place in the signature.
    pub index: usize,
    /// Raw bytes rather than numbers, where the encoding knows the difference.
    pub binary: bool,
}

impl Job {
    /// Whether rows of both may lie in one tensor: all axes but the first agree.
    pub fn stacks_with(&self, other: &Self) -> bool {
        let is_usual = self.given.is_empty() && other.given.is_empty();
        let mut pairs = self.inputs.iter().zip(&other.inputs);
        is_usual && pairs.all(|(mine, its)| mine.shape.get(1..) == its.shape.get(1..))
    }
}

/// A job and the lane it is for, or the answer that says why it is none.
pub type Decoded = Result<(Job, Sender<Job>), Box<Answer>>;

/// One moment on both clocks. Deadlines come in wall time and are kept on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub now: Instant,
    /// Since 1970-01-01 UTC.
    pub unix: Duration,
}

impl Moment {
    pub fn now() -> Self {
        Self {
            now: Instant::now(),
            unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }
}

/// Turns a delivery into a job for one of the model's lanes, or into the answer that says why not.
pub fn decode(delivery: Delivery, served: &Served, limits: &Limits) -> Decoded {
    // The wall clock is read now, so now is what it is compared with: the delivery may have waited for its turn.
    let moment = Moment::now();
    let mut decoded = decode_at(moment, delivery, served, limits);
    let ended = Instant::now();
    let (envelope, rows) = match &mut decoded {
        Ok((job, _)) => (&mut job.envelope, Some(job.rows)),
        Err(answer) => (&mut answer.envelope, None),
    };
    let queued = message::queued(envelope, moment);
    envelope.metrics.decoded(queued, ended - moment.now);
    if let Some(traces) = &served.traces {
        envelope.trace = traces.begin(&envelope.properties, || Arrival {
            model: &envelope.model,
            version: &envelope.version,
            message_id: text(envelope.properties.message_id()),
            correlation_id: text(envelope.properties.correlation_id()),
            body_bytes: envelope.body.len(),
            rows,
            redelivered: envelope.redelivered,
            delivery_count: envelope.delivery_count,
            queued,
            delivered: envelope.arrived,
            decode_began: moment.now,
            decode_ended: ended,
        });
    }
    decoded
}

fn text(value: &Option<ShortString>) -> Option<&str> {
    value.as_ref().map(ShortString::as_str)
}

/// As [`decode`], at a moment that is given.
pub fn decode_at(moment: Moment, delivery: Delivery, served: &Served, limits: &Limits) -> Decoded {
    let mut envelope = Box::new(Envelope::new(
        delivery,
        served.name.clone(),
        served.default_version,
        served.metrics.clone(),
    ));
    match JobError::contain("reading this job", || admit(moment, &mut envelope, served, limits)) {
        Ok((lane, jobs, content)) => {
            envelope.rows = content.rows;
            let job = Job {
                envelope,
                lane: lane.clone(),
                id: content.id,
                inputs: content.inputs,
                given: content.given,
                rows: content.rows,
                outputs: content.outputs,
            };
            Ok((job, jobs.clone()))
        }
        Err(error) => Err(Box::new(Answer {
            envelope,
            outcome: Outcome::Failure(error),
        })),
    }
}

impl Envelope {
    pub fn new(delivery: Delivery, model: Arc<str>, default_version: u64, metrics: Arc<ModelMetrics>) -> Self {
        let version = match header(&delivery.properties, headers::VERSION) {
            // Of any other type it is refused when the job is decoded.
            Some(value) => headers::version(value).map_or_else(|_| String::new(), |version| excerpt(&version)),
            None => default_version.to_string(),
        };
        Self {
            model,
            version,
            encoding: Encoding::Json,
            deadline: None,
            delivery_count: delivery_count(&delivery),
            rows: 1,
            redelivered: delivery.redelivered,
            arrived: delivery.arrived,
            reply_to: ReplyTo::of(&delivery.properties),
            properties: delivery.properties,
            body: delivery.body,
            metrics,
            confirmed: None,
            trace: None,
            receipt: delivery.receipt,
            _claim: delivery.claim,
        }
    }

    /// Ends the job: the broker is told `verdict`, and whoever collects traces learns of it.
    pub fn settle(self, verdict: Verdict) {
        // On a channel that is gone it is not settled, but comes back.
        if verdict == Verdict::Ack && self.receipt.is_current() {
            let at = self.confirmed.unwrap_or_else(Instant::now);
            self.metrics.settled.add(self.rows, at);
        }
        self.receipt.settle_after(verdict, self.confirmed, self.trace);
    }

    /// The trace of the job, if it has one.
    pub fn trace(&mut self) -> Option<&mut Trace> {
        self.trace.as_mut().map(|traced| &mut traced.trace)
    }

    /// The sender's wish for the time split.
    pub fn wants_timing(&self) -> bool {
        header(&self.properties, headers::TIMING).is_some_and(|value| headers::timing(value) == Ok(true))
    }
}

/// The broker's count of earlier deliveries. On a first one it writes no header, so that one that is there came with the
/// message: out of the dead letters, or from a sender.
fn delivery_count(delivery: &Delivery) -> u64 {
    if !delivery.redelivered {
        return 0;
    }
    header(&delivery.properties, "x-delivery-count")
        .and_then(headers::integer)
        .and_then(|count| u64::try_from(count).ok())
        .unwrap_or(1)
}

/// What the body says, once it fits the model.
struct Content {
    id: Option<String>,
    inputs: Vec<Tensor>,
    given: Vec<Option<Tensor>>,
    rows: usize,
    outputs: Vec<WantedOutput>,
}

type Admitted<'a> = (&'a Arc<Lane>, &'a Sender<Job>, Content);

fn admit<'a>(
    moment: Moment,
    envelope: &mut Envelope,
    served: &'a Served,
    limits: &Limits,
) -> Result<Admitted<'a>, JobError> {
    if let ReplyTo::Refused(refusal) = &envelope.reply_to {
        return Err(refusal.clone().into());
    }
    envelope.encoding = encoding(&envelope.properties)?;
    if envelope.body.len() > limits.body_bytes_max {
        return Err(JobError::BodyTooLarge {
            bytes: envelope.body.len(),
            max: limits.body_bytes_max,
        });
    }
    if envelope.delivery_count >= limits.delivery_limit {
        return Err(JobError::Exhausted {
            deliveries: envelope.delivery_count,
        });
    }
    if let Some(value) = header(&envelope.properties, headers::TIMING) {
        headers::timing(value)?;
    }
    envelope.deadline = deadline(&envelope.properties, moment)?;
    if let Some(deadline) = envelope.deadline
        && deadline <= moment.now
    {
        return Err(late(deadline, moment.now));
    }
    let (lane, jobs) = lane(envelope, served)?;
    envelope.version.clone_from(&lane.version);
    let request = decode_request(&envelope.encoding, content(envelope)?)?;
    // Once for the whole job, which must not be read in two ways.
    let is_batched = lane.rows.are_batched();
    let content = fit(request, lane, is_batched, &envelope.encoding)?;
    // Each row takes a byte at least, unless an axis is 0: then a small body could name any number of rows.
    if content.rows > envelope.body.len() {
        return Err(JobError::RowsWithoutData {
            input: lane.signature.inputs[0].name.clone(),
            rows: content.rows,
            bytes: envelope.body.len(),
        });
    }
    let bytes = reply_bytes_min(&content, lane, is_batched);
    if bytes > limits.body_bytes_max {
        return Err(JobError::ReplyTooLarge {
            bytes,
            max: limits.body_bytes_max,
        });
    }
    Ok((lane, jobs, content))
}

/// The body without what AMQP 1.0 may have put around it.
fn content(envelope: &Envelope) -> Result<Bytes, WireError> {
    let body = envelope.body.clone();
    match text(envelope.properties.kind()) {
        Some(amqp10::TYPE) => amqp10::unwrapped(body),
        Some(_) | None => Ok(body),
    }
}

/// The bytes that the outputs asked for will take at least, as far as the signature tells: a job of many small rows must
/// not fill the memory with outputs that no reply could carry.
fn reply_bytes_min(content: &Content, lane: &Lane, is_batched: bool) -> usize {
    let of = |wanted: &WantedOutput| {
        let spec = &lane.signature.outputs[wanted.index];
        let rows = if is_batched { content.rows } else { 1 };
        let fixed = spec.shape.iter().skip(usize::from(is_batched));
        let elements = fixed.fold(rows, |elements, dim| match dim {
            Dim::Fixed(size) => elements.saturating_mul(*size),
            Dim::Dynamic(_) => 0,
        });
        elements.saturating_mul(spec.datatype.element_bytes().unwrap_or(0))
    };
    content.outputs.iter().map(of).fold(0, usize::saturating_add)
}

/// The error of a job whose deadline lies behind `now`.
pub fn late(deadline: Instant, now: Instant) -> JobError {
    JobError::Deadline {
        late_ms: now.saturating_duration_since(deadline).as_millis(),
    }
}

/// How the properties of a job say that its body is encoded.
///
/// # Errors
/// The body is compressed or written as text, or the content type is missing, unknown, or lacks the header that it needs.
pub fn encoding(properties: &BasicProperties) -> Result<Encoding, WireError> {
    let json_bytes = header(properties, JSON_BYTES_HEADER).and_then(headers::integer);
    Encoding::refuse_encoded(properties.content_encoding().as_ref().map(ShortString::as_str))?;
    let content_type = properties.content_type().as_ref().map(ShortString::as_str);
    Encoding::of(content_type, json_bytes)
}

/// The deadline on the monotonic clock, so that a step of the wall clock expires nothing later on.
///
/// A deadline behind the moment comes back as that or earlier, as far as the clock reaches.
fn deadline(properties: &BasicProperties, moment: Moment) -> Result<Option<Instant>, JobError> {
    let Some(value) = header(properties, headers::DEADLINE) else {
        return Ok(None);
    };
    let deadline = Duration::from_millis(headers::deadline_ms(value)?);
    let Moment { now, unix } = moment;
    Ok(Some(if deadline >= unix {
        now.checked_add(deadline - unix).unwrap_or(now + FOREVER)
    } else {
        now.checked_sub(unix - deadline).unwrap_or(now)
    }))
}

fn lane<'a>(envelope: &Envelope, served: &'a Served) -> Result<&'a (Arc<Lane>, Sender<Job>), JobError> {
    if let Some(value) = header(&envelope.properties, headers::VERSION) {
        headers::version(value)?;
    }
    let version: Option<u64> = envelope.version.parse().ok();
    if let Some(lane) = version.and_then(|version| served.lanes.get(&version)) {
        return Ok(lane);
    }
    let (model, version_text) = (served.name.to_string(), envelope.version.clone());
    if version.is_some_and(|version| served.left_out.contains(&version)) {
        return Err(JobError::VersionElsewhere {
            model,
            version: version_text,
        });
    }
    Err(JobError::Version {
        model,
        version: version_text,
        served: list(served.lanes.keys()),
    })
}

/// Puts a request's inputs into the order of the signature and checks every shape.
fn fit(mut request: Request, lane: &Lane, is_batched: bool, encoding: &Encoding) -> Result<Content, JobError> {
    let takes = &lane.signature.inputs;
    let count = InputCount(request.inputs.len());
    if !(takes.len()..=takes.len() + lane.defaults.len()).contains(&count.0) {
        return Err(count.wrong(lane));
    }
    let outputs = wanted(&request, lane, encoding)?;
    let mut slots: Vec<Option<Tensor>> = vec![None; takes.len() + lane.defaults.len()];
    for (index, input) in std::mem::take(&mut request.inputs).into_iter().enumerate() {
        let place = place(&input, index, lane)?;
        let spec = takes.iter().chain(&lane.defaults).nth(place);
        let Some(spec) = spec else { continue };
        if slots[place].is_some() {
            return Err(JobError::InputTwice {
                index,
                name: spec.name.clone(),
            });
        }
        slots[place] = Some(tensor(input, spec)?);
    }
    let mut given = slots.split_off(takes.len());
    if given.iter().all(Option::is_none) {
        given.clear();
    }
    let inputs: Vec<Tensor> = slots.into_iter().flatten().collect();
    if inputs.len() != takes.len() {
        return Err(count.wrong(lane));
    }
    Ok(Content {
        given,
        rows: rows(&inputs, is_batched)?,
        outputs,
        id: request.id,
        inputs,
    })
}

/// The number of inputs in a request.
struct InputCount(usize);

impl InputCount {
    fn wrong(&self, lane: &Lane) -> JobError {
        JobError::InputCount {
            came: self.0,
            model: lane.model.to_string(),
            takes: takes(lane),
        }
    }
}

/// What a model takes, in words. Of inputs that may be left out only some are named: there are exporters that make one of every
/// weight.
fn takes(lane: &Lane) -> String {
    let inputs = list(&lane.signature.inputs);
    if lane.defaults.is_empty() {
        return inputs;
    }
    let named = list(lane.defaults.iter().take(DEFAULTS_NAMED_MAX));
    let others = match lane.defaults.len().saturating_sub(DEFAULTS_NAMED_MAX) {
        0 => String::new(),
        others => format!(" and {others} others"),
    };
    format!("{inputs}, and if given {named}{others}")
}

/// Which input is meant, of the signature or behind it of those that may be left out.
fn place(input: &RequestInput, index: usize, lane: &Lane) -> Result<usize, JobError> {
    let inputs = &lane.signature.inputs;
    match &input.name {
        None if inputs.len() == 1 => Ok(0),
        None => Err(JobError::InputUnnamed {
            index,
            model: lane.model.to_string(),
            takes: takes(lane),
        }),
        Some(name) => inputs
            .iter()
            .chain(&lane.defaults)
            .position(|spec| spec.name == *name)
            .ok_or_else(|| JobError::InputName {
                index,
                name: excerpt(name),
                model: lane.model.to_string(),
                takes: takes(lane),
            }),
    }
}

fn tensor(input: RequestInput, spec: &TensorSpec) -> Result<Tensor, JobError> {
    let fits = input.shape.len() == spec.shape.len()
        && input.shape.iter().zip(&spec.shape).all(|(size, dim)| match dim {
            Dim::Fixed(fixed) => size == fixed,
            Dim::Dynamic(_) => true,
        });
    if !fits {
        return Err(JobError::Shape {
            input: spec.name.clone(),
            came: format!("{:?}", input.shape),
            takes: Dims(&spec.shape).to_string(),
        });
    }
    let tensor = input.into_tensor(&spec.name, spec.datatype)?;
    if spec.datatype == Datatype::Bytes {
        texts(&tensor)?;
    }
    Ok(tensor)
}

/// ONNX strings go through the runtime's C interface as NUL-ended UTF-8.
fn texts(tensor: &Tensor) -> Result<(), JobError> {
    for element in bytes_elements(&tensor.data) {
        let what = match std::str::from_utf8(element) {
            Err(_) => "not UTF-8",
            Ok(text) if text.contains('\0') => "holding a NUL",
            Ok(_) => continue,
        };
        return Err(JobError::Text {
            input: tensor.name.clone(),
            what,
        });
    }
    Ok(())
}

/// Rows of a job: the first axis of all its inputs. A model that is not batched takes its input as one piece.
fn rows(inputs: &[Tensor], is_batched: bool) -> Result<usize, JobError> {
    let Some((first, others)) = inputs.split_first() else {
        return Ok(1);
    };
    let rows = first.shape.first().copied().unwrap_or(1);
    if !is_batched {
        return Ok(rows.max(1));
    }
    if rows == 0 {
        return Err(JobError::NoRows {
            input: first.name.clone(),
        });
    }
    for other in others {
        let came = other.shape.first().copied().unwrap_or(1);
        if came != rows {
            return Err(JobError::Rows {
                input: other.name.clone(),
                came,
                other: first.name.clone(),
                rows,
            });
        }
    }
    Ok(rows)
}

/// The outputs asked for, or all of them.
fn wanted(request: &Request, lane: &Lane, encoding: &Encoding) -> Result<Vec<WantedOutput>, JobError> {
    let gives = &lane.signature.outputs;
    let wanted = |index: usize| WantedOutput {
        index,
        binary: request.wants_binary(&gives[index].name, encoding),
    };
    let Some(requested) = request.outputs.as_ref().filter(|requested| !requested.is_empty()) else {
        return Ok((0..gives.len()).map(wanted).collect());
    };
    requested
        .iter()
        .enumerate()
        .map(|(place, output)| {
            let index = gives.iter().position(|spec| spec.name == output.name);
            index.map(wanted).ok_or_else(|| JobError::OutputName {
                index: place,
                name: excerpt(&output.name),
                model: lane.model.to_string(),
                gives: list(gives),
            })
        })
        .collect()
}

/// A header of the message.
pub fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    headers::value(properties.headers().as_ref(), name)
}

fn list<T: std::fmt::Display>(things: impl IntoIterator<Item = T>) -> String {
    let things: Vec<_> = things.into_iter().map(|thing| format!("`{thing}`")).collect();
    things.join(", ")
}

const DEFAULTS_NAMED_MAX: usize = 8;
/// Stands for a deadline past the end of the clock.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[cfg(test)]
mod tests;
