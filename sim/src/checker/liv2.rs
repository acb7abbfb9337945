//! LIV2: what a node holds stays within its bounds, and at rest nothing is dirty any more, on whichever node it once was.

use velum_node::node::Load;

use super::Verdict;

/// Judges what `node` holds at one moment.
///
/// # Errors
/// When something is above its bound.
pub fn check(node: u64, loads: &[Load]) -> Verdict {
    let over = loads.iter().find(|load| load.bytes > load.bytes_max);
    over.map_or(Ok(()), |Load { what, bytes, bytes_max }| {
        Err(format!("node {node} holds {bytes} bytes of {what}, and {bytes_max} is the bound"))
    })
}

/// Judges what is dirty on `node` after everything was flushed and no guest writes.
///
/// # Errors
/// When something is: what a volume took from the budget was not given back.
pub fn check_rest(node: u64, dirty: Load) -> Verdict {
    if dirty.bytes == 0 {
        return Ok(());
    }
    Err(format!("node {node} counts {} dirty bytes when all is flushed", dirty.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_bound_is_rejected() {
        let within = Load { what: "journal", bytes: 10, bytes_max: 10 };
        assert_eq!(check(1, &[within, within]), Ok(()));
        assert!(check(1, &[within, Load { bytes: 11, ..within }]).is_err());
    }

    #[test]
    fn something_dirty_at_rest_is_rejected() {
        let clean = Load { what: "dirty extents", bytes: 0, bytes_max: 10 };
        assert_eq!(check_rest(1, clean), Ok(()));
        assert!(check_rest(1, Load { bytes: 1, ..clean }).is_err());
    }
}
