//! Sees to it that only sessions of attachments that stand are at this node's own volumes, and that gate 2 knows the ACL and the permits.
//!
//! What raft says is looked at before a session comes in, whenever the metadata changes, and before an operator is answered. So a session
//! whose attachment was stolen is gone before its successor is in; and an owner that raft's word has not reached yet lets the successor
//! wait.

use std::{rc::Rc, sync::Arc};

use futures_util::FutureExt;
use velum_protocol::{
    format::metadata::Command,
    id::{Handle, Pass, SessionId, VolumeId},
};

use super::{Assembly, changes::Follower};
use crate::{
    actor,
    cache::permits::Permits,
    env::Local,
    metadata::{Answer, Metadata, MetadataError, State},
    metrics::Metrics,
    server::gate::Standing,
    volume::{
        Volume,
        messages::{Door, Entrant, Replies, Request},
    },
};

/// What raft says, and where it is counted what follows.
#[derive(Clone)]
pub(super) struct Enforcer {
    pub(super) metadata: Metadata,
    pub(super) metrics: Arc<Metrics>,
}

impl Enforcer {
    /// Has a volume of this node's do as raft says.
    pub(super) fn enforce(&self, id: VolumeId, volume: &Volume) {
        // Read while sessions end: nothing they do changes the metadata at once.
        let state = self.metadata.state();
        if let Some(known) = state.volumes.get(&id)
            && known.acl_version > volume.acl_version()
        {
            volume.set_acl(known.acl.clone(), known.acl_version);
        }
        volume.set_permits(permits(&state, id));
        let ended = volume.end_unless(|pass| state.admits(id, pass));
        self.metrics.attachment.ended_sessions.inc_by(u64::try_from(ended).unwrap_or(u64::MAX));
    }
}

/// How a session's pass stands, as far as this node knows.
pub(super) fn standing(state: &State, id: VolumeId, pass: Option<Pass>) -> Standing {
    if state.admits(id, pass) {
        return Standing::Live;
    }
    let last = state.attachments.get(&id).map_or(0, |attachments| attachments.last_connection);
    if pass.is_some_and(|pass| pass.connection > last) { Standing::NotYet } else { Standing::Over }
}

fn permits(state: &State, id: VolumeId) -> Permits {
    let Some(attachments) = state.attachments.get(&id) else { return Permits::default() };
    let shared = attachments.live.iter().filter(|(_, attachment)| attachment.made.shared);
    Permits { sharing: shared.map(|(handle, _)| *handle).collect(), spans: attachments.permits.clone() }
}

/// A connection begins on an attachment, agreed on by the group; when it had as many as it allows, the oldest one is over.
pub(super) fn connect(metadata: &Metadata, volume: VolumeId, handle: Handle) -> Local<Option<Pass>> {
    let agreed = metadata.propose(Command::Connect { volume, handle });
    async move {
        match agreed.await {
            Ok(Answer::Connection(connection)) => Some(Pass { handle, connection }),
            Ok(_) | Err(MetadataError::Rejected(_)) => None,
            Err(error @ MetadataError::Unknown(_)) => {
                tracing::debug!(%volume, %error, "a connection is not let in");
                None
            }
        }
    }
    .boxed_local()
}

/// A connection is over. One that nobody is told of stays in the list until others take its place.
pub(super) fn disconnect(metadata: &Metadata, volume: VolumeId, Pass { handle, connection }: Pass) {
    let agreed = metadata.propose(Command::Disconnect { volume, handle, connection });
    actor::spawn(async move {
        if let Err(error) = agreed.await {
            tracing::debug!(%volume, %error, "that a connection is over is not known to all");
        }
    });
}

/// Follows the metadata, for as long as the node lives.
pub(super) fn follow(node: &Rc<Assembly>, mut changes: Follower) {
    let weak = Rc::downgrade(node);
    actor::spawn(async move {
        while changes.changed().await {
            let Some(node) = weak.upgrade() else { return };
            for (id, open) in node.open.all() {
                node.enforcer().enforce(id, &open.volume);
            }
        }
    });
}

/// A volume's door that looks at what raft says before it lets a session in.
pub(super) struct GuardedDoor {
    pub(super) id: VolumeId,
    pub(super) volume: Volume,
    pub(super) enforcer: Enforcer,
}

impl Door for GuardedDoor {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn attach(&self, session: SessionId, entrant: Entrant, replies: Rc<dyn Replies>) {
        self.enforcer.enforce(self.id, &self.volume);
        if self.enforcer.metadata.with(|state| state.admits(self.id, entrant.pass)) {
            self.volume.attach(session, entrant, replies);
        } else {
            replies.end();
        }
    }

    fn submit(&self, request: Request) {
        self.volume.submit(request);
    }

    fn end_burst(&self) {
        self.volume.end_burst();
    }

    fn detach(&self, session: SessionId) {
        self.volume.detach(session);
    }
}
