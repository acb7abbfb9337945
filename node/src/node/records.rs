//! A volume's stream of the node's journal.

use std::rc::Rc;

use velum_protocol::id::{Epoch, Jseq, VolumeId};

use crate::{
    env::Local,
    journal::{Journal, Position, StreamId},
    volume::{JournalFailed, OnWritten, Records, Submitted},
};

pub(super) struct VolumeRecords {
    journal: Rc<Journal>,
    stream: StreamId,
}

impl VolumeRecords {
    pub(super) fn new(journal: Rc<Journal>, volume: VolumeId) -> Rc<Self> {
        Rc::new(Self { journal, stream: StreamId::Volume(volume) })
    }
}

impl Records for VolumeRecords {
    fn append(&self, epoch: Epoch, jseq: Jseq, record: &[u8]) -> Result<(), JournalFailed> {
        self.journal.append(self.stream, position(epoch, jseq), record).map_err(|_| JournalFailed)
    }

    fn submit(&self) -> Result<Submitted, JournalFailed> {
        self.journal.submit().map(|()| Submitted::Written).map_err(|_| JournalFailed)
    }

    /// Nothing is ever on the way.
    fn on_written(&self, _written: OnWritten) {}

    fn sync(&self) -> Local<Result<(), JournalFailed>> {
        let synced = self.journal.sync();
        Box::pin(async move { synced.await.map_err(|_| JournalFailed) })
    }

    /// Nobody else can.
    fn confirm(&self, _reads: u64) -> Option<Local<()>> {
        None
    }

    fn trim(&self, epoch: Epoch, through: Jseq) {
        self.journal.trim(self.stream, position(epoch, through));
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.journal.has_room(bytes)
    }

    fn room(&self, bytes: u64) -> Local<Result<(), JournalFailed>> {
        let room = self.journal.room(bytes);
        Box::pin(async move { room.await.map_err(|_| JournalFailed) })
    }
}

pub(super) fn position(epoch: Epoch, jseq: Jseq) -> Position {
    Position { epoch: epoch.0, number: jseq.0 }
}
