#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Changes the lock's code in some 800 places, one at a time, and tells which changes no test sees.

`cargo mutants --list` names the changes. All of them go into one copy of the sources: the body of
each function becomes a `match` on a number, with the changed bodies as its arms, and the number
comes from the environment. So the tests are compiled once for each stage. What has no place in such
a copy (constants, functions that are `const` or return `impl Trait`) is compiled by itself.

Needs `cargo install cargo-mutants`. docs/mutants.md explains the changes that are left.
"""

import argparse
import doctest
import glob
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = "pvlock/src/"
VARIABLE = "PVLOCK_MUTANT"

# Each stage takes up what survived the one before: its package, cargo's arguments, and the files
# that are not in its build.
CHECKER = "checker.rs checker/on.rs held.rs trouble.rs"
UNITS = "--features counters,lock_api_05 --lib --test errors --test fair --test faces"
THREADS = "--features counters,lock_api_05 --test threads --test kernels --test spin_names"
STAGES = {
    "units": ("pvlock", UNITS, f"{CHECKER} posted.rs"),
    "threads": ("pvlock", THREADS, f"{CHECKER} posted.rs word/portable.rs"),
    "checker": ("pvlock", "--features checker,counters --lib --test checker", "posted.rs"),
    "models": (
        "pvlock-loom",
        "--test models",
        f"{CHECKER} counts.rs irq.rs v04.rs v05.rs word/x86_64.rs",
    ),
}

# Seconds after which a test that sleeps, and uses no processor, has hung.
LONGEST_SLEEP = 20

LIB = SOURCES + "lib.rs"
# Errors by default, where a change makes them certain.
ALLOWED = "#![allow(arithmetic_overflow, unconditional_panic)]\n"
SWITCH = f"""extern crate std;
pub(crate) fn on() -> u32 {{
    static ON: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *ON.get_or_init(|| std::env::var("{VARIABLE}").map_or(0, |number| number.parse().unwrap()))
}}
"""


def listed():
    """All changes, as `cargo mutants` lists them, each with a number."""
    command = ["cargo", "mutants", "-p", "pvlock", "--list", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return [mutant | {"number": n} for n, mutant in enumerate(json.loads(done.stdout), 1)]


class Source:
    """A file of the lock, and positions in it."""

    def __init__(self, text):
        self.text = text
        self.lines = [0]
        for line in text.split("\n"):
            self.lines.append(self.lines[-1] + len(line) + 1)

    def span(self, span):
        places = span["start"], span["end"]
        return tuple(self.lines[place["line"] - 1] + place["column"] - 1 for place in places)

    def body(self, function):
        """The span between the braces of a function; None where no switch can be."""
        if not function:
            return None
        begin, end = self.span(function["span"])
        begin = self.text.rfind("\n", 0, begin) + 1
        # Comments and attributes before it may have braces too.
        name = re.escape(function["function_name"].split("::")[-1])
        head = re.compile(rf"^(?!\s*//)(.*)\bfn\s+{name}\b[^{{;]*\{{", re.M)
        head = head.search(self.text, begin, end)
        if not head or re.search(r"\bconst\b", head[1]) or "-> impl " in head[0]:
            return None
        return head.end(), end - 1


def replaced(text, edits):
    """`text` with (begin, end, new) done."""
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new + text[end:]
    return text


def changed(text, mutant):
    """A file with one change."""
    return replaced(text, [(*Source(text).span(mutant["span"]), mutant["replacement"])])


def switched(text, mutants):
    """A file with a switch in each function, and the changes that have no place in it.

    >>> place = lambda line, column: {"line": line, "column": column}
    >>> span = lambda *at: {"start": place(*at[:2]), "end": place(*at[2:])}
    >>> function = {"function_name": "A::f", "span": span(1, 1, 3, 2)}
    >>> text = "fn f(a: u8) -> bool {\\n    a == 1\\n}\\nconst B: u8 = 1 << 2;\\n"
    >>> equal = {"number": 5, "replacement": "!=", "span": span(2, 7, 2, 9), "function": function}
    >>> shift = {"number": 6, "replacement": ">>", "span": span(4, 17, 4, 19)}
    >>> text, left = switched(text, [equal, shift])
    >>> print(text)
    fn f(a: u8) -> bool { match crate::mutant::on() {
    5 => { // begin 5
    <BLANKLINE>
        a != 1
    <BLANKLINE>
    } // end 5
    _ => {
        a == 1
    } } }
    const B: u8 = 1 << 2;
    <BLANKLINE>
    >>> left == [shift]
    True
    """
    source = Source(text)
    functions, left = {}, []
    for mutant in mutants:
        body = source.body(mutant.get("function"))
        functions.setdefault(body, []).append(mutant) if body else left.append(mutant)
    # The inner function first: an outer one has it with its switch in the arm without a change.
    edits = []
    for (begin, end), inside in sorted(functions.items(), key=lambda entry: -entry[0][0]):
        within = [edit for edit in edits if edit[1] <= end]
        edits = [edit for edit in edits if edit not in within]
        plain = replaced(text[begin:end], [(b - begin, e - begin, new) for b, e, new in within])
        arms = ""
        for mutant in inside:
            b, e = source.span(mutant["span"])
            body = replaced(text[begin:end], [(b - begin, e - begin, mutant["replacement"])])
            number = mutant["number"]
            arms += f"\n{number} => {{ // begin {number}\n{body}\n}} // end {number}"
        edits.append((begin, end, f" match crate::mutant::on() {{{arms}\n_ => {{{plain}}} }} "))
    return replaced(text, edits), left


class Tree:
    """A copy of the files that git knows or would take. What is written is newer than its build."""

    def __init__(self, folder):
        self.folder, self.before = folder, {}
        shutil.rmtree(folder, ignore_errors=True)
        git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in names.split("\0"):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)

    def read(self, name):
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def write(self, texts):
        """Has these texts, and all other files as they were."""
        for name in texts:
            self.before.setdefault(name, self.read(name))
        for name, before in self.before.items():
            (self.folder / name).write_text(texts.get(name, before))


def build(tree, target, stage):
    """The test programs, each with the folder it runs in; or None, and what the compiler says."""
    package, arguments, _ = STAGES[stage]
    command = ["cargo", "test", "--no-run", "--message-format=json", "-p", package]
    environment = {"CARGO_TARGET_DIR": str(target), "CARGO_PROFILE_DEV_DEBUG": "0"} | os.environ
    command += arguments.split()
    done = subprocess.run(command, cwd=tree.folder, env=environment, capture_output=True, text=True)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0:
        made = [one for one in said if one.get("executable")]
        return [(Path(one["executable"]), Path(one["manifest_path"]).parent) for one in made], []
    errors = [one["message"] for one in said if one["reason"] == "compiler-message"]
    errors = [error for error in errors if error["level"] == "error" and error["spans"]]
    if not errors:
        sys.exit(f"mutants: {' '.join(command)}:\n{done.stderr[-4000:]}")
    return None, errors


def arms_of(errors, tree):
    """The numbers of the arms that errors are in."""
    arms = set()
    for error in errors:
        for span in error["spans"]:
            lines = tree.read(span["file_name"]).split("\n")[: span["line_start"]]
            inside = []
            for line in lines if span["is_primary"] else []:
                if begin := re.search(r"// begin (\d+)$", line):
                    inside.append(int(begin[1]))
                elif re.search(r"// end \d+$", line):
                    inside.pop()
            arms.update(inside[-1:])
    return arms


def use(session):
    """The ticks of CPU time of a session's processes so far, and whether one of them could run."""
    ticks, runnable = 0, False
    # Unlike that of `Path`, this glob lets processes come and go meanwhile.
    for stat in glob.glob("/proc/[0-9]*/task/*/stat"):
        try:
            state, _, _, of, *rest = Path(stat).read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(of) == session:
            ticks += int(rest[7]) + int(rest[8])
            runnable |= state not in "SZ"
    return ticks, runnable


def passes(path, folder, number, cpu):
    """How a test program ends: "passed", "failed", or "hung": after so many seconds of CPU time, or
    when it has slept for a while. Neither depends on what else runs."""
    environment = os.environ | {VARIABLE: str(number), "RUST_BACKTRACE": "0"}
    null = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    test = subprocess.Popen([path, "-q"], cwd=folder, env=environment, start_new_session=True, **null)
    resource.prlimit(test.pid, resource.RLIMIT_CPU, (cpu, cpu + 1))
    slept, before = 0, 0
    while slept < LONGEST_SLEEP:
        try:
            test.wait(1)
            break
        except subprocess.TimeoutExpired:
            ticks, runnable = use(test.pid)
            slept = 0 if runnable or ticks > before + 10 else slept + 1
            before = ticks
    else:
        os.killpg(test.pid, signal.SIGKILL)
        test.wait()
        return "hung"
    return {0: "passed", -signal.SIGXCPU: "hung"}.get(test.returncode, "failed")


def timed(programs, kept):
    """Copies of the programs, with the seconds that each may take: those first that take least."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    limits = []
    for path, folder in programs:
        path = Path(shutil.copy(path, kept))
        cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        if passes(path, folder, 0, 3600) != "passed":
            sys.exit(f"mutants: {path} fails without a change")
        cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - cpu
        limits.append((path, folder, 2 + int(20 * cpu)))
    return sorted(limits, key=lambda program: program[2])


def run(programs, number):
    """How the first test program ends that does not pass; or "passed"."""
    for path, folder, limit in programs:
        if (end := passes(path, folder, number, limit)) != "passed":
            return end
    return "passed"


def stage(name, mutants, out):
    """Runs the changes of one stage: those that survive."""
    left_out = [SOURCES + file for file in STAGES[name][2].split()]
    mine = [mutant for mutant in mutants if mutant["file"] not in left_out]
    tree, target = Tree(out / "tree"), out / "build"
    sources = {mutant["file"]: tree.read(mutant["file"]) for mutant in mine}
    root = tree.read(LIB).replace("\nmod native;", "\nmod mutant;\nmod native;", 1)
    unviable, alone = set(), set()
    while True:
        texts = {SOURCES + "mutant.rs": SWITCH, LIB: ALLOWED + root}
        for file, text in sources.items():
            here = [one for one in mine if one["file"] == file and one["number"] not in unviable]
            texts[file], left = switched(text, here)
            alone.update(mutant["number"] for mutant in left)
        tree.write(texts)
        programs, errors = build(tree, target, name)
        if programs:
            break
        if not (arms := arms_of(errors, tree)):
            said = "\n".join(error["rendered"] for error in errors[:5])
            sys.exit(f"mutants: the copy does not compile:\n{said}")
        unviable |= arms
    programs = timed(programs, out / "programs")
    print(f"{name}: {len(mine)} changes, {len(alone)} of them compiled by themselves", flush=True)
    survivors = []
    for done, mutant in enumerate(mine, 1):
        if mutant["number"] in unviable:
            end = "unviable"
        elif mutant["number"] in alone:
            tree.write({mutant["file"]: changed(sources[mutant["file"]], mutant)})
            compiled, _ = build(tree, target, name)
            limits = {path.name: limit for path, _, limit in programs}
            end = "unviable"
            if compiled:
                end = run([(path, cwd, limits[path.name]) for path, cwd in compiled], 0)
        else:
            end = run(programs, mutant["number"])
        if end == "passed":
            survivors.append(mutant)
        with (out / "results.txt").open("a") as results:
            print(name, end, mutant["name"], sep="\t", file=results)
        line = f"{name}: {done}/{len(mine)}, {len(survivors)} survive: {end}: {mutant['name']}"
        print(line, flush=True)
    return survivors + [mutant for mutant in mutants if mutant not in mine]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "target/mutants", help="%(default)s")
    parser.add_argument("--stages", default=",".join(STAGES), help="%(default)s")
    parser.add_argument("--only", default="", metavar="REGEX", help="changes whose names match")
    parser.add_argument("--names", type=Path, metavar="FILE", help="changes with these names")
    options = parser.parse_args()
    for name in options.stages.split(","):
        if name not in STAGES:
            parser.error(f"--stages: {name}: no such stage; there are {', '.join(STAGES)}")
    if doctest.testmod().failed:
        sys.exit(1)
    mutants = [mutant for mutant in listed() if re.search(options.only, mutant["name"])]
    if options.names:
        names = options.names.read_text().splitlines()
        mutants = [mutant for mutant in mutants if mutant["name"] in names]
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.txt").write_text("# stage, how the change ended, its name\n")
    for name in options.stages.split(","):
        mutants = stage(name, mutants, out)
        names = "".join(mutant["name"] + "\n" for mutant in mutants)
        (out / f"survivors-{name}.txt").write_text(names)
    print(names, end="")


if __name__ == "__main__":
    main()
