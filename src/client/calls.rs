//! The one task behind a client: it publishes, keeps every confirm, and gives each reply to the call it belongs to.
//!
//! A call ends with its reply. Its confirm matters only if there will be none: the broker returned the job because no
//! queue is bound for the model, or refused it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::message::{BasicReturnMessage, Delivery};
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Answer, CallError};
use crate::wire::Encoding;
use crate::wire::reply::{Reply, decode_reply};

/// A job on its way to the task, its body encoded.
pub(super) struct Call {
    pub properties: BasicProperties,
    pub body: Bytes,
    pub model: String,
    pub answered: oneshot::Sender<Result<Answer, CallError>>,
}

pub(super) struct Calls {
    channel: Channel,
    replies: Consumer,
    exchange: ShortString,
    answer_timeout: Duration,
    /// What all ids of this client begin with: the workers' dead letters must tell producers apart.
    id_prefix: String,
    number: u64,
    pending: HashMap<u64, Pending>,
    /// Every call in the order it was sent, which is the order in which they time out.
    sent: VecDeque<(Instant, u64)>,
    confirms: FuturesUnordered<BoxFuture<'static, (u64, lapin::Result<Confirmation>)>>,
}

struct Pending {
    model: String,
    sent: Instant,
    answered: oneshot::Sender<Result<Answer, CallError>>,
}

impl Calls {
    pub fn new(channel: Channel, replies: Consumer, exchange: ShortString, answer_timeout: Duration) -> Self {
        Self {
            channel,
            replies,
            exchange,
            answer_timeout,
            id_prefix: format!("{:016x}-", fastrand::u64(..)),
            number: 0,
            pending: HashMap::new(),
            sent: VecDeque::new(),
            confirms: FuturesUnordered::new(),
        }
    }

    /// Runs until `calls` is closed and every call has ended, or until the broker is lost.
    pub async fn run(mut self, mut calls: mpsc::Receiver<Call>) {
        if let Err(said) = self.serve(&mut calls).await {
            for (_, pending) in self.pending.drain() {
                let _ = pending.answered.send(Err(CallError::Lost(said.clone())));
            }
            while let Some(call) = calls.recv().await {
                let _ = call.answered.send(Err(CallError::Lost(said.clone())));
            }
        }
    }

    async fn serve(&mut self, calls: &mut mpsc::Receiver<Call>) -> Result<(), String> {
        let mut look = tokio::time::interval(LOOK_FOR_LATE);
        let mut open = true;
        while open || !self.pending.is_empty() {
            tokio::select! {
                call = calls.recv(), if open && self.confirms.len() < UNCONFIRMED_MAX => match call {
                    None => open = false,
                    Some(call) => {
                        self.publish(call);
                        // What waits as well leaves with it, so that the frames share a write.
                        while self.confirms.len() < UNCONFIRMED_MAX && let Ok(call) = calls.try_recv() {
                            self.publish(call);
                        }
                    }
                },
                Some((number, confirmation)) = self.confirms.next() => self.confirmed(number, confirmation)?,
                delivery = self.replies.next() => match delivery {
                    Some(Ok(delivery)) => self.reply(delivery),
                    Some(Err(error)) => return Err(error.to_string()),
                    None => return Err("it deleted our reply queue".to_owned()),
                },
                _ = look.tick() => self.give_up_late(Instant::now()),
            }
        }
        Ok(())
    }

    /// Starts to publish. The future is polled by this task only: two tasks on a channel would swap their confirms.
    fn publish(&mut self, call: Call) {
        if call.answered.is_closed() {
            return; // Whoever called has stopped waiting meanwhile.
        }
        let number = self.number;
        self.number += 1;
        let id: ShortString = format!("{}{number}", self.id_prefix).into();
        let properties = call.properties.with_correlation_id(id.clone()).with_message_id(id);
        // An AMQP routing key has at most 255 bytes. No model has so long a name, and the empty one is no model's.
        let routing_key = ShortString::try_new(call.model.as_str()).unwrap_or_default();
        let sent = Instant::now();
        let pending = Pending {
            model: call.model,
            sent,
            answered: call.answered,
        };
        self.pending.insert(number, pending);
        self.sent.push_back((sent, number));
        let (channel, exchange) = (self.channel.clone(), self.exchange.clone());
        self.confirms.push(Box::pin(async move {
            let options = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let confirm = channel.basic_publish(exchange, routing_key, options, &call.body, properties);
            let confirmation = match confirm.await {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            (number, confirmation)
        }));
    }

    /// A returned message may come with the confirm of another, so it is known by its own id only.
    fn confirmed(&mut self, number: u64, confirmation: lapin::Result<Confirmation>) -> Result<(), String> {
        match confirmation.map_err(|error| error.to_string())? {
            Confirmation::Ack(None) => {}
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => self.returned(&returned),
            Confirmation::Nack(None) => self.end(number, |pending| Err(CallError::QueueFull(pending.model.clone()))),
            Confirmation::NotRequested => return Err("confirms are off".to_owned()),
        }
        Ok(())
    }

    fn returned(&mut self, returned: &BasicReturnMessage) {
        if let Some(number) = self.number_of(returned.properties.message_id().as_ref()) {
            self.end(number, |pending| Err(CallError::UnknownModel(pending.model.clone())));
        }
    }

    /// An id that is not pending is a second copy, or too late: both are dropped.
    fn reply(&mut self, delivery: Delivery) {
        if let Some(number) = self.number_of(delivery.properties.correlation_id().as_ref()) {
            self.end(number, |pending| answer(delivery, pending.sent.elapsed()));
        }
    }

    fn number_of(&self, id: Option<&ShortString>) -> Option<u64> {
        id?.as_str().strip_prefix(&self.id_prefix)?.parse().ok()
    }

    fn give_up_late(&mut self, now: Instant) {
        while let Some((sent, number)) = self.sent.front().copied() {
            let late = now.duration_since(sent) >= self.answer_timeout;
            if !late && self.pending.contains_key(&number) {
                return;
            }
            self.sent.pop_front();
            if late {
                let limit = self.answer_timeout;
                self.end(number, |_| Err(CallError::Timeout(limit)));
            }
        }
    }

    fn end(&mut self, number: u64, outcome: impl FnOnce(&Pending) -> Result<Answer, CallError>) {
        if let Some(pending) = self.pending.remove(&number) {
            let outcome = outcome(&pending);
            // Whoever called may have stopped waiting.
            let _ = pending.answered.send(outcome);
        }
    }
}

fn answer(delivery: Delivery, latency: Duration) -> Result<Answer, CallError> {
    let properties = delivery.properties;
    let content_type = properties.content_type().as_ref().map(ShortString::as_str);
    let encoding = Encoding::of(content_type, None).map_err(CallError::Reply)?;
    let batch_rows = properties
        .headers()
        .as_ref()
        .and_then(|headers| match headers.inner().get("inferq-batch-rows") {
            Some(AMQPValue::LongLongInt(rows)) => u64::try_from(*rows).ok(),
            _ => None,
        });
    match decode_reply(&encoding, Bytes::from(delivery.data)).map_err(CallError::Reply)? {
        Reply::Error { error, code } => Err(CallError::Refused { code, error }),
        Reply::Result {
            model_version, outputs, ..
        } => Ok(Answer {
            model_version,
            outputs,
            latency,
            batch_rows,
        }),
    }
}

/// More would cost time: the broker may confirm many at once, and each such confirm walks through all of these.
const UNCONFIRMED_MAX: usize = 1_024;
/// Late answers are given up at most this much later than they might be.
const LOOK_FOR_LATE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply::encode_error;
    use crate::wire::status::Status;

    fn delivery(content_type: &str, body: &[u8]) -> Delivery {
        let properties = BasicProperties::default().with_content_type(content_type.into());
        let mut delivery = Delivery::mock(1, ShortString::default(), ShortString::default(), false, body.to_vec());
        delivery.properties = properties;
        delivery
    }

    #[test]
    fn an_error_reply_keeps_its_code_and_its_words() {
        let encoded = encode_error(&Encoding::MsgPack, Status::NotFound, "no version 7");

        let refused = answer(delivery(encoded.content_type, &encoded.body), Duration::ZERO).unwrap_err();

        assert_eq!(refused.to_string(), "NOT_FOUND: no version 7");
    }

    #[test]
    fn a_reply_that_cannot_be_read_says_why() {
        for (content_type, body) in [("text/plain", &b"hi"[..]), ("application/msgpack", b"\xc1")] {
            let refused = answer(delivery(content_type, body), Duration::ZERO).unwrap_err();

            assert!(matches!(refused, CallError::Reply(_)), "{refused}");
        }
    }
}
