//! `inferq topology check`.

use lapin::Connection;

use super::{Finding, within};
use crate::broker::BrokerError;
use crate::broker::compare::compare;
use crate::broker::topology::Part;
use crate::config::Config;

pub(super) async fn check(
    connection: &Connection,
    config: &Config,
    parts: &[Part],
) -> Result<Vec<Finding>, BrokerError> {
    let mut findings = Vec::new();
    for part in parts {
        let state = within(config, compare(connection, part)).await?;
        findings.push(Finding::new(part, state, config));
    }
    Ok(findings)
}
