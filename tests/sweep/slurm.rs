//! A sweep on a real Slurm cluster that loses its node and preempts jobs: each trial is trained to
//! its end, exactly once.
//!
//! The cluster is one node with two CPUs on the loopback interface: Debian's slurm-wlm and munge,
//! started by tests/sweep/slurm/start.sh in a folder of its own. The test is skipped if Slurm or
//! munge is missing or the user isn't root; with FOLDCONV_SLURM set it fails instead.

#![cfg(target_os = "linux")]

use crate::common;
use crate::common::{arg, foldconv, folder, stderr, stdout};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Eight trials of a few seconds each, so that some trials are running at each event of the
/// cluster.
const EIGHT: &str = "data: {name: shapes, train: 512, test: 64}
net: {name: smallnet, width: 0.5}
operator: {name: maconv, intermediate: 4}
train: {epochs: 12, batch: 32}
axes: {operator.bypass: [true, false], train.lr: [0.1, 0.05]}
seeds: 2
";

/// Longest wait for any event; on an idle machine the whole test takes less than a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// A Slurm cluster, which is stopped on drop.
struct Cluster {
    folder: tempfile::TempDir,
    starter: Child,
}

impl Cluster {
    /// Starts a cluster and waits for its node. Returns none if the machine has no Slurm.
    fn start() -> Option<Cluster> {
        let has = |name: &str| Path::new("/usr/sbin").join(name).exists();
        // SAFETY: only a system call.
        let there = ["munged", "slurmctld", "slurmd"].into_iter().all(has) && unsafe { libc::getuid() } == 0;
        let wanted = std::env::var_os("FOLDCONV_SLURM").is_some();
        assert!(there || !wanted, "as root, apt-get install slurm-wlm munge installs what is missing");
        if !there {
            eprintln!("left out: as root, apt-get install slurm-wlm munge installs what is missing");
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sweep/slurm/start.sh");
        let folder = tempfile::tempdir().unwrap();
        // Asks for a free port; the cluster also uses the next one.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().min(65000);
        let mut command = Command::new("/bin/sh");
        command.arg(script).arg(folder.path()).arg(port.to_string()).stdin(Stdio::null());
        let path = format!("/usr/sbin:/usr/bin:{}", std::env::var("PATH").unwrap_or_default());
        let starter = command.env("PATH", path).spawn().unwrap();
        let cluster = Cluster { folder, starter };
        cluster.wait_for("an idle node", || cluster.says("sinfo", &["-h", "-o", "%T", "-p", "low"]).trim() == "idle");
        Some(cluster)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, mut command: Command) -> Command {
        command.env("SLURM_CONF", self.path("slurm.conf")).env("SLURM_TIME_FORMAT", "standard");
        command
    }

    /// Returns the output of a Slurm command.
    fn says(&self, name: &str, args: &[&str]) -> String {
        let output = self.command(Command::new(name)).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn wait_for(&self, what: &str, mut is: impl FnMut() -> bool) {
        let clock = Instant::now();
        while !is() {
            let logs = || ["slurmctld.log", "slurmd.log"].map(|name| read(&self.path(name))).join("\n");
            assert!(clock.elapsed() < PATIENCE, "waited for {what}\n{}", logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends the signal that Slurm sends shortly before the time limit of a job, to a running task.
    fn end_time_of_a_task(&self) {
        let is_batch = |pid: &libc::pid_t| {
            is_task(*pid) && read(Path::new(&format!("/proc/{pid}/cmdline"))).contains("\0--trial\0")
        };
        let pid = self.processes().into_iter().find(is_batch).expect("a task runs");
        // SAFETY: only a system call, on a process that this test has started.
        unsafe { libc::kill(pid, libc::SIGUSR1) };
    }

    /// Kills the node as a power failure does: its daemon, and all processes that the daemon
    /// started.
    fn lose_node(&self) {
        let node = self.node();
        // The daemon of a step detaches from its parent; the step's daemon and its task have the
        // cluster's configuration in their environment.
        let ours = self.processes().into_iter().filter(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            *pid == node || name.starts_with("slurmstepd") || is_task(*pid)
        });
        ours.for_each(kill);
        let (node, down) = (format!("nodename={}", self.host()), ["state=down", "reason=test"]);
        self.says("scontrol", &["update", &node, down[0], down[1]]);
    }

    fn return_node(&self) {
        let (log, host) = (self.path("slurmd.log"), self.host());
        let mut slurmd = self.command(Command::new("/usr/sbin/slurmd"));
        slurmd.args(["-D", "-N", &host, "-L"]).arg(log).stdin(Stdio::null()).stdout(Stdio::null());
        let pid = slurmd.stderr(Stdio::null()).spawn().unwrap().id();
        std::fs::write(self.path("node"), pid.to_string()).unwrap();
        let node = format!("nodename={host}");
        self.wait_for("the node to be back", || {
            self.says("scontrol", &["update", &node, "state=resume"]);
            let state = self.says("sinfo", &["-h", "-o", "%T", "-p", "low"]);
            ["idle", "mixed", "allocated", "completing"].contains(&state.trim())
        });
    }

    fn node(&self) -> libc::pid_t {
        std::fs::read_to_string(self.path("node")).unwrap().trim().parse().unwrap()
    }

    fn host(&self) -> String {
        self.says("hostname", &["-s"]).trim().into()
    }

    /// Returns the processes that have this cluster's folder in their environment or in their
    /// arguments.
    fn processes(&self) -> Vec<libc::pid_t> {
        let folder = arg(self.folder.path());
        let is_ours = |pid: &libc::pid_t| {
            let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let text = [read("environ"), read("cmdline")].concat();
            text.windows(folder.len()).any(|part| part == folder.as_bytes())
        };
        let own = std::process::id() as libc::pid_t;
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != own)
            .filter(is_ours)
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        kill(self.starter.id() as libc::pid_t);
        let _ = self.starter.wait();
        // Twice, since the first pass may miss a process that is just being started.
        for _ in 0..2 {
            self.processes().into_iter().for_each(kill);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Whether the process is a task of a job array, or a trial of such a task.
fn is_task(pid: libc::pid_t) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(b"SLURM_ARRAY_TASK_ID="))
}

fn kill(pid: libc::pid_t) {
    // SAFETY: only a system call, on a process that this test has started.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Returns for each trial whether it is finished, and the number of its starts.
fn trials(out: &Path) -> Vec<(bool, u64)> {
    let folders = std::fs::read_dir(out.join("trials")).into_iter().flatten().flatten().map(|entry| entry.path());
    let attempts = |folder: &Path| {
        let state = std::fs::read(folder.join("state.json")).unwrap_or(b"{}".to_vec());
        serde_json::from_slice::<Value>(&state).unwrap()["attempts"].as_u64().unwrap_or(0)
    };
    folders.map(|folder| (folder.join("result.json").exists(), attempts(&folder))).collect()
}

/// Returns the number of starts of all trials together.
fn starts(out: &Path) -> u64 {
    trials(out).iter().map(|(_, attempts)| attempts).sum()
}

/// Returns the logs of all tasks.
fn logs(out: &Path) -> String {
    let files = std::fs::read_dir(out.join("slurm")).unwrap().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|end| end == "log")).map(|path| read(&path)).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Returns the number of running trials that have done an epoch.
fn under_way(out: &Path) -> usize {
    let folders = std::fs::read_dir(out.join("trials")).into_iter().flatten().flatten().map(|entry| entry.path());
    let runs = |folder: &PathBuf| read(&folder.join("state.json")).contains("\"running\"");
    folders.filter(runs).filter(|folder| folder.join("metrics.csv").exists()).count()
}

/// Returns the tasks in the queue, as JOB_INDEX.
fn queued(cluster: &Cluster) -> Vec<String> {
    let said = cluster.says("squeue", &["--noheader", "--array", "--format=%F_%K", "--partition", "low"]);
    said.split_whitespace().map(String::from).collect()
}

#[test]
fn a_sweep_outlives_its_node_and_is_preempted_and_runs_each_trial_once() {
    let Some(cluster) = Cluster::start() else { return };
    let (_guard, root) = folder(&[("a.yaml", EIGHT.as_bytes())]);
    let out = root.join("a sweep");
    let sweep_in = |partition: &str, more: &[&str]| {
        let mut command = cluster.command(foldconv());
        command.arg("sweep").arg(root.join("a.yaml")).arg("--out").arg(&out);
        command.args(["--launcher", "slurm", "--device", "cpu", "--partition", partition]).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let sweep = |more: &[&str]| sweep_in("low", more);

    let refused = sweep_in("none", &[]).output().unwrap();
    let error = common::error(&refused, 2);
    assert!(error.contains("invalid partition specified: none"), "{error}");
    assert!(!out.join("slurm/jobs.json").exists());

    let submitted = sweep(&["--detach"]).output().unwrap();
    assert!(submitted.status.success() && stderr(&submitted).contains(": 8 trials"), "{}", stderr(&submitted));
    let again = sweep(&["--detach"]).output().unwrap();
    assert!(stderr(&again).contains("8 trials are in job "), "{}", stderr(&again));
    assert_eq!(queued(&cluster).into_iter().collect::<BTreeSet<_>>().len(), 8, "none is submitted twice");
    let follower = sweep(&[]).spawn().unwrap();

    cluster.wait_for("two trials with an epoch each", || under_way(&out) == 2);
    cluster.end_time_of_a_task();
    cluster.wait_for("a job that puts itself back", || logs(&out).contains("goes back into the queue"));

    cluster.wait_for("two trials with an epoch each", || under_way(&out) == 2);
    cluster.lose_node();
    let before = starts(&out);
    cluster.return_node();
    cluster.wait_for("a trial that goes on", || starts(&out) > before && under_way(&out) > 0);

    let preempt = ["-p", "high", "-c", "2", "-o", "/dev/null", "--wrap", "sleep 1"];
    let stopped = || logs(&out).matches(": stopped").count();
    let before = stopped();
    assert!(!cluster.says("sbatch", &preempt).is_empty());
    cluster.wait_for("trials that are stopped by the job", || stopped() > before);

    let followed = follower.wait_with_output().unwrap();
    assert!(stdout(&followed).contains("8 of 8 trials are finished"), "{}", stderr(&followed));
    let trials = trials(&out);
    assert!(trials.len() == 8 && trials.iter().all(|(finished, _)| *finished), "{trials:?}");
    // One start per trial; one more for the trial that was told to end, for the one or two that
    // lost their node, and for up to two that were preempted.
    assert!((11..=13).contains(&starts(&out)), "{trials:?}");
    let mut trained = 0;
    for entry in std::fs::read_dir(out.join("trials")).unwrap().flatten() {
        let rows = csv::Reader::from_path(entry.path().join("metrics.csv")).unwrap().into_records();
        let epochs: Vec<String> = rows.map(|row| row.unwrap()[0].to_string()).collect();
        assert_eq!(epochs, (1..=12).map(|epoch| epoch.to_string()).collect::<Vec<_>>());
        trained += read(&entry.path().join("log.txt")).lines().filter(|line| line.starts_with("epoch ")).count();
    }
    // Each of the two killed trials may have printed an epoch that it had no time to save, or saved
    // an epoch that it had no time to print.
    assert!((94..=98).contains(&trained), "{trained} epochs were trained");
    assert!(queued(&cluster).is_empty(), "no job is left");
}
