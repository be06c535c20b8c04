//! State of this machine: cores, free memory, and the number of processes that its kernel killed
//! for lack of memory.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Returns the number of cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the free memory in bytes, of the machine or of this process's control group, whichever
/// is less. None if the system doesn't report it.
pub fn free_memory() -> Option<u64> {
    let machine = keyed(Path::new("/proc/meminfo"), "MemAvailable:").map(|kilobytes| kilobytes << 10);
    let group = [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")];
    let left = |(most, used): (&str, &str)| {
        let number = |name: &str| std::fs::read_to_string(in_group(name)?).ok()?.trim().parse::<u64>().ok();
        Some(number(most)?.saturating_sub(number(used)?))
    };
    machine.into_iter().chain(group.into_iter().filter_map(left)).min()
}

/// Lets this process take no more than the memory that is free now. A file that asks for more then
/// gets an error of libtorch, and the kernel need not kill a process for it. Does nothing where the
/// system doesn't report its memory.
pub fn limit_memory() {
    #[cfg(target_os = "linux")]
    if let (Some(free), Some(taken)) = (free_memory(), address_space()) {
        // SAFETY: both calls read or write the structure that is passed in.
        unsafe {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            if libc::getrlimit(libc::RLIMIT_AS, &mut limit) == 0 {
                limit.rlim_cur = (taken + free).min(limit.rlim_max);
                libc::setrlimit(libc::RLIMIT_AS, &limit);
            }
        }
    }
}

/// Ends this process without the destructors of libtorch's globals, which take a fifth of a second
/// to forget every operator.
pub fn end(status: i32) -> ! {
    let _ = std::io::stdout().flush();
    // SAFETY: a null pointer flushes every stream of C, and the process ends without running
    // anything else.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(status)
    }
}

/// Returns the size of this process's address space in bytes.
#[cfg(target_os = "linux")]
fn address_space() -> Option<u64> {
    keyed(Path::new("/proc/self/status"), "VmSize:").map(|kilobytes| kilobytes << 10)
}

/// Returns the number of processes that the kernel has killed for lack of memory since it started:
/// in this process's control group if the group counts them, otherwise on the whole machine. None
/// if the system doesn't report it.
pub fn out_of_memory_kills() -> Option<u64> {
    let group = ["memory.events", "memory.oom_control"].into_iter().filter_map(in_group);
    group.chain([PathBuf::from("/proc/vmstat")]).find_map(|path| keyed(&path, "oom_kill"))
}

/// Returns the largest peak memory, in bytes, of any child process that has been waited for.
pub fn most_memory_of_children() -> u64 {
    // SAFETY: getrusage fills the structure that is passed in, and all zeros is a valid one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    usage.ru_maxrss.unsigned_abs() * unit
}

/// Returns the path of a file of this process's memory control group, in version 1 or 2.
fn in_group(name: &str) -> Option<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let places = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            "memory" => "/sys/fs/cgroup/memory",
            _ => return None,
        };
        // In a container the group itself is mounted at the root.
        Some([Path::new(root).join(path.trim_start_matches('/')).join(name), Path::new(root).join(name)])
    });
    places.flatten().find(|path| path.is_file())
}

/// Returns the number behind the word `key` at the start of a line.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next()? == key).then(|| words.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_behind_its_word() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "oom 7\noom_kill 3\nMemAvailable:  2048 kB\n").unwrap();
        assert_eq!((keyed(file.path(), "oom_kill"), keyed(file.path(), "MemAvailable:")), (Some(3), Some(2048)));
        assert_eq!((keyed(file.path(), "oom_k"), keyed(Path::new("/no/such"), "oom")), (None, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_machine_has_cores_and_memory() {
        assert!(cores() > 0);
        let free = free_memory().unwrap();
        assert!((1 << 20..1 << 50).contains(&free), "{free}");
        std::process::Command::new("true").status().unwrap();
        assert!((1 << 16..1 << 40).contains(&most_memory_of_children()));
    }
}
