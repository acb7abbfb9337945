//! Groups of raft members under one seed: the shipped consensus, links and journal on simulated disks and a simulated network.
//!
//! One member founds the group and the others join it, first as learners. Then proposals and reads go to all of them while
//! processes are killed, machines lose power, links are cut, blocked one way or both, slowed down and flapping, leaders hand
//! over, and members are replaced by others under new numbers. In the end everything heals, and all must come to hold the
//! same within bounded time.

mod member;
mod state;
mod trouble;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use bytes::Bytes;
use velum_node::{
    consensus::{Change, ProposeError},
    env::Entropy,
    journal::JournalSettings,
    keyring::{ProviderSecret, create_cluster, new_keyfile},
};
use velum_protocol::id::NodeId;

use crate::{
    checker::own7::check_end,
    env::{Surroundings, entropy::NodeEntropy, network::Wires},
    planted::Planted,
    rng::Rng,
    runtime::{Run, Sim, simulate},
    trace::Printer,
};
use member::{Member, Question, Setting};
use state::Witness;
pub use trouble::Trouble;

/// A world to be made.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Decides everything else.
    pub seed: u64,
    /// Voters once the group is whole.
    pub members: u64,
    /// How long trouble goes on.
    pub trouble_ms: u64,
    /// The one kind of trouble, when kinds are not drawn from the seed.
    pub only: Option<Trouble>,
    /// A bug of every member.
    pub planted: Option<Planted>,
}

/// Time for everything to come right once nothing more goes wrong.
const SETTLE_MS: u64 = 30_000;

/// Time that a group may be without a leader after it was killed.
const FAILOVER_MS: u64 = 3_000;

impl Recipe {
    /// The world of a seed: three members or five.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            members: if seed.is_multiple_of(3) { 5 } else { 3 },
            trouble_ms: 15_000,
            only: None,
            planted: None,
        }
    }

    /// Runs it.
    #[must_use]
    pub fn run(self, printer: impl FnOnce() -> Option<Printer> + Send + 'static) -> Run<()> {
        simulate(self.seed, printer, move |sim| {
            Box::pin(async move {
                let world = World::new(&sim, self);
                world.live(self).await;
                world.end();
            })
        })
    }
}

/// A group and all around it.
struct World {
    sim: Rc<Sim>,
    setting: Setting,
    rng: Rng,
    members: RefCell<BTreeMap<u64, Rc<Member>>>,
    /// The next number to be given.
    next: Cell<u64>,
    proposed: Cell<u64>,
    answered: RefCell<BTreeSet<u64>>,
    refused: RefCell<BTreeSet<u64>>,
    /// Members that were asked to go.
    leaving: RefCell<BTreeSet<u64>>,
    is_over: Cell<bool>,
}

impl World {
    fn new(sim: &Rc<Sim>, recipe: Recipe) -> Rc<Self> {
        let rng = Rng::new(recipe.seed, "group");
        let wires = Wires::new(Rc::clone(sim), Rng::new(recipe.seed, "network"));
        wires.faults.delay_ms_max.set(*rng.pick(&[1, 3, 10, 40]));
        let around = Surroundings { sim: Rc::clone(sim), wires, clouds: Rc::default() };
        let entropy = NodeEntropy::new(Rc::new(Rng::new(recipe.seed, "keys")));
        let entropy: &dyn Entropy = &entropy;
        let secret = ProviderSecret::from_keyfile(0o600, new_keyfile(entropy).to_vec()).expect("a new key is good");
        let keyring = create_cluster(entropy, &secret).expect("keys can be made").keyring;
        let setting = Setting {
            around,
            keyring,
            witness: Rc::<Witness>::default(),
            addresses: Rc::default(),
            removed: Rc::default(),
            // A small ring: logs are compacted and lagging members need snapshots.
            journal: JournalSettings { file_bytes: 128 << 10, files_at_start: 4, bytes_max: 1 << 20 },
            padding: *rng.pick(&[0, 100, 30_000, 1_200_000]),
            planted: recipe.planted,
        };
        Rc::new(Self {
            sim: Rc::clone(sim),
            setting,
            rng,
            members: RefCell::default(),
            next: Cell::new(1),
            proposed: Cell::new(0),
            answered: RefCell::default(),
            refused: RefCell::default(),
            leaving: RefCell::default(),
            is_over: Cell::new(false),
        })
    }

    async fn live(self: &Rc<Self>, recipe: Recipe) {
        self.spawn(Self::watch);
        self.newcomer(true);
        self.spawn(Self::work);
        for _ in 1..recipe.members {
            let node = self.newcomer(false);
            if !self.bring_in(node, SETTLE_MS).await {
                return self.sim.fail(format!("node {node} could not join while nothing was wrong"));
            }
        }
        self.lose_the_leader().await;
        let before = self.answered.borrow().len();
        self.make_trouble(recipe.trouble_ms, recipe.only).await;
        self.heal();
        self.settle(before).await;
    }

    fn spawn<F: Future<Output = ()> + 'static>(self: &Rc<Self>, work: impl FnOnce(Rc<Self>) -> F) {
        drop(self.sim.spawn(work(Rc::clone(self))));
    }

    /// A machine under a number that none had before, started.
    fn newcomer(&self, founds: bool) -> u64 {
        let node = self.next.get();
        self.next.set(node + 1);
        let member = Rc::new(Member::new(&self.setting, node, founds));
        member.start();
        self.members.borrow_mut().insert(node, member);
        self.all().iter().for_each(|member| member.tell_peers());
        node
    }

    fn all(&self) -> Vec<Rc<Member>> {
        self.members.borrow().values().cloned().collect()
    }

    /// Whoever leads in the newest term, as far as can be seen.
    fn leader(&self) -> Option<Rc<Member>> {
        let leads =
            |member: &Rc<Member>| Some((member.status().filter(|status| status.is_leader)?.term, member.node.0));
        let (_, node) = self.all().iter().filter_map(leads).max()?;
        self.members.borrow().get(&node).cloned()
    }

    /// Looks at every member all the time.
    async fn watch(self: Rc<Self>) {
        while !self.is_over.get() {
            self.all().iter().for_each(|member| member.look());
            self.sim.sleep_ms(5).await;
        }
    }

    /// Has the leader change the membership until `is_done` says so.
    async fn reach(&self, limit_ms: u64, change: Change, is_done: impl Fn(&[u64], &[u64]) -> bool) -> bool {
        let deadline_ms = self.sim.now_ms() + limit_ms;
        while self.sim.now_ms() < deadline_ms {
            if let Some(leader) = self.leader() {
                if let Some((voters, learners, false)) = leader.members()
                    && is_done(&voters, &learners)
                {
                    return true;
                }
                // Refused or unanswered: what came of it is looked at.
                let _ = leader.ask(Question::Change(change), 2_000).await;
            }
            self.sim.sleep_ms(100).await;
        }
        false
    }

    /// A newcomer becomes a learner and gets a vote.
    async fn bring_in(&self, node: u64, limit_ms: u64) -> bool {
        let (add, promote) = (Change::AddLearner(NodeId(node)), Change::Promote(NodeId(node)));
        self.reach(limit_ms, add, |voters, learners| voters.contains(&node) || learners.contains(&node)).await
            && self.reach(limit_ms, promote, |voters, _| voters.contains(&node)).await
    }

    /// A member loses its vote, then its place; its machine is switched off for ever.
    async fn take_out(&self, node: u64, limit_ms: u64) -> bool {
        self.leaving.borrow_mut().insert(node);
        let (demote, remove) = (Change::Demote(NodeId(node)), Change::Remove(NodeId(node)));
        let is_out = self.reach(limit_ms, demote, |voters, _| !voters.contains(&node)).await
            && self
                .reach(limit_ms, remove, |voters, learners| !voters.contains(&node) && !learners.contains(&node))
                .await;
        if is_out {
            self.retire(node);
        }
        is_out
    }

    fn retire(&self, node: u64) {
        self.setting.removed.borrow_mut().push(NodeId(node));
        self.setting.addresses.borrow_mut().remove(&NodeId(node));
        let gone = self.members.borrow_mut().remove(&node);
        gone.inspect(|member| member.kill());
        self.all().iter().for_each(|member| member.tell_peers());
    }

    /// Proposes and reads, many at a time.
    async fn work(self: Rc<Self>) {
        while !self.is_over.get() {
            self.sim.sleep_ms(self.rng.between(1, 40)).await;
            let all = self.all();
            let member = Rc::clone(self.rng.pick(&all));
            if self.rng.chance(100_000) {
                self.spawn(|world| world.read(member));
            } else {
                self.spawn(|world| async move {
                    world.propose(member).await;
                });
            }
        }
    }

    async fn propose(&self, member: Rc<Member>) -> bool {
        let number = self.proposed.get() + 1;
        self.proposed.set(number);
        let mut entry = number.to_le_bytes().to_vec();
        entry.resize(8 + self.rng.below(1500) as usize, 7);
        let answer = member.ask(Question::Propose(Bytes::from(entry)), 10_000).await;
        match answer {
            Some(Ok(())) => {
                self.sim.count("answered proposals", 1);
                self.answered.borrow_mut().insert(number);
            }
            Some(Err(ProposeError::NotLeader { .. } | ProposeError::Busy | ProposeError::Superseded)) => {
                self.sim.count("refused proposals", 1);
                self.refused.borrow_mut().insert(number);
            }
            Some(Err(ProposeError::Lost | ProposeError::Stopped)) | None => self.sim.count("unknown proposals", 1),
            Some(Err(error)) => self.sim.fail(format!("a good proposal was refused: {error}")),
        }
        matches!(answer, Some(Ok(())))
    }

    /// What was answered before a read began is there when it ends.
    async fn read(self: Rc<Self>, member: Rc<Member>) {
        let before: Vec<u64> = self.answered.borrow().iter().copied().collect();
        if let Some(Ok(())) = member.ask(Question::Read, 12_000).await
            && let Some((held, _)) = member.held()
        {
            self.sim.count("reads", 1);
            if let Err(why) = check_end(member.node.0, &held, &before, &[]) {
                self.sim.fail(format!("OWN7: a read was stale: {why}"));
            }
        }
    }

    /// The leader of a group that is well is killed: the others go on in time.
    async fn lose_the_leader(&self) {
        // Until all have left the membership of two majorities, the old one alone can stop the group.
        let has_settled = |member: &Rc<Member>| {
            member.members().is_some_and(|(voters, _, is_joint)| !is_joint && voters.len() == self.all().len())
        };
        while !self.all().iter().all(has_settled) {
            self.sim.sleep_ms(20).await;
        }
        let Some(leader) = self.leader() else { return self.sim.fail("nobody leads a group that is well".to_owned()) };
        let began_ms = self.sim.now_ms();
        leader.kill();
        let others: Vec<_> = self.all().into_iter().filter(|member| member.node != leader.node).collect();
        while !self.propose(Rc::clone(self.rng.pick(&others))).await {
            self.sim.sleep_ms(20).await;
            if self.sim.now_ms() > began_ms + SETTLE_MS {
                let standing: Vec<_> =
                    others.iter().map(|member| (member.node.0, member.status(), member.members())).collect();
                self.sim.fail(format!("the group does not go on without its leader: {standing:?}"));
                break;
            }
        }
        let took_ms = self.sim.now_ms() - began_ms;
        self.sim.count("leaders lost", 1);
        self.sim.count("milliseconds without a leader", took_ms);
        if took_ms > FAILOVER_MS {
            self.sim.fail(format!("the group was without a leader for {took_ms} ms"));
        }
        leader.start();
    }

    /// All members come to hold the same, and new proposals are agreed everywhere.
    async fn settle(&self, before: usize) {
        let deadline_ms = self.sim.now_ms() + SETTLE_MS;
        while !self.agree_again().await {
            if self.sim.now_ms() > deadline_ms {
                let standing: Vec<_> = self.all().iter().map(|member| (member.node.0, member.status())).collect();
                return self.sim.fail(format!("the group does not come right in time: {standing:?}"));
            }
            self.sim.sleep_ms(100).await;
        }
        self.is_over.set(true);
        // What is under way ends.
        self.sim.sleep_ms(12_000).await;
        let answered: Vec<u64> = self.answered.borrow().iter().copied().collect();
        let refused: Vec<u64> = self.refused.borrow().iter().copied().collect();
        if answered.len() <= before {
            self.sim.fail("nothing was answered after the trouble".to_owned());
        }
        let mut hashes = BTreeSet::new();
        for member in self.all() {
            let Some((held, hash)) = member.held() else {
                self.sim.fail(format!("node {} is down in the end", member.node));
                continue;
            };
            hashes.insert(hash);
            if let Err(why) = check_end(member.node.0, &held, &answered, &refused) {
                self.sim.fail(format!("OWN7: {why}"));
            }
        }
        if hashes.len() != 1 {
            self.sim.fail(format!("OWN7: members hold {} different states in the end", hashes.len()));
        }
        self.sim.count("terms with a leader", self.setting.witness.leaders() as u64);
    }

    /// True when every member is up, in the group, and answers a proposal.
    async fn agree_again(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let Some((voters, learners, false)) = leader.members() else { return false };
        for member in self.all() {
            let node = member.node.0;
            let is_in = voters.contains(&node) || learners.contains(&node);
            if !is_in && self.leaving.borrow().contains(&node) {
                // Its removal took longer than anybody waited for it.
                self.retire(node);
                return false;
            }
            if member.has_lost_disk() && !member.is_up() {
                self.take_out(node, 5_000).await;
                return false;
            }
            if !voters.contains(&node) && !self.bring_in(node, 5_000).await {
                return false;
            }
            if !self.propose(member).await {
                return false;
            }
        }
        true
    }

    /// Takes everything down, so that no part outlives the world.
    fn end(&self) {
        for member in std::mem::take(&mut *self.members.borrow_mut()).into_values() {
            member.kill();
        }
    }
}
