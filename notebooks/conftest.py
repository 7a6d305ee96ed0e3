"""Which stored outputs `pytest --nbval-lax` compares.

None, unless a cell is tagged `nbval-check-output` or the first cell of its notebook is tagged `strict`. A notebook is
strict when all that it prints is exact: integers, shapes, counts. Those that train are not, and assert their claims.
"""

import nbformat
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    collectors = yield
    for collector in collectors:
        if file_path.suffix == ".ipynb" and "strict" in nbformat.read(file_path, 4).cells[0].metadata.get("tags", []):
            collector.compare_outputs = True  # read by nbval when it collects the cells
    return collectors
