//! How a node of several goes down and comes back, and who looks after it.

use std::rc::Rc;

use futures_util::future::select;
use velum_protocol::admin::{Request, Response};

use super::{
    World,
    host::{Condition, Host},
};
use crate::{env::disk::Loss, guest::workload::Guest, history::Cut};

/// How often a node is looked after.
const LOOK_MS: u64 = 400;

/// How long one attempt to read a whole volume may take.
const SWEEP_LIMIT_MS: u64 = 60_000;

/// Machines lose what they have not synced this long after each other, where another node takes over.
const LOSSES_APART_MS: u64 = 30_000;

/// How a node goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fall {
    /// Its process is killed.
    Kill,
    /// Its machine loses power.
    Power(Loss),
    /// Its process is killed, and the unsynced end of its journal rots.
    Rot,
    /// An operator stops it.
    Stop,
}

impl Fall {
    /// Whether acked writes that were not synced may be gone.
    fn loses(self) -> bool {
        matches!(self, Self::Power(_) | Self::Rot)
    }
}

impl World {
    /// Starts a node again when it has ended or works no more, as its supervisor would.
    pub(super) async fn look_after(self: Rc<Self>, host: Rc<Host>) {
        while !host.upkeep.is_retired.get() && !self.sim.has_failed() {
            drop(select(Box::pin(host.ended()), Box::pin(self.sim.sleep_ms(LOOK_MS))).await);
            if host.upkeep.is_down.get() || host.upkeep.is_retired.get() {
                // Not before time has passed: what has ended stays so until somebody takes it down.
                self.sim.sleep_ms(LOOK_MS).await;
                continue;
            }
            let fall = match host.condition() {
                _ if host.has_ended() => Some(host.upkeep.at_next_end.take().map_or(Fall::Kill, Fall::Power)),
                Condition::Failed(_) => Some(Fall::Kill),
                Condition::Up if self.is_poisoned(&host).await => Some(Fall::Kill),
                Condition::Up | Condition::Down | Condition::Starting => None,
            };
            if let Some(fall) = fall {
                self.fall(vec![Rc::clone(&host)], fall, 200);
            }
        }
    }

    pub(super) async fn is_poisoned(&self, host: &Host) -> bool {
        let status = host.admin(Request::NodeStatus, 10_000).await;
        let is_poisoned = matches!(status, Some(Ok(Response::Node(status))) if status.journal.poisoned);
        self.sim.count("poisoned journals", u64::from(is_poisoned));
        is_poisoned
    }

    /// Nodes go down at once, and come up again after a while. Those that are down already are left alone.
    pub(super) fn fall(self: &Rc<Self>, hosts: Vec<Rc<Host>>, fall: Fall, down_ms: u64) {
        let stands = |host: &Rc<Host>| !host.upkeep.is_down.get() && !host.upkeep.is_retired.get();
        let hosts: Vec<_> = hosts.into_iter().filter(stands).collect();
        let fall = if fall.loses() && (self.is_mending(&hosts) || !self.may_lose(&hosts)) { Fall::Kill } else { fall };
        if !hosts.is_empty() {
            hosts.iter().for_each(|host| host.upkeep.is_down.set(true));
            self.spawn(|world| world.go_through(hosts, fall, down_ms));
        }
    }

    /// What a loss left is read before the next one, or nobody could tell what either left: of the volumes of these nodes or, where
    /// another node takes over, of all.
    fn is_mending(&self, hosts: &[Rc<Host>]) -> bool {
        if self.options.owners_must_return {
            hosts.iter().any(|host| host.upkeep.is_mending.get())
        } else {
            self.several.mending.get() > 0
        }
    }

    /// Whether a loss of these machines' unsynced data, or of their disks, is within what is promised. Where another node takes over
    /// a volume survives the loss of one machine at a time, the others having had time to make up for it; that of all at once
    /// is another matter.
    pub(super) fn may_lose(&self, hosts: &[Rc<Host>]) -> bool {
        if self.options.owners_must_return {
            return true;
        }
        let now_ms = self.sim.now_ms();
        let is_first = self.several.lost_at_ms.get().is_none_or(|lost_ms| now_ms - lost_ms > LOSSES_APART_MS);
        let may = self.are_all(hosts) || hosts.len() == 1 && is_first;
        if may {
            self.several.lost_at_ms.set(Some(now_ms));
        }
        may
    }

    /// True when no node but these runs.
    fn are_all(&self, hosts: &[Rc<Host>]) -> bool {
        let falls = |host: &Rc<Host>| hosts.iter().any(|fallen| Rc::ptr_eq(fallen, host));
        self.hosts().iter().all(|host| falls(host) || host.upkeep.is_down.get())
    }

    async fn go_through(self: Rc<Self>, hosts: Vec<Rc<Host>>, fall: Fall, down_ms: u64) {
        let guests = self.guests_of(&hosts);
        if fall.loses() {
            self.several.mending.set(self.several.mending.get() + 1);
            hosts.iter().for_each(|host| host.upkeep.is_mending.set(true));
            guests.iter().for_each(|guest| guest.gate.close());
        }
        for host in &hosts {
            self.take_down(host, fall).await;
        }
        guests.iter().for_each(|guest| guest.history.borrow_mut().killed());
        if fall.loses() {
            self.around.wires.cut_guests();
            while guests.iter().any(|guest| guest.in_flight() > 0) {
                self.sim.sleep_ms(5).await;
            }
        }
        let cut_at = self.steps.next();
        for host in hosts.iter().filter(|_| self.options.owners_must_return) {
            self.check_journal(host).await;
        }
        self.sim.sleep_ms(down_ms).await;
        for host in hosts.iter().filter(|host| !host.upkeep.is_retired.get()) {
            host.start(host.upkeep.task.borrow().clone());
            host.upkeep.is_down.set(false);
        }
        if fall.loses() {
            for guest in &guests {
                self.mend(guest, cut_at).await;
            }
            hosts.iter().for_each(|host| host.upkeep.is_mending.set(false));
            self.several.mending.set(self.several.mending.get() - 1);
        }
    }

    async fn take_down(&self, host: &Host, fall: Fall) {
        match fall {
            Fall::Kill => {
                host.kill();
                self.sim.count("kills", 1);
            }
            Fall::Power(loss) => {
                host.lose_power(loss);
                self.sim.count(loss.tallied(), 1);
            }
            Fall::Rot => {
                let rotten = host.rot_end();
                self.sim.count("rot in the journal's end", u64::from(rotten));
            }
            Fall::Stop => {
                host.stop(30_000).await;
                self.sim.count("clean restarts", 1);
            }
        }
    }

    /// Guests who lose something when these nodes go down at once: those of their volumes, or, where another node takes over,
    /// nobody before all nodes are gone.
    fn guests_of(&self, hosts: &[Rc<Host>]) -> Vec<Rc<Guest>> {
        let all_fall = self.are_all(hosts);
        let owns = |guest: &Rc<Guest>| hosts.iter().any(|host| self.owner_number(guest) == Some(host.node()));
        let loses = |guest: &Rc<Guest>| if self.options.owners_must_return { owns(guest) } else { all_fall };
        self.guests.iter().filter(|guest| loses(guest)).cloned().collect()
    }

    /// Reads what a loss left of a volume, however long its node needs others for its start, and lets its guest go on.
    async fn mend(&self, guest: &Guest, cut_at: u64) {
        while !self.sim.has_failed() {
            if let Ok(image) = guest.sweep(SWEEP_LIMIT_MS, false).await {
                self.cut(guest, (cut_at, Cut::PowerLoss), image).await;
                break;
            }
            self.sim.sleep_ms(LOOK_MS).await;
        }
        guest.gate.open();
    }
}
