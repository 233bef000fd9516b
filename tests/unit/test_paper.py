"""From CSV files to tables, figures, numbers and the PDF."""

import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest
import synthetic
from matplotlib import pyplot as plt
from rendering import PAPER, build, copied, draw, overfull, render, typeset, values, with_prose

from kvbudget.errors import UserError
from kvbudget.paper import budgets, check, latex, layout, registry, shown, times
from kvbudget.paper.plots import lengths, memory, over_length, quality, style
from kvbudget.paper.tables import marks
from kvbudget.study import titles
from kvbudget.study.config import read
from kvbudget.study.expand import expand

STUDIES = PAPER.parent / "workflow/studies"
HOSTILE = r'100% \input{x} $1_2^3$ #&~"<|>` --- {°} Ünï'


def checks(generated, csv):
    """The check, as the workflow runs it."""
    tables = sorted(generated.rglob("tables/**/*.tex"))
    return check.check(generated.parent, generated / "numbers.tex", tables, csv)


# --- text and numbers as LaTeX


def test_escape_leaves_no_command():
    text = latex.escape(HOSTILE)
    assert r"\textbackslash{}input\{x\}" in text
    assert r"100\%" in text and r"\$1\_2\textasciicircum{}3\$" in text
    assert "---" not in text and latex.escape("a\n\n\tb") == "a b"
    assert latex.escape(latex.Latex(r"\emph{x}")) == r"\emph{x}"
    assert latex.escape("λ = 0.3, α, ж") == r"\(\lambda\) = 0.3, \(\alpha\), ?"


def test_templates_escape_what_is_not_latex(tmp_path):
    settings = synthetic.config()
    settings["experiments"][0]["title"] = r"\evil % {"
    _, paper = build(tmp_path, settings)
    assert r"\textbackslash{}evil \% \{" in (paper / "tables/experiments/lengths.tex").read_text()


def test_keys_hold_nothing_special_to_tex():
    assert latex.key("m_1", r"a%b#c{d}\e", 500) == "m_1/a-b-c-d--e/500"


@pytest.mark.parametrize(
    "value, text",
    [(0.5, "0.50"), (-0.004, "0.00"), (-1.5, r"\ensuremath{-}1.50"), (float("nan"), "--")],
)
def test_decimal(value, text):
    assert latex.decimal(value) == text


def test_signed():
    assert latex.signed(0.25) == r"\ensuremath{+}0.25"
    assert latex.signed(0.001) == "0.00"
    assert latex.signed(-0.25) == r"\ensuremath{-}0.25"


def test_bytes_are_printed_as_mebibytes():
    assert latex.metric("cache_bytes_planned", 3 * 2**19) == "1.50"
    assert latex.metric("peak_rss_bytes", 1000 * 2**20) == "1,000.0"


def test_budgets_in_order():
    shuffled = ["512", "5p", "full", "20p", "256", "12.5p"]
    assert sorted(shuffled, key=budgets.order) == [
        "full", "5p", "12.5p", "20p", "256", "512"
    ]  # fmt: skip


def test_chunks_are_even_and_lose_nothing():
    pieces = list(layout.chunks(list(range(41)), 40))
    assert [len(piece) for piece in pieces] == [21, 20]
    assert list(layout.chunks([], 40)) == []


# --- tables and numbers


def test_one_table_an_experiment_and_eight_more(rendered):
    _, paper = rendered
    made = {str(path.relative_to(paper / "tables")) for path in paper.rglob("tables/**/*.tex")}
    experiments = {f"experiments/{e['name']}.tex" for e in synthetic.config()["experiments"]}
    assert made == experiments | {
        f"{name}.tex" for name in registry.TABLES if name != "experiments"
    }
    assert len(made - experiments) == 8


def test_table_holds_the_value_and_its_interval(rendered):
    src, paper = rendered
    row = src.cells.query("task == 'niah_single' and length == 500 and method == 'h2o'")
    score = row[row["metric"] == "score"].iloc[0]
    key = (score["model"], "niah_single", 500, "h2o", score["budget"], "score")
    mark = marks.marks(src).get(key, "")
    cell = f"{score['value']:.2f}{mark}"
    cell += f"\\bounds{{{score['ci_low']:.2f}}}{{{score['ci_high']:.2f}}}"
    line = next(
        x
        for x in (paper / "tables/experiments/lengths.tex").read_text().splitlines()
        if "H2O} & 20" in x
    )
    assert [part.strip() for part in line.split("&")][2:4] == [r"20\%", cell]


def test_numbers_agree_with_the_csv(rendered):
    src, paper = rendered
    found = values(paper)
    row = src.cells.query("metric == 'nll' and method == 'head-aware' and budget == '20p'").iloc[0]
    key = f"{row['model']}/{row['task']}/{row['length']}/head-aware/20p/nll"
    assert found[key] == f"{row['value']:.2f}"
    assert found["study/name"] == "synthetic"


def test_rows_are_in_the_order_of_the_experiments(tmp_path):
    settings = synthetic.config()
    for experiment in settings["experiments"]:
        experiment["methods"] = experiment["methods"][::-1]
    src, _ = build(tmp_path, settings)
    assert src.study.methods == [
        "head-aware",
        "streaming-llm",
        "h2o",
        "full",
        "independent",
        "uniform",
    ]


@pytest.mark.parametrize(
    "panels, columns", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (6, 3), (8, 4)]
)
def test_panels_wrap_with_the_fewest_gaps(panels, columns):
    assert quality.columns(panels) == columns


def test_losses_are_named(tmp_path):
    """Where the head-aware method is made to lose, the sentence says where."""
    study = synthetic.make(tmp_path)
    for file in study.parents[1].glob("cells/*/niah_single/L500/head-aware/*.json"):
        record = json.loads(file.read_text())
        for sample in record["samples"]:
            sample["nll"] += 10
        file.write_text(json.dumps(record))
    _, paper = render(tmp_path, study)
    losses = values(paper)["summary/losses"]
    assert losses.startswith(
        "With Tiny-A, Head-Aware is clearly worse in NLL in 2 of 24 comparisons, "
    )
    table = (paper / "tables/tally.tex").read_text()
    (row,) = (line for line in table.splitlines() if r"\named{StreamingLLM}" in line)
    assert row.split("&")[-4:-1] == [" 12 ", " 11 ", " 1 "]


def test_two_numbers_of_one_key_are_refused(tmp_path):
    settings = synthetic.config()
    settings["tasks"]["a%b"] = settings["tasks"]["a#b"] = {"kind": "niah"}
    settings["experiments"][0]["tasks"] = ["a%b", "a#b"]
    with pytest.raises(UserError, match="two numbers have the key"):
        build(tmp_path, settings)


@pytest.mark.parametrize("methods", [["full"], ["h2o"], ["full", "h2o"], ["head-aware"]])
def test_any_study_can_be_rendered(tmp_path, methods):
    settings = synthetic.config(samples={"contexts": 1, "questions": 1})
    settings["experiments"] = [
        {**settings["experiments"][0], "methods": methods, "lengths": [500]},
    ]
    src, paper = build(tmp_path, settings)
    with_prose(paper)
    draw(src, paper)
    checks(paper, src.directory)


@pytest.mark.parametrize("methods", [["full"], ["full", "h2o"], synthetic.MAIN])
def test_a_study_of_translations_alone(tmp_path, methods):
    """It has no score, no question and no time of a token."""
    settings = synthetic.config()
    settings["tasks"] = {"wait_3": {"kind": "streaming", "title": "Wait-3", "k": 3}}
    places = {"tasks": ["wait_3"], "lengths": [500], "methods": methods}
    settings["experiments"] = [settings["experiments"][0] | places]
    src, paper = build(tmp_path, settings)
    with_prose(paper)
    draw(src, paper)
    checks(paper, src.directory)
    said = values(paper)
    assert said["study/compressed"] == "sources compressed while they are read and translated"
    assert "This study times no step" in said["summary/speed"]
    assert "No task of this study is scored" in said["summary/headline"]
    assert "in score" not in " ".join(said.values())


@pytest.mark.parametrize(("skill", "said"), [(0.9, False), (0.1, True)])
def test_a_table_says_what_the_full_cache_fails_even_where_it_stands_alone(
    tmp_path, monkeypatch, skill, said
):
    monkeypatch.setitem(synthetic.SKILL, "full", skill)
    settings = synthetic.config()
    place = {"tasks": ["niah_single"], "lengths": [500, 1000], "methods": ["full"]}
    settings["experiments"] = [settings["experiments"][0] | place]
    _, paper = build(tmp_path, settings)
    table = (paper / "tables/experiments/lengths.tex").read_text()
    assert (r"there is no headline, in niah\_single (500, 1,000)." in table) == said


def test_several_tasks_stand_side_by_side(tmp_path):
    settings = synthetic.config()
    settings["tasks"]["needles"] = {"kind": "niah", "needles": 4, "title": "One of several"}
    settings["tasks"]["values"] = {"kind": "niah", "needles": 1, "values": 2, "title": "Two values"}
    place = {"tasks": ["niah_single", "needles", "values"], "lengths": [500]}
    settings["experiments"] = [settings["experiments"][0] | place]
    study = synthetic.make(tmp_path, settings)
    for file in study.parents[1].glob("cells/*/needles/L500/full/*.json"):
        record = json.loads(file.read_text())
        for sample in record["samples"]:
            sample["score"] = 0.0
        file.write_text(json.dumps(record))
    src, paper = render(tmp_path, study)
    table = (paper / "tables/tasks.tex").read_text()
    assert r"\group{Tiny-A}" in table
    rows = [row for row in map(str.strip, table.splitlines()) if row.startswith(r"\named")]
    assert len(rows) == len(synthetic.MAIN)
    # What the full cache fails is in italics: the second task alone.
    assert all(row.count(r"\weak") == 1 for row in rows)
    ours = src.cells.query("method == 'head-aware' and metric == 'score' and task == 'niah_single'")
    assert f"& {ours['value'].iloc[0]:.2f} &" in table
    assert values(paper)["summary/tasks"].startswith("In score, over headline pairs of model and ")


def test_rendering_is_reproducible(rendered, tmp_path):
    def made(paper):
        files = [path for path in paper.rglob("*") if path.is_file()]
        return {path.relative_to(paper): path.read_bytes() for path in files}

    src, paper = build(tmp_path)
    draw(src, paper)
    first, second = made(rendered[1]), made(paper)
    assert {f"figures/{name}.pdf" for name in registry.FIGURES} <= set(map(str, first))
    assert [str(k) for k in first if first[k] != second[k]] == []


def test_translations_have_their_own_columns(tmp_path):
    settings = synthetic.config()
    settings["tasks"]["wait_3"] = {"kind": "streaming", "title": "Wait-3", "k": 3}
    settings["experiments"].append(
        settings["experiments"][0] | {"name": "streaming", "tasks": ["wait_3"], "lengths": [500]}
    )
    src, paper = build(tmp_path, settings)
    table = (paper / "tables/experiments/streaming.tex").read_text()
    assert "method & budget & kept & NLL & agreement & BLEU & AL & LAAL" in table
    assert table.count("begin{tabular}") == 1  # and no times
    assert "2.00 MiB in the mean" in table
    cell = src.wide().query("task == 'wait_3' and method == 'h2o'").iloc[0]
    line = next(line for line in table.splitlines() if "H2O} & 20" in line)
    shown = [part.strip() for part in line.rstrip("\\ ").split("&")]
    assert shown[4].startswith(f"{cell['agreement']:.2f}\\bounds")
    assert shown[5:] == [f"{cell[name]:.2f}" for name in ("bleu", "al", "laal")]
    assert "BLEU" not in (paper / "tables/experiments/lengths.tex").read_text()


def needles_in_few_bits():
    """A study that asks for one of four needles, with a peer in four bits and three seeds."""
    settings = synthetic.config()
    ours = settings["methods"]["head-aware"] | {"calibration_seeds": [1, 2, 3]}
    four = {"policy": "h2o", "title": "Quantised H2O", "bits": 4}
    settings["methods"] = settings["methods"] | {"head-aware": ours, "four": four}
    settings["tasks"] = {"needles": {"kind": "niah", "needles": 4, "title": "One of four"}}
    place = {"tasks": ["needles"], "lengths": [500], "methods": [*synthetic.MAIN, "four"]}
    settings["experiments"] = [settings["experiments"][0] | place | {"budgets": ["20%", "40%"]}]
    return settings


@pytest.fixture(scope="module")
def choosing(tmp_path_factory):
    return build(tmp_path_factory.mktemp("choosing"), needles_in_few_bits())


def rows_of(paper, name):
    """Rows of a table's floats, as lists of cells without LaTeX around titles."""
    lines = (paper / f"tables/{name}.tex").read_text().splitlines()
    rows = [line.strip().removesuffix("\\\\").split(" & ") for line in lines if " & " in line]
    return [[re.sub(r"\\named(\[.*?\])?\{(.*?)\}$", r"\2", c.strip()) for c in row] for row in rows]


def test_tables_print_tokens_kept_beside_bytes(choosing):
    _, paper = choosing
    rows = rows_of(paper, "experiments/lengths")
    kept = [(row[0], row[1], row[2]) for row in rows if len(row) == 5]
    assert (r"Quantised H2O", r"20\%", r"80\%") in kept
    assert (r"Quantised H2O", "all kept", "all") in kept
    assert (r"H2O", r"40\%", r"40\%") in kept
    assert not any(name == "Quantised H2O" and budget == r"40\%" for name, budget, _ in kept)


def test_tables_tell_which_needle_answers_are(choosing):
    src, paper = choosing
    text = (paper / "tables/experiments/lengths.tex").read_text()
    assert r"any needle & \shortstack[r]{right\\given any} & forced choice" in text
    assert "One of four (chance 0.25)" in text
    values = src.wide().query("method == 'four' and budget == '40p'").iloc[0]
    (row,) = [r for r in rows_of(paper, "experiments/lengths") if r[0] == "Quantised H2O" and
              r[1] == "all kept" and r[2].startswith(f"{values['any']:.2f}")]  # fmt: skip
    assert row[4].startswith(f"{values['choice']:.2f}\\bounds")


def test_tables_print_the_spread_of_seeds_below_their_mean(choosing):
    src, paper = choosing
    rows = rows_of(paper, "experiments/lengths")
    cells = src.cells.query("method == 'head-aware' and metric == 'score'")
    spreads = [row for row in rows if row[0] == r"\quad its seeds"]
    assert len(spreads) == len(cells) == 2
    for row, cell in zip(spreads, cells.itertuples(), strict=True):
        assert row[3] == f"{cell.seed_low:.2f} to {cell.seed_high:.2f}"
    text = (paper / "tables/experiments/lengths.tex").read_text()
    assert "Means over seeds of the calibration, whose range stands below: Head-Aware" in text


def test_comparisons_say_bits_and_what_so_many_contexts_show(choosing):
    src, paper = choosing
    rows = rows_of(paper, "summary")
    assert [(row[1], row[2]) for row in rows[1:4]] == [
        ("H2O", "16"), ("StreamingLLM", "16"), ("Quantised H2O", "4")
    ]  # fmt: skip
    text = (paper / "tables/summary.tex").read_text()
    assert r"\(n\) = 12 contexts" in text
    pooled = src.table("pooled").query("kind == 'baseline'")
    for metric, title in (("score", "score"), ("nll", "NLL")):
        median = pooled.loc[pooled["metric"] == metric, "detectable"].median()
        assert f"{median:.2f} in {title}" in text
    bold = pooled.query("metric in ['score', 'nll'] and verdict != 'unclear'")
    assert text.count(r"\textbf{") == len(bold)


def test_times_of_two_machines_stand_in_tables_of_their_own(tmp_path, monkeypatch):
    study = synthetic.make(tmp_path)
    for file in study.parents[1].glob("cells/*/niah_single/L500/h2o/*.json"):
        record = json.loads(file.read_text())
        record["provenance"]["cpu"] = "a node"
        file.write_text(json.dumps(record))
    src, paper = render(tmp_path, study)
    captions = re.findall(
        r"caption\{.*cost.*?Measured on (.*?) \(",
        (paper / "tables/experiments/lengths.tex").read_text(),
    )
    # One machine a table, of which there may be several.
    assert list(dict.fromkeys(captions)) == ["cpu, Some CPU, 2 threads", "cpu, a node, 2 threads"]
    monkeypatch.setattr(over_length, "draw", lambda study, frame, measures: frame)
    drawn = memory.draw(src)
    assert drawn["peak_rss_bytes"].isna().all() and drawn["cache_bytes_allocated"].notna().all()
    ratios = times.ratios(src)
    assert not ((ratios["method"] == "h2o") & (ratios["length"] == 500)).any()
    assert ((ratios["method"] == "h2o") & (ratios["length"] == 1000)).any()


def test_quality_draws_chance_and_names_what_keeps_all(choosing):
    src, _ = choosing
    figure = quality.draw(src)
    panels = {ax.get_ylabel(): ax for ax in figure.axes}
    assert set(panels) == {"score", "forced choice", "NLL (nats a token)"}
    for label, ax in panels.items():
        levels = [line.get_ydata()[0] for line in ax.lines if line.get_label() == "chance"]
        assert levels == ([] if label.startswith("NLL") else [0.25])
        assert [text.get_text() for text in ax.texts] == ["all kept"]


def test_the_main_table_has_a_column_for_each_model_and_length(rendered):
    src, paper = rendered
    rows = rows_of(paper, "places")
    _, head, *values = rows
    assert head == ["method", "500", "1,000", "2,000"]
    assert [row[0] for row in values] == 2 * [src.study.title("methods", m) for m in synthetic.MAIN]
    mine = src.cells.query("task == 'niah_single' and method == 'head-aware' and budget == '20p'")
    scores = mine[mine["metric"] == "score"].set_index("length")["value"]
    assert values[3][1:] == [f"{scores[length]:.2f}" for length in (500, 1000, 2000)]
    assert r"at a budget of 20\% of the bytes" in (paper / "tables/places.tex").read_text()


def test_tables_mark_what_is_clearly_better_or_worse_than_ours(rendered):
    src, _ = rendered
    found = marks.marks(src)
    frame = src.comparisons
    clear = frame[(frame["verdict"] != "unclear") & (frame["kind"] != "full")]
    ours = clear[(clear["kind"] == "ablation") | (clear["method"] == "head-aware")]
    assert len(ours) > 0
    for row in ours.to_dict("records"):
        variant = row["kind"] == "ablation"
        method = row["method"] if variant else row["reference"]
        same = frame.query(
            "task == @row['task'] and length == @row['length'] and budget == @row['budget'] and"
            " metric == @row['metric']"
        )
        same = same[same["method" if variant else "reference"] == method]
        same = same[same["kind"] == row["kind"]]
        key = (row["model"], row["task"], row["length"], method, row["budget"], row["metric"])
        if (same["verdict"] == row["verdict"]).all():
            below = (row["verdict"] == "worse") == variant
            assert found[key] == (marks.WORSE if below else marks.BETTER)


def test_variants_stand_in_bold_where_they_clearly_differ(rendered):
    src, paper = rendered
    pooled = src.table("pooled").query("kind == 'ablation' and metric in ['score', 'nll']")
    text = (paper / "tables/ablation.tex").read_text()
    assert text.count(r"\textbf{") == (pooled["verdict"] != "unclear").sum()
    for row in pooled.to_dict("records"):
        assert latex.signed(row["difference"]) in text


def test_figures_over_length_show_the_task_and_budget_measured_most(rendered):
    src, _ = rendered
    assert (shown.task(src), shown.budget(src)) == ("niah_single", "20p")
    figure = lengths.draw(src)
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == ["score", "NLL (nats a token)"]
    for ax in figure.axes:
        named = [line.get_label() for line in ax.lines]
        assert named == [src.study.title("methods", method) for method in synthetic.MAIN]
        assert all(list(line.get_xdata()) == [500, 1000, 2000] for line in ax.lines)


def test_figures_over_length_are_left_out_where_there_is_one_length(rendered, choosing):
    for (src, paper), drawn in ((rendered, True), (choosing, False)):
        assert (lengths.draw(src) is not None) == drawn
        assert (r"\lengthstrue" in (paper / "numbers.tex").read_text()) == drawn


def test_an_interval_far_above_all_values_is_cut():
    _, (cut, whole) = plt.subplots(2)
    for ax, end in ((cut, 30), (whole, 0.6)):
        ax.vlines(1, 0.4, end)
        style.from_zero(ax, pd.Series([0.1, 0.5]))
    assert cut.get_ylim() == (0, pytest.approx(0.7))
    assert 0.6 < whole.get_ylim()[1] < 0.7
    plt.close("all")


def test_methods_are_told_apart_without_colour(rendered):
    src, _ = rendered
    figure = lengths.draw(src)
    looks = {(line.get_marker(), str(line._dash_pattern)) for line in figure.axes[0].lines}
    assert len(looks) == len(synthetic.MAIN)
    assert len({marker for marker, _ in looks}) == len({dashes for _, dashes in looks}) == 4


# --- the check


@pytest.fixture
def checked(rendered_copy):
    src, paper = rendered_copy
    with_prose(paper)
    return src.directory, paper


def test_the_paper_itself_passes(checked):
    csv, paper = checked
    assert "without bare numbers" in checks(paper, csv)


def test_each_figure_and_the_main_table_are_referred_to():
    prose = "".join(path.read_text() for path in sorted((PAPER / "sections").glob("*.tex")))
    shown = re.findall(r"\\autofigure\{(\w+)\}.*?\{(fig:\w+)\}\n", prose, re.DOTALL)
    assert {name for name, _ in shown} == set(registry.FIGURES)
    referred = {
        key for keys in re.findall(r"\\[cC]ref\{([^}]*)\}", prose) for key in keys.split(",")
    }
    tables = {"tab:summary-1", "tab:places-1", "tab:ablation-1"}
    assert {label for _, label in shown} | tables <= referred


def test_nothing_is_printed_under_seven_points(choosing):
    _, paper = choosing
    sources = [PAPER / "main.tex", *(PAPER / "sections").glob("*.tex"), *paper.rglob("*.tex")]
    for path in sources:
        assert not re.search(
            r"\\(scriptsize|tiny)\b|adjustbox|resizebox|scalebox", path.read_text()
        )
    style.use()
    sizes = ["font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "legend.fontsize"]
    assert min(plt.rcParams[size] for size in sizes) >= 7


@pytest.mark.parametrize("methods", [3, 60])
def test_a_legend_of_many_lines_leaves_the_panels_their_room(methods, tmp_path):
    def draw(src):
        figure, axes = plt.subplots(1, 2, figsize=(style.PAGE, 1.9))
        for ax in axes:
            for number in range(methods):
                ax.plot([0, 1], [number, 0], label=f"a method of some length, {number}")
        style.legend(figure, 4)
        drawn.append(figure)
        return figure

    drawn = []
    style.save(SimpleNamespace(draw=draw), None, tmp_path / "figure.pdf")
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = figure.legends
    tops = [ax.get_window_extent().y1 for ax in figure.axes]
    assert max(tops) < legend.get_window_extent().y0
    assert min(ax.get_window_extent().height for ax in figure.axes) > 0.8 * figure.dpi


@pytest.mark.parametrize("name", ["default", *sorted(file.stem for file in STUDIES.glob("*"))])
def test_no_two_methods_of_a_study_look_alike(name):
    root = STUDIES.parents[1]
    study = expand(read(name, root), root)
    looks = [style.look(study, method) for method in study.methods]
    # The page of results draws colours and markers alone.
    assert len({(look.colour, look.marker) for look in looks}) == len(looks)
    if len(study.main_methods) <= len(style.KNOWN) + len(style.OTHERS):
        colours = {style.look(study, method).colour for method in study.main_methods}
        assert len(colours) == len(study.main_methods)


def test_sixty_methods_look_different_still():
    methods = ["full", "head-aware", *(f"other-{number}" for number in range(58))]
    study = SimpleNamespace(methods=methods, ours="head-aware", policy=lambda method: "h2o")
    looks = [style.look(study, method) for method in methods]
    assert len({(look.colour, look.marker) for look in looks}) == len(looks)
    assert {look.line for look in looks} == set(style.LINES)


@pytest.mark.parametrize(
    "line",
    [
        "It scores 0.93.",
        r"It scores \(0.93\) here.",
        r"It gains $12$ points.",
        r"A share of 20\% is kept.",
        "Over 1,000 tokens.",
    ],
)
def test_a_bare_number_is_refused(checked, line):
    csv, paper = checked
    with (paper.parent / "sections/conclusion.tex").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(UserError, match=r"conclusion\.tex:\d+: bare number"):
        checks(paper, csv)


@pytest.mark.parametrize(
    "line",
    [
        r"\begin{equation} x = 0.93 \end{equation}",
        r"H2O and Qwen2.5 keep \(B/2\) tokens \citep{zhang2023h2o}, see \cref{tab:lengths-1}.",
        "Llama 3 % allow-number: a name",
        "Text % 0.93 in a comment",
        r"It scores \res{study/contexts}.",
    ],
)
def test_what_is_no_bare_number(line):
    assert list(check.bare_numbers(line)) == []


def test_allowing_a_number_needs_a_reason():
    assert list(check.bare_numbers("0.93 % allow-number:")) == [(1, "0.93")]


@pytest.mark.parametrize("command", [r"\res{no/such/key}", r"\citep{nobody2020}"])
def test_unknown_keys_are_refused(checked, command):
    csv, paper = checked
    with (paper.parent / "sections/conclusion.tex").open("a") as file:
        file.write(command)
    with pytest.raises(UserError, match=r"no/such/key|nobody2020"):
        checks(paper, csv)


def test_a_number_of_another_csv_is_refused(checked):
    csv, paper = checked
    with (csv / "cells.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="made from another"):
        checks(paper, csv)


# --- the PDF


LONG = "A very long title, which someone wrote because the name did not say enough, so it goes on"
TITLES = {
    "models": {"tiny_a": HOSTILE},
    "tasks": {"niah_single": r"Needles $n^2$ of a task that needs more than a single line"},
    "methods": {
        "full": LONG,
        "h2o": r"H_2O & \par 50% $5",
        "streaming-llm": "x" * 60,
        "head-aware": r"$\textsc{Ours}$",
        "uniform": r"_under $\alpha \leq \frac{1}{2}$ \$3",
        "independent": r"$\emph{Our B}_{x^2}$ – “été” αβ ≥ 2²",
    },
}


def with_titles():
    settings = synthetic.config()
    settings["experiments"][0]["title"] = r"$\textsc{Lengths}$ #1 100% \foo _x_"
    for section, given in TITLES.items():
        entries = {key: {**settings[section][key], "title": title} for key, title in given.items()}
        settings[section] = {**settings[section], **entries}
        for title in given.values():
            titles.check(section, title)
    return settings


def test_pdf_of_hostile_names_is_reproducible_and_fits(tmp_path):
    src, paper = build(tmp_path / "a", with_titles())
    draw(src, paper)
    with_prose(paper)
    _, again = copied(src, tmp_path / "b")
    pdfs = []
    for folder in (paper, again):
        done, log = typeset(folder)
        assert done.returncode == 0, done.stdout[-3000:]
        assert "undefined" not in log
        assert overfull(log) < 5
        assert "Float too large" not in log
        pdfs.append((folder / "main.pdf").read_bytes())
    assert pdfs[0] == pdfs[1]
    assert "DRAFT" not in log and "DEVELOPMENT" not in log
    assert str(tmp_path).encode() not in pdfs[0]


def test_titles_are_the_same_in_tables_and_numbers(tmp_path):
    _, paper = build(tmp_path, with_titles())
    table = (paper / "tables/experiments/lengths.tex").read_text()
    numbers = values(paper)
    for tex in (r"\(\textsc{Ours}\)", r"H\_2O \& \textbackslash{}par 50\% \$5"):
        assert rf"\named{{{tex}}}" in table
        assert tex in numbers["study/methods"]
    assert r"\(\textsc{Lengths}\) \#1 100\% \textbackslash{}foo" in table


def test_an_unknown_number_stops_latex(checked):
    _, paper = checked
    with (paper.parent / "sections/conclusion.tex").open("a") as file:
        file.write(r"\res{no/such/key}")
    done, log = typeset(paper)
    assert done.returncode != 0
    assert "There is no number 'no/such/key'" in log.replace("\n", "")


def test_a_draft_says_so_on_page_one_and_so_does_what_choices_were_made_by(tmp_path):
    study = synthetic.make(tmp_path, synthetic.config(split="development"))
    next(study.parents[1].glob("cells/*/niah_single/L500/h2o/*.json")).unlink()
    src, paper = render(tmp_path, study, draft=True)
    draw(src, paper)
    with_prose(paper)
    done, log = typeset(paper)
    assert done.returncode == 0, done.stdout[-3000:]
    first = log.split("[1")[0]
    assert "DRAFT: cells of this study are missing" in first
    assert "DEVELOPMENT SPLIT: choices were made by these samples" in first
    line = next(
        x
        for x in (paper / "tables/experiments/lengths.tex").read_text().splitlines()
        if "H2O} & 20" in x
    )
    assert [part.strip() for part in line.split("&")][2:4] == ["--", "--"]
