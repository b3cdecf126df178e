// What the page shows, computed as minicl computes it.
// Labels as in docs/gradients/nt_xent.md unless another page is named.

const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
const sum = list => list.reduce((total, x) => total + x, 0);
const mean = list => sum(list) / list.length;
const unit = angle => [Math.cos(angle), Math.sin(angle)];

// 2N points as in minicl: first view 1 of all images, then view 2 of all; the other view of point i is p(i).
const otherView = (i, points) => (i + points / 2) % points;

/** angles: 2N radians; tau > 0; loss "nt_xent" (all points are anchors) or "info_nce" (one is); anchor: which one. */
function numbers({ angles, tau, loss, anchor }) {
  const n = angles.length, ids = [...angles.keys()], u = angles.map(unit);
  const isPositive = (i, j) => j === otherView(i, n), isNegative = (i, j) => j !== i && !isPositive(i, j);
  const s = u.map(a => u.map(b => dot(a, b)));                             // cosines, (2N, 2N)
  const x = s.map(line => line.map(value => value / tau));
  const lse = ids.map(i => logSumExp(x[i].filter((_, j) => isNegative(i, j))));          // over the negatives
  const ahead = ids.map(i => lse[i] - x[i][otherView(i, n)]);              // how far the negatives are ahead of +
  const lack = ahead.map(m => 1 / (1 + Math.exp(-m)));                     // l_i = 1 - p_i+
  const p = ids.map(i => ids.map(j => isNegative(i, j) ? lack[i] * Math.exp(x[i][j] - lse[i])
                                    : isPositive(i, j) ? 1 / (1 + Math.exp(ahead[i])) : 0));

  const anchors = loss === "nt_xent" ? ids : [anchor];
  const L = mean(anchors.map(i => Math.max(ahead[i], 0) + Math.log1p(Math.exp(-Math.abs(ahead[i])))));   // (1)
  const ds = ids.map(i => ids.map(j => !anchors.includes(i) ? 0 :
    (isPositive(i, j) ? -lack[i] : p[i][j]) / (anchors.length * tau)));                   // G
  const dtau = -sum(ids.flatMap(i => ids.map(j => s[i][j] * ds[i][j]))) / tau;            // (3)

  const along = ids.map(i => {                  // point i moves row i, as the anchor, and column i, as a candidate
    const weights = ids.map(j => ds[i][j] + ds[j][i]);
    const du = [0, 1].map(axis => sum(ids.map(j => weights[j] * u[j][axis])));            // (2), or (2) to (4) of info_nce.md
    return -dot(du, tangent(u[i]));             // what l2_normalize lets through: (1) in docs/gradients/cosine.md
  });
  const forces = ids.map(i => tangent(u[i]).map(t => along[i] * t));       // -dL/dz, (2N, 2)
  return { loss: L, chance: Math.log(n - 1), similarity: s, softmax: p, ds, row: p[anchor], lack, dtau, along, forces,
           ...sphere(u) };
}

const tangent = ([x, y]) => [-y, x];            // a quarter turn anticlockwise

function logSumExp(x) {
  const top = Math.max(...x);                   // a shift leaves the softmax unchanged, and exp cannot overflow
  return top + Math.log(sum(x.map(value => Math.exp(value - top))));
}

/** Alignment of the views, and uniformity, the mean over both views; labels of docs/gradients/alignment_uniformity.md. */
function sphere(u, t = 2) {
  const N = u.length / 2, views = [u.slice(0, N), u.slice(N)];
  const squared = (a, b) => (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2;
  const alignment = mean(views[0].map((a, i) => squared(a, views[1][i])));                // (1), alpha = 2
  const potential = view => mean(view.flatMap((a, i) => view.filter((_, j) => i !== j)
    .map(b => Math.exp(-t * squared(a, b)))));
  return { alignment, uniformity: mean(views.map(view => Math.log(potential(view)))) };   // (3)
}

/** A step of gradient descent on z, then back to length 1: z + lr F turns z by atan(lr |F|), as F is tangential. */
function descend(state, lr) {
  const { along } = numbers(state);
  return state.angles.map((angle, i) => angle + Math.atan(lr * along[i]));
}

/** The largest difference between these numbers and what minicl got for the same points. */
function largestDifference(mine, reference) {
  const flat = x => [x].flat(Infinity);
  return Math.max(...Object.keys(reference).map(key => {
    const a = flat(mine[key]), b = flat(reference[key]);
    return a.length === b.length ? Math.max(...a.map((x, i) => Math.abs(x - b[i]))) : Infinity;
  }));
}
