//! The report as one HTML page that needs nothing else: no script, font, picture or style from anywhere.
//!
//! The page has a section for what was run, each reward, each head, two dials, what failed, and responses side
//! by side; a content security policy in its head forbids what it does not use, should anything ever slip
//! through `Markup`. Plots are `charts`', tables `tables`'; nothing is computed. Start at [`page`].

use std::collections::BTreeSet;

use super::charts::{self, Cost};
use super::markup::Markup;
use super::tables::{self, Kind, Table};
use super::wording::{self, list, short};
use super::{Grid, HeadReport, Report};

/// The page's style sheet.
pub(super) const STYLE: &str = include_str!("page.css");

/// Nothing is loaded from anywhere; the one style sheet stands in the page.
const SECURITY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The page of a report.
pub fn page(report: &Report) -> String {
    let mut page = Markup::default();
    page.raw("<!DOCTYPE html>\n");
    page.element("html", &[("lang", "en")], |html| {
        html.element("head", &[], |head| {
            head.empty("meta", &[("charset", "utf-8")]);
            head.empty("meta", &[("http-equiv", "Content-Security-Policy"), ("content", SECURITY)]);
            head.empty("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]);
            head.empty("meta", &[("name", "color-scheme"), ("content", "light dark")]);
            head.leaf("title", &[], &format!("Evaluation of {}", report.about.model));
            head.element("style", &[], |style| style.raw(STYLE));
        });
        html.element("body", &[], |body| {
            body.element("header", &[], |header| summary(header, report));
            contents(body, report);
            body.element("main", &[], |main| sections(main, report));
        });
    });
    page.finish()
}

/// The rewards of a report by name, with those that only its numbers name.
pub(super) fn rewards(report: &Report) -> BTreeSet<&str> {
    let named = report.rewards.keys().map(String::as_str);
    let of_points = report.points.iter().map(|point| &*point.reward);
    let of_comparisons = report.comparisons.iter().map(|comparison| &*comparison.reward);
    named.chain(of_points).chain(of_comparisons).chain(report.compute.iter().map(|compute| &*compute.reward)).collect()
}

fn sections(main: &mut Markup, report: &Report) {
    for (index, reward) in rewards(report).into_iter().enumerate() {
        section(main, &format!("reward-{index}"), &format!("Reward: {reward}"), |section| {
            reward_section(section, &format!("reward-{index}"), report, reward);
        });
    }
    for (index, (name, head)) in report.heads.iter().enumerate() {
        let id = format!("head-{index}");
        section(main, &id, &format!("Value head: {name}"), |section| head_section(section, &id, name, head));
    }
    if let Some(grid) = &report.grid {
        section(main, "grid", "Two dials at once", |section| grid_section(section, grid));
    }
    section(main, "failed", "What failed", |section| failed(section, report));
    section(main, "responses", "Side by side", |section| responses(section, report));
    section(main, "about", "How it was made", |section| {
        draw_table(section, &tables::about(report));
        draw_table(section, &tables::rewards(report));
    });
}

fn section(page: &mut Markup, id: &str, title: &str, inside: impl FnOnce(&mut Markup)) {
    let heading = format!("{id}-heading");
    page.element("section", &[("id", id), ("aria-labelledby", &heading)], |section| {
        section.leaf("h2", &[("id", &heading)], title);
        inside(section);
    });
}

/// What was run, in a paragraph; before it, whether all of it is here.
fn summary(header: &mut Markup, report: &Report) {
    let about = &report.about;
    header.leaf("p", &[("class", "kicker")], "Vassal evaluation");
    header.leaf("h1", &[], &about.model);
    if about.settings_missing > 0 {
        header.element("p", &[("class", "banner"), ("role", "note")], |banner| {
            banner.leaf("strong", &[], "A partial report. ");
            banner.text(&format!(
                "Settings that were planned and are not decoded: {}. What is compared below is what there is.",
                about.settings_missing
            ));
        });
    }
    let summary = format!(
        "The model answered {} prompts of the split “{}” (seeds {}) in at most {} tokens, at temperature {} and \
         top-p {}. Steered methods chose among {} candidates a step, with tail {}; Best-of-n drew on a pool of \
         {} samples a prompt. Computed by {}, with Vassal {}.",
        about.prompts,
        about.split,
        list(&about.seeds),
        about.token_limit,
        short(about.temperature.into()),
        short(about.top_p.into()),
        about.candidates,
        about.tail,
        about.pool_samples,
        about.device,
        about.version,
    );
    header.leaf("p", &[("class", "summary")], &summary);
    if !report.failed.is_empty() {
        header.element("p", &[], |note| {
            note.text("Not everything that was asked for is so: see ");
            note.leaf("a", &[("href", "#failed")], "What failed");
            note.text(".");
        });
    }
}

fn contents(body: &mut Markup, report: &Report) {
    body.element("nav", &[("aria-labelledby", "contents-heading")], |nav| {
        nav.leaf("h2", &[("id", "contents-heading")], "Contents");
        nav.element("ul", &[], |entries| {
            let mut entry = |id: &str, words: &str| {
                entries.element("li", &[], |item| item.leaf("a", &[("href", &format!("#{id}"))], words));
            };
            for (index, reward) in rewards(report).into_iter().enumerate() {
                entry(&format!("reward-{index}"), &format!("Reward: {reward}"));
            }
            for (index, name) in report.heads.keys().enumerate() {
                entry(&format!("head-{index}"), &format!("Value head: {name}"));
            }
            if report.grid.is_some() {
                entry("grid", "Two dials at once");
            }
            entry("failed", "What failed");
            entry("responses", "Side by side");
            entry("about", "How it was made");
        });
    });
}

fn reward_section(section: &mut Markup, id: &str, report: &Report, reward: &str) {
    if let Some(about) = report.rewards.get(reward) {
        section.element("p", &[("class", "lead")], |lead| {
            lead.text(&about.summary);
            lead.text(&format!(" Scores lie between {} and {}.", short(about.range.0), short(about.range.1)));
            if about.unscored > 0 {
                lead.text(&format!(" Responses without a score, left out: {} ({}).", about.unscored, about.reasons));
            }
        });
    }
    section.leaf("h3", &[], "Frontiers");
    let groups = charts::groups(report, reward);
    section.element("ul", &[("class", "legend"), ("aria-label", "Legend of the plots")], |legend| {
        for group in &groups {
            legend.element("li", &[], |item| {
                group.style.sample(item);
                item.text(&group.label());
            });
        }
    });
    section.element("div", &[("class", "plots")], |plots| {
        for (index, cost) in Cost::ALL.into_iter().enumerate() {
            figure(plots, cost.title(), cost.caveat(), |figure| {
                charts::frontier(figure, &format!("{id}-frontier-{index}"), reward, &groups, cost);
            });
        }
        plots.element("aside", &[("class", "caveats"), ("aria-label", "How to read these")], |aside| {
            aside.leaf("h4", &[], "How to read these");
            aside.element("ul", &[], |items| tables::CAVEATS.iter().for_each(|caveat| items.leaf("li", &[], caveat)));
        });
    });
    draw_table(section, &tables::points(report, reward));
    draw_table(section, &tables::comparisons(report, reward));
    draw_table(section, &tables::compute(report, reward));
}

fn head_section(section: &mut Markup, id: &str, name: &str, head: &HeadReport) {
    section.element("div", &[("class", "plots")], |plots| {
        figure(plots, "Calibration", "Both axes are less the prompt's mean; tenths of the states by V.", |figure| {
            charts::calibration(figure, &format!("{id}-calibration"), name, head);
        });
        figure(plots, "Explained variance by position", "Early states know less of a response's end.", |figure| {
            charts::positions(figure, &format!("{id}-positions"), name, head);
        });
        figure(
            plots,
            "Against rules that know less",
            "A head that is worth its rows explains more than these.",
            |figure| {
                charts::controls(figure, &format!("{id}-controls"), name, head);
            },
        );
        let [.., dials] = tables::head_plots(name, head);
        plots.element("div", &[], |cell| draw_table(cell, &dials));
    });
    draw_table(section, &tables::head(name, head));
    let [calibration, positions, _] = tables::head_plots(name, head);
    section.element("details", &[], |details| {
        details.leaf("summary", &[], "The plots' numbers");
        details.element("div", &[("class", "plots")], |cells| {
            for table in [calibration, positions] {
                cells.element("div", &[], |cell| draw_table(cell, &table));
            }
        });
    });
}

fn grid_section(section: &mut Markup, grid: &Grid) {
    section.element("div", &[("class", "plots")], |plots| {
        for (index, reward) in grid.rewards.iter().enumerate() {
            figure(plots, &format!("Mean {reward}"), "Lighter is higher; each map has a scale of its own.", |figure| {
                charts::heat(figure, &format!("grid-{index}"), grid, index);
            });
        }
    });
    draw_table(section, &tables::trends(grid));
    section.element("details", &[], |details| {
        details.leaf("summary", &[], "The maps' numbers");
        for index in 0..grid.rewards.len() {
            draw_table(details, &tables::grid_means(grid, index));
        }
    });
}

fn failed(section: &mut Markup, report: &Report) {
    if report.failed.is_empty() {
        section.leaf("p", &[], "Nothing.");
        return;
    }
    section.leaf("p", &[], "What was asked for and is not so:");
    section.element("ul", &[("class", "failed")], |items| {
        report.failed.iter().for_each(|sentence| items.leaf("li", &[], sentence));
    });
}

fn responses(section: &mut Markup, report: &Report) {
    let lead = "Drawn at random, not chosen. A reward is what was measured, not what is good.";
    section.leaf("p", &[], if report.side_by_side.is_empty() { "None." } else { lead });
    for (index, pair) in report.side_by_side.iter().enumerate() {
        let heading = format!("response-{index}");
        section.element("article", &[("class", "pair"), ("aria-labelledby", &heading)], |article| {
            article.leaf("h3", &[("id", &heading)], &format!("{}, response {}", pair.reward, index + 1));
            // Any script's own direction, within its box.
            let quoted: &[_] = &[("class", "quoted"), ("dir", "auto")];
            article.element("div", &[("class", "prompt")], |prompt| {
                prompt.leaf("h4", &[], "Prompt");
                prompt.leaf("blockquote", quoted, &pair.prompt);
            });
            let sides = [("Base", &pair.base, pair.base_reward), ("Guided", &pair.aligned, pair.aligned_reward)];
            for (title, text, reward) in sides {
                article.element("div", &[], |side| {
                    side.element("h4", &[], |heading| {
                        heading.text(title);
                        heading.leaf("span", &[("class", "score")], &format!("reward {}", wording::reward(reward)));
                    });
                    side.leaf("blockquote", quoted, text);
                });
            }
        });
    }
}

fn figure(page: &mut Markup, title: &str, caveat: &str, draw: impl FnOnce(&mut Markup)) {
    page.element("figure", &[], |figure| {
        figure.element("figcaption", &[], |caption| {
            caption.leaf("strong", &[], title);
            caption.leaf("p", &[], caveat);
        });
        draw(figure);
    });
}

fn draw_table(page: &mut Markup, table: &Table) {
    if table.rows.is_empty() {
        page.leaf("h3", &[], &table.caption);
        page.leaf("p", &[("class", "none")], "None.");
        return;
    }
    // A wide table is moved within its own box, which a keyboard has to reach too.
    let scroll = [("class", "scroll"), ("role", "region"), ("tabindex", "0"), ("aria-label", table.caption.as_str())];
    page.element("div", &scroll, |scroll| {
        scroll.element("table", &[], |drawn| {
            drawn.element("caption", &[], |caption| caption.leaf("h3", &[], &table.caption));
            drawn.element("thead", &[], |head| {
                head.element("tr", &[], |row| {
                    for (title, kind) in &table.columns {
                        row.leaf("th", &[("scope", "col"), ("class", class(*kind, ""))], title);
                    }
                });
            });
            drawn.element("tbody", &[], |body| {
                // Rows of one method belong together, where a table has several.
                let same = |index: usize| table.rows[index].first() == table.rows[index - 1].first();
                let grouped = (1..table.rows.len()).any(same);
                for (index, cells) in table.rows.iter().enumerate() {
                    let next = grouped && index > 0 && !same(index);
                    let class: &[_] = if next { &[("class", "next")] } else { &[] };
                    body.element("tr", class, |row| draw_row(row, table, cells));
                }
            });
        });
    });
    if !table.note.is_empty() {
        page.leaf("p", &[("class", "caveat")], table.note);
    }
}

fn draw_row(row: &mut Markup, table: &Table, cells: &[String]) {
    for (index, (cell, (_, kind))) in cells.iter().zip(&table.columns).enumerate() {
        let class = class(*kind, cell);
        if index == 0 {
            row.leaf("th", &[("scope", "row"), ("class", class)], cell);
        } else {
            row.leaf("td", &[("class", class)], cell);
        }
    }
}

/// A cell's class.
fn class(kind: Kind, cell: &str) -> &'static str {
    match kind {
        Kind::Words => "words",
        Kind::Code => "code",
        Kind::Number => "number",
        Kind::Verdict if cell == tables::ABOVE => "verdict above",
        Kind::Verdict if cell == tables::BELOW => "verdict below",
        Kind::Verdict => "verdict",
    }
}
