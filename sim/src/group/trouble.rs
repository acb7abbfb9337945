//! What goes wrong in a group, and when. A majority is never without its disks; everything else may happen.

use std::rc::Rc;

use velum_protocol::id::NodeId;

use super::{
    World,
    member::{Member, Question},
};
use crate::env::disk::Loss;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// A process is killed.
    Kill,
    /// A machine loses power.
    PowerLoss,
    /// All machines do.
    AllLosePower,
    /// A process ends at some I/O.
    EndAtIo,
    /// A connection is cut.
    Reset,
    /// What one member sends another one does not arrive.
    BlockOneWay,
    /// Two members do not hear each other.
    BlockBoth,
    /// A member hears nobody, and nobody hears it.
    Isolate,
    /// A way is blocked and open in turns.
    Flap,
    /// A way takes long.
    SlowLink,
    /// Syncs take long.
    SlowDisk,
    /// The leader hands over.
    Transfer,
    /// A member goes for good, and another one comes.
    Replace,
    /// A member loses its disk while another one lags, and the leader is down for a while just then. It goes for good.
    LostVoter,
}

/// The kinds that are drawn, each as often as its weight says.
const KINDS: [(u32, Trouble); 13] = [
    (10, Trouble::Kill),
    (10, Trouble::PowerLoss),
    (2, Trouble::AllLosePower),
    (6, Trouble::EndAtIo),
    (8, Trouble::Reset),
    (10, Trouble::BlockOneWay),
    (6, Trouble::BlockBoth),
    (8, Trouble::Isolate),
    (4, Trouble::Flap),
    (6, Trouble::SlowLink),
    (4, Trouble::SlowDisk),
    (6, Trouble::Transfer),
    (4, Trouble::Replace),
];

impl World {
    /// One trouble after another. Each world knows a random half of the kinds.
    pub(super) async fn make_trouble(self: &Rc<Self>, for_ms: u64, only: Option<Trouble>) {
        let until_ms = self.sim.now_ms() + for_ms;
        let mut kinds: Vec<_> = KINDS.into_iter().filter(|_| self.rng.chance(500_000)).collect();
        if kinds.is_empty() {
            kinds = KINDS.to_vec();
        }
        if let Some(only) = only {
            kinds = vec![(1, only)];
        }
        let pause_ms_max = *self.rng.pick(&[300, 1_000, 3_000]);
        while self.sim.now_ms() < until_ms {
            self.sim.sleep_ms(self.rng.between(20, pause_ms_max)).await;
            // What ended by itself at an I/O starts again.
            for member in self.all() {
                if member.has_ended() {
                    member.kill();
                    member.start();
                }
            }
            let trouble = *self.rng.weighted(&kinds);
            self.strike(trouble).await;
        }
    }

    async fn strike(self: &Rc<Self>, trouble: Trouble) {
        let all = self.all();
        let member = Rc::clone(self.rng.pick(&all));
        let other = Rc::clone(self.rng.pick(&all));
        let (own, peer) = (Rc::clone(&member.machine().name), Rc::clone(&other.machine().name));
        let loss = *self.rng.pick(&[Loss::LoseAll, Loss::Pages, Loss::Torn, Loss::KeepAll]);
        let for_ms = self.rng.between(50, 4_000);
        self.sim.count("troubles", 1);
        match trouble {
            Trouble::Kill => self.down(&member, None, for_ms),
            Trouble::PowerLoss => self.down(&member, Some(loss), for_ms),
            Trouble::AllLosePower => all.iter().for_each(|member| self.down(member, Some(loss), for_ms)),
            Trouble::EndAtIo => member.machine().medium.faults.end_after.set(Some(self.rng.below(60))),
            Trouble::Reset => self.setting.around.wires.reset(&own, &peer),
            Trouble::BlockOneWay => self.block(&[(own, peer)], for_ms),
            Trouble::BlockBoth => self.block(&[(Rc::clone(&own), Rc::clone(&peer)), (peer, own)], for_ms),
            Trouble::Isolate => {
                let others = all.iter().map(|other| Rc::clone(&other.machine().name)).filter(|other| *other != own);
                let ways: Vec<_> =
                    others.flat_map(|other| [(Rc::clone(&own), Rc::clone(&other)), (other, Rc::clone(&own))]).collect();
                self.block(&ways, for_ms);
            }
            Trouble::Flap => {
                for _ in 0..self.rng.between(2, 8) {
                    self.block(&[(Rc::clone(&own), Rc::clone(&peer))], 150);
                    self.sim.sleep_ms(self.rng.between(160, 400)).await;
                }
            }
            Trouble::SlowLink => {
                let wires = Rc::clone(&self.setting.around.wires);
                wires.set_slow(&own, &peer, self.rng.between(20, 400));
                self.sim.later(for_ms, move || wires.set_slow(&own, &peer, 0));
            }
            Trouble::SlowDisk => {
                let medium = Rc::clone(&member.machine().medium);
                medium.faults.sync_ms_max.set(self.rng.between(20, 300));
                self.sim.later(for_ms, move || medium.faults.sync_ms_max.set(3));
            }
            Trouble::Transfer => {
                if let Some(leader) = self.leader() {
                    // Whether it comes to that is seen in the terms.
                    let _ = leader.ask(Question::Transfer(NodeId(member.node.0)), 500).await;
                }
            }
            Trouble::Replace => self.replace(member.node.0).await,
            Trouble::LostVoter => self.lose_a_voter().await,
        }
    }

    /// Of three members one lags, one loses its disk, and the leader goes down before the first has caught up: what was answered
    /// last is on the leader's disk alone. The lost one must not help the lagging one to lead.
    async fn lose_a_voter(self: &Rc<Self>) {
        let is_gone = |member: &&Rc<Member>| member.has_lost_disk() && !member.is_up();
        if let Some(gone) = self.all().iter().find(is_gone) {
            return self.replace(gone.node.0).await;
        }
        let Some(leader) = self.leader() else { return };
        let others: Vec<_> = self.all().into_iter().filter(|member| member.node != leader.node).collect();
        let [lagging, lost] = &others[..] else { return };
        let (own, names) = (&lagging.machine().name, [&leader.machine().name, &lost.machine().name]);
        let ways = names.iter().flat_map(|name| [(Rc::clone(own), Rc::clone(name)), (Rc::clone(name), Rc::clone(own))]);
        let lag_ms = self.rng.between(1_500, 3_000);
        self.block(&ways.collect::<Vec<_>>(), lag_ms);
        self.sim.sleep_ms(lag_ms).await;
        self.down(&leader, None, self.rng.between(5_000, 8_000));
        self.sim.count("disks lost", 1);
        lost.lose_disk();
        lost.start();
        self.sim.sleep_ms(8_000).await;
        if !lost.is_up() {
            self.replace(lost.node.0).await;
        }
    }

    /// A member is down for a while.
    fn down(&self, member: &Rc<Member>, loss: Option<Loss>, for_ms: u64) {
        if !member.is_up() {
            return;
        }
        match loss {
            Some(loss) => member.lose_power(loss),
            None => member.kill(),
        }
        let member = Rc::downgrade(member);
        self.sim.later(for_ms, move || {
            if let Some(member) = member.upgrade().filter(|member| !member.is_up() && !member.is_retired()) {
                member.start();
            }
        });
    }

    fn block(&self, ways: &[(Rc<str>, Rc<str>)], for_ms: u64) {
        for (from, to) in ways.iter().filter(|(from, to)| from != to) {
            let wires = Rc::clone(&self.setting.around.wires);
            wires.set_blocked(from, to, true);
            let (from, to) = (Rc::clone(from), Rc::clone(to));
            self.sim.later(for_ms, move || wires.set_blocked(&from, &to, false));
        }
    }

    /// A member goes for good and another one comes, if the group can do it now.
    async fn replace(self: &Rc<Self>, node: u64) {
        if self.all().len() < 3 || !self.take_out(node, 4_000).await {
            return;
        }
        self.sim.count("members replaced", 1);
        let newcomer = self.newcomer(false);
        // If it takes longer, it is brought in once all is well.
        self.bring_in(newcomer, 4_000).await;
    }

    /// Nothing goes wrong any more.
    pub(super) fn heal(&self) {
        let names: Vec<_> = self.all().iter().map(|member| Rc::clone(&member.machine().name)).collect();
        for from in &names {
            for to in &names {
                self.setting.around.wires.set_blocked(from, to, false);
                self.setting.around.wires.set_slow(from, to, 0);
            }
        }
        for member in self.all() {
            let faults = &member.machine().medium.faults;
            faults.end_after.set(None);
            faults.sync_ms_max.set(3);
            if member.has_ended() {
                member.kill();
            }
            if !member.is_up() {
                member.start();
            }
        }
    }
}
