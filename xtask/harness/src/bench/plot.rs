//! Bar charts as SVG, legible on light and on dark ground.

use std::fmt::Write as _;

/// Bars under a title, each as long as its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    pub title: String,
    /// Where a line is drawn: what all bars are compared with.
    pub reference: f64,
    pub bars: Vec<Bar>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub tone: Tone,
}

/// What a bar stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Ours,
    Reference,
    Others,
}

impl Tone {
    /// Middle tones: enough contrast on white as well as on black.
    fn colour(self) -> &'static str {
        match self {
            Self::Ours => "#2a9d6f",
            Self::Reference => "#8a8f98",
            Self::Others => "#c7843a",
        }
    }
}

const WIDTH: f64 = 480.0;
const COLUMNS: usize = 2;
const LABEL: f64 = 170.0;
const VALUE: f64 = 44.0;
const ROW: f64 = 18.0;
const TITLE: f64 = 30.0;
const GAP: f64 = 16.0;
const TEXT: &str = "#808080";

/// All charts in two columns.
pub fn svg(charts: &[&Chart]) -> String {
    let heights =
        charts.chunks(COLUMNS).map(|row| row.iter().map(|chart| height(chart)).fold(0.0, f64::max)).collect::<Vec<_>>();
    let (width, total) = (WIDTH * COLUMNS as f64, heights.iter().sum::<f64>());
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {total:.0}\" width=\"{width:.0}\" \
         height=\"{total:.0}\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n"
    );
    let mut top = 0.0;
    for (row, height) in charts.chunks(COLUMNS).zip(heights) {
        for (column, chart) in row.iter().enumerate() {
            let _ = writeln!(text, "<g transform=\"translate({:.0} {top:.0})\">", WIDTH * column as f64);
            draw(&mut text, chart);
            text += "</g>\n";
        }
        top += height;
    }
    text + "</svg>\n"
}

fn height(chart: &Chart) -> f64 {
    TITLE + ROW * chart.bars.len() as f64 + GAP
}

fn draw(text: &mut String, chart: &Chart) {
    let longest = chart.bars.iter().map(|bar| bar.value).fold(chart.reference, f64::max).max(1e-9);
    let scale = (WIDTH - LABEL - VALUE - GAP) / longest;
    let _ = writeln!(
        text,
        "<text x=\"{GAP}\" y=\"20\" fill=\"{TEXT}\" font-size=\"14\" font-weight=\"600\">{}</text>",
        escape(&chart.title)
    );
    for (place, bar) in chart.bars.iter().enumerate() {
        let (top, length) = (TITLE + ROW * place as f64, bar.value.max(0.0) * scale);
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{TEXT}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABEL}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{TEXT}\">{:.2}</text>",
            LABEL - 6.0,
            top + 13.0,
            escape(&bar.label),
            top + 2.0,
            ROW - 4.0,
            bar.tone.colour(),
            LABEL + length + 5.0,
            top + 13.0,
            bar.value,
        );
    }
    let (line, bottom) = (LABEL + chart.reference * scale, TITLE + ROW * chart.bars.len() as f64);
    let _ = writeln!(
        text,
        "<path d=\"M{line:.1} {:.1}V{bottom:.1}\" stroke=\"{TEXT}\" stroke-dasharray=\"3 3\" fill=\"none\"/>",
        TITLE - 2.0
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[f64]) -> Chart {
        let bars = values.iter().map(|value| Bar { label: "a<b".into(), value: *value, tone: Tone::Ours }).collect();
        Chart { title: "T & U".into(), reference: 1.0, bars }
    }

    #[test]
    fn the_longest_bar_ends_before_its_value() {
        let svg = svg(&[&chart(&[1.0, 2.0])]);
        let longest = WIDTH - LABEL - VALUE - GAP;
        assert!(svg.contains(&format!("width=\"{longest:.1}\"")), "{svg}");
        assert!(svg.contains(&format!("width=\"{:.1}\"", longest / 2.0)), "{svg}");
    }

    #[test]
    fn labels_are_text_and_not_markup() {
        let svg = svg(&[&chart(&[1.0])]);
        assert!(svg.contains("a&lt;b") && svg.contains("T &amp; U"));
    }

    #[test]
    fn charts_fill_rows_of_two() {
        let (small, large) = (chart(&[1.0]), chart(&[1.0; 5]));
        let svg = svg(&[&small, &large, &small]);
        let total = height(&large) + height(&small);
        assert!(svg.contains(&format!("height=\"{total:.0}\"")), "{svg}");
    }

    #[test]
    fn a_chart_of_zeroes_has_bars_without_length() {
        assert!(svg(&[&Chart { reference: 0.0, ..chart(&[0.0]) }]).contains("width=\"0.0\""));
    }
}
