//! Shows what a journal file holds, without keys and without changing it, for `velum inspect journal`.

use std::{path::Path, rc::Rc};

use velum_protocol::format::journal::{FileHeader, FileHeaders, JournalFormatError, Mark, RecordKind, Ring};

use super::{
    JournalError,
    scan::{Flaw, Scanner, Step, read_headers},
};
use crate::env::{Env, OpenMode};

/// A journal file as it stands.
#[derive(Clone, Debug)]
pub struct InspectedFile {
    /// Its header, or why it cannot be read.
    pub header: Result<FileHeader, JournalFormatError>,
    /// What is found, by offset. Whether a record is live depends on the other files and is not known here.
    pub records: Vec<InspectedRecord>,
}

/// A record, or a place where one should be.
#[derive(Clone, Debug)]
pub struct InspectedRecord {
    /// Where it starts.
    pub offset: u64,
    /// Where it ends.
    pub end: u64,
    /// Stream and position, when the header can be read.
    pub kind: Option<RecordKind>,
    /// Length of the body.
    pub body_bytes: u32,
    /// What was durable when it was written.
    pub durable: Mark,
    /// For a ring record, what it says.
    pub ring: Option<Ring>,
    /// Whether its checksums match.
    pub state: RecordState,
}

/// The state of a record's checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// Header and body are whole and it follows the record before it.
    Whole,
    /// The body does not match its checksum.
    BodyDamaged,
    /// Nothing readable, or a missing record, between this place and the next record.
    Gap,
}

/// Reads one journal file.
///
/// # Errors
/// When the file cannot be opened or read.
pub async fn inspect(env: &Env, path: &Path) -> Result<InspectedFile, JournalError> {
    let file = env.disk.open(path, OpenMode::Read).await.map_err(JournalError::io("open", path))?;
    let sectors = read_headers(&*env.clock, &*file).await.map_err(JournalError::io("read", path))?;
    let header = FileHeaders::decode(&sectors).current;
    let mut records = Vec::new();
    let (id, lap, link) = match &header {
        Ok((header, crc)) => (header.file, header.lap, Some(*crc)),
        Err(_) => return Ok(InspectedFile { header: header.map(|(header, _)| header), records }),
    };
    let mut scanner =
        Scanner::new(&env.clock, Rc::clone(&file), id, lap, link).map_err(JournalError::io("measure", path))?;
    loop {
        let found = match scanner.step().await {
            Step::Record(found) => found,
            Step::Stop(flaw) => {
                let offset = scanner.next;
                let Some(found) = scanner.resume().await else {
                    if let Flaw::Body(_) = flaw {
                        records.push(flawed(offset, offset, &flaw));
                    }
                    return Ok(InspectedFile { header: header.map(|(header, _)| header), records });
                };
                records.push(flawed(offset, found.at().offset, &flaw));
                found
            }
        };
        records.push(InspectedRecord {
            offset: found.at().offset,
            end: found.end(),
            kind: Some(found.header.kind),
            body_bytes: found.header.body_bytes,
            durable: found.header.durable,
            ring: (found.header.kind == RecordKind::Ring).then(|| Ring::decode(&found.body).ok()).flatten(),
            state: RecordState::Whole,
        });
    }
}

/// A place where no whole record stands.
fn flawed(offset: u64, end: u64, flaw: &Flaw) -> InspectedRecord {
    let mut record = InspectedRecord {
        offset,
        end,
        kind: None,
        body_bytes: 0,
        durable: Mark::default(),
        ring: None,
        state: RecordState::Gap,
    };
    if let Flaw::Body(header) = flaw {
        record.kind = Some(header.kind);
        record.body_bytes = header.body_bytes;
        record.durable = header.durable;
        record.end = offset + header.record_bytes();
        record.state = RecordState::BodyDamaged;
    }
    record
}
