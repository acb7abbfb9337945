//! What went wrong, without a word that the provider or the crate chose: their texts hold URLs, headers and bodies, and so
//! now and then a credential. Only a status number, an error code of letters, and the kind of a transport fault get through.

use std::{error::Error as StdError, io};

use object_store::{
    Error,
    client::{HttpError, HttpErrorKind},
};

use crate::env::CloudStoreError;

/// Longest error code passed on; S3's and Azure's are names like `NoSuchBucket`.
const CODE_CHARS_MAX: usize = 64;

/// Sorts an error of the crate.
pub(super) fn sort(error: &Error) -> CloudStoreError {
    let text = error.to_string();
    let code = code(&text);
    let saying = |status: &str| match &code {
        Some(code) => format!("{status}, {code}"),
        None => status.to_owned(),
    };
    match error {
        Error::NotFound { .. } => match code.as_deref() {
            Some("NoSuchBucket" | "ContainerNotFound" | "BucketNotFound") => {
                CloudStoreError::Refused("there is no such bucket".into())
            }
            _ => CloudStoreError::NotFound,
        },
        Error::AlreadyExists { .. } | Error::Precondition { .. } => CloudStoreError::AlreadyExists,
        Error::PermissionDenied { .. } => match code.as_deref() {
            // An object that the provider moved to cold storage.
            Some("InvalidObjectState") => CloudStoreError::Unavailable(saying("status 403")),
            _ => CloudStoreError::Denied(saying("status 403")),
        },
        Error::Unauthenticated { .. } => CloudStoreError::Denied(saying("status 401")),
        Error::InvalidPath { .. } => CloudStoreError::Refused("the name is no valid path".into()),
        Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::NotModified { .. } => {
            CloudStoreError::Refused("the store does not do this".into())
        }
        Error::UnknownConfigurationKey { .. } => CloudStoreError::Refused("an option is not known".into()),
        other => match status(&text) {
            Some(status) => by_status(status, saying(&format!("status {status}"))),
            None => by_cause(other),
        },
    }
}

fn by_status(status: u16, saying: String) -> CloudStoreError {
    match status {
        401 | 403 => CloudStoreError::Denied(saying),
        429 | 503 => CloudStoreError::Throttled(saying),
        408 | 425 | 500..=599 => CloudStoreError::Unavailable(saying),
        300..=399 => CloudStoreError::Refused(format!("{saying}: a redirect, which is not followed")),
        _ => CloudStoreError::Refused(saying),
    }
}

fn by_cause(error: &Error) -> CloudStoreError {
    let mut cause: &(dyn StdError + 'static) = error;
    loop {
        if let Some(fault) = cause.downcast_ref::<HttpError>() {
            return CloudStoreError::Unavailable(transport(fault.kind()).into());
        }
        if let Some(fault) = cause.downcast_ref::<io::Error>() {
            return by_io(fault);
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return CloudStoreError::Unavailable("the provider's client failed".into()),
        }
    }
}

fn by_io(fault: &io::Error) -> CloudStoreError {
    let kind = fault.kind();
    match kind {
        io::ErrorKind::NotFound => CloudStoreError::NotFound,
        io::ErrorKind::AlreadyExists => CloudStoreError::AlreadyExists,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            CloudStoreError::Denied(kind.to_string())
        }
        _ => CloudStoreError::Unavailable(kind.to_string()),
    }
}

fn transport(kind: HttpErrorKind) -> &'static str {
    match kind {
        HttpErrorKind::Connect => "no connection can be made",
        HttpErrorKind::Timeout => "the request timed out",
        HttpErrorKind::Interrupted => "the connection broke off",
        HttpErrorKind::Decode => "the answer is no proper HTTP",
        _ => "the request failed on its way",
    }
}

/// True when a range does not fit its object. The crate has no kind for that: providers say 416, and where the crate sees it
/// itself, it says so in words, in some of which it speaks of a range.
pub(super) fn is_bad_range(error: &Error) -> bool {
    let text = error.to_string();
    match status(&text) {
        Some(status) => status == 416,
        None => {
            let on_the_way = text.contains("Error performing");
            matches!(error, Error::Generic { .. }) && !on_the_way && text.to_ascii_lowercase().contains("range")
        }
    }
}

/// The HTTP status the crate writes into its texts.
fn status(text: &str) -> Option<u16> {
    let (_, after) = text.split_once("status code: ")?;
    after.get(..3)?.parse().ok().filter(|status| (100..600).contains(status))
}

/// The provider's error code: what stands between `<Code>` and `</Code>`, if it is one word of letters and digits.
fn code(text: &str) -> Option<String> {
    let (_, after) = text.split_once("<Code>")?;
    let (code, _) = after.split_once("</Code>")?;
    let proper = code.len() <= CODE_CHARS_MAX && !code.is_empty() && code.chars().all(|c| c.is_ascii_alphanumeric());
    proper.then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(String);

    fn generic(text: &str) -> Error {
        Error::Generic { store: "S3", source: Box::new(Said(text.into())) }
    }

    const CANARY: &str = "AKIAIOSFODNN7CANARY";

    #[test]
    fn statuses_are_sorted_by_what_to_do() {
        let sorted = |status: u16| {
            sort(&generic(&format!(
                "Error performing PUT http://h/k?X-Amz-Credential={CANARY} - Server returned non-2xx status code: {status} X: <Code>SomeCode</Code>{CANARY}"
            )))
        };
        assert!(matches!(sorted(503), CloudStoreError::Throttled(_)));
        assert!(matches!(sorted(429), CloudStoreError::Throttled(_)));
        assert!(matches!(sorted(500), CloudStoreError::Unavailable(_)));
        assert!(matches!(sorted(416), CloudStoreError::Refused(_)));
        assert!(matches!(sorted(301), CloudStoreError::Refused(text) if text.contains("redirect")));
        assert!(matches!(sorted(400), CloudStoreError::Refused(text) if text == "status 400, SomeCode"));
    }

    #[test]
    fn no_text_of_the_provider_gets_through() {
        let said = || Box::new(Said(format!("token={CANARY} <Code>bad {CANARY}</Code> <Code></Code>")));
        let path = || CANARY.to_owned();
        let errors = [
            Error::Generic { store: "S3", source: said() },
            Error::NotFound { path: path(), source: said() },
            Error::PermissionDenied { path: path(), source: said() },
            Error::Unauthenticated { path: path(), source: said() },
            Error::AlreadyExists { path: path(), source: said() },
            Error::Precondition { path: path(), source: said() },
            Error::NotSupported { source: said() },
            Error::NotImplemented { operation: path(), implementer: path() },
            Error::UnknownConfigurationKey { store: "S3", key: path() },
            Error::Generic { store: "S3", source: Box::new(io::Error::other(format!("open {CANARY}"))) },
            Error::Generic { store: "S3", source: Box::new(HttpError::new(HttpErrorKind::Connect, Said(path()))) },
        ];
        for error in errors {
            let sorted = sort(&error);
            assert!(!format!("{sorted} {sorted:?}").contains(CANARY), "{sorted:?}");
        }
    }

    #[test]
    fn ranges_that_do_not_fit_are_told_from_other_faults() {
        assert!(is_bad_range(&generic("Wanted range starting at 1000, but object was only 1000 bytes long")));
        assert!(is_bad_range(&generic("Requested range was invalid")));
        assert!(is_bad_range(&generic("Error performing GET http://h/k - Server returned non-2xx status code: 416 X")));
        assert!(!is_bad_range(&generic(
            "Error performing GET http://h/range - Server returned non-2xx status code: 503 X"
        )));
        assert!(!is_bad_range(&generic("Error performing GET http://h/range in 5s - error sending request")));
    }

    #[test]
    fn a_missing_bucket_is_not_taken_for_a_missing_object() {
        let missing = |text: &str| Error::NotFound { path: "p".into(), source: Box::new(Said(text.into())) };
        assert!(matches!(sort(&missing("<Code>NoSuchBucket</Code>")), CloudStoreError::Refused(_)));
        assert!(matches!(sort(&missing("<Code>NoSuchKey</Code>")), CloudStoreError::NotFound));
    }
}
