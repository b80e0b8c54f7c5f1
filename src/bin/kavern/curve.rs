//! Hit rate over capacity, for several policies and for the bound that no policy can pass, as a picture and as numbers.
//!
//! Each point is a replay of its own, bookkeeping only. The picture is an SVG file, which is written last and whole.

use std::path::Path;

use plotters::prelude::*;
use serde::Serialize;

use crate::abi::Manager;
use crate::bound;
use crate::failure::{Failure, unwritable};
use crate::player::Player;
use crate::replay::Replay;
use crate::screen;
use crate::summary::grouped;
use crate::workload::Workload;

/// Points of a curve where the caller names no capacities.
const POINTS: u32 = 12;
/// Smallest of them, as a share of the different blocks.
const SMALLEST: f64 = 0.005;
const BOUND: &str = "bound (MIN)";
/// Size of the picture.
const PIXELS: (u32, u32) = (960, 600);
/// Colours that differ in brightness too; the bound is black.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(120, 94, 60),
    RGBColor(140, 140, 140),
];

/// The hits of one policy at all capacities; the names of the fields are the names in the JSON.
#[derive(Serialize)]
struct Curve {
    policy: String,
    hit_blocks: Vec<u64>,
}

#[derive(Serialize)]
struct Report {
    workload: String,
    blocks: u64,
    unique_blocks: u64,
    capacities: Vec<u64>,
    curves: Vec<Curve>,
}

/// Replays the workload at each capacity under each policy, draws the picture and shows the numbers.
pub(crate) fn run(
    options: &Replay,
    manager: &Manager,
    workload: &Workload,
    path: &Path,
) -> Result<(), Failure> {
    // A run takes minutes: whether the picture can be written is found out before it.
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    file.map_err(|error| unwritable("--plot", path, &error))?;
    let unique = workload.unique_blocks() as u64;
    let capacities = match options.capacities.is_empty() {
        true => spread(unique),
        false => options.capacities.clone(),
    };
    let mut curves = Vec::new();
    for policy in &options.policies {
        let mut hit_blocks = Vec::new();
        for &blocks in &capacities {
            let options = options.counting(policy, blocks);
            let mut player = Player::new(&options, manager, workload)?;
            player.play()?;
            hit_blocks.push(player.report()?.hit_blocks);
        }
        curves.push(Curve { policy: policy.clone(), hit_blocks });
    }
    let hit_blocks = capacities.iter().map(|&capacity| bound::hit_blocks(workload, capacity)).collect();
    curves.push(Curve { policy: BOUND.into(), hit_blocks });
    let blocks = workload.blocks() as u64;
    let report =
        Report { workload: workload.name.clone(), blocks, unique_blocks: unique, capacities, curves };
    report.draw(path)?;
    let text = match options.json {
        true => serde_json::to_string(&report).expect("numbers and strings always serialise") + "\n",
        false => report.table(path),
    };
    Ok(screen::show(&text)?)
}

/// Capacities at equal ratios up to that at which everything fits.
fn spread(unique: u64) -> Vec<u64> {
    let unique = unique.max(1) as f64;
    let share = |point: u32| SMALLEST.powf(1.0 - f64::from(point) / f64::from(POINTS - 1));
    let mut capacities: Vec<u64> =
        (0..POINTS).map(|point| (unique * share(point)).ceil().max(1.0) as u64).collect();
    capacities.dedup();
    capacities
}

impl Report {
    fn percent(&self, hits: u64) -> f64 {
        100.0 * hits as f64 / self.blocks.max(1) as f64
    }

    fn table(&self, path: &Path) -> String {
        let mut text = format!("{}\nhits in % of {} block touches\n\n", self.workload, grouped(self.blocks));
        text += &format!("  {:>12}", "blocks");
        self.curves.iter().for_each(|curve| text += &format!("  {:>12}", curve.policy));
        for (point, &capacity) in self.capacities.iter().enumerate() {
            text += &format!("\n  {:>12}", grouped(capacity));
            let cell = |curve: &Curve| format!("  {:>12.2}", self.percent(curve.hit_blocks[point]));
            self.curves.iter().for_each(|curve| text += &cell(curve));
        }
        text + &format!("\n\npicture: {}\n", path.display())
    }

    fn draw(&self, path: &Path) -> Result<(), Failure> {
        let mut picture = String::new();
        let title = Path::new(&self.workload).file_name().map(|name| name.to_string_lossy().into_owned());
        self.paint(&mut picture, &title.unwrap_or_else(|| self.workload.clone()))
            .map_err(|error| Failure::Run(format!("the picture cannot be drawn: {error}")))?;
        std::fs::write(path, picture).map_err(|error| unwritable("--plot", path, &error))
    }

    fn paint(&self, picture: &mut String, title: &str) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(picture, PIXELS).into_drawing_area();
        root.fill(&WHITE)?;
        let (first, last) = (self.capacities[0], self.capacities[self.capacities.len() - 1]);
        let most = self.curves.iter().flat_map(|curve| &curve.hit_blocks).copied().max().unwrap_or(0);
        let top = (self.percent(most) * 1.05).max(1.0);
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 22))
            .margin(16)
            .margin_right(48)
            .x_label_area_size(48)
            .y_label_area_size(64)
            .build_cartesian_2d(
                (first as f64..(last as f64).max(first as f64 + 1.0)).log_scale(),
                0.0..top,
            )?;
        chart
            .configure_mesh()
            .x_desc("blocks of the cache")
            .y_desc("hits, % of block touches")
            .x_label_formatter(&|blocks| grouped(blocks.round() as u64))
            .y_label_formatter(&|percent| format!("{percent:.0}"))
            .light_line_style(WHITE)
            .label_style(("sans-serif", 14))
            .draw()?;
        for (index, curve) in self.curves.iter().enumerate() {
            let colour = if curve.policy == BOUND { BLACK } else { COLOURS[index % COLOURS.len()] };
            let points: Vec<(f64, f64)> = (self.capacities.iter().zip(&curve.hit_blocks))
                .map(|(&capacity, &hits)| (capacity as f64, self.percent(hits)))
                .collect();
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points, style).point_size(3))?
                .label(&curve.policy)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(("sans-serif", 14))
            .background_style(WHITE.mix(0.9))
            .border_style(RGBColor(200, 200, 200))
            .draw()?;
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_rise_to_where_everything_fits() {
        for unique in [1, 2, 50, 182_790] {
            let capacities = spread(unique);
            assert!(capacities.is_sorted_by(|a, b| a < b) && capacities[0] >= 1, "{capacities:?}");
            assert_eq!(capacities.last(), Some(&unique));
        }
    }
}
