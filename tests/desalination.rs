//! The example `desalination`: its model against published figures and limiting cases, its design, its input
//! and its files.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "../examples/desalination/design.rs"]
mod design;
#[path = "../examples/desalination/element.rs"]
#[expect(dead_code, reason = "the example prints the sources")]
mod element;
#[path = "../examples/desalination/limits.rs"]
mod limits;
#[path = "../examples/desalination/membrane.rs"]
mod membrane;
#[path = "../examples/desalination/model.rs"]
mod model;
#[path = "../examples/desalination/plant.rs"]
#[expect(dead_code, reason = "the example reports the energy by its column")]
mod plant;
#[path = "../examples/desalination/properties.rs"]
mod properties;
#[path = "../examples/desalination/sobol.rs"]
mod sobol;

use element::{CELLS, Sheet};
use limits::{Limit, Limits};
use membrane::Membrane;
use model::{Feed, Run, Stream, Vessel};
use plant::{INPUTS, OUTPUTS, Plant};
use properties::Water;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A point that works: ocean water of 25 degC at 60 bar, 10 m3/h, a membrane of three years.
const OCEAN: [f64; INPUTS.len()] = [0.0, 35.0, 25.0, 60.0, 10.0, 3.0];

fn sheets() -> (Sheet, Sheet) {
    (Sheet::named("SW30HRLE-400").unwrap(), Sheet::named("SW30HRLE-4040").unwrap())
}

fn plant(cells: u32) -> Plant {
    let (sheet, _) = sheets();
    Plant::new(&sheet, sheet.calibrate().unwrap(), cells)
}

/// A vessel without limits.
fn run(membrane: Membrane, elements: u32, point: [f64; INPUTS.len()]) -> (Stream, Run, Water) {
    let [_, salinity, temperature, pressure, flow, age] = point;
    let water = Water::sea(temperature);
    let stream = Stream::new(&water, flow / 3600.0, salinity * 1e-3);
    let vessel = Vessel { channel: sheets().0.channel, elements, cells: CELLS, limits: Limits::NONE };
    let membrane = membrane.at(temperature, age);
    let run = vessel.run(&Feed { water: &water, membrane, stream, pressure }).unwrap();
    (stream, run, water)
}

#[track_caller]
fn assert_close(value: f64, expected: f64, share: f64) {
    assert!((value / expected - 1.0).abs() <= share, "{value} is not within {share} of {expected}");
}

#[test]
fn properties_are_the_published_ones() {
    // Values of an independent implementation of the same correlations: WaterTAP's tests of its sea water and
    // NaCl packages.
    for (temperature, w, density, viscosity, osmotic) in [
        (25.0, 0.035, 1023.5, 9.588e-4, 25.88),
        (50.0, 0.01, 995.4, 5.596e-4, 7.710),
        (10.0, 0.05, 1039.0, 1.443e-3, 35.91),
    ] {
        let water = Water::sea(temperature);
        assert_close(water.density(w), density, 5e-4);
        assert_close(water.viscosity(w), viscosity, 5e-4);
        assert_close(water.osmotic_pressure(w), osmotic, 5e-4);
    }
    let brine = Water::sodium_chloride();
    assert_close(brine.osmotic_pressure(0.035), 28.53, 1e-3);
    assert_close(brine.density(0.035), 1021.5, 1e-3);
    assert_close(brine.diffusivity(35.0), 1.472e-9, 0.01);
}

#[test]
fn osmotic_slope_is_the_derivative() {
    for water in [Water::sea(12.0), Water::sodium_chloride()] {
        for w in [0.0, 0.03, 0.11] {
            let step = 1e-6;
            let rise = water.osmotic_pressure(w + step) - water.osmotic_pressure(w - step);
            assert_close(water.osmotic_slope(w), rise / (2.0 * step), 1e-6);
        }
    }
}

#[test]
fn calibration_meets_its_sheet() {
    let (sheet, _) = sheets();
    let reading = sheet.predict(sheet.calibrate().unwrap()).unwrap();
    assert_close(reading.permeate_flow, sheet.permeate_flow, 1e-9);
    assert_close(reading.salt_passage, sheet.salt_passage, 1e-9);
}

#[test]
fn one_sheet_predicts_the_other() {
    let (known, other) = sheets();
    let reading = other.predict(known.calibrate().unwrap()).unwrap();
    assert_close(reading.permeate_flow, other.permeate_flow, 0.05);
    assert_close(reading.salt_passage, other.salt_passage, 0.25);
    // No ratio of areas: the shorter, wider channel of the 4-inch element is slower and polarises more.
    let by_area = known.permeate_flow * other.channel.area / known.channel.area;
    assert!((reading.permeate_flow / by_area - 1.0).abs() > 0.002);
    let mut narrow = other.clone();
    narrow.channel.height *= 0.5;
    assert!(narrow.predict(known.calibrate().unwrap()).unwrap().salt_passage < reading.salt_passage);
}

#[test]
fn pressure_loss_follows_the_manufacturers_rule() {
    // DuPont FilmTec technical manual, design equations: 0.01 n q^1.7 psi, q the mean of feed and brine flow
    // in gallons a minute.
    let (stream, run, water) = run(sheets().0.calibrate().unwrap(), 7, [0.0, 35.0, 25.0, 60.0, 11.0, 0.0]);
    let gallons_a_minute = 0.5 * (stream.flow(&water) + run.brine.flow(&water)) / 3.785_411_784e-3 * 60.0;
    let rule = 0.01 * 7.0 * gallons_a_minute.powf(1.7) * 0.068_947_57;
    assert_close(60.0 - run.brine_pressure, rule, 0.15);
}

#[test]
fn water_and_salt_balance() {
    for point in [OCEAN, [0.0, 5.0, 2.0, 30.0, 8.0, 5.0], [0.0, 44.0, 36.0, 75.0, 12.0, 0.0]] {
        let (feed, run, _) = run(sheets().0.calibrate().unwrap(), 7, point);
        assert_close(run.permeate.water + run.brine.water, feed.water, 1e-9);
        assert_close(run.permeate.salt + run.brine.salt, feed.salt, 1e-9);
    }
}

#[test]
fn more_pressure_gives_more_and_better_water() {
    let plant = plant(CELLS);
    let mut last: Option<[f64; OUTPUTS.len()]> = None;
    for pressure in (45..=62).map(f64::from) {
        let outputs = plant.operate([0.0, 35.0, 25.0, pressure, 10.0, 3.0]).unwrap();
        if let Some(last) = last {
            assert!(outputs[0] > last[0] && outputs[2] < last[2], "at {pressure} bar");
        }
        last = Some(outputs);
    }
}

#[test]
fn warm_and_old_membranes_leak() {
    let plant = plant(CELLS);
    let leak = |temperature, age| plant.operate([0.0, 35.0, temperature, 55.0, 10.0, age]).unwrap()[2];
    assert!(leak(15.0, 1.0) < leak(20.0, 1.0) && leak(20.0, 1.0) < leak(20.0, 4.0));
}

#[test]
fn fresh_water_flows_by_permeability_alone() {
    let membrane = sheets().0.calibrate().unwrap();
    let (_, run, water) = run(membrane, 1, [0.0, 0.0, 25.0, 20.0, 10.0, 0.0]);
    let area = sheets().0.channel.area;
    let (high, low) = (membrane.water * 20.0 * area, membrane.water * run.brine_pressure * area);
    let flow = run.permeate.flow(&water);
    assert!(low < flow && flow < high, "{low} < {flow} < {high}");
    assert_eq!((run.permeate.salt, run.highest_polarisation), (0.0, 1.0));
}

#[test]
fn finer_grid_agrees() {
    let (coarse, fine) = (plant(CELLS), plant(4 * CELLS));
    for point in [OCEAN, [0.0, 8.0, 5.0, 25.0, 7.0, 0.5], [0.0, 42.0, 32.0, 62.0, 9.5, 2.0]] {
        for (coarse, fine) in coarse.operate(point).unwrap().into_iter().zip(fine.operate(point).unwrap()) {
            assert_close(coarse, fine, 1e-3);
        }
    }
}

#[test]
fn outputs_are_those_of_real_plants() {
    let plant = plant(CELLS);
    let outputs = plant.operate(OCEAN).unwrap();
    let within = [
        (0.35, 0.55),
        (3.5, 5.5),
        (100.0, 400.0),
        (50.0, 75.0),
        (56.5, 60.0),
        (1.8, 2.6),
        (20.0, 36.0),
        (1.0, 1.2),
    ];
    for ((output, (low, high)), name) in outputs.into_iter().zip(within).zip(OUTPUTS) {
        assert!((low..=high).contains(&output), "{name}: {output}");
    }
}

#[test]
fn every_limit_has_its_words() {
    let plant = plant(CELLS);
    let cases = [
        (
            [0.0, 35.0, 46.0, 60.0, 10.0, 0.0],
            Limit::Temperature,
            "feed temperature outside the element's range: 46.0 against 45.0 degC",
        ),
        (
            [0.0, 35.0, 25.0, 83.0, 10.0, 0.0],
            Limit::FeedPressure,
            "feed pressure above the element's maximum: 83.0 against 82.7 bar",
        ),
        (
            [0.0, 35.0, 25.0, 60.0, 17.0, 0.0],
            Limit::FeedFlow,
            "feed flow above the maximum: 17.0 against 16.0 m3/h",
        ),
        (
            [0.0, 35.0, 25.0, 20.0, 10.0, 0.0],
            Limit::OsmoticPressure,
            "feed pressure below its osmotic pressure: 20.0 against 25.9 bar",
        ),
        (
            [0.0, 35.0, 25.0, 60.0, 5.0, 0.0],
            Limit::ElementRecovery,
            "element recovery above the limit: 15.4 against 15.0 % (element 1)",
        ),
        ([0.0, 35.0, 24.0, 67.0, 12.0, 1.0], Limit::ElementFlux, ""),
        ([0.0, 35.0, 2.0, 40.0, 16.0, 0.0], Limit::ElementDrop, ""),
        ([0.0, 35.0, 25.0, 40.0, 14.0, 0.0], Limit::VesselDrop, ""),
        ([0.0, 33.5, 16.0, 45.0, 4.5, 1.0], Limit::BrineFlow, ""),
        (
            [0.0, 130.0, 25.0, 60.0, 10.0, 0.0],
            Limit::Correlation,
            "brine beyond the property correlations: 130.0 against 120.0 g/kg",
        ),
        ([0.0, 44.0, 36.0, 45.0, 10.0, 5.0], Limit::PermeateSalinity, ""),
        ([0.0, 35.0, 25.0, 60.0, 0.01, 0.0], Limit::ElementRecovery, ""),
    ];
    for (point, limit, words) in cases {
        let why = plant.operate(point).unwrap_err();
        assert_eq!(why.limit, limit, "{point:?}: {why}");
        assert!(words.is_empty() || why.to_string() == words, "{why}");
        assert!(!why.to_string().contains("NaN"), "{why}");
    }
}

#[test]
fn design_is_even_and_begins_with_the_shorter_one() {
    let sobol = sobol::Sobol::new(7);
    let points: Vec<_> = (0..1024).map(|index| sobol.point(index)).collect();
    for dimension in 0..sobol::DIMENSIONS {
        let cells: HashSet<_> = points.iter().map(|point| (point[dimension] * 1024.0) as u32).collect();
        assert_eq!(cells.len(), 1024, "dimension {dimension}");
    }
    let squares: HashSet<_> = points.iter().map(|p| ((p[0] * 32.0) as u32, (p[1] * 32.0) as u32)).collect();
    assert_eq!(squares.len(), 1024);
    let seas = design::seas().unwrap();
    let (short, long) = (design::designed(&seas, 10, 3).unwrap(), design::designed(&seas, 100, 3).unwrap());
    assert_eq!(short, long.slice(ndarray::s![..10, ..]));
    assert_ne!(short, design::designed(&seas, 10, 4).unwrap());
}

#[test]
fn design_lies_within_the_seas() {
    let seas = design::seas().unwrap();
    let middles: Vec<f64> = seas.iter().map(|sea| sea.salinity.0 + sea.salinity.1).collect();
    assert!(seas.len() >= 10 && middles.is_sorted(), "the picture's legend runs from fresh to salty");
    let (plant, points) = (plant(CELLS), design::designed(&seas, 500, 1).unwrap());
    let mut feasible = 0;
    for point in points.rows() {
        let point: [f64; INPUTS.len()] = std::array::from_fn(|column| point[column]);
        let sea = &seas[point[0] as usize];
        assert!(sea.salinity.0 <= point[1] && point[1] <= sea.salinity.1);
        assert!(sea.temperature.0 <= point[2] && point[2] <= sea.temperature.1);
        feasible += usize::from(plant.operate(point).is_ok());
    }
    assert!((150..=400).contains(&feasible), "{feasible} of 500");
}

#[test]
fn table_of_points_is_read_in_any_order_of_columns() {
    let dir = scratch("table");
    let path = table(
        &dir,
        "# mine\nmembrane_age_years,note,sea,temperature_c,feed_flow_m3_per_h,salinity_g_per_kg,feed_pressure_bar\n2, x,red sea,28,9.5,40,61\n",
    );
    let seas = design::seas().unwrap();
    let points = design::read(&path, &seas).unwrap();
    assert_eq!(points.row(0).to_vec()[1..], [40.0, 28.0, 61.0, 9.5, 2.0]);
    assert_eq!(seas[points[(0, 0)] as usize].name, "Red Sea");
}

#[test]
fn bad_table_is_told_by_line_and_column() {
    let dir = scratch("bad-table");
    let head = INPUTS.join(",");
    for (text, told) in [
        (String::new(), "no column sea"),
        (format!("{head}\n"), "no rows"),
        (head.replace("temperature_c", "temp") + "\n", "line 1: no column temperature_c"),
        (format!("{head},sea\n"), "column sea stands twice"),
        (
            format!("{head}\nBaltic Sea,5,9,20,8,1\nBaltic Sea,5,warm,20,8,1\n"),
            "line 3, column temperature_c: `warm` is not a number",
        ),
        (
            format!("{head}\nMare Nostrum,5,9,20,8,1\n"),
            "line 2, column sea: no sea of the name `Mare Nostrum`; known are Baltic Sea",
        ),
        (
            format!("{head}\nBaltic Sea,NaN,9,20,8,1\n"),
            "line 2, column salinity_g_per_kg: NaN is out of range",
        ),
        (format!("{head}\nBaltic Sea,5,9,20,8\n"), "line 2, column membrane_age_years: `` is not a number"),
    ] {
        let told_really =
            design::read(&table(&dir, &text), &design::seas().unwrap()).unwrap_err().to_string();
        assert!(told_really.contains(told), "{told_really}");
    }
}

#[test]
fn files_are_the_same_for_every_back_end_and_number_of_workers() {
    let dir = scratch("files");
    let (file, other) = (dir.join("run.phx"), dir.join("other.phx"));
    let [file, other] = [&file, &other].map(|path| path.to_str().unwrap());
    let sweeps: [&[&str]; 13] = [
        &["--backend", "serial"],
        &["--backend", "threads", "--workers", "3"],
        &["--backend", "shared-memory", "--workers", "2"],
        &["--backend", "shared-memory", "--workers", "50"],
        &["--backend", "shared-memory", "--workers", "3", "--fault-rate", "0.2"],
        &["--workers", "3", "--fault-rate", "0.2", "--deadline", "1"],
        &["--workers", "2", "--fresh"],
        &["--workers", "3", "--fresh", "--fault-rate", "0.2"],
        &["--workers", "3", "--fresh", "--fault-rate", "0.2", "--deadline", "1", "--checkpoint", file],
        &["--workers", "2", "--checkpoint", file, "--resume"],
        &["--backend", "serial", "--checkpoint", file, "--resume"],
        &["--backend", "threads", "--workers", "2", "--checkpoint", other, "--fresh"],
        &[
            "--workers",
            "2",
            "--checkpoint",
            other,
            "--resume",
            "--fresh",
            "--deadline",
            "5",
            "--fault-rate",
            "0.5",
        ],
    ];
    let mut first: Option<Vec<Vec<u8>>> = None;
    for (number, sweep) in sweeps.into_iter().enumerate() {
        let out = dir.join(number.to_string());
        let told = example(&[sweep, &["--rows", "40", "--out", out.to_str().unwrap()]].concat());
        assert!(told.status.success(), "{sweep:?}: {}", String::from_utf8_lossy(&told.stderr));
        assert!(told.stderr.is_empty(), "no terminal, no bar: {}", String::from_utf8_lossy(&told.stderr));
        let files =
            ["results.csv", "results.npy", "energy.svg"].map(|name| fs::read(out.join(name)).unwrap());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3, "nothing else is left behind");
        let first = first.get_or_insert_with(|| files.to_vec());
        assert!(first[..] == files, "{sweep:?}");
    }
    let again = dir.join("again");
    let samples = dir.join("0/results.csv");
    let told = example(&["--samples", samples.to_str().unwrap(), "--out", again.to_str().unwrap()]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert!(
        fs::read(samples).unwrap() == fs::read(again.join("results.csv")).unwrap(),
        "results are a table of points"
    );
}

#[test]
fn bad_options_are_refused_before_anything_is_written() {
    let dir = scratch("options");
    let out = dir.join("out");
    let here = table(&dir, "");
    for (options, told) in [
        (&["--workers", "0"][..], "0 is not in 1.."),
        (&["--rows", "0"], "0 is not in 1.."),
        (&["--rows", "5", "--samples", "x.csv"], "cannot be used with"),
        (&["--samples", "nowhere.csv"], "nowhere.csv"),
        (&["--backend", "abacus"], "abacus"),
        (&["--fault-rate", "2"], "between 0 and 1"),
        (&["--backend", "threads", "--fault-rate", "0.1"], "kills worker processes"),
        (&["--resume"], "--checkpoint"),
        (&["--deadline", "0"], "a number of seconds above 0"),
        (&["--out", here.to_str().unwrap()], "--out"),
    ] {
        let options =
            [&["--out", out.to_str().unwrap()][..2 * usize::from(!options.contains(&"--out"))], options]
                .concat();
        let really = example(&options);
        let text = String::from_utf8_lossy(&really.stderr);
        assert!(!really.status.success() && text.contains(told), "{options:?}: {text}");
        assert!(!out.exists(), "{options:?}");
    }
}

#[test]
fn a_checkpoint_is_not_overwritten_and_others_are_refused() {
    let dir = scratch("checkpoint");
    let (out, file) = (dir.join("out"), dir.join("run.phx"));
    let run = |options: &[&str]| {
        let all = ["--rows", "20", "--out", out.to_str().unwrap(), "--checkpoint", file.to_str().unwrap()];
        example(&[&all, options].concat())
    };
    assert!(run(&[]).status.success());
    let refused = |options: &[&str], told: &str| {
        let really = run(options);
        let text = String::from_utf8_lossy(&really.stderr);
        assert!(!really.status.success() && text.contains(told), "{options:?}: {text}");
    };
    refused(&[], "it is there already; to go on in it, resume");
    refused(&["--resume", "--backend", "threads", "--deadline", "9"], "must be a process");
    let length = fs::metadata(&file).unwrap().len();
    fs::File::options().write(true).open(&file).unwrap().set_len(length - 1).unwrap();
    refused(&["--resume"], "it was cut off");
    let nowhere =
        ["--rows", "20", "--out", out.to_str().unwrap(), "--checkpoint", "/no/such/directory/run.phx"];
    let nowhere = example(&nowhere);
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("make its directory first"));
}

/// An empty directory of this test.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("desalination").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn table(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("points.csv");
    fs::write(&path, text).unwrap();
    path
}

/// The example as it is now, built like this test.
fn example(options: &[&str]) -> Output {
    let release: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
    Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--example", "desalination"])
        .args(release)
        .arg("--")
        .args(options)
        .output()
        .unwrap()
}
