//! One file per promise; `docs/simulator.md` lists them. Each checker takes what guests saw or what the clouds hold, knows
//! nothing of the node's workings, and says what is wrong in one sentence that names the requests.
//!
//! Each has a test in which one injected violation is rejected: a checker that cannot fail is worth nothing.

pub mod auth1;
pub mod auth2;
pub mod auth4;
pub mod cry1;
pub mod cry2;
#[cfg(test)]
pub(crate) mod example;
pub mod gc4;
pub(crate) mod linear;
pub mod liv1;
pub mod liv2;
pub mod liv3;
pub mod own1;
pub mod own7;
pub mod own8;
pub(crate) mod prefix;
pub mod seq1;
pub mod seq2;
pub mod seq3;
pub mod seq4;
pub mod seq5;
pub mod seq6;
pub mod seq8;
pub mod seq9;
pub(crate) mod stale;
pub mod vis1;
pub mod vis2;
pub mod vis3;
pub mod vis4;
pub mod vis5;
pub mod vis6;
pub mod vis7;

use crate::history::{Answer, Op, VolumeHistory};

/// Kept, or what is wrong.
pub type Verdict = Result<(), String>;

type Check = fn(&VolumeHistory) -> Verdict;

/// Judges a volume's whole history by every promise to guests; names the promises that were broken.
#[must_use]
pub fn judge_guests(volume: &VolumeHistory) -> Vec<String> {
    let checks: [(&str, Check); 10] = [
        ("VIS1", vis1::check),
        ("VIS2", vis2::check),
        ("VIS3", vis3::check),
        ("VIS4", vis4::check),
        ("VIS5", vis5::check),
        ("VIS6", vis6::check),
        ("VIS7", vis7::check),
        ("SEQ5", seq5::check),
        ("AUTH1", auth1::check),
        ("AUTH4", auth4::check),
    ];
    let broken =
        |(name, check): (&str, Check)| check(volume).err().map(|why| format!("{name} volume {}: {why}", volume.name));
    checks.into_iter().filter_map(broken).collect()
}

/// A request in words, for verdicts.
pub(crate) fn words(op: &Op) -> String {
    let answer = match op.answer {
        Answer::None => "unanswered".to_owned(),
        Answer::Done(step) => format!("done at {step}"),
        Answer::Refused(step) => format!("refused at {step}"),
        Answer::Denied(step) => format!("denied at {step}"),
    };
    let void = op.void_from.map_or(String::new(), |step| format!(", its process killed at {step}"));
    format!(
        "{:?} #{} of sectors {}+{}{} on connection {} (asked at {}, {answer}{void})",
        op.kind,
        op.id,
        op.first,
        op.count,
        if op.fua { " FUA" } else { "" },
        op.connection,
        op.invoked
    )
}
