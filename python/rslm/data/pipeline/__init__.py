"""From files of the web to token files: a config, its plan, and what runs it.

    config -> plan -> run -> backend -> supervisor | worker -> stages -> documents_pass, steps
                                                              -> shards, marks -> report

A stage is a row of tasks, a task a plain function of files. Its report is written last and marks
it as finished, so that any run goes on where another stopped, with the same bytes.
"""

from rslm.data.pipeline.config import PipelineConfig, read_pipeline_config
from rslm.data.pipeline.plan import Plan, make_plan, read_plan
from rslm.data.pipeline.run import Part, Progress, run_pipeline

__all__ = [
    "Part",
    "PipelineConfig",
    "Plan",
    "Progress",
    "make_plan",
    "read_pipeline_config",
    "read_plan",
    "run_pipeline",
]
