//! Worlds of several nodes: how the cluster comes together, what goes wrong among its nodes, and how a lost one is replaced.
//!
//! Troubles do not wait for each other: several nodes may be down, cut off or paused at once, and whoever looks after a node
//! ([`fall`](super::fall)) starts it again whatever happens to the others. What is then left to judge is whether the cluster
//! keeps its promises meanwhile, and whether it comes right once everything has ended.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use velum_protocol::{
    admin::{MemberRole, MoveVolume, Request, Response},
    id::NodeId,
};

use super::{START_LIMIT_MS, World, agreement::Seen, fall::Fall, host::Condition, host::Host, program::Task};
use crate::{
    checker::liv1::{REST_MS_MAX, TAKEOVER_MS_MAX, TOGETHER_MS_MAX},
    plan::{Event, Trouble},
};

/// Longer than a change of raft's group takes once everybody is there.
const CHANGE_MS: u64 = 3_000;

/// How often operators look whether there is something for them to do.
const OPERATOR_LOOK_MS: u64 = 500;

/// What is kept about several nodes.
#[derive(Default)]
pub(super) struct Several {
    /// Each node has somebody who looks after it.
    tended: Cell<bool>,
    /// Losses whose leavings guests wait to see.
    pub(super) mending: Cell<u64>,
    /// When a machine lost last what it had not synced.
    pub(super) lost_at_ms: Cell<Option<u64>>,
    /// A lost node is being replaced.
    replacing: Cell<bool>,
    /// No trouble comes any more.
    healed: Cell<bool>,
    /// Nodes that were ended after the last trouble.
    pub(super) falls_at_rest: Cell<u64>,
    /// What was seen of agreement.
    pub(super) seen: RefCell<Seen>,
}

impl Several {
    /// True while there are several nodes, each with somebody who looks after it.
    pub(super) fn is_tended(&self) -> bool {
        self.tended.get()
    }

    /// All nodes are lost; what follows is one node's.
    pub(super) fn leave(&self) {
        self.tended.set(false);
        self.seen.replace(Seen::default());
    }
}

impl World {
    pub(super) fn spawn<F: Future<Output = ()> + 'static>(self: &Rc<Self>, work: impl FnOnce(Rc<Self>) -> F) {
        drop(self.sim.spawn(work(Rc::clone(self))));
    }

    /// Lets nodes join the first one, in good weather, until there are as many as the options say.
    pub(super) async fn gather(self: &Rc<Self>) -> bool {
        self.several.tended.set(true);
        self.spawn(Self::watch_agreement);
        self.watch_serving();
        let first = self.host();
        self.spawn(|world| world.look_after(first));
        for _ in 1..self.options.nodes {
            let Some(host) = self.invite(START_LIMIT_MS).await else {
                self.sim.fail("nobody gives a token in good weather".to_owned());
                return false;
            };
            if !self.within(START_LIMIT_MS, || host.condition() == Condition::Up).await {
                self.sim.fail(format!("node {} does not join in good weather: {:?}", host.node(), host.condition()));
                return false;
            }
        }
        let is_whole = self.is_whole(START_LIMIT_MS).await;
        if !is_whole {
            self.sim.fail("not all nodes get a vote in good weather".to_owned());
        }
        is_whole
    }

    /// True as soon as it is so within `limit_ms`.
    pub(super) async fn within(&self, limit_ms: u64, is_so: impl Fn() -> bool) -> bool {
        let until_ms = self.sim.now_ms() + limit_ms;
        while !is_so() {
            if self.sim.now_ms() >= until_ms || self.sim.has_failed() {
                return false;
            }
            self.sim.sleep_ms(50).await;
        }
        true
    }

    /// True as soon as raft's voters are the nodes that there are.
    async fn is_whole(&self, limit_ms: u64) -> bool {
        let until_ms = self.sim.now_ms() + limit_ms;
        while self.sim.now_ms() < until_ms && !self.sim.has_failed() {
            if let Some(Ok(Response::Cluster(status))) = self.host().admin(Request::ClusterStatus, 10_000).await {
                let votes = |role| matches!(role, MemberRole::Leader | MemberRole::Voter);
                let voters: Vec<_> =
                    status.nodes.iter().filter(|node| votes(node.role)).map(|node| node.node).collect();
                let hosts: Vec<_> = self.hosts().iter().map(|host| host.node().0).collect();
                if status.nodes.len() == hosts.len() && voters == hosts {
                    return true;
                }
            }
            self.sim.sleep_ms(100).await;
        }
        false
    }

    /// A machine with a node that joins under the number that a token brings; none when nobody gives a token within `limit_ms`.
    async fn invite(self: &Rc<Self>, limit_ms: u64) -> Option<Rc<Host>> {
        let until_ms = self.sim.now_ms().saturating_add(limit_ms);
        while self.sim.now_ms() < until_ms && !self.sim.has_failed() {
            if let Some(Ok(Response::Token(token))) = self.host().admin(Request::OfferPlace, 30_000).await {
                let name = format!("node-{}", token.node);
                let host = Host::new(&self.around, (&name, token.node), &self.options, self.secret, self.planted);
                let host = Rc::new(host);
                host.upkeep.task.replace(Task::Join { token: token.token });
                self.watch.disk(&host.machine().medium);
                self.hosts.borrow_mut().push(Rc::clone(&host));
                self.machines.set(self.machines.get().max(token.node));
                self.tell_guests();
                host.start(host.upkeep.task.borrow().clone());
                let tended = Rc::clone(&host);
                self.spawn(|world| world.look_after(tended));
                return Some(host);
            }
            self.sim.sleep_ms(500).await;
        }
        None
    }

    /// Runs the plan to its end.
    pub(super) async fn direct_several(self: &Rc<Self>) {
        let began_ms = self.sim.now_ms();
        self.spawn(Self::operate);
        for event in &self.events {
            let wait_ms = (began_ms + event.at_ms).saturating_sub(self.sim.now_ms());
            self.sim.sleep_ms(wait_ms).await;
            if self.sim.has_failed() {
                return;
            }
            self.strike(event);
        }
        self.sim.sleep_ms((began_ms + self.options.guests_ms).saturating_sub(self.sim.now_ms())).await;
        self.sim.count("sessions that troubles ended", self.guests.iter().map(|guest| guest.lost_sessions()).sum());
    }

    /// What operators do while the plan happens.
    async fn operate(self: Rc<Self>) {
        while !self.several.healed.get() {
            self.tend_place().await;
            self.sim.sleep_ms(OPERATOR_LOOK_MS).await;
        }
    }

    fn strike(self: &Rc<Self>, Event { node, trouble, for_ms, .. }: &Event) {
        let for_ms = *for_ms;
        self.sim.event("trouble", &format!("{trouble:?}"), &[for_ms, *node as u64]);
        let hosts = self.hosts();
        let (host, next) = (&hosts[node % hosts.len()], &hosts[(node + 1) % hosts.len()]);
        let one = || vec![Rc::clone(host)];
        match trouble {
            Trouble::Kill => self.fall(one(), Fall::Kill, for_ms),
            Trouble::PowerLoss(loss) => self.fall(one(), Fall::Power(*loss), for_ms),
            Trouble::RottenEnd => self.fall(one(), Fall::Rot, for_ms),
            Trouble::CleanRestart => self.fall(one(), Fall::Stop, for_ms),
            Trouble::KillAtIo(after) => {
                host.upkeep.at_next_end.set(None);
                host.machine().medium.faults.end_after.set(Some(*after));
            }
            Trouble::PowerLossAtIo(after, loss) => {
                host.upkeep.at_next_end.set(Some(*loss));
                host.machine().medium.faults.end_after.set(Some(*after));
            }
            Trouble::AllKilled => self.fall(hosts, Fall::Kill, for_ms),
            Trouble::AllLosePower(loss) => self.fall(hosts, Fall::Power(*loss), for_ms),
            Trouble::LeaderAndOwnerDie => self.fall(self.leader_and_owner(), Fall::Kill, for_ms),
            Trouble::LeadHandedOver => self.hand_over(host.node()),
            Trouble::VolumesMoved => self.move_volumes(host.node()),
            Trouble::NodeReplaced => {
                let lost = Rc::clone(host);
                self.spawn(|world| world.replace(lost));
            }
            Trouble::Flush => self.spawn(|world| async move { drop(world.flush(60_000).await) }),
            Trouble::Paused => self.pause(host, for_ms),
            Trouble::Isolated
            | Trouble::Split
            | Trouble::BlockedOneWay
            | Trouble::Flapping
            | Trouble::SlowLink(_)
            | Trouble::ResetLinks => self.trouble_ways((host, next), trouble, for_ms),
            around => self.trouble_around(host, around, for_ms),
        }
    }

    /// Whoever leads in the newest term, as far as can be seen.
    fn leader(&self) -> Option<Rc<Host>> {
        let led = |host: &Rc<Host>| Some(host.seen()?.raft()).filter(|raft| raft.is_leader).map(|raft| raft.term);
        self.hosts()
            .into_iter()
            .filter_map(|host| Some((led(&host)?, host)))
            .max_by_key(|(term, _)| *term)
            .map(|(_, host)| host)
    }

    fn leader_and_owner(&self) -> Vec<Rc<Host>> {
        let mut hosts: Vec<_> =
            self.leader().into_iter().chain(self.guests.first().map(|guest| self.owner(guest))).collect();
        hosts.dedup_by_key(|host| host.node());
        self.sim.count("leaders and owners lost", 1);
        hosts
    }

    fn hand_over(self: &Rc<Self>, to: NodeId) {
        if let Some(leader) = self.leader() {
            self.spawn(|world| async move {
                // Whether it comes to that is the cluster's business.
                if let Some(Ok(_)) = leader.admin(Request::TransferLead { node: to.0 }, 20_000).await {
                    world.sim.count("leads handed over", 1);
                }
            });
        }
    }

    fn move_volumes(self: &Rc<Self>, to: NodeId) {
        for guest in &self.guests {
            let (owner, name) = (self.owner(guest), guest.export.clone());
            self.spawn(|world| async move {
                let request = Request::MoveVolume { name, to: MoveVolume { node: to.0 } };
                if owner.node() != to && matches!(owner.admin(request, 20_000).await, Some(Ok(_))) {
                    world.sim.count("volumes moved", 1);
                }
            });
        }
    }

    fn pause(&self, host: &Host, for_ms: u64) {
        if let Some(life) = host.life() {
            self.sim.event("pause", &host.machine().name, &[for_ms]);
            self.sim.count("paused nodes", 1);
            life.pause();
            self.sim.later(for_ms, move || life.resume());
        }
    }

    fn trouble_ways(self: &Rc<Self>, (host, next): (&Rc<Host>, &Rc<Host>), trouble: &Trouble, for_ms: u64) {
        let (own, peer) = (Rc::clone(&host.machine().name), Rc::clone(&next.machine().name));
        let wires = Rc::clone(&self.around.wires);
        match trouble {
            Trouble::Isolated => {
                self.sim.count("isolated nodes", 1);
                self.part(&[own], for_ms);
            }
            Trouble::Split => {
                self.sim.count("split clusters", 1);
                self.part(&[own, peer], for_ms);
            }
            Trouble::BlockedOneWay => {
                self.sim.count("ways blocked", 1);
                self.block(&own, &peer, for_ms);
            }
            Trouble::Flapping => {
                self.sim.count("flapping ways", 1);
                let until_ms = self.sim.now_ms() + for_ms;
                self.spawn(|world| async move {
                    while world.sim.now_ms() < until_ms && !world.several.healed.get() {
                        world.block(&own, &peer, 150);
                        world.block(&peer, &own, 150);
                        world.sim.sleep_ms(world.rng.between(160, 600)).await;
                    }
                });
            }
            Trouble::SlowLink(slow_ms) => {
                self.sim.count("slow ways", 1);
                wires.set_slow(&own, &peer, *slow_ms);
                self.sim.later(for_ms, move || wires.set_slow(&own, &peer, 0));
            }
            _ => {
                self.sim.count("links reset", 1);
                wires.reset(&own, &peer);
            }
        }
    }

    /// Those on `side` and all others do not reach each other.
    fn part(&self, side: &[Rc<str>], for_ms: u64) {
        for other in self.hosts().iter().map(|other| &other.machine().name).filter(|other| !side.contains(other)) {
            for own in side {
                self.block(own, other, for_ms);
                self.block(other, own, for_ms);
            }
        }
    }

    fn block(&self, from: &Rc<str>, to: &Rc<str>, for_ms: u64) {
        let (wires, from, to) = (Rc::clone(&self.around.wires), Rc::clone(from), Rc::clone(to));
        wires.set_blocked(&from, &to, true);
        self.sim.later(for_ms, move || wires.set_blocked(&from, &to, false));
    }

    /// A node is lost with its disk: it is removed, and another one joins under a new number. One that owns a volume is left
    /// alone while nobody takes over.
    async fn replace(self: Rc<Self>, lost: Rc<Host>) {
        let must_stay = self.options.owners_must_return;
        let owns = must_stay && self.guests.iter().any(|guest| self.owner_number(guest) == Some(lost.node()));
        let is_good_time = lost.condition() == Condition::Up && !lost.upkeep.is_down.get() && self.hosts().len() > 2;
        if owns || !is_good_time || self.several.replacing.get() || !self.may_lose(&[Rc::clone(&lost)]) {
            return;
        }
        self.several.replacing.set(true);
        self.sim.event("lost", &lost.machine().name, &[]);
        self.sim.count("nodes replaced", 1);
        lost.upkeep.is_retired.set(true);
        lost.kill();
        self.hosts.borrow_mut().retain(|host| !Rc::ptr_eq(host, &lost));
        self.tell_guests();
        let is_out = || {
            let retired = |host: &Rc<Host>| {
                let state = host
                    .seen()
                    .map(|node| node.metadata().with(|state| state.nodes.get(&lost.node()).map(|entry| entry.retired)));
                state.flatten() == Some(true)
            };
            self.hosts().iter().any(retired)
        };
        while !is_out() && !self.sim.has_failed() {
            drop(self.host().admin(Request::RemoveNode { node: lost.node().0 }, 30_000).await);
            self.sim.sleep_ms(500).await;
        }
        // The next one is not lost before this one's successor votes, or the nodes that are left may be too few.
        let _ = self.invite(u64::MAX).await;
        while !self.is_whole(START_LIMIT_MS).await && !self.sim.has_failed() {
            self.sim.sleep_ms(OPERATOR_LOOK_MS).await;
        }
        self.several.replacing.set(false);
    }

    /// Opens all ways and lets every node take its steps.
    pub(super) fn heal_ways(&self) {
        self.several.healed.set(true);
        let hosts = self.hosts();
        for from in hosts.iter().map(|host| &host.machine().name) {
            for to in hosts.iter().map(|host| &host.machine().name) {
                self.around.wires.set_blocked(from, to, false);
                self.around.wires.set_slow(from, to, 0);
            }
        }
        hosts.iter().filter_map(|host| host.life()).for_each(|life| life.resume());
    }

    /// LIV1: every node serves again, what was to be replaced is, and guests have seen what losses left.
    pub(super) async fn came_together(self: &Rc<Self>) -> bool {
        for host in self.hosts() {
            if self.is_poisoned(&host).await {
                self.fall(vec![host], Fall::Kill, 100);
                self.count_fall_at_rest();
            }
        }
        let is_up = |host: &Rc<Host>| host.is_well() && !host.upkeep.is_down.get();
        let all_up = || !self.several.replacing.get() && self.hosts().iter().all(is_up);
        if !self.within(TOGETHER_MS_MAX, all_up).await || !self.is_whole(TOGETHER_MS_MAX).await {
            let standing = |host: &Rc<Host>| (host.node().0, host.condition(), host.seen().map(|node| node.raft()));
            let standing: Vec<_> = self.hosts().iter().map(standing).collect();
            self.sim.fail(format!("LIV1 not every node serves and votes after the last trouble: {standing:?}"));
            return false;
        }
        if !self.within(REST_MS_MAX, || self.several.mending.get() == 0).await {
            self.sim.fail("LIV1 a volume cannot be read after its node lost power".to_owned());
            return false;
        }
        self.options.owners_must_return || self.is_taken_over(all_up).await
    }

    fn count_fall_at_rest(&self) {
        self.several.falls_at_rest.set(self.several.falls_at_rest.get() + 1);
    }

    /// LIV1: while the owner of a volume is down, another node serves it.
    async fn is_taken_over(&self, all_up: impl Fn() -> bool) -> bool {
        for guest in &self.guests {
            // A change of the group is over by then: in the middle of one two majorities are needed, and the owner may be of both.
            self.sim.sleep_ms(CHANGE_MS).await;
            let owner = self.owner(guest);
            owner.upkeep.is_down.set(true);
            owner.kill();
            self.count_fall_at_rest();
            let is_served = guest.is_served(TAKEOVER_MS_MAX).await;
            owner.start(owner.upkeep.task.borrow().clone());
            owner.upkeep.is_down.set(false);
            if !is_served {
                self.sim.fail(format!("LIV1 nobody takes volume {} over from node {}", guest.export, owner.node()));
                return false;
            }
            self.sim.count("takeovers at rest", 1);
            if !self.within(TOGETHER_MS_MAX, &all_up).await {
                self.sim.fail(format!("LIV1 node {} does not come back to its cluster", owner.node()));
                return false;
            }
        }
        true
    }
}
