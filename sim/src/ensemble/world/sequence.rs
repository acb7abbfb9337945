//! How an owner's records come into the sequence: sealed when they are sent, agreed on when raft gets to them, sent again when no
//! answer comes. A record may be on its way while the next one is made, and while another owner takes over.

use bytes::Bytes;
use velum_node::metadata::{Answer, Rejection, state::Head};
use velum_protocol::{
    format::{
        metadata::Command,
        sequence::{Body, Link},
    },
    id::{Hash, KeyEpoch, NodeId},
    peer::ensemble::Point,
};

use super::{Event, Told, World};
use crate::{
    ensemble::{
        bugs::Bug,
        machine::{Role, Sent, Up, VOLUME},
    },
    ledger::Record,
};

impl World {
    /// The owner makes a record of what is at d0. While none of it was answered, it goes on behind what it has sent, or takes that
    /// for lost and seals the same window once more.
    pub(super) fn sequence(&mut self, node: NodeId, process: u64) {
        let (wait_ms, goes_on) = (self.rng.between(50, 1_000), self.rng.chance(500_000));
        let head = self.state.volumes[&VOLUME].head;
        let early = self.has(Bug::TrimBeforeDurable);
        let Some(Up { role: Role::Owning(owning), .. }) = self.up(node, process) else { return };
        owning.sent.retain(|sent| sent.seq > head.seq);
        let (epoch, written) = (owning.epoch, owning.written);
        let (before, last) = match owning.sent.last() {
            Some(sent) if goes_on => (*sent, written),
            _ => {
                let agreed =
                    Sent { seq: head.seq, hash: head.chain, last: Point { at: head.last, chain: head.journal_chain } };
                (
                    agreed,
                    owning.sent.first().filter(|sent| sent.seq == head.seq.next()).map_or(written, |sent| sent.last),
                )
            }
        };
        if last.at > before.last.at {
            owning.sent.retain(|sent| sent.seq <= before.seq);
            let link = Link { epoch, first: before.last.at.next(), last: last.at, prev_hash: before.hash };
            self.send_record(node, process, before, link, last);
        }
        if early {
            self.step_role(node, process, Told::Trimmed(written.at));
        }
        self.later(wait_ms, Event::Sequence { node, process });
    }

    /// Sends a record to raft, under a grant.
    fn send_record(&mut self, node: NodeId, process: u64, before: Sent, link: Link, last: Point) {
        let Link { epoch, first, prev_hash, .. } = link;
        let Ok(Answer::Grant(grant)) =
            self.propose(Command::GrantFlush { volume: VOLUME, epoch, key_epoch: KeyEpoch(1) })
        else {
            return;
        };
        // No two sealings are alike.
        self.sealed += 1;
        let (seq, mut hash) = (before.seq.next(), [0; 32]);
        hash[..8].copy_from_slice(&seq.0.to_le_bytes());
        hash[8..16].copy_from_slice(&self.sealed.to_le_bytes());
        let (hash, record) = (Hash(hash), Bytes::from_static(b"sealed"));
        if let Some(Up { role: Role::Owning(owning), .. }) = self.up(node, process) {
            owning.sent.push(Sent { seq, hash, last });
        }
        let (is_lost, is_slow) = (self.rng.chance(150_000), self.rng.chance(200_000));
        let wait_ms = if is_slow { self.rng.between(300, 2_500) } else { self.rng.between(1, 40) };
        if !is_lost {
            let (volume, journal_chain, objects) = (VOLUME, last.chain, Vec::new());
            let last = last.at;
            let append = Command::AppendSequence {
                volume,
                epoch,
                grant,
                seq,
                prev_hash,
                hash,
                first,
                last,
                journal_chain,
                record,
                objects,
            };
            self.later(wait_ms, Event::Append { append: Box::new(append) });
        }
    }

    /// Raft has come to a record; the cloud has it later.
    pub(super) fn append(&mut self, append: Command) {
        let lag_ms = self.rng.between(10, 2_000);
        let Command::AppendSequence { epoch, seq, prev_hash, hash, first, last, journal_chain, .. } = append else {
            return;
        };
        let taken = match self.recipe.bug {
            Some(Bug::StaleAppend) => self.append_in_any_epoch(append),
            Some(Bug::UnlinkedAppend) => self.append_behind_anything(append),
            _ => self.propose(append),
        };
        if taken.is_err() {
            return self.tally.count("sequence records refused");
        }
        self.tally.count("sequence records");
        let link = Link { epoch, first, last, prev_hash };
        let body = Body { journal_chain, segments: Vec::new(), updates: Vec::new() };
        let verdict = self.ghost.sequenced(Record { link, body, chain: hash });
        self.judge(verdict);
        self.later(lag_ms, Event::Cursor { seq: seq.0, epoch });
    }

    /// As metadata would apply it that does not look at the epoch.
    fn append_in_any_epoch(&mut self, append: Command) -> Result<Answer, Rejection> {
        let (Command::AppendSequence { epoch, grant, .. }, Some(volume), Some(ensemble)) =
            (&append, self.state.volumes.get_mut(&VOLUME), self.state.ensembles.get_mut(&VOLUME))
        else {
            unreachable!("only appends come here, and the volume has an ensemble by then")
        };
        let (granted, opened, grants) = (volume.epoch, ensemble.opened, volume.grants.clone());
        (volume.epoch, ensemble.opened) = (*epoch, *epoch);
        volume.grants.insert(*grant);
        let answer = self.propose(append);
        if let (Some(volume), Some(ensemble)) =
            (self.state.volumes.get_mut(&VOLUME), self.state.ensembles.get_mut(&VOLUME))
        {
            (volume.epoch, ensemble.opened, volume.grants) = (granted, opened, grants);
        }
        answer
    }

    /// As metadata would apply it that does not look at the hash of the record before.
    fn append_behind_anything(&mut self, mut append: Command) -> Result<Answer, Rejection> {
        let Head { chain, .. } = self.state.volumes[&VOLUME].head;
        if let Command::AppendSequence { prev_hash, .. } = &mut append {
            *prev_hash = chain;
        }
        self.propose(append)
    }
}
