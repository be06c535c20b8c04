//! Display of the progress of long work that has no display of its own. Nothing here affects
//! results.

use crate::note;
use crate::text::thousands;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time before the first output; work that ends sooner shows nothing.
const MOMENT: Duration = Duration::from_secs(2);

/// Time between two lines if stderr is not a terminal.
const PAUSE: Duration = Duration::from_secs(30);

/// Progress of a piece of work on stderr: a bar on a terminal, otherwise occasional lines. The bar
/// is removed when the value is dropped.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    bar: ProgressBar,
    is_drawn: bool,
    next: Instant,
}

impl Progress {
    /// Creates the progress of work on `total` images; `what` names the work, such as `evaluating`.
    pub fn of_images(what: &'static str, total: usize) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::hidden());
        // The bar is only decoration: if the template were invalid, the default style would do.
        if let Ok(style) =
            ProgressStyle::with_template("{prefix} {bar:24} {human_pos} of {human_len} images, {eta} left")
        {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        Progress { what, bar, is_drawn: std::io::stderr().is_terminal(), next: Instant::now() + MOMENT }
    }

    /// Adds `images` finished images.
    pub fn add(&mut self, images: usize) {
        self.bar.inc(images as u64);
        if Instant::now() < self.next {
            return;
        }
        if self.is_drawn {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            // From now on the bar draws itself.
            self.next += Duration::from_secs(u64::from(u32::MAX));
        } else {
            let [done, all] = [self.bar.position(), self.bar.length().unwrap_or(0)].map(|n| thousands(n as i64));
            note!("{}: {done} of {all} images", self.what);
            self.next += PAUSE;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::logged;
    use std::io::{Read, Seek};

    #[test]
    fn work_that_takes_longer_than_a_moment_says_how_far_it_is() {
        let mut log = tempfile::tempfile().unwrap();
        logged(&mut log, || {
            let mut progress = Progress::of_images("evaluating", 10_000);
            progress.is_drawn = false;
            progress.add(256);
            progress.next = Instant::now();
            progress.add(2048);
            progress.add(256);
        })
        .unwrap();
        let mut said = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut said).unwrap();
        assert_eq!(said, "evaluating: 2,304 of 10,000 images\n", "nothing at first, then one line in a while");
    }
}
