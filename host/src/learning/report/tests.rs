//! Tests of the page and of Markdown together: they show one report, and what holds of one holds of the other.
//!
//! Well-formedness is looked at by a reader of tags, not a parser of HTML: that the page writes each tag in
//! lower case and closes it itself is part of what is asked.

use super::example::{self, HOSTILE};
use super::*;

/// The texts of a page's elements with their tags' names; complains of a tag that is not closed in order.
fn read(page: &str) -> Vec<(&str, &str)> {
    let mut open: Vec<&str> = Vec::new();
    let mut texts = Vec::new();
    for part in page.strip_prefix("<!DOCTYPE html>\n").expect("a document type").split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("<{part} has no end"));
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes of <{tag}>");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed by </{tag}>");
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap_or_default());
        }
        texts.push((open.last().copied().unwrap_or_default(), text));
    }
    assert_eq!(open, Vec::<&str>::new(), "left open");
    texts
}

/// What stands in the page's cells.
fn cells(page: &str) -> Vec<&str> {
    read(page).into_iter().filter(|(tag, _)| ["td", "th"].contains(tag)).map(|(_, text)| text).collect()
}

#[test]
fn the_page_is_well_formed_and_has_every_section() {
    let page = html::page(&example::report());
    let texts = read(&page);
    let headings: Vec<&str> = texts.iter().filter(|(tag, _)| *tag == "h2").map(|(_, text)| *text).collect();
    let expected = [
        "Contents",
        "Reward: sentiment",
        "Reward: word_length",
        "Value head: sentiment",
        "Value head: word_length",
        "Two dials at once",
        "What failed",
        "Side by side",
        "How it was made",
    ];
    assert_eq!(headings.into_iter().filter(|text| !text.trim().is_empty()).collect::<Vec<_>>(), expected);
    for link in page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert_eq!(page.matches(&format!(" id=\"{link}\"")).count(), 1, "{link}");
    }
    // Complete in itself.
    for outside in ["<script", "<link", "<img", "<iframe", "url(", "@import", "http:", "https:", "src="] {
        assert!(!page.replace("-src 'none'", "").contains(outside), "{outside}");
    }
    assert!(!page.contains("A partial report"));
    assert!(!page.contains("NaN"));
}

#[test]
fn ids_are_unique() {
    let page = html::page(&example::hostile());
    let mut ids: Vec<&str> = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[test]
fn plots_have_axes_names_and_marks_and_tables_captions_and_scopes() {
    let page = html::page(&example::report());
    let plots: Vec<&str> =
        page.split("<svg class=\"plot\"").skip(1).filter_map(|rest| rest.split("</svg>").next()).collect();
    // Three frontiers a reward, three of a head, two maps.
    assert_eq!(plots.len(), 2 * 3 + 2 * 3 + 2);
    for plot in plots {
        for part in ["<title id=", "<desc id=", "class=\"axis x\"", "class=\"axis y\"", "class=\"label\""] {
            assert!(plot.contains(part), "{part} in {plot}");
        }
    }
    let legend = page.split("class=\"legend\"").nth(1).and_then(|rest| rest.split("</ul>").next()).expect("a legend");
    assert_eq!(legend.matches("<li>").count(), 13);
    for name in ["VAS", "VAS, floor 0.01", "Best-of-n", "value model"] {
        assert!(legend.contains(&format!("</svg>{name}</li>")), "{name}");
    }
    assert_eq!(page.matches("<table>").count(), page.matches("<caption>").count());
    assert_eq!(page.matches("<th ").count(), page.matches("<th scope=\"").count());
}

#[test]
fn strangers_words_never_come_out_as_they_are() {
    let report = example::hostile();
    let page = html::page(&report);
    read(&page);
    let markdown = markdown::tables(&report);
    for text in [&page, &markdown] {
        for raw in ["<script", "</td></svg>\n", "\u{1b}", "\u{202e}", "\u{7}", HOSTILE] {
            assert!(!text.contains(raw), "{raw:?}");
        }
        assert!(text.contains("&lt;script&gt;"));
    }
    assert!(page.contains("&quot;quoted&quot; &#39;single&#39; | pipe [2Jdrow"));
    assert!(!markdown.contains("[a](") && !markdown.contains("://") && !markdown.contains("\n# head"));
    // Every row of a table has its columns.
    let mut columns = None;
    for line in markdown.lines() {
        let count = line.starts_with('|').then(|| line.matches('|').count());
        assert!(columns.is_none() || count.is_none() || count == columns, "{line}");
        columns = count;
    }
}

#[test]
fn every_number_of_every_point_stands_in_both_tables() {
    let report = example::report();
    let (page, markdown) = (html::page(&report), markdown::tables(&report));
    let cells = cells(&page).join("|");
    let markdown: String = markdown.replace(['\\'], "").replace(" | ", "|");
    for point in &report.points {
        let ratio = |ratio: Option<f64>| wording::known(ratio, |ratio| wording::fixed(ratio, 2));
        let row = [
            wording::series(point),
            wording::short(point.dial),
            point.n.to_string(),
            point.prompts.to_string(),
            point.seeds.to_string(),
            wording::reward(point.mean),
            wording::interval(point.ci_low, point.ci_high),
            tables::kl(point),
            ratio(point.cross_entropy_ratio),
            ratio(point.distinct2_ratio),
            ratio(point.repeated4_ratio),
            wording::significant(point.forwards_per_token),
            wording::significant(point.ms_per_token),
        ];
        let row = row.join("|");
        assert!(cells.contains(&row), "{row}");
        assert!(markdown.contains(&row), "{row}");
    }
    for sure in [tables::ABOVE, tables::BELOW, tables::UNCLEAR, "not reached"] {
        assert!(page.contains(sure) && markdown.contains(sure), "{sure}");
    }
}

#[test]
fn numbers_that_are_none_and_empty_lists_leave_a_page() {
    let mut report = example::report();
    for point in &mut report.points {
        (point.mean, point.ci_low, point.kl_per_token) = (f64::NAN, f64::NEG_INFINITY, f64::INFINITY);
        (point.forwards_per_token, point.ms_per_token, point.distinct2_ratio) = (0.0, -1.0, None);
    }
    for head in report.heads.values_mut() {
        head.within_state = None;
        head.explained_variance.mean = f64::NAN;
        head.calibration = vec![(f64::NAN, 0.1)];
        head.explained_by_position = vec![f64::NAN, 0.2, f64::INFINITY];
    }
    let grid = report.grid.as_mut().expect("an example has it");
    grid.means = [vec![vec![f64::NAN]], vec![]];
    let page = html::page(&report);
    read(&page);
    assert!(!page.contains("NaN") && !page.contains(">inf") && page.contains("no points"));

    let empty = Report {
        rewards: BTreeMap::new(),
        heads: BTreeMap::new(),
        points: Vec::new(),
        comparisons: Vec::new(),
        compute: Vec::new(),
        grid: None,
        failed: Vec::new(),
        side_by_side: Vec::new(),
        ..example::report()
    };
    let page = html::page(&empty);
    read(&page);
    assert!(page.contains("What failed</h2>\n<p>Nothing.</p>"));
    assert!(markdown::tables(&empty).contains("## What failed\n\nNothing.\n"));
}

#[test]
fn a_partial_report_says_so_first() {
    let mut report = example::report();
    report.about.settings_missing = 7;
    let page = html::page(&report);
    let banner = page.find("A partial report").expect("a banner");
    assert!(banner < page.find("<nav").expect("contents") && page.contains("not decoded: 7."));
    assert!(markdown::tables(&report).contains("**A partial report.** Settings planned and not decoded: 7."));
}

#[test]
fn the_picture_is_the_main_plot_and_stands_alone() {
    let report = example::report();
    let picture = picture::picture(&report).expect("there are points");
    let page = format!("<!DOCTYPE html>\n{picture}");
    let texts = read(&page);
    let reward = &report.points[0].reward;
    let labels: Vec<String> = charts::groups(&report, reward).iter().map(charts::Group::label).collect();
    assert!(labels.len() > 2, "{labels:?}");
    for label in &labels {
        assert!(texts.iter().any(|(tag, text)| *tag == "text" && text == label), "{label}");
    }
    assert!(picture.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && !picture.contains("NaN"));
    let [_, style] = picture.split("<style>").collect::<Vec<_>>()[..] else { panic!("one style sheet") };
    assert!(!style.split("</style>").next().unwrap_or_default().contains(['<', '&']), "XML would read it");
    assert_eq!(picture::picture(&Report { points: Vec::new(), ..report }), None);
}
