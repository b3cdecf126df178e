"""The exercises: which function of minicl each takes out, what it needs, and the tests that fail without it.

docs/exercises.md lists them for a reader; tests/test_exercises.py tests that both agree.
"""

from typing import NamedTuple


class Exercise(NamedTuple):
    """One function without its body, and the tests that fail without it."""
    name: str
    level: int           # above those of the exercises that it needs
    difficulty: int      # 1: the formula, typed; 2: a step of your own; 3: several steps, or an idea
    needs: str           # exercises that its tests need, and with them what those need
    file: str            # in minicl/
    function: str        # "outer.inner"; a `backward` may be a lambda
    page: str            # in docs/: the derivation
    k: str               # pytest -k: exactly those of its `tests` that its own absence fails
    minutes: int
    hint: str
    tests: str = "test_ops.py"
    keep: int = 0        # statements after the docstring that stay: checks and unpacking
    falls: str = ""      # pytest -k: what else in that file is built on it
    parts: str = ""      # functions of the file that it is made of, which go with it


ON_THE_SPHERE = ("info_nce or nt_xent or clip_loss or alignment or uniformity or sup_con or dcl or siglip or triplet "
                 "or cosine_similarity and not bad")
EXERCISES = [
    Exercise("tape", 1, 3, "", "autograd.py", "_walk", "derivations.md", "a_walk", 40,
             "arriving: node -> gradient of its output; for each of ancestors(root), newest first: call its backward and "
             "require_gradients, let node.op.checks.fit_gradient(dx, x._data, position) fit each result to its input, add "
             "it to the input's node, or to the leaf by _accumulate and Additions; return the leaves", tests="test_walk.py"),
    Exercise("broadcast_sum", 2, 2, "tape", "signature.py", "sum_to_shape", "derivations.md",
             "(broadcast or rank or against) and differences and not mul", 20,
             "an entry used n times gets the sum of n gradients: sum the added axes first, then those of length 1",
             falls="broadcast or rank or against"),
    Exercise("mul", 3, 1, "broadcast_sum", "ops/elementwise.py", "mul.backward", "derivations.md",
             "mul and not matmul", 5, "hold one factor constant; broadcasting is undone for you", falls="keep_the_dtype"),
    Exercise("relu", 4, 1, "mul", "ops/elementwise.py", "relu.backward", "derivations.md",
             "relu and not leaky and not add_relu and not norm and not bad", 5, "y alone shows where x > 0"),
    Exercise("logsumexp", 4, 1, "mul", "ops/reduce.py", "logsumexp.backward", "derivations.md",
             "logsumexp and not overflow", 10, "exp(x - y) is a softmax: _exp_below gives 0 in rows of -inf; _restore_axes "
             "gives g its reduced axes back",
             parts="_times_softmax"),
    Exercise("matmul", 4, 1, "mul", "ops/matmul.py", "matmul.backward", "gradients/matmul.md", "matmul and not bad",
             10, "the shapes can be multiplied in one way only"),
    Exercise("linear", 4, 2, "mul", "ops/matmul.py", "linear.backward", "gradients/matmul.md", "linear and not bad",
             20, "flatten leading axes to rows; the bias was added to every row"),
    Exercise("max_pool2d", 4, 2, "mul", "ops/pool.py", "max_pool2d.backward", "gradients/pool.md",
             "max_pool and not bad", 20, "loop over the windows' taps again; only the first maximum of a window gets g",
             parts="_take _to_overlapping"),
    Exercise("conv2d", 4, 3, "mul", "ops/conv.py", "_conv_by_taps.backward", "gradients/conv.md",
             "conv2d and not (grey or colour or columns or window or bad) or not_needed", 40,
             "the taps of the forward pass with `to` and `at` exchanged: shift.taps() pairs outputs with inputs; g, like x "
             "and y, in pieces of the batch, and dx back to `shape`; None if not needed"),
    Exercise("layer_norm", 4, 2, "mul", "ops/normalize.py", "layer_norm.backward", "gradients/normalize.md",
             "layer_norm and not bad", 20, "take two directions out of g w: the mean, and x^",
             parts="_products _project"),
    Exercise("batch_norm", 4, 3, "mul", "ops/normalize.py", "batch_norm.backward", "gradients/normalize.md",
             "batch_norm and not (far or reports or bad)", 30, "like layer_norm with the axes swapped; a row of X "
             "holds several pixels, so take pixels.sums, or reshape to (-1, C); with relu, g counts only where y > 0",
             falls="barlow", parts="_past_relu _fold_back _line_back"),
    Exercise("attention", 4, 2, "mul", "ops/attention.py", "attention.backward", "gradients/attention.md",
             "attention and not bad", 20, "three products; between them, the softmax's Jacobian of each row"),
    Exercise("winograd", 5, 3, "conv2d", "ops/winograd.py", "_kernel_gradient", "gradients/winograd.md",
             "kernel_gradient", 40, "for each strip: A g A^T, and B^T d B from _input_transform, whose rows share one "
             "array; 16 products over tiles add up; then G^T on both sides", tests="test_winograd.py"),
    Exercise("log_softmax", 5, 2, "mul", "contrastive/softmax.py", "log_softmax.backward", "gradients/softmax.md",
             "log_softmax and not bad", 15, "dx sums to zero over a row, whatever g; do not forget 1/tau"),
    Exercise("softmax", 5, 2, "mul", "contrastive/softmax.py", "softmax.backward", "gradients/softmax.md",
             "softmax and not log_softmax and not bad", 15, "the Jacobian is (diag(p) - p p^T) / tau"),
    Exercise("l2_normalize", 5, 2, "mul", "contrastive/cosine.py", "l2_normalize.backward", "gradients/cosine.md",
             "l2_normalize", 15, "a change along x^ changes only the length: project it out; then its length; a row "
             "below eps gets 0", falls=ON_THE_SPHERE, parts="_across"),
    Exercise("cosine_similarity", 6, 1, "l2_normalize", "contrastive/cosine.py", "cosine_similarity.backward",
             "gradients/cosine.md", "cosine_similarity and not bad", 10,
             "the gradient of x^ first, then l2_normalize's"),
    Exercise("info_nce", 7, 3, "l2_normalize", "contrastive/info_nce.py", "info_nce.backward", "gradients/info_nce.md",
             "info_nce", 40, "the query moves from the negatives' mean to its positive; m and ahead are from "
             "pairs.softmax, pairs.to_negatives gives (4); m is None if neither query nor tau needs a gradient"),
    Exercise("nt_xent", 7, 3, "l2_normalize", "contrastive/nt_xent.py", "nt_xent.backward", "gradients/nt_xent.md",
             "nt_xent", 40, "both views are anchors: every pair counts twice, once from each side; "
             "pairs.weighted_sum(one_minus_p) is the sum in (2)"),
    Exercise("alignment", 7, 2, "l2_normalize", "contrastive/alignment_uniformity.py", "alignment_loss.backward",
             "gradients/alignment_uniformity.md", "alignment", 15, "the pull points along the difference; a distance "
             "of 0 has no direction"),
    Exercise("uniformity", 7, 2, "l2_normalize", "contrastive/alignment_uniformity.py", "uniformity_loss.backward",
             "gradients/alignment_uniformity.md", "uniformity", 20, "NT-Xent's push with one softmax over all pairs; "
             "each counts twice, as in pairs.weighted_sum"),
    Exercise("clip_loss", 7, 3, "l2_normalize", "contrastive/clip.py", "clip_loss.backward", "gradients/clip.md",
             "clip_loss", 40, "two softmaxes share the scores, and pairs.weighted_sums has both sums; the logit scale "
             "multiplies them all"),
    Exercise("siglip", 7, 2, "l2_normalize", "contrastive/siglip.py", "siglip.backward", "gradients/siglip.md",
             "siglip and not bad", 20, "G of each pair separately; then three products with t, and two sums for the "
             "scalars"),
    Exercise("momentum_update", 8, 1, "", "methods/ema.py", "EMA.update", "methods/moco.md",
             "follow or launches or not_a_float", 10, "self.pairs are (online, target), self.values is all of the target; "
             "follow(xp, x, y, new, old) is x <- m x + (1 - m) y; self.copied is copied", tests="test_ema.py", keep=2,
             falls="normalises_alike or replaced or never_undone or outlasts or to_epoch or says_that", parts="_follow"),
    Exercise("enqueue", 8, 2, "", "methods/queue.py", "Queue.enqueue", "methods/moco.md", "queue and not evaluation",
             15, "normalise; noted gives the ids; then key t to row t mod capacity, in slices, as a batch may wrap; "
             "count.add",
             tests="test_queue.py", keep=5),
    Exercise("adam", 8, 2, "linear", "optim.py", "_adam", "derivations.md", "adam and not named or changes_nothing",
             20, "in place; follow(xp, m, g, new1, old1) is m <- b1 m + (1 - b1) g; rate and eps contain the "
             "corrections; l2 goes into g, decay_factor shrinks w, unless None", tests="test_optim.py"),
    Exercise("warmup_cosine", 8, 1, "", "optim.py", "warmup_cosine", "derivations.md", "warmup_cosine or schedule", 10,
             "the first step already has a rate; after the last step, stay at the final rate", tests="test_optim.py",
             keep=3),
    Exercise("effective_rank", 8, 2, "", "evaluate/geometry.py", "effective_rank", "derivations.md", "effective_rank",
             15, "float64, over the largest entry, centred; eigh of x^T x after to_host; roots above _rounding; entropy",
             tests="test_evaluate.py", keep=2, falls="training_metrics or report or the_cap_is_of"),
    Exercise("retrieval", 8, 2, "", "evaluate/zero_shot.py", "retrieval_recall", "derivations.md",
             "retrieval_of or recall_counts or repeated_caption_is or retrieves_nothing or every_k or images_repeated", 20,
             "count the wrong candidates that score at least as much as the best right one: fewer than k is a hit",
             tests="test_clip.py", keep=8, falls="chunks_of_a_batch"),
    Exercise("logit_scale", 9, 1, "clip_loss adam", "methods/clip.py", "CLIP.clamp_logit_scale", "methods/clip.md",
             "clamping", 5, "the parameter is a logarithm; write into its array, which the optimizer shares",
             tests="test_clip.py", falls="chunks_of_a_batch"),
    Exercise("grad_cache", 9, 3, "linear layer_norm batch_norm info_nce nt_xent clip_loss momentum_update enqueue "
             "adam", "methods/grad_cache.py", "grad_cache", "gradients/grad_cache.md",
             "gradient_of or redraws or equal_size or logit_scale or moco or add_up or memory or elsewhere or a_row "
             "or off_the_tape or is_warned_of", 30, "encode without a tape; _restore the buffers, those of hosts in "
             "each_step; backward of the loss alone; then each chunk again, _require_same if on_host, and one backward "
             "of all its outputs' dz", tests="test_grad_cache.py", keep=13, falls="scalar"),
]
BY_NAME = {exercise.name: exercise for exercise in EXERCISES}
DIFFICULTY = {1: "easy", 2: "medium", 3: "hard"}


def needed(exercise):
    """The names of all exercises that this one needs, directly or through others."""
    direct = exercise.needs.split()
    return set(direct).union(*(needed(BY_NAME[name]) for name in direct))
