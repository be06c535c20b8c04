//! NVIDIA's Multi-Process Service (MPS). With MPS, processes that share a GPU run side by side;
//! without it, they take turns.

use crate::sweep::local::program::end_with_parent;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Program of the MPS control daemon.
pub const CONTROL: &str = "nvidia-cuda-mps-control";
/// Environment variable with the folder in which processes find a service. A value that the user
/// has set names the user's own service and is kept.
pub const PIPES: &str = "CUDA_MPS_PIPE_DIRECTORY";

/// Time limit for the service to start, and for it to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running service. Ends on drop.
#[derive(Debug)]
pub struct Service {
    control: OsString,
    daemon: Child,
    folder: TempDir,
}

impl Service {
    /// Starts a service for the GPUs that this process sees. The service ends when this process
    /// does.
    ///
    /// # Errors
    /// The reason why no service was started, on one line.
    pub fn start(control: &OsStr) -> Result<Service, String> {
        let because = |error: std::io::Error| format!("{}: {error}", control.to_string_lossy());
        let folder = TempDir::new().map_err(because)?;
        let mut command = with_folder(control, folder.path());
        let parent = std::process::id();
        command.arg("-f").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        // SAFETY: between fork and exec only bare system calls run.
        unsafe { command.pre_exec(move || end_with_parent(parent)) };
        let daemon = command.spawn().map_err(because)?;
        let mut service = Service { control: control.into(), daemon, folder };
        let started = Instant::now();
        while !service.folder.path().join("control").exists() {
            if let Some(status) = service.daemon.try_wait().map_err(because)? {
                return Err(format!("{}: {status}", control.to_string_lossy()));
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("{}: does not start", control.to_string_lossy()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(service)
    }

    /// Returns the environment variables of a process that is to use the service.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![(PIPES.into(), self.folder.path().into())]
    }

    fn quit(&self) -> std::io::Result<()> {
        let mut command = with_folder(&self.control, self.folder.path());
        let mut asked = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        if let Some(mut stdin) = asked.stdin.take() {
            stdin.write_all(b"quit\n")?;
        }
        asked.wait()?;
        Ok(())
    }
}

fn with_folder(control: &OsStr, folder: &Path) -> Command {
    let mut command = Command::new(control);
    command.env(PIPES, folder).env("CUDA_MPS_LOG_DIRECTORY", folder);
    command
}

impl Drop for Service {
    /// Asks the daemon to quit, so that its servers end too, and kills it after the time limit.
    fn drop(&mut self) {
        let _ = self.quit();
        let asked = Instant::now();
        while matches!(self.daemon.try_wait(), Ok(None)) {
            if asked.elapsed() > PATIENCE {
                let _ = self.daemon.kill();
                let _ = self.daemon.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a stand-in for NVIDIA's program: with -f it runs `daemon`; otherwise it records its
    /// input in `told` and kills the daemon.
    fn pretended(folder: &Path, daemon: &str) -> OsString {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("control.sh");
        let told = folder.join("told");
        let asked = format!("cat >> {}; kill $(cat ${PIPES}/pid)", told.display());
        std::fs::write(&path, format!("#!/bin/sh\nif [ \"$1\" = -f ]; then {daemon}; else {asked}; fi\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path.into()
    }

    #[test]
    fn it_is_told_to_quit_and_its_folder_is_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let daemon = format!("echo $$ > ${PIPES}/pid; sleep 0.1; touch ${PIPES}/control; exec sleep 100");
        let service = Service::start(&pretended(folder.path(), &daemon)).unwrap();
        let [(name, pipes)] = &service.environment()[..] else { panic!("one") };
        assert!(name == PIPES && Path::new(pipes).join("control").exists());
        let pipes = pipes.clone();
        drop(service);
        assert_eq!(std::fs::read_to_string(folder.path().join("told")).unwrap(), "quit\n");
        assert!(!Path::new(&pipes).exists());
    }

    #[test]
    fn why_there_is_none_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let why = Service::start(&pretended(folder.path(), "exit 3")).unwrap_err();
        assert!(why.ends_with("control.sh: exit status: 3"), "{why}");
        let why = Service::start(folder.path().join("none").as_os_str()).unwrap_err();
        assert!(why.contains("No such file"), "{why}");
    }
}
