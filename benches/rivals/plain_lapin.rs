//! What does a job cost with the loop that a user of lapin would write first: one job after the other, each publish,
//! confirm and ack awaited?
//!
//! ```text
//! plain_lapin URI QUEUE MODEL.onnx
//! ```
//!
//! The guarantee and the messages are those of inferq: a mandatory reply with the same properties, its confirm, then the
//! ack. So is the window of 256. There is no batch and no second thread for the model, since nothing waits for either.
//! Ends at SIGTERM.

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use inferq::wire::reply::{ReplyMeta, ReplyOutput, encode_reply};
use inferq::wire::request::decode_request;
use inferq::wire::tensor::Datatype;
use inferq::wire::{Encoded, Encoding};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use ort::environment::Environment;
use ort::session::Session;
use ort::value::Tensor;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [uri, queue, model] = arguments.as_slice() else {
        anyhow::bail!("usage: plain_lapin URI QUEUE MODEL.onnx");
    };
    let environment = ort::init().with_telemetry(false).build()?;
    let mut session = one_thread(&environment, model)?;
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    declare(&channel, queue).await?;
    channel.basic_qos(256, BasicQosOptions::default()).await?;
    let mut jobs = channel
        .basic_consume(
            queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let mut terminated = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            job = jobs.next() => {
                let job = job.context("the broker ended the consumer")??;
                serve(&channel, &mut session, job).await?;
            }
            _ = terminated.recv() => return Ok(()),
        }
    }
}

fn one_thread(environment: &Environment, model: &str) -> ort::Result<Session> {
    Session::builder(environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .commit_from_file(model)
}

/// With the arguments that inferq gives a job queue.
async fn declare(channel: &Channel, queue: &str) -> lapin::Result<()> {
    let mut arguments = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", "quorum"),
        ("x-dead-letter-exchange", "floor.dead"),
        ("x-dead-letter-routing-key", "floor"),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ] {
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(10));
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(queue.into(), options, arguments).await?;
    Ok(())
}

async fn serve(channel: &Channel, session: &mut Session, job: Delivery) -> anyhow::Result<()> {
    let reply_to = job.properties.reply_to().clone().context("the job has no reply_to")?;
    let acker = job.acker;
    let properties = reply_properties(&job.properties);
    let reply = predict(session, job.data.into())?;
    let mandatory = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let confirmation = channel
        .basic_publish("".into(), reply_to, mandatory, &reply.body, properties)
        .await?
        .await?;
    ensure!(
        matches!(confirmation, Confirmation::Ack(None)),
        "a reply was returned or refused"
    );
    acker.ack(BasicAckOptions::default()).await?;
    Ok(())
}

fn predict(session: &mut Session, body: bytes::Bytes) -> anyhow::Result<Encoded> {
    let request = decode_request(&Encoding::MsgPack, body)?;
    let input = request.inputs.into_iter().next().context("the job has no input")?;
    let input = input.into_tensor("input", Datatype::Fp32)?;
    let values: Vec<f32> = input
        .data
        .as_chunks()
        .0
        .iter()
        .copied()
        .map(f32::from_le_bytes)
        .collect();
    let rows = input.shape[0];
    let outputs = session.run(ort::inputs![Tensor::from_array((input.shape, values))?])?;
    let (_, classes) = outputs[0].try_extract_tensor::<f32>()?;
    let bytes: Vec<u8> = classes.iter().flat_map(|class| class.to_le_bytes()).collect();
    let meta = ReplyMeta {
        model_name: "dense",
        model_version: "1",
        id: None,
    };
    let output = ReplyOutput {
        name: "output",
        datatype: Datatype::Fp32,
        shape: &[rows, classes.len() / rows],
        parts: &[&bytes],
        binary: true,
    };
    Ok(encode_reply(&Encoding::MsgPack, &meta, &[output]))
}

fn reply_properties(job: &BasicProperties) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("inferq-status".into(), AMQPValue::LongString("OK".into()));
    headers.insert("inferq-model-version".into(), AMQPValue::LongString("1".into()));
    let id = job.correlation_id().clone().unwrap_or_else(|| ShortString::from(""));
    BasicProperties::default()
        .with_content_type("application/msgpack".into())
        .with_headers(headers)
        .with_delivery_mode(job.delivery_mode().unwrap_or(1))
        .with_correlation_id(id.clone())
        .with_message_id(id)
        .with_type("inferq.result".into())
        .with_app_id("inferq/0.1.0".into())
}
