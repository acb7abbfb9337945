//! Does what a member's machine says: keeps records in the journal, stores promises, answers.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use velum_protocol::{
    format::promise::Promise,
    id::{ClusterId, NodeId, VolumeId},
};

use super::{
    super::{files, records::position},
    Copies, found,
};
use crate::{
    actor::{self, Handle, Shell},
    ensemble::member::{Effect, Input, Member, Noted},
    env::Env,
    journal::{Journal, StreamId},
};

/// Pause before a promise that could not be stored is stored again.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct CopyShell {
    copies: Copies,
    volume: VolumeId,
    journal: Rc<Journal>,
    /// Something was kept and not written yet.
    unwritten: bool,
    /// The journal did not take something: nothing is said of the copy any more.
    failed: bool,
    promises: Promises,
}

impl CopyShell {
    pub(super) fn new(copies: &Copies, volume: VolumeId) -> Self {
        let inner = &copies.0;
        let promises = Promises {
            env: inner.env.clone(),
            path: found::path(&inner.promises, volume),
            of: (inner.cluster, inner.node, volume),
            waiting: Rc::default(),
            storing: Rc::default(),
        };
        let journal = Rc::clone(&inner.journal);
        Self { copies: copies.clone(), volume, journal, unwritten: false, failed: false, promises }
    }

    const fn stream(&self) -> StreamId {
        StreamId::Volume(self.volume)
    }

    /// What was kept is written before anything is said of it.
    fn write(&mut self) {
        if std::mem::take(&mut self.unwritten) {
            self.failed |= self.journal.submit().is_err();
        }
    }
}

impl Shell<Member> for CopyShell {
    fn perform(&mut self, effect: Effect, own: &Handle<Input>) {
        match effect {
            Effect::Keep { epoch, at, record } => {
                self.unwritten = true;
                if let Err(error) = self.journal.append_foreign(self.stream(), position(epoch, at), &record) {
                    self.failed = true;
                    tracing::error!(volume = %self.volume, %error, "the journal does not take another node's records");
                }
            }
            Effect::Sync => {
                self.write();
                let synced = self.journal.sync();
                own.spawn(async move {
                    match synced.await {
                        Ok(()) => Input::Synced,
                        // The journal is poisoned and this process ends.
                        Err(_) => std::future::pending().await,
                    }
                });
            }
            Effect::Store(noted) => self.promises.store(noted, own),
            Effect::Send { to, frame } => {
                self.write();
                if !self.failed {
                    self.copies.send(to, frame);
                }
            }
            Effect::Trim { epoch, through } => self.journal.trim(self.stream(), position(epoch, through)),
            Effect::WakeAfter(wait) => own.after(&*self.copies.0.env.clock, wait, Input::Wake),
            Effect::MadeUp => {
                tracing::info!(volume = %self.volume, "the copy of the journal that was damaged is filled again");
                self.journal.made_up(self.stream());
            }
        }
    }
}

/// Stores promises one after the other.
struct Promises {
    env: Env,
    path: PathBuf,
    of: (ClusterId, NodeId, VolumeId),
    waiting: Rc<RefCell<VecDeque<Promise>>>,
    storing: Rc<Cell<bool>>,
}

impl Promises {
    fn store(&self, noted: Noted, own: &Handle<Input>) {
        self.waiting.borrow_mut().push_back(found::promise(self.of, noted));
        if self.storing.replace(true) {
            return;
        }
        let (env, path, own) = (self.env.clone(), self.path.clone(), own.clone());
        let (waiting, storing) = (Rc::clone(&self.waiting), Rc::clone(&self.storing));
        actor::spawn(async move {
            loop {
                let next = waiting.borrow_mut().pop_front();
                let Some(promise) = next else { break };
                while let Err(error) = files::replace(&*env.disk, &path, &promise.encode()).await {
                    tracing::error!(path = %path.display(), %error, "a promise is not stored; trying again");
                    env.clock.sleep(RETRY).await;
                }
                own.call(Input::Stored);
            }
            storing.set(false);
        });
    }
}
