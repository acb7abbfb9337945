//! LIV1: once every trouble has ended, every request is answered and the node serves.

use super::Verdict;

/// How long anything may take once all is well, in simulated milliseconds.
pub const REST_MS_MAX: u64 = 180_000;

/// How long several nodes may take until all of them serve and vote, whatever had become of them.
pub const TOGETHER_MS_MAX: u64 = 120_000;

/// How long a volume may not be served when its owner is gone and another node can take over.
pub const TAKEOVER_MS_MAX: u64 = 30_000;

/// How long a record may take to a far cloud: each goes there after the one before it, with two requests.
const RECORD_MS_MAX: u64 = 1_000;

/// How long things may take that wait for clouds which lacked `backlog` records when the last trouble ended.
#[must_use]
pub const fn rest_ms_max(backlog: u64) -> u64 {
    REST_MS_MAX + backlog * RECORD_MS_MAX
}

/// Judges `open` requests and connections that have had no answer for `waited_ms` since the last trouble.
///
/// # Errors
/// When they have had time enough.
pub fn check_answered(open: u64, waited_ms: u64) -> Verdict {
    if open == 0 || waited_ms <= REST_MS_MAX {
        Ok(())
    } else {
        Err(format!("{open} requests and connections are unanswered {waited_ms} ms after the last trouble"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_an_answer_long_after_the_last_trouble_is_rejected() {
        assert_eq!(check_answered(0, u64::MAX), Ok(()));
        assert_eq!(check_answered(3, REST_MS_MAX), Ok(()));
        assert!(check_answered(1, REST_MS_MAX + 1).is_err());
    }

    #[test]
    fn a_backlog_gives_time_by_its_length() {
        assert_eq!(rest_ms_max(0), REST_MS_MAX);
        assert_eq!(rest_ms_max(60), REST_MS_MAX + 60_000);
    }
}
