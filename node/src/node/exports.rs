//! The volumes open on this node, and which ones guests find here.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use velum_protocol::{format::metadata::Right, id::VolumeId};

use super::owning::Owning;
use super::switches::Switches;
use crate::{
    array::VolumeArray,
    metadata::{Metadata, acl::widest_right, state::VolumeState},
    server::gate::{Export, ExportInfo, Exports},
    volume::{
        Volume,
        messages::{Door, Principal},
        sealing::Owner,
    },
};

/// A volume that guests may use: its map is at hand, its journal is replayed, its flusher runs.
pub(super) struct OpenVolume {
    pub(super) volume: Volume,
    pub(super) door: Rc<dyn Door>,
    pub(super) array: VolumeArray,
    /// Its ensemble, unless its journal is kept by this node alone.
    pub(super) owning: Option<Owning>,
    /// In whose name it is served.
    pub(super) owner: Owner,
}

/// The open volumes by id.
#[derive(Default)]
pub(super) struct OpenVolumes(RefCell<BTreeMap<VolumeId, Rc<OpenVolume>>>);

impl OpenVolumes {
    pub(super) fn get(&self, volume: VolumeId) -> Option<Rc<OpenVolume>> {
        self.0.borrow().get(&volume).map(Rc::clone)
    }

    pub(super) fn insert(&self, volume: VolumeId, open: OpenVolume) {
        self.0.borrow_mut().insert(volume, Rc::new(open));
    }

    pub(super) fn remove(&self, volume: VolumeId) -> Option<Rc<OpenVolume>> {
        self.0.borrow_mut().remove(&volume)
    }

    /// All of them, in the order of their ids.
    pub(super) fn all(&self) -> Vec<(VolumeId, Rc<OpenVolume>)> {
        self.0.borrow().iter().map(|(id, open)| (*id, Rc::clone(open))).collect()
    }
}

/// What gate 1 asks.
pub(super) struct NodeExports {
    pub(super) metadata: Metadata,
    pub(super) open: Rc<OpenVolumes>,
    /// The ways in to the volumes of all nodes, for a node among others.
    pub(super) switches: Option<Rc<Switches>>,
    /// Whether a volume's name is an export name.
    pub(super) plain: bool,
}

impl NodeExports {
    /// Whether guests may come in: a node alone serves what it has open, one among others what anybody owns.
    fn is_open(&self, id: VolumeId, volume: &VolumeState) -> bool {
        let is_served = match &self.switches {
            None => self.open.get(id).is_some(),
            Some(switches) => volume.owner.is_some() && switches.get(id).is_some(),
        };
        self.plain && !volume.deleted && is_served
    }

    fn door(&self, id: VolumeId) -> Option<Rc<dyn Door>> {
        match &self.switches {
            None => Some(Rc::clone(&self.open.get(id)?.door)),
            Some(switches) => Some(Rc::new(switches.get(id)?)),
        }
    }
}

impl Exports for NodeExports {
    fn list(&self, principal: &Principal) -> Vec<ExportInfo> {
        let state = self.metadata.state();
        let open = state.volumes.iter().filter(|(id, volume)| self.is_open(**id, volume));
        open.map(|(id, volume)| ExportInfo {
            volume: *id,
            name: volume.name.clone(),
            right: widest_right(&volume.acl, &principal.0),
        })
        .collect()
    }

    fn find(&self, name: &str, principal: &Principal) -> Option<Export> {
        let state = self.metadata.state();
        let (id, volume) = state.volume_named(name).filter(|(id, volume)| self.is_open(*id, volume))?;
        let door = self.door(id)?;
        Some(Export { volume: id, name: name.to_owned(), right: widest_right(&volume.acl, &principal.0), door })
    }

    fn right(&self, volume: VolumeId, principal: &Principal) -> Right {
        let state = self.metadata.state();
        match state.volumes.get(&volume) {
            Some(found) if self.is_open(volume, found) => widest_right(&found.acl, &principal.0),
            _ => Right::None,
        }
    }
}
