//! What operators ask, answered on the node's thread.

use std::{rc::Rc, time::Duration};

use velum_protocol::{
    admin::{
        Access, AclLine, ByteRange, CreateVolume, Deleted, NodeStatus, Problem, ProblemKind, RaftStatus, Request,
        ResizeVolume, Response, Version,
    },
    format::metadata::{AclEntry, Command, Right},
    id::{BLOCK_BYTES, BlockIndex, KeyEpoch, NodeId, REGION_BLOCKS, VolumeId},
};

use super::{Assembly, exports::OpenVolume, ownership::IDLE_WAIT, resync::ResyncError, views};
use crate::{
    cloud::CloudError,
    config::Size,
    env::Local,
    metadata::{Answer, MetadataError, Rejection},
    server::admin::Backend,
};

/// How long a request waits for a volume that is being opened.
const OPEN_WAIT: Duration = Duration::from_secs(30);

/// How often it looks.
const OPEN_LOOK: Duration = Duration::from_millis(20);

/// The version of the admin API.
const API_VERSION: u32 = 1;

/// Answers operators.
pub(super) struct Service(pub(super) Rc<Assembly>);

impl Backend for Service {
    fn handle(&self, principal: &str, request: Request) -> Local<Result<Response, Problem>> {
        let (node, principal) = (Rc::clone(&self.0), principal.to_owned());
        Box::pin(async move {
            match request {
                Request::Version => {
                    Ok(Response::Version(Version { version: env!("CARGO_PKG_VERSION").to_owned(), api: API_VERSION }))
                }
                Request::NodeStatus => Ok(Response::Node(node.status())),
                Request::RaftStatus => Ok(Response::Raft(node.raft_status())),
                Request::ListVolumes => Ok(Response::Volumes(views::volumes(&node))),
                Request::CreateVolume(volume) => node.create_volume(&principal, volume).await,
                Request::ShowVolume { name } => node.show(&name),
                Request::ResizeVolume { name, resize } => node.resize_volume(&name, resize).await,
                Request::MoveVolume { name, to } => node.move_volume(&name, NodeId(to.node)).await,
                Request::FlushVolume { name } => node.flush_volume(&name).await,
                Request::DeleteVolume { name } => node.delete_volume(&name).await,
                Request::ShowAcl { name } => node.show_acl(&name),
                Request::SetAcl { name, line } => node.set_acl(&name, line).await,
                Request::ListAttachments { name } => node.list_attachments(&name),
                Request::Attach { name, attach } => node.attach(&name, attach).await,
                Request::Detach { name, detach } => node.detach(&name, &detach).await,
                Request::SetPermit { name, permit } => node.set_permit(&name, &permit).await,
                Request::ClusterStatus => Ok(Response::Cluster(node.cluster_status())),
                Request::OfferPlace => node.offer_place().await,
                Request::RemoveNode { node: number } => node.remove_node(number).await,
                Request::TransferLead { node: number } => node.transfer_lead(number).await,
                Request::ListClouds => Ok(Response::Clouds(views::clouds(&node))),
                Request::CheckClouds => Ok(Response::Checks(views::check_clouds(&node).await)),
                Request::ResyncCloud { name } => node.resync_cloud(&name).await,
            }
        })
    }
}

impl Assembly {
    fn status(&self) -> NodeStatus {
        let journal = self.journal.status();
        let (cluster, incarnation) = self.metadata.with(|state| (state.cluster, state.incarnation));
        NodeStatus {
            cluster: cluster.to_string(),
            node: self.node.0,
            incarnation: incarnation.0,
            durability: self.durability(),
            dirty_bytes: self.budget.bytes_used(),
            dirty_bytes_max: self.budget.bytes_max(),
            journal: velum_protocol::admin::JournalStatus {
                live_bytes: journal.bytes_live,
                bytes_max: journal.bytes_max,
                poisoned: journal.poisoned.is_some(),
            },
            nbd: self.nbd_addresses(),
            uptime_seconds: self.env.clock.now().since(self.started).as_secs(),
        }
    }

    fn raft_status(&self) -> RaftStatus {
        let raft = self.consensus.status();
        RaftStatus {
            node: self.node.0,
            role: (if raft.is_leader { "leader" } else { "follower" }).to_owned(),
            leader: raft.leader,
            term: raft.term,
            commit: raft.commit,
            applied: raft.applied,
            members: self.consensus.members().voters,
            halted: raft.halted.map(str::to_owned),
        }
    }

    pub(super) fn named(&self, name: &str) -> Result<VolumeId, Problem> {
        let found = self.metadata.with(|state| state.volume_named(name).map(|(id, _)| id));
        found.ok_or_else(|| Problem::no_volume(name))
    }

    /// The named volume, which is this node's to work on.
    pub(super) fn own(&self, name: &str) -> Result<VolumeId, Problem> {
        let volume = self.named(name)?;
        let owner = self.metadata.with(|state| state.volumes.get(&volume).and_then(|volume| volume.owner));
        match owner.filter(|owner| self.peers.is_some() && *owner != self.node) {
            None => Ok(volume),
            Some(owner) => {
                let detail = format!("volume `{name}` is owned by node {owner}, this is node {}", self.node);
                Err(Problem::new(ProblemKind::Conflict, detail, "ask that node, with --admin or VELUM_ADMIN"))
            }
        }
    }

    /// The volume, once it is open: after a start its map may still be on its way.
    pub(super) async fn opened(&self, volume: VolumeId) -> Option<Rc<OpenVolume>> {
        let clock = &self.env.clock;
        let until = clock.now() + OPEN_WAIT;
        loop {
            let open = self.open.get(volume);
            if open.is_some() || clock.now() >= until {
                return open;
            }
            clock.sleep(OPEN_LOOK).await;
        }
    }

    fn show(&self, name: &str) -> Result<Response, Problem> {
        let id = self.named(name)?;
        views::volume(self, id).map(Response::Volume).ok_or_else(|| Problem::no_volume(name))
    }

    pub(super) async fn propose(&self, command: Command) -> Result<Answer, Problem> {
        self.metadata.propose(command).await.map_err(|error| problem(&error))
    }

    /// Created, in the catalogue of a quorum of clouds, and open: then it is answered.
    async fn create_volume(self: &Rc<Self>, principal: &str, asked: CreateVolume) -> Result<Response, Problem> {
        // A volume made while the start still looks through them would be opened twice.
        if !self.wait(|| self.looked_through.get()).await {
            let detail = "the node has not looked through its volumes yet: too few nodes of the cluster run";
            return Err(Problem::new(ProblemKind::Unavailable, detail, "`velum cluster status` says what to do"));
        }
        let volume = VolumeId(self.env.entropy.fresh16());
        let keys = self.keyring.new_volume_keys(&*self.env.entropy, volume, KeyEpoch(1));
        let acl = vec![AclEntry { principal: principal.to_owned(), range: None, right: Right::Write }];
        let CreateVolume { name, size_bytes } = asked;
        self.propose(Command::CreateVolume { volume, name: name.clone(), size_bytes, keys, acl }).await?;
        self.catalogue.published().await;
        self.open_new(volume).await.map_err(|error| {
            let detail = format!("volume `{name}` was created but does not open: {error}");
            Problem::new(ProblemKind::Internal, detail, "restart the node and look at its log")
        })?;
        self.show(&name)
    }

    async fn resize_volume(&self, name: &str, asked: ResizeVolume) -> Result<Response, Problem> {
        let volume = self.own(name)?;
        let size_bytes = asked.size_bytes;
        let now = self.metadata.with(|state| state.volumes.get(&volume).map_or(0, |volume| volume.size_bytes));
        if size_bytes < now && !asked.force {
            let detail = format!("volume `{name}` has {now} bytes; what lies beyond {size_bytes} would be lost");
            return Err(Problem::new(ProblemKind::Conflict, detail, "say --force to lose it"));
        }
        let open = self.opened(volume).await.ok_or_else(|| not_open(name))?;
        // What a cut takes away must stay away, however the volume grows afterwards and whatever crashes: the record of it
        // is at d1 before the smaller size is agreed, and in the clouds, from where the size is recovered too, before a
        // larger one is.
        let cleared = if size_bytes < now {
            open.volume.set_size(size_bytes);
            let synced = match &open.owning {
                Some(owning) => {
                    owning.durable().await;
                    Ok(())
                }
                None => self.journal.sync().await,
            };
            synced.map_err(|error| not_resized(name, &error))
        } else {
            open.volume.clear_beyond(size_bytes);
            open.array.flush().await.map_err(|error| not_resized(name, &error))
        };
        let answer = match cleared {
            Ok(()) => self.propose(Command::ResizeVolume { volume, size_bytes }).await,
            Err(problem) => Err(problem),
        };
        let agreed = self.metadata.with(|state| state.volumes.get(&volume).map_or(now, |volume| volume.size_bytes));
        open.volume.set_size(agreed);
        answer?;
        self.catalogue.published().await;
        self.show(name)
    }

    /// Another node takes the volume over from this one, with everything that was acked.
    async fn move_volume(self: &Rc<Self>, name: &str, to: NodeId) -> Result<Response, Problem> {
        let volume = self.own(name)?;
        let Some(ownership) = &self.ownership else { return Err(super::cluster::alone()) };
        if to == self.node {
            return self.show(name);
        }
        if !ownership.hears(to) {
            let detail = format!("node {to} is no node of the cluster, or it is not reached");
            return Err(Problem::new(ProblemKind::Conflict, detail, "`velum cluster status` shows who is reached"));
        }
        let after = self.metadata.with(|state| state.volumes.get(&volume).map(|volume| volume.epoch));
        let after = after.ok_or_else(|| Problem::no_volume(name))?;
        let members = ownership.members(self, to, volume);
        if !self.hand_over((volume, after), to, members, IDLE_WAIT).await {
            let detail =
                format!("volume `{name}` was not given to node {to}: its requests do not end, or raft does not agree");
            return Err(Problem::new(ProblemKind::Unavailable, detail, "`velum cluster status` says what is wrong"));
        }
        let is_open = || {
            self.metadata.with(|state| {
                let open = state.ensembles.get(&volume).map(|ensemble| ensemble.opened);
                open.is_some_and(|opened| opened > after)
            })
        };
        if self.wait(is_open).await {
            return self.show(name);
        }
        let detail = format!("node {to} was granted volume `{name}` and does not serve it yet");
        Err(Problem::new(ProblemKind::Unavailable, detail, "`velum cluster status` shows who is reached"))
    }

    async fn flush_volume(&self, name: &str) -> Result<Response, Problem> {
        let volume = self.own(name)?;
        let open = self.opened(volume).await.ok_or_else(|| not_open(name))?;
        open.array.flush().await.map_err(|error| {
            Problem::new(ProblemKind::Unavailable, format!("volume `{name}` was not flushed: {error}"), "ask again")
        })?;
        self.show(name)
    }

    async fn delete_volume(&self, name: &str) -> Result<Response, Problem> {
        let volume = self.own(name)?;
        let sessions = self.open.get(volume).map_or(0, |open| open.volume.session_count());
        if sessions > 0 {
            let detail =
                format!("volume `{name}` is in use by {sessions} session{}", if sessions == 1 { "" } else { "s" });
            return Err(Problem::new(ProblemKind::Conflict, detail, "disconnect its clients first"));
        }
        self.propose(Command::DeleteVolume { volume }).await?;
        if let Some(open) = self.open.remove(volume) {
            open.volume.close();
            if let Some(owning) = &open.owning {
                owning.stop();
            }
        }
        if self.ownership.is_none() {
            self.journal.remove(crate::journal::StreamId::Volume(volume));
        }
        self.catalogue.published().await;
        Ok(Response::Deleted(Deleted { name: name.to_owned() }))
    }

    /// The cloud begins anew; it is brought up to date in the background.
    async fn resync_cloud(&self, name: &str) -> Result<Response, Problem> {
        let no_cloud = || {
            let remedy = "`velum cloud list` shows the clouds there are";
            Problem::new(ProblemKind::NotFound, format!("there is no cloud `{}`", name.escape_default()), remedy)
        };
        match self.resync(name).await {
            Ok(()) => views::cloud(self, name).map(Response::Cloud).ok_or_else(no_cloud),
            Err(ResyncError::NoCloud) => Err(no_cloud()),
            Err(error) => {
                let (kind, remedy) = match &error {
                    ResyncError::Cloud(CloudError::NotOurs(_)) => {
                        (ProblemKind::Conflict, "nothing is written there; look where its URL leads")
                    }
                    ResyncError::Begun => (ProblemKind::Conflict, "`velum cloud list` shows how far it is"),
                    _ => (ProblemKind::Unavailable, "ask again when the cloud and the node answer"),
                };
                Err(Problem::new(kind, format!("cloud `{name}` is not brought up to date anew: {error}"), remedy))
            }
        }
    }

    fn show_acl(&self, name: &str) -> Result<Response, Problem> {
        let volume = self.named(name)?;
        let lines = self.metadata.with(|state| {
            state.volumes.get(&volume).map_or_else(Vec::new, |volume| volume.acl.iter().map(line_of).collect())
        });
        Ok(Response::Acl(lines))
    }

    /// A new line's range lies in the volume: one beyond its end says something else than its author believes. A line that
    /// is there already may be changed, also when the volume has become smaller since.
    fn expect_inside(&self, name: &str, volume: VolumeId, entry: &AclEntry) -> Result<(), Problem> {
        let Some((first, end)) = entry.range else { return Ok(()) };
        let (size_bytes, is_known) = self.metadata.with(|state| {
            let Some(volume) = state.volumes.get(&volume) else { return (0, false) };
            let same = |known: &AclEntry| known.principal == entry.principal && known.range == entry.range;
            (volume.size_bytes, volume.acl.iter().any(same))
        });
        let regions_end = size_bytes.next_multiple_of(REGION_BLOCKS * BLOCK_BYTES);
        if is_known || end.0.saturating_mul(BLOCK_BYTES) <= regions_end {
            return Ok(());
        }
        let (first, end) = (Size::from_bytes(first.0 * BLOCK_BYTES), Size::from_bytes(end.0 * BLOCK_BYTES));
        let (size, last) = (Size::from_bytes(size_bytes), Size::from_bytes(regions_end));
        let detail = format!("the range {first}..{end} reaches beyond volume `{name}`, which has {size}");
        Err(Problem::new(ProblemKind::Invalid, detail, format!("its last region ends at {last}")))
    }

    /// Asked of the owner: when it is answered, gate 2 judges by it.
    async fn set_acl(&self, name: &str, line: AclLine) -> Result<Response, Problem> {
        let volume = self.own(name)?;
        let entry = entry_of(&line)?;
        self.expect_inside(name, volume, &entry)?;
        self.put_in_force(name, volume, Command::SetAcl { volume, entry }).await?;
        self.catalogue.published().await;
        self.show_acl(name)
    }
}

fn line_of(entry: &AclEntry) -> AclLine {
    AclLine {
        principal: entry.principal.clone(),
        access: match entry.right {
            Right::None => Access::None,
            Right::Read => Access::Read,
            Right::Write => Access::Write,
        },
        range: entry.range.map(|(first, end)| ByteRange { start: first.0 * BLOCK_BYTES, end: end.0 * BLOCK_BYTES }),
    }
}

fn entry_of(line: &AclLine) -> Result<AclEntry, Problem> {
    let whole = |bytes: u64| {
        bytes.is_multiple_of(BLOCK_BYTES).then_some(BlockIndex(bytes / BLOCK_BYTES)).ok_or_else(|| {
            let detail = format!("{bytes} is not a bound of a 64 MiB region");
            Problem::new(ProblemKind::Invalid, detail, "use multiples of 64MiB")
        })
    };
    let range = line.range.map(|range| Ok::<_, Problem>((whole(range.start)?, whole(range.end)?))).transpose()?;
    let right = match line.access {
        Access::None => Right::None,
        Access::Read => Right::Read,
        Access::Write => Right::Write,
    };
    Ok(AclEntry { principal: line.principal.clone(), range, right })
}

fn not_resized(name: &str, error: &dyn std::error::Error) -> Problem {
    Problem::new(ProblemKind::Unavailable, format!("volume `{name}` was not resized: {error}"), "ask again")
}

fn not_open(name: &str) -> Problem {
    let detail = format!("volume `{name}` is not open yet: its map is still being read from the clouds");
    Problem::new(ProblemKind::Unavailable, detail, "`velum cloud list` shows which clouds answer")
}

fn problem(error: &MetadataError) -> Problem {
    let (kind, remedy) = match error {
        MetadataError::Rejected(Rejection::NameTaken) => (ProblemKind::Conflict, "choose another name"),
        MetadataError::Rejected(Rejection::NoSuchVolume) => {
            (ProblemKind::NotFound, "`velum volume list` shows the volumes there are")
        }
        MetadataError::Rejected(Rejection::BadName | Rejection::BadSize | Rejection::BadAcl) => {
            (ProblemKind::Invalid, "correct the request")
        }
        MetadataError::Rejected(Rejection::NoSuchNode(_)) => {
            (ProblemKind::NotFound, "`velum cluster status` shows the nodes there are")
        }
        MetadataError::Rejected(Rejection::OwnsVolumes(..)) => {
            (ProblemKind::Conflict, "start it with [peers] once, so that other nodes keep its volumes too")
        }
        MetadataError::Rejected(Rejection::Attached) => {
            (ProblemKind::Conflict, "`velum volume attachments` shows by whom; --steal ends what there is")
        }
        MetadataError::Rejected(Rejection::NotAttached) => {
            (ProblemKind::NotFound, "`velum volume attachments` shows those there are")
        }
        MetadataError::Rejected(Rejection::Permitted) => {
            (ProblemKind::Conflict, "`velum volume attachments` shows whose it is; --steal takes it")
        }
        MetadataError::Rejected(Rejection::NotShared) => (ProblemKind::Conflict, "attach with --shared"),
        MetadataError::Rejected(Rejection::BadAttachment | Rejection::BadPermit) => {
            (ProblemKind::Invalid, "correct the request")
        }
        MetadataError::Rejected(Rejection::LastNode(_)) => {
            (ProblemKind::Conflict, "let another node join first, with `velum cluster token`")
        }
        MetadataError::Rejected(_) => (ProblemKind::Conflict, "look at the present state and ask again"),
        MetadataError::Unknown(_) => (ProblemKind::Unavailable, "look whether it was done, then ask again"),
    };
    Problem::new(kind, error.to_string(), remedy)
}
