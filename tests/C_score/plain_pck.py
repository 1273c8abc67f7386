"""The C score a second time, pair by pair, as plainly as it can be written.

Written from the description of the reference's evaluation: whole feature maps are compared, every
source patch is matched, pairs are looped over. Nothing here is fast and nothing imports the code
under test. The benchmark, too, measures against this.
"""

import numpy as np
import torch
from PIL import Image

SIDE = 840
TEMPERATURE = 0.02


def unit_rows(features_1CHW):
    """[N, C] rows of length 1, row-major over the grid."""
    rows = features_1CHW[0].float().flatten(1).T
    return rows / (rows.norm(dim=1, keepdim=True) + 1e-10)


def similarity(sources, targets):
    """[N, N] cosines of several towers' features, each of length 1, concatenated, again of 1."""
    joined = []
    for maps in (sources, targets):
        rows = torch.cat([unit_rows(one) for one in maps], 1)
        joined.append(rows / (rows.norm(dim=1, keepdim=True) + 1e-10))
    return joined[0] @ joined[1].T


def patch_of(x, y, n):
    """Index of the patch that holds a point; points on the far border are in the last patch."""
    column = min(int(np.float32(n / SIDE) * np.float32(x)), n - 1)
    row = min(int(np.float32(n / SIDE) * np.float32(y)), n - 1)
    return n * row + column


def places(similarity_NN, window, fill, dtype=torch.float64):
    """[N, 2] column and row where every source patch goes; `window` None, 0 or w > 0."""
    count = similarity_NN.shape[1]
    n = round(count**0.5)
    columns, rows = torch.arange(count) % n, torch.arange(count) // n
    best = similarity_NN.argmax(1)
    if window is None:
        return torch.stack([columns[best], rows[best]], 1).double()
    kept = similarity_NN.to(dtype)
    if window > 0:
        near = (columns[None] - columns[best][:, None]).abs() <= window
        near &= (rows[None] - rows[best][:, None]).abs() <= window
        kept = torch.where(near, kept, 0.0 if fill == "zero" else -torch.inf)
    weights = torch.softmax(kept / TEMPERATURE, 1)
    expected = torch.stack([weights @ columns.to(dtype), weights @ rows.to(dtype)], 1)
    return expected.clamp(0, n - 1)


def predict(similarity_NN, keypoints_K2, window, fill, dtype=torch.float64):
    """float64 [K, 2] x, y in the 840 frame of where the keypoints go."""
    n = round(similarity_NN.shape[0] ** 0.5)
    stride = SIDE / n
    where = places(similarity_NN, window, fill, dtype)
    chosen = where[[patch_of(x, y, n) for x, y in keypoints_K2]]
    return (chosen * stride + stride // 2).numpy()


def ambiguous(groups, target_seen, mutual):
    """The columns that a pair's geo-aware subset holds, by loops."""
    found = set()
    for group in groups:
        seen = [k for k in group if target_seen[k]]
        if len(seen) > 1:
            found |= {k for k in seen if mutual[k]}
    return sorted(found)


def score_pair(predicted_K2, true_K2, columns, limit, alphas):
    """Hits of the keypoints `columns` at each alpha."""
    hits = []
    for alpha in alphas:
        errors = [np.linalg.norm(predicted_K2[k] - true_K2[k]) for k in columns]
        hits.append(sum(error < float(np.float32(alpha)) * limit for error in errors))
    return hits


def score(category, alphas, features, window=5, fill="zero", threshold="bbox", groups=()):
    """One category: dict of lists over pairs, `hits` and `geo_hits` with an entry per alpha.

    `features(i)` gives the list of towers' [1, C, n, n] of picture i; it is called for both
    pictures of every pair. `groups` are the geo-aware groups as columns.
    """
    found = {"hits": [], "points": [], "geo_hits": [], "geo_points": [], "predicted": []}
    for p in range(len(category.pairs)):
        cosines = similarity(features(category.source[p]), features(category.target[p]))
        source, target = category.source_kps[p], category.target_kps[p]
        mutual = [bool(s[2] * t[2] > 0) for s, t in zip(source, target, strict=True)]
        predicted = predict(cosines, source[:, :2], window, fill)
        limit = SIDE if threshold == "image" else category.threshold_px[p]
        columns = [k for k, seen in enumerate(mutual) if seen]
        twins = ambiguous(groups, target[:, 2] > 0, mutual)
        found["predicted"].append(predicted)
        found["points"].append(len(columns))
        found["geo_points"].append(len(twins))
        found["hits"].append(score_pair(predicted, target[:, :2], columns, limit, alphas))
        found["geo_hits"].append(score_pair(predicted, target[:, :2], twins, limit, alphas))
    return found


def per_image(hits, points):
    """Mean over pairs with points of their own PCK, at each alpha."""
    own = [[h / m for h in hit] for hit, m in zip(hits, points, strict=True) if m]
    return [sum(column) / len(own) for column in zip(*own, strict=True)]


def per_keypoint(hits, points):
    """All points alike, at each alpha."""
    return [sum(column) / sum(points) for column in zip(*hits, strict=True)]


def open_pair(paths):
    """Both images as the reference opens them for every pair: decoded, fitted into 840 x 840."""
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale = SIDE / max(image.size)
        size = [max(1, round(side * scale)) for side in image.size]
        fitted = image.resize(size, Image.Resampling.LANCZOS)
        square = Image.new("RGB", (SIDE, SIDE))
        square.paste(fitted, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
