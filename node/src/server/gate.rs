//! Gate 1: may this user use this volume?
//!
//! The server's own decision point, apart from gate 2 in the cache, which judges the regions a request touches. It decides
//! when a guest asks about a volume, when it opens a session on it, and again for every burst of requests, so that a right
//! that was taken away stops the very next request. Whatever it decides it reports to the audit; a refusal exactly once.
//!
//! A volume that does not exist and one that the principal may not see get the same answer, so a guest cannot find out
//! names by asking.

use std::rc::Rc;

use velum_protocol::{
    format::metadata::Right,
    id::{Handle, Pass, VolumeId},
};

use crate::{
    audit::{Action, Audit, ByteRange, Gate as Number},
    env::Local,
    volume::messages::{Door, Principal},
};

/// The volumes this node serves, as node assembly knows them.
pub trait Exports {
    /// Every volume served here, by name, with the most its ACL grants `principal` anywhere in it.
    fn list(&self, principal: &Principal) -> Vec<ExportInfo>;
    /// The volume of that name, with the most its ACL grants `principal` anywhere in it. Gate 1 judges it: the
    /// implementation neither hides nor refuses.
    fn find(&self, name: &str, principal: &Principal) -> Option<Export>;
    /// The most the volume's ACL grants `principal` now; [`Right::None`] for a volume no longer served here.
    fn right(&self, volume: VolumeId, principal: &Principal) -> Right;
    /// How what a session was let in by stands at a volume of this node's.
    fn stands(&self, volume: VolumeId, pass: Option<Pass>) -> Standing;
    /// Completes when everything that was agreed on before is known here, or after a while in which that was not to be had.
    fn catch_up(&self) -> Local<()>;
    /// A connection begins on an attachment; none when there is no such one, or it cannot be agreed on now.
    fn connect(&self, volume: VolumeId, handle: Handle) -> Local<Option<Pass>>;
    /// A connection is over.
    fn disconnect(&self, volume: VolumeId, pass: Pass);
}

/// How what a session was let in by stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The session may be there.
    Live,
    /// It began where more is known than here.
    NotYet,
    /// It is over, for good.
    Over,
}

/// A volume in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Which volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// The most the principal may do anywhere in it.
    pub right: Right,
}

/// A volume that can be opened.
#[derive(Clone)]
pub struct Export {
    /// Which volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// The most the principal may do anywhere in it.
    pub right: Right,
    /// The way to it.
    pub door: Rc<dyn Door>,
    /// The attachment that was named.
    pub attachment: Option<Handle>,
}

/// Gate 1 of one node.
pub struct Gate {
    exports: Rc<dyn Exports>,
    audit: Rc<Audit>,
}

impl Gate {
    /// A gate before these exports.
    #[must_use]
    pub fn new(exports: Rc<dyn Exports>, audit: Rc<Audit>) -> Self {
        Self { exports, audit }
    }

    /// Names of the volumes that `principal` may know of.
    #[must_use]
    pub fn visible(&self, principal: &Principal) -> Vec<String> {
        self.known(principal).map(|export| export.name).collect()
    }

    /// True when `principal` would be admitted by what is known here. One who would not is kept as long whether there is no such volume
    /// or he may not see it.
    #[must_use]
    pub fn would_admit(&self, name: &str, principal: &Principal) -> bool {
        self.found(name, principal).is_some_and(|export| export.right > Right::None)
    }

    /// Completes when this node knows what was agreed on before, or after a while.
    pub fn catch_up(&self) -> Local<()> {
        self.exports.catch_up()
    }

    /// Decides whether `principal` may inspect or attach the volume of that name. The empty name stands for the only volume the
    /// principal may know of, if it is only one.
    #[must_use]
    pub fn admit(&self, name: &str, principal: &Principal, action: Action) -> Option<Export> {
        let found = self.found(name, principal);
        let volume = found.as_ref().map(|export| export.volume);
        let admitted = found.filter(|export| export.right > Right::None);
        match &admitted {
            Some(export) => self.audit.allowed(Number::Volume, &principal.0, action, export.volume, None),
            None => self.audit.refused(Number::Volume, &principal.0, action, volume, None),
        }
        admitted
    }

    /// Decides whether `principal`, a guest of another node, may inspect or attach a volume that node has found by its name.
    #[must_use]
    pub fn admit_volume(&self, volume: VolumeId, principal: &Principal, action: Action) -> bool {
        let is_admitted = self.exports.right(volume, principal) > Right::None;
        if is_admitted {
            self.audit.allowed(Number::Volume, &principal.0, action, volume, None);
        } else {
            self.audit.refused(Number::Volume, &principal.0, action, Some(volume), None);
        }
        is_admitted
    }

    /// What `principal` may do with an admitted volume now.
    #[must_use]
    pub fn right(&self, volume: VolumeId, principal: &Principal) -> Right {
        self.exports.right(volume, principal)
    }

    /// How what a session was let in by stands.
    #[must_use]
    pub fn stands(&self, volume: VolumeId, pass: Option<Pass>) -> Standing {
        self.exports.stands(volume, pass)
    }

    /// A connection begins on an attachment.
    pub fn connect(&self, volume: VolumeId, handle: Handle) -> Local<Option<Pass>> {
        self.exports.connect(volume, handle)
    }

    /// A connection is over.
    pub fn disconnect(&self, volume: VolumeId, pass: Pass) {
        self.exports.disconnect(volume, pass);
    }

    /// Counts requests let through.
    pub fn passed(&self, requests: u64) {
        self.audit.passed(Number::Volume, requests);
    }

    /// Records a request that was turned down because the right to it is missing.
    pub fn refused(&self, volume: VolumeId, principal: &Principal, action: Action, range: ByteRange) {
        self.audit.refused(Number::Volume, &principal.0, action, Some(volume), Some(range));
    }

    fn found(&self, name: &str, principal: &Principal) -> Option<Export> {
        if name.is_empty() { self.only(principal) } else { self.exports.find(name, principal) }
    }

    fn known(&self, principal: &Principal) -> impl Iterator<Item = ExportInfo> {
        self.exports.list(principal).into_iter().filter(|export| export.right > Right::None)
    }

    fn only(&self, principal: &Principal) -> Option<Export> {
        let mut known = self.known(principal);
        let (first, second) = (known.next()?, known.next());
        if second.is_some() { None } else { self.exports.find(&first.name, principal) }
    }
}

#[cfg(test)]
mod tests;
