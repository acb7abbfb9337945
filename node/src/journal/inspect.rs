//! Shows what a journal file holds, without keys and without changing it, for `velum inspect journal`.

use std::{path::Path, rc::Rc};

use bytes::Bytes;
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
    /// The other place for a header holds neither one nor zeros: a later lap may have begun than the header says.
    pub doubtful: bool,
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
    /// The body, sealed by its stream's owner; empty when it does not match its checksum.
    pub body: Bytes,
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
    /// Behind the last record, a header that does not match its checksum.
    HeaderDamaged,
}

/// Reads one journal file.
///
/// # Errors
/// When the file cannot be opened or read.
pub async fn inspect(env: &Env, path: &Path) -> Result<InspectedFile, JournalError> {
    let file = env.disk.open(path, OpenMode::Read).await.map_err(JournalError::io("open", path))?;
    let sectors = read_headers(&*env.clock, &*file).await.map_err(JournalError::io("read", path))?;
    let FileHeaders { current, doubtful, .. } = FileHeaders::decode(&sectors);
    let (header, link) = match current {
        Ok(found) => found,
        Err(error) => return Ok(InspectedFile { header: Err(error), doubtful, records: Vec::new() }),
    };
    let scanner = Scanner::new(&env.clock, Rc::clone(&file), header.file, header.lap, Some(link));
    let records = walk(scanner.map_err(JournalError::io("measure", path))?).await;
    Ok(InspectedFile { header: Ok(header), doubtful, records })
}

/// All records of the file's lap, and the places where one should be.
async fn walk(mut scanner: Scanner) -> Vec<InspectedRecord> {
    let mut records = Vec::new();
    loop {
        let found = match scanner.step().await {
            Step::Record(found) => found,
            Step::Stop(flaw) => {
                let offset = scanner.next;
                let broken_header = scanner.broken_header().await;
                let Some(found) = scanner.resume().await else {
                    match (&flaw, broken_header) {
                        (Flaw::Body(_), _) => records.push(flawed(offset, offset, &flaw)),
                        (_, Some(at)) => {
                            records
                                .push(InspectedRecord { state: RecordState::HeaderDamaged, ..flawed(at, at, &flaw) });
                        }
                        (Flaw::NoHeader | Flaw::BrokenLink, None) => {}
                    }
                    return records;
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
            body: found.body.clone(),
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
        body: Bytes::new(),
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
