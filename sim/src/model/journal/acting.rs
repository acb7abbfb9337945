//! One step taken: what it makes of a state, and whether that breaks a promise.

use std::collections::{BTreeSet, VecDeque};

use velum_node::{
    ensemble::{confirm, member, owner, takeover},
    metadata::{Answer, Rejection},
};
use velum_protocol::{
    format::metadata::{Command, Proposal, RequestId},
    id::NodeId,
    peer::Frame,
};

use super::{
    Journal, Step,
    scope::{Before, Left, Order, Scope},
    world::{Flying, Letter, NODES, Node, RAFT, Raft, World, number, place},
};
use crate::{
    ensemble::{
        Bug,
        clock::Clock,
        ghost::Ghost,
        machine::{Machine, Role, creation, metadata},
    },
    model::{explore::Taken, print::Shared},
};

/// So often an owner asks until all members are with it.
const ASKED: usize = 3;

/// A state while a step is taken.
pub(super) struct Acting<'a> {
    pub(super) scope: &'a Scope,
    pub(super) bug: Option<Bug>,
    pub(super) world: World,
    reached: BTreeSet<&'static str>,
    broken: Option<String>,
}

impl Journal {
    pub(super) fn act(&self, world: &World, step: Step) -> Taken<World> {
        let mut acting = self.acting(world.clone());
        acting.step(step);
        acting.deliver_own();
        let Acting { world, reached, broken, .. } = acting;
        Taken { state: world, reached, broken }
    }

    fn acting(&self, world: World) -> Acting<'_> {
        let Self { scope, bug } = self;
        Acting { scope, bug: *bug, world, reached: BTreeSet::new(), broken: None }
    }

    /// The first node's epoch is open, what the scope has before it begins is done, and nothing is on its way.
    pub(super) fn opened(&self) -> World {
        let node = |place| {
            let mut machine = Machine::new(number(place), Clock::TRUE);
            machine.start(0);
            Shared::new(Node { machine, syncing: None, news: VecDeque::new() })
        };
        let world = World {
            nodes: std::array::from_fn(node),
            raft: Shared::new(Raft { state: metadata(), requests: 0 }),
            ghost: Shared::new(Ghost::new()),
            flying: Vec::new(),
            left: Left::NOTHING,
            halves: 0,
        };
        // Without anything that is counted there is little that can happen, and it comes to rest.
        let calm = Self { scope: Scope { grants: &[], at_most: Left::NOTHING, ..self.scope }, bug: None };
        let mut acting = calm.acting(world);
        acting.propose(creation()).expect("a first volume can be made");
        for place in 0..NODES {
            let node = number(place);
            let admit = Command::AdmitNode { node, address: format!("n{node}:9891") };
            acting.propose(admit).expect("numbers are fresh");
        }
        acting.grant_to(0);
        let mut world = calm.rest(acting.world, None);
        let Before { writes, is_synced, absent, is_leased } = self.scope.before;
        let asked = (0..ASKED).map(|_| (Step::Tick(0), None));
        let written = (0..writes).map(|_| (Step::Write(0), absent));
        let synced = is_synced.then_some((Step::Barrier(0), absent));
        for (step, absent) in asked.chain(written).chain(synced) {
            world.left = Left { ticks: 1, writes: 1, barriers: 1, ..Left::NOTHING };
            world = calm.after(&world, step);
            world.left = Left::NOTHING;
            world = calm.rest(world, absent);
        }
        if is_leased {
            world.left = Left { reads: 1, passes: 1, ..Left::NOTHING };
            world = calm.after(&world, Step::Read(0));
            let is_question = |flying: &std::rc::Rc<Flying>| matches!(flying.letter, Letter::Frame(Frame::Confirm(_)));
            while let Some(index) = world.flying.iter().position(is_question) {
                world = calm.after(&world, Step::Deliver(index));
            }
            world = calm.after(&world, Step::Pass);
            world = calm.rest(world, absent);
        }
        world.left = self.scope.at_most;
        world
    }

    /// Where it comes to rest, if nothing comes to the absent one.
    fn rest(&self, mut world: World, absent: Option<usize>) -> World {
        loop {
            world.flying.retain(|flying| flying.to == RAFT || Some(place(flying.to)) != absent);
            let Some(step) = self.scope.steps(&world).first().copied() else { return world };
            world = self.after(&world, step);
        }
    }

    fn after(&self, world: &World, step: Step) -> World {
        let Taken { state, broken, .. } = self.act(world, step);
        assert_eq!(broken, None, "a volume is opened and written");
        state
    }
}

impl Acting<'_> {
    fn step(&mut self, step: Step) {
        match step {
            Step::Deliver(index) => {
                let flying = self.world.flying.remove(index);
                self.deliver(&flying);
            }
            Step::Repeat(index) => {
                self.world.left.repeats -= 1;
                let flying = std::rc::Rc::clone(&self.world.flying[index]);
                self.deliver(&flying);
            }
            Step::Break(index) => self.break_link(index),
            Step::Synced(node) => self.synced(number(node)),
            Step::Stored(node) => self.stored(number(node)),
            Step::Hear(node) => self.hear(number(node)),
            Step::Write(node) => {
                self.world.left.writes -= 1;
                self.write(number(node));
            }
            Step::Barrier(node) => {
                self.world.left.barriers -= 1;
                self.step_owner(number(node), owner::Input::Sync);
            }
            Step::Flush(node) => {
                self.world.left.flushes -= 1;
                self.flush(number(node));
            }
            Step::Advance => self.advance(),
            Step::Grant => self.grant(),
            Step::Tick(node) => {
                self.world.left.ticks -= 1;
                self.tick(number(node));
            }
            Step::Wait(node) => {
                self.world.left.waits -= 1;
                self.wait(number(node));
            }
            Step::Read(node) => {
                self.world.left.reads -= 1;
                self.read(number(node));
            }
            Step::Pass => {
                self.world.left.passes -= 1;
                self.pass();
            }
            Step::Kill { node, stored } => {
                self.world.left.kills -= 1;
                self.kill(node, stored);
            }
            Step::LosePower { node, stored, keeps } => {
                self.world.left.power_losses -= 1;
                self.lose_power(node, stored, keeps);
            }
            Step::Damage { node, stored, from, to } => {
                let damage = self.next_damage();
                self.world.left.damages -= 1;
                self.damage(node, stored, (from, to), damage);
            }
        }
    }

    /// Delivers what nodes say to themselves, unless messages come in any order; then forgets what nobody listens to.
    fn deliver_own(&mut self) {
        let is_own = |flying: &std::rc::Rc<Flying>| flying.from == flying.to;
        while let Some(index) = self.world.flying.iter().position(is_own).filter(|_| self.scope.order == Order::Lanes) {
            let flying = self.world.flying.remove(index);
            self.deliver(&flying);
        }
        self.world.forget();
    }

    fn deliver(&mut self, flying: &Flying) {
        let (from, to) = (flying.from, flying.to);
        match &flying.letter {
            Letter::Proposal(command) => self.agree(from, command.clone()),
            Letter::Frame(Frame::Append(append)) => self.append(from, to, append.clone()),
            Letter::Frame(Frame::Fence(fence)) => self.step_member(to, member::Input::Fence(from, *fence)),
            Letter::Frame(Frame::ReadTail(read)) => self.step_member(to, member::Input::ReadTail(from, *read)),
            Letter::Frame(Frame::Appended(appended)) => self.appended(from, to, *appended),
            Letter::Frame(Frame::Fenced(fenced)) => {
                self.step_takeover(to, takeover::Input::Fenced(from, *fenced));
            }
            Letter::Frame(Frame::Tail(tail)) => self.step_takeover(to, takeover::Input::Tail(from, tail.clone())),
            Letter::Frame(Frame::Confirm(confirm)) => self.step_member(to, member::Input::Confirm(from, *confirm)),
            Letter::Frame(Frame::Confirmed(said)) => self.step_asker(to, confirm::Input::Confirmed(from, *said)),
            Letter::Frame(Frame::Release(release)) => self.step_member(to, member::Input::Release(from, *release)),
            Letter::Frame(_) => unreachable!("these machines say nothing else"),
        }
    }

    /// What is on a message's link is gone, and its sender hears of that.
    fn break_link(&mut self, index: usize) {
        self.world.left.breaks -= 1;
        let (from, to) = (self.world.flying[index].from, self.world.flying[index].to);
        self.world.flying.retain(|flying| (flying.from, flying.to) != (from, to));
        self.step_takeover(from, takeover::Input::Lost(to));
        self.step_owner(from, owner::Input::Lost(to));
    }

    /// The number of the damage that comes next. Time does not pass here: damage is known by its number.
    pub(super) fn next_damage(&self) -> u64 {
        u64::from(self.scope.at_most.damages - self.world.left.damages) + 1
    }

    pub(super) fn send(&mut self, flying: Flying) {
        self.world.send(flying, self.scope.order);
    }

    pub(super) fn propose(&mut self, command: Command) -> Result<Answer, Rejection> {
        let raft = self.world.raft.edit();
        raft.requests += 1;
        let mut request = [0; 16];
        request[..8].copy_from_slice(&raft.requests.to_le_bytes());
        let answer = raft.state.apply(&Proposal { request: RequestId(request), command });
        // Nobody asks twice here, and what was asked before makes no difference any more.
        raft.state.answered.clear();
        answer
    }

    pub(super) fn node(&self, node: NodeId) -> &Node {
        &self.world.nodes[place(node)]
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> &mut Node {
        self.world.nodes[place(node)].edit()
    }

    /// What the node does beside keeping records.
    pub(super) fn role(&mut self, node: NodeId) -> Option<&mut Role> {
        self.node_mut(node).machine.up.as_mut().map(|up| &mut up.role)
    }

    pub(super) fn judge(&mut self, verdict: Result<(), String>) {
        self.broken = self.broken.take().or(verdict.err());
    }

    pub(super) fn reach_if(&mut self, is_reached: bool, what: &'static str) {
        self.reached.extend(is_reached.then_some(what));
    }
}
