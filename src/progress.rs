//! What a person sees while pvlab works: spinners, bars and notes on standard error.
//!
//! Owns the terminal side of progress. It never writes to standard output, and where standard error
//! is not a terminal it prints one plain line a step and nothing that moves.

use std::fmt::Display;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output;

/// Where progress is shown. Cheap to clone; all clones share one screen.
///
/// ```
/// let progress = pvlab::progress::Progress::hidden();
/// let step = progress.step("unpacking packages");
/// step.update("unpacking xen-utils");
/// step.done("146 packages unpacked");
/// ```
#[derive(Clone)]
pub struct Progress {
    screen: MultiProgress,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Spinners and bars.
    Moving,
    /// A line when a step begins and one when it ends.
    Lines,
    /// The same, and everything else there is to say.
    All,
    /// Nothing.
    Hidden,
}

impl Progress {
    /// Shows on standard error, moving if that is a terminal; without colours where `NO_COLOR` is set.
    pub fn new() -> Self {
        let form = if stderr().is_terminal() { Form::Moving } else { Form::Lines };
        Progress { screen: MultiProgress::new(), form }
    }

    /// Shows lines and nothing that moves, with every detail.
    pub fn verbose() -> Self {
        Progress { screen: MultiProgress::new(), form: Form::All }
    }

    /// Shows nothing.
    pub fn hidden() -> Self {
        Progress { screen: MultiProgress::new(), form: Form::Hidden }
    }

    /// Begins a step whose length is not known.
    pub fn step(&self, text: impl Display) -> Step {
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}");
        self.begin(ProgressBar::new_spinner(), style, text)
    }

    /// Begins a step of `length` units (domains, packages, acquisitions).
    pub fn bar(&self, text: impl Display, length: u64) -> Step {
        let style =
            ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {pos}/{len} {elapsed:.dim}");
        self.begin(ProgressBar::new(length), style, text)
    }

    /// Begins a step of `length` bytes.
    pub fn bytes(&self, text: impl Display, length: u64) -> Step {
        let template = "{spinner} {msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {eta:.dim}";
        self.begin(ProgressBar::new(length), ProgressStyle::with_template(template), text)
    }

    /// A line that stays.
    pub fn note(&self, text: impl Display) {
        match self.form {
            Form::Hidden => {}
            Form::Lines | Form::All => output::note(text),
            // The screen moves its bars out of the way; a closed standard error is nobody's problem.
            Form::Moving => drop(self.screen.println(text.to_string())),
        }
    }

    /// A line for those who asked for every detail.
    pub fn detail(&self, text: impl Display) {
        if self.form == Form::All {
            output::note(text);
        }
    }

    fn begin<E: std::fmt::Debug>(
        &self,
        bar: ProgressBar,
        style: Result<ProgressStyle, E>,
        text: impl Display,
    ) -> Step {
        let text = text.to_string();
        let bar = match self.form {
            Form::Moving => {
                let bar = self.screen.add(bar);
                bar.set_style(style.expect("the templates of this file are valid"));
                bar.enable_steady_tick(Duration::from_millis(120));
                bar
            }
            Form::Lines | Form::All => {
                output::note(format_args!("{text} ..."));
                ProgressBar::hidden()
            }
            Form::Hidden => ProgressBar::hidden(),
        };
        bar.set_message(text);
        Step { bar, progress: self.clone(), begun: Instant::now() }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// One step under way. Dropping it takes it off the screen without a closing line.
pub struct Step {
    bar: ProgressBar,
    progress: Progress,
    begun: Instant,
}

impl Step {
    /// Says what the step is doing now.
    pub fn update(&self, text: impl Display) {
        self.bar.set_message(text.to_string());
    }

    /// Moves the bar to `position` units.
    pub fn position(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Moves the bar on by `units`.
    pub fn advance(&self, units: u64) {
        self.bar.inc(units);
    }

    /// Ends the step and leaves a line that says what it did and how long it took.
    pub fn done(self, text: impl Display) {
        let seconds = self.begun.elapsed().as_secs_f32();
        self.bar.finish_and_clear();
        self.progress.note(format_args!("{text} ({seconds:.1} s)"));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
