//! `inferq dead redrive`: letters become jobs again. A letter is removed only when its job is confirmed.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use serde::Serialize;

use super::letter::Letter;
use super::reader::{Place, Reader, within};
use super::{DeadError, Returns, Work, print};
use crate::broker::BrokerError;
use crate::broker::topology::Names;

/// What became of the letters of a model.
#[derive(Debug, Default, Serialize)]
struct Redriven {
    model: String,
    redriven: u64,
    /// Not taken by the broker; still dead letters.
    refused: u64,
    /// Read and not chosen.
    kept: u64,
    #[serde(skip)]
    why: Option<&'static str>,
}

pub(super) async fn redrive(
    work: &Work<'_>,
    limit: Option<u32>,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), DeadError> {
    let all = limit.is_none() && work.chosen.takes_all();
    let returns = if all { Returns::None } else { Returns::Some };
    let publisher = Publisher::open(work).await?;
    let mut left = limit.map_or(u64::MAX, u64::from);
    let mut done = Vec::new();
    for model in &work.models {
        let mut reader = work.open(model, returns).await?;
        let mut of_model = Redriven {
            model: model.clone(),
            ..Redriven::default()
        };
        let ended = publisher.drain(work, &mut reader, &mut of_model, &mut left).await;
        let before: u64 = done.iter().map(|of_model: &Redriven| of_model.redriven).sum();
        ended.map_err(|source| DeadError::Interrupted {
            done: before + of_model.redriven,
            what: "sent again and removed; the rest are still dead letters, though a few of them may be sent as well",
            source,
        })?;
        reader.close().await?;
        done.push(of_model);
    }
    print(&done, json, text, out)?;
    match done.iter().map(|of_model| of_model.refused).sum() {
        0 => Ok(()),
        refused => Err(DeadError::Refused {
            refused,
            why: done
                .iter()
                .find_map(|of_model| of_model.why)
                .unwrap_or_default()
                .to_owned(),
        }),
    }
}

fn text(done: &[Redriven]) -> String {
    let line = |of_model: &Redriven| {
        let Redriven {
            model,
            redriven,
            refused,
            kept,
            ..
        } = of_model;
        format!("{model}: {redriven} sent again, {refused} refused, {kept} kept\n")
    };
    done.iter().map(line).collect()
}

/// A job on its way, and the letter it was made of.
struct Sent {
    place: Place,
    properties: BasicProperties,
    letter: Letter,
}

struct Publisher {
    channel: Channel,
    exchange: ShortString,
    confirm_timeout: std::time::Duration,
}

impl Publisher {
    async fn open(work: &Work<'_>) -> Result<Self, BrokerError> {
        let limit = work.config.broker.connect_timeout;
        let channel = within(limit, work.connection.create_channel()).await?;
        within(limit, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self {
            channel,
            exchange: Names::new(&work.config.topology.prefix).exchange(),
            confirm_timeout: work.config.reply.confirm_timeout,
        })
    }

    /// Works through the letters that are there, a window at a time.
    async fn drain(
        &self,
        work: &Work<'_>,
        reader: &mut Reader<'_>,
        count: &mut Redriven,
        left: &mut u64,
    ) -> Result<(), BrokerError> {
        let mut window = Vec::new();
        loop {
            let room = *left > window.len() as u64 && window.len() < WINDOW;
            let next = if room { reader.next().await? } else { None };
            if let Some((place, letter)) = next {
                if work.chosen.takes(&letter) {
                    window.push(Sent {
                        place,
                        properties: letter.job(unix_ms()),
                        letter,
                    });
                } else {
                    count.kept += 1;
                }
                continue;
            }
            if window.is_empty() {
                return Ok(());
            }
            let sent = window.len() as u64;
            let taken = self.publish(std::mem::take(&mut window), count).await?;
            reader.remove(&taken).await?;
            count.redriven += taken.len() as u64;
            *left -= sent;
        }
    }

    /// Publishes a window and returns the places of those that a queue has taken.
    async fn publish(&self, window: Vec<Sent>, count: &mut Redriven) -> Result<Vec<Place>, BrokerError> {
        // All polled by this one task: two tasks on a channel would swap their confirms.
        let publishing = join_all(window.iter().map(|sent| self.publish_one(sent)));
        let confirmations = tokio::time::timeout(self.confirm_timeout, publishing)
            .await
            .map_err(|_| BrokerError::Silent(self.confirm_timeout))?;
        let mut confirmed = Vec::new();
        let mut returned = Vec::new();
        for (sent, confirmation) in window.into_iter().zip(confirmations) {
            match confirmation? {
                Confirmation::Ack(message) => {
                    confirmed.push(sent);
                    returned.extend(message);
                }
                Confirmation::Nack(message) => {
                    count.refused += 1;
                    count.why = Some("the job queue takes no more");
                    returned.extend(message);
                }
                Confirmation::NotRequested => {
                    count.refused += 1;
                    count.why = Some("confirms are off");
                }
            }
        }
        if !returned.is_empty() {
            let before = confirmed.len();
            confirmed = without(confirmed, &returned);
            count.refused += (before - confirmed.len()) as u64;
            count.why = Some("no queue is bound to the front door for this model (`inferq topology apply` makes one)");
        }
        Ok(confirmed.into_iter().map(|sent| sent.place).collect())
    }

    async fn publish_one(&self, sent: &Sent) -> Result<Confirmation, lapin::Error> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let routing_key = ShortString::try_new(sent.letter.model.as_str()).unwrap_or_default();
        let publishing = self.channel.basic_publish(
            self.exchange.clone(),
            routing_key,
            options,
            &sent.letter.body,
            sent.properties.clone(),
        );
        publishing.await?.await
    }
}

/// The jobs that were not returned. lapin hands out a return with the confirm of any job, so each is matched by what it is;
/// of twins it does not matter which one stays. If one cannot be matched, all stay: better twice than never.
fn without(mut confirmed: Vec<Sent>, returned: &[BasicReturnMessage]) -> Vec<Sent> {
    for message in returned {
        let same = |sent: &Sent| sent.properties == message.properties && sent.letter.body[..] == message.data[..];
        match confirmed.iter().position(same) {
            Some(index) => drop(confirmed.swap_remove(index)),
            None => return Vec::new(),
        }
    }
    confirmed
}

fn unix_ms() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
}

/// Letters that are published together and then removed; so many may be sent twice if the connection breaks.
const WINDOW: usize = 64;
