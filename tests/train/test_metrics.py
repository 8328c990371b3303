"""Metrics against scikit-learn, thresholds against brute force, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from runtime.model import sigmoid
from train.metrics import (
    PER_LABEL,
    Confusion,
    Figures,
    Reliability,
    auc,
    average_precision,
    best_thresholds,
    bootstrap_intervals,
    brier,
    f1_curve,
    macro_auc,
    macro_f1,
    precision_recall_points,
    roc_points,
    told_apart,
)


def task(records: int = 300, labels: int = 4, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities that know something of it; `levels` rounds them, so that many are equal."""
    generator = np.random.default_rng(0)
    y = generator.random((records, labels)) < np.linspace(0.1, 0.6, labels)
    p = sigmoid(1.5 * y + generator.standard_normal((records, labels)))
    return y, np.round(p * levels) / levels if levels else p


@pytest.mark.parametrize("levels", [None, 20, 3])
def test_auc_equals_scikit_learn_with_and_without_ties(levels: int | None) -> None:
    y, p = task(levels=levels)
    for k in range(y.shape[1]):
        assert auc(y[:, k], p[:, k]) == pytest.approx(sk.roc_auc_score(y[:, k], p[:, k]), abs=1e-12)
    assert macro_auc(y, p) == pytest.approx(sk.roc_auc_score(y, p, average="macro"), abs=1e-12)


def test_auc_at_its_ends() -> None:
    y = np.array([False, False, True, True])
    assert auc(y, np.array([0.1, 0.2, 0.3, 0.4])) == 1.0
    assert auc(y, np.array([0.4, 0.3, 0.2, 0.1])) == 0.0
    assert auc(y, np.full(4, 0.5)) == 0.5


def test_a_label_of_one_class_has_no_auc_and_is_left_out_of_the_mean() -> None:
    y, p = task()
    y[:, 0] = True
    y[:, 1] = False
    assert np.isnan(auc(y[:, 0], p[:, 0]))
    assert np.isnan(auc(y[:, 1], p[:, 1]))
    assert macro_auc(y, p) == pytest.approx((auc(y[:, 2], p[:, 2]) + auc(y[:, 3], p[:, 3])) / 2)


def test_macro_f1_leaves_out_the_labels_that_macro_auc_leaves_out() -> None:
    y, p = task()
    thresholds = np.full(4, 0.6)
    y[:, 0] = True
    y[:, 1] = False
    assert told_apart(y).tolist() == [False, False, True, True]
    kept = Confusion.of(y, p >= thresholds).f1()[2:]
    assert kept.min() > 0
    assert macro_f1(y, p, thresholds) == pytest.approx(kept.mean())


def test_a_draw_without_the_only_record_of_a_label_is_one_of_the_other_labels() -> None:
    """The first label's F1 is 1 where it is drawn, and the second's: no draw falls short of 1."""
    y = np.array([[True, True], *[[False, True]] * 4, *[[False, False]] * 5])
    p = y.astype(float)
    draws = [np.random.default_rng(seed).integers(0, 10, 10) for seed in range(9)]
    assert {bool(y[rows, 0].any()) for rows in draws} == {True, False}
    f1 = bootstrap_intervals(lambda rows: np.array([macro_f1(y[rows], p[rows], np.full(2, 0.5))]), 10)
    assert f1.tolist() == [[1.0, 1.0]]


def test_no_label_with_both_classes_gives_no_mean() -> None:
    for y in (np.ones((3, 2), bool), np.zeros((3, 2), bool)):
        assert np.isnan(macro_auc(y, np.zeros((3, 2))))
        assert np.isnan(macro_f1(y, np.zeros((3, 2)), np.full(2, 0.5)))


def test_a_probability_that_is_not_a_number_gives_no_auc() -> None:
    y, p = task()
    p[7, 2] = np.nan
    assert np.isnan(auc(y[:, 2], p[:, 2]))


def test_figures_at_thresholds_equal_scikit_learn() -> None:
    y, p = task(levels=10)
    thresholds = np.array([0.3, 0.5, 0.6, 0.9])
    decided = p >= thresholds
    confusion = Confusion.of(y, decided)
    np.testing.assert_allclose(confusion.f1(), sk.f1_score(y, decided, average=None))
    np.testing.assert_allclose(confusion.sensitivity(), sk.recall_score(y, decided, average=None))
    np.testing.assert_allclose(confusion.ppv(), sk.precision_score(y, decided, average=None))
    np.testing.assert_allclose(confusion.specificity(), sk.recall_score(~y, ~decided, average=None))
    assert confusion.micro_f1() == pytest.approx(sk.f1_score(y, decided, average="micro"))
    assert macro_f1(y, p, thresholds) == pytest.approx(sk.f1_score(y, decided, average="macro"))
    counted = np.stack([confusion.tn, confusion.fp, confusion.fn, confusion.tp], axis=1).reshape(-1, 2, 2)
    np.testing.assert_array_equal(counted, sk.multilabel_confusion_matrix(y, decided))


def test_a_probability_equal_to_the_threshold_is_a_yes() -> None:
    assert macro_f1(np.array([[True], [False]]), np.array([[0.5], [0.4]]), np.array([0.5])) == 1.0


def test_what_cannot_be_divided_is_no_number_and_of_f1_zero() -> None:
    none, every = np.zeros((5, 1), bool), np.ones((5, 1), bool)
    confusion = Confusion.of(none, none)
    assert np.isnan([confusion.sensitivity(), confusion.ppv()]).all()
    assert (confusion.f1()[0], confusion.micro_f1(), confusion.specificity()[0]) == (0.0, 0.0, 1.0)
    confusion = Confusion.of(every, none)
    assert np.isnan([confusion.specificity(), confusion.ppv()]).all()
    assert (confusion.f1()[0], confusion.sensitivity()[0]) == (0.0, 0.0)


def test_a_draw_in_which_nothing_is_predicted_does_not_count_for_the_ppv() -> None:
    """The one record that is predicted has the label: the PPV is 1 wherever it can be told."""
    y = np.array([[True], [True], *[[False]] * 6])
    p = np.array([[0.9], [0.1], *[[0.2]] * 6])
    ends = bootstrap_intervals(lambda rows: Figures.of(y[rows], p[rows], np.array([0.5])).vector(), 8, repeats=200)
    assert dict(zip(PER_LABEL, ends[3:].tolist(), strict=True))["ppv"] == [1.0, 1.0]
    assert ends[1, 0] == 0.0  # macro-F1 counts such a draw as before


def f1_at(y: np.ndarray, p: np.ndarray, threshold: float) -> float:
    """F1 of one label."""
    return float(Confusion.of(y[:, None], p[:, None] >= threshold).f1()[0])


# Hundredths in a shuffled order: far enough apart for a threshold, and often equal.
columns = st.lists(st.tuples(st.booleans(), st.integers(1, 99)), min_size=1, max_size=12)


@given(columns)
def test_the_curve_is_f1_at_each_threshold(column: list[tuple[bool, int]]) -> None:
    y = np.array([truth for truth, _ in column])
    p = np.array([hundredths / 100 for _, hundredths in column])
    thresholds = np.linspace(0.005, 0.995, 34)
    wanted = [f1_at(y, p, t) for t in thresholds]
    np.testing.assert_allclose(f1_curve(y, p, thresholds), wanted)


@given(columns)
def test_without_smoothing_thresholds_are_the_best_there_are(column: list[tuple[bool, int]]) -> None:
    y = np.array([truth for truth, _ in column])
    p = np.array([hundredths / 100 for _, hundredths in column])
    (threshold,) = best_thresholds(y[:, None], p[:, None], smoothing=0.0)
    assert 0 < threshold < 1
    candidates = np.concatenate([[0.005, 0.995], (np.unique(p)[1:] + np.unique(p)[:-1]) / 2])
    best = max(f1_at(y, p, c) for c in candidates)
    assert f1_at(y, p, threshold) == pytest.approx(best)


def test_a_broad_hill_wins_over_a_chance_peak() -> None:
    """Positives from 0.4 up, and one chance pair at 0.8 whose cut would be a little better on this sample alone."""
    negatives = np.concatenate([np.linspace(0.05, 0.38, 30), [0.795, 0.796, 0.797]])
    positives = np.concatenate([np.linspace(0.42, 0.6, 3), np.linspace(0.8, 0.95, 20)])
    y = np.concatenate([np.zeros(33, bool), np.ones(23, bool)])[:, None]
    p = np.concatenate([negatives, positives])[:, None]
    (exact,) = best_thresholds(y, p, smoothing=0.0)
    (smooth,) = best_thresholds(y, p)
    assert 0.797 < exact <= 0.8 or 0.38 < exact <= 0.42
    assert 0.3 < smooth < 0.6


def test_a_label_without_positives_keeps_the_middle() -> None:
    assert best_thresholds(np.zeros((5, 1), bool), np.linspace(0, 1, 5)[:, None])[0] == 0.5


def test_thresholds_are_found_label_by_label_also_in_float32() -> None:
    y, p = task(levels=200)
    p = p.clip(0.01, 0.99)
    together = best_thresholds(y, p)
    alone = [best_thresholds(y[:, k : k + 1], p[:, k : k + 1])[0] for k in range(y.shape[1])]
    np.testing.assert_array_equal(together, alone)
    narrow = best_thresholds(y, p.astype(np.float32))
    np.testing.assert_allclose(narrow, together)


def test_thresholds_stay_inside_what_a_spec_takes() -> None:
    y = np.array([[True, False], [True, False]])
    thresholds = best_thresholds(y, np.array([[1e-9, 1.0], [2e-9, 1.0]]))
    assert ((thresholds >= 1e-4) & (thresholds <= 1 - 1e-4)).all()


@pytest.mark.parametrize("levels", [None, 20, 3])
def test_curves_equal_scikit_learn_with_and_without_ties(levels: int | None) -> None:
    y, p = task(levels=levels)
    for k in range(y.shape[1]):
        false_rate, true_rate = roc_points(y[:, k], p[:, k])
        wanted_false, wanted_true, _ = sk.roc_curve(y[:, k], p[:, k], drop_intermediate=False)
        np.testing.assert_allclose(false_rate, wanted_false, atol=1e-15)
        np.testing.assert_allclose(true_rate, wanted_true, atol=1e-15)
        assert np.trapezoid(true_rate, false_rate) == pytest.approx(auc(y[:, k], p[:, k]), abs=1e-12)
        recall, precision = precision_recall_points(y[:, k], p[:, k])
        # scikit-learn's come the other way round, with a point at recall 0 that no threshold gives.
        wanted_precision, wanted_recall, _ = sk.precision_recall_curve(y[:, k], p[:, k])
        np.testing.assert_allclose(recall, wanted_recall[-2::-1], atol=1e-15)
        np.testing.assert_allclose(precision, wanted_precision[-2::-1], atol=1e-15)
        wanted = sk.average_precision_score(y[:, k], p[:, k])
        assert average_precision(y[:, k], p[:, k]) == pytest.approx(wanted, abs=1e-12)


def test_a_decision_s_rates_lie_on_its_label_s_curves() -> None:
    y, p = task(levels=50)
    confusion = Confusion.of(y, p >= 0.6)
    for k in range(y.shape[1]):
        operating = (1 - confusion.specificity()[k], confusion.sensitivity()[k])
        assert np.abs(np.stack(roc_points(y[:, k], p[:, k]), axis=1) - operating).sum(1).min() < 1e-12
        operating = (confusion.sensitivity()[k], confusion.ppv()[k])
        assert np.abs(np.stack(precision_recall_points(y[:, k], p[:, k]), axis=1) - operating).sum(1).min() < 1e-12


def test_a_label_of_one_class_has_no_curves_but_a_calibration() -> None:
    p = np.linspace(0.1, 0.9, 9)
    none, every = np.zeros(9, bool), np.ones(9, bool)
    assert [len(axis) for y in (none, every) for axis in roc_points(y, p)] == [0, 0, 0, 0]
    assert [len(axis) for axis in precision_recall_points(none, p)] == [0, 0]
    assert np.isnan(average_precision(none, p))
    assert average_precision(every, p) == 1.0
    assert Reliability.of(none, p).expected_error() == pytest.approx(0.5)
    assert Reliability.of(every, p).expected_error() == pytest.approx(0.5)


@pytest.mark.parametrize("levels", [None, 20, 3])
def test_reliability_equals_scikit_learn_with_and_without_ties(levels: int | None) -> None:
    y, p = task(levels=levels)
    for k in range(y.shape[1]):
        bins = Reliability.of(y[:, k], p[:, k])
        observed, predicted = calibration_curve(y[:, k], p[:, k], n_bins=10, strategy="quantile")
        np.testing.assert_allclose(bins.predicted, predicted, atol=1e-12)
        np.testing.assert_allclose(bins.observed, observed, atol=1e-12)
        assert bins.count.sum() == len(y)
        assert brier(y[:, k], p[:, k]) == pytest.approx(sk.brier_score_loss(y[:, k], p[:, k]), abs=1e-12)
    if levels is None:
        assert bins.count.tolist() == [30] * 10


def test_calibration_error_by_hand_and_whatever_the_order() -> None:
    """Two bins: 0.2 said and 1 of 2 seen, 0.9 said and 2 of 2 seen."""
    y, p = np.array([True, False, True, True]), np.array([0.2, 0.2, 0.9, 0.9])
    assert Reliability.of(y, p, bins=2).expected_error() == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)
    y, p = task(levels=5)
    order = np.random.default_rng(3).permutation(len(y))
    error = Reliability.of(y[:, 1], p[:, 1]).expected_error()
    assert Reliability.of(y[order, 1], p[order, 1]).expected_error() == pytest.approx(error, abs=1e-12)
    assert error > Reliability.of(y[:, 1], np.full(len(y), y[:, 1].mean())).expected_error()


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        sample = generator.standard_normal(50) + 3.0
        ((low, high),) = bootstrap_intervals(lambda rows, s=sample: s[rows].mean(keepdims=True), 50, repeats=200)
        assert low < sample.mean() < high
        hits += low < 3.0 < high
    assert 50 <= hits <= 60


def test_an_interval_is_fixed_by_its_seed() -> None:
    sample = np.random.default_rng(2).standard_normal(40)

    def interval(seed: int) -> list[list[float]]:
        return bootstrap_intervals(lambda rows: sample[rows].mean(keepdims=True), 40, repeats=50, seed=seed).tolist()

    assert interval(0) == interval(0) != interval(1)


def test_an_interval_of_a_constant_is_a_point_and_a_missing_draw_is_passed_over() -> None:
    draws = iter([float("nan"), *[0.2] * 19])
    found = bootstrap_intervals(lambda _rows: np.array([0.7, next(draws), float("nan")]), 10, repeats=20)
    np.testing.assert_allclose(found[:2], [[0.7, 0.7], [0.2, 0.2]])
    assert np.isnan(found[2]).all()


def test_figures_of_all_records_are_those_of_each_metric() -> None:
    y, p = task()
    y = np.concatenate([y, np.zeros((len(y), 1), bool)], axis=1)  # a label that no record has
    p = np.concatenate([p, p[:, :1]], axis=1)
    thresholds = np.full(y.shape[1], 0.4)
    figures, confusion = Figures.of(y, p, thresholds), Confusion.of(y, p >= thresholds)
    assert figures.macro_auc == pytest.approx(macro_auc(y, p))
    assert figures.macro_f1 == pytest.approx(macro_f1(y, p, thresholds))
    assert figures.micro_f1 == confusion.micro_f1()
    rows = (confusion.f1(), confusion.sensitivity(), confusion.specificity(), confusion.ppv())
    for name, row, wanted in zip(PER_LABEL[1:], figures.per_label[1:], rows, strict=True):
        np.testing.assert_array_equal(row[:-1], wanted[:-1], err_msg=name)
    assert figures.per_label[0, :-1].tolist() == [auc(y[:, k], p[:, k]) for k in range(y.shape[1] - 1)]
    assert np.isnan(figures.per_label[:, -1]).all()
    assert len(figures.vector()) == 3 + 5 * y.shape[1]


def test_sigmoid_has_no_overflow_and_equals_its_formula() -> None:
    x = np.array([-1e30, -800.0, -30.0, -2.0, 0.0, 2.0, 30.0, 800.0, np.inf], np.float32)
    with np.errstate(all="raise"):
        p = sigmoid(x)
    assert p.dtype == np.float64
    assert (p[0], p[1], p[4], p[-1]) == (0.0, 0.0, 0.5, 1.0)
    np.testing.assert_allclose(p[2:7], 1 / (1 + np.exp(-x[2:7].astype(np.float64))), rtol=1e-3, atol=1e-15)
    assert np.isnan(sigmoid(np.array([np.nan]))).all()
