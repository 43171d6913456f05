"""From one run to knowledge: many runs, queued as processes, and what their differences mean.

Nothing here loads torch: runs are processes of `rslm train`, and what they leave are files.
"""
