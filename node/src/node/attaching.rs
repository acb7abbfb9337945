//! What operators ask about attachments and permits, and how what they ask comes into force.

use std::sync::Arc;

use velum_protocol::{
    admin::{Attach, AttachmentStatus, ByteRange, Detach, Problem, ProblemKind, Response, SetPermit},
    format::metadata::{Attaching, Command},
    id::{BLOCK_BYTES, BlockIndex, Handle, VolumeId},
};

use super::{Assembly, attachments::Enforcer, exports::export_name};
use crate::metadata::{
    State,
    attachments::{Attachment, Attachments},
};

impl Assembly {
    pub(super) fn list_attachments(&self, name: &str) -> Result<Response, Problem> {
        let volume = self.named(name)?;
        Ok(Response::Attachments(self.metadata.with(|state| views(state, volume, name))))
    }

    /// A steal is asked of the owner: when it is answered, nothing of those who were attached before takes effect any more.
    pub(super) async fn attach(&self, name: &str, asked: Attach) -> Result<Response, Problem> {
        let Attach { shared, connections, host, steal } = asked;
        let volume = if steal { self.own(name)? } else { self.named(name)? };
        let random = self.env.entropy.fresh16();
        let handle = Handle(*random.first_chunk().expect("ten of sixteen bytes"));
        let attaching = Attaching { shared, connections_max: connections, host };
        let attach = Command::Attach { volume, handle, attaching, steal };
        if steal {
            self.put_in_force(name, volume, attach).await?
        } else {
            self.propose(attach).await.map(drop)?
        }
        let attached = self.metadata.with(|state| views(state, volume, name));
        let attached = attached.into_iter().find(|view| view.handle == handle.to_string());
        attached.map(Response::Attachment).ok_or_else(|| {
            let detail = format!("the attachment of volume `{name}` was taken away at once");
            Problem::new(ProblemKind::Conflict, detail, "`velum volume attachments` shows by whom")
        })
    }

    /// Asked of the owner: when it is answered, nothing of the attachment takes effect any more.
    pub(super) async fn detach(&self, name: &str, asked: &Detach) -> Result<Response, Problem> {
        let (volume, handle) = (self.own(name)?, parsed(&asked.handle)?);
        self.put_in_force(name, volume, Command::Detach { volume, handle }).await?;
        self.list_attachments(name)
    }

    /// Asked of the owner: when it is answered, gate 2 judges by it.
    pub(super) async fn set_permit(&self, name: &str, asked: &SetPermit) -> Result<Response, Problem> {
        let volume = self.own(name)?;
        let holder = asked.holder.as_deref().map(parsed).transpose()?;
        let block = |bytes: u64| BlockIndex(bytes / BLOCK_BYTES);
        let (first, end) = (block(asked.range.start), block(asked.range.end));
        let permit = Command::SetPermit { volume, first, end, holder, steal: asked.steal };
        self.put_in_force(name, volume, permit).await?;
        self.list_attachments(name)
    }

    pub(super) fn enforcer(&self) -> Enforcer {
        Enforcer { metadata: self.metadata.clone(), metrics: Arc::clone(&self.metrics) }
    }

    /// Has something agreed on, and in force at the volume's door. Whoever owns the volume after this node has heard of it before he opens
    /// it; who owned it before may still be at it, until this node has opened it. So it must be open here, in the epoch granted last.
    pub(super) async fn put_in_force(&self, name: &str, id: VolumeId, command: Command) -> Result<(), Problem> {
        self.propose(command).await?;
        let open = self.opened(id).await;
        if let Some(open) = &open {
            self.enforcer().enforce(id, &open.volume);
        }
        let granted = self.metadata.with(|state| state.volumes.get(&id).map(|volume| (volume.owner, volume.epoch)));
        if open.is_some_and(|open| granted == Some((Some(self.node), open.owner.epoch))) {
            return Ok(());
        }
        let detail =
            format!("it is agreed on; but volume `{name}` goes to another node, where it may not be in force yet");
        Err(Problem::new(ProblemKind::Unavailable, detail, "ask the volume's owner again"))
    }
}

fn parsed(handle: &str) -> Result<Handle, Problem> {
    // The export's name will do, too.
    let text = handle.rsplit('.').next().unwrap_or(handle);
    Handle::parse(text).ok_or_else(|| {
        let remedy = "give the 16 characters that `velum volume attachments` shows";
        Problem::new(ProblemKind::Invalid, "that is no handle of an attachment", remedy)
    })
}

fn views(state: &State, volume: VolumeId, name: &str) -> Vec<AttachmentStatus> {
    let Some(attachments) = state.attachments.get(&volume) else { return Vec::new() };
    let view = |(handle, attachment): (&Handle, &Attachment)| AttachmentStatus {
        volume: name.to_owned(),
        handle: handle.to_string(),
        export: export_name(name, *handle),
        shared: attachment.made.shared,
        host: attachment.made.host.clone(),
        connections_max: attachment.made.connections_max,
        connections: attachment.connections.iter().copied().collect(),
        permits: permits_of(attachments, *handle),
    };
    attachments.live.iter().map(view).collect()
}

fn permits_of(attachments: &Attachments, handle: Handle) -> Vec<ByteRange> {
    let own = attachments.permits.iter().filter(|(_, (_, holder))| *holder == handle);
    own.map(|(first, (end, _))| ByteRange { start: first.0 * BLOCK_BYTES, end: end.0 * BLOCK_BYTES }).collect()
}
