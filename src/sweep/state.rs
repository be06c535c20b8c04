//! How far a trial is: `trials/HASH/state.json`, replaced whole at each change by whoever holds the trial's lock.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where a trial stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has not been started, or was stopped and goes on from its checkpoint.
    #[default]
    Queued,
    /// A process trains it.
    Running,
    /// It has a result.
    Done,
    /// It ended with an error, or was killed.
    Failed,
    /// It needed more memory than there was, of the GPU or of the machine.
    OutOfMemory,
    /// It took longer than a trial may.
    TimedOut,
    /// It was so much worse than the others that it was stopped.
    Pruned,
}

impl State {
    /// Whether it ended without a result and runs again only when it is asked for.
    pub fn is_failure(self) -> bool {
        matches!(self, State::Failed | State::OutOfMemory | State::TimedOut)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
            State::OutOfMemory => "out of memory",
            State::TimedOut => "timed out",
            State::Pruned => "pruned",
        })
    }
}

/// What `state.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Where the trial stands; [`crate::sweep::store::Store::state`] also looks at its result and its lock.
    pub state: State,
    /// The process that runs it, or ran it last.
    pub owner: Option<Owner>,
    /// How often it was started.
    pub attempts: u32,
    /// When the state was reached, in seconds since 1970.
    pub since: u64,
    /// Why it failed, on one line.
    pub message: Option<String>,
    /// Epochs done when it was pruned.
    pub epoch: Option<u64>,
    /// Threads that it was started with. It goes on with as many, since they decide the order of its sums.
    pub threads: Option<usize>,
    /// The most memory that it had, in bytes.
    pub memory: Option<u64>,
}

impl Record {
    /// The same trial in another state, from now on.
    pub fn to(self, state: State, message: Option<String>) -> Record {
        Record { state, message, since: now(), epoch: None, ..self }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A process, told apart from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The machine.
    pub host: String,
    /// Its number there.
    pub pid: u32,
    /// When it was started, in ticks since the machine was; none where the system doesn't tell.
    pub started: Option<u64>,
}

impl Owner {
    /// This process.
    pub fn this() -> Owner {
        let pid = std::process::id();
        Owner { host: host(), pid, started: started(pid) }
    }

    /// Whether it is known to have ended: it was on this machine, and here is no such process, or a younger one.
    pub fn is_gone(&self) -> bool {
        self.host == host()
            && cfg!(target_os = "linux")
            && started(self.pid).is_none_or(|now| Some(now) != self.started)
    }
}

/// The name of this machine.
fn host() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer is as long as is said, and its last byte stays 0.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    if failed { "unknown".into() } else { String::from_utf8_lossy(&name[..end]).into_owned() }
}

/// When a process of this machine was started; none if there is none.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks; the start is the 22nd field, the 20th behind it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_an_older_one_too() {
        let record = Record { attempts: 2, owner: Some(Owner::this()), threads: Some(2), ..Record::default() };
        let record = Record { epoch: Some(3), ..record.to(State::OutOfMemory, Some("CUDA out of memory".into())) };
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.starts_with(r#"{"state":"out_of_memory","owner":{"host":"#), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert_eq!(serde_json::from_str::<Record>("{}").unwrap().state, State::Queued);
        // It was pruned at an epoch, and what follows was not.
        let again = record.clone().to(State::Running, None);
        assert_eq!((again.epoch, again.message, again.attempts, again.owner), (None, None, 2, record.owner));
        assert!(again.since > 1_700_000_000);
    }

    #[test]
    fn three_states_are_failures() {
        let all = [
            State::Queued,
            State::Running,
            State::Done,
            State::Failed,
            State::OutOfMemory,
            State::TimedOut,
            State::Pruned,
        ];
        let failures: Vec<String> =
            all.iter().filter(|state| state.is_failure()).map(|state| format!("{state:>14}")).collect();
        assert_eq!(failures, ["        failed", " out of memory", "     timed out"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_not_mistaken_for_a_younger_one_with_its_number() {
        let this = Owner::this();
        assert!(!this.is_gone() && this.started.is_some());
        let reused = Owner { started: this.started.map(|started| started - 1), ..this.clone() };
        assert!(reused.is_gone(), "the same number, started later");
        assert!(!Owner { host: "another".into(), ..reused }.is_gone(), "nobody can say from here");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let owner = Owner { pid: child.id(), started: started(child.id()), ..this };
        child.wait().unwrap();
        assert!(owner.is_gone());
    }
}
