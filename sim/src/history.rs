//! What guests asked, when, and what they were told: the material that the checkers judge.
//!
//! Every invocation and every answer gets a step of one global count, so that "acked before invoked" is a comparison of
//! numbers. A volume's history is cut into eras: an era begins with a known image, and ends when acked writes may have been
//! lost (the machine lost power, or the volume was recovered from the clouds), where the whole volume is read to know what
//! the next era begins with. A killed process alone ends no era, for nothing may be lost with it.

mod permits;
mod rights;

use std::{cell::Cell as StdCell, collections::BTreeMap, rc::Rc};

use velum_protocol::format::record::ATOMIC_BLOCKS_MAX;

use crate::guest::pattern::{BLOCK_SECTORS, Cell};

pub use permits::Permits;
pub use rights::Rights;

/// A point in the order of all invocations and answers of a world.
pub type Step = u64;

/// What a guest asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Store stamped sectors.
    Write,
    /// Trim or write zeroes: reads as zeros afterwards.
    Zero,
    /// Read.
    Read,
    /// Barrier.
    Barrier,
}

/// How far a request got, as far as the guest knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No answer (yet). For a write: it may have taken effect, or may still.
    None,
    /// Done.
    Done(Step),
    /// An error. A write may have taken effect all the same.
    Refused(Step),
    /// Not permitted: nothing of it took effect, or ever will.
    Denied(Step),
}

/// One request.
#[derive(Clone, Debug)]
pub struct Op {
    /// Unique number; the stamp of a write. Counts from 1.
    pub id: u64,
    /// Which connection asked.
    pub connection: u64,
    /// What was asked.
    pub kind: Kind,
    /// First sector.
    pub first: u64,
    /// Sectors.
    pub count: u64,
    /// Answered at d1.
    pub fua: bool,
    /// When it was asked.
    pub invoked: Step,
    /// What came back.
    pub answer: Answer,
    /// From this step on it can no longer take effect: the process that had it was killed.
    pub void_from: Option<Step>,
    /// What a read returned, sector by sector.
    pub cells: Vec<Cell>,
}

impl Op {
    /// The step of a successful answer.
    #[must_use]
    pub fn acked(&self) -> Option<Step> {
        if let Answer::Done(step) = self.answer { Some(step) } else { None }
    }

    /// The last step at which it may have taken effect.
    #[must_use]
    pub fn latest(&self) -> Step {
        self.acked().unwrap_or(Step::MAX).min(self.void_from.unwrap_or(Step::MAX))
    }

    /// True for what changes a volume.
    #[must_use]
    pub fn is_change(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Zero) && !matches!(self.answer, Answer::Denied(_))
    }

    /// True for a change that is whole or not there at all, whatever crashes: small, and on block bounds.
    #[must_use]
    pub fn is_atomic(&self) -> bool {
        let on_bounds = self.first.is_multiple_of(BLOCK_SECTORS) && self.count.is_multiple_of(BLOCK_SECTORS);
        self.is_change() && on_bounds && self.count <= ATOMIC_BLOCKS_MAX * BLOCK_SECTORS
    }

    /// True when it touches `sector`.
    #[must_use]
    pub fn covers(&self, sector: u64) -> bool {
        sector >= self.first && sector - self.first < self.count
    }

    /// What `sector` holds after this change alone.
    #[must_use]
    pub fn cell(&self, sector: u64) -> Cell {
        match self.kind {
            Kind::Write => Cell::stamp(self.id, sector - self.first),
            Kind::Zero | Kind::Read | Kind::Barrier => Cell::ZERO,
        }
    }
}

/// Why an era ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The machine lost power, or what it had not synced rotted: everything at d1 must be there.
    PowerLoss,
    /// The node's directory was lost and the volume recovered from clouds: everything at d2 must be there.
    Recovery,
}

/// A stretch of history in which no acked write may be lost.
#[derive(Clone, Debug)]
pub struct Era {
    /// What the volume held at its beginning.
    pub base: Vec<Cell>,
    /// Requests in the order of their invocation.
    pub ops: Vec<Op>,
    /// Steps at which an operator asked for a flush to the clouds that was answered: acked changes before are at d2.
    pub flushed: Vec<Step>,
    /// How it ended; `None` for the last one.
    pub cut: Option<(Step, Cut)>,
    /// The volume's lineage at its beginning, as an operator is shown it.
    pub lineage: Option<u64>,
}

impl Era {
    /// An era that begins with `base`.
    #[must_use]
    pub fn from(base: Vec<Cell>) -> Self {
        Self { base, ops: Vec::new(), flushed: Vec::new(), cut: None, lineage: None }
    }

    /// Its changes.
    pub fn changes(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().filter(|op| op.is_change())
    }

    /// The write that left `cell` in `sector`, when a write of this era did.
    #[must_use]
    pub fn written(&self, sector: u64, cell: Cell) -> Option<&Op> {
        let (id, _) = cell.origin()?;
        let at = self.ops.binary_search_by_key(&id, |op| op.id).ok()?;
        Some(&self.ops[at]).filter(|op| op.is_change() && op.covers(sector) && op.cell(sector) == cell)
    }

    /// Changes and successful reads by block, in the order of invocation. Blocks that nobody touched are left out.
    #[must_use]
    pub fn by_block(&self) -> Vec<(u64, Vec<&Op>)> {
        let mut blocks: Vec<Vec<&Op>> = vec![Vec::new(); self.base.len().div_ceil(BLOCK_SECTORS as usize)];
        for op in self.ops.iter().filter(|op| op.is_change() || (op.kind == Kind::Read && op.acked().is_some())) {
            let last = (op.first + op.count).div_ceil(BLOCK_SECTORS).min(blocks.len() as u64);
            for block in op.first / BLOCK_SECTORS..last {
                blocks[block as usize].push(op);
            }
        }
        blocks.into_iter().enumerate().filter(|(_, ops)| !ops.is_empty()).map(|(at, ops)| (at as u64, ops)).collect()
    }
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Connected {
    /// When it was opened.
    pub at: Step,
    /// Which of the volume's hosts opened it.
    pub host: u64,
    /// The name under which it found the volume.
    pub export: String,
}

/// Everything that guests saw of one volume.
#[derive(Clone, Debug)]
pub struct VolumeHistory {
    /// Its name.
    pub name: String,
    /// Its eras, in order; never empty.
    pub eras: Vec<Era>,
    /// The connections, by their number.
    pub connections: Vec<Connected>,
    /// A connection takes the place of its host's last one.
    pub one_connection: bool,
    /// Hosts share it, each with an attachment of its own.
    pub is_shared: bool,
    /// Who of them may write where.
    pub permits: Permits,
    /// What guests may do where.
    pub rights: Rights,
    /// The last connection of each host that was told something.
    told: BTreeMap<u64, u64>,
    steps: Rc<StepCount>,
    next_op: u64,
}

/// The count of steps that all volumes of a world share.
#[derive(Debug, Default)]
pub struct StepCount(StdCell<Step>);

impl StepCount {
    /// The next step.
    pub fn next(&self) -> Step {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

/// Names a request while it is under way.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    era: usize,
    op: usize,
}

impl VolumeHistory {
    /// A new volume of `sectors` sectors, all zeros. `first_op` keeps the stamps of two volumes apart.
    #[must_use]
    pub fn new(name: &str, sectors: u64, first_op: u64, steps: Rc<StepCount>) -> Self {
        let base = vec![Cell::ZERO; sectors as usize];
        Self {
            name: name.to_owned(),
            eras: vec![Era::from(base)],
            connections: Vec::new(),
            one_connection: false,
            is_shared: false,
            permits: Permits::default(),
            rights: Rights::default(),
            told: BTreeMap::new(),
            steps,
            next_op: first_op,
        }
    }

    /// The era under way.
    #[must_use]
    pub fn era(&self) -> &Era {
        self.eras.last().expect("a history has an era from the start")
    }

    fn era_mut(&mut self) -> &mut Era {
        self.eras.last_mut().expect("a history has an era from the start")
    }

    /// Sectors of the volume.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.era().base.len() as u64
    }

    /// A guest has connected, from one of its hosts and under a name.
    pub fn connect(&mut self, host: u64, export: &str) -> u64 {
        let (at, export) = (self.steps.next(), export.to_owned());
        self.connections.push(Connected { at, host, export });
        self.connections.len() as u64 - 1
    }

    /// The next step.
    #[must_use]
    pub fn step(&self) -> Step {
        self.steps.next()
    }

    /// A guest asks.
    pub fn invoke(&mut self, connection: u64, kind: Kind, first: u64, count: u64, fua: bool) -> (Ticket, u64) {
        self.next_op += 1;
        let (id, invoked) = (self.next_op, self.steps.next());
        let op = Op {
            id,
            connection,
            kind,
            first,
            count,
            fua,
            invoked,
            answer: Answer::None,
            void_from: None,
            cells: Vec::new(),
        };
        let era = self.eras.len() - 1;
        self.era_mut().ops.push(op);
        (Ticket { era, op: self.era().ops.len() - 1 }, id)
    }

    /// A guest is told that a request was done; `cells` is what a read returned.
    pub fn done(&mut self, ticket: Ticket, cells: Vec<Cell>) {
        let step = self.steps.next();
        let op = &mut self.eras[ticket.era].ops[ticket.op];
        op.answer = Answer::Done(step);
        op.cells = cells;
        let connection = op.connection;
        let host = self.connections[connection as usize].host;
        if self.one_connection && self.told.get(&host).is_none_or(|told| *told < connection) {
            self.told.insert(host, connection);
            self.taken_over(host, connection, step);
        }
    }

    /// OWN6: what earlier connections of a host have under way never takes effect any more, once one that takes their place was told
    /// something.
    fn taken_over(&mut self, host: u64, by: u64, step: Step) {
        let connections = &self.connections;
        let is_earlier = |op: &Op| op.connection < by && connections[op.connection as usize].host == host;
        let era = self.eras.last_mut().expect("a history has an era from the start");
        for op in era.ops.iter_mut().filter(|op| is_earlier(op)) {
            if op.acked().is_none() && op.void_from.is_none() {
                op.void_from = Some(step);
            }
        }
    }

    /// A request turns out to concern only its first `count` sectors.
    pub fn shorten(&mut self, ticket: Ticket, count: u64) {
        self.eras[ticket.era].ops[ticket.op].count = count;
    }

    /// A guest is told that a request failed.
    pub fn refused(&mut self, ticket: Ticket) {
        let step = self.steps.next();
        self.eras[ticket.era].ops[ticket.op].answer = Answer::Refused(step);
    }

    /// A guest is told that it may not.
    pub fn denied(&mut self, ticket: Ticket) {
        let step = self.steps.next();
        self.eras[ticket.era].ops[ticket.op].answer = Answer::Denied(step);
    }

    /// An operator's flush that was asked for at `asked` has been answered.
    pub fn flushed(&mut self, asked: Step) {
        self.era_mut().flushed.push(asked);
    }

    /// The process that had all requests under way is gone: what it has not done it never will.
    pub fn killed(&mut self) {
        let step = self.steps.next();
        for op in &mut self.era_mut().ops {
            if op.acked().is_none() && op.void_from.is_none() {
                op.void_from = Some(step);
            }
        }
    }

    /// The era ends with `cut`, and the volume was found to hold `image`.
    pub fn cut(&mut self, at: Step, cut: Cut, image: Vec<Cell>) {
        self.era_mut().cut = Some((at, cut));
        self.eras.push(Era::from(image));
    }

    /// An operator is shown the volume's lineage.
    pub fn shown_lineage(&mut self, lineage: u64) {
        self.era_mut().lineage = Some(lineage);
    }
}
