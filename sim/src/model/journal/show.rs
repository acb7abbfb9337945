//! Steps for people.

use velum_protocol::{
    format::metadata::Command,
    peer::{Frame, ensemble::Condition},
};

use super::{
    Step,
    world::{Flying, Letter, News, World, number},
};
use crate::ensemble::machine::VOLUME;

/// What happens.
pub(super) fn step(world: &World, step: Step) -> String {
    let at = |node: usize| format!("node {}", number(node));
    let message = |index: usize| message(&world.flying[index]);
    match step {
        Step::Deliver(index) => message(index),
        Step::Repeat(index) => format!("{}, which will come again", message(index)),
        Step::Break(index) => format!("the link breaks, and with it {}", message(index)),
        Step::Synced(node) => format!("{} has synced its journal", at(node)),
        Step::Stored(node) => {
            let promise = world.nodes[node].machine.disk.storing.front();
            format!("{} has stored its promise {}", at(node), promise.map_or(0, |noted| noted.epoch.0))
        }
        Step::Hear(node) => format!("{} hears of raft: {}", at(node), news(world.nodes[node].news.front())),
        Step::Write(node) => format!("a guest writes at {}", at(node)),
        Step::Barrier(node) => format!("a guest asks {} for a barrier", at(node)),
        Step::Flush(node) => format!("{} flushes what is at d0", at(node)),
        Step::Advance => "the cloud has the whole sequence".to_owned(),
        Step::Grant => format!("raft grants epoch {}", world.raft.state.volumes[&VOLUME].epoch.next()),
        Step::Tick(node) => format!("the owner on {} gets impatient", at(node)),
        Step::Wait(node) => format!("the takeover on {} stops waiting for whole copies", at(node)),
        Step::Read(node) => format!("a guest reads at {}", at(node)),
        Step::Pass => "half the time of a lease passes".to_owned(),
        Step::Kill { node, stored } => format!("{} is killed and starts{}", at(node), promises(stored)),
        Step::LosePower { node, stored, keeps } => {
            let kept = if keeps { "keeps" } else { "loses" };
            format!("{} loses power, {kept} what was not synced, and starts{}", at(node), promises(stored))
        }
        Step::Damage { node, stored, from, to } => {
            let gone = format!("of its journal {} to {to} is gone", from + 1);
            format!("{} is killed, {gone}, and it starts{}", at(node), promises(stored))
        }
    }
}

fn promises(stored: usize) -> String {
    if stored == 0 { String::new() } else { format!("; {stored} promises on their way are stored") }
}

fn news(news: Option<&News>) -> String {
    match news {
        Some(News::Granted { opening, .. }) => format!("it takes over in epoch {}", opening.epoch),
        Some(News::Closed { epoch, is_done: true }) => format!("epoch {epoch} is open"),
        Some(News::Closed { epoch, is_done: false }) => format!("epoch {epoch} will never be open"),
        Some(News::Trimmed { through }) => format!("all up to {through} is at d2"),
        None => String::new(),
    }
}

fn message(flying: &Flying) -> String {
    let Flying { from, to, letter, .. } = flying;
    match letter {
        Letter::Frame(frame) => format!("{from} -> {to}: {}", words(frame)),
        Letter::Proposal(Command::CloseEpoch { closes, last, lineage_changes, .. }) => {
            let lineage = if *lineage_changes { "; the lineage changes" } else { "" };
            format!("raft closes epoch {closes} at {last} for node {from}{lineage}")
        }
        Letter::Proposal(Command::AppendSequence { epoch, seq, first, last, .. }) => {
            format!("raft comes to sequence record {seq} of epoch {epoch}, {first} to {last}, from node {from}")
        }
        Letter::Proposal(other) => format!("raft comes to {other:?}"),
    }
}

fn words(frame: &Frame) -> String {
    match frame {
        Frame::Append(append) => {
            let marks = append.marks;
            format!(
                "append in epoch {}, {} records behind {}{}{}, d0 {} d1 {} d2 {}",
                append.epoch,
                append.records.len(),
                append.prev.at,
                if append.sync { ", to sync" } else { "" },
                append.heals.map_or("", |heal| made(heal.to)),
                marks.written,
                marks.durable,
                marks.trimmed
            )
        }
        Frame::Appended(said) => format!(
            "{:?} in epoch {}, at {}, synced {}, promised {}{}",
            said.verdict,
            said.epoch,
            said.at,
            said.synced,
            said.promise,
            lacking(said.condition)
        ),
        Frame::Fence(fence) => format!("fence for epoch {}", fence.epoch),
        Frame::Fenced(said) => format!(
            "fenced for epoch {}, holds {} to {} of epoch {}, heard of d1 {}{}",
            said.promise,
            said.base.at,
            said.tail.at,
            said.tail_epoch,
            said.durable,
            lacking(said.condition)
        ),
        Frame::ReadTail(read) => format!("read behind {} up to {} in epoch {}", read.after, read.through, read.epoch),
        Frame::Tail(tail) => format!("{} records behind {}", tail.records.len(), tail.prev.at),
        Frame::Confirm(asked) => format!("is epoch {} the last, question {}", asked.epoch, asked.ticket),
        Frame::Confirmed(said) => {
            let lease = if said.is_leased { ", and a lease is granted" } else { "" };
            format!("promised {}, to question {}{lease}", said.promise, said.ticket)
        }
        Frame::Release(said) => format!("leases of epoch {} are released", said.epoch),
        other => format!("{other:?}"),
    }
}

/// What an owner's word makes of a copy.
const fn made(to: Condition) -> &'static str {
    match to {
        Condition::Whole => ", which makes it whole",
        Condition::Amnesic => ", which makes it amnesic",
        Condition::Damaged => ", which makes it damaged",
    }
}

/// What a copy lacks.
const fn lacking(condition: Condition) -> &'static str {
    match condition {
        Condition::Whole => "",
        Condition::Amnesic => ", amnesic",
        Condition::Damaged => ", damaged",
    }
}
