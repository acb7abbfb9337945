//! Attachments of guests: each host has its volume for one connection at a time, and takes a new one when its own is over. Where hosts
//! share a volume, an operator hands the permits to write from one to the other.

use std::rc::Rc;

use velum_protocol::{
    admin::{Attach, AttachmentStatus, ByteRange, Detach, ProblemKind, Request, Response, SetPermit},
    id::{BLOCK_BYTES, REGION_BLOCKS},
};

use super::{World, phase::UnderWay};
use crate::{guest::workload::LOOKER, planted::Planted};

/// How long an operator's request may take.
pub(super) const ADMIN_MS_MAX: u64 = 5_000;

/// How long some wait who hand out permits: for as long as a node waits for a volume that it is about to open, and longer.
const PATIENT_MS_MAX: u64 = 40_000;

/// How often a guest has its volume taken from itself, in a million.
const STEAL_PPM: u32 = 50_000;

/// Between two permits, in milliseconds.
const HANDED_MS: (u64, u64) = (50, 1_200);

/// With bugs of that kind what an operator revokes stays allowed for so long.
pub(super) const HELD_BACK_MS: u64 = 1_500;

impl World {
    /// Has guests find their volumes by attachments.
    pub(super) fn attach_guests(self: &Rc<Self>) {
        if !self.options.attached {
            return;
        }
        for (at, guest) in self.guests.iter().enumerate() {
            let world = Rc::downgrade(self);
            let mut history = guest.history.borrow_mut();
            (history.one_connection, history.is_shared) = (true, self.options.shared);
            *guest.attach.borrow_mut() = Some(Rc::new(move |host| {
                let world = world.upgrade();
                Box::pin(async move { world?.attached(at, host).await })
            }));
            if self.options.shared {
                let world = Rc::downgrade(self);
                let (sim, rng) = (Rc::clone(&self.sim), self.rng.fork("permits"));
                self.sim.spawn(async move {
                    loop {
                        sim.sleep_ms(rng.between(HANDED_MS.0, HANDED_MS.1)).await;
                        let Some(world) = world.upgrade() else { return };
                        world.hand_permit(at).await;
                    }
                });
            }
        }
    }

    /// The name under which a host finds the volume now.
    async fn attached(&self, at: usize, host: u64) -> Option<String> {
        let _asked = UnderWay::new(&self.asked);
        let guest = &self.guests[at];
        let name = guest.export.clone();
        let known = guest.attachments.borrow().get(&host).cloned();
        // Any node knows; a steal is the owner's to do.
        let list = self.host().admin(Request::ListAttachments { name: name.clone() }, ADMIN_MS_MAX).await?.ok()?;
        let Response::Attachments(live) = list else { return None };
        let is_known = |made: &AttachmentStatus| Some(&made.export) == known.as_ref();
        let stands = live.iter().any(is_known);
        let is_taken = self.rng.chance(STEAL_PPM);
        if stands && !is_taken {
            return known;
        }
        if let Some(handle) = known.filter(|_| self.options.shared) {
            // It may stand after all, where more is known. There are only so many.
            let detach = Request::Detach { name: name.clone(), detach: Detach { handle } };
            let detached = self.owner(guest).admin(detach, ADMIN_MS_MAX).await?;
            if stands {
                detached.ok()?;
            }
        }
        // With the bug a connection that a newer one takes the place of goes on.
        let connections = if self.planted == Some(Planted::LivingDead) { 16 } else { 1 };
        let shared = self.options.shared;
        let attach = Attach { shared, connections, host: format!("{name}-{host}"), steal: !shared };
        let made = self.owner(guest).admin(Request::Attach { name, attach }, ADMIN_MS_MAX).await?.ok()?;
        let Response::Attachment(made) = made else { return None };
        self.sim.count("attachments", 1);
        guest.attachments.borrow_mut().insert(host, made.export.clone());
        Some(made.export)
    }

    /// An operator gives one of the hosts the permit for a region, whoever has it.
    async fn hand_permit(&self, at: usize) {
        let guest = &self.guests[at];
        let is_writers = |(host, name): (&u64, &String)| (*host != LOOKER).then(|| name.clone());
        let writers: Vec<_> = guest.attachments.borrow().iter().filter_map(is_writers).collect();
        if writers.is_empty() {
            return;
        }
        let holder = self.rng.pick(&writers).clone();
        let region_bytes = REGION_BLOCKS * BLOCK_BYTES;
        let regions = guest.history.borrow().sectors().div_ceil(region_bytes / 512);
        let region = self.rng.below(regions);
        if self.planted == Some(Planted::StalePermit) {
            // The operator hears that nobody has it any more.
            let (asked, answered) = (guest.history.borrow().step(), guest.history.borrow().step());
            guest.history.borrow_mut().permits.ask(region, "nobody", asked);
            guest.history.borrow_mut().permits.answered(answered);
            self.sim.sleep_ms(HELD_BACK_MS).await;
        }
        let step = guest.history.borrow().step();
        guest.history.borrow_mut().permits.ask(region, &holder, step);
        let named = if self.planted == Some(Planted::FirstRegionOnly) { region..regions } else { region..region + 1 };
        let range = ByteRange { start: named.start * region_bytes, end: named.end * region_bytes };
        let permit = SetPermit { range, holder: Some(holder), steal: true };
        let request = Request::SetPermit { name: guest.export.clone(), permit };
        let asked = UnderWay::new(&self.asked);
        let limit_ms = *self.rng.pick(&[ADMIN_MS_MAX, ADMIN_MS_MAX, PATIENT_MS_MAX]);
        let answer = self.owner(guest).admin(request, limit_ms).await;
        drop(asked);
        let mut history = guest.history.borrow_mut();
        match answer {
            Some(Ok(_)) => {
                self.sim.count("permits handed over", 1);
                let step = history.step();
                history.permits.answered(step);
            }
            Some(Err(problem)) if matches!(problem.kind, ProblemKind::Conflict | ProblemKind::NotFound) => {
                history.permits.refused();
            }
            _ => {}
        }
    }
}
