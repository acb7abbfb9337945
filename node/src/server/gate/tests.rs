//! Gate 1 beside volumes that exist, that do not, and that the principal may not see.

use super::*;
use crate::{
    audit::{Counts, Verdict},
    server::fakes::{Table, somebody},
};

#[test]
fn unknown_and_forbidden_volumes_look_alike_and_each_refusal_is_recorded_once() {
    let (_, gate, audit) = Table::gate(&[("hidden", Right::None), ("mine", Right::Write), ("theirs", Right::Read)], 0);
    let who = somebody();
    assert_eq!(gate.visible(&who), ["mine", "theirs"]);
    assert!(gate.admit("hidden", &who, Action::Attach).is_none());
    assert!(gate.admit("missing", &who, Action::Inspect).is_none());
    assert_eq!(gate.admit("theirs", &who, Action::Attach).unwrap().right, Right::Read);
    assert_eq!(audit.counts(Number::Volume), Counts { allowed: 1, refused: 2 });
    let records: Vec<_> = audit.recent().into_iter().map(|r| (r.verdict, r.action, r.volume)).collect();
    assert_eq!(
        records,
        [
            (Verdict::Refused, Action::Attach, Some(VolumeId([1; 16]))),
            (Verdict::Refused, Action::Inspect, None),
            (Verdict::Allowed, Action::Attach, Some(VolumeId([3; 16]))),
        ]
    );
}

#[test]
fn the_empty_name_is_the_only_volume_the_principal_may_know_of() {
    for (volumes, expected) in [
        (&[][..], None),
        (&[("a", Right::None)][..], None),
        (&[("a", Right::None), ("b", Right::Read)][..], Some("b")),
        (&[("a", Right::Write), ("b", Right::Read)][..], None),
    ] {
        let (_, gate, _) = Table::gate(volumes, 0);
        let admitted = gate.admit("", &somebody(), Action::Attach).map(|export| export.name);
        assert_eq!(admitted.as_deref(), expected, "{volumes:?}");
    }
}

#[test]
fn a_right_taken_away_is_gone_at_the_next_look() {
    let (table, gate, _) = Table::gate(&[("a", Right::Write)], 0);
    let volume = gate.admit("a", &somebody(), Action::Attach).unwrap().volume;
    assert_eq!(gate.right(volume, &somebody()), Right::Write);
    table.set_right("a", Right::Read);
    assert_eq!(gate.right(volume, &somebody()), Right::Read);
    assert_eq!(gate.right(VolumeId([9; 16]), &somebody()), Right::None);
}
