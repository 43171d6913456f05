"""What a training step costs in time, memory and messages: the tables behind `rslm profile`.

`workload` is what is measured: one model, its optimizer, one batch of random tokens. `step`,
`memory`, `attention` and `collectives` (with `parallel`) each make the tables of one command, and
`pictures` draws them. `timing`, `memory_trace` and `traffic` measure; `tables` prints and writes.
"""
