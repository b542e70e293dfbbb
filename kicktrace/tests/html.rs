//! The HTML report in a real browser, headless: it paints, in light and in dark, and at 1280 pixels
//! and at 390 (a telephone's) nothing runs off the page.
//!
//! Chromium or Chrome is taken from `$CHROMIUM` or the `PATH`. Where there is none these tests say
//! so and look at nothing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kicktrace::synth::{Kicks, Plan, generate};

const WIDTH: u32 = 1280;
const HEIGHT: u32 = 1600;

fn chromium() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CHROMIUM") {
        return Some(path.into());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let all = std::env::split_paths(&paths).flat_map(|dir| names.map(|name| dir.join(name)));
    let found = all.into_iter().find(|path| path.is_file());
    if found.is_none() {
        eprintln!("no Chromium here: nothing was looked at (install chromium, or set CHROMIUM)");
    }
    found
}

/// Runs the browser to its end, which should take seconds, and returns what it printed.
fn browse(browser: &Path, profile: &str, args: &[&str]) -> String {
    let mut child = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        // Containers have little shared memory.
        .arg("--disable-dev-shm-usage")
        .arg(format!("--user-data-dir={}/{profile}", env!("CARGO_TARGET_TMPDIR")))
        .arg(format!("--window-size={WIDTH},{HEIGHT}"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the browser starts");
    let mut out = child.stdout.take().expect("it is piped");
    let text = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            break status;
        }
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().expect("it is our child");
            panic!("the browser hangs: {args:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{args:?}: {status}");
    text.join().expect("it only reads").expect("it prints text")
}

/// The pages looked at: a real trace, and a host with more pCPUs and vCPUs than fit side by side.
fn pages() -> Vec<(&'static str, String)> {
    let dir = env!("CARGO_TARGET_TMPDIR");
    let wide = format!("{dir}/wide.xentrace.bin");
    let plan = Plan {
        pcpus: 24,
        domains: 3,
        vcpus: 24,
        locks: 5,
        kicks: Kicks::Twice,
        markers: true,
        timer_every: 9,
        duration_ns: 10_000_000,
        ..Plan::default()
    };
    generate(&plan, File::create(&wide).expect("the target directory is writable")).unwrap();
    let real = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kick-twice-pv.xentrace.bin");
    [("real", real.to_owned()), ("wide", wide)]
        .map(|(name, trace)| {
            let page = format!("{dir}/{name}.html");
            let done = Command::new(env!("CARGO_BIN_EXE_kicktrace"))
                .args(["summary", "--html", &page, &trace])
                .stdout(Stdio::null())
                .status()
                .expect("it starts");
            assert!(done.success());
            (name, page)
        })
        .into()
}

/// Width, height, and the colours of a screenshot with 8 bits a channel.
fn screenshot(path: &str) -> (u32, u32, Vec<[u8; 3]>) {
    let file = BufReader::new(File::open(path).expect("the browser wrote it"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("it fits into memory")];
    let info = reader.next_frame(&mut bytes).expect("a whole picture");
    let channels = info.color_type.samples();
    let pixels = bytes[..info.buffer_size()].chunks(channels).map(|p| [p[0], p[1], p[2]]);
    (info.width, info.height, pixels.collect())
}

#[test]
fn the_report_paints_in_light_and_dark_and_fits() {
    let Some(browser) = chromium() else { return };
    for (name, page) in pages() {
        let url = format!("file://{page}");
        for (theme, extra) in [("light", None), ("dark", Some("--force-dark-mode"))] {
            let path = format!("{}/{name}-{theme}.png", env!("CARGO_TARGET_TMPDIR"));
            let shot = format!("--screenshot={path}");
            let args: Vec<&str> = [shot.as_str()].into_iter().chain(extra).chain([&*url]).collect();
            browse(&browser, name, &args);
            let (width, height, pixels) = screenshot(&path);
            assert_eq!((width, height), (WIDTH, HEIGHT));
            let corner = pixels[0].map(u32::from).iter().sum::<u32>() / 3;
            assert_eq!(corner > 200, theme == "light", "{name}, {theme}: background {corner}");
            assert_eq!(corner < 60, theme == "dark", "{name}, {theme}: background {corner}");
            let painted = pixels.iter().filter(|&&pixel| pixel != pixels[0]).count();
            assert!(painted * 100 > pixels.len() * 5, "{name}, {theme}: {painted} pixels painted");
            let colours: BTreeSet<_> = pixels.iter().collect();
            assert!(colours.len() > 50, "{name}, {theme}: {} colours", colours.len());
            // Text stands out: the furthest from the background is far.
            let contrast = pixels
                .iter()
                .map(|pixel| (pixel.map(u32::from).iter().sum::<u32>() / 3).abs_diff(corner));
            assert!(contrast.max() > Some(150), "{name}, {theme}: nothing stands out");
        }
        fits(&browser, name, &page);
    }
}

/// Measures the laid out page with a script that the page itself does not have, in a frame of each
/// width.
fn fits(browser: &Path, name: &str, page: &str) {
    const OUTER: &str = "<!doctype html><title>wait</title><iframe src=\"PAGE\" width=\"WIDE\" height=\"4000\" \
        style=\"border:0\"></iframe><script>onload = () => {\
        const page = document.querySelector('iframe').contentDocument;\
        page.querySelectorAll('details').forEach(of => of.open = true);\
        const all = selector => [...page.querySelectorAll(selector)];\
        const right = all('svg,figure,h1,h2,h3,p,.tiles,.wide,.legend')\
            .filter(of => of.matches('.wide') || !of.closest('.wide'))\
            .map(of => of.getBoundingClientRect().right);\
        const flat = all('svg').filter(of => of.getBoundingClientRect().height < 5).length;\
        document.title = ['measured', page.documentElement.scrollWidth, Math.ceil(Math.max(...right)),\
            flat, all('svg').length, all('path.kick').length, all('table.host tr').length].join(' ');\
        }</script>";
    let text = std::fs::read_to_string(page).expect("it was just written");
    assert!(!text.contains("<script"), "the report has no script of its own");
    assert!(!text.contains("http:") && !text.contains("https:"), "it loads nothing");
    for wide in [WIDTH, 390] {
        let measured = format!("{}/{name}-measured.html", env!("CARGO_TARGET_TMPDIR"));
        let inner = Path::new(page).file_name().and_then(|of| of.to_str()).expect("plain names");
        let outer = OUTER.replace("PAGE", inner).replace("WIDE", &wide.to_string());
        std::fs::write(&measured, outer).unwrap();
        let url = format!("file://{measured}");
        let args = ["--allow-file-access-from-files", "--dump-dom", &url];
        let dom = browse(browser, name, &args);
        let title = dom.split("<title>measured ").nth(1).expect("the script ran");
        let title = title.split("</title>").next().expect("it ends");
        let numbers: Vec<u32> = title.split(' ').map(|of| of.parse().expect("a number")).collect();
        let &[scroll, right, flat, charts, kicks, pcpus] = &numbers[..] else { panic!("{title}") };
        assert!(scroll <= wide && right <= wide, "{name}: {scroll} and {right} of {wide} pixels");
        assert_eq!(flat, 0, "{name}: a chart without height");
        assert!(charts >= 8, "{name}: {charts} charts");
        assert!(kicks >= 3, "{name}: {kicks} arrows");
        assert!(pcpus >= 3, "{name}: {pcpus} lines of pCPUs");
    }
}
