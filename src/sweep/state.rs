//! State of a trial: `trials/HASH/state.json`, replaced as a whole at each change by the process
//! that holds the trial's lock.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// State of a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The trial has not been started, or was stopped and resumes from its checkpoint.
    #[default]
    Queued,
    /// A process trains the trial.
    Running,
    /// The trial has a result.
    Done,
    /// The trial ended with an error, or was killed.
    Failed,
    /// The trial needed more memory than the GPU or the machine had.
    OutOfMemory,
    /// The trial exceeded its time limit.
    TimedOut,
    /// The trial was stopped because it was much worse than other trials.
    Pruned,
}

impl State {
    /// Returns whether a trial in this state ended without a result and runs again only on request.
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

/// Contents of `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Last written state of the trial; [`crate::sweep::store::Store::state`] also considers the
    /// trial's result and lock.
    pub state: State,
    /// Process that runs the trial, or ran it last.
    pub owner: Option<Owner>,
    /// Number of times that the trial was started.
    pub attempts: u32,
    /// Time of the change to this state, in seconds since 1970.
    pub since: u64,
    /// Reason of the failure, in one line.
    pub message: Option<String>,
    /// Number of completed epochs of a pruned trial.
    pub epoch: Option<u64>,
    /// Number of threads that the trial was started with. A resumed trial uses the same number,
    /// since the number decides the order of sums.
    pub threads: Option<usize>,
    /// Peak memory, in bytes.
    pub memory: Option<u64>,
}

impl Record {
    /// Returns the record with a new state that begins now.
    pub fn to(self, state: State, message: Option<String>) -> Record {
        Record { state, message, since: now(), epoch: None, ..self }
    }
}

/// Returns the seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A process, distinguishable from a later process with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Name of the machine.
    pub host: String,
    /// Process number on the machine.
    pub pid: u32,
    /// Start time of the process, in ticks since the machine booted. None if the system doesn't
    /// report the time.
    pub started: Option<u64>,
}

impl Owner {
    /// Returns this process.
    pub fn this() -> Owner {
        let pid = std::process::id();
        Owner { host: host(), pid, started: started(pid) }
    }

    /// Returns whether the process is known to have ended: the process was on this machine, and the
    /// machine has no process with this number or only a later one. Always false on systems other
    /// than Linux.
    pub fn is_gone(&self) -> bool {
        self.host == host()
            && cfg!(target_os = "linux")
            && started(self.pid).is_none_or(|now| Some(now) != self.started)
    }
}

/// Returns the name of this machine.
fn host() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer is longer than the length passed, and its last byte stays 0.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    if failed { "unknown".into() } else { String::from_utf8_lossy(&name[..end]).into_owned() }
}

/// Returns the start time of a process on this machine. None if there is no such process.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain blanks; the start time is field 22, the 20th after the
    // name.
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
        // The epoch of pruning does not carry over to the next state.
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
