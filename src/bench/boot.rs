//! One boot: cells of one topology on a host that is made for them, or on this machine's Xen.
//!
//! Owns what goes into the host and how large it is. What the host tells is handed on as it comes; what becomes of
//! it is [`run`](super::run)'s business.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use experiment::{Key, Lock, Setting};

use super::dom0::{self, Batch, Line, Planned};
use super::folder::Setup;
use super::matrix::{Cell, Matrix, SCENARIO};
use super::pause;
use crate::image;
use crate::lab::{Boot, Lab, Overlay, Repeatable};
use crate::linux;
use crate::plan::{Choices, Plan};
use crate::progress::Progress;
use crate::report::Mode;
use crate::run::{
    DOM0_MIB, LAB_FOLDER, LAB_IMAGE, XEN_MIB, add_linux, check_linux, linux_files, memory_of,
};
use crate::scenario::{Library, Scenario};

/// Real time for a boot, and for each cell: ten times what they take on an idle machine, hung domains aside.
const BOOT: Duration = Duration::from_secs(900);
const CELL: Duration = Duration::from_secs(300);

/// What to run, and how.
pub struct Request {
    /// The cells.
    pub matrix: Matrix,
    /// How they are to run.
    pub setup: Setup,
    /// Deterministic emulation.
    pub repeatable: Option<Repeatable>,
    /// How many hosts run at once. What they find does not depend on it.
    pub jobs: usize,
    /// Where scenarios come from.
    pub library: Library,
    /// The guest image, if not the one inside this program.
    pub image: Option<PathBuf>,
    /// Kernel and build tree of Linux domains, if not the lab's own.
    pub linux: Option<(PathBuf, PathBuf)>,
    /// Whether cells that failed before are run again.
    pub again: bool,
    /// The experiment's folder.
    pub out: PathBuf,
}

/// Runs `cells` one after the other and hands on what is told of them. A cell that cannot be planned is told as
/// failed, and the others run.
///
/// # Errors
///
/// If the host cannot be made, or ends before it has told of all of them.
pub(super) fn boot(
    request: &Request,
    cells: &[&Cell],
    progress: &Progress,
    hear: &mut dyn FnMut(Line),
) -> Result<()> {
    let topology = &cells.first().context("a boot needs a cell")?.topology;
    let scenario = request.library.load(&format!("{SCENARIO}{topology}"))?;
    let on_host = request.setup.mode == Mode::Host;
    let folder: PathBuf =
        if on_host { std::path::absolute(&request.out)? } else { LAB_FOLDER.into() };
    let image_path = if on_host { folder.join("xen-guest.elf") } else { LAB_IMAGE.into() };
    let mut image = image::load(request.image.as_deref())?;
    let lab = if on_host { None } else { Some(Lab::prepare(progress)?) };
    let wants_linux = cells.iter().any(|cell| matches!(cell.lock, Lock::Linux(_)));
    let mut files = match wants_linux {
        true => Some(linux_files(request.linux.as_ref(), lab.as_ref(), progress)?),
        false => None,
    };
    if !request.setup.pause {
        pause::out_of_image(&mut image)?;
        files.as_mut().map_or(Ok(()), pause::out_of_linux)?;
    }

    let mut planned = Vec::new();
    for cell in cells {
        let plan = plan(request, &scenario, cell, &image_path, files.as_ref(), &folder);
        let plan = plan.and_then(|plan| {
            if matches!(cell.lock, Lock::Linux(_)) {
                check_linux(lab.as_ref(), &plan)?;
            }
            Ok(plan)
        });
        match plan {
            Ok(plan) => planned.push(Planned { cell: (*cell).clone(), plan }),
            Err(error) => hear(Line::Done((*cell).clone(), Err(format!("{error:#}")))),
        }
    }
    if planned.is_empty() {
        return Ok(());
    }
    // In a repeatable lab a turn is two instructions, whatever else happens.
    let turns_per_us =
        request.repeatable.map(|settings| 1000.0 / f64::from(2u32 << settings.shift));
    let batch = Batch { turns_per_us, pause: request.setup.pause, cells: planned };
    let domain = batch.cells.iter().find_map(|planned| planned.plan.linux.as_ref());

    let Some(lab) = lab else {
        let write = |path: &Path, bytes: &[u8]| {
            fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        write(&image_path, &image)?;
        if let Some((domain, files)) = domain.zip(files) {
            write(&domain.kernel, &files.kernel)?;
            write(&domain.initrd, &files.initrd)?;
        }
        let tell = &mut |line: String| Line::in_line(&line).into_iter().for_each(&mut *hear);
        return dom0::carry_out(&batch, &request.out.join("host"), tell);
    };

    let mut boot = Boot::script(
        "exec /pvlab/pvlab bench-host --batch /pvlab/batch.json --out /out\n",
        request.out.join("lab").join(topology),
    );
    boot.files.push(Overlay::this_program("/pvlab/pvlab")?);
    boot.files.push(Overlay::bytes("/pvlab/batch.json", 0o644, serde_json::to_vec(&batch)?));
    boot.files.push(Overlay::bytes(LAB_IMAGE, 0o644, image));
    boot.pcpus = scenario.pcpus + 1;
    boot.dom0_mib = DOM0_MIB;
    let least = add_linux(&mut boot, domain.zip(files.as_ref()));
    boot.memory_mib = DOM0_MIB + XEN_MIB + memory_of(&scenario, least)?;
    if let Some(name) = &request.setup.scheduler {
        boot.hypervisor_options = format!("sched={name}");
    }
    let count = u32::try_from(batch.cells.len()).context("too many cells")?;
    boot.deadline = BOOT + CELL * count;
    if let Some(settings) = request.repeatable {
        boot.mode = crate::lab::Mode::Repeatable(settings);
    }
    let packages = || {
        let mut packages = lab.versions().clone();
        packages.extend(files.iter().flat_map(|files| files.packages.clone()));
        serde_json::to_value(packages).unwrap_or_default()
    };
    let ended = lab.run(&boot, &mut |line| {
        progress.detail(line);
        match Line::in_line(line) {
            Some(Line::Versions(mut versions)) => {
                versions["packages"] = packages();
                hear(Line::Versions(versions));
            }
            Some(line) => hear(line),
            None => {}
        }
    })?;
    if ended.status != 0 {
        bail!("pvlab in dom0 ended with status {}; see {}", ended.status, ended.console.display());
    }
    Ok(())
}

fn plan(
    request: &Request,
    scenario: &Scenario,
    cell: &Cell,
    image: &Path,
    files: Option<&linux::Files>,
    folder: &Path,
) -> Result<Plan> {
    let set = |key: Key, value: String| Setting { key, value };
    let choices = Choices {
        policies: vec![cell.lock.to_string()],
        settings: vec![
            set(Key::seed, cell.seed.to_string()),
            set(Key::duration, format!("{}us", request.setup.window.as_micros())),
        ],
        // Marks would cost the guest's locks a hypercall and Linux' nothing.
        markers: false,
        trace: request.setup.trace,
        start_after: request.setup.start_after,
    };
    let mut plan = Plan::new(scenario, &choices, image)?;
    if let Some(files) = files {
        plan.set_linux(files, folder).map_err(anyhow::Error::msg)?;
    }
    Ok(plan)
}
