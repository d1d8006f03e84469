"""scikit-learn's model selection in parallel."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_grid_search(run, backend):
    printed = run(
        """
import sys
import joblib
import numpy
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

class Witness(LogisticRegression):
    def fit(self, X, y):
        assert whose() == "phalanx.queues"
        return super().fit(X, y)

if __name__ == "__main__":
    X, y = load_iris(return_X_y=True)
    grid = {"C": [0.1, 1.0, 10.0]}
    with joblib.parallel_backend(sys.argv[1]):
        search = GridSearchCV(Witness(max_iter=1000), grid, n_jobs=2, cv=3).fit(X, y)
        scores = cross_val_score(search.best_estimator_, X, y, n_jobs=2)
    alone = GridSearchCV(LogisticRegression(max_iter=1000), grid, cv=3).fit(X, y)
    print(*(numpy.round(s.cv_results_["mean_test_score"], 6).tolist() for s in (search, alone)))
    print(search.best_params_ == alone.best_params_, len(scores), scores.min() > 0.9)
""",
        backend,
    )
    scores, rest = printed.splitlines()
    parallel, alone = scores.split("] [")
    assert parallel.strip("[]") == alone.strip("[]")
    assert rest == "True 5 True"
