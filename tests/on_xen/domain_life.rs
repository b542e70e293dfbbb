//! A domain's life on real Xen: all that a toolstack does to it while its vCPUs torture their locks, as PV
//! and as PVH, with timers and NMIs that take locks too.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use crate::domains::{RUN, wanted};
use ::experiment::record::framing::Decoder;
use ::experiment::record::{DomainReport, Outcome};
use ::experiment::{DomainType, EventAbi};
use goblin::elf::Elf;
use goblin::elf::header::ET_CORE;
use goblin::elf::program_header::PT_LOAD;
use goblin::elf::section_header::SectionHeader;
use pvlab::image;
use pvlab::lab::{Boot, Lab, Overlay};
use pvlab::progress::Progress;
use pvlab::storm::{self, Operation, Storm};

const PAGE: usize = 4096;

/// Each operation once, those that hang together in an order that can go wrong: a restore while two vCPUs
/// are down, and their return afterwards; `save -c` last on PV, since `xl` no longer restarts the domain
/// then, and on PVH in a restored domain, which has to say again that it can be told of it.
fn each_once(kind: DomainType) -> Vec<Operation> {
    let mut operations = vec![
        Operation::Pause(5),
        Operation::Pin(1, 2),
        Operation::Weight(64),
        Operation::Cap(50),
        Operation::Wait(3),
        Operation::Cap(0),
        Operation::Nmi(0),
        Operation::Nmi(1),
        Operation::Nmi(2),
        Operation::Vcpus(3),
        Operation::Wait(5),
        Operation::SaveAndRestore,
        // A vCPU that is down has no port. Up again, that of its kicker and the one by which it is held.
        Operation::Ports(3, 0),
        Operation::Vcpus(5),
        Operation::Ports(3, 2),
    ];
    match kind {
        DomainType::Pv => {
            operations.insert(0, Operation::Reboot);
            // Of a restored domain, which has to say again where its frames are. As PVH it takes
            // many minutes.
            operations.push(Operation::DumpCore);
            operations.extend([Operation::SaveAndRestore, Operation::SaveAndContinue]);
        }
        // Saving takes half a minute here, and migration is a save and a restore.
        DomainType::Pvh => operations.extend([Operation::SaveAndContinue, Operation::Migrate]),
    }
    operations
}

fn storm(name: &str, kind: DomainType, policy: &str, operations: Vec<Operation>) -> Storm {
    let (name, policy, events) = (name.to_owned(), policy.to_owned(), Some(EventAbi::Fifo));
    Storm { name, kind, policy, events, seed: 1, operations, limit: None, least: 0 }
}

#[test]
fn a_domain_survives_what_a_toolstack_does_to_it_and_loses_no_wake_up() {
    let (pv, pvh) = (DomainType::Pv, DomainType::Pvh);
    let mut storms = vec![
        storm("pv", pv, "kick-at-unlock", each_once(pv)),
        storm("pvh", pvh, "kick-twice", each_once(pvh)),
    ];
    storms.retain(|storm| wanted(&storm.name));
    let out = tempfile::tempdir().unwrap();
    let mut boot = Boot::script("", out.path());
    boot.deadline = crate::PATIENCE;
    let image = image::load(None).unwrap();
    storm::prepare(&mut boot, &storms, image.clone());
    let lab = Lab::prepare(&Progress::hidden()).expect("the lab can be made");
    lab.run(&boot, &mut |_| {}).expect("the host ran to its end");
    for storm in &storms {
        let (report, account) = storm.verdict(out.path()).unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(account.operations(), storm.operations.len());
        let count = |name: &str| report.counters[name];
        assert!(count("restores") >= 2, "{:?}", report.counters);
        assert!(count("vcpus_taken_down") >= 2, "{:?}", report.counters);
        assert!(count("nmi_acquisitions") + count("nmi_refusals") >= 3, "{:?}", report.counters);
        assert!(count("interrupt_acquisitions") > 0, "{:?}", report.counters);
        assert_eq!(count("cancelled_suspends"), 1, "{:?}", report.counters);
    }
    if wanted("pv") {
        check_core(&fs::read(out.path().join("pv.core")).unwrap(), &image);
    }
}

/// A core of a PV domain, as `xl dump-core` writes it: the code of `image` is in it, where it was
/// loaded.
fn check_core(core: &[u8], image: &[u8]) {
    let elf = Elf::parse(core).expect("an ELF file");
    assert_eq!(elf.header.e_type, ET_CORE);
    let section = |wanted: &str| {
        let named = |of: &&SectionHeader| elf.shdr_strtab.get_at(of.sh_name) == Some(wanted);
        &core[elf.section_headers.iter().find(named).expect(wanted).file_range().unwrap()]
    };
    // The frame of each page, and its machine frame.
    let table = section(".xen_p2m").chunks_exact(16);
    let frames = table.map(|entry| u64::from_le_bytes(entry[..8].try_into().unwrap()));
    let pages: BTreeMap<u64, &[u8]> = frames.zip(section(".xen_pages").chunks(PAGE)).collect();
    let loaded = Elf::parse(image).unwrap();
    let code = loaded.program_headers.iter().find(|s| s.p_type == PT_LOAD && s.is_executable());
    let code = code.expect("a segment of code");
    let whole = image[code.file_range()].chunks_exact(PAGE);
    let number = whole.len();
    let same =
        (code.p_paddr / PAGE as u64..).zip(whole).filter(|(frame, page)| pages[frame] == *page);
    // Xen fills in one of them, that of hypercalls.
    assert!(number > 20 && same.count() + 1 >= number, "of {number} pages of code");
}

#[test]
fn a_domain_of_128_vcpus_is_exact_and_what_cannot_work_is_told_in_one_line() {
    // Name, vCPUs, command line, and of those that crash the one line.
    let domains = [
        (
            "big",
            128,
            "critical=20us outside=100us spin=20us acquisitions=20 deadline=600s events=fifo",
            None,
        ),
        ("many", 129, "", Some("the domain has more than 128 vCPUs; set vcpus= to at most that")),
        ("typo", 2, "critical=soon", Some("guest error: critical=soon: accepted values are an")),
        (
            "more",
            2,
            "vcpus=3",
            Some("guest error: vcpus=3: accepted values are integers from 1 to 2"),
        ),
    ];
    let out = tempfile::tempdir().unwrap();
    let mut boot = Boot::script(format!("{RUN}limit=1500\n"), out.path());
    boot.deadline = crate::PATIENCE;
    boot.files.push(Overlay::bytes("/guest/xen-guest.elf", 0o644, image::load(None).unwrap()));
    for (name, vcpus, extra, _) in domains.into_iter().filter(|(name, ..)| wanted(name)) {
        let config = format!(
            "name = \"{name}\"\ntype = \"pv\"\nkernel = \"/guest/xen-guest.elf\"\nmemory = 32\n\
             vcpus = {vcpus}\ncpus = \"1-2\"\ntsc_mode = \"native\"\nextra = \"{extra}\"\n\
             on_poweroff = \"destroy\"\non_crash = \"preserve\"\n"
        );
        boot.files.push(Overlay::bytes(format!("/guest/{name}.cfg"), 0o644, config));
        writeln!(boot.script, "run {name}").unwrap();
    }
    let lab = Lab::prepare(&Progress::hidden()).expect("the lab can be made");
    lab.run(&boot, &mut |_| {}).expect("the host ran to its end");
    for (name, vcpus, _, line) in domains.into_iter().filter(|(name, ..)| wanted(name)) {
        let read = |what: &str| fs::read_to_string(out.path().join(format!("{name}.{what}")));
        let (end, console) = (read("end").unwrap_or_default(), read("log").unwrap_or_default());
        if let Some(line) = line {
            assert_eq!(end.trim(), "crash", "{name}: {console}");
            let told = console.lines().filter(|told| told.contains(line)).count();
            assert_eq!(told, 1, "{name}: {console}");
            continue;
        }
        assert_eq!(end.trim(), "poweroff", "{name}: {console}");
        let mut decoder = Decoder::default();
        let document = console.lines().find_map(|line| decoder.line(line.trim_end()).unwrap());
        let report: DomainReport = serde_json::from_str(&document.expect("a report")).unwrap();
        assert_eq!(report.outcome, Outcome::Success);
        assert_eq!((report.vcpus.len(), report.counter), (vcpus, 20 * vcpus as u64));
        assert_eq!(report.events, EventAbi::Fifo);
        assert_eq!(report.counters["pv_poll_timeout"], 0);
        // 128 vCPUs share two pCPUs: some waited for one.
        assert!(report.vcpus.iter().any(|vcpu| vcpu.stolen_ns > 0), "no steal time");
    }
}
