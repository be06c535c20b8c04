//! Readable names for TensorBoard, which names a run after its folder: `tensorboard/maconv
//! bypass=true, seed 0` is a link to that trial's `trials/HASH/tensorboard`.

use crate::sweep::plan::{Plan, Point, Trial};
use crate::sweep::store::Store;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the folder with the links, in the folder of the sweep.
pub const FOLDER: &str = "tensorboard";

/// Maximum number of characters of a point's title in a name; a file system allows 255 bytes.
const LONGEST: usize = 120;

/// Creates a link with a readable name for every trial of a plan, and deletes the links of an
/// earlier plan. On a file system without links, TensorBoard shows hashes.
pub fn link(store: &Store, plan: &Plan) {
    let folder = store.root().join(FOLDER);
    let wanted = names(plan);
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link && !wanted.contains_key(&*entry.file_name().to_string_lossy()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    if std::fs::create_dir_all(&folder).is_err() {
        return;
    }
    for (name, hash) in wanted {
        let target = Path::new("../trials").join(hash).join("tensorboard");
        let link = folder.join(name);
        // Several processes may start the same sweep: a correct link is kept, any other is
        // replaced.
        if std::fs::read_link(&link).is_ok_and(|there| there == target) {
            continue;
        }
        let _ = std::fs::remove_file(&link);
        let _ = std::os::unix::fs::symlink(&target, &link);
    }
}

/// Returns the name of each trial with its hash.
fn names(plan: &Plan) -> BTreeMap<String, &str> {
    let mut names = BTreeMap::new();
    for (point, trial) in plan.trials() {
        let name = name(point, trial);
        let name = if names.contains_key(&name) { format!("{name} {}", trial.hash) } else { name };
        names.insert(name, trial.hash.as_str());
    }
    names
}

/// Returns the name of a trial as a file name: `maconv bypass=true, seed 0`.
fn name(Point { title, .. }: &Point, trial: &Trial) -> String {
    let fit = |c: char| if c == '/' || c.is_control() { '_' } else { c };
    let title: String = title.chars().map(fit).take(LONGEST).collect();
    format!("{}, seed {}", title.trim_start_matches('.'), trial.config.seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::started;

    #[test]
    fn every_trial_has_a_name_that_leads_to_its_events() {
        let (_folder, store, plan) = started("{axes: {operator: [plain, {name: maconv, bypass: false}]}, seeds: 2}");
        link(&store, &plan);
        let names = || {
            let entries = std::fs::read_dir(store.root().join(FOLDER)).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(
            names(),
            ["maconv bypass=false, seed 0", "maconv bypass=false, seed 1", "plain, seed 0", "plain, seed 1"]
        );
        let events = store.trial(&plan.points[0].trials[1].hash).join("tensorboard");
        std::fs::create_dir_all(&events).unwrap();
        let linked = store.root().join(FOLDER).join("plain, seed 1");
        assert_eq!(linked.canonicalize().unwrap(), events.canonicalize().unwrap());
        // A smaller plan removes stale names and leaves other files alone.
        std::fs::write(store.root().join(FOLDER).join("mine"), "").unwrap();
        let fewer = Plan { points: plan.points[..1].to_vec(), ..plan.clone() };
        link(&store, &fewer);
        assert_eq!(names(), ["mine", "plain, seed 0", "plain, seed 1"]);
    }
}
