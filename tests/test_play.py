"""docs/play.html in headless Chromium: its numbers agree with minicl, and dragging, keys and buttons work."""

import functools
import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/play.html"
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --enable-logging=stderr --window-size=1280,900").split()


@functools.cache
def generator():
    spec = importlib.util.spec_from_file_location("make_play", ROOT / "examples/make_play.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def find_browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        program = shutil.which(name)
        if program and subprocess.run([program, "--version"], capture_output=True, timeout=60).returncode == 0:
            return program


@pytest.fixture
def visit(tmp_path):
    """visit(query, script, text) opens the page with the script appended and returns {id of an element: its text}."""
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium (chromium, chromium-browser or google-chrome)")

    def visit(query="", script="", text=None):
        page = tmp_path / "play.html"
        text = PAGE.read_text(encoding="utf-8") if text is None else text
        page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        run = subprocess.run([program, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                              f"{page.as_uri()}?{query}"], capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in run.stderr, run.stderr                       # no error, no warning
        elements = re.findall(r'<\w+ [^>]*?\bid="([\w-]+)"[^>]*>([^<]*)', run.stdout)
        return {id: html.unescape(text) for id, text in elements}

    return visit


def agrees_with_minicl(page):
    """Check the page's JSON {angles, tau, loss, anchor, numbers} against minicl's numbers for the same points."""
    expected = generator().reference(page["angles"], page["tau"], page["loss"], page["anchor"])
    assert set(expected) <= set(page["numbers"])
    for name, value in expected.items():
        where = f"{name} of {page['angles']}, tau {page['tau']}, {page['loss']}, anchor {page['anchor']}"
        np.testing.assert_allclose(page["numbers"][name], value, rtol=0, atol=1e-6, err_msg=where)


# ---------------------------------------------------------------- the file

def test_the_page_in_the_repository_is_what_the_generator_writes():
    assert PAGE.read_text(encoding="utf-8") == generator().html(), "run python examples/make_play.py"


def test_the_page_is_one_small_file_that_needs_no_network():
    text = PAGE.read_text(encoding="utf-8")
    assert PAGE.stat().st_size < 60_000
    assert set(re.findall(r"\w+://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}      # a name, not an address
    assert "default-src 'none'" in text and not re.search(r"<script[^>]*\bsrc=|<link[^>]*stylesheet|@import|{{", text)
    for target in re.findall(r'<a href="([^"]+)"', text):
        assert (PAGE.parent / target).exists(), target


# ---------------------------------------------------------------- the numbers

def test_numbers_of_drawn_points_are_those_of_minicl(visit):
    rng = np.random.default_rng(3)
    drawn = [(rng.uniform(-4, 7, 2 * rng.integers(2, 9)).tolist(), 0.02 * 100 ** rng.uniform()) for _ in range(12)]
    edges = [(angles, tau) for tau in (0.02, 2)                              # collapsed, opposite, spread apart
             for angles in ([1.0] * 6, [0, np.pi, 0, np.pi], [0, 2, 4, 2, 4, 0])]
    states = [{"angles": angles, "tau": tau, "loss": loss, "anchor": k % len(angles)}
              for k, (angles, tau) in enumerate(drawn + edges) for loss in ("nt_xent", "info_nce")]
    page = visit(script=f"""
        const seen = {json.dumps(states)}.map(wanted => {{ change(wanted); return byId("numbers").textContent; }});
        byId("numbers").textContent = `[${{seen}}]`;""")
    seen = json.loads(page["numbers"])
    assert len(seen) == len(states) == 36
    for state, numbers in zip(states, seen):
        assert {key: numbers[key] for key in state} == state
        agrees_with_minicl(numbers)


def test_the_page_opens_with_the_points_of_its_address_and_their_metrics(visit):
    page = visit("angles=0.1,2,4,0.3,1.5,5.5&tau=0.1&loss=info_nce&anchor=4")
    state = json.loads(page["numbers"])
    asked = {"angles": [0.1, 2, 4, 0.3, 1.5, 5.5], "tau": 0.1, "loss": "info_nce", "anchor": 4}
    assert {key: state[key] for key in asked} == asked
    agrees_with_minicl(state)
    expected = generator().reference(**asked)
    for id, name in (("loss-value", "loss"), ("chance",) * 2, ("alignment",) * 2, ("uniformity",) * 2):
        assert page[id] == f"{expected[name]:.3f}".replace("-", "\u2212"), id
    assert page["floor"] == "\u22121.575" and page["images"] == "3"


def test_the_legend_is_on_the_first_screen_of_768_pixels(visit):
    place = "document.querySelector('.legend').getBoundingClientRect().bottom"
    assert 0 < float(visit(script=f"byId('numbers').textContent = {place};")["numbers"]) < 768 - 140   # the browser's own bars


def test_the_self_check_passes_and_detects_a_missing_temperature(visit):
    text = PAGE.read_text(encoding="utf-8")
    assert visit()["check"].startswith("\u2713 same numbers as minicl: 5 cases")
    wrong = text.replace("/ (anchors.length * tau)", "/ anchors.length")
    assert wrong != text and visit(text=wrong)["check"].startswith("\u2717")


# ---------------------------------------------------------------- interaction

HAND = """
    const seen = [], note = what => seen.push({ what, ...JSON.parse(byId("numbers").textContent) });
    const point = i => document.querySelector(`[data-point="${i}"]`);
    const send = (target, type, options) => target.dispatchEvent(new type[0](type[1], { bubbles: true, ...options }));
    const pointer = (target, name, clientX, clientY) =>
      send(target, [PointerEvent, name], { pointerId: 1, clientX, clientY, cancelable: true });
    const key = (target, options) => send(target, [KeyboardEvent, "keydown"], options);
    note("start");

    const box = byId("circle").getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2;
    pointer(point(2), "pointerdown", x, y); pointer(window, "pointermove", x - 80, y - 80); note("dragged");
    pointer(window, "pointerup", x, y); pointer(window, "pointermove", x + 80, y); note("let go");
    send(point(9), [FocusEvent, "focus"]); key(point(9), { key: "ArrowLeft" }); note("key");
    key(point(9), { key: "ArrowDown", shiftKey: true }); note("shift key");
    byId("tau").value = 0.5; send(byId("tau"), [Event, "input"]); note("tau");
    byId("lr").value = 1 / 3; send(byId("lr"), [Event, "input"]);
    byId("step").click(); note("step"); byId("step").click(); note("step again");
    byId("loss").value = "info_nce"; send(byId("loss"), [Event, "change"]); note("loss");
    byId("step").click(); note("step one");
    byId("loss").value = "nt_xent"; send(byId("loss"), [Event, "change"]);
    byId("more").click(); note("more"); byId("fewer").click(); byId("fewer").click(); note("fewer");
    for (const button of byId("presets").children) { button.click(); note(button.textContent); }
    byId("numbers").textContent = JSON.stringify(seen);
"""


def test_dragging_keys_and_buttons_move_points_and_take_gradient_steps(visit):
    seen = {state["what"]: state for state in json.loads(visit(script=HAND)["numbers"])}
    for state in seen.values():
        agrees_with_minicl(state)
    angles = {what: np.array(state["angles"]) for what, state in seen.items()}

    assert np.isclose(angles["dragged"][2], 3 * np.pi / 4) and seen["dragged"]["anchor"] == 2
    assert (np.delete(angles["dragged"], 2) == np.delete(angles["start"], 2)).all()
    assert (angles["let go"] == angles["dragged"]).all()
    assert np.isclose(np.degrees(angles["key"][9] - angles["let go"][9]), 2) and seen["key"]["anchor"] == 9
    assert np.isclose(np.degrees(angles["shift key"][9] - angles["key"][9]), -10)
    assert np.isclose(seen["tau"]["tau"], 0.2) and np.isclose(seen["step"]["lr"], 0.1)

    for before, after in (("tau", "step"), ("step", "step again"), ("loss", "step one")):
        state = seen[before]
        on_circle = generator().on_circle
        forces = generator().reference(*(state[key] for key in ("angles", "tau", "loss", "anchor")))["forces"]
        z = on_circle(angles[before]) + 0.1 * forces
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        np.testing.assert_allclose(on_circle(angles[after]), z, rtol=0, atol=1e-9)
        assert seen[after]["numbers"]["loss"] < seen[before]["numbers"]["loss"]

    assert [len(seen[what]["angles"]) for what in ("start", "more", "fewer")] == [12, 14, 10]
    assert seen["collapsed"]["numbers"]["alignment"] == 0 == seen["collapsed"]["numbers"]["uniformity"]
    assert np.allclose(seen["aligned + uniform"]["numbers"]["forces"], 0, atol=1e-8)
    assert seen["false negative"]["anchor"] == 0


def test_gradient_descent_aligns_and_spreads_random_points(visit):
    page = visit("tau=0.5", script="for (let k = 0; k < 3000; k++) state.angles = descend(state, 1); draw();")
    numbers = json.loads(page["numbers"])["numbers"]
    assert numbers["alignment"] < 1e-6 and numbers["uniformity"] < -1.575
