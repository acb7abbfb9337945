//! An operator who takes guests' rights to a region away for a while, and gives them back.

use std::rc::Rc;

use velum_protocol::{
    admin::{Access, AclLine, ByteRange, Request},
    id::{BLOCK_BYTES, REGION_BLOCKS},
};

use super::{
    World,
    attach::{ADMIN_MS_MAX, HELD_BACK_MS},
};
use crate::{
    guest::{pattern::REGION_SECTORS, workload::Guest},
    history::Rights,
    planted::Planted,
};

/// Who guests are: they come over the network, and nothing tells one from another.
const GUESTS: &str = "anonymous";

/// Between two times that rights are taken away, in milliseconds.
const EVERY_MS: (u64, u64) = (200, 2_500);

/// How long they are away then.
const AWAY_MS: (u64, u64) = (10, 600);

impl World {
    /// Has guests be without their rights now and then.
    pub(super) fn withhold_rights(self: &Rc<Self>) {
        if !self.options.withheld {
            return;
        }
        for (at, guest) in self.guests.iter().enumerate() {
            let regions = guest.history.borrow().sectors().div_ceil(REGION_SECTORS);
            guest.history.borrow_mut().rights = Rights::over(regions);
            let world = Rc::downgrade(self);
            let (sim, rng) = (Rc::clone(&self.sim), self.rng.fork("rights"));
            self.sim.spawn(async move {
                loop {
                    sim.sleep_ms(rng.between(EVERY_MS.0, EVERY_MS.1)).await;
                    let Some(world) = world.upgrade() else { return };
                    let guest = &world.guests[at];
                    if !guest.gate.is_closed() && !guest.is_withheld.get() {
                        guest.is_withheld.set(true);
                        let (region, access) = (rng.below(regions), *rng.pick(&[Access::None, Access::Read]));
                        world.withhold(guest, region, access).await;
                        sim.sleep_ms(rng.between(AWAY_MS.0, AWAY_MS.1)).await;
                    }
                    // What had no answer may come into force late, wherever it was asked.
                    if guest.is_withheld.get() {
                        for region in 0..regions {
                            while !world.allow(guest, region, Access::Write).await {
                                sim.sleep_ms(200).await;
                            }
                        }
                        guest.is_withheld.set(false);
                    }
                }
            });
        }
    }

    async fn withhold(&self, guest: &Guest, region: u64, access: Access) {
        if self.planted == Some(Planted::StaleRight) {
            // The operator hears that it is so already.
            let (asked, answered) = (guest.history.borrow().step(), guest.history.borrow().step());
            guest.history.borrow_mut().rights.ask(region, access, asked);
            guest.history.borrow_mut().rights.answered(answered);
            self.sim.sleep_ms(HELD_BACK_MS).await;
        }
        if self.allow(guest, region, access).await {
            self.sim.count("rights taken away", 1);
        }
    }

    /// True when an operator was told that it is in force.
    async fn allow(&self, guest: &Guest, region: u64, access: Access) -> bool {
        let asked = guest.history.borrow().step();
        guest.history.borrow_mut().rights.ask(region, access, asked);
        let region_bytes = REGION_BLOCKS * BLOCK_BYTES;
        let range = Some(ByteRange { start: region * region_bytes, end: (region + 1) * region_bytes });
        let line = AclLine { principal: GUESTS.to_owned(), access, range };
        let request = Request::SetAcl { name: guest.export.clone(), line };
        let is_told = matches!(self.owner(guest).admin(request, ADMIN_MS_MAX).await, Some(Ok(_)));
        if is_told {
            let mut history = guest.history.borrow_mut();
            let step = history.step();
            history.rights.answered(step);
        }
        is_told
    }
}
