//! Addresses in `reply_to`: producers on AMQP 1.0 name a queue as `/queues/NAME`, percent-encoded. Pure.
//!
//! # Source
//! RabbitMQ documentation, "AMQP 1.0", "Address v2" and, for what RabbitMQ 3 had, "Address v1".

use super::error::excerpt;

/// Why an address names no queue that a reply could go to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reply_to: `{}` {fault}; a reply goes to a queue: its name, or /queues/NAME with NAME percent-encoded", excerpt(.came))]
pub struct AddressError {
    came: String,
    fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("is the address of an exchange")]
    Exchange,
    #[error("is an address in the format of RabbitMQ 3")]
    Old,
    #[error("is the address of a queue without a name")]
    NoName,
    #[error("is the address of a queue whose name is not percent-encoded: a % is followed by two hexadecimal digits")]
    Percent,
    #[error("is the address of a queue whose name is not UTF-8")]
    NotUtf8,
}

/// The name of the queue that an address stands for; `None` for what is no address, and so the name itself.
///
/// # Errors
/// The address is not that of a queue.
pub fn queue(reply_to: &str) -> Result<Option<String>, AddressError> {
    let refused = |fault| AddressError {
        came: reply_to.to_owned(),
        fault,
    };
    if !reply_to.starts_with('/') {
        return Ok(None);
    }
    if let Some(encoded) = reply_to.strip_prefix("/queues/") {
        return decoded(encoded).map(Some).map_err(refused);
    }
    let is = |kind: &str| {
        reply_to
            .strip_prefix(kind)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if is("/exchanges") || is("/exchange") || is("/topic") {
        return Err(refused(Fault::Exchange));
    }
    if is("/queue") || is("/amq/queue") {
        return Err(refused(Fault::Old));
    }
    if is("/queues") {
        return Err(refused(Fault::NoName));
    }
    Ok(None)
}

/// A slash that is not encoded stays one, as in RabbitMQ.
fn decoded(encoded: &str) -> Result<String, Fault> {
    if encoded.is_empty() {
        return Err(Fault::NoName);
    }
    let mut name = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        name.push(match byte {
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => u8::try_from(high << 4 | low).map_err(|_| Fault::Percent)?,
                _ => return Err(Fault::Percent),
            },
            byte => byte,
        });
    }
    String::from_utf8(name).map_err(|_| Fault::NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_queue_is_its_name_without_the_encoding() {
        for (address, name) in [
            ("/queues/replies", "replies"),
            ("/queues/a%20b", "a b"),
            ("/queues/a%2Fb%2fc", "a/b/c"),
            ("/queues/a/b", "a/b"),
            ("/queues/%E2%82%AC", "€"),
            ("/queues/€", "€"),
            ("/queues/50%25", "50%"),
            ("/queues/a+b", "a+b"),
            ("/queues/amq.rabbitmq.reply-to.g1h2", "amq.rabbitmq.reply-to.g1h2"),
        ] {
            assert_eq!(queue(address), Ok(Some(name.to_owned())), "{address}");
        }
    }

    #[test]
    fn what_is_no_address_is_a_name() {
        for name in [
            "",
            "replies",
            "a%2Fb",
            "queues/a",
            "/",
            "/replies",
            "/queuesX",
            "/exchangesX/y",
            "amq.gen-x",
        ] {
            assert_eq!(queue(name), Ok(None), "{name}");
        }
    }

    #[test]
    fn other_addresses_are_refused_in_one_sentence() {
        for (address, fault) in [
            ("/exchanges/E/K", "the address of an exchange"),
            ("/exchanges/E", "the address of an exchange"),
            ("/exchange/E/K", "the address of an exchange"),
            ("/topic/a.b", "the address of an exchange"),
            ("/queue/a", "the format of RabbitMQ 3"),
            ("/queue", "the format of RabbitMQ 3"),
            ("/amq/queue/a", "the format of RabbitMQ 3"),
            ("/queues/", "without a name"),
            ("/queues", "without a name"),
            ("/queues/a%2", "not percent-encoded"),
            ("/queues/a%", "not percent-encoded"),
            ("/queues/%zz", "not percent-encoded"),
            ("/queues/%+1", "not percent-encoded"),
            ("/queues/%ff", "not UTF-8"),
        ] {
            let refusal = queue(address).unwrap_err().to_string();

            assert!(refusal.starts_with(&format!("reply_to: `{address}` is ")), "{refusal}");
            assert!(refusal.contains(fault), "{refusal}");
            assert!(
                refusal.ends_with("or /queues/NAME with NAME percent-encoded"),
                "{refusal}"
            );
        }
    }
}
