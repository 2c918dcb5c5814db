"""``pytest -p tests.toy_op.plugin``: a test run in a library that has the op."""

import tests.conftest  # noqa: F401  (sets what Triton reads at import)
from tests import toy_op

toy_op.add()
