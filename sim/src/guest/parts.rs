//! A door that makes several requests of one, as a planted bug has it.

use futures_util::future::join_all;
use velum_protocol::nbd::client::{Answer, Ask};

use super::{
    connection::{Connection, NoAnswer},
    pattern::{BLOCK_SECTORS, SECTOR},
};

/// Asks as through a door that cuts writes at block bounds: done when all parts are, or failed as the first of them that is.
pub(crate) async fn ask_in_parts(connection: &Connection, ask: &Ask) -> Result<Answer, NoAnswer> {
    let Ask::Write { offset, payload, fua } = ask else { return connection.ask(ask).await };
    let block = BLOCK_SECTORS as usize * SECTOR;
    let (mut offset, mut rest) = (*offset, payload.clone());
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let length = (block - offset as usize % block).min(rest.len());
        parts.push(Ask::Write { offset, payload: rest.split_to(length), fua: *fua });
        offset += length as u64;
    }
    let answers = join_all(parts.iter().map(|part| connection.ask(part))).await;
    answers.into_iter().reduce(Result::and).expect("a guest writes at least one sector")
}
