//! Figures: a plot is drawn once as SVG, and rendered inline in a page with the page's colours, as
//! an SVG file, and as a PNG picture.

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::{DrawingArea, IntoDrawingArea, RGBColor, SVGBackend};
use resvg::{tiny_skia, usvg};
use std::sync::Arc;

/// Units of a drawing per pixel of the page. plotters uses whole units, so units finer than a pixel
/// make positions finer.
pub const UNIT: i32 = 4;
/// Width of a figure in pixels. A phone shows a figure slightly smaller; a screen shows two side by
/// side.
pub const WIDTH: i32 = 460;
/// Pixels of the PNG picture per pixel of the page.
const PICTURE_SCALE: f32 = 2.;

/// Colour of text and axes.
pub const INK: RGBColor = RGBColor(0x22, 0x2B, 0x36);
/// Colour of numbers at axes.
pub const FAINT: RGBColor = RGBColor(0x5B, 0x66, 0x75);
/// Colour of grid lines.
pub const GRID: RGBColor = RGBColor(0xE3, 0xE7, 0xEC);
/// Background colour.
pub const PAPER: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);
/// Colours of the series, distinguishable with any colour vision (after Okabe & Ito, with colours
/// that are faint on white made darker). The marks of the series also differ in shape.
pub const SERIES: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x8A, 0x64),
    RGBColor(0xB0, 0x56, 0x92),
    RGBColor(0xA8, 0x76, 0x00),
    RGBColor(0x2F, 0x93, 0xCC),
    RGBColor(0x7A, 0x2E, 0x3F),
    RGBColor(0x6D, 0x75, 0x80),
];

/// Drawing area of a figure.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A plot.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Name of the figure's files, without extension.
    pub name: String,
    /// Title, on one line.
    pub title: String,
    /// Further explanation, shown below the figure.
    pub note: String,
    /// Height in pixels.
    height: i32,
    /// SVG drawn by plotters, without the outer element.
    drawing: String,
}

impl Figure {
    /// Draws a figure of the given height in pixels.
    pub fn draw(
        name: String,
        title: String,
        note: String,
        height: i32,
        draw: impl FnOnce(&Area) -> Result<()>,
    ) -> Result<Figure> {
        let mut svg = String::new();
        {
            let size = ((WIDTH * UNIT) as u32, (height * UNIT) as u32);
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            draw(&area)?;
            area.present().map_err(|error| anyhow!("{name}: {error}"))?;
        }
        let inner = svg.split_once('>').and_then(|(_, rest)| rest.rsplit_once("</svg>"));
        let drawing = inner.map(|(inner, _)| inner.to_string()).context("plotters drew no svg element")?;
        Ok(Figure { name, title, note, height, drawing })
    }

    /// Returns the SVG for a page: as wide as its container, in the page's colours (`--ink`,
    /// `--faint`, `--grid`, `--paper`, `--s0` to `--s7`).
    pub fn inline(&self) -> String {
        let named = [("ink", INK), ("faint", FAINT), ("grid", GRID), ("paper", PAPER)];
        let series = SERIES.iter().enumerate().map(|(at, color)| (format!("s{at}"), *color));
        let all = named.into_iter().map(|(name, color)| (name.to_string(), color)).chain(series);
        // Quotes in text are escaped, so a quoted colour is an attribute.
        let drawing = all.fold(self.drawing.clone(), |drawing, (name, RGBColor(r, g, b))| {
            drawing.replace(&format!("\"#{r:02X}{g:02X}{b:02X}\""), &format!("\"var(--{name})\""))
        });
        let (width, height) = (WIDTH * UNIT, self.height * UNIT);
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n{drawing}</svg>",
            escape(&self.title)
        )
    }

    /// Returns the content of the SVG file.
    pub fn file(&self) -> String {
        let (width, height) = (WIDTH, self.height);
        let (inner_width, inner_height) = (width * UNIT, height * UNIT);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {inner_width} {inner_height}\">\n<title>{}</title>\n\
             <rect width=\"{inner_width}\" height=\"{inner_height}\" fill=\"#FFFFFF\"/>\n{}</svg>\n",
            escape(&self.title),
            self.drawing
        )
    }

    /// Renders the PNG file: the same figure, with text in the font bundled with the crate.
    pub fn picture(&self, fonts: &Fonts) -> Result<Vec<u8>> {
        let options = usvg::Options { fontdb: fonts.0.clone(), font_family: FONT.into(), ..usvg::Options::default() };
        let tree = usvg::Tree::from_str(&self.file(), &options).with_context(|| format!("{}.svg", self.name))?;
        let (width, height) = ((WIDTH as f32 * PICTURE_SCALE) as u32, (self.height as f32 * PICTURE_SCALE) as u32);
        let mut picture = tiny_skia::Pixmap::new(width, height).context("a picture without pixels")?;
        let scale = tiny_skia::Transform::from_scale(PICTURE_SCALE, PICTURE_SCALE);
        resvg::render(&tree, scale, &mut picture.as_mut());
        picture.encode_png().with_context(|| format!("{}.png", self.name))
    }
}

const FONT: &str = "Open Sans";

/// Font of pictures. System fonts are ignored, so that every machine renders the same picture.
#[derive(Clone, Debug)]
pub struct Fonts(Arc<usvg::fontdb::Database>);

impl Fonts {
    /// Reads the font bundled with the crate.
    pub fn new() -> Fonts {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(include_bytes!("OpenSans.ttf").to_vec());
        fonts.set_sans_serif_family(FONT);
        Fonts(Arc::new(fonts))
    }
}

impl Default for Fonts {
    fn default() -> Fonts {
        Fonts::new()
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Shortens a label to at most `most` characters. An ellipsis replaces the middle, since points
/// often differ at their ends.
pub fn shorten(label: &str, most: usize) -> String {
    let n = label.chars().count();
    if n <= most {
        return label.into();
    }
    let (head, tail) = ((most - 1) / 3, most - 1 - (most - 1) / 3);
    let head: String = label.chars().take(head).collect();
    let tail: String = label.chars().skip(n - tail).collect();
    format!("{}…{}", head.trim_end(), tail.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plotters::prelude::{IntoFont, Text};

    fn figure(text: &'static str) -> Figure {
        Figure::draw("a".into(), "<b> & \"c\"".into(), String::new(), 100, |area| {
            let style = ("sans-serif", 60).into_font().color(&SERIES[0]);
            Ok(area.draw(&Text::new(text, (40, 40), style))?)
        })
        .unwrap()
    }

    #[test]
    fn a_page_has_its_own_colours_and_all_text_is_escaped() {
        let figure = figure("<script>alert(1)</script> \"#0072B2\"");
        let inline = figure.inline();
        assert!(inline.contains("fill=\"var(--s0)\"") && !inline.contains("fill=\"#"), "{inline}");
        assert!(inline.contains("&lt;script&gt;") && inline.contains("&quot;#0072B2&quot;"), "{inline}");
        assert!(inline.contains("aria-label=\"&lt;b&gt; &amp; &quot;c&quot;\""), "{inline}");
        assert!(!inline.contains("<script") && !figure.file().contains("<script"));
        assert!(figure.file().contains("fill=\"#0072B2\""));
    }

    #[test]
    fn a_picture_has_ink_where_text_stands_and_is_the_same_each_time() {
        let fonts = Fonts::new();
        let decode = |text| tiny_skia::Pixmap::decode_png(&figure(text).picture(&fonts).unwrap()).unwrap();
        let (blank, text) = (decode(""), decode("Accuracy ± µ → Ω"));
        assert_eq!((text.width(), text.height()), (920, 200));
        let ink = |picture: &tiny_skia::Pixmap| picture.pixels().iter().filter(|pixel| pixel.red() < 128).count();
        assert_eq!(ink(&blank), 0);
        assert!(ink(&text) > 500, "{} dark pixels", ink(&text));
        assert_eq!(decode("Accuracy ± µ → Ω"), text);
    }

    #[test]
    fn a_long_label_keeps_its_ends() {
        assert_eq!(shorten("mdconv", 10), "mdconv");
        assert_eq!(shorten("mobilenet_v2 width=0.35 bypass=false", 20), "mobile…bypass=false");
        assert_eq!(shorten("ääääääääää", 4), "ä…ää");
    }
}
