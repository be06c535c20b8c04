//! Resident memory of this process, as reported by Linux. None on other systems.

use std::fs;

/// Returns the resident bytes. Memory that the allocator keeps unused is first returned to the
/// system.
pub fn resident() -> Option<u64> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
    status("VmRSS")
}

/// Peak of resident memory since its start.
#[derive(Debug)]
pub struct Peak(());

impl Peak {
    /// Starts the measurement. None if the kernel can't reset the peak.
    pub fn start() -> Option<Peak> {
        fs::write("/proc/self/clear_refs", "5").ok().map(Peak)
    }

    /// Returns the peak in bytes.
    pub fn bytes(&self) -> Option<u64> {
        status("VmHWM")
    }
}

/// Reads a value of /proc/self/status, in bytes.
fn status(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(1024 * kibibytes)
}
