//! What can go wrong, in the two kinds that a script tells apart: the request was wrong (exit status 2),
//! or the work failed (exit status 1). Every message is one line: what, where, what to do.

/// A request that can't be carried out as it was made: a usage, config or input-file error. Exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub String);

/// Returns a [`BadRequest`] made from a format string.
#[macro_export]
macro_rules! bad_request {
    ($($arg:tt)*) => {
        return Err($crate::error::BadRequest(format!($($arg)*)).into())
    };
}

/// The exit status that an error deserves: 2 if any cause of it is a [`BadRequest`], 1 otherwise.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    let wrong_request = error.chain().any(|cause| cause.is::<BadRequest>());
    if wrong_request { 2 } else { 1 }
}

/// The error and its causes on one line. libtorch appends a C++ stack to its messages; only their first line is kept.
pub fn one_line(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(|cause| first_line(&cause.to_string())).collect();
    causes.join(": ")
}

/// The first line that is not blank: libtorch's messages begin with an empty one.
fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_string()
}

/// The known name closest to a mistyped one, if any is close enough to be what was meant.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .min()
        .map(|(_, name)| name)
}

/// `, did you mean `x`?` where a near name exists, else the whole list of names.
pub fn suggest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(typed, known.clone()) {
        Some(name) => format!(", did you mean `{name}`?"),
        None => {
            let names: Vec<&str> = known.into_iter().collect();
            format!(", known are {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_bad_request_anywhere_in_the_chain_gives_status_2() {
        let wrong = anyhow::Error::new(BadRequest("no such file".into())).context("data.root");
        assert_eq!(exit_status(&wrong), 2);
        assert_eq!(one_line(&wrong), "data.root: no such file");
        let failed = Err::<(), _>(std::io::Error::other("disk\nstack")).context("saving").unwrap_err();
        assert_eq!(exit_status(&failed), 1);
        assert_eq!(one_line(&failed), "saving: disk");
    }

    #[test]
    fn the_nearest_name_is_named_only_when_it_is_near() {
        let known = ["intermediate", "bypass", "hidden"];
        assert_eq!(nearest("intermdiate", known), Some("intermediate"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(suggest("colour", known), ", known are intermediate, bypass, hidden");
    }
}
