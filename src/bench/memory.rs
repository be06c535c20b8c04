//! The memory of this process that is resident, as Linux tells it; other systems tell nothing.

use std::fs;

/// Bytes that are resident now. What the allocator keeps although nothing uses it is given back first.
pub fn resident() -> Option<u64> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
    status("VmRSS")
}

/// The most that was resident, from its start on.
#[derive(Debug)]
pub struct Peak(());

impl Peak {
    /// Starts it; nothing where the kernel can't forget the peak before.
    pub fn start() -> Option<Peak> {
        fs::write("/proc/self/clear_refs", "5").ok().map(Peak)
    }

    /// Bytes.
    pub fn bytes(&self) -> Option<u64> {
        status("VmHWM")
    }
}

/// Bytes that a line of /proc/self/status says.
fn status(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(1024 * kibibytes)
}
