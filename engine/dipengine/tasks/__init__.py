"""Tasks: one file per inverse problem (forward operator, data term, default recipe)."""

from dipengine.errors import InputError
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption
from dipengine.tasks.custom import Custom
from dipengine.tasks.deblur import Deblur
from dipengine.tasks.dejpeg import Dejpeg
from dipengine.tasks.denoise import Denoise
from dipengine.tasks.flash import Flash
from dipengine.tasks.inpaint import Inpaint
from dipengine.tasks.presets import PRESETS, apply_overrides, apply_preset
from dipengine.tasks.super_resolution import SuperResolution

TASKS: dict[str, Task] = {
    task.name: task for task in (Denoise(), Dejpeg(), SuperResolution(), Inpaint(), Flash(), Deblur(), Custom())
}


def task_named(name: str) -> Task:
    """Look a task up by the verb of the command line. Raises InputError for an unknown name."""
    if name not in TASKS:
        raise InputError(f"There is no task {name!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[name]


__all__ = [
    "PRESETS", "TASKS", "Problem", "Recipe", "Task", "TaskData", "TaskOption", "apply_overrides", "apply_preset",
    "task_named",
]
