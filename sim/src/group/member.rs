//! One member of a simulated group: a machine with a disk, and the process on it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::Path,
    rc::Rc,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use velum_node::{
    actor,
    consensus::{self, Change, Consensus, Member as RaftMember, ProposeError, RaftStatus},
    env::{Env, network::Address},
    journal::{Journal, JournalIdentity, JournalSettings},
    keyring::Keyring,
    node::group::{self, Found},
    peer::Links,
};
use velum_protocol::id::NodeId;

use super::state::{self, State, Witness};
use crate::{
    checker::{
        own7::Led,
        own8::{Standing, check, check_restart},
    },
    env::{
        self, Machine, Surroundings,
        disk::{Image, Loss},
    },
    guest::connection::within,
    planted::Planted,
    rng::Rng,
    runtime::{Life, Process},
};

/// The port that members listen on.
const PORT: u16 = 9891;

/// What a member is asked.
pub(super) enum Question {
    /// Agree on an entry.
    Propose(Bytes),
    /// Catch up with all that is agreed now.
    Read,
    /// Another membership.
    Change(Change),
    /// Another leader.
    Transfer(NodeId),
}

type Answer = Result<(), ProposeError>;
type Asked = (Question, oneshot::Sender<Answer>);

/// What is the same for all members of a world.
#[derive(Clone)]
pub(super) struct Setting {
    /// Time, network and trace.
    pub(super) around: Surroundings,
    /// The cluster's keys.
    pub(super) keyring: Keyring,
    /// Judges what all members do.
    pub(super) witness: Rc<Witness>,
    /// Where members are, by number.
    pub(super) addresses: Rc<RefCell<BTreeMap<NodeId, Address>>>,
    /// Members that were removed.
    pub(super) removed: Rc<RefCell<Vec<NodeId>>>,
    /// The journal's ring.
    pub(super) journal: JournalSettings,
    /// Bytes that a snapshot carries along.
    pub(super) padding: usize,
    /// The bug of every member.
    pub(super) planted: Option<Planted>,
}

/// What can be seen of a running member.
#[derive(Clone)]
struct Seen {
    consensus: Consensus,
    state: Rc<RefCell<State>>,
    links: Links,
}

/// A member.
pub(super) struct Member {
    setting: Setting,
    /// Its number.
    pub(super) node: NodeId,
    machine: Machine,
    rng: Rng,
    founds: bool,
    lives: Cell<u64>,
    process: RefCell<Option<Process>>,
    asked: RefCell<Option<mpsc::Sender<Asked>>>,
    seen: Rc<RefCell<Option<Seen>>>,
    /// Where it stood when it was last looked at.
    stood: Cell<Standing>,
    is_fresh: Cell<bool>,
    /// Its disk was lost: what it had promised nobody keeps.
    lost_disk: Cell<bool>,
}

impl Member {
    /// A machine with an empty disk. One member founds the group, all others join it.
    pub(super) fn new(setting: &Setting, node: u64, founds: bool) -> Self {
        let sim = &setting.around.sim;
        let rng = Rng::new(sim.seed(), &format!("member {node}"));
        let name = format!("n{node}");
        let machine = Machine {
            clock_offset_ms: rng.below(100_000),
            clock_rate_ppm: 0,
            compute_ms_max: 2,
            ..Machine::new(&name)
        };
        let address = Address::Tcp(format!("{name}:{PORT}"));
        setting.addresses.borrow_mut().insert(NodeId(node), address);
        Self {
            setting: setting.clone(),
            node: NodeId(node),
            machine,
            rng,
            founds,
            lives: Cell::new(0),
            process: RefCell::default(),
            asked: RefCell::default(),
            seen: Rc::default(),
            stood: Cell::default(),
            is_fresh: Cell::new(false),
            lost_disk: Cell::new(false),
        }
    }

    /// The machine.
    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Starts the process. A member without its disk never starts again, unless it has that very bug.
    pub(super) fn start(&self) {
        if self.lost_disk.get() && self.setting.planted != Some(Planted::VotesAfterLoss) {
            return;
        }
        self.lives.set(self.lives.get() + 1);
        let sim = &self.setting.around.sim;
        sim.event("start", &self.machine.name, &[self.lives.get()]);
        let life = Rc::<Life>::default();
        let mut env = env::of(&self.setting.around, &self.machine, &life, self.lives.get());
        if let Some(planted) = self.setting.planted {
            // A group has no clouds, and so no objects that a bug would have to open.
            env = planted.into_env(&self.setting.around, env, [0; 32]);
        }
        let (asked, questions) = mpsc::channel(64);
        *self.asked.borrow_mut() = Some(asked);
        self.is_fresh.set(true);
        let own = (Rc::clone(&life), self.node, self.founds && !self.lost_disk.get());
        let main = run(env, self.setting.clone(), own, questions, Rc::clone(&self.seen));
        *self.process.borrow_mut() = Some(Process::start(sim, life, main));
    }

    /// The process is killed; the page cache stays.
    pub(super) fn kill(&self) {
        self.end("kill");
        self.machine.medium.image.borrow_mut().drop_nameless();
    }

    /// The machine loses power.
    pub(super) fn lose_power(&self, loss: Loss) {
        self.end("power loss");
        self.machine.medium.image.borrow_mut().crash(loss, &self.rng);
    }

    /// The process is killed, and the disk is lost.
    pub(super) fn lose_disk(&self) {
        self.end("disk loss");
        self.machine.medium.image.replace(Image::default());
        self.lost_disk.set(true);
        self.stood.set(Standing::default());
    }

    /// True once its disk was lost.
    pub(super) fn has_lost_disk(&self) -> bool {
        self.lost_disk.get()
    }

    fn end(&self, how: &'static str) {
        self.look();
        self.setting.around.sim.count("snapshots installed", self.restored());
        self.setting.around.sim.event(how, &self.machine.name, &[]);
        *self.asked.borrow_mut() = None;
        *self.seen.borrow_mut() = None;
        drop(self.process.borrow_mut().take());
    }

    /// True while a process runs.
    pub(super) fn is_up(&self) -> bool {
        self.process.borrow().is_some()
    }

    /// True when the process has ended by itself, at an I/O that was chosen.
    pub(super) fn has_ended(&self) -> bool {
        self.process.borrow().as_ref().is_some_and(|process| !process.life().is_alive())
    }

    /// True once it was removed from the group.
    pub(super) fn is_retired(&self) -> bool {
        self.setting.removed.borrow().contains(&self.node)
    }

    /// How raft stands on it.
    pub(super) fn status(&self) -> Option<RaftStatus> {
        if self.has_ended() {
            return None;
        }
        self.seen.borrow().as_ref().map(|seen| seen.consensus.status())
    }

    /// The voters and learners as it knows them, and whether that is about to change.
    pub(super) fn members(&self) -> Option<(Vec<u64>, Vec<u64>, bool)> {
        let members = self.seen.borrow().as_ref().map(|seen| seen.consensus.members())?;
        Some((members.voters, members.learners, !members.voters_outgoing.is_empty()))
    }

    /// The proposals it has applied, and the hash over their order.
    pub(super) fn held(&self) -> Option<(Vec<u64>, u64)> {
        let seen = self.seen.borrow();
        let state = seen.as_ref()?.state.borrow();
        Some((state.numbers().to_vec(), state.hash()))
    }

    /// Snapshots it has taken on in this life.
    pub(super) fn restored(&self) -> u64 {
        self.seen.borrow().as_ref().map_or(0, |seen| seen.state.borrow().restored.get())
    }

    /// Tells it which peers there are.
    pub(super) fn tell_peers(&self) {
        if let Some(seen) = &*self.seen.borrow() {
            seen.links.set_peers(&self.setting.addresses.borrow());
        }
    }

    /// Judges where it stands now.
    pub(super) fn look(&self) {
        let Some(status) = self.status() else { return };
        let sim = &self.setting.around.sim;
        let RaftStatus { term, applied, commit, persisted, .. } = status;
        let led = if status.is_leader { term } else { self.stood.get().led };
        let now = Standing { term, led, applied, commit, persisted };
        let mut verdict = check(self.node.0, now);
        if self.is_fresh.replace(false) {
            verdict = verdict.and_then(|()| check_restart(self.node.0, self.stood.get(), now));
        }
        if let Err(why) = verdict {
            sim.fail(format!("OWN8: {why}"));
        }
        self.stood.set(now);
        if status.is_leader {
            self.setting.witness.led(sim, Led { term, node: self.node.0 });
        }
        if let Some(reason) = status.halted {
            sim.fail(format!("raft stopped on node {}: {reason}", self.node));
        }
    }

    /// Asks it something; `None` when it does not answer within `limit_ms`, or is down.
    pub(super) async fn ask(&self, question: Question, limit_ms: u64) -> Option<Answer> {
        let asked = self.asked.borrow().clone()?;
        let (answer, answered) = oneshot::channel();
        let ask = async move {
            asked.send((question, answer)).await.ok()?;
            answered.await.ok()
        };
        within(&self.setting.around.sim, limit_ms, ask).await.flatten()
    }
}

/// The process of a member.
async fn run(
    env: Env,
    setting: Setting,
    (life, node, founds): (Rc<Life>, NodeId, bool),
    mut questions: mpsc::Receiver<Asked>,
    seen: Rc<RefCell<Option<Seen>>>,
) {
    let sim = Rc::clone(&setting.around.sim);
    match begin(&env, &setting, node, founds).await {
        Ok(running) => *seen.borrow_mut() = Some(running.clone()),
        // It ended in the middle of its start, as it was to.
        Err(_) if !life.is_alive() => return,
        Err(why) => return sim.fail(format!("OWN8: node {node} does not start: {why}")),
    }
    let running = seen.borrow().clone();
    let Some(Seen { consensus, .. }) = running else { return };
    while let Some((question, answer)) = questions.recv().await {
        let answered = match question {
            Question::Propose(entry) => {
                let proposed = consensus.propose(entry);
                actor::spawn(async move {
                    // Whoever asked may have given up.
                    let _ = answer.send(proposed.await.map(drop));
                });
                continue;
            }
            Question::Read => consensus.read(),
            Question::Change(change) => consensus.change(change),
            Question::Transfer(to) => consensus.transfer(to),
        };
        actor::spawn(async move {
            let _ = answer.send(answered.await);
        });
    }
    std::future::pending::<()>().await;
}

async fn begin(env: &Env, setting: &Setting, node: NodeId, founds: bool) -> Result<Seen, String> {
    let (journal_dir, raft_dir) = (Path::new("/velum/journal"), Path::new("/velum/raft"));
    let keyring = &setting.keyring;
    let member = || RaftMember { node, cluster: keyring.cluster(), seal: keyring.state().clone() };
    let is_made = consensus::is_bootstrapped(env, raft_dir).await.map_err(|error| error.to_string())?;
    let made = match (is_made, founds) {
        (true, _) => Ok(()),
        (false, true) => consensus::bootstrap(env, raft_dir, member(), state::empty()).await,
        (false, false) => consensus::join(env, raft_dir, member()).await,
    };
    made.map_err(|error| error.to_string())?;
    let identity = JournalIdentity { cluster: keyring.cluster(), node };
    let (journal, mut replay) =
        Journal::examine(env, journal_dir, setting.journal, identity).await.map_err(|error| error.to_string())?;
    let mut state = State::new(Rc::clone(&setting.around.sim), Rc::clone(&setting.witness), node.0, setting.padding);
    if setting.planted == Some(Planted::HashOrder) {
        state.go_by_hash(env.entropy.number());
    }
    let state = Rc::new(RefCell::new(state));
    let examined = Consensus::examine(env, raft_dir, member(), (&journal, &mut replay), &*state).await;
    let examined = examined.map_err(|error| error.to_string())?;
    let journal = journal.begin().await.map_err(|error| error.to_string())?;
    let removed = Rc::clone(&setting.removed);
    let group = group::begin(
        env,
        keyring.credentials(node),
        Found { examined, journal, applier: state.clone() },
        Rc::new(move |node: NodeId| !removed.borrow().contains(&node)),
    )
    .await
    .map_err(|error| error.to_string())?;
    state.borrow().restored.set(0);
    let address = Address::Tcp(format!("0.0.0.0:{PORT}"));
    let own = setting.addresses.borrow().get(&node).cloned();
    let advertised = own.and_then(|own| if let Address::Tcp(own) = own { Some(own) } else { None });
    group.links.listen(&address, advertised).await.map_err(|error| error.to_string())?;
    group.links.set_peers(&setting.addresses.borrow());
    Ok(Seen { consensus: group.consensus, state, links: group.links })
}
