//! The place of the one cloud that may be bad: emptied for good, or exchanged for an empty one until somebody puts it back; and
//! the operator who does something about it.
//!
//! The operator believes the node: nothing is done before the node says that the place is wrong. Then an exchanged one is put
//! back, and an emptied one is filled anew with `velum cloud resync`. From the first moment until the cloud is whole again
//! nothing is promised of it alone; everything is promised of the others.

use std::rc::Rc;

use velum_node::keyring::IDENTITY_NAME;
use velum_protocol::admin::{CloudState, Request, Response};

use super::World;
use crate::env::cloud::SimCloud;

/// A cloud that is not in its place.
#[derive(Clone)]
pub(super) struct Misplaced {
    cloud: Rc<SimCloud>,
    /// The operator does nothing before.
    not_before_ms: u64,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its contents are gone.
    Emptied,
    /// Its contents are elsewhere.
    Exchanged,
    /// The place is right, and not whole yet.
    Filling,
}

impl World {
    /// Empties a cloud, or exchanges it for an empty one, unless it is not whole anyway.
    pub(super) fn misplace(&self, cloud: &Rc<SimCloud>, exchange: bool, for_ms: u64) {
        if self.misplaced.borrow().is_some() {
            return;
        }
        self.sim.count(if exchange { "exchanged clouds" } else { "emptied clouds" }, 1);
        self.watch.misplaced(cloud.name(), exchange);
        cloud.empty(exchange);
        let phase = if exchange { Phase::Exchanged } else { Phase::Emptied };
        let not_before_ms = self.sim.now_ms() + for_ms;
        self.misplaced.replace(Some(Misplaced { cloud: Rc::clone(cloud), not_before_ms, phase }));
    }

    /// The cloud that a recovery finds nothing in, because its place is wrong.
    pub(super) fn lost_cloud(&self) -> Option<Rc<SimCloud>> {
        let misplaced = self.misplaced.borrow();
        misplaced.as_ref().map(|misplaced| Rc::clone(&misplaced.cloud)).filter(|cloud| !has_identity(cloud))
    }

    /// Puts an exchanged place back, whoever has noticed.
    pub(super) fn put_back(&self) {
        if let Some(misplaced) = self.misplaced.borrow_mut().as_mut()
            && misplaced.phase == Phase::Exchanged
        {
            misplaced.cloud.put_back();
            self.watch.put_back(misplaced.cloud.name());
            misplaced.phase = Phase::Filling;
        }
    }

    /// Does what an operator does when the node says that a place is wrong.
    pub(super) async fn tend_place(&self) {
        let Some(Misplaced { cloud, not_before_ms, phase }) = self.now_misplaced() else { return };
        if phase == Phase::Filling {
            if self.watch.is_whole(cloud.name()) {
                self.misplaced.replace(None);
            }
            return;
        }
        // A node that never stored anything there may take the place as it is.
        if has_identity(&cloud) {
            cloud.forget_hidden();
            self.watch.forget_hidden();
            return self.fills();
        }
        // Put back while a node has something under way there and has noticed nothing, an exchange is not noticed at all.
        let by_all = phase == Phase::Exchanged;
        if self.sim.now_ms() < not_before_ms || !self.says_emptied(cloud.name(), by_all).await {
            return;
        }
        if phase == Phase::Exchanged {
            return self.put_back();
        }
        for host in self.hosts() {
            let request = Request::ResyncCloud { name: cloud.name().to_owned() };
            if let Some(Ok(_)) = host.admin(request, 30_000).await {
                self.sim.count("resyncs", 1);
                return self.fills();
            }
        }
    }

    fn now_misplaced(&self) -> Option<Misplaced> {
        self.misplaced.borrow().clone()
    }

    fn fills(&self) {
        if let Some(misplaced) = self.misplaced.borrow_mut().as_mut() {
            misplaced.phase = Phase::Filling;
        }
    }

    /// Whether some node says so, or every one that runs.
    async fn says_emptied(&self, name: &str, by_all: bool) -> bool {
        let mut says = false;
        for host in self.hosts() {
            let listed = host.admin(Request::ListClouds, 10_000).await;
            let is_emptied = match listed {
                Some(Ok(Response::Clouds(clouds))) => {
                    clouds.iter().any(|cloud| cloud.name == name && cloud.state == CloudState::Emptied)
                }
                _ if host.is_well() => false,
                _ => continue,
            };
            if is_emptied != by_all {
                return is_emptied;
            }
            says |= is_emptied;
        }
        says
    }

    /// At rest every place is right again and every cloud whole; `false` when one never is.
    pub(super) async fn places_are_right(&self, rest_ms_max: u64) -> bool {
        let until_ms = self.sim.now_ms() + rest_ms_max;
        while let Some(Misplaced { cloud, phase, .. }) = self.now_misplaced() {
            if self.sim.now_ms() > until_ms {
                let name = cloud.name();
                let why = if phase == Phase::Filling { "is not whole again" } else { "was emptied and nobody said so" };
                self.sim.fail(format!("SEQ8 cloud {name} {why}"));
                return false;
            }
            self.tend_place().await;
            self.sim.sleep_ms(200).await;
        }
        true
    }
}

fn has_identity(cloud: &SimCloud) -> bool {
    cloud.bucket.borrow().pristine().contains_key(IDENTITY_NAME)
}
