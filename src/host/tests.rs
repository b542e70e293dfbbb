//! The order of a run, on a Xen host made of a script.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::plan::Choices;
use crate::scenario::Library;

/// What a scripted guest does at each wait of the host.
#[derive(Clone)]
enum Act {
    State(&'static str),
    /// Writes its report into xenstore.
    Report,
    /// Writes its report on the console alone.
    Print,
    Says(&'static str),
    Life(Life),
}

#[derive(Default)]
struct Fake {
    script: Vec<VecDeque<Act>>,
    guests: BTreeMap<u32, Guest>,
    store: BTreeMap<String, String>,
    destroyed: Vec<u32>,
    calls: Vec<String>,
    fail_create_of: Option<&'static str>,
    log: String,
    xenctx: Option<String>,
}

struct Guest {
    script: VecDeque<Act>,
    life: Life,
    console: String,
    name: String,
}

fn report() -> String {
    let report = DomainReport {
        schema: experiment::record::SCHEMA,
        counter: 5,
        acquisitions: 5,
        ..Default::default()
    };
    serde_json::to_string(&report).unwrap()
}

impl XenHost for Fake {
    type Trace = ();

    fn create(&mut self, name: &str, config: &Path) -> Result<u32> {
        if self.fail_create_of == Some(name) {
            bail!("xl create failed: no memory");
        }
        assert!(fs::read_to_string(config).unwrap().contains("on_poweroff = \"preserve\""));
        let domid = self.guests.len() as u32 + 1;
        let script = self.script.get(domid as usize - 1).cloned().unwrap_or_default();
        let guest =
            Guest { script, life: Life::Running, console: String::new(), name: name.to_owned() };
        self.guests.insert(domid, guest);
        Ok(domid)
    }

    fn destroy(&mut self, domid: u32) -> Result<()> {
        self.destroyed.push(domid);
        Ok(())
    }

    fn life(&mut self, domid: u32) -> Result<Life> {
        Ok(self.guests[&domid].life)
    }

    fn read(&mut self, path: &str) -> Result<Option<String>> {
        Ok(self.store.get(path).cloned())
    }

    fn write(&mut self, path: &str, value: &str) -> Result<()> {
        self.calls.push(format!("write {path}={value}"));
        self.store.insert(path.to_owned(), value.to_owned());
        // A guest tells Xen's time at once.
        if let Some(home) = path.strip_suffix("/go").filter(|_| value == "clock") {
            self.store.insert(format!("{home}/clock"), "7".to_owned());
        }
        Ok(())
    }

    fn watch(&mut self, paths: &[String]) -> Result<()> {
        assert_eq!(paths.len(), 2 * (self.guests.len() - self.destroyed.len()));
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Change> {
        let mut idle = true;
        for (domid, guest) in &mut self.guests {
            let node = |name: &str| format!("/local/domain/{domid}/data/pvlab/{name}");
            let Some(act) = guest.script.pop_front() else { continue };
            idle = false;
            match act {
                Act::State(state) => drop(self.store.insert(node("state"), state.to_owned())),
                Act::Report => {
                    let text = report();
                    let (head, rest) = text.split_at(10);
                    self.store.insert(node("result/0"), head.to_owned());
                    self.store.insert(node("result/1"), rest.to_owned());
                    self.store.insert(node("result/count"), "2".to_owned());
                }
                Act::Print => experiment::record::framing::console_lines(&report(), |line| {
                    guest.console.push_str(line);
                    guest.console.push('\n');
                }),
                Act::Says(line) => guest.console.push_str(line),
                Act::Life(life) => guest.life = life,
            }
        }
        if idle {
            // Nobody will do anything any more: the deadline comes.
            std::thread::sleep(timeout);
        }
        Ok(Change::Domain)
    }

    fn console(&mut self, name: &str) -> Result<String> {
        Ok(self.guests.values().find(|guest| guest.name == name).unwrap().console.clone())
    }

    fn start_trace(&mut self, _mask: u32, file: &Path) -> Result<()> {
        self.calls.push("start trace".to_owned());
        fs::write(file, "")?;
        Ok(())
    }

    fn stop_trace(&mut self, (): ()) -> Result<()> {
        self.calls.push("stop trace".to_owned());
        Ok(())
    }

    fn log(&mut self) -> Result<String> {
        Ok(self.log.clone())
    }

    fn registers(&mut self, _domid: u32) -> Result<Option<String>> {
        Ok(self.xenctx.clone())
    }

    fn memory(
        &mut self,
        _domid: u32,
        _vcpu: u32,
        address: u64,
        _bytes: u64,
    ) -> Result<Option<String>> {
        Ok(self.xenctx.as_ref().map(|_| format!("{address:016x}: {:016x} {:016x}\n", 0, 0xbbbb)))
    }

    fn versions(&mut self) -> Result<serde_json::Value> {
        Ok(serde_json::json!({ "pvlab": "test" }))
    }
}

struct Ran {
    outcome: Result<()>,
    host: Fake,
    events: Vec<Event>,
    out: tempfile::TempDir,
}

impl Ran {
    fn result(&self, name: &str) -> DomainResult {
        let text =
            fs::read_to_string(self.out.path().join(format!("kick-twice/{name}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn problem(&self) -> &str {
        let problem = |event: &Event| matches!(event, Event::Problem { .. });
        match self.events.iter().find(|event| problem(event)) {
            Some(Event::Problem { message, .. }) => message,
            _ => panic!("no problem was told: {:?}", self.events),
        }
    }
}

/// A deadline that nobody meets.
const NO_HURRY: Duration = Duration::from_secs(600);

/// Runs overcommit-2x with these scripts for guest1 and guest2, and no hurry.
fn play(scripts: [Vec<Act>; 2], change: impl FnOnce(&mut Fake)) -> Ran {
    play_within(NO_HURRY, scripts, change)
}

/// The same, with two scripts for each attempt, and with a deadline: a domain that has nothing left
/// to do waits for it.
fn play_within<const N: usize>(
    deadline: Duration,
    scripts: [Vec<Act>; N],
    change: impl FnOnce(&mut Fake),
) -> Ran {
    let scenario = Library::Embedded.load("overcommit-2x").unwrap();
    let policies = vec!["kick-twice".to_owned()];
    let choices = Choices {
        policies,
        settings: Vec::new(),
        markers: true,
        trace: true,
        start_after: Duration::from_secs(1),
    };
    let mut plan = Plan::new(&scenario, &choices, Path::new("/image")).unwrap();
    plan.deadline = deadline;
    let mut host = Fake { script: scripts.map(VecDeque::from).into(), ..Fake::default() };
    change(&mut host);
    let out = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let outcome = run(&mut host, &plan, out.path(), &mut |event| events.push(event));
    Ran { outcome, host, events, out }
}

fn good() -> Vec<Act> {
    use Act::{Life as Lives, Report, Says, State};
    vec![
        State("booting"),
        State("ready"),
        Says("working\n"),
        Report,
        State("done"),
        Lives(Life::ShutDown),
    ]
}

#[test]
fn a_good_run_traces_around_the_start_line_and_leaves_no_domain() {
    let ran = play([good(), good()], |_| ());
    ran.outcome.as_ref().unwrap();
    for name in ["guest1", "guest2"] {
        let result = ran.result(name);
        assert_eq!((result.end, result.report.unwrap().counter), (End::Done, 5));
        assert!(ran.out.path().join(format!("kick-twice/console-{name}.log")).exists());
    }
    // One domain is asked for Xen's time, which is 7 here; both start together, a second later.
    let go = |domid, what| format!("write /local/domain/{domid}/data/pvlab/go={what}");
    let (ask, at) = (go(1, "clock"), |domid| go(domid, "1000000007"));
    assert_eq!(ran.host.calls, ["start trace", &ask, &at(1), &at(2), "stop trace"]);
    assert_eq!(ran.host.destroyed, [1, 2]);
    assert_eq!(ran.events.last(), Some(&Event::Finished));
}

#[test]
fn a_crash_is_told_with_the_last_console_lines_and_the_rest_is_kept() {
    use Act::{Life as Lives, Says, State};
    let crash = vec![State("ready"), Says("guest crash: page fault\n"), Lives(Life::Crashed)];
    let ran = play([crash, good()], |_| ());
    ran.outcome.as_ref().unwrap();
    assert_eq!(ran.result("guest1").end, End::Crashed);
    assert_eq!(ran.result("guest2").end, End::Done);
    assert!(
        ran.problem().contains("guest1 crashed")
            && ran.problem().contains("guest crash: page fault")
    );
    assert_eq!(ran.host.destroyed, [1, 2]);
}

#[test]
fn a_crash_without_a_word_of_the_guests_is_told_by_what_xen_knows() {
    use Act::{Life as Lives, Says, State};
    let crash = || vec![State("running"), Says("[0.1] hello\n"), Lives(Life::Crashed)];
    let log = "(XEN) Domain 1 (vcpu#3) crashed on cpu#1:\n(XEN) RIP: e033:[<000000000000aaaa>]\n\
               (XEN) rbp: 0000000000001000   rsp: 0000000000001000   r8:  0000000000000000\n";
    let ran = play([crash(), good()], |host| host.log = log.to_owned());
    let cause = "domain guest1 crashed (no report in xenstore and none on its console): Xen ended it for \
                 what vCPU 3 did in 0xaaaa";
    assert_eq!(ran.result("guest1").message, cause);
    assert!(ran.problem().contains("\n    at 0xaaaa; its console ends"), "{}", ran.problem());

    // With xenctx there is a stack to walk.
    let registers = "vcpu3:\nrip: 000000000000aaaa\nrsp: 0000000000001000\nrbp: 0000000000001000\n";
    let ran = play([crash(), good()], |host| {
        (host.log, host.xenctx) = (log.to_owned(), Some(registers.to_owned()));
    });
    assert!(ran.problem().contains("\n    at 0xaaaa\n    at 0xbbbb; its"), "{}", ran.problem());
    let file = fs::read_to_string(ran.out.path().join("kick-twice/crash-guest1.txt")).unwrap();
    assert_eq!(file, format!("{cause}\n    at 0xaaaa\n    at 0xbbbb\n"));

    // With neither, that is said.
    let ran = play([crash(), good()], |_| ());
    assert!(ran.problem().contains("nothing more is known"), "{}", ran.problem());
}

/// On a busy host a start line had passed when it came, and the table said that the domain had
/// crashed.
#[test]
fn a_domain_that_could_not_begin_is_told_with_its_own_words() {
    let late = vec![Act::State("ready"), Act::State("failed"), Act::Life(Life::Crashed)];
    let ran = play([late, good()], |host| {
        let node = "/local/domain/1/data/pvlab/error".to_owned();
        host.store.insert(node, "the start line was in the past".to_owned());
    });
    let told = "domain guest1 could not begin: the start line was in the past";
    assert_eq!(
        (ran.result("guest1").end, ran.result("guest1").message.as_str()),
        (End::Failed, told)
    );
}

/// A host of which one run in a whole suite was too slow to tell seven domains of their start in
/// time: nothing is wrong with the run that follows.
#[test]
fn a_start_line_that_comes_too_late_is_drawn_again_farther_away() {
    let late = || vec![Act::State("ready"), Act::State("late"), Act::Life(Life::Crashed)];
    // The other domain is under way, and nobody waits for its end.
    let under_way = || vec![Act::State("ready"), Act::State("running")];
    let ran = play_within(NO_HURRY, [late(), under_way(), good(), good()], |_| ());
    ran.outcome.as_ref().unwrap();
    for name in ["guest1", "guest2"] {
        assert_eq!(ran.result(name).end, End::Done);
    }
    let start_after = Duration::from_secs(4);
    let missed = Event::StartMissed { policy: "kick-twice".to_owned(), start_after };
    assert_eq!(ran.events.iter().filter(|event| **event == missed).count(), 1);
    assert!(!ran.events.iter().any(|event| matches!(event, Event::Problem { .. })));
    assert_eq!(ran.host.destroyed, [1, 2, 3, 4]);

    // A host that is too slow for any line is told at last, and once.
    let ran = play_within(NO_HURRY, [late(), late(), late(), late(), late(), late()], |host| {
        let node = "/local/domain/5/data/pvlab/error".to_owned();
        host.store.insert(node, "the start line was in the past".to_owned());
    });
    assert_eq!(ran.result("guest1").end, End::Failed);
    assert!(ran.problem().contains("guest1 could not begin: the start line was in the past"));
    let told = |event: &&Event| matches!(event, Event::StartMissed { .. });
    assert_eq!(ran.events.iter().filter(told).count(), 2);
    assert_eq!(ran.host.destroyed, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_guest_that_never_ends_is_ended_at_the_deadline() {
    let endless = vec![Act::State("ready"), Act::State("running")];
    let ran = play_within(Duration::from_secs(2), [endless, good()], |_| ());
    ran.outcome.as_ref().unwrap();
    assert_eq!(ran.result("guest1").end, End::Hung);
    assert_eq!(ran.result("guest2").end, End::Done);
    assert!(
        ran.problem().contains("guest1 hung: state `running` at the deadline"),
        "{}",
        ran.problem()
    );
    assert_eq!(ran.host.destroyed, [1, 2]);
}

#[test]
fn without_a_report_in_xenstore_the_console_has_it() {
    use Act::{Life as Lives, Print, State};
    let ran =
        play([vec![State("ready"), Print, State("done"), Lives(Life::ShutDown)], good()], |_| ());
    assert_eq!(ran.result("guest1").end, End::Done);
}

#[test]
fn a_domain_that_cannot_be_created_ends_the_run_and_the_others_are_destroyed() {
    let ran = play([good(), good()], |host| host.fail_create_of = Some("guest2"));
    let error = format!("{:#}", ran.outcome.unwrap_err());
    assert!(error.contains("kick-twice") && error.contains("no memory"), "{error}");
    assert_eq!(ran.host.destroyed, [1]);
}

#[test]
fn a_domain_that_ends_without_a_report_is_no_success() {
    let ran = play([vec![Act::State("ready"), Act::Life(Life::ShutDown)], good()], |_| ());
    assert_eq!(ran.result("guest1").end, End::NoReport);
}
