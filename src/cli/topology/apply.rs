//! `inferq topology apply`.

use lapin::Connection;

use super::{Finding, Found, within};
use crate::broker::BrokerError;
use crate::broker::compare::{State, compare};
use crate::broker::topology::Part;
use crate::config::Config;

/// Makes what is missing and binds what fits. What differs is left as it is, and does not keep the rest from being made.
pub(super) async fn apply(
    connection: &Connection,
    config: &Config,
    parts: &[Part],
) -> Result<Vec<Finding>, BrokerError> {
    let mut findings = Vec::new();
    for part in parts {
        let state = within(config, compare(connection, part)).await?;
        let missing = state == State::Missing;
        let mut finding = Finding::new(part, state, config);
        if missing {
            within(config, part.declare(connection)).await?;
            finding.found = Found::Made;
            finding.mend = None;
        }
        if !finding.is_unfit() {
            within(config, part.bind(connection)).await?;
        }
        findings.push(finding);
    }
    Ok(findings)
}
