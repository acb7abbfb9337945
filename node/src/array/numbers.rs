//! Object numbers of one volume, drawn from ranges that Raft hands out.
//!
//! Numbers rise and are never used twice: what is left of a range when the process ends is given up, and the next owner
//! finds its epoch over. Checkpoints rely on the order: a page with a lower number than a root is older than that root.

use std::{cell::RefCell, rc::Rc};

use velum_protocol::{
    format::metadata::Command,
    id::{Epoch, ObjectNumber, VolumeId},
};

use super::context::ArrayContext;
use crate::metadata::{Answer, Rejection};

/// Numbers asked for at once: 1 GiB of segments. What is left of a range is given up with its owner, and whoever reclaims what
/// the owner left has to look under each such number.
pub(crate) const RANGE: u64 = 128;

/// The most numbers one grant gives.
const RANGE_MAX: u64 = 65_536;

/// See the module.
pub(crate) struct Numbers {
    volume: VolumeId,
    epoch: Epoch,
    /// What is left of the range at hand: the next number and the end.
    left: RefCell<(u64, u64)>,
    /// Held while a range is asked for, so that numbers are handed out in order.
    asking: tokio::sync::Mutex<()>,
}

impl Numbers {
    /// Without a range yet.
    pub(crate) fn new(volume: VolumeId, epoch: Epoch) -> Rc<Self> {
        Rc::new(Self { volume, epoch, left: RefCell::new((0, 0)), asking: tokio::sync::Mutex::new(()) })
    }

    /// The next `count` numbers, rising; not always without gaps.
    ///
    /// # Errors
    /// When Raft refuses: this owner's epoch is over, or the volume is gone.
    pub(crate) async fn take(&self, array: &ArrayContext, count: u64) -> Result<Vec<ObjectNumber>, Rejection> {
        let _turn = self.asking.lock().await;
        let mut numbers = Vec::new();
        loop {
            let (next, end) = *self.left.borrow();
            let missing = count - u64::try_from(numbers.len()).unwrap_or(count);
            let taken = missing.min(end - next);
            numbers.extend((next..next + taken).map(ObjectNumber));
            *self.left.borrow_mut() = (next + taken, end);
            if taken == missing {
                return Ok(numbers);
            }
            let want = (missing - taken).clamp(RANGE, RANGE_MAX);
            let command = Command::GrantObjects { volume: self.volume, epoch: self.epoch, count: want };
            if let Answer::Objects(first, granted) = array.agree(command).await? {
                *self.left.borrow_mut() = (first.0, first.0 + granted);
            }
        }
    }
}
