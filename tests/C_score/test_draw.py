"""Pictures of matches and heat maps: where things are drawn, what is computed, what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from C_score import draw
from C_score.draw import draw_heat_map, draw_matches, similarity_map
from C_score.pair import _spread, match_points, mutual_matches, pair_features
from C_score.sheet import Sheet
from C_score.view import View, read_image
from llava.errors import LawError, UsageError
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.preprocess import place, square
from llava.model.multimodal_encoder.registry import resolve

ROOT = Path(__file__).parents[2]
SIZES = st.tuples(st.integers(8, 300), st.integers(8, 300))


@pytest.fixture
def pictures(tmp_path):
    """A landscape and a portrait image."""
    paths = [tmp_path / "landscape.png", tmp_path / "portrait.png"]
    for seed, (path, size) in enumerate(zip(paths, [(120, 80), (60, 150)], strict=True)):
        tiny.picture(*size, seed).save(path)
    return paths


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A random DINOv2 of 4 x 4 patches."""
    return str(tiny.save_encoder(tmp_path_factory.mktemp("dino"), "dinov2"))


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(SIZES, st.sampled_from(["pad", "stretch", "crop"]), st.integers(1, 24), st.randoms())
def test_a_point_lies_in_its_cell(size, frame, n, random):
    """The cell of a point that the frame sees has the point within half a cell of its middle."""
    view = View.of(size, frame)
    x = random.uniform(max(0, view.left), min(size[0], view.left + view.width))
    y = random.uniform(max(0, view.top), min(size[1], view.top + view.height))
    cell = view.cells(np.array([x, y]), (n, n))
    middle = view.centres(cell, (n, n))
    assert (abs(middle - (x, y)) <= np.array([view.width, view.height]) / n / 2 + 1e-9).all()
    assert (view.cells(middle, (n, n)) == cell).all()
    assert view.patches(np.array([x, y]), (n, n)) == cell[1] * n + cell[0]


@pytest.mark.parametrize("frame", ["pad", "stretch", "crop"])
@pytest.mark.parametrize("size", [(120, 80), (61, 150), (97, 97)])
def test_views_are_the_towers_frames(frame, size, encoder):
    """Against what preprocessing does: the same place to 1e-9, and a drawn dot is found there."""
    spec = resolve(encoder).parts[0]
    view, where = View.of(size, frame), place(*size, spec, frame)
    for column, row in ((0, 0), (1, 2), (3, 3)):
        x, y = view.centres(np.array([column, row]), spec.grid)
        expected = ((column + 0.5) * spec.patch, (row + 0.5) * spec.patch)
        assert where(x, y) == pytest.approx(expected, abs=1e-9)
    x, y = np.floor(view.centres(np.array([1, 2]), spec.grid)).astype(int)
    black = np.zeros((size[1], size[0], 3), np.uint8)
    dotted = black.copy()
    dotted[y - 4 : y + 5, x - 4 : x + 5] = 255
    before, after = (
        np.asarray(square(Image.fromarray(array), spec, frame)).astype(int).sum(2)
        for array in (black, dotted)
    )
    row, column = np.unravel_index((after - before).argmax(), before.shape)
    assert (column // spec.patch, row // spec.patch) == (1, 2)


def test_patches_that_leave_a_border():
    """14 pixel patches fill 378 of 384 pixels: the grid ends before the image does."""
    view = View.of((384, 384), "pad", covered=378 / 384)
    assert view.cells(np.array([13.9, 14.1]), (27, 27)).tolist() == [0, 1]
    assert view.cells(np.array([383, 383]), (27, 27)).tolist() == [26, 26]
    assert view.centres(np.array([26, 26]), (27, 27)).tolist() == [371, 371]


def test_similarity_map():
    """By hand; a zero token has cosine 0, half precision is widened."""
    source = torch.tensor([[0.0, 1.0], [3.0, 4.0]])
    target = torch.tensor(
        [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [-3.0, -4.0], [6.0, 8.0], [4.0, 3.0]]
    )
    expected = [[0.6, 0.8, 0.0], [-1.0, 1.0, 0.96]]
    assert similarity_map(source, target, (2, 3), 1) == pytest.approx(np.array(expected), abs=1e-6)
    half = similarity_map(source.bfloat16(), target.bfloat16(), (2, 3), 1)
    assert half == pytest.approx(np.array(expected), abs=1e-6)
    assert half.dtype == np.float32
    for patch, grid in ((2, (2, 3)), (-1, (2, 3)), (0, (3, 3))):
        with pytest.raises(UsageError, match="patches"):
            similarity_map(source, target, grid, patch)
    with pytest.raises(LawError, match="the target image's features hold NaN"):
        similarity_map(source, target * float("nan"), (2, 3), 0)


def test_matches_of_a_picture_with_itself(encoder, pictures):
    """Every cell on the picture finds itself, with cosine 1, and all of them are mutual."""
    tower = build_tower(encoder, frame="pad")
    for path in pictures:
        pair = pair_features(tower, path, path)
        mutual = mutual_matches(pair, 100)
        assert mutual.source_xy == pytest.approx(mutual.predicted_xy)
        assert mutual.cosine == pytest.approx(np.ones(len(mutual.cosine)), abs=1e-5)
        assert (np.diff(mutual.cosine) <= 0).all()
        width, height = Image.open(path).size
        assert ((mutual.source_xy >= 0) & (mutual.source_xy <= (width, height))).all()
        found = match_points(pair, mutual.source_xy + 0.3)
        assert found.predicted_xy == pytest.approx(mutual.predicted_xy)


def test_matches_equal_loops(encoder, pictures):
    """Against plain loops over tokens of the tower's own forward; two towers joined as well."""
    for name in (encoder, [encoder, encoder]):
        tower = build_tower(name, frame="pad")
        pair = pair_features(tower, *pictures)
        tokens = [tower(tower.preprocess([read_image(path)]))[0] for path in pictures]
        cosine = np.array(
            [[torch.cosine_similarity(a, b, 0) for b in tokens[1]] for a in tokens[0]]
        )
        assert pair.similarity_NN == pytest.approx(cosine, abs=1e-6)
        # 120 x 80 in a square of 120: cells of 30 px, the image begins 20 px down
        match = match_points(pair, np.array([[100.0, 5.0]]))
        best = int(cosine[0 * 4 + 3].argmax())
        # 60 x 150 in a square of 150: cells of 37.5 px, the image begins 45 px to the right
        expected = [(best % 4 + 0.5) * 37.5 - 45, (best // 4 + 0.5) * 37.5]
        assert match.predicted_xy[0] == pytest.approx(expected)
        assert match.cosine[0] == pytest.approx(cosine[3].max(), abs=1e-6)


def test_mutual_matches_leave_the_padding_out(encoder, pictures):
    """The portrait's outer columns of cells are all padding."""
    pair = pair_features(build_tower(encoder, frame="pad"), pictures[1], pictures[1])
    assert len(mutual_matches(pair, 100).cosine) == 8
    assert len(mutual_matches(pair, 3).cosine) == 3
    with pytest.raises(UsageError, match="one or more"):
        mutual_matches(pair, 0)


def test_mutual_matches_are_spread():
    """Neighbours of a better cell come only where nothing else is left."""
    cells = np.array([[0, 0], [0, 1], [1, 1], [3, 3], [0, 2], [3, 0]])
    assert _spread(cells, 3).tolist() == [0, 3, 4]
    assert _spread(cells, 4).tolist() == [0, 3, 4, 5]
    assert _spread(cells, 5).tolist() == [0, 1, 3, 4, 5]
    assert _spread(cells, 100).tolist() == list(range(6))
    assert _spread(cells[:0], 3).tolist() == []


def test_class_tokens_are_left_out(encoder, pictures):
    """Of a tower that gives its class token with the patches."""
    with_class = build_tower(resolve(encoder, select="cls_patch"), frame="pad")
    plain = pair_features(build_tower(encoder, frame="pad"), *pictures)
    assert (pair_features(with_class, *pictures).similarity_NN == plain.similarity_NN).all()
    with pytest.raises(LawError, match=r"class token has no place in the image.*'patch'"):
        pair_features(build_tower(resolve(encoder, select="cls"), frame="pad"), *pictures)


def test_places_on_the_sheet():
    """Two images at one height: a place in pixels of each, in inches of the sheet."""
    sheet = Sheet([Image.new("RGB", (200, 100)), Image.new("RGB", (50, 100))])
    corners = [
        sheet.at(0, (0, 0)),
        sheet.at(0, (200, 100)),
        sheet.at(1, (0, 0)),
        sheet.at(1, (50, 100)),
    ]
    (x0, top), (x1, bottom), (x2, top2), (x3, bottom2) = corners
    assert (top, bottom) == pytest.approx((top2, bottom2))
    assert (x1 - x0) / (top - bottom) == pytest.approx(2)
    assert (x3 - x2) / (top - bottom) == pytest.approx(0.5)
    assert 0 < x0 < x1 < x2 < x3 < sheet.width
    assert 0 < bottom < top < sheet.height


def drawn(tmp_path, name="out.png", **changes):
    """draw_matches between two plain grey pictures, with one wrong match of three."""
    for which, size in (("a", (100, 100)), ("b", (100, 50))):
        Image.new("RGB", size, (128, 128, 128)).save(tmp_path / f"{which}.png")
    arguments = {
        "source_image": tmp_path / "a.png",
        "target_image": tmp_path / "b.png",
        "source_xy": np.array([[10, 10], [50, 50], [90, 90]]),
        "predicted_xy": np.array([[10, 5], [50, 25], [20, 45]]),
        "true_xy": np.array([[11, 5], [50, 26], [90, 45]]),
        "correct": np.array([True, True, False]),
        "out": tmp_path / name,
    }
    draw_matches(**{**arguments, **changes})
    return tmp_path / name


def test_marks_are_where_the_points_are(tmp_path):
    """The disc of point 2 on both images, the cross and the ring of point 3, by their colours."""
    image = pixels(drawn(tmp_path))
    sheet = Sheet([Image.new("RGB", (100, 100)), Image.new("RGB", (100, 50))])

    def colour(index, xy, left=0.0):
        x, y = sheet.at(index, xy)
        return tuple(image[round((sheet.height - y) * 140), round((x - left) * 140)])

    orange, green = (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)
    assert colour(0, (50, 50)) == colour(1, (50, 25)) == orange
    assert colour(1, (20, 45)) == green
    assert colour(1, (90, 45)) == (128, 128, 128)  # a ring is open
    assert green in [colour(1, (90, 45), left) for left in np.linspace(0.08, 0.13, 8)]


def test_wrong_matches_are_not_told_by_colour_alone(tmp_path):
    """Every line becomes dashed, every end a cross, when the verdict changes."""
    right = drawn(tmp_path, "r.svg", correct=np.array([True] * 3)).read_text()
    wrong = drawn(tmp_path, "w.svg", correct=np.array([False] * 3)).read_text()
    unknown = drawn(tmp_path, "u.svg", correct=None, true_xy=None).read_text()
    assert wrong.count("stroke-dasharray") > right.count("stroke-dasharray")
    assert unknown.count("stroke-dasharray") == 0
    assert "3 of 3 correct" in right
    assert "0 of 3 correct" in wrong
    assert "true place" not in unknown
    assert "match" in unknown


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_same_bytes_again(tmp_path, suffix):
    """And no date, host or version in them."""
    first = drawn(tmp_path, f"one.{suffix}", title="a $pair$").read_bytes()
    assert drawn(tmp_path, f"two.{suffix}", title="a $pair$").read_bytes() == first
    assert b"Software" not in first
    assert b"dc:date" not in first


def heat(tmp_path, size, map_HW, frame, xy=(1, 1), name="heat.png"):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    Image.new("RGB", size).save(tmp_path / "b.png")
    draw_heat_map(tmp_path / "a.png", tmp_path / "b.png", xy, map_HW, tmp_path / name, frame=frame)
    return pixels(tmp_path / name)


@pytest.mark.parametrize("frame", ["pad", "stretch"])
@pytest.mark.parametrize("size", [(160, 80), (80, 160)])
def test_heat_lies_where_the_grid_does(tmp_path, frame, size):
    """One hot cell on a black image: the bright area is that cell of the frame, on the image."""
    map_HW = np.zeros((8, 8), np.float32)
    map_HW[3, 4] = 1
    image = heat(tmp_path, size, map_HW, frame)
    sheet = Sheet([Image.new("RGB", (100, 100)), Image.new("RGB", size)], bar=True)
    view = View.of(size, frame)
    inside = view.centres(np.array([4.3, 3.3]), (8, 8))
    above = view.centres(np.array([4.3, 2.4]), (8, 8))
    beside = view.centres(np.array([5.4, 3.3]), (8, 8))

    def brightness(xy):
        x, y = sheet.at(1, xy)
        return image[round((sheet.height - y) * 140), round(x * 140)].sum()

    assert brightness(inside) > 200
    assert brightness(above) < 100
    assert brightness(beside) < 100


def test_best_match_in_the_padding_is_shown(tmp_path):
    """The frame around the image is drawn too, so that the star is not lost."""
    map_HW = np.zeros((8, 8), np.float32)
    before = heat(
        tmp_path, (160, 80), map_HW + np.eye(8, dtype=np.float32)[::-1] * (np.arange(8) == 4), "pad"
    )
    map_HW[0, 4] = 1
    after = heat(tmp_path, (160, 80), map_HW, "pad")
    assert after.shape[0] > 1.2 * before.shape[0]


def test_points_off_the_image_are_shown(tmp_path):
    """An annotation may lie a little off its image: the sheet grows, nothing fails."""
    inside = heat(tmp_path, (100, 100), np.eye(2, dtype=np.float32), "pad", (99, 50))
    beyond = heat(tmp_path, (100, 100), np.eye(2, dtype=np.float32), "pad", (130, 50))
    assert beyond.shape[0] < inside.shape[0]
    drawn(tmp_path, predicted_xy=np.array([[10, 5], [50, 25], [20, 90]]))


def test_constant_heat_map(tmp_path):
    """No range to spread colours over, and no division by it."""
    heat(tmp_path, (100, 100), np.full((2, 2), 0.5, np.float32), "pad")


@pytest.mark.parametrize("size", [(1, 1), (900, 30), (30, 900), (5000, 3000)])
def test_images_of_any_shape(tmp_path, size):
    """A sheet stays between 6 and 10 inches wide and under 8 high."""
    Image.new("L", size).save(tmp_path / "b.png")
    points = np.array([[0.5, 0.5]])
    for target in ("b.png", "out.png"):
        out = tmp_path / "out.png"
        draw_matches(tmp_path / "b.png", tmp_path / target, points, points, None, None, out)
        width, height = Image.open(out).size
        assert 6 * 140 <= width <= 10 * 140 + 1
        assert height <= 8 * 140


def test_no_points(tmp_path):
    """No match at all is a picture without lines, not an error."""
    none = np.zeros((0, 2))
    drawn(tmp_path, source_xy=none, predicted_xy=none, true_xy=None, correct=None)


def test_long_titles_are_shortened(tmp_path):
    """Nothing is cut by the border: its pixels are white."""
    image = pixels(drawn(tmp_path, title="a long title " * 40))
    assert (image[:, -10:] == 255).all()
    assert (image[:, :10] == 255).all()


WRONG = {
    "suffix": ({"name": "out.jpg"}, UsageError, r"ending in .png or .svg"),
    "lengths": ({"predicted_xy": np.zeros((2, 2))}, UsageError, "3 source points and 2 predicted"),
    "truths": ({"true_xy": np.zeros((2, 2))}, UsageError, "3 source points and 2 true"),
    "verdicts": ({"correct": np.ones(2)}, UsageError, "3 source points and 2 verdicts"),
    "nan": ({"predicted_xy": np.full((3, 2), np.nan)}, LawError, "NaN or infinite"),
    "image": ({"source_image": Path("none.png")}, LawError, "none.png: no such image"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_drawn(tmp_path, kind):
    changes, error, message = WRONG[kind]
    changes = dict(changes)
    name = changes.pop("name", "out.png")
    with pytest.raises(error, match=message):
        drawn(tmp_path, name, **changes)
    assert not (tmp_path / name).exists()


def test_heat_maps_that_cannot_be_drawn(tmp_path):
    good = np.ones((2, 2), np.float32)
    for map_HW, frame, xy, message in (
        (good * np.nan, "pad", (1, 1), "NaN or infinity"),
        (good[0], "pad", (1, 1), r"got \[2\]"),
        (good, "own", (1, 1), "unknown frame 'own'"),
        (good, "pad", (np.nan, 1), "NaN or infinite"),
    ):
        with pytest.raises(LawError, match=message):
            heat(tmp_path, (10, 10), map_HW, frame, xy)


@pytest.fixture
def command(pictures, encoder, tmp_path, capsys):
    """Runs the command on both pictures: its lines."""

    def run(*argv, source=pictures[0], out=tmp_path / "made" / "pair.png"):
        flags = ["--source", source, "--target", pictures[1], "--model", encoder, "--out", out]
        draw.main(list(map(str, [*flags, *argv])))
        return capsys.readouterr().out.splitlines()

    return run


def test_command_with_points(command, encoder, pictures, tmp_path):
    """Prints every match, writes the matches and one heat map a point."""
    lines = command("--point", "100,5", "--point", "3,3", "--frame", "pad")
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert made == ["pair-heat-1.png", "pair-heat-2.png", "pair.png"]
    assert [Path(line).name for line in lines if line.endswith(".png")] == sorted(made)[2:] + made[
        :2
    ]
    pair = pair_features(build_tower(encoder, frame="pad"), *pictures)
    (u, v), cosine = (
        match_points(pair, np.array([[100.0, 5.0]])).predicted_xy[0],
        pair.similarity_NN[3],
    )
    assert lines[1].split() == ["100.0,", "5.0", f"{u:.1f},", f"{v:.1f}", f"{cosine.max():.3f}"]


def test_command_without_points(command, tmp_path):
    """The best mutual matches, and the heat map of the best; SVG as well."""
    lines = command("--matches", 2, out=tmp_path / "made" / "pair.svg")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "pair-heat-1.svg",
        "pair.svg",
    ]
    assert len(lines) <= 5
    assert "<svg" in (tmp_path / "made" / "pair.svg").read_text()


def test_command_on_text(command, tmp_path):
    """A picture of letters, grey and palette images included."""
    from PIL import ImageDraw

    page = Image.new("L", (200, 60), 255)
    ImageDraw.Draw(page).text((20, 20), "Law of Vision", fill=0)
    for mode in ("L", "P", "1"):
        page.convert(mode).save(tmp_path / "page.png")
        command("--point", "30,28", source=tmp_path / "page.png")


def test_command_refuses(command, tmp_path):
    for argv, message in (
        (["--point", "30"], "expected X,Y in pixels, such as 120,80"),
        (["--point", "nan,1"], "expected X,Y"),
        (["--point", "500,5"], "is not on the source image, which is 120 x 80"),
        (["--frame", "padd"], "did you mean 'pad'"),
        (["--matches", "0"], "one or more"),
        (["--model", "clipp336"], "did you mean"),
    ):
        with pytest.raises(UsageError, match=message):
            command(*argv)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(LawError, match=r"bad.png: does not decode as an image"):
        command(source=tmp_path / "bad.png")
    assert not list(tmp_path.glob("made/*"))


def test_help_imports_neither_torch_nor_matplotlib():
    """`python -m C_score.draw --help` is quick."""
    code = "import sys, C_score.draw as d\ntry: d.main(['-h'])\nexcept SystemExit: "
    code += "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")


@pytest.mark.slow
def test_as_a_module(command, pictures, encoder, tmp_path):
    """As one types it; the same bytes from another process."""
    flags = ["--source", pictures[0], "--target", pictures[1], "--model", encoder]
    done = subprocess.run(
        [sys.executable, "-m", "C_score.draw", *flags, "--out", tmp_path / "pair.png"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    command()
    assert (tmp_path / "made" / "pair.png").read_bytes() == (tmp_path / "pair.png").read_bytes()
