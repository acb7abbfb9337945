//! Raft over the journal on a disk that crashes: what was answered is applied after every crash, in order, once.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops at the first surprise")]

mod support;

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;
use support::{Crash, CrashDisk, Rng, env, life};
use velum_node::{
    consensus::{Applier, Consensus, ConsensusError, Member, ProposeError, RestoreError, bootstrap, is_bootstrapped},
    journal::{Journal, JournalIdentity, JournalSettings},
    keyring::{Keyring, ProviderSecret, create_cluster, new_keyfile},
};
use velum_protocol::id::NodeId;

const SETTINGS: JournalSettings = JournalSettings { file_bytes: 128 << 10, files_at_start: 4, bytes_max: 1 << 20 };
const NODE: NodeId = NodeId(1);

fn journal_dir() -> &'static Path {
    Path::new("/node/journal")
}

fn raft_dir() -> &'static Path {
    Path::new("/node/raft")
}

fn snapshot_path() -> PathBuf {
    raft_dir().join("snapshot")
}

/// A state machine that keeps everything it was given.
#[derive(Default)]
struct List {
    entries: Vec<Vec<u8>>,
    last_index: u64,
}

impl Applier for List {
    fn apply(&mut self, index: u64, entry: &[u8]) -> Bytes {
        assert!(index > self.last_index, "applied {index} after {}", self.last_index);
        self.last_index = index;
        self.entries.push(entry.to_vec());
        Bytes::from(self.entries.len().to_le_bytes().to_vec())
    }

    fn snapshot(&self) -> Bytes {
        let mut out = self.last_index.to_le_bytes().to_vec();
        for entry in &self.entries {
            out.extend_from_slice(&u32::try_from(entry.len()).unwrap().to_le_bytes());
            out.extend_from_slice(entry);
        }
        out.into()
    }

    fn check(&self, snapshot: &[u8]) -> Result<(), RestoreError> {
        Self::default().restore(snapshot)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let (index, mut rest) = snapshot.split_first_chunk::<8>().ok_or_else(|| RestoreError("short".into()))?;
        self.last_index = u64::from_le_bytes(*index);
        self.entries.clear();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let (entry, tail) = tail.split_at(usize::try_from(u32::from_le_bytes(*length)).unwrap());
            self.entries.push(entry.to_vec());
            rest = tail;
        }
        Ok(())
    }
}

/// The same keyring in every life.
fn keyring() -> Keyring {
    let env = env(&CrashDisk::new(), 42);
    let secret = ProviderSecret::from_keyfile(0o600, new_keyfile(&*env.entropy).to_vec()).unwrap();
    create_cluster(&*env.entropy, &secret).unwrap().keyring
}

fn member(keyring: &Keyring) -> Member {
    Member { node: NODE, cluster: keyring.cluster(), seal: keyring.state().clone() }
}

struct Node {
    consensus: Consensus,
    journal: Rc<Journal>,
    list: Rc<RefCell<List>>,
}

async fn start(disk: &CrashDisk, keyring: &Keyring) -> Result<Node, ConsensusError> {
    let env = env(disk, disk.operations() + 7);
    if !is_bootstrapped(&env, raft_dir()).await? {
        bootstrap(&env, raft_dir(), member(keyring), List::default().snapshot()).await?;
    }
    let identity = JournalIdentity { cluster: keyring.cluster(), node: NODE };
    let (journal, mut replay) = Journal::examine(&env, journal_dir(), SETTINGS, identity).await?;
    let list: Rc<RefCell<List>> = Rc::default();
    let examined = Consensus::examine(&env, raft_dir(), member(keyring), (&journal, &mut replay), &*list).await?;
    assert_eq!(replay.damage, vec![]);
    let journal = journal.begin().await?;
    let consensus = Consensus::start(&env, examined, Rc::clone(&journal), list.clone()).await?;
    Ok(Node { consensus, journal, list })
}

fn entry(number: u64, length: usize) -> Bytes {
    let mut entry = number.to_le_bytes().to_vec();
    entry.resize(8 + length, 1);
    entry.into()
}

fn number(entry: &[u8]) -> u64 {
    u64::from_le_bytes(*entry.first_chunk().unwrap())
}

#[test]
fn a_group_of_one_leads_at_once_and_answers_with_what_the_state_machine_says() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = start(&on, &keyring()).await.unwrap();
        assert!(node.consensus.status().is_leader);
        assert_eq!(node.consensus.propose(entry(5, 10)).await.unwrap()[..], 1_usize.to_le_bytes());
        assert_eq!(node.consensus.propose(entry(6, 10)).await.unwrap()[..], 2_usize.to_le_bytes());
        let status = node.consensus.status();
        assert_eq!((status.commit, status.applied), (4, 4));
    })
    .unwrap();
}

/// What was proposed and what was answered, over all lives.
#[derive(Default)]
struct Model {
    proposed: u64,
    answered: Vec<u64>,
}

fn check(list: &List, model: &Model, context: &str) {
    let applied: Vec<u64> = list.entries.iter().map(|entry| number(entry)).collect();
    assert!(applied.windows(2).all(|pair| pair[0] < pair[1]), "{context}: out of order or twice: {applied:?}");
    for number in &model.answered {
        assert!(applied.binary_search(number).is_ok(), "{context}: {number} was answered and is gone");
    }
    assert!(applied.last().is_none_or(|last| *last <= model.proposed), "{context}: never proposed");
}

async fn work(disk: CrashDisk, rng: Rc<Rng>, model: Rc<RefCell<Model>>, steps: u64, context: String) {
    let node = start(&disk, &keyring()).await.unwrap();
    check(&node.list.borrow(), &model.borrow(), &context);
    let mut answers = Vec::new();
    for _ in 0..steps {
        let number = {
            let mut model = model.borrow_mut();
            model.proposed += 1;
            model.proposed
        };
        let answer = node.consensus.propose(entry(number, rng.index(3000)));
        let model = Rc::clone(&model);
        answers.push(tokio::task::spawn_local(async move {
            match answer.await {
                Ok(_) => model.borrow_mut().answered.push(number),
                Err(error) => assert_eq!(error, ProposeError::Busy),
            }
        }));
        while rng.below(3) == 0 {
            tokio::task::yield_now().await;
        }
    }
    for answer in answers {
        answer.await.unwrap();
    }
    check(&node.list.borrow(), &model.borrow(), &context);
}

#[test]
fn what_was_answered_is_applied_after_any_crash_in_order_and_once() {
    for seed in 0..25 {
        let rng = Rc::new(Rng::new(seed));
        let model: Rc<RefCell<Model>> = Rc::default();
        let mut disk = CrashDisk::new();
        for turn in 0..5 {
            let context = format!("seed {seed} life {turn}");
            disk.stop_after(if rng.below(4) == 0 { 1 + rng.below(80) } else { 80 + rng.below(800) });
            life(&disk, work(disk.clone(), Rc::clone(&rng), Rc::clone(&model), 100 + rng.below(300), context));
            let crash = [Crash::Process, Crash::Power, Crash::Power, Crash::LoseAll, Crash::KeepAll][rng.index(5)];
            disk = disk.after(crash, &rng);
        }
        life(&disk, work(disk.clone(), rng, model, 1, format!("seed {seed}, the end"))).unwrap();
    }
}

/// Time for a snapshot to be put in place.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// A disk on which `count` entries were agreed.
fn agreed(count: u64, length: usize) -> CrashDisk {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = start(&on, &keyring()).await.unwrap();
        for first in (1..=count).step_by(50) {
            let burst = first..=count.min(first + 49);
            let answers: Vec<_> = burst.map(|number| node.consensus.propose(entry(number, length))).collect();
            for answer in answers {
                answer.await.unwrap();
            }
        }
        settle().await;
        assert!(node.consensus.status().log_entries < 4200);
    })
    .unwrap();
    disk.after(Crash::LoseAll, &Rng::new(1))
}

fn applied(disk: &CrashDisk) -> Result<Vec<u64>, ConsensusError> {
    let on = disk.clone();
    life(disk, async move {
        let node = start(&on, &keyring()).await?;
        let list = node.list.borrow();
        Ok(list.entries.iter().map(|entry| number(entry)).collect())
    })
    .unwrap()
}

#[test]
fn a_long_log_is_compacted_and_a_restart_goes_on_from_the_snapshot() {
    let disk = agreed(6000, 100);
    assert_eq!(applied(&disk).unwrap(), (1..=6000).collect::<Vec<_>>());
    // And once more, after the restart has written its own entry.
    assert_eq!(applied(&disk.after(Crash::LoseAll, &Rng::new(1))).unwrap().len(), 6000);
}

#[test]
fn the_journal_does_not_keep_what_a_snapshot_covers() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = start(&on, &keyring()).await.unwrap();
        for number in 1..=9000 {
            node.consensus.propose(entry(number, 50)).await.unwrap();
        }
        // 9,000 records of 250 bytes would not fit the ring of 1 MiB.
        assert!(node.journal.status().bytes_live < 1 << 20);
        assert!(node.consensus.status().log_entries < 4200);
    })
    .unwrap();
}

#[test]
fn a_damaged_snapshot_is_refused_wherever_it_is_damaged() {
    let whole = agreed(3, 10);
    let length = whole.bytes(&snapshot_path()).len();
    assert_eq!(applied(&whole.after(Crash::KeepAll, &Rng::new(1))).unwrap(), [1, 2, 3]);
    for at in (0..length).step_by(7) {
        let disk = whole.after(Crash::KeepAll, &Rng::new(1));
        disk.damage(&snapshot_path(), |bytes| bytes[at] ^= 0x40);
        assert!(matches!(applied(&disk), Err(ConsensusError::SnapshotDamaged { .. })), "byte {at}");
    }
    let disk = whole.after(Crash::KeepAll, &Rng::new(1));
    disk.damage(&snapshot_path(), |bytes| bytes.truncate(100));
    assert!(matches!(applied(&disk), Err(ConsensusError::SnapshotDamaged { .. })));
}

#[test]
fn a_leftover_of_an_unfinished_snapshot_is_removed() {
    let disk = agreed(3, 10);
    let on = disk.clone();
    life(&disk, async move {
        let path = raft_dir().join("snapshot.new");
        let disk: &dyn velum_node::env::Disk = &on;
        drop(disk.open(&path, velum_node::env::OpenMode::CreateNew).await.unwrap());
    });
    assert_eq!(applied(&disk).unwrap(), [1, 2, 3]);
    assert!(!disk.paths().iter().any(|path| path.ends_with("snapshot.new")));
}

#[test]
fn a_lost_journal_is_not_taken_for_a_new_node() {
    let disk = agreed(3, 10);
    for path in disk.paths() {
        if path.starts_with(journal_dir()) {
            disk.remove_file(&path);
        }
    }
    assert!(matches!(applied(&disk), Err(ConsensusError::LogDamaged { .. })));
}

#[test]
fn a_node_without_a_group_and_a_group_made_twice_are_refused() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let (env, keyring) = (env(&on, 1), keyring());
        let identity = JournalIdentity { cluster: keyring.cluster(), node: NODE };
        let (journal, mut replay) = Journal::examine(&env, journal_dir(), SETTINGS, identity).await.unwrap();
        let list = RefCell::new(List::default());
        let found = Consensus::examine(&env, raft_dir(), member(&keyring), (&journal, &mut replay), &list).await;
        assert!(matches!(found, Err(ConsensusError::NoGroup { .. })));
        bootstrap(&env, raft_dir(), member(&keyring), Bytes::new()).await.unwrap();
        let again = bootstrap(&env, raft_dir(), member(&keyring), Bytes::new()).await;
        assert!(matches!(again, Err(ConsensusError::GroupExists { .. })));
    })
    .unwrap();
}

#[test]
fn proposals_out_of_bounds_are_refused_without_effect() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = start(&on, &keyring()).await.unwrap();
        assert_eq!(node.consensus.propose(Bytes::new()).await, Err(ProposeError::Length(0)));
        let long = Bytes::from(vec![0; 5 << 20]);
        assert_eq!(node.consensus.propose(long).await, Err(ProposeError::Length(5 << 20)));
        let longest = Bytes::from(vec![0; node.journal.body_bytes_max() - 400]);
        assert!(node.consensus.propose(longest).await.is_ok());
        assert_eq!(node.list.borrow().entries.len(), 1);
    })
    .unwrap();
}

#[test]
fn a_failed_journal_stops_raft_and_every_proposal_hears_of_it() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = start(&on, &keyring()).await.unwrap();
        settle().await;
        on.fail_sync_at.set(on.syncs() + 1);
        let (first, second) = (node.consensus.propose(entry(1, 10)), node.consensus.propose(entry(2, 10)));
        assert_eq!(first.await, Err(ProposeError::Stopped));
        assert_eq!(second.await, Err(ProposeError::Stopped));
        assert_eq!(node.consensus.propose(entry(3, 10)).await, Err(ProposeError::Stopped));
        assert!(node.consensus.status().halted.is_some());
        assert!(node.list.borrow().entries.is_empty());
    })
    .unwrap();
}

#[test]
fn proposals_share_syncs() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = start(&on, &keyring()).await.unwrap();
        let before = node.journal.status().syncs;
        let answers: Vec<_> = (1..=64).map(|number| node.consensus.propose(entry(number, 100))).collect();
        for answer in answers {
            answer.await.unwrap();
        }
        assert!(node.journal.status().syncs - before <= 3, "{} syncs", node.journal.status().syncs - before);
    })
    .unwrap();
}

#[test]
fn time_passing_changes_nothing_for_a_group_of_one() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = start(&on, &keyring()).await.unwrap();
        settle().await;
        let before = node.consensus.status();
        env(&on, 1).clock.sleep(std::time::Duration::from_secs(60)).await;
        assert_eq!(node.consensus.status(), before);
        node.consensus.propose(entry(1, 10)).await.unwrap();
    })
    .unwrap();
}

#[test]
fn the_same_history_leaves_the_same_disk() {
    let run = || agreed(300, 700).image();
    assert_eq!(run(), run());
}

#[test]
fn more_proposals_than_the_journal_bears_are_refused_and_the_others_agreed() {
    let disk = CrashDisk::new();
    let on = disk.clone();
    life(&disk, async move {
        let node = start(&on, &keyring()).await.unwrap();
        let answers: Vec<_> = (1..=3000).map(|number| node.consensus.propose(entry(number, 50))).collect();
        let mut refused = 0;
        for answer in answers {
            match answer.await {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error, ProposeError::Busy);
                    refused += 1;
                }
            }
        }
        assert!(refused > 0);
        assert_eq!(node.list.borrow().entries.len(), 3000 - refused);
        assert!(node.consensus.propose(entry(3001, 50)).await.is_ok());
    })
    .unwrap();
}
