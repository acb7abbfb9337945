//! When a flush starts, and what follows each outcome.

use std::sync::Arc;

use bytes::Bytes;
use velum_protocol::id::{Epoch, Hash, VolumeId};

use super::*;
use crate::actor::Machine as _;

const MIB: u64 = 1 << 20;

fn machine() -> Machine {
    let triggers = Triggers { bytes: 8 * MIB, interval: Duration::from_secs(5) };
    Machine::new(triggers, Jseq(0), Jseq(0))
}

fn dirty(bytes: u64, last: u64) -> DirtyStatus {
    DirtyStatus { bytes, oldest: Some(Instant(0)), last: Jseq(last), ..DirtyStatus::default() }
}

fn window(first: u64, last: u64) -> Arc<Window> {
    Arc::new(Window {
        volume: VolumeId::ZERO,
        epoch: Epoch(1),
        first: Jseq(first),
        last: Jseq(last),
        chain: Hash::ZERO,
        changes: Vec::new(),
    })
}

fn record() -> SealedRecord {
    SealedRecord { stored: Bytes::from_static(b"record"), hash: Hash([1; 32]) }
}

/// Steps once at `seconds` and names the effects.
fn step(machine: &mut Machine, seconds: u64, input: Input) -> Vec<String> {
    let mut effects = Vec::new();
    machine.step(Instant(seconds * 1_000_000), input, &mut effects);
    effects.iter().filter(|effect| !matches!(effect, Effect::Show { .. })).map(name).collect()
}

fn name(effect: &Effect) -> String {
    match effect {
        Effect::Look => "look".into(),
        Effect::LookSoon => "look soon".into(),
        Effect::Freeze => "freeze".into(),
        Effect::Ask { job } => format!("ask {}", job.0),
        Effect::Pause { job } => format!("pause {}", job.0),
        Effect::Store { job, .. } => format!("store {}", job.0),
        Effect::Append { job, grant, record, .. } => {
            format!("append {} grant {grant}{}", job.0, if record.is_some() { " again" } else { "" })
        }
        Effect::Relocate => "relocate".into(),
        Effect::DropRelocation => "drop relocation".into(),
        Effect::Answer { demand, durable } => format!("answer {} {durable}", demand.0),
        Effect::Show { .. } => "show".into(),
        Effect::ArmTick => "tick".into(),
    }
}

fn allow(job: u64, grant: u64) -> Input {
    Input::Granted { job: Job(job), outcome: Granted::Allowed(grant) }
}

fn stored(job: u64) -> Input {
    Input::Stored { job: Job(job), segments: Vec::new() }
}

fn appended(job: u64, seq: u64) -> Input {
    Input::Appended { job: Job(job), outcome: Appended::Done { seq: Seq(seq) } }
}

#[test]
fn a_window_is_granted_then_stored_then_appended() {
    let mut machine = machine();
    assert_eq!(step(&mut machine, 0, Input::Looked(dirty(8 * MIB, 9))), ["freeze"]);
    assert_eq!(step(&mut machine, 0, Input::Frozen(Some(window(1, 9)))), ["ask 1", "look"]);
    assert_eq!(step(&mut machine, 0, allow(1, 70)), ["store 1"]);
    assert_eq!(step(&mut machine, 0, stored(1)), ["append 1 grant 70"]);
    assert_eq!(step(&mut machine, 0, appended(1, 1)), ["look"]);
    assert_eq!(machine.phases().count(), 0);
}

#[test]
fn little_and_young_dirt_waits_for_the_interval() {
    let mut machine = machine();
    assert!(step(&mut machine, 4, Input::Looked(dirty(4096, 1))).is_empty());
    assert_eq!(step(&mut machine, 5, Input::Tick), ["look", "tick", "freeze"]);
}

#[test]
fn a_volume_short_of_room_is_flushed_at_once() {
    let mut machine = machine();
    assert_eq!(step(&mut machine, 0, Input::Looked(DirtyStatus { short: true, ..dirty(4096, 1) })), ["freeze"]);
}

#[test]
fn nothing_is_stored_before_gate_3_lets_it_through() {
    let mut machine = machine();
    step(&mut machine, 0, Input::Looked(dirty(8 * MIB, 9)));
    step(&mut machine, 0, Input::Frozen(Some(window(1, 9))));
    let refused = Input::Granted { job: Job(1), outcome: Granted::Refused };
    assert_eq!(step(&mut machine, 0, refused), ["pause 1"]);
    assert_eq!(step(&mut machine, 1, Input::AskAgain { job: Job(1) }), ["ask 1"]);
    assert_eq!(step(&mut machine, 1, allow(1, 2)), ["store 1"]);
}

#[test]
fn windows_stored_out_of_order_are_appended_in_order() {
    let mut machine = machine();
    step(&mut machine, 0, Input::Looked(dirty(8 * MIB, 9)));
    step(&mut machine, 0, Input::Frozen(Some(window(1, 9))));
    assert_eq!(step(&mut machine, 0, Input::Looked(dirty(32 * MIB, 99))), ["freeze"]);
    step(&mut machine, 0, Input::Frozen(Some(window(10, 99))));
    step(&mut machine, 0, allow(1, 1));
    step(&mut machine, 0, allow(2, 2));
    assert!(step(&mut machine, 0, stored(2)).is_empty());
    assert_eq!(step(&mut machine, 0, stored(1)), ["append 1 grant 1"]);
    assert_eq!(step(&mut machine, 0, appended(1, 1)), ["look", "append 2 grant 2"]);
}

#[test]
fn behind_another_window_only_a_large_one_is_cut_off() {
    let mut machine = machine();
    step(&mut machine, 0, Input::Looked(dirty(8 * MIB, 9)));
    step(&mut machine, 0, Input::Frozen(Some(window(1, 9))));
    assert!(step(&mut machine, 0, Input::Looked(dirty(31 * MIB, 50))).is_empty());
    assert_eq!(step(&mut machine, 0, Input::Looked(dirty(32 * MIB, 51))), ["freeze"]);
    step(&mut machine, 0, Input::Frozen(Some(window(10, 51))));
    let more = DirtyStatus { short: true, ..dirty(100 * MIB, 99) };
    assert!(step(&mut machine, 0, Input::Looked(more)).is_empty(), "no third window");
}

#[test]
fn a_grant_taken_back_is_asked_for_again_and_the_record_stays_as_it_was() {
    let mut machine = machine();
    step(&mut machine, 0, Input::Looked(dirty(8 * MIB, 9)));
    step(&mut machine, 0, Input::Frozen(Some(window(1, 9))));
    step(&mut machine, 0, allow(1, 1));
    step(&mut machine, 0, stored(1));
    step(&mut machine, 0, Input::RecordSealed { job: Job(1), record: record() });
    let gone = Input::Appended { job: Job(1), outcome: Appended::GrantGone };
    assert_eq!(step(&mut machine, 0, gone), ["ask 1"]);
    assert_eq!(step(&mut machine, 0, allow(1, 2)), ["append 1 grant 2 again"]);
}

/// A record that found no room in the metadata closed the volume's sequence to its owner until the next start, although room
/// comes with the next checkpoint.
#[test]
fn a_record_without_room_is_appended_again_later_as_it_was() {
    let mut machine = machine();
    step(&mut machine, 0, Input::Looked(dirty(8 * MIB, 9)));
    step(&mut machine, 0, Input::Frozen(Some(window(1, 9))));
    step(&mut machine, 0, allow(1, 1));
    step(&mut machine, 0, stored(1));
    step(&mut machine, 0, Input::RecordSealed { job: Job(1), record: record() });
    let full = Input::Appended { job: Job(1), outcome: Appended::NoRoom };
    assert_eq!(step(&mut machine, 0, full), ["pause 1"]);
    assert_eq!(step(&mut machine, 0, Input::AskAgain { job: Job(1) }), ["ask 1"]);
    assert_eq!(step(&mut machine, 0, allow(1, 2)), ["append 1 grant 2 again"]);
}

#[test]
fn a_demand_is_answered_when_all_that_was_written_before_it_is_at_d2() {
    let mut machine = machine();
    let demanded = Input::Demanded { demand: Demand(5), status: dirty(4096, 3) };
    assert_eq!(step(&mut machine, 0, demanded), ["freeze"]);
    step(&mut machine, 0, Input::Frozen(Some(window(1, 4))));
    step(&mut machine, 0, allow(1, 1));
    step(&mut machine, 0, stored(1));
    step(&mut machine, 0, appended(1, 1));
    assert!(step(&mut machine, 0, Input::Durable { last: Jseq(2) }).is_empty());
    assert_eq!(step(&mut machine, 0, Input::Durable { last: Jseq(4) }), ["answer 5 true"]);
}

#[test]
fn a_demand_on_a_clean_volume_is_answered_at_once() {
    let mut machine = machine();
    let demanded = Input::Demanded { demand: Demand(5), status: DirtyStatus::default() };
    assert_eq!(step(&mut machine, 0, demanded), ["answer 5 true"]);
}

#[test]
fn a_demand_waits_for_the_second_window_when_two_are_under_way() {
    let mut machine = machine();
    step(&mut machine, 0, Input::Looked(dirty(8 * MIB, 9)));
    step(&mut machine, 0, Input::Frozen(Some(window(1, 9))));
    let demanded = Input::Demanded { demand: Demand(1), status: dirty(4096, 12) };
    assert_eq!(step(&mut machine, 0, demanded), ["freeze"]);
    step(&mut machine, 0, Input::Frozen(Some(window(10, 12))));
    assert!(step(&mut machine, 0, Input::Durable { last: Jseq(9) }).is_empty());
    assert_eq!(step(&mut machine, 0, Input::Durable { last: Jseq(12) }), ["answer 1 true"]);
}

#[test]
fn a_fenced_owner_drops_its_windows_and_says_so_to_who_waits() {
    let mut machine = machine();
    let demanded = Input::Demanded { demand: Demand(5), status: dirty(4096, 3) };
    step(&mut machine, 0, demanded);
    step(&mut machine, 0, Input::Frozen(Some(window(1, 3))));
    let fenced = Input::Granted { job: Job(1), outcome: Granted::Fenced };
    assert_eq!(step(&mut machine, 0, fenced), ["answer 5 false"]);
    assert!(machine.is_fenced());
    assert!(step(&mut machine, 0, stored(1)).is_empty());
    let again = Input::Demanded { demand: Demand(6), status: dirty(4096, 3) };
    assert_eq!(step(&mut machine, 0, again), ["answer 6 false"]);
}

#[test]
fn nothing_to_cut_off_is_no_reason_to_ask_again_at_once() {
    let mut machine = machine();
    assert_eq!(step(&mut machine, 0, Input::Looked(dirty(8 * MIB, 9))), ["freeze"]);
    assert_eq!(step(&mut machine, 0, Input::Frozen(None)), ["look soon"]);
    assert_eq!(step(&mut machine, 0, Input::LookSoon), ["look"]);
}

fn relocated(seq: u64) -> Input {
    Input::Relocated { outcome: Relocated::Done { seq: Seq(seq) } }
}

/// A machine whose window is under way up to `Granting`, and the window's number.
fn with_window(first: u64, last: u64) -> Machine {
    let mut machine = machine();
    step(&mut machine, 0, Input::Looked(dirty(8 * MIB, last)));
    step(&mut machine, 0, Input::Frozen(Some(window(first, last))));
    machine
}

#[test]
fn a_compaction_is_appended_while_no_window_is_ready() {
    let mut machine = with_window(1, 9);
    assert_eq!(step(&mut machine, 0, Input::RelocationOffered), ["relocate"]);
    step(&mut machine, 0, allow(1, 70));
    assert!(step(&mut machine, 0, stored(1)).is_empty(), "one record at a time");
    assert_eq!(step(&mut machine, 0, relocated(1)), ["append 1 grant 70"]);
    assert!(step(&mut machine, 0, Input::RelocationOffered).is_empty());
    assert_eq!(step(&mut machine, 0, appended(1, 2)), ["look", "relocate"]);
}

#[test]
fn a_compaction_lets_one_window_go_first_and_no_second_one() {
    let mut machine = with_window(1, 9);
    step(&mut machine, 0, allow(1, 70));
    assert_eq!(step(&mut machine, 0, stored(1)), ["append 1 grant 70"]);
    step(&mut machine, 0, Input::Looked(dirty(32 * MIB, 51)));
    step(&mut machine, 0, Input::Frozen(Some(window(10, 51))));
    step(&mut machine, 0, allow(2, 71));
    step(&mut machine, 0, stored(2));
    assert!(step(&mut machine, 0, Input::RelocationOffered).is_empty());
    assert_eq!(step(&mut machine, 0, appended(1, 1)), ["look", "append 2 grant 71"]);
    step(&mut machine, 0, Input::Looked(dirty(32 * MIB, 99)));
    step(&mut machine, 0, Input::Frozen(Some(window(52, 99))));
    step(&mut machine, 0, allow(3, 72));
    step(&mut machine, 0, stored(3));
    assert_eq!(step(&mut machine, 0, appended(2, 2)), ["look", "relocate"]);
    assert_eq!(step(&mut machine, 0, relocated(3)), ["append 3 grant 72"]);
}

/// A window's record is sealed for one place in the sequence. When its grant was taken back it waits with that record; a
/// compaction's record in that place would close the sequence to this owner.
#[test]
fn a_compaction_waits_for_a_window_whose_record_has_its_place() {
    let mut machine = with_window(1, 9);
    step(&mut machine, 0, allow(1, 1));
    step(&mut machine, 0, stored(1));
    step(&mut machine, 0, Input::RecordSealed { job: Job(1), record: record() });
    assert!(step(&mut machine, 0, Input::RelocationOffered).is_empty());
    let gone = Input::Appended { job: Job(1), outcome: Appended::GrantGone };
    assert_eq!(step(&mut machine, 0, gone), ["ask 1"]);
    assert_eq!(step(&mut machine, 0, allow(1, 2)), ["append 1 grant 2 again"]);
    assert_eq!(step(&mut machine, 0, appended(1, 1)), ["look", "relocate"]);
}

#[test]
fn a_compaction_given_up_makes_room_for_the_next() {
    let mut machine = machine();
    assert_eq!(step(&mut machine, 0, Input::RelocationOffered), ["relocate"]);
    assert!(step(&mut machine, 0, Input::Relocated { outcome: Relocated::GivenUp }).is_empty());
    assert_eq!(step(&mut machine, 0, Input::RelocationOffered), ["relocate"]);
    let demanded = Input::Demanded { demand: Demand(5), status: dirty(4096, 3) };
    step(&mut machine, 0, demanded);
    step(&mut machine, 0, Input::Frozen(Some(window(1, 3))));
    assert_eq!(step(&mut machine, 0, Input::Relocated { outcome: Relocated::Fenced }), ["answer 5 false"]);
    assert_eq!(step(&mut machine, 0, Input::RelocationOffered), ["drop relocation"]);
}

#[test]
fn what_a_fenced_owner_was_offered_is_dropped() {
    let mut machine = with_window(1, 3);
    step(&mut machine, 0, allow(1, 1));
    step(&mut machine, 0, stored(1));
    step(&mut machine, 0, Input::RelocationOffered);
    let fenced = Input::Appended { job: Job(1), outcome: Appended::Fenced };
    assert_eq!(step(&mut machine, 0, fenced), ["drop relocation"]);
}
