//! SEQ8: at rest every cloud's lag is zero, and each cloud alone holds exactly what guests see.

use super::Verdict;
use crate::guest::pattern::Cell;

/// Judges how many records each cloud lacks once there was time to catch up.
///
/// # Errors
/// The first cloud that lags, or that there is none.
pub fn check_lag<'a>(clouds: impl IntoIterator<Item = (&'a str, u64)>) -> Verdict {
    let mut clouds = clouds.into_iter().peekable();
    if clouds.peek().is_none() {
        return Err("it lies in no cloud".to_owned());
    }
    match clouds.find(|(_, lag)| *lag > 0) {
        None => Ok(()),
        Some((cloud, lag)) => Err(format!("cloud {cloud} lacks {lag} records")),
    }
}

/// Judges what `cloud` alone holds of a volume at rest, `None` for nothing, by what a guest sees.
///
/// # Errors
/// The first sector that differs.
pub fn check_image(cloud: &str, held: Option<&[Cell]>, seen: &[Cell]) -> Verdict {
    let Some(held) = held else { return Err(format!("cloud {cloud} does not hold the volume")) };
    if held.len() != seen.len() {
        return Err(format!("cloud {cloud} holds {} sectors of {}", held.len(), seen.len()));
    }
    match held.iter().zip(seen).position(|(held, seen)| held != seen) {
        None => Ok(()),
        Some(sector) => Err(format!("sector {sector} differs in cloud {cloud}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_that_lags_or_none_at_all_is_rejected() {
        assert_eq!(check_lag([("a", 0), ("b", 0)]), Ok(()));
        assert!(check_lag([("a", 0), ("b", 1)]).is_err());
        assert!(check_lag([]).is_err());
    }

    #[test]
    fn one_sector_that_differs_or_is_missing_is_rejected() {
        let seen = [Cell::stamp(1, 0), Cell::stamp(1, 1), Cell::ZERO];
        assert_eq!(check_image("a", Some(&seen), &seen), Ok(()));
        let mut held = seen;
        held[1] = Cell::ZERO;
        assert!(check_image("a", Some(&held), &seen).is_err());
        assert!(check_image("a", Some(&seen[..2]), &seen).is_err());
        assert!(check_image("a", None, &seen).is_err());
    }
}
