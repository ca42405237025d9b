//! `inferq topology export`: the definitions as RabbitMQ's own tools import them.

use std::io::Write;

use serde_json::{Map, Value, json};

use crate::broker::BrokerError;
use crate::broker::connection;
use crate::broker::topology::{Kind, Part};
use crate::broker::values::json_of;
use crate::config::Config;

/// # Errors
/// The virtual host is not known, or `out` cannot be written.
pub(super) fn export(parts: &[Part], config: &Config, out: &mut dyn Write) -> Result<(), ExportError> {
    let vhost = connection::vhost(&config.broker)?;
    serde_json::to_writer_pretty(&mut *out, &definitions(parts, &vhost)).map_err(std::io::Error::from)?;
    Ok(writeln!(out)?)
}

/// Why nothing was printed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("cannot write the definitions")]
    Write(#[from] std::io::Error),
}

/// # Source
/// RabbitMQ documentation, "Schema Definition Export and Import".
fn definitions(parts: &[Part], vhost: &str) -> Value {
    let of_kind = |kind| parts.iter().filter(move |part| part.kind == kind);
    let exchanges = of_kind(Kind::Exchange).map(|part| {
        json!({
            "name": part.name.as_str(), "vhost": vhost, "type": "direct",
            "durable": true, "auto_delete": false, "internal": false, "arguments": arguments(part),
        })
    });
    let queues = of_kind(Kind::Queue).map(|part| {
        json!({
            "name": part.name.as_str(), "vhost": vhost,
            "durable": true, "auto_delete": false, "arguments": arguments(part),
        })
    });
    let bindings = parts.iter().filter_map(|part| {
        let binding = part.binding.as_ref()?;
        Some(json!({
            "source": binding.exchange.as_str(), "vhost": vhost,
            "destination": part.name.as_str(), "destination_type": "queue",
            "routing_key": binding.routing_key.as_str(), "arguments": {},
        }))
    });
    json!({
        "exchanges": exchanges.collect::<Vec<_>>(),
        "queues": queues.collect::<Vec<_>>(),
        "bindings": bindings.collect::<Vec<_>>(),
    })
}

fn arguments(part: &Part) -> Map<String, Value> {
    let arguments = part.arguments.inner().iter();
    arguments
        .map(|(name, value)| (name.to_string(), json_of(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::topology::parts;

    #[test]
    fn everything_is_in_it_with_the_types_that_a_declaration_has() {
        let config = Config::from_overrides(&[("topology.delivery_limit", "7".to_owned())]).unwrap();

        let definitions = definitions(&parts(&config.topology, ["m"]), "blue");

        assert_eq!(definitions["exchanges"].as_array().unwrap().len(), 2);
        assert_eq!(definitions["queues"][1]["name"], "inferq.m");
        assert_eq!(definitions["queues"][1]["vhost"], "blue");
        assert_eq!(definitions["queues"][1]["arguments"]["x-delivery-limit"], 7);
        assert_eq!(
            definitions["bindings"][0],
            json!({
                "source": "inferq.dead", "vhost": "blue", "destination": "inferq.m.dead", "destination_type": "queue",
                "routing_key": "m", "arguments": {},
            })
        );
    }
}
