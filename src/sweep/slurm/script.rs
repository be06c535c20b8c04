//! Batch script of an array: one task per trial of a list.

use super::Request;
use std::path::Path;

/// Signal sent to a task 60 seconds before the end of its time, so that its trial writes its
/// checkpoint. Only the batch process, which is this program, gets the signal.
const NOTICE: &str = "B:USR1@60";

/// Contents of a batch script.
#[derive(Clone, Debug)]
pub struct Script<'a> {
    /// Requested resources and limits.
    pub request: &'a Request,
    /// Name of the sweep.
    pub name: &'a str,
    /// Path of this program, which must be the same on the nodes.
    pub program: &'a Path,
    /// Absolute path of the sweep's folder.
    pub root: &'a Path,
    /// File with the hashes of the trials, one per line.
    pub list: &'a Path,
    /// Number of trials in the list.
    pub tasks: usize,
}

impl Script<'_> {
    /// Returns the text of the script, for `sh`.
    pub fn text(&self) -> String {
        let mut text = String::from("#!/bin/sh\n");
        for option in self.options() {
            text += &format!("#SBATCH --{option}\n");
        }
        text += "# A task runs the trial in its line of the list; task 0 has the first.\n";
        text += &format!("trial=$(sed -n \"$((SLURM_ARRAY_TASK_ID + 1))p\" {})\n", quote(self.list));
        text + &self.command()
    }

    /// Returns the options of sbatch. The user's options come last, since the later of two equal
    /// options takes effect.
    fn options(&self) -> Vec<String> {
        let Request { partition, time, gres, array_limit, more, .. } = self.request;
        let limit = array_limit.map_or(String::new(), |limit| format!("%{limit}"));
        let log = self.root.join("slurm").to_string_lossy().replace('%', "%%");
        let mut options = vec![
            format!("job-name={}", quote(Path::new(&format!("foldconv {}", self.name)))),
            format!("array=0-{}{limit}", self.tasks - 1),
            format!("output={}", quote(Path::new(&format!("{log}/%A_%a.log")))),
            "open-mode=append".into(),
            "requeue".into(),
            format!("signal={NOTICE}"),
            "ntasks=1".into(),
            format!("cpus-per-task={}", self.request.threads),
        ];
        for (name, value) in [("partition", partition), ("time", time), ("gres", gres)] {
            options.extend(value.as_ref().map(|value| format!("{name}={}", quote(Path::new(value)))));
        }
        options.extend(more.iter().map(|option| option.trim_start_matches('-').to_string()));
        options
    }

    /// Returns the command of the script. `exec` replaces the batch process with this program, so
    /// that this program gets the signals.
    fn command(&self) -> String {
        let Request { device, threads, limits, retries, .. } = self.request;
        let time = limits.time.map_or(String::new(), |limit| format!(" --time-limit {}s", limit.as_secs()));
        let stall = limits.stall.map_or(0, |limit| limit.as_secs());
        let [program, file, root] =
            [self.program.to_path_buf(), self.root.join("sweep.yaml"), self.root.into()].map(|path| quote(&path));
        format!(
            "exec {program} sweep {file} --out {root} --trial \"$trial\" \\\n    \
             --device {device} --threads {threads} --retries {retries}{time} --stall-limit {stall}s\n",
            device = quote(Path::new(device)),
        )
    }
}

/// Quotes a path as one word of `sh` and of sbatch.
fn quote(text: &Path) -> String {
    let text = text.to_string_lossy();
    let plain = |character: char| character.is_alphanumeric() || "/._-:%+,=".contains(character);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::local::child::Limits;
    use std::time::Duration;

    #[test]
    fn the_script_asks_for_what_was_asked_for() {
        let request = Request {
            partition: Some("gpu".into()),
            time: Some("1-12:00:00".into()),
            gres: Some("gpu:1".into()),
            array_limit: Some(2),
            more: vec!["mem=8G".into(), "--account=lab".into()],
            threads: 4,
            device: "cuda".into(),
            limits: Limits { time: Some(Duration::from_secs(7200)), stall: None },
            retries: 1,
        };
        let script = Script {
            request: &request,
            name: "a b",
            program: Path::new("/opt/foldconv"),
            root: Path::new("/home/it's/100%"),
            list: Path::new("/home/it's/100%/slurm/1.trials"),
            tasks: 8,
        };
        let expected = r#"#!/bin/sh
#SBATCH --job-name='foldconv a b'
#SBATCH --array=0-7%2
#SBATCH --output='/home/it'\''s/100%%/slurm/%A_%a.log'
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --partition=gpu
#SBATCH --time=1-12:00:00
#SBATCH --gres=gpu:1
#SBATCH --mem=8G
#SBATCH --account=lab
# A task runs the trial in its line of the list; task 0 has the first.
trial=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" '/home/it'\''s/100%/slurm/1.trials')
exec /opt/foldconv sweep '/home/it'\''s/100%/sweep.yaml' --out '/home/it'\''s/100%' --trial "$trial" \
    --device cuda --threads 4 --retries 1 --time-limit 7200s --stall-limit 0s
"#;
        assert_eq!(script.text(), expected);
    }
}
