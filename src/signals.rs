//! Flags that signals set, in place of ending the process.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Returns a flag that each of the signals sets from now on. A second signal of those in `end` ends
/// the process at once, with status 130.
///
/// # Errors
/// If the system refuses a handler.
pub fn stop_flag(signals: &[libc::c_int], end: &[libc::c_int]) -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let listen = |signal: libc::c_int| -> std::io::Result<()> {
        if end.contains(&signal) {
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        }
        signal_hook::flag::register(signal, Arc::clone(&flag)).map(drop)
    };
    signals.iter().try_for_each(|signal| listen(*signal)).context("cannot listen to signals")?;
    Ok(flag)
}
