//! The world: events in order of time, and what each does.

mod owners;
mod reads;
mod sequence;
mod trouble;

use std::collections::BTreeMap;

use velum_node::{
    ensemble::{confirm, lease, member, owner, takeover},
    env::Instant,
    metadata::{Answer, Rejection, State},
};
use velum_protocol::{
    format::metadata::{Command, Proposal, RequestId},
    id::{Epoch, Jseq, NodeId, Seq},
    peer::{
        self, Frame,
        ensemble::{Append, Appended, Condition},
    },
};

pub(crate) use self::reads::Reads;
use super::{
    Recipe, Tally,
    bugs::{Bug, is_filled, stores},
    clock::Clock,
    ghost::Ghost,
    machine::{Machine, Op, Role, Up, VOLUME, cloud, creation, metadata},
};
use crate::{phases::Crossings, rng::Rng, runtime::Run, trace::Trace};

/// Time for everything to come right once nothing more goes wrong.
const SETTLE_MS: u64 = 90_000;

/// Something that happens.
#[derive(Debug)]
enum Event {
    Frame { from: NodeId, to: NodeId, generation: u64, frame: Frame },
    Lost { at: NodeId, process: u64, to: NodeId },
    Synced { node: NodeId, process: u64, through: usize },
    Stored { node: NodeId, process: u64 },
    Wake { node: NodeId, process: u64 },
    Granted { node: NodeId, epoch: Epoch },
    LetGo { node: NodeId, granted: Epoch },
    Close { node: NodeId, process: u64, epoch: Epoch },
    Closed { node: NodeId, process: u64, epoch: Epoch, is_done: bool },
    Sequence { node: NodeId, process: u64 },
    Append { append: Box<Command> },
    Cursor { seq: u64, epoch: Epoch },
    Trimmed { node: NodeId, process: u64, through: Jseq },
    Tick { node: NodeId, process: u64 },
    Write { node: NodeId, process: u64 },
    Read { node: NodeId, process: u64 },
    Start { node: NodeId },
    Keep,
    Trouble,
    Resume { node: NodeId },
    Unblock { from: NodeId, to: NodeId },
}

#[derive(Debug, Default)]
struct Link {
    generation: u64,
    busy_until_ms: u64,
    is_blocked: bool,
    slow_ms: u64,
}

pub(super) struct World {
    recipe: Recipe,
    trace: Trace,
    rng: Rng,
    /// Reads are as they are, whatever else is drawn.
    reads_rng: Rng,
    /// Owners read by lease.
    leases: bool,
    now_ms: u64,
    next: u64,
    events: BTreeMap<(u64, u64), Event>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    nodes: BTreeMap<NodeId, Machine>,
    /// What came for a process that stands still.
    held: BTreeMap<NodeId, Vec<Event>>,
    state: State,
    requests: u64,
    ghost: Ghost,
    /// The last grant, and when.
    granted_ms: u64,
    /// A disk was lost, and no ensemble has been opened since without its node.
    lost: Option<NodeId>,
    numbers: u64,
    /// Sequence records that were sealed.
    sealed: u64,
    delay_ms_max: u64,
    kinds: Vec<(u32, trouble::Trouble)>,
    is_healed: bool,
    failures: Vec<String>,
    tally: Tally,
}

impl World {
    pub(super) fn new(recipe: Recipe, trace: Trace) -> Self {
        let rng = Rng::new(recipe.seed, "ensemble");
        let reads_rng = Rng::new(recipe.seed, "reads");
        let uses_leases = matches!(recipe.bug, Some(Bug::LeaseFromReply | Bug::NoLeaseWait | Bug::ReadAfterLease));
        let kinds = trouble::draw(&rng, recipe.is_damaged, recipe.bug == Some(Bug::LeaseFromReply));
        let delay_ms_max = *rng.pick(&[1, 3, 20]);
        let mut own = Self {
            recipe,
            trace,
            rng,
            // Where damage is looked for alone, owners are to come and go.
            leases: !recipe.is_damaged && (uses_leases || reads_rng.chance(750_000)),
            reads_rng,
            now_ms: 0,
            next: 0,
            events: BTreeMap::new(),
            links: BTreeMap::new(),
            nodes: BTreeMap::new(),
            held: BTreeMap::new(),
            state: metadata(),
            requests: 0,
            ghost: Ghost::new(),
            granted_ms: 0,
            lost: None,
            numbers: 0,
            sealed: 0,
            delay_ms_max,
            kinds,
            is_healed: false,
            failures: Vec::new(),
            tally: Tally::default(),
        };
        own.propose(creation()).expect("a first volume can be made");
        for _ in 0..recipe.members {
            own.join();
        }
        own
    }

    pub(super) fn into_run(self) -> Run<()> {
        Run {
            result: Some(()),
            hash: self.trace.hash(),
            events: self.trace.events(),
            simulated_ms: self.now_ms,
            failures: self.failures,
            tally: self.tally.0,
            crossings: Crossings::default(),
        }
    }

    pub(super) fn live(&mut self) {
        self.later(1, Event::Keep);
        self.later(300, Event::Trouble);
        self.until(self.recipe.trouble_ms, |_| false);
        self.heal();
        let (acked, granted) = (self.ghost.d1(), self.state.volumes[&VOLUME].epoch);
        let is_fine = |own: &Self| own.ghost.d1() > acked && own.ghost.open() >= granted;
        self.until(self.now_ms + SETTLE_MS, is_fine);
        if self.failures.is_empty() && !is_fine(self) {
            self.fail(format!("LIV1: nobody brings a barrier to d1; open is {:?}", self.ghost.open()));
        }
    }

    fn until(&mut self, end_ms: u64, is_done: impl Fn(&Self) -> bool) {
        while self.failures.is_empty() && !is_done(self) {
            match self.events.first_entry() {
                Some(entry) if entry.key().0 <= end_ms => {
                    let ((now_ms, _), event) = entry.remove_entry();
                    self.now_ms = now_ms;
                    self.happen(event);
                }
                _ => break,
            }
        }
        self.now_ms = self.now_ms.max(if self.failures.is_empty() { end_ms.min(self.now_ms + SETTLE_MS) } else { 0 });
    }

    fn later(&mut self, ms: u64, event: Event) {
        self.next += 1;
        self.events.insert((self.now_ms + ms, self.next), event);
    }

    fn fail(&mut self, why: String) {
        self.failures.push(format!("at {} ms: {why}", self.now_ms));
    }

    fn judge(&mut self, verdict: Result<(), String>) {
        if let Err(why) = verdict {
            self.fail(why);
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.recipe.bug == Some(bug)
    }

    fn note(&self, kind: &str, node: NodeId, numbers: &[u64]) {
        self.trace.event(self.now_ms, kind, &format!("n{node}"), numbers);
    }

    fn propose(&mut self, command: Command) -> Result<Answer, Rejection> {
        self.requests += 1;
        let mut request = [0; 16];
        request[..8].copy_from_slice(&self.requests.to_le_bytes());
        self.state.apply(&Proposal { request: RequestId(request), command })
    }

    /// A new machine under a number that none had before.
    fn join(&mut self) {
        self.numbers += 1;
        let node = NodeId(self.numbers);
        self.propose(Command::AdmitNode { node, address: format!("n{node}:9891") }).expect("numbers are fresh");
        self.nodes.insert(node, Machine::new(node, Clock::draw(&self.reads_rng)));
        self.start(node);
    }

    fn start(&mut self, node: NodeId) {
        let now_ms = self.now_ms;
        let Some(machine) = self.nodes.get_mut(&node).filter(|machine| machine.up.is_none()) else { return };
        machine.start(now_ms);
        let process = machine.processes;
        self.note("start", node, &[process]);
        let first = self.rng.below(100);
        self.later(first, Event::Tick { node, process });
    }

    /// The machine's process, when it is that one.
    fn up(&mut self, node: NodeId, process: u64) -> Option<&mut Up> {
        self.nodes.get_mut(&node)?.up.as_mut().filter(|up| up.process == process)
    }

    fn process(&self, node: NodeId) -> Option<u64> {
        Some(self.nodes.get(&node)?.up.as_ref()?.process)
    }

    fn happen(&mut self, event: Event) {
        if let Some(node) = self.paused(&event) {
            return self.held.entry(node).or_default().push(event);
        }
        match event {
            Event::Resume { node } => self.resume(node),
            Event::Frame { from, to, generation, frame } => {
                if self.links.get(&(from, to)).is_none_or(|link| link.generation == generation) {
                    self.receive(from, to, frame);
                }
            }
            Event::Lost { at, process, to } => self.step_role(at, process, Told::Lost(to)),
            Event::Synced { node, process, through } => self.synced(node, process, through),
            Event::Stored { node, process } => self.stored(node, process),
            Event::Wake { node, process } => {
                if self.up(node, process).is_some() {
                    self.step_member(node, member::Input::Wake);
                }
            }
            Event::Granted { node, epoch } => self.take_over(node, epoch),
            Event::LetGo { node, granted } => self.let_go(node, granted),
            Event::Close { node, process, epoch } => self.close(node, process, epoch),
            Event::Closed { node, process, epoch, is_done } => self.closed(node, process, epoch, is_done),
            Event::Sequence { node, process } => self.sequence(node, process),
            Event::Append { append } => self.append(*append),
            Event::Cursor { seq, epoch } => self.advance(seq, epoch),
            Event::Trimmed { node, process, through } => self.step_role(node, process, Told::Trimmed(through)),
            Event::Tick { node, process } => {
                if let Some(is_taking) = self.up(node, process).map(|up| matches!(up.role, Role::Taking { .. })) {
                    // Where damage is looked for a takeover that waits for whole copies is soon at the end of its patience.
                    let is_hasty = self.recipe.is_damaged && is_taking;
                    (0..if is_hasty { 10 } else { 1 }).for_each(|_| self.step_role(node, process, Told::Tick));
                    self.step_asker(node, process, confirm::Input::Tick);
                    self.later(100, Event::Tick { node, process });
                }
            }
            Event::Write { node, process } => self.write(node, process),
            Event::Read { node, process } => {
                if self.up(node, process).is_some() {
                    self.read(node, process);
                }
            }
            Event::Start { node } => self.start(node),
            Event::Keep => self.keep(),
            Event::Trouble => self.trouble(),
            Event::Unblock { from, to } => self.links.entry((from, to)).or_default().is_blocked = false,
        }
    }

    fn synced(&mut self, node: NodeId, process: u64, through: usize) {
        let Some(machine) = self.nodes.get_mut(&node) else { return };
        if machine.up.as_ref().is_some_and(|up| up.process == process) {
            machine.disk.synced = machine.disk.synced.max(through);
            self.step_member(node, member::Input::Synced);
        }
    }

    fn stored(&mut self, node: NodeId, process: u64) {
        let bug = self.recipe.bug;
        let Some(machine) = self.nodes.get_mut(&node) else { return };
        if machine.up.as_ref().is_some_and(|up| up.process == process) {
            if let Some(promise) = machine.disk.storing.pop_front() {
                machine.disk.promise = Some(promise);
                let verdict = machine.judge_stored(&promise);
                machine.damaged_ms = machine.damaged_ms.filter(|_| !is_filled(bug, &promise));
                self.judge(verdict);
            }
            if !self.has(Bug::UnstoredPromise) {
                self.step_member(node, member::Input::Stored);
            }
        }
    }

    /// The cloud has everything up to `seq`.
    fn advance(&mut self, seq: u64, epoch: Epoch) {
        let advance = Command::AdvanceCursor { volume: VOLUME, epoch, cloud: cloud(), beginning: 0, seq: Seq(seq) };
        if self.propose(advance).is_err() {
            return;
        }
        let volume = &self.state.volumes[&VOLUME];
        let (owner, through) = (volume.owner, volume.durable_jseq(1));
        if let Some((node, process)) = owner.and_then(|node| Some((node, self.process(node)?))) {
            let delay = self.rng.between(1, 30);
            self.later(delay, Event::Trimmed { node, process, through });
        }
    }

    /// What a process that stood still missed comes in order.
    fn resume(&mut self, node: NodeId) {
        if self.nodes.get(&node).is_none_or(|machine| machine.paused_until_ms <= self.now_ms) {
            self.held.remove(&node).unwrap_or_default().into_iter().for_each(|event| self.happen(event));
        }
    }

    /// The node whose process the event concerns and stands still now.
    fn paused(&self, event: &Event) -> Option<NodeId> {
        let node = match event {
            Event::Frame { to, .. } => *to,
            Event::Lost { at, .. } => *at,
            Event::Granted { node, .. }
            | Event::Closed { node, .. }
            | Event::Synced { node, .. }
            | Event::Stored { node, .. }
            | Event::Trimmed { node, .. }
            | Event::Tick { node, .. }
            | Event::Wake { node, .. }
            | Event::LetGo { node, .. }
            | Event::Read { node, .. }
            | Event::Write { node, .. } => *node,
            _ => return None,
        };
        let until_ms = self.nodes.get(&node)?.paused_until_ms;
        (until_ms > self.now_ms).then_some(node)
    }

    // Frames.

    fn send(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        let bytes = frame.encode();
        if Frame::decode(frame.kind(), &bytes.slice(peer::HEADER_BYTES..)).as_ref() != Ok(&frame) {
            return self.fail(format!("a frame that no peer can read: {frame:?}"));
        }
        let is_there = self.process(to).is_some();
        let jitter = if from == to { self.rng.below(2) } else { 1 + self.rng.below(self.delay_ms_max) };
        let link = self.links.entry((from, to)).or_default();
        if link.is_blocked || !is_there {
            let process = self.process(from).unwrap_or_default();
            let wait_ms = self.rng.between(1, 50);
            return self.later(wait_ms, Event::Lost { at: from, process, to });
        }
        link.busy_until_ms = link.busy_until_ms.max(self.now_ms + jitter + link.slow_ms);
        let (generation, wait_ms) = (link.generation, link.busy_until_ms - self.now_ms);
        self.later(wait_ms, Event::Frame { from, to, generation, frame });
    }

    /// What is on the way between two nodes is gone.
    fn break_link(&mut self, from: NodeId, to: NodeId) {
        let link = self.links.entry((from, to)).or_default();
        (link.generation, link.busy_until_ms) = (link.generation + 1, 0);
        if let Some(process) = self.process(from) {
            let wait_ms = self.rng.between(1, 50);
            self.later(wait_ms, Event::Lost { at: from, process, to });
        }
    }

    fn receive(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        let Some(process) = self.process(to) else { return };
        match frame {
            Frame::Append(append) => {
                self.bend_member(to, &append);
                self.step_member(to, member::Input::Append(from, append));
            }
            Frame::Fence(fence) => self.step_member(to, member::Input::Fence(from, fence)),
            Frame::ReadTail(read) => self.step_member(to, member::Input::ReadTail(from, read)),
            Frame::Confirm(confirm) => self.step_member(to, member::Input::Confirm(from, confirm)),
            Frame::Release(release) => self.step_member(to, member::Input::Release(from, release)),
            Frame::Confirmed(confirmed) => self.step_asker(to, process, confirm::Input::Confirmed(from, confirmed)),
            Frame::Appended(appended) => self.appended(from, to, process, appended),
            Frame::Fenced(fenced) => {
                let mut fenced = fenced;
                if let Some(Up { role: Role::Taking { closes, tails, .. }, .. }) = self.up(to, process) {
                    let closes = *closes;
                    tails.push(fenced.tail.at);
                    if self.has(Bug::BelievedVoidEnd) && fenced.tail_epoch.0 > 0 {
                        fenced.tail_epoch = closes;
                    }
                }
                if self.has(Bug::CountedAmnesic) {
                    fenced.condition = Condition::Whole;
                }
                self.step_role(to, process, Told::Takeover(takeover::Input::Fenced(from, fenced)));
            }
            Frame::Tail(tail) => self.step_role(to, process, Told::Takeover(takeover::Input::Tail(from, tail))),
            _ => {}
        }
    }

    fn appended(&mut self, from: NodeId, to: NodeId, process: u64, mut appended: Appended) {
        if self.has(Bug::SyncAtOwner) && from != to {
            appended.synced = appended.at;
        }
        let copies = match self.recipe.bug {
            Some(Bug::OwnCopyTwice) => 2,
            Some(Bug::AckAtOne) => u64::MAX,
            _ => 1,
        };
        if copies > 1 && from == to {
            let Some(Up { role: Role::Owning(owning), .. }) = self.up(to, process) else { return };
            let others: Vec<NodeId> = owning.members.iter().copied().filter(|node| *node != from).collect();
            // As if another one had said it, in a life that is nobody's.
            for other in others.into_iter().take(copies as usize - 1) {
                let mut twin = appended;
                twin.life.process[15] ^= 0x80;
                twin.synced = if copies == 2 { twin.synced } else { Jseq(0) };
                self.step_role(to, process, Told::Owner(owner::Input::Appended(other, twin)));
            }
        }
        self.step_role(to, process, Told::Owner(owner::Input::Appended(from, appended)));
    }

    // Members.

    /// Has a member with a bug take what it should not.
    fn bend_member(&mut self, node: NodeId, append: &Append) {
        let now_ms = self.now_ms;
        let Some(machine) = self.nodes.get_mut(&node) else { return };
        let now = machine.clock.at(now_ms);
        let bent = self.recipe.bug.and_then(|bug| bug.bent(machine, append, now));
        if let (Some(member), Some(up)) = (bent, &mut machine.up) {
            up.member = member;
        }
    }

    fn step_member(&mut self, node: NodeId, input: member::Input) {
        self.step_member_at(node, self.now_of(node), input);
    }

    fn step_member_at(&mut self, node: NodeId, now: Instant, input: member::Input) {
        let Some(up) = self.nodes.get_mut(&node).and_then(|machine| machine.up.as_mut()) else { return };
        let mut effects = Vec::new();
        up.member.step(now, input, &mut effects);
        for effect in effects {
            self.perform_member(node, effect);
        }
    }

    fn perform_member(&mut self, node: NodeId, effect: member::Effect) {
        // What asks nothing of the disk draws nothing.
        let is_quick = matches!(effect, member::Effect::MadeUp | member::Effect::WakeAfter(_));
        let (slow_ms, waits) = (if is_quick { 0 } else { self.rng.below(8) }, !self.has(Bug::NoLeaseWait));
        let bug = self.recipe.bug;
        let Some(machine) = self.nodes.get_mut(&node) else { return };
        let process = machine.processes;
        match effect {
            member::Effect::Keep { record, .. } => machine.disk.log.push(Op::Keep(record)),
            member::Effect::Trim { epoch, through } => machine.disk.log.push(Op::Trim(epoch, through)),
            // Nothing of the damage is left in these journals.
            member::Effect::MadeUp => {}
            member::Effect::WakeAfter(_) if !waits => {
                self.step_member_at(node, self.now_of(node) + lease::TTL, member::Input::Wake);
            }
            member::Effect::WakeAfter(wait) => {
                self.tally.count("fences that waited");
                let wait_ms = machine.clock.world_ms(wait);
                self.later(wait_ms, Event::Wake { node, process });
            }
            member::Effect::Sync => {
                let through = machine.disk.log.len();
                self.later(1 + slow_ms, Event::Synced { node, process, through });
            }
            member::Effect::Store(noted) => {
                let noted = stores(bug, machine, noted);
                machine.disk.storing.push_back(noted);
                if self.has(Bug::UnstoredPromise) {
                    self.step_member(node, member::Input::Stored);
                }
                // Promises are stored in order.
                self.later(9, Event::Stored { node, process });
            }
            member::Effect::Send { to, frame } => {
                let verdict = self.judge_told(node, to, &frame);
                self.judge(verdict.map_err(|why| format!("node {node}: {why}")));
                self.send(node, to, frame);
            }
        }
    }

    /// Only who takes over in an epoch builds on what is told of it.
    fn judge_told(&self, node: NodeId, to: NodeId, frame: &Frame) -> Result<(), String> {
        let up = self.nodes.get(&to).and_then(|machine| machine.up.as_ref());
        let is_built_on = |epoch| up.is_some_and(|up| up.role.takes(epoch));
        self.nodes.get(&node).map_or(Ok(()), |machine| machine.disk.judge_told(frame, is_built_on))
    }
}

/// What a role is told.
enum Told {
    Tick,
    Lost(NodeId),
    Trimmed(Jseq),
    Takeover(takeover::Input),
    Owner(owner::Input),
}
