//! What a checkpoint names, found by walking its pages from the root.

use std::{collections::VecDeque, rc::Rc};

use velum_protocol::{
    format::{
        metadata::ObjectRef,
        page::{Payload, RootPayload},
    },
    id::{KeyEpoch, ObjectNumber},
};

use super::copies::{Copies, CopyError};
use crate::keyring::{KeySet, ObjectFault, ObjectKind};

/// Why a checkpoint's pages could not be walked.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// An object could not be read.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// An object has the right hash and still is not what it should be: whoever wrote it was wrong.
    #[error("object {number} of the checkpoint is unusable: {fault}")]
    Fault {
        /// Its number.
        number: ObjectNumber,
        /// What is wrong.
        fault: ObjectFault,
    },
}

/// The objects of a checkpoint, the root left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closure {
    /// Pages, parents before children.
    pub pages: Vec<ObjectRef>,
    /// Segments that the pages refer to.
    pub segments: Vec<ObjectRef>,
}

/// Walks from a root to everything it names. A page for which `known` holds is left out with all below it; leaves are named
/// by their parents and are not read.
///
/// # Errors
/// When a page cannot be had or is unusable.
pub async fn walk(
    copies: &Rc<Copies>,
    keys: &KeySet,
    root: &RootPayload,
    known: &dyn Fn(&ObjectRef) -> bool,
) -> Result<Closure, ClosureError> {
    let mut closure = Closure::default();
    let mut queue: VecDeque<(ObjectRef, Reads)> = VecDeque::new();
    let below = Reads::children_of(root.level);
    queue.extend(root.children.iter().map(|child| (child.page.clone(), below)));
    queue.extend(root.usage.iter().map(|usage| (usage.page.clone(), Reads::Usage)));
    while let Some((page, reads)) = queue.pop_front() {
        if known(&page) {
            continue;
        }
        if reads != Reads::Nothing {
            match read_page(copies, keys, &page).await? {
                Payload::Inner(inner) => {
                    let below = Reads::children_of(inner.level);
                    queue.extend(inner.children.iter().map(|child| (child.page.clone(), below)));
                }
                Payload::Usage(usage) => {
                    closure.segments.extend(usage.segments.iter().map(|segment| segment.object.clone()));
                }
                Payload::Leaf(_) | Payload::Root(_) => {}
            }
        }
        closure.pages.push(page);
    }
    Ok(closure)
}

/// What reading a page would tell of other objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// It is a leaf: its segments stand in the usage pages too.
    Nothing,
    /// It names pages.
    Pages,
    /// It names segments.
    Usage,
}

impl Reads {
    /// Of the children of a page of `level`.
    const fn children_of(level: u8) -> Self {
        if level <= 1 { Self::Nothing } else { Self::Pages }
    }
}

/// An opened root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// What it names.
    pub payload: RootPayload,
    /// The key epoch it is sealed under; its stub is sealed under the same one.
    pub key_epoch: KeyEpoch,
}

/// Reads and opens the root of a checkpoint.
///
/// # Errors
/// When it cannot be had or is unusable.
pub async fn read_root(copies: &Rc<Copies>, keys: &KeySet, root: &ObjectRef) -> Result<Root, ClosureError> {
    let id = keys.id(ObjectKind::Root, root.incarnation, root.number.0);
    let stored = copies.read(&id, root, None).await?;
    open_root(keys, root, &stored).map_err(|fault| ClosureError::Fault { number: root.number, fault })
}

/// Opens the stored bytes of a root.
///
/// # Errors
/// When they are not that root.
pub fn open_root(keys: &KeySet, root: &ObjectRef, stored: &[u8]) -> Result<Root, ObjectFault> {
    let (link, payload) = keys.open_root(root, stored)?;
    let key_epoch = keys.root_key_epoch(root, stored)?;
    let payload = RootPayload::decode(&payload)?;
    if (payload.cut.seq, payload.cut.chain) == (link.seq, link.chain) {
        Ok(Root { payload, key_epoch })
    } else {
        Err(ObjectFault::Unfit("cut"))
    }
}

/// Reads and opens a page.
///
/// # Errors
/// When it cannot be had or is unusable.
pub async fn read_page(copies: &Rc<Copies>, keys: &KeySet, page: &ObjectRef) -> Result<Payload, ClosureError> {
    let payload = read_page_bytes(copies, keys, page).await?;
    Payload::decode(&payload).map_err(|error| ClosureError::Fault { number: page.number, fault: error.into() })
}

/// Reads and opens a page, without looking into it.
///
/// # Errors
/// When it cannot be had or is damaged.
pub async fn read_page_bytes(copies: &Rc<Copies>, keys: &KeySet, page: &ObjectRef) -> Result<Vec<u8>, ClosureError> {
    let id = keys.id(ObjectKind::Page, page.incarnation, page.number.0);
    let stored = copies.read(&id, page, None).await?;
    keys.open_page(page, &stored).map_err(|fault| ClosureError::Fault { number: page.number, fault })
}
