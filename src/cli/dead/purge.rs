//! `inferq dead purge`.

use std::io::Write;

use serde::Serialize;

use super::reader::Reader;
use super::{DeadError, Returns, Work, print};
use crate::broker::BrokerError;

/// How many letters of a model were removed, or would be.
#[derive(Debug, Serialize)]
struct Purged {
    model: String,
    letters: u64,
    removed: bool,
}

pub(super) async fn purge(
    work: &Work<'_>,
    limit: Option<u32>,
    yes: bool,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), DeadError> {
    let all = limit.is_none() && work.chosen.takes_all();
    let returns = if all { Returns::None } else { Returns::Some };
    let mut left = limit.map_or(u64::MAX, u64::from);
    let mut done: Vec<Purged> = Vec::new();
    for model in &work.models {
        let mut reader = work.open(model, returns).await?;
        let mut letters = 0;
        let ended = match (all, yes) {
            (true, true) => reader.purge().await.map(|purged| letters = u64::from(purged)),
            (true, false) => {
                letters = u64::from(reader.left());
                Ok(())
            }
            (false, _) => remove(work, &mut reader, &mut left, yes, &mut letters).await,
        };
        let before: u64 = done.iter().map(|purged| purged.letters).sum();
        ended.map_err(|source| DeadError::Interrupted {
            done: if yes { before + letters } else { 0 },
            what: "removed",
            source,
        })?;
        reader.close().await?;
        done.push(Purged {
            model: model.clone(),
            letters,
            removed: yes,
        });
    }
    print(&done, json, text, out)?;
    let letters = done.iter().map(|purged| purged.letters).sum();
    if yes {
        Ok(())
    } else {
        Err(DeadError::NotSure { letters })
    }
}

/// Removes those that are chosen, or only counts them.
async fn remove(
    work: &Work<'_>,
    reader: &mut Reader<'_>,
    left: &mut u64,
    yes: bool,
    letters: &mut u64,
) -> Result<(), BrokerError> {
    let mut places = Vec::new();
    while *left > 0
        && let Some((place, letter)) = reader.next().await?
    {
        if !work.chosen.takes(&letter) {
            continue;
        }
        *left -= 1;
        if !yes {
            *letters += 1;
            continue;
        }
        places.push(place);
        if places.len() == AT_ONCE {
            reader.remove(&places).await?;
            *letters += places.len() as u64;
            places.clear();
        }
    }
    reader.remove(&places).await?;
    *letters += places.len() as u64;
    Ok(())
}

fn text(done: &[Purged]) -> String {
    let line = |Purged {
                    model,
                    letters,
                    removed,
                }: &Purged| {
        let what = if *removed { "removed" } else { "would be removed" };
        format!("{model}: {letters} {what}\n")
    };
    done.iter().map(line).collect()
}

const AT_ONCE: usize = 16;
