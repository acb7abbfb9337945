//! The end of a world: all troubles end, and then everything must come to rest, agree, and survive one last test.

use std::rc::Rc;

use velum_node::metrics::ReadsBy;
use velum_protocol::admin::{Request, Response};

use super::World;
use crate::{
    checker::{
        gc4,
        liv1::{self, REST_MS_MAX},
        seq8,
    },
    guest::pattern::Cell,
};

/// How long a cloud may take at rest to be rid of litter: what earlier lives left is looked for under thousands of names, and a
/// request to a far cloud takes most of a second.
const LITTER_MS_MAX: u64 = 30 * 60_000;

/// How often is looked.
const LITTER_LOOK_MS: u64 = 2_000;

impl World {
    /// Ends all troubles, waits for rest, and judges what is there.
    pub(super) async fn settle(self: &Rc<Self>) {
        let stalled_ms = self.around.wires.faults.stalled_until_ms.get().saturating_sub(self.sim.now_ms());
        self.heal();
        // What was sent into a stall arrives when that would have ended, also from guests who have given up waiting for the answer.
        self.sim.sleep_ms(stalled_ms).await;
        self.count_reads();
        let before = self.several.seen.borrow().so_far();
        if self.several.is_tended() && !self.came_together().await {
            return;
        }
        self.look().await;
        for guest in &self.guests {
            guest.gate.close();
        }
        if !self.came_to_rest().await {
            return;
        }
        let rest_ms_max = liv1::rest_ms_max(self.backlog().await);
        if let Err(why) = self.flush(rest_ms_max).await {
            return self.sim.fail(format!("LIV1 a flush at rest came to nothing: {why}"));
        }
        let mut images = Vec::new();
        for guest in &self.guests {
            match guest.sweep(REST_MS_MAX, true).await {
                Ok(image) => images.push(image),
                Err(error) => return self.sim.fail(format!("LIV1 at rest: {error}")),
            }
        }
        if self.places_are_right(rest_ms_max).await && self.caught_up(rest_ms_max).await {
            self.compare(&images);
            self.check_clean();
            self.rid_of_litter().await;
        }
        if self.several.is_tended() && !self.sim.has_failed() {
            self.agreed_in_the_end().await;
            self.check_rest(&before);
        }
    }

    /// How reads were answered by the processes that live: nothing else shows from outside which of the two was tried.
    fn count_reads(&self) {
        for node in self.hosts().iter().filter_map(|host| host.seen()) {
            for (by, what) in [(ReadsBy::Lease, "reads by lease"), (ReadsBy::Question, "reads by question")] {
                self.sim.count(what, node.metrics().ensemble.reads.of(by).get());
            }
        }
    }

    fn heal(&self) {
        for host in self.hosts() {
            let faults = &host.machine().medium.faults;
            faults.sync_error_after.set(None);
            faults.write_error_after.set(None);
            faults.capacity_bytes.set(u64::MAX);
            faults.read_error_ppm.set(0);
            faults.sync_ms_max.set(3);
            faults.end_after.set(None);
        }
        if self.several.is_tended() {
            self.heal_ways();
        }
        self.around.wires.faults.stalled_until_ms.set(0);
        for cloud in self.around.clouds.values() {
            cloud.faults.heal();
            cloud.repent();
        }
    }

    /// LIV1: every request under way is answered.
    async fn came_to_rest(&self) -> bool {
        let began_ms = self.sim.now_ms();
        loop {
            let open: u64 = self.guests.iter().map(|guest| guest.under_way()).sum();
            if open == 0 {
                return true;
            }
            if let Err(why) = liv1::check_answered(open, self.sim.now_ms() - began_ms) {
                self.sim.fail(format!("LIV1 {why}"));
                return false;
            }
            // Several nodes have each somebody who looks after it.
            if !self.several.is_tended() {
                let status = self.host().admin(Request::NodeStatus, 10_000).await;
                if matches!(status, Some(Ok(Response::Node(status))) if status.journal.poisoned) {
                    self.restart_after(100).await;
                }
            }
            self.sim.sleep_ms(100).await;
        }
    }

    /// Records that clouds lack.
    async fn backlog(&self) -> u64 {
        let mut backlog = 0;
        for guest in &self.guests {
            let request = Request::ShowVolume { name: guest.export.clone() };
            if let Some(Ok(Response::Volume(status))) = self.owner(guest).admin(request, 10_000).await {
                backlog += status.clouds.iter().map(|cloud| cloud.lag_records).max().unwrap_or_default();
            }
        }
        backlog
    }

    /// SEQ8: every cloud's lag returns to zero.
    async fn caught_up(&self, rest_ms_max: u64) -> bool {
        let until_ms = self.sim.now_ms() + rest_ms_max;
        for guest in &self.guests {
            loop {
                let request = Request::ShowVolume { name: guest.export.clone() };
                let Some(Ok(Response::Volume(status))) = self.owner(guest).admin(request, 10_000).await else {
                    self.sim.fail(format!("LIV1 the node does not show volume {}", guest.export));
                    return false;
                };
                let lags = status.clouds.iter().map(|cloud| (cloud.cloud.as_str(), cloud.lag_records));
                let Err(why) = seq8::check_lag(lags) else { break };
                if self.sim.now_ms() > until_ms {
                    self.sim.fail(format!("SEQ8 volume {}: {why}", guest.export));
                    return false;
                }
                self.sim.sleep_ms(200).await;
            }
        }
        true
    }

    /// GC4: in time every cloud is rid of what nothing needs any more.
    async fn rid_of_litter(&self) {
        let until_ms = self.sim.now_ms() + LITTER_MS_MAX;
        while let Err(why) = self.check_litter() {
            if self.sim.now_ms() > until_ms {
                return self.sim.fail(format!("GC4 {why}"));
            }
            self.sim.sleep_ms(LITTER_LOOK_MS).await;
            if self.sim.has_failed() {
                return;
            }
        }
    }

    fn check_litter(&self) -> Result<(), String> {
        let ledger = self.watch.ledger.borrow();
        let volumes = self.guests.iter().filter_map(|guest| Some((guest, self.watch.volume(&guest.export)?)));
        for (guest, volume) in volumes {
            for cloud in self.around.clouds.values() {
                gc4::check(&ledger, cloud.name(), volume).map_err(|why| format!("volume {}: {why}", guest.export))?;
            }
        }
        Ok(())
    }

    /// SEQ8: at rest each cloud alone holds what guests see.
    fn compare(&self, images: &[Vec<Cell>]) {
        for (guest, image) in self.guests.iter().zip(images) {
            self.watch.check_flushed(guest);
            for cloud in self.around.clouds.values() {
                let held = self.watch.sample(guest, &|name| name == cloud.name());
                if let Err(why) = seq8::check_image(cloud.name(), held.as_deref(), image) {
                    self.sim.fail(format!("SEQ8 volume {}: {why}", guest.export));
                }
            }
        }
    }

    /// The last test of some worlds: the machine is lost, and the clouds alone bring back what was there at rest.
    pub(super) async fn burn(self: &Rc<Self>) {
        let without = self.rng.chance(500_000).then_some(self.options.bad_cloud);
        self.lose_machine(without).await;
        for guest in &self.guests {
            guest.gate.close();
        }
        if !self.sim.has_failed() {
            self.settle().await;
        }
    }
}
