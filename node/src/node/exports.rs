//! The volumes open on this node, and which ones guests find here.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use futures_util::{FutureExt, future::select};
use velum_protocol::{
    format::metadata::Right,
    id::{Handle, Pass, VolumeId},
};

use super::{attachments, owning::Owning, switches::Switches};
use crate::{
    array::VolumeArray,
    consensus::Consensus,
    env::{Clock, Local},
    metadata::{Metadata, State, acl::widest_right, state::VolumeState},
    server::gate::{Export, ExportInfo, Exports, Standing},
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

/// How long a guest waits for a node to hear what was agreed on, before it is told by what is known.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// What gate 1 asks.
pub(super) struct NodeExports {
    pub(super) metadata: Metadata,
    pub(super) consensus: Consensus,
    pub(super) clock: Rc<dyn Clock>,
    pub(super) open: Rc<OpenVolumes>,
    /// The ways in to the volumes of all nodes, for a node among others.
    pub(super) switches: Option<Rc<Switches>>,
    /// Whether the name of a volume that nobody is attached to is an export name.
    pub(super) plain: bool,
}

/// The name under which guests find a volume by an attachment.
pub(super) fn export_name(volume: &str, handle: Handle) -> String {
    format!("{volume}.{handle}")
}

impl NodeExports {
    /// Whether guests may come in: a node alone serves what it has open, one among others what anybody owns.
    fn is_open(&self, id: VolumeId, volume: &VolumeState) -> bool {
        let is_served = match &self.switches {
            None => self.open.get(id).is_some(),
            Some(switches) => volume.owner.is_some() && switches.get(id).is_some(),
        };
        !volume.deleted && is_served
    }

    /// A volume that may be used under its own name.
    fn is_plain(&self, state: &State, id: VolumeId) -> bool {
        self.plain && state.admits(id, None)
    }

    /// The volume that a name leads to, and by which attachment.
    fn named<'a>(&self, state: &'a State, name: &str) -> Option<(VolumeId, &'a VolumeState, Option<Handle>)> {
        if let Some((id, volume)) = state.volume_named(name).filter(|(id, _)| self.is_plain(state, *id)) {
            return Some((id, volume, None));
        }
        let (name, handle) = name.rsplit_once('.')?;
        let handle = Handle::parse(handle)?;
        let (id, volume) = state.volume_named(name)?;
        state.attachments.get(&id)?.live.contains_key(&handle).then_some((id, volume, Some(handle)))
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
        let is_listed = |id: VolumeId, volume: &VolumeState| self.is_plain(&state, id) && self.is_open(id, volume);
        let open = state.volumes.iter().filter(|(id, volume)| is_listed(**id, volume));
        open.map(|(id, volume)| ExportInfo {
            volume: *id,
            name: volume.name.clone(),
            right: widest_right(&volume.acl, &principal.0),
        })
        .collect()
    }

    fn find(&self, name: &str, principal: &Principal) -> Option<Export> {
        let state = self.metadata.state();
        let (id, volume, attachment) = self.named(&state, name).filter(|(id, volume, _)| self.is_open(*id, volume))?;
        let (door, right) = (self.door(id)?, widest_right(&volume.acl, &principal.0));
        Some(Export { volume: id, name: name.to_owned(), right, door, attachment })
    }

    fn right(&self, volume: VolumeId, principal: &Principal) -> Right {
        let state = self.metadata.state();
        match state.volumes.get(&volume) {
            Some(found) if self.is_open(volume, found) => widest_right(&found.acl, &principal.0),
            _ => Right::None,
        }
    }

    fn stands(&self, volume: VolumeId, pass: Option<Pass>) -> Standing {
        self.metadata.with(|state| attachments::standing(state, volume, pass))
    }

    fn catch_up(&self) -> Local<()> {
        let (read, late) = (self.consensus.read(), self.clock.sleep(CATCH_UP_MAX));
        async move { drop(select(read, late).await) }.boxed_local()
    }

    fn connect(&self, volume: VolumeId, handle: Handle) -> Local<Option<Pass>> {
        attachments::connect(&self.metadata, volume, handle)
    }

    fn disconnect(&self, volume: VolumeId, pass: Pass) {
        attachments::disconnect(&self.metadata, volume, pass);
    }
}
