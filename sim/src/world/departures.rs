//! The eyes on what nodes send to clouds, at the moment it leaves them.

use std::rc::Rc;

use bytes::Bytes;
use velum_node::keyring::ObjectKind;
use velum_protocol::id::ObjectNumber;

use super::World;
use crate::{checker::auth2, ledger::meaning::identify, runtime::Life};

impl World {
    /// Judges each segment when a node sends it for the first time.
    pub(super) fn watch_departures(self: &Rc<Self>) {
        for cloud in self.around.clouds.values() {
            let world = Rc::downgrade(self);
            cloud.watch_departures(Rc::new(move |life, body| {
                if let Some(world) = world.upgrade() {
                    world.departs(life, body);
                }
            }));
        }
    }

    fn departs(&self, life: &Rc<Life>, body: &Bytes) {
        let ledger = self.watch.ledger.borrow();
        let id = ledger.keyring().and_then(|keyring| identify(keyring, body).ok());
        let Some(id) = id.filter(|id| id.kind == ObjectKind::Segment) else { return };
        if !self.departed.borrow_mut().insert(id) {
            return;
        }
        let is_its = |host: &&Rc<super::host::Host>| host.life().is_some_and(|own| Rc::ptr_eq(&own, life));
        let Some(host) = self.hosts().iter().find(is_its).map(Rc::clone) else { return };
        // A recovery sends nothing that was not there before it.
        let Some(node) = host.seen() else { return };
        let state = node.metadata().state();
        let Some(volume) = state.volumes.get(&id.volume).filter(|_| state.incarnation == id.incarnation) else {
            return;
        };
        self.sim.count("segments judged when sent", 1);
        if let Err(why) = auth2::check(host.node(), ObjectNumber(id.number), volume) {
            self.sim.fail(format!("AUTH2 volume {}: {why}", volume.name));
        }
    }
}
