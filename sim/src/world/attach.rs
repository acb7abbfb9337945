//! Attachments of guests: each has its volume for one connection at a time, and takes a new one when its own is over.

use std::rc::Rc;

use velum_protocol::admin::{Attach, Request, Response};

use super::World;
use crate::planted::Planted;

/// How long an operator's request may take.
const ADMIN_MS_MAX: u64 = 5_000;

/// How often a guest has its volume taken from itself, in a million.
const STEAL_PPM: u32 = 50_000;

impl World {
    /// Has guests find their volumes by attachments.
    pub(super) fn attach_guests(self: &Rc<Self>) {
        if !self.options.attached {
            return;
        }
        for (at, guest) in self.guests.iter().enumerate() {
            let world = Rc::downgrade(self);
            guest.history.borrow_mut().one_connection = true;
            *guest.attach.borrow_mut() = Some(Rc::new(move || {
                let world = world.upgrade();
                Box::pin(async move { world?.attached(at).await })
            }));
        }
    }

    /// The name under which a guest finds its volume now.
    async fn attached(&self, at: usize) -> Option<String> {
        let guest = &self.guests[at];
        let name = guest.export.clone();
        let known = guest.attachment.borrow().clone();
        // Any node knows; a steal is the owner's to do.
        let list = self.host().admin(Request::ListAttachments { name: name.clone() }, ADMIN_MS_MAX).await?.ok()?;
        let stands = |list: &Response| matches!(list, Response::Attachments(live) if live.iter().any(|made| Some(&made.export) == known.as_ref()));
        if stands(&list) && !self.rng.chance(STEAL_PPM) {
            return known;
        }
        // With the bug a connection that a newer one takes the place of goes on.
        let connections = if self.planted == Some(Planted::LivingDead) { 16 } else { 1 };
        let attach = Attach { shared: false, connections, host: name.clone(), steal: true };
        let made = self.owner(guest).admin(Request::Attach { name, attach }, ADMIN_MS_MAX).await?.ok()?;
        let Response::Attachment(made) = made else { return None };
        self.sim.count("attachments", 1);
        *guest.attachment.borrow_mut() = Some(made.export.clone());
        Some(made.export)
    }
}
