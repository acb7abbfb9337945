//! Small histories told step by step, for the checkers' own tests.

use std::rc::Rc;

use velum_protocol::admin::Access;

use crate::{
    guest::pattern::Cell,
    history::{Cut, Kind, StepCount, VolumeHistory},
    rng::Rng,
};

/// A history of one volume, told in order.
pub(crate) struct Story {
    pub(crate) volume: VolumeHistory,
    steps: Rc<StepCount>,
    connection: u64,
}

impl Story {
    pub(crate) fn new(sectors: u64) -> Self {
        let steps = Rc::new(StepCount::default());
        let mut volume = VolumeHistory::new("told", sectors, 0, Rc::clone(&steps));
        let connection = volume.connect(0, "told");
        Self { volume, steps, connection }
    }

    pub(crate) fn write(&mut self, first: u64, count: u64) -> u64 {
        let (ticket, id) = self.volume.invoke(self.connection, Kind::Write, first, count, false);
        self.volume.done(ticket, Vec::new());
        id
    }

    pub(crate) fn write_fua(&mut self, first: u64, count: u64) -> u64 {
        let (ticket, id) = self.volume.invoke(self.connection, Kind::Write, first, count, true);
        self.volume.done(ticket, Vec::new());
        id
    }

    pub(crate) fn write_unanswered(&mut self, first: u64, count: u64) -> u64 {
        self.unanswered(Kind::Write, first, count)
    }

    pub(crate) fn unanswered(&mut self, kind: Kind, first: u64, count: u64) -> u64 {
        self.volume.invoke(self.connection, kind, first, count, false).1
    }

    pub(crate) fn zero(&mut self, first: u64, count: u64) {
        let (ticket, _) = self.volume.invoke(self.connection, Kind::Zero, first, count, false);
        self.volume.done(ticket, Vec::new());
    }

    pub(crate) fn barrier(&mut self) {
        let (ticket, _) = self.volume.invoke(self.connection, Kind::Barrier, 0, 0, false);
        self.volume.done(ticket, Vec::new());
    }

    pub(crate) fn flush(&mut self) {
        let asked = self.steps.next();
        self.volume.flushed(asked);
    }

    pub(crate) fn read_cells(&mut self, first: u64, cells: Vec<Cell>) {
        let (ticket, _) = self.volume.invoke(self.connection, Kind::Read, first, cells.len() as u64, false);
        self.volume.done(ticket, cells);
    }

    /// A history of two blocks in which every sector that was read holds anything that was ever asked for: true now and then.
    pub(crate) fn random(rng: &Rng) -> Self {
        let mut story = Self::new(16);
        let (mut open, mut ids) = (Vec::new(), Vec::new());
        for _ in 0..rng.between(2, 12) {
            let first = rng.below(10);
            let count = rng.between(1, 16 - first);
            let kind = *rng.pick(&[Kind::Write, Kind::Write, Kind::Zero, Kind::Read, Kind::Read]);
            let (ticket, id) = story.volume.invoke(story.connection, kind, first, count, false);
            if kind == Kind::Write {
                ids.push((id, first));
            }
            open.push((ticket, kind, first, count));
            while !open.is_empty() && rng.chance(600_000) {
                let (ticket, kind, first, count) = open.swap_remove(rng.below(open.len() as u64) as usize);
                let source = rng.below(ids.len() as u64 + 1) as usize;
                let cell = |sector| match ids.get(source) {
                    Some((id, from)) if sector >= *from => Cell::stamp(*id, sector - from),
                    _ => Cell::ZERO,
                };
                let is_read = kind == Kind::Read;
                let cells = if is_read { (first..first + count).map(cell).collect() } else { Vec::new() };
                story.volume.done(ticket, cells);
            }
            if rng.chance(50_000) {
                story.killed();
                open.clear();
            }
        }
        story
    }

    /// A read of `first` that returns the sectors of write `id`, from its start.
    pub(crate) fn read(&mut self, first: u64, count: u64, id: u64) {
        self.read_cells(first, (0..count).map(|index| Cell::stamp(id, index)).collect());
    }

    pub(crate) fn read_zeros(&mut self, first: u64, count: u64) {
        self.read_cells(first, vec![Cell::ZERO; count as usize]);
    }

    pub(crate) fn killed(&mut self) {
        self.volume.killed();
    }

    pub(crate) fn reconnect(&mut self) {
        self.connect_as(0, "told");
    }

    /// Goes on from a host under a name.
    pub(crate) fn connect_as(&mut self, host: u64, export: &str) {
        self.connection = self.volume.connect(host, export);
    }

    pub(crate) fn denied(&mut self, first: u64, count: u64) {
        let (ticket, _) = self.volume.invoke(self.connection, Kind::Write, first, count, false);
        self.volume.denied(ticket);
    }

    pub(crate) fn read_denied(&mut self, first: u64, count: u64) {
        let (ticket, _) = self.volume.invoke(self.connection, Kind::Read, first, count, false);
        self.volume.denied(ticket);
    }

    /// An operator says what guests may do in the first region.
    pub(crate) fn allow(&mut self, access: Access) {
        let asked = self.volume.step();
        self.volume.rights.ask(0, access, asked);
        let answered = self.volume.step();
        self.volume.rights.answered(answered);
    }

    /// The volume loses power or is recovered and then holds, block by block, the named writes' data (0 for zeros).
    pub(crate) fn cut(&mut self, cut: Cut, blocks: &[u64]) {
        self.volume.killed();
        let at = self.steps.next();
        let cell = |id: u64, index| if id == 0 { Cell::ZERO } else { Cell::stamp(id, index) };
        let image = blocks.iter().flat_map(|id| (0..8).map(move |index| cell(*id, index))).collect();
        self.volume.cut(at, cut, image);
    }
}
