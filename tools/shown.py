"""A pytest plugin beside nbval: `--shown PATH` writes the notebook there with what its cells showed, if none failed.

nbval reads the kernel's messages and keeps little of them. Here each message is also given to nbclient, which turns
them into a notebook as if it had run the cells itself: every kind of data, the metadata (where `glue` keeps its
values), output that is cleared or replaced later.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shown", type=Path, help="write the executed notebook here")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("shown"):
        config.pluginmanager.register(Shown(path))


class Shown:
    """Collects what the cells of one notebook show."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.client: NotebookClient | None = None
        self.count = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        """Listen in while nbval runs a cell. A live cell runs, but what it needs to show itself is a front end."""
        heard, ask = [], item.parent.get_kernel_message
        if self.client is None:
            self.begin(item.parent)

        def hear(**options):
            heard.append(ask(**options))
            return heard[-1]

        item.parent.get_kernel_message = hear
        try:
            result = yield
        finally:
            del item.parent.get_kernel_message
        if "live" not in item.cell.metadata.get("tags", []):
            self.keep(item.cell, heard)
        return result

    def begin(self, notebook: pytest.File) -> None:
        """Ask the kernel what it is, and to keep a history: without one it shows what a semicolon should hide."""
        self.client = NotebookClient(notebook.nb, record_timing=False)
        kernel = notebook.kernel.kc
        notebook.nb.metadata["language_info"] = kernel.kernel_info(reply=True, timeout=60)["content"]["language_info"]
        execute = kernel.execute
        kernel.execute = lambda code, **options: execute(code, **options | {"store_history": True})

    def keep(self, cell: nbformat.NotebookNode, heard: list[dict]) -> None:
        """Put the messages about a cell that has just become idle into its outputs."""
        self.client.clear_before_next_output = False  # where nbclient remembers `clear_output(wait=True)`
        index = next(i for i, each in enumerate(self.client.nb.cells) if each is cell)
        with contextlib.suppress(CellExecutionComplete):
            for message in heard:
                about_this = message["parent_header"].get("msg_id") == heard[-1]["parent_header"]["msg_id"]
                if about_this and not message["msg_type"].startswith("comm"):
                    self.client.process_message(message, cell, index)
        self.count += 1  # the kernel's own count has live cells in it
        for numbered in (cell, *(o for o in cell.outputs if o.output_type == "execute_result")):
            numbered.execution_count = self.count

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus == 0:
            nbformat.write(self.client.nb, self.path)
