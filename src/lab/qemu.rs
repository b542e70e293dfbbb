//! The emulator's command lines. Pure: nothing here starts anything.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Boot, Error, Hypervisor, Mode, Repeatable, lockstep};

/// The file names a host is started from, in the emulator's working folder. They are part of the
/// guest's memory, so they are the same for every run and machine.
pub(super) const XEN: &str = "xen";
pub(super) const VMLINUX: &str = "vmlinux";
pub(super) const INITRD: &str = "initrd.cpio";
/// The unpacked packages, for a KVM host.
pub(super) const ROOT: &str = "root";

/// The slice timer needs a microsecond interval; instructions are 1 ns to 1024 ns.
const MAX_SHIFT: u8 = 10;

/// QEMU among the unpacked packages.
pub(super) struct Emulator<'a> {
    pub(super) root: &'a Path,
}

impl Emulator<'_> {
    /// The program, with its own libraries, data and modules, and nothing of the machine's. In
    /// repeatable mode its folder needs [`lockstep::lay_out`].
    pub(super) fn command(&self, mode: Mode) -> Command {
        let place = |path: &str| self.root.join(path);
        // Its own dynamic linker: the machine's may be of another release than its libc.
        let mut command = Command::new(place("usr/lib64/ld-linux-x86-64.so.2"));
        let libraries = super::elf::LIBRARY_FOLDERS.map(|folder| place(folder).into_os_string());
        if mode != Mode::Parallel {
            command.arg("--preload").arg(lockstep::FILE);
        }
        command.arg("--library-path").arg(libraries.join(&OsString::from(":")));
        command.arg(place("usr/bin/qemu-system-x86_64"));
        for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(place(data));
        }
        command.env("QEMU_MODULE_DIR", place("usr/lib/x86_64-linux-gnu/qemu"));
        command
    }
}

/// Whether this QEMU takes a guest's read of CR2 for one of CR0, as those since 9.1 do: under SVM
/// it asks for the wrong intercept. Xen has asked for reads of CR0, so it gets this one, and
/// answers with a CR2 that it does not keep: 0. A kernel that handles page faults, such as Linux as
/// PVH, ends at its first one. Seen with 10.0.2, not with 7.2; a PV guest has no such intercepts.
pub(super) fn misreads_cr2(version: &str) -> bool {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next()) >= (9, 1)
}

/// Checks what a user can set.
pub(super) fn check(boot: &Boot) -> Result<(), Error> {
    let wrong = |text: String| Err(Error::Setting(text));
    if !(1..=64).contains(&boot.pcpus) {
        return wrong(format!("{} pCPUs: the lab has 1 to 64", boot.pcpus));
    }
    let xen = boot.hypervisor == Hypervisor::Xen;
    if !xen && boot.memory_mib < 512 {
        return wrong(format!("{} MiB: a KVM host needs 512 MiB", boot.memory_mib));
    }
    if xen && (boot.dom0_mib < 256 || boot.memory_mib < boot.dom0_mib + 128) {
        return wrong(format!(
            "{} MiB for the host, {} of them for dom0: dom0 needs 256 MiB, and Xen and the domains 128 MiB more than it",
            boot.memory_mib, boot.dom0_mib
        ));
    }
    if let Mode::Repeatable(Repeatable { shift, slice, .. }) = boot.mode {
        if shift > MAX_SHIFT {
            return wrong(format!(
                "shift {shift}: an instruction lasts 2^shift ns, shift is 0 to {MAX_SHIFT}"
            ));
        }
        if !(1..=1_000_000).contains(&slice.as_micros()) {
            return wrong(format!("a slice of {slice:?}: from 1 us to 1 s"));
        }
    }
    Ok(())
}

/// The arguments that decide how pCPUs run.
pub(super) fn timing(mode: Mode) -> Vec<String> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    match mode {
        Mode::Parallel => words("-accel tcg,thread=multi,tb-size=512"),
        Mode::Repeatable(Repeatable { shift, slice, seed }) => {
            let slice = slice.as_micros();
            // Named threads are what lockstep tells them apart by. The translated code must fit: when
            // it is thrown away depends on the host's addresses, and cuts a turn short.
            words(&format!(
                "-name lab,debug-threads=on -accel tcg,thread=single,tb-size=1536 -icount shift={shift},sleep=off \
                 -rtc clock=vm,base=2024-01-01 -seed {seed} \
                 -netdev hubport,id=n0,hubid=0 \
                 -object filter-buffer,id=f0,netdev=n0,queue=rx,interval={slice}"
            ))
        }
    }
}

/// The arguments of a host: its kernels and its image by the names above, the console on `serial`.
pub(super) fn host(boot: &Boot, share: Option<&Path>, serial: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = timing(boot.mode).into_iter().map(Into::into).collect();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    // No XSAVE: QEMU's ignores CR0.TS, and with Xen's lazy FPU switching domains would see each
    // other's vector registers. SVM and NPT are what PVH domains and KVM need.
    add(&["-machine", "q35", "-cpu", "qemu64,+svm,+npt"]);
    add(&["-smp", &boot.pcpus.to_string(), "-m", &format!("{}M", boot.memory_mib)]);
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", serial]);
    match boot.hypervisor {
        Hypervisor::Xen => add(&xen(boot).each_ref().map(String::as_str)),
        Hypervisor::Kvm => add(&kvm(boot).each_ref().map(String::as_str)),
    }
    let mut add_share = |tag: &str, options: &str, path: &Path| {
        let mut device =
            OsString::from(format!("local,id={tag},security_model=none,{options}path="));
        device.push(doubled_commas(path));
        arguments.extend([OsString::from("-fsdev"), device]);
        let device = format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}");
        arguments.extend([OsString::from("-device"), device.into()]);
    };
    if let Some(share) = share {
        add_share("out", "", share);
    }
    if boot.hypervisor == Hypervisor::Kvm {
        add_share("lab", "readonly=on,", Path::new(ROOT));
    }
    arguments
}

/// What the mode adds to Linux' command line: a repeatable run is never live. Two runs must agree on addresses; and on what the
/// kernel says after the 9p share is mounted, when their clocks no longer do.
fn same(boot: &Boot) -> &'static str {
    let repeatable = matches!(boot.mode, Mode::Repeatable(_));
    match (repeatable, boot.live) {
        (true, _) => " nokaslr printk.time=0",
        // Read by dom0's init.
        (false, true) => " lab=live",
        (false, false) => "",
    }
}

/// Xen, and in it dom0.
fn xen(boot: &Boot) -> [String; 6] {
    let dom0 = boot.dom0_mib;
    // No `noreboot`: a host that crashes then resets, which ends the emulator, instead of hanging.
    // dom0 has pCPU 0; its one vCPU stays there. Scrubbing memory at boot only costs time, and its
    // end depends on the host's.
    let mut xen = format!(
        "loglvl=all guest_loglvl=all com1=115200,8n1 console=com1 bootscrub=0 \
         dom0_mem={dom0}M,max:{dom0}M dom0_max_vcpus=1 dom0_vcpus_pin"
    );
    if !boot.hypervisor_options.is_empty() {
        xen.push(' ');
        xen += &boot.hypervisor_options;
    }
    // A comma ends a module's text unless doubled.
    let module =
        format!("{VMLINUX} console=hvc0 earlyprintk=xen quiet{}", same(boot)).replace(',', ",,");
    let initrd = format!("{module},{INITRD}");
    ["-kernel".into(), XEN.into(), "-append".into(), xen, "-initrd".into(), initrd]
}

/// Linux alone, which tells its init by `lab=kvm` that it is the hypervisor. Its mitigations would cost each
/// VM exit a multiple, and this host has no secrets. A panic ends the emulator.
fn kvm(boot: &Boot) -> [String; 6] {
    let linux = format!(
        "console=ttyS0 quiet mitigations=off panic=-1 lab=kvm{} {}",
        same(boot),
        boot.hypervisor_options
    );
    ["-kernel".into(), VMLINUX.into(), "-append".into(), linux, "-initrd".into(), INITRD.into()]
}

fn doubled_commas(path: &Path) -> PathBuf {
    path.to_str().map_or_else(|| path.to_path_buf(), |text| text.replace(',', ",,").into())
}

/// A command as a person would type it.
pub(super) fn shown(command: &Command) -> String {
    let quote = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,+@%".contains(letter);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let set = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", quote(name), quote(value?))));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quote);
    set.chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn versions_that_misread_cr2_are_told_by_debians_numbers() {
        for version in ["1:10.0.2+ds-2+deb13u1~bpo12+1", "1:9.1.0+ds-1", "11.0"] {
            assert!(misreads_cr2(version), "{version}");
        }
        for version in ["1:7.2+dfsg-7+deb12u18+b3", "1:9.0.2+ds-4", ""] {
            assert!(!misreads_cr2(version), "{version}");
        }
    }

    fn text(boot: &Boot) -> String {
        let words = host(boot, Some(Path::new("/results/a,b")), "stdio");
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn parallel_runs_each_pcpu_on_its_own_thread() {
        let text = text(&Boot::script("", "/results"));
        assert!(
            text.contains("thread=multi") && !text.contains("-icount") && !text.contains("nokaslr"),
            "{text}"
        );
        assert!(
            text.contains("-smp 3 ")
                && text.contains("dom0_mem=512M,max:512M dom0_max_vcpus=1 dom0_vcpus_pin"),
            "{text}"
        );
    }

    #[test]
    fn repeatable_bounds_the_slice_and_fixes_every_seed() {
        let repeatable = Repeatable { shift: 0, slice: Duration::from_micros(10), seed: 7 };
        let boot = Boot { mode: Mode::Repeatable(repeatable), ..Boot::script("", "/results") };
        let text = text(&boot);
        for part in [
            "thread=single",
            "-icount shift=0,sleep=off",
            "-rtc clock=vm,base=2024-01-01",
            "-seed 7",
            "interval=10",
            "debug-threads=on",
            "nokaslr",
            "bootscrub=0",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_kvm_host_is_linux_without_xen_and_sees_the_packages() {
        let boot = Boot { hypervisor: Hypervisor::Kvm, ..Boot::script("", "/results") };
        let text = text(&boot);
        for part in ["-kernel vmlinux", " lab=kvm", "readonly=on,path=root", "mount_tag=out"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("dom0_mem"), "{text}");
    }

    #[test]
    fn commas_in_names_are_doubled() {
        assert!(text(&Boot::script("", "/results")).contains("path=/results/a,,b"));
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let good = Boot::script("", "/results");
        assert!(check(&good).is_ok());
        let repeatable = |shift, micros| {
            Mode::Repeatable(Repeatable { shift, slice: Duration::from_micros(micros), seed: 0 })
        };
        let bad = [
            (Boot { pcpus: 0, ..good.clone() }, "pCPUs"),
            (Boot { pcpus: 65, ..good.clone() }, "pCPUs"),
            (Boot { dom0_mib: 100, ..good.clone() }, "dom0"),
            (Boot { memory_mib: 512, ..good.clone() }, "MiB"),
            (Boot { hypervisor: Hypervisor::Kvm, memory_mib: 400, ..good.clone() }, "KVM"),
            (Boot { mode: repeatable(11, 100), ..good.clone() }, "shift"),
            (Boot { mode: repeatable(3, 0), ..good.clone() }, "slice"),
        ];
        for (boot, part) in bad {
            let error = check(&boot).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_shown_command_can_be_pasted() {
        let mut command = Command::new("qemu");
        command.args(["-append", "a b", "it's"]).env("X", "1");
        assert_eq!(shown(&command), r"X=1 qemu -append 'a b' 'it'\''s'");
    }
}
