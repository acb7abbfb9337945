//! Lets the plan happen: each trouble at its time, and its end when it has lasted.

use std::rc::Rc;

use futures_util::future::{Either, select};
use velum_protocol::admin::{Request, Response};

use super::{Task, World, host::Condition, host::Host};
use crate::{
    checker::seq6,
    env::{cloud::LIES, disk::Loss},
    guest::{pattern::Cell, workload::Guest},
    history::Cut,
    plan::{Event, Trouble},
};

/// How often the world looks whether its node still works.
const LOOK_MS: u64 = 400;

/// How long one attempt to read a whole volume may take, and how many there are: troubles go on meanwhile, and all end by
/// themselves. From far clouds and without a cache to speak of, a volume in small pieces takes most of a minute.
const SWEEP_LIMIT_MS: u64 = 90_000;
const SWEEPS_MAX: u32 = 6;

/// About how many I/Os it takes to write down what was recovered and to start from it.
const RECOVERY_IOS: u64 = 60;

/// Starts that may fail though nothing is amiss any more.
const FAILED_STARTS_MAX: u32 = 2;

impl World {
    /// Runs the plan to its end.
    pub(super) async fn direct(&self) {
        let began_ms = self.sim.now_ms();
        let mut at_next_end = None;
        for event in &self.events {
            if self.await_event(began_ms + event.at_ms, &mut at_next_end).await {
                self.happen(event, &mut at_next_end).await;
            }
            if self.sim.has_failed() {
                return;
            }
        }
        self.await_event(began_ms + self.options.guests_ms, &mut at_next_end).await;
    }

    /// Waits until `at_ms`, and meanwhile deals with a process that ends at an I/O or works no more. `false` when the world
    /// is broken already.
    async fn await_event(&self, at_ms: u64, at_next_end: &mut Option<Loss>) -> bool {
        while self.sim.now_ms() < at_ms {
            let wait = self.sim.sleep_ms((at_ms - self.sim.now_ms()).min(LOOK_MS));
            let host = self.host();
            match select(Box::pin(host.ended()), Box::pin(wait)).await {
                Either::Left(_) => match at_next_end.take() {
                    Some(loss) => self.lose_power(loss, 100).await,
                    None => self.restart_after(100).await,
                },
                Either::Right(_) => self.look().await,
            }
            if self.sim.has_failed() {
                return false;
            }
        }
        true
    }

    /// A node that has poisoned its journal, or has given up, is started anew, as its supervisor would.
    pub(super) async fn look(&self) {
        if self.several.is_tended() {
            return self.tend_place().await;
        }
        let host = self.host();
        match host.condition() {
            // Nobody saw it, for the world was busy with something else.
            _ if host.has_ended() => self.restart_after(200).await,
            Condition::Failed(_) => self.restart_after(200).await,
            Condition::Up => {
                let status = host.admin(Request::NodeStatus, 10_000).await;
                if matches!(status, Some(Ok(Response::Node(status))) if status.journal.poisoned) {
                    self.sim.count("poisoned journals", 1);
                    self.restart_after(200).await;
                }
            }
            Condition::Down | Condition::Starting => {}
        }
        self.tend_place().await;
    }

    /// Kills what is left of the process and starts it again until it serves.
    pub(super) async fn restart_after(&self, down_ms: u64) {
        self.host().kill();
        self.sim.count("kills", 1);
        self.note_killed();
        self.check_journal(&self.host()).await;
        self.sim.sleep_ms(down_ms).await;
        self.bring_up(Task::Up).await;
    }

    /// Looks at what the next start will find in the journal of a node that is down.
    pub(super) async fn check_journal(&self, host: &Host) {
        let Some(cluster) = self.watch.cluster() else { return };
        for (volume, journaled) in host.journaled(cluster).await.unwrap_or_default() {
            self.watch.check_journal(volume, &journaled);
        }
    }

    fn note_killed(&self) {
        for guest in &self.guests {
            guest.history.borrow_mut().killed();
        }
    }

    /// Starts the node until it serves. Failures are forgiven while the disk is in trouble, and for some time after. Two are
    /// always: a recovery may take most of a minute, and then die as it was meant to, or meet a failure that was due long since.
    pub(super) async fn bring_up(&self, task: Task) {
        let host = self.host();
        let (mut patience_ms, mut failures) = (120_000_i64, 0);
        loop {
            let began_ms = self.sim.now_ms();
            host.start(task.clone());
            if self.await_up(super::START_LIMIT_MS).await {
                return;
            }
            let why = host.condition();
            self.sim.count("failed starts", 1);
            host.kill();
            self.note_killed();
            self.sim.sleep_ms(500).await;
            if self.fair_weather(&host) {
                patience_ms -= (self.sim.now_ms() - began_ms) as i64 * 5;
                failures += 1;
            }
            if patience_ms <= 0 && failures > FAILED_STARTS_MAX {
                return self.sim.fail(format!("LIV1 the node does not start any more: {why:?}"));
            }
        }
    }

    /// True when neither the disk nor a quorum of clouds is in trouble.
    fn fair_weather(&self, host: &Host) -> bool {
        let faults = &host.machine().medium.faults;
        let disk_is_well = faults.sync_error_after.get().is_none()
            && faults.write_error_after.get().is_none()
            && faults.capacity_bytes.get() == u64::MAX
            && faults.read_error_ppm.get() == 0;
        let up = self.around.clouds.values().filter(|cloud| cloud.is_up()).count();
        disk_is_well && up > self.options.clouds / 2
    }

    /// The machine loses power; guests see what is left before they go on.
    pub(super) async fn lose_power(&self, loss: Loss, down_ms: u64) {
        self.hold_guests();
        self.host().lose_power(loss);
        self.sim.count(loss.tallied(), 1);
        self.begin_after_loss(down_ms).await;
    }

    /// The process is killed and the unsynced end of its journal rots, which may cost as much as a loss of power.
    async fn rot_end(&self, down_ms: u64) {
        self.hold_guests();
        let rotten = self.host().rot_end();
        self.sim.count("rot in the journal's end", u64::from(rotten));
        self.begin_after_loss(down_ms).await;
    }

    /// Lets guests see what is left when what was not synced may be lost.
    async fn begin_after_loss(&self, down_ms: u64) {
        self.note_killed();
        self.drain_guests().await;
        let cut_at = self.steps.next();
        self.check_journal(&self.host()).await;
        self.sim.sleep_ms(down_ms).await;
        self.bring_up(Task::Up).await;
        self.begin_era(cut_at, Cut::PowerLoss).await;
    }

    /// Tells guests where nodes are.
    pub(super) fn tell_guests(&self) {
        let doors: Vec<_> = self.hosts().iter().map(|host| host.door()).collect();
        for guest in &self.guests {
            guest.doors.borrow_mut().clone_from(&doors);
        }
    }

    fn hold_guests(&self) {
        for guest in &self.guests {
            guest.gate.close();
        }
    }

    /// Waits until every request of a dead process has got its answer or its end.
    async fn drain_guests(&self) {
        while self.around.wires.cut_one() {
            self.sim.sleep_ms(1).await;
        }
        while self.guests.iter().any(|guest| guest.in_flight() > 0) {
            self.sim.sleep_ms(5).await;
        }
    }

    /// Reads what the volumes hold after a loss, and lets guests go on from there.
    async fn begin_era(&self, cut_at: u64, cut: Cut) {
        for guest in &self.guests {
            let Some(image) = self.read_whole(guest, cut).await else { return };
            self.cut(guest, (cut_at, cut), image).await;
        }
        for guest in &self.guests {
            guest.gate.open();
        }
    }

    pub(super) async fn cut(&self, guest: &Guest, (cut_at, cut): (u64, Cut), image: Vec<Cell>) {
        guest.history.borrow_mut().cut(cut_at, cut, image);
        self.note_lineage(guest).await;
    }

    pub(super) async fn note_lineage(&self, guest: &Guest) {
        let request = Request::ShowVolume { name: guest.export.clone() };
        if let Some(Ok(Response::Volume(status))) = self.owner(guest).admin(request, 10_000).await {
            if let Err(why) = seq6::check_shown(guest.history.borrow().sectors(), status.size_bytes) {
                self.sim.fail(format!("SEQ6 volume {}: {why}", guest.export));
            }
            guest.history.borrow_mut().shown_lineage(status.lineage);
        }
    }

    async fn read_whole(&self, guest: &Guest, cut: Cut) -> Option<Vec<Cell>> {
        for attempt in 1.. {
            match guest.sweep(SWEEP_LIMIT_MS, false).await {
                _ if self.sim.has_failed() => break,
                Ok(image) => return Some(image),
                Err(error) if attempt == SWEEPS_MAX => self.sim.fail(format!("LIV1 after {cut:?}: {error}")),
                Err(_) => self.look().await,
            }
        }
        None
    }

    async fn happen(&self, event: &Event, at_next_end: &mut Option<Loss>) {
        let for_ms = event.for_ms;
        self.sim.event("trouble", &format!("{:?}", event.trouble), &[for_ms]);
        let host = self.host();
        let faults = &host.machine().medium.faults;
        match &event.trouble {
            Trouble::Kill => self.restart_after(for_ms).await,
            Trouble::KillAtIo(after) => {
                *at_next_end = None;
                faults.end_after.set(Some(*after));
            }
            Trouble::PowerLoss(loss) => self.lose_power(*loss, for_ms).await,
            Trouble::RottenEnd => self.rot_end(for_ms).await,
            Trouble::PowerLossAtIo(after, loss) => {
                *at_next_end = Some(*loss);
                faults.end_after.set(Some(*after));
            }
            Trouble::CleanRestart => {
                host.stop(30_000).await;
                self.note_killed();
                self.sim.count("clean restarts", 1);
                self.sim.sleep_ms(for_ms).await;
                self.bring_up(Task::Up).await;
            }
            Trouble::Flush => drop(self.flush(60_000).await),
            Trouble::LostMachine { without } => self.lose_machine(*without).await,
            around => self.trouble_around(&host, around, for_ms),
        }
        if self.rng.chance(200_000) {
            for guest in &self.guests {
                drop(self.watch.sample(guest, &|_| true));
            }
        }
    }

    /// Troubles that ask for nothing to be done: they come, and go by themselves.
    pub(super) fn trouble_around(&self, host: &Rc<Host>, trouble: &Trouble, for_ms: u64) {
        match trouble {
            Trouble::CutConnection => {
                self.around.wires.cut_one();
                self.sim.count("cut connections", 1);
            }
            Trouble::StalledNetwork => {
                self.around.wires.faults.stalled_until_ms.set(self.sim.now_ms() + for_ms);
                self.sim.count("stalled network", 1);
            }
            disk_or_cloud => {
                self.trouble_disk(host, disk_or_cloud, for_ms);
                self.trouble_cloud(disk_or_cloud, for_ms);
            }
        }
    }

    fn trouble_disk(&self, host: &Rc<Host>, trouble: &Trouble, for_ms: u64) {
        let medium = Rc::clone(&host.machine().medium);
        let faults = &medium.faults;
        match trouble {
            Trouble::FailedSync(after) => faults.sync_error_after.set(Some(*after)),
            Trouble::FailedWrite(after) => faults.write_error_after.set(Some(*after)),
            Trouble::SlowDisk(ms) => {
                faults.sync_ms_max.set(*ms);
                self.sim.count("slow disk", 1);
                self.sim.later(for_ms, move || medium.faults.sync_ms_max.set(3));
            }
            Trouble::ReadErrors(ppm) => {
                faults.read_error_ppm.set(*ppm);
                self.sim.later(for_ms, move || medium.faults.read_error_ppm.set(0));
            }
            Trouble::FullDisk(room) => {
                faults.capacity_bytes.set(medium.image.borrow().used_bytes() + room);
                self.sim.later(for_ms, move || medium.faults.capacity_bytes.set(u64::MAX));
            }
            Trouble::CacheRot => {
                let rotten = medium.image.borrow_mut().rot("/velum/cache".as_ref(), &self.rng);
                self.sim.count("rot in the cache", u64::from(rotten));
            }
            _ => {}
        }
    }

    fn trouble_cloud(&self, trouble: &Trouble, for_ms: u64) {
        let (Trouble::CloudAway(at)
        | Trouble::CloudStalls(at)
        | Trouble::CloudDenies(at)
        | Trouble::CloudFlaky(at)
        | Trouble::CloudLosesAnswers(at)
        | Trouble::CloudThrottles(at)
        | Trouble::CloudLies(at)
        | Trouble::CloudReadOnly(at)
        | Trouble::CloudEmptied(at)
        | Trouble::CloudExchanged(at)) = trouble
        else {
            return;
        };
        let cloud = Rc::clone(self.around.clouds.values().nth(*at).expect("plans name clouds of their world"));
        let (faults, until_ms) = (&cloud.faults, self.sim.now_ms() + for_ms);
        match trouble {
            Trouble::CloudAway(_) => faults.away_until_ms.set(until_ms),
            Trouble::CloudStalls(_) => faults.stalled_until_ms.set(until_ms),
            Trouble::CloudDenies(_) => faults.denied_until_ms.set(until_ms),
            Trouble::CloudFlaky(_) => {
                faults.fail_before_ppm.set(self.rng.below(400_000) as u32);
                faults.fail_after_ppm.set(self.rng.below(400_000) as u32);
            }
            Trouble::CloudLosesAnswers(_) => faults.lost_ppm.set(200_000),
            Trouble::CloudThrottles(_) => faults.throttle_ppm.set(700_000),
            Trouble::CloudReadOnly(_) => faults.read_only_until_ms.set(until_ms),
            Trouble::CloudEmptied(_) => return self.misplace(&cloud, false, for_ms),
            Trouble::CloudExchanged(_) => return self.misplace(&cloud, true, for_ms),
            _ => {
                let (ppm, lie) = (*self.rng.pick(&[10_000, 200_000, 1_000_000]), *self.rng.pick(&LIES));
                let lies = cloud.bucket.borrow_mut().lie(&self.rng, ppm, lie);
                self.sim.count("lies", lies);
            }
        }
        self.sim.later(for_ms, move || {
            cloud.faults.heal();
            cloud.repent();
        });
    }

    /// Flushes all volumes as an operator does; says why one was not flushed.
    pub(super) async fn flush(&self, limit_ms: u64) -> Result<(), String> {
        let mut outcome = Ok(());
        for guest in &self.guests {
            // What a loss took away that guests have not seen yet is in no cloud either.
            let is_mending = self.several.mending.get() > 0;
            let asked = self.steps.next();
            let era = guest.history.borrow().eras.len();
            let request = Request::FlushVolume { name: guest.export.clone() };
            let answer = self.owner(guest).admin(request, limit_ms).await;
            if matches!(answer, Some(Ok(_))) && (is_mending || guest.history.borrow().eras.len() != era) {
                continue;
            }
            if matches!(answer, Some(Ok(_))) {
                guest.history.borrow_mut().flushed(asked);
                self.sim.count("flushes", 1);
                self.watch.check_flushed(guest);
            } else {
                outcome = Err(format!("volume {}: {answer:?}", guest.export));
            }
        }
        outcome
    }

    /// The machine burns, or all of them do; a new one recovers the volumes from the clouds.
    pub(super) async fn lose_machine(&self, without: Option<usize>) {
        self.hold_guests();
        for host in self.hosts() {
            host.upkeep.is_retired.set(true);
            host.kill();
        }
        self.several.leave();
        self.note_killed();
        self.drain_guests().await;
        let cut_at = self.steps.next();
        self.sim.count(if without.is_some() { "lost machines with a cloud" } else { "lost machines" }, 1);
        for cloud in self.around.clouds.values() {
            cloud.faults.heal();
            cloud.repent();
        }
        // What the dead machine had under way reaches the clouds or does not; then it is over.
        self.sim.sleep_ms(30_000).await;
        self.put_back();
        let given_up = without.and_then(|at| self.around.clouds.values().nth(at)).cloned();
        let emptied = self.lost_cloud();
        if let Some(cloud) = &given_up {
            cloud.faults.away_until_ms.set(u64::MAX);
        }
        self.watch.recovering(&self.guests, &|name| given_up.as_ref().is_none_or(|cloud| cloud.name() != name));
        let number = self.machines.get() + 1;
        self.machines.set(number);
        let name = format!("node-{number}");
        let host = Host::new(&self.around, (&name, 1), &self.options, self.secret, self.planted);
        self.watch.disk(&host.machine().medium);
        self.homes.borrow_mut().values_mut().for_each(|home| *home = host.node());
        self.hosts.replace(vec![Rc::new(host)]);
        self.tell_guests();
        let accept_missing = given_up.iter().chain(&emptied).map(|cloud| cloud.name().to_owned()).collect();
        let host = self.host();
        let faults = &host.machine().medium.faults;
        // The first attempt may end at any of its I/Os, and is repeated.
        faults.end_after.set(self.rng.chance(500_000).then(|| self.rng.below(RECOVERY_IOS)));
        self.bring_up(Task::Recover { accept_missing }).await;
        faults.end_after.set(None);
        self.begin_era(cut_at, Cut::Recovery).await;
        if let Some(cloud) = given_up {
            cloud.faults.away_until_ms.set(0);
        }
    }
}
